//! Records of a fleet in one JetStream stream, shared by its controllers. Needs a server from 2.12 on.
//!
//! A record is the last message of its subject, its revision the message's sequence. Reads are
//! direct gets; the only consumers are those behind watches. How steps are stored says
//! [`writer`], what is kept of the audit log [`chains`].
//!
//! What differs from a store in a file: lifetimes and ages run on the server's clock. What is read
//! may be a moment old where the stream has replicas, so that whatever has to be exact goes through
//! an expectation. A step that meets a conflict may leave its note. What an acknowledged step
//! survives depends on the server's `sync_interval` and on the replicas.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Message;
use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::audit::{Ends, Stored};
use super::queue::{Admitted, Queue};
use super::{Bounds, Coming, Condition, Entry, Event, Kept, Order, Revision, Room, Step, Store};
use crate::broker::{Bus, Line, Settings};
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};

mod alone;
mod chains;
mod flight;
mod jetstream;
mod objects;
mod open;
mod sending;
mod watching;
mod ways;
mod writer;

use alone::Echo;
use chains::Chains;
use jetstream::{header, is_marker, sequence};
pub use objects::NatsObjects;
use writer::{Command, Writer};

/// How many records a list asks for at a time.
const PAGE: usize = 1000;
/// How often the server is asked how much the stream takes, while it changes.
const MEASURE: Duration = Duration::from_secs(1);
/// How long whoever closes the store waits for what is on its way.
const CLOSE: Duration = Duration::from_secs(5);
/// What a message takes beside its value.
const AROUND: usize = 4096;

/// Cheap to clone. Close it, so that lazy steps are not lost.
#[derive(Clone)]
pub struct NatsStore(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    tasks: [AbortHandle; 2],
}

/// What the writer, the readers and the watchers have in common.
struct Shared {
    bus: Arc<Bus>,
    bounds: Bounds,
    clock: Clock,
    queue: Queue,
    /// How many read the audit log as it was when they began.
    kept: Arc<AtomicUsize>,
    room: Mutex<Room>,
    ends: Mutex<Ends>,
    /// The server's, in milliseconds since 1970, as last heard.
    time: AtomicU64,
    /// Told when it may have changed how much the stream takes.
    measure: Notify,
    /// Another controller of this name was seen to write.
    has_twin: AtomicBool,
    /// The newest revision that a watch has told of.
    newest: AtomicU64,
    /// The stream has lost what the server had acknowledged.
    is_taken_back: watch::Sender<bool>,
    is_closed: watch::Sender<bool>,
    /// What we are called among those who write.
    me: String,
    echo: Mutex<Echo>,
}

impl NatsStore {
    /// Connects, and makes the stream if there is none. Fails where the server or the stream that
    /// is there cannot keep the store, and changes nothing then.
    pub async fn open(settings: Settings, clock: Clock, bounds: Bounds) -> Result<Self> {
        settings.check()?;
        let line = Line::open(&settings).await?;
        let info = check(&line, &settings, &bounds).await?;
        let chains = Chains::load(&line, &settings.namespace, &settings.name).await?;
        let bus = Bus::new(settings, line);
        let shared = Arc::new(Shared {
            bus: bus.clone(),
            queue: Queue::new(&bounds),
            kept: Arc::default(),
            clock,
            room: Mutex::default(),
            ends: Mutex::new(chains.ends()),
            time: AtomicU64::new(0),
            measure: Notify::new(),
            has_twin: AtomicBool::new(false),
            newest: AtomicU64::new(0),
            is_taken_back: watch::Sender::new(false),
            is_closed: watch::Sender::new(false),
            me: uuid::Uuid::now_v7().simple().to_string(),
            echo: Mutex::default(),
            bounds: bounds.clone(),
        });
        lock(&shared.room).audit = chains.bytes();
        shared.take_measure(&info);
        let (commands, queue) = mpsc::unbounded_channel();
        tokio::spawn(Writer::new(shared.clone(), queue, chains).run());
        let name = bus.settings.name.clone();
        let found = shared.clone();
        let keeping = tokio::spawn(bus.keep(name, move |line| {
            let found = found.clone();
            async move { found.look_again(&line).await }
        }));
        let measuring = tokio::spawn(shared.clone().measure_on());
        let tasks = [keeping.abort_handle(), measuring.abort_handle()];
        Ok(Self(Arc::new(Handle { shared, commands, tasks })))
    }

