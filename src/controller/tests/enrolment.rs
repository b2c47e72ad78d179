//! Which agents are believed.

use super::*;
use crate::signing::{Purpose, fingerprint};
use crate::store::Expect;

impl Bench {
    fn strict() -> Self {
        Self { trust: Some(false), ..Self::new() }
    }
}

fn print(key: u8) -> String {
    SigningKey::of_test(key).public().fingerprint()
}

async fn decide(controller: &Shared, row: &str, host: &str, key: Option<u8>) -> Result<Value> {
    let mut params = json!({ "hostname": host });
    if let Some(key) = key {
        params["fingerprint"] = print(key).into();
    }
    call(controller, row, params).await
}

async fn accept(controller: &Shared, host: &str, key: Option<u8>) -> Result<Value> {
    decide(controller, "agent.accept", host, key).await
}

async fn waiting(controller: &Shared) -> Vec<(String, String)> {
    let listed = call(controller, "agent.pending", json!({})).await.unwrap();
    let text = |agent: &Value, field: &str| agent[field].as_str().unwrap().to_owned();
    let agents = listed["agents"].as_array().unwrap();
    assert_eq!(listed["total"], agents.len());
    agents.iter().map(|agent| (text(agent, "machine_id"), text(agent, "fingerprint"))).collect()
}

async fn refused(controller: &Shared, target: &str) -> Error {
    controller.submit(submit(CHANGE, target)).await.err().unwrap()
}

/// How often, and how much in all, `name` is on record.
async fn events(controller: &Shared, name: &str) -> (usize, u64) {
    fn find(value: &Value, name: &str, found: &mut Vec<u64>) {
        if value["event"] == name {
            found.extend(value["count"].as_u64());
        }
        match value {
            Value::Array(items) => items.iter().for_each(|item| find(item, name, found)),
            Value::Object(fields) => fields.values().for_each(|item| find(item, name, found)),
            _ => {}
        }
    }
    controller.flush_notes().await;
    // What rides along has something to ride with.
    controller.store.commit(crate::store::Step::new().delete("x", Expect::Anything)).await.unwrap();
    let mut found = Vec::new();
    for stored in controller.store.audit(0, 10_000, Order::Ascending).await.unwrap() {
        find(&serde_json::from_slice(&stored.bytes).unwrap(), name, &mut found);
    }
    (found.len(), found.iter().sum())
}

#[tokio::test]
async fn a_new_host_is_given_nothing_until_its_key_is_accepted() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let mut agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    assert_eq!(waiting(&controller).await, [("m1".to_owned(), print(1))]);
    let view = call(&controller, "agent.get", json!({ "hostname": "web" })).await.unwrap();
    assert_eq!((&view["state"], &view["fingerprint"]), (&json!("Pending"), &json!(print(1))));
    for target in ["web", "m1", "_any", "_all"] {
        let error = refused(&controller, target).await;
        assert_eq!(error.kind(), Kind::Conflict, "{target}");
        assert!(error.to_string().contains("accept"), "{error}");
    }
    assert!(refused(&controller, "web").await.to_string().contains(&print(1)));

    let error = call(
        &controller,
        "agent.accept",
        json!({ "hostname": "web", "fingerprint": &print(1)[..20] }),
    );
    assert_eq!(error.await.unwrap_err().kind(), Kind::InvalidInput);
    let error = accept(&controller, "web", Some(2)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(accept(&controller, "db", None).await.unwrap_err().kind(), Kind::NotFound);
    accept(&controller, "web", Some(1)).await.unwrap();
    assert!(waiting(&controller).await.is_empty());
    assert_eq!(accept(&controller, "web", None).await.unwrap_err().kind(), Kind::Conflict);

    let job = ask(&controller, CHANGE).await;
    assert_eq!(agent.next().await[0].job, job.id);
    agent.done(&job.id).await;
    outcome(&controller, &job).await.unwrap();
    end(controller, agent).await;
    // A restart remembers it.
    let controller = bench.start().await;
    let mut agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    let job = ask(&controller, CHANGE).await;
    assert_eq!(agent.next().await[0].job, job.id);
}

#[tokio::test]
async fn what_is_decided_of_a_host_holds_though_others_write_its_record() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let _web = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    let write_again = async || {
        let key = hosts::key("m1");
        let found = controller.store.get(&key).await.unwrap().unwrap();
        let step = crate::store::Step::new();
        let step = step.put(key, found.value, Expect::Revision(found.revision));
        controller.store.commit(step).await.unwrap();
    };
    write_again().await;
    accept(&controller, "web", Some(1)).await.unwrap();
    write_again().await;
    decide(&controller, "agent.reject", "web", None).await.unwrap();
    assert_eq!(refused(&controller, "web").await.kind(), Kind::Conflict);
}

