//! From text to a [`Config`]: every problem of every file at once, each with its line.

#![expect(clippy::disallowed_methods, reason = "reads the configuration and the environment")]

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Config, FILE, Inert, Size, Span, inert};
use crate::error::{Error, Kind, Result};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Variables that are no keys: where the configuration is, and what OSAPI tells its own processes.
const OWN: &[&str] = &["OSAPI_OSAPIFILE", "OSAPI_PARENT", "OSAPI_JOB_ID"];

/// A configuration, and what is worth telling about where it comes from.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    pub config: Config,
    /// The files it was read from, in order.
    pub files: Vec<PathBuf>,
    /// Those of them that hold a secret.
    pub secret: BTreeSet<PathBuf>,
    /// Keys that were set and do nothing.
    pub inert: BTreeSet<Inert>,
}

/// Reads `file` and what lies beside it; without one, [`FILE`] if that exists. Then `env`, as
/// names and values, has the last word.
pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Loaded> {
    let env: BTreeMap<String, String> =
        env.filter(|(name, _)| name.starts_with("OSAPI_")).collect();
    let named = file.map(Path::to_owned).or_else(|| env.get("OSAPI_OSAPIFILE").map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| FILE.into());
    let mut reader = Reader { schema: schema(), ..Reader::default() };
    let mut tree = Map::new();
    match text(&path) {
        Ok(text) => reader.file(&path, &text, &mut tree),
        Err(error) if named.is_none() && error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    for path in beside(&path)? {
        reader.file(&path, &text(&path)?, &mut tree);
    }
    reader.environment(&env, &mut tree);
    reader.end(tree)
}

/// What the environment alone says; nothing where that cannot be used either.
pub fn of_environment(env: impl Iterator<Item = (String, String)>) -> Config {
    let env = env.filter(|(name, _)| name.starts_with("OSAPI_")).collect();
    let mut reader = Reader { schema: schema(), ..Reader::default() };
    let mut tree = Map::new();
    reader.environment(&env, &mut tree);
    reader.end(tree).unwrap_or_default().config
}

fn text(path: &Path) -> Result<String> {
    let cannot = |kind, error: &dyn std::fmt::Display| {
        Error::new(kind, format!("cannot read the configuration {}: {error}", path.display()))
    };
    let length = std::fs::metadata(path).map(|meta| meta.len());
    let text = length.and_then(|length| match length {
        ..=MAX_FILE => std::fs::read_to_string(path),
        _ => Err(std::io::Error::other(format!("it is larger than {MAX_FILE} bytes"))),
    });
    text.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => cannot(Kind::NotFound, &error),
        std::io::ErrorKind::PermissionDenied => cannot(Kind::Denied, &error),
        _ => cannot(Kind::Unavailable, &error),
    })
}

/// The files in `osapi.yaml.d`, for `osapi.yaml`, in order of their names.
fn beside(path: &Path) -> Result<Vec<PathBuf>> {
    let mut name = path.as_os_str().to_owned();
    name.push(".d");
    let entries = match std::fs::read_dir(&name) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let name = Path::new(&name).display();
            return Err(Error::new(Kind::Unavailable, format!("cannot read {name}: {error}")));
        }
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    Ok(paths)
}

/// What there is to configure, without references.
pub(super) fn schema() -> Value {
    let mut settings = schemars::generate::SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    settings.into_generator().into_root_schema_for::<Config>().to_value()
}

