//! The units that are made here, each from a stored object.

use super::{ByName, Definition, is_enabled, no_longer_enabled, protected};
use crate::error::{Error, Kind, Result};
use crate::host::cell::{Cell, Value, active, object};
use crate::host::{Object, Refresh, View, Want};
use crate::types::UnitName;

/// Where OSAPI keeps the files of its own units.
const DIRECTORY: &str = "/etc/systemd/system/";
const PREFIX: &str = "osapi-";
const SUFFIX: &str = ".service";

pub(super) fn create(host: &View, params: &Definition) -> Result<Want> {
    let unit = own_unit(&params.name)?;
    let content = host.object(params.object.as_str())?;
    match host.record(&Cell::Node(path(&unit))) {
        Some(record) if !is_content(&record.value, &content) => {
            let message = format!("{unit} was made of something else already; update it instead");
            return Err(Error::new(Kind::Conflict, message));
        }
        Some(_) => {}
        None => {
            let there = host.unit(&unit)?;
            if there.is_known() && there.fragment != path(&unit) {
                let message = format!("there is a {unit} already, from {}", there.fragment);
                return Err(Error::new(Kind::Conflict, message));
            }
        }
    }
    deploy(host, &unit, params)
}

pub(super) fn update(host: &View, params: &Definition) -> Result<Want> {
    let unit = own_unit(&params.name)?;
    if host.record(&Cell::Node(path(&unit))).is_none() {
        let message = format!("OSAPI has not made {unit}; create it first");
        return Err(Error::new(Kind::NotFound, message));
    }
    deploy(host, &unit, params)
}

fn deploy(host: &View, unit: &str, params: &Definition) -> Result<Want> {
    let (path, content) = (path(unit), host.object(params.object.as_str())?);
    let found = host.value(&Cell::Node(path.clone()))?;
    if !is_content(&found, &content) {
        host.verify_unit(unit, &content)?;
    }
    let want = Want::new().parents(host, &path).own(object(&path, &content));
    Ok(want.then(Refresh::reload_units()))
}

pub(super) fn delete(host: &View, ByName { name }: &ByName) -> Result<Want> {
    let unit = own_unit(name)?;
    let cell = Cell::Node(path(&unit));
    if host.record(&cell).is_none() {
        return Ok(Want::new());
    }
    let mut want = Want::new().set(active(&unit, false));
    let found = host.unit(&unit)?;
    if is_enabled(found.enablement()) {
        want = no_longer_enabled(host, want, &found)?;
    }
    // In the other direction systemd has to know the file before it can enable and start.
    let want = want.then(Refresh::reload_units()).release(host, cell);
    Ok(want.release_parents(host, &path(&unit)).then(Refresh::reload_units()))
}

/// The full name of the unit that is made here under `name`.
pub(super) fn own_unit(name: &UnitName) -> Result<String> {
    let name = name.as_str();
    let stem = name.strip_suffix(SUFFIX).unwrap_or(name);
    let unit = format!("{PREFIX}{}{SUFFIX}", stem.strip_prefix(PREFIX).unwrap_or(stem));
    let refuse = |why: &str| {
        let message = format!("cannot make a service called {name}: {why}");
        Err(Error::new(Kind::InvalidInput, message))
    };
    if unit.len() > 255 {
        return refuse("the name is too long");
    }
    if stem.is_empty() || unit.contains('@') {
        return refuse("it has to be a plain name, and no template's or instance's");
    }
    if protected::is_osapi(&unit) {
        return refuse("OSAPI has units of that name itself");
    }
    Ok(unit)
}

/// Whether this is the unit that is made here under `name`.
pub(super) fn is_own(unit: &str, name: &UnitName) -> bool {
    own_unit(name).is_ok_and(|own| own == unit)
}

fn path(unit: &str) -> String {
    format!("{DIRECTORY}{unit}")
}

fn is_content(value: &Value, object: &Object) -> bool {
    matches!(value, Value::File { content, .. } if content == object.digest())
}
