//! What certificates say of themselves.
//!
//! They are asked in the way clients ask: whether they hold at some time, and for some name; what
//! is refused then tells what they hold for.

use std::path::Path;
use std::time::Duration;

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, RootCertStore};

use super::{bare, certificates};
use crate::error::{Error, Kind, Result};

/// The last second that a certificate can name, since 1970: one that names it holds for ever.
const FOR_EVER: u64 = 253_402_300_799;
/// A name that nobody has.
const NOBODY: &str = "nobody.invalid";

/// What a certificate says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shown {
    /// From when it holds, in seconds since 1970.
    pub from: u64,
    /// Until when it holds, in seconds since 1970.
    pub until: u64,
    /// For whom: names and addresses.
    pub names: Vec<String>,
    /// Why clients refuse it whatever the time, whoever has issued it.
    pub fault: Option<String>,
}

/// Of all certificates in the file `path`, in their order.
pub fn shown(path: &Path) -> Result<Vec<Shown>> {
    let found = certificates(path)?;
    let shown = found.iter().map(|found| {
        look(found).map_err(|error| {
            let message = format!("{} has a certificate that is none: {error}", path.display());
            Error::new(Kind::InvalidInput, message)
        })
    });
    shown.collect()
}

fn look(found: &CertificateDer<'_>) -> std::result::Result<Shown, rustls::Error> {
    let certificate = ParsedCertificate::try_from(found)?;
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    let at = |seconds: u64| {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (nobody, none) = (RootCertStore::empty(), &[]);
        verify_server_cert_signed_by_trust_anchor(&certificate, &nobody, none, time, algorithms)
    };
    let invalid = |error| match error {
        Err(rustls::Error::InvalidCertificate(error)) => Some(error),
        _ => None,
    };
    let from = match invalid(at(0)) {
        Some(CertificateError::NotValidYetContext { not_before, .. }) => not_before.as_secs(),
        _ => 0,
    };
    let until = match invalid(at(FOR_EVER)) {
        Some(CertificateError::ExpiredContext { not_after, .. }) => not_after.as_secs(),
        // It ends before it begins.
        Some(CertificateError::Expired) => 0,
        _ => FOR_EVER,
    };
    let names = match ServerName::try_from(NOBODY).map(|n| verify_server_name(&certificate, &n)) {
        Ok(Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented,
            ..
        }))) => presented.iter().map(|name| bare(name).to_owned()).collect(),
        _ => Vec::new(),
    };
    let fault = match at(from) {
        // Nobody is trusted here.
        Ok(()) | Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => None,
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(error))) => {
            Some(error.to_string())
        }
        Err(error) => Some(error.to_string()),
    };
    Ok(Shown { from, until, names, fault })
}
