//! What those are shown who come over a network.

use std::path::PathBuf;

use super::evidence::Need::Says;
use super::evidence::{Evidence, Need};
use super::{Check, Finding, fail, ok, skipped, warn};
use crate::clock::rfc3339;
use crate::error::{Error, Kind};
use crate::tls::{self, Files, Shown};

const SOCKET: &str = "systemctl is-enabled osapi-tls.socket";
/// What a drop-in of the unit sets goes before the configuration.
const ENVIRONMENT: &str =
    "systemctl --no-pager --value --property=Environment show -- osapi-controller.service";
const NEEDS: &[Need] = &[Says(SOCKET), Says(ENVIRONMENT)];

const DAY: u64 = 86_400;
/// From how many seconds before its end on a certificate is to be renewed.
const SOON: u64 = 30 * DAY;

const RENEW: &str = "systemctl reload osapi-controller.service    # once the files are renewed; \
                     restart it where a drop-in loads them";

pub(super) static CHECKS: &[Check] = &[
    Check {
        id: "tls.certificate",
        title: "The certificate for the network can be used",
        needs: NEEDS,
        judge: |e| {
            let Some(files) = files(e)? else {
                return fail(
                    "osapi-tls.socket is enabled, and there is no certificate",
                    "editor /etc/osapi/osapi.yaml    # set controller.tls.cert and \
                     controller.tls.key\nsystemctl reload osapi-controller.service",
                );
            };
            let chain = match tls::shown(&files.cert) {
                Ok(chain) => chain,
                Err(error) => return unusable(&error),
            };
            match chain.first().and_then(|shown| shown.fault.as_ref()) {
                None => ok(format!("{} in {}", chain.len(), files.cert.display())),
                Some(fault) => {
                    let what = format!("clients refuse {}: {fault}", files.cert.display());
                    warn(what, RENEW)
                }
            }
        },
    },
    Check {
        id: "tls.key",
        title: "The key is the certificate's",
        needs: NEEDS,
        judge: |e| {
            chain(e)?;
            let files = files(e)?.ok_or_else(unset)?;
            match tls::check(&files) {
                Ok(()) => ok(format!("{} is", files.key.display())),
                Err(error) => unusable(&error),
            }
        },
    },
    Check {
        id: "tls.expiry",
        title: "The certificate holds for a while",
        needs: NEEDS,
        judge: |e| {
            let (chain, now) = (chain(e)?, e.now / 1000);
            let from = chain.iter().map(|shown| shown.from).max().unwrap_or_default();
            let until = chain.iter().map(|shown| shown.until).min().unwrap_or_default();
            let date = |seconds: u64| rfc3339(seconds.saturating_mul(1000));
            if now < from {
                return fail(format!("it holds from {} on only", date(from)), "timedatectl");
            }
            if until < now {
                return fail(format!("it has expired, on {}", date(until)), RENEW);
            }
            let days = (until - now) / DAY;
            let what = format!("it ends in {days} days, on {}", date(until));
            if until - now < SOON { warn(what, RENEW) } else { ok(what) }
        },
    },
    Check {
        id: "tls.names",
        title: "The certificate says for which host it is",
        needs: NEEDS,
        judge: |e| match chain(e)?.first().map(|shown| shown.names.join(", ")) {
            Some(names) if !names.is_empty() => ok(names),
            _ => fail("it has no subjectAltName, without which clients refuse it", RENEW),
        },
    },
];

/// The files that the controller reads; None where nothing says which, though it is to be served
/// over the network.
fn files(e: &Evidence) -> Result<Option<Files>, Finding> {
    let is_enabled = e.says(SOCKET)?.starts_with("enabled");
    let environment = e.says(ENVIRONMENT)?;
    let set = |name: &str| {
        let mut words = environment.split_whitespace().map(|word| word.trim_matches('"'));
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(PathBuf::from)
    };
    let configured = &e.config()?.config.controller.tls;
    let cert = set("OSAPI_CONTROLLER_TLS_CERT").or_else(|| configured.cert.clone());
    let key = set("OSAPI_CONTROLLER_TLS_KEY").or_else(|| configured.key.clone());
    match cert.zip(key) {
        Some((cert, key)) => Ok(Some(Files { cert: e.below(cert), key: e.below(key) })),
        None if is_enabled => Ok(None),
        None => Err(skipped("nobody is served over a network")),
    }
}

/// The certificates, where they can be read; why not, one check tells.
fn chain(e: &Evidence) -> Result<Vec<Shown>, Finding> {
    let files = files(e)?.ok_or_else(unset)?;
    tls::shown(&files.cert).map_err(|error| match error.kind() {
        Kind::Denied => unseen(&error),
        _ => skipped("the certificate cannot be used"),
    })
}

fn unset() -> Finding {
    skipped("there is no certificate")
}

fn unseen(error: &Error) -> Finding {
    skipped(format!("only root may see it: {error}"))
}

/// What is wrong with it, unless this account may not look.
fn unusable(error: &Error) -> Result<Finding, Finding> {
    match error.kind() {
        Kind::Denied => Err(unseen(error)),
        _ => fail(error.to_string(), RENEW),
    }
}
