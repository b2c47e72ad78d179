//! What is asked of hosts, and what became of it. Pure data; no I/O.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorBody, Kind, Result};

/// One request by one caller, to be carried out on one or more hosts.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Job {
    /// A `UUIDv7`: ids sort by the time of submission.
    pub id: String,
    /// The operation, such as `node.sysctl.update`.
    pub op: String,
    pub caller: String,
    /// What the caller wrote where a host goes: `_any`, `_all`, a name, an id, a label.
    pub target: String,
    /// The machine id of every host that is expected to answer, fixed when the job is made.
    pub hosts: Vec<String>,
    /// When it was submitted, in milliseconds since 1970.
    pub created: u64,
    pub deadline: Deadline,
    /// When and by whom it was called off. Hosts that had begun may still answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<Mark>,
    /// The jobs that repeat this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retried: Vec<Mark>,
    /// When and by whom a change was confirmed that would have been taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Mark>,
    /// The hosts that it has gone away from, oldest first, where any host could do it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<Moved>,
    /// Whether it stays with its host, although any host could do it: a controller that has not
    /// made it may have handed it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_settled: bool,
    /// Hosts that were handed it and had not said what became of it when nobody waited for that any
    /// more, by machine id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unheard: Vec<String>,
}

/// The last moment to begin.
///
/// The wall clock may be set while a job waits; the clock of the boot may not. It decides for as
/// long as the boot lasts in which the job was submitted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Deadline {
    /// Milliseconds since 1970.
    pub at: u64,
    /// The boot that `uptime` counts in.
    pub boot: String,
    /// Milliseconds since that boot.
    pub uptime: u64,
}

/// Who did something to a job, and when.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Mark {
    /// Milliseconds since 1970.
    pub at: u64,
    pub by: String,
    /// The job that came of it, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Hosts that had taken the job when it was called off, by machine id: they are asked to let go
    /// of it, and answer what became of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<String>,
}

/// A host that a job has gone away from, to the one of the next move or, after the last one, to
/// that of the job: it was away, and had not been handed it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Moved {
    /// Milliseconds since 1970.
    pub at: u64,
    /// By machine id.
    pub from: String,
}

/// A job as it is stored under `job.<id>`, with what only the hosts need.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Record {
    #[serde(flatten)]
    pub job: Job,
    pub params: Value,
    #[serde(default, skip_serializing_if = "Options::is_default")]
    pub options: Options,
    /// What the parameters name of the object store, by name, as it was at submission.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<String, Content>,
    /// Its secrets, in a box for each host that has still to answer, by machine id. None where
    /// it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<BTreeMap<String, String>>,
    /// The record that keeps it from being made twice, where its caller has seen to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub once: Option<String>,
}

/// An object that a job needs. Its digest is pinned, so that every host gets the same.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Content {
    /// SHA-256 in hexadecimal.
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// In base64, where it is small enough to travel with the task (16 KiB); larger ones are
    /// fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

/// One job's work for one host, as the agent opens it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Task {
    pub job: String,
    /// The machine id of the host it is for.
    pub host: String,
    pub op: String,
    pub params: Value,
    #[serde(default, skip_serializing_if = "Options::is_default")]
    pub options: Options,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<String, Content>,
    /// The secrets among its parameters, which only this host's agent can read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// Whether somebody has called it off since a host took it: then it does not begin any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub called_off: bool,
    /// How long after it was handed out it may still begin, in milliseconds.
    pub left_ms: u64,
    /// The same as a moment, in milliseconds since 1970, where it is signed: what is signed may
    /// have been handed out long ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// The last moment to begin on the boot's clock of the host that has it, in milliseconds, and
    /// on no wire: what is waited for before it begins may take long.
    #[serde(skip)]
    pub begin_by: Option<u64>,
}

impl Task {
    /// For how long it may still begin, in milliseconds, at `uptime` on the clock of the boot.
    pub fn left(&self, uptime: u64) -> u64 {
        self.begin_by.map_or(self.left_ms, |moment| moment.saturating_sub(uptime))
    }
}

impl Record {
    /// Whether hosts have answered that took their secrets along. Then it has been written
    /// since it was made.
    pub fn has_lost_secrets(&self) -> bool {
        self.sealed.as_ref().is_some_and(|sealed| sealed.len() < self.job.hosts.len())
    }

