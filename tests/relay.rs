//! The relay between an agent on its socket and a controller that a test plays at the broker.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use osapi::broker::Settings;
use osapi::error::{Kind, Result};
use osapi::job::{Outcome, Report};
use osapi::link::{About, Answer, Ask, Class, Link, MAX_FRAME, Next, SocketLink, Told, serve};
use osapi::relay::Relay;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::broker::{self, Broker};

const HOST: &str = "0123456789abcdef0123456789abcdef";
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a question waits of which a test wants it to go on waiting.
const LONG: u64 = 25_000;

/// A relay with its broker, and what a controller hears there.
struct Bench {
    broker: Broker,
    relay: Arc<Relay>,
    socket: PathBuf,
    controller: Client,
    asks: Subscriber,
    beats: Subscriber,
    _dir: TempDir,
}

/// One connection of the agent.
#[derive(Clone)]
struct Agent(Arc<Mutex<SocketLink>>);

/// A question that has reached the controller.
struct Asked {
    ask: Value,
    reply: async_nats::Subject,
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it takes too long")
}

/// The id of a job, in order of `number`.
fn job(number: u64) -> String {
    format!("01900000-0000-7000-8000-{number:012x}")
}

fn body(number: u64) -> String {
    json!({ "job": job(number), "op": "node.os.get" }).to_string()
}

fn handed(number: u64, class: &str) -> Value {
    json!({ "job": job(number), "class": class, "task": { "body": body(number) } })
}

fn tasks(numbers: &[u64]) -> Value {
    let tasks: Vec<_> = numbers.iter().map(|number| json!({ "body": body(*number) })).collect();
    json!({ "Ok": { "tasks": { "tasks": tasks } } })
}

fn next(class: Class, holds: &[u64], wait_ms: u64) -> Ask {
    let holds = holds.iter().map(|number| job(*number)).collect();
    Ask::Next(Next { holds, classes: vec![class], most: 1, wait_ms, ..Next::default() })
}

fn presence(host: Option<&str>) -> Ask {
    let about = host
        .map(|host| Box::new(About { machine_id: host.to_owned(), pid: 1, ..About::default() }));
    Ask::Next(Next { about, ..Next::default() })
}

/// The jobs of an answer, by number, and what it says was called off.
fn split(answer: Result<Answer>) -> (Vec<u64>, Vec<u64>) {
    let Answer::Tasks { tasks, called_off, .. } = answer.unwrap() else { panic!("no tasks") };
    let number = |id: &str| u64::from_str_radix(id.rsplit('-').next().unwrap(), 16).unwrap();
    let job = |body: &str| -> u64 {
        let task: Value = serde_json::from_str(body).unwrap();
        number(task["job"].as_str().unwrap())
    };
    let jobs = tasks.iter().map(|task| job(&task.body)).collect();
    (jobs, called_off.iter().map(|id| number(id)).collect())
}

fn jobs(answer: Result<Answer>) -> Vec<u64> {
    split(answer).0
}

fn report(number: u64) -> Told {
    let report = Report::new(job(number), 1, 2, Outcome::from(Ok(json!({}))));
    Told::new(&report, "web1", None).unwrap()
}

impl Agent {
    fn ask(&self, ask: Ask) -> JoinHandle<Result<Answer>> {
        let link = self.0.clone();
        tokio::task::spawn_blocking(move || link.lock().unwrap().ask(&ask))
    }

    async fn asks(&self, ask: Ask) -> Result<Answer> {
        within(self.ask(ask)).await.unwrap()
    }
}

