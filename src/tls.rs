//! TLS 1.3 by rustls and ring, for the listener and for the command line.
//!
//! Older versions are not offered: nothing that speaks to OSAPI needs them.

#![expect(clippy::disallowed_types, reason = "reads the files that an operator named")]

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::error::{Error, Kind, Result};

mod shown;

pub use shown::{Shown, shown};

/// No file of certificates is larger, in bytes.
const LARGEST: u64 = 4 << 20;
/// The authorities that this host trusts, where Debian keeps them.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The one protocol that is spoken on top.
const HTTP: &[u8] = b"http/1.1";

/// Where a certificate, with those that lead to its authority behind it, and its key are. PEM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What a listener shows; may be exchanged while it listens. Where that is nothing, for the reason
/// that is said, every connection is closed.
pub struct Server(RwLock<Result<Arc<ServerConfig>, String>>);

impl Server {
    pub fn new(files: &Files) -> Result<Self> {
        Ok(Self(RwLock::new(Ok(server_config(files)?))))
    }

    /// One that has nothing to show yet.
    pub fn without(why: String) -> Self {
        Self(RwLock::new(Err(why)))
    }

    /// From now on new connections get what is in `files` now. Where that cannot be used, all
    /// stays as it is.
    pub fn reload(&self, files: &Files) -> Result<()> {
        let config = server_config(files);
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match config {
            Ok(config) => *shown = Ok(config),
            Err(error) => {
                if let Err(why) = &mut *shown {
                    *why = error.to_string();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Why every connection is closed, where that is so.
    pub fn fault(&self) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().err().cloned()
    }

    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        shown.as_ref().ok().map(|config| config.clone().into())
    }
}

/// Fails where `files` cannot be used, and says what is wrong with which of them.
pub fn check(files: &Files) -> Result<()> {
    server_config(files).map(drop)
}

fn server_config(files: &Files) -> Result<Arc<ServerConfig>> {
    let chain = certificates(&files.cert)?;
    let key = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| {
        let key = files.key.display();
        Error::new(Kind::InvalidInput, format!("{key} holds no private key in PEM: {error}"))
    })?;
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(unusable)?;
    let config = builder.with_no_client_auth().with_single_cert(chain, key);
    let mut config = config.map_err(|error| {
        let (cert, key) = (files.cert.display(), files.key.display());
        let message = format!("cannot use the certificate {cert} with the key {key}: {error}");
        Error::new(Kind::InvalidInput, message)
    })?;
    config.alpn_protocols = vec![HTTP.to_vec()];
    // Whoever comes again sees the certificate that there is then, and nothing is kept for them.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// How a client speaks: trusting the authorities in the file `authority`, else the system's.
pub(crate) fn connector(authority: Option<&Path>) -> Result<TlsConnector> {
    let mut trusted = RootCertStore::empty();
    let path = authority.unwrap_or_else(|| Path::new(TRUSTED));
    let found = match certificates(path) {
        Err(error) if authority.is_some() => return Err(error),
        // Without any, the server's is unknown, which is said then.
        found => found.unwrap_or_default(),
    };
    trusted.add_parsable_certificates(found);
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(unusable)?;
    let mut config = builder.with_root_certificates(trusted).with_no_client_auth();
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(Arc::new(config).into())
}

/// What a failed handshake with `server` was about, and what to do about it.
pub(crate) fn explain(server: &str, error: &io::Error) -> Error {
    let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        // It may have done so before it took out what it was sent.
        let hung_up = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
        if hung_up.contains(&error.kind()) {
            let message = format!(
                "{server} closed the connection at once; it may lack a certificate, which `osapi \
                 doctor` tells there"
            );
            return Error::new(Kind::Unavailable, message);
        }
        let message = format!("cannot speak TLS with {server}: {error}");
        return Error::new(Kind::Unavailable, message);
    };
    let rustls::Error::InvalidCertificate(fault) = fault else {
        let message = match fault {
            rustls::Error::InvalidMessage(_) => {
                format!("{server} does not speak TLS; is it http:// there?")
            }
            fault => format!("cannot speak TLS with {server}: {fault}"),
        };
        return Error::new(Kind::Unavailable, message);
    };
    let why = match fault {
        // An authority of the same name has another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate comes from an authority that this host does not know; name the \
             authority's certificate with --cacert FILE"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; renew it there, then `systemctl reload osapi-controller`"
                .to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; compare the clocks".to_owned()
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("its certificate is for other names ({names}); ask for it by one of those")
        }
        CertificateError::NotValidForName => {
            "its certificate is for another name; ask for it by that".to_owned()
        }
        CertificateError::Other(other) => format!(
            "its certificate cannot be used: {other}; an authority's own is none for a server, \
             which needs one with CA:FALSE"
        ),
        fault => format!("its certificate cannot be used: {fault}"),
    };
    Error::new(Kind::Denied, format!("cannot trust {server}: {why}"))
}

