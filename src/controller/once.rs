//! Calls that the controller answers itself and that carry a key: done once, and answered the same
//! when they are asked again.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::submit::{Once, once_key, reused};
use super::{Call, Shared};
use crate::error::{Error, Kind, Result};
use crate::job::{decode, encode};
use crate::store::{self, Expect, Reader, Step};

/// How long such an answer is kept. Those of jobs are kept as long as these.
const KEPT: Duration = Duration::from_hours(24);

/// A call that is to be done once.
pub struct Keyed {
    controller: Shared,
    name: String,
    digest: String,
}

impl Call {
    /// None where the caller gave no key.
    pub fn keyed(&self) -> Option<Keyed> {
        let key = self.key.as_ref()?;
        let name = once_key(&self.caller, &self.trail, key);
        let (controller, digest) = (self.controller.clone(), self.controller.keyed(&key.digest));
        Some(Keyed { controller, name, digest })
    }

    /// `step`, and that the key of this call has led to `answer`.
    pub(super) fn once(&self, step: Step, answer: &impl Serialize) -> Result<Step> {
        self.keyed().map_or(Ok(Step::new()), |keyed| keyed.keep(answer)).map(|once| once.and(step))
    }
}

impl Keyed {
    /// A step that keeps `answer`.
    pub(super) fn keep(&self, answer: &impl Serialize) -> Result<Step> {
        let answer = serde_json::to_value(answer);
        let answer = answer
            .map_err(|error| Error::new(Kind::Internal, "cannot encode it").because(error))?;
        let (job, digest) = (String::new(), self.digest.clone());
        let once = encode(&Once { job, digest, answer: Some(answer) })?;
        Ok(Step::new().put(self.name.as_str(), once, Expect::Absent).expires(KEPT))
    }

    /// What was answered when the same was asked before. Where a file goes with it, that is read
    /// to its end, because only the same file makes it the same.
    pub async fn answer(&self, content: Option<&mut Reader>) -> Result<Option<Value>> {
        let Some(found) = self.controller.store.get(&self.name).await? else { return Ok(None) };
        let once: Once = decode(&found.value)?;
        // What made a job is answered by that.
        let Some(answer) = once.answer else { return Ok(None) };
        if once.digest != self.digest {
            return Err(reused());
        }
        if let Some(content) = content
            && answer.get("sha256") != Some(&Value::from(digest(content).await?))
        {
            return Err(reused());
        }
        Ok(Some(answer))
    }
}

async fn digest(content: &mut Reader) -> Result<String> {
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; 64 * 1024]);
    loop {
        let read = content.read(&mut chunk).await.map_err(|error| {
            Error::new(Kind::InvalidInput, "the upload broke off; send it again").because(error)
        })?;
        if read == 0 {
            return Ok(store::hex(&hash.finalize()));
        }
        hash.update(&chunk[..read]);
    }
}
