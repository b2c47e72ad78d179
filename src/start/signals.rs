//! What the service manager, a terminal or a parent says to a process, and what it is told.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Kind, Result};

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

/// Says that this process is well for as long as its runtime turns.
pub(super) async fn feed_watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut beat = tokio::time::interval((limit / 2).max(Duration::from_millis(10)));
    loop {
        beat.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        Error::new(Kind::Unavailable, format!("cannot start the runtime: {error}"))
    })
}
