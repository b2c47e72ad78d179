//! Whoever stands between controller and agent alters, replays, misplaces, redirects and delays what
//! is signed: none of it has an effect, and all of it is on record.
//!
//! `TAMPERED` says how many tasks, and how many outcomes (1,000 is the full count), `SEED` which.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use osapi::link::{Ask, Sealed, Told};
use osapi::signing::{Holder, Purpose, SigningKey};
use serde_json::{Value, json};

use super::support::{Appliance, Random};
use super::{MACHINE, appliance, ask, finished, submit, until};
use crate::say::say;

#[path = "tamper/hostile.rs"]
mod hostile;

use hostile::{Hostile, job_of};

/// A host that there is not.
const OTHER: &str = "fedcba9876543210fedcba9876543210";
const ACT: &str = "/api/node/_any/command/exec";
/// How many of each kind are done before, and how many are kept back besides.
const RAN: usize = 8;
const KEPT_BACK: usize = 8;
/// How many more come too late, at a time.
const AT_ONCE: u64 = 60;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// `body` with one of its values changed.
fn otherwise(body: &str, field: &str, value: Value) -> String {
    let mut task: Value = serde_json::from_str(body).unwrap();
    *task.pointer_mut(field).unwrap() = value;
    task.to_string()
}

/// The same JSON, as somebody else would write it.
fn rewritten(body: &str, random: &mut Random) -> String {
    let value: Value = serde_json::from_str(body).unwrap();
    match random.below(4) {
        0 => format!("{value:#}"),
        1 => {
            let fields = value.as_object().unwrap().iter().rev();
            let fields: Vec<_> = fields.map(|(key, value)| format!("{key:?}:{value}")).collect();
            format!("{{{}}}", fields.join(","))
        }
        2 => body.replacen("\"host\"", "\"h\\u006fst\"", 1),
        _ => {
            let places: Vec<_> = body.match_indices([',', ':', '{']).map(|(at, _)| at).collect();
            let at = places[usize::try_from(random.below(places.len() as u64)).unwrap()];
            // Within a text it is another value, which is as bad.
            format!("{} {}", &body[..=at], &body[at + 1..])
        }
    }
}

fn altered(text: &str, random: &mut Random) -> String {
    let at = usize::try_from(random.below(text.len() as u64)).unwrap();
    let mut bytes = text.as_bytes().to_vec();
    bytes[at] = b" azAZ019{}:,"[usize::try_from(random.below(12)).unwrap()];
    String::from_utf8(bytes).unwrap()
}

/// `good`, stripped, altered, written otherwise or for another host, of which `stranger` has a
/// task of the same controller.
fn forged(good: &Sealed, stranger: &Sealed, kind: u64, random: &mut Random) -> Sealed {
    let mut bad = good.clone();
    match (kind, random.below(4)) {
        (0, 0 | 1) => bad.signature = None,
        (0, 2) => bad.signature = Some(String::new()),
        (0, _) => bad.signature.clone_from(&stranger.signature),
        (1, 0) => bad.body = altered(&good.body, random),
        (1, 1) => bad.signature = good.signature.as_ref().map(|text| altered(text, random)),
        (1, 2) => bad.body = otherwise(&good.body, "/until", json!(now() + 86_000_000)),
        (1, _) => {
            let job = uuid::Uuid::now_v7().to_string();
            bad.body = otherwise(&good.body, "/job", json!(job));
        }
        (2, _) => bad.body = rewritten(&good.body, random),
        (_, 0) => bad = stranger.clone(),
        (_, 1) => bad.body = otherwise(&good.body, "/host", json!(OTHER)),
        (_, 2) => bad.body = otherwise(&stranger.body, "/host", json!(MACHINE)),
        (_, _) => {
            bad = stranger.clone();
            bad.body = otherwise(&stranger.body, "/host", json!(MACHINE));
        }
    }
    bad
}

