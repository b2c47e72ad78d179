//! What a person sees of one job: what was asked for, what became of it, and each host's answer as
//! the call itself would have shown it.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::output::{block, hosts};
use super::table::Page;
use super::text::flat;
use crate::op::Rows;
use crate::ops;

/// Members of a job in the order they are read, as far as they stand by themselves.
const PLAIN: &[&str] = &[
    "status",
    "created",
    "updated_at",
    "waiting_until",
    "hostname",
    "changed",
    "error",
    "agent_states",
    "timeline",
];

pub(super) fn job(job: &Value, page: Page) -> String {
    let asked = &job["operation"];
    let mut shown = Map::new();
    let mut show = |name: &str, value: &Value| {
        let is_empty = value.as_object().is_some_and(Map::is_empty);
        if !value.is_null() && !is_empty {
            shown.insert(name.to_owned(), value.clone());
        }
    };
    show("id", &job["id"]);
    show("operation", &asked["type"]);
    show("target", &asked["target"]);
    for name in PLAIN {
        // What did not change anything says so as well.
        let value = &job[name];
        show(
            name,
            &match value {
                Value::Bool(is_so) => is_so.to_string().into(),
                // Each message names its host.
                Value::Array(moments) => moments.iter().map(without_host).collect(),
                other => other.clone(),
            },
        );
    }
    show("parameters", &asked["data"]);
    let mut text = block(&Value::Object(shown), page);
    if let (Some(id), true) = (job["id"].as_str(), job["waiting_until"].is_string()) {
        let id = flat(id);
        _ = write!(text, "\n  Taken back then unless confirmed:\n    osapi job confirm {id}\n");
    }
    let row = ops::find(asked["type"].as_str().unwrap_or_default());
    let answers = job["responses"].as_object().into_iter().flatten();
    if let Some(row) = row {
        let results: Vec<_> =
            answers.flat_map(|(host, answer)| results(row.rows, host, answer)).collect();
        if !results.is_empty() {
            text.push_str(&hosts(row, &Value::Null, &results, page));
        }
    }
    text
}

fn without_host(moment: &Value) -> Value {
    let mut moment = moment.clone();
    if let Some(members) = moment.as_object_mut() {
        members.shift_remove("hostname");
    }
    moment
}

/// The rows of one host.
fn results(rows: Rows, host: &str, answer: &Value) -> Vec<Value> {
    let status = match answer["status"].as_str() {
        Some("completed") | None => "ok",
        Some(other) => other,
    };
    let start = json!({
        "hostname": answer["hostname"].as_str().unwrap_or(host),
        "status": status,
        "changed": false,
        "error": answer["error"],
        "kind": answer["kind"],
    });
    let mut data = answer["data"].as_object().cloned().unwrap_or_default();
    let list = match rows {
        Rows::Each(list) => data.shift_remove(list),
        Rows::Host => None,
    };
    let whole = |entry: Value| {
        let mut whole = start.as_object().cloned().unwrap_or_default();
        whole.extend(data.clone());
        whole.extend(entry.as_object().cloned().unwrap_or_default());
        Value::Object(whole)
    };
    match list {
        Some(Value::Array(entries)) => entries.into_iter().map(whole).collect(),
        _ => vec![whole(Value::Null)],
    }
}
