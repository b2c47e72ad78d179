//! Calls against a controller that says what a test tells it to.

#![expect(clippy::disallowed_methods, reason = "tests write the files that a person would name")]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use osapi::cli::{self, Invocation, Reach};
use osapi::error::Kind;
use rustix::fs::{Gid, Uid};
use serde_json::{Value, json};
use sha2::Digest as _;
use tempfile::TempDir;

use crate::say::say;

mod audit;
mod targets;

#[derive(Clone, Debug)]
struct Asked {
    line: String,
    head: Vec<String>,
    body: Vec<u8>,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

struct Controller {
    directory: TempDir,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Controller {
    /// Answers every request with what `answer` says to it: a status and a body.
    fn new(answer: impl Fn(&Asked, usize) -> (u16, Value) + Send + 'static) -> Self {
        Self::saying(move |asked, number| {
            let (status, body) = answer(asked, number);
            (status, body.to_string(), body["pending"] == true)
        })
    }

    /// The same with a body as it stands, and whether the answer says that the job goes on.
    fn saying(answer: impl Fn(&Asked, usize) -> (u16, String, bool) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("osapi.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(request) = read(&stream) else { continue };
                let number = record.lock().unwrap().len();
                let (status, body, is_pending) = answer(&request, number);
                record.lock().unwrap().push(request);
                let location = if is_pending { "location: /api/job/x\r\n" } else { "" };
                let length = body.len();
                // The client may have gone; that is its business.
                drop(write!(
                    stream,
                    "HTTP/1.1 {status} x\r\n{location}content-length: {length}\r\n\r\n{body}"
                ));
            }
        });
        Self { directory, asked }
    }

    fn reach(&self) -> Reach {
        let sockets = vec![
            self.directory.path().join("nobody.sock"),
            self.directory.path().join("osapi.sock"),
        ];
        let states = vec![self.directory.path().to_owned()];
        Reach { sockets, states, ..Reach::default() }
    }

