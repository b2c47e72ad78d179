//! What is given to units of the service manager to do, and what came of it.
//!
//! An agent writes an errand down and has a unit started that knows nothing but the job and the
//! errand's number. Whoever acts in that unit has the job's second lock from before it looks here
//! until it has written its answer, and so have the programs that it starts. So whoever gets that
//! lock finds an answer, or knows that there will be none, and revokes the errand: a unit that
//! starts later than that does nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::cell::Value;
use super::super::command::Done;
use super::super::plan::Step;
use super::{Entry, Event, Journal, Turn};
use crate::error::{Error, ErrorBody, Kind, Result};

/// What follows a job's name in that of its second lock.
pub(super) const UNIT: &str = ".unit";

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(in crate::host) struct Errand {
    /// Tells it from others of the same job.
    pub(in crate::host) number: u32,
    pub(in crate::host) part: Part,
    /// How long one command of it may last.
    pub(in crate::host) limit: Duration,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::host) enum Part {
    /// A step of the job's plan or of the way back, or several that go together; and what the
    /// cell of each holds, where one is to be assigned.
    Steps { steps: Vec<Step>, now: Vec<Option<Value>> },
    /// The job's act.
    Act,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::host) enum Answer {
    Done(Box<Done>),
    Failed(ErrorBody),
}

impl From<Result<Done>> for Answer {
    fn from(done: Result<Done>) -> Self {
        match done {
            Ok(done) => Self::Done(Box::new(done)),
            Err(error) => Self::Failed(error.body()),
        }
    }
}

impl From<Answer> for Result<Done> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Done(done) => Ok(*done),
            Answer::Failed(body) => Err(body.into()),
        }
    }
}

/// The last errand of a job.
#[derive(Debug)]
pub(in crate::host) struct Handed {
    pub(in crate::host) errand: Errand,
    pub(in crate::host) end: Option<End>,
}

#[derive(Debug)]
pub(in crate::host) enum End {
    Answered(Answer),
    Revoked,
}

impl Entry {
    /// Whether a unit may be at work, or still begin.
    pub(in crate::host) fn is_handed(&self) -> bool {
        self.handed.as_ref().is_some_and(|handed| handed.end.is_none())
    }

    /// The errand of that number, if somebody waits for its answer.
    pub(in crate::host) fn errand(&self, number: u32) -> Option<&Errand> {
        let handed = self.handed.as_ref().filter(|handed| handed.end.is_none())?;
        Some(&handed.errand).filter(|errand| errand.number == number)
    }

    pub(super) fn end(&mut self, number: u32, end: End) {
        if let Some(handed) = self.handed.as_mut().filter(|last| last.errand.number == number) {
            handed.end.get_or_insert(end);
        }
    }
}

impl Journal {
    /// Waits for its turn to act for `job` in a unit, or to look what became of that.
    pub(in crate::host) fn unit(&self, job: &str) -> Result<Turn> {
        Self::check(job)?;
        self.lock(&format!("{job}{UNIT}"))
    }

    /// Writes down what the next unit of `job` is to do, and says by which number.
    pub(in crate::host) fn hand(&self, job: &str, part: Part, limit: Duration) -> Result<u32> {
        let last = self.load(job)?.handed.map_or(0, |handed| handed.errand.number);
        let number = last.saturating_add(1);
        self.write(job, &Event::Handed(Box::new(Errand { number, part, limit })))?;
        Ok(number)
    }

    /// Waits until no unit is at work for `job` and sees to it that none begins. Returns what the
    /// last one answered, where it lived to answer.
    pub(in crate::host) fn rejoin(&self, job: &str) -> Result<Option<Answer>> {
        let _unit = self.unit(job)?;
        let Some(Handed { errand, end }) = self.load(job)?.handed else { return Ok(None) };
        match end {
            Some(End::Answered(answer)) => Ok(Some(answer)),
            Some(End::Revoked) => Ok(None),
            None => {
                self.write(job, &Event::Revoked { number: errand.number })?;
                Ok(None)
            }
        }
    }

    /// Refuses a directory that keeps no journal, rather than to begin one there.
    pub(in crate::host) fn must_exist(dir: &std::path::Path) -> Result<()> {
        if dir.join("open").is_dir() {
            return Ok(());
        }
        let message = format!("there is no journal of an agent in {}", dir.display());
        Err(Error::new(Kind::NotFound, message))
    }
}
