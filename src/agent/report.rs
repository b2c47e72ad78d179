//! What was done, on its way to whoever handed it out: kept until it is answered, in groups.
//!
//! A report that finds the way free is sent by the thread that did the work, which is the
//! shortest way. What is done while that group is under way is the next group, and is sent by a
//! thread of its own.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::link::Asker;
use super::{Shared, carry};
use crate::error::Kind;
use crate::job::Report;
use crate::link::{Ask, Link, MOST_TOLD};

/// How many reports go together. As one of them may have 768 KiB, bytes have a bound too.
const GROUP: usize = MOST_TOLD;
/// Escaped within the frame they may double.
const GROUP_BYTES: usize = 3 << 19;
/// How soon a report is repeated that was refused and not only lost.
const REPEAT: Duration = Duration::from_secs(1);

pub(super) struct Outbox<L> {
    link: Mutex<Asker<L>>,
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    /// With their size in bytes.
    waiting: Vec<(Report, usize)>,
    /// Whether somebody sends, and so looks here again afterwards.
    is_sending: bool,
}

impl<L: Link> Outbox<L> {
    pub(super) fn new(link: L) -> Self {
        let state = Mutex::new(State::default());
        Self { link: Mutex::new(Asker::new(link)), state, filled: Condvar::new() }
    }

    /// Sends `report`, of `size` bytes: on this thread if nothing is under way and `at_once`.
    pub(super) fn push(&self, agent: &Shared<L>, report: Report, size: usize, at_once: bool) {
        let mut state = super::lock(&self.state);
        state.waiting.push((report, size));
        if state.is_sending {
            return;
        }
        if !at_once {
            drop(state);
            self.filled.notify_one();
            return;
        }
        state.is_sending = true;
        drop(state);
        self.send_group(agent);
        let mut state = super::lock(&self.state);
        state.is_sending = false;
        if !state.waiting.is_empty() {
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Sends what nobody else does, until the process ends.
    pub(super) fn send_always(&self, agent: &Shared<L>) {
        let mut state = super::lock(&self.state);
        loop {
            if state.is_sending || state.waiting.is_empty() {
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.is_sending = true;
            drop(state);
            self.send_group(agent);
            state = super::lock(&self.state);
            state.is_sending = false;
        }
    }

    /// Only for whoever has set `is_sending`. Returns once the group is answered.
    fn send_group(&self, agent: &Shared<L>) {
        let group = {
            let mut state = super::lock(&self.state);
            let mut bytes = 0;
            let fits = state.waiting.iter().take(GROUP).take_while(|(_, size)| {
                bytes += size;
                bytes <= GROUP_BYTES
            });
            let count = fits.count().max(1).min(state.waiting.len());
            state.waiting.drain(..count).map(|(report, _)| report).collect::<Vec<_>>()
        };
        let mut link = super::lock(&self.link);
        let Err(refused) = Self::finish(agent, &mut link, &group) else {
            return agent.let_go(group.iter());
        };
        tracing::error!(error = %refused, "reports were refused and are sent one by one");
        // One of them may be to blame.
        for mut report in group {
            while let Err(error) = Self::finish(agent, &mut link, std::slice::from_ref(&report)) {
                if error.kind() == Kind::TooLarge
                    && let Some(cut) = carry::shorter(report.clone())
                {
                    // Nothing that waits makes it any smaller, and that it was done has to be told.
                    report = cut.report;
                    continue;
                }
                if matches!(
                    error.kind(),
                    Kind::NotFound | Kind::InvalidInput | Kind::Denied | Kind::TooLarge
                ) {
                    tracing::error!(OSAPI_JOB_ID = report.job, %error, "a report was given up");
                    std::thread::sleep(REPEAT);
                    break;
                }
                std::thread::sleep(REPEAT);
            }
            agent.let_go(std::iter::once(&report));
        }
    }

    /// Repeats itself while nobody answers. An error is what was answered.
    fn finish(
        agent: &Shared<L>,
        link: &mut Asker<L>,
        group: &[Report],
    ) -> crate::error::Result<()> {
        let told = group.iter().map(|report| agent.told(report));
        let mut ask = Ask::Finish(told.collect::<crate::error::Result<_>>()?);
        loop {
            match link.ask(agent, &mut ask) {
                Ok(_) => return Ok(()),
                Err(error) if is_passing(error.kind()) => agent.trouble.wait(&error),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the same question may well be answered later.
fn is_passing(kind: Kind) -> bool {
    matches!(kind, Kind::Unavailable | Kind::Timeout | Kind::Full | Kind::Busy)
}
