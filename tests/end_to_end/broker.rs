//! What becomes of what a broker had acknowledged and has lost.

use serde_json::{Value, json};

use crate::support::{Appliance, Site};
use crate::{ask, finished, holds, lines, set, submit, until};

/// The greatest number of a link of which the agent has kept that a chain ended there.
fn kept(site: &Site) -> u64 {
    let heads = std::fs::read_to_string(site.state().join("agent/heads")).unwrap_or_default();
    let number = |line: &str| serde_json::from_str::<Value>(line).ok()?["number"].as_u64();
    heads.lines().filter_map(number).max().unwrap_or_default()
}

fn is_known(site: &Site, job: &str) -> bool {
    ask(site, "GET", &format!("/api/job/{job}"), None).status == 200
}

#[test]
fn what_a_broker_has_lost_is_told_again_and_not_done_again() {
    let Some(mut appliance) = Appliance::at_broker("what a broker loses") else { return };
    appliance.write("proc/sys/test/one", "0\n");
    appliance.start();
    holds(&appliance);
    let command = json!({ "command": "held", "args": [], "timeout": 300 });
    let held = submit(&appliance, "POST", "/api/node/_any/command/exec", &command);
    let (begun, release) = (appliance.dir().join("begun"), appliance.dir().join("release"));
    until("it has begun", || (lines(&begun) == 1).then_some(()));
    appliance.keep_broker();
    until("the broker is back", || is_known(&appliance, &held).then_some(()));
    std::fs::write(release, "").unwrap();
    let before = finished(&appliance, &held);
    assert_eq!(before["status"], "completed");

    let first = kept(&appliance);
    let (path, body) = set(5);
    let mut lost = String::new();
    for _ in 0..20 {
        let change = ask(&appliance, "POST", path, Some(&body));
        assert_eq!(change.status, 200, "{}", change.json());
        lost = change.json()["job_id"].as_str().unwrap().to_owned();
    }
    until("the agent has kept where the log ends", || {
        (kept(&appliance) > first + 20).then_some(())
    });
    appliance.take_broker_back();
    // Whoever has seen what is gone begins anew, as the service manager has it do.
    assert!(!appliance.controller_ended().success());
    appliance.start_controller();
    appliance.until_ready();

    let after = finished(&appliance, &held);
    assert_eq!((&after["status"], &after["result"]), (&before["status"], &before["result"]));
    assert_eq!(lines(&begun), 1, "it ran once");
    assert!(!is_known(&appliance, &lost), "only its host knows of it");
    assert_eq!(appliance.read("proc/sys/test/one"), "5\n");
    let audit = until("somebody says so", || {
        let health = ask(&appliance, "GET", "/api/health/status", None).json();
        let audit = health["components"]["audit"].clone();
        (audit["status"] == "warning").then_some(audit)
    });
    assert!(audit["error"].as_str().unwrap().contains("no further than before"), "{audit}");
    until("it is on record", || {
        let chain = ask(&appliance, "GET", "/api/audit/chain?limit=500", None).json().to_string();
        (chain.matches("audit_set_back").count() == 1).then_some(())
    });
    appliance.assert_audit_is_intact();
}
