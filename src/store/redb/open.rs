//! The files of the store: which there are, whose they are, and what is done when one is damaged.
//!
//! The format's number is in the name of the database, so that a newer one is refused unopened. A
//! lock of our own keeps a second process out, also in the moments in which the database is opened
//! again. What the engine refuses is never repaired in place.

#![expect(clippy::disallowed_types, reason = "the engine's backend is made of a file")]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, StorageBackend};
use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};

use super::held::Held;
use super::is_no_room;
use crate::error::{Error, Kind, Result};
use crate::store::place::{hold, taken};

const FORMAT: u32 = 1;
const RESERVE: &str = "controller.reserve";
/// The engine's default would be 1 GiB, and it uses what it is given.
const CACHE: usize = 8 << 20;

/// Where the database comes from, each time that it is opened.
pub(super) struct Source {
    make: Box<dyn Fn() -> io::Result<Box<dyn StorageBackend>> + Send>,
    home: Option<Home>,
}

/// The directory of a store that lives in files.
struct Home {
    dir: PathBuf,
    /// Locked for as long as this process has the store.
    _lock: OwnedFd,
}

impl Source {
    /// Takes hold of the store in `dir`, which is made if need be, and touches nothing there if
    /// it is not ours to open.
    pub(super) fn at(dir: &Path) -> Result<Self> {
        let is_there = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        is_there.map_err(|error| unusable(error, dir))?;
        refuse_newer(dir)?;
        let lock = hold(dir)?;
        let path = dir.join(format!("controller-{FORMAT}.redb"));
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let failed = |error: rustix::io::Errno| unusable(error.into(), &path);
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        let file = File::from(file);
        if rustix::fs::fstat(&file).map_err(failed)?.st_size == 0 {
            // A file that is lost with its directory's page would take with it what it holds.
            directory(dir).and_then(rustix::fs::fsync).map_err(failed)?;
        }
        // After a crash all of it is read, mostly in no order that the kernel could guess.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::WillNeed);
        // One descriptor for good: a disk that has become read-only would not give another.
        let make = Box::new(move || -> io::Result<Box<dyn StorageBackend>> {
            Ok(Box::new(FileBackend::new(file.try_clone()?).map_err(io::Error::other)?))
        });
        Ok(Self { make, home: Some(Home { dir: dir.to_owned(), _lock: lock }) })
    }

    /// A store on whatever `backend` makes, which is asked again each time the store is opened.
    pub(super) fn from<B: StorageBackend>(
        backend: impl Fn() -> io::Result<B> + Send + 'static,
    ) -> Self {
        let make =
            Box::new(move || -> io::Result<Box<dyn StorageBackend>> { Ok(Box::new(backend()?)) });
        Self { make, home: None }
    }

    /// The database, and what it writes to, which has to be released for anything to be written.
    pub(super) fn open(&self) -> Result<(Database, Held)> {
        // The engine takes much of what it reads for granted.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let held = Held::new((self.make)()?)?;
            Ok((builder().create_with_backend(held.clone())?, held))
        }));
        let error: DatabaseError = match opened {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(error)) => error,
            Err(_) => redb::StorageError::Corrupted("the engine panics".to_owned()).into(),
        };
        let place = self.home.as_ref().map_or_else(PathBuf::new, Home::database);
        Err(match error {
            DatabaseError::DatabaseAlreadyOpen => taken(&place, None),
            DatabaseError::Storage(redb::StorageError::Io(error)) if is_damage(&error) => {
                self.damaged(error)
            }
            DatabaseError::Storage(redb::StorageError::Io(error)) => unusable(error, &place),
            error => self.damaged(error),
        })
    }

    /// Tries on a copy whether the database can be repaired, and says what to do.
    fn damaged(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        let Some(home) = &self.home else {
            return Error::new(Kind::Unavailable, "the state store is damaged").because(error);
        };
        let (path, copy) = (home.database(), home.dir.join("controller.repaired"));
        let repaired = std::fs::copy(&path, &copy).is_ok_and(|_| is_repaired(&copy));
        let message = if repaired {
            format!(
                "{} is damaged and was left as it is; a repaired copy is {}: keep the original \
                 elsewhere, move the copy to its place, and start again",
                path.display(),
                copy.display()
            )
        } else {
            let _ = std::fs::remove_file(&copy);
            format!(
                "{} is damaged beyond repair and was left as it is; put a backup in its place, or \
                 move it away to begin with an empty store",
                path.display()
            )
        };
        Error::new(Kind::Unavailable, message).because(error)
    }

    /// Bytes that are free where the store is; `None` where that is nowhere.
    pub(super) fn free(&self) -> Option<u64> {
        let space = rustix::fs::statvfs(&self.home.as_ref()?.dir).ok()?;
        Some(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// Sets `bytes` of the disk aside. Without room for that there is simply none.
    pub(super) fn reserve(&self, bytes: u64) {
        let Some(home) = &self.home else { return };
        let (path, flags) =
            (home.dir.join(RESERVE), OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC);
        let kept = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .and_then(|file| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes));
        if kept.is_err() {
            self.release();
        }
    }

    /// Gives up what was set aside.
    pub(super) fn release(&self) {
        if let Some(home) = &self.home {
            let _ = std::fs::remove_file(home.dir.join(RESERVE));
        }
    }
}

impl Home {
    fn database(&self) -> PathBuf {
        self.dir.join(format!("controller-{FORMAT}.redb"))
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

fn refuse_newer(dir: &Path) -> Result<()> {
    for file in std::fs::read_dir(dir).map_err(|error| unusable(error, dir))? {
        let name = file.map_err(|error| unusable(error, dir))?.file_name();
        let format = name
            .to_str()
            .and_then(|name| name.strip_prefix("controller-")?.strip_suffix(".redb"))
            .and_then(|format| format.parse::<u32>().ok());
        if format.is_some_and(|format| format > FORMAT) {
            let message = format!(
                "{} was made by a newer osapi; run that one, or give this one a state directory \
                 of its own",
                dir.join(name).display()
            );
            return Err(Error::new(Kind::Unavailable, message));
        }
    }
    Ok(())
}

fn directory(dir: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn is_repaired(copy: &Path) -> bool {
    let check = || builder().open(copy).and_then(|mut db| db.check_integrity()).is_ok();
    catch_unwind(check).unwrap_or(false)
}

fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn unusable(error: io::Error, path: &Path) -> Error {
    if is_no_room(&error) {
        let message = format!("there is no room on the disk to open {}; make room", path.display());
        return Error::new(Kind::Full, message).because(error);
    }
    let message = format!("cannot open {}: {error}", path.display());
    Error::new(Kind::Unavailable, message).because(error)
}