/// An outcome that this host's agent has not told so.
fn untrue(good: &Told, other: &Told, key: &SigningKey, random: &mut Random) -> Told {
    let mut bad = good.clone();
    match random.below(8) {
        0 => bad.signature = None,
        1 => bad.body = altered(&good.body, random),
        2 => bad.body = format!("{:#}", serde_json::from_str::<Value>(&good.body).unwrap()),
        3 => bad.job.clone_from(&other.job),
        4 => bad.signature.clone_from(&other.signature),
        5 => bad.body.clone_from(&other.body),
        6 => bad.signature = Some(key.sign(Purpose::Outcome, MACHINE, &[&bad.job, &bad.body])),
        _ => bad.signature = good.signature.as_ref().map(|text| altered(text, random)),
    }
    bad
}

struct Bench {
    host: Appliance,
    hostile: Arc<Hostile>,
    key: SigningKey,
    /// Jobs whose command is to have run, once.
    due: BTreeSet<String>,
    words: usize,
}

impl Bench {
    fn new() -> Self {
        let mut host = appliance();
        host.write("proc/sys/test/three", "0\n");
        let (dir, state) = (host.dir().to_owned(), host.state());
        host.command("count", &format!("#!/bin/sh\necho \"$1\" >> {}/effects\n", dir.display()));
        let plain = std::fs::read_to_string(dir.join("osapi.yaml")).unwrap();
        let public = state.join("controller/controller.pub");
        let controller = "controller:\n  pki: { enabled: true, auto_accept: true }\n";
        let agent =
            format!("agent:\n  pki: {{ enabled: true }}\n  controller_key: {}\n", public.display());
        let text = plain.replacen("controller:\n", controller, 1).replacen("agent:\n", &agent, 1);
        std::fs::write(dir.join("osapi.yaml"), text).unwrap();
        host.start_controller();
        until("it listens", || host.ask("GET", "/api/health", &[], None).ok());
        let key = until("it has a key", || {
            Holder::Controller.kept(&state.join("controller")).ok().flatten()
        });
        until("its public half is there", || public.exists().then_some(()));
        let hostile = Hostile::between(&host);
        host.start_agent();
        host.until_ready();
        Self { host, hostile, key, due: BTreeSet::new(), words: 0 }
    }

    /// A job that leaves a word behind, and what it is.
    fn act(&mut self) -> (String, String) {
        self.words += 1;
        let word = format!("w{}", self.words);
        let body = json!({ "command": "count", "args": [word] });
        (submit(&self.host, "POST", ACT, &body), word)
    }

    fn change(&mut self, key: &str) -> String {
        self.words += 1;
        // As long as what was there, since nothing cuts this file as the kernel would.
        let body = json!({ "value": (100 + self.words).to_string() });
        submit(&self.host, "PUT", &format!("/api/node/_any/sysctl/test.{key}"), &body)
    }

    /// `good` as the controller would have signed it for another moment.
    fn until(&self, good: &Sealed, until: u64) -> Sealed {
        let body = otherwise(&good.body, "/until", json!(until));
        Sealed::new(body, MACHINE, Some(&self.key))
    }

    /// How much of each kind is on record as refused.
    fn on_record(&self) -> BTreeMap<String, u64> {
        let answer = ask(&self.host, "GET", "/api/audit/export", None);
        let mut counts = BTreeMap::new();
        for link in answer.json()["links"].as_array().unwrap() {
            let link: Value = serde_json::from_str(link.as_str().unwrap()).unwrap();
            for note in link["notes"].as_array().unwrap() {
                let (event, count) = (&note["event"]["event"], &note["event"]["count"]);
                if let (Some(event), Some(count)) = (event.as_str(), count.as_u64()) {
                    *counts.entry(event.to_owned()).or_default() += count;
                }
            }
        }
        counts
    }

    /// So many tasks that are to come too late, once those before them are over: a host is handed
    /// no more at once.
    fn late(&mut self, count: u64, before: &[String]) -> VecDeque<Sealed> {
        self.until_delivered();
        for job in before {
            finished(&self.host, job);
        }
        let made = (0..count).map(|i| if i % 2 == 0 { self.act().0 } else { self.change("three") });
        let made: Vec<_> = made.collect();
        self.hostile.keep_back(&made).into()
    }

    fn until_on_record(&self, event: &str, expected: u64) {
        let counts = until(event, || {
            std::thread::sleep(5 * hostile::PACE);
            let counts = self.on_record();
            (counts.get(event).copied().unwrap_or_default() >= expected).then_some(counts)
        });
        assert_eq!(counts[event], expected, "{counts:?}");
    }

