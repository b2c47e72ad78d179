//! What becomes of jobs on their way: asked for again, too late, deleted.

use super::*;
use crate::store::{Expect, Step, WRITES};

#[tokio::test]
async fn a_drained_host_is_given_nothing_new() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    let drain = json!({ "hostname": "web" });
    call(&controller, "agent.drain", drain.clone()).await.unwrap();
    let again = call(&controller, "agent.drain", drain.clone()).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Conflict);
    for target in ["web", "m1", "_all", "_any", "group:web"] {
        let refused = controller.submit(submit(LOOK, target)).await.err().unwrap();
        assert_eq!(refused.kind(), Kind::Conflict, "{target}");
    }
    let shown = call(&controller, "agent.get", drain.clone()).await.unwrap();
    assert_eq!(shown["state"], "Draining");
    assert_eq!(agent.next().await[0].job, job.id, "what was accepted runs");
    agent.done(&job.id).await;
    let timeline = async || {
        let shown = call(&controller, "agent.get", drain.clone()).await.unwrap();
        assert_eq!(shown["state"], "Cordoned");
        let moments = shown["timeline"].as_array().unwrap().iter();
        moments.map(|moment| moment["event"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(timeline().await, ["registered", "drain", "cordoned"]);
    call(&controller, "agent.undrain", drain.clone()).await.unwrap();
    // One with nothing to do is both at once.
    call(&controller, "agent.drain", drain.clone()).await.unwrap();
    assert_eq!(timeline().await[3..], ["undrain", "drain", "cordoned"]);
    call(&controller, "agent.undrain", drain.clone()).await.unwrap();
    controller.submit(submit(LOOK, "web")).await.unwrap();
    let nobody = call(&controller, "agent.drain", json!({ "hostname": "x" })).await.unwrap_err();
    assert_eq!(nobody.kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_retry_of_what_others_write_meanwhile_is_one_job() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, ACT).await;
    agent.next().await;
    agent.done(&job.id).await;
    outcome(&controller, &job).await.unwrap();
    let retry = || call(&controller, "job.retry", json!({ "id": job.id }));
    let (one, other) = tokio::join!(retry(), retry());
    assert_ne!(one.unwrap()["job_id"], other.unwrap()["job_id"]);
    assert_eq!(controller.job(&job.id).await.unwrap().retried.len(), 2);
    // A conflict of another kind is told as it is.
    call(&controller, "agent.drain", json!({ "hostname": "web" })).await.unwrap();
    let refused = retry().await.unwrap_err();
    assert!(refused.to_string().contains("drained"), "{refused}");
}

#[tokio::test]
async fn a_retry_goes_where_the_job_went_and_needs_what_the_job_needed() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let _other = Agent::new(&controller, "m0", "another", 2).await;
    let job = controller.submit(submit(ACT, "web")).await.unwrap().job;
    agent.next().await;
    agent.done(&job.id).await;
    outcome(&controller, &job).await.unwrap();
    let id = json!({ "id": job.id });
    let refused = call_as(&controller, "job.retry", id.clone(), Role::Write).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied);
    let retried = call(&controller, "job.retry", id.clone()).await.unwrap();
    assert_eq!(retried["status"], "created");
    assert!(retried["revision"].as_i64().unwrap() > 0);
    let task = agent.next().await.remove(0);
    assert_eq!(retried["job_id"], task.job);
    assert_eq!(task.params, json!({ "command": "true" }));
    let view = call(&controller, "job.get", id.clone()).await.unwrap();
    assert_eq!(view["status"], "completed");
    let last = view["timeline"].as_array().unwrap().last().unwrap();
    assert_eq!(last["event"], "retried");
    let elsewhere = json!({ "id": job.id, "target_hostname": "nowhere" });
    let unknown = call(&controller, "job.retry", elsewhere).await.unwrap_err();
    assert_eq!(unknown.kind(), Kind::InvalidInput);
    let entry = call(&controller, "audit.get", json!({ "id": task.job })).await.unwrap();
    assert_eq!(
        (&entry["entry"]["response_code"], &entry["entry"]["about"]),
        (&json!(201), &json!(job.id))
    );
}

