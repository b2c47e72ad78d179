//! Every check, once on a host with which nothing is wrong, and on hosts with which something is.

#![expect(clippy::disallowed_methods, reason = "lays files below a root of its own")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::evidence::{Evidence, Need};
use super::*;
use crate::cli::survey::Answer;
use crate::config::{Inert, Loaded};

/// Seconds since 1970.
const NOW: u64 = 1_800_000_000;
const JOB: &str = "0198f0a0-0000-7000-8000-000000000001";
const AGENT: &str = "/var/lib/osapi/agent";

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
        Need::Asks("/api/node/_any/drift") => json!({ "drift": [] }),
        Need::Asks(other) => panic!("nobody answers {other}"),
        Need::Says(line) => {
            let said = |words: &str| line.starts_with(words);
            if said("systemctl show") {
                units.map(unit).join("\n").into()
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
        host
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

/// What is wrong, what the check says then, and a word of it.
type Case = (&'static str, Status, &'static str, fn(&mut Host));

use Status::{Fail, Warn};

const CASES: &[Case] = &[
    ("controller.answers", Fail, "nothing listens", |h| {
        h.answer("/api/health", &Answer::Missing("nothing listens".into()));
    }),
    ("controller.listener", Fail, "the account 4242", |h| {
        h.find(Need::Listener, json!({ "path": "/run/osapi/osapi.sock", "uid": 4242 }));
    }),
    ("controller.health", Fail, "store: there is no room", |h| {
        let components = json!({ "store": { "error": "there is no room left" }, "agent": {} });
        h.tell("/api/health/status", json!({ "status": "degraded", "components": components }));
    }),
    ("caller.rights", Warn, "health:read", |h| {
        h.answer("/api/health/status", &Answer::Denied("you lack health:read".into()));
    }),
    ("version.agree", Warn, "the controller is 9.9", |h| {
        h.tell("/api/version", json!({ "version": "9.9" }));
    }),
    ("version.package", Warn, "the package is 1:9.9-1", |h| {
        h.tell("dpkg-query", "installed:1:9.9-1".into());
    }),
    ("version.package", Fail, "is half-configured", |h| {
        h.tell("dpkg-query", "half-configured:0.1.0-1".into());
    }),
    ("version.running", Warn, "osapi-controller.service, osapi-agent", |h| {
        h.remove("/proc/70/exe");
        std::os::unix::fs::symlink("/usr/bin/osapi (deleted)", h.path("/proc/70/exe")).unwrap();
    }),
    ("agent.ready", Fail, "no agent is ready", |h| {
        let told = json!({ "status": "not_ready", "error": "no agent is ready" });
        h.tell("/api/health/ready", told);
    }),
    ("agent.conditions", Warn, "web-1: DiskPressure: 95%", |h| {
        let condition = json!({ "type": "DiskPressure", "status": true, "reason": "95% of /" });
        let agent = json!({ "hostname": "web-1", "state": "Ready", "conditions": [condition] });
        h.tell("/api/agent", json!({ "agents": [agent] }));
    }),
    ("agent.scheduling", Warn, "drained: web-1", |h| {
        let agent = json!({ "hostname": "web-1", "state": "Cordoned" });
        h.tell("/api/agent", json!({ "agents": [agent] }));
    }),
    ("unit.controller", Fail, "is failed", |h| {
        h.unit("osapi-controller.service", "ActiveState=active", "ActiveState=failed");
    }),
    ("unit.agent", Fail, "is masked", |h| {
        h.unit("osapi-agent.service", "LoadState=loaded", "LoadState=masked");
    }),
    ("unit.agent", Fail, "is inactive", |h| {
        h.unit("osapi-agent.service", "ActiveState=active", "ActiveState=inactive");
    }),
    ("unit.socket", Fail, "is inactive", |h| {
        h.unit("osapi.socket", "ActiveState=active", "ActiveState=inactive");
    }),
    ("unit.boot", Warn, "osapi-agent.service", |h| {
        h.unit("osapi-agent.service", "State=enabled", "State=disabled");
    }),
    ("unit.settle", Fail, "exit-code", |h| {
        h.unit("osapi-settle.service", "Result=success", "Result=exit-code");
    }),
    ("unit.restarts", Warn, "5 times", |h| {
        h.unit("osapi-agent.service", "NRestarts=0", "NRestarts=5");
    }),
    ("unit.reloaded", Warn, "osapi.socket", |h| {
        h.unit("osapi.socket", "NeedDaemonReload=no", "NeedDaemonReload=yes");
    }),
    ("jobs.left", Warn, "osapi-job-x.1.service ended badly", |h| {
        let said = "osapi-job-x.1.service loaded failed failed OSAPI job x, part 1\n\
                    osapi-job-y.1.service loaded activating start OSAPI job y, part 1\n";
        h.tell("systemctl list-units --all", said.into());
    }),
    ("jobs.old", Warn, "has not ended for 8d", |h| {
        let job = json!({ "id": JOB, "created": "2027-01-07T07:00:00Z" });
        h.find(Need::Changes, json!({ "unfinished": [job], "latest": [] }));
    }),
    ("jobs.unconfirmed", Warn, "2027-01-15T08:00:00Z", |h| {
        let job = json!({ "id": JOB, "waiting_until": "2027-01-15T08:00:00Z" });
        h.find(Need::Changes, json!({ "unfinished": [], "latest": [job] }));
    }),
    ("drift", Warn, "sysctl vm.swappiness", |h| {
        let drift = json!({ "cell": { "sysctl": "vm.swappiness" }, "job": JOB });
        h.tell("/api/node/_any/drift", json!({ "drift": [drift] }));
    }),
    ("audit.whole", Fail, "link 3 was edited", |h| {
        h.find(Need::Audit, json!({ "faults": ["link 3 was edited"], "compared": true }));
    }),
    ("audit.heads", Warn, "nothing that it could be compared", |h| {
        h.find(Need::Audit, json!({ "faults": [], "compared": true, "anchored": 0 }));
    }),
    ("objects.room", Warn, "95% of", |h| {
        let size = (1_u64 << 30) / 100 * 96;
        h.tell("/api/health/status", json!({ "object_stores": [{ "size": size }] }));
    }),
    ("groups.exist", Warn, "nobody knows gone", |h| {
        h.config().config.controller.groups.insert("gone".into(), "read".into());
    }),
    ("socket.open", Fail, "there is nothing", |h| h.remove("/run/osapi/osapi.sock")),
    ("socket.open", Fail, "is no socket", |h| h.put("/run/osapi/osapi.sock", "")),
    ("socket.open", Warn, "has 0600", |h| h.mode("/run/osapi/osapi.sock", 0o600)),
    ("socket.place", Fail, "has 0777", |h| h.mode("/run/osapi", 0o777)),
    ("config.valid", Fail, "line 3", |h| h.evidence.config = Err("line 3: no such key".into())),
    ("config.inert", Warn, "controller.nats", |h| {
        let inert = Inert { key: "controller.nats".into(), why: "there is no broker" };
        h.config().inert.insert(inert);
    }),
    ("config.guarded", Fail, "osapi.yaml has 0666", |h| h.mode("/etc/osapi/osapi.yaml", 0o666)),
    ("config.guarded", Fail, "/etc/osapi has 0777", |h| h.mode("/etc/osapi", 0o777)),
    ("program.guarded", Fail, "has 0775", |h| h.mode("/usr/bin/osapi", 0o775)),
    ("state.controller", Fail, "has 0755", |h| h.mode("/var/lib/osapi/controller", 0o755)),
    ("state.agent", Fail, "has 0710", |h| h.mode(AGENT, 0o710)),
    ("state.agent", Fail, "belongs to the account", |h| {
        (h.evidence.root_uid, h.evidence.uid) = (4242, 4242);
    }),
    ("state.keys", Fail, "agent/key has 0644", |h| h.mode("/var/lib/osapi/agent/key", 0o644)),
    ("state.room", Warn, "100% of", |h| h.config().config.controller.limits.database.size.0 = 5),
    ("reports.delivered", Warn, "what became of waits", |h| {
        h.touch("/var/lib/osapi/agent/tell/waits", NOW - 3600);
    }),
    ("account.osapi", Fail, "/bin/sh", |h| {
        h.put("/etc/passwd", "osapi:x:900:900::/:/bin/sh\n");
    }),
    ("account.osapi", Warn, "member of sudo", |h| {
        h.put("/etc/group", "sudo:x:27:ada,osapi\n");
    }),
    ("system.booted", Warn, "it is starting", |h| {
        h.tell("systemctl is-system-running", "starting\n".into());
    }),
    ("system.failed", Warn, "a.service, b.mount", |h| {
        let said = "a.service loaded failed failed A\n● b.mount loaded failed failed B\n";
        h.tell("systemctl list-units --state=failed", said.into());
    }),
    ("system.reboot", Warn, "linux-image", |h| {
        h.put("/run/reboot-required", "");
        h.put("/run/reboot-required.pkgs", "linux-image-6.1\nlibc6\n");
    }),
    ("system.systemd", Warn, "older than 252", |h| {
        h.tell("systemctl --version", "systemd 247 (247.3-7)\n".into());
    }),
    ("kernel.landlock", Warn, "is off", |h| h.put("/sys/kernel/security/lsm", "lockdown\n")),
    ("kernel.cgroup", Warn, "is tmpfs", |h| {
        h.put("/proc/self/mounts", "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n");
    }),
    ("kernel.modules", Warn, "6.1.0 was removed", |h| h.remove("/lib/modules/6.1.0")),
    ("kernel.entropy", Warn, "12 bits", |h| {
        h.put("/proc/sys/kernel/random/entropy_avail", "12\n");
    }),
    ("host.name", Warn, "says \"web-2\"", |h| h.put("/etc/hostname", "web-2\n")),
    ("host.resolves", Warn, "web-1 is not in /etc/hosts", |h| {
        h.put("/etc/hosts", "127.0.0.1 localhost # web-1\n");
    }),
    ("host.machine_id", Fail, "uninitialized", |h| h.put("/etc/machine-id", "uninitialized\n")),
    ("clock.set", Fail, "before this program", |h| h.evidence.now = 1000),
    ("clock.synchronised", Warn, "nobody keeps it", |h| {
        h.tell("timedatectl", "NTP=no\nNTPSynchronized=no\n".into());
    }),
    ("log.persistent", Warn, "no /var/log/journal", |h| h.remove("/var/log/journal")),
    ("log.persistent", Warn, "Storage=volatile", |h| {
        h.put("/etc/systemd/journald.conf.d/x.conf", "[Journal]\nStorage=volatile\n");
    }),
    ("packages.whole", Fail, "dpkg names half-done", |h| {
        h.tell("dpkg --audit", "They must be configured:\n half-done   A package\n\n".into());
    }),
    ("packages.free", Warn, "process 321", |h| {
        use std::os::unix::fs::MetadataExt as _;
        let lock = h.path("/var/lib/dpkg/lock-frontend").metadata().unwrap();
        let line = format!("1: POSIX  ADVISORY  WRITE 321 00:1a:{} 0 EOF\n", lock.ino());
        h.put("/proc/locks", &line);
    }),
    ("files.root", Fail, "/var is read-only", |h| {
        h.put("/proc/self/mounts", "a / ext4 rw 0 0\nb /var ext4 ro,noatime 0 0\n");
    }),
    ("files.temporary", Warn, "/var/tmp has 0777", |h| h.mode("/var/tmp", 0o777)),
    ("files.shadow", Fail, "has 0644", |h| h.mode("/etc/shadow", 0o644)),
    ("disk.state", Warn, "100 MiB on /var", |h| h.room("/var", "available", 100 << 20)),
    ("disk.state", Fail, "1 MiB on /", |h| h.room("/", "available", 1 << 20)),
    ("disk.room", Warn, "92% of the room of /srv", |h| h.room("/srv", "available", 8 << 30)),
    ("disk.room", Fail, "100% of the room of /srv", |h| h.room("/srv", "available", 0)),
    ("disk.inodes", Fail, "99% of the inodes of /srv", |h| h.room("/srv", "inodes_available", 10)),
    ("memory.available", Warn, "1% of", |h| {
        h.put("/proc/meminfo", "MemTotal: 8000 kB\nMemAvailable: 100 kB\n");
    }),
    ("memory.swap", Warn, "1% of", |h| {
        h.put("/proc/meminfo", "SwapTotal: 100 kB\nSwapFree: 1 kB\n");
    }),
    ("memory.kills", Warn, "2 since", |h| h.put("/proc/vmstat", "oom_kill 2\n")),
];

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
