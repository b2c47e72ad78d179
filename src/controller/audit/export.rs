//! The whole audit log as it was when it was asked for, written while it is read.
//!
//! The log is gone through twice: backwards for the entries, since how a request went stands
//! behind it, then forwards for the links. Nothing is kept of it meanwhile but the ends of
//! requests that have still to be met. It is whole where its JSON is; what keeps it from that
//! breaks it off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::Serialize;
use serde_json::json;

use super::super::Call;
use super::log::{CHUNK, Known, item};
use crate::error::{Error, Kind, Result};
use crate::store::audit::{Ends, Note, Stored};
use crate::store::{Kept, Order, Store};

/// How long somebody may take to read it.
const LIMIT: Duration = Duration::from_mins(10);

pub(super) async fn export(call: Call) -> Result<BoxStream<'static, Result<Bytes>>> {
    let store = call.controller.store.clone();
    let kept = store.keep()?;
    let ends = store.ends().await?;
    let last = ends.head.number.max(ends.refusals_head.number);
    let (next, begun) = (Next::Items { before: 0 }, Instant::now());
    let (known, items, has_links) = (Known::default(), 0, false);
    let reading = Reading { store, _kept: kept, ends, last, next, begun, known, items, has_links };
    let parts = stream::try_unfold(reading, |mut reading| async move {
        let part = reading.part().await.inspect_err(|error| {
            tracing::warn!(%error, "an export of the audit log was broken off");
        });
        Ok(part?.map(|part| (part.into(), reading)))
    });
    Ok(parts.boxed())
}

struct Reading {
    store: Arc<dyn Store>,
    _kept: Kept,
    /// Of the log as it is told.
    ends: Ends,
    /// The number of its last link. What was written since belongs to the next export.
    last: u64,
    next: Next,
    begun: Instant,
    known: Known,
    /// How many were written.
    items: u64,
    /// Whether a link was.
    has_links: bool,
}

/// What is to be written next.
enum Next {
    Items { before: u64 },
    Links { after: u64 },
    Nothing,
}

impl Reading {
    /// The next part; none at the end.
    async fn part(&mut self) -> Result<Option<Vec<u8>>> {
        if self.begun.elapsed() > LIMIT {
            let message = format!("the log was not read within {} s", LIMIT.as_secs());
            return Err(Error::new(Kind::Timeout, message));
        }
        // Others are to be answered meanwhile, however fast it is read.
        tokio::task::yield_now().await;
        match self.next {
            Next::Items { before } => self.some_items(before).await.map(Some),
            Next::Links { after } => self.some_links(after).await.map(Some),
            Next::Nothing => Ok(None),
        }
    }

    async fn some_items(&mut self, before: u64) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        if before == 0 {
            text.extend_from_slice(b"{\"items\":[");
        }
        let links = self.store.audit(before, CHUNK, Order::Descending).await?;
        self.is_as_it_was().await?;
        let told: Vec<_> = links.iter().filter(|stored| self.is_told(stored)).collect();
        for note in told.iter().flat_map(|stored| stored.link.notes.iter().rev()) {
            match note {
                Note::End(end) => self.known.add(end),
                Note::Entry(entry) => {
                    write(&mut text, self.items == 0, &item(entry, self.known.take(&entry.id)))?;
                    self.items += 1;
                }
                Note::Event(_) => {}
            }
        }
        self.next = match links.last() {
            // Nothing comes before the first.
            Some(stored) if stored.place > 1 => Next::Items { before: stored.place },
            _ => {
                let (ends, items) = (json!(self.ends), self.items);
                let rest = format!("],\"total_items\":{items},\"ends\":{ends},\"links\":[");
                text.extend_from_slice(rest.as_bytes());
                Next::Links { after: 0 }
            }
        };
        Ok(text)
    }

    async fn some_links(&mut self, after: u64) -> Result<Vec<u8>> {
        let links = self.store.audit(after, CHUNK, Order::Ascending).await?;
        self.is_as_it_was().await?;
        let mut text = Vec::new();
        let mut is_done = self.last == 0;
        let told: Vec<_> = links.iter().filter(|stored| self.is_told(stored)).collect();
        for stored in told {
            write(&mut text, !self.has_links, &String::from_utf8_lossy(&stored.bytes))?;
            (self.has_links, is_done) = (true, stored.link.number == self.last);
        }
        self.next = match links.last() {
            Some(stored) if !is_done => Next::Links { after: stored.place },
            _ => {
                text.extend_from_slice(b"]}\n");
                Next::Nothing
            }
        };
        Ok(text)
    }

    /// Whether it is a link of this writer, and was there at the beginning.
    fn is_told(&self, stored: &Stored) -> bool {
        stored.writer == self.ends.head.writer && stored.link.number <= self.last
    }

    /// Fails where retention has dropped something of what is told.
    async fn is_as_it_was(&self) -> Result<()> {
        let now = self.store.ends().await?;
        if (&now.stub, &now.refusals_stub) == (&self.ends.stub, &self.ends.refusals_stub) {
            return Ok(());
        }
        let message = "the log grew faster than it was read; ask again";
        Err(Error::new(Kind::Unavailable, message))
    }
}

fn write(text: &mut Vec<u8>, is_first: bool, value: &impl Serialize) -> Result<()> {
    if !is_first {
        text.push(b',');
    }
    serde_json::to_writer(text, value)
        .map_err(|error| Error::new(Kind::Internal, "cannot encode it").because(error))
}
