//! Finds out whether the audit log is what was written.
//!
//! An export is lines of JSON: the entries as clients list them, then `{"link": …}` for each link
//! of the chains just as stored, then `{"ends": …}`. Whoever edits it must rewrite every link
//! behind the edit, and cannot rewrite the heads that the agent of the host has kept.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::client::Problem;
use super::run::{Session, put};
use super::text::{flat, moment};
use super::{Globals, Reach, files};
use crate::error::{Error, Kind, Result};
use crate::job::decode;
use crate::link;
use crate::store::audit::{Check, End, Ends, Entry, Fault, Link, Note, Verdict};

/// The exit status of a log that is not what was written.
const BROKEN: u8 = 1;
/// How often a log is looked at again from which retention has taken something meanwhile.
const TRIES: usize = 3;
/// How many links are asked for at a time.
const PAGE: usize = 500;
/// Faults of entries that are told apart.
const MOST_FAULTS: usize = 100;
/// The status of an entry whose work has not ended.
const ACCEPTED: u16 = 202;
/// No line of an export is longer, in bytes.
const LONGEST_LINE: u64 = 64 << 20;

/// Checks the log of the running controller against the heads that the host's agent has kept.
pub(super) async fn verify(session: &Session<'_>, reach: &Reach) -> Result<u8, Problem> {
    let mut tried = 1;
    loop {
        // Read before the log, so that none of them is newer than the log.
        let heads = heads(reach);
        let verdict = walk(session, heads.as_deref().unwrap_or_default()).await?;
        if verdict.is_whole() || tried == TRIES {
            return Ok(tell(session.globals, &verdict, heads.as_deref())?);
        }
        tried += 1;
    }
}

/// Looks through the log of the running controller.
pub(super) async fn walk(session: &Session<'_>, known: &[link::Head]) -> Result<Verdict, Problem> {
    let (mut check, mut after, mut goal) = (None, 0, 0);
    loop {
        let uri = format!("/api/audit/chain?after={after}&limit={PAGE}");
        let chain = session.get(&uri).await?.json()?;
        let check = match &mut check {
            Some(check) => check,
            none => {
                let ends: Ends = parse(&chain["ends"])?;
                goal = ends.head.number.max(ends.refusals_head.number);
                none.insert(Check::new(&ends, known))
            }
        };
        let mut is_done = goal == 0;
        for link in chain["links"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let stored = link.as_str().unwrap_or_default().as_bytes();
            let number = decode::<Link>(stored).map_or(0, |link| link.number);
            is_done |= number >= goal;
            // What has been written since the first page is none of this walk's business.
            if number > goal {
                break;
            }
            check.link(stored);
        }
        let last = chain["last"].as_u64().unwrap_or_default();
        if is_done || last <= after {
            break;
        }
        after = last;
    }
    Ok(check.map(Check::end).unwrap_or_default())
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T> {
    serde_json::from_value(value.clone()).map_err(|error| {
        let what = "cannot read the chain; is the controller of the same version as this?";
        Error::new(Kind::Internal, what).because(error)
    })
}

/// Checks a file that an export has written.
pub(super) fn verify_export(globals: &Globals, path: &Path, reach: &Reach) -> Result<u8, Problem> {
    let heads = heads(reach);
    let verdict = judge(path, heads.as_deref().unwrap_or_default())?;
    Ok(tell(globals, &verdict, heads.as_deref())?)
}

/// Looks at an export twice: for where it ends, then at every link and entry.
fn judge(path: &Path, known: &[link::Head]) -> Result<Verdict> {
    let mut last = Vec::new();
    for line in files::lines(path, LONGEST_LINE)? {
        last = line?;
    }
    let ending = serde_json::from_slice::<Value>(&last).unwrap_or_default();
    let Ok(ends) = serde_json::from_value::<Ends>(ending["ends"].clone()) else {
        let message = "the file does not end as an export ends: its end was cut off or edited";
        let fault = Fault { number: 0, message: message.into() };
        return Ok(Verdict { faults: vec![fault], ..Verdict::default() });
    };
    // Heads that are newer than the export say nothing about it.
    let goals = [&ends.head, &ends.refusals_head];
    let is_older = |head: &&link::Head| {
        goals.iter().any(|goal| goal.writer == head.writer && head.number <= goal.number)
    };
    let known: Vec<_> = known.iter().filter(is_older).cloned().collect();
    let mut check = Check::new(&ends, &known);
    let mut listed = Listed::default();
    let (mut is_behind_entries, mut is_over) = (false, false);
    for line in files::lines(path, LONGEST_LINE)? {
        let text = line?;
        let line: Value = serde_json::from_slice(&text).unwrap_or_default();
        // Whatever is written in another way than an export writes it, such as a member twice,
        // could be read in another way too.
        if line.to_string().as_bytes() != text {
            listed.fault("a line is not written as an export writes it");
        }
        if is_over {
            listed.fault("something stands behind the end of the export");
        } else if let Some(stored) = line["link"].as_str() {
            is_behind_entries = true;
            if line != json!({ "link": stored }) {
                listed.fault("a line has more than its link");
            }
            check.link(stored.as_bytes());
            if let Ok(link) = decode::<Link>(stored.as_bytes()) {
                listed.notes(link);
            }
        } else if line["ends"].is_object() {
            is_over = true;
            if line != json!({ "ends": ends, "entries": listed.items.len() }) {
                listed.fault("the last line does not tell what stands before it");
            }
        } else {
            if is_behind_entries {
                listed.fault("an entry stands among the links");
            }
            listed.items.push(line);
        }
    }
    let mut verdict = check.end();
    verdict.faults.extend(listed.end());
    Ok(verdict)
}

/// The entries as an export lists them, beside the notes that its links have.
#[derive(Default)]
struct Listed {
    items: Vec<Value>,
    entries: Vec<(u64, Entry)>,
    ends: HashMap<String, Vec<End>>,
    faults: Vec<Fault>,
}

impl Listed {
    fn fault(&mut self, message: impl Into<String>) {
        self.faults.push(Fault { number: 0, message: message.into() });
    }

    fn notes(&mut self, link: Link) {
        for note in link.notes {
            match note {
                Note::Entry(entry) => self.entries.push((link.number, entry)),
                Note::End(end) => self.ends.entry(end.entry.clone()).or_default().push(end),
                Note::Event(_) => {}
            }
        }
    }

    /// Holds every item against the note that it was made of.
    fn end(mut self) -> Vec<Fault> {
        // Exports list the newest first; their links begin with the oldest.
        self.entries.reverse();
        if self.items.len() != self.entries.len() {
            let (items, entries) = (self.items.len(), self.entries.len());
            self.fault(format!("there are {items} entries, and the links have {entries}"));
        }
        for (line, (item, (number, entry))) in self.items.iter().zip(&self.entries).enumerate() {
            let ends = self.ends.get(&entry.id).map(Vec::as_slice).unwrap_or_default();
            if let Some(field) = differs(item, entry, ends) {
                let message =
                    format!("line {}: its {field} is not that of link {number}", line + 1);
                self.faults.push(Fault { number: *number, message });
            }
        }
        // Whatever is behind the first line that was removed differs, and needs no list.
        self.faults.truncate(MOST_FAULTS);
        self.faults
    }
}

/// The first field of an exported entry that was not made of `entry` and what ended it.
fn differs(item: &Value, entry: &Entry, ends: &[End]) -> Option<&'static str> {
    // Of several hosts, the one that fared worst and the one that took longest count.
    let code = entry.code.or_else(|| ends.iter().map(|end| end.code).max()).unwrap_or(ACCEPTED);
    let ms = entry.ms.or_else(|| ends.iter().map(|end| end.ms).max()).unwrap_or(0);
    let told = item["timestamp"].as_str().and_then(moment);
    let checks = [
        ("id", item["id"] == entry.id),
        ("timestamp", told == Some(entry.at)),
        ("user", item["user"] == entry.user),
        ("roles", item["roles"] == json!(entry.roles)),
        ("method", item["method"] == entry.method),
        ("path", item["path"] == entry.path),
        ("operation_id", item["operation_id"] == entry.op),
        ("source_ip", item["source_ip"] == entry.source),
        ("response_code", item["response_code"] == code),
        ("duration_ms", item["duration_ms"] == ms),
        ("trace_id", item["trace_id"] == json!(entry.trace)),
        ("job_id", item["job_id"] == json!(entry.job)),
        ("about", item["about"] == json!(entry.about)),
        ("more", item["more"] == json!(entry.more)),
    ];
    let is_known = |name: &String| checks.iter().any(|(known, _)| known == name);
    if !item.as_object().is_some_and(|fields| fields.keys().all(is_known)) {
        return Some("list of members");
    }
    checks.into_iter().find(|(_, is_equal)| !is_equal).map(|(name, _)| name)
}

