//! The units of OSAPI as the service manager has them: a controller's, or a relay's where the
//! controllers are elsewhere.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::survey::Answer;
use super::evidence::Need::Says;
use super::evidence::{Evidence, said};
use super::{Check, Finding, fail, ok, skipped, warn};
use crate::broker::Settings;
use crate::signing::{PublicKey, public_keys};

/// The units of the package, as the service manager has them.
pub(super) const UNITS: &str = "systemctl show --no-pager --property=Id,LoadState,ActiveState,SubState,UnitFileState,Result,StatusText,NRestarts,NeedDaemonReload,MainPID -- osapi-controller.service osapi-agent.service osapi.socket osapi-settle.service osapi-relay.service osapi-relay.socket";

const CONTROLLER: &str = "osapi-controller.service";
const AGENT: &str = "osapi-agent.service";
const RELAY: &str = "osapi-relay.service";
/// What answers the agent: a controller, or a relay where the controllers are elsewhere.
const OF_CONTROLLER: [&str; 2] = [CONTROLLER, "osapi.socket"];
const OF_RELAY: [&str; 2] = [RELAY, "osapi-relay.socket"];
/// What holds of a controller's units on a host that has none.
pub(super) const RELAYED: &str = "this host is managed over a broker, and has a relay instead";

/// From how many restarts by the service manager on it is worth a look.
const MANY_RESTARTS: u64 = 3;

pub(super) const RESTART_AGENT: &str = "systemctl restart osapi-agent.service\n\
                             journalctl --unit osapi-agent.service --lines 50";

/// By name, each with what was asked of it.
type Units<'a> = BTreeMap<&'a str, BTreeMap<&'a str, &'a str>>;

pub(super) static CHECKS: &[Check] = &[
    Check {
        id: "version.running",
        title: "Both processes run the installed program",
        needs: &[Says(UNITS)],
        judge: running,
    },
    Check {
        id: "unit.controller",
        title: "The controller's unit runs",
        needs: &[Says(UNITS)],
        judge: |e| unit_runs(e, CONTROLLER),
    },
    Check {
        id: "unit.agent",
        title: "The agent's unit runs",
        needs: &[Says(UNITS)],
        judge: |e| unit_runs(e, AGENT),
    },
    Check {
        id: "unit.socket",
        title: "The sockets are held by the service manager",
        needs: &[Says(UNITS)],
        judge: |e| unit_runs(e, "osapi.socket"),
    },
    Check {
        id: "unit.boot",
        title: "OSAPI starts at boot",
        needs: &[Says(UNITS)],
        judge: |e| {
            let units = units(e)?;
            // Of the two that can answer the agent one is enough.
            let spare: &[&str] = match (is_relayed(e), is_on(&units, &OF_RELAY)) {
                (true, _) => &OF_CONTROLLER,
                (false, true) => &[],
                (false, false) => &OF_RELAY,
            };
            let is_off = |unit: &&BTreeMap<&str, &str>| {
                field(unit, "UnitFileState") == "disabled" && !spare.contains(&field(unit, "Id"))
            };
            let off: Vec<_> = units.values().filter(is_off).map(|unit| field(unit, "Id")).collect();
            if off.is_empty() {
                return ok("all of it is enabled");
            }
            let off = off.join(" ");
            warn(format!("disabled: {off}"), format!("systemctl enable {off}"))
        },
    },
    Check {
        id: "unit.settle",
        title: "What a crash left was settled at boot",
        needs: &[Says(UNITS)],
        judge: |e| {
            let units = units(e)?;
            let unit = units.get("osapi-settle.service").ok_or_else(|| skipped("not installed"))?;
            match field(unit, "Result") {
                "success" | "" => ok("it was, or there was nothing"),
                result => fail(
                    format!("osapi-settle.service ended with {result}"),
                    "journalctl --boot --unit osapi-settle.service\nsystemctl restart osapi-settle.service",
                ),
            }
        },
    },
    Check {
        id: "unit.restarts",
        title: "Neither process keeps dying",
        needs: &[Says(UNITS)],
        judge: restarts,
    },
    Check {
        id: "unit.reloaded",
        title: "The service manager has read the units as they are",
        needs: &[Says(UNITS)],
        judge: |e| {
            let units = units(e)?;
            let stale: Vec<_> = units
                .values()
                .filter(|unit| field(unit, "NeedDaemonReload") == "yes")
                .map(|unit| field(unit, "Id"))
                .collect();
            if stale.is_empty() {
                return ok("it has");
            }
            warn(format!("changed since: {}", stale.join(", ")), "systemctl daemon-reload")
        },
    },
    Check {
        id: "relay.runs",
        title: "The relay's unit runs",
        needs: &[Says(UNITS)],
        judge: |e| relayed(e, |_| unit_runs(e, RELAY)),
    },
    Check {
        id: "relay.connected",
        title: "The relay is connected to the broker, and the agent to it",
        needs: &[Says(UNITS)],
        judge: connected,
    },
    Check {
        id: "relay.encrypted",
        title: "The relay's connection is encrypted",
        needs: &[Says(UNITS)],
        judge: encrypted,
    },
    Check {
        id: "relay.key",
        title: "The agent has a key that it can be known by",
        needs: &[Says(UNITS)],
        judge: key,
    },
];

