//! Keys that agents and controllers are known by, and what is signed with them.
//!
//! A signature covers what it is for, whom it is about and the very bytes that travel, each with
//! its length, so that nothing that was signed for one purpose is good for another.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};

mod kept;

pub use kept::{Holder, public_keys};

/// What a key in PKCS#8 begins with, before its 32 bytes: RFC 8410, section 7.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// The same of a public one: RFC 8410, section 4.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
const PRIVATE: &str = "PRIVATE KEY";
const PUBLIC: &str = "PUBLIC KEY";
/// What every fingerprint begins with.
pub const FINGERPRINT: &str = "SHA256:";

/// What is signed, and for what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// A task, for the host that it is about, by a controller.
    Task,
    /// What came of a task on a host, by its agent.
    Outcome,
    /// Who an agent is, and what secrets are sealed to for it, by itself.
    Identity,
}

impl Purpose {
    const fn context(self) -> &'static str {
        match self {
            Self::Task => "osapi task 1",
            Self::Outcome => "osapi outcome 1",
            Self::Identity => "osapi identity 1",
        }
    }

    /// What the signature covers.
    fn text(self, host: &str, parts: &[&str]) -> Vec<u8> {
        let all = [self.context(), host].into_iter().chain(parts.iter().copied());
        let mut text = Vec::with_capacity(all.clone().map(|part| part.len() + 8).sum());
        for part in all {
            text.extend((part.len() as u64).to_be_bytes());
            text.extend(part.as_bytes());
        }
        text
    }
}

/// The secret half of a key. It cannot be printed.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    fn of_seed(seed: &[u8]) -> Result<Self> {
        let unusable = |_| Error::new(Kind::InvalidInput, "it is no Ed25519 key");
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(unusable)?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Self { pair, public: PublicKey(public) })
    }

    /// A new one, and its seed.
    fn random() -> Result<(Self, Zeroizing<[u8; 32]>)> {
        use ring::rand::SecureRandom;
        let mut seed = Zeroizing::new([0; 32]);
        ring::rand::SystemRandom::new()
            .fill(&mut *seed)
            .map_err(|_| Error::new(Kind::Unavailable, "the kernel gives no random bytes"))?;
        Ok((Self::of_seed(&*seed)?, seed))
    }

    /// One for a test, the same each time.
    #[cfg(test)]
    pub fn of_test(number: u8) -> Self {
        Self::of_seed(&[number; 32]).unwrap()
    }

    pub const fn public(&self) -> PublicKey {
        self.public
    }

    /// In base64: that `host` is what `parts` are about.
    pub fn sign(&self, purpose: Purpose, host: &str, parts: &[&str]) -> String {
        STANDARD.encode(self.pair.sign(&purpose.text(host, parts)))
    }
}

/// What others know of a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// As it was told, in base64.
    pub fn parse(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// In base64.
    pub fn encode(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// What people compare: `SHA256:` and 64 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        Sha256::digest(self.0).iter().fold(FINGERPRINT.to_owned(), |mut text, byte| {
            _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// Whether `signature` was made with the other half of this key, for just that.
    pub fn verifies(&self, purpose: Purpose, host: &str, parts: &[&str], signature: &str) -> bool {
        let Ok(signature) = STANDARD.decode(signature) else { return false };
        let key = UnparsedPublicKey::new(&ED25519, self.0);
        key.verify(&purpose.text(host, parts), &signature).is_ok()
    }

    pub(crate) fn pem(&self) -> String {
        pem(PUBLIC, &[&SPKI[..], &self.0].concat())
    }
}

/// The fingerprint of a key as it was told; None where it is none.
pub fn fingerprint(key: &str) -> Option<String> {
    PublicKey::parse(key).map(|key| key.fingerprint())
}

fn pem(label: &str, content: &[u8]) -> String {
    // Neither is longer than the 64 characters of a line.
    let content = Zeroizing::new(STANDARD.encode(content));
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", &*content)
}

/// What is in the blocks called `label` of `text`, without what all of them begin with.
fn blocks(text: &str, label: &str, prefix: &[u8]) -> Option<Vec<Zeroizing<[u8; 32]>>> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(&begin) {
        let (content, after) = after.split_once(&end)?;
        let content: Zeroizing<String> =
            Zeroizing::new(content.chars().filter(|c| !c.is_ascii_whitespace()).collect());
        let content = Zeroizing::new(STANDARD.decode(&*content).ok()?);
        let key = content.strip_prefix(prefix)?.try_into().ok()?;
        found.push(Zeroizing::new(key));
        rest = after;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_what_it_was_made_for_and_nothing_else() {
        let key = SigningKey::of_test(1);
        let public = key.public();
        let signature = key.sign(Purpose::Task, "h", &["body"]);
        assert!(public.verifies(Purpose::Task, "h", &["body"], &signature));
        assert!(!public.verifies(Purpose::Outcome, "h", &["body"], &signature));
        assert!(!public.verifies(Purpose::Identity, "h", &["body"], &signature));
        assert!(!public.verifies(Purpose::Task, "i", &["body"], &signature));
        assert!(!public.verifies(Purpose::Task, "h", &["bodz"], &signature));
        assert!(!public.verifies(Purpose::Task, "hb", &["ody"], &signature));
        assert!(!public.verifies(Purpose::Task, "h", &["bo", "dy"], &signature));
        assert!(!public.verifies(Purpose::Task, "h", &["body", ""], &signature));
        assert!(!public.verifies(Purpose::Task, "h", &["body"], ""));
        let other = SigningKey::of_test(2).public();
        assert!(!other.verifies(Purpose::Task, "h", &["body"], &signature));
        assert_eq!(PublicKey::parse(&public.encode()), Some(public));
        assert_eq!(PublicKey::parse("AAAA"), None);
    }

    #[test]
    fn keys_are_written_as_others_write_them() {
        // RFC 8410, section 10.
        let private = "-----BEGIN PRIVATE KEY-----\n\
                       MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                       -----END PRIVATE KEY-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\n\
                      MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                      -----END PUBLIC KEY-----\n";
        let seeds = blocks(private, PRIVATE, &PKCS8).unwrap();
        let key = SigningKey::of_seed(&*seeds[0]).unwrap();
        assert_eq!(key.public().pem(), public);
        assert_eq!(pem(PRIVATE, &[&PKCS8[..], &*seeds[0]].concat()), private);
        let print = key.public().fingerprint();
        assert_eq!(print.len(), 71);
        assert!(print[7..].bytes().all(|b| b.is_ascii_hexdigit()), "{print}");
        assert!(blocks(&private.replace("MC4C", "MC4D"), PRIVATE, &PKCS8).is_none());
        assert!(blocks("", PRIVATE, &PKCS8).unwrap().is_empty());
    }
}
