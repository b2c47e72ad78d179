use serde_json::{Value as Json, json};

use super::*;
use crate::provider::tests::Fake;

/// root, two administrators of whom one is locked, and somebody from the distribution.
fn host() -> Fake {
    let passwd = "root:x:0:0:root:/root:/bin/bash\n\
                  daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
                  bob:x:1000:1000:Bob,,,:/home/bob:/bin/bash\n\
                  eve:x:1001:100::/home/eve:/bin/bash\n\
                  Debian-exim:x:105:27::/var/spool/exim4:/usr/sbin/nologin\n\
                  osapi:x:990:990::/var/lib/osapi:/usr/sbin/nologin\n\
                  broken\n";
    let group = "root:x:0:\ndaemon:x:1:\nsudo:x:27:bob,eve\nusers:x:100:\nbob:x:1000:\n\
                 docker:x:998:bob\nosapi:x:990:\n";
    let shadow = "root:*:1::::::\ndaemon:*:1::::::\nbob:$6$x$y:1::::::\neve:!$6$x$y:1::::::\n\
                  Debian-exim:!:1::::::\nosapi:!*:1::::::\n";
    let fake = Fake::with(&[("/etc/passwd", passwd), ("/etc/group", group)]);
    fake.put("/etc/shadow", shadow);
    fake.put("/bin/bash", "");
    fake.put("/usr/sbin/nologin", "");
    fake.put("/etc/login.defs", "# comment\nUID_MIN\t\t 1000\nSYS_UID_MAX 989\n");
    fake.put("/etc/default/useradd", "# HOME=/x\nSHELL=/bin/bash\n");
    fake
}

fn run(fake: &Fake, verb: &str, params: Json) -> Result<Json, Kind> {
    fake.run(&format!("node.user.{verb}"), params, "")
}

/// What `verb` would assign, on a host where no command is.
fn wanted(fake: &Fake, verb: &str, params: &Json) -> Result<Json, Kind> {
    let op = crate::ops::agent(&format!("node.user.{verb}")).unwrap();
    let view = fake.view();
    let intent = op.run.intend(&view, params).map_err(|error| error.kind())?;
    let crate::op::Intent::Want(want) = intent else { panic!("{verb} writes") };
    let plan = crate::host::Plan::of(&view, want).map_err(|error| error.kind())?;
    let changes = plan.changes(&view).into_iter();
    Ok(changes.map(|change| json!({ "cell": change.cell, "to": change.to })).collect())
}

#[test]
fn accounts_are_told_with_their_groups_and_locks() {
    let users = run(&host(), "list", json!({})).unwrap();
    let told = |name: &str| {
        let users = users["users"].as_array().unwrap();
        users.iter().find(|user| user["name"] == name).unwrap().clone()
    };
    assert_eq!(users["users"].as_array().unwrap().len(), 6);
    let bob = json!({
        "name": "bob", "uid": 1000, "gid": 1000, "home": "/home/bob", "shell": "/bin/bash",
        "groups": ["bob", "docker", "sudo"], "locked": false,
    });
    assert_eq!(told("bob"), bob);
    assert_eq!(run(&host(), "get", json!({ "name": "bob" })).unwrap()["users"], json!([bob]));
    assert_eq!(told("eve")["groups"], json!(["users", "sudo"]));
    for (name, locked) in [("eve", true), ("root", true), ("osapi", true), ("Debian-exim", true)] {
        assert_eq!(told(name)["locked"], locked, "{name}");
    }
}

#[test]
fn who_may_not_read_passwords_says_nothing_of_locks() {
    let fake = host();
    fake.remove("/etc/shadow");
    let users = run(&fake, "get", json!({ "name": "bob" })).unwrap();
    assert_eq!(users["users"][0].get("locked"), None);
}

#[test]
fn an_account_nobody_has_is_not_found() {
    for (verb, params) in [
        ("get", json!({ "name": "ada" })),
        ("update", json!({ "name": "ada", "lock": true })),
        ("delete", json!({ "name": "ada" })),
        ("password", json!({ "name": "ada", "password": "x" })),
    ] {
        assert_eq!(run(&host(), verb, params), Err(Kind::NotFound), "{verb}");
    }
}

