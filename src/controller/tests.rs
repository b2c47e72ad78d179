//! The controller against a store on disk and an agent that asks as a real one does.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::TryStreamExt;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::error::{Error, Kind};
use crate::job::{Job, Options, Outcome, Report, Task};
use crate::link::{About, Answer, Ask, Class, Desk, Next, Sealed, Told};
use crate::ops;
use crate::permission::{Permission, Role};
use crate::signing::SigningKey;
use crate::store::objects::Files;
use crate::store::redb::RedbStore;
use crate::store::{Bounds, Order};

mod audit;
mod bench;
mod cancel;
mod course;
mod enrolment;
mod fleet;
mod late;
mod restart;

use bench::{
    ACT, ALL, Agent, Bench, CHANGE, LOOK, ask, call, call_as, caller, done, end, outcome, settled,
    stored, submit, trail,
};

#[tokio::test]
async fn changes_are_handed_out_in_the_order_in_which_they_were_taken_on() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let submitted = (0..200).map(|_| ask(&controller, CHANGE));
    let mut ids: Vec<_> =
        futures_util::future::join_all(submitted).await.iter().map(|job| job.id.clone()).collect();
    ids.sort();
    let mut taken = Vec::new();
    while taken.len() < 200 {
        let tasks: Vec<_> = agent.next().await.into_iter().map(|task| task.job).collect();
        agent.finish(&tasks, done()).await.unwrap();
        taken.extend(tasks);
    }
    assert_eq!(taken, ids);
    settled(&controller, |controller| controller.lanes().stored() == 0).await;
    assert_eq!(controller.figures().jobs["completed"], 200);
}

#[tokio::test]
async fn a_durable_job_is_two_steps_and_a_read_is_none() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let before = controller.figures().steps;
    let job = ask(&controller, CHANGE).await;
    assert_eq!(agent.next().await[0].job, job.id);
    agent.done(&job.id).await;
    assert_eq!(outcome(&controller, &job).await.unwrap(), json!({ "changed": true }));
    assert_eq!(controller.figures().steps, before + 2);

    let job = ask(&controller, LOOK).await;
    let dry = Options { dry_run: true, ..Options::default() };
    let dry = controller.submit(Submit { options: dry, ..submit(CHANGE, "_all") }).await.unwrap();
    let taken: Vec<_> =
        agent.next_of(&[Class::Look], 5_000).await.into_iter().map(|task| task.job).collect();
    assert_eq!(taken, [job.id.clone(), dry.job.id.clone()]);
    agent.finish(&taken, done()).await.unwrap();
    outcome(&controller, &dry.job).await.unwrap();
    assert_eq!(controller.figures().steps, before + 2);
    let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
    assert_eq!(view["status"], "completed");
}

#[tokio::test]
async fn a_host_speaks_for_itself_and_its_first_word_counts() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let mut other = Agent::new(&controller, "m2", "db", 2).await;
    let job = controller.submit(submit(CHANGE, "web")).await.unwrap().job;
    let jobs = [job.id.clone()];
    assert_eq!(other.finish(&jobs, done()).await.unwrap_err().kind(), Kind::Denied);
    agent.next().await;
    agent.finish(&jobs, done()).await.unwrap();
    let failed = Outcome::from(Err(Error::new(Kind::HostFailed, "no")));
    agent.finish(&jobs, failed).await.unwrap();
    outcome(&controller, &job).await.unwrap();
    let mut nobody = controller.agent(0, 99);
    let error = nobody.answer(Ask::Finish(Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn an_outcome_that_is_too_large_says_so() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    agent.next().await;
    let result = json!({ "text": "x".repeat(controller.limits.outcome) });
    agent.finish(std::slice::from_ref(&job.id), Outcome::Done { result }).await.unwrap();
    let error = outcome(&controller, &job).await.unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed);
    assert!(error.to_string().contains("it was done"), "{error}");
}

