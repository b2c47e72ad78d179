//! Real processes and real sockets, on a host that lies in a temporary directory: how they start,
//! stop, lose each other and find each other again.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "starts processes and looks at files"
)]

#[path = "end_to_end/broker.rs"]
mod broker;
#[path = "end_to_end/follow.rs"]
mod follow;
#[path = "support/http.rs"]
mod http;
#[path = "end_to_end/large.rs"]
mod large;
#[path = "end_to_end/network.rs"]
mod network;
#[path = "support/say.rs"]
mod say;
#[path = "end_to_end/secrets.rs"]
mod secrets;
#[path = "support/appliance.rs"]
mod support;
#[path = "end_to_end/tamper.rs"]
mod tamper;
#[path = "end_to_end/trust.rs"]
mod trust;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use http::Answer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{Appliance, Site};

/// Far more than anything takes; a test that waits for this long has failed.
const PATIENCE: Duration = Duration::from_mins(1);
const MACHINE: &str = "0123456789abcdef0123456789abcdef";

fn osapi(site: &Site, words: &[&str]) -> Command {
    let mut command = support::osapi();
    command.arg("-f").arg(site.dir().join("osapi.yaml")).args(words).stdin(Stdio::null());
    command
}

/// `osapi start`, ended with the test.
struct Daemon(Child);

