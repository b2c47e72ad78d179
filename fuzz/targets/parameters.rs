//! What a caller may send as parameters: a query and a body, for any row.
//!
//! Whatever comes in is either refused as input, or is something the row's own types take.

#![allow(unreachable_pub, reason = "fuzz targets and tests both call it")]

use osapi::api::json;
use osapi::error::{Error, Kind};
use osapi::{ops, schema};
use serde_json::Value;

/// The first byte picks the row; a line of query string; the body.
pub fn run(data: &[u8]) {
    let Some((pick, rest)) = data.split_first() else { return };
    let rows = ops::all().count();
    let Some(row) = ops::all().nth(usize::from(*pick) % rows) else { return };
    let (query, body) = match rest.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&rest[..end], &rest[end + 1..]),
        None => (rest, &[][..]),
    };
    let (mut params, problems) = match json::object(body) {
        Ok(read) => read,
        Err(error) if body.is_empty() => {
            refused(&error);
            Default::default()
        }
        Err(error) => return refused(&error),
    };
    let pairs: Vec<_> = form_urlencoded::parse(query).collect();
    for field in schema::fields(row) {
        let texts = pairs.iter().filter(|(name, _)| *name == field.name).map(|(_, text)| &**text);
        let texts: Vec<_> = texts.collect();
        if texts.is_empty() {
            continue;
        }
        match field.value(texts) {
            Ok(value) => drop(params.insert(field.name, value)),
            Err(error) => return refused(&error),
        }
    }
    let params = Value::Object(params);
    match schema::check_with(row, &params, problems) {
        Ok(()) => {
            if let Err(error) = row.shape().check(&params) {
                refused(&error);
            }
        }
        Err(error) => refused(&error),
    }
}

fn refused(error: &Error) {
    assert!(
        matches!(error.kind(), Kind::InvalidInput | Kind::TooLarge),
        "{:?}: {error}",
        error.kind()
    );
    assert!(!error.to_string().is_empty());
}
