//! The agent's socket, served by a controller or by a relay.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::listen::Bound;
use crate::error::Kind;
use crate::link::{self, Desk};
use crate::telemetry::Seldom;

/// How many connections agents may have. One needs eighteen, and more while reads hang.
const AGENT_CONNECTIONS: usize = 64;
/// The pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers whoever connects as `uid`, each at a desk for the process that has connected; nobody
/// where others listen.
pub(super) async fn answer_agents<D: Desk + 'static>(
    bound: Option<Bound>,
    uid: u32,
    desk: impl Fn(i32) -> D,
) {
    let Some(bound) = bound else { return };
    let room = Arc::new(Semaphore::new(AGENT_CONNECTIONS));
    // Anybody may connect.
    let closed = Arc::new(Seldom::default());
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let stream = match bound.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an agent's connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default();
        let (desk, closed) = (desk(pid), closed.clone());
        tokio::spawn(async move {
            if let Err(error) = link::serve(stream, uid, desk).await {
                match error.kind() {
                    Kind::Unavailable => {
                        tracing::debug!(%error, pid, "an agent's connection ended");
                    }
                    _ => {
                        if let Some(count) = closed.count() {
                            tracing::warn!(%error, pid, count, "an agent's connection was closed");
                        }
                    }
                }
            }
            drop(place);
        });
    }
}
