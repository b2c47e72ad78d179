//! Holds answers to what the OpenAPI document says of them.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use jsonschema::Validator;
use osapi::api::openapi;
use serde_json::Value;

static DOCUMENT: LazyLock<Value> = LazyLock::new(openapi::document);

/// By path, method, status and media type.
type Key = (String, String, u16, String);
static VALIDATORS: LazyLock<Mutex<HashMap<Key, &'static Validator>>> =
    LazyLock::new(Mutex::default);

/// Panics unless the document has this answer to a request of a path that it knows. What it does
/// not know must be refused with a problem document.
pub(crate) fn documented(method: &str, path: &str, status: u16, content_type: &str, body: &[u8]) {
    let method = method.to_lowercase();
    let path = path.split('?').next().unwrap();
    let path = if path == "/health/ready" { "/api/health/ready" } else { path };
    let operation = template(path)
        .filter(|template| DOCUMENT["paths"][template.as_str()].get(&method).is_some());
    let Some(template) = operation else {
        assert!(matches!(status, 400 | 403 | 404 | 405 | 413), "{method} {path}: {status}");
        let body: Value = serde_json::from_slice(body).unwrap();
        return problem(status, &body);
    };
    let responses = &DOCUMENT["paths"][template.as_str()][method.as_str()]["responses"];
    let response = responses.get(status.to_string()).unwrap_or_else(|| {
        panic!("{method} {path}: {status} is not documented: {}", String::from_utf8_lossy(body))
    });
    let Some(content) = response["content"].as_object() else {
        assert!(body.is_empty(), "{method} {path}: a body where none is documented");
        return;
    };
    let media_type = content_type.split(';').next().unwrap();
    let Some(media) = content.get(media_type) else {
        panic!("{method} {path}: {status} {media_type} is not documented")
    };
    let schema = &media["schema"];
    if matches!(media_type, "text/plain" | "text/event-stream") {
        return;
    }
    let body: Value = serde_json::from_slice(body).unwrap();
    let key = (template, method, status, media_type.to_owned());
    let validator = *VALIDATORS.lock().unwrap().entry(key).or_insert_with(|| compile(schema));
    let wrong: Vec<_> = validator
        .iter_errors(&body)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{path}: {wrong:#?} in {body:#}");
    if status >= 400 && media_type == "application/problem+json" {
        problem(status, &body);
    }
}

/// What every problem document says, whatever it is about.
pub(crate) fn problem(status: u16, body: &Value) {
    assert_eq!(body["status"], status, "{body:#}");
    assert_eq!(body["detail"], body["error"], "{body:#}");
    assert!(body["kind"].is_string() && body["title"].is_string(), "{body:#}");
    assert!(body.get("code").is_none(), "{body:#}");
}

fn compile(schema: &Value) -> &'static Validator {
    let mut schema = schema.clone();
    schema["components"] = DOCUMENT["components"].clone();
    let options = jsonschema::options().should_validate_formats(true);
    let options = options.should_ignore_unknown_formats(true);
    Box::leak(Box::new(options.build(&schema).unwrap()))
}

/// The path of the document that `path` is an instance of; one without placeholders wins.
fn template(path: &str) -> Option<String> {
    let parts: Vec<_> = path.split('/').collect();
    let fits = |template: &str| {
        let names: Vec<_> = template.split('/').collect();
        let fits = |(name, part): (&&str, &&str)| {
            name == part || (name.starts_with('{') && !part.is_empty())
        };
        names.len() == parts.len() && names.iter().zip(&parts).all(fits)
    };
    let paths = DOCUMENT["paths"].as_object().unwrap().keys();
    let found = paths.filter(|template| fits(template));
    found.min_by_key(|template| template.matches('{').count()).cloned()
}
