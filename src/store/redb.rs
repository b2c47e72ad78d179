//! Single-host records in one redb file, owned by the controller.
//!
//! One thread writes. It takes every step that is waiting, commits them in one transaction, and
//! only then answers, so that the cost of a flush is shared by everyone who waited for the last.
//! Reads are short transactions on the caller's thread: the file is small and stays cached.

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use tokio::sync::{mpsc as channel, oneshot};

use super::audit::{Chain, Ends, Stored, Tail};
use super::{
    Bounds, Coming, Entry, Event, Expect, Order, Revision, Room, Step, Store, Write, audit,
    is_under,
};
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};

/// key -> (revision, end of life in ms or MAX, value)
const RECORDS: TableDefinition<&str, (u64, u64, &[u8])> = TableDefinition::new("records");
/// revision -> key it wrote last: what a watch since some revision has to read.
const CHANGES: TableDefinition<u64, &str> = TableDefinition::new("changes");
/// (end of life in ms, revision): what to sweep next.
const ENDS: TableDefinition<(u64, u64), &str> = TableDefinition::new("ends");
const AUDIT: TableDefinition<u64, &[u8]> = TableDefinition::new("audit");

/// The default would be 1 GiB, and redb uses what it is given.
const CACHE: usize = 8 << 20;
/// Bounds the work of one transaction, and with it the time others wait.
const GROUP: usize = 512;
/// How many expired records one transaction takes along.
const SWEEP: usize = 2 * GROUP;
/// How long a watch that resumes still hears of a deletion. It also keeps the last revision from
/// being given out again after a restart.
const TOMBSTONE: Duration = Duration::from_hours(1);

#[derive(Clone)]
pub struct RedbStore {
    db: Arc<Database>,
    shared: Arc<Shared>,
    writer: mpsc::Sender<Command>,
}

enum Command {
    Commit(Step, oneshot::Sender<Result<Revision>>),
    /// Goes through the writer so that nothing is committed between snapshot and changes.
    Watch(Watcher, Revision),
}

struct Watcher {
    prefix: String,
    events: channel::UnboundedSender<Event>,
}

struct Writer {
    db: Arc<Database>,
    watchers: Vec<Watcher>,
    revision: Revision,
    tail: Tail,
    shared: Arc<Shared>,
}

/// What readers see without asking the database.
struct Shared {
    clock: Clock,
    bounds: Bounds,
    coming: Arc<AtomicUsize>,
    room: Mutex<Room>,
    ends: Mutex<Ends>,
}

impl RedbStore {
    pub fn open(dir: &Path, clock: Clock, bounds: Bounds) -> Result<Self> {
        let path = dir.join("controller-1.redb");
        let db = Database::builder().set_cache_size(CACHE).create(path).map_err(storage)?;
        Self::start(db, clock, bounds)
    }

    fn start(db: Database, clock: Clock, bounds: Bounds) -> Result<Self> {
        let txn = db.begin_write().map_err(storage)?;
        let (revision, tail) = {
            let tables = Tables::open(&txn)?;
            let revision = tables.changes.last().map_err(storage)?.map_or(0, |row| row.0.value());
            let mut tail = Tail::new(Chain::Requests, "controller");
            for row in tables.audit.iter().map_err(storage)? {
                let bytes = row.map_err(storage)?.1.value().to_vec();
                tail.head = tail.head.after(&Stored::parse(bytes.clone().into())?.link, &bytes);
                tail.bytes += bytes.len() as u64;
            }
            (revision, tail)
        };
        txn.commit().map_err(storage)?;
        let db = Arc::new(db);
        let shared = Arc::new(Shared {
            room: Mutex::new(Room { bound: bounds.database, ..Room::default() }),
            clock,
            bounds,
            coming: Arc::default(),
            ends: Mutex::new(ends(&tail)),
        });
        let mut writer =
            Writer { db: db.clone(), watchers: Vec::new(), revision, tail, shared: shared.clone() };
        let (sender, commands) = mpsc::channel();
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(&commands))
            .map_err(storage)?;
        Ok(Self { db, shared, writer: sender })
    }
}

