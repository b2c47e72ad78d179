//! A job as clients see it, computed from its record and the outcomes there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::lanes::{Open, SoFar};
use super::super::status::Status;
use super::super::{Call, Controller, ids, rows};
use super::{About, List};
use crate::clock::rfc3339;
use crate::error::{ErrorBody, Kind, Result};
use crate::job::{Job, Moved, Outcome, Progress, Record, Report, decode};
use crate::store::Order;

#[derive(Debug, JsonSchema, Serialize)]
pub struct Jobs {
    /// How many there are with that status, shown or not.
    pub total_items: usize,
    /// How many there are of each status.
    pub status_counts: BTreeMap<String, usize>,
    pub items: Vec<JobView>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct JobView {
    #[schemars(extend("format" = "uuid"))]
    pub id: String,
    pub status: String,
    pub created: String,
    /// `type`, `data` and `target` of what was asked for; secrets are left out.
    pub operation: BTreeMap<String, Value>,
    /// What the host answered, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Whether anything was modified, where that is known.
    pub changed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The host that was done last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
    /// Until when the change waits to be confirmed; it is taken back then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_until: Option<String>,
    /// By host.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub responses: BTreeMap<String, Response>,
    /// By host.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub agent_states: BTreeMap<String, AgentState>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Moment>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Response {
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    pub changed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The kind of the error, to branch on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    pub hostname: String,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct AgentState {
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// From begin to end, such as `1.5s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// How far it is, where the operation tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Moment {
    pub timestamp: String,
    pub event: String,
    pub hostname: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What one host has made of a job.
struct Part {
    host: String,
    hostname: String,
    status: Status,
    /// Whether it was begun at all, or called off, or left until it was too late.
    is_begun: bool,
    begun: u64,
    ended: u64,
    /// When it was done that was taken back since.
    stood: Option<u64>,
    result: Option<Value>,
    error: Option<ErrorBody>,
    progress: Option<Progress>,
}

/// A job for any host goes to another one.
struct Move {
    /// Milliseconds since 1970.
    at: u64,
    from: String,
    to: String,
}

/// As much of a report as a list shows.
#[derive(Deserialize)]
struct Brief {
    begun: u64,
    ended: u64,
    #[serde(default)]
    error: Option<ErrorBody>,
}

pub(super) async fn list(call: Call, params: List) -> Result<Jobs> {
    let controller = &call.controller;
    controller.index_is_complete().await;
    let wanted = params.status.map(Status::from);
    let counts = controller.counts();
    let total_items = match wanted {
        Some(status) => counts.get(&status).copied().unwrap_or_default(),
        None => counts.values().sum(),
    };
    let (offset, limit) = (index(params.offset), index(params.limit.clamp(1, 100)));
    let mut items = Vec::new();
    for id in controller.page(wanted, offset, limit) {
        // One that was deleted meanwhile is left out.
        if let Some(item) = controller.item(id).await? {
            items.push(item);
        }
    }
    let status_counts = counts.into_iter().map(|(status, count)| (status.as_str().into(), count));
    Ok(Jobs { total_items, status_counts: status_counts.collect(), items })
}

pub(super) async fn get(call: Call, About { id }: About) -> Result<JobView> {
    call.controller.view(id.as_str()).await
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Controller {
    async fn index_is_complete(&self) {
        loop {
            let complete = self.indexed.notified();
            if self.index().is_complete {
                return;
            }
            complete.await;
        }
    }

    /// The ids of a page of jobs, the newest first: what is open or in memory only, and what is
    /// finished, are two lists in the same order.
    fn page(&self, wanted: Option<Status>, offset: usize, limit: usize) -> Vec<Uuid> {
        let open: Vec<Arc<Open>> = self.lanes().newest_first().cloned().collect();
        let open = open.iter().map(|open| (open.id, wanted.map(|_| self.status(open))));
        let open: Vec<_> = open.collect();
        let index = self.index();
        let mut finished = index.newest_first().peekable();
        let mut open = open.into_iter().peekable();
        let merged = std::iter::from_fn(|| match (open.peek(), finished.peek()) {
            (Some((a, _)), Some((b, _))) if a == b => {
                open.next();
                finished.next().map(|(id, status)| (id, Some(status)))
            }
            (Some((a, _)), Some((b, _))) if a < b => {
                finished.next().map(|(id, status)| (id, Some(status)))
            }
            (Some(_), _) => open.next(),
            (None, _) => finished.next().map(|(id, status)| (id, Some(status))),
        });
        let is_wanted =
            |(_, status): &(Uuid, Option<Status>)| wanted.is_none() || *status == wanted;
        merged.filter(is_wanted).skip(offset).take(limit).map(|(id, _)| id).collect()
    }

    /// A job as it is shown in a list: without what its hosts have answered.
    async fn item(&self, id: Uuid) -> Result<Option<JobView>> {
        let open = self.lanes().get(id);
        if let Some(open) = open {
            let so_far = open.so_far.borrow().clone();
            let mut view = self.viewed(id, &open.record, &so_far);
            view.shorten();
            return Ok(Some(view));
        }
        let key = format!("job.{id}");
        let Some(entry) = self.store.get(&key).await? else { return Ok(None) };
        let record: Record = decode(&entry.value)?;
        let mut reports = Vec::new();
        for entry in self.store.list(&key, "", usize::MAX, Order::Ascending).await? {
            let Brief { begun, ended, error } = decode(&entry.value)?;
            let outcome = match error {
                Some(error) => Outcome::Failed { error },
                None => Outcome::Done { result: Value::Null },
            };
            let report = Report::new(id.to_string(), begun, ended, outcome);
            reports.push((entry.key[key.len() + 1..].to_owned(), Arc::new(report)));
        }
        let cancelled = record.job.cancelled.clone();
        let told = BTreeMap::new();
        let so_far = SoFar { reports, cancelled, told, ..SoFar::over() };
        let mut view = self.viewed(id, &record, &so_far);
        view.shorten();
        Ok(Some(view))
    }

    pub(super) async fn view(&self, id: &str) -> Result<JobView> {
        let uuid = Uuid::parse_str(id).unwrap_or_default();
        let open = self.lanes().get(uuid);
        if let Some(open) = open.filter(|open| ids::mark_of(open.id) != ids::STORED) {
            let so_far = open.so_far.borrow().clone();
            return Ok(self.viewed(uuid, &open.record, &so_far));
        }
        // The store is asked even while the job is open: it may know more already.
        let record = self.record(id).await?;
        let reports = self.reports(id).await?;
        let so_far = SoFar {
            reports: reports.into_iter().map(|(host, report)| (host, report.into())).collect(),
            cancelled: record.job.cancelled.clone(),
            told: self.told(uuid),
            is_over: false,
            ..SoFar::over()
        };
        Ok(self.viewed(uuid, &record, &so_far))
    }

    fn viewed(&self, id: Uuid, record: &Record, so_far: &SoFar) -> JobView {
        viewed(record, self.parts(id, record, so_far), &self.moves_of(&record.job))
    }

    /// When a job has gone from where to where, by name.
    fn moves_of(&self, job: &Job) -> Vec<Move> {
        let hosts = self.hosts();
        let to = job.moved.iter().skip(1).map(|moved| &moved.from).chain(&job.hosts);
        let moves = job.moved.iter().zip(to);
        let named = |(moved, to): (&Moved, &String)| Move {
            at: moved.at,
            from: hosts.name(&moved.from),
            to: hosts.name(to),
        };
        moves.map(named).collect()
    }

    fn parts(&self, id: Uuid, record: &Record, so_far: &SoFar) -> Vec<Part> {
        let (job, reports) = (&*so_far.job(&record.job), so_far.by_host());
        let part = |host: &String| {
            let reported = reports.get(host.as_str()).copied();
            let is_cancelled = so_far.cancelled.is_some();
            let mut status = self.status_on(id, job, host, reported, is_cancelled);
            let report = match reported {
                Some(report) => Some(report.clone()),
                None => self.missing(id, job, host, so_far),
            };
            let (begun, ended) =
                report.as_ref().map_or((0, 0), |report| (report.begun, report.ended));
            let stood = report.as_ref().and_then(|report| report.stood);
            let (result, error) = match report.map(|report| report.outcome) {
                Some(Outcome::Done { result }) => (Some(result), None),
                Some(Outcome::Failed { error }) => (None, Some(error)),
                None => (None, None),
            };
            if error.as_ref().is_some_and(|error| error.kind != Kind::Unsupported) {
                status = Status::Failed;
            }
            let is_begun = reported.is_some()
                && error
                    .as_ref()
                    .is_none_or(|e| !matches!(e.kind, Kind::Expired | Kind::Cancelled));
            let progress = so_far.told.get(host).filter(|_| !status.is_final()).cloned();
            let (host, hostname) = (host.clone(), self.hosts().name(host));
            Part { host, hostname, status, is_begun, begun, ended, stood, result, error, progress }
        };
        job.hosts.iter().map(part).collect()
    }
}

fn viewed(record: &Record, parts: Vec<Part>, moves: &[Move]) -> JobView {
    let job = &record.job;
    let status = Status::overall(parts.iter().map(|part| part.status));
    let mut data = rows::shown(&job.op, &record.params);
    if let (false, Some(fields)) = (record.options.is_default(), data.as_object_mut()) {
        fields.insert("options".to_owned(), json!(record.options));
    }
    let operation = [("type", json!(job.op)), ("data", data), ("target", json!(job.target))];
    let timeline = timeline(record, &parts, moves);
    let last = parts.iter().filter(|part| part.status.is_final()).max_by_key(|part| part.ended);
    let hostname = last.map(|part| part.hostname.clone());
    let failed = parts.iter().find_map(|part| part.error.as_ref());
    let error = failed.map(|error| error.message.clone());
    let updated_at = timeline.last().map(|moment| moment.timestamp.clone());
    let waiting_until = waiting_until(job, &parts);
    let (mut responses, mut agent_states) = (BTreeMap::new(), BTreeMap::new());
    let answered: Vec<_> = parts.iter().map(|part| changed_of(part.result.as_ref())).collect();
    let changed = match answered[..] {
        [only] => only,
        _ => answered.contains(&Some(true)).then_some(true),
    };
    let result = match &parts[..] {
        [only] => only.result.clone(),
        _ => None,
    };
    for part in parts {
        let mut token = token(&part.hostname);
        if agent_states.contains_key(&token) {
            // Two hosts of one name.
            token.clone_from(&part.host);
        }
        let error = part.error.as_ref().map(|error| error.message.clone());
        let duration = part.is_begun.then(|| duration(part.ended.saturating_sub(part.begun)));
        let status = part.status.as_str().to_owned();
        let (error_told, progress) = (error.clone(), part.progress);
        let state = AgentState { status: status.clone(), error: error_told, duration, progress };
        agent_states.insert(token.clone(), state);
        if part.status.is_final() {
            let changed = changed_of(part.result.as_ref());
            let (data, hostname) = (part.result, part.hostname);
            let kind = part.error.map(|error| error.kind);
            let response = Response { status, data, changed, error, kind, hostname };
            responses.insert(token, response);
        }
    }
    JobView {
        id: job.id.clone(),
        status: status.as_str().to_owned(),
        created: rfc3339(job.created),
        operation: operation.map(|(name, value)| (name.to_owned(), value)).into(),
        result,
        changed,
        error,
        hostname,
        updated_at,
        waiting_until,
        responses,
        agent_states,
        timeline,
    }
}

impl JobView {
    /// Leaves out what only the view of a single job has.
    fn shorten(&mut self) {
        (self.result, self.changed, self.waiting_until) = (None, None, None);
        self.responses.clear();
        self.agent_states.clear();
        self.timeline.clear();
    }
}

fn changed_of(result: Option<&Value>) -> Option<bool> {
    result?.get("changed")?.as_bool()
}

/// Until when a change waits on any host, where nobody has confirmed it.
fn waiting_until(job: &Job, parts: &[Part]) -> Option<String> {
    let until =
        |part: &Part| Some(part.result.as_ref()?.get("confirm_until")?.as_str()?.to_owned());
    let waiting = parts.iter().filter(|part| part.status == Status::Completed);
    waiting.filter_map(until).min().filter(|_| job.confirmed.is_none())
}

/// What has happened so far, by the clocks of those it happened to.
fn timeline(record: &Record, parts: &[Part], moves: &[Move]) -> Vec<Moment> {
    let job = &record.job;
    let mut moments =
        vec![(job.created, "submitted", "", format!("Submitted by {}", job.caller), None)];
    for Move { at, from, to } in moves {
        let message = format!("{from} was away and had not had it; it goes to {to}");
        moments.push((*at, "taken_over", to, message, None));
    }
    for part in parts {
        let host = part.hostname.as_str();
        if part.is_begun {
            moments.push((part.begun, "started", host, format!("Started on {host}"), None));
        }
        let error = part.error.as_ref().map(|error| error.message.clone());
        if let Some(at) = part.stood {
            moments.push((at, "completed", host, format!("Completed on {host}"), None));
        }
        let ended = match (part.status, part.error.as_ref().map(|error| error.kind)) {
            (_, Some(Kind::Cancelled)) => None,
            (_, Some(Kind::Expired)) => Some(("failed", format!("Not begun in time on {host}"))),
            (_, Some(Kind::Reverted)) => Some(("reverted", format!("Taken back on {host}"))),
            (Status::Completed, _) => Some(("completed", format!("Completed on {host}"))),
            (Status::Failed, _) => Some(("failed", format!("Failed on {host}"))),
            (Status::Skipped, _) => Some(("skipped", format!("{host} cannot do it"))),
            _ => None,
        };
        moments.extend(ended.map(|(event, message)| (part.ended, event, host, message, error)));
    }
    if let Some(mark) = &job.cancelled {
        moments.push((mark.at, "cancelled", "", format!("Called off by {}", mark.by), None));
    }
    if let Some(mark) = &job.confirmed {
        moments.push((mark.at, "confirmed", "", format!("Confirmed by {}", mark.by), None));
    }
    for mark in &job.retried {
        let new = mark.job.as_deref().unwrap_or_default();
        moments.push((mark.at, "retried", "", format!("Retried by {} as {new}", mark.by), None));
    }
    moments.sort_by_key(|moment| moment.0);
    let moment = |(at, event, host, message, error): (u64, &str, &str, String, Option<String>)| {
        let (event, hostname) = (event.to_owned(), host.to_owned());
        Moment { timestamp: rfc3339(at), event, hostname, message, error }
    };
    moments.into_iter().map(moment).collect()
}

/// How hosts are named where clients look for them.
fn token(hostname: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    hostname.chars().map(|c| if is_plain(c) { c } else { '_' }).collect()
}

/// Milliseconds as existing clients read them.
fn duration(ms: u64) -> String {
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    let rest = ms % 60_000;
    let mut seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    seconds.truncate(seconds.trim_end_matches('0').trim_end_matches('.').len());
    match (hours, minutes) {
        (0, 0) if ms < 1000 => format!("{ms}ms"),
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_they_always_did() {
        for (ms, expected) in [
            (0, "0ms"),
            (250, "250ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (10_000, "10s"),
            (62_050, "1m2.05s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(duration(ms), expected);
        }
    }
}