#[tokio::test]
async fn whoever_changes_its_key_all_the_time_is_heard_a_few_times() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    for key in 1..=40 {
        drop(Agent::signing(&controller, ("m1", "web"), i32::from(key), key).await);
    }
    let waiting = waiting(&controller).await.remove(0).1;
    let key = (1..=40).find(|key| waiting.contains(&print(*key)));
    assert_eq!(key, Some(9));
}

#[tokio::test]
async fn a_host_of_the_controller_itself_goes_by_its_last_name_however_often_it_changes() {
    for bench in [Bench::new(), Bench::strict()] {
        let controller = bench.start().await;
        let mut agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
        if bench.trust.is_some() {
            accept(&controller, "web", None).await.unwrap();
        }
        for number in 1..=40 {
            agent.about.hostname = format!("web-{number}");
            agent.about.prove(&SigningKey::of_test(1));
            agent.hello().await.unwrap();
        }
        let view = call(&controller, "agent.get", json!({ "hostname": "web-40" })).await.unwrap();
        assert_eq!(view["machine_id"], "m1");
    }
}

#[tokio::test]
async fn two_of_one_name_are_told_apart_by_their_keys() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let _one = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    let mut other = Agent::signing(&controller, ("m2", "web"), 2, 2).await;
    let error = accept(&controller, "web", None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains(&print(1)) && error.to_string().contains(&print(2)));
    assert_eq!(
        decide(&controller, "agent.reject", "web", None).await.unwrap_err().kind(),
        Kind::Conflict
    );
    accept(&controller, "web", Some(2)).await.unwrap();
    // Who waits under the same name is in nobody's way.
    let job = controller.submit(submit(CHANGE, "web")).await.unwrap().job;
    assert_eq!(job.hosts, ["m2"]);
    assert_eq!(other.next().await[0].job, job.id);
    assert_eq!(waiting(&controller).await, [("m1".to_owned(), print(1))]);
    decide(&controller, "agent.reject", "m1", None).await.unwrap();
    assert!(waiting(&controller).await.is_empty());
}

#[tokio::test]
async fn who_was_rejected_or_revoked_stays_out_until_its_key_is_named() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let mut agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    accept(&controller, "web", None).await.unwrap();
    let job = ask(&controller, CHANGE).await;
    assert_eq!(agent.next().await[0].job, job.id);
    decide(&controller, "agent.reject", "web", None).await.unwrap();
    let again = decide(&controller, "agent.reject", "web", None).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Conflict);
    // What it was given before ends without it.
    let error = agent.finish(std::slice::from_ref(&job.id), done()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    agent.holds.clear();
    agent.hello().await.unwrap();
    assert!(agent.sealed(0).await.is_empty());
    assert_eq!(refused(&controller, "web").await.kind(), Kind::Conflict);
    assert!(waiting(&controller).await.is_empty());
    assert_eq!(accept(&controller, "web", None).await.unwrap_err().kind(), Kind::Conflict);
    accept(&controller, "web", Some(1)).await.unwrap();
    assert_eq!(agent.next().await[0].job, job.id);
    agent.done(&job.id).await;
    outcome(&controller, &job).await.unwrap();
}

#[tokio::test]
async fn another_key_waits_and_nothing_it_says_is_believed() {
    let mut bench = Bench::strict();
    bench.trust = Some(true);
    let controller = bench.start().await;
    let agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    assert!(waiting(&controller).await.is_empty(), "unknown hosts are accepted by themselves");
    let job = ask(&controller, CHANGE).await;
    drop(agent);
    let mut new = Agent::signing(&controller, ("m1", "db"), 2, 2).await;
    assert!(new.sealed(0).await.is_empty());
    assert_eq!(waiting(&controller).await, [("m1".to_owned(), print(2))]);
    let listed = call(&controller, "agent.pending", json!({})).await.unwrap();
    assert_eq!(listed["agents"][0]["accepted_fingerprint"], print(1));
    assert_eq!(listed["agents"][0]["hostname"], "web", "the name is the host's");
    let error = refused(&controller, "web").await.to_string();
    assert!(error.contains(&print(1)) && error.contains(&print(2)), "{error}");
    assert_eq!(accept(&controller, "web", None).await.unwrap_err().kind(), Kind::Conflict);
    accept(&controller, "web", Some(2)).await.unwrap();
    assert_eq!(new.next().await[0].job, job.id);
    let view = call(&controller, "agent.get", json!({ "hostname": "db" })).await.unwrap();
    assert_eq!((&view["state"], &view["fingerprint"]), (&json!("Ready"), &json!(print(2))));
    // The key from before is another one now.
    let mut old = Agent::signing(&controller, ("m1", "web"), 3, 1).await;
    assert!(old.sealed(0).await.is_empty());
    // And makes way as soon as the accepted one speaks.
    let mut new = Agent::signing(&controller, ("m1", "db"), 4, 2).await;
    assert_eq!(new.next().await[0].job, job.id);
}

