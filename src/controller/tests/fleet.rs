//! Many hosts behind one controller.

use futures_util::future::join_all;

use super::*;

async fn agents(controller: &Shared, count: i32) -> Vec<Agent> {
    let one = |pid: i32| async move {
        Agent::new(controller, &format!("m{pid:05}"), &format!("web-{pid:05}"), pid).await
    };
    join_all((1..=count).map(one)).await
}

fn kinds(results: &Results) -> Vec<(String, Option<Kind>)> {
    let told = results.hosts.iter();
    told.map(|result| (result.hostname.clone(), result.report.outcome.kind())).collect()
}

/// Whatever is done for a host that finishes must not take longer the more hosts there are.
#[tokio::test]
async fn two_thousand_hosts_are_one_job() {
    const HOSTS: i32 = 2_000;
    let bench = Bench::new();
    let controller = bench.start().await;
    let mut agents = agents(&controller, HOSTS).await;
    for op in [CHANGE, LOOK] {
        let job = controller.submit(submit(op, "_all")).await.unwrap().job;
        join_all(agents.iter_mut().map(async |agent| {
            let tasks: Vec<_> = agent.next().await.into_iter().map(|task| task.job).collect();
            assert_eq!(tasks.concat(), job.id);
            agent.done(&job.id).await;
        }))
        .await;
        let results = controller.wait(&job, Duration::from_mins(1)).await.unwrap();
        let told = kinds(&results);
        assert!(results.complete && told.len() == 2_000);
        assert!(
            told.is_sorted_by_key(|(name, _)| name.clone())
                && told.iter().all(|(_, kind)| kind.is_none())
        );
        let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
        assert_eq!(view["responses"].as_object().unwrap().len(), 2_000);
        assert_eq!(view["status"], "completed");
    }
    let list = call(&controller, "agent.list", json!({})).await.unwrap();
    assert_eq!(list["total"], 2_000);
}

#[tokio::test]
async fn every_host_of_a_job_comes_to_one_outcome() {
    let mut bench = Bench::new();
    bench.limits.patience = Duration::from_millis(300);
    let controller = bench.start().await;
    let mut agents = agents(&controller, 5).await;
    let job = controller.submit(submit(CHANGE, "group:web")).await.unwrap().job;
    let jobs = [job.id.clone()];
    // Whoever comes later is none of them.
    let late = Agent::new(&controller, "m00006", "web-00006", 6).await;
    for agent in &mut agents[..4] {
        assert_eq!(agent.next().await.len(), 1);
    }
    let failed = |kind| Outcome::from(Err(Error::new(kind, "no")));
    agents[0].finish(&jobs, done()).await.unwrap();
    agents[1].finish(&jobs, failed(Kind::HostFailed)).await.unwrap();
    agents[2].finish(&jobs, failed(Kind::Unsupported)).await.unwrap();
    let results = controller.wait(&job, Duration::from_secs(1)).await.unwrap();
    assert!(!results.complete, "one has begun and may still tell");
    agents[3].finish(&jobs, done()).await.unwrap();
    let results = controller.wait(&job, Duration::from_secs(10)).await.unwrap();
    assert!(results.complete);
    let expected = [None, Some(Kind::HostFailed), Some(Kind::Unsupported), None]
        .into_iter()
        .chain([Some(Kind::Expired)]);
    let names = (1..=5).map(|number| format!("web-{number:05}"));
    assert_eq!(kinds(&results), names.zip(expected).collect::<Vec<_>>());
    assert!(agents[4].next_of(&ALL, 0).await.is_empty(), "nothing old is handed out");
    let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
    assert_eq!(view["status"], "partial_failure");
    drop(late);
}

#[tokio::test]
async fn a_drained_host_ends_what_it_has_across_a_restart_and_is_cordoned_then() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let (begun, queued) = (ask(&controller, CHANGE).await, ask(&controller, CHANGE).await);
    agent.next().await;
    call(&controller, "agent.drain", json!({ "hostname": "web" })).await.unwrap();
    let state = async |controller: &Shared| {
        let agent = call(controller, "agent.get", json!({ "hostname": "web" })).await.unwrap();
        let last = agent["timeline"].as_array().unwrap().last().unwrap()["event"].clone();
        (agent["state"].clone(), last)
    };
    assert_eq!(state(&controller).await, (json!("Draining"), json!("drain")));
    end(controller, agent).await;

    let controller = bench.start().await;
    assert_eq!(state(&controller).await, (json!("Draining"), json!("drain")));
    let mut agent = Agent::new(&controller, "m1", "web", 2).await;
    assert_eq!(agent.next().await.len(), 2);
    agent.done(&begun.id).await;
    assert_eq!(state(&controller).await.0, "Draining");
    agent.done(&queued.id).await;
    assert_eq!(state(&controller).await, (json!("Cordoned"), json!("cordoned")));
    let refused = controller.submit(submit(LOOK, "_any")).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::Conflict);
}
