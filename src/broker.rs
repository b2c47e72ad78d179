//! Connections to a broker, a NATS server, and what is asked over them.
//!
//! A connection that is lost is never taken up again by the client, which would send what was still
//! waiting, long after whoever asked was told that it failed, and maybe without the link that goes
//! ahead of it. A new one takes its place, with all that is checked at the start checked again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, HeaderMap, Message, RequestErrorKind};
use bytes::Bytes;
use tokio::sync::watch;

use crate::error::{Error, Kind, Result};

pub mod permissions;
mod settings;

pub use settings::{Identity, Settings, Tls};

/// How long an answer may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// The pause between two attempts to connect grows from the first to the last.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_LAST: Duration = Duration::from_secs(5);
/// How often a broker that stays away is told of.
const TELL: Duration = Duration::from_mins(1);
/// What may wait to be sent, and what may have arrived and not been read, in messages.
const OUTGOING: usize = 2048;
const INCOMING: usize = 16_384;

pub(crate) struct Bus {
    pub(crate) settings: Settings,
    line: watch::Sender<Option<Arc<Line>>>,
}

/// A connection.
pub(crate) struct Line {
    pub(crate) client: Client,
    /// What a message may have, in bytes, as the server says when it is connected to.
    pub(crate) room: usize,
    is_lost: watch::Receiver<bool>,
    /// What the server has last refused for want of a right.
    denied: watch::Receiver<String>,
}

impl Bus {
    pub(crate) fn new(settings: Settings, line: Arc<Line>) -> Arc<Self> {
        Arc::new(Self { settings, line: watch::Sender::new(Some(line)) })
    }

    /// One without a connection, until [`Bus::keep`] has made one.
    pub(crate) fn unconnected(settings: Settings) -> Arc<Self> {
        Arc::new(Self { settings, line: watch::Sender::new(None) })
    }

