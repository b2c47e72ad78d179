//! HTTP in, HTTP out. The only place that knows what a request looks like.
//!
//! One function, [`Api::handle`], is the life of every request, its steps in order: limits, route,
//! permission, preview, parameters, work, answer. What went on is put on record whatever came of
//! it, also when the client hangs up meanwhile.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use serde_json::{Map, Value};
use tokio::sync::watch;
use uuid::Uuid;

use self::answer::{Answer, Failure};
use self::auth::{Gate, Peer, Source};
use self::body::Body;
use self::exchange::Exchange;
use self::listen::Slots;
use self::metrics::Metrics;
use self::request::{Gathered, Given, Prefer};
use self::routes::{METRICS, Place, Routes};
use self::wire::Head;
use crate::controller::{
    Call, ControllerOp, Key, Reply, Results, Shared, Submit, Submitted, Target, Trail,
};
use crate::error::{Error, Kind, Problem, Result};
use crate::ops::{Row, Run};
use crate::permission::{Caller, Permission};

pub mod answer;
pub mod auth;
mod body;
mod exchange;
pub mod json;
mod listen;
pub mod metrics;
pub mod openapi;
mod pages;
pub mod problem;
pub mod request;
mod routes;
mod stream;
mod upload;
mod wire;

pub use auth::Access;
pub use listen::Caps;

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub struct Api {
    controller: Shared,
    gate: RwLock<Arc<Gate>>,
    /// How long a call waits for hosts where the caller did not say.
    patience: Duration,
    routes: Routes,
    metrics: Metrics,
    slots: Slots,
    stopping: watch::Sender<bool>,
    openapi: OnceLock<Bytes>,
}

