//! A nats-server of a test's own, with what it stores in a temporary directory.
#![expect(clippy::disallowed_methods, reason = "starts a process and writes its configuration")]
#![allow(dead_code, clippy::allow_attributes, reason = "not every test uses all of it")]

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Broker {
    dir: TempDir,
    port: u16,
    process: Option<Child>,
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
        println!("SKIPPED: {test}: there is no nats-server; `make test` fetches one");
    }
    is_there
}

impl Broker {
    /// One that makes every message durable before it answers.
    pub(crate) fn start() -> Self {
        Self::with("", "sync_interval: always")
    }

    /// `more` is added to its configuration, `jetstream` to what that says of JetStream; without
    /// that it has none.
    pub(crate) fn with(more: &str, jetstream: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let store = dir.path().join("jetstream");
        let jetstream = match jetstream {
            "" => String::new(),
            more => format!("jetstream {{ store_dir: {:?}, {more} }}\n", store.to_str().unwrap()),
        };
        let config =
            format!("listen: \"127.0.0.1:{port}\"\nserver_name: test\n{jetstream}{more}\n");
        std::fs::write(dir.path().join("nats.conf"), config).unwrap();
        let mut broker = Self { dir, port, process: None };
        broker.restart();
        broker
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it as a power cut would, as far as the process is concerned.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again with what it has stored.
    pub(crate) fn restart(&mut self) {
        let mut command = Command::new(program().unwrap());
        command.arg("-c").arg(self.dir.path().join("nats.conf"));
        command.arg("-l").arg(self.dir.path().join("log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the broker does not start: {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}
