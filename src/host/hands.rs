//! What it takes to change a host. Only whoever has its turn has them, and nothing else changes
//! anything; how a cell is assigned, its kind knows.

use std::io::ErrorKind;
use std::time::Duration;

use super::cell::{self, Blobs, Digest, Value};
use super::command;
use super::exec::News;
use super::journal::{Journal, Turn};
use super::plan::{Set, Step};
use super::root::Root;
use super::transient::{Start, Transient};
use super::view::View;
use super::want::Refresh;
use crate::error::{Error, Kind, Result};
use crate::job::Progress;

pub(super) struct Hands<'a> {
    pub(super) root: &'a Root,
    pub(super) journal: &'a Journal,
    pub(super) turn: &'a Turn,
    pub(super) view: View,
    pub(super) limit: Duration,
    /// The job that this is for, and who hears how far it is.
    pub(super) job: &'a str,
    pub(super) news: &'a News,
}

/// An assignment, and what its cell holds right now.
pub(super) struct Due<'a> {
    pub(super) set: &'a Set,
    pub(super) now: Value,
}

impl Hands<'_> {
    /// Takes a step, or several that one command carries out. `dues` says which cells are to be
    /// assigned, and `blobs` has small contents.
    pub(super) fn take(&self, steps: &[Step], dues: &[Due], blobs: &Blobs) -> Result<()> {
        if let [Step::Refresh(refresh)] = steps {
            return self.refresh(refresh);
        }
        match dues {
            [] => Ok(()),
            [due] => self.assign(due, blobs),
            dues => cell::assign_all(self, dues, blobs),
        }
    }

    pub(super) fn assign(&self, due: &Due, blobs: &Blobs) -> Result<()> {
        let kind = due.set.cell.kind();
        if due.now == due.set.to { kind.sweep(self, due.set) } else { kind.take(self, due, blobs) }
    }

    /// Writes what `digest` names to `file`.
    pub(super) fn fill(
        &self,
        file: &mut std::fs::File,
        digest: &Digest,
        blobs: &Blobs,
    ) -> std::io::Result<()> {
        if let Some(bytes) = blobs.get(digest) {
            return std::io::Write::write_all(file, bytes);
        }
        let mut source = self.journal.content(digest).map_err(std::io::Error::other)?;
        std::io::copy(&mut source, file).map(drop)
    }

    fn refresh(&self, refresh: &Refresh) -> Result<()> {
        let args: Vec<&str> = refresh.args.iter().map(String::as_str).collect();
        self.run(&refresh.program, &args, &[])
    }

    /// Has what is due in `seconds` taken back, by somebody who outlives this process.
    pub(super) fn alarm(&self, unit: &str, seconds: u64) -> Result<()> {
        let (osapi, _) = self.root.osapi()?;
        let transient = Transient {
            name: unit.to_owned(),
            about: format!("Take the change of OSAPI job {} back if nobody confirms it", self.job),
            job: self.job,
            start: Start::In(Duration::from_secs(seconds)),
            environment: vec![format!("OSAPI_AGENT_STATE_DIR={}", self.journal.dir().display())],
            ..Transient::default()
        };
        let args = transient.args(&[&osapi.to_string_lossy(), "settle"]);
        self.run("systemd-run", &args.iter().map(String::as_str).collect::<Vec<_>>(), &[])
    }

    /// Runs a command of a change, which holds the turn as well: whoever takes over after a crash
    /// waits for it.
    pub(super) fn run(&self, program: &str, args: &[&str], stdin: &[u8]) -> Result<()> {
        let path = self.root.command(program)?;
        let done = command::child(&path, args, stdin, self.limit, self.turn)?;
        done.success(program).map(drop)
    }
}

/// Lines are told as they come, and only their latest.
impl Hands<'_> {
    /// Runs a command of a change, as [`run`](Self::run) does, and tells what `read` makes of the
    /// lines that it prints.
    pub(super) fn run_heard(
        &self,
        program: &str,
        args: &[&str],
        read: fn(&str) -> Option<Progress>,
    ) -> Result<()> {
        let path = self.root.command(program)?;
        let mut hear = |line: &str| {
            if let Some(progress) = read(line) {
                self.news.tell(self.job, &progress);
            }
        };
        let done = command::heard(&path, args, self.limit, self.turn, &mut hear)?;
        done.success(program).map(drop)
    }
}

/// Why something could not be done to `what`; `right` is what the agent would need for it.
pub(super) fn failed(
    verb: &str,
    what: impl std::fmt::Display,
    right: &str,
    error: impl Into<std::io::Error>,
) -> Error {
    let error = error.into();
    let (kind, remedy) = match error.kind() {
        ErrorKind::PermissionDenied if !right.is_empty() => {
            (Kind::AgentUnprivileged, format!("; run the agent with {right}"))
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => (Kind::Full, "; make room".to_owned()),
        _ => (Kind::HostFailed, String::new()),
    };
    Error::new(kind, format!("cannot {verb} {what}: {error}{remedy}")).because(error)
}