impl Api {
    /// `patience` is how long a call waits for hosts where the caller did not say.
    pub fn new(controller: Shared, access: Access, patience: Duration) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            controller,
            gate: RwLock::new(Arc::new(Gate::new(access)?)),
            patience,
            routes: Routes::new()?,
            metrics: Metrics::new()?,
            slots: Slots::default(),
            stopping: watch::Sender::new(false),
            openapi: OnceLock::new(),
        }))
    }

    /// From now on `access` says who may do what, also on connections that are open.
    pub async fn allow(&self, access: Access) -> Result<()> {
        // Looking up names may take a while.
        let gate = tokio::task::spawn_blocking(|| Gate::new(access)).await;
        let gate = Arc::new(gate.unwrap_or_else(|_| Err(panicked()))?);
        *self.gate.write().unwrap_or_else(PoisonError::into_inner) = gate;
        Ok(())
    }

    /// From now on connections end once the request that they are at is answered.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    fn gate(&self) -> Arc<Gate> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn respond(
        self: Arc<Self>,
        mut exchange: Exchange,
        request: Request<Incoming>,
        peer: Peer,
        head: Head,
    ) -> Response<Body> {
        let id = request::request_id(request.headers()).unwrap_or(&exchange.trail.id).to_owned();
        let (parts, body) = request.into_parts();
        let mut body = Some(body);
        let handled = AssertUnwindSafe(self.handle(&mut exchange, &parts, &mut body, &peer, &head));
        let outcome = handled.catch_unwind().await.unwrap_or_else(|_| Err(panicked().into()));
        let answer = outcome.unwrap_or_else(|failure| {
            exchange.log(&failure);
            Answer::failure(failure)
        });
        exchange.end(answer.status);
        if let Some(body) = body.filter(|_| !parts.headers.contains_key(header::EXPECT)) {
            request::leave(body).await;
        }
        head.answered();
        let mut response = dress(answer, &id);
        if let Some(page) = &peer.page {
            pages::open(&mut response, page);
        }
        response
    }

    fn exchange(self: &Arc<Self>, request: &Request<Incoming>, peer: &Peer) -> Exchange {
        let path = request.uri().path();
        let trail = Trail {
            id: Uuid::now_v7().to_string(),
            at: self.controller.clock().wall(),
            method: request.method().as_str().chars().take(16).collect(),
            path: path.chars().take(request::MOST_PATH).collect(),
            op: String::new(),
            source: peer.caller.source.clone(),
            trace: request::trace(request.headers()),
        };
        Exchange {
            api: self.clone(),
            caller: peer.caller.clone(),
            trail,
            row: None,
            started: Instant::now(),
            is_noted: false,
            is_over: false,
        }
    }

    /// The life of every request.
    async fn handle(
        self: &Arc<Self>,
        exchange: &mut Exchange,
        parts: &Parts,
        body: &mut Option<Incoming>,
        peer: &Peer,
        head: &Head,
    ) -> Result<Answer, Failure> {
        admit(parts, head, peer)?;
        if peer.page.is_some() && parts.method == hyper::Method::OPTIONS {
            // A browser asks whether the page may ask.
            exchange.is_noted = true;
            return Ok(pages::preflight());
        }
        let (place, captured) = self.routes.find(parts)?;
        let row = match place {
            Place::Row(row) => row,
            Place::OpenApi => {
                // Anybody may read what there is to call.
                exchange.is_noted = true;
                return Ok(Answer::bytes(200, "application/json", self.openapi()));
            }
            Place::Metrics => return self.show_metrics(exchange, peer),
        };
        exchange.row = Some(row);
        row.id.clone_into(&mut exchange.trail.op);
        if row.permission.is_some() {
            self.identified(peer)?;
        }
        require(&exchange.caller, row.permission, row.id)?;
        let query = request::pairs(parts.uri.query().unwrap_or_default())?;
        if request::asks_for_preview_in_vain(row, &query) {
            let message = format!("{} cannot tell what it would do; ask without dry_run", row.id);
            return Err(Error::new(Kind::NoPreview, message).into());
        }
        let captured = captured.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut gathered = Gathered::new(row, captured, &query);
        let mut file = None;
        let Some(body) = body.take() else { return Err(panicked().into()) };
        if request::takes_file(row) {
            let form = Box::pin(upload::form(&parts.headers, body)).await?;
            gathered.take_body(form.members, form.problems);
            file = Some((form.file, form.fault));
        } else if row.method.has_body() {
            let (members, problems): (Map<_, _>, Vec<Problem>) =
                request::body(&parts.headers, body).await?;
            gathered.take_body(members, problems);
        } else {
            request::no_body(body).await?;
        }
        if row.is_endless() {
            stream::take_place(&mut gathered, &parts.headers);
        }
        let given = gathered.finish()?;
        match row.run {
            Run::Agent(_) => self.ask_hosts(exchange, row, given, &parts.headers).await,
            Run::Controller(op) => {
                let (content, fault) = file.unzip();
                let key = key(row, &given, &parts.headers)?;
                let (caller, trail) = (exchange.caller.clone(), exchange.trail.clone());
                let controller = self.controller.clone();
                let call = Call { controller, caller, trail, content, key };
                let answer = Box::pin(ask_controller(exchange, row, op, call, given.params)).await;
                // Whoever read the file only knows that it could not.
                answer.map_err(|failure| match fault.and_then(|fault| fault.take()) {
                    Some(error) => error.into(),
                    None => failure,
                })
            }
        }
    }

    async fn ask_hosts(
        self: &Arc<Self>,
        exchange: &mut Exchange,
        row: &'static Row,
        given: Given,
        headers: &HeaderMap,
    ) -> Result<Answer, Failure> {
        let prefer = Prefer::of(headers);
        let is_recorded = row.changes() && !given.options.dry_run;
        let key = key(row, &given, headers)?.filter(|_| is_recorded);
        let Given { params, options, target } = given;
        let target = target.unwrap_or_default();
        let is_named = row.has_target() && answer::is_single(&target);
        let target = if row.has_target() {
            Target::Named(target)
        } else {
            // Who does something about a job needs the permission that the job itself needed.
            Box::pin(self.controller.permit(&target, &exchange.caller)).await?;
            Target::HostsOf(target)
        };
        let (caller, trail) = (exchange.caller.clone(), exchange.trail.clone());
        let submit = Submit { row, target, params, options, caller, trail, key };
        if row.is_endless() {
            return Box::pin(self.listen(submit)).await;
        }
        let Submitted { job, replayed } = self.submit(submit, is_recorded).await?;
        exchange.is_noted = is_recorded && !replayed;
        let dress = |answer: Answer| {
            let answer = match prefer.applied() {
                Some(applied) => answer.with(PREFERENCE_APPLIED, &applied),
                None => answer,
            };
            if replayed { answer.with(REPLAYED, "true") } else { answer }
        };
        let patience = prefer.patience();
        let mut results = match patience {
            Some(Duration::ZERO) => Results { hosts: Vec::new(), complete: false },
            _ => self.controller.wait(&job, patience.unwrap_or(self.patience)).await?,
        };
        let is_single = is_named || (!row.has_target() && job.hosts.len() == 1);
        if !results.complete && patience.is_none() && !is_single && !is_recorded {
            results = self.controller.give_up(&job).await?;
        }
        let asked = (!is_single).then_some(job.hosts.len());
        let about =
            |error, goes_on| Failure { job: Some(job.id.clone()), goes_on, ..Failure::from(error) };
        if !results.complete {
            if patience.is_none() {
                let message = format!(
                    "no answer within {} seconds; the job goes on, look at it later",
                    self.patience.as_secs()
                );
                return Err(about(Error::new(Kind::Timeout, message), true));
            }
            let body = answer::rows(row, &job.id, results.hosts, asked);
            let answer = Answer::json(202, &body)?;
            return Ok(dress(answer.with(header::LOCATION, &answer::location(&job.id))));
        }
        if is_single && let Some(error) = answer::single_error(&results) {
            return Err(about(error.into(), false));
        }
        let body = answer::rows(row, &job.id, results.hosts, asked);
        Ok(dress(Answer::json(row.status, &body)?))
    }

    /// Fails where nobody knows who is asking.
    fn identified(&self, peer: &Peer) -> Result<(), Failure> {
        let Some(refusal) = peer.refusal else { return Ok(()) };
        self.metrics.refused_token(refusal);
        Err(Failure { challenge: Some(refusal.challenge()), ..Failure::from(Error::from(refusal)) })
    }

    async fn submit(&self, submit: Submit, is_recorded: bool) -> Result<Submitted> {
        if !is_recorded {
            return self.controller.submit(submit).await;
        }
        // A client that hangs up must not stop it between the store and memory.
        let controller = self.controller.clone();
        // Those that are on their way at once share a commit.
        let coming = controller.expect();
        let submitted = tokio::spawn(Box::pin(async move {
            let _coming = coming;
            controller.submit(submit).await
        }));
        submitted.await.unwrap_or_else(|_| Err(panicked()))
    }

    fn show_metrics(&self, exchange: &mut Exchange, peer: &Peer) -> Result<Answer, Failure> {
        if !peer.reads_metrics {
            self.identified(peer)?;
            require(&exchange.caller, Some(Permission::HealthRead), METRICS)?;
        }
        exchange.is_noted = true;
        let text = self.metrics.text(self.slots.count(), &self.controller.figures())?;
        Ok(Answer::bytes(200, "text/plain; version=0.0.4; charset=utf-8", text))
    }

    fn openapi(&self) -> Bytes {
        self.openapi
            .get_or_init(|| serde_json::to_vec(&openapi::document()).unwrap_or_default().into())
            .clone()
    }

    /// Puts on record that somebody sent what is no request.
    fn note_unreadable(&self, peer: &Peer) {
        let trail = Trail {
            id: Uuid::now_v7().to_string(),
            at: self.controller.clock().wall(),
            source: peer.caller.source.clone(),
            ..Trail::default()
        };
        let code = Kind::InvalidInput.status();
        self.metrics.answered(metrics::NO_OP, "", code, Duration::ZERO);
        self.controller.note(&trail, &peer.caller, code, 0);
    }
}

