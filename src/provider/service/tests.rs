//! Units as a service manager made up for the test tells of them.

use std::os::unix::fs::symlink;

use serde_json::{Value as Json, json};

use super::*;
use crate::provider::tests::Fake;

/// A host with a service manager that knows these units.
fn host(units: &[(&str, &str)]) -> Fake {
    let fake = Fake::with(&[("/etc/passwd", ""), ("/etc/group", "")]);
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    fake.put("/etc/passwd", &format!("root:x:{uid}:{gid}::/root:/bin/sh\n"));
    fake.put("/etc/group", &format!("root:x:{gid}:\n"));
    fake.put("/etc/systemd/system/README", "");
    fake.put("/run/systemd/system/README", "");
    for (unit, properties) in units {
        let lines = properties.replace(' ', "\n");
        let text = format!("LoadState=loaded\nFragmentPath=/lib/x\n{lines}\n");
        fake.put(&format!("/run/units/{unit}"), &text);
    }
    fake.put("/usr/bin/README", "");
    for command in ["systemctl", "systemd-analyze", "systemd-run"] {
        let at = fake.at(&format!("/usr/bin/{command}"));
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes/host"), at).unwrap();
    }
    fake
}

fn ask(fake: &Fake, op: &str, name: &str) -> Result<Json, Kind> {
    fake.run(&format!("node.service.{op}"), json!({ "name": name }), "")
}

fn changes(fake: &Fake, op: &str, name: &str) -> Result<bool, Kind> {
    Ok(ask(fake, op, name)?["changed"] == true)
}

fn define(fake: &Fake, op: &str, name: &str, file: &str) -> Result<bool, Kind> {
    let params = json!({ "name": name, "object": "object" });
    Ok(fake.run(&format!("node.service.{op}"), params, file)?["changed"] == true)
}

fn shown(fake: &Fake, name: &str) -> Json {
    ask(fake, "get", name).unwrap()["service"].clone()
}

const PLAIN: &str = "ActiveState=inactive UnitFileState=disabled";
const FILE: &str = "[Service]\nExecStart=/bin/true\n";

#[test]
fn a_unit_is_found_by_its_name_and_then_by_that_of_one_made_here() {
    let fake = host(&[("web.service", PLAIN), ("web.socket", "ActiveState=active")]);
    assert_eq!(shown(&fake, "web")["name"], "web.service");
    assert_eq!(shown(&fake, "web.socket")["status"], "active");
    assert_eq!(ask(&fake, "get", "mine"), Err(Kind::NotFound));
    assert_eq!(define(&fake, "create", "mine", FILE), Ok(true));
    for name in ["mine", "mine.service", "osapi-mine", "osapi-mine.service"] {
        assert_eq!(shown(&fake, name)["name"], "osapi-mine.service", "{name}");
    }
    for op in ["start", "stop", "enable", "disable", "restart"] {
        assert_eq!(ask(&fake, op, "nothing"), Err(Kind::NotFound), "{op}");
        assert_eq!(ask(&fake, op, "getty@"), Err(Kind::InvalidInput), "{op}");
        assert_eq!(ask(&fake, op, "--now"), Err(Kind::InvalidInput), "{op}");
    }
}

#[test]
fn a_unit_runs_or_does_not() {
    let fake = host(&[("web.service", PLAIN), ("down.service", "ActiveState=failed")]);
    assert_eq!(changes(&fake, "stop", "web"), Ok(false));
    assert_eq!(changes(&fake, "stop", "down"), Ok(false));
    assert_eq!(changes(&fake, "start", "web"), Ok(true));
    assert_eq!(changes(&fake, "start", "web.service"), Ok(false));
    assert_eq!(shown(&fake, "web")["status"], "active");
    assert_eq!(changes(&fake, "restart", "web"), Ok(true));
    assert_eq!(changes(&fake, "stop", "web"), Ok(true));
}

