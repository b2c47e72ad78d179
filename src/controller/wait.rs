//! What hosts have made of a job, as soon as it is known.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::lanes::{Open, SoFar};
use super::status::Status;
use super::{Controller, ids};
use crate::error::{Error, Kind, Result};
use crate::job::{Job, Outcome, Progress, Record, Report, decode};
use crate::store::{Order, Revision};

/// Beyond what is left until a deadline, so that it has surely passed.
const SLACK: Duration = Duration::from_millis(20);

/// What is known of a job's hosts at one moment.
#[derive(Clone, Debug)]
pub struct Results {
    pub hosts: Vec<HostResult>,
    /// Whether every host is among them.
    pub complete: bool,
}

#[derive(Clone, Debug)]
pub struct HostResult {
    /// The machine id.
    pub host: String,
    pub hostname: String,
    pub report: Report,
}

impl Controller {
    /// Waits until every host has answered or `patience` runs out, and returns what there is.
    /// Hosts that did not begin before the deadline have failed with `expired`, those for which
    /// the job was called off with `cancelled`.
    pub async fn wait(&self, job: &Job, patience: Duration) -> Result<Results> {
        let open = Uuid::parse_str(&job.id).ok().and_then(|id| self.lanes().get(id));
        let Some(open) = open else { return self.results(job).await };
        let left = Duration::from_millis(self.clock.left(&job.deadline)).saturating_add(SLACK);
        let mut so_far = open.so_far.subscribe();
        let over = so_far.wait_for(|so_far| so_far.is_over);
        // Running out of patience is not an error: the caller gets what there is.
        let mut impatient = self.is_impatient.subscribe();
        let is_over = tokio::select! {
            over = tokio::time::timeout(patience.min(left), over) => over.is_ok(),
            _ = impatient.wait_for(|impatient| *impatient) => {
                // What only looks is remembered by nobody else.
                if !open.is_stored {
                    let message = "the controller is about to end; ask again";
                    return Err(Error::new(Kind::Unavailable, message));
                }
                let so_far = open.so_far.borrow().clone();
                return Ok(self.results_of(&open.record.job, &so_far));
            }
        };
        if !is_over && left < patience {
            // What a host has begun in time may go on beyond the deadline.
            self.expire();
            let over = so_far.wait_for(|so_far| so_far.is_over);
            let _ = tokio::time::timeout(patience.saturating_sub(left), over).await;
        }
        let so_far = open.so_far.borrow().clone();
        Ok(self.results_of(&open.record.job, &so_far))
    }

    /// What became of a job that is not open.
    async fn results(&self, job: &Job) -> Result<Results> {
        let record = self.record(&job.id).await?;
        let reports = self.reports(&job.id).await?;
        let cancelled = record.job.cancelled.clone();
        let so_far = SoFar {
            reports: reports.into_iter().map(|(host, report)| (host, report.into())).collect(),
            cancelled,
            ..SoFar::over()
        };
        Ok(self.results_of(&record.job, &so_far))
    }

    fn results_of(&self, job: &Job, so_far: &SoFar) -> Results {
        let id = Uuid::parse_str(&job.id).unwrap_or_default();
        let (job, reported) = (&*so_far.job(job), so_far.by_host());
        let hosts = job.hosts.iter().filter_map(|host| {
            let report = match reported.get(host.as_str()) {
                Some(report) => Report::clone(report),
                None => self.missing(id, job, host, so_far)?,
            };
            let hostname = self.hosts().name(host);
            Some(HostResult { host: host.clone(), hostname, report })
        });
        let hosts: Vec<_> = hosts.collect();
        let complete = hosts.len() == job.hosts.len();
        Results { hosts, complete }
    }

