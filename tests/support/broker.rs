//! A nats-server of a test's own, with what it stores in a temporary directory.
#![expect(clippy::disallowed_methods, reason = "starts a process and writes its configuration")]
#![allow(dead_code, clippy::allow_attributes, reason = "not every test uses all of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::say::say;

const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Broker {
    dir: PathBuf,
    /// What follows the first line of its configuration.
    config: String,
    port: u16,
    process: Option<Child>,
    _own: Option<TempDir>,
}

/// The program: named, found beside the other things that tests fetch, or installed.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("OSAPI_NATS_SERVER").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let fetched = cache.map(|cache| cache.join("osapi-lab/nats/nats-server"));
    let installed = PathBuf::from("/usr/bin/nats-server");
    [named, fetched, Some(installed)].into_iter().flatten().find(|program| program.is_file())
}

/// Whether there is a server to test with; says so where there is none.
pub(crate) fn is_there(test: &str) -> bool {
    let is_there = program().is_some();
    if !is_there {
        say(format!("SKIPPED: {test}: there is no nats-server; `make test` fetches one"));
    }
    is_there
}

impl Broker {
    /// One that makes every message durable before it answers.
    pub(crate) fn start() -> Self {
        Self::with("", "sync_interval: always")
    }

    /// The same, with what it stores in a directory of the test's, and `more` in its configuration.
    pub(crate) fn below(dir: &Path, more: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        Self::at(dir.to_owned(), None, more, "sync_interval: always")
    }

    /// `more` is added to its configuration, `jetstream` to what that says of JetStream; without
    /// that it has none.
    pub(crate) fn with(more: &str, jetstream: &str) -> Self {
        let dir = TempDir::new().unwrap();
        Self::at(dir.path().to_owned(), Some(dir), more, jetstream)
    }

    fn at(dir: PathBuf, own: Option<TempDir>, more: &str, jetstream: &str) -> Self {
        let store = dir.join("jetstream");
        let jetstream = match jetstream {
            "" => String::new(),
            more => format!("jetstream {{ store_dir: {:?}, {more} }}\n", store.to_str().unwrap()),
        };
        let ports = dir.to_str().unwrap();
        let config = format!("server_name: test\nports_file_dir: {ports:?}\n{jetstream}{more}\n");
        let mut broker = Self { dir, config, port: 0, process: None, _own: own };
        broker.restart();
        broker
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().unwrap().id()
    }

    /// Ends it as a power cut would, as far as the process is concerned.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Ends it, keeps what it has stored so far, and starts it again.
    pub(crate) fn keep(&mut self) {
        self.kill();
        copy(&self.path("jetstream"), &self.path("kept"));
        self.restart();
    }

    /// Starts it again with no more than it had stored when that was kept.
    pub(crate) fn take_back(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.path("jetstream")).unwrap();
        copy(&self.path("kept"), &self.path("jetstream"));
        self.restart();
    }

    /// Starts it again with what it has stored, at the port that it found free at first.
    pub(crate) fn restart(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let port = if self.port == 0 { -1 } else { self.port.into() };
        let config = format!("listen: \"127.0.0.1:{port}\"\n{}", self.config);
        std::fs::write(self.path("nats.conf"), config).unwrap();
        loop {
            let mut command = Command::new(program().unwrap());
            command.arg("-c").arg(self.path("nats.conf")).arg("-l").arg(self.path("log"));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut process = command.spawn().unwrap();
            let ports = self.path(&format!("nats-server_{}.ports", process.id()));
            // Where it ends at once, the port is taken for the moment.
            while process.try_wait().unwrap().is_none() {
                let text = std::fs::read_to_string(&ports).unwrap_or_default();
                let found = text.split_once("://127.0.0.1:").and_then(|(_, rest)| {
                    let (port, _) = rest.split_once('"')?;
                    port.parse().ok()
                });
                if let Some(port) = found {
                    (self.port, self.process) = (port, Some(process));
                    return;
                }
                let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
                assert!(Instant::now() < deadline, "the broker does not start: {log}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success(), "cannot copy {}", from.display());
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}
