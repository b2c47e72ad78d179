//! What takes the host down: asked for once, and answered by another boot.
#![expect(clippy::disallowed_methods, reason = "looks at journals and sets states")]

use std::time::{Duration, Instant};

use osapi::error::{Error, Kind};
use osapi::job::{Options, Outcome};
use serde_json::{Value, json};

use crate::support::cases::find;
use crate::support::host::{TestHost, job, task};

const REBOOT: &str = "node.power.reboot";

/// Delivers a reboot and has the agent end once it was asked for, as a shutdown does.
fn begin(host: &TestHost, name: &str, params: &Value) -> Error {
    let asked = asked(host).len();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| host.run(name, REBOOT, params).unwrap_err());
        let patience = Instant::now() + Duration::from_secs(30);
        let is_on_record = || {
            let entry = std::fs::read_to_string(host.entry("open", name)).unwrap_or_default();
            entry.contains("\"applied\"") && self::asked(host).len() >= asked
        };
        while !is_on_record() && !run.is_finished() {
            assert!(Instant::now() < patience, "it was never asked for");
            std::thread::yield_now();
        }
        host.executor.stop(Duration::from_secs(30));
        run.join().unwrap()
    })
}

/// How the service manager was asked to take the host down.
fn asked(host: &TestHost) -> Vec<String> {
    host.calls().into_iter().filter(|call| call.starts_with("systemd-run ")).collect()
}

/// What the service manager says of every unit.
fn units_are(host: &TestHost, state: &str) {
    std::fs::write(host.dir().join("unit-state"), state).unwrap();
}

fn reboot(host: &TestHost) {
    host.write("/proc/sys/kernel/random/boot_id", "second\n");
}

#[test]
fn a_reboot_is_asked_for_once_and_answered_by_another_boot() {
    let host = TestHost::with_service_manager();
    let params = json!({ "delay": 5, "message": "for $5" });
    // Not interrupted: there is no answer yet, and none in the place of it.
    assert_eq!(begin(&host, "job", &params).kind(), Kind::Unavailable);
    let call = asked(&host).pop().unwrap();
    assert!(call.contains(&format!("--unit=osapi-power-{}", job("job"))), "{call}");
    assert!(call.ends_with("--message=for $$5 reboot"), "{call}");
    assert!(host.calls().iter().any(|call| call.starts_with("wall ") && call.contains("for $5")));

    // The same boot, another agent: it is not asked again.
    let host = host.restart();
    assert_eq!(begin(&host, "job", &params).kind(), Kind::Unavailable);
    assert_eq!(asked(&host).len(), 1);

    let host = host.restart();
    reboot(&host);
    let done = json!({ "action": "reboot", "delay": 5, "changed": true });
    assert_eq!(host.run("job", REBOOT, &params).unwrap(), done);
    assert_eq!(host.run("job", REBOOT, &params).unwrap(), done);
    assert_eq!(asked(&host).len(), 1);
}

#[test]
fn a_container_that_boots_is_told_by_its_init() {
    let host = TestHost::with_service_manager();
    let init = |began: u32| format!("1 (some) thing) S{} {began} 0\n", " 0".repeat(18));
    std::fs::create_dir_all(host.path("/proc/1")).unwrap();
    host.write("/proc/1/stat", &init(4711));
    begin(&host, "job", &json!({}));
    let host = host.restart();
    assert_eq!(host.executor.arrive().unwrap(), [], "this is the boot it was asked in");
    // The kernel is that of the machine, which goes on.
    host.write("/proc/1/stat", &init(4812));
    assert_eq!(host.executor.arrive().unwrap().len(), 1);
}

#[test]
fn a_boot_answers_also_what_is_not_delivered_again() {
    let host = TestHost::with_service_manager();
    begin(&host, "job", &json!({}));
    let host = host.restart();
    assert_eq!(host.executor.arrive().unwrap(), [], "this is the boot it was asked in");
    reboot(&host);
    let result = json!({ "action": "reboot", "delay": 0, "changed": true });
    let outcome = Outcome::Done { result: result.clone() };
    assert_eq!(host.executor.arrive().unwrap(), [(job("job"), outcome)]);
    assert_eq!(host.executor.arrive().unwrap(), []);
    assert_eq!(host.run("job", REBOOT, &json!({})).unwrap(), result);
}

#[test]
fn what_was_never_asked_for_is_asked_for_in_time_or_not_at_all() {
    let host = TestHost::with_service_manager();
    begin(&host, "job", &json!({}));
    let host = host.restart();
    // A crash before it was on record that it was asked for, and before it was.
    let text = std::fs::read_to_string(host.entry("open", "job")).unwrap();
    let planned = text.lines().find(|line| line.starts_with("{\"planned\"")).unwrap();
    std::fs::write(host.entry("open", "job"), planned).unwrap();
    units_are(&host, "inactive");
    let op = find(REBOOT);
    let mut late = task(&job("job"), &op, &json!({}), Options::default());
    late.left_ms = 0;
    assert_eq!(host.deliver(&op, &late).unwrap_err().kind(), Kind::Expired);
    assert_eq!(asked(&host).len(), 1);
}

#[test]
fn who_keeps_the_host_from_going_down_is_named() {
    let host = TestHost::with_service_manager();
    let apt = json!({ "data": [[["shutdown", "apt", "Updating", "block", 0, 42]]] });
    host.write("/run/inhibitors", &apt.to_string());
    let error = host.run("job", REBOOT, &json!({})).unwrap_err();
    assert_eq!(error.kind(), Kind::Protected);
    assert!(error.to_string().contains("apt") && error.to_string().contains("42"), "{error}");
    assert_eq!(asked(&host), [""; 0]);

    units_are(&host, "failed");
    let options = Options { force: true, ..Options::default() };
    let error = host.run_with("forced", REBOOT, &json!({}), options).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed, "it was tried");
    assert!(asked(&host)[0].contains("--check-inhibitors=no"));
}

