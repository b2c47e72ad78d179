//! The signing key of a controller that was given none: 32 random bytes in a file that its own
//! account alone may read.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::OFlags;

use super::Key;
use crate::error::{Error, Kind, Result};
use crate::own_file;

/// The name of the file in the controller's state directory.
const FILE: &str = "token.key";
/// In bytes.
const LENGTH: usize = 32;

impl Key {
    /// The key that the controller with this state directory has made; None where it has not.
    pub fn kept(state: &Path) -> Result<Option<Self>> {
        let path = state.join(FILE);
        let cannot = |kind, what: &dyn std::fmt::Display| {
            Error::new(kind, format!("cannot read the signing key {}: {what}", path.display()))
        };
        // Who runs the controller decides what is there, and root reads it.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(cannot(Kind::Denied, &"only root and the controller's account may"));
            }
            Err(error) => return Err(cannot(Kind::Unavailable, &error)),
        };
        let read = file.metadata().and_then(|about| {
            let mut bytes = Vec::with_capacity(LENGTH + 1);
            if about.is_file() {
                (&file).take(LENGTH as u64 + 1).read_to_end(&mut bytes)?;
            }
            Ok((about, bytes))
        });
        let (about, bytes) = read.map_err(|error| cannot(Kind::Unavailable, &error))?;
        if bytes.len() != LENGTH {
            let what = format!("it is not {LENGTH} bytes; remove it and have new tokens made");
            return Err(cannot(Kind::InvalidInput, &what));
        }
        if about.mode() & 0o077 != 0 {
            let what = format!("others may, too; `chmod 600 {}`", path.display());
            return Err(cannot(Kind::Denied, &what));
        }
        Ok(Some(Self::new(&bytes)))
    }

    /// The key of the controller with this state directory, which is made where there is none.
    /// To be called by that controller alone.
    pub fn kept_or_made(state: &Path) -> Result<Self> {
        if let Some(key) = Self::kept(state)? {
            return Ok(key);
        }
        let made = make(state).map_err(|error| {
            let kind = match error.kind() {
                ErrorKind::StorageFull => Kind::Full,
                _ => Kind::Unavailable,
            };
            let place = state.join(FILE);
            Error::new(kind, format!("cannot make the signing key {}: {error}", place.display()))
        });
        made.map(|bytes| Self::new(&bytes))
    }
}

/// Durable when it returns: a token that was given away has to be good after a power cut, too.
fn make(state: &Path) -> std::io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    let unable = |_| std::io::Error::other("the kernel gives no random bytes");
    SystemRandom::new().fill(&mut bytes).map_err(unable)?;
    own_file::replace(&state.join(FILE), &bytes, 0o600)?;
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "lays out what is found")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::token::Claims;

    #[test]
    fn it_is_made_once_and_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Key::kept(dir.path()).unwrap().is_none());
        let key = Key::kept_or_made(dir.path()).unwrap();
        let about = std::fs::metadata(dir.path().join(FILE)).unwrap();
        assert_eq!((about.mode() & 0o7777, about.len()), (0o600, 32));
        let now = jsonwebtoken::get_current_timestamp();
        let token = key.sign(&Claims::new("ada", Vec::new(), Vec::new(), now)).unwrap();
        let again = Key::kept_or_made(dir.path()).unwrap();
        assert!(again.read(&token).is_ok());
        assert!(Key::kept(dir.path()).unwrap().unwrap().read(&token).is_ok());
    }

    #[test]
    fn what_is_no_key_or_no_secret_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let why = || Key::kept_or_made(dir.path()).unwrap_err().to_string();
        std::fs::write(&path, "").unwrap();
        assert!(why().contains("not 32 bytes"), "{}", why());
        std::fs::write(&path, [0; 33]).unwrap();
        assert!(why().contains("not 32 bytes"), "{}", why());
        std::fs::write(&path, [0; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(why().contains("others may"), "{}", why());
        std::fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        assert!(why().contains("cannot read the signing key"), "{}", why());
    }
}
