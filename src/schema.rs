//! Reads an operation's parameters as a flat list of named fields.
//!
//! Query strings and command lines both carry text where JSON wants types. Both turn text into
//! JSON here, from the same schema, so they cannot disagree about what `--limit 10` means.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::job::Options;
use crate::op::Access;
use crate::ops::Row;

#[derive(Debug)]
pub struct Field {
    pub name: String,
    pub about: String,
    pub required: bool,
    pub kind: Type,
    /// The allowed values, when there are only a few.
    pub choices: Vec<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Type {
    Boolean,
    Integer,
    /// One flag per element on the CLI, one `name=value` pair per element in a query.
    List,
    Text,
    /// A nested object, given as JSON.
    Object,
}

impl Field {
    /// Turns text given for this field into the JSON that the operation parses.
    pub fn value<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Value> {
        let mut texts = texts.into_iter();
        if self.kind == Type::List {
            return Ok(texts.map(Value::from).collect());
        }
        let text = texts.next().unwrap_or_default();
        let value = match self.kind {
            Type::Text => Some(Value::from(text)),
            Type::Integer => text.parse::<i64>().ok().map(Value::from),
            Type::Boolean => text.parse::<bool>().ok().map(Value::from),
            Type::Object => serde_json::from_str(text).ok(),
            Type::List => None,
        };
        value.ok_or_else(|| {
            Error::new(Kind::InvalidInput, format!("{}: cannot read {text:?}", self.name))
        })
    }
}

/// The fields of `op`'s parameters, in the order they are declared.
pub fn fields(op: &Row) -> Vec<Field> {
    fields_of(&params(op))
}

/// What can be said about how to carry out any change on a host, whatever it is about.
pub fn options(op: &Row) -> Vec<Field> {
    match op.access() {
        Some(Access::Write) => fields_of(&inlined().into_root_schema_for::<Options>().into()),
        _ => Vec::new(),
    }
}

fn fields_of(schema: &Value) -> Vec<Field> {
    let required = schema["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|r| r.iter().any(|v| v == name));
    let no_fields = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&no_fields);
    properties
        .iter()
        .map(|(name, property)| Field {
            name: name.clone(),
            about: property["description"].as_str().unwrap_or_default().to_owned(),
            required: is_required(name),
            kind: kind(property),
            choices: choices(property),
        })
        .collect()
}

/// The schema of `op`'s parameters with nothing left to look up elsewhere.
pub fn params(op: &Row) -> Value {
    op.shape().params(&mut inlined()).into()
}

fn inlined() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
}

/// A generator whose references resolve inside an OpenAPI 3.1 document.
pub fn openapi_generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator()
}

fn kind(property: &Value) -> Type {
    // An optional field's type is a pair such as ["string", "null"].
    let name = match &property["type"] {
        Value::Array(types) => types.iter().find_map(|t| t.as_str().filter(|t| *t != "null")),
        single => single.as_str(),
    };
    match name {
        Some("array") => Type::List,
        Some("boolean") => Type::Boolean,
        Some("integer") => Type::Integer,
        Some("object") => Type::Object,
        _ => Type::Text,
    }
}

fn choices(property: &Value) -> Vec<String> {
    let listed = property["enum"].as_array().into_iter().flatten();
    let documented = property["oneOf"].as_array().into_iter().flatten().map(|v| &v["const"]);
    listed.chain(documented).filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
