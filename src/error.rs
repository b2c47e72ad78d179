//! The one error type that crosses module, process and network boundaries.
//!
//! A failure is a [`Kind`] for machines, a message for people, and an optional source for the
//! journal. Only the first two ever leave the process that produced them.

use std::error::Error as StdError;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub struct Error {
    body: Box<ErrorBody>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// `message` is lower case, has no full stop, names the thing and says what to do about it.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        ErrorBody { kind, message: message.into(), problems: Vec::new(), not_restored: Vec::new() }
            .into()
    }

    /// Attaches the cause, which is logged but never sent to a client.
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says which parts of the input are wrong, all of them at once.
    pub fn with_problems(mut self, problems: Vec<Problem>) -> Self {
        self.body.problems = problems;
        self
    }

    /// Names what a change that was taken back has left as it was not before.
    pub fn with_not_restored(mut self, cells: Vec<String>) -> Self {
        self.body.not_restored = cells;
        self
    }

    pub fn kind(&self) -> Kind {
        self.body.kind
    }

    /// The part of this error that a client may see.
    pub fn body(&self) -> ErrorBody {
        (*self.body).clone()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.body.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<ErrorBody> for Error {
    fn from(body: ErrorBody) -> Self {
        Self { body: Box::new(body), source: None }
    }
}

/// An error as it is stored in outcomes; the API dresses it as a problem document.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ErrorBody {
    /// Stable identifier to branch on.
    pub kind: Kind,
    /// Explanation for a person. Not stable.
    pub message: String,
    /// What is wrong with which part of the input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// Cells that a change which was taken back has left as they were not before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_restored: Vec<String>,
}

/// One thing that is wrong with the input.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Problem {
    /// JSON pointer (RFC 6901) into the parameters, such as `/mode`.
    pub pointer: String,
    /// What is wrong there.
    pub message: String,
}

/// What went wrong, in terms a client can act on.
///
/// Add a kind only when some caller must behave differently because of it; otherwise reuse one
/// and say more in the message. Kinds are never renamed or removed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request is malformed or a parameter is out of range. Fix the request.
    InvalidInput,
    /// The operation cannot tell beforehand what it would do. Ask without `dry_run`.
    NoPreview,
    /// No credentials were presented, or they are not valid.
    Unauthenticated,
    /// The caller is known but lacks the permission named.
    Denied,
    /// The agent lacks a right on the host. Run it with the right named.
    AgentUnprivileged,
    /// The addressed thing does not exist.
    NotFound,
    /// The method is not offered on this path.
    MethodNotAllowed,
    /// The thing exists already, or changed since it was read.
    Conflict,
    /// It would take from under the host what it runs on. Where the message says so, `force` has it
    /// all the same.
    Protected,
    /// A later job has built on what this one did; the message names it.
    Superseded,
    /// The change was made, yet the host does not show it. It was taken back.
    NotConverged,
    /// The job was called off before it began.
    Cancelled,
    /// The change was taken back, because nobody confirmed it in time.
    Reverted,
    /// The host or the request is no longer what the plan was made for. Plan again.
    Stale,
    /// The request is larger than is accepted.
    TooLarge,
    /// The idempotency key was used before with another body.
    KeyReused,
    /// There is too much to do already. Retry later.
    Busy,
    /// Something on the host failed, or ran longer than it may; the message has its words.
    HostFailed,
    /// It was interrupted and may have taken effect. Look at the host.
    Interrupted,
    /// It was not begun by its deadline, and never will be.
    Expired,
    /// A bug, or a state nobody planned for.
    Internal,
    /// This kind of host cannot do it at all.
    Unsupported,
    /// A dependency is down. Safe to retry.
    Unavailable,
    /// The caller's wait ran out; the job goes on.
    Timeout,
    /// There is no room left to store anything. Make room.
    Full,
}

/// What callers see of a kind: HTTP status, exit status of the command line, title.
struct Row(u16, u8, &'static str);

impl Kind {
    pub const ALL: [Self; 25] = [
        Self::InvalidInput,
        Self::NoPreview,
        Self::Unauthenticated,
        Self::Denied,
        Self::AgentUnprivileged,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::Protected,
        Self::Superseded,
        Self::NotConverged,
        Self::Cancelled,
        Self::Reverted,
        Self::Stale,
        Self::TooLarge,
        Self::KeyReused,
        Self::Busy,
        Self::HostFailed,
        Self::Interrupted,
        Self::Expired,
        Self::Internal,
        Self::Unsupported,
        Self::Unavailable,
        Self::Timeout,
        Self::Full,
    ];

    /// The HTTP status. A host that cannot do something at all (`Unsupported`) is answered with a
    /// row `skipped` instead; the status here is for what no host is asked about.
    pub const fn status(self) -> u16 {
        self.row().0
    }

    /// The exit status of the command line. 2 is clap's; 10 and up keep clear of shells.
    pub const fn exit(self) -> u8 {
        self.row().1
    }

    pub const fn title(self) -> &'static str {
        self.row().2
    }

    const fn row(self) -> Row {
        match self {
            Self::InvalidInput => Row(400, 10, "Invalid input"),
            Self::NoPreview => Row(400, 10, "No preview"),
            Self::Unauthenticated => Row(401, 11, "Unauthenticated"),
            Self::Denied => Row(403, 12, "Denied"),
            Self::AgentUnprivileged => Row(403, 12, "The agent lacks a privilege"),
            Self::NotFound => Row(404, 13, "Not found"),
            Self::MethodNotAllowed => Row(405, 14, "Method not allowed"),
            Self::Conflict => Row(409, 15, "Conflict"),
            Self::Protected => Row(409, 15, "Protected"),
            Self::Superseded => Row(409, 15, "Superseded"),
            Self::NotConverged => Row(409, 15, "Not converged"),
            Self::Cancelled => Row(409, 15, "Cancelled"),
            Self::Reverted => Row(409, 15, "Reverted"),
            Self::Stale => Row(412, 15, "Stale plan"),
            Self::TooLarge => Row(413, 10, "Too large"),
            Self::KeyReused => Row(422, 10, "Idempotency key reused"),
            Self::Busy => Row(429, 19, "Busy"),
            Self::HostFailed => Row(500, 17, "The host failed"),
            Self::Interrupted => Row(500, 17, "Interrupted"),
            Self::Expired => Row(500, 18, "Expired"),
            Self::Internal => Row(500, 20, "Internal error"),
            Self::Unsupported => Row(501, 0, "Unsupported"),
            Self::Unavailable => Row(503, 19, "Unavailable"),
            Self::Timeout => Row(504, 18, "Timed out waiting"),
            Self::Full => Row(507, 19, "Full"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
