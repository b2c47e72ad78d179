//! What becomes of jobs that an agent did not bring to an end.
#![expect(clippy::disallowed_methods, reason = "writes journals as an agent leaves them")]

use osapi::error::Kind;
use osapi::job::Options;
use serde_json::{Value, json};

use crate::support::cases::{cases, deploy, host_for};
use crate::support::host::{TestHost, job};

/// A host whose agent wrote down how it is going to do `op` and got no further, and another one
/// on which it has been done.
fn interrupted(op: &str, params: &Value) -> (TestHost, TestHost) {
    let (host, done) = (host_for(op), host_for(op));
    done.run("job", op, params).unwrap();
    let text = std::fs::read_to_string(done.entry("done", "job")).unwrap();
    let plan = text.lines().find(|line| line.starts_with("{\"planned\"")).unwrap();
    std::fs::write(host.entry("open", "job"), plan).unwrap();
    for blob in std::fs::read_dir(done.state("blobs")).unwrap().map(Result::unwrap) {
        let name = host.state("blobs").join(blob.file_name());
        std::fs::copy(blob.path(), name).unwrap();
    }
    (host, done)
}

/// The lines of a record before its answer.
fn before_the_end(text: &str) -> String {
    text.split("{\"finished\"").next().unwrap().to_owned()
}

#[test]
fn what_an_agent_left_half_done_is_finished_before_anything_else() {
    for (op, params) in cases() {
        let (host, done) = interrupted(op, &params);
        let other = deploy("other", "/etc/other", "0644");
        for host in [&host, &done] {
            host.run("other", "file.deploy.execute", &other).unwrap();
        }
        host.assert_is(&done.snapshot(), op);
        let (calls, answer) = (host.calls(), done.run("job", op, &params));
        assert_eq!(host.run("job", op, &params).unwrap(), answer.unwrap(), "{op}");
        assert_eq!(host.calls(), calls, "{op}");
        for host in [&host, &done] {
            host.undo("undo", "job").unwrap();
        }
        host.assert_is(&done.snapshot(), op);
    }
}

#[test]
fn what_others_changed_meanwhile_is_left_alone() {
    for (op, params) in cases() {
        let (host, _) = interrupted(op, &params);
        let preview = host_for(op).preview(op, &params).unwrap();
        let changes = preview["changes"].as_array().unwrap();
        let is_file = |value: &Value| value.get("directory").is_none();
        let mut files = changes.iter().filter(|change| is_file(&change["to"]));
        let path = files.find_map(|change| {
            let path = change["cell"]["node"].as_str()?;
            host.path(path).parent().unwrap().exists().then_some(path)
        });
        let Some(path) = path else { continue };
        let _ = std::fs::remove_file(host.path(path));
        host.write(path, "somebody was here");
        let error = host.run("job", op, &params).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{op}: {error}");
        assert_eq!(host.read(path), "somebody was here", "{op}");
    }
}

#[test]
fn what_others_changed_meanwhile_does_not_keep_the_rest_from_being_taken_back() {
    let (op, params) = ("node.sysctl.create", json!({ "key": "vm.swappiness", "value": "10" }));
    let (_, host) = interrupted(op, &params);
    let text = std::fs::read_to_string(host.entry("done", "job")).unwrap();
    std::fs::write(host.entry("open", "job"), before_the_end(&text)).unwrap();
    std::fs::remove_file(host.entry("done", "job")).unwrap();
    host.write("/etc/sysctl.d/osapi-vm.swappiness.conf", "somebody was here");
    let error = host.run("job", op, &params).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains("not restored: /etc/sysctl.d/"), "{error}");
    assert_eq!(error.body().not_restored, ["/etc/sysctl.d/osapi-vm.swappiness.conf"]);
    assert_eq!(host.read("/etc/sysctl.d/osapi-vm.swappiness.conf"), "somebody was here");
    assert_eq!(host.read("/proc/sys/vm/swappiness"), "60\n");
}

#[test]
fn a_job_that_kills_the_agent_is_taken_back_at_last() {
    for (op, params) in cases() {
        let before = host_for(op).snapshot();
        let (host, _) = interrupted(op, &params);
        let plan = std::fs::read_to_string(host.entry("open", "job")).unwrap();
        std::fs::write(host.entry("open", "job"), plan + &"\n\"resumed\"".repeat(3)).unwrap();
        assert_eq!(host.executor.settle().unwrap(), [job("job")]);
        assert_eq!(host.run("job", op, &params).unwrap_err().kind(), Kind::Internal, "{op}");
        host.assert_is(&before, op);

        // Not even that goes well.
        let plan = std::fs::read_to_string(host.entry("done", "job")).unwrap();
        let plan = before_the_end(&plan) + &"\n\"resumed\"".repeat(3);
        std::fs::write(host.entry("open", "stuck"), plan).unwrap();
        let calls = host.calls();
        assert_eq!(host.executor.settle().unwrap(), [job("stuck")]);
        let error = host.run("stuck", op, &params).unwrap_err();
        assert!(error.to_string().starts_with("left half done"), "{error}");
        assert_eq!(host.calls(), calls, "{op}");
    }
}

#[test]
fn a_journal_of_another_version_stops_every_change() {
    for (op, params) in cases() {
        let host = host_for(op);
        let before = host.snapshot();
        std::fs::write(host.state("open/later"), "{\"transcended\": {}}\n").unwrap();
        let error = host.run("job", op, &params).unwrap_err();
        assert_eq!(error.kind(), Kind::HostFailed, "{op}");
        host.assert_is(&before, op);
    }
    let host = TestHost::new();
    std::fs::write(host.state("version"), "2\n").unwrap();
    let host = host.restart();
    let before = host.snapshot();
    // Nothing is answered for good, so that whoever knows the version still can.
    for (op, params) in [("test.banner", json!("x")), ("test.run", json!({ "program": "true" }))] {
        assert_eq!(host.run("job", op, &params).unwrap_err().kind(), Kind::HostFailed);
    }
    assert_eq!(host.executor.settle().unwrap_err().kind(), Kind::HostFailed);
    host.assert_is(&before, "");
    assert!(host.calls().is_empty());
}

#[test]
fn what_cannot_be_settled_does_not_keep_anything_from_being_taken_back() {
    let host = TestHost::with_service_manager();
    let before = host.snapshot();
    let options = Options { confirm: Some(0), ..Options::default() };
    host.run_with("job", "test.banner", &json!("x"), options).unwrap();
    for job in ["a", "z"] {
        std::fs::write(host.state("open").join(job), "{\"transcended\": {}}\n").unwrap();
    }
    assert_eq!(host.executor.settle().unwrap_err().kind(), Kind::HostFailed);
    host.assert_is(&before, "");
}
