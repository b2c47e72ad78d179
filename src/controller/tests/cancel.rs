//! Calling jobs off.

use super::*;

#[tokio::test]
async fn a_job_is_called_off_unless_its_host_has_it() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let (taken, job) = (ask(&controller, CHANGE).await, ask(&controller, ACT).await);
    agent.next_of(&[Class::Change], 5_000).await;
    let id = |job: &Job| json!({ "id": job.id });
    let refused = call_as(&controller, "job.cancel", id(&job), Role::Write).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied, "what the job does needs a permission of its own");
    let held = call(&controller, "job.cancel", id(&taken)).await.unwrap_err();
    assert_eq!(held.kind(), Kind::Conflict);
    let unfinished = call(&controller, "job.delete", id(&job)).await.unwrap_err();
    assert_eq!(unfinished.kind(), Kind::Conflict);
    let cancelled = call(&controller, "job.cancel", id(&job)).await.unwrap();
    assert_eq!(cancelled["hosts"], json!(["web"]));
    assert_eq!(outcome(&controller, &job).await.unwrap_err().kind(), Kind::Cancelled);
    assert!(agent.next_of(&[Class::Act], 0).await.is_empty());
    let again = call(&controller, "job.cancel", id(&job)).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Conflict);
    let view = call(&controller, "job.get", id(&job)).await.unwrap();
    assert_eq!(view["status"], "failed");
    let events: Vec<_> =
        view["timeline"].as_array().unwrap().iter().map(|moment| &moment["event"]).collect();
    assert_eq!(events, ["submitted", "cancelled"]);
    call(&controller, "job.delete", id(&job)).await.unwrap();
    let gone = call(&controller, "job.get", id(&job)).await.unwrap_err();
    assert_eq!(gone.kind(), Kind::NotFound);
    agent.done(&taken.id).await;
    outcome(&controller, &taken).await.unwrap();
}

/// A reboot in ten days, taken by the agent.
async fn reboot_later(controller: &Shared, agent: &mut Agent) -> Taken {
    let params = json!({ "delay": 600_000 });
    let reboot = Submit { params, ..submit("node.power.reboot", "web") };
    let job = controller.submit(reboot).await.unwrap().job;
    assert_eq!(agent.next_of(&[Class::Act], 5_000).await[0].job, job.id);
    job
}

/// Asks for nothing but news, at once.
async fn called_off(agent: &mut Agent, classes: &[Class], wait_ms: u64) -> Vec<String> {
    let (holds, classes) = (agent.holds.clone(), classes.to_vec());
    let ask = Ask::Next(Next { holds, classes, wait_ms, ..Next::default() });
    match agent.desk.answer(ask).await.unwrap() {
        Answer::Tasks { called_off, .. } => called_off,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_waits_for_its_time_is_called_off_with_its_host() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = reboot_later(&controller, &mut agent).await;
    let id = json!({ "id": job.id });
    let refused = call_as(&controller, "job.cancel", id.clone(), Role::Write).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied, "a reboot needs a permission of its own");
    assert_eq!(called_off(&mut agent, &[], 0).await, [""; 0]);

    let (news, cancelled) = tokio::join!(
        called_off(&mut agent, &[Class::Verdict], 20_000),
        call(&controller, "job.cancel", id.clone()),
    );
    let cancelled = cancelled.unwrap();
    assert_eq!(cancelled["status"], "processing");
    assert_eq!((&cancelled["hosts"], &cancelled["asked"]), (&json!([]), &json!(["web"])));
    assert_eq!(news, std::slice::from_ref(&job.id), "it is told at once");
    assert_eq!(called_off(&mut agent, &[Class::Verdict], 1).await, [""; 0], "and once");
    assert_eq!(
        called_off(&mut agent, &[], 0).await,
        std::slice::from_ref(&job.id),
        "but for the heartbeat"
    );
    assert!(agent.next_of(&[Class::Act], 0).await.is_empty());
    let again = call(&controller, "job.cancel", id.clone()).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Conflict);

    let off = Outcome::from(Err(Error::new(Kind::Cancelled, "it was called off")));
    agent.finish(std::slice::from_ref(&job.id), off).await.unwrap();
    assert_eq!(outcome(&controller, &job).await.unwrap_err().kind(), Kind::Cancelled);
    assert_eq!(called_off(&mut agent, &[], 0).await, [""; 0]);
    let view = call(&controller, "job.get", id).await.unwrap();
    assert_eq!(view["status"], "failed");
}