#[test]
fn a_new_account_gets_the_next_number_and_the_hosts_defaults() {
    let made = |params: Json, kind: &str| {
        let changes = wanted(&host(), "create", &params).unwrap();
        let mut changes = changes.as_array().unwrap().iter();
        let change = changes.find(|change| !change["to"][kind].is_null());
        change.map_or(Json::Null, |change| change["to"][kind].clone())
    };
    let account = |params: Json| made(params, "account");
    let ada = account(json!({ "name": "ada", "groups": ["sudo", "100", "sudo"] }));
    let expected = json!({
        "uid": 1002, "group": "ada", "groups": ["sudo", "users"], "comment": "",
        "home": "/home/ada", "has_home": true, "shell": "/bin/bash",
    });
    assert_eq!(ada, expected);
    assert_eq!(account(json!({ "name": "ada", "system": true }))["uid"], 989);
    assert_eq!(account(json!({ "name": "ada", "gid": 0 }))["group"], "root");
    assert_eq!(account(json!({ "name": "ada", "uid": 7 }))["uid"], 7);
    // Its own group has its number, if that is nobody's.
    for (params, gid) in [
        (json!({ "name": "ada" }), json!({ "gid": 1002 })),
        (json!({ "name": "ada", "uid": 7 }), json!({ "gid": 7 })),
        (json!({ "name": "ada", "uid": 998 }), json!({ "gid": 1001 })),
        (json!({ "name": "ada", "uid": 27, "system": true }), json!({ "gid": 989 })),
        (json!({ "name": "ada", "gid": 100 }), Json::Null),
    ] {
        assert_eq!(made(params.clone(), "group"), gid, "{params}");
    }
}

#[test]
fn what_is_there_is_as_wanted_or_in_the_way() {
    let fake = host();
    let create = |params: Json| wanted(&fake, "create", &params);
    assert_eq!(create(json!({ "name": "bob" })), Ok(json!([])));
    assert_eq!(
        create(json!({ "name": "bob", "uid": 1000, "groups": ["docker", "sudo"] })),
        Ok(json!([]))
    );
    assert_eq!(create(json!({ "name": "bob", "uid": 5 })), Err(Kind::Conflict));
    assert_eq!(create(json!({ "name": "bob", "groups": [] })), Err(Kind::Conflict));
    assert_eq!(create(json!({ "name": "bob", "password": "x" })), Err(Kind::Conflict));
    // The numbers of others, root's among them, and a group of that name.
    for (name, uid) in [("ada", 0), ("ada", 1000)] {
        assert_eq!(create(json!({ "name": name, "uid": uid })), Err(Kind::Conflict), "{uid}");
    }
    assert_eq!(create(json!({ "name": "docker" })), Err(Kind::Conflict));
    assert!(create(json!({ "name": "docker", "gid": 998 })).is_ok());
}

#[test]
fn what_the_host_does_not_have_is_refused() {
    for params in [
        json!({ "name": "ada", "gid": 4242 }),
        json!({ "name": "ada", "groups": ["nobody-knows"] }),
        json!({ "name": "ada", "shell": "/bin/none" }),
        json!({ "name": "ada", "shell": "/bin" }),
        json!({ "name": "ada", "uid": u32::MAX }),
    ] {
        assert_eq!(wanted(&host(), "create", &params), Err(Kind::InvalidInput), "{params}");
    }
}

#[test]
fn an_update_changes_what_it_names_and_nothing_else() {
    let fake = host();
    let update = |params: Json| wanted(&fake, "update", &params);
    assert_eq!(update(json!({ "name": "bob" })), Err(Kind::InvalidInput));
    assert_eq!(
        update(json!({ "name": "bob", "lock": false, "shell": "/bin/bash" })),
        Ok(json!([]))
    );
    let eve = update(json!({ "name": "eve", "groups": [] })).unwrap();
    assert_eq!(eve[0]["to"]["account"]["groups"], json!([]));
    let unlocked = update(json!({ "name": "eve", "lock": false })).unwrap();
    assert_eq!(unlocked[0]["to"]["password"]["locked"], false);
    assert_eq!(unlocked[0]["to"]["password"]["hash"], "", "a digest could be tried out");
    assert_eq!(update(json!({ "name": "root", "lock": true })), Ok(json!([])), "it is already");
    assert_eq!(
        update(json!({ "name": "root", "lock": false })),
        Err(Kind::Conflict),
        "no password"
    );
}

#[test]
fn whom_the_host_cannot_do_without_is_protected() {
    let fake = host();
    for (verb, params) in [
        ("delete", json!({ "name": "root" })),
        ("delete", json!({ "name": "osapi" })),
        ("update", json!({ "name": "osapi", "home": "/srv/osapi" })),
        ("update", json!({ "name": "osapi", "shell": "/bin/bash" })),
        ("update", json!({ "name": "osapi", "groups": ["sudo"] })),
        ("update", json!({ "name": "bob", "lock": true })),
        ("update", json!({ "name": "root", "shell": "/usr/sbin/nologin" })),
    ] {
        assert_eq!(wanted(&fake, verb, &params), Err(Kind::Protected), "{verb} {params}");
    }
    assert_eq!(wanted(&fake, "update", &json!({ "name": "osapi", "groups": [] })), Ok(json!([])));
    // With another who has a password, one may lose it.
    let shadow = fake.text("/etc/shadow").unwrap().replace("eve:!", "eve:");
    fake.put("/etc/shadow", &shadow);
    assert!(wanted(&fake, "update", &json!({ "name": "bob", "lock": true })).is_ok());
}

