//! What goes on record without a step of its own: requests that only looked, and refused ones.
//!
//! Such notes wait a moment and ride along with the next commit. Refusals of one peer within one
//! second become a single entry that says how many it stands for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::{Controller, lock};
use crate::error::{Error, Kind};
use crate::permission::Caller;
use crate::store::{Step, audit};

/// How long a note waits for company.
const GATHER: Duration = Duration::from_millis(500);
/// How many notes make up a step.
const GROUP: usize = 64;
/// How many peers are told apart within one gathering.
const PEERS: usize = 1_024;

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
    /// How much of what hosts told was not believed, by machine id.
    unbelieved: HashMap<String, u64>,
    /// A task is on its way that will make a step of them.
    is_scheduled: bool,
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
        let mut notes = lock(&self.notes);
        *notes.unbelieved.entry(host.to_owned()).or_default() += count;
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
        let step = lock(&self.notes).take(self.clock.wall());
        if let Some(step) = step {
            self.ride(step);
        }
    }

    /// Makes durable what is still to be noted.
    pub(super) async fn flush_notes(&self) {
        let step = lock(&self.notes).take(self.clock.wall());
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

    /// It is `now`, in milliseconds since 1970.
    fn take(&mut self, now: u64) -> Option<Step> {
        let mut refused: Vec<_> = self.refused.drain().map(|(_, entry)| entry).collect();
        refused.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        self.waiting.extend(refused.into_iter().map(audit::Note::Entry));
        for (host, count) in self.unbelieved.drain() {
            let event = serde_json::json!({
                "at": now, "event": "outcomes_refused", "host": host, "count": count,
            });
            tracing::warn!(%event, "what a host told is not signed as it has to be");
            self.waiting.push(audit::Note::Event(event));
        }
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
        let step = notes.take(0).unwrap();
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
        assert!(notes.take(0).is_none());
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
