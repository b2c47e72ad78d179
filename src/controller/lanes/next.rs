//! Handing out what there is to do.

use std::collections::HashSet;

use uuid::Uuid;

use super::{GRACE, Held, Lanes, Open};
use crate::link::Class;

/// What a host asks for.
pub(in crate::controller) struct Question {
    pub(in crate::controller) holds: HashSet<Uuid>,
    /// What of that waits in a relay until the agent asks for it; None where the agent asks itself.
    pub(in crate::controller) waits: Option<HashSet<Uuid>>,
    pub(in crate::controller) classes: Vec<Class>,
    /// How many tasks of each class.
    pub(in crate::controller) most: usize,
    pub(in crate::controller) which: Which,
}

/// What of a lane is meant.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(in crate::controller) enum Which {
    /// Whatever is not held; by the number of the question among those of its host.
    Asked(u64),
    /// What was taken on here and has still to be handed out.
    New,
    /// What nobody has held for a while, though the host was told of it, or somebody else had time
    /// to tell it.
    Lost,
}

impl Lanes {
    /// Takes the tasks that a question of `host` asks for, in order of submission, for as long as
    /// `take` agrees; it is `at` on the clock of the boot, in milliseconds. What was handed out
    /// before it was asked, and is not held, was lost on the way. Says of which classes there is
    /// more.
    pub(in crate::controller) fn next(
        &mut self,
        host: &str,
        question: &Question,
        at: u64,
        mut take: impl FnMut(&Open) -> bool,
    ) -> Vec<Class> {
        let Question { holds, waits, classes, most, which } = question;
        let Some(lane) = self.hosts.get_mut(host) else { return Vec::new() };
        // Questions for other classes may be on their way, answered and not yet counted in.
        let asked =
            |id: &Uuid| classes.iter().any(|class| lane.classes[*class as usize].contains(id));
        let is_lost = |id: &Uuid, after: u64| match which {
            Which::Asked(number) => after < *number && asked(id) && !holds.contains(id),
            _ => false,
        };
        let lost: Vec<_> = lane
            .held
            .iter()
            .filter(|(id, held)| is_lost(id, held.after))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            lane.held.entry(id).and_modify(|held| held.is_lost = true);
        }
        lane.hold(holds, waits.as_ref(), at);
        let (mut more, mut is_full) = (Vec::new(), false);
        for class in classes {
            let mut left = lane.room(*class, *which, *most);
            for id in &lane.classes[*class as usize] {
                let Some(slot) = self.open.get(id) else { continue };
                // Another controller may have ended before it told of an earlier change: whoever asks
                // is given both in order.
                if *which == Which::New
                    && *class == Class::Change
                    && lane.is_of_others(*id, slot.is_own)
                {
                    more.push(*class);
                    break;
                }
                let is_meant = match which {
                    Which::Asked(_) => true,
                    Which::New => slot.is_own && !lane.held.contains_key(id),
                    Which::Lost => slot.since.elapsed() >= GRACE,
                };
                if !is_meant || lane.is_out(*id) {
                    continue;
                }
                if left == 0 || is_full || !take(&slot.open) {
                    is_full |= left > 0;
                    more.push(*class);
                    break;
                }
                left -= 1;
                let was_taken = lane.held.get(id).is_some_and(|held| held.is_taken);
                let is_taken = was_taken || waits.is_none();
                let held = Held { after: lane.asked, since: Some(at), is_lost: false, is_taken };
                lane.held.insert(*id, held);
                lane.inherited.remove(id);
            }
        }
        more
    }
}
