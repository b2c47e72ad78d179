//! Where a controller is, and a connection to it: a socket of this host, or an address.
//!
//! A token is only ever sent encrypted, or to this very host.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::text::flat;
use super::{Reach, files};
use crate::config::Secret;
use crate::error::{Error, Kind, Result};
use crate::tls;

/// How long a connection may take to come about.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to ask, in order; the first that answers is asked.
pub(super) struct Places {
    all: Vec<Place>,
    /// Whether they were named for this call. Nobody has to vouch for those.
    is_named: bool,
    cacert: Option<PathBuf>,
    token: Option<Secret>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Socket(PathBuf),
    Address(Address),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Address {
    is_encrypted: bool,
    /// A name or a number, without brackets.
    host: String,
    port: u16,
}

/// A connection, and what is to be said over it with each request.
pub(super) struct Connection {
    pub(super) line: Line,
    pub(super) host: String,
    pub(super) token: Option<Secret>,
}

impl Places {
    /// What was written for this call decides alone.
    pub(super) fn new(url: Option<&str>, cacert: Option<&Path>, reach: &Reach) -> Result<Self> {
        let sockets = || reach.sockets.iter().cloned().map(Place::Socket);
        let (all, is_named) = match (url, reach.url.as_deref()) {
            (Some(url), _) => (vec![Place::of(url)?], true),
            (None, Some(url)) if url.starts_with("unix:") => (vec![Place::of(url)?], true),
            (None, Some(url)) => match Place::of(url) {
                Ok(Place::Address(address)) if address.is_encrypted => {
                    (vec![Place::Address(address)], true)
                }
                // Published files name an address of their own host here. A socket that root or
                // the caller has made is the better choice: anybody may listen at a port.
                Ok(Place::Address(address)) if address.is_here() => {
                    (sockets().chain([Place::Address(address)]).collect(), false)
                }
                _ => (sockets().collect(), false),
            },
            (None, None) => (sockets().collect(), false),
        };
        let cacert = cacert.map(Path::to_owned).or_else(|| reach.cacert.clone());
        let token = Secret::set(reach.token.as_ref()).cloned();
        Ok(Self { all, is_named, cacert, token })
    }

    /// The sockets among them, in this order.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Path> {
        self.all.iter().filter_map(|place| match place {
            Place::Socket(socket) => Some(socket.as_path()),
            Place::Address(_) => None,
        })
    }

    /// The first socket at which somebody listens, and the account that does.
    pub(super) async fn listener(&self) -> Option<(&Path, u32)> {
        for socket in self.sockets() {
            if let Ok(stream) = connect(socket).await {
                return Some((socket, stream.peer_cred().ok()?.uid()));
            }
        }
        None
    }

