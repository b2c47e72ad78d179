//! What is done rather than brought about: at most once, and bounded.
#![expect(clippy::disallowed_methods, reason = "starts processes and looks at journals")]

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use osapi::error::Kind;
use osapi::job::Options;
use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};

use crate::support::cases::find;
use crate::support::host::{TestHost, job, task};

fn is_alive(pid: i32) -> bool {
    test_kill_process(Pid::from_raw(pid).unwrap()).is_ok() && state(pid) != "Z"
}

fn state(pid: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("Z", |(_, fields)| fields);
    fields.split_whitespace().next().unwrap_or("Z").to_owned()
}

fn start(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    fields.split_whitespace().nth(19).unwrap().parse().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < patience, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// The number that a program wrote to `name` beside the root.
fn number(host: &TestHost, name: &str) -> i32 {
    let path = host.dir().join(name);
    let read = || std::fs::read_to_string(&path).ok()?.trim().parse().ok();
    until(name, || read().is_some());
    read().unwrap()
}

#[test]
fn a_program_runs_at_most_once() {
    let host = TestHost::new();
    let run = |job| host.run(job, "test.run", &json!({ "program": "true", "args": ["x"] }));
    let first = run("job").unwrap();
    assert_eq!(first["exit_code"], 0);
    assert_eq!(first["changed"], true);
    assert_eq!(run("job").unwrap(), first);
    assert_eq!(host.calls(), ["true x"]);

    // A crash between the record and the answer: nobody can tell whether it ran.
    let text = std::fs::read_to_string(host.entry("done", "job")).unwrap();
    let torn = text.split("{\"finished\"").next().unwrap().to_owned() + "{\"finish";
    std::fs::write(host.entry("open", "torn"), torn).unwrap();
    assert_eq!(run("torn").unwrap_err().kind(), Kind::Interrupted);
    assert_eq!(run("torn").unwrap_err().kind(), Kind::Interrupted);
    assert_eq!(host.calls(), ["true x"]);

    // A crash before its process was on record: it has not run, because it waits for that.
    let planned = text.lines().find(|line| line.starts_with("{\"planned\"")).unwrap();
    std::fs::write(host.entry("open", "early"), planned).unwrap();
    assert_eq!(run("early").unwrap()["exit_code"], 0);
    assert_eq!(host.calls(), ["true x", "true x"]);
}

#[test]
fn what_a_program_prints_is_bounded_and_kept_apart() {
    let host = TestHost::new();
    let done = host.run("job", "test.run", &json!({ "program": "chatter" })).unwrap();
    assert_eq!(done["stdout"].as_str().unwrap(), "x".repeat(256 * 1024));
    assert_eq!(done["stderr"].as_str().unwrap(), "y".repeat(256 * 1024));
    assert_eq!(done["truncated"], true);

    // However it has to be spelt, an answer stays below 768 KiB.
    let done = host.run("noise", "test.run", &json!({ "program": "noise" })).unwrap();
    assert_eq!(done["truncated"], true);
    assert!(done["stdout"].as_str().unwrap().len() > 50_000);
    assert!(done["stderr"].as_str().unwrap().len() > 50_000);
    assert!(done.to_string().len() < 768 * 1024);

    let done = host.run("garbled", "test.run", &json!({ "program": "garble" })).unwrap();
    assert_eq!(done["stdout"], "\u{fffd}ok\n");
    assert_eq!(done["exit_code"], 3);
    assert_eq!(done["truncated"], false);
}

#[test]
fn a_program_starts_where_it_is_told_below_the_root() {
    let host = TestHost::new();
    let run = |job, cwd| host.run(job, "test.run", &json!({ "program": "where", "cwd": cwd }));
    let at = |path: &str| format!("{}\n", host.path(path).canonicalize().unwrap().display());
    assert_eq!(run("a", json!("/srv/data")).unwrap()["stdout"], at("/srv/data"));
    assert_eq!(run("b", json!("/srv/../../srv")).unwrap()["stdout"], at("/srv"));
    assert_eq!(run("c", Value::Null).unwrap()["stdout"], at("/"));
    assert_eq!(run("d", json!("/not/there")).unwrap_err().kind(), Kind::InvalidInput);
    let nowhere = host.run("e", "test.run", &json!({ "program": "nobody-has-this" }));
    assert_eq!(nowhere.unwrap_err().kind(), Kind::NotFound);
    let relative = host.run("f", "test.run", &json!({ "program": "bin/true" }));
    assert_eq!(relative.unwrap_err().kind(), Kind::InvalidInput);
    let absolute = host.run("g", "test.run", &json!({ "program": "/usr/bin/true" }));
    assert_eq!(absolute.unwrap()["exit_code"], 0);
}

#[test]
fn what_runs_too_long_is_killed_with_all_it_started() {
    let host = TestHost::new();
    let params = json!({ "program": "linger", "limit": 300 });
    let error = host.run("job", "test.run", &params).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed);
    assert!(error.to_string().contains("ran for more than 0.3 s and was killed"), "{error}");
    let left = number(&host, "lingering");
    until("the grandchild ends", || !is_alive(left));
    assert_eq!(host.run("job", "test.run", &params).unwrap_err().kind(), Kind::HostFailed);
    assert_eq!(host.calls().len(), 1);
}