    fn until_delivered(&self) {
        until("all of it is delivered", || {
            let state = self.hostile.state();
            let is_waiting = !state.forged.is_empty() || !state.misplaced.is_empty();
            (!is_waiting && state.replayed.is_empty() && state.out.is_empty()).then_some(())
        });
    }

    /// Nothing has happened but what was to happen.
    fn assert_effects(&self) {
        let effects = std::fs::read_to_string(self.host.dir().join("effects")).unwrap();
        let mut words: Vec<_> = effects.lines().map(str::to_owned).collect();
        words.sort();
        let mut due: Vec<_> = self.due.iter().cloned().collect();
        due.sort();
        assert_eq!(words, due);
        assert_eq!(self.host.read("proc/sys/test/three"), "0\n");
    }

    /// What was done while nobody meant any harm: each job, and its task.
    fn done(&mut self) -> Vec<(String, Sealed)> {
        for key in ["test.one", "test.two"] {
            let body = json!({ "key": key, "value": "100" });
            let made = ask(&self.host, "POST", "/api/node/_any/sysctl", Some(&body));
            assert_eq!(made.status, 200, "{}", made.json());
        }
        let mut jobs = Vec::new();
        for _ in 0..RAN {
            let (job, word) = self.act();
            self.due.insert(word);
            jobs.extend([job, self.change("one")]);
        }
        for job in &jobs {
            let job = finished(&self.host, job);
            assert_eq!(job["status"], "completed", "{job}");
        }
        let state = self.hostile.state();
        jobs.into_iter().map(|job| (job.clone(), state.seen[&job].clone())).collect()
    }

    /// An agent that has forgotten what it has done does not begin it again: it may not begin any
    /// more by then.
    fn forgets(&mut self) {
        let (job, word) = self.act();
        let last = now() + 5_000;
        let soon = self.until(&self.hostile.keep_back(std::slice::from_ref(&job))[0], last);
        self.hostile.change(|state| state.replayed.push_back((job.clone(), soon.clone())));
        assert_eq!(finished(&self.host, &job)["status"], "completed");
        self.due.insert(word);
        let kept = self.host.state().join("agent/done").join(&job);
        self.restart_agent(|| std::fs::remove_file(kept).unwrap());
        until("its time is over", || (now() > last).then_some(()));
        self.hostile.change(|state| state.replayed.push_back((job, soon)));
        self.until_delivered();
    }

    fn restart_agent(&mut self, meanwhile: impl FnOnce()) {
        self.host.kill_agent();
        self.hostile.hang_up();
        // Nothing more is handed to the one that is gone.
        until("nobody waits", || (self.hostile.state().waiting == 0).then_some(()));
        meanwhile();
        self.host.start_agent();
    }
}

