//! Jobs for any host that go from one host to another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;

use super::{Lanes, Open, Slot};
use crate::job::{Job, Record};
use crate::link::Class;
use crate::store::Revision;

impl Open {
    /// Whether another host could do it as well. What its secrets were sealed for is one host.
    pub(in crate::controller) fn is_for_any(&self) -> bool {
        let is_plain = matches!(self.class, Class::Look | Class::Change);
        is_plain && self.record.job.target == "_any" && self.record.sealed.is_none()
    }

    /// Whether this controller may hand it out.
    pub(in crate::controller) fn may_go(&self) -> bool {
        self.may_go.load(Ordering::Relaxed)
    }

    pub(in crate::controller) fn let_go(&self, may_go: bool) {
        self.may_go.store(may_go, Ordering::Relaxed);
    }
}

impl Lanes {
    /// Jobs that wait for a host that `is_away` and that another could do, with that host, up to
    /// `most`. Of what is stored it is certain that nobody was handed it: it was made here, and not
    /// handed out here. What only looks may as well be begun twice.
    pub(in crate::controller) fn movable(
        &mut self,
        is_away: impl Fn(&str) -> bool,
        most: usize,
    ) -> Vec<(Uuid, String)> {
        let open = &self.open;
        self.withheld.retain(|id, _| open.contains_key(id));
        let withheld = self.withheld.iter().map(|(id, host)| (*id, host.clone()));
        let mut movable: Vec<_> = withheld.take(most).collect();
        // What hosts have to do besides is not looked at: that may be very much.
        let can_move = |slot: &Slot| {
            let (open, host) = (&slot.open, slot.missing.first()?);
            let lane = self.hosts.get(host).filter(|_| is_away(host))?;
            let is_there = lane.classes[open.class as usize].contains(&open.id);
            let may = !open.is_stored || slot.is_own && !lane.may_have(open.id);
            (is_there && may).then(|| (open.id, host.clone()))
        };
        let for_any = self.open.values().filter(|slot| slot.open.is_for_any());
        let room = most.saturating_sub(movable.len());
        movable.extend(for_any.filter_map(can_move).take(room));
        movable
    }

    /// Hands a job of `host` out no more, until it is decided who is to have it. False where
    /// `host` may have it.
    pub(in crate::controller) fn withhold(&mut self, id: Uuid, host: &str) -> bool {
        if self.withheld.contains_key(&id) {
            return true;
        }
        let (Some(slot), Some(lane)) = (self.open.get(&id), self.hosts.get_mut(host)) else {
            return false;
        };
        let is_free = slot.is_own && !lane.may_have(id) && lane.leave(&slot.open);
        if is_free {
            self.withheld.insert(id, host.to_owned());
        }
        is_free
    }

    /// Whether it is being decided who is to have it.
    pub(in crate::controller) fn is_withheld(&self, id: Uuid) -> bool {
        self.withheld.contains_key(&id)
    }

    /// Takes that back.
    pub(in crate::controller) fn release(&mut self, id: Uuid) {
        if let Some(host) = self.withheld.remove(&id) {
            self.offer_again(id, &[host]);
        }
    }

    /// Takes note that a job for one host is, from `revision` on, for the one that `job` says.
    pub(in crate::controller) fn readdressed(&mut self, id: Uuid, revision: Revision, job: &Job) {
        let (Some(slot), [to]) = (self.open.get_mut(&id), job.hosts.as_slice()) else { return };
        let old = slot.open.clone();
        if old.record.job.hosts == job.hosts {
            return self.release(id);
        }
        self.withheld.remove(&id);
        let to = to.clone();
        let (hosts, moved) = (job.hosts.clone(), job.moved.clone());
        let job = Job { hosts, moved, ..old.record.job.clone() };
        let open = Arc::new(Open {
            record: Arc::new(Record { job, ..Record::clone(&old.record) }),
            so_far: old.so_far.clone(),
            may_go: AtomicBool::new(old.may_go()),
            ..*old
        });
        slot.open = open.clone();
        slot.missing = BTreeSet::from([to.clone()]);
        for host in &old.record.job.hosts {
            if let Some(lane) = self.hosts.get_mut(host) {
                lane.leave(&old);
            }
        }
        self.rewritten(id, revision, None);
        let lane = self.hosts.entry(to.clone()).or_default();
        if lane.classes[open.class as usize].insert(id) {
            lane.stored += usize::from(open.is_stored);
        }
        lane.arrived[open.class as usize].notify_last();
        open.so_far.send_modify(|so_far| so_far.taken_over_by = Some(to));
    }

    /// Takes note of what the record of a job says that was withheld until that was known.
    pub(in crate::controller) fn reread(&mut self, id: Uuid, revision: Revision, job: &Job) {
        // Whoever answers for the store may lag behind what is known here.
        if self.open.get(&id).is_none_or(|slot| slot.revision > revision) {
            return;
        }
        self.readdressed(id, revision, job);
        if job.is_settled {
            // By another controller, which may have handed it out by now.
            self.settled(id);
            self.inherit(id, |_| true);
        }
        if job.cancelled.is_some() {
            self.rewritten(id, revision, job.cancelled.clone());
        }
    }

    /// Takes note of all that a record says which was written again: who is to have the job, which may
    /// be another host than is known here, and whether it is called off.
    pub(in crate::controller) fn read(&mut self, id: Uuid, revision: Revision, job: &Job) {
        if job.target == "_any" {
            let was_withheld = self.withheld.contains_key(&id);
            // What was noted when it was stored comes round later, and may be outdated by then.
            let is_news =
                |slot: &Slot| revision > slot.revision && slot.open.record.job.hosts != job.hosts;
            if self.open.get(&id).is_some_and(is_news) {
                self.readdressed(id, revision, job);
                if !was_withheld {
                    // By another controller, which may have handed it out by now.
                    self.inherit(id, |_| true);
                }
            }
        }
        if job.is_settled {
            self.settled(id);
        }
        self.rewritten(id, revision, job.cancelled.clone());
    }

    /// Takes note that a job stays with its host, so that every controller may hand it out.
    pub(in crate::controller) fn settled(&mut self, id: Uuid) {
        let Some(slot) = self.open.get_mut(&id) else { return };
        slot.is_own = false;
        if !slot.open.may_go() {
            slot.open.let_go(true);
            for host in slot.missing.clone() {
                self.wake(&host);
            }
        }
    }
}
