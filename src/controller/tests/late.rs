//! What comes round when it is long known.

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
}

#[async_trait]
impl Store for Late {
    async fn commit(&self, step: Step) -> Result<Revision> {
        self.store.commit(step).await
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
    let late = Arc::new(Late { store: first.store.clone(), is_held: watch::Sender::new(false) });
    let controller = bench.on(late.clone(), &first).await;
    let agent = Agent::new(&controller, "m1", "web", 1).await;
    settled(&controller, |controller| controller.hosts().get("m1").is_some()).await;
    (late, controller, agent)
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
