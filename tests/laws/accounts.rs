//! Homes: which are moved and removed, and what becomes of them on a way back.

use std::fs;
use std::os::unix::fs::{chown, symlink};

use osapi::error::Kind;
use serde_json::{Value, json};

use crate::support::host::TestHost;

/// With more accounts, as lines of their table.
fn host(accounts: &str) -> TestHost {
    let host = TestHost::with_service_manager();
    host.write("/etc/passwd", &(host.read("/etc/passwd") + accounts));
    host
}

fn relocated(name: &str, home: &str) -> Value {
    json!({ "name": name, "home": home })
}

#[track_caller]
fn refused(host: &TestHost, name: &str, home: &str, kind: Kind) {
    let (before, params) = (host.snapshot(), relocated(name, home));
    let job = format!("{name} {home}");
    let preview = host.preview("node.user.update", &params).unwrap_err();
    let error = host.run(&job, "node.user.update", &params).unwrap_err();
    assert_eq!((error.kind(), preview.kind()), (kind, kind), "{job}: {error}");
    host.assert_is(&before, &job);
    assert!(host.calls().is_empty(), "{job}");
}

#[test]
fn a_home_that_is_not_the_accounts_own_is_not_moved() {
    let host = host(
        "bin:x:2:2:bin:/bin:/usr/sbin/nologin\nsys:x:3:3::/dev:/usr/sbin/nologin\n\
         linked:x:1501:100::/home/linked:/bin/bash\nlent:x:1502:100::/srv/work:/bin/bash\n\
         up:x:1503:100::/home:/bin/bash\ntop:x:1504:100::/:/bin/bash\n",
    );
    fs::create_dir_all(host.path("/dev")).unwrap();
    fs::create_dir_all(host.path("/srv/own")).unwrap();
    symlink("../srv/own", host.path("/home/linked")).unwrap();
    for name in ["bin", "sys", "linked", "up", "top"] {
        refused(&host, name, "/srv/new", Kind::Protected);
    }
    // On a host whose /bin is a link.
    fs::rename(host.path("/bin"), host.path("/usr/old-bin")).unwrap();
    symlink("usr/bin", host.path("/bin")).unwrap();
    refused(&host, "bin", "/srv/new", Kind::Protected);
    if rustix::process::geteuid().is_root() {
        refused(&host, "lent", "/srv/new", Kind::Protected);
    }
}

#[test]
fn a_home_that_several_have_is_not_moved() {
    let line = |home: &str| format!("twin:x:1501:1501::{home}:/bin/bash\n");
    for home in ["/home/bob", "/home/bob/", "/home/bob/inner", "/srv/link"] {
        let host = host(&line(home));
        symlink("../home/bob", host.path("/srv/link")).unwrap();
        refused(&host, "bob", "/srv/new", Kind::Protected);
    }
}

#[test]
fn a_home_moves_only_where_one_can_be() {
    let host = host("");
    symlink("work", host.path("/srv/link")).unwrap();
    symlink("nowhere", host.path("/srv/dangling")).unwrap();
    for (home, kind) in [
        ("/etc/bob", Kind::Protected),
        ("/usr/lib/bob", Kind::Protected),
        ("/bob", Kind::Protected),
        ("/srv/work", Kind::Conflict),
        ("/srv/link/bob", Kind::Conflict),
        ("/srv/dangling", Kind::Conflict),
        ("/srv/nothing/bob", Kind::Conflict),
        ("/home/bob/inner", Kind::Conflict),
    ] {
        refused(&host, "bob", home, kind);
    }
}

#[test]
fn a_home_that_cannot_be_moved_back_is_named_and_no_other_is_made() {
    let host = host("");
    let before = host.snapshot();
    let spoil = |what: &str| {
        let flag = "$root/../after-usermod";
        fs::write(host.dir().join("after-usermod"), format!("rm \"{flag}\"\n{what}\nexit 12\n"))
            .unwrap();
    };
    let update =
        |job: &str| host.run(job, "node.user.update", &relocated("bob", "/srv/bob")).unwrap_err();
    // It fails after all, or after the table and before the files.
    for (job, what) in [("all", ":"), ("half", "mv \"$root/srv/bob\" \"$root/home/bob\"")] {
        spoil(what);
        let error = update(job);
        assert!(error.body().not_restored.is_empty(), "{error}");
        host.assert_is(&before, job);
    }
    spoil("mv \"$root/srv/bob\" \"$root/srv/elsewhere\"");
    let error = update("lost");
    assert_eq!(error.body().not_restored, ["account bob"], "{error}");
    assert!(!host.path("/home/bob").exists() && host.path("/srv/elsewhere").exists());
    assert!(!host.calls().iter().any(|call| call.starts_with("mkhomedir_helper")));
    assert!(host.read("/etc/passwd").contains(":/home/bob:"), "the rest is taken back");
}

#[test]
fn an_undo_moves_no_directory_that_was_there_before() {
    let host = host("svc:x:1501:1501::/nonexistent:/bin/bash\n");
    fs::create_dir(host.path("/srv/data")).unwrap();
    let _ = chown(host.path("/srv/data"), Some(1501), Some(1501));
    let before = host.snapshot();
    host.run("job", "node.user.update", &relocated("svc", "/srv/data")).unwrap();
    host.undo("undo", "job").unwrap();
    host.assert_is(&before, "undone");
}

#[test]
fn whose_home_is_the_systems_is_removed_without() {
    let host = host("bin:x:2:2:bin:/bin:/usr/sbin/nologin\n");
    let _ = chown(host.path("/bin"), Some(2), Some(2));
    host.run("job", "node.user.delete", &json!({ "name": "bin" })).unwrap();
    assert!(host.path("/bin/bash").exists());
    assert!(host.calls().contains(&"userdel -- bin".to_owned()), "{:?}", host.calls());
}
