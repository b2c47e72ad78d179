//! Keys: what they are known by, hosts that are accepted, and tasks that nobody signed.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{MACHINE, Site, appliance, ask, finished, osapi, submit, until};

const PATH: &str = "/api/node/_any/sysctl";

fn said(site: &Site, words: &[&str]) -> Result<Value, String> {
    let url = format!("unix://{}", site.socket().display());
    let output = osapi(site, words).args(["--json", "--url", &url]).output().unwrap();
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The configuration of `plain`, and that nobody believes what is not signed: tasks by whoever has
/// the other half of `key`.
fn configure(site: &Site, plain: &str, key: &str) {
    let pki = "  pki: { enabled: true }\n";
    let key = site.state().join(key);
    let agent = format!("agent:\n{pki}  controller_key: {}\n", key.display());
    let text = plain.replacen("controller:\n", &format!("controller:\n{pki}"), 1);
    std::fs::write(config(site), text.replacen("agent:\n", &agent, 1)).unwrap();
}

fn config(site: &Site) -> PathBuf {
    site.dir().join("osapi.yaml")
}

fn body(value: u32) -> Value {
    json!({ "key": "test.one", "value": value.to_string() })
}

#[test]
fn an_accepted_host_does_what_its_controller_has_signed_and_nothing_else() {
    let mut host = appliance();
    let plain = std::fs::read_to_string(config(&host)).unwrap();
    configure(&host, &plain, "controller/controller.pub");
    for holder in ["agent", "controller"] {
        let error = said(&host, &["client", holder, "key", "fingerprint"]).unwrap_err();
        assert!(error.contains("starts for the first time"), "{error}");
        assert!(!host.state().join(holder).exists(), "asking makes none");
    }
    host.start_controller();
    let key = host.state().join("controller/controller.key");
    until("the controller has a key", || std::fs::metadata(&key).ok());
    assert_eq!(std::fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
    until("it listens", || host.ask("GET", "/api/health", &[], None).ok());
    host.start_agent();
    let waiting = until("the host waits", || {
        let listed = ask(&host, "GET", "/api/agent/pending", None).json();
        (listed["total"] == 1).then(|| listed["agents"][0].clone())
    });
    let shown = said(&host, &["agent", "key", "fingerprint"]).unwrap();
    assert_eq!(waiting["fingerprint"], shown["fingerprint"]);
    assert_eq!(waiting["machine_id"], MACHINE);
    assert_eq!(ask(&host, "POST", PATH, Some(&body(7))).status, 409);
    let fingerprint = shown["fingerprint"].as_str().unwrap();
    let accept = ["client", "agent", "accept", "--hostname", MACHINE, "--fingerprint", fingerprint];
    said(&host, &accept).unwrap();
    host.until_ready();
    let answer = ask(&host, "POST", PATH, Some(&body(7)));
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert_eq!(host.read("proc/sys/test/one").trim(), "7");
    assert_eq!(ask(&host, "GET", "/api/node/_any/load", None).status, 200);

    // Somebody else's word, as far as this agent knows.
    host.kill_agent();
    configure(&host, &plain, "agent/agent.pub");
    host.start_agent();
    let job = submit(&host, "POST", PATH, &json!({ "key": "test.two", "value": "9" }));
    let refused = until("a refusal is on record", || {
        let chain = ask(&host, "GET", "/api/audit/chain?limit=500", None).json();
        chain.to_string().contains("tasks_refused").then_some(chain)
    });
    assert!(refused.to_string().contains(MACHINE));
    assert_eq!(host.read("proc/sys/test/two").trim(), "0");
    let view = ask(&host, "GET", &format!("/api/job/{job}"), None).json();
    assert!(["submitted", "processing"].contains(&view["status"].as_str().unwrap()), "{view}");

    // Nothing is lost on it.
    host.kill_agent();
    configure(&host, &plain, "controller/controller.pub");
    host.start_agent();
    assert_eq!(finished(&host, &job)["status"], "completed");
    assert_eq!(host.read("proc/sys/test/two").trim(), "9");

    // Revoked, it is given nothing more.
    said(&host, &["client", "agent", "reject", "--hostname", MACHINE]).unwrap();
    assert_eq!(ask(&host, "POST", PATH, Some(&body(8))).status, 409);
    host.assert_audit_is_intact();
}
