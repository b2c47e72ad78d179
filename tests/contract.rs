//! The table against the published contract, and the derived documents against the table.
//!
//! `contract/endpoints.json` is the published file as it is. A row that must refuse more than the
//! contract has a line in `contract/exceptions.txt` with the number of the defect that asks for
//! it, an operation beyond the contract one in `contract/additions.txt` with its reason; a line
//! that is no longer needed is an error. `UPDATE=1` rewrites the derived documents.

#![expect(clippy::disallowed_methods, reason = "documents and sources are not host state")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use osapi::api::openapi;
use osapi::api::request::{Place, place, takes_file};
use osapi::op::{Access, Rows};
use osapi::ops::{self, Row, Run};
use osapi::schema::{self, Field, Type};
use serde_json::{Map, Value, json};

use crate::say::say;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn published() -> Vec<Value> {
    let contract: Value = serde_json::from_str(include_str!("contract/endpoints.json")).unwrap();
    contract["operations"].as_array().unwrap().clone()
}

/// The published operation that `row` is.
fn published_as<'a>(row: &Row, operations: &'a [Value]) -> Option<&'a Value> {
    let route = row.route();
    operations
        .iter()
        .find(|operation| operation["path"] == route && operation["method"] == row.method.as_str())
}

/// The lines of a list in `contract/`: what it is about, and why.
fn listed(text: &'static str) -> BTreeMap<&'static str, &'static str> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(": ").expect("what: why")).collect()
}

/// Collects what differs, and which exceptions were needed.
struct Comparison {
    exceptions: BTreeMap<&'static str, &'static str>,
    used: BTreeSet<&'static str>,
    wrong: String,
}

impl Comparison {
    fn new() -> Self {
        let exceptions = listed(include_str!("contract/exceptions.txt"));
        Self { exceptions, used: BTreeSet::new(), wrong: String::new() }
    }

    fn same(&mut self, row: &Row, what: &str, ours: &Value, theirs: &Value) {
        if ours != theirs {
            writeln!(self.wrong, "{}: {what}: {ours}, published {theirs}", row.id).unwrap();
        }
    }

    fn missing(&mut self, row: &Row, what: &str) {
        writeln!(self.wrong, "{}: {what} is missing", row.id).unwrap();
    }

    /// Whether a field may refuse more than the published one.
    fn is_excepted(&mut self, row: &Row, field: &str) -> bool {
        let key = format!("{}, {field}", row.id);
        let found = self.exceptions.get_key_value(key.as_str()).map(|(key, _)| *key);
        self.used.extend(found);
        found.is_some()
    }

    /// What refuses more than is published: the same, unless there is an exception.
    fn strict(&mut self, row: &Row, field: &str, what: &str, ours: &Value, theirs: &Value) {
        if ours != theirs && !self.is_excepted(row, field) {
            let wrong = &mut self.wrong;
            writeln!(wrong, "{}: {field}: {what}: {ours}, published {theirs}", row.id).unwrap();
        }
    }

    fn field(&mut self, row: &Row, theirs: &Value, place_there: Place) {
        let name = theirs["name"].as_str().unwrap();
        let known = schema::known(row);
        let Some(ours) = known.fields.iter().find(|field| field.name == name) else {
            return self.missing(row, name);
        };
        if place(row, ours) != place_there {
            writeln!(self.wrong, "{}: {name} travels elsewhere", row.id).unwrap();
        }
        let required = theirs["required"] == true || place_there == Place::Path;
        self.same(row, &format!("{name} required"), &json!(ours.required), &json!(required));
        self.same(row, &format!("{name} type"), &json!(word(ours.kind)), &theirs["type"]);
        if let Some(element) = theirs["items"]["type"].as_str().filter(|kind| *kind != "object") {
            self.same(row, &format!("{name} items"), &json!(word(ours.element)), &json!(element));
        }
        let schema = ours.plain_schema();
        if !theirs["default"].is_null() {
            self.same(row, &format!("{name} default"), &schema["default"], &theirs["default"]);
        }
        let listed = theirs["enum"].as_array();
        let choices: BTreeSet<_> = ours.choices.iter().map(String::as_str).collect();
        if let Some(listed) = listed {
            let listed: BTreeSet<_> =
                listed.iter().map(|choice| choice.as_str().unwrap()).collect();
            // A row may know more than is published; it may not know less.
            if !listed.is_subset(&choices) && !self.is_excepted(row, name) {
                writeln!(self.wrong, "{}: {name}: {choices:?}, published {listed:?}", row.id)
                    .unwrap();
            }
        } else if !choices.is_empty() {
            self.strict(row, name, "choices", &json!(choices), &Value::Null);
        }
        for (ours, key) in [("minimum", "min"), ("maximum", "max")] {
            let bound = &schema[ours];
            // Whole numbers that begin at nothing say so whether or not that is published.
            let is_implied = ours == "minimum" && *bound == json!(0) && theirs[key].is_null();
            if !is_implied {
                self.strict(row, name, ours, bound, &theirs[key]);
            }
        }
        let bounds = rules(theirs);
        for (ours, key) in [("minLength", "min"), ("maxLength", "max")] {
            let bound = theirs[format!("{key}_len")].clone();
            let bound = if bound.is_null() { json!(bounds.get(key)) } else { bound };
            let is_text = schema["type"] == "string" && choices.is_empty();
            if is_text && schema["format"].is_null() && !theirs["type"].is_null() {
                self.strict(row, name, ours, &schema[ours], &bound);
            }
        }
        self.strict(row, name, "pattern", &schema["pattern"], &theirs["pattern"]);
        let element = &schema["items"]["pattern"];
        self.strict(row, name, "pattern of elements", element, &theirs["items"]["pattern"]);
        self.probe(row, name, theirs);
        if theirs["format"] == "uuid" {
            self.same(row, &format!("{name} format"), &schema["format"], &json!("uuid"));
        }
    }

