use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use serde_json::json;

use super::*;
use crate::provider::tests::Fake;

/// A host with a home and an account for whoever runs this.
fn host() -> Fake {
    accounts(Fake::with(&[("/home/me/.profile", "old\n")]))
}

fn accounts(fake: Fake) -> Fake {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    fake.put("/etc/passwd", &format!("me:x:{uid}:{gid}::/home/me:/bin/sh\n"));
    fake.put("/etc/group", &format!("us:x:{gid}:\n"));
    fake
}

fn deploy_as(fake: &Fake, content: &str, params: Json) -> Result<bool, Kind> {
    let mut all = json!({ "object_name": "object", "content_type": "raw" });
    let (Json::Object(all), Json::Object(params)) = (&mut all, params) else { panic!() };
    all.extend(params);
    Ok(fake.run("file.deploy.execute", json!(all), content)?["changed"] == true)
}

fn deploy(fake: &Fake, content: &str, path: &str) -> Result<bool, Kind> {
    deploy_as(fake, content, json!({ "path": path }))
}

fn undeploy(fake: &Fake, path: &str) -> Result<bool, Kind> {
    let result = fake.run("file.undeploy.execute", json!({ "path": path }), "")?;
    Ok(result["changed"] == true)
}

fn status(fake: &Fake, path: &str) -> Json {
    fake.run("file.status.get", json!({ "path": path }), "").unwrap()
}

fn mode(fake: &Fake, path: &str) -> u32 {
    std::fs::symlink_metadata(fake.at(path)).unwrap().mode() & 0o7777
}

#[test]
fn what_was_there_before_comes_back() {
    let (fake, path) = (host(), "/home/me/.profile");
    assert_eq!(deploy(&fake, "one", path), Ok(true));
    assert_eq!(deploy(&fake, "one", path), Ok(false));
    assert_eq!(deploy(&fake, "two", path), Ok(true));
    assert_eq!(fake.text(path).unwrap(), "two");
    assert_eq!(undeploy(&fake, path), Ok(true));
    assert_eq!(fake.text(path).unwrap(), "old\n");
    assert_eq!(undeploy(&fake, path), Ok(false));
    assert_eq!(deploy(&fake, "three", path), Ok(true));
    assert_eq!(undeploy(&fake, path), Ok(true));
    assert_eq!(fake.text(path).unwrap(), "old\n");
}

#[test]
fn what_others_removed_can_be_given_back_and_is_forgotten() {
    let (fake, path) = (host(), "/home/me/new");
    assert_eq!(deploy(&fake, "one", path), Ok(true));
    fake.remove(path);
    let drift = |fake: &Fake| fake.run("node.drift.get", json!({}), "").unwrap()["drift"].clone();
    assert_ne!(drift(&fake), json!([]));
    assert_eq!(undeploy(&fake, path), Ok(false));
    assert_eq!(drift(&fake), json!([]));
}

#[test]
fn osapi_does_not_change_its_own_memory() {
    // A host whose agent keeps its memory where files can be put.
    let fake = accounts(Fake::remembering_in("/home/me/.local/state/osapi/agent"));
    for path in ["agent/key", "controller/controller-1.redb", "x"] {
        let path = format!("/home/me/.local/state/osapi/{path}");
        assert_eq!(deploy(&fake, "x", &path), Err(Kind::InvalidInput), "{path}");
    }
    assert_eq!(deploy(&fake, "x", "/home/me/.local/state/osapi-x"), Ok(true));
}

#[test]
fn directories_are_made_and_go_with_what_they_were_made_for() {
    let fake = host();
    assert_eq!(deploy(&fake, "one", "/home/me/a/b/one"), Ok(true));
    assert_eq!(deploy(&fake, "two", "/home/me/a/two"), Ok(true));
    assert_eq!(mode(&fake, "/home/me/a/b"), 0o755);
    assert_eq!(undeploy(&fake, "/home/me/a/b/one"), Ok(true));
    assert!(!fake.at("/home/me/a/b").exists() && fake.at("/home/me/a/two").exists());
    fake.put("/home/me/a/of others", "");
    assert_eq!(undeploy(&fake, "/home/me/a/two"), Ok(true));
    assert!(fake.at("/home/me/a/of others").exists());
}

