//! Running a program to its end, and its children with it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::journal::Turn;
use crate::error::{Error, Kind, Result};

mod lines;

pub use lines::{Line, Lines};

/// How many bytes of each stream are kept; the rest is read and dropped.
const MAX_OUTPUT: usize = 256 * 1024;
/// How many bytes each of them takes in an answer, where much of it may have to be escaped.
const MAX_TEXT: usize = 352 * 1024;
/// How many of them an error message repeats.
const MAX_TOLD: usize = 2048;
/// How many bytes of a line are heard.
const MAX_HEARD: usize = 1024;
/// How long output is waited for that only those hold who were left behind by the program.
const LINGER: Duration = Duration::from_secs(1);

/// What a program left behind.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Done {
    /// The exit status, or 128 and the number of the signal that ended the program.
    pub exit_code: i32,
    /// At most 256 KiB; what is not UTF-8 is replaced.
    pub stdout: String,
    /// At most 256 KiB; what is not UTF-8 is replaced.
    pub stderr: String,
    /// Whether more was printed than is kept here.
    pub truncated: bool,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
}

impl Done {
    /// What was printed, provided that `program` succeeded.
    pub fn success(self, program: &str) -> Result<String> {
        if self.exit_code == 0 {
            return Ok(self.stdout);
        }
        let said = told(&self.stderr, &self.stdout);
        let message = format!("{program} exited with {}{said}", self.exit_code);
        Err(Error::new(Kind::HostFailed, message))
    }
}

/// The end of what a program said, for a message.
fn told(stderr: &str, stdout: &str) -> String {
    let said = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
    if said.is_empty() {
        return String::new();
    }
    let from = said.len().saturating_sub(MAX_TOLD);
    let from = (from..said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(0);
    format!(": {}{}", if from > 0 { "… " } else { "" }, &said[from..])
}

/// Runs `program` as a child in a process group of its own, and lets it hold `turn` until it
/// ends.
pub(super) fn child(
    program: &Path,
    args: &[&str],
    stdin: &[u8],
    limit: Duration,
    turn: &Turn,
) -> Result<Done> {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(ENVIRONMENT);
    let child = spawn(&mut command, !stdin.is_empty(), Some(turn)).map_err(cannot_run(program))?;
    follow(child, program, stdin, limit)
}

/// The same for a program that takes nothing and whose lines are heard as it prints them.
pub(super) fn heard(
    program: &Path,
    args: &[&str],
    limit: Duration,
    turn: &Turn,
    hear: &mut dyn FnMut(&str),
) -> Result<Done> {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(ENVIRONMENT);
    let child = spawn(&mut command, false, Some(turn)).map_err(cannot_run(program))?;
    follow_heard(child, program, &[], limit, hear)
}

/// Runs `program`, which is part of no change, as a child that holds nobody's turn and keeps what it
/// needs meanwhile in `scratch`.
pub(crate) fn query(
    program: &Path,
    args: &[&str],
    scratch: &Path,
    limit: Duration,
) -> Result<Done> {
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(ENVIRONMENT).env("TMPDIR", scratch).current_dir("/");
    let child = spawn(&mut command, false, None).map_err(cannot_run(program))?;
    follow(child, program, &[], limit)
}

pub(super) fn cannot_run(program: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |error| {
        let message = format!("cannot run {}: {error}", program.display());
        Error::new(Kind::HostFailed, message).because(error)
    }
}

/// Starts a child that inherits `turn` and nobody else's.
///
/// A child gets whatever can be inherited while it is started. So that is one at a time:
/// otherwise a long act, started while a change is at work, would hold the host's lock as well.
pub(super) fn spawn(
    command: &mut Command,
    has_stdin: bool,
    turn: Option<&Turn>,
) -> std::io::Result<Child> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let stdin = if has_stdin { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mark = |flags| turn.map_or(Ok(()), |turn| fcntl_setfd(turn, flags));
    mark(FdFlags::empty())?;
    let child = command.spawn();
    mark(FdFlags::CLOEXEC)?;
    child
}

/// A stream of a child, as far as it is kept.
struct Stream {
    pipe: Option<File>,
    kept: Vec<u8>,
    is_cut: bool,
    /// The line that has begun, as far as it is heard.
    line: Vec<u8>,
}

impl Stream {
    fn new(pipe: Option<impl Into<std::os::fd::OwnedFd>>) -> std::io::Result<Self> {
        let pipe = pipe.map(|pipe| File::from(pipe.into()));
        pipe.as_ref().map(|pipe| fcntl_setfl(pipe, OFlags::NONBLOCK)).transpose()?;
        Ok(Self { pipe, kept: Vec::new(), is_cut: false, line: Vec::new() })
    }

    /// Takes what has come so far.
    fn take(&mut self) {
        self.take_heard(&mut |_| ());
    }

    fn take_heard(&mut self, hear: &mut dyn FnMut(&str)) {
        let mut buffer = [0; 16 * 1024];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) => {
                    let room = MAX_OUTPUT.saturating_sub(self.kept.len());
                    self.kept.extend_from_slice(&buffer[..n.min(room)]);
                    self.is_cut |= n > room;
                    for byte in &buffer[..n] {
                        if *byte == b'\n' {
                            hear(&String::from_utf8_lossy(&self.line));
                            self.line.clear();
                        } else if self.line.len() < MAX_HEARD {
                            self.line.push(*byte);
                        }
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => self.pipe = None,
            }
        }
    }

    fn text(mut self) -> (String, bool) {
        self.take();
        // Somebody whom the program left behind still holds it.
        let (text, is_cut) = printable(&self.kept);
        (text, is_cut || self.is_cut || self.pipe.is_some())
    }
}

