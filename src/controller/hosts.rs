//! Which hosts there are, which of them are there right now, and which one a target names.
//!
//! A host is a record, `host.<machine id>`, from the first time its agent says who it is. Whether
//! it is there is in memory only. Names and labels may change and need not be unique; whatever is
//! stored about a host goes by its machine id.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Controller;
use super::agent::Description;
use super::enrolment::waiting;
use super::submit::Target;
use crate::error::{Error, Kind, Result};
use crate::job::{Record, decode, encode};
use crate::link::About;
use crate::op::Access;
use crate::store::{self, Expect, Revision, Step, audit};

mod away;
mod target;

pub(super) use away::NEVER_SEEN;
use away::Said;
pub use target::{ALL, ANY, ONLY, WHICH};
use target::{Turns, drained};

/// A host that has not been heard from for this long is away, in milliseconds.
const AWAY_MS: u64 = 90_000;
/// The same where its last connection was closed.
const CLOSED_MS: u64 = 15_000;
/// The same where it is heard over a broker, which it uses each ten seconds.
const SILENT_MS: u64 = 30_000;
/// How often a host may have its record changed, and how often at once: each time is on record.
const CHANGE_MS: u64 = 60_000;
const CHANGES: u64 = 8;
/// What is remembered of a host, oldest dropped first.
const TIMELINE: usize = 100;
/// What the timeline says of a drained host that has nothing left to do.
const CORDONED: &str = "cordoned";

/// A host as it is stored under `host.<machine id>`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) state: State,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// What secrets for it are sealed to; empty where its agent has not told a key yet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) key: String,
    /// The key that was accepted as its agent's, to sign with; empty where none was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) signing: String,
    /// The key of whoever speaks for it and is not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) offered: Option<Offer>,
    /// In milliseconds since 1970.
    pub(crate) first_seen: u64,
    #[serde(default)]
    pub(crate) timeline: Vec<Moment>,
}

impl Host {
    #[cfg(test)]
    fn new(name: &str, state: State) -> Self {
        let (name, labels, key) = (name.to_owned(), BTreeMap::new(), String::new());
        let (signing, offered, timeline) = (String::new(), None, Vec::new());
        Self { name, state, labels, key, signing, offered, first_seen: 1, timeline }
    }

    pub(super) fn remember(&mut self, at: u64, event: &str, by: &str) {
        self.timeline.push(Moment { at, event: event.to_owned(), by: by.to_owned() });
        let surplus = self.timeline.len().saturating_sub(TIMELINE);
        self.timeline.drain(..surplus);
    }

    /// Whether its agent is believed.
    pub(super) const fn is_trusted(&self) -> bool {
        matches!(self.state, State::Accepted | State::Drained) && self.offered.is_none()
    }

    /// Why it is given nothing new, if so.
    fn objection(&self) -> Option<Error> {
        match self.state {
            _ if !self.is_trusted() => Some(waiting(self)),
            State::Drained => Some(drained(&self.name)),
            _ => None,
        }
    }

    /// Whether it is drained, and was not seen to have nothing left to do.
    fn is_draining(&self) -> bool {
        let last = self.timeline.last().map(|moment| moment.event.as_str());
        self.state == State::Drained && last != Some(CORDONED)
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Accepted,
    /// Is given nothing new.
    Drained,
    /// Nobody has decided about it yet.
    Pending,
    /// Stays out until it is accepted by its fingerprint.
    Rejected,
}

/// A key that waits to be accepted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Offer {
    /// Ed25519, in base64.
    pub(crate) key: String,
    /// When it came first, in milliseconds since 1970.
    pub(crate) at: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Moment {
    /// In milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) event: String,
    pub(crate) by: String,
}

#[derive(Default)]
pub(super) struct Hosts {
    /// By machine id.
    known: BTreeMap<String, (Host, Revision)>,
    present: HashMap<String, Presence>,
    /// Which host the agent with this process id speaks for.
    agents: HashMap<i32, String>,
    turns: Turns,
    said: HashMap<String, Said>,
    /// How many tasks agents said they had refused, after when each had started.
    refused: HashMap<String, (u64, u64)>,
    /// When a host will have made up for what it has changed of its record, on the clock of the
    /// boot in milliseconds.
    changes: HashMap<String, u64>,
}

/// What an agent said last, and when.
#[derive(Clone)]
pub(crate) struct Presence {
    /// Without the facts.
    pub(crate) about: Arc<About>,
    pub(super) description: Description,
    /// By the clock of the boot, in milliseconds.
    pub(crate) heard: u64,
    /// In milliseconds since 1970.
    pub(crate) heard_at: u64,
    /// On the socket of this controller.
    connections: usize,
    over: Over,
    pub(super) pid: i32,
    /// Counts the agents that have spoken for this host one after the other.
    pub(super) generation: u64,
}

/// How a host without a connection of its own was heard last.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Over {
    Socket,
    Bus,
    /// It has said that it goes.
    Nothing,
}

