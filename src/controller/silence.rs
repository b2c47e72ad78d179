//! Answering for hosts that do not, where somebody only looks.
//!
//! A change waits for its host until its deadline. Who looks waits for nobody of whom it is known
//! that he is away, and those who have answered are not held up by those who have not. A host that
//! was handed a change and is never heard of again may have made it.

use futures_util::future::join_all;
use uuid::Uuid;

use super::lanes::Open;
use super::status::Status;
use super::{Controller, Results, millis};
use crate::error::{Error, Kind, Result};
use crate::job::{Job, Outcome, Record, Report, encode};
use crate::link::Class;
use crate::ops;
use crate::store::{Expect, Step};

/// How many jobs are given up at a time.
const MOST: usize = 256;

impl Controller {
    /// The hosts of a job that looks from which nothing is to be expected, each with what is to be
    /// said instead. What any host may do waits for whichever comes, and who follows tries again.
    pub(super) fn absent(&self, job: &Job, class: Class) -> Vec<(String, Error)> {
        if class != Class::Look || job.target == "_any" {
            return Vec::new();
        }
        let (hosts, uptime) = (self.hosts(), self.heard_until());
        let absence = |host: &String| {
            let why = hosts.absence(host, uptime, self.started)?;
            let message = format!("{why}; ask again when it is back");
            Some((host.clone(), Error::new(Kind::Expired, message)))
        };
        job.hosts.iter().filter_map(absence).collect()
    }

    /// Waits no longer for a job that looks: whoever has not answered by now has failed.
    pub async fn give_up(&self, job: &Job) -> Result<Results> {
        let id = Uuid::parse_str(&job.id).unwrap_or_default();
        let open = self.lanes().get(id).filter(|open| !open.is_stored);
        if let Some(open) = open {
            let seconds = self.clock.wall().saturating_sub(job.created).div_ceil(1000);
            let left: Vec<_> = {
                let (lanes, hosts) = (self.lanes(), self.hosts());
                let left = open.record.job.hosts.iter().filter(|host| lanes.is_missing(id, host));
                let uptime = self.heard_until();
                let verdict = |host: &String| {
                    let (kind, why) = match hosts.absence(host, uptime, self.started) {
                        Some(why) => (Kind::Expired, why),
                        None if lanes.is_taken(host, id) => {
                            (Kind::HostFailed, format!("no answer within {seconds} s"))
                        }
                        None => (Kind::Expired, format!("not taken within {seconds} s")),
                    };
                    (host.clone(), Error::new(kind, format!("{why}; ask again")))
                };
                left.map(verdict).collect()
            };
            for (host, error) in left {
                self.answer_for(&open, &host, job.created, error);
            }
        }
        self.wait(job, std::time::Duration::ZERO).await
    }

    /// Answers for hosts that look for longer than that may take, `now` on the clock of the boot.
    /// They cannot be made to stop, and whatever they say later is not heard.
    pub(super) fn cut_short(&self, now: u64) {
        let limit = |open: &Open| ops::find(&open.record.job.op).map(|row| row.timeout);
        let is_long = |open: &Open, since: u64| {
            limit(open).is_some_and(|limit| now.saturating_sub(since) > millis(limit))
        };
        let overdue = self.lanes().overdue(is_long);
        for (id, host) in overdue {
            let Some(open) = self.lanes().get(id) else { continue };
            let seconds = limit(&open).unwrap_or_default().as_secs();
            let message = format!("{} ran for more than {seconds} s", open.record.job.op);
            let begun = self.clock.wall().saturating_sub(seconds * 1000);
            self.answer_for(&open, &host, begun, Error::new(Kind::HostFailed, message));
        }
    }

    /// Waits no longer for hosts that were handed jobs of which `is_hopeless` says so, and puts on
    /// record which of them may have begun: nobody is to be told that these have not.
    pub(super) async fn give_up_unheard(&self, is_hopeless: impl Fn(&Record) -> bool) {
        let uptime = self.heard_until();
        let unheard = {
            let (lanes, hosts) = (self.lanes(), self.hosts());
            lanes.unheard(is_hopeless, |host| hosts.is_there(host, uptime), MOST)
        };
        let give_up = async |(id, hosts): (Uuid, Vec<String>)| {
            match self.note_unheard(id, &hosts).await {
                Ok(()) => self.lanes().give_up(id, hosts),
                // There is nowhere to put it.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::TooLarge) => {
                    self.lanes().give_up(id, hosts);
                }
                // It is tried again before long.
                Err(error) => {
                    tracing::debug!(%error, OSAPI_JOB_ID = %id, "cannot note who was not heard of");
                }
            }
        };
        join_all(unheard.into_iter().map(give_up)).await;
        self.note_ended();
    }

    async fn note_unheard(&self, id: Uuid, hosts: &[String]) -> Result<()> {
        let (mut record, revision) = self.stored(&id.to_string()).await?;
        let before = record.job.unheard.len();
        for host in hosts {
            if !record.job.unheard.contains(host) {
                record.job.unheard.push(host.clone());
            }
        }
        if record.job.unheard.len() == before {
            return Ok(());
        }
        let expect = Expect::Revision(revision);
        let step = Step::new().put(format!("job.{id}"), encode(&record)?, expect).owed();
        let revision = self.commit(step).await?;
        self.lanes().read(id, revision, &record.job);
        Ok(())
    }

    pub(super) fn answer_for(&self, open: &Open, host: &str, begun: u64, error: Error) {
        let outcome = Outcome::from(Err(error));
        self.count_finished(&open.record.job.op, Status::of(outcome.kind()));
        let report = Report::new(open.id.to_string(), begun, self.clock.wall(), outcome);
        self.lanes().finish(open.id, host, report);
    }
}
