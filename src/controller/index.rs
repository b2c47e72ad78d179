//! What became of every finished job that is stored, as one byte each: enough to list, count and
//! retire them without reading them.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::IgnoredAny;
use uuid::Uuid;

use super::Controller;
use super::status::Status;
use crate::clock::Clock;
use crate::error::{Kind, Result};
use crate::job::{Deadline, decode};
use crate::store::{Entry, Order};

/// How many records are read between two looks at what else there is to do.
const CHUNK: usize = 128;

#[derive(Default)]
pub(super) struct Index {
    /// None for a finished job that has still to be looked at.
    finished: BTreeMap<Uuid, Finished>,
    counts: [usize; Status::ALL.len()],
    /// Whether all that the store had at the start has been read.
    pub(super) is_complete: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Finished {
    pub(super) status: Status,
    /// In milliseconds since 1970.
    pub(super) created: u64,
}

impl Index {
    pub(super) fn put(&mut self, id: Uuid, finished: Finished) {
        self.remove(id);
        self.counts[finished.status as usize] += 1;
        self.finished.insert(id, finished);
    }

    pub(super) fn remove(&mut self, id: Uuid) {
        if let Some(finished) = self.finished.remove(&id) {
            self.counts[finished.status as usize] -= 1;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.finished.len()
    }

    pub(super) fn count(&self, status: Status) -> usize {
        self.counts[status as usize]
    }

    pub(super) fn get(&self, id: Uuid) -> Option<Finished> {
        self.finished.get(&id).copied()
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = (Uuid, Status)> {
        self.finished.iter().rev().map(|(id, finished)| (*id, finished.status))
    }

    /// The oldest jobs, up to `most`, for as long as `is_old` holds.
    pub(super) fn oldest(&self, most: usize, is_old: impl Fn(&Finished) -> bool) -> Vec<Uuid> {
        let old = self.finished.iter().take_while(|(_, finished)| is_old(finished));
        old.take(most).map(|(id, _)| *id).collect()
    }
}

/// As much of a job's record as its status takes.
#[derive(Deserialize)]
struct JobPeek {
    hosts: Vec<String>,
    created: u64,
    deadline: Deadline,
    #[serde(default)]
    cancelled: Option<IgnoredAny>,
}

/// As much of an outcome as its status takes.
#[derive(Deserialize)]
struct ReportPeek {
    #[serde(default)]
    error: Option<ErrorPeek>,
}

#[derive(Deserialize)]
struct ErrorPeek {
    kind: Kind,
}

/// A job and its outcomes, as far as they have been read.
struct Reading {
    id: Uuid,
    job: JobPeek,
    outcomes: Vec<Status>,
}

impl Reading {
    /// None where something is still expected.
    fn finished(&self, clock: &Clock) -> Option<Finished> {
        let missing = self.job.hosts.len().saturating_sub(self.outcomes.len());
        let is_over = self.job.cancelled.is_some() || clock.left(&self.job.deadline) == 0;
        if missing > 0 && !is_over {
            return None;
        }
        // Called off or expired: they have failed.
        let missing = std::iter::repeat_n(Status::Failed, missing);
        let status = Status::overall(self.outcomes.iter().copied().chain(missing));
        Some(Finished { status, created: self.job.created })
    }
}

impl Controller {
    /// Reads what is stored, a little at a time, until the index is complete.
    pub(super) async fn build_index(&self) -> Result<()> {
        let (mut pages, mut jobs) = (self.store.pages("job", CHUNK), Jobs::default());
        while let Some(page) = pages.next().await {
            for entry in &page? {
                self.index_reading(jobs.read(entry).as_ref());
            }
            tokio::task::yield_now().await;
        }
        self.index_reading(jobs.last.as_ref());
        self.index().is_complete = true;
        Ok(())
    }

    /// Looks at one stored job again, after something has happened to it.
    pub(super) async fn reindex(&self, id: Uuid) -> Result<()> {
        let key = format!("job.{id}");
        let Some(job) = self.store.get(&key).await? else {
            self.index().remove(id);
            return Ok(());
        };
        let outcomes = self.store.list(&key, "", usize::MAX, Order::Ascending).await?;
        let mut jobs = Jobs::default();
        for entry in std::iter::once(&job).chain(&outcomes) {
            jobs.read(entry);
        }
        self.index_reading(jobs.last.as_ref());
        Ok(())
    }

    fn index_reading(&self, reading: Option<&Reading>) {
        let Some(reading) = reading else { return };
        // What is open is not finished, whatever its record says.
        if self.lanes().get(reading.id).is_some() {
            return;
        }
        if let Some(finished) = reading.finished(&self.clock) {
            self.index().put(reading.id, finished);
        }
    }
}

/// Puts jobs together from their records, which come in order of key.
#[derive(Default)]
struct Jobs {
    /// More of it may come.
    last: Option<Reading>,
}

impl Jobs {
    /// Takes one record more. The job before, where this one is of another.
    fn read(&mut self, entry: &Entry) -> Option<Reading> {
        let id = job_of(&entry.key)?;
        if entry.key.len() == "job.".len() + 36 {
            let job = decode(&entry.value)
                .inspect_err(|error| tracing::error!(%error, %id, "cannot read a job"));
            let next = job.ok().map(|job| Reading { id, job, outcomes: Vec::new() });
            return std::mem::replace(&mut self.last, next);
        }
        let reading = self.last.as_mut().filter(|reading| reading.id == id)?;
        match decode::<ReportPeek>(&entry.value) {
            Ok(report) => reading.outcomes.push(Status::of(report.error.map(|error| error.kind))),
            Err(error) => tracing::error!(%error, %id, "cannot read an outcome"),
        }
        None
    }
}

/// The job that a key belongs to.
pub(super) fn job_of(key: &str) -> Option<Uuid> {
    let id = key.strip_prefix("job.")?.get(..36)?;
    Uuid::parse_str(id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_what_is_put_and_removed() {
        let mut index = Index::default();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        index.put(a, Finished { status: Status::Failed, created: 1 });
        index.put(b, Finished { status: Status::Completed, created: 2 });
        index.put(a, Finished { status: Status::Completed, created: 1 });
        assert_eq!((index.len(), index.count(Status::Completed)), (2, 2));
        assert_eq!(index.oldest(9, |finished| finished.created < 2), [a]);
        let newest: Vec<_> = index.newest_first().map(|(id, _)| id).collect();
        assert_eq!(newest, [b, a]);
        index.remove(a);
        assert_eq!((index.len(), index.count(Status::Completed)), (1, 1));
        assert_eq!(index.count(Status::Failed), 0);
    }
}
