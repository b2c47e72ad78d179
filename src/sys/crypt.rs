//! Hashes of passwords, by the library that decides who may log in: whatever method a host's
//! hashes have, it knows them all.

#![expect(unsafe_code, reason = "crypt(3) has no safe equal")]

use std::ffi::{CStr, CString, c_char, c_int, c_ulong, c_void};
use std::io;

use zeroize::{Zeroize, Zeroizing};

/// `sizeof(struct crypt_data)`, a constant of the library's interface.
const SCRATCH: c_int = 32_768;
/// `CRYPT_GENSALT_OUTPUT_SIZE`.
const SETTING: c_int = 192;

#[link(name = "crypt")]
unsafe extern "C" {
    fn crypt_rn(
        phrase: *const c_char,
        setting: *const c_char,
        data: *mut c_void,
        size: c_int,
    ) -> *mut c_char;

    fn crypt_gensalt_rn(
        prefix: *const c_char,
        count: c_ulong,
        random: *const c_char,
        length: c_int,
        output: *mut c_char,
        size: c_int,
    ) -> *mut c_char;
}

/// Whether `secret` is the password that `hash` was made of.
pub fn opens(secret: &str, hash: &str) -> io::Result<bool> {
    // Such a field opens to nobody, and the library would take it for a setting that is broken.
    if hash.is_empty() || hash.starts_with(['*', '!']) {
        return Ok(false);
    }
    let setting = CString::new(hash)?;
    match crypt(secret, &setting) {
        Ok(found) => Ok(found.as_bytes() == hash.as_bytes()),
        // A hash of no known method is nobody's password.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Hashes `secret` by the strongest method that this host knows. `salt` has 16 bytes or more.
pub fn hash(secret: &str, salt: &str) -> io::Result<String> {
    let mut setting: [c_char; 192] = [0; 192];
    let length = c_int::try_from(salt.len()).map_err(io::Error::other)?;
    // SAFETY: `salt` has `length` bytes and `setting` as many as are said; both outlive the call.
    // No prefix asks for the library's own choice.
    let made = unsafe {
        crypt_gensalt_rn(
            std::ptr::null(),
            0,
            salt.as_ptr().cast(),
            length,
            setting.as_mut_ptr(),
            SETTING,
        )
    };
    if made.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the library has ended what it wrote to `setting` with NUL.
    let setting = unsafe { CStr::from_ptr(setting.as_ptr()) }.to_owned();
    crypt(secret, &setting).map(|hash| hash.to_string())
}

fn crypt(secret: &str, setting: &CStr) -> io::Result<Zeroizing<String>> {
    let mut phrase = Zeroizing::new(Vec::with_capacity(secret.len() + 1));
    phrase.extend_from_slice(secret.as_bytes());
    phrase.push(0);
    if phrase.iter().position(|byte| *byte == 0) != Some(secret.len()) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut data = vec![0_u64; 32_768 / size_of::<u64>()];
    // SAFETY: `phrase` and `setting` end with NUL; `data` is zeroed, as the library asks, and has
    // the size that is said; all of them outlive the call.
    let hash = unsafe {
        crypt_rn(phrase.as_ptr().cast(), setting.as_ptr(), data.as_mut_ptr().cast(), SCRATCH)
    };
    let result = if hash.is_null() {
        Err(io::Error::last_os_error())
    } else {
        // SAFETY: what is not NULL points to text in `data` that ends with NUL.
        let text = unsafe { CStr::from_ptr(hash) }.to_str().map(str::to_owned);
        text.map(Zeroizing::new).map_err(io::Error::other)
    };
    data.zeroize();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_opens_to_its_own_password_only() {
        let made = hash("correct horse", "0123456789abcdef").unwrap();
        assert!(made.starts_with('$'), "{made}");
        assert!(opens("correct horse", &made).unwrap());
        assert!(!opens("correct horsf", &made).unwrap());
        assert_eq!(made, hash("correct horse", "0123456789abcdef").unwrap());
        assert_ne!(made, hash("correct horse", "0123456789abcdeg").unwrap());
    }

    #[test]
    fn hashes_of_older_methods_are_understood() {
        // SHA-512, as hosts had it before yescrypt.
        let sha512 = "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1";
        assert!(opens("Hello world!", sha512).unwrap());
        assert!(!opens("Hello world", sha512).unwrap());
    }

    #[test]
    fn what_is_no_hash_opens_to_nobody() {
        for field in ["", "*", "!", "!!", "!$6$x$y", "x", "$none$such$method"] {
            for secret in ["", "x", "*", "!"] {
                assert!(!opens(secret, field).unwrap(), "{secret:?} {field:?}");
            }
        }
        assert!(hash("a\0b", "0123456789abcdef").is_err());
    }
}
