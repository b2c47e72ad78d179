//! Durable state behind one narrow trait, and large content behind a second.
//!
//! Everything that must survive is a *record*: a key, a value and the revision that wrote it.
//! Whatever need not survive, such as heartbeats and the answers of reads, never comes here.
//!
//! - A [`Step`] takes effect as a whole or not at all, and is durable when [`Store::commit`]
//!   returns. Its audit notes are durable no later than its records.
//! - Revisions grow with every write to the store, so that one number orders all of its records
//!   and [`Store::watch`] can go on where it once stopped.
//! - A watcher sees the latest value of every record, in order of revision and without a gap, but
//!   may miss values in between.
//! - A commit that fails with `Unavailable` may still have taken effect. Expectations make it safe
//!   to commit the same step again: a second effect fails with `Conflict`.
//! - Where there is no room, a commit fails with `Full` and has no effect; deletions go on, reads
//!   go on, and commits resume by themselves once there is room again.
//! - Lifetimes run on a time of the store's own that no wall clock moves: setting the host's clock
//!   expires nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::io::AsyncRead;

use crate::broker::is_token;
use crate::error::{Error, Kind, Result};

pub mod audit;
pub mod nats;
pub mod objects;
pub(crate) mod place;
mod queue;
pub mod redb;

/// The longest key, in bytes.
const KEY: usize = 512;
/// How many records a step may write: with its notes they go into one batch of a NATS server.
pub const WRITES: usize = 800;

/// Position of a write within the store: later writes have greater revisions.
pub type Revision = u64;

/// What must be true of a key for a step that writes it to take effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    Anything,
    Absent,
    Revision(Revision),
}

/// By key where records are listed, by number where links of the audit log are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Order {
    Ascending,
    Descending,
}

/// Writes that belong together, and what the audit log says about them.
#[derive(Clone, Debug, Default)]
pub struct Step {
    pub(crate) writes: Vec<Write>,
    pub(crate) notes: Vec<audit::Note>,
    pub(crate) is_lazy: bool,
    pub(crate) is_owed: bool,
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

    /// Lets every record of this step so far expire. Reads never return a record that has; those
    /// who watch hear of its end with the next commit.
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

    /// Rides along with the next commit, or causes one after at most a second. Whoever waits for
    /// it waits that long; whoever does not may drop the future after its first poll, and the step
    /// goes its way. Such steps wait in a queue of their own. Once it is half full they lose their
    /// notes of refused requests; when it is full they are `Busy`, and so is a step that has
    /// nothing left. What was lost is counted in the log.
    pub fn lazy(mut self) -> Self {
        self.is_lazy = true;
        self
    }

    /// All that is in this step and in `other`, as one.
    pub fn and(mut self, other: Self) -> Self {
        self.writes.extend(other.writes);
        self.notes.extend(other.notes);
        self.is_lazy |= other.is_lazy;
        self.is_owed |= other.is_owed;
        self
    }

    /// Ends what was accepted before, such as the outcome of a job. It may use the room that is
    /// kept back from what is new.
    pub fn owed(mut self) -> Self {
        self.is_owed = true;
        self
    }

    /// Whether it is let through where there is no room for what is new: it makes room, or ends
    /// what was accepted.
    pub(crate) fn is_urgent(&self) -> bool {
        let is_deletion = |write: &Write| write.value.is_none();
        self.is_owed || !self.writes.is_empty() && self.writes.iter().all(is_deletion)
    }

