//! Applies plans: once, completely or not at all, and with a way back.
//!
//! Every change to a host goes through [`Executor::run`]. It writes down what it is about to do,
//! assigns only cells that still hold what the plan started from, and lets the provider plan
//! again: the job has succeeded if and only if nothing is left to do.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value as Json, json};

use self::alarm::Alarm;
use self::answer::{tell, told, until};
use self::gate::Gate;
use super::cell::Digest;
use super::hands::Hands;
use super::journal::{Amendment, At, Bounds, Entry, Event, HOST, Journal, Planned, Turn, Work};
use super::look::{self, Eyes, For, Passing};
use super::plan::Plan;
use super::root::Root;
use super::view::View;
use super::want::Act;
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::job::{Outcome, Task};
use crate::op::{Access, Agent, Intent, Op};

mod act;
mod alarm;
mod answer;
mod gate;
mod group;
mod news;
mod operate;
mod power;
mod settle;
mod unit;

pub use unit::has_journal;

pub use news::Listening;
pub(super) use news::News;

/// Cheap to clone; every clone is the same executor.
#[derive(Clone)]
pub struct Executor {
    core: Arc<Core>,
}

struct Core {
    root: Root,
    journal: Journal,
    bounds: Bounds,
    is_booting: AtomicBool,
    /// Whether what reaches beyond this process is left to units.
    has_units: AtomicBool,
    labels: Arc<BTreeMap<String, String>>,
    eyes: Eyes,
    gate: Gate,
    alarm: Arc<Alarm>,
    /// Rings when a change that stood was taken back.
    bell: Bell,
    news: News,
    /// Keeps a second agent away, once this one has said that it is an agent.
    agent: std::sync::OnceLock<Turn>,
}

/// Whether there is news, and who waits for it.
#[derive(Default)]
struct Bell {
    has_rung: Mutex<bool>,
    rings: Condvar,
}

/// What came of the decision what to do.
enum Begun {
    Planned(Box<Planned>),
    /// The host is as wanted already.
    Nothing,
}

impl Executor {
    /// For the host under `root`, with the directory `state` as memory.
    pub fn new(root: Root, state: &Path, bounds: Bounds) -> Result<Self> {
        Self::labelled(root, state, bounds, BTreeMap::new())
    }

