//! The words of the command line that are no operation of the table.

use crate::cli::{ServerCommand, Survey};

/// A command that a process of this machine carries out, without the API.
pub(super) struct Local {
    pub(super) words: &'static str,
    pub(super) about: &'static str,
    pub(super) command: ServerCommand,
    pub(super) is_hidden: bool,
    /// Published flags, with what they are for; those with no use here are accepted and named.
    pub(super) flags: &'static [Flag],
}

pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) short: Option<char>,
    pub(super) has_effect: bool,
}

const fn idle(name: &'static str) -> Flag {
    Flag { name, short: None, has_effect: false }
}

const fn local(words: &'static str, about: &'static str, command: ServerCommand) -> Local {
    Local { words, about, command, is_hidden: false, flags: &[] }
}

pub(super) const AGENT_HOSTNAME: &str = "agent-hostname";

pub(super) const PORT: &str = "port";

/// The host whose files are below this directory instead of `/`. For tests, so that they never
/// touch the machine they run on.
pub(super) const ROOT: &str = "root";
/// What a hand is started for: a job, a dot and a number.
pub(super) const ERRAND: &str = "errand";
/// The directory that pages are laid into.
pub(super) const INTO: &str = "into";
const AT_ROOT: Flag = Flag { name: ROOT, short: None, has_effect: true };

pub(super) static LOCAL: &[Local] = &[
    Local {
        flags: &[AT_ROOT],
        ..local("start", "Run the controller and the agent of this host", ServerCommand::Start)
    },
    Local {
        flags: &[Flag { name: PORT, short: Some('p'), has_effect: true }],
        ..local("controller start", "Run the controller alone", ServerCommand::Controller)
    },
    Local {
        flags: &[
            Flag { name: AGENT_HOSTNAME, short: None, has_effect: true },
            AT_ROOT,
            idle("agent-host"),
            idle("agent-port"),
            idle("agent-client-name"),
            idle("agent-queue-group"),
            idle("agent-max-jobs"),
            idle("consumer-max-deliver"),
            idle("consumer-ack-wait"),
            idle("consumer-max-ack-pending"),
            idle("consumer-replay-policy"),
            idle("consumer-back-off"),
        ],
        ..local("agent start", "Run the agent alone", ServerCommand::Agent)
    },
    local("relay", "Answer the agent of this host from a broker", ServerCommand::Relay),
    Local {
        is_hidden: true,
        flags: &[AT_ROOT],
        ..local("settle", "Finish or take back what a crash left", ServerCommand::Settle)
    },
    Local {
        is_hidden: true,
        flags: &[AT_ROOT],
        ..local(
            "settle-at-boot",
            "Take back what nobody confirmed before the reboot",
            ServerCommand::SettleAtBoot,
        )
    },
    Local {
        is_hidden: true,
        flags: &[AT_ROOT],
        ..local(
            "settle-unconfirmed",
            "Take back what waits to be confirmed",
            ServerCommand::SettleUnconfirmed,
        )
    },
    Local {
        is_hidden: true,
        flags: &[AT_ROOT, Flag { name: ERRAND, short: None, has_effect: true }],
        ..local("hand", "Do what an agent wrote down for its unit", ServerCommand::Hand)
    },
    Local {
        is_hidden: true,
        ..local(
            "deployed",
            "Name what OSAPI has set on this host and not given back",
            ServerCommand::Deployed,
        )
    },
    Local {
        is_hidden: true,
        flags: &[Flag { name: INTO, short: None, has_effect: true }],
        ..local(
            "pages",
            "Lay manual pages, completions and the reference into a directory",
            ServerCommand::Pages,
        )
    },
    local("config validate", "Check the configuration file", ServerCommand::ConfigValidate),
    local("version", "Show the version of this program, as JSON", ServerCommand::Version),
    local("agent key fingerprint", AGENT_KEY, ServerCommand::AgentFingerprint),
    local("client agent key fingerprint", AGENT_KEY, ServerCommand::AgentFingerprint),
    local("controller key fingerprint", CONTROLLER_KEY, ServerCommand::ControllerFingerprint),
    local(
        "client controller key fingerprint",
        CONTROLLER_KEY,
        ServerCommand::ControllerFingerprint,
    ),
];

const AGENT_KEY: &str = "Show what the key of this host's agent is known by";
const CONTROLLER_KEY: &str = "Show what the key of this host's controller is known by";

