//! What a program prints, line by line, for as long as somebody wants to hear it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{ENVIRONMENT, cannot_run, spawn, told};
use crate::error::{Error, Kind, Result};

/// The longest line, in bytes; a longer one is left out.
const MAX_LINE: usize = 1024 * 1024;
/// How much of what it complains about is kept.
const MAX_COMPLAINT: usize = 4096;

/// A program that only looks, and that ends when this is dropped.
pub struct Lines {
    program: String,
    child: Child,
    out: Option<File>,
    err: Option<File>,
    /// What has come of the lines that are next.
    buffer: Vec<u8>,
    /// Up to where there is no end of a line in there.
    searched: usize,
    /// The line that is coming was too long.
    is_skipping: bool,
    complaint: Vec<u8>,
}

/// What came before time was up.
#[derive(Debug, Eq, PartialEq)]
pub enum Line {
    /// Without its end.
    Is(Vec<u8>),
    NotYet,
    /// The program has ended well and has no more to say.
    Over,
}

impl Lines {
    pub(in crate::host) fn of(program: &Path, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(ENVIRONMENT).current_dir("/");
        let failed = cannot_run(program);
        let mut child = spawn(&mut command, false, None).map_err(&failed)?;
        let pipe = |pipe: Option<std::os::fd::OwnedFd>| {
            pipe.as_ref().map(|pipe| fcntl_setfl(pipe, OFlags::NONBLOCK)).transpose()?;
            Ok::<_, std::io::Error>(pipe.map(File::from))
        };
        let out = pipe(child.stdout.take().map(Into::into));
        let err = pipe(child.stderr.take().map(Into::into));
        let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut lines = Self {
            program,
            child,
            out: None,
            err: None,
            buffer: Vec::new(),
            searched: 0,
            is_skipping: false,
            complaint: Vec::new(),
        };
        // From here on it ends with `lines`.
        (lines.out, lines.err) = (out.map_err(&failed)?, err.map_err(&failed)?);
        Ok(lines)
    }

    /// The next line, if it comes within `patience`.
    pub fn next(&mut self, patience: Duration) -> Result<Line> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(line) = self.take() {
                return Ok(Line::Is(line));
            }
            if self.out.is_none() {
                return self.end();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let fds = [&self.out, &self.err].into_iter().flatten();
            let mut fds: Vec<_> = fds.map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
            let wait = Timespec::try_from(left).map_err(|error| {
                Error::new(Kind::Internal, "a wait is out of range").because(error)
            })?;
            match poll(&mut fds, Some(&wait)) {
                Ok(0) => return Ok(Line::NotYet),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(cannot_run(Path::new(&self.program))(error.into()));
                }
            }
            self.read();
        }
    }

    /// The first line that is here in full.
    fn take(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            let Some(end) = end.map(|end| end + self.searched) else {
                self.searched = self.buffer.len();
                if self.buffer.len() > MAX_LINE {
                    (self.is_skipping, self.searched) = (true, 0);
                    self.buffer.clear();
                }
                return None;
            };
            let rest = self.buffer.split_off(end + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            line.pop();
            self.searched = 0;
            if !std::mem::take(&mut self.is_skipping) {
                return Some(line);
            }
        }
    }

    fn read(&mut self) {
        let mut bytes = [0; 16 * 1024];
        if let Some(n) = some(&mut self.out, &mut bytes) {
            self.buffer.extend_from_slice(&bytes[..n]);
        }
        if let Some(n) = some(&mut self.err, &mut bytes) {
            let room = MAX_COMPLAINT.saturating_sub(self.complaint.len());
            self.complaint.extend_from_slice(&bytes[..n.min(room)]);
        }
    }

    /// What there is to say of a program that prints no more.
    fn end(&mut self) -> Result<Line> {
        let failed = |error| cannot_run(Path::new(&self.program))(error);
        let status = self.child.wait().map_err(failed)?;
        let mut bytes = [0; MAX_COMPLAINT];
        while let Some(n) = some(&mut self.err, &mut bytes).filter(|n| *n > 0) {
            let room = MAX_COMPLAINT.saturating_sub(self.complaint.len());
            self.complaint.extend_from_slice(&bytes[..n.min(room)]);
        }
        let complaint = String::from_utf8_lossy(&self.complaint);
        // Some programs call it a failure that there is nothing to say.
        if status.success() || complaint.trim().is_empty() {
            return Ok(Line::Over);
        }
        let message = format!("{} failed{}", self.program, told(&complaint, ""));
        Err(Error::new(Kind::HostFailed, message))
    }
}

/// Reads what is there; None for what comes later or not at all.
fn some(pipe: &mut Option<File>, bytes: &mut [u8]) -> Option<usize> {
    match pipe.as_mut()?.read(bytes) {
        Ok(0) => {
            *pipe = None;
            None
        }
        Ok(n) => Some(n),
        Err(error) => {
            use std::io::ErrorKind::{Interrupted, WouldBlock};
            if !matches!(error.kind(), WouldBlock | Interrupted) {
                *pipe = None;
            }
            None
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn lines(script: &str) -> Lines {
        Lines::of(Path::new("/bin/sh"), &["-c", script]).unwrap()
    }

    #[test]
    fn lines_come_as_they_are_printed() {
        let mut lines = lines("printf 'a\\n\\nb\\nno end'; exit 0");
        for expected in ["a", "", "b"] {
            assert_eq!(lines.next(LONG).unwrap(), Line::Is(expected.into()));
        }
        assert_eq!(lines.next(LONG).unwrap(), Line::Over);
        assert_eq!(lines.next(LONG).unwrap(), Line::Over);
    }

    #[test]
    fn whoever_has_nothing_to_say_is_not_waited_for() {
        let mut lines = lines("echo first; exec sleep 600");
        assert_eq!(lines.next(LONG).unwrap(), Line::Is(b"first".to_vec()));
        assert_eq!(lines.next(Duration::from_millis(1)).unwrap(), Line::NotYet);
        let pid = Pid::from_child(&lines.child);
        drop(lines);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let mut lines = lines("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo after");
        assert_eq!(lines.next(LONG).unwrap(), Line::Is(b"after".to_vec()));
    }

    #[test]
    fn a_complaint_is_an_error() {
        let mut complaining = lines("echo one; echo 'no such thing' >&2; exit 3");
        assert_eq!(complaining.next(LONG).unwrap(), Line::Is(b"one".to_vec()));
        let error = complaining.next(LONG).unwrap_err();
        assert!(error.to_string().contains("no such thing"), "{error}");
        assert_eq!(lines("exit 1").next(LONG).unwrap(), Line::Over);
    }
}