#[test]
fn whoever_is_in_between_has_no_effect_and_is_on_record() {
    let (most, seed) = (number("TAMPERED", 100), number("SEED", 1));
    let mut random = Random(seed);
    let mut bench = Bench::new();
    // Some are done as they should be.
    let ran = bench.done();
    let before = bench.host.read("proc/sys/test/one");

    // From now on nothing gets through as it is.
    bench.hostile.change(|state| state.is_hostile = true);
    let mut later = Vec::new();
    for _ in 0..KEPT_BACK {
        let (job, word) = bench.act();
        later.push((job, Some(word)));
        later.push((bench.change("two"), None));
    }
    let jobs: Vec<_> = later.iter().map(|(job, _)| job.clone()).collect();
    let good = bench.hostile.keep_back(&jobs);
    let mut late = VecDeque::new();
    let strangers: Vec<_> = good
        .iter()
        .map(|good| {
            let body = otherwise(&good.body, "/host", json!(OTHER));
            Sealed::new(body, OTHER, Some(&bench.key))
        })
        .collect();
    let (mut refused, mut repeated, mut expired) = (0, 0, Vec::new());
    for round in 0..most {
        let at = usize::try_from(random.below(good.len() as u64)).unwrap();
        match round % 7 {
            4 => {
                let at = usize::try_from(random.below(ran.len() as u64)).unwrap();
                bench.hostile.change(|state| state.replayed.push_back(ran[at].clone()));
                repeated += 1;
            }
            5 => {
                if late.is_empty() {
                    let count = AT_ONCE.min((most + 1) / 7 - expired.len() as u64);
                    late = bench.late(count, &expired);
                }
                let sealed = late.pop_front().unwrap();
                let past = bench.until(&sealed, now() - 1 - random.below(86_400_000));
                expired.push(job_of(&past));
                bench.hostile.change(|state| state.replayed.push_back((job_of(&past), past)));
            }
            // As it was signed, to those who look, follow, or do work of another kind.
            6 => {
                bench.hostile.change(|state| state.misplaced.push_back(good[at].clone()));
                refused += 1;
            }
            kind => {
                let bad = loop {
                    let bad = forged(&good[at], &strangers[at], kind, &mut random);
                    if bad != good[at] {
                        break bad;
                    }
                };
                bench.hostile.change(|state| state.forged.push_back(bad));
                refused += 1;
            }
        }
    }
    bench.until_delivered();
    bench.until_on_record("tasks_refused", refused);
    bench.until_on_record("outcomes_repeated", repeated);
    for job in &expired {
        let view = finished(&bench.host, job);
        assert!(view["status"] == "failed" && view.to_string().contains("expired"), "{view}");
    }
    bench.assert_effects();
    assert_eq!(bench.host.read("proc/sys/test/one"), before);

    // An agent that has started again knows what it has done.
    bench.restart_agent(|| {});
    bench.hostile.change(|state| state.replayed.extend(ran.iter().cloned()));
    bench.until_delivered();
    repeated += ran.len() as u64;
    bench.until_on_record("outcomes_repeated", repeated);
    bench.assert_effects();
    bench.forgets();
    bench.until_on_record("outcomes_repeated", repeated + 1);
    bench.assert_effects();

    // What was kept back is done once, however often it comes.
    let first = good[..4].iter().map(|sealed| (job_of(sealed), sealed.clone()));
    let often = first.flat_map(|task| [task.clone(), task.clone(), task]);
    bench.hostile.change(|state| state.replayed.extend(often));
    bench.until_delivered();
    bench.hostile.change(|state| state.is_hostile = false);
    for (job, word) in later {
        assert_eq!(finished(&bench.host, &job)["status"], "completed");
        bench.due.extend(word);
    }
    bench.assert_effects();
    bench.host.assert_audit_is_intact();
    say(format!(
        "tampered tasks: {refused} refused, {repeated} replayed, {} expired of {most}, 0 effects, \
         seed {seed}",
        expired.len()
    ));
}

#[test]
fn an_outcome_that_the_agent_has_not_told_so_is_refused_and_on_record() {
    let (most, seed) = (number("TAMPERED", 100), number("SEED", 1));
    let mut random = Random(seed);
    let mut bench = Bench::new();
    let (first, word) = bench.act();
    bench.due.insert(word);
    assert_eq!(finished(&bench.host, &first)["status"], "completed");
    bench.hostile.change(|state| state.keeps_reports = true);
    let (job, word) = bench.act();
    bench.due.insert(word);
    let told = until("it is done", || {
        let state = bench.hostile.state();
        Some([state.reports[&first].clone(), state.reports.get(&job)?.clone()])
    });
    let mut tried = 0;
    while tried < most {
        let bad = untrue(&told[1], &told[0], &bench.key, &mut random);
        if bad == told[1] {
            continue;
        }
        let answer = bench.hostile.ask(&Ask::Finish(vec![bad]));
        assert_eq!(answer["Err"]["kind"], "denied", "{answer}");
        tried += 1;
    }
    bench.until_on_record("outcomes_refused", most);
    let view = ask(&bench.host, "GET", &format!("/api/job/{job}"), None).json();
    assert_eq!(view["status"], "processing", "{view}");
    // The true ones count once.
    bench.hostile.change(|state| state.keeps_reports = false);
    assert_eq!(finished(&bench.host, &job)["status"], "completed");
    for _ in 0..3 {
        assert_eq!(bench.hostile.ask(&Ask::Finish(told.to_vec()))["Ok"], "done");
    }
    bench.until_on_record("outcomes_repeated", 6);
    bench.assert_effects();
    bench.host.assert_audit_is_intact();
}
