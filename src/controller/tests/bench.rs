//! A controller, an agent that asks it, and whoever submits jobs.

use super::*;

pub(super) const ALL: [Class; 5] = Class::ALL;
pub(super) const CHANGE: &str = "node.sysctl.update";
pub(super) const LOOK: &str = "node.os.get";
pub(super) const ACT: &str = "command.exec.execute";

pub(super) struct Bench {
    pub(super) dir: tempfile::TempDir,
    pub(super) clock: Clock,
    pub(super) limits: Limits,
    pub(super) bounds: Bounds,
    /// Whether keys are asked for, and accepted by themselves.
    pub(super) trust: Option<bool>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let (limits, clock) = (Limits::default(), Clock::default());
        let bounds = Bounds { free: 0, ..Bounds::default() };
        Self { dir: tempfile::tempdir().unwrap(), clock, limits, bounds, trust: None }
    }

    pub(super) async fn start(&self) -> Shared {
        let dir: &Path = self.dir.path();
        let bounds = self.bounds.clone();
        let store = RedbStore::open(dir, self.clock.clone(), bounds.clone()).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let objects = dir.join("objects");
        let clock = self.clock.clone();
        let files = Files::open(objects, store.clone(), clock, bounds.objects).await.unwrap();
        let setup = Setup {
            store,
            objects: Arc::new(files),
            clock: self.clock.clone(),
            name: "here".to_owned(),
            limits: self.limits.clone(),
            job_timeout: Duration::from_secs(10),
            key: [7; 32],
            trust: self.trust(),
        };
        Controller::start(setup).await.unwrap()
    }

    pub(super) fn trust(&self) -> Option<Trust> {
        let trust = |auto_accept| Trust { key: SigningKey::of_test(200), auto_accept };
        self.trust.map(trust)
    }

    /// Another controller on the store of this one.
    pub(super) async fn beside(&self, other: &Shared) -> Shared {
        let controller = self.on(other.store.clone(), other).await;
        controller.lanes().is_shared = true;
        controller
    }

    /// Another controller on a store, with the objects of `other`.
    pub(super) async fn on(&self, store: Arc<dyn Store>, other: &Shared) -> Shared {
        let setup = Setup {
            store,
            objects: other.objects.clone(),
            clock: self.clock.clone(),
            name: "there".to_owned(),
            limits: self.limits.clone(),
            job_timeout: Duration::from_secs(10),
            key: [7; 32],
            trust: self.trust(),
        };
        Controller::start(setup).await.unwrap()
    }

    pub(super) async fn with_agent(&self) -> (Shared, Agent) {
        let controller = self.start().await;
        let agent = Agent::new(&controller, "m1", "web", 1).await;
        (controller, agent)
    }
}

/// Ends a controller for good, so that its store can be opened again.
pub(super) async fn end(controller: Shared, agent: Agent) {
    drop(agent);
    controller.stop().await;
    while Arc::strong_count(&controller) > 1 {
        tokio::task::yield_now().await;
    }
}

pub(super) struct Agent {
    pub(super) desk: AgentDesk,
    pub(super) about: About,
    pub(super) holds: Vec<String>,
    pub(super) key: Option<SigningKey>,
}

impl Agent {
    pub(super) async fn new(
        controller: &Shared,
        machine_id: &str,
        hostname: &str,
        pid: i32,
    ) -> Self {
        let about = About {
            machine_id: machine_id.to_owned(),
            hostname: hostname.to_owned(),
            labels: BTreeMap::from([("group".to_owned(), "web.dev".to_owned())]),
            facts: json!({ "cpu_count": 2 }),
            pid,
            ..About::default()
        };
        let (desk, holds) = (controller.agent(0, pid), Vec::new());
        let mut agent = Self { desk, about, holds, key: None };
        agent.hello().await.unwrap();
        agent
    }

    /// One that has a key and signs what it tells.
    pub(super) async fn signing(
        controller: &Shared,
        (machine_id, hostname): (&str, &str),
        pid: i32,
        key: u8,
    ) -> Self {
        let key = SigningKey::of_test(key);
        let mut about = About {
            machine_id: machine_id.to_owned(),
            hostname: hostname.to_owned(),
            facts: json!({ "cpu_count": 2 }),
            signing_key: key.public().encode(),
            pid,
            ..About::default()
        };
        about.prove(&key);
        let (desk, holds) = (controller.agent(0, pid), Vec::new());
        let mut agent = Self { desk, about, holds, key: Some(key) };
        agent.hello().await.unwrap();
        agent
    }

    pub(super) fn told(&self, report: &Report) -> Told {
        Told::new(report, &self.about.machine_id, self.key.as_ref()).unwrap()
    }

