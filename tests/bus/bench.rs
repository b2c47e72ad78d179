//! Controllers that share a broker, and a host that says over it what a test wants it to.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Subscriber};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use osapi::broker::Settings;
use osapi::clock::Clock;
use osapi::controller::{
    Call, Controller, Key, Limits, Reply, Setup, Shared, Submit, Taken, Target, Trail,
};
use osapi::error::{ErrorBody, Kind, Result};
use osapi::job::{Job, Options, Outcome, Report, Task};
use osapi::link::{About, Answer, Ask, Class, Next, Told};
use osapi::ops;
use osapi::permission::{Caller, Role};
use osapi::store::Bounds;
use osapi::store::nats::{NatsObjects, NatsStore};
use serde_json::{Value, json};

use crate::broker::Broker;

pub(super) const CHANGE: &str = "node.sysctl.update";
pub(super) const LOOK: &str = "node.os.get";
pub(super) const ACT: &str = "command.exec.execute";
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn settings(broker: &Broker, name: &str) -> Settings {
    let (servers, namespace, name) = (vec![broker.address()], "osapi".to_owned(), name.to_owned());
    Settings { servers, namespace, name, replicas: 1, ..Settings::default() }
}

pub(super) async fn controller(broker: &Broker, name: &str) -> Shared {
    let (settings, clock) = (settings(broker, name), Clock::default());
    let store = NatsStore::open(settings.clone(), clock.clone(), Bounds::default()).await.unwrap();
    let objects = NatsObjects::open(&store).await.unwrap();
    let setup = Setup {
        store: Arc::new(store),
        objects: Arc::new(objects),
        clock,
        name: name.to_owned(),
        limits: Limits::default(),
        job_timeout: PATIENCE,
        key: [7; 32],
        trust: None,
    };
    let controller = Controller::start(setup).await.unwrap();
    controller.answer_over(settings).await.unwrap();
    controller
}

/// Waits for what comes by itself.
pub(super) async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("it never came")
}

pub(super) fn submit(op: &str, host: &str) -> Submit {
    let params = match op {
        CHANGE => json!({ "key": "vm.swappiness", "value": "10" }),
        ACT => json!({ "command": "true" }),
        _ => json!({}),
    };
    Submit {
        row: ops::find(op).unwrap(),
        target: Target::Named(host.to_owned()),
        params,
        options: Options::default(),
        caller: caller(),
        trail: trail(),
        key: None::<Key>,
    }
}

fn caller() -> Arc<Caller> {
    let permissions = Role::Admin.permissions();
    Arc::new(Caller { name: "admin".to_owned(), permissions, ..Caller::default() })
}

fn trail() -> Trail {
    let (method, path) = ("PUT".to_owned(), "/api/node/web/sysctl/vm.swappiness".to_owned());
    Trail { id: uuid::Uuid::now_v7().to_string(), at: 1, method, path, ..Trail::default() }
}

pub(super) async fn ask(controller: &Shared, op: &str, host: &str) -> Taken {
    controller.submit(submit(op, host)).await.unwrap().job
}

/// Calls a row of the controller itself.
pub(super) async fn call(controller: &Shared, row: &str, params: Value) -> Result<Value> {
    let ops::Run::Controller(op) = ops::find(row).unwrap().run else { panic!("not here") };
    let (controller, caller, trail) = (controller.clone(), caller(), trail());
    match op.run(Call { controller, caller, trail, content: None, key: None }, params).await? {
        Reply::Whole(output) => Ok(output),
        Reply::Parts(parts) => {
            let parts: Vec<_> = parts.try_collect().await?;
            Ok(serde_json::from_slice(&parts.concat()).unwrap())
        }
    }
}

pub(super) async fn outcome(controller: &Shared, job: &Job) -> Result<Value> {
    let results = controller.wait(job, PATIENCE).await.unwrap();
    assert!(results.complete, "{} has no outcome", job.op);
    results.hosts.into_iter().next().unwrap().report.outcome.into()
}

/// Waits until `controller` knows that the host is there.
pub(super) async fn is_there(controller: &Shared, host: &str) {
    until(async || {
        let agent = call(controller, "agent.get", json!({ "hostname": host })).await.ok()?;
        (agent["status"] == "Ready").then_some(())
    })
    .await;
}

pub(super) fn done() -> Outcome {
    Outcome::Done { result: json!({ "changed": true }) }
}

/// What a relay does for a host, as far as the wire shows it.
pub(super) struct Host {
    pub(super) id: String,
    client: Client,
    wakes: Subscriber,
    /// Tasks it was told of and nobody has looked at.
    tasks: Vec<Value>,
}

impl Host {
    /// One that has said nothing yet.
    pub(super) async fn silent(broker: &Broker, id: &str) -> Self {
        let client = ConnectOptions::new()
            .custom_inbox_prefix(format!("_INBOX_osapi.{id}"))
            .request_timeout(Some(PATIENCE))
            .connect(broker.address())
            .await
            .unwrap();
        let wakes = client.subscribe(format!("osapi.wake.{id}")).await.unwrap();
        // Known to the server once this is answered.
        let probe = client.new_inbox();
        let mut heard = client.subscribe(probe.clone()).await.unwrap();
        client.publish(probe, "".into()).await.unwrap();
        heard.next().await.unwrap();
        Self { id: id.to_owned(), client, wakes, tasks: Vec::new() }
    }

