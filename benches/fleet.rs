//! What a fleet takes: one controller, one broker, and agents by the thousand that this process
//! plays, each figure beside the raw limit of the same run.
//!
//! `make bench-fleet` prints the tables of `docs/performance.md`; with names behind `--`, such as
//! `cargo bench --bench fleet -- jobs 1000`, those parts of it. The machine should do nothing
//! else. An agent here speaks the wire as a relay does, and does no work.
//!
//! Jobs are held against N, the lean path: the leanest job there can be on the same broker that
//! keeps a job until it is done, and its result. Its body is published to a work-queue stream and
//! acknowledged by it; a consumer that was made once delivers it from there; the worker puts one
//! result into a stream with one message for each subject, waits until that is acknowledged, and
//! acknowledges the work, which removes it; one watcher, shared by all clients, has the result
//! seen by whoever waits for it. N's clients and workers are tasks in this process, as the product's
//! are; the product's clients keep one HTTP connection each.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "starts processes, writes files and prints figures"
)]

#[path = "../tests/support/broker.rs"]
mod broker;
#[path = "../tests/support/say.rs"]
mod say;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::Client;
use broker::Broker;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::join_all;
use osapi::job::{Outcome, Report};
use osapi::link::{Ask, Stream, Told};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// How many agents, over how many connections, beside which setting of the broker's.
const FLEETS: [(usize, usize, &str); 3] = [
    (1_000, 1_000, "sync_interval: always"),
    (10_000, 20, "sync_interval: always"),
    (10_000, 20, "sync_interval: 2m"),
];
/// How many ask for jobs on four hosts at a time.
const CLIENTS: [usize; 2] = [1, 128];
/// How often, in turn with the lean path, and for how long each.
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(1500);
/// The syncs of the broker: each message by itself, and every two minutes, which is its default.
const SYNCS: [&str; 2] = ["sync_interval: always", "sync_interval: 2m"];
const BEAT: Duration = Duration::from_secs(10);
/// How long heartbeats alone are looked at.
const IDLE: Duration = Duration::from_secs(20);
const READS: usize = 15;
const WRITES: usize = 5;
const PATIENCE: Duration = Duration::from_mins(2);

