//! `osapi status`: one screen of what this host is, whether it is well, what runs, and what changed
//! lately. What cannot be had is named, and the rest is shown.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Problem;
use super::run::{Session, put};
use super::survey::{Answer, LIMIT, asked_by, shown_of};
use super::table::{Cell, Colour, Page, Table};
use super::text::{age, flat, moment};
use super::{doctor, terminal};
use crate::error::Kind;

/// How many lines of a list are shown.
const SHOWN: usize = 8;
/// For what the host itself is asked: it may be busy, and reads every file that OSAPI has set.
const HOST_LIMIT: Duration = Duration::from_secs(10);

/// What was asked, by the name under which it is missed.
struct Answers {
    health: Answer,
    agents: Answer,
    services: Answer,
    jobs: Answer,
    drift: Answer,
}

pub(super) async fn show(session: &Session<'_>) -> Result<u8, Problem> {
    let of_host = async {
        let agents = session.hear("/api/agent", LIMIT).await;
        let (services, drift) = tokio::join!(
            session.hear_of_host(&agents, "service", HOST_LIMIT),
            session.hear_of_host(&agents, "drift", HOST_LIMIT),
        );
        (agents, services, drift)
    };
    let (health, (agents, services, drift), jobs) =
        tokio::join!(session.hear("/api/health/status", LIMIT), of_host, session.changes(LIMIT),);
    let alive = match health {
        Answer::Missing(_) => session.hear("/api/health", LIMIT).await,
        _ => Answer::Told(Value::Null),
    };
    if let Answer::Missing(_) = alive
        && let Some(relay) = doctor::relay().await
    {
        return show_relay(session, &relay);
    }
    let document = overview(&Answers { health, agents, services, jobs, drift }, &alive);
    put(&if session.globals.json {
        format!("{document}\n")
    } else {
        page(&document, terminal::page())
    })?;
    let is_well = document["status"] == "ok";
    Ok(if is_well { 0 } else { Kind::Unavailable.exit() })
}

/// What there is to tell of a host whose controllers are elsewhere.
fn show_relay(session: &Session<'_>, relay: &str) -> Result<u8, Problem> {
    let is_well = relay.starts_with("Connected") && !relay.ends_with("no agent");
    put(&if session.globals.json {
        let status = if is_well { "ok" } else { "degraded" };
        format!("{}\n", json!({ "status": status, "relay": relay }))
    } else {
        format!(
            "\n  Managed over a broker, by controllers that are elsewhere\n  Relay: {}\n\n  \
             `osapi doctor` looks closer; what was done here is told where the controllers are\n",
            flat(relay)
        )
    })?;
    Ok(if is_well { 0 } else { Kind::Unavailable.exit() })
}

/// Everything there is to tell, as one document.
fn overview(answers: &Answers, alive: &Answer) -> Value {
    let Answers { health, agents, services, jobs, drift } = answers;
    let agent = shown_of(agents).unwrap_or(&Value::Null);
    let agents = agents.told().and_then(|told| told["agents"].as_array());
    let away = agents.and_then(|all| unreachable(all));
    let told = health.told().unwrap_or(&Value::Null);
    let mut problems = Vec::new();
    let components = told["components"].as_object().into_iter().flatten();
    problems.extend(
        components.filter_map(|(name, component)| {
            Some(format!("{name}: {}", component["error"].as_str()?))
        }),
    );
    problems.extend(away);
    let conditions = agent["conditions"].as_array().into_iter().flatten();
    let hold = conditions.filter(|condition| condition["status"] == true).map(|condition| {
        let text = |name| condition[name].as_str().unwrap_or_default();
        format!("{}: {}", text("type"), text("reason"))
    });
    problems.extend(hold);
    if let Some(state) = agent["state"].as_str().filter(|state| *state != "Ready") {
        problems.push(format!("this host is given no new work: it is {}", state.to_lowercase()));
    }
    let status = match (alive, told["status"].as_str()) {
        (Answer::Missing(why) | Answer::Denied(why), _) => {
            problems.insert(0, why.clone());
            "unreachable"
        }
        (_, Some(status)) => status,
        // Whoever may not see it is not told that it is well.
        _ => "ok",
    };
    let services = services.told().and_then(|told| told["services"].as_array());
    let failed = services.map(|all| {
        let failed = all.iter().filter(|service| service["status"] == "failed");
        failed.map(|service| service["name"].clone()).collect::<Vec<_>>()
    });
    let latest = jobs.told().and_then(|told| told["latest"].as_array());
    let of_latest = |wanted: fn(&&Value) -> bool| {
        let found = latest.map(|all| all.iter().filter(wanted).map(brief).collect::<Vec<_>>());
        json!(found)
    };
    let drifted = drift.told().and_then(|told| told["drift"].as_array());
    json!({
        "status": status,
        "problems": problems,
        "host": {
            "hostname": or_else(&agent["hostname"], own_name),
            "machine_id": agent["machine_id"],
            "os": agent["os_info"],
            "kernel": agent["kernel_version"],
            "architecture": agent["architecture"],
            "uptime": agent["uptime"],
            "load_average": agent["load_average"],
            "memory": agent["memory"],
            "agent": agent["status"],
        },
        "osapi": { "version": env!("CARGO_PKG_VERSION"), "controller": told["version"], "uptime": told["uptime"] },
        "failed_services": failed,
        "unfinished": jobs.told().map(|told| told["unfinished"].as_array().into_iter().flatten().map(brief).collect::<Vec<_>>()),
        "waiting": of_latest(|job| job["waiting_until"].is_string()),
        "changes": of_latest(|job| job["changed"] == true),
        "drift": drifted.map(Vec::len),
        "not_shown": not_shown(answers, status == "unreachable"),
    })
}

