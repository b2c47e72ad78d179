//! Waits for the answer to a call.
//!
//! A call that changes something carries an idempotency key and is repeated until its job is
//! done: every repetition waits for the same job and is answered in the shape of the operation
//! itself. That way a restarted controller costs nothing but time, and the job's id is known while
//! it runs, so that whoever has no more patience can look at it later.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use super::call::{Call, Patience};
use super::client::{Content, Letter, Problem, Reply};
use super::command::waits;
use super::run::Session;
use super::say;
use super::terminal::Progress;
use super::text::flat;
use crate::controller::{ALL, ANY, ONLY};
use crate::error::{Error, Kind, Result};

/// How long a call waits that does not say so itself.
const USUAL: Duration = Duration::from_mins(10);
/// The first wait, in seconds: after it the job's id is known.
const FIRST: u128 = 1;
/// Every further one.
const NEXT: u128 = 20;
/// How long a controller that has accepted a job may be away.
const AWAY: Duration = Duration::from_mins(1);
/// The pause before asking a controller again that did not answer.
const PAUSE: Duration = Duration::from_millis(500);

/// How often a job that is waited for is asked how far it is, and how long that may take.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const TELL_WITHIN: Duration = Duration::from_secs(1);

/// What shells say of a command that Ctrl-C has ended, and of one that was told to end.
pub(super) const DETACHED: u8 = 130;
const ENDED: u8 = 143;

pub(super) struct Wait<'a> {
    session: &'a Session<'a>,
    call: &'a Call,
    /// None where the call is answered at once or not at all.
    key: Option<String>,
    patience: Duration,
    begun: Instant,
    job: RefCell<Option<String>>,
}

impl<'a> Wait<'a> {
    pub(super) fn new(session: &'a Session<'a>, call: &'a Call) -> Self {
        // A dry run leaves nothing that could be waited for again.
        let is_kept = waits(call.row) && !call.is_dry_run();
        let key = || call.key.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
        Self {
            session,
            call,
            key: is_kept.then(key),
            patience: match call.patience {
                Patience::Usual => USUAL,
                Patience::None => Duration::ZERO,
                Patience::Seconds(seconds) => Duration::from_secs(seconds),
            },
            begun: Instant::now(),
            job: RefCell::new(None),
        }
    }

    /// The answer, or how to exit where a signal has ended the waiting.
    pub(super) async fn answer(&self) -> Result<std::result::Result<Reply, u8>, Problem> {
        let mut progress = Progress::new();
        let mut told_to_end = signal(SignalKind::terminate()).map_err(|error| {
            Error::new(Kind::Internal, "cannot wait for signals").because(error)
        })?;
        let (mut told, mut asked) = (None, Instant::now());
        let asking = self.ask();
        tokio::pin!(asking);
        loop {
            tokio::select! {
                answer = &mut asking => {
                    progress.clear();
                    return answer.map(Ok);
                }
                _ = tokio::signal::ctrl_c() => {
                    progress.clear();
                    self.detach();
                    return Ok(Err(DETACHED));
                }
                _ = told_to_end.recv() => {
                    progress.clear();
                    return Ok(Err(self.end()));
                }
                () = tokio::time::sleep(Progress::PACE) => {
                    // Nobody is asked for what nobody sees.
                    if progress.is_shown() && asked.elapsed() >= ASK_AGAIN {
                        told = self.told().await;
                        asked = Instant::now();
                    }
                    progress.tell(&self.state(told.as_deref()));
                }
            }
        }
    }

