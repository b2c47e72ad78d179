//! Where the controller is served over a network, and what is shown there.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use super::listen::{for_network, is_for_others, loopback};
use crate::config::{Config, Secret};
use crate::error::Result;
use crate::tls;

/// A signing key of fewer bytes can be found out.
const LEAST_KEY: usize = 32;

/// What is shown to whoever connects over a network. What the service manager hands over is taken
/// without a certificate that can be used as well, since the local socket is to answer whatever
/// becomes of the others: they are closed until there is one.
pub(super) fn encryption(
    config: &Config,
    passed: &[TcpListener],
    is_activated: bool,
) -> Result<Option<Arc<tls::Server>>> {
    let server = match config.controller.tls.files() {
        Some(files) => match tls::Server::new(&files) {
            Err(error) if is_activated || !passed.is_empty() => {
                tls::Server::without(error.to_string())
            }
            server => server?,
        },
        None if passed.iter().any(is_for_others) => tls::Server::without(
            "there is no certificate, and what is said there, tokens among it, would be readable \
             on the way; set controller.tls.cert and controller.tls.key"
                .to_owned(),
        ),
        None => return Ok(None),
    };
    if let Some(why) = server.fault() {
        tracing::error!(
            "nobody is served over the network: {why}; then `systemctl reload osapi-controller`"
        );
    }
    Ok(Some(Arc::new(server)))
}

/// Where the API is served beside its socket. The service manager's socket units decide that where
/// there are any.
pub(super) fn network(
    config: &Config,
    passed: Vec<TcpListener>,
    is_activated: bool,
) -> Result<Vec<(SocketAddr, tokio::net::TcpListener)>> {
    let mut listeners = passed;
    match config.controller.api.port {
        // Whoever sets it expects to be able to connect to it.
        Some(port) if is_activated => tracing::warn!(
            "controller.api.port is set to {port} and has no effect here: the socket units decide; \
             `systemctl enable --now osapi-tls.socket` opens a port"
        ),
        Some(port) => listeners.extend(loopback(port)?),
        None => {}
    }
    let key = Secret::set(config.controller.api.security.signing_key.as_ref());
    if key.is_some_and(|key| key.reveal().len() < LEAST_KEY) && !listeners.is_empty() {
        tracing::warn!(
            "controller.api.security.signing_key is shorter than {LEAST_KEY} characters; whoever \
             guesses it makes tokens for anything"
        );
    }
    listeners.into_iter().map(for_network).collect()
}
