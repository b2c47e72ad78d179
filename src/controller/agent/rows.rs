//! The rows of hosts: written one after the other, as there may be very many.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Agent, Presence, Schedule};
use crate::clock::rfc3339;
use crate::controller::hosts::{Host, Hosts, State};
use crate::controller::lanes::Lanes;
use crate::controller::{Controller, Shared};
use crate::error::{Error, Kind, Result};
use crate::job::decode;
use crate::link::About;
use crate::signing::fingerprint;

/// How many hosts are listed between two looks at what else there is to do.
const PART: usize = 500;

/// The row of a host but for what its agent says of it.
#[derive(Serialize)]
struct Head<'a> {
    machine_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    hostname: &'a str,
    status: Presence,
    labels: &'a BTreeMap<String, String>,
    registered_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<String>,
    state: Schedule,
}

/// What an agent says of its host, made ready when it says so: there may be very many, and they are
/// listed all together.
#[derive(Clone, Default)]
pub(in crate::controller) struct Description {
    /// Members of a JSON object, which follow those of [`Head`].
    members: Box<str>,
    has_facts: bool,
}

impl Description {
    pub(in crate::controller) fn of(about: &About) -> Self {
        let mut agent = described(&about.facts).unwrap_or_default();
        agent.started_at = Some(rfc3339(about.started_at));
        let conditions = about.conditions.iter().map(|condition| json!(condition));
        agent.conditions =
            conditions.filter_map(|condition| serde_json::from_value(condition).ok()).collect();
        let Value::Object(mut members) = json!(agent) else { return Self::default() };
        for own in ["machine_id", "hostname", "status", "labels", "registered_at", "state"] {
            members.shift_remove(own);
        }
        let text = Value::from(members).to_string();
        let has_facts = about.facts.as_object().is_some_and(|facts| !facts.is_empty());
        Self { members: text[1..text.len() - 1].into(), has_facts }
    }
}

/// All hosts, by machine id: [`super::Agents`], some at a time.
pub(super) fn list(controller: Shared) -> BoxStream<'static, Result<Bytes>> {
    let listing = Listing { controller, last: String::new(), total: 0, is_over: false };
    let parts = stream::try_unfold(listing, |mut listing| async move {
        tokio::task::yield_now().await;
        Ok(listing.part()?.map(|part| (part.into(), listing)))
    });
    parts.boxed()
}

struct Listing {
    controller: Shared,
    /// Empty at the beginning.
    last: String,
    total: usize,
    is_over: bool,
}

impl Listing {
    fn part(&mut self) -> Result<Option<Vec<u8>>> {
        if self.is_over {
            return Ok(None);
        }
        let mut text = Vec::new();
        if self.last.is_empty() {
            text.extend_from_slice(b"{\"agents\":[");
        }
        let before = self.total;
        {
            let (lanes, hosts) = (self.controller.lanes(), self.controller.hosts());
            let mut last = None;
            for (machine_id, host) in hosts.known_behind(&self.last).take(PART) {
                if self.total > 0 {
                    text.push(b',');
                }
                self.controller.write_row(&lanes, &hosts, (machine_id, host), &mut text)?;
                self.total += 1;
                last = Some(machine_id.to_owned());
            }
            self.last = last.unwrap_or_default();
        }
        if self.total - before < PART {
            text.extend_from_slice(format!("],\"total\":{}}}", self.total).as_bytes());
            self.is_over = true;
        }
        Ok(Some(text))
    }
}

impl Controller {
    /// Every host, by machine id.
    pub(in crate::controller) fn agents(&self) -> Result<Vec<Agent>> {
        let known: Vec<_> = {
            let hosts = self.hosts();
            hosts.known().map(|(id, host)| (id.to_owned(), host.clone())).collect()
        };
        known.iter().map(|(machine_id, host)| self.shown(machine_id, host)).collect()
    }

