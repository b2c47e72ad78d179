//! Sockets to listen on: made here, or handed over by the service manager.

#![expect(clippy::disallowed_types, reason = "its own sockets")]

use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::error::{Error, Kind, Result};

/// How many may wait to be accepted.
const BACKLOG: i32 = 512;

/// A socket that nobody else listens on.
pub(super) struct Bound {
    pub(super) listener: tokio::net::UnixListener,
    /// Where it was made here, and not handed over.
    pub(super) own: Option<Own>,
}

/// The name of a socket that was made here. It goes with this.
pub(super) struct Own {
    path: PathBuf,
    _lock: File,
}

impl Drop for Own {
    fn drop(&mut self) {
        // The next start removes what remains.
        drop(std::fs::remove_file(&self.path));
    }
}

/// What the service manager has handed over.
#[derive(Default)]
pub(super) struct Inherited {
    /// By the path that each is bound to.
    pub(super) sockets: Vec<(PathBuf, UnixListener)>,
    /// Those that are connected to over a network.
    pub(super) network: Vec<TcpListener>,
}

/// The sockets that the service manager has handed over.
pub(super) fn inherited() -> Result<Inherited> {
    let passed = crate::sys::inherited().map_err(|error| {
        Error::new(Kind::Unavailable, format!("cannot take inherited sockets: {error}"))
    })?;
    Ok(sorted(passed))
}

fn sorted(passed: Vec<OwnedFd>) -> Inherited {
    let mut inherited = Inherited::default();
    for socket in passed {
        if is_network(&socket).unwrap_or(false) {
            inherited.network.push(TcpListener::from(socket));
            continue;
        }
        let listener = UnixListener::from(socket);
        let address = listener.local_addr().ok();
        let path = address.as_ref().and_then(|address| address.as_pathname());
        match path {
            Some(path) => inherited.sockets.push((path.to_owned(), listener)),
            None => tracing::warn!(
                "an inherited descriptor is neither a Unix socket with a path nor listens on TCP, \
                 and not used"
            ),
        }
    }
    inherited
}

fn is_network(socket: &OwnedFd) -> rustix::io::Result<bool> {
    let families = [AddressFamily::INET, AddressFamily::INET6];
    Ok(families.contains(&sockopt::socket_domain(socket)?)
        && sockopt::socket_type(socket)? == SocketType::STREAM
        && sockopt::socket_acceptconn(socket)?)
}

/// Listens to whoever is on this host and brings a token.
pub(super) fn loopback(port: u16) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let address = SocketAddr::new(address, port);
        match TcpListener::bind(address) {
            Ok(listener) => listeners.push(listener),
            // A host without IPv6. Where somebody else is, tokens must not go there.
            Err(error) if address.is_ipv6() && error.kind() != ErrorKind::AddrInUse => {}
            Err(error) => {
                let message = format!(
                    "cannot listen at {address}: {error}; take another controller.api.port or \
                     leave it out"
                );
                return Err(Error::new(Kind::Unavailable, message));
            }
        }
    }
    Ok(listeners)
}

/// Whether others than this host could connect.
pub(super) fn is_for_others(listener: &TcpListener) -> bool {
    let address = listener.local_addr();
    address.is_ok_and(|address| !address.ip().to_canonical().is_loopback())
}

/// Makes `listener` ready to be served, and says where it listens.
pub(super) fn for_network(listener: TcpListener) -> Result<(SocketAddr, tokio::net::TcpListener)> {
    let cannot = |error: std::io::Error| {
        Error::new(Kind::Unavailable, format!("cannot listen on TCP: {error}"))
    };
    let address = listener.local_addr().map_err(cannot)?;
    listener.set_nonblocking(true).map_err(cannot)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(cannot)?;
    Ok((address, listener))
}