    async fn ask(&self) -> Result<Reply, Problem> {
        // A host that goes down does so before somebody would notice that it takes long.
        let mut slice = if self.ends_with_the_host() { 0 } else { FIRST };
        let mut away: Option<Instant> = None;
        loop {
            let letter = self.letter(slice.min(self.left().as_millis().div_ceil(1000)))?;
            slice = NEXT;
            let problem = match self.session.send(letter).await {
                Ok(reply) if self.key.is_none() || self.call.patience == Patience::None => {
                    return Ok(reply);
                }
                Ok(reply) if !reply.is_pending => return Ok(reply),
                Ok(reply) => {
                    away = None;
                    let body = reply.json()?;
                    let id = body["job_id"].as_str().map(str::to_owned);
                    self.job.replace(id.clone());
                    let missing = match (&body["summary"]["waiting"], &body["summary"]["hosts"]) {
                        (Value::Number(waiting), Value::Number(hosts)) => {
                            format!("; {waiting} of {hosts} hosts have still to answer")
                        }
                        _ => String::new(),
                    };
                    let what = format!("the wait ran out before the job was done{missing}");
                    Problem { error: Error::new(Kind::Timeout, what), job: id, document: None }
                }
                Err(problem) => problem,
            };
            let job = self.job.borrow().clone();
            match problem.error.kind() {
                _ if self.left().is_zero() || self.key.is_none() => {
                    return Err(about(problem, job));
                }
                Kind::Timeout => {
                    away = None;
                    if problem.job.is_some() {
                        self.job.replace(problem.job);
                    }
                }
                // A controller that is being started again has not forgotten the job.
                Kind::Unavailable
                    if job.is_some()
                        && away.is_none_or(|since| since.elapsed() < self.longest_away()) =>
                {
                    if away.is_none() {
                        self.tell_away();
                        away = Some(Instant::now());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                _ => return Err(about(problem, job)),
            }
        }
    }

    /// Whether what is waited for takes the controller down, if that is on the same host.
    fn ends_with_the_host(&self) -> bool {
        self.call.row.ends_boot
    }

    /// How long a controller may be away; a host takes its time to be up again.
    fn longest_away(&self) -> Duration {
        if self.ends_with_the_host() { self.patience } else { AWAY }
    }

    fn tell_away(&self) {
        match self.job.borrow().as_ref() {
            Some(id) if self.ends_with_the_host() => {
                let id = flat(id);
                say(&format!(
                    "the controller is away, as it is when its host goes down; job {id} ends when \
                     the host is up again, and `osapi job get {id}` shows it then"
                ));
            }
            _ => say("the controller is away; the job goes on, and so does the waiting"),
        }
    }

    /// Says what happens to the job when this program is told to end, and gives its exit status:
    /// a host that goes down does what it was asked for.
    fn end(&self) -> u8 {
        match self.job.borrow().as_ref() {
            Some(id) if self.ends_with_the_host() => {
                let id = flat(id);
                say(&format!(
                    "told to end, as everything is when the host goes down; `osapi job get {id}` \
                     shows the job when it is up again"
                ));
                0
            }
            _ => {
                self.detach();
                ENDED
            }
        }
    }

    fn left(&self) -> Duration {
        self.patience.saturating_sub(self.begun.elapsed())
    }

    fn letter(&self, seconds: u128) -> Result<Letter> {
        let question = self.call.question()?;
        let mut headers = Vec::new();
        if let Some(key) = &self.key {
            headers.push(("idempotency-key", key.clone()));
            headers.push((
                "prefer",
                match self.call.patience {
                    Patience::None => "respond-async".to_owned(),
                    _ => format!("wait={seconds}"),
                },
            ));
        }
        Ok(Letter {
            method: Method::from_bytes(self.call.row.method.as_str().as_bytes()).map_err(
                |error| Error::new(Kind::Internal, "cannot say what to do").because(error),
            )?,
            uri: question.uri,
            headers,
            body: question.body.map_or(Content::Nothing, Content::Json),
        })
    }

    fn state(&self, told: Option<&str>) -> String {
        let seconds = self.begun.elapsed().as_secs();
        let place = match self.call.target.as_str() {
            "" => "the controller".to_owned(),
            ANY | ALL | ONLY => "the host".to_owned(),
            other => flat(other),
        };
        let job = self.job.borrow().as_ref().map(|id| format!(", job {}", flat(id)));
        let job = job.unwrap_or_default();
        let told = told.map(|told| format!(": {told}")).unwrap_or_default();
        format!("waiting for {place}, {seconds} s{job}{told} (Ctrl-C stops waiting)")
    }

    /// How far the job is, where its host tells and the caller may know.
    async fn told(&self) -> Option<String> {
        let uri = format!("/api/job/{}", self.job.borrow().clone()?);
        let asked = tokio::time::timeout(TELL_WITHIN, self.session.get(&uri)).await;
        let view = asked.ok()?.ok()?.json().ok()?;
        let hosts = view["agent_states"].as_object()?;
        let progress = hosts.values().find_map(|host| host.get("progress"))?;
        let percent = progress["percent"].as_u64();
        let percent = percent.map(|percent| format!(" ({percent} %)")).unwrap_or_default();
        Some(format!("{}{percent}", flat(progress["message"].as_str()?)))
    }

    fn detach(&self) {
        match self.job.borrow().as_ref() {
            Some(id) => {
                let id = flat(id);
                say(&format!("job {id} goes on; look at it with `osapi job get {id}`"));
            }
            None if self.key.is_some() => {
                say("it may have been accepted already; look for it with `osapi job list`");
            }
            None => {}
        }
    }
}

/// The same problem, with the job that was waited for.
fn about(problem: Problem, job: Option<String>) -> Problem {
    Problem { job: problem.job.or(job), ..problem }
}
