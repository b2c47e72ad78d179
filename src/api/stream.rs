//! What has no end, as server-sent events.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::header::HeaderMap;
use serde_json::json;
use tokio::sync::watch;

use super::Api;
use super::answer::{Answer, Failure};
use super::request::Gathered;
use crate::controller::{Heard, Submit};
use crate::error::{Error, Kind, Result};
use crate::op::Piece;

/// How long nothing may be written, so that whoever stands in between keeps the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How a stream begins: how soon to come back, in milliseconds, when it breaks off.
const BEGINNING: &str = "retry: 1000\n\n";

/// Takes the place from which a client goes on out of the header that browsers send. It is newer
/// than what the URL says, which stays as it was.
pub(super) fn take_place(gathered: &mut Gathered<'_>, headers: &HeaderMap) {
    if let Some(id) = headers.get("last-event-id").filter(|id| !id.is_empty()) {
        let id = String::from_utf8_lossy(id.as_bytes());
        gathered.members.insert("after".to_owned(), id.into());
    }
}

struct Events {
    heard: Heard,
    stopping: watch::Receiver<bool>,
    /// What came before the answer began.
    first: Option<Vec<Piece>>,
    written: Instant,
}

impl Api {
    /// Answers with what a host tells, once it has begun: what kept it from that is an error like
    /// any other.
    pub(super) async fn listen(&self, submit: Submit) -> Result<Answer, Failure> {
        let mut heard = self.controller.listen(submit).await?;
        let first = heard.next().await;
        let job = Some(heard.job().id.clone());
        let first = first.map_err(|error| Failure { job, ..Failure::from(error) })?;
        let stopping = self.stopping.subscribe();
        let events = Events { heard, stopping, first: Some(first), written: Instant::now() };
        let parts = stream::unfold(Some(events), |events| async move { events?.next().await });
        Ok(Answer::parts("text/event-stream", parts.map(Ok)))
    }
}

impl Events {
    /// The next part, and what is left.
    async fn next(mut self) -> Option<(Bytes, Option<Self>)> {
        loop {
            let mut text = String::new();
            let pieces = match self.first.take() {
                Some(first) => {
                    text.push_str(BEGINNING);
                    Ok(first)
                }
                None => self.wait().await,
            };
            match pieces {
                Ok(pieces) => pieces.iter().for_each(|piece| write(&mut text, piece)),
                Err(error) => {
                    let body = error.body();
                    let end = json!({ "kind": body.kind, "message": body.message });
                    return Some((format!("event: end\ndata: {end}\n\n").into(), None));
                }
            }
            if text.is_empty() && self.written.elapsed() >= KEEP_ALIVE {
                text.push_str(":\n\n");
            }
            if !text.is_empty() {
                self.written = Instant::now();
                return Some((text.into(), Some(self)));
            }
        }
    }

    async fn wait(&mut self) -> Result<Vec<Piece>> {
        tokio::select! {
            biased;
            () = async { drop(self.stopping.wait_for(|stopping| *stopping).await) } => {
                Err(Error::new(Kind::Unavailable, "the controller is about to end; ask again"))
            }
            pieces = self.heard.next() => pieces,
        }
    }
}

/// JSON has no line breaks of its own; an id that has one is none.
fn write(text: &mut String, piece: &Piece) {
    if let Some(id) = piece.id.as_ref().filter(|id| !id.contains(char::is_control)) {
        text.extend(["id: ", id, "\n"]);
    }
    text.extend(["data: ", &piece.value.to_string(), "\n\n"]);
}
