//! Every row against callers who may not, and against requests that are not what they should be:
//! a problem document with a stable kind, no change anywhere, and the server goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use osapi::api::{Access, request::takes_file};
use osapi::ops::{self, Row};
use osapi::schema::{self, Field, Type};
use serde_json::{Map, Value, json};

use crate::server::{Config, Reply, Server, as_account, exchange, request};

mod network;

/// An account that nobody has.
const STRANGER: u32 = 71_234;
const READERS: u32 = 71_235;

/// A path of `row`, with `value` wherever it wants one.
fn path(row: &Row, value: impl Fn(&str) -> String) -> String {
    let segments = row.path.split('/').map(|segment| {
        match segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
            Some(name) => value(name),
            None => segment.to_owned(),
        }
    });
    format!("/api{}", segments.collect::<Vec<_>>().join("/"))
}

fn plain_path(row: &Row) -> String {
    path(row, |name| match name {
        "hostname" => "_any".to_owned(),
        "id" => "0190d7a8-7d4b-7c8e-9a41-5d6f3c2b1a00".to_owned(),
        "pid" => "4194303".to_owned(),
        "key" => "vm.swappiness".to_owned(),
        _ => "a".to_owned(),
    })
}

fn example(field: &Field) -> Value {
    let schema = field.plain_schema();
    match (&schema["examples"][0], field.choices.first(), field.kind) {
        (example, ..) if !example.is_null() => example.clone(),
        (_, Some(choice), _) => json!(choice),
        (_, None, Type::Integer) => json!(2),
        (_, None, Type::Boolean) => json!(true),
        (_, None, Type::List) => json!([]),
        (_, None, Type::Object) => json!({}),
        _ => json!("a"),
    }
}

/// A body that `row` takes.
fn body(row: &Row) -> Map<String, Value> {
    let fields = schema::known(row).fields.iter();
    let in_body = fields.filter(|field| {
        field.required && osapi::api::request::place(row, field) == osapi::api::request::Place::Body
    });
    in_body.map(|field| (field.name.clone(), example(field))).collect()
}

fn with_body() -> impl Iterator<Item = &'static Row> {
    ops::all().filter(|row| row.method.has_body() && !takes_file(row))
}

fn parse(bytes: &[u8]) -> Reply {
    Reply::parse(bytes).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(bytes)))
}

/// Panics unless `request` is refused with a problem document of one of these kinds.
#[track_caller]
fn refused(server: &Server, request: &[u8], kinds: &[&str]) {
    let reply = parse(&server.raw(request));
    let start = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let kind = body["kind"].as_str().unwrap_or("none");
    assert!(kinds.contains(&kind), "{start}\nis answered {} {body:#}", reply.status);
    crate::answers::problem(reply.status, &body);
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
}

#[test]
fn whoever_lacks_a_permission_is_told_which_and_gets_no_further() {
    let server = Server::start(Config::default());
    let before = server.records();
    let socket = server.socket();
    let tried = as_account(STRANGER, &[STRANGER], || {
        for row in ops::all() {
            let (method, path) = (row.method.as_str(), plain_path(row));
            let reply = parse(&exchange(&socket, &request(method, &path, &[], b"")));
            let Some(permission) = row.permission else {
                assert_ne!(reply.status, 403, "{}", row.id);
                continue;
            };
            assert_eq!(reply.status, 403, "{}", row.id);
            let detail = reply.refused("denied")["detail"].clone();
            assert!(detail.as_str().unwrap().contains(permission.as_str()), "{detail}");
        }
        let reply = parse(&exchange(&socket, &request("GET", "/metrics", &[], b"")));
        assert_eq!(reply.status, 403);
        // A token on the socket is neither needed nor believed.
        let token = [("authorization", "Bearer x")];
        let path = "/api/node/_any";
        let reply = parse(&exchange(&socket, &request("GET", path, &token, b"")));
        assert_eq!(reply.status, 403);
    });
    if tried.is_some() {
        assert_eq!(server.records(), before);
    }
}

#[test]
fn whoever_is_refused_before_all_is_read_is_told_nevertheless() {
    let server = Server::start(Config::default());
    let socket = server.socket();
    as_account(STRANGER, &[], || {
        let body = vec![b'x'; 900 * 1024];
        let headers = [("content-type", "multipart/form-data; boundary=b")];
        let request = request("POST", "/api/file", &headers, &body);
        for _ in 0..5 {
            assert_eq!(parse(&exchange(&socket, &request)).status, 403);
        }
    });
}