    fn run(&self, words: &[&str]) -> u8 {
        run(words, &self.reach())
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}

/// None where somebody only looked whether anybody listens.
fn read(stream: &UnixStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim_end().is_empty() {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let line = (!head.is_empty()).then(|| head.remove(0))?;
    let mut asked = Asked { line, head, body: Vec::new() };
    let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    asked.body.resize(length, 0);
    reader.read_exact(&mut asked.body).unwrap();
    Some(asked)
}

fn run(words: &[&str], reach: &Reach) -> u8 {
    let arguments = std::iter::once("osapi").chain(words.iter().copied()).map(OsString::from);
    let Ok(Invocation::Client(client)) = cli::parse(arguments) else { panic!("{words:?}") };
    let code = format!("{:?}", cli::run(client, reach));
    let digits: String = code.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// An account that is nobody's.
const STRANGER: u32 = 54_321;
const JOB: &str = "0198f0a0-0000-7000-8000-000000000001";

fn rows(rows: &Value) -> Value {
    json!({ "job_id": JOB, "results": rows })
}

#[test]
fn a_change_is_asked_for_again_until_its_job_is_done() {
    let done = rows(&json!([{ "hostname": "a", "status": "ok", "changed": true, "key": "k" }]));
    let controller = Controller::new(move |_, number| match number {
        0 | 1 => (202, json!({ "job_id": JOB, "results": [], "pending": true })),
        2 => (504, json!({ "kind": "timeout", "detail": "not yet", "job_id": JOB })),
        _ => (200, done.clone()),
    });
    assert_eq!(controller.run(&["sysctl", "update", "k", "1", "--json"]), 0);
    let asked = controller.asked();
    assert_eq!(asked.len(), 4);
    let key = asked[0].header("idempotency-key").unwrap();
    assert!(asked.iter().all(|asked| asked.header("idempotency-key") == Some(key)));
    assert!(asked.iter().all(|asked| asked.line.starts_with("PUT /api/node/_only/sysctl/k ")));
    assert_eq!(asked[0].header("prefer"), Some("wait=1"));
}

#[test]
fn a_finished_call_that_is_answered_202_is_not_waited_for_again() {
    let done = rows(&json!([{ "hostname": "a", "status": "ok", "changed": true }]));
    let controller = Controller::new(move |_, _| (202, done.clone()));
    assert_eq!(controller.run(&["file", "undeploy", "/etc/motd"]), 0);
    assert_eq!(controller.asked().len(), 1);
}

#[test]
fn patience_ends_when_it_was_said_to() {
    let controller =
        Controller::new(|_, _| (202, json!({ "job_id": JOB, "results": [], "pending": true })));
    assert_eq!(controller.run(&["sysctl", "update", "k", "1", "--wait=0"]), 18);
    assert_eq!(controller.run(&["sysctl", "update", "k", "1", "--async"]), 0);
    assert_eq!(controller.asked()[1].header("prefer"), Some("respond-async"));
}

#[test]
fn a_controller_that_stays_away_is_not_waited_for_any_longer_than_was_said() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("osapi.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let accept = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        read(&stream);
        let body = json!({ "job_id": JOB, "results": [] }).to_string();
        let (length, head) = (body.len(), "HTTP/1.1 202 x\r\nlocation: /api/job/x");
        write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        // And nobody listens any more.
    });
    let reach = Reach { sockets: vec![socket], ..Reach::default() };
    assert_eq!(run(&["sysctl", "update", "k", "1", "--wait=2"], &reach), 19);
    accept.join().unwrap();
}

/// Runs `words`, which are to wait for a job, tells the program to end while it does, and gives its
/// exit status, what it said, and how long it wanted to wait at first.
fn told_to_end(words: &[&str]) -> (Option<i32>, String, String) {
    let (waits, waiting) = std::sync::mpsc::channel();
    let (_end, ends) = std::sync::mpsc::channel::<()>();
    let controller = Controller::new(move |_, number| {
        if number > 0 {
            let _ = waits.send(());
            let _ = ends.recv();
        }
        (202, json!({ "job_id": JOB, "results": [], "pending": true }))
    });
    let url = format!("unix://{}", controller.path("osapi.sock"));
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_osapi"));
    program.args(words).args(["--url", &url]).stderr(std::process::Stdio::piped());
    let child = program.spawn().unwrap();
    waiting.recv().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let prefer = controller.asked()[0].header("prefer").unwrap().to_owned();
    (output.status.code(), String::from_utf8(output.stderr).unwrap(), prefer)
}

#[test]
fn whoever_is_told_to_end_says_where_the_job_is_to_be_seen() {
    let (status, said, prefer) = told_to_end(&["power", "reboot"]);
    assert_eq!(
        (status, &*prefer),
        (Some(0), "wait=0"),
        "a host that goes down does what it should"
    );
    assert!(said.contains("the host goes down"), "{said}");
    assert!(said.contains(&format!("osapi job get {JOB}")), "{said}");
    let (status, said, prefer) = told_to_end(&["sysctl", "update", "k", "1"]);
    assert_eq!((status, &*prefer), (Some(143), "wait=1"));
    assert!(said.contains(&format!("osapi job get {JOB}")), "{said}");
}

#[test]
fn a_dry_run_leaves_nothing_to_wait_for() {
    let controller = Controller::new(|_, _| (200, rows(&json!([]))));
    assert_eq!(controller.run(&["sysctl", "update", "k", "1", "--dry-run"]), 0);
    assert_eq!(controller.asked()[0].header("idempotency-key"), None);
}

#[test]
fn the_exit_status_says_what_kind_of_failure_it_was() {
    for (status, kind, exit) in [
        (400, "invalid_input", 10),
        (403, "denied", 12),
        (404, "not_found", 13),
        (412, "stale", 15),
        (500, "host_failed", 17),
        (503, "unavailable", 19),
        (507, "full", 19),
    ] {
        let controller =
            Controller::new(move |_, _| (status, json!({ "kind": kind, "detail": "no" })));
        assert_eq!(controller.run(&["sysctl", "update", "k", "1"]), exit, "{kind}");
    }
    let failed = rows(&json!([
        { "hostname": "a", "status": "ok", "changed": true },
        { "hostname": "b", "status": "failed", "changed": false, "error": "no" },
    ]));
    let controller = Controller::new(move |_, _| (200, failed.clone()));
    assert_eq!(controller.run(&["sysctl", "update", "k", "1", "-T", "_all"]), 16);
}

#[test]
fn nobody_who_answers_is_an_exit_status_too() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = vec![directory.path().join("none.sock")];
    let reach = Reach { sockets, ..Reach::default() };
    assert_eq!(run(&["os", "get"], &reach), 19);
    for (url, exit) in [
        ("ftp://localhost", Kind::InvalidInput),
        ("https://localhost/api", Kind::InvalidInput),
        // Neither token nor question is told to a network.
        ("http://192.0.2.1:8080", Kind::Denied),
        // Nobody listens at the port for whoever multiplexes ports.
        ("http://localhost:1", Kind::Unavailable),
    ] {
        assert_eq!(run(&["os", "get", "--url", url], &reach), exit.exit(), "{url}");
    }
}

#[test]
fn the_url_of_a_call_decides_alone() {
    let controller = Controller::new(|_, _| (200, rows(&json!([]))));
    let url = format!("unix://{}", controller.path("osapi.sock"));
    assert_eq!(run(&["os", "get", "--url", &url], &Reach::default()), 0);
    assert_eq!(controller.run(&["os", "get", "--url", "unix:///nowhere"]), 19);
}

