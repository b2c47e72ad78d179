//! The broker that controllers may share, as the controller has found it. That its server is new
//! enough and its streams are as they have to be is looked at with every connection: where they are
//! not, there is none.

use super::evidence::Evidence;
use super::own::HEALTH;
use super::{Check, Finding, fail, ok, warn};

pub(super) static CHECKS: &[Check] = &[
    Check {
        id: "broker.reachable",
        title: "The broker can be used",
        needs: &[HEALTH],
        judge: |e| {
            let fix = "journalctl --unit osapi-controller.service --lines 50    # has the reason";
            judge(e, "broker", fix)
        },
    },
    Check {
        id: "broker.durable",
        title: "What the broker acknowledges outlives a power cut",
        needs: &[HEALTH],
        judge: |e| {
            let fix = "editor /etc/osapi/osapi.yaml    # controller.nats.synced, once the server \
                       has sync_interval: always";
            judge(e, "broker.durable", fix)
        },
    },
    Check {
        id: "broker.encrypted",
        title: "The connection to the broker is encrypted",
        needs: &[HEALTH],
        judge: |e| {
            let fix = "editor /etc/osapi/osapi.yaml    # controller.nats.tls.cacert";
            judge(e, "broker.encrypted", fix)
        },
    },
    Check {
        id: "broker.name",
        title: "No other controller has this one's name",
        needs: &[HEALTH],
        judge: |e| {
            let fix = "editor /etc/osapi/osapi.yaml    # controller.nats.name";
            judge(e, "broker.name", fix)
        },
    },
    Check {
        id: "broker.rights",
        title: "The broker refuses nothing that is needed",
        needs: &[HEALTH],
        judge: |e| judge(e, "broker.rights", "osapi nats permissions --role controller"),
    },
];

fn judge(e: &Evidence, component: &str, fix: &str) -> Result<Finding, Finding> {
    let components = &e.told(HEALTH)?["components"];
    if components["broker"].is_null() {
        return ok("there is none: the controller keeps its own store");
    }
    let found = &components[component];
    match found["error"].as_str() {
        None => ok("it is so"),
        Some(error) if found["status"] == "warning" => warn(error, fix),
        Some(error) => fail(error, fix),
    }
}
