//! Steps as messages, on their way to the server.

use async_nats::HeaderMap;
use futures_util::future::join_all;

use super::Shared;
use super::jetstream::{Acks, Outgoing, is_marker, sequence};
use crate::broker::{Line, broken};
use crate::error::{Kind, Result};
use crate::store::{Expect, Revision, Step, Write};

/// Markers keep a deletion visible this long to watches that resume.
const MARKER: &str = "3600s";

impl Shared {
    /// All on their way at once, the links ahead, but for steps of several records.
    pub(super) async fn one_by_one(
        &self,
        line: &Line,
        acks: &mut Acks,
        links: Vec<Outgoing>,
        steps: &[Step],
    ) -> (Result<()>, Vec<Result<Revision>>) {
        let is_single = |step: &Step| step.writes.len() < 2;
        let mut runs = steps.chunk_by(|a, b| is_single(a) && is_single(b));
        let first = runs.next().unwrap_or_default();
        let singles = if first.iter().all(is_single) { first } else { &[] };
        let count = links.len();
        let writes = singles.iter().flat_map(|step| &step.writes);
        let messages = links.into_iter().chain(writes.map(|write| self.message(write, None)));
        let mut sent = acks.publish(messages.collect()).await.into_iter();
        let links: Vec<_> = sent.by_ref().take(count).collect();
        let settled = singles.iter().map(|step| {
            let sent = if step.writes.is_empty() { Some(Ok(0)) } else { sent.next() };
            self.again(line, step, sent.unwrap_or_else(|| Err(broken())))
        });
        let mut results = join_all(settled).await;
        for run in std::iter::once(&first[singles.len()..]).chain(runs) {
            results.extend(join_all(run.iter().map(|step| self.step(line, step))).await);
        }
        (links.into_iter().try_for_each(|link| link.map(drop)), results)
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
        match (messages.len(), messages.pop()) {
            (_, None) => Ok(0),
            (1, Some(single)) => line.publish(single).await,
            (_, Some(last)) => {
                messages.push(last);
                line.batch(messages).await
            }
        }
    }

    /// `marker` is the sequence of what a deletion has left, where that is known to be there.
    pub(super) fn message(&self, write: &Write, marker: Option<u64>) -> Outgoing {
        let expected = match write.expect {
            Expect::Anything => None,
            Expect::Absent => Some(marker.unwrap_or(0)),
            Expect::Revision(revision) => Some(revision),
        };
        let mut headers = HeaderMap::new();
        if let Some(sequence) = expected {
            let sequence = sequence.to_string();
            headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.as_str());
        }
        if write.value.is_none() {
            headers.insert("KV-Operation", "PURGE");
            headers.insert("Nats-TTL", MARKER);
        } else if let Some(lifetime) = write.lifetime {
            // The server counts in whole seconds and refuses less than one.
            let seconds = lifetime.as_millis().div_ceil(1000).max(1);
            headers.insert("Nats-TTL", format!("{seconds}s").as_str());
        }
        let subject = self.subject(&write.key);
        Outgoing { subject, headers, payload: write.value.clone().unwrap_or_default() }
    }
}

impl Outgoing {
    pub(super) fn copy(&self) -> Self {
        let (subject, headers) = (self.subject.clone(), self.headers.clone());
        Self { subject, headers, payload: self.payload.clone() }
    }
}
