//! What one transaction does to the tables.

use std::time::Duration;

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, TableError, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::time::{Moment, Time};
use super::{CHANGES, RECORDS, live, millis};
use crate::error::{Error, Kind};
use crate::job::{decode, encode};
use crate::store::audit::{Chain, Ends, Note, Tail};
use crate::store::{Bounds, Event, Expect, Revision, Step, Write};

/// (end of life in the store's time, revision) -> key: what to sweep next.
const ENDS: TableDefinition<(u64, u64), &str> = TableDefinition::new("ends");
/// number -> (when it was written, in the store's time; the link)
pub(super) const REQUESTS: TableDefinition<u64, (u64, &[u8])> = TableDefinition::new("requests");
pub(super) const REFUSALS: TableDefinition<u64, (u64, &[u8])> = TableDefinition::new("refusals");
const STATE: TableDefinition<(), &[u8]> = TableDefinition::new("state");

/// How many records or links one transaction drops along the way.
const SWEEP: usize = 1024;
/// How long a watch that resumes still hears of a deletion.
const TOMBSTONE: Duration = Duration::from_hours(1);
/// What the tables need for a record beside its key and value: about two more rows of keys.
const ROW: u64 = 96;

/// What the store knows of itself, as of one transaction.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct State {
    /// Counts the transactions, so that it can be told whether one took effect.
    pub(super) serial: u64,
    pub(super) revision: Revision,
    /// Of the last link of either chain.
    number: u64,
    pub(super) time: Moment,
    /// What the records take, tombstones included.
    pub(super) records: u64,
    requests: Tail,
    refusals: Tail,
}

impl State {
    pub(super) fn new(writer: &str) -> Self {
        Self {
            serial: 0,
            revision: 0,
            number: 0,
            time: Moment::default(),
            records: 0,
            requests: Tail::new(Chain::Requests, writer),
            refusals: Tail::new(Chain::Refusals, writer),
        }
    }

    pub(super) fn ends(&self) -> Ends {
        Ends {
            stub: self.requests.stub.clone(),
            head: self.requests.head.clone(),
            refusals_stub: self.refusals.stub.clone(),
            refusals_head: self.refusals.head.clone(),
        }
    }

    /// What the database has; nothing in a new one.
    pub(super) fn read(txn: &ReadTransaction) -> Result<Option<Self>, redb::Error> {
        let table = match txn.open_table(STATE) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        table.get(())?.map(|row| decode(row.value()).map_err(corrupt)).transpose()
    }

    /// Whether there is anything between two states that is worth a commit.
    pub(super) fn differs(&self, before: &Self) -> bool {
        (self.revision, self.number, self.records)
            != (before.revision, before.number, before.records)
    }

    /// Bytes that the audit log takes.
    pub(super) fn audit(&self) -> u64 {
        self.requests.bytes + self.refusals.bytes
    }
}

/// What a transaction did, which counts once it is durable.
pub(super) struct Applied {
    pub(super) state: State,
    pub(super) results: Vec<Result<Revision, Error>>,
    pub(super) events: Vec<Event>,
    pub(super) steps: u64,
    pub(super) bytes: u64,
}

