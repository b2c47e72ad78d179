//! `osapi doctor`: what is wrong with this host, with evidence, and what to do about it.
//!
//! A check is a row: what it needs to know, and a function that judges it. What the rows need is
//! asked for at once, each thing within its time; then each row judges, within its own. Nothing
//! here changes anything, and nothing needs root: what only root may see is skipped, and said.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::client::Problem;
use super::run::{Session, put};
use super::table::{Colour, Page};
use super::text::flat;
use super::{Reach, terminal};

mod broker;
mod evidence;
mod host;
mod network;
mod own;
mod own_files;
#[cfg(test)]
mod tests;
mod units;

use evidence::{Evidence, Need};
pub(super) use units::relay;

/// How long all of them may judge, files read included.
const LIMIT: Duration = Duration::from_secs(3);

/// One thing that may be wrong.
struct Check {
    /// Unique; scripts know it by that.
    id: &'static str,
    /// What holds where nothing is wrong.
    title: &'static str,
    needs: &'static [Need],
    judge: Judge,
}

/// What was found; the error is that it could not be looked at.
type Judge = fn(&Evidence) -> Result<Finding, Finding>;

/// Every check, in the order in which they are told.
fn checks() -> impl Iterator<Item = &'static Check> {
    let own = own::CHECKS.iter().chain(units::CHECKS).chain(own_files::CHECKS);
    own.chain(broker::CHECKS).chain(network::CHECKS).chain(host::CHECKS)
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Skipped,
    Warn,
    Fail,
}

#[derive(Clone, Debug, PartialEq)]
struct Finding {
    status: Status,
    evidence: String,
    /// What to type; empty where nothing is wrong.
    fix: String,
}

fn ok(evidence: impl Into<String>) -> Result<Finding, Finding> {
    Ok(Finding { status: Status::Ok, evidence: evidence.into(), fix: String::new() })
}

fn warn(evidence: impl Into<String>, fix: impl Into<String>) -> Result<Finding, Finding> {
    Ok(Finding { status: Status::Warn, evidence: evidence.into(), fix: fix.into() })
}

fn fail(evidence: impl Into<String>, fix: impl Into<String>) -> Result<Finding, Finding> {
    Ok(Finding { status: Status::Fail, evidence: evidence.into(), fix: fix.into() })
}

fn skipped(why: impl Into<String>) -> Finding {
    Finding { status: Status::Skipped, evidence: why.into(), fix: String::new() }
}

/// A check with what came of it.
#[derive(Debug, Serialize)]
struct Judged {
    id: &'static str,
    title: &'static str,
    status: Status,
    evidence: String,
    fix: String,
}

/// Looks at everything and tells it. The exit status is 0 where nothing is wrong, 1 where
/// something is worth a look, 2 where something does not work.
pub(super) async fn examine(session: &Session<'_>, reach: &Reach) -> Result<u8, Problem> {
    let evidence = Evidence::gather(session, reach, checks()).await;
    let judged = judge(checks(), &Arc::new(evidence), LIMIT);
    let worst = judged.iter().map(|judged| judged.status).max();
    put(&if session.globals.json {
        let count = |status| judged.iter().filter(|judged| judged.status == status).count();
        let summary = json!({
            "ok": count(Status::Ok),
            "warn": count(Status::Warn),
            "fail": count(Status::Fail),
            "skipped": count(Status::Skipped),
        });
        format!("{}\n", json!({ "summary": summary, "checks": judged }))
    } else {
        page(&judged, terminal::page())
    })?;
    Ok(match worst {
        Some(Status::Fail) => 2,
        Some(Status::Warn) => 1,
        _ => 0,
    })
}

/// Has every row judge, all at once: one that hangs in a file holds up no other.
fn judge(
    checks: impl Iterator<Item = &'static Check>,
    evidence: &Arc<Evidence>,
    limit: Duration,
) -> Vec<Judged> {
    let checks: Vec<_> = checks.collect();
    let (sender, receiver) = channel();
    for (at, check) in checks.iter().enumerate() {
        let (sender, evidence) = (sender.clone(), Arc::clone(evidence));
        let (name, judge) = (check.id.to_owned(), check.judge);
        let work = move || drop(sender.send((at, judge(&evidence))));
        // Where there is no thread to be had it is not looked at, which is told below.
        drop(std::thread::Builder::new().name(name).spawn(work));
    }
    drop(sender);
    let end = Instant::now() + limit;
    let mut findings = vec![None; checks.len()];
    while let Ok((at, finding)) =
        receiver.recv_timeout(end.saturating_duration_since(Instant::now()))
    {
        findings[at] = Some(finding);
    }
    let rows = checks.into_iter().zip(findings);
    rows.map(|(check, finding)| {
        let unanswered = || {
            let what = format!("it could not be looked at within {} s", limit.as_secs());
            warn(what, format!("osapi doctor    # again; then look what {} hangs in", check.id))
        };
        let finding = finding.unwrap_or_else(unanswered);
        let Finding { status, evidence, fix } = finding.unwrap_or_else(|skipped| skipped);
        Judged { id: check.id, title: check.title, status, evidence, fix }
    })
    .collect()
}

/// What a person sees: every check with its evidence, and below what is wrong, what to type.
fn page(judged: &[Judged], page: Page) -> String {
    let widest = judged.iter().map(|judged| judged.id.len()).max().unwrap_or_default();
    let mut text = String::from("\n");
    for Judged { id, title, status, evidence, fix } in judged {
        let (word, colour) = match status {
            Status::Ok => ("ok  ", Some(Colour::Green)),
            Status::Skipped => ("skip", None),
            Status::Warn => ("WARN", Some(Colour::Yellow)),
            Status::Fail => ("FAIL", Some(Colour::Red)),
        };
        let word = match colour.filter(|_| page.has_colour) {
            Some(colour) => format!("\x1b[{}m{word}\x1b[0m", colour as u8),
            None => word.to_owned(),
        };
        _ = writeln!(text, "  {word}  {id:widest$}  {title}: {}", flat(evidence));
        for line in fix.lines() {
            _ = writeln!(text, "          $ {}", flat(line));
        }
    }
    let count = |status| judged.iter().filter(|judged| judged.status == status).count();
    let [fail, warn, skipped] = [Status::Fail, Status::Warn, Status::Skipped].map(count);
    let all = judged.len();
    _ = writeln!(text, "\n  {all} checks: {fail} failed, {warn} warnings, {skipped} skipped");
    text
}
