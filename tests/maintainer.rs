//! The scripts of the package, with everything that they run in the hands of the test.
#![expect(clippy::disallowed_methods, reason = "runs what dpkg runs")]

use std::process::{Command, Output};

/// What the scripts find in the place of the host's commands. There are no others.
const HOST: &str = r#"
getent() { [ -n "$ENTRY" ] && echo "$ENTRY"; }
userdel() { echo "userdel $*"; return "$USERDEL"; }
osapi() { echo "osapi $*" >&2; [ "$1" != "$FAILS" ]; }
rm() { :; }
sed() { :; }
systemctl() { :; }
"#;

const OWN: &str = "osapi:x:998:998:OSAPI controller:/var/lib/osapi/controller:/usr/sbin/nologin";
const SOMEBODY: &str = "osapi:x:1000:1000:Olga Sapi:/home/osapi:/bin/bash";

fn script(name: &str, word: &str, environment: &[(&str, &str)]) -> Output {
    let path = format!("{}/debian/{name}", env!("CARGO_MANIFEST_DIR"));
    Command::new("/bin/sh")
        .args(["-c", &format!("{HOST}. \"{path}\""), "sh", word])
        .env_clear()
        .envs([("PATH", "/nonexistent"), ("ENTRY", ""), ("USERDEL", "0"), ("FAILS", "")])
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let streams = [&output.stdout[..], &output.stderr[..]];
    streams.map(String::from_utf8_lossy).concat()
}

#[test]
fn an_account_that_is_somebody_elses_is_not_taken_over() {
    let other_home = OWN.replace("/var/lib/osapi/controller", "/srv/osapi");
    for (entry, is_taken) in [("", true), (OWN, true), (SOMEBODY, false), (&other_home, false)] {
        let done = script("preinst", "install", &[("ENTRY", entry)]);
        assert_eq!(done.status.success(), is_taken, "{entry}: {}", said(&done));
        assert_eq!(said(&done).contains("account osapi already"), !is_taken, "{entry}");
        // What is there already goes on.
        assert!(script("preinst", "upgrade", &[("ENTRY", entry)]).status.success(), "{entry}");
    }
}

#[test]
fn purge_removes_the_account_that_the_package_made_and_no_other() {
    let other_use = OWN.replace("OSAPI controller", "Olga's sampler");
    let other_home = OWN.replace("/var/lib/osapi/controller", "/srv/osapi");
    for (entry, goes) in
        [("", false), (OWN, true), (SOMEBODY, false), (&other_use, false), (&other_home, false)]
    {
        let done = script("postrm", "purge", &[("ENTRY", entry)]);
        assert!(done.status.success(), "{entry}: {}", said(&done));
        assert_eq!(said(&done).contains("userdel osapi"), goes, "{entry}: {}", said(&done));
    }
    let done = script("postrm", "purge", &[("ENTRY", OWN), ("USERDEL", "8")]);
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("account osapi stays"), "{}", said(&done));
}

#[test]
fn what_waits_to_be_confirmed_is_taken_back_before_the_package_goes() {
    let done = script("prerm", "remove", &[]);
    let first = said(&done).lines().next().unwrap_or_default().to_owned();
    assert_eq!((done.status.success(), &*first), (true, "osapi settle-unconfirmed"));
    let done = script("prerm", "remove", &[("FAILS", "settle-unconfirmed")]);
    assert!(!done.status.success(), "{}", said(&done));
    assert!(!said(&done).contains("deployed"), "{}", said(&done));
    let done = script("prerm", "upgrade", &[]);
    assert_eq!((done.status.success(), &*said(&done)), (true, ""));
}
