//! Contents of a fleet, in chunks, in a stream of their own.
//!
//! `<namespace>.content.chunk.<upload>.<number>` has a part of what was uploaded, and
//! `<namespace>.content.head.<digest>` says which upload has the content. Several controllers may
//! upload and delete at the same time: whoever keeps a content writes its head again, before and
//! after its record names it, and whoever removes one demands that nobody has since it looked.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_nats::HeaderMap;
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use uuid::Uuid;

use super::jetstream::{Outgoing, header, is_marker, sequence};
use super::{NatsStore, open};
use crate::broker::Bus;
use crate::error::{Error, Kind, Result};
use crate::job::{decode, encode};
use crate::store::objects::{Catalogue, Contents, Received, Share, gone};
use crate::store::{Object, Reader, hex};

/// What one message holds.
const CHUNK: usize = 128 * 1024;
/// An upload that is older than this and has no head has broken off.
const BROKEN: Duration = Duration::from_hours(24);

/// How often the head of a content is written again that others write, too.
const TRIES: usize = 8;

/// Objects whose contents are at the broker.
pub type NatsObjects = Catalogue<Chunks>;

impl NatsObjects {
    /// Makes the stream if there is none. `store` has the index.
    pub async fn open(store: &NatsStore) -> Result<Self> {
        let shared = &store.0.shared;
        let needed = open::contents(&shared.bus.settings, &shared.bounds);
        let line = shared.bus.line()?;
        needed.ensure(&line).await?;
        let chunks = Chunks(Arc::new(Place { bus: shared.bus.clone(), stream: needed.name }));
        let (clock, bound) = (shared.clock.clone(), shared.bounds.objects);
        Self::with(chunks, Arc::new(store.clone()), clock, bound).await
    }
}

/// A stream of contents.
#[derive(Clone)]
pub struct Chunks(Arc<Place>);

struct Place {
    bus: Arc<Bus>,
    stream: String,
}

/// Which upload has a content.
#[derive(Clone, Deserialize, Serialize)]
struct Head {
    upload: String,
    size: u64,
}

/// Chunks that have no head yet, and go without one.
pub struct Staged {
    place: Arc<Place>,
    upload: String,
    is_kept: bool,
}

impl Place {
    fn chunk(&self, upload: &str, number: u64) -> String {
        format!("{}.content.chunk.{upload}.{number}", self.bus.settings.namespace)
    }

    fn head(&self, digest: &str) -> String {
        format!("{}.content.head.{digest}", self.bus.settings.namespace)
    }

    /// The head of a content, if it has one, and the sequence of what is in its place.
    async fn find(&self, digest: &str) -> Result<(Option<Head>, u64)> {
        let last = self.bus.line()?.last(&self.stream, &self.head(digest)).await?;
        let Some(found) = last else { return Ok((None, 0)) };
        let at = sequence(&found).unwrap_or_default();
        Ok((if is_marker(&found) { None } else { Some(decode(&found.payload)?) }, at))
    }

    /// Writes the head of a content, where the last one has the sequence `expected`.
    async fn claim(&self, digest: &str, head: &Head, expected: u64) -> Result<u64> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string().as_str());
        let message = Outgoing { subject: self.head(digest), headers, payload: encode(head)? };
        self.bus.line()?.publish(message).await
    }

    async fn purge(&self, subject: &str) -> Result<()> {
        let call = format!("STREAM.PURGE.{}", self.stream);
        let purged = self.bus.line()?.api(&call, &json!({ "filter": subject })).await?;
        purged.map(drop).map_err(|refusal| refusal.into_error(subject))
    }

    async fn purge_upload(&self, upload: &str) -> Result<()> {
        self.purge(&format!("{}.content.chunk.{upload}.>", self.bus.settings.namespace)).await
    }

    /// The content from `offset` on to the end of its chunk; empty behind the last.
    async fn read(&self, upload: &str, offset: u64) -> Result<Bytes> {
        let (number, within) = (offset / CHUNK as u64, offset % CHUNK as u64);
        let chunk = self.bus.line()?.last(&self.stream, &self.chunk(upload, number)).await?;
        let Some(chunk) = chunk else { return Ok(Bytes::new()) };
        let within = usize::try_from(within).unwrap_or(usize::MAX).min(chunk.payload.len());
        Ok(chunk.payload.slice(within..))
    }
}

#[async_trait]
impl Contents for Chunks {
    type Staged = Staged;

