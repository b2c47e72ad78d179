//! The processes of a host, and signals to them.
//!
//! A process is listed as soon as it has a number; what of it cannot be read is left out of its
//! entry. OSAPI's own processes, what they started and init get no signals: whoever could end
//! them could end the audit as well.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::host::{Act, View};
use crate::op::{Domain, Execute, Method, Nothing, Op, Read};
use crate::permission::Permission;
use crate::types::rfc3339;

pub static DOMAIN: Domain = Domain {
    name: "process",
    about: "Processes",
    ops: &[
        Op {
            id: "node.process.list",
            about: "List the processes",
            path: "/node/{hostname}/process",
            permission: Some(Permission::ProcessRead),
            command: "node process list",
            columns: &[
                ("PID", "/processes/*/pid"),
                ("NAME", "/processes/*/name"),
                ("USER", "/processes/*/user"),
                ("STATE", "/processes/*/state"),
                ("CPU%", "/processes/*/cpu_percent"),
                ("COMMAND", "/processes/*/command"),
            ],
            run: &Read(|host, _: &Nothing| list(host)),
            ..Op::COMMON
        },
        Op {
            id: "node.process.get",
            about: "Show a process",
            path: "/node/{hostname}/process/{pid}",
            permission: Some(Permission::ProcessRead),
            command: "node process get",
            args: &["pid"],
            columns: &[
                ("PID", "/process/pid"),
                ("NAME", "/process/name"),
                ("USER", "/process/user"),
                ("STATE", "/process/state"),
                ("CPU%", "/process/cpu_percent"),
                ("COMMAND", "/process/command"),
            ],
            run: &Read(get),
            ..Op::COMMON
        },
        Op {
            id: "node.process.signal",
            about: "Send a signal to a process",
            method: Method::Post,
            path: "/node/{hostname}/process/{pid}/signal",
            permission: Some(Permission::ProcessExecute),
            command: "node process signal",
            args: &["pid", "signal"],
            columns: &[("PID", "/pid"), ("SIGNAL", "/signal"), ("CHANGED", "/changed")],
            run: &Execute(signal, |params, _| {
                let Signalling { pid: Pid(pid), signal } = *params;
                Ok(Signalled { pid, signal, changed: true })
            }),
            ..Op::COMMON
        },
    ],
};

/// How many ticks the kernel's tables count in a second, on every architecture there is a
/// distribution for.
const TICKS: u64 = 100;

/// How much of a command line is shown, in bytes.
const MAX_COMMAND: usize = 4096;

/// How much of one of the kernel's files is read, in bytes. Command lines may be long.
const MAX_READ: u64 = 4 * 1024 * 1024;

