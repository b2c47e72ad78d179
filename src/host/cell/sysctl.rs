//! A parameter of the running kernel.

use std::fmt;
use std::fs::File;
use std::io::Write;

use rustix::fs::{Access, AtFlags, Mode as Permissions, OFlags, Stat};
use rustix::io::Errno;

use super::{Blobs, Cell, CellKind, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::hands::{Hands, failed};
use crate::host::reach::Reach;
use crate::host::view::View;

pub fn sysctl(key: impl Into<String>, value: &str) -> State {
    State::plain(Cell::Sysctl(key.into()), Value::Text(words(value)))
}

/// The name of the parameter.
pub(super) struct Sysctl<'a>(pub(super) &'a str);

impl CellKind for Sysctl<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        let path = path(self.0)?;
        // A directory of parameters is none itself.
        if !host.exists(&path) || host.exists(&format!("{path}/")) {
            return Err(Error::new(Kind::NotFound, format!("this kernel has no {}", self.0)));
        }
        Ok(Value::Text(words(&host.read(&path)?)))
    }

    fn check(&self, host: &View, _: &Value, _: &Value) -> Result<()> {
        let refused = |error| failed("set", self, "the right to write /proc/sys", error);
        let path = path(self.0)?;
        let (dir, name) = host.root.parent(&path).map_err(refused)?;
        let is_writable = |stat: Stat| stat.st_mode & Permissions::WUSR.as_raw_mode() != 0;
        // This agent's unit may show it /proc/sys as read-only, and has fewer rights.
        let is_open = host.leaves(Reach::Kernel)
            && !host.is_read_only(&path)
            && rustix::fs::statat(&dir, name, AtFlags::empty()).is_ok_and(is_writable);
        match rustix::fs::accessat(dir, name, Access::WRITE_OK, AtFlags::EACCESS) {
            Err(Errno::ROFS | Errno::ACCESS) if is_open => Ok(()),
            Err(Errno::ROFS) => {
                let message = format!("cannot set {self}: /proc/sys is mounted read-only here");
                Err(Error::new(Kind::Unsupported, message))
            }
            Err(Errno::ACCESS) if rustix::process::geteuid().is_root() => {
                let message = format!("cannot set {self}: the kernel lets nobody change it");
                Err(Error::new(Kind::HostFailed, message))
            }
            answer => answer.map_err(refused),
        }
    }

    fn assign(&self, hands: &Hands, _: &Value, to: &Value, _: &Blobs) -> Result<()> {
        let Value::Text(value) = to else { return Err(self.cannot_hold(to)) };
        let opened = hands.root.open(&path(self.0)?, OFlags::WRONLY);
        opened
            .map_err(Into::into)
            .and_then(|fd| File::from(fd).write_all(format!("{value}\n").as_bytes()))
            .map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::INVAL | Errno::RANGE) => {
                    let message = format!("cannot set {self}: the kernel refuses {value:?}");
                    Error::new(Kind::InvalidInput, message).because(error)
                }
                _ => failed("set", self, "the right to write /proc/sys", error),
            })
    }

    fn reach(&self, _: &Value) -> Reach {
        Reach::Kernel
    }

    fn is_persistent(&self) -> bool {
        false
    }
}

impl fmt::Display for Sysctl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel parameter {}", self.0)
    }
}

impl View {
    /// What the running kernel uses for `key`, as words with a space between them.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        match self.value(&Cell::Sysctl(key.to_owned()))? {
            Value::Text(text) => Ok(text),
            other => Err(Sysctl(key).cannot_hold(&other)),
        }
    }
}

/// Where a parameter is, by the rule of sysctl(8): whichever of dot and slash comes first
/// separates, and the other one stands for a dot in a name.
fn path(key: &str) -> Result<String> {
    let is_slashed = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('/'));
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    let path = if is_slashed { key.to_owned() } else { key.chars().map(swap).collect() };
    let is_name = |part: &str| !part.is_empty() && part != "." && part != "..";
    if path.split('/').all(is_name) && !path.chars().any(char::is_control) {
        return Ok(format!("/proc/sys/{path}"));
    }
    Err(Error::new(Kind::InvalidInput, format!("{key:?} is not the name of a kernel parameter")))
}

/// How lists of numbers in the kernel compare: by their words.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_sysctl_reads_them() {
        for (key, expected) in [
            ("vm.swappiness", "/proc/sys/vm/swappiness"),
            ("vm/swappiness", "/proc/sys/vm/swappiness"),
            ("net.ipv4.conf.eth0/100.rp_filter", "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"),
            ("net/ipv4/conf/eth0.100/rp_filter", "/proc/sys/net/ipv4/conf/eth0.100/rp_filter"),
        ] {
            assert_eq!(path(key).unwrap(), expected);
        }
        for key in ["", ".", "a..b", "a.//.b", "../x", "/etc/passwd", "a.b.", "a\n.b", "a/../b"] {
            assert_eq!(path(key).unwrap_err().kind(), Kind::InvalidInput, "{key}");
        }
    }
}
