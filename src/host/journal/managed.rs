//! What OSAPI remembers of the cells it has assigned and not given back.

use std::fs;
use std::path::PathBuf;

use super::super::cell::{Cell, Digest};
use super::super::plan::Plan;
use super::{Journal, Record, failed, private};
use crate::error::Result;

/// Marks a cell that OSAPI has given back, where its record was. It has no content.
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

    /// Notes what `job` assigned. A cell that is back where it started is nobody's concern,
    /// unless it is one of `off`, which should be and is not.
    ///
    /// It depends on nothing but the plan, so that it can be done again after a crash.
    pub(in crate::host) fn remember(&self, job: &str, plan: &Plan, off: &[Cell]) -> Result<()> {
        for set in plan.sets() {
            let path = self.managed(&set.cell);
            let record = if off.contains(&set.cell) {
                Some(set.remembered(job, &plan.blobs))
            } else {
                set.record(job, &plan.blobs)
            };
            match record {
                None => {
                    // The mark comes first, so that nothing in between is unknown. It only spares
                    // a refusal, so a full disk does not keep the record from going.
                    if path.exists() {
                        let _ = private()
                            .write(true)
                            .truncate(true)
                            .open(path.with_extension(GIVEN_BACK));
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