#[test]
fn what_is_left_behind_is_not_waited_for() {
    let host = TestHost::new();
    for program in ["leave", "hold-on"] {
        let done = host.run(program, "test.run", &json!({ "program": program, "limit": 60_000 }));
        let done = done.unwrap();
        assert_eq!(done["exit_code"], 0);
        assert!(done["duration_ms"].as_u64().unwrap() < 30_000);
        // Whoever still holds the pipe could have said more.
        assert_eq!(done["truncated"], program == "hold-on");
        let pid: i32 = done["stdout"].as_str().unwrap().trim().parse().unwrap();
        assert!(is_alive(pid), "it was meant to stay");
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
    }
}

#[test]
fn a_long_act_holds_up_no_change() {
    let host = TestHost::new();
    host.hold("true", true);
    std::thread::scope(|scope| {
        let act = scope.spawn(|| host.run("act", "test.run", &json!({ "program": "true" })));
        until("the act begins", || !host.calls().is_empty());
        host.run("change", "test.banner", &json!("meanwhile")).unwrap();
        host.hold("true", false);
        assert_eq!(act.join().unwrap().unwrap()["exit_code"], 0);
    });
}

#[test]
fn what_an_earlier_agent_started_is_ended_before_it_is_answered() {
    let host = TestHost::new();
    // As an agent leaves it that was killed: its program runs, and the journal has no answer.
    std::thread::scope(|scope| {
        let act = scope.spawn(|| {
            host.run("job", "test.run", &json!({ "program": "linger", "limit": 60_000 }))
        });
        let grandchild = number(&host, "lingering");
        let text = std::fs::read_to_string(host.entry("open", "job")).unwrap();
        let copy = text.replace(&job("job"), &job("copy"));
        std::fs::write(host.entry("open", "copy"), copy).unwrap();
        // Another job's name is not in the environment of these processes; only the leader is
        // ended, by its number and start time.
        let again = host.run("copy", "test.run", &json!({ "program": "linger" }));
        assert_eq!(again.unwrap_err().kind(), Kind::Interrupted);
        let done = act.join().unwrap().unwrap();
        assert_eq!(done["exit_code"], 137);
        assert!(is_alive(grandchild), "nobody can tell whose it is");

        // The job's own processes are.
        std::fs::remove_file(host.entry("done", "job")).unwrap();
        std::fs::write(host.entry("open", "job"), text).unwrap();
        let again = host.run("job", "test.run", &json!({ "program": "linger" }));
        assert_eq!(again.unwrap_err().kind(), Kind::Interrupted);
        until("the grandchild ends", || !is_alive(grandchild));
    });
}

#[test]
fn an_agent_that_ends_kills_its_acts_and_says_so() {
    let host = TestHost::new();
    std::thread::scope(|scope| {
        let act = scope.spawn(|| {
            host.run("job", "test.run", &json!({ "program": "linger", "limit": 60_000 }))
        });
        let grandchild = number(&host, "lingering");
        host.executor.stop(Duration::from_millis(100));
        assert_eq!(act.join().unwrap().unwrap_err().kind(), Kind::Interrupted);
        until("the grandchild ends", || !is_alive(grandchild));
    });
    // Nothing new is begun, and nothing is answered either.
    let op = find("test.banner");
    let late = task(&job("late"), &op, &json!("x"), Options::default());
    assert_eq!(host.executor.run(&op, &late).unwrap_err().kind(), Kind::Unavailable);
    let host = host.restart();
    let error = host.run("job", "test.run", &json!({ "program": "linger" })).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    host.run("late", "test.banner", &json!("x")).unwrap();
}

#[test]
fn a_signal_reaches_the_process_it_was_meant_for_and_no_later_one() {
    let host = TestHost::new();
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let begun = start(pid);
    // The process table of this root is the real one, as far as this process goes.
    std::fs::create_dir_all(host.path(&format!("/proc/{pid}"))).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    host.write(&format!("/proc/{pid}/stat"), &stat);

    let error = host.run("other", "test.signal", &json!([pid, begun + 1])).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(child.try_wait().unwrap().is_none());
    let error = host.run("init", "test.signal", &json!([1, 0])).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    host.run("job", "test.signal", &json!([pid, begun])).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    let error = host.run("late", "test.signal", &json!([pid, begun])).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}
