//! What is asked of JetStream over a connection to the broker.

use std::sync::Arc;

use async_nats::{HeaderMap, Message, PublishErrorKind, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::broker::{LIMIT, Line, NO_JETSTREAM, broken, too_large};
use crate::error::{Error, Kind, Result};
use crate::job::{decode, encode};
use crate::store::Revision;

/// How many subjects one read asks for; the server takes up to 1,024.
const NAMES: usize = 1000;

/// What the server says in place of an answer.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

pub(super) struct Outgoing {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
}

impl Outgoing {
    /// What takes the place of a deleted message, and says so for `lifetime`. It says PURGE since the
    /// server would put a marker of its own in the place of one that says DEL, once that ends.
    pub(super) fn deletion(subject: String, lifetime: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "PURGE");
        headers.insert("Nats-TTL", lifetime);
        Self { subject, headers, payload: Bytes::new() }
    }
}

impl Line {
    /// Asks the broker's own interface.
    pub(super) async fn api(&self, call: &str, body: &Value) -> Result<Result<Value, Refusal>> {
        let payload = match body {
            Value::Null => Bytes::new(),
            body => encode(body)?,
        };
        let answer = self.ask(&format!("$JS.API.{call}"), None, payload).await?;
        let mut answer: Value = decode(&answer.payload)?;
        match answer.get_mut("error").map(Value::take) {
            None => Ok(Ok(answer)),
            Some(error) => Ok(Err(Refusal::deserialize(error)
                .unwrap_or_else(|error| Refusal { err_code: 0, description: error.to_string() }))),
        }
    }

    /// Stores one message; its sequence.
    pub(super) async fn publish(&self, message: Outgoing) -> Result<Revision> {
        let Outgoing { subject, headers, payload } = message;
        let answer = self.ask(&subject, Some(headers), payload).await?;
        acknowledged(&subject, &answer)
    }

    /// Stores all of `messages` or none. They follow each other without a gap; the sequence of
    /// the last.
    pub(super) async fn batch(&self, messages: Vec<Outgoing>) -> Result<Revision> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        let count = messages.len();
        let mut answer = Ok(0);
        for (position, mut message) in (1..).zip(messages) {
            message.headers.insert("Nats-Batch-Id", id.as_str());
            message.headers.insert("Nats-Batch-Sequence", position.to_string().as_str());
            if position == count {
                message.headers.insert("Nats-Batch-Commit", "1");
                answer = self.publish(message).await;
            } else {
                let Outgoing { subject, headers, payload } = message;
                let sent = self.client.publish_with_headers(subject, headers, payload).await;
                sent.map_err(|error| broken().because(error))?;
            }
        }
        answer
    }

    /// The last message of a subject, which may be a pattern.
    pub(super) async fn last(&self, stream: &str, subject: &str) -> Result<Option<Message>> {
        let query = encode(&json!({ "last_by_subj": subject }))?;
        let answer = self.ask(&format!("$JS.API.DIRECT.GET.{stream}"), None, query).await?;
        match answer.status.map(|status| status.as_u16()) {
            None | Some(200) => Ok(Some(answer)),
            Some(404) => Ok(None),
            Some(_) => Err(unread(&answer)),
        }
    }

    /// The last message of each of these subjects, as far as there is one.
    pub(super) async fn last_of_each(
        &self,
        stream: &str,
        subjects: &[String],
    ) -> Result<Vec<Message>> {
        let mut found = Vec::new();
        let mut pages: Vec<&[String]> = subjects.chunks(NAMES).rev().collect();
        while let Some(page) = pages.pop() {
            let (messages, left) = self.read(stream, &json!({ "multi_last": page })).await?;
            if left > 0 && page.len() > 1 {
                // Too much for one answer.
                let (first, second) = page.split_at(page.len() / 2);
                pages.extend([second, first]);
            } else {
                found.extend(messages);
            }
        }
        Ok(found)
    }

    /// Up to `most` messages of these subjects from a sequence on, in order; may be fewer than
    /// there are. And whether there are more.
    pub(super) async fn from(
        &self,
        stream: &str,
        subject: &str,
        sequence: u64,
        most: usize,
    ) -> Result<(Vec<Message>, bool)> {
        let query = json!({
            "seq": sequence.max(1), "next_by_subj": subject, "batch": most.clamp(1, NAMES),
            "max_bytes": 8 << 20,
        });
        let (messages, left) = self.read(stream, &query).await?;
        Ok((messages, left > 0))
    }

    /// What is answered with several messages, and how many more there would be.
    async fn read(&self, stream: &str, query: &Value) -> Result<(Vec<Message>, u64)> {
        let inbox = self.client.new_inbox();
        let broke = |error: Box<dyn std::error::Error + Send + Sync>| broken().because(error);
        let subscribed = self.client.subscribe(inbox.clone()).await;
        let mut answers = subscribed.map_err(|error| broke(error.into()))?;
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let sent = self.client.publish_with_reply(subject, inbox, encode(query)?).await;
        sent.map_err(|error| broke(error.into()))?;
        let (mut messages, mut is_lost) = (Vec::new(), self.lost());
        loop {
            let answer = tokio::select! {
                answer = tokio::time::timeout(LIMIT, answers.next()) => answer,
                _ = is_lost.wait_for(|is_lost| *is_lost) => return Err(broken()),
            };
            let Ok(Some(answer)) = answer else { return Err(broken()) };
            match answer.status.map(|status| status.as_u16()) {
                None | Some(200) => messages.push(answer),
                Some(204) => {
                    let left = header(&answer, "Nats-Num-Pending").and_then(|n| n.parse().ok());
                    return Ok((messages, left.unwrap_or_default()));
                }
                Some(404) => return Ok((messages, 0)),
                Some(503) => return Err(Error::new(Kind::Unavailable, NO_JETSTREAM)),
                Some(_) => return Err(unread(&answer)),
            }
        }
    }

    /// The names of the subjects under a pattern, in no order.
    pub(super) async fn names(&self, stream: &str, pattern: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        loop {
            let body = json!({ "subjects_filter": pattern, "offset": names.len() });
            let info = self.api(&format!("STREAM.INFO.{stream}"), &body).await?;
            let info = info.map_err(|refusal| refusal.into_error(stream))?;
            let total = info["total"].as_u64().unwrap_or_default();
            let page = info["state"]["subjects"].as_object();
            let before = names.len();
            names.extend(page.into_iter().flatten().map(|(name, _)| name.clone()));
            if names.len() == before || names.len() as u64 >= total {
                return Ok(names);
            }
        }
    }
}