/// What a value must be, read off its schema.
enum Shape<'a> {
    Section(&'a Map<String, Value>),
    /// Any keys, with values of this shape.
    Map(&'a Value),
    List(&'a Value),
    Value,
}

fn shape(schema: &Value) -> Shape<'_> {
    if let Some(Value::Object(properties)) = schema.get("properties") {
        Shape::Section(properties)
    } else if let Some(values @ Value::Object(_)) = schema.get("additionalProperties") {
        Shape::Map(values)
    } else if let Some(items) = schema.get("items") {
        Shape::List(items)
    } else {
        Shape::Value
    }
}

#[derive(Default)]
struct Reader {
    schema: Value,
    files: Vec<PathBuf>,
    secret: BTreeSet<PathBuf>,
    inert: BTreeSet<Inert>,
    /// Where each key was set last.
    places: BTreeMap<String, String>,
    problems: Vec<String>,
}

impl Reader {
    /// The configuration that `tree` is, unless there are problems.
    fn end(mut self, tree: Map<String, Value>) -> Result<Loaded> {
        let mut config = Config::default();
        if self.problems.is_empty() {
            match Config::deserialize(Value::Object(tree)) {
                Ok(read) => config = read,
                Err(error) => self.problems.push(error.to_string()),
            }
            for (key, what) in config.problems() {
                self.problem(&self.place(&key), &key, &what);
            }
        }
        if !self.problems.is_empty() {
            let message =
                format!("cannot use the configuration:\n  {}", self.problems.join("\n  "));
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(Loaded { config, files: self.files, secret: self.secret, inert: self.inert })
    }

    fn problem(&mut self, place: &str, key: &str, what: &str) {
        self.problems.push(format!("{place}: {key}: {what}"));
    }

    /// Where `key` was set, or what holds it.
    fn place(&self, key: &str) -> String {
        let mut key = key;
        loop {
            if let Some(place) = self.places.get(key) {
                return place.clone();
            }
            match key.rsplit_once('.') {
                Some((outer, _)) => key = outer,
                None => return "configuration".to_owned(),
            }
        }
    }

    fn file(&mut self, path: &Path, text: &str, tree: &mut Map<String, Value>) {
        self.files.push(path.to_owned());
        let name = path.display().to_string();
        let documents = match MarkedYaml::load_from_str(text) {
            Ok(documents) => documents,
            Err(error) => {
                let line = error.marker().line();
                return self.problems.push(format!("{name}:{line}: {}", error.info()));
            }
        };
        let [root] = &documents[..] else {
            if documents.len() > 1 {
                self.problems.push(format!("{name}: it holds more than one document"));
            }
            return;
        };
        let schema = std::mem::take(&mut self.schema);
        if let Some(Value::Object(read)) = self.node(&name, "", &schema, root) {
            merge(tree, read);
        }
        self.schema = schema;
    }

    /// What `node` says for `key`; None where that is nothing, or a problem.
    fn node(&mut self, file: &str, key: &str, schema: &Value, node: &MarkedYaml) -> Option<Value> {
        let place = format!("{file}:{}", node.span.start.line());
        if matches!(node.data, YamlData::Value(Scalar::Null)) {
            return None;
        }
        self.places.insert(key.to_owned(), place.clone());
        match (shape(schema), &node.data) {
            (Shape::Section(properties), YamlData::Mapping(entries)) => {
                let mut read = Map::new();
                for (name, value) in entries {
                    let place = format!("{file}:{}", name.span.start.line());
                    // Keys of the published configuration are read whatever their case.
                    let name = text_of(&name.data).unwrap_or_default().to_lowercase();
                    let inner = join(key, &name);
                    if let Some(schema) = properties.get(&name) {
                        let value = self.node(file, &inner, schema, value);
                        read.extend(value.map(|value| (name, value)));
                    } else if !self.is_inert(&inner) && !self.holds_inert(file, &inner, value) {
                        let what = unknown(&inner, properties.keys().map(String::as_str));
                        self.problem(&place, &inner, &what);
                    }
                }
                Some(read.into())
            }
            (Shape::Map(values), YamlData::Mapping(entries)) => {
                let mut read = Map::new();
                for (name, value) in entries {
                    let name = text_of(&name.data).unwrap_or_default().into_owned();
                    let value = self.node(file, &join(key, &name), values, value);
                    read.extend(value.map(|value| (name, value)));
                }
                Some(read.into())
            }
            (Shape::List(items), YamlData::Sequence(entries)) => {
                let read = entries.iter().filter_map(|entry| self.node(file, key, items, entry));
                Some(read.collect())
            }
            // As in the environment: `a,b`.
            (Shape::List(items), data) if text_of(data).is_some() => {
                let text = text_of(data).unwrap_or_default();
                self.list(&place, key, items, &text)
            }
            (Shape::Value, data) if text_of(data).is_some() => {
                let text = text_of(data).unwrap_or_default();
                if schema["writeOnly"] == true && !text.is_empty() {
                    self.secret.insert(file.into());
                }
                self.scalar(&place, key, schema, &text)
            }
            (Shape::Section(_) | Shape::Map(_), _) => {
                self.problem(&place, key, "it holds other keys, and not a value");
                None
            }
            (Shape::List(_), _) => {
                self.problem(&place, key, "it is a list");
                None
            }
            (Shape::Value, _) => {
                self.problem(&place, key, "it is a single value");
                None
            }
        }
    }

    fn is_inert(&mut self, key: &str) -> bool {
        let why = inert::why(key);
        self.inert.extend(why.map(|why| Inert { key: key.to_owned(), why }));
        why.is_some()
    }

    /// Whether `key` is a section that only has keys which do nothing, such as `nats`. Says which
    /// of its keys nobody knows.
    fn holds_inert(&mut self, file: &str, key: &str, node: &MarkedYaml) -> bool {
        let below = |known: &str| known.strip_prefix(key)?.strip_prefix('.').map(str::to_owned);
        let known: Vec<_> = inert::keys().filter_map(|(known, _)| below(known)).collect();
        if known.is_empty() {
            return false;
        }
        let YamlData::Mapping(entries) = &node.data else { return true };
        for (name, value) in entries {
            let place = format!("{file}:{}", name.span.start.line());
            let name = text_of(&name.data).unwrap_or_default().to_lowercase();
            let inner = join(key, &name);
            if !self.is_inert(&inner) && !self.holds_inert(file, &inner, value) {
                let what = unknown(&inner, known.iter().map(String::as_str));
                self.problem(&place, &inner, &what);
            }
        }
        true
    }

    fn environment(&mut self, env: &BTreeMap<String, String>, tree: &mut Map<String, Value>) {
        let schema = std::mem::take(&mut self.schema);
        for (key, schema) in leaves(&schema) {
            let name = variable(&key);
            let Some(text) = env.get(&name) else { continue };
            let value = match shape(schema) {
                Shape::List(items) => self.list(&name, &key, items, text),
                _ => self.scalar(&name, &key, schema, text),
            };
            self.places.insert(key.clone(), name);
            if let Some(value) = value {
                set(tree, &key, value);
            }
        }
        let known: BTreeSet<_> =
            leaves(&schema).into_iter().map(|(key, _)| variable(&key)).collect();
        let sections: Vec<_> = inert::keys().map(|(key, _)| variable(key)).collect();
        let is_inert = |name: &String| {
            let rest = sections.iter().find_map(|section| name.strip_prefix(section.as_str()));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        let others = env.keys().filter(|name| !known.contains(*name) && !is_inert(name));
        for name in others.filter(|name| !OWN.contains(&name.as_str())) {
            self.inert.insert(Inert { key: name.clone(), why: "no key has this variable" });
        }
        self.schema = schema;
        for (key, why) in inert::keys() {
            let name = variable(key);
            let below = format!("{name}_");
            if env.keys().any(|set| *set == name || set.starts_with(&below)) {
                self.inert.insert(Inert { key: key.to_owned(), why });
            }
        }
    }

    fn list(&mut self, place: &str, key: &str, items: &Value, text: &str) -> Option<Value> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        Some(entries.filter_map(|entry| self.scalar(place, key, items, entry)).collect())
    }

    fn scalar(&mut self, place: &str, key: &str, schema: &Value, text: &str) -> Option<Value> {
        match scalar(schema, text) {
            Ok(value) => Some(value),
            Err(what) => {
                self.problem(place, key, &what);
                None
            }
        }
    }
}

/// `text` as the type that `schema` asks for. A number may be quoted, a text may look like one.
fn scalar(schema: &Value, text: &str) -> Result<Value, String> {
    let types = schema.get("type").into_iter().flat_map(|kind| match kind {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => Vec::from_iter(kind.as_str()),
    });
    let kind = types.into_iter().find(|kind| *kind != "null").unwrap_or("string");
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        let mut words = words.iter().filter_map(Value::as_str);
        if words.clone().all(|word| word != text) {
            let near = nearest(text, &mut words).map(|near| format!("; did you mean {near}?"));
            return Err(format!("{text:?} is not known{}", near.unwrap_or_default()));
        }
    }
    let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
    let within = |number: f64| match (limit("minimum"), limit("maximum")) {
        (Some(least), Some(most)) if number < least || number > most => {
            Err(format!("{text} is not between {least} and {most}"))
        }
        _ => Ok(()),
    };
    match kind {
        "boolean" => match text.to_lowercase().as_str() {
            "true" | "t" | "1" => Ok(json!(true)),
            "false" | "f" | "0" => Ok(json!(false)),
            _ => Err(format!("{text:?} is neither true nor false")),
        },
        "integer" => {
            let number: i64 =
                text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
            #[expect(clippy::cast_precision_loss, reason = "limits are small")]
            within(number as f64)?;
            Ok(json!(number))
        }
        "number" => {
            let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
            within(number)?;
            Ok(json!(number))
        }
        _ => {
            match schema.get("format").and_then(Value::as_str) {
                Some("duration") => drop(Span::parse(text)?),
                Some("size") => drop(Size::parse(text)?),
                _ => {}
            }
            let most = schema.get("maxLength").and_then(Value::as_u64).unwrap_or(u64::MAX);
            if text.chars().count() as u64 > most {
                return Err(format!("it is longer than {most} characters"));
            }
            Ok(json!(text))
        }
    }
}

/// A scalar as it was written, as far as that can be told.
fn text_of<'a>(data: &'a YamlData<'a, MarkedYaml<'a>>) -> Option<Cow<'a, str>> {
    match data {
        YamlData::Representation(text, ..) | YamlData::Value(Scalar::String(text)) => {
            Some(Cow::Borrowed(text))
        }
        YamlData::Value(Scalar::Integer(number)) => Some(number.to_string().into()),
        YamlData::Value(Scalar::FloatingPoint(number)) => Some(number.to_string().into()),
        YamlData::Value(Scalar::Boolean(value)) => Some(value.to_string().into()),
        YamlData::Value(Scalar::Null) => Some("".into()),
        YamlData::Tagged(_, inner) => text_of(&inner.data),
        _ => None,
    }
}

