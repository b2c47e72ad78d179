//! What reaches beyond the agent and is left to units of the service manager.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "writes journals and holds locks as an agent leaves them"
)]

use osapi::error::Kind;
use serde_json::json;

use crate::support::cases::{cases, host_for, unit_host_for};
use crate::support::host::{TestHost, job};

/// The calls by which units were started.
fn starts(host: &TestHost) -> Vec<String> {
    host.calls().into_iter().filter(|call| call.starts_with("systemd-run ")).collect()
}

/// How often `program` was run.
fn runs(host: &TestHost, program: &str) -> usize {
    let is_call = |call: &&String| call.split(' ').next() == Some(program);
    host.calls().iter().filter(is_call).count()
}

#[test]
fn a_change_by_units_is_the_same_and_can_be_taken_back() {
    for (op, params) in cases() {
        let (host, own) = (unit_host_for(op), host_for(op));
        let before = host.snapshot();
        let answer = host.run("job", op, &params).unwrap();
        assert_eq!(answer, own.run("job", op, &params).unwrap(), "{op}");
        let after = host.snapshot();
        assert_ne!(before, after, "{op}");
        assert_eq!(host.run("again", op, &params).unwrap()["changed"], false, "{op}");
        host.undo("undo", "job").unwrap();
        host.assert_is(&before, op);
    }
}

#[test]
fn only_what_reaches_further_is_left_to_units_and_they_are_told_nothing() {
    let host = TestHost::with_units();
    host.write("/etc/motd", "From the distribution\n");
    let params = json!({ "key": "vm.swappiness", "value": "10" });
    host.run("job", "node.sysctl.create", &params).unwrap();
    let calls = starts(&host);
    // The parameter has one, the file below /etc needs none.
    let [call] = &calls[..] else { panic!("{calls:?}") };
    let id = job("job");
    assert!(call.contains(&format!(" --unit=osapi-job-{id}.1 ")), "{call}");
    assert!(call.contains(" --property=ProtectSystem=strict "), "{call}");
    assert!(call.ends_with(&format!(" --errand={id}.1")), "{call}");
    assert!(!call.contains("swappiness"), "{call}");

    let words = json!({ "program": "true", "args": ["$HOME", "%n", "s3cret"] });
    host.run("act", "test.run", &words).unwrap();
    assert!(host.calls().contains(&"true $HOME %n s3cret".to_owned()));
    let calls = starts(&host);
    assert_eq!(calls.len(), 2);
    assert!(!calls[1].contains("s3cret") && !calls[1].contains("Protect"), "{}", calls[1]);

    host.run("secret", "test.secret", &json!("hush")).unwrap();
    assert_eq!(starts(&host).len(), 2, "a file below /etc");
}

#[test]
fn a_program_in_a_unit_runs_once_and_is_told_of_as_elsewhere() {
    let host = TestHost::with_units();
    let run = |name, program| host.run(name, "test.run", &json!({ "program": program }));
    let first = run("once", "true").unwrap();
    assert_eq!((&first["exit_code"], &first["changed"]), (&json!(0), &json!(true)));
    assert_eq!(run("once", "true").unwrap(), first);
    assert_eq!(runs(&host, "true"), 1);
    let done = run("much", "chatter").unwrap();
    assert_eq!(done["stdout"].as_str().unwrap(), "x".repeat(256 * 1024));
    assert_eq!(done["truncated"], true);
    assert_eq!(run("fails", "garble").unwrap()["exit_code"], 3);
    assert_eq!(run("nowhere", "nobody-has-this").unwrap_err().kind(), Kind::NotFound);
    let params = json!({ "program": "linger", "limit": 300 });
    let error = host.run("long", "test.run", &params).unwrap_err();
    assert!(error.to_string().contains("ran for more than 0.3 s and was killed"), "{error}");
}

#[test]
fn a_unit_that_cannot_be_started_does_nothing() {
    let host = TestHost::with_units();
    let before = host.snapshot();
    host.fail("systemd-run", true);
    let params = json!({ "key": "vm.swappiness", "value": "10" });
    let error = host.run("job", "node.sysctl.create", &params).unwrap_err();
    assert!(error.to_string().contains("systemd-run was told to fail"), "{error}");
    host.assert_is(&before, "");
    let error = host.run("act", "test.run", &json!({ "program": "true" })).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed);
    assert_eq!(runs(&host, "true"), 0);
}

