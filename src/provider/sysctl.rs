//! Kernel parameters: what the running kernel uses, and what it will use after a boot.
//!
//! OSAPI keeps one file per parameter in `/etc/sysctl.d`; a parameter is managed as long as that
//! file is OSAPI's. Files that others put there are neither listed nor overwritten.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::host::cell::{Cell, Digest, Value, file, sysctl};
use crate::host::{Record, View, Want};
use crate::op::{Domain, Method, Nothing, Op, Read, Rows, Write};
use crate::permission::Permission;
use crate::types::Line;

pub static DOMAIN: Domain = Domain {
    name: "sysctl",
    about: "Kernel parameters",
    ops: &[
        Op {
            id: "node.sysctl.list",
            about: "List the kernel parameters that OSAPI has set",
            path: "/node/{hostname}/sysctl",
            permission: Some(Permission::SysctlRead),
            command: "node sysctl list",
            columns: &[("KEY", "/key"), ("VALUE", "/value")],
            rows: Rows::Each("parameters"),
            run: &Read(|host, _: &Nothing| Ok(list(host))),
            ..Op::COMMON
        },
        Op {
            id: "node.sysctl.get",
            about: "Show a kernel parameter that OSAPI has set",
            path: "/node/{hostname}/sysctl/{key}",
            permission: Some(Permission::SysctlRead),
            command: "node sysctl get",
            args: &["key"],
            columns: &[("KEY", "/key"), ("VALUE", "/value")],
            run: &Read(|host, params: &ByKey| get(host, &params.key)),
            ..Op::COMMON
        },
        Op {
            id: "node.sysctl.create",
            about: "Set a kernel parameter that OSAPI has not set yet, now and for every boot",
            method: Method::Post,
            path: "/node/{hostname}/sysctl",
            permission: Some(Permission::SysctlWrite),
            command: "node sysctl create",
            args: &["key", "value"],
            columns: &[("KEY", "/key")],
            run: &Write(create, |_, params| Ok(Named::from(&params.key))),
            ..Op::COMMON
        },
        Op {
            id: "node.sysctl.update",
            about: "Give a kernel parameter that OSAPI has set another value, now and for every boot",
            method: Method::Put,
            path: "/node/{hostname}/sysctl/{key}",
            permission: Some(Permission::SysctlWrite),
            command: "node sysctl update",
            args: &["key", "value"],
            columns: &[("KEY", "/key")],
            run: &Write(update, |_, params| Ok(Named::from(&params.key))),
            ..Op::COMMON
        },
        Op {
            id: "node.sysctl.delete",
            about: "Give a kernel parameter back the value it had before OSAPI set it",
            method: Method::Delete,
            path: "/node/{hostname}/sysctl/{key}",
            permission: Some(Permission::SysctlWrite),
            command: "node sysctl delete",
            args: &["key"],
            columns: &[("KEY", "/key")],
            run: &Write(delete, |_, params| Ok(Named::from(&params.key))),
            ..Op::COMMON
        },
    ],
};