    /// The same, of an agent that its configuration gives `labels`.
    pub fn labelled(
        root: Root,
        state: &Path,
        bounds: Bounds,
        labels: BTreeMap<String, String>,
    ) -> Result<Self> {
        let journal = Journal::open(state)?;
        let core = Core {
            root,
            eyes: Eyes::new(journal.scratch()),
            journal,
            bounds,
            is_booting: AtomicBool::new(false),
            has_units: AtomicBool::new(false),
            labels: Arc::new(labels),
            gate: Gate::default(),
            alarm: Arc::default(),
            bell: Bell::default(),
            news: News::new(state),
            agent: std::sync::OnceLock::new(),
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// For use before the system is up.
    pub fn booting(self) -> Self {
        self.core.is_booting.store(true, Ordering::Relaxed);
        self
    }

    /// Keeps every other agent away from the same memory for as long as this one lives.
    pub fn claim(&self) -> Result<()> {
        if self.core.agent.get().is_none() {
            let turn = self.core.journal.agent()?;
            let _ = self.core.agent.set(turn);
        }
        Ok(())
    }

    pub fn view(&self) -> View {
        let (root, journal) = (self.core.root.clone(), self.core.journal.clone());
        View::new(root, journal, self.is_confined()).labelled(&self.core.labels)
    }

    /// The host as `task` sees it, with the contents that it brings along.
    pub fn view_for(&self, task: &Task) -> View {
        self.view().of_task(task)
    }

    /// Whether the kernel holds back whoever plans or tells from writing.
    pub fn landlock(&self) -> bool {
        self.core.eyes.are_held()
    }

    /// Makes the calling thread one that may only look, for as long as it lives, so that reads
    /// and dry runs need no other thread. It must not be given changes.
    pub fn only_look(&self) -> Result<()> {
        self.core.eyes.only_look()
    }

    /// Carries out `task`. However often it is delivered, it takes effect once, and whoever asks
    /// again gets the same answer.
    ///
    /// An error means that there is no answer yet, and that `task` has to be delivered again.
    pub fn run(&self, op: &Op, task: &Task) -> Result<Outcome> {
        let provider = op.run;
        let access = provider.access();
        if task.options.dry_run && access != Access::Write {
            let message = format!("{} cannot tell beforehand what it would do", op.id);
            return Ok(Err(Error::new(Kind::NoPreview, message)).into());
        }
        if access == Access::Read {
            return Ok(self.show(provider, task, None, For::Read).into());
        }
        if task.options.dry_run {
            return Ok(self.preview(provider, task).into());
        }
        if let Err(error) = Journal::check(&task.job) {
            return Ok(Err(error).into());
        }
        if look::is_held() {
            return Err(Error::new(
                Kind::Internal,
                "a thread that may only look was given a change",
            ));
        }
        let _inside = self.core.gate.enter()?;
        // What is done once waits for nobody, except where it is delivered twice.
        let is_act = access == Access::Execute;
        let turn = self.core.journal.lock(if is_act { &task.job } else { HOST })?;
        if !is_act {
            self.settle_one(&turn, &task.job)?;
        }
        let entry = self.core.journal.load(&task.job)?;
        if let Some(outcome) = entry.outcome {
            return Ok(outcome);
        }
        let (answer, is_begun) = self.attempt(&turn, op, task, &entry)?;
        let outcome = Outcome::from(answer);
        if is_begun {
            self.finish(&task.job, &outcome)?;
            if task.options.confirm.is_some() && outcome.kind().is_some() {
                // It never stood, and this is the only answer there will be.
                self.core.journal.unmark(&task.job);
            }
        } else {
            self.core.journal.answer(&task.job, &self.finished(&outcome))?;
        }
        Ok(outcome)
    }

    /// Whether what becomes of `task` is in the journal: it was answered, or this operation was
    /// begun for this job.
    pub fn is_begun(&self, task: &Task) -> Result<bool> {
        if Journal::check(&task.job).is_err() {
            return Ok(false);
        }
        let entry = self.core.journal.load(&task.job)?;
        let is_same = |planned: &Planned| planned.op == task.op;
        Ok(entry.outcome.is_some() || entry.planned.as_deref().is_some_and(is_same))
    }

    /// Notes `outcome` as the answer to a job that was not begun, unless the journal has one.
    pub fn never(&self, job: &str, outcome: &Outcome) -> Result<()> {
        Journal::check(job)?;
        let _inside = self.core.gate.enter()?;
        let _turn = self.core.journal.lock(job)?;
        let entry = self.core.journal.load(job)?;
        if entry.outcome.is_some() || entry.planned.is_some() {
            return Ok(());
        }
        self.core.journal.answer(job, &self.finished(outcome))
    }

    /// Has `job` not begin, or not go on to what waits for its time. What else has begun comes to
    /// its end.
    pub fn call_off(&self, job: &str) {
        self.core.gate.call_off(job);
    }

    /// The answer of `job` is with whoever asked for it.
    pub fn let_go(&self, job: &str) {
        self.core.gate.forget(job);
    }

    /// Why `task` may not begin any more, if that is so.
    fn too_late(&self, task: &Task) -> Option<Error> {
        if self.core.gate.is_called_off(&task.job) {
            return Some(Error::new(Kind::Cancelled, "it was called off before it began"));
        }
        let message = format!("{} was not begun by its deadline", task.op);
        (task.left(Clock::default().uptime()) == 0).then(|| Error::new(Kind::Expired, message))
    }

    /// Makes a change permanent that waits for this. Says whether it did so far.
    pub fn confirm(&self, job: &str) -> Result<bool> {
        self.core.journal.confirm(job, "")
    }

    /// Which jobs were answered and taken back since, because nobody confirmed them or somebody
    /// asked for it: here or by another process, and until [`told`](Self::told).
    pub fn amendments(&self) -> Result<Vec<Amendment>> {
        self.core.journal.amendments()
    }

    /// Whoever was answered knows what became of `job` since.
    pub fn told(&self, job: &str) {
        self.core.journal.unmark(job);
    }

    /// Returns after `patience`, or as soon as this process takes a change back that stood.
    pub fn rest(&self, patience: Duration) {
        let bell = &self.core.bell;
        let has_rung = bell.has_rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = bell.rings.wait_timeout_while(has_rung, patience, |has_rung| !*has_rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    /// Listens to how far running jobs say they are. What was said before is forgotten.
    pub fn listen(&self) -> Result<Listening<'_>> {
        self.core.news.listen()
    }

    /// Ends whoever rests.
    fn ring(&self) {
        let bell = &self.core.bell;
        *bell.has_rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        bell.rings.notify_all();
    }

    /// Jobs whose changes wait to be confirmed; there is one at most.
    pub fn waiting(&self) -> Vec<String> {
        let jobs = self.core.journal.open_jobs().unwrap_or_default();
        let waits = |job: &String| self.core.journal.load(job).is_ok_and(|entry| entry.waits());
        jobs.into_iter().filter(waits).collect()
    }

    /// Forgets what is over and beyond the bounds; says how much. Called now and then when there
    /// is nothing else to do.
    pub fn prune(&self) -> Result<usize> {
        self.core.journal.prune(self.core.bounds, &self.at())
    }

    /// Whether content with this SHA-256, in hexadecimal, is on the disk.
    pub fn has_object(&self, digest: &str) -> bool {
        Digest::parse(digest).is_some_and(|digest| self.core.journal.has(&digest))
    }

    /// Puts content on the disk, for the tasks that name it.
    pub fn keep_object(&self, digest: &str, from: &mut dyn Read) -> Result<()> {
        let digest = Digest::parse(digest).ok_or_else(|| {
            Error::new(Kind::InvalidInput, format!("{digest:?} is no digest of an object"))
        })?;
        self.core.journal.keep_object(&digest, from)
    }

    /// Begins nothing any more. Waits for what is under way, for `patience` at most; then what
    /// is done once is killed and ends `interrupted`, and a change is left to the journal. What
    /// runs in a unit is not waited for: it goes on, and the next agent answers for it.
    pub fn stop(&self, patience: Duration) {
        self.core.gate.close(patience);
    }

    /// What `task` asks for, and nothing done about it.
    fn plan(&self, provider: Agent, task: &Task, who: For) -> Result<Work> {
        let view = self.view_for(task);
        let params = Passing::of(&task.params);
        self.core.eyes.look(who, move || match provider.intend(&view, &params)? {
            Intent::Look => Ok(Work::Plan(Plan::default())),
            Intent::Want(want) => Plan::of(&view, want).map(Work::Plan),
            Intent::Act(act) => Ok(Work::Act(act)),
        })
    }

    /// Names what would happen if `task` were run now. It is keyed, because otherwise parameters
    /// could be guessed from it.
    fn name(&self, task: &Task, work: &Work) -> Result<Digest> {
        let work = match work {
            Work::Act(act) => json!(act),
            Work::Plan(plan) => json!([plan.digest(), plan.found(), plan.sought()]),
        };
        Digest::of_json(&(self.core.journal.key()?, &task.op, &task.params, work))
    }

    /// Does what `task` asks for, and says whether it was begun. The inner error is the answer to
    /// the job, the outer one means that there is none yet.
    fn attempt(
        &self,
        turn: &Turn,
        op: &Op,
        task: &Task,
        entry: &Entry,
    ) -> Result<(Result<Json>, bool)> {
        let (provider, job) = (op.run, &task.job);
        if let Some(planned) = &entry.planned {
            let answer = match &planned.work {
                Work::Act(act) => self
                    .again(task, planned, act, entry)?
                    .and_then(|acted| tell(provider, task, acted)),
                // Somebody else brought it about, who could not tell.
                Work::Plan(plan) => {
                    let shown = self.show(provider, task, None, For::Change).unwrap_or_default();
                    Ok(until(told(shown, &planned.changes, plan), planned))
                }
            };
            return Ok((answer, true));
        }
        let planned = match self.begin(turn, op, task) {
            Err(error) => return Ok((Err(error), false)),
            Ok(Begun::Nothing) => {
                let shown = self.show(provider, task, None, For::Change);
                let answer = shown.map(|shown| told(shown, &[], &Plan::default()));
                return Ok((answer, false));
            }
            Ok(Begun::Planned(planned)) => planned,
        };
        let answer = match &planned.work {
            Work::Act(act) => self.act(job, act)?.and_then(|acted| tell(provider, task, acted)),
            Work::Plan(plan) => {
                let check = || {
                    self.check(provider, task)?;
                    self.show(provider, task, None, For::Change)
                };
                let shown = self.bring_about(turn, job, &planned, plan, false, check)?;
                shown.map(|shown| until(told(shown, &planned.changes, plan), &planned))
            }
        };
        Ok((answer, true))
    }

    /// Decides what to do and writes it down, together with the way back.
    fn begin(&self, turn: &Turn, op: &Op, task: &Task) -> Result<Begun> {
        let provider = op.run;
        // Only here: what has begun comes to its end, however late its task is delivered again.
        if let Some(error) = self.too_late(task) {
            return Err(error);
        }
        if provider.access() == Access::Write {
            self.clear_the_way(turn)?;
        }
        let mut work = self.plan(provider, task, For::Change)?;
        if let Some(seen) = &task.options.plan
            && *seen != self.name(task, &work)?.to_string()
        {
            let message = "the host or the request changed since the plan was made";
            return Err(Error::new(Kind::Stale, message));
        }
        let _alone = match &work {
            Work::Act(Act::Power(_)) => Some(self.may_go_down(&self.view_for(task))?),
            _ => None,
        };
        let view = self.view_for(task);
        let mut changes = Vec::new();
        match &mut work {
            Work::Plan(plan) if plan.is_empty() => return Ok(Begun::Nothing),
            Work::Plan(plan) => {
                changes = answer::changes(plan, &view);
                self.core.journal.keep(&task.job, plan, &view)?;
            }
            Work::Act(_) if task.options.confirm.is_some() || task.options.plan.is_some() => {
                let message = format!("{} cannot be taken back", op.id);
                return Err(Error::new(Kind::InvalidInput, message));
            }
            Work::Act(_) => {}
        }
        // What was waited for may have taken its time.
        if let Some(error) = self.too_late(task) {
            return Err(error);
        }
        let (boot, limit) = (self.boot(), op.timeout);
        let deadline = task.options.confirm.map(|seconds| uptime().saturating_add(seconds));
        if let Some(seconds) = task.options.confirm {
            // Before the record, so that no record is without its alarm. One that finds no
            // record does nothing, and the next attempt needs a name of its own.
            self.set_alarm(turn, &task.job, limit, seconds)?;
            self.core.journal.mark(&task.job)?;
        }
        let op = op.id.to_owned();
        let planned = Planned { op, work, changes, limit, boot, deadline };
        let event = Event::Planned(Box::new(planned));
        self.core.journal.write(&task.job, &event)?;
        match event {
            Event::Planned(planned) => Ok(Begun::Planned(planned)),
            _ => Ok(Begun::Nothing),
        }
    }

    fn finish(&self, job: &str, outcome: &Outcome) -> Result<()> {
        self.core.news.over(job);
        self.core.journal.write(job, &self.finished(outcome))?;
        if self.core.journal.load(job)?.is_closed() { self.core.journal.close(job) } else { Ok(()) }
    }

    fn finished(&self, outcome: &Outcome) -> Event {
        Event::Finished { outcome: outcome.clone(), at: self.at() }
    }

    fn at(&self) -> At {
        At { boot: self.boot(), uptime: uptime() }
    }

    /// Names this boot: that of the kernel, and the moment at which init was started, for a
    /// container boots while the kernel that it shares goes on.
    fn boot(&self) -> String {
        let host = self.view();
        let kernel = host.read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let init = host.read("/proc/1/stat").ok();
        match init.as_deref().and_then(group::began) {
            Some(began) => format!("{} {began}", kernel.trim()),
            None => kernel.trim().to_owned(),
        }
    }

    fn is_booting(&self) -> bool {
        self.core.is_booting.load(Ordering::Relaxed)
    }

    fn hands<'a>(&'a self, turn: &'a Turn, job: &'a str, limit: Duration) -> Hands<'a> {
        let Core { root, journal, news, .. } = &*self.core;
        Hands { root, journal, turn, view: self.view(), limit, job, news }
    }
}

/// Seconds since this boot, however long the host slept and whatever was done to its clock.
fn uptime() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec.unsigned_abs()
}
