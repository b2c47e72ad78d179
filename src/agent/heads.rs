//! Where the audit chains ended, kept where only the agent writes: whoever rewrites or cuts a
//! chain afterwards, the controller included, cannot make these agree.
#![expect(clippy::disallowed_methods, reason = "its own state")]

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::lock;
use crate::clock::{Clock, rfc3339};
use crate::error::{Error, Kind, Result};
use crate::link::Head;
use crate::own_file;

/// How many of the newest of a chain are kept, and how many of it in all.
const NEWEST: usize = 100;
const KEPT: usize = 800;
/// How many chains a controller has, and so how many ends one answer tells.
const TOLD: usize = 2;
/// How many chains are taken note of that were not known when the agent started: those of a new
/// store, and of one that is put in its place.
const NEW: usize = 4;
/// The longest name of a chain, and the longest hash, in bytes.
const LONGEST: usize = 256;
/// How many chains are known in all.
const CHAINS: usize = 16;
/// Older ones are kept one an hour, in milliseconds.
const HOUR: u64 = 3_600_000;

pub(super) struct Heads {
    path: PathBuf,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    heads: Vec<Kept>,
    is_new: bool,
    /// How many chains were told since the start that were not known.
    strangers: usize,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Kept {
    /// When it was told, in milliseconds since 1970.
    at: u64,
    #[serde(flatten)]
    head: Head,
    /// The chain had ended there or later before. That is said of the first time only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_set_back: bool,
}

impl Heads {
    pub(super) fn open(state: &Path, clock: Clock) -> Result<Self> {
        let path = state.join("heads");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                let message = format!("cannot read {}: {error}", path.display());
                return Err(Error::new(Kind::Unavailable, message));
            }
        };
        let heads = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Self { path, clock, state: Mutex::new(State { heads, ..State::default() }) })
    }

    /// Remembers `heads`, and tells of what cannot be.
    pub(super) fn keep(&self, heads: Vec<Head>) {
        if heads.is_empty() {
            return;
        }
        if heads.len() > TOLD {
            tracing::error!(count = heads.len(), "too many ends of the audit log at once");
        }
        let mut state = lock(&self.state);
        let is_short = |head: &Head| head.writer.len().max(head.hash.len()) <= LONGEST;
        for head in heads.into_iter().take(TOLD).filter(is_short) {
            let same = |kept: &&Kept| kept.head.writer == head.writer;
            if !state.heads.iter().any(|kept| same(&kept)) && !state.takes_note() {
                tracing::error!(
                    writer = head.writer,
                    "one more audit log is not taken note of: no host has so many"
                );
                continue;
            }
            let mut is_set_back = false;
            if let Some(last) = state.heads.iter().rev().find(same) {
                if last.head == head {
                    continue;
                }
                if head.number <= last.head.number {
                    let known = |kept: &Kept| kept.is_set_back && same(&kept);
                    is_set_back = !state.heads.iter().any(known);
                    tracing::error!(
                        writer = head.writer,
                        kept = last.head.number,
                        told = head.number,
                        "the audit log ends before where it ended earlier, or otherwise: it was \
                         cut, rewritten or restored; compare it with the file of heads"
                    );
                }
            }
            state.heads.push(Kept { at: self.clock.wall(), head, is_set_back });
            state.is_new = true;
        }
        thin(&mut state.heads);
    }

    /// Why the audit log is not to be believed, as far as what is kept tells.
    pub(super) fn contradiction(&self) -> Option<String> {
        let state = lock(&self.state);
        let Kept { at, head, .. } = state.heads.iter().find(|kept| kept.is_set_back)?;
        Some(format!(
            "the audit log of {} ended at link {} at {}, no further than before: it was cut, \
             rewritten, or lost with what the broker had not synced",
            head.writer,
            head.number,
            rfc3339(*at)
        ))
    }

    /// Writes what is new to the disk. What cannot be written is tried again with the next.
    pub(super) fn save(&self) {
        let text = {
            let mut state = lock(&self.state);
            if !state.is_new {
                return;
            }
            state.is_new = false;
            let lines = state.heads.iter().filter_map(|kept| serde_json::to_string(kept).ok());
            lines.map(|line| line + "\n").collect::<String>()
        };
        if let Err(error) = own_file::replace(&self.path, text.as_bytes(), 0o600) {
            tracing::error!(%error, "cannot keep where the audit log ends");
            lock(&self.state).is_new = true;
        }
    }
}

