//! Hosts with which something is wrong.

use rcgen::{BasicConstraints, IsCa, date_time_ymd};
use serde_json::json;

use super::super::Status::{self, Fail, Warn};
use super::super::evidence::Need;
use super::super::units::UNITS;
use super::{AGENT, CERT, Host, JOB, KEY, NOW};
use crate::cli::survey::Answer;
use crate::config::{Inert, Tls};
use crate::error::{Error, Kind};

/// What is wrong, what the check says then, and a word of it.
pub(super) type Case = (&'static str, Status, &'static str, fn(&mut Host));

pub(super) const CASES: &[Case] = &[
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
    ("broker.reachable", Fail, "no connection", |h| broker(h, "broker", "error", "no connection")),
    ("broker.durable", Warn, "a power cut", |h| {
        broker(h, "broker.durable", "warning", "a power cut");
    }),
    ("broker.encrypted", Warn, "read", |h| broker(h, "broker.encrypted", "warning", "is read")),
    ("broker.name", Warn, "another", |h| broker(h, "broker.name", "warning", "another")),
    ("audit.kept", Warn, "ended at link 3", |h| {
        broker(h, "audit", "warning", "it ended at link 3");
    }),
    ("broker.rights", Warn, "refused", |h| broker(h, "broker.rights", "warning", "refused")),
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
    ("agent.waiting", Warn, "web-2", |h| {
        let agent = json!({ "hostname": "web-2", "machine_id": "m2", "fingerprint": "SHA256:00" });
        h.tell("/api/agent/pending", json!({ "agents": [agent] }));
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
    ("relay.runs", Fail, "is failed", |h| {
        h.relay("Connected to tls://broker:4222");
        let Some(Answer::Told(units)) = h.evidence.found.get(&Need::Says(UNITS)) else { return };
        let units = units.as_str().unwrap().replacen(
            "Id=osapi-relay.service\nLoadState=loaded\nActiveState=active",
            "Id=osapi-relay.service\nLoadState=loaded\nActiveState=failed",
            1,
        );
        h.tell("systemctl show", units.into());
    }),
    ("relay.connected", Fail, "Waits for", |h| h.relay("Waits for the broker x")),
    ("relay.connected", Fail, "no agent", |h| h.relay("Connected to x; no agent")),
    ("relay.encrypted", Warn, "nats://broker:4222", |h| {
        h.relay("Connected to nats://broker:4222");
        h.config().config.agent.nats.url = Some("nats://broker:4222".to_owned());
    }),
    ("relay.encrypted", Fail, "does not know", |h| {
        h.relay("Connected to x");
        h.config().config.agent.nats.url = None;
    }),
    ("relay.key", Warn, "made none", |h| h.relay("Connected to x")),
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
        h.find(Need::Hosts("drift"), json!({ "drift": [drift] }));
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
    ("config.valid", Fail, "line 3", |h| {
        h.evidence.config = Err(Error::new(Kind::InvalidInput, "line 3: no such key"));
    }),
    ("config.inert", Warn, "controller.nats", |h| {
        let inert = Inert { key: "controller.nats".into(), why: "there is no broker" };
        h.config().inert.insert(inert);
    }),
    ("config.guarded", Fail, "osapi.yaml has 0666", |h| h.mode("/etc/osapi/osapi.yaml", 0o666)),
    ("config.secrets", Fail, "osapi.yaml has 0644", |h| {
        h.config().secret.insert("/etc/osapi/osapi.yaml".into());
    }),
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
    ("tls.certificate", Fail, "there is no certificate", |h| {
        h.config().config.controller.tls = Tls::default();
    }),
    ("tls.certificate", Fail, "cannot read", |h| h.remove(CERT)),
    ("tls.certificate", Fail, "holds no certificate in PEM", |h| h.put(CERT, "nonsense")),
    ("tls.certificate", Warn, "clients refuse", |h| {
        h.certify(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    }),
    ("tls.key", Fail, "cannot use the certificate", |h| {
        let key = std::fs::read_to_string(h.path(KEY)).unwrap();
        h.certify(&|_| ());
        h.put(KEY, &key);
    }),
    ("tls.key", Fail, "key.pem", |h| h.remove(KEY)),
    ("tls.expiry", Warn, "it ends in 16 days", |h| {
        h.certify(&|params| params.not_after = date_time_ymd(2027, 2, 1));
    }),
    ("tls.expiry", Fail, "it has expired, on 2027-01-01", |h| {
        h.certify(&|params| params.not_after = date_time_ymd(2027, 1, 1));
    }),
    ("tls.expiry", Fail, "from 2027-02-01", |h| {
        h.certify(&|params| params.not_before = date_time_ymd(2027, 2, 1));
    }),
    ("tls.names", Fail, "no subjectAltName", |h| h.certify(&|p| p.subject_alt_names.clear())),
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

fn broker(host: &mut Host, component: &str, status: &str, error: &str) {
    let mut health = json!({ "status": "ok", "components": { "broker": { "status": "ok" } } });
    health["components"][component] = json!({ "status": status, "error": error });
    host.tell("/api/health/status", health);
}
