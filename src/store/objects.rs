//! Objects of a single host: content in files named by digest, their index in the store.
//!
//! A database that holds only small records stays quick to repair and to copy. Content is durable
//! before its record names it, so that a crash leaves at most a file without a name; those are
//! swept when the objects are opened.

use std::collections::{BTreeMap, BTreeSet};
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::Mutex;

use super::{Expect, Noting, Object, Objects, Order, Reader, Step, Store, Upload, hex};
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::job::{decode, encode};

/// What is read and hashed at a time.
const CHUNK: usize = 64 * 1024;
/// How often, in bytes received, it is looked whether the disk still has room.
const LOOK: u64 = 1 << 20;
/// What an upload leaves of the disk, in bytes: the store needs it more.
const SPARED: u64 = 16 << 20;
/// What one page of the index holds.
const PAGE: usize = 512;

pub struct Files {
    dir: PathBuf,
    index: Arc<dyn Store>,
    clock: Clock,
    /// What all contents may take together.
    bound: u64,
    /// What they take, uploads on their way included.
    bytes: Arc<AtomicU64>,
    /// Numbers the uploads.
    uploads: AtomicU64,
    /// Held while names and files change, so that no file goes that a new record names.
    names: Mutex<()>,
}

impl Files {
    /// `bound` is in bytes. Removes what no record names: unfinished uploads, and contents whose
    /// record a crash kept from being written.
    pub async fn open(
        dir: impl Into<PathBuf>,
        index: Arc<dyn Store>,
        clock: Clock,
        bound: u64,
    ) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).await.map_err(|error| failed(error, &dir))?;
        let files = Self {
            dir,
            index,
            clock,
            bound,
            bytes: Arc::default(),
            uploads: AtomicU64::new(0),
            names: Mutex::new(()),
        };
        files.sweep().await?;
        Ok(files)
    }

    async fn sweep(&self) -> Result<()> {
        let objects = self.list().await?;
        let named: BTreeSet<_> = objects.iter().map(|object| object.digest.as_str()).collect();
        let mut files = fs::read_dir(&self.dir).await.map_err(|e| failed(e, &self.dir))?;
        while let Some(file) = files.next_entry().await.map_err(|e| failed(e, &self.dir))? {
            let is_ours = file.file_name().to_str().is_some_and(|name| {
                name.ends_with(PARTIAL) || is_digest(name) && !named.contains(name)
            });
            if is_ours {
                fs::remove_file(file.path()).await.map_err(|e| failed(e, &file.path()))?;
            }
        }
        let sizes: BTreeMap<_, _> = objects.iter().map(|o| (o.digest.as_str(), o.size)).collect();
        self.bytes.store(sizes.values().sum(), Ordering::Relaxed);
        Ok(())
    }

    fn path(&self, digest: &str) -> PathBuf {
        self.dir.join(digest)
    }

    /// Fails where an upload would take the last room there is.
    fn spare(&self) -> Result<()> {
        let space = rustix::fs::statvfs(&self.dir);
        if space.is_ok_and(|space| space.f_bavail.saturating_mul(space.f_frsize) < SPARED) {
            let message = "the disk of the file store is nearly full; make room";
            return Err(Error::new(Kind::Full, message));
        }
        Ok(())
    }

    /// Writes all of `content` to `file` and to the disk; returns its size and digest.
    async fn receive(
        &self,
        content: &mut Reader,
        path: &Path,
        share: &mut Share,
    ) -> Result<(u64, String)> {
        let mut file = fs::File::create(path).await.map_err(|error| failed(error, path))?;
        let (mut hash, mut size) = (Sha256::new(), 0);
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = content.read(&mut chunk).await.map_err(|error| {
                Error::new(Kind::InvalidInput, "the upload broke off").because(error)
            })?;
            if read == 0 {
                break;
            }
            share.grow(read as u64, self.bound)?;
            if size / LOOK != (size + read as u64) / LOOK {
                self.spare()?;
            }
            hash.update(&chunk[..read]);
            size += read as u64;
            file.write_all(&chunk[..read]).await.map_err(|error| failed(error, path))?;
        }
        file.sync_all().await.map_err(|error| failed(error, path))?;
        Ok((size, hex(&hash.finalize())))
    }

    /// Gives the content in `partial` its name, or finds that it has it.
    async fn name(&self, object: &Object, upload: Naming, partial: &Path) -> Result<bool> {
        let Naming { force, note, mut share } = upload;
        let _names = self.names.lock().await;
        let key = key(&object.name);
        let entry = self.index.get(&key).await?;
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
        let step = note(Step::new().put(key, encode(object)?, expect))?;
        // Whoever has the same content under another name shares its file.
        let is_new = !self.is_named(&object.digest).await?;
        let path = self.path(&object.digest);
        if is_new {
            fs::rename(partial, &path).await.map_err(|error| failed(error, &path))?;
            let dir = fs::File::open(&self.dir).await.map_err(|e| failed(e, &self.dir))?;
            dir.sync_all().await.map_err(|error| failed(error, &self.dir))?;
        }
        if let Err(error) = self.index.commit(step).await {
            // Unless the store has said that nothing came of it, the record may stand.
            if is_new && matches!(error.kind(), Kind::Full | Kind::Busy | Kind::Conflict) {
                let _ = fs::remove_file(&path).await;
            } else if is_new {
                share.keep();
            }
            return Err(error);
        }
        if is_new {
            share.keep();
        }
        if let Some(found) = found.filter(|found| found.digest != object.digest) {
            self.forget(&found).await?;
        }
        Ok(true)
    }

    async fn is_named(&self, digest: &str) -> Result<bool> {
        Ok(self.list().await?.iter().any(|object| object.digest == digest))
    }

    /// Removes the content of an object that no longer is, unless another one shares it. A reader
    /// that has the file open keeps it.
    async fn forget(&self, object: &Object) -> Result<()> {
        if self.is_named(&object.digest).await? {
            return Ok(());
        }
        let path = self.path(&object.digest);
        match fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error, &path)),
            _ => {
                self.bytes.fetch_sub(object.size, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Objects for Files {
    async fn put(&self, upload: Upload) -> Result<(Object, bool)> {
        let Upload { name, content_type, mut content, force, note } = upload;
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        let partial = Partial(self.dir.join(format!("{number}{PARTIAL}")));
        let mut share = Share { all: self.bytes.clone(), bytes: 0 };
        let (size, digest) = self.receive(&mut content, &partial.0, &mut share).await?;
        let object = Object { name, size, digest, content_type, at: self.clock.wall() };
        let changed = self.name(&object, Naming { force, note, share }, &partial.0).await?;
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
        let path = self.path(&object.digest);
        let file = fs::File::open(&path).await.map_err(|error| failed(error, &path))?;
        Ok(Some((object, Box::pin(file))))
    }

    async fn part(&self, digest: &str, offset: u64, most: usize) -> Result<Bytes> {
        let gone = || Error::new(Kind::NotFound, format!("no file has the content {digest}"));
        if !is_digest(digest) {
            return Err(gone());
        }
        let path = self.path(digest);
        let mut file = match fs::File::open(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(gone()),
            file => file.map_err(|error| failed(error, &path))?,
        };
        file.seek(SeekFrom::Start(offset)).await.map_err(|error| failed(error, &path))?;
        let mut part = Vec::with_capacity(most.min(CHUNK));
        let read = file.take(most as u64).read_to_end(&mut part).await;
        read.map_err(|error| failed(error, &path))?;
        Ok(part.into())
    }

    async fn list(&self) -> Result<Vec<Object>> {
        let (mut objects, mut after) = (Vec::<Object>::new(), String::new());
        loop {
            let page = self.index.list("object", &after, PAGE, Order::Ascending).await?;
            let Some(last) = page.last() else { break };
            after.clone_from(&last.key);
            for entry in &page {
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
        self.forget(&object).await?;
        Ok(true)
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What an upload still needs once its content is on the disk.
struct Naming {
    force: bool,
    note: Option<Noting>,
    share: Share,
}

const PARTIAL: &str = ".part";

/// The file of an upload. Goes with it unless the content was given its name.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Not there any more once it has been renamed.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The part of the bound that an upload takes; given back unless the content is kept.
struct Share {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Share {
    fn grow(&mut self, by: u64, bound: u64) -> Result<()> {
        self.bytes += by;
        if self.all.fetch_add(by, Ordering::Relaxed) + by > bound {
            let message = format!("the files may take {bound} bytes together; delete some");
            return Err(Error::new(Kind::Full, message));
        }
        Ok(())
    }

    fn keep(&mut self) {
        self.bytes = 0;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Names may hold anything, keys may not.
fn key(name: &str) -> String {
    format!("object.{}", URL_SAFE_NO_PAD.encode(name))
}

fn failed(error: std::io::Error, path: &Path) -> Error {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};

    if matches!(error.kind(), StorageFull | QuotaExceeded) {
        let message = "there is no room for the file on the disk; make room";
        return Error::new(Kind::Full, message).because(error);
    }
    let message = format!("cannot use {} in the file store", path.display());
    Error::new(Kind::Unavailable, message).because(error)
}
