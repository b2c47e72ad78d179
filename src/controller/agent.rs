//! The agents, that is the hosts: what they are, how they fare, whether they are given work.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::enrolment::waiting;
use super::hosts::{Host, Hosts, Moment, NEVER_SEEN, State};
use super::lanes::Lanes;
use super::notes::entry;
use super::{Call, Controller, Here, Local, Shared, Streamed};
use crate::clock::rfc3339;
use crate::error::{Error, Kind, Result};
use crate::job::decode;
use crate::link::About;
use crate::op::{Domain, Method, Nothing, Op, Rows};
use crate::permission::Permission;
use crate::signing::fingerprint;
use crate::store::{Step, audit};

/// How many hosts are listed between two looks at what else there is to do.
const PART: usize = 500;

pub static DOMAIN: Domain<Local> = Domain {
    name: "agent",
    about: "Hosts and the agents that run on them",
    ops: &[
        Op {
            id: "agent.list",
            about: "List the hosts that have registered",
            path: "/agent",
            permission: Some(Permission::AgentRead),
            command: "agent list",
            columns: &[
                ("MACHINE ID", "/machine_id"),
                ("HOSTNAME", "/hostname"),
                ("STATUS", "/status"),
                ("CONDITIONS", "/conditions"),
                ("LABELS", "/labels"),
                ("AGE", "/registered_at"),
                ("LOAD (1m)", "/load_average/1min"),
                ("OS", "/os_info"),
            ],
            rows: Rows::Each("agents"),
            run: &Streamed(
                |call, _: Nothing| Box::pin(async move { Ok(list(call.controller)) }),
                PhantomData::<fn() -> Agents>,
            ),
            ..Op::HERE
        },
        Op {
            id: "agent.get",
            about: "Show a host, its facts and what was done to it",
            path: "/agent/{hostname}",
            permission: Some(Permission::AgentRead),
            command: "agent get",
            args: &["hostname"],
            run: &Here(|call, params| Box::pin(async move { get(&call, &params) })),
            ..Op::HERE
        },
        Op {
            id: "agent.drain",
            about: "Give a host nothing new; what it was given before it finishes",
            method: Method::Post,
            path: "/agent/{hostname}/drain",
            permission: Some(Permission::AgentWrite),
            command: "agent drain",
            args: &["hostname"],
            run: &Here(|call, params| Box::pin(drain(call, params))),
            ..Op::HERE
        },
        Op {
            id: "agent.undrain",
            about: "Give a drained host work again",
            method: Method::Post,
            path: "/agent/{hostname}/undrain",
            permission: Some(Permission::AgentWrite),
            command: "agent undrain",
            args: &["hostname"],
            run: &Here(|call, params| Box::pin(undrain(call, params))),
            ..Op::HERE
        },
    ],
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// A host name or a machine id, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub hostname: String,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Agents {
    pub agents: Vec<Agent>,
    pub total: usize,
}

#[derive(Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Agent {
    #[serde(default)]
    pub machine_id: String,
    /// Of the agent's key, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    #[serde(default)]
    pub hostname: String,
    #[serde(default)]
    pub status: Presence,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    #[schemars(extend("format" = "date-time"))]
    pub registered_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub started_at: Option<String>,
    /// When it was heard of last; left out where that was before the controller started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_seen: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_info: Option<OsInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_average: Option<LoadAverage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_mgr: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package_mgr: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_interface: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Facts beside those that have a field of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, Value>,
    #[serde(default)]
    pub state: Schedule,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What was done to it; only where a single host is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Event>,
}

/// Whether the agent is there.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Presence {
    Ready,
    #[default]
    NotReady,
}