impl Daemon {
    fn start(site: &Site) -> Self {
        let log = File::create(site.dir().join("log")).unwrap();
        let root = site.dir().join("root");
        let mut command = osapi(site, &["start", "--root", root.to_str().unwrap()]);
        Self(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(pid(self.0.id()), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        until("the daemon ends", || self.0.try_wait().unwrap())
    }

    fn agent(&self) -> Option<u32> {
        let id = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The agent ends with its parent.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(id.try_into().unwrap()).unwrap()
}

fn is_there(id: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    state.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// Waits for something that nobody announces.
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn until_ready(site: &Site) {
    until("it is ready", || site.is_ready().then_some(()));
}

fn ask(site: &Site, method: &str, path: &str, body: Option<&Value>) -> Answer {
    site.ask(method, path, &[], body).unwrap()
}

/// Submits without waiting; the id of the job.
fn submit(site: &Site, method: &str, path: &str, body: &Value) -> String {
    let answer = site.ask(method, path, &[("prefer", "respond-async")], Some(body)).unwrap();
    assert_eq!(answer.status, 202, "{}", answer.json());
    answer.json()["job_id"].as_str().unwrap().to_owned()
}

fn finished(site: &Site, job: &str) -> Value {
    until("the job is final", || {
        let job = ask(site, "GET", &format!("/api/job/{job}"), None).json();
        let status = job["status"].as_str().unwrap_or_default();
        (!["submitted", "processing"].contains(&status)).then_some(job)
    })
}

fn appliance() -> Appliance {
    let appliance = Appliance::new();
    appliance.write("proc/sys/test/one", "0\n");
    appliance.write("proc/sys/test/two", "0\n");
    appliance
}

/// A command of the host that says that it runs, and ends when told to.
fn holds(site: &Site) {
    let dir = site.dir().display();
    let script = format!(
        "#!/bin/sh\necho begun >> {dir}/begun\n\
         while [ -d {dir} ] && [ ! -e {dir}/release ]; do sleep 0.02; done\n\
         echo ended >> {dir}/ended\n"
    );
    site.command("held", &script);
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

fn set(value: u32) -> (&'static str, Value) {
    ("/api/node/_any/sysctl", json!({ "key": "test.one", "value": value.to_string() }))
}

#[test]
fn it_starts_with_its_agent_and_ends_with_it() {
    let appliance = appliance();
    let mut daemon = Daemon::start(&appliance);
    until_ready(&appliance);
    let (path, body) = set(1);
    let answer = ask(&appliance, "POST", path, Some(&body));
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert_eq!(answer.json()["results"][0]["changed"], true);
    assert_eq!(appliance.read("proc/sys/test/one"), "1\n");

    let agent = daemon.agent().unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{agent}/comm")).unwrap(), "osapi\n");
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().success());
    assert!(!is_there(agent), "the agent outlived its parent");
    assert!(!appliance.socket().exists());

    // Killed, it cannot end its agent, which ends all the same.
    let mut daemon = Daemon::start(&appliance);
    until_ready(&appliance);
    let agent = until("there is an agent", || daemon.agent());
    daemon.0.kill().unwrap();
    daemon.ended();
    until("the agent has ended", || (!is_there(agent)).then_some(()));
}

#[test]
fn an_agent_that_dies_is_started_again() {
    let appliance = appliance();
    let daemon = Daemon::start(&appliance);
    until_ready(&appliance);
    let first = daemon.agent().unwrap();
    kill_process(pid(first), Signal::KILL).unwrap();
    until("there is another", || daemon.agent().filter(|agent| *agent != first));
    let (path, body) = set(2);
    let answer = ask(&appliance, "POST", path, Some(&body));
    assert_eq!(answer.status, 200, "{}", answer.json());
}

#[test]
fn a_second_daemon_says_so_and_goes() {
    let appliance = appliance();
    let _daemon = Daemon::start(&appliance);
    until_ready(&appliance);
    let said = |output: Output| {
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let second = said(osapi(&appliance, &["start"]).output().unwrap());
    assert!(second.contains("another osapi listens at"), "{second}");
    let mut elsewhere = osapi(&appliance, &["controller", "start"]);
    let socket = appliance.dir().join("other/osapi.sock");
    let second = said(elsewhere.env("OSAPI_CONTROLLER_SOCKET", socket).output().unwrap());
    assert!(second.contains("another osapi (pid "), "{second}");
    let mut beside = osapi(&appliance, &["start"]);
    let socket = appliance.dir().join("beside/osapi.sock");
    let state = appliance.dir().join("beside/state");
    beside.env("OSAPI_CONTROLLER_SOCKET", &socket).env("OSAPI_CONTROLLER_STATE_DIR", state);
    let second = said(beside.output().unwrap());
    assert!(second.contains("osapi: another agent works with"), "{second}");
    let hint = format!("os get --url unix://{}`", socket.display());
    assert!(second.contains(&hint), "{second}");
    let agent = said(osapi(&appliance, &["agent", "start"]).output().unwrap());
    assert!(agent.contains("agent"), "{agent}");
    assert!(appliance.is_ready(), "the first goes on");
}

#[test]
fn at_sigterm_what_was_begun_is_finished_or_said_to_be_interrupted() {
    let appliance = appliance();
    holds(&appliance);
    let mut daemon = Daemon::start(&appliance);
    until_ready(&appliance);
    let act = json!({ "command": "held", "args": [], "timeout": 300 });
    let job = submit(&appliance, "POST", "/api/node/_any/command/exec", &act);
    let begun = appliance.dir().join("begun");
    until("the command runs", || (lines(&begun) > 0).then_some(()));
    let asked = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().success());
    assert!(asked.elapsed() >= Duration::from_secs(7), "it had time to end by itself");

    let _daemon = Daemon::start(&appliance);
    until_ready(&appliance);
    let job = finished(&appliance, &job);
    assert_eq!(job["status"], "failed", "{job}");
    assert!(job.to_string().contains("interrupted"), "{job}");
    assert_eq!(lines(&begun), 1, "it ran once");
    assert_eq!(lines(&appliance.dir().join("ended")), 0);
}

#[test]
fn whoever_has_connected_is_answered_by_a_controller_that_stops() {
    let appliance = appliance();
    let mut daemon = Daemon::start(&appliance);
    until_ready(&appliance);
    let mut stream = UnixStream::connect(appliance.socket()).unwrap();
    // Answered only after what came before it was accepted.
    assert!(appliance.is_ready());
    daemon.signal(Signal::TERM);
    until("it accepts no more", || (!appliance.socket().exists()).then_some(()));
    stream.write_all(b"GET /api/health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(daemon.ended().success());
}

#[test]
fn what_is_asked_while_the_agent_is_away_is_done_once_it_is_back() {
    let mut appliance = appliance();
    appliance.start();
    appliance.kill_agent();
    let dir = appliance.dir().display().to_string();
    appliance.command("count", &format!("#!/bin/sh\necho x >> {dir}/counted\n"));
    let (path, body) = set(7);
    let change = submit(&appliance, "POST", path, &body);
    let act = json!({ "command": "count", "args": [] });
    let act = submit(&appliance, "POST", "/api/node/_any/command/exec", &act);
    appliance.start_agent();
    for job in [&change, &act] {
        assert_eq!(finished(&appliance, job)["status"], "completed");
    }
    assert_eq!(appliance.read("proc/sys/test/one"), "7\n");
    assert_eq!(lines(&appliance.dir().join("counted")), 1);
}

#[test]
fn a_controller_that_was_away_is_told_what_was_done_meanwhile() {
    let mut appliance = appliance();
    holds(&appliance);
    appliance.start();
    let act = json!({ "command": "held", "args": [], "timeout": 300 });
    let job = submit(&appliance, "POST", "/api/node/_any/command/exec", &act);
    until("the command runs", || (lines(&appliance.dir().join("begun")) > 0).then_some(()));
    appliance.kill_controller();
    File::create(appliance.dir().join("release")).unwrap();
    until("it has ended", || (lines(&appliance.dir().join("ended")) > 0).then_some(()));
    appliance.start_controller();
    appliance.until_ready();
    assert_eq!(finished(&appliance, &job)["status"], "completed");
    assert_eq!(lines(&appliance.dir().join("begun")), 1);
    appliance.assert_audit_is_intact();
}

#[test]
fn a_policy_forbids_to_begin_and_not_to_tell() {
    let mut appliance = appliance();
    holds(&appliance);
    appliance.start();
    let path = "/api/node/_any/command/exec";
    let act = json!({ "command": "held", "args": [], "timeout": 300 });
    let (begun, ended) = (appliance.dir().join("begun"), appliance.dir().join("ended"));
    // It ends, and nobody hears of that.
    let done = submit(&appliance, "POST", path, &act);
    until("the command runs", || (lines(&begun) == 1).then_some(()));
    appliance.kill_controller();
    File::create(appliance.dir().join("release")).unwrap();
    until("it has ended", || (lines(&ended) == 1).then_some(()));
    let done_entry = appliance.state().join("agent/done").join(&done);
    until("that is written down", || done_entry.exists().then_some(()));
    appliance.kill_agent();
    appliance.start_controller();
    let new = until("it is taken on", || {
        let later = [("prefer", "respond-async")];
        let answer = appliance.ask("POST", path, &later, Some(&act)).ok()?;
        Some(answer.json()["job_id"].as_str()?.to_owned())
    });

    let mut config = File::options().append(true).open(appliance.dir().join("osapi.yaml")).unwrap();
    config.write_all(b"  policy: [read]\n").unwrap();
    appliance.start_agent();
    let job = finished(&appliance, &done);
    assert_eq!(job["status"], "completed", "{job}");
    let job = finished(&appliance, &new);
    assert_eq!(job["status"], "failed", "{job}");
    assert!(job.to_string().contains("does not allow"), "{job}");
    assert_eq!(lines(&begun), 1);
}

#[test]
fn long_acts_hold_up_neither_reads_nor_changes_nor_confirmations() {
    let mut appliance = appliance();
    holds(&appliance);
    appliance.start();
    let act = json!({ "command": "held", "args": [], "timeout": 300 });
    let acts: Vec<_> =
        (0..80).map(|_| submit(&appliance, "POST", "/api/node/_any/command/exec", &act)).collect();
    until("some run", || (lines(&appliance.dir().join("begun")) > 0).then_some(()));

    let read = ask(&appliance, "GET", "/api/node/_any/load", None);
    assert_eq!(read.status, 200, "{}", read.json());
    let (path, body) = set(3);
    let change = ask(&appliance, "POST", &format!("{path}?confirm=3600"), Some(&body));
    assert_eq!(change.status, 200, "{}", change.json());
    let job = change.json()["job_id"].as_str().unwrap().to_owned();
    let confirmed = ask(&appliance, "POST", &format!("/api/job/{job}/confirm"), Some(&json!({})));
    assert_eq!(confirmed.status, 200, "{}", confirmed.json());

    File::create(appliance.dir().join("release")).unwrap();
    for act in &acts {
        assert_eq!(finished(&appliance, act)["status"], "completed");
    }
    assert_eq!(lines(&appliance.dir().join("begun")), acts.len());
}

#[test]
fn whatever_has_not_begun_can_be_called_off() {
    let mut appliance = appliance();
    holds(&appliance);
    appliance.start();
    appliance.kill_agent();
    let act = json!({ "command": "held", "args": [], "timeout": 300 });
    let acts: Vec<_> =
        (0..8).map(|_| submit(&appliance, "POST", "/api/node/_any/command/exec", &act)).collect();
    // The agent finds all of them waiting, and begins what it has workers for.
    appliance.start_agent();
    let begun = appliance.dir().join("begun");
    until("as many run as there are workers", || (lines(&begun) == 5).then_some(()));
    let status = |act: &str| ask(&appliance, "GET", &format!("/api/job/{act}"), None).json();
    until("the first is known to have begun", || {
        (status(&acts[0])["status"] == "processing").then_some(())
    });
    let cancel = |act: &str| ask(&appliance, "POST", &format!("/api/job/{act}/cancel"), None);
    for act in &acts[5..7] {
        let cancelled = cancel(act);
        assert_eq!(cancelled.status, 200, "{}", cancelled.json());
    }
    assert_eq!(cancel(&acts[0]).status, 409, "it has begun");
    File::create(appliance.dir().join("release")).unwrap();
    for (number, act) in acts.iter().enumerate() {
        let expected = if [5, 6].contains(&number) { "failed" } else { "completed" };
        assert_eq!(finished(&appliance, act)["status"], expected, "{number}");
    }
    assert_eq!(lines(&begun), 6);
}

#[test]
fn reads_that_hang_hold_up_no_confirmation() {
    let mut appliance = appliance();
    appliance.start();
    let (path, body) = set(5);
    assert_eq!(ask(&appliance, "POST", path, Some(&body)).status, 200);
    // Whoever wants to know whether it has drifted reads all of it.
    let kept = appliance.dir().join("root/etc/sysctl.d/osapi-test.one.conf");
    File::options().write(true).open(kept).unwrap().set_len(64 << 30).unwrap();
    let body = json!({ "key": "test.two", "value": "5" });
    let change = ask(&appliance, "POST", &format!("{path}?confirm=3600"), Some(&body));
    assert_eq!(change.status, 200, "{}", change.json());
    let job = change.json()["job_id"].as_str().unwrap().to_owned();
    let read = || {
        let later = [("prefer", "respond-async")];
        let answer = appliance.ask("GET", "/api/node/_any/drift", &later, None).unwrap();
        assert_eq!(answer.status, 202, "{}", answer.json());
        answer.json()["job_id"].as_str().unwrap().to_owned()
    };
    let reads: Vec<_> = (0..20).map(|_| read()).collect();
    let status = |job: &String| {
        let job = ask(&appliance, "GET", &format!("/api/job/{job}"), None).json();
        job["status"].as_str().unwrap_or_default().to_owned()
    };
    let is_begun = |job: &String| status(job) == "processing";
    until("all who read are busy", || is_begun(&reads[7]).then_some(()));
    assert_eq!(status(&reads[8]), "submitted");

    let confirmed = ask(&appliance, "POST", &format!("/api/job/{job}/confirm"), Some(&json!({})));
    assert_eq!(confirmed.status, 200, "{}", confirmed.json());
    assert_eq!(status(&reads[0]), "processing");
}

#[test]
fn what_nobody_confirms_is_taken_back() {
    let mut appliance = appliance();
    appliance.start();
    let (path, body) = set(4);
    let change = ask(&appliance, "POST", &format!("{path}?confirm=1"), Some(&body));
    assert_eq!(change.status, 200, "{}", change.json());
    until("it is taken back", || (appliance.read("proc/sys/test/one") == "0\n").then_some(()));
    let kept = appliance.dir().join("root/etc/sysctl.d/osapi-test.one.conf");
    until("all of it is", || (!kept.exists()).then_some(()));
    let job = change.json()["job_id"].as_str().unwrap().to_owned();
    let view = || ask(&appliance, "GET", &format!("/api/job/{job}"), None).json();
    until("the job says so", || (view()["status"] == "failed").then_some(()));
    let timeline = view()["timeline"].clone();
    assert_eq!(timeline.as_array().unwrap().last().unwrap()["event"], "reverted", "{timeline}");
    appliance.assert_audit_is_intact();
}

#[test]
fn a_drained_host_is_given_nothing_new() {
    let mut appliance = appliance();
    appliance.start();
    let agent = ask(&appliance, "GET", "/api/agent", None).json();
    let hostname = agent["agents"][0]["hostname"].as_str().unwrap().to_owned();
    assert_eq!(agent["agents"][0]["machine_id"], MACHINE);
    let drain = ask(&appliance, "POST", &format!("/api/agent/{hostname}/drain"), None);
    assert_eq!(drain.status, 200, "{}", drain.json());
    let (_, body) = set(5);
    let named = ask(&appliance, "POST", &format!("/api/node/{MACHINE}/sysctl"), Some(&body));
    assert_eq!(named.status, 409, "{}", named.json());

    // It is kept where a restart finds it.
    appliance.kill_controller();
    appliance.start_controller();
    until("the agent is back", || {
        let agents = appliance.ask("GET", "/api/agent", &[], None).ok()?.json();
        (agents["agents"][0]["state"] == "Cordoned").then_some(())
    });
    let undrain = ask(&appliance, "POST", &format!("/api/agent/{hostname}/undrain"), None);
    assert_eq!(undrain.status, 200, "{}", undrain.json());
    let (path, body) = set(5);
    assert_eq!(ask(&appliance, "POST", path, Some(&body)).status, 200);
}

#[test]
fn the_agent_keeps_where_the_audit_log_ends() {
    let mut appliance = appliance();
    appliance.start();
    let (path, body) = set(6);
    assert_eq!(ask(&appliance, "POST", path, Some(&body)).status, 200);
    let heads = appliance.state().join("agent/heads");
    until("a head with that change is kept", || {
        let text = std::fs::read_to_string(&heads).ok()?;
        let heads = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        // The first was there before.
        heads.filter_map(|head| head["number"].as_u64()).find(|number| *number > 1)
    });
    appliance.assert_audit_is_intact();
}

#[test]
fn whoever_talks_nonsense_on_the_agents_socket_is_hung_up_on() {
    let mut appliance = appliance();
    appliance.start();
    let bodies: [&[u8]; 4] =
        [b"\xff\xff\xff\xff", b"\0\0\0\x02{}", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x04null"];
    for body in bodies {
        let mut stream = UnixStream::connect(appliance.dir().join("agent.sock")).unwrap();
        stream.write_all(body).unwrap();
        let mut rest = Vec::new();
        // Whether it is closed or reset, it is over.
        drop(stream.read_to_end(&mut rest));
        assert!(rest.is_empty());
    }
    assert!(appliance.is_ready());
}

#[test]
fn sighup_reads_the_configuration_again() {
    let appliance = appliance();
    let daemon = Daemon::start(&appliance);
    until_ready(&appliance);
    let log = || std::fs::read_to_string(appliance.dir().join("log")).unwrap();
    let config = appliance.dir().join("osapi.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}nonsense: true\n")).unwrap();
    daemon.signal(Signal::HUP);
    until("it is refused", || log().contains("the old configuration stays").then_some(()));
    let group = format!("{text}debug: true\n").replacen(
        "controller:\n",
        "controller:\n  groups:\n    \"54321\": boss\n",
        1,
    );
    std::fs::write(&config, group).unwrap();
    daemon.signal(Signal::HUP);
    until("a role that there is not is refused", || {
        (log().matches("stay").count() > 1).then_some(())
    });
    std::fs::write(&config, format!("debug: true\n{text}")).unwrap();
    daemon.signal(Signal::HUP);
    until("it is taken", || log().contains("took the log level").then_some(()));
    until("it says more", || {
        assert_eq!(ask(&appliance, "GET", "/api/nothing", None).status, 404);
        log().contains("DEBUG").then_some(())
    });
}

#[test]
fn a_configuration_is_judged_before_anything_starts() {
    let appliance = appliance();
    let config = appliance.dir().join("osapi.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}nats:\n  server:\n    port: 4222\n")).unwrap();
    let valid = osapi(&appliance, &["config", "validate", "--json"]).output().unwrap();
    assert!(valid.status.success());
    let valid: Value = serde_json::from_slice(&valid.stdout).unwrap();
    assert_eq!(valid["without_effect"][0]["key"], "nats.server");

    std::fs::write(&config, "controler: {}\n").unwrap();
    for words in [&["config", "validate"][..], &["start"], &["agent", "start"]] {
        let refused = osapi(&appliance, words).output().unwrap();
        assert_eq!(refused.status.code(), Some(10));
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains("osapi.yaml:1: controler"), "{said}");
        assert!(said.contains("did you mean controller?"), "{said}");
    }
    assert!(!appliance.socket().exists());
}

#[test]
fn a_configuration_that_cannot_be_read_keeps_nothing_from_being_taken_back() {
    let appliance = appliance();
    std::fs::write(appliance.dir().join("osapi.yaml"), "nonsense: [\n").unwrap();
    let state = appliance.dir().join("state/agent");
    let root = appliance.dir().join("root");
    let mut settle = osapi(&appliance, &["settle", "--root", root.to_str().unwrap()]);
    let output = settle.env("OSAPI_AGENT_STATE_DIR", &state).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("settling without the configuration"), "{said}");
    assert!(state.exists(), "{said}");
}
