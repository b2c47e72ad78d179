//! The one task that writes.
//!
//! It takes every step that is waiting and has them stored together. A step of one record is one
//! message, whose expectation makes it a transaction; a step of several is an atomic batch, and so
//! are many steps at once where the server syncs each message by itself. The link of the audit
//! chain goes ahead of its steps on the same connection, without waiting for it, so that the server
//! has it first.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::error::Elapsed;

use super::alone::Shown;
use super::chains::{Chains, has_several};
use super::flight::{Answers, Flight};
use super::jetstream::{Acks, Outgoing};
use super::ways::Ways;
use super::{Shared, lock};
use crate::broker::Line;
use crate::error::{Error, Kind, Result};
use crate::store::audit::{Chain, Note};
use crate::store::queue::{Group, LAZY, Pending, mean_with};
use crate::store::{Step, WRITES, Write};

mod noting;

use noting::{Doubtful, Noting};

/// How many steps go together, and how many bytes.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 8 << 20;
/// How many go together where the server has as much work with a message of a large group as of a
/// small one: so many that their link counts for little, and so few that others are on their way
/// while those of a group are seen to.
const GROUP_OF_SINGLE: usize = 96;
/// How often in a row others are let go without anything new coming of it.
const TURNS: u32 = 2;
/// From this many messages on, sharing one batch is cheaper than a flush for each of them, where the
/// server makes one.
const BATCH_FROM: usize = 16;
/// How many messages a batch may have, into which a whole step has to go; the server takes 1,000.
pub(super) const BATCH: usize = 900;
const _: () = assert!(WRITES < BATCH);
/// How often it is looked whether what was wrong still is.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is looked for links that are too old, though none is added.
const RETAIN: Duration = Duration::from_hours(1);
pub(super) enum Command {
    Commit(Pending),
    /// There are lazy steps.
    Wake,
    /// Ends, once all that waits is stored.
    Close(oneshot::Sender<()>),
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// What is still to be told of the group before.
    answers: Answers,
    /// On the connection that was written to last.
    acks: Option<Acks>,
    shown: Shown,
    chains: Chains,
    /// Whether `chains` is what the stream has.
    is_known: bool,
    /// Notes of steps that stand without them.
    owed: Vec<Note>,
    /// What may be noted or not.
    doubtful: Option<Doubtful>,
    mean: Duration,
    ways: Ways,
    /// When the lazy steps go.
    due: Option<Instant>,
    /// When it is looked whether all is well again; nothing while it is.
    look: Option<Instant>,
    retain: Instant,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
        chains: Chains,
    ) -> Self {
        Self {
            shared,
            commands,
            answers: Answers::default(),
            acks: None,
            shown: Shown::default(),
            chains,
            is_known: true,
            owed: Vec::new(),
            doubtful: None,
            mean: Duration::ZERO,
            ways: Ways::default(),
            due: None,
            look: None,
            retain: Instant::now() + RETAIN,
        }
    }

    pub(super) async fn run(mut self) {
        let mut closing = None;
        while closing.is_none() {
            match self.next().await {
                Ok(Some(Command::Wake)) => self.wake(),
                Ok(Some(Command::Commit(first))) => {
                    let group = self.gather(first, &mut closing).await;
                    self.round(group).await;
                }
                Ok(Some(Command::Close(closed))) => closing = Some(closed),
                Ok(None) => break,
                Err(_) => self.tick().await,
            }
        }
        while self.shared.queue.has_lazy() {
            self.round(Vec::new()).await;
        }
        self.answers.tell();
        self.shared.leave(&self.shown).await;
        if let Some(closed) = closing {
            // Whoever asked may have stopped waiting.
            let _ = closed.send(());
        }
    }

    /// What is to be done next; an error where it is time for something.
    async fn next(&mut self) -> Result<Option<Command>, Elapsed> {
        if let Ok(command) = self.commands.try_recv() {
            return Ok(Some(command));
        }
        self.answers.tell();
        let until = [self.due, self.look].into_iter().flatten().min();
        let until = until.map_or(self.retain, |until| until.min(self.retain));
        tokio::time::timeout_at(until.into(), self.commands.recv()).await
    }

    fn wake(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + LAZY);
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        if self.look.is_some_and(|look| look <= now) {
            self.look().await;
        }
        if self.due.is_some_and(|due| due <= now) {
            self.round(Vec::new()).await;
        }
        if self.retain <= now {
            self.retain = now + RETAIN;
            let age = self.shared.bounds.audit_age;
            let time = self.shared.time.load(Ordering::Relaxed);
            if Chain::ALL.iter().any(|chain| self.chains.is_stale(*chain, age, time)) {
                self.owed.push(Note::Event(json!({ "event": "audit_retention" })));
                self.round(Vec::new()).await;
            }
        }
    }

    async fn gather(
        &mut self,
        first: Pending,
        closing: &mut Option<oneshot::Sender<()>>,
    ) -> Vec<Pending> {
        let shared = self.shared.clone();
        let is_single_faster = self.ways.is_single_faster();
        let most = if is_single_faster { GROUP_OF_SINGLE } else { GROUP };
        let mut group = Group::new(most, GROUP_BYTES);
        group.add(first, &shared.queue);
        let mut turns = 0;
        while !group.is_full() && closing.is_none() {
            let command = match self.commands.try_recv() {
                Ok(command) => Some(command),
                // Whoever is about to commit is let go first, but nobody is waited for.
                Err(_) if is_single_faster && turns < TURNS => {
                    turns += 1;
                    tokio::task::yield_now().await;
                    continue;
                }
                Err(_) if is_single_faster => None,
                Err(_) => match group.patience(&shared.queue, self.mean) {
                    Some(until) => {
                        self.answers.tell();
                        let next = tokio::time::timeout_at(until.into(), self.commands.recv());
                        next.await.ok().flatten()
                    }
                    None => None,
                },
            };
            match command {
                Some(Command::Commit(pending)) => {
                    turns = 0;
                    group.add(pending, &shared.queue);
                }
                Some(Command::Wake) => self.wake(),
                Some(Command::Close(closed)) => *closing = Some(closed),
                None => break,
            }
        }
        group.into_steps()
    }

    /// Has a group stored, with the lazy steps that wait, and answers.
    async fn round(&mut self, mut group: Vec<Pending>) {
        let (lazy, rest) = self.shared.queue.take_lazy(GROUP);
        group.extend(lazy);
        self.due = rest.then(Instant::now);
        let group = self.admit(group);
        if group.is_empty() && self.owed.is_empty() {
            return;
        }
        let started = Instant::now();
        let answers = self.answers.clone();
        let (steps, mut flight) = Flight::of(group, answers.clone());
        lock(&self.shared.echo).begin();
        match answers.tell_while(self.commit(&steps, &mut flight)).await {
            Ok(()) => {
                let failure = flight.failure(is_failure);
                self.settle(&steps, &flight, started.elapsed());
                lock(&self.shared.echo).settle(failure.is_none());
                if let Some(kind) = failure {
                    self.is_ill(kind);
                }
                flight.land();
            }
            Err(error) => {
                if is_failure(error.kind()) {
                    tracing::warn!(error = ?error, "a commit failed");
                    self.is_ill(error.kind());
                }
                lock(&self.shared.echo).settle(false);
                self.shared.queue.refuse(flight.back(steps), &error);
            }
        }
    }

    /// Turns away what there is no room for.
    fn admit(&self, group: Vec<Pending>) -> Vec<Pending> {
        let room = *lock(&self.shared.room);
        let mut used = room.records + room.audit;
        let (mut admitted, mut refused) = (Vec::new(), Vec::new());
        for pending in group {
            let step = &pending.step;
            let size: u64 =
                step.writes.iter().filter(|write| write.value.is_some()).map(cost).sum();
            // What is kept back lets work that was accepted be ended.
            let kept_back = if step.is_owed { 0 } else { room.bound / 16 };
            if size > 0 && used + size > room.bound - kept_back {
                refused.push(pending);
            } else {
                used += size;
                admitted.push(pending);
            }
        }
        if !refused.is_empty() {
            lock(&self.shared.room).is_full = true;
            self.shared.measure.notify_one();
            let message = "the store has as much as its stream may hold; delete jobs";
            self.shared.queue.refuse(refused, &Error::new(Kind::Full, message));
        }
        admitted
    }

    /// Has the steps stored, or says why nothing became of any unless the error is `Unavailable`.
    async fn commit(&mut self, steps: &[Step], flight: &mut Flight) -> Result<()> {
        let line = self.shared.bus.line()?;
        self.find_chains(&line).await?;
        match self.shared.show(&line, &mut self.shown).await {
            // What makes room, or was promised, may still fit, and others find out all the same.
            Err(error) if error.kind() == Kind::Full && steps.iter().any(Step::is_urgent) => {}
            shown => shown?,
        }
        let mut noting = self.noting(&line, steps).await?;
        if has_several(&noting.links) {
            self.link_ahead(&line, &mut noting, (steps, flight)).await?;
        }
        self.store(&line, noting, (steps, flight)).await
    }

    /// Has the steps stored with what they are noted in.
    async fn store(
        &mut self,
        line: &Arc<Line>,
        mut noting: Noting,
        (steps, flight): (&[Step], &mut Flight),
    ) -> Result<()> {
        let count: usize = steps.iter().map(|step| step.writes.len()).sum();
        let is_many = count >= BATCH_FROM;
        let has_choice = is_many && steps.iter().all(|step| step.writes.len() < 2);
        let is_batch = if has_choice {
            self.ways.is_batch()
        } else {
            is_many || steps.len() == 1 && count > 1
        };
        let started = Instant::now();
        if is_batch && noting.next.is_some() && count + noting.links.len() <= BATCH {
            match self.as_batch(line, &noting.links, (steps, flight)).await {
                Ok(()) => {
                    if has_choice {
                        self.ways.took(true, count, started.elapsed());
                    }
                    self.noted(&mut noting);
                    self.bury(line, noting.gone).await;
                    return Ok(());
                }
                // One of them does not fit; each must answer for itself.
                Err(error) if error.kind() == Kind::Conflict => {}
                // What makes room, or was promised, may still fit.
                Err(error) if error.kind() == Kind::Full && steps.iter().any(Step::is_urgent) => {}
                Err(error) => {
                    self.doubt(noting, Vec::new());
                    return Err(error);
                }
            }
        }
        let mut acks = self.acks.take();
        let linked = match Acks::on(line, &mut acks).await {
            Ok(on) => {
                let (shared, links) = (self.shared.clone(), std::mem::take(&mut noting.links));
                let noted = || self.noted(&mut noting);
                shared.one_by_one(line, on, links, (steps, flight), noted).await
            }
            Err(error) => {
                self.owe(noting.owed);
                return Err(error);
            }
        };
        self.acks = acks;
        if has_choice && !is_batch {
            self.ways.took(false, count, started.elapsed());
        }
        match linked {
            Ok(()) => self.bury(line, noting.gone).await,
            Err(error) => self.link_again(line, error, noting, (steps, flight)).await,
        }
        Ok(())
    }

    async fn as_batch(
        &self,
        line: &Line,
        links: &[Outgoing],
        (steps, flight): (&[Step], &mut Flight),
    ) -> Result<()> {
        let writes = || steps.iter().flat_map(|step| &step.writes);
        let messages = writes().map(|write| self.shared.message(write, None));
        let last = line.batch(links.iter().map(Outgoing::copy).chain(messages).collect()).await?;
        // A batch is stored without anything in between.
        let records: Vec<_> = links.iter().map(|_| None).chain(writes().map(Some)).collect();
        let mut revision = last - writes().count() as u64;
        lock(&self.shared.echo).stored_all(last, records.into_iter());
        for (place, step) in steps.iter().enumerate() {
            revision += step.writes.len() as u64;
            flight.stands(place, revision);
        }
        Ok(())
    }

    fn settle(&mut self, steps: &[Step], flight: &Flight, took: Duration) {
        self.mean = mean_with(self.mean, took);
        let bytes: u64 = flight.stored(steps).flat_map(|step| &step.writes).map(cost).sum();
        {
            let mut room = lock(&self.shared.room);
            room.records += bytes;
            room.figures.commits += 1;
            room.figures.commit_seconds += took.as_secs_f64();
            room.figures.steps += flight.stored(steps).count() as u64;
            room.figures.bytes += bytes;
        }
        self.shared.measure.notify_one();
        if flight.stored(steps).any(|step| !step.is_urgent()) {
            self.is_well();
        }
    }

    fn is_ill(&mut self, kind: Kind) {
        self.look = Some(Instant::now() + LOOK);
        let is_full = kind == Kind::Full;
        let mut room = lock(&self.shared.room);
        room.figures.failures += 1;
        (room.is_full, room.is_audit_broken) = (is_full, !is_full);
        drop(room);
        self.shared.measure.notify_one();
    }

    fn is_well(&mut self) {
        self.look = None;
        let mut room = lock(&self.shared.room);
        (room.is_full, room.is_audit_broken) = (false, false);
    }

    /// Tries whether what was wrong still is.
    async fn look(&mut self) {
        self.look = Some(Instant::now() + LOOK);
        let Ok(line) = self.shared.bus.line() else { return };
        self.is_known = false;
        if self.find_chains(&line).await.is_ok() {
            lock(&self.shared.room).is_audit_broken = false;
            self.look = None;
        }
    }
}

/// Whether it says that the store is not well.
fn is_failure(kind: Kind) -> bool {
    !matches!(kind, Kind::Conflict | Kind::TooLarge | Kind::Internal)
}

/// About what a record takes of the stream.
fn cost(write: &Write) -> u64 {
    (write.key.len() + write.value.as_ref().map_or(0, bytes::Bytes::len)) as u64 + 128
}
