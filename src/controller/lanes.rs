//! What hosts have still to do, derived from the jobs that are not finished.
//!
//! Nothing here is stored and nothing here is a promise: it is rebuilt from the store at every
//! start. A host has one lane for each class of work, so that a thousand queued changes do not
//! stand in the way of a read.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::job::{Job, Mark, Progress, Record, Report};
use crate::link::Class;
use crate::store::Revision;

mod beat;
mod cancel;
mod expiry;
mod foreseen;
mod next;
mod over;

use cancel::Undecided;
pub(super) use next::{Question, Which};

/// How long a host, and whoever else hands work out, may take to say something of what is new.
const GRACE: Duration = Duration::from_secs(2);
/// One for each class.
const LANES: usize = Class::ALL.len();

#[derive(Default)]
pub(super) struct Lanes {
    /// By id, which is the order of submission.
    open: BTreeMap<Uuid, Slot>,
    hosts: HashMap<String, Lane>,
    /// Stored jobs that a restart would have to read, by the revision of their record.
    holding: BTreeMap<Revision, Uuid>,
    /// How many of `open` are in memory only, finished or not.
    volatile: usize,
    /// What those that are finished take, in bytes.
    weight: usize,
    /// Stored jobs that are over since somebody asked.
    ended: Vec<Ended>,
    /// Whether other controllers take on and hand out jobs as well.
    pub(super) is_shared: bool,
    /// What was taken note of when it was stored, and has still to come round.
    foreseen: BTreeSet<Revision>,
    /// Jobs that nobody is handed, because it is being decided whether they go to another host
    /// than this one.
    withheld: BTreeMap<Uuid, String>,
    /// Jobs that nobody is handed, because it is not known yet whether they are called off.
    undecided: BTreeMap<Uuid, Undecided>,
}

/// A stored job from which nothing more is expected.
pub(super) struct Ended {
    pub(super) open: Arc<Open>,
    /// Whether a restart still finds it by name.
    pub(super) is_parked: bool,
}

/// A job that some host has still to answer, or whose caller may still ask.
pub(super) struct Open {
    pub(super) id: Uuid,
    pub(super) record: Arc<Record>,
    pub(super) class: Class,
    /// Whether it is in the store.
    pub(super) is_stored: bool,
    /// What became of it so far.
    pub(super) so_far: watch::Sender<SoFar>,
    may_go: AtomicBool,
}

#[derive(Clone, Default)]
pub(super) struct SoFar {
    /// By machine id, in the order in which they came.
    pub(super) reports: Vec<(String, Arc<Report>)>,
    pub(super) cancelled: Option<Mark>,
    /// Its hosts can be handed it.
    pub(super) is_admitted: bool,
    /// No more is expected.
    pub(super) is_over: bool,
    /// How far hosts have said they are, by machine id.
    pub(super) told: BTreeMap<String, Progress>,
    /// The host that it has gone to since it was made, where any could do it.
    pub(super) taken_over_by: Option<String>,
    /// Hosts that were handed it and are waited for no more.
    pub(super) unheard: Vec<String>,
}

impl SoFar {
    /// Of a job that is not open any more.
    pub(super) fn over() -> Self {
        Self { is_admitted: true, is_over: true, ..Self::default() }
    }

    /// `job` with the host that has it now.
    pub(super) fn job<'a>(&self, job: &'a Job) -> Cow<'a, Job> {
        match &self.taken_over_by {
            Some(host) => Cow::Owned(Job { hosts: vec![host.clone()], ..job.clone() }),
            None => Cow::Borrowed(job),
        }
    }

    /// The reports by machine id. A job may be for very many hosts.
    pub(super) fn by_host(&self) -> HashMap<&str, &Report> {
        self.reports.iter().map(|(host, report)| (host.as_str(), &**report)).collect()
    }
}

struct Slot {
    open: Arc<Open>,
    /// Zero until it is in the store.
    revision: Revision,
    is_parked: bool,
    /// Whether it was taken on here, and not found in the store.
    is_own: bool,
    /// Since when it is known here.
    since: Instant,
    /// Hosts that have still to answer.
    missing: BTreeSet<String>,
    /// What it takes, in bytes, where it is finished and in memory only.
    weight: usize,
}