async fn ask_controller(
    exchange: &mut Exchange,
    row: &'static Row,
    op: &'static dyn ControllerOp,
    mut call: Call,
    params: Value,
) -> Result<Answer, Failure> {
    let keyed = call.keyed();
    if let Some(keyed) = &keyed
        && let Some(output) = keyed.answer(call.content.as_mut()).await?
    {
        return Ok(answered(row, op, Reply::Whole(output))?.with(REPLAYED, "true"));
    }
    // RFC 9111, section 5.1: what is told of hosts without a broker to hear them is that old.
    let age = call.controller.age_of_hosts().filter(|_| row.tells_of_hosts());
    let run = op.run(call, params);
    let output = if row.changes() {
        // A client that hangs up must not stop it halfway.
        let output = tokio::spawn(run).await.unwrap_or_else(|_| Err(panicked()));
        match (output, keyed.filter(|_| !op.takes_file())) {
            // Somebody who asked the same at the same time may have been quicker.
            (Err(error), Some(keyed)) if error.kind() == Kind::Conflict => {
                let output = keyed.answer(None).await?.ok_or(error)?;
                return Ok(answered(row, op, Reply::Whole(output))?.with(REPLAYED, "true"));
            }
            (output, _) => output?,
        }
    } else {
        run.await?
    };
    // What anybody may ask, such as whether it is alive, is asked all the time.
    exchange.is_noted = row.changes() || row.permission.is_none();
    let answer = answered(row, op, output)?;
    Ok(match age {
        Some(age) => answer.with(header::AGE, &age.as_secs().to_string()),
        None => answer,
    })
}

