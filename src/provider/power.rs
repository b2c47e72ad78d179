//! Taking the host down, for a moment or until somebody switches it on.
//!
//! The job of it ends when the host is up again: only another boot shows that it was down.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::host::{Act, Power, PowerAction, View};
use crate::op::{Domain, Execute, Method, Op};
use crate::permission::Permission;
use crate::types::{Line, present};

pub static DOMAIN: Domain = Domain {
    name: "power",
    about: "Reboot and shutdown",
    ops: &[
        Op {
            id: "node.power.reboot",
            about: "Reboot the host; the job ends when it is up again",
            path: "/node/{hostname}/power/reboot",
            command: "node power reboot",
            run: &Execute(
                |host, params| act(host, PowerAction::Reboot, params),
                |params, _| Ok(Powered::of(PowerAction::Reboot, params)),
            ),
            ..POWER
        },
        Op {
            id: "node.power.shutdown",
            about: "Switch the host off; the job ends when it is up again",
            path: "/node/{hostname}/power/shutdown",
            command: "node power shutdown",
            run: &Execute(
                |host, params| act(host, PowerAction::Shutdown, params),
                |params, _| Ok(Powered::of(PowerAction::Shutdown, params)),
            ),
            ..POWER
        },
    ],
};

const POWER: Op = Op {
    method: Method::Post,
    permission: Some(Permission::PowerExecute),
    columns: &[("ACTION", "/action"), ("DELAY", "/delay")],
    guarded: true,
    ends_boot: true,
    ..Op::COMMON
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct When {
    /// How long to wait before, in seconds, 0 to 604800 (a week).
    #[serde(default)]
    #[schemars(range(min = 0, max = 604_800))]
    delay: u64,
    /// What whoever is logged in is told, on one line of at most 1024 characters.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Line")]
    message: Option<Line>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Powered {
    action: PowerAction,
    /// How long the host waited before, in seconds.
    delay: u64,
    /// Always true: the host went down.
    changed: bool,
}

impl Powered {
    fn of(action: PowerAction, params: &When) -> Self {
        Self { action, delay: params.delay, changed: true }
    }
}

fn act(host: &View, action: PowerAction, params: &When) -> Result<Act> {
    if host.has_systemd()
        && let Some(inhibitor) = inhibitors(&host.inhibitors()?)?.into_iter().next()
    {
        let Inhibitor { who, why, pid } = inhibitor;
        host.guard(format_args!("{who:?} (process {pid}) keeps the host up: {why:?}"))?;
    }
    let message = params.message.as_ref().map(|line| line.as_str().to_owned());
    Ok(Act::Power(Power::new(action, params.delay, message, host.is_forced())))
}

/// Somebody who does not want the host to go down.
#[derive(Debug, PartialEq)]
struct Inhibitor {
    who: String,
    why: String,
    pid: u64,
}

/// Those of logind's list who do not only ask for a moment.
fn inhibitors(list: &str) -> Result<Vec<Inhibitor>> {
    let list = serde_json::from_str::<Value>(list).map_err(|error| {
        Error::new(Kind::HostFailed, "cannot read what logind says of inhibitors").because(error)
    })?;
    let list = list["data"][0].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |entry: &Value, at: usize| entry[at].as_str().unwrap_or_default().to_owned();
    let blocks = |entry: &&Value| {
        let is_about = text(entry, 0).split(':').any(|what| what == "shutdown");
        // `block-weak` gives way to root.
        is_about && text(entry, 3) == "block"
    };
    let inhibitor = |entry: &Value| Inhibitor {
        who: text(entry, 1),
        why: text(entry, 2),
        pid: entry[5].as_u64().unwrap_or_default(),
    };
    Ok(list.iter().filter(blocks).map(inhibitor).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_who_blocks_a_shutdown_is_heeded() {
        let entry = |what: &str, mode: &str| json!([what, "apt", "Updating", mode, 0, 42]);
        let list = |entries: Value| json!({ "type": "a(ssssuu)", "data": [entries] }).to_string();
        let apt = Inhibitor { who: "apt".to_owned(), why: "Updating".to_owned(), pid: 42 };
        let blocked = inhibitors(&list(json!([entry("sleep:shutdown", "block")]))).unwrap();
        assert_eq!(blocked, [apt]);
        for harmless in [
            json!([]),
            json!([entry("shutdown", "delay")]),
            json!([entry("shutdown", "block-weak")]),
            json!([entry("sleep:handle-lid-switch", "block")]),
        ] {
            assert_eq!(inhibitors(&list(harmless)).unwrap(), []);
        }
        assert_eq!(inhibitors("?").unwrap_err().kind(), Kind::HostFailed);
    }
}
