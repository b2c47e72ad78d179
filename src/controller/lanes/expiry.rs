//! What is let go of because of its age.

use uuid::Uuid;

use super::{Held, Lanes, Open, Slot};
use crate::job::Record;

impl Lanes {
    /// Lets go of what `is_due` says will not be begun any more. What a host may have been handed
    /// may have been begun in time; it is let go of once `is_hopeless` says so.
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
                if !self.may_have(&host, open.id) || is_hopeless(&open.record) {
                    self.withdraw(&host, open.id);
                }
            }
        }
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

    /// Drops the oldest finished job that is in memory only. False where there is none.
    pub(in crate::controller) fn forget_one(&mut self, is_old: impl Fn(&Record) -> bool) -> bool {
        let is_done = |slot: &&Slot| {
            !slot.open.is_stored && slot.missing.is_empty() && is_old(&slot.open.record)
        };
        let found = self.open.values().find(is_done).map(|slot| slot.open.id);
        found.map(|id| self.remove(id)).is_some()
    }
}
