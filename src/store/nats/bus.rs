//! One connection at a time, and what is asked over it.
//!
//! A connection that is lost is never taken up again by the client, which would send what was still
//! waiting, long after whoever asked was told that it failed, and maybe without the link that goes
//! ahead of it. A new one takes its place, with all that is checked at the start checked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, HeaderMap, Message, RequestErrorKind};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::settings::Settings;
use crate::error::{Error, Kind, Result};
use crate::job::{decode, encode};
use crate::store::Revision;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// The pause between two attempts to connect grows from the first to the last.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_LAST: Duration = Duration::from_secs(5);
/// How often a broker that stays away is told of.
const TELL: Duration = Duration::from_mins(1);
/// What may wait to be sent, and what may have arrived and not been read, in messages.
const OUTGOING: usize = 2048;
const INCOMING: usize = 16_384;
/// How many subjects one read asks for; the server takes up to 1,024.
const NAMES: usize = 1000;

pub(super) struct Bus {
    pub(super) settings: Settings,
    line: watch::Sender<Option<Line>>,
}

/// A connection.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) client: Client,
    is_lost: watch::Receiver<bool>,
    /// What the server has last refused for want of a right.
    denied: watch::Receiver<String>,
}

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

impl Bus {
    pub(super) fn new(settings: Settings, line: Line) -> Arc<Self> {
        Arc::new(Self { settings, line: watch::Sender::new(Some(line)) })
    }

    /// Puts a new connection in the place of each that is lost, once `check` finds that all is as
    /// it should be.
    pub(super) async fn keep<F: Future<Output = Result<()>>>(
        self: Arc<Self>,
        check: impl Fn(Line) -> F,
    ) {
        loop {
            let line = self.line.borrow().clone();
            let Some(mut line) = line else { return };
            // Where nobody can tell any more, it is lost as well.
            drop(line.is_lost.wait_for(|is_lost| *is_lost).await);
            self.line.send_replace(None);
            tracing::warn!("the connection to the broker is lost");
            let (mut pause, mut told) = (AGAIN_FIRST, None::<Instant>);
            loop {
                tokio::time::sleep(pause).await;
                let line = match Line::open(&self.settings).await {
                    Ok(line) => check(line.clone()).await.map(|()| line),
                    Err(error) => Err(error),
                };
                match line {
                    Ok(line) => {
                        tracing::info!("connected to the broker again");
                        self.line.send_replace(Some(line));
                        break;
                    }
                    Err(error) if told.is_none_or(|told| told.elapsed() > TELL) => {
                        tracing::error!(%error, "cannot use the broker; trying on");
                        told = Some(Instant::now());
                    }
                    Err(_) => {}
                }
                pause = (pause * 2).min(AGAIN_LAST);
            }
        }
    }

    /// The connection there is.
    pub(super) fn line(&self) -> Result<Line> {
        self.line.borrow().clone().ok_or_else(away)
    }

