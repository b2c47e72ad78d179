//! Which jobs were answered and taken back since, so that whoever was told learns of it.
//!
//! A change that waits to be confirmed has a mark from before it begins, because there may be no
//! room for one when it is taken back. The mark goes when the change is confirmed, or when that
//! it was taken back is known wherever it was reported.

use std::fs;
use std::time::UNIX_EPOCH;

use super::{Journal, failed, private};
use crate::error::Result;
use crate::job::Outcome;

/// What became of a job after it was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Amendment {
    pub job: String,
    /// When it was taken back, in milliseconds since 1970 by the host's clock.
    pub at: u64,
    pub outcome: Outcome,
}

impl Journal {
    /// Has it told when `job` is taken back.
    pub(in crate::host) fn mark(&self, job: &str) -> Result<()> {
        let path = self.dir.join("tell").join(job);
        private().write(true).truncate(true).open(path).map_err(failed)?;
        self.sync("tell")
    }

    /// There is nothing to tell of `job`, or no longer. A mark that outlives this says nothing.
    pub(in crate::host) fn unmark(&self, job: &str) {
        if Self::check(job).is_ok() {
            let _ = fs::remove_file(self.dir.join("tell").join(job));
        }
    }

    /// What is still to be told, oldest first as far as names tell.
    pub(in crate::host) fn amendments(&self) -> Result<Vec<Amendment>> {
        let mut found = Vec::new();
        for file in fs::read_dir(self.dir.join("tell")).map_err(failed)? {
            let job = file.map_err(failed)?.file_name().to_string_lossy().into_owned();
            let entry = self.load(&job)?;
            if entry.is_closed() && entry.back.is_none() {
                self.unmark(&job);
            }
            let (Some(outcome), Some(_)) = (entry.outcome, entry.back) else { continue };
            let files = ["done", "open"].map(|dir| self.dir.join(dir).join(&job));
            let written = files.iter().find_map(|file| fs::metadata(file).ok()?.modified().ok());
            let at = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let at = at.and_then(|at| u64::try_from(at.as_millis()).ok()).unwrap_or_default();
            found.push(Amendment { job, at, outcome });
        }
        found.sort_by(|a, b| a.job.cmp(&b.job));
        Ok(found)
    }
}
