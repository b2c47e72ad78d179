//! Constraints as types: text that has been parsed into one of these needs no second look.
//!
//! Each states its rule twice, as a `pattern` for clients and in its `TryFrom` for this process,
//! and the second decides. What only one domain needs lives in that domain's file.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Problem, Result};

/// What marks a reference to a fact of the host.
const FACT: &str = "@fact.";

/// An absolute path without detours: no empty name, no `.`, no `..`, no control character.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 4095,
    "pattern" = r"^(/(?!\.{1,2}(/|$))[^/\x00-\x1f\x7f-\x9f]+)+$",
    "examples" = ["/etc/motd"],
))]
pub struct FilePath(String);

impl FilePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `directory` or something in it.
    pub fn is_below(&self, directory: &str) -> bool {
        let rest = self.0.strip_prefix(directory.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The directories that lead to this path, the outermost first, without `/`.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').skip(1).map(|(at, _)| &self.0[..at])
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for FilePath {
    type Error = &'static str;

    fn try_from(path: String) -> Result<Self, Self::Error> {
        let is_name =
            |name: &str| !matches!(name, "" | "." | "..") && !name.contains(char::is_control);
        if path.len() > 4095 {
            return Err("path: is longer than 4095 bytes");
        }
        if path.split('/').any(|name| name.len() > 255) {
            return Err("path: a name in it is longer than 255 bytes");
        }
        let is_path = path.strip_prefix('/').is_some_and(|names| names.split('/').all(is_name));
        is_path.then_some(Self(path)).ok_or("path: not an absolute path without . and ..")
    }
}

/// The name of a user or group, or its number.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 32,
    "pattern" = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\$?$",
    "examples" = ["root"],
))]
pub struct AccountName(String);

impl AccountName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AccountName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let base = name.strip_suffix('$').unwrap_or(&name);
        let is_name = (1..=32).contains(&name.len())
            && !base.is_empty()
            && !base.starts_with(['-', '.'])
            && base.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        is_name.then_some(Self(name)).ok_or("not the name or number of an account")
    }
}

/// The name of a unit of systemd, as systemd.unit(5) has it, that cannot be taken for an option:
/// it begins with `-` only where it stands for `/`, as in `-.mount`. Without the suffix of its kind
/// it is that of a service.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 247,
    "pattern" = r"^(-\.|[A-Za-z0-9:_.\\])[A-Za-z0-9:_.@\\-]*$",
    "examples" = ["nginx"],
))]
pub struct UnitName(String);

/// What the kinds of units are called at the end of their names.
const UNIT_KINDS: [&str; 11] = [
    "automount",
    "device",
    "mount",
    "path",
    "scope",
    "service",
    "slice",
    "socket",
    "swap",
    "target",
    "timer",
];

impl UnitName {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// With the suffix of its kind.
    pub fn full(&self) -> String {
        let kind = self.0.rsplit_once('.').filter(|(prefix, _)| !prefix.is_empty());
        let has_kind = kind.is_some_and(|(_, kind)| UNIT_KINDS.contains(&kind));
        if has_kind { self.0.clone() } else { format!("{}.service", self.0) }
    }

    /// Whether it stands for many units, each of which has a name of its own.
    pub fn is_template(&self) -> bool {
        self.full().rsplit_once('.').is_some_and(|(prefix, _)| prefix.ends_with('@'))
    }
}

impl TryFrom<String> for UnitName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_letter = |b: u8| b.is_ascii_alphanumeric() || b":_.@\\-".contains(&b);
        // Room for the suffix is left.
        let is_name = (1..=247).contains(&name.len())
            && !name.starts_with('@')
            && (!name.starts_with('-') || name.starts_with("-."))
            && name.bytes().all(is_letter);
        is_name.then_some(Self(name)).ok_or("name: not the name of a systemd unit")
    }
}

/// What an object in the store is called. A job that takes one has its content pinned.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 255,
    "pattern" = r"^[^\x00-\x1f\x7f-\x9f-][^\x00-\x1f\x7f-\x9f]*$",
    "x-object" = true,
    "examples" = ["motd"],
))]
pub struct ObjectName(String);

impl ObjectName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ObjectName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_name = (1..=255).contains(&name.chars().count())
            && !name.starts_with('-')
            && !name.contains(char::is_control);
        is_name.then_some(Self(name)).ok_or("object name: not 1 to 255 printable characters")
    }
}

/// The id of a job, a UUID in lower case.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend("format" = "uuid"))]
pub struct JobId(String);