/// When something was handed out.
#[derive(Clone, Copy, Default)]
struct Held {
    /// After how many questions.
    after: u64,
    /// On the clock of the boot, in milliseconds; none where it was not by this controller.
    since: Option<u64>,
    /// Nobody holds it any more. It may have been begun all the same, by an agent that ended.
    is_lost: bool,
    /// The agent has it, or has had it, and not only a relay that keeps it for the agent.
    is_taken: bool,
}

impl Held {
    /// Somebody says `at` that time that it is held.
    fn again(self, at: u64, is_taken: bool) -> Self {
        let is_taken = self.is_taken || is_taken;
        Self { since: self.since.or(Some(at)), is_lost: false, is_taken, ..self }
    }
}

#[derive(Default)]
struct Lane {
    /// What is left, by class, in order of id.
    classes: [BTreeSet<Uuid>; LANES],
    /// What was handed out and may have been begun.
    held: HashMap<Uuid, Held>,
    /// What was found in the store and not handed out since. Whoever ran before may have done that.
    inherited: BTreeSet<Uuid>,
    /// What of both was called off since.
    called_off: BTreeSet<Uuid>,
    /// How many questions there were.
    asked: u64,
    /// One for each class: what arrives wakes one who asks for it.
    arrived: [Arc<Notify>; LANES],
    stored: usize,
}

impl Lane {
    fn leave(&mut self, open: &Open) -> bool {
        self.held.remove(&open.id);
        self.inherited.remove(&open.id);
        self.called_off.remove(&open.id);
        let was_there = self.classes[open.class as usize].remove(&open.id);
        if was_there && open.is_stored {
            self.stored -= 1;
        }
        was_there
    }

    /// Whether it was handed out, as far as anybody knows.
    fn may_have(&self, id: Uuid) -> bool {
        self.held.contains_key(&id) || self.inherited.contains(&id)
    }

    /// Takes note that `host` says `at` that time that it holds these, some of which may wait for
    /// its agent.
    fn hold(&mut self, holds: &HashSet<Uuid>, waits: Option<&HashSet<Uuid>>, at: u64) {
        for id in holds {
            if self.classes.iter().any(|left| left.contains(id)) {
                let is_taken = waits.is_none_or(|waits| !waits.contains(id));
                let held = self.held.entry(*id).or_default();
                *held = held.again(at, is_taken);
                self.inherited.remove(id);
            }
        }
    }

    /// Whether it was handed out and not lost since.
    fn is_out(&self, id: Uuid) -> bool {
        self.held.get(&id).is_some_and(|held| !held.is_lost)
    }

    /// Whether the agent that is there now has it.
    fn has(&self, id: Uuid) -> bool {
        self.held.get(&id).is_some_and(|held| held.since.is_some() && !held.is_lost)
    }

    fn is_taken(&self, id: Uuid) -> bool {
        self.held.get(&id).is_some_and(|held| held.is_taken)
    }
}

impl Open {
    pub(super) fn new(
        id: Uuid,
        record: impl Into<Arc<Record>>,
        class: Class,
        is_stored: bool,
    ) -> Arc<Self> {
        let record = record.into();
        let so_far = SoFar { cancelled: record.job.cancelled.clone(), ..SoFar::default() };
        let (so_far, may_go) = (watch::Sender::new(so_far), AtomicBool::new(true));
        Arc::new(Self { id, record, class, is_stored, so_far, may_go })
    }
}

impl Lanes {
    /// Makes a job known before it is in the store, so that its caller can wait for it.
    pub(super) fn expect(&mut self, open: Arc<Open>) {
        let (missing, since) = (BTreeSet::new(), Instant::now());
        let (revision, weight) = (0, 0);
        let slot = Slot { open, revision, is_parked: false, is_own: true, since, missing, weight };
        self.open.insert(slot.open.id, slot);
    }

    /// Forgets a job that did not get into the store.
    pub(super) fn disappoint(&mut self, id: Uuid) {
        if self.open.get(&id).is_some_and(|slot| slot.open.is_stored && slot.revision == 0) {
            self.open.remove(&id);
        }
    }

    pub(super) fn is_expected(&self, id: Uuid) -> bool {
        self.open.get(&id).is_some_and(|slot| slot.open.is_stored && slot.revision == 0)
    }