/// On most hosts of a cloud nobody has a password.
#[test]
fn the_last_administrator_is_protected_whether_the_password_is_locked_or_not() {
    let ways = |name: &str| {
        [
            ("delete", json!({ "name": name })),
            ("update", json!({ "name": name, "groups": ["docker"] })),
            ("update", json!({ "name": name, "shell": "/usr/sbin/nologin" })),
        ]
    };
    let fake = host();
    // There are two who may log in with their keys.
    for (verb, params) in ways("bob").iter().chain(&ways("eve")) {
        assert!(wanted(&fake, verb, params).is_ok(), "{verb} {params}");
    }
    let group = fake.text("/etc/group").unwrap();
    for (name, members) in [("bob", "bob"), ("eve", "eve")] {
        fake.put(
            "/etc/group",
            &group.replace("sudo:x:27:bob,eve", &format!("sudo:x:27:{members}")),
        );
        for (verb, params) in ways(name) {
            assert_eq!(wanted(&fake, verb, &params), Err(Kind::Protected), "{verb} {params}");
        }
    }
    let lock = json!({ "name": "eve", "lock": true });
    assert!(wanted(&fake, "update", &lock).is_ok(), "she was locked already");
}

#[test]
fn the_group_of_an_account_goes_with_it_if_it_is_nobody_elses() {
    let goes = |passwd: &str, members: &str| {
        let fake = host();
        fake.put("/etc/passwd", &(fake.text("/etc/passwd").unwrap() + passwd));
        let group = fake.text("/etc/group").unwrap();
        fake.put("/etc/group", &group.replace("bob:x:1000:", &format!("bob:x:1000:{members}")));
        let changes = wanted(&fake, "delete", &json!({ "name": "bob" })).unwrap();
        changes.as_array().unwrap().iter().any(|change| change["cell"]["group"] == "bob")
    };
    assert!(goes("", ""));
    assert!(goes("", "bob"), "itself");
    assert!(goes("", "nobody-knows"), "no account");
    assert!(!goes("", "eve") && !goes("", "bob,eve"));
    assert!(!goes("al:x:1002:1000::/home/al:/bin/bash\n", ""), "it is that of another account");
}

#[test]
fn a_home_that_would_belong_to_a_new_account_is_not_taken_over() {
    let fake = host();
    fake.put("/home/ada/letters", "private");
    let home = fake.at("/home/ada");
    if std::os::unix::fs::chown(&home, Some(1002), Some(1002)).is_err() {
        return;
    }
    assert_eq!(wanted(&fake, "create", &json!({ "name": "ada" })), Err(Kind::Conflict));
    assert!(wanted(&fake, "create", &json!({ "name": "ada", "uid": 1003 })).is_ok());
}

#[test]
fn a_password_is_planned_alike_and_verified() {
    let fake = host();
    let params = json!({ "name": "bob", "password": "correct horse" });
    let view = fake.view();
    let secret = || Secret::try_from("correct horse".to_owned()).unwrap();
    let (one, two) =
        (view.password("bob", &secret()).unwrap(), view.password("bob", &secret()).unwrap());
    let plan = |state| crate::host::Plan::of(&view, Want::new().set(state)).unwrap();
    let (one, two) = (plan(one), plan(two));
    assert_eq!(serde_json::to_string(&one).unwrap(), serde_json::to_string(&two).unwrap());
    assert_eq!(wanted(&fake, "password", &params).unwrap().as_array().unwrap().len(), 1);
    let hash = crate::sys::hash("correct horse", "0123456789abcdef").unwrap();
    let shadow = fake.text("/etc/shadow").unwrap().replace("bob:$6$x$y", &format!("bob:{hash}"));
    fake.put("/etc/shadow", &shadow);
    assert_eq!(wanted(&fake, "password", &params), Ok(json!([])));
    // What is locked stays so.
    let shadow = shadow.replace("bob:", "bob:!");
    fake.put("/etc/shadow", &shadow);
    let other = wanted(&fake, "password", &json!({ "name": "bob", "password": "other" })).unwrap();
    assert_eq!(other[0]["to"]["password"]["locked"], true);
}

#[test]
fn names_are_what_every_tool_takes() {
    for name in ["ada", "_apt", "a-b_c9", "host$", &"a".repeat(32)] {
        assert!(NewName::try_from(name.to_owned()).is_ok(), "{name:?}");
    }
    for name in
        ["", "-r", "9a", "Ada", "a.b", "a b", "a:b", "a\n", "a/b", "$", "a$b", "ü", &"a".repeat(33)]
    {
        assert!(NewName::try_from(name.to_owned()).is_err(), "{name:?}");
    }
    for place in ["", "home", "/", "/home/../etc", "/home/a:b", "/home/a\nb", "/home/"] {
        assert!(Place::try_from(place.to_owned()).is_err(), "{place:?}");
    }
}
