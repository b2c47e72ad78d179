//! Lets the agent die, or its disk fail, at every system call that could matter, and looks at
//! what is left.
//!
//! Needs strace, which does that to the n-th call of a kind. All points take long, so a tenth of
//! them is tried: `CRASH_POINTS=all` tries all, `CRASH_POINTS=8` tries 8 of each sweep, and
//! `CRASH_SEED` says which.
//!
//! It has a `main` of its own, because strace counts the calls of the main thread, and that has
//! to be the agent's.
#![expect(clippy::disallowed_methods, reason = "starts programs and reads its environment")]

#[expect(dead_code, reason = "the laws use more of it")]
mod support;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use osapi::error::Kind;
use osapi::host::{Executor, Root, UndoBounds};
use osapi::job::Options;
use serde_json::{Value, json};
use support::cases::{cases, deploy, find, host_for, managed_host_for, unit_host_for};
use support::host::{TestHost, job, task};

/// Whatever makes something durable or visible, or starts something.
const CALLS: &[&str] = &[
    "clone",
    "clone3",
    "fchmod",
    "fchown",
    "fdatasync",
    "flock",
    "fremovexattr",
    "fsync",
    "mkdir",
    "mkdirat",
    "openat",
    "pipe2",
    "rename",
    "renameat",
    "symlinkat",
    "unlink",
    "unlinkat",
    "vfork",
    "wait4",
    "waitid",
    "write",
];

/// What a full or broken disk answers.
const DISK: &[&str] =
    &["fdatasync", "fsync", "mkdirat", "rename", "renameat", "symlinkat", "unlinkat", "write"];

/// Tells this program that it is the agent, and what to do.
const AGENT: &str = "OSAPI_CRASH_AGENT";

/// What is tried, by name.
const SWEEPS: &[(&str, fn())] = &[
    (
        "after_a_crash_anywhere_the_job_is_finished_when_delivered_again",
        after_a_crash_anywhere_the_job_is_finished_when_delivered_again,
    ),
    (
        "after_a_crash_anywhere_the_job_is_finished_or_never_begun_without_being_delivered_again",
        after_a_crash_anywhere_the_job_is_finished_or_never_begun_without_being_delivered_again,
    ),
    (
        "after_a_crash_anywhere_an_unconfirmed_job_is_taken_back",
        after_a_crash_anywhere_an_unconfirmed_job_is_taken_back,
    ),
    (
        "what_a_broken_disk_interrupts_is_finished_or_taken_back",
        what_a_broken_disk_interrupts_is_finished_or_taken_back,
    ),
    ("a_program_never_runs_twice", a_program_never_runs_twice),
    ("a_service_is_never_restarted_twice", a_service_is_never_restarted_twice),
    ("a_host_is_never_told_twice_to_go_down", a_host_is_never_told_twice_to_go_down),
    (
        "after_a_crash_anywhere_what_units_do_is_finished",
        after_a_crash_anywhere_what_units_do_is_finished,
    ),
    (
        "what_a_broken_disk_keeps_from_units_is_finished_or_taken_back",
        what_a_broken_disk_keeps_from_units_is_finished_or_taken_back,
    ),
    ("a_program_in_a_unit_never_runs_twice", a_program_in_a_unit_never_runs_twice),
    (
        "a_unit_that_dies_anywhere_leaves_a_step_that_is_taken_back",
        a_unit_that_dies_anywhere_leaves_a_step_that_is_taken_back,
    ),
    (
        "a_unit_that_dies_anywhere_has_run_its_program_once_or_not_at_all",
        a_unit_that_dies_anywhere_has_run_its_program_once_or_not_at_all,
    ),
    (
        "what_runs_in_a_unit_outlives_the_agent_and_is_answered_for",
        what_runs_in_a_unit_outlives_the_agent_and_is_answered_for,
    ),
    (
        "a_change_costs_the_same_however_much_was_done_before",
        a_change_costs_the_same_however_much_was_done_before,
    ),
    ("a_change_waits_for_the_disk_only_as_often_as_it_must", a_change_waits_for_the_disk),
];