    /// The connection there is, or the next one.
    pub(super) async fn next_line(&self) -> Option<Line> {
        self.line.subscribe().wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl Line {
    pub(super) async fn open(settings: &Settings) -> Result<Self> {
        let proof = Arc::new(settings.identity.proof().await?);
        let (lost, is_lost) = watch::channel(false);
        let (deny, denied) = watch::channel(String::new());
        let is_used = Arc::new(AtomicBool::new(false));
        let events = Arc::new((lost, deny));
        let mut options = ConnectOptions::with_auth_callback(move |nonce| {
            let (proof, was_used) = (proof.clone(), is_used.swap(true, Ordering::Relaxed));
            async move {
                if was_used {
                    return Err(async_nats::AuthError::new("a lost connection is not taken up"));
                }
                proof.answer(&nonce)
            }
        })
        .name(format!("osapi {} {}", settings.namespace, settings.name))
        .custom_inbox_prefix(format!("_INBOX_{}_{}", settings.namespace, settings.name))
        .connection_timeout(LIMIT)
        .request_timeout(Some(LIMIT))
        .ping_interval(Duration::from_secs(10))
        .client_capacity(OUTGOING)
        .subscription_capacity(INCOMING)
        .ignore_discovered_servers()
        .max_reconnects(settings.servers.len())
        .require_tls(settings.tls.is_required)
        .event_callback(move |event| {
            let events = events.clone();
            async move {
                use async_nats::{Event, ServerError};
                match event {
                    Event::Disconnected | Event::Closed => drop(events.0.send(true)),
                    Event::ServerError(ServerError::Other(text)) => drop(events.1.send(text)),
                    _ => {}
                }
            }
        });
        if let Some(ca) = &settings.tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some((cert, key)) = &settings.tls.own {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        let servers = settings.servers.join(", ");
        let client = options.connect(&settings.servers[..]).await.map_err(|error| {
            let (kind, why) = match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => (
                    Kind::Unauthenticated,
                    "it does not accept who we say we are; look at controller.nats.auth",
                ),
                ConnectErrorKind::Tls => (
                    Kind::Unavailable,
                    "no encrypted connection comes about; look at controller.nats.tls",
                ),
                ConnectErrorKind::ServerParse => {
                    (Kind::InvalidInput, "that is no address; write as in broker.example.org:4222")
                }
                ConnectErrorKind::Dns => (Kind::Unavailable, "nobody knows that name"),
                ConnectErrorKind::TimedOut => (Kind::Unavailable, "it does not answer"),
                _ => (Kind::Unavailable, "no connection comes about; see that it runs there"),
            };
            // What a server without TLS is told that it should have comes as an error of its own.
            Error::new(kind, format!("cannot use the broker at {servers}: {why} ({error})"))
                .because(error)
        })?;
        Ok(Self { client, is_lost, denied })
    }

    /// Asks and returns what is answered, whatever that is.
    pub(super) async fn ask(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message> {
        let mut request = async_nats::Request::new().payload(payload);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let (mut is_lost, mut denied) = (self.is_lost.clone(), self.denied.clone());
        let about_this = |text: &String| text.contains(&format!("\"{subject}\""));
        let answer = tokio::select! {
            biased;
            answer = self.client.send_request(subject.to_owned(), request) => answer,
            text = denied.wait_for(about_this) => {
                let text = text.map(|text| text.clone()).unwrap_or_default();
                let message = format!("the broker refuses us the right to use {subject} ({text})");
                return Err(Error::new(Kind::Denied, message));
            }
            _ = is_lost.wait_for(|is_lost| *is_lost) => return Err(broken()),
        };
        answer.map_err(|error| match error.kind() {
            RequestErrorKind::MaxPayloadExceeded => {
                let message = "this is larger than a message of the broker may be; raise its \
                               max_payload";
                Error::new(Kind::TooLarge, message).because(error)
            }
            RequestErrorKind::NoResponders => Error::new(Kind::Unavailable, NO_JETSTREAM),
            RequestErrorKind::TimedOut => {
                Error::new(Kind::Unavailable, "the broker did not answer in time").because(error)
            }
            _ => broken().because(error),
        })
    }

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
        #[derive(Deserialize)]
        struct Ack {
            #[serde(default)]
            seq: Revision,
            error: Option<Refusal>,
        }
        let Outgoing { subject, headers, payload } = message;
        let answer = self.ask(&subject, Some(headers), payload).await?;
        let ack: Ack = decode(&answer.payload)?;
        ack.error.map_or(Ok(ack.seq), |refusal| Err(refusal.into_error(&subject)))
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
        let (mut messages, mut is_lost) = (Vec::new(), self.is_lost.clone());
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

    pub(super) fn lost(&self) -> watch::Receiver<bool> {
        self.is_lost.clone()
    }
}

pub(super) const NO_JETSTREAM: &str =
    "JetStream does not answer at the broker; enable it there, for this account as well";

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

pub(super) fn away() -> Error {
    Error::new(Kind::Unavailable, "there is no connection to the broker; retry")
}

fn broken() -> Error {
    Error::new(Kind::Unavailable, "the connection to the broker broke; retry")
}

fn unread(answer: &Message) -> Error {
    let why = answer.description.as_deref().unwrap_or("for no reason that it names");
    Error::new(Kind::Unavailable, format!("the broker did not let us read: {why}"))
}