fn main() {
    let parts: HashSet<String> =
        std::env::args().skip(1).filter(|part| !part.starts_with('-')).collect();
    let is_asked = |part: &str| parts.is_empty() || parts.contains(part);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    println!(
        "| agents | connections | sync | figure | measured | raw limit of the same run | ratio |"
    );
    println!("|---|---|---|---|---|---|---|");
    for sync in SYNCS {
        if is_asked("jobs") {
            runtime.block_on(jobs(sync));
        }
    }
    for (agents, connections, sync) in FLEETS {
        if is_asked(&agents.to_string()) {
            runtime.block_on(measure(agents, connections, sync));
        }
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

/// As much of what an agent is told as it takes to answer.
#[derive(Deserialize)]
struct Wake {
    #[serde(default)]
    tasks: Vec<Task>,
}

#[derive(Deserialize)]
struct Task {
    job: String,
}

fn about(number: usize) -> Value {
    json!({
        "machine_id": id(number), "hostname": format!("node-{number}"), "version": "bench",
        "started_at": 1, "labels": { "group": format!("rack{}.row{}", number % 10, number % 3) },
        "facts": {
            "os_info": { "distribution": "Debian GNU/Linux", "version": "12" },
            "uptime": "12 days, 3:04", "load_average": { "1min": 0.12, "5min": 0.2, "15min": 0.31 },
            "memory": { "total": 16_777_216_000_u64, "free": 8_388_608, "used": 4_194_304 },
            "architecture": "x86_64", "kernel_version": "6.1.0-18-amd64", "cpu_count": 8,
            "fqdn": format!("node-{number}.example.org"), "service_mgr": "systemd",
            "package_mgr": "apt", "primary_interface": "eth0",
            "interfaces": [{ "name": "eth0", "ipv4": "192.0.2.17", "family": "inet" }],
        },
        "conditions": [], "waiting": [], "hanging": [],
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
        let inbox = format!("_INBOX_osapi.{host}.x");
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
                let Wake { tasks } = serde_json::from_slice(&wake.payload).unwrap();
                let done = |Task { job }| {
                    let result = json!({ "uptime": "1 day", "changed": true });
                    let report = Report::new(job, now(), now(), Outcome::Done { result });
                    Told::new(&report, &host, None).unwrap()
                };
                let finish: Vec<_> = tasks.into_iter().map(done).collect();
                if !finish.is_empty() {
                    let payload = serde_json::to_vec(&Ask::Finish(finish)).unwrap().into();
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

/// Somebody who asks, on a connection that is kept. It is as lean as the clients of N: what it takes
/// itself is taken from both processors, and so is what it makes the controller do. So it is woken
/// by what there is to read only, as those of N are.
struct Caller {
    stream: Stream,
    buffer: BytesMut,
}

impl Caller {
    async fn connect(controller: &Controller) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(controller.socket()).await {
                Ok(stream) => {
                    let stream = Stream::new(stream).unwrap();
                    return Self { stream, buffer: BytesMut::new() };
                }
                Err(error) if Instant::now() > deadline => {
                    panic!("no controller: {error}\n{}", controller.log())
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// How long it took until all of the answer was there, and the answer.
    async fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> (Duration, Bytes) {
        let begun = Instant::now();
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: osapi\r\nprefer: wait=100\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await.unwrap();
        let answer = self.answer().await;
        (begun.elapsed(), answer)
    }

    async fn answer(&mut self) -> Bytes {
        let head = self.until(b"\r\n\r\n").await;
        let head = std::str::from_utf8(&head).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if let Some(length) = length {
            return self.take(length.parse().unwrap()).await.freeze();
        }
        let mut parts = BytesMut::new();
        loop {
            let size = self.until(b"\r\n").await;
            let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16);
            let size = size.unwrap();
            parts.extend_from_slice(&self.take(size + 2).await[..size]);
            if size == 0 {
                return parts.freeze();
            }
        }
    }

    async fn until(&mut self, end: &[u8]) -> BytesMut {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|it| it == end) {
                return self.buffer.split_to(at + end.len());
            }
            self.more().await;
        }
    }

    async fn take(&mut self, length: usize) -> BytesMut {
        while self.buffer.len() < length {
            self.buffer.reserve(length - self.buffer.len());
            self.more().await;
        }
        self.buffer.split_to(length)
    }

    async fn more(&mut self) {
        let count = self.stream.read_buf(&mut self.buffer).await.unwrap();
        assert!(count > 0, "hung up on");
    }
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

/// Each of them is asked at once, on core NATS, and answers by publishing, or by having its answer
/// stored. How long it takes until whoever reads has seen all of them.
async fn raw_fan_in(agents: &Agents, reader: &Client, is_stored: bool) -> Duration {
    let inbox = reader.new_inbox();
    let seen = if is_stored { inbox.clone() } else { "raw.answer.*".to_owned() };
    let mut seen = reader.subscribe(seen).await.unwrap();
    if is_stored {
        let stream =
            json!({ "name": "raw", "subjects": ["raw.answer.>"], "max_msgs_per_subject": 1 });
        api(reader, "STREAM.CREATE.raw", stream).await;
        let config = json!({ "deliver_subject": inbox, "ack_policy": "none", "mem_storage": true });
        let consumer = json!({ "stream_name": "raw", "config": config });
        api(reader, "CONSUMER.CREATE.raw", consumer).await;
    }
    let mut tasks = Vec::new();
    for number in 0..agents.count {
        let client = agents.client(number);
        let mut asked = client.subscribe(format!("raw.ask.{number}")).await.unwrap();
        tasks.push(tokio::spawn(async move {
            asked.next().await.unwrap();
            let answer = format!("raw.answer.{number}");
            if is_stored {
                acknowledged(&client, answer, 300).await;
            } else {
                client.publish(answer, vec![b'x'; 200].into()).await.unwrap();
            }
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
        seen.next().await.unwrap();
    }
    let took = begun.elapsed();
    join_all(tasks).await;
    if is_stored {
        api(reader, "STREAM.DELETE.raw", Value::Null).await;
    }
    took
}

async fn streams(reader: &Client) -> (u64, u64) {
    let answer = reader.request("$JS.API.STREAM.INFO.osapi", "".into()).await.unwrap();
    let info: Value = serde_json::from_slice(&answer.payload).unwrap();
    let consumers = info["state"]["consumer_count"].as_u64().unwrap_or(u64::MAX);
    (info["state"]["last_seq"].as_u64().unwrap_or_default(), consumers)
}

/// What many did at a time, over and over: how long each took, and how many there were a second.
struct Course {
    p50: f64,
    rate: f64,
    count: usize,
}

/// Has each of `clients` do it for as long as a round takes.
async fn course<F: Future<Output = ()> + Send + 'static>(
    clients: impl Iterator<Item = impl FnMut(usize) -> F + Send + 'static>,
) -> Course {
    let begun = Instant::now();
    let clients = clients.map(|mut once| {
        tokio::spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < ROUND {
                let begun = Instant::now();
                once(times.len()).await;
                times.push(begun.elapsed());
            }
            times
        })
    });
    let done = join_all(clients.collect::<Vec<_>>()).await;
    let took = begun.elapsed();
    let mut times: Vec<_> = done.into_iter().flat_map(Result::unwrap).collect();
    let count = times.len();
    Course { p50: middle(&mut times, 0.5), rate: per_second(count, took), count }
}

#[expect(clippy::cast_precision_loss, reason = "counts of some thousands")]
fn per_second(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Of some rounds the one in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Asks the broker's own interface.
async fn api(client: &Client, call: &str, body: Value) {
    let payload = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.request(format!("$JS.API.{call}"), payload.into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{call}: {answer}");
}

/// N, as the beginning of this file has it.
async fn lean(broker: &Broker, clients: usize) -> Course {
    let connect = || async { async_nats::connect(broker.address()).await.unwrap() };
    let (asking, working) = (connect().await, connect().await);
    let work = json!({ "name": "work", "subjects": ["lean.work.>"], "retention": "workqueue" });
    api(&asking, "STREAM.CREATE.work", work).await;
    let done = json!({ "name": "done", "subjects": ["lean.done.>"], "max_msgs_per_subject": 1 });
    api(&asking, "STREAM.CREATE.done", done).await;

    let inbox = working.new_inbox();
    let mut handed = working.subscribe(inbox.clone()).await.unwrap();
    let config = json!({ "deliver_subject": inbox, "ack_policy": "explicit" });
    let consumer = json!({ "stream_name": "work", "config": config });
    api(&working, "CONSUMER.CREATE.work", consumer).await;
    let worker = tokio::spawn(async move {
        while let Some(work) = handed.next().await {
            let (working, subject) = (working.clone(), work.subject.replace("work", "done"));
            tokio::spawn(async move {
                acknowledged(&working, subject, 300).await;
                working.publish(work.reply.unwrap(), "+ACK".into()).await.unwrap();
            });
        }
    });

    let inbox = asking.new_inbox();
    let mut results = asking.subscribe(inbox.clone()).await.unwrap();
    let config = json!({ "deliver_subject": inbox, "ack_policy": "none", "mem_storage": true });
    let consumer = json!({ "stream_name": "done", "config": config });
    api(&asking, "CONSUMER.CREATE.done", consumer).await;
    let waiting: Arc<Vec<Notify>> = Arc::new((0..clients).map(|_| Notify::new()).collect());
    let seen = waiting.clone();
    let watcher = tokio::spawn(async move {
        while let Some(result) = results.next().await {
            let client: usize = result.subject.split('.').nth(2).unwrap().parse().unwrap();
            seen[client].notify_one();
        }
    });

    let course = course((0..clients).map(|client| {
        let (asking, waiting) = (asking.clone(), waiting.clone());
        move |number| {
            let (asking, waiting) = (asking.clone(), waiting.clone());
            async move {
                acknowledged(&asking, format!("lean.work.{client}.{number}"), 500).await;
                waiting[client].notified().await;
            }
        }
    }));
    let course = course.await;
    worker.abort();
    watcher.abort();
    for stream in ["work", "done"] {
        api(&asking, &format!("STREAM.DELETE.{stream}"), Value::Null).await;
    }
    course
}

/// Publishes so many bytes and waits until they are stored.
async fn acknowledged(client: &Client, subject: String, size: usize) {
    let answer = client.request(subject, vec![b'x'; size].into()).await.unwrap();
    assert!(answer.payload.starts_with(b"{\"stream\""), "{:?}", answer.payload);
}

/// Jobs on four hosts, one by one and many at a time.
async fn jobs(sync: &str) {
    for clients in CLIENTS {
        let (mut leans, mut courses, mut stored) = (Vec::new(), Vec::new(), Vec::new());
        let mut used = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            // Each round begins with as little stored as the lean path does.
            let broker = Broker::with("", sync);
            leans.push(lean(&broker, clients).await);
            let controller = Controller::start(&broker);
            let mut callers = Vec::new();
            for _ in 0..clients {
                let caller = Caller::connect(&controller).await;
                callers.push(Arc::new(tokio::sync::Mutex::new(caller)));
            }
            let agents = Agents::connect(&broker.address(), 4, 4).await;
            agents.enrol().await;
            agents.beat();
            let reader = async_nats::connect(broker.address()).await.unwrap();
            let before = streams(&reader).await.0;
            let pids = [controller.process.id(), broker.pid()];
            let used_before = pids.map(usage);
            let course = course(callers.into_iter().enumerate().map(|(client, caller)| {
                move |number| {
                    let caller = caller.clone();
                    async move {
                        let path = format!("/api/node/{}/timezone", id((client + number) % 4));
                        let zone = if number % 2 == 0 { "UTC" } else { "Europe/Paris" };
                        let body = json!({ "timezone": zone });
                        caller.lock().await.ask("PUT", &path, Some(&body)).await;
                    }
                }
            }));
            let course = course.await;
            #[expect(clippy::cast_precision_loss, reason = "counts of some thousands")]
            for ((used, before), after) in used.iter_mut().zip(used_before).zip(pids.map(usage)) {
                used.push((after.cpu - before.cpu) * 1e6 / course.count as f64);
            }
            courses.push(course);
            stored.push(streams(&reader).await.0 - before);
            agents.is_over.store(true, Ordering::Relaxed);
        }
        let line = |figure: &str, measured: String, limit: String, ratio: f64| {
            println!(
                "| 4 | {clients} clients | {sync} | {figure} | {measured} | {limit} | {ratio:.2} |"
            );
        };
        let of = |courses: &[Course], what: fn(&Course) -> f64| {
            median(courses.iter().map(what).collect())
        };
        let ratio = |what: fn(&Course) -> f64| {
            let ratios = courses.iter().zip(&leans).map(|(job, lean)| what(job) / what(lean));
            median(ratios.collect())
        };
        let (p50, rate): (fn(&Course) -> f64, fn(&Course) -> f64) = (|one| one.p50, |one| one.rate);
        let measured = format!("{:.2} ms", of(&courses, p50));
        let limit = format!("N {:.2} ms", of(&leans, p50));
        line("job, p50", measured, limit, ratio(p50));
        let (measured, limit) =
            (format!("{:.0}", of(&courses, rate)), format!("N {:.0}", of(&leans, rate)));
        line("jobs a second", measured, limit, ratio(rate));
        #[expect(clippy::cast_precision_loss, reason = "counts of some thousands")]
        let each = |(stored, course): (&u64, &Course)| *stored as f64 / course.count as f64;
        let stored = median(stored.iter().zip(&courses).map(each).collect());
        let limit = "2 without an audit".to_owned();
        line("messages stored per job", format!("{stored:.2}"), limit, stored / 2.0);
        let [controller, broker] = used.map(median);
        let measured = format!("{controller:.0} µs");
        line(
            "processor time a job: controller, of the broker's",
            measured,
            format!("{broker:.0} µs"),
            controller / broker,
        );
    }
}

async fn measure(count: usize, connections: usize, sync: &str) {
    let broker = Broker::with("max_connections: 65536", sync);
    let controller = Controller::start(&broker);
    drop(Caller::connect(&controller).await);
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
    let mut caller = Caller::connect(&controller).await;
    let (mut lists, mut reads, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..READS {
        lists.push(caller.ask("GET", "/api/agent", None).await.0);
        raw.push(raw_fan_in(&agents, &reader, false).await);
        let (took, answer) = caller.ask("GET", "/api/node/_all/uptime", None).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
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
        raw.push(raw_fan_in(&agents, &reader, true).await);
        let zone = json!({ "timezone": if round % 2 == 0 { "UTC" } else { "Europe/Paris" } });
        let (took, _) = caller.ask("PUT", "/api/node/_all/timezone", Some(&zone)).await;
        writes.push(took);
    }
    let (write, limit) = (middle(&mut writes, 0.5), middle(&mut raw, 0.5));
    line(
        "write on _all, every outcome recorded, p50",
        format!("{write:.0} ms"),
        &format!("stored fan-in {limit:.0} ms"),
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
