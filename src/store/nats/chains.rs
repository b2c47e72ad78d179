//! The audit chains of one writer among those of others, one message for each link:
//! `<namespace>.audit.<name>.<epoch>.<chain>.<number>`.
//!
//! The epoch tells chains apart that a controller of this name began anew, because nothing was left
//! of the former ones. A writer drops its own oldest links, and says in the next one where its chain
//! then begins; the server drops what is twice as old as it may get, whose writer is gone.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;

use super::jetstream::{Outgoing, header, is_marker, sequence};
use super::time;
use crate::broker::Line;
use crate::error::{Error, Kind, Result};
use crate::job::decode;
use crate::store::audit::{Chain, Ends, Head, Link, Note, PAGE, Stored, Tail, hash};
use crate::store::{Bounds, Order};

/// What the links of a chain have taken so far, dropped ones included.
const SUM: &str = "Osapi-Sum";
/// How many links are dropped at a time.
const DROP: usize = 256;
/// How long the place of a dropped link says that it was.
const GONE: &str = "1s";
/// How many links are looked through at a time on the way back, for each that is wanted.
const AROUND: u64 = 4;
/// How many messages are looked through first on the way back.
const BACK: u64 = 64;

/// Where this writer's chains stand.
#[derive(Clone)]
pub(super) struct Chains {
    /// What the subjects of its links begin with.
    root: String,
    /// Of the last link of either chain.
    number: u64,
    requests: Place,
    refusals: Place,
    /// The subjects of links that are to be dropped, once the next link says so.
    dropped: Vec<String>,
    /// How many notes no link has room for.
    lost: u64,
}

#[derive(Clone)]
struct Place {
    tail: Tail,
    sum: u64,
    /// No link that is kept has a smaller sequence.
    from: u64,
    /// When the oldest was stored, by the server's clock, in milliseconds since 1970.
    oldest: Option<u64>,
}

impl Chains {
    /// What the stream has of the chains of the writer `name`.
    pub(super) async fn load(line: &Line, stream: &str, name: &str) -> Result<Self> {
        let last = newest(line, stream, &format!("{stream}.audit.{name}.>")).await?;
        let epoch = last.and_then(|last| {
            let subject = header(&last, "Nats-Subject")?;
            subject.split('.').nth(3).map(str::to_owned)
        });
        let begun = || uuid::Uuid::now_v7().simple().to_string();
        let epoch = epoch.unwrap_or_else(begun);
        match Self::of_epoch(line, stream, name, &epoch).await? {
            Some(chains) => Ok(chains),
            None => Ok(Self::begin(stream, name, &begun())),
        }
    }

    fn begin(stream: &str, name: &str, epoch: &str) -> Self {
        let writer = format!("{name}-{epoch}");
        let place =
            |chain| Place { tail: Tail::new(chain, &writer), sum: 0, from: 1, oldest: None };
        Self {
            root: format!("{stream}.audit.{name}.{epoch}"),
            number: 0,
            requests: place(Chain::Requests),
            refusals: place(Chain::Refusals),
            dropped: Vec::new(),
            lost: 0,
        }
    }

    /// `None` where a chain's last link has gone.
    async fn of_epoch(line: &Line, stream: &str, name: &str, epoch: &str) -> Result<Option<Self>> {
        let mut chains = Self::begin(stream, name, epoch);
        for chain in Chain::ALL {
            let subject = chains.subject(chain, ">");
            let last = match newest(line, stream, &subject).await? {
                Some(last) => last,
                None if line.last(stream, &subject).await?.is_some() => return Ok(None),
                None => continue,
            };
            let newest: Link = decode(&last.payload)?;
            chains.number = chains.number.max(newest.number);
            let mut place = chains.place(chain).clone();
            place.tail.head = place.tail.head.after(&newest, &last.payload);
            place.sum = sum(&last);
            loop {
                let (messages, more) = line.from(stream, &subject, place.from, DROP).await?;
                let mut is_found = false;
                for message in messages {
                    place.from = sequence(&message).unwrap_or(place.from) + 1;
                    if is_marker(&message) {
                        continue;
                    }
                    let first: Link = decode(&message.payload)?;
                    if first.number <= newest.dropped {
                        chains.dropped.extend(header(&message, "Nats-Subject").map(str::to_owned));
                        continue;
                    }
                    is_found = true;
                    place.from -= 1;
                    place.oldest = stored_at(&message);
                    place.tail.bytes = place.sum - sum(&message) + message.payload.len() as u64;
                    if first.previous != place.tail.stub.hash {
                        let writer = place.tail.stub.writer.clone();
                        let number =
                            if newest.dropped == 0 { first.number - 1 } else { newest.dropped };
                        let (hash, entries) = (first.previous, first.entries);
                        place.tail.stub = Head { writer, number, hash, entries };
                    }
                    break;
                }
                if is_found || !more {
                    break;
                }
            }
            *chains.place(chain) = place;
        }
        Ok(Some(chains))
    }

