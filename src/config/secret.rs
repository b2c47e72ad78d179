//! A value of the configuration that is told to nobody.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

/// Cannot be printed, and is nothing where it is written down.
#[derive(Clone, Default, Deserialize, Eq, PartialEq)]
#[serde(from = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// What it is. For whoever needs it, and for no message.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// None where somebody has left it empty.
    pub fn set(given: Option<&Self>) -> Option<&Self> {
        given.filter(|secret| !secret.0.is_empty())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "writeOnly": true, "maxLength": 8192 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_to_nobody() {
        let secret = Secret::from("canary".to_owned());
        assert!(!format!("{secret:?}").contains("canary"));
        assert_eq!(serde_json::to_string(&Some(&secret)).unwrap(), "null");
        assert_eq!(secret.reveal(), "canary");
        assert_eq!(Secret::set(Some(&Secret::default())), None);
    }
}
