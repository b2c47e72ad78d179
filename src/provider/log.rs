//! What the host's journal has to say.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::MAX_LIST;
use crate::error::{Error, Kind, Result};
use crate::host::{Lines, Select, View};
use crate::op::{Domain, Follow, Nothing, Op, Read};
use crate::permission::Permission;
use crate::types::{UnitName, present, rfc3339};

mod since;

use since::Since;

pub static DOMAIN: Domain = Domain {
    name: "log",
    about: "The journal of the host",
    ops: &[
        Op {
            id: "node.log.query",
            about: "Show the newest entries of the journal",
            path: "/node/{hostname}/log",
            command: "node log query",
            run: &Read(|host, query: &Query| entries(host, &query.select(None), query.lines)),
            ..ENTRIES
        },
        Op {
            id: "node.log.follow",
            about: "Show entries of the journal as they are written, for at most an hour",
            path: "/node/{hostname}/log/follow",
            permission: Some(Permission::LogRead),
            command: "node log follow",
            columns: &[("TIMESTAMP", "/timestamp"), ("UNIT", "/unit"), ("MESSAGE", "/message")],
            timeout: Duration::from_hours(1),
            run: &Follow(follow, placed),
            ..Op::COMMON
        },
        Op {
            id: "node.log.sources",
            about: "List who has written to the journal",
            path: "/node/{hostname}/log/source",
            permission: Some(Permission::LogRead),
            command: "node log source",
            columns: &[("SOURCE", "/sources/*")],
            run: &Read(|host, _: &Nothing| sources(host)),
            ..Op::COMMON
        },
        Op {
            id: "node.log.queryUnit",
            about: "Show the newest entries of the journal about a unit",
            path: "/node/{hostname}/log/unit/{name}",
            command: "node log unit",
            args: &["name"],
            run: &Read(|host, query: &OfUnit| of_unit(host, query)),
            ..ENTRIES
        },
    ],
};

const ENTRIES: Op = Op {
    permission: Some(Permission::LogRead),
    columns: &[
        ("TIMESTAMP", "/entries/*/timestamp"),
        ("UNIT", "/entries/*/unit"),
        ("MESSAGE", "/entries/*/message"),
    ],
    ..Op::COMMON
};

/// How much of a message is shown, in bytes.
const MAX_MESSAGE: usize = 32 * 1024;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// How many entries to show, 1 to 10000.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 10_000))]
    lines: u32,
    /// How long ago (`90s`, `1h`, `2d 6h`), or a moment: `2026-01-31T12:00:00Z`, `2026-01-31 12:00`
    /// in the host's time, `@` and seconds since 1970, `today`, `yesterday`.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Since")]
    since: Option<Since>,
    /// Only what is at least as urgent.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Priority")]
    priority: Option<Priority>,
}

