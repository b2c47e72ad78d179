//! What a person sees of a reply: a row for each host, a table of a list, a block of one thing.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::call::Call;
use super::job::job;
use super::table::{Cell, Colour, Page, Table};
use super::text::{age, flat, label, lines, moment, plain, size};
use crate::op::Rows;
use crate::ops::Row;

/// The reply as one JSON document, as the published command line prints it.
pub fn document(call: &Call, reply: &Value) -> Option<Value> {
    let mut document = reply.clone();
    match call.row.id {
        "job.list" => {
            let jobs = reply["items"].as_array()?;
            let given = |name: &str, usual: u64| {
                call.params.get(name).cloned().unwrap_or_else(|| json!(usual))
            };
            Some(json!({
                "total_jobs": reply["total_items"],
                "displayed_jobs": jobs.len(),
                "status_counts": reply["status_counts"],
                "filter_applied": call.params.get("status").cloned().unwrap_or_else(|| "".into()),
                "limit_applied": given("limit", 10),
                "offset_applied": given("offset", 0),
                "jobs": jobs,
            }))
        }
        "job.get" => {
            let fields = document.as_object_mut()?;
            if fields.contains_key("changed") {
                return None;
            }
            fields.insert("changed".into(), Value::Null);
            Some(document)
        }
        _ => None,
    }
}

/// The reply for people.
pub fn page(row: &Row, reply: &Value, page: Page) -> String {
    if let Some(results) = reply["results"].as_array() {
        if let ("node.status.get", [only]) = (row.id, results.as_slice())
            && state(only) == State::Ok
        {
            return heading(reply) + &block(only, page);
        }
        return hosts(row, reply, results, page);
    }
    match row.id {
        "job.list" => return jobs(row, reply, page),
        "job.get" => return job(reply, page),
        _ => {}
    }
    if let ("health.status", Some(entries)) = (row.id, entries(row, reply)) {
        let mut rest = reply.clone();
        if let (Some(fields), Rows::Each(list)) = (rest.as_object_mut(), row.rows) {
            fields.shift_remove(list);
        }
        return table(row.columns, entries, page) + &block(&rest, page);
    }
    match entries(row, reply) {
        Some(entries) => table(row.columns, entries, page),
        None => block(reply, page),
    }
}

/// The list that a reply is about.
fn entries<'a>(row: &Row, reply: &'a Value) -> Option<&'a Vec<Value>> {
    if let Rows::Each(field) = row.rows {
        return reply[field].as_array();
    }
    if row.columns.is_empty() {
        return None;
    }
    let fields = reply.as_object()?;
    let mut lists = fields.values().filter_map(Value::as_array);
    lists.next().filter(|_| lists.next().is_none())
}

/// One entry of what has no end, as a line.
pub(super) fn line(row: &Row, entry: &Value) -> String {
    let cells = row.columns.iter().map(|(_, pointer)| entry.pointer(pointer).map(plain));
    let cells: Vec<_> = cells.map(Option::unwrap_or_default).collect();
    format!("  {}\n", cells.join("  "))
}

