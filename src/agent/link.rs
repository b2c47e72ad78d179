//! The agent's end of one connection: says who it is first, and waits longer each time nobody
//! answers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::Shared;
use crate::error::{Error, Result};
use crate::link::{Answer, Ask, Link, Next};

/// Puts questions, the first of each connection with what the agent says of itself.
pub(super) struct Asker<L> {
    link: L,
    is_known: bool,
}

impl<L: Link> Asker<L> {
    pub(super) fn new(link: L) -> Self {
        Self { link, is_known: false }
    }

    pub(super) fn ask(&mut self, agent: &Shared<L>, ask: &mut Ask) -> Result<Answer> {
        let answer = self.try_ask(agent, ask);
        // After an error the connection is a new one.
        self.is_known = answer.is_ok();
        if answer.is_ok() {
            agent.trouble.is_over();
        }
        if let Ok(Answer::Tasks { called_off, .. }) = &answer {
            agent.call_off(called_off);
        }
        answer
    }

    fn try_ask(&mut self, agent: &Shared<L>, ask: &mut Ask) -> Result<Answer> {
        if !self.is_known {
            if let Ask::Next(next) = ask {
                next.about = Some(agent.introduced(agent.about()));
            } else {
                let about = Some(agent.introduced(agent.about()));
                let next = Next { holds: agent.holds(), about, ..Next::default() };
                self.link.ask(&Ask::Next(next))?;
            }
        }
        self.link.ask(ask)
    }
}

/// Nobody answers. One for all connections, so that it is told once and not by each.
#[derive(Default)]
pub(super) struct Trouble {
    /// How often in a row nobody has answered.
    times: AtomicU32,
}

impl Trouble {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    /// Waits before the question is put again.
    pub(super) fn wait(&self, error: &Error) {
        let times = self.times.fetch_add(1, Ordering::Relaxed);
        if times == 0 {
            tracing::warn!(%error, "nobody hands out work; asking again until somebody does");
        } else {
            tracing::debug!(%error, times, "nobody hands out work");
        }
        std::thread::sleep((Self::FIRST * 2u32.pow(times.min(8))).min(Self::LONGEST));
    }

    fn is_over(&self) {
        if self.times.load(Ordering::Relaxed) != 0 && self.times.swap(0, Ordering::Relaxed) != 0 {
            tracing::info!("the controller answers again");
        }
    }
}
