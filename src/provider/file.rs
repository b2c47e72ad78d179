//! Files from the object store: put in place, given back, compared.
//!
//! A path belongs to OSAPI from the first deployment until it is given back; then it holds again
//! what it held before. What OSAPI did not put somewhere it does not take away, and what another
//! operation keeps, such as a kernel parameter's file, is left to that operation.

use std::time::Duration;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value as Json};

use crate::error::{Error, Kind, Problem, Result};
use crate::host::cell::{Cell, Value, object};
use crate::host::{View, Want};
use crate::op::{Domain, Method, Op, Read, Write};
use crate::permission::Permission;
use crate::types::{AccountName, FilePath, ObjectName, present};

pub static DOMAIN: Domain = Domain {
    name: "file",
    about: "Files on hosts",
    ops: &[
        Op {
            id: "file.deploy.execute",
            about: "Put an object from the store in place as a file",
            path: "/node/{hostname}/file/deploy",
            permission: Some(Permission::FileWrite),
            status: 202,
            command: "node file deploy",
            flags: &[("object_name", "object"), ("vars", "var")],
            args: &["object_name", "path"],
            run: &Write(deploy, |_, _| Ok(Nowhere {})),
            ..FILE
        },
        Op {
            id: "file.undeploy.execute",
            about: "Give a path back what was there before OSAPI put a file in place",
            path: "/node/{hostname}/file/undeploy",
            permission: Some(Permission::FileWrite),
            status: 202,
            command: "node file undeploy",
            args: &["path"],
            run: &Write(undeploy, |_, _| Ok(Nowhere {})),
            ..FILE
        },
        Op {
            id: "file.status.get",
            about: "Show whether a file is as OSAPI put it in place",
            path: "/node/{hostname}/file/status",
            permission: Some(Permission::FileRead),
            command: "node file status",
            args: &["path"],
            columns: &[("PATH", "/path"), ("STATUS", "/status")],
            run: &Read(status),
            ..FILE
        },
    ],
};

const FILE: Op = Op {
    method: Method::Post,
    // Objects may be large: they are read, hashed and written through to the disk.
    timeout: Duration::from_mins(2),
    ..Op::COMMON
};

/// What is no place for files: interfaces of the kernel.
const NO_FILES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Where OSAPI keeps its own state under the package, its controller included. What it wrote down
/// there about a change must not be part of one.
const OWN: [&str; 2] = ["/var/lib/osapi", "/run/osapi"];

const NO_TEMPLATES: &str =
    "templates cannot be rendered yet; deploy the rendered content as raw, without vars";

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// The object whose content the file gets, 1 to 255 characters.
    object_name: ObjectName,
    /// Where the file goes, an absolute path. Directories that are missing are made.
    path: FilePath,
    /// Permissions, three or four octal digits; 0644 if not given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "FileMode")]
    mode: Option<FileMode>,
    /// The user it belongs to, by name or number; the agent's own if not given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "AccountName")]
    owner: Option<AccountName>,
    /// The group it belongs to, by name or number; that of the owner if not given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "AccountName")]
    group: Option<AccountName>,
    /// `raw`: the content as it is. `template` is refused until templates can be rendered.
    #[serde(deserialize_with = "raw")]
    #[expect(dead_code, reason = "taken to be refused")]
    content_type: ContentType,
    /// Variables of a template; refused unless empty until templates can be rendered.
    #[serde(default, deserialize_with = "no_variables")]
    #[expect(dead_code, reason = "taken to be refused")]
    vars: Map<String, Json>,
}

#[derive(Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum ContentType {
    Raw,
    Template,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByPath {
    /// Where the file is, an absolute path.
    path: FilePath,
}

/// Nothing beyond what every change tells.
#[derive(Debug, JsonSchema, Serialize)]
struct Nowhere {}

#[derive(Debug, JsonSchema, PartialEq, Serialize)]
struct FileStatus {
    path: String,
    /// `in-sync`, `drifted`, or `missing` where there is no file or OSAPI has put none.
    status: Likeness,
    /// SHA-256 of what is there now, in hexadecimal; absent for files that not everybody may
    /// read, whose content could be guessed from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    sha256: Option<String>,
}

#[derive(Clone, Copy, Debug, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
enum Likeness {
    #[serde(rename = "in-sync")]
    Same,
    Drifted,
    Missing,
}

fn deploy(host: &View, params: &Deploy) -> Result<Want> {
    let Deploy { object_name, path, mode, owner, group, .. } = params;
    admit(host, path)?;
    let owner = account(host, "/etc/passwd", "owner", owner.as_ref())?;
    let group = account(host, "/etc/group", "group", group.as_ref())?;
    let content = host.object(object_name.as_str())?;
    let state = object(path.as_str(), &content)
        .mode(mode.as_ref().map_or(0o644, |FileMode(bits)| *bits))
        .owner(&owner, &group);
    Ok(Want::new().parents(host, path.as_str()).set(state))
}