/// Whether the host is given new work.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Schedule {
    #[default]
    Ready,
    Draining,
    Cordoned,
    Pending,
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct OsInfo {
    pub distribution: String,
    pub version: String,
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct LoadAverage {
    #[serde(rename = "1min")]
    pub one: f64,
    #[serde(rename = "5min")]
    pub five: f64,
    #[serde(rename = "15min")]
    pub fifteen: f64,
}

/// In bytes.
#[derive(Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Memory {
    pub total: i64,
    pub free: i64,
    pub used: i64,
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Inet,
    Inet6,
    Dual,
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Route {
    pub destination: String,
    pub gateway: String,
    pub interface: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    pub status: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub enum ConditionKind {
    MemoryPressure,
    HighLoad,
    DiskPressure,
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Event {
    #[schemars(extend("format" = "date-time"))]
    pub timestamp: String,
    pub event: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Done {
    pub message: String,
}

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
pub(super) struct Description {
    /// Members of a JSON object, which follow those of [`Head`].
    members: Box<str>,
    has_facts: bool,
}

impl Description {
    pub(super) fn of(about: &About) -> Self {
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

/// All hosts, by machine id: [`Agents`], some at a time.
fn list(controller: Shared) -> BoxStream<'static, Result<Bytes>> {
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

fn get(call: &Call, Named { hostname }: &Named) -> Result<Agent> {
    let controller = &call.controller;
    let (machine_id, host) = controller.known(hostname)?;
    let mut agent = controller.shown(&machine_id, &host)?;
    agent.timeline = host.timeline.iter().map(|moment| event(&host, moment)).collect();
    agent.timeline.extend(controller.whereabouts(&machine_id, &host));
    Ok(agent)
}

async fn drain(call: Call, Named { hostname }: Named) -> Result<Done> {
    let (machine_id, host) = call.controller.known(&hostname)?;
    if !host.is_trusted() {
        return Err(waiting(&host));
    }
    if host.state == State::Drained {
        let message = format!("{} is drained already", host.name);
        return Err(Error::new(Kind::Conflict, message));
    }
    let message = format!("drain initiated for agent {}", host.name);
    let controller = call.controller.clone();
    let done = Done { message };
    call.set(&machine_id, State::Drained, "drain", &done).await?;
    controller.note_cordoned(&machine_id).await;
    Ok(done)
}

async fn undrain(call: Call, Named { hostname }: Named) -> Result<Done> {
    let (machine_id, host) = call.controller.known(&hostname)?;
    if host.state != State::Drained {
        let message = format!("{} is not drained", host.name);
        return Err(Error::new(Kind::Conflict, message));
    }
    let message = format!("undrain initiated for agent {}", host.name);
    let done = Done { message };
    call.set(&machine_id, State::Accepted, "undrain", &done).await?;
    Ok(done)
}

impl Call {
    async fn set(self, machine_id: &str, state: State, event: &str, done: &Done) -> Result<()> {
        let ms = self.controller.clock.wall().saturating_sub(self.trail.at);
        let entry = entry(&self.trail, &self.caller, Some(200), Some(ms));
        let step = self.once(Step::new().note(audit::Note::Entry(entry)), done)?;
        self.controller.set_state(machine_id, state, event, &self.caller.name, step).await
    }
}

fn event(host: &Host, moment: &Moment) -> Event {
    Event {
        timestamp: rfc3339(moment.at),
        event: moment.event.clone(),
        hostname: Some(host.name.clone()),
        message: Some(format!("{} by {}", moment.event, moment.by)),
        error: None,
    }
}

impl Controller {
    fn known(&self, name: &str) -> Result<(String, Host)> {
        let hosts = self.hosts();
        let found =
            hosts.find(name)?.and_then(|id| Some((id.to_owned(), hosts.get(id)?.0.clone())));
        let missing = || {
            let message = format!("no agent {name:?}; see: osapi client agent list");
            Error::new(Kind::NotFound, message)
        };
        found.ok_or_else(missing)
    }

    /// That a host has gone or come back, where that was said of it last. It is not stored.
    fn whereabouts(&self, machine_id: &str, host: &Host) -> Option<Event> {
        let hosts = self.hosts();
        let said = hosts.said(machine_id)?;
        let (event, message) = match (said.is_there, hosts.presence(machine_id)) {
            (true, _) => ("back", "heard of again".to_owned()),
            (false, Some(at)) => ("unreachable", format!("last seen {}", rfc3339(at.heard_at))),
            (false, None) => ("unreachable", NEVER_SEEN.to_owned()),
        };
        Some(Event {
            timestamp: rfc3339(said.at),
            event: event.to_owned(),
            hostname: Some(host.name.clone()),
            message: Some(message),
            error: None,
        })
    }

    /// Every host, by machine id.
    pub(super) fn agents(&self) -> Result<Vec<Agent>> {
        let known: Vec<_> = {
            let hosts = self.hosts();
            hosts.known().map(|(id, host)| (id.to_owned(), host.clone())).collect()
        };
        known.iter().map(|(machine_id, host)| self.shown(machine_id, host)).collect()
    }

    fn shown(&self, machine_id: &str, host: &Host) -> Result<Agent> {
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
        let is_ready = hosts.is_ready(machine_id, self.heard_until());
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
    /// Whether an agent is there and has said what its host is like.
    pub(super) fn is_ready(&self, machine_id: &str, uptime: u64) -> bool {
        let has_facts = self.presence(machine_id).is_some_and(|heard| heard.description.has_facts);
        has_facts && self.is_there(machine_id, uptime)
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
