//! What is at a path: a file, a link, a directory or nothing.
//!
//! A file is content, mode and owner. One that has more than that, such as a second name or an
//! access list, is refused rather than replaced, because an undo could not bring it back.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode as Permissions, OFlags, Stat};
use rustix::io::Errno;

use super::{Blobs, Cell, CellKind, Digest, Mode, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::hands::{self, Hands};
use crate::host::plan::Set;
use crate::host::reach::Reach;
use crate::host::view::{Object, View, failed};

mod admission;

/// A file of the agent's own user, which everybody may read.
pub fn file(path: impl Into<String>, content: impl Into<Vec<u8>>) -> State {
    let bytes: Arc<[u8]> = content.into().into();
    State { cell: Cell::Node(path.into()), value: value(Digest::of(&bytes)), bytes: Some(bytes) }
}

/// The same with content from the object store.
pub fn object(path: impl Into<String>, content: &Object) -> State {
    let (value, bytes) = (value(content.digest.clone()), content.bytes.clone());
    State { cell: Cell::Node(path.into()), value, bytes }
}

fn value(content: Digest) -> Value {
    Value::File { content, mode: Mode(0o644), owner: OWN.to_owned() }
}

pub fn link(path: impl Into<String>, target: impl Into<String>) -> State {
    State::plain(Cell::Node(path.into()), Value::Link(target.into()))
}

pub fn directory(path: impl Into<String>) -> State {
    let value = Value::Directory { mode: Mode(0o755), owner: OWN.to_owned() };
    State::plain(Cell::Node(path.into()), value)
}

pub fn nothing(path: impl Into<String>) -> State {
    State::plain(Cell::Node(path.into()), Value::Absent)
}

/// The agent's own account and group, whose names only a host can tell.
const OWN: &str = ":";

/// Modes that give whoever runs a file the rights of its owner or group.
const SET_ID: u32 = 0o6000;

/// The path.
pub(super) struct Node<'a>(pub(super) &'a str);

impl Node<'_> {
    /// Opens the file itself, never what a link points to, nor anything that could block.
    fn file(&self, host: &View) -> Result<(File, Stat)> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = host.root.open_exact(self.0, flags).map_err(|error| failed(self.0, error))?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| failed(self.0, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(special(self.0));
        }
        Ok((File::from(fd), stat))
    }
}

impl CellKind for Node<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        let path = self.0;
        let owner = |stat: &Stat| -> Result<String> {
            Ok(format!("{}:{}", host.user_name(stat.st_uid)?, host.group_name(stat.st_gid)?))
        };
        let mode = |stat: &Stat| Mode(stat.st_mode & 0o7777);
        let fd = match host.root.open_exact(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Value::Absent),
            Err(Errno::LOOP) => return Err(detour(path)),
            fd => fd.map_err(|error| failed(path, error))?,
        };
        let stat = rustix::fs::fstat(&fd).map_err(|error| failed(path, error))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let (file, stat) = self.file(host)?;
                let content = Digest::of_all(file).map_err(|error| failed(path, error))?;
                Ok(Value::File { content, mode: mode(&stat), owner: owner(&stat)? })
            }
            FileType::Directory => Ok(Value::Directory { mode: mode(&stat), owner: owner(&stat)? }),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())
                    .map_err(|error| failed(path, error))?;
                let target = target.into_string().map_err(|error| {
                    let message = format!("{path} points to a name that is not UTF-8");
                    Error::new(Kind::Conflict, message).because(error)
                })?;
                Ok(Value::Link(target))
            }
            _ => Err(special(path)),
        }
    }

    fn open<'a>(&self, host: &'a View) -> Result<Box<dyn Read + 'a>> {
        Ok(Box::new(self.file(host)?.0))
    }

    fn check(&self, host: &View, from: &Value, to: &Value) -> Result<()> {
        if !is_plain(self.0) {
            let message = format!("{:?} is not an absolute path without . and ..", self.0);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        self.admit(host, from, to)
    }

    fn assign(&self, hands: &Hands, now: &Value, to: &Value, blobs: &Blobs) -> Result<()> {
        put(hands, self.0, now, to, blobs)
            .map_err(|error| hands::failed("write", self.0, "CAP_DAC_OVERRIDE", error))
    }

    fn reach(&self, to: &Value) -> Reach {
        match to {
            Value::File { mode, .. } | Value::Directory { mode, .. } if mode.0 & SET_ID != 0 => {
                Reach::Files
            }
            _ => Reach::of_path(self.0),
        }
    }

    fn sweep(&self, hands: &Hands, _: &Set) -> Result<()> {
        if let Ok((parent, _)) = hands.root.parent(self.0) {
            let _ = sweep(hands, &parent, self.0);
        }
        Ok(())
    }

    fn is_atomic(&self, from: &Value, to: &Value) -> bool {
        let is_dir = |value: &Value| matches!(value, Value::Directory { .. });
        !(is_dir(from) && is_dir(to))
    }
}

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Whether a path is spelt so that no other spelling without links names the same place.
fn is_plain(path: &str) -> bool {
    let is_name = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.strip_prefix('/').is_some_and(|path| path.split('/').all(is_name)) && !path.contains('\0')
}