    pub(super) fn shown(&self, machine_id: &str, host: &Host) -> Result<Agent> {
        let mut text = Vec::new();
        self.write_row(&self.lanes(), &self.hosts(), (machine_id, host), &mut text)?;
        decode(&text)
    }

    /// What [`Agent`] says, but for the timeline.
    fn write_row(
        &self,
        lanes: &Lanes,
        hosts: &Hosts,
        (machine_id, host): (&str, &Host),
        text: &mut Vec<u8>,
    ) -> Result<()> {
        let is_ready = hosts.is_ready((machine_id, host), self.heard_until());
        let state = match host.state {
            _ if !host.is_trusted() => Schedule::Pending,
            State::Accepted => Schedule::Ready,
            State::Drained if lanes.lengths(machine_id).iter().all(|&left| left == 0) => {
                Schedule::Cordoned
            }
            State::Drained => Schedule::Draining,
            State::Pending | State::Rejected => Schedule::Pending,
        };
        // What it says of its host is believed as far as itself.
        let heard = hosts.presence(machine_id).filter(|_| host.is_trusted());
        let row = Head {
            machine_id,
            fingerprint: fingerprint(&host.signing)
                .or_else(|| fingerprint(&host.offered.as_ref()?.key)),
            hostname: &host.name,
            status: if is_ready { Presence::Ready } else { Presence::NotReady },
            labels: &host.labels,
            registered_at: rfc3339(host.first_seen),
            last_seen: heard.map(|heard| rfc3339(heard.heard_at)),
            state,
        };
        serde_json::to_writer(&mut *text, &row)
            .map_err(|error| Error::new(Kind::Internal, "cannot encode it").because(error))?;
        let members = heard.map_or("", |heard| &heard.description.members);
        if !members.is_empty() {
            text.pop();
            text.push(b',');
            text.extend_from_slice(members.as_bytes());
            text.push(b'}');
        }
        Ok(())
    }
}

impl Hosts {
    /// Whether an agent that is believed is there and has said what its host is like.
    pub(in crate::controller) fn is_ready(
        &self,
        (machine_id, host): (&str, &Host),
        uptime: u64,
    ) -> bool {
        let has_facts = self.presence(machine_id).is_some_and(|heard| heard.description.has_facts);
        host.is_trusted() && has_facts && self.is_there(machine_id, uptime)
    }
}

/// What an agent says of its host, field by field: one that cannot be read is left out, and what
/// has no field of its own is a fact among others.
fn described(facts: &Value) -> Option<Agent> {
    const FIELDS: [&str; 12] = [
        "os_info",
        "uptime",
        "load_average",
        "memory",
        "architecture",
        "kernel_version",
        "cpu_count",
        "fqdn",
        "service_mgr",
        "package_mgr",
        "primary_interface",
        "routes",
    ];
    let (mut fields, mut others) = (Map::new(), Map::new());
    for (name, value) in facts.as_object()? {
        let is_field = FIELDS.contains(&name.as_str()) || name == "interfaces";
        let mut alone = Map::new();
        alone.insert(name.clone(), value.clone());
        if !is_field {
            others.extend(alone);
        } else if serde_json::from_value::<Agent>(alone.clone().into()).is_ok() {
            fields.extend(alone);
        }
    }
    fields.insert("facts".to_owned(), others.into());
    serde_json::from_value(fields.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_become_fields_as_far_as_they_can_be_read() {
        let agent = described(&json!({
            "cpu_count": 2,
            "memory": "much",
            "containerized": false,
            "load_average": { "1min": 0.5, "5min": 0.25, "15min": 0.0 },
        }))
        .unwrap();
        assert_eq!((agent.cpu_count, agent.memory), (Some(2), None));
        assert_eq!(json!(agent.load_average)["5min"], 0.25);
        assert_eq!(agent.facts, BTreeMap::from([("containerized".to_owned(), json!(false))]));
    }
}