fn running(e: &Evidence) -> Result<Finding, Finding> {
    let units = units(e)?;
    let mut stale = Vec::new();
    let mut seen = 0;
    for unit in [CONTROLLER, RELAY, AGENT].into_iter().filter_map(|name| units.get(name)) {
        let pid = field(unit, "MainPID");
        if pid == "0" || pid.is_empty() {
            continue;
        }
        seen += 1;
        if e.link(format!("/proc/{pid}/exe"))?.to_string_lossy().ends_with(" (deleted)") {
            stale.push(field(unit, "Id"));
        }
    }
    match (seen, &stale[..]) {
        (0, _) => Err(skipped("neither process runs")),
        (_, []) => ok("they do"),
        (_, stale) => {
            let what = format!("replaced since it was started: {}", stale.join(", "));
            warn(what, format!("systemctl restart {}", stale.join(" ")))
        }
    }
}

/// The units by name, each with what was asked of it.
fn units(e: &Evidence) -> Result<Units<'_>, Finding> {
    let units = read(e.says(UNITS)?);
    if units.is_empty() { Err(skipped("OSAPI is not run by systemd here")) } else { Ok(units) }
}

fn read(said: &str) -> Units<'_> {
    let unit = |block| -> BTreeMap<&str, &str> {
        str::lines(block).filter_map(|line| line.split_once('=')).collect()
    };
    let units = said.split("\n\n").map(unit);
    let units = units.filter(|unit| !["not-found", ""].contains(&field(unit, "LoadState")));
    units.map(|unit| (field(&unit, "Id"), unit)).collect()
}

/// Whether one of these units runs, or starts at boot.
fn is_on(units: &Units<'_>, names: &[&str]) -> bool {
    names.iter().filter_map(|name| units.get(name)).any(|unit| {
        field(unit, "ActiveState") == "active" || field(unit, "UnitFileState") == "enabled"
    })
}

/// Whether the controllers of this host are elsewhere, by what was said of the units.
pub(super) fn are_relayed(said: &str) -> bool {
    let units = read(said);
    is_on(&units, &OF_RELAY) && !is_on(&units, &OF_CONTROLLER)
}

/// The same, where that is known.
pub(super) fn is_relayed(e: &Evidence) -> bool {
    e.says(UNITS).is_ok_and(are_relayed)
}

/// What the relay says of itself, where this host has one in place of a controller.
pub(in crate::cli) async fn relay() -> Option<String> {
    let Answer::Told(said) = said(Path::new("/"), UNITS).await else { return None };
    let said = said.as_str().filter(|said| are_relayed(said))?;
    let units = read(said);
    let relay = units.get(RELAY)?;
    Some(match field(relay, "StatusText") {
        "" => format!("{RELAY} is {}", field(relay, "ActiveState")),
        text => text.to_owned(),
    })
}