fn answered(row: &Row, op: &dyn ControllerOp, output: Reply) -> Result<Answer> {
    let output = match output {
        Reply::Whole(output) => output,
        Reply::Parts(parts) => return Ok(Answer::parts("application/json", parts)),
    };
    let status = op.status(&output).unwrap_or(row.status);
    if status == 204 { Ok(Answer::empty(status)) } else { Answer::json(status, &output) }
}

/// The key by which a change is known when it is asked for again.
fn key(row: &Row, given: &Given, headers: &HeaderMap) -> Result<Option<Key>> {
    if !row.changes() {
        return Ok(None);
    }
    let value = request::idempotency_key(headers)?;
    Ok(value.map(|value| Key { value, digest: request::digest(given) }))
}

/// What is refused whatever it is about.
fn admit(parts: &Parts, head: &Head, peer: &Peer) -> Result<(), Failure> {
    let start = format!("{} {}", parts.method, parts.uri);
    let is_chunked = parts.headers.contains_key(header::TRANSFER_ENCODING);
    if let Some(fault) = head.fault(&start, is_chunked) {
        let error = Error::new(Kind::InvalidInput, fault);
        return Err(Failure { is_last: true, ..Failure::from(error) });
    }
    let length = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    if length > request::MOST_PATH {
        let message = format!("path and query are longer than {} bytes", request::MOST_PATH);
        return Err(Error::new(Kind::TooLarge, message).into());
    }
    // Only a page in a browser says where it comes from, and none has business with a socket.
    if parts.headers.contains_key(header::ORIGIN) && peer.page.is_none() {
        let message = match peer.source {
            Source::Account { .. } => "requests of web pages are refused on this socket",
            Source::Address(_) => {
                "requests of web pages are refused here, but for those that come from one of \
                 controller.api.security.cors.allow_origins"
            }
        };
        return Err(Error::new(Kind::Denied, message).into());
    }
    Ok(())
}

fn require(caller: &Caller, permission: Option<Permission>, what: &str) -> Result<()> {
    match permission {
        Some(needed) if !caller.may(permission) => {
            let (name, needed) = (&caller.name, needed.as_str());
            let message = format!(
                "{what} needs {needed}, which {name} lacks; ask an administrator for a role that \
                 has it"
            );
            Err(Error::new(Kind::Denied, message))
        }
        _ => Ok(()),
    }
}

fn panicked() -> Error {
    Error::new(Kind::Internal, "a bug kept this from being answered; the journal has the details")
}

fn dress(answer: Answer, id: &str) -> Response<Body> {
    let status = answer.status();
    let Answer { content_type, headers, body, .. } = answer;
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let headers = response.headers_mut();
    if !content_type.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}
