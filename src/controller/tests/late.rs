//! What comes round when it is long known.

use std::sync::Mutex;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use super::*;
use crate::job::{Moved, encode};
use crate::store::{Coming, Entry, Event, Expect, Kept, Revision, Room, Step, Store};

/// A store of which nobody hears anything while it is held.
struct Late {
    store: Arc<dyn Store>,
    is_held: watch::Sender<bool>,
    fate: Mutex<Fate>,
    /// What is on its way to the store, and there before anything else is.
    under_way: Mutex<Vec<Step>>,
}

/// What becomes of a step.
#[derive(Clone, Copy)]
enum Fate {
    Stored,
    /// It is stored, and nobody is told.
    Unanswered,
    /// It is under way when whoever waits for it gives up.
    Delayed,
    Refused,
}

#[async_trait]
impl Store for Late {
    async fn commit(&self, step: Step) -> Result<Revision> {
        let unknown = || Err(Error::new(Kind::Unavailable, "the broker did not answer in time"));
        let fate = *lock(&self.fate);
        match fate {
            Fate::Refused => return Err(Error::new(Kind::Full, "there is no room left")),
            Fate::Delayed => {
                lock(&self.under_way).push(step);
                return unknown();
            }
            Fate::Stored | Fate::Unanswered => {}
        }
        let under_way = std::mem::take(&mut *lock(&self.under_way));
        for step in under_way {
            let _ = self.store.commit(step).await;
        }
        let stored = self.store.commit(step).await;
        if matches!(fate, Fate::Unanswered) { unknown() } else { stored }
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.store.get(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        order: Order,
    ) -> Result<Vec<Entry>> {
        self.store.list(prefix, after, limit, order).await
    }

    async fn watch(&self, prefix: &str, since: Revision) -> Result<BoxStream<'static, Event>> {
        let is_held = self.is_held.subscribe();
        let events = self.store.watch(prefix, since).await?.then(move |event| {
            let mut is_held = is_held.clone();
            async move {
                is_held.wait_for(|is_held| !*is_held).await.unwrap();
                event
            }
        });
        Ok(events.boxed())
    }

    async fn audit(
        &self,
        after: u64,
        limit: usize,
        order: Order,
    ) -> Result<Vec<crate::store::audit::Stored>> {
        self.store.audit(after, limit, order).await
    }

    fn keep(&self) -> Result<Kept> {
        self.store.keep()
    }

    async fn ends(&self) -> Result<crate::store::audit::Ends> {
        self.store.ends().await
    }

    fn room(&self) -> Room {
        self.store.room()
    }

    fn expect(&self) -> Coming {
        self.store.expect()
    }
}

/// A controller that can be kept from hearing what it has stored itself, and its agent.
async fn start(bench: &Bench) -> (Arc<Late>, Shared, Agent) {
    let first = bench.start().await;
    let late = Arc::new(Late {
        store: first.store.clone(),
        is_held: watch::Sender::new(false),
        fate: Mutex::new(Fate::Stored),
        under_way: Mutex::default(),
    });
    let controller = bench.on(late.clone(), &first).await;
    let agent = Agent::new(&controller, "m1", "web", 1).await;
    settled(&controller, |controller| controller.hosts().get("m1").is_some()).await;
    (late, controller, agent)
}

impl Late {
    /// What becomes of what `work` stores.
    async fn during<T>(&self, fate: Fate, work: impl Future<Output = T>) -> T {
        *lock(&self.fate) = fate;
        let result = work.await;
        *lock(&self.fate) = Fate::Stored;
        result
    }
}

/// Lets all come round that was stored so far.
async fn come_round(late: &Late, controller: &Shared) {
    late.is_held.send_replace(false);
    let (_, revision) = controller.stored(&ask(controller, ACT).await.id).await.unwrap();
    controller.caught_up(revision).await;
}

#[tokio::test]
async fn a_job_that_is_over_before_it_comes_round_is_not_handed_out_again() {
    let bench = Bench::new();
    let (late, controller, mut agent) = start(&bench).await;
    late.is_held.send_replace(true);
    for _ in 0..2 {
        let job = ask(&controller, CHANGE).await;
        assert_eq!(agent.next_of(&[Class::Change], 5_000).await[0].job, job.id);
        agent.done(&job.id).await;
        outcome(&controller, &job).await.unwrap();
    }
    assert_eq!(controller.lanes().stored(), 0);
    assert_eq!(controller.figures().jobs["completed"], 2);

    come_round(&late, &controller).await;
    assert!(agent.next_of(&[Class::Change], 0).await.is_empty());
    assert_eq!(controller.lanes().stored(), 1, "only what was asked for last");
    assert_eq!(controller.figures().jobs["completed"], 2);
}

#[tokio::test]
async fn neither_is_one_that_repeats_another() {
    let bench = Bench::new();
    let (late, controller, mut agent) = start(&bench).await;
    let original = ask(&controller, CHANGE).await;
    agent.next_of(&[Class::Change], 5_000).await;
    agent.done(&original.id).await;

    late.is_held.send_replace(true);
    let again = call(&controller, "job.retry", json!({ "id": original.id })).await.unwrap();
    assert_eq!(agent.next_of(&[Class::Change], 5_000).await[0].job, again["job_id"]);
    agent.done(again["job_id"].as_str().unwrap()).await;

    come_round(&late, &controller).await;
    assert!(agent.next_of(&[Class::Change], 0).await.is_empty());
    assert_eq!(controller.lanes().stored(), 1, "only what was asked for last");
    assert_eq!(controller.figures().jobs["completed"], 2);
}