    /// Puts an expected job into the lanes of its hosts, and wakes them.
    pub(super) fn admit(&mut self, id: Uuid, revision: Revision) {
        let Some(slot) = self.open.get_mut(&id) else { return };
        let open = slot.open.clone();
        slot.revision = revision;
        slot.missing.extend(open.record.job.hosts.iter().cloned());
        for host in &open.record.job.hosts {
            let lane = self.hosts.entry(host.clone()).or_default();
            lane.classes[open.class as usize].insert(id);
            lane.stored += usize::from(open.is_stored);
            lane.arrived[open.class as usize].notify_last();
        }
        if open.is_stored {
            self.holding.insert(revision, id);
        } else {
            self.volatile += 1;
        }
        open.so_far.send_modify(|so_far| so_far.is_admitted = true);
    }

    /// Notes the outcome; only the first of a host counts, unless it was taken back since.
    pub(super) fn finish(&mut self, id: Uuid, host: &str, report: Report) {
        let Some(slot) = self.open.get_mut(&id) else { return };
        if !slot.missing.remove(host) {
            if report.amends {
                slot.open.so_far.send_modify(|so_far| {
                    let told = so_far.reports.iter_mut().find(|(name, _)| name == host);
                    if let Some((_, told)) = told {
                        *told = Arc::new(report);
                    }
                });
            }
            return;
        }
        let open = slot.open.clone();
        if let Some(lane) = self.hosts.get_mut(host) {
            lane.leave(&open);
        }
        let report = Arc::new(report);
        open.so_far.send_modify(|so_far| so_far.reports.push((host.to_owned(), report)));
        self.settle(id);
    }

    /// No longer hands a task out whose outcome is durable, though it has not come round yet.
    pub(super) fn reported(&mut self, id: Uuid, host: &str) {
        let (Some(slot), Some(lane)) = (self.open.get(&id), self.hosts.get_mut(host)) else {
            return;
        };
        lane.leave(&slot.open);
    }

    /// No longer expects `host` to answer.
    fn withdraw(&mut self, host: &str, id: Uuid) {
        let Some(slot) = self.open.get_mut(&id) else { return };
        slot.missing.remove(host);
        if let Some(lane) = self.hosts.get_mut(host) {
            lane.leave(&slot.open);
        }
        self.settle(id);
    }

    /// Ends a job from which nothing more is expected. What is in memory only can be looked up
    /// until it is forgotten.
    fn settle(&mut self, id: Uuid) {
        let Some(slot) = self.open.get(&id) else { return };
        if !slot.missing.is_empty() {
            return;
        }
        slot.open.so_far.send_modify(|so_far| so_far.is_over = true);
        if slot.open.is_stored {
            self.ended.push(Ended { open: slot.open.clone(), is_parked: slot.is_parked });
            self.remove(id);
        } else {
            self.keep(id);
        }
    }

    /// Which stored jobs are over since this was asked last.
    pub(super) fn ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    /// Forgets a job.
    pub(super) fn remove(&mut self, id: Uuid) {
        self.undecided.remove(&id);
        let Some(slot) = self.open.remove(&id) else { return };
        if slot.open.is_stored {
            self.holding.remove(&slot.revision);
        } else {
            // Its revision is none of the store's.
            self.volatile -= usize::from(slot.revision > 0);
            self.weight -= slot.weight;
        }
        for host in &slot.missing {
            if let Some(lane) = self.hosts.get_mut(host) {
                lane.leave(&slot.open);
            }
        }
        slot.open.so_far.send_modify(|so_far| so_far.is_over = true);
    }

    /// A restart finds it by name from now on. False where it is not open.
    pub(super) fn parked(&mut self, id: Uuid) -> bool {
        let Some(slot) = self.open.get_mut(&id) else { return false };
        slot.is_parked = true;
        self.holding.remove(&slot.revision);
        true
    }

    /// No restart finds it by name any more, because it is over.
    pub(super) fn unparked(&mut self, id: Uuid) {
        if let Some(slot) = self.open.get_mut(&id) {
            slot.is_parked = false;
        }
    }