fn main() {
    if let Ok(told) = std::env::var(AGENT) {
        return agent(&told);
    }
    let has_strace = Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok();
    if !has_strace {
        println!("SKIPPED: crash sweeps: strace is not installed");
        return;
    }
    // As a test binary is called: names to be found, and options that mean nothing here.
    let wanted: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let (begun, mut passed) = (Instant::now(), 0);
    for (name, sweep) in SWEEPS {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
            // One that fails ends it all, as a panic does.
            sweep();
            println!("test {name} ... ok");
            passed += 1;
        }
    }
    println!(
        "\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        SWEEPS.len() - passed,
        begun.elapsed().as_secs_f64()
    );
}

/// The agent that dies: this very program, told to carry out one job.
fn agent(told: &str) {
    let told: Value = serde_json::from_str(told).unwrap();
    let at = |name: &str| PathBuf::from(told[name].as_str().unwrap());
    let Some(op) = told["op"].as_str() else { return };
    let executor = Executor::new(Root::at(at("root")), &at("state"), UndoBounds::default());
    let options: Options = serde_json::from_value(told["options"].clone()).unwrap();
    let task = task(&job("job"), &find(op), &told["params"], options);
    if let Ok(executor) = executor {
        if at("root").join("usr/bin/osapi").exists() {
            executor.use_units();
        }
        // Whoever looks at what is left finds out how it went.
        let _ = executor.run(&find(op), &task);
        // An agent does not take itself apart, and how far it would come is chance.
        std::mem::forget(executor);
    }
}

/// What the agent is told.
fn told(host: &TestHost, what: Option<(&str, &Value)>, options: &Options) -> String {
    let told = json!({
        "root": host.path("/"),
        "state": host.dir().join("state"),
        "op": what.map(|(op, _)| op),
        "params": what.map(|(_, params)| params),
        "options": options,
    });
    told.to_string()
}

/// What `strace` is told to do to the agent, and for which job.
fn run(host: &TestHost, strace: &[&str], what: Option<(&str, &Value)>, options: &Options) {
    let status = Command::new("strace")
        .args(["-qq", "-o"])
        .arg(host.dir().join("trace"))
        .args(strace)
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .env(AGENT, told(host, what, options))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.unwrap();
}

/// How often the traced agent made each call.
fn counts(host: &TestHost, kinds: &[&'static str]) -> BTreeMap<&'static str, usize> {
    let trace = std::fs::read_to_string(host.dir().join("trace")).unwrap();
    let of = |kind: &str| trace.lines().filter(|l| l.starts_with(&format!("{kind}("))).count();
    kinds.iter().map(|kind| (*kind, of(kind))).collect()
}

/// Every `n`-th call of a kind that the job makes, or some of them.
fn points(
    kinds: &'static [&str],
    host: &TestHost,
    (op, params): (&str, &Value),
    options: &Options,
) -> Vec<(&'static str, usize)> {
    let trace = format!("-etrace={}", kinds.join(","));
    run(host, &[&trace], None, options);
    let before = counts(host, kinds);
    run(host, &[&trace], Some((op, params)), options);
    let all = counts(host, kinds);
    // What the program does before it becomes an agent is left out.
    let calls = |kind: &&'static str| (before[kind] + 1..=all[kind]).map(|n| (*kind, n)).collect();
    let mut points: Vec<_> = kinds.iter().flat_map(|kind| -> Vec<_> { calls(kind) }).collect();
    assert!(points.len() > 5, "{op} hardly does anything: {all:?}");
    thin_out(&mut points, op);
    points
}

/// Leaves as many points as are to be tried.
fn thin_out(points: &mut Vec<(&'static str, usize)>, op: &str) {
    let wanted = std::env::var("CRASH_POINTS").unwrap_or_default();
    let seed = std::env::var("CRASH_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let some = match wanted.as_str() {
        "all" => points.len(),
        number => number.parse().unwrap_or_else(|_| points.len().div_ceil(10)),
    };
    points.sort_by_key(|point| {
        let mut hasher = DefaultHasher::new();
        (seed.unwrap_or_default(), op, point).hash(&mut hasher);
        hasher.finish()
    });
    points.truncate(some);
}

/// Runs a job again and again, each time with something else happening to it, and hands what is
/// left of the host to `look`.
fn sweep(
    kinds: &'static [&str],
    what: fn(usize) -> String,
    (op, params): (&str, &Value),
    options: &Options,
    host: fn(&str) -> TestHost,
    look: impl Fn(TestHost, &str) + Sync,
) {
    let host = || host(op);
    let points = points(kinds, &host(), (op, params), options);
    let (next, half_done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((call, n)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let host = host();
                    let what = what(*n);
                    let inject = format!("-einject={call}:{what}");
                    let trace = format!("-etrace={call}");
                    run(&host, &[&trace, &inject], Some((op, params)), options);
                    half_done.fetch_add(
                        usize::from(host.entry("open", "job").exists()),
                        Ordering::Relaxed,
                    );
                    look(host, &format!("{op} {options:?}: {call} {what}"));
                }
            });
        }
    });
    let half_done = half_done.into_inner();
    println!("{op}: {} points, {half_done} of them half done, {}", points.len(), what(1));
}

