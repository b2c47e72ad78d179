//! Forward or back: brings a plan about as a whole or not at all, and goes on with what an
//! earlier process left half done.

use super::{Executor, uptime};
use crate::error::{Error, ErrorBody, Kind, Result};
use crate::host::cell::Cell;
use crate::host::hands::Due;
use crate::host::journal::{Back, Event, HOST, Planned, Turn, Work};
use crate::host::look::For;
use crate::host::plan::{Plan, Set, Step};
use crate::job::{Outcome, Task};
use crate::op::Agent;

/// How often a job is resumed before the only way is back.
const FORWARD: u32 = 3;
/// How often it is resumed before there is no way at all.
const BACKWARD: u32 = 6;

/// What a pass over a plan has to reckon with.
#[derive(Clone, Copy)]
struct Pass {
    limit: std::time::Duration,
    /// Any step may have been begun before and not ended.
    again: bool,
    /// What does not outlive a boot is as the boot made it.
    rebooted: bool,
    back: bool,
}

impl Executor {
    /// Brings to an end what an earlier process left half done, and takes back what nobody
    /// confirmed in time; says which jobs that were. One that cannot be settled does not keep the
    /// others from it.
    ///
    /// Called when the agent starts, by the alarm set for a confirmation, and early in every
    /// boot, which ends all waiting.
    pub fn settle(&self) -> Result<Vec<String>> {
        let turn = self.core.journal.lock(HOST)?;
        let (mut settled, mut trouble) = (Vec::new(), None);
        for job in self.core.journal.open_jobs()? {
            match self.settle_one(&turn, &job) {
                Ok(true) => settled.push(job),
                Ok(false) => {}
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(settled), Err)
    }

    /// Nothing is built on what is half done, nor on what may be taken back any moment.
    pub(super) fn clear_the_way(&self, turn: &Turn) -> Result<()> {
        for job in self.core.journal.open_jobs()? {
            self.settle_one(turn, &job)?;
            if self.core.journal.load(&job)?.waits() {
                let message = format!("job {job} waits to be confirmed; confirm or revert it");
                return Err(Error::new(Kind::Conflict, message));
            }
        }
        Ok(())
    }

    /// Goes on with `job` where a process left it. Says whether anything was left to do.
    pub(super) fn settle_one(&self, turn: &Turn, job: &str) -> Result<bool> {
        let mut entry = self.core.journal.load(job)?;
        if entry.is_handed() && entry.planned.as_ref().is_some_and(|it| it.work.is_plan()) {
            // Its unit goes on without the agent that had it started.
            self.rejoin(job)?;
            entry = self.core.journal.load(job)?;
        }
        let Some(planned) = &entry.planned else {
            // Nothing was begun; what was refused is on record already.
            return if entry.is_closed() { self.file(job) } else { Ok(false) };
        };
        if entry.is_closed() {
            return self.file(job);
        }
        // An act is not repeated; what became of it is found out when it is delivered again.
        let Work::Plan(plan) = &planned.work else { return Ok(false) };
        let stands = entry.applied || entry.outcome.is_some();
        let why = if entry.confirmed.is_none() && self.is_over(planned) {
            Some(Error::new(Kind::Reverted, "taken back, because nobody confirmed it in time"))
        } else if !stands && entry.resumed >= FORWARD {
            Some(Error::new(Kind::Internal, "taken back, because no agent survived it"))
        } else {
            None
        };
        let all = |why: Error| Back { why: why.body(), steps: plan.steps.len(), by: None };
        let back = entry.back.clone().or_else(|| why.map(all));
        let is_for_later = planned.deadline.is_none() || plan.needs_the_system();
        if back.is_none() && stands || self.is_booting() && is_for_later {
            if let Some(due) = planned.deadline.filter(|_| entry.waits())
                && !self.core.root.has_service_manager()
            {
                self.watch(due)?;
            }
            return Ok(false);
        }
        // What stands was brought about in full; what holds something else now is not half done.
        let again = !stands || entry.back.is_some();
        // It only counts; a full disk must not keep anything from being taken back.
        let _ = self.core.journal.write(job, &Event::Resumed);
        let result = match back {
            Some(_) if entry.resumed >= BACKWARD => {
                Err(Error::new(Kind::Internal, "left half done, because no agent survived it"))
            }
            Some(back) => Err(self.take_back(turn, job, planned, plan, again, &back)?),
            None => self.bring_about(turn, job, planned, plan, true, || self.holds(plan))?,
        };
        match result {
            Ok(()) => self.core.journal.write(job, &Event::Applied)?,
            Err(error) => {
                self.finish(job, &Outcome::Failed { error: error.body() })?;
                self.ring();
            }
        }
        Ok(true)
    }

    fn file(&self, job: &str) -> Result<bool> {
        self.core.journal.close(job).map(|()| false)
    }

    /// Takes back at once what waits to be confirmed, because nobody will be there to do so when
    /// the time is over. Says which jobs that were; an error if one is not taken back in full.
    pub fn settle_unconfirmed(&self) -> Result<Vec<String>> {
        // Where nothing waits, nobody who is at work is waited for. While something does, no other
        // change begins, so that the turn is free before long.
        if self.unconfirmed()?.is_empty() {
            return Ok(Vec::new());
        }
        let turn = self.core.journal.lock(HOST)?;
        let jobs = self.unconfirmed()?;
        for job in &jobs {
            self.take_back_now(&turn, job, "nobody had confirmed it before OSAPI goes", None)?;
            if let Some(Outcome::Failed { error }) = self.core.journal.load(job)?.outcome
                && !error.not_restored.is_empty()
            {
                let message = format!("job {job}: {}", error.message);
                return Err(Error::new(Kind::HostFailed, message));
            }
        }
        Ok(jobs)
    }

    fn unconfirmed(&self) -> Result<Vec<String>> {
        let mut jobs = self.core.journal.open_jobs()?;
        let mut trouble = None;
        jobs.retain(|job| match self.core.journal.load(job) {
            Ok(entry) => entry.waits(),
            Err(error) => {
                trouble = Some(error);
                false
            }
        });
        trouble.map_or(Ok(jobs), Err)
    }

    /// Ends the waiting of `job` before its time; for the job `by`, where one says so.
    pub(super) fn take_back_now(
        &self,
        turn: &Turn,
        job: &str,
        because: &str,
        by: Option<&str>,
    ) -> Result<()> {
        let entry = self.core.journal.load(job)?;
        let Some(planned) = &entry.planned else { return Ok(()) };
        let Work::Plan(plan) = &planned.work else { return Ok(()) };
        let why = Error::new(Kind::Reverted, format!("taken back, because {because}"));
        let by = by.map(str::to_owned);
        let back = Back { why: why.body(), steps: plan.steps.len(), by };
        let error = self.take_back(turn, job, planned, plan, false, &back)?;
        self.finish(job, &Outcome::Failed { error: error.body() })?;
        self.ring();
        Ok(())
    }

    /// Applies `plan` and checks it, or takes it back: as a whole or not at all.
    pub(super) fn bring_about<T>(
        &self,
        turn: &Turn,
        job: &str,
        planned: &Planned,
        plan: &Plan,
        again: bool,
        check: impl FnOnce() -> Result<T>,
    ) -> Result<Result<T>> {
        let mut begun = 0;
        let pass = self.pass(planned, again, false);
        match self.apply(turn, job, plan, pass, &mut begun).and_then(|()| check()) {
            Ok(answer) => self.core.journal.remember(job, plan).map(|()| Ok(answer)),
            Err(error) => {
                // An earlier process may have been ahead of where this one was stopped.
                let steps = if again { plan.steps.len() } else { begun };
                let back = Back { why: error.body(), steps, by: None };
                self.take_back(turn, job, planned, plan, true, &back).map(Err)
            }
        }
    }

    /// Undoes as much of `plan` as was begun and says with what error the job ends.
    fn take_back(
        &self,
        turn: &Turn,
        job: &str,
        planned: &Planned,
        plan: &Plan,
        again: bool,
        back: &Back,
    ) -> Result<Error> {
        // The host goes first: should this fail, whoever resumes the job decides anew.
        let _ = self.core.journal.write(job, &Event::Back(back.clone()));
        let inverse = plan.first(back.steps).inverse();
        let (off, mut left) = self.undo(turn, job, &inverse, self.pass(planned, again, true));
        self.core.journal.restore(job, &inverse, &off)?;
        left.splice(0..0, off.iter().map(Cell::to_string));
        let ErrorBody { message, .. } = &back.why;
        let message = match &left[..] {
            [] => message.clone(),
            left => format!("{message}; not restored: {}", left.join(", ")),
        };
        let why = ErrorBody { message, not_restored: left, ..back.why.clone() };
        Ok(why.into())
    }

    fn apply(
        &self,
        turn: &Turn,
        job: &str,
        plan: &Plan,
        pass: Pass,
        begun: &mut usize,
    ) -> Result<()> {
        for together in plan.steps.chunk_by(Step::goes_with) {
            // Whatever is refused here was not begun.
            let mut dues = Vec::with_capacity(together.len());
            for step in together {
                dues.extend(self.due(step, pass)?);
            }
            let taken = self.take(turn, job, together, &dues, &plan.blobs, pass.limit);
            // Nor was what is found out there to be no longer as it was planned.
            if !matches!(&taken, Err(error) if error.kind() == Kind::Stale) {
                *begun += together.len();
            }
            taken?;
        }
        Ok(())
    }

    /// Returns the cells that could not be restored, and what else could not be undone.
    fn undo(&self, turn: &Turn, job: &str, inverse: &Plan, pass: Pass) -> (Vec<Cell>, Vec<String>) {
        let mut left = Vec::new();
        let inverse = if self.is_booting() { inverse.early() } else { inverse.clone() };
        // Which cells are off is found out below.
        let warn = |error| tracing::warn!("job {job} cannot be taken back in full: {error}");
        for together in inverse.steps.chunk_by(Step::goes_with) {
            let mut dues = Vec::with_capacity(together.len());
            for step in together {
                match self.due(step, pass) {
                    Ok(due) => dues.extend(due),
                    Err(error) => warn(error),
                }
            }
            let taken = self.take(turn, job, together, &dues, &inverse.blobs, pass.limit);
            match (taken, together) {
                (Ok(()), _) => {}
                (Err(error), [Step::Refresh(_)]) => left.push(error.to_string()),
                (Err(error), _) => warn(error),
            }
        }
        let view = self.view();
        let is_off = |set: &&Set| {
            let now = view.value(&set.cell).ok();
            now.as_ref() != Some(&set.to) && (!pass.rebooted || set.cell.kind().is_persistent())
        };
        let stays = |set: &Set| set.cell.kind().stays(&view, &set.from, &set.to);
        left.extend(inverse.sets().filter_map(stays));
        let mut off: Vec<_> = inverse.sets().filter(is_off).map(|set| set.cell.clone()).collect();
        off.dedup();
        (off, left)
    }

    /// What is in the cell that `step` is to assign, if it is; an error if that is neither what
    /// the plan found there nor what it puts there.
    fn due<'a>(&self, step: &'a Step, pass: Pass) -> Result<Option<Due<'a>>> {
        let Step::Set(set) = step else { return Ok(None) };
        let now = self.view().value(&set.cell)?;
        let is_expected = now == set.to || now == set.from;
        let is_half_done = pass.again && !set.cell.kind().is_atomic(&set.from, &set.to);
        let is_reset = pass.rebooted && !set.cell.kind().is_persistent();
        if is_expected || is_half_done || is_reset && !pass.back {
            return Ok(Some(Due { set, now }));
        }
        if is_reset {
            return Ok(None);
        }
        let message = format!("{} was changed by somebody else meanwhile", set.cell);
        Err(Error::new(Kind::Conflict, message))
    }

    /// Whether the provider, asked again, wants nothing more.
    pub(super) fn check(&self, provider: Agent, task: &Task) -> Result<()> {
        match self.plan(provider, task, For::Change)? {
            Work::Plan(rest) => {
                let differ = rest.sets().filter(|set| set.from != set.to);
                converged(differ.map(|set| &set.cell))
            }
            Work::Act(_) => Ok(()),
        }
    }

    /// The same, as far as can be told without the task.
    fn holds(&self, plan: &Plan) -> Result<()> {
        let view = self.view();
        let after = view.after(plan);
        let is_off = |cell: &&Cell| view.value(cell).ok() != after.value(cell).ok();
        converged(plan.sets().map(|set| &set.cell).filter(is_off))
    }

    /// Whether the time for confirmation is over. A boot ends it.
    fn is_over(&self, planned: &Planned) -> bool {
        let is_late = |deadline| uptime() >= deadline || planned.boot != self.boot();
        planned.deadline.is_some_and(is_late)
    }

    fn pass(&self, planned: &Planned, again: bool, back: bool) -> Pass {
        Pass { limit: planned.limit, again, rebooted: planned.boot != self.boot(), back }
    }
}

fn converged<'a>(off: impl Iterator<Item = &'a Cell>) -> Result<()> {
    let off: Vec<_> = off.map(Cell::to_string).collect();
    if off.is_empty() {
        return Ok(());
    }
    let message = format!("applied, and yet not as wanted: {}", off.join(", "));
    Err(Error::new(Kind::NotConverged, message))
}