#[tokio::test]
async fn another_key_that_is_heard_over_a_broker_is_accepted_for_good() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let said = |name: &str, key: u8| {
        let key = SigningKey::of_test(key);
        let (hostname, signing_key) = (name.to_owned(), key.public().encode());
        let machine_id = "m1".to_owned();
        let mut about = About { machine_id, hostname, signing_key, ..About::default() };
        about.prove(&key);
        about
    };
    let (old, new) = (said("web", 1), said("db", 2));
    controller.enrol(&old).await.unwrap();
    let now = (controller.clock.uptime(), controller.clock.wall());
    controller.hosts().hear_over_bus("m1", Some(Arc::new(old)), now);
    accept(&controller, "web", None).await.unwrap();
    // What it says of itself with another key is not kept.
    controller.enrol(&new).await.unwrap();
    controller.hosts().hear_over_bus("m1", None, now);
    assert_eq!(waiting(&controller).await, [("m1".to_owned(), print(2))]);
    accept(&controller, "web", Some(2)).await.unwrap();
    assert!(waiting(&controller).await.is_empty(), "the key from before waits in its place");
    controller.submit(submit(CHANGE, "m1")).await.unwrap();
    controller.enrol(&new).await.unwrap();
    let view = call(&controller, "agent.get", json!({ "hostname": "db" })).await.unwrap();
    assert_eq!(view["fingerprint"], print(2));
}

#[tokio::test]
async fn who_does_not_prove_who_it_is_is_not_heard() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let mut agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    let good = agent.about.clone();
    let mut refuse = async |change: &dyn Fn(&mut About)| {
        agent.about = good.clone();
        change(&mut agent.about);
        assert_eq!(agent.hello().await.unwrap_err().kind(), Kind::Denied);
    };
    refuse(&|about| about.proof.clear()).await;
    refuse(&|about| about.key = "another to seal to".to_owned()).await;
    refuse(&|about| about.hostname = "db".to_owned()).await;
    refuse(&|about| about.signing_key = SigningKey::of_test(2).public().encode()).await;
    refuse(&|about| drop(about.labels.insert("group".to_owned(), "db".to_owned()))).await;
    let known = controller.hosts().get("m1").unwrap().0.clone();
    assert_eq!((known.name.as_str(), known.key.as_str()), ("web", ""));
}

#[tokio::test]
async fn without_keys_whoever_gets_here_is_accepted() {
    let bench = Bench::new();
    let controller = bench.start().await;
    let mut agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    assert!(waiting(&controller).await.is_empty());
    let view = call(&controller, "agent.get", json!({ "hostname": "web" })).await.unwrap();
    assert_eq!(view["fingerprint"], print(1));
    ask(&controller, CHANGE).await;
    assert_eq!(agent.sealed(1_000).await[0].signature, None, "nobody asks for one");
    // Also with another key, but not once it was rejected.
    let mut agent = Agent::signing(&controller, ("m1", "web"), 2, 2).await;
    assert_eq!(agent.next().await.len(), 1);
    decide(&controller, "agent.reject", "web", None).await.unwrap();
    agent.holds.clear();
    agent.hello().await.unwrap();
    assert!(agent.sealed(0).await.is_empty());
}

#[tokio::test]
async fn a_task_is_signed_for_its_host_and_says_until_when() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let mut agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    accept(&controller, "web", None).await.unwrap();
    let job = ask(&controller, CHANGE).await;
    let sealed = agent.sealed(5_000).await.remove(0);
    let key = SigningKey::of_test(200).public();
    assert!(sealed.is_signed("m1", &[SigningKey::of_test(9).public(), key]));
    assert!(!sealed.is_signed("m2", &[key]));
    let task = sealed.open().unwrap();
    assert_eq!((task.job.as_str(), task.host.as_str()), (job.id.as_str(), "m1"));
    assert!(task.until.unwrap() <= job.deadline.at + 1000);
}