    pub(super) fn ends(&self) -> Ends {
        Ends {
            stub: self.requests.tail.stub.clone(),
            head: self.requests.tail.head.clone(),
            refusals_stub: self.refusals.tail.stub.clone(),
            refusals_head: self.refusals.tail.head.clone(),
        }
    }

    /// What the links of this writer take.
    pub(super) fn bytes(&self) -> u64 {
        self.requests.tail.bytes + self.refusals.tail.bytes
    }

    /// Lets go of links that are too old or too many, `now` by the server's clock, and of more where
    /// room is short. The next link of their chain says where that then begins, so that there has
    /// to be one.
    pub(super) async fn retain(
        &mut self,
        line: &Line,
        stream: &str,
        chain: Chain,
        (bounds, is_short): (&Bounds, bool),
        now: u64,
    ) -> Result<()> {
        let bound = match chain {
            Chain::Requests => bounds.audit - bounds.audit / 4,
            Chain::Refusals => bounds.audit / 4,
        };
        let bound =
            if is_short { bound.min(self.place(chain).tail.bytes * 15 / 16) } else { bound };
        if !self.is_over(chain, bound, bounds.audit_age, now) {
            return Ok(());
        }
        let youngest = now.saturating_sub(millis(bounds.audit_age));
        let subject = self.subject(chain, ">");
        let (messages, _) = line.from(stream, &subject, self.place(chain).from, DROP).await?;
        let is_crowded = self.place(chain).tail.bytes > bound;
        let mut dropped = Vec::new();
        let place = self.place(chain);
        place.oldest = None;
        for message in messages {
            let at = sequence(&message).unwrap_or_default();
            let name = header(&message, "Nats-Subject").unwrap_or_default();
            let number = name.rsplit('.').next().and_then(|number| number.parse().ok());
            let Some(number) = number.filter(|_| !is_marker(&message)) else { continue };
            let is_old = stored_at(&message).is_some_and(|at| at < youngest);
            // A sixteenth more goes, so that not each link costs another.
            let is_one_too_many = is_crowded && place.tail.bytes > bound - bound / 16;
            if number == place.tail.head.number || !(is_old || is_one_too_many) {
                (place.from, place.oldest) = (at, stored_at(&message));
                break;
            }
            place.tail.drop_oldest(number, &message.payload);
            place.from = at + 1;
            dropped.push(name.to_owned());
        }
        self.dropped.extend(dropped);
        Ok(())
    }

    /// Whether a chain has links that are stretch than `age`, though nothing is added to it.
    pub(super) fn is_stale(&self, chain: Chain, age: Duration, now: u64) -> bool {
        let place = self.place_of(chain);
        let is_old = place.oldest.is_some_and(|oldest| oldest < now.saturating_sub(millis(age)));
        is_old && place.tail.bytes > 0
    }

    fn is_over(&self, chain: Chain, bound: u64, age: Duration, now: u64) -> bool {
        let place = self.place_of(chain);
        let has_links = place.tail.head.number > place.tail.stub.number;
        let is_unknown = place.oldest.is_none() && now > 0;
        has_links && (place.tail.bytes > bound || is_unknown || self.is_stale(chain, age, now))
    }

