//! The OpenAPI document, read off the table of operations.
//!
//! It is exact: an answer that it does not describe is a bug of one or the other.

use serde_json::{Map, Value, json};

use super::answer::Summary;
use super::problem::{self, Document};
use super::request::{self, Place, place};
use crate::op::{Access, Rows};
use crate::ops::{self, Chapter, Row, Run};
use crate::schema::{self, Field, openapi_generator};

const ABOUT: &str = "Reads and changes Linux hosts. On the Unix socket the kernel says who is \
    calling: root is an administrator, members of configured groups have the roles of their \
    group, and an Authorization header is not looked at. Over a network whatever has an \
    x-permission needs a bearer token, as `osapi token generate` makes them. Each operation names \
    the permission it needs as x-permission.";

/// What can go wrong with any request.
const ALWAYS: [u16; 8] = [400, 401, 403, 404, 413, 429, 500, 503];

pub fn document() -> Value {
    let mut generator = openapi_generator();
    let problem = json!(generator.subschema_for::<Document>());
    generator.subschema_for::<Summary>();
    let mut paths = Map::new();
    for chapter in ops::chapters() {
        for row in &chapter.rows {
            add(&mut paths, &row.route(), row.method.as_str(), operation(chapter, row, &problem));
        }
    }
    add(&mut paths, super::routes::OPENAPI, "GET", this_document(&problem));
    add(&mut paths, super::METRICS, "GET", metrics(&problem));
    let tags = ops::chapters().iter();
    let tags = tags.map(|chapter| json!({ "name": chapter.name, "description": chapter.about }));
    json!({
        "openapi": "3.1.0",
        "info": { "title": "OSAPI", "version": env!("CARGO_PKG_VERSION"), "description": ABOUT },
        "tags": tags.collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "bearer": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "Over a network; on the Unix socket the kernel says who asks.",
            } },
        },
    })
}

fn add(paths: &mut Map<String, Value>, path: &str, method: &str, operation: Value) {
    let item = paths.entry(path).or_insert_with(|| json!({}));
    item[method.to_lowercase()] = operation;
}

fn operation(chapter: &Chapter, row: &Row, problem: &Value) -> Value {
    let mut operation = json!({
        "operationId": row.id,
        "tags": [chapter.name],
        "summary": row.about,
        "x-permission": row.permission,
        "parameters": parameters(row),
    });
    if let Some(body) = body(row) {
        operation["requestBody"] = body;
    }
    operation["responses"] = responses(row, problem);
    operation
}

fn parameters(row: &Row) -> Vec<Value> {
    let parameter = |field: &Field, place: &str| {
        json!({
            "name": field.name,
            "in": place,
            "required": place == "path" || field.required,
            "description": field.about,
            "schema": field.plain_schema(),
        })
    };
    let known = schema::known(row);
    let mut parameters = Vec::new();
    if row.has_target() {
        parameters.push(json!({
            "name": "hostname",
            "in": "path",
            "required": true,
            "description": "Which hosts: a name, a machine id, a label as key:value, _any, _all, or _only where there is one.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 255 },
        }));
    }
    for field in &known.fields {
        match place(row, field) {
            Place::Path => parameters.push(parameter(field, "path")),
            Place::Query => parameters.push(parameter(field, "query")),
            Place::Body => {}
        }
    }
    parameters.extend(known.options.iter().map(|option| parameter(option, "query")));
    let is_on_hosts = matches!(row.run, Run::Agent(_));
    if row.is_endless() {
        parameters.push(header(
            "Last-Event-ID",
            "The id of the last event that was seen, to go on behind it; counts before `after`.",
            &json!({ "type": "string" }),
        ));
    } else if is_on_hosts {
        parameters.push(header(
            "Prefer",
            "RFC 7240: `respond-async` answers 202 at once, `wait=SECONDS` at most that late. \
             Without it a call that takes too long is answered 504; its job goes on either way.",
            &json!({ "type": "string" }),
        ));
    }
    if row.changes() {
        parameters.push(header(
            "Idempotency-Key",
            "Asking again with the same key and the same request finds what came of the first \
             time instead of doing it again. A dry run ignores it.",
            &json!({ "type": "string", "pattern": "^[!-~]{1,255}$" }),
        ));
    }
    parameters
}

