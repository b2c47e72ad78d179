//! What goes on record without a step of its own: requests that only looked, and refused ones.
//!
//! Such notes wait a moment and ride along with the next commit. Refusals of one peer within one
//! second become a single entry that says how many it stands for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::json;

use super::{Controller, lock};
use crate::error::{Error, Kind};
use crate::permission::Caller;
use crate::store::{Step, audit};

/// How long a note waits for company: lazy ones share a commit, and nobody tells that the last has
/// come.
const GATHER: Duration = Duration::from_millis(500);
/// How many notes make up a step.
const GROUP: usize = 64;
/// How many peers are told apart within one gathering.
const PEERS: usize = 1_024;
/// How often what is counted of a host is put on record, so that whoever makes much of it can fill
/// nothing with it.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// One request, as the carrier saw it come in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trail {
    /// A UUID for its audit entry, where it makes no job.
    pub id: String,
    /// When it began, in milliseconds since 1970.
    pub at: u64,
    pub method: String,
    pub path: String,
    /// The operation's id; empty where no row was found.
    pub op: String,
    /// `unix`, or the peer's address.
    pub source: String,
    pub trace: Option<String>,
}

/// The audit entry of a request.
pub(super) fn entry(
    trail: &Trail,
    caller: &Caller,
    code: Option<u16>,
    ms: Option<u64>,
) -> audit::Entry {
    audit::Entry {
        id: trail.id.clone(),
        at: trail.at,
        user: caller.name.clone(),
        roles: caller.roles.clone(),
        method: trail.method.clone(),
        path: trail.path.clone(),
        op: trail.op.clone(),
        source: trail.source.clone(),
        job: None,
        about: None,
        trace: trail.trace.clone(),
        code,
        ms,
        more: None,
    }
}

#[derive(Default)]
pub(super) struct Notes {
    waiting: Vec<audit::Note>,
    /// By peer and second.
    refused: HashMap<(String, u64), audit::Entry>,
    /// What is put on record as a number, by what it is and the machine id of the host.
    counts: HashMap<(&'static str, String), Count>,
    /// A task is on its way that will make a step of them.
    is_scheduled: bool,
}

/// Tasks that an agent did not take, outcomes that were not believed, and those of which there was one
/// already: a task was shown to its host again, or the answer was lost that it was told.
pub(super) const TASKS_REFUSED: &str = "tasks_refused";
pub(super) const OUTCOMES_REFUSED: &str = "outcomes_refused";
pub(super) const OUTCOMES_REPEATED: &str = "outcomes_repeated";

#[derive(Default)]
struct Count {
    waiting: u64,
    noted: Option<Instant>,
}

impl Controller {
    /// Puts a request on record that changed nothing: a read, or one that was refused.
    pub fn note(self: &Arc<Self>, trail: &Trail, caller: &Caller, code: u16, ms: u64) {
        let entry = entry(trail, caller, Some(code), Some(ms));
        let is_full = {
            let mut notes = lock(&self.notes);
            if (400..500).contains(&code) {
                notes.refuse(entry);
            } else {
                notes.waiting.push(audit::Note::Entry(entry));
            }
            self.schedule(&mut notes);
            notes.waiting.len() >= GROUP
        };
        if is_full {
            self.send_notes();
        }
    }

    /// Puts on record that `count` outcomes of `host` were not believed, those of a moment together.
    pub(super) fn note_unbelieved(self: &Arc<Self>, host: &str, count: u64, error: &Error) {
        if error.kind() != Kind::Denied {
            return;
        }
        self.count(OUTCOMES_REFUSED, host, count);
    }

    /// Puts on record, as one number with what comes within seconds, that `event` happened `count`
    /// times with `host`.
    pub(super) fn count(self: &Arc<Self>, event: &'static str, host: &str, count: u64) {
        let mut notes = lock(&self.notes);
        notes.count(event, host, count);
        self.schedule(&mut notes);
    }

    fn schedule(self: &Arc<Self>, notes: &mut Notes) {
        if !notes.is_scheduled {
            notes.is_scheduled = true;
            let controller = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(GATHER).await;
                lock(&controller.notes).is_scheduled = false;
                controller.send_notes();
                let mut notes = lock(&controller.notes);
                if notes.has_more() {
                    controller.schedule(&mut notes);
                }
            });
        }
    }

    /// Puts what happened without a request on record, soon.
    pub(super) fn event(&self, event: serde_json::Value) {
        tracing::info!(%event, "noted");
        self.ride(Step::new().note(audit::Note::Event(event)));
    }

    /// Lets a step ride along with the next commit, and does not wait for that. False where it
    /// was not even taken on.
    pub(super) fn ride(&self, step: Step) -> bool {
        match self.commit(step.lazy()).now_or_never() {
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot write what was to ride along");
                false
            }
            _ => true,
        }
    }

    fn send_notes(&self) {
        let step = lock(&self.notes).take(self.clock.wall(), COUNT_EVERY);
        if let Some(step) = step {
            self.ride(step);
        }
    }

    /// Makes durable what is still to be noted.
    pub(super) async fn flush_notes(&self) {
        let step = lock(&self.notes).take(self.clock.wall(), Duration::ZERO);
        if let Some(step) = step
            && let Err(error) = self.commit(step).await
        {
            tracing::warn!(%error, "cannot put the last requests on record");
        }
    }
}

