//! The privileged half: takes tasks, has them carried out, reports what came of them.
//!
//! It remembers only what it holds: what it has taken and not yet reported. After a restart it
//! holds nothing and is handed everything unfinished again; whether a task was begun or done
//! before is for the [`Executor`]'s journal to say.
//!
//! Each class of work has connections and threads of its own: changes happen one after the other,
//! and so do verdicts on changes, which must not wait for anything else; acts and what only looks
//! have a few workers each; what has no end has a thread for as long as it goes on. A worker that
//! is free asks for work itself, so a task goes from the socket to the thread that does it and on
//! to the socket without being passed on; and where all are busy nothing more of that class is
//! asked for, which leaves the rest where it can still be called off.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::host::{Amendment, Executor};
use crate::job::Report;
use crate::link::{About, Ask, Class, Link, Next};
use crate::seal::OwnKey;

mod carry;
mod fetch;
mod follow;
mod heads;
mod lane;
mod link;
mod look;
mod looking;
mod machine;
mod news;
mod policy;
mod presence;
mod pulse;
mod report;
mod trust;

pub mod facts;

pub use machine::{machine_id, machine_id_of};
pub use policy::Policy;
pub use trust::Pki;

use heads::Heads;
use lane::Lane;
use link::Trouble;
use looking::Looking;
use pulse::Pulses;
use report::Outbox;
use trust::Trust;

/// How many reads, and how many acts, run beside each other. One act may wait for days: the one
/// that is to take the host down.
const LOOKS: usize = 8;
const ACTS: usize = 5;
/// How long one question for work may wait.
const POLL: Duration = Duration::from_secs(25);

/// What an agent works with.
pub struct Setup {
    pub executor: Arc<Executor>,
    /// Where it keeps what is its own, apart from the executor's journal.
    pub state: PathBuf,
    pub clock: Clock,
    /// The id of the host it works for: tasks for any other are refused.
    pub machine_id: String,
    pub policy: Policy,
    pub facts: facts::Settings,
    pub pki: Pki,
}

/// A running agent.
pub struct Agent<L> {
    shared: Arc<Shared<L>>,
}

struct Shared<L> {
    setup: Setup,
    links: Box<dyn Fn() -> L + Send + Sync>,
    /// What became of work that is stored before it is answered.
    lasting: Outbox<L>,
    /// The jobs of which is being told that they were taken back.
    amending: Mutex<BTreeSet<String>>,
    held: Mutex<Held>,
    rested: Condvar,
    trouble: Trouble,
    pulses: Pulses,
    heads: Heads,
    /// Opens the secrets among the parameters of tasks.
    key: OwnKey,
    trust: Trust,
    about: Mutex<About>,
    looking: Looking,
    is_stopping: AtomicBool,
}

/// The jobs that were taken and not yet reported.
#[derive(Default)]
struct Held {
    jobs: BTreeSet<String>,
    /// How many of them were begun.
    begun: usize,
}

