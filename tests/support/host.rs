//! A host that lives in a temporary directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use osapi::error::Result;
use osapi::host::cell::Digest;
use osapi::host::{Executor, Root, UndoBounds};
use osapi::job::{Content, Options, Outcome, Task};
use osapi::op::Op;
use serde_json::Value;
use tempfile::TempDir;

use super::cases::{self, state};

pub(crate) struct TestHost {
    pub(crate) executor: Executor,
    dir: TempDir,
}

const COMMANDS: &[&str] = &[
    "announce",
    "apt-cache",
    "apt-get",
    "apt-mark",
    "busctl",
    "chatter",
    "chpasswd",
    "dpkg",
    "garble",
    "groupadd",
    "groupdel",
    "hold-on",
    "hostname",
    "journalctl",
    "leave",
    "linger",
    "mkhomedir_helper",
    "noise",
    "rm",
    "systemctl",
    "systemd-analyze",
    "systemd-run",
    "true",
    "useradd",
    "userdel",
    "usermod",
    "wall",
    "where",
];

/// The one package that every host has.
const DPKG: &str = "Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\n\
                    Version: 1.22\nEssential: yes\n\n";

/// Of the password `Hello world!`.
const HASH: &str = "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1";

/// The name that a job gets which the tests call `name`.
pub(crate) fn job(name: &str) -> String {
    let hash = Digest::of(name).to_string();
    format!("0192f0c1-{}-7{}-8{}-{}", &hash[..4], &hash[4..7], &hash[7..10], &hash[10..22])
}

/// What `job` is to do, with the objects that the cases name.
pub(crate) fn task(job: &str, op: &Op, params: &Value, options: Options) -> Task {
    let object = |text: &str| Content {
        digest: Digest::of(text).to_string(),
        size: text.len() as u64,
        bytes: Some(base64::engine::general_purpose::STANDARD.encode(text)),
    };
    let objects = cases::OBJECTS.iter().map(|(name, text)| ((*name).to_owned(), object(text)));
    Task {
        job: job.to_owned(),
        host: "here".to_owned(),
        op: op.id.to_owned(),
        params: params.clone(),
        options,
        objects: objects.collect(),
        sealed: None,
        called_off: false,
        left_ms: 60_000,
        begin_by: None,
        until: None,
    }
}

const CRON: &str = "/lib/systemd/system/cron.service";
const NGINX: &str = "/lib/systemd/system/nginx.service";

impl TestHost {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        for (path, text) in [
            (
                "etc/passwd",
                format!(
                    "root:x:{uid}:{gid}:root:/root:/bin/bash\nbob:x:1500:1500:Bob:/home/bob:/bin/bash\n"
                ),
            ),
            ("etc/group", format!("root:x:{gid}:\nsudo:x:27:\nusers:x:100:bob\nbob:x:1500:\n")),
            ("etc/shadow", format!("root:*:19000:0:99999:7:::\nbob:{HASH}:19000:0:99999:7:::\n")),
            ("bin/bash", String::new()),
            ("bin/zsh", String::new()),
            ("etc/hostname", "old\n".to_owned()),
            ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 old.lan old\n".to_owned()),
            ("etc/sysctl.d/README", String::new()),
            ("etc/timezone", "Etc/UTC\n".to_owned()),
            ("proc/sys/kernel/hostname", "old\n".to_owned()),
            ("run/dbus/system_bus_socket", String::new()),
            ("usr/share/zoneinfo/Etc/UTC", "TZif2".to_owned()),
            ("usr/share/zoneinfo/Europe/Berlin", "TZif2".to_owned()),
            ("proc/sys/vm/swappiness", "60\n".to_owned()),
            ("proc/sys/vm/laptop_mode", "0\n".to_owned()),
            ("proc/sys/kernel/random/boot_id", "first\n".to_owned()),
            ("run/README", String::new()),
            ("run/units/cron.service", state("active", "enabled", CRON)),
            ("run/units/nginx.service", state("inactive", "disabled", NGINX)),
            ("srv/data/README", String::new()),
            ("var/lib/dpkg/status", DPKG.to_owned()),
            ("var/lib/apt/extended_states", String::new()),
        ] {
            let path = dir.path().join("root").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        symlink("../usr/share/zoneinfo/Etc/UTC", dir.path().join("root/etc/localtime")).unwrap();
        let bin = dir.path().join("root/usr/bin");
        fs::create_dir_all(&bin).unwrap();
        for command in COMMANDS {
            // A link, not a copy: a freshly written executable fails with ETXTBSY when another
            // test thread forks while the write descriptor is still open.
            let fake = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fakes/host");
            symlink(fake, bin.join(command)).unwrap();
        }
        let home = dir.path().join("root/home/bob");
        fs::create_dir_all(&home).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        // Only root may give it away, and for others it does not matter.
        let _ = std::os::unix::fs::chown(&home, Some(1500), Some(1500));
        let executor = executor(dir.path());
        // The same for every host, so that they can be compared with each other.
        fs::write(dir.path().join("state/key"), [7; 32]).unwrap();
        Self { executor, dir }
    }