fn ends(tail: &Tail) -> Ends {
    let none = audit::Head::first(Chain::Refusals.of(&tail.stub.writer));
    Ends {
        stub: tail.stub.clone(),
        head: tail.head.clone(),
        refusals_stub: none.clone(),
        refusals_head: none,
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn commit(&self, step: Step) -> Result<Revision> {
        let (done, committed) = oneshot::channel();
        self.writer.send(Command::Commit(step, done)).map_err(|_| closed())?;
        committed.await.map_err(|_| closed())?
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let table = self.db.begin_read().map_err(storage)?.open_table(RECORDS).map_err(storage)?;
        let row = table.get(key).map_err(storage)?;
        Ok(row.and_then(|row| live(key, row.value())))
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        order: Order,
    ) -> Result<Vec<Entry>> {
        let table = self.db.begin_read().map_err(storage)?.open_table(RECORDS).map_err(storage)?;
        let mut entries = Vec::new();
        let mut take = |row: std::result::Result<Row<'_>, redb::StorageError>| -> Result<bool> {
            let (key, row) = row.map_err(storage)?;
            if entries.len() < limit && is_under(key.value(), prefix) {
                entries.extend(live(key.value(), row.value()));
            }
            Ok(entries.len() < limit)
        };
        let rows = match (order, after) {
            (Order::Descending, after) if !after.is_empty() => table.range(..after),
            (Order::Ascending, after) => {
                table.range::<&str>((Bound::Excluded(after), Bound::Unbounded))
            }
            _ => table.range::<&str>(..),
        };
        let mut rows = rows.map_err(storage)?;
        while let Some(row) = if order == Order::Ascending { rows.next() } else { rows.next_back() }
        {
            if !take(row)? {
                break;
            }
        }
        Ok(entries)
    }

    async fn watch(&self, prefix: &str, since: Revision) -> Result<BoxStream<'static, Event>> {
        let (events, later) = channel::unbounded_channel();
        let watcher = Watcher { prefix: prefix.to_owned(), events };
        self.writer.send(Command::Watch(watcher, since)).map_err(|_| closed())?;
        Ok(stream::unfold(later, async |mut later| Some((later.recv().await?, later))).boxed())
    }

    async fn audit(&self, after: u64, limit: usize, order: Order) -> Result<Vec<Stored>> {
        let table = self.db.begin_read().map_err(storage)?.open_table(AUDIT).map_err(storage)?;
        let parse = |row: std::result::Result<_, redb::StorageError>| {
            let (_, bytes): (redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8]>) =
                row.map_err(storage)?;
            Stored::parse(Bytes::copy_from_slice(bytes.value()))
        };
        match (order, after) {
            (Order::Ascending, _) => {
                table.range(after + 1..).map_err(storage)?.take(limit).map(parse).collect()
            }
            (Order::Descending, 0) => {
                table.iter().map_err(storage)?.rev().take(limit).map(parse).collect()
            }
            (Order::Descending, _) => {
                table.range(..after).map_err(storage)?.rev().take(limit).map(parse).collect()
            }
        }
    }

    async fn ends(&self) -> Result<Ends> {
        Ok(lock(&self.shared.ends).clone())
    }

    fn room(&self) -> Room {
        Room { bound: self.shared.bounds.database, ..*lock(&self.shared.room) }
    }

    fn expect(&self) -> Coming {
        Coming::among(&self.shared.coming)
    }
}