fn header(name: &str, about: &str, schema: &Value) -> Value {
    json!({
        "name": name, "in": "header", "required": false, "description": about, "schema": schema,
    })
}

fn body(row: &Row) -> Option<Value> {
    let fields = schema::known(row).fields.iter();
    let fields: Vec<_> = fields.filter(|field| place(row, field) == Place::Body).collect();
    let mut properties: Map<String, Value> =
        fields.iter().map(|field| (field.name.clone(), field.schema.clone())).collect();
    let mut required: Vec<_> =
        fields.iter().filter(|field| field.required).map(|field| field.name.as_str()).collect();
    let takes_file = request::takes_file(row);
    let media_type = if takes_file { "multipart/form-data" } else { "application/json" };
    if takes_file {
        for (name, field) in &fields.iter().map(|f| (f.name.clone(), f)).collect::<Vec<_>>() {
            properties.insert(name.clone(), field.plain_schema());
        }
        let file = json!({
            "type": "string",
            "contentMediaType": "application/octet-stream",
            "format": "binary",
            "description": "The content; the last field of the form.",
        });
        properties.insert("file".to_owned(), file);
        required.push("file");
    }
    if properties.is_empty() {
        return None;
    }
    let is_required = !required.is_empty();
    let mut schema = json!({
        "type": "object", "properties": properties, "additionalProperties": false,
    });
    if is_required {
        schema["required"] = json!(required);
    }
    Some(json!({ "required": is_required, "content": { media_type: { "schema": schema } } }))
}

fn responses(row: &Row, problem: &Value) -> Value {
    let is_on_hosts = matches!(row.run, Run::Agent(_));
    let mut responses = Map::new();
    let is_either = is_on_hosts && row.status == 202;
    let done = if is_either { "Done, or accepted where asked not to wait" } else { "Done" };
    let mut success = match row.status {
        204 => json!({ "description": done }),
        _ if row.is_endless() => events(row),
        _ => json!({
            "description": done,
            "content": { "application/json": { "schema": success(row) } },
        }),
    };
    if is_on_hosts && !row.is_endless() {
        let later = json!({
            "description": "Accepted; the job goes on. Rows are those of hosts that are done.",
            "headers": location(),
            "content": { "application/json": { "schema": self::success(row) } },
        });
        responses.insert("202".to_owned(), later);
    }
    if is_either {
        success["headers"] = location();
    }
    if row.tells_of_hosts() {
        success["headers"] = age();
    }
    responses.insert(row.status.to_string(), success);
    for status in errors(row) {
        let description = format!("Failed: {}", kinds(status));
        let mut response = json!({
            "description": description,
            "content": { problem::CONTENT_TYPE: { "schema": problem } },
        });
        if status == 504 {
            response["headers"] = location();
        }
        // Health says in its own words what is amiss.
        let is_judged = !is_on_hosts && status == 503 && row.id.starts_with("health.");
        if is_judged {
            response["content"]["application/json"] = json!({ "schema": self::success(row) });
        }
        responses.insert(status.to_string(), response);
    }
    responses.sort_keys();
    responses.into()
}

/// An answer that has no end.
fn events(row: &Row) -> Value {
    let about = "Server-sent events. Each has the data that x-event describes, and as its id the \
                 place from which Last-Event-ID goes on. An event `end`, with the kind and the \
                 message of what ended it, is the last one; a comment comes where there is nothing \
                 to tell for 15 s.";
    json!({
        "description": about,
        "content": { "text/event-stream": { "schema": { "type": "string" } } },
        "x-event": success(row),
    })
}

fn location() -> Value {
    json!({ "Location": { "description": "The job.", "schema": { "type": "string" } } })
}

fn age() -> Value {
    let description = "Where there is no connection to the broker: what is told of hosts is from \
                       memory, and as many seconds old.";
    json!({ "Age": { "description": description, "schema": { "type": "integer" } } })
}

