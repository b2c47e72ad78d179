//! Several hosts behind one controller, as clients see them.

use std::time::Duration;

use osapi::error::Kind;
use serde_json::{Value, json};

use crate::server::{Config, HOST, HOSTNAME, Other, Script, Server, failed};

const OTHERS: &[Other] =
    &[("m-b", "web-2", "web.dev.us-east"), ("m-a", "web-2", "web.prod"), ("m-c", "db", "db")];

fn serving(script: Script) -> Server {
    Server::start(Config { script, others: OTHERS, ..Config::default() })
}

fn on(target: &str) -> String {
    format!("/api/node/{target}/sysctl/vm.swappiness")
}

fn change(server: &Server, target: &str) -> crate::server::Reply {
    server.send("PUT", &on(target), &json!({ "value": "10" }))
}

/// Of every row the host's name, its machine id where it has a double, and how it went.
fn rows(body: &Value) -> Vec<(String, String, String)> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let results = body["results"].as_array().unwrap().iter();
    results
        .map(|row| (text(row, "hostname"), text(row, "machine_id"), text(row, "status")))
        .collect()
}

fn row(name: &str, machine_id: &str, status: &str) -> (String, String, String) {
    (name.to_owned(), machine_id.to_owned(), status.to_owned())
}

fn some_fail(task: &osapi::job::Task) -> Option<osapi::error::Result<Value>> {
    match task.host.as_str() {
        "m-a" => failed(Kind::Conflict, "cannot set it: it is locked"),
        "m-c" => failed(Kind::Unsupported, "no sysctl here"),
        _ => Some(Ok(json!({ "changed": true, "key": "vm.swappiness" }))),
    }
}

#[test]
fn every_host_is_a_row_in_the_order_of_names_whatever_it_answers() {
    let server = serving(some_fail);
    let body = change(&server, "_all").expect(200);
    let expected = [
        row("db", "", "skipped"),
        row(HOSTNAME, "", "ok"),
        row("web-2", "m-a", "failed"),
        row("web-2", "m-b", "ok"),
    ];
    assert_eq!(rows(&body), expected);
    let summary = json!({ "hosts": 4, "ok": 2, "skipped": 1, "failed": 1, "waiting": 0 });
    assert_eq!(body["summary"], summary);
    let job = server.get(&format!("/api/job/{}", body["job_id"].as_str().unwrap())).expect(200);
    assert_eq!(job["status"], "partial_failure");
    let count = |of: &str| job[of].as_object().unwrap().len();
    assert_eq!((count("responses"), count("agent_states")), (4, 4));
}

#[test]
fn a_host_that_does_not_answer_leaves_the_rows_of_the_others() {
    let patience = Duration::from_millis(300);
    let script: Script = |task| match (task.host.as_str(), task.op.as_str()) {
        ("m-a", _) => None,
        (_, "node.os.get") => Some(Ok(json!({}))),
        _ => some_fail(task),
    };
    let config = Config { script, others: OTHERS, patience, ..Config::default() };
    let server = Server::start(config);
    let body = server.get("/api/node/group:web/os").expect(200);
    assert_eq!(rows(&body), [row("web-2", "m-a", "failed"), row("web-2", "m-b", "ok")]);
    assert_eq!(body["results"][0]["kind"], "host_failed");
    let expected = json!({ "hosts": 2, "ok": 1, "skipped": 0, "failed": 1, "waiting": 0 });
    assert_eq!(body["summary"], expected);
    // A change goes on, and so does what one host was asked for.
    for reply in [change(&server, "group:web"), server.get("/api/node/m-a/os")] {
        assert_eq!(reply.status, 504);
        reply.refused("timeout");
    }
    let soon = [("content-type", "application/json"), ("prefer", "wait=1")];
    let reply = server.ask("PUT", &on("group:web"), &soon, &json!({ "value": "10" }).to_string());
    let body = reply.expect(202);
    assert_eq!(rows(&body), [row("web-2", "", "ok")]);
    let expected = json!({ "hosts": 2, "ok": 1, "skipped": 0, "failed": 0, "waiting": 1 });
    assert_eq!(body["summary"], expected);
}

