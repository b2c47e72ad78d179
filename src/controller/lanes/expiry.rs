//! What is let go of because of its age.

use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::{Held, Lanes, Open, Slot};
use crate::job::{Outcome, Record, Report};

/// What finished jobs that are in memory only may take, in bytes; the newest of them may take more.
const WEIGHT: usize = 32 << 20;
/// What a host's name takes in a job, and a report beside its result, in bytes.
const NAME: usize = 64;
const REPORT: usize = 320;
/// What a member of an object takes beside its name and its value, in bytes.
const MEMBER: usize = 64;

impl Lanes {
    /// Lets go of what `is_due` says will not be begun any more. What a host may have been handed
    /// may have been begun in time; it is let go of once `is_hopeless` says so, and where it is
    /// stored and surely was handed out, once that is [on record](Self::unheard).
    pub(in crate::controller) fn expire(
        &mut self,
        is_due: impl Fn(&Record) -> bool,
        is_hopeless: impl Fn(&Record) -> bool,
    ) {
        let due: Vec<_> = self
            .open
            .values()
            .filter(|slot| !slot.missing.is_empty() && is_due(&slot.open.record))
            .map(|slot| slot.open.clone())
            .collect();
        for open in due {
            let missing = self.open.get(&open.id).map(|slot| slot.missing.clone());
            for host in missing.unwrap_or_default() {
                let is_noted = open.is_stored && self.was_handed(&host, open.id);
                let is_hopeless = || !is_noted && is_hopeless(&open.record);
                if !self.may_have(&host, open.id) || is_hopeless() {
                    self.withdraw(&host, open.id);
                }
            }
        }
    }

    /// Stored jobs of which `is_hopeless` says that nobody is to be waited for any more, though they
    /// were handed out; each with those hosts that may have begun it. One that `is_there` and does
    /// not hold it has not.
    pub(in crate::controller) fn unheard(
        &self,
        is_hopeless: impl Fn(&Record) -> bool,
        is_there: impl Fn(&str) -> bool,
        most: usize,
    ) -> Vec<(Uuid, Vec<String>)> {
        let unheard = |slot: &Slot| {
            if !is_hopeless(&slot.open.record) {
                return None;
            }
            let id = slot.open.id;
            let handed = || slot.missing.iter().filter(|host| self.was_handed(host, id));
            handed().next()?;
            let may_have_begun = |host: &&String| {
                let is_out = self.hosts.get(*host).is_some_and(|lane| lane.is_out(id));
                is_out || !is_there(host)
            };
            Some((id, handed().filter(may_have_begun).cloned().collect()))
        };
        let stored = self.open.values().filter(|slot| slot.open.is_stored);
        stored.filter_map(unheard).take(most).collect()
    }

    /// No longer waits for the hosts that were handed a job, of which `unheard` may have begun it.
    pub(in crate::controller) fn give_up(&mut self, id: Uuid, unheard: Vec<String>) {
        let Some(slot) = self.open.get(&id) else { return };
        slot.open.so_far.send_modify(|so_far| so_far.unheard.extend(unheard));
        for host in slot.missing.clone() {
            if self.was_handed(&host, id) {
                self.withdraw(&host, id);
            }
        }
    }

    /// Whether it is known that `host` was handed it, or has said that it holds it.
    fn was_handed(&self, host: &str, id: Uuid) -> bool {
        self.hosts.get(host).is_some_and(|lane| lane.held.contains_key(&id))
    }

    /// What is in memory only and was handed to a host longer ago than `is_long` says is enough.
    pub(in crate::controller) fn overdue(
        &self,
        is_long: impl Fn(&Open, u64) -> bool,
    ) -> Vec<(Uuid, String)> {
        let mut overdue = Vec::new();
        for (host, lane) in &self.hosts {
            let is_overdue = |open: &Open, held: &Held| {
                !open.is_stored && held.since.is_some_and(|since| is_long(open, since))
            };
            let held = lane.held.iter().filter(|(id, held)| {
                self.open.get(*id).is_some_and(|slot| is_overdue(&slot.open, held))
            });
            overdue.extend(held.map(|(id, _)| (*id, host.clone())));
        }
        overdue
    }

    /// Takes note that what is in memory only is finished, and drops the oldest of its kind where
    /// all of them together take too much.
    pub(super) fn keep(&mut self, id: Uuid) {
        let Some(slot) = self.open.get_mut(&id) else { return };
        let told = |reports: &[(String, Arc<Report>)]| {
            reports.iter().map(|(_, report)| NAME + weight(report)).sum::<usize>()
        };
        let reports = told(&slot.open.so_far.borrow().reports);
        self.weight -= slot.weight;
        slot.weight = slot.open.record.job.hosts.len() * NAME + reports;
        self.weight += slot.weight;
        let newest = id.to_string();
        while self.weight > WEIGHT && self.forget_one(|record| record.job.id != newest) {}
    }

    /// Drops the oldest finished job that is in memory only. False where there is none.
    pub(in crate::controller) fn forget_one(&mut self, is_old: impl Fn(&Record) -> bool) -> bool {
        let is_done = |slot: &&Slot| {
            !slot.open.is_stored && slot.missing.is_empty() && is_old(&slot.open.record)
        };
        let found = self.open.values().find(is_done).map(|slot| slot.open.id);
        found.map(|id| self.remove(id)).is_some()
    }
}

/// About what it takes, in bytes.
fn weight(report: &Report) -> usize {
    fn value(it: &Value) -> usize {
        size_of::<Value>()
            + match it {
                Value::String(text) => text.len(),
                Value::Array(values) => values.iter().map(value).sum(),
                Value::Object(members) => {
                    members.iter().map(|(name, it)| MEMBER + name.len() + value(it)).sum()
                }
                _ => 0,
            }
    }
    REPORT
        + match &report.outcome {
            Outcome::Done { result } => value(result),
            Outcome::Failed { error } => error.message.len(),
        }
}