/// Where the server acknowledges on one connection what is stored one by one: one place for all,
/// which is much less work, on both sides, than one for each.
pub(super) struct Acks {
    line: Arc<Line>,
    inbox: String,
    answers: Subscriber,
    /// The greatest sequence of the groups before: what has none beyond it was said before.
    newest: Revision,
    /// There may be answers to come that nobody waits for.
    is_spent: bool,
}

impl Acks {
    /// Those in `kept`, or new ones on `line` where their connection is lost.
    pub(super) async fn on<'a>(
        line: &Arc<Line>,
        kept: &'a mut Option<Self>,
    ) -> Result<&'a mut Self> {
        if kept.as_ref().is_some_and(|kept| kept.is_spent || *kept.line.lost().borrow()) {
            *kept = None;
        }
        match kept {
            Some(kept) => Ok(kept),
            none => {
                let inbox = line.client.new_inbox();
                let answers = line.client.subscribe(format!("{inbox}.*")).await;
                let answers = answers.map_err(|error| broken().because(error))?;
                Ok(none.insert(Self {
                    line: line.clone(),
                    inbox,
                    answers,
                    newest: 0,
                    is_spent: false,
                }))
            }
        }
    }

    /// Stores messages, all on their way at once, and says of each, as soon as that is known, which
    /// sequence it has.
    pub(super) async fn publish(
        &mut self,
        messages: Vec<Outgoing>,
        mut settle: impl FnMut(usize, Result<Revision>),
    ) {
        let mut sending = Sending { is_open: vec![true; messages.len()], newest: self.newest };
        let failed = self.publish_each(messages, &mut sending, &mut settle).await.err();
        let failed = failed.unwrap_or_else(broken);
        for (place, _) in sending.is_open.iter().enumerate().filter(|(_, is_open)| **is_open) {
            self.is_spent = true;
            settle(place, Err(failed.body().into()));
        }
        self.newest = sending.newest;
    }

    /// Fails where it stays open what became of the rest.
    async fn publish_each(
        &mut self,
        messages: Vec<Outgoing>,
        sending: &mut Sending,
        settle: &mut impl FnMut(usize, Result<Revision>),
    ) -> Result<()> {
        let subjects: Vec<_> = messages.iter().map(|message| message.subject.clone()).collect();
        let mut waiting = 0;
        // The same numbers each time: the server remembers where they go.
        for (number, message) in messages.into_iter().enumerate() {
            let Outgoing { subject, headers, payload } = message;
            let (client, reply) = (&self.line.client, format!("{}.{number}", self.inbox));
            let sent = client.publish_with_reply_and_headers(subject, reply, headers, payload);
            match sent.await {
                Ok(()) => waiting += 1,
                Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                    sending.is_open[number] = false;
                    settle(number, Err(too_large()));
                }
                Err(error) => return Err(broken().because(error)),
            }
        }
        let is_ours = |text: &str| subjects.iter().any(|it| text.contains(&format!("\"{it}\"")));
        let (mut is_lost, refusal) = (self.line.lost(), self.line.refusal_of(is_ours));
        tokio::pin!(refusal);
        let limit = tokio::time::sleep(LIMIT);
        tokio::pin!(limit);
        while waiting > 0 {
            let answer = match self.answers.next().now_or_never() {
                Some(answer) => answer.ok_or_else(broken)?,
                None => tokio::select! {
                    biased;
                    answer = self.answers.next() => answer.ok_or_else(broken)?,
                    text = &mut refusal => {
                        let message = format!("the broker refuses us a right to store ({text})");
                        return Err(Error::new(Kind::Denied, message));
                    }
                    _ = is_lost.wait_for(|is_lost| *is_lost) => return Err(broken()),
                    () = &mut limit => {
                        let message = "the broker did not answer in time";
                        return Err(Error::new(Kind::Unavailable, message));
                    }
                },
            };
            let place = answer.subject.rsplit('.').next().and_then(|it| it.parse::<usize>().ok());
            let is_awaited = |place: &usize| sending.is_open.get(*place) == Some(&true);
            let Some(place) = place.filter(is_awaited) else { continue };
            let result = match answer.status.map(|status| status.as_u16()) {
                Some(503) => {
                    let message = format!("nobody answers at {}", subjects[place]);
                    Err(Error::new(Kind::Unavailable, message))
                }
                _ => acknowledged(&subjects[place], &answer),
            };
            match &result {
                // A cluster may say twice that it has stored something.
                Ok(sequence) if *sequence <= self.newest => continue,
                Ok(sequence) => sending.newest = sending.newest.max(*sequence),
                Err(error) => self.is_spent |= error.kind() == Kind::Unavailable,
            }
            waiting -= 1;
            sending.is_open[place] = false;
            settle(place, result);
        }
        Ok(())
    }
}