fn jobs(row: &Row, reply: &Value, page: Page) -> String {
    let items = reply["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut text =
        format!("\n  Total: {}  Showing: {}\n", plain(&reply["total_items"]), items.len());
    if let Some(counts) = reply["status_counts"].as_object().filter(|counts| !counts.is_empty()) {
        let counts =
            counts.iter().map(|(name, count)| format!("{}: {}", label(name), plain(count)));
        _ = writeln!(text, "  {}", counts.collect::<Vec<_>>().join("  "));
    }
    text + &table(row.columns, items, page)
}

fn table(columns: &[(&str, &str)], entries: &[Value], page: Page) -> String {
    if entries.is_empty() {
        return "\n  None\n".into();
    }
    let columns = given_or_all(columns, entries, &[]);
    format!("\n{}", sheet(&columns, entries, page))
}

fn sheet(columns: &[Column], entries: &[Value], page: Page) -> String {
    let mut table = Table::new(columns.iter().map(|column| column.header.clone()));
    for entry in entries {
        for cells in explode(columns, entry, page) {
            table.push(cells.into_iter().map(Cell::from).collect());
        }
    }
    table.render(page)
}

struct Column {
    header: String,
    pointer: String,
}

/// The columns of a row of the table of operations, or one for each field that there is.
fn given_or_all(columns: &[(&str, &str)], entries: &[Value], without: &[&str]) -> Vec<Column> {
    if !columns.is_empty() {
        let columns = columns.iter();
        return columns
            .map(|(header, pointer)| Column {
                header: (*header).to_owned(),
                pointer: (*pointer).to_owned(),
            })
            .collect();
    }
    let mut names: Vec<&String> = Vec::new();
    for entry in entries.iter().filter_map(Value::as_object) {
        for name in entry.keys().filter(|name| !without.contains(&name.as_str())) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
        .into_iter()
        .map(|name| Column {
            header: flat(name).replace('_', " ").to_uppercase(),
            pointer: format!("/{}", escaped(name)),
        })
        .collect()
}

/// A field's name as JSON pointers have it.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The lines of an entry: one, or one for each element of the list that its columns look into
/// (`/disks/*/name`).
fn explode(columns: &[Column], entry: &Value, page: Page) -> Vec<Vec<String>> {
    let lists = columns.iter().filter_map(|column| column.pointer.split_once("/*"));
    let count = lists
        .filter_map(|(list, _)| Some(entry.pointer(list)?.as_array()?.len()))
        .max()
        .unwrap_or(1)
        .max(1);
    (0..count)
        .map(|i| columns.iter().map(|column| cell(column, entry, &format!("/{i}"), page)).collect())
        .collect()
}

fn cell(column: &Column, entry: &Value, element: &str, page: Page) -> String {
    let find = |pointer: &str| entry.pointer(&pointer.replace("/*", element));
    if let Some((part, whole)) = column.pointer.split_once(':') {
        let number = |pointer| find(pointer).and_then(Value::as_f64);
        return match (number(part), number(whole)) {
            (Some(part), Some(whole)) if whole > 0.0 => format!("{:.0}%", part / whole * 100.0),
            _ => String::new(),
        };
    }
    let Some(value) = find(&column.pointer) else { return String::new() };
    let name = column.pointer.rsplit('/').next().unwrap_or_default();
    match value {
        Value::Number(_) if is_size(&column.pointer) => size_of(value),
        Value::Object(fields) if name == "os_info" => {
            fields.values().map(plain).collect::<Vec<_>>().join(" ")
        }
        Value::Object(_) if name == "cell" => cell_name(value),
        Value::Object(_) if matches!(name, "expected" | "found") => holds(value),
        Value::Number(_) if name.ends_with("_ms") => format!("{}ms", plain(value)),
        Value::String(text) if column.header == "AGE" => since(text, page),
        other => plain(other),
    }
}

/// Whether what is at `pointer` is a number of bytes.
fn is_size(pointer: &str) -> bool {
    match pointer.rsplit('/').next().unwrap_or_default() {
        "total" | "used" | "free" => {
            ["memory/", "disks/"].iter().any(|place| pointer.contains(place))
        }
        name => matches!(name, "size" | "bytes" | "mem_rss" | "mem_bytes" | "rss_bytes"),
    }
}

fn size_of(value: &Value) -> String {
    value.as_u64().map_or_else(|| plain(value), size)
}

/// The age of what began at `text`, or `text` where that is no time.
fn since(text: &str, page: Page) -> String {
    let began = moment(text).filter(|_| page.now > 0);
    began.map_or_else(|| flat(text), |began| age(page.now.saturating_sub(began) / 1000))
}

/// What every row of every host has, beside what the operation says.
const ENVELOPE: &[&str] = &[
    "hostname",
    "status",
    "changed",
    "error",
    "kind",
    "changes",
    "residue",
    "plan",
    "dry_run",
    "confirm_until",
    "not_restored",
    "machine_id",
    "problems",
];

/// How many lines of what a failed command said are shown.
const MOST_COMPLAINTS: usize = 20;

#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum State {
    Ok,
    Changed,
    Skip,
    Err,
}

fn state(row: &Value) -> State {
    match row["status"].as_str() {
        Some("skipped") => State::Skip,
        Some("failed") => State::Err,
        _ if row["error"].as_str().is_some_and(|error| !error.is_empty()) => State::Err,
        _ if row["changed"] == true => State::Changed,
        _ => State::Ok,
    }
}

/// Whether any host of a reply failed.
pub(super) fn has_failed(reply: &Value) -> bool {
    let results = reply["results"].as_array().into_iter().flatten();
    results.map(state).any(|state| state == State::Err)
}

/// How many hosts were asked, where several may have been meant.
pub(super) fn asked(reply: &Value) -> Option<usize> {
    reply["summary"]["hosts"].as_u64().and_then(|asked| asked.try_into().ok())
}

fn heading(reply: &Value) -> String {
    let id = reply["job_id"].as_str();
    id.map_or_else(String::new, |id| format!("\n  Job ID: {}\n", flat(id)))
}

pub(super) fn hosts(row: &Row, reply: &Value, results: &[Value], page: Page) -> String {
    let mut text = heading(reply);
    let columns = given_or_all(row.columns, results, ENVELOPE);
    let headers = ["HOSTNAME".to_owned(), "STATUS".to_owned()].into_iter();
    let mut table = Table::new(headers.chain(columns.iter().map(|column| column.header.clone())));
    // The rows of a host stand together.
    let mut worst: Vec<(String, State)> = Vec::new();
    for result in results {
        let (name, state) = (named(result), state(result));
        match worst.last_mut().filter(|(known, _)| *known == name) {
            Some((_, known)) => *known = state.max(*known),
            None => worst.push((name.clone(), state)),
        }
        for cells in explode(&columns, result, page) {
            let (word, colour) = match state {
                State::Ok => ("ok", Colour::Green),
                State::Changed => ("changed", Colour::Yellow),
                State::Skip => ("skip", Colour::Cyan),
                State::Err => ("err", Colour::Red),
            };
            let first = [name.clone().into(), Cell { text: word.into(), colour: Some(colour) }];
            table.push(first.into_iter().chain(cells.into_iter().map(Cell::from)).collect());
        }
    }
    _ = write!(text, "\n{}\n  {}\n", table.render(page), summary(&worst, asked(reply)));
    let told = results.iter().filter(|result| state(result) >= State::Skip);
    let details: Vec<_> = told
        .map(|result| {
            let message = result["error"].as_str().unwrap_or("no reason given");
            format!("    {}: {}\n", named(result), flat(message))
        })
        .collect();
    if !details.is_empty() {
        _ = write!(text, "\n  Details:\n{}", details.concat());
    }
    for result in results {
        complaints(&mut text, result);
        changes(&mut text, result, results.len() > 1);
    }
    let until = results.iter().filter_map(|result| result["confirm_until"].as_str()).min();
    if let (Some(until), Some(id)) = (until, reply["job_id"].as_str()) {
        let (until, id) = (flat(until), flat(id));
        _ = write!(
            text,
            "\n  Taken back at {until} unless confirmed:\n    osapi job confirm {id}\n"
        );
    }
    text
}

/// How the host of a row is called, with its machine id where another one has that name.
pub(super) fn named(result: &Value) -> String {
    let name = flat(result["hostname"].as_str().unwrap_or_default());
    match result["machine_id"].as_str() {
        Some(machine_id) => format!("{name} ({})", flat(machine_id)),
        None => name,
    }
}

/// `asked` hosts were asked; those of which no row tells had nothing to list.
fn summary(worst: &[(String, State)], asked: Option<usize>) -> String {
    let hosts = asked.unwrap_or_default().max(worst.len());
    let without = |state| if state == State::Ok { hosts - worst.len() } else { 0 };
    let count = |state| worst.iter().filter(|(_, worst)| *worst == state).count() + without(state);
    let counts = [
        (State::Ok, "ok"),
        (State::Changed, "changed"),
        (State::Skip, "skipped"),
        (State::Err, "failed"),
    ]
    .map(|(state, word)| (count(state), word));
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts.map(|(count, word)| format!("{count} {word}")).collect();
    let noun = if hosts == 1 { "host" } else { "hosts" };
    if hosts == 0 { "0 hosts".into() } else { format!("{hosts} {noun}: {}", counts.join(", ")) }
}

/// What a command that failed said of it, which has no column.
fn complaints(text: &mut String, result: &Value) {
    let has_failed = result.get("exit_code").is_some_and(|code| *code != 0);
    let said = result["stderr"].as_str().filter(|said| has_failed && !said.is_empty());
    let Some(said) = said else { return };
    let all: Vec<_> = lines(said).collect();
    _ = write!(text, "\n  Stderr of {}:\n", named(result));
    let left_out = all.len().saturating_sub(MOST_COMPLAINTS);
    if left_out > 0 {
        _ = writeln!(text, "    … {left_out} lines before these; --stderr shows all");
    }
    for line in &all[left_out..] {
        _ = writeln!(text, "    {line}");
    }
}

/// What a change did or would do to a host: cell by cell, files line by line.
fn changes(text: &mut String, result: &Value, is_named: bool) {
    let list = |name: &str| result[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_dry = result["dry_run"] == true;
    let heading = |words: &str| match result["hostname"].as_str().filter(|_| is_named) {
        Some(_) => format!("\n  {words} on {}:\n", named(result)),
        None => format!("\n  {words}:\n"),
    };
    if !list("changes").is_empty() {
        text.push_str(&heading(if is_dry { "Would change" } else { "Changed" }));
    }
    for change in list("changes") {
        let (from, to) = (holds(&change["from"]), holds(&change["to"]));
        _ = writeln!(text, "    {}: {from} -> {to}", cell_name(&change["cell"]));
        let diff = change["diff"].as_str().unwrap_or_default();
        // The two lines of the header name nothing that is not said above.
        for line in lines(diff).filter(|line| !line.starts_with("---") && !line.starts_with("+++"))
        {
            _ = writeln!(text, "      {line}");
        }
    }
    if !list("residue").is_empty() {
        text.push_str(&heading("Would remain after an undo"));
        for what in list("residue") {
            _ = writeln!(text, "    {}", plain(what));
        }
    }
    if is_dry {
        text.push_str("\n  Dry run: nothing was changed.\n");
    }
    if let Some(plan) = result["plan"].as_str().filter(|_| is_dry) {
        let plan = flat(plan);
        _ = write!(text, "\n  To do just this or nothing, run it with\n    --plan {plan}\n");
    }
}

/// A cell is an object of one field: its kind and where it is.
fn cell_name(cell: &Value) -> String {
    match single(cell) {
        Some(("node", place)) => plain(place),
        Some((kind, place)) => format!("{} {}", flat(kind), plain(place)),
        None => plain(cell),
    }
}

fn holds(value: &Value) -> String {
    match single(value) {
        Some(("text", text)) => format!("{:?}", plain(text)),
        Some((kind @ ("file" | "directory"), what)) => {
            let (mode, owner) = (plain(&what["mode"]), plain(&what["owner"]));
            format!("{kind} {mode} {owner}")
        }
        Some((kind, what)) => format!("{} {}", flat(kind), plain(what)),
        None => plain(value),
    }
}

fn single(value: &Value) -> Option<(&str, &Value)> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    fields.iter().next().map(|(name, value)| (name.as_str(), value))
}

/// One thing: a line for each field, a table for each list.
pub(super) fn block(value: &Value, page: Page) -> String {
    let Some(mut fields) = value.as_object() else { return format!("\n  {}\n", plain(value)) };
    // A reply that only wraps one object is about that object.
    while let Some((_, Value::Object(inner))) = fields.iter().next().filter(|_| fields.len() == 1) {
        fields = inner;
    }
    let (mut text, mut tables) = (String::from("\n"), String::new());
    let widest = fields.keys().map(|name| label(name).len()).max().unwrap_or_default();
    for (name, value) in fields {
        let title = label(name);
        match value {
            Value::Null => {}
            // A read changes nothing, and says so to programs only.
            Value::Bool(false) if name == "changed" => {}
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let things = [json!({ name: items })];
                let columns = given_or_all(&[], items, &[]).into_iter().map(|column| Column {
                    pointer: format!("/{}/*{}", escaped(name), column.pointer),
                    ..column
                });
                let rows = sheet(&columns.collect::<Vec<_>>(), &things, page);
                _ = write!(tables, "\n  {title}:\n{rows}");
            }
            Value::Object(inner) if inner.values().any(Value::is_object) => {
                if inner.values().all(is_flat) {
                    let items = keyed(inner);
                    let rows = table(&[], &items, page);
                    _ = write!(tables, "\n  {title}:\n{}", rows.trim_start_matches('\n'));
                } else {
                    let pretty = serde_json::to_string_pretty(value).unwrap_or_default();
                    _ = write!(tables, "\n  {title}:\n");
                    for line in lines(&pretty) {
                        _ = writeln!(tables, "    {line}");
                    }
                }
            }
            Value::Object(inner) if name == "memory" => {
                let parts = inner.iter().map(|(part, value)| format!("{part}:{}", size_of(value)));
                let parts = parts.collect::<Vec<_>>().join(", ");
                _ = writeln!(text, "  {:<1$} {2}", format!("{title}:"), widest + 1, flat(&parts));
            }
            Value::Number(_) if is_size(name) => {
                _ = writeln!(text, "  {:<1$} {2}", format!("{title}:"), widest + 1, size_of(value));
            }
            other => {
                _ = writeln!(text, "  {:<1$} {2}", format!("{title}:"), widest + 1, plain(other));
            }
        }
    }
    text + &tables
}

fn is_flat(value: &Value) -> bool {
    let fields = value.as_object();
    fields.is_some_and(|fields| !fields.values().any(|v| v.is_object() || v.is_array()))
}

/// A map of things as a list, its keys as their names.
fn keyed(things: &Map<String, Value>) -> Vec<Value> {
    let list = things.iter().map(|(key, thing)| {
        let mut row = Map::from_iter([("name".to_owned(), Value::from(key.as_str()))]);
        for (name, value) in thing.as_object().into_iter().flatten() {
            let name = if name == "name" { "its name" } else { name };
            row.insert(name.to_owned(), value.clone());
        }
        Value::Object(row)
    });
    list.collect()
}