/// Strips, alters, re-encodes, re-addresses, replays and borrows signatures: whatever comes of it
/// that is not the very same word of that host is refused, stored nowhere and counted.
#[tokio::test]
async fn an_outcome_that_its_host_has_not_signed_is_refused_a_thousand_times() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let mut agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    let other = Agent::signing(&controller, ("m2", "db"), 2, 2).await;
    accept(&controller, "web", None).await.unwrap();
    accept(&controller, "db", None).await.unwrap();
    let job = controller.submit(submit(CHANGE, "web")).await.unwrap().job;
    let second = controller.submit(submit(CHANGE, "web")).await.unwrap().job;
    agent.next().await;
    let report = Report::new(job.id.clone(), 1, 2, done());
    let good = agent.told(&report);
    let elsewhere = agent.told(&Report::new(second.id.clone(), 1, 2, done()));
    let before = stored(&controller, "job").await;
    let mut seed = 7_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let (mut round, mut refused) = (0, 0);
    while refused < 1_000 {
        round += 1;
        let mut bad = good.clone();
        match round % 8 {
            0 => bad.signature = None,
            1 => {
                let at = random(bad.body.len());
                let byte = char::from(b'a' + u8::try_from(random(26)).unwrap());
                bad.body.replace_range(at..=at, &byte.to_string());
            }
            2 => bad.body.insert(random(bad.body.len()), ' '),
            3 => bad.job.clone_from(&second.id),
            4 => bad.signature.clone_from(&elsewhere.signature),
            5 => bad.signature = other.told(&report).signature,
            6 => {
                let key = agent.key.as_ref().unwrap();
                bad.signature = Some(key.sign(Purpose::Task, "m1", &[&bad.job, &bad.body]));
            }
            _ => {
                let mut signature = bad.signature.unwrap().into_bytes();
                let at = random(86);
                signature[at] = if signature[at] == b'A' { b'B' } else { b'A' };
                bad.signature = Some(String::from_utf8(signature).unwrap());
            }
        }
        if bad == good {
            continue;
        }
        let ask = if round % 2 == 0 {
            Ask::Finish(vec![bad])
        } else {
            Ask::Next(Next { done: vec![bad], ..Next::default() })
        };
        let error = agent.desk.answer(ask).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Denied, "{round}: {error}");
        refused += 1;
    }
    assert_eq!(stored(&controller, "job").await, before);
    assert!(controller.lanes().is_missing(Uuid::parse_str(&job.id).unwrap(), "m1"));
    assert_eq!(events(&controller, "outcomes_refused").await.1, refused);
    // One bad word among good ones: none counts.
    let mut bad = elsewhere.clone();
    bad.signature = None;
    let error = agent.desk.answer(Ask::Finish(vec![good.clone(), bad])).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    // The word itself counts once, however often it is said.
    for _ in 0..3 {
        agent.desk.answer(Ask::Finish(vec![good.clone()])).await.unwrap();
    }
    outcome(&controller, &job).await.unwrap();
    assert_eq!(stored(&controller, "job").await, before + 1);
    assert_eq!(events(&controller, "outcomes_repeated").await.1, 2);
}

#[tokio::test]
async fn refused_tasks_are_on_record() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let mut agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    for refused in [3, 3, 5, 4] {
        agent.about.refused = refused;
        agent.hello().await.unwrap();
    }
    assert_eq!(events(&controller, "tasks_refused").await, (1, 5));
    // Another agent counts anew.
    (agent.about.started_at, agent.about.refused) = (agent.about.started_at + 1, 1);
    agent.hello().await.unwrap();
    assert_eq!(events(&controller, "tasks_refused").await, (2, 6));
    assert!(fingerprint(&agent.about.signing_key).is_some());
}

#[tokio::test]
async fn a_host_that_waits_to_be_accepted_is_neither_ready_nor_missed() {
    let bench = Bench::strict();
    let controller = bench.start().await;
    let agent = Agent::signing(&controller, ("m1", "web"), 1, 1).await;
    let ready =
        async || call(&controller, "health.ready", json!({})).await.unwrap()["status"].clone();
    let counted = || {
        let figures = controller.figures();
        (figures.agents, figures.agents_ready)
    };
    assert_eq!((ready().await, counted()), (json!("not_ready"), (0, 0)));
    accept(&controller, "web", None).await.unwrap();
    assert_eq!((ready().await, counted()), (json!("ready"), (1, 1)));
    // Another key is nobody's yet either.
    drop(agent);
    let _other = Agent::signing(&controller, ("m1", "web"), 2, 2).await;
    assert_eq!((ready().await, counted()), (json!("not_ready"), (0, 0)));
}
