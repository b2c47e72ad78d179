//! What it takes to change a host. Only whoever has its turn has them, and nothing else changes
//! anything; how a cell is assigned, its kind knows.

use std::time::Duration;

use super::cell::Value;
use super::command::{self, Done};
use super::journal::{Journal, Turn};
use super::plan::{Set, Step};
use super::root::Root;
use super::view::View;
use super::want::{Act, Refresh, Run};
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

/// An assignment, and what the cell holds right now.
pub(super) struct Due<'a> {
    pub(super) set: &'a Set,
    pub(super) now: Value,
}

impl Hands<'_> {
    /// Takes one step, or several that one command carries out; `dues` says what they find.
    pub(super) fn take(&self, steps: &[Step], dues: &[Due]) -> Result<()> {
        if let [Step::Refresh(refresh)] = steps {
            return self.refresh(refresh);
        }
        let (done, due): (Vec<&Due>, Vec<&Due>) =
            dues.iter().partition(|due| due.now == due.set.to);
        for Due { set, .. } in done {
            set.cell.kind().sweep(self);
        }
        match due[..] {
            [] => Ok(()),
            [Due { set, now }] => set.cell.kind().assign(self, now, &set.to),
            _ => Err(Error::new(Kind::Internal, "no command assigns these together")),
        }
    }

    fn refresh(&self, refresh: &Refresh) -> Result<()> {
        let args: Vec<&str> = refresh.args.iter().map(String::as_str).collect();
        self.run(&refresh.program, &args, &[])
    }

    /// Does something once; `again` says that an earlier process may have begun to.
    pub(super) fn act(&self, act: &Act, again: bool, same_boot: bool) -> Result<Done> {
        let unknown =
            || Error::new(Kind::Interrupted, "it was interrupted and may have taken effect");
        let done = Done::default();
        match act {
            // A unit's name is taken once per boot, so starting it again picks up the first run.
            Act::Run(_) if again && !(same_boot && self.outlive) => Err(unknown()),
            Act::Run(Run { program, args, .. }) => {
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                self.output(program, &args, &[])
            }
            Act::Confirm { job } => self.journal.confirm(job).map(|()| done),
            Act::Revert { .. } => Err(unknown()),
            Act::Signal { .. } if again => Err(unknown()),
            Act::Signal { pid, start, signal } => {
                let stat = self.view.read(&format!("/proc/{pid}/stat"))?;
                let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
                if fields.split_whitespace().nth(19) != Some(start.to_string().as_str()) {
                    return Err(Error::new(Kind::NotFound, format!("process {pid} has ended")));
                }
                self.run("kill", &[&format!("-{signal}"), &pid.to_string()], &[]).map(|()| done)
            }
        }
    }

    /// Has what is due in `seconds` taken back, by somebody who outlives this process.
    pub(super) fn alarm(&self, unit: &str, seconds: u64) -> Result<()> {
        let osapi = std::env::current_exe().map_err(|e| failed("cannot find osapi", e))?;
        let (unit, delay) = (format!("--unit={unit}"), format!("--on-active={seconds}s"));
        let (osapi, precise) = (osapi.to_string_lossy(), "--timer-property=AccuracySec=100ms");
        let args = ["--quiet", "--collect", &unit, &delay, precise, "--", &osapi, "settle"];
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
            command::unit(&self.unit(program), &path, args, stdin, self.limit, None, self.turn)
        } else {
            command::child(&path, args, stdin, self.limit, self.turn)
        }
    }

    fn unit(&self, program: &str) -> String {
        format!("{}.{program}.service", self.name)
    }
}

pub(super) fn failed(message: impl Into<String>, error: std::io::Error) -> Error {
    Error::new(Kind::HostFailed, message).because(error)
}