    fn send(&self, command: Command) -> Result<()> {
        self.0.commands.send(command).map_err(|_| closed())
    }
}

/// Makes the streams of a fleet, where there are none, and names them. It takes an installer's rights
/// and nothing more.
pub async fn install(settings: Settings, bounds: &Bounds) -> Result<Vec<String>> {
    open::install(&settings, bounds).await
}

/// What the server says of the stream, if both are as they have to be.
async fn check(line: &Line, settings: &Settings, bounds: &Bounds) -> Result<Value> {
    open::check_server(line)?;
    open::records(settings, bounds).ensure(line).await
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.shared.is_closed.send_replace(true);
    }
}

impl Shared {
    fn stream(&self) -> &str {
        &self.bus.settings.namespace
    }

    fn subject(&self, key: &str) -> String {
        format!("{}.kv.{key}", self.stream())
    }

    /// The subjects of the keys under a prefix.
    fn pattern(&self, prefix: &str) -> String {
        let dot = if prefix.is_empty() { "" } else { "." };
        format!("{}.kv.{prefix}{dot}>", self.stream())
    }

    fn key<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let key = subject.strip_prefix(self.stream())?.strip_prefix(".kv.")?;
        (!key.starts_with('$')).then_some(key)
    }

    fn entry(&self, message: Message) -> Option<Entry> {
        let key = self.key(header(&message, "Nats-Subject")?)?.to_owned();
        let revision = sequence(&message)?;
        (!is_marker(&message)).then_some(Entry { key, value: message.payload, revision })
    }

    /// What bounds the audit log. While somebody reads it as it was, nothing is dropped from it for
    /// its age, and it may grow by a sixteenth.
    fn bounds(&self) -> Cow<'_, Bounds> {
        if self.kept.load(Ordering::Relaxed) == 0 {
            return Cow::Borrowed(&self.bounds);
        }
        let audit = self.bounds.audit + self.bounds.audit / 16;
        Cow::Owned(Bounds { audit, audit_age: Duration::MAX, ..self.bounds.clone() })
    }

    /// Whether server and stream are as they have to be on a new connection, and the stream has all
    /// that it had. One that has not is used no more: memory would go on from what is gone.
    async fn look_again(&self, line: &Line) -> Result<()> {
        let info = check(line, &self.bus.settings, &self.bounds).await?;
        let last = info["state"]["last_seq"].as_u64().unwrap_or_default();
        let mut is_taken_back = last < self.newest.load(Ordering::Relaxed);
        // A replica may answer with what it had a moment ago.
        for pause in [Duration::ZERO, MEASURE] {
            if is_taken_back {
                break;
            }
            tokio::time::sleep(pause).await;
            let chains = Chains::load(line, self.stream(), &self.bus.settings.name).await?;
            if !chains.ends().are_before(&lock(&self.ends)) {
                return Ok(());
            }
            is_taken_back = pause > Duration::ZERO;
        }
        self.is_taken_back.send_replace(true);
        let message = "the broker has lost what it had acknowledged: its stream ends before where \
                       it ended earlier";
        Err(Error::new(Kind::Unavailable, message))
    }

    /// Whether there is a broker, and a step that it can take.
    fn check(&self, step: &Step) -> Result<()> {
        step.check(self.bus.line()?.room.saturating_sub(AROUND))
    }

    /// Returns once the store is closed.
    async fn closed(&self) {
        // Where nobody can tell any more, it is.
        drop(self.is_closed.subscribe().wait_for(|is_closed| *is_closed).await);
    }

    /// Keeps up with how much the stream takes, which other controllers change as well.
    async fn measure_on(self: Arc<Self>) {
        loop {
            if !lock(&self.room).is_full {
                self.measure.notified().await;
            }
            tokio::time::sleep(MEASURE).await;
            let stream = self.stream();
            let Ok(line) = self.bus.line() else { continue };
            if let Ok(Ok(info)) = line.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await {
                self.take_measure(&info);
            }
        }
    }

    fn take_measure(&self, info: &Value) {
        let bytes = info["state"]["bytes"].as_u64().unwrap_or_default();
        let most = info["config"]["max_bytes"].as_u64().filter(|most| *most > 0);
        if let Some(now) = info["ts"].as_str().and_then(time) {
            self.time.store(now, Ordering::Relaxed);
        }
        let mut room = lock(&self.room);
        room.bound = most.unwrap_or(i64::MAX.unsigned_abs());
        room.records = bytes.saturating_sub(room.audit);
        room.is_full &= room.left() == 0;
    }
}

