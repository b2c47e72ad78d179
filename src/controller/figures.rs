//! How the controller fares, in numbers.

use std::collections::BTreeMap;

use super::Controller;
use super::hosts::State;
use super::status::Status;
use crate::link::Class;
use crate::store::Room;

/// A snapshot for those who draw curves.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Jobs that are kept, by status.
    pub jobs: BTreeMap<&'static str, usize>,
    /// Jobs submitted and outcomes taken since the start, by operation and how they went.
    pub submitted: BTreeMap<String, u64>,
    pub finished: BTreeMap<(String, &'static str), u64>,
    /// What each host has still to do, by class, as in [`Class::ALL`].
    pub lanes: BTreeMap<String, [usize; Class::ALL.len()]>,
    /// Steps handed to the store since the start.
    pub steps: u64,
    pub store: Room,
    /// How many agents are believed, and how many of them are there.
    pub agents: usize,
    pub agents_ready: usize,
    /// How many of them are given nothing new, there or not.
    pub agents_drained: usize,
    /// Milliseconds since the start.
    pub uptime: u64,
}

/// What is counted while it happens.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) submitted: BTreeMap<String, u64>,
    pub(super) finished: BTreeMap<(String, &'static str), u64>,
    pub(super) steps: u64,
}

impl Controller {
    pub fn figures(&self) -> Figures {
        let jobs = self.counts().into_iter().map(|(status, count)| (status.as_str(), count));
        let lanes = {
            let lanes = self.lanes();
            let lengths = lanes.hosts().map(|host| (host.to_owned(), lanes.lengths(host)));
            lengths.collect()
        };
        let (uptime, heard_until) = (self.clock.uptime(), self.heard_until());
        let (agents, agents_ready, agents_drained) = {
            let hosts = self.hosts();
            let ours = || hosts.known().filter(|(_, host)| host.is_trusted());
            let ready = ours().filter(|(id, _)| hosts.is_there(id, heard_until)).count();
            let drained = ours().filter(|(_, host)| host.state == State::Drained).count();
            (ours().count(), ready, drained)
        };
        let counted = super::lock(&self.counted);
        Figures {
            jobs: jobs.collect(),
            submitted: counted.submitted.clone(),
            finished: counted.finished.clone(),
            lanes,
            steps: counted.steps,
            store: self.store.room(),
            agents,
            agents_ready,
            agents_drained,
            uptime: uptime.saturating_sub(self.started),
        }
    }

    /// How many jobs are kept, by status.
    pub(super) fn counts(&self) -> BTreeMap<Status, usize> {
        let mut counts: BTreeMap<_, _> = {
            let index = self.index();
            Status::ALL.into_iter().map(|status| (status, index.count(status))).collect()
        };
        let open: Vec<_> = self.lanes().newest_first().cloned().collect();
        for open in open {
            *counts.entry(self.status(&open)).or_default() += 1;
        }
        counts
    }

    pub(super) fn count_submitted(&self, op: &str) {
        bump(&mut super::lock(&self.counted).submitted, op);
    }

    pub(super) fn count_finished(&self, op: &str, status: Status) {
        let mut counted = super::lock(&self.counted);
        *counted.finished.entry((op.to_owned(), status.as_str())).or_default() += 1;
    }
}

fn bump(counts: &mut BTreeMap<String, u64>, key: &str) {
    match counts.get_mut(key) {
        Some(count) => *count += 1,
        None => drop(counts.insert(key.to_owned(), 1)),
    }
}
