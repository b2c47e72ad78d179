//! Several answers at once, each within its time, for what no single operation tells.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::files;
use super::run::Session;
use super::text::{encoded, flat};
use crate::error::Kind;
use crate::ops;

/// How many jobs a list shows at most.
const PAGE: usize = 100;
/// Of how many of the newest changes it is asked what became of them.
const LATEST: usize = 20;
/// How long an answer may take.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// What came of a question.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Told(Value),
    /// The caller may not know; in the controller's words.
    Denied(String),
    /// There was none, and why.
    Missing(String),
}

impl Answer {
    pub(super) fn told(&self) -> Option<&Value> {
        match self {
            Self::Told(value) => Some(value),
            Self::Denied(_) | Self::Missing(_) => None,
        }
    }
}

/// The host that is looked at, of `agents`: the one that this runs on, or else, asked from elsewhere,
/// the first that is there to answer.
pub(super) fn shown_of(agents: &Answer) -> Option<&Value> {
    let all = agents.told()?["agents"].as_array()?;
    let own = files::small("/etc/machine-id".as_ref());
    let own = own.as_deref().map(str::trim);
    let find = |wanted: &dyn Fn(&&Value) -> bool| all.iter().find(wanted);
    find(&|agent| own.is_some() && agent["machine_id"].as_str() == own)
        .or_else(|| find(&|agent| agent["status"] == "Ready"))
        .or_else(|| find(&|agent| agent["state"] != "Pending"))
        .or_else(|| all.first())
}

impl Session<'_> {
    /// Asks for something that is told of as far as it can be had. Of a host's answer it is the
    /// row of that host.
    pub(super) async fn hear(&self, uri: &str, limit: Duration) -> Answer {
        let reply = match tokio::time::timeout(limit, self.get(uri)).await {
            Ok(reply) => reply.and_then(|reply| Ok(reply.json()?)),
            Err(_) => {
                return Answer::Missing(format!(
                    "there was no answer within {} s",
                    limit.as_secs()
                ));
            }
        };
        match reply {
            Ok(value) => row_of(value),
            Err(problem) => match problem.document {
                // Health that is not well is an error to HTTP, and all the same an answer.
                Some(document) if document["status"].is_string() => Answer::Told(document),
                _ if problem.error.kind() == Kind::Denied => {
                    Answer::Denied(flat(&problem.error.to_string()))
                }
                _ => Answer::Missing(flat(&problem.error.to_string())),
            },
        }
    }

    /// The same of a path below that of the host which is looked at, `agents` being all of them.
    pub(super) async fn hear_of_host(
        &self,
        agents: &Answer,
        path: &str,
        limit: Duration,
    ) -> Answer {
        let id = shown_of(agents).and_then(|agent| agent["machine_id"].as_str());
        let host = id.filter(|id| !id.is_empty()).unwrap_or("_any");
        self.hear(&format!("/api/node/{}/{path}", encoded(host)), limit).await
    }

    /// The jobs that change something: all that are `unfinished`, and the `latest` ones as they
    /// are shown singly.
    pub(super) async fn changes(&self, limit: Duration) -> Answer {
        let pages = ["&status=submitted", "&status=processing", ""];
        let pages = pages.map(|filter| format!("/api/job?limit={PAGE}{filter}"));
        let mut lists = Vec::new();
        for answer in join_all(pages.iter().map(|uri| self.hear(uri, limit))).await {
            match answer {
                Answer::Told(list) => lists.push(changing(&list)),
                other => return other,
            }
        }
        let newest = lists.pop().unwrap_or_default();
        let mut unfinished = lists.concat();
        let (latest, shown) =
            tokio::join!(self.singly(&newest, limit), self.singly(&unfinished, limit));
        for (job, shown) in unfinished.iter_mut().zip(shown) {
            if let Some(shown) = shown.told() {
                *job = shown.clone();
            }
        }
        // One that was deleted meanwhile is left out.
        let latest: Vec<_> = latest.iter().filter_map(Answer::told).collect();
        Answer::Told(json!({ "unfinished": unfinished, "latest": latest }))
    }

    /// The first few of `jobs` with what lists leave out, such as who asked for them.
    async fn singly(&self, jobs: &[Value], limit: Duration) -> Vec<Answer> {
        let ids = jobs.iter().filter_map(|job| job["id"].as_str()).take(LATEST);
        let uris: Vec<_> = ids.map(|id| format!("/api/job/{}", encoded(id))).collect();
        join_all(uris.iter().map(|uri| self.hear(uri, limit))).await
    }
}

/// The row of a host's answer; any other answer as it is.
fn row_of(value: Value) -> Answer {
    let Some(row) = value["results"].as_array().and_then(|rows| rows.first()) else {
        return Answer::Told(value);
    };
    match row["error"].as_str().filter(|error| !error.is_empty()) {
        Some(error) => Answer::Missing(flat(error)),
        None => Answer::Told(row.clone()),
    }
}

fn changing(list: &Value) -> Vec<Value> {
    let changes = |job: &&Value| {
        let row = ops::find(job["operation"]["type"].as_str().unwrap_or_default());
        row.is_some_and(ops::Row::changes)
    };
    list["items"].as_array().into_iter().flatten().filter(changes).cloned().collect()
}

/// Who asked for a job, as its own timeline says.
pub(super) fn asked_by(job: &Value) -> Option<&str> {
    job["timeline"].as_array()?.iter().find_map(|moment| {
        let message = moment["message"].as_str().filter(|_| moment["event"] == "submitted")?;
        message.strip_prefix("Submitted by ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_failed_is_no_answer() {
        let row = |row: Value| row_of(json!({ "job_id": "x", "results": [row] }));
        assert_eq!(row(json!({ "drift": [] })), Answer::Told(json!({ "drift": [] })));
        assert_eq!(row(json!({ "error": "no" })), Answer::Missing("no".to_owned()));
        assert_eq!(row_of(json!({ "version": "1" })), Answer::Told(json!({ "version": "1" })));
    }

    #[test]
    fn what_only_looks_is_no_change() {
        let job = |op| json!({ "id": op, "operation": { "type": op } });
        let list = json!({ "items": [job("node.os.get"), job("job.undo"), job("no such thing")] });
        assert_eq!(changing(&list), [job("job.undo")]);
    }
}