    /// What a schema does not say of itself: whether values that are published are taken.
    fn probe(&mut self, row: &Row, name: &str, theirs: &Value) {
        let map = json!({ "a": 1 });
        let listed = theirs["enum"].as_array().into_iter().flatten();
        let bounds = [&theirs["min"], &theirs["max"]].into_iter().filter(|bound| !bound.is_null());
        let map = (theirs["map_of"]["type"] == "any").then_some(&map);
        for value in listed.chain(bounds).chain(map) {
            let mut params = example(row);
            params[name] = value.clone();
            if let Err(error) = schema::check(row, &params)
                && !self.is_excepted(row, name)
            {
                writeln!(self.wrong, "{}: {name}: {value} is refused: {error}", row.id).unwrap();
            }
        }
    }

    fn params(&mut self, row: &Row, operation: &Value) {
        let mut known = BTreeSet::new();
        for theirs in operation["params"].as_array().into_iter().flatten() {
            if theirs["ref"] == "target" {
                self.same(row, "a target", &json!(row.has_target()), &json!(true));
                continue;
            }
            let place = if theirs["in"] == "path" { Place::Path } else { Place::Query };
            self.field(row, theirs, place);
            known.insert(theirs["name"].as_str().unwrap().to_owned());
        }
        let content = operation["body"]["content"].as_object();
        for (media_type, body) in content.into_iter().flatten() {
            let is_form = media_type == "multipart/form-data";
            self.same(row, "takes a file", &json!(takes_file(row)), &json!(is_form));
            for (name, theirs) in body["fields"].as_object().into_iter().flatten() {
                known.insert(name.clone());
                if is_form && name == "file" {
                    continue;
                }
                let mut theirs = theirs.clone();
                theirs["name"] = json!(name);
                self.field(row, &theirs, Place::Body);
            }
        }
        // A field that nobody sends yet must not be needed.
        let own = schema::known(row).fields.iter().filter(|field| !known.contains(&field.name));
        for field in own.filter(|field| field.required) {
            writeln!(self.wrong, "{}: {} is not published, yet required", row.id, field.name)
                .unwrap();
        }
    }

    fn success(&mut self, row: &Row, operation: &Value) {
        let Some(success) = operation["success"].as_object().filter(|s| !s.is_empty()) else {
            // Declared without an answer.
            return self.same(row, "status", &json!(row.status), &json!(200));
        };
        let (status, content) = success.iter().next().unwrap();
        self.same(row, "status", &json!(row.status.to_string()), &json!(status));
        let theirs = &content["application/json"];
        if theirs.is_null() {
            return;
        }
        let ours = openapi::success(row);
        self.answer(row, "", &ours, theirs);
    }

