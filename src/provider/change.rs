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
                |params, _| Ok(Ended::from(params)),
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
                |params, _| Ok(Ended::from(params)),
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
    /// False if that had been decided before.
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::Kind;
    use crate::provider::tests::Fake;

    const FILE: &str = "/etc/sysctl.d/osapi-vm.swappiness.conf";
    const KERNEL: &str = "/proc/sys/vm/swappiness";
    const JOBS: [&str; 3] = [
        "0192f0c1-0000-7000-8000-000000000001",
        "0192f0c1-0000-7000-8000-000000000002",
        "0192f0c1-0000-7000-8000-000000000003",
    ];

    /// A host on which the first job set a parameter to 10, and the second one to 11.
    fn host(jobs: usize) -> Fake {
        let fake = Fake::with(&[(KERNEL, "60\n"), ("/etc/passwd", ""), ("/etc/group", "")]);
        let words = ["create", "update"].into_iter().zip(["10", "11"]);
        for (job, (word, value)) in JOBS.into_iter().zip(words).take(jobs) {
            let params = json!({ "key": "vm.swappiness", "value": value });
            fake.job(job, &format!("node.sysctl.{word}"), params, "").unwrap();
        }
        fake
    }

    fn about(fake: &Fake, op: &str, job: &str) -> Result<serde_json::Value, Kind> {
        fake.run(op, json!({ "id": job }), "")
    }

    #[test]
    fn what_a_job_changed_is_taken_back() {
        let fake = host(2);
        assert_eq!(about(&fake, "job.undo", JOBS[0]), Err(Kind::Superseded));
        let undone = about(&fake, "job.undo", JOBS[1]).unwrap();
        assert_eq!((&undone["job"], &undone["changed"]), (&json!(JOBS[1]), &json!(true)));
        assert_eq!(fake.text(KERNEL).unwrap(), "10\n");
        assert_eq!(about(&fake, "job.undo", JOBS[1]).unwrap()["changed"], false);
        assert_eq!(about(&fake, "job.undo", JOBS[0]).unwrap()["changed"], true);
        assert_eq!((fake.text(KERNEL).unwrap(), fake.text(FILE)), ("60\n".to_owned(), None));
        assert_eq!(about(&fake, "node.sysctl.list", "").err(), Some(Kind::InvalidInput));
    }

    #[test]
    fn a_job_that_is_not_known_is_not_found() {
        assert_eq!(about(&host(0), "job.undo", JOBS[0]), Err(Kind::NotFound));
    }

    #[test]
    fn a_job_that_does_not_wait_is_neither_confirmed_nor_reverted() {
        for op in ["job.confirm", "job.revert"] {
            for known in [0, 1] {
                assert_eq!(about(&host(known), op, JOBS[0]), Err(Kind::Conflict), "{op}");
            }
        }
    }

    #[test]
    fn drift_names_what_others_changed() {
        let fake = host(1);
        let drift =
            |fake: &Fake| fake.run("node.drift.get", json!({}), "").unwrap()["drift"].clone();
        assert_eq!(drift(&fake), json!([]));
        fake.put(KERNEL, "7\n");
        let expected = json!([{
            "cell": { "sysctl": "vm.swappiness" },
            "expected": { "text": "10" },
            "found": { "text": "7" },
            "job": JOBS[0],
        }]);
        assert_eq!(drift(&fake), expected);
    }
}
