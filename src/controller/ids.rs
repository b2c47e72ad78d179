//! Ids of jobs: `UUIDv7`, strictly greater than any that was given out before.
//!
//! 48 bits of milliseconds, 58 bits that count up within one, and 16 bits that say in whose
//! memory the job is; zero for a job that is in the store. A clock that was set back does not
//! set ids back: they go on from the last.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// In the id of a job that is in the store.
pub(super) const STORED: u16 = 0;

#[derive(Default)]
pub(super) struct Ids {
    /// Milliseconds since 1970.
    at: u64,
    count: u64,
}

impl Ids {
    /// Ids that go on after `last`.
    pub(super) fn after(last: Option<Uuid>) -> Self {
        last.map_or_else(Self::default, |last| {
            let bits = last.as_u128();
            let high = (bits >> 64) & 0xfff;
            let low = (bits >> 16) & ((1 << 46) - 1);
            Self { at: narrow(bits >> 80), count: narrow(high << 46 | low) }
        })
    }

    pub(super) fn next(&mut self, wall: u64, mark: u16) -> Uuid {
        let random = random();
        if wall > self.at {
            // The upper half stays free to count into.
            (self.at, self.count) = (wall, random >> 7);
        } else {
            self.count += 1 + (random & 0xffff);
            if self.count >> 58 > 0 {
                (self.at, self.count) = (self.at + 1, random >> 7);
            }
        }
        let (high, low) = (u128::from(self.count >> 46), u128::from(self.count & ((1 << 46) - 1)));
        let time = u128::from(self.at) & ((1 << 48) - 1);
        let bits = time << 80 | 7 << 76 | high << 64 | 2 << 62 | low << 16 | u128::from(mark);
        Uuid::from_u128(bits)
    }
}

fn narrow(bits: u128) -> u64 {
    u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default()
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Early in a boot the kernel may have nothing yet; counting is enough then.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => 0,
    }
}

/// Marks what is in the memory of the controller called `name`.
pub(super) fn mark(name: &str) -> u16 {
    let digest = Sha256::digest(name);
    u16::from_be_bytes([digest[0], digest[1]]).max(STORED + 1)
}

/// In whose memory a job is.
pub(super) fn mark_of(id: Uuid) -> u16 {
    let bytes = id.as_bytes();
    u16::from_be_bytes([bytes[14], bytes[15]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_whatever_the_clock_does() {
        let mut ids = Ids::default();
        let mut last = Uuid::nil();
        for wall in [1_000, 1_000, 1_001, 5_000_000_000_000, 1_000, 2_000] {
            for _ in 0..1_000 {
                let id = ids.next(wall, STORED);
                assert!(id > last);
                last = id;
            }
            ids = Ids::after(Some(last));
        }
        assert_eq!(last.get_version_num(), 7);
    }

    #[test]
    fn a_mark_is_read_back() {
        let mark = mark("here");
        assert_ne!(mark, STORED);
        assert_eq!(mark_of(Ids::default().next(1, mark)), mark);
    }
}
