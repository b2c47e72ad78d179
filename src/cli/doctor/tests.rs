//! Every check, once on a host with which nothing is wrong, and on hosts with which something is.

#![expect(clippy::disallowed_methods, reason = "lays files below a root of its own")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::cases::CASES;
use super::evidence::{Evidence, Need};
use super::*;
use crate::cli::survey::Answer;
use crate::config::{Loaded, Tls};
use crate::signing::Holder;

mod cases;

/// Seconds since 1970.
const NOW: u64 = 1_800_000_000;
const JOB: &str = "0198f0a0-0000-7000-8000-000000000001";
const AGENT: &str = "/var/lib/osapi/agent";
const CERT: &str = "/etc/osapi/tls/cert.pem";
const KEY: &str = "/etc/osapi/tls/key.pem";

/// A host below a directory, with what was found out about it.
struct Host {
    directory: TempDir,
    evidence: Evidence,
    _socket: UnixListener,
}

const FILES: &[(&str, u32, &str)] = &[
    ("/etc/fstab", 0o644, ""),
    ("/etc/group", 0o644, "root:x:0:\nosapi:x:900:\n"),
    ("/etc/hostname", 0o644, "web-1\n"),
    ("/etc/hosts", 0o644, "127.0.0.1 localhost\n127.0.1.1 web-1\n"),
    ("/etc/machine-id", 0o444, "0123456789abcdef0123456789abcdef\n"),
    ("/etc/osapi/osapi.yaml", 0o644, ""),
    ("/etc/passwd", 0o644, "root:x:0:0::/root:/bin/bash\nosapi:x:900:900::/:/usr/sbin/nologin\n"),
    ("/etc/shadow", 0o640, ""),
    ("/lib/modules/6.1.0/modules.dep", 0o644, ""),
    ("/proc/locks", 0o444, "1: POSIX  ADVISORY  WRITE 7 00:1a:1 0 EOF\n"),
    (
        "/proc/meminfo",
        0o444,
        "MemTotal: 8000 kB\nMemAvailable: 4000 kB\nSwapTotal: 100 kB\nSwapFree: 90 kB\n",
    ),
    ("/proc/self/mounts", 0o444, "a / ext4 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"),
    ("/proc/sys/kernel/hostname", 0o644, "web-1\n"),
    ("/proc/sys/kernel/osrelease", 0o444, "6.1.0\n"),
    ("/proc/sys/kernel/random/entropy_avail", 0o444, "256\n"),
    ("/proc/uptime", 0o444, "9000.12 1.0\n"),
    ("/proc/vmstat", 0o444, "nr_free_pages 1\noom_kill 0\n"),
    ("/sys/kernel/security/lsm", 0o444, "lockdown,landlock,apparmor\n"),
    ("/usr/bin/osapi", 0o755, ""),
    ("/var/lib/dpkg/lock-frontend", 0o640, ""),
    ("/var/lib/osapi/agent/key", 0o600, ""),
    ("/var/lib/osapi/agent/tell/waits", 0o600, ""),
    ("/var/lib/osapi/controller/controller-1.redb", 0o600, "small"),
    ("/var/log/journal/x", 0o640, ""),
    ("/var/tmp/x", 0o644, ""),
    ("/tmp/x", 0o644, ""),
];
const DIRECTORIES: &[(&str, u32)] = &[
    ("/etc/osapi", 0o755),
    ("/run/osapi", 0o755),
    ("/tmp", 0o1777),
    ("/var/lib/osapi/agent", 0o700),
    ("/var/lib/osapi/controller", 0o700),
    ("/var/tmp", 0o1777),
];

fn unit(id: &str) -> String {
    format!(
        "Id={id}\nLoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\n\
         Result=success\nNRestarts=0\nNeedDaemonReload=no\nMainPID=70\n"
    )
}

