//! Telling hosts that there is something for them.

use std::collections::{BTreeSet, HashSet};

use super::super::desk::ROOM;
use super::super::lanes::{Question, Which};
use super::super::{Controller, Shared, lock};
use super::{Carrier, carried};
use crate::broker::Line;
use crate::error::Result;
use crate::job::encode;
use crate::link::Class;
use crate::link::bus::{Handed, Wake};

/// Why a host is told something.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub(in crate::controller) enum Why {
    /// Nobody here knows what it is like.
    Who,
    /// The connection is new: who is there, and of which classes is there something?
    All,
    /// Something was called off that it may have.
    Off,
    /// It does not hold what it should.
    Lost,
    /// Something was taken on here.
    New,
}

/// What only this controller can hand out.
const IN_MEMORY: [Class; 2] = [Class::Look, Class::Follow];

impl Wake {
    fn is_empty(&self) -> bool {
        let Self { tasks, ask, called_off, who } = self;
        tasks.is_empty() && ask.is_empty() && called_off.is_empty() && !who
    }
}

impl Controller {
    /// Tells hosts, each in its turn. While there is no connection they wait.
    pub(super) async fn run_errands(self: Shared) {
        let Some(carrier) = self.carrier.get() else { return };
        loop {
            carrier.is_due.notified().await;
            let Some(line) = carrier.bus.next_line().await else { return };
            let errands = std::mem::take(&mut *lock(&carrier.errands));
            for (host, whys) in errands {
                if let Err(error) = self.run_errand(carrier, &line, &host, whys).await {
                    // What it should have is found missing with its next beat.
                    tracing::debug!(%error, host, "cannot tell a host what there is to do");
                }
            }
        }
    }

    async fn run_errand(
        &self,
        carrier: &Carrier,
        line: &Line,
        host: &str,
        mut whys: BTreeSet<Why>,
    ) -> Result<()> {
        while !whys.is_empty() {
            let wake = self.wake(host, &mut whys, Carrier::room(line))?;
            if wake.is_empty() {
                return Ok(());
            }
            let sent = line.client.publish(carrier.subjects.wake(host), encode(&wake)?).await;
            sent.map_err(|error| crate::broker::broken().because(error))?;
        }
        Ok(())
    }

    /// What fits into one message of what `host` is to be told, and takes that out of `whys`.
    fn wake(&self, host: &str, whys: &mut BTreeSet<Why>, mut room: usize) -> Result<Wake> {
        let mut wake = Wake::default();
        let mut has_room = |task: &Handed| {
            let left = room.checked_sub(carried(&task.task.body));
            room = left.unwrap_or(room);
            left.is_some()
        };
        wake.who = whys.remove(&Why::Who);
        if whys.remove(&Why::All) {
            wake.who = true;
            let left = self.lanes().lengths(host);
            wake.ask = Class::ALL.into_iter().filter(|class| left[*class as usize] > 0).collect();
        }
        let (is_off, is_reminded) = (whys.remove(&Why::Off), whys.contains(&Why::Lost));
        if is_off || is_reminded {
            let called_off: Vec<_> = self.lanes().called_off(host).into_iter().take(ROOM).collect();
            wake.called_off = called_off.iter().map(ToString::to_string).collect();
            // Whoever has not begun answers that, and whoever has never got it as well.
            let may_be_told = is_off && self.vouched(host).is_ok();
            for id in called_off.into_iter().filter(|_| may_be_told) {
                let open = self.lanes().get(id);
                let handed = open.map(|open| self.handed(&open, host)).transpose()?;
                wake.tasks.extend(handed.filter(&mut has_room));
            }
        }
        for (why, which) in [(Why::Lost, Which::Lost), (Why::New, Which::New)] {
            if !whys.remove(&why) {
                continue;
            }
            let (holds, classes) = (HashSet::new(), Class::ALL.to_vec());
            let waits = Some(HashSet::new());
            let question = Question { holds, waits, classes, most: ROOM, which };
            let (tasks, more) = self.offer(host, &question, &mut has_room)?;
            if !tasks.is_empty() && more.iter().any(|class| IN_MEMORY.contains(class)) {
                whys.insert(why);
            }
            wake.tasks.extend(tasks);
            wake.ask.extend(more.into_iter().filter(|class| !IN_MEMORY.contains(class)));
        }
        wake.ask.sort_unstable_by_key(|class| *class as usize);
        wake.ask.dedup();
        Ok(wake)
    }
}