pub(super) struct Tables<'txn> {
    records: Table<'txn, &'static str, (u64, u64, &'static [u8])>,
    changes: Table<'txn, u64, &'static str>,
    ends: Table<'txn, (u64, u64), &'static str>,
    requests: Table<'txn, u64, (u64, &'static [u8])>,
    refusals: Table<'txn, u64, (u64, &'static [u8])>,
    stored: Table<'txn, (), &'static [u8]>,
    now: u64,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction, now: u64) -> Result<Self, redb::Error> {
        Ok(Self {
            records: txn.open_table(RECORDS)?,
            changes: txn.open_table(CHANGES)?,
            ends: txn.open_table(ENDS)?,
            requests: txn.open_table(REQUESTS)?,
            refusals: txn.open_table(REFUSALS)?,
            stored: txn.open_table(STATE)?,
            now,
        })
    }

    pub(super) fn store(&mut self, state: &State) -> Result<(), redb::Error> {
        self.stored.insert((), encode(state).map_err(corrupt)?.as_ref())?;
        Ok(())
    }

    /// Applies every step that may be, and `extra` notes with them. Nothing to do is `events` and
    /// links alike staying as they were.
    pub(super) fn apply<'a>(
        &mut self,
        last: &State,
        steps: impl Iterator<Item = &'a Step>,
        extra: &[Note],
        time: &Time,
        bounds: &Bounds,
    ) -> Result<Applied, redb::Error> {
        let mut done = Applied {
            state: last.clone(),
            results: Vec::new(),
            events: Vec::new(),
            steps: 0,
            bytes: 0,
        };
        self.sweep(&mut done)?;
        let mut notes: Vec<&Note> = extra.iter().collect();
        for step in steps {
            let result = self.step(step, bounds, &mut done)?;
            if result.is_ok() {
                done.steps += 1;
                notes.extend(&step.notes);
            }
            done.results.push(result);
        }
        let (idle, requests): (Vec<_>, Vec<_>) = notes.into_iter().partition(|note| note.is_idle());
        let wall = time.wall();
        self.link(Chain::Requests, &requests, wall, bounds, &mut done)?;
        self.link(Chain::Refusals, &idle, wall, bounds, &mut done)?;
        done.state.serial += 1;
        done.state.time = time.moment();
        self.store(&done.state)?;
        Ok(done)
    }

    fn step(
        &mut self,
        step: &Step,
        bounds: &Bounds,
        done: &mut Applied,
    ) -> Result<Result<Revision, Error>, redb::Error> {
        if let Some(key) = self.conflict(step)? {
            return Ok(Err(Error::new(Kind::Conflict, format!("{key} has changed"))));
        }
        let puts = step.writes.iter().filter(|write| write.value.is_some());
        let size: u64 = puts.map(cost).sum();
        // What is kept back lets work that was accepted be ended.
        let kept_back = if step.is_owed { 0 } else { bounds.database / 16 };
        let used = done.state.records + done.state.audit();
        if size > 0 && used + size > bounds.database - kept_back {
            let message = "the state store has as much as it may hold; delete jobs";
            return Ok(Err(Error::new(Kind::Full, message)));
        }
        for write in &step.writes {
            self.write(write, done)?;
        }
        Ok(Ok(done.state.revision))
    }

    /// The first key that is not as the step expects it.
    fn conflict(&self, step: &Step) -> Result<Option<String>, redb::Error> {
        for write in &step.writes {
            if write.expect == Expect::Anything {
                continue;
            }
            let row = self.records.get(write.key.as_str())?;
            let current = row.and_then(|row| {
                let (revision, end, _) = row.value();
                (end > self.now).then_some(revision)
            });
            let holds = match write.expect {
                Expect::Anything => true,
                Expect::Absent => current.is_none(),
                Expect::Revision(expected) => current == Some(expected),
            };
            if !holds {
                return Ok(Some(write.key.clone()));
            }
        }
        Ok(None)
    }

    fn write(&mut self, write: &Write, done: &mut Applied) -> Result<(), redb::Error> {
        let existed = self.remove(&write.key, &mut done.state)?;
        let Some(value) = &write.value else {
            if existed {
                self.bury(&write.key, done)?;
            }
            return Ok(());
        };
        done.state.revision += 1;
        let (key, revision) = (write.key.as_str(), done.state.revision);
        let end = write
            .lifetime
            .map_or(u64::MAX, |lifetime| self.now.saturating_add(millis(lifetime).max(1000)));
        self.changes.insert(revision, key)?;
        if end < u64::MAX {
            self.ends.insert((end, revision), key)?;
        }
        self.records.insert(key, (revision, end, value.as_ref()))?;
        done.state.records += cost(write);
        done.bytes += (key.len() + value.len()) as u64;
        let entry = live(key, (revision, u64::MAX, value.as_ref()), 0);
        done.events.extend(entry.map(Event::Put));
        Ok(())
    }

    /// Lets those who watch hear of a deletion, for a while.
    fn bury(&mut self, key: &str, done: &mut Applied) -> Result<(), redb::Error> {
        done.state.revision += 1;
        let revision = done.state.revision;
        let end = self.now.saturating_add(millis(TOMBSTONE));
        self.changes.insert(revision, key)?;
        self.ends.insert((end, revision), key)?;
        done.state.records += size(key, 0);
        done.events.push(Event::Delete { key: key.to_owned(), revision });
        Ok(())
    }

    fn remove(&mut self, key: &str, state: &mut State) -> Result<bool, redb::Error> {
        let Some(row) = self.records.remove(key)? else { return Ok(false) };
        let (revision, end, value) = row.value();
        self.changes.remove(revision)?;
        self.ends.remove((end, revision))?;
        state.records = state.records.saturating_sub(size(key, value.len()));
        Ok(true)
    }

    /// Ends what has outlived its time: records, which leave a tombstone, and tombstones.
    fn sweep(&mut self, done: &mut Applied) -> Result<(), redb::Error> {
        let due = self.ends.range(..(self.now, 0))?.take(SWEEP);
        let due = due.map(|row| {
            let (end, key) = row?;
            Ok((end.value(), key.value().to_owned()))
        });
        for ((end, revision), key) in due.collect::<Result<Vec<_>, redb::Error>>()? {
            let row = self.records.get(key.as_str())?.map(|row| row.value().0);
            if row == Some(revision) {
                self.remove(&key, &mut done.state)?;
                self.bury(&key, done)?;
            } else {
                self.changes.remove(revision)?;
                self.ends.remove((end, revision))?;
                done.state.records = done.state.records.saturating_sub(size(&key, 0));
            }
        }
        Ok(())
    }

    /// Adds a link of these notes to a chain, once that has room for it.
    fn link(
        &mut self,
        chain: Chain,
        notes: &[&Note],
        wall: u64,
        bounds: &Bounds,
        done: &mut Applied,
    ) -> Result<(), redb::Error> {
        if notes.is_empty() {
            return Ok(());
        }
        let state = &mut done.state;
        let (table, tail, bound) = match chain {
            Chain::Requests => {
                (&mut self.requests, &mut state.requests, bounds.audit - bounds.audit / 4)
            }
            Chain::Refusals => (&mut self.refusals, &mut state.refusals, bounds.audit / 4),
        };
        let youngest = self.now.saturating_sub(millis(bounds.audit_age));
        for _ in 0..SWEEP {
            let Some(oldest) = table.first()? else { break };
            let (number, (at, stored)) = (oldest.0.value(), oldest.1.value());
            if tail.bytes <= bound && at >= youngest {
                break;
            }
            tail.drop_oldest(number, stored);
            drop(oldest);
            table.remove(number)?;
        }
        state.number += 1;
        let stored = tail.add(state.number, wall, notes).map_err(corrupt)?;
        table.insert(state.number, (self.now, stored.as_ref()))?;
        done.bytes += stored.len() as u64;
        Ok(())
    }
}

fn cost(write: &Write) -> u64 {
    size(&write.key, write.value.as_ref().map_or(0, bytes::Bytes::len))
}

/// What a record takes of the file. Its key is in three tables, whose pages are seldom full.
fn size(key: &str, value: usize) -> u64 {
    ((3 * key.len() + value) as u64 + ROW) * 7 / 5
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn corrupt(error: Error) -> redb::Error {
    redb::Error::Corrupted(error.to_string())
}
