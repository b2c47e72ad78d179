//! Homes: which are moved and removed, and what becomes of them on a way back.

use std::fs;
use std::os::unix::fs::{chown, symlink};

use osapi::error::Kind;
use osapi::job::Options;
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
         linked:x:1501:100::/home/linked:/bin/bash\nlent:x:1502:100::/srv/data:/bin/bash\n\
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
        ("/srv/data", Kind::Conflict),
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
    fs::create_dir(host.path("/srv/shared")).unwrap();
    let _ = chown(host.path("/srv/shared"), Some(1501), Some(1501));
    let before = host.snapshot();
    host.run("job", "node.user.update", &relocated("svc", "/srv/shared")).unwrap();
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

const ADA: &str = "/home/ada";

/// A host on which new homes have a file, and one was made.
fn made(options: Options) -> TestHost {
    let host = host("");
    fs::create_dir(host.path("/etc/skel")).unwrap();
    host.write("/etc/skel/.profile", "umask 022\n");
    let ada = json!({ "name": "ada" });
    let preview = host.preview("node.user.create", &ada).unwrap();
    assert!(preview["residue"].to_string().contains(ADA), "it is told before: {preview}");
    let answer = host.run_with("job", "node.user.create", &ada, options).unwrap();
    assert_eq!(answer["residue"], preview["residue"]);
    host.write("/home/ada/.profile", "umask 022\n");
    host
}

#[test]
fn what_others_put_into_a_new_home_stays_when_it_is_undone() {
    let host = made(Options::default());
    host.write("/home/ada/thesis", "mine\n");
    let answer = host.undo("undo", "job").unwrap();
    assert!(answer["residue"].to_string().contains("the home of ada in /home/ada"), "{answer}");
    assert!(!host.read("/etc/passwd").contains("ada"));
    assert_eq!(host.read("/home/ada/thesis"), "mine\n");
    host.undo("redo", "undo").unwrap();
    assert!(host.read("/etc/passwd").contains("ada"));
    host.write("/home/ada/.profile", "umask 077\n");
    fs::remove_file(host.path("/home/ada/thesis")).unwrap();
    host.undo("again", "redo").unwrap();
    assert_eq!(host.read("/home/ada/.profile"), "umask 077\n", "a file that differs is theirs");
}

#[test]
fn what_others_put_into_a_new_home_stays_when_nobody_confirms_it() {
    let unconfirmed = || Options { confirm: Some(0), ..Options::default() };
    for (is_used, left) in [(false, vec![]), (true, vec!["the home of ada in /home/ada"])] {
        let host = made(unconfirmed());
        if is_used {
            host.write("/home/ada/thesis", "mine\n");
        }
        host.executor.settle().unwrap();
        let error = host.run("job", "node.user.create", &json!({ "name": "ada" })).unwrap_err();
        assert_eq!(error.kind(), Kind::Reverted);
        let named = error.body().not_restored;
        assert_eq!(named.len(), left.len(), "{named:?}");
        assert!(named.iter().zip(left).all(|(named, left)| named.starts_with(left)), "{named:?}");
        assert!(!host.read("/etc/passwd").contains("ada"));
        assert_eq!(host.path(ADA).exists(), is_used);
    }
}

#[test]
fn an_account_of_the_system_is_made_as_one() {
    let host = host("");
    for (name, system) in [("daemon2", true), ("ada", false)] {
        let params = json!({ "name": name, "system": system });
        host.run(name, "node.user.create", &params).unwrap();
        let is_made =
            |call: &String| call.starts_with("useradd ") && call.ends_with(&format!("-- {name}"));
        let call = host.calls().into_iter().find(is_made);
        assert_eq!(call.unwrap().contains("--system"), system, "{name}");
    }
    let preview = host.preview("node.user.delete", &json!({ "name": "ada" })).unwrap();
    let residue = preview["residue"].to_string();
    assert!(residue.contains("its mail, and the age of its password"), "{residue}");
    assert!(residue.contains("the administrators of group ada"), "{residue}");
}

#[test]
fn a_deleted_account_comes_back_with_the_number_of_its_group() {
    let host = host("carol:x:1501:1777::/home/carol:/bin/bash\n");
    host.write("/etc/group", &(host.read("/etc/group") + "carol:x:1777:\n"));
    host.write("/etc/shadow", &(host.read("/etc/shadow") + "carol:!:19000:0:99999:7:::\n"));
    let before = host.snapshot();
    host.run("job", "node.user.delete", &json!({ "name": "carol" })).unwrap();
    assert!(!host.read("/etc/group").contains("carol"));
    host.undo("undo", "job").unwrap();
    host.assert_is(&before, "undone");
    // Whoever has its number meanwhile keeps it, and then nothing is half undone.
    host.run("again", "node.user.delete", &json!({ "name": "carol" })).unwrap();
    host.write("/etc/group", &(host.read("/etc/group") + "carol:x:4711:\n"));
    let before = host.snapshot();
    let error = host.undo("late", "again").unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
    host.assert_is(&before, "refused");
}

#[test]
fn whoever_has_joined_the_group_of_an_account_stays_in_it() {
    for members in ["", "bob"] {
        let host = host("");
        host.run("job", "node.user.create", &json!({ "name": "ada" })).unwrap();
        let groups = host.read("/etc/group").replace("ada:x:1501:", "ada:x:1501:bob");
        host.write("/etc/group", &groups);
        match members {
            "" => host.undo("undo", "job").map(drop).unwrap(),
            _ => host.run("del", "node.user.delete", &json!({ "name": "ada" })).map(drop).unwrap(),
        }
        assert!(!host.read("/etc/passwd").contains("ada"));
        assert!(host.read("/etc/group").contains("ada:x:1501:bob"), "{}", host.read("/etc/group"));
    }
}

#[test]
fn a_home_is_removed_that_was_left_when_its_account_was_gone() {
    let lines = |text: &str| {
        let others = text.split_inclusive('\n').filter(|line| !line.starts_with("bob:"));
        others.collect::<String>()
    };
    let bob = json!({ "name": "bob" });
    let done = host("");
    done.run("job", "node.user.delete", &bob).unwrap();
    let record = fs::read_to_string(done.entry("done", "job")).unwrap();
    let planned = record.lines().find(|line| line.starts_with("{\"planned\"")).unwrap();
    // An agent was killed when the tool had written the tables, and not come to the files.
    let host = host("");
    fs::create_dir(host.path("/home/bob/letters")).unwrap();
    host.write("/home/bob/letters/first", "dear\n");
    fs::write(host.entry("open", "job"), planned).unwrap();
    for table in ["/etc/passwd", "/etc/shadow", "/etc/group"] {
        host.write(table, &lines(&host.read(table)));
    }
    host.executor.settle().unwrap();
    host.run("job", "node.user.delete", &bob).unwrap();
    assert!(!host.path("/home/bob").exists());
    // The tool itself fails there.
    let host = self::host("");
    let left = "mkdir -p \"$root/home/bob/letters\"; chown 1500 \"$root/home/bob\" || :; exit 12\n";
    fs::write(host.dir().join("after-userdel"), left).unwrap();
    host.run("job", "node.user.delete", &bob).unwrap();
    assert!(!host.path("/home/bob").exists());
    // What cannot be removed is no success.
    let host = self::host("");
    fs::write(host.dir().join("after-userdel"), left).unwrap();
    fs::write(host.dir().join("fail-rm"), "").unwrap();
    let error = host.run("job", "node.user.delete", &bob).unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed, "{error}");
    assert!(
        host.read("/etc/passwd").contains("bob:") && host.read("/etc/group").contains("bob:x:1500")
    );
}
