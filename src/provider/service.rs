//! Units of systemd: whether they run, whether they start by themselves, and OSAPI's own ones.
//!
//! A name means the unit that is called so; `.service` may be left out. Where there is none, it
//! means the one that was made here under that name, whose full name is `osapi-<name>.service`.
//! Only those are made, changed and deleted here; any other is only asked to run, or to start by
//! itself. A unit is asked for by its own name, whichever of its aliases was given.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::host::cell::{Cell, Value, active, enabled, nothing};
use crate::host::{Act, Listed, Operate, Record, Refresh, Unit, Verb, View, Want};
use crate::op::{Bring, Domain, Execute, Intent, Method, Nothing, Op, Read, Rows, Write};
use crate::permission::Permission;
use crate::types::{ObjectName, UnitName};

mod own;
mod protected;
#[cfg(test)]
mod tests;

use own::{is_own, own_unit};

pub static DOMAIN: Domain = Domain {
    name: "service",
    about: "Services and other units of systemd",
    ops: &[
        Op {
            id: "node.service.list",
            about: "List the services that run or are installed",
            path: "/node/{hostname}/service",
            permission: Some(Permission::ServiceRead),
            command: "node service list",
            columns: &[
                ("NAME", "/services/*/name"),
                ("STATUS", "/services/*/status"),
                ("ENABLED", "/services/*/enabled"),
            ],
            run: &Read(|host, _: &Nothing| list(host)),
            ..Op::COMMON
        },
        Op {
            id: "node.service.get",
            about: "Show a unit",
            path: "/node/{hostname}/service/{name}",
            permission: Some(Permission::ServiceRead),
            command: "node service get",
            args: &["name"],
            columns: &[
                ("NAME", "/service/name"),
                ("STATUS", "/service/status"),
                ("ENABLED", "/service/enabled"),
                ("DESCRIPTION", "/service/description"),
            ],
            run: &Read(|host, params: &ByName| get(host, &params.name)),
            ..Op::COMMON
        },
        Op {
            id: "node.service.create",
            about: "Make a service of an object that is its unit file, as osapi-<name>.service",
            path: "/node/{hostname}/service",
            command: "node service create",
            args: &["name", "object"],
            run: &Write(own::create, |_, params| Ok(Named::from(&params.name))),
            ..UNIT
        },
        Op {
            id: "node.service.update",
            about: "Give a service that OSAPI has made another unit file; it is not restarted",
            method: Method::Put,
            path: "/node/{hostname}/service/{name}",
            command: "node service update",
            args: &["name", "object"],
            run: &Write(own::update, |_, params| Ok(Named::from(&params.name))),
            ..UNIT
        },
        Op {
            id: "node.service.delete",
            about: "Stop and disable a service that OSAPI has made, and delete its unit file",
            method: Method::Delete,
            path: "/node/{hostname}/service/{name}",
            command: "node service delete",
            run: &Write(own::delete, |_, params: &ByName| Ok(Named::from(&params.name))),
            ..UNIT
        },
        Op {
            id: "node.service.start",
            about: "Start a unit; one that ends by itself is run once, to its end",
            path: "/node/{hostname}/service/{name}/start",
            command: "node service start",
            guarded: true,
            run: &Bring(start, |params: &ByName| Named::from(&params.name)),
            ..UNIT
        },
        Op {
            id: "node.service.stop",
            about: "Stop a unit",
            path: "/node/{hostname}/service/{name}/stop",
            command: "node service stop",
            guarded: true,
            run: &Write(stop, |_, params: &ByName| Ok(Named::from(&params.name))),
            ..UNIT
        },
        Op {
            id: "node.service.restart",
            about: "Restart a unit, or start it",
            path: "/node/{hostname}/service/{name}/restart",
            command: "node service restart",
            guarded: true,
            run: &Execute(restart, |params: &ByName, _| {
                Ok(Restarted { name: params.name.as_str().to_owned(), changed: true })
            }),
            ..UNIT
        },
        Op {
            id: "node.service.enable",
            about: "Have a unit start by itself, from the next boot on",
            path: "/node/{hostname}/service/{name}/enable",
            command: "node service enable",
            run: &Write(enable, |_, params: &ByName| Ok(Named::from(&params.name))),
            ..UNIT
        },
        Op {
            id: "node.service.disable",
            about: "No longer have a unit start by itself; it goes on running",
            path: "/node/{hostname}/service/{name}/disable",
            command: "node service disable",
            guarded: true,
            run: &Write(disable, |_, params: &ByName| Ok(Named::from(&params.name))),
            ..UNIT
        },
    ],
};

const UNIT: Op = Op {
    method: Method::Post,
    permission: Some(Permission::ServiceWrite),
    args: &["name"],
    columns: &[("NAME", "/name")],
    // systemd gives a unit a minute and a half to start unless it says otherwise.
    timeout: LIMIT,
    rows: Rows::Host,
    ..Op::COMMON
};