    /// Goes on by a link of these notes in each chain that they belong to, or by several where one
    /// would be larger than `most`.
    pub(super) fn add(
        &mut self,
        notes: &[&Note],
        at: u64,
        (age, most): (Duration, usize),
    ) -> Result<Vec<Outgoing>> {
        let (idle, requests): (Vec<&Note>, Vec<_>) = notes.iter().partition(|note| note.is_idle());
        let mut links = Vec::new();
        for (chain, notes) in [(Chain::Requests, requests), (Chain::Refusals, idle)] {
            let mut parts = vec![&notes[..]];
            while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
                let number = self.number + 1;
                let payload = self.place(chain).tail.next(number, at, part)?;
                if payload.len() <= most {
                    links.push(self.go_on(chain, part, payload, age));
                } else if part.len() > 1 {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                } else {
                    self.lost += 1;
                }
            }
        }
        Ok(links)
    }

    fn go_on(&mut self, chain: Chain, notes: &[&Note], payload: Bytes, age: Duration) -> Outgoing {
        self.number += 1;
        let number = self.number;
        let place = self.place(chain);
        place.tail.go_on(number, notes, &payload);
        place.sum += payload.len() as u64;
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        headers.insert(SUM, place.sum.to_string().as_str());
        headers.insert("Nats-TTL", format!("{}s", age.as_secs().max(1) * 2).as_str());
        let subject = self.subject(chain, &number.to_string());
        Outgoing { subject, headers, payload }
    }

    /// Whether the stream has the last link of a chain.
    pub(super) async fn is_stored(&self, line: &Line, stream: &str, chain: Chain) -> Result<bool> {
        let head = &self.place_of(chain).tail.head;
        let last = line.last(stream, &self.subject(chain, &head.number.to_string())).await?;
        let is_it = |last: Message| !is_marker(&last) && hash(&last.payload) == head.hash;
        Ok(last.is_some_and(is_it))
    }

    /// How many notes no link had room for.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// What takes the place of the links that were dropped.
    pub(super) fn take_dropped(&mut self) -> Vec<Outgoing> {
        let dropped = std::mem::take(&mut self.dropped).into_iter();
        dropped.map(|subject| Outgoing::deletion(subject, GONE)).collect()
    }

    fn subject(&self, chain: Chain, number: &str) -> String {
        let chain = match chain {
            Chain::Requests => "requests",
            Chain::Refusals => "refusals",
        };
        format!("{}.{chain}.{number}", self.root)
    }

    fn place(&mut self, chain: Chain) -> &mut Place {
        match chain {
            Chain::Requests => &mut self.requests,
            Chain::Refusals => &mut self.refusals,
        }
    }

    fn place_of(&self, chain: Chain) -> &Place {
        match chain {
            Chain::Requests => &self.requests,
            Chain::Refusals => &self.refusals,
        }
    }
}

/// Whether any of these comes behind another one of its chain.
pub(super) fn has_several(links: &[Outgoing]) -> bool {
    links.windows(2).any(|pair| chain_of(&pair[0]) == chain_of(&pair[1]))
}

fn chain_of(link: &Outgoing) -> Option<&str> {
    link.subject.rsplit_once('.').map(|(chain, _)| chain)
}

/// The last link under these subjects. Where links were dropped just now, their markers come
/// behind it.
async fn newest(line: &Line, stream: &str, subjects: &str) -> Result<Option<Message>> {
    let Some(last) = line.last(stream, subjects).await? else { return Ok(None) };
    if !is_marker(&last) {
        return Ok(Some(last));
    }
    let (mut end, mut width) = (sequence(&last).unwrap_or_default(), BACK);
    while end > 1 {
        let start = end.saturating_sub(width).max(1);
        let (mut from, mut found) = (start, None);
        while from < end {
            let (messages, more) = line.from(stream, subjects, from, usize::MAX).await?;
            let Some(last) = messages.last().and_then(sequence) else { break };
            from = last + 1;
            let mut before = messages.into_iter().filter(|message| sequence(message) < Some(end));
            found = before.rfind(|message| !is_marker(message)).or(found);
            if !more {
                break;
            }
        }
        if found.is_some() {
            return Ok(found);
        }
        (end, width) = (start, width.saturating_mul(2));
    }
    Ok(None)
}

