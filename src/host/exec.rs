//! Applies plans: once, completely or not at all, and with a way back.
//!
//! Every change to a host goes through [`Executor::run`]. It writes down what it is about to do,
//! assigns only cells that still hold what the plan started from, and lets the provider plan
//! again: the job has succeeded if and only if nothing is left to do.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::cell::{Cell, Digest};
use super::hands::{Due, Hands};
use super::journal::{Back, Entry, Event, HOST, Journal, Planned, Turn, Work};
use super::look::look;
use super::plan::{Plan, Set, Step};
use super::root::Root;
use super::view::View;
use crate::error::{Error, ErrorBody, Kind, Result};
use crate::job::{Outcome, Task};
use crate::op::{Access, AgentOp, Intent, Op};

/// How often a job is resumed before the only way is back.
const FORWARD: u32 = 3;
/// How often it is resumed before there is no way at all.
const BACKWARD: u32 = 6;

/// How long the means to undo are kept. Whatever is open, or may be delivered again, is kept
/// beyond that.
#[derive(Clone, Copy, Debug)]
pub struct UndoBounds {
    pub age: Duration,
    pub bytes: u64,
    /// How long after its end a job may be delivered again.
    pub redelivery: Duration,
}

impl Default for UndoBounds {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        Self { age: days(30), bytes: 256 * 1024 * 1024, redelivery: days(2) }
    }
}

pub struct Executor {
    root: Root,
    journal: Journal,
    is_booting: bool,
}

/// What a pass over a plan has to reckon with.
#[derive(Clone, Copy)]
struct Pass {
    limit: Duration,
    /// Any step may have been begun before and not ended.
    again: bool,
    /// What does not outlive a boot is as the boot made it.
    rebooted: bool,
    back: bool,
}

impl Executor {
    /// For the host under `root`, with the directory `state` as memory.
    pub fn new(root: Root, state: &Path, bounds: UndoBounds) -> Result<Self> {
        let _ = bounds;
        Ok(Self { root, journal: Journal::open(state)?, is_booting: false })
    }

    /// For use before the system is up.
    pub fn booting(mut self) -> Self {
        self.is_booting = true;
        self
    }

    pub fn view(&self) -> View {
        View::new(self.root.clone(), self.journal.clone())
    }

    /// Carries out `task`. However often it is delivered, it takes effect once, and whoever asks
    /// again gets the same answer.
    ///
    /// An error means that there is no answer yet, and that `task` has to be delivered again.
    pub fn run(&self, op: &Op, task: &Task) -> Result<Outcome> {
        let provider = op.run;
        if provider.access() == Access::Read {
            return Ok(self.show(provider, task).into());
        }
        if task.options.dry_run {
            return Ok(self.preview(provider, task).into());
        }
        if let Err(error) = Journal::check(&task.job) {
            return Ok(Err(error).into());
        }
        // What is done once waits for nobody, except where it is delivered twice.
        let is_act = provider.access() == Access::Execute;
        let turn = self.journal.lock(if is_act { &task.job } else { HOST })?;
        self.settle_one(&turn, &task.job)?;
        let entry = self.journal.load(&task.job)?;
        if let Some(outcome) = entry.outcome {
            return Ok(outcome);
        }
        let outcome = self.attempt(&turn, op, provider, task, entry)?.into();
        self.finish(&turn, &task.job, &outcome)?;
        Ok(outcome)
    }

    /// Makes a change permanent that waits for this.
    pub fn confirm(&self, job: &str) -> Result<()> {
        self.journal.confirm(job)
    }

