//! The words about the broker that need no controller.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::broker::permissions::Role;

/// What to do about the broker.
#[derive(Debug, Eq, PartialEq)]
pub enum Nats {
    /// `nats install`: make the streams.
    Install,
    /// `nats permissions`; what is left out, the configuration says.
    Permissions {
        role: Role,
        namespace: Option<String>,
        name: Option<String>,
        /// Machine ids.
        hosts: Vec<String>,
        nkey: Option<String>,
    },
}

#[derive(Clone, Copy)]
pub(super) enum Word {
    Install,
    Permissions,
}

pub(super) const WORDS: [(&[&str], Word); 2] =
    [(&["nats", "install"], Word::Install), (&["nats", "permissions"], Word::Permissions)];

/// The flags of `word`.
pub(super) fn command(command: Command, word: Word) -> Command {
    let text = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(name.to_uppercase()).help(help)
    };
    match word {
        Word::Install => {
            command.about("Make the broker's streams, with no more than an installer's rights")
        }
        Word::Permissions => command
            .about("Print what a role needs at the broker, for its configuration")
            .arg(
                text("role", "Whose permissions")
                    .required(true)
                    .value_parser(PossibleValuesParser::new(Role::ALL.map(Role::as_str))),
            )
            .arg(text("namespace", "The fleet's [controller.nats.namespace]"))
            .arg(text("name", "The controller's [controller.nats.name]"))
            .arg(
                text("host", "The machine id of a host; may be given several times")
                    .value_delimiter(',')
                    .action(ArgAction::Append)
                    .required_if_eq("role", Role::Host.as_str()),
            )
            .arg(text("nkey", "The public key of whom it is for, in place of a password")),
    }
}

pub(super) fn task(word: Word, matches: &ArgMatches) -> Nats {
    let one = |name: &str| matches.get_one::<String>(name).cloned();
    match word {
        Word::Install => Nats::Install,
        Word::Permissions => {
            let role = one("role").unwrap_or_default();
            let role = Role::ALL.into_iter().find(|known| known.as_str() == role);
            Nats::Permissions {
                role: role.unwrap_or(Role::Host),
                namespace: one("namespace"),
                name: one("name"),
                hosts: matches.get_many("host").into_iter().flatten().cloned().collect(),
                nkey: one("nkey"),
            }
        }
    }
}
