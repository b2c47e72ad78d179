//! A file on its way in: a form whose last field is the file, never whole in memory.
//!
//! Text fields come before the file, as every existing client sends them: what the file is called
//! must be known before its first byte is kept.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use http_body_util::BodyDataStream;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::error::{Error, Kind, Problem, Result};
use crate::schema::pointer;
use crate::store::Reader;

/// A whole upload, in bytes.
pub(super) const MOST_UPLOAD: u64 = 256 * 1024 * 1024;
/// A text field, in bytes.
const MOST_TEXT: u64 = 4 * 1024;
/// How many text fields are read before the file is given up on.
const MOST_FIELDS: usize = 16;
/// How long a client may send nothing.
const SILENCE: Duration = Duration::from_secs(30);
const FILE: &str = "file";

/// What stood in a form before its file, and the file.
pub(super) struct Form {
    pub(super) members: Map<String, Value>,
    /// Fields that stood there twice.
    pub(super) problems: Vec<Problem>,
    pub(super) file: Reader,
    pub(super) fault: Fault,
}

/// Why the file could not be read to its end, for whoever only got an I/O error.
#[derive(Clone, Default)]
pub(super) struct Fault(Arc<Mutex<Option<Error>>>);

impl Fault {
    pub(super) fn take(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, error: Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// Reads a form up to the beginning of its file.
pub(super) async fn form(headers: &HeaderMap, body: Incoming) -> Result<Form> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = multer::parse_boundary(content_type.unwrap_or_default()).map_err(|_| {
        let message = "cannot read this body; send a form with Content-Type: multipart/form-data";
        Error::new(Kind::InvalidInput, message)
    })?;
    let limits = SizeLimit::new().whole_stream(MOST_UPLOAD);
    let constraints = Constraints::new().size_limit(limits);
    let body = Patient::new(BodyDataStream::new(body));
    let mut multipart = Multipart::with_constraints(body, boundary, constraints);
    let (mut members, mut problems) = (Map::new(), Vec::new());
    for _ in 0..MOST_FIELDS {
        let Some(mut field) = multipart.next_field().await.map_err(broken)? else {
            let message = "is required, as the last field of the form";
            let problems = vec![Problem { pointer: pointer(FILE), message: message.to_owned() }];
            return Err(
                Error::new(Kind::InvalidInput, format!("file: {message}")).with_problems(problems)
            );
        };
        let name = field.name().unwrap_or_default().to_owned();
        if name == FILE {
            let fault = Fault::default();
            let file =
                File { field: Some(field), multipart, rest: Bytes::new(), fault: fault.clone() };
            return Ok(Form { members, problems, file: Box::pin(file), fault });
        }
        let text = text(&mut field).await?;
        if members.insert(name.clone(), text.into()).is_some() {
            let message = "given more than once".to_owned();
            problems.push(Problem { pointer: pointer(&name), message });
        }
    }
    Err(Error::new(Kind::InvalidInput, "the form has too many fields before its file"))
}

async fn text(field: &mut Field<'static>) -> Result<String> {
    let mut text = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        if (text.len() + chunk.len()) as u64 > MOST_TEXT {
            let message = format!("a text field of the form is larger than {MOST_TEXT} bytes");
            return Err(Error::new(Kind::TooLarge, message));
        }
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text)
        .map_err(|_| Error::new(Kind::InvalidInput, "a text field of the form is not UTF-8"))
}

fn broken(error: multer::Error) -> Error {
    match error {
        multer::Error::StreamSizeExceeded { limit } => {
            Error::new(Kind::TooLarge, format!("the upload is larger than {limit} bytes"))
        }
        multer::Error::StreamReadFailed(error) => {
            let message = "the upload ended early or stalled; send it again";
            Error::new(Kind::InvalidInput, message).because(error)
        }
        error => Error::new(Kind::InvalidInput, "the form is ill-formed").because(error),
    }
}

/// The content of the last field. Fails where another one follows.
struct File {
    field: Option<Field<'static>>,
    multipart: Multipart<'static>,
    rest: Bytes,
    fault: Fault,
}

impl File {
    fn fail(&self, error: Error) -> io::Error {
        let told = io::Error::other(error.to_string());
        self.fault.set(error);
        told
    }
}

impl AsyncRead for File {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.rest.has_remaining() {
                let count = self.rest.len().min(buffer.remaining());
                buffer.put_slice(&self.rest.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if let Some(field) = &mut self.field {
                match ready!(Pin::new(field).poll_next(context)) {
                    Some(Ok(chunk)) => self.rest = chunk,
                    Some(Err(error)) => return Poll::Ready(Err(self.fail(broken(error)))),
                    None => self.field = None,
                }
                continue;
            }
            return Poll::Ready(match ready!(self.multipart.poll_next_field(context)) {
                Ok(None) => Ok(()),
                Ok(Some(_)) => {
                    let message = "the file must be the last field of the form";
                    Err(self.fail(Error::new(Kind::InvalidInput, message)))
                }
                Err(error) => Err(self.fail(broken(error))),
            });
        }
    }
}

/// A body that fails when nothing of it arrives for a while.
struct Patient {
    body: BodyDataStream<Incoming>,
    until: Pin<Box<Sleep>>,
}

impl Patient {
    fn new(body: BodyDataStream<Incoming>) -> Self {
        Self { body, until: Box::pin(tokio::time::sleep(SILENCE)) }
    }
}

impl Stream for Patient {
    type Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(chunk) = Pin::new(&mut self.body).poll_next(context) {
            self.until.as_mut().reset(Instant::now() + SILENCE);
            return Poll::Ready(chunk.map(|chunk| chunk.map_err(Into::into)));
        }
        ready!(self.until.as_mut().poll(context));
        Poll::Ready(Some(Err("nothing arrived for too long".into())))
    }
}
