//! Objects of a single host: content in files named by digest, their index in the store.
//!
//! A database that holds only small records stays quick to repair and to copy.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Expect, Object, Objects, Reader, Step, Store};
use crate::error::{Error, Kind, Result};
use crate::job::{decode, encode};

pub struct Files {
    dir: PathBuf,
    index: Arc<dyn Store>,
}

impl Files {
    pub fn new(dir: impl Into<PathBuf>, index: Arc<dyn Store>) -> Self {
        Self { dir: dir.into(), index }
    }

    fn path(&self, object: &Object) -> PathBuf {
        self.dir.join(&object.digest)
    }

    async fn find(&self, name: &str) -> Result<Option<Object>> {
        let entry = self.index.get(&key(name)).await?;
        entry.map(|entry| decode(&entry.value)).transpose()
    }

    /// A reader that has the file open keeps its content.
    async fn forget(&self, object: &Object) -> Result<()> {
        let is_shared = self.list().await?.iter().any(|other| other.digest == object.digest);
        if !is_shared {
            fs::remove_file(self.path(object)).await.map_err(failed)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Objects for Files {
    async fn put(&self, name: &str, mut content: Reader) -> Result<Object> {
        // A crash leaves at most a file that no record names; the next start drops those.
        let (mut hash, mut size) = (Sha256::new(), 0);
        let partial = self.dir.join(format!("{}.part", key(name)));
        let mut file = fs::File::create(&partial).await.map_err(failed)?;
        let mut chunk = vec![0; 64 * 1024];
        loop {
            let read = content.read(&mut chunk).await.map_err(failed)?;
            if read == 0 {
                break;
            }
            hash.update(&chunk[..read]);
            size += read as u64;
            file.write_all(&chunk[..read]).await.map_err(failed)?;
        }
        file.sync_all().await.map_err(failed)?;
        let digest = format!("SHA-256={}", URL_SAFE.encode(hash.finalize()));
        let object = Object { name: name.to_owned(), size, digest };
        let replaced = self.find(name).await?;
        fs::rename(&partial, self.path(&object)).await.map_err(failed)?;
        fs::File::open(&self.dir).await.map_err(failed)?.sync_all().await.map_err(failed)?;
        self.index.commit(Step::new().put(key(name), encode(&object)?, Expect::Anything)).await?;
        if let Some(replaced) = replaced {
            self.forget(&replaced).await?;
        }
        Ok(object)
    }

    async fn get(&self, name: &str) -> Result<Option<(Object, Reader)>> {
        let Some(object) = self.find(name).await? else { return Ok(None) };
        let file = fs::File::open(self.path(&object)).await.map_err(failed)?;
        Ok(Some((object, Box::pin(file))))
    }

    async fn list(&self) -> Result<Vec<Object>> {
        let entries = self.index.list("object", "", usize::MAX).await?;
        entries.iter().map(|entry| decode(&entry.value)).collect()
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let Some(object) = self.find(name).await? else { return Ok(()) };
        self.index.commit(Step::new().delete(key(name), Expect::Anything)).await?;
        self.forget(&object).await
    }
}

fn key(name: &str) -> String {
    format!("object.{}", URL_SAFE_NO_PAD.encode(name))
}

fn failed(error: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, "the object store failed").because(error)
}