impl Notes {
    fn refuse(&mut self, entry: audit::Entry) {
        let mut peer = (format!("{} {}", entry.source, entry.user), entry.at / 1000);
        if self.refused.len() >= PEERS && !self.refused.contains_key(&peer) {
            // So many at once are told apart no longer.
            peer = (String::new(), 0);
        }
        match self.refused.get_mut(&peer) {
            Some(first) => *first.more.get_or_insert(0) += 1,
            None => drop(self.refused.insert(peer, entry)),
        }
    }

    fn count(&mut self, event: &'static str, host: &str, count: u64) {
        let mut whose = (event, host.to_owned());
        if self.counts.len() >= PEERS && !self.counts.contains_key(&whose) {
            whose.1.clear();
        }
        self.counts.entry(whose).or_default().waiting += count;
    }

    /// Whether something waits for its time.
    fn has_more(&self) -> bool {
        self.counts.values().any(|count| count.waiting > 0)
    }

    /// It is `now`, in milliseconds since 1970. What is counted is taken where that was not done
    /// for `pause`.
    fn take(&mut self, now: u64, pause: Duration) -> Option<Step> {
        let mut refused: Vec<_> = self.refused.drain().map(|(_, entry)| entry).collect();
        refused.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        self.waiting.extend(refused.into_iter().map(audit::Note::Entry));
        self.counts.retain(|(event, host), count| {
            if count.noted.is_some_and(|noted| noted.elapsed() < pause) {
                return true;
            }
            let waiting = std::mem::take(&mut count.waiting);
            if waiting == 0 {
                return false;
            }
            count.noted = Some(Instant::now());
            let event = json!({ "at": now, "event": event, "host": host, "count": waiting });
            tracing::warn!(%event, "what passes between a host and its controllers is not as it was sent");
            self.waiting.push(audit::Note::Event(event));
            true
        });
        let notes = std::mem::take(&mut self.waiting);
        (!notes.is_empty()).then(|| notes.into_iter().fold(Step::new(), Step::note))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(user: &str, at: u64) -> audit::Entry {
        let trail = Trail { id: format!("{user} {at}"), at, ..Trail::default() };
        let caller = Caller { name: user.to_owned(), ..Caller::default() };
        entry(&trail, &caller, Some(403), Some(1))
    }

    #[test]
    fn refusals_of_a_peer_within_a_second_are_one_entry() {
        let mut notes = Notes::default();
        for at in [1_000, 1_100, 1_999, 2_000] {
            notes.refuse(refused("a", at));
        }
        notes.refuse(refused("b", 1_500));
        let step = notes.take(0, COUNT_EVERY).unwrap();
        let more: Vec<_> = step
            .notes
            .iter()
            .map(|note| match note {
                audit::Note::Entry(entry) => (entry.id.clone(), entry.more),
                _ => panic!("not an entry"),
            })
            .collect();
        let expected = [("a 1000", Some(2)), ("b 1500", None), ("a 2000", None)];
        assert_eq!(more, expected.map(|(id, more)| (id.to_owned(), more)));
        assert!(notes.take(0, COUNT_EVERY).is_none());
    }

    #[test]
    fn what_a_host_makes_much_of_is_one_number_now_and_then() {
        let told = |step: Step| {
            let number = |note| match note {
                audit::Note::Event(event) => event["count"].as_u64().unwrap(),
                _ => panic!("not an event"),
            };
            step.notes.into_iter().map(number).collect::<Vec<_>>()
        };
        let mut notes = Notes::default();
        notes.count(TASKS_REFUSED, "a", 2);
        notes.count(TASKS_REFUSED, "a", 3);
        assert_eq!(told(notes.take(0, COUNT_EVERY).unwrap()), [5]);
        notes.count(TASKS_REFUSED, "a", 1);
        notes.count(OUTCOMES_REFUSED, "a", 7);
        assert_eq!(told(notes.take(0, COUNT_EVERY).unwrap()), [7]);
        assert!(notes.has_more() && notes.take(0, COUNT_EVERY).is_none());
        assert_eq!(told(notes.take(0, Duration::ZERO).unwrap()), [1], "at the end");
        // Once nothing has come for a while, nothing is kept of it.
        assert!(!notes.has_more() && notes.take(0, Duration::ZERO).is_none());
        assert!(notes.counts.is_empty());
        for host in 0..3 * PEERS {
            notes.count(TASKS_REFUSED, &host.to_string(), 1);
        }
        assert!(notes.counts.len() <= PEERS + 1);
        let all = told(notes.take(0, COUNT_EVERY).unwrap());
        assert_eq!(all.iter().sum::<u64>(), 3 * PEERS as u64);
    }

    #[test]
    fn any_number_of_peers_takes_a_bounded_place() {
        let mut notes = Notes::default();
        for peer in 0..3 * PEERS {
            notes.refuse(refused(&peer.to_string(), 1_000));
        }
        assert!(notes.refused.len() <= PEERS + 1);
    }
}