impl Bench {
    async fn new() -> Self {
        let broker = Broker::with("max_payload: 8MB", "");
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let settings = Settings {
            servers: vec![broker.address()],
            namespace: "fleet".to_owned(),
            name: "web1".to_owned(),
            replicas: 1,
            ..Settings::default()
        };
        let controller = async_nats::connect(broker.address()).await.unwrap();
        let asks = controller.queue_subscribe("fleet.ask.*", "controllers".into()).await.unwrap();
        let beats = controller.subscribe("fleet.beat.*").await.unwrap();
        controller.flush().await.unwrap();
        let relay = Arc::new(Relay::start(settings).unwrap());
        let serving = relay.clone();
        tokio::spawn(async move {
            let uid = rustix::process::getuid().as_raw();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, uid, serving.desk()));
            }
        });
        Self { broker, relay, socket, controller, asks, beats, _dir: dir }
    }

    fn connect(&self) -> Agent {
        let uid = rustix::process::getuid().as_raw();
        Agent(Arc::new(Mutex::new(SocketLink::new(&self.socket, uid))))
    }

    /// An agent that has said who it is, and whose relay hears wakes by now.
    async fn enrolled(&mut self) -> Agent {
        let agent = self.connect();
        // Until the relay is connected, nobody is there for the agent.
        loop {
            let asking = agent.ask(presence(Some(HOST)));
            tokio::select! {
                asked = self.asked() => {
                    assert_eq!(asked.ask["next"]["about"]["machine_id"], HOST);
                    self.answer(&asked, &tasks(&[])).await;
                    within(asking).await.unwrap().unwrap();
                    break;
                }
                () = async {
                    while !asking.is_finished() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                } => {
                    assert_eq!(asking.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
                }
            }
        }
        let (host, beat) = self.beat().await;
        assert_eq!(host, HOST);
        assert_eq!(beat["about"]["machine_id"], HOST, "the first beat says who it is: {beat}");
        agent
    }

    async fn asked(&mut self) -> Asked {
        let message = within(self.asks.next()).await.unwrap();
        assert_eq!(message.subject.as_str(), format!("fleet.ask.{HOST}"));
        let ask = serde_json::from_slice(&message.payload).unwrap();
        Asked { ask, reply: message.reply.unwrap() }
    }

    async fn answer(&self, asked: &Asked, answer: &Value) {
        self.send(asked.reply.as_str(), answer.to_string().into_bytes()).await;
    }

    async fn send(&self, subject: &str, payload: Vec<u8>) {
        self.controller.publish(subject.to_owned(), payload.into()).await.unwrap();
        self.controller.flush().await.unwrap();
    }

    async fn wake(&self, wake: &Value) {
        self.send(&format!("fleet.wake.{HOST}"), wake.to_string().into_bytes()).await;
    }

    async fn beat(&mut self) -> (String, Value) {
        let message = within(self.beats.next()).await.unwrap();
        let host = message.subject.as_str().strip_prefix("fleet.beat.").unwrap().to_owned();
        (host, serde_json::from_slice(&message.payload).unwrap())
    }

    /// The next beat that is so.
    async fn beat_that(&mut self, is_so: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (_, beat) = self.beat().await;
            if is_so(&beat) {
                return beat;
            }
        }
    }

    /// Has the relay ask for each of `classes` what it may have missed, and say that it is nothing.
    async fn settle(&mut self, agent: &Agent, classes: &[Class]) {
        for class in classes {
            let asking = agent.ask(next(*class, &[], 0));
            let asked = self.asked().await;
            assert_eq!(asked.ask["next"]["wait_ms"], 0, "no question waits at the broker");
            self.answer(&asked, &tasks(&[])).await;
            assert!(jobs(within(asking).await.unwrap()).is_empty());
        }
    }

    /// Nothing was asked since: the next question to arrive is one that comes now.
    async fn was_not_asked(&mut self, agent: &Agent) {
        let asking =
            agent.ask(Ask::Fetch { job: "j".to_owned(), object: "marker".to_owned(), offset: 0 });
        let asked = self.asked().await;
        assert_eq!(asked.ask["fetch"]["object"], "marker", "{}", asked.ask);
        self.answer(&asked, &json!({ "Ok": { "part": "" } })).await;
        assert!(matches!(within(asking).await.unwrap(), Ok(Answer::Part(_))));
    }
}

fn is_there(test: &str) -> bool {
    broker::is_there(test)
}

