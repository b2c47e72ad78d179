//! What has become of steps that are on their way together.

use crate::error::{Error, Kind, Result};
use crate::store::queue::{Done, Pending};
use crate::store::{Revision, Step};

pub(super) struct Flight {
    done: Vec<Option<Done>>,
    pub(super) results: Vec<Option<Result<Revision>>>,
}

impl Flight {
    pub(super) fn of(group: Vec<Pending>) -> (Vec<Step>, Self) {
        let results = group.iter().map(|_| None).collect();
        let (steps, done) =
            group.into_iter().map(|pending| (pending.step, Some(pending.done))).unzip();
        (steps, Self { done, results })
    }

    /// Tells who waits for a step that it is stored, and so is its note.
    pub(super) fn stands(&mut self, place: usize, revision: Revision) {
        if let Some(done) = self.done[place].take() {
            // Whoever asked may have stopped waiting; the step counts all the same.
            let _ = done.send(Ok(revision));
        }
        self.results[place] = Some(Ok(revision));
    }

    /// None stands of which nobody was told yet; whether any would have.
    pub(super) fn fell(&mut self, why: &str) -> bool {
        let mut has_any = false;
        for (result, _) in
            self.results.iter_mut().zip(&self.done).filter(|(_, done)| done.is_some())
        {
            if let Some(Ok(_)) = result {
                *result = Some(Err(Error::new(Kind::Unavailable, why)));
                has_any = true;
            }
        }
        has_any
    }

    /// Those of its steps that are stored.
    pub(super) fn stored<'a>(&self, steps: &'a [Step]) -> impl Iterator<Item = &'a Step> {
        let is_stored = |result: &Option<Result<Revision>>| matches!(result, Some(Ok(_)));
        steps.iter().zip(&self.results).filter(move |(_, it)| is_stored(it)).map(|(it, _)| it)
    }

    /// The first failure of which `is_so`.
    pub(super) fn failure(&self, is_so: fn(Kind) -> bool) -> Option<Kind> {
        let failures = self.results.iter().flatten().filter_map(|result| result.as_ref().err());
        failures.map(Error::kind).find(|kind| is_so(*kind))
    }

    /// Tells everybody who waits still.
    pub(super) fn land(self) {
        for (done, result) in self.done.into_iter().zip(self.results) {
            if let (Some(done), Some(result)) = (done, result) {
                let _ = done.send(result);
            }
        }
    }

    /// The group as it was, nobody of which was told anything.
    pub(super) fn back(self, steps: Vec<Step>) -> Vec<Pending> {
        let group = steps.into_iter().zip(self.done);
        group.filter_map(|(step, done)| Some(Pending { step, done: done? })).collect()
    }
}