/// What a host answers with which nothing is wrong.
fn well(need: Need) -> Answer {
    let units =
        ["osapi-controller.service", "osapi-agent.service", "osapi.socket", "osapi-settle.service"];
    let spare = ["osapi-relay.service", "osapi-relay.socket"].map(|id| {
        unit(id)
            .replace("=active", "=inactive")
            .replace("=enabled", "=disabled")
            .replace("=70", "=0")
    });
    Answer::Told(match need {
        Need::Asks("/api/health") => json!({ "status": "ok" }),
        Need::Asks("/api/health/ready") => json!({ "status": "ready" }),
        Need::Asks("/api/health/status") => json!({
            "status": "ok",
            "components": { "agent": { "status": "ok" } },
            "object_stores": [{ "name": "files", "size": 1 }],
            "uptime": "3h",
        }),
        Need::Asks("/api/agent") => json!({ "agents": [{
            "hostname": "web-1",
            "state": "Ready",
            "conditions": [{ "type": "HighLoad", "status": false }],
        }] }),
        Need::Asks("/api/version") => json!({ "version": env!("CARGO_PKG_VERSION") }),
        Need::Asks("/api/agent/pending") => json!({ "agents": [], "total": 0 }),
        Need::Hosts("drift") => json!({ "drift": [] }),
        Need::Hosts(other) | Need::Asks(other) => panic!("nobody answers {other}"),
        Need::Says(line) => {
            let said = |words: &str| line.starts_with(words);
            if said("systemctl show") {
                units.map(unit).into_iter().chain(spare).collect::<Vec<_>>().join("\n").into()
            } else if said("systemctl is-enabled") {
                "enabled\n".into()
            } else if said("systemctl --no-pager") {
                "OSAPI_CONTROLLER_SOCKET=/run/osapi/osapi.sock\n".into()
            } else if said("systemctl is-system-running") {
                "running\n".into()
            } else if said("systemctl --version") {
                "systemd 252 (252.39-1~deb12u1)\n+PAM\n".into()
            } else if said("timedatectl") {
                "NTP=yes\nNTPSynchronized=yes\n".into()
            } else if said("dpkg-query") {
                format!("installed:{}-1", env!("CARGO_PKG_VERSION")).into()
            } else if said("getent group") {
                "root:x:0:\nwheel:x:10:ada\n".into()
            } else if said("dpkg --audit") || said("systemctl list-units") {
                "".into()
            } else {
                panic!("nobody says {line}")
            }
        }
        Need::Listener => json!({ "path": "/run/osapi/osapi.sock", "uid": 900 }),
        Need::Changes => json!({
            "unfinished": [{ "id": JOB, "created": "2027-01-15T07:59:00Z" }],
            "latest": [{ "id": JOB, "changed": true }],
        }),
        Need::Audit => json!({ "entries": 3, "anchored": 2, "compared": true, "faults": [] }),
        Need::Room => json!({ "/": {
            "total": 100_u64 << 30,
            "available": 50_u64 << 30,
            "inodes": 1000,
            "inodes_available": 900,
        } }),
    })
}

