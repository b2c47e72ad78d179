//! Listening to what has no end.
//!
//! Such a job has one host, one listener and a place in this memory only, for as long as somebody
//! listens. Whatever the host tells is passed on through a bounded channel; a host waits for room
//! there, and goes no faster than whoever reads. When the listener goes, the answer to what the
//! host tells next says so, and the host stops.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::lanes::SoFar;
use super::status::Status;
use super::submit::Taken;
use super::{Controller, Shared, Submit, Submitted, lock};
use crate::error::{Error, ErrorBody, Kind, Result};
use crate::job::{Job, Outcome};
use crate::link::MOST_FOLLOWED;
use crate::op::Piece;
use crate::permission::Caller;

/// How many one caller may listen to at once.
const OF_CALLER: usize = 4;
/// How many messages of a host wait for whoever listens. Each has about 64 KiB, or one entry.
const WAITING: usize = 4;
/// How long a host waits for room among them.
pub(super) const SLOW: Duration = Duration::from_secs(10);
/// How long a host may take to begin, and be silent then: it says something every second.
const SILENCE: Duration = Duration::from_secs(30);

/// Who listens to what, by job.
#[derive(Default)]
pub(super) struct Listeners(HashMap<Uuid, Listener>);

struct Listener {
    caller: String,
    host: String,
    sender: mpsc::Sender<Vec<Piece>>,
    /// Until the caller has it.
    receiver: Option<mpsc::Receiver<Vec<Piece>>>,
    /// Why nothing more comes, where its host has not said so itself.
    why: Arc<OnceLock<ErrorBody>>,
}

/// What a host tells without an end. It stops when this is dropped.
pub struct Heard {
    controller: Shared,
    job: Taken,
    id: Uuid,
    pieces: mpsc::Receiver<Vec<Piece>>,
    so_far: watch::Receiver<SoFar>,
    is_impatient: watch::Receiver<bool>,
    why: Arc<OnceLock<ErrorBody>>,
}

impl Controller {
    /// Asks a host to tell what has no end.
    pub async fn listen(self: &Arc<Self>, submit: Submit) -> Result<Heard> {
        let Submitted { job, .. } = self.submit(submit).await?;
        let id = Uuid::parse_str(&job.id).unwrap_or_default();
        let open = self.lanes().get(id);
        let mut listeners = lock(&self.listeners);
        let listener = listeners.0.get_mut(&id);
        let taken = listener.and_then(|found| Some((found.receiver.take()?, found.why.clone())));
        let (Some(open), Some((pieces, why))) = (open, taken) else {
            return Err(Error::new(Kind::Internal, format!("nobody can listen to job {id}")));
        };
        let so_far = open.so_far.subscribe();
        let is_impatient = self.is_impatient.subscribe();
        Ok(Heard { controller: self.clone(), job, id, pieces, so_far, is_impatient, why })
    }

