//! What the agent remembers on its own disk: jobs, content and managed cells.
//!
//! A job is a file of lines, each synced before what it announces is begun. A line that was torn
//! by a crash announces nothing. The file lies in `open` until nothing is left to do about the
//! job, then in `done`. Small contents ride in the lines, large ones lie in `blobs`.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cell::{Blobs, Cell, Value};
use super::plan::{Change, Plan};
use super::want::Act;
use crate::error::{Error, ErrorBody, Kind, Result};
use crate::job::Outcome;

mod amends;
mod contents;
mod errand;
mod managed;
mod prune;

pub use amends::Amendment;
pub(super) use contents::inline;
pub(super) use errand::{Answer, Errand, Met, Part};
use errand::{End, Handed};
pub use prune::Bounds;

/// What changes wait for, so that there is one at a time. No job can be called so.
pub(super) const HOST: &str = ".host";
/// What the one agent of this journal holds for as long as it lives.
const AGENT: &str = ".agent";
/// How long a process may have a copy of an agent's locks that the agent was killed while starting:
/// until it is a program of its own.
const BIRTH: Duration = Duration::from_secs(1);
/// How often it is looked whether it is: flock(2) waits for ever or not at all.
const PACE: Duration = Duration::from_millis(20);
/// The form of everything below the journal's directory.
const VERSION: &str = "1\n";

/// A lock that is held. Commands are given it and hold it as well, so that whoever takes over
/// after a crash waits for those that are still running before it looks at what they did.
pub(super) struct Turn(File);

impl Drop for Turn {
    /// What a command left running on purpose has a copy of the lock, and shall not keep it.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

impl AsFd for Turn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Journal {
    dir: Arc<Path>,
    /// Whether another version of OSAPI wrote it, in a form unknown here.
    is_foreign: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    Planned(Box<Planned>),
    /// The act is going to be done by the process group of `pid`, which has not begun yet and
    /// never begins without this line. `start` tells it from a later one with the same number.
    Started {
        pid: i32,
        start: u64,
    },
    /// A unit of the service manager is going to do a part of it, and answers here.
    Handed(Box<Errand>),
    /// What came of the errand of that number.
    Answered {
        number: u32,
        answer: Answer,
    },
    /// Nobody does the errand of that number, or does any more of it: whoever comes to do it now
    /// comes too late.
    Revoked {
        number: u32,
    },
    /// Another process goes on with it, because the one that began did not get to the end.
    Resumed,
    /// It was brought about in full, but whoever finished it could not tell the answer.
    Applied,
    /// From here on the only way is back.
    Back(Back),
    /// The answer to the job. Whoever asks again gets the same.
    Finished {
        outcome: Outcome,
        at: At,
    },
    Confirmed {
        /// The job that did it.
        by: String,
    },
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

/// When a line was written.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct At {
    pub(super) boot: String,
    /// Seconds since that boot.
    pub(super) uptime: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Back {
    pub(super) why: ErrorBody,
    /// How many steps were begun; the others need not be taken back.
    pub(super) steps: usize,
    /// The job that asked for it, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Work {
    Plan(Plan),
    Act(Act),
}

impl Work {
    pub(super) fn is_plan(&self) -> bool {
        matches!(self, Self::Plan(_))
    }
}

/// What became of a job so far.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) planned: Option<Box<Planned>>,
    /// The process group of the act, and when its leader started.
    pub(super) started: Option<(i32, u64)>,
    /// What was given to a unit last.
    pub(super) handed: Option<Handed>,
    pub(super) resumed: u32,
    pub(super) applied: bool,
    pub(super) back: Option<Back>,
    pub(super) outcome: Option<Outcome>,
    pub(super) ended: Option<At>,
    /// The job that confirmed it.
    pub(super) confirmed: Option<String>,
}

impl Entry {
    /// Whether the change stands and is taken back unless somebody confirms it.
    pub(super) fn waits(&self) -> bool {
        let has_deadline = self.planned.as_ref().is_some_and(|planned| planned.deadline.is_some());
        let stands = self.applied || matches!(self.outcome, Some(Outcome::Done { .. }));
        has_deadline && stands && self.back.is_none() && self.confirmed.is_none()
    }

    /// Whether nothing is left to do about it.
    pub(super) fn is_closed(&self) -> bool {
        self.outcome.is_some() && !self.waits()
    }

