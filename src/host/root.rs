//! The directory under which a host's files live: `/`, or a temporary one in tests.
//!
//! It is the only seam for tests. Under another root the same code reads the same paths and runs
//! the same command names, only they are files and scripts that the test put there.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io;

use crate::error::{Error, Kind, Result};

#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Whether commands can be handed to a service manager, which outlives this process.
    pub fn has_systemd(&self) -> bool {
        self.0 == Path::new("/") && Path::new("/run/systemd/system").exists()
    }

    pub fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let root = rustix::fs::open(&self.0, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        // IN_ROOT makes the kernel resolve `..` and absolute links as after chroot(2), so a
        // hostile link under the root cannot lead out of it.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// The directory that holds `path`, and its name in there.
    pub fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a OsStr)> {
        let path = Path::new(path);
        let (Some(parent), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name())
        else {
            return Err(io::Errno::INVAL);
        };
        Ok((self.open(parent, OFlags::RDONLY | OFlags::DIRECTORY)?, name))
    }

    /// Finds a command by its bare name in the system directories, never in `PATH`.
    pub fn command(&self, name: &str) -> Result<PathBuf> {
        ["usr/sbin", "usr/bin", "sbin", "bin"]
            .iter()
            .map(|dir| self.0.join(dir).join(name))
            .find(|path| path.exists())
            .ok_or_else(|| Error::new(Kind::Unsupported, format!("{name} is not installed")))
    }
}
