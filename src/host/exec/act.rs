//! What is done rather than brought about: at most once, and never undone.

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Executor, group};
use crate::error::{Error, Kind, Result};
use crate::host::command::{self, Done};
use crate::host::hands;
use crate::host::journal::{Entry, Event, HOST, Planned};
use crate::host::want::{Act, Run};
use crate::job::Task;

/// An act that came to its end.
pub(super) struct Acted {
    pub(super) done: Done,
    /// False where it was so already.
    pub(super) changed: bool,
}

impl Executor {
    /// Does something for the first time. The inner error is the answer to the job.
    pub(super) fn act(&self, job: &str, act: &Act) -> Result<Result<Acted>> {
        let done = match act {
            Act::Run(run) if self.is_confined() => self.run_apart(job, run)?,
            Act::Run(run) => self.run_here(job, run),
            Act::Operate(what) => self.operate(job, what),
            Act::Signal { pid, start, signal } => self.signal(*pid, *start, *signal),
            Act::Confirm { job: about } => {
                let confirmed = self.core.journal.confirm(about, job);
                return Ok(confirmed.map(|changed| Acted { done: Done::default(), changed }));
            }
            Act::Revert { job: about } => return self.revert(about, job),
            Act::Power(power) => return self.go_down(job, power, None),
        };
        Ok(done.map(|done| Acted { done, changed: true }))
    }

    /// Answers for an act that an earlier attempt wrote down and did not see the end of.
    pub(super) fn again(
        &self,
        task: &Task,
        planned: &Planned,
        act: &Act,
        entry: &Entry,
    ) -> Result<Result<Acted>> {
        let mut started = entry.started;
        if entry.handed.is_some() {
            if let Some(answer) = self.rejoin_act(&task.job)? {
                return Ok(Result::from(answer).map(|done| Acted { done, changed: true }));
            }
            started = self.core.journal.load(&task.job)?.started;
        }
        let is_same_boot = planned.boot == self.boot();
        match act {
            // Its group is on record before it runs, so it never ran.
            Act::Run(_) if started.is_none() => match self.too_late(task) {
                Some(error) => Ok(Err(error)),
                None => self.act(&task.job, act),
            },
            Act::Run(_) => {
                if let Some((leader, start)) = started.filter(|_| is_same_boot) {
                    group::end(&task.job, leader, start);
                }
                Ok(Err(interrupted()))
            }
            // Whoever asked for it has no part in it; the unit itself tells.
            Act::Operate(what) if is_same_boot => {
                let done = self.operated(what);
                Ok(done.map(|done| Acted { done, changed: true }))
            }
            Act::Operate(_) | Act::Signal { .. } => Ok(Err(interrupted())),
            Act::Power(_) if !is_same_boot => {
                Ok(Ok(Acted { done: Done::default(), changed: true }))
            }
            // The host did not go down since, so nothing is done twice.
            Act::Power(power) => self.go_down(&task.job, power, self.too_late(task)),
            // These say the same however often they are asked.
            Act::Confirm { .. } | Act::Revert { .. } => self.act(&task.job, act),
        }
    }

    /// Runs a program as a child, which ends with its group when time is up. A unit does the same
    /// with it: a service manager expands what its command lines hold, and keeps all that is
    /// printed.
    pub(super) fn run_here(&self, job: &str, run: &Run) -> Result<Done> {
        let child = self.start(job, run, |pid, start| {
            self.core.journal.write(job, &Event::Started { pid, start })
        })?;
        let _mortal = self.core.gate.mortal(Pid::from_child(&child));
        let program = std::path::Path::new(&run.program);
        let done = command::follow(child, program, &[], run.limit);
        // 128 and SIGKILL, which is how time up ends it.
        let is_killed = done.as_ref().is_ok_and(|done| done.exit_code == 137);
        if is_killed && self.core.gate.is_over() { Err(interrupted()) } else { done }
    }

    fn signal(&self, pid: i32, start: u64, signal: i32) -> Result<Done> {
        let gone = || Error::new(Kind::NotFound, format!("process {pid} has ended"));
        let failed = |error: Errno| match error {
            Errno::SRCH | Errno::INVAL => gone(),
            error => hands::failed("signal", format!("process {pid}"), "CAP_KILL", error),
        };
        let process = Pid::from_raw(pid).filter(|_| pid > 1);
        let (Some(process), Some(signal)) = (process, Signal::from_named_raw(signal)) else {
            let message = format!("process {pid} cannot be sent signal {signal}");
            return Err(Error::new(Kind::InvalidInput, message));
        };
        let process = pidfd_open(process, PidfdFlags::empty()).map_err(failed)?;
        // Looked at only now: the handle stays with the process, the number does not.
        let about = self.view().read(&format!("/proc/{pid}/stat")).map_err(|_| gone())?;
        let fields = about.rsplit_once(')').map_or("", |(_, fields)| fields);
        if fields.split_whitespace().nth(19) != Some(start.to_string().as_str()) {
            return Err(gone());
        }
        pidfd_send_signal(&process, signal).map_err(failed)?;
        Ok(Done::default())
    }

    /// Takes the change of `job` back, which waits to be confirmed, because the job `by` says so.
    fn revert(&self, job: &str, by: &str) -> Result<Result<Acted>> {
        let turn = self.core.journal.lock(HOST)?;
        let mut entry = self.core.journal.load(job)?;
        if entry.back.is_some() && entry.outcome.is_none() {
            // Somebody was stopped on the way back.
            self.settle_one(&turn, job)?;
            entry = self.core.journal.load(job)?;
        }
        let changed = entry.waits();
        if changed {
            self.take_back_now(&turn, job, "somebody asked for it", Some(by))?;
        } else if entry.back.is_none() || entry.outcome.is_none() {
            let message = format!("job {job} does not wait for confirmation");
            return Ok(Err(Error::new(Kind::Conflict, message)));
        }
        let was_asked = entry.back.is_some_and(|back| back.by.as_deref() == Some(by));
        Ok(Ok(Acted { done: Done::default(), changed: changed || was_asked }))
    }
}

pub(super) fn interrupted() -> Error {
    let message = "it was interrupted and may have taken effect; look at the host";
    Error::new(Kind::Interrupted, message)
}
