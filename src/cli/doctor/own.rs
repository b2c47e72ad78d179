//! OSAPI itself: its controller, its agents, its jobs.

use serde_json::Value;

use super::super::survey::Answer;
use super::super::text::{age, moment};
use super::evidence::Need::{Asks, Changes, Hosts, Listener, Says};
use super::evidence::{Evidence, Need};
use super::units::{self, RELAYED, RESTART_AGENT, UNITS};
use super::{Check, Finding, fail, ok, skipped, warn};

const LIVE: Need = Evidence::ALIVE;
const READY: Need = Asks("/api/health/ready");
pub(super) const HEALTH: Need = Asks("/api/health/status");
const AGENTS: Need = Asks("/api/agent");
const WAITING: Need = Asks("/api/agent/pending");
const VERSION: Need = Asks("/api/version");
const DRIFT: Need = Hosts("drift");

const JOBS: &str =
    "systemctl list-units --all --plain --no-legend --no-pager -- osapi-job-*.service";
const PACKAGE: &str = "dpkg-query --show --showformat=${db:Status-Status}:${Version} osapi";

/// A job that has not ended for longer than this, in seconds, is an old one.
const OLD: u64 = 3600;

const RESTART: &str = "systemctl restart osapi.socket osapi-controller.service\n\
                       journalctl --unit osapi-controller.service --lines 50";

pub(super) static CHECKS: &[Check] = &[
    Check {
        id: "controller.answers",
        title: "The controller answers",
        needs: &[LIVE, Says(UNITS)],
        judge: |e| match e.found.get(&LIVE) {
            Some(Answer::Told(_)) => ok(format!("it does, at {}", e.socket.display())),
            _ if units::is_relayed(e) => ok(RELAYED),
            Some(Answer::Denied(why) | Answer::Missing(why)) => fail(why, RESTART),
            None => Err(skipped("nobody asked")),
        },
    },
    Check {
        id: "controller.listener",
        title: "Whoever listens is the controller",
        needs: &[Listener],
        judge: listener,
    },
    Check {
        id: "controller.health",
        title: "The controller says that it is well",
        needs: &[HEALTH],
        judge: health,
    },
    Check {
        id: "caller.rights",
        title: "This account may see how OSAPI fares",
        needs: &[HEALTH],
        judge: |e| match e.found.get(&HEALTH) {
            Some(Answer::Denied(why)) => warn(
                why,
                "sudo osapi doctor    # or give a group of yours a role: controller.groups in \
                 /etc/osapi/osapi.yaml",
            ),
            _ => e.told(HEALTH).and_then(|_| ok("it may")),
        },
    },
    Check {
        id: "version.agree",
        title: "Controller and command line are of one version",
        needs: &[VERSION],
        judge: |e| {
            let theirs = e.told(VERSION)?["version"].as_str().unwrap_or_default();
            let own = env!("CARGO_PKG_VERSION");
            if theirs == own {
                return ok(own);
            }
            let what = format!("the controller is {theirs}, this is {own}");
            warn(what, "systemctl restart osapi-controller.service osapi-agent.service")
        },
    },
    Check {
        id: "version.package",
        title: "The program is the package's",
        needs: &[Says(PACKAGE)],
        judge: package,
    },
    Check {
        id: "agent.ready",
        title: "An agent is there to work with",
        needs: &[READY],
        judge: |e| {
            let told = e.told(READY)?;
            if told["status"] == "ready" {
                return ok("it is ready");
            }
            fail(told["error"].as_str().unwrap_or("it is not ready"), RESTART_AGENT)
        },
    },
    Check {
        id: "agent.conditions",
        title: "No host is under pressure",
        needs: &[AGENTS],
        judge: conditions,
    },
    Check {
        id: "agent.scheduling",
        title: "Every host is given work",
        needs: &[AGENTS],
        judge: scheduling,
    },
    Check {
        id: "agent.waiting",
        title: "No host waits to be accepted",
        needs: &[WAITING],
        judge: waiting,
    },
    Check {
        id: "jobs.left",
        title: "No job has left something that is waited for",
        needs: &[Says(JOBS)],
        judge: |e| {
            let is_left = |line: &&str| line.starts_with("osapi-job-") && line.contains(" failed ");
            let left = e.says(JOBS)?.lines().filter(is_left);
            let left: Vec<_> = left.filter_map(|line| line.split(' ').next()).collect();
            let Some(first) = left.first() else { return ok("none has") };
            let what = format!("{} ended badly; what it started is still there", left.join(", "));
            warn(what, format!("systemctl status {first}\nsystemctl kill --signal=KILL {first}"))
        },
    },
    Check { id: "jobs.old", title: "No job hangs", needs: &[Changes], judge: old_jobs },
    Check {
        id: "jobs.unconfirmed",
        title: "No change waits to be confirmed",
        needs: &[Changes],
        judge: unconfirmed,
    },
    Check {
        id: "drift",
        title: "What OSAPI has set is as it was set",
        needs: &[DRIFT],
        judge: drift,
    },
    Check {
        id: "audit.whole",
        title: "The audit log is what was written",
        needs: &[Need::Audit],
        judge: |e| {
            let told = e.told(Need::Audit)?;
            let faults = items(&told["faults"]);
            match faults.first().and_then(Value::as_str) {
                None => ok(format!("{} entries", told["entries"])),
                Some(first) => fail(
                    format!("{} faults, the first: {first}", faults.len()),
                    "osapi audit verify    # and keep a copy: osapi audit export /root/audit.jsonl",
                ),
            }
        },
    },
    Check {
        id: "audit.heads",
        title: "The audit log agrees with what the agent has kept",
        needs: &[Need::Audit],
        judge: |e| {
            let told = e.told(Need::Audit)?;
            if told["compared"] != true {
                return Err(skipped("only root may read what the agent has kept"));
            }
            match told["anchored"].as_u64() {
                Some(places @ 1..) => ok(format!("{places} places agree")),
                _ => warn(
                    "the agent has kept nothing that it could be compared with",
                    "systemctl restart osapi-agent.service",
                ),
            }
        },
    },
    Check {
        id: "objects.room",
        title: "There is room for uploaded files",
        needs: &[HEALTH],
        judge: |e| {
            let held = items(&e.told(HEALTH)?["object_stores"])
                .iter()
                .filter_map(|store| store["size"].as_u64())
                .sum();
            let most = e.config()?.config.controller.limits.objects.size.0;
            let fix = "osapi file list    # then: osapi file delete NAME, or raise \
                       controller.limits.objects.size";
            share(held, most, fix)
        },
    },
    Check {
        id: "groups.exist",
        title: "The groups that have a role exist",
        needs: &[Says("getent group")],
        judge: groups,
    },
];

