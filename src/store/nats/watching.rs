//! Watches: each has a consumer of its own at the server, and reads on from the revision that it has
//! seen whenever that was lost. While nobody else writes the consumer is for those who begin to, and
//! for nothing else ([`super::alone`]).
//!
//! The stream keeps one message for each subject, so that whatever has a greater sequence is all
//! there is to tell, from the beginning or from any place after it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};

use super::alone::{COMPANY, Heard};
use super::jetstream::{header, is_marker};
use super::{Shared, lock};
use crate::broker::{self, Line};
use crate::error::Result;
use crate::store::{Entry, Event, Revision, is_under};

/// How often the server says that there is nothing to say.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long it may say nothing at all.
const SILENCE: Duration = Duration::from_secs(16);
/// The pause between two attempts to go on.
const AGAIN: Duration = Duration::from_millis(200);
/// How soon the server forgets a consumer that nobody listens to any more.
const FORGET: Duration = Duration::from_secs(30);

struct Watcher {
    shared: Arc<Shared>,
    prefix: String,
    feed: Option<Feed>,
    seen: Revision,
    /// Where the stream was when the watch began; `None` once it got there.
    goal: Option<Revision>,
    /// A new watcher has nothing to delete.
    is_new: bool,
    ready: Option<Event>,
    /// What the writer tells. It is listened to before the server has told all that is older.
    heard: Option<Heard>,
    /// Whether it is told by the writer alone.
    is_alone: bool,
    /// Others who write.
    others: HashSet<String>,
    /// Not before this it is told by the writer alone again.
    not_before: Instant,
}

/// A consumer at the server.
struct Feed {
    line: Arc<Line>,
    messages: Subscriber,
    /// How many messages it has sent.
    sent: u64,
}

/// Where a message stands: the stream's sequence, the consumer's, and how many are to come.
struct Position {
    stream: u64,
    sent: u64,
    left: u64,
}

pub(super) async fn watch(
    shared: &Arc<Shared>,
    prefix: &str,
    since: Revision,
) -> Result<BoxStream<'static, Event>> {
    let line = shared.bus.line()?;
    let stream = shared.stream();
    let info = line.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
    let info = info.map_err(|refusal| refusal.into_error(stream))?;
    let mut watcher = Watcher {
        shared: shared.clone(),
        prefix: prefix.to_owned(),
        feed: None,
        seen: since,
        goal: Some(info["state"]["last_seq"].as_u64().unwrap_or_default()),
        is_new: since == 0,
        ready: None,
        heard: None,
        is_alone: false,
        others: HashSet::new(),
        not_before: Instant::now(),
    };
    watcher.listen(line).await?;
    Ok(stream::unfold(watcher, async |mut watcher| Some((watcher.next().await?, watcher))).boxed())
}

impl Watcher {
    /// Has the server send what comes after what was seen.
    async fn listen(&mut self, line: Arc<Line>) -> Result<()> {
        let stream = self.shared.stream();
        let inbox = line.client.new_inbox();
        let subscribed = line.client.subscribe(inbox.clone()).await;
        let messages = subscribed.map_err(|error| broker::away().because(error))?;
        let (pattern, writers) = (self.shared.pattern(&self.prefix), self.shared.writers("*"));
        let filters = match (self.is_alone, self.prefix.as_str()) {
            (true, _) => vec![writers],
            (false, "") => vec![pattern],
            (false, _) => vec![pattern, writers],
        };
        let body = json!({
            "stream_name": stream,
            "config": {
                "deliver_subject": inbox,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": self.seen + 1,
                "filter_subjects": filters,
                "ack_policy": "none",
                "replay_policy": "instant",
                "max_deliver": 1,
                "flow_control": true,
                "idle_heartbeat": nanos(HEARTBEAT),
                "inactive_threshold": nanos(FORGET),
                "mem_storage": true,
                "num_replicas": 1,
            },
        });
        let made = line.api(&format!("CONSUMER.CREATE.{stream}"), &body).await?;
        let made = made.map_err(|refusal| refusal.into_error(stream))?;
        if made["num_pending"].as_u64() == Some(0) && self.goal.is_some() {
            self.ready = self.current();
        }
        // Whoever begins to write after this is in what the consumer sends.
        self.others = self.shared.others(&line).await?;
        self.feed = Some(Feed { line, messages, sent: 0 });
        if self.is_alone && !self.others.is_empty() {
            self.ask_again();
        }
        Ok(())
    }

