//! Single-host records in one redb file, owned by the controller.
//!
//! One thread writes (see [`writer`]). Reads are short transactions on the caller's thread: the
//! file is small and stays cached. No read transaction is held across an await, since that would
//! keep the file from using its free pages.
//!
//! The bounds are kept in the same transactions as everything else: what has expired is swept, the
//! audit log drops its oldest links, and steps that would exceed the database's bound are `Full`.
//! Jobs are dropped by the controller, which knows what is finished.

use std::borrow::Cow;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use redb::{
    AccessGuard, Database, ReadTransaction, ReadableDatabase, StorageBackend, TableDefinition,
};
use tokio::sync::oneshot;

use super::audit::{self, Ends, Stored};
use super::queue::{Admitted, Queue};
use super::{Bounds, Coming, Entry, Event, Kept, Order, Revision, Room, Step, Store, is_under};
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};

mod held;
mod open;
mod tables;
mod time;
mod watch;
mod writer;

use open::Source;
use tables::{REFUSALS, REQUESTS, State, Tables};
use time::Time;
use watch::Recent;
use writer::{Command, Writer};

/// key -> (revision, end of life in the store's time or MAX, value)
const RECORDS: TableDefinition<&str, (u64, u64, &[u8])> = TableDefinition::new("records");
/// revision -> key it wrote last: what a watch since some revision has to read.
const CHANGES: TableDefinition<u64, &str> = TableDefinition::new("changes");

const VALUE: usize = 8 << 20;
/// How often, and with what pause, a read tries again while the database is being opened again.
const READS: usize = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// Cheap to clone. The file is released when the last clone goes.
#[derive(Clone)]
pub struct RedbStore(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    /// Taken when the store closes, which ends the thread.
    writer: Option<(mpsc::Sender<Command>, JoinHandle<()>)>,
}

/// What readers and the writer have in common.
struct Shared {
    /// Empty only while the database is being opened again, and once the store is closed.
    slot: RwLock<Option<Database>>,
    time: Time,
    bounds: Bounds,
    recent: Recent,
    room: Mutex<Room>,
    ends: Mutex<Ends>,
    /// How many read the audit log as it was when they began.
    kept: Arc<AtomicUsize>,
    queue: Queue,
}

impl RedbStore {
    /// Opens the store in `dir`, which is made if need be. Refuses a newer format, a damaged file
    /// and a store that another process has open, and leaves all of these as they are.
    pub fn open(dir: &Path, clock: Clock, bounds: Bounds) -> Result<Self> {
        Self::start(Source::at(dir)?, clock, bounds)
    }

    /// A store on whatever `backend` makes, which is asked again whenever the database has to be
    /// opened again.
    pub fn with_backend<B: StorageBackend>(
        backend: impl Fn() -> io::Result<B> + Send + 'static,
        clock: Clock,
        bounds: Bounds,
    ) -> Result<Self> {
        Self::start(Source::from(backend), clock, bounds)
    }

    fn start(source: Source, clock: Clock, bounds: Bounds) -> Result<Self> {
        let (db, held) = source.open()?;
        let attached = held.release().map_err(|error| failed(error.into()));
        let state = match (stored_state(&db).map_err(failed)?, &attached) {
            (Some(state), _) => state,
            (None, Ok(())) => begin(&db).map_err(failed)?,
            (None, Err(error)) => return Err(Error::from(error.body())),
        };
        let shared = Arc::new(Shared {
            slot: RwLock::new(Some(db)),
            time: Time::resume(clock, &state.time),
            recent: Recent::new(state.revision),
            room: Mutex::new(Room { bound: bounds.database, ..Room::default() }),
            ends: Mutex::default(),
            kept: Arc::default(),
            queue: Queue::new(&bounds),
            bounds,
        });
        let (sender, commands) = mpsc::channel();
        let writer = Writer::new(shared.clone(), source, held, commands, state, &attached);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| {
                Error::new(Kind::Unavailable, "cannot start the store's thread").because(error)
            })?;
        Ok(Self(Arc::new(Handle { shared, writer: Some((sender, thread)) })))
    }
}

