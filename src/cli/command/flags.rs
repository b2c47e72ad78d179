//! The flags of commands, and by which ids they are found again.

use clap::builder::{BoolishValueParser, PossibleValuesParser};
use clap::{Arg, ArgAction};

use super::super::words;
use crate::ops::Row;
use crate::schema::{Field, Type};

const URL_VARIABLE: &str = "OSAPI_CONTROLLER_CLIENT_URL";

pub(super) fn is_required(row: &Row, field: &Field) -> bool {
    field.required && words::default_of(row.id, &field.name).is_none()
}

pub(super) fn field_flag(row: &Row, field: Field) -> Arg {
    let published = row.flags.iter().find(|(name, _)| *name == field.name);
    let long = published.map_or_else(|| field.name.replace('_', "-"), |(_, flag)| (*flag).into());
    let is_required = is_required(row, &field);
    let (shown, is_secret) = (long.to_uppercase(), field.is_secret());
    let arg = Arg::new(flagged(&field.name)).long(long).value_name(shown).help(field.about);
    let arg = match words::default_of(row.id, &field.name) {
        Some(default) => arg.default_value(default),
        None => arg,
    };
    if is_secret {
        // What is asked for need not be given, and what is given may not be the secret itself.
        return arg.num_args(0..=1).default_missing_value("").value_name("-");
    }
    let arg = if field.choices.is_empty() || field.kind != Type::Text {
        arg
    } else {
        arg.value_parser(PossibleValuesParser::new(field.choices))
    };
    value(arg, field.kind).required(is_required)
}

/// How a value of this type is written.
pub(super) fn value(arg: Arg, kind: Type) -> Arg {
    match kind {
        Type::List | Type::Object => arg.action(ArgAction::Append).allow_hyphen_values(true),
        Type::Boolean => boolean(arg),
        // A number may be below zero.
        Type::Integer | Type::Number => arg.allow_negative_numbers(true),
        Type::Text => arg.allow_hyphen_values(true),
    }
}

/// `--name`, `--name=false`.
pub(super) fn boolean(arg: Arg) -> Arg {
    arg.num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_name("BOOL")
        .hide_possible_values(true)
        .value_parser(BoolishValueParser::new())
}

pub(super) fn flag(name: &'static str, about: &'static str) -> Arg {
    boolean(Arg::new(name).long(name).help(about))
}

pub(super) fn url() -> Arg {
    Arg::new("url")
        .long("url")
        .value_name("URL")
        .env(URL_VARIABLE)
        .hide_env_values(true)
        .help("Where the controller listens, such as unix:///run/osapi/osapi.sock")
        .display_order(800)
}

pub(super) fn cacert() -> Arg {
    Arg::new("cacert")
        .long("cacert")
        .value_name("FILE")
        .value_parser(clap::value_parser!(std::path::PathBuf))
        .help("The authorities that the certificate at an https URL may come from, in PEM")
        .display_order(801)
}

pub(super) fn target() -> Arg {
    Arg::new("target")
        .long("target")
        .short('T')
        .value_name("HOST")
        .help(
            "The host: a name, a machine id, a label as key:value, _any or _all [_all to look, and \
             to change the only one there is]",
        )
        .display_order(801)
}

pub(super) fn waiting() -> [Arg; 3] {
    [
        flag("async", "Print the job's id and do not wait for the job").display_order(810),
        Arg::new("wait")
            .long("wait")
            .value_name("SECONDS")
            .value_parser(clap::value_parser!(u64).range(0..=86_400))
            .conflicts_with("async")
            .help("Wait for this long at most; the job goes on after that")
            .display_order(811),
        Arg::new("idempotency-key")
            .long("idempotency-key")
            .value_name("KEY")
            .help("Calls that name the same key are carried out once")
            .display_order(812),
    ]
}

/// Ids of arguments: a field may be called like something of the command line itself.
pub(in crate::cli) fn flagged(field: &str) -> String {
    format!("field {field}")
}

pub(in crate::cli) fn positional(field: &str) -> String {
    format!("argument {field}")
}

pub(in crate::cli) fn reversed(field: &str) -> String {
    format!("opposite of {field}")
}

pub(in crate::cli) fn chosen(option: &str) -> String {
    format!("option {option}")
}

pub(in crate::cli) fn local(extra: &str) -> String {
    format!("extra {extra}")
}
