//! What hosts say has become of jobs, put on record once.

use std::sync::Arc;

use uuid::Uuid;

use super::notes::OUTCOMES_REPEATED;
use super::status::Status;
use super::{Controller, ids};
use crate::error::{Error, Kind, Result};
use crate::job::{Mark, Outcome, Record, Report, decode, encode};
use crate::link::Told;
use crate::ops;
use crate::store::{Expect, Step, audit};

impl Controller {
    /// Stores outcomes, each once: a second report of the same is as good as the first. They
    /// share one commit.
    pub(super) async fn finish(self: &Arc<Self>, host: &str, told: Vec<Told>) -> Result<()> {
        let reports = self.verified(host, &told).inspect_err(|error| {
            self.note_unbelieved(host, told.len() as u64, error);
        })?;
        let (amends, reports): (Vec<_>, Vec<_>) =
            reports.into_iter().partition(|report| report.amends);
        // First what was taken back, so that whoever asked for that sees it.
        for report in amends {
            self.finish_one(host, report).await?;
        }
        let finished = reports.into_iter().map(|report| self.finish_one(host, report));
        let results = futures_util::future::join_all(finished).await;
        self.note_cordoned(host).await;
        results.into_iter().collect()
    }

    async fn finish_one(self: &Arc<Self>, host: &str, report: Report) -> Result<()> {
        let Ok(id) = Uuid::parse_str(&report.job) else {
            let message = format!("{:?} is not the id of a job", report.job);
            return Err(Error::new(Kind::InvalidInput, message));
        };
        if ids::mark_of(id) != ids::STORED {
            // If it is gone, so is whoever asked.
            let report = self.bounded(report)?.0;
            let open = self.lanes().get(id);
            if let Some(open) = open {
                self.count_finished(&open.record.job.op, Status::of(report.outcome.kind()));
                self.lanes().finish(id, host, report);
            }
            return Ok(());
        }
        let open = self.lanes().get(id);
        let stored;
        let record = match &open {
            Some(open) => &open.record,
            None => match Box::pin(self.stored(&report.job)).await {
                Ok((record, _)) => {
                    stored = record;
                    &stored
                }
                // Deleted meanwhile: nobody wants to know any more.
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            },
        };
        // The lane is asked first: a job may be for very many hosts.
        let is_missing = self.lanes().is_missing(id, host);
        if !is_missing && !record.job.hosts.iter().any(|name| name == host) {
            let message = format!("job {id} is not for {host}");
            return Err(Error::new(Kind::Denied, message));
        }
        if report.amends {
            return Box::pin(self.amend(host, record, id, report)).await;
        }
        let is_confirmed = record.job.op == "job.confirm" && report.outcome.kind().is_none();
        let about = record.params.get("id").and_then(serde_json::Value::as_str);
        if let Some(about) = about.filter(|_| is_confirmed) {
            for _ in 0..2 {
                let step = self.ending(host, record, id, report.clone(), Expect::Absent)?;
                let marked = Box::pin(self.marked(step, about, &record.job.caller)).await?;
                let Some(step) = marked else { break };
                match self.commit(step).await {
                    // Whether the one is stored already or the other has changed is not said.
                    Err(error) if error.kind() == Kind::Conflict => {}
                    Err(error) => return Err(error),
                    Ok(_) => {
                        self.lanes().reported(id, host);
                        return Ok(());
                    }
                }
            }
        }
        if record.sealed.is_some()
            && Box::pin(self.end_with_secrets(host, record, id, &report)).await?
        {
            return Ok(());
        }
        let (report, value) = self.bounded(report)?;
        let step = self.ended(host, record, id, (&report, value), Expect::Absent);
        match self.commit(step).await {
            Ok(revision) => {
                if let Some(open) = &open {
                    self.take_outcome(open, host, report, Some(revision));
                }
            }
            Err(error) if error.kind() == Kind::Conflict => self.count(OUTCOMES_REPEATED, host, 1),
            Err(error) => return Err(error),
        }
        self.lanes().reported(id, host);
        Ok(())
    }