    fn current(&mut self) -> Option<Event> {
        self.is_new = false;
        self.goal.take().map(|_| Event::Current)
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.take() {
                return Some(event);
            }
            let Some(feed) = &mut self.feed else {
                let line = tokio::select! {
                    line = self.shared.bus.next_line() => line?,
                    () = self.shared.closed() => return None,
                };
                if let Err(error) = self.listen(line).await {
                    tracing::warn!(%error, "cannot follow the store; trying on");
                    tokio::time::sleep(AGAIN).await;
                }
                continue;
            };
            let message = match feed.messages.next().now_or_never() {
                Some(message) => Ok(message),
                None => {
                    let mut is_lost = feed.line.lost();
                    let heard = self.heard.as_mut().filter(|_| self.is_alone);
                    tokio::select! {
                        biased;
                        told = next_of(heard) => {
                            match told {
                                Some(event) => self.ready = self.hear(event),
                                None => self.ask_again(),
                            }
                            continue;
                        }
                        message = tokio::time::timeout(SILENCE, feed.messages.next()) => message,
                        _ = is_lost.wait_for(|is_lost| *is_lost) => Ok(None),
                        () = self.shared.closed() => return None,
                    }
                }
            };
            match message {
                Ok(Some(message)) => match self.take(&message).await {
                    Some(Some(event)) => return Some(event),
                    Some(None) => {}
                    None => self.ask_again(),
                },
                // Lost, or silent for too long.
                _ => self.ask_again(),
            }
        }
    }

    /// Has the server tell all that comes behind what was seen.
    fn ask_again(&mut self) {
        (self.feed, self.heard, self.is_alone) = (None, None, false);
        self.not_before = Instant::now() + COMPANY;
    }

    /// What the writer tells, if it is new.
    fn hear(&mut self, event: Event) -> Option<Event> {
        let (key, revision) = match &event {
            Event::Put(entry) => (&entry.key, entry.revision),
            Event::Delete { key, revision } => (key, *revision),
            Event::Current => return None,
        };
        if revision <= self.seen {
            return None;
        }
        self.see(revision);
        is_under(key, &self.prefix).then_some(event)
    }

    fn see(&mut self, revision: Revision) {
        self.seen = revision;
        self.shared.newest.fetch_max(revision, Ordering::Relaxed);
    }

    /// Goes on with what the writer tells, once the server has told all that came before.
    fn is_to_be_alone(&mut self) -> bool {
        if self.goal.is_some() || !self.others.is_empty() || self.not_before > Instant::now() {
            self.heard = None;
            return false;
        }
        if self.heard.is_none() {
            self.heard = lock(&self.shared.echo).listen();
        }
        self.heard.as_ref().is_some_and(|heard| self.seen >= heard.from)
    }

    /// The event that a message is, if it is one; `None` where something is missing before it.
    async fn take(&mut self, message: &Message) -> Option<Option<Event>> {
        let feed = self.feed.as_mut()?;
        if message.status.is_some_and(|status| status.as_u16() == 100) {
            let stalled = header(message, "Nats-Consumer-Stalled").map(str::to_owned);
            if let Some(reply) = message.reply.as_ref().map(ToString::to_string).or(stalled) {
                feed.line.client.publish(reply, bytes::Bytes::new()).await.ok()?;
            }
            let end = header(message, "Nats-Last-Stream").and_then(|end| end.parse().ok());
            if self.is_alone && end.is_some_and(|end| !lock(&self.shared.echo).agrees(end)) {
                return None;
            }
            let last = header(message, "Nats-Last-Consumer").and_then(|last| last.parse().ok());
            let is_idle = last == Some(feed.sent);
            let has_gap = last.is_some_and(|last: u64| last > feed.sent);
            let current = if is_idle { self.current() } else { None };
            return (!has_gap).then_some(current);
        }
        let position = position(message)?;
        if position.sent != feed.sent + 1 {
            return None;
        }
        feed.sent = position.sent;
        if let Some(other) = self.shared.other(&message.subject) {
            if is_marker(message) {
                self.others.remove(other);
            } else if self.others.insert(other.to_owned()) && self.is_alone {
                self.ask_again();
                return Some(None);
            }
        }
        if self.is_alone {
            return Some(None);
        }
        self.see(position.stream);
        let event = self.event(message, position.stream);
        if position.left == 0 || self.goal.is_some_and(|goal| position.stream >= goal) {
            self.ready = self.current();
        }
        if position.left == 0 && self.is_to_be_alone() {
            (self.feed, self.is_alone) = (None, true);
        }
        Some(event)
    }

    fn event(&self, message: &Message, revision: Revision) -> Option<Event> {
        let key = self.shared.key(&message.subject)?.to_owned();
        if is_marker(message) {
            return (!self.is_new).then_some(Event::Delete { key, revision });
        }
        Some(Event::Put(Entry { key, value: message.payload.clone(), revision }))
    }
}

/// What the writer tells next, where it is listened to; nothing where that may not be all.
async fn next_of(heard: Option<&mut Heard>) -> Option<Event> {
    match heard {
        Some(heard) => heard.events.recv().await,
        None => std::future::pending().await,
    }
}

/// Read off where a message is to be acknowledged.
fn position(message: &Message) -> Option<Position> {
    let tokens: Vec<_> = message.reply.as_deref()?.split('.').collect();
    // With the names of domain and account before the stream's, or without.
    let first = match tokens.len() {
        9 => 5,
        11.. => 7,
        _ => return None,
    };
    let number = |at: usize| tokens.get(at)?.parse().ok();
    Some(Position { stream: number(first)?, sent: number(first + 1)?, left: number(first + 3)? })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
