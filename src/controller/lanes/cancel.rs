//! Calling jobs off: which hosts have not begun, and which have to be asked.

use uuid::Uuid;

use super::{Lane, Lanes};

impl Lanes {
    /// Hands a job out no more, and says to which hosts it never was, so that none of these has
    /// begun.
    pub(in crate::controller) fn hold_back(&mut self, id: Uuid) -> Vec<String> {
        let Some(slot) = self.open.get(&id) else { return Vec::new() };
        let mut hosts = Vec::new();
        for host in &slot.missing {
            let Some(lane) = self.hosts.get_mut(host) else { continue };
            if !lane.may_have(id) && lane.leave(&slot.open) {
                hosts.push(host.clone());
            }
        }
        hosts
    }

    /// Takes that back.
    pub(in crate::controller) fn offer_again(&mut self, id: Uuid, hosts: &[String]) {
        let Some(slot) = self.open.get(&id) else { return };
        for host in hosts.iter().filter(|host| slot.missing.contains(*host)) {
            let Some(lane) = self.hosts.get_mut(host) else { continue };
            lane.stored += usize::from(slot.open.is_stored);
            lane.classes[slot.open.class as usize].insert(id);
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
