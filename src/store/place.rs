//! Whose a controller's state directory is: one process works with it at a time, wherever the store
//! itself is.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::error::{Error, Kind, Result};

const LOCK: &str = "controller.lock";

/// Keeps others out for as long as the result is kept, and says who is in.
pub(crate) fn hold(dir: &Path) -> Result<OwnedFd> {
    let path = dir.join(LOCK);
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| unusable(error, &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = [0; 16];
            let read = rustix::io::pread(&file, &mut text, 0).unwrap_or(0);
            let holder = std::str::from_utf8(&text[..read]).ok().map(str::trim);
            return Err(taken(dir, holder.filter(|holder| !holder.is_empty())));
        }
        Err(error) => return Err(unusable(error, &path)),
    }
    let holder = format!("{}\n", std::process::id());
    // Only for the message above; a full disk is no reason to refuse to start.
    let _ = rustix::fs::ftruncate(&file, 0);
    let _ = rustix::io::pwrite(&file, holder.as_bytes(), 0);
    Ok(file)
}

pub(super) fn taken(place: &Path, holder: Option<&str>) -> Error {
    let holder = holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let message = format!("another osapi{holder} has {} open; stop it first", place.display());
    Error::new(Kind::Conflict, message)
}

fn unusable(error: rustix::io::Errno, path: &Path) -> Error {
    let full = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT].contains(&error);
    let (kind, what) = if full {
        (Kind::Full, "there is no room on the disk to open")
    } else {
        (Kind::Unavailable, "cannot open")
    };
    Error::new(kind, format!("{what} {}: {error}", path.display())).because(error)
}