#[test]
fn members_of_a_group_may_what_its_role_may() {
    let groups = [(READERS.to_string(), "read".to_owned())].into();
    let server = Server::start(Config {
        access: Access { groups, ..Access::default() },
        ..Config::default()
    });
    let socket = server.socket();
    let before = server.records();
    as_account(STRANGER, &[READERS], || {
        let status = |method: &str, path: &str| {
            parse(&exchange(&socket, &request(method, path, &[], b""))).status
        };
        assert_eq!(status("GET", "/api/node/_any/os"), 200);
        assert_eq!(status("GET", "/metrics"), 200);
        assert_eq!(status("DELETE", "/api/node/_any/sysctl/vm.swappiness"), 403);
        assert_eq!(status("POST", "/api/node/_any/command/exec"), 403);
    });
    assert_eq!(server.records(), before);
}

/// Reads one answer off a connection that stays open; its status.
fn next(stream: &mut UnixStream) -> u16 {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.extend(byte);
        if bytes.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let reply = Reply::parse(&bytes).unwrap();
    let length = reply.header("content-length").unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).unwrap();
    reply.status
}

#[test]
fn what_groups_may_changes_on_open_connections_too() {
    let granted = |role: &str| Access {
        groups: [(READERS.to_string(), role.to_owned())].into(),
        ..Access::default()
    };
    let server = Server::start(Config { access: granted("read"), ..Config::default() });
    let (socket, api) = (server.socket(), server.api.clone());
    let allow = |access| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(api.allow(access))
    };
    as_account(STRANGER, &[READERS], || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let mut status = || {
            let request = b"GET /api/node/_any/os HTTP/1.1\r\nhost: x\r\n\r\n";
            stream.write_all(request).unwrap();
            next(&mut stream)
        };
        assert_eq!(status(), 200);
        assert!(allow(granted("boss")).is_err());
        assert_eq!(status(), 200);
        allow(Access::default()).unwrap();
        assert_eq!(status(), 403);
        allow(granted("write")).unwrap();
        assert_eq!(status(), 200);
    });
}

#[test]
fn a_connection_that_is_open_when_it_is_stopped_brings_in_nothing_new() {
    let server = Server::start(Config::default());
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let request = b"GET /api/node/_any/os HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).unwrap();
    assert_eq!(next(&mut stream), 200);
    server.api.stop();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn bodies_that_are_not_what_they_should_be_change_nothing() {
    let server = Server::start(Config::default());
    let before = server.records();
    let json = [("content-type", "application/json")];
    for row in with_body() {
        let (method, path) = (row.method.as_str(), plain_path(row));
        let good = body(row);
        let text = |value: &Map<String, Value>| Value::from(value.clone()).to_string();
        let with = |name: &str, value: Value| {
            let mut body = good.clone();
            body.insert(name.to_owned(), value);
            text(&body)
        };
        let deep = format!("{{\"x\": {}{}}}", "[".repeat(5_000), "]".repeat(5_000));
        let mut bodies = vec![
            "{".to_owned(),
            "[]".to_owned(),
            "null".to_owned(),
            "{} {}".to_owned(),
            "\u{0}".to_owned(),
            deep,
            with("no_such_field", json!(1)),
            with("x", json!("@fact.hostname")),
            r#"{"x": 1, "x": 1}"#.to_owned(),
        ];
        for name in good.keys() {
            // Objects and lists of the wrong things are neither text nor numbers nor lists.
            bodies.push(with(name, json!({ "a": { "b": 1 } })));
            bodies.push(with(name, Value::Null));
            let twice = format!("{{{}: 1, {}", json!(name), &text(&good)[1..]);
            bodies.push(twice);
        }
        for body in bodies {
            let request = request(method, &path, &json, body.as_bytes());
            refused(&server, &request, &["invalid_input"]);
        }
        let large = with("x", json!("x".repeat(1024 * 1024)));
        refused(&server, &request(method, &path, &json, large.as_bytes()), &["too_large"]);
        let form = [("content-type", "text/plain")];
        let request = request(method, &path, &form, b"{}");
        refused(&server, &request, &["invalid_input"]);
    }
    assert_eq!(server.records(), before);
    assert_eq!(server.get("/api/openapi.json").status, 200);
}

#[test]
fn a_body_without_a_length_is_held_to_the_bound_as_well() {
    let server = Server::start(Config::default());
    let before = server.records();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000)).repeat(20);
    let request = format!(
        "POST /api/node/_any/command/exec HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         transfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"
    );
    refused(&server, request.as_bytes(), &["too_large"]);
    assert_eq!(server.records(), before);
}

