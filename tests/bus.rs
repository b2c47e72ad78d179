//! Hosts that their controllers hear over a broker: what is said on the wire, and that nothing is
//! lost of it, whoever goes away.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use osapi::error::{Error, Kind};
use osapi::job::{Outcome, Task};
use osapi::link::{Answer, Ask, Class, Link, Next, SocketLink, Tell, Told, serve};
use osapi::relay::Relay;
use serde_json::json;
use tokio::net::UnixListener;

use crate::broker::{self, Broker};

mod bench;
mod flood;

use bench::{
    ACT, CHANGE, Host, LOOK, about, ask, call, controller, done, is_there, outcome, submit,
    task_of, told, until,
};

#[tokio::test]
async fn whatever_the_class_a_host_is_told_and_its_answer_comes_back() {
    if !broker::is_there("hosts over a broker") {
        return;
    }
    let broker = Broker::start();
    let one = controller(&broker, "one").await;
    let mut host = Host::there(&broker, "m1", &[&one]).await;
    for (op, class) in [(CHANGE, "write"), (LOOK, "read"), (ACT, "execute")] {
        let job = ask(&one, op, "m1").await;
        let task = host.task(class).await;
        assert_eq!((&task.job, task.op.as_str()), (&job.id, op));
        host.finish(&job.id, done()).await;
        assert_eq!(outcome(&one, &job).await.unwrap(), json!({ "changed": true }));
    }
    // A read may also be reported with the next question.
    let job = ask(&one, LOOK, "m1").await;
    host.task("read").await;
    let done = vec![told(&job.id, done())];
    host.ask(&Ask::Next(Next { done, ..Next::default() })).await.unwrap();
    outcome(&one, &job).await.unwrap();
    assert!(host.next(&[]).await.0.is_empty());
    one.stop().await;
}