#[test]
fn labels_name_hosts_up_to_a_dot() {
    let server = serving(some_fail);
    for (target, expected) in [
        ("group:web", vec![row("web-2", "m-a", "failed"), row("web-2", "m-b", "ok")]),
        ("group:web.dev", vec![row("web-2", "", "ok")]),
        ("group:web.dev.us-east", vec![row("web-2", "", "ok")]),
        ("group:db", vec![row("db", "", "skipped")]),
    ] {
        assert_eq!(rows(&change(&server, target).expect(200)), expected, "{target}");
    }
    for (target, said) in [
        ("group:we", "no agent answers"),
        ("group:", "as a label"),
        (":web", "as a label"),
        ("group:web.", "as a label"),
        ("group:web%20dev", "as a label"),
        ("nobody", "no agent answers"),
    ] {
        let reply = change(&server, target);
        assert_eq!(reply.status, 400, "{target}");
        let detail = reply.refused("invalid_input")["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(said), "{target}: {detail}");
    }
}

#[test]
fn a_name_that_two_hosts_have_is_refused_with_their_machine_ids() {
    let server = serving(some_fail);
    for reply in [
        change(&server, "web-2"),
        server.get("/api/agent/web-2"),
        server.send("POST", "/api/agent/web-2/drain", &json!({})),
    ] {
        assert_eq!(reply.status, 409);
        let detail = reply.refused("conflict")["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("m-a, m-b"), "{detail}");
    }
    assert_eq!(rows(&change(&server, "m-b").expect(200)), [row("web-2", "", "ok")]);
    assert_eq!(change(&server, "m-a").status, 409, "the host's own answer");
    assert_eq!(server.get(&format!("/api/agent/{HOST}")).expect(200)["hostname"], HOSTNAME);
}

#[test]
fn a_drained_host_is_in_no_set() {
    let server = serving(some_fail);
    server.send("POST", "/api/agent/m-b/drain", &json!({})).expect(200);
    let expected = [row("web-2", "", "failed")];
    assert_eq!(rows(&change(&server, "group:web").expect(200)), expected);
    for target in ["m-b", "group:web.dev"] {
        change(&server, target).refused("conflict");
    }
    assert_eq!(server.get("/api/agent/m-b").expect(200)["state"], "Cordoned");
}

#[test]
fn many_jobs_for_any_host_spread() {
    let server = serving(|_| Some(Ok(json!({ "changed": true, "key": "vm.swappiness" }))));
    let answered: Vec<_> = (0..8)
        .map(|_| {
            let job = change(&server, "_any").expect(200);
            let id = job["job_id"].as_str().unwrap().to_owned();
            let record: Value =
                serde_json::from_slice(&server.records()[&format!("job.{id}")]).unwrap();
            record["hosts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|h| h.as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
                .concat()
        })
        .collect();
    for host in [HOST, "m-a", "m-b", "m-c"] {
        assert_eq!(answered.iter().filter(|of| *of == host).count(), 2, "{answered:?}");
    }
}

#[test]
fn hosts_are_given_work_once_somebody_has_accepted_their_keys() {
    let config =
        Config { script: some_fail, others: OTHERS, trust: Some(false), ..Config::default() };
    let server = Server::start(config);
    let listed = server.get("/api/agent/pending").expect(200);
    assert_eq!(listed["total"], 4);
    let key_of = |machine_id: &str| {
        let mut agents = listed["agents"].as_array().unwrap().iter();
        let agent = agents.find(|agent| agent["machine_id"] == machine_id).unwrap();
        agent["fingerprint"].as_str().unwrap().to_owned()
    };
    let decide = |verdict: &str, host: &str, key: &str| {
        let key = if key.is_empty() { String::new() } else { format!("?fingerprint={key}") };
        server.send("POST", &format!("/api/agent/{host}/{verdict}{key}"), &json!({}))
    };
    for target in ["_all", "_any", "web-2", "group:web", "m-a"] {
        let reply = change(&server, target);
        assert_eq!(reply.status, 409, "{target}");
        reply.refused("conflict");
    }
    decide("accept", "web-2", "").refused("conflict");
    decide("accept", "web-2", &key_of("m-a")[..20]).refused("invalid_input");
    decide("accept", "web-2", &key_of("m-c")).refused("not_found");
    decide("accept", "web-2", &key_of("m-b")).expect(200);
    assert_eq!(rows(&change(&server, "_all").expect(200)), [row("web-2", "", "ok")]);
    assert_eq!(rows(&change(&server, "web-2").expect(200)), [row("web-2", "", "ok")]);
    decide("accept", "db", "").expect(200);
    assert_eq!(server.get("/api/agent/pending").expect(200)["total"], 2);

    decide("reject", "m-b", "").expect(200);
    let reply = change(&server, "m-b");
    let detail = reply.refused("conflict")["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("was rejected") && detail.contains(&key_of("m-b")), "{detail}");
    decide("reject", "m-b", "").refused("conflict");
    decide("accept", "m-b", "").refused("conflict");
    decide("accept", "m-b", &key_of("m-b")).expect(200);
    assert_eq!(rows(&change(&server, "m-b").expect(200)), [row("web-2", "", "ok")]);
    decide("reject", "nobody", "").refused("not_found");
}

#[test]
fn new_hosts_may_be_accepted_by_themselves() {
    let config =
        Config { script: some_fail, others: OTHERS, trust: Some(true), ..Config::default() };
    let server = Server::start(config);
    assert_eq!(server.get("/api/agent/pending").expect(200)["total"], 0);
    assert_eq!(rows(&change(&server, "_all").expect(200)).len(), 4);
    let agent = server.get("/api/agent/m-a").expect(200);
    assert!(agent["fingerprint"].as_str().unwrap().starts_with("SHA256:"));
}