    /// Puts a new connection in the place of each that is lost, and where there is none yet, once
    /// `check` finds that all is as it should be. We go by `name` there, and are answered at an
    /// inbox of that name.
    pub(crate) async fn keep<F: Future<Output = Result<()>>>(
        self: Arc<Self>,
        name: String,
        check: impl Fn(Arc<Line>) -> F,
    ) {
        let settings = Settings { name, ..self.settings.clone() };
        loop {
            let line = self.line.borrow().clone();
            let again = if line.is_some() { " again" } else { "" };
            if let Some(line) = line {
                // Where nobody can tell any more, it is lost as well.
                drop(line.lost().wait_for(|is_lost| *is_lost).await);
                self.line.send_replace(None);
                tracing::warn!("the connection to the broker is lost");
            }
            let (mut pause, mut told) = (AGAIN_FIRST, None::<Instant>);
            loop {
                tokio::time::sleep(pause).await;
                let line = match Line::open(&settings).await {
                    Ok(line) => check(line.clone()).await.map(|()| line),
                    Err(error) => Err(error),
                };
                match line {
                    Ok(line) => {
                        tracing::info!("connected to the broker{again}");
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
    pub(crate) fn line(&self) -> Result<Arc<Line>> {
        self.line.borrow().clone().ok_or_else(away)
    }

    /// The connection there is, or the next one.
    pub(crate) async fn next_line(&self) -> Option<Arc<Line>> {
        self.line.subscribe().wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl Line {
    pub(crate) async fn open(settings: &Settings) -> Result<Arc<Self>> {
        let proof = Arc::new(settings.identity.proof().await?);
        let (lost, is_lost) = watch::channel(false);
        let (deny, denied) = watch::channel(String::new());
        let is_used = Arc::new(AtomicBool::new(false));
        let was_used = is_used.clone();
        let events = Arc::new((lost, deny));
        let mut options = ConnectOptions::with_auth_callback(move |nonce| {
            let (proof, was_used) = (proof.clone(), was_used.load(Ordering::Relaxed));
            async move {
                if was_used {
                    return Err(async_nats::AuthError::new("a lost connection is not taken up"));
                }
                proof.answer(&nonce)
            }
        })
        .name(format!("osapi {} {}", settings.namespace, settings.name))
        .custom_inbox_prefix(settings.inbox())
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
                    "it does not accept who we say we are; look at nats.auth in the configuration",
                ),
                ConnectErrorKind::Tls => (
                    Kind::Unavailable,
                    "no encrypted connection comes about; look at nats.tls in the configuration",
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
        // Until here another server is tried where one fails.
        is_used.store(true, Ordering::Relaxed);
        let room = client.server_info().max_payload;
        Ok(Arc::new(Self { client, room, is_lost, denied }))
    }

    /// Whether both are the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.is_lost.same_channel(&other.is_lost)
    }

    /// Asks and returns what is answered, whatever that is.
    pub(crate) async fn ask(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message> {
        self.ask_within(LIMIT, subject, headers, payload).await
    }

    /// The same, with `limit` for the answer.
    pub(crate) async fn ask_within(
        &self,
        limit: Duration,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message> {
        let mut request = async_nats::Request::new().payload(payload).timeout(Some(limit));
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
            RequestErrorKind::MaxPayloadExceeded => too_large().because(error),
            RequestErrorKind::NoResponders if subject.starts_with("$JS") => {
                Error::new(Kind::Unavailable, NO_JETSTREAM)
            }
            RequestErrorKind::NoResponders => {
                Error::new(Kind::Unavailable, format!("nobody answers at {subject}"))
            }
            RequestErrorKind::TimedOut => {
                Error::new(Kind::Unavailable, "the broker did not answer in time").because(error)
            }
            _ => broken().because(error),
        })
    }

    /// What the server has last refused on this connection for want of a right.
    pub(crate) fn refused(&self) -> Option<String> {
        let text = self.denied.borrow().clone();
        text.to_lowercase().contains("permissions violation").then_some(text)
    }

    pub(crate) fn lost(&self) -> watch::Receiver<bool> {
        self.is_lost.clone()
    }

    /// Waits until the server refuses the right to `subject`, and returns what it said.
    pub(crate) async fn refusal(&self, subject: &str) -> String {
        let quoted = format!("\"{subject}\"");
        self.refusal_of(|text| text.contains(&quoted)).await
    }

    /// The same of any text that is about what `is_ours` says.
    pub(crate) async fn refusal_of(&self, is_ours: impl Fn(&str) -> bool) -> String {
        let mut denied = self.denied.clone();
        let text = denied.wait_for(|text| is_ours(text)).await.map(|text| text.clone());
        match text {
            Ok(text) => text,
            // Nobody is left who could refuse.
            Err(_) => std::future::pending().await,
        }
    }
}

pub(crate) const NO_JETSTREAM: &str =
    "JetStream does not answer at the broker; enable it there, for this account as well";

pub(crate) fn away() -> Error {
    Error::new(Kind::Unavailable, "there is no connection to the broker; retry")
}

pub(crate) fn too_large() -> Error {
    let message = "this is larger than a message of the broker may be; raise its max_payload";
    Error::new(Kind::TooLarge, message)
}

pub(crate) fn broken() -> Error {
    Error::new(Kind::Unavailable, "the connection to the broker broke; retry")
}

/// What subjects, and the keys of records, are made of between their dots.
pub(crate) fn is_token(token: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    !token.is_empty() && token.bytes().all(is_plain)
}

/// What namespaces, controllers and hosts may be called.
pub(crate) fn is_name(text: &str) -> bool {
    is_token(text) && text.len() <= 64
}

/// What is allowed as a namespace, for people.
pub(crate) const NAMESPACE: &str =
    "use up to 64 letters, digits, `_` and `-`, without `_files` at the end";
/// What is allowed as the name of a controller.
pub(crate) const NAME: &str = "use up to 64 letters, digits, `_` and `-`, and nothing that could \
                               be a machine id";

/// Whether the streams of namespace `text` can be no other one's: what follows here is the end of
/// one that a namespace without it has.
pub(crate) fn is_namespace(text: &str) -> bool {
    is_name(text) && !text.ends_with("_files")
}

/// Whether a controller may be called so: not what hosts go by, whose users at the broker could
/// otherwise hear what it is answered.
pub(crate) fn is_controller(text: &str) -> bool {
    is_name(text) && !is_machine_id(text)
}

/// As machine-id(5) has it.
pub(crate) fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