/// Whoever owns a directory could put a link in its place that leads elsewhere, at any time
/// between a change and its undo.
fn detour(path: &str) -> Error {
    let message =
        format!("a directory on the way to {path} is a symbolic link; name the real path");
    Error::new(Kind::Conflict, message)
}

fn special(path: &str) -> Error {
    let message = format!("{path} is neither a file nor a link nor a directory");
    Error::new(Kind::Conflict, message)
}

fn put(hands: &Hands, path: &str, now: &Value, to: &Value, blobs: &Blobs) -> std::io::Result<()> {
    let (parent, name) = hands.root.parent(path)?;
    let temporary = sweep(hands, &parent, path)?;
    let made = make(hands, (&parent, name), &temporary, now, to, blobs);
    if made.is_err() {
        // It may be what fills the disk.
        sweep(hands, &parent, path)?;
    }
    made?;
    Ok(rustix::fs::fsync(parent)?)
}

/// Makes what should be there beside it, complete, and then puts it in its place.
fn make(
    hands: &Hands,
    (parent, name): (&OwnedFd, &OsStr),
    temporary: &str,
    now: &Value,
    to: &Value,
    blobs: &Blobs,
) -> std::io::Result<()> {
    match to {
        Value::Absent => {
            let is_dir = matches!(now, Value::Directory { .. });
            let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(parent, name, flags)?;
        }
        Value::Link(target) => {
            rustix::fs::symlinkat(target, parent, temporary)?;
            rustix::fs::renameat(parent, temporary, parent, name)?;
        }
        Value::File { content, mode, owner } => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let mine = Permissions::RUSR | Permissions::WUSR;
            let mut file = File::from(rustix::fs::openat(parent, temporary, flags, mine)?);
            hands.fill(&mut file, content, blobs)?;
            own(hands, &file, *mode, owner)?;
            file.sync_all()?;
            rustix::fs::renameat(parent, temporary, parent, name)?;
        }
        Value::Directory { mode, owner } => {
            let is_new = !matches!(now, Value::Directory { .. });
            if is_new {
                rustix::fs::mkdirat(parent, temporary, Permissions::RWXU)?;
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let at = if is_new { OsStr::new(temporary) } else { name };
            let dir = File::from(rustix::fs::openat(parent, at, flags, Permissions::empty())?);
            own(hands, &dir, *mode, owner)?;
            dir.sync_all()?;
            if is_new {
                rustix::fs::renameat(parent, temporary, parent, name)?;
            }
        }
        Value::Text(_)
        | Value::Package { .. }
        | Value::Hostname { .. }
        | Value::Account(_)
        | Value::Group { .. }
        | Value::Password { .. } => {
            return Err(Errno::INVAL.into());
        }
    }
    Ok(())
}

fn own(hands: &Hands, file: &File, mode: Mode, owner: &str) -> std::io::Result<()> {
    let (user, group) = owner.split_once(':').unwrap_or((owner, owner));
    let id = |table, name| hands.view.id(table, name).map_err(std::io::Error::other);
    let (user, group) = (id("/etc/passwd", user)?, id("/etc/group", group)?);
    let now = rustix::fs::fstat(file)?;
    if (now.st_uid, now.st_gid) != (user, group) {
        std::os::unix::fs::fchown(file, Some(user), Some(group))?;
    }
    // What the directory hands down would grant more than the mode says.
    match rustix::fs::fremovexattr(file, admission::ACCESS_LIST) {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
        Err(error) => return Err(error.into()),
    }
    // After the owner, because changing that drops set-id bits.
    Ok(rustix::fs::fchmod(file, Permissions::from_raw_mode(mode.bits()))?)
}

/// Removes what an interrupted assignment left, and says how its temporary sibling is called: so
/// that whoever finishes the assignment finds it, and nothing else is ever called like it.
fn sweep(hands: &Hands, parent: &OwnedFd, path: &str) -> std::io::Result<String> {
    let key = hands.journal.key().map_err(std::io::Error::other)?;
    let name = Digest::of([&key[..], path.as_bytes()].concat());
    let temporary = format!(".osapi-{}", &name.as_str()[..32]);
    for flags in [AtFlags::empty(), AtFlags::REMOVEDIR] {
        let _ = rustix::fs::unlinkat(parent, &temporary, flags);
    }
    Ok(temporary)
}
