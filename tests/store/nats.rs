//! The suite over NATS JetStream, and what is this backend's own: servers that die, are full, or
//! have several controllers.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use osapi::broker::{Identity, Settings};
use osapi::clock::Clock;
use osapi::error::{Kind, Result};
use osapi::store::nats::{NatsObjects, NatsStore};
use osapi::store::{Bounds, Event, Expect, Objects, Order, Step, Store, Upload};
use serde_json::Value;

use super::recovery::{nothing_is_lost_or_half_done, pair};
use super::{links, list, noted, put, refusal, request, suite, until_taken, value, verdict};
use crate::broker::{self, Broker};
use crate::say::say;

/// How long the server may take to forget what was dropped.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn settings(broker: &Broker) -> Settings {
    Settings {
        servers: vec![broker.address()],
        namespace: "osapi".to_owned(),
        name: "one".to_owned(),
        replicas: 1,
        ..Settings::default()
    }
}

pub(super) async fn open(settings: Settings) -> Result<NatsStore> {
    NatsStore::open(settings, Clock::default(), Bounds::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_keeps_every_promise() {
    if !broker::is_there("the store's suite on NATS") {
        return;
    }
    let broker = Broker::start();
    let store = open(settings(&broker)).await.unwrap();
    let objects = NatsObjects::open(&store).await.unwrap();
    suite::suite(Arc::new(store), &objects).await;
}

/// Commits pairs from `first` on until the server is gone; how many were acknowledged is counted.
async fn commit_pairs(store: &NatsStore, first: usize, count: &AtomicUsize) -> Vec<usize> {
    let clients = (0..16).map(async |client| {
        let mut done = Vec::new();
        for i in (first + client..).step_by(16) {
            let _coming = store.expect();
            match store.commit(pair(i)).await {
                Ok(_) => done.push(i),
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
                    break;
                }
            }
            count.fetch_add(1, Ordering::Relaxed);
        }
        done
    });
    join_all(clients).await.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_to_a_kill_of_the_server() {
    if !broker::is_there("kills of the broker") {
        return;
    }
    let mut broker = Broker::start();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let store = open(settings(&broker)).await.unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let committing = {
            let (store, count) = (store.clone(), count.clone());
            tokio::spawn(async move { commit_pairs(&store, round * 100_000, &count).await })
        };
        while count.load(Ordering::Relaxed) < 400 {
            tokio::task::yield_now().await;
        }
        broker.kill();
        acknowledged.extend(committing.await.unwrap());
        assert!(store.room().is_audit_broken);
        assert_eq!(store.get("a.0").await.unwrap_err().kind(), Kind::Unavailable);
        broker.restart();
        // The store that saw it die goes on, and one that is opened now sees the same.
        until_taken(&store, put(format!("after.{round}")), &[Kind::Unavailable]).await;
        nothing_is_lost_or_half_done(&store, &acknowledged).await;
        store.close().await;
        let store = open(settings(&broker)).await.unwrap();
        nothing_is_lost_or_half_done(&store, &acknowledged).await;
    }
    say(format!("kills of the broker: 3, {} acknowledged, none lost", acknowledged.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_over_an_outage() {
    if !broker::is_there("watches over an outage of the broker") {
        return;
    }
    let mut broker = Broker::start();
    let store = open(settings(&broker)).await.unwrap();
    let mut events = store.watch("", 0).await.unwrap();
    assert_eq!(events.next().await, Some(Event::Current));
    store.commit(put("a")).await.unwrap();
    let Some(Event::Put(first)) = events.next().await else { panic!("no event") };
    broker.kill();
    let failed = store.commit(put("lost")).await.unwrap_err();
    assert_eq!(failed.kind(), Kind::Unavailable);
    broker.restart();
    until_taken(&store, put("b"), &[Kind::Unavailable]).await;
    let Some(Event::Put(next)) = events.next().await else { panic!("no event") };
    assert_eq!((first.key.as_str(), next.key.as_str()), ("a", "b"));
    assert!(next.revision > first.revision);
    assert!(!store.room().is_audit_broken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_still_ends_what_it_accepted() {
    if !broker::is_there("a full stream") {
        return;
    }
    let broker = Broker::start();
    let bounds = Bounds { database: 400_000, audit: 40_000, ..Bounds::default() };
    let store = NatsStore::open(settings(&broker), Clock::default(), bounds).await.unwrap();
    let large = |key: String| Step::new().put(key, vec![b'x'; 2000], Expect::Absent);
    let mut count = 0;
    let full = loop {
        match store.commit(large(format!("job.{count}"))).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), Kind::Full);
    assert!(count > 100 && store.room().is_full, "{count}");
    store.commit(large("job.0.host".to_owned()).owed()).await.unwrap();
    // Up to what the server itself refuses.
    let mut owed = 0;
    while store.commit(large(format!("owed.{owed}")).owed()).await.is_ok() {
        owed += 1;
    }
    assert!(value(&store, "job.1").await.is_some(), "reads go on");
    // Whoever has just come has not even room to say so.
    let client = async_nats::connect(broker.address()).await.unwrap();
    for i in 0.. {
        let answer = client.request(format!("osapi.kv.tiny.{i}"), "".into()).await.unwrap();
        if answer.payload.windows(5).any(|part| part == b"error") {
            break;
        }
    }
    let two = open(Settings { name: "two".to_owned(), ..settings(&broker) }).await.unwrap();
    let delete = |i: usize| Step::new().delete(format!("job.{i}"), Expect::Anything);
    // Its note waits until there is room.
    two.commit(delete(0).note(request("deleted"))).await.unwrap();
    assert_eq!(value(&store, "job.0").await, None);
    assert_eq!(noted(&links(&two).await), [] as [&str; 0]);
    for i in 1..count {
        store.commit(delete(i)).await.unwrap();
    }
    until_taken(&store, large("job.new".to_owned()).note(request(1)), &[Kind::Full]).await;
    assert!(!store.room().is_full);
    two.commit(Step::new().note(request(2))).await.unwrap();
    let mut ids = noted(&links(&two).await);
    ids.sort();
    assert_eq!(ids, ["1", "2", "deleted"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_leaves_chains_that_verify() {
    if !broker::is_there("retention of the audit log at the broker") {
        return;
    }
    let broker = Broker::start();
    let bounds = Bounds { audit: 40_000, ..Bounds::default() };
    let open = async || {
        let bounds = bounds.clone();
        NatsStore::open(settings(&broker), Clock::default(), bounds).await.unwrap()
    };
    let store = open().await;
    for i in 0..20 {
        store.commit(Step::new().note(refusal(i))).await.unwrap();
    }
    for i in 0..300 {
        store.commit(Step::new().note(request(i))).await.unwrap();
    }
    let ends = store.ends().await.unwrap();
    assert!(ends.stub.number > 0 && store.room().audit < 40_000);
    assert_eq!((ends.head.entries, ends.refusals_stub.number), (300, 0));
    let kept = noted(&links(&store).await);
    assert_eq!(ends.stub.entries + kept.len() as u64, 320);
    assert_eq!(kept.last().unwrap(), "299");
    let whole = verdict(&store).await;
    assert!(whole.is_whole(), "{whole:?}");
    // It goes on from there after a restart, also where links were dropped a moment ago.
    for i in 300..600 {
        store.commit(Step::new().note(request(i))).await.unwrap();
    }
    let ends = store.ends().await.unwrap();
    store.close().await;
    let store = open().await;
    assert_eq!(store.ends().await.unwrap(), ends);
    store.commit(Step::new().note(request(600))).await.unwrap();
    let whole = verdict(&store).await;
    assert!(whole.is_whole(), "{whole:?}");
    // Of what was dropped nothing is left once that was told, no marker of the server's either.
    let client = async_nats::connect(broker.address()).await.unwrap();
    let (kept, begun) = (links(&store).await.len(), Instant::now());
    loop {
        let query = r#"{ "subjects_filter": "osapi.audit.>" }"#;
        let answer = client.request("$JS.API.STREAM.INFO.osapi", query.into()).await.unwrap();
        let info: Value = serde_json::from_slice(&answer.payload).unwrap();
        let there = info["state"]["subjects"].as_object().unwrap().len();
        if there == kept {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{there} messages for {kept} links");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_controllers_share_records_and_keep_chains_of_their_own() {
    if !broker::is_there("several controllers on one broker") {
        return;
    }
    let broker = Broker::start();
    let one = open(settings(&broker)).await.unwrap();
    let two = Settings { name: "two".to_owned(), ..settings(&broker) };
    let two = open(two).await.unwrap();
    let mut events = two.watch("", 0).await.unwrap();
    assert_eq!(events.next().await, Some(Event::Current));
    for i in 0..20 {
        let store = if i % 2 == 0 { &one } else { &two };
        store.commit(put(format!("shared.{i}")).note(request(i))).await.unwrap();
        let Some(Event::Put(entry)) = events.next().await else { panic!("no event") };
        assert_eq!(entry.key, format!("shared.{i}"));
    }
    for store in [&one, &two] {
        assert_eq!(list(store, "shared", "", 100).await.len(), 20);
        let all = links(store).await;
        let ids: BTreeSet<_> = noted(&all).into_iter().collect();
        assert_eq!(ids.len(), 20, "any of them shows the entries of all");
        let ends = store.ends().await.unwrap();
        let own = all.iter().filter(|stored| stored.writer == ends.head.writer);
        let own: Vec<_> = own.map(|stored| &*stored.bytes).collect();
        assert_eq!(own.len(), 10);
        let whole = osapi::store::audit::verify(&ends, own, &ends.heads());
        assert!(whole.is_whole() && whole.anchored == 2, "{whole:?}");
        let newest = store.audit(0, 3, Order::Descending).await.unwrap();
        assert_eq!(noted(&newest), ["19", "18", "17"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_controllers_agree_on_what_the_files_take() {
    if !broker::is_there("files of several controllers") {
        return;
    }
    let broker = Broker::start();
    let open = async |name: &str| {
        let settings = Settings { name: name.to_owned(), ..settings(&broker) };
        let bounds = Bounds { objects: 1_000_000, ..Bounds::default() };
        let store = NatsStore::open(settings, Clock::default(), bounds).await.unwrap();
        let objects = NatsObjects::open(&store).await.unwrap();
        (store, objects)
    };
    let ((_one, at_one), (_two, at_two)) = (open("one").await, open("two").await);
    let put = async |objects: &NatsObjects, name: &str, size: usize| {
        let content = Box::pin(Cursor::new(vec![b'x'; size]));
        let (name, content_type) = (name.to_owned(), "raw".to_owned());
        objects.put(Upload { name, content_type, content, force: false, note: None }).await
    };
    put(&at_one, "a", 600_000).await.unwrap();
    let full = put(&at_two, "b", 500_000).await.unwrap_err();
    assert_eq!(full.kind(), Kind::Full, "what another has uploaded counts");
    at_two.delete("a", None).await.unwrap();
    assert_eq!(at_two.bytes(), 0);
    put(&at_two, "b", 500_000).await.unwrap();
    put(&at_one, "c", 400_000).await.expect("what another has deleted no longer counts");
    assert_eq!(at_one.bytes(), 900_000);
    at_one.delete("b", None).await.unwrap();
    assert_eq!(at_one.bytes(), 400_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_controllers_of_one_name_lose_no_note() {
    if !broker::is_there("two controllers of one name") {
        return;
    }
    let broker = Broker::start();
    let one = open(settings(&broker)).await.unwrap();
    one.commit(Step::new().note(request("first"))).await.unwrap();
    let two = open(settings(&broker)).await.unwrap();
    for i in 0..10 {
        let store = if i % 2 == 0 { &one } else { &two };
        store.commit(put(format!("shared.{i}")).note(request(i))).await.unwrap();
    }
    let whole = verdict(&two).await;
    assert!(whole.is_whole(), "{whole:?}");
    assert_eq!(noted(&links(&one).await).len(), 11);
    assert_eq!(warned(&one), ["broker.durable", "broker.name"]);
}

/// Of what there is a warning.
fn warned(store: &NatsStore) -> Vec<&'static str> {
    let wrong = store.conditions().into_iter().filter(|one| one.fault.is_some());
    wrong.inspect(|one| assert!(one.is_warning, "{one:?}")).map(|one| one.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_depends_on_is_warned_of() {
    if !broker::is_there("warnings of the broker") {
        return;
    }
    let users = "authorization { users: [
        { user: osapi, password: right, permissions: { publish: { deny: [\"osapi.kv.secret\"] } } }
    ] }";
    let mut broker = Broker::with(users, "sync_interval: always");
    let with = |broker: &Broker, is_synced| {
        let password = "right".to_owned().into();
        let identity = Identity::Password { user: "osapi".to_owned(), password };
        Settings { identity, is_synced, ..settings(broker) }
    };
    let store = open(with(&broker, false)).await.unwrap();
    assert_eq!(warned(&store), ["broker.durable"]);
    let store = open(with(&broker, true)).await.unwrap();
    assert_eq!(warned(&store), [] as [&str; 0]);
    let refused = store.commit(put("secret")).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied);
    assert_eq!(warned(&store), ["broker.rights"]);
    broker.kill();
    let is_away = || store.conditions().iter().any(|one| !one.is_warning && one.fault.is_some());
    while !is_away() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lazy_steps_are_stored_before_the_store_closes() {
    if !broker::is_there("closing a store at the broker") {
        return;
    }
    let broker = Broker::start();
    let store = open(settings(&broker)).await.unwrap();
    let mut left = Box::pin(store.commit(put("lazy").lazy()));
    assert!(futures_util::poll!(&mut left).is_pending());
    drop(left);
    store.close().await;
    assert_eq!(store.commit(put("late")).await.unwrap_err().kind(), Kind::Unavailable);
    let store = open(settings(&broker)).await.unwrap();
    assert!(value(&store, "lazy").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_no_larger_than_a_message_of_the_broker() {
    if !broker::is_there("large records at the broker") {
        return;
    }
    let broker = Broker::start();
    let store = open(settings(&broker)).await.unwrap();
    let step = |size| Step::new().put("large", vec![b'x'; size], Expect::Anything);
    assert_eq!(store.commit(step(1 << 20)).await.unwrap_err().kind(), Kind::TooLarge);
    store.commit(step(1_000_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_has_lost_what_it_acknowledged_is_used_no_more() {
    if !broker::is_there("what a broker loses") {
        return;
    }
    let mut broker = Broker::start();
    let writer = open(settings(&broker)).await.unwrap();
    let idle = open(Settings { name: "two".to_owned(), ..settings(&broker) }).await.unwrap();
    let mut events = idle.watch("", 0).await.unwrap();
    writer.commit(put("kept").note(request("kept"))).await.unwrap();
    broker.keep();
    // Being away is not enough.
    let lost = put("lost").note(request("lost"));
    until_taken(&writer, lost, &[Kind::Unavailable]).await;
    let is_lost = |event: &Event| matches!(event, Event::Put(entry) if entry.key == "lost");
    while !is_lost(&events.next().await.unwrap()) {}
    broker.take_back();
    for store in [&writer, &idle] {
        let taken_back = store.taken_back();
        tokio::time::timeout(Duration::from_mins(1), taken_back).await.expect("nobody noticed");
        assert_eq!(store.commit(put("late")).await.unwrap_err().kind(), Kind::Unavailable);
        assert!(store.get("kept").await.is_err());
    }
    let store = open(settings(&broker)).await.unwrap();
    assert_eq!(
        (value(&store, "kept").await, value(&store, "lost").await),
        (Some("x".into()), None)
    );
    store.commit(put("late").note(request("late"))).await.unwrap();
    assert!(verdict(&store).await.is_whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn lifetimes_last_as_long_at_the_broker() {
    if !broker::is_there("lifetimes at the broker") {
        return;
    }
    let mut broker = Broker::start();
    let store = open(settings(&broker)).await.unwrap();
    let day = Duration::from_hours(24);
    store.commit(put("kept").expires(day)).await.unwrap();
    store.commit(put("brief").expires(Duration::from_secs(1))).await.unwrap();
    broker.kill();
    broker.restart();
    until_taken(&store, put("after"), &[Kind::Unavailable]).await;
    while value(&store, "brief").await.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(value(&store, "kept").await.is_some());
}
