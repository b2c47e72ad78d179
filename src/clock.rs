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

/// A moment, in milliseconds since 1970, as clients read it: RFC 3339 in UTC, with milliseconds.
pub fn rfc3339(wall: u64) -> String {
    let (days, rest) = (wall / 86_400_000, wall % 86_400_000);
    // Counted from 1 March of the year 0, so that a leap day is the last of its year; as in
    // Howard Hinnant's `civil_from_days`.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..=9 => (era * 400 + year, month + 3),
        _ => (era * 400 + year + 1, month - 9),
    };
    let (hour, minute) = (rest / 3_600_000, rest / 60_000 % 60);
    let (second, milli) = (rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
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
    fn moments_are_written_as_clients_read_them() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_798_761_599_999), "2026-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

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