type Row<'a> =
    (redb::AccessGuard<'a, &'static str>, redb::AccessGuard<'a, (u64, u64, &'static [u8])>);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Writer {
    fn run(&mut self, commands: &mpsc::Receiver<Command>) {
        while let Ok(first) = commands.recv() {
            let mut group = Vec::new();
            for command in std::iter::once(first).chain(commands.try_iter().take(GROUP)) {
                match command {
                    Command::Commit(step, done) => group.push((step, done)),
                    Command::Watch(watcher, since) => {
                        // What came before the watch must be in its snapshot, not behind it.
                        self.commit(std::mem::take(&mut group));
                        self.watch(watcher, since);
                    }
                }
            }
            self.commit(group);
        }
    }

    fn commit(&mut self, group: Vec<(Step, oneshot::Sender<Result<Revision>>)>) {
        if group.is_empty() {
            return;
        }
        let (steps, done): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        match self.apply(steps) {
            Ok((results, events)) => {
                self.watchers.retain(|watcher| {
                    let mut relevant = events.iter().filter(|event| watcher.wants(event));
                    relevant.all(|event| watcher.events.send(event.clone()).is_ok())
                });
                for (done, result) in done.into_iter().zip(results) {
                    // Whoever asked may have stopped waiting; the step counts all the same.
                    let _ = done.send(result);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a commit failed");
                for done in done {
                    let _ = done.send(Err(Error::from(error.body())));
                }
            }
        }
    }

    fn apply(&mut self, steps: Vec<Step>) -> Result<(Vec<Result<Revision>>, Vec<Event>)> {
        let mut txn = self.db.begin_write().map_err(storage)?;
        // Values come from outside. Without this, whoever chooses them and can crash the process
        // at the right moment might make a torn commit look whole.
        txn.set_two_phase_commit(true);
        let (mut revision, mut tail) = (self.revision, self.tail.clone());
        let (mut results, mut events, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut tables = Tables::open(&txn)?;
            tables.sweep(&mut events)?;
            for step in steps {
                match tables.conflict(&step)? {
                    Some(key) => {
                        let message = format!("{key} has changed");
                        results.push(Err(Error::new(Kind::Conflict, message)));
                    }
                    None => {
                        for write in step.writes {
                            revision += 1;
                            events.push(tables.write(write, revision)?);
                        }
                        notes.extend(step.notes);
                        results.push(Ok(revision));
                    }
                }
            }
            if !notes.is_empty() {
                let number = tail.head.number + 1;
                let link = tail.add(number, self.shared.clock.wall(), notes)?;
                tables.audit.insert(number, link.as_ref()).map_err(storage)?;
            }
        }
        txn.commit().map_err(storage)?;
        *lock(&self.shared.ends) = ends(&tail);
        lock(&self.shared.room).figures.commits += 1;
        (self.revision, self.tail) = (revision, tail);
        Ok((results, events))
    }

    fn watch(&mut self, watcher: Watcher, since: Revision) {
        let snapshot = || -> Result<()> {
            let txn = self.db.begin_read().map_err(storage)?;
            let (changes, records) = (txn.open_table(CHANGES), txn.open_table(RECORDS));
            let (changes, records) = (changes.map_err(storage)?, records.map_err(storage)?);
            for row in changes.range(since + 1..).map_err(storage)? {
                let (revision, key) = row.map_err(storage)?;
                let (revision, key) = (revision.value(), key.value());
                let current = records.get(key).map_err(storage)?;
                let event = match current.and_then(|row| live(key, row.value())) {
                    Some(entry) if entry.revision == revision => Event::Put(entry),
                    _ => Event::Delete { key: key.to_owned(), revision },
                };
                // A new watcher has nothing to delete.
                if watcher.wants(&event) && (since > 0 || matches!(event, Event::Put(_))) {
                    let _ = watcher.events.send(event);
                }
            }
            let _ = watcher.events.send(Event::Current);
            Ok(())
        };
        match snapshot() {
            Ok(()) => self.watchers.push(watcher),
            // Dropping the sender ends the stream, which is how a watcher learns of it.
            Err(error) => tracing::error!(%error, "a watch failed"),
        }
    }
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        match event {
            Event::Put(Entry { key, .. }) | Event::Delete { key, .. } => {
                is_under(key, &self.prefix)
            }
            Event::Current => true,
        }
    }
}

