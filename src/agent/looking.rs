//! Who looks at what, and since when.
//!
//! The kernel may not let go of whoever looks, on a dead network mount for instance, and nobody
//! can end such a thread. So another takes its place, up to a bound, and goes when the first is
//! back.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::lock;

/// How many workers there are in all, those that hang included.
const MOST: usize = 24;

pub(super) struct Looking {
    /// How many are wanted that do not hang.
    wanted: usize,
    state: Mutex<State>,
}

struct State {
    workers: usize,
    /// By job.
    at: BTreeMap<String, Look>,
}

struct Look {
    op: String,
    since: Instant,
    limit: Duration,
}

impl Look {
    fn hangs(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) > self.limit
    }
}

impl State {
    fn hanging(&self, now: Instant) -> usize {
        self.at.values().filter(|look| look.hangs(now)).count()
    }
}

impl Looking {
    /// With as many workers as are wanted.
    pub(super) fn new(wanted: usize) -> Self {
        Self { wanted, state: Mutex::new(State { workers: wanted, at: BTreeMap::new() }) }
    }

    pub(super) fn begins(&self, job: &str, op: &str, limit: Duration) {
        let look = Look { op: op.to_owned(), since: Instant::now(), limit };
        lock(&self.state).at.insert(job.to_owned(), look);
    }

    /// Whether the worker goes on: where another has taken its place it does not.
    pub(super) fn ended(&self, job: &str) -> bool {
        let mut state = lock(&self.state);
        state.at.remove(job);
        let goes_on = state.workers - state.hanging(Instant::now()) <= self.wanted;
        state.workers -= usize::from(!goes_on);
        goes_on
    }

    /// How many workers are to be started in place of those that hang; they count from now on.
    pub(super) fn relief(&self, now: Instant) -> usize {
        let mut state = lock(&self.state);
        let missing = (self.wanted + state.hanging(now)).min(MOST).saturating_sub(state.workers);
        state.workers += missing;
        missing
    }

    /// A worker could not be started.
    pub(super) fn lacks_one(&self) {
        lock(&self.state).workers -= 1;
    }

    /// What hangs, in a line for each operation.
    pub(super) fn hanging(&self, now: Instant) -> Vec<String> {
        let mut counts = BTreeMap::<String, usize>::new();
        for look in lock(&self.state).at.values().filter(|look| look.hangs(now)) {
            *counts.entry(look.op.clone()).or_default() += 1;
        }
        counts.into_iter().map(|(op, count)| format!("{count} of {op}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn whoever_hangs_is_stood_in_for_until_it_is_back() {
        let looking = Looking::new(2);
        let late = Instant::now() + 2 * LIMIT;
        looking.begins("a", "file.status.get", LIMIT);
        looking.begins("b", "file.status.get", Duration::ZERO);
        assert_eq!(looking.relief(late), 2);
        assert_eq!(looking.relief(late), 0, "they count");
        assert_eq!(looking.hanging(late), ["2 of file.status.get"]);
        // By now only the second is too late: three that work are one too many.
        assert!(!looking.ended("a"));
        assert!(!looking.ended("b"));
        looking.begins("c", "node.os.get", LIMIT);
        assert!(looking.ended("c"));
        assert!(looking.hanging(late).is_empty());
    }

    #[test]
    fn there_is_an_end_to_those_who_stand_in() {
        let looking = Looking::new(2);
        let late = Instant::now() + 2 * LIMIT;
        for job in 0..100 {
            looking.begins(&job.to_string(), "node.os.get", LIMIT);
        }
        assert_eq!(looking.relief(late), MOST - 2);
    }
}
