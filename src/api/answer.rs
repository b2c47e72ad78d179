//! What became of a request, as clients read it.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::StreamExt;
use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::body::Body;
use super::problem::{self, Document};
use crate::controller::{HostResult, Results};
use crate::error::{Error, ErrorBody, Kind, Result};
use crate::job::Outcome;
use crate::op::Rows;
use crate::ops::Row;

/// An answer before it is bytes on a connection.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub headers: HeaderMap,
    pub body: Body,
}

/// An error with the job that it is about.
#[derive(Debug)]
pub struct Failure {
    pub error: Error,
    pub job: Option<String>,
    /// Whether the job goes on and can be looked at.
    pub goes_on: bool,
    /// The methods there are, where another one was used.
    pub allow: Option<String>,
    /// How to say who is asking, where nobody knows.
    pub challenge: Option<&'static str>,
    /// Whether nothing more of this connection can be understood for sure.
    pub is_last: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, job: None, goes_on: false, allow: None, challenge: None, is_last: false }
    }
}

impl Answer {
    pub fn json(status: u16, body: &Value) -> Result<Self> {
        let bytes = serde_json::to_vec(body);
        let unencodable = |error| Error::new(Kind::Internal, "cannot encode it").because(error);
        Ok(Self::bytes(status, "application/json", bytes.map_err(unencodable)?))
    }