    /// Brings to an end what an earlier process left half done, and takes back what nobody
    /// confirmed in time; says which jobs that were. One that cannot be settled does not keep the
    /// others from it.
    ///
    /// Called when the agent starts, by the alarm set for a confirmation, and early in every
    /// boot, which ends all waiting.
    pub fn settle(&self) -> Result<Vec<String>> {
        let turn = self.journal.lock(HOST)?;
        let (mut settled, mut trouble) = (Vec::new(), None);
        for job in self.journal.open_jobs()? {
            match self.settle_one(&turn, &job) {
                Ok(true) => settled.push(job),
                Ok(false) => {}
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(settled), Err)
    }

    /// What `task` asks for, and nothing done about it.
    fn plan(&self, provider: &dyn AgentOp, task: &Task) -> Result<Work> {
        let view = self.view().of_task(&task.job, &task.objects);
        look(&self.journal.scratch(), || match provider.intend(&view, &task.params)? {
            Intent::Look => Ok(Work::Plan(Plan::default())),
            Intent::Want(want) => Plan::of(&view, want).map(Work::Plan),
            Intent::Act(act) => Ok(Work::Act(act)),
        })
    }

    fn show(&self, provider: &dyn AgentOp, task: &Task) -> Result<Json> {
        let view = self.view().of_task(&task.job, &task.objects);
        look(&self.journal.scratch(), || provider.show(&view, &task.params))
    }

    fn preview(&self, provider: &dyn AgentOp, task: &Task) -> Result<Json> {
        let work = self.plan(provider, task)?;
        let id = self.name(task, &work)?;
        match work {
            Work::Act(act) => Ok(json!({ "plan": id, "act": act })),
            Work::Plan(plan) => Ok(json!({
                "plan": id,
                "changed": !plan.is_empty(),
                "changes": plan.changes(&self.view()),
                "residue": plan.residue(),
            })),
        }
    }

    /// Names what would happen if `task` were run now. It is keyed, because otherwise parameters
    /// could be guessed from it.
    fn name(&self, task: &Task, work: &Work) -> Result<Digest> {
        let work = match work {
            Work::Act(act) => json!(act),
            Work::Plan(plan) => json!([plan.digest(), plan.found()]),
        };
        let text = json!([self.journal.key()?, task.op, task.params, work]).to_string();
        Ok(Digest::of(text))
    }

    /// The inner error is the answer to the job, the outer one means that there is none yet.
    fn attempt(
        &self,
        turn: &Turn,
        op: &Op,
        provider: &dyn AgentOp,
        task: &Task,
        mut entry: Entry,
    ) -> Result<Result<Json>> {
        let job = &task.job;
        let again = entry.planned.is_some();
        if !again {
            if let Err(error) = self.begin(turn, op, provider, task) {
                return Ok(Err(error));
            }
            // What is carried out is what another process would read.
            entry = self.journal.load(job)?;
        }
        let Some(planned) = &entry.planned else {
            return Err(Error::new(Kind::Unavailable, "the journal lost a record"));
        };
        let answer = match &planned.work {
            Work::Act(act) => {
                let same_boot = planned.boot == self.boot();
                let done = self.hands(turn, job, planned.limit).act(act, again, same_boot);
                return Ok(done.and_then(|done| provider.tell(&task.params, done)));
            }
            // Somebody else brought it about, who could not tell.
            Work::Plan(_) if again => Ok(self.show(provider, task).unwrap_or_default()),
            Work::Plan(plan) => self.bring_about(turn, job, planned, plan, false, || {
                self.check(provider, task)?;
                self.show(provider, task)
            })?,
        };
        Ok(answer.map(|mut answer| {
            answer["changed"] = json!(!planned.changes.is_empty());
            answer["changes"] = json!(planned.changes);
            answer
        }))
    }

    /// Decides what to do and writes it down, together with the way back.
    fn begin(&self, turn: &Turn, op: &Op, provider: &dyn AgentOp, task: &Task) -> Result<()> {
        // Only here: what has begun comes to its end, however late its task is delivered again.
        if task.left_ms == 0 {
            return Err(Error::new(Kind::Expired, format!("{} came too late", op.id)));
        }
        if provider.access() == Access::Write {
            self.clear_the_way(turn)?;
        }
        let (view, work) = (self.view(), self.plan(provider, task)?);
        if let Some(seen) = &task.options.plan
            && *seen != self.name(task, &work)?.to_string()
        {
            let message = "the host or the request changed since the plan was made";
            return Err(Error::new(Kind::Stale, message));
        }
        let mut changes = Vec::new();
        match &work {
            Work::Plan(plan) => {
                self.journal.keep(plan, &view)?;
                changes = plan.changes(&view);
            }
            Work::Act(_) if task.options.confirm.is_some() => {
                let message = format!("{} cannot be taken back", op.id);
                return Err(Error::new(Kind::InvalidInput, message));
            }
            Work::Act(_) => {}
        }
        let (boot, limit) = (self.boot(), op.timeout);
        let deadline = task.options.confirm.map(|seconds| uptime() + seconds);
        if let Some(seconds) = task.options.confirm {
            // Before the record, so that no record is without its alarm. One that finds no
            // record does nothing, and the next attempt needs a name of its own.
            let unit = format!("osapi-alarm-{}-{}", task.job, uptime());
            self.hands(turn, &task.job, limit).alarm(&unit, seconds)?;
        }
        let op = op.id.to_owned();
        let planned = Planned { op, work, changes, limit, boot, deadline };
        self.journal.write(&task.job, &Event::Planned(planned))
    }

    /// Nothing is built on what is half done, nor on what may be taken back any moment.
    fn clear_the_way(&self, turn: &Turn) -> Result<()> {
        for job in self.journal.open_jobs()? {
            self.settle_one(turn, &job)?;
            if self.journal.load(&job)?.waits() {
                let message = format!("job {job} waits to be confirmed");
                return Err(Error::new(Kind::Conflict, message));
            }
        }
        Ok(())
    }

    /// Goes on with `job` where a process left it. Says whether anything was left to do.
    fn settle_one(&self, turn: &Turn, job: &str) -> Result<bool> {
        let entry = self.journal.load(job)?;
        if entry.is_closed() {
            return self.journal.close(job).map(|()| false);
        }
        // An act is not repeated; what became of it is found out when it is delivered again.
        let Some(planned @ Planned { work: Work::Plan(plan), .. }) = &entry.planned else {
            return Ok(false);
        };
        let stands = entry.applied || entry.outcome.is_some();
        let why = if !entry.confirmed && self.is_over(planned) {
            Some(Error::new(Kind::Reverted, "taken back, because nobody confirmed it in time"))
        } else if !stands && entry.resumed >= FORWARD {
            Some(Error::new(Kind::Internal, "taken back, because no agent survived it"))
        } else {
            None
        };
        let all = |why: Error| Back { why: why.body(), steps: plan.steps.len() };
        let back = entry.back.clone().or_else(|| why.map(all));
        let is_for_later = planned.deadline.is_none() || plan.needs_the_system();
        if back.is_none() && stands || self.is_booting && is_for_later {
            return Ok(false);
        }
        // What stands was brought about in full; what holds something else now is not half done.
        let again = !stands || entry.back.is_some();
        // It only counts; a full disk must not keep anything from being taken back.
        let _ = self.journal.write(job, &Event::Resumed);
        self.hands(turn, job, planned.limit).wait_for_others()?;
        let result = match back {
            Some(_) if entry.resumed >= BACKWARD => {
                Err(Error::new(Kind::Internal, "left half done, because no agent survived it"))
            }
            Some(back) => Err(self.take_back(turn, job, planned, plan, again, &back)?),
            None => self.bring_about(turn, job, planned, plan, true, || self.holds(plan))?,
        };
        match result {
            Ok(()) => self.journal.write(job, &Event::Applied)?,
            Err(error) => self.finish(turn, job, &Outcome::Failed { error: error.body() })?,
        }
        Ok(true)
    }

    /// Applies `plan` and checks it, or takes it back: as a whole or not at all.
    fn bring_about<T>(
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
            Ok(answer) => self.journal.remember(job, plan).map(|()| Ok(answer)),
            Err(error) => {
                // An earlier process may have been ahead of where this one was stopped.
                let steps = if again { plan.steps.len() } else { begun };
                let back = Back { why: error.body(), steps };
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
        let _ = self.journal.write(job, &Event::Back(back.clone()));
        let inverse = plan.first(back.steps).inverse();
        let left = self.undo(turn, job, &inverse, self.pass(planned, again, true));
        self.journal.remember(job, &inverse)?;
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
            let dues = self.dues(together, pass)?;
            *begun += together.len();
            self.hands(turn, &format!("{job}.{begun}"), pass.limit).take(together, &dues)?;
        }
        Ok(())
    }

    /// Returns what could not be undone.
    fn undo(&self, turn: &Turn, job: &str, inverse: &Plan, pass: Pass) -> Vec<String> {
        let mut left = Vec::new();
        let inverse = if self.is_booting { inverse.early() } else { inverse.clone() };
        for (number, together) in inverse.steps.chunk_by(Step::goes_with).enumerate() {
            let hands = self.hands(turn, &format!("{job}.back-{number}"), pass.limit);
            let taken = self.dues(together, pass).and_then(|dues| hands.take(together, &dues));
            left.extend(taken.err().map(|error| error.to_string()));
        }
        let view = self.view();
        let is_off = |set: &&Set| {
            let now = view.value(&set.cell).ok();
            now.as_ref() != Some(&set.to) && (!pass.rebooted || set.cell.kind().is_persistent())
        };
        left.extend(inverse.sets().filter(is_off).map(|set| set.cell.to_string()));
        left
    }

    /// Which of `steps` assign something, and what is in those cells; an error if that is
    /// neither what the plan found there nor what it puts there.
    fn dues<'a>(&self, steps: &'a [Step], pass: Pass) -> Result<Vec<Due<'a>>> {
        let view = self.view();
        let mut dues = Vec::new();
        for step in steps {
            let Step::Set(set) = step else { continue };
            let now = view.value(&set.cell)?;
            let is_expected = now == set.to || now == set.from;
            let is_half_done = pass.again && !set.cell.kind().is_atomic(&set.from, &set.to);
            let is_reset = pass.rebooted && !set.cell.kind().is_persistent();
            if is_expected || is_half_done || is_reset && !pass.back {
                dues.push(Due { set, now });
            } else if !is_reset {
                let message = format!("{} was changed by somebody else meanwhile", set.cell);
                return Err(Error::new(Kind::Conflict, message));
            }
        }
        Ok(dues)
    }

    /// Whether the provider, asked again, wants nothing more.
    fn check(&self, provider: &dyn AgentOp, task: &Task) -> Result<()> {
        match self.plan(provider, task)? {
            Work::Plan(rest) => converged(rest.sets().map(|set| &set.cell)),
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

    fn finish(&self, turn: &Turn, job: &str, outcome: &Outcome) -> Result<()> {
        self.journal.write(job, &Event::Finished(outcome.clone()))?;
        self.hands(turn, job, Duration::ZERO).let_go();
        if self.journal.load(job)?.is_closed() { self.journal.close(job) } else { Ok(()) }
    }

    /// Whether the time for confirmation is over. A boot ends it.
    fn is_over(&self, planned: &Planned) -> bool {
        let is_late = |deadline| uptime() >= deadline || planned.boot != self.boot();
        planned.deadline.is_some_and(is_late)
    }

    fn pass(&self, planned: &Planned, again: bool, back: bool) -> Pass {
        Pass { limit: planned.limit, again, rebooted: planned.boot != self.boot(), back }
    }

    fn boot(&self) -> String {
        self.view().read("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    }

    fn hands<'a>(&'a self, turn: &'a Turn, name: &str, limit: Duration) -> Hands<'a> {
        let name = format!("osapi-job-{name}");
        // Early in a boot the service manager has its hands full and us to wait for.
        let outlive = self.root.has_systemd() && !self.is_booting;
        let (root, journal, view) = (&self.root, &self.journal, self.view());
        Hands { root, journal, turn, view, name, limit, outlive }
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

/// Seconds since this boot, however long the host slept and whatever was done to its clock.
fn uptime() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec.unsigned_abs()
}