    pub(super) async fn connect(&self) -> Result<Connection> {
        let (mut denied, mut doubtful) = (None, None);
        for place in &self.all {
            let socket = match place {
                Place::Socket(socket) => socket,
                Place::Address(address) => match self.call(address).await {
                    Err(error) if error.kind() == Kind::Unavailable && self.all.len() > 1 => {
                        continue;
                    }
                    called => return called,
                },
            };
            match self.connect_to(socket).await {
                Ok(Some(stream)) => {
                    let line = Line(Box::new(stream));
                    return Ok(Connection { line, host: "osapi".to_owned(), token: None });
                }
                Ok(None) => doubtful = Some(socket),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    denied = Some(socket);
                }
                Err(_) => {}
            }
        }
        if let Some(socket) = doubtful {
            let socket = socket.display();
            let what = format!(
                "cannot trust {socket}: somebody who is neither you nor root listens there, in a \
                 place that not only root chose; if you know who, say so with --url unix://{socket}"
            );
            return Err(Error::new(Kind::Denied, what));
        }
        if let Some(socket) = denied {
            let what = format!(
                "cannot connect to {}: permission denied; sockets of the package are open to \
                 everybody, those of `osapi start` to the user who ran it",
                socket.display(),
            );
            return Err(Error::new(Kind::Denied, what));
        }
        let tried: Vec<_> = self.all.iter().map(ToString::to_string).collect();
        let what = format!(
            "cannot reach a controller: nothing listens at {}; {}",
            tried.join(" or "),
            self.remedy(),
        );
        Err(Error::new(Kind::Unavailable, what))
    }

    /// What to do where nobody listens.
    fn remedy(&self) -> &'static str {
        // A relay has the agent's socket alone.
        let is_relayed =
            |socket: &Path| !socket.exists() && socket.with_file_name("agent.sock").exists();
        if self.sockets().any(is_relayed) {
            "this host is managed over a broker: ask where its controllers are, or one of them with \
             --url https://CONTROLLER:8443 and a token"
        } else {
            "start one with `osapi start`, or say where it is with --url unix:///PATH"
        }
    }

    /// Connects unless anybody might listen there: it must be the caller's own account, root, or
    /// whom root has given the place.
    async fn connect_to(&self, socket: &Path) -> io::Result<Option<UnixStream>> {
        let stream = connect(socket).await?;
        let own = rustix::process::geteuid().as_raw();
        if self.is_named || [0, own].contains(&stream.peer_cred()?.uid()) {
            return Ok(Some(stream));
        }
        match files::kept_for_owner(socket, own) {
            // Links may have led elsewhere before.
            Some(resolved) => connect(&resolved).await.map(Some),
            None => Ok(None),
        }
    }

    async fn call(&self, address: &Address) -> Result<Connection> {
        let cannot = |kind, why: &dyn std::fmt::Display| {
            Error::new(kind, format!("cannot reach a controller at {address}: {why}"))
        };
        let late = || cannot(Kind::Unavailable, &"no answer in time");
        let found = tokio::net::lookup_host((address.host.as_str(), address.port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|error| cannot(Kind::Unavailable, &error))?.collect();
        if !address.is_encrypted && !found.iter().all(|found| is_here(found.ip())) {
            let why = "over a network what is asked, and the token, would be told to whoever \
                       listens; write https://";
            return Err(cannot(Kind::Denied, &why));
        }
        let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(&*found)).await;
        let stream = connected.map_err(|_| late())?;
        let stream = stream.map_err(|error| cannot(Kind::Unavailable, &error))?;
        drop(stream.set_nodelay(true));
        let line = if address.is_encrypted {
            let connector = tls::connector(self.cacert.as_deref())?;
            let name = ServerName::try_from(address.host.clone()).map_err(|_| {
                cannot(Kind::InvalidInput, &"this is no name that a certificate could be for")
            })?;
            let encrypted = tokio::time::timeout(PATIENCE, connector.connect(name, stream)).await;
            let encrypted = encrypted.map_err(|_| late())?;
            let shown = address.to_string();
            Line(Box::new(encrypted.map_err(|error| tls::explain(&shown, &error))?))
        } else {
            Line(Box::new(stream))
        };
        Ok(Connection { line, host: address.authority(), token: self.token.clone() })
    }
}

async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let connected = tokio::time::timeout(PATIENCE, UnixStream::connect(socket));
    connected.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether what is sent to `address` stays on this host.
fn is_here(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified()
}

