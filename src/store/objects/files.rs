//! Contents of a single host, in files named by digest. A database that holds only small records
//! stays quick to repair and to copy.

use std::collections::BTreeSet;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::{Catalogue, Contents, Received, Share, gone, is_digest};
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::store::{Object, Reader, Store, hex};

/// What is read and hashed at a time.
const CHUNK: usize = 64 * 1024;
/// How often, in bytes received, it is looked whether the disk still has room.
const LOOK: u64 = 1 << 20;
/// What an upload leaves of the disk, in bytes: the store needs it more.
const SPARED: u64 = 16 << 20;
const PARTIAL: &str = ".part";

pub type Files = Catalogue<Directory>;

impl Files {
    /// `bound` is in bytes.
    pub async fn open(
        dir: impl Into<PathBuf>,
        index: Arc<dyn Store>,
        clock: Clock,
        bound: u64,
    ) -> Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir).await.map_err(|error| failed(error, &dir))?;
        let directory = Directory { dir, uploads: AtomicU64::new(0) };
        Self::with(directory, index, clock, bound).await
    }
}

/// A directory of contents.
pub struct Directory {
    dir: PathBuf,
    /// Numbers the uploads.
    uploads: AtomicU64,
}

impl Directory {
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
    async fn write(
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
            share.grow(read as u64)?;
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
}

#[async_trait]
impl Contents for Directory {
    type Staged = Partial;

    async fn receive(&self, content: &mut Reader, share: &mut Share) -> Result<Received<Partial>> {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        let staged = Partial(self.dir.join(format!("{number}{PARTIAL}")));
        let (size, digest) = self.write(content, &staged.0, share).await?;
        Ok(Received { size, digest, staged })
    }

    async fn keep(&self, received: &mut Received<Partial>, is_new: bool) -> Result<()> {
        if is_new {
            let path = self.path(&received.digest);
            let renamed = fs::rename(&received.staged.0, &path).await;
            renamed.map_err(|error| failed(error, &path))?;
            let dir = fs::File::open(&self.dir).await.map_err(|e| failed(e, &self.dir))?;
            dir.sync_all().await.map_err(|error| failed(error, &self.dir))?;
        }
        Ok(())
    }

    async fn confirm(&self, _: &Received<Partial>) -> Result<()> {
        Ok(())
    }

    async fn mark(&self, _: &str) -> Result<u64> {
        Ok(0)
    }

    async fn remove(&self, digest: &str, _: u64) -> Result<()> {
        let path = self.path(digest);
        match fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error, &path)),
            _ => Ok(()),
        }
    }

    /// A reader that has the file open keeps it.
    async fn open(&self, object: &Object) -> Result<Reader> {
        let path = self.path(&object.digest);
        let file = fs::File::open(&path).await.map_err(|error| failed(error, &path))?;
        Ok(Box::pin(file))
    }

    async fn part(&self, digest: &str, offset: u64, most: usize) -> Result<Bytes> {
        let path = self.path(digest);
        let mut file = match fs::File::open(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(gone(digest)),
            file => file.map_err(|error| failed(error, &path))?,
        };
        file.seek(SeekFrom::Start(offset)).await.map_err(|error| failed(error, &path))?;
        let mut part = Vec::with_capacity(most.min(CHUNK));
        let read = file.take(most as u64).read_to_end(&mut part).await;
        read.map_err(|error| failed(error, &path))?;
        Ok(part.into())
    }

    async fn sweep(&self, named: &BTreeSet<&str>) -> Result<()> {
        let mut files = fs::read_dir(&self.dir).await.map_err(|e| failed(e, &self.dir))?;
        while let Some(file) = files.next_entry().await.map_err(|e| failed(e, &self.dir))? {
            let is_ours = file.file_name().to_str().is_some_and(|name| {
                name.ends_with(PARTIAL) || is_digest(name) && !named.contains(name)
            });
            if is_ours {
                fs::remove_file(file.path()).await.map_err(|e| failed(e, &file.path()))?;
            }
        }
        Ok(())
    }
}

/// The file of an upload. Goes with it unless the content was given its name.
pub struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Not there any more once it has been renamed.
        let _ = std::fs::remove_file(&self.0);
    }
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