fn killed(n: usize) -> String {
    format!("signal=SIGKILL:when={n}")
}

/// Which cells are said to be OSAPI's. That one was once and is not any more may be known or not.
fn managed(host: &TestHost) -> Vec<String> {
    let files = std::fs::read_dir(host.state("managed")).unwrap().map(Result::unwrap);
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| !name.contains('.')).collect();
    names.sort();
    names
}

fn after_a_crash_anywhere_the_job_is_finished_when_delivered_again() {
    for (op, params) in cases() {
        let whole = host_for(op);
        whole.run("job", op, &params).unwrap();
        sweep(CALLS, killed, (op, &params), &Options::default(), host_for, |host, at| {
            host.run("job", op, &params).unwrap_or_else(|error| panic!("{at}: {error}"));
            host.assert_is(&whole.snapshot(), at);
            assert_eq!(managed(&host), managed(&whole), "{at}");
            assert_eq!(host.executor.view().drift().unwrap(), [], "{at}");
            host.undo("undo", "job").unwrap_or_else(|error| panic!("{at}: {error}"));
            host.assert_is(&host_for(op).snapshot(), at);
        });
    }
}

fn after_a_crash_anywhere_the_job_is_finished_or_never_begun_without_being_delivered_again() {
    for (op, params) in cases() {
        let (before, whole) = (host_for(op), host_for(op));
        whole.run("job", op, &params).unwrap();
        sweep(CALLS, killed, (op, &params), &Options::default(), host_for, |host, at| {
            let is_begun = !host.executor.settle().unwrap().is_empty() || is_done(&host);
            let expected = if is_begun { &whole } else { &before };
            host.assert_is(&expected.snapshot(), at);
            assert_eq!(managed(&host), managed(expected), "{at}");
        });
    }
}

fn after_a_crash_anywhere_an_unconfirmed_job_is_taken_back() {
    let options = Options { confirm: Some(0), ..Options::default() };
    for (op, params) in cases() {
        let before = managed_host_for(op);
        sweep(CALLS, killed, (op, &params), &options, managed_host_for, |host, at| {
            let host = host.restart();
            host.executor.settle().unwrap();
            host.assert_is(&before.snapshot(), at);
            assert_eq!(managed(&host), managed(&before), "{at}");
            // It may have been reported before, and so has to be told.
            let told = host.executor.amendments().unwrap().len();
            assert_eq!(told, usize::from(is_done(&host)), "{at}");
        });
    }
}

fn what_a_broken_disk_interrupts_is_finished_or_taken_back() {
    broken_disk(&cases(), host_for);
}

fn what_a_broken_disk_keeps_from_units_is_finished_or_taken_back() {
    broken_disk(&far_reaching(), unit_host_for);
}

