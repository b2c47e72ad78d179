//! What is kept, what it costs, and what is forgotten.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "looks at journals and changes the age of files"
)]

use std::time::{Duration, SystemTime};

use osapi::error::Kind;
use osapi::host::cell::Digest;
use osapi::host::{Executor, Root, UndoBounds};
use osapi::job::{Content, Options};
use serde_json::json;

use crate::support::cases::{deploy, find};
use crate::support::host::{TestHost, job, task};

fn names(host: &TestHost, dir: &str) -> Vec<String> {
    let files = std::fs::read_dir(host.state(dir)).unwrap().map(Result::unwrap);
    let mut names: Vec<_> =
        files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Makes everything in the journal look as if it was written so many days ago.
fn age(host: &TestHost, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    for dir in ["done", "blobs", "locks", "managed"] {
        for file in std::fs::read_dir(host.state(dir)).unwrap().map(Result::unwrap) {
            let file = std::fs::File::options().write(true).open(file.path()).unwrap();
            file.set_modified(then).unwrap();
        }
    }
}

/// The same as an earlier boot would leave it.
fn reboot(host: &TestHost) {
    host.write("/proc/sys/kernel/random/boot_id", "later\n");
}

#[test]
fn small_contents_ride_in_the_record_and_large_ones_lie_beside_it() {
    let host = TestHost::new();
    host.run("small", "file.deploy.execute", &deploy("motd", "/etc/motd", "0600")).unwrap();
    assert_eq!(names(&host, "blobs"), [""; 0]);
    host.run("large", "test.large", &json!("y")).unwrap();
    host.run("larger", "test.large", &json!("z")).unwrap();
    let digest = |letter: &str| Digest::of(letter.repeat(40_000)).to_string();
    let (y, z) = (digest("y"), digest("z"));
    let mut expected = vec![
        y.clone(),
        format!("{y}.{}", job("large")),
        format!("{y}.{}", job("larger")),
        z.clone(),
        format!("{z}.{}", job("larger")),
    ];
    expected.sort();
    assert_eq!(names(&host, "blobs"), expected);
    host.undo("undo", "larger").unwrap();
    assert_eq!(host.read("/srv/large"), "y".repeat(40_000));
}

#[test]
fn what_is_over_is_forgotten_when_it_is_old_and_never_what_is_needed() {
    let host = TestHost::new();
    host.write("/srv/large", &"original".repeat(10_000));
    host.run("a", "test.large", &json!("y")).unwrap();
    host.run("b", "test.large", &json!("z")).unwrap();
    host.run("banner", "test.banner", &json!("x")).unwrap();
    let options = Options { confirm: Some(600), ..Options::default() };
    let params = json!({ "key": "vm.swappiness", "value": "10" });
    host.run_with("waits", "node.sysctl.create", &params, options).unwrap();
    assert_eq!(host.executor.prune().unwrap(), 0);

    // A clock that was set a year ahead forgets nothing that may be delivered again.
    age(&host, 365);
    assert_eq!(host.executor.prune().unwrap(), 0);
    assert_eq!(names(&host, "done").len(), 3);

    reboot(&host);
    assert!(host.executor.prune().unwrap() >= 3);
    assert_eq!(names(&host, "done"), [""; 0]);
    assert_eq!(names(&host, "open"), [job("waits")]);
    // What the cell held before OSAPI came is still needed, and what it should hold now.
    let origin = Digest::of("original".repeat(10_000)).to_string();
    let now = Digest::of("z".repeat(40_000)).to_string();
    let mut expected = [origin, now];
    expected.sort();
    assert_eq!(names(&host, "blobs"), expected);
    host.executor.confirm(&job("waits")).unwrap_or_default();
    let error = host.undo("undo", "banner").unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn what_was_given_back_is_known_as_long_as_jobs_are() {
    let host = TestHost::new();
    let by_path = json!({ "path": "/etc/motd" });
    let undeploy = |name: &str| host.run(name, "file.undeploy.execute", &by_path);
    for round in ["first", "second"] {
        host.run(round, "file.deploy.execute", &deploy("motd", "/etc/motd", "0644")).unwrap();
        assert_eq!(undeploy(&format!("{round} back")).unwrap()["changed"], true);
        host.executor.prune().unwrap();
        assert_eq!(undeploy(&format!("{round} again")).unwrap()["changed"], false);
        age(&host, 40);
    }
    assert_eq!(names(&host, "managed").len(), 1);
    host.executor.prune().unwrap();
    assert_eq!(names(&host, "managed"), [""; 0]);
    assert_eq!(undeploy("at last").unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn what_nobody_came_back_for_is_filed_away_and_answered_all_the_same() {
    let host = TestHost::new();
    let params = json!({ "program": "true" });
    host.run("template", "test.run", &params).unwrap();
    let text = std::fs::read_to_string(host.entry("done", "template")).unwrap();
    let begun = text.split("{\"finished\"").next().unwrap();
    std::fs::write(host.entry("open", "begun"), begun).unwrap();
    std::fs::write(host.entry("open", "torn"), "{\"plann").unwrap();
    host.executor.prune().unwrap();
    assert_eq!(names(&host, "open").len(), 2);
    let then = SystemTime::now() - Duration::from_hours(72);
    for name in ["begun", "torn"] {
        let file = std::fs::File::options().write(true).open(host.entry("open", name)).unwrap();
        file.set_modified(then).unwrap();
    }
    host.executor.prune().unwrap();
    assert_eq!(names(&host, "open"), [""; 0]);
    let error = host.run("begun", "test.run", &params).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(host.run("begun", "test.run", &params).unwrap_err().kind(), Kind::Interrupted);
    assert_eq!(host.run("torn", "test.run", &params).unwrap()["exit_code"], 0);
    assert_eq!(host.calls().len(), 2);
}

#[test]
fn the_oldest_goes_first_when_there_is_too_much() {
    let host = TestHost::new();
    for n in 0..6 {
        host.run(&format!("{n}"), "test.banner", &json!(format!("{n}").repeat(1000))).unwrap();
        age(&host, 5);
    }
    host.run("newest", "test.banner", &json!("newest")).unwrap();
    reboot(&host);
    let bounds = UndoBounds { bytes: 20_000, ..UndoBounds::default() };
    let executor = Executor::new(Root::at(host.path("/")), &host.state(""), bounds).unwrap();
    let removed = executor.prune().unwrap();
    assert!((1..6).contains(&removed), "{removed}");
    assert!(names(&host, "done").contains(&job("newest")));
}

#[test]
fn an_object_is_checked_before_it_is_kept() {
    let host = TestHost::new();
    let text = "object ".repeat(10_000);
    let digest = Digest::of(&text).to_string();
    let executor = &host.executor;
    let error = executor.keep_object(&digest, &mut &b"something else"[..]).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(!executor.has_object(&digest));
    executor.keep_object("../../etc/passwd", &mut &b""[..]).unwrap_err();

    let op = find("file.deploy.execute");
    let mut task = task(&job("job"), &op, &deploy("big", "/srv/big", "0644"), Options::default());
    let content = Content { digest: digest.clone(), size: text.len() as u64, bytes: None };
    task.objects.insert("big".to_owned(), content);
    executor.keep_object(&digest, &mut text.as_bytes()).unwrap();
    assert!(executor.has_object(&digest));
    host.deliver(&op, &task).unwrap();
    assert_eq!(host.read("/srv/big"), text);
    host.undo("undo", "job").unwrap();
    assert!(!host.path("/srv/big").exists());
}

#[test]
fn a_second_agent_is_kept_away() {
    let host = TestHost::new();
    host.executor.claim().unwrap();
    let root = Root::at(host.path("/"));
    let second = Executor::new(root, &host.state(""), UndoBounds::default()).unwrap();
    assert_eq!(second.claim().unwrap_err().kind(), Kind::Conflict);
    let host = host.restart();
    drop(second);
    host.executor.claim().unwrap();
}

#[test]
fn what_a_killed_agent_has_just_started_keeps_the_next_one_waiting_and_not_away() {
    let host = TestHost::new();
    host.executor.claim().unwrap();
    let root = Root::at(host.path("/"));
    let next = Executor::new(root, &host.state(""), UndoBounds::default()).unwrap();
    std::thread::scope(|scope| {
        let claimed = scope.spawn(|| next.claim());
        let _killed = host.restart();
        claimed.join().unwrap().unwrap();
    });
}
