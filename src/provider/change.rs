//! Changes that jobs have made: to take them back, to keep them, to see what became of them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::host::{Act, Drift, View, Want};
use crate::op::{Domain, Execute, Method, Nothing, Op, Read, Write};
use crate::permission::Permission;
use crate::types::JobId;

pub static DOMAIN: Domain = Domain {
    name: "change",
    about: "Changes that jobs have made",
    ops: &[
        Op {
            id: "job.undo",
            about: "Take back what a job changed, unless a later job has built on it",
            path: "/job/{id}/undo",
            command: "job undo",
            // As long as the longest change may have taken.
            timeout: Duration::from_mins(10),
            run: &Write(
                |host, params: &ByJob| Ok(Want::without(&host.applied(params.id.as_str())?)),
                undone,
            ),
            ..BY_JOB
        },
        Op {
            id: "job.confirm",
            about: "Keep a change that is taken back unless it is confirmed in time",
            path: "/job/{id}/confirm",
            command: "job confirm",
            run: &Execute(
                |_, params: &ByJob| Ok(Act::Confirm { job: params.id.as_str().to_owned() }),
                |params, _| Ended::from(params),
            ),
            ..BY_JOB
        },
        Op {
            id: "job.revert",
            about: "Take a change back that waits to be confirmed, without waiting for its time",
            path: "/job/{id}/revert",
            command: "job revert",
            timeout: Duration::from_mins(10),
            run: &Execute(
                |_, params: &ByJob| Ok(Act::Revert { job: params.id.as_str().to_owned() }),
                |params, _| Ended::from(params),
            ),
            ..BY_JOB
        },
        Op {
            id: "node.drift.get",
            about: "Show what others changed of what OSAPI has set",
            path: "/node/{hostname}/drift",
            permission: Some(Permission::NodeRead),
            command: "node drift get",
            columns: &[
                ("CELL", "/drift/*/cell"),
                ("EXPECTED", "/drift/*/expected"),
                ("FOUND", "/drift/*/found"),
                ("JOB", "/drift/*/job"),
            ],
            // Every file that OSAPI has put in place is read and hashed.
            timeout: Duration::from_mins(1),
            run: &Read(|host, _: &Nothing| drift(host)),
            ..Op::COMMON
        },
    ],
};

const BY_JOB: Op = Op {
    method: Method::Post,
    permission: Some(Permission::JobWrite),
    flags: &[("id", "job-id")],
    args: &["id"],
    columns: &[("JOB", "/job")],
    ..Op::COMMON
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByJob {
    /// The id of the job that made the change.
    id: JobId,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Undone {
    /// The job that was taken back.
    job: String,
    /// What that job has left behind and nobody can take back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    remains: Vec<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Ended {
    /// The job that no longer waits.
    job: String,
    /// Always true: it waited before.
    changed: bool,
}

impl From<&ByJob> for Ended {
    fn from(params: &ByJob) -> Self {
        Self { job: params.id.as_str().to_owned(), changed: true }
    }
}

#[derive(Debug, JsonSchema, Serialize)]
struct DriftAnswer {
    /// The cells that do not hold what OSAPI last gave them.
    drift: Vec<Drift>,
    /// True if there are more than an answer has room for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

fn undone(host: &View, ByJob { id }: &ByJob) -> Result<Undone> {
    let remains = host.applied(id.as_str())?.residue();
    Ok(Undone { job: id.as_str().to_owned(), remains })
}

fn drift(host: &View) -> Result<DriftAnswer> {
    let (drift, truncated) = super::fitting(host.drift()?);
    Ok(DriftAnswer { drift, truncated })
}