    /// Fails unless it is a step that every backend can take, with values of up to `most` bytes.
    pub(crate) fn check(&self, most: usize) -> Result<()> {
        if self.writes.len() > WRITES {
            let message = format!("a step may write {WRITES} records");
            return Err(Error::new(Kind::TooLarge, message));
        }
        for write in &self.writes {
            if write.key.len() > KEY || !write.key.split('.').all(is_token) {
                let message = format!("{:?} is no key of the store", write.key);
                return Err(Error::new(Kind::Internal, message));
            }
            if write.value.as_ref().is_some_and(|value| value.len() > most) {
                let message = format!("{} is larger than a record may be", write.key);
                return Err(Error::new(Kind::TooLarge, message));
            }
        }
        let mut keys: Vec<_> = self.writes.iter().map(|write| &write.key).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Error::new(Kind::Internal, "a step writes a key twice"));
        }
        Ok(())
    }

    /// What its values take.
    pub(crate) fn bytes(&self) -> usize {
        self.writes.iter().filter_map(|write| write.value.as_ref()).map(Bytes::len).sum()
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
    /// Up to `limit` records under `prefix` that come behind the key `after` in `order`; an empty
    /// `after` stands for the end that `order` begins at.
    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        order: Order,
    ) -> Result<Vec<Entry>>;
    /// All records under `prefix` in order of key, up to `most` at a time and never none; in one
    /// pass, where going on with [`Store::list`] may cost as much as beginning again. What changes
    /// meanwhile may be in it or not.
    fn pages<'a>(&'a self, prefix: &'a str, most: usize) -> BoxStream<'a, Result<Vec<Entry>>> {
        let pages = stream::try_unfold(String::new(), move |after| async move {
            let page = self.list(prefix, &after, most, Order::Ascending).await?;
            let last = page.last().map(|entry| entry.key.clone());
            Ok(last.map(|last| (page, last)))
        });
        pages.boxed()
    }
    /// Yields what `prefix` holds with a revision above `since`, then `Current`, then what
    /// changes. A deletion is heard of by whoever resumes within an hour. Ends when the store
    /// closes or cannot be read; go on from the last revision seen.
    async fn watch(&self, prefix: &str, since: Revision) -> Result<BoxStream<'static, Event>>;
    /// Up to `limit` links of the audit chains of all writers that come behind the place `after` in
    /// `order`; 0 stands for the end that `order` begins at. There are fewer where these are large,
    /// and none only at the end. Places may have gaps: reads and refusals are dropped sooner than
    /// the rest.
    async fn audit(&self, after: u64, limit: usize, order: Order) -> Result<Vec<audit::Stored>>;
    /// Keeps retention from this writer's part of the audit log until it is dropped, so that it can
    /// be read as it is now; not for more than a sixteenth of what the log may take. `Busy` where
    /// some do so already.
    fn keep(&self) -> Result<Kept>;
    /// Where the audit chains of this writer begin and end. From memory.
    async fn ends(&self) -> Result<audit::Ends>;
    /// Where the chain of requests ends. From memory.
    async fn head(&self) -> Result<audit::Head> {
        Ok(self.ends().await?.head)
    }
    /// Returns once the store turns out to have lost what it had acknowledged, so that nothing holds
    /// any more that was derived from it. Never, where nobody else keeps it.
    async fn taken_back(&self) {
        std::future::pending::<()>().await;
    }
    /// How much room there is and how the store fares. From memory.
    fn room(&self) -> Room;
    /// Whether other controllers may write to it as well.
    fn is_shared(&self) -> bool {
        false
    }
    /// How that fares which the store depends on and is not part of this process; nothing for one in
    /// files. From memory.
    fn conditions(&self) -> Vec<Condition> {
        Vec::new()
    }
    /// Says that a commit is about to come; hold it until that commit has returned, or until
    /// there will be none. Take it only when the commit is a matter of microseconds, such as
    /// after a request's body has arrived: commits gather for those who are on their way.
    fn expect(&self) -> Coming;
    /// Returns once what waits is durable, lazy steps included, or where that cannot be had in a few
    /// seconds. Nothing is taken after it.
    async fn close(&self) {}
}

/// What a store and its objects may take. Every bound has the documented default.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// All of the database, in bytes: records and audit log.
    pub database: u64,
    /// The part of it that the audit log may take, in bytes. A quarter of that is for reads
    /// and refusals, which can so never push out anything else.
    pub audit: u64,
    /// How long the audit log is kept.
    pub audit_age: Duration,
    /// All objects, in bytes.
    pub objects: u64,
    /// Below this many free bytes on the file system nothing new is accepted.
    pub free: u64,
    /// Kept on the disk, in bytes, to be given up when it is full, so that deletions work.
    pub reserve: u64,
    /// How many steps may wait for a commit.
    pub queue: usize,
    /// How many lazy steps may.
    pub lazy: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            database: 64 << 20,
            audit: 50 << 20,
            audit_age: Duration::from_hours(30 * 24),
            objects: 1 << 30,
            free: 2 << 20,
            reserve: 1 << 20,
            queue: 8192,
            lazy: 4096,
        }
    }
}