impl JobId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobId {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        // The parser also takes forms without hyphens, which would be other names of the job.
        let is_plain =
            |parsed: uuid::Uuid| parsed.hyphenated().to_string().eq_ignore_ascii_case(&id);
        let is_id = id.parse().is_ok_and(is_plain);
        is_id.then(|| Self(id.to_ascii_lowercase())).ok_or("id: not the id of a job")
    }
}

/// Text that cannot become a second line of a configuration file.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 1024,
    "pattern" = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$",
))]
pub struct Line(String);

impl Line {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Line {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_line = !text.trim().is_empty()
            && text.chars().count() <= 1024
            && !text.contains(char::is_control);
        is_line.then_some(Self(text)).ok_or("not one line of 1 to 1024 printable characters")
    }
}

/// Text that is shown to nobody: it can be neither printed nor encoded, and is overwritten in
/// memory when it is no longer needed. Wherever a request is kept it is sealed or gone.
#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 511,
    "pattern" = r"^[^\x00-\x1f\x7f-\x9f]+$",
    "writeOnly" = true,
))]
pub struct Secret(#[schemars(with = "String")] Zeroizing<String>);

impl Secret {
    /// What it says. Not for anything that is written or sent.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Secret {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let text = Zeroizing::new(text);
        let is_text = (1..=511).contains(&text.len()) && !text.contains(char::is_control);
        is_text.then_some(Self(text)).ok_or("not a secret of 1 to 511 printable bytes")
    }
}

/// Parses a parameter that may be left out, but may not be null: the published contract knows no
/// null, and a field that somebody set to it was meant to say something.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Refuses references to facts, which no host resolves yet, wherever they are in `params` but
/// where `is_secret` says of a JSON pointer that it leads to a secret: that is what it says.
///
/// To take them for plain text would put `@fact.hostname` into a file today and a host's name
/// tomorrow.
pub fn refuse_facts(params: &Value, is_secret: impl Fn(&str) -> bool) -> Result<()> {
    let mut problems = Vec::new();
    find_facts(params, &mut String::new(), &mut problems);
    problems.retain(|problem| !is_secret(&problem.pointer));
    if problems.is_empty() {
        return Ok(());
    }
    let message = "cannot resolve references to facts yet; write the value itself";
    Err(Error::new(Kind::InvalidInput, message).with_problems(problems))
}

fn find_facts(value: &Value, pointer: &mut String, problems: &mut Vec<Problem>) {
    let length = pointer.len();
    let mut enter = |name: &str, value: &Value| {
        pointer.push('/');
        pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
        find_facts(value, pointer, problems);
        pointer.truncate(length);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| enter(name, value)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| enter(&at.to_string(), value));
        }
        Value::String(text) if text.contains(FACT) => problems.push(Problem {
            pointer: pointer.clone(),
            message: format!("contains {FACT:?}, which cannot be resolved yet"),
        }),
        _ => {}
    }
}