#[tokio::test]
async fn what_was_called_off_is_so_after_a_crash_of_either_side() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = reboot_later(&controller, &mut agent).await;
    let id = json!({ "id": job.id });
    call(&controller, "job.cancel", id.clone()).await.unwrap();
    // Another agent, which has not heard of it.
    agent.holds.clear();
    let task = agent.next_of(&[Class::Act], 5_000).await.remove(0);
    assert_eq!((&task.job, task.called_off), (&job.id, true));
    end(controller, agent).await;

    let (controller, mut agent) = bench.with_agent().await;
    let view = call(&controller, "job.get", id.clone()).await.unwrap();
    assert_eq!(view["status"], "processing", "nobody knows yet");
    let task = agent.next_of(&[Class::Act], 5_000).await.remove(0);
    assert_eq!((&task.job, task.called_off), (&job.id, true));
    assert_eq!(called_off(&mut agent, &[], 0).await, std::slice::from_ref(&job.id));
    // It was too late.
    agent.done(&job.id).await;
    let view = call(&controller, "job.get", id.clone()).await.unwrap();
    assert_eq!(view["status"], "completed");
    end(controller, agent).await;
    let (controller, mut agent) = bench.with_agent().await;
    assert!(agent.next_of(&[Class::Act], 0).await.is_empty());
    assert_eq!(call(&controller, "job.get", id).await.unwrap()["status"], "completed");
}

#[tokio::test]
async fn what_waits_for_its_time_is_not_given_up_before() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let job = reboot_later(&controller, &mut agent).await;
    let record = controller.record(&job.id).await.unwrap();
    let wait = follow::last_word_of(&record).uptime - job.deadline.uptime;
    assert_eq!(wait, 600_000_000 + 3_600_000);
    agent.done(&job.id).await;
}

#[tokio::test]
async fn what_takes_back_may_be_called_off_by_whoever_may_do_what_it_takes_back() {
    let bench = Bench::new();
    let (controller, mut agent) = bench.with_agent().await;
    let change = ask(&controller, CHANGE).await;
    agent.next().await;
    agent.done(&change.id).await;
    outcome(&controller, &change).await.unwrap();
    let undo = |of: &str| {
        let target = Target::HostsOf(of.to_owned());
        controller.submit(Submit { target, params: json!({ "id": of }), ..submit("job.undo", "") })
    };
    let first = undo(&change.id).await.unwrap().job;
    let second = undo(&first.id).await.unwrap().job;
    let may = |needed: &[Permission]| {
        let permissions = needed.iter().copied().collect();
        Arc::new(Caller { name: "one".to_owned(), permissions, ..Caller::default() })
    };
    let cancel = |caller: Arc<Caller>| {
        let ops::Run::Controller(op) = ops::find("job.cancel").unwrap().run else { panic!() };
        let (controller, trail) = (controller.clone(), trail());
        let call = Call { controller, caller, trail, content: None, key: None };
        op.run(call, json!({ "id": second.id }))
    };
    let refused = cancel(may(&[Permission::JobWrite])).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::Denied);
    cancel(may(&[Permission::JobWrite, Permission::SysctlWrite])).await.unwrap();
}

#[tokio::test]
async fn what_is_called_off_with_a_key_is_answered_the_same_again() {
    let bench = Bench::new();
    let (controller, _agent) = bench.with_agent().await;
    let job = ask(&controller, CHANGE).await;
    let with = |digest: &str| {
        let key = Some(Key { value: "k-1".to_owned(), digest: digest.to_owned() });
        let (controller, caller) = (controller.clone(), caller(Role::Admin));
        Call { controller, caller, trail: trail(), content: None, key }
    };
    let ops::Run::Controller(op) = ops::find("job.cancel").unwrap().run else { panic!("not here") };
    let kept = async |digest: &str| with(digest).keyed().unwrap().answer(None).await;
    assert_eq!(kept("a").await.unwrap(), None);
    let answer = op.run(with("a"), json!({ "id": job.id })).await.unwrap();
    let Reply::Whole(answer) = answer else { panic!("it is not written in parts") };
    assert_eq!((&answer["status"], &answer["hosts"]), (&json!("failed"), &json!(["web"])));
    assert_eq!(kept("a").await.unwrap(), Some(answer));
    assert_eq!(kept("b").await.unwrap_err().kind(), Kind::KeyReused);
    let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
    assert_eq!(view["status"], "failed");
}