/// Every key that holds a value or a list, with its schema.
pub(super) fn leaves(schema: &Value) -> Vec<(String, &Value)> {
    fn below<'a>(key: &str, schema: &'a Value, found: &mut Vec<(String, &'a Value)>) {
        match shape(schema) {
            Shape::Section(properties) => {
                for (name, schema) in properties {
                    below(&join(key, name), schema, found);
                }
            }
            Shape::Map(_) => {}
            Shape::List(_) | Shape::Value => found.push((key.to_owned(), schema)),
        }
    }
    let mut found = Vec::new();
    below("", schema, &mut found);
    found
}

pub(super) fn join(key: &str, name: &str) -> String {
    if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }
}

/// The variable that overrides `key`.
pub(super) fn variable(key: &str) -> String {
    format!("OSAPI_{}", key.to_uppercase().replace('.', "_"))
}

fn unknown<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let (outer, name) = key.rsplit_once('.').unwrap_or(("", key));
    let below = inert::keys().filter_map(|(known, _)| {
        let rest =
            if outer.is_empty() { known } else { known.strip_prefix(outer)?.strip_prefix('.')? };
        rest.split('.').next()
    });
    match nearest(name, &mut known.chain(below)) {
        Some(near) => format!("nobody knows this key; did you mean {}?", join(outer, near)),
        None => "nobody knows this key; see docs/config.md for those there are".to_owned(),
    }
}

fn nearest<'a>(word: &str, known: &mut impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |known: &str| strsim::damerau_levenshtein(word, known);
    let near = known.map(|known| (distance(known), known)).min()?;
    (near.0 <= (word.len() / 3).max(1)).then_some(near.1)
}

fn merge(tree: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (tree.get_mut(&key), value) {
            (Some(Value::Object(tree)), Value::Object(over)) => merge(tree, over),
            (_, value) => drop(tree.insert(key, value)),
        }
    }
}

fn set(tree: &mut Map<String, Value>, key: &str, value: Value) {
    let over = key.rsplit('.').fold(value, |value, name| json!({ name: value }));
    if let Value::Object(over) = over {
        merge(tree, over);
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
