//! Steps as messages, on their way to the server.

use async_nats::HeaderMap;
use futures_util::future::join_all;

use super::flight::Flight;
use super::jetstream::{Acks, Outgoing, is_marker, sequence};
use super::{Shared, lock};
use crate::broker::{Line, broken};
use crate::error::{Error, Kind, Result};
use crate::store::{Expect, Revision, Step, Write};

/// Markers keep a deletion visible this long to watches that resume.
const MARKER: &str = "3600s";

impl Shared {
    /// All on their way at once, the links ahead, but for steps of several records. A step does not
    /// stand before the links do; `linked` is called when these do, and otherwise the error says why.
    pub(super) async fn one_by_one(
        &self,
        line: &Line,
        acks: &mut Acks,
        links: Vec<Outgoing>,
        (steps, flight): (&[Step], &mut Flight),
        linked: impl FnOnce(),
    ) -> Result<()> {
        let is_single = |step: &Step| step.writes.len() < 2;
        let first = steps.iter().take_while(|step| is_single(step)).count();
        let count = links.len();
        let is_open = |place: &usize| flight.results[*place].is_none();
        let places = (0..first).filter(|place| !steps[*place].writes.is_empty());
        let places: Vec<_> = places.filter(is_open).collect();
        let writes = places.iter().flat_map(|place| &steps[*place].writes);
        let messages = links.into_iter().chain(writes.map(|write| self.message(write, None)));
        let (mut open, mut refused, mut linked) = (count, None, Some(linked));
        let settle = |number: usize, result: Result<Revision>| {
            let place = number.checked_sub(count).map(|number| places[number]);
            if let Ok(revision) = result {
                let write = place.and_then(|place| steps[place].writes.first());
                lock(&self.echo).stored(revision, write);
            }
            match (place, result) {
                (None, Ok(_)) => {
                    open -= 1;
                    linked.take_if(|_| open == 0).into_iter().for_each(|linked| linked());
                }
                (None, Err(error)) => refused = Some(error),
                (Some(place), Ok(revision)) if open == 0 => flight.stands(place, revision),
                (Some(place), result) => flight.results[place] = Some(result),
            }
        };
        acks.publish(messages.collect(), settle).await;
        for (step, result) in steps.iter().zip(&mut flight.results) {
            if step.writes.is_empty() && result.is_none() {
                *result = Some(Ok(0));
            }
        }
        let goes_on = |step: &Step| refused.as_ref().is_none_or(|error| may_go_on(error, step));
        if let Some(error) = &refused {
            flight.turn_away(steps, error, goes_on);
        }
        let again = flight.results[..first].iter_mut().enumerate();
        let again =
            again.filter(|(place, it)| matches!(it, Some(Err(_))) && goes_on(&steps[*place]));
        join_all(again.map(async |(place, result)| {
            let sent = result.take().unwrap_or_else(|| Err(broken()));
            *result = Some(self.again(line, &steps[place], sent).await);
        }))
        .await;
        let mut place = first;
        for run in steps[first..].chunk_by(|a, b| is_single(a) && is_single(b)) {
            let results = &mut flight.results[place..place + run.len()];
            let open = run.iter().zip(results).filter(|(_, result)| result.is_none());
            join_all(open.map(async |(step, result)| *result = Some(self.step(line, step).await)))
                .await;
            place += run.len();
        }
        match (refused, linked) {
            (Some(error), _) => Err(error),
            (None, Some(linked)) => {
                linked();
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    async fn step(&self, line: &Line, step: &Step) -> Result<Revision> {
        let sent = self.send(line, &step.writes, &[]).await;
        self.again(line, step, sent).await
    }

    /// What becomes of a step that was sent, which may have met what a deletion has left.
    async fn again(&self, line: &Line, step: &Step, sent: Result<Revision>) -> Result<Revision> {
        match sent {
            Err(error) if error.kind() == Kind::Conflict => {
                // A deleted key still has a marker, which the server takes for a value.
                let mut markers = Vec::new();
                for write in step.writes.iter().filter(|write| write.expect == Expect::Absent) {
                    let subject = self.subject(&write.key);
                    let last = line.last(self.stream(), &subject).await?;
                    let marker = last.filter(is_marker).and_then(|last| sequence(&last));
                    markers.extend(marker.map(|sequence| (write.key.as_str(), sequence)));
                }
                if markers.is_empty() {
                    Err(error)
                } else {
                    self.send(line, &step.writes, &markers).await
                }
            }
            result => result,
        }
    }

    async fn send(
        &self,
        line: &Line,
        writes: &[Write],
        markers: &[(&str, u64)],
    ) -> Result<Revision> {
        let marker = |write: &Write| markers.iter().find(|m| m.0 == write.key).map(|m| m.1);
        let mut messages: Vec<_> =
            writes.iter().map(|write| self.message(write, marker(write))).collect();
        let last = match (messages.len(), messages.pop()) {
            (_, None) => return Ok(0),
            (1, Some(single)) => line.publish(single).await?,
            (_, Some(last)) => {
                messages.push(last);
                line.batch(messages).await?
            }
        };
        lock(&self.echo).stored_all(last, writes.iter().map(Some));
        Ok(last)
    }

    /// `marker` is the sequence of what a deletion has left, where that is known to be there.
    pub(super) fn message(&self, write: &Write, marker: Option<u64>) -> Outgoing {
        let expected = match write.expect {
            Expect::Anything => None,
            Expect::Absent => Some(marker.unwrap_or(0)),
            Expect::Revision(revision) => Some(revision),
        };
        let (subject, headers) = (self.subject(&write.key), HeaderMap::new());
        let mut message = match write.value.clone() {
            Some(payload) => Outgoing { subject, headers, payload },
            None => Outgoing::deletion(subject, MARKER),
        };
        if let Some(sequence) = expected {
            let sequence = sequence.to_string();
            message.headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.as_str());
        }
        if let Some(lifetime) = write.lifetime.filter(|_| write.value.is_some()) {
            // The server counts in whole seconds and refuses less than one.
            let seconds = lifetime.as_millis().div_ceil(1000).max(1);
            message.headers.insert("Nats-TTL", format!("{seconds}s").as_str());
        }
        message
    }
}

/// Whether a step is still to be sent whose link was refused. Where another writer got ahead, the
/// note goes behind its link; where there is no room, what makes some or was promised does not wait
/// for its note.
fn may_go_on(error: &Error, step: &Step) -> bool {
    match error.kind() {
        Kind::Conflict => true,
        Kind::Full => step.is_urgent(),
        _ => false,
    }
}

impl Outgoing {
    pub(super) fn copy(&self) -> Self {
        let (subject, headers) = (self.subject.clone(), self.headers.clone());
        Self { subject, headers, payload: self.payload.clone() }
    }
}
