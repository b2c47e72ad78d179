//! Contents that plans name by digest: small ones inside the records, large ones beside them.
//!
//! A blob is `blobs/<digest>`; `blobs/<digest>.<job>` says that the entry of a job names it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::super::cell::{Blobs, Digest};
use super::super::plan::Plan;
use super::super::view::View;
use super::{Journal, failed, private};
use crate::error::{Error, Kind, Result};

/// How many bytes of content ride in a record, each and together.
const SMALL: u64 = 16 * 1024;
const SMALL_TOGETHER: usize = 256 * 1024;

impl Journal {
    /// Makes sure that everything `plan` needs, in either direction, is in the plan itself or on
    /// the disk.
    pub(in crate::host) fn keep(&self, job: &str, plan: &mut Plan, host: &View) -> Result<()> {
        let given = std::mem::take(&mut plan.blobs);
        let mut host = host.bringing(&given);
        let (mut small, mut beside) = (Blobs::new(), false);
        let mut room = SMALL_TOGETHER;
        for set in plan.sets() {
            for (value, is_former) in [(&set.from, true), (&set.to, false), (&set.origin, false)] {
                let Some(digest) = value.content().filter(|digest| !small.contains_key(digest))
                else {
                    continue;
                };
                if self.has(digest) {
                    beside |= self.refer(digest, job)?;
                    continue;
                }
                let mut source: Box<dyn Read + '_> = match given.get(digest) {
                    Some(bytes) => Box::new(&bytes[..]),
                    None if is_former => host.open(&set.cell)?,
                    None => {
                        let message = format!("the content of {} is no longer kept", set.cell);
                        return Err(Error::new(Kind::NotFound, message));
                    }
                };
                let mut bytes = Vec::new();
                let read = source.by_ref().take(SMALL + 1).read_to_end(&mut bytes);
                let length = read.map_err(|error| {
                    let message = format!("cannot read {}: {error}", set.cell);
                    Error::new(Kind::HostFailed, message).because(error)
                })?;
                if length as u64 <= SMALL && length <= room {
                    if Digest::of(&bytes) != *digest {
                        return Err(changed(&set.cell.to_string()));
                    }
                    room -= length;
                    small.insert(digest.clone(), bytes.into());
                } else {
                    // The name comes first: a blob without one may be swept.
                    beside |= self.refer(digest, job)?;
                    let what = set.cell.to_string();
                    self.keep_blob(digest, &mut (&bytes[..]).chain(source), &what)?;
                }
            }
            host.assume(set);
        }
        plan.blobs = small;
        if beside { self.sync("blobs") } else { Ok(()) }
    }

    /// Notes that the entry of `job` names a blob.
    fn refer(&self, digest: &Digest, job: &str) -> Result<bool> {
        let name = self.dir.join("blobs").join(format!("{digest}.{job}"));
        private().write(true).open(name).map_err(failed)?;
        Ok(true)
    }

    pub(in crate::host) fn keep_object(&self, digest: &Digest, from: &mut dyn Read) -> Result<()> {
        if self.has(digest) {
            return Ok(());
        }
        self.keep_blob(digest, from, "an object")?;
        self.sync("blobs")
    }

    fn keep_blob(&self, digest: &Digest, from: &mut dyn Read, what: &str) -> Result<()> {
        let path = self.blob(digest);
        // One that is being fetched and one that is being saved may be the same.
        let mark = std::thread::current().id();
        let temporary = self.dir.join("blobs").join(format!(".new-{mark:?}"));
        match copy(&temporary, from) {
            Ok(kept) if kept == *digest => fs::rename(&temporary, &path).map_err(failed),
            kept => {
                let _ = fs::remove_file(&temporary);
                kept.and_then(|_| Err(changed(what)))
            }
        }
    }

    pub(in crate::host) fn has(&self, digest: &Digest) -> bool {
        self.blob(digest).exists()
    }

    pub(in crate::host) fn content(&self, digest: &Digest) -> Result<File> {
        File::open(self.blob(digest)).map_err(failed)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.as_str())
    }
}

/// Copies content to a new file, and says what it is.
fn copy(to: &Path, from: &mut dyn Read) -> Result<Digest> {
    let mut file = private().write(true).truncate(true).open(to).map_err(failed)?;
    let mut source = Tee { from, to: &mut file, failed: None };
    let digest = Digest::of_all(&mut source);
    if let Some(error) = source.failed {
        return Err(failed(error));
    }
    let digest = digest.map_err(|error| {
        Error::new(Kind::HostFailed, format!("cannot read it: {error}")).because(error)
    })?;
    file.sync_all().map_err(failed)?;
    Ok(digest)
}

fn changed(what: &str) -> Error {
    Error::new(Kind::Conflict, format!("{what} changed while it was being saved"))
}

/// Writes down what is read.
struct Tee<'a> {
    from: &'a mut dyn Read,
    to: &'a mut File,
    /// Why that was not possible.
    failed: Option<std::io::Error>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(buffer)?;
        if let Err(error) = self.to.write_all(&buffer[..n]) {
            self.failed = Some(error);
            return Ok(0);
        }
        Ok(n)
    }
}

/// Contents in a record, in base64.
pub(in crate::host) mod inline {
    use std::collections::BTreeMap;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::host::cell::{Blobs, Digest};

    pub(in crate::host) fn serialize<S: Serializer>(
        blobs: &Blobs,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(blobs.iter().map(|(name, bytes)| (name, STANDARD.encode(bytes))))
    }

    pub(in crate::host) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Blobs, D::Error> {
        let texts = BTreeMap::<Digest, String>::deserialize(deserializer)?;
        let blob = |(name, text): (Digest, String)| {
            let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
            Ok((name, bytes.into()))
        };
        texts.into_iter().map(blob).collect()
    }
}