    /// One that all of `controllers` know to be there.
    pub(super) async fn there(broker: &Broker, id: &str, controllers: &[&Shared]) -> Self {
        let host = Self::silent(broker, id).await;
        host.hello().await;
        for controller in controllers {
            is_there(controller, id).await;
        }
        host
    }

    pub(super) async fn hello(&self) {
        let next = Next { about: Some(Box::new(about(&self.id))), ..Next::default() };
        self.ask(&Ask::Next(next)).await.unwrap();
        self.beat(&json!({ "about": about(&self.id) })).await;
    }

    pub(super) async fn beat(&self, beat: &Value) {
        let subject = format!("osapi.beat.{}", self.id);
        self.client.publish(subject, beat.to_string().into()).await.unwrap();
    }

    pub(super) async fn ask(&self, ask: &Ask) -> Result<Answer, ErrorBody> {
        self.try_ask(ask).await.expect("no controller is there")
    }

    /// None where nobody answers.
    pub(super) async fn try_ask(&self, ask: &Ask) -> Option<Result<Answer, ErrorBody>> {
        let subject = format!("osapi.ask.{}", self.id);
        let question = serde_json::to_vec(ask).unwrap();
        let answer = self.client.request(subject, question.into()).await.ok()?;
        Some(serde_json::from_slice(&answer.payload).unwrap())
    }

    /// How often it is answered where it says that it wants to be answered at `place`.
    pub(super) async fn answered_at(&self, place: &str) -> usize {
        let mut heard = self.client.subscribe(place.to_owned()).await.unwrap();
        let question = serde_json::to_vec(&Ask::Next(Next::default())).unwrap();
        let subject = format!("osapi.ask.{}", self.id);
        let (asked, question) = (place.to_owned(), question.into());
        self.client.publish_with_reply(subject, asked, question).await.unwrap();
        // Questions of a connection are taken up in the order in which they come.
        for _ in 0..8 {
            self.ask(&Ask::Next(Next::default())).await.unwrap();
        }
        let answers = std::iter::from_fn(|| heard.next().now_or_never().flatten());
        let is_answer = |text: &[u8]| serde_json::from_slice::<Result<Answer, ErrorBody>>(text);
        answers.filter(|message| is_answer(&message.payload).is_ok()).count()
    }

    pub(super) async fn refused(&self, ask: &Ask) -> Kind {
        self.ask(ask).await.unwrap_err().kind
    }

    /// What it is told next, but for questions who it is.
    pub(super) async fn wake(&mut self) -> Value {
        loop {
            let wake = tokio::time::timeout(PATIENCE, self.wakes.next()).await;
            let wake = wake.expect("nobody has told it anything").unwrap();
            let wake: Value = serde_json::from_slice(&wake.payload).unwrap();
            if wake["who"] != true {
                return wake;
            }
        }
    }

    /// The same, until somebody asks who it is.
    pub(super) async fn who(&mut self) -> Value {
        loop {
            let wake = tokio::time::timeout(PATIENCE, self.wakes.next()).await;
            let wake = wake.expect("nobody has asked who it is").unwrap();
            let wake: Value = serde_json::from_slice(&wake.payload).unwrap();
            if wake["who"] == true {
                return wake;
            }
        }
    }

    /// The task of this class that it is told of next.
    pub(super) async fn task(&mut self, class: &str) -> Task {
        loop {
            if let Some(at) = self.tasks.iter().position(|task| task["class"] == class) {
                let handed = self.tasks.remove(at);
                let task = task_of(&handed);
                let job = handed["job"].as_str();
                assert_eq!((&task.host, job), (&self.id, Some(task.job.as_str())));
                return task;
            }
            let wake = self.wake().await;
            self.tasks.extend(wake["tasks"].as_array().into_iter().flatten().cloned());
        }
    }

    /// What it is answered when it asks for work of all classes.
    pub(super) async fn next(&self, holds: &[String]) -> (Vec<Task>, Vec<String>) {
        let (holds, classes) = (holds.to_vec(), Class::ALL.to_vec());
        let next = Next { holds, classes, ..Next::default() };
        match self.ask(&Ask::Next(next)).await.unwrap() {
            Answer::Tasks { tasks, called_off, .. } => {
                let task = |task: &osapi::link::Sealed| serde_json::from_str(&task.body).unwrap();
                (tasks.iter().map(task).collect(), called_off)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn finish(&self, job: &str, outcome: Outcome) {
        let answer = self.ask(&Ask::Finish(vec![told(job, outcome)])).await.unwrap();
        assert!(matches!(answer, Answer::Done));
    }
}

/// What an agent says that signs nothing.
pub(super) fn told(job: &str, outcome: Outcome) -> Told {
    Told::new(&Report::new(job.to_owned(), 1, 2, outcome), "", None).unwrap()
}

pub(super) fn about(id: &str) -> About {
    About {
        machine_id: id.to_owned(),
        hostname: format!("{id}.example.org"),
        facts: json!({ "cpu_count": 2 }),
        ..About::default()
    }
}

pub(super) fn task_of(handed: &Value) -> Task {
    serde_json::from_str(handed["task"]["body"].as_str().unwrap()).unwrap()
}