#[test]
fn what_ends_by_itself_is_run_and_does_not_have_to_remain() {
    let once = "ActiveState=inactive Type=oneshot RemainAfterExit=no Result=success";
    let fake = host(&[("once.service", once)]);
    fake.put("/run/inert", "");
    assert_eq!(changes(&fake, "start", "once"), Ok(true));
    assert_eq!(changes(&fake, "start", "once"), Ok(true));
}

#[test]
fn what_ends_right_after_it_was_started_did_not_start() {
    let simple = "ActiveState=inactive Type=simple Result=exit-code SubState=dead";
    let fake = host(&[("fails.service", simple)]);
    // Its manager says that it was started, and it is gone at once.
    fake.put("/run/inert", "");
    assert_eq!(ask(&fake, "start", "fails"), Err(Kind::HostFailed));
    assert_eq!(ask(&fake, "restart", "fails"), Err(Kind::HostFailed));
}

#[test]
fn only_what_somebody_can_decide_is_enabled_or_disabled() {
    for (word, enable, disable) in [
        ("enabled", Ok(false), Ok(true)),
        ("disabled", Ok(true), Ok(false)),
        ("enabled-runtime", Ok(true), Ok(true)),
        ("static", Err(Kind::Conflict), Err(Kind::Conflict)),
        ("generated", Err(Kind::Conflict), Err(Kind::Conflict)),
        ("indirect", Err(Kind::Conflict), Err(Kind::Conflict)),
        ("masked", Err(Kind::Conflict), Ok(false)),
        ("", Err(Kind::Conflict), Err(Kind::Conflict)),
    ] {
        let unit = format!("UnitFileState={word}");
        for (op, expected) in [("enable", enable), ("disable", disable)] {
            let fake = host(&[("web.service", &unit)]);
            assert_eq!(changes(&fake, op, "web"), expected, "{op} what is {word}");
        }
    }
    let fake = host(&[("off.service", "LoadState=masked"), ("odd.service", "CanStart=no")]);
    for name in ["off", "odd"] {
        assert_eq!(ask(&fake, "start", name), Err(Kind::Conflict), "{name}");
    }
}

#[test]
fn what_the_host_runs_on_is_kept_unless_somebody_means_it() {
    let up = "ActiveState=active UnitFileState=enabled";
    let fake = host(&[
        ("osapi-agent.service", up),
        ("dbus.service", up),
        ("-.mount", up),
        ("reboot.target", PLAIN),
        ("osapi-power-j.timer", "ActiveState=active"),
        ("osapi-power-j.service", PLAIN),
        ("systemd-logind.service", PLAIN),
    ]);
    let alias = "LoadState=loaded\nFragmentPath=/lib/x\nActiveState=active\n";
    fake.put("/run/units/bus.service", &format!("{alias}Names=bus.service dbus.service\n"));
    for (op, name) in [
        ("stop", "osapi-agent"),
        ("restart", "osapi-agent"),
        ("disable", "osapi-agent"),
        ("stop", "dbus"),
        ("stop", "bus"),
        ("stop", "-.mount"),
        ("start", "reboot.target"),
        ("stop", "osapi-power-j.timer"),
        ("start", "osapi-power-j.service"),
    ] {
        assert_eq!(ask(&fake, op, name), Err(Kind::Protected), "{op} {name}");
    }
    assert_eq!(changes(&fake, "stop", "systemd-logind"), Ok(false));
    let www = format!("{alias}Id=web.service\nUnitFileState=enabled\n");
    fake.put("/run/units/www.service", &www);
    assert_eq!(ask(&fake, "disable", "www"), Err(Kind::Conflict), "it is another name");
    let forced = |op: &str, name: &str| {
        let force = crate::job::Options { force: true, ..Default::default() };
        fake.run_with(&format!("node.service.{op}"), json!({ "name": name }), force)
    };
    assert_eq!(forced("stop", "dbus").unwrap()["changed"], true);
    for (op, name) in [
        ("start", "reboot.target"),
        ("restart", "reboot.target"),
        ("stop", "osapi-power-j.timer"),
        ("start", "osapi-power-j.service"),
        ("restart", "osapi-power-j.timer"),
    ] {
        assert_eq!(forced(op, name).unwrap_err(), Kind::Protected, "{op} {name} takes more");
    }
}