    /// Takes it that others may have handed `id`, which was not taken on here, to those of its
    /// hosts of which `may_have` says so, and to no others.
    pub(super) fn inherit(&mut self, id: Uuid, may_have: impl Fn(&String) -> bool) {
        let Some(slot) = self.open.get_mut(&id) else { return };
        slot.is_own = false;
        for host in &slot.missing {
            let Some(lane) = self.hosts.get_mut(host) else { continue };
            if may_have(host) {
                lane.inherited.insert(id);
            } else {
                lane.inherited.remove(&id);
            }
        }
    }

    /// Whether a restart finds it by name, and this host is the last that it waits for.
    pub(super) fn is_last_of_parked(&self, id: Uuid, host: &str) -> bool {
        let is_last = |slot: &Slot| slot.missing.iter().all(|missing| missing == host);
        self.open.get(&id).is_some_and(|slot| slot.is_parked && is_last(slot))
    }

    pub(super) fn get(&self, id: Uuid) -> Option<Arc<Open>> {
        self.open.get(&id).map(|slot| slot.open.clone())
    }

    /// Counts a question of `host` in.
    pub(super) fn asked(&mut self, host: &str) -> u64 {
        let lane = self.hosts.entry(host.to_owned()).or_default();
        lane.asked += 1;
        lane.asked
    }

    /// Whether something is still expected of it.
    pub(super) fn is_open(&self, id: Uuid) -> bool {
        self.open.get(&id).is_some_and(|slot| !slot.missing.is_empty())
    }

    /// Tells when something of `classes` for `host` arrives.
    pub(super) fn arrivals(&mut self, host: &str, classes: &[Class]) -> Vec<Arc<Notify>> {
        let lane = self.hosts.entry(host.to_owned()).or_default();
        classes.iter().map(|class| lane.arrived[*class as usize].clone()).collect()
    }

    /// Lets everybody who waits for work of `host` look again.
    pub(super) fn wake(&mut self, host: &str) {
        if let Some(lane) = self.hosts.get(host) {
            lane.arrived.iter().for_each(|arrived| arrived.notify_waiters());
        }
    }

    /// Whether `host` was handed `id`, by this controller or perhaps by one before, and may have
    /// begun.
    pub(super) fn may_have(&self, host: &str, id: Uuid) -> bool {
        self.hosts.get(host).is_some_and(|lane| lane.may_have(id))
    }

    /// Whether the agent of `host` has taken `id`, and so has begun or will.
    pub(super) fn is_taken(&self, host: &str, id: Uuid) -> bool {
        self.hosts.get(host).is_some_and(|lane| lane.is_taken(id))
    }

    pub(super) fn is_missing(&self, id: Uuid, host: &str) -> bool {
        self.open.get(&id).is_some_and(|slot| slot.missing.contains(host))
    }

    /// Stored jobs that `host` has still to finish.
    pub(super) fn stored_of(&self, host: &str) -> usize {
        self.hosts.get(host).map_or(0, |lane| lane.stored)
    }

    /// What `host` has still to do, by class: as in [`Class::ALL`].
    pub(super) fn lengths(&self, host: &str) -> [usize; LANES] {
        self.hosts.get(host).map_or([0; LANES], |lane| lane.classes.each_ref().map(BTreeSet::len))
    }

    pub(super) fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.keys().map(String::as_str)
    }

    /// The oldest revision at which a restart has to begin reading, where any job demands it.
    pub(super) fn oldest(&self) -> Option<Revision> {
        self.holding.keys().next().copied()
    }

    /// Jobs that hold the floor down, oldest first.
    pub(super) fn holding(&self) -> impl Iterator<Item = (Revision, Arc<Open>)> {
        self.holding.iter().filter_map(|(revision, id)| Some((*revision, self.get(*id)?)))
    }

    /// Jobs known here, newest first: unfinished ones, and those in memory only.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Arc<Open>> {
        self.open.values().rev().filter(|slot| slot.revision > 0).map(|slot| &slot.open)
    }

    /// How many stored jobs are unfinished.
    pub(super) fn stored(&self) -> usize {
        self.open.len() - self.volatile
    }

    /// How many jobs are in memory only, finished or not.
    pub(super) fn volatile(&self) -> usize {
        self.volatile
    }
}

#[cfg(test)]
mod tests;