#[async_trait]
impl Store for NatsStore {
    async fn commit(&self, step: Step) -> Result<Revision> {
        let queue = &self.0.shared.queue;
        if let Err(error) = self.0.shared.check(&step) {
            // Whoever lets a step ride along does not come again with it.
            queue.lose(if step.is_lazy { step.notes.len() as u64 } else { 0 });
            return Err(error);
        }
        let (done, committed) = oneshot::channel();
        match queue.admit(step, done)? {
            Admitted::Now(pending) => self.send(Command::Commit(pending))?,
            Admitted::First => self.send(Command::Wake)?,
            Admitted::Rides => {}
        }
        committed.await.map_err(|_| closed())?
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let Shared { bus, .. } = &*self.0.shared;
        let shared = &self.0.shared;
        let last = bus.line()?.last(shared.stream(), &shared.subject(key)).await?;
        Ok(last.and_then(|message| shared.entry(message)))
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        order: Order,
    ) -> Result<Vec<Entry>> {
        let shared = &self.0.shared;
        let (line, stream) = (shared.bus.line()?, shared.stream());
        let mut names = line.names(stream, &shared.pattern(prefix)).await?;
        let after = if after.is_empty() { String::new() } else { shared.subject(after) };
        names.sort_unstable();
        match order {
            Order::Ascending => names.retain(|name| *name > after),
            Order::Descending => {
                names.retain(|name| after.is_empty() || *name < after);
                names.reverse();
            }
        }
        let mut entries: Vec<Entry> = Vec::new();
        // A name may stand for a deletion, so that a page of names may be less than one of entries.
        for page in names.chunks(limit.clamp(16, PAGE)) {
            let messages = line.last_of_each(stream, page).await?;
            entries.extend(messages.into_iter().filter_map(|message| shared.entry(message)));
            if entries.len() >= limit {
                break;
            }
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        if order == Order::Descending {
            entries.reverse();
        }
        entries.truncate(limit);
        Ok(entries)
    }

    fn pages<'a>(&'a self, prefix: &'a str, most: usize) -> BoxStream<'a, Result<Vec<Entry>>> {
        let pages = stream::try_unfold(None, move |names: Option<VecDeque<String>>| async move {
            let shared = &self.0.shared;
            let (line, stream) = (shared.bus.line()?, shared.stream());
            let mut names = match names {
                Some(names) => names,
                None => {
                    let mut names = line.names(stream, &shared.pattern(prefix)).await?;
                    names.sort_unstable();
                    names.into()
                }
            };
            while !names.is_empty() {
                let page: Vec<_> = names.drain(..most.clamp(1, PAGE).min(names.len())).collect();
                let messages = line.last_of_each(stream, &page).await?.into_iter();
                let mut entries: Vec<_> = messages.filter_map(|one| shared.entry(one)).collect();
                if !entries.is_empty() {
                    entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
                    return Ok(Some((entries, Some(names))));
                }
            }
            Ok(None)
        });
        pages.boxed()
    }

    async fn watch(&self, prefix: &str, since: Revision) -> Result<BoxStream<'static, Event>> {
        watching::watch(&self.0.shared, prefix, since).await
    }