#[test]
fn paths_that_are_not_what_they_should_be_change_nothing() {
    let server = Server::start(Config::default());
    let before = server.records();
    let long = "a".repeat(5_000);
    let bad =
        ["%00", "%0a", "%1b%5b31m", "%ff", "%zz", "%2e%2e%2f%2e%2e%2fetc", "-rf", long.as_str()];
    for row in ops::all() {
        let method = row.method.as_str();
        let fields = schema::known(row).fields.iter();
        for field in fields.filter(|field| row.path.contains(&format!("{{{}}}", field.name))) {
            for bad in bad {
                // A file is called whatever somebody called it, and an agent is looked up.
                let is_name = matches!(field.name.as_str(), "name" | "hostname");
                let kinds = if is_name {
                    &["invalid_input", "not_found", "denied"][..]
                } else {
                    &["invalid_input"]
                };
                let path = path(row, |name| match name {
                    _ if name == field.name => bad.to_owned(),
                    "hostname" => "_any".to_owned(),
                    "id" => "0190d7a8-7d4b-7c8e-9a41-5d6f3c2b1a00".to_owned(),
                    _ => "a".to_owned(),
                });
                refused(&server, &request(method, &path, &[], b""), kinds);
            }
        }
        if row.has_target() {
            let body = Value::from(body(row)).to_string();
            let body = if row.method.has_body() { body.as_bytes() } else { b"" };
            for bad in ["%00", "%0a", "nobody-of-that-name", "-rf", "a%3Ab", &long] {
                let path = plain_path(row).replacen("_any", bad, 1);
                let json = [("content-type", "application/json")];
                let request = request(method, &path, &json, body);
                refused(&server, &request, &["invalid_input", "not_found"]);
            }
        }
    }
    for path in [
        "/",
        "/api",
        "/api/",
        "/api/node",
        "/api/node/_any/os/",
        "//api/version",
        "/api/../etc/passwd",
        "/api/node/_any/../../version",
        "/api/%6eode/_any",
        "/API/version",
        "/api/version%00",
    ] {
        refused(&server, &request("GET", path, &[], b""), &["not_found", "invalid_input"]);
    }
    let long = format!("/api/job?status={}", "a".repeat(9_000));
    refused(&server, &request("GET", &long, &[], b""), &["too_large"]);
    let longer = format!("/api/job?status={}", "a".repeat(70_000));
    refused(&server, &request("GET", &longer, &[], b""), &["too_large"]);
    for query in
        ["x=1", "dry_run=true&dry_run=true", "confirm=1.5", "plan=%00", "confirm=99999999999"]
    {
        let path = format!("/api/node/_any/sysctl/vm.swappiness?{query}");
        refused(&server, &request("DELETE", &path, &[], b""), &["invalid_input"]);
    }
    assert_eq!(server.records(), before);
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    let server = Server::start(Config::default());
    let before = server.records();
    let smuggled = "DELETE /api/node/_any/sysctl/vm.swappiness HTTP/1.1\r\nhost: x\r\n\r\n";
    let start = "POST /api/node/_any/sysctl HTTP/1.1\r\nhost: x\r\n";
    let heads = [
        "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: gzip\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        "content-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        "content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        "content-length: +2\r\n\r\n{}",
        "content-length: -2\r\n\r\n{}",
        "content-length: 2, 2\r\n\r\n{}",
        "content-length: 99999999999999999999999\r\n\r\n{}",
        "transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "bad\u{0}name: x\r\ncontent-length: 2\r\n\r\n{}",
        "bad name: x\r\ncontent-length: 2\r\n\r\n{}",
        " folded: x\r\ncontent-length: 2\r\n\r\n{}",
    ];
    for head in heads {
        let request = format!("{start}{head}{smuggled}");
        let answer = server.raw(request.as_bytes());
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{head:?} is answered\n{text}");
        refused(&server, request.as_bytes(), &["invalid_input"]);
    }
    for garbage in [
        "\u{1}\u{2}\u{3}\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n",
        "POST /api/node/_any/sysctl HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answer = server.raw(garbage.as_bytes());
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || text.starts_with("HTTP/1.1 4"), "{garbage:?}: {text}");
        if !answer.is_empty() {
            parse(&answer).refused("invalid_input");
        }
    }
    assert_eq!(server.records(), before);
}

