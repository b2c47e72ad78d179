//! The sign of life: what the agent says of itself, however busy all its workers are.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::link::Asker;
use super::{Shared, facts, lock};
use crate::link::{About, Answer, Ask, Link};

/// How long between two signs of life.
const BEAT: Duration = Duration::from_secs(10);
/// How often the agent says the same of itself again.
const REPEAT: Duration = Duration::from_mins(1);
/// How often what is too old to be kept is dropped, when there is nothing to do.
const PRUNE: Duration = Duration::from_hours(1);

/// What the agent says of itself by now.
fn look<L: Link + 'static>(agent: &Shared<L>, mut about: About, has_new_facts: bool) -> About {
    if has_new_facts {
        about.facts = facts::collect(&agent.executor().view());
    }
    about.hostname = facts::hostname(&agent.setup);
    about.waiting = agent.executor().waiting();
    about.hanging = agent.looking.hanging(Instant::now());
    about.refused = agent.trust.refused();
    about.audit = agent.heads.contradiction();
    facts::judge(&agent.setup, &mut about.conditions);
    about
}

/// Goes on until the process ends.
pub(super) fn tell<L: Link + 'static>(agent: &Arc<Shared<L>>) {
    let mut link = Asker::new((agent.links)());
    let mut collected = Instant::now();
    let mut told = None::<Instant>;
    let mut pruned = Instant::now();
    loop {
        agent.relieve();
        let before = agent.about();
        let is_due = collected.elapsed() >= agent.setup.facts.interval;
        // What cannot be found out must not end the sign of life.
        let looked = catch_unwind(AssertUnwindSafe(|| look(agent, before.clone(), is_due)));
        let about = looked.unwrap_or_else(|_| {
            tracing::error!("looking at the host panicked");
            before.clone()
        });
        if is_due {
            collected = Instant::now();
        }
        let is_new = about != before || told.is_none_or(|told| told.elapsed() >= REPEAT);
        if is_new {
            *lock(&agent.about) = about.clone();
        }

        let mut ask = agent.next(Vec::new(), Duration::ZERO);
        if let Ask::Next(next) = &mut ask
            && is_new
        {
            next.about = Some(agent.introduced(about));
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
        if pruned.elapsed() >= PRUNE && agent.is_idle() {
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

/// Says at once what the host is called, if that is something else since a change: the answer to
/// the change then goes out under the new name.
pub(super) fn rename<L: Link + 'static>(agent: &Shared<L>, link: &Mutex<Asker<L>>) {
    let hostname = facts::hostname(&agent.setup);
    if agent.about().hostname == hostname {
        return;
    }
    let mut about = lock(&agent.about);
    about.hostname = hostname;
    let told = about.clone();
    drop(about);
    let told = Some(agent.introduced(told));
    let mut ask = agent.next(Vec::new(), Duration::ZERO);
    if let Ask::Next(next) = &mut ask {
        next.about = told;
    }
    // After an error every connection begins with it.
    if let Err(error) = lock(link).ask(agent, &mut ask) {
        tracing::debug!(%error, "cannot tell the host's new name yet");
    }
}