/// The statuses that a call of `row` may fail with.
pub fn errors(row: &Row) -> Vec<u16> {
    let mut errors = ALWAYS.to_vec();
    if matches!(row.run, Run::Agent(_)) {
        errors.extend([409, 504]);
    }
    if row.path.contains("{hostname}") {
        // Several hosts may have that name.
        errors.push(409);
    }
    if row.access() == Some(Access::Write) {
        errors.push(412);
    }
    if row.changes() {
        errors.extend([409, 422, 507]);
    }
    errors.sort_unstable();
    errors.dedup();
    errors
}

fn kinds(status: u16) -> String {
    let kinds = crate::error::Kind::ALL.into_iter().filter(|kind| kind.status() == status);
    let names: Vec<_> =
        kinds.map(|kind| json!(kind).as_str().unwrap_or_default().to_owned()).collect();
    names.join(", ")
}

/// The schema of the body of a call that succeeded.
pub fn success(row: &Row) -> Value {
    let output = schema::output(row);
    match row.run {
        Run::Controller(_) => output,
        Run::Agent(_) if row.is_endless() => output,
        Run::Agent(_) => json!({
            "type": "object",
            "properties": {
                "job_id": { "type": "string", "format": "uuid" },
                "results": { "type": "array", "items": host_row(row, &output) },
                "changed": { "type": "boolean", "description": "Whether any host has changed." },
                "summary": { "$ref": "#/components/schemas/Summary" },
            },
            "required": ["job_id", "results", "changed"],
            "additionalProperties": false,
        }),
    }
}

/// What one row says: the fields of the output, or what went wrong instead.
fn host_row(row: &Row, output: &Value) -> Value {
    let members = |schema: &Value| schema["properties"].as_object().cloned().unwrap_or_default();
    let mut properties = Map::new();
    properties.insert("hostname".to_owned(), json!({ "type": "string" }));
    properties.insert("status".to_owned(), json!({ "enum": ["ok", "skipped", "failed"] }));
    properties.insert(
        "changed".to_owned(),
        json!({ "type": "boolean", "description": "Whether the host has changed, or would." }),
    );
    let about = "Where several of these hosts have one name.";
    properties.insert("machine_id".to_owned(), json!({ "type": "string", "description": about }));
    let about = "What went wrong, where something did.";
    properties.insert("error".to_owned(), json!({ "type": "string", "description": about }));
    properties.insert("kind".to_owned(), json!({ "$ref": "#/components/schemas/Kind" }));
    let list = json!({ "type": "array", "items": { "$ref": "#/components/schemas/Problem" } });
    properties.insert("problems".to_owned(), list);
    let cells = json!({ "type": "array", "items": { "type": "string" } });
    properties.insert("not_restored".to_owned(), cells);
    let mut own = members(output);
    if let Rows::Each(list) = row.rows {
        let entry = own.shift_remove(list).unwrap_or_default();
        own.extend(members(&entry["items"]));
    }
    for (name, mut schema) in own {
        if name == "status" {
            // A row of a host that failed or was skipped has its own.
            schema = json!({ "anyOf": [schema, { "enum": ["skipped", "failed"] }] });
        }
        properties.insert(name, schema);
    }
    json!({
        "type": "object",
        "properties": properties,
        "required": ["hostname", "status", "changed"],
        "additionalProperties": output.get("additionalProperties").cloned().unwrap_or(json!(false)),
    })
}

fn this_document(problem: &Value) -> Value {
    json!({
        "operationId": "openapi.get",
        "summary": "Show this document",
        "x-permission": null,
        "responses": beside(problem, "application/json", &json!({ "type": "object" })),
    })
}

fn metrics(problem: &Value) -> Value {
    json!({
        "operationId": "metrics.get",
        "summary": "Show figures for Prometheus; also for members of the configured group",
        "x-permission": "health:read",
        "responses": beside(problem, "text/plain", &json!({ "type": "string" })),
    })
}

fn beside(problem: &Value, media_type: &str, schema: &Value) -> Value {
    let mut responses = Map::new();
    let success = json!({ "description": "Done", "content": { media_type: { "schema": schema } } });
    responses.insert("200".to_owned(), success);
    for status in ALWAYS {
        let content = json!({ problem::CONTENT_TYPE: { "schema": problem } });
        let response =
            json!({ "description": format!("Failed: {}", kinds(status)), "content": content });
        responses.insert(status.to_string(), response);
    }
    responses.into()
}
