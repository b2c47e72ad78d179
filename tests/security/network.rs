//! Callers that come over a network: nobody without a token that is believed, each as far as it
//! says, and pages only from where they may come from.

#![expect(clippy::disallowed_methods, reason = "lays out certificates")]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, get_current_timestamp};
use osapi::api::{Access, Caps};
use osapi::cli::{self, Invocation, Reach};
use osapi::config::Secret;
use osapi::error::Kind;
use osapi::ops;
use osapi::permission::Permission;
use osapi::tls;
use osapi::token::{Claims, Key};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{parse, plain_path};
use crate::server::{Config, Reply, Server, call, request};

const KEY: &[u8] = b"a key that nobody can guess but the tests";

fn access() -> Access {
    let nurse = ("nurse".to_owned(), [Permission::NodeRead].into());
    Access {
        key: Some(Key::new(KEY)),
        roles: [nurse].into(),
        origins: vec!["https://ops.example".to_owned()],
        own_is_admin: true,
        ..Access::default()
    }
}

fn served() -> Server {
    Server::start(Config { access: access(), ..Config::default() })
}

fn token(roles: &[&str]) -> String {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    let claims = Claims::new("ada", roles, Vec::new(), get_current_timestamp());
    Key::new(KEY).sign(&claims).unwrap()
}

fn good() -> Value {
    let now = get_current_timestamp();
    json!({
        "roles": ["admin"], "iss": "osapi", "sub": "ada", "iat": now, "exp": now + 600,
        "aud": ["https://localhost", "http://localhost"],
    })
}

fn with(mut value: Value, name: &str, to: Value) -> Value {
    value[name] = to;
    value
}

/// A token that says just this, signed with `key`.
fn forged(header: &Value, claims: &Value, key: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_secret(key);
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256);
    format!("{text}.{}", signature.unwrap())
}

fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    parse(&call(server.address, &request(method, path, headers, b"")))
}

fn ask_with(server: &Server, token: &str, method: &str, path: &str) -> Reply {
    ask(server, method, path, &[("authorization", &format!("Bearer {token}"))])
}

fn metrics(server: &Server) -> String {
    String::from_utf8(server.get("/metrics").body).unwrap()
}

#[test]
fn whoever_brings_no_token_gets_no_further() {
    let server = served();
    let before = server.records();
    for row in ops::all() {
        let reply = ask(&server, row.method.as_str(), &plain_path(row), &[]);
        if row.permission.is_none() {
            assert_ne!(reply.status, 401, "{}", row.id);
            continue;
        }
        assert_eq!(reply.status, 401, "{}", row.id);
        reply.refused("unauthenticated");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"osapi\""));
    }
    assert_eq!(ask(&server, "GET", "/metrics", &[]).status, 401);
    assert_eq!(ask(&server, "GET", "/api/openapi.json", &[]).status, 200);
    assert_eq!(server.records(), before);
}

