//! What a fleet takes: one controller, one broker, and agents by the thousand that this process
//! plays, each figure beside the raw limit of the same run.
//!
//! `make bench-fleet` prints the tables of `docs/performance.md`. The machine should do nothing
//! else. An agent here speaks the wire as a relay does, and does no work.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "starts processes, writes files and prints figures"
)]

#[path = "../tests/support/broker.rs"]
mod broker;
#[path = "../tests/support/http.rs"]
mod http;
#[path = "../tests/support/say.rs"]
mod say;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::Client;
use broker::Broker;
use futures_util::StreamExt;
use osapi::job::{Outcome, Report};
use osapi::link::Told;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How many agents, over how many connections, beside which setting of the broker's.
const FLEETS: [(usize, usize, &str); 3] = [
    (1_000, 1_000, "sync_interval: always"),
    (10_000, 20, "sync_interval: always"),
    (10_000, 20, "sync_interval: 2m"),
];
/// How many ask for jobs on four hosts, and how many each.
const CLIENTS: [(usize, usize); 2] = [(1, 300), (128, 40)];
const BEAT: Duration = Duration::from_secs(10);
/// How long heartbeats alone are looked at.
const IDLE: Duration = Duration::from_secs(40);
const READS: usize = 15;
const WRITES: usize = 5;
const PATIENCE: Duration = Duration::from_mins(2);

fn main() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    println!(
        "| agents | connections | sync | figure | measured | raw limit of the same run | ratio |"
    );
    println!("|---|---|---|---|---|---|---|");
    for sync in ["sync_interval: always", "sync_interval: 2m"] {
        runtime.block_on(jobs(sync));
    }
    for (agents, connections, sync) in FLEETS {
        runtime.block_on(measure(agents, connections, sync));
    }
}

struct Controller {
    process: Child,
    dir: TempDir,
}