#[tokio::test]
async fn nor_is_one_that_went_to_another_host() {
    let bench = Bench::new();
    let (late, controller, mut agent) = start(&bench).await;
    late.is_held.send_replace(true);
    let job = ask(&controller, CHANGE).await;
    let (mut record, revision) = controller.stored(&job.id).await.unwrap();
    record.job.moved.push(Moved { at: 1, from: "m2".to_owned() });
    let (key, record) = (format!("job.{}", job.id), encode(&record).unwrap());
    controller.commit(Step::new().put(key, record, Expect::Revision(revision))).await.unwrap();
    assert_eq!(agent.next_of(&[Class::Change], 5_000).await[0].job, job.id);
    agent.done(&job.id).await;

    come_round(&late, &controller).await;
    assert!(agent.next_of(&[Class::Change], 0).await.is_empty());
    assert_eq!(controller.lanes().stored(), 1, "only what was asked for last");
    assert_eq!(controller.figures().jobs["completed"], 1);
}

#[tokio::test]
async fn a_restart_is_not_told_of_a_job_that_was_over_by_then() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    agent.next_of(&[Class::Change], 5_000).await;
    agent.done(&job.id).await;
    let parked = Step::new().put(format!("parked.{}", job.id), "1", Expect::Anything);
    let revision = controller.commit(parked).await.unwrap();
    controller.caught_up(revision).await;
    // What rides along goes with the next commit.
    ask(&controller, ACT).await;
    assert_eq!(stored(&controller, "parked").await, 0);
    assert_eq!(controller.figures().jobs["completed"], 1);
}

async fn call_off(late: &Late, fate: Fate, controller: &Shared, job: &Job) -> Result<Value> {
    late.during(fate, call(controller, "job.cancel", json!({ "id": job.id }))).await
}

#[tokio::test]
async fn what_may_be_called_off_is_not_begun_until_that_is_known() {
    for fate in [Fate::Unanswered, Fate::Delayed] {
        for comes_round in [false, true] {
            let bench = Bench::new();
            let (late, controller, mut agent) = start(&bench).await;
            late.is_held.send_replace(true);
            let job = ask(&controller, CHANGE).await;
            let error = call_off(&late, fate, &controller, &job).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(agent.next_of(&[Class::Change], 0).await.is_empty());
            if comes_round {
                come_round(&late, &controller).await;
            } else {
                // What was under way is there first, and the next look finds it.
                controller.decide_all().await;
                assert!(agent.next_of(&[Class::Change], 0).await.is_empty());
                controller.decide_all().await;
            }
            assert!(agent.next_of(&[Class::Change], 0).await.is_empty());
            assert_eq!(outcome(&controller, &job).await.unwrap_err().kind(), Kind::Cancelled);
        }
    }
}

#[tokio::test]
async fn what_turns_out_not_to_be_called_off_is_handed_out() {
    let bench = Bench::new();
    let (late, controller, mut agent) = start(&bench).await;
    let job = ask(&controller, CHANGE).await;
    for _ in 0..2 {
        let error = call_off(&late, Fate::Delayed, &controller, &job).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "it may be tried again meanwhile");
    }
    let lost = std::mem::take(&mut *lock(&late.under_way));
    assert!(agent.next_of(&[Class::Change], 0).await.is_empty());
    controller.decide_all().await;
    assert_eq!(agent.next_of(&[Class::Change], 5_000).await[0].job, job.id);
    // However late it comes.
    lock(&late.under_way).extend(lost);
    agent.done(&job.id).await;
    outcome(&controller, &job).await.unwrap();
    assert!(controller.stored(&job.id).await.unwrap().0.job.cancelled.is_none());

    let job = ask(&controller, CHANGE).await;
    let error = call_off(&late, Fate::Refused, &controller, &job).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Full);
    assert_eq!(agent.next_of(&[Class::Change], 0).await[0].job, job.id, "it surely is not");

    let job = ask(&controller, CHANGE).await;
    call_off(&late, Fate::Delayed, &controller, &job).await.unwrap_err();
    lock(&late.under_way).clear();
    call_off(&late, Fate::Stored, &controller, &job).await.unwrap();
    assert_eq!(outcome(&controller, &job).await.unwrap_err().kind(), Kind::Cancelled);
}

#[tokio::test]
async fn what_may_have_gone_to_another_host_is_handed_to_nobody_until_that_is_known() {
    let bench = Bench::new();
    let (late, controller, first) = start(&bench).await;
    let job = ask(&controller, CHANGE).await;
    late.is_held.send_replace(true);
    drop(first);
    let mut second = Agent::new(&controller, "m2", "db", 2).await;
    let later = controller.clock.uptime() + 20_000;
    late.during(Fate::Delayed, controller.take_over(later)).await;
    // Stored just before it is tried again, which it stands in the way of.
    controller.take_over(later).await;
    assert_eq!(controller.stored(&job.id).await.unwrap().0.job.hosts, ["m2"]);
    let mut first = Agent::new(&controller, "m1", "web", 3).await;
    assert!(first.next_of(&[Class::Change], 0).await.is_empty());
    controller.take_over(controller.clock.uptime()).await;
    assert!(first.next_of(&[Class::Change], 0).await.is_empty());
    assert_eq!(second.next_of(&[Class::Change], 0).await[0].job, job.id);

    come_round(&late, &controller).await;
    assert!(first.next_of(&[Class::Change], 0).await.is_empty());
    second.done(&job.id).await;
    assert_eq!(outcome(&controller, &job).await.unwrap(), json!({ "changed": true }));
}