    /// Every published field is there, with its type, down to the last object.
    fn answer(&mut self, row: &Row, at: &str, ours: &Value, theirs: &Value) {
        let kind = theirs["type"].as_str().unwrap_or("any");
        let variants = variants(ours);
        let fits = |variant: &&Value| {
            kind == "any" || types(variant).is_empty() || types(variant).contains(kind)
        };
        let Some(ours) = variants.iter().copied().find(fits) else {
            let ours: Vec<_> = variants.iter().map(|variant| types(variant)).collect();
            writeln!(self.wrong, "{}: answer {at}: {ours:?}, published {kind}", row.id).unwrap();
            return;
        };
        for (name, theirs) in theirs["fields"].as_object().into_iter().flatten() {
            let at = format!("{at}/{name}");
            // Without a broker there is nothing to say of its streams and buckets.
            let is_brokers = row.id == "health.status"
                && ["/nats", "/streams", "/kv_buckets", "/object_stores", "/consumers"]
                    .contains(&at.as_str());
            match ours["properties"].get(name) {
                Some(ours) => self.answer(row, &at, ours, theirs),
                None if is_brokers && theirs["required"] != true => {}
                None => self.missing(row, &format!("answer {at}")),
            }
        }
        if !theirs["items"].is_null() {
            self.answer(row, &format!("{at}/*"), &ours["items"], &theirs["items"]);
        }
        if !theirs["map_of"].is_null() {
            let ours = ours.get("additionalProperties").unwrap_or(&Value::Null);
            if *ours == json!(false) {
                self.missing(row, &format!("answer {at}/*"));
            } else if ours.is_object() {
                self.answer(row, &format!("{at}/*"), ours, &theirs["map_of"]);
            }
        }
    }

    fn flags(&mut self, row: &Row) {
        let commands: Value = serde_json::from_str(include_str!("contract/cli.json")).unwrap();
        let api = format!("{} {}", row.method.as_str(), row.route());
        let mut commands = commands["client"].as_array().unwrap().clone();
        commands.retain(|command| command["api"] == api);
        if commands.is_empty() {
            return;
        }
        let Some(command) = commands.iter().find(|command| command["command"] == row.command)
        else {
            let theirs: Vec<_> = commands.iter().map(|command| &command["command"]).collect();
            return self.same(row, "command", &json!(row.command), &json!(theirs));
        };
        for flag in command["flags"].as_array().into_iter().flatten() {
            let name = flag["name"].as_str().unwrap();
            // Some flags are about the command line itself.
            if flag.get("field").is_some_and(Value::is_null) || (takes_file(row) && name == "file")
            {
                continue;
            }
            let snake = name.replace('-', "_");
            if row.opposites.iter().any(|(f, opposite)| flag["field"] == *f && *opposite == name) {
                continue;
            }
            let field = flag["field"].as_str().unwrap_or(&snake);
            let known = schema::known(row).fields.iter().find(|known| known.name == field);
            let Some(known) = known else {
                self.missing(row, &format!("--{name}"));
                continue;
            };
            self.same(row, &format!("--{name}"), &json!(flag_of(row, known)), &json!(name));
        }
    }
}

/// Parameters that `row` takes: what its schema gives as examples.
fn example(row: &Row) -> Value {
    let fields = schema::known(row).fields.iter().filter(|field| field.required);
    let value = |field: &Field| {
        let schema = field.plain_schema();
        match (&schema["examples"][0], field.choices.first(), field.kind) {
            (example, ..) if !example.is_null() => example.clone(),
            (_, Some(choice), _) => json!(choice),
            (_, None, Type::Integer) => {
                schema["maximum"].as_u64().map_or_else(|| json!(2), Value::from)
            }
            (_, None, Type::Boolean) => json!(true),
            (_, None, Type::List) => json!([]),
            (_, None, Type::Object) => json!({}),
            _ if schema["format"] == "uuid" => json!("0190d7a8-7d4b-7c8e-9a41-5d6f3c2b1a00"),
            _ => json!("a"),
        }
    };
    fields.map(|field| (field.name.clone(), value(field))).collect::<Map<_, _>>().into()
}

fn flag_of(row: &Row, field: &Field) -> String {
    let renamed = row.flags.iter().find(|(name, _)| *name == field.name);
    renamed.map_or_else(|| field.name.replace('_', "-"), |(_, flag)| (*flag).to_owned())
}

fn word(kind: Type) -> &'static str {
    match kind {
        Type::Boolean => "boolean",
        Type::Integer => "integer",
        Type::List => "array",
        Type::Number => "number",
        Type::Object => "object",
        Type::Text => "string",
    }
}

/// The bounds in the rules of the published validator.
fn rules(theirs: &Value) -> BTreeMap<&str, u64> {
    let rules = theirs["rules"].as_str().unwrap_or_default().split(',');
    let own = rules.take_while(|rule| *rule != "dive");
    own.filter_map(|rule| rule.split_once('='))
        .filter_map(|(k, v)| Some((k, v.parse().ok()?)))
        .collect()
}

