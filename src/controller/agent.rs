//! The agents, that is the hosts: what they are, how they fare, whether they are given work.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::enrolment::waiting;
use super::hosts::{Host, Moment, NEVER_SEEN, State};
use super::notes::entry;
use super::{Call, Controller, Here, Local, Streamed};
use crate::clock::rfc3339;
use crate::error::{Error, Kind, Result};
use crate::op::{Domain, Method, Nothing, Op, Rows};
use crate::permission::Permission;
use crate::store::{Step, audit};

mod rows;

pub(super) use rows::Description;

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
                |call, _: Nothing| Box::pin(async move { Ok(rows::list(call.controller)) }),
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
}
