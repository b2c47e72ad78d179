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

/// A moment, as journalctl takes it.
#[derive(Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 64, "examples" = ["1h"]))]
struct Since(String);

impl TryFrom<String> for Since {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let since = Some(text.as_str())
            .filter(|text| text.len() <= 64 && !text.contains(char::is_control))
            .and_then(|text| match text {
                "now" | "today" | "yesterday" => Some(text.to_owned()),
                _ => seconds(text).or_else(|| ago(text)).or_else(|| date(text)),
            });
        since.map(Self).ok_or(
            "since: neither how long ago, such as 1h, nor a moment, such as 2026-01-31T12:00:00Z",
        )
    }
}

/// `@` and seconds since 1970.
fn seconds(text: &str) -> Option<String> {
    let digits = text.strip_prefix('@')?;
    let is_number = (1..=12).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.to_owned())
}

/// `1h`, `2d 6h`, `90 minutes ago`.
fn ago(text: &str) -> Option<String> {
    const MOST: u64 = 100 * 366 * 86_400;
    let text = text.strip_prefix('-').unwrap_or(text);
    let mut rest = text.strip_suffix("ago").unwrap_or(text).trim();
    let (mut sum, mut is_any) = (0_u64, false);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| (1..=9).contains(end))?;
        let number: u64 = rest[..end].parse().ok()?;
        let unit = rest[end..].trim_start();
        let end = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        let seconds = match &unit[..end] {
            "s" | "sec" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hr" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 7 * 86_400,
            _ => return None,
        };
        sum = sum.checked_add(number.checked_mul(seconds)?)?;
        rest = unit[end..].trim_start();
        is_any = true;
    }
    (is_any && sum <= MOST).then(|| format!("-{sum}s"))
}

/// A date, with a time or without; where it names no zone, it is the host's.
fn date(text: &str) -> Option<String> {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time.trim())),
        None => (text, None),
    };
    let numbers = |text: &str, sign: char, widths: &[usize]| -> Option<Vec<i64>> {
        let parts: Vec<&str> = text.split(sign).collect();
        let is_number = |(part, width): (&&str, &usize)| {
            part.len() == *width && part.bytes().all(|b| b.is_ascii_digit())
        };
        let is_it = parts.len() == widths.len() && parts.iter().zip(widths).all(is_number);
        is_it.then(|| parts.iter().filter_map(|part| part.parse().ok()).collect())
    };
    let [year, month, day] = numbers(date, '-', &[4, 2, 2])?.try_into().ok()?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let most = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1970..=9999).contains(&year) || !(1..=most).contains(&day) {
        return None;
    }
    let Some(time) = time else { return Some(date.to_owned()) };
    let (time, zone) = match time.find(['Z', 'z', '+', '-']) {
        Some(at) => (&time[..at], Some(&time[at..])),
        None => (time, None),
    };
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let clock = numbers(whole, ':', &[2, 2, 2]).or_else(|| {
        let [hour, minute] = numbers(whole, ':', &[2, 2])?.try_into().ok()?;
        Some(vec![hour, minute, 0])
    })?;
    let [hour, minute, second] = clock.try_into().ok()?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let ahead = match zone {
        None => return Some(format!("{date} {hour:02}:{minute:02}:{second:02}")),
        Some("Z" | "z") => 0,
        Some(zone) => {
            let [hours, minutes] = numbers(&zone[1..], ':', &[2, 2])?.try_into().ok()?;
            let ahead = (hours * 60 + minutes) * 60;
            if hours > 23 || minutes > 59 {
                return None;
            }
            if zone.starts_with('-') { -ahead } else { ahead }
        }
    };
    // Counted from 1 March of the year 0, so that a leap day is the last of its year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - ahead;
    (seconds >= 0).then(|| format!("@{seconds}"))
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

    #[test]
    fn since_is_translated_for_journalctl() {
        for (text, expected) in [
            ("1h", "-3600s"),
            ("-1h", "-3600s"),
            ("1h ago", "-3600s"),
            ("2d 6h", "-194400s"),
            ("90 minutes ago", "-5400s"),
            ("1w1s", "-604801s"),
            ("today", "today"),
            ("@1735689599", "@1735689599"),
            ("2024-12-31T23:59:59Z", "@1735689599"),
            ("2025-01-01T01:59:59.5+02:00", "@1735689599"),
            ("2024-12-31 20:29:59-03:30", "@1735689599"),
            ("2000-02-29T12:34:56Z", "@951827696"),
            ("2024-02-29", "2024-02-29"),
            ("2024-12-31 12:00", "2024-12-31 12:00:00"),
            ("2024-12-31T12:00:01", "2024-12-31 12:00:01"),
        ] {
            assert_eq!(Since::try_from(text.to_owned()).unwrap().0, expected, "{text:?}");
        }
        for text in [
            "",
            " ",
            "-",
            "ago",
            "h",
            "1",
            "1x",
            "1h;",
            "--until=now",
            "-1h --unit=x",
            "1h\n",
            "2023-02-29",
            "2024-13-01",
            "2024-1-1",
            "24:00",
            "2024-12-31 24:00",
            "@",
            "@-1",
            "@1e9",
            "2024-12-31T12:00:00.Z",
            "2024-12-31T12:00:00+2",
            "99999999999h",
            "1000000000d",
            "ünix",
        ] {
            assert!(Since::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
