//! The audit log, read by those who may.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::*;
use crate::store::Step;
use crate::store::audit::{Check, End, Entry, Export, Note};

fn entry(number: usize) -> Note {
    Note::Entry(Entry {
        id: number.to_string(),
        at: 1,
        user: "ada".to_owned(),
        roles: Vec::new(),
        method: "POST".to_owned(),
        path: "/api/job".to_owned(),
        op: "job.retry".to_owned(),
        source: "unix".to_owned(),
        job: None,
        about: None,
        trace: None,
        code: None,
        ms: None,
        more: None,
    })
}

fn end(number: usize) -> Note {
    let (entry, host) = (number.to_string(), "m1".to_owned());
    Note::End(End { entry, at: 2, host, code: 200, ms: 7, kind: None })
}

async fn note(controller: &Shared, notes: impl IntoIterator<Item = Note>) {
    let step = notes.into_iter().fold(Step::new(), Step::note);
    controller.store.commit(step).await.unwrap();
}

async fn export(controller: &Shared) -> Result<BoxStream<'static, Result<Bytes>>> {
    let ops::Run::Controller(op) = ops::find("audit.export").unwrap().run else { panic!() };
    let (controller, caller) = (controller.clone(), caller(Role::Admin));
    let call = Call { controller, caller, trail: trail(), content: None, key: None };
    match op.run(call, json!({})).await? {
        Reply::Parts(parts) => Ok(parts),
        Reply::Whole(whole) => panic!("it is told at once: {whole}"),
    }
}

/// A controller whose log is full, so that the oldest goes with each that comes.
async fn full(bench: &mut Bench) -> (Shared, usize) {
    bench.bounds.audit = 400_000;
    let controller = bench.start().await;
    let mut count = 0;
    while controller.store.ends().await.unwrap().stub.number == 0 {
        note(&controller, [entry(count), end(count)]).await;
        count += 1;
    }
    (controller, count)
}

#[tokio::test]
async fn an_export_tells_the_log_as_it_was_whatever_is_written_meanwhile() {
    let mut bench = Bench::new();
    let (controller, count) = full(&mut bench).await;
    let ends = controller.store.ends().await.unwrap();
    let mut parts = export(&controller).await.unwrap();
    let mut text = Vec::new();
    let mut number = count;
    while let Some(part) = parts.next().await {
        let part = part.unwrap();
        assert!(part.len() < 64 << 10, "it is told in parts: {}", part.len());
        text.extend_from_slice(&part);
        note(&controller, [entry(number), end(number)]).await;
        number += 1;
    }
    let told: Value = serde_json::from_slice(&text).unwrap();
    let items = told["items"].as_array().unwrap();
    assert_eq!(told["total_items"], items.len());
    assert_eq!(
        (&items[0]["id"], &items[0]["response_code"]),
        (&json!((count - 1).to_string()), &json!(200))
    );
    let export: Export = serde_json::from_value(told.clone()).unwrap();
    assert_eq!(export.ends, ends);
    let mut check = Check::new(&export.ends, &[]);
    export.links.iter().for_each(|link| check.link(link.as_bytes()));
    let verdict = check.end();
    assert!(verdict.is_whole(), "{verdict:?}");
    assert_eq!(verdict.entries, items.len() as u64);
    // What was held back goes once nobody reads any more.
    drop(parts);
    note(&controller, [entry(number)]).await;
    assert!(controller.store.ends().await.unwrap().stub.number > ends.stub.number);
}

#[tokio::test]
async fn an_export_that_is_read_too_slowly_breaks_off() {
    let mut bench = Bench::new();
    let (controller, count) = full(&mut bench).await;
    let mut parts = export(&controller).await.unwrap();
    parts.next().await.unwrap().unwrap();
    let stub = controller.store.ends().await.unwrap().stub;
    for number in count.. {
        note(&controller, [entry(number), end(number)]).await;
        if controller.store.ends().await.unwrap().stub != stub {
            break;
        }
    }
    let rest: Vec<_> = parts.collect().await;
    assert!(rest.last().unwrap().is_err(), "nobody takes it for whole");
}

#[tokio::test]
async fn only_so_many_read_the_whole_log_at_once() {
    let bench = Bench::new();
    let controller = bench.start().await;
    let mut reading = Vec::new();
    let refused = loop {
        match export(&controller).await {
            Ok(parts) => reading.push(parts),
            Err(error) => break error,
        }
    };
    assert_eq!((reading.len(), refused.kind()), (4, Kind::Busy));
    reading.pop();
    let parts: Vec<_> = export(&controller).await.unwrap().try_collect().await.unwrap();
    let empty: Value = serde_json::from_slice(&parts.concat()).unwrap();
    assert_eq!((&empty["items"], &empty["links"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn what_is_far_behind_in_the_log_is_found_with_how_it_went() {
    let bench = Bench::new();
    let controller = bench.start().await;
    for number in 0..500 {
        note(&controller, [entry(number)]).await;
        note(&controller, [end(number)]).await;
    }
    for (offset, ids) in [(0, ["499", "498"]), (497, ["2", "1"]), (498, ["1", "0"])] {
        let params = json!({ "limit": 2, "offset": offset });
        let told = call(&controller, "audit.list", params).await.unwrap();
        assert_eq!(told["total_items"], 500);
        let items = told["items"].as_array().unwrap();
        let expected = ids.map(|id| (json!(id), json!(200), json!(7)));
        let found = items.iter().map(|item| {
            (item["id"].clone(), item["response_code"].clone(), item["duration_ms"].clone())
        });
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }
    for offset in [json!(500), json!(u64::MAX)] {
        let told = call(&controller, "audit.list", json!({ "offset": offset })).await.unwrap();
        assert_eq!((&told["items"], &told["total_items"]), (&json!([]), &json!(500)));
    }
}
