//! Reads an operation's parameters as a flat list of named fields, and checks values against it.
//!
//! Query strings and command lines both carry text where JSON wants types. Both turn text into
//! JSON here, from the same schema, so they cannot disagree about what `--limit 10` means. What
//! is wrong with parameters is told all at once, each problem with a pointer to its place.

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

use jsonschema::Validator;
use jsonschema::error::{ValidationError, ValidationErrorKind};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Problem, Result};
use crate::job::Options;
use crate::op::Access;
use crate::ops::{self, Row};
use crate::seal::{self, Way};
use crate::types;

/// More problems than this in one request are not listed.
const MOST_PROBLEMS: usize = 64;
/// Longer explanations are cut, in bytes.
const LONGEST_MESSAGE: usize = 300;

#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub about: String,
    pub required: bool,
    pub kind: Type,
    /// What an element of a list is.
    pub element: Type,
    /// The allowed values, when there are only a few.
    pub choices: Vec<String>,
    /// All that is known of it, with nothing left to look up elsewhere.
    pub schema: Value,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Type {
    Boolean,
    Integer,
    /// One flag per element on the CLI, one `name=value` pair per element in a query.
    List,
    Number,
    Text,
    /// A nested object, given as JSON.
    Object,
}

impl Field {
    /// Turns text given for this field into the JSON that the operation parses.
    pub fn value<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Result<Value> {
        let mut texts = texts.into_iter();
        let refused = |message: String| {
            let problem = Problem { pointer: pointer(&self.name), message };
            Error::new(Kind::InvalidInput, format!("{}: {}", self.name, problem.message))
                .with_problems(vec![problem])
        };
        let wrong =
            |text: &str, kind: Type| refused(cut(format!("{text:?} is not {}", kind.article())));
        if self.kind == Type::List {
            return texts
                .map(|text| read(text, self.element).ok_or_else(|| wrong(text, self.element)))
                .collect();
        }
        let text = texts.next().unwrap_or_default();
        if texts.next().is_some() {
            return Err(refused("given more than once".to_owned()));
        }
        read(text, self.kind).ok_or_else(|| wrong(text, self.kind))
    }

    /// Whether nobody is to see what it says.
    pub fn is_secret(&self) -> bool {
        present(&self.schema)["writeOnly"] == true
    }

    /// Whether it may be left out, which a schema of text need not say with `null`.
    pub fn plain_schema(&self) -> Value {
        let mut schema = self.schema.clone();
        if let Some(members) = schema.as_object_mut() {
            // What comes before the question mark or in a path is never null.
            if let Some(Value::Array(types)) = members.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [single] = types.as_slice() {
                    let single = single.clone();
                    members.insert("type".to_owned(), single);
                }
            }
            if let Some(Value::Array(choices)) = members.get_mut("enum") {
                choices.retain(|choice| !choice.is_null());
            }
            if let Some(Value::Array(variants)) = members.get_mut("anyOf") {
                variants.retain(|variant| variant["type"] != "null");
                if let [Value::Object(single)] = variants.as_mut_slice() {
                    let single = std::mem::take(single);
                    members.shift_remove("anyOf");
                    for (name, value) in single {
                        members.entry(name).or_insert(value);
                    }
                }
            }
            // It stands beside the schema where parameters are listed.
            members.shift_remove("description");
        }
        schema
    }
}

impl Type {
    const fn article(self) -> &'static str {
        match self {
            Self::Boolean => "true or false",
            Self::Integer => "an integer",
            Self::List => "a list",
            Self::Number => "a number",
            Self::Object => "a JSON object",
            Self::Text => "text",
        }
    }
}

fn read(text: &str, kind: Type) -> Option<Value> {
    let is_canonical = !text.starts_with('+');
    match kind {
        Type::Text => Some(Value::from(text)),
        Type::Integer if is_canonical => {
            let signed = text.parse::<i64>().map(Value::from);
            signed.or_else(|_| text.parse::<u64>().map(Value::from)).ok()
        }
        Type::Number if is_canonical => {
            let number: serde_json::Number = serde_json::from_str(text).ok()?;
            Some(Value::Number(number))
        }
        Type::Boolean => text.parse::<bool>().ok().map(Value::from),
        Type::Object => serde_json::from_str(text).ok().filter(Value::is_object),
        Type::List | Type::Integer | Type::Number => None,
    }
}