impl Presence {
    fn is_there(&self, uptime: u64) -> bool {
        let limit = match self.over {
            _ if self.connections > 0 => AWAY_MS,
            Over::Socket => CLOSED_MS,
            Over::Bus => SILENT_MS,
            Over::Nothing => return false,
        };
        uptime.saturating_sub(self.heard) <= limit
    }
}

impl Hosts {
    /// Takes over a record, unless a newer one is known.
    pub(super) fn put(&mut self, machine_id: &str, host: Host, revision: Revision) {
        match self.known.get(machine_id) {
            Some((_, known)) if *known >= revision => {}
            _ => drop(self.known.insert(machine_id.to_owned(), (host, revision))),
        }
    }

    pub(super) fn remove(&mut self, machine_id: &str) {
        self.known.remove(machine_id);
        self.turns.forget(machine_id);
        self.said.remove(machine_id);
    }

    pub(super) fn agent_of(&self, pid: i32) -> Option<String> {
        self.agents.get(&pid).cloned()
    }

    /// Notes that an agent is there and what it says.
    pub(super) fn hear(&mut self, machine_id: &str, about: Arc<About>, pid: i32, now: (u64, u64)) {
        let (heard, heard_at) = now;
        let (about, description) = read(about);
        self.agents.insert(pid, machine_id.to_owned());
        let before = self.present.get(machine_id);
        let connections = before.map_or(0, |before| before.connections);
        let generation =
            before.map_or(0, |before| before.generation + u64::from(before.pid != pid));
        if let Some(before) = before.filter(|before| before.pid != pid) {
            self.agents.remove(&before.pid);
        }
        let over = Over::Socket;
        let presence =
            Presence { about, description, heard, heard_at, connections, over, pid, generation };
        self.present.insert(machine_id.to_owned(), presence);
    }

    /// How many more tasks the agent says it has refused than were heard of.
    pub(super) fn newly_refused(&mut self, about: &About) -> u64 {
        let said = (about.started_at, about.refused);
        let heard = self.refused.get(&about.machine_id).copied().unwrap_or_default();
        if said <= heard || about.refused == 0 {
            return 0;
        }
        self.refused.insert(about.machine_id.clone(), said);
        if heard.0 == said.0 { said.1 - heard.1 } else { said.1 }
    }

    pub(super) fn still_there(&mut self, machine_id: &str, (heard, heard_at): (u64, u64)) {
        if let Some(presence) = self.present.get_mut(machine_id) {
            (presence.heard, presence.heard_at) = (heard, heard_at);
        }
    }

    /// Notes that a host is heard over a broker, and what it says of itself, where it does. Says
    /// whether it was there before; None where nobody knows what it is like.
    pub(super) fn hear_over_bus(
        &mut self,
        machine_id: &str,
        about: Option<Arc<About>>,
        (heard, heard_at): (u64, u64),
    ) -> Option<bool> {
        let Some(presence) = self.present.get_mut(machine_id) else {
            let (over, pid) = (Over::Bus, 0);
            let (about, description) = read(about?);
            let (connections, generation) = (0, 0);
            let presence = Presence {
                about,
                description,
                heard,
                heard_at,
                connections,
                over,
                pid,
                generation,
            };
            self.present.insert(machine_id.to_owned(), presence);
            return Some(false);
        };
        let was_there = presence.is_there(heard);
        if let Some(about) = about {
            (presence.about, presence.description) = read(about);
        }
        presence.over = Over::Bus;
        (presence.heard, presence.heard_at) = (heard, heard_at);
        Some(was_there)
    }

    /// Notes that a host has said over a broker that it goes.
    pub(super) fn left(&mut self, machine_id: &str) {
        if let Some(presence) = self.present.get_mut(machine_id) {
            presence.over = Over::Nothing;
        }
    }