/// A judgement of the relay, where there is one.
fn relayed(
    e: &Evidence,
    judge: impl FnOnce(&BTreeMap<&str, &str>) -> Result<Finding, Finding>,
) -> Result<Finding, Finding> {
    let units = units(e)?;
    match units.get(RELAY) {
        Some(relay) if is_on(&units, &OF_RELAY) => judge(relay),
        _ => ok("there is none: a controller answers the agent of this host"),
    }
}

fn connected(e: &Evidence) -> Result<Finding, Finding> {
    relayed(e, |relay| match field(relay, "StatusText") {
        "" => Err(skipped("it does not say")),
        text if !text.starts_with("Connected") => {
            fail(text, "journalctl --unit osapi-relay.service --lines 50    # has the reason")
        }
        text if text.ends_with("no agent") => fail(text, RESTART_AGENT),
        text => ok(text),
    })
}

fn encrypted(e: &Evidence) -> Result<Finding, Finding> {
    relayed(e, |_| {
        let nats = &e.config()?.config.agent.nats;
        let settings = nats.settings("");
        match settings.as_ref().map(Settings::in_the_open) {
            None => fail(
                "it does not know where the broker is",
                "editor /etc/osapi/osapi.yaml    # agent.nats.url",
            ),
            Some(Some(server)) => warn(
                format!("whoever is on the way to {server} reads and changes what passes"),
                "editor /etc/osapi/osapi.yaml    # agent.nats.tls.cacert, or a tls:// address",
            ),
            Some(None) => ok("it is so"),
        }
    })
}

/// Only the controllers know whether the key is accepted.
fn key(e: &Evidence) -> Result<Finding, Finding> {
    relayed(e, |_| {
        let path = e.below(e.config()?.config.agent.pki.dir(&e.agent_state)).join("agent.pub");
        match public_keys(&path) {
            Ok(Some(keys)) => {
                let keys: Vec<_> = keys.iter().map(PublicKey::fingerprint).collect();
                ok(format!(
                    "{}; a controller shows with `osapi agent list --pending` whether it waits",
                    keys.join(", ")
                ))
            }
            Ok(None) => warn("the agent has made none", RESTART_AGENT),
            Err(error) => Err(skipped(error.to_string())),
        }
    })
}

fn field<'a>(unit: &BTreeMap<&str, &'a str>, name: &str) -> &'a str {
    unit.get(name).copied().unwrap_or_default()
}

fn unit_runs(e: &Evidence, name: &str) -> Result<Finding, Finding> {
    let units = units(e)?;
    if OF_CONTROLLER.contains(&name) && is_relayed(e) {
        return ok(RELAYED);
    }
    let unit = units.get(name).ok_or_else(|| skipped(format!("there is no {name}")))?;
    let (active, sub) = (field(unit, "ActiveState"), field(unit, "SubState"));
    let what = format!("{name} is {active} ({sub})");
    match (field(unit, "LoadState"), active) {
        ("loaded", "active") => ok(what),
        ("masked", _) => {
            let fix = format!("systemctl unmask {name}\nsystemctl start {name}");
            fail(format!("{name} is masked"), fix)
        }
        _ => fail(what, format!("systemctl start {name}\njournalctl --unit {name} --lines 50")),
    }
}

fn restarts(e: &Evidence) -> Result<Finding, Finding> {
    let units = units(e)?;
    let count = |name| {
        let unit = units.get(name)?;
        field(unit, "NRestarts").parse::<u64>().ok().filter(|count| *count >= MANY_RESTARTS)
    };
    let dying =
        [CONTROLLER, RELAY, AGENT].into_iter().filter_map(|name| Some((name, count(name)?)));
    let dying: Vec<_> = dying.collect();
    match dying.first() {
        None => ok("none was started again more than twice"),
        Some((name, count)) => warn(
            format!("{name} was started again {count} times"),
            format!(
                "journalctl --unit {name} --lines 100\nsystemctl reset-failed {name}    # counts anew"
            ),
        ),
    }
}
