//! The bytes of one connection, watched for what hyper does not tell.
//!
//! Hyper resolves contradicting lengths by dropping one of them, as the standard allows; here
//! such a request is refused, since whoever stands in front may have kept the other. (Of one that
//! came together with the one before it the lengths go by unseen; hyper refuses it where they
//! differ.) What hyper itself refuses it answers without a body, or not at all where a client begins
//! with HTTP/2; here it becomes a problem document like any other.
//! A peer that does not take its answer is hung up on.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::problem;
use crate::error::Kind;

/// Start line and headers, in bytes.
pub(super) const MOST_HEAD: usize = 32 * 1024;
/// How a client begins that speaks HTTP/2 without asking first.
const HTTP2: &[u8] = b"PRI * HTTP/2";
/// How long a peer may take none of its answer.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) struct Wire<S> {
    stream: S,
    head: Head,
    /// Said instead of what hyper would say.
    instead: Vec<u8>,
    stalled: Option<Pin<Box<Sleep>>>,
}

/// What was read since the last request was answered: the head of the next one.
#[derive(Clone)]
pub(super) struct Head(Arc<Mutex<Seen>>);

struct Seen {
    bytes: Vec<u8>,
    is_kept: bool,
}

/// How a request says where its body ends.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Framing {
    lengths: usize,
    encodings: usize,
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> (Self, Head) {
        let seen = Seen { bytes: Vec::with_capacity(1024), is_kept: true };
        let head = Head(Arc::new(Mutex::new(seen)));
        (Self { stream, head: head.clone(), instead: Vec::new(), stalled: None }, head)
    }

    fn poll_instead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.instead.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.instead))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.instead.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// `done`, unless the peer has taken nothing for too long.
    fn patiently<T>(
        &mut self,
        context: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.stalled = None;
            return done;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Head {
    /// Says what is wrong with how this request is framed. `start` is its start line as hyper
    /// understood it; called before anything of the body was asked for.
    pub(super) fn fault(&self, start: &str, is_chunked: bool) -> Option<&'static str> {
        let mut seen = self.lock();
        seen.is_kept = false;
        let framing = framing(&seen.bytes, start);
        seen.bytes.clear();
        match framing {
            Some(
                Framing { lengths: 0 | 1, encodings: 0 } | Framing { lengths: 0, encodings: 1 },
            ) => None,
            Some(_) => Some("the request says more than once where its body ends"),
            // It came together with the one before it, so its lengths went by unseen.
            None if is_chunked => Some("a chunked request must wait for the answer before it"),
            None => None,
        }
    }

    /// To be called when a request was answered: what is read next is another one's head.
    pub(super) fn answered(&self) {
        let mut seen = self.lock();
        seen.is_kept = true;
        seen.bytes.clear();
    }

    /// Whether what is read next begins a request.
    fn is_at_start(&self) -> bool {
        let seen = self.lock();
        seen.is_kept && seen.bytes.is_empty()
    }

    fn note(&self, bytes: &[u8]) {
        let mut seen = self.lock();
        if seen.is_kept {
            let room = MOST_HEAD.saturating_sub(seen.bytes.len()).min(bytes.len());
            seen.bytes.extend_from_slice(&bytes[..room]);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None where `bytes` do not begin with the head that starts with `start`.
fn framing(bytes: &[u8], start: &str) -> Option<Framing> {
    // Parsers skip empty lines ahead of a request.
    let skipped = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let mut rest = &bytes[skipped..];
    if !rest.starts_with(start.as_bytes()) {
        return None;
    }
    let mut framing = Framing::default();
    let mut is_first = true;
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        if line.is_empty() {
            return Some(framing);
        }
        if !std::mem::take(&mut is_first) {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            if name.eq_ignore_ascii_case(b"content-length") {
                framing.lengths += 1;
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                framing.encodings += 1;
            }
        }
    }
}

/// What to say instead of an answer that hyper gives on its own: those have no body.
fn replacement(bytes: &[u8]) -> Option<Vec<u8>> {
    let is_refusal = bytes.starts_with(b"HTTP/1.1 4") || bytes.starts_with(b"HTTP/1.0 4");
    if !is_refusal || !bytes.ends_with(b"\r\n\r\n") || bytes.len() > 256 {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    if !text.contains("content-length: 0\r\n") {
        return None;
    }
    Some(match &text[9..12] {
        "414" => problem::refusal(Kind::TooLarge, "the path is too long"),
        "431" => problem::refusal(Kind::TooLarge, "the headers are too large or too many"),
        _ => problem::refusal(Kind::InvalidInput, "cannot read the request as HTTP/1.1"),
    })
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = &mut buffer.filled_mut()[before..];
        if self.head.is_at_start() && read.starts_with(HTTP2) {
            // No method begins like this, and what is unreadable gets an answer.
            read[0] = b'(';
        }
        self.head.note(read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_instead(context))?;
        if let Some(instead) = replacement(bytes) {
            self.instead = instead;
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.patiently(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(context))?;
        // What is encrypted waits for the peer here.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.patiently(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_instead(context))?;
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.patiently(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_counted_in_the_head_alone() {
        let head = b"\r\nPOST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-LENGTH: 3\r\n\r\nContent-Length: 1\r\n";
        assert_eq!(framing(head, "POST /x "), Some(Framing { lengths: 1, encodings: 1 }));
        assert_eq!(framing(head, "GET /x "), None);
        assert_eq!(framing(&head[..40], "POST /x "), None);
    }

    #[test]
    fn only_answers_of_hyper_are_replaced() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";
        assert!(replacement(own).unwrap().starts_with(b"HTTP/1.1 413 "));
        assert!(replacement(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_none());
        assert!(replacement(b"HTTP/1.1 404 Not Found\r\ncontent-length: 10\r\n\r\n").is_none());
    }
}
