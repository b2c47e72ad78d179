use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use osapi::clock::Clock;
use osapi::error::{Kind, Result};
use osapi::store::objects::Files;
use osapi::store::redb::RedbStore;
use osapi::store::{Bounds, Event, Expect, Objects, Order, Step, Store, WRITES};
use tempfile::TempDir;

use super::{Disk, keys, links, list, noted, put, refusal, request, value, verdict};

#[tokio::test(flavor = "multi_thread")]
async fn redb_in_a_file_keeps_every_promise() {
    let dir = TempDir::new().unwrap();
    let store = RedbStore::open(dir.path(), Clock::default(), Bounds::default()).unwrap();
    let store: Arc<dyn Store> = Arc::new(store);
    let files = Files::open(dir.path().join("objects"), store.clone(), Clock::default(), 1 << 30);
    suite(store, &files.await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redb_in_memory_keeps_every_promise() {
    let dir = TempDir::new().unwrap();
    let store: Arc<dyn Store> = Arc::new(Disk::new().open(&Clock::default(), Bounds::default()));
    let files = Files::open(dir.path(), store.clone(), Clock::default(), 1 << 30);
    suite(store, &files.await.unwrap()).await;
}

pub(super) async fn suite(store: Arc<dyn Store>, objects: &dyn Objects) {
    a_step_takes_effect_only_if_every_expectation_holds(&*store).await;
    a_step_has_a_bound(&*store).await;
    a_deleted_key_is_absent(&*store).await;
    of_many_writers_exactly_one_wins(&store).await;
    steps_that_wait_together_succeed_or_fail_alone(&store).await;
    a_prefix_is_whole_tokens(&*store).await;
    a_list_goes_on_where_it_stopped(&*store).await;
    a_watch_has_no_gap(&store).await;
    a_watch_goes_on_where_it_stopped(&*store).await;
    records_expire(&*store).await;
    audit_is_one_unbroken_chain(&*store).await;
    the_log_is_read_in_pages_however_large_its_links_are(&*store).await;
    a_watch_that_lags_misses_no_record(&*store).await;
    a_lazy_step_becomes_durable_by_itself(&*store).await;
    a_promise_to_commit_holds_nobody_up(&*store).await;
    super::objects::suite(objects).await;
}

async fn a_step_takes_effect_only_if_every_expectation_holds(store: &dyn Store) {
    let step = Step::new().put("cas.a", "1", Expect::Absent).put("cas.b", "1", Expect::Absent);
    let both = store.commit(step).await.unwrap();
    let step = Step::new().put("cas.c", "2", Expect::Absent).put("cas.a", "2", Expect::Absent);
    assert_eq!(store.commit(step).await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(store.get("cas.c").await.unwrap(), None);
    let step =
        Step::new().put("cas.b", "2", Expect::Revision(both)).delete("cas.a", Expect::Anything);
    assert!(store.commit(step).await.unwrap() > both);
    let stale = Step::new().put("cas.b", "3", Expect::Revision(both));
    assert_eq!(store.commit(stale).await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(value(store, "cas.b").await.unwrap(), "2");
    assert_eq!(value(store, "cas.a").await, None);
}

async fn a_step_has_a_bound(store: &dyn Store) {
    let step = |count| {
        let put = |step: Step, at| step.put(format!("many.{at}"), "1", Expect::Absent);
        (0..count).fold(Step::new(), put)
    };
    assert_eq!(store.commit(step(WRITES + 1)).await.unwrap_err().kind(), Kind::TooLarge);
    store.commit(step(WRITES)).await.unwrap();
    let delete = |step: Step, at| step.delete(format!("many.{at}"), Expect::Anything);
    store.commit((0..WRITES).fold(Step::new(), delete)).await.unwrap();
}

async fn a_deleted_key_is_absent(store: &dyn Store) {
    for round in ["1", "2"] {
        store.commit(Step::new().put("gone", round, Expect::Absent)).await.unwrap();
        assert_eq!(value(store, "gone").await.unwrap(), round);
        store.commit(Step::new().delete("gone", Expect::Anything)).await.unwrap();
        assert_eq!(value(store, "gone").await, None);
    }
}

async fn of_many_writers_exactly_one_wins(store: &Arc<dyn Store>) {
    let race = (0..8).map(|i| {
        let step = Step::new().put("race", i.to_string(), Expect::Absent);
        store.commit(step.note(request(i)))
    });
    let outcomes = join_all(race).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let winner = outcomes.iter().position(Result::is_ok).unwrap();
    assert_eq!(value(&**store, "race").await.unwrap(), winner.to_string());
}

async fn steps_that_wait_together_succeed_or_fail_alone(store: &Arc<dyn Store>) {
    let together = (0..100).map(|i| {
        // Every third asks for the key that its neighbour takes.
        let key = format!("many.{}", if i % 3 == 2 { i - 1 } else { i });
        store.commit(Step::new().put(key, "x", Expect::Absent))
    });
    let outcomes = join_all(together).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 33);
    assert_eq!(list(&**store, "many", "", 1000).await.len(), 67);
    let changes = (0..40).map(async |i| {
        let key = format!("each.{i}");
        let first = store.commit(Step::new().put(&key, "1", Expect::Absent)).await.unwrap();
        let second = store.commit(Step::new().put(&key, "2", Expect::Revision(first))).await;
        assert_eq!(store.get(&key).await.unwrap().unwrap().revision, second.unwrap());
    });
    join_all(changes).await;
}

async fn a_prefix_is_whole_tokens(store: &dyn Store) {
    for key in ["job1", "job1.a", "job1.b", "job10.a", "job1-x.a"] {
        store.commit(Step::new().put(key, "x", Expect::Anything)).await.unwrap();
    }
    assert_eq!(keys(&list(store, "job1", "", 10).await), ["job1.a", "job1.b"]);
}

async fn a_list_goes_on_where_it_stopped(store: &dyn Store) {
    let step = ["e", "d", "a", "c", "b"]
        .iter()
        .fold(Step::new(), |step, key| step.put(format!("page.{key}"), "x", Expect::Absent));
    store.commit(step).await.unwrap();
    assert_eq!(keys(&list(store, "page", "", 2).await), ["page.a", "page.b"]);
    assert_eq!(keys(&list(store, "page", "page.b", 2).await), ["page.c", "page.d"]);
    assert_eq!(keys(&list(store, "page", "page.d", 2).await), ["page.e"]);
    let back = async |after: &str| store.list("page", after, 2, Order::Descending).await.unwrap();
    assert_eq!(keys(&back("").await), ["page.e", "page.d"]);
    assert_eq!(keys(&back("page.d").await), ["page.c", "page.b"]);
    assert_eq!(keys(&back("page.b").await), ["page.a"]);
    assert_eq!(keys(&back("page.a").await), [] as [&str; 0]);
    assert_eq!(keys(&back("zzz").await), ["page.e", "page.d"]);
    assert_eq!(keys(&list(store, "page", "zzz", 2).await), [] as [&str; 0]);
    let all = list(store, "", "", usize::MAX).await;
    assert!(all.windows(2).all(|pair| pair[0].key < pair[1].key));
    for most in [1, 2, 1000] {
        let pages: Vec<_> = store.pages("page", most).map(Result::unwrap).collect().await;
        assert!(pages.iter().all(|page| !page.is_empty() && page.len() <= most));
        assert_eq!(keys(&pages.concat()), ["page.a", "page.b", "page.c", "page.d", "page.e"]);
    }
    assert_eq!(store.pages("pag", 2).count().await, 0);
    let last = store.list("", "", 1, Order::Descending).await.unwrap();
    assert_eq!(last[0].key, all.last().unwrap().key);
}

async fn a_watch_has_no_gap(store: &Arc<dyn Store>) {
    let (writer, count) = (store.clone(), 200);
    let writing = tokio::spawn(async move {
        for i in 0..count {
            let step = Step::new().put(format!("flow.{}", i % 10), i.to_string(), Expect::Anything);
            writer.commit(step.put(format!("else.{i}"), "x", Expect::Anything)).await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut events = store.watch("flow", 0).await.unwrap();
    let (mut last, mut latest) = (0, BTreeMap::new());
    while latest.get("flow.9") != Some(&(count - 1).to_string()) {
        if let Event::Put(entry) = events.next().await.unwrap() {
            assert!(entry.revision > last, "out of order");
            last = entry.revision;
            latest.insert(entry.key, String::from_utf8(entry.value.to_vec()).unwrap());
        }
    }
    writing.await.unwrap();
    let expected = (0..10).map(|i| (format!("flow.{i}"), (count - 10 + i).to_string()));
    assert_eq!(latest, expected.collect());
}

async fn a_watch_goes_on_where_it_stopped(store: &dyn Store) {
    let put =
        async |key: &str| store.commit(Step::new().put(key, "x", Expect::Anything)).await.unwrap();
    put("log.a").await;
    let seen = put("log.b").await;
    put("log.c").await;
    store.commit(Step::new().delete("log.a", Expect::Anything)).await.unwrap();
    let mut events = store.watch("log", seen).await.unwrap();
    let Some(Event::Put(entry)) = events.next().await else { panic!("no change") };
    assert_eq!(entry.key, "log.c");
    let Some(Event::Delete { key, .. }) = events.next().await else { panic!("no deletion") };
    assert_eq!(key, "log.a");
    assert_eq!(events.next().await, Some(Event::Current));
    put("log.d").await;
    let Some(Event::Put(entry)) = events.next().await else { panic!("no later change") };
    assert_eq!(entry.key, "log.d");
}

async fn records_expire(store: &dyn Store) {
    let mut events = store.watch("brief", 0).await.unwrap();
    assert_eq!(events.next().await, Some(Event::Current));
    let step = Step::new().put("brief.k", "v", Expect::Absent);
    let written = Instant::now();
    let revision = store.commit(step.expires(Duration::from_secs(1))).await.unwrap();
    assert!(matches!(events.next().await, Some(Event::Put(_))));
    while value(store, "brief.k").await.is_some() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(written.elapsed() >= Duration::from_secs(1));
    store.commit(put("brief-other")).await.unwrap();
    let ended = |event| matches!(event, Some(Event::Delete { key, .. }) if key == "brief.k");
    assert!(ended(events.next().await));
    // Also whoever comes back later hears of it.
    let mut later = store.watch("brief", revision).await.unwrap();
    assert!(ended(later.next().await));
    store.commit(Step::new().put("brief.k", "v", Expect::Absent)).await.unwrap();
}

async fn audit_is_one_unbroken_chain(store: &dyn Store) {
    let before = store.head().await.unwrap();
    let notes = (0..40).map(|i| {
        store.commit(Step::new().put(format!("noted.{i}"), "x", Expect::Absent).note(request(i)))
    });
    assert!(join_all(notes).await.iter().all(Result::is_ok));
    let mut links_since = links(store).await;
    links_since.retain(|stored| stored.link.number > before.number);
    let ids: BTreeSet<_> = noted(&links_since).into_iter().collect();
    assert_eq!(ids, (0..40).map(|i| i.to_string()).collect());
    assert_eq!(store.head().await.unwrap().entries, before.entries + 40);
    for _ in 0..2 {
        store.commit(Step::new().note(request("alone"))).await.unwrap();
    }
    let all = links(store).await;
    assert!(all.len() > 2);
    let verdict = verdict(store).await;
    assert!(verdict.is_whole(), "{verdict:?}");
    let back = store.audit(0, 2, Order::Descending).await.unwrap();
    assert_eq!(back, [all[all.len() - 1].clone(), all[all.len() - 2].clone()]);
    let further = store.audit(back[1].place, 1, Order::Descending).await.unwrap();
    assert_eq!(further[0], all[all.len() - 3]);
    let onwards = store.audit(back[1].place, 10, Order::Ascending).await.unwrap();
    assert_eq!(onwards, [back[0].clone()]);
}

async fn the_log_is_read_in_pages_however_large_its_links_are(store: &dyn Store) {
    let before = store.audit(0, 1, Order::Descending).await.unwrap();
    let start = before.first().map_or(0, |stored| stored.place);
    let before = before.first().map_or(0, |stored| stored.link.number);
    for i in 0..6 {
        let notes = (0..2000).map(|j| if i % 2 == 0 { request(j) } else { refusal(j) });
        store.commit(notes.fold(Step::new(), Step::note)).await.unwrap();
    }
    for order in [Order::Ascending, Order::Descending] {
        let (mut pages, mut seen, mut after) = (0, Vec::new(), start);
        if order == Order::Descending {
            after = 0;
        }
        while seen.len() < 6 {
            let page = store.audit(after, 100, order).await.unwrap();
            after = page.last().unwrap().place;
            seen.extend(page.iter().map(|stored| stored.link.number).filter(|n| *n > before));
            pages += 1;
        }
        assert!(pages > 1, "six links of a third of a megabyte each");
        if order == Order::Descending {
            seen.reverse();
        }
        assert_eq!(seen, (before + 1..=before + 6).collect::<Vec<_>>());
    }
}

async fn a_watch_that_lags_misses_no_record(store: &dyn Store) {
    let mut events = store.watch("lag", 0).await.unwrap();
    assert_eq!(events.next().await, Some(Event::Current));
    let count = 6000;
    for i in (0..count).step_by(100) {
        let step = (i..i + 100).fold(Step::new(), |step, i| {
            step.put(format!("lag.{}", i % 3000), i.to_string(), Expect::Anything)
        });
        store.commit(step).await.unwrap();
    }
    let (mut latest, mut last) = (BTreeMap::new(), 0);
    while last < count - 1 {
        let Some(Event::Put(entry)) = events.next().await else { panic!("a watch ended") };
        last = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
        latest.insert(entry.key, last);
    }
    assert_eq!(latest.len(), 3000);
    assert!(latest.values().all(|value| *value >= 3000));
}

async fn a_lazy_step_becomes_durable_by_itself(store: &dyn Store) {
    store.commit(Step::new().note(request("lazy")).lazy()).await.unwrap();
    assert!(noted(&links(store).await).contains(&"lazy".to_owned()));
    // It goes with the next one, and needs nobody who waits for it.
    let mut left = Box::pin(store.commit(put("lazy.a").lazy()));
    assert!(futures_util::poll!(&mut left).is_pending());
    drop(left);
    store.commit(put("lazy.b")).await.unwrap();
    assert!(value(store, "lazy.a").await.is_some());
}

async fn a_promise_to_commit_holds_nobody_up(store: &dyn Store) {
    let coming = [store.expect(), store.expect()];
    for _ in 0..20 {
        store.commit(put("coming")).await.unwrap();
    }
    drop(coming);
    let together = (0..64).map(async |i| {
        let coming = store.expect();
        store.commit(put(format!("coming.{i}"))).await.unwrap();
        drop(coming);
    });
    join_all(together).await;
    assert_eq!(list(store, "coming", "", 100).await.len(), 64);
}
