//! Everything a provider may see of a host. Nothing here changes one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use base64::Engine as _;
use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cell::{Blobs, Cell, Digest, Value};
use super::journal::{Journal, Record};
use super::plan::{Plan, Set};
use super::root::Root;
use crate::error::{Error, Kind, Result};
use crate::job::{Content, Task};

mod install;
mod log;
mod machine;
mod packages;
mod query;
mod unit;

pub use log::Select;
pub use machine::{Capability, Machine, Space};
pub(super) use packages::LOCK_PATIENCE;
pub(super) use query::Query;
pub use unit::{Listed, Unit};

/// How many bytes of a file [`View::read`] takes into memory.
const MAX_READ: u64 = 4 * 1024 * 1024;

#[derive(Clone, Debug)]
pub struct View {
    pub(super) root: Root,
    /// Whether what reaches beyond this process is left to units.
    is_confined: bool,
    journal: Journal,
    /// What a plan will have assigned, seen by whatever is planned after it.
    pub(super) ahead: BTreeMap<Cell, Set>,
    blobs: Blobs,
    /// The job that asks, and what its task brings along.
    job: String,
    objects: Arc<BTreeMap<String, Content>>,
    is_forced: bool,
    labels: Arc<BTreeMap<String, String>>,
}

/// Content from the object store, of which the task pins the digest.
#[derive(Clone, Debug)]
pub struct Object {
    pub(super) digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Where it is small enough to travel with the task. Otherwise it is on the agent's disk.
    pub(super) bytes: Option<Arc<[u8]>>,
}

impl Object {
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

impl View {
    pub(super) fn new(root: Root, journal: Journal, is_confined: bool) -> Self {
        let (ahead, blobs) = (BTreeMap::new(), Blobs::new());
        let (job, objects, labels) = (String::new(), Arc::default(), Arc::default());
        Self { root, is_confined, journal, ahead, blobs, job, objects, is_forced: false, labels }
    }

    /// The same host, with what its agent was told to be labelled with.
    pub(super) fn labelled(self, labels: &Arc<BTreeMap<String, String>>) -> Self {
        Self { labels: labels.clone(), ..self }
    }

    /// The labels that the agent was given in its configuration.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// Whether this is the machine itself, and not a directory that stands for one.
    pub(super) fn is_real(&self) -> bool {
        self.root.is_real()
    }

    /// The same host, as `task` sees it.
    pub(super) fn of_task(mut self, task: &Task) -> Self {
        task.job.clone_into(&mut self.job);
        if !task.objects.is_empty() {
            self.objects = Arc::new(task.objects.clone());
        }
        self.is_forced = task.options.force;
        self
    }

    /// The host as it will be once `plan` is applied.
    pub fn after(&self, plan: &Plan) -> Self {
        let mut view = self.clone();
        view.blobs.extend(plan.blobs.clone());
        plan.sets().for_each(|set| view.assume(set));
        view
    }

    /// The same host, with contents at hand that a plan brings along.
    pub(super) fn bringing(&self, blobs: &Blobs) -> Self {
        let mut view = self.clone();
        view.blobs.extend(blobs.clone());
        view
    }

    pub(super) fn assume(&mut self, set: &Set) {
        self.ahead.insert(set.cell.clone(), set.clone());
    }

    /// Refuses what would take from under a host what it runs on, unless the caller said `force`;
    /// `why` names what is asked for and what would be lost. For rows that are
    /// [guarded](crate::op::Op::guarded).
    pub fn guard(&self, why: impl std::fmt::Display) -> Result<()> {
        if self.is_forced {
            return Ok(());
        }
        Err(Error::new(Kind::Protected, format!("{why}; use force if that is what you want")))
    }

    /// Whether the caller said `force`.
    pub fn is_forced(&self) -> bool {
        self.is_forced
    }

    /// What `cell` holds.
    pub fn value(&self, cell: &Cell) -> Result<Value> {
        if let Some(set) = self.ahead.get(cell) {
            return Ok(set.to.clone());
        }
        cell.kind().observe(self)
    }

    /// The bytes behind a value that only names them. They may be too many for memory.
    pub(super) fn open(&self, cell: &Cell) -> Result<Box<dyn Read + '_>> {
        match self.ahead.get(cell).and_then(|set| set.to.content()) {
            Some(content) => self.content(content),
            None => cell.kind().open(self),
        }
    }

