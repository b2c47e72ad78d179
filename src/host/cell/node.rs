//! What is at a path: a file, a link, a directory or nothing.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode as Permissions, OFlags};
use rustix::io::Errno;

use super::{Cell, CellKind, Digest, Mode, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::hands::{self, Hands};
use crate::host::view::{Object, View, failed};

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

/// The path.
pub(super) struct Node<'a>(pub(super) &'a str);

impl CellKind for Node<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        let path = self.0;
        let owner = |uid: u32, gid: u32| -> Result<String> {
            let (user, group) = (uid.to_string(), gid.to_string());
            Ok(format!("{}:{}", host.name("/etc/passwd", &user)?, host.name("/etc/group", &group)?))
        };
        let fd = match host.root.open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Value::Absent),
            fd => fd.map_err(|error| failed(path, error))?,
        };
        let stat = rustix::fs::fstat(&fd).map_err(|error| failed(path, error))?;
        let mode = Mode(stat.st_mode & 0o7777);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let file = self.open(host)?;
                let content = Digest::of_all(file).map_err(|error| failed(path, error))?;
                Ok(Value::File { content, mode, owner: owner(stat.st_uid, stat.st_gid)? })
            }
            FileType::Directory => {
                Ok(Value::Directory { mode, owner: owner(stat.st_uid, stat.st_gid)? })
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, "", Vec::new())
                    .map_err(|error| failed(path, error))?;
                Ok(Value::Link(target.to_string_lossy().into_owned()))
            }
            _ => Err(Error::new(Kind::Conflict, format!("{path} is not a file"))),
        }
    }

    fn open<'a>(&self, host: &'a View) -> Result<Box<dyn Read + 'a>> {
        let fd = host.root.open(self.0, OFlags::RDONLY).map_err(|error| failed(self.0, error))?;
        Ok(Box::new(File::from(fd)))
    }

    fn assign(&self, hands: &Hands, now: &Value, to: &Value) -> Result<()> {
        put(hands, self.0, now, to)
            .map_err(|error| hands::failed(format!("cannot write {}: {error}", self.0), error))
    }

    fn sweep(&self, hands: &Hands) {
        if let Ok((parent, name)) = hands.root.parent(self.0) {
            sweep(&parent, name);
        }
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

fn put(hands: &Hands, path: &str, now: &Value, to: &Value) -> std::io::Result<()> {
    let (parent, name) = hands.root.parent(path)?;
    let temporary = sweep(&parent, name);
    match to {
        Value::Absent => {
            let is_dir = matches!(now, Value::Directory { .. });
            let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(&parent, name, flags)?;
        }
        Value::Link(target) => {
            rustix::fs::symlinkat(target, &parent, &temporary)?;
            rustix::fs::renameat(&parent, &temporary, &parent, name)?;
        }
        Value::File { content, mode, owner } => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(
                &parent,
                &temporary,
                flags,
                Permissions::RUSR | Permissions::WUSR,
            )?;
            let mut file = File::from(fd);
            fill(hands, &mut file, content)?;
            own(hands, &file, *mode, owner)?;
            file.sync_all()?;
            rustix::fs::renameat(&parent, &temporary, &parent, name)?;
        }
        Value::Directory { mode, owner } => {
            let is_new = !matches!(now, Value::Directory { .. });
            if is_new {
                rustix::fs::mkdirat(&parent, &temporary, Permissions::RWXU)?;
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let at = if is_new { &temporary } else { name };
            let dir = File::from(rustix::fs::openat(&parent, at, flags, Permissions::empty())?);
            own(hands, &dir, *mode, owner)?;
            dir.sync_all()?;
            if is_new {
                rustix::fs::renameat(&parent, &temporary, &parent, name)?;
            }
        }
        _ => return Err(Errno::INVAL.into()),
    }
    Ok(rustix::fs::fsync(parent)?)
}

fn fill(hands: &Hands, file: &mut File, content: &Digest) -> std::io::Result<()> {
    let mut source = hands.journal.content(content).map_err(std::io::Error::other)?;
    std::io::copy(&mut source, file).map(drop)
}

fn own(hands: &Hands, file: &File, mode: Mode, owner: &str) -> std::io::Result<()> {
    let (user, group) = owner.split_once(':').unwrap_or((owner, owner));
    let id = |table, name| hands.view.id(table, name).map_err(std::io::Error::other);
    let (user, group) = (id("/etc/passwd", user)?, id("/etc/group", group)?);
    std::os::unix::fs::fchown(file, Some(user), Some(group))?;
    // After the owner, because changing that drops set-id bits.
    Ok(rustix::fs::fchmod(file, Permissions::from_raw_mode(mode.bits()))?)
}

fn sweep(parent: &OwnedFd, name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".osapi-");
    temporary.push(name);
    for flags in [AtFlags::empty(), AtFlags::REMOVEDIR] {
        let _ = rustix::fs::unlinkat(parent, &temporary, flags);
    }
    temporary
}