#[tokio::test]
async fn a_job_that_nobody_began_in_time_has_failed_until_it_turns_out_otherwise() {
    let mut bench = Bench::new();
    bench.limits.patience = Duration::from_millis(50);
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    assert_eq!(outcome(&controller, &job).await.unwrap_err().kind(), Kind::Expired);
    let status = async || {
        let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
        view["status"].clone()
    };
    assert_eq!(status().await, "failed");
    assert!(agent.next_of(&[Class::Change], 0).await.is_empty());
    // It was begun in time after all, by an agent that was out of reach.
    agent.done(&job.id).await;
    assert_eq!(status().await, "completed");
    settled(&controller, |controller| controller.figures().jobs["completed"] == 1).await;
}

#[tokio::test]
async fn what_was_begun_in_time_is_waited_for() {
    let mut bench = Bench::new();
    bench.limits.patience = Duration::from_millis(50);
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    agent.next().await;
    let results = controller.wait(&job, Duration::from_millis(200)).await.unwrap();
    assert!(!results.complete);
    controller.expire();
    agent.done(&job.id).await;
    outcome(&controller, &job).await.unwrap();
}

#[tokio::test]
async fn what_confirms_or_reverts_has_a_class_of_its_own() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let (read, change) = (ask(&controller, LOOK).await, ask(&controller, CHANGE).await);
    let mut verdicts = Vec::new();
    for op in ["job.confirm", "job.revert"] {
        let target = Target::HostsOf(change.id.clone());
        let verdict = Submit { target, params: json!({ "id": change.id }), ..submit(op, "web") };
        verdicts.push(controller.submit(verdict).await.unwrap().job.id.clone());
    }
    let taken = agent.next_of(&[Class::Verdict], 5_000).await;
    assert_eq!(taken.into_iter().map(|task| task.job).collect::<Vec<_>>(), verdicts);
    assert_eq!(agent.next_of(&[Class::Look], 5_000).await[0].job, read.id);
}

#[tokio::test]
async fn a_read_that_takes_too_long_is_answered_for() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let (read, change) = (ask(&controller, LOOK).await, ask(&controller, CHANGE).await);
    let queued = ask(&controller, LOOK).await;
    let ask = Ask::Next(Next {
        classes: vec![Class::Look, Class::Change],
        most: 1,
        wait_ms: 5_000,
        ..Next::default()
    });
    agent.desk.answer(ask).await.unwrap();
    let now = controller.clock.uptime();
    let patience = Duration::ZERO;
    controller.cut_short(now + 29_000);
    assert!(!controller.wait(&read, patience).await.unwrap().complete);
    controller.cut_short(now + 31_000);
    let error = outcome(&controller, &read).await.unwrap_err();
    assert_eq!(error.kind(), Kind::HostFailed);
    assert!(error.to_string().contains("ran for more than 30 s"), "{error}");
    for job in [&change, &queued] {
        assert!(!controller.wait(job, patience).await.unwrap().complete);
    }
    // It comes to an end after all.
    agent.done(&read.id).await;
    outcome(&controller, &read).await.unwrap_err();
}

#[tokio::test]
async fn a_host_whose_reads_hang_is_told_of() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let reads = async || {
        let status = call(&controller, "health.status", json!({})).await.unwrap();
        status["components"]["reads"].clone()
    };
    assert_eq!(reads().await["status"], "ok");
    agent.about.hanging = vec!["2 of file.status.get".to_owned()];
    agent.hello().await.unwrap();
    let told = reads().await;
    assert_eq!(told["status"], "error");
    assert!(told["error"].as_str().unwrap().contains("web: 2 of file.status.get"), "{told}");
    agent.about.hanging.clear();
    agent.hello().await.unwrap();
    assert_eq!(reads().await["status"], "ok");
}

