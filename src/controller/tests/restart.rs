//! What a restart finds, and how little it has to read for that.

use super::*;

#[tokio::test]
async fn a_restart_goes_on_with_what_is_unfinished() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(ask(&controller, CHANGE).await);
    }
    agent.next_of(&[Class::Change], 5_000).await;
    agent.done(&jobs[0].id).await;
    outcome(&controller, &jobs[0]).await.unwrap();
    call(&controller, "job.retry", json!({ "id": jobs[0].id })).await.unwrap();
    end(controller, agent).await;

    let controller = bench.start().await;
    let mut agent = Agent::new(&controller, "m1", "web", 2).await;
    let taken: Vec<_> = agent.next().await.into_iter().map(|task| task.job).collect();
    assert_eq!(taken.len(), 4, "three that were taken before, and the retry");
    assert_eq!(taken[..3], [&jobs[1].id, &jobs[2].id, &jobs[3].id].map(Clone::clone));
    assert!(ask(&controller, CHANGE).await.id > taken[3]);
    let view = call(&controller, "job.get", json!({ "id": jobs[0].id })).await.unwrap();
    assert_eq!(view["status"], "completed");
    let list = call(&controller, "job.list", json!({})).await.unwrap();
    assert_eq!((&list["total_items"], &list["status_counts"]["completed"]), (&json!(6), &json!(1)));
}

#[tokio::test]
async fn a_drain_and_a_cancellation_survive_a_restart() {
    let bench = Bench::new();
    let (controller, agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    call(&controller, "job.cancel", json!({ "id": job.id })).await.unwrap();
    call(&controller, "agent.drain", json!({ "hostname": "web" })).await.unwrap();
    end(controller, agent).await;

    let controller = bench.start().await;
    let refused = controller.submit(submit(LOOK, "web")).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::Conflict, "before the agent is heard of");
    let mut agent = Agent::new(&controller, "m1", "web", 2).await;
    assert!(agent.next_of(&ALL, 0).await.is_empty());
    let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
    assert_eq!(view["status"], "failed");
}

#[tokio::test]
async fn what_was_taken_before_a_restart_is_called_off_by_whoever_took_it() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let (begun, queued) = (ask(&controller, ACT).await, ask(&controller, CHANGE).await);
    agent.next_of(&[Class::Act], 5_000).await;
    end(controller, agent).await;

    let controller = bench.start().await;
    for job in [&begun, &queued] {
        let id = json!({ "id": job.id });
        let cancelled = call(&controller, "job.cancel", id.clone()).await.unwrap();
        let told = (&cancelled["hosts"], &cancelled["asked"], &cancelled["status"]);
        assert_eq!((told.0, told.1), (&json!([]), &json!(["web"])), "nobody can tell yet");
        assert_ne!(told.2, "failed");
        let view = call(&controller, "job.get", id).await.unwrap();
        assert_eq!(view["status"], "processing");
    }
    let mut agent = Agent::new(&controller, "m1", "web", 2).await;
    let tasks = agent.next().await;
    assert_eq!(tasks.len(), 2);
    assert!(tasks.iter().all(|task| task.called_off));
    agent.done(&begun.id).await;
    let error = Error::new(Kind::Cancelled, "it was called off before it began");
    agent.finish(std::slice::from_ref(&queued.id), Outcome::from(Err(error))).await.unwrap();
    for (job, status) in [(&begun, "completed"), (&queued, "failed")] {
        let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
        assert_eq!(view["status"], status);
    }
}

#[tokio::test]
async fn what_a_restart_left_open_is_waited_for_beyond_its_deadline() {
    let mut bench = Bench::new();
    bench.limits.patience = Duration::from_millis(1);
    let (controller, agent) = bench.with_agent().await;
    let (job, called_off) = (ask(&controller, ACT).await, ask(&controller, ACT).await);
    end(controller, agent).await;

    let controller = bench.start().await;
    let cancelled = call(&controller, "job.cancel", json!({ "id": called_off.id })).await.unwrap();
    assert_eq!(cancelled["asked"], json!(["web"]));
    while bench.clock.left(&called_off.deadline) > 0 {
        tokio::task::yield_now().await;
    }
    controller.expire();
    for job in [&job, &called_off] {
        let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
        assert_eq!(view["status"], "processing", "its host may have begun");
    }
    let mut agent = Agent::new(&controller, "m1", "web", 2).await;
    let tasks = agent.next().await;
    assert_eq!(tasks.iter().map(|task| task.called_off).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn what_an_agent_still_has_after_a_restart_has_begun() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let (begun, queued) = (ask(&controller, ACT).await, ask(&controller, ACT).await);
    agent.next_of(&[Class::Act], 5_000).await;
    let holds = vec![begun.id.clone()];
    end(controller, agent).await;

    let controller = bench.start().await;
    let mut agent = Agent::new(&controller, "m1", "web", 2).await;
    agent.holds = holds;
    assert_eq!(agent.next_of(&[Class::Act], 5_000).await[0].job, queued.id);
    for job in [&begun, &queued] {
        let refused = call(&controller, "job.cancel", json!({ "id": job.id })).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Conflict);
    }
}

