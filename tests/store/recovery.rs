#![expect(clippy::disallowed_methods, reason = "starts and kills a process of its own")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use osapi::clock::Clock;
use osapi::error::Kind;
use osapi::store::audit::Note;
use osapi::store::redb::RedbStore;
use osapi::store::{Bounds, Expect, Step, Store};
use rustix::fs::{FlockOperation, Mode, OFlags};
use tempfile::TempDir;

use super::{Disk, links, list, noted, put, refusal, request, until_taken, value, verdict};

const STATE: &str = "CRASH_TEST_STATE";

fn open(dir: &Path) -> osapi::error::Result<RedbStore> {
    RedbStore::open(dir, Clock::default(), Bounds::default())
}

/// Not a test of its own: what [`nothing_is_lost_to_a_kill`] starts and kills.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by another test"]
async fn commit_until_killed() {
    let Some(path) = std::env::var_os(STATE) else { return };
    let store = open(Path::new(&path)).unwrap();
    let before = list(&store, "a", "", usize::MAX).await;
    let first = before.iter().map(|e| e.key[2..].parse::<usize>().unwrap() + 1).max().unwrap_or(0);
    let clients = (0..16).map(|client| {
        let store = store.clone();
        async move {
            for i in (first + client..).step_by(16) {
                let _coming = store.expect();
                store.commit(pair(i)).await.unwrap();
                println!("done {i}");
            }
        }
    });
    join_all(clients).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_to_a_kill() {
    let dir = TempDir::new().unwrap();
    let mut acknowledged = Vec::new();
    for round in 1..=3 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::recovery::commit_until_killed", "--ignored", "--nocapture"])
            .env(STATE, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            // The harness's own words may stand before the first.
            if let Some((_, i)) = line.split_once("done ") {
                acknowledged.push(i.parse().unwrap());
            }
            if acknowledged.len() >= 300 * round {
                process.kill().unwrap();
            }
        }
        process.wait().unwrap();
        let store = open(dir.path()).unwrap();
        nothing_is_lost_or_half_done(&store, &acknowledged).await;
    }
}

pub(super) fn pair(i: usize) -> Step {
    let step = Step::new().put(format!("a.{i}"), i.to_string(), Expect::Absent);
    step.put(format!("b.{i}"), i.to_string(), Expect::Absent).note(request(i))
}

pub(super) async fn nothing_is_lost_or_half_done(store: &dyn Store, acknowledged: &[usize]) {
    let numbers = async |prefix| -> BTreeSet<usize> {
        let entries = list(store, prefix, "", usize::MAX).await;
        entries.iter().map(|entry| entry.key[2..].parse().unwrap()).collect()
    };
    let (a, b) = (numbers("a").await, numbers("b").await);
    assert_eq!(a, b, "half a step");
    assert!(acknowledged.iter().all(|i| a.contains(i)), "an acknowledged step is gone");
    let verdict = verdict(store).await;
    assert!(verdict.is_whole(), "{verdict:?}");
    let recorded = noted(&links(store).await).iter().map(|id| id.parse().unwrap()).collect();
    assert!(a.is_subset(&recorded), "a record without its note");
}

