//! Reading the audit log: entries as clients know them, and the chains behind them.

use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Call, Here, Local, Streamed};
use crate::op::{Domain, Nothing, Op, Rows};
use crate::permission::Permission;
use crate::types::JobId;

mod export;
mod log;

pub static DOMAIN: Domain<Local> = Domain {
    name: "audit",
    about: "Who has asked for what, and what came of it",
    ops: &[
        Op {
            id: "audit.list",
            about: "List audit entries, the newest first",
            path: "/audit",
            permission: Some(Permission::AuditRead),
            command: "audit list",
            columns: &[
                ("ID", "/id"),
                ("TIMESTAMP", "/timestamp"),
                ("USER", "/user"),
                ("METHOD", "/method"),
                ("PATH", "/path"),
                ("STATUS", "/response_code"),
                ("DURATION", "/duration_ms"),
                ("TRACE ID", "/trace_id"),
            ],
            rows: Rows::Each("items"),
            run: &Here(|call, params| Box::pin(log::list(call, params))),
            ..Op::HERE
        },
        Op {
            id: "audit.export",
            about: "Export the whole audit log, with what it takes to verify it",
            path: "/audit/export",
            permission: Some(Permission::AuditRead),
            command: "audit export",
            run: &Streamed(
                |call, _: Nothing| Box::pin(export::export(call)),
                PhantomData::<fn() -> Export>,
            ),
            ..Op::HERE
        },
        Op {
            id: "audit.chain",
            about: "Show the links of the audit log as they are stored",
            path: "/audit/chain",
            permission: Some(Permission::AuditRead),
            command: "audit chain",
            run: &Here(|call, params| Box::pin(log::chain(call, params))),
            ..Op::HERE
        },
        Op {
            id: "audit.get",
            about: "Show one audit entry",
            path: "/audit/{id}",
            permission: Some(Permission::AuditRead),
            command: "audit get",
            flags: &[("id", "audit-id")],
            args: &["id"],
            run: &Here(|call: Call, params| Box::pin(log::get(call, params))),
            ..Op::HERE
        },
    ],
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// How many to show, 1 to 100.
    #[serde(default = "twenty")]
    #[schemars(range(min = 1, max = 100))]
    pub limit: u64,
    /// How many of the newest to leave out.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub offset: u64,
}

const fn twenty() -> u64 {
    20
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ById {
    /// The entry's id; for a request that made a job, that job's.
    pub id: JobId,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    /// The place behind which to begin, as `last` says it; 0 for the oldest that is kept.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub after: u64,
    /// How many links to show, 1 to 500.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 500))]
    pub limit: u64,
}

const fn hundred() -> u64 {
    100
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Page {
    /// How many are kept.
    pub total_items: u64,
    pub items: Vec<Item>,
}

// Once it is whole.
#[derive(Debug, JsonSchema, Serialize)]
pub struct Export {
    /// How many are kept.
    pub total_items: u64,
    pub items: Vec<Item>,
    /// Where the chains begin and end.
    pub ends: Value,
    /// The links of both chains as stored, in order of number.
    pub links: Vec<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Links {
    /// Where the chains begin and end.
    pub ends: Value,
    /// Links of both chains as stored, in order of number.
    pub links: Vec<String>,
    /// The place to go on behind; 0 at the end.
    pub last: u64,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Found {
    pub entry: Item,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
pub struct Item {
    #[schemars(extend("format" = "uuid"))]
    pub id: String,
    #[schemars(extend("format" = "date-time"))]
    pub timestamp: String,
    pub user: String,
    pub roles: Vec<String>,
    pub method: String,
    pub path: String,
    pub operation_id: String,
    pub source_ip: String,
    /// HTTP status; 202 while the work goes on.
    pub response_code: u16,
    /// In milliseconds; 0 while the work goes on.
    #[schemars(extend("format" = "int64"))]
    pub duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The job that this request made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_id: Option<String>,
    /// The job that this request was about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// How many further requests of the same peer, refused within the same second, it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more: Option<u64>,
}
