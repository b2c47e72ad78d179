//! Keys in files: made once, for their owner alone, and read by whoever may.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use super::{PKCS8, PRIVATE, PUBLIC, PublicKey, SPKI, SigningKey, blocks, pem};
use crate::error::{Error, Kind, Result};
use crate::own_file;

/// No such file is longer, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Whose key it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Holder {
    Agent,
    Controller,
}

impl Holder {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Controller => "controller",
        }
    }

    /// The name of the file with the key.
    pub const fn key_file(self) -> &'static str {
        match self {
            Self::Agent => "agent.key",
            Self::Controller => "controller.key",
        }
    }

    /// The name of the file with the public half, which others are given.
    pub const fn public_file(self) -> &'static str {
        match self {
            Self::Agent => "agent.pub",
            Self::Controller => "controller.pub",
        }
    }

    /// The key that is kept in `dir`; None where there is none.
    pub fn kept(self, dir: &Path) -> Result<Option<SigningKey>> {
        let path = dir.join(self.key_file());
        let Some((text, mode)) = read(&path)? else { return Ok(None) };
        if mode & 0o077 != 0 {
            let path = path.display();
            let message = format!("cannot use {path}: others may read it; `chmod 600 {path}`");
            return Err(Error::new(Kind::Denied, message));
        }
        match blocks(&text, PRIVATE, &PKCS8).as_deref() {
            Some([seed]) => SigningKey::of_seed(&**seed).map(Some),
            _ => {
                let path = path.display();
                let message = format!("{path} is not one Ed25519 key in PKCS#8, in PEM");
                Err(Error::new(Kind::InvalidInput, message))
            }
        }
    }

    /// The same; one is made where there is none. The public half is beside it when this returns.
    /// To be called by the holder alone.
    pub fn kept_or_made(self, dir: &Path) -> Result<SigningKey> {
        let cannot = |error: std::io::Error| {
            let kind = match error.kind() {
                ErrorKind::StorageFull => Kind::Full,
                ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Unavailable,
            };
            let (whose, dir) = (self.as_str(), dir.display());
            Error::new(kind, format!("cannot keep the {whose}'s key in {dir}: {error}"))
        };
        let key = match self.kept(dir)? {
            Some(key) => key,
            None => {
                DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(cannot)?;
                let (key, seed) = SigningKey::random()?;
                let content = Zeroizing::new([&PKCS8[..], &*seed].concat());
                let text = Zeroizing::new(pem(PRIVATE, &content));
                own_file::replace(&dir.join(self.key_file()), text.as_bytes(), 0o600)
                    .map_err(cannot)?;
                key
            }
        };
        let public = key.public().pem();
        let path = dir.join(self.public_file());
        let there = read(&path).ok().flatten();
        if there.is_none_or(|(text, _)| *text != public) {
            own_file::replace(&path, public.as_bytes(), 0o644).map_err(cannot)?;
        }
        Ok(key)
    }
}

/// The public keys in a file, at least one; None where there is no such file.
pub fn public_keys(path: &Path) -> Result<Option<Vec<PublicKey>>> {
    let Some((text, _)) = read(path)? else { return Ok(None) };
    let keys = blocks(&text, PUBLIC, &SPKI).unwrap_or_default();
    if keys.is_empty() {
        let message = format!("{} is no Ed25519 public key in PEM", path.display());
        return Err(Error::new(Kind::InvalidInput, message));
    }
    Ok(Some(keys.iter().map(|key| PublicKey(**key)).collect()))
}

/// The text of a file that is no link, and its mode.
fn read(path: &Path) -> Result<Option<(Zeroizing<String>, u32)>> {
    let cannot = |kind, what: &dyn std::fmt::Display| {
        Error::new(kind, format!("cannot read {}: {what}", path.display()))
    };
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(cannot(Kind::Denied, &"only root and its owner may"));
        }
        Err(error) => return Err(cannot(Kind::Unavailable, &error)),
    };
    let mut text = Zeroizing::new(String::new());
    let read = file.metadata().and_then(|about| {
        if !about.is_file() {
            return Err(std::io::Error::other("it is no file"));
        }
        (&file).take(LONGEST).read_to_string(&mut text)?;
        Ok(about.mode())
    });
    match read {
        Ok(mode) => Ok(Some((text, mode))),
        Err(error) => Err(cannot(Kind::Unavailable, &error)),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "lays out what is found")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn it_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        assert!(Holder::Agent.kept(&pki).unwrap().is_none());
        assert!(!pki.exists(), "looking makes nothing");
        let key = Holder::Agent.kept_or_made(&pki).unwrap().public();
        let mode = |name: &str| std::fs::metadata(pki.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("agent.key"), mode("agent.pub"), mode("")), (0o600, 0o644, 0o700));
        assert_eq!(Holder::Agent.kept_or_made(&pki).unwrap().public(), key);
        assert_eq!(Holder::Agent.kept(&pki).unwrap().unwrap().public(), key);
        assert_eq!(public_keys(&pki.join("agent.pub")).unwrap().unwrap(), [key]);
        assert_ne!(Holder::Controller.kept_or_made(&pki).unwrap().public(), key);
        // The public half follows the secret one.
        std::fs::copy(pki.join("controller.pub"), pki.join("agent.pub")).unwrap();
        Holder::Agent.kept_or_made(&pki).unwrap();
        assert_eq!(public_keys(&pki.join("agent.pub")).unwrap().unwrap(), [key]);
    }

    #[test]
    fn what_is_no_key_or_no_secret_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.key");
        let why = || Holder::Agent.kept_or_made(dir.path()).err().unwrap().to_string();
        std::fs::write(&path, "no key").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(why().contains("is not one Ed25519 key"), "{}", why());
        assert_eq!(std::fs::read(&path).unwrap(), b"no key");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(why().contains("others may read it"), "{}", why());
        std::fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        assert!(why().contains("cannot read"), "{}", why());
        std::fs::write(dir.path().join("none.pub"), "").unwrap();
        assert!(public_keys(&dir.path().join("none.pub")).is_err());
        assert!(public_keys(&dir.path().join("missing.pub")).unwrap().is_none());
    }
}