/// Seconds since 1970 as a person and RFC 3339 write them, in UTC.
pub fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March end with the leap day; 400 of them are 146,097 days.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (year + era * 400, month + 3),
        _ => (year + era * 400 + 1, month - 9),
    };
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Parses as a parameter is parsed, and says whether the published pattern agrees.
    fn takes<T: JsonSchema + serde::de::DeserializeOwned>(text: &str) -> bool {
        let schema = schemars::schema_for!(T).to_value();
        let value = json!(text);
        let is_valid = jsonschema::is_valid(&schema, &value);
        let is_taken = serde_json::from_value::<T>(value).is_ok();
        assert_eq!(is_valid, is_taken, "the pattern and the parser disagree about {text:?}");
        is_taken
    }

    #[test]
    fn a_path_is_absolute_and_has_no_detours() {
        for path in ["/etc/motd", "/a", "/a b/ü", "/..a/.b", "/a.", "/..."] {
            assert!(takes::<FilePath>(path), "{path:?}");
        }
        for path in [
            "", "/", "a", "a/b", "./a", "/a/", "//a", "/a//b", "/.", "/..", "/a/..", "/a/../b",
            "/a/./b", "/a\nb", "/a\0b", "/a\u{7f}", "/a\u{85}", "-a", "~/a",
        ] {
            assert!(!takes::<FilePath>(path), "{path:?}");
        }
        assert!(!takes::<FilePath>(&format!("/{}", "a/".repeat(2048))));
        let name = format!("/{}", "a".repeat(256));
        assert!(FilePath::try_from(name).is_err(), "no file system has such a name");
    }

    #[test]
    fn a_path_knows_what_leads_to_it() {
        let path = FilePath::try_from("/etc/a/b".to_owned()).unwrap();
        assert_eq!(path.parents().collect::<Vec<_>>(), ["/etc", "/etc/a"]);
        assert!(path.is_below("/etc") && path.is_below("/etc/") && path.is_below("/etc/a/b"));
        assert!(!path.is_below("/et") && !path.is_below("/etc/a/b/c"));
    }

    #[test]
    fn an_account_is_a_name_or_a_number() {
        for name in ["root", "0", "www-data", "_apt", "host$", "a.b"] {
            assert!(takes::<AccountName>(name), "{name:?}");
        }
        for name in ["", "-r", ".r", "$", "a b", "a:b", "a\n", "a/b", "ü", "a$b"] {
            assert!(!takes::<AccountName>(name), "{name:?}");
        }
        assert!(!takes::<AccountName>(&"a".repeat(33)));
    }

    #[test]
    fn a_unit_is_named_as_systemd_names_it() {
        for (name, full) in [
            ("nginx", "nginx.service"),
            ("nginx.service", "nginx.service"),
            ("org.cups.cupsd", "org.cups.cupsd.service"),
            ("ssh.socket", "ssh.socket"),
            ("getty@tty1", "getty@tty1.service"),
            ("-.mount", "-.mount"),
            (".service", ".service.service"),
            (r"a\x2db:c_d", r"a\x2db:c_d.service"),
        ] {
            assert!(takes::<UnitName>(name), "{name:?}");
            assert_eq!(UnitName::try_from(name.to_owned()).unwrap().full(), full);
        }
        for name in ["", "@", "@a", "a b", "a/b", "../a", "a\n", "a\0", "ü", "a;b", "$a", "*"] {
            assert!(!takes::<UnitName>(name), "{name:?}");
        }
        for name in ["-", "-rf", "--now", "-rf.service"] {
            assert!(!takes::<UnitName>(name), "{name:?}");
        }
        assert!(takes::<UnitName>(&"a".repeat(247)) && !takes::<UnitName>(&"a".repeat(248)));
        for (name, is_template) in [("getty@", true), ("getty@.service", true), ("a@b", false)] {
            let name = UnitName::try_from(name.to_owned()).unwrap();
            assert_eq!(name.is_template(), is_template, "{name:?}");
        }
    }

    #[test]
    fn an_object_has_a_printable_name() {
        for name in ["motd", "a/b", "osapi/x", "a b", "ü"] {
            assert!(takes::<ObjectName>(name), "{name:?}");
        }
        for name in ["", "-f", "a\n", "a\0", "\u{1b}[31m", "\u{9b}1m"] {
            assert!(!takes::<ObjectName>(name), "{name:?}");
        }
        assert!(takes::<ObjectName>(&"ü".repeat(255)) && !takes::<ObjectName>(&"a".repeat(256)));
    }

    #[test]
    fn a_line_stays_one() {
        for line in ["1", " 4 5", "a = b"] {
            assert!(takes::<Line>(line), "{line:?}");
        }
        for line in ["", " ", "a\nb", "a\rb", "a\tb", "a\0", "\u{85}"] {
            assert!(!takes::<Line>(line), "{line:?}");
        }
        assert!(!takes::<Line>(&"1".repeat(1025)));
    }

    #[test]
    fn a_secret_has_no_control_characters() {
        for text in ["x", "correct horse", "\u{e4}:\\\"'$(id)"] {
            assert!(takes::<Secret>(text), "{text:?}");
        }
        for text in ["", "a\n", "a\0", "\u{85}", &"x".repeat(512)] {
            assert!(!takes::<Secret>(text), "{text:?}");
        }
    }

    #[test]
    fn a_job_has_one_name() {
        let id = "0192f0c1-0000-7000-8000-00000000000a";
        assert_eq!(JobId::try_from(id.to_uppercase()).unwrap().as_str(), id);
        for id in ["", "..", "a/b", "0192f0c1000070008000000000000000", &format!("{{{id}}}"), "-1"]
        {
            assert!(JobId::try_from(id.to_owned()).is_err(), "{id:?}");
        }
    }

    #[test]
    fn every_reference_to_a_fact_is_named() {
        let none = |_: &str| false;
        refuse_facts(&json!({ "a": "fact.x @facts", "b": [1, null, true] }), none).unwrap();
        let params = json!({ "a": "x @fact.hostname", "b/~": [{ "c": "@fact." }, "fine"] });
        let error = refuse_facts(&params, none).unwrap_err().body();
        assert_eq!(error.kind, Kind::InvalidInput);
        let pointers: Vec<_> = error.problems.into_iter().map(|p| p.pointer).collect();
        assert_eq!(pointers, ["/a", "/b~1~0/0/c"]);
        refuse_facts(&params, |pointer| pointer != "/").unwrap();
    }

    #[test]
    fn moments_are_written_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
