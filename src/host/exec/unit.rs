//! What is done by units of the service manager, which have the rights of a class, since the
//! agent's own unit takes them away from it.
//!
//! A unit is named after its job and runs `osapi hand`, which is told nothing but job and number:
//! what it is to do, and what came of it, is in the journal. Nothing that a caller said is on a
//! command line, where a service manager would expand it, and no output goes to its log. The
//! service manager only starts and confines; that an errand is done once, and that it is waited
//! for after a restart, is the journal's business.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::act::interrupted;
use super::{Executor, group};
use crate::error::{Error, Kind, Result};
use crate::host::cell::{Blobs, Value};
use crate::host::command::{self, Done};
use crate::host::hands::{Due, Hands};
use crate::host::journal::{Answer, Event, Journal, Met, Part, Turn, Work};
use crate::host::plan::Step;
use crate::host::reach::Reach;
use crate::host::transient::Transient;
use crate::host::want::{Act, Run};
use crate::job::Progress;

/// How many commands one step may run, each within the limit of its operation.
const COMMANDS: u32 = 4;
/// How long a unit may take beside what it is there for.
const GRACE: Duration = Duration::from_secs(10);
/// How long it may take to end once it is told to.
const STOP: Duration = Duration::from_secs(5);
/// How long what is killed has to be gone, and how often that is looked at: its lock cannot be
/// waited for with a limit.
const KILLED: Duration = Duration::from_secs(2);
const PACE: Duration = Duration::from_millis(50);
/// How often an answer is written that the disk does not take, and how long after one another.
const ATTEMPTS: u32 = 30;
const AGAIN: Duration = Duration::from_secs(1);

/// What became of an errand.
enum Came {
    Answer(Answer),
    /// There is no answer and will be none: it did not begin, or did not get to its end.
    Lost(Error),
}

impl Executor {
    /// Leaves to units what reaches beyond this process, where there is a service manager that
    /// does what it is asked.
    pub fn use_units(&self) {
        let has_units = self.core.root.has_service_manager();
        self.core.has_units.store(has_units, Ordering::Relaxed);
    }

    /// Whether what reaches further is left to units. Not before the system is up.
    pub(super) fn is_confined(&self) -> bool {
        self.core.has_units.load(Ordering::Relaxed) && !self.is_booting()
    }

    /// Takes a step of `job`, or several that go together, here or where that has to be done.
    pub(super) fn take(
        &self,
        turn: &Turn,
        job: &str,
        steps: &[Step],
        dues: &[Due],
        blobs: &Blobs,
        limit: Duration,
    ) -> Result<()> {
        let reach = steps.iter().map(Step::reach).find(|reach| *reach != Reach::Here);
        let is_refresh = matches!(steps, [Step::Refresh(_)]);
        let has_work = is_refresh || dues.iter().any(|due| due.set.from != due.set.to);
        let Some(reach) = reach.filter(|_| has_work && self.is_confined()) else {
            return self.hands(turn, job, limit).take(steps, dues, blobs);
        };
        let due = |step: &Step| match step {
            Step::Set(set) => dues.iter().find(|due| std::ptr::eq(due.set, set)),
            Step::Refresh(_) => None,
        };
        let now = steps.iter().map(|step| due(step).map(|due| due.now.clone())).collect();
        let part = Part::Steps { steps: steps.to_vec(), now };
        let bound = limit.saturating_mul(COMMANDS);
        match self.hand_over(job, reach, part, limit, bound)? {
            Came::Answer(answer) => Result::from(answer).map(drop),
            Came::Lost(error) => Err(error),
        }
    }

    /// Runs the program of an act where it may do all that root may. The inner error is the
    /// answer to the job.
    pub(super) fn run_apart(&self, job: &str, run: &Run) -> Result<Result<Done>> {
        let _away = self.core.gate.away();
        match self.hand_over(job, Reach::Everything, Part::Act, run.limit, run.limit)? {
            Came::Answer(answer) => Ok(answer.into()),
            Came::Lost(error) => match self.core.journal.load(job)?.started {
                // Its group is on record before it runs, so it never ran.
                None => Ok(Err(error)),
                Some((leader, start)) => {
                    group::end(job, leader, start);
                    Ok(Err(interrupted()))
                }
            },
        }
    }