#[test]
fn a_refusal_is_heard_although_the_file_was_not_taken() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("osapi.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let refuse = |mut stream: UnixStream| {
        stream.read_exact(&mut [0; 64]).unwrap();
        let body = json!({ "kind": "denied", "detail": "no" }).to_string();
        let length = body.len();
        write!(stream, "HTTP/1.1 403 x\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        // Closed with most of the file unread.
    };
    std::thread::spawn(move || listener.incoming().flatten().for_each(refuse));
    let file = directory.path().join("large");
    std::fs::write(&file, vec![b'x'; 4 << 20]).unwrap();
    let reach = Reach { sockets: vec![socket], ..Reach::default() };
    let file = file.display().to_string();
    for _ in 0..20 {
        assert_eq!(run(&["file", "upload", "--name=x", "--file", &file, "--force"], &reach), 12);
    }
}

#[test]
fn whoever_comes_first_in_a_place_for_all_is_told_nothing() {
    if !rustix::process::geteuid().is_root() {
        say("SKIPPED: only root can listen as another account");
        return;
    }
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory.path(), open).unwrap();
    let socket = directory.path().join("osapi.sock");
    let place = socket.clone();
    let listener = std::thread::spawn(move || {
        let (gid, uid) = (Gid::from_raw(STRANGER), Uid::from_raw(STRANGER));
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        // Of this thread alone, which ends with it.
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        UnixListener::bind(place).unwrap()
    });
    let listener = listener.join().unwrap();
    let (told, tells) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut text = String::new();
            drop(stream.read_to_string(&mut text));
            told.send(text).unwrap();
        }
    });
    let reach = Reach { sockets: vec![socket.clone()], ..Reach::default() };
    assert_eq!(run(&["os", "get"], &reach), 12);
    assert_eq!(tells.recv().unwrap(), "");
}

#[test]
fn a_command_ends_as_it_ended_on_the_host() {
    let reply = rows(&json!([
        { "hostname": "a", "status": "ok", "changed": true, "exit_code": 0, "stdout": "x\n" },
        { "hostname": "b", "status": "ok", "changed": true, "exit_code": 7, "stdout": "" },
    ]));
    let controller = Controller::new(move |_, _| (202, reply.clone()));
    assert_eq!(controller.run(&["command", "exec", "--stdout", "ls"]), 7);
    assert_eq!(controller.run(&["command", "exec", "ls"]), 0);
}

#[test]
fn a_file_that_is_stored_already_is_not_sent() {
    if osapi::ops::find("file.upload").is_none() {
        return;
    }
    let digest = sha2::Sha256::digest(b"hello");
    let digest = digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let stored = json!({ "name": "motd", "sha256": digest, "size": 5, "content_type": "raw" });
    let controller = Controller::new(move |asked, _| {
        (if asked.line.starts_with("GET") { 200 } else { 201 }, stored.clone())
    });
    let (same, other) = (controller.path("same"), controller.path("other"));
    std::fs::write(&same, "hello").unwrap();
    std::fs::write(&other, "hello, world").unwrap();
    assert_eq!(controller.run(&["file", "upload", "--name=motd", "--file", &same]), 0);
    assert_eq!(controller.asked().len(), 1);
    assert_eq!(controller.run(&["client", "file", "upload", "--name=motd", "--file", &other]), 0);
    let asked = controller.asked();
    assert!(asked[2].line.starts_with("POST /api/file "));
    let body = String::from_utf8(asked[2].body.clone()).unwrap();
    for part in [
        "name=\"name\"\r\n\r\nmotd\r\n",
        "name=\"content_type\"\r\n\r\nraw\r\n",
        "\r\n\r\nhello, world\r\n--",
    ] {
        assert!(body.contains(part), "{body}");
    }
    assert_eq!(controller.run(&["file", "upload", "--name=motd", "--file", &same, "--force"]), 0);
    assert!(controller.asked()[3].line.starts_with("POST /api/file?force=true "));
}

/// What a controller answers that has one agent, one change and nothing wrong.
fn healthy(asked: &Asked) -> (u16, Value) {
    let path = asked.line.split(' ').nth(1).unwrap();
    let job = json!({
        "id": JOB,
        "status": "completed",
        "created": "2026-01-01T00:00:00Z",
        "changed": true,
        "operation": { "type": "node.sysctl.update" },
        "timeline": [{ "event": "submitted", "message": "Submitted by ada" }],
    });
    let told = match path.split('?').next().unwrap() {
        "/api/health" => json!({ "status": "ok" }),
        "/api/health/ready" => json!({ "status": "ready" }),
        "/api/health/status" => json!({ "status": "ok", "components": {}, "version": "1" }),
        "/api/agent" => json!({ "agents": [{ "hostname": "web-1", "state": "Ready" }] }),
        "/api/agent/pending" => json!({ "agents": [], "total": 0 }),
        "/api/version" => json!({ "version": env!("CARGO_PKG_VERSION") }),
        "/api/node/_any/service" => rows(&json!([{ "hostname": "web-1", "services": [] }])),
        "/api/node/_any/drift" => rows(&json!([{ "hostname": "web-1", "drift": [] }])),
        "/api/job" if path.contains("status=") => json!({ "items": [] }),
        "/api/job" => json!({ "items": [job] }),
        "/api/audit/chain" => return (403, json!({ "kind": "denied", "detail": "you may not" })),
        path if path.starts_with("/api/job/") => job,
        other => panic!("nobody asked for {other}"),
    };
    (200, told)
}

