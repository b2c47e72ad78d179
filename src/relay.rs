//! Stands in for a controller on a host whose controllers are elsewhere: serves the agent's socket,
//! and speaks to them over a broker.
//!
//! It runs without rights, so that nothing privileged reads what a broker sends; to the agent it is
//! a controller like any other. No question waits at the broker. What there is to do comes unasked,
//! with wakes, and waits here until the agent asks for it, in order of submission; asked for is
//! only what may have been missed. Nothing here outlives the process, and nothing here is a promise:
//! what is lost with it is not held any more, and so is handed out again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::select_all;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::broker::{Bus, LIMIT, Settings};
use crate::error::{Error, ErrorBody, Kind, Result};
use crate::link::bus::Subjects;
use crate::link::{About, Answer, Ask, Class, Desk, Head, MAX_FRAME, Next, Sealed};

mod attend;
mod inbox;
mod memory;

use memory::{Connection, Memory, job_of, over};

/// How long a question for work may wait.
const LONGEST: Duration = Duration::from_secs(30);
/// How many tasks of a class one answer carries.
const ROOM: usize = 64;
/// How many ends of audit chains one answer carries.
const HEADS: usize = 64;
/// How long the answer to a `Tell` may take: a controller waits 3 s for who reads slowly, and 4 s for
/// each other controller that it passes something on to.
const TELL: Duration = Duration::from_secs(20);
/// How long whoever ends may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running relay.
pub struct Relay {
    shared: Arc<Shared>,
    connections: AtomicU64,
    tasks: [AbortHandle; 2],
}

struct Shared {
    bus: Arc<Bus>,
    subjects: Subjects,
    memory: Mutex<Memory>,
    /// The host that it speaks for, from the first time that its agent says who it is.
    host: watch::Sender<Option<String>>,
    /// One for each class: there may be something for whoever waits.
    arrived: [Notify; Class::ALL.len()],
    /// There may be something to say of the host.
    news: Notify,
}

impl Relay {
    /// Connects as soon as it knows from an agent which host this is, and again whenever the
    /// connection is lost. Needs a runtime.
    pub fn start(settings: Settings) -> Result<Self> {
        settings.check()?;
        let shared = Arc::new(Shared {
            subjects: Subjects::of(&settings.namespace),
            bus: Bus::unconnected(settings),
            memory: Mutex::new(Memory::new()),
            host: watch::Sender::new(None),
            arrived: Default::default(),
            news: Notify::new(),
        });
        let keeping = tokio::spawn(attend::keep(shared.clone()));
        let attending = tokio::spawn(attend::attend(shared.clone()));
        let tasks = [keeping.abort_handle(), attending.abort_handle()];
        Ok(Self { shared, connections: AtomicU64::new(0), tasks })
    }

    /// Answers one connection of the agent.
    pub fn desk(&self) -> RelayDesk {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        RelayDesk { shared: self.shared.clone(), connection, called_off: BTreeSet::new() }
    }

    /// How it is, in a line for people.
    pub fn line(&self) -> String {
        let servers = self.shared.bus.settings.servers.join(", ");
        let broker = match self.shared.bus.line() {
            Ok(_) => format!("Connected to {servers}"),
            Err(_) => format!("Waits for the broker {servers}"),
        };
        match self.shared.memory().connections() {
            0 => format!("{broker}; no agent"),
            _ => broker,
        }
    }