/// The name alone, of `DnsName("web-1")`.
fn bare(presented: &str) -> &str {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(presented).trim_matches('"')
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let wrong = |what: String| {
        let message = format!("{} holds no certificate in PEM{what}", path.display());
        Err(Error::new(Kind::InvalidInput, message))
    };
    match found {
        Ok(found) if found.is_empty() => wrong(String::new()),
        Ok(found) => Ok(found),
        Err(error) => wrong(format!(": {error}")),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
    let length = length.map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Unavailable,
        };
        Error::new(kind, format!("cannot read {}: {error}", path.display()))
    })?;
    if length as u64 > LARGEST {
        let message = format!("{} is larger than {LARGEST} bytes", path.display());
        return Err(Error::new(Kind::InvalidInput, message));
    }
    Ok(bytes)
}

fn unusable(error: rustls::Error) -> Error {
    Error::new(Kind::Internal, "cannot set up TLS").because(error)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "lays out what is found")]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::pki_types::ServerName;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A certificate for `name` and its key, as files; the first is its own authority, too.
    fn made(dir: &TempDir, name: &str) -> Files {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([name.to_owned()]).unwrap();
        let path = |kind: &str| dir.path().join(format!("{name}.{kind}"));
        std::fs::write(path("cert"), cert.pem()).unwrap();
        std::fs::write(path("key"), signing_key.serialize_pem()).unwrap();
        Files { cert: path("cert"), key: path("key") }
    }

    /// What `server` says to a client that trusts `authority` and asks for `name`.
    async fn ask(server: &Server, authority: Option<&Path>, name: &str) -> Result<Vec<u8>> {
        let (here, there) = tokio::io::duplex(64 * 1024);
        let acceptor = server.acceptor().unwrap();
        let serving = tokio::spawn(async move {
            let mut stream = acceptor.accept(there).await?;
            stream.write_all(b"hello").await?;
            stream.shutdown().await
        });
        let connector = connector(authority)?;
        let server_name = ServerName::try_from(name.to_owned()).unwrap();
        let connected = connector.connect(server_name, here).await;
        let mut stream = connected.map_err(|error| explain(name, &error))?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        serving.await.unwrap().unwrap();
        Ok(said)
    }

    #[tokio::test]
    async fn whoever_trusts_the_authority_is_served_and_others_are_told_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (made(&dir, "one.example"), made(&dir, "two.example"));
        let server = Server::new(&one).unwrap();
        let said = ask(&server, Some(&one.cert), "one.example").await.unwrap();
        assert_eq!(said, b"hello");
        for (authority, name, told) in [
            (Some(&two.cert), "one.example", "an authority that this host does not know"),
            (None, "one.example", "--cacert FILE"),
            (Some(&one.cert), "two.example", "is for other names (one.example)"),
        ] {
            let error = ask(&server, authority.map(PathBuf::as_path), name).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Denied);
            assert!(error.to_string().contains(told), "{told} in {error}");
        }

        server.reload(&two).unwrap();
        assert!(ask(&server, Some(&two.cert), "two.example").await.is_ok());
        assert!(ask(&server, Some(&one.cert), "one.example").await.is_err());
    }

    #[tokio::test]
    async fn a_certificate_that_has_expired_is_said_to_have() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = made(&dir, "one.example");
        let mut params = rcgen::CertificateParams::new(["one.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        files.cert = dir.path().join("old");
        std::fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        let server = Server::new(&files).unwrap();
        let error = ask(&server, Some(&files.cert), "one.example").await.unwrap_err();
        assert!(error.to_string().contains("has expired"), "{error}");
    }

    #[tokio::test]
    async fn what_cannot_be_used_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (made(&dir, "one.example"), made(&dir, "two.example"));
        let server = Server::new(&one).unwrap();
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        let files = |cert: &Path, key: &Path| Files { cert: cert.into(), key: key.into() };
        for (files, told) in [
            (files(&one.cert, &two.key), "cannot use the certificate"),
            (files(&empty, &one.key), "holds no certificate"),
            (files(&one.cert, &empty), "holds no private key"),
            (files(&one.key, &one.key), "holds no certificate"),
            (files(&dir.path().join("none"), &one.key), "cannot read"),
            (files(Path::new("/dev/zero"), &one.key), "is larger than"),
        ] {
            let error = server.reload(&files).unwrap_err();
            assert!(error.to_string().contains(told), "{told} in {error}");
            assert!(check(&files).is_err());
        }
        assert!(ask(&server, Some(&one.cert), "one.example").await.is_ok());
    }

    #[tokio::test]
    async fn one_that_has_nothing_to_show_says_why_until_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let one = made(&dir, "one.example");
        let server = Server::without("there is none".to_owned());
        assert!(server.acceptor().is_none());
        assert_eq!(server.fault().as_deref(), Some("there is none"));
        let missing = Files { cert: dir.path().join("none"), key: one.key.clone() };
        let error = server.reload(&missing).unwrap_err();
        assert_eq!(server.fault(), Some(error.to_string()), "the newest reason counts");
        server.reload(&one).unwrap();
        assert_eq!(server.fault(), None);
        assert!(ask(&server, Some(&one.cert), "one.example").await.is_ok());
        assert!(server.reload(&missing).is_err());
        assert_eq!(server.fault(), None, "it goes on with what it has");
    }

    #[test]
    fn plain_http_is_told_from_tls() {
        let fault = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        let error = explain("one:80", &io::Error::new(io::ErrorKind::InvalidData, fault));
        assert!(error.to_string().contains("is it http:// there?"), "{error}");
    }
}
