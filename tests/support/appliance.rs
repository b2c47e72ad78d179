//! Controller and agent as processes of their own, on a host that lies in a temporary directory.
#![allow(dead_code, unreachable_pub, reason = "no test uses all of it")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::http::{self, Answer};

#[path = "broker.rs"]
mod broker;

use broker::Broker;

const PATIENCE: Duration = Duration::from_secs(30);

/// The program, without what the environment of the tests says to it.
pub fn osapi() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_osapi"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OSAPI_") {
            command.env_remove(name);
        }
    }
    command
}

/// Where an appliance's files and sockets are.
#[derive(Clone)]
pub struct Site(PathBuf);

pub struct Appliance {
    site: Site,
    controller: Option<Child>,
    agent: Option<Child>,
    /// Between the two, where the environment asks for one.
    relay: Option<Child>,
    /// Both processes' state lies on a file system of its own, which goes with this.
    disk: Option<Disk>,
    /// Keeps what the controller would keep in files, where the environment asks for one.
    broker: Option<Broker>,
    _dir: TempDir,
}

impl std::ops::Deref for Appliance {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Site {
    pub fn dir(&self) -> &Path {
        &self.0
    }

    pub fn socket(&self) -> PathBuf {
        self.0.join("osapi.sock")
    }

    pub fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    pub fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> std::io::Result<Answer> {
        http::ask(&self.socket(), method, path, headers, body)
    }

    /// What lies at `path` of the host.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.0.join("root").join(path)).unwrap_or_default()
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.0.join("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Makes a program of the host.
    pub fn command(&self, name: &str, script: &str) {
        self.write(&format!("usr/bin/{name}"), script);
        let path = self.0.join("root/usr/bin").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn is_ready(&self) -> bool {
        self.ask("GET", "/api/health/ready", &[], None).is_ok_and(|answer| answer.status == 200)
    }

    /// Walks the whole audit chain and checks that each link follows from the one before it.
    pub fn assert_audit_is_intact(&self) {
        let answer = self.ask("GET", "/api/audit/export", &[], None).unwrap();
        assert_eq!(answer.status, 200);
        let file = self.0.join("export");
        let status = osapi()
            .args(["client", "--url", &format!("unix://{}", self.socket().display())])
            .args(["audit", "export", "--output"])
            .arg(&file)
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "the audit log cannot be exported");
        let verdict = osapi().args(["audit", "verify"]).arg(&file).output().unwrap();
        assert!(verdict.status.success(), "{}", String::from_utf8_lossy(&verdict.stdout));
    }
}

impl Appliance {
    pub fn new() -> Self {
        Self::at(TempDir::new().unwrap(), None, &kept(), "")
    }

    /// One whose controller keeps what it keeps at a broker; None, and a line, where there is none
    /// for `test`.
    pub fn at_broker(test: &str) -> Option<Self> {
        broker::is_there(test).then(|| Self::at(TempDir::new().unwrap(), None, "nats", ""))
    }

    /// Behind a relay, at a broker with `more` in its configuration; None, and a line, where there is
    /// none for `test`.
    pub fn behind_a_relay(test: &str, more: &str) -> Option<Self> {
        broker::is_there(test).then(|| Self::at(TempDir::new().unwrap(), None, "relay", more))
    }

    /// With 64 MiB for the state of both processes; None for whoever may not mount.
    pub fn on_a_small_disk() -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let disk = Disk::mount(&dir.path().join("state"))?;
        Some(Self::at(dir, Some(disk), &kept(), ""))
    }

