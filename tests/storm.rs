//! Kills agent, controller or both at random points under a mixed load, fills their disk, and
//! compares what was promised with what happened, counted outside the victims.
//!
//! `STORM_POINTS` says how many kills (200 is the full count), `STORM_SEED` which.
#![expect(clippy::disallowed_methods, reason = "starts, kills and looks at processes")]

#[path = "support/http.rs"]
mod http;
#[path = "support/say.rs"]
mod say;
#[path = "support/appliance.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use say::say;
use serde_json::{Value, json};
use support::{Appliance, Random, Site};

const FINAL_WITHIN: Duration = Duration::from_mins(1);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What the load was promised.
#[derive(Default)]
struct Ledger {
    /// job -> (path, content) that it was to put in place.
    writes: Mutex<BTreeMap<String, (usize, u64)>>,
    /// job -> word that the act was to leave behind.
    acts: Mutex<BTreeMap<String, String>>,
    reads: AtomicUsize,
    refused: AtomicUsize,
}

/// One client: writes to a file of its own, acts and reads, as long as it is told to.
fn client(appliance: &Site, ledger: &Ledger, number: usize, stop: &AtomicBool, seed: u64) {
    let mut random = Random(seed ^ (number as u64 + 1) << 32);
    let later = [("prefer", "respond-async")];
    for round in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (answer, keep): (_, Box<dyn Fn(String)>) = match random.below(4) {
            0 | 1 => {
                let value = round * 100 + number as u64;
                let path = format!("/api/node/_any/sysctl/test.n{number}");
                let body = json!({ "value": value.to_string() });
                let keep = move |job| {
                    ledger.writes.lock().unwrap().insert(job, (number, value));
                };
                (appliance.ask("PUT", &path, &later, Some(&body)), Box::new(keep))
            }
            2 => {
                let word = format!("{number}-{round}");
                let body = json!({ "command": "bump", "args": [word] });
                let keep = move |job| {
                    ledger.acts.lock().unwrap().insert(job, word.clone());
                };
                let path = "/api/node/_any/command/exec";
                (appliance.ask("POST", path, &later, Some(&body)), Box::new(keep))
            }
            _ => {
                let answer =
                    appliance.ask("GET", "/api/node/_any/load", &[("prefer", "wait=1")], None);
                ledger.reads.fetch_add(1, Ordering::Relaxed);
                (answer, Box::new(|_| {}))
            }
        };
        match answer {
            Ok(answer) if answer.status == 202 => {
                if let Some(job) = answer.json()["job_id"].as_str() {
                    keep(job.to_owned());
                }
            }
            Ok(answer) if answer.status < 500 || matches!(answer.status, 503 | 504) => {
                if answer.status >= 400 {
                    ledger.refused.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            Ok(answer) => panic!("{} {}", answer.status, answer.json()),
            // Cut off: nothing was promised.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn nothing_that_was_promised_is_lost_or_done_twice() {
    let (points, seed) = (number("STORM_POINTS", 20), number("STORM_SEED", 1));
    let mut appliance = Appliance::new();
    for n in 0..4 {
        appliance.write(&format!("proc/sys/test/n{n}"), "0\n");
    }
    appliance.command("bump", "#!/bin/sh\necho \"$1\" >> \"${0%/*}/../../../bumped\"\n");
    appliance.start();
    for n in 0..4 {
        let body = json!({ "key": format!("test.n{n}"), "value": "0" });
        let made = appliance.ask("POST", "/api/node/_any/sysctl", &[], Some(&body)).unwrap();
        assert_eq!(made.status, 200, "{}", made.json());
    }
    let (ledger, stop) = (Ledger::default(), AtomicBool::new(false));
    let mut random = Random(seed);
    let mut killed = BTreeMap::<&str, u64>::new();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (paths, ledger, stop) = (appliance.paths(), &ledger, &stop);
            scope.spawn(move || client(&paths, ledger, n, stop, seed));
        }
        for _ in 0..points {
            std::thread::sleep(Duration::from_millis(random.below(250)));
            let (agent, controller) = [(true, false), (false, true), (true, true)]
                [usize::try_from(random.below(3)).unwrap()];
            if agent {
                appliance.kill_agent();
                *killed.entry("agent").or_default() += 1;
            }
            if controller {
                appliance.kill_controller();
                *killed.entry("controller").or_default() += 1;
            }
            appliance.revive();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let outcomes = settle(&appliance, &ledger);
    judge(&appliance, &ledger, &outcomes);
    let (writes, acts) = (ledger.writes.lock().unwrap().len(), ledger.acts.lock().unwrap().len());
    let mut kinds = BTreeMap::<String, usize>::new();
    for (status, kind) in outcomes.values() {
        *kinds
            .entry(format!("{status}{}{kind}", if kind.is_empty() { "" } else { ":" }))
            .or_default() += 1;
    }
    say(format!(
        "storm: {points} points, seed {seed}, killed {killed:?}; {writes} writes and {acts} acts \
         accepted, {} reads, {} refused; outcomes {kinds:?}",
        ledger.reads.load(Ordering::Relaxed),
        ledger.refused.load(Ordering::Relaxed),
    ));
}

/// Waits until every job is final; returns status and kind of error of each.
fn settle(appliance: &Appliance, ledger: &Ledger) -> BTreeMap<String, (String, String)> {
    let jobs: BTreeSet<String> = {
        let (writes, acts) = (ledger.writes.lock().unwrap(), ledger.acts.lock().unwrap());
        writes.keys().chain(acts.keys()).cloned().collect()
    };
    let deadline = Instant::now() + FINAL_WITHIN;
    let mut outcomes = BTreeMap::new();
    for job in jobs {
        loop {
            let view = appliance.ask("GET", &format!("/api/job/{job}"), &[], None);
            if let Ok(view) = view {
                assert_eq!(view.status, 200, "accepted job {job} is gone: {}", view.json());
                let view = view.json();
                let status = view["status"].as_str().unwrap_or_default().to_owned();
                if status != "submitted" && status != "processing" {
                    let answers = view["responses"].as_object().into_iter().flatten();
                    let kind = answers.into_iter().find_map(|(_, r)| r["kind"].as_str());
                    outcomes.insert(job, (status, kind.unwrap_or_default().to_owned()));
                    break;
                }
            }
            assert!(Instant::now() < deadline, "job {job} is not final after {FINAL_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    outcomes
}

/// Compares what the jobs say with what others can see.
fn judge(appliance: &Appliance, ledger: &Ledger, outcomes: &BTreeMap<String, (String, String)>) {
    let bumped = std::fs::read_to_string(appliance.dir().join("bumped")).unwrap_or_default();
    let mut ran = BTreeMap::<&str, usize>::new();
    for word in bumped.lines() {
        *ran.entry(word).or_default() += 1;
    }
    assert!(ran.values().all(|times| *times == 1), "an act ran twice");
    for (job, word) in ledger.acts.lock().unwrap().iter() {
        let times = ran.get(word.as_str()).copied().unwrap_or_default();
        match outcomes[job].0.as_str() {
            "completed" => assert_eq!(times, 1, "act {job} is said to be done"),
            _ if outcomes[job].1 == "interrupted" => {}
            _ => assert_eq!(times, 0, "act {job} is {:?}", outcomes[job]),
        }
    }
    // In order of submission, which is the order of ids, the last write of each file counts.
    let mut last = BTreeMap::new();
    for (job, (file, value)) in ledger.writes.lock().unwrap().iter() {
        assert_eq!(outcomes[job].0, "completed", "write {job}: {:?}", outcomes[job]);
        last.insert(*file, *value);
    }
    for (file, value) in last {
        let now = appliance.read(&format!("proc/sys/test/n{file}"));
        let found: u64 = now.trim().parse().unwrap();
        // A write whose acceptance was cut off may have come after the last that was promised.
        assert!(found >= value, "file {file}: {now} instead of {value}");
        let kept = appliance.read(&format!("etc/sysctl.d/osapi-test.n{file}.conf"));
        assert_eq!(kept, format!("test.n{file} = {}\n", now.trim()));
    }
    appliance.assert_audit_is_intact();
}

#[test]
fn a_full_disk_heals_without_a_restart() {
    let Some(mut appliance) = Appliance::on_a_small_disk() else {
        return say("SKIPPED: a full disk: only root may mount a file system of 64 MiB");
    };
    appliance.write("proc/sys/test/n0", "0\n");
    appliance.start();
    let pids = appliance.pids();
    let body = json!({ "key": "test.n0", "value": "0" });
    let made = appliance.ask("POST", "/api/node/_any/sysctl", &[], Some(&body)).unwrap();
    assert_eq!(made.status, 200, "{}", made.json());
    let (mut accepted, mut refused) = (Vec::new(), 0);
    let put = |appliance: &Appliance, value: u64, accepted: &mut Vec<(String, u64)>| -> u16 {
        let body = json!({ "value": value.to_string() });
        let later = [("prefer", "respond-async")];
        let answer = appliance.ask("PUT", "/api/node/_any/sysctl/test.n0", &later, Some(&body));
        let answer = answer.unwrap();
        if answer.status == 202 {
            accepted.push((answer.json()["job_id"].as_str().unwrap().to_owned(), value));
        }
        answer.status
    };
    let mut value = 0;
    for round in 0..3 {
        for _ in 0..20 {
            value += 1;
            assert_eq!(put(&appliance, value, &mut accepted), 202);
        }
        appliance.fill_disk();
        let deadline = Instant::now() + FINAL_WITHIN;
        loop {
            value += 1;
            match put(&appliance, value, &mut accepted) {
                507 => break,
                202 => {}
                other => panic!("round {round}: {other}"),
            }
            assert!(Instant::now() < deadline, "the disk is full and nobody says so");
        }
        for _ in 0..20 {
            value += 1;
            let status = put(&appliance, value, &mut accepted);
            assert!(matches!(status, 202 | 507), "{status}");
            refused += u32::from(status == 507);
            let list = appliance.ask("GET", "/api/job?limit=1", &[], None).unwrap();
            assert_eq!(list.status, 200, "reads go on: {}", list.json());
            let load = appliance.ask("GET", "/api/node/_any/load", &[], None).unwrap();
            assert_eq!(load.status, 200, "reads go on: {}", load.json());
        }
        appliance.empty_disk();
        let deadline = Instant::now() + FINAL_WITHIN;
        loop {
            value += 1;
            match put(&appliance, value, &mut accepted) {
                202 => break,
                507 => std::thread::sleep(Duration::from_millis(20)),
                other => panic!("round {round}: {other}"),
            }
            assert!(Instant::now() < deadline, "there is room and nobody notices");
        }
    }
    let deadline = Instant::now() + FINAL_WITHIN;
    let mut done = 0;
    for (job, _) in &accepted {
        loop {
            let view = appliance.ask("GET", &format!("/api/job/{job}"), &[], None).unwrap();
            assert_eq!(view.status, 200, "accepted job {job} is gone");
            match view.json()["status"].as_str() {
                Some("submitted" | "processing") => assert!(Instant::now() < deadline, "{job}"),
                Some("completed") => break done += 1,
                Some("failed") => break,
                other => panic!("{other:?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_eq!(appliance.pids(), pids, "nobody was started again");
    appliance.assert_audit_is_intact();
    let last: Value = json!(accepted.last().map(|(_, value)| value));
    say(format!(
        "full disk: 3 rounds, {} accepted, {done} done, {refused} refused with 507, last {last}",
        accepted.len()
    ));
}
