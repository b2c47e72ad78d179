//! One task, from the check whether this agent may do it to the report of what came of it.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde_json::{Value, json};

use super::Shared;
use super::lane::Taken;
use crate::error::{Error, Kind, Result};
use crate::job::{Outcome, Report, Task};
use crate::link::{Class, Link};
use crate::op::{Access, Agent, Op};
use crate::ops;
use crate::seal::{self, Way};
use crate::types::refuse_facts;

/// How soon to try again what has no answer yet, because the journal could not take it.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a task may panic before that is its answer. What it had begun is then for the
/// journal to settle.
const PANICS: u32 = 3;
/// The largest outcome, in bytes of JSON.
pub(super) const MAX_OUTCOME: usize = 768 * 1024;
/// What an outcome is never cut to less than, in bytes of JSON.
const LEAST_OUTCOME: usize = 4 * 1024;

/// A report, and about how many bytes of JSON it has.
pub(super) struct Sized {
    pub(super) report: Report,
    pub(super) size: usize,
}

/// Carries a task out. None where the agent stops before there is an answer: what has none may
/// be half done, and nothing may be built on that.
///
/// There is no limit in time here: every step has one of its own, and an answer that is given
/// before the host has come to rest would be a guess.
pub(super) fn out<L: Link + 'static>(agent: &Shared<L>, taken: Taken) -> Option<Sized> {
    let Taken { task, class } = taken;
    let begun = agent.clock().wall();
    let mut panics = 0;
    let outcome = loop {
        match catch_unwind(AssertUnwindSafe(|| attempt(agent, &task))) {
            Ok(Ok(outcome)) => break outcome,
            Ok(Err(error)) => {
                let (job, op) = (&task.job, &task.op);
                tracing::error!(OSAPI_JOB_ID = job, OSAPI_OP = op, %error, "no answer yet");
            }
            Err(_) if panics + 1 < PANICS => panics += 1,
            Err(_) => {
                break Err(Error::new(Kind::Internal, format!("{} panicked", task.op))).into();
            }
        }
        if agent.is_stopping() {
            return None;
        }
        std::thread::sleep(AGAIN);
    };
    let (outcome, size) = fit(outcome);
    tell(&task, &outcome);
    if outcome.kind().is_some() {
        keep(agent, class, &task.job, &outcome);
    }
    let ended = agent.clock().wall().max(begun);
    Some(Sized { report: Report::new(task.job, begun, ended, outcome), size })
}

/// An error means that there is no answer yet.
fn attempt<L: Link + 'static>(agent: &Shared<L>, task: &Task) -> Result<Outcome> {
    let op = match admit(agent, task) {
        Ok(op) => op,
        Err(error) => return Ok(Err(error).into()),
    };
    let mut opened = Opened::new(op, task);
    let allowed = opened.open(agent).and_then(|()| check(agent, op, &opened.task));
    if let Err(error) = allowed
        && !agent.executor().is_begun(task)?
    {
        return Ok(Err(error).into());
    }
    let task = &*opened.task;
    let left = || task.left(agent.clock().uptime());
    if only_looks(task) && left() == 0 {
        return Ok(Err(Error::new(Kind::Expired, "it was not begun by its deadline")).into());
    }
    if let Err(error) = super::fetch::objects(agent, task)
        && !agent.executor().is_begun(task)?
    {
        // Without them nothing was begun. Whoever hands them out may be away for a moment.
        let passing = matches!(error.kind(), Kind::Unavailable | Kind::Timeout);
        return if passing && left() > 0 { Err(error) } else { Ok(Err(error).into()) };
    }
    agent.executor().run(op, task)
}

/// A task with its secrets, which are overwritten when it is over.
struct Opened<'a> {
    op: &'static Op<Agent>,
    task: Cow<'a, Task>,
    /// Where its secrets are, if it can have any.
    ways: &'static [Way],
}

impl<'a> Opened<'a> {
    fn new(op: &'static Op<Agent>, task: &'a Task) -> Self {
        Self { op, task: Cow::Borrowed(task), ways: seal::ways(op.id, op.run) }
    }