#[tokio::test]
async fn old_unfinished_jobs_are_found_by_name_and_do_not_make_a_restart_read_more() {
    let mut bench = Bench::new();
    (bench.limits.lag, bench.limits.jobs) = (100, 100_000);
    let (controller, mut agent) = bench.with_agent().await;
    let old = [ask(&controller, ACT).await, ask(&controller, ACT).await];
    for _ in 0..12 {
        let jobs = (0..64).map(|_| ask(&controller, CHANGE));
        futures_util::future::join_all(jobs).await;
        let tasks: Vec<_> =
            agent.next_of(&[Class::Change], 5_000).await.into_iter().map(|task| task.job).collect();
        agent.finish(&tasks, done()).await.unwrap();
    }
    let tasks = agent.next_of(&[Class::Change], 0).await;
    let tasks: Vec<_> = tasks.into_iter().map(|task| task.job).collect();
    agent.finish(&tasks, done()).await.unwrap();
    // Both ride along with whatever comes next.
    let floor = async {
        while controller.store.get("floor").await.unwrap().is_none() {
            let job = ask(&controller, CHANGE).await;
            agent.next_of(&[Class::Change], 5_000).await;
            agent.done(&job.id).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), floor).await.unwrap();
    assert_eq!(stored(&controller, "parked").await, 2);
    let floor = controller.store.get("floor").await.unwrap().unwrap();
    let floor: u64 = crate::job::decode(&floor.value).unwrap();
    assert!(floor > 1_000, "{floor}");
    end(controller, agent).await;

    let controller = bench.start().await;
    assert_eq!(controller.lanes().stored(), 2);
    let mut agent = Agent::new(&controller, "m1", "web", 2).await;
    let taken: Vec<_> = agent.next().await.into_iter().map(|task| task.job).collect();
    assert_eq!(taken, old.each_ref().map(|job| job.id.clone()));
    agent.finish(&taken, done()).await.unwrap();
    assert_eq!(stored(&controller, "parked").await, 0);
    outcome(&controller, &old[0]).await.unwrap();
}

#[tokio::test]
async fn of_what_a_host_took_along_nobody_is_told_that_it_was_not_begun() {
    let mut bench = Bench::new();
    bench.limits.patience = Duration::from_millis(300);
    let (controller, mut agent) = bench.with_agent().await;
    let other = Agent::new(&controller, "m2", "db", 2).await;
    let job = controller.submit(submit(CHANGE, "_all")).await.unwrap().job;
    assert_eq!(agent.next().await[0].job, job.id);
    drop((agent, other));
    for host in ["m1", "m2"] {
        controller.hosts().left(host);
    }
    while bench.clock.left(&job.deadline) > 0 {
        tokio::task::yield_now().await;
    }
    controller.expire();
    let kinds = async |controller: &Shared| {
        let results = controller.wait(&job, Duration::ZERO).await.unwrap();
        let kind = |result: HostResult| (result.hostname, result.report.outcome.kind());
        results.hosts.into_iter().map(kind).collect::<Vec<_>>()
    };
    let expired = ("db".to_owned(), Some(Kind::Expired));
    assert_eq!(kinds(&controller).await, std::slice::from_ref(&expired), "it may still tell");
    controller.give_up_unheard(|_| true).await;
    let expected = [expired, ("web".to_owned(), Some(Kind::Interrupted))];
    assert_eq!(kinds(&controller).await, expected);
    let revision = controller.stored(&job.id).await.unwrap().1;
    controller.caught_up(revision).await;
    assert_eq!(controller.lanes().stored(), 0, "it is over");
    let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
    assert!(view.to_string().contains("look there before you ask again"), "{view}");
    controller.stop().await;
    while Arc::strong_count(&controller) > 1 {
        tokio::task::yield_now().await;
    }
    drop(controller);

    let controller = bench.start().await;
    assert_eq!(kinds(&controller).await, expected);
    // It was done after all.
    let mut agent = Agent::new(&controller, "m1", "web", 3).await;
    agent.done(&job.id).await;
    assert_eq!(kinds(&controller).await[1].1, None);
}
