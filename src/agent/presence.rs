//! The sign of life: what the agent says of itself, however busy all its workers are.

use std::time::{Duration, Instant};

use super::link::Asker;
use super::{Shared, facts, lock};
use crate::link::{Answer, Ask, Link};

/// How long between two signs of life.
const BEAT: Duration = Duration::from_secs(10);
/// How often the agent says the same of itself again.
const REPEAT: Duration = Duration::from_mins(1);
/// How often what is too old to be kept is dropped, when there is nothing to do.
const PRUNE: Duration = Duration::from_hours(1);

/// Goes on until the process ends.
pub(super) fn tell<L: Link + 'static>(agent: &Shared<L>) {
    let mut link = Asker::new((agent.links)());
    let mut collected = Instant::now();
    let mut told = None::<Instant>;
    let mut pruned = Instant::now();
    loop {
        let before = agent.about();
        let mut about = before.clone();
        if collected.elapsed() >= agent.setup.facts.interval {
            about.facts = facts::collect(&agent.executor().view());
            about.hostname = facts::hostname(&agent.setup);
            collected = Instant::now();
        }
        about.waiting = agent.executor().waiting();
        facts::judge(&agent.setup, &mut about.conditions);
        let is_new = about != before || told.is_none_or(|told| told.elapsed() >= REPEAT);
        if is_new {
            *lock(&agent.about) = about.clone();
        }

        let mut ask = agent.next(Vec::new(), Duration::ZERO);
        if let Ask::Next(next) = &mut ask
            && is_new
        {
            next.about = Some(Box::new(about));
        }
        match link.ask(agent, &mut ask) {
            Ok(answer) => {
                if is_new {
                    told = Some(Instant::now());
                }
                if let Answer::Tasks { heads, .. } = answer {
                    agent.heads.keep(heads);
                }
            }
            Err(error) => {
                told = None;
                agent.trouble.wait(&error);
                continue;
            }
        }
        agent.heads.save();
        agent.amend(false);
        if pruned.elapsed() >= PRUNE && agent.holds().is_empty() {
            match agent.executor().prune() {
                Ok(0) => {}
                Ok(dropped) => {
                    tracing::info!("dropped what {dropped} old jobs needed to be undone");
                }
                Err(error) => tracing::warn!(%error, "cannot drop what is old"),
            }
            pruned = Instant::now();
        }
        // What is taken back meanwhile is told at once, and no longer waits to be confirmed.
        agent.executor().rest(BEAT);
    }
}
