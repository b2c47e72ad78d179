//! Where sockets and state are unless the configuration says otherwise.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::own_uid;
use crate::config::Config;
use crate::error::{Error, Kind, Result};

/// Where the system's own sockets and state are.
pub(super) const SYSTEM_RUN: &str = "/run/osapi";
pub(super) const SYSTEM_STATE: &str = "/var/lib/osapi";
pub(super) const SOCKET: &str = "osapi.sock";

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Paths {
    /// Where clients connect.
    pub socket: PathBuf,
    /// Where the agent connects.
    pub agent_socket: PathBuf,
    pub controller_state: PathBuf,
    pub agent_state: PathBuf,
}

impl Paths {
    pub fn of(config: &Config) -> Result<Self> {
        let (controller, agent) = (&config.controller, &config.agent);
        let socket = match &controller.socket {
            Some(socket) => socket.clone(),
            None => run_dir().join(SOCKET),
        };
        let agent_socket =
            agent.socket.clone().unwrap_or_else(|| socket.with_file_name("agent.sock"));
        let state = |set: &Option<PathBuf>, name: &str| match set {
            Some(dir) => Ok(dir.clone()),
            None => base_state_dir().map(|dir| dir.join(name)),
        };
        Ok(Self {
            socket,
            agent_socket,
            controller_state: state(&controller.state_dir, "controller")?,
            agent_state: state(&agent.state_dir, "agent")?,
        })
    }
}

impl Paths {
    /// Whether the own user's command line finds the socket by itself.
    pub(super) fn is_usual(&self) -> bool {
        self.socket == run_dir().join(SOCKET)
    }
}

/// Where the own user's sockets are.
pub(super) fn run_dir() -> PathBuf {
    let uid = own_uid();
    if uid == 0 {
        return SYSTEM_RUN.into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => Path::new(&dir).join("osapi"),
        None => format!("/tmp/osapi-{uid}").into(),
    }
}

fn base_state_dir() -> Result<PathBuf> {
    if own_uid() == 0 {
        return Ok(SYSTEM_STATE.into());
    }
    let set = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME")
        .or_else(|| Some(set("HOME")?.join(".local/state")))
        .map(|dir| dir.join("osapi"))
        .ok_or_else(|| {
            let message = "there is no HOME to keep state in; set controller.state_dir and \
                           agent.state_dir";
            Error::new(Kind::InvalidInput, message)
        })
}

/// Makes a directory that only the own user may look into.
pub(super) fn state_dir(path: &Path) -> Result<()> {
    make(path, 0o700)
}

/// Makes the directory that `socket` goes into, and makes sure whose it is: in a directory that
/// belongs to somebody else, or that anybody may write to, clients could be led elsewhere.
pub(super) fn socket_dir(socket: &Path) -> Result<()> {
    let Some(dir) = socket.parent() else { return Ok(()) };
    // Below /tmp, where anybody may come first.
    let mode = if dir.starts_with("/tmp") { 0o700 } else { 0o755 };
    make(dir, mode)?;
    let meta = std::fs::symlink_metadata(dir).map_err(|error| cannot("look at", dir, &error))?;
    let trusted = meta.is_dir() && [0, own_uid()].contains(&meta.uid());
    if trusted && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    let dir = dir.display();
    let message = format!(
        "{dir} is not a directory that only its owner, you or root, may write to; \
         set controller.socket to a path in one that is"
    );
    Err(Error::new(Kind::Denied, message))
}

fn make(dir: &Path, mode: u32) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(mode).create(dir).map_err(|error| cannot("make", dir, &error))
}

fn cannot(what: &str, dir: &Path, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull => Kind::Full,
        _ => Kind::Unavailable,
    };
    Error::new(kind, format!("cannot {what} {}: {error}", dir.display()))
}
