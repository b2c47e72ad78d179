//! What goes on record at the broker where that refuses it, is away, or has no room in a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use osapi::broker::{Identity, Settings};
use osapi::error::Kind;
use osapi::store::audit::{Note, Stored};
use osapi::store::{Step, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::nats::{open, settings};
use super::{links, list, look, noted, put, refusal, request, until_taken, verdict};
use crate::broker::{self, Broker};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_noted_takes_as_many_messages_as_it_needs() {
    if !broker::is_there("notes that are more than a message of the broker may have") {
        return;
    }
    let broker = Broker::with("max_payload: 65536", "sync_interval: always");
    let store = open(settings(&broker)).await.unwrap();
    let id = |i: usize, size: usize| format!("{i} {}", "x".repeat(size));
    let many = |from: usize| {
        let ids = (from..from + 200).map(|i| id(i, 1_000));
        ids.fold(put(format!("many.{from}")), |step, id| step.note(request(id)))
    };
    store.commit(many(0).note(refusal("refused"))).await.unwrap();
    // Nobody can ever read one that no message has room for, and it stands in the way of no other.
    store.commit(put("large").note(request(id(0, 70_000))).note(request("beside"))).await.unwrap();
    store.commit(many(200)).await.unwrap();
    assert_eq!(list(&store, "many", "", 9).await.len(), 2);
    let all = links(&store).await;
    let mut expected: Vec<_> = (0..400).map(|i| id(i, 1_000)).collect();
    expected.splice(200..200, ["refused".to_owned(), "beside".to_owned()]);
    assert_eq!(noted(&all), expected);
    assert_eq!(lost(&all), 1);
    let whole = verdict(&store).await;
    assert!(whole.is_whole(), "{whole:?}");
    let ends = store.ends().await.unwrap();
    store.close().await;
    assert_eq!(open(settings(&broker)).await.unwrap().ends().await.unwrap(), ends);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_two_write_under_one_name_long_notes_go_behind_those_of_the_other() {
    if !broker::is_there("two controllers of one name with much to note") {
        return;
    }
    let broker = Broker::with("max_payload: 65536", "sync_interval: always");
    let one = open(settings(&broker)).await.unwrap();
    one.commit(Step::new().note(request("first"))).await.unwrap();
    let stores = [one, open(settings(&broker)).await.unwrap()];
    for round in 0..4 {
        for (i, store) in stores.iter().enumerate() {
            let note = |at: usize| request(format!("{round} {i} {at} {}", "x".repeat(1_000)));
            let step =
                (0..100).fold(put(format!("many.{round}.{i}")), |step, at| step.note(note(at)));
            store.commit(step).await.unwrap();
        }
    }
    assert_eq!(list(&stores[0], "many", "", 9).await.len(), 8);
    assert_eq!(noted(&links(&stores[1]).await).len(), 801);
    let whole = verdict(&stores[1]).await;
    assert!(whole.is_whole(), "{whole:?}");
}

/// How many notes the log says were lost.
fn lost(links: &[Stored]) -> u64 {
    let notes = links.iter().flat_map(|stored| &stored.link.notes);
    let lost = |note: &Note| match note {
        Note::Event(event) => event["lost_notes"].as_u64(),
        _ => None,
    };
    notes.filter_map(lost).sum()
}

#[tokio::test]
async fn nothing_is_stored_once_its_note_was_refused() {
    if !broker::is_there("notes that the broker refuses") {
        return;
    }
    let users = "authorization { users: [
        { user: osapi, password: right, permissions: { publish: { deny: [\"osapi.audit.>\"] } } }
    ] }";
    let broker = Broker::with(users, "sync_interval: always");
    let identity =
        Identity::Password { user: "osapi".to_owned(), password: "right".to_owned().into() };
    let store = open(Settings { identity, ..settings(&broker) }).await.unwrap();
    // Several steps of several records go one after the other, behind one link.
    let steps = (0..4).map(|i| {
        let step = put(format!("pair.{i}.a")).and(put(format!("pair.{i}.b")));
        store.commit(step.note(request(i)))
    });
    for result in join_all(steps).await {
        assert_eq!(result.unwrap_err().kind(), Kind::Denied);
    }
    assert_eq!(list(&store, "pair", "", 9).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_noted_while_the_broker_was_away_is_counted() {
    if !broker::is_there("notes while the broker is away") {
        return;
    }
    let mut broker = Broker::start();
    let store = open(settings(&broker)).await.unwrap();
    store.commit(put("a").note(request("before"))).await.unwrap();
    broker.kill();
    while store.commit(put("b")).await.is_ok() || store.get("a").await.is_ok() {}
    while !store.conditions().iter().any(|one| one.name == "broker" && one.fault.is_some()) {
        tokio::task::yield_now().await;
    }
    let lazy = Step::new().note(look(1)).note(look(2)).lazy();
    assert_eq!(store.commit(lazy).await.unwrap_err().kind(), Kind::Unavailable);
    broker.restart();
    until_taken(&store, put("b").note(request("after")), &[Kind::Unavailable]).await;
    let all = links(&store).await;
    assert_eq!((noted(&all), lost(&all)), (vec!["before".to_owned(), "after".to_owned()], 2));
}

/// Where the broker is reached until it acknowledges what was stored, after which it was told to fail.
struct Fragile {
    address: String,
    is_to_fail: Arc<AtomicBool>,
}

impl Fragile {
    async fn before(broker: &Broker) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (is_to_fail, to) = (Arc::new(AtomicBool::new(false)), broker.address());
        let fails = is_to_fail.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&to).await.unwrap();
                tokio::spawn(pass(client, server, fails.clone()));
            }
        });
        Self { address, is_to_fail }
    }
}

async fn pass(client: TcpStream, server: TcpStream, is_to_fail: Arc<AtomicBool>) {
    let ((mut asks, mut hears), (mut answers, mut takes)) =
        (client.into_split(), server.into_split());
    let asking = tokio::spawn(async move { tokio::io::copy(&mut asks, &mut takes).await });
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = answers.read(&mut buffer).await.unwrap_or_default();
        let is_stored = buffer[..count].windows(6).any(|part| part == b"\"seq\":");
        let breaks = is_stored && is_to_fail.swap(false, Ordering::SeqCst);
        if count == 0 || breaks || hears.write_all(&buffer[..count]).await.is_err() {
            return asking.abort();
        }
    }
}

#[tokio::test]
async fn what_was_stored_and_not_said_to_be_is_noted_once() {
    if !broker::is_there("answers that are lost") {
        return;
    }
    let broker = Broker::start();
    let way = Fragile::before(&broker).await;
    let servers = vec![way.address.clone()];
    let store = open(Settings { servers, ..settings(&broker) }).await.unwrap();
    store.commit(put("a").note(request("before"))).await.unwrap();
    way.is_to_fail.store(true, Ordering::SeqCst);
    let mut lazy = Box::pin(store.commit(Step::new().note(request("rides")).lazy()));
    assert!(futures_util::poll!(&mut lazy).is_pending());
    let failed = store.commit(put("b").note(request("lost"))).await.unwrap_err();
    assert_eq!(failed.kind(), Kind::Unavailable);
    assert_eq!(lazy.await.unwrap_err().kind(), Kind::Unavailable);
    until_taken(&store, put("c").note(request("after")), &[Kind::Unavailable]).await;
    let mut ids = noted(&links(&store).await);
    ids.sort();
    assert_eq!(ids, ["after", "before", "lost", "rides"]);
    assert!(verdict(&store).await.is_whole());
}
