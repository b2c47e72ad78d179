//! JSON read so that two readers cannot understand it differently.
//!
//! Refuses what parsers disagree about: members given twice, anything behind the end, nesting
//! without bound. All members that are given twice are told, not only the first.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{Error, Kind, Problem, Result};
use crate::schema::pointer;

/// How many objects and lists may stand inside each other.
pub const DEEPEST: usize = 64;

/// Reads `bytes` as one object. Says which members stand in it twice.
pub fn object(bytes: &[u8]) -> Result<(Map<String, Value>, Vec<Problem>)> {
    let twice = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { at: String::new(), depth: 0, twice: &twice }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    let refuse = |message: String| {
        let problems = vec![Problem { pointer: String::new(), message: message.clone() }];
        Error::new(Kind::InvalidInput, message).with_problems(problems)
    };
    match value {
        Ok(Value::Object(members)) => Ok((members, twice.into_inner())),
        Ok(_) => Err(refuse("the body is not a JSON object".to_owned())),
        Err(error) => Err(refuse(format!("cannot read the body as JSON: {error}"))),
    }
}

struct Strict<'a> {
    at: String,
    depth: usize,
    twice: &'a RefCell<Vec<Problem>>,
}

impl Strict<'_> {
    fn below<E: serde::de::Error>(&self, name: &str) -> Result<Strict<'_>, E> {
        if self.depth == DEEPEST {
            return Err(E::custom(format_args!("nested more than {DEEPEST} deep")));
        }
        let at = format!("{}{}", self.at, pointer(name));
        Ok(Strict { at, depth: self.depth + 1, twice: self.twice })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self.below(&values.len().to_string())?)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            let below = self.below::<A::Error>(&name)?;
            let at = below.at.clone();
            let value = object.next_value_seed(below)?;
            if members.insert(name, value).is_some() {
                let mut twice = self.twice.borrow_mut();
                // A body is a megabyte at most, and an answer shall be shorter.
                if twice.len() < 64 {
                    let message = "given more than once".to_owned();
                    twice.push(Problem { pointer: at, message });
                }
            }
        }
        if self.depth > DEEPEST {
            return Err(A::Error::custom("nested too deep"));
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_any_parser_reads() {
        let text = r#"{"a": [1, -2, 3.5, null, true, "x\n"], "b": {"c": {}}}"#;
        let (members, twice) = object(text.as_bytes()).unwrap();
        assert_eq!(Value::Object(members), serde_json::from_str::<Value>(text).unwrap());
        assert!(twice.is_empty());
    }

    #[test]
    fn members_given_twice_are_told_all_at_once() {
        let (members, twice) =
            object(br#"{"a": 1, "a": 2, "b": {"c/d": 1, "c/d": 1}, "l": [{"x":0,"x":0}]}"#)
                .unwrap();
        assert_eq!(members["a"], json!(2));
        let places: Vec<_> = twice.iter().map(|problem| problem.pointer.as_str()).collect();
        assert_eq!(places, ["/a", "/b/c~1d", "/l/0/x"]);
    }

    #[test]
    fn what_is_not_one_bounded_object_is_refused() {
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(100), "]".repeat(100));
        let long = "[".repeat(1_000_000);
        for text in [
            "",
            "[]",
            "1",
            "null",
            "{} {}",
            "{}x",
            "{\"a\": 1e999}",
            "{",
            "\u{feff}{}",
            "{'a': 1}",
            "{\"a\":01}",
            "{\"a\":NaN}",
            deep.as_str(),
            long.as_str(),
        ] {
            assert_eq!(
                object(text.as_bytes()).unwrap_err().kind(),
                Kind::InvalidInput,
                "{text:.20}"
            );
        }
        assert!(object(b"{\"a\": \"\xff\"}").is_err());
    }

    #[test]
    fn nesting_is_accepted_up_to_its_bound() {
        let nested =
            |depth: usize| format!("{{\"a\": {}1{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(object(nested(DEEPEST - 2).as_bytes()).is_ok());
        assert!(object(nested(DEEPEST).as_bytes()).is_err());
    }
}
