use std::time::Duration;

use bytes::Bytes;
use osapi::clock::Clock;
use osapi::store::audit::{Chain, Ends, Entry, Note, Verdict, verify};
use osapi::store::{Bounds, Step, Store};

use super::{Disk, links, look, noted, refusal, request, verdict};

/// A log of twelve links, three of them refusals.
async fn log() -> (Ends, Vec<Bytes>) {
    let store = Disk::new().open(&Clock::default(), Bounds::default());
    for i in 0..12 {
        let note = if i % 4 == 1 { refusal(i) } else { request(i) };
        store.commit(Step::new().note(note)).await.unwrap();
    }
    let links = links(&store).await;
    (store.ends().await.unwrap(), links.into_iter().map(|link| link.bytes).collect())
}

fn check(ends: &Ends, links: &[Bytes], known: &[osapi::link::Head]) -> Verdict {
    verify(ends, links.iter().map(|link| &**link), known)
}

#[tokio::test]
async fn what_was_written_verifies() {
    let (ends, links) = log().await;
    let verdict = check(&ends, &links, &ends.heads());
    assert!(verdict.is_whole(), "{verdict:?}");
    assert_eq!((verdict.links, verdict.entries, verdict.anchored), (12, 12, 2));
    assert_eq!((ends.head.entries, ends.refusals_head.entries), (9, 3));
}

#[tokio::test]
async fn any_single_edit_is_found() {
    let (ends, links) = log().await;
    for i in 0..links.len() {
        let mut forged = links.clone();
        let text = String::from_utf8(links[i].to_vec()).unwrap();
        let text = text.replace("alice", "carol").replace("mallory", "nobodyx");
        assert_ne!(text.as_bytes(), links[i]);
        forged[i] = text.into();
        assert!(!check(&ends, &forged, &[]).is_whole(), "an edit of link {}", i + 1);
        forged[i] = Bytes::from_static(b"{}");
        assert!(!check(&ends, &forged, &[]).is_whole(), "link {} blanked", i + 1);
    }
}

#[tokio::test]
async fn any_removal_is_found() {
    let (ends, links) = log().await;
    for i in 0..links.len() {
        for end in i + 1..=links.len() {
            let mut cut = links.clone();
            cut.drain(i..end);
            assert!(!check(&ends, &cut, &[]).is_whole(), "links {} to {end} removed", i + 1);
        }
    }
}

#[tokio::test]
async fn any_reordering_and_any_copy_is_found() {
    let (ends, links) = log().await;
    for i in 0..links.len() {
        for j in 0..i {
            let mut moved = links.clone();
            moved.swap(i, j);
            assert!(!check(&ends, &moved, &[]).is_whole(), "{} and {} swapped", i + 1, j + 1);
        }
        let mut doubled = links.clone();
        doubled.insert(i, links[i].clone());
        assert!(!check(&ends, &doubled, &[]).is_whole(), "{} doubled", i + 1);
    }
}

#[tokio::test]
async fn a_log_cut_with_its_end_is_found_by_who_kept_a_head() {
    let (ends, links) = log().await;
    let store = Disk::new().open(&Clock::default(), Bounds::default());
    // Cut at its end, and the end moved back, so that it is whole in itself.
    let at = |count: usize| {
        let mut ends = ends.clone();
        let walk = links[..count].iter().map(|link| &**link);
        for stored in walk {
            let link: osapi::store::audit::Link = serde_json::from_slice(stored).unwrap();
            let head = match link.chain {
                Chain::Requests => &mut ends.head,
                Chain::Refusals => &mut ends.refusals_head,
            };
            head.number = link.number;
        }
        ends
    };
    let cut = at(8);
    assert!(!check(&cut, &links[..8], &ends.heads()).is_whole());
    // Another log altogether, of another writer, knows nothing of what was kept.
    store.commit(Step::new().note(request(1))).await.unwrap();
    assert!(verdict(&store).await.is_whole());
}

