//! What the product takes, each figure beside the limit of the same run.
//!
//! Absolute times drift by a factor of two from hour to hour on a shared machine, so only ratios
//! count, and every limit is measured between the rounds of what it limits. `make bench` prints
//! the table of `docs/performance.md`.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "starts processes, writes files and prints figures"
)]

#[path = "../tests/support/http.rs"]
mod http;
#[path = "../tests/support/say.rs"]
mod say;
#[path = "../tests/support/appliance.rs"]
mod support;

use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use osapi::clock::Clock;
use osapi::error::Result;
use osapi::job::Task;
use osapi::job::{Job, Options, Outcome, Record, Report};
use osapi::link::{Answer, Ask, Class, Desk, Sealed, serve};
use osapi::store::redb::RedbStore;
use osapi::store::{Bounds, Expect, Step, Store};
use serde_json::{Value, json};
use support::Appliance;
use tempfile::TempDir;

/// How often everything is measured in turn.
const ROUNDS: usize = 20;
/// How often a restart and a crowd are measured.
const TRIES: usize = 9;
const SAMPLES: usize = 50;

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("bare") => bare(Path::new(&args.next().unwrap_or_default())),
        _ => figures(),
    }
}

/// A keep-alive connection.
struct Client(UnixStream);

impl Client {
    fn new(socket: &Path) -> Self {
        Self(UnixStream::connect(socket).unwrap())
    }

    /// Status and body of the answer.
    fn ask(&mut self, method: &str, path: &str, more: &str, body: &str) -> (u16, Vec<u8>) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: osapi\r\ncontent-type: application/json\r\n{more}\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).unwrap();
        let (mut bytes, mut chunk) = (Vec::new(), [0; 16 * 1024]);
        loop {
            let read = self.0.read(&mut chunk).unwrap();
            assert!(read > 0, "the server hung up");
            bytes.extend(&chunk[..read]);
            let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&bytes[..end]).unwrap().to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                return (head[9..12].parse().unwrap(), bytes[end + 4..].to_vec());
            }
        }
    }
}

/// The least that hyper can be asked to do, in a process of its own.
fn bare(socket: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async {
                let answer = hyper::service::service_fn(|_| async {
                    let body = vec![b'x'; 300];
                    Ok::<_, Infallible>(hyper::Response::new(http_body_util::Full::new(
                        bytes::Bytes::from(body),
                    )))
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(io, answer).await;
            });
        }
    });
}

struct Bare(Child);

impl Bare {
    fn start(socket: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap()).arg("bare").arg(socket).spawn();
        let bare = Self(child.unwrap());
        while UnixStream::connect(socket).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        bare
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Samples of one figure, in microseconds.
#[derive(Default)]
struct Samples(Vec<f64>);

impl Samples {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = work();
        self.0.push(begun.elapsed().as_secs_f64() * 1e6);
        result
    }

    fn at(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = ((sorted.len() as f64 - 1.0) * quantile) as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    fn p50(&self) -> f64 {
        self.at(0.5)
    }

    fn show(&self, name: &str, what: &str) {
        println!("| {name} | {what} | {:.0} | {:.0} |", self.p50(), self.at(0.99));
    }
}

/// Answers an agent with one task at a time that it refuses at once: a question to its process
/// with nothing in it.
struct Quiz {
    wanted: tokio::sync::mpsc::Receiver<()>,
    number: u64,
}

/// Who shares the quiz between the connections of one agent.
#[derive(Clone)]
struct Table {
    quiz: Arc<tokio::sync::Mutex<Quiz>>,
    done: tokio::sync::mpsc::Sender<()>,
}

#[async_trait]
impl Desk for Table {
    async fn answer(&mut self, ask: Ask) -> Result<Answer> {
        match ask {
            Ask::Next(next) if next.classes.contains(&Class::Look) => {
                if !next.done.is_empty() {
                    let _ = self.done.send(()).await;
                }
                let mut quiz = self.quiz.lock().await;
                let _ = quiz.wanted.recv().await;
                quiz.number += 1;
                let job = format!("00000000-0000-7000-8000-{:012x}", quiz.number);
                let task = Task {
                    job,
                    host: "0123456789abcdef0123456789abcdef".to_owned(),
                    op: "nothing".to_owned(),
                    params: json!({}),
                    options: Options::default(),
                    objects: std::collections::BTreeMap::new(),
                    sealed: None,
                    called_off: false,
                    left_ms: 60_000,
                    begin_by: None,
                    until: None,
                };
                let body = serde_json::to_string(&task).unwrap();
                Ok(Answer::Tasks {
                    tasks: vec![Sealed::new(body, "", None)],
                    has_more: false,
                    heads: Vec::new(),
                    called_off: Vec::new(),
                })
            }
            Ask::Next(next) => {
                tokio::time::sleep(Duration::from_millis(next.wait_ms)).await;
                let (tasks, heads, called_off) = (Vec::new(), Vec::new(), Vec::new());
                Ok(Answer::Tasks { tasks, has_more: false, heads, called_off })
            }
            Ask::Finish(_) => {
                let _ = self.done.send(()).await;
                Ok(Answer::Done)
            }
            _ => Ok(Answer::Done),
        }
    }
}

/// A: an empty question put to the agent's process, and its answer.
fn questions(count: usize) -> Samples {
    let mut appliance = Appliance::new();
    let socket = appliance.dir().join("agent.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (ask, wanted) = tokio::sync::mpsc::channel(1);
        let (done, mut finished) = tokio::sync::mpsc::channel(1);
        let quiz = Quiz { wanted, number: 0 };
        let table = Table { quiz: Arc::new(tokio::sync::Mutex::new(quiz)), done };
        let uid = rustix::process::getuid().as_raw();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, uid, table.clone()));
            }
        });
        appliance.start_agent();
        let mut samples = Samples::default();
        for round in 0..count + 20 {
            let begun = Instant::now();
            ask.send(()).await.unwrap();
            finished.recv().await.unwrap();
            if round >= 20 {
                samples.0.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
        samples
    })
}