/// How much room there is, and how the store fares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Room {
    /// Bytes that records take, their share of the indexes included.
    pub records: u64,
    /// Bytes that the audit log takes.
    pub audit: u64,
    /// What both together may take. Records may fill what the log leaves of it.
    pub bound: u64,
    /// The last commit found no room, or the next one would find none.
    pub is_full: bool,
    /// The last commit failed for another reason than room, or the next one would: nothing can be
    /// put on record.
    pub is_audit_broken: bool,
    pub figures: Figures,
}

impl Room {
    /// Bytes that records may still take before new ones are refused.
    pub fn left(&self) -> u64 {
        (self.bound - self.bound / 16).saturating_sub(self.records + self.audit)
    }
}

/// How something fares that the store depends on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Condition {
    /// Such as `broker.durable`.
    pub name: &'static str,
    /// What is wrong, and what to do about it.
    pub fault: Option<String>,
    /// It works all the same.
    pub is_warning: bool,
}

/// What a store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Transactions that became durable.
    pub commits: u64,
    /// How long they took, in seconds, all together.
    pub commit_seconds: f64,
    /// Steps that became durable with them.
    pub steps: u64,
    /// Bytes of keys, values and links that these brought.
    pub bytes: u64,
    /// Transactions that failed.
    pub failures: u64,
    /// How often the database was opened again after that.
    pub reopened: u64,
    /// Notes that found no place in the queue of lazy steps, or no room.
    pub lost_notes: u64,
}

/// A commit that is about to come; see [`Store::expect`].
#[derive(Debug)]
pub struct Coming(Arc<AtomicUsize>);

impl Coming {
    pub(crate) fn among(all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all.clone())
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Somebody reads the audit log as it was; see [`Store::keep`].
#[derive(Debug)]
pub struct Kept(Arc<AtomicUsize>);

impl Kept {
    /// How many may do so at once.
    const MOST: usize = 4;

    pub(crate) fn among(all: &Arc<AtomicUsize>) -> Result<Self> {
        // One that is too many gives its place back at once.
        let kept = Self(all.clone());
        if all.fetch_add(1, Ordering::Relaxed) < Self::MOST {
            return Ok(kept);
        }
        let message = format!("the audit log is read by {} already; try again later", Self::MOST);
        Err(Error::new(Kind::Busy, message))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) fn is_under(key: &str, prefix: &str) -> bool {
    prefix.is_empty() || key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

pub type Reader = Pin<Box<dyn AsyncRead + Send>>;

/// A file kept for hosts to fetch.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Object {
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub digest: String,
    /// What whoever uploaded it says that it is, such as `raw`.
    pub content_type: String,
    /// When it was uploaded, in milliseconds since 1970.
    pub at: u64,
}

/// Adds to the step that changes an object what else becomes durable with that, such as what the
/// audit log says of it. Called at the moment when it is known whether anything changes.
pub type Noting = Box<dyn FnOnce(Step, &Object, bool) -> Result<Step> + Send>;

/// Content on its way in.
pub struct Upload {
    pub name: String,
    pub content_type: String,
    pub content: Reader,
    /// Replaces other content of that name; without it that is a `Conflict`.
    pub force: bool,
    pub note: Option<Noting>,
}

/// Whole files by name. A reader that has started sees the content it started with to the end,
/// or fails; it never sees a mixture.
#[async_trait]
pub trait Objects: Send + Sync {
    /// Takes effect once all of the content has arrived and is durable. Says whether anything
    /// changed: the same content and type under the same name are no change.
    async fn put(&self, upload: Upload) -> Result<(Object, bool)>;
    async fn find(&self, name: &str) -> Result<Option<Object>>;
    async fn get(&self, name: &str) -> Result<Option<(Object, Reader)>>;
    /// Up to `most` bytes of the content with that digest from `offset` on; empty at its end.
    /// `NotFound` when no object has it any more.
    async fn part(&self, digest: &str, offset: u64, most: usize) -> Result<Bytes>;
    /// In order of name.
    async fn list(&self) -> Result<Vec<Object>>;
    /// Says whether there was one.
    async fn delete(&self, name: &str, note: Option<Noting>) -> Result<bool>;
    /// Bytes that the objects take, each content once.
    fn bytes(&self) -> u64;
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
