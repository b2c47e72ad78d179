//! What was taken note of as soon as it was stored, and comes round later.

use super::Lanes;
use crate::store::Revision;

/// How much that is known may have still to come round.
const MOST: usize = 65_536;

impl Lanes {
    /// Takes note that what comes round with `revision` is known by then; its job may be over as well.
    /// False where too much has still to come round.
    pub(in crate::controller) fn foresee(&mut self, revision: Revision) -> bool {
        self.foreseen.len() < MOST && self.foreseen.insert(revision)
    }

    /// Whether what has come round with `revision` was known. Nothing older comes any more.
    pub(in crate::controller) fn was_foreseen(&mut self, revision: Revision) -> bool {
        let later = self.foreseen.split_off(&revision);
        self.foreseen = later;
        self.foreseen.remove(&revision)
    }
}
