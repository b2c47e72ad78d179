//! Watches of a controller that is alone on its stream, as it mostly is: they are told by its own
//! writer of what that has stored, and the server need not send all of it back.
//!
//! Nothing rests on a promise here. Who writes shows that it is there by a message of its own, ahead
//! of its first write on every connection, and all who watch hear of that. Whoever missed it finds out
//! by the next write of its own, since sequences have no gaps, so that one more than were written
//! here is somebody else's; and by the next heartbeat of the server, which says where the stream
//! ends. In each case the server is asked again for all there is behind what a watch has told so far,
//! and so nothing is told out of order or left out.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use tokio::sync::mpsc;

use super::jetstream::{Outgoing, header, is_marker, sequence};
use super::{Shared, lock};
use crate::broker::Line;
use crate::error::Result;
use crate::store::{Entry, Event, Revision, Write};

/// How long somebody who wrote counts as there.
const STAY: Duration = Duration::from_mins(10);
/// How long after it was shown it is shown again, ahead of a write.
const SHOW: Duration = Duration::from_mins(4);
/// How long a watch asks the server at least, once it could not go on without.
pub(super) const COMPANY: Duration = Duration::from_mins(1);
/// What may wait for a watch, in events.
const WAITING: usize = 8192;

/// What the writer tells to watches.
#[derive(Default)]
pub(super) struct Echo {
    /// All that the stream has up to here was stored here, or from elsewhere when nobody listened.
    end: Revision,
    /// What was stored here behind that, with a gap before it, and is still to be told of.
    ahead: BTreeMap<Revision, Option<Event>>,
    listeners: Vec<mpsc::Sender<Event>>,
    /// Something is on its way.
    is_writing: bool,
    /// Until then something may yet be stored that was not said to be.
    unsure: Option<Instant>,
}

/// What a watch is told from now on.
pub(super) struct Heard {
    /// Ends where it may not be all.
    pub(super) events: mpsc::Receiver<Event>,
    /// It is all that comes behind this.
    pub(super) from: Revision,
}

impl Echo {
    /// Nothing until something was written here of which it is known what became of it.
    pub(super) fn listen(&mut self) -> Option<Heard> {
        let from = self.ahead.keys().next_back().copied().unwrap_or(self.end);
        let (sender, events) = mpsc::channel(WAITING);
        let is_unsure = self.unsure.is_some_and(|until| until > Instant::now());
        (from > 0 && !is_unsure).then(|| {
            self.listeners.push(sender);
            Heard { events, from }
        })
    }

    /// Something is about to be written.
    pub(super) fn begin(&mut self) {
        self.is_writing = true;
    }

    /// Whether nobody else can have written, where the stream ends at `last`.
    pub(super) fn agrees(&self, last: Revision) -> bool {
        self.is_writing || last <= self.end
    }

    /// A message was stored, which tells of `write` unless it is no record.
    pub(super) fn stored(&mut self, revision: Revision, write: Option<&Write>) {
        let write = write.filter(|_| !self.listeners.is_empty());
        self.ahead.insert(revision, write.map(|write| event(write, revision)));
        while let Some(next) = self.ahead.first_entry()
            && *next.key() == self.end + 1
        {
            self.end += 1;
            let Some(event) = next.remove() else { continue };
            // One that does not keep up asks the server.
            self.listeners.retain(|listener| listener.try_send(event.clone()).is_ok());
        }
    }

    /// All of these were stored, the last as `last`.
    pub(super) fn stored_all<'a>(
        &mut self,
        last: Revision,
        writes: impl ExactSizeIterator<Item = Option<&'a Write>>,
    ) {
        let first = last + 1 - writes.len() as u64;
        (first..).zip(writes).for_each(|(revision, write)| self.stored(revision, write));
    }

    /// Nothing is on its way any more. If anything is missing before what was stored here, or may have
    /// been stored and was not said to be, watches have to ask.
    pub(super) fn settle(&mut self, is_sure: bool) {
        self.is_writing = false;
        if !is_sure {
            self.unsure = Some(Instant::now() + COMPANY);
        }
        if let Some((last, _)) = self.ahead.pop_last() {
            self.end = last;
        } else if is_sure {
            return;
        }
        self.ahead.clear();
        self.listeners.clear();
    }
}

fn event(Write { key, value, .. }: &Write, revision: Revision) -> Event {
    let key = key.clone();
    match value.clone() {
        Some(value) => Event::Put(Entry { key, value, revision }),
        None => Event::Delete { key, revision },
    }
}

/// Where and when a writer has shown that it is there.
#[derive(Default)]
pub(super) struct Shown(Option<(Arc<Line>, Instant)>);

impl Shown {
    fn is_on(&self, line: &Line) -> bool {
        let is_good = |(on, at): &(Arc<Line>, Instant)| on.is(line) && at.elapsed() < SHOW;
        self.0.as_ref().is_some_and(is_good)
    }
}

impl Shared {
    /// Where writers show that they are there. No key is like that.
    pub(super) fn writers(&self, which: &str) -> String {
        format!("{}.kv.$writer.{which}", self.stream())
    }