fn broken_disk(cases: &[(&'static str, Value)], host_for: fn(&str) -> TestHost) {
    let full: fn(usize) -> String = |n| format!("error=ENOSPC:when={n}+");
    let broken: fn(usize) -> String = |n| format!("error=EIO:when={n}");
    for (error, lasts) in [(full, true), (broken, false)] {
        for (op, params) in cases {
            let (before, whole) = (host_for(op), host_for(op));
            whole.run("job", op, params).unwrap();
            sweep(DISK, error, (op, params), &Options::default(), host_for, |host, at| {
                let result = host.run("job", op, params);
                let expected = if result.is_ok() { &whole } else { &before };
                let left = result.err().map(|error| error.body().not_restored).unwrap_or_default();
                // Beside files, programs may be named that could not be told of the way back.
                let left: Vec<_> = left.into_iter().filter(|what| what.starts_with('/')).collect();
                host.assert_is(&but_for(&left, expected, &host), at);
                if left.is_empty() {
                    assert_eq!(managed(&host), managed(expected), "{at}");
                    return;
                }
                // A disk that refuses everything refuses the way back too. What is off then is
                // named, all of it, and stays known.
                assert!(lasts, "{at}: {left:?}");
                let drift = host.executor.view().drift().unwrap();
                let drift: Vec<_> = drift.iter().map(|it| it.cell.to_string()).collect();
                assert_eq!(drift, left, "{at}");
            });
        }
    }
}

/// What can be seen of `host`, but at the paths `left` what can be seen of `now`.
fn but_for(left: &[String], host: &TestHost, now: &TestHost) -> BTreeMap<PathBuf, String> {
    let (mut seen, now) = (host.snapshot(), now.snapshot());
    for path in left.iter().map(|cell| PathBuf::from(cell.trim_start_matches('/'))) {
        seen.remove(&path);
        seen.extend(now.get_key_value(&path).map(|(path, text)| (path.clone(), text.clone())));
    }
    seen
}

fn a_program_never_runs_twice() {
    let params = json!({ "program": "true" });
    sweep(CALLS, killed, ("test.run", &params), &Options::default(), host_for, |host, at| {
        let result = host.run("job", "test.run", &params);
        let runs = host.calls().len();
        match result {
            Ok(_) => assert_eq!(runs, 1, "{at}"),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Interrupted, "{at}: {error}");
                assert!(runs <= 1, "{at}");
            }
        }
    });
}

fn a_service_is_never_restarted_twice() {
    const UNIT: &str = "/run/units/nginx.service";
    fn host_with_a_run(op: &str) -> TestHost {
        let host = host_for(op);
        let runs = "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\n";
        let about = "InvocationID=first\nFragmentPath=/lib/systemd/system/nginx.service\n";
        host.write(UNIT, &format!("{runs}{about}"));
        host
    }
    let (op, params) = ("node.service.restart", json!({ "name": "nginx" }));
    sweep(CALLS, killed, (op, &params), &Options::default(), host_with_a_run, |host, at| {
        let result = host.run("job", op, &params);
        let restarts = || {
            let calls = host.calls();
            calls.iter().filter(|call| call.starts_with("systemctl restart")).count()
        };
        match result {
            Ok(_) => {
                assert_eq!(restarts(), 1, "{at}");
                assert!(host.read(UNIT).contains("InvocationID=second"), "{at}");
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::Interrupted, "{at}: {error}");
                assert!(restarts() <= 1, "{at}");
            }
        }
    });
}

fn a_host_is_never_told_twice_to_go_down() {
    /// It refuses, which is how the job ends in the boot in which it was asked.
    fn host_that_stays_up(op: &str) -> TestHost {
        let host = managed_host_for(op);
        std::fs::write(host.dir().join("unit-state"), "failed").unwrap();
        host
    }
    let (op, params) = ("node.power.reboot", json!({}));
    sweep(CALLS, killed, (op, &params), &Options::default(), host_that_stays_up, |host, at| {
        // Something took it down with the agent.
        host.write("/proc/sys/kernel/random/boot_id", "second\n");
        let host = host.restart();
        let result = host.run("job", op, &params);
        let asked = host.calls().iter().filter(|call| call.starts_with("systemd-run ")).count();
        match result {
            Ok(_) => assert!(asked <= 1, "{at}: {asked}"),
            Err(error) => {
                assert_eq!(error.kind(), Kind::HostFailed, "{at}: {error}");
                assert_eq!(asked, 1, "{at}");
            }
        }
    });
}

