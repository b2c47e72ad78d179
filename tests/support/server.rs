//! A controller with its API on a socket, and an agent that says what a test wants it to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use osapi::api::{Access, Api, Caps};
use osapi::clock::Clock;
use osapi::controller::{Controller, Limits, Setup, Shared, Trust};
use osapi::error::{Error, Result};
use osapi::job::{Outcome, Report, Task};
use osapi::link::{About, Answer, Ask, Class, Desk, Next, Told};
use osapi::signing::{Holder, SigningKey};
use osapi::store::objects::Files;
use osapi::store::redb::RedbStore;
use osapi::store::{self, Bounds, Order, Store};
use osapi::tls;
use rustix::fs::{Gid, Uid};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;

use crate::answers;
use crate::say::say;

#[path = "chunks.rs"]
mod chunks;

/// What the agent answers a task with; None: nothing, ever.
pub(crate) type Script = fn(&Task) -> Option<Result<Value>>;

/// Serves from a thread of its own until dropped.
pub(crate) struct Server {
    pub(crate) dir: TempDir,
    pub(crate) api: Arc<Api>,
    /// Where it is served to whoever brings a token.
    pub(crate) address: SocketAddr,
    store: Arc<RedbStore>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How a test's server differs from others.
pub(crate) struct Config {
    pub(crate) access: Access,
    pub(crate) caps: Caps,
    pub(crate) patience: Duration,
    pub(crate) script: Script,
    /// What is shown at the address; without, nothing is encrypted there.
    pub(crate) tls: Option<Arc<tls::Server>>,
    /// Hosts beside the one that there always is.
    pub(crate) others: &'static [Other],
    /// Whether keys are asked for, and those of new hosts accepted by themselves.
    pub(crate) trust: Option<bool>,
}

/// A host by machine id, name and group; its agent answers with the same script.
pub(crate) type Other = (&'static str, &'static str, &'static str);

impl Default for Config {
    fn default() -> Self {
        let access = Access { own_is_admin: true, ..Access::default() };
        let patience = Duration::from_secs(20);
        let script: Script = |_| Some(Ok(json!({})));
        Self {
            access,
            caps: Caps::default(),
            patience,
            script,
            tls: None,
            others: &[],
            trust: None,
        }
    }
}

pub(crate) const HOST: &str = "0af7651916cd43dd8448eb211c80319c";
pub(crate) const HOSTNAME: &str = "web-1";

impl Server {
    pub(crate) fn start(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Others must reach the socket.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let bounds = Bounds { free: 0, ..Bounds::default() };
        let store = Arc::new(RedbStore::open(dir.path(), Clock::default(), bounds).unwrap());
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let (path, kept) = (dir.path().to_owned(), store.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let controller = controller(&path, kept, config.trust).await;
                let socket = path.join("osapi.sock");
                let listener = UnixListener::bind(&socket).unwrap();
                let open = std::fs::Permissions::from_mode(0o666);
                std::fs::set_permissions(&socket, open).unwrap();
                let Config { access, caps, patience, script, tls, others, trust } = config;
                let api = Api::new(controller.clone(), access, patience).unwrap();
                let served = api.clone();
                let serving = tokio::spawn(async move { served.serve(listener, caps).await });
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let served = api.clone();
                tokio::spawn(async move { served.serve_network(listener, caps, tls).await });
                let hosts = std::iter::once(&(HOST, HOSTNAME, "")).chain(others);
                for (pid, host) in (1..).zip(hosts) {
                    let (known, is_known) = oneshot::channel();
                    let key =
                        trust.map(|_| Holder::Agent.kept_or_made(&path.join(host.0)).unwrap());
                    tokio::spawn(agent(controller.clone(), *host, pid, key, script, known));
                    is_known.await.unwrap();
                }
                ready.send((api, address)).unwrap();
                let _ = stopped.await;
                serving.abort();
                controller.stop().await;
            });
        });
        let (api, address) = is_ready.recv().unwrap();
        Self { dir, api, address, store, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("osapi.sock")
    }

    /// Everything that is stored but the audit log.
    pub(crate) fn records(&self) -> BTreeMap<String, Vec<u8>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let list = self.store.list("", "", usize::MAX, Order::Ascending);
        let entries = runtime.block_on(list).unwrap();
        entries.into_iter().map(|entry| (entry.key, entry.value.to_vec())).collect()
    }

    /// Sends `request` as it is and reads until the server hangs up.
    pub(crate) fn raw(&self, request: &[u8]) -> Vec<u8> {
        exchange(&self.socket(), request)
    }

    /// A request on a connection of its own, whose answer is as documented.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let request = request(method, path, headers, body.as_bytes());
        let reply = Reply::parse(&self.raw(&request)).expect("an answer");
        let content_type = reply.header("content-type").unwrap_or_default().to_owned();
        answers::documented(method, path, reply.status, &content_type, &reply.body);
        reply
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], "")
    }

    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> Reply {
        self.ask(method, path, &[("content-type", "application/json")], &body.to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let joined = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            joined.unwrap().unwrap();
        }
    }
}

