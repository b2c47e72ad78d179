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

#[tokio::test]
async fn hosts_are_listed_as_each_of_them_is_shown_however_many_there_are() {
    let bench = Bench::new();
    let controller = bench.start().await;
    let list = async || call(&controller, "agent.list", json!({})).await.unwrap();
    assert_eq!(list().await, json!({ "agents": [], "total": 0 }));
    // As many as are written at a time, and one more.
    for count in [1, 500, 501] {
        let _agents = agents(&controller, count).await;
        let list = list().await;
        assert_eq!(list["total"], count);
        let listed: Vec<_> = list["agents"].as_array().unwrap().iter().collect();
        let names = |agent: &&Value| agent["hostname"].as_str().unwrap().to_owned();
        let names: Vec<_> = listed.iter().map(names).collect();
        assert_eq!(names, (1..=count).map(|it| format!("web-{it:05}")).collect::<Vec<_>>());
        let newest = json!({ "hostname": names.last() });
        let mut shown = call(&controller, "agent.get", newest).await.unwrap();
        shown.as_object_mut().unwrap().remove("timeline");
        assert_eq!(listed.last(), Some(&&shown));
    }
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
async fn who_looks_does_not_wait_for_a_host_that_is_known_to_be_away() {
    let bench = Bench::new();
    let controller = bench.start().await;
    let mut agents = agents(&controller, 3).await;
    let gone = agents.pop().unwrap();
    drop(gone);
    controller.hosts().left("m00003");
    let job = controller.submit(submit(LOOK, "_all")).await.unwrap().job;
    for agent in &mut agents {
        assert_eq!(ids(agent.next().await).concat(), job.id);
        agent.done(&job.id).await;
    }
    let results = controller.wait(&job, Duration::from_secs(10)).await.unwrap();
    assert!(results.complete);
    let names = ["web-00001", "web-00002", "web-00003"].map(str::to_owned);
    let expected = names.into_iter().zip([None, None, Some(Kind::Expired)]);
    assert_eq!(kinds(&results), expected.collect::<Vec<_>>());
    let error = Result::from(results.hosts[2].report.outcome.clone()).unwrap_err().to_string();
    assert!(error.contains("web-00003 is unreachable, last seen 2"), "{error}");

    let look = controller.submit(submit(LOOK, "m00003")).await.unwrap().job;
    assert_eq!(outcome(&controller, &look).await.unwrap_err().kind(), Kind::Expired);
    let dry = Options { dry_run: true, ..Options::default() };
    let dry = Submit { options: dry, ..submit(CHANGE, "m00003") };
    let dry = controller.submit(dry).await.unwrap().job;
    assert_eq!(outcome(&controller, &dry).await.unwrap_err().kind(), Kind::Expired);
    // A change waits for it.
    let change = controller.submit(submit(CHANGE, "m00003")).await.unwrap().job;
    assert!(!controller.wait(&change, Duration::ZERO).await.unwrap().complete);
    let mut back = Agent::new(&controller, "m00003", "web-00003", 3).await;
    assert_eq!(ids(back.next().await).concat(), change.id, "nothing old is handed out");
}

#[tokio::test]
async fn of_several_hosts_those_that_do_not_answer_are_answered_for() {
    let bench = Bench::new();
    let controller = bench.start().await;
    let mut agents = agents(&controller, 3).await;
    let job = controller.submit(submit(LOOK, "_all")).await.unwrap().job;
    for agent in &mut agents[..2] {
        agent.next().await;
    }
    agents[0].done(&job.id).await;
    let results = controller.give_up(&job).await.unwrap();
    assert!(results.complete);
    let names = ["web-00001", "web-00002", "web-00003"].map(str::to_owned);
    let expected = names.into_iter().zip([None, Some(Kind::HostFailed), Some(Kind::Expired)]);
    assert_eq!(kinds(&results), expected.collect::<Vec<_>>());
    agents[1].done(&job.id).await;
    assert!(agents[2].next_of(&ALL, 0).await.is_empty());
    let later = controller.wait(&job, Duration::ZERO).await.unwrap();
    assert_eq!(kinds(&later)[1].1, Some(Kind::HostFailed), "who comes late is not heard");
    // What changes something is not given up.
    let change = controller.submit(submit(CHANGE, "_all")).await.unwrap().job;
    assert!(!controller.give_up(&change).await.unwrap().complete);
}

/// On the clock of the boot, when a host that has hung up just now is away, and one that is
/// connected is not.
fn later(controller: &Shared) -> u64 {
    controller.clock.uptime() + 20_000
}

fn ids(tasks: Vec<Task>) -> Vec<String> {
    tasks.into_iter().map(|task| task.job).collect()
}

async fn record(controller: &Shared, job: &Job) -> Job {
    controller.stored(&job.id).await.unwrap().0.job
}

#[tokio::test]
async fn what_any_host_may_do_goes_to_another_where_the_first_died_before_it_had_it() {
    let bench = Bench::new();
    let (controller, first) = bench.with_agent().await;
    let jobs = [ask(&controller, CHANGE).await, ask(&controller, LOOK).await];
    let act = ask(&controller, ACT).await;
    drop(first);
    controller.take_over(later(&controller)).await;
    assert_eq!(record(&controller, &jobs[0]).await.hosts, ["m1"], "nobody else is there");

    let mut second = Agent::new(&controller, "m2", "db", 2).await;
    let waits = tokio::spawn({
        let (controller, job) = (controller.clone(), jobs[0].clone());
        async move { controller.wait(&job, Duration::from_secs(10)).await.unwrap() }
    });
    tokio::task::yield_now().await;
    assert!(second.next_of(&ALL, 0).await.is_empty());
    controller.take_over(controller.clock.uptime()).await;
    assert!(second.next_of(&ALL, 0).await.is_empty(), "the first may be back in a moment");
    controller.take_over(later(&controller)).await;
    let taken = ids(second.next().await);
    assert_eq!(taken.len(), 2);
    assert!(jobs.iter().all(|job| taken.contains(&job.id)), "an act stays where it is");
    assert_eq!(record(&controller, &jobs[0]).await.hosts, ["m2"]);

    let mut first = Agent::new(&controller, "m1", "web", 3).await;
    assert_eq!(ids(first.next_of(&ALL, 0).await).concat(), act.id);
    let refused = first.finish(std::slice::from_ref(&jobs[0].id), done()).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied);
    second.finish(&taken, done()).await.unwrap();
    let results = waits.await.unwrap();
    assert!(results.complete);
    assert_eq!(kinds(&results), [("db".to_owned(), None)]);
    for job in &jobs {
        let view = call(&controller, "job.get", json!({ "id": job.id })).await.unwrap();
        assert_eq!((&view["status"], &view["hostname"]), (&json!("completed"), &json!("db")));
        assert_eq!(view["agent_states"].as_object().unwrap().len(), 1);
        let timeline = view["timeline"].as_array().unwrap();
        let moved = timeline.iter().find(|moment| moment["event"] == "taken_over").unwrap();
        assert_eq!(moved["hostname"], "db");
        assert_eq!(moved["message"], "web was away and had not had it; it goes to db");
    }
    let chain = call(&controller, "audit.chain", json!({})).await.unwrap().to_string();
    assert_eq!(chain.matches("taken_over").count(), 1, "{chain}");
}