    /// What stands for the outcome of a host from which none is expected any more.
    pub(super) fn missing(
        &self,
        id: Uuid,
        job: &Job,
        host: &str,
        so_far: &SoFar,
    ) -> Option<Report> {
        let lanes = self.lanes();
        if lanes.is_missing(id, host) && (lanes.may_have(host, id) || !self.is_due(job)) {
            return None;
        }
        drop(lanes);
        let (at, kind, message) = match &so_far.cancelled {
            Some(mark) if mark.asked.iter().any(|asked| asked == host) => {
                let by = &mark.by;
                let message =
                    format!("{by} called it off, and the host has not said what became of that");
                (mark.at, Kind::Interrupted, message)
            }
            _ if [&so_far.unheard, &job.unheard].into_iter().flatten().any(|it| it == host) => {
                let message = "it was handed to the host, which has not said what became of it; \
                               look there before you ask again";
                (job.deadline.at, Kind::Interrupted, message.to_owned())
            }
            Some(mark) => {
                let message = format!("{} called it off before it began", mark.by);
                (mark.at, Kind::Cancelled, message)
            }
            None if self.is_due(job) => {
                let message = "the host did not begin it by its deadline; ask again".to_owned();
                (job.deadline.at, Kind::Expired, message)
            }
            None => return None,
        };
        let error = Error::new(kind, message).body();
        let outcome = Outcome::Failed { error };
        Some(Report::new(job.id.clone(), at, at, outcome))
    }

    /// How far an open job is.
    pub(super) fn status(&self, open: &Open) -> Status {
        let so_far = open.so_far.borrow();
        let (job, reported) = (&*so_far.job(&open.record.job), so_far.by_host());
        let on = |host: &String| {
            let report = reported.get(host.as_str()).copied();
            self.status_on(open.id, job, host, report, so_far.cancelled.is_some())
        };
        Status::overall(job.hosts.iter().map(on))
    }

    /// How far a job is on one host, which has told `report` of it.
    pub(super) fn status_on(
        &self,
        id: Uuid,
        job: &Job,
        host: &str,
        report: Option<&Report>,
        is_cancelled: bool,
    ) -> Status {
        if let Some(report) = report {
            return Status::of(report.outcome.kind());
        }
        let lanes = self.lanes();
        let begins_no_more = is_cancelled || self.is_due(job);
        if lanes.is_taken(host, id) || begins_no_more && lanes.may_have(host, id) {
            Status::Processing
        } else if begins_no_more {
            Status::Failed
        } else {
            Status::Submitted
        }
    }

    /// Whether it is too late to begin.
    pub(super) fn is_due(&self, job: &Job) -> bool {
        self.clock.left(&job.deadline) == 0
    }

    /// A job, whether it is open, in memory or in the store.
    pub async fn job(&self, id: &str) -> Result<Job> {
        self.record(id).await.map(|record| record.job)
    }

    /// How far hosts have said they are with a job, by machine id, while it goes on.
    pub(super) fn told(&self, id: Uuid) -> BTreeMap<String, Progress> {
        let open = self.lanes().get(id);
        open.map(|open| open.so_far.borrow().told.clone()).unwrap_or_default()
    }

    pub(super) async fn record(&self, id: &str) -> Result<Record> {
        if let Some(uuid) = Uuid::parse_str(id).ok().filter(|id| ids::mark_of(*id) != ids::STORED) {
            let open = self.lanes().get(uuid).ok_or_else(|| no_job(id))?;
            return Ok(Record::clone(&open.record));
        }
        Ok(self.stored(id).await?.0)
    }

    pub(super) async fn stored(&self, id: &str) -> Result<(Record, Revision)> {
        // Ids are compared as they were given out.
        let id = Uuid::parse_str(id).map_err(|_| no_job(id))?.to_string();
        match self.store.get(&format!("job.{id}")).await? {
            Some(entry) => Ok((decode(&entry.value)?, entry.revision)),
            None => Err(no_job(&id)),
        }
    }

    /// The stored outcomes of a job, by machine id.
    pub(super) async fn reports(&self, id: &str) -> Result<Vec<(String, Report)>> {
        let prefix = format!("job.{id}");
        let entries = self.store.list(&prefix, "", usize::MAX, Order::Ascending).await?;
        let host = |key: &str| key.get(prefix.len() + 1..).unwrap_or_default().to_owned();
        entries.iter().map(|entry| Ok((host(&entry.key), decode(&entry.value)?))).collect()
    }
}

pub(super) fn no_job(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("no job {id}; it may be older than what is kept"))
}
