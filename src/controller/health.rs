//! Whether the controller lives, can be worked with, and how it fares.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::agent::{Agent, Presence};
use super::hosts::Host;
use super::status::Status;
use super::{Call, Controller, Here, Judged, Local, lock};
use crate::error::Result;
use crate::op::{Domain, Nothing, Op, Rows};
use crate::permission::Permission;
use crate::store::Condition;

/// Of how many hosts it is told that reads hang.
const TOLD: usize = 8;

pub static DOMAIN: Domain<Local> = Domain {
    name: "health",
    about: "How the controller fares",
    ops: &[
        Op {
            id: "health.live",
            about: "Say that the controller answers",
            path: "/health",
            permission: None,
            command: "health liveness",
            run: &Here(|_, _: Nothing| Box::pin(async { Ok(Alive { status: "ok".to_owned() }) })),
            ..Op::HERE
        },
        Op {
            id: "health.ready",
            about: "Say whether an agent is there to work with",
            path: "/health/ready",
            permission: None,
            command: "health ready",
            run: &Judged(|call, _: Nothing| Box::pin(async move { Ok(ready(&call)) }), judge),
            ..Op::HERE
        },
        Op {
            id: "health.status",
            about: "Show how controller, store and agents fare",
            path: "/health/status",
            permission: Some(Permission::HealthRead),
            command: "health status",
            columns: &[
                ("TYPE", "/type"),
                ("HOSTNAME", "/hostname"),
                ("STATUS", "/status"),
                ("CONDITIONS", "/conditions"),
                ("AGE", "/age"),
                ("CPU", "/cpu_percent"),
                ("MEM", "/mem_bytes"),
            ],
            rows: Rows::Each("registry"),
            run: &Judged(|call, _: Nothing| Box::pin(status(call)), judge),
            ..Op::HERE
        },
    ],
};

