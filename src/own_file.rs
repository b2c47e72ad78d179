//! Files that this program keeps for itself, each replaced as a whole.

#![expect(clippy::disallowed_types, reason = "its own files")]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Result, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts `content` in the place of what `path` names, or leaves that as it was; durable when it
/// returns. A new file has `mode`, as far as the umask lets it. What a former try has left beside it
/// (`.new`) is removed and never followed.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let new = dir.join([name, ".new".as_ref()].into_iter().collect::<OsString>());
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_and_what_lies_beside_it_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("token.key"), dir.path().join("other"));
        replace(&other, b"other", 0o600).unwrap();
        symlink(&other, dir.path().join("token.key.new")).unwrap();
        for content in [&b"first, which is longer"[..], b"second"] {
            replace(&path, content, 0o600).unwrap();
            let mut text = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut text).unwrap();
            assert_eq!(text, content);
        }
        assert_eq!(other.metadata().unwrap().len(), 5);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(dir.path().read_dir().unwrap().count(), 2, "nothing is left beside them");
    }
}