#[test]
fn a_unit_that_comes_too_late_does_nothing() {
    let host = TestHost::with_units();
    let params = json!({ "key": "vm.swappiness", "value": "10" });
    host.run("template", "node.sysctl.create", &params).unwrap();
    host.undo("undo", "template").unwrap();
    let text = std::fs::read_to_string(host.entry("done", "template")).unwrap();
    let handed = text.split("{\"answered\"").next().unwrap();
    std::fs::write(host.entry("open", "job"), handed).unwrap();
    // Whoever takes over first goes on with the change; then its unit comes.
    assert_eq!(host.executor.settle().unwrap(), [job("job")]);
    assert_eq!(host.read("/proc/sys/vm/swappiness"), "10\n");
    host.write("/proc/sys/vm/swappiness", "60\n");
    assert!(!host.executor.hand(&job("job"), 1).unwrap());
    assert!(!host.executor.hand(&job("nothing"), 1).unwrap());
    assert_eq!(host.read("/proc/sys/vm/swappiness"), "60\n");
}

#[test]
fn what_a_unit_answered_to_an_agent_that_died_is_the_answer() {
    let host = TestHost::with_units();
    let params = json!({ "program": "garble" });
    let first = host.run("template", "test.run", &params).unwrap();
    let text = std::fs::read_to_string(host.entry("done", "template")).unwrap();
    let until = |mark: &str| text.split(mark).next().unwrap().to_owned();
    let write = |name, text| std::fs::write(host.entry("open", name), text).unwrap();
    write("answered", until("{\"finished\""));
    assert_eq!(host.run("answered", "test.run", &params).unwrap(), first);
    assert_eq!(runs(&host, "garble"), 1);
    // It began, and nobody knows how it ended.
    write("begun", until("{\"answered\""));
    let error = host.run("begun", "test.run", &params).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(runs(&host, "garble"), 1);
    // It was handed over, and no unit came: it never ran.
    write("early", until("{\"started\""));
    let mut own = host.run("early", "test.run", &params).unwrap();
    // It is another run, which takes its own time.
    own["duration_ms"] = first["duration_ms"].clone();
    assert_eq!(own, first);
    assert_eq!(runs(&host, "garble"), 2);
}

#[test]
fn an_agent_that_ends_leaves_its_units_at_work() {
    let host = TestHost::with_units();
    host.hold("true", true);
    std::thread::scope(|scope| {
        let act = scope.spawn(|| host.run("job", "test.run", &json!({ "program": "true" })));
        while runs(&host, "true") == 0 {
            std::thread::yield_now();
        }
        // Does not take as long as that.
        host.executor.stop(std::time::Duration::from_hours(1));
        host.hold("true", false);
        assert_eq!(act.join().unwrap().unwrap()["exit_code"], 0);
    });
}

#[test]
fn locks_of_units_are_not_left_behind() {
    let host = TestHost::with_units();
    host.run("act", "test.run", &json!({ "program": "true" })).unwrap();
    host.run("change", "test.tree", &json!("x")).unwrap();
    let locks = std::fs::read_dir(host.state("locks")).unwrap().map(Result::unwrap);
    let names: Vec<_> = locks.map(|lock| lock.file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| name.starts_with('.')), "{names:?}");
}

#[test]
fn what_a_killed_hand_left_running_holds_up_nobody_for_ever() {
    for leaves in [false, true] {
        let host = TestHost::with_units();
        let params = json!({ "key": "vm.swappiness", "value": "10" });
        host.run("template", "node.sysctl.create", &params).unwrap();
        host.undo("undo", "template").unwrap();
        let text = std::fs::read_to_string(host.entry("done", "template")).unwrap();
        let handed = text.split("{\"answered\"").next().unwrap();
        // As long ago as that.
        let lines = handed.lines().filter(|line| !line.is_empty());
        let mut lines: Vec<serde_json::Value> =
            lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.last_mut().unwrap()["handed"]["due"] = json!(0);
        let lines: Vec<_> = lines.iter().map(|line| format!("\n{line}\n")).collect();
        std::fs::write(host.entry("open", "job"), lines.concat()).unwrap();
        let id = job("job");
        let lock = host.state("locks").join(format!("{id}.1.unit"));
        let orphan = std::fs::File::create(lock).unwrap();
        orphan.lock().unwrap();
        let kill = format!("systemctl kill --signal=KILL -- osapi-job-{id}.1.service");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while leaves && !host.calls().contains(&kill) {
                    std::thread::yield_now();
                }
                if leaves {
                    orphan.unlock().unwrap();
                }
            });
            assert_eq!(host.executor.settle().unwrap(), std::slice::from_ref(&id));
        });
        assert!(host.calls().contains(&kill), "{:?}", host.calls());
        // The step was taken by another unit, with a lock of its own.
        assert_eq!(host.read("/proc/sys/vm/swappiness"), "10\n");
        let starts = starts(&host);
        let last = starts.last().unwrap();
        assert!(last.ends_with(&format!(" --errand={id}.2")), "{last}");
    }
}