impl<L: Link + 'static> Agent<L> {
    /// Starts to work. `links` makes connections, of which each class of work has its own.
    pub fn start(setup: Setup, links: impl Fn() -> L + Send + Sync + 'static) -> Result<Self> {
        let key = OwnKey::of(&setup.state)?;
        let trust = Trust::new(&setup.pki, &setup.state)?;
        let signing_key = trust.public().encode();
        let heads = Heads::open(&setup.state, setup.clock.clone())?;
        let (own, audit) = (facts::about(&setup), heads.contradiction());
        let about = About { key: key.public(), signing_key, audit, ..own };
        let shared = Arc::new(Shared {
            lasting: Outbox::new(links()),
            amending: Mutex::default(),
            held: Mutex::default(),
            rested: Condvar::new(),
            trouble: Trouble::default(),
            pulses: Pulses::default(),
            heads,
            key,
            trust,
            about: Mutex::new(about),
            looking: Looking::new(LOOKS),
            is_stopping: AtomicBool::new(false),
            links: Box::new(links),
            setup,
        });
        let lane = |class, name, workers| {
            Arc::new(Lane::new(class, (shared.links)(), shared.pulses.of(name, workers)))
        };
        let changes = lane(Class::Change, "changes", 1);
        let acts = lane(Class::Act, "acts", ACTS);
        let verdicts = lane(Class::Verdict, "verdicts", 1);
        shared.spawn("changes", move |agent| {
            // What an earlier agent left half done comes first. That may take minutes, during
            // which one can look.
            changes.settle(&agent);
            agent.arrive();
            changes.work(&agent);
        })?;
        shared.spawn("verdicts", move |agent| verdicts.work(&agent))?;
        for _ in 0..LOOKS {
            shared.start_looking()?;
        }
        for _ in 0..ACTS {
            let acts = acts.clone();
            shared.spawn("acts", move |agent| acts.work(&agent))?;
        }
        let (link, pulse) = ((shared.links)(), shared.pulses.of("follows", 1));
        shared.spawn("follows", move |agent| follow::work(&agent, link, &pulse))?;
        shared.spawn("reports", |agent| agent.lasting.send_always(&agent))?;
        shared.spawn("presence", |agent| presence::tell(&agent))?;
        shared.spawn("news", |agent| news::tell(&agent))?;
        Ok(Self { shared })
    }

    /// Who should ask for work and does not, if anybody.
    pub fn stuck(&self) -> Option<&'static str> {
        self.shared.pulses.stuck()
    }

    /// How many jobs were taken and are not yet reported.
    pub fn held(&self) -> usize {
        lock(&self.shared.held).jobs.len()
    }

    /// Begins nothing more, and returns when what was begun is reported. What runs after
    /// `patience` is cut off or left to the journal; reports of that have `last_words`.
    pub fn stop(&self, patience: Duration, last_words: Duration) {
        let agent = &self.shared;
        agent.is_stopping.store(true, Ordering::SeqCst);
        agent.executor().stop(patience);
        if !agent.rests_within(last_words) {
            tracing::warn!("stopping in the middle of work; the journal has what to do about it");
        }
        agent.heads.save();
    }
}

impl<L: Link + 'static> Shared<L> {
    /// One more worker that looks.
    fn start_looking(self: &Arc<Self>) -> Result<()> {
        let (link, pulse) = ((self.links)(), self.pulses.of("looks", 1));
        self.spawn("looks", move |agent| {
            look::work(&agent, link, &pulse);
            agent.pulses.ended(&pulse);
        })
    }

    /// Starts workers in place of those that hang.
    fn relieve(self: &Arc<Self>) {
        for _ in 0..self.looking.relief(Instant::now()) {
            tracing::warn!("what only looks hangs; another worker takes its place");
            if let Err(error) = self.start_looking() {
                tracing::error!(%error, "nobody takes its place");
                self.looking.lacks_one();
            }
        }
    }

    /// Tells which changes stood and were taken back since, until that is answered. What took
    /// them back may have been another process, or at work before this one.
    fn amend(&self, at_once: bool) {
        let amendments = self.executor().amendments().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look up what was taken back");
            Vec::new()
        });
        for Amendment { job, at, outcome } in amendments {
            if lock(&self.amending).insert(job.clone()) {
                tracing::warn!(OSAPI_JOB_ID = job, "a change that stood was taken back");
                let (outcome, size) = carry::fit(outcome);
                let report = Report { amends: true, ..Report::new(job, at, at, outcome) };
                self.lasting.push(self, report, size, at_once);
            }
        }
    }

    /// Answers what took the host down before it came up again.
    fn arrive(&self) {
        let arrived = self.executor().arrive().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look up what took the host down");
            Vec::new()
        });
        for (job, outcome) in arrived {
            tracing::info!(OSAPI_JOB_ID = job, "the host is up again");
            // Where it was delivered again meanwhile, that is answered.
            if self.hold(&job) && self.begin() {
                let (outcome, size) = carry::fit(outcome);
                let now = self.clock().wall();
                self.lasting.push(self, Report::new(job, now, now, outcome), size, true);
            }
        }
    }

    fn spawn(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(Arc<Self>) + Send + 'static,
    ) -> Result<()> {
        let agent = self.clone();
        let spawned = Builder::new().name(name.to_owned()).spawn(move || work(agent));
        spawned.map(drop).map_err(|error| {
            Error::new(Kind::Unavailable, format!("cannot start a thread: {error}"))
        })
    }
}

