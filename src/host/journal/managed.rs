//! What OSAPI remembers of the cells it has assigned and not given back.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use super::super::cell::{Cell, Digest};
use super::super::plan::{Plan, Set};
use super::{Journal, Record, failed, private};
use crate::error::Result;

/// Marks a cell that OSAPI has given back, where its record was. Names the job that did, if there
/// was room for that.
pub(super) const GIVEN_BACK: &str = "given-back";

impl Journal {
    pub(in crate::host) fn record(&self, cell: &Cell) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.managed(cell)).ok()?).ok()
    }

    /// Every cell that OSAPI has assigned and not given back.
    pub(in crate::host) fn records(&self) -> Vec<Record> {
        let files = fs::read_dir(self.dir.join("managed")).into_iter().flatten().flatten();
        let files = files.filter(|file| !file.file_name().to_string_lossy().contains('.'));
        files.filter_map(|f| serde_json::from_slice(&fs::read(f.path()).ok()?).ok()).collect()
    }

    /// Whether OSAPI assigned `cell` once and has given it back.
    pub(in crate::host) fn is_given_back(&self, cell: &Cell) -> bool {
        self.managed(cell).with_extension(GIVEN_BACK).exists()
    }

    /// The job that has given `cell` back, where that is known.
    pub(in crate::host) fn giver(&self, cell: &Cell) -> Option<String> {
        let job = fs::read_to_string(self.managed(cell).with_extension(GIVEN_BACK)).ok()?;
        Self::check(&job).is_ok().then_some(job)
    }

    /// Notes that the inverse of what `job` did was applied: what that covered stands again. What
    /// should be in the cells `off` and is not stays that job's concern.
    pub(in crate::host) fn restore(&self, job: &str, inverse: &Plan, off: &[Cell]) -> Result<()> {
        self.note(job, inverse, off, |set| set.was.as_deref().unwrap_or(job))
    }

    /// Notes what `job` assigned. A cell that is back where it started is nobody's concern.
    ///
    /// It depends on nothing but the plan, so that it can be done again after a crash.
    pub(in crate::host) fn remember(&self, job: &str, plan: &Plan) -> Result<()> {
        self.note(job, plan, &[], |_| job)
    }

    fn note<'a>(
        &self,
        job: &str,
        plan: &'a Plan,
        off: &[Cell],
        holder: impl Fn(&'a Set) -> &'a str,
    ) -> Result<()> {
        for set in plan.sets() {
            let path = self.managed(&set.cell);
            let record = if off.contains(&set.cell) {
                Some(set.remembered(job, &plan.blobs))
            } else {
                set.record(holder(set), &plan.blobs)
            };
            match record {
                None => {
                    // The mark comes first, so that nothing in between is unknown. It only spares
                    // a refusal, so a full disk does not keep the record from going.
                    if path.exists() {
                        let mark = path.with_extension(GIVEN_BACK);
                        let mark = private().write(true).truncate(true).open(mark);
                        let _ = mark.and_then(|mut mark| mark.write_all(holder(set).as_bytes()));
                    }
                    let _ = fs::remove_file(path);
                }
                Some(record) => {
                    let bytes = serde_json::to_vec(&record)
                        .map_err(|error| failed(std::io::Error::from(error)))?;
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    self.put(&format!("managed/{name}"), &bytes)?;
                }
            }
        }
        self.sync("managed")
    }

    fn managed(&self, cell: &Cell) -> PathBuf {
        let name = Digest::of(serde_json::to_vec(cell).unwrap_or_default());
        self.dir.join("managed").join(name.as_str())
    }
}
