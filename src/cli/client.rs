//! Plain HTTP over the controller's socket.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Frame;
use hyper::header::LOCATION;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use super::text::flat;
use super::{Reach, files};
use crate::error::{Error, ErrorBody, Kind, Result};

/// The largest reply that is read, in bytes: an export of the whole audit log is less.
const MAX_REPLY: usize = 256 << 20;
const CHUNK: usize = 64 << 10;

pub(super) struct Client {
    /// Tried in order; the first that answers is kept.
    sockets: Vec<PathBuf>,
    /// Whether they were named for this call. Nobody has to vouch for those.
    is_named: bool,
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
    pub(super) bytes: Bytes,
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
    /// Decides where to ask. What was written for this call decides alone.
    pub(super) fn new(url: Option<&str>, reach: &Reach, is_verbose: bool) -> Result<Self> {
        let sockets = match url {
            Some(url) => vec![socket_of(url)?],
            None => reach.sockets.clone(),
        };
        Ok(Self { sockets, is_named: url.is_some(), is_verbose })
    }

    pub(super) async fn send(&self, letter: Letter) -> Result<Reply> {
        let stream = self.connect().await?;
        let begun = Instant::now();
        let what = format!("{} {}", letter.method, letter.uri);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(Line(stream)))
                .await
                .map_err(broken)?;
        let connection = tokio::spawn(connection);
        let request = letter.request().await?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_REPLY).collect().await.map_err(|error| {
                Error::new(Kind::Unavailable, "the controller's answer broke off").because(error)
            })?;
            let status = parts.status;
            let is_pending = status == StatusCode::ACCEPTED && parts.headers.contains_key(LOCATION);
            Ok(Reply { status, is_pending, bytes: body.to_bytes() })
        };
        let reply: Result<Reply> = answer.await;
        connection.abort();
        if self.is_verbose {
            let status = reply.as_ref().map_or_else(Error::to_string, |r| r.status.to_string());
            super::say(&format!("{what}: {status} in {} ms", begun.elapsed().as_millis()));
        }
        reply
    }

    /// Where it asks, in this order.
    pub(super) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// The first socket at which somebody listens, and the account that does.
    pub(super) async fn listener(&self) -> Option<(&Path, u32)> {
        for socket in &self.sockets {
            if let Ok(stream) = connect(socket).await {
                return Some((socket, stream.peer_cred().ok()?.uid()));
            }
        }
        None
    }

    async fn connect(&self) -> Result<UnixStream> {
        let (mut denied, mut doubtful) = (None, None);
        for socket in &self.sockets {
            match self.connect_to(socket).await {
                Ok(Some(stream)) => return Ok(stream),
                Ok(None) => doubtful = Some(socket),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    denied = Some(socket);
                }
                Err(_) => {}
            }
        }
        if let Some(socket) = doubtful {
            let socket = socket.display();
            let what = format!(
                "cannot trust {socket}: somebody who is neither you nor root listens there, in a \
                 place that not only root chose; if you know who, say so with --url unix://{socket}"
            );
            return Err(Error::new(Kind::Denied, what));
        }
        if let Some(socket) = denied {
            let what = format!(
                "cannot connect to {}: permission denied; sockets of the package are open to \
                 everybody, those of `osapi start` to the user who ran it",
                socket.display(),
            );
            return Err(Error::new(Kind::Denied, what));
        }
        let tried: Vec<_> = self.sockets.iter().map(|path| path.display().to_string()).collect();
        let what = format!(
            "cannot reach a controller: nothing listens at {}; start one with `osapi start`, or \
             say where it is with --url unix:///PATH",
            tried.join(" or "),
        );
        Err(Error::new(Kind::Unavailable, what))
    }

    /// Connects unless anybody might listen there: it must be the caller's own account, root, or
    /// whom root has given the place.
    async fn connect_to(&self, socket: &Path) -> io::Result<Option<UnixStream>> {
        let stream = connect(socket).await?;
        let own = rustix::process::geteuid().as_raw();
        if self.is_named || [0, own].contains(&stream.peer_cred()?.uid()) {
            return Ok(Some(stream));
        }
        match files::kept_for_owner(socket, own) {
            // Links may have led elsewhere before.
            Some(resolved) => connect(&resolved).await.map(Some),
            None => Ok(None),
        }
    }
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let connected = tokio::time::timeout(Duration::from_secs(10), UnixStream::connect(socket));
    connected.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Where `unix:///PATH` is.
pub(super) fn socket_of(url: &str) -> Result<PathBuf> {
    let refuse = |why: &str| {
        let what = format!("cannot use {}: {why}; write unix:///PATH", flat(url));
        Err(Error::new(Kind::InvalidInput, what))
    };
    match url.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(Path::new(path).to_owned()),
        Some(("unix", _)) => refuse("the path of a socket begins with /"),
        Some(("http" | "https", _)) => {
            refuse("this version is reached through a socket of its own host, not over a network")
        }
        _ => refuse("this is no URL that can be asked"),
    }
}

/// A connection whose other end may have stopped listening and still have said something: a
/// controller that refuses a file does so before it has read all of it.
struct Line(UnixStream);

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.0).poll_write(context, bytes));
        Poll::Ready(match written {
            // Nobody reads on. Where there is no answer either, reading it fails.
            Err(error) if is_hung_up(&error) => Ok(bytes.len()),
            written => written,
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn is_hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn broken(error: hyper::Error) -> Error {
    Error::new(Kind::Unavailable, "the controller closed the connection; is it being stopped?")
        .because(error)
}

impl Letter {
    async fn request(self) -> Result<Request<UnsyncBoxBody<Bytes, io::Error>>> {
        let request = Request::builder().method(self.method).uri(self.uri).header("host", "osapi");
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
