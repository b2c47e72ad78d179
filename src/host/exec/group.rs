//! The processes of an act: started on a leash, so that who they are is on record before the
//! first of them runs, and ended by somebody who takes over.

use std::io::{Read, Write};
use std::process::{Child, Command};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Executor;
use crate::error::{Error, Kind, Result};
use crate::host::command::{self, ENVIRONMENT};
use crate::host::want::Run;
use crate::sys;

/// In the environment of everything that an act starts.
const MARK: &str = "OSAPI_JOB_ID";

impl Executor {
    /// Starts the program of an act; `record` is told number and start time of the leader of its
    /// group, and the program never runs if that fails.
    pub(super) fn start(
        &self,
        job: &str,
        run: &Run,
        record: impl FnOnce(i32, u64) -> Result<()>,
    ) -> Result<Child> {
        let program = self.core.root.program(&run.program)?;
        let failed = command::cannot_run(&program);
        let cwd = run.cwd.as_deref().unwrap_or("/");
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        let dir = self.core.root.open(cwd, flags).map_err(|error| {
            let message = format!("cannot run it in {cwd}: {error}");
            Error::new(Kind::InvalidInput, message).because(std::io::Error::from(error))
        })?;
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()));
        let ((told, tell), (go, let_go)) = (pipe()?, pipe()?);
        let mut command = Command::new(&program);
        let at = std::os::fd::AsRawFd::as_raw_fd(&dir);
        command.args(&run.args).env_clear().envs(ENVIRONMENT).env(MARK, job);
        // The child has the same descriptors until it becomes the program.
        command.current_dir(format!("/proc/self/fd/{at}"));
        sys::hold(&mut command, sys::Leash { tell, go }, &let_go);
        std::thread::scope(|scope| {
            let starting = scope.spawn(move || {
                let started = command::spawn(&mut command, false, None);
                // Closes our copies of the child's ends, which the other thread waits for.
                drop(command);
                started
            });
            let mut pid = [0; 4];
            let begun = std::fs::File::from(told).read_exact(&mut pid);
            let recorded = begun.is_ok().then(|| {
                let pid = i32::from_ne_bytes(pid);
                record(pid, started(pid).unwrap_or_default())
            });
            if matches!(recorded, Some(Ok(()))) {
                let _ = std::fs::File::from(let_go).write_all(&[1]);
            } else {
                drop(let_go);
            }
            let child = starting.join().unwrap_or_else(|_| {
                Err(std::io::Error::other("the thread that starts programs panicked"))
            });
            match recorded {
                Some(Err(error)) => Err(error),
                _ => child.map_err(&failed),
            }
        })
    }
}

/// When a process started, in ticks since the boot; that and its number are its identity.
pub(super) fn started(pid: i32) -> Option<u64> {
    stat(pid).map(|(_, start)| start)
}

/// The group of a process, and when it started.
fn stat(pid: i32) -> Option<(i32, u64)> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    Some((field(&stat, 2)?.parse().ok()?, began(&stat)?))
}

/// When a process started, of the line that the kernel has about it.
pub(super) fn began(stat: &str) -> Option<u64> {
    field(stat, 19)?.parse().ok()
}

/// A field of that line after the name of the program, which may be made of anything.
fn field(stat: &str, at: usize) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(at)
}

/// Ends what is left of the group that an earlier agent started for `job`.
///
/// Only what can be told from a later process with the same number: the leader by its start time,
/// others by the group and by the mark in their environment.
pub(super) fn end(job: &str, leader: i32, start: u64) {
    let mark = format!("{MARK}={job}");
    let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in numbers {
        let Some(process) = Pid::from_raw(pid) else { continue };
        let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else { continue };
        // Looked at only now: the handle stays with the process, the number does not.
        let Some((group, began)) = stat(pid) else { continue };
        let is_leader = pid == leader && began == start;
        let is_marked = || {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        };
        if is_leader || group == leader && began >= start && is_marked() {
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        }
    }
}
