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

use super::{Controller, Shared, ids, lock};
use crate::error::{Error, Kind, Result};
use crate::job::encode;
use crate::store::{Expect, Revision, Step, audit};

/// How many jobs are moved at a time.
const MOST: usize = 256;
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
            self.lanes().readdressed(id, 1, &to);
            return;
        }
        if !self.lanes().withhold(id, &from) {
            return;
        }
        match self.write_host(id, &from, &to).await {
            Ok(Some((revision, to))) => {
                self.lanes().readdressed(id, revision, &to);
                tracing::info!(OSAPI_JOB_ID = %id, from, to, "a job goes to another host");
            }
            Ok(None) => self.lanes().release(id),
            Err(error) if matches!(error.kind(), Kind::Conflict | Kind::NotFound) => {
                self.lanes().release(id);
            }
            // It may be done all the same. Until that is known nobody is handed it.
            Err(error) => tracing::warn!(%error, OSAPI_JOB_ID = %id, "cannot move a job"),
        }
    }

    /// Writes into a job's record that it is for `to` instead of `from`. Says for whom it is then,
    /// and from which revision on; None where others have made it stay.
    async fn write_host(
        &self,
        id: Uuid,
        from: &str,
        to: &str,
    ) -> Result<Option<(Revision, String)>> {
        let (mut record, revision) = self.stored(&id.to_string()).await?;
        if record.job.cancelled.is_some() || record.job.is_settled {
            return Ok(None);
        }
        match record.job.hosts.as_slice() {
            [host] if host == from => {}
            // What was thought to have failed before has not.
            [host] => return Ok(Some((revision, host.clone()))),
            _ => return Ok(None),
        }
        record.job.hosts = vec![to.to_owned()];
        let event = json!({
            "at": self.clock.wall(), "event": "taken_over", "job": id.to_string(),
            "from": from, "to": to,
        });
        let step = Step::new()
            .put(format!("job.{id}"), encode(&record)?, Expect::Revision(revision))
            .note(audit::Note::Event(event))
            .owed();
        Ok(Some((self.commit(step).await?, to.to_owned())))
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
