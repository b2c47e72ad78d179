//! Files as cells: what they are made of, and what is refused because it could not come back.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use osapi::error::Kind;
use serde_json::{Value, json};

use crate::say::say;
use crate::server::as_account;
use crate::support::cases::deploy;
use crate::support::host::TestHost;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn put(host: &TestHost, job: &str, path: &str) -> osapi::error::Result<Value> {
    host.run(job, "file.deploy.execute", &deploy("motd", path, "0644"))
}

#[test]
fn missing_directories_are_made_and_go_with_what_they_were_made_for() {
    let host = TestHost::new();
    let before = host.snapshot();
    put(&host, "job", "/srv/a/b/c").unwrap();
    assert_eq!(host.path("/srv/a/b").metadata().unwrap().mode() & 0o7777, 0o755);
    host.undo("undo", "job").unwrap();
    host.assert_is(&before, "");

    // What others put there keeps its directory.
    put(&host, "again", "/srv/a/b/c").unwrap();
    host.write("/srv/a/theirs", "theirs");
    host.undo("undo again", "again").unwrap();
    assert!(!host.path("/srv/a/b").exists());
    assert_eq!(host.read("/srv/a/theirs"), "theirs");

    put(&host, "third", "/srv/a/d/e").unwrap();
    host.run("release", "test.release", &json!("/srv/a/d/e")).unwrap();
    assert!(!host.path("/srv/a/d").exists());
    assert_eq!(host.read("/srv/a/theirs"), "theirs");
}

#[test]
fn mode_and_owner_are_really_applied_and_really_given_back() {
    let host = TestHost::new();
    host.write("/etc/motd", "before");
    std::fs::set_permissions(host.path("/etc/motd"), PermissionsExt::from_mode(0o4751)).unwrap();
    let before = host.snapshot();
    let mut params = deploy("motd", "/etc/motd", "2640");
    if is_root() {
        host.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nada:x:1234:1235::/:/bin/sh\n");
        host.write("/etc/group", "root:x:0:\nada:x:1235:\nstaff:x:50:\n");
        (params["owner"], params["group"]) = (json!("ada"), json!("staff"));
    } else {
        say("SKIPPED: owners of others: not root");
    }
    host.run("job", "file.deploy.execute", &params).unwrap();
    let about = host.path("/etc/motd").metadata().unwrap();
    assert_eq!(about.mode() & 0o7777, 0o2640);
    if is_root() {
        assert_eq!((about.uid(), about.gid()), (1234, 50));
    }
    host.undo("undo", "job").unwrap();
    let now = host.snapshot();
    let path = std::path::Path::new("etc/motd");
    assert_eq!(now[path], before[path]);
}

#[test]
fn what_the_agent_may_not_do_is_refused_before_anything_is_done() {
    // Root may everything, so the agent is somebody else then.
    if is_root() {
        as_account(65_534, &[], the_unprivileged_are_refused).unwrap();
    } else {
        the_unprivileged_are_refused();
    }
}

fn the_unprivileged_are_refused() {
    let host = TestHost::new();
    let users = host.read("/etc/passwd") + "other:x:65533:65533::/:/bin/sh\n";
    host.write("/etc/passwd", &users);
    host.write("/etc/group", &(host.read("/etc/group") + "other:x:65533:\n"));
    let mut params = deploy("motd", "/etc/motd", "0644");
    params["owner"] = json!("other");
    let theirs = host.path("/srv/data");
    std::fs::set_permissions(&theirs, PermissionsExt::from_mode(0o555)).unwrap();
    std::fs::set_permissions(
        host.path("/proc/sys/vm/swappiness"),
        PermissionsExt::from_mode(0o444),
    )
    .unwrap();
    let before = host.snapshot();
    for (op, params) in [
        ("file.deploy.execute", params),
        ("file.deploy.execute", deploy("motd", "/srv/data/new", "0644")),
        ("node.sysctl.create", json!({ "key": "vm.swappiness", "value": "10" })),
    ] {
        for error in [host.preview(op, &params), host.run(op, op, &params)] {
            let error = error.unwrap_err();
            assert_eq!(error.kind(), Kind::AgentUnprivileged, "{op}: {error}");
        }
    }
    host.assert_is(&before, "");
}

#[test]
fn what_a_change_would_lose_is_refused() {
    let host = TestHost::new();
    host.write("/etc/twice", "one");
    std::fs::hard_link(host.path("/etc/twice"), host.path("/etc/again")).unwrap();
    host.write("/etc/marked", "one");
    let marked = host.path("/etc/marked");
    let flags = rustix::fs::XattrFlags::empty();
    let has_attributes = rustix::fs::setxattr(&marked, "user.mark", b"x", flags).is_ok();
    if !has_attributes {
        say("SKIPPED: extended attributes: this file system has none");
    }
    let before = host.snapshot();
    let marked = has_attributes.then_some(("/etc/marked", "user.mark"));
    for (path, what) in [("/etc/twice", "2 names")].into_iter().chain(marked) {
        for error in [
            host.preview("file.deploy.execute", &deploy("motd", path, "0644")),
            put(&host, path, path),
        ] {
            let error = error.unwrap_err();
            assert_eq!(error.kind(), Kind::Conflict, "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
    }
    host.assert_is(&before, "");
}

#[test]
fn no_path_leads_out_of_the_root_or_to_what_is_no_file() {
    let host = TestHost::new();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), host.path("/srv/out")).unwrap();
    symlink("/../../../../../..", host.path("/srv/up")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        host.path("/srv/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for (name, path) in [
        ("a", "/srv/out/file"),
        ("b", "/srv/../../../../../../tmp/file"),
        ("c", "/srv/pipe"),
        ("d", "srv/file"),
        ("e", "/srv//file"),
        ("f", "/srv/data"),
    ] {
        put(&host, name, path).unwrap_err();
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    put(&host, "up", "/srv/up/etc/inside").unwrap_err();
    assert!(!host.path("/etc/inside").exists());
}

#[test]
fn a_name_of_the_longest_kind_can_be_given() {
    let host = TestHost::new();
    let path = format!("/srv/{}", "n".repeat(255));
    put(&host, "job", &path).unwrap();
    assert_eq!(host.read(&path), "Welcome\n");
    host.undo("undo", "job").unwrap();
    assert!(!host.path(&path).exists());
}