    /// `step`, and that `by` has confirmed the job `about`; None where that is on record.
    async fn marked(&self, step: Step, about: &str, by: &str) -> Result<Option<Step>> {
        let (mut record, revision) = match self.stored(about).await {
            Ok(found) => found,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if record.job.confirmed.is_some() {
            return Ok(None);
        }
        let mark = Mark { at: self.clock.wall(), by: by.to_owned(), job: None, asked: Vec::new() };
        record.job.confirmed = Some(mark);
        let key = format!("job.{}", record.job.id);
        Ok(Some(step.put(key, encode(&record)?, Expect::Revision(revision))))
    }

    /// Stores that a change was taken back which was reported as done. What was reported
    /// otherwise stays, and so does what is told twice.
    async fn amend(&self, host: &str, record: &Record, id: Uuid, report: Report) -> Result<()> {
        let mut conflict = None;
        for _ in 0..2 {
            let mut report = report.clone();
            let expect = match self.store.get(&format!("job.{id}.{host}")).await? {
                None => Expect::Absent,
                Some(entry) => {
                    let before: Report = decode(&entry.value)?;
                    if before.outcome.kind().is_some() {
                        return Ok(());
                    }
                    report.begun = before.begun;
                    report.stood = Some(before.ended);
                    report.ended = report.ended.max(before.ended);
                    Expect::Revision(entry.revision)
                }
            };
            match self.commit(self.ending(host, record, id, report, expect)?).await {
                Err(error) if error.kind() == Kind::Conflict => conflict = Some(error),
                Err(error) => return Err(error),
                Ok(_) => {
                    self.lanes().reported(id, host);
                    return Ok(());
                }
            }
        }
        conflict.map_or(Ok(()), Err)
    }

    /// The step that ends a job on one host.
    pub(super) fn ending(
        &self,
        host: &str,
        record: &Record,
        id: Uuid,
        report: Report,
        expect: Expect,
    ) -> Result<Step> {
        let (report, value) = self.bounded(report)?;
        Ok(self.ended(host, record, id, (&report, value), expect))
    }

    /// The same with a report that is not too large, and what is stored of it.
    fn ended(
        &self,
        host: &str,
        record: &Record,
        id: Uuid,
        (report, value): (&Report, bytes::Bytes),
        expect: Expect,
    ) -> Step {
        let at = self.clock.wall();
        let kind = report.outcome.kind();
        let success = ops::find(&record.job.op).map_or(200, |row| row.status);
        let code = match kind {
            None | Some(Kind::Unsupported) => success,
            Some(kind) => kind.status(),
        };
        let (entry, ms) = (record.job.id.clone(), at.saturating_sub(record.job.created));
        let end = audit::End { entry, at, host: host.to_owned(), code, ms, kind };
        let mut step = Step::new();
        if self.lanes().is_last_of_parked(id, host) {
            step = step.delete(format!("parked.{id}"), Expect::Anything);
        }
        let step = step.put(format!("job.{id}.{host}"), value, expect);
        step.note(audit::Note::End(end)).owed()
    }

    /// An outcome that is too large to be kept is replaced by one that says so.
    pub(super) fn bounded(&self, mut report: Report) -> Result<(Report, bytes::Bytes)> {
        let mut value = encode(&report)?;
        if value.len() > self.limits.outcome {
            let did = match report.outcome {
                Outcome::Done { .. } => "it was done",
                Outcome::Failed { .. } => "it failed",
            };
            let message = format!(
                "{did}, but its outcome is {} bytes, more than the {} that are kept; ask for less",
                value.len(),
                self.limits.outcome
            );
            let error = Error::new(Kind::HostFailed, message).body();
            report.outcome = Outcome::Failed { error };
            value = encode(&report)?;
        }
        Ok((report, value))
    }
}
