//! What has become of steps that are on their way together, and who is still to be told.

use crate::error::{Error, Kind, Result};
use crate::store::queue::{Done, Pending};
use crate::store::{Revision, Step};

/// What callers are to be told. They are at the latest when this is dropped.
///
/// Whoever is told goes on at once, and has the processor before what was sent in the meantime gets
/// to the connection. So the next group is sent first: the server has something to do while we see
/// to those of the group before.
#[derive(Default)]
pub(super) struct Answers(Vec<(Done, Result<Revision>)>);

impl Answers {
    pub(super) fn tell(&mut self) {
        for (done, result) in self.0.drain(..) {
            // Whoever asked may have stopped waiting; the step counts all the same.
            let _ = done.send(result);
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.tell();
    }
}

pub(super) struct Flight {
    done: Vec<Option<Done>>,
    pub(super) results: Vec<Option<Result<Revision>>>,
    /// Also of the group before.
    pub(super) answers: Answers,
}

impl Flight {
    pub(super) fn of(group: Vec<Pending>, answers: Answers) -> (Vec<Step>, Self) {
        let results = group.iter().map(|_| None).collect();
        let (steps, done) =
            group.into_iter().map(|pending| (pending.step, Some(pending.done))).unzip();
        (steps, Self { done, results, answers })
    }

    /// A step is stored, and so is its note.
    pub(super) fn stands(&mut self, place: usize, revision: Revision) {
        if let Some(done) = self.done[place].take() {
            self.answers.0.push((done, Ok(revision)));
        }
        self.results[place] = Some(Ok(revision));
    }

    /// None stands that did not before; whether any would have.
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

    /// What everybody is to be told who was not yet.
    pub(super) fn land(self) -> Answers {
        let Self { done, results, mut answers } = self;
        let rest = done.into_iter().zip(results);
        answers.0.extend(rest.filter_map(|(done, result)| done.zip(result)));
        answers
    }

    /// The group as it was, nobody of which was told anything.
    pub(super) fn back(self, steps: Vec<Step>) -> Vec<Pending> {
        let group = steps.into_iter().zip(self.done);
        group.filter_map(|(step, done)| Some(Pending { step, done: done? })).collect()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::{self, Receiver, error::TryRecvError};

    use super::*;

    type Told = Receiver<Result<Revision>>;

    fn flight(answers: Answers) -> (Flight, Told) {
        let (done, told) = oneshot::channel();
        let group = vec![Pending { step: Step::new(), done }];
        (Flight::of(group, answers).1, told)
    }

    #[test]
    fn callers_are_told_when_the_next_group_is_sent_and_whatever_becomes_of_it() {
        let (mut first, mut told) = flight(Answers::default());
        first.stands(0, 7);
        let (mut second, mut later) = flight(first.land());
        assert_eq!(told.try_recv().unwrap_err(), TryRecvError::Empty);
        second.answers.tell();
        assert_eq!(told.try_recv().unwrap().unwrap(), 7);
        second.results[0] = Some(Err(Error::new(Kind::Conflict, "changed")));
        let (third, _) = flight(second.land());
        assert_eq!(later.try_recv().unwrap_err(), TryRecvError::Empty);
        // It could not be sent.
        assert_eq!(third.back(vec![Step::new()]).len(), 1);
        assert_eq!(later.try_recv().unwrap().unwrap_err().kind(), Kind::Conflict);
    }
}
