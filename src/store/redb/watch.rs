//! Watches: each reads on from the revision that it has seen.
//!
//! What changed last is kept in memory, bounded by count and by size. A watcher that keeps up is
//! fed from there; one that does not, or that begins in the past, reads pages of the database. So
//! no watcher costs memory by being slow.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;

use super::{CHANGES, RECORDS, Shared, live, lock};
use crate::error::Result;
use crate::store::{Event, Revision, is_under};

const EVENTS: usize = 4096;
const BYTES: usize = 4 << 20;
/// How many events a watcher takes at a time.
const PAGE: usize = 256;

/// What changed last, in order of revision.
pub(super) struct Recent {
    kept: Mutex<Kept>,
    /// Up to where everything is durable and in `kept`.
    latest: watch::Sender<Revision>,
    is_closed: AtomicBool,
}

struct Kept {
    events: VecDeque<Event>,
    bytes: usize,
    /// All that has a greater revision is there.
    since: Revision,
}

impl Recent {
    pub(super) fn new(latest: Revision) -> Self {
        let kept = Kept { events: VecDeque::new(), bytes: 0, since: latest };
        Self {
            kept: Mutex::new(kept),
            latest: watch::Sender::new(latest),
            is_closed: AtomicBool::new(false),
        }
    }

    /// `events` are those of one transaction, the last of which has the revision `latest`.
    pub(super) fn publish(&self, events: Vec<Event>, latest: Revision) {
        let mut kept = lock(&self.kept);
        for event in events {
            kept.bytes += size(&event);
            kept.events.push_back(event);
        }
        while kept.events.len() > EVENTS || kept.bytes > BYTES {
            let Some(event) = kept.events.pop_front() else { break };
            kept.bytes -= size(&event);
            kept.since = revision(&event);
        }
        drop(kept);
        self.latest.send_replace(latest);
    }

    /// Starts again behind `latest`, when it is not known what led there.
    pub(super) fn restart(&self, latest: Revision) {
        *lock(&self.kept) = Kept { events: VecDeque::new(), bytes: 0, since: latest };
        self.latest.send_replace(latest);
    }

    /// Ends every watch.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.latest.send_modify(|_| ());
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// What comes after `seen`, and up to where that goes; `None` where it is no longer known.
    fn after(&self, seen: Revision, prefix: &str) -> Option<(Vec<Event>, Revision)> {
        let kept = lock(&self.kept);
        if seen < kept.since {
            return None;
        }
        let first = kept.events.partition_point(|event| revision(event) <= seen);
        let page = kept.events.range(first..).take(PAGE);
        let last = page.clone().next_back().map_or(seen, revision);
        Some((page.filter(|event| is_wanted(event, prefix)).cloned().collect(), last))
    }
}

struct Watcher {
    shared: Arc<Shared>,
    latest: watch::Receiver<Revision>,
    prefix: String,
    seen: Revision,
    /// Where the store was when the watch began; `None` once it got there.
    goal: Option<Revision>,
    /// A new watcher has nothing to delete.
    is_new: bool,
    ready: VecDeque<Event>,
}

pub(super) fn watch(
    shared: &Arc<Shared>,
    prefix: &str,
    since: Revision,
) -> BoxStream<'static, Event> {
    let latest = shared.recent.latest.subscribe();
    let goal = Some(*latest.borrow());
    let watcher = Watcher {
        shared: shared.clone(),
        latest,
        prefix: prefix.to_owned(),
        seen: since,
        goal,
        is_new: since == 0,
        ready: VecDeque::new(),
    };
    stream::unfold(watcher, async |mut watcher| Some((watcher.next().await?, watcher))).boxed()
}

impl Watcher {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.shared.recent.is_closed() {
                return None;
            }
            // Asked before what is there is read, so that what comes after wakes it.
            let latest = *self.latest.borrow_and_update();
            if self.goal.is_some_and(|goal| self.seen >= goal) {
                self.goal = None;
                self.is_new = false;
                return Some(Event::Current);
            }
            if self.seen >= latest {
                self.latest.changed().await.ok()?;
                continue;
            }
            let (events, seen) = match self.shared.recent.after(self.seen, &self.prefix) {
                Some(page) => page,
                None => match self.page(latest).await {
                    Ok(page) => page,
                    Err(error) => {
                        tracing::error!(%error, "a watch ends, because the store cannot be read");
                        return None;
                    }
                },
            };
            self.seen = seen;
            let is_new = self.is_new;
            self.ready.extend(
                events.into_iter().filter(|event| !is_new || matches!(event, Event::Put(_))),
            );
        }
    }

    async fn page(&self, latest: Revision) -> Result<(Vec<Event>, Revision)> {
        let now = self.shared.time.now();
        let seen = self.seen;
        let page = self.shared.read(|txn| {
            let (changes, records) = (txn.open_table(CHANGES)?, txn.open_table(RECORDS)?);
            let (mut events, mut last, mut count) = (Vec::new(), latest, 0);
            for row in changes.range(seen + 1..=latest)? {
                let (revision, key) = row?;
                let (revision, key) = (revision.value(), key.value());
                count += 1;
                if is_under(key, &self.prefix) {
                    let event = match records.get(key)? {
                        Some(row) if row.value().0 == revision => {
                            // What has expired is yet to be deleted, by a later revision.
                            live(key, row.value(), now).map(Event::Put)
                        }
                        _ => Some(Event::Delete { key: key.to_owned(), revision }),
                    };
                    events.extend(event);
                }
                if count == PAGE {
                    last = revision;
                    break;
                }
            }
            Ok((events, last))
        });
        page.await
    }
}

fn is_wanted(event: &Event, prefix: &str) -> bool {
    match event {
        Event::Put(entry) => is_under(&entry.key, prefix),
        Event::Delete { key, .. } => is_under(key, prefix),
        Event::Current => false,
    }
}

fn revision(event: &Event) -> Revision {
    match event {
        Event::Put(entry) => entry.revision,
        Event::Delete { revision, .. } => *revision,
        Event::Current => 0,
    }
}

fn size(event: &Event) -> usize {
    let content = match event {
        Event::Put(entry) => entry.key.len() + entry.value.len(),
        Event::Delete { key, .. } => key.len(),
        Event::Current => 0,
    };
    content + size_of::<Event>()
}