    /// `more` is added to the configuration of its broker, where it has one.
    fn at(dir: TempDir, disk: Option<Disk>, kept: &str, more: &str) -> Self {
        let site = Site(dir.path().to_owned());
        for (path, text) in [
            ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
            ("etc/group", "root:x:0:\n"),
            ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            ("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n"),
            ("etc/sysctl.d/README", ""),
            ("proc/loadavg", "0.10 0.20 0.30 1/100 1234\n"),
            ("proc/uptime", "1000.00 900.00\n"),
            ("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 500 kB\nMemAvailable: 700 kB\n"),
            ("proc/mounts", ""),
            ("proc/sys/kernel/random/boot_id", "00000000-0000-4000-8000-000000000000\n"),
        ] {
            site.write(path, text);
        }
        fs::create_dir_all(site.state()).unwrap();
        let broker = ["nats", "relay"].contains(&kept);
        let broker = broker.then(|| Broker::below(&dir.path().join("broker"), more));
        let mut config = format!(
            "controller:\n  socket: {0}/osapi.sock\n  state_dir: {0}/state/controller\n\
             agent:\n  state_dir: {0}/state/agent\n",
            dir.path().display()
        );
        if let Some(broker) = &broker {
            let nats = format!("controller:\n  nats:\n    url: nats://{}\n", broker.address());
            config = config.replacen("controller:\n", &nats, 1);
            if kept == "relay" {
                let nats = format!("agent:\n  nats:\n    url: nats://{}\n", broker.address());
                config = config.replacen("agent:\n", &nats, 1);
            }
        }
        fs::write(dir.path().join("osapi.yaml"), config).unwrap();
        let mut appliance =
            Self { site, controller: None, agent: None, relay: None, disk, broker, _dir: dir };
        if kept == "relay" {
            appliance.relay = Some(appliance.process(&["relay"]));
        }
        appliance
    }

    /// Has the broker lose, later, what it acknowledges from now on.
    pub fn keep_broker(&mut self) {
        self.broker.as_mut().unwrap().keep();
    }

    pub fn take_broker_back(&mut self) {
        self.broker.as_mut().unwrap().take_back();
    }

    /// Waits for the controller to end by itself.
    pub fn controller_ended(&mut self) -> ExitStatus {
        let mut controller = self.controller.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = controller.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        kill(Some(controller));
        panic!("the controller goes on");
    }

    /// Another handle to the same place, for a thread of its own.
    pub fn paths(&self) -> Site {
        self.site.clone()
    }

    pub fn start(&mut self) {
        self.revive();
        self.until_ready();
    }

    pub fn until_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready() {
            let log = || fs::read_to_string(self.site.0.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "not ready:\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts whichever process does not run.
    pub fn revive(&mut self) {
        if self.controller.is_none() {
            self.start_controller();
        }
        if self.agent.is_none() {
            self.start_agent();
        }
    }

    pub fn start_controller(&mut self) {
        self.controller = Some(self.process(&["controller", "start"]));
    }

    pub fn start_agent(&mut self) {
        let root = self.site.0.join("root");
        self.agent = Some(self.process(&["agent", "start", "--root", root.to_str().unwrap()]));
    }

    fn process(&self, words: &[&str]) -> Child {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.site.0.join("log"));
        osapi()
            .arg("-f")
            .arg(self.site.0.join("osapi.yaml"))
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap()
    }

    pub fn kill_agent(&mut self) {
        kill(self.agent.take());
    }

    pub fn kill_controller(&mut self) {
        kill(self.controller.take());
    }

    pub fn pids(&self) -> Vec<u32> {
        [&self.controller, &self.agent].into_iter().flatten().map(Child::id).collect()
    }

    pub fn fill_disk(&self) {
        let name = self.site.state().join("filler");
        let mut file = fs::OpenOptions::new().append(true).create(true).open(name).unwrap();
        let block = vec![0; 64 * 1024];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
        while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    }

    pub fn empty_disk(&self) {
        fs::remove_file(self.site.state().join("filler")).unwrap();
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        kill(self.controller.take());
        kill(self.agent.take());
        kill(self.relay.take());
        drop(self.disk.take());
    }
}

/// `nats`: what is kept, is kept at a broker. `relay`: the agent is reached over it as well.
fn kept() -> String {
    std::env::var("OSAPI_TEST_STORE").unwrap_or_default()
}

fn kill(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A file system in memory.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs"])
            .arg(at)
            .stderr(Stdio::null())
            .status();
        mount.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Numbers that a seed decides (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