/// Changes that reach beyond the agent, by files, a kernel parameter and programs.
fn far_reaching() -> Vec<(&'static str, Value)> {
    let is_tried = |op: &str| ["node.sysctl.create", "test.tree"].contains(&op);
    cases().into_iter().filter(|(op, _)| is_tried(op)).collect()
}

fn after_a_crash_anywhere_what_units_do_is_finished() {
    for (op, params) in far_reaching() {
        let whole = unit_host_for(op);
        whole.run("job", op, &params).unwrap();
        sweep(CALLS, killed, (op, &params), &Options::default(), unit_host_for, |host, at| {
            host.run("job", op, &params).unwrap_or_else(|error| panic!("{at}: {error}"));
            host.assert_is(&whole.snapshot(), at);
            assert_eq!(managed(&host), managed(&whole), "{at}");
            host.undo("undo", "job").unwrap_or_else(|error| panic!("{at}: {error}"));
            host.assert_is(&unit_host_for(op).snapshot(), at);
        });
    }
}

fn a_program_in_a_unit_never_runs_twice() {
    let params = json!({ "program": "true" });
    let about = ("test.run", &params);
    sweep(CALLS, killed, about, &Options::default(), unit_host_for, |host, at| {
        let result = host.run("job", "test.run", &params);
        // Nothing came between the program and its end.
        assert!(result.is_ok(), "{at}: {result:?}");
        assert_eq!(runs(&host), 1, "{at}");
    });
}

/// How often the program of an act ran.
fn runs(host: &TestHost) -> usize {
    host.calls().iter().filter(|call| call.starts_with("true")).count()
}

/// Runs a job again and again, each time with its first unit dying at another call.
fn sweep_unit(
    op: &str,
    params: &Value,
    look: impl Fn(&TestHost, osapi::error::Result<Value>, &str),
) {
    let tried = |strace: &str| {
        let host = unit_host_for(op);
        std::fs::write(host.dir().join("strace"), strace).unwrap();
        let result = host.run("job", op, params);
        (host, result)
    };
    let (host, _) = tried(&format!("-etrace={}", CALLS.join(",")));
    std::fs::rename(host.dir().join("unit-trace"), host.dir().join("trace")).unwrap();
    let counts = counts(&host, CALLS);
    let points = counts.iter().flat_map(|(call, count)| (1..=*count).map(move |n| (*call, n)));
    let mut points: Vec<(&'static str, usize)> = points.collect();
    assert!(points.len() > 20, "a unit hardly does anything: {counts:?}");
    thin_out(&mut points, op);
    for (call, n) in &points {
        let (host, result) = tried(&format!("-etrace={call} -einject={call}:{}", killed(*n)));
        look(&host, result, &format!("{op}: unit: {call} {n}"));
    }
    println!("{op}: {} points of a unit", points.len());
}

fn a_unit_that_dies_anywhere_leaves_a_step_that_is_taken_back() {
    for (op, params) in far_reaching() {
        let (before, whole) = (unit_host_for(op), unit_host_for(op));
        whole.run("job", op, &params).unwrap();
        sweep_unit(op, &params, |host, result, at| {
            let expected = if result.is_ok() { &whole } else { &before };
            host.assert_is(&expected.snapshot(), &format!("{at}: {result:?}"));
            assert_eq!(managed(host), managed(expected), "{at}");
        });
    }
}

fn a_unit_that_dies_anywhere_has_run_its_program_once_or_not_at_all() {
    let params = json!({ "program": "true" });
    sweep_unit("test.run", &params, |host, result, at| match result {
        Ok(_) => assert_eq!(runs(host), 1, "{at}"),
        Err(error) if error.kind() == Kind::Interrupted => assert!(runs(host) <= 1, "{at}"),
        Err(error) => assert_eq!(runs(host), 0, "{at}: {error}"),
    });
}

fn what_runs_in_a_unit_outlives_the_agent_and_is_answered_for() {
    /// How long whoever does not wait has to show it.
    const GRACE: std::time::Duration = std::time::Duration::from_millis(300);
    let (act, change) = (json!({ "program": "true" }), json!("text"));
    for (op, params, command) in [("test.run", &act, "true"), ("test.banner", &change, "announce")]
    {
        let host = unit_host_for(op);
        host.hold(command, true);
        let mut agent = Command::new(std::env::current_exe().unwrap())
            .env(AGENT, told(&host, Some((op, params)), &Options::default()))
            .spawn()
            .unwrap();
        let count = || host.calls().iter().filter(|call| call.starts_with(command)).count();
        while count() == 0 {
            std::thread::yield_now();
        }
        agent.kill().unwrap();
        agent.wait().unwrap();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let next = scope.spawn(|| host.run("job", op, params));
            // Whoever did not wait would have begun it again by now.
            while !next.is_finished() && count() < 2 && begun.elapsed() < GRACE {
                std::thread::yield_now();
            }
            host.hold(command, false);
            next.join().unwrap().unwrap_or_else(|error| panic!("{op}: {error}"));
        });
        assert!(count() == 1 || op == "test.banner" && count() == 2, "{op}");
    }
}

