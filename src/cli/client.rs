//! Plain HTTP over a connection to the controller.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AGE, AUTHORIZATION, HeaderValue, LOCATION};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::AsyncReadExt;

use super::connect::{Connection, Places};
use super::text::flat;
use crate::config::Secret;
use crate::error::{Error, ErrorBody, Kind, Result};

/// The largest reply that is read, in bytes: an export of the whole audit log is less.
const MAX_REPLY: usize = 256 << 20;
const CHUNK: usize = 64 << 10;

pub(super) struct Client {
    places: Places,
    /// Whether to tell what is asked, on stderr.
    is_verbose: bool,
}

/// What to send.
pub(super) struct Letter {
    pub(super) method: Method,
    pub(super) uri: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Content,
}

pub(super) enum Content {
    Nothing,
    Json(Vec<u8>),
    /// One part of a form after the other, the last of them a file.
    Form {
        boundary: String,
        head: Bytes,
        file: PathBuf,
        size: u64,
        tail: Bytes,
    },
}

pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// Whether it only says that a job was accepted. Finished calls may be answered 202 too, but
    /// say nowhere to look.
    pub(super) is_pending: bool,
    /// How many seconds old it is, where the controller tells from memory what it cannot look up.
    pub(super) age: Option<u64>,
    pub(super) bytes: Bytes,
}

/// An answer that has begun.
pub(super) struct Opened {
    pub(super) status: StatusCode,
    is_pending: bool,
    age: Option<u64>,
    pub(super) body: Incoming,
    _hold: Hold,
}

/// A connection, which ends when this is dropped.
struct Hold(tokio::task::AbortHandle);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Opened {
    /// The whole of an answer that has an end.
    pub(super) async fn whole(self) -> Result<Reply> {
        let Self { status, is_pending, age, body, _hold } = self;
        let body = Limited::new(body, MAX_REPLY).collect().await.map_err(|error| {
            Error::new(Kind::Unavailable, "the controller's answer broke off").because(error)
        })?;
        Ok(Reply { status, is_pending, age, bytes: body.to_bytes() })
    }
}

impl Reply {
    pub(super) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.bytes).map_err(|error| {
            let what = "cannot read the controller's answer; is it the same version as this?";
            Error::new(Kind::Internal, what).because(error)
        })
    }
}

/// An answer that is an error, with the job it is about.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) error: Error,
    pub(super) job: Option<String>,
    /// As it came, where it came from the controller.
    pub(super) document: Option<Value>,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self { error, job: None, document: None }
    }
}

impl From<Reply> for Problem {
    fn from(reply: Reply) -> Self {
        let document: Option<Value> = serde_json::from_slice(&reply.bytes).ok();
        let told = document.as_ref().unwrap_or(&Value::Null);
        let by_status =
            || Kind::ALL.into_iter().find(|kind| kind.status() == reply.status.as_u16());
        let kind = serde_json::from_value(told["kind"].clone()).ok().or_else(by_status);
        let kind = kind.unwrap_or(Kind::Internal);
        let words = told["detail"].as_str().or_else(|| told["error"].as_str());
        let body = ErrorBody {
            kind,
            message: words.map_or_else(|| format!("the controller said {}", reply.status), flat),
            problems: serde_json::from_value(told["problems"].clone()).unwrap_or_default(),
            not_restored: serde_json::from_value(told["not_restored"].clone()).unwrap_or_default(),
        };
        let job = told["job_id"].as_str().map(str::to_owned);
        Self { error: body.into(), job, document }
    }
}

impl Client {
    pub(super) fn new(places: Places, is_verbose: bool) -> Self {
        Self { places, is_verbose }
    }

    /// Where it asks, in this order.
    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    pub(super) async fn send(&self, letter: Letter) -> Result<Reply> {
        let begun = Instant::now();
        let what = format!("{} {}", letter.method, letter.uri);
        let reply = match self.open(letter).await {
            Ok(opened) => opened.whole().await,
            Err(error) => Err(error),
        };
        if self.is_verbose {
            let status = reply.as_ref().map_or_else(Error::to_string, |r| r.status.to_string());
            super::say(&format!("{what}: {status} in {} ms", begun.elapsed().as_millis()));
        }
        reply
    }

    /// Asks, and returns once the answer begins.
    pub(super) async fn open(&self, letter: Letter) -> Result<Opened> {
        let Connection { line, host, token } = self.places.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(line)).await.map_err(broken)?;
        let hold = Hold(tokio::spawn(connection).abort_handle());
        let mut request = letter.request(&host).await?;
        if let Some(token) = token {
            request.headers_mut().insert(AUTHORIZATION, bearer(&token)?);
        }
        let response = sender.send_request(request).await.map_err(broken)?;
        let (parts, body) = response.into_parts();
        let status = parts.status;
        let is_pending = status == StatusCode::ACCEPTED && parts.headers.contains_key(LOCATION);
        let age = parts.headers.get(AGE).and_then(|age| age.to_str().ok()?.parse().ok());
        Ok(Opened { status, is_pending, age, body, _hold: hold })
    }
}

fn broken(error: hyper::Error) -> Error {
    Error::new(Kind::Unavailable, "the controller closed the connection; is it being stopped?")
        .because(error)
}

fn bearer(token: &Secret) -> Result<HeaderValue> {
    let value = HeaderValue::from_str(&format!("Bearer {}", token.reveal().trim()));
    let mut value = value.map_err(|_| {
        let what = "cannot send controller.client.security.bearer_token: it is no token";
        Error::new(Kind::InvalidInput, what)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

impl Letter {
    async fn request(self, host: &str) -> Result<Request<UnsyncBoxBody<Bytes, io::Error>>> {
        let request = Request::builder().method(self.method).uri(self.uri).header("host", host);
        let request =
            self.headers.into_iter().fold(request, |r, (name, value)| r.header(name, value));
        let whole =
            |bytes: Vec<u8>| Full::from(bytes).map_err(|never| match never {}).boxed_unsync();
        let request = match self.body {
            Content::Nothing => request.body(whole(Vec::new())),
            Content::Json(bytes) => {
                request.header("content-type", "application/json").body(whole(bytes))
            }
            Content::Form { boundary, head, file, size, tail } => {
                let length = head.len() as u64 + size + tail.len() as u64;
                request
                    .header("content-type", format!("multipart/form-data; boundary={boundary}"))
                    .header("content-length", length)
                    .body(form(head, &file, size, tail).await?)
            }
        };
        request.map_err(|error| {
            Error::new(Kind::InvalidInput, "cannot write this as a request").because(error)
        })
    }
}

/// The parts of a form, the file in pieces. It is cut at `size`: its length was promised.
async fn form(
    head: Bytes,
    path: &Path,
    size: u64,
    tail: Bytes,
) -> Result<UnsyncBoxBody<Bytes, io::Error>> {
    let file = tokio::fs::File::open(path).await.map_err(|error| unreadable(path, error))?;
    let pieces = stream::unfold(file.take(size), |mut file| async move {
        let mut piece = Vec::with_capacity(CHUNK);
        match (&mut file).take(CHUNK as u64).read_to_end(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(piece.into()), file)),
            Err(error) => Some((Err(error), file)),
        }
    });
    let once = |bytes: Bytes| stream::iter([Ok(bytes)]);
    let parts = once(head).chain(pieces).chain(once(tail));
    Ok(StreamBody::new(parts.map_ok(Frame::data)).boxed_unsync())
}

pub(super) fn unreadable(path: &Path, error: io::Error) -> Error {
    let what = format!("cannot read {}: {error}", path.display());
    Error::new(Kind::InvalidInput, what).because(error)
}
