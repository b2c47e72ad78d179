//! Objects: whole contents by digest, and an index of names in the store.
//!
//! Where contents are kept differs, see [`Contents`]; what names them is the same everywhere. A
//! content is durable before its record names it, so that a crash leaves at most one without a name;
//! those are swept when the objects are opened.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Mutex;

use super::{Expect, Noting, Object, Objects, Reader, Step, Store, Upload};
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::job::{decode, encode};

mod files;

pub use files::Files;

/// What one page of the index holds.
const PAGE: usize = 512;

/// Where contents are kept, by digest.
#[async_trait]
pub trait Contents: Send + Sync {
    /// A content that has arrived and has no name yet. Goes when it is dropped without.
    type Staged: Send + Sync;

    /// Takes all of `content` and makes it durable.
    async fn receive(
        &self,
        content: &mut Reader,
        share: &mut Share,
    ) -> Result<Received<Self::Staged>>;
    /// Names a content by its digest, or finds that it is there. As far as this controller knows,
    /// `is_new` says which.
    async fn keep(&self, received: &mut Received<Self::Staged>, is_new: bool) -> Result<()>;
    /// Fails if the content was removed while its record was being written.
    async fn confirm(&self, received: &Received<Self::Staged>) -> Result<()>;
    /// What tells, on removal, whether somebody has kept the content since.
    async fn mark(&self, digest: &str) -> Result<u64>;
    /// Removes a content unless somebody has kept it since `mark`. A reader that has begun ends or
    /// fails.
    async fn remove(&self, digest: &str, mark: u64) -> Result<()>;
    async fn open(&self, object: &Object) -> Result<Reader>;
    async fn part(&self, digest: &str, offset: u64, most: usize) -> Result<Bytes>;
    /// Removes what is not named, and was not about to be.
    async fn sweep(&self, named: &BTreeSet<&str>) -> Result<()>;
}

/// A content that is durable.
pub struct Received<S> {
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub digest: String,
    pub staged: S,
}

/// Objects whose contents are in a `C`.
pub struct Catalogue<C> {
    contents: C,
    index: Arc<dyn Store>,
    clock: Clock,
    /// What all contents may take together.
    bound: u64,
    taken: Arc<Taken>,
    /// Held while names change, so that no content goes that a new record names.
    names: Mutex<()>,
}

impl<C: Contents> Catalogue<C> {
    /// `bound` is in bytes. Removes what no record names: unfinished uploads, and contents whose
    /// record a crash kept from being written.
    pub async fn with(
        contents: C,
        index: Arc<dyn Store>,
        clock: Clock,
        bound: u64,
    ) -> Result<Self> {
        let (taken, names) = (Arc::default(), Mutex::new(()));
        let catalogue = Self { contents, index, clock, bound, taken, names };
        catalogue.sweep().await?;
        Ok(catalogue)
    }

    async fn sweep(&self) -> Result<()> {
        let objects = self.named().await?;
        let named: BTreeSet<_> = objects.iter().map(|object| object.digest.as_str()).collect();
        self.contents.sweep(&named).await
    }

    /// The objects as they are. What they take is counted anew, since others may have changed that.
    async fn named(&self) -> Result<Vec<Object>> {
        let objects = self.list().await?;
        let sizes: BTreeMap<_, _> = objects.iter().map(|o| (o.digest.as_str(), o.size)).collect();
        self.taken.named.store(sizes.values().sum(), Ordering::Relaxed);
        Ok(objects)
    }

    /// Gives what was received its name, or finds that it has it.
    async fn name(
        &self,
        object: &Object,
        upload: Naming,
        received: &mut Received<C::Staged>,
    ) -> Result<bool> {
        let Naming { force, note, mut share } = upload;
        let _names = self.names.lock().await;
        let name = key(&object.name);
        let entry = self.index.get(&name).await?;
        let found = entry.as_ref().map(|entry| decode::<Object>(&entry.value)).transpose()?;
        let is_same = |found: &Object| {
            found.digest == object.digest && found.content_type == object.content_type
        };
        let changed = !found.as_ref().is_some_and(is_same);
        if let Some(found) = &found
            && found.digest != object.digest
            && !force
        {
            let message = format!(
                "the file {} is there with other content; replace it with force",
                object.name
            );
            return Err(Error::new(Kind::Conflict, message));
        }
        let note = |step: Step| match note {
            Some(note) => note(step, object, changed),
            None => Ok(step),
        };
        if !changed {
            self.index.commit(note(Step::new())?).await?;
            return Ok(false);
        }
        let expect = entry.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
        let step = note(Step::new().put(name.as_str(), encode(object)?, expect))?;
        // Whoever has the same content under another name shares it.
        let is_new = !self.is_named(&object.digest).await?;
        self.contents.keep(received, is_new).await?;
        let revision = match self.index.commit(step).await {
            Ok(revision) => revision,
            Err(error) => {
                // Unless the store has said that nothing came of it, the record may stand.
                if is_new && matches!(error.kind(), Kind::Full | Kind::Busy | Kind::Conflict) {
                    let _ = self.drop_content(&object.digest).await;
                } else if is_new {
                    share.keep();
                }
                return Err(error);
            }
        };
        if let Err(error) = self.contents.confirm(received).await {
            let undo = Step::new().delete(name, Expect::Revision(revision));
            self.index.commit(undo.owed()).await?;
            return Err(error);
        }
        if is_new {
            share.keep();
        }
        if let Some(found) = found.filter(|found| found.digest != object.digest) {
            self.drop_content(&found.digest).await?;
        }
        Ok(true)
    }