fn is_done(host: &TestHost) -> bool {
    host.entry("done", "job").exists()
}

/// How often each call was made, by any thread of the agent, in carrying out one job.
fn cost(host: &TestHost, op: &str, params: &Value) -> BTreeMap<String, usize> {
    run(host, &["-f"], Some((op, params)), &Options::default());
    let trace = std::fs::read_to_string(host.dir().join("trace")).unwrap();
    let mut counts = BTreeMap::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        if !name.starts_with("<...") {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts
}

fn a_change_costs_the_same_however_much_was_done_before() {
    /// What threads do to wait for one another and to get memory.
    const CHANCE: &[&str] = &["brk", "futex", "madvise", "mmap", "mprotect", "munmap"];
    let (op, params) = ("file.deploy.execute", deploy("motd", "/etc/motd", "0644"));
    let after = |jobs: usize| {
        let host = host_for(op);
        host.run("template", op, &deploy("other", "/etc/other", "0644")).unwrap();
        let record = std::fs::read(host.entry("done", "template")).unwrap();
        for n in 1..jobs {
            std::fs::write(host.entry("done", &format!("job {n}")), &record).unwrap();
        }
        assert_eq!(std::fs::read_dir(host.state("done")).unwrap().count(), jobs);
        let mut cost = cost(&host, op, &params);
        assert_eq!(host.read("/etc/motd"), "Welcome\n");
        cost.retain(|name, _| !CHANCE.contains(&name.as_str()));
        cost
    };
    let (few, many) = (after(10), after(1_500));
    let names = few.keys().chain(many.keys());
    let differ: Vec<_> = names.filter(|name| few.get(*name) != many.get(*name)).collect();
    assert!(differ.is_empty(), "{differ:?} of {few:?}, {many:?}");
    println!(
        "a change: {} system calls after 10 jobs and after 1,500",
        few.values().sum::<usize>()
    );
}

fn a_change_waits_for_the_disk() {
    let syncs = |host: &TestHost, op: &str, params: &Value| {
        let cost = cost(host, op, params);
        ["fsync", "fdatasync", "sync", "syncfs", "sync_file_range"]
            .iter()
            .map(|name| cost.get(*name).copied().unwrap_or_default())
            .sum::<usize>()
    };
    let (op, params) = ("file.deploy.execute", deploy("motd", "/etc/motd", "0644"));
    let host = host_for(op);
    let change = syncs(&host, op, &params);
    let host = host_for(op);
    host.run("before", op, &params).unwrap();
    let nothing = syncs(&host, op, &params);
    println!("syncs: {change} for a change of one small file, {nothing} for one already made");
    assert!(change <= 8 && nothing <= 2);
}