#[test]
fn a_controller_that_is_not_well_is_shown_with_what_it_says_of_that() {
    let components =
        json!({ "network": { "status": "error", "error": "there is no certificate" } });
    let told = json!({ "status": "degraded", "components": components, "registry": [] });
    let controller = Controller::new(move |_, _| (503, told.clone()));
    let exit = Kind::Unavailable.exit();
    assert_eq!(controller.run(&["health", "status"]), exit);
    assert_eq!(controller.run(&["health", "status", "--json"]), exit);
}

#[test]
fn a_retry_goes_where_the_job_went_unless_another_target_is_named() {
    let controller = Controller::new(|_, _| (201, json!({ "job_id": JOB, "status": "created" })));
    assert_eq!(controller.run(&["job", "retry", "--job-id", JOB]), 0);
    assert_eq!(controller.run(&["job", "retry", "--job-id", JOB, "--target-hostname", "web"]), 0);
    let asked = controller.asked();
    assert!(asked[0].line.starts_with(&format!("POST /api/job/{JOB}/retry ")));
    let said = |at: usize| String::from_utf8(asked[at].body.clone()).unwrap();
    assert!(!said(0).contains("target_hostname"), "{}", said(0));
    assert_eq!(said(1), r#"{"target_hostname":"web"}"#);
}

/// Several hosts, of which this is none: the first is looked at, and no other.
#[test]
fn the_status_is_of_one_host() {
    let controller = Controller::new(|asked, _| match asked.line.split(' ').nth(1).unwrap() {
        "/api/agent" => {
            let agent = |id: &str| json!({ "hostname": id, "machine_id": id, "state": "Ready" });
            (200, json!({ "agents": [agent("m1"), agent("m2")] }))
        }
        "/api/node/m1/service" => (200, rows(&json!([{ "hostname": "m1", "services": [] }]))),
        "/api/node/m1/drift" => (200, rows(&json!([{ "hostname": "m1", "drift": [] }]))),
        path if path.starts_with("/api/node/") => panic!("{path} is another host"),
        _ => healthy(asked),
    });
    assert_eq!(controller.run(&["status"]), 0);
    controller.run(&["doctor"]);
    let of_host = |asked: &&Asked| asked.line.starts_with("GET /api/node/m1/");
    assert_eq!(controller.asked().iter().filter(of_host).count(), 3);
}

#[test]
fn the_status_of_a_host_is_asked_for_as_by_any_client() {
    let controller = Controller::new(|asked, _| healthy(asked));
    assert_eq!(controller.run(&["status"]), 0);
    assert!(controller.asked().iter().all(|asked| asked.line.starts_with("GET /api/")));
    let denied =
        Controller::new(|_, _| (403, json!({ "kind": "denied", "detail": "you may not" })));
    assert_eq!(denied.run(&["status", "--json"]), 0);
    let degraded = Controller::new(|asked, _| match healthy(asked) {
        (_, told) if asked.line.contains("/health/status") => {
            (503, json!({ "status": "degraded", "components": told["components"] }))
        }
        well => well,
    });
    assert_eq!(degraded.run(&["status"]), 19);
}

#[test]
fn a_status_without_a_controller_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = vec![directory.path().join("nobody.sock")];
    let states = vec![directory.path().to_owned()];
    let reach = Reach { sockets, states, ..Reach::default() };
    assert_eq!(run(&["status"], &reach), 19);
    assert_eq!(run(&["doctor"], &reach), 2);
}

#[test]
fn a_doctor_changes_nothing_and_asks_once() {
    let controller = Controller::new(|asked, _| healthy(asked));
    let code = controller.run(&["doctor", "--json"]);
    // What it finds on this machine is not this test's business.
    assert!(code <= 2, "{code}");
    let asked = controller.asked();
    assert!(asked.iter().all(|asked| asked.line.starts_with("GET /api/")), "{asked:?}");
    let count = |path: &str| asked.iter().filter(|asked| asked.line.contains(path)).count();
    for path in ["/health/status ", "/version ", "/node/_any/drift ", "/api/agent "] {
        assert_eq!(count(path), 1, "{path}");
    }
}