impl Query {
    fn select(&self, unit: Option<&UnitName>) -> Select {
        select(self.since.as_ref(), self.priority, unit)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OfUnit {
    /// The name of a unit, such as `ssh.service`; without a suffix it is a service.
    name: UnitName,
    /// How many entries to show, 1 to 10000.
    #[serde(default = "hundred")]
    #[schemars(range(min = 1, max = 10_000))]
    lines: u32,
    /// How long ago (`90s`, `1h`, `2d 6h`), or a moment: `2026-01-31T12:00:00Z`, `2026-01-31 12:00`
    /// in the host's time, `@` and seconds since 1970, `today`, `yesterday`.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Since")]
    since: Option<Since>,
    /// Only what is at least as urgent.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Priority")]
    priority: Option<Priority>,
}

const fn hundred() -> u32 {
    100
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Following {
    /// How many entries to begin with that are there already, 0 to 10000.
    #[serde(default = "ten")]
    #[schemars(range(max = 10_000))]
    lines: u32,
    /// Only what was written since: how long ago (`90s`, `1h`, `2d 6h`), or a moment:
    /// `2026-01-31T12:00:00Z`, `2026-01-31 12:00` in the host's time, `@` and seconds since 1970,
    /// `today`, `yesterday`.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Since")]
    since: Option<Since>,
    /// Only what is at least as urgent.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Priority")]
    priority: Option<Priority>,
    /// Only what is about this unit, such as `ssh.service`; without a suffix it is a service.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "UnitName")]
    unit: Option<UnitName>,
    /// Begins behind the entry that has this id instead.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Cursor")]
    after: Option<Cursor>,
}

const fn ten() -> u32 {
    10
}

/// The place of an entry, as journalctl names it.
#[derive(Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 512, "pattern" = "^[0-9A-Za-z=;-]+$"))]
struct Cursor(String);

impl TryFrom<String> for Cursor {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"=;-".contains(&byte);
        let is_one = (1..=512).contains(&text.len()) && text.bytes().all(is_part);
        is_one.then_some(Self(text)).ok_or("after: not the id of an entry")
    }
}

/// As syslog names them, the most urgent first.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Priority {
    Emerg,
    Alert,
    Crit,
    Err,
    Warning,
    Notice,
    Info,
    Debug,
}

const PRIORITIES: [&str; 8] =
    ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

#[derive(Debug, JsonSchema, Serialize)]
struct Entries {
    /// The oldest first.
    entries: Vec<Entry>,
    /// Whether older entries, or parts of long ones, had to be left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Debug, JsonSchema, PartialEq, Serialize)]
pub struct Entry {
    /// As RFC 3339 has it, in UTC, with microseconds.
    timestamp: String,
    /// The unit that it is about; who wrote it, where no unit did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    unit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    priority: Option<String>,
    /// At most 32 KiB; what is not UTF-8 is replaced.
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pid: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    hostname: Option<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Sources {
    /// The names under which programs wrote to the journal, sorted.
    sources: Vec<String>,
    /// Whether there are more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

fn select(since: Option<&Since>, priority: Option<Priority>, unit: Option<&UnitName>) -> Select {
    Select {
        since: since.map(|Since(since)| since.clone()),
        priority: priority.map(|priority| PRIORITIES[priority as usize]),
        unit: unit.map(UnitName::full),
    }
}

fn entries(host: &View, select: &Select, lines: u32) -> Result<Entries> {
    let (mut entries, mut room, mut truncated) = (Vec::new(), MAX_LIST, false);
    host.log(select, lines, |line| {
        let Some((entry, is_cut)) = entry(line) else { return true };
        // What cannot be encoded takes no room, and is reported when the answer is.
        let size = serde_json::to_vec(&entry).map_or(0, |json| json.len() + 1);
        let Some(rest) = room.checked_sub(size) else {
            truncated = true;
            return false;
        };
        room = rest;
        truncated |= is_cut;
        entries.push(entry);
        true
    })?;
    entries.reverse();
    Ok(Entries { entries, truncated })
}

fn follow(host: &View, query: &Following) -> Result<Lines> {
    let select = select(query.since.as_ref(), query.priority, query.unit.as_ref());
    host.follow_log(&select, query.lines, query.after.as_ref().map(|Cursor(cursor)| &**cursor))
}

/// An entry and the id of its place.
fn placed(line: &[u8]) -> Option<(Option<String>, Entry)> {
    let fields = fields(line)?;
    let cursor = fields.get("__CURSOR").and_then(text);
    let cursor = cursor.and_then(|cursor| Cursor::try_from(cursor).ok());
    Some((cursor.map(|Cursor(cursor)| cursor), entry_of(&fields)?.0))
}

fn of_unit(host: &View, query: &OfUnit) -> Result<Entries> {
    let name = query.name.full();
    let select = select(query.since.as_ref(), query.priority, Some(&query.name));
    let found = entries(host, &select, query.lines)?;
    // One that is gone may have left something to say.
    if found.entries.is_empty() && host.has_systemd() && !host.knows_unit(&name)? {
        let message = format!("there is no unit {name} on this host, and the journal has none");
        return Err(Error::new(Kind::NotFound, message));
    }
    Ok(found)
}

fn sources(host: &View) -> Result<Sources> {
    let mut sources = std::collections::BTreeSet::new();
    let (mut room, mut truncated) = (MAX_LIST, false);
    host.log_sources(|line| {
        let source = String::from_utf8_lossy(line).into_owned();
        // Escaped, a character takes up to six bytes.
        match room.checked_sub(source.len().saturating_mul(6).saturating_add(3)) {
            Some(rest) => room = rest,
            None => truncated = true,
        }
        if !truncated && !source.is_empty() {
            sources.insert(source);
        }
        !truncated
    })?;
    Ok(Sources { sources: sources.into_iter().collect(), truncated })
}

/// An entry as journalctl writes it in JSON, and whether its message had to be cut; None for what
/// is none.
pub fn entry(line: &[u8]) -> Option<(Entry, bool)> {
    entry_of(&fields(line)?)
}

fn fields(line: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(line).ok()
}

fn entry_of(fields: &Map<String, Value>) -> Option<(Entry, bool)> {
    let field = |name: &str| fields.get(name).and_then(text);
    let time: u64 = field("__REALTIME_TIMESTAMP")?.parse().ok()?;
    let (message, is_cut) = cut(field("MESSAGE").unwrap_or_default());
    let pid = field("_PID");
    // Anybody may say that an entry is about a unit. The service manager is believed.
    let about = field("UNIT").filter(|_| pid.as_deref() == Some("1"));
    let of = || field("_SYSTEMD_UNIT").filter(|unit| unit != "init.scope");
    let priority = field("PRIORITY").and_then(|number| number.parse::<usize>().ok());
    let entry = Entry {
        timestamp: moment(time),
        unit: about.or_else(of).or_else(|| field("SYSLOG_IDENTIFIER")),
        priority: priority.and_then(|number| PRIORITIES.get(number)).map(|&name| name.to_owned()),
        message,
        pid: pid.and_then(|pid| pid.parse().ok()),
        hostname: field("_HOSTNAME"),
    };
    Some((entry, is_cut))
}

/// The value of a field: text, bytes where it is not printable, or a list where an entry has it
/// several times.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(items) => {
            let byte = |item: &Value| item.as_u64().and_then(|byte| u8::try_from(byte).ok());
            if let Some(bytes) = items.iter().map(byte).collect::<Option<Vec<_>>>() {
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            // A value of a value is text or bytes.
            let texts: Vec<_> =
                items.iter().filter(|item| !item.is_object()).filter_map(text).collect();
            Some(texts.join("\n"))
        }
        _ => None,
    }
}

fn cut(mut message: String) -> (String, bool) {
    let is_cut = message.len() > MAX_MESSAGE;
    if is_cut {
        let end = (0..=MAX_MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    (message, is_cut)
}

/// Microseconds since 1970 as people read them.
fn moment(micros: u64) -> String {
    let whole = rfc3339(micros / 1_000_000);
    format!("{}.{:06}Z", whole.trim_end_matches('Z'), micros % 1_000_000)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(line: &Value) -> Entry {
        entry(line.to_string().as_bytes()).unwrap().0
    }

    #[test]
    fn an_entry_is_told_by_its_published_fields() {
        let line = json!({
            "__REALTIME_TIMESTAMP": "1735689599000042", "__CURSOR": "s=1", "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "sshd", "_SYSTEMD_UNIT": "ssh.service", "_PID": "42",
            "_HOSTNAME": "web", "MESSAGE": "hello",
        });
        let entry = serde_json::to_value(read(&line)).unwrap();
        assert_eq!(
            entry,
            json!({
                "timestamp": "2024-12-31T23:59:59.000042Z", "unit": "ssh.service",
                "priority": "warning", "message": "hello", "pid": 42, "hostname": "web",
            })
        );
        let bare = read(&json!({ "__REALTIME_TIMESTAMP": "0" }));
        assert_eq!(bare.message, "");
        assert_eq!(bare.unit, None);
    }

    #[test]
    fn only_the_service_manager_says_what_others_are_about() {
        let of = |pid: &str| {
            let line = json!({
                "__REALTIME_TIMESTAMP": "1", "UNIT": "ssh.service", "_PID": pid,
                "_SYSTEMD_UNIT": if pid == "1" { "init.scope" } else { "cron.service" },
                "SYSLOG_IDENTIFIER": "systemd",
            });
            read(&line).unit.unwrap()
        };
        assert_eq!(of("1"), "ssh.service");
        assert_eq!(of("2"), "cron.service");
    }

    #[test]
    fn a_message_is_told_whatever_it_is_made_of() {
        let message = |message: Value| {
            read(&json!({ "__REALTIME_TIMESTAMP": "1", "MESSAGE": message })).message
        };
        assert_eq!(message(json!([104, 105, 255])), "hi\u{fffd}");
        assert_eq!(message(json!(["one", "two", [51]])), "one\ntwo\n3");
        assert_eq!(message(json!(null)), "");
        let long = message(json!("ü".repeat(MAX_MESSAGE)));
        assert_eq!(long.len(), MAX_MESSAGE + '…'.len_utf8());
        assert!(entry(b"-- No entries --").is_none() && entry(b"[]").is_none());
    }
}