/// How many generations are looked up. A loop cannot be, but a table that is read while it
/// changes may look like one.
const MAX_ANCESTORS: usize = 64;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByPid {
    /// The number of the process, at least 1.
    #[schemars(extend("examples" = [1]))]
    pid: Pid,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signalling {
    /// The number of the process. 1 and OSAPI's own processes are refused.
    pid: Pid,
    /// The signal, without `SIG`.
    signal: Signal,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
enum Signal {
    Term,
    Kill,
    Hup,
    Int,
    Usr1,
    Usr2,
}

impl Signal {
    const fn number(self) -> i32 {
        match self {
            Self::Term => libc::SIGTERM,
            Self::Kill => libc::SIGKILL,
            Self::Hup => libc::SIGHUP,
            Self::Int => libc::SIGINT,
            Self::Usr1 => libc::SIGUSR1,
            Self::Usr2 => libc::SIGUSR2,
        }
    }
}

#[derive(Debug, JsonSchema, Serialize)]
struct Processes {
    /// Every process, by number.
    processes: Vec<Process>,
    /// True if there are more than an answer has room for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
struct ProcessAnswer {
    process: Process,
}

#[derive(Debug, Default, JsonSchema, PartialEq, Serialize)]
struct Process {
    pid: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    name: Option<String>,
    /// The account with whose rights it runs; its number where it has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    user: Option<String>,
    /// `running`, `sleep`, `blocked` (waits for a disk), `stop`, `zombie` or `idle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    state: Option<String>,
    /// Share of one processor since it started, in percent; more than 100 for several threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    cpu_percent: Option<f64>,
    /// Share of the memory of the host that it occupies, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f32")]
    mem_percent: Option<f64>,
    /// Memory that it occupies, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    mem_rss: Option<i64>,
    /// Its command line, of which at most 4 KiB are shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    command: Option<String>,
    /// When it started, as RFC 3339 has it, in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    start_time: Option<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Signalled {
    pid: i64,
    signal: Signal,
    /// Always true: the process was told.
    changed: bool,
}

fn list(host: &View) -> Result<Processes> {
    let mut pids: Vec<i64> =
        host.list_dir("/proc")?.iter().filter_map(|name| name.parse().ok()).collect();
    pids.sort_unstable();
    let around = Around::of(host);
    let found = pids.into_iter().filter_map(|pid| around.process(host, pid)).collect();
    let (processes, truncated) = super::fitting(found);
    Ok(Processes { processes, truncated })
}

fn get(host: &View, ByPid { pid: Pid(pid) }: &ByPid) -> Result<ProcessAnswer> {
    let process = Around::of(host).process(host, *pid).ok_or_else(|| gone(*pid))?;
    Ok(ProcessAnswer { process })
}

fn signal(host: &View, Signalling { pid: Pid(number), signal }: &Signalling) -> Result<Act> {
    let number = *number;
    if number <= 1 {
        let message = format!("cannot signal process {number}: the system runs on it");
        return Err(Error::new(Kind::InvalidInput, message));
    }
    let pid = i32::try_from(number).map_err(|_| gone(number))?;
    let Some(stat) = Stat::of(host, number) else {
        if exists(host, number) {
            let message = format!("cannot tell when process {pid} began");
            return Err(Error::new(Kind::HostFailed, message));
        }
        return Err(gone(number));
    };
    if is_own(host, number) {
        let message = format!("process {pid} is OSAPI's own and gets no signals through it");
        return Err(Error::new(Kind::Denied, message));
    }
    Ok(Act::Signal { pid, start: stat.start, signal: signal.number() })
}

/// Whether `pid` is a process of OSAPI: this one, one of the same program, or what one of
/// either has started.
fn is_own(host: &View, pid: i64) -> bool {
    let own = Program::of(host, i64::from(host.pid()));
    let mut ancestor = pid;
    for _ in 0..MAX_ANCESTORS {
        if ancestor <= 1 {
            break;
        }
        let program = Program::of(host, ancestor);
        if ancestor == i64::from(host.pid()) || program.is_like(host, &own) {
            return true;
        }
        let Some(stat) = Stat::of(host, ancestor) else { break };
        ancestor = stat.parent;
    }
    // What runs in the unit of a job is no child of the agent.
    let group = text(host, &format!("/proc/{pid}/cgroup")).unwrap_or_default();
    group.contains("/osapi-job-")
}

/// What a process runs, as far as it can be told.
struct Program {
    path: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

impl Program {
    fn of(host: &View, pid: i64) -> Self {
        let path = host.read_link(&format!("/proc/{pid}/exe")).ok();
        let status = text(host, &format!("/proc/{pid}/status"));
        Self {
            // So the kernel calls the program of a process that was upgraded since it began.
            path: path.map(|path| path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned()),
            name: Stat::of(host, pid).map(|stat| stat.name),
            uid: status.as_deref().and_then(effective_uid).map(str::to_owned),
        }
    }

    /// Whether it is the same program as `own`.
    ///
    /// Landlock keeps whoever is planning from asking what processes of others run. Their names
    /// can be chosen, so a name counts only for accounts that OSAPI runs as: nobody else gets
    /// away from signals by it.
    fn is_like(&self, host: &View, own: &Self) -> bool {
        if self.path.is_some() && own.path.is_some() {
            return self.path == own.path;
        }
        let Some(uid) = &self.uid else { return false };
        let account = || uid.parse().ok().and_then(|uid| host.user_name(uid).ok());
        let is_ours = self.uid == own.uid || uid == "0" || account().as_deref() == Some("osapi");
        // An agent that the controller started is called after the link it was started by.
        let file = own.path.as_deref().and_then(|path| path.rsplit('/').next());
        let name = file.map(|file| &file[..file.floor_char_boundary(15)]).or(own.name.as_deref());
        is_ours && name.is_some() && self.name.as_deref() == name
    }
}

/// What has to be known of the host to make sense of its processes, as far as it can be.
struct Around {
    /// Seconds since 1970 at which the host started.
    boot: Option<u64>,
    /// Seconds since then.
    uptime: Option<f64>,
    /// Bytes.
    memory: Option<u64>,
    users: BTreeMap<String, String>,
}

impl Around {
    fn of(host: &View) -> Self {
        let boot = text(host, "/proc/stat");
        let boot = boot.and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        });
        let uptime = text(host, "/proc/uptime");
        let uptime = uptime.and_then(|text| text.split(' ').next()?.parse().ok());
        let memory = text(host, "/proc/meminfo");
        let memory = memory.and_then(|text| kibibytes(&text, "MemTotal"));
        let accounts = text(host, "/etc/passwd").unwrap_or_default();
        let users = accounts.lines().rev().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.to_owned(), name.to_owned()))
        });
        Self { boot, uptime, memory, users: users.collect() }
    }

    /// None for a process that has ended.
    fn process(&self, host: &View, pid: i64) -> Option<Process> {
        let stat = Stat::of(host, pid);
        let status = text(host, &format!("/proc/{pid}/status"));
        let command = text(host, &format!("/proc/{pid}/cmdline"));
        if stat.is_none() && status.is_none() && !exists(host, pid) {
            return None;
        }
        let uid = status.as_deref().and_then(effective_uid);
        let user = uid.map(|uid| self.users.get(uid).map_or(uid, String::as_str).to_owned());
        // A thread of the kernel occupies none and does not say so.
        let rss = status.as_deref().map(|status| kibibytes(status, "VmRSS").unwrap_or(0));
        let mut process = Process {
            pid,
            user,
            mem_rss: rss.and_then(|rss| rss.try_into().ok()),
            mem_percent: rss.zip(self.memory).map(|(rss, total)| percent(rss, total)),
            ..Process::default()
        };
        let Some(Stat { name, state, ticks, start, .. }) = stat else {
            process.command = command.map(|command| shown(&command, ""));
            return Some(process);
        };
        process.state = Some(state_name(state));
        process.start_time = self.boot.map(|boot| rfc3339(boot + start / TICKS));
        process.cpu_percent = self.uptime.map(|uptime| {
            let age = uptime - seconds(start);
            if age > 0.0 { round(seconds(ticks) / age * 100.0) } else { 0.0 }
        });
        process.command = command.map(|command| shown(&command, &name));
        process.name = Some(name);
        Some(process)
    }
}

