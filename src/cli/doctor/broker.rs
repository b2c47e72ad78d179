//! What the controller has found of the broker that controllers may share, and hosts of its audit log.
//! That the server is new enough and its streams are as they have to be is looked at with every
//! connection: where they are not, there is none.

use super::evidence::Evidence;
use super::own::HEALTH;
use super::{Check, Finding, fail, ok, warn};

/// A check for each part of the controller's health that works all the same when something is wrong
/// with it: its name, what should be so, and what to do.
macro_rules! parts {
    ($(($part:literal, $id:literal, $title:literal, $fix:expr $(,)?)),* $(,)?) => {
        &[$(Check {
            id: $id,
            title: $title,
            needs: &[HEALTH],
            judge: |e| judge(e, $part, $fix),
        }),*]
    };
}

pub(super) static CHECKS: &[Check] = parts![
    (
        "broker",
        "broker.reachable",
        "The broker can be used",
        "journalctl --unit osapi-controller.service --lines 50    # has the reason",
    ),
    (
        "broker.durable",
        "broker.durable",
        "What the broker acknowledges outlives a power cut",
        "editor /etc/osapi/osapi.yaml    # controller.nats.synced, once the server has \
         sync_interval: always",
    ),
    (
        "broker.encrypted",
        "broker.encrypted",
        "The connection to the broker is encrypted",
        "editor /etc/osapi/osapi.yaml    # controller.nats.tls.cacert",
    ),
    (
        "broker.name",
        "broker.name",
        "No other controller has this one's name",
        "editor /etc/osapi/osapi.yaml    # controller.nats.name",
    ),
    (
        "broker.rights",
        "broker.rights",
        "The broker refuses nothing that is needed",
        "osapi nats permissions --role controller",
    ),
    (
        "audit",
        "audit.kept",
        "The audit log has all that it had",
        "osapi audit verify    # once that is explained: stop osapi-agent.service, remove heads \
         in its state directory, start it",
    ),
];

fn judge(e: &Evidence, part: &str, fix: &str) -> Result<Finding, Finding> {
    let parts = &e.told(HEALTH)?["components"];
    if part.starts_with("broker") && parts["broker"].is_null() {
        return ok("there is none: the controller keeps its own store");
    }
    let found = &parts[part];
    match found["error"].as_str() {
        None => ok("it is so"),
        Some(error) if found["status"] == "warning" => warn(error, fix),
        Some(error) => fail(error, fix),
    }
}