/// The schemas of which a value matches one.
fn variants(schema: &Value) -> Vec<&Value> {
    let any = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array());
    match any {
        Some(any) => any.iter().flat_map(variants).collect(),
        None => vec![schema],
    }
}

/// What a schema says values are. An integer is a number as well.
fn types(schema: &Value) -> BTreeSet<&str> {
    let mut types: BTreeSet<&str> = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        Value::String(single) => [single.as_str()].into(),
        _ if schema["const"].is_string() => ["string"].into(),
        _ => {
            let listed = schema["enum"].as_array().into_iter().flatten();
            listed.filter(|value| value.is_string()).map(|_| "string").collect()
        }
    };
    if types.contains("integer") {
        types.insert("number");
    }
    types
}

#[test]
fn every_row_is_as_published() {
    let operations = published();
    assert_eq!(operations.len(), 118);
    let mut comparison = Comparison::new();
    let additions = listed(include_str!("contract/additions.txt"));
    let mut used = BTreeSet::new();
    let mut rows = 0;
    for row in ops::all() {
        let Some(operation) = published_as(row, &operations) else {
            if let Some((id, _)) = additions.get_key_value(row.id) {
                used.insert(*id);
            } else {
                writeln!(comparison.wrong, "{}: not published, and no addition", row.id).unwrap();
            }
            continue;
        };
        rows += 1;
        comparison.same(row, "permission", &json!(row.permission), &operation["permission"]);
        if let Some(op) = operation["job"]["op"].as_str() {
            comparison.same(row, "id", &json!(row.id), &json!(op));
        }
        let is_on_hosts = matches!(row.run, Run::Agent(_));
        let has_job = operation.get("job").is_some();
        comparison.same(row, "runs on hosts", &json!(is_on_hosts), &json!(has_job));
        comparison.params(row, operation);
        comparison.success(row, operation);
        comparison.flags(row);
    }
    for (key, reason) in &comparison.exceptions {
        // Some depend on the host; whether those are needed only the host can tell.
        let is_needed = reason.contains(" on the host") || comparison.used.contains(key);
        if !is_needed || !names_a_field(key) {
            writeln!(comparison.wrong, "exceptions.txt: {key} is not needed").unwrap();
        }
    }
    for id in additions.keys().filter(|id| !used.contains(*id)) {
        writeln!(comparison.wrong, "additions.txt: {id} is not needed").unwrap();
    }
    say(format!("{rows} of the {} published operations have a row", operations.len()));
    assert!(comparison.wrong.is_empty(), "\n{}", comparison.wrong);
}

/// Whether `key` is `row, field`.
fn names_a_field(key: &str) -> bool {
    let Some((id, field)) = key.split_once(", ") else { return false };
    let known = ops::find(id).map(schema::known);
    known.is_some_and(|known| known.fields.iter().any(|known| known.name == field))
}

#[test]
fn the_openapi_document_is_the_tables() {
    let document = serde_json::to_string_pretty(&openapi::document()).unwrap() + "\n";
    let path = root().join("docs/openapi.json");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &document).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == document, "docs/openapi.json is out of date; UPDATE=1 rewrites it");
}

#[test]
fn the_openapi_document_refers_to_nothing_that_it_lacks() {
    fn refs<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| refs(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| refs(value, found)),
            _ => {}
        }
    }
    let document = openapi::document();
    let mut found = BTreeSet::new();
    refs(&document, &mut found);
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("inside the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn every_schema_of_the_document_compiles() {
    let document = openapi::document();
    for row in ops::all() {
        let mut schema = openapi::success(row);
        schema["components"] = document["components"].clone();
        jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{}: {error}", row.id));
        assert!(schema::check(row, &json!({ "no-such-field": 1 })).is_err(), "{}", row.id);
    }
}

