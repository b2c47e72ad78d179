//! What requests are answered with: hosts' rows, errors, jobs that go on, keys and preferences.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use osapi::error::Kind;
use serde_json::{Value, json};

use crate::server::{Config, HOSTNAME, Server, failed};

const KEY: &str = "/api/node/_any/sysctl/vm.swappiness";

fn changed() -> Value {
    json!({ "changed": true, "key": "vm.swappiness" })
}

fn serving(script: crate::server::Script) -> Server {
    Server::start(Config { script, ..Config::default() })
}

#[test]
fn a_change_answers_with_its_rows_and_its_job() {
    let server = serving(|task| {
        assert_eq!(task.params, json!({ "key": "vm.swappiness", "value": "10" }));
        Some(Ok(changed()))
    });
    let reply = server.send("PUT", KEY, &json!({ "value": "10" }));
    let body = reply.expect(200);
    assert_eq!(body["results"][0]["hostname"], HOSTNAME);
    assert_eq!(body["results"][0]["status"], "ok");
    assert_eq!(body["changed"], true);
    assert!(server.records().contains_key(&format!("job.{}", body["job_id"].as_str().unwrap())));
}

#[test]
fn a_host_that_fails_is_the_answer_where_one_was_asked_and_a_row_where_several_were() {
    let server = serving(|_| failed(Kind::Conflict, "cannot set it: it is locked"));
    let one = server.send("PUT", KEY, &json!({ "value": "10" }));
    assert_eq!(one.status, 409);
    let body = one.refused("conflict");
    assert!(body["job_id"].is_string() && body["detail"] == "cannot set it: it is locked");
    let all = KEY.replace("_any", "_all");
    let row = &server.send("PUT", &all, &json!({ "value": "10" })).expect(200)["results"][0];
    assert_eq!((&row["status"], &row["kind"]), (&json!("failed"), &json!("conflict")));
}

#[test]
fn what_a_host_cannot_do_is_a_row_that_was_skipped() {
    let server = serving(|_| failed(Kind::Unsupported, "no sysctl here"));
    let body = server.get(KEY).expect(200);
    assert_eq!(body["results"][0]["status"], "skipped");
}

#[test]
fn a_client_may_leave_before_its_job_is_done() {
    let server = serving(|_| None);
    let body = json!({ "value": "10" }).to_string();
    let json = ("content-type", "application/json");
    let now = server.ask("PUT", KEY, &[json, ("prefer", "respond-async")], &body);
    let answer = now.expect(202);
    assert_eq!(answer["results"], json!([]));
    let id = answer["job_id"].as_str().unwrap();
    assert_eq!(now.header("location"), Some(format!("/api/job/{id}").as_str()));
    assert_eq!(now.header("preference-applied"), Some("respond-async"));
    let soon = server.ask("PUT", KEY, &[json, ("prefer", "wait=0")], &body);
    soon.expect(202);
    assert_eq!(soon.header("preference-applied"), Some("wait=0"));
}

#[test]
fn a_wait_that_runs_out_names_the_job_that_goes_on() {
    let patience = Duration::from_millis(20);
    let server = Server::start(Config { patience, script: |_| None, ..Config::default() });
    let reply = server.send("PUT", KEY, &json!({ "value": "10" }));
    assert_eq!(reply.status, 504);
    let body = reply.refused("timeout");
    let id = body["job_id"].as_str().unwrap();
    assert_eq!(reply.header("location"), Some(format!("/api/job/{id}").as_str()));
}

