//! The work of one class: asked for by whichever of its workers is free, in order.
//!
//! One task is taken at a time, so that what is taken begins, and everything else can still be
//! called off.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::link::Asker;
use super::pulse::Pulse;
use super::{POLL, Shared, carry, lock, presence};
use crate::error::Kind;
use crate::job::{Outcome, Report, Task};
use crate::link::{Answer, Ask, Class, Link, Sealed};
use crate::ops;

pub(super) struct Lane<L> {
    class: Class,
    link: Mutex<Asker<L>>,
    /// Whether there was more to do when the last task was handed out.
    has_more: AtomicBool,
    pulse: Arc<Pulse>,
}

/// A task, and in whose turn it came.
pub(super) struct Taken {
    pub(super) task: Task,
    pub(super) class: Class,
}

impl<L: Link + 'static> Lane<L> {
    pub(super) fn new(class: Class, link: L, pulse: Arc<Pulse>) -> Self {
        Self { class, link: Mutex::new(Asker::new(link)), has_more: AtomicBool::new(false), pulse }
    }

    /// Ends what an earlier agent left half done.
    pub(super) fn settle(&self, agent: &Shared<L>) {
        let _at_work = self.pulse.works();
        agent.settle();
    }

    /// Works until the agent stops.
    pub(super) fn work(&self, agent: &Shared<L>) {
        while let Some(taken) = self.next(agent) {
            if !agent.begin() {
                return;
            }
            let at_work = self.pulse.works();
            let report = carry::out(agent, taken);
            drop(at_work);
            if matches!(self.class, Class::Change | Class::Verdict) {
                presence::rename(agent, &self.link);
            }
            if self.class == Class::Verdict {
                // Whoever asked for it looks at what was taken back as soon as this is answered.
                agent.amend(true);
            }
            let Some(report) = report else { return agent.give_up() };
            // Whoever has more to do does not wait until this is stored.
            let at_once = !self.has_more.load(Ordering::Relaxed);
            agent.lasting.push(agent, report.report, report.size, at_once);
        }
    }

    /// The next task; None once the agent stops.
    fn next(&self, agent: &Shared<L>) -> Option<Taken> {
        while !agent.is_stopping() {
            // One asks; the others wait here.
            let mut link = lock(&self.link);
            if agent.is_stopping() {
                return None;
            }
            let mut ask = agent.next(vec![self.class], POLL);
            if let Ask::Next(next) = &mut ask {
                next.most = 1;
            }
            self.pulse.asks();
            match link.ask(agent, &mut ask) {
                // Heads are for one connection to keep: from several they come out of order.
                Ok(Answer::Tasks { tasks, has_more, .. }) => {
                    self.has_more.store(has_more, Ordering::Relaxed);
                    // More than was asked for is not held, and so is handed out again.
                    if let Some(taken) =
                        tasks.first().and_then(|task| take(agent, self.class, task))
                    {
                        return Some(taken);
                    }
                }
                Ok(_) => tracing::error!("a question for work was answered with something else"),
                Err(error) => agent.trouble.wait(&error),
            }
        }
        None
    }
}

/// Opens a task that came in the turn of `class` and holds it; None where it is held already,
/// cannot be opened or is refused.
pub(super) fn take<L: Link + 'static>(
    agent: &Shared<L>,
    class: Class,
    sealed: &Sealed,
) -> Option<Taken> {
    let at = agent.clock().uptime();
    let mut task = match agent.open(sealed)? {
        Ok(task) => task,
        Err(error) => {
            unreadable(agent, class, sealed, &error);
            return None;
        }
    };
    if ops::agent(&task.op).is_some_and(|op| Class::of(op, &task.options) != class) {
        // As what is not signed: any answer would be one to the job, which was never begun and may
        // still come in its turn.
        agent.refuse("it came in the turn of work of another kind");
        return None;
    }
    task.left_ms = task.left_ms.saturating_sub(sealed.waited_ms);
    task.begin_by = Some(at.saturating_add(task.left_ms));
    agent.hold(&task.job).then(|| {
        if task.called_off {
            agent.executor().call_off(&task.job);
        }
        Taken { task, class }
    })
}

/// Answers for a task of which not more than the job can be read: it may be for another version.
fn unreadable<L: Link + 'static>(
    agent: &Shared<L>,
    class: Class,
    sealed: &Sealed,
    error: &serde_json::Error,
) {
    let job = serde_json::from_str::<serde_json::Value>(&sealed.body);
    let job = job.ok().and_then(|task| Some(task.get("job")?.as_str()?.to_owned()));
    tracing::error!(%error, job, "cannot read a task");
    let Some(job) = job.filter(|job| agent.hold(job)) else { return };
    let message = format!("this agent cannot read the task: {error}");
    let error = crate::error::Error::new(Kind::Unsupported, message);
    let now = agent.clock().wall();
    let outcome = Outcome::from(Err(error));
    if !agent.begin() {
        return;
    }
    carry::keep(agent, class, &job, &outcome);
    agent.lasting.push(agent, Report::new(job, now, now, outcome), 0, false);
}
