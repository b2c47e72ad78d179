//! The audit log as hash chains: one link per group of steps that became durable together.
//!
//! A writer keeps two chains: one of what was done, one of reads and refusals, which leave nothing
//! behind. These cost whoever asks next to nothing, so they have a bound of their own and go
//! first; being apart, they can neither push out other entries nor leave a hole among them. Both
//! count their links with one number, which is why either may have gaps.
//!
//! A link names the hash of the one before it in its chain. Retention drops the oldest links and
//! leaves a *stub*, the head of what was dropped, from which the rest verifies; every link says
//! which stub its chain had when it was written. Whoever keeps a head elsewhere can tell whether
//! anything before it was changed, removed, moved or cut off.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::hex;
use crate::error::Result;
use crate::job::{decode, encode};
use crate::link;

mod verify;

pub use verify::{Check, Fault, Verdict, verify};

/// How much of the log is read at a time, in bytes; the last link of it may go beyond.
pub(super) const PAGE: usize = 1 << 20;

/// What the log says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// A request, as a client lists it.
    Entry(Entry),
    /// How a request went that was noted before.
    End(End),
    /// What happened without a request, such as a step of the wall clock.
    Event(Value),
}

impl Note {
    /// A request that left nothing behind: it only looked, or it was turned away or failed
    /// before there was a job.
    pub fn is_idle(&self) -> bool {
        let entry = match self {
            Self::Entry(entry) => entry,
            Self::End(_) => return false,
            // Of tasks and outcomes that were turned away only their number is left.
            Self::Event(event) => return event["count"].is_u64(),
        };
        let looks = ["GET", "HEAD"].contains(&entry.method.as_str());
        entry.job.is_none() && entry.code.is_some_and(|code| looks || code >= 400)
    }
}

/// One request. Where code and duration are missing, an [`End`] says them later.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Entry {
    /// A UUID; that of the job where the request made one.
    pub id: String,
    /// When the request began, in milliseconds since 1970.
    pub at: u64,
    pub user: String,
    pub roles: Vec<String>,
    pub method: String,
    pub path: String,
    /// The operation's id; empty where no row was found.
    pub op: String,
    /// `unix`, or the peer's address.
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The job that this request is about, where it made none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// HTTP status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// How many further refused requests of the same peer, in the same second, it stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct End {
    /// The entry that it ends.
    pub entry: String,
    /// In milliseconds since 1970.
    pub at: u64,
    /// The machine id of the host that says so.
    pub host: String,
    /// HTTP status that this outcome amounts to.
    pub code: u16,
    /// From submission to outcome, in milliseconds.
    pub ms: u64,
    /// The kind of the error, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<crate::error::Kind>,
}

/// Which of a writer's two chains a link is in.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Chain {
    #[default]
    Requests,
    /// Of reads and refusals: see [`Note::is_idle`].
    Refusals,
}

impl Chain {
    pub const ALL: [Self; 2] = [Self::Requests, Self::Refusals];

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it like that")]
    fn is_requests(&self) -> bool {
        *self == Self::Requests
    }

    /// What heads of this chain call its writer.
    pub fn of(self, writer: &str) -> String {
        match self {
            Self::Requests => writer.to_owned(),
            Self::Refusals => format!("{writer}.refusals"),
        }
    }
}

/// Some notes, and how they follow on from the ones before.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Link<N = Vec<Note>> {
    /// Counts the links of both chains.
    pub number: u64,
    #[serde(default, skip_serializing_if = "Chain::is_requests")]
    pub chain: Chain,
    /// SHA-256 of the link before in this chain, as stored, in hexadecimal; of the writer's name
    /// in the first.
    pub previous: String,
    /// How many entries this chain has before this link, kept or not.
    pub entries: u64,
    /// The number of the last link of this chain that had been dropped by then; 0 for none.
    pub dropped: u64,
    /// When it was written, in milliseconds since 1970.
    pub at: u64,
    pub notes: N,
}

/// A link and the very bytes that its hash is of.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Where it stands among the links of all writers. With one writer, its number.
    pub place: u64,
    /// Whose it is, as the heads of its requests say.
    pub writer: String,
    pub link: Link,
    pub bytes: Bytes,
}

impl Stored {
    pub fn parse(place: u64, writer: &str, bytes: Bytes) -> Result<Self> {
        Ok(Self { place, writer: writer.to_owned(), link: decode(&bytes)?, bytes })
    }
}

