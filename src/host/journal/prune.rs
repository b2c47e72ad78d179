//! Forgetting what is over: finished jobs, contents that nobody names, locks of jobs.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::time::Duration;

use super::super::want::Act;
use super::errand::job_of;
use super::managed::GIVEN_BACK;
use super::{At, HOST, Journal, Work, failed};
use crate::error::Result;

/// How much one call removes, so that no change waits for it.
const AT_ONCE: usize = 1000;

/// How long, and how much, is kept of what is over.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub age: Duration,
    /// Of jobs and contents together.
    pub bytes: u64,
    /// How long after its end a job may be delivered again; it is kept that long in any case.
    pub redelivery: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        Self { age: days(30), bytes: 256 * 1024 * 1024, redelivery: days(2) }
    }
}

struct Found {
    name: String,
    /// Seconds since it was last written to, by the wall's clock.
    age: u64,
    size: u64,
}

impl Journal {
    /// Removes finished jobs that are too old or too much, oldest first, and contents that
    /// neither a job nor a managed cell names. `now` is the time of this boot; does nothing while
    /// a change is at work.
    pub(in crate::host) fn prune(&self, bounds: Bounds, now: &At) -> Result<usize> {
        let Some(_turn) = self.try_lock(HOST)? else { return Ok(0) };
        let mut done = self.found("done")?;
        done.sort_by(|a, b| b.age.cmp(&a.age).then_with(|| a.name.cmp(&b.name)));
        let blobs = self.found("blobs")?;
        let size = |found: &[Found]| found.iter().map(|found| found.size).sum::<u64>();
        let mut total = size(&done) + size(&blobs);
        let mut removed = 0;
        for entry in &done {
            let is_too_old = entry.age > bounds.age.as_secs();
            if removed == AT_ONCE || !is_too_old && total <= bounds.bytes {
                break;
            }
            if entry.age < bounds.redelivery.as_secs() || self.is_recent(&entry.name, bounds, now) {
                continue;
            }
            fs::remove_file(self.dir.join("done").join(&entry.name)).map_err(failed)?;
            total = total.saturating_sub(entry.size + self.sweep(&entry.name, &blobs)?);
            removed += 1;
        }
        self.file_forsaken(bounds, now)?;
        self.sweep_locks(bounds)?;
        self.sweep_marks(bounds)?;
        self.sweep_untold(bounds)?;
        removed += self.sweep_blobs(bounds)?;
        Ok(removed)
    }

    /// Files away what nobody came back for: jobs of which nothing but a torn line is known, and
    /// acts that an agent did not see the end of. Should they be delivered again after all, they
    /// are answered as they would have been before.
    fn file_forsaken(&self, bounds: Bounds, now: &At) -> Result<()> {
        for found in self.found("open")? {
            if found.age < bounds.redelivery.as_secs() || Self::check(&found.name).is_err() {
                continue;
            }
            let Ok(entry) = self.load(&found.name) else { continue };
            let stays = entry.planned.is_some_and(|planned| match &planned.work {
                Work::Plan(_) => true,
                // Its time is still to come, whoever waits for it.
                Work::Act(Act::Power(power)) => planned.boot == now.boot && now.uptime < power.at,
                Work::Act(_) => false,
            });
            // An act that is at work has its lock.
            if !stays && let Some(_turn) = self.try_lock(&found.name)? {
                self.close(&found.name)?;
            }
        }
        Ok(())
    }

    /// Whether a job ended so shortly ago that it may be delivered again, whatever the wall's
    /// clock was set to since.
    fn is_recent(&self, job: &str, bounds: Bounds, now: &At) -> bool {
        let ended = self.load(job).ok().and_then(|entry| entry.ended);
        ended.is_some_and(|at| {
            at.boot == now.boot && now.uptime < at.uptime + bounds.redelivery.as_secs()
        })
    }

