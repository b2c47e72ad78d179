//! Changing the course of jobs: calling one off, asking for it again, deleting it.

use std::collections::HashSet;

use futures_util::future::join_all;
use serde_json::Map;
use uuid::Uuid;

use super::super::bus::Why;
use super::super::notes::entry;
use super::super::submit::Beside;
use super::super::wait::no_job;
use super::super::{Call, Controller, Status, Submit, Target, ids};
use super::{About, Cancelled, Retried, Retry};
use crate::clock::rfc3339;
use crate::error::{Error, Kind, Result};
use crate::job::{Mark, Record, encode};
use crate::ops::{self, Row};
use crate::permission::Caller;
use crate::store::{Expect, Step, audit};

/// How often something is tried again that others keep changing.
const TRIES: usize = 5;
/// Of how many jobs it is found out at a time whether they are called off.
const MOST: usize = 256;

/// The row of a job, if `caller` may do what it does.
fn original(record: &Record, caller: &Caller) -> Result<&'static Row> {
    let op = &record.job.op;
    let unknown = || Error::new(Kind::Unsupported, format!("this version does not know {op}"));
    let row = ops::find(op).ok_or_else(unknown)?;
    match row.permission {
        Some(needed) if !caller.may(Some(needed)) => {
            let message =
                format!("{op} needs the permission {needed}, which {} lacks", caller.name);
            Err(Error::new(Kind::Denied, message))
        }
        _ => Ok(row),
    }
}

/// How many jobs may be about each other: an undo of an undo, and so on.
const LONGEST_CHAIN: usize = 16;

impl Controller {
    /// Makes sure that `caller` may do what the job `id` does. What a job about another one does
    /// takes the permission of that as well.
    pub async fn permit(&self, id: &str, caller: &Caller) -> Result<()> {
        let mut id = id.to_owned();
        for _ in 0..LONGEST_CHAIN {
            let record = self.record(&id).await?;
            let row = original(&record, caller)?;
            match record.params.get("id").and_then(|id| id.as_str()) {
                Some(about) if !row.has_target() => about.clone_into(&mut id),
                _ => return Ok(()),
            }
        }
        Err(Error::new(Kind::Denied, "cannot tell who may: too many jobs are about each other"))
    }
}

impl Call {
    /// The audit entry of a call that has succeeded, about the job `id`.
    fn entry_about(&self, id: &str, code: u16) -> audit::Note {
        let ms = self.controller.clock.wall().saturating_sub(self.trail.at);
        let entry = entry(&self.trail, &self.caller, Some(code), Some(ms));
        audit::Note::Entry(audit::Entry { about: Some(id.to_owned()), ..entry })
    }
}

pub(super) async fn delete(call: Call, About { id }: About) -> Result<()> {
    let (controller, nothing) = (&call.controller, Map::new());
    let unfinished = || {
        let message = format!("job {} is not finished; cancel it first", id.as_str());
        Error::new(Kind::Conflict, message)
    };
    let uuid = Uuid::parse_str(id.as_str()).map_err(|_| no_job(id.as_str()))?;
    if ids::mark_of(uuid) != ids::STORED {
        let open = controller.lanes().get(uuid).ok_or_else(|| no_job(id.as_str()))?;
        if !controller.status(&open).is_final() {
            return Err(unfinished());
        }
        let step = Step::new().note(call.entry_about(id.as_str(), 204));
        controller.commit(call.once(step, &nothing)?).await?;
        controller.lanes().remove(uuid);
        return Ok(());
    }
    let record = controller.record(id.as_str()).await?;
    if !controller.is_final(uuid, &record).await? {
        return Err(unfinished());
    }
    let note = call.entry_about(id.as_str(), 204);
    let mut steps = controller.forgetting(&[uuid]).await?;
    let last = steps.pop().unwrap_or_default();
    let mut note = Some(note);
    for mut step in steps {
        // Nothing goes before it is noted.
        step.notes.extend(note.take());
        controller.commit(step.owed()).await?;
    }
    let last = note.into_iter().fold(last, Step::note);
    controller.commit(call.once(last, &nothing)?.owed()).await?;
    controller.lanes().remove(uuid);
    controller.index().remove(uuid);
    Ok(())
}