    async fn receive(&self, content: &mut Reader, share: &mut Share) -> Result<Received<Staged>> {
        let upload = Uuid::now_v7().simple().to_string();
        let staged = Staged { place: self.0.clone(), upload, is_kept: false };
        let (mut hash, mut size, mut number) = (Sha256::new(), 0, 0);
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            while chunk.len() < CHUNK {
                let mut rest = (&mut *content).take((CHUNK - chunk.len()) as u64);
                let read = rest.read_buf(&mut chunk).await.map_err(|error| {
                    Error::new(Kind::InvalidInput, "the upload broke off").because(error)
                })?;
                if read == 0 {
                    break;
                }
            }
            if chunk.is_empty() {
                break;
            }
            let is_last = chunk.len() < CHUNK;
            share.grow(chunk.len() as u64)?;
            hash.update(&chunk);
            size += chunk.len() as u64;
            let (subject, headers) = (self.0.chunk(&staged.upload, number), HeaderMap::new());
            let message = Outgoing { subject, headers, payload: chunk.freeze() };
            self.0.bus.line()?.publish(message).await?;
            number += 1;
            if is_last {
                break;
            }
        }
        Ok(Received { size, digest: hex(&hash.finalize()), staged })
    }

    async fn keep(&self, received: &mut Received<Staged>, _: bool) -> Result<()> {
        let Received { size, digest, staged } = received;
        let (found, expected) = self.0.find(digest).await?;
        let head = found.unwrap_or_else(|| Head { upload: staged.upload.clone(), size: *size });
        self.0.claim(digest, &head, expected).await?;
        // Otherwise the content is there, and this one is not needed.
        staged.is_kept = head.upload == staged.upload;
        Ok(())
    }

    async fn confirm(&self, received: &Received<Staged>) -> Result<()> {
        for _ in 0..TRIES {
            // Whoever has looked whether it may go before this finds that it may not.
            let (head, at) = self.0.find(&received.digest).await?;
            match self.0.claim(&received.digest, &head.ok_or_else(taken)?, at).await {
                Err(error) if error.kind() == Kind::Conflict => {}
                claimed => return claimed.map(drop),
            }
        }
        Err(taken())
    }

    async fn mark(&self, digest: &str) -> Result<u64> {
        Ok(self.0.find(digest).await?.1)
    }

    async fn remove(&self, digest: &str, mark: u64) -> Result<()> {
        let Some(head) = self.0.find(digest).await?.0 else { return Ok(()) };
        let mut marker = Outgoing::deletion(self.0.head(digest), "60s");
        let mark = mark.to_string();
        marker.headers.insert("Nats-Expected-Last-Subject-Sequence", mark.as_str());
        match self.0.bus.line()?.publish(marker).await {
            Err(error) if error.kind() == Kind::Conflict => return Ok(()),
            removed => removed?,
        };
        self.0.purge_upload(&head.upload).await
    }

    async fn open(&self, object: &Object) -> Result<Reader> {
        let head = self.0.find(&object.digest).await?.0.ok_or_else(|| gone(&object.digest))?;
        let (place, left) = (self.0.clone(), object.size);
        Ok(Box::pin(Chunked { place, head, left, chunk: Bytes::new(), next: None }))
    }

    async fn part(&self, digest: &str, offset: u64, most: usize) -> Result<Bytes> {
        let head = self.0.find(digest).await?.0.ok_or_else(|| gone(digest))?;
        let mut part = BytesMut::new();
        while part.len() < most && offset + (part.len() as u64) < head.size {
            let chunk = self.0.read(&head.upload, offset + part.len() as u64).await?;
            if chunk.is_empty() {
                return Err(gone(digest));
            }
            part.extend_from_slice(&chunk[..chunk.len().min(most - part.len())]);
        }
        Ok(part.freeze())
    }

    async fn sweep(&self, named: &BTreeSet<&str>) -> Result<()> {
        let line = self.0.bus.line()?;
        let root = format!("{}.content", self.0.bus.settings.namespace);
        let heads = line.names(&self.0.stream, &format!("{root}.head.>")).await?;
        let mut used = BTreeSet::new();
        for message in line.last_of_each(&self.0.stream, &heads).await? {
            if is_marker(&message) {
                continue;
            }
            let head: Head = decode(&message.payload)?;
            let subject = header(&message, "Nats-Subject").unwrap_or_default();
            let digest = subject.rsplit('.').next().unwrap_or_default();
            if named.contains(digest) || !is_broken(&head.upload) {
                used.insert(head.upload);
            } else {
                self.remove(digest, sequence(&message).unwrap_or_default()).await?;
            }
        }
        let first = line.names(&self.0.stream, &format!("{root}.chunk.*.0")).await?;
        for subject in first {
            let upload = subject.rsplit('.').nth(1).unwrap_or_default();
            if !used.contains(upload) && is_broken(upload) {
                self.0.purge_upload(upload).await?;
            }
        }
        Ok(())
    }
}

/// Whether an upload began too long ago to be going on.
fn is_broken(upload: &str) -> bool {
    let began = Uuid::parse_str(upload).ok().and_then(|id| id.get_timestamp());
    let Some((seconds, _)) = began.map(|at| at.to_unix()) else { return false };
    let began = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
    began.elapsed().is_ok_and(|age| age > BROKEN)
}

fn taken() -> Error {
    let message = "another controller deleted this content at the same moment; upload it again";
    Error::new(Kind::Unavailable, message)
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_kept {
            let (place, upload) = (self.place.clone(), std::mem::take(&mut self.upload));
            // What stays for want of a connection is swept at a later start.
            tokio::spawn(async move { drop(place.purge_upload(&upload).await) });
        }
    }
}

/// Reads a content chunk by chunk.
struct Chunked {
    place: Arc<Place>,
    head: Head,
    /// How many bytes have still to be asked for.
    left: u64,
    chunk: Bytes,
    next: Option<BoxFuture<'static, Result<Bytes>>>,
}

impl AsyncRead for Chunked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.chunk.is_empty() && self.left > 0 {
            if self.next.is_none() {
                let (place, upload) = (self.place.clone(), self.head.upload.clone());
                let offset = self.head.size.saturating_sub(self.left);
                self.next = Some(Box::pin(async move { place.read(&upload, offset).await }));
            }
            let Some(next) = &mut self.next else { return Poll::Ready(Ok(())) };
            let chunk = ready!(next.as_mut().poll(cx));
            self.next = None;
            self.chunk = chunk.map_err(std::io::Error::other)?;
            if self.chunk.is_empty() {
                let error = std::io::Error::other("the file was deleted while it was read");
                return Poll::Ready(Err(error));
            }
            self.left = self.left.saturating_sub(self.chunk.len() as u64);
        }
        let count = self.chunk.len().min(out.remaining());
        out.put_slice(&self.chunk[..count]);
        self.chunk.advance(count);
        Poll::Ready(Ok(()))
    }
}