/// The id of the job that a test calls so.
fn id(name: &str) -> String {
    let number = name.bytes().fold(0_u64, |number, byte| number * 31 + u64::from(byte));
    format!("01980000-0000-7000-8000-{:012x}", number % (1 << 40))
}

#[test]
fn what_is_on_its_way_is_stopped_and_comes_back() {
    let fake = host(&[("web.service", "ActiveState=activating Type=notify InvocationID=first")]);
    let stopped =
        fake.job(&id("stopping"), "node.service.stop", json!({ "name": "web" }), "").unwrap();
    assert_eq!(stopped["changed"], true);
    assert_eq!(shown(&fake, "web")["status"], "inactive");
    let undo = json!({ "id": id("stopping") });
    assert_eq!(fake.job(&id("undo"), "job.undo", undo, "").unwrap()["changed"], true);
    assert_eq!(shown(&fake, "web")["status"], "active");
}

#[test]
fn every_link_that_disabling_takes_away_comes_back() {
    let also =
        |name: &str| format!("ActiveState=active UnitFileState=enabled FragmentPath=/lib/{name}");
    let fake = host(&[
        ("a.service", &also("a")),
        ("b.socket", &also("b")),
        ("c.path", "UnitFileState=disabled"),
    ]);
    fake.put("/lib/a", "[Install]\nWantedBy=x.target\nAlso=b.socket c.path\n");
    fake.put("/lib/b", "[Install]\nAlso=a.service\n");
    let dir = "/etc/systemd/system";
    fake.put(&format!("{dir}/x.target.wants/README"), "");
    std::fs::create_dir(fake.at(&format!("{dir}/own.target.wants"))).unwrap();
    let links = [
        format!("{dir}/alias.service"),
        format!("{dir}/own.target.wants/a.service"),
        format!("{dir}/x.target.wants/a.service"),
    ];
    for link in &links {
        symlink("/lib/systemd/system/a.service", fake.at(link)).unwrap();
    }
    let found = || links.iter().filter(|link| fake.at(link).is_symlink()).count();
    let words =
        || ["a.service", "b.socket", "c.path"].map(|name| shown(&fake, name)["enabled"] == true);
    let disabled =
        fake.job(&id("off"), "node.service.disable", json!({ "name": "a" }), "").unwrap();
    assert_eq!((disabled["changed"] == true, found(), words()), (true, 0, [false; 3]));
    assert!(!fake.at(&format!("{dir}/own.target.wants")).exists());
    fake.job(&id("undo"), "job.undo", json!({ "id": id("off") }), "").unwrap();
    assert_eq!((found(), words()), (3, [true, true, false]));

    // So does enabling, which tells what else an undo of that would take.
    assert_eq!(changes(&fake, "disable", "a"), Ok(true));
    let enabled = fake.job(&id("on"), "node.service.enable", json!({ "name": "a" }), "").unwrap();
    assert_eq!((enabled["residue"].as_array(), found(), words()), (None, 3, [true; 3]));
    fake.job(&id("undo-on"), "job.undo", json!({ "id": id("on") }), "").unwrap();
    assert_eq!((found(), words()), (0, [false; 3]));
    assert_eq!(changes(&fake, "enable", "b.socket"), Ok(true));
    assert_eq!(changes(&fake, "disable", "c.path"), Ok(true));
}