async fn controller(dir: &Path, store: Arc<RedbStore>, trust: Option<bool>) -> Shared {
    let clock = Clock::default();
    let index: Arc<dyn Store> = store.clone();
    let objects = Files::open(dir.join("objects"), index, clock.clone(), 1 << 30).await.unwrap();
    let (limits, job_timeout) = (Limits::default(), Duration::from_secs(20));
    let (name, objects) = ("one".to_owned(), Arc::new(objects) as Arc<dyn store::Objects>);
    let key = [7; 32];
    let trust = trust.map(|auto_accept| {
        let key = Holder::Controller.kept_or_made(&dir.join("pki")).unwrap();
        Trust { key, auto_accept }
    });
    let setup = Setup { store, objects, clock, name, limits, job_timeout, key, trust };
    Controller::start(setup).await.unwrap()
}

async fn agent(
    controller: Shared,
    (machine_id, hostname, group): Other,
    pid: i32,
    key: Option<SigningKey>,
    script: Script,
    known: oneshot::Sender<()>,
) {
    let mut desk = controller.agent(0, pid);
    let mut labels = BTreeMap::new();
    if !group.is_empty() {
        labels.insert("group".to_owned(), group.to_owned());
    }
    let about = About {
        machine_id: machine_id.to_owned(),
        hostname: hostname.to_owned(),
        labels,
        facts: json!({}),
        pid,
        ..About::default()
    };
    let mut about = Some(Box::new(about));
    if let (Some(about), Some(key)) = (&mut about, &key) {
        about.signing_key = key.public().encode();
        about.prove(key);
    }
    let mut known = Some(known);
    let mut holds: Vec<String> = Vec::new();
    loop {
        let classes = Class::ALL.to_vec();
        // The first question is answered at once, so that the host is known.
        let wait_ms = if known.is_some() { 0 } else { 60_000 };
        let (now_held, about) = (holds.clone(), about.take());
        let next = Next { holds: now_held, classes, about, wait_ms, ..Next::default() };
        let ask = Ask::Next(next);
        let Ok(Answer::Tasks { tasks, .. }) = desk.answer(ask).await else { return };
        if let Some(known) = known.take() {
            let _ = known.send(());
        }
        for sealed in tasks {
            let task: Task = sealed.open().unwrap();
            let Some(result) = script(&task) else {
                holds.push(task.job);
                continue;
            };
            let outcome = Outcome::from(result);
            let report = Report::new(task.job, 1, 2, outcome);
            let told = Told::new(&report, machine_id, key.as_ref()).unwrap();
            if desk.answer(Ask::Finish(vec![told])).await.is_err() {
                return;
            }
        }
    }
}

/// A failed task.
pub(crate) fn failed(kind: osapi::error::Kind, message: &str) -> Option<Result<Value>> {
    Some(Err(Error::new(kind, message)))
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    if !body.is_empty() {
        let _ = write!(head, "content-length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// Sends `request` as it is and reads until the other end hangs up.
pub(crate) fn exchange(socket: &Path, request: &[u8]) -> Vec<u8> {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    talk(stream, request)
}

/// The same over a network.
pub(crate) fn call(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    talk(stream, request)
}

fn talk(mut stream: impl Read + Write, request: &[u8]) -> Vec<u8> {
    // A server that refuses early does not read the rest.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let mut part = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return answer,
            Ok(count) => answer.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return answer,
            Err(error) => panic!("cannot read an answer: {error}"),
        }
    }
}

/// Runs `work` as another account, if this one may become any; None and a line if it may not.
pub(crate) fn as_account<T: Send>(
    uid: u32,
    groups: &[u32],
    work: impl FnOnce() -> T + Send,
) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        say("SKIPPED: only root can try what other accounts may");
        return None;
    }
    let become_it = || {
        let gids: Vec<_> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&gids).unwrap();
        let (gid, uid) = (Gid::from_raw(uid), Uid::from_raw(uid));
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        // Of this thread alone, which ends with it.
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_it();
            work()
        });
        Some(thread.join().unwrap())
    })
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let headers = lines.map(header).collect();
        let mut reply = Self { status, headers, body: bytes[end + 4..].to_vec() };
        if reply.header("transfer-encoding").is_some() {
            reply.body = chunks::joined(&reply.body)?;
        }
        Some(reply)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A refusal of this kind.
    #[track_caller]
    pub(crate) fn refused(&self, kind: &str) -> Value {
        let body = self.json();
        assert_eq!(body["kind"], kind, "{body:#}");
        answers::problem(self.status, &body);
        body
    }
}