const LIMIT: Duration = Duration::from_mins(5);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByName {
    /// The unit's name; `.service` may be left out, and `osapi-` before that of one made here.
    name: UnitName,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The service's name; `osapi-` before and `.service` after it may be left out.
    name: UnitName,
    /// The object whose content is the unit file, of at most 256 KiB.
    object: ObjectName,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Services {
    services: Vec<Service>,
    /// True if there are more than an answer has room for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Shown {
    service: Service,
}

#[derive(Debug, JsonSchema, PartialEq, Serialize)]
struct Service {
    /// With the suffix of its kind, such as `nginx.service`.
    name: String,
    /// systemd's word for what it does: `active`, `inactive`, `failed`, `activating`, ...
    status: String,
    /// Whether it starts by itself because somebody has enabled it.
    enabled: bool,
    /// systemd's word for that: `enabled`, `disabled`, `static`, `masked`, ...; absent where it
    /// has no unit file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    unit_file_state: String,
    /// Absent for what is installed and was not loaded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    /// Its main process, where it runs and has one; not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32")]
    pid: Option<u32>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Named {
    /// As it was given.
    name: String,
}

impl From<&UnitName> for Named {
    fn from(name: &UnitName) -> Self {
        Self { name: name.as_str().to_owned() }
    }
}

#[derive(Debug, JsonSchema, Serialize)]
struct Restarted {
    /// As it was given.
    name: String,
    /// Always true: what ran no longer does.
    changed: bool,
}

fn list(host: &View) -> Result<Services> {
    let (services, is_cut) = host.services()?;
    let services = services.into_iter().map(|(name, listed)| {
        let Listed { active: status, file_state, description } = listed;
        let enabled = is_enabled(&file_state);
        Service { name, status, enabled, unit_file_state: file_state, description, pid: None }
    });
    let (services, truncated) = super::fitting(services.collect());
    Ok(Services { services, truncated: truncated || is_cut })
}

fn get(host: &View, name: &UnitName) -> Result<Shown> {
    let unit = find(host, name)?;
    let service = Service {
        enabled: is_enabled(&unit.file_state),
        name: unit.id,
        status: unit.active,
        unit_file_state: unit.file_state,
        description: unit.description,
        pid: Some(unit.pid).filter(|pid| *pid > 0),
    };
    Ok(Shown { service })
}

fn start(host: &View, ByName { name }: &ByName) -> Result<Intent> {
    let unit = find(host, name)?;
    if unit.activity() != "active" {
        refuse_unusable(&unit)?;
        protected::go_on(&unit)?;
        // What is on its way is waited for, and may not get there.
        if unit.ends_by_itself() || unit.activity() == "activating" {
            return Ok(Intent::Act(operate(Verb::Start, unit)));
        }
    }
    Ok(Intent::Want(Want::new().set(active(unit.id, true))))
}

fn stop(host: &View, ByName { name }: &ByName) -> Result<Want> {
    let unit = find(host, name)?;
    if unit.activity() != "inactive" {
        protected::keep(host, "stop", &unit)?;
        if !unit.can_stop {
            let message = format!("cannot stop {}: systemd lets nobody do that", unit.id);
            return Err(Error::new(Kind::Conflict, message));
        }
    }
    Ok(Want::new().set(active(unit.id, false)))
}

fn restart(host: &View, ByName { name }: &ByName) -> Result<Act> {
    let unit = find(host, name)?;
    refuse_unusable(&unit)?;
    protected::keep(host, "restart", &unit)?;
    protected::go_on(&unit)?;
    Ok(operate(Verb::Restart, unit))
}

fn enable(host: &View, ByName { name }: &ByName) -> Result<Want> {
    let unit = find(host, name)?;
    match unit.file_state.as_str() {
        "enabled" | "disabled" | "enabled-runtime" => {}
        word => return Err(not_up_to_anybody("enable", &unit, word)),
    }
    let along = host.installed_along(&unit)?;
    let mut want = Want::new();
    // What disabling has taken away comes back as it was.
    let mut taken = host.records();
    taken.retain(|record| record.value == Value::Absent);
    let is_link = |record: &Record| {
        let (Cell::Node(path), Value::Link(target)) = (&record.cell, &record.origin) else {
            return false;
        };
        along.iter().chain([&unit]).any(|unit| View::is_link_of(path, target, &unit.id))
    };
    let links: Vec<_> = taken.iter().filter(|record| is_link(record)).cloned().collect();
    taken.retain(|record| match (&record.cell, &record.origin) {
        (Cell::Node(path), Value::Directory { .. }) => {
            let is_within = |link: &Record| {
                let Cell::Node(link) = &link.cell else { return false };
                link.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('/'))
            };
            links.iter().any(is_within)
        }
        _ => is_link(record),
    });
    for record in taken {
        want = want.release(host, record.cell);
    }
    want = want.then(Refresh::reload_units()).set(enabled(&unit.id, true));
    for other in along {
        match other.file_state.as_str() {
            "disabled" => want = want.set(enabled(other.id, true)),
            "enabled" if unit.file_state != "enabled" => {
                let Unit { id, .. } = other;
                let why = format!("{} names it with Also=", unit.id);
                want = want.leaves(format!("{id} would no longer start by itself: {why}"));
            }
            _ => {}
        }
    }
    Ok(want)
}

/// That `unit` does not start by itself, nor what systemd disables along with it: every link that
/// goes is on record.
fn no_longer_enabled(host: &View, mut want: Want, unit: &Unit) -> Result<Want> {
    let mut units = host.installed_along(unit)?;
    units.retain(|other| other.file_state == unit.file_state);
    let mut links = Vec::new();
    for unit in std::iter::once(unit).chain(&units) {
        protected::keep(host, "disable", unit)?;
        want = want.set(enabled(&unit.id, false));
        links.extend(host.links_to(&unit.id)?);
    }
    // In the other direction the links are there, and systemd has seen them, before anybody would
    // ask it to make those that it knows of.
    let directories = host.directories_of(&links)?;
    want = want.then(Refresh::reload_units());
    let gone = links.into_iter().chain(directories);
    Ok(gone.fold(want, |want, path| want.set(nothing(path))).then(Refresh::reload_units()))
}

fn disable(host: &View, ByName { name }: &ByName) -> Result<Want> {
    let unit = find(host, name)?;
    match unit.file_state.as_str() {
        "disabled" => {}
        "enabled" | "enabled-runtime" if unit.id != name.full() && !is_own(&unit.id, name) => {
            let Unit { id, .. } = &unit;
            let message = format!(
                "{} is another name of {id}, which may end with that; disable {id}",
                name.full()
            );
            return Err(Error::new(Kind::Conflict, message));
        }
        "enabled" | "enabled-runtime" => return no_longer_enabled(host, Want::new(), &unit),
        // It does not start at all.
        "masked" | "masked-runtime" => return Ok(Want::new()),
        word => return Err(not_up_to_anybody("disable", &unit, word)),
    }
    Ok(Want::new().set(enabled(unit.id, false)))
}

/// The unit that `name` means: the one that is called so, else the one made here under it.
fn find(host: &View, name: &UnitName) -> Result<Unit> {
    let full = name.full();
    if name.is_template() {
        let message = format!("{full} is a template; put a name of its own after the @");
        return Err(Error::new(Kind::InvalidInput, message));
    }
    let unit = host.unit(&full)?;
    if unit.is_known() {
        return Ok(unit);
    }
    if let Ok(own) = own_unit(name)
        && own != full
    {
        let unit = host.unit(&own)?;
        if unit.is_known() {
            return Ok(unit);
        }
    }
    Err(Error::new(Kind::NotFound, format!("there is no unit {full} on this host")))
}

fn operate(verb: Verb, unit: Unit) -> Act {
    let Unit { id, invocation, .. } = unit;
    Act::Operate(Operate { verb, unit: id, before: invocation, limit: LIMIT })
}

fn is_enabled(word: &str) -> bool {
    matches!(word, "enabled" | "enabled-runtime")
}

/// Refuses to run a unit that systemd would not.
fn refuse_unusable(unit: &Unit) -> Result<()> {
    let id = &unit.id;
    let why = match unit.load.as_str() {
        "masked" => format!("it is masked; `systemctl unmask {id}` makes it usable again"),
        "loaded" if unit.can_start => return Ok(()),
        "loaded" => "systemd starts it only when something needs it".to_owned(),
        _ if unit.trouble.is_empty() => format!("systemd says that it is {}", unit.load),
        _ => format!("systemd cannot load it: {}", unit.trouble),
    };
    Err(Error::new(Kind::Conflict, format!("cannot start {id}: {why}")))
}

/// Why nobody can say whether a unit starts by itself.
fn not_up_to_anybody(what: &str, unit: &Unit, word: &str) -> Error {
    let why = match word {
        "masked" | "masked-runtime" => "it is masked, and has to be unmasked first",
        "static" => "it has no [Install] section; whatever needs it starts it",
        "indirect" => "its [Install] section only names other units; ask for those",
        "generated" => "it is generated from other configuration, which decides that",
        "transient" => "it was made while the system runs and ends with it",
        "linked" | "linked-runtime" => "its file is elsewhere and only linked to",
        "" => "it has no unit file",
        _ => "systemd cannot make sense of its file",
    };
    Error::new(Kind::Conflict, format!("cannot {what} {}: {why}", unit.id))
}
