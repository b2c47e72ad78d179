//! One call of one operation: what the arguments say, as JSON, and as a request.

use std::collections::BTreeMap;

use clap::ArgMatches;
use serde_json::{Map, Value};

use super::command::{chosen, flagged, local, positional, reversed};
use super::secret::{Secret, Source};
use super::text::{encoded, raw};
use super::words;
use crate::controller::{ALL, ONLY};
use crate::error::{Error, Kind, Result};
use crate::ops::Row;
use crate::schema::{self, Field, Type};

/// What to ask for, independent of how the command was written.
#[derive(Clone)]
pub struct Call {
    pub row: &'static Row,
    /// What was written where a host goes; empty where the operation has no target.
    pub target: String,
    /// Whether that was written, and is not what is meant by default.
    pub names_target: bool,
    pub params: Map<String, Value>,
    /// What is asked for before the call is made, and shown by nobody.
    pub secrets: Vec<Secret>,
    /// How to carry a change out: dry run, plan, confirm.
    pub options: Map<String, Value>,
    /// Flags of the command line itself, such as `--output` of an export.
    pub extras: BTreeMap<&'static str, String>,
    pub patience: Patience,
    /// What was given as `--idempotency-key`.
    pub key: Option<String>,
}

/// How long to wait for a job.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Patience {
    #[default]
    Usual,
    /// Not at all.
    None,
    /// At most this many seconds.
    Seconds(u64),
}

/// Which hosts are meant by who does not say: all of them by who only looks, and by who changes
/// something, or follows what has no end, the one there is. Where there are several, the controller
/// refuses that.
fn default_target(row: &Row, is_dry_run: bool) -> &'static str {
    let only_looks = !row.changes() || is_dry_run;
    if only_looks && !row.is_endless() { ALL } else { ONLY }
}

pub(super) fn read(row: &'static Row, matches: &ArgMatches) -> Result<Call> {
    let (mut params, mut secrets) = (Map::new(), Vec::new());
    for field in schema::fields(row) {
        if field.is_secret() {
            let given = texts(matches, &flagged(&field.name)).into_iter().next();
            let source = Source::of(&field.name, given.as_deref(), field.required)?;
            secrets.extend(source.map(|source| Secret::new(field.name, source)));
            continue;
        }
        let place = texts(matches, &positional(&field.name));
        let flags = texts(matches, &flagged(&field.name));
        let was_given = matches
            .try_contains_id(&positional(&field.name))
            .is_ok_and(|_| matches.contains_id(&positional(&field.name)));
        let value = if was_given {
            // Each element is a word of its own, commas included.
            Some(field.value(place.iter().map(String::as_str))?)
        } else {
            parse(&field, &flags)?
        };
        if let Some(value) = value {
            params.insert(field.name, value);
        }
    }
    for (field, _) in row.opposites {
        if let Some(text) = texts(matches, &reversed(field)).into_iter().next() {
            params.insert((*field).to_owned(), Value::from(text != "true"));
        }
    }
    let mut options = Map::new();
    for option in schema::options(row) {
        let given = texts(matches, &chosen(&option.name));
        if let Some(value) = parse(&option, &given)? {
            options.insert(option.name, value);
        }
    }
    let mut extras = BTreeMap::new();
    for extra in words::extras(row.id) {
        let flag = texts(matches, &local(extra.name));
        let place = texts(matches, &positional(extra.name));
        if let Some(text) = flag.into_iter().chain(place).next() {
            extras.insert(extra.name, text);
        }
    }
    let given = |id: &str| texts(matches, id).into_iter().next();
    let is_async = given("async").is_some_and(|text| text == "true");
    let wait = matches.try_get_one::<u64>("wait").ok().flatten().copied();
    let is_dry_run = options.get("dry_run").is_some_and(|value| value == true);
    let named = given("target");
    let names_target = named.is_some();
    let target = named.unwrap_or_else(|| default_target(row, is_dry_run).into());
    Ok(Call {
        row,
        target: if row.has_target() { target } else { String::new() },
        names_target,
        params,
        secrets,
        options,
        extras,
        patience: match (is_async, wait) {
            (true, _) => Patience::None,
            (_, Some(seconds)) => Patience::Seconds(seconds),
            _ => Patience::Usual,
        },
        key: given("idempotency-key"),
    })
}

/// Every text given for an argument, whatever type clap keeps it as.
fn texts(matches: &ArgMatches, id: &str) -> Vec<String> {
    if let Ok(Some(values)) = matches.try_get_many::<String>(id) {
        return values.cloned().collect();
    }
    match matches.try_get_many::<bool>(id) {
        Ok(Some(values)) => values.map(bool::to_string).collect(),
        _ => Vec::new(),
    }
}

