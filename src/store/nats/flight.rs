//! What has become of steps that are on their way together, and who is still to be told.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::error::{Error, Kind, Result};
use crate::store::queue::{Done, Pending};
use crate::store::{Revision, Step};

/// What callers are to be told. They are whenever the writer has to wait, and no sooner.
///
/// Whoever is told goes on at once, and has the processor before what was sent in the meantime gets
/// to the connection. So the next group is sent first: the server has something to do while we see
/// to those of the group before.
#[derive(Clone, Default)]
pub(super) struct Answers(Arc<Held>);

#[derive(Default)]
struct Held(Mutex<Vec<(Done, Result<Revision>)>>);

impl Answers {
    fn add(&self, done: Done, result: Result<Revision>) {
        lock(&self.0.0).push((done, result));
    }

    pub(super) fn tell(&self) {
        self.0.tell();
    }

    /// Does `work`, and tells whenever that has to wait.
    pub(super) async fn tell_while<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            let polled = work.as_mut().poll(context);
            if polled.is_pending() {
                self.tell();
            }
            polled
        })
        .await
    }
}

impl Held {
    fn tell(&self) {
        for (done, result) in std::mem::take(&mut *lock(&self.0)) {
            // Whoever asked may have stopped waiting; the step counts all the same.
            let _ = done.send(result);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tell();
    }
}

pub(super) struct Flight {
    done: Vec<Option<Done>>,
    pub(super) results: Vec<Option<Result<Revision>>>,
    answers: Answers,
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
            self.answers.add(done, Ok(revision));
        }
        self.results[place] = Some(Ok(revision));
    }

    /// Of the steps that did not stand before only those do that `may_stand`; whether any would have.
    pub(super) fn fell(
        &mut self,
        steps: &[Step],
        why: &str,
        may_stand: impl Fn(&Step) -> bool,
    ) -> bool {
        let mut has_any = false;
        let all = self.results.iter_mut().zip(&self.done).zip(steps);
        for ((result, _), step) in all.filter(|((_, done), _)| done.is_some()) {
            if let Some(Ok(_)) = result {
                has_any = true;
                if !may_stand(step) {
                    *result = Some(Err(Error::new(Kind::Unavailable, why)));
                }
            }
        }
        has_any
    }

    /// Of the steps that were not sent yet only those are that may go on.
    pub(super) fn turn_away(
        &mut self,
        steps: &[Step],
        error: &Error,
        may_go_on: impl Fn(&Step) -> bool,
    ) {
        let open = self.results.iter_mut().zip(steps).filter(|(result, _)| result.is_none());
        for (result, _) in open.filter(|(_, step)| !may_go_on(step)) {
            *result = Some(Err(Error::from(error.body())));
        }
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

    /// Everybody is to be told who was not yet.
    pub(super) fn land(self) {
        let rest = self.done.into_iter().zip(self.results);
        for (done, result) in rest.filter_map(|(done, result)| done.zip(result)) {
            self.answers.add(done, result);
        }
    }

    /// The group as it was, nobody of which was told anything.
    pub(super) fn back(self, steps: Vec<Step>) -> Vec<Pending> {
        let group = steps.into_iter().zip(self.done);
        group.filter_map(|(step, done)| Some(Pending { step, done: done? })).collect()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot::{self, Receiver, error::TryRecvError};

    use super::*;

    fn flight(answers: &Answers) -> (Flight, Receiver<Result<Revision>>) {
        let (done, told) = oneshot::channel();
        let group = vec![Pending { step: Step::new(), done }];
        (Flight::of(group, answers.clone()).1, told)
    }

    #[test]
    fn callers_are_told_when_the_writer_has_to_wait_and_at_the_latest_when_it_ends() {
        let answers = Answers::default();
        let (mut first, mut told) = flight(&answers);
        first.stands(0, 7);
        first.land();
        assert!(answers.tell_while(async {}).now_or_never().is_some());
        assert_eq!(told.try_recv().unwrap_err(), TryRecvError::Empty);
        let waiting = answers.tell_while(std::future::pending::<()>());
        assert!(waiting.now_or_never().is_none());
        assert_eq!(told.try_recv().unwrap().unwrap(), 7);

        let (mut second, mut told) = flight(&answers);
        second.results[0] = Some(Err(Error::new(Kind::Conflict, "changed")));
        second.land();
        drop(answers);
        assert_eq!(told.try_recv().unwrap().unwrap_err().kind(), Kind::Conflict);
    }
}
