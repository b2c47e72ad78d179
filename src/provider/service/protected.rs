//! What a host runs on, and what ends it: units that nobody stops by accident, or starts at all.
//!
//! Protected is what could not be started again by the same way once it is gone: OSAPI itself,
//! what init needs to be asked and to keep anything running, and the files all of them run from.

use crate::error::{Error, Kind, Result};
use crate::host::{Unit, View};

/// OSAPI's own units. Names that begin like those of its jobs' are its own as well.
const OWN: &[&str] = &[
    "osapi-agent.service",
    "osapi-controller.service",
    "osapi-relay.service",
    "osapi-relay.socket",
    "osapi-settle.service",
    "osapi-tls.socket",
    "osapi.slice",
    "osapi.socket",
];
/// How the units of jobs are called, and who else than whoever may do what the job does could end
/// them: nobody.
const JOBS: &[(&str, &str)] = &[
    ("osapi-alarm-", "`osapi job confirm` and `osapi job revert` decide what it waits for"),
    ("osapi-job-", "`osapi job get` shows how far that is"),
    ("osapi-power-", "`osapi power reboot` makes such jobs, and `osapi job cancel` calls them off"),
];

/// What others cannot do without, and what is lost with it.
const NEEDED: &[(&str, &[&str])] = &[
    (
        "the bus on which its parts are asked",
        &["dbus.service", "dbus.socket", "dbus-broker.service"],
    ),
    (
        "its log",
        &["systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket"],
    ),
    (
        "its devices",
        &["systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket"],
    ),
    ("its sessions", &["systemd-logind.service", "user.slice"]),
    (
        "what init keeps running",
        &[
            "-.slice",
            "basic.target",
            "init.scope",
            "local-fs.target",
            "sockets.target",
            "sysinit.target",
            "system.slice",
        ],
    ),
    (
        "files it runs from",
        &[
            "-.mount",
            "dev.mount",
            "etc.mount",
            "home.mount",
            "proc.mount",
            "run.mount",
            "sys.mount",
            "usr.mount",
            "var-lib-osapi.mount",
            "var-lib.mount",
            "var.mount",
        ],
    ),
];

/// What starting a unit of this name does to everything else, and what else to do.
const ENDS: &[(&str, &str, &[&str])] = &[
    (
        "ends the system",
        "that takes another permission, and `osapi power reboot` or `osapi power shutdown`",
        &[
            "ctrl-alt-del",
            "exit",
            "final",
            "halt",
            "kexec",
            "poweroff",
            "reboot",
            "shutdown",
            "soft-reboot",
            "systemd-exit",
            "systemd-halt",
            "systemd-kexec",
            "systemd-poweroff",
            "systemd-reboot",
            "systemd-soft-reboot",
            "umount",
        ],
    ),
    (
        "stops nearly everything",
        "nobody could be asked to take that back",
        &["emergency", "initrd-switch-root", "rescue", "runlevel1"],
    ),
    (
        "puts the system to sleep",
        "nobody could be asked to take that back",
        &[
            "hibernate",
            "hybrid-sleep",
            "sleep",
            "suspend",
            "suspend-then-hibernate",
            "systemd-hibernate",
            "systemd-hybrid-sleep",
            "systemd-suspend",
            "systemd-suspend-then-hibernate",
        ],
    ),
];

/// Whether OSAPI has a unit of this full name, or gives such names to its jobs.
pub(super) fn is_osapi(unit: &str) -> bool {
    OWN.contains(&unit) || is_job(unit)
}

/// Whether it acts for one of OSAPI's jobs, to which other permissions belong.
fn is_job(unit: &str) -> bool {
    JOBS.iter().any(|(prefix, _)| unit.starts_with(prefix))
}

/// Refuses to do `what` to a unit of a job, which belongs to whoever may do what the job does.
fn leave_to_jobs(what: &str, unit: &Unit) -> Result<()> {
    match JOBS.iter().find(|(prefix, _)| unit.id.starts_with(prefix)) {
        Some((_, instead)) => {
            let message = format!("cannot {what} {}: it belongs to a job; {instead}", unit.id);
            Err(Error::new(Kind::Protected, message))
        }
        None => Ok(()),
    }
}

/// Refuses to do `what` to a unit that the host runs on, unless it is forced.
pub(super) fn keep(host: &View, what: &str, unit: &Unit) -> Result<()> {
    leave_to_jobs(what, unit)?;
    let names = || unit.names.iter().chain([&unit.id]).map(String::as_str);
    let lost = if names().any(is_osapi) {
        Some("OSAPI itself")
    } else {
        let is_meant = |(_, units): &&(&str, &[&str])| names().any(|name| units.contains(&name));
        NEEDED.iter().find(is_meant).map(|(lost, _)| *lost)
    };
    match lost {
        Some(lost) => host.guard(format!("cannot {what} {}: the host would lose {lost}", unit.id)),
        None => Ok(()),
    }
}

/// Refuses to start a unit that ends the others: whoever may start units may not take the host
/// down by that.
pub(super) fn go_on(unit: &Unit) -> Result<()> {
    leave_to_jobs("start", unit)?;
    let is_named = |stem: &&str| {
        let is_it = |name: &String| {
            name.strip_suffix(".target").or_else(|| name.strip_suffix(".service")) == Some(*stem)
        };
        is_it(&unit.id) || unit.names.iter().any(is_it)
    };
    match ENDS.iter().find(|(.., stems)| stems.iter().any(is_named)) {
        Some((ends, instead, _)) => {
            let message = format!("cannot start {}: it {ends}; {instead}", unit.id);
            Err(Error::new(Kind::Protected, message))
        }
        None => Ok(()),
    }
}
