//! The four questions over a broker, for hosts that their controllers cannot be reached from
//! otherwise.
//!
//! The agent speaks to a relay on its own host, over the same socket as to a controller; nothing
//! that runs as root reads what a broker sends. The relay puts the agent's questions as requests on
//! core NATS, which any controller answers. No question waits there: a host that has nothing to do
//! says that it is alive with a [`Beat`], which every controller hears, and is told of work with a
//! [`Wake`]. A host owns nothing on the server and has no rights on JetStream, so that the number of
//! hosts costs connections and nothing else.
//!
//! | Subject | From | To |
//! |---|---|---|
//! | `<namespace>.ask.<host>` | the relay of that host, waiting for the answer | one controller |
//! | `<namespace>.beat.<host>` | the relay of that host | every controller |
//! | `<namespace>.wake.<host>` | any controller | the relay of that host |
//! | `<namespace>.desk.<mark>` | any controller, waiting for the answer | the controller that keeps a job in memory |
//! | `<namespace>.told` | any controller | every controller |
//!
//! Bodies are JSON. A request is an [`Ask`], and what answers it is what a frame on the socket holds,
//! a `Result<Answer, ErrorBody>`. A host says its first beat of a connection once it hears its wakes.
//!
//! A host goes by its machine id. A wake can be lost with its connection only, and whoever has a new
//! one asks, which restores the order of what there is to do.

use serde::{Deserialize, Serialize};

use super::{About, Ask, Class, Sealed, Tell};

/// The controllers' queue group on `ask`.
pub(crate) const CONTROLLERS: &str = "controllers";

/// A host is alive. Said at least each ten seconds, without an answer.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Beat {
    /// What the agent has taken and not yet reported, and what the relay keeps for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) holds: Vec<String>,
    /// What of that the relay keeps until the agent asks for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) waits: Vec<String>,
    /// In the first beat of a connection, whenever it has changed, when asked to, and at least each
    /// minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) about: Option<Box<About>>,
    /// The agent has hung up.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) has_left: bool,
}

/// There is something to do. What it leaves out is found missing at the next beat.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Wake {
    /// In order of submission.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tasks: Vec<Handed>,
    /// Of which classes there is something to ask for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ask: Vec<Class>,
    /// Jobs that were called off since this host took them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) called_off: Vec<String>,
    /// A controller does not know who this is: say it with a beat.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) who: bool,
}

/// A task, and what a relay has to know of it without opening it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Handed {
    pub(crate) job: String,
    pub(crate) class: Class,
    pub(crate) task: Sealed,
}

/// A question of `host` about a job that another controller keeps in memory.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Passed {
    pub(crate) host: String,
    pub(crate) ask: Ask,
}

/// What running jobs of `host` say meanwhile, for whichever controller has somebody who listens.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Meanwhile {
    pub(crate) host: String,
    pub(crate) told: Vec<Tell>,
}

/// The subjects of a namespace.
#[derive(Clone, Debug)]
pub(crate) struct Subjects(String);

impl Subjects {
    pub(crate) fn of(namespace: &str) -> Self {
        Self(namespace.to_owned())
    }

    /// `host` may be `*`.
    pub(crate) fn ask(&self, host: &str) -> String {
        format!("{}.ask.{host}", self.0)
    }

    /// `host` may be `*`.
    pub(crate) fn beat(&self, host: &str) -> String {
        format!("{}.beat.{host}", self.0)
    }

    pub(crate) fn wake(&self, host: &str) -> String {
        format!("{}.wake.{host}", self.0)
    }

    pub(crate) fn desk(&self, mark: u16) -> String {
        format!("{}.desk.{mark}", self.0)
    }

    pub(crate) fn told(&self) -> String {
        format!("{}.told", self.0)
    }

    /// What the subjects begin with at which `host` is answered.
    pub(crate) fn inbox(&self, host: &str) -> String {
        format!("_INBOX_{}.{host}.", self.0)
    }
}

/// The host that a subject names last.
pub(crate) fn host_of(subject: &str) -> &str {
    subject.rsplit('.').next().unwrap_or_default()
}