/// What was printed as text, and whether it had to be cut.
fn printable(bytes: &[u8]) -> (String, bool) {
    let text = String::from_utf8_lossy(bytes);
    let (kept, _) = bounded(&text, MAX_TEXT);
    (kept.to_owned(), kept.len() < text.len())
}

/// As much of `text` as takes at most `room` bytes in JSON, and how many it takes.
pub(super) fn bounded(text: &str, room: usize) -> (&str, usize) {
    let mut taken = 0;
    for (at, char) in text.char_indices() {
        let cost = match char {
            '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
            char if char < ' ' => 6,
            char => char.len_utf8(),
        };
        if taken + cost > room {
            return (&text[..at], taken);
        }
        taken += cost;
    }
    (text, taken)
}

/// Follows `child` to its end, or kills its group once `limit` is over.
///
/// What it leaves running on purpose is left running, but not waited for.
pub(super) fn follow(child: Child, program: &Path, stdin: &[u8], limit: Duration) -> Result<Done> {
    follow_heard(child, program, stdin, limit, &mut |_| ())
}

/// The same, with somebody who hears the lines of its standard output as they come.
fn follow_heard(
    mut child: Child,
    program: &Path,
    mut stdin: &[u8],
    limit: Duration,
    hear: &mut dyn FnMut(&str),
) -> Result<Done> {
    let failed = cannot_run(program);
    let begun = Instant::now();
    let pid = Pid::from_child(&child);
    let mut input = child.stdin.take().map(|pipe| File::from(std::os::fd::OwnedFd::from(pipe)));
    if let Some(input) = &input {
        fcntl_setfl(input, OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
    }
    let mut out = Stream::new(child.stdout.take()).map_err(&failed)?;
    let mut err = Stream::new(child.stderr.take()).map_err(&failed)?;
    let end = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
    let mut deadline = begun + limit;
    let (mut status, mut is_late) = (None, false);
    loop {
        if status.is_none() {
            status = child.try_wait().map_err(&failed)?;
            if status.is_some() {
                deadline = deadline.min(Instant::now() + LINGER);
            }
        }
        out.take_heard(hear);
        err.take();
        if let Some(pipe) = &mut input {
            // A program may exit without reading what it was given.
            match pipe.write(stdin) {
                Ok(n) => stdin = &stdin[n..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => stdin = &[],
            }
            if stdin.is_empty() {
                input = None;
            }
        }
        if status.is_some() && out.pipe.is_none() && err.pipe.is_none() {
            break;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if status.is_some() {
                break;
            }
            is_late = true;
            let _ = kill_process_group(pid, Signal::KILL);
            status = Some(child.wait().map_err(&failed)?);
            deadline = Instant::now() + LINGER;
            continue;
        }
        let mut fds = Vec::with_capacity(4);
        if status.is_none() {
            fds.push(PollFd::new(&end, PollFlags::IN));
        }
        fds.extend(
            [&out.pipe, &err.pipe]
                .into_iter()
                .flatten()
                .map(|pipe| PollFd::new(pipe, PollFlags::IN)),
        );
        fds.extend(input.iter().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        let wait = Timespec::try_from(left).map_err(|error| {
            Error::new(Kind::Internal, "a limit is out of range").because(error)
        })?;
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    let (stdout, cut_out) = out.text();
    let (stderr, cut_err) = err.text();
    if is_late {
        let (program, seconds) = (program.display(), limit.as_secs_f64());
        let said = told(&stderr, &stdout);
        let message = format!("{program} ran for more than {seconds} s and was killed{said}");
        return Err(Error::new(Kind::HostFailed, message));
    }
    let code =
        status.map(|status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
    let duration_ms = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    let (exit_code, truncated) = (code.unwrap_or(-1), cut_out || cut_err);
    Ok(Done { exit_code, stdout, stderr, truncated, duration_ms })
}

pub(super) const ENVIRONMENT: [(&str, &str); 4] = [
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("LC_ALL", "C.UTF-8"),
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    // Enabling a unit is systemd's own business, not that of scripts it would run beside.
    ("SYSTEMCTL_SKIP_SYSV", "1"),
];