const DIRECTORY: &str = "/etc/sysctl.d/osapi-";
const SUFFIX: &str = ".conf";

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByKey {
    /// Dotted name, such as `vm.swappiness`.
    key: Key,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Dotted name, such as `vm.swappiness`.
    key: Key,
    /// The value, on one line of at most 1024 characters.
    value: Line,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Parameters {
    parameters: Vec<Parameter>,
}

#[derive(Debug, JsonSchema, PartialEq, Serialize)]
struct Parameter {
    /// Dotted name, such as `vm.swappiness`.
    key: String,
    /// The value in the running kernel, or the one for the next boot where this kernel does not
    /// know the parameter.
    value: String,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Named {
    /// Dotted name, such as `vm.swappiness`.
    key: String,
}

impl From<&Key> for Named {
    fn from(Key(key): &Key) -> Self {
        Self { key: key.clone() }
    }
}

fn list(host: &View) -> Parameters {
    let known = host.records().into_iter().filter_map(|record| {
        let Cell::Node(path) = &record.cell else { return None };
        let key = path.strip_prefix(DIRECTORY)?.strip_suffix(SUFFIX)?;
        Some(parameter(host, &Key::try_from(key.to_owned()).ok()?))
    });
    Parameters { parameters: known.collect() }
}

fn get(host: &View, key: &Key) -> Result<Parameter> {
    managed(host, key).map(|_| parameter(host, key)).ok_or_else(|| unmanaged(key))
}

/// A parameter that is managed.
fn parameter(host: &View, Key(key): &Key) -> Parameter {
    let stored = || {
        let text = host.read(&path(key)).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_once('='));
        value.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    Parameter { key: key.clone(), value: host.sysctl(key).unwrap_or_else(|_| stored()) }
}

fn create(host: &View, params: &Assignment) -> Result<Want> {
    let Assignment { key, .. } = params;
    if let Some(record) = managed(host, key)
        && !is_content(&record.value, params)
    {
        let message = format!("{key} is set to another value already; update it instead");
        return Err(Error::new(Kind::Conflict, message));
    }
    host.sysctl(&key.0).map_err(|error| match error.kind() {
        // It was not addressed, it is what the caller made up.
        Kind::NotFound => Error::new(Kind::InvalidInput, error.to_string()),
        _ => error,
    })?;
    Ok(assign(host, params))
}

fn update(host: &View, params: &Assignment) -> Result<Want> {
    managed(host, &params.key).map(|_| assign(host, params)).ok_or_else(|| unmanaged(&params.key))
}

fn delete(host: &View, ByKey { key: Key(key) }: &ByKey) -> Result<Want> {
    let want = Want::new().release(host, Cell::Node(path(key)));
    Ok(want.release_parents(host, &path(key)).release(host, Cell::Sysctl(key.clone())))
}

fn assign(host: &View, params: &Assignment) -> Want {
    let Key(key) = &params.key;
    let want = Want::new().parents(host, &path(key)).own(file(path(key), content(params)));
    want.set(sysctl(key, params.value.as_str()))
}

fn content(Assignment { key: Key(key), value }: &Assignment) -> String {
    format!("{key} = {}\n", value.as_str().trim())
}

fn is_content(value: &Value, params: &Assignment) -> bool {
    matches!(value, Value::File { content: found, .. } if *found == Digest::of(content(params)))
}

fn managed(host: &View, Key(key): &Key) -> Option<Record> {
    host.record(&Cell::Node(path(key)))
}

fn unmanaged(key: &Key) -> Error {
    Error::new(Kind::NotFound, format!("OSAPI has not set {key}; create it first"))
}

fn path(key: &str) -> String {
    format!("{DIRECTORY}{key}{SUFFIX}")
}

/// A name that stays below `/proc/sys` and in one file's name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 200,
    "pattern" = r"^[a-z0-9_][a-z0-9_-]*(\.[a-z0-9_][a-z0-9_-]*)*$",
    "examples" = ["vm.swappiness"],
))]
struct Key(String);

impl TryFrom<String> for Key {
    type Error = &'static str;