    fn open<L>(&mut self, agent: &Shared<L>) -> Result<()> {
        let Some(sealed) = self.task.sealed.clone() else {
            if !seal::has_any(&self.task.params, self.ways) {
                return Ok(());
            }
            let message = "the secret of this job is no longer kept; ask again with the secret";
            return Err(Error::new(Kind::Conflict, message));
        };
        let params = &mut self.task.to_mut().params;
        agent.key.open(&sealed, &agent.setup.machine_id, self.op.id, self.ways, params)
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(task) = &mut self.task {
            seal::wipe(&mut task.params, self.ways);
        }
    }
}

/// Whether nothing is changed by it. What nobody knows is refused, and so changes nothing.
fn only_looks(task: &Task) -> bool {
    ops::agent(&task.op).is_none_or(|op| match op.run.access() {
        Access::Read => true,
        Access::Write => task.options.dry_run,
        Access::Execute => false,
    })
}

/// Whether this agent can do such a task at all: whoever hands it out is not trusted further.
pub(super) fn admit<L>(agent: &Shared<L>, task: &Task) -> Result<&'static Op<Agent>> {
    let own = &agent.setup.machine_id;
    if task.host != *own {
        let message = format!("the task is for {}, and this is {own}", task.host);
        return Err(Error::new(Kind::Denied, message));
    }
    ops::agent(&task.op).ok_or_else(|| {
        Error::new(Kind::Unsupported, format!("this agent has no operation {:?}", task.op))
    })
}

/// Whether it may be begun. That is over once it was, whatever is allowed by now: then only the
/// journal can tell the truth about it.
pub(super) fn check<L>(agent: &Shared<L>, op: &Op<Agent>, task: &Task) -> Result<()> {
    agent.setup.policy.check(op)?;
    parse(op, &task.params)
}

/// Refuses what `op` does not take, and references to facts, which no host resolves.
fn parse(op: &Op<Agent>, params: &Value) -> Result<()> {
    let ways = seal::ways(op.id, op.run);
    refuse_facts(params, |pointer| seal::leads_to(ways, pointer))?;
    op.run.check(params)
}

/// Has a task that was never begun stay so, where somebody may have kept a copy that he hands out
/// again: what this agent cannot read or do, the next one may. Of what came in the turn of reads
/// nothing is kept, nor could it be from a thread that only looks.
pub(super) fn keep<L>(agent: &Shared<L>, class: Class, job: &str, outcome: &Outcome) {
    if class == Class::Look || !agent.answers_once() {
        return;
    }
    if let Err(error) = agent.executor().never(job, outcome) {
        tracing::warn!(OSAPI_JOB_ID = job, %error, "its answer is not kept");
    }
}

fn tell(task: &Task, outcome: &Outcome) {
    let (job, op, host) = (&task.job, &task.op, &task.host);
    match outcome {
        Outcome::Failed { error } => tracing::info!(
            OSAPI_JOB_ID = job,
            OSAPI_OP = op,
            OSAPI_HOST = host,
            kind = %error.kind,
            "{op} failed: {}",
            error.message
        ),
        Outcome::Done { result } if result.get("changed") == Some(&json!(true)) => tracing::info!(
            OSAPI_JOB_ID = job,
            OSAPI_OP = op,
            OSAPI_HOST = host,
            "{op} changed the host"
        ),
        Outcome::Done { .. } => {
            tracing::debug!(OSAPI_JOB_ID = job, OSAPI_OP = op, OSAPI_HOST = host, "{op} is done");
        }
    }
}

/// Cuts what is too large to be stored, and says so with `truncated`.
pub(super) fn fit(outcome: Outcome) -> (Outcome, usize) {
    fit_into(outcome, MAX_OUTCOME)
}

/// Cuts what was too large to be told on the way that there is; None where there is nothing left to
/// cut.
pub(super) fn shorter(report: Report) -> Option<Sized> {
    let before = size_of(&report.outcome);
    let (outcome, size) = fit_into(report.outcome, before / 2);
    let report = Report { outcome, ..report };
    (before / 2 >= LEAST_OUTCOME && size < before).then_some(Sized { report, size })
}

