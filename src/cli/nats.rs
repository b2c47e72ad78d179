//! The words about the broker that need no controller.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::words::ROOT;
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
    /// `controller join`, `agent join`: have this host share a broker with others.
    Join(Join),
}

/// What it takes to share a broker.
#[derive(Debug, Eq, PartialEq)]
pub struct Join {
    /// Whether this host's controller is to keep its state there, or its agent to be asked there.
    pub role: Role,
    pub url: String,
    pub namespace: String,
    /// The file with the authorities that the broker's certificate may come from.
    pub cacert: Option<PathBuf>,
    /// Whether the broker is said to sync before it acknowledges; for a controller only.
    pub synced: bool,
    /// Whose tasks the agent takes; for an agent only.
    pub controller_key: Option<String>,
    /// The host whose files are below this directory.
    pub root: PathBuf,
}

#[derive(Clone, Copy)]
pub(super) enum Word {
    Install,
    Permissions,
    Join(Role),
}

pub(super) const WORDS: [(&[&str], Word); 4] = [
    (&["nats", "install"], Word::Install),
    (&["nats", "permissions"], Word::Permissions),
    (&["controller", "join"], Word::Join(Role::Controller)),
    (&["agent", "join"], Word::Join(Role::Host)),
];
const CONTROLLER_KEY: &str = "controller-key";
const SYNCED: &str = "synced";

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
        Word::Join(role) => {
            let key = text(CONTROLLER_KEY, "Whose tasks are taken, as `controller join` says it");
            let about = if role == Role::Controller {
                "Have the controller of this host keep its state at a broker, for several hosts"
            } else {
                "Have this host managed over a broker, by controllers elsewhere"
            };
            let url = Arg::new("url")
                .value_name("URL")
                .required(true)
                .help("Where the broker is, as in tls://broker.example.org:4222");
            let cacert =
                text("cacert", "The authorities that its certificate may come from, in PEM")
                    .value_parser(clap::value_parser!(PathBuf))
                    .value_name("FILE");
            let root = Arg::new(ROOT)
                .long(ROOT)
                .hide(true)
                .default_value("/")
                .value_parser(clap::value_parser!(PathBuf));
            let namespace = text("namespace", "The fleet's, where several share the broker");
            command
                .about(about)
                .args([url, cacert, namespace.default_value("osapi"), root])
                .args((role == Role::Controller).then(|| {
                    let help = "Say that it has sync_interval: always, which it tells nobody";
                    Arg::new(SYNCED).long(SYNCED).action(ArgAction::SetTrue).help(help)
                }))
                .args((role == Role::Host).then(|| key.required(true).value_name("KEY")))
        }
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
        Word::Join(role) => Nats::Join(Join {
            role,
            url: one("url").unwrap_or_default(),
            namespace: one("namespace").unwrap_or_default(),
            cacert: matches.get_one("cacert").cloned(),
            synced: matches.try_get_one(SYNCED).ok().flatten().copied().unwrap_or_default(),
            controller_key: matches.try_get_one(CONTROLLER_KEY).ok().flatten().cloned(),
            root: matches.get_one(ROOT).cloned().unwrap_or_default(),
        }),
    }
}
