//! The one thread that writes.
//!
//! It takes every step that is waiting, commits them in one transaction, and only then answers, so
//! that the cost of a flush is shared by everyone who waited for the last. When a commit fails, the
//! engine refuses everything after; so the database is opened again, and what it then has says
//! whether the transaction took effect.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::held::Held;
use super::open::Source;
use super::tables::{Applied, State, Tables};
use super::time::Time;
use super::{Shared, failed, is_room_error, lock, stored_state};
use crate::error::{Error, Kind, Result};
use crate::store::Step;
use crate::store::audit::Note;
use crate::store::queue::{Group, LAZY, Pending, mean_with};

/// Bounds the work of one transaction, and with it the time others wait.
const GROUP: usize = 512;
/// The same in bytes.
const GROUP_BYTES: usize = 16 << 20;
/// How long nothing new is tried after a commit has failed.
const PAUSE: Duration = Duration::from_millis(200);
/// How often it is looked whether what was wrong still is.
const LOOK: Duration = Duration::from_millis(500);

pub(super) enum Command {
    Commit(Pending),
    /// There are lazy steps.
    Wake,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    source: Source,
    commands: Receiver<Command>,
    state: State,
    /// What the database writes to; takes nothing until it is released.
    held: Held,
    /// It could not be released, so that the database can only be read.
    is_detached: bool,
    /// The running mean of what a commit takes.
    mean: Duration,
    /// When the lazy steps go.
    due: Option<Instant>,
    /// Why nothing new is taken, and until when.
    pause: Option<(Instant, Error)>,
    /// The same for steps that make room, or that are owed.
    pause_all: Option<(Instant, Error)>,
    /// Why the last commit failed, until one succeeds.
    fault: Option<Error>,
    /// When it is looked whether all is well again; nothing while it is.
    look: Option<Instant>,
    has_reserve: bool,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        source: Source,
        held: Held,
        commands: Receiver<Command>,
        state: State,
        attached: &Result<()>,
    ) -> Self {
        let (mean, due, pause, pause_all, look) = (Duration::ZERO, None, None, None, None);
        let mut writer = Self {
            shared,
            source,
            commands,
            state,
            held,
            is_detached: false,
            mean,
            due,
            pause,
            pause_all,
            fault: None,
            look,
            has_reserve: false,
        };
        writer.check_room();
        writer.show();
        if let Err(error) = attached {
            writer.is_detached = true;
            writer.is_ill(error, error.kind() == Kind::Full);
        }
        writer
    }

    pub(super) fn run(mut self) {
        loop {
            let until = [self.due, self.look].into_iter().flatten().min();
            let first = match until {
                None => self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => {
                    self.commands.recv_timeout(until.saturating_duration_since(Instant::now()))
                }
            };
            match first {
                Ok(Command::Wake) => {
                    self.due.get_or_insert_with(|| Instant::now() + LAZY);
                }
                Ok(Command::Commit(first)) => {
                    let group = self.gather(first);
                    self.round(group);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let now = Instant::now();
                    if self.look.is_some_and(|look| look <= now) {
                        self.look();
                    }
                    if self.due.is_some_and(|due| due <= now) {
                        self.round(Vec::new());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        while self.shared.queue.has_lazy() {
            self.round(Vec::new());
        }
        self.shared.recent.close();
        *self.shared.slot.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Takes what waits, and waits for those who are on their way.
    fn gather(&mut self, first: Pending) -> Vec<Pending> {
        let queue = &self.shared.queue;
        let mut group = Group::new(GROUP, GROUP_BYTES);
        group.add(first, queue);
        while !group.is_full() {
            let command = self.commands.try_recv().ok().or_else(|| {
                let until = group.patience(queue, self.mean)?;
                let left = until.saturating_duration_since(Instant::now());
                self.commands.recv_timeout(left).ok()
            });
            match command {
                Some(Command::Commit(pending)) => group.add(pending, queue),
                Some(Command::Wake) => {
                    self.due.get_or_insert_with(|| Instant::now() + LAZY);
                }
                None => break,
            }
        }
        group.into_steps()
    }

    /// Commits a group, with the lazy steps that wait.
    fn round(&mut self, mut group: Vec<Pending>) {
        let (lazy, rest) = self.shared.queue.take_lazy(GROUP);
        group.extend(lazy);
        self.due = rest.then(Instant::now);
        let group = self.admit(group);
        if group.is_empty() {
            return;
        }
        let Err((error, group)) = self.commit(group) else { return };
        // What makes room, or was promised, may still fit.
        let (urgent, new): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|pending| pending.step.is_urgent());
        self.shared.queue.refuse(new, &error);
        if urgent.is_empty() {
            return;
        }
        let result = match error.kind() {
            Kind::Full => self.commit(urgent),
            _ => Err((Error::from(error.body()), urgent)),
        };
        if let Err((error, urgent)) = result {
            self.pause_all = Some((Instant::now() + PAUSE, Error::from(error.body())));
            self.shared.queue.refuse(urgent, &error);
        }
    }

    /// Turns away what cannot be taken now, without trying.
    fn admit(&mut self, group: Vec<Pending>) -> Vec<Pending> {
        let now = Instant::now();
        self.pause.take_if(|(until, _)| *until <= now);
        self.pause_all.take_if(|(until, _)| *until <= now);
        let again = |error: &Error| Error::from(error.body());
        let (mut new, mut all) = (None, None);
        if self.is_detached {
            (new, all) = (Some(self.detached()), Some(self.detached()));
        } else if !self.check_room() {
            new = Some(no_room());
        }
        let new = new.or_else(|| self.pause.as_ref().map(|(_, error)| again(error)));
        let all = all.or_else(|| self.pause_all.as_ref().map(|(_, error)| again(error)));
        if new.is_none() && all.is_none() {
            return group;
        }
        let (urgent, others): (Vec<_>, Vec<_>) =
            group.into_iter().partition(|pending| pending.step.is_urgent());
        let mut admitted = Vec::new();
        for (steps, error) in [(urgent, all), (others, new)] {
            match error {
                Some(error) => self.shared.queue.refuse(steps, &error),
                None => admitted.extend(steps),
            }
        }
        admitted
    }

    /// Commits and answers, or gives the steps back, none of which has then taken effect unless
    /// the error is `Unavailable`.
    fn commit(&mut self, group: Vec<Pending>) -> Result<(), (Error, Vec<Pending>)> {
        if self.is_detached {
            return Err((self.detached(), group));
        }
        let started = Instant::now();
        let lost = self.shared.queue.lost();
        let steps = || group.iter().map(|pending| &pending.step);
        match self.transact(steps, lost, false) {
            Ok(applied) => {
                self.settle(applied, lost, started.elapsed(), group);
                Ok(())
            }
            Err(failure) => match self.recover(failure) {
                Ok(applied) => {
                    self.settle(applied, lost, started.elapsed(), group);
                    Ok(())
                }
                Err(error) => Err((error, group)),
            },
        }
    }

    /// Why nothing can be written while the database can only be read.
    fn detached(&self) -> Error {
        match &self.fault {
            Some(error) => Error::from(error.body()),
            None => Error::new(Kind::Unavailable, "the state store cannot be written; retry"),
        }
    }

    /// One transaction; nothing is flushed when there is nothing to write.
    fn transact<'a, S: Iterator<Item = &'a Step>>(
        &self,
        steps: impl Fn() -> S,
        lost: u64,
        is_probe: bool,
    ) -> Result<Applied, Failure> {
        let slot = self.shared.slot.read().unwrap_or_else(PoisonError::into_inner);
        let db = slot.as_ref().ok_or(redb::Error::DatabaseClosed)?;
        let mut txn = db.begin_write().map_err(redb::Error::from)?;
        // Values come from outside. Without this, whoever chooses them and can crash the process
        // at the right moment might make a torn commit look whole.
        txn.set_two_phase_commit(true);
        let time = &self.shared.time;
        let mut notes = Vec::new();
        if let Some(step) = Time::step(&self.state.time, &time.moment()) {
            notes.push(Note::Event(json!({ "clock_step_ms": step })));
        }
        if lost > 0 {
            notes.push(Note::Event(json!({ "lost_notes": lost })));
        }
        let applied = Tables::open(&txn, time.now())?.apply(
            &self.state,
            steps(),
            &notes,
            time,
            &self.shared.bounds(),
        )?;
        if !is_probe && !applied.state.differs(&self.state) {
            return Ok(applied);
        }
        match txn.commit() {
            Ok(()) => Ok(applied),
            Err(error) => Err(Failure { error: error.into(), attempted: Some(Box::new(applied)) }),
        }
    }

    /// Makes what is durable known, and answers.
    fn settle(&mut self, applied: Applied, lost: u64, took: Duration, group: Vec<Pending>) {
        let Applied { state, results, events, steps, bytes } = applied;
        if state.differs(&self.state) {
            self.mean = mean_with(self.mean, took);
            self.shared.queue.told(lost);
            let mut room = lock(&self.shared.room);
            room.figures.commits += 1;
            room.figures.commit_seconds += took.as_secs_f64();
            room.figures.steps += steps;
            room.figures.bytes += bytes;
            room.figures.lost_notes += lost;
            drop(room);
            if group.iter().any(|pending| !pending.step.is_urgent()) {
                self.is_well();
            }
            let latest = state.revision;
            self.adopt(state);
            self.shared.recent.publish(events, latest);
        }
        for (pending, result) in group.into_iter().zip(results) {
            // Whoever asked may have stopped waiting; the step counts all the same.
            let _ = pending.done.send(result);
        }
    }

    /// Opens the database again after a failure. Returns the transaction if it took effect after
    /// all, else why it did not, or may not have.
    fn recover(&mut self, failure: Failure) -> Result<Applied> {
        let Failure { error, attempted } = failure;
        let is_full = is_room_error(&error);
        let error = failed(error);
        tracing::warn!(error = ?error, "a commit failed; the store is opened again");
        lock(&self.shared.room).figures.failures += 1;
        if is_full {
            self.source.release();
            self.has_reserve = false;
        }
        let reopened = self.reopen();
        if let (Ok(state), Some(applied)) = (&reopened, attempted)
            && state.serial == applied.state.serial
        {
            return Ok(*applied);
        }
        self.is_ill(&error, is_full);
        match reopened {
            Ok(state) => {
                self.resume(state);
                Err(error)
            }
            // Whether the transaction took effect can no longer be told.
            Err(cause) if !is_full => Err(error.because(cause)),
            Err(cause) => {
                Err(Error::new(Kind::Unavailable, "the state store failed; retry").because(cause))
            }
        }
    }

    /// Opens the database again and says what it has; whoever reads meanwhile waits. When the
    /// disk takes no writes, it can at least be read, until [`Self::attach`] succeeds.
    fn reopen(&mut self) -> Result<State> {
        let slot = self.shared.slot.write();
        let mut slot = slot.unwrap_or_else(PoisonError::into_inner);
        // Both handles at once would each write as if alone.
        *slot = None;
        self.is_detached = true;
        let (db, held) = self.source.open()?;
        let state = stored_state(&db).map_err(failed)?;
        *slot = Some(db);
        drop(slot);
        self.held = held;
        lock(&self.shared.room).figures.reopened += 1;
        self.attach()?;
        state.ok_or_else(|| Error::new(Kind::Unavailable, "the state store is empty"))
    }

    fn attach(&mut self) -> Result<()> {
        self.held.release().map_err(|error| failed(error.into()))?;
        self.is_detached = false;
        Ok(())
    }

    /// Goes on from a state that came about without this thread knowing how.
    fn resume(&mut self, state: State) {
        if state.serial != self.state.serial {
            self.shared.recent.restart(state.revision);
            self.adopt(state);
        }
    }

    /// Tries whether what was wrong still is.
    fn look(&mut self) {
        self.look = Some(Instant::now() + LOOK);
        let is_open = self.shared.slot.read().unwrap_or_else(PoisonError::into_inner).is_some();
        if self.is_detached {
            let attached =
                if is_open { self.attach().map(|()| None) } else { self.reopen().map(Some) };
            match attached {
                Ok(Some(state)) => self.resume(state),
                Ok(None) => match self.shared.stored_state() {
                    Ok(Some(state)) => self.resume(state),
                    Ok(None) | Err(_) => return,
                },
                Err(error) => return tracing::warn!(error = ?error, "the store is still read-only"),
            }
        }
        if !self.check_room() {
            return;
        }
        match self.transact(std::iter::empty, 0, true) {
            Ok(applied) => {
                lock(&self.shared.room).figures.commits += 1;
                let Applied { state, events, .. } = applied;
                let latest = state.revision;
                self.adopt(state);
                self.shared.recent.publish(events, latest);
                self.is_well();
                tracing::info!("the store takes commits again");
            }
            Err(failure) => {
                if let Ok(applied) = self.recover(failure) {
                    self.resume(applied.state);
                }
            }
        }
    }

    fn is_ill(&mut self, error: &Error, is_full: bool) {
        let now = Instant::now();
        self.look = Some(now + LOOK);
        self.pause = Some((now + PAUSE, Error::from(error.body())));
        self.fault = Some(Error::from(error.body()));
        let mut room = lock(&self.shared.room);
        (room.is_full, room.is_audit_broken) = (is_full, !is_full);
    }

    fn is_well(&mut self) {
        (self.look, self.pause, self.pause_all, self.fault) = (None, None, None, None);
        let mut room = lock(&self.shared.room);
        (room.is_full, room.is_audit_broken) = (false, false);
    }

    /// Lets readers see where the store is.
    fn adopt(&mut self, state: State) {
        self.state = state;
        self.show();
    }

    /// Whether the disk has room for what is new. While it has, some of it is set aside.
    fn check_room(&mut self) -> bool {
        let bounds = &self.shared.bounds;
        let Some(free) = self.source.free() else { return true };
        let has_room = free >= bounds.free;
        if has_room && !self.has_reserve && free >= bounds.free + 2 * bounds.reserve {
            self.source.reserve(bounds.reserve);
            self.has_reserve = true;
        }
        if !has_room {
            let mut room = lock(&self.shared.room);
            if !room.is_full {
                tracing::warn!(free, "the disk of the store is full; nothing new is accepted");
            }
            room.is_full = true;
            drop(room);
            self.look.get_or_insert_with(|| Instant::now() + LOOK);
        }
        has_room
    }

    fn show(&self) {
        let mut room = lock(&self.shared.room);
        (room.records, room.audit) = (self.state.records, self.state.audit());
        drop(room);
        *lock(&self.shared.ends) = self.state.ends();
    }
}

/// A transaction that failed, and what it would have done if it got as far as its commit.
struct Failure {
    error: redb::Error,
    attempted: Option<Box<Applied>>,
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Self {
        Self { error, attempted: None }
    }
}

fn no_room() -> Error {
    Error::new(Kind::Full, "the disk of the state store is full; make room")
}