#[test]
fn tokens_that_are_not_to_be_believed_are_refused_counted_and_on_record() {
    let server = served();
    let before = server.records();
    let plain = json!({ "alg": "HS256", "typ": "JWT" });
    let now = get_current_timestamp();
    let jwk = json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode("mine") });
    let unsigned = {
        let text = forged(&json!({ "alg": "none" }), &good(), KEY);
        format!("{}.", text.rsplit_once('.').unwrap().0)
    };
    let changed = {
        let text = forged(&plain, &with(good(), "roles", json!(["read"])), KEY);
        let (_, signature) = text.rsplit_once('.').unwrap();
        let other = forged(&plain, &good(), KEY);
        format!("{}.{signature}", other.rsplit_once('.').unwrap().0)
    };
    let without = |name: &str| {
        let mut claims = good();
        claims.as_object_mut().unwrap().remove(name);
        forged(&plain, &claims, KEY)
    };
    let bad = [
        ("signature", forged(&plain, &good(), b"another key")),
        ("signature", forged(&plain, &good(), b"")),
        ("signature", changed),
        ("algorithm", unsigned),
        ("algorithm", forged(&with(plain.clone(), "alg", json!("HS512")), &good(), KEY)),
        ("algorithm", forged(&with(plain.clone(), "alg", json!("RS256")), &good(), KEY)),
        ("header", forged(&with(plain.clone(), "crit", json!(["exp"])), &good(), KEY)),
        ("header", forged(&with(plain.clone(), "jwk", jwk), &good(), b"mine")),
        ("header", forged(&with(plain.clone(), "jku", json!("https://a/k")), &good(), KEY)),
        ("expired", forged(&plain, &with(good(), "exp", json!(now - 3600)), KEY)),
        ("early", forged(&plain, &with(good(), "nbf", json!(now + 3600)), KEY)),
        ("issuer", forged(&plain, &with(good(), "iss", json!("me")), KEY)),
        ("audience", forged(&plain, &with(good(), "aud", json!("https://a")), KEY)),
        ("claims", without("aud")),
        ("claims", without("exp")),
        ("malformed", "x".to_owned()),
        ("malformed", "x.y.z".to_owned()),
        ("malformed", String::new()),
    ];
    for (why, token) in &bad {
        let counted = || {
            let line = format!("osapi_tokens_refused_total{{reason=\"{why}\"}} ");
            let text = metrics(&server);
            let count = text.lines().find_map(|other| other.strip_prefix(&line));
            count.unwrap().parse::<u64>().unwrap()
        };
        let counted_before = counted();
        let reply = ask_with(&server, token, "DELETE", "/api/node/_any/sysctl/vm.swappiness");
        assert_eq!(reply.status, 401, "{why} {token}");
        reply.refused("unauthenticated");
        let challenge = reply.header("www-authenticate").unwrap();
        assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
        assert_eq!(counted(), counted_before + 1, "{why} {token}");
    }
    assert_eq!(server.records(), before);
    // What was refused within a second is one entry, which says how many there were.
    let refused = |entry: &Value| entry["user"] == "anonymous" && entry["response_code"] == 401;
    let log = loop {
        let log = server.get("/api/audit?limit=100").expect(200);
        if log["items"].as_array().unwrap().iter().any(refused) {
            break log;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let entry = log["items"].as_array().unwrap().iter().find(|entry| refused(entry)).unwrap();
    assert_eq!(entry["source_ip"], "127.0.0.1", "{entry}");
    assert!(!log.to_string().contains(&bad[0].1), "no token is on record");
}

#[test]
fn holders_of_tokens_may_what_those_say() {
    let server = served();
    let status =
        |token: &str, method: &str, path: &str| ask_with(&server, token, method, path).status;
    let (os, delete) = ("/api/node/_any/os", "/api/node/_any/sysctl/vm.swappiness");
    assert_eq!(status(&token(&["read"]), "GET", os), 200);
    assert_eq!(status(&token(&["read"]), "DELETE", delete), 403);
    assert_eq!(status(&token(&["write"]), "DELETE", delete), 200);
    assert_eq!(status(&token(&["nurse"]), "GET", os), 200);
    assert_eq!(status(&token(&["nurse"]), "GET", "/api/job"), 403);
    assert_eq!(status(&token(&["king"]), "GET", os), 403);
    assert_eq!(status(&token(&["read"]), "GET", "/metrics"), 200);
    assert_eq!(status(&token(&["nurse"]), "GET", "/metrics"), 403);
    let told = ask_with(&server, &token(&["nurse"]), "DELETE", delete).refused("denied");
    assert!(told["detail"].as_str().unwrap().contains("sysctl:write, which ada lacks"), "{told}");
    // One connection may speak for one and for another.
    let mut stream = TcpStream::connect(server.address).unwrap();
    let line =
        |token: &str| format!("GET {os} HTTP/1.1\r\nhost: x\r\nauthorization: bEARER {token}\r\n");
    let (first, second) = (line(&token(&["read"])), line(&token(&["king"])));
    write!(stream, "{first}\r\n{second}connection: close\r\n\r\n").unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 1, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 403 ").count(), 1, "{answers}");
}

#[test]
fn another_key_ends_all_tokens_at_once() {
    let server = served();
    let token = token(&["read"]);
    assert_eq!(ask_with(&server, &token, "GET", "/api/node/_any/os").status, 200);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let other = Access { key: Some(Key::new(b"other")), ..access() };
    runtime.block_on(server.api.allow(other)).unwrap();
    assert_eq!(ask_with(&server, &token, "GET", "/api/node/_any/os").status, 401);
}

#[test]
fn pages_may_ask_only_from_where_they_may_come() {
    let server = served();
    let token = format!("Bearer {}", token(&["read"]));
    let from = |origin, method, more: &[(&str, &str)]| {
        let own = [("origin", origin), ("authorization", token.as_str())];
        let headers = [&own, more].concat();
        ask(&server, method, "/api/node/_any/os", &headers)
    };
    let listed = "https://ops.example";
    let reply = from(listed, "GET", &[]);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("access-control-allow-origin"), Some(listed));
    assert_eq!(reply.header("vary"), Some("origin"));
    let preflight = [("access-control-request-method", "PUT")];
    let reply = from(listed, "OPTIONS", &preflight);
    assert_eq!((reply.status, reply.body.len()), (204, 0));
    let allowed = reply.header("access-control-allow-headers").unwrap();
    assert!(allowed.contains("authorization") && allowed.contains("idempotency-key"));
    for other in ["https://ops.example.org", "http://ops.example", "null", "*"] {
        for method in ["GET", "OPTIONS"] {
            let reply = from(other, method, &preflight);
            assert_eq!(reply.status, 403, "{other}");
            reply.refused("denied");
            assert_eq!(reply.header("access-control-allow-origin"), None);
        }
    }
    // Without a page, nobody asks whether it may.
    assert_eq!(ask(&server, "OPTIONS", "/api/node/_any/os", &[]).status, 405);
}