impl State {
    /// Whether one more chain is taken note of. Otherwise whoever makes up chains could have
    /// everything forgotten that contradicts them.
    fn takes_note(&mut self) -> bool {
        let known: BTreeSet<_> = self.heads.iter().map(|kept| &kept.head.writer).collect();
        let takes_note = self.strangers < NEW && known.len() < CHAINS;
        self.strangers += usize::from(takes_note);
        takes_note
    }
}

/// Keeps the newest of each chain, and of the older ones the last of each hour. No chain takes the
/// place of another.
fn thin(heads: &mut Vec<Kept>) {
    // How many come behind, how many of these are kept, and the hour of the next.
    let mut behind: HashMap<String, (usize, usize, u64)> = HashMap::new();
    let mut keeps = Vec::with_capacity(heads.len());
    for Kept { at, head, is_set_back } in heads.iter().rev() {
        let hour = at / HOUR;
        let (count, kept, next) = behind.entry(head.writer.clone()).or_insert((0, 0, u64::MAX));
        let keep = *is_set_back || *kept < KEPT && (*count < NEWEST || hour != *next);
        *count += 1;
        *kept += usize::from(keep);
        *next = hour;
        keeps.push(keep);
    }
    heads.retain(|_| keeps.pop().unwrap_or(true));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(number: u64) -> Head {
        Head { writer: "web-1".to_owned(), number, hash: format!("h{number}") }
    }

    #[test]
    fn the_newest_and_one_an_hour_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::default();
        let heads = Heads::open(dir.path(), clock.clone()).unwrap();
        for number in 1..=3000 {
            clock.step(20 * 60_000);
            heads.keep(vec![head(number)]);
        }
        heads.save();
        let kept = Heads::open(dir.path(), clock).unwrap();
        let kept = lock(&kept.state).heads.clone();
        assert!(kept.len() <= KEPT && kept.len() > 700, "{}", kept.len());
        let numbers: Vec<u64> = kept.iter().map(|kept| kept.head.number).collect();
        assert_eq!(numbers[numbers.len() - NEWEST..], (2901..=3000).collect::<Vec<_>>());
        assert!(numbers[0] < 1000, "{}", numbers[0]);
        assert!(numbers.is_sorted());
    }

    #[test]
    fn what_is_told_twice_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let heads = Heads::open(dir.path(), Clock::default()).unwrap();
        heads.keep(vec![head(1), head(1)]);
        heads.keep(vec![head(1)]);
        assert_eq!(lock(&heads.state).heads.len(), 1);
        // What contradicts it is evidence, and kept beside it.
        heads.keep(vec![Head { hash: "other".to_owned(), ..head(1) }]);
        assert_eq!(lock(&heads.state).heads.len(), 2);
    }

    #[test]
    fn that_a_chain_was_set_back_is_known_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::default();
        let heads = Heads::open(dir.path(), clock.clone()).unwrap();
        heads.keep(vec![head(5)]);
        assert_eq!(heads.contradiction(), None);
        heads.keep(vec![head(3)]);
        for number in 4..3000 {
            clock.step(60_000);
            heads.keep(vec![head(number)]);
        }
        heads.keep(vec![head(7)]);
        heads.save();
        let heads = Heads::open(dir.path(), clock).unwrap();
        let why = heads.contradiction().unwrap();
        assert!(why.contains("web-1 ended at link 3 at 2"), "{why}");
        assert_eq!(lock(&heads.state).heads.iter().filter(|kept| kept.is_set_back).count(), 1);
    }

    #[test]
    fn no_chain_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::default();
        let heads = Heads::open(dir.path(), clock.clone()).unwrap();
        let of = |writer: String, number| Head { writer, ..head(number) };
        heads.keep(vec![head(1), of("web-1.refusals".to_owned(), 1)]);
        let made_up = |answer: u64| {
            (0..100).map(|n| of(format!("made up {answer} {n}"), 1)).collect::<Vec<_>>()
        };
        for answer in 0..100 {
            heads.keep(made_up(answer));
        }
        for number in 1..2000 {
            heads.keep(vec![of("made up 0 0".to_owned(), number)]);
        }
        let kept = lock(&heads.state).heads.clone();
        assert!(kept.len() < 2 * KEPT, "{}", kept.len());
        assert_eq!(kept[0].head, head(1));
        // Neither does one that tells just as much.
        for number in 2..3000 {
            clock.step(20 * 60_000);
            heads.keep(vec![head(number), of("web-1.refusals".to_owned(), number)]);
        }
        let kept = lock(&heads.state).heads.clone();
        let of_one = kept.iter().filter(|kept| kept.head.writer == "web-1").count();
        assert!(of_one > 700, "{of_one}");
    }
}