    /// Waits for the unit of an act that an earlier agent had started.
    pub(super) fn rejoin_act(&self, job: &str) -> Result<Option<Answer>> {
        let _away = self.core.gate.away();
        self.rejoin(job)
    }

    /// Waits until no unit is at work for `job` and sees to it that none begins. Returns what the
    /// last one answered, where it lived to answer.
    ///
    /// Whoever was to answer may be gone, and what it had started go on: that has as long as the
    /// unit has. Then all of the unit is killed, and what left it is not waited for any more.
    pub(super) fn rejoin(&self, job: &str) -> Result<Option<Answer>> {
        let (begun, awake_then) = (Instant::now(), awake());
        let (mut told, mut killed) = (false, None::<Instant>);
        loop {
            let (number, due) = match self.core.journal.meet(job)? {
                Met::Over(answer) => return Ok(answer),
                Met::AtWork { number, due, limit } => {
                    let whole = patience(limit.saturating_mul(COMMANDS));
                    (number, due.unwrap_or_else(|| awake_then.saturating_add(whole.as_secs())))
                }
            };
            match killed {
                None if awake() >= due => {
                    self.kill(&unit(job, number));
                    killed = Some(Instant::now());
                }
                Some(since) if since.elapsed() >= KILLED => {
                    let unit = unit(job, number);
                    tracing::warn!(
                        OSAPI_JOB_ID = job,
                        "going on without {unit}, of which something that was started and has \
                         left it is still there"
                    );
                    return self.core.journal.revoke(job, number);
                }
                _ => std::thread::sleep(PACE),
            }
            if !told && begun.elapsed() >= GRACE {
                told = true;
                let left = due.saturating_sub(awake());
                let message = format!(
                    "waits for its unit, {left} s at most; to end that: systemctl kill --signal=KILL \
                     {}.service",
                    unit(job, number)
                );
                tracing::warn!(OSAPI_JOB_ID = job, "{message}");
                self.core.news.tell(job, &Progress::new(&message, None));
            }
        }
    }

    /// Has the service manager kill all that is in a unit.
    fn kill(&self, unit: &str) {
        let unit = format!("{unit}.service");
        tracing::warn!("killing {unit}, which has not ended in time");
        let args = ["kill", "--signal=KILL", "--", &unit];
        let killed = self.service_manager("systemctl", &args);
        let killed = killed.and_then(|done| done.success("systemctl"));
        if let Err(error) = killed {
            tracing::warn!("cannot kill {unit}: {error}");
        }
    }

    fn hand_over(
        &self,
        job: &str,
        reach: Reach,
        part: Part,
        limit: Duration,
        bound: Duration,
    ) -> Result<Came> {
        let due = awake().saturating_add(patience(bound).as_secs());
        let number = self.core.journal.hand(job, part, limit, due)?;
        let launched = self.launch(job, number, reach, bound.saturating_add(GRACE));
        // However the service manager tells it, or fails to.
        Ok(match (self.rejoin(job)?, launched) {
            (Some(answer), _) => Came::Answer(answer),
            (None, Err(error)) => Came::Lost(error),
            (None, Ok(())) => {
                let message = format!("the unit {} ended without a word", unit(job, number));
                Came::Lost(Error::new(Kind::HostFailed, message))
            }
        })
    }

