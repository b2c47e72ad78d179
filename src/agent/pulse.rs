//! Whether those who ask for work still do, which is what the service manager's watchdog is told.
//!
//! Whoever is at work is not looked at: every step of that has a limit of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A question is answered or given up in less.
const STUCK: Duration = Duration::from_mins(3);

/// The sign of life of the workers that ask over one connection.
pub(super) struct Pulse {
    name: &'static str,
    workers: usize,
    at_work: AtomicUsize,
    /// On the clock that stands still while the host sleeps.
    asked: Mutex<Instant>,
}

/// A worker is at work for as long as this lives.
pub(super) struct AtWork<'a>(&'a Pulse);

impl Pulse {
    /// One of them asks.
    pub(super) fn asks(&self) {
        *lock(&self.asked) = Instant::now();
    }

    /// One of them is at work and does not ask.
    pub(super) fn works(&self) -> AtWork<'_> {
        self.at_work.fetch_add(1, Ordering::Relaxed);
        AtWork(self)
    }

    fn is_stuck(&self, now: Instant) -> bool {
        let all_work = self.at_work.load(Ordering::Relaxed) >= self.workers;
        !all_work && now.saturating_duration_since(*lock(&self.asked)) > STUCK
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        // Whoever was at work until now had no time to ask.
        self.0.asks();
        self.0.at_work.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All of an agent's.
#[derive(Default)]
pub(super) struct Pulses(Mutex<Vec<Arc<Pulse>>>);

impl Pulses {
    /// For `workers` that begin to ask now.
    pub(super) fn of(&self, name: &'static str, workers: usize) -> Arc<Pulse> {
        let pulse =
            Pulse { name, workers, at_work: AtomicUsize::new(0), asked: Instant::now().into() };
        let pulse = Arc::new(pulse);
        lock(&self.0).push(pulse.clone());
        pulse
    }

    /// Nobody asks there any more, and nobody is to.
    pub(super) fn ended(&self, pulse: &Arc<Pulse>) {
        lock(&self.0).retain(|other| !Arc::ptr_eq(other, pulse));
    }

    /// Whose workers do not ask any more, if anybody's.
    pub(super) fn stuck(&self) -> Option<&'static str> {
        self.stuck_at(Instant::now())
    }

    fn stuck_at(&self, now: Instant) -> Option<&'static str> {
        lock(&self.0).iter().find(|pulse| pulse.is_stuck(now)).map(|pulse| pulse.name)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_neither_asks_nor_works_is_stuck() {
        let pulses = Pulses::default();
        let (one, two) = (pulses.of("one", 1), pulses.of("two", 2));
        let later = Instant::now() + STUCK + Duration::from_mins(1);
        assert_eq!(pulses.stuck(), None);
        let long = one.works();
        assert_eq!(pulses.stuck_at(later), Some("two"));
        let (a, b) = (two.works(), two.works());
        assert_eq!(pulses.stuck_at(later), None);
        drop((a, b));
        assert_eq!(pulses.stuck(), None);
        drop(long);
        assert_eq!(pulses.stuck_at(later), Some("one"));
    }
}
