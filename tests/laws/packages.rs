//! What holds for packages in particular: several are one step, and what was begun with them by
//! others is told apart from what is asked for.

use osapi::error::Kind;
use osapi::job::Options;
use serde_json::{Value, json};

use crate::support::host::TestHost;

const INSTALL: &str = "node.package.install";
const REMOVE: &str = "node.package.remove";
const STATUS: &str = "/var/lib/dpkg/status";

fn hello() -> Value {
    json!({ "name": "hello" })
}

fn leave(host: &TestHost, package: &str, status: &str) {
    let table = host.read(STATUS);
    let stanza = format!(
        "Package: {package}\nStatus: install {status}\nArchitecture: all\nVersion: 1.0\n\n"
    );
    host.write(STATUS, &(table + &stanza));
}

#[test]
fn packages_are_one_step_with_their_versions() {
    let host = TestHost::new();
    let answer = host.run("job", INSTALL, &hello()).unwrap();
    assert_eq!((&answer["name"], &answer["version"]), (&json!("hello"), &json!("1.0")));
    assert_eq!(answer["changes"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(answer["changes"][0]["to"]["package"], json!({ "version": "1.0", "auto": true }));
    assert_eq!(answer["residue"].as_array().unwrap().len(), 2, "{answer}");
    let calls = host.calls();
    let [apt, mark] = &calls[..] else { panic!("{calls:?}") };
    assert!(apt.ends_with(" install -- libhello=1.0 hello=1.0"), "{apt}");
    assert!(apt.contains("Dpkg::Options::=--force-confold"), "{apt}");
    assert_eq!(mark, "apt-mark auto -- libhello");
}

#[test]
fn what_is_there_already_is_taken_for_installed() {
    let host = TestHost::new();
    leave(&host, "libhello", "ok installed");
    leave(&host, "hello", "ok installed");
    let answer = host.run("job", INSTALL, &hello()).unwrap();
    assert_eq!((&answer["changed"], &answer["version"]), (&json!(false), &json!("1.0")));
    let newer = json!({ "name": "hello", "version": "2.0" });
    let answer = host.run("newer", INSTALL, &newer).unwrap();
    assert_eq!((&answer["changed"], &answer["version"]), (&json!(true), &json!("2.0")));
    host.undo("undo", "newer").unwrap();
    assert!(host.calls().iter().any(|call| call.ends_with("-- hello=1.0")), "{:?}", host.calls());
}

#[test]
fn what_is_not_there_needs_no_removal() {
    let host = TestHost::new();
    assert_eq!(host.run("job", REMOVE, &hello()).unwrap()["changed"], false);
    for op in [INSTALL, REMOVE] {
        let error = host.run(op, op, &json!({ "name": "nonesuch" })).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{op}: {error}");
    }
    let gone = json!({ "name": "hello", "version": "3.0" });
    assert_eq!(host.run("gone", INSTALL, &gone).unwrap_err().kind(), Kind::NotFound);
    assert!(host.calls().is_empty());
}

#[test]
fn what_apt_takes_for_a_pattern_is_no_package() {
    let host = TestHost::new();
    let pattern = json!({ "name": "he.lo" });
    let is_refused = |host: &TestHost, op: &str| {
        let error = host.preview(op, &pattern).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{op}: {error}");
        assert!(error.to_string().contains("he.lo"), "{error}");
        assert_eq!(host.run(op, op, &pattern).unwrap_err().kind(), Kind::NotFound, "{op}");
    };
    is_refused(&host, INSTALL);
    is_refused(&host, REMOVE);
    leave(&host, "libhello", "ok installed");
    leave(&host, "hello", "ok installed");
    let before = host.snapshot();
    is_refused(&host, INSTALL);
    is_refused(&host, REMOVE);
    // Nor is what begins the name of one.
    let error = host.run("begins", REMOVE, &json!({ "name": "hell" })).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    host.assert_is(&before, "");
    assert!(host.calls().is_empty());
}

#[test]
fn what_dpkg_has_begun_is_finished_first() {
    let host = TestHost::new();
    leave(&host, "libhello", "ok half-configured");
    let preview = host.preview(INSTALL, &hello()).unwrap();
    assert!(preview["residue"].to_string().contains("finish libhello"), "{preview}");
    host.run("job", INSTALL, &hello()).unwrap();
    let first = host.calls()[0].clone();
    assert_eq!(first, "dpkg --force-confdef --force-confold --configure --pending");
}

#[test]
fn what_dpkg_cannot_finish_is_named_with_its_remedy() {
    let host = TestHost::new();
    leave(&host, "torn", "reinstreq half-installed");
    let error = host.run("job", INSTALL, &hello()).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed);
    assert!(error.to_string().contains("`apt-get install --reinstall torn`"), "{error}");
    assert!(host.calls().is_empty());

    let host = TestHost::new();
    leave(&host, "torn", "ok half-configured");
    host.fail("dpkg", true);
    let error = host.run("job", INSTALL, &hello());
    // apt can do without what is none of its business.
    assert_eq!(error.unwrap()["changed"], true);
}

#[test]
fn what_goes_is_not_begun_once_more() {
    let host = TestHost::new();
    leave(&host, "libhello", "ok half-configured");
    let remove = json!({ "name": "libhello" });
    assert_eq!(host.preview(REMOVE, &remove).unwrap()["residue"].as_array().unwrap().len(), 1);
    host.run("job", REMOVE, &remove).unwrap();
    let calls = host.calls();
    assert_eq!(calls[0], "dpkg --set-selections");
    assert!(calls[1].ends_with(" install -- libhello-"), "{calls:?}");
}

#[test]
fn what_apt_would_do_beyond_the_plan_is_not_done() {
    let also = |host: &TestHost, lines: &str| {
        std::fs::write(host.dir().join("comes-along"), lines).unwrap();
    };
    for (line, told) in [
        ("Remv other [1.0]\n", "package other would have to be removed"),
        ("Inst other (2.0 Debian:12/stable [all])\n", "package other would have to be given 2.0"),
        ("Inst hello (9 Debian:12/stable [all])\n", "package hello would have to be given 9"),
    ] {
        let host = TestHost::new();
        also(&host, line);
        let before = host.snapshot();
        let error = host.run("job", INSTALL, &hello()).unwrap_err();
        assert_eq!(error.kind(), Kind::Stale, "{error}");
        assert!(error.to_string().contains(told), "{error}");
        assert!(error.body().not_restored.is_empty());
        host.assert_is(&before, line);
        assert!(host.calls().is_empty(), "{:?}", host.calls());
    }
    // What is part of the plan may come first.
    let host = TestHost::new();
    also(&host, "Inst libhello (1.0 Debian:12/stable [all])\n");
    host.run("job", INSTALL, &hello()).unwrap();
    assert!(host.calls()[0].contains(" --no-remove "), "{:?}", host.calls());
    let remove = |name| host.run(name, REMOVE, &hello());
    also(&host, "");
    remove("gone").unwrap();
    assert!(!host.calls().last().unwrap().contains(" --no-remove "), "{:?}", host.calls());
}

#[test]
fn whoever_has_the_lock_first_is_waited_for_and_looked_at_again() {
    // Once somebody else is faster, and leaves this.
    let first = |script: &str| {
        let host = TestHost::new();
        let script = format!("rm \"$root/../comes-first\"\n{script}");
        std::fs::write(host.dir().join("comes-first"), script).unwrap();
        host
    };
    let host = first("");
    assert_eq!(host.run("job", INSTALL, &hello()).unwrap()["changed"], true);
    assert_eq!(host.calls().iter().filter(|call| call.starts_with("apt-get")).count(), 2);

    let stanza =
        "Package: hello\\nStatus: install ok installed\\nArchitecture: all\\nVersion: 7\\n\\n";
    let host = first(&format!("printf '{stanza}' >> \"$status\""));
    let error = host.run("job", INSTALL, &hello()).unwrap_err();
    assert_eq!(error.kind(), Kind::Stale, "{error}");
    assert!(error.to_string().contains("package hello was changed by somebody else"), "{error}");
    assert!(error.body().not_restored.is_empty() && host.read(STATUS).contains("Version: 7"));
    assert_eq!(host.calls().iter().filter(|call| call.starts_with("apt-get")).count(), 1);

    let host = first("echo 'Remv other [1.0]' > \"$root/../comes-along\"");
    let error = host.run("job", INSTALL, &hello()).unwrap_err();
    assert_eq!(error.kind(), Kind::Stale, "{error}");
}

#[test]
fn osapi_does_not_remove_itself() {
    let host = TestHost::new();
    leave(&host, "osapi", "ok installed");
    let itself = json!({ "name": "osapi" });
    for (name, force, confirm) in
        [("plain", false, None), ("forced", true, None), ("confirmed", true, Some(60))]
    {
        let options = Options { force, confirm, ..Options::default() };
        let error = host.run_with(name, REMOVE, &itself, options).unwrap_err();
        assert_eq!(error.kind(), Kind::Protected, "{name}: {error}");
        assert!(error.to_string().contains("`apt-get remove osapi`"), "{error}");
        assert!(!error.to_string().contains("use force"), "{error}");
    }
    assert!(host.calls().is_empty());
}

#[test]
fn only_the_versions_that_were_seen_are_installed() {
    let host = TestHost::new();
    let preview = host.preview(INSTALL, &hello()).unwrap();
    let plan = preview["plan"].as_str().map(str::to_owned);
    let seen = || Options { plan: plan.clone(), ..Options::default() };
    leave(&host, "libhello", "ok installed");
    let error = host.run_with("job", INSTALL, &hello(), seen()).unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    assert!(host.calls().is_empty());
}

#[test]
fn what_the_system_needs_is_not_removed_by_accident() {
    let host = TestHost::new();
    let dpkg = json!({ "name": "dpkg" });
    assert_eq!(host.preview(REMOVE, &dpkg).unwrap_err().kind(), Kind::Protected);
    assert_eq!(host.run("job", REMOVE, &dpkg).unwrap_err().kind(), Kind::Protected);
    assert!(host.calls().is_empty());
    let force = Options { force: true, ..Options::default() };
    host.run_with("forced", REMOVE, &dpkg, force).unwrap();
    assert!(host.calls()[0].contains("--allow-remove-essential"), "{:?}", host.calls());
}

#[test]
fn archives_that_do_not_answer_are_a_failure() {
    let host = TestHost::new();
    let answer = host.run("job", "node.package.update", &json!({})).unwrap();
    assert_eq!(answer["changed"], true);
    host.fail("apt-get", true);
    let error = host.run("again", "node.package.update", &json!({})).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed);
    assert!(error.to_string().contains("was told to fail"), "{error}");
}

#[test]
fn how_far_it_is_is_told_while_it_goes_on() {
    let host = TestHost::new();
    host.hold("unpacking", true);
    let listening = host.executor.listen().unwrap();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| host.run("job", INSTALL, &hello()).unwrap());
        let news = listening.wait().unwrap();
        host.hold("unpacking", false);
        let [(job, progress)] = &news[..] else { panic!("{news:?}") };
        assert_eq!(*job, crate::support::host::job("job"));
        let told = (&*progress.message, progress.percent);
        assert_eq!(told, ("Unpacking libhello (all)", Some(50)));
        run.join().unwrap();
    });
    let left = std::fs::read_dir(host.state("news")).unwrap().count();
    assert_eq!(left, 0, "what is over is not told any more");
}
