//! The time that lifetimes run on: it goes on while the host runs and never jumps.
//!
//! It begins as the wall's. Within one boot it follows the boot's clock, also from one start of the
//! controller to the next; after another boot it goes on from the wall's clock, but never back.

use serde::{Deserialize, Serialize};

use crate::clock::Clock;

/// By how many milliseconds the wall clock must have been set for the log to say so.
const STEP: u64 = 60_000;

/// What a transaction stores of the time at which it was made.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Moment {
    boot: String,
    uptime: u64,
    /// The store's own time, in milliseconds.
    now: u64,
    /// How far the wall's clock was ahead of the boot's.
    ahead: i64,
}

pub(super) struct Time {
    clock: Clock,
    /// How far the store's time is ahead of the boot's clock.
    ahead: i64,
}

impl Time {
    pub(super) fn resume(clock: Clock, last: &Moment) -> Self {
        let now = if last.boot == clock.boot() && !last.boot.is_empty() {
            last.now + clock.uptime().saturating_sub(last.uptime)
        } else {
            last.now.max(clock.wall())
        };
        Self { ahead: difference(now, clock.uptime()), clock }
    }

    pub(super) fn now(&self) -> u64 {
        self.clock.uptime().saturating_add_signed(self.ahead)
    }

    pub(super) fn wall(&self) -> u64 {
        self.clock.wall()
    }

    pub(super) fn moment(&self) -> Moment {
        let (uptime, wall) = (self.clock.uptime(), self.clock.wall());
        Moment {
            boot: self.clock.boot().to_owned(),
            uptime,
            now: uptime.saturating_add_signed(self.ahead),
            ahead: difference(wall, uptime),
        }
    }

    /// By how many milliseconds the wall clock was set between two moments of one boot, where
    /// that is more than slewing does.
    pub(super) fn step(last: &Moment, now: &Moment) -> Option<i64> {
        let step = now.ahead - last.ahead;
        (last.boot == now.boot && !now.boot.is_empty() && step.unsigned_abs() > STEP)
            .then_some(step)
    }
}

fn difference(a: u64, b: u64) -> i64 {
    i64::try_from(a).unwrap_or(i64::MAX).saturating_sub_unsigned(b)
}
