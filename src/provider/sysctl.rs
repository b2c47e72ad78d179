//! Kernel parameters: what the running kernel uses, and what it will use after a boot.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::host::cell::{Cell, file, sysctl};
use crate::host::{View, Want};
use crate::op::{Domain, Method, Op, Write};
use crate::permission::Permission;

pub static DOMAIN: Domain = Domain {
    name: "sysctl",
    about: "Kernel parameters",
    ops: &[
        Op {
            id: "node.sysctl.update",
            about: "Set a kernel parameter, now and for every boot",
            method: Method::Put,
            path: "/node/{hostname}/sysctl/{key}",
            permission: Some(Permission::SysctlWrite),
            command: "node sysctl update",
            args: &["key", "value"],
            run: &Write(update, |host, params| current(host, &params.key)),
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
            run: &Write(delete, |host, params| current(host, &params.key)),
            ..Op::COMMON
        },
    ],
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Dotted name, such as `vm.swappiness`.
    pub key: Key,
    /// The value, on one line.
    pub value: Line,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// Dotted name, such as `vm.swappiness`.
    pub key: Key,
}

#[derive(Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Parameter {
    pub key: String,
    /// The value in the running kernel.
    pub value: String,
}

fn current(host: &View, Key(key): &Key) -> Result<Parameter> {
    Ok(Parameter { key: key.clone(), value: host.sysctl(key)? })
}

fn update(_: &View, Update { key: Key(key), value: Line(value) }: &Update) -> Result<Want> {
    Ok(Want::new().own(file(path(key), format!("{key} = {value}\n"))).set(sysctl(key, value)))
}

fn delete(host: &View, Delete { key: Key(key) }: &Delete) -> Result<Want> {
    Ok(Want::new().release(host, Cell::Node(path(key))).release(host, Cell::Sysctl(key.clone())))
}

fn path(key: &str) -> String {
    format!("/etc/sysctl.d/osapi-{key}.conf")
}

/// A name that stays below `/proc/sys`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = r"^[a-z0-9_-]+(\.[A-Za-z0-9_-]+)+$"))]
pub struct Key(String);

impl TryFrom<String> for Key {
    type Error = &'static str;

    fn try_from(key: String) -> Result<Self, Self::Error> {
        let is_part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
        };
        let is_key = key.contains('.') && key.split('.').all(is_part);
        is_key.then_some(Self(key)).ok_or("key: not the name of a kernel parameter")
    }
}

/// Text that cannot become a second line of a configuration file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend("pattern" = r"^[^\p{Cc}]+$"))]
pub struct Line(String);

impl TryFrom<String> for Line {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_line = !text.trim().is_empty() && !text.chars().any(char::is_control);
        is_line.then_some(Self(text)).ok_or("value: not a line of text")
    }
}