    fn content(&self, content: &Digest) -> Result<Box<dyn Read + '_>> {
        match self.blobs.get(content) {
            Some(bytes) => Ok(Box::new(&bytes[..])),
            None => Ok(Box::new(self.journal.content(content)?)),
        }
    }

    /// Whether there is anything at `path`; links are followed, below the root.
    pub fn exists(&self, path: &str) -> bool {
        match self.ahead.get(&Cell::Node(path.to_owned())) {
            Some(set) => set.to != Value::Absent,
            None => self.root.open(path, OFlags::PATH).is_ok(),
        }
    }

    /// The text of the file at `path`, of at most 4 MiB; links are followed, below the root.
    pub fn read(&self, path: &str) -> Result<String> {
        let bytes = self.read_bytes(path, MAX_READ)?;
        String::from_utf8(bytes)
            .map_err(|_| Error::new(Kind::HostFailed, format!("cannot read {path}: not UTF-8")))
    }

    /// What is in the file at `path`; a file with more than `max` bytes is refused.
    pub fn read_bytes(&self, path: &str, max: u64) -> Result<Vec<u8>> {
        let mut file: Box<dyn Read> =
            match self.ahead.get(&Cell::Node(path.to_owned())).and_then(|set| set.to.content()) {
                Some(content) => self.content(content)?,
                None => {
                    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                    Box::new(File::from(self.root.open(path, flags).map_err(|e| failed(path, e))?))
                }
            };
        let mut bytes = Vec::new();
        file.by_ref().take(max + 1).read_to_end(&mut bytes).map_err(|error| failed(path, error))?;
        if bytes.len() as u64 > max {
            let message = format!("cannot read {path}: it has more than {max} bytes");
            return Err(Error::new(Kind::TooLarge, message));
        }
        Ok(bytes)
    }

    /// What is in the file that `name` leads to without leaving `directory`, links included; one
    /// with more than `max` bytes is refused.
    pub fn read_below(&self, directory: &str, name: &str, max: u64) -> Result<Vec<u8>> {
        let path = format!("{directory}/{name}");
        let fd = self.root.open_below(directory, name).map_err(|error| failed(&path, error))?;
        let mut bytes = Vec::new();
        let read = File::from(fd).take(max + 1).read_to_end(&mut bytes);
        read.map_err(|error| failed(&path, error))?;
        if bytes.len() as u64 > max {
            let message = format!("cannot read {path}: it has more than {max} bytes");
            return Err(Error::new(Kind::TooLarge, message));
        }
        Ok(bytes)
    }

    /// Where the link at `path` points to.
    pub fn read_link(&self, path: &str) -> Result<String> {
        let fd = self.root.open(path, OFlags::PATH | OFlags::NOFOLLOW);
        let target = fd.and_then(|fd| rustix::fs::readlinkat(fd, "", Vec::new()));
        Ok(target.map_err(|error| failed(path, error))?.to_string_lossy().into_owned())
    }

    /// The names in the directory at `path`, sorted; those that are not UTF-8 are left out. A
    /// directory that is not there is empty.
    pub fn list_dir(&self, path: &str) -> Result<Vec<String>> {
        let dir = path.trim_end_matches('/');
        let mut names = std::collections::BTreeSet::new();
        match self.root.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(failed(path, error)),
            Ok(fd) => {
                for entry in rustix::fs::Dir::new(fd).map_err(|error| failed(path, error))? {
                    let entry = entry.map_err(|error| failed(path, error))?;
                    let name = entry.file_name().to_str().unwrap_or(".");
                    if name != "." && name != ".." {
                        names.insert(name.to_owned());
                    }
                }
            }
        }
        for (cell, set) in &self.ahead {
            let Cell::Node(node) = cell else { continue };
            if let Some((parent, name)) = node.rsplit_once('/')
                && parent == dir
            {
                if set.to == Value::Absent {
                    names.remove(name);
                } else {
                    names.insert(name.to_owned());
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    /// The content that the task names `name`.
    pub fn object(&self, name: &str) -> Result<Object> {
        let Some(content) = self.objects.get(name) else {
            let message = format!("there is no object {name:?}; upload it first");
            return Err(Error::new(Kind::NotFound, message));
        };
        let digest = Digest::parse(&content.digest).ok_or_else(|| spoilt(name))?;
        let Some(bytes) = &content.bytes else {
            if !self.journal.has(&digest) {
                let message = format!("the object {name:?} has not been fetched");
                return Err(Error::new(Kind::Unavailable, message));
            }
            return Ok(Object { digest, size: content.size, bytes: None });
        };
        let bytes = base64::engine::general_purpose::STANDARD.decode(bytes);
        let bytes = bytes.map_err(|error| spoilt(name).because(error))?;
        if Digest::of(&bytes) != digest {
            return Err(spoilt(name));
        }
        Ok(Object { digest, size: content.size, bytes: Some(bytes.into()) })
    }

    /// What OSAPI remembers of `cell`, if it has ever assigned it.
    pub fn record(&self, cell: &Cell) -> Option<Record> {
        match self.ahead.get(cell) {
            Some(set) => set.record(&self.job, &self.blobs),
            None => self.journal.record(cell),
        }
    }

    /// The job that assigned `cell` last, where anybody remembers.
    pub(super) fn top(&self, cell: &Cell) -> Option<String> {
        let record = self.record(cell).map(|record| record.job);
        record.or_else(|| self.journal.giver(cell))
    }

    /// What `job` set out to do, where that was a change and is remembered.
    pub(super) fn planned(&self, job: &str) -> Option<Plan> {
        self.journal.planned(job)
    }

    /// Whether OSAPI has had to do with `cell`, as far as it remembers; in the job that asks, too.
    pub fn has_touched(&self, cell: &Cell) -> bool {
        let is_planned = || {
            let plan = self.planned(&self.job);
            plan.is_some_and(|plan| plan.sets().any(|set| set.cell == *cell))
        };
        self.record(cell).is_some() || self.is_given_back(cell) || is_planned()
    }

    /// 32 hexadecimal digits that follow from `parts` and that nobody else can foretell.
    pub(super) fn keyed(&self, parts: &[&str]) -> Result<String> {
        let text = serde_json::json!([self.journal.key()?, parts]).to_string();
        let mut digits = Digest::of(text).as_str().to_owned();
        digits.truncate(32);
        Ok(digits)
    }

    /// Whether OSAPI assigned `cell` once and has given it back, as far as it remembers.
    pub fn is_given_back(&self, cell: &Cell) -> bool {
        let is_marked = self.ahead.contains_key(cell) || self.journal.is_given_back(cell);
        is_marked && self.record(cell).is_none()
    }

    /// Whether `path` is in what OSAPI keeps for itself: the agent's memory, and what else is in
    /// the directory that it shares with the controller's.
    pub fn is_own_state(&self, path: &str) -> bool {
        let own = self.journal.dir();
        let shared = own.parent().filter(|parent| parent.ends_with("osapi"));
        self.root.real(path).starts_with(shared.unwrap_or(own))
    }

    /// Every cell that OSAPI has assigned and not given back, in the order of cells.
    pub fn records(&self) -> Vec<Record> {
        let known = self.journal.records().into_iter();
        let known = known.filter(|record| !self.ahead.contains_key(&record.cell));
        let ahead = self.ahead.values().filter_map(|set| set.record(&self.job, &self.blobs));
        let mut records: Vec<_> = known.chain(ahead).collect();
        records.sort_by(|a, b| a.cell.cmp(&b.cell));
        records
    }

    /// Which of the cells that OSAPI has assigned hold something else now.
    pub fn drift(&self) -> Result<Vec<Drift>> {
        let mut drift = Vec::new();
        for record in self.records() {
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

    /// The name of the account `uid`, or the number itself where nobody has it.
    pub fn user_name(&self, uid: u32) -> Result<String> {
        self.name("/etc/passwd", &uid.to_string())
    }

    /// The name of the group `gid`, or the number itself where nobody has it.
    pub fn group_name(&self, gid: u32) -> Result<String> {
        self.name("/etc/group", &gid.to_string())
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
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Drift {
    pub cell: Cell,
    pub expected: Value,
    pub found: Value,
    /// The job that assigned it last.
    pub job: String,
}

fn spoilt(name: &str) -> Error {
    Error::new(Kind::Internal, format!("the object {name:?} is not what its digest says"))
}

pub(super) fn failed(what: &str, error: impl Into<std::io::Error>) -> Error {
    let error = error.into();
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => Kind::NotFound,
        std::io::ErrorKind::PermissionDenied => {
            let message = format!(
                "cannot read {what} as {}: run the agent with CAP_DAC_READ_SEARCH",
                machine::account()
            );
            return Error::new(Kind::AgentUnprivileged, message).because(error);
        }
        _ => Kind::HostFailed,
    };
    Error::new(kind, format!("cannot read {what}: {error}")).because(error)
}