/// What is read off a row once and used for every request.
pub struct Known {
    /// The fields of its parameters, in the order they are declared.
    pub fields: Vec<Field>,
    /// How the change is to be carried out; empty where nothing can be said about that.
    pub options: Vec<Field>,
    schema: Value,
    /// The ways to what is `writeOnly`.
    secrets: Vec<Way>,
    validator: OnceLock<Option<Validator>>,
}

/// What is known of `row`, which stands in the table.
pub fn known(row: &Row) -> &'static Known {
    static KNOWN: LazyLock<HashMap<&'static str, Known>> =
        LazyLock::new(|| ops::all().map(|row| (row.id, Known::of(row))).collect());
    // A row that is not in the table is a test's; it lives as long as the test.
    KNOWN.get(row.id).unwrap_or_else(|| Box::leak(Box::new(Known::of(row))))
}

impl Known {
    fn of(row: &Row) -> Self {
        let schema = params(row);
        let (fields, mut options) = (fields_of(&schema), fields_of(&OPTIONS));
        options.retain(|option| match (row.access(), option.name.as_str()) {
            (Some(Access::Write | Access::Execute), "force") => row.guarded,
            (Some(Access::Write), _) => true,
            _ => false,
        });
        let secrets = seal::ways_in(&schema);
        Self { fields, options, schema, secrets, validator: OnceLock::new() }
    }

    fn problems(&self, params: &Value) -> Result<Vec<Problem>> {
        problems(&self.schema, &self.validator, params)
    }
}

/// How any change can be carried out, as a schema.
pub static OPTIONS: LazyLock<Value> =
    LazyLock::new(|| inlined().into_root_schema_for::<Options>().into());

/// The fields of `op`'s parameters, in the order they are declared.
pub fn fields(op: &Row) -> Vec<Field> {
    known(op).fields.clone()
}

/// What can be said about how to carry out any change on a host, whatever it is about.
pub fn options(op: &Row) -> Vec<Field> {
    known(op).options.clone()
}

/// Checks `params` against the schema of `row` and then as the operation parses them. All that
/// the schema finds wrong is in one error.
pub fn check(row: &Row, params: &Value) -> Result<()> {
    check_with(row, params, Vec::new())
}

/// The same, where reading the parameters has found `earlier` problems already.
pub fn check_with(row: &Row, params: &Value, earlier: Vec<Problem>) -> Result<()> {
    let mut problems = earlier;
    let more = known(row).problems(params)?;
    // What could not be read is not also missing.
    let is_new =
        |problem: &Problem| problems.iter().all(|earlier| earlier.pointer != problem.pointer);
    let more: Vec<_> = more.into_iter().filter(is_new).collect();
    problems.extend(more);
    let is_secret = |pointer: &str| seal::leads_to(&known(row).secrets, pointer);
    if let Err(error) = types::refuse_facts(params, is_secret) {
        problems.extend(error.body().problems);
    }
    refuse(problems)?;
    row.shape().check(params)
}

/// Checks how a change is to be carried out.
pub fn check_options(options: &Value) -> Result<Vec<Problem>> {
    static VALIDATOR: OnceLock<Option<Validator>> = OnceLock::new();
    problems(&OPTIONS, &VALIDATOR, options)
}

/// Fails with `problems` if there are any.
pub fn refuse(mut problems: Vec<Problem>) -> Result<()> {
    let Some(first) = problems.first() else { return Ok(()) };
    let message = match problems.len() {
        1 => format!("{}{}", place(&first.pointer), first.message),
        count => format!("{count} problems, the first: {}{}", place(&first.pointer), first.message),
    };
    problems.truncate(MOST_PROBLEMS);
    Err(Error::new(Kind::InvalidInput, message).with_problems(problems))
}

