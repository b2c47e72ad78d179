//! What any host may do goes to another one where the first is away and was never handed it.
//!
//! A host may begin what it was handed at any time until the deadline, whether or not it is heard
//! of. So a job that is stored is moved only by the controller that made it and knows that it has
//! not handed it out. Where several controllers share a store, another one first puts on record
//! that the job stays with its host, and hands it out then; both write the job's record in place of
//! the revision that they have read, so that only one of them can.

use std::collections::{BTreeSet, HashMap};

use futures_util::future::join_all;
use serde_json::json;
use uuid::Uuid;

use super::bus::Why;
use super::{Controller, Shared, ids, lock};
use crate::error::{Error, Kind, Result};
use crate::job::{Job, Moved, encode};
use crate::store::{Expect, Revision, Step, audit};

/// How many jobs are moved at a time.
const MOST: usize = 256;
/// How many of the last moves of a job are on record.
const MOVES: usize = 16;
/// How often it is tried to put on record that a job stays, where others keep writing it.
const TRIES: usize = 3;

/// Jobs that a host asks for and this controller may not hand out yet.
#[derive(Default)]
pub(super) struct Claims {
    wanted: BTreeSet<Uuid>,
}

impl Controller {
    /// Moves what waits for hosts that are away, `uptime` on the clock of the boot.
    pub(super) async fn take_over(&self, uptime: u64) {
        let moves = self.moves(uptime);
        join_all(moves.into_iter().map(|(id, from, to)| self.send_over(id, from, to))).await;
    }

    /// What is to be moved, from where to where.
    fn moves(&self, uptime: u64) -> Vec<(Uuid, String, String)> {
        let (mut lanes, mut hosts) = (self.lanes(), self.hosts());
        let movable = lanes.movable(|host| !hosts.is_there(host, uptime), MOST);
        let mut more: HashMap<String, usize> = HashMap::new();
        let mut moves = Vec::new();
        for (id, from) in movable {
            let left = |host: &str| {
                let planned = more.get(host).copied().unwrap_or_default();
                lanes.lengths(host).iter().sum::<usize>() + planned
            };
            let to = if hosts.is_there(&from, uptime) {
                // It is back, and nobody knows yet who is to have it.
                Some(from.clone())
            } else {
                hosts.another(&from, uptime, left)
            };
            let Some(to) = to else { continue };
            *more.entry(to.clone()).or_default() += 1;
            moves.push((id, from, to));
        }
        moves
    }

    async fn send_over(&self, id: Uuid, from: String, to: String) {
        if ids::mark_of(id) != ids::STORED {
            let at = self.clock.wall();
            let mut lanes = self.lanes();
            if let Some(open) = lanes.get(id) {
                lanes.readdressed(id, 1, &moved(&open.record.job, at, &to));
            }
            drop(lanes);
            return self.call(&[to], Why::New);
        }
        if !self.lanes().withhold(id, &from) {
            return;
        }
        match self.write_host(id, &from, &to).await {
            Ok(Some((revision, job))) => {
                self.lanes().reread(id, revision, &job);
                self.note_ended();
                self.call(&job.hosts, Why::New);
                let to = job.hosts.concat();
                if to != from {
                    tracing::info!(OSAPI_JOB_ID = %id, from, to, "a job goes to another host");
                }
            }
            Ok(None) => self.lanes().release(id),
            Err(error) if error.kind() == Kind::NotFound => self.lanes().release(id),
            // It may be done all the same, and it may be that which stands in the way of another
            // try. Until a record says who is to have it nobody is handed it.
            Err(error) => tracing::warn!(%error, OSAPI_JOB_ID = %id, "cannot move a job"),
        }
    }

    /// Writes into a job's record that it is for `to` instead of `from`, unless others have made it
    /// stay. Returns the job as it is then, and from which revision on; None where it is for several.
    async fn write_host(&self, id: Uuid, from: &str, to: &str) -> Result<Option<(Revision, Job)>> {
        let (mut record, revision) = self.stored(&id.to_string()).await?;
        match record.job.hosts.as_slice() {
            [host] if host == from => {}
            // What was thought to have failed before has not.
            [_] => return Ok(Some((revision, record.job))),
            _ => return Ok(None),
        }
        if record.job.cancelled.is_some() || record.job.is_settled {
            return Ok(Some((revision, record.job)));
        }
        let at = self.clock.wall();
        record.job = moved(&record.job, at, to);
        let expect = Expect::Revision(revision);
        let mut step = Step::new().put(format!("job.{id}"), encode(&record)?, expect);
        if from != to {
            let event = json!({
                "at": at, "event": "taken_over", "job": id.to_string(), "from": from, "to": to,
            });
            step = step.note(audit::Note::Event(event));
        }
        Ok(Some((self.commit(step.owed()).await?, record.job)))
    }

    /// Notes that a host asks for a job which another controller has made and may still move.
    pub(super) fn want(&self, id: Uuid) {
        lock(&self.claims).wanted.insert(id);
        self.claimed.notify_one();
    }

    /// Puts on record, for as long as the controller lives, that what is wanted stays where it is.
    pub(super) async fn claim_all(self: Shared) {
        loop {
            let wanted = std::mem::take(&mut lock(&self.claims).wanted);
            if wanted.is_empty() {
                self.claimed.notified().await;
                continue;
            }
            join_all(wanted.into_iter().map(|id| self.claim(id))).await;
        }
    }

    async fn claim(&self, id: Uuid) {
        for _ in 0..TRIES {
            match self.try_claim(id).await {
                Ok(()) => return self.lanes().settled(id),
                Err(error) if error.kind() == Kind::Conflict => {}
                // The host asks again.
                Err(error) => {
                    return tracing::warn!(%error, OSAPI_JOB_ID = %id, "cannot hand a job out");
                }
            }
        }
    }

    async fn try_claim(&self, id: Uuid) -> Result<()> {
        let (mut record, revision) = self.stored(&id.to_string()).await?;
        if record.job.is_settled {
            return Ok(());
        }
        let open = self.lanes().get(id);
        if open.is_some_and(|open| open.record.job.hosts != record.job.hosts) {
            let message = format!("job {id} has gone to another host");
            return Err(Error::new(Kind::Conflict, message));
        }
        record.job.is_settled = true;
        let expect = Expect::Revision(revision);
        let step = Step::new().put(format!("job.{id}"), encode(&record)?, expect).owed();
        self.commit(step).await.map(drop)
    }
}

/// `job` as it is once it has gone to `to`.
fn moved(job: &Job, at: u64, to: &str) -> Job {
    let mut job = job.clone();
    let away = job.hosts.drain(..).filter(|host| host != to);
    job.moved.extend(away.map(|from| Moved { at, from }));
    job.moved.drain(..job.moved.len().saturating_sub(MOVES));
    job.hosts.push(to.to_owned());
    job
}