    pub(super) async fn sealed(&mut self, wait_ms: u64) -> Vec<Sealed> {
        let (holds, classes) = (self.holds.clone(), ALL.to_vec());
        let ask = Ask::Next(Next { holds, classes, wait_ms, ..Next::default() });
        let Answer::Tasks { tasks, .. } = self.desk.answer(ask).await.unwrap() else {
            panic!("not tasks");
        };
        tasks
    }

    pub(super) async fn hello(&mut self) -> Result<Answer> {
        let about = Some(Box::new(self.about.clone()));
        let holds = self.holds.clone();
        self.desk.answer(Ask::Next(Next { holds, about, ..Next::default() })).await
    }

    pub(super) async fn next_of(&mut self, classes: &[Class], wait_ms: u64) -> Vec<Task> {
        let (holds, classes) = (self.holds.clone(), classes.to_vec());
        let ask = Ask::Next(Next { holds, classes, wait_ms, ..Next::default() });
        let Answer::Tasks { tasks, .. } = self.desk.answer(ask).await.unwrap() else {
            panic!("not tasks");
        };
        let tasks: Vec<Task> = tasks.iter().map(|task| task.open().unwrap()).collect();
        self.holds.extend(tasks.iter().map(|task| task.job.clone()));
        tasks
    }

    pub(super) async fn next(&mut self) -> Vec<Task> {
        self.next_of(&ALL, 5_000).await
    }

    pub(super) async fn finish(&mut self, jobs: &[String], outcome: Outcome) -> Result<Answer> {
        self.holds.retain(|held| !jobs.contains(held));
        let report = |job: &String| {
            let (job, outcome) = (job.clone(), outcome.clone());
            self.told(&Report::new(job, 1, 2, outcome))
        };
        let told = jobs.iter().map(report).collect();
        self.desk.answer(Ask::Finish(told)).await
    }

    pub(super) async fn done(&mut self, job: &str) {
        self.finish(&[job.to_owned()], done()).await.unwrap();
    }
}

pub(super) fn done() -> Outcome {
    Outcome::Done { result: json!({ "changed": true }) }
}

pub(super) fn caller(role: Role) -> Arc<Caller> {
    let name = role.as_str().to_owned();
    Arc::new(Caller { name, permissions: role.permissions(), ..Caller::default() })
}

pub(super) fn trail() -> Trail {
    let (method, path) = ("PUT".to_owned(), "/api/node/web/sysctl/vm.swappiness".to_owned());
    Trail { id: Uuid::now_v7().to_string(), at: 1, method, path, ..Trail::default() }
}

pub(super) fn submit(op: &str, target: &str) -> Submit {
    let params = match op {
        CHANGE => json!({ "key": "vm.swappiness", "value": "10" }),
        ACT => json!({ "command": "true" }),
        _ => json!({}),
    };
    Submit {
        row: ops::find(op).unwrap(),
        target: Target::Named(target.to_owned()),
        params,
        options: Options::default(),
        caller: caller(Role::Admin),
        trail: trail(),
        key: None,
    }
}

pub(super) async fn ask(controller: &Shared, op: &str) -> Taken {
    controller.submit(submit(op, "_any")).await.unwrap().job
}

pub(super) async fn call(controller: &Shared, row: &str, params: Value) -> Result<Value> {
    call_as(controller, row, params, Role::Admin).await
}

pub(super) async fn call_as(
    controller: &Shared,
    row: &str,
    params: Value,
    role: Role,
) -> Result<Value> {
    let ops::Run::Controller(op) = ops::find(row).unwrap().run else { panic!("not here") };
    let caller = caller(role);
    let controller = controller.clone();
    let call = Call { controller, caller, trail: trail(), content: None, key: None };
    match op.run(call, params).await? {
        Reply::Whole(output) => Ok(output),
        Reply::Parts(parts) => {
            let parts: Vec<_> = parts.try_collect().await?;
            Ok(serde_json::from_slice(&parts.concat()).unwrap())
        }
    }
}

pub(super) async fn outcome(controller: &Shared, job: &Job) -> Result<Value> {
    let results = controller.wait(job, Duration::from_secs(10)).await.unwrap();
    assert!(results.complete);
    results.hosts.into_iter().next().unwrap().report.outcome.into()
}

pub(super) async fn stored(controller: &Shared, prefix: &str) -> usize {
    controller.store.list(prefix, "", usize::MAX, Order::Ascending).await.unwrap().len()
}

/// Lets the watch come round.
pub(super) async fn settled(controller: &Shared, is_so: impl Fn(&Controller) -> bool) {
    let come_round = async {
        while !is_so(controller) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), come_round).await.unwrap();
}