#[test]
fn a_host_where_a_change_waits_to_be_confirmed_stays_up() {
    let host = TestHost::with_service_manager();
    let options = Options { confirm: Some(600), ..Options::default() };
    host.run_with("change", "test.banner", &json!("x"), options).unwrap();
    let before = asked(&host).len();
    let error = host.run("job", REBOOT, &json!({})).unwrap_err();
    assert_eq!(error.kind(), Kind::Protected);
    assert!(error.to_string().contains(&job("change")), "{error}");
    assert_eq!(asked(&host).len(), before);
}

#[test]
fn a_host_goes_down_once_at_a_time() {
    let host = TestHost::with_service_manager();
    begin(&host, "job", &json!({ "delay": 600 }));
    let host = host.restart();
    let error = host.run("other", "node.power.shutdown", &json!({})).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains(&job("job")), "{error}");
}

/// Waits until it is on record that the job asked for it.
fn is_asked_for(host: &TestHost, name: &str) {
    let patience = Instant::now() + Duration::from_secs(30);
    while !std::fs::read_to_string(host.entry("open", name))
        .is_ok_and(|entry| entry.contains("\"applied\""))
    {
        assert!(Instant::now() < patience, "it was never asked for");
        std::thread::yield_now();
    }
}

/// Which units somebody was asked to stop.
fn stopped(host: &TestHost) -> Vec<String> {
    let calls = host.calls().into_iter();
    calls.filter_map(|call| Some(call.strip_prefix("systemctl stop -- ")?.to_owned())).collect()
}

#[test]
fn what_is_called_off_before_its_time_takes_nothing_down() {
    let host = TestHost::with_service_manager();
    let params = json!({ "delay": 600 });
    let error = std::thread::scope(|scope| {
        let run = scope.spawn(|| host.run("job", REBOOT, &params).unwrap_err());
        is_asked_for(&host, "job");
        assert_eq!(host.executor.departure(), Some(job("job")));
        host.executor.call_off(&job("job"));
        run.join().unwrap()
    });
    assert_eq!(error.kind(), Kind::Cancelled);
    assert_eq!(stopped(&host), [format!("osapi-power-{}.timer", job("job"))]);
    assert_eq!(host.executor.departure(), None);
    // It is the answer from then on.
    assert_eq!(host.run("job", REBOOT, &params).unwrap_err().to_string(), error.to_string());
    assert_eq!(asked(&host).len(), 1);
    // Nothing stands in the way of another.
    units_are(&host, "failed");
    let other = host.run("other", "node.power.shutdown", &json!({})).unwrap_err();
    assert_eq!(other.kind(), Kind::HostFailed, "it was tried");
}

#[test]
fn what_is_called_off_after_a_crash_takes_nothing_down() {
    let host = TestHost::with_service_manager();
    let params = json!({ "delay": 600 });
    begin(&host, "job", &params);
    let host = host.restart();
    host.executor.call_off(&job("job"));
    assert_eq!(host.run("job", REBOOT, &params).unwrap_err().kind(), Kind::Cancelled);
    assert_eq!((asked(&host).len(), stopped(&host).len()), (1, 1));
}

#[test]
fn what_was_called_off_before_it_began_is_not_begun() {
    let host = TestHost::with_service_manager();
    for (op, params) in [(REBOOT, json!({})), ("test.banner", json!("x"))] {
        host.executor.call_off(&job("job"));
        assert_eq!(host.run("job", op, &params).unwrap_err().kind(), Kind::Cancelled, "{op}");
        host.executor.let_go(&job("job"));
    }
    assert_eq!(asked(&host), [""; 0]);
    // Its timer may run although nobody got to write that down.
    begin(&host, "crashed", &json!({ "delay": 600 }));
    let host = host.restart();
    let text = std::fs::read_to_string(host.entry("open", "crashed")).unwrap();
    let planned = text.lines().find(|line| line.starts_with("{\"planned\"")).unwrap();
    std::fs::write(host.entry("open", "crashed"), planned).unwrap();
    host.executor.call_off(&job("crashed"));
    let error = host.run("crashed", REBOOT, &json!({ "delay": 600 })).unwrap_err();
    assert_eq!((error.kind(), stopped(&host).len()), (Kind::Cancelled, 1));
}

#[test]
fn what_is_called_off_too_late_is_answered_by_another_boot() {
    let host = TestHost::with_service_manager();
    begin(&host, "job", &json!({}));
    let host = host.restart();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| host.run("job", REBOOT, &json!({})).unwrap_err());
        host.executor.call_off(&job("job"));
        host.executor.stop(Duration::from_secs(30));
        assert_eq!(run.join().unwrap().kind(), Kind::Unavailable);
    });
    assert_eq!(stopped(&host), [""; 0]);
    let host = host.restart();
    reboot(&host);
    assert_eq!(host.run("job", REBOOT, &json!({})).unwrap()["changed"], true);
}

#[test]
fn a_timer_that_somebody_stopped_takes_nothing_down() {
    let host = TestHost::with_service_manager();
    units_are(&host, "inactive");
    let error = host.run("job", REBOOT, &json!({ "delay": 600 })).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    let error = host.run("job", REBOOT, &json!({ "delay": 600 })).unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
}

#[test]
fn a_host_that_refuses_to_go_down_is_told_of() {
    let host = TestHost::with_service_manager();
    units_are(&host, "failed");
    let error = host.run("job", REBOOT, &json!({})).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed);
}

#[test]
fn without_systemd_nobody_can_be_asked() {
    let error = TestHost::new().run("job", REBOOT, &json!({})).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
}
