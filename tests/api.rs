//! What requests are answered with: hosts' rows, errors, jobs that go on, keys and preferences.

use std::fmt::Write as _;
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
fn the_same_key_repeats_a_job_once() {
    let server = serving(|_| Some(Ok(changed())));
    let done = server.send("PUT", KEY, &json!({ "value": "10" })).expect(200);
    let retry = format!("/api/job/{}/retry", done["job_id"].as_str().unwrap());
    let again = |key| {
        let reply = server.ask("POST", &retry, &[("idempotency-key", key)], "");
        reply.expect(201)["job_id"].clone()
    };
    let first = again("k-1");
    assert_eq!(first, again("k-1"));
    assert_ne!(first, again("k-2"));
}

#[test]
fn what_the_controller_does_itself_is_done_once_for_one_key() {
    let server = serving(|_| Some(Ok(changed())));
    let again = |method: &str, path: &str, key: &str, status: u16| {
        let first = server.ask(method, path, &[("idempotency-key", key)], "");
        let second = server.ask(method, path, &[("idempotency-key", key)], "");
        assert_eq!((first.status, second.status), (status, status), "{path}");
        assert_eq!(first.header("idempotency-replayed"), None, "{path}");
        assert_eq!(second.header("idempotency-replayed"), Some("true"), "{path}");
        assert_eq!(first.body, second.body, "{path}");
    };
    again("POST", &format!("/api/agent/{HOSTNAME}/drain"), "k-1", 200);
    // Only the same key has been answered before.
    let other = [("idempotency-key", "k-2")];
    assert_eq!(server.ask("POST", &format!("/api/agent/{HOSTNAME}/drain"), &other, "").status, 409);
    again("POST", &format!("/api/agent/{HOSTNAME}/undrain"), "k-1", 200);
    let done = server.send("PUT", KEY, &json!({ "value": "10" })).expect(200);
    let job = format!("/api/job/{}", done["job_id"].as_str().unwrap());
    again("DELETE", &job, "k-1", 204);
    assert_eq!(server.ask("DELETE", &job, &[], "").status, 404);

    let upload = |content: &str, key: &str| {
        let body = format!(
            "--x\r\ncontent-disposition: form-data; name=\"name\"\r\n\r\nmotd\r\n--x\r\n\
             content-disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n{content}\r\n\
             --x--\r\n"
        );
        let form = ("content-type", "multipart/form-data; boundary=x");
        server.ask("POST", "/api/file", &[form, ("idempotency-key", key)], &body)
    };
    let first = upload("one", "k-1").expect(201);
    assert_eq!((first["changed"].clone(), upload("one", "k-1").expect(201)), (json!(true), first));
    assert_eq!(upload("two", "k-1").refused("key_reused")["status"], 422);
    assert_eq!(upload("one", "k-2").expect(201)["changed"], false);
    again("DELETE", "/api/file/motd", "k-1", 200);
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

/// A form as clients send it, its file last.
fn form(fields: &[(&str, &str)]) -> String {
    let mut form = String::new();
    for (name, value) in fields {
        let file = if *name == "file" { "; filename=\"f\"" } else { "" };
        let _ = write!(
            form,
            "--b\r\ncontent-disposition: form-data; name=\"{name}\"{file}\r\n\r\n{value}\r\n"
        );
    }
    form + "--b--\r\n"
}

const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=b");

#[test]
fn files_are_kept_as_they_were_sent() {
    let server = Server::start(Config::default());
    let upload = |path: &str, content: &str| {
        let form = form(&[("name", "motd"), ("content_type", "raw"), ("file", content)]);
        server.ask("POST", path, &[FORM], &form)
    };
    // More than is read at once.
    let large = "welcome\r\n".repeat(100_000);
    let first = upload("/api/file", &large).expect(201);
    assert_eq!((&first["changed"], &first["size"]), (&json!(true), &json!(large.len())));
    assert_eq!(upload("/api/file", &large).expect(201)["changed"], false);
    let other = upload("/api/file", "other");
    assert_eq!(other.status, 409);
    other.refused("conflict");
    assert_eq!(upload("/api/file?force=true", "other").expect(201)["size"], 5);
    assert_eq!(server.get("/api/file/motd").expect(200)["size"], 5);
    assert_eq!(server.get("/api/file").expect(200)["total"], 1);
    server.ask("DELETE", "/api/file/motd", &[], "").expect(200);
    assert_eq!(server.get("/api/file/motd").status, 404);
}

#[test]
fn forms_that_are_not_what_they_should_be_keep_nothing() {
    let server = Server::start(Config::default());
    let before = server.records();
    let whole = form(&[("name", "motd"), ("file", "x")]);
    let long = "n".repeat(5_000);
    let large = "x".repeat(300);
    let forms = [
        form(&[("file", "x"), ("name", "motd")]),
        form(&[("name", "motd")]),
        form(&[("name", "motd"), ("name", "other"), ("file", "x")]),
        form(&[("name", "motd"), ("nonsense", "1"), ("file", "x")]),
        form(&[("name", "motd"), ("force", "true"), ("file", "x")]),
        form(&[("name", "-rf"), ("file", "x")]),
        form(&[("name", "a\nb"), ("file", "x")]),
        form(&[("name", &large), ("file", "x")]),
        form(&[("name", "motd"), ("content_type", "other"), ("file", "x")]),
        form(&[("name", "motd"), ("file", "x"), ("more", "1")]),
        whole.replace("--b--\r\n", ""),
        whole[..whole.len() / 2].to_owned(),
        "nonsense".to_owned(),
    ];
    for form in forms {
        let reply = server.ask("POST", "/api/file", &[FORM], &form);
        assert_eq!(reply.status, 400, "{form}");
        reply.refused("invalid_input");
    }
    let reply = server.ask("POST", "/api/file", &[FORM], &form(&[("name", &long), ("file", "x")]));
    reply.refused("too_large");
    for content_type in ["application/json", "multipart/form-data", "multipart/mixed; boundary=b"] {
        let reply = server.ask("POST", "/api/file", &[("content-type", content_type)], &whole);
        reply.refused("invalid_input");
    }
    assert_eq!(server.records(), before);
}

#[test]
fn what_the_controller_says_itself_is_as_documented() {
    let server = serving(|_| Some(Ok(changed())));
    let done = server.send("PUT", KEY, &json!({ "value": "10" })).expect(200);
    let id = done["job_id"].as_str().unwrap();
    let job = server.get(&format!("/api/job/{id}")).expect(200);
    assert_eq!((&job["id"], &job["status"]), (&json!(id), &json!("completed")));
    assert_eq!(server.get("/api/job?status=completed&limit=5").expect(200)["items"][0]["id"], id);
    assert_eq!(server.get("/api/agent").expect(200)["total"], 1);
    assert_eq!(server.get(&format!("/api/agent/{HOSTNAME}")).expect(200)["hostname"], HOSTNAME);
    server.get("/api/health").expect(200);
    let ready = server.get("/api/health/ready");
    assert_eq!(server.get("/health/ready").status, ready.status);
    server.get("/api/health/status");
    server.get("/api/version").expect(200);
    let entry = server.get("/api/audit?limit=1").expect(200)["items"][0]["id"].clone();
    server.get(&format!("/api/audit/{}", entry.as_str().unwrap())).expect(200);
    server.get("/api/audit/export").expect(200);
    server.get("/api/audit/chain").expect(200);
    let again = server.send("POST", &format!("/api/job/{id}/retry"), &json!({})).expect(201);
    assert_ne!(again["job_id"], id);
    let drain = format!("/api/agent/{HOSTNAME}/drain");
    server.ask("POST", &drain, &[], "").expect(200);
    assert_eq!(server.ask("POST", &drain, &[], "").status, 409);
    assert_eq!(server.send("PUT", KEY, &json!({ "value": "11" })).status, 409);
    server.ask("POST", &drain.replace("drain", "undrain"), &[], "").expect(200);
    server.ask("DELETE", &format!("/api/job/{id}"), &[], "").expect(204);
    assert_eq!(server.get(&format!("/api/job/{id}")).status, 404);
}

#[test]
fn requests_are_on_record_whoever_hung_up() {
    let server = serving(|task| (task.op != "node.os.get").then(|| Ok(json!({}))));
    let mut stream = std::os::unix::net::UnixStream::connect(server.socket()).unwrap();
    let request = crate::server::request("GET", "/api/node/_any/os", &[], b"");
    std::io::Write::write_all(&mut stream, &request).unwrap();
    drop(stream);
    loop {
        // Each look is on record, too.
        let entries = server.get("/api/audit?limit=100").expect(200)["items"].clone();
        let entries = entries.as_array().unwrap();
        let found = entries.iter().find(|entry| entry["path"] == "/api/node/_any/os");
        assert!(entries.len() < 100, "no record of it");
        if let Some(found) = found {
            assert_eq!(found["response_code"], 499);
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