fn place(pointer: &str) -> String {
    match pointer.strip_prefix('/') {
        Some(name) => format!("{}: ", name.replace("~1", "/").replace("~0", "~")),
        None => String::new(),
    }
}

fn problems(
    schema: &Value,
    validator: &OnceLock<Option<Validator>>,
    value: &Value,
) -> Result<Vec<Problem>> {
    let compiled = validator.get_or_init(|| {
        let options = jsonschema::options().should_validate_formats(true);
        let options = options.should_ignore_unknown_formats(true).offline();
        match options.build(schema) {
            Ok(validator) => Some(validator),
            Err(error) => {
                tracing::error!(%error, "cannot compile a schema of the table");
                None
            }
        }
    });
    let unusable = || Error::new(Kind::Internal, "the schema of this operation is unusable");
    let validator = compiled.as_ref().ok_or_else(unusable)?;
    if validator.is_valid(value) {
        return Ok(Vec::new());
    }
    let errors = validator.iter_errors(value).take(MOST_PROBLEMS);
    Ok(errors.flat_map(|error| explain(schema, &error)).collect())
}

/// Says what is wrong where. Values are left out: they may be secret, and they may be long.
fn explain(schema: &Value, error: &ValidationError<'_>) -> Vec<Problem> {
    let at = error.instance_path().to_string();
    let below = |name: &str, message: String| Problem {
        pointer: format!("{at}{}", pointer(name)),
        message,
    };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            let unknown = |name: &String| below(&cut(name.clone()), "is not known here".to_owned());
            unexpected.iter().map(unknown).collect()
        }
        ValidationErrorKind::Required { property } => {
            vec![below(property.as_str().unwrap_or_default(), "is required".to_owned())]
        }
        ValidationErrorKind::Pattern { pattern } => {
            vec![Problem { pointer: at, message: cut(format!("does not match {pattern}")) }]
        }
        ValidationErrorKind::Format { format } => {
            vec![Problem { message: format!("is not a {format}"), pointer: at }]
        }
        ValidationErrorKind::Enum { .. }
        | ValidationErrorKind::AnyOf { .. }
        | ValidationErrorKind::OneOfNotValid { .. } => {
            let told = one_of(schema, &at).unwrap_or_else(|| error.masked().to_string());
            vec![Problem { pointer: at, message: cut(told) }]
        }
        _ => vec![Problem { pointer: at, message: cut(error.masked().to_string()) }],
    }
}

/// What there is to choose from, where a field has only a few values.
fn one_of(schema: &Value, at: &str) -> Option<String> {
    let fields = schema["properties"].as_object()?;
    let (_, field) = fields.iter().find(|(name, _)| pointer(name) == at)?;
    let choices = choices(present(field));
    (!choices.is_empty()).then(|| format!("is none of {}", choices.join(", ")))
}

fn cut(mut message: String) -> String {
    if message.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE).rev().find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or_default());
        message.push_str("...");
    }
    message
}

/// The JSON pointer (RFC 6901) to the member `name` of an object.
pub fn pointer(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
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
            element: kind(&present(property)["items"]),
            choices: choices(present(property)),
            schema: property.clone(),
        })
        .collect()
}

/// The schema of `op`'s parameters with nothing left to look up elsewhere.
pub fn params(op: &Row) -> Value {
    op.shape().params(&mut inlined()).into()
}

/// The schema of what `op` yields with nothing left to look up elsewhere.
pub fn output(op: &Row) -> Value {
    let settings = SchemaSettings::draft2020_12();
    let settings = settings.with(|settings| settings.inline_subschemas = true);
    op.shape().output(&mut settings.for_serialize().into_generator()).into()
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
    let property = present(property);
    // An optional field's type is a pair such as ["string", "null"].
    let name = match &property["type"] {
        Value::Array(types) => types.iter().find_map(|t| t.as_str().filter(|t| *t != "null")),
        single => single.as_str(),
    };
    match name {
        Some("array") => Type::List,
        Some("boolean") => Type::Boolean,
        Some("integer") => Type::Integer,
        Some("number") => Type::Number,
        Some("object") => Type::Object,
        _ => Type::Text,
    }
}