    /// With somebody who can be told to wake up when a change has not been confirmed.
    pub(crate) fn with_service_manager() -> Self {
        let host = Self::new();
        fs::create_dir_all(host.path("/run/systemd/system")).unwrap();
        host
    }

    /// With a service manager to which what reaches beyond the agent is left.
    pub(crate) fn with_units() -> Self {
        let host = Self::with_service_manager();
        symlink(env!("CARGO_BIN_EXE_osapi"), host.path("/usr/bin/osapi")).unwrap();
        host.restart()
    }

    /// Another process that works beside this one.
    pub(crate) fn another(&self) -> Executor {
        executor(self.dir.path())
    }

    /// Another process that takes over the same host.
    pub(crate) fn restart(self) -> Self {
        Self { executor: executor(self.dir.path()), dir: self.dir }
    }

    pub(crate) fn run(&self, job: &str, op: &str, params: &Value) -> Result<Value> {
        self.run_with(job, op, params, Options::default())
    }

    pub(crate) fn preview(&self, op: &str, params: &Value) -> Result<Value> {
        self.run_with("preview", op, params, Options { dry_run: true, ..Options::default() })
    }

    pub(crate) fn undo(&self, name: &str, of: &str) -> Result<Value> {
        self.run(name, "job.undo", &serde_json::json!({ "id": job(of) }))
    }

    pub(crate) fn run_with(
        &self,
        name: &str,
        op: &str,
        params: &Value,
        options: Options,
    ) -> Result<Value> {
        self.deliver(&cases::find(op), &task(&job(name), &cases::find(op), params, options))
    }

    pub(crate) fn deliver(&self, op: &Op, task: &Task) -> Result<Value> {
        let outcome: Outcome = self.executor.run(op, task)?;
        outcome.into()
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Makes every call of `command` fail from now on, or no longer.
    pub(crate) fn fail(&self, command: &str, fails: bool) {
        let flag = self.dir.path().join(format!("fail-{command}"));
        if fails { fs::write(flag, "").unwrap() } else { fs::remove_file(flag).unwrap() }
    }

    /// Makes every call of `command` wait before it does anything, or no longer.
    pub(crate) fn hold(&self, command: &str, waits: bool) {
        let flag = self.dir.path().join(format!("hold-{command}"));
        if waits { fs::write(flag, "").unwrap() } else { fs::remove_file(flag).unwrap() }
    }

    /// The commands that were run.
    pub(crate) fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Everything that can be seen of the host.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let (root, mut seen) = (self.dir.path().join("root"), BTreeMap::new());
        walk(&root, &root, &mut seen);
        seen
    }

    /// The file in which the executor keeps `part` of its memory.
    pub(crate) fn state(&self, part: &str) -> PathBuf {
        self.dir.path().join("state").join(part)
    }

    /// The record of the job called `name`, which is `open` or `done`.
    pub(crate) fn entry(&self, place: &str, name: &str) -> PathBuf {
        self.state(place).join(job(name))
    }

    /// Fails unless the host looks as it did when `before` was taken.
    #[track_caller]
    pub(crate) fn assert_is(&self, before: &BTreeMap<PathBuf, String>, why: &str) {
        let now = self.snapshot();
        let paths = before.keys().chain(now.keys());
        let differ: Vec<_> = paths
            .filter(|path| before.get(*path) != now.get(*path))
            .map(|path| (path, before.get(path), now.get(path)))
            .collect();
        assert!(differ.is_empty(), "{why}: {differ:#?}");
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path.trim_start_matches('/'))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn executor(dir: &Path) -> Executor {
    let root = Root::at(dir.join("root"));
    let executor = Executor::new(root, &dir.join("state"), UndoBounds::default()).unwrap();
    if dir.join("root/usr/bin/osapi").exists() {
        executor.use_units();
    }
    executor
}

fn walk(root: &Path, path: &Path, seen: &mut BTreeMap<PathBuf, String>) {
    let name = path.strip_prefix(root).unwrap().to_owned();
    let about = fs::symlink_metadata(path).unwrap();
    let owner = format!("{:o} {}:{}", about.permissions().mode(), about.uid(), about.gid());
    if about.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            walk(root, &entry.unwrap().path(), seen);
        }
        seen.insert(name, owner);
    } else if about.is_symlink() {
        seen.insert(name, fs::read_link(path).unwrap().display().to_string());
    } else {
        let bytes = fs::read(path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let text = if text.len() > 200 { Digest::of(&bytes).to_string() } else { text.into() };
        seen.insert(name, format!("{owner} {text}"));
    }
}