/// A command that asks for more than one operation tells.
pub(super) struct Surveyed {
    pub(super) word: &'static str,
    pub(super) about: &'static str,
    pub(super) survey: Survey,
}

pub(super) static SURVEYS: &[Surveyed] = &[
    Surveyed {
        word: "status",
        about: "Show what this host is, whether it is well, what runs and what changed lately",
        survey: Survey::Status,
    },
    Surveyed {
        word: "doctor",
        about: "Look for what is wrong with this host, and say what to do [0: nothing, 1: \
                warnings, 2: failures]",
        survey: Survey::Doctor,
    },
];

/// A published command that has no meaning here.
#[derive(Debug)]
pub struct Elsewhere {
    /// Its words; those of a client come without `client`.
    pub words: &'static str,
    pub is_client: bool,
    /// What takes its place.
    pub instead: &'static str,
}

const NO_BROKER: &str = "no broker is built in: the controller keeps its own store, and `osapi \
                         start` is all there is to run; where controllers share a NATS server, \
                         that is started by itself";
const COMPONENTS: &str = "`osapi health status` shows every component at once";

const fn server(words: &'static str, instead: &'static str) -> Elsewhere {
    Elsewhere { words, is_client: false, instead }
}

const fn client(words: &'static str, instead: &'static str) -> Elsewhere {
    Elsewhere { words, is_client: true, instead }
}

pub(super) static ELSEWHERE: &[Elsewhere] = &[
    server("nats server start", NO_BROKER),
    client("agent status", COMPONENTS),
    client("controller status", COMPONENTS),
    client("nats status", COMPONENTS),
    client(
        "file stale",
        "`osapi file status PATH` shows what a host has, `osapi file get NAME` what is stored",
    ),
];

/// One line for words that have commands below them.
pub(super) const ABOUT: &[(&str, &str)] = &[
    ("agent", "The agents, and this host's own"),
    ("client", "Everything, in the words of the published command line"),
    ("command", "Commands on a host"),
    ("config", "The configuration file"),
    ("controller", "The controller"),
    ("file", "Stored files, and files on a host"),
    ("key", "Keys"),
    ("nats", "A broker that controllers share"),
    ("node", "A host"),
    ("server", "What became of the broker"),
    ("token", "Tokens, by which callers are known over a network"),
];

/// A flag of the command line itself, which is no parameter of the operation.
pub(super) struct Extra {
    /// The operation it belongs to.
    pub(super) row: &'static str,
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) is_boolean: bool,
    pub(super) is_required: bool,
    pub(super) choices: &'static [&'static str],
    /// Whether the short form takes it by position, after those of the row.
    pub(super) is_positional: bool,
}

const EXTRA: Extra = Extra {
    row: "",
    name: "",
    about: "",
    is_boolean: false,
    is_required: false,
    choices: &[],
    is_positional: false,
};

const fn output_of(row: &'static str, name: &'static str, about: &'static str) -> Extra {
    Extra { row, name, about, is_boolean: true, ..EXTRA }
}

pub(super) static EXTRAS: &[Extra] = &[
    output_of("agent.list", "pending", "List agents that wait to be accepted"),
    output_of("command.exec.execute", "stdout", "Print what it printed, and end as it ended"),
    output_of("command.exec.execute", "stderr", "Print its errors, and end as it ended"),
    output_of("command.shell.execute", "stdout", "Print what it printed, and end as it ended"),
    output_of("command.shell.execute", "stderr", "Print its errors, and end as it ended"),
    Extra {
        row: "audit.export",
        name: "output",
        about: "The file to write",
        is_required: true,
        is_positional: true,
        ..EXTRA
    },
    Extra {
        row: "audit.export",
        name: "type",
        about: "Where to write to",
        choices: &["file"],
        ..EXTRA
    },
    Extra {
        row: "file.upload",
        name: "file",
        about: "The file to store",
        is_required: true,
        is_positional: true,
        ..EXTRA
    },
];

pub(super) fn extras(row: &str) -> impl Iterator<Item = &'static Extra> {
    EXTRAS.iter().filter(move |extra| extra.row == row)
}

/// What the command line says where nothing was given and the API wants something: (operation,
/// field, value).
const DEFAULTS: &[(&str, &str, &str)] =
    &[("file.deploy.execute", "content_type", "raw"), ("file.upload", "content_type", "raw")];

pub(super) fn default_of(row: &str, field: &str) -> Option<&'static str> {
    let found = DEFAULTS.iter().find(|(r, f, _)| *r == row && *f == field);
    found.map(|(_, _, value)| *value)
}
