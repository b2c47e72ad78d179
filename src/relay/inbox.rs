//! Tasks of one class that came unasked, until the agent asks for them.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::link::Sealed;

/// How many tasks wait here at most, and how many bytes of them where it is more than one.
pub(super) const ROOM: usize = 64;
const BYTES: usize = 3 << 19;

/// A task, and since when it waits, in milliseconds on the clock of the boot: it was told how long it
/// may still begin when it was handed out.
struct Waiting {
    task: Sealed,
    since: u64,
}

/// In order of submission, which is that of their ids.
#[derive(Default)]
pub(super) struct Inbox {
    tasks: BTreeMap<Uuid, Waiting>,
    bytes: usize,
    /// There may be something to do that comes before what is here.
    is_stale: bool,
    /// There is something to do that comes after all that is here, and is asked for in its turn.
    has_more: bool,
}

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn has(&self, job: Uuid) -> bool {
        self.tasks.contains_key(&job)
    }

    pub(super) fn jobs(&self) -> impl Iterator<Item = Uuid> {
        self.tasks.keys().copied()
    }

    /// Whether something of it waits, here or to be asked for.
    pub(super) fn is_known_of(&self) -> bool {
        self.has_more || !self.tasks.is_empty()
    }

    /// Whether what to do next is not here.
    pub(super) fn is_to_be_asked(&self) -> bool {
        self.is_stale || (self.has_more && self.tasks.is_empty())
    }

    pub(super) fn doubt(&mut self) {
        self.is_stale = true;
    }

    /// Whoever asks now is told whatever is not here.
    pub(super) fn asks(&mut self) {
        (self.is_stale, self.has_more) = (false, false);
    }

    /// Keeps what came with a wake, in the place of what came before for the same job.
    pub(super) fn offer(&mut self, job: Uuid, task: Sealed, now: u64) {
        let is_known = self.has(job);
        let is_last = self.tasks.last_key_value().is_none_or(|(last, _)| *last < job);
        if task.body.len() > BYTES || (!is_known && self.has_more && is_last) {
            self.has_more = true;
            return;
        }
        self.keep(job, task, now);
        while self.tasks.len() > ROOM || (self.bytes > BYTES && self.tasks.len() > 1) {
            self.drop_last();
            self.has_more = true;
        }
    }

    /// Keeps what was asked for.
    pub(super) fn keep(&mut self, job: Uuid, task: Sealed, now: u64) {
        self.bytes += task.body.len();
        if let Some(before) = self.tasks.insert(job, Waiting { task, since: now }) {
            self.bytes -= before.task.body.len();
        }
    }

    /// There is more behind `last`: what is here from there on would be out of turn.
    pub(super) fn has_more_behind(&mut self, last: Option<Uuid>) {
        while self.tasks.last_key_value().is_some_and(|(job, _)| Some(*job) > last) {
            self.drop_last();
        }
        self.has_more = true;
    }

    /// It was handed out otherwise.
    pub(super) fn forget(&mut self, job: Uuid) {
        if let Some(waiting) = self.tasks.remove(&job) {
            self.bytes -= waiting.task.body.len();
        }
    }

    /// The first `most`, as far as they go into one answer.
    pub(super) fn take(&mut self, most: usize, now: u64) -> Vec<(Uuid, Sealed)> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < most {
            let Some(first) = self.tasks.first_entry() else { break };
            bytes += first.get().task.body.len();
            if !taken.is_empty() && bytes > BYTES {
                break;
            }
            self.bytes -= first.get().task.body.len();
            let (job, Waiting { mut task, since }) = first.remove_entry();
            task.waited_ms = task.waited_ms.saturating_add(now.saturating_sub(since));
            taken.push((job, task));
        }
        taken
    }

    fn drop_last(&mut self) {
        if let Some((_, waiting)) = self.tasks.pop_last() {
            self.bytes -= waiting.task.body.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: usize) -> Uuid {
        Uuid::from_u128(number as u128)
    }

    fn task(text: &str) -> Sealed {
        Sealed::new(text.to_owned(), "web1", None)
    }

    fn jobs(inbox: &Inbox) -> Vec<u128> {
        inbox.jobs().map(|job| job.as_u128()).collect()
    }

    #[test]
    fn tasks_are_taken_in_order_and_once() {
        let mut inbox = Inbox::default();
        for number in [3, 1, 2, 1] {
            inbox.offer(job(number), task("{}"), 0);
        }
        inbox.offer(job(2), task("called off"), 0);
        assert_eq!(jobs(&inbox), [1, 2, 3]);
        assert_eq!(inbox.take(1, 0), [(job(1), task("{}"))]);
        assert_eq!(inbox.take(9, 0), [(job(2), task("called off")), (job(3), task("{}"))]);
        assert!(inbox.take(1, 0).is_empty() && inbox.bytes == 0);
    }

    #[test]
    fn what_has_waited_says_for_how_long() {
        let mut inbox = Inbox::default();
        inbox.offer(job(1), task("{}"), 5_000);
        inbox.offer(job(2), task("{}"), 6_000);
        let waited = |(_, task): &(Uuid, Sealed)| task.waited_ms;
        assert_eq!(inbox.take(9, 6_500).iter().map(waited).collect::<Vec<_>>(), [1_500, 500]);
    }

    #[test]
    fn what_finds_no_room_is_asked_for_in_its_turn() {
        let mut inbox = Inbox::default();
        for number in 0..ROOM + 3 {
            inbox.offer(job(number + 10), task("{}"), 0);
        }
        assert_eq!(inbox.tasks.len(), ROOM);
        assert!(!inbox.is_to_be_asked(), "what is here comes first");
        // It comes before what found no room.
        inbox.offer(job(5), task("{}"), 0);
        assert_eq!(inbox.take(1, 0)[0].0, job(5));
        while !inbox.is_empty() {
            inbox.offer(job(1000), task("{}"), 0);
            inbox.take(1, 0);
        }
        assert!(inbox.is_to_be_asked(), "the last one did not overtake");
        inbox.asks();
        assert!(!inbox.is_to_be_asked());
    }

    #[test]
    fn bytes_are_bounded_and_a_task_that_is_too_large_is_asked_for() {
        let mut inbox = Inbox::default();
        for number in 0..9 {
            inbox.offer(job(number), task(&"x".repeat(BYTES / 4)), 0);
        }
        assert_eq!(jobs(&inbox), [0, 1, 2, 3]);
        let mut inbox = Inbox::default();
        inbox.offer(job(1), task(&"x".repeat(BYTES + 1)), 0);
        assert!(inbox.is_empty() && inbox.is_to_be_asked());
        // It came as the answer.
        inbox.asks();
        inbox.keep(job(1), task(&"x".repeat(BYTES + 1)), 0);
        inbox.keep(job(2), task("{}"), 0);
        assert_eq!(inbox.take(2, 0).len(), 1);
    }

    #[test]
    fn nothing_overtakes_what_was_not_handed_out_yet() {
        let mut inbox = Inbox::default();
        for number in [1, 7] {
            inbox.offer(job(number), task("{}"), 0);
        }
        inbox.keep(job(3), task("{}"), 0);
        inbox.has_more_behind(Some(job(3)));
        assert_eq!(jobs(&inbox), [1, 3]);
        inbox.take(2, 0);
        assert!(inbox.is_to_be_asked());
    }
}
