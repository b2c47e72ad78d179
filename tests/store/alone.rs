//! A controller that is alone on its stream at the broker, and those who come to it.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use osapi::broker::Settings;
use osapi::store::nats::NatsStore;
use osapi::store::{Entry, Event, Store};
use serde_json::{Value, json};

use super::nats::{open, settings};
use super::{list, put, request};
use crate::broker::{self, Broker};

/// How many records each of two controllers writes beside the other.
const EACH: usize = 300;

/// A controller that is told by its own writer.
struct Alone {
    store: NatsStore,
    events: BoxStream<'static, Event>,
    client: async_nats::Client,
}

impl Alone {
    /// Commits until the server is asked for others only.
    async fn begin(broker: &Broker, name: &str) -> Self {
        let client = async_nats::connect(broker.address()).await.unwrap();
        let store = open(settings(broker)).await.unwrap();
        let mut events = store.watch("", 0).await.unwrap();
        while events.next().await != Some(Event::Current) {}
        let mut alone = Self { store, events, client };
        for i in 0..1000 {
            let key = format!("alone.{name}-{i}");
            alone.store.commit(put(key.as_str()).note(request(i))).await.unwrap();
            assert_eq!(alone.told().await.key, key);
            if alone.asked_for().await.iter().any(|filter| filter.contains("$writer")) {
                return alone;
            }
        }
        panic!("it is never alone: {:?}", alone.asked_for().await);
    }

    /// The next record that the watch tells of.
    async fn told(&mut self) -> Entry {
        loop {
            match self.events.next().await {
                Some(Event::Put(entry)) => return entry,
                Some(_) => {}
                None => panic!("the watch has ended"),
            }
        }
    }

    async fn api(&self, call: &str, body: Value) -> Value {
        let payload = serde_json::to_vec(&body).unwrap().into();
        let answer = self.client.request(format!("$JS.API.{call}.osapi"), payload).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// What the server is asked to send, by consumer.
    async fn asked_for(&self) -> Vec<String> {
        let list = self.api("CONSUMER.LIST", json!({})).await;
        let filter = |consumer: &Value| consumer["config"]["filter_subjects"][0].to_string();
        list["consumers"].as_array().unwrap().iter().map(filter).collect()
    }

    /// How many have shown that they write.
    async fn writers(&self) -> usize {
        let filter = json!({ "subjects_filter": "osapi.kv.$writer.*" });
        let info = self.api("STREAM.INFO", filter).await;
        info["state"]["subjects"].as_object().map_or(0, serde_json::Map::len)
    }

    /// Somebody writes who does not say so.
    async fn write_unseen(&self, key: &str) {
        self.client.request(format!("osapi.kv.{key}"), "1".into()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_alone_is_told_by_itself_until_another_writes() {
    if !broker::is_there("a controller alone on its stream") {
        return;
    }
    let broker = Broker::start();
    let mut one = Alone::begin(&broker, "one").await;
    let listed = list(&one.store, "", "", 2000).await;
    assert!(listed.iter().all(|entry| entry.key.starts_with("alone.")), "{listed:?}");
    assert_eq!(one.writers().await, 1);

    // Another, who says so, and whom it hears of though it writes nothing itself.
    let two = Settings { name: "two".to_owned(), ..settings(&broker) };
    let two = open(two).await.unwrap();
    two.commit(put("two.first")).await.unwrap();
    assert_eq!(one.writers().await, 2);
    assert_eq!(one.told().await.key, "two.first");
    let own = one.store.clone();
    let all = [(&own, "one"), (&two, "two")].map(async |(store, name)| {
        for i in 0..EACH {
            store.commit(put(format!("{name}.{i}")).note(request(i))).await.unwrap();
        }
    });
    let (_, seen) = tokio::join!(join_all(all), async {
        let mut seen = Vec::new();
        while seen.len() < 2 * EACH {
            seen.push(one.told().await);
        }
        seen
    });
    assert!(seen.is_sorted_by(|a, b| a.revision < b.revision), "told out of order");
    let keys: BTreeSet<_> = seen.iter().map(|entry| &entry.key).collect();
    assert_eq!(keys.len(), 2 * EACH, "told twice, or not at all");
    assert!(one.events.next().now_or_never().is_none(), "told of more than there is");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_alone_finds_out_about_who_did_not_say_so() {
    if !broker::is_there("a controller that only seems alone") {
        return;
    }
    let broker = Broker::start();
    let mut one = Alone::begin(&broker, "one").await;
    one.write_unseen("strange").await;
    for i in 0..3 {
        one.store.commit(put(format!("own.{i}")).note(request(i))).await.unwrap();
    }
    for key in ["strange", "own.0", "own.1", "own.2"] {
        assert_eq!(one.told().await.key, key);
    }
    one.store.close().await;

    // One that writes nothing itself hears where the stream ends.
    let mut quiet = Alone::begin(&broker, "quiet").await;
    quiet.write_unseen("stranger").await;
    assert_eq!(quiet.told().await.key, "stranger");
}