    /// Says that the host has left, as far as anybody hears it.
    pub async fn stop(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        let is_there = self.shared.memory().connections() > 0;
        if is_there {
            drop(tokio::time::timeout(LAST_WORDS, attend::leave(&self.shared)).await);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has one of those who wait for each of `classes` look again.
    fn wake(&self, classes: &[Class]) {
        for class in classes {
            self.arrived[*class as usize].notify_last();
        }
    }

    /// Puts a question to a controller, whichever answers.
    async fn pass(&self, host: &str, ask: &Ask) -> Result<Answer> {
        let line = self.bus.line()?;
        let body = serde_json::to_vec(ask).map_err(|error| {
            Error::new(Kind::Internal, "cannot encode a question").because(error)
        })?;
        // Whoever tells goes no faster than the one who reads.
        let limit = if matches!(ask, Ask::Tell(_)) { TELL } else { LIMIT };
        let subject = self.subjects.ask(host);
        let answer = line.ask_within(limit, &subject, None, body.into()).await?.payload;
        if answer.len() > MAX_FRAME {
            return Err(nonsense(&format!("its {} bytes are more than {MAX_FRAME}", answer.len())));
        }
        let answer: Result<Answer, ErrorBody> =
            serde_json::from_slice(&answer).map_err(|error| nonsense(&error.to_string()))?;
        answer.map_err(Into::into)
    }
}

/// The relay's end of one agent connection. Who is there, the kernel has told.
pub struct RelayDesk {
    shared: Arc<Shared>,
    connection: Connection,
    /// What it was told that was called off.
    called_off: BTreeSet<Uuid>,
}

impl Drop for RelayDesk {
    fn drop(&mut self) {
        self.shared.memory().hung_up(self.connection);
        self.shared.news.notify_one();
    }
}

#[async_trait]
impl Desk for RelayDesk {
    async fn answer(&mut self, ask: Ask) -> Result<Answer> {
        if let Ask::Next(next) = ask {
            return self.next(next).await;
        }
        let host = self.shared.memory().host();
        let host = host.ok_or_else(|| {
            Error::new(Kind::Unavailable, "ask for work first, and say who you are")
        })?;
        let answer = self.shared.pass(&host, &ask).await?;
        match (&ask, &answer) {
            (Ask::Finish(reports), Answer::Done) => {
                self.shared.memory().reported(&over(reports));
                self.shared.news.notify_one();
                Ok(answer)
            }
            (Ask::Tell(_), Answer::Done | Answer::Unheard)
            | (Ask::Fetch { .. }, Answer::Part(_)) => Ok(answer),
            _ => Err(nonsense("it answers another question")),
        }
    }
}

impl RelayDesk {
    async fn next(&mut self, next: Next) -> Result<Answer> {
        let Next { holds, classes, most, done, about, wait_ms, .. } = next;
        let most = most.min(ROOM);
        let wait = Duration::from_millis(wait_ms).min(LONGEST);
        let until = Instant::now() + wait;
        let shared = self.shared.clone();
        let host = shared.memory().hear(self.connection, &holds, about.as_deref())?;
        shared.host.send_if_modified(|known| known.replace(host.clone()).is_none());
        shared.news.notify_one();

        let has_to_ask = about.is_some() || !done.is_empty() || wait.is_zero();
        let mut first = has_to_ask.then_some((done, about));
        loop {
            let arrived: Vec<_> = classes
                .iter()
                .map(|class| Box::pin(shared.arrived[*class as usize].notified()))
                .collect();
            let (mut tasks, mut heads) = (Vec::new(), Vec::new());
            let is_to_be_asked = shared.memory().is_to_be_asked(&classes);
            if is_to_be_asked || first.is_some() {
                let waits_here = !is_to_be_asked && !shared.memory().is_empty(&classes);
                // Where what comes next is here already, it is only told.
                let asked = if waits_here { &[][..] } else { &classes };
                let (done, about) = first.take().unwrap_or_default();
                (tasks, heads) = self.ask(&host, asked, most, done, about).await?;
            }
            if tasks.is_empty() {
                let taken = shared.memory().take(&classes, most);
                tasks.extend(taken.into_iter().map(|(_, task)| task));
            }
            let now = shared.memory().called_off();
            let is_news = classes.contains(&Class::Verdict) && !self.called_off.is_superset(&now);
            let is_over = classes.is_empty() || wait.is_zero();
            if is_over || is_news || !tasks.is_empty() || !heads.is_empty() {
                return Ok(self.answer_with(tasks, &classes, heads, now, wait.is_zero()));
            }
            if tokio::time::timeout_at(until, select_all(arrived)).await.is_err() {
                return Ok(self.answer_with(tasks, &classes, heads, now, false));
            }
        }
    }

    /// Asks a controller what to do next, which does not wait, and keeps what it hands out.
    async fn ask(
        &self,
        host: &str,
        classes: &[Class],
        most: usize,
        done: Vec<crate::link::Told>,
        about: Option<Box<About>>,
    ) -> Result<(Vec<Sealed>, Vec<Head>)> {
        let mut asking = Asking::of(&self.shared, classes);
        let reported = over(&done);
        let (holds, waits) = {
            let memory = self.shared.memory();
            (memory.holds(), memory.waits())
        };
        let classes_asked = classes.to_vec();
        let next = Next { holds, waits, classes: classes_asked, most, done, about, wait_ms: 0 };
        let answer = self.shared.pass(host, &Ask::Next(next)).await;
        asking.is_waited_for = true;
        let answer = answer?;
        let Answer::Tasks { mut tasks, mut has_more, mut heads, called_off } = answer else {
            return Err(nonsense("it answers another question"));
        };
        asking.is_answered = true;
        drop(asking);
        let room = most * classes.len();
        has_more |= tasks.len() > room;
        tasks.truncate(room);
        heads.truncate(HEADS);
        let mut memory = self.shared.memory();
        memory.reported(&reported);
        memory.call_off(&called_off);
        let tasks = memory.answered(classes, tasks, has_more);
        drop(memory);
        if has_more {
            self.shared.wake(classes);
        }
        if !called_off.is_empty() {
            self.shared.wake(&[Class::Verdict]);
        }
        Ok((tasks, heads))
    }

    /// Hands out `tasks`, with what was called off and was not told before on this connection; all
    /// of that to whoever asks `again` and again, for what is told to an agent that has yet to take
    /// note of the task is lost on it.
    fn answer_with(
        &mut self,
        tasks: Vec<Sealed>,
        classes: &[Class],
        heads: Vec<Head>,
        called_off: BTreeSet<Uuid>,
        again: bool,
    ) -> Answer {
        let is_new = |job: &&Uuid| again || !self.called_off.contains(*job);
        let told = called_off.iter().filter(is_new).map(Uuid::to_string).collect();
        self.called_off = called_off;
        let mut memory = self.shared.memory();
        if !tasks.is_empty() {
            memory.hand(self.connection, tasks.iter().filter_map(job_of));
        }
        let has_more = memory.has_more(classes);
        Answer::Tasks { tasks, has_more, heads, called_off: told }
    }
}

/// A question on its way. Should it not be answered, somebody has to ask again: whoever hears of
/// that, or another, where nobody is left to hear it.
struct Asking<'a> {
    shared: &'a Shared,
    classes: &'a [Class],
    is_waited_for: bool,
    is_answered: bool,
}

impl<'a> Asking<'a> {
    fn of(shared: &'a Shared, classes: &'a [Class]) -> Self {
        shared.memory().asks(classes);
        Self { shared, classes, is_waited_for: false, is_answered: false }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.shared.memory().doubt(self.classes);
        }
        if !self.is_waited_for {
            self.shared.wake(self.classes);
        }
    }
}

fn nonsense(why: &str) -> Error {
    Error::new(Kind::Unavailable, format!("a controller's answer cannot be used: {why}"))
}