fn undeploy(host: &View, ByPath { path }: &ByPath) -> Result<Want> {
    let cell = Cell::Node(path.as_str().to_owned());
    let Some(record) = host.record(&cell) else {
        if host.is_given_back(&cell) {
            return Ok(Want::new());
        }
        let message = format!("OSAPI has put no file at {path}; there is nothing to give back");
        return Err(Error::new(Kind::NotFound, message));
    };
    refuse_foreign(&record.value, record.owned, path)?;
    Ok(Want::new().release(host, cell).release_parents(host, path.as_str()))
}

fn status(host: &View, ByPath { path }: &ByPath) -> Result<FileStatus> {
    let cell = Cell::Node(path.as_str().to_owned());
    let answer = |status, sha256| FileStatus { path: path.to_string(), status, sha256 };
    let Some(record) = host.record(&cell) else { return Ok(answer(Likeness::Missing, None)) };
    let found = host.value(&cell)?;
    let status = match &found {
        Value::Absent => Likeness::Missing,
        found if *found == record.value => Likeness::Same,
        _ => Likeness::Drifted,
    };
    let sha256 = match found.public() {
        Value::File { content, .. } => Some(content.to_string()).filter(|hex| !hex.is_empty()),
        _ => None,
    };
    Ok(answer(status, sha256))
}

/// Refuses templates where requests are parsed, so that no job is made of one.
fn raw<'de, D: Deserializer<'de>>(from: D) -> Result<ContentType, D::Error> {
    match ContentType::deserialize(from)? {
        ContentType::Raw => Ok(ContentType::Raw),
        ContentType::Template => Err(D::Error::custom(NO_TEMPLATES)),
    }
}

fn no_variables<'de, D: Deserializer<'de>>(from: D) -> Result<Map<String, Json>, D::Error> {
    let given = Map::deserialize(from)?;
    if given.is_empty() { Ok(given) } else { Err(D::Error::custom(NO_TEMPLATES)) }
}

/// Refuses places where a file would do something else than be there.
fn admit(host: &View, path: &FilePath) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::new(Kind::InvalidInput, format!("cannot put a file at {path}: {why}")))
    };
    if NO_FILES.iter().any(|directory| path.is_below(directory)) {
        return refuse("the kernel's files are not for that");
    }
    let is_own = OWN.iter().any(|directory| path.is_below(directory));
    if is_own || host.is_own_state(path.as_str()) {
        return refuse("OSAPI keeps its own state there");
    }
    for parent in path.parents() {
        match host.value(&Cell::Node(parent.to_owned()))? {
            Value::Absent => break,
            Value::Directory { .. } => {}
            Value::Link(_) => return refuse(&format!("{parent} is a link; name where it leads")),
            _ => return refuse(&format!("{parent} is no directory")),
        }
    }
    let cell = Cell::Node(path.as_str().to_owned());
    match host.record(&cell) {
        Some(record) => refuse_foreign(&record.value, record.owned, path),
        None => refuse_foreign(&host.value(&cell)?, false, path),
    }
}

/// Refuses to treat as a file what is none, or not this domain's.
fn refuse_foreign(value: &Value, owned: bool, path: &FilePath) -> Result<()> {
    let why = match value {
        Value::Directory { .. } => "is a directory",
        _ if owned => "is kept by another operation, which can give it back",
        _ => return Ok(()),
    };
    Err(Error::new(Kind::Conflict, format!("{path} {why}")))
}

/// What `table` calls an account; empty for the agent's own.
fn account(host: &View, table: &str, field: &str, wanted: Option<&AccountName>) -> Result<String> {
    let Some(wanted) = wanted.map(AccountName::as_str) else { return Ok(String::new()) };
    let text = host.read(table)?;
    let mut entries = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?))
    });
    // A name goes before a number, as chown has it.
    let by_name = entries.clone().find(|(name, _)| *name == wanted);
    if let Some((name, _)) = by_name.or_else(|| entries.find(|(_, id)| *id == wanted)) {
        return Ok(name.to_owned());
    }
    match wanted.parse::<u32>() {
        // All ones means to the kernel that the owner stays.
        Ok(id) if id != u32::MAX => Ok(id.to_string()),
        _ => {
            let problem = Problem {
                pointer: format!("/{field}"),
                message: format!("{wanted:?} is not in {table}"),
            };
            let message = format!("cannot set the {field}: this host knows no {wanted:?}");
            Err(Error::new(Kind::InvalidInput, message).with_problems(vec![problem]))
        }
    }
}

/// Permissions in octal, with or without a leading zero.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("pattern" = r"^0?[0-7]{3,4}$", "examples" = ["0644"]))]
struct FileMode(u32);

impl TryFrom<String> for FileMode {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digits = if text.len() > 3 { text.strip_prefix('0').unwrap_or(&text) } else { &text };
        let is_octal = matches!(digits.len(), 3 | 4) && digits.bytes().all(|b| b.is_ascii_digit());
        let bits = u32::from_str_radix(digits, 8).ok().filter(|_| is_octal);
        bits.map(Self).ok_or("mode: not three or four octal digits")
    }
}

#[cfg(test)]
mod tests;
