//! Whether a group of messages is stored sooner one by one or as a batch.

use std::time::Duration;

use crate::store::queue::mean_with;

/// After how many groups the other way is tried again: first and whenever the faster way is another,
/// as one measurement may have met a pause of the disk, and where that has not been for long.
const LOOK_FIRST: u32 = 8;
const LOOK_LAST: u32 = 512;

/// What one of many messages takes to be stored, by itself and in a batch. Which is faster depends on
/// how the server syncs, and nobody tells that.
#[derive(Default)]
pub(super) struct Ways {
    single: Duration,
    batch: Duration,
    /// Groups since the other way was tried, and after how many it is tried again.
    groups: u32,
    pause: u32,
}

impl Ways {
    /// Whether the next group is to go as a batch.
    pub(super) fn is_batch(&mut self) -> bool {
        if self.batch.is_zero() || self.single.is_zero() {
            return self.batch.is_zero();
        }
        self.groups += 1;
        if self.groups < self.pause {
            return !self.is_single_faster();
        }
        self.groups = 0;
        self.pause = (2 * self.pause).clamp(LOOK_FIRST, LOOK_LAST);
        self.is_single_faster()
    }

    /// Whether messages go one by one because that is faster.
    pub(super) fn is_single_faster(&self) -> bool {
        !self.single.is_zero() && self.single < self.batch
    }

    pub(super) fn took(&mut self, is_batch: bool, count: usize, took: Duration) {
        let each = took / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        let was_single_faster = self.is_single_faster();
        let way = if is_batch { &mut self.batch } else { &mut self.single };
        // Of the other way nothing is known but what was long ago.
        *way = if is_batch == was_single_faster { each } else { mean_with(*way, each) };
        if self.is_single_faster() != was_single_faster {
            (self.groups, self.pause) = (0, LOOK_FIRST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many groups go as a batch, where a message takes that many microseconds.
    fn batches(ways: &mut Ways, groups: u32, [single, batch]: [u64; 2]) -> u32 {
        let mut batches = 0;
        for _ in 0..groups {
            let is_batch = ways.is_batch();
            let each = if is_batch { batch } else { single };
            ways.took(is_batch, 64, Duration::from_micros(64 * each));
            batches += u32::from(is_batch);
        }
        batches
    }

    #[test]
    fn the_faster_way_is_taken_and_the_other_seldom_tried() {
        assert!(batches(&mut Ways::default(), 5_000, [15, 60]) < 20);
        assert!(batches(&mut Ways::default(), 5_000, [600, 60]) > 4_980);
    }

    #[test]
    fn one_measurement_that_met_a_pause_misleads_for_few_groups() {
        for pauses in [[600, 6_000], [60, 1_000]] {
            let mut ways = Ways::default();
            let right = [pauses[0], pauses[0] / 10];
            batches(&mut ways, 1, pauses);
            assert!(batches(&mut ways, 200, right) > 180, "at the beginning");
            batches(&mut ways, 2_000, right);
            batches(&mut ways, 1, pauses);
            assert!(batches(&mut ways, 200, right) > 180, "later");
        }
    }

    #[test]
    fn a_server_that_syncs_otherwise_is_found_out() {
        let mut ways = Ways::default();
        batches(&mut ways, 10_000, [15, 60]);
        assert!(batches(&mut ways, 1_000, [600, 60]) > 900);
        assert!(batches(&mut ways, 2_000, [15, 60]) < 700);
    }
}
