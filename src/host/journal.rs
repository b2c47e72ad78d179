//! What the agent remembers on its own disk: jobs, content and managed cells.
//!
//! A job is a file of lines, each synced before what it announces is begun. A line that was torn
//! by a crash announces nothing. The file lies in `open` until nothing is left to do about the
//! job, then in `done`.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Digest, Value};
use super::plan::{Change, Plan};
use super::view::View;
use super::want::Act;
use crate::error::{Error, ErrorBody, Kind, Result};
use crate::job::Outcome;

/// What changes wait for, so that there is one at a time. No job can be called so.
pub(super) const HOST: &str = ".host";

/// A lock that is held. Commands are given it and hold it as well, so that whoever takes over
/// after a crash waits for those that are still running before it looks at what they did.
pub(super) struct Turn(File);

impl AsFd for Turn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Journal {
    dir: PathBuf,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    Planned(Planned),
    /// Another process goes on with it, because the one that began did not get to the end.
    Resumed,
    /// It was brought about in full, but whoever finished it could not tell the answer.
    Applied,
    /// From here on the only way is back.
    Back(Back),
    /// The answer to the job. Whoever asks again gets the same.
    Finished(Outcome),
    Confirmed,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Planned {
    pub(super) op: String,
    pub(super) work: Work,
    pub(super) changes: Vec<Change>,
    /// How long one step may last.
    pub(super) limit: Duration,
    pub(super) boot: String,
    /// Seconds on this boot's clock by which the job must be confirmed.
    pub(super) deadline: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Back {
    pub(super) why: ErrorBody,
    /// How many steps were begun; the others need not be taken back.
    pub(super) steps: usize,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    Plan(Plan),
    Act(Act),
}

/// What became of a job so far.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) planned: Option<Planned>,
    pub(super) resumed: u32,
    pub(super) applied: bool,
    pub(super) back: Option<Back>,
    pub(super) outcome: Option<Outcome>,
    pub(super) confirmed: bool,
}

impl Entry {
    /// Whether the change stands and is taken back unless somebody confirms it.
    pub(super) fn waits(&self) -> bool {
        let has_deadline = self.planned.as_ref().is_some_and(|planned| planned.deadline.is_some());
        let stands = self.applied || matches!(self.outcome, Some(Outcome::Done { .. }));
        has_deadline && stands && self.back.is_none() && !self.confirmed
    }

    /// Whether nothing is left to do about it.
    pub(super) fn is_closed(&self) -> bool {
        self.outcome.is_some() && !self.waits()
    }

    fn add(&mut self, event: Event) {
        match event {
            Event::Planned(planned) => self.planned = Some(planned),
            Event::Resumed => self.resumed += 1,
            Event::Applied => self.applied = true,
            // What was answered before no longer holds.
            Event::Back(back) => (self.back, self.outcome) = (Some(back), None),
            Event::Finished(outcome) => self.outcome = Some(outcome),
            Event::Confirmed => self.confirmed = true,
        }
    }
}

/// What OSAPI remembers of a cell it has assigned.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    pub cell: Cell,
    pub value: Value,
    /// What the cell held before OSAPI first assigned it.
    pub origin: Value,
    /// Whether nobody else is supposed to change it.
    pub owned: bool,
    /// The job that assigned it last.
    pub job: String,
}

impl Journal {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        for name in ["open", "done", "blobs", "managed", "locks", "scratch"] {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(dir.join(name)).map_err(failed)?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Refuses names that mean something in a path or to the service manager.
    pub(super) fn check(job: &str) -> Result<()> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !job.is_empty() && job.bytes().all(is_plain) {
            return Ok(());
        }
        Err(Error::new(Kind::InvalidInput, format!("{job:?} is no job's name")))
    }

    /// Waits for its turn to be the only one with the lock called `name`.
    pub(super) fn lock(&self, name: &str) -> Result<Turn> {
        let path = self.dir.join("locks").join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = file.map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(Turn(file))
    }

