//! Where the broker is, and who we are to it.

use std::path::PathBuf;

use async_nats::{Auth, AuthError};
use nkeys::KeyPair;
use zeroize::Zeroizing;

use super::{NAME, NAMESPACE, is_controller, is_namespace};
use crate::error::{Error, Kind, Result};

/// The most bytes of a file that says who we are.
const MAX_FILE: u64 = 64 << 10;

/// What it takes to use a broker.
#[derive(Clone, Default)]
pub struct Settings {
    /// `HOST:PORT`, or URLs such as `tls://HOST:PORT`; any of them will do.
    pub servers: Vec<String>,
    /// Names the streams and begins their subjects, so that several may share a broker.
    pub namespace: String,
    /// Names this controller: its connection and its audit chains. No two at a time may share one.
    pub name: String,
    pub identity: Identity,
    pub tls: Tls,
    /// How many servers keep each record. What exists must have as many.
    pub replicas: usize,
    /// The operator states that the server syncs before it acknowledges.
    pub is_synced: bool,
}

/// How this controller says who it is.
#[derive(Clone, Default)]
pub enum Identity {
    #[default]
    Nobody,
    Password {
        user: String,
        password: Zeroizing<String>,
    },
    /// The file with an nkey's seed.
    Nkey(PathBuf),
    /// The file with a JWT and the seed that goes with it.
    Credentials(PathBuf),
}

/// How the connection is encrypted.
#[derive(Clone, Default)]
pub struct Tls {
    /// No connection is made without.
    pub is_required: bool,
    /// Authorities, in PEM, that the server's certificate may come from; those of the host by
    /// default.
    pub ca: Option<PathBuf>,
    /// This controller's certificate and its key, in PEM.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl Settings {
    /// What the subjects begin with at which we are answered. No name has a dot, so that none in one
    /// namespace has that of another.
    pub(crate) fn inbox(&self) -> String {
        format!("_INBOX_{}.{}", self.namespace, self.name)
    }

    /// What somebody on the way could read and change.
    pub(crate) fn in_the_open(&self) -> Option<&str> {
        let is_local = |server: &&String| {
            let host = server.rsplit_once("://").map_or(&***server, |(_, rest)| rest);
            let host = host.rsplit_once('@').map_or(host, |(_, rest)| rest);
            let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
            let name = name.trim_start_matches('[').trim_end_matches(']');
            let address = name.parse::<std::net::IpAddr>();
            name == "localhost" || address.is_ok_and(|address| address.is_loopback())
        };
        let open = self.servers.iter().filter(|_| !self.tls.is_required);
        open.filter(|server| !server.starts_with("tls://"))
            .find(|server| !is_local(server))
            .map(String::as_str)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |what: &str, value: &str, rule: &str| {
            let message = format!("{value:?} cannot be the broker's {what}: {rule}");
            Err(Error::new(Kind::InvalidInput, message))
        };
        if self.servers.is_empty() {
            return wrong("address", "", "name one, as in broker.example.org:4222");
        }
        if !is_namespace(&self.namespace) {
            return wrong("namespace", &self.namespace, NAMESPACE);
        }
        if !is_controller(&self.name) {
            return wrong("name for this controller", &self.name, NAME);
        }
        match self.replicas {
            1..=5 => Ok(()),
            replicas => wrong("number of replicas", &replicas.to_string(), "use 1, 3 or 5"),
        }
    }
}

/// What is presented to the server, read anew for each connection.
pub(crate) enum Proof {
    Nobody,
    Password { user: String, password: Zeroizing<String> },
    Key(KeyPair),
    Jwt { jwt: String, key: KeyPair },
}

impl Identity {
    pub(crate) async fn proof(&self) -> Result<Proof> {
        Ok(match self {
            Self::Nobody => Proof::Nobody,
            Self::Password { user, password } => {
                Proof::Password { user: user.clone(), password: password.clone() }
            }
            Self::Nkey(path) => {
                let text = read(path).await?;
                let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
                let unusable = || unusable(path, "it has no user's seed, which begins with SU");
                let key = KeyPair::from_seed(seed.ok_or_else(unusable)?);
                Proof::Key(key.map_err(|error| unusable().because(error))?)
            }
            Self::Credentials(path) => {
                let text = read(path).await?;
                let part = |name: &str| {
                    let (_, rest) = text.split_once(&format!("BEGIN {name}"))?;
                    rest.lines().skip(1).map(str::trim).find(|line| !line.is_empty())
                };
                let unusable = || {
                    unusable(path, "it is not what `nsc generate creds` writes, a JWT and a seed")
                };
                let jwt = part("NATS USER JWT").ok_or_else(unusable)?.to_owned();
                let seed = part("USER NKEY SEED").ok_or_else(unusable)?;
                let key = KeyPair::from_seed(seed).map_err(|error| unusable().because(error))?;
                Proof::Jwt { jwt, key }
            }
        })
    }
}

impl Proof {
    /// What answers the server's `nonce`.
    pub(crate) fn answer(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let sign = |key: &KeyPair| key.sign(nonce).map(Some).map_err(AuthError::new);
        let mut auth = Auth::new();
        match self {
            Self::Nobody => {}
            Self::Password { user, password } => {
                (auth.username, auth.password) = (Some(user.clone()), Some(password.to_string()));
            }
            Self::Key(key) => (auth.nkey, auth.signature) = (Some(key.public_key()), sign(key)?),
            Self::Jwt { jwt, key } => {
                (auth.jwt, auth.signature) = (Some(jwt.clone()), sign(key)?);
            }
        }
        Ok(auth)
    }
}

async fn read(path: &PathBuf) -> Result<Zeroizing<String>> {
    use tokio::io::AsyncReadExt;

    let cannot = |error: std::io::Error| unusable(path, &error.to_string()).because(error);
    let file = tokio::fs::File::open(path).await.map_err(cannot)?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE).read_to_string(&mut text).await.map_err(cannot)?;
    Ok(text)
}

fn unusable(path: &std::path::Path, why: &str) -> Error {
    let message = format!("cannot use {} to sign in at the broker: {why}", path.display());
    Error::new(Kind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_host_without_encryption_is_in_the_open() {
        let of = |server: &str, is_required| {
            let servers = vec!["127.0.0.1:4222".to_owned(), server.to_owned()];
            let tls = Tls { is_required, ..Tls::default() };
            Settings { servers, tls, ..Settings::default() }
        };
        for server in ["localhost:4222", "nats://a:b@127.0.0.9:1", "[::1]:4222", "tls://x:1"] {
            assert_eq!(of(server, false).in_the_open(), None, "{server}");
        }
        for server in
            ["broker:4222", "nats://192.0.2.1:4222", "[2001:db8::1]:4222", "localhost.x:1"]
        {
            assert_eq!(of(server, false).in_the_open(), Some(server));
            assert_eq!(of(server, true).in_the_open(), None, "{server}");
        }
    }
}
