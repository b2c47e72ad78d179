//! Who wakes up when the time for a confirmation is over: a timer of the service manager, which
//! outlives the agent, or where there is none the agent itself, for as long as it lives.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::{Core, Executor, uptime};
use crate::error::{Error, Kind, Result};
use crate::host::journal::Turn;

/// How often the time is looked at while something waits: a host that slept wakes up late.
const TICK: Duration = Duration::from_secs(1);
/// How long what could not be taken back is left alone, in seconds.
const AGAIN: u64 = 5;

#[derive(Default)]
pub(super) struct Alarm {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    /// Seconds on this boot's clock.
    due: Option<u64>,
    is_watched: bool,
}

impl Executor {
    /// Has the change of `job` taken back in `seconds`, unless it is confirmed by then.
    pub(super) fn set_alarm(
        &self,
        turn: &Turn,
        job: &str,
        limit: Duration,
        seconds: u64,
    ) -> Result<()> {
        if self.core.root.has_service_manager() {
            let unit = format!("osapi-alarm-{job}-{}", uptime());
            return self.hands(turn, job, limit).alarm(&unit, seconds);
        }
        self.watch(uptime().saturating_add(seconds))
    }

    /// Settles at `due`, by a thread of this process.
    pub(super) fn watch(&self, due: u64) -> Result<()> {
        let alarm = &self.core.alarm;
        let mut state = alarm.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.due = Some(state.due.map_or(due, |other| other.min(due)));
        if !state.is_watched {
            let (alarm, core) = (Arc::clone(alarm), Arc::downgrade(&self.core));
            let thread = std::thread::Builder::new().name("alarm".to_owned());
            thread.spawn(move || alarm.run(&core)).map_err(|error| {
                let message = "cannot start a thread that waits for the confirmation";
                Error::new(Kind::Unavailable, message).because(error)
            })?;
            state.is_watched = true;
        }
        alarm.bell.notify_all();
        Ok(())
    }
}

impl Alarm {
    fn run(&self, core: &Weak<Core>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(due) = state.due {
            if uptime() < due {
                let woken = self.bell.wait_timeout(state, TICK);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                if core.strong_count() == 0 {
                    return;
                }
                continue;
            }
            state.due = None;
            drop(state);
            let Some(core) = core.upgrade() else { return };
            // What still waits sets the alarm again.
            let settled = Executor { core }.settle();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = settled {
                tracing::error!("a change that was not confirmed cannot be taken back: {error}");
                state.due = Some(uptime().saturating_add(AGAIN));
            }
        }
        state.is_watched = false;
    }
}
