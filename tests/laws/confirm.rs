//! Changes that are taken back unless somebody confirms them.

use std::time::{Duration, Instant};

use osapi::error::Kind;
use osapi::job::Options;
use serde_json::json;

use crate::support::cases::{cases, managed_host_for};
use crate::support::host::{TestHost, job};

fn within(seconds: u64) -> Options {
    Options { confirm: Some(seconds), ..Options::default() }
}

#[test]
fn what_is_not_confirmed_is_taken_back() {
    for (op, params) in cases() {
        let host = managed_host_for(op);
        let before = host.snapshot();
        host.run_with("lost", op, &params, within(0)).unwrap();
        let alarm = host.calls().into_iter().find(|call| call.starts_with("systemd-run"));
        let alarm = alarm.expect("an alarm is set");
        assert!(alarm.contains("OSAPI_AGENT_STATE_DIR="), "{alarm}");
        assert_eq!(host.executor.settle().unwrap(), [job("lost")], "{op}");
        host.assert_is(&before, op);
        let error = host.run("lost", op, &params).unwrap_err();
        assert_eq!(error.kind(), Kind::Reverted, "{op}");
        assert_eq!(host.executor.confirm(&job("lost")).unwrap_err().kind(), Kind::Conflict);
    }
}

#[test]
fn what_was_taken_back_is_told_until_that_is_known() {
    let host = TestHost::with_service_manager();
    let told = |host: &TestHost| {
        let amendments = host.executor.amendments().unwrap();
        amendments.into_iter().map(|told| (told.job, told.outcome.kind())).collect::<Vec<_>>()
    };
    let answer = host.run_with("lost", "test.banner", &json!("gone"), within(0)).unwrap();
    assert!(answer["confirm_until"].is_string(), "{answer}");
    assert_eq!(told(&host), []);
    // By another process, as the alarm does it.
    assert_eq!(host.another().settle().unwrap(), [job("lost")]);
    let lost = [(job("lost"), Some(Kind::Reverted))];
    assert_eq!(told(&host), lost);
    let host = host.restart();
    assert_eq!(told(&host), lost);
    assert!(host.executor.amendments().unwrap()[0].at > 0);
    host.executor.told(&job("lost"));
    assert_eq!(told(&host), []);

    host.run_with("asked", "test.banner", &json!("gone"), within(600)).unwrap();
    host.run("revert", "job.revert", &json!({ "id": job("asked") })).unwrap();
    // This process knows at once.
    host.executor.rest(Duration::from_mins(10));
    assert_eq!(told(&host), [(job("asked"), Some(Kind::Reverted))]);
    host.executor.told(&job("asked"));

    host.run_with("kept", "test.banner", &json!("kept"), within(600)).unwrap();
    host.executor.confirm(&job("kept")).unwrap();
    host.fail("announce", true);
    host.run_with("failed", "test.banner", &json!("failed"), within(600)).unwrap_err();
    assert_eq!(told(&host), []);
    assert_eq!(std::fs::read_dir(host.state("tell")).unwrap().count(), 0);
}

#[test]
fn what_was_decided_before_is_not_changed_again() {
    let host = TestHost::with_service_manager();
    let about = |name: &str| json!({ "id": job(name) });
    host.run_with("kept", "test.banner", &json!("kept"), within(600)).unwrap();
    let first = host.run("confirm", "job.confirm", &about("kept")).unwrap();
    let second = host.run("confirm again", "job.confirm", &about("kept")).unwrap();
    assert_eq!((&first["changed"], &second["changed"]), (&json!(true), &json!(false)));
    assert_eq!(host.run("confirm", "job.confirm", &about("kept")).unwrap(), first);
    host.run_with("gone", "test.banner", &json!("gone"), within(600)).unwrap();
    let first = host.run("revert", "job.revert", &about("gone")).unwrap();
    let second = host.run("revert again", "job.revert", &about("gone")).unwrap();
    assert_eq!((&first["changed"], &second["changed"]), (&json!(true), &json!(false)));
}

#[test]
fn what_waits_keeps_other_changes_away_until_it_is_confirmed() {
    let host = TestHost::with_service_manager();
    host.run_with("kept", "test.banner", &json!("kept"), within(600)).unwrap();
    assert_eq!(host.executor.waiting(), [job("kept")]);
    let params = json!({ "key": "vm.swappiness", "value": "10" });
    let error = host.run("other", "node.sysctl.create", &params).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains(&job("kept")), "{error}");
    host.run("act", "test.run", &json!({ "program": "true" })).unwrap();
    assert!(host.executor.settle().unwrap().is_empty());
    host.run("confirm", "job.confirm", &json!({ "id": job("kept") })).unwrap();
    assert_eq!(host.executor.waiting(), [""; 0]);
    host.write("/proc/sys/kernel/random/boot_id", "second\n");
    assert!(host.executor.settle().unwrap().is_empty());
    host.run("after", "node.sysctl.create", &params).unwrap();
    assert_eq!(host.read("/etc/banner"), "kept");
}

