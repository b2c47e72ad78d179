//! What only looks. Nothing is stored for it, so what came of it travels with the next question,
//! and a task costs one message each way.
//!
//! Each worker has a connection of its own and asks for one task at a time.

use std::mem::take;

use super::lane::{Taken, take as open};
use super::link::Asker;
use super::pulse::Pulse;
use super::{POLL, Shared, carry};
use crate::error::Kind;
use crate::link::{Answer, Ask, Class, Link, Told};
use crate::ops;

/// Works until the agent stops, on a thread that from now on can do nothing else than look.
pub(super) fn work<L: Link + 'static>(agent: &Shared<L>, link: L, pulse: &Pulse) {
    if let Err(error) = agent.executor().only_look() {
        tracing::error!(%error, "reads are not kept from writing");
    }
    let (mut link, mut done) = (Asker::new(link), Vec::new());
    while !agent.is_stopping() {
        pulse.asks();
        for taken in ask(agent, &mut link, &mut done) {
            if !agent.begin() {
                return;
            }
            let at_work = pulse.works();
            let (job, op) = (taken.task.job.clone(), taken.task.op.clone());
            let limit = ops::find(&op).map_or(POLL, |row| row.timeout);
            agent.looking.begins(&job, &op, limit);
            let report = carry::out(agent, taken);
            let goes_on = agent.looking.ended(&job);
            drop(at_work);
            let Some(report) = report else { return agent.give_up() };
            // Should it be lost on the way, looking again does no harm.
            agent.let_go(std::iter::once(&report.report));
            match agent.told(&report.report) {
                Ok(told) => done.push(told),
                Err(error) => tracing::error!(%error, "cannot tell what a look has shown"),
            }
            if !goes_on {
                // Whoever asked was answered long ago.
                return;
            }
        }
    }
}

/// What was too large to be told, cut; None where nothing of it is left.
fn shorter<L>(agent: &Shared<L>, told: &Told) -> Option<Told> {
    let cut = told.open().ok().and_then(carry::shorter)?;
    agent.told(&cut.report).ok()
}

/// The next task, if there is one before long; says what was done.
fn ask<L: Link + 'static>(
    agent: &Shared<L>,
    link: &mut Asker<L>,
    done: &mut Vec<Told>,
) -> Vec<Taken> {
    let mut ask = agent.next(vec![Class::Look], POLL);
    if let Ask::Next(next) = &mut ask {
        (next.most, next.done) = (1, take(done));
    }
    match link.ask(agent, &mut ask) {
        // Heads are for one connection to keep: from several they come out of order.
        Ok(Answer::Tasks { tasks, .. }) => {
            // It asked for one; what else comes may be meant to keep it busy.
            return tasks
                .iter()
                .take(1)
                .filter_map(|task| open(agent, Class::Look, task))
                .collect();
        }
        Ok(_) => tracing::error!("a question for work was answered with something else"),
        Err(error) => {
            let is_lost = matches!(error.kind(), Kind::Unavailable | Kind::Timeout | Kind::Busy);
            if let Ask::Next(next) = ask {
                if error.kind() == Kind::TooLarge && !next.done.is_empty() {
                    *done = next.done.iter().filter_map(|told| shorter(agent, told)).collect();
                    return Vec::new();
                }
                if is_lost {
                    *done = next.done;
                }
            }
            agent.trouble.wait(&error);
        }
    }
    Vec::new()
}