/// What an optional field is where it is given: the variant that is not null.
fn present(property: &Value) -> &Value {
    let mut variants = property["anyOf"].as_array().into_iter().flatten();
    variants.find(|variant| variant["type"] != "null").unwrap_or(property)
}

fn choices(property: &Value) -> Vec<String> {
    let listed = property["enum"].as_array().into_iter().flatten();
    let documented = property["oneOf"].as_array().into_iter().flatten().map(|v| &v["const"]);
    listed.chain(documented).filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn update() -> &'static Row {
        ops::find("node.sysctl.update").unwrap()
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let params = json!({ "key": "../etc", "vaule": 1, "value": ["x"] });
        let error = check(update(), &params).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
        let mut places: Vec<_> = error.body().problems.into_iter().map(|p| p.pointer).collect();
        places.sort();
        assert_eq!(places, ["/key", "/value", "/vaule"]);
    }

    #[test]
    fn values_are_not_repeated_in_problems() {
        let error = check(update(), &json!({ "key": "secret\n", "value": "x" })).unwrap_err();
        assert!(!format!("{:?}", error.body()).contains("secret"));
    }

    #[test]
    fn what_is_wrong_is_told_once_with_what_would_be_right() {
        let list = ops::find("job.list").unwrap();
        let fields = fields(list);
        let limit = fields.iter().find(|field| field.name == "limit").unwrap();
        for (texts, told) in [(&["1", "2"][..], "given more than once"), (&["x"], "an integer")] {
            let body = limit.value(texts.iter().copied()).unwrap_err().body();
            assert!(body.message.starts_with("limit: ") && body.message.contains(told));
            assert_eq!(body.message, format!("limit: {}", body.problems[0].message));
        }
        let error = check(list, &json!({ "status": "odd" })).unwrap_err();
        let choices = &fields.iter().find(|field| field.name == "status").unwrap().choices;
        assert!(!choices.is_empty());
        assert_eq!(error.to_string(), format!("status: is none of {}", choices.join(", ")));
        let error = check(ops::find("job.get").unwrap(), &json!({ "id": "x" })).unwrap_err();
        assert_eq!(error.to_string(), "id: is not a uuid");
    }

    #[test]
    fn what_only_the_type_knows_is_told_of_its_field_as_well() {
        let deploy = ops::find("file.deploy.execute").unwrap();
        let long = "a".repeat(256);
        for path in [format!("/{long}"), format!("/etc/{long}/motd")] {
            let params = json!({ "object_name": "motd", "path": path, "content_type": "raw" });
            let error = check(deploy, &params).unwrap_err().body();
            assert!(error.message.contains("longer than"), "{}", error.message);
            assert_eq!(error.problems[0].pointer, "/path", "{error:?}");
        }
    }

    #[test]
    fn text_becomes_what_the_schema_says() {
        let options = options(update());
        let named = |name: &str| options.iter().find(|field| field.name == name).unwrap();
        assert_eq!(named("confirm").value(["60"]).unwrap(), json!(60));
        assert_eq!(named("dry_run").value(["true"]).unwrap(), json!(true));
        assert!(named("dry_run").value(["yes"]).is_err());
        assert!(named("confirm").value(["+60"]).is_err());
        assert!(named("confirm").value(["60", "61"]).is_err());
    }

    #[test]
    fn force_is_taken_where_a_row_is_guarded() {
        let named = |row: &Row| options(row).iter().map(|o| o.name.clone()).collect::<Vec<_>>();
        let guarded = |id, row: &Row| Row { id, guarded: true, ..*row };
        assert_eq!(named(update()), ["dry_run", "plan", "confirm"]);
        let all = ["dry_run", "plan", "confirm", "force"];
        assert_eq!(named(&guarded("test.guarded", update())), all);
        let act = ops::find("node.process.signal").unwrap();
        assert_eq!(named(act), [] as [&str; 0]);
        assert_eq!(named(&guarded("test.guarded act", act)), ["force"]);
    }

    #[test]
    fn options_have_bounds() {
        let problems = check_options(&json!({ "confirm": 0, "plan": "x" })).unwrap();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
