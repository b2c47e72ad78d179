//! From notes to entries: what was asked, joined with how it went.

use std::collections::HashMap;

use serde_json::json;

use super::super::{Call, Controller};
use super::{ById, Chain, Found, Item, Links, List, Page};
use crate::clock::rfc3339;
use crate::error::{Error, Kind, Result};
use crate::store::Order;
use crate::store::audit::{self, End, Entry, Note, Stored};

/// How many links are read at most between two looks at what else there is to do.
pub(super) const CHUNK: usize = 64;
/// How far ahead of an entry its end is looked for, in links.
const AHEAD: usize = 2_048;
/// By how much the order of the log may differ from that of the clock, in milliseconds.
const SLACK_MS: u64 = 5_000;

/// How the requests went whose ends have been seen: status and duration, by entry.
#[derive(Default)]
pub(super) struct Known(HashMap<String, (u16, u64)>);

impl Known {
    /// Of several hosts, the one that fared worst and the one that took longest count.
    pub(super) fn add(&mut self, end: &End) {
        let (code, ms) = self.0.entry(end.entry.clone()).or_insert((0, 0));
        (*code, *ms) = ((*code).max(end.code), (*ms).max(end.ms));
    }

    /// How the entry `id` went. Whoever reads backwards has met all its ends, and keeps none.
    pub(super) fn take(&mut self, id: &str) -> Option<(u16, u64)> {
        self.0.remove(id)
    }
}

pub(super) async fn list(call: Call, List { limit, offset }: List) -> Result<Page> {
    let controller = &call.controller;
    let ends = controller.store.ends().await?;
    let limit = usize::try_from(limit.clamp(1, 100)).unwrap_or(100);
    let (mut skip, total_items) = (offset, total(&ends));
    if skip >= total_items {
        return Ok(Page { total_items, items: Vec::new() });
    }
    // Newest first: the end of an entry is met before the entry.
    let (mut items, mut known, mut after) = (Vec::new(), Known::default(), 0);
    while items.len() < limit {
        let links = controller.store.audit(after, CHUNK, Order::Descending).await?;
        let Some(last) = links.last() else { break };
        after = last.place;
        for stored in &links {
            for note in stored.link.notes.iter().rev() {
                match note {
                    Note::End(end) => known.add(end),
                    Note::Entry(entry) => {
                        let end = known.take(&entry.id);
                        if skip > 0 {
                            skip -= 1;
                        } else if items.len() < limit {
                            items.push(item(entry, end));
                        }
                    }
                    Note::Event(_) => {}
                }
            }
        }
        if after <= 1 {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(Page { total_items, items })
}

pub(super) async fn get(call: Call, ById { id }: ById) -> Result<Found> {
    let controller = &call.controller;
    let missing = || {
        let message = format!("no audit entry {}; it may be older than what is kept", id.as_str());
        Error::new(Kind::NotFound, message)
    };
    let start = controller.before(id.as_str()).await?;
    let found = match controller.find(id.as_str(), start, Some(AHEAD)).await? {
        Some(found) => Some(found),
        // Clocks are set, and notes wait: then everything is looked through.
        None => controller.find(id.as_str(), 0, None).await?,
    };
    let (entry, mut known) = found.ok_or_else(missing)?;
    Ok(Found { entry: item(&entry, known.take(&entry.id)) })
}

pub(super) async fn chain(call: Call, Chain { after, limit }: Chain) -> Result<Links> {
    let store = &call.controller.store;
    let limit = usize::try_from(limit.clamp(1, 500)).unwrap_or(500);
    let ends = store.ends().await?;
    let mut links = store.audit(after, limit, Order::Ascending).await?;
    let last = links.last().map_or(0, |stored| stored.place);
    // A chain is checked against its own ends; those of others are theirs to show.
    links.retain(|stored| stored.writer == ends.head.writer);
    let ends = json!(ends);
    let text = |stored: &Stored| String::from_utf8_lossy(&stored.bytes).into_owned();
    Ok(Links { ends, links: links.iter().map(text).collect(), last })
}

impl Controller {
    /// The number of a link that was surely written before the entry `id` was.
    async fn before(&self, id: &str) -> Result<u64> {
        let newest = self.store.audit(0, 1, Order::Descending).await?;
        let (mut low, mut high) = (0, newest.first().map_or(0, |stored| stored.place));
        let Some(at) = time_of(id).map(|at| at.saturating_sub(SLACK_MS)) else { return Ok(0) };
        while low < high {
            let middle = low + (high - low) / 2;
            let found = self.store.audit(middle, 1, Order::Ascending).await?;
            match found.first() {
                Some(stored) if stored.link.at < at => low = stored.place.max(middle + 1),
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Looks for an entry and for its end behind a link, through at most so many links.
    async fn find(
        &self,
        id: &str,
        mut after: u64,
        most: Option<usize>,
    ) -> Result<Option<(Entry, Known)>> {
        let (mut found, mut known, mut seen) = (None::<Entry>, Known::default(), 0);
        loop {
            let links = self.store.audit(after, CHUNK, Order::Ascending).await?;
            let Some(last) = links.last() else { break };
            after = last.place;
            for note in links.iter().flat_map(|stored| &stored.link.notes) {
                match note {
                    Note::Entry(entry) if entry.id == id => found = Some(entry.clone()),
                    Note::End(end) if end.entry == id => known.add(end),
                    _ => {}
                }
            }
            seen += links.len();
            let is_whole = found.as_ref().is_some_and(|entry| entry.code.is_some())
                || (found.is_some() && !known.0.is_empty());
            if is_whole || most.is_some_and(|most| seen >= most) {
                break;
            }
            tokio::task::yield_now().await;
        }
        Ok(found.map(|entry| (entry, known)))
    }
}

fn total(ends: &audit::Ends) -> u64 {
    let of = |stub: &audit::Head, head: &audit::Head| head.entries.saturating_sub(stub.entries);
    of(&ends.stub, &ends.head) + of(&ends.refusals_stub, &ends.refusals_head)
}

pub(super) fn item(entry: &Entry, end: Option<(u16, u64)>) -> Item {
    let code = entry.code.or_else(|| end.map(|end| end.0));
    let ms = entry.ms.or_else(|| end.map(|end| end.1));
    Item {
        id: entry.id.clone(),
        timestamp: rfc3339(entry.at),
        user: entry.user.clone(),
        roles: entry.roles.clone(),
        method: entry.method.clone(),
        path: entry.path.clone(),
        operation_id: entry.op.clone(),
        source_ip: entry.source.clone(),
        response_code: code.unwrap_or(202),
        duration_ms: ms.unwrap_or(0),
        trace_id: entry.trace.clone(),
        job_id: entry.job.clone(),
        about: entry.about.clone(),
        more: entry.more,
    }
}

/// When a `UUIDv7` was made, in milliseconds since 1970.
fn time_of(id: &str) -> Option<u64> {
    let (seconds, nanos) = uuid::Uuid::parse_str(id).ok()?.get_timestamp()?.to_unix();
    Some(seconds * 1000 + u64::from(nanos) / 1_000_000)
}