#[tokio::test]
async fn a_new_agent_is_answered_although_the_old_one_still_seems_to_wait() {
    let bench = Bench::new();
    let (controller, mut old) = bench.with_agent().await;
    let waiting = tokio::spawn(async move { old.next().await });
    tokio::task::yield_now().await;
    let mut new = Agent::new(&controller, "m1", "web", 2).await;
    assert!(waiting.await.unwrap().is_empty());
    let job = ask(&controller, CHANGE).await;
    assert_eq!(new.next().await[0].job, job.id);
}

#[tokio::test]
async fn the_same_key_makes_one_job() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let key = |digest: &str| Some(Key { value: "k".to_owned(), digest: digest.to_owned() });
    let keyed = |digest| Submit { key: key(digest), ..submit(CHANGE, "web") };
    let (a, b) = tokio::join!(controller.submit(keyed("1")), controller.submit(keyed("1")));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.job.id, b.job.id);
    assert!(!a.replayed && b.replayed);
    let error = controller.submit(keyed("2")).await.err().unwrap();
    assert_eq!(error.kind(), Kind::KeyReused);
    assert_eq!(agent.next().await.len(), 1);
    agent.done(&a.job.id).await;
    // Also while the host is given nothing new: it was given this before.
    call(&controller, "agent.drain", json!({ "hostname": "web" })).await.unwrap();
    assert!(controller.submit(keyed("1")).await.unwrap().replayed);
    let root = Caller { uid: Some(0), ..Caller::clone(&caller(Role::Admin)) };
    let other = Submit { caller: Arc::new(root), ..keyed("2") };
    assert_eq!(controller.submit(other).await.err().unwrap().kind(), Kind::Conflict);
}

#[tokio::test]
async fn there_is_an_end_to_what_is_taken_on() {
    let mut bench = Bench::new();
    (bench.limits.unfinished, bench.limits.reads, bench.limits.record) = (3, 2, 4_096);
    let (controller, mut agent) = bench.with_agent().await;
    let kind = |result: Result<Submitted>| result.err().map(|error| error.kind());
    for _ in 0..3 {
        ask(&controller, CHANGE).await;
    }
    settled(&controller, |controller| controller.lanes().stored_of("m1") == 3).await;
    assert_eq!(kind(controller.submit(submit(CHANGE, "web")).await), Some(Kind::Busy));
    let reads = [ask(&controller, LOOK).await, ask(&controller, LOOK).await];
    assert_eq!(kind(controller.submit(submit(LOOK, "web")).await), Some(Kind::Busy));
    let tasks = agent.next_of(&[Class::Look], 0).await;
    assert_eq!(tasks.len(), 2);
    agent.done(&reads[0].id).await;
    ask(&controller, LOOK).await;
    let params = json!({ "key": "vm.swappiness", "value": "x".repeat(5_000) });
    let tasks = agent.next_of(&[Class::Change], 0).await;
    agent.done(&tasks[0].job).await;
    settled(&controller, |controller| controller.lanes().stored_of("m1") == 2).await;
    let large = Submit { params, ..submit(CHANGE, "web") };
    assert_eq!(kind(controller.submit(large).await), Some(Kind::TooLarge));
}

