//! What the parameters of a row say of themselves, read off its schema once.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::ops::{self, Row};
use crate::schema;

/// In place of what is not shown.
const HIDDEN: &str = "[hidden]";

#[derive(Default)]
pub(super) struct Traits {
    /// Fields that name an object of the store: `"x-object": true`.
    pub(super) objects: Vec<String>,
    /// JSON pointers of what is `writeOnly`; `*` stands for every element of a list.
    secrets: Vec<Vec<String>>,
}

static TRAITS: LazyLock<HashMap<&'static str, Traits>> =
    LazyLock::new(|| ops::all().map(|row| (row.id, read(&schema::params(row)))).collect());
static NONE: Traits = Traits { objects: Vec::new(), secrets: Vec::new() };

/// Reads all schemas now, so that no request has to.
pub(super) fn prepare() {
    LazyLock::force(&TRAITS);
}

pub(super) fn traits(row: &Row) -> &'static Traits {
    TRAITS.get(row.id).unwrap_or(&NONE)
}

/// The parameters of `op` without what nobody is to see. Those of an operation that this version
/// does not know are left out altogether.
pub(super) fn shown(op: &str, params: &Value) -> Value {
    let Some(traits) = TRAITS.get(op) else { return Value::Null };
    let mut params = params.clone();
    for path in &traits.secrets {
        hide(&mut params, path);
    }
    params
}

fn hide(value: &mut Value, path: &[String]) {
    let Some((first, rest)) = path.split_first() else {
        *value = Value::from(HIDDEN);
        return;
    };
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| hide(item, rest)),
        Value::Object(fields) => {
            if let Some(field) = fields.get_mut(first) {
                hide(field, rest);
            }
        }
        _ => {}
    }
}

fn read(schema: &Value) -> Traits {
    let mut traits = Traits::default();
    let properties = schema["properties"].as_object().into_iter().flatten();
    for (name, property) in properties {
        if property["x-object"] == true {
            traits.objects.push(name.clone());
        }
    }
    secrets(schema, &mut Vec::new(), &mut traits.secrets);
    traits
}

fn secrets(schema: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    if schema["writeOnly"] == true {
        found.push(path.clone());
        return;
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        path.push(name.clone());
        secrets(property, path, found);
        path.pop();
    }
    if schema["items"].is_object() {
        path.push("*".to_owned());
        secrets(&schema["items"], path, found);
        path.pop();
    }
    for choice in ["anyOf", "oneOf", "allOf"] {
        for schema in schema[choice].as_array().into_iter().flatten() {
            secrets(schema, path, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_hidden_wherever_they_are() {
        let schema = json!({ "properties": {
            "object": { "type": "string", "x-object": true },
            "password": { "type": "string", "writeOnly": true },
            "users": { "items": { "properties": { "key": { "writeOnly": true } } } },
        }});
        let traits = read(&schema);
        assert_eq!(traits.objects, ["object"]);
        let mut params =
            json!({ "object": "a", "password": "p", "users": [{ "key": "k", "n": 1 }] });
        for path in &traits.secrets {
            hide(&mut params, path);
        }
        let expected =
            json!({ "object": "a", "password": HIDDEN, "users": [{ "key": HIDDEN, "n": 1 }] });
        assert_eq!(params, expected);
    }
}