    /// This job's work for `host`, which may begin within `left_ms` unless it was called off, as
    /// the agent opens it; `until` is that moment, where it is going to be signed.
    pub fn seal(
        &self,
        host: &str,
        left_ms: u64,
        until: Option<u64>,
        called_off: bool,
    ) -> Result<String> {
        let Self { job, params, options, objects, .. } = self;
        let sealed = self.sealed.as_ref().and_then(|sealed| sealed.get(host)).map(String::as_str);
        let (job, op) = (job.id.as_str(), job.op.as_str());
        let task =
            Sealing { job, host, op, params, options, objects, sealed, called_off, left_ms, until };
        serde_json::to_string(&task)
            .map_err(|error| Error::new(Kind::Internal, "cannot encode a task").because(error))
    }
}

/// A [`Task`] made of what a record holds, without copying it.
#[derive(Serialize)]
struct Sealing<'a> {
    job: &'a str,
    host: &'a str,
    op: &'a str,
    params: &'a Value,
    #[serde(skip_serializing_if = "Options::is_default")]
    options: &'a Options,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    objects: &'a BTreeMap<String, Content>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    called_off: bool,
    left_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

/// How a change is to be carried out, whatever it is about. What is done once takes `force` alone,
/// and `force` is taken where a row is guarded.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Says what would change and changes nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Goes ahead only if it would still do what the dry run showed that yielded this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
    pub plan: Option<String>,
    /// Takes the change back unless it is confirmed within this many seconds, 1 to 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub confirm: Option<u64>,
    /// Goes ahead also where that is refused to protect the host from what it would lose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

impl Options {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "status")]
pub enum Outcome {
    Done { result: Value },
    Failed { error: ErrorBody },
}

/// What a running job does at the moment. Nobody stores it.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Progress {
    /// In a few words; at most 160 characters.
    pub message: String,
    /// How much of this phase is done, from 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
}

impl Progress {
    /// How many characters of a message are kept.
    const MAX_MESSAGE: usize = 160;

    pub fn new(message: &str, percent: Option<u8>) -> Self {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let message: String = message.chars().map(plain).take(Self::MAX_MESSAGE).collect();
        Self {
            message: message.trim().to_owned(),
            percent: percent.map(|percent| percent.min(100)),
        }
    }
}

/// What an agent tells of one task. Stored under `job.<id>.<machine id>`, once; what says that a
/// change was done gives way to what says that it was taken back since.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(try_from = "Written")]
pub struct Report {
    pub job: String,
    /// When work on it began and ended, in milliseconds since 1970 by the host's clock.
    pub begun: u64,
    pub ended: u64,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The change stood, and was taken back since: what was reported before no longer holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub amends: bool,
    /// When the report that it took the place of says that work ended, in milliseconds since
    /// 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stood: Option<u64>,
}

/// A [`Report`] as it is read. A flattened outcome would be copied whole before it is understood.
#[derive(Deserialize)]
struct Written {
    job: String,
    begun: u64,
    ended: u64,
    status: Ended,
    /// Null is a result as well.
    #[serde(default, deserialize_with = "there")]
    result: Option<Value>,
    error: Option<ErrorBody>,
    #[serde(default)]
    amends: bool,
    stood: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    Done,
    Failed,
}

fn there<'de, D: Deserializer<'de>>(value: D) -> std::result::Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

impl TryFrom<Written> for Report {
    type Error = &'static str;

    fn try_from(written: Written) -> std::result::Result<Self, Self::Error> {
        let Written { job, begun, ended, status, result, error, amends, stood } = written;
        let outcome = match status {
            Ended::Done => Outcome::Done { result: result.ok_or("missing field `result`")? },
            Ended::Failed => Outcome::Failed { error: error.ok_or("missing field `error`")? },
        };
        Ok(Self { job, begun, ended, outcome, amends, stood })
    }
}

impl Report {
    pub const fn new(job: String, begun: u64, ended: u64, outcome: Outcome) -> Self {
        Self { job, begun, ended, outcome, amends: false, stood: None }
    }
}

impl Outcome {
    /// The kind of the error, where there was one.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Done { .. } => None,
            Self::Failed { error } => Some(error.kind),
        }
    }
}

impl From<Result<Value>> for Outcome {
    fn from(result: Result<Value>) -> Self {
        match result {
            Ok(result) => Self::Done { result },
            Err(error) => Self::Failed { error: error.body() },
        }
    }
}

impl From<Outcome> for Result<Value> {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done { result } => Ok(result),
            Outcome::Failed { error } => Err(error.into()),
        }
    }
}

pub fn encode(value: &impl Serialize) -> Result<Bytes> {
    // Most is smaller than that, and need not be moved while it grows.
    let mut bytes = Vec::with_capacity(1024);
    serde_json::to_writer(&mut bytes, value)
        .map(|()| bytes.into())
        .map_err(|error| Error::new(Kind::Internal, "cannot encode").because(error))
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::new(Kind::Internal, "cannot decode").because(error))
}