#[tokio::test]
async fn setting_the_clock_expires_nothing_and_is_noted() {
    let mut bench = Bench::new();
    bench.limits.jobs = 1_000;
    let (controller, mut agent) = bench.with_agent().await;
    let (finished, job) = (ask(&controller, CHANGE).await, ask(&controller, CHANGE).await);
    agent.next_of(&[Class::Change], 5_000).await;
    agent.done(&finished.id).await;
    outcome(&controller, &finished).await.unwrap();
    bench.clock.step(365 * 86_400_000);
    // Whoever looks for what is old may be the first to look at the clock.
    controller.retain().await.unwrap();
    controller.expire();
    controller.flush_notes().await;
    let count = controller.lanes().stored();
    assert_eq!((count, controller.index().len()), (1, 1));
    agent.done(&job.id).await;
    outcome(&controller, &job).await.unwrap();
    let later = ask(&controller, CHANGE).await;
    assert!(later.id > job.id);
    bench.clock.step(-365 * 86_400_000);
    assert!(ask(&controller, CHANGE).await.id > later.id, "ids go on");
    let export = call(&controller, "audit.export", json!({})).await.unwrap();
    let is_noted = |link: &Value| link.as_str().unwrap().contains("clock_step");
    assert!(export["links"].as_array().unwrap().iter().any(is_noted));
}

#[tokio::test]
async fn a_clock_that_is_set_while_no_controller_runs_expires_nothing() {
    let mut bench = Bench::new();
    bench.limits.jobs = 1_000;
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    agent.next_of(&[Class::Change], 5_000).await;
    agent.done(&job.id).await;
    outcome(&controller, &job).await.unwrap();
    end(controller, agent).await;
    for days in [365, -365, 366] {
        bench.clock.step(days * 86_400_000);
        let (controller, agent) = bench.with_agent().await;
        settled(&controller, |controller| controller.index().is_complete).await;
        controller.retain().await.unwrap();
        assert_eq!(controller.index().len(), 1, "after {days} days");
        controller.flush_notes().await;
        end(controller, agent).await;
    }
}

#[tokio::test]
async fn lists_page_filter_and_count() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(ask(&controller, CHANGE).await);
    }
    jobs.push(ask(&controller, LOOK).await);
    agent.next_of(&[Class::Change], 5_000).await;
    agent.done(&jobs[0].id).await;
    let failed = Outcome::from(Err(Error::new(Kind::HostFailed, "no such thing")));
    agent.finish(&[jobs[1].id.clone()], failed).await.unwrap();
    settled(&controller, |controller| controller.index().len() == 2).await;
    let list = call(&controller, "job.list", json!({ "limit": 3, "offset": 2 })).await.unwrap();
    let ids: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect();
    assert_eq!(ids, [&jobs[3].id, &jobs[2].id, &jobs[1].id].map(|id| json!(id)));
    assert_eq!(list["total_items"], 6);
    let counts = json!({ "submitted": 1, "processing": 3, "completed": 1, "failed": 1, "skipped": 0, "partial_failure": 0 });
    assert_eq!(list["status_counts"], counts);
    let list = call(&controller, "job.list", json!({ "status": "failed" })).await.unwrap();
    assert_eq!(
        (&list["total_items"], &list["items"][0]["error"]),
        (&json!(1), &json!("no such thing"))
    );
    assert_eq!(list["items"][0]["operation"]["type"], CHANGE);
}

#[tokio::test]
async fn the_oldest_finished_jobs_go_first() {
    let mut bench = Bench::new();
    bench.limits.jobs = 10;
    let (controller, mut agent) = bench.with_agent().await;
    let open = ask(&controller, CHANGE).await;
    agent.next_of(&[Class::Change], 5_000).await;
    let mut jobs = Vec::new();
    for _ in 0..20 {
        let job = ask(&controller, CHANGE).await;
        agent.next_of(&[Class::Change], 5_000).await;
        agent.done(&job.id).await;
        jobs.push(job);
    }
    settled(&controller, |controller| controller.index().len() <= 9).await;
    controller.flush_notes().await;
    // What rides along needs something to ride with.
    agent.done(&open.id).await;
    let open = call(&controller, "job.get", json!({ "id": open.id })).await.unwrap();
    assert_eq!(open["status"], "completed");
    let oldest = call(&controller, "job.get", json!({ "id": jobs[0].id })).await.unwrap_err();
    assert_eq!(oldest.kind(), Kind::NotFound);
    call(&controller, "job.get", json!({ "id": jobs[19].id })).await.unwrap();
}