impl Host {
    fn well() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for (path, mode, text) in FILES {
            let path = root.join(&path[1..]);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(path, Permissions::from_mode(*mode)).unwrap();
        }
        std::fs::create_dir_all(root.join("run/osapi")).unwrap();
        std::fs::create_dir_all(root.join("proc/70")).unwrap();
        std::os::unix::fs::symlink("/usr/bin/osapi", root.join("proc/70/exe")).unwrap();
        let socket = UnixListener::bind(root.join("run/osapi/osapi.sock")).unwrap();
        let own = rustix::process::geteuid().as_raw();
        let mut loaded =
            Loaded { files: vec!["/etc/osapi/osapi.yaml".into()], ..Loaded::default() };
        loaded.config.controller.groups = [("wheel".to_owned(), "admin".to_owned())].into();
        loaded.config.controller.tls = Tls { cert: Some(CERT.into()), key: Some(KEY.into()) };
        let needs: BTreeSet<Need> = checks().flat_map(|check| check.needs).copied().collect();
        let evidence = Evidence {
            root: root.to_owned(),
            uid: own,
            root_uid: own,
            now: NOW * 1000,
            config: Ok(loaded),
            socket: "/run/osapi/osapi.sock".into(),
            agent_state: AGENT.into(),
            controller_state: "/var/lib/osapi/controller".into(),
            found: needs.into_iter().map(|need| (need, well(need))).collect(),
        };
        let host = Self { directory, evidence, _socket: socket };
        for (path, mode) in DIRECTORIES {
            host.mode(path, *mode);
        }
        host.mode("/run/osapi/osapi.sock", 0o666);
        host.touch("/var/lib/osapi/agent/tell/waits", NOW);
        host.certify(&|_| ());
        host
    }

    /// Lays out a key, and a certificate of it for some years, but for what `change` does to it.
    fn certify(&self, change: &dyn Fn(&mut CertificateParams)) {
        let mut params = CertificateParams::new(["web-1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2029, 1, 1);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        self.put(CERT, &params.self_signed(&key).unwrap().pem());
        self.put(KEY, &key.serialize_pem());
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(&path[1..])
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(std::fs::remove_file(&path));
        std::fs::write(path, text).unwrap();
    }

    fn mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.path(path), Permissions::from_mode(mode)).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }

    fn touch(&self, path: &str, at: u64) {
        let time = Timespec { tv_sec: at.cast_signed(), tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, self.path(path), &times, AtFlags::empty()).unwrap();
    }

    /// The answer to whatever is asked with these words.
    fn answer(&mut self, words: &str, answer: &Answer) {
        let mut found = 0;
        for (need, known) in &mut self.evidence.found {
            if let Need::Asks(line) | Need::Says(line) = need
                && line.starts_with(words)
                && !(line.len() > words.len() && words.starts_with("/api"))
            {
                *known = answer.clone();
                found += 1;
            }
        }
        assert_eq!(found, 1, "{words}");
    }

    fn tell(&mut self, words: &str, value: Value) {
        self.answer(words, &Answer::Told(value));
    }

    fn find(&mut self, need: Need, value: Value) {
        self.evidence.found.insert(need, Answer::Told(value)).unwrap();
    }

    /// The units, with one line in place of another in the one that is named.
    fn unit(&mut self, id: &str, from: &str, to: &str) {
        let Answer::Told(units) = well(Need::Says("systemctl show")) else { unreachable!() };
        let units = units.as_str().unwrap().split("\n\n").map(|unit| {
            let is_it = unit.starts_with(&format!("Id={id}\n"));
            if is_it { unit.replace(from, to) } else { unit.to_owned() }
        });
        let units = units.collect::<Vec<_>>().join("\n\n");
        self.tell("systemctl show", units.into());
    }

    /// Makes it a host whose controllers are elsewhere, and whose relay says `status`.
    fn relay(&mut self, status: &str) {
        let Answer::Told(units) = well(Need::Says("systemctl show")) else { unreachable!() };
        let units = units.as_str().unwrap().split("\n\n").map(|unit| {
            let (active, is_on) = ("ActiveState=active", "State=enabled");
            let relay = unit.starts_with("Id=osapi-relay");
            let controller = ["Id=osapi-controller", "Id=osapi.socket"];
            if relay {
                let unit = unit.replace("=inactive", "=active").replace("=disabled", "=enabled");
                format!("{}\nStatusText={status}\n", unit.trim_end())
            } else if controller.iter().any(|id| unit.starts_with(id)) {
                unit.replace(active, "ActiveState=inactive").replace(is_on, "State=disabled")
            } else {
                unit.to_owned()
            }
        });
        // Each block ends as the last one does.
        let units: Vec<_> = units.map(|unit| unit.trim_end().to_owned() + "\n").collect();
        self.tell("systemctl show", units.join("\n").into());
        self.config().config.agent.nats.url = Some("tls://broker:4222".to_owned());
    }

    fn room(&mut self, at: &str, name: &str, left: u64) {
        let Answer::Told(mut rooms) = well(Need::Room) else { unreachable!() };
        rooms[at] = rooms["/"].clone();
        rooms[at][name] = left.into();
        self.find(Need::Room, rooms);
    }

    fn config(&mut self) -> &mut Loaded {
        self.evidence.config.as_mut().unwrap()
    }

    /// What the check says, which knows nothing but what its row says that it needs.
    fn judge(&mut self, check: &Check) -> Finding {
        let all = std::mem::take(&mut self.evidence.found);
        let needs = |need: &Need| check.needs.contains(need);
        self.evidence.found = all.clone().into_iter().filter(|(need, _)| needs(need)).collect();
        let finding = (check.judge)(&self.evidence).unwrap_or_else(|skipped| skipped);
        self.evidence.found = all;
        finding
    }
}

#[test]
fn there_are_many_checks_and_each_has_a_name_of_its_own() {
    let ids: BTreeSet<_> = checks().map(|check| check.id).collect();
    assert_eq!(ids.len(), checks().count());
    assert!(ids.len() >= 30, "{}", ids.len());
    assert!(checks().all(|check| !check.title.is_empty()));
}

