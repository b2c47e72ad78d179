//! What a caller from a network may bring as a token, signed or not.
//!
//! Whatever comes in is either refused, or says what a token may say.

#![allow(unreachable_pub, reason = "fuzz targets and tests both call it")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use osapi::token::{AUDIENCES, ISSUER, Key, Refusal, is_name};

const SECRET: &[u8] = b"known to nobody who brings a token";

/// Behind a `!` a line of header and the claims, which are signed as they stand; else the token.
pub fn run(data: &[u8]) {
    let key = Key::new(SECRET);
    let Some(rest) = data.strip_prefix(b"!") else {
        let text = String::from_utf8_lossy(data);
        return refused(key.read(&text).expect_err("nobody signed it"));
    };
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let (header, claims) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
    let token = signed(header, claims);
    match key.read(&token) {
        Err(refusal) => refused(refusal),
        Ok(claims) => {
            assert!(claims.iss == ISSUER && is_name(&claims.sub));
            assert!(claims.aud.names().iter().any(|name| AUDIENCES.contains(&name.as_str())));
            let names = claims.roles.iter().chain(claims.permissions.iter().flatten());
            assert!(names.into_iter().all(|name| is_name(name)));
            let header: serde_json::Value = serde_json::from_slice(header).unwrap();
            assert!(header["alg"] == "HS256" && header.get("crit").is_none());
            assert_eq!(Key::new(b"another").read(&token), Err(Refusal::Signature));
            let again = key.sign(&claims).unwrap();
            assert_eq!(key.read(&again), Ok(claims), "what is said is said again");
        }
    }
}

fn signed(header: &[u8], claims: &[u8]) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{text}.{signature}")
}

fn refused(refusal: Refusal) {
    assert!(Refusal::ALL.contains(&refusal) && refusal != Refusal::Missing);
    assert!(!refusal.why().is_empty() && refusal.challenge().contains("invalid_token"));
}