#[tokio::test]
async fn what_a_host_may_have_begun_stays_with_it() {
    let bench = Bench::new();
    let (controller, mut first) = bench.with_agent().await;
    let begun = ask(&controller, CHANGE).await;
    let looked = ask(&controller, LOOK).await;
    assert_eq!(first.next().await.len(), 2);
    let named = controller.submit(submit(CHANGE, "web")).await.unwrap().job;
    drop(first);
    let mut second = Agent::new(&controller, "m2", "db", 2).await;
    controller.take_over(later(&controller)).await;
    assert_eq!(ids(second.next().await).concat(), looked.id, "looking twice does no harm");
    let left = ask(&controller, CHANGE).await;
    assert_eq!(ids(second.next().await).concat(), left.id);
    for (job, host) in [(&begun, "m1"), (&named, "m1"), (&left, "m2")] {
        assert_eq!(record(&controller, job).await.hosts, [host]);
    }
    // Nor does anybody who comes later know whether it was handed out.
    drop(second);
    let waiting = ask(&controller, CHANGE).await;
    controller.stop().await;
    while Arc::strong_count(&controller) > 1 {
        tokio::task::yield_now().await;
    }
    drop(controller);
    let controller = bench.start().await;
    let mut third = Agent::new(&controller, "m3", "new", 3).await;
    controller.take_over(later(&controller)).await;
    assert!(third.next_of(&ALL, 0).await.is_empty());
    assert_ne!(record(&controller, &waiting).await.hosts, ["m3"]);
}