#[test]
fn whoever_speaks_http2_is_told_to_speak_http1() {
    let server = Server::start(Config::default());
    let reply = parse(&server.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    assert_eq!(reply.status, 400);
    assert_eq!(reply.refused("invalid_input")["detail"], "cannot read the request as HTTP/1.1");
}

#[test]
fn heads_have_bounds() {
    let server = Server::start(Config::default());
    let large = [("x-large", "x".repeat(64 * 1024))];
    let large = large.each_ref().map(|(name, value)| (*name, value.as_str()));
    refused(&server, &request("GET", "/api/version", &large, b""), &["too_large"]);
    let many: Vec<_> = (0..500).map(|_| ("x-many", "x")).collect();
    refused(&server, &request("GET", "/api/version", &many, b""), &["too_large"]);
}

#[test]
fn web_pages_are_refused() {
    let server = Server::start(Config::default());
    for origin in ["null", "http://localhost", "https://example.org"] {
        let reply = server.ask("GET", "/api/openapi.json", &[("origin", origin)], "");
        assert_eq!(reply.status, 403);
        reply.refused("denied");
        assert_eq!(reply.header("access-control-allow-origin"), None);
    }
}

#[test]
fn keys_that_are_ill_formed_are_refused() {
    let server = Server::start(Config::default());
    let before = server.records();
    let long = "x".repeat(256);
    for key in ["", "a b", "\u{e4}", long.as_str()] {
        let headers = [("idempotency-key", key)];
        let path = "/api/node/_any/sysctl/vm.swappiness";
        refused(&server, &request("DELETE", path, &headers, b""), &["invalid_input"]);
    }
    assert_eq!(server.records(), before);
}

/// A connection that has sent the beginning of a request.
fn stall(socket: &std::path::Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    let _ = stream.write_all(b"GET /api/version HTTP/1.1\r\nhost");
    stream
}

#[test]
fn stalled_connections_of_one_account_leave_the_others_served() {
    let server = Server::start(Config::default());
    let socket = server.socket();
    let Some(stalled) =
        as_account(STRANGER, &[], || (0..400).map(|_| stall(&socket)).collect::<Vec<_>>())
    else {
        return;
    };
    // Those beyond the cap are told and hung up on; the others are waited for.
    let turned_away = stalled.iter().filter(|stream| {
        let mut stream: &UnixStream = stream;
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        !answer.is_empty() && parse(&answer).refused("busy")["status"] == 429
    });
    assert_eq!(turned_away.count(), 400 - 64);
    let get = request("GET", "/api/openapi.json", &[], b"");
    let other = as_account(STRANGER + 1, &[], || parse(&exchange(&socket, &get)).status);
    assert_eq!(other, Some(200));
    assert_eq!(server.get("/api/openapi.json").status, 200);
    let own = as_account(STRANGER, &[], || parse(&exchange(&socket, &get)).status);
    assert_eq!(own, Some(429));
    drop(stalled);
    // Their places are free again as soon as the server has noticed.
    loop {
        let own = as_account(STRANGER, &[], || parse(&exchange(&socket, &get)).status);
        if own == Some(200) {
            break;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = Server::start(Config::default());
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let one = "GET /api/nothing HTTP/1.1\r\nhost: x\r\n\r\n";
    let last = "GET /api/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(format!("{one}{one}{last}").as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 404 ").count(), 3);
    // A chunked request is only read where its head was seen alone.
    let chunked = "POST /api/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                   transfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let answers = server.raw(format!("{one}{chunked}").as_bytes());
    let answers = String::from_utf8_lossy(&answers);
    assert_eq!(answers.matches("HTTP/1.1 404 ").count(), 1, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 400 ").count(), 1, "{answers}");
}