fn job_record(number: usize) -> Step {
    let value = json!({
        "id": format!("00000000-0000-7000-8000-{number:012x}"), "op": "node.sysctl.update",
        "caller": "root", "target": "_any", "hosts": ["0123456789abcdef0123456789abcdef"],
        "params": { "key": "test.n0", "value": "1" }, "more": "x".repeat(200),
    });
    let key = format!("job.{number:012}");
    Step::new().put(key, value.to_string(), Expect::Absent).note(osapi::store::audit::Note::Event(
        json!({
            "number": number, "more": "x".repeat(200),
        }),
    ))
}

/// C and B64: commits of one job record through the product's own writer.
fn commits(dir: &Path, round: usize, alone: &mut Samples) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        std::fs::create_dir_all(dir).unwrap();
        let store = RedbStore::open(dir, Clock::default(), Bounds::default()).unwrap();
        // As the product's, it is no empty one after the first round.
        let first = round * 1_000_000;
        for number in first..first + SAMPLES {
            let begun = Instant::now();
            store.commit(job_record(number)).await.unwrap();
            alone.0.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        let begun = Instant::now();
        let waiting = (0..64).map(|client| {
            let store = store.clone();
            async move {
                for n in 0..25 {
                    store.commit(job_record(first + 100_000 + client * 1_000 + n)).await.unwrap();
                }
            }
        });
        join_all(waiting).await;
        1_600.0 / begun.elapsed().as_secs_f64()
    })
}

/// S: one 4 KiB append to a growing file, and fdatasync.
fn appends(dir: &Path, samples: &mut Samples) {
    let mut file = std::fs::File::create(dir.join("growing")).unwrap();
    for _ in 0..SAMPLES {
        samples.time(|| {
            file.write_all(&[7; 4096]).unwrap();
            file.sync_data().unwrap();
        });
    }
}

