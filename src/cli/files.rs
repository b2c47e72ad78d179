//! The files that a person names: what is uploaded, and where an export goes.

#![expect(
    clippy::disallowed_types,
    reason = "the command line reads and writes as its user, not as the agent of a host"
)]

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::client::unreadable;
use crate::error::{Error, Kind, Result};

/// The SHA-256 of a file, in hexadecimal, and its size in bytes.
pub(super) fn digest(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(|error| unreadable(path, error))?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut piece = vec![0; 64 << 10];
    loop {
        let length = file.read(&mut piece).map_err(|error| unreadable(path, error))?;
        if length == 0 {
            break;
        }
        hash.update(&piece[..length]);
        size += length as u64;
    }
    let mut text = String::with_capacity(64);
    for byte in hash.finalize() {
        _ = write!(text, "{byte:02x}");
    }
    Ok((text, size))
}

/// The lines of a file, none longer than `limit` bytes.
pub(super) fn lines(path: &Path, limit: u64) -> Result<impl Iterator<Item = Result<Vec<u8>>>> {
    let file = File::open(path).map_err(|error| unreadable(path, error))?;
    let mut file = BufReader::new(file);
    let path = path.to_owned();
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        match (&mut file).take(limit).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(length) if length as u64 == limit && line.last() != Some(&b'\n') => {
                let what = format!("cannot read {}: a line is too long", path.display());
                Some(Err(Error::new(Kind::InvalidInput, what)))
            }
            Ok(_) => {
                if line.last() == Some(&b'\n') {
                    line.pop();
                }
                Some(Ok(line))
            }
            Err(error) => Some(Err(unreadable(&path, error))),
        }
    }))
}

/// The whole of a small file; None where it cannot be read.
pub(super) fn small(path: &Path) -> Option<String> {
    text(path).ok()
}

/// The beginning of a file, at most 4 MiB. A pipe is not waited for.
pub(super) fn text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let mut options = OpenOptions::new();
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = options.read(true).custom_flags(flags).open(path)?;
    file.take(4 << 20).read_to_string(&mut text)?;
    Ok(text)
}

/// Where `socket` is, looked through links, if its directory is one that its owner alone can put
/// a socket into and that only root or the account `own` can have given to that owner.
pub(super) fn kept_for_owner(socket: &Path, own: u32) -> Option<PathBuf> {
    let is_safe = |dir: &Path, owners: Option<[u32; 2]>| {
        let meta = std::fs::symlink_metadata(dir);
        meta.is_ok_and(|meta| {
            let is_open = meta.mode() & 0o022 != 0;
            meta.is_dir() && !is_open && owners.is_none_or(|owners| owners.contains(&meta.uid()))
        })
    };
    let dir = std::fs::canonicalize(socket.parent()?).ok()?;
    let mut above = dir.ancestors().skip(1);
    let is_kept = is_safe(&dir, None) && above.all(|dir| is_safe(dir, Some([0, own])));
    is_kept.then(|| dir.join(socket.file_name().unwrap_or_default()))
}

/// A file that is written line by line, for its owner only. It takes its place when it is whole, so
/// that what was there before stays until then.
pub(super) struct Lines {
    file: BufWriter<File>,
    path: PathBuf,
    /// Where it is until then; nowhere else where `path` is no file, such as a pipe.
    part: Option<PathBuf>,
}

impl Lines {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let is_file = std::fs::metadata(path).map_or(true, |meta| meta.is_file());
        // A link goes on leading to it.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let part = is_file.then(|| {
            let mut name = path.clone().into_os_string();
            name.push(".part");
            PathBuf::from(name)
        });
        let mut options = OpenOptions::new();
        let place = part.as_ref().unwrap_or(&path);
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(place);
        let file = file.map_err(|error| unwritable(place, error))?;
        Ok(Self { file: BufWriter::new(file), path, part })
    }

    pub(super) fn add(&mut self, line: &str) -> Result<()> {
        let written =
            self.file.write_all(line.as_bytes()).and_then(|()| self.file.write_all(b"\n"));
        written.map_err(|error| unwritable(&self.path, error))
    }

    pub(super) fn end(mut self) -> Result<()> {
        let mut ended = self.file.flush();
        if let Some(part) = self.part.as_ref().filter(|_| ended.is_ok()) {
            ended = self.file.get_ref().sync_all().and_then(|()| std::fs::rename(part, &self.path));
        }
        if ended.is_ok() {
            self.part = None;
        }
        ended.map_err(|error| unwritable(&self.path, error))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            drop(std::fs::remove_file(part));
        }
    }
}

fn unwritable(path: &Path, error: std::io::Error) -> Error {
    let what = format!("cannot write {}: {error}", path.display());
    Error::new(Kind::InvalidInput, what).because(error)
}
