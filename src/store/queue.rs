//! What waits for a commit, the same for every backend: steps that somebody waits for, and lazy
//! ones, which ride along. Both queues are bounded.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Bounds, Coming, Revision, Step};
use crate::error::{Error, Kind, Result};

/// How long lazy steps wait for company; a commit later they are durable, within a second.
pub(super) const LAZY: Duration = Duration::from_millis(900);

/// Where whoever waits for a step is told of it.
pub(super) type Done = oneshot::Sender<Result<Revision>>;

pub(super) struct Pending {
    pub(super) step: Step,
    pub(super) done: Done,
}

/// What became of a step that was to wait.
pub(super) enum Admitted {
    /// To be handed to the writer.
    Now(Pending),
    /// It waits, and is the first that does: the writer is to be told.
    First,
    /// It waits with others.
    Rides,
}

pub(super) struct Queue {
    most: usize,
    most_lazy: usize,
    /// How many commits are about to come or under way, as far as callers say so.
    coming: Arc<AtomicUsize>,
    /// How many steps the writer has still to take.
    waiting: AtomicUsize,
    lazy: Mutex<Vec<Pending>>,
    /// Notes of lazy steps that were dropped and not yet accounted for.
    lost: AtomicU64,
}

impl Queue {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self {
            most: bounds.queue,
            most_lazy: bounds.lazy,
            coming: Arc::default(),
            waiting: AtomicUsize::new(0),
            lazy: Mutex::default(),
            lost: AtomicU64::new(0),
        }
    }

    pub(super) fn admit(&self, mut step: Step, done: Done) -> Result<Admitted> {
        if !step.is_lazy {
            if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.most {
                self.taken();
                return Err(busy());
            }
            return Ok(Admitted::Now(Pending { step, done }));
        }
        let mut lazy = self.lazy();
        let count = step.notes.len();
        if lazy.len() >= self.most_lazy {
            step.notes.clear();
        } else if lazy.len() >= self.most_lazy / 2 {
            // Reads and refusals cost whoever asks next to nothing, so they give way first.
            step.notes.retain(|note| !note.is_idle());
        }
        let dropped = count - step.notes.len();
        self.lose(dropped as u64);
        let is_hollow = dropped > 0 && step.notes.is_empty() && step.writes.is_empty();
        if is_hollow || lazy.len() >= self.most_lazy {
            return Err(busy());
        }
        lazy.push(Pending { step, done });
        Ok(if lazy.len() == 1 { Admitted::First } else { Admitted::Rides })
    }

    /// The writer has taken a step that was handed to it.
    pub(super) fn taken(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Up to `most` of the lazy steps, and whether there are more.
    pub(super) fn take_lazy(&self, most: usize) -> (Vec<Pending>, bool) {
        let mut lazy = self.lazy();
        let count = lazy.len().min(most);
        let taken = lazy.drain(..count).collect();
        (taken, !lazy.is_empty())
    }

    pub(super) fn has_lazy(&self) -> bool {
        !self.lazy().is_empty()
    }

    pub(super) fn expect(&self) -> Coming {
        Coming::among(&self.coming)
    }

    pub(super) fn lose(&self, notes: u64) {
        self.lost.fetch_add(notes, Ordering::Relaxed);
    }

    /// How many notes were lost that the log does not say yet.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The log says of so many lost notes that they were.
    pub(super) fn told(&self, lost: u64) {
        self.lost.fetch_sub(lost, Ordering::Relaxed);
    }

    pub(super) fn refuse(&self, group: Vec<Pending>, error: &Error) {
        for pending in group {
            if pending.step.is_lazy {
                self.lose(pending.step.notes.len() as u64);
            }
            // Whoever asked may have stopped waiting.
            let _ = pending.done.send(Err(Error::from(error.body())));
        }
    }

    fn lazy(&self) -> std::sync::MutexGuard<'_, Vec<Pending>> {
        self.lazy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Steps on their way into one commit.
///
/// It takes what waits, and waits for those who are on their way. Without that, two halves of the
/// callers would alternate for ever. A third of a commit is less than what it saves, and one caller
/// alone never waits.
pub(super) struct Group {
    steps: Vec<Pending>,
    bytes: usize,
    most: usize,
    most_bytes: usize,
    until: Option<Instant>,
}

impl Group {
    pub(super) fn new(most: usize, most_bytes: usize) -> Self {
        Self { steps: Vec::new(), bytes: 0, most, most_bytes, until: None }
    }

    pub(super) fn add(&mut self, pending: Pending, queue: &Queue) {
        queue.taken();
        self.bytes += pending.step.bytes();
        self.steps.push(pending);
    }

    pub(super) fn is_full(&self) -> bool {
        self.steps.len() >= self.most || self.bytes > self.most_bytes
    }

    /// Until when to wait for more, where a commit takes `mean`; `None` where none is to come.
    pub(super) fn patience(&mut self, queue: &Queue, mean: Duration) -> Option<Instant> {
        let coming = queue.coming.load(Ordering::Relaxed);
        if coming <= self.steps.len() || mean.is_zero() {
            return None;
        }
        Some(*self.until.get_or_insert_with(|| Instant::now() + mean / 3))
    }

    pub(super) fn into_steps(self) -> Vec<Pending> {
        self.steps
    }
}

/// The running mean of what commits take, with one more.
pub(super) fn mean_with(mean: Duration, took: Duration) -> Duration {
    if mean.is_zero() { took } else { (mean * 7 + took) / 8 }
}

pub(super) fn busy() -> Error {
    Error::new(Kind::Busy, "too much waits for the state store; retry later")
}
