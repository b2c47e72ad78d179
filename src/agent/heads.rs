//! Where the audit chains ended, kept where only the agent writes: whoever rewrites or cuts a
//! chain afterwards, the controller included, cannot make these agree.
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "its own state")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::lock;
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::link::Head;

/// How many of the newest are kept, and how many in all.
const NEWEST: usize = 100;
const KEPT: usize = 1000;
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
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Kept {
    /// When it was told, in milliseconds since 1970.
    at: u64,
    #[serde(flatten)]
    head: Head,
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
        Ok(Self { path, clock, state: Mutex::new(State { heads, is_new: false }) })
    }

    /// Remembers `heads`, and tells of what cannot be.
    pub(super) fn keep(&self, heads: Vec<Head>) {
        if heads.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        for head in heads {
            let same = |kept: &&Kept| kept.head.writer == head.writer;
            if let Some(last) = state.heads.iter().rev().find(same) {
                if last.head == head {
                    continue;
                }
                if head.number <= last.head.number {
                    tracing::error!(
                        writer = head.writer,
                        kept = last.head.number,
                        told = head.number,
                        "the audit log ends before where it ended earlier, or otherwise: it was \
                         cut, rewritten or restored; compare it with the file of heads"
                    );
                }
            }
            state.heads.push(Kept { at: self.clock.wall(), head });
            state.is_new = true;
        }
        thin(&mut state.heads);
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
        if let Err(error) = replace(&self.path, text.as_bytes()) {
            tracing::error!(%error, "cannot keep where the audit log ends");
            lock(&self.state).is_new = true;
        }
    }
}

/// Keeps the newest, and of the older ones the last of each hour.
fn thin(heads: &mut Vec<Kept>) {
    let old = heads.len().saturating_sub(NEWEST);
    let mut index = 0;
    let hours: Vec<_> =
        heads.iter().map(|kept| (kept.head.writer.clone(), kept.at / HOUR)).collect();
    heads.retain(|_| {
        let here = index;
        index += 1;
        here >= old || hours[here] != hours[here + 1]
    });
    let surplus = heads.len().saturating_sub(KEPT);
    heads.drain(..surplus);
}

/// Puts a whole file in the place of another, or leaves that as it was.
pub(super) fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;

    let new = path.with_extension("new");
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
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
        assert!(kept.len() <= KEPT && kept.len() > 900, "{}", kept.len());
        let numbers: Vec<u64> = kept.iter().map(|kept| kept.head.number).collect();
        assert_eq!(numbers[numbers.len() - NEWEST..], (2901..=3000).collect::<Vec<_>>());
        assert!(numbers[0] < 1000, "{}", numbers[0]);
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
}