    fn add(&mut self, event: Event) {
        match event {
            Event::Planned(planned) => self.planned = Some(planned),
            Event::Started { pid, start } => self.started = Some((pid, start)),
            Event::Handed(errand) => self.handed = Some(Handed { errand: *errand, end: None }),
            Event::Answered { number, answer } => self.end(number, End::Answered(answer)),
            Event::Revoked { number } => self.end(number, End::Revoked),
            Event::Resumed => self.resumed += 1,
            Event::Applied => self.applied = true,
            // What was answered before no longer holds.
            Event::Back(back) => (self.back, self.outcome) = (Some(back), None),
            Event::Finished { outcome, at } => {
                (self.outcome, self.ended) = (Some(outcome), Some(at));
            }
            Event::Confirmed { by } => self.confirmed = Some(by),
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
    /// What `origin` names, where it is small.
    #[serde(default, skip_serializing_if = "Blobs::is_empty", with = "inline")]
    pub(super) blobs: Blobs,
}

impl Journal {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        for name in ["open", "done", "tell", "blobs", "managed", "locks", "scratch"] {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(dir.join(name)).map_err(failed)?;
        }
        let mut journal = Self { dir: dir.into(), is_foreign: false };
        journal.is_foreign = match fs::read(dir.join("version")) {
            Ok(version) => version != VERSION.as_bytes(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                journal.put("version", VERSION.as_bytes())?;
                false
            }
            Err(error) => return Err(failed(error)),
        };
        if !journal.is_foreign && !dir.join("key").exists() {
            let mut key = [0; 32];
            rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
                .map_err(failed)?;
            journal.put("key", &key)?;
        }
        Ok(journal)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Refuses names that mean something in a path or to the service manager.
    pub(super) fn check(job: &str) -> Result<()> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !job.is_empty() && job.len() <= 128 && job.bytes().all(is_plain) {
            return Ok(());
        }
        Err(Error::new(Kind::InvalidInput, format!("{job:?} is no job's name")))
    }

    /// Waits for its turn to be the only one with the lock called `name`.
    pub(super) fn lock(&self, name: &str) -> Result<Turn> {
        let file = self.lock_file(name)?;
        file.lock().map_err(failed)?;
        Ok(Turn(file))
    }

    /// The same, unless somebody else has it.
    fn try_lock(&self, name: &str) -> Result<Option<Turn>> {
        let file = self.lock_file(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Turn(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        if self.is_foreign {
            let dir = self.dir.display();
            let message = format!("another version of OSAPI keeps the journal in {dir}");
            return Err(Error::new(Kind::HostFailed, message));
        }
        let mut options = private();
        options.write(true).truncate(false);
        options.open(self.dir.join("locks").join(name)).map_err(failed)
    }

    /// What keeps a second agent away for as long as it is held.
    pub(super) fn agent(&self) -> Result<Turn> {
        let until = Instant::now() + BIRTH;
        loop {
            if let Some(turn) = self.try_lock(AGENT)? {
                return Ok(turn);
            }
            if Instant::now() >= until {
                let dir = self.dir.display();
                let message = format!("another agent works with {dir}; end it first");
                return Err(Error::new(Kind::Conflict, message));
            }
            std::thread::sleep(PACE);
        }
    }

    /// The jobs about which something may be left to do, oldest first as far as names tell.
    pub(super) fn open_jobs(&self) -> Result<Vec<String>> {
        let mut jobs = Vec::new();
        for file in fs::read_dir(self.dir.join("open")).map_err(failed)? {
            jobs.push(file.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        jobs.sort();
        Ok(jobs)
    }

    pub(super) fn load(&self, job: &str) -> Result<Entry> {
        Self::check(job)?;
        for place in ["open", "done"] {
            match fs::read(self.dir.join(place).join(job)) {
                Ok(text) => return Entry::parse(job, &text),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(Entry::default())
    }

    /// The plan of a job that was applied and not taken back.
    pub(super) fn applied(&self, job: &str) -> Result<Plan> {
        let entry = self.load(job)?;
        let stands = entry.applied || matches!(entry.outcome, Some(Outcome::Done { .. }));
        match entry.planned.map(|planned| planned.work) {
            Some(Work::Plan(mut plan)) if stands && entry.back.is_none() => {
                job.clone_into(&mut plan.job);
                Ok(plan)
            }
            _ => Err(Error::new(Kind::NotFound, format!("there is nothing to undo of job {job}"))),
        }
    }

    /// What `job` set out to do, where that was a change and is remembered.
    pub(super) fn planned(&self, job: &str) -> Option<Plan> {
        match self.load(job).ok()?.planned?.work {
            Work::Plan(plan) => Some(plan),
            Work::Act(_) => None,
        }
    }

    /// Adds a line to what is known of a job about which something is left to do.
    pub(super) fn write(&self, job: &str, event: &Event) -> Result<()> {
        Self::check(job)?;
        let path = self.dir.join("open").join(job);
        let is_new = !path.exists();
        let mut file = private().append(true).open(&path).map_err(failed)?;
        file.write_all(&line(event)?).and_then(|()| file.sync_data()).map_err(failed)?;
        if is_new { self.sync("open") } else { Ok(()) }
    }

    /// Notes the answer to a job that was not begun, or had nothing to do.
    pub(super) fn answer(&self, job: &str, event: &Event) -> Result<()> {
        Self::check(job)?;
        if self.dir.join("open").join(job).exists() {
            self.write(job, event)?;
            return self.close(job);
        }
        let mut options = private();
        options.write(true).truncate(true);
        let mut file = options.open(self.dir.join("done").join(job)).map_err(failed)?;
        file.write_all(&line(event)?).and_then(|()| file.sync_data()).map_err(failed)?;
        self.drop_locks(job);
        self.sync("done")
    }

    fn drop_locks(&self, job: &str) {
        let _ = fs::remove_file(self.dir.join("locks").join(job));
        self.drop_units(job);
    }

    /// Makes a change permanent that waits for this, because the job `by` says so. Says whether
    /// it was that job which did it.
    pub(super) fn confirm(&self, job: &str, by: &str) -> Result<bool> {
        let _turn = self.lock(HOST)?;
        let entry = self.load(job)?;
        if let Some(first) = entry.confirmed {
            return Ok(first == by);
        }
        if !entry.waits() {
            let message = format!("job {job} does not wait for confirmation");
            return Err(Error::new(Kind::Conflict, message));
        }
        self.write(job, &Event::Confirmed { by: by.to_owned() })?;
        self.unmark(job);
        // Whoever delivers the job again may still need it for the answer.
        if entry.outcome.is_some() {
            self.close(job)?;
        }
        Ok(true)
    }

    /// Files `job` away. Should a crash bring it back, it is filed away again.
    pub(super) fn close(&self, job: &str) -> Result<()> {
        self.drop_locks(job);
        match fs::rename(self.dir.join("open").join(job), self.dir.join("done").join(job)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Where a program that looks at the host may put what it needs for that.
    pub(super) fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// A secret that nobody but the agent's user can read.
    pub(super) fn key(&self) -> Result<Vec<u8>> {
        fs::read(self.dir.join("key")).map_err(failed)
    }

    /// Puts a file in place, whole or not at all.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let temporary = path.with_file_name(".new");
        let mut file = private().write(true).truncate(true).open(&temporary).map_err(failed)?;
        file.write_all(bytes).and_then(|()| file.sync_data()).map_err(failed)?;
        fs::rename(&temporary, path).map_err(failed)
    }

    fn sync(&self, dir: &str) -> Result<()> {
        File::open(self.dir.join(dir)).and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

impl Entry {
    fn parse(job: &str, text: &[u8]) -> Result<Self> {
        let mut entry = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            // No part of a line is JSON, so what is not was torn.
            let Ok(event) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
            entry.add(serde_json::from_value(event).map_err(|error| {
                let message = format!("another version of OSAPI keeps job {job}");
                Error::new(Kind::HostFailed, message).because(error)
            })?);
        }
        Ok(entry)
    }
}

/// A line between two newlines, because one that was torn must not swallow it.
fn line(event: &Event) -> Result<Vec<u8>> {
    let mut line = vec![b'\n'];
    serde_json::to_writer(&mut line, event).map_err(|error| failed(std::io::Error::from(error)))?;
    line.push(b'\n');
    Ok(line)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

fn failed(error: impl Into<std::io::Error>) -> Error {
    let error = error.into();
    let kind = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::Full,
        _ => Kind::Unavailable,
    };
    Error::new(kind, format!("cannot write the agent's journal: {error}")).because(error)
}