#[tokio::test]
async fn a_full_store_makes_room_among_what_is_finished() {
    let mut bench = Bench::new();
    (bench.bounds.database, bench.bounds.audit) = (4 << 20, 1 << 20);
    let (controller, mut agent) = bench.with_agent().await;
    let waiting = ask(&controller, ACT).await;
    let result = json!({ "text": "x".repeat(100 << 10) });
    let mut last = None;
    for _ in 0..60 {
        let job = ask(&controller, CHANGE).await;
        agent.next_of(&[Class::Change], 5_000).await;
        let outcome = Outcome::Done { result: result.clone() };
        agent.finish(std::slice::from_ref(&job.id), outcome).await.unwrap();
        settled(&controller, |controller| controller.lanes().stored() == 1).await;
        last = Some(job);
    }
    let kept = stored(&controller, "job").await;
    assert!(kept < 100, "{kept} records of 121 are left");
    outcome(&controller, &last.unwrap()).await.unwrap();
    assert_eq!(agent.next_of(&[Class::Act], 0).await[0].job, waiting.id);
}

#[tokio::test]
async fn a_key_is_kept_for_a_day_and_goes_with_its_job() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let keyed = |age: i64| {
        let key = Key { value: format!("{age}"), digest: "1".to_owned() };
        Submit { key: Some(key), ..submit(CHANGE, "web") }
    };
    for age in [0, 2 * 86_400_000] {
        let job = controller.submit(keyed(age)).await.unwrap().job;
        agent.next_of(&[Class::Change], 5_000).await;
        agent.done(&job.id).await;
        outcome(&controller, &job).await.unwrap();
        bench.clock.step(age);
        for step in controller.forgetting(&[job.id.parse().unwrap()]).await.unwrap() {
            controller.commit(step).await.unwrap();
        }
        assert_eq!(stored(&controller, "once").await, 1, "that of the young job");
    }
    let used = controller.submit(keyed(0)).await.err().unwrap();
    assert_eq!(used.kind(), Kind::Conflict);
}

#[tokio::test]
async fn a_job_of_any_number_of_hosts_is_deleted_in_steps_that_every_store_takes() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let mut jobs = Vec::new();
    for outcomes in [0, 900, 410, 410] {
        let job = ask(&controller, CHANGE).await;
        agent.next_of(&[Class::Change], 5_000).await;
        agent.done(&job.id).await;
        let key = format!("job.{}", job.id);
        let one = controller.store.list(&key, "", 1, Order::Ascending).await.unwrap();
        let put =
            |step: Step, i| step.put(format!("{key}.h{i}"), one[0].value.clone(), Expect::Absent);
        for few in (0..outcomes).collect::<Vec<_>>().chunks(WRITES) {
            controller.commit(few.iter().fold(Step::new(), put)).await.unwrap();
        }
        jobs.push(job.id.clone());
    }
    settled(&controller, |controller| controller.index().len() == 4).await;
    let counts = |steps: &[Step]| steps.iter().map(|step| step.writes.len()).collect::<Vec<_>>();
    let steps = controller.forgetting(&[jobs[1].parse().unwrap()]).await.unwrap();
    assert_eq!(counts(&steps), [800, 102]);
    let last = &steps[1].writes.last().unwrap().key;
    assert_eq!(*last, format!("job.{}", jobs[1]), "the rest is found again should a step fail");
    call(&controller, "job.delete", json!({ "id": jobs[1] })).await.unwrap();
    jobs.remove(1);
    let ids: Vec<_> = jobs.iter().map(|id| id.parse().unwrap()).collect();
    let steps = controller.forgetting(&ids).await.unwrap();
    assert_eq!(counts(&steps), [414, 412], "no job is taken apart that fits in one");
    for step in steps {
        controller.commit(step).await.unwrap();
    }
    assert_eq!(stored(&controller, "job").await, 0);
}

