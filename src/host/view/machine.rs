//! What the kernel tells of the machine and of the agent itself, where no file below the root does.

use rustix::fs::OFlags;

use super::{View, failed};
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::host::cell::Value;
use crate::host::reach::Reach;

/// The machine the agent runs on.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// As `uname -n` prints it.
    pub hostname: String,
    /// As `uname -m` prints it.
    pub architecture: String,
    /// As `uname -r` prints it.
    pub kernel: String,
    /// Processors that the agent may use.
    pub cpus: usize,
}

/// The room of the file system that a path is on, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Space {
    pub total: u64,
    pub free: u64,
    /// What of `free` is not set aside for root.
    pub available: u64,
}

/// A right that root can be given or denied; the number is the kernel's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Capability {
    Chown = 0,
    DacOverride = 1,
    DacReadSearch = 2,
    Fowner = 3,
    Fsetid = 4,
    Kill = 5,
    NetAdmin = 12,
    SysAdmin = 21,
}

impl View {
    pub fn machine(&self) -> Machine {
        let name = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Machine {
            hostname: text(name.nodename()),
            architecture: text(name.machine()),
            kernel: text(name.release()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// The room on the file system that holds `path`.
    pub fn space(&self, path: &str) -> Result<Space> {
        let fd = self.root.open(path, OFlags::PATH).map_err(|error| failed(path, error))?;
        let stat = rustix::fs::fstatvfs(fd).map_err(|error| failed(path, error))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space {
            total: bytes(stat.f_blocks),
            free: bytes(stat.f_bfree),
            available: bytes(stat.f_bavail),
        })
    }

    /// The agent's own account and group, by name.
    pub fn user(&self) -> Result<(String, String)> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Ok((self.user_name(uid.as_raw())?, self.group_name(gid.as_raw())?))
    }

    /// The same value with its owner spelt out, where it left that to us.
    pub(in crate::host) fn owned(&self, mut value: Value) -> Result<Value> {
        if let Value::File { owner, .. } | Value::Directory { owner, .. } = &mut value {
            let (user, group) = owner.split_once(':').unwrap_or((owner.as_str(), ""));
            *owner = match (user, group) {
                ("", "") => {
                    let (user, group) = self.user()?;
                    format!("{user}:{group}")
                }
                ("", group) => format!("{}:{group}", self.user()?.0),
                (user, "") => {
                    let entry = self.entry("/etc/passwd", 0, user)?;
                    let gid = entry.and_then(|fields| fields.get(3)?.parse().ok());
                    let Some(gid) = gid else {
                        let message = format!("there is no account {user}");
                        return Err(Error::new(Kind::InvalidInput, message));
                    };
                    format!("{user}:{}", self.group_name(gid)?)
                }
                _ => return Ok(value),
            };
        }
        Ok(value)
    }

    /// Seconds since 1970 by the wall's clock. Only for what tells; a plan must not depend on it.
    pub fn now(&self) -> i64 {
        i64::try_from(Clock::default().wall() / 1000).unwrap_or(i64::MAX)
    }

    /// Whether systemd runs the host.
    pub fn has_systemd(&self) -> bool {
        self.exists("/run/systemd/system")
    }

    /// Whether the agent itself has `right`.
    pub fn may(&self, right: Capability) -> bool {
        let own = rustix::thread::capabilities(None).map(|sets| sets.effective.bits());
        own.unwrap_or_default() >> (right as u8) & 1 == 1
    }

    /// Whether an effect of `reach` is left to a unit, which has other rights than this process
    /// and sees other mounts.
    pub(in crate::host) fn leaves(&self, reach: Reach) -> bool {
        self.is_confined && reach != Reach::Here
    }

    /// Whether `path` is on a read-only mount for the service manager, which sees the host as it
    /// is, whatever this agent's own unit shows it. False where that cannot be told.
    pub(in crate::host) fn is_read_only(&self, path: &str) -> bool {
        let Ok(table) = self.read("/proc/1/mountinfo") else { return false };
        let mount = |line: &str| {
            let mut fields = line.split(' ');
            let (at, options) = (fields.nth(4)?.to_owned(), fields.next()?);
            let below = path.strip_prefix(at.trim_end_matches('/'))?;
            let holds = below.is_empty() || below.starts_with('/');
            let mut options = options.split(',').chain(line.rsplit(' ').next()?.split(','));
            holds.then(|| (at.len(), options.any(|option| option == "ro")))
        };
        // The last one of those at one place is on top.
        let mounts = table.lines().filter_map(mount);
        mounts.max_by_key(|(length, _)| *length).is_some_and(|(_, is_read_only)| is_read_only)
    }

    /// The agent's own process.
    pub fn pid(&self) -> i32 {
        rustix::process::getpid().as_raw_nonzero().get()
    }
}

/// How messages call the agent's account.
pub(super) fn account() -> String {
    match rustix::process::geteuid().as_raw() {
        0 => "root without that right".to_owned(),
        uid => format!("uid {uid}"),
    }
}