#[derive(Debug, JsonSchema, Serialize)]
pub struct Alive {
    /// Always `ok`.
    pub status: String,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Ready {
    /// `ready` or `not_ready`.
    pub status: String,
    /// What is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Overview {
    /// `ok` or `degraded`.
    pub status: String,
    pub components: BTreeMap<String, Component>,
    pub version: String,
    /// Since the controller started, such as `3h 12m`.
    pub uptime: String,
    pub object_stores: Vec<ObjectStore>,
    pub jobs: Jobs,
    pub agents: Agents,
    pub registry: Vec<Registered>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Component {
    /// `ok`, `error`, or `warning` where it works all the same.
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where it listens, for what listens on the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct ObjectStore {
    pub name: String,
    /// In bytes.
    pub size: u64,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Jobs {
    pub total: usize,
    pub unprocessed: usize,
    pub processing: usize,
    pub completed: usize,
    pub failed: usize,
    /// Always 0: a failed job is an outcome and nothing is left over.
    pub dlq: usize,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Agents {
    pub total: usize,
    pub ready: usize,
    pub agents: Vec<AgentLine>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct AgentLine {
    pub hostname: String,
    /// As `key:value`, separated by commas.
    pub labels: String,
    /// Since when it is known, in RFC 3339.
    pub registered: String,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Registered {
    /// `controller` or `agent`.
    pub r#type: String,
    pub hostname: String,
    pub status: String,
    /// Which conditions hold.
    pub conditions: Vec<String>,
    /// For how long it has been running or known, such as `3h 12m`.
    pub age: String,
    /// Of one processor, since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// What it takes of the memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int64"))]
    pub mem_bytes: Option<i64>,
}

/// The published status of an answer that is not well.
fn judge(output: &Value) -> Option<u16> {
    matches!(output["status"].as_str(), Some("not_ready" | "degraded")).then_some(503)
}

fn ready(call: &Call) -> Ready {
    let known = {
        let (hosts, uptime) = (call.controller.hosts(), call.controller.heard_until());
        let is_ready = hosts.known().any(|known| hosts.is_ready(known, uptime));
        hosts.known().next().map(|_| is_ready)
    };
    let error = missing(known, call.controller.store.conditions());
    let status = if error.is_none() { "ready" } else { "not_ready" };
    Ready { status: status.to_owned(), error }
}

/// What is missing for work to be done; `known` says whether any of the hosts that are known is ready.
/// While a broker is away its hosts are still remembered.
fn missing(known: Option<bool>, conditions: Vec<Condition>) -> Option<String> {
    let mut faults = conditions.into_iter().filter(|condition| !condition.is_warning);
    let fault = faults.find_map(|condition| condition.fault);
    fault.or_else(|| match known {
        None => Some("no agent has registered yet".to_owned()),
        Some(false) => Some("no agent is ready".to_owned()),
        Some(true) => None,
    })
}

async fn status(call: Call) -> Result<Overview> {
    let controller = &call.controller;
    let agents = controller.agents()?;
    let ready = agents.iter().filter(|agent| agent.status == Presence::Ready).count();
    let uptime = controller.clock.uptime().saturating_sub(controller.started);
    let components = controller.components(ready);
    let load = Load::of_this_process(uptime).await;
    let is_well = components.values().all(|component| component.status != "error");
    let here = Registered {
        r#type: "controller".to_owned(),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        status: if is_well { "Ready" } else { "NotReady" }.to_owned(),
        conditions: Vec::new(),
        age: age(uptime),
        cpu_percent: load.cpu_percent,
        mem_bytes: load.mem_bytes,
    };
    let there = agents.iter().map(|agent| controller.registered(agent));
    Ok(Overview {
        status: if is_well { "ok" } else { "degraded" }.to_owned(),
        components,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime: age(uptime),
        object_stores: vec![ObjectStore {
            name: "files".to_owned(),
            size: controller.objects.bytes(),
        }],
        jobs: controller.jobs(),
        registry: std::iter::once(here).chain(there).collect(),
        agents: Agents { total: agents.len(), ready, agents: agents.iter().map(line).collect() },
    })
}

/// Where the API is served over a network, if anywhere, and why nobody is.
#[derive(Clone, Default)]
pub(super) struct Network {
    addresses: Vec<String>,
    fault: Option<String>,
}

/// What this process takes of the machine, as far as the kernel tells.
#[derive(Default)]
struct Load {
    cpu_percent: Option<f64>,
    mem_bytes: Option<i64>,
}

impl Load {
    /// A tick of the kernel's accounting, in milliseconds; the same on every Linux there is.
    const TICK_MS: f64 = 10.0;

    async fn of_this_process(uptime: u64) -> Self {
        let read = |path: &'static str| tokio::fs::read_to_string(path);
        let (stat, status) = (read("/proc/self/stat").await, read("/proc/self/status").await);
        let load = |stat: &str| {
            // The name, in brackets, may hold anything.
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
            let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
            let uptime = u32::try_from(uptime).ok().filter(|uptime| *uptime > 0)?;
            Some((ticks * Self::TICK_MS / f64::from(uptime) * 1_000.0).round() / 10.0)
        };
        let memory = |status: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            Some(line.trim().trim_end_matches(" kB").parse::<i64>().ok()? * 1024)
        };
        Self {
            cpu_percent: stat.ok().and_then(|stat| load(&stat)),
            mem_bytes: status.ok().and_then(|status| memory(&status)),
        }
    }
}

fn line(agent: &Agent) -> AgentLine {
    let labels: Vec<_> = agent.labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
    AgentLine {
        hostname: agent.hostname.clone(),
        labels: labels.join(", "),
        registered: agent.registered_at.clone(),
    }
}

impl Controller {
    fn components(&self, ready: usize) -> BTreeMap<String, Component> {
        let room = self.store.room();
        let store = if room.is_audit_broken {
            Some("nothing can be put on record; see the log")
        } else if room.is_full {
            Some("there is no room left; make room on the disk")
        } else {
            None
        };
        let agent = (ready == 0).then_some("no agent is ready");
        let (store, agent) = (store.map(str::to_owned), agent.map(str::to_owned));
        let Network { addresses, fault } = lock(&self.network).clone();
        let address = (!addresses.is_empty()).then(|| addresses.join(", "));
        let there = self.store.conditions().into_iter();
        let there = there.map(|one| (one.name, one.fault, None, one.is_warning));
        let there = there.chain([("audit", self.set_back(), None, true)]);
        let network = address.map(|address| ("network", fault, Some(address)));
        [("controller", None), ("store", store), ("agent", agent), ("reads", self.hanging())]
            .into_iter()
            .map(|(name, error)| (name, error, None))
            .chain(network)
            .map(|(name, error, address)| (name, error, address, false))
            .chain(there)
            .map(|(name, error, address, is_warning)| {
                let status = match error {
                    None => "ok",
                    Some(_) if is_warning => "warning",
                    Some(_) => "error",
                };
                (name.to_owned(), Component { status: status.to_owned(), error, address })
            })
            .collect()
    }

    /// Says where the API is served over a network, and what keeps it from that.
    pub fn note_network(&self, addresses: &[String], fault: Option<String>) {
        *lock(&self.network) = Network { addresses: addresses.to_vec(), fault };
    }

    /// What hosts say of reads that do not come to an end.
    fn hanging(&self) -> Option<String> {
        let hosts = self.hosts();
        let hang = |(machine_id, host): (&str, &Host)| {
            let about = &hosts.presence(machine_id)?.about;
            let what = about.hanging.join(", ");
            (!what.is_empty()).then(|| format!("{}: {what}", host.name))
        };
        let hang: Vec<_> = hosts.known().filter_map(hang).take(TOLD).collect();
        (!hang.is_empty()).then(|| {
            let hang = hang.join("; ");
            format!("reads do not come to an end, look for a dead mount on the host: {hang}")
        })
    }

    /// What a host says of an audit log that is not what it was.
    fn set_back(&self) -> Option<String> {
        let hosts = self.hosts();
        let (host, why) = hosts.set_back().next()?;
        let remedy = "compare it with `osapi audit verify`, as root there";
        Some(format!("{host} has kept that {why}; {remedy}"))
    }

    /// How it fares, in a line for people.
    pub fn line(&self) -> String {
        let figures = self.figures();
        let open: usize = figures.lanes.values().flatten().sum();
        let agents = match figures.agents_ready {
            0 => "no agent is ready".to_owned(),
            1 => "1 agent is ready".to_owned(),
            ready => format!("{ready} agents are ready"),
        };
        let store = if figures.store.is_full { "; there is no room left" } else { "" };
        let Network { addresses, fault } = lock(&self.network).clone();
        let fault = fault.filter(|_| !addresses.is_empty());
        let network = fault.map(|why| format!("; nobody is served over the network: {why}"));
        format!("{agents}, {open} jobs are open{store}{}", network.unwrap_or_default())
    }

    fn jobs(&self) -> Jobs {
        let counts = self.counts();
        let count = |status| counts.get(&status).copied().unwrap_or_default();
        Jobs {
            total: counts.values().sum(),
            unprocessed: count(Status::Submitted),
            processing: count(Status::Processing),
            completed: count(Status::Completed),
            failed: count(Status::Failed) + count(Status::PartialFailure),
            dlq: 0,
        }
    }

    fn registered(&self, agent: &Agent) -> Registered {
        let known = self.hosts().get(&agent.machine_id).map(|(host, _)| host.first_seen);
        let since = self.clock.wall().saturating_sub(known.unwrap_or_default());
        let conditions = agent.conditions.iter().filter(|condition| condition.status);
        Registered {
            r#type: "agent".to_owned(),
            hostname: agent.hostname.clone(),
            status: format!("{:?}", agent.status),
            conditions: conditions.map(|condition| format!("{:?}", condition.kind)).collect(),
            age: age(since),
            cpu_percent: None,
            mem_bytes: None,
        }
    }
}

/// Milliseconds as people read them.
fn age(ms: u64) -> String {
    let (days, hours) = (ms / 86_400_000, ms / 3_600_000 % 24);
    let (minutes, seconds) = (ms / 60_000 % 60, ms / 1000 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_ready_without_what_the_store_depends_on() {
        let fault = |is_warning| {
            vec![Condition { name: "broker", fault: Some("it is away".to_owned()), is_warning }]
        };
        assert_eq!(missing(Some(true), Vec::new()), None);
        assert_eq!(missing(Some(true), fault(true)), None);
        assert_eq!(missing(Some(true), fault(false)).as_deref(), Some("it is away"));
        assert_eq!(missing(Some(false), fault(true)).as_deref(), Some("no agent is ready"));
        assert!(missing(None, Vec::new()).is_some());
    }
}