fn parse(field: &Field, texts: &[String]) -> Result<Option<Value>> {
    if texts.is_empty() {
        return Ok(None);
    }
    Ok(Some(match field.kind {
        Type::List => {
            let mut items = Vec::new();
            for text in texts {
                items.extend(list(&field.name, text)?);
            }
            field.value(items.iter().map(String::as_str))?
        }
        Type::Object => object(field, texts)?,
        _ => field.value(texts.iter().map(String::as_str))?,
    }))
}

/// `key=value` pairs, or an object as JSON.
fn object(field: &Field, texts: &[String]) -> Result<Value> {
    if let [text] = texts
        && text.starts_with('{')
    {
        return field.value([text.as_str()]);
    }
    let mut pairs = Map::new();
    for text in texts {
        for item in list(&field.name, text)? {
            let (key, value) = item.split_once('=').ok_or_else(|| {
                Error::new(
                    Kind::InvalidInput,
                    format!("cannot read {item:?} of {}: write key=value", field.name),
                )
            })?;
            pairs.insert(key.into(), value.into());
        }
    }
    Ok(Value::Object(pairs))
}

/// Splits at commas; an element that has one is quoted, a quote in it is doubled.
fn list(name: &str, text: &str) -> Result<Vec<String>> {
    let mut items = Vec::new();
    let mut rest = text;
    if rest.is_empty() {
        return Ok(items);
    }
    loop {
        let mut item = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let Some((before, after)) = quoted.split_once('"') else {
                    let what = format!("cannot read {text:?} of {name}: a quote is not closed");
                    return Err(Error::new(Kind::InvalidInput, what));
                };
                item.push_str(before);
                match after.strip_prefix('"') {
                    Some(after) => {
                        item.push('"');
                        quoted = after;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
            if !rest.is_empty() && !rest.starts_with(',') {
                let what = format!("cannot read {text:?} of {name}: a comma belongs after a quote");
                return Err(Error::new(Kind::InvalidInput, what));
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            item.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        items.push(item);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None => return Ok(items),
        }
    }
}

/// The parts of an HTTP request that say what is asked for.
#[derive(Debug, Eq, PartialEq)]
pub struct Question {
    /// Path and query, encoded.
    pub uri: String,
    /// JSON, where the method has a body.
    pub body: Option<Vec<u8>>,
}

impl Call {
    /// Whether a flag of the command line itself was set.
    pub fn asked(&self, extra: &str) -> bool {
        self.extras.get(extra).is_some_and(|text| text == "true")
    }

    pub fn is_dry_run(&self) -> bool {
        self.options.get("dry_run").is_some_and(|value| value == true)
    }

    pub fn question(&self) -> Result<Question> {
        let mut params = self.params.clone();
        for secret in &self.secrets {
            params.insert(secret.field.clone(), secret.text().into());
        }
        let mut path = String::new();
        for segment in self.row.path.split('/').skip(1) {
            path.push('/');
            let Some(name) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))
            else {
                path.push_str(segment);
                continue;
            };
            let value = if name == "hostname" && self.row.has_target() {
                self.target.clone()
            } else {
                raw(&params.remove(name).unwrap_or_default())
            };
            if matches!(value.as_str(), "" | "." | "..") {
                let what = format!("cannot use {value:?} as {name}: give the name of something");
                return Err(Error::new(Kind::InvalidInput, what));
            }
            path.push_str(&encoded(&value));
        }
        let mut query = form_urlencoded::Serializer::new(String::new());
        ask(&mut query, &self.options);
        let body = if self.row.method.has_body() {
            let is_beside = |name: &String| self.row.in_query.contains(&name.as_str());
            let beside = params.keys().filter(|name| is_beside(name)).cloned().collect::<Vec<_>>();
            let beside = beside.into_iter().filter_map(|name| params.remove_entry(&name)).collect();
            ask(&mut query, &beside);
            Some(crate::job::encode(&params)?.to_vec())
        } else {
            ask(&mut query, &params);
            None
        };
        let query = query.finish();
        let mark = if query.is_empty() { "" } else { "?" };
        Ok(Question { uri: format!("/api{path}{mark}{query}"), body })
    }
}

fn ask(query: &mut form_urlencoded::Serializer<'_, String>, values: &Map<String, Value>) {
    for (name, value) in values {
        match value {
            Value::Array(items) => {
                query.extend_pairs(items.iter().map(|item| (name, raw(item))));
            }
            single => {
                query.append_pair(name, &raw(single));
            }
        }
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("row", &self.row.id)
            .field("target", &self.target)
            .field("names_target", &self.names_target)
            .field("params", &self.params)
            .field("secrets", &self.secrets)
            .field("options", &self.options)
            .field("extras", &self.extras)
            .field("patience", &self.patience)
            .field("key", &self.key)
            .finish()
    }
}

impl PartialEq for Call {
    fn eq(&self, other: &Self) -> bool {
        self.row.id == other.row.id
            && self.target == other.target
            && self.params == other.params
            && self.secrets == other.secrets
            && self.options == other.options
            && self.extras == other.extras
            && self.patience == other.patience
            && self.key == other.key
    }
}
