//! The two clocks: the wall's, which people read and may set, and the boot's, which only runs.
//!
//! Whatever decides when something ends counts on the boot's clock, so that setting the wall's
//! expires nothing. Both are a value that is passed along, which lets a test set the wall clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::time::{ClockId, clock_gettime};

use crate::job::Deadline;

#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Milliseconds by which a test has set the wall clock.
    skew: Arc<AtomicI64>,
}

impl Clock {
    /// Milliseconds since 1970 by the wall's clock.
    pub fn wall(&self) -> u64 {
        millis(ClockId::Realtime).saturating_add_signed(self.skew.load(Ordering::Relaxed))
    }

    /// Milliseconds since this boot, however long the host slept and whatever was done to its
    /// wall clock.
    pub fn uptime(&self) -> u64 {
        millis(ClockId::Boottime)
    }

    /// Names this boot; empty where the kernel does not tell.
    pub fn boot(&self) -> &'static str {
        boot_id()
    }

    /// Sets the wall clock, as far as those can see who were given this value.
    pub fn step(&self, milliseconds: i64) {
        self.skew.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// The moment `left` milliseconds from now.
    pub fn deadline(&self, left: u64) -> Deadline {
        Deadline {
            at: self.wall().saturating_add(left),
            boot: self.boot().to_owned(),
            uptime: self.uptime().saturating_add(left),
        }
    }

    /// How many milliseconds are left until `deadline`.
    pub fn left(&self, deadline: &Deadline) -> u64 {
        if deadline.boot == self.boot() {
            deadline.uptime.saturating_sub(self.uptime())
        } else {
            deadline.at.saturating_sub(self.wall())
        }
    }
}

fn millis(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

fn boot_id() -> &'static str {
    static BOOT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        #[expect(clippy::disallowed_methods, reason = "the one thing a clock reads from a file")]
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        text.unwrap_or_default().trim().to_owned()
    });
    &BOOT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_the_wall_clock_expires_nothing() {
        let clock = Clock::default();
        let deadline = clock.deadline(60_000);
        clock.step(365 * 86_400_000);
        assert!(clock.left(&deadline) > 50_000);
        clock.step(-2 * 365 * 86_400_000);
        assert!(clock.left(&deadline) <= 60_000);
    }
}