#[test]
fn a_service_is_made_changed_and_deleted() {
    let fake = host(&[("taken.service", PLAIN)]);
    let file = |fake: &Fake| fake.text("/etc/systemd/system/osapi-web.service");
    assert_eq!(define(&fake, "update", "web", FILE), Err(Kind::NotFound));
    assert_eq!(changes(&fake, "delete", "web"), Ok(false));
    assert_eq!(define(&fake, "create", "web", "[Service]\n"), Err(Kind::InvalidInput));
    assert_eq!(file(&fake), None);
    assert_eq!(define(&fake, "create", "web", FILE), Ok(true));
    assert_eq!(define(&fake, "create", "osapi-web.service", FILE), Ok(false));
    let other = "[Service]\nExecStart=/bin/false\n";
    assert_eq!(define(&fake, "create", "web", other), Err(Kind::Conflict));
    assert_eq!(define(&fake, "update", "web", "[Service]\n"), Err(Kind::InvalidInput));
    assert_eq!(define(&fake, "update", "web", other), Ok(true));
    assert_eq!(file(&fake).unwrap(), other);
    assert_eq!(changes(&fake, "delete", "web"), Ok(true));
    assert_eq!(file(&fake), None);
    assert_eq!(changes(&fake, "delete", "web"), Ok(false));
}

#[test]
fn the_name_of_a_unit_of_others_is_not_taken() {
    let fake = host(&[("osapi-web.service", PLAIN)]);
    assert_eq!(define(&fake, "create", "web", FILE), Err(Kind::Conflict));
    for name in ["agent", "controller.service", "osapi-job-x", "a@b", "a@", ".service"] {
        assert_eq!(define(&fake, "create", name, FILE), Err(Kind::InvalidInput), "{name}");
    }
    fake.put("/etc/systemd/system/osapi-mine.service", "of somebody");
    assert_eq!(define(&fake, "create", "mine", FILE), Err(Kind::Conflict));
    assert_eq!(changes(&fake, "delete", "mine"), Ok(false));
}

#[test]
fn a_unit_file_is_not_as_long_as_one_likes() {
    let long = format!("{FILE}#{}\n", "x".repeat(256 * 1024));
    assert_eq!(define(&host(&[]), "create", "web", &long), Err(Kind::InvalidInput));
}

#[test]
fn what_runs_and_what_is_installed_is_listed_together() {
    let fake = host(&[("getty@tty1.service", "Id=getty@tty1.service UnitFileState=enabled")]);
    let unit = |unit: &str, load: &str, active: &str| json!({ "unit": unit, "load": load, "active": active, "sub": "x", "description": unit });
    let running = json!([
        unit("cron.service", "loaded", "active"),
        unit("getty@tty1.service", "loaded", "active"),
        unit("gone.service", "not-found", "inactive"),
    ]);
    let file = |unit: &str, state: &str| json!({ "unit_file": unit, "state": state });
    let installed = json!([
        file("cron.service", "enabled"),
        file("dbus-org.example.service", "alias"),
        file("getty@.service", "enabled"),
        file("nginx.service", "disabled"),
    ]);
    fake.put("/run/list-units.json", &running.to_string());
    fake.put("/run/list-unit-files.json", &installed.to_string());
    let listed = fake.run("node.service.list", json!({}), "").unwrap();
    let row = |name: &str, status: &str, enabled: bool, word: &str| json!({ "name": name, "status": status, "enabled": enabled, "unit_file_state": word });
    let mut expected = vec![
        row("cron.service", "active", true, "enabled"),
        row("getty@tty1.service", "active", true, "enabled"),
        row("nginx.service", "inactive", false, "disabled"),
    ];
    expected[0]["description"] = json!("cron.service");
    expected[1]["description"] = json!("getty@tty1.service");
    assert_eq!(listed, json!({ "services": expected }));
}

#[test]
fn a_long_list_is_cut() {
    let fake = host(&[]);
    let file = |n| json!({ "unit_file": format!("a{n}.service"), "state": "static" });
    let many: Vec<_> = (0..10_000).map(file).collect();
    fake.put("/run/list-units.json", "[]");
    fake.put("/run/list-unit-files.json", &json!(many).to_string());
    let listed = fake.run("node.service.list", json!({}), "").unwrap();
    assert_eq!(listed["truncated"], true);
    assert!(listed["services"].as_array().unwrap().len() > 1_000);
}

#[test]
fn a_host_without_a_service_manager_has_no_services() {
    let fake = host(&[]);
    std::fs::remove_dir_all(fake.at("/run/systemd")).unwrap();
    assert_eq!(fake.run("node.service.list", json!({}), ""), Err(Kind::Unsupported));
}
