//! Accepts connections, no more of one account than is fair to the others.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Notify;

use super::Api;
use super::auth::{Gate, Peer, Source};
use super::problem;
use super::wire::{self, Wire};
use crate::error::{Kind, Result};
use crate::link::Stream;
use crate::tls;

/// How long a connection may be silent between requests, and a head take to arrive.
const SILENCE: Duration = Duration::from_secs(30);
/// How long it may take to agree on how to encrypt.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the first request of a connection is waited for when no more are accepted.
const FIRST_WORD: Duration = Duration::from_secs(1);
const TOO_MANY: &str = "too many connections; close some and try again";
/// When there are no descriptors left, trying again at once would only burn the processor.
const PAUSE: Duration = Duration::from_millis(100);

/// How many connections there may be at once.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Of one account. Root, which may do anything anyway, gets half of all.
    pub per_uid: usize,
    /// Of one address, or one network of 64 bits of IPv6.
    pub per_address: usize,
    /// Of all addresses.
    pub of_network: usize,
    /// Of all accounts and addresses.
    pub total: usize,
    /// How many of all are kept for root.
    pub for_root: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { per_uid: 64, per_address: 64, of_network: 256, total: 512, for_root: 16 }
    }
}

/// Who holds a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Holder {
    Account(u32),
    Address(IpAddr),
}

impl Holder {
    fn of(source: &Source) -> Self {
        match source {
            Source::Account { uid, .. } => Self::Account(*uid),
            Source::Address(IpAddr::V6(address)) => {
                // Whoever has one of them has all of them.
                let network = address.to_bits() & !u128::from(u64::MAX);
                Self::Address(Ipv6Addr::from_bits(network).into())
            }
            Source::Address(address) => Self::Address(*address),
        }
    }
}

/// The connections there are.
#[derive(Default)]
pub(super) struct Slots {
    taken: Mutex<HashMap<Holder, usize>>,
    given_back: Notify,
}

/// A connection's place, given back when dropped.
struct Slot {
    api: Arc<Api>,
    holder: Holder,
}

