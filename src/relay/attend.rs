//! What goes over a connection to the broker unasked: wakes to the host, and beats from it.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;

use super::Shared;
use crate::broker::Line;
use crate::error::{Error, Kind, Result};
use crate::link::MAX_FRAME;
use crate::link::bus::{Beat, Wake};
use crate::telemetry::Seldom;

/// The pause before another connection is looked for, which may not have been found lost yet.
const PAUSE: Duration = Duration::from_millis(50);

/// Has a connection in the name of the host. A controller answers at no other's inbox.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut known = shared.host.subscribe();
    let Ok(host) = known.wait_for(Option::is_some).await.map(|host| host.clone()) else { return };
    shared.bus.clone().keep(host.unwrap_or_default(), async |_| Ok(())).await;
}

/// Goes on for as long as there is a relay.
pub(super) async fn attend(shared: Arc<Shared>) {
    let mut known = shared.host.subscribe();
    let host = match known.wait_for(Option::is_some).await {
        Ok(host) => host.clone().unwrap_or_default(),
        Err(_) => return,
    };
    let (unusable, refused) = (Seldom::default(), Seldom::default());
    while let Some(line) = shared.bus.next_line().await {
        let subject = shared.subjects.wake(&host);
        match line.client.subscribe(subject.clone()).await {
            Ok(wakes) => {
                let refusal = async {
                    let text = line.refusal(&subject).await;
                    if let Some(count) = refused.count() {
                        tracing::error!(
                            count,
                            "the broker refuses this host the right to hear {subject}: {text}"
                        );
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = hear(&shared, &host, &line, wakes, &unusable) => {}
                    () = refusal => {}
                }
            }
            Err(error) => tracing::debug!(%error, "cannot hear what there is to do"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Says that the host has left.
pub(super) async fn leave(shared: &Shared) {
    let Some(host) = shared.memory().host() else { return };
    let Ok(line) = shared.bus.line() else { return };
    say(shared, &host, &line, &Beat { has_left: true, ..Beat::default() }).await;
    if let Err(error) = line.client.flush().await {
        tracing::debug!(%error, "cannot say that the host has left");
    }
}

/// Takes wakes and says beats until the connection is lost.
async fn hear(shared: &Shared, host: &str, line: &Line, mut wakes: Subscriber, unusable: &Seldom) {
    shared.memory().reconnected();
    // What was told while there was no connection is to be asked for.
    shared.wake(&crate::link::Class::ALL);
    let mut lost = line.lost();
    loop {
        let due = shared.memory().beat_is_due();
        let is_due = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = async { drop(lost.wait_for(|is_lost| *is_lost).await) } => return,
            message = wakes.next() => {
                let Some(message) = message else { return };
                match read(&message, &shared.subjects.wake(host)) {
                    Ok(wake) => {
                        let awaited = shared.memory().wake(wake);
                        shared.wake(&awaited);
                    }
                    Err(error) => if let Some(count) = unusable.count() {
                        tracing::warn!(%error, count, "what came over the broker is dropped");
                    }
                }
            }
            () = is_due => {
                let beat = shared.memory().beat();
                if let Some(beat) = beat {
                    say(shared, host, line, &beat).await;
                }
            }
            () = shared.news.notified() => {}
        }
    }
}

fn read(message: &Message, subject: &str) -> Result<Wake> {
    let refused =
        |why: &str| Error::new(Kind::InvalidInput, format!("a wake that cannot be used: {why}"));
    if message.subject.as_str() != subject {
        return Err(refused("it is for somebody else"));
    }
    if message.payload.len() > MAX_FRAME {
        return Err(refused("it is too large"));
    }
    serde_json::from_slice(&message.payload).map_err(|error| refused(&error.to_string()))
}

async fn say(shared: &Shared, host: &str, line: &Line, beat: &Beat) {
    let said = async {
        let body = serde_json::to_vec(beat).map_err(|error| error.to_string())?;
        let subject = shared.subjects.beat(host);
        line.client.publish(subject, body.into()).await.map_err(|error| error.to_string())
    };
    if let Err(error) = said.await {
        tracing::debug!(error, "cannot say that the host is there");
    }
}
