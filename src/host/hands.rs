//! What it takes to change a host. Only whoever has its turn has them, and nothing else changes
//! anything; how a cell is assigned, its kind knows.

use std::io::ErrorKind;
use std::time::Duration;

use super::cell::{Blobs, Digest, Value};
use super::command::{self, Done};
use super::journal::{Journal, Turn};
use super::plan::Step;
use super::root::Root;
use super::view::View;
use super::want::{Refresh, Run};
use crate::error::{Error, Kind, Result};

pub(super) struct Hands<'a> {
    pub(super) root: &'a Root,
    pub(super) journal: &'a Journal,
    pub(super) turn: &'a Turn,
    pub(super) view: View,
    /// Names this step of this job; a command run under it is found again after a crash.
    pub(super) name: String,
    pub(super) limit: Duration,
    /// Whether commands are handed to the service manager, which outlives this process.
    pub(super) outlive: bool,
}

impl Hands<'_> {
    /// Takes a step. `now` is what its cell holds, if it is to be assigned at all, and `blobs`
    /// has small contents.
    pub(super) fn take(&self, step: &Step, now: Option<&Value>, blobs: &Blobs) -> Result<()> {
        match (step, now) {
            (Step::Refresh(refresh), _) => self.refresh(refresh),
            (Step::Set(set), Some(now)) if *now == set.to => {
                set.cell.kind().sweep(self);
                Ok(())
            }
            (Step::Set(set), Some(now)) => set.cell.kind().assign(self, now, &set.to, blobs),
            (Step::Set(_), None) => Ok(()),
        }
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

    /// Runs an act as a unit. Its name is taken once per boot, so running it again picks up the
    /// first run.
    pub(super) fn unit_of(&self, run: &Run) -> Result<Done> {
        let args: Vec<&str> = run.args.iter().map(String::as_str).collect();
        let path = self.root.program(&run.program)?;
        let (unit, cwd) = (self.unit(&run.program), run.cwd.as_deref());
        command::unit(&unit, &path, &args, &[], run.limit, cwd, self.turn)
    }

    /// Has what is due in `seconds` taken back, by somebody who outlives this process.
    pub(super) fn alarm(&self, unit: &str, seconds: u64) -> Result<()> {
        let osapi = std::env::current_exe()
            .map_err(|error| failed("find", "the program osapi", "", error))?;
        let (unit, delay) = (format!("--unit={unit}"), format!("--on-active={seconds}s"));
        let (osapi, precise) = (osapi.to_string_lossy(), "--timer-property=AccuracySec=100ms");
        let state = format!("--setenv=OSAPI_AGENT_STATE_DIR={}", self.journal.dir().display());
        let args = ["--quiet", "--collect", &unit, &delay, precise, &state, "--", &osapi, "settle"];
        let path = self.root.command("systemd-run")?;
        command::child(&path, &args, &[], self.limit, self.turn)?.success("systemd-run").map(drop)
    }

    /// Waits for what an earlier process started for the job and did not see the end of.
    pub(super) fn wait_for_others(&self) -> Result<()> {
        if self.outlive { command::wait(&format!("{}.*", self.name), self.turn) } else { Ok(()) }
    }

    /// Forgets how the commands of the job ended.
    pub(super) fn let_go(&self) {
        if self.outlive {
            command::forget(&format!("{}.*", self.name), self.turn);
        }
    }

    pub(super) fn run(&self, program: &str, args: &[&str], stdin: &[u8]) -> Result<()> {
        let result = self.output(program, args, stdin).and_then(|output| output.success(program));
        if self.outlive {
            command::forget(&self.unit(program), self.turn);
        }
        result.map(drop)
    }

    fn output(&self, program: &str, args: &[&str], stdin: &[u8]) -> Result<Done> {
        let path = self.root.command(program)?;
        if self.outlive {
            let unit = self.unit(program);
            command::unit(&unit, &path, args, stdin, self.limit, None, self.turn)
        } else {
            command::child(&path, args, stdin, self.limit, self.turn)
        }
    }

    fn unit(&self, program: &str) -> String {
        let program = program.rsplit('/').next().unwrap_or_default();
        format!("{}.{program}.service", self.name)
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
