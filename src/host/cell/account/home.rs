//! Homes: which directory is an account's own, so that it may be moved, or removed with all that
//! is in it. `/etc/passwd` may name any directory as a home, those of the system included.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;

use rustix::fs::{Dir, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::Account;
use crate::error::{Error, Kind, Result};
use crate::host::root::Root;
use crate::host::view::View;

/// Below which nobody lives.
const SYSTEM: &[&str] = &[
    "bin",
    "boot",
    "dev",
    "efi",
    "etc",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "lost+found",
    "proc",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
];
/// Of a file that a new home may have, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Whether the files of an account have to move for it to become `to`.
pub(super) fn moves(from: &Account, to: &Account) -> bool {
    from.home != to.home && from.has_home && to.has_home
}

/// Refuses to move a home that is not the account's own, or to where none can be.
pub(super) fn admit(host: &View, name: &str, from: &Account, to: &Account) -> Result<()> {
    own(host, name, from).map_err(|why| {
        let message = format!(
            "the home of {name}, {}, is not moved: {why}; move by hand what has to move, and \
             change the entry alone with usermod(8)",
            from.home
        );
        Error::new(Kind::Protected, message)
    })?;
    let conflict = |why: &str| {
        let message = format!("cannot move the home of {name} to {}: {why}", to.home);
        Err(Error::new(Kind::Conflict, message))
    };
    if !is_place(&to.home) || host.is_own_state(&to.home) {
        let message =
            format!("{} is not a place for a home; name another, as below /home", to.home);
        return Err(Error::new(Kind::Protected, message));
    }
    if is_below(&to.home, &from.home) {
        return conflict("that is in the home itself; name another place");
    }
    match host.root.open_exact(&to.home, OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(_) => return conflict("there is something already; move that away"),
        Err(Errno::LOOP) => return conflict("a link is there or on the way; name the real path"),
        Err(_) => {}
    }
    let parent = to.home.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent);
    match host.root.open_exact(parent, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(_) => Ok(()),
        Err(_) => conflict("there is no directory to hold it; make that first"),
    }
}

/// Says why the home of `name` is not its own alone, if it is not.
pub(super) fn own(host: &View, name: &str, account: &Account) -> Result<(), String> {
    let home = account.home.trim_end_matches('/');
    if !is_place(home) {
        return Err("it is a directory of the system".to_owned());
    }
    if host.is_own_state(home) {
        return Err("OSAPI keeps its memory there".to_owned());
    }
    let stat = look(&host.root, home).map_err(|error| match error {
        Errno::LOOP => "it is a link, or reached by one".to_owned(),
        Errno::NOTDIR => "it is not a directory".to_owned(),
        error => error.to_string(),
    })?;
    if !belongs(&stat, account) {
        return Err(format!("it belongs to the uid {}", stat.st_uid));
    }
    let accounts = host.accounts().map_err(|error| error.to_string())?;
    let shares = |other: &Account| {
        let other = other.home.trim_end_matches('/');
        let is_same = || {
            let fd = host.root.open(other, OFlags::PATH).ok()?;
            let there = rustix::fs::fstat(fd).ok()?;
            Some((there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino))
        };
        other == home || is_below(other, home) || is_same() == Some(true)
    };
    match accounts.iter().find(|(other, account)| other != name && shares(account)) {
        Some((other, _)) => Err(format!("the home of {other} is there, too")),
        None => Ok(()),
    }
}

/// Whether the account's home is its own and holds nothing but what every new one holds.
pub(super) fn is_disposable(host: &View, name: &str, account: &Account) -> bool {
    let defaults = host.read("/etc/default/useradd").unwrap_or_default();
    let skeleton = defaults.lines().find_map(|line| line.strip_prefix("SKEL="));
    let skeleton = skeleton.map(str::trim).filter(|path| path.starts_with('/'));
    own(host, name, account).is_ok()
        && is_within(&host.root, &account.home, skeleton.unwrap_or("/etc/skel"))
}

/// Whether the account owns the directory at its home, however that came.
pub(super) fn is_owned(host: &View, account: &Account) -> bool {
    look(&host.root, &account.home).is_ok_and(|stat| belongs(&stat, account))
}

/// Whether there is a file at `path` that belongs to the account alone.
pub(super) fn is_file_of(host: &View, path: &str, account: &Account) -> bool {
    let file = host.root.open_exact(path, OFlags::PATH | OFlags::NOFOLLOW);
    let stat = file.and_then(rustix::fs::fstat);
    let is_file = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    stat.is_ok_and(|stat| is_file(&stat) && stat.st_uid == account.uid)
}

/// What not even root moves by accident. Where the agent is not root, the kernel says what is
/// whose.
fn belongs(stat: &Stat, account: &Account) -> bool {
    stat.st_uid == account.uid || !rustix::process::geteuid().is_root()
}

/// About the directory at `path`, where there is one that no link leads to.
fn look(root: &Root, path: &str) -> rustix::io::Result<Stat> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    rustix::fs::fstat(root.open_exact(path, flags)?)
}

/// Whether homes may be at `path`: neither in the system's directories, nor one that holds those
/// of others.
fn is_place(path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let parts: Vec<_> = path.split('/').collect();
    let is_plain = parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
    let least = if parts[0] == "var" { 3 } else { 2 };
    is_plain && parts.len() >= least && !SYSTEM.contains(&parts[0])
}

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// Whether all that is in the directory at `home` is in the one at `model`, and the same.
fn is_within(root: &Root, home: &str, model: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let Ok(dir) = root.open_exact(home, flags).and_then(Dir::read_from) else { return false };
    dir.into_iter().all(|entry| {
        let Ok(entry) = entry else { return false };
        let Ok(name) = entry.file_name().to_str() else { return false };
        if matches!(name, "." | "..") {
            return true;
        }
        let (home, model) = (format!("{home}/{name}"), format!("{model}/{name}"));
        match (Thing::at(root, &home), Thing::at(root, &model)) {
            (Some(Thing::Directory), Some(Thing::Directory)) => is_within(root, &home, &model),
            (Some(own), Some(model)) => own == model,
            _ => false,
        }
    })
}

/// What may be in a new home.
#[derive(PartialEq)]
enum Thing {
    File(Vec<u8>),
    Link(CString),
    Directory,
}

impl Thing {
    fn at(root: &Root, path: &str) -> Option<Self> {
        let fd = root.open_exact(path, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
        match FileType::from_raw_mode(rustix::fs::fstat(&fd).ok()?.st_mode) {
            FileType::Directory => Some(Self::Directory),
            FileType::Symlink => rustix::fs::readlinkat(&fd, "", Vec::new()).ok().map(Self::Link),
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let file = File::from(root.open_exact(path, flags).ok()?);
                let mut bytes = Vec::new();
                file.take(MAX_FILE + 1).read_to_end(&mut bytes).ok()?;
                (bytes.len() as u64 <= MAX_FILE).then_some(Self::File(bytes))
            }
            _ => None,
        }
    }
}
