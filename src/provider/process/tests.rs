#![expect(clippy::disallowed_methods, reason = "makes up processes under a temporary root")]

use serde_json::json;

use super::*;
use crate::op::Intent;
use crate::provider::tests::Fake;

fn stat(name: &str, parent: i64, start: u64) -> String {
    format!("9 ({name}) S {parent} 9 9 0 -1 4 1 0 0 0 300 200 0 0 20 0 1 0 {start} 0 0\n")
}

/// A host with init, a shell and a daemon, and this process as its agent.
fn host() -> Fake {
    let fake = Fake::with(&[
        ("/proc/stat", "cpu 1 2\nbtime 1700000000\n"),
        ("/proc/uptime", "110.00 1\n"),
        ("/proc/meminfo", "MemTotal: 1000 kB\n"),
        ("/etc/passwd", "root:x:0:0::/:/bin/sh\nann:x:7:7::/:/bin/sh\nosapi:x:99:99::/:/bin/sh\n"),
        ("/proc/1/stat", &stat("init", 0, 1)),
        ("/proc/20/stat", &stat("a) (b", 1, 1000)),
        ("/proc/20/status", "Name:\ta\nUid:\t0\t7\t0\t0\nVmRSS:\t  250 kB\n"),
        ("/proc/20/cmdline", "/bin/a\0-x\0y z\0"),
    ]);
    let agent = std::process::id();
    fake.put(&format!("/proc/{agent}/stat"), &stat("exe", 1, 5));
    program(&fake, i64::from(agent), "/usr/bin/osapi (deleted)");
    program(&fake, 20, "/bin/a");
    fake
}

fn program(fake: &Fake, pid: i64, path: &str) {
    std::fs::create_dir_all(fake.at(&format!("/proc/{pid}"))).unwrap();
    std::os::unix::fs::symlink(path, fake.at(&format!("/proc/{pid}/exe"))).unwrap();
}

fn send(fake: &Fake, pid: i64) -> Result<Act, Kind> {
    let signal = crate::ops::agent("node.process.signal").unwrap();
    let params = json!({ "pid": pid, "signal": "TERM" });
    match signal.run.intend(&fake.view(), &params).map_err(|error| error.kind())? {
        Intent::Act(act) => Ok(act),
        _ => panic!("does nothing"),
    }
}

#[test]
fn a_process_is_shown_with_what_the_kernel_says() {
    let process = get(&host().view(), &ByPid { pid: Pid(20) }).unwrap().process;
    let expected = Process {
        pid: 20,
        name: Some("a) (b".to_owned()),
        user: Some("ann".to_owned()),
        state: Some("sleep".to_owned()),
        cpu_percent: Some(5.0),
        mem_percent: Some(25.0),
        mem_rss: Some(256_000),
        command: Some("/bin/a -x y z".to_owned()),
        start_time: Some("2023-11-14T22:13:30Z".to_owned()),
    };
    assert_eq!(process, expected);
}

#[test]
fn nothing_that_cannot_be_read_hides_a_process() {
    let fake = host();
    fake.put("/proc/30/unreadable", "");
    fake.put("/proc/31/stat", "31 (cut off");
    fake.put("/proc/32/cmdline", "x\0");
    std::fs::write(fake.at("/proc/32/stat"), stat("caf\u{e9}", 1, 1).replace('é', "?")).unwrap();
    let pids: Vec<i64> = list(&fake.view()).unwrap().processes.iter().map(|p| p.pid).collect();
    let mut expected = vec![1, 20, 30, 31, 32, i64::from(std::process::id())];
    expected.sort_unstable();
    assert_eq!(pids, expected);
}

#[test]
fn a_command_line_is_cut_between_characters() {
    assert_eq!(shown("", "kthreadd"), "[kthreadd]");
    assert_eq!(shown(&"ü".repeat(4096), "").len(), MAX_COMMAND);
    assert_eq!(shown(&format!("x{}", "ü".repeat(4096)), "").len(), MAX_COMMAND - 1);
}

#[test]
fn a_signal_names_the_start_of_its_process() {
    let expected = Act::Signal { pid: 20, start: 1000, signal: libc::SIGTERM };
    assert_eq!(send(&host(), 20), Ok(expected));
}

#[test]
fn who_is_not_there_is_not_found() {
    for pid in [2, 4_194_305, i64::MAX] {
        assert_eq!(send(&host(), pid), Err(Kind::NotFound), "{pid}");
        let error = get(&host().view(), &ByPid { pid: Pid(pid) }).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{pid}");
    }
}

#[test]
fn init_and_groups_get_no_signals() {
    for pid in [1, 0, -1, -20, i64::MIN] {
        assert_eq!(send(&host(), pid), Err(Kind::InvalidInput), "{pid}");
    }
}

#[test]
fn osapi_gets_no_signals_through_itself() {
    let fake = host();
    let agent = i64::from(std::process::id());
    fake.put("/proc/40/stat", &stat("sh", agent, 50));
    fake.put("/proc/41/stat", &stat("sleep", 40, 50));
    fake.put("/proc/42/stat", &stat("osapi", 1, 50));
    program(&fake, 42, "/usr/bin/osapi");
    fake.put("/proc/43/stat", &stat("apt", 1, 50));
    fake.put("/proc/43/cgroup", "0::/osapi.slice/osapi-job-1.1.service\n");
    // What they run cannot be asked; 7 is not an account that OSAPI runs as.
    for (pid, name, uid) in [(44, "osapi", 0), (45, "osapi", 99), (46, "osapi", 7), (47, "a", 0)] {
        fake.put(&format!("/proc/{pid}/stat"), &stat(name, 1, 50));
        fake.put(&format!("/proc/{pid}/status"), &format!("Uid:\t0\t{uid}\t0\t0\n"));
    }
    for pid in [agent, 40, 41, 42, 43, 44, 45] {
        assert_eq!(send(&fake, pid), Err(Kind::Denied), "{pid}");
    }
    for pid in [46, 47] {
        assert!(send(&fake, pid).is_ok(), "{pid}");
    }
}

#[test]
fn only_the_published_signals_are_sent() {
    let signal = crate::ops::agent("node.process.signal").unwrap();
    for name in ["STOP", "term", "9", "SIGTERM", ""] {
        let error = signal.run.check(&json!({ "pid": 20, "signal": name })).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput, "{name}");
    }
}
