//! What became of every finished job that is stored, as one byte each: enough to list, count and
//! retire them without reading them.

use std::collections::BTreeMap;

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

/// A job and its outcomes while they are being read, one record after the other.
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
        let mut after = String::new();
        loop {
            let entries = self.store.list("job", &after, CHUNK, Order::Ascending).await?;
            let Some(last) = entries.last() else { break };
            let is_last_chunk = entries.len() < CHUNK;
            // A job may be cut in two by the end of the chunk; the next begins before it then.
            let cut = job_of(&last.key).map(|id| format!("job.{id}"));
            let mut kept: Vec<&Entry> = entries.iter().collect();
            if !is_last_chunk && let Some(cut) = &cut {
                let whole = entries.iter().take_while(|entry| !entry.key.starts_with(cut)).count();
                if whole > 0 {
                    kept.truncate(whole);
                }
            }
            after = kept.last().map_or_else(|| last.key.clone(), |entry| entry.key.clone());
            for reading in read(kept.into_iter()) {
                self.index_reading(&reading);
            }
            if is_last_chunk {
                break;
            }
            tokio::task::yield_now().await;
        }
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
        for reading in read(std::iter::once(&job).chain(&outcomes)) {
            self.index_reading(&reading);
        }
        Ok(())
    }

    fn index_reading(&self, reading: &Reading) {
        // What is open is not finished, whatever its record says.
        if self.lanes().get(reading.id).is_some() {
            return;
        }
        if let Some(finished) = reading.finished(&self.clock) {
            self.index().put(reading.id, finished);
        }
    }
}

fn read<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<Reading> {
    let mut found: Vec<Reading> = Vec::new();
    for entry in entries {
        let Some(id) = job_of(&entry.key) else { continue };
        let is_job = entry.key.len() == "job.".len() + 36;
        if is_job {
            match decode(&entry.value) {
                Ok(job) => found.push(Reading { id, job, outcomes: Vec::new() }),
                Err(error) => tracing::error!(%error, %id, "cannot read a job"),
            }
        } else if let Some(reading) = found.last_mut().filter(|reading| reading.id == id) {
            match decode::<ReportPeek>(&entry.value) {
                Ok(report) => {
                    reading.outcomes.push(Status::of(report.error.map(|error| error.kind)));
                }
                Err(error) => tracing::error!(%error, %id, "cannot read an outcome"),
            }
        }
    }
    found
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