impl<L> Shared<L> {
    fn executor(&self) -> &Executor {
        &self.setup.executor
    }

    fn clock(&self) -> &Clock {
        &self.setup.clock
    }

    /// Ends what an earlier agent left half done.
    fn settle(&self) {
        match catch_unwind(AssertUnwindSafe(|| self.executor().settle())) {
            Ok(Ok(jobs)) => jobs.iter().for_each(|job| {
                tracing::warn!(OSAPI_JOB_ID = job, "settled what an earlier agent had begun");
            }),
            // Every change tries again before it begins.
            Ok(Err(error)) => tracing::error!(%error, "cannot settle what was left half done"),
            Err(_) => tracing::error!("settling what was left half done panicked"),
        }
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    fn about(&self) -> About {
        lock(&self.about).clone()
    }

    fn holds(&self) -> Vec<String> {
        lock(&self.held).jobs.iter().cloned().collect()
    }

    /// Whether `job` was not held before.
    fn hold(&self, job: &str) -> bool {
        lock(&self.held).jobs.insert(job.to_owned())
    }

    /// Has those of `jobs` that are held end before they begin, or before their time.
    fn call_off(&self, jobs: &[String]) {
        let held = lock(&self.held);
        for job in jobs.iter().filter(|job| held.jobs.contains(*job)) {
            self.executor().call_off(job);
        }
    }

    /// Whether nothing is held, or only what waits for the host to go down.
    fn is_idle(&self) -> bool {
        let holds = self.holds();
        holds.is_empty() || {
            let departure = self.executor().departure();
            holds.iter().all(|job| Some(job) == departure.as_ref())
        }
    }

    /// Whether a task that is held may begin.
    fn begin(&self) -> bool {
        let mut held = lock(&self.held);
        // Under the lock, so that `stop` either waits for it or is seen here.
        let may = !self.is_stopping();
        held.begun += usize::from(may);
        may
    }

    /// Whether all that was begun is reported before `patience` is over.
    fn rests_within(&self, patience: Duration) -> bool {
        let held = lock(&self.held);
        let rested = self.rested.wait_timeout_while(held, patience, |held| held.begun > 0);
        rested.unwrap_or_else(PoisonError::into_inner).0.begun == 0
    }

    /// Says that what was begun has no answer, and will have none here.
    fn give_up(&self) {
        let mut held = lock(&self.held);
        held.begun = held.begun.saturating_sub(1);
        drop(held);
        self.rested.notify_all();
    }

    fn let_go<'a>(&self, reports: impl Iterator<Item = &'a Report>) {
        let mut held = lock(&self.held);
        for report in reports {
            if report.amends {
                self.executor().told(&report.job);
                lock(&self.amending).remove(&report.job);
                continue;
            }
            held.jobs.remove(&report.job);
            self.executor().let_go(&report.job);
            held.begun = held.begun.saturating_sub(1);
        }
        drop(held);
        self.rested.notify_all();
    }

    /// A question for work of `classes`.
    fn next(&self, classes: Vec<Class>, wait: Duration) -> Ask {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Ask::Next(Next { holds: self.holds(), classes, wait_ms, ..Next::default() })
    }
}

/// What a panic leaves locked is whole: nothing here panics between two steps of one change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
