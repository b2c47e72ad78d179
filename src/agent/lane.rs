//! The work of one class: asked for by whichever of its workers is free, in order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::link::Asker;
use super::pulse::Pulse;
use super::{POLL, ROOM, Shared, carry, lock};
use crate::error::Kind;
use crate::job::{Outcome, Report, Task};
use crate::link::{Answer, Class, Link, Sealed};

pub(super) struct Lane<L> {
    class: Class,
    link: Mutex<Asker<L>>,
    /// Taken, and not yet begun by anybody.
    queue: Mutex<VecDeque<Taken>>,
    pulse: Arc<Pulse>,
}

/// A task, and when it was taken on the clock of the boot, in milliseconds.
pub(super) struct Taken {
    pub(super) task: Task,
    pub(super) at: u64,
}

impl<L: Link + 'static> Lane<L> {
    pub(super) fn new(class: Class, link: L, pulse: Arc<Pulse>) -> Self {
        Self { class, link: Mutex::new(Asker::new(link)), queue: Mutex::default(), pulse }
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
            if self.class == Class::Verdict {
                // Whoever asked for it looks at what was taken back as soon as this is answered.
                agent.amend(true);
            }
            let Some(report) = report else { return agent.give_up() };
            let size = report.size;
            // Whoever has more to do does not wait until this is stored.
            agent.lasting.push(agent, report.report, size, lock(&self.queue).is_empty());
        }
    }

    /// The next task; None once the agent stops.
    fn next(&self, agent: &Shared<L>) -> Option<Taken> {
        while !agent.is_stopping() {
            if let Some(taken) = lock(&self.queue).pop_front() {
                return Some(taken);
            }
            // One asks for all; the others wait here.
            let mut link = lock(&self.link);
            if let Some(taken) = lock(&self.queue).pop_front() {
                return Some(taken);
            }
            self.pulse.asks();
            match link.ask(agent, &mut agent.next(vec![self.class], POLL)) {
                // Heads are for one connection to keep: from several they come out of order.
                Ok(Answer::Tasks { tasks, heads: _ }) => {
                    let tasks = tasks.into_iter().take(ROOM);
                    lock(&self.queue).extend(tasks.filter_map(|task| take(agent, &task)));
                }
                Ok(_) => tracing::error!("a question for work was answered with something else"),
                Err(error) => agent.trouble.wait(&error),
            }
        }
        None
    }
}

/// Opens a task and holds it; None where it is held already or cannot be opened.
pub(super) fn take<L: Link + 'static>(agent: &Shared<L>, sealed: &Sealed) -> Option<Taken> {
    let at = agent.clock().uptime();
    match serde_json::from_str::<Task>(&sealed.body) {
        Ok(task) => agent.hold(&task.job).then_some(Taken { task, at }),
        Err(error) => {
            let job = serde_json::from_str::<serde_json::Value>(&sealed.body);
            let job = job.ok().and_then(|task| Some(task.get("job")?.as_str()?.to_owned()));
            tracing::error!(%error, job, "cannot read a task");
            if let Some(job) = job.filter(|job| agent.hold(job)) {
                let message = format!("this agent cannot read the task: {error}");
                let error = crate::error::Error::new(Kind::Unsupported, message);
                let now = agent.clock().wall();
                let outcome = Outcome::from(Err(error));
                let report = Report::new(job, now, now, outcome);
                if agent.begin() {
                    agent.lasting.push(agent, report, 0, false);
                }
            }
            None
        }
    }
}