#[tokio::test]
async fn a_file_is_pinned_as_it_was() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let put = async |name: &str, content: Vec<u8>| {
        let upload = crate::store::Upload {
            name: name.to_owned(),
            content_type: "raw".to_owned(),
            content: Box::pin(std::io::Cursor::new(content)),
            force: true,
            note: None,
        };
        controller.objects.put(upload).await.unwrap().0
    };
    let deploy = |object: &str| Submit {
        params: json!({ "object_name": object, "path": "/etc/motd", "content_type": "raw" }),
        ..submit("file.deploy.execute", "web")
    };
    let missing = controller.submit(deploy("motd")).await.err().unwrap();
    assert_eq!(missing.kind(), Kind::NotFound);
    put("motd", b"hello".to_vec()).await;
    let large = put("large", vec![7; 600 << 10]).await;
    controller.submit(deploy("motd")).await.unwrap();
    controller.submit(deploy("large")).await.unwrap();
    let tasks = agent.next_of(&[Class::Change], 5_000).await;
    assert_eq!(tasks[0].objects["motd"].bytes.as_deref(), Some("aGVsbG8="));
    assert_eq!(
        (&tasks[1].objects["large"].digest, tasks[1].objects["large"].bytes.is_none()),
        (&large.digest, true)
    );
    let fetch = |job: &str, offset| {
        let (job, object) = (job.to_owned(), "large".to_owned());
        Ask::Fetch { job, object, offset }
    };
    let part = agent.desk.answer(fetch(&tasks[1].job, 512 << 10));
    let Answer::Part(part) = part.await.unwrap() else { panic!("not a part") };
    assert_eq!(part.len(), (88_usize << 10).div_ceil(3) * 4);
    let part = agent.desk.answer(fetch(&tasks[0].job, 0)).await;
    assert_eq!(part.unwrap_err().kind(), Kind::Denied, "no other file than its jobs name");
    put("large", b"other".to_vec()).await;
    let part = agent.desk.answer(fetch(&tasks[1].job, 0)).await;
    assert_eq!(part.unwrap_err().kind(), Kind::Conflict);
}

#[tokio::test]
async fn what_was_refused_and_what_only_looked_is_on_record() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    let open = call(&controller, "audit.get", json!({ "id": job.id })).await.unwrap();
    assert_eq!(
        (&open["entry"]["response_code"], &open["entry"]["duration_ms"]),
        (&json!(202), &json!(0))
    );
    agent.next().await;
    agent.done(&job.id).await;
    for code in [200, 403, 403] {
        controller.note(&trail(), &caller(Role::Read), code, 3);
    }
    controller.flush_notes().await;
    let list = call(&controller, "audit.list", json!({})).await.unwrap();
    assert_eq!(list["total_items"], 3);
    let codes: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|i| i["response_code"].clone()).collect();
    assert!(codes.contains(&json!(403)) && !codes.contains(&json!(202)), "{codes:?}");
    let second = call(&controller, "audit.list", json!({ "limit": 1, "offset": 2 })).await.unwrap();
    assert_eq!(second["items"][0]["id"], json!(job.id));
    let export = call(&controller, "audit.export", json!({})).await.unwrap();
    assert_eq!(export["total_items"], 3);
    let export: crate::store::audit::Export = serde_json::from_value(export).unwrap();
    let links = export.links.iter().map(String::as_bytes);
    let mut check = crate::store::audit::Check::new(&export.ends, &[]);
    links.for_each(|link| check.link(link));
    assert!(check.end().is_whole());
}

#[tokio::test]
async fn it_is_ready_when_an_agent_is() {
    let bench = Bench::new();
    let controller = bench.start().await;
    let ready = async |controller: &Shared| {
        let ops::Run::Controller(op) = ops::find("health.ready").unwrap().run else { panic!() };
        let output = call(controller, "health.ready", json!({})).await.unwrap();
        (output["status"].clone(), op.status(&output))
    };
    assert_eq!(ready(&controller).await, (json!("not_ready"), Some(503)));
    let nobody = controller.submit(submit(LOOK, "_any")).await.err().unwrap();
    assert_eq!(nobody.kind(), Kind::Unavailable);
    let agent = Agent::new(&controller, "m1", "web", 1).await;
    assert_eq!(ready(&controller).await, (json!("ready"), None));
    let status = call(&controller, "health.status", json!({})).await.unwrap();
    assert_eq!((&status["status"], &status["agents"]["ready"]), (&json!("ok"), &json!(1)));
    drop(agent);
    assert_eq!(ready(&controller).await.0, "ready", "it may be back in a moment");
}