/// What the kernel says of a process on one line.
struct Stat {
    name: String,
    state: char,
    parent: i64,
    /// Ticks it has run for.
    ticks: u64,
    /// Ticks after the boot at which it started; tells it from a later one of the same number.
    start: u64,
}

impl Stat {
    fn of(host: &View, pid: i64) -> Option<Self> {
        let line = text(host, &format!("/proc/{pid}/stat"))?;
        // The name may contain anything, brackets and blanks included.
        let (head, tail) = line.rsplit_once(')')?;
        let name = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            name,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            ticks: number(11)?.saturating_add(number(12)?),
            start: number(19)?,
        })
    }
}

fn state_name(letter: char) -> String {
    let name = match letter {
        'R' => "running",
        'S' => "sleep",
        'D' => "blocked",
        'T' | 't' => "stop",
        'Z' | 'X' => "zombie",
        'I' => "idle",
        'W' => "wait",
        'P' => "parked",
        _ => return letter.to_string(),
    };
    name.to_owned()
}

/// A command line as a person reads it, or the name of who has none.
fn shown(command: &str, name: &str) -> String {
    let words = command.trim_end_matches('\0').replace('\0', " ");
    if words.is_empty() {
        return format!("[{name}]");
    }
    let end = words.floor_char_boundary(MAX_COMMAND);
    words[..end].to_owned()
}

/// The text of one of the kernel's files, if it can be read; names may be in any encoding.
fn text(host: &View, path: &str) -> Option<String> {
    let bytes = host.read_bytes(path, MAX_READ).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// An amount of memory in bytes from a table that has it in KiB.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The number of the account with whose rights a process runs.
fn effective_uid(status: &str) -> Option<&str> {
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1))
}

fn exists(host: &View, pid: i64) -> bool {
    host.exists(&format!("/proc/{pid}"))
}

#[expect(clippy::cast_precision_loss, reason = "nobody counts ticks beyond 2^52")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS as f64
}

#[expect(clippy::cast_precision_loss, reason = "two digits of it are shown")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { round(part as f64 / whole as f64 * 100.0) }
}

fn round(share: f64) -> f64 {
    (share * 100.0).round() / 100.0
}

fn gone(pid: i64) -> Error {
    Error::new(Kind::NotFound, format!("there is no process {pid}"))
}

/// The number of one process. Zero and less mean several to the kernel.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(try_from = "i64")]
#[schemars(extend("minimum" = 1))]
struct Pid(i64);

impl TryFrom<i64> for Pid {
    type Error = &'static str;

    fn try_from(pid: i64) -> Result<Self, Self::Error> {
        (pid >= 1).then_some(Self(pid)).ok_or("pid: not at least 1")
    }
}

#[cfg(test)]
mod tests;