/// A place in a chain: behind the link of that number.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Head {
    /// Names the chain.
    pub writer: String,
    /// Of the last link before this place; 0 where there is none.
    pub number: u64,
    /// SHA-256 of that link as stored, in hexadecimal.
    pub hash: String,
    /// How many entries the chain has up to there, kept or not.
    pub entries: u64,
}

impl Head {
    /// Where a new chain begins.
    pub fn first(writer: String) -> Self {
        let hash = hash(writer.as_bytes());
        Self { writer, number: 0, hash, entries: 0 }
    }

    /// The place behind `stored`, a link of this chain.
    pub(crate) fn after(&self, link: &Link, stored: &[u8]) -> Self {
        self.at(link.number, link.entries.saturating_add(count(&link.notes)), stored)
    }

    fn at(&self, number: u64, entries: u64, stored: &[u8]) -> Self {
        Self { writer: self.writer.clone(), number, hash: hash(stored), entries }
    }
}

impl From<&Head> for link::Head {
    fn from(head: &Head) -> Self {
        Self { writer: head.writer.clone(), number: head.number, hash: head.hash.clone() }
    }
}

/// Where a writer's chains begin, that is what retention has left of them, and where they end.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Ends {
    pub stub: Head,
    pub head: Head,
    pub refusals_stub: Head,
    pub refusals_head: Head,
}

impl Ends {
    /// Whether a chain ends before where it ended `earlier`.
    pub fn are_before(&self, earlier: &Self) -> bool {
        let is_before =
            |now: &Head, then: &Head| now.writer == then.writer && now.number < then.number;
        is_before(&self.head, &earlier.head)
            || is_before(&self.refusals_head, &earlier.refusals_head)
    }

    /// What agents keep.
    pub fn heads(&self) -> [link::Head; 2] {
        [(&self.head).into(), (&self.refusals_head).into()]
    }
}

/// Everything that is needed to verify the log elsewhere.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Export {
    pub ends: Ends,
    /// The links of both chains as stored, in order of number.
    pub links: Vec<String>,
}

/// A chain as its writer has it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Tail {
    pub(crate) chain: Chain,
    pub(crate) stub: Head,
    pub(crate) head: Head,
    /// What the links that are kept take.
    pub(crate) bytes: u64,
}

impl Tail {
    pub(crate) fn new(chain: Chain, writer: &str) -> Self {
        let start = Head::first(chain.of(writer));
        Self { chain, stub: start.clone(), head: start, bytes: 0 }
    }

    /// Goes on by one link and returns it as it is to be stored.
    pub(crate) fn add(&mut self, number: u64, at: u64, notes: &[&Note]) -> Result<Bytes> {
        let stored = self.next(number, at, notes)?;
        self.go_on(number, notes, &stored);
        Ok(stored)
    }

    /// The link that comes next if it has these notes, as it is to be stored.
    pub(crate) fn next(&self, number: u64, at: u64, notes: &[&Note]) -> Result<Bytes> {
        encode(&Link {
            number,
            chain: self.chain,
            previous: self.head.hash.clone(),
            entries: self.head.entries,
            dropped: self.stub.number,
            at,
            notes,
        })
    }

    /// `stored` came next, and has these notes.
    pub(crate) fn go_on(&mut self, number: u64, notes: &[&Note], stored: &[u8]) {
        let entries = self.head.entries.saturating_add(count(notes.iter().copied()));
        self.head = self.head.at(number, entries, stored);
        self.bytes += stored.len() as u64;
    }

    /// Lets go of `stored`, the oldest link. One that somebody has damaged must not stand in the
    /// way; that it was shows in the next one.
    pub(crate) fn drop_oldest(&mut self, number: u64, stored: &[u8]) {
        self.stub = match decode::<Link>(stored) {
            Ok(link) => Head { number, ..self.stub.after(&link, stored) },
            Err(_) => Head { number, hash: hash(stored), ..self.stub.clone() },
        };
        self.bytes = self.bytes.saturating_sub(stored.len() as u64);
    }
}

fn count<'a>(notes: impl IntoIterator<Item = &'a Note>) -> u64 {
    notes.into_iter().filter(|note| matches!(note, Note::Entry(_))).count() as u64
}

pub(super) fn hash(stored: &[u8]) -> String {
    hex(&Sha256::digest(stored))
}
