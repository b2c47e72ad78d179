//! Everything a provider may see of a host. Nothing here changes one.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::Serialize;

use super::cell::{Blobs, Cell, Value};
use super::command;
use super::journal::{Journal, Record};
use super::plan::{Plan, Set};
use super::root::Root;
use crate::error::{Error, Kind, Result};

#[derive(Clone, Debug)]
pub struct View {
    pub(super) root: Root,
    journal: Journal,
    /// What a plan will have assigned, seen by whatever is planned after it.
    pub(super) ahead: BTreeMap<Cell, Value>,
    blobs: Blobs,
}

/// A command that only looks. The constants of this type are all that a view can run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query {
    pub(super) program: &'static str,
    pub(super) args: &'static [&'static str],
}

impl View {
    pub(super) fn new(root: Root, journal: Journal) -> Self {
        Self { root, journal, ahead: BTreeMap::new(), blobs: Blobs::new() }
    }

    /// The host as it will be once `plan` is applied.
    pub fn after(&self, plan: &Plan) -> Self {
        let mut view = self.clone();
        view.blobs.extend(plan.blobs.clone());
        plan.sets().for_each(|set| view.assume(set));
        view
    }

    pub(super) fn assume(&mut self, set: &Set) {
        self.ahead.insert(set.cell.clone(), set.to.clone());
    }

    /// What `cell` holds.
    pub fn value(&self, cell: &Cell) -> Result<Value> {
        if let Some(value) = self.ahead.get(cell) {
            return Ok(value.clone());
        }
        cell.kind().observe(self)
    }

    /// The bytes behind a value that only names them. They may be too many for memory.
    pub(super) fn open(&self, cell: &Cell) -> Result<Box<dyn Read + '_>> {
        if let Some(content) = self.ahead.get(cell).and_then(Value::content) {
            return match self.blobs.get(content) {
                Some(bytes) => Ok(Box::new(&bytes[..])),
                None => Ok(Box::new(self.journal.content(content)?)),
            };
        }
        cell.kind().open(self)
    }

    pub fn exists(&self, path: &str) -> bool {
        match self.ahead.get(&Cell::Node(path.to_owned())) {
            Some(value) => *value != Value::Absent,
            None => self.root.open(path, OFlags::PATH).is_ok(),
        }
    }

    pub fn read(&self, path: &str) -> Result<String> {
        let mut text = String::new();
        let mut file = self.open(&Cell::Node(path.to_owned()))?;
        file.read_to_string(&mut text).map_err(|error| failed(path, error))?;
        Ok(text)
    }

    /// What OSAPI remembers of `cell`, if it has ever assigned it.
    pub fn record(&self, cell: &Cell) -> Option<Record> {
        self.journal.record(cell)
    }

    /// Which of the cells that OSAPI has assigned hold something else now.
    pub fn drift(&self) -> Result<Vec<Drift>> {
        let mut drift = Vec::new();
        for record in self.journal.records() {
            let found = self.value(&record.cell)?;
            if found != record.value {
                let (expected, found) = (record.value.public(), found.public());
                drift.push(Drift { cell: record.cell, expected, found, job: record.job });
            }
        }
        Ok(drift)
    }

    /// What a finished job did.
    pub fn applied(&self, job: &str) -> Result<Plan> {
        self.journal.applied(job)
    }

    pub(super) fn query(&self, query: Query, args: &[&str]) -> Result<String> {
        if let Some(arg) = args.iter().find(|arg| arg.starts_with('-')) {
            return Err(Error::new(Kind::InvalidInput, format!("{arg:?} looks like an option")));
        }
        let path = self.root.command(query.program)?;
        let args: Vec<&str> = query.args.iter().chain(args).copied().collect();
        let scratch = self.journal.scratch();
        command::query(&path, &args, &scratch, Duration::from_secs(30))?.success(query.program)
    }

    /// The name that `table` gives `id`, or `id` itself where nobody has it.
    pub(super) fn name(&self, table: &str, id: &str) -> Result<String> {
        let fields = self.entry(table, 2, id)?;
        Ok(fields.and_then(|fields| fields.into_iter().next()).unwrap_or_else(|| id.to_owned()))
    }

    /// The number that `table` gives `name`, or `name` itself where it is a number.
    pub(super) fn id(&self, table: &str, name: &str) -> Result<u32> {
        let fields = self.entry(table, 0, name)?;
        let id = fields.as_ref().and_then(|fields| fields.get(2)).map_or(name, String::as_str);
        id.parse().map_err(|_| Error::new(Kind::NotFound, format!("{name} is not in {table}")))
    }

    /// The first line of a colon-separated table that has `key` in `column`.
    pub(super) fn entry(
        &self,
        table: &str,
        column: usize,
        key: &str,
    ) -> Result<Option<Vec<String>>> {
        let text = self.read(table)?;
        let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let line = lines.find(|fields| fields.get(column) == Some(&key));
        Ok(line.map(|fields| fields.into_iter().map(str::to_owned).collect()))
    }
}

/// A cell that does not hold what OSAPI last gave it.
#[derive(Debug, JsonSchema, PartialEq, Serialize)]
pub struct Drift {
    pub cell: Cell,
    pub expected: Value,
    pub found: Value,
    /// The job that assigned it last.
    pub job: String,
}

pub(super) fn failed(
    what: impl std::fmt::Debug,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::new(Kind::HostFailed, format!("cannot read {what:?}: {error}")).because(error)
}