pub(super) async fn retry(call: Call, params: Retry) -> Result<Retried> {
    let Retry { id, target_hostname } = params;
    let controller = &call.controller;
    let is_stored = Uuid::parse_str(id.as_str()).is_ok_and(|id| ids::mark_of(id) == ids::STORED);
    for _ in 0..TRIES {
        let (record, repeats) = if is_stored {
            let (record, revision) = controller.stored(id.as_str()).await?;
            (record.clone(), Some((record, revision)))
        } else {
            (controller.record(id.as_str()).await?, None)
        };
        let read_at = repeats.as_ref().map(|(_, revision)| *revision);
        let row = original(&record, &call.caller)?;
        let about = record.params.get("id").and_then(|id| id.as_str());
        if let Some(about) = about.filter(|_| !row.has_target()) {
            controller.permit(about, &call.caller).await?;
        }
        let target = match (&target_hostname, about) {
            (None, Some(about)) if !row.has_target() => Target::HostsOf(about.to_owned()),
            (Some(_), _) if !row.has_target() => {
                let message = format!("{} is about a job and goes to the hosts of that", row.id);
                return Err(Error::new(Kind::InvalidInput, message));
            }
            (Some(target), _) => Target::Named(target.clone()),
            (None, _) => Target::Named(record.job.target.clone()),
        };
        let sealed = record.sealed;
        let submit = Submit {
            row,
            target,
            params: record.params,
            options: record.options,
            caller: call.caller.clone(),
            trail: call.trail.clone(),
            key: call.key.clone(),
        };
        let about = Some(id.as_str().to_owned());
        let beside = Beside { about, repeats, sealed, code: Some(201) };
        match controller.submit_beside(submit, beside).await {
            Err(error) if error.kind() == Kind::Conflict && read_at.is_some() => {
                let is_unchanged = Some(controller.stored(id.as_str()).await?.1) == read_at;
                if is_unchanged {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
            Ok((done, revision)) => {
                if revision == 0 {
                    // What only looks has no step of its own to be noted in.
                    let step = Step::new().note(call.entry_about(id.as_str(), 201));
                    controller.commit(step).await?;
                }
                return Ok(Retried {
                    job_id: done.job.id.clone(),
                    status: "created".to_owned(),
                    revision: i64::try_from(revision).unwrap_or(i64::MAX),
                    timestamp: rfc3339(done.job.created),
                });
            }
        }
    }
    let message = format!("job {} is being changed by others; try again", id.as_str());
    Err(Error::new(Kind::Conflict, message))
}

pub(super) async fn cancel(call: Call, About { id }: About) -> Result<Cancelled> {
    let controller = call.controller.clone();
    let uuid = Uuid::parse_str(id.as_str()).map_err(|_| no_job(id.as_str()))?;
    for _ in 0..TRIES {
        if ids::mark_of(uuid) == ids::STORED {
            // Another controller may have taken it on.
            controller.caught_up(controller.stored(id.as_str()).await?.1).await;
        }
        let record = controller.record(id.as_str()).await?;
        controller.permit(id.as_str(), &call.caller).await?;
        if !controller.lanes().is_open(uuid) || controller.is_final(uuid, &record).await? {
            let message = format!("job {} is over; there is nothing to call off", id.as_str());
            return Err(Error::new(Kind::Conflict, message));
        }
        if record.job.cancelled.is_some() {
            let message = format!("job {} was called off before", id.as_str());
            return Err(Error::new(Kind::Conflict, message));
        }
        // From here on nobody is given it.
        let hosts = controller.lanes().hold_back(uuid);
        // Who has it may let go of it for as long as its time has not come, and of who had it when
        // this controller or its agent ended, its journal knows whether it has begun.
        let asked = controller.lanes().may_let_go(uuid, ops::ends_boot(&record.job.op));
        if hosts.is_empty() && asked.is_empty() {
            if controller.lanes().is_withheld(uuid) {
                let message =
                    format!("job {} is being moved to another host; try again", id.as_str());
                return Err(Error::new(Kind::Conflict, message));
            }
            let message = format!(
                "job {} was taken by its host already and cannot be called off; undo it when it \
                 is done",
                id.as_str()
            );
            return Err(Error::new(Kind::Conflict, message));
        }
        let names = |hosts: &[String]| {
            hosts.iter().map(|host| controller.hosts().name(host)).collect::<Vec<_>>()
        };
        let (called_off, let_go) = (names(&hosts), names(&asked));
        let status = controller.without(uuid, &record, &hosts);
        let job_id = id.as_str().to_owned();
        let cancelled = Cancelled { job_id, status, hosts: called_off, asked: let_go };
        let step = Step::new().note(call.entry_about(id.as_str(), 200));
        let step = call.once(step, &cancelled)?;
        match controller.call_off(uuid, &hosts, asked, &call.caller.name, step).await {
            Ok(()) => return Ok(cancelled),
            Err(error) if error.kind() == Kind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    let message = format!("job {} is being changed by others; try again", id.as_str());
    Err(Error::new(Kind::Conflict, message))
}

impl Controller {
    /// How far a job is once it is called off for `hosts`.
    fn without(&self, id: Uuid, record: &Record, hosts: &[String]) -> Status {
        let open = self.lanes().get(id);
        let so_far = open.map(|open| open.so_far.borrow().clone()).unwrap_or_default();
        let (reports, is_cancelled) = (so_far.by_host(), so_far.cancelled.is_some());
        let hosts: HashSet<&String> = hosts.iter().collect();
        let on = |host: &String| {
            let is_off = hosts.contains(host);
            let report = reports.get(host.as_str()).copied();
            let status = || self.status_on(id, &record.job, host, report, is_cancelled);
            if is_off { Status::Failed } else { status() }
        };
        Status::overall(record.job.hosts.iter().map(on))
    }

    /// Calls a job off, which none of `hosts` had begun, with what else is in `step`; those that
    /// are `asked` have taken it.
    async fn call_off(
        &self,
        id: Uuid,
        hosts: &[String],
        asked: Vec<String>,
        by: &str,
        step: Step,
    ) -> Result<()> {
        let mark = Mark { at: self.clock.wall(), by: by.to_owned(), job: None, asked };
        if ids::mark_of(id) != ids::STORED {
            let done = self.commit(step).await;
            done.inspect_err(|_| self.lanes().refused(id, hosts))?;
            let asked = mark.asked.clone();
            self.lanes().rewritten(id, 1, Some(mark));
            self.call(&asked, Why::Off);
            return Ok(());
        }
        let step = self.called_off(id, hosts, &mark, step).await?;
        let revision = self.commit(step.owed()).await.inspect_err(|error| {
            // Otherwise it may be stored all the same, be it later or by an earlier try.
            if matches!(error.kind(), Kind::Full | Kind::Busy | Kind::TooLarge) {
                self.lanes().refused(id, hosts);
            }
        })?;
        // The watch says the same a moment later.
        let asked = mark.asked.clone();
        self.lanes().rewritten(id, revision, Some(mark));
        self.call(&asked, Why::Off);
        self.note_ended();
        Ok(())
    }

    /// The step that calls a stored job off.
    async fn called_off(
        &self,
        id: Uuid,
        hosts: &[String],
        mark: &Mark,
        step: Step,
    ) -> Result<Step> {
        let found = self.stored(&id.to_string()).await;
        let (mut record, revision) = found.inspect_err(|_| self.lanes().refused(id, hosts))?;
        if !self.lanes().calls_off(id, hosts, revision) {
            let message = format!("job {id} was handed out meanwhile");
            return Err(Error::new(Kind::Conflict, message));
        }
        record.job.cancelled = Some(mark.clone());
        if let Some(sealed) = &mut record.sealed {
            // Nobody is going to open these.
            let hosts: HashSet<&String> = hosts.iter().collect();
            sealed.retain(|host, _| !hosts.contains(host));
        }
        Ok(step.put(format!("job.{id}"), encode(&record)?, Expect::Revision(revision)))
    }

    /// Finds out which jobs are called off of which that is not known, and has the others handed
    /// out again.
    pub(in crate::controller) async fn decide_all(&self) {
        let undecided = self.lanes().undecided(MOST);
        let decide = async |(id, is_stored): (Uuid, bool)| {
            if !is_stored {
                // Who asked does not wait for the answer any more, and it only looks.
                self.lanes().give_back(id);
            } else if let Err(error) = self.decide(id).await {
                tracing::debug!(%error, OSAPI_JOB_ID = %id, "it may be called off or not");
            }
        };
        join_all(undecided.into_iter().map(decide)).await;
        self.note_ended();
    }

    async fn decide(&self, id: Uuid) -> Result<()> {
        let (mut record, mut revision) = self.stored(&id.to_string()).await?;
        if record.job.cancelled.is_none() {
            // Once it is written again, what was to call it off can take its place no more. That
            // some of its outcomes may be older than its record, whoever reads it can tell by this.
            record.job.is_settled = true;
            let expect = Expect::Revision(revision);
            let step = Step::new().put(format!("job.{id}"), encode(&record)?, expect);
            revision = self.commit(step.owed()).await?;
        }
        let asked = record.job.cancelled.as_ref().map(|mark| mark.asked.clone());
        self.lanes().read(id, revision, &record.job);
        self.call(&asked.unwrap_or_default(), Why::Off);
        Ok(())
    }

    /// Whether nothing more is expected of a job.
    async fn is_final(&self, id: Uuid, record: &Record) -> Result<bool> {
        let open = self.lanes().get(id);
        if let Some(open) = open {
            return Ok(self.status(&open).is_final());
        }
        let reports = self.reports(&record.job.id).await?;
        let is_over = record.job.cancelled.is_some() || self.is_due(&record.job);
        Ok(is_over || reports.len() >= record.job.hosts.len())
    }
}
