//! Secrets on their way through the controller, which can neither read nor keep them: sealed to
//! the agents before a job is made, gone from its record with each host's outcome.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Controller, rows};
use crate::error::{Error, Kind, Result};
use crate::job::{Record, Report, encode};
use crate::ops::Row;
use crate::seal;
use crate::store::{self, Expect};

/// The boxes of a job, by machine id.
type Boxes = BTreeMap<String, String>;

/// How often an outcome tries to take its box along, where the record is being changed by others.
const TRIES: usize = 8;

impl Controller {
    /// Takes the secrets out of `params` and seals them for each of `hosts`. Of a job that repeats
    /// another, whose boxes are `kept`, they are out already.
    pub(super) fn seal(
        &self,
        row: &Row,
        mut params: Value,
        hosts: &[String],
        kept: Option<&Boxes>,
    ) -> Result<(Value, Option<Boxes>)> {
        if let Some(kept) = kept {
            let one = |host: &String| Some((host.clone(), kept.get(host)?.clone()));
            let boxes: Option<Boxes> = hosts.iter().map(one).collect();
            let gone = || {
                let message = "the secrets of the job are no longer kept, or were sealed for other \
                               hosts; ask again with them instead of repeating it";
                Error::new(Kind::Conflict, message)
            };
            return boxes.ok_or_else(gone).map(|boxes| (params, Some(boxes)));
        }
        let Some(secrets) = seal::take(row.id, &mut params, &rows::traits(row).secrets) else {
            return Ok((params, None));
        };
        let known = self.hosts();
        let one = |host: &String| {
            let key = known.get(host).map(|(host, _)| host.key.as_str()).unwrap_or_default();
            if key.is_empty() {
                let name = known.name(host);
                let message =
                    format!("{name} has not told yet what to seal secrets to; start its agent");
                return Err(Error::new(Kind::Unavailable, message));
            }
            Ok((host.clone(), secrets.seal(key, host)?))
        };
        let boxes = hosts.iter().map(one).collect::<Result<_>>()?;
        Ok((params, Some(boxes)))
    }

    /// What is stored of a request in place of its digest: without the key, which is not in the
    /// store, nobody can try out what the request may have said.
    pub(super) fn keyed(&self, digest: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(digest);
        store::hex(&hash.finalize())
    }

    /// Stores an outcome and drops its host's box from the record, in one step. False where that
    /// could not be done at once: the outcome counts more.
    pub(super) async fn end_with_secrets(
        &self,
        host: &str,
        record: &Record,
        id: Uuid,
        report: &Report,
    ) -> Result<bool> {
        for _ in 0..TRIES {
            let (mut kept, revision) = match self.stored(&report.job).await {
                Ok(found) => found,
                // Deleted meanwhile: nobody wants to know any more.
                Err(error) if error.kind() == Kind::NotFound => return Ok(true),
                Err(error) => return Err(error),
            };
            if kept.sealed.as_mut().and_then(|sealed| sealed.remove(host)).is_none() {
                return Ok(false);
            }
            let step = self.ending(host, record, id, report.clone(), Expect::Absent)?;
            let key = format!("job.{id}");
            let step = step.put(key, encode(&kept)?, Expect::Revision(revision));
            match self.commit(step).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    self.lanes().reported(id, host);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
