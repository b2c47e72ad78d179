//! What an agent may ask of whoever hands out work: four questions, whatever carries them.
//!
//! On a single host the agent puts them to the controller over a private socket. The privileged
//! process parses one protocol, from one local peer whom the kernel vouches for.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Result;
use crate::job::{Options, Report};
use crate::op::{Access, Agent, Op};

mod socket;
mod stream;

pub use socket::{MAX_FRAME, SocketLink, parse_frame, serve};
pub use stream::Stream;

/// Puts questions to whoever hands out work, one at a time.
///
/// It blocks: whoever waits for work has a thread to do it on, so that an answer reaches that
/// thread without a detour.
pub trait Link: Send {
    /// An error means that there was no answer. Whether the question arrived is not known.
    fn ask(&mut self, ask: &Ask) -> Result<Answer>;
}

/// Answers the questions of one agent connection.
#[async_trait]
pub trait Desk: Send {
    async fn answer(&mut self, ask: Ask) -> Result<Answer>;
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// What to do next.
    Next(Next),
    /// These are done. Answered once that is durable; only the first report of a task counts.
    Finish(Vec<Report>),
    /// What running jobs say meanwhile: how far they are, or, where they have no end, the next
    /// [pieces](crate::op::Piece). Not stored, and dropped when nobody listens.
    Tell(Vec<Tell>),
    /// The part of an object that begins at `offset`; empty at its end.
    Fetch { object: String, offset: u64 },
}

/// The question for work. It waits for some, and says that the host is alive.
///
/// There is no lease to extend. A task that was lost on the way is not held, and so is handed out
/// again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Next {
    /// What the agent has taken and not yet reported.
    pub holds: Vec<String>,
    /// What there is room for.
    pub classes: Vec<Class>,
    /// How many tasks of a class to answer with.
    #[serde(default = "Next::many")]
    pub most: usize,
    /// What only looked and was done since. Nothing is stored for it, so it needs no answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<Report>,
    /// In the first question of a connection, whenever it has changed, and at least each minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<Box<About>>,
    /// How long to wait for work, in milliseconds.
    pub wait_ms: u64,
}

impl Next {
    const fn many() -> usize {
        64
    }
}

impl Default for Next {
    fn default() -> Self {
        let (holds, classes, done) = (Vec::new(), Vec::new(), Vec::new());
        Self { holds, classes, most: Self::many(), done, about: None, wait_ms: 0 }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Tasks {
        tasks: Vec<Sealed>,
        /// Whether more of the same wait to be asked for.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        has_more: bool,
        /// Ends of audit chains to keep where only root writes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        heads: Vec<Head>,
        /// Jobs that were called off since this host took them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        called_off: Vec<String>,
    },
    Done,
    /// To a [`Ask::Tell`]: nobody listens to that any more.
    Unheard,
    /// In base64.
    Part(String),
}

/// What takes the same room on a host, and never waits for what takes other room.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Reads and previews.
    #[serde(rename = "read")]
    Look,
    #[serde(rename = "write")]
    Change,
    #[serde(rename = "execute")]
    Act,
    /// What confirms or reverts a change that waits for this, within its deadline.
    Verdict,
    /// What has no end, and goes on for as long as somebody listens.
    Follow,
}

/// How much of [`Class::Follow`] a host carries on at once.
pub const MOST_FOLLOWED: usize = 8;

impl Class {
    pub const ALL: [Self; 5] = [Self::Look, Self::Change, Self::Act, Self::Verdict, Self::Follow];

    /// As the metrics call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Look => "read",
            Self::Change => "write",
            Self::Act => "execute",
            Self::Verdict => "verdict",
            Self::Follow => "follow",
        }
    }

    /// That of a task.
    pub fn of(op: &Op<Agent>, options: &Options) -> Self {
        match op.run.access() {
            Access::Read if op.run.endless().is_some() => Self::Follow,
            Access::Read => Self::Look,
            Access::Write if options.dry_run => Self::Look,
            Access::Write => Self::Change,
            // The one kind of act that is not about a host.
            Access::Execute if !op.path.contains("{hostname}") => Self::Verdict,
            Access::Execute => Self::Act,
        }
    }
}

/// A task as bytes that only the agent opens, so that whoever passes them on cannot re-encode
/// what may be signed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Sealed {
    /// A [`Task`](crate::job::Task) in JSON.
    pub body: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Tell {
    pub job: String,
    pub data: Value,
}

/// Where a chain of audit notes ends.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Head {
    /// Names the chain.
    pub writer: String,
    pub number: u64,
    pub hash: String,
}

/// What an agent says of itself and of its host.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct About {
    pub machine_id: String,
    pub hostname: String,
    pub version: String,
    /// When this agent started, in milliseconds since 1970.
    pub started_at: u64,
    pub labels: std::collections::BTreeMap<String, String>,
    /// The facts that clients read, under their published names.
    pub facts: Value,
    pub conditions: Vec<Condition>,
    /// Jobs whose changes wait to be confirmed.
    pub waiting: Vec<String>,
    /// Reads that have taken longer than they may, in a line for each operation.
    pub hanging: Vec<String>,
    /// Whether the kernel holds back whoever plans from writing.
    pub landlock: bool,
    pub uid: u32,
    pub pid: i32,
    /// The key that secrets for this host are sealed to: X25519, in base64.
    pub key: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// RFC 3339.
    pub last_transition_time: String,
}
