//! The tree of commands.
//!
//! Every operation with words stands in it below `client`, with flags only, as published; and in
//! a short form, which leaves out `client` and `node` and takes the obvious arguments by position.
//! `osapi node …` is kept beside that for what would be ambiguous without, such as `node status`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command};

use super::token;
use super::words::{self, ABOUT, Elsewhere, LOCAL};
use super::{Client, Globals, Invocation, Server, ServerCommand, Task};
use super::{call, nats};
use crate::op::Access;
use crate::ops::{self, Row};
use crate::schema::{self, Type};

mod flags;

use flags::{boolean, cacert, field_flag, flag, is_required, target, url, value, waiting};
pub(super) use flags::{chosen, flagged, local, positional, reversed};

const FILE_VARIABLE: &str = "OSAPI_OSAPIFILE";

/// How a row is written as a command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    /// As published: flags only.
    Long,
    Short,
}

#[derive(Clone, Copy)]
enum Leaf {
    Row(&'static Row, Form),
    Local(&'static words::Local),
    Token(token::Word),
    Nats(nats::Word),
    Elsewhere(&'static Elsewhere),
    Verify,
    Survey(&'static words::Surveyed),
}

#[derive(Default)]
struct Node {
    leaf: Option<Leaf>,
    about: &'static str,
    children: Vec<(&'static str, Self)>,
}

impl Node {
    /// Puts `leaf` where `path` leads, unless something is there.
    fn put(&mut self, path: &[&'static str], about: &'static str, leaf: Leaf) {
        let Some((first, rest)) = path.split_first() else {
            self.leaf.get_or_insert(leaf);
            return;
        };
        let place = self.children.iter().position(|(word, _)| word == first);
        let place = place.unwrap_or_else(|| {
            let listed = ABOUT.iter().find(|(word, _)| word == first);
            let about = listed.map_or(about, |(_, about)| *about);
            self.children.push((*first, Self { about, ..Self::default() }));
            self.children.len() - 1
        });
        self.children[place].1.put(rest, about, leaf);
    }

    fn find(&self, path: &[&str]) -> Option<Leaf> {
        let Some((first, rest)) = path.split_first() else { return self.leaf };
        self.children.iter().find(|(word, _)| word == first)?.1.find(rest)
    }
}

/// The tree below `osapi`.
fn tree() -> Node {
    let mut root = Node::default();
    let is_client = |local: &&words::Local| local.words.starts_with("client ");
    for local in LOCAL.iter().filter(|local| !is_client(local)) {
        root.put(&split(local.words), local.about, Leaf::Local(local));
    }
    for (words, word) in token::WORDS {
        root.put(words, "", Leaf::Token(word));
    }
    for (words, word) in nats::WORDS {
        root.put(words, "", Leaf::Nats(word));
    }
    for chapter in ops::chapters() {
        for row in chapter.rows.iter().filter(|row| !row.command.is_empty()) {
            let words = split(row.command);
            root.put(&short(&words), chapter.about, Leaf::Row(row, Form::Short));
        }
    }
    root.put(&["audit", "verify"], "The record of who asked for what", Leaf::Verify);
    for survey in words::SURVEYS {
        root.put(&[survey.word], survey.about, Leaf::Survey(survey));
    }
    for elsewhere in words::ELSEWHERE {
        root.put(&split(elsewhere.words), elsewhere.words, Leaf::Elsewhere(elsewhere));
    }
    for chapter in ops::chapters() {
        for row in chapter.rows.iter().filter(|row| row.command.starts_with("node ")) {
            root.put(&split(row.command), chapter.about, Leaf::Row(row, Form::Short));
        }
    }
    for chapter in ops::chapters() {
        for row in chapter.rows.iter().filter(|row| !row.command.is_empty()) {
            let words: Vec<_> = ["client"].into_iter().chain(split(row.command)).collect();
            root.put(&words, chapter.about, Leaf::Row(row, Form::Long));
        }
    }
    for local in LOCAL.iter().filter(is_client) {
        root.put(&split(local.words), local.about, Leaf::Local(local));
    }
    root.put(&["client", "audit", "verify"], "", Leaf::Verify);
    for elsewhere in words::ELSEWHERE.iter().filter(|elsewhere| elsewhere.is_client) {
        let words: Vec<_> = ["client"].into_iter().chain(split(elsewhere.words)).collect();
        root.put(&words, elsewhere.words, Leaf::Elsewhere(elsewhere));
    }
    root
}

fn split(words: &'static str) -> Vec<&'static str> {
    words.split(' ').filter(|word| !word.is_empty()).collect()
}

/// Leaves out `node`, but not of `node status`: `osapi status` is the overview of this host.
fn short(words: &[&'static str]) -> Vec<&'static str> {
    match words {
        ["node", "status"] => words.to_vec(),
        ["node", rest @ ..] => rest.to_vec(),
        all => all.to_vec(),
    }
}

/// Everything that can be said to `osapi`.
pub fn command() -> Command {
    let root = Command::new("osapi")
        .about("Read and change a Linux host")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(flag("debug", "Log more").short('d').global(true).display_order(900))
        .arg(flag("json", "Print one JSON document").short('j').global(true).display_order(901))
        .arg(
            Arg::new("osapi-file")
                .long("osapi-file")
                .short('f')
                .value_name("FILE")
                .value_parser(clap::value_parser!(std::path::PathBuf))
                .env(FILE_VARIABLE)
                .hide_env_values(true)
                .global(true)
                .help("The configuration file")
                .display_order(902),
        );
    below(root.arg(url().global(true)).arg(cacert().global(true)), tree(), &mut Vec::new())
}

fn below(command: Command, node: Node, path: &mut Vec<&'static str>) -> Command {
    node.children.into_iter().fold(command, |command, (word, child)| {
        path.push(word);
        let below = subcommand(word, child, path);
        path.pop();
        command.subcommand(below)
    })
}

fn subcommand(word: &'static str, node: Node, path: &mut Vec<&'static str>) -> Command {
    let command = Command::new(word).about(node.about);
    match node.leaf {
        Some(Leaf::Row(row, form)) => operation(command, row, form, path),
        Some(Leaf::Local(local)) => {
            let flags = local.flags.iter().map(|flag| {
                let arg = Arg::new(flag.name).long(flag.name).value_name("VALUE");
                let arg = match flag.name {
                    words::AGENT_HOSTNAME => arg.help("What the agent shall call this host"),
                    words::INTO => arg.help("Where they are laid").required(true),
                    words::PORT => arg
                        .help("The port on the loopback addresses [none]")
                        .value_name("PORT")
                        .value_parser(clap::value_parser!(u16).range(1..)),
                    words::ROOT => arg.help("A directory in place of /, for tests").hide(true),
                    _ => arg.hide(true),
                };
                match flag.short {
                    Some(short) => arg.short(short),
                    None => arg,
                }
            });
            command.about(local.about).hide(local.is_hidden).args(flags)
        }
        Some(Leaf::Token(word)) => token::command(command, word),
        Some(Leaf::Nats(word)) => nats::command(command, word),
        Some(Leaf::Elsewhere(elsewhere)) => {
            command.about(elsewhere.instead).hide(true).disable_help_flag(true).arg(
                Arg::new("rest")
                    .num_args(0..)
                    .trailing_var_arg(true)
                    .allow_hyphen_values(true)
                    .hide(true),
            )
        }
        // Its word is its node's.
        Some(Leaf::Survey(_)) => command,
        Some(Leaf::Verify) => {
            command.about("Look for edits, gaps and cuts in the record, or in an export of it").arg(
                Arg::new("file")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(std::path::PathBuf))
                    .help("An export; without it, the running controller is asked"),
            )
        }
        None => {
            let command = match node.only() {
                Some(Leaf::Row(row, _)) => command.about(row.about),
                _ => command,
            };
            let is_hidden = node.children.iter().all(|(_, child)| child.is_elsewhere());
            let command =
                command.hide(is_hidden).subcommand_required(true).arg_required_else_help(true);
            let command = match path.as_slice() {
                ["client", "node"] => command.arg(target().global(true)),
                _ => command,
            };
            below(command, node, path)
        }
    }
}

impl Node {
    /// What is below, where that is a single command.
    fn only(&self) -> Option<Leaf> {
        match self.children.as_slice() {
            [(_, child)] => child.leaf.or_else(|| child.only()),
            _ => None,
        }
    }

    fn is_elsewhere(&self) -> bool {
        match self.leaf {
            Some(leaf) => matches!(leaf, Leaf::Elsewhere(_)),
            None => self.children.iter().all(|(_, child)| child.is_elsewhere()),
        }
    }
}

fn operation(command: Command, row: &'static Row, form: Form, path: &[&str]) -> Command {
    let mut command = command.about(row.about);
    let mut position = 1;
    let mut usage = format!("osapi {} [OPTIONS]", path.join(" "));
    let fields = schema::fields(row);
    let by_position = |name: &str| form == Form::Short && row.args.contains(&name);
    for name in row.args.iter().filter(|name| by_position(name)) {
        let Some(field) = fields.iter().find(|field| field.name == *name) else { continue };
        let is_last_list = field.kind == Type::List;
        let arg = Arg::new(positional(name))
            .index(position)
            .value_name(field.name.to_uppercase())
            .help(field.about.clone());
        let shown = field.name.to_uppercase();
        _ = match (is_last_list, is_required(row, field)) {
            (true, _) => write!(usage, " [{shown}]..."),
            (_, true) => write!(usage, " <{shown}>"),
            _ => write!(usage, " [{shown}]"),
        };
        let arg = if is_last_list {
            // Even what looks like a flag of this program.
            let about = format!("{} Flags of osapi go before all of it.", field.about);
            arg.num_args(0..).trailing_var_arg(true).allow_hyphen_values(true).help(about)
        } else if is_required(row, field) {
            arg.required_unless_present(flagged(name))
        } else {
            arg
        };
        command = command.arg(arg);
        position += 1;
    }
    for extra in words::extras(row.id) {
        let arg = if extra.is_boolean {
            flag(extra.name, extra.about).id(local(extra.name))
        } else {
            let shown = extra.name.to_uppercase();
            Arg::new(local(extra.name)).long(extra.name).value_name(shown).help(extra.about)
        };
        let arg = if extra.choices.is_empty() {
            arg
        } else {
            arg.value_parser(PossibleValuesParser::new(extra.choices.iter().copied()))
        };
        if form == Form::Short && extra.is_positional {
            let place = Arg::new(positional(extra.name))
                .index(position)
                .value_name(extra.name.to_uppercase())
                .help(extra.about)
                .required_unless_present(local(extra.name));
            position += 1;
            _ = write!(usage, " <{}>", extra.name.to_uppercase());
            command = command.arg(place).arg(arg.hide(true).conflicts_with(positional(extra.name)));
        } else {
            command = command.arg(arg.required(extra.is_required));
        }
    }
    if form == Form::Short && position > 1 {
        // An argument may be given as a flag instead, and would be shown as optional.
        command = command.override_usage(usage);
    }
    for field in fields {
        let name = field.name.clone();
        let is_positional = by_position(&name);
        let arg = field_flag(row, field);
        let arg = if is_positional {
            arg.required(false).hide(true).conflicts_with(positional(&name))
        } else {
            arg
        };
        command = command.arg(arg);
    }
    for (field, opposite) in row.opposites {
        let help = format!("The opposite of --{field}");
        let arg = Arg::new(reversed(field)).long(*opposite).help(help);
        command = command.arg(boolean(arg).conflicts_with(flagged(field)));
    }
    for option in schema::options(row) {
        let (id, long) = (chosen(&option.name), option.name.replace('_', "-"));
        let arg = Arg::new(id).value_name(long.to_uppercase()).long(long).help(option.about);
        command = command.arg(value(arg, option.kind));
    }
    if row.has_target() && form == Form::Short {
        command = command.arg(target());
    }
    if waits(row) { command.args(waiting()) } else { command }
}

/// Whether a call of it may outlast the patience of who called.
pub(super) fn waits(row: &Row) -> bool {
    matches!(row.access(), Some(Access::Write | Access::Execute))
}

pub(super) fn invocation(matches: &ArgMatches) -> Result<Invocation, clap::Error> {
    let (mut path, mut leaf) = (Vec::new(), matches);
    while let Some((word, below)) = leaf.subcommand() {
        path.push(word);
        leaf = below;
    }
    // Wherever they were written, the last command knows them.
    let globals = Globals {
        debug: leaf.get_one("debug").copied().unwrap_or_default(),
        json: leaf.get_one("json").copied().unwrap_or_default(),
        file: leaf.get_one("osapi-file").cloned(),
    };
    let found = tree().find(&path).ok_or_else(|| {
        command().error(clap::error::ErrorKind::InvalidSubcommand, "there is no such command")
    })?;
    let client = |task| {
        let url = leaf.try_get_one::<String>("url").ok().flatten().cloned();
        let cacert = leaf.try_get_one::<std::path::PathBuf>("cacert").ok().flatten().cloned();
        Invocation::Client(Client { globals: globals.clone(), url, cacert, task })
    };
    Ok(match found {
        Leaf::Local(local) => Invocation::Server(server(globals, local, leaf)),
        Leaf::Token(word) => Invocation::Token(globals.clone(), token::task(word, leaf)),
        Leaf::Nats(word) => Invocation::Nats(globals.clone(), nats::task(word, leaf)),
        Leaf::Elsewhere(elsewhere) => client(Task::Elsewhere(elsewhere)),
        Leaf::Survey(survey) => client(Task::Survey(survey.survey)),
        Leaf::Verify => client(Task::Verify(leaf.get_one("file").cloned())),
        Leaf::Row(row, _) => {
            let call = call::read(row, leaf).map_err(|error| {
                command().error(clap::error::ErrorKind::ValueValidation, error.to_string())
            })?;
            let pending = ops::find("agent.pending").filter(|_| call.asked("pending"));
            if let Some(row) = pending {
                client(Task::Call(call::Call { row, extras: BTreeMap::new(), ..call }))
            } else {
                client(Task::Call(call))
            }
        }
    })
}

fn server(globals: Globals, local: &words::Local, matches: &ArgMatches) -> Server {
    let given = |name: &str| matches.get_one::<String>(name).cloned();
    let has_port = local.flags.iter().any(|flag| flag.name == words::PORT);
    let idle = local.flags.iter().filter(|flag| !flag.has_effect);
    let path = |name: &str| {
        let flag = local.flags.iter().find(|flag| flag.name == name);
        flag.and_then(|_| given(name)).map(Into::into)
    };
    Server {
        globals,
        command: local.command,
        hostname: match local.command {
            ServerCommand::Agent => given(words::AGENT_HOSTNAME).filter(|name| !name.is_empty()),
            _ => None,
        },
        errand: match local.command {
            ServerCommand::Hand => given(words::ERRAND),
            _ => None,
        },
        root: path(words::ROOT),
        into: path(words::INTO),
        port: has_port.then(|| matches.get_one::<u16>(words::PORT).copied()).flatten(),
        without_effect: idle
            .filter(|flag| given(flag.name).is_some())
            .map(|flag| flag.name.to_owned())
            .collect(),
    }
}