#[test]
fn the_same_key_does_nothing_twice() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let server = serving(|_| {
        RUNS.fetch_add(1, Ordering::SeqCst);
        Some(Ok(changed()))
    });
    let headers = [("content-type", "application/json"), ("idempotency-key", "k-1")];
    let first = server.ask("PUT", KEY, &headers, r#"{"value": "10"}"#);
    let again = server.ask("PUT", KEY, &headers, r#"{ "value":"10" }"#);
    assert_eq!(first.expect(200)["job_id"], again.expect(200)["job_id"]);
    assert_eq!(first.header("idempotency-replayed"), None);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(RUNS.load(Ordering::SeqCst), 1);
    let other = server.ask("PUT", KEY, &headers, r#"{"value": "11"}"#);
    assert_eq!(other.status, 422);
    other.refused("key_reused");
    let dry = server.ask("PUT", &format!("{KEY}?dry_run=true"), &headers, r#"{"value": "12"}"#);
    dry.expect(200);
}

#[test]
fn a_dry_run_is_asked_of_the_host_and_stores_nothing() {
    let server = serving(|task| {
        assert!(task.options.dry_run);
        Some(Ok(json!({ "changed": true, "dry_run": true, "plan": "a".repeat(64), "key": "a" })))
    });
    let before = server.records();
    let body = server.send("PUT", &format!("{KEY}?dry_run=true"), &json!({ "value": "1" }));
    assert_eq!(body.expect(200)["results"][0]["dry_run"], true);
    assert_eq!(server.records(), before);
}

#[test]
fn what_cannot_be_previewed_says_so_before_anything_else() {
    let server = Server::start(Config::default());
    let path = "/api/node/_any/command/exec?dry_run=true&nonsense=1";
    let reply = server.send("POST", path, &json!({ "no": "command" }));
    assert_eq!(reply.status, 400);
    reply.refused("no_preview");
}

#[test]
fn everything_wrong_with_a_request_is_one_answer() {
    let server = Server::start(Config::default());
    let path = "/api/node/_any/sysctl/..%2fetc?dry_run=perhaps&confirm=0&nonsense=1";
    let body = server.ask(
        "PUT",
        path,
        &[("content-type", "application/json")],
        r#"{"value": 1, "value": 2, "key": "a.b", "more": null}"#,
    );
    let problems = body.refused("invalid_input")["problems"].clone();
    let mut places: Vec<_> =
        problems.as_array().unwrap().iter().map(|p| p["pointer"].as_str().unwrap()).collect();
    places.sort_unstable();
    places.dedup();
    let expected = ["/confirm", "/dry_run", "/key", "/more", "/nonsense", "/value"];
    assert_eq!(places, expected, "{problems:#}");
}

#[test]
fn an_empty_body_is_no_parameters() {
    let server = Server::start(Config::default());
    let reply = server.ask("POST", "/api/node/_any/sysctl", &[], "");
    let problems = reply.refused("invalid_input")["problems"].clone();
    assert_eq!(problems.as_array().unwrap().len(), 2, "{problems}");
}

#[test]
fn requests_keep_their_ids() {
    let server = Server::start(Config::default());
    let reply = server.ask("GET", "/api/openapi.json", &[("x-request-id", "r-1")], "");
    assert_eq!(reply.header("x-request-id"), Some("r-1"));
    let reply = server.ask("GET", "/api/openapi.json", &[("x-request-id", "a b")], "");
    assert_eq!(reply.header("x-request-id").unwrap().len(), 36);
}

#[test]
fn a_head_is_a_get_without_a_body_and_other_methods_are_told() {
    let server = Server::start(Config::default());
    let reply =
        server.raw(b"HEAD /api/openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let reply = crate::server::Reply::parse(&reply).unwrap();
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    for method in ["OPTIONS", "PATCH", "TRACE", "BREW"] {
        let reply = server.ask(method, KEY, &[], "");
        assert_eq!(reply.status, 405);
        reply.refused("method_not_allowed");
        assert_eq!(reply.header("allow"), Some("GET, PUT, DELETE, HEAD"));
    }
}

#[test]
fn figures_are_told_with_the_operations_of_the_table() {
    let server = serving(|_| Some(Ok(changed())));
    server.send("PUT", KEY, &json!({ "value": "10" })).expect(200);
    let text = String::from_utf8(server.get("/metrics").body).unwrap();
    for line in [
        r#"osapi_http_requests_total{code="200",method="PUT",op="node.sysctl.update"} 1"#,
        r#"osapi_jobs_created_total{op="node.sysctl.update"} 1"#,
        "osapi_http_connections 1",
    ] {
        assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
    }
}
