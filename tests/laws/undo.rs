//! What is taken back, and in which order. Whose change a cell shows is decided by who made it:
//! the same value may be there for another reason.

use osapi::error::Kind;
use osapi::job::Options;
use serde_json::{Value, json};

use crate::support::cases::deploy;
use crate::support::host::{TestHost, job};

const FILE: &str = "/etc/motd";

fn host() -> TestHost {
    let host = TestHost::with_service_manager();
    host.write(FILE, "Welcome\n");
    host
}

fn set(host: &TestHost, name: &str, object: &str, mode: &str) {
    let answer = host.run(name, "file.deploy.execute", &deploy(object, FILE, mode)).unwrap();
    assert_eq!(answer["changed"], true, "{name}");
}

#[track_caller]
fn undone(host: &TestHost, name: &str, of: &str, changed: bool) {
    let before = host.snapshot();
    let answer = host.undo(name, of).unwrap();
    assert_eq!(answer["changed"], changed, "{answer}");
    if !changed {
        host.assert_is(&before, name);
    }
}

#[track_caller]
fn superseded(host: &TestHost, name: &str, of: &str, by: &str) {
    let before = host.snapshot();
    let error = host.undo(name, of).unwrap_err();
    assert_eq!(error.kind(), Kind::Superseded, "{error}");
    assert!(error.to_string().contains(&job(by)), "{error}");
    host.assert_is(&before, name);
}

#[test]
fn what_was_undone_is_not_undone_again_whatever_is_there_now() {
    for (first, second) in [("0600", "0644"), ("0600", "0640")] {
        let host = host();
        let before = host.snapshot();
        set(&host, "j", "other", first);
        // The first time the same as the distribution's.
        set(&host, "k", "motd", second);
        undone(&host, "undo k", "k", true);
        undone(&host, "undo k again", "k", false);
        undone(&host, "undo j", "j", true);
        host.assert_is(&before, "undone");
        undone(&host, "undo k late", "k", false);
        undone(&host, "undo j late", "j", false);
        set(&host, "l", "motd", "0600");
        undone(&host, "undo k later", "k", false);
    }
}

#[test]
fn changes_are_undone_from_the_last_to_the_first() {
    let host = host();
    let before = host.snapshot();
    for (name, object, mode) in [("j", "other", "0600"), ("k", "motd", "0600")] {
        set(&host, name, object, mode);
    }
    // What it gives the file it had before.
    set(&host, "l", "other", "0600");
    for name in ["j", "k"] {
        superseded(&host, &format!("too early for {name}"), name, "l");
    }
    undone(&host, "undo l", "l", true);
    superseded(&host, "still too early", "j", "k");
    undone(&host, "undo k", "k", true);
    undone(&host, "undo j", "j", true);
    host.assert_is(&before, "undone");
}

#[test]
fn an_undo_is_undone_like_any_other_change() {
    let host = host();
    set(&host, "j", "other", "0600");
    let there = host.snapshot();
    undone(&host, "back", "j", true);
    undone(&host, "forth", "back", true);
    host.assert_is(&there, "forth");
    undone(&host, "forth again", "back", false);
    // It is there again, and so it can be taken back again.
    undone(&host, "back again", "j", true);
    undone(&host, "and again", "forth", false);
    undone(&host, "at last", "back again", true);
    host.assert_is(&there, "at last");
    set(&host, "k", "motd", "0600");
    superseded(&host, "too late", "at last", "k");
}

#[test]
fn what_did_not_last_is_in_nobodys_way() {
    let host = TestHost::with_service_manager();
    let before = host.snapshot();
    let banner = |name: &str, text: &str, options: Options| {
        host.run_with(name, "test.banner", &json!(text), options)
    };
    banner("j", "one", Options::default()).unwrap();
    host.fail("announce", true);
    banner("failed", "two", Options::default()).unwrap_err();
    host.fail("announce", false);
    banner("waits", "three", Options { confirm: Some(600), ..Options::default() }).unwrap();
    let about: Value = json!({ "id": job("waits") });
    host.run("revert", "job.revert", &about).unwrap();
    undone(&host, "undo", "j", true);
    host.assert_is(&before, "undone");
}

#[test]
fn a_name_that_only_the_kernel_had_comes_back() {
    let host = TestHost::with_units();
    host.write("/proc/sys/kernel/hostname", "from-dhcp\n");
    let before = host.snapshot();
    host.run("job", "node.hostname.update", &json!({ "hostname": "new" })).unwrap();
    assert!(!host.calls().iter().any(|call| call.starts_with("systemd-run")), "hostnamed does it");
    host.undo("undo", "job").unwrap();
    host.assert_is(&before, "undone");
    let mut units = host.calls().into_iter().filter(|call| call.starts_with("systemd-run"));
    assert!(units.any(|call| call.contains("sethostname") && call.contains("CAP_SYS_ADMIN")));
}