    /// Sees to it that others know of us before we write on `line`.
    pub(super) async fn show(&self, line: &Arc<Line>, shown: &mut Shown) -> Result<()> {
        if shown.is_on(line) {
            return Ok(());
        }
        let mut headers = HeaderMap::new();
        headers.insert("Nats-TTL", format!("{}s", STAY.as_secs()).as_str());
        let (subject, payload) = (self.writers(&self.me), bytes::Bytes::new());
        let last = line.publish(Outgoing { subject, headers, payload }).await?;
        lock(&self.echo).stored(last, None);
        shown.0 = Some((line.clone(), Instant::now()));
        Ok(())
    }

    /// Lets others know that we write no more. If it does not get there, they find out later.
    pub(super) async fn leave(&self, shown: &Shown) {
        let Some((line, _)) = shown.0.as_ref().filter(|(line, _)| !*line.lost().borrow()) else {
            return;
        };
        let gone = Outgoing::deletion(self.writers(&self.me), "60s");
        if let Err(error) = line.publish(gone).await {
            tracing::debug!(%error, "others will miss us for a while");
        }
    }

    /// Who else writes.
    pub(super) async fn others(&self, line: &Line) -> Result<HashSet<String>> {
        let (all, mut others) = (self.writers("*"), HashSet::new());
        let mut from = 1;
        loop {
            let (messages, more) = line.from(self.stream(), &all, from, usize::MAX).await?;
            let Some(last) = messages.last().and_then(sequence) else { break };
            from = last + 1;
            let there = messages.iter().filter(|message| !is_marker(message));
            let names = there.filter_map(|message| header(message, "Nats-Subject"));
            others.extend(names.filter_map(|name| self.other(name)).map(str::to_owned));
            if !more {
                break;
            }
        }
        Ok(others)
    }

    /// Who shows that it is there under `subject`, if that is somebody else.
    pub(super) fn other<'a>(&self, subject: &'a str) -> Option<&'a str> {
        let (_, who) = subject.split_once(".kv.$writer.")?;
        (who != self.me).then_some(who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Expect;

    fn write(key: &str) -> Write {
        let (key, value) = (key.to_owned(), Some(bytes::Bytes::new()));
        Write { key, value, expect: Expect::Anything, lifetime: None }
    }

    fn keys(heard: &mut Heard) -> Vec<String> {
        let next = || match heard.events.try_recv() {
            Ok(Event::Put(entry)) => Some(entry.key),
            _ => None,
        };
        std::iter::from_fn(next).collect()
    }

    fn has_ended(heard: &mut Heard) -> bool {
        heard.events.try_recv() == Err(mpsc::error::TryRecvError::Disconnected)
    }

    #[test]
    fn what_was_stored_is_told_in_order_whatever_order_it_is_heard_in() {
        let mut echo = Echo::default();
        echo.stored(1, Some(&write("before")));
        echo.stored(3, None);
        let from = echo.listen().unwrap().from;
        assert_eq!(from, 3, "what was stored and not told of yet comes from the server");
        echo.stored(2, None);
        let mut heard = echo.listen().unwrap();
        assert_eq!(heard.from, 3);
        echo.stored(6, Some(&write("c")));
        echo.stored(5, None);
        assert!(keys(&mut heard).is_empty(), "something is still missing before these");
        echo.stored_all(7, [Some(&write("d"))].into_iter());
        echo.stored(4, Some(&write("a")));
        echo.settle(true);
        assert_eq!(keys(&mut heard), ["a", "c", "d"]);
        assert!(!has_ended(&mut heard));
    }

    #[test]
    fn what_is_missing_is_never_passed_over() {
        let ways: [fn(&mut Echo); 2] = [
            // Somebody else has stored 2.
            |echo| echo.stored(3, Some(&write("own"))),
            // What was sent may be stored or not.
            |_| {},
        ];
        for (way, is_sure) in ways.into_iter().zip([true, false]) {
            let mut echo = Echo::default();
            echo.stored(1, None);
            let mut heard = echo.listen().unwrap();
            way(&mut echo);
            echo.settle(is_sure);
            assert!(keys(&mut heard).is_empty() && has_ended(&mut heard));
            // Whoever listens from now on has to be told the rest by the server, and for a while all.
            assert_eq!(echo.listen().map(|heard| heard.from), is_sure.then_some(3));
        }
    }

    #[test]
    fn an_end_that_is_not_ours_is_somebody_elses() {
        let mut echo = Echo::default();
        echo.begin();
        assert!(echo.agrees(2), "it may be what is on its way");
        echo.stored_all(2, [None, None].into_iter());
        echo.settle(true);
        assert!(echo.agrees(2) && !echo.agrees(3));
    }

    #[test]
    fn a_watch_that_does_not_keep_up_asks_the_server() {
        let mut echo = Echo::default();
        assert!(echo.listen().is_none(), "nothing is known yet of the stream");
        echo.stored(1, None);
        let (mut heard, mut quick) = (echo.listen().unwrap(), echo.listen().unwrap());
        for revision in 2..WAITING as u64 + 3 {
            echo.stored(revision, Some(&write("a")));
            assert_eq!(keys(&mut quick), ["a"]);
        }
        assert_eq!(keys(&mut heard).len(), WAITING);
        assert!(has_ended(&mut heard) && !has_ended(&mut quick));
    }
}
