//! Calling jobs off: which hosts have not begun, and which have to be asked.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{Lane, Lanes};
use crate::job::Mark;
use crate::link::Class;
use crate::store::Revision;

/// What is known of a job of which it is not known whether it is called off.
pub(super) struct Undecided {
    /// Hosts that were never handed it, and are not until that is known.
    hosts: BTreeSet<String>,
    /// What its record has to be newer than to say so: what would have called the job off was to take
    /// the place of this revision, or of an earlier one.
    revision: Revision,
    /// How many tries there were that may have called it off.
    tries: usize,
}

impl Lanes {
    /// Hands a job out no more, and says to which hosts it never was, so that none of these has
    /// begun. They are given it again once its record says that it is not called off, or all that
    /// tried to were [refused](Self::refused) that.
    pub(in crate::controller) fn hold_back(&mut self, id: Uuid) -> Vec<String> {
        let Some(slot) = self.open.get(&id) else { return Vec::new() };
        let mut hosts = self.undecided.get(&id).map(|it| it.hosts.clone()).unwrap_or_default();
        // Another controller may have handed it out since, which does not know of this.
        hosts.retain(|host| {
            let may_have = self.hosts.get(host).is_some_and(|lane| lane.may_have(id));
            slot.missing.contains(host) && !may_have
        });
        for host in &slot.missing {
            let Some(lane) = self.hosts.get_mut(host) else { continue };
            if !lane.may_have(id) && lane.leave(&slot.open) {
                hosts.insert(host.clone());
            }
        }
        if !hosts.is_empty() {
            let new = Undecided { hosts: BTreeSet::new(), revision: slot.revision, tries: 0 };
            let undecided = self.undecided.entry(id).or_insert(new);
            undecided.hosts.clone_from(&hosts);
            undecided.tries += 1;
        }
        hosts.into_iter().collect()
    }

    /// Takes note that `revision` of a job's record is about to be replaced by one that calls it
    /// off. False where its `hosts` have been given it again since they were held back.
    pub(in crate::controller) fn calls_off(
        &mut self,
        id: Uuid,
        hosts: &[String],
        revision: Revision,
    ) -> bool {
        let Some(undecided) = self.undecided.get_mut(&id) else { return hosts.is_empty() };
        undecided.revision = undecided.revision.max(revision);
        hosts.iter().all(|host| undecided.hosts.contains(host))
    }

    /// Takes note that a try to call a job off, for which `hosts` were held back, surely has not.
    pub(in crate::controller) fn refused(&mut self, id: Uuid, hosts: &[String]) {
        let Some(undecided) = self.undecided.get_mut(&id).filter(|_| !hosts.is_empty()) else {
            return;
        };
        undecided.tries = undecided.tries.saturating_sub(1);
        if undecided.tries == 0 {
            self.give_back(id);
        }
    }

    /// Jobs that are held back from `host`.
    pub(super) fn held_back<'a>(
        undecided: &'a BTreeMap<Uuid, Undecided>,
        host: &'a str,
    ) -> impl Iterator<Item = Uuid> + 'a {
        undecided.iter().filter(move |(_, it)| it.hosts.contains(host)).map(|(id, _)| *id)
    }

    /// Up to `most` jobs of which it is not known whether they are called off, and whether each is
    /// stored.
    pub(in crate::controller) fn undecided(&self, most: usize) -> Vec<(Uuid, bool)> {
        let is_stored = |id| self.open.get(id).is_some_and(|slot| slot.open.is_stored);
        self.undecided.keys().take(most).map(|id| (*id, is_stored(id))).collect()
    }

    /// Offers a job again that is not called off.
    pub(in crate::controller) fn give_back(&mut self, id: Uuid) {
        if let Some(Undecided { hosts, .. }) = self.undecided.remove(&id) {
            self.offer_again(id, &hosts.into_iter().collect::<Vec<_>>());
        }
    }

    /// What `revision` of a job's record means for those who are held back.
    fn decide(&mut self, id: Uuid, revision: Revision, cancelled: Option<&Mark>) {
        if let Some(mark) = cancelled {
            // Those who may have it by now are asked, and a task that is handed out says so.
            if let Some(Undecided { hosts, .. }) = self.undecided.remove(&id) {
                let asked = hosts.into_iter().filter(|host| mark.asked.contains(host));
                self.offer_again(id, &asked.collect::<Vec<_>>());
            }
        } else if self.undecided.get(&id).is_some_and(|it| it.revision < revision) {
            // Whatever was to replace an earlier one never will.
            self.give_back(id);
        }
    }

    /// Takes note that the record of an open job was written again.
    pub(in crate::controller) fn rewritten(
        &mut self,
        id: Uuid,
        revision: Revision,
        cancelled: Option<Mark>,
    ) {
        let Some(slot) = self.open.get_mut(&id) else { return };
        if slot.open.is_stored {
            self.holding.remove(&slot.revision);
            // What was noted when it was stored comes round later.
            slot.revision = slot.revision.max(revision);
            if !slot.is_parked {
                self.holding.insert(slot.revision, id);
            }
        }
        self.decide(id, revision, cancelled.as_ref());
        let Some(slot) = self.open.get(&id) else { return };
        if let Some(mark) = cancelled {
            let open = slot.open.clone();
            let asked = mark.asked.clone();
            open.so_far.send_modify(|so_far| so_far.cancelled = Some(mark));
            // Who may have begun may still answer, as far as anybody knows.
            for host in slot.missing.clone() {
                let may_have = |lane: &Lane| lane.may_have(id) || asked.contains(&host);
                let lane = self.hosts.get_mut(&host).filter(|lane| may_have(lane));
                if let Some(lane) = lane {
                    if !lane.may_have(id) {
                        lane.inherited.insert(id);
                    }
                    lane.called_off.insert(id);
                    // Whoever waits for these never waits long.
                    lane.arrived[Class::Verdict as usize].notify_waiters();
                } else {
                    self.withdraw(&host, id);
                }
            }
        }
    }

    /// Has `hosts` given a job that was kept from them.
    pub(super) fn offer_again(&mut self, id: Uuid, hosts: &[String]) {
        let Some(slot) = self.open.get(&id) else { return };
        for host in hosts.iter().filter(|host| slot.missing.contains(*host)) {
            let Some(lane) = self.hosts.get_mut(host) else { continue };
            if lane.classes[slot.open.class as usize].insert(id) {
                lane.stored += usize::from(slot.open.is_stored);
            }
            lane.arrived[slot.open.class as usize].notify_waiters();
        }
    }

    /// Hosts that may have taken `id`, have still to answer, and can be asked to let go of it: any
    /// where it `waits` for its time, else those of which nobody knows whether they have begun, such
    /// as those for which it may still wait in a relay.
    pub(in crate::controller) fn may_let_go(&self, id: Uuid, waits: bool) -> Vec<String> {
        let missing = self.open.get(&id).map(|slot| slot.missing.iter()).into_iter().flatten();
        let may = |lane: &Lane| lane.may_have(id) && (waits || !lane.has(id) || !lane.is_taken(id));
        missing.filter(|host| self.hosts.get(*host).is_some_and(may)).cloned().collect()
    }

    /// What was called off since `host` took it.
    pub(in crate::controller) fn called_off(&self, host: &str) -> Vec<Uuid> {
        let lane = self.hosts.get(host);
        lane.into_iter().flat_map(|lane| &lane.called_off).copied().collect()
    }
}