    /// Forgets that `job` named contents. Says how many bytes of them nobody else names.
    fn sweep(&self, job: &str, blobs: &[Found]) -> Result<u64> {
        let (suffix, mut freed) = (format!(".{job}"), 0);
        for blob in blobs {
            if let Some(digest) = blob.name.strip_suffix(&suffix) {
                fs::remove_file(self.dir.join("blobs").join(&blob.name)).map_err(failed)?;
                let named = |other: &&Found| {
                    other.name != blob.name
                        && other.name.starts_with(&format!("{digest}."))
                        && self.dir.join("blobs").join(&other.name).exists()
                };
                if !blobs.iter().any(|other| named(&other)) {
                    let own = blobs.iter().find(|other| other.name == digest);
                    freed += own.map_or(0, |own| own.size);
                }
            }
        }
        Ok(freed)
    }

    /// Removes contents without a name, once nobody can still be about to name them, and names
    /// without a job.
    fn sweep_blobs(&self, bounds: Bounds) -> Result<usize> {
        let blobs = self.found("blobs")?;
        let mut needed = BTreeSet::new();
        for record in self.records() {
            let contents = [record.value.content(), record.origin.content()];
            needed.extend(contents.into_iter().flatten().map(|digest| digest.as_str().to_owned()));
        }
        let (mut removed, grace) = (0, bounds.redelivery.as_secs());
        for blob in &blobs {
            let Some((digest, job)) = blob.name.split_once('.').filter(|(at, _)| !at.is_empty())
            else {
                continue;
            };
            let is_known = ["open", "done"].iter().any(|dir| self.dir.join(dir).join(job).exists());
            if is_known {
                needed.insert(digest.to_owned());
            } else if removed < AT_ONCE {
                fs::remove_file(self.dir.join("blobs").join(&blob.name)).map_err(failed)?;
                removed += 1;
            }
        }
        for blob in &blobs {
            let is_content = !blob.name.contains('.') || blob.name.starts_with('.');
            if is_content && removed < AT_ONCE && blob.age >= grace && !needed.contains(&blob.name)
            {
                fs::remove_file(self.dir.join("blobs").join(&blob.name)).map_err(failed)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Removes locks of jobs that ended without taking theirs along.
    fn sweep_locks(&self, bounds: Bounds) -> Result<()> {
        let is_over = |found: &Found| {
            !found.name.starts_with('.')
                && found.age >= bounds.redelivery.as_secs()
                && !self.dir.join("open").join(job_of(&found.name)).exists()
        };
        for lock in self.found("locks")?.iter().filter(|found| is_over(found)).take(AT_ONCE) {
            if let Some(_turn) = self.try_lock(&lock.name)? {
                fs::remove_file(self.dir.join("locks").join(&lock.name)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Forgets which cells were given back, as long ago as jobs are forgotten.
    fn sweep_marks(&self, bounds: Bounds) -> Result<()> {
        let is_over =
            |found: &Found| found.name.ends_with(GIVEN_BACK) && found.age > bounds.age.as_secs();
        for mark in self.found("managed")?.iter().filter(|found| is_over(found)).take(AT_ONCE) {
            fs::remove_file(self.dir.join("managed").join(&mark.name)).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes marks of jobs that never began, or are forgotten.
    fn sweep_untold(&self, bounds: Bounds) -> Result<()> {
        let is_over = |found: &Found| {
            let is_known =
                ["open", "done"].iter().any(|dir| self.dir.join(dir).join(&found.name).exists());
            found.age >= bounds.redelivery.as_secs() && !is_known
        };
        for mark in self.found("tell")?.iter().filter(|found| is_over(found)).take(AT_ONCE) {
            self.unmark(&mark.name);
        }
        Ok(())
    }

    fn found(&self, dir: &str) -> Result<Vec<Found>> {
        let age = |entry: &DirEntry| -> std::io::Result<(u64, u64)> {
            let about = entry.metadata()?;
            let age = about.modified()?.elapsed().map_or(0, |age| age.as_secs());
            Ok((age, about.len()))
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(self.dir.join(dir)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (age, size) = age(&entry).map_err(failed)?;
            found.push(Found { name: entry.file_name().to_string_lossy().into_owned(), age, size });
        }
        Ok(found)
    }
}