#[tokio::test]
async fn of_two_controllers_only_one_decides_where_a_job_goes() {
    let bench = Bench::new();
    let (one, first) = bench.with_agent().await;
    let two = bench.beside(&one).await;
    let kept = ask(&one, CHANGE).await;
    settled(&two, |two| two.lanes().stored() == 1).await;
    // Another controller has it stay before it hands it out.
    drop(first);
    let mut at_two = Agent::new(&two, "m1", "web", 1).await;
    assert_eq!(ids(at_two.next().await).concat(), kept.id);
    assert!(record(&one, &kept).await.is_settled);
    let mut other = Agent::new(&one, "m2", "db", 2).await;
    one.take_over(later(&one)).await;
    assert!(other.next_of(&ALL, 0).await.is_empty());
    assert_eq!(record(&one, &kept).await.hosts, ["m1"]);
    at_two.done(&kept.id).await;
    outcome(&one, &kept).await.unwrap();

    // Where the one that made it was quicker, the other hears of that.
    drop(other);
    let moved = ask(&one, CHANGE).await;
    let away = record(&one, &moved).await.hosts.concat();
    let (there, name) = if away == "m1" { ("m2", "db") } else { ("m1", "web") };
    let mut there = Agent::new(&one, there, name, 3).await;
    settled(&two, |two| two.lanes().stored() == 1).await;
    one.take_over(later(&one)).await;
    let id = Uuid::parse_str(&moved.id).unwrap();
    settled(&two, |two| two.lanes().lengths(&away).iter().all(|left| *left == 0)).await;
    assert!(two.lanes().is_open(id));
    assert_eq!(ids(there.next().await).concat(), moved.id);
    there.done(&moved.id).await;
    settled(&two, |two| two.lanes().stored() == 0).await;
}

#[tokio::test]
async fn a_host_that_is_gone_stays_visible_and_is_announced() {
    let bench = Bench::new();
    let (controller, agent) = bench.with_agent().await;
    let get = async |controller: &Shared| {
        call(controller, "agent.get", json!({ "hostname": "web" })).await.unwrap()
    };
    controller.announce(controller.clock.uptime());
    let seen = get(&controller).await["last_seen"].clone();
    assert!(seen.is_string());
    drop(agent);
    for _ in 0..3 {
        controller.announce(later(&controller));
    }
    let gone = get(&controller).await;
    assert_eq!(gone["last_seen"], seen);
    let last = gone["timeline"].as_array().unwrap().last().unwrap();
    assert_eq!(last["event"], "unreachable");
    assert!(last["message"].as_str().unwrap().contains(seen.as_str().unwrap()), "{last}");
    controller.flush_notes().await;
    controller.stop().await;
    while Arc::strong_count(&controller) > 1 {
        tokio::task::yield_now().await;
    }
    drop(controller);

    let controller = bench.start().await;
    let chain = call(&controller, "audit.chain", json!({})).await.unwrap().to_string();
    assert_eq!(chain.matches("host_unreachable").count(), 1, "{chain}");
    let unknown = get(&controller).await;
    assert_eq!((&unknown["status"], unknown.get("last_seen")), (&json!("NotReady"), None));
    controller.announce(controller.clock.uptime() + 100_000);
    let unknown = get(&controller).await;
    let last = unknown["timeline"].as_array().unwrap().last().unwrap();
    assert_eq!(last["message"], "not seen since the controller started");
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
