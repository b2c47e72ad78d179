//! Looking at jobs, and changing their course: list, get, delete, retry, cancel.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::Status;
use super::{Here, Local};
use crate::op::{Domain, Method, Op, Rows};
use crate::permission::Permission;
use crate::types::{JobId, present};

mod course;
mod view;

pub use view::{AgentState, JobView, Jobs, Moment, Response};

pub static DOMAIN: Domain<Local> = Domain {
    name: "job",
    about: "Work in progress and its results",
    ops: &[
        Op {
            id: "job.list",
            about: "List jobs, the newest first",
            path: "/job",
            permission: Some(Permission::JobRead),
            command: "job list",
            columns: &[
                ("JOB ID", "/id"),
                ("STATUS", "/status"),
                ("CREATED", "/created"),
                ("TARGET", "/operation/target"),
                ("OPERATION", "/operation/type"),
            ],
            rows: Rows::Each("items"),
            run: &Here(|call, params| Box::pin(view::list(call, params))),
            ..Op::HERE
        },
        Op {
            id: "job.get",
            about: "Show a job and what each host has made of it",
            path: "/job/{id}",
            permission: Some(Permission::JobRead),
            command: "job get",
            flags: &[("id", "job-id")],
            args: &["id"],
            run: &Here(|call, params| Box::pin(view::get(call, params))),
            ..Op::HERE
        },
        Op {
            id: "job.delete",
            about: "Delete a finished job with its outcomes",
            method: Method::Delete,
            path: "/job/{id}",
            permission: Some(Permission::JobWrite),
            status: 204,
            command: "job delete",
            flags: &[("id", "job-id")],
            args: &["id"],
            run: &Here(|call, params| Box::pin(course::delete(call, params))),
            ..Op::HERE
        },
        Op {
            id: "job.retry",
            about: "Submit a job again, to the target it had or to another",
            method: Method::Post,
            path: "/job/{id}/retry",
            permission: Some(Permission::JobWrite),
            status: 201,
            command: "job retry",
            flags: &[("id", "job-id"), ("target_hostname", "target-hostname")],
            args: &["id"],
            run: &Here(|call, params| Box::pin(course::retry(call, params))),
            ..Op::HERE
        },
        Op {
            id: "job.cancel",
            about: "Call a job off, where it has not begun or waits for its time",
            method: Method::Post,
            path: "/job/{id}/cancel",
            permission: Some(Permission::JobWrite),
            command: "job cancel",
            flags: &[("id", "job-id")],
            args: &["id"],
            run: &Here(|call, params| Box::pin(course::cancel(call, params))),
            ..Op::HERE
        },
    ],
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Only jobs that are this far.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub status: Option<Filter>,
    /// How many to show, 1 to 100.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 100))]
    pub limit: u64,
    /// How many of the newest to leave out.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub offset: u64,
}

const fn ten() -> u64 {
    10
}

/// The statuses that can be asked for; the published contract leaves `skipped` out.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    Submitted,
    Processing,
    Completed,
    Failed,
    PartialFailure,
}

impl From<Filter> for Status {
    fn from(filter: Filter) -> Self {
        match filter {
            Filter::Submitted => Self::Submitted,
            Filter::Processing => Self::Processing,
            Filter::Completed => Self::Completed,
            Filter::Failed => Self::Failed,
            Filter::PartialFailure => Self::PartialFailure,
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The job's id, as the answer to the call that made it has it.
    pub id: JobId,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// The job's id, as the answer to the call that made it has it.
    pub id: JobId,
    /// Another target: `_any`, `_all`, a host name, a machine id, or a label as `key:value`; where
    /// it is left out, the one that the job had.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(min = 1))]
    pub target_hostname: Option<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Retried {
    /// The new job.
    #[schemars(extend("format" = "uuid"))]
    pub job_id: String,
    /// Always `created`.
    pub status: String,
    /// The revision that made it durable; 0 for what only looks.
    #[schemars(extend("format" = "int64"))]
    pub revision: i64,
    pub timestamp: String,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Cancelled {
    #[schemars(extend("format" = "uuid"))]
    pub job_id: String,
    /// How far the job is now.
    pub status: Status,
    /// For which hosts it was called off.
    pub hosts: Vec<String>,
    /// Which hosts may have taken it and are asked to let go of it, as they can until it has
    /// begun, or until its time has come; the job says what became of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<String>,
}
