//! The name of the host that does not change when people rename it.
#![expect(clippy::disallowed_methods, reason = "its own state is not the host's")]

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::host::View;

/// The machine id of `host`; where it has none, one that is made once and kept in `state`.
pub fn machine_id(host: &View, state: &Path) -> Result<String> {
    if let Some(id) = host.read("/etc/machine-id").ok().and_then(|text| machine_id_of(&text)) {
        return Ok(id);
    }
    let path = state.join("machine-id");
    if let Some(id) = std::fs::read_to_string(&path).ok().and_then(|text| machine_id_of(&text)) {
        return Ok(id);
    }
    let id = uuid::Uuid::now_v7().simple().to_string();
    crate::own_file::replace(&path, format!("{id}\n").as_bytes(), 0o600).map_err(|error| {
        let path = path.display();
        Error::new(Kind::Unavailable, format!("cannot keep a machine id in {path}: {error}"))
    })?;
    Ok(id)
}

/// As machine-id(5) has it: 32 hexadecimal digits, not `uninitialized`.
pub fn machine_id_of(text: &str) -> Option<String> {
    let id = text.trim();
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| id.to_ascii_lowercase())
}