    fn try_from(key: String) -> Result<Self, Self::Error> {
        let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
        let is_part =
            |part: &str| !part.is_empty() && !part.starts_with('-') && part.bytes().all(is_letter);
        let is_key = key.len() <= 200 && key.split('.').all(is_part);
        is_key.then_some(Self(key)).ok_or("key: not the name of a kernel parameter")
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::provider::tests::Fake;

    const FILE: &str = "/etc/sysctl.d/osapi-vm.swappiness.conf";
    const KERNEL: &str = "/proc/sys/vm/swappiness";

    fn host() -> Fake {
        let fake = Fake::with(&[(KERNEL, "60\n"), ("/etc/sysctl.conf", "")]);
        fake.put("/etc/passwd", "root:x:0:0::/:/bin/sh\n");
        fake.put("/etc/group", "root:x:0:\n");
        fake
    }

    fn run(fake: &Fake, verb: &str, params: Json) -> Result<Json, Kind> {
        fake.run(&format!("node.sysctl.{verb}"), params, "")
    }

    fn set(fake: &Fake, verb: &str, value: &str) -> Result<bool, Kind> {
        let params = json!({ "key": "vm.swappiness", "value": value });
        Ok(run(fake, verb, params)?["changed"] == true)
    }

    #[test]
    fn a_parameter_is_created_once_and_then_updated() {
        let fake = host();
        let by_key = json!({ "key": "vm.swappiness" });
        assert_eq!(set(&fake, "update", "10"), Err(Kind::NotFound));
        assert_eq!(run(&fake, "get", by_key.clone()), Err(Kind::NotFound));
        assert_eq!(set(&fake, "create", "10"), Ok(true));
        assert_eq!(fake.text(FILE).unwrap(), "vm.swappiness = 10\n");
        assert_eq!(fake.text(KERNEL).unwrap(), "10\n");
        assert_eq!(set(&fake, "create", "10"), Ok(false));
        assert_eq!(set(&fake, "create", "11"), Err(Kind::Conflict));
        assert_eq!(set(&fake, "update", "12"), Ok(true));
        assert_eq!(set(&fake, "update", "12"), Ok(false));
        let shown = json!({ "key": "vm.swappiness", "value": "12" });
        assert_eq!(run(&fake, "get", by_key).unwrap()["value"], "12");
        assert_eq!(run(&fake, "list", json!({})).unwrap()["parameters"], json!([shown]));
    }

    #[test]
    fn what_others_changed_is_set_again() {
        let fake = host();
        assert_eq!(set(&fake, "create", "10"), Ok(true));
        fake.put(KERNEL, "60\n");
        assert_eq!(set(&fake, "create", "10"), Ok(true));
        assert_eq!(fake.text(KERNEL).unwrap(), "10\n");
        fake.put(FILE, "vm.swappiness = 60\n");
        assert_eq!(set(&fake, "update", "10"), Ok(true));
        assert_eq!(fake.text(FILE).unwrap(), "vm.swappiness = 10\n");
    }

    #[test]
    fn a_deleted_parameter_has_its_former_value() {
        let fake = host();
        let by_key = json!({ "key": "vm.swappiness" });
        assert_eq!(run(&fake, "delete", by_key.clone()).unwrap()["changed"], false);
        assert_eq!(set(&fake, "create", "10"), Ok(true));
        assert_eq!(set(&fake, "update", "11"), Ok(true));
        assert_eq!(run(&fake, "delete", by_key.clone()).unwrap()["changed"], true);
        assert_eq!((fake.text(KERNEL).unwrap(), fake.text(FILE)), ("60\n".to_owned(), None));
        assert_eq!(run(&fake, "delete", by_key).unwrap()["changed"], false);
        assert_eq!(run(&fake, "list", json!({})).unwrap()["parameters"], json!([]));
    }

    #[test]
    fn what_others_removed_can_still_be_given_back() {
        let fake = host();
        let by_key = json!({ "key": "vm.swappiness" });
        assert_eq!(set(&fake, "create", "10"), Ok(true));
        fake.remove(FILE);
        assert_eq!(run(&fake, "delete", by_key.clone()).unwrap()["changed"], true);
        assert_eq!(fake.text(KERNEL).unwrap(), "60\n");
        assert_eq!(run(&fake, "get", by_key), Err(Kind::NotFound));
    }

    #[test]
    fn what_others_keep_is_left_alone() {
        let fake = host();
        fake.put(FILE, "vm.swappiness = 1\n");
        assert_eq!(set(&fake, "create", "10"), Err(Kind::Conflict));
        assert_eq!(run(&fake, "list", json!({})).unwrap()["parameters"], json!([]));
    }

    #[test]
    fn a_parameter_this_kernel_lacks_is_refused() {
        let fake = host();
        for key in ["vm.no_such", "vm", "swappiness"] {
            let params = json!({ "key": key, "value": "1" });
            assert_eq!(run(&fake, "create", params), Err(Kind::InvalidInput), "{key}");
        }
    }

    #[test]
    fn a_key_stays_below_proc_sys() {
        for key in ["", ".", "..", "a..b", ".a", "a.", "a/b", "-a", "a.-b", "A", "a b", "a\n", "ü"]
        {
            assert!(Key::try_from(key.to_owned()).is_err(), "{key:?}");
        }
        assert!(Key::try_from("a".repeat(201)).is_err());
        for key in ["vm.swappiness", "net.ipv4.conf.br-lan.rp_filter", "kernel.0"] {
            assert!(Key::try_from(key.to_owned()).is_ok(), "{key:?}");
        }
    }
}
