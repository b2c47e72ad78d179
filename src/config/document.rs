//! The manual and the commented sample, read off the schema.

use std::fmt::Write;

use serde_json::Value;

use super::read::{join, schema, variable};
use super::{Config, inert};

/// `docs/config.md`.
pub fn manual() -> String {
    let mut text = String::from(
        "# Configuration\n\n\
         <!-- Derived from src/config.rs; `make docs` rewrites it. -->\n\n\
         OSAPI needs no configuration. What it is told comes, later ones over earlier ones, from \
         `/etc/osapi/osapi.yaml` (another with `-f` or `OSAPI_OSAPIFILE`), from `*.yaml` in the \
         directory of the same name with `.d` behind it, in order of their names, and from the \
         environment: every key below that holds a value or a list has a variable, lists with \
         commas between their entries. An unknown key is an error. `osapi config validate` says \
         what is wrong, and which keys do nothing.\n\n\
         On SIGHUP the controller takes over groups, roles, the signing key, origins of pages and \
         the log level, for open connections too, and certificate and key for new ones; the agent \
         takes over its log level. The rest needs a restart.\n\n\
         Times are written as `30s`, `5m`, `1h30m`; sizes as a number of bytes or as `64MiB`.\n",
    );
    let (schema, defaults) = (schema(), defaults());
    section(&mut text, "", &schema, &defaults);
    text.push_str(
        "\n## Keys without effect\n\nAccepted, so that existing files work, and listed \
                   when a process starts. A section stands for everything below it.\n\n\
                   | Key | Why |\n|---|---|\n",
    );
    for (key, why) in inert::keys() {
        let _ = writeln!(text, "| `{key}` | {why} |");
    }
    text
}

fn section(text: &mut String, key: &str, schema: &Value, defaults: &Value) {
    let Some(Value::Object(properties)) = schema.get("properties") else { return };
    let (sections, values): (Vec<_>, Vec<_>) =
        properties.iter().partition(|(_, schema)| schema.get("properties").is_some());
    if !values.is_empty() {
        let title = if key.is_empty() { "Top level" } else { key };
        let _ = writeln!(text, "\n## {title}\n");
        if let Some(about) = description(schema).filter(|_| !key.is_empty()) {
            let _ = writeln!(text, "{about}\n");
        }
        text.push_str("| Key | Type | Default | Variable |\n|---|---|---|---|\n");
        let mut notes = String::new();
        for (name, schema) in values {
            let key = join(key, name);
            let is_map = schema.get("additionalProperties").is_some();
            let variable = if is_map { "—".to_owned() } else { format!("`{}`", variable(&key)) };
            let default = defaults.get(name).map_or_else(|| "—".to_owned(), default);
            let _ = writeln!(text, "| `{key}` | {} | {default} | {variable} |", kind(schema));
            if let Some(about) = description(schema) {
                let _ = writeln!(notes, "- `{key}`: {about}");
            }
            if let Some(inner) =
                schema.pointer("/additionalProperties/properties").and_then(Value::as_object)
            {
                for (field, schema) in inner {
                    let about = description(schema).unwrap_or_default();
                    let _ = writeln!(notes, "- `{key}.NAME.{field}` ({}): {about}", kind(schema));
                }
            }
        }
        let _ = write!(text, "\n{notes}");
    }
    for (name, schema) in sections {
        let none = Value::Null;
        section(text, &join(key, name), schema, defaults.get(name).unwrap_or(&none));
    }
}

/// `packaging/osapi.yaml`: every key, commented out, with its default.
pub fn sample() -> String {
    let mut text = String::from(
        "# Configuration of OSAPI. Every line below shows a default; nothing needs to be set.\n\
         # `osapi config validate` says what is wrong with this file. Derived from src/config.rs.\n",
    );
    example(&mut text, 0, &schema(), &defaults());
    text
}

fn example(text: &mut String, depth: usize, schema: &Value, defaults: &Value) {
    let Some(Value::Object(properties)) = schema.get("properties") else { return };
    let indent = "  ".repeat(depth);
    for (name, schema) in properties {
        let default = defaults.get(name).unwrap_or(&Value::Null);
        if depth == 0 {
            text.push('\n');
        }
        for line in wrap(&description(schema).unwrap_or_default(), 90 - indent.len()) {
            let _ = writeln!(text, "# {indent}# {line}");
        }
        if schema.get("properties").is_some() {
            let _ = writeln!(text, "# {indent}{name}:");
            example(text, depth + 1, schema, default);
        } else {
            let value = match default {
                Value::Null => String::new(),
                Value::String(word) if word.is_empty() => " \"\"".to_owned(),
                Value::String(word) => format!(" {word}"),
                other => format!(" {other}"),
            };
            let _ = writeln!(text, "# {indent}{name}:{value}");
        }
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        if lines.last().is_some_and(|line| !line.is_empty() && line.len() + word.len() >= width) {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

fn defaults() -> Value {
    serde_json::to_value(Config::default()).unwrap_or_default()
}

fn description(schema: &Value) -> Option<String> {
    let text = schema.get("description")?.as_str()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn default(value: &Value) -> String {
    match value {
        Value::Null => "—".to_owned(),
        Value::String(text) if text.is_empty() => "—".to_owned(),
        Value::Array(list) if list.is_empty() => "—".to_owned(),
        Value::Object(map) if map.is_empty() => "—".to_owned(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

fn kind(schema: &Value) -> &'static str {
    let format = schema.get("format").and_then(Value::as_str);
    let kind = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str),
        Some(kind) => kind.as_str(),
        None => None,
    };
    match (kind, format) {
        (_, Some("duration")) => "time",
        (_, Some("size")) => "size",
        (Some("boolean"), _) => "true or false",
        (Some("integer"), _) => "whole number",
        (Some("number"), _) => "number",
        (Some("array"), _) => "list",
        (Some("object"), _) => "map",
        _ => "text",
    }
}