    async fn is_named(&self, digest: &str) -> Result<bool> {
        Ok(self.named().await?.iter().any(|object| object.digest == digest))
    }

    /// Removes a content that has lost a name, unless it has another.
    async fn drop_content(&self, digest: &str) -> Result<()> {
        let mark = self.contents.mark(digest).await?;
        if self.is_named(digest).await? {
            return Ok(());
        }
        self.contents.remove(digest, mark).await
    }
}

#[async_trait]
impl<C: Contents> Objects for Catalogue<C> {
    async fn put(&self, upload: Upload) -> Result<(Object, bool)> {
        let Upload { name, content_type, mut content, force, note } = upload;
        if self.index.is_shared() {
            let _names = self.names.lock().await;
            self.named().await?;
        }
        let mut share = Share { taken: self.taken.clone(), bytes: 0, bound: self.bound };
        let mut received = self.contents.receive(&mut content, &mut share).await?;
        let (size, digest) = (received.size, received.digest.clone());
        let object = Object { name, size, digest, content_type, at: self.clock.wall() };
        let changed = self.name(&object, Naming { force, note, share }, &mut received).await?;
        match self.find(&object.name).await? {
            Some(found) if !changed => Ok((found, false)),
            _ => Ok((object, changed)),
        }
    }

    async fn find(&self, name: &str) -> Result<Option<Object>> {
        let entry = self.index.get(&key(name)).await?;
        entry.map(|entry| decode(&entry.value)).transpose()
    }

    async fn get(&self, name: &str) -> Result<Option<(Object, Reader)>> {
        let Some(object) = self.find(name).await? else { return Ok(None) };
        let reader = self.contents.open(&object).await?;
        Ok(Some((object, reader)))
    }

    async fn part(&self, digest: &str, offset: u64, most: usize) -> Result<Bytes> {
        if !is_digest(digest) {
            return Err(gone(digest));
        }
        self.contents.part(digest, offset, most).await
    }

    async fn list(&self) -> Result<Vec<Object>> {
        let mut objects = Vec::<Object>::new();
        let mut pages = self.index.pages("object", PAGE);
        while let Some(page) = pages.next().await {
            for entry in &page? {
                objects.push(decode(&entry.value)?);
            }
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    async fn delete(&self, name: &str, note: Option<Noting>) -> Result<bool> {
        let _names = self.names.lock().await;
        let Some(object) = self.find(name).await? else { return Ok(false) };
        // It makes room, whatever else there is to be kept with it.
        let mut step = Step::new().delete(key(name), Expect::Anything).owed();
        if let Some(note) = note {
            step = note(step, &object, true)?;
        }
        self.index.commit(step).await?;
        self.drop_content(&object.digest).await?;
        Ok(true)
    }

    fn bytes(&self) -> u64 {
        self.taken.all()
    }
}

/// What an upload still needs once its content is on the disk.
struct Naming {
    force: bool,
    note: Option<Noting>,
    share: Share,
}

/// What all contents take, in bytes.
#[derive(Default)]
struct Taken {
    /// Those that had a name when that was last looked at.
    named: AtomicU64,
    /// Those on their way.
    coming: AtomicU64,
}

impl Taken {
    fn all(&self) -> u64 {
        self.named.load(Ordering::Relaxed) + self.coming.load(Ordering::Relaxed)
    }
}

/// The part of the bound that an upload takes; given back unless the content is kept.
pub struct Share {
    taken: Arc<Taken>,
    bytes: u64,
    bound: u64,
}

impl Share {
    /// Fails where all objects would take more than they may.
    pub(super) fn grow(&mut self, by: u64) -> Result<()> {
        self.bytes += by;
        self.taken.coming.fetch_add(by, Ordering::Relaxed);
        if self.taken.all() > self.bound {
            let message = format!("the files may take {} bytes together; delete some", self.bound);
            return Err(Error::new(Kind::Full, message));
        }
        Ok(())
    }

    /// The content has a name now. Call it before that is looked at again.
    fn keep(&mut self) {
        self.taken.named.fetch_add(self.bytes, Ordering::Relaxed);
        self.taken.coming.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken.coming.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

pub(super) fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) fn gone(digest: &str) -> Error {
    Error::new(Kind::NotFound, format!("no file has the content {digest}"))
}

/// Names may hold anything, keys may not.
fn key(name: &str) -> String {
    format!("object.{}", URL_SAFE_NO_PAD.encode(name))
}
