//! Bodies whose length nobody knew when they began.

/// The whole of one; None where it was broken off.
pub(super) fn joined(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?, 16).ok()?;
        if length == 0 {
            return Some(whole);
        }
        whole.extend(bytes.get(end + 2..end + 2 + length)?);
        bytes = &bytes[end + 2 + length + 2..];
    }
}
