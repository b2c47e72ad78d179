//! What is given to units of the service manager to do, and what came of it.
//!
//! An agent writes an errand down and has a unit started that knows nothing but the job and the
//! errand's number. Whoever acts in that unit has the errand's lock from before it looks here
//! until it has written its answer, and so have the programs that it starts. So whoever gets that
//! lock finds an answer, or knows that there will be none, and revokes the errand: a unit that
//! starts later than that does nothing. What somebody has left running without an answer may keep
//! that lock, which is why every errand has its own: the next one is not held up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::cell::Value;
use super::super::command::Done;
use super::super::plan::Step;
use super::{Entry, Event, Journal, Turn};
use crate::error::{Error, ErrorBody, Kind, Result};

/// What follows job and number in the name of an errand's lock.
const UNIT: &str = ".unit";

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(in crate::host) struct Errand {
    /// Tells it from others of the same job.
    pub(in crate::host) number: u32,
    pub(in crate::host) part: Part,
    /// How long one command of it may last.
    pub(in crate::host) limit: Duration,
    /// Seconds on this boot's clock, without those that the host slept, by which its unit and all
    /// that is in it have ended, or are ended. Where none is named, whoever waits for it counts
    /// from when it began to wait.
    #[serde(default)]
    pub(in crate::host) due: Option<u64>,
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

/// What became of an errand, as far as whoever looks can tell.
pub(in crate::host) enum Met {
    /// Nobody is at work for it, and nobody will be. What was answered, where anything was.
    Over(Option<Answer>),
    /// Somebody has its lock.
    AtWork { number: u32, due: Option<u64>, limit: Duration },
}

impl End {
    fn answer(self) -> Option<Answer> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::Revoked => None,
        }
    }
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
    /// Waits for its turn to do the errand of that number.
    pub(in crate::host) fn unit(&self, job: &str, number: u32) -> Result<Turn> {
        Self::check(job)?;
        self.lock(&lock_of(job, number))
    }

    /// Writes down what the next unit of `job` is to do, by when, and says by which number.
    pub(in crate::host) fn hand(
        &self,
        job: &str,
        part: Part,
        limit: Duration,
        due: u64,
    ) -> Result<u32> {
        let last = self.load(job)?.handed.map_or(0, |handed| handed.errand.number);
        let number = last.saturating_add(1);
        self.write(job, &Event::Handed(Box::new(Errand { number, part, limit, due: Some(due) })))?;
        Ok(number)
    }

    /// Looks whether a unit is at work for `job`. If none is, sees to it that none begins.
    pub(in crate::host) fn meet(&self, job: &str) -> Result<Met> {
        let Some(Handed { errand, end }) = self.load(job)?.handed else {
            return Ok(Met::Over(None));
        };
        let Errand { number, due, limit, .. } = errand;
        if let Some(end) = end {
            return Ok(Met::Over(end.answer()));
        }
        match self.try_lock(&lock_of(job, number))? {
            Some(_unit) => self.revoke(job, number).map(Met::Over),
            None => Ok(Met::AtWork { number, due, limit }),
        }
    }

    /// Sees to it that whoever has the errand of that number, or comes to do it, comes too late.
    /// Returns the answer where there is one already.
    pub(in crate::host) fn revoke(&self, job: &str, number: u32) -> Result<Option<Answer>> {
        if self.load(job)?.errand(number).is_some() {
            self.write(job, &Event::Revoked { number })?;
        }
        // Of two ends the first one counts.
        Ok(self.load(job)?.handed.and_then(|handed| handed.end).and_then(End::answer))
    }

    /// Removes the locks of the errands of `job`.
    pub(super) fn drop_units(&self, job: &str) {
        let locks = self.dir.join("locks");
        for lock in std::fs::read_dir(&locks).into_iter().flatten().flatten() {
            let name = lock.file_name();
            if name.to_str().is_some_and(|name| job_of(name) == job && name != job) {
                let _ = std::fs::remove_file(locks.join(name));
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

fn lock_of(job: &str, number: u32) -> String {
    format!("{job}.{number}{UNIT}")
}

/// The job to which the lock of that name belongs; no job's name has a dot.
pub(super) fn job_of(lock: &str) -> &str {
    lock.split_once('.').map_or(lock, |(job, _)| job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_says_no_time_is_read() {
        let line = r#"{"handed":{"number":3,"part":"act","limit":{"secs":5,"nanos":0}}}"#;
        let Ok(Event::Handed(errand)) = serde_json::from_str(line) else { panic!("not read") };
        assert_eq!((errand.number, errand.due), (3, None));
    }
}