/// Commits while the disk fails after ever more writes, until it fails no more within a commit.
async fn survives(error: ErrorKind, kinds: &[Kind]) {
    let (disk, clock) = (Disk::new(), Clock::default());
    let store = disk.open(&clock, Bounds::default());
    store.commit(put("before")).await.unwrap();
    let mut acknowledged = Vec::new();
    for writes in 0..30 {
        disk.fail_after(writes, error);
        let failed = store.commit(pair(usize::try_from(writes).unwrap())).await;
        match &failed {
            Ok(_) => acknowledged.push(usize::try_from(writes).unwrap()),
            Err(error) => assert!(kinds.contains(&error.kind()), "{error:?}"),
        }
        // Whatever is wrong with writing, reads go on.
        assert_eq!(value(&store, "before").await.unwrap(), "x");
        assert!(list(&store, "a", "", 100).await.len() >= acknowledged.len());
        if failed.is_err() {
            let room = store.room();
            assert_eq!(room.is_full, kinds[0] == Kind::Full);
            assert_eq!(room.is_audit_broken, kinds[0] != Kind::Full);
        }
        disk.heal();
        until_taken(&store, put("after"), kinds).await;
        assert!(!store.room().is_full && !store.room().is_audit_broken);
    }
    assert!(acknowledged.len() < 30, "the disk never failed");
    nothing_is_lost_or_half_done(&store, &acknowledged).await;
    assert!(store.room().figures.reopened > 0);
    drop(store);
    let store = disk.open(&clock, Bounds::default());
    nothing_is_lost_or_half_done(&store, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_heals_by_itself() {
    survives(ErrorKind::StorageFull, &[Kind::Full, Kind::Unavailable]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_stops_writes_and_not_reads() {
    survives(ErrorKind::PermissionDenied, &[Kind::Unavailable]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_starts_on_a_disk_that_fails_can_be_read() {
    let (disk, clock) = (Disk::new(), Clock::default());
    let store = disk.open(&clock, Bounds::default());
    store.commit(put("before")).await.unwrap();
    drop(store);
    disk.fail_after(0, ErrorKind::PermissionDenied);
    let store = disk.open(&clock, Bounds::default());
    assert!(value(&store, "before").await.is_some());
    let refused = store.commit(put("after")).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable);
    assert!(store.room().is_audit_broken);
    disk.heal();
    until_taken(&store, put("after"), &[Kind::Unavailable]).await;
    drop(store);
    let store = disk.open(&clock, Bounds::default());
    assert_eq!(list(&store, "", "", 10).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_over_a_failure() {
    use futures_util::StreamExt;
    use osapi::store::Event;

    let disk = Disk::new();
    let store = disk.open(&Clock::default(), Bounds::default());
    let mut events = store.watch("", 0).await.unwrap();
    assert_eq!(events.next().await, Some(Event::Current));
    disk.fail_after(3, ErrorKind::StorageFull);
    store.commit(put("a")).await.unwrap_err();
    disk.heal();
    until_taken(&store, put("b"), &[Kind::Full, Kind::Unavailable]).await;
    let Some(Event::Put(entry)) = events.next().await else { panic!("no event") };
    assert!(["a", "b"].contains(&entry.key.as_str()));
}

#[tokio::test]
async fn a_full_store_still_ends_what_it_accepted() {
    let bounds = Bounds { database: 100_000, audit: 10_000, ..Bounds::default() };
    let store = Disk::new().open(&Clock::default(), bounds);
    let large = |key: String| Step::new().put(key, vec![b'x'; 2000], Expect::Absent);
    let mut count = 0;
    let full = loop {
        match store.commit(large(format!("job.{count}"))).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), Kind::Full);
    assert!(count > 30 && store.room().left() < 4000);
    store.commit(large("job.0.host".to_owned()).owed()).await.unwrap();
    store.commit(Step::new().delete("job.1", Expect::Anything).note(request(1))).await.unwrap();
    store.commit(Step::new().delete("job.2", Expect::Anything)).await.unwrap();
    store.commit(large("job.new".to_owned())).await.unwrap();
}

#[tokio::test]
async fn a_step_of_the_wall_clock_expires_nothing() {
    let (disk, clock) = (Disk::new(), Clock::default());
    let store = disk.open(&clock, Bounds::default());
    let day = Duration::from_hours(24);
    store.commit(put("kept").expires(day)).await.unwrap();
    let year = 365 * 86_400_000;
    clock.step(year);
    assert!(value(&store, "kept").await.is_some());
    store.commit(put("other")).await.unwrap();
    store.commit(put("other")).await.unwrap();
    assert!(value(&store, "kept").await.is_some());
    drop(store);
    let store = disk.open(&clock, Bounds::default());
    clock.step(-2 * year);
    store.commit(put("other")).await.unwrap();
    assert!(value(&store, "kept").await.is_some());
    // Each step is put on record, once.
    let links = links(&store).await;
    let steps: Vec<i64> = links
        .iter()
        .flat_map(|stored| &stored.link.notes)
        .filter_map(|note| match note {
            Note::Event(event) => event["clock_step_ms"].as_i64(),
            _ => None,
        })
        .collect();
    assert_eq!(steps.len(), 2);
    assert!((steps[0] - year).abs() < 10_000 && (steps[1] + 2 * year).abs() < 10_000);
}

#[tokio::test]
async fn lazy_steps_are_bounded_and_refusals_give_way_first() {
    let bounds = Bounds { lazy: 8, ..Bounds::default() };
    let store = Disk::new().open(&Clock::default(), bounds);
    let lazy = |note: Note| store.commit(Step::new().note(note).lazy()).now_or_never();
    let taken = |note: &dyn Fn(usize) -> Note| (0..8).filter(|i| lazy(note(*i)).is_none()).count();
    assert_eq!(taken(&|i| refusal(i)), 4);
    assert_eq!(taken(&|i| request(i)), 4);
    let busy = lazy(request(9)).unwrap().unwrap_err();
    assert_eq!(busy.kind(), Kind::Busy);
    store.commit(put("a")).await.unwrap();
    let links = links(&store).await;
    assert_eq!(noted(&links).len(), 8);
    let lost = links.iter().flat_map(|stored| &stored.link.notes).find_map(|note| match note {
        Note::Event(event) => event["lost_notes"].as_u64(),
        _ => None,
    });
    assert_eq!(lost, Some(9));
    assert_eq!(store.room().figures.lost_notes, 9);
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let newer = dir.path().join("controller-2.redb");
    std::fs::write(&newer, "the future").unwrap();
    let refused = open(dir.path()).err().unwrap();
    assert_eq!(refused.kind(), Kind::Unavailable);
    assert!(refused.to_string().contains("newer"), "{refused}");
    assert_eq!(std::fs::read(&newer).unwrap(), b"the future");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_store() {
    let dir = TempDir::new().unwrap();
    let first = open(dir.path()).unwrap();
    let refused = open(dir.path()).err().unwrap();
    assert_eq!(refused.kind(), Kind::Conflict);
    let pid = format!("(pid {})", std::process::id());
    assert!(refused.to_string().contains(&pid), "{refused}");
    first.commit(put("a")).await.unwrap();
    drop(first);
    until_unlocked(dir.path());
    assert!(value(&open(dir.path()).unwrap(), "a").await.is_some());
}

/// Waits for processes that other tests have just started: until each is a program of its own, it
/// has a copy of every lock of this one.
fn until_unlocked(dir: &Path) {
    let path = dir.join("controller.lock");
    let lock = rustix::fs::open(path, OFlags::RDONLY, Mode::empty()).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
}

/// What is on the disk of a store that is running, as a crash would leave it.
async fn crashed() -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    for i in 0..50 {
        store.commit(pair(i)).await.unwrap();
    }
    std::fs::read(dir.path().join("controller-1.redb")).unwrap()
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_left_alone() {
    let sound = crashed().await;
    let damages: [&dyn Fn(&mut Vec<u8>); 4] = [
        &|file| file[..512].fill(0xA5),
        &|file| file[4096..].fill(0xA5),
        &|file| file[64..320].fill(0xFF),
        &|file| file.truncate(10_000),
    ];
    for (i, damage) in damages.into_iter().enumerate() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("controller-1.redb");
        let mut file = sound.clone();
        damage(&mut file);
        std::fs::write(&path, &file).unwrap();
        let refused = open(dir.path()).err().unwrap_or_else(|| panic!("damage {i} is not found"));
        assert_eq!(refused.kind(), Kind::Unavailable, "{refused:?}");
        assert!(refused.to_string().contains("damaged"), "{refused}");
        assert!(std::fs::read(&path).unwrap() == file, "damage {i}: the file was changed");
    }
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("controller-1.redb"), &sound).unwrap();
    let acknowledged: Vec<_> = (0..50).collect();
    nothing_is_lost_or_half_done(&open(dir.path()).unwrap(), &acknowledged).await;
}
