//! Durable state behind one narrow trait, and large content behind a second.
//!
//! A backend is either redb inside the controller or one NATS JetStream stream shared by the
//! controllers of a fleet. Everything that must survive is a *record*: a key, a value and the
//! revision that wrote it. Whatever need not survive, such as heartbeats and the answers of
//! reads, never comes here.
//!
//! - A [`Step`] takes effect as a whole or not at all, and is durable when [`Store::commit`]
//!   returns. Its audit notes are durable no later than its records.
//! - Revisions grow with every write to the store, so that one number orders all of its records
//!   and [`Store::watch`] can go on where it once stopped.
//! - A watcher sees the latest value of every record, in order of revision and without a gap, but
//!   may miss values in between.
//! - A commit that fails with `Unavailable` may still have taken effect. Expectations make it safe
//!   to commit the same step again: a second effect fails with `Conflict`.

use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::io::AsyncRead;

use crate::error::Result;

pub mod audit;
pub mod objects;
pub mod redb;

/// Position of a write within the store: later writes have greater revisions.
pub type Revision = u64;

/// What must be true of a key for a step that writes it to take effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    Anything,
    Absent,
    Revision(Revision),
}

/// Writes that belong together, and what the audit log says about them.
#[derive(Clone, Debug, Default)]
pub struct Step {
    pub(crate) writes: Vec<Write>,
    pub(crate) notes: Vec<audit::Note>,
}

#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) key: String,
    /// Nothing deletes the record.
    pub(crate) value: Option<Bytes>,
    pub(crate) expect: Expect,
    pub(crate) lifetime: Option<Duration>,
}

impl Step {
    pub fn new() -> Self {
        Self::default()
    }

    /// Each key may be written once per step.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>, expect: Expect) -> Self {
        let (key, value) = (key.into(), Some(value.into()));
        self.writes.push(Write { key, value, expect, lifetime: None });
        self
    }

    pub fn delete(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.writes.push(Write { key: key.into(), value: None, expect, lifetime: None });
        self
    }

    /// Lets every record of this step expire. Whole seconds; reads may still return a record for
    /// a second longer, and watchers hear of its end.
    pub fn expires(mut self, lifetime: Duration) -> Self {
        for write in &mut self.writes {
            write.lifetime = Some(lifetime);
        }
        self
    }

    pub fn note(mut self, note: audit::Note) -> Self {
        self.notes.push(note);
        self
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    pub key: String,
    pub value: Bytes,
    pub revision: Revision,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    Put(Entry),
    Delete {
        key: String,
        revision: Revision,
    },
    /// Everything there was when the watch began has been delivered.
    Current,
}

/// Keys are dot-separated tokens of `[A-Za-z0-9_-]`. A prefix is a number of whole tokens and
/// selects the keys that go on after them; the empty prefix selects every key.
#[async_trait]
pub trait Store: Send + Sync {
    /// Fails with `Conflict`, and changes nothing, unless every expectation holds. Returns the
    /// revision of the last write.
    async fn commit(&self, step: Step) -> Result<Revision>;
    async fn get(&self, key: &str) -> Result<Option<Entry>>;
    /// Up to `limit` records under `prefix` whose keys sort behind `after`, in order of key.
    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<Entry>>;
    /// Yields what `prefix` holds with a revision above `since`, then what changes. Ends when the
    /// store closes.
    async fn watch(&self, prefix: &str, since: Revision) -> Result<BoxStream<'static, Event>>;
    /// Up to `limit` links of this controller's audit chain above `after`, oldest first.
    async fn audit(&self, after: u64, limit: usize) -> Result<Vec<audit::Link>>;
}

pub(crate) fn is_under(key: &str, prefix: &str) -> bool {
    prefix.is_empty() || key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

pub type Reader = Pin<Box<dyn AsyncRead + Send>>;

/// A file kept for hosts to fetch.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Object {
    pub name: String,
    pub size: u64,
    /// `SHA-256=` and the hash in URL-safe base64.
    pub digest: String,
}

/// Whole files by name. A reader that has started sees the content it started with to the end,
/// or fails; it never sees a mixture.
#[async_trait]
pub trait Objects: Send + Sync {
    /// Replaces what `name` held before, once all of `content` has arrived.
    async fn put(&self, name: &str, content: Reader) -> Result<Object>;
    async fn get(&self, name: &str) -> Result<Option<(Object, Reader)>>;
    async fn list(&self) -> Result<Vec<Object>>;
    async fn delete(&self, name: &str) -> Result<()>;
}
