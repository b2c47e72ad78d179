//! What the service manager, a terminal or a parent says to a process, and what it is told.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Kind, Result};

/// How often the status is told where nobody watches.
const STATUS: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wish {
    Stop,
    Reload,
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Error::new(Kind::Unavailable, format!("cannot listen to signals: {error}"))
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => Wish::Reload,
        }
    }
}

/// Tells the service manager, where there is one.
pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
}

/// Tells the service manager that the configuration is read again, for as long as this lives.
pub(super) struct Reloading;

impl Reloading {
    pub(super) fn begin() -> Self {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "there is no monotonic clock"),
        }
        Self
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        notify(&[NotifyState::Ready]);
    }
}

/// What a process says of itself for as long as its runtime turns.
pub(super) struct Health {
    /// In a line, for people.
    pub(super) status: String,
    /// Why it is better started again.
    pub(super) stuck: Option<String>,
}

/// Tells the service manager, where there is one, how this process is, as often as it wants to
/// hear it; nothing any more of one that is stuck, which is then killed and started again.
pub(super) async fn tell(health: impl Fn() -> Health) {
    if !is_listened_to() {
        return std::future::pending().await;
    }
    let often = sd_notify::watchdog_enabled().map_or(STATUS, |limit| limit / 2);
    let mut beat = tokio::time::interval(often.max(Duration::from_millis(10)));
    let mut told = None;
    loop {
        beat.tick().await;
        let Health { status, stuck } = health();
        match stuck {
            None => notify(&[NotifyState::Watchdog]),
            Some(why) => tracing::error!("{why}; waiting to be started again"),
        }
        if told.as_ref() != Some(&status) {
            notify(&[NotifyState::Status(&status)]);
            told = Some(status);
        }
    }
}

/// Whether a service manager started this process, and hears what it says.
pub(super) fn is_listened_to() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Error::new(Kind::Unavailable, format!("cannot start the runtime: {error}"))
    })
}
