//! What of a path the agent may change, and what it must not because it could not put it back.

use rustix::fs::{Access, AtFlags, OFlags};
use rustix::io::Errno;

use super::super::{Cell, CellKind as _, Value};
use super::Node;
use crate::error::{Error, Kind, Result};
use crate::host::view::{Capability, View, failed};

/// Where the kernel keeps an access list.
pub(super) const ACCESS_LIST: &str = "system.posix_acl_access";
/// Attributes that every file may have and that follow from its place.
const ORDINARY: &[&str] = &["security.selinux"];
const STICKY: u32 = 0o1000;
const SET_GROUP_ID: u32 = 0o2000;

impl Node<'_> {
    pub(super) fn admit(&self, host: &View, from: &Value, to: &Value) -> Result<()> {
        let path = self.0;
        let conflict = |what: &str| Err(Error::new(Kind::Conflict, format!("{path} {what}")));
        match (from, to) {
            (Value::Directory { .. }, Value::File { .. } | Value::Link(_)) => {
                return conflict("is a directory; remove it first");
            }
            (Value::File { .. } | Value::Link(_), Value::Directory { .. }) => {
                return conflict("is not a directory; remove it first");
            }
            (Value::File { .. }, _) if !host.ahead.contains_key(&Cell::Node(path.to_owned())) => {
                self.has_nothing_more(host)?;
            }
            _ => {}
        }
        if let Value::File { owner, mode, .. } | Value::Directory { owner, mode } = to {
            may_give(host, path, owner, mode.bits(), host.leaves(self.reach(to)))?;
        }
        self.may_write(host, from, host.leaves(self.reach(to)))
    }

    /// Refuses a file that is more than its content, mode and owner.
    fn has_nothing_more(&self, host: &View) -> Result<()> {
        let path = self.0;
        let (file, stat) = self.file(host)?;
        let refuse = |what: &str| {
            let message = format!("{path} has {what}, which a change would lose; remove it first");
            Err(Error::new(Kind::Conflict, message))
        };
        if stat.st_nlink > 1 {
            return refuse(&format!("{} names", stat.st_nlink));
        }
        let mut names = vec![0; 4096];
        let length = match rustix::fs::flistxattr(&file, &mut names) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => 0,
            Err(Errno::RANGE) => return refuse("many extended attributes"),
            Err(error) => return Err(failed(path, error)),
        };
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            match String::from_utf8_lossy(name).as_ref() {
                name if ORDINARY.contains(&name) => {}
                "security.capability" => return refuse("capabilities"),
                ACCESS_LIST => return refuse("an access list"),
                name => return refuse(&format!("the extended attribute {name}")),
            }
        }
        Ok(())
    }

    /// Whether the agent may replace what is at the path, or a unit if that is left to one.
    fn may_write(&self, host: &View, from: &Value, is_left: bool) -> Result<()> {
        let (parent, _) = self.0.rsplit_once('/').unwrap_or_default();
        let parent = if parent.is_empty() { "/" } else { parent };
        match host.ahead.get(&Cell::Node(parent.to_owned())).map(|set| &set.to) {
            Some(Value::Directory { .. }) => return Ok(()),
            Some(_) => {
                let message = format!("{parent} will not be a directory");
                return Err(Error::new(Kind::Conflict, message));
            }
            None => {}
        }
        let dir = match host.root.open_exact(parent, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {
                let message = format!("there is no directory {parent}");
                return Err(Error::new(Kind::NotFound, message));
            }
            Err(Errno::NOTDIR) => {
                let message = format!("{parent} is not a directory");
                return Err(Error::new(Kind::Conflict, message));
            }
            dir => dir.map_err(|error| failed(parent, error))?,
        };
        let unprivileged = |right: &str| {
            let uid = rustix::process::geteuid().as_raw();
            let path = self.0;
            let message = format!("cannot write {path} as uid {uid}; run the agent with {right}");
            Err(Error::new(Kind::AgentUnprivileged, message))
        };
        let read_only = || {
            let message = format!("cannot write {}: {parent} is mounted read-only", self.0);
            Err(Error::new(Kind::HostFailed, message))
        };
        if is_left {
            return if host.is_read_only(parent) { read_only() } else { Ok(()) };
        }
        let how = Access::WRITE_OK | Access::EXEC_OK;
        match rustix::fs::accessat(&dir, ".", how, AtFlags::EACCESS) {
            Err(Errno::ACCESS | Errno::PERM) => return unprivileged("CAP_DAC_OVERRIDE"),
            Err(Errno::ROFS) => return read_only(),
            answer => answer.map_err(|error| failed(parent, error))?,
        }
        if *from == Value::Absent || host.may(Capability::Fowner) {
            return Ok(());
        }
        let about = rustix::fs::fstat(&dir).map_err(|error| failed(parent, error))?;
        let own = rustix::process::geteuid().as_raw();
        if about.st_mode & STICKY != 0 && about.st_uid != own {
            let fd = host.root.open_exact(self.0, OFlags::PATH | OFlags::NOFOLLOW);
            let stat = fd.and_then(rustix::fs::fstat).map_err(|error| failed(self.0, error))?;
            if stat.st_uid != own {
                return unprivileged("CAP_FOWNER");
            }
        }
        Ok(())
    }
}

/// Whether the agent may give a file to `owner` and keep its mode. A unit may, if that is left to
/// one and there is such an owner.
fn may_give(host: &View, path: &str, owner: &str, mode: u32, is_left: bool) -> Result<()> {
    let (user, group) = owner.split_once(':').unwrap_or((owner, owner));
    let own = rustix::process::geteuid().as_raw();
    let unprivileged = |what: &str, right: &str| {
        let message = format!("cannot give {path} {what} as uid {own}; run the agent with {right}");
        Err(Error::new(Kind::AgentUnprivileged, message))
    };
    let (user, group) = (id(host, "/etc/passwd", user)?, id(host, "/etc/group", group)?);
    if is_left {
        return Ok(());
    }
    let groups = rustix::process::getgroups().unwrap_or_default();
    let is_in = rustix::process::getegid().as_raw() == group
        || groups.iter().any(|own| own.as_raw() == group);
    if (user != own || !is_in) && !host.may(Capability::Chown) {
        return unprivileged(&format!("to {owner}"), "CAP_CHOWN");
    }
    if user != own && !host.may(Capability::Fowner) {
        return unprivileged("a mode that belongs to somebody else", "CAP_FOWNER");
    }
    // The kernel drops it without a word.
    if mode & SET_GROUP_ID != 0 && !is_in && !host.may(Capability::Fsetid) {
        return unprivileged("a set-group-id mode", "CAP_FSETID");
    }
    Ok(())
}

fn id(host: &View, table: &str, name: &str) -> Result<u32> {
    host.id(table, name).map_err(|error| match error.kind() {
        Kind::NotFound => Error::new(Kind::InvalidInput, format!("there is no {name} in {table}")),
        _ => error,
    })
}
