//! Whether a group of messages is stored sooner one by one or as a batch.

use std::time::Duration;

use crate::store::queue::mean_with;

/// After how many groups the other way is tried again.
const LOOK_AGAIN: u32 = 500;

/// What one of many messages takes to be stored, by itself and in a batch. Which is faster depends on
/// how the server syncs, and nobody tells that.
#[derive(Default)]
pub(super) struct Ways {
    single: Duration,
    batch: Duration,
    groups: u32,
}

impl Ways {
    /// Whether the next group is to go as a batch.
    pub(super) fn is_batch(&mut self) -> bool {
        if self.batch.is_zero() || self.single.is_zero() {
            return self.batch.is_zero();
        }
        self.groups = self.groups.wrapping_add(1);
        self.is_single_faster() == self.groups.is_multiple_of(LOOK_AGAIN)
    }

    /// Whether messages go one by one because that is faster.
    pub(super) fn is_single_faster(&self) -> bool {
        !self.single.is_zero() && self.single < self.batch
    }

    pub(super) fn took(&mut self, is_batch: bool, count: usize, took: Duration) {
        let each = took / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        let way = if is_batch { &mut self.batch } else { &mut self.single };
        *way = mean_with(*way, each);
    }
}
