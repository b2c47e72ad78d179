//! The audit log as a hash chain: one link per group of steps that became durable together.
//!
//! Each controller writes a chain of its own, so that writers never wait for each other. A link
//! names the hash of the one before it; whoever keeps the latest hash elsewhere can tell whether
//! anything before it was changed or removed.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::job::{decode, encode};

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

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Link {
    pub number: u64,
    /// SHA-256 of the link before, as stored; empty in the first.
    pub previous: String,
    /// How many entries the chain has before this link, kept or not.
    pub entries: u64,
    pub notes: Vec<Note>,
}

/// The end of a chain, where the next link goes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) number: u64,
    hash: String,
    entries: u64,
}

impl Head {
    /// The head after `stored`, the last link there is.
    pub(crate) fn after(stored: &[u8]) -> Result<Self> {
        let link: Link = decode(stored)?;
        Ok(Self { number: link.number, hash: hash(stored), entries: link.entries + count(&link) })
    }

    /// The next link and the head behind it, which counts once the link is durable.
    pub(crate) fn link(&self, notes: Vec<Note>) -> Result<(Self, Bytes)> {
        let (number, previous, entries) = (self.number + 1, self.hash.clone(), self.entries);
        let link = Link { number, previous, entries, notes };
        let stored = encode(&link)?;
        let entries = entries + count(&link);
        Ok((Self { number, hash: hash(&stored), entries }, stored))
    }
}

fn count(link: &Link) -> u64 {
    link.notes.iter().filter(|note| matches!(note, Note::Entry(_))).count() as u64
}

/// Whether each link follows from the one before it.
pub fn is_unbroken(links: &[Link]) -> bool {
    links.windows(2).all(|pair| {
        let stored = encode(&pair[0]);
        stored.is_ok_and(|stored| pair[1].previous == hash(&stored))
            && pair[1].number == pair[0].number + 1
    })
}

fn hash(stored: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(stored))
}