/// Cuts an outcome to `most` bytes of JSON, at least [`LEAST_OUTCOME`].
fn fit_into(outcome: Outcome, most: usize) -> (Outcome, usize) {
    let size = size_of(&outcome);
    if size <= most {
        return (outcome, size);
    }
    let outcome = match outcome {
        Outcome::Done { mut result } => {
            while size_of(&result) > most - most / 8 && halve_largest(&mut result) {}
            if let Some(result) = result.as_object_mut() {
                result.insert("truncated".to_owned(), json!(true));
            }
            Outcome::Done { result }
        }
        Outcome::Failed { mut error } => {
            // Every character takes at most six bytes of JSON.
            error.message = error.message.chars().take(most / 96).collect();
            error.message.push_str(" [truncated]");
            error.problems.truncate(most >> 13);
            error.not_restored.truncate(most >> 9);
            Outcome::Failed { error }
        }
    };
    let size = size_of(&outcome);
    (outcome, size)
}

fn size_of(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting does not fail, and what cannot be encoded fails when it is sent.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

/// Halves the list or text that takes the most room; false where there is nothing to halve.
fn halve_largest(value: &mut Value) -> bool {
    match value {
        Value::String(text) if text.len() > 1 => {
            text.truncate(text.floor_char_boundary(text.len() / 2));
            true
        }
        Value::Array(list) => {
            let largest = (0..list.len()).max_by_key(|&index| size_of(&list[index]));
            let Some(largest) = largest else { return false };
            let total: usize = list.iter().map(size_of).sum();
            // One entry that is most of the list is to blame rather than their number.
            if size_of(&list[largest]) * 2 > total && halve_largest(&mut list[largest]) {
                return true;
            }
            list.truncate(list.len() / 2);
            true
        }
        Value::Object(map) => {
            let largest = map.values_mut().max_by_key(|value| size_of(&**value));
            largest.is_some_and(halve_largest)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_host_is_asked_about_a_reference_to_a_fact_and_a_password_is_none() {
        let parse = |op: &str, params: &Value| parse(ops::agent(op).unwrap(), params);
        let params = json!({ "command": "echo", "args": ["@fact.hostname"] });
        let error = parse("command.exec.execute", &params).unwrap_err().body();
        assert_eq!((error.kind, &*error.problems[0].pointer), (Kind::InvalidInput, "/args/0"));
        let password = |name: &str| json!({ "name": name, "password": "a@fact.b" });
        parse("node.user.password", &password("ada")).unwrap();
        let error = parse("node.user.password", &password("@fact.x")).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
    }

    #[test]
    fn what_is_too_large_is_cut_and_says_so() {
        let entries: Vec<_> =
            (0..40_000).map(|n| json!({ "name": format!("entry {n}") })).collect();
        for large in [json!({ "list": entries, "n": 1 }), json!({ "text": "ä".repeat(800_000) })] {
            let (outcome, size) = fit(Outcome::Done { result: large.clone() });
            assert!(size <= MAX_OUTCOME && size > MAX_OUTCOME / 4, "{size}");
            let Outcome::Done { result } = outcome else { panic!("it failed") };
            assert_eq!(result["truncated"], true);
            assert_eq!(result["n"], large["n"]);
        }
        let error = Error::new(Kind::HostFailed, "\u{1}".repeat(2_000_000)).body();
        assert!(fit(Outcome::Failed { error }).1 <= MAX_OUTCOME);
        let small = Outcome::Done { result: json!({ "a": 1 }) };
        assert_eq!(fit(small.clone()).0, small);
    }

    #[test]
    fn what_does_not_go_through_is_cut_until_it_does() {
        let result = json!({ "changed": true, "stdout": "\"".repeat(300_000) });
        let mut report = Report::new("j".to_owned(), 1, 2, Outcome::Done { result });
        let mut sizes = vec![size_of(&report.outcome)];
        while let Some(cut) = shorter(report.clone()) {
            assert_eq!(cut.size, size_of(&cut.report.outcome));
            assert!(cut.size * 2 <= *sizes.last().unwrap(), "{sizes:?}");
            sizes.push(cut.size);
            report = cut.report;
        }
        assert!(sizes.len() > 4 && *sizes.last().unwrap() < 2 * LEAST_OUTCOME, "{sizes:?}");
        let Outcome::Done { result } = report.outcome else { panic!("it failed") };
        assert_eq!((&result["changed"], &result["truncated"]), (&json!(true), &json!(true)));
    }
}