/// Which hosts are away, where there are several and some of them are. One that waits to be
/// accepted, or was rejected, is not missed.
fn unreachable(agents: &[Value]) -> Option<String> {
    let agents: Vec<_> = agents.iter().filter(|agent| agent["state"] != "Pending").collect();
    let is_away = |agent: &&&Value| agent["status"] == "NotReady";
    let away: Vec<_> = agents.iter().filter(is_away).collect();
    if away.is_empty() || agents.len() < 2 {
        return None;
    }
    let name = |agent: &&&Value| flat(agent["hostname"].as_str().unwrap_or_default());
    let names: Vec<_> = away.iter().take(SHOWN).map(name).collect();
    let more = if away.len() > SHOWN { ", …" } else { "" };
    Some(format!(
        "{} of {} hosts are unreachable: {}{more}",
        away.len(),
        agents.len(),
        names.join(", ")
    ))
}

/// What could not be had, and why, apart from there being nobody to ask.
fn not_shown(answers: &Answers, is_unreachable: bool) -> Vec<Value> {
    let Answers { health, agents, services, jobs, drift } = answers;
    let asked = [
        ("health", health),
        ("host", agents),
        ("services", services),
        ("jobs", jobs),
        ("drift", drift),
    ];
    let missing = asked.iter().filter_map(|(what, answer)| match answer {
        Answer::Told(_) => None,
        Answer::Denied(why) | Answer::Missing(why) => Some(json!({ "what": what, "why": why })),
    });
    if is_unreachable { Vec::new() } else { missing.collect() }
}

fn brief(job: &Value) -> Value {
    json!({
        "id": job["id"],
        "operation": job["operation"]["type"],
        "status": job["status"],
        "by": asked_by(job),
        "created": job["created"],
        "waiting_until": job["waiting_until"],
    })
}

fn or_else(value: &Value, other: impl FnOnce() -> String) -> Value {
    if value.is_null() { other().into() } else { value.clone() }
}

fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The document for people.
fn page(document: &Value, page: Page) -> String {
    let host = &document["host"];
    let text = |value: &Value| value.as_str().map(flat);
    let mut first: Vec<String> = Vec::new();
    if let Some(name) = text(&host["os"]["distribution"]) {
        let version = text(&host["os"]["version"]).unwrap_or_default();
        first.push(format!("{name} {version}").trim().to_owned());
    }
    if let Some(kernel) = text(&host["kernel"]) {
        let architecture = text(&host["architecture"]).unwrap_or_default();
        first.push(format!("Linux {kernel} {architecture}").trim().to_owned());
    }
    first.extend(text(&host["uptime"]).map(|uptime| format!("up {uptime}")));
    let name = text(&host["hostname"]).unwrap_or_default();
    let about = format!("{name}  {}", first.join(", "));
    let mut page_text = format!("\n  {}\n", about.trim_end());
    let osapi = &document["osapi"];
    let controller = match (text(&osapi["controller"]), text(&osapi["uptime"])) {
        (Some(version), Some(uptime)) => format!(", controller {version} up {uptime}"),
        _ => String::new(),
    };
    let own = text(&osapi["version"]).unwrap_or_default();
    _ = writeln!(page_text, "  OSAPI {own}{controller}");
    let problems = list(&document["problems"]);
    let status = document["status"].as_str().unwrap_or_default();
    let (colour, word) = match (status, problems.is_empty()) {
        ("ok", true) if misses(document, "health") => (Colour::Yellow, "It answers."),
        ("ok", true) => (Colour::Green, "It is well."),
        ("ok", false) => (Colour::Yellow, "It works, but:"),
        ("unreachable", _) => (Colour::Red, "It does not answer:"),
        _ => (Colour::Red, "It is not well:"),
    };
    _ = writeln!(page_text, "\n  {}", coloured(word, colour, page));
    for problem in problems {
        _ = writeln!(page_text, "    {}", flat(problem.as_str().unwrap_or_default()));
    }
    let rest = lines(document, page);
    if !rest.is_empty() {
        _ = write!(page_text, "\n{rest}");
    }
    for missing in list(&document["not_shown"]) {
        let part = |name: &str| flat(missing[name].as_str().unwrap_or_default());
        _ = writeln!(page_text, "  Not shown: {}: {}", part("what"), part("why"));
    }
    if status != "ok" || !problems.is_empty() {
        page_text.push_str("\n  What to do about it: osapi doctor\n");
    }
    page_text
}

fn misses(document: &Value, what: &str) -> bool {
    list(&document["not_shown"]).iter().any(|missing| missing["what"] == what)
}

fn coloured(word: &str, colour: Colour, page: Page) -> String {
    if page.has_colour { format!("\x1b[{}m{word}\x1b[0m", colour as u8) } else { word.to_owned() }
}

/// What runs, what waits, what changed.
fn lines(document: &Value, page: Page) -> String {
    let mut text = String::new();
    if let Some(failed) = document["failed_services"].as_array() {
        let names: Vec<_> = failed.iter().filter_map(Value::as_str).map(flat).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        _ = writeln!(text, "  Services that failed: {names}");
    }
    if let Some(count) = document["drift"].as_u64() {
        let more = if count > 0 { "; see `osapi drift get`" } else { "" };
        _ = writeln!(text, "  Changed by others: {count} of what OSAPI has set{more}");
    }
    for job in list(&document["waiting"]) {
        let part = |name: &str| flat(job[name].as_str().unwrap_or_default());
        _ = writeln!(
            text,
            "  Taken back at {} unless confirmed: osapi job confirm {}",
            part("waiting_until"),
            part("id")
        );
    }
    jobs(&mut text, "Not finished", &document["unfinished"], page);
    jobs(&mut text, "Changed lately", &document["changes"], page);
    text
}