impl Slots {
    fn taken(&self) -> MutexGuard<'_, HashMap<Holder, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, holder: Holder, caps: Caps) -> bool {
        let mut taken = self.taken();
        let total: usize = taken.values().sum();
        let is_network = |holder: &Holder| matches!(holder, Holder::Address(_));
        let of_network = taken.iter().filter(|(holder, _)| is_network(holder));
        let of_network: usize = of_network.map(|(_, count)| count).sum();
        let own = taken.get(&holder).copied().unwrap_or_default();
        let (most, kept) = match holder {
            Holder::Account(0) => (caps.per_uid.max(caps.total / 2), 0),
            Holder::Account(_) => (caps.per_uid, caps.for_root),
            Holder::Address(_) => (caps.per_address, caps.for_root),
        };
        let has_room = own < most
            && total < caps.total.saturating_sub(kept)
            && (!is_network(&holder) || of_network < caps.of_network);
        if has_room {
            *taken.entry(holder).or_default() += 1;
        }
        has_room
    }

    fn give_back(&self, holder: Holder) {
        let mut taken = self.taken();
        if let Some(count) = taken.get_mut(&holder) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&holder);
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
        self.api.slots.give_back(self.holder);
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
        let Some(slot) = self.slot(&peer.source, caps) else {
            return hang_up(&stream, Kind::Busy, TOO_MANY);
        };
        tokio::spawn(async move {
            match Stream::new(stream) {
                Ok(stream) => slot.api.clone().talk(stream, gate, peer, &slot).await,
                Err(error) => tracing::warn!(%error, "cannot watch a connection"),
            }
        });
    }

    /// Accepts connections that come over a network, until the future is dropped. Who asks there
    /// is known by bearer tokens.
    pub async fn serve_network(
        self: &Arc<Self>,
        listener: TcpListener,
        caps: Caps,
        tls: Option<Arc<tls::Server>>,
    ) -> Result<()> {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    self.admit_address(stream, address.ip().to_canonical(), caps, tls.as_deref());
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn admit_address(
        self: &Arc<Self>,
        stream: TcpStream,
        address: IpAddr,
        caps: Caps,
        tls: Option<&tls::Server>,
    ) {
        let gate = self.gate();
        let peer = gate.stranger(address);
        let acceptor = tls.map(tls::Server::acceptor);
        // Never in the clear instead.
        let Some(acceptor) = acceptor.map_or(Some(None), |acceptor| acceptor.map(Some)) else {
            self.metrics.failed_handshake();
            return;
        };
        let Some(slot) = self.slot(&peer.source, caps) else {
            if acceptor.is_none() {
                told(stream.try_write(&problem::refusal(Kind::Busy, TOO_MANY)));
            }
            return;
        };
        // Answers are written in one piece, and are not to wait for another.
        drop(stream.set_nodelay(true));
        tokio::spawn(async move {
            let api = slot.api.clone();
            let Some(acceptor) = acceptor else { return api.talk(stream, gate, peer, &slot).await };
            let agreed = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
            let agreed = tokio::select! {
                agreed = agreed => agreed,
                () = api.told_to_stop() => return,
            };
            match agreed {
                Ok(Ok(stream)) => api.talk(stream, gate, peer, &slot).await,
                Ok(Err(error)) => {
                    api.metrics.failed_handshake();
                    tracing::debug!(%error, %address, "no encrypted connection came about");
                }
                Err(_) => {
                    api.metrics.failed_handshake();
                    tracing::debug!(%address, "no encrypted connection came about in time");
                }
            }
        });
    }

    /// Returns once connections are to end.
    async fn told_to_stop(&self) {
        // Fails where nobody can tell any more, which is the end as well.
        drop(self.stopping.subscribe().wait_for(|stopping| *stopping).await);
    }

    fn slot(self: &Arc<Self>, source: &Source, caps: Caps) -> Option<Slot> {
        let holder = Holder::of(source);
        if self.slots.take(holder, caps) {
            return Some(Slot { api: self.clone(), holder });
        }
        self.metrics.refused_connection();
        None
    }

    async fn talk<S>(self: Arc<Self>, stream: S, gate: Arc<Gate>, peer: Peer, _slot: &Slot)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (wire, head) = Wire::new(stream);
        let api = &self;
        let has_asked = Notify::new();
        let service = service_fn(|request| {
            has_asked.notify_one();
            let now = api.gate();
            let peer = match &peer.source {
                Source::Account { .. } if Arc::ptr_eq(&now, &gate) => peer.clone(),
                // What was taken from a group is taken from its open connections, too.
                Source::Account { uid, groups } => now.admit(*uid, groups),
                Source::Address(address) => now.bearer(*address, request.headers()),
            };
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
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.told_to_stop() => {
                // Whoever has just connected counts on an answer to what is still on its way.
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = has_asked.notified() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                    () = tokio::time::sleep(FIRST_WORD) => Ok(()),
                }
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
    told(stream.try_write(&problem::refusal(kind, message)));
}

fn told(result: std::io::Result<usize>) {
    if let Err(error) = result {
        tracing::debug!(%error, "cannot tell a peer why it is turned away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_account_leaves_room_for_others_and_all_of_them_for_root() {
        let caps = Caps { per_uid: 3, total: 8, for_root: 2, ..Caps::default() };
        let slots = Slots::default();
        let taken = |uid| (0..10).filter(|_| slots.take(Holder::Account(uid), caps)).count();
        assert_eq!([taken(1000), taken(1001), taken(1002), taken(0)], [3, 3, 0, 2]);
        slots.give_back(Holder::Account(1000));
        assert_eq!(slots.count(), 7);
    }

    #[test]
    fn one_address_leaves_room_for_others_and_all_of_them_for_accounts() {
        let caps = Caps { per_uid: 3, per_address: 2, of_network: 5, total: 8, ..Caps::default() };
        let caps = Caps { for_root: 1, ..caps };
        let slots = Slots::default();
        let holder = |text: &str| Holder::of(&Source::Address(text.parse().unwrap()));
        let taken = |text: &str| (0..10).filter(|_| slots.take(holder(text), caps)).count();
        assert_eq!([taken("192.0.2.1"), taken("192.0.2.2")], [2, 2]);
        // Of one network, and the last of all addresses.
        assert_eq!([taken("2001:db8::1"), taken("2001:db8::2"), taken("192.0.2.3")], [1, 0, 0]);
        slots.give_back(holder("192.0.2.1"));
        assert_eq!([taken("2001:db8::ffff"), taken("2001:db8:0:1::1")], [1, 0]);
        assert!(slots.take(Holder::Account(1000), caps));
        assert_eq!(slots.count(), 6);
    }
}