/// Listens at `path`, to anybody: on the socket that was inherited for it, or on a new one.
pub(super) fn listen(path: &Path, inherited: &mut Vec<(PathBuf, UnixListener)>) -> Result<Bound> {
    let found = inherited.iter().position(|(bound, _)| bound == path);
    if let Some(found) = found {
        let (_, listener) = inherited.swap_remove(found);
        // Clients ask the kernel who listens, which is this process only from here on.
        crate::sys::listen_again(listener.as_fd(), BACKLOG)
            .map_err(|error| cannot(path, &error))?;
        return Ok(Bound { listener: for_tokio(path, listener)?, own: None });
    }
    super::paths::socket_dir(path)?;
    let lock = lock(path)?;
    if path.symlink_metadata().is_ok() {
        if UnixStream::connect(path).is_ok() {
            return Err(taken(path));
        }
        std::fs::remove_file(path).map_err(|error| cannot(path, &error))?;
    }
    let listener = UnixListener::bind(path).map_err(|error| cannot(path, &error))?;
    // Who may do what is decided for each request, so that others get a clear answer.
    std::fs::set_permissions(path, Permissions::from_mode(0o666))
        .map_err(|error| cannot(path, &error))?;
    let own = Some(Own { path: path.to_owned(), _lock: lock });
    Ok(Bound { listener: for_tokio(path, listener)?, own })
}

/// Keeps a second process from taking `path` while this one prepares it.
fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    lock_file(Path::new(&name)).map_err(|error| cannot(path, &error))?.ok_or_else(|| taken(path))
}

/// The lock `path`; None where another process has it.
pub(super) fn lock_file(path: &Path) -> std::io::Result<Option<File>> {
    use std::os::unix::fs::OpenOptionsExt;

    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn for_tokio(path: &Path, listener: UnixListener) -> Result<tokio::net::UnixListener> {
    let listener: OwnedFd = listener.into();
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true).map_err(|error| cannot(path, &error))?;
    tokio::net::UnixListener::from_std(listener).map_err(|error| cannot(path, &error))
}

fn taken(path: &Path) -> Error {
    let path = path.display();
    let message = format!(
        "another osapi listens at {path}; end it first, or give this one its own \
         controller.socket, agent.socket and state directories"
    );
    Error::new(Kind::Conflict, message)
}

fn cannot(path: &Path, error: &std::io::Error) -> Error {
    Error::new(Kind::Unavailable, format!("cannot listen at {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_could_connect_is_told_from_the_address() {
        for (bound, is_so) in [("127.0.0.1:0", false), ("127.8.9.1:0", false), ("0.0.0.0:0", true)]
        {
            assert_eq!(is_for_others(&TcpListener::bind(bound).unwrap()), is_so, "{bound}");
        }
    }

    #[test]
    fn what_is_inherited_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        let connected = UnixStream::pair().unwrap().0;
        let passed: [OwnedFd; 4] = [
            TcpListener::bind("127.0.0.1:0").unwrap().into(),
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            UnixListener::bind(&path).unwrap().into(),
            connected.into(),
        ];
        let inherited = sorted(passed.into());
        assert_eq!(inherited.network.len(), 1);
        let paths: Vec<_> = inherited.sockets.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, [&path]);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("osapi.sock");
        drop(UnixListener::bind(&path).unwrap());
        let first = listen(&path, &mut Vec::new()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let error = listen(&path, &mut Vec::new()).map(drop).unwrap_err();
        assert!(error.to_string().contains("another osapi listens at"), "{error}");
        drop(first);
        assert!(!path.exists());

        // Somebody who knows nothing of the lock.
        let other = UnixListener::bind(&path).unwrap();
        assert!(listen(&path, &mut Vec::new()).is_err());
        drop(other);
        assert!(listen(&path, &mut Vec::new()).is_ok());
    }

    #[tokio::test]
    async fn an_inherited_socket_is_used_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        let mut inherited = vec![(one.clone(), UnixListener::bind(&one).unwrap())];
        let bound = listen(&one, &mut inherited).unwrap();
        assert!(inherited.is_empty() && bound.own.is_none());
        let client = UnixStream::connect(&one).unwrap();
        bound.listener.accept().await.unwrap();
        drop(client);
        assert!(listen(&other, &mut inherited).unwrap().own.is_some());
        drop(bound);
        assert!(one.exists(), "whoever made it keeps it");
    }
}
