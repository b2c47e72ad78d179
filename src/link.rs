//! What an agent may ask of whoever hands out work: four questions, whatever carries them.
//!
//! On a single host the agent puts them to the controller over a private socket. The privileged
//! process parses one protocol, from one local peer whom the kernel vouches for.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::job::{Options, Report, Task};
use crate::op::{Access, Agent, Op};
use crate::signing::{PublicKey, Purpose, SigningKey};

pub(crate) mod bus;
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
    Finish(Vec<Told>),
    /// What running jobs say meanwhile: how far they are, or, where they have no end, the next
    /// [pieces](crate::op::Piece). Not stored, and dropped when nobody listens.
    Tell(Vec<Tell>),
    /// The part of an object that begins at `offset`, as it was when that job was made; empty at its
    /// end.
    Fetch { job: String, object: String, offset: u64 },
}

/// The question for work. It waits for some, and says that the host is alive.
///
/// There is no lease to extend. A task that was lost on the way is not held, and so is handed out
/// again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Next {
    /// What the agent has taken and not yet reported.
    pub holds: Vec<String>,
    /// What of that only waits for the agent to ask for it, in a relay that puts the question.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<String>,
    /// What there is room for.
    pub classes: Vec<Class>,
    /// How many tasks of a class to answer with.
    #[serde(default = "Next::many")]
    pub most: usize,
    /// What only looked and was done since. Nothing is stored for it, so it needs no answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<Told>,
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
        let (holds, waits, classes, done) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { holds, waits, classes, most: Self::many(), done, about: None, wait_ms: 0 }
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

/// How many reports, or words of running jobs, come together at most.
pub const MOST_TOLD: usize = 64;

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
    /// A [`Task`] in JSON.
    pub body: String,
    /// The controller's, in base64, over the host that it is for and `body`, which says which job
    /// it is and until when it may begin. None where nobody asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// How long it lay in a relay, in milliseconds: by so much it has to begin earlier. Nobody
    /// vouches for this, and it takes time away only.
    #[serde(default, skip_serializing_if = "is_none")]
    pub waited_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
const fn is_none(milliseconds: &u64) -> bool {
    *milliseconds == 0
}

impl Sealed {
    pub fn new(body: String, host: &str, key: Option<&SigningKey>) -> Self {
        let signature = key.map(|key| key.sign(Purpose::Task, host, &[&body]));
        Self { body, signature, waited_ms: 0 }
    }

    /// Whether the holder of one of `keys` has made it for `host`. Nothing of it is read for that.
    pub fn is_signed(&self, host: &str, keys: &[PublicKey]) -> bool {
        let Some(signature) = &self.signature else { return false };
        keys.iter().any(|key| key.verifies(Purpose::Task, host, &[&self.body], signature))
    }

    pub fn open(&self) -> serde_json::Result<Task> {
        serde_json::from_str(&self.body)
    }
}

/// What an agent tells of a task, as bytes that nobody re-encodes on the way.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Told {
    /// The job, for whoever passes it on. `body` says it as well.
    pub job: String,
    /// A [`Report`] in JSON.
    pub body: String,
    /// The agent's, in base64, over its host, `job` and `body`. None where nobody asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

impl Told {
    /// `key` is that of the agent of `host`.
    pub fn new(report: &Report, host: &str, key: Option<&SigningKey>) -> Result<Self> {
        let body = serde_json::to_string(report)
            .map_err(|error| Error::new(Kind::Internal, "cannot encode a report").because(error))?;
        let job = report.job.clone();
        let signature = key.map(|key| key.sign(Purpose::Outcome, host, &[&job, &body]));
        Ok(Self { job, body, signature })
    }

    /// Whether the holder of `key` has made it for `host`.
    pub fn is_signed(&self, host: &str, key: &PublicKey) -> bool {
        let parts = [self.job.as_str(), self.body.as_str()];
        let signature = self.signature.as_ref();
        signature.is_some_and(|it| key.verifies(Purpose::Outcome, host, &parts, it))
    }

    pub fn open(&self) -> Result<Report> {
        let unreadable = |what: &dyn std::fmt::Display| {
            let message = format!("cannot read what was told of job {:?}: {what}", self.job);
            Error::new(Kind::InvalidInput, message)
        };
        let report: Report =
            serde_json::from_str(&self.body).map_err(|error| unreadable(&error))?;
        if report.job == self.job {
            return Ok(report);
        }
        Err(unreadable(&format_args!("it is about {:?}", report.job)))
    }
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
    /// Why the audit log is not what it was, as far as the agent has kept where that ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
    /// Whether the kernel holds back whoever plans from writing.
    pub landlock: bool,
    pub uid: u32,
    pub pid: i32,
    /// The key that secrets for this host are sealed to: X25519, in base64.
    pub key: String,
    /// The key that this agent signs with: Ed25519, in base64.
    pub signing_key: String,
    /// Its signature, in base64, over what it is known by; empty where nobody asks for it.
    pub proof: String,
    /// How many tasks it has refused since it started because they were not signed as they have
    /// to be.
    pub refused: u64,
}

impl About {
    /// Signs what it is known by.
    pub fn prove(&mut self, key: &SigningKey) {
        self.proof = key.sign(Purpose::Identity, &self.machine_id, &self.identity());
    }

    /// Whether whoever holds the key that it names says so.
    pub fn is_proven(&self) -> bool {
        let key = PublicKey::parse(&self.signing_key);
        let (host, parts) = (&self.machine_id, self.identity());
        key.is_some_and(|key| key.verifies(Purpose::Identity, host, &parts, &self.proof))
    }

    /// What work and secrets are sent by.
    fn identity(&self) -> Vec<&str> {
        let labels = self.labels.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]);
        [self.hostname.as_str(), self.key.as_str()].into_iter().chain(labels).collect()
    }
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
