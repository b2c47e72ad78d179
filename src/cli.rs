//! The command line: the published one below `client`, and a short form of it beside.
//!
//! Its commands are read off the table of operations and talk to the API like any other client;
//! there is no operation logic here, no database and no right that the caller does not have.
//! stdout carries results; everything else goes to stderr.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ArgMatches;

use crate::config;

mod audit;
mod call;
mod client;
mod command;
mod connect;
mod doctor;
mod export;
mod files;
mod follow;
mod job;
mod nats;
mod output;
mod overview;
mod pages;
mod run;
mod secret;
mod survey;
mod table;
mod terminal;
mod text;
mod token;
mod wait;
mod words;

pub use call::{Call, Patience};
pub use command::command;
pub use nats::{Join, Nats};
pub use output::{document, page};
pub use pages::pages;
pub use run::run;
pub use secret::{Secret, Source};
pub use table::Page;
pub(crate) use text::flat;
pub use token::{Given, Token};

/// What a person asked for.
#[derive(Debug)]
pub enum Invocation {
    /// Something of this machine itself, which `main` has a function for.
    Server(Server),
    /// To make or judge a token, which takes the signing key.
    Token(Globals, Token),
    /// To prepare a broker, or this host for one, which no controller can.
    Nats(Globals, Nats),
    /// Something to ask the API for; [`run`] does it.
    Client(Client),
}

/// The flags that every command has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Globals {
    pub debug: bool,
    /// stdout gets exactly one JSON document.
    pub json: bool,
    /// The configuration file, where one was named.
    pub file: Option<PathBuf>,
}

#[derive(Debug)]
pub struct Server {
    pub globals: Globals,
    pub command: ServerCommand,
    /// What the agent shall call this host (`--agent-hostname`).
    pub hostname: Option<String>,
    /// Where the API is served on the loopback addresses, too (`--port`).
    pub port: Option<u16>,
    /// What the agent shall take for `/` (`--root`).
    pub root: Option<PathBuf>,
    /// Which part of which job a hand is there for (`--errand`).
    pub errand: Option<String>,
    /// Where pages are laid (`--into`).
    pub into: Option<PathBuf>,
    /// Published flags, without their dashes, that were given and have nothing to act on here; to
    /// be listed once.
    pub without_effect: Vec<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServerCommand {
    /// `start`: the controller, with the agent as its child.
    Start,
    /// `controller start`
    Controller,
    /// `agent start`
    Agent,
    /// `relay`: what the agent of a host asks that is managed over a broker.
    Relay,
    /// `settle`: finish or take back what a crash left, then end.
    Settle,
    /// `settle-at-boot`: the same before the system is up, for what waits to be confirmed.
    SettleAtBoot,
    /// `settle-unconfirmed`: take back at once what waits to be confirmed, then end.
    SettleUnconfirmed,
    /// `hand`: do for the agent what its own sandbox keeps it from, then end.
    Hand,
    /// `deployed`: name what OSAPI has set on this host and not given back.
    Deployed,
    /// `pages`: lay manual pages, completions and the reference into a directory.
    Pages,
    /// `config validate`
    ConfigValidate,
    /// `version`
    Version,
    /// `agent key fingerprint`
    AgentFingerprint,
    /// `controller key fingerprint`
    ControllerFingerprint,
}

#[derive(Debug)]
pub struct Client {
    pub globals: Globals,
    /// `--url` or its environment variable.
    pub url: Option<String>,
    /// `--cacert`
    pub cacert: Option<PathBuf>,
    pub task: Task,
}

#[derive(Debug)]
pub enum Task {
    /// An operation of the table.
    Call(Call),
    /// `audit verify`: the running controller's chain, or an exported file.
    Verify(Option<PathBuf>),
    /// What several answers come to.
    Survey(Survey),
    /// A published verb without a meaning here, and what takes its place.
    Elsewhere(&'static words::Elsewhere),
}

/// What the command line makes of several answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Survey {
    /// `status`: what this host is, whether it is well, what runs, what changed lately.
    Status,
    /// `doctor`: what is wrong with this host, and what to do about it.
    Doctor,
}

/// Where to ask when the call itself does not say, and how.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// `controller.client.url` of the configuration.
    pub url: Option<String>,
    /// Sockets of a controller, in the order they are tried.
    pub sockets: Vec<PathBuf>,
    /// The file with the authorities that a server's certificate may come from; else the system's.
    pub cacert: Option<PathBuf>,
    /// What is sent over a network.
    pub token: Option<config::Secret>,
    /// Directories where an agent of this host may keep its state, among it heads of the audit
    /// log.
    pub states: Vec<PathBuf>,
}

/// Tells a person something, beside the result.
fn say(line: &str) {
    use std::io::Write as _;
    // Nobody is left to tell if this fails.
    drop(writeln!(std::io::stderr().lock(), "osapi: {line}"));
}

/// Reads the program's arguments. Help, and what is wrong with them, is printed here; the error
/// is the exit status.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, ExitCode> {
    command().try_get_matches_from(arguments).and_then(|matches| invocation(&matches)).map_err(
        |error| {
            // Nobody is left to tell if this fails.
            drop(error.print());
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        },
    )
}

/// What arguments that [`command`] has matched ask for.
pub fn invocation(matches: &ArgMatches) -> Result<Invocation, clap::Error> {
    command::invocation(matches)
}