#[test]
fn rows_say_all_that_is_read_off_them() {
    let mut wrong = String::new();
    let mut say = |row: &Row, what: String| writeln!(wrong, "{}: {what}", row.id).unwrap();
    let (mut ids, mut routes) = (BTreeSet::new(), BTreeSet::new());
    for row in ops::all() {
        if row.id.is_empty() || !ids.insert(row.id) {
            say(row, "an id must be unique".to_owned());
        }
        if !routes.insert((row.method.as_str(), row.path)) {
            say(row, format!("{} is taken", row.path));
        }
        if row.about.is_empty() || row.about.ends_with('.') {
            say(row, "about: one line without a full stop".to_owned());
        }
        let is_open = row.id.starts_with("health.") || row.id == "version.get";
        if row.permission.is_none() && !is_open {
            say(row, "needs a permission".to_owned());
        }
        let schema = schema::params(row);
        if schema["additionalProperties"] != json!(false) {
            say(row, "parameters that are not known must be refused".to_owned());
        }
        let known = schema::known(row);
        for field in &known.fields {
            if field.about.is_empty() {
                say(row, format!("{} has no doc comment", field.name));
            }
        }
        for name in placeholders(row) {
            let is_target = matches!(row.run, Run::Agent(_)) && matches!(name, "hostname" | "id");
            if !is_target && known.fields.iter().all(|field| field.name != name) {
                say(row, format!("{{{name}}} is not a field"));
            }
        }
        for (field, _) in row.flags {
            if known.fields.iter().all(|known| known.name != *field) {
                say(row, format!("flags: {field} is not a field"));
            }
        }
        if let Rows::Each(list) = row.rows
            && schema::output(row)["properties"][list]["type"] != "array"
        {
            say(row, format!("rows: {list} is not a list of the output"));
        }
        let is_once = row.access() == Some(Access::Execute);
        if is_once && known.options.iter().any(|option| option.name != "force") {
            say(row, "what is done once cannot be previewed".to_owned());
        }
        if row.guarded && !row.changes() {
            say(row, "guarded: it only looks, so there is nothing to force".to_owned());
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

fn placeholders(row: &Row) -> impl Iterator<Item = &'static str> {
    row.path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

/// What each layer may name of the crate; `api` is in nobody's list but the programs'.
const ARROWS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("permission", &[]),
    ("clock", &["job"]),
    ("sys", &[]),
    ("types", &["error", "job"]),
    ("broker", &["error"]),
    ("own_file", &[]),
    ("job", &["error", "op"]),
    ("op", &["error", "host", "permission"]),
    ("host", &["clock", "error", "job", "op", "sys", "types"]),
    ("provider", &["error", "host", "op", "permission", "types", "job"]),
    ("link", &["error", "job", "op", "signing", "sys"]),
    ("relay", &["broker", "clock", "error", "job", "link", "telemetry"]),
    ("store", &["broker", "clock", "error", "job", "link", "permission", "sys"]),
    (
        "agent",
        &[
            "clock",
            "error",
            "host",
            "job",
            "link",
            "op",
            "ops",
            "own_file",
            "permission",
            "seal",
            "signing",
            "sys",
            "types",
        ],
    ),
    ("seal", &["error", "op", "own_file"]),
    ("signing", &["error", "own_file"]),
    ("schema", &["error", "job", "op", "ops", "seal", "types"]),
];

#[test]
fn dependencies_point_one_way() {
    let mut wrong = String::new();
    for path in sources() {
        let name = path.strip_prefix(root().join("src")).unwrap();
        let module = name.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = module.trim_end_matches(".rs");
        let text = std::fs::read_to_string(&path).unwrap();
        // What only tests use is nobody's dependency.
        if name.ends_with("tests.rs") {
            continue;
        }
        let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
        let code: Vec<_> =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let code = code.join("\n");
        let names: BTreeSet<&str> = code
            .split("crate::")
            .skip(1)
            .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap())
            .filter(|name| !name.is_empty() && *name != module)
            .collect();
        let allowed = ARROWS.iter().find(|(layer, _)| *layer == module).map(|(_, to)| *to);
        for used in &names {
            let is_program = matches!(module, "main" | "start");
            let is_allowed = match allowed {
                Some(allowed) => allowed.contains(used),
                None => *used != "api" || is_program,
            };
            if !is_allowed {
                writeln!(wrong, "{}: uses {used}", name.display()).unwrap();
            }
        }
        if module == "provider" && text.contains("tokio::") {
            writeln!(wrong, "{}: uses tokio", name.display()).unwrap();
        }
        let has_unsafe = text.lines().any(|line| {
            let code = line.split("//").next().unwrap();
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        if has_unsafe && module != "sys" {
            writeln!(wrong, "{}: has unsafe code", name.display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root().join("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn kinds_have_statuses_that_every_row_documents() {
    let document = openapi::document();
    let rows: Map<String, Value> = ops::all()
        .map(|row| {
            let method = row.method.as_str().to_lowercase();
            let operation = &document["paths"][row.route()][method];
            (row.id.to_owned(), operation["responses"].clone())
        })
        .collect();
    for row in ops::all() {
        for status in openapi::errors(row).into_iter().chain([row.status]) {
            assert!(rows[row.id].get(status.to_string()).is_some(), "{} {status}", row.id);
        }
    }
}
