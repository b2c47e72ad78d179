//! The way in for everything that is not only looked at, which can be closed.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, Kind, Result};

/// How long the ends of killed acts are waited for, so that they are on record.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    is_closed: bool,
    /// Whether acts were killed because time was up.
    is_over: bool,
    inside: usize,
    /// How many of those only wait for a unit, which goes on without them.
    away: usize,
    /// The process groups of acts.
    groups: BTreeSet<i32>,
    /// Jobs that somebody has called off.
    called_off: BTreeSet<String>,
}

/// Somebody is at work for as long as this lives.
pub(super) struct Inside<'a>(&'a Gate);

/// Somebody waits for what goes on without this process, for as long as this lives.
pub(super) struct Away<'a>(&'a Gate);

/// A process group that ends when the gate has waited long enough.
pub(super) struct Mortal<'a>(&'a Gate, Pid);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self) -> Result<Inside<'_>> {
        let mut state = self.state();
        if state.is_closed {
            return Err(Error::new(Kind::Unavailable, "the agent is about to end"));
        }
        state.inside += 1;
        Ok(Inside(self))
    }

    /// Has the group of `leader` end with this agent.
    pub(super) fn mortal(&self, leader: Pid) -> Mortal<'_> {
        let mut state = self.state();
        state.groups.insert(leader.as_raw_nonzero().get());
        if state.is_over {
            let _ = kill_process_group(leader, Signal::KILL);
        }
        Mortal(self, leader)
    }

    /// For somebody inside who is not worth waiting for.
    pub(super) fn away(&self) -> Away<'_> {
        self.state().away += 1;
        self.bell.notify_all();
        Away(self)
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().is_over
    }

    pub(super) fn close(&self, patience: Duration) {
        let mut state = self.state();
        state.is_closed = true;
        self.bell.notify_all();
        state = self.wait(state, patience);
        if state.inside <= state.away {
            return;
        }
        state.is_over = true;
        for group in state.groups.iter().filter_map(|group| Pid::from_raw(*group)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        drop(self.wait(state, LAST_WORDS));
    }

    /// Nobody wants `job` any more.
    pub(super) fn call_off(&self, job: &str) {
        self.state().called_off.insert(job.to_owned());
        self.bell.notify_all();
    }

    pub(super) fn is_called_off(&self, job: &str) -> bool {
        self.state().called_off.contains(job)
    }

    /// Nobody asks about `job` any more.
    pub(super) fn forget(&self, job: &str) {
        self.state().called_off.remove(job);
    }

    /// Returns after `patience`, or as soon as the gate is closed, which it says, or `job` is
    /// called off that `was_off` says was not.
    pub(super) fn closes_within(&self, patience: Duration, job: &str, was_off: bool) -> bool {
        let goes_on =
            |state: &mut State| !state.is_closed && state.called_off.contains(job) == was_off;
        let waited = self.bell.wait_timeout_while(self.state(), patience, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_closed
    }

    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        most: Duration,
    ) -> MutexGuard<'a, State> {
        let deadline = Instant::now() + most;
        while state.inside > state.away {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.bell.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.state().inside -= 1;
        self.0.bell.notify_all();
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.state().away -= 1;
    }
}

impl Drop for Mortal<'_> {
    fn drop(&mut self) {
        self.0.state().groups.remove(&self.1.as_raw_nonzero().get());
    }
}