    pub fn bytes(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, headers: HeaderMap::new(), body: Body::whole(body.into()) }
    }

    /// An answer that is written as it comes. An error breaks it off, so that nobody takes it for
    /// whole.
    pub fn parts(
        content_type: &'static str,
        parts: impl Stream<Item = Result<Bytes>> + Send + 'static,
    ) -> Self {
        let body = Body::Parts(parts.boxed());
        Self { status: 200, content_type, headers: HeaderMap::new(), body }
    }

    pub fn empty(status: u16) -> Self {
        Self::bytes(status, "", Bytes::new())
    }

    /// `value` is visible ASCII.
    pub fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub fn failure(failure: Failure) -> Self {
        let Failure { error, job, goes_on, allow, challenge, is_last } = failure;
        let location = job.as_deref().filter(|_| goes_on).map(location);
        let document = Document::new(error.body(), job);
        let mut answer = Self::bytes(document.status, problem::CONTENT_TYPE, document.bytes());
        if let Some(location) = location {
            answer = answer.with(header::LOCATION, &location);
        }
        if let Some(allow) = allow {
            answer = answer.with(header::ALLOW, &allow);
        }
        if let Some(challenge) = challenge {
            answer = answer.with(header::WWW_AUTHENTICATE, challenge);
        }
        if is_last {
            answer = answer.with(header::CONNECTION, "close");
        }
        if matches!(error.kind(), Kind::Busy | Kind::Unavailable) {
            answer = answer.with(header::RETRY_AFTER, "1");
        }
        answer
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// Where a job is looked at.
pub fn location(job: &str) -> String {
    format!("/api/job/{job}")
}

/// Whether `target` names one host, whichever, and is so answered with its error.
pub fn is_single(target: &str) -> bool {
    target != "_all" && !target.contains(':')
}

/// The one error that a call of a single host comes to.
pub fn single_error(results: &Results) -> Option<ErrorBody> {
    match results.hosts.as_slice() {
        [HostResult { report, .. }] => match &report.outcome {
            Outcome::Failed { error } if error.kind != Kind::Unsupported => Some(error.clone()),
            _ => None,
        },
        _ => None,
    }
}

/// The envelope: the job, what each host says, and whether any of them has changed. Where several
/// hosts may have been meant, `asked` says how many were, and a summary how they fared.
pub fn rows(row: &Row, job: &str, hosts: Vec<HostResult>, asked: Option<usize>) -> Value {
    let summary = asked.map(|asked| Summary::of(&hosts, asked));
    let mut results = Vec::with_capacity(hosts.len());
    let mut named: HashMap<String, usize> = HashMap::with_capacity(hosts.len());
    for host in &hosts {
        *named.entry(host.hostname.clone()).or_default() += 1;
    }
    for host in hosts {
        let has_double = named.get(&host.hostname).is_some_and(|count| *count > 1);
        host_rows(row, host, has_double, &mut results);
    }
    let changed = results.iter().any(|row| row["changed"] == true);
    let mut envelope = Map::with_capacity(4);
    envelope.insert("job_id".to_owned(), job.into());
    envelope.insert("results".to_owned(), results.into());
    envelope.insert("changed".to_owned(), changed.into());
    if let Some(Ok(summary)) = summary.map(serde_json::to_value) {
        envelope.insert("summary".to_owned(), summary);
    }
    envelope.into()
}

/// How many hosts have come to what, where several may have been meant. A host may have no row, and
/// it may have many.
#[derive(Default, JsonSchema, Serialize)]
pub struct Summary {
    /// How many were asked: as many as the others together.
    hosts: usize,
    ok: usize,
    skipped: usize,
    failed: usize,
    /// Those that have still to answer.
    waiting: usize,
}

impl Summary {
    fn of(hosts: &[HostResult], asked: usize) -> Self {
        let waiting = asked.saturating_sub(hosts.len());
        let mut summary = Self { hosts: asked, waiting, ..Self::default() };
        for host in hosts {
            let count = match host.report.outcome.kind() {
                None => &mut summary.ok,
                Some(Kind::Unsupported) => &mut summary.skipped,
                Some(_) => &mut summary.failed,
            };
            *count += 1;
        }
        summary
    }
}

/// The rows of one host. They say its machine id where it has a double, another host of that
/// name.
fn host_rows(row: &Row, host: HostResult, has_double: bool, results: &mut Vec<Value>) {
    let HostResult { host, hostname, report } = host;
    let start = |status: &str, changed: bool| {
        let mut start = Map::new();
        start.insert("hostname".to_owned(), hostname.as_str().into());
        start.insert("status".to_owned(), status.into());
        start.insert("changed".to_owned(), changed.into());
        if has_double {
            start.insert("machine_id".to_owned(), host.as_str().into());
        }
        start
    };
    match report.outcome {
        Outcome::Done { result } => {
            let mut result = match result {
                Value::Object(result) => result,
                // What has no members has nothing to tell.
                _ => Map::new(),
            };
            // A status of the output's own, such as `drifted`, takes the row's place.
            match row.rows {
                Rows::Host => {
                    let mut whole = start("ok", false);
                    whole.append(&mut result);
                    results.push(whole.into());
                }
                Rows::Each(list) => {
                    let entries = result.shift_remove(list);
                    let Some(Value::Array(entries)) = entries else { return };
                    for entry in entries {
                        let mut whole = start("ok", false);
                        whole.extend(result.clone());
                        if let Value::Object(mut entry) = entry {
                            whole.append(&mut entry);
                        }
                        results.push(whole.into());
                    }
                }
            }
        }
        Outcome::Failed { error: ErrorBody { kind, message, problems, not_restored } } => {
            let status = if kind == Kind::Unsupported { "skipped" } else { "failed" };
            // What could not be put back as it was is a change.
            let mut whole = start(status, !not_restored.is_empty());
            whole.insert("error".to_owned(), message.into());
            whole.insert("kind".to_owned(), serde_json::to_value(kind).unwrap_or_default());
            let mut add = |name: &str, value: serde_json::Result<Value>| {
                if let Ok(value) = value {
                    whole.insert(name.to_owned(), value);
                }
            };
            if !problems.is_empty() {
                add("problems", serde_json::to_value(problems));
            }
            if !not_restored.is_empty() {
                add("not_restored", serde_json::to_value(not_restored));
            }
            results.push(whole.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::Report;
    use crate::ops;

    fn result(outcome: Outcome) -> HostResult {
        let report = Report::new("j".to_owned(), 1, 2, outcome);
        HostResult { host: "m".to_owned(), hostname: "h".to_owned(), report }
    }

    fn done(result: Value) -> HostResult {
        self::result(Outcome::Done { result })
    }

    fn row(rows: Rows) -> Row {
        Row { rows, ..*ops::find("node.sysctl.update").unwrap() }
    }

    #[test]
    fn the_fields_of_an_output_are_the_fields_of_its_row() {
        let hosts = vec![done(json!({ "changed": true, "key": "a.b" }))];
        assert_eq!(
            rows(&row(Rows::Host), "j", hosts, None),
            json!({
                "job_id": "j",
                "results": [{ "hostname": "h", "status": "ok", "changed": true, "key": "a.b" }],
                "changed": true,
            })
        );
    }

    #[test]
    fn a_status_of_the_output_takes_the_place_of_the_rows() {
        let answer = rows(&row(Rows::Host), "j", vec![done(json!({ "status": "drifted" }))], None);
        assert_eq!(answer["results"][0]["status"], "drifted");
        assert_eq!(answer["changed"], false);
    }

    #[test]
    fn a_list_becomes_a_row_for_each_entry() {
        let list = json!({ "keys": [{ "key": "a" }, { "key": "b" }], "truncated": true });
        let answer = rows(&row(Rows::Each("keys")), "j", vec![done(list)], None);
        let expected = |key: &str| json!({ "hostname": "h", "status": "ok", "changed": false, "truncated": true, "key": key });
        assert_eq!(answer["results"], json!([expected("a"), expected("b")]));
        let none = rows(&row(Rows::Each("keys")), "j", vec![done(json!({ "keys": [] }))], Some(1));
        assert_eq!(none["results"], json!([]));
        assert_eq!((&none["summary"]["hosts"], &none["summary"]["ok"]), (&json!(1), &json!(1)));
    }

    #[test]
    fn two_hosts_of_one_name_are_told_apart_by_machine_id() {
        let on = |host: &str, hostname: &str| {
            let (host, hostname) = (host.to_owned(), hostname.to_owned());
            HostResult { host, hostname, ..done(json!({ "key": "a" })) }
        };
        let answer =
            rows(&row(Rows::Host), "j", vec![on("1", "web"), on("2", "web"), on("3", "db")], None);
        let ids: Vec<_> =
            answer["results"].as_array().unwrap().iter().map(|r| &r["machine_id"]).collect();
        assert_eq!(ids, [&json!("1"), &json!("2"), &Value::Null]);
    }

    #[test]
    fn what_a_host_cannot_do_at_all_is_skipped_and_no_error() {
        let failed = |kind| {
            let error = Error::new(kind, "cannot").body();
            vec![result(Outcome::Failed { error })]
        };
        let skipped = Results { hosts: failed(Kind::Unsupported), complete: true };
        assert!(single_error(&skipped).is_none());
        assert_eq!(
            rows(&row(Rows::Host), "j", skipped.hosts, None)["results"][0]["status"],
            "skipped"
        );
        let failed = Results { hosts: failed(Kind::Conflict), complete: true };
        assert_eq!(single_error(&failed).unwrap().kind, Kind::Conflict);
        let row = &rows(&row(Rows::Host), "j", failed.hosts, None)["results"][0];
        assert_eq!(row["status"], "failed");
        assert_eq!(row["kind"], "conflict");
    }

    #[test]
    fn the_form_of_a_target_decides_how_it_is_answered() {
        assert!(["_any", "_only", "web-1", "0af7651916cd43dd"].into_iter().all(is_single));
        assert!(!["_all", "group:web"].into_iter().any(is_single));
    }
}