    /// Whether it is there, and is told of work over a broker.
    pub(super) fn is_over_bus(&self, machine_id: &str, uptime: u64) -> bool {
        let is_over_bus = |at: &Presence| at.over == Over::Bus && at.connections == 0;
        self.present.get(machine_id).is_some_and(|at| is_over_bus(at) && at.is_there(uptime))
    }

    /// Whether it has a connection to this controller's own socket.
    pub(super) fn is_at_socket(&self, machine_id: &str) -> bool {
        self.present.get(machine_id).is_some_and(|presence| presence.connections > 0)
    }

    pub(super) fn connected(&mut self, machine_id: &str) {
        if let Some(presence) = self.present.get_mut(machine_id) {
            presence.over = Over::Socket;
            presence.connections += 1;
        }
    }

    pub(super) fn disconnected(&mut self, machine_id: &str, pid: i32, uptime: u64) {
        if let Some(presence) = self.present.get_mut(machine_id) {
            presence.connections = presence.connections.saturating_sub(1);
            if presence.connections == 0 {
                presence.heard = uptime;
                if presence.pid == pid {
                    self.agents.remove(&pid);
                }
            }
        }
    }

    /// Counts up when another process begins to speak for the host.
    pub(super) fn generation(&self, machine_id: &str) -> u64 {
        self.present.get(machine_id).map_or(0, |presence| presence.generation)
    }

    pub(super) fn presence(&self, machine_id: &str) -> Option<&Presence> {
        self.present.get(machine_id)
    }

    /// Whether a host may have its record changed now, which it then has.
    pub(super) fn may_change(&mut self, machine_id: &str, uptime: u64) -> bool {
        let even = self.changes.entry(machine_id.to_owned()).or_default();
        let from = uptime.max(*even);
        let may = from - uptime <= (CHANGES - 1) * CHANGE_MS;
        if may {
            *even = from + CHANGE_MS;
        }
        may
    }

    pub(super) fn is_there(&self, machine_id: &str, uptime: u64) -> bool {
        self.present.get(machine_id).is_some_and(|presence| presence.is_there(uptime))
    }

    pub(super) fn known(&self) -> impl Iterator<Item = (&str, &Host)> + Clone {
        self.known.iter().map(|(machine_id, (host, _))| (machine_id.as_str(), host))
    }

    /// Those behind a machine id, by machine id.
    pub(super) fn known_behind(&self, last: &str) -> impl Iterator<Item = (&str, &Host)> {
        let behind = self.known.range::<str, _>((Excluded(last), Unbounded));
        behind.map(|(machine_id, (host, _))| (machine_id.as_str(), host))
    }

    /// What hosts say of an audit log that is not what it was, with their names.
    pub(super) fn set_back(&self) -> impl Iterator<Item = (&str, &str)> {
        let trusted = self.known().filter(|(_, host)| host.is_trusted());
        trusted.filter_map(|(machine_id, host)| {
            let presence = self.present.get(machine_id)?;
            Some((host.name.as_str(), presence.about.audit.as_deref()?))
        })
    }

    pub(super) fn get(&self, machine_id: &str) -> Option<&(Host, Revision)> {
        self.known.get(machine_id)
    }

    pub(super) fn name(&self, machine_id: &str) -> String {
        self.known
            .get(machine_id)
            .map_or_else(|| machine_id.to_owned(), |(host, _)| host.name.clone())
    }
}

/// What is kept of what an agent says: its facts as they are shown.
fn read(about: Arc<About>) -> (Arc<About>, Description) {
    let description = Description::of(&about);
    let about = About { facts: serde_json::Value::Null, ..Arc::unwrap_or_clone(about) };
    (Arc::new(about), description)
}

pub(super) fn key(machine_id: &str) -> String {
    format!("host.{machine_id}")
}

