//! What the parameters of a row say of themselves, read off its schema once.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::ops::{self, Row};
use crate::schema;
use crate::seal::{self, Way};

#[derive(Default)]
pub(super) struct Traits {
    /// Fields that name an object of the store: `"x-object": true`.
    pub(super) objects: Vec<String>,
    /// The ways to what is `writeOnly`.
    pub(super) secrets: Vec<Way>,
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
    seal::hide(&mut params, &traits.secrets);
    params
}

fn read(schema: &Value) -> Traits {
    let mut traits = Traits::default();
    let properties = schema["properties"].as_object().into_iter().flatten();
    for (name, property) in properties {
        if property["x-object"] == true {
            traits.objects.push(name.clone());
        }
    }
    traits.secrets = seal::ways_in(schema);
    traits
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_schema_says_of_fields_is_read() {
        let schema = json!({ "properties": {
            "object": { "type": "string", "x-object": true },
            "password": { "type": "string", "writeOnly": true },
        }});
        let traits = read(&schema);
        assert_eq!(traits.objects, ["object"]);
        assert_eq!(traits.secrets, [["password"]]);
    }
}