struct Tables<'txn> {
    records: Table<'txn, &'static str, (u64, u64, &'static [u8])>,
    changes: Table<'txn, u64, &'static str>,
    ends: Table<'txn, (u64, u64), &'static str>,
    audit: Table<'txn, u64, &'static [u8]>,
}

impl<'txn> Tables<'txn> {
    fn open(txn: &'txn WriteTransaction) -> Result<Self> {
        Ok(Self {
            records: txn.open_table(RECORDS).map_err(storage)?,
            changes: txn.open_table(CHANGES).map_err(storage)?,
            ends: txn.open_table(ENDS).map_err(storage)?,
            audit: txn.open_table(AUDIT).map_err(storage)?,
        })
    }

    /// The first key that is not as the step expects it.
    fn conflict(&self, step: &Step) -> Result<Option<String>> {
        for write in &step.writes {
            let row = self.records.get(write.key.as_str()).map_err(storage)?;
            let current = row.and_then(|row| live(&write.key, row.value()));
            let holds = match write.expect {
                Expect::Anything => true,
                Expect::Absent => current.is_none(),
                Expect::Revision(expected) => current.is_some_and(|c| c.revision == expected),
            };
            if !holds {
                return Ok(Some(write.key.clone()));
            }
        }
        Ok(None)
    }

    fn write(&mut self, write: Write, revision: Revision) -> Result<Event> {
        let Write { key, value, lifetime, .. } = write;
        self.remove(&key)?;
        self.changes.insert(revision, key.as_str()).map_err(storage)?;
        let lifetime = if value.is_none() { Some(TOMBSTONE) } else { lifetime };
        let end = lifetime.map_or(u64::MAX, |lifetime| now() + millis(lifetime));
        if end < u64::MAX {
            self.ends.insert((end, revision), key.as_str()).map_err(storage)?;
        }
        let Some(value) = value else { return Ok(Event::Delete { key, revision }) };
        let row = (revision, end, value.as_ref());
        self.records.insert(key.as_str(), row).map_err(storage)?;
        Ok(Event::Put(Entry { key, value, revision }))
    }

    fn remove(&mut self, key: &str) -> Result<()> {
        if let Some(row) = self.records.remove(key).map_err(storage)? {
            let (revision, end, _) = row.value();
            self.changes.remove(revision).map_err(storage)?;
            self.ends.remove((end, revision)).map_err(storage)?;
        }
        Ok(())
    }

    /// An expired record ends with the revision that it had.
    fn sweep(&mut self, events: &mut Vec<Event>) -> Result<()> {
        let due = self.ends.range(..(now(), 0)).map_err(storage)?.take(SWEEP);
        let due = due.map(|row| {
            let (end, key) = row.map_err(storage)?;
            Ok((end.value(), key.value().to_owned()))
        });
        for ((end, revision), key) in due.collect::<Result<Vec<_>>>()? {
            let row = self.records.get(key.as_str()).map_err(storage)?;
            let is_tombstone = row.is_none_or(|row| row.value().0 != revision);
            if !is_tombstone {
                self.records.remove(key.as_str()).map_err(storage)?;
                events.push(Event::Delete { key, revision });
            }
            self.changes.remove(revision).map_err(storage)?;
            self.ends.remove((end, revision)).map_err(storage)?;
        }
        Ok(())
    }
}

fn live(key: &str, (revision, end, value): (u64, u64, &[u8])) -> Option<Entry> {
    let entry = || Entry { key: key.to_owned(), value: Bytes::copy_from_slice(value), revision };
    (end > now()).then(entry)
}

fn closed() -> Error {
    Error::new(Kind::Unavailable, "the state store is closed")
}

fn storage(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Unavailable, "the state store failed").because(error)
}

#[expect(clippy::disallowed_methods, reason = "expiry is a matter of the wall clock")]
fn now() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