    /// Has the service manager start a unit, and waits until it has ended. What asks for that may
    /// be cut off at any time; nothing is concluded from it.
    fn launch(&self, job: &str, number: u32, reach: Reach, bound: Duration) -> Result<()> {
        let (osapi, root) = self.core.root.osapi()?;
        let state = self.core.journal.dir().display();
        let mut properties = vec![
            format!("TimeoutStartSec={}ms", bound.as_millis()),
            format!("TimeoutStopSec={}s", STOP.as_secs()),
        ];
        properties.extend(reach.profile().into_iter().map(str::to_owned));
        if reach.is_strict() {
            properties.push(format!("ReadWritePaths=\"{state}\""));
        }
        let transient = Transient {
            name: unit(job, number),
            about: format!("OSAPI job {job}, part {number}"),
            job,
            properties,
            environment: vec![format!("OSAPI_AGENT_STATE_DIR={state}")],
            ..Transient::default()
        };
        let osapi = osapi.to_string_lossy();
        let root = root.map(|root| format!("--root={}", root.display()));
        let errand = format!("--errand={job}.{number}");
        let words = [&*osapi, "hand"].into_iter().chain(root.as_deref()).chain([&*errand]);
        let args = transient.args(&words.collect::<Vec<_>>());
        let path = self.core.root.command("systemd-run")?;
        let mut command = std::process::Command::new(&path);
        command.args(&args).env_clear().envs(command::ENVIRONMENT);
        let child =
            command::spawn(&mut command, false, None).map_err(command::cannot_run(&path))?;
        let patience = bound.saturating_add(STOP).saturating_add(GRACE);
        command::follow(child, &path, &[], patience)?.success("systemd-run").map(drop)
    }

    /// Does what an agent wrote down for this unit, and leaves the answer to it in the journal.
    /// Says whether anybody waited for that.
    pub fn hand(&self, job: &str, number: u32) -> Result<bool> {
        let journal = &self.core.journal;
        let turn = journal.unit(job, number)?;
        let entry = journal.load(job)?;
        let (Some(errand), Some(planned)) = (entry.errand(number), &entry.planned) else {
            return Ok(false);
        };
        let done = match (&errand.part, &planned.work) {
            (Part::Steps { steps, now }, Work::Plan(plan)) => {
                let hands = self.hands(&turn, job, errand.limit);
                steps_of(&hands, steps, now, &plan.blobs).map(|()| Done::default())
            }
            (Part::Act, Work::Act(Act::Run(run))) => self.run_here(job, run),
            _ => Err(Error::new(Kind::Internal, "the errand does not belong to the job")),
        };
        let event = Event::Answered { number, answer: Answer::from(done) };
        for _ in 1..ATTEMPTS {
            match journal.write(job, &event) {
                Ok(()) => return Ok(true),
                Err(error) => tracing::warn!(OSAPI_JOB_ID = job, "trying again: {error}"),
            }
            std::thread::sleep(AGAIN);
        }
        journal.write(job, &event).map(|()| true)
    }
}

/// Takes steps in a unit, provided that their cells still hold what the agent saw there.
fn steps_of(hands: &Hands, steps: &[Step], now: &[Option<Value>], blobs: &Blobs) -> Result<()> {
    let mut dues = Vec::with_capacity(steps.len());
    for (step, now) in steps.iter().zip(now) {
        if let (Step::Set(set), Some(seen)) = (step, now) {
            let now = hands.view.value(&set.cell)?;
            if now != *seen {
                let message = format!("{} was changed by somebody else meanwhile", set.cell);
                return Err(Error::new(Kind::Conflict, message));
            }
            dues.push(Due { set, now });
        }
    }
    hands.take(steps, &dues, blobs)
}

/// Refuses to become the hand of an agent that keeps no journal in `state`.
pub fn has_journal(state: &std::path::Path) -> Result<()> {
    Journal::must_exist(state)
}

/// How long all of an errand's unit may last whose commands have `bound`.
fn patience(bound: Duration) -> Duration {
    bound.saturating_add(GRACE + STOP + GRACE)
}

/// Seconds since this boot, without those that the host slept: as the service manager counts.
fn awake() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec.unsigned_abs()
}

/// The name of the unit, without its suffix.
fn unit(job: &str, number: u32) -> String {
    format!("osapi-job-{job}.{number}")
}