    /// Makes a place for whoever will listen to `job`, if there is room for one more.
    pub(super) fn expect_listener(&self, id: Uuid, job: &Job, caller: &Caller) -> Result<()> {
        let [host] = job.hosts.as_slice() else {
            let message = "one host can be followed at a time; name it";
            return Err(Error::new(Kind::InvalidInput, message));
        };
        let caller = caller.uid.map_or_else(|| caller.name.clone(), |uid| format!("uid {uid}"));
        let mut listeners = lock(&self.listeners);
        let count = |is: &dyn Fn(&Listener) -> bool| listeners.0.values().filter(|l| is(l)).count();
        if count(&|listener| listener.caller == caller) >= OF_CALLER {
            let message = format!("you follow {OF_CALLER} already; end one and try again");
            return Err(Error::new(Kind::Busy, message));
        }
        if count(&|listener| listener.host == *host) >= MOST_FOLLOWED {
            let message = format!("{MOST_FOLLOWED} follow this host already; retry later");
            return Err(Error::new(Kind::Busy, message));
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        let (host, receiver, why) = (host.clone(), Some(receiver), Arc::default());
        listeners.0.insert(id, Listener { caller, host, sender, receiver, why });
        Ok(())
    }

    /// Whether there is somebody to listen to what `host` tells of `id`.
    pub(super) fn listened(&self, host: &str, id: Uuid) -> bool {
        lock(&self.listeners).0.get(&id).is_some_and(|listener| listener.host == host)
    }

    /// Passes on what was told of `id`, once there is room, which is not to take longer than
    /// `patience`. False where nobody listens any more.
    pub(super) async fn pass_on(&self, id: Uuid, told: Value, patience: Duration) -> bool {
        let found = lock(&self.listeners).0.get(&id).map(|listener| listener.sender.clone());
        let Some(sender) = found else { return false };
        let Ok(pieces) = serde_json::from_value::<Vec<Piece>>(told) else {
            let message = "the host tells what nobody understands; is it of the same version?";
            self.silence(id, &Error::new(Kind::HostFailed, message));
            return false;
        };
        if pieces.is_empty() {
            // Only a sign of life.
            return !matches!(sender.try_send(pieces), Err(mpsc::error::TrySendError::Closed(_)));
        }
        match sender.send_timeout(pieces, patience).await {
            Ok(()) => true,
            Err(SendTimeoutError::Closed(_)) => false,
            Err(SendTimeoutError::Timeout(_)) => {
                let message = "it was read too slowly; go on behind the last id";
                self.silence(id, &Error::new(Kind::Busy, message));
                false
            }
        }
    }

    /// Takes note that the host tells no more of `id`, because its connection has ended.
    pub(super) fn lose(&self, id: Uuid) {
        let message = "the agent of the host went away; go on behind the last id";
        self.silence(id, &Error::new(Kind::Unavailable, message));
    }

    /// The same of all that `host` tells, because it has gone.
    pub(super) fn lose_all(&self, host: &str) {
        let lost: Vec<_> = {
            let listeners = lock(&self.listeners);
            let of_host = listeners.0.iter().filter(|(_, listener)| listener.host == host);
            of_host.map(|(id, _)| *id).collect()
        };
        for id in lost {
            self.lose(id);
        }
    }

    /// Passes nothing more on.
    fn silence(&self, id: Uuid, why: &Error) {
        if let Some(listener) = lock(&self.listeners).0.remove(&id) {
            // The first reason counts.
            let _ = listener.why.set(why.body());
        }
    }
}

impl Heard {
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// What comes next; nothing where there is only a sign of life. There is no end but an error,
    /// after which nothing comes.
    pub async fn next(&mut self) -> Result<Vec<Piece>> {
        let (so_far, impatient) = (&mut self.so_far, &mut self.is_impatient);
        let message = tokio::select! {
            biased;
            pieces = self.pieces.recv() => match pieces {
                Some(pieces) => return Ok(pieces),
                None => None,
            },
            // Whatever was passed on before has been taken.
            () = async { drop(so_far.wait_for(|so_far| so_far.is_over).await) } => None,
            () = async { drop(impatient.wait_for(|impatient| *impatient).await) } => {
                Some("the controller is about to end; ask again")
            }
            () = tokio::time::sleep(SILENCE) => {
                Some("the host does not answer; look at its agent")
            }
        };
        Err(message.map_or_else(|| self.end(), |message| Error::new(Kind::Unavailable, message)))
    }

    /// Why there is no more: what the host says counts before what was seen of it.
    fn end(&self) -> Error {
        let told = self.so_far.borrow().reports.first().map(|(_, report)| report.outcome.clone());
        match (told, self.why.get()) {
            (Some(Outcome::Failed { error }), _) => error.into(),
            (_, Some(why)) => why.clone().into(),
            _ => Error::new(Kind::Unavailable, "the host tells no more; ask again"),
        }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        lock(&self.controller.listeners).0.remove(&self.id);
        let is_open = self.controller.lanes().is_open(self.id);
        if is_open {
            // Its host is told so in answer to its next word, or is never handed it.
            self.controller.count_finished(&self.job.op, Status::Completed);
            self.controller.lanes().remove(self.id);
        }
    }
}