#[test]
fn mode_and_owner_are_those_asked_for() {
    let (fake, path) = (host(), "/home/me/x");
    assert_eq!(deploy(&fake, "x", path), Ok(true));
    assert_eq!(mode(&fake, path), 0o644);
    let gid = rustix::process::getegid().as_raw().to_string();
    let params = json!({ "path": path, "mode": "04750", "owner": "me", "group": gid });
    assert_eq!(deploy_as(&fake, "x", params.clone()), Ok(true));
    assert_eq!(mode(&fake, path), 0o4750);
    assert_eq!(deploy_as(&fake, "x", params), Ok(false));
    std::fs::set_permissions(fake.at(path), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(deploy(&fake, "x", path), Ok(true));
    assert_eq!(mode(&fake, path), 0o644);
}

#[test]
fn an_account_that_is_not_there_owns_nothing() {
    for params in [
        json!({ "path": "/home/x", "owner": "nobody-here" }),
        json!({ "path": "/home/x", "group": "nobody-here" }),
        json!({ "path": "/home/x", "owner": "4294967295" }),
        json!({ "path": "/home/x", "mode": "0888" }),
        json!({ "path": "/home/x", "mode": "rw" }),
        json!({ "path": "/home/x", "owner": "-R" }),
        json!({ "path": "/home/x", "owner": null }),
    ] {
        let fake = host();
        assert_eq!(deploy_as(&fake, "x", params.clone()), Err(Kind::InvalidInput), "{params}");
        assert!(!fake.at("/home/x").exists(), "{params}");
    }
}

#[test]
fn what_osapi_never_set_is_not_taken_away() {
    let fake = host();
    for path in ["/home/me/.profile", "/home/me", "/no/such"] {
        assert_eq!(undeploy(&fake, path), Err(Kind::NotFound), "{path}");
    }
    assert!(fake.at("/home/me/.profile").exists());
}

#[test]
fn status_compares_with_what_is_there() {
    let (fake, path) = (host(), "/home/me/.profile");
    let digest = |text: &str| crate::host::cell::Digest::of(text).to_string();
    assert_eq!(status(&fake, path), json!({ "path": path, "status": "missing" }));
    deploy(&fake, "new", path).unwrap();
    let expected = json!({ "path": path, "status": "in-sync", "sha256": digest("new") });
    assert_eq!(status(&fake, path), expected);
    fake.put(path, "edited");
    let expected = json!({ "path": path, "status": "drifted", "sha256": digest("edited") });
    assert_eq!(status(&fake, path), expected);
    std::fs::remove_file(fake.at(path)).unwrap();
    assert_eq!(status(&fake, path), json!({ "path": path, "status": "missing" }));
    let private = json!({ "path": path, "mode": "0600" });
    deploy_as(&fake, "secret", private).unwrap();
    assert_eq!(status(&fake, path), json!({ "path": path, "status": "in-sync" }));
}

#[test]
fn templates_are_refused_until_they_are_rendered() {
    let fake = host();
    for params in [
        json!({ "path": "/home/x", "content_type": "template" }),
        json!({ "path": "/home/x", "vars": { "a": 1 } }),
    ] {
        assert_eq!(deploy_as(&fake, "x", params.clone()), Err(Kind::InvalidInput), "{params}");
    }
    let params = json!({ "path": "/home/x", "vars": {} });
    assert_eq!(deploy_as(&fake, "x", params), Ok(true));
}

#[test]
fn a_file_goes_where_files_belong() {
    let fake = host();
    for path in [
        "/proc/sys/vm/swappiness",
        "/sys/power/state",
        "/dev/null",
        "/var/lib/osapi/agent/key",
        "/run/osapi/agent.sock",
        "/home/me/.profile/x",
        "/home/../etc/x",
        "etc/x",
    ] {
        assert_eq!(deploy(&fake, "x", path), Err(Kind::InvalidInput), "{path}");
    }
    assert_eq!(deploy(&fake, "x", "/home/me"), Err(Kind::Conflict));
    assert_eq!(deploy(&fake, "x", "/process"), Ok(true));
    let params = json!({ "path": "/home/x", "object_name": "unknown" });
    assert_eq!(deploy_as(&fake, "x", params), Err(Kind::NotFound));
}

#[test]
fn a_link_is_replaced_and_not_followed() {
    let fake = host();
    symlink("/etc/passwd", fake.at("/home/me/link")).unwrap();
    let accounts = fake.text("/etc/passwd");
    assert_eq!(deploy(&fake, "x", "/home/me/link"), Ok(true));
    assert_eq!(fake.text("/etc/passwd"), accounts);
    assert_eq!(undeploy(&fake, "/home/me/link"), Ok(true));
    assert!(fake.at("/home/me/link").is_symlink());
}

#[test]
fn a_link_on_the_way_leads_nowhere() {
    let fake = host();
    for directory in ["/tmp", "/srv"] {
        std::fs::create_dir(fake.at(directory)).unwrap();
        symlink("/etc", fake.at(&format!("{directory}/link"))).unwrap();
        deploy(&fake, "x", &format!("{directory}/link/new")).unwrap_err();
        assert!(!fake.at("/etc/new").exists());
    }
}

#[test]
fn what_another_operation_keeps_is_left_to_it() {
    let fake = host();
    fake.put("/proc/sys/vm/swappiness", "60\n");
    let params = json!({ "key": "vm.swappiness", "value": "1" });
    fake.run("node.sysctl.create", params, "").unwrap();
    let path = "/etc/sysctl.d/osapi-vm.swappiness.conf";
    assert_eq!(deploy(&fake, "x", path), Err(Kind::Conflict));
    assert_eq!(undeploy(&fake, path), Err(Kind::Conflict));
}

#[test]
fn a_mode_is_octal() {
    for (text, bits) in
        [("644", 0o644), ("0644", 0o644), ("4755", 0o4755), ("01777", 0o1777), ("000", 0)]
    {
        assert_eq!(FileMode::try_from(text.to_owned()).map(|mode| mode.0), Ok(bits), "{text}");
    }
    for text in ["", "7", "77", "0888", "17777", "077777", "0o644", "-644", "+644", "64 "] {
        assert!(FileMode::try_from(text.to_owned()).is_err(), "{text}");
    }
}