#[test]
fn waiting_can_be_ended_before_its_time() {
    let host = TestHost::with_service_manager();
    let before = host.snapshot();
    host.run_with("job", "test.banner", &json!("gone"), within(600)).unwrap();
    let params = json!({ "id": job("job") });
    let first = host.run("revert", "job.revert", &params).unwrap();
    host.assert_is(&before, "");
    assert_eq!(host.run("revert", "job.revert", &params).unwrap(), first);
    let error = host.run("job", "test.banner", &json!("gone")).unwrap_err();
    assert_eq!(error.kind(), Kind::Reverted);
    let error = host.run("confirm", "job.confirm", &params).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    let error = host.run("nothing", "job.revert", &json!({ "id": job("no job") })).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    host.run("after", "test.banner", &json!("again")).unwrap();
}

#[test]
fn without_a_service_manager_the_agent_itself_keeps_the_time() {
    let host = TestHost::new();
    let before = host.snapshot();
    host.run_with("job", "test.banner", &json!("brief"), within(1)).unwrap();
    assert_eq!(host.read("/etc/banner"), "brief");
    assert!(host.calls().iter().all(|call| !call.starts_with("systemd-run")));
    let patience = Instant::now() + Duration::from_secs(30);
    while !host.entry("done", "job").exists() {
        assert!(Instant::now() < patience, "nobody takes it back");
        std::thread::yield_now();
    }
    host.assert_is(&before, "");

    // One that takes over keeps the time as well.
    host.run_with("next", "test.banner", &json!("brief"), within(1)).unwrap();
    let host = host.restart();
    host.executor.settle().unwrap();
    while !host.entry("done", "next").exists() {
        assert!(Instant::now() < patience, "nobody takes it back");
        std::thread::yield_now();
    }
    host.assert_is(&before, "");
}

#[test]
fn what_others_changed_while_it_waited_is_not_taken_back() {
    let host = TestHost::with_service_manager();
    host.run_with("job", "test.tree", &json!("x"), within(0)).unwrap();
    host.write("/opt/tree/deep/file", "somebody was here");
    assert_eq!(host.executor.settle().unwrap(), [job("job")]);
    assert_eq!(host.read("/opt/tree/deep/file"), "somebody was here");
    assert!(!host.path("/etc/tree").exists(), "the rest is taken back");
    let error = host.run("job", "test.tree", &json!("x")).unwrap_err();
    assert_eq!(error.kind(), Kind::Reverted);
    let left = error.body().not_restored;
    assert!(left.contains(&"/opt/tree/deep/file".to_owned()), "{left:?}");
    // It stays on record with what it should hold, so that drift shows it.
    let drift = host.executor.view().drift().unwrap();
    assert!(drift.iter().any(|drift| json!(drift)["cell"]["node"] == "/opt/tree/deep/file"));
}

#[test]
fn a_boot_ends_waiting_and_takes_back_what_outlived_it() {
    let host = TestHost::with_service_manager();
    let params = json!({ "key": "vm.swappiness", "value": "10" });
    host.run_with("job", "node.sysctl.create", &params, within(600)).unwrap();
    host.write("/proc/sys/kernel/random/boot_id", "second\n");
    host.write("/proc/sys/vm/swappiness", "1");
    let host = host.restart();
    assert_eq!(host.executor.settle().unwrap(), [job("job")]);
    assert!(!host.path("/etc/sysctl.d/osapi-vm.swappiness.conf").exists());
    assert_eq!(host.read("/proc/sys/vm/swappiness"), "1", "a boot sets it anew");
}

#[test]
fn without_an_alarm_nothing_is_changed() {
    let host = TestHost::with_service_manager();
    let before = host.snapshot();
    host.fail("systemd-run", true);
    host.run_with("job", "test.banner", &json!("x"), within(600)).unwrap_err();
    host.assert_is(&before, "");
}

#[test]
fn what_is_done_rather_than_brought_about_cannot_wait() {
    let host = TestHost::new();
    let params = json!({ "program": "true" });
    let error = host.run_with("job", "test.run", &params, within(600)).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    assert!(host.calls().is_empty());
}

#[test]
fn what_waits_is_taken_back_when_there_will_be_nobody_to_do_so() {
    let host = TestHost::with_service_manager();
    assert_eq!(host.executor.settle_unconfirmed().unwrap(), [""; 0]);
    let before = host.snapshot();
    let params = json!({ "key": "vm.swappiness", "value": "10" });
    let wait = || Options { confirm: Some(600), ..Options::default() };
    host.run_with("job", "node.sysctl.create", &params, wait()).unwrap();
    assert_eq!(host.another().settle_unconfirmed().unwrap(), [job("job")]);
    host.assert_is(&before, "");
    let amended = host.executor.amendments().unwrap();
    assert_eq!(amended.len(), 1, "the agent tells of it");
    assert_eq!(host.another().settle_unconfirmed().unwrap(), [""; 0]);

    host.run_with("stuck", "node.sysctl.create", &params, wait()).unwrap();
    host.write("/proc/sys/vm/swappiness", "30\n");
    let error = host.another().settle_unconfirmed().unwrap_err();
    assert!(error.to_string().contains(&job("stuck")), "{error}");
    assert!(error.to_string().contains("not restored"), "{error}");
    assert_eq!(host.read("/proc/sys/vm/swappiness"), "30\n");
    // It is told once; then nothing waits any more.
    assert_eq!(host.another().settle_unconfirmed().unwrap(), [""; 0]);
}