/// The heads of the log that agents of this host have kept; None where nobody may read them.
pub(super) fn heads(reach: &Reach) -> Option<Vec<link::Head>> {
    let texts: Vec<_> =
        reach.states.iter().filter_map(|state| files::small(&state.join("heads"))).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    let heads = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
    (!texts.is_empty()).then_some(heads)
}

#[derive(Serialize)]
struct Told<'a> {
    whole: bool,
    heads_compared: bool,
    #[serde(flatten)]
    verdict: &'a Verdict,
}

fn tell(globals: &Globals, verdict: &Verdict, heads: Option<&[link::Head]>) -> Result<u8> {
    let is_whole = verdict.is_whole();
    let exit = if is_whole { 0 } else { BROKEN };
    if globals.json {
        let told = Told { whole: is_whole, heads_compared: heads.is_some(), verdict };
        let document: Map<String, Value> = match serde_json::to_value(told) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        put(&format!("{}\n", Value::Object(document)))?;
        return Ok(exit);
    }
    let Verdict { links, entries, anchored, faults } = verdict;
    let mut text = format!("\n  Looked at {entries} entries in {links} links.\n");
    if heads.is_some() {
        _ = writeln!(text, "  {anchored} places agree with what the agent has kept.");
    } else {
        text.push_str(
            "  What the agent has kept could not be compared: only root may read it, or the owner \
             of a controller started by hand.\n",
        );
    }
    for fault in faults {
        _ = writeln!(text, "  BROKEN: {}", flat(&fault.message));
    }
    text.push_str(if is_whole {
        "  Nothing was edited, removed, moved or cut off.\n"
    } else {
        "  This is not what was written.\n"
    });
    put(&text)?;
    Ok(exit)
}