/// Up to `limit` links of all writers behind the sequence `after`, in `order`; fewer where they are
/// large.
pub(super) async fn read(
    line: &Line,
    stream: &str,
    after: u64,
    limit: usize,
    order: Order,
) -> Result<Vec<Stored>> {
    let mut page = Page::new(limit, order);
    match order {
        Order::Ascending => page.fill(line, stream, after + 1, u64::MAX).await?,
        Order::Descending => {
            let mut end = after;
            if end == 0 {
                let all = format!("{stream}.audit.>");
                let Some(last) = line.last(stream, &all).await? else { return Ok(Vec::new()) };
                end = sequence(&last).unwrap_or_default() + 1;
            }
            // The server reads forwards only, so that it is asked for ever wider stretches.
            let mut width = (limit as u64).saturating_mul(AROUND).max(BACK);
            while !page.is_full() && end > 1 {
                let start = end.saturating_sub(width).max(1);
                let mut stretch = Page::new(limit - page.links.len(), order);
                stretch.fill(line, stream, start, end).await?;
                page.bytes += stretch.bytes;
                stretch.links.append(&mut page.links);
                page.links = stretch.links;
                (end, width) = (start, width.saturating_mul(2));
            }
            page.links.make_contiguous().reverse();
        }
    }
    Ok(page.links.into())
}

/// Links in order of their place: the first of a stretch, or, in descending order, the last.
struct Page {
    links: VecDeque<Stored>,
    bytes: usize,
    limit: usize,
    order: Order,
}

impl Page {
    fn new(limit: usize, order: Order) -> Self {
        Self { links: VecDeque::new(), bytes: 0, limit, order }
    }

    fn is_full(&self) -> bool {
        self.links.len() >= self.limit || self.bytes >= PAGE
    }

    fn push(&mut self, link: Stored) {
        self.bytes += link.bytes.len();
        self.links.push_back(link);
        // Those before the last are read later.
        while self.order == Order::Descending
            && let Some(first) = self.links.front().map(|link| link.bytes.len())
            && (self.links.len() > self.limit || self.bytes - first >= PAGE)
        {
            self.bytes -= first;
            self.links.pop_front();
        }
    }

    /// Takes links from one sequence on and before another.
    async fn fill(&mut self, line: &Line, stream: &str, mut from: u64, end: u64) -> Result<()> {
        let all = format!("{stream}.audit.>");
        while from < end && (self.order == Order::Descending || !self.is_full()) {
            let most = self.limit.saturating_sub(self.links.len());
            let most = if self.order == Order::Descending { usize::MAX } else { most };
            let (messages, more) = line.from(stream, &all, from, most).await?;
            let Some(last) = messages.last().and_then(sequence) else { break };
            from = last + 1;
            for message in messages {
                let place = sequence(&message).unwrap_or_default();
                if place >= end || (self.order == Order::Ascending && self.is_full()) {
                    return Ok(());
                }
                if !is_marker(&message) {
                    self.push(stored(place, message)?);
                }
            }
            if !more {
                break;
            }
        }
        Ok(())
    }
}

fn stored(place: u64, message: Message) -> Result<Stored> {
    let subject = header(&message, "Nats-Subject").unwrap_or_default();
    let mut tokens = subject.split('.').skip(2);
    let (Some(name), Some(epoch)) = (tokens.next(), tokens.next()) else {
        return Err(Error::new(Kind::Internal, format!("{subject} is no link of an audit chain")));
    };
    let writer = format!("{name}-{epoch}");
    Stored::parse(place, &writer, message.payload)
}

fn sum(message: &Message) -> u64 {
    header(message, SUM).and_then(|sum| sum.parse().ok()).unwrap_or_default()
}

fn stored_at(message: &Message) -> Option<u64> {
    time(header(message, "Nats-Time-Stamp")?)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