impl Controller {
    fn start(broker: &Broker) -> Self {
        let dir = TempDir::new().unwrap();
        let at = dir.path().display();
        let config = format!(
            "controller:\n  socket: {at}/osapi.sock\n  state_dir: {at}/controller\n  nats:\n    \
             url: nats://{}\nagent:\n  state_dir: {at}/agent\n",
            broker.address()
        );
        std::fs::write(dir.path().join("osapi.yaml"), config).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_osapi"))
            .arg("-f")
            .arg(dir.path().join("osapi.yaml"))
            .args(["controller", "start"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Self { process: process.unwrap(), dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("osapi.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a process has used so far.
#[derive(Clone, Copy)]
struct Usage {
    /// Seconds of a processor.
    cpu: f64,
    /// Resident memory in MiB.
    rss: f64,
}

fn usage(pid: u32) -> Usage {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss: f64 = rss.trim().trim_end_matches(" kB").trim().parse().unwrap();
    Usage { cpu: (ticks(11) + ticks(12)) / 100.0, rss: rss / 1024.0 }
}

/// Agents that answer whatever they are handed at once.
struct Agents {
    clients: Vec<Client>,
    count: usize,
    answered: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

fn id(number: usize) -> String {
    format!("{number:032x}")
}

fn about(number: usize) -> Value {
    let filler = "x".repeat(300);
    json!({
        "machine_id": id(number), "hostname": format!("node-{number}"), "version": "bench",
        "started_at": 1, "labels": { "group": format!("rack{}.row{}", number % 10, number % 3) },
        "facts": { "filler": filler }, "conditions": [], "waiting": [], "hanging": [],
        "landlock": true, "uid": 0, "pid": 1, "key": "",
    })
}

fn now() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

impl Agents {
    async fn connect(address: &str, count: usize, connections: usize) -> Self {
        let mut clients = Vec::with_capacity(connections);
        for _ in 0..connections {
            let options = async_nats::ConnectOptions::new()
                .subscription_capacity(65_536)
                .client_capacity(65_536)
                .request_timeout(Some(PATIENCE));
            clients.push(options.connect(address).await.unwrap());
        }
        let (answered, is_over) = (Arc::default(), Arc::default());
        Self { clients, count, answered, is_over }
    }

    fn client(&self, number: usize) -> Client {
        self.clients[number % self.clients.len()].clone()
    }

    /// Says who they are and waits for work.
    async fn enrol(&self) {
        let hosts = futures_util::stream::iter(0..self.count);
        hosts.for_each_concurrent(256, |number| self.enrol_one(number)).await;
    }

    async fn enrol_one(&self, number: usize) {
        let (client, host) = (self.client(number), id(number));
        let mut wakes = client.subscribe(format!("osapi.wake.{host}")).await.unwrap();
        // A controller answers a host nowhere else.
        let inbox = format!("_INBOX_osapi_{host}.x");
        let mut answers = client.subscribe(inbox.clone()).await.unwrap();
        let subject = format!("osapi.ask.{host}");
        let ask = json!({ "next": { "holds": [], "classes": ["read", "write", "execute"],
                                     "about": about(number), "wait_ms": 0 } });
        let payload = serde_json::to_vec(&ask).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let payload = payload.clone().into();
            client.publish_with_reply(subject.clone(), inbox.clone(), payload).await.unwrap();
            if answers.next().await.unwrap().payload.starts_with(b"{\"Ok\"") {
                break;
            }
            // The controller may not be there yet.
            assert!(Instant::now() < deadline, "nobody answers agents");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let answered = self.answered.clone();
        tokio::spawn(async move {
            while let Some(answer) = answers.next().await {
                assert!(answer.payload.starts_with(b"{\"Ok\""), "{:?}", answer.payload);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        tokio::spawn(async move {
            while let Some(wake) = wakes.next().await {
                let wake: Value = serde_json::from_slice(&wake.payload).unwrap();
                let tasks = wake["tasks"].as_array().into_iter().flatten();
                let reports: Vec<_> = tasks
                    .map(|task| {
                        let result = json!({ "uptime": "1 day", "changed": true });
                        let job = task["job"].as_str().unwrap().to_owned();
                        let report = Report::new(job, now(), now(), Outcome::Done { result });
                        Told::new(&report, &host, None).unwrap()
                    })
                    .collect();
                if !reports.is_empty() {
                    let payload = serde_json::to_vec(&json!({ "finish": reports })).unwrap().into();
                    let (subject, inbox) = (subject.clone(), inbox.clone());
                    client.publish_with_reply(subject, inbox, payload).await.unwrap();
                }
            }
        });
    }

    /// One beat of each in ten seconds, evenly.
    fn beat(&self) {
        let (clients, count, is_over) = (self.clients.clone(), self.count, self.is_over.clone());
        tokio::spawn(async move {
            let mut round = 0;
            let mut tick = tokio::time::interval(BEAT / 100);
            loop {
                for slice in 0..100 {
                    tick.tick().await;
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    for number in (slice..count).step_by(100) {
                        let beat = if round % 6 == 0 {
                            json!({ "about": about(number) })
                        } else {
                            json!({})
                        };
                        let client = &clients[number % clients.len()];
                        let subject = format!("osapi.beat.{}", id(number));
                        let payload = serde_json::to_vec(&beat).unwrap();
                        client.publish(subject, payload.into()).await.unwrap();
                    }
                }
                round += 1;
            }
        });
    }
}

async fn ask(socket: &Path, method: &str, path: &str, body: Option<Value>) -> (Duration, Value) {
    let (socket, method, path) = (socket.to_owned(), method.to_owned(), path.to_owned());
    let asked = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        let headers = [("prefer", "wait=100")];
        let answer = http::ask(&socket, &method, &path, &headers, body.as_ref()).unwrap();
        let took = begun.elapsed();
        assert!(answer.status < 300, "{method} {path}: {} {:?}", answer.status, answer.json());
        (took, answer.json())
    });
    asked.await.unwrap()
}

fn middle(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a short list"
    )]
    let at = ((times.len() - 1) as f64 * share).round() as usize;
    times[at].as_secs_f64() * 1e3
}

/// All of them answer one message at once, on core NATS, to one who counts.
async fn raw_fan_in(agents: &Agents, reader: &Client) -> Duration {
    let mut answers = reader.subscribe("raw.answer").await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..agents.count {
        let client = agents.client(number);
        let mut asked = client.subscribe(format!("raw.ask.{number}")).await.unwrap();
        tasks.push(tokio::spawn(async move {
            asked.next().await.unwrap();
            client.publish("raw.answer", vec![b'x'; 200].into()).await.unwrap();
        }));
    }
    for client in &agents.clients {
        client.flush().await.unwrap();
    }
    let begun = Instant::now();
    for number in 0..agents.count {
        reader.publish(format!("raw.ask.{number}"), vec![b'x'; 300].into()).await.unwrap();
    }
    for _ in 0..agents.count {
        answers.next().await.unwrap();
    }
    begun.elapsed()
}

/// All of them store one message each in one stream, and wait until it is.
async fn raw_stored(agents: &Agents, reader: &Client) -> Duration {
    let stream = json!({ "name": "raw", "subjects": ["rawkv.>"], "max_msgs_per_subject": 1 });
    let payload = serde_json::to_vec(&stream).unwrap();
    reader.request("$JS.API.STREAM.CREATE.raw", payload.into()).await.unwrap();
    let begun = Instant::now();
    let stored = (0..agents.count).map(|number| {
        let client = agents.client(number);
        tokio::spawn(async move {
            let payload = vec![b'x'; 300].into();
            client.request(format!("rawkv.{number}"), payload).await.unwrap();
        })
    });
    for stored in stored.collect::<Vec<_>>() {
        stored.await.unwrap();
    }
    let took = begun.elapsed();
    reader.request("$JS.API.STREAM.DELETE.raw", "".into()).await.unwrap();
    took
}

async fn streams(reader: &Client) -> (u64, u64) {
    let answer = reader.request("$JS.API.STREAM.INFO.osapi", "".into()).await.unwrap();
    let info: Value = serde_json::from_slice(&answer.payload).unwrap();
    let consumers = info["state"]["consumer_count"].as_u64().unwrap_or(u64::MAX);
    (info["state"]["last_seq"].as_u64().unwrap_or_default(), consumers)
}

/// The leanest job there can be on this broker: one message stored, handed on, its answer stored
/// and seen. How long each took, and all of them.
async fn lean(broker: &Broker, clients: usize, each: usize) -> (Vec<Duration>, Duration) {
    let connect = || async { async_nats::connect(broker.address()).await.unwrap() };
    let (asking, working) = (connect().await, connect().await);
    let stream = json!({ "name": "lean", "subjects": ["lean.>"], "max_msgs_per_subject": 1 });
    let payload = serde_json::to_vec(&stream).unwrap();
    asking.request("$JS.API.STREAM.CREATE.lean", payload.into()).await.unwrap();
    let mut handed = working.subscribe("lean.job.>").await.unwrap();
    working.flush().await.unwrap();
    let worker = tokio::spawn(async move {
        while let Some(job) = handed.next().await {
            let (working, subject) = (working.clone(), job.subject.replace("job", "done"));
            tokio::spawn(async move {
                working.request(subject, vec![b'x'; 300].into()).await.unwrap();
            });
        }
    });
    let begun = Instant::now();
    let asked = (0..clients).map(|client| {
        let asking = asking.clone();
        tokio::spawn(async move {
            let mut seen = asking.subscribe(format!("lean.done.{client}.>")).await.unwrap();
            let mut times = Vec::new();
            for number in 0..each {
                let begun = Instant::now();
                let subject = format!("lean.job.{client}.{number}");
                asking.request(subject, vec![b'x'; 500].into()).await.unwrap();
                seen.next().await.unwrap();
                times.push(begun.elapsed());
            }
            times
        })
    });
    let mut times = Vec::new();
    for asked in asked.collect::<Vec<_>>() {
        times.extend(asked.await.unwrap());
    }
    let took = begun.elapsed();
    worker.abort();
    asking.request("$JS.API.STREAM.DELETE.lean", "".into()).await.unwrap();
    (times, took)
}

/// Jobs on four hosts, one by one and many at a time.
async fn jobs(sync: &str) {
    let broker = Broker::with("", sync);
    let controller = Controller::start(&broker);
    let socket = controller.socket();
    let agents = Agents::connect(&broker.address(), 4, 4).await;
    agents.enrol().await;
    agents.beat();
    let reader = async_nats::connect(broker.address()).await.unwrap();
    for (clients, each) in CLIENTS {
        let (mut lean_times, lean_took) = lean(&broker, clients, each).await;
        let before = streams(&reader).await.0;
        let begun = Instant::now();
        let asked = (0..clients).map(|client| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let mut times = Vec::new();
                for number in 0..each {
                    let path = format!("/api/node/{}/timezone", id((client + number) % 4));
                    let zone = if number % 2 == 0 { "UTC" } else { "Europe/Paris" };
                    let body = json!({ "timezone": zone });
                    let begun = Instant::now();
                    let answer = http::ask(&socket, "PUT", &path, &[], Some(&body)).unwrap();
                    assert_eq!(answer.status, 200, "{:?}", answer.json());
                    times.push(begun.elapsed());
                }
                times
            })
        });
        let asked: Vec<_> = asked.collect();
        let joined = tokio::task::spawn_blocking(move || {
            asked.into_iter().flat_map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
        });
        let mut times = joined.await.unwrap();
        let took = begun.elapsed();
        let count = times.len();
        #[expect(clippy::cast_precision_loss, reason = "counts of a few thousand")]
        let (rate, lean_rate, stored) = (
            count as f64 / took.as_secs_f64(),
            count as f64 / lean_took.as_secs_f64(),
            (streams(&reader).await.0 - before) as f64 / count as f64,
        );
        let (p50, lean_p50) = (middle(&mut times, 0.5), middle(&mut lean_times, 0.5));
        let line = |figure: &str, measured: String, limit: String, ratio: f64| {
            println!(
                "| 4 | {clients} clients | {sync} | {figure} | {measured} | {limit} | {ratio:.2} |"
            );
        };
        line("job, p50", format!("{p50:.2} ms"), format!("N {lean_p50:.2} ms"), p50 / lean_p50);
        line("jobs a second", format!("{rate:.0}"), format!("N {lean_rate:.0}"), rate / lean_rate);
        line(
            "messages stored per job",
            format!("{stored:.2}"),
            "2 without an audit".to_owned(),
            stored / 2.0,
        );
    }
    agents.is_over.store(true, Ordering::Relaxed);
}

async fn measure(count: usize, connections: usize, sync: &str) {
    let broker = Broker::with("max_connections: 65536", sync);
    let controller = Controller::start(&broker);
    let socket = controller.socket();
    let deadline = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(Instant::now() < deadline, "no controller:\n{}", controller.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let agents = Agents::connect(&broker.address(), count, connections).await;
    let reader = async_nats::ConnectOptions::new()
        .subscription_capacity(65_536)
        .client_capacity(65_536)
        .connect(broker.address())
        .await
        .unwrap();
    let line = |figure: &str, measured: String, limit: &str, ratio: &str| {
        println!(
            "| {count} | {connections} | {sync} | {figure} | {measured} | {limit} | {ratio} |"
        );
    };
    let begun = Instant::now();
    agents.enrol().await;
    line("all enrolled, from nothing", format!("{:.1} s", begun.elapsed().as_secs_f64()), "", "");
    agents.beat();
    let pids = [controller.process.id(), broker.pid()];
    tokio::time::sleep(BEAT).await;

    let before = pids.map(usage);
    tokio::time::sleep(IDLE).await;
    let after = pids.map(usage);
    for ((who, before), after) in ["controller", "broker"].iter().zip(before).zip(after) {
        let share = (after.cpu - before.cpu) / IDLE.as_secs_f64() * 100.0;
        let measured = format!("{share:.1} % of a core, {:.0} MiB", after.rss);
        line(&format!("heartbeats each 10 s: {who}"), measured, "", "");
    }
    let (mut lists, mut reads, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..READS {
        lists.push(ask(&socket, "GET", "/api/agent", None).await.0);
        raw.push(raw_fan_in(&agents, &reader).await);
        let (took, answer) = ask(&socket, "GET", "/api/node/_all/uptime", None).await;
        let rows = answer["results"].as_array().map_or(0, Vec::len);
        assert_eq!(rows, count, "every host has a row");
        reads.push(took);
    }
    line("list of the agents, p50", format!("{:.1} ms", middle(&mut lists, 0.5)), "", "");
    let limit = middle(&mut raw, 0.5);
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let read = middle(&mut reads, share);
        line(
            &format!("read on _all, every row answered, {name}"),
            format!("{read:.0} ms"),
            &format!("core fan-in {limit:.0} ms"),
            &format!("{:.2}", read / limit),
        );
    }
    let (mut writes, mut raw) = (Vec::new(), Vec::new());
    let stored_before = streams(&reader).await.0;
    for round in 0..WRITES {
        raw.push(raw_stored(&agents, &reader).await);
        let zone = json!({ "timezone": if round % 2 == 0 { "UTC" } else { "Europe/Paris" } });
        let (took, _) = ask(&socket, "PUT", "/api/node/_all/timezone", Some(zone)).await;
        writes.push(took);
    }
    let (write, limit) = (middle(&mut writes, 0.5), middle(&mut raw, 0.5));
    line(
        "write on _all, every outcome recorded, p50",
        format!("{write:.0} ms"),
        &format!("stored by each {limit:.0} ms"),
        &format!("{:.2}", write / limit),
    );
    let (stored, consumers) = streams(&reader).await;
    #[expect(clippy::cast_precision_loss, reason = "counts of a few thousand")]
    let each = (stored - stored_before) as f64 / (WRITES * count) as f64;
    line("messages stored per host and write", format!("{each:.3}"), "", "");
    line("consumers of the stream", consumers.to_string(), "2 a controller", "");
    for (who, pid) in ["controller", "broker"].iter().zip(pids) {
        let measured = format!("{:.0} MiB", usage(pid).rss);
        line(&format!("memory after all that: {who}"), measured, "", "");
    }
    agents.is_over.store(true, Ordering::Relaxed);
}