impl Place {
    /// Where `unix:///PATH`, `https://HOST:PORT` or `http://localhost:PORT` is.
    pub(super) fn of(url: &str) -> Result<Self> {
        let refuse = |why: &str| {
            let url = flat(url);
            let what = format!("cannot use {url}: {why}; write unix:///PATH or https://HOST:PORT");
            Err(Error::new(Kind::InvalidInput, what))
        };
        let is_encrypted = match url.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => {
                return Ok(Self::Socket(Path::new(path).to_owned()));
            }
            Some(("unix", _)) => return refuse("the path of a socket begins with /"),
            Some(("https", _)) => true,
            Some(("http", _)) => false,
            _ => return refuse("this is no URL that can be asked"),
        };
        let Ok(uri) = url.parse::<hyper::Uri>() else { return refuse("this is no URL") };
        let Some(authority) = uri.authority() else { return refuse("it names no host") };
        if authority.as_str().contains('@') {
            return refuse("a name before @ has no use here");
        }
        if uri.path_and_query().is_some_and(|rest| !matches!(rest.as_str(), "" | "/")) {
            return refuse("nothing may stand behind host and port");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let has_port = authority.as_str().len() > authority.host().len();
        let port = match authority.port_u16() {
            Some(port) => port,
            None if has_port => return refuse("its port is no number up to 65535"),
            None if is_encrypted => 443,
            None => 80,
        };
        if host.is_empty() {
            refuse("it names no host")
        } else {
            Ok(Self::Address(Address { is_encrypted, host, port }))
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Address {
    /// Whether its very text says that it is this host.
    fn is_here(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(is_here)
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A connection whose other end may have stopped listening and still have said something: a
/// controller that refuses a file does so before it has read all of it.
pub(super) struct Line(Box<dyn Duplex>);

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.0).poll_write(context, bytes));
        Poll::Ready(match written {
            // Nobody reads on. Where there is no answer either, reading it fails.
            Err(error) if is_hung_up(&error) => Ok(bytes.len()),
            written => written,
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.0).poll_flush(context));
        Poll::Ready(flushed.or_else(|error| if is_hung_up(&error) { Ok(()) } else { Err(error) }))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn is_hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(is_encrypted: bool, host: &str, port: u16) -> Place {
        Place::Address(Address { is_encrypted, host: host.to_owned(), port })
    }

    #[test]
    fn urls_lead_to_sockets_and_addresses() {
        for (url, place) in [
            ("unix:///run/x", Place::Socket("/run/x".into())),
            ("https://web-1:8443", address(true, "web-1", 8443)),
            ("https://web-1/", address(true, "web-1", 443)),
            ("https://[::1]:1", address(true, "::1", 1)),
            ("http://127.0.0.1", address(false, "127.0.0.1", 80)),
        ] {
            assert_eq!(Place::of(url).unwrap(), place, "{url}");
        }
        for url in [
            "",
            "web-1",
            "unix://x",
            "ftp://web-1",
            "https://",
            "https://:1",
            "https://web-1/api",
            "https://web-1/?x=1",
            "https://ada@web-1",
            "https://web-1:99999",
            "https://a b",
        ] {
            assert!(Place::of(url).is_err(), "{url}");
        }
        assert_eq!(address(true, "::1", 8443).to_string(), "https://[::1]:8443");
    }

    #[test]
    fn a_configured_address_is_asked_where_that_tells_nobody_the_token() {
        let places = |url: Option<&str>, configured: &str| {
            let configured = Some(configured.to_owned());
            let reach =
                Reach { url: configured, sockets: vec!["/run/x".into()], ..Reach::default() };
            Places::new(url, None, &reach).unwrap().all
        };
        let socket = Place::Socket("/run/x".into());
        let far = "https://web-1:8443";
        assert_eq!(places(None, far), [address(true, "web-1", 8443)]);
        assert_eq!(places(Some("unix:///run/y"), far), [Place::Socket("/run/y".into())]);
        for here in ["0.0.0.0", "localhost", "127.0.0.1"] {
            let found = places(None, &format!("http://{here}:8080"));
            assert_eq!(found, [socket.clone(), address(false, here, 8080)]);
        }
        for far in ["http://web-1:8080", "nonsense"] {
            assert_eq!(places(None, far), std::slice::from_ref(&socket));
        }
    }

    #[tokio::test]
    async fn nothing_is_sent_to_others_in_the_clear() {
        let places = Places::new(Some("http://192.0.2.1:8080"), None, &Reach::default()).unwrap();
        let error = places.connect().await.map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert!(error.to_string().contains("write https://"), "{error}");
    }
}