impl Controller {
    /// The hosts that a job is for. What is about a job goes to the hosts of that job.
    pub(super) async fn resolve(&self, target: &Target, access: Access) -> Result<Vec<String>> {
        let job = match target {
            Target::Named(name) => {
                let lanes = self.lanes();
                let left = |host: &str| lanes.lengths(host).iter().sum();
                return self.hosts().resolve(name, self.heard_until(), left);
            }
            Target::HostsOf(job) => job,
        };
        let record = Box::pin(self.record(job)).await?;
        if !is_change(&record) {
            let message = format!("job {job} has changed nothing; only changes can be taken back");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let hosts = self.hosts();
        let known = || record.job.hosts.iter().filter_map(|host| hosts.get(host));
        // Confirming belongs to work that was accepted before.
        let is_new = access != Access::Execute;
        let objection = |(host, _): &(Host, Revision)| {
            host.objection().filter(|_| is_new || !host.is_trusted())
        };
        if let Some(objection) = known().find_map(objection) {
            return Err(objection);
        }
        Ok(record.job.hosts.clone())
    }

    /// Sets a host's state, durably and at once, with what else is in `step`.
    pub(super) async fn set_state(
        &self,
        machine_id: &str,
        state: State,
        event: &str,
        by: &str,
        step: Step,
    ) -> Result<()> {
        let known = self.hosts().get(machine_id).cloned();
        let missing = || Error::new(Kind::NotFound, format!("no agent {machine_id}"));
        let (mut before, mut revision) = known.ok_or_else(missing)?;
        loop {
            let mut host = before.clone();
            host.state = state;
            host.remember(self.clock.wall(), event, by);
            let expect = Expect::Revision(revision);
            let step = step.clone().put(key(machine_id), encode(&host)?, expect);
            let error = match self.commit(step).await {
                Ok(revision) => {
                    self.hosts().put(machine_id, host, revision);
                    return Ok(());
                }
                Err(error) if error.kind() == Kind::Conflict => error,
                Err(error) => return Err(error),
            };
            // Others write it as well: itself, with a new name, and other controllers.
            let found = self.reread(machine_id).await?;
            if found.1 == revision || found.0.state != before.state {
                return Err(error);
            }
            (before, revision) = found;
        }
    }

    /// What the store has of a host, where others may have written it.
    pub(super) async fn reread(&self, machine_id: &str) -> Result<(Host, Revision)> {
        let missing = || Error::new(Kind::NotFound, format!("no agent {machine_id}"));
        let found = self.store.get(&key(machine_id)).await?.ok_or_else(missing)?;
        self.apply_host(machine_id, &found);
        Ok((decode(&found.value)?, found.revision))
    }

    /// Puts into the timeline of a drained host that it has nothing left to do, once.
    pub(super) async fn note_cordoned(&self, machine_id: &str) {
        let known = self.hosts().get(machine_id).filter(|(host, _)| host.is_draining()).cloned();
        let Some((mut host, revision)) = known else { return };
        if self.lanes().lengths(machine_id).iter().any(|&left| left > 0) {
            return;
        }
        let at = self.clock.wall();
        host.remember(at, CORDONED, "controller");
        let value = match encode(&host) {
            Ok(value) => value,
            Err(error) => return tracing::error!(%error, "cannot encode a host"),
        };
        let event = serde_json::json!({ "at": at, "event": CORDONED, "host": machine_id });
        let step = Step::new()
            .put(key(machine_id), value, Expect::Revision(revision))
            .note(audit::Note::Event(event))
            .owed();
        match self.commit(step).await {
            Ok(revision) => self.hosts().put(machine_id, host, revision),
            // It is looked at again before long.
            Err(error) => tracing::debug!(%error, machine_id, "cannot say that it is cordoned"),
        }
    }

    /// The same for all hosts: what they had left may have been called off, or be too late.
    pub(super) async fn note_all_cordoned(&self) {
        let draining: Vec<_> = {
            let hosts = self.hosts();
            let draining = hosts.known().filter(|(_, host)| host.is_draining());
            draining.map(|(machine_id, _)| machine_id.to_owned()).collect()
        };
        for machine_id in draining {
            self.note_cordoned(&machine_id).await;
        }
    }

    pub(super) fn apply_host(&self, machine_id: &str, entry: &store::Entry) {
        match decode(&entry.value) {
            Ok(host) => self.hosts().put(machine_id, host, entry.revision),
            Err(error) => tracing::error!(%error, machine_id, "cannot read the record of a host"),
        }
    }
}

/// Whether a job was to change something that an undo could take back.
fn is_change(record: &Record) -> bool {
    let access = crate::ops::agent(&record.job.op).map(|row| row.run.access());
    access == Some(Access::Write) && !record.options.dry_run
}
