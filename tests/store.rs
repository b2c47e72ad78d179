//! The promises in `osapi::store`: one suite for every backend, then what is each one's own.

mod alone;
mod audit;
mod connecting;
mod nats;
mod noting;
mod objects;
mod recovery;
mod rights;
mod suite;

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use osapi::clock::Clock;
use osapi::error::Kind;
use osapi::store::audit::{Entry as Request, Note, Stored, Verdict, verify};
use osapi::store::redb::RedbStore;
use osapi::store::{Bounds, Entry, Expect, Order, Step, Store};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

/// A disk in memory that can be made to refuse writes, and outlives the database on it.
#[derive(Clone, Debug)]
struct Disk {
    memory: Arc<InMemoryBackend>,
    /// How many more writes there are before they fail; below 0 they do.
    left: Arc<AtomicI64>,
    error: Arc<Mutex<io::ErrorKind>>,
}

impl Disk {
    fn new() -> Self {
        Self {
            memory: Arc::default(),
            left: Arc::new(AtomicI64::new(i64::MAX)),
            error: Arc::new(Mutex::new(io::ErrorKind::StorageFull)),
        }
    }

    fn fail_after(&self, writes: i64, error: io::ErrorKind) {
        *self.error.lock().unwrap() = error;
        self.left.store(writes, Ordering::SeqCst);
    }

    fn heal(&self) {
        self.left.store(i64::MAX, Ordering::SeqCst);
    }

    fn write_one(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err((*self.error.lock().unwrap()).into());
        }
        Ok(())
    }

    fn open(&self, clock: &Clock, bounds: Bounds) -> RedbStore {
        let disk = self.clone();
        RedbStore::with_backend(move || Ok(disk.clone()), clock.clone(), bounds).unwrap()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.write_one()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_one()?;
        self.memory.write(offset, data)
    }
}

async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let entry = store.get(key).await.unwrap()?;
    Some(String::from_utf8(entry.value.to_vec()).unwrap())
}

async fn list(store: &dyn Store, prefix: &str, after: &str, limit: usize) -> Vec<Entry> {
    store.list(prefix, after, limit, Order::Ascending).await.unwrap()
}

fn keys(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

async fn links(store: &dyn Store) -> Vec<Stored> {
    let (mut links, mut after) = (Vec::new(), 0);
    loop {
        let page = store.audit(after, usize::MAX, Order::Ascending).await.unwrap();
        let Some(last) = page.last() else { return links };
        after = last.place;
        links.extend(page);
    }
}

async fn verdict(store: &dyn Store) -> Verdict {
    let (ends, links) = (store.ends().await.unwrap(), links(store).await);
    verify(&ends, links.iter().map(|link| &*link.bytes), &[])
}

#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
fn request(id: impl ToString) -> Note {
    Note::Entry(Request {
        id: id.to_string(),
        at: 1,
        user: "alice".to_owned(),
        roles: vec!["admin".to_owned()],
        method: "POST".to_owned(),
        path: "/api/agent/web/drain".to_owned(),
        op: "agent.drain".to_owned(),
        source: "unix".to_owned(),
        job: None,
        about: None,
        trace: None,
        code: Some(200),
        ms: Some(1),
        more: None,
    })
}

fn refusal(id: impl ToString) -> Note {
    let Note::Entry(mut entry) = request(id) else { unreachable!() };
    (entry.user, entry.code) = ("mallory".to_owned(), Some(403));
    Note::Entry(entry)
}

fn look(id: impl ToString) -> Note {
    let Note::Entry(mut entry) = request(id) else { unreachable!() };
    (entry.method, entry.path) = ("GET".to_owned(), "/api/job".to_owned());
    Note::Entry(entry)
}

/// The ids of the requests that the log has.
fn noted(links: &[Stored]) -> Vec<String> {
    let notes = links.iter().flat_map(|stored| &stored.link.notes);
    let id = |note: &Note| match note {
        Note::Entry(entry) => Some(entry.id.clone()),
        _ => None,
    };
    notes.filter_map(id).collect()
}

fn put(key: impl Into<String>) -> Step {
    Step::new().put(key, "x", Expect::Anything)
}

/// Repeats a step until it is taken; it has to fail as expected until then.
async fn until_taken(store: &dyn Store, step: Step, expected: &[Kind]) {
    loop {
        match store.commit(step.clone()).await {
            Ok(_) => return,
            Err(error) => assert!(expected.contains(&error.kind()), "{error:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
