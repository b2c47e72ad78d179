//! Accepts connections, no more of one account than is fair to the others.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use super::Api;
use super::auth::{Gate, Peer};
use super::problem;
use super::wire::{self, Wire};
use crate::error::{Kind, Result};
use crate::link::Stream;

/// How long a connection may be silent between requests, and a head take to arrive.
const SILENCE: Duration = Duration::from_secs(30);
/// When there are no descriptors left, trying again at once would only burn the processor.
const PAUSE: Duration = Duration::from_millis(100);

/// How many connections there may be at once.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Of one account. Root, which may do anything anyway, gets half of all.
    pub per_uid: usize,
    /// Of all accounts.
    pub total: usize,
    /// How many of all are kept for root.
    pub for_root: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { per_uid: 64, total: 512, for_root: 16 }
    }
}

/// The connections there are.
#[derive(Default)]
pub(super) struct Slots {
    taken: Mutex<HashMap<u32, usize>>,
    given_back: Notify,
}

/// A connection's place, given back when dropped.
struct Slot {
    api: Arc<Api>,
    uid: u32,
}

impl Slots {
    fn taken(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, uid: u32, caps: Caps) -> bool {
        let mut taken = self.taken();
        let total: usize = taken.values().sum();
        let kept = if uid == 0 { 0 } else { caps.for_root };
        let own = taken.get(&uid).copied().unwrap_or_default();
        let most = if uid == 0 { caps.per_uid.max(caps.total / 2) } else { caps.per_uid };
        let has_room = own < most && total < caps.total.saturating_sub(kept);
        if has_room {
            *taken.entry(uid).or_default() += 1;
        }
        has_room
    }

    fn give_back(&self, uid: u32) {
        let mut taken = self.taken();
        if let Some(count) = taken.get_mut(&uid) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&uid);
            }
        }
        drop(taken);
        self.given_back.notify_one();
    }

    pub(super) fn count(&self) -> usize {
        self.taken().values().sum()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.api.slots.give_back(self.uid);
    }
}

impl Api {
    /// Returns once nobody is connected any more. Only one may wait for it.
    pub async fn rest(&self) {
        while self.slots.count() > 0 {
            self.slots.given_back.notified().await;
        }
    }

    /// Accepts connections until the future is dropped.
    pub async fn serve(self: &Arc<Self>, listener: UnixListener, caps: Caps) -> Result<()> {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.admit(stream, caps),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: UnixStream, caps: Caps) {
        let gate = self.gate();
        let peer = match gate.peer(&stream) {
            Ok(peer) => peer,
            Err(error) => return hang_up(&stream, error.kind(), &error.to_string()),
        };
        if !self.slots.take(peer.uid, caps) {
            self.metrics.refused_connection();
            return hang_up(&stream, Kind::Busy, "too many connections; close some and try again");
        }
        let slot = Slot { api: self.clone(), uid: peer.uid };
        tokio::spawn(async move { slot.api.clone().talk(stream, gate, peer, &slot).await });
    }

    async fn talk(self: Arc<Self>, stream: UnixStream, gate: Arc<Gate>, peer: Peer, _slot: &Slot) {
        let (wire, head) = match Stream::new(stream) {
            Ok(stream) => Wire::new(stream),
            Err(error) => return tracing::warn!(%error, "cannot watch a connection"),
        };
        let api = &self;
        let service = service_fn(|request| {
            // What was taken from a group is taken from its open connections, too.
            let now = api.gate();
            let is_same = Arc::ptr_eq(&now, &gate);
            let peer = if is_same { peer.clone() } else { now.admit(peer.uid, &peer.groups) };
            let (api, head) = (api.clone(), head.clone());
            // Where the peer has hung up already, the rest may never run: it is on record all the
            // same.
            let exchange = api.exchange(&request, &peer);
            async move { Ok::<_, Infallible>(api.respond(exchange, request, peer, head).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(SILENCE)
            .max_header_size(wire::MOST_HEAD)
            .max_buf_size(2 * wire::MOST_HEAD)
            // Answers of hyper's own are told from ours in one piece.
            .writev(false)
            .serve_connection(TokioIo::new(wire), service);
        tokio::pin!(connection);
        let mut stopping = self.stopping.subscribe();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            // Fails where nobody can tell any more, which is the end as well.
            () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
            if error.is_parse() {
                self.note_unreadable(&peer);
            }
        }
    }
}

/// Says why, as far as that needs no waiting, and closes.
fn hang_up(stream: &UnixStream, kind: Kind, message: &str) {
    let told = stream.try_write(&problem::refusal(kind, message));
    if let Err(error) = told {
        tracing::debug!(%error, "cannot tell a peer why it is turned away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_account_leaves_room_for_others_and_all_of_them_for_root() {
        let caps = Caps { per_uid: 3, total: 8, for_root: 2 };
        let slots = Slots::default();
        let taken = |uid| (0..10).filter(|_| slots.take(uid, caps)).count();
        assert_eq!([taken(1000), taken(1001), taken(1002), taken(0)], [3, 3, 0, 2]);
        slots.give_back(1000);
        assert_eq!(slots.count(), 7);
    }
}