fn jobs(text: &mut String, title: &str, jobs: &Value, page: Page) {
    let Some(all) = jobs.as_array() else { return };
    if all.is_empty() {
        _ = writeln!(text, "  {title}: nothing");
        return;
    }
    let shown = all.iter().take(SHOWN);
    let mut table = Table::new(["JOB ID", "AGE", "BY", "STATUS", "OPERATION"]);
    for job in shown {
        let part = |name: &str| flat(job[name].as_str().unwrap_or_default());
        let created = job["created"].as_str().and_then(moment);
        let old = created.map_or_else(String::new, |at| age(page.now.saturating_sub(at) / 1000));
        let row = [part("id"), old, part("by"), part("status"), part("operation")];
        table.push(row.into_iter().map(Cell::from).collect());
    }
    _ = write!(text, "\n  {title}:\n{}", table.render(page));
    if all.len() > SHOWN {
        _ = writeln!(text, "  and {} more; see `osapi job list`", all.len() - SHOWN);
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(value: Value) -> Answer {
        Answer::Told(value)
    }

    fn well() -> Answers {
        let job = |id: &str, changed: bool, until: Value| {
            json!({
                "id": id,
                "status": "completed",
                "created": "1970-01-01T00:00:00Z",
                "changed": changed,
                "waiting_until": until,
                "operation": { "type": "node.sysctl.update" },
                "timeline": [{ "event": "submitted", "message": "Submitted by ada" }],
            })
        };
        Answers {
            health: told(json!({
                "status": "ok",
                "components": { "agent": { "status": "ok" } },
                "version": "1",
                "uptime": "3h 1m",
            })),
            agents: told(json!({ "agents": [{
                "hostname": "web-1",
                "state": "Ready",
                "os_info": { "distribution": "debian", "version": "12" },
                "conditions": [{ "type": "HighLoad", "status": false }],
            }] })),
            services: told(json!({ "services": [{ "name": "a.service", "status": "active" }] })),
            jobs: told(json!({
                "unfinished": [],
                "latest": [job("one", true, Value::Null), job("two", false, Value::Null)],
            })),
            drift: told(json!({ "drift": [] })),
        }
    }

    fn shown(answers: &Answers) -> (Value, String) {
        let document = overview(answers, &told(Value::Null));
        let text = page(&document, Page::default());
        (document, text)
    }

    #[test]
    fn a_host_that_is_well_is_one_screen() {
        let (document, text) = shown(&well());
        assert_eq!(document["status"], "ok");
        for part in ["web-1  debian 12", "It is well.", "failed: none", "ada", "one", "up 3h 1m"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("two") && !text.contains("Not shown"), "{text}");
        assert!(text.lines().count() < 25, "{text}");
    }

    #[test]
    fn what_is_not_well_is_named() {
        let mut answers = well();
        let agent = json!({ "status": "error", "error": "no agent is ready" });
        answers.health = told(json!({ "status": "degraded", "components": { "agent": agent } }));
        answers.services =
            told(json!({ "services": [{ "name": "a.service", "status": "failed" }] }));
        answers.drift = told(json!({ "drift": [{ "cell": {} }] }));
        answers.jobs = told(json!({
            "unfinished": [{ "id": "open", "status": "processing" }],
            "latest": [{ "id": "waits", "changed": true, "waiting_until": "2026-01-01T00:00:00Z" }],
        }));
        let (document, text) = shown(&answers);
        assert_eq!(document["status"], "degraded");
        for part in [
            "not well",
            "agent: no agent is ready",
            "a.service",
            "1 of what OSAPI",
            "open",
            "osapi job confirm waits",
            "osapi doctor",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn pressure_is_named_although_it_works() {
        let mut answers = well();
        let condition =
            json!({ "type": "DiskPressure", "status": true, "reason": "95% is in use" });
        let agent = json!({ "hostname": "w", "state": "Cordoned", "conditions": [condition] });
        answers.agents = told(json!({ "agents": [agent] }));
        let (document, text) = shown(&answers);
        assert_eq!(document["status"], "ok");
        assert!(
            text.contains("DiskPressure: 95% is in use") && text.contains("cordoned"),
            "{text}"
        );
    }

    #[test]
    fn hosts_that_are_away_are_named() {
        let mut answers = well();
        let agent = |name: &str, status: &str| json!({ "hostname": name, "status": status });
        let mut rejected = agent("x", "NotReady");
        rejected["state"] = "Pending".into();
        let agents = [agent("a", "Ready"), agent("b", "NotReady"), agent("c", "Ready"), rejected];
        answers.agents = told(json!({ "agents": agents }));
        let text = shown(&answers).1;
        assert!(text.contains("1 of 3 hosts are unreachable: b\n"), "{text}");
    }

    #[test]
    fn whoever_may_see_little_is_told_what_is_missing() {
        let denied = || Answer::Denied("you lack the permission".to_owned());
        let answers = Answers {
            health: denied(),
            agents: denied(),
            services: denied(),
            jobs: denied(),
            drift: denied(),
        };
        let (document, text) = shown(&answers);
        assert_eq!(document["not_shown"].as_array().unwrap().len(), 5);
        assert!(text.contains("Not shown: services: you lack the permission"), "{text}");
        assert!(!text.contains("It is well"), "{text}");
    }

    #[test]
    fn a_controller_that_is_away_is_said_once() {
        let away = || Answer::Missing("nothing listens".to_owned());
        let answers = Answers {
            health: away(),
            agents: away(),
            services: away(),
            jobs: away(),
            drift: away(),
        };
        let document = overview(&answers, &away());
        let text = page(&document, Page::default());
        assert_eq!(document["status"], "unreachable");
        assert_eq!(text.matches("nothing listens").count(), 1, "{text}");
        assert!(text.contains(&own_name()), "{text}");
    }

    #[test]
    fn what_hosts_say_cannot_move_the_cursor() {
        let mut answers = well();
        answers.agents = told(json!({ "agents": [{ "hostname": "\u{1b}[2J", "state": "Ready" }] }));
        assert!(!shown(&answers).1.contains('\u{1b}'));
    }
}
