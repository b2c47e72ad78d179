//! The directory under which a host's files live: `/`, or a temporary one in tests.
//!
//! It is the only seam for tests. Under another root the same code reads the same paths and runs
//! the same command names, only they are files and scripts that the test put there.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io;

use crate::error::{Error, Kind, Result};

/// How often the kernel is asked again for what it could not resolve because of a rename.
const TRIES: usize = 256;

#[derive(Clone, Debug)]
pub struct Root {
    path: PathBuf,
    fd: Arc<OnceLock<OwnedFd>>,
}

impl Root {
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), fd: Arc::default() }
    }

    /// Whether somebody else can be asked to wake up when the time for a confirmation is over.
    /// The service manager of the system does what root asks it, and nobody else.
    pub(super) fn has_service_manager(&self) -> bool {
        let may_ask = !self.is_real() || rustix::process::geteuid().is_root();
        may_ask && self.path.join("run/systemd/system").exists()
    }

    /// This program as others are to start it, and the directory that it is to take for `/` where
    /// that is another.
    pub(super) fn osapi(&self) -> Result<(PathBuf, Option<&Path>)> {
        if !self.is_real()
            && let Ok(path) = self.command("osapi")
        {
            return Ok((path, Some(&self.path)));
        }
        let own = std::env::current_exe().map_err(|error| {
            let message = format!("cannot find the program osapi: {error}");
            Error::new(Kind::HostFailed, message).because(error)
        })?;
        let own = own.to_string_lossy();
        // So the kernel calls a program that was replaced; an upgrade puts the next one there.
        let own = own.strip_suffix(" (deleted)").unwrap_or(&own);
        Ok((own.into(), None))
    }

    pub(super) fn is_real(&self) -> bool {
        self.path == Path::new("/")
    }

    /// Where `path` is for those who do not live under this root.
    pub fn real(&self, path: &str) -> PathBuf {
        self.path.join(path.trim_start_matches('/'))
    }

    pub fn open(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlags::empty())
    }

    /// The same for what may be changed: no link on the way is followed, for whoever may put one
    /// there would choose what is changed. `LOOP` where there is one.
    pub fn open_exact(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlags::NO_SYMLINKS)
    }

    /// What `name` leads to, to be read; nothing outside `directory`.
    pub fn open_below(&self, directory: &str, name: &str) -> io::Result<OwnedFd> {
        let directory = self.open(directory, OFlags::PATH | OFlags::DIRECTORY)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve)
    }

    fn resolve(&self, path: &str, flags: OFlags, more: ResolveFlags) -> io::Result<OwnedFd> {
        // IN_ROOT makes the kernel resolve `..` and absolute links as after chroot(2), so a
        // hostile link under the root cannot lead out of it.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
        let flags = flags | OFlags::CLOEXEC;
        let fd = self.fd()?;
        let open = || rustix::fs::openat2(fd, path, flags, Mode::empty(), resolve);
        // The kernel does not follow `..`, which is in most links to /usr, while anything anywhere
        // is renamed, as during an upgrade.
        let mut tries = (0..TRIES).map(|_| open());
        tries
            .find(|opened| !matches!(opened, Err(io::Errno::AGAIN)))
            .unwrap_or(Err(io::Errno::AGAIN))
    }

    fn fd(&self) -> io::Result<&OwnedFd> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.path, flags, Mode::empty())?;
        Ok(self.fd.get_or_init(|| fd))
    }

    /// The directory that holds `path`, and its name in there.
    pub fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a OsStr)> {
        let path = Path::new(path);
        let (Some(parent), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name())
        else {
            return Err(io::Errno::INVAL);
        };
        Ok((self.open_exact(parent, OFlags::RDONLY | OFlags::DIRECTORY)?, name))
    }

    /// Finds a command by its bare name in the system directories, never in `PATH`.
    pub fn command(&self, name: &str) -> Result<PathBuf> {
        ["usr/sbin", "usr/bin", "sbin", "bin"]
            .iter()
            .map(|dir| self.path.join(dir).join(name))
            .find(|path| path.exists())
            .ok_or_else(|| Error::new(Kind::Unsupported, format!("{name} is not installed")))
    }

    /// The program that an act names: by its path, or by its bare name.
    pub(super) fn program(&self, name: &str) -> Result<PathBuf> {
        let path = if let Some(path) = name.strip_prefix('/') {
            self.path.join(path)
        } else if name.is_empty() || name.contains('/') {
            let message = format!("{name:?} is neither an absolute path nor the name of a program");
            return Err(Error::new(Kind::InvalidInput, message));
        } else {
            self.command(name).unwrap_or_else(|_| self.path.join("usr/bin").join(name))
        };
        if path.is_file() {
            return Ok(path);
        }
        Err(Error::new(Kind::NotFound, format!("there is no program {name} on this host")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn links_are_followed_while_others_rename() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["etc", "usr"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("usr/release"), "").unwrap();
        std::fs::write(at("one"), "").unwrap();
        std::os::unix::fs::symlink("../usr/release", at("etc/release")).unwrap();
        let (root, is_over) = (Root::at(dir.path()), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::fs::rename(at("one"), at("other")).unwrap();
                    std::fs::rename(at("other"), at("one")).unwrap();
                }
            });
            let opened: Vec<_> = (0..2000)
                .filter_map(|_| root.open("/etc/release", OFlags::RDONLY).map(drop).err())
                .collect();
            is_over.store(true, Ordering::Relaxed);
            assert!(opened.is_empty(), "{opened:?}");
        });
    }
}