#[tokio::test(flavor = "multi_thread")]
async fn wakes_reach_whoever_asks_for_their_class_in_order_and_once() {
    if !is_there("wakes over a broker") {
        return;
    }
    let mut bench = Bench::new().await;
    let first = bench.enrolled().await;
    bench.settle(&first, &Class::ALL).await;

    let (looks, changes) = (bench.connect(), bench.connect());
    let looking = looks.ask(next(Class::Look, &[], LONG));
    let changing = changes.ask(next(Class::Change, &[], LONG));
    let tasks = [handed(9, "write"), handed(8, "write"), handed(8, "write"), handed(9, "write")];
    bench.wake(&json!({ "tasks": tasks })).await;
    assert_eq!(jobs(within(changing).await.unwrap()), [8]);
    // Somebody who heard an older beat says it again.
    bench.wake(&json!({ "tasks": [handed(8, "write")] })).await;
    assert_eq!(jobs(changes.asks(next(Class::Change, &[8], LONG)).await), [9]);
    bench.wake(&json!({ "tasks": [handed(9, "write"), handed(8, "write")] })).await;
    assert!(!looking.is_finished(), "it is for another class");
    bench.wake(&json!({ "tasks": [handed(3, "read")] })).await;
    assert_eq!(jobs(within(looking).await.unwrap()), [3]);
    assert!(jobs(changes.asks(next(Class::Change, &[8, 9], 1)).await).is_empty());
    bench.was_not_asked(&first).await;
    drop(bench.relay.line());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_is_asked_for() {
    if !is_there("more wakes than there is room for") {
        return;
    }
    let mut bench = Bench::new().await;
    let agent = bench.enrolled().await;
    bench.settle(&agent, &Class::ALL).await;
    let all: Vec<_> = (0..70).map(|number| handed(number, "write")).collect();
    bench.wake(&json!({ "tasks": all })).await;
    for number in 0..64 {
        assert_eq!(jobs(agent.asks(next(Class::Change, &[], LONG)).await), [number]);
    }
    // What comes meanwhile does not overtake.
    bench.wake(&json!({ "tasks": [handed(71, "write")] })).await;
    bench.was_not_asked(&bench.connect()).await;
    let asking = agent.ask(next(Class::Change, &[63], LONG));
    let asked = bench.asked().await;
    assert_eq!(asked.ask["next"]["classes"], json!(["write"]));
    assert_eq!(asked.ask["next"]["most"], 1);
    let mut answer = tasks(&[64]);
    answer["Ok"]["tasks"]["has_more"] = json!(true);
    bench.answer(&asked, &answer).await;
    assert_eq!(jobs(within(asking).await.unwrap()), [64]);
    let asking = agent.ask(next(Class::Change, &[64], LONG));
    let asked = bench.asked().await;
    assert_eq!(asked.ask["next"]["holds"], json!([job(64)]));
    bench.answer(&asked, &tasks(&[65])).await;
    assert_eq!(jobs(within(asking).await.unwrap()), [65]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wake_may_have_the_host_ask() {
    if !is_there("wakes that have a host ask") {
        return;
    }
    let mut bench = Bench::new().await;
    let agent = bench.enrolled().await;
    bench.settle(&agent, &Class::ALL).await;
    let waiting = agent.ask(next(Class::Act, &[4], LONG));
    bench.wake(&json!({ "ask": ["execute"] })).await;
    let asked = bench.asked().await;
    assert_eq!(asked.ask["next"]["classes"], json!(["execute"]));
    assert_eq!(asked.ask["next"]["holds"], json!([job(4)]));
    // It fails: whoever asks next asks again.
    bench.answer(&asked, &json!({ "Err": { "kind": "full", "message": "no" } })).await;
    assert_eq!(within(waiting).await.unwrap().unwrap_err().kind(), Kind::Full);
    let waiting = agent.ask(next(Class::Act, &[4], LONG));
    let asked = bench.asked().await;
    bench.answer(&asked, &tasks(&[5])).await;
    assert_eq!(jobs(within(waiting).await.unwrap()), [5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_new_connection_asks_and_says_who_it_is() {
    if !is_there("a broker that goes away") {
        return;
    }
    let mut bench = Bench::new().await;
    let agent = bench.enrolled().await;
    bench.settle(&agent, &Class::ALL).await;
    let changes = bench.connect();
    let mut waiting = changes.ask(next(Class::Change, &[], LONG));
    bench.broker.kill();
    // The relay finds out by itself; until then a question may be lost as well.
    let refused = agent.asks(presence(None)).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable);
    assert!(!waiting.is_finished());
    bench.broker.restart();
    bench.beat_that(|beat| !beat["about"].is_null()).await;
    let asked = loop {
        tokio::select! {
            asked = bench.asked() => break asked,
            // The controller was not back yet.
            answer = &mut waiting => {
                assert_eq!(answer.unwrap().unwrap_err().kind(), Kind::Unavailable);
                waiting = changes.ask(next(Class::Change, &[], LONG));
            }
        }
    };
    assert_eq!(asked.ask["next"]["classes"], json!(["write"]));
    bench.answer(&asked, &tasks(&[1])).await;
    assert_eq!(jobs(within(waiting).await.unwrap()), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_called_off_is_told() {
    if !is_there("jobs that are called off over a broker") {
        return;
    }
    let mut bench = Bench::new().await;
    let agent = bench.enrolled().await;
    bench.settle(&agent, &Class::ALL).await;
    let verdicts = bench.connect();
    let waiting = verdicts.ask(next(Class::Verdict, &[7], LONG));
    bench.wake(&json!({ "called_off": [job(7), "no id"] })).await;
    assert_eq!(split(within(waiting).await.unwrap()), (vec![], vec![7]));
    // Once on a connection that waits, and always to whoever says that it is there.
    assert_eq!(split(verdicts.asks(next(Class::Verdict, &[7], 1)).await), (vec![], vec![]));
    let asking = verdicts.ask(next(Class::Verdict, &[7], 0));
    let asked = bench.asked().await;
    let mut answer = tasks(&[]);
    answer["Ok"]["tasks"]["called_off"] = json!([job(8)]);
    bench.answer(&asked, &answer).await;
    assert_eq!(split(within(asking).await.unwrap()), (vec![], vec![7, 8]));

    // What waits in the relay is handed out as it was sent last.
    bench.wake(&json!({ "tasks": [handed(9, "write")] })).await;
    let mut sealed_again = handed(9, "write");
    let body = json!({ "job": job(9), "called_off": true }).to_string();
    sealed_again["task"]["body"] = json!(body);
    bench.wake(&json!({ "tasks": [sealed_again] })).await;
    bench.was_not_asked(&agent).await;
    let answer = agent.asks(next(Class::Change, &[], LONG)).await.unwrap();
    let Answer::Tasks { tasks, .. } = answer else { panic!("no tasks") };
    assert_eq!(tasks.len(), 1);
    assert_eq!(tasks[0].body, body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_taken_when_a_controller_has_taken_it() {
    if !is_there("reports over a broker") {
        return;
    }
    let mut bench = Bench::new().await;
    let agent = bench.enrolled().await;
    let finishing = agent.ask(Ask::Finish(vec![report(1)]));
    let asked = bench.asked().await;
    assert_eq!(asked.ask["finish"][0]["job"], job(1));
    assert!(!finishing.is_finished());
    bench.answer(&asked, &json!({ "Ok": "done" })).await;
    assert!(matches!(within(finishing).await.unwrap(), Ok(Answer::Done)));

    let finishing = agent.ask(Ask::Finish(vec![report(2)]));
    let asked = bench.asked().await;
    bench.answer(&asked, &json!({ "Err": { "kind": "denied", "message": "not yours" } })).await;
    let refused = within(finishing).await.unwrap().unwrap_err();
    assert_eq!((refused.kind(), refused.to_string().as_str()), (Kind::Denied, "not yours"));

    // Of what was done and not stored, the next question tells.
    let Ask::Next(mut done) = next(Class::Look, &[], LONG) else { unreachable!() };
    done.done = vec![report(3)];
    let asking = agent.ask(Ask::Next(done));
    let asked = bench.asked().await;
    assert_eq!(asked.ask["next"]["done"][0]["job"], job(3));
    bench.answer(&asked, &tasks(&[4])).await;
    assert_eq!(jobs(within(asking).await.unwrap()), [4]);

    bench.asks.unsubscribe().await.unwrap();
    bench.controller.flush().await.unwrap();
    let refused = agent.asks(Ask::Finish(vec![report(5)])).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lies_does_no_harm() {
    if !is_there("a broker that lies") {
        return;
    }
    let mut bench = Bench::new().await;
    let agent = bench.enrolled().await;
    bench.settle(&agent, &Class::ALL).await;
    let wake = format!("fleet.wake.{HOST}");
    let deep = format!("{{\"tasks\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let huge = json!({ "called_off": [job(1)], "more": "x".repeat(MAX_FRAME) }).to_string();
    let lies = ["", "{", "[]", "null", "\u{0}", r#"{"tasks":[{"job":1}]}"#, &deep, &huge];
    for lie in lies {
        bench.send(&wake, lie.as_bytes().to_vec()).await;
    }
    bench.send(&wake, vec![0xff; 100]).await;
    let unknown = json!({ "job": "../../etc", "class": "write", "task": { "body": body(1) } });
    bench.wake(&json!({ "tasks": [unknown] })).await;
    let other = wake.replace(HOST, &"f".repeat(32));
    bench.send(&other, json!({ "tasks": [handed(1, "write")] }).to_string().into_bytes()).await;
    assert!(jobs(agent.asks(next(Class::Change, &[], 1)).await).is_empty());
    bench.was_not_asked(&agent).await;

    // What does not answer the question is no answer.
    let large = format!("{{\"Ok\":{{\"part\":\"{}\"}}}}", "x".repeat(MAX_FRAME));
    let mut answers: VecDeque<_> = ["", "{", "null", "{\"Ok\":{\"sudo\":[]}}", &large]
        .map(|text| text.as_bytes().to_vec())
        .into();
    answers.push_back(tasks(&[1]).to_string().into_bytes());
    for answer in answers {
        let finishing = agent.ask(Ask::Finish(vec![report(1)]));
        let asked = bench.asked().await;
        bench.send(asked.reply.as_str(), answer).await;
        let refused = within(finishing).await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
    }
    let asking = agent.ask(next(Class::Change, &[], 0));
    let asked = bench.asked().await;
    // More than was asked for, one that is no task, and heads without end.
    let bodies: Vec<_> = (1..500).map(|number| json!({ "body": body(number) })).collect();
    let head = json!({ "writer": "w", "number": 1, "hash": "h" });
    let answer = json!({ "tasks": bodies, "heads": vec![head; 500] });
    bench.answer(&asked, &json!({ "Ok": { "tasks": answer } })).await;
    let Ok(Answer::Tasks { tasks, heads, .. }) = within(asking).await.unwrap() else {
        panic!("no tasks")
    };
    assert_eq!((tasks.len(), heads.len()), (1, 64));

    // After all that it works.
    let waiting = agent.ask(next(Class::Act, &[], LONG));
    bench.wake(&json!({ "tasks": [handed(600, "execute")] })).await;
    assert_eq!(jobs(within(waiting).await.unwrap()), [600]);
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_say_what_a_host_holds_who_it_is_and_that_it_has_left() {
    if !is_there("beats over a broker") {
        return;
    }
    let mut bench = Bench::new().await;
    let agent = bench.enrolled().await;
    bench.settle(&agent, &Class::ALL).await;
    bench.wake(&json!({ "tasks": [handed(1, "write"), handed(2, "write")] })).await;
    // What waits in the relay is held; so is what was handed out, and what the agent says.
    let both = json!([job(1), job(2)]);
    let beat = bench.beat_that(|beat| beat["holds"] == both).await;
    assert_eq!(beat["waits"], both);
    assert_eq!(jobs(agent.asks(next(Class::Change, &[], LONG)).await), [1]);
    bench.wake(&json!({ "who": true })).await;
    let beat = bench.beat_that(|beat| !beat["about"].is_null()).await;
    assert_eq!((&beat["holds"], &beat["waits"]), (&both, &json!([job(2)])));
    let finishing = agent.ask(Ask::Finish(vec![report(1)]));
    let asked = bench.asked().await;
    bench.answer(&asked, &json!({ "Ok": "done" })).await;
    within(finishing).await.unwrap().unwrap();
    // It has not said anything since.
    let asking = agent.ask(presence(None));
    let asked = bench.asked().await;
    assert_eq!(asked.ask["next"]["holds"], json!([job(2)]));
    assert_eq!(asked.ask["next"]["waits"], json!([job(2)]));
    bench.answer(&asked, &tasks(&[])).await;
    within(asking).await.unwrap().unwrap();
    let one = json!([job(2)]);
    bench.beat_that(|beat| beat["holds"] == one).await;
    drop(agent);
    bench.beat_that(|beat| beat["has_left"] == true).await;

    let again = bench.connect();
    let asking = again.ask(presence(Some(HOST)));
    let asked = bench.asked().await;
    bench.answer(&asked, &tasks(&[])).await;
    within(asking).await.unwrap().unwrap();
    let beat = bench.beat_that(|beat| beat["has_left"].is_null()).await;
    assert_eq!(beat["about"]["machine_id"], HOST);
    bench.relay.stop().await;
    bench.beat_that(|beat| beat["has_left"] == true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_speaks_for_one_host() {
    if !is_there("a relay and its host") {
        return;
    }
    let mut bench = Bench::new().await;
    let unknown = bench.connect();
    let refused = unknown.asks(Ask::Finish(Vec::new())).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable);
    for id in ["", "a.b", "*", ">", "a b"] {
        let refused = unknown.asks(presence(Some(id))).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::InvalidInput, "{id:?}");
    }
    let agent = bench.enrolled().await;
    let refused = agent.asks(presence(Some(&"f".repeat(32)))).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied);
    bench.was_not_asked(&agent).await;
}
