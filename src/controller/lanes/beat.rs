//! What is known of hosts that are told of work, and say now and then what they hold.

use std::collections::HashSet;

use uuid::Uuid;

use super::{GRACE, Lane, Lanes, Which};
use crate::link::Class;

/// How much of a lane is looked through for what is new.
const NEAR: usize = 128;

impl Lane {
    /// How many tasks of `class` are handed out together. A host is not sent more of what it can
    /// ask any controller for than one answer has; what is in memory here nobody else can give it.
    pub(super) fn room(&self, class: Class, which: Which, most: usize) -> usize {
        if matches!(which, Which::Asked(_)) || matches!(class, Class::Look | Class::Follow) {
            return most;
        }
        let out = self.classes[class as usize].iter().filter(|id| self.is_out(**id)).count();
        most.saturating_sub(out)
    }

    /// Whether it is for another controller to tell of `id`, and nobody knows whether it has.
    pub(super) fn is_of_others(&self, id: Uuid, is_own: bool) -> bool {
        !is_own && !self.is_out(id)
    }

    /// Takes it that any controller may have handed the host what is stored, what is `held_back` from
    /// it here included.
    fn may_have_all(&mut self, held_back: impl Iterator<Item = Uuid>) {
        let unknown = held_back.filter(|id| !self.held.contains_key(id));
        self.inherited.extend(unknown);
        for class in [Class::Change, Class::Act, Class::Verdict] {
            let unknown = self.classes[class as usize].iter();
            let unknown = unknown.filter(|id| !self.held.contains_key(*id)).copied();
            self.inherited.extend(unknown.collect::<Vec<_>>());
        }
    }
}

impl Lanes {
    /// Takes note that `host` is there `at` that time, by the clock of the boot in milliseconds, and
    /// holds these and nothing else. What it was handed a while ago and does not hold was lost on
    /// the way. What `waits` its agent has still to ask for. Says whether something is left for it
    /// to do.
    pub(in crate::controller) fn beat(
        &mut self,
        host: &str,
        holds: &HashSet<Uuid>,
        waits: &HashSet<Uuid>,
        at: u64,
    ) -> bool {
        let Some(lane) = self.hosts.get_mut(host) else { return false };
        let grace = u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX);
        for (id, held) in &mut lane.held {
            let is_new = held.since.is_some_and(|since| since.saturating_add(grace) > at);
            held.is_lost |= !is_new && !holds.contains(id);
        }
        lane.hold(holds, Some(waits), at);
        lane.may_have_all(Self::held_back(&self.undecided, host));
        lane.classes.iter().any(|left| !left.is_empty())
    }

    /// Whether something of `class` that was taken on here waits for `host` to have room, not far
    /// behind what it has.
    pub(in crate::controller) fn has_new(&self, host: &str, class: Class) -> bool {
        let Some(lane) = self.hosts.get(host) else { return false };
        let is_new = |id: &&Uuid| {
            let is_own = || self.open.get(*id).is_some_and(|slot| slot.is_own);
            !lane.held.contains_key(*id) && is_own()
        };
        lane.classes[class as usize].iter().take(NEAR).any(|id| is_new(&id))
    }

    /// Takes note that `host` is there, and that another controller may have heard so before.
    pub(in crate::controller) fn heard(&mut self, host: &str) {
        if let Some(lane) = self.hosts.get_mut(host) {
            lane.may_have_all(Self::held_back(&self.undecided, host));
        }
    }

    /// The same of all hosts for which `was_unheard` says that nothing could be heard of them.
    pub(in crate::controller) fn all_heard(&mut self, was_unheard: impl Fn(&str) -> bool) {
        for (host, lane) in self.hosts.iter_mut().filter(|(host, _)| was_unheard(host)) {
            lane.may_have_all(Self::held_back(&self.undecided, host));
        }
    }
}