    /// The jobs about which something may be left to do.
    pub(super) fn open_jobs(&self) -> Result<Vec<String>> {
        let files = fs::read_dir(self.dir.join("open")).map_err(failed)?;
        files.map(|f| Ok(f.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
    }

    pub(super) fn load(&self, job: &str) -> Result<Entry> {
        let text = match fs::read(self.job(job)?) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Entry::default());
            }
            text => text.map_err(failed)?,
        };
        let mut entry = Entry::default();
        for line in text.split(|byte| *byte == b'\n') {
            // No part of a line is JSON, so what is not was torn.
            let Ok(event) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
            entry.add(serde_json::from_value(event).map_err(|error| {
                let message = format!("another version of OSAPI keeps job {job}");
                Error::new(Kind::Unsupported, message).because(error)
            })?);
        }
        Ok(entry)
    }

    /// The plan of a job that was applied and not taken back.
    pub(super) fn applied(&self, job: &str) -> Result<Plan> {
        let entry = self.load(job)?;
        let stands = entry.applied || matches!(entry.outcome, Some(Outcome::Done { .. }));
        match entry.planned {
            Some(Planned { work: Work::Plan(plan), .. }) if stands && entry.back.is_none() => {
                Ok(plan)
            }
            _ => Err(Error::new(Kind::NotFound, format!("there is nothing to undo of job {job}"))),
        }
    }

    pub(super) fn write(&self, job: &str, event: &Event) -> Result<()> {
        let path = self.job(job)?;
        let is_new = !path.exists();
        let mut line = serde_json::to_vec(event).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        // A torn line must not swallow this one.
        line.insert(0, b'\n');
        let mut file = private().append(true).open(&path).map_err(failed)?;
        file.write_all(&line).and_then(|()| file.sync_data()).map_err(failed)?;
        if is_new { self.sync("open") } else { Ok(()) }
    }

    /// Makes a change permanent that waits for this.
    pub(super) fn confirm(&self, job: &str) -> Result<()> {
        let _turn = self.lock(HOST)?;
        let entry = self.load(job)?;
        if entry.confirmed {
            return Ok(());
        }
        if !entry.waits() {
            let message = format!("job {job} does not wait for confirmation");
            return Err(Error::new(Kind::Conflict, message));
        }
        self.write(job, &Event::Confirmed)?;
        self.close(job)
    }

    /// Files `job` away. Should a crash bring it back, it is filed away again.
    pub(super) fn close(&self, job: &str) -> Result<()> {
        let _ = fs::remove_file(self.dir.join("locks").join(job));
        match fs::rename(self.dir.join("open").join(job), self.dir.join("done").join(job)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Where a program that looks at the host may put what it needs for that.
    pub(super) fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// A secret that nobody but root can read, made when it is first needed.
    pub(super) fn key(&self) -> Result<Vec<u8>> {
        let (path, temporary) = (self.dir.join("key"), self.dir.join(".key"));
        if let Ok(key) = fs::read(&path) {
            return Ok(key);
        }
        let mut key = [0; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| failed(error.into()))?;
        let mut file = private().write(true).truncate(true).open(&temporary).map_err(failed)?;
        file.write_all(&key).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)?;
        Ok(key.to_vec())
    }

    /// Makes sure that everything `plan` needs, in either direction, is on the disk.
    pub(super) fn keep(&self, plan: &Plan, host: &View) -> Result<()> {
        for (digest, bytes) in &plan.blobs {
            self.keep_blob(digest, &mut &bytes[..])?;
        }
        let mut host = host.clone();
        for set in plan.sets() {
            if let Some(digest) = set.from.content().filter(|digest| !self.blob(digest).exists()) {
                self.keep_blob(digest, &mut host.open(&set.cell)?)?;
            }
            if set.to.content().is_some_and(|digest| !self.blob(digest).exists()) {
                let message = format!("the content of {} is no longer kept", set.cell);
                return Err(Error::new(Kind::NotFound, message));
            }
            host.assume(set);
        }
        self.sync("blobs")
    }

    fn keep_blob(&self, digest: &Digest, from: &mut dyn Read) -> Result<()> {
        let (path, temporary) = (self.blob(digest), self.dir.join("blobs/.new"));
        let mut file = private().write(true).truncate(true).open(&temporary).map_err(failed)?;
        std::io::copy(from, &mut file).and_then(|_| file.sync_all()).map_err(failed)?;
        let kept = Digest::of_all(File::open(&temporary).map_err(failed)?).map_err(failed)?;
        if kept != *digest {
            return Err(Error::new(Kind::Conflict, "a file changed while it was being saved"));
        }
        fs::rename(&temporary, &path).map_err(failed)
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.blob(digest).exists()
    }

    pub(super) fn content(&self, digest: &Digest) -> Result<File> {
        File::open(self.blob(digest)).map_err(failed)
    }

    pub(super) fn record(&self, cell: &Cell) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.managed(cell)).ok()?).ok()
    }

    /// Every cell that OSAPI has assigned and not given back.
    pub(super) fn records(&self) -> Vec<Record> {
        let files = fs::read_dir(self.dir.join("managed")).into_iter().flatten().flatten();
        files.filter_map(|f| serde_json::from_slice(&fs::read(f.path()).ok()?).ok()).collect()
    }

    /// Notes what `job` assigned. A cell that is back where it started is nobody's concern.
    ///
    /// It depends on nothing but the plan, so that it can be done again after a crash.
    pub(super) fn remember(&self, job: &str, plan: &Plan) -> Result<()> {
        for set in plan.sets() {
            let path = self.managed(&set.cell);
            if set.to == set.origin {
                let _ = fs::remove_file(path);
                continue;
            }
            let (cell, value, origin) = (set.cell.clone(), set.to.clone(), set.origin.clone());
            let record = Record { cell, value, origin, owned: set.owned, job: job.to_owned() };
            let bytes = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
            let temporary = self.dir.join("managed/.new");
            let mut file = private().write(true).truncate(true).open(&temporary).map_err(failed)?;
            file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
            fs::rename(&temporary, path).map_err(failed)?;
        }
        self.sync("managed")
    }

    fn sync(&self, dir: &str) -> Result<()> {
        File::open(self.dir.join(dir)).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    fn job(&self, job: &str) -> Result<PathBuf> {
        Self::check(job)?;
        let done = self.dir.join("done").join(job);
        Ok(if done.exists() { done } else { self.dir.join("open").join(job) })
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.to_string())
    }

    fn managed(&self, cell: &Cell) -> PathBuf {
        let name = Digest::of(serde_json::to_vec(cell).unwrap_or_default());
        self.dir.join("managed").join(name.to_string())
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

fn failed(error: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, format!("the journal failed: {error}")).because(error)
}