#[test]
fn one_address_leaves_the_socket_served() {
    let caps = Caps { per_address: 3, ..Caps::default() };
    let server = Server::start(Config { access: access(), caps, ..Config::default() });
    let held: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(b"GET /api/version HTTP/1.1\r\nhost").unwrap();
            stream
        })
        .collect();
    // Connections are accepted in the order in which they came.
    assert_eq!(ask(&server, "GET", "/api/openapi.json", &[]).status, 429);
    assert_eq!(server.get("/api/openapi.json").status, 200);
    drop(held);
    while ask(&server, "GET", "/api/openapi.json", &[]).status != 200 {
        std::thread::yield_now();
    }
}

/// A certificate for localhost, which is its own authority, and its key.
fn made(dir: &TempDir, name: &str) -> tls::Files {
    let localhost = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(localhost).unwrap();
    let path = |kind: &str| dir.path().join(format!("{name}.{kind}"));
    std::fs::write(path("cert"), made.cert.pem()).unwrap();
    std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
    tls::Files { cert: path("cert"), key: path("key") }
}

/// The exit status of `osapi os get` at `url`.
fn run(url: &str, cacert: &Path, token: Option<String>) -> u8 {
    let cacert = cacert.to_str().unwrap();
    let words = ["osapi", "os", "get", "--json", "--url", url, "--cacert", cacert];
    let Ok(Invocation::Client(client)) = cli::parse(words.map(OsString::from)) else { panic!() };
    let reach = Reach { token: token.map(Secret::from), ..Reach::default() };
    let code = format!("{:?}", cli::run(client, &reach));
    let digits: String = code.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

#[test]
fn the_command_line_speaks_tls_with_whom_it_may_trust() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (made(&dir, "one"), made(&dir, "two"));
    let shown = Arc::new(tls::Server::new(&one).unwrap());
    let config = Config { access: access(), tls: Some(shown.clone()), ..Config::default() };
    let server = Server::start(config);
    let port = server.address.port();
    let url = format!("https://localhost:{port}");
    let admin = || Some(token(&["admin"]));
    assert_eq!(run(&url, &one.cert, admin()), 0);
    assert_eq!(run(&format!("https://127.0.0.1:{port}"), &one.cert, admin()), 0);
    assert_eq!(run(&url, &one.cert, None), Kind::Unauthenticated.exit());
    assert_eq!(run(&url, &one.cert, Some(token(&["king"]))), Kind::Denied.exit());
    assert_eq!(run(&url, &two.cert, admin()), Kind::Denied.exit());
    assert_eq!(run(&format!("https://[::1]:{port}"), &one.cert, admin()), 19);
    assert_eq!(run(&url, &PathBuf::from("/nonexistent"), admin()), Kind::NotFound.exit());

    // Whoever speaks no TLS, or says nothing at all, holds up nobody.
    let _silent = TcpStream::connect(server.address).unwrap();
    assert!(Reply::parse(&call(server.address, b"GET / HTTP/1.1\r\n\r\n")).is_none());
    let failed = || metrics(&server).contains("osapi_tls_handshakes_failed_total 0");
    assert!(!failed());

    shown.reload(&two).unwrap();
    assert_eq!(run(&url, &two.cert, admin()), 0);
    assert_eq!(run(&url, &one.cert, admin()), Kind::Denied.exit());
    assert!(shown.reload(&tls::Files { cert: one.cert.clone(), key: two.key.clone() }).is_err());
    assert_eq!(run(&url, &two.cert, admin()), 0);
}
