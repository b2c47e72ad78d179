//! Finds out whether what is there of the chains is what was written.
//!
//! Pure: the same code judges a running controller and an export of it. What it cannot find is the
//! work of somebody who rewrites the chains and also every head that was kept elsewhere.

use serde::{Deserialize, Serialize};

use super::{Chain, Ends, Head, Link, count, hash};
use crate::job::decode;
use crate::link;

/// What came of a check.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Verdict {
    /// How many links were looked at.
    pub links: u64,
    /// How many entries they have.
    pub entries: u64,
    /// How many heads that were kept elsewhere agree with them.
    pub anchored: u64,
    pub faults: Vec<Fault>,
}

impl Verdict {
    pub fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }
}

/// A place where the chains are not what was written.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Fault {
    /// The link where it shows.
    pub number: u64,
    pub message: String,
}

/// How many faults are told apart before the rest is left out: a log that is broken everywhere
/// needs no list.
const TOLD: usize = 100;

/// Checks links one after the other, so that the log need not be held as a whole.
pub struct Check {
    walks: [Walk; 2],
    known: Vec<link::Head>,
    /// The number of the last link of either chain.
    last: u64,
    verdict: Verdict,
}

/// How far one chain has been followed.
struct Walk {
    stub: Head,
    goal: Head,
    place: Head,
    dropped: u64,
}

impl Walk {
    fn new(stub: &Head, goal: &Head) -> Self {
        let (stub, goal) = (stub.clone(), goal.clone());
        Self { place: stub.clone(), dropped: stub.number, stub, goal }
    }
}

/// Checks `links`, in order of number and as stored, against where their chains are said to begin
/// and end, and against the heads in `known`, which somebody else has kept.
pub fn verify<'a>(
    ends: &Ends,
    links: impl IntoIterator<Item = &'a [u8]>,
    known: &[link::Head],
) -> Verdict {
    let mut check = Check::new(ends, known);
    for stored in links {
        check.link(stored);
    }
    check.end()
}

impl Check {
    pub fn new(ends: &Ends, known: &[link::Head]) -> Self {
        let walks = [
            Walk::new(&ends.stub, &ends.head),
            Walk::new(&ends.refusals_stub, &ends.refusals_head),
        ];
        let mut check = Self { walks, known: known.to_vec(), last: 0, verdict: Verdict::default() };
        for i in 0..check.walks.len() {
            let stub = check.walks[i].stub.clone();
            if stub.number == 0 && stub.hash != hash(stub.writer.as_bytes()) {
                check.fault(0, format!("the chain {} does not begin at its writer", stub.writer));
            }
            check.compare(&stub);
        }
        check
    }

    /// Takes the next link.
    pub fn link(&mut self, stored: &[u8]) {
        self.verdict.links += 1;
        let link: Link = match decode(stored) {
            Ok(link) => link,
            Err(_) => return self.fault(self.last, "what follows this link is no link".to_owned()),
        };
        if link.number <= self.last {
            let message = format!("link {} stands behind link {}", link.number, self.last);
            self.fault(link.number, message);
        }
        self.last = self.last.max(link.number);
        let walk = &mut self.walks[usize::from(link.chain == Chain::Refusals)];
        let follows = link.previous == walk.place.hash && link.entries == walk.place.entries;
        let goes_on = link.dropped >= walk.dropped || walk.place == walk.stub;
        let before = std::mem::take(&mut walk.place);
        walk.place = Head { writer: before.writer.clone(), ..before.after(&link, stored) };
        walk.dropped = link.dropped;
        self.verdict.entries += count(&link.notes);
        let place = walk.place.clone();
        if !follows || !goes_on {
            let (number, before) = (link.number, before.number);
            let message = format!(
                "link {number} does not follow from link {before}: what is between them was \
                 changed, removed or moved"
            );
            self.fault(number, message);
        }
        self.compare(&place);
    }

    /// Says what is to be said once there are no more links.
    pub fn end(mut self) -> Verdict {
        for i in 0..self.walks.len() {
            let Walk { stub, goal, place, dropped } = &self.walks[i];
            let (number, is_cut) = (place.number, place != goal);
            let is_moved = *dropped != stub.number;
            let (goal, stub) = (goal.number, stub.clone());
            if is_cut {
                let message = format!(
                    "the chain {} ends at link {number} and not as it should, at link {goal}",
                    stub.writer
                );
                self.fault(number, message);
            }
            if is_moved {
                let message = format!(
                    "the chain {} begins behind link {}, where retention has not cut it",
                    stub.writer, stub.number
                );
                self.fault(stub.number, message);
            }
            // What was kept of this chain and has not been met is missing from it; what is older
            // than its beginning can no longer be told.
            let writer = stub.writer.clone();
            let missing = std::mem::take(&mut self.known);
            for head in missing {
                if head.writer == writer && head.number > stub.number {
                    let message = format!("link {} of {writer} is missing", head.number);
                    self.fault(head.number, message);
                } else {
                    self.known.push(head);
                }
            }
        }
        self.verdict
    }

    /// Holds a place against what was kept of it elsewhere.
    fn compare(&mut self, place: &Head) {
        let is_here =
            |head: &link::Head| head.writer == place.writer && head.number == place.number;
        let (here, others) = std::mem::take(&mut self.known).into_iter().partition(is_here);
        self.known = others;
        let here: Vec<link::Head> = here;
        for head in here {
            if head.hash == place.hash {
                self.verdict.anchored += 1;
            } else {
                let message = format!(
                    "link {} of {} is not the one that was there before",
                    head.number, head.writer
                );
                self.fault(head.number, message);
            }
        }
    }

    fn fault(&mut self, number: u64, message: String) {
        if self.verdict.faults.len() < TOLD {
            self.verdict.faults.push(Fault { number, message });
        }
    }
}