/// Messages on their way.
struct Sending {
    /// Of which it is not known yet what became of them.
    is_open: Vec<bool>,
    /// The greatest sequence so far.
    newest: Revision,
}

/// The sequence of a message that was stored under `subject`, where `answer` says so.
fn acknowledged(subject: &str, answer: &Message) -> Result<Revision> {
    #[derive(Deserialize)]
    struct Ack {
        #[serde(default)]
        seq: Revision,
        error: Option<Refusal>,
    }
    let ack: Ack = decode(&answer.payload)?;
    ack.error.map_or(Ok(ack.seq), |refusal| Err(refusal.into_error(subject)))
}

impl Refusal {
    pub(super) fn into_error(self, about: &str) -> Error {
        let Self { err_code, description } = self;
        let text = description.to_lowercase();
        let has_no_room = ["maximum bytes", "maximum messages", "resources", "resource limits"];
        match err_code {
            // "wrong last sequence", found at once or against a write still on its way.
            10_071 | 10_164 => Error::new(Kind::Conflict, format!("{about} has changed")),
            10_054 => Error::new(Kind::TooLarge, format!("{about} is larger than it may be")),
            _ if has_no_room.iter().any(|sign| text.contains(sign)) => Error::new(
                Kind::Full,
                format!("the broker has no room for more ({description}); make room there"),
            ),
            _ => {
                Error::new(Kind::Unavailable, format!("the broker refused {about}: {description}"))
            }
        }
    }
}

pub(super) fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    Some(message.headers.as_ref()?.get(name)?.as_str())
}

/// Where a message that was read stands in its stream.
pub(super) fn sequence(message: &Message) -> Option<u64> {
    header(message, "Nats-Sequence")?.parse().ok()
}

/// Left by a deletion, or by the server where a lifetime has ended.
pub(super) fn is_marker(message: &Message) -> bool {
    header(message, "KV-Operation").is_some() || header(message, "Nats-Marker-Reason").is_some()
}

fn unread(answer: &Message) -> Error {
    let why = answer.description.as_deref().unwrap_or("for no reason that it names");
    Error::new(Kind::Unavailable, format!("the broker did not let us read: {why}"))
}