/// How much of a bound is used: from nine tenths on somebody should look.
pub(super) fn share(held: u64, most: u64, fix: &str) -> Result<Finding, Finding> {
    let percent = held.saturating_mul(100) / most.max(1);
    let said = format!("{percent}% of {} MiB", most >> 20);
    if percent >= 90 { warn(said, fix) } else { ok(said) }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn listener(e: &Evidence) -> Result<Finding, Finding> {
    let told = e.told(Listener)?;
    let (path, uid) = (text(told, "path"), told["uid"].as_u64().unwrap_or(u64::MAX));
    let known = [Some(e.root_uid), Some(e.uid), e.account("osapi")];
    if known.iter().flatten().any(|known| u64::from(*known) == uid) {
        return ok(format!("the account {uid} listens at {path}"));
    }
    let what = format!("the account {uid}, which is neither yours nor OSAPI's, listens at {path}");
    fail(what, format!("ss --listening --unix --processes src {path}"))
}

fn health(e: &Evidence) -> Result<Finding, Finding> {
    let told = e.told(HEALTH)?;
    let parts = told["components"].as_object().into_iter().flatten();
    let wrong = parts.filter_map(|(name, part)| {
        // What works all the same has a check of its own.
        let error = part["error"].as_str().filter(|_| part["status"] != "warning")?;
        Some(format!("{name}: {error}"))
    });
    let wrong: Vec<_> = wrong.collect();
    if wrong.is_empty() && told["status"] == "ok" {
        return ok(format!("up {}", text(told, "uptime")));
    }
    fail(wrong.join("; "), "journalctl --unit osapi-controller.service --lines 50")
}

fn package(e: &Evidence) -> Result<Finding, Finding> {
    let said = e.says(PACKAGE)?;
    let own = env!("CARGO_PKG_VERSION");
    match said.trim().split_once(':') {
        Some(("installed", version)) => {
            // An epoch goes before it, a revision behind.
            let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
            if upstream.split(['-', '~', '+']).next() == Some(own) {
                return ok(version);
            }
            let what = format!("the package is {version}, this program {own}");
            warn(what, "apt-get install --reinstall osapi")
        }
        Some((state, version)) if state != "not-installed" && !version.is_empty() => {
            fail(format!("the package {version} is {state}"), "dpkg --configure osapi")
        }
        _ => Err(skipped("it was not installed as a package")),
    }
}

fn conditions(e: &Evidence) -> Result<Finding, Finding> {
    let mut hold = Vec::new();
    for agent in items(&e.told(AGENTS)?["agents"]) {
        let conditions = items(&agent["conditions"]).iter().filter(|c| c["status"] == true);
        hold.extend(conditions.map(|condition| {
            let (kind, why) = (text(condition, "type"), text(condition, "reason"));
            format!("{}: {kind}: {why}", text(agent, "hostname"))
        }));
    }
    if hold.is_empty() {
        return ok("none is");
    }
    warn(hold.join("; "), "osapi node status    # and `osapi process list`, `osapi disk get`")
}

fn scheduling(e: &Evidence) -> Result<Finding, Finding> {
    let agents = items(&e.told(AGENTS)?["agents"]);
    let is_drained = |agent: &&Value| ["Draining", "Cordoned"].contains(&text(agent, "state"));
    let idle = agents.iter().filter(is_drained);
    let idle: Vec<_> = idle.map(|agent| text(agent, "hostname")).collect();
    match idle.first() {
        None => ok("every one is"),
        Some(first) => {
            let what = format!("drained: {}", idle.join(", "));
            warn(what, format!("osapi agent undrain {first}"))
        }
    }
}

fn waiting(e: &Evidence) -> Result<Finding, Finding> {
    let waiting = items(&e.told(WAITING)?["agents"]);
    let Some(first) = waiting.first() else { return ok("none does") };
    let names: Vec<_> = waiting.iter().map(|agent| text(agent, "hostname")).collect();
    warn(
        format!("{}: nothing is done there", names.join(", ")),
        format!(
            "osapi agent accept {} --fingerprint {}    # as `osapi agent key fingerprint` says there",
            text(first, "machine_id"),
            text(first, "fingerprint")
        ),
    )
}

fn old_jobs(e: &Evidence) -> Result<Finding, Finding> {
    let open = items(&e.told(Changes)?["unfinished"]);
    let since =
        |job: &Value| moment(text(job, "created")).map(|at| e.now.saturating_sub(at) / 1000);
    let old: Vec<_> = open.iter().filter_map(|job| Some((job, since(job)?))).collect();
    match old.iter().max_by_key(|(_, since)| *since) {
        Some((job, since)) if *since > OLD => warn(
            format!("{} has not ended for {}", text(job, "id"), age(*since)),
            format!(
                "osapi job get {0}    # if nobody has begun it: osapi job cancel {0}",
                text(job, "id")
            ),
        ),
        _ => ok(format!("{} are under way", open.len())),
    }
}

fn unconfirmed(e: &Evidence) -> Result<Finding, Finding> {
    let latest = items(&e.told(Changes)?["latest"]);
    match latest.iter().find(|job| job["waiting_until"].is_string()) {
        None => ok("none does"),
        Some(job) => {
            let (id, until) = (text(job, "id"), text(job, "waiting_until"));
            let what = format!("{id} is taken back at {until}, and no other change begins before");
            warn(what, format!("osapi job confirm {id}    # or: osapi job revert {id}"))
        }
    }
}

fn drift(e: &Evidence) -> Result<Finding, Finding> {
    let told = e.told(DRIFT)?;
    let drift = items(&told["drift"]);
    let Some(first) = drift.first() else { return ok("nobody has changed it") };
    let cell = cell_of(&first["cell"]);
    let job = text(first, "job");
    let what = format!("{} changed by others, the first: {cell}", drift.len());
    warn(
        what,
        format!("osapi drift get\nosapi job get {job}    # says how it was set; do that again"),
    )
}

/// What a cell is called; what is at a path goes by the path alone.
fn cell_of(cell: &Value) -> String {
    match cell.as_object().and_then(|cell| cell.iter().next()) {
        Some((kind, Value::String(name))) if kind == "node" => name.clone(),
        Some((kind, Value::String(name))) => format!("{kind} {name}"),
        _ => cell.to_string(),
    }
}

fn groups(e: &Evidence) -> Result<Finding, Finding> {
    let controller = &e.config()?.config.controller;
    let named = controller.groups.keys().chain(&controller.metrics.group);
    let known: Vec<_> =
        e.says("getent group")?.lines().filter_map(|line| line.split(':').next()).collect();
    let missing = named.filter(|group| !known.contains(&group.as_str()));
    let missing: Vec<_> = missing.map(String::as_str).collect();
    if missing.is_empty() {
        return ok("they do");
    }
    let what = format!("nobody knows {}", missing.join(", "));
    warn(what, format!("groupadd {}\nsystemctl reload osapi-controller.service", missing[0]))
}
