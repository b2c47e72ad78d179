//! Whose assignment of a cell stands, and what lies beneath it.
//!
//! A cell names the job that assigned it last, and every assignment the job whose own it covered.
//! An undo covers what the undone job had covered, so the chain that begins at a cell leads past
//! everything that was taken back. Values would not tell: the same one may come back.

use super::cell::Cell;
use super::view::View;

/// How far a chain is followed.
const LONGEST: usize = 1000;
/// How many jobs may undo each other in turn.
const TURNS: usize = 16;

/// What became of what a job gave a cell.
#[derive(Debug, PartialEq)]
pub(super) enum Standing {
    /// It is there, perhaps because what came later was undone.
    Stands,
    /// This job has set the cell since.
    Covered(String),
    /// It was taken back.
    Gone,
    /// Nobody remembers.
    Unknown,
}

impl Standing {
    pub(super) fn of(host: &View, cell: &Cell, job: &str) -> Self {
        let own = meant(host, job);
        let (mut at, mut covers) = (host.top(cell), None);
        for depth in 0..LONGEST {
            let Some(job) = at else {
                return if depth == 0 { Self::Unknown } else { Self::Gone };
            };
            if meant(host, &job) == own {
                return covers.map_or(Self::Stands, Self::Covered);
            }
            // Jobs are forgotten oldest first: beneath one that is gone there is nothing newer.
            let Some(plan) = host.planned(&job) else {
                return if depth == 0 { Self::Unknown } else { Self::Gone };
            };
            at = plan.sets().find(|set| set.cell == *cell).and_then(|set| set.was.clone());
            if plan.undoes.is_none() {
                covers.get_or_insert(job);
            }
        }
        covers.map_or(Self::Unknown, Self::Covered)
    }
}

/// The job that `job` stands for: whoever undoes an undo does again what was undone.
fn meant(host: &View, job: &str) -> String {
    let undone = |job: &str| host.planned(job)?.undoes;
    let mut job = job.to_owned();
    for _ in 0..TURNS {
        let Some(again) = undone(&job).and_then(|undo| undone(&undo)) else { break };
        job = again;
    }
    job
}