#[tokio::test]
async fn a_rewritten_log_is_found_by_who_kept_a_head() {
    let (ends, links) = log().await;
    let mut kept = ends.heads();
    kept[0].hash = "0".repeat(64);
    assert!(!check(&ends, &links, &kept).is_whole());
    // A head from before what retention dropped says nothing any more.
    let older = osapi::link::Head { number: 0, ..ends.heads()[0].clone() };
    let stub = osapi::link::Head { hash: ends.stub.hash.clone(), ..older };
    assert!(check(&ends, &links, &[stub]).is_whole());
}

#[tokio::test]
async fn the_oldest_links_cannot_pass_for_dropped_by_retention() {
    let (ends, links) = log().await;
    let first: osapi::store::audit::Link = serde_json::from_slice(&links[0]).unwrap();
    let second: osapi::store::audit::Link = serde_json::from_slice(&links[2]).unwrap();
    let mut forged = ends.clone();
    forged.stub.number = first.number;
    forged.stub.hash = second.previous;
    forged.stub.entries = second.entries;
    assert!(!check(&forged, &links[1..], &[]).is_whole());
}

#[tokio::test]
async fn retention_leaves_a_log_that_verifies() {
    let (disk, clock) = (Disk::new(), Clock::default());
    let bounds = Bounds { audit: 20_000, ..Bounds::default() };
    let store = disk.open(&clock, bounds.clone());
    for i in 0..200 {
        store.commit(Step::new().note(request(i))).await.unwrap();
    }
    let ends = store.ends().await.unwrap();
    assert!(ends.stub.number > 0);
    assert!(store.room().audit < 20_000);
    assert_eq!(ends.head.entries, 200);
    let kept = noted(&links(&store).await);
    assert_eq!(ends.stub.entries + kept.len() as u64, 200);
    assert_eq!(kept.last().unwrap(), "199");
    let whole = verdict(&store).await;
    assert!(whole.is_whole(), "{whole:?}");
    // It goes on from there after a restart.
    drop(store);
    let store = disk.open(&clock, bounds);
    assert_eq!(store.ends().await.unwrap(), ends);
    store.commit(Step::new().note(request(200))).await.unwrap();
    let whole = verdict(&store).await;
    assert!(whole.is_whole(), "{whole:?}");
}

#[tokio::test]
async fn reads_and_refusals_push_out_nothing_else() {
    let kinds: [fn(String) -> Note; 2] = [refusal, look];
    for idle in kinds {
        let bounds = Bounds { audit: 50_000, ..Bounds::default() };
        let store = Disk::new().open(&Clock::default(), bounds);
        for i in 0..20 {
            store.commit(Step::new().note(request(i))).await.unwrap();
        }
        for i in 0..300 {
            let step = Step::new().note(idle(format!("idle {i}")));
            store.commit(step).await.unwrap();
        }
        let kept = noted(&links(&store).await);
        assert!((0..20).all(|i| kept.contains(&i.to_string())));
        assert!(kept.contains(&"idle 299".to_owned()) && !kept.contains(&"idle 0".to_owned()));
        let ends = store.ends().await.unwrap();
        assert_eq!((ends.stub.number, ends.refusals_head.entries), (0, 300));
        let whole = verdict(&store).await;
        assert!(whole.is_whole(), "{whole:?}");
    }
}

#[test]
fn only_what_left_nothing_behind_is_idle() {
    let with = |change: fn(&mut Entry)| {
        let Note::Entry(mut entry) = request("1") else { unreachable!() };
        change(&mut entry);
        Note::Entry(entry).is_idle()
    };
    assert!(look("1").is_idle() && refusal("1").is_idle());
    assert!(with(|entry| entry.code = Some(503)), "it made no job");
    assert!(!with(|_| ()), "a change");
    assert!(!with(|entry| entry.code = None), "its end is still to come");
    assert!(!with(|entry| (entry.job, entry.code) = (Some("j".to_owned()), Some(504))));
}

#[tokio::test]
async fn old_links_go_by_the_time_of_the_store() {
    let clock = Clock::default();
    let bounds = Bounds { audit_age: Duration::from_millis(1), ..Bounds::default() };
    let store = Disk::new().open(&clock, bounds);
    for i in 0..5 {
        store.commit(Step::new().note(request(i))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(noted(&links(&store).await), ["4"]);
    assert!(verdict(&store).await.is_whole());
}