fn figures() {
    let scratch = TempDir::new().unwrap();
    let bare = Bare::start(&scratch.path().join("bare.sock"));
    let mut appliance = Appliance::new();
    for n in 0..128 {
        appliance.write(&format!("proc/sys/test/n{n}"), "0\n");
    }
    appliance.start();
    for (name, content) in [("a", "first\n"), ("b", "second\n")] {
        assert_eq!(http::upload(&appliance.socket(), name, content).unwrap().status, 201);
    }
    let body = json!({ "key": "test.n0", "value": "1" });
    assert_eq!(
        appliance.ask("POST", "/api/node/_any/sysctl", &[], Some(&body)).unwrap().status,
        200
    );

    let [mut h, mut c, mut s, mut read, mut accept, mut done, mut small] =
        std::array::from_fn(|_| Samples::default());
    let (mut a, mut b64) = (Samples::default(), Samples::default());
    let (mut product, mut hyper) =
        (Client::new(&appliance.socket()), Client::new(&scratch.path().join("bare.sock")));
    let before = commits_so_far(&appliance);
    let mut jobs = 0u32;
    for round in 0..ROUNDS {
        // What others have left to be written would go along with whatever is flushed here.
        let _ = Command::new("sync").status();
        for _ in 0..SAMPLES {
            h.time(|| hyper.ask("GET", "/x", "", ""));
        }
        a.0.extend(questions(SAMPLES).0);
        b64.0.push(commits(&scratch.path().join("store"), round, &mut c));
        appends(scratch.path(), &mut s);
        for _ in 0..SAMPLES {
            let (status, _) = read.time(|| product.ask("GET", "/api/node/_any/load", "", ""));
            assert_eq!(status, 200);
        }
        for n in 0..SAMPLES {
            let put = "/api/node/_any/sysctl/test.n0";
            let (status, _) = done.time(|| product.ask("PUT", put, "", r#"{"value":"1"}"#));
            assert_eq!(status, 200);
            let later = "prefer: respond-async\r\n";
            let (status, answer) =
                accept.time(|| product.ask("PUT", put, later, r#"{"value":"1"}"#));
            assert_eq!(status, 202);
            until_final(&mut product, &answer);
            let object = if n % 2 == 0 { "a" } else { "b" };
            let body =
                json!({ "object_name": object, "path": "/etc/small", "content_type": "raw" });
            let deploy = "/api/node/_any/file/deploy";
            let (status, answer) =
                small.time(|| product.ask("POST", deploy, "", &body.to_string()));
            assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
            jobs += 3;
        }
    }
    let per_job =
        f64::from(u32::try_from(commits_so_far(&appliance) - before).unwrap()) / f64::from(jobs);
    drop(bare);
    println!("| | | p50 us | p99 us |\n|---|---|---|---|");
    h.show("H", "bare hyper answer");
    a.show("A", "empty question to the agent's process");
    c.show("C", "commit of one job record");
    s.show("S", "4 KiB append + fdatasync");
    accept.show("accept", "a write is accepted (202)");
    done.show("done", "a write already done, end to end");
    small.show("small", "a change of one small file, end to end");
    read.show("read", "a read, end to end");
    println!("\n| goal | figure | limit | share |\n|---|---|---|---|");
    let (h, a, c, s) = (h.p50(), a.p50(), c.p50(), s.p50());
    goal("accept <= 1.5 (C + H)", accept.p50(), 1.5 * (c + h));
    goal("done <= 1.5 (2C + 2H + 2S)", done.p50(), 1.5 * (2.0 * c + 2.0 * h + 2.0 * s));
    goal("small <= 1.5 (2C + 2H + 8S)", small.p50(), 1.5 * (2.0 * c + 2.0 * h + 8.0 * s));
    goal("read <= 1.5 (H + A)", read.p50(), 1.5 * (h + a));
    println!("| commits a job at 1 client = 2 | {per_job:.3} | 2 | |");
    crowd(&appliance, b64.p50());
    drop(appliance);
    reopen("newest", true);
    reopen("oldest", false);
}

/// Ready again after kill -9, with 10,000 finished jobs and 1,000 unfinished ones.
fn reopen(which: &str, unfinished_last: bool) {
    let mut appliance = Appliance::new();
    let probe = fill(&appliance.state().join("controller"), unfinished_last);
    appliance.start_controller();
    let path = format!("/api/job/{probe}");
    let answers = |appliance: &Appliance| {
        appliance.ask("GET", &path, &[], None).is_ok_and(|answer| answer.status == 200)
    };
    while !answers(&appliance) {}
    let mut samples = Samples::default();
    for _ in 0..TRIES {
        appliance.kill_controller();
        samples.time(|| {
            appliance.start_controller();
            while !answers(&appliance) {}
        });
    }
    let (ready, worst) = (samples.p50() / 1000.0, samples.at(1.0) / 1000.0);
    println!(
        "| ready after kill -9, 1,000 unfinished as the {which} <= 200 ms | {ready:.0} ms, worst \
         {worst:.0} | 200 ms | {:.2} |",
        ready / 200.0
    );
}

fn fill(dir: &Path, unfinished_last: bool) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        std::fs::create_dir_all(dir).unwrap();
        let clock = Clock::default();
        let store = RedbStore::open(dir, clock.clone(), Bounds::default()).unwrap();
        let begun = clock.wall() - 60_000;
        let is_open = |number: u64| if unfinished_last { number >= 10_000 } else { number < 1_000 };
        for chunk in (0..11_000u64).collect::<Vec<_>>().chunks(500) {
            let steps = chunk.iter().flat_map(|number| {
                let id = id(begun + number);
                let host = "0123456789abcdef0123456789abcdef".to_owned();
                let job = Job {
                    id: id.clone(),
                    op: "node.sysctl.update".to_owned(),
                    caller: "root".to_owned(),
                    target: "_any".to_owned(),
                    hosts: vec![host.clone()],
                    created: begun + number,
                    deadline: clock.deadline(3_600_000),
                    cancelled: None,
                    retried: Vec::new(),
                    confirmed: None,
                    moved: Vec::new(),
                    is_settled: false,
                    unheard: Vec::new(),
                };
                let params = json!({ "key": "test.n0", "value": number.to_string() });
                let (options, objects) = (Options::default(), std::collections::BTreeMap::new());
                let record = Record { job, params, options, objects, sealed: None, once: None };
                let record = serde_json::to_vec(&record).unwrap();
                let mut steps = vec![Step::new().put(format!("job.{id}"), record, Expect::Absent)];
                if !is_open(*number) {
                    let result = json!({ "changed": false, "key": "test.n0" });
                    let outcome = Outcome::Done { result };
                    let report = Report::new(id.clone(), begun, begun, outcome);
                    let report = serde_json::to_vec(&report).unwrap();
                    let key = format!("job.{id}.{host}");
                    steps.push(Step::new().put(key, report, Expect::Absent));
                }
                steps
            });
            let commits = join_all(steps.map(|step| store.commit(step))).await;
            assert!(commits.iter().all(Result::is_ok));
        }
        id(begun + if unfinished_last { 10_999 } else { 0 })
    })
}

/// A `UUIDv7` of that millisecond.
fn id(ms: u64) -> String {
    format!("{:08x}-{:04x}-7000-8000-000000000000", ms >> 16, ms & 0xffff)
}

fn goal(name: &str, figure: f64, limit: f64) {
    println!("| {name} | {figure:.0} us | {limit:.0} us | {:.2} |", figure / limit);
}

fn commits_so_far(appliance: &Appliance) -> u64 {
    let answer = appliance.ask("GET", "/metrics", &[], None).unwrap();
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let line = text.lines().find(|line| line.starts_with("osapi_store_commits_total"));
    let number = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
    number.parse().unwrap()
}

fn until_final(client: &mut Client, answer: &[u8]) {
    let answer: Value = serde_json::from_slice(answer).unwrap();
    let path = format!("/api/job/{}", answer["job_id"].as_str().unwrap());
    loop {
        // Each look is a note that rides along with the next commit.
        std::thread::sleep(Duration::from_millis(2));
        let (_, body) = client.ask("GET", &path, "", "");
        let job: Value = serde_json::from_slice(&body).unwrap();
        if !matches!(job["status"].as_str(), Some("submitted" | "processing")) {
            return;
        }
    }
}

/// 128 clients submit at once, in bursts that the lane of one host holds.
fn crowd(appliance: &Appliance, b64: f64) {
    const CLIENTS: usize = 128;
    const EACH: usize = 12;
    let (mut rates, mut shares) = (Samples::default(), Samples::default());
    for _ in 0..TRIES {
        let before = commits_so_far(appliance);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for n in 0..CLIENTS {
                let socket = appliance.socket();
                let work = move || {
                    // As uid 0 as many connections as wanted; others have 64.
                    let mut client = Client::new(&socket);
                    let path = format!("/api/node/_any/sysctl/test.n{}", n % 8);
                    for _ in 0..EACH {
                        let later = "prefer: respond-async\r\n";
                        let (status, answer) = client.ask("PUT", &path, later, r#"{"value":"1"}"#);
                        assert_eq!(status, 202, "{}", String::from_utf8_lossy(&answer));
                    }
                };
                scope.spawn(work);
            }
        });
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let count = (CLIENTS * EACH) as f64;
        rates.0.push(count / begun.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let commits = (commits_so_far(appliance) - before) as f64;
        shares.0.push(commits / count);
        drain(appliance);
    }
    println!(
        "| 128 clients: accepted/s >= 0.3 B64 | {:.0}/s | {:.0}/s | {:.2} of B64 |",
        rates.p50(),
        0.3 * b64,
        rates.p50() / b64
    );
    println!("| commits an accepted write at 128 <= 0.05 | {:.3} | 0.05 | |", shares.p50());
}

fn drain(appliance: &Appliance) {
    loop {
        let answer = appliance.ask("GET", "/api/job?status=submitted&limit=1", &[], None).unwrap();
        let open = |status: &str| answer.json()["status_counts"][status].as_u64().unwrap_or(0);
        if open("submitted") + open("processing") == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
