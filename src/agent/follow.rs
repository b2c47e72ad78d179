//! What has no end: told piece by piece for as long as somebody listens.
//!
//! Each has a thread and a connection of its own, so that whoever listens slowly keeps nobody else
//! waiting. The answer to what is told says whether anybody still hears it; where there is nothing
//! to tell, that is asked all the same, once a second.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lane::{Taken, take};
use super::link::Asker;
use super::pulse::Pulse;
use super::{POLL, Shared, carry, lock};
use crate::error::{Error, Kind, Result};
use crate::host::{Line, Lines};
use crate::job::{Outcome, Report, Task};
use crate::link::{Answer, Ask, Class, Link, MOST_FOLLOWED, Tell};
use crate::op::{Endless, Piece};
use crate::ops;

/// How long the first word may take that says that it has begun.
const FIRST: Duration = Duration::from_millis(100);
/// How often it is asked whether anybody still listens.
const BEAT: Duration = Duration::from_secs(1);
/// How soon it is noticed that the agent stops.
const NOTICE: Duration = Duration::from_millis(250);
/// How many pieces are told at once, and about how many bytes of them.
const PIECES: usize = 256;
const BYTES: usize = 64 * 1024;

/// How many there is room for.
struct Room {
    free: Mutex<usize>,
    freed: Condvar,
}

/// Room for one, given back when dropped.
struct Place(Arc<Room>);

impl Room {
    /// How many there is room for, where there is any before long.
    fn wait(&self) -> usize {
        let free = lock(&self.free);
        let free = self.freed.wait_timeout_while(free, POLL, |free| *free == 0);
        *free.unwrap_or_else(PoisonError::into_inner).0
    }

    fn take(self: &Arc<Self>) -> Option<Place> {
        let mut free = lock(&self.free);
        *free = free.checked_sub(1)?;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.freed.notify_all();
    }
}

/// Takes what is to be followed until the agent stops.
pub(super) fn work<L: Link + 'static>(agent: &Arc<Shared<L>>, link: L, pulse: &Pulse) {
    let mut link = Asker::new(link);
    let room = Arc::new(Room { free: Mutex::new(MOST_FOLLOWED), freed: Condvar::new() });
    while !agent.is_stopping() {
        pulse.asks();
        let free = room.wait();
        if free == 0 {
            continue;
        }
        let mut ask = agent.next(vec![Class::Follow], POLL);
        if let Ask::Next(next) = &mut ask {
            next.most = free;
        }
        match link.ask(agent, &mut ask) {
            Ok(Answer::Tasks { tasks, .. }) => {
                // More than was asked for is not held, and so is handed out again.
                for task in tasks {
                    let Some(place) = room.take() else { break };
                    let Some(taken) = take(agent, Class::Follow, &task) else { continue };
                    if !agent.begin() {
                        return;
                    }
                    begin(agent, taken, place);
                }
            }
            Ok(_) => tracing::error!("a question for work was answered with something else"),
            Err(error) => agent.trouble.wait(&error),
        }
    }
}

fn begin<L: Link + 'static>(agent: &Arc<Shared<L>>, taken: Taken, place: Place) {
    let job = taken.task.job.clone();
    let spawned = agent.spawn("follow", move |agent| {
        let _place = place;
        follow(&agent, &taken.task);
    });
    if let Err(error) = spawned {
        let now = agent.clock().wall();
        agent.lasting.push(agent, Report::new(job, now, now, Err(error).into()), 0, true);
    }
}

/// Tells of one until nobody listens, and then why it ended.
fn follow<L: Link + 'static>(agent: &Shared<L>, task: &Task) {
    let mut link = Asker::new((agent.links)());
    let begun = agent.clock().wall();
    let told = catch_unwind(AssertUnwindSafe(|| tell(agent, task, &mut link)));
    let told =
        told.unwrap_or_else(|_| Err(Error::new(Kind::Internal, format!("{} panicked", task.op))));
    if let Err(error) = &told
        && ops::agent(&task.op).is_none()
    {
        carry::keep(agent, Class::Follow, &task.job, &Outcome::Failed { error: error.body() });
    }
    if let Err(error) = &told {
        let (job, op) = (&task.job, &task.op);
        tracing::debug!(OSAPI_JOB_ID = job, OSAPI_OP = op, "{op} ended: {error}");
    }
    let ended = agent.clock().wall().max(begun);
    let report = Report::new(task.job.clone(), begun, ended, Outcome::from(told));
    // Over the same connection: when that is closed, whoever listens takes it that the agent went.
    let finished =
        agent.told(&report).and_then(|told| link.ask(agent, &mut Ask::Finish(vec![told])));
    if let Err(error) = finished {
        tracing::debug!(%error, "nobody hears why it ended");
    }
    agent.let_go(std::iter::once(&report));
}

fn tell<L: Link + 'static>(agent: &Shared<L>, task: &Task, link: &mut Asker<L>) -> Result<Value> {
    let op = carry::admit(agent, task)?;
    if task.left(agent.clock().uptime()) == 0 {
        return Err(Error::new(Kind::Expired, "it was not begun by its deadline"));
    }
    carry::check(agent, op, task)?;
    let endless = op.run.endless().ok_or_else(|| {
        Error::new(Kind::Unsupported, format!("{} has an end, and is not followed", op.id))
    })?;
    agent.executor().only_look()?;
    let until = Instant::now() + op.timeout;
    let mut lines = endless.open(&agent.executor().view_for(task), &task.params)?;
    let mut patience = FIRST;
    loop {
        let (pieces, end) = gather(agent, &mut lines, endless, patience);
        patience = BEAT;
        if !pieces.is_empty() || end.is_none() {
            let tell = Tell { job: task.job.clone(), data: json!(pieces) };
            if let Answer::Unheard = link.ask(agent, &mut Ask::Tell(vec![tell]))? {
                return Ok(Value::Null);
            }
        }
        if let Some(error) = end {
            return Err(error);
        }
        if agent.is_stopping() {
            return Err(Error::new(Kind::Unavailable, "the agent is about to end; ask again"));
        }
        if Instant::now() >= until {
            let minutes = op.timeout.as_secs() / 60;
            let message = format!("it went on for the {minutes} minutes it may; ask again");
            return Err(Error::new(Kind::Expired, message));
        }
    }
}

/// What comes within `patience`, as much as is told at once, and why nothing more will.
fn gather<L>(
    agent: &Shared<L>,
    lines: &mut Lines,
    endless: &dyn Endless,
    patience: Duration,
) -> (Vec<Piece>, Option<Error>) {
    let until = Instant::now() + patience;
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    while pieces.len() < PIECES && bytes < BYTES {
        let left = until.saturating_duration_since(Instant::now());
        let wait = if pieces.is_empty() { left.min(NOTICE) } else { Duration::ZERO };
        let line = match lines.next(wait) {
            Ok(Line::Is(line)) => line,
            Ok(Line::NotYet) if pieces.is_empty() && !left.is_zero() && !agent.is_stopping() => {
                continue;
            }
            Ok(Line::NotYet) => break,
            Ok(Line::Over) => {
                let message = "what was followed has ended on the host; look at its journal";
                return (pieces, Some(Error::new(Kind::HostFailed, message)));
            }
            Err(error) => return (pieces, Some(error)),
        };
        match endless.piece(&line) {
            Ok(Some(piece)) => {
                bytes += line.len();
                pieces.push(piece);
            }
            // Whoever says much that is nothing is interrupted as well.
            Ok(None) if Instant::now() < until => {}
            Ok(None) => break,
            Err(error) => return (pieces, Some(error)),
        }
    }
    (pieces, None)
}