/// Makes the tables of a new store.
fn begin(db: &Database) -> Result<State, redb::Error> {
    let state = State::new(&uuid::Uuid::now_v7().simple().to_string());
    let mut txn = db.begin_write()?;
    txn.set_two_phase_commit(true);
    Tables::open(&txn, 0)?.store(&state)?;
    txn.commit()?;
    Ok(state)
}

fn stored_state(db: &Database) -> Result<Option<State>, redb::Error> {
    State::read(&db.begin_read()?)
}

impl Handle {
    fn send(&self, command: Command) -> Result<()> {
        let (sender, _) = self.writer.as_ref().ok_or_else(closed)?;
        sender.send(command).map_err(|_| closed())
    }

    fn enqueue(&self, step: Step, done: oneshot::Sender<Result<Revision>>) -> Result<()> {
        match self.shared.queue.admit(step, done)? {
            Admitted::Now(pending) => self.send(Command::Commit(pending)),
            Admitted::First => self.send(Command::Wake),
            Admitted::Rides => Ok(()),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.writer.take() {
            drop(sender);
            // It has nothing to say but that it is done, and that the file is released.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// What bounds the next transaction. While somebody reads the audit log as it was, nothing is
    /// dropped from it for its age, and it may grow by a sixteenth.
    fn bounds(&self) -> Cow<'_, Bounds> {
        if self.kept.load(Ordering::Relaxed) == 0 {
            return Cow::Borrowed(&self.bounds);
        }
        let audit = self.bounds.audit + self.bounds.audit / 16;
        Cow::Owned(Bounds { audit, audit_age: Duration::MAX, ..self.bounds.clone() })
    }

    fn stored_state(&self) -> Result<Option<State>> {
        let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map_or(Ok(None), stored_state).map_err(failed)
    }

    /// Runs one short read transaction. While the database is being opened again, it waits.
    async fn read<T>(
        &self,
        read: impl Fn(&ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T> {
        let mut last = None;
        for _ in 0..READS {
            let result = {
                let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
                match slot.as_ref() {
                    Some(db) => db.begin_read().map_err(Into::into).and_then(|txn| read(&txn)),
                    None => Err(redb::Error::DatabaseClosed),
                }
            };
            match result {
                Ok(value) => return Ok(value),
                Err(error @ (redb::Error::PreviousIo | redb::Error::DatabaseClosed))
                    if !self.recent.is_closed() =>
                {
                    last = Some(error);
                }
                Err(error) => return Err(failed(error)),
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(last.map_or_else(closed, failed))
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn commit(&self, step: Step) -> Result<Revision> {
        step.check(VALUE)?;
        let (done, committed) = oneshot::channel();
        self.0.enqueue(step, done)?;
        committed.await.map_err(|_| closed())?
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let now = self.0.shared.time.now();
        let read = |txn: &ReadTransaction| {
            let row = txn.open_table(RECORDS)?.get(key)?;
            Ok(row.and_then(|row| live(key, row.value(), now)))
        };
        self.0.shared.read(read).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        order: Order,
    ) -> Result<Vec<Entry>> {
        let now = self.0.shared.time.now();
        // In the order of bytes, what is under a prefix is all that lies between these.
        let (first, end) = (format!("{prefix}."), format!("{prefix}/"));
        let (mut low, mut high) = match prefix {
            "" => (Bound::Unbounded, Bound::Unbounded),
            _ => (Bound::Included(first.as_str()), Bound::Excluded(end.as_str())),
        };
        match order {
            Order::Ascending
                if after > first.as_str() || prefix.is_empty() && !after.is_empty() =>
            {
                low = Bound::Excluded(after);
            }
            Order::Descending
                if !after.is_empty() && (prefix.is_empty() || after < end.as_str()) =>
            {
                high = Bound::Excluded(after);
            }
            _ => {}
        }
        if !is_range(low, high) {
            return Ok(Vec::new());
        }
        let read = |txn: &ReadTransaction| {
            let mut rows = txn.open_table(RECORDS)?.range::<&str>((low, high))?;
            let mut entries = Vec::new();
            while entries.len() < limit
                && let Some(row) = match order {
                    Order::Ascending => rows.next(),
                    Order::Descending => rows.next_back(),
                }
            {
                let (key, row) = row?;
                debug_assert!(is_under(key.value(), prefix), "the bounds are those of the prefix");
                entries.extend(live(key.value(), row.value(), now));
            }
            Ok(entries)
        };
        self.0.shared.read(read).await
    }

    async fn watch(&self, prefix: &str, since: Revision) -> Result<BoxStream<'static, Event>> {
        Ok(watch::watch(&self.0.shared, prefix, since))
    }

    async fn audit(&self, after: u64, limit: usize, order: Order) -> Result<Vec<Stored>> {
        let (low, high) = match order {
            Order::Ascending => (Bound::Excluded(after), Bound::Unbounded),
            Order::Descending if after == 0 => (Bound::Unbounded, Bound::Unbounded),
            Order::Descending => (Bound::Unbounded, Bound::Excluded(after)),
        };
        let read = |txn: &ReadTransaction| {
            let tables = [txn.open_table(REQUESTS)?, txn.open_table(REFUSALS)?];
            let [mut requests, mut refusals] =
                [tables[0].range::<u64>((low, high))?, tables[1].range::<u64>((low, high))?];
            let mut take = |is_refusal: bool| {
                let rows = if is_refusal { &mut refusals } else { &mut requests };
                let row = match order {
                    Order::Ascending => rows.next(),
                    Order::Descending => rows.next_back(),
                };
                row.transpose()
            };
            let (mut links, mut bytes) = (Vec::new(), 0);
            let mut next = [take(false)?, take(true)?];
            while links.len() < limit && bytes < audit::PAGE {
                let number = |row: &Option<(AccessGuard<'_, u64>, _)>| {
                    row.as_ref().map(|(number, _)| number.value())
                };
                let is_refusal = match (number(&next[0]), number(&next[1])) {
                    (None, None) => break,
                    (Some(request), Some(refusal)) => {
                        (refusal < request) == (order == Order::Ascending)
                    }
                    (request, _) => request.is_none(),
                };
                let row = next[usize::from(is_refusal)].take();
                next[usize::from(is_refusal)] = take(is_refusal)?;
                if let Some((_, row)) = row {
                    let link = Bytes::copy_from_slice(row.value().1);
                    bytes += link.len();
                    links.push(link);
                }
            }
            Ok(links)
        };
        let writer = lock(&self.0.shared.ends).head.writer.clone();
        let links = self.0.shared.read(read).await?.into_iter();
        let stored = |bytes| {
            let stored = Stored::parse(0, &writer, bytes)?;
            Ok(Stored { place: stored.link.number, ..stored })
        };
        links.map(stored).collect()
    }

    fn keep(&self) -> Result<Kept> {
        Kept::among(&self.0.shared.kept)
    }

    async fn ends(&self) -> Result<Ends> {
        Ok(lock(&self.0.shared.ends).clone())
    }

    fn room(&self) -> Room {
        *lock(&self.0.shared.room)
    }

    fn expect(&self) -> Coming {
        self.0.shared.queue.expect()
    }
}

fn is_range(low: Bound<&str>, high: Bound<&str>) -> bool {
    match (low, high) {
        (Bound::Included(low) | Bound::Excluded(low), Bound::Excluded(high)) => low < high,
        _ => true,
    }
}

fn live(key: &str, (revision, end, value): (u64, u64, &[u8]), now: u64) -> Option<Entry> {
    let entry = || Entry { key: key.to_owned(), value: Bytes::copy_from_slice(value), revision };
    (end > now).then(entry)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> Error {
    Error::new(Kind::Unavailable, "the state store is closed")
}

fn failed(error: redb::Error) -> Error {
    if is_room_error(&error) {
        let message = "the disk of the state store is full; make room";
        return Error::new(Kind::Full, message).because(error);
    }
    Error::new(Kind::Unavailable, "the state store failed; retry").because(error)
}

fn is_room_error(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(error) if is_no_room(error))
}

fn is_no_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};

    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