    async fn audit(&self, after: u64, limit: usize, order: Order) -> Result<Vec<Stored>> {
        let shared = &self.0.shared;
        let line = shared.bus.line()?;
        chains::read(&line, shared.stream(), after, limit, order).await
    }

    fn keep(&self) -> Result<Kept> {
        Kept::among(&self.0.shared.kept)
    }

    async fn ends(&self) -> Result<Ends> {
        Ok(lock(&self.0.shared.ends).clone())
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn taken_back(&self) {
        let mut is_taken_back = self.0.shared.is_taken_back.subscribe();
        if is_taken_back.wait_for(|is_so| *is_so).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn room(&self) -> Room {
        let mut room = *lock(&self.0.shared.room);
        // What is asked of it while there is no broker does not get as far as the writer.
        room.is_audit_broken |= self.0.shared.bus.line().is_err();
        room
    }

    fn conditions(&self) -> Vec<Condition> {
        let Shared { bus, has_twin, .. } = &*self.0.shared;
        let settings = &bus.settings;
        let line = bus.line();
        let durable = (settings.replicas == 1 && !settings.is_synced).then_some(
            "a power cut at the broker may lose what it acknowledged in the last minutes: nobody \
             else keeps it, and the server does not tell how it syncs; set sync_interval: always \
             there and controller.nats.synced here, or use replicas",
        );
        let has_tls = line.as_ref().is_ok_and(|l| l.client.server_info().tls_required);
        let open = settings.in_the_open().filter(|_| !has_tls).map(|server| {
            format!(
                "the connection to {server} is not encrypted: whoever is on the way reads and \
                 changes what passes; set controller.nats.tls.cacert, or use a tls:// address"
            )
        });
        let refused = line.as_ref().ok().and_then(|line| line.refused()).map(|text| {
            format!(
                "the broker refused a right ({text}); compare with `osapi nats permissions --role \
                 controller`"
            )
        });
        let shared = has_twin.load(Ordering::Relaxed).then_some(
            "another controller of this name writes to the same audit log; give each its own \
             controller.nats.name",
        );
        let away = line.err().map(|error| error.to_string());
        let condition = |name, fault, is_warning| Condition { name, fault, is_warning };
        vec![
            condition("broker", away, false),
            condition("broker.durable", durable.map(str::to_owned), true),
            condition("broker.encrypted", open, true),
            condition("broker.name", shared.map(str::to_owned), true),
            condition("broker.rights", refused, true),
        ]
    }

    fn expect(&self) -> Coming {
        self.0.shared.queue.expect()
    }

    async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.send(Command::Close(done)).is_ok() {
            // Where it takes longer, the broker is away.
            drop(tokio::time::timeout(CLOSE, closed).await);
        }
        self.0.shared.is_closed.send_replace(true);
    }
}

/// Milliseconds since 1970 of a time as the server writes it, in UTC.
fn time(text: &str) -> Option<u64> {
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let (hours, minutes, seconds) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    // Years from March on, so that a leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    // Of 1 January 1970, counted like that.
    let days = days.checked_sub(719_468)?;
    Some((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn closed() -> Error {
    Error::new(Kind::Unavailable, "the state store is closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::rfc3339;

    #[test]
    fn times_of_the_server_are_read_as_they_are_written() {
        for wall in [0, 951_782_400_000, 1_795_289_351_000, 4_102_444_799_000] {
            assert_eq!(time(&rfc3339(wall)), Some(wall));
        }
        assert_eq!(time("2026-11-21T19:29:11.5Z"), time("2026-11-21T19:29:11.123456789Z"));
        assert_eq!(time("now"), None);
    }
}