#[tokio::test]
async fn what_waits_in_a_relay_was_not_taken_yet() {
    if !broker::is_there("the status of what waits in a relay") {
        return;
    }
    let broker = Broker::start();
    let one = controller(&broker, "one").await;
    let mut host = Host::there(&broker, "m1", &[&one]).await;
    let job = ask(&one, CHANGE, "m1").await;
    host.task("write").await;
    let status = async || {
        let view = call(&one, "job.get", json!({ "id": job.id })).await.unwrap();
        view["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(status().await, "submitted");
    let held = vec![job.id.clone()];
    let next = Next { holds: held.clone(), waits: held.clone(), ..Next::default() };
    host.ask(&Ask::Next(next)).await.unwrap();
    assert_eq!(status().await, "submitted");
    host.beat(&json!({ "holds": held })).await;
    until(async || (status().await == "processing").then_some(())).await;
    host.finish(&job.id, done()).await;
    until(async || (status().await == "completed").then_some(())).await;
    one.stop().await;
}

#[tokio::test]
async fn whoever_says_who_it_is_becomes_known_to_all() {
    if !broker::is_there("enrolment over a broker") {
        return;
    }
    let broker = Broker::start();
    let (one, two) = (controller(&broker, "one").await, controller(&broker, "two").await);
    let mut host = Host::silent(&broker, "m1").await;
    let refused = one.submit(submit(LOOK, "m1")).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::Unavailable);
    // Who says nothing of itself is asked to.
    host.beat(&json!({ "holds": [] })).await;
    host.who().await;
    host.beat(&json!({ "about": about("m1") })).await;
    is_there(&one, "m1").await;
    is_there(&two, "m1.example.org").await;
    // One that starts later asks as well, of all that are on record, and says what there is.
    let job = ask(&one, CHANGE, "m1").await;
    host.task("write").await;
    let three = controller(&broker, "three").await;
    assert_eq!(host.who().await["ask"], json!(["write"]));
    host.finish(&job.id, done()).await;
    let list = call(&three, "agent.list", json!({})).await.unwrap();
    assert_eq!((&list["total"], &list["agents"][0]["status"]), (&json!(1), &json!("NotReady")));
    host.beat(&json!({ "about": about("m1") })).await;
    is_there(&three, "m1").await;
    host.beat(&json!({ "has_left": true })).await;
    until(async || {
        let agent = call(&two, "agent.get", json!({ "hostname": "m1" })).await.unwrap();
        (agent["status"] == "NotReady").then_some(())
    })
    .await;
    for controller in [one, two, three] {
        controller.stop().await;
    }
}

#[tokio::test]
async fn a_host_speaks_for_no_other() {
    if !broker::is_there("hosts that speak for others") {
        return;
    }
    let broker = Broker::start();
    let one = controller(&broker, "one").await;
    let mut host = Host::there(&broker, "m1", &[&one]).await;
    let thief = Host::there(&broker, "m2", &[&one]).await;
    let next = Next { about: Some(Box::new(about("m1"))), ..Next::default() };
    assert_eq!(thief.refused(&Ask::Next(next)).await, Kind::Denied);
    let job = ask(&one, CHANGE, "m1").await;
    let read = ask(&one, LOOK, "m1").await;
    assert!(thief.next(&[]).await.0.is_empty());
    let finish = |job: &str| Ask::Finish(vec![told(job, done())]);
    assert_eq!(thief.refused(&finish(&job.id)).await, Kind::Denied);
    // What is not for it does not end either, where there is nothing to refuse it with.
    thief.ask(&finish(&read.id)).await.unwrap();
    thief.beat(&json!({ "about": about("m1"), "has_left": true })).await;
    // Questions come after beats of the same host.
    thief.next(&[]).await;
    assert_eq!(host.task("write").await.job, job.id);
    let failed = Outcome::from(Err(Error::new(Kind::HostFailed, "no")));
    host.finish(&read.id, failed).await;
    assert_eq!(outcome(&one, &read).await.unwrap_err().kind(), Kind::HostFailed);
    one.stop().await;
}

#[tokio::test]
async fn a_host_is_answered_at_its_own_inbox_and_nowhere_else() {
    if !broker::is_there("where hosts are answered") {
        return;
    }
    let broker = Broker::start();
    let one = controller(&broker, "one").await;
    let host = Host::there(&broker, "m1", &[&one]).await;
    let _other = Host::there(&broker, "m2", &[&one]).await;
    let elsewhere = [
        "_INBOX.x",
        "_INBOX_osapi.m2.x",
        "_INBOX_osapi.m1",
        "_INBOX_osapi.m11.x",
        "_INBOX_osapi_m1.x",
        "_INBOX_osapi.one.x",
        "_INBOX_other.m1.x",
        "osapi.wake.m1",
        "osapi.wake.m2",
        "osapi.beat.m2",
        "osapi.ask.m2",
        "osapi.told",
        "osapi.desk.1",
        "osapi.kv.host.m2",
        "$JS.API.STREAM.INFO.osapi",
    ];
    for place in elsewhere {
        assert_eq!(host.answered_at(place).await, 0, "{place}");
    }
    assert_eq!(host.answered_at("_INBOX_osapi.m1.x").await, 1);
    one.stop().await;
}

#[tokio::test]
async fn what_is_called_off_before_it_begins_is_told_with_its_task() {
    if !broker::is_there("calling off over a broker") {
        return;
    }
    let broker = Broker::start();
    let (one, two) = (controller(&broker, "one").await, controller(&broker, "two").await);
    let mut host = Host::there(&broker, "m1", &[&one, &two]).await;
    let job = ask(&one, CHANGE, "m1").await;
    assert!(!host.task("write").await.called_off);
    // By whichever controller.
    let cancelled = call(&two, "job.cancel", json!({ "id": job.id })).await.unwrap();
    assert_eq!(cancelled["asked"], json!(["m1.example.org"]), "{cancelled}");
    let wake = host.wake().await;
    assert_eq!(wake["called_off"], json!([job.id]));
    let again = task_of(&wake["tasks"][0]);
    assert!(again.job == job.id && again.called_off);
    let held = [job.id.clone()];
    assert_eq!(host.next(&held).await.1, held);
    let let_go = Outcome::from(Err(Error::new(Kind::Cancelled, "it was called off")));
    host.finish(&job.id, let_go).await;
    for controller in [&one, &two] {
        assert_eq!(outcome(controller, &job).await.unwrap_err().kind(), Kind::Cancelled);
    }
    // Of a host that is away since before, everybody knows that it has not begun.
    host.beat(&json!({ "has_left": true })).await;
    for controller in [&one, &two] {
        until(async || {
            let agent = call(controller, "agent.get", json!({ "hostname": "m1" })).await.unwrap();
            (agent["status"] == "NotReady").then_some(())
        })
        .await;
    }
    let job = ask(&one, CHANGE, "m1").await;
    let cancelled = call(&two, "job.cancel", json!({ "id": job.id })).await.unwrap();
    assert_eq!(cancelled["hosts"], json!(["m1.example.org"]), "{cancelled}");
    for controller in [one, two] {
        assert_eq!(outcome(&controller, &job).await.unwrap_err().kind(), Kind::Cancelled);
        controller.stop().await;
    }
}

#[tokio::test]
async fn whoever_takes_an_answer_it_reaches_the_one_who_waits() {
    if !broker::is_there("two controllers over a broker") {
        return;
    }
    let broker = Broker::start();
    let (one, two) = (controller(&broker, "one").await, controller(&broker, "two").await);
    let mut host = Host::there(&broker, "m1", &[&one, &two]).await;
    // Any of the two answers each question.
    for round in 0..16 {
        let own = if round % 2 == 0 { &one } else { &two };
        let (op, class) = if round % 4 < 2 { (LOOK, "read") } else { (CHANGE, "write") };
        let job = ask(own, op, "m1").await;
        assert_eq!(host.task(class).await.job, job.id);
        host.finish(&job.id, done()).await;
        outcome(own, &job).await.unwrap();
        if op == CHANGE {
            until(async || {
                let other = call(&two, "job.get", json!({ "id": job.id })).await.unwrap();
                (other["status"] == "completed").then_some(())
            })
            .await;
        }
    }
    // Reads of several in one word.
    let jobs = [ask(&one, LOOK, "m1").await, ask(&two, LOOK, "m1").await];
    let reports = jobs.iter().map(|job| told(&job.id, done())).collect();
    host.ask(&Ask::Finish(reports)).await.unwrap();
    outcome(&one, &jobs[0]).await.unwrap();
    outcome(&two, &jobs[1]).await.unwrap();
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn what_running_jobs_say_reaches_whoever_asks() {
    if !broker::is_there("what jobs say over a broker") {
        return;
    }
    let broker = Broker::start();
    let (one, two) = (controller(&broker, "one").await, controller(&broker, "two").await);
    let mut host = Host::there(&broker, "m1", &[&one, &two]).await;
    let tell = |job: &str, data| Ask::Tell(vec![Tell { job: job.to_owned(), data }]);
    let job = ask(&one, CHANGE, "m1").await;
    host.task("write").await;
    host.ask(&tell(&job.id, json!({ "message": "half way", "percent": 50 }))).await.unwrap();
    for controller in [&one, &two] {
        until(async || {
            let view = call(controller, "job.get", json!({ "id": job.id })).await.unwrap();
            view.to_string().contains("half way").then_some(())
        })
        .await;
    }
    let mut heard = one.listen(submit("node.log.follow", "m1")).await.unwrap();
    let id = host.task("follow").await.job;
    for value in 0..16 {
        let pieces = tell(&id, json!([{ "value": value }]));
        let (answer, pieces) = tokio::join!(host.ask(&pieces), heard.next());
        assert!(matches!(answer.unwrap(), Answer::Done));
        assert_eq!(pieces.unwrap()[0].value, value);
    }
    drop(heard);
    for _ in 0..16 {
        let answer = host.ask(&tell(&id, json!([{ "value": "more" }]))).await.unwrap();
        assert!(matches!(answer, Answer::Unheard));
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn nobody_waits_for_what_a_controller_took_along() {
    if !broker::is_there("controllers that end") {
        return;
    }
    let broker = Broker::start();
    let (one, two) = (controller(&broker, "one").await, controller(&broker, "two").await);
    let mut host = Host::there(&broker, "m1", &[&one, &two]).await;
    let (read, job) = (ask(&one, LOOK, "m1").await, ask(&one, CHANGE, "m1").await);
    host.task("read").await;
    host.task("write").await;
    one.stop().await;
    host.finish(&read.id, done()).await;
    let tell = Tell { job: read.id.clone(), data: json!({}) };
    assert!(matches!(host.ask(&Ask::Tell(vec![tell])).await.unwrap(), Answer::Unheard));
    // What is stored goes on.
    host.finish(&job.id, done()).await;
    outcome(&two, &job).await.unwrap();
    two.stop().await;
}

#[tokio::test]
async fn a_beat_brings_back_what_was_lost_on_the_way() {
    if !broker::is_there("what is lost on the way") {
        return;
    }
    let broker = Broker::start();
    let (one, two) = (controller(&broker, "one").await, controller(&broker, "two").await);
    let mut host = Host::there(&broker, "m1", &[&one, &two]).await;
    let mut jobs = BTreeSet::new();
    for op in [CHANGE, LOOK] {
        jobs.insert(ask(&one, op, "m1").await.id.clone());
        host.wake().await;
    }
    // It says again and again that it holds neither.
    let mut told = BTreeSet::new();
    while told != jobs {
        host.beat(&json!({ "holds": [] })).await;
        let wake = tokio::time::timeout(std::time::Duration::from_millis(100), host.wake()).await;
        let tasks = wake.iter().filter_map(|wake| wake["tasks"].as_array()).flatten();
        told.extend(tasks.map(|task| task["job"].as_str().unwrap().to_owned()));
    }
    for job in &jobs {
        host.finish(job, done()).await;
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn what_is_too_much_for_one_message_is_asked_for_in_order() {
    if !broker::is_there("much at once over a broker") {
        return;
    }
    let broker = Broker::start();
    let one = controller(&broker, "one").await;
    let mut host = Host::there(&broker, "m1", &[&one]).await;
    let submitted = (0..150).map(|_| ask(&one, CHANGE, "m1"));
    let jobs = futures_util::future::join_all(submitted).await;
    let mut expected: Vec<_> = jobs.iter().map(|job| job.id.clone()).collect();
    expected.sort();
    let mut taken: Vec<String> = Vec::new();
    loop {
        let wake = host.wake().await;
        let tasks = wake["tasks"].as_array().into_iter().flatten();
        taken.extend(tasks.map(|task| task["job"].as_str().unwrap().to_owned()));
        if wake["ask"] == json!(["write"]) {
            break;
        }
    }
    assert_eq!(taken.len(), 64, "no more than a host holds");
    while taken.len() < expected.len() {
        let (tasks, _) = host.next(&taken).await;
        taken.extend(tasks.into_iter().map(|task| task.job));
    }
    assert_eq!(taken, expected);
    // What only this controller has comes by itself, however much it is.
    let reads = futures_util::future::join_all((0..100).map(|_| ask(&one, LOOK, "m1"))).await;
    let mut seen = BTreeSet::new();
    while seen.len() < reads.len() {
        let wake = host.wake().await;
        let tasks = wake["tasks"].as_array().into_iter().flatten();
        let reads = tasks.filter(|task| task["class"] == "read");
        seen.extend(reads.map(|task| task["job"].as_str().unwrap().to_owned()));
    }
    let mut large = submit(CHANGE, "m1");
    large.params = json!({ "key": "vm.swappiness", "value": "\"".repeat(520 << 10) });
    assert_eq!(one.submit(large).await.err().unwrap().kind(), Kind::TooLarge);
    one.stop().await;
}

#[tokio::test]
async fn a_broker_that_comes_back_finds_everybody_at_work_again() {
    if !broker::is_there("a broker that goes and comes") {
        return;
    }
    let mut broker = Broker::start();
    let one = controller(&broker, "one").await;
    let mut host = Host::there(&broker, "m1", &[&one]).await;
    let job = ask(&one, CHANGE, "m1").await;
    host.task("write").await;
    broker.kill();
    // Reads and changes alike are refused at once.
    for op in [LOOK, CHANGE] {
        until(async || {
            let refused = one.submit(submit(op, "m1")).await.err()?;
            assert_eq!(refused.kind(), Kind::Unavailable);
            Some(())
        })
        .await;
    }
    // What is known of hosts is told, with how old it is.
    until(async || one.age_of_hosts()).await;
    let known = call(&one, "agent.list", json!({})).await.unwrap();
    assert_eq!(known["agents"][0]["status"], "Ready");
    broker.restart();
    let mut host = Host::silent(&broker, "m1").await;
    until(async || {
        let next = Next { about: Some(Box::new(about("m1"))), ..Next::default() };
        host.try_ask(&Ask::Next(next)).await?.ok()
    })
    .await;
    let (tasks, _) = host.next(&[]).await;
    assert!(tasks.iter().any(|task| task.job == job.id), "{tasks:?}");
    // The controller may hear hosts again before it can store anything; a host that is told so says
    // it again.
    let report = Ask::Finish(vec![told(&job.id, done())]);
    until(async || {
        let answer = host.ask(&report).await;
        if let Err(error) = &answer {
            assert_eq!(error.kind, Kind::Unavailable);
        }
        answer.ok()
    })
    .await;
    outcome(&one, &job).await.unwrap();
    let read = until(async || one.submit(submit(LOOK, "m1")).await.ok()).await.job;
    // Reads that were taken on before the connection was known to be lost may come first.
    while host.task("read").await.job != read.id {}
    host.finish(&read.id, done()).await;
    outcome(&one, &read).await.unwrap();
    assert!(one.age_of_hosts().is_none());
    one.stop().await;
}

/// Does whatever the relay at `socket` hands it, until it is told to stop.
fn agent(socket: &Path, is_stopped: &AtomicBool) {
    let uid = rustix::process::getuid().as_raw();
    let mut link = SocketLink::new(socket, uid);
    let mut about = Some(Box::new(about("m1")));
    let mut reports: Vec<Told> = Vec::new();
    while !is_stopped.load(Ordering::Relaxed) {
        // As long as nobody is there, it says all of it again.
        if !reports.is_empty() {
            match link.ask(&Ask::Finish(reports.clone())) {
                Ok(_) => reports.clear(),
                Err(error) => assert_eq!(error.kind(), Kind::Unavailable, "{error}"),
            }
        }
        let (about_now, classes) = (about.clone(), Class::ALL.to_vec());
        let next = Next { about: about_now, classes, wait_ms: 100, ..Next::default() };
        let tasks = match link.ask(&Ask::Next(next)) {
            Ok(Answer::Tasks { tasks, .. }) => tasks,
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Unavailable, "{error}");
                continue;
            }
        };
        about = None;
        for task in tasks {
            let task: Task = serde_json::from_str(&task.body).unwrap();
            reports.push(told(&task.job, done()));
        }
    }
}

#[tokio::test]
async fn an_agent_behind_a_relay_works_for_whichever_controller() {
    if !broker::is_there("an agent behind a relay") {
        return;
    }
    let mut broker = Broker::start();
    let (one, two) = (controller(&broker, "one").await, controller(&broker, "two").await);
    let relay = Arc::new(Relay::start(bench::settings(&broker, "m1")).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (serving, uid) = (relay.clone(), rustix::process::getuid().as_raw());
    let served = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, uid, serving.desk()));
        }
    });
    let is_stopped = Arc::new(AtomicBool::new(false));
    let flag = is_stopped.clone();
    let working = tokio::task::spawn_blocking(move || agent(&socket, &flag));
    is_there(&one, "m1").await;
    is_there(&two, "m1").await;
    let work = async || {
        for op in [CHANGE, LOOK, ACT, CHANGE] {
            for controller in [&one, &two] {
                let jobs =
                    futures_util::future::join_all((0..10).map(|_| ask(controller, op, "m1")));
                for job in jobs.await {
                    outcome(controller, &job).await.unwrap();
                }
            }
        }
    };
    work().await;
    broker.kill();
    broker.restart();
    for controller in [&one, &two] {
        until(async || {
            let job = controller.submit(submit(CHANGE, "m1")).await.ok()?.job;
            outcome(controller, &job).await.ok()
        })
        .await;
        is_there(controller, "m1").await;
        until(async || controller.submit(submit(LOOK, "m1")).await.ok()).await;
    }
    work().await;
    is_stopped.store(true, Ordering::Relaxed);
    working.await.unwrap();
    served.abort();
    relay.stop().await;
    one.stop().await;
    two.stop().await;
}