#[tokio::test]
async fn a_change_that_was_taken_back_no_longer_counts_as_done() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    agent.next().await;
    let id = json!({ "id": job.id });
    let until = "2100-01-01T00:00:00.000Z";
    let result = json!({ "changed": true, "confirm_until": until });
    agent.finish(std::slice::from_ref(&job.id), Outcome::Done { result }).await.unwrap();
    let view = call(&controller, "job.get", id.clone()).await.unwrap();
    assert_eq!((&view["status"], &view["waiting_until"]), (&json!("completed"), &json!(until)));
    settled(&controller, |controller| controller.figures().jobs["completed"] == 1).await;

    let error = Error::new(Kind::Reverted, "taken back, because nobody confirmed it in time");
    let outcome = Outcome::from(Err(error));
    let late = Report { amends: true, ..Report::new(job.id.clone(), 9, 9, outcome) };
    // It is told until it is answered, and changes nothing the second time.
    for _ in 0..2 {
        agent.desk.answer(Ask::Finish(vec![agent.told(&late)])).await.unwrap();
    }
    agent.done(&job.id).await;
    let view = call(&controller, "job.get", id.clone()).await.unwrap();
    assert_eq!((&view["status"], &view["waiting_until"]), (&json!("failed"), &Value::Null));
    assert!(view["error"].as_str().unwrap().contains("taken back"), "{view}");
    let events = |view: &Value| -> Vec<String> {
        let moments = view["timeline"].as_array().unwrap().iter();
        let mut moments: Vec<_> = moments.map(|moment| moment["event"].clone()).collect();
        // Its host's clock is that of 1970.
        moments.retain(|event| event != "submitted");
        moments.iter().map(|event| event.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(events(&view), ["started", "completed", "reverted"]);
    settled(&controller, |controller| controller.figures().jobs["failed"] == 1).await;
    let list = call(&controller, "job.list", json!({})).await.unwrap();
    assert_eq!(list["items"][0]["status"], "failed");
    let entry = call(&controller, "audit.get", json!({ "id": job.id })).await.unwrap();
    assert_eq!(entry["entry"]["response_code"], 409);
    end(controller, agent).await;

    let (controller, _agent) = bench.with_agent().await;
    let view = call(&controller, "job.get", id).await.unwrap();
    assert_eq!(events(&view), ["started", "completed", "reverted"]);
}

#[tokio::test]
async fn what_was_never_reported_is_known_from_what_was_taken_back() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    agent.next().await;
    let reverted = || Outcome::from(Err(Error::new(Kind::Reverted, "taken back")));
    let late = Report { amends: true, ..Report::new(job.id.clone(), 9, 9, reverted()) };
    let first = Report::new(job.id.clone(), 1, 2, done());
    // In one breath, and in the wrong order.
    agent.desk.answer(Ask::Finish(vec![agent.told(&first), agent.told(&late)])).await.unwrap();
    assert_eq!(outcome(&controller, &job).await.unwrap_err().kind(), Kind::Reverted);
}

#[tokio::test]
async fn a_job_says_who_confirmed_it() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    agent.next().await;
    let result = json!({ "changed": true, "confirm_until": "2100-01-01T00:00:00.000Z" });
    agent.finish(std::slice::from_ref(&job.id), Outcome::Done { result }).await.unwrap();
    outcome(&controller, &job).await.unwrap();
    let id = json!({ "id": job.id });
    for _ in 0..2 {
        let target = Target::HostsOf(job.id.clone());
        let confirm = Submit { target, params: id.clone(), ..submit("job.confirm", "") };
        let confirm = controller.submit(confirm).await.unwrap().job;
        agent.next().await;
        agent.done(&confirm.id).await;
        outcome(&controller, &confirm).await.unwrap();
    }
    let view = call(&controller, "job.get", id.clone()).await.unwrap();
    assert_eq!((&view["status"], &view["waiting_until"]), (&json!("completed"), &Value::Null));
    let moments = view["timeline"].as_array().unwrap().iter();
    let confirmed: Vec<_> = moments.filter(|moment| moment["event"] == "confirmed").collect();
    assert_eq!(confirmed.len(), 1, "{view}");
    assert_eq!(confirmed[0]["message"], "Confirmed by admin");
    settled(&controller, |controller| controller.figures().jobs["completed"] == 3).await;
}