#[test]
fn nothing_is_wrong_with_a_host_that_is_well() {
    let mut host = Host::well();
    for check in checks() {
        let Finding { status, evidence, fix } = host.judge(check);
        assert_eq!(status, Status::Ok, "{}: {evidence}", check.id);
        assert!(!evidence.is_empty() && fix.is_empty(), "{}: {evidence} {fix}", check.id);
    }
}

#[test]
fn a_host_that_has_a_relay_does_not_lack_a_controller() {
    let mut host = Host::well();
    host.relay("Connected to tls://broker:4222");
    Holder::Agent.kept_or_made(&host.path(AGENT)).unwrap();
    host.evidence.socket = "/run/osapi/none.sock".into();
    let missing = Answer::Missing("nobody listens".to_owned());
    host.answer("/api/health", &missing);
    for check in checks() {
        let Finding { status, evidence, .. } = host.judge(check);
        assert!(status <= Status::Skipped, "{}: {evidence}", check.id);
    }
    let told = |host: &mut Host, id: &str| {
        let check = checks().find(|check| check.id == id).unwrap();
        host.judge(check).evidence
    };
    assert!(told(&mut host, "relay.key").starts_with("SHA256:"));
    assert!(told(&mut host, "controller.answers").contains("a relay instead"));
}

#[test]
fn every_check_fails_where_something_is_wrong_and_says_what_to_do() {
    let mut left: BTreeMap<_, _> = checks().map(|check| (check.id, check)).collect();
    for (id, status, word, spoil) in CASES {
        let mut host = Host::well();
        spoil(&mut host);
        let check = checks().find(|check| check.id == *id).unwrap();
        let found = host.judge(check);
        assert_eq!(found.status, *status, "{id}: {found:?}");
        assert!(found.evidence.contains(word), "{id}: {found:?}");
        assert!(!found.fix.is_empty(), "{id}: {found:?}");
        left.remove(id);
    }
    let left: Vec<_> = left.keys().collect();
    assert!(left.is_empty(), "nothing was seen to fail {left:?}");
}

#[test]
fn what_cannot_be_seen_is_skipped_and_nothing_to_mend() {
    let mut host = Host::well();
    for answer in host.evidence.found.values_mut() {
        *answer = Answer::Denied("you may not".into());
    }
    for check in checks().filter(|check| !check.needs.is_empty()) {
        let found = host.judge(check);
        let is_told = ["controller.answers", "caller.rights"].contains(&check.id);
        assert_eq!(found.status == Status::Skipped, !is_told, "{}: {found:?}", check.id);
    }
    let mut unserved = Host::well();
    unserved.config().config.controller.tls = Tls::default();
    unserved.tell("systemctl is-enabled", "disabled\n".into());
    for check in checks().filter(|check| check.id.starts_with("tls.")) {
        assert_eq!(unserved.judge(check).status, Status::Skipped, "{}", check.id);
    }
    // As the drop-in sets it.
    let set = format!("OSAPI_CONTROLLER_TLS_CERT={CERT} OSAPI_CONTROLLER_TLS_KEY={KEY}\n");
    unserved.tell("systemctl --no-pager", set.into());
    for check in checks().filter(|check| check.id.starts_with("tls.")) {
        assert_eq!(unserved.judge(check).status, Status::Ok, "{}", check.id);
    }
    host.put("/run/systemd/container", "systemd-nspawn\n");
    for check in checks() {
        if ["clock.synchronised", "kernel.modules", "memory.kills"].contains(&check.id) {
            assert_eq!(host.judge(check).status, Status::Skipped, "{}", check.id);
        }
    }
}

#[test]
fn all_of_it_is_told_in_order_with_what_to_type() {
    let mut host = Host::well();
    host.tell("/api/health/ready", json!({ "status": "not_ready" }));
    host.put("/etc/hostname", "web-2\u{1b}[2J\n");
    let judged = judge(checks(), &Arc::new(host.evidence), Duration::from_mins(10));
    let ids: Vec<_> = judged.iter().map(|judged| judged.id).collect();
    assert_eq!(ids, checks().map(|check| check.id).collect::<Vec<_>>());
    let text = page(&judged, Page::default());
    for part in [
        "FAIL  agent.ready",
        "$ systemctl restart osapi-agent.service",
        "WARN  host.name",
        "1 failed, 1 warnings, 0 skipped",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
    let document = serde_json::to_value(&judged[0]).unwrap();
    let fields: Vec<_> = document.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["id", "title", "status", "evidence", "fix"]);
    assert_eq!(document["status"], "ok");
}
