//! Letting go of what was kept long enough: the oldest finished jobs first.
//!
//! Deletions ride along with other commits, a bounded number at a time and one after the other.
//! Ages are measured on the wall clock; when somebody sets that forward, nothing is taken for old
//! until everything from before the step surely is.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::index::Finished;
use super::{Controller, lock, millis};
use crate::error::{Error, Result};
use crate::job::{decode, encode};
use crate::store::{Entry, Expect, Order, Step, WRITES};

/// How many jobs are deleted at a time.
const GROUP: usize = 100;
/// What is stored of how many is looked up at a time, which may be elsewhere.
const TOGETHER: usize = 16;
/// How many jobs are deleted at once where there is no room left.
const MANY: usize = 500;
/// What a record takes beside its value, at most, in bytes.
const SLACK: u64 = 16 << 10;

/// How long a caller's key outlives its job at most, and how long it is kept at least.
const KEYS_KEPT: Duration = Duration::from_hours(24);

/// As much of a job's record as it takes to let go of it.
#[derive(Deserialize)]
struct Keyed {
    created: u64,
    #[serde(default)]
    once: Option<String>,
}

/// What is known of the wall clock.
#[derive(Default)]
pub(super) struct Time {
    /// The wall clock less that of the boot, in milliseconds.
    pub(super) offset: Option<i128>,
    trust: Trust,
}

/// As stored under `clock`.
#[derive(Clone, Default, Deserialize, Serialize)]
struct Trust {
    /// Until then, in milliseconds since 1970, nothing is deleted for its age.
    ages_from: u64,
    /// The offset that is known of, and in which boot: the clock may be set while nobody looks.
    #[serde(default)]
    boot: String,
    #[serde(default)]
    offset: i64,
}

impl Controller {
    /// Goes on from what the controller before knew of the clock, in the same boot.
    pub(super) async fn read_clock(&self) -> Result<()> {
        let stored = self.store.get("clock").await?;
        let trust: Trust =
            stored.map(|entry| decode(&entry.value)).transpose()?.unwrap_or_default();
        let is_of_this_boot = !trust.boot.is_empty() && trust.boot == self.clock.boot();
        let offset = is_of_this_boot.then_some(i128::from(trust.offset));
        *lock(&self.time) = Time { offset, trust };
        if is_of_this_boot {
            self.watch_clock();
        } else {
            self.keep_clock(|_| ());
        }
        Ok(())
    }

    pub(super) fn offset(&self) -> i128 {
        i128::from(self.clock.wall()) - i128::from(self.clock.uptime())
    }

    /// Somebody has set the wall clock, by this many milliseconds. Forward, what was made before
    /// now looks older than it is.
    pub(super) fn clock_was_set(&self, step: i128) {
        let ages_from = self.clock.wall().saturating_add(millis(self.limits.job_age));
        self.keep_clock(|trust| {
            if step > 0 {
                trust.ages_from = ages_from;
            }
        });
    }

    fn keep_clock(&self, learn: impl FnOnce(&mut Trust)) {
        let offset = self.offset();
        let trust = {
            let mut time = lock(&self.time);
            time.offset = Some(offset);
            self.clock.boot().clone_into(&mut time.trust.boot);
            time.trust.offset = i64::try_from(offset).unwrap_or(i64::MAX);
            learn(&mut time.trust);
            time.trust.clone()
        };
        match encode(&trust) {
            Ok(value) => {
                self.ride(Step::new().put("clock", value, Expect::Anything).owed());
            }
            Err(error) => tracing::error!(%error, "cannot keep what was learnt of the clock"),
        }
    }

    /// Deletes some of what is too old or too much, beside everything else.
    pub(super) fn retain_some(self: &Arc<Self>) {
        if self.is_retaining.load(Ordering::Relaxed) || self.dispensable().is_empty() {
            return;
        }
        if !self.is_retaining.swap(true, Ordering::Relaxed) {
            let controller = self.clone();
            tokio::spawn(async move {
                if let Err(error) = controller.retain().await {
                    tracing::warn!(%error, "cannot delete old jobs");
                }
                controller.is_retaining.store(false, Ordering::Relaxed);
            });
        }
    }

    /// Deletes some of what is too old or too much, and returns once that is stored.
    pub(super) async fn retain(&self) -> Result<()> {
        let ids = self.dispensable();
        for step in self.forgetting(&ids).await? {
            self.commit(step.owed().lazy()).await?;
        }
        // The watch says the same a moment later.
        let mut index = self.index();
        for id in ids {
            index.remove(id);
        }
        Ok(())
    }

    /// Some of the finished jobs that are too old or too much.
    fn dispensable(&self) -> Vec<Uuid> {
        // Before anything is taken for old, not only when it is time to look.
        self.watch_clock();
        let (wall, age) = (self.clock.wall(), millis(self.limits.job_age));
        let is_trusted = wall >= lock(&self.time).trust.ages_from;
        let is_old = |finished: &Finished| is_trusted && finished.created + age < wall;
        let kept = self.lanes().stored() + self.index().len();
        let surplus = kept.saturating_sub(self.limits.jobs);
        let index = self.index();
        if !index.is_complete {
            return Vec::new();
        }
        // Not one by one: a step for each job would be a step too many for each job.
        let group = (self.limits.jobs / 100).clamp(1, GROUP);
        let surplus = if surplus > 0 { surplus.clamp(group, MANY) } else { 0 };
        let many = index.oldest(surplus, |_| true);
        if many.is_empty() { index.oldest(GROUP, is_old) } else { many }
    }

    /// Steps that delete jobs with their outcomes and their callers' keys. Take them one after the
    /// other, and none after one that fails: the record of a job goes with the last of what there is
    /// of it, so that the rest is found again.
    pub(super) async fn forgetting(&self, ids: &[Uuid]) -> Result<Vec<Step>> {
        let remains = stream::iter(ids.to_vec()).map(|id| self.remains_of(id));
        let (mut steps, mut step, mut keys) = (Vec::new(), Step::new(), HashSet::new());
        for (once, names) in remains.buffered(TOGETHER).try_collect::<Vec<_>>().await? {
            let keep = |once: Entry| {
                Step::new().put(once.key, once.value, Expect::Anything).expires(KEYS_KEPT)
            };
            let delete = |name| Step::new().delete(name, Expect::Anything);
            let all = once.map(keep).into_iter().chain(names.into_iter().map(delete));
            // A key may have made another job, after its day.
            let is_new = |step: &Step| step.writes.iter().all(|it| keys.insert(it.key.clone()));
            let mut all: Vec<_> = all.filter(is_new).collect();
            let is_split = step.writes.len() + all.len() > WRITES && !step.writes.is_empty();
            steps.extend(is_split.then(|| std::mem::take(&mut step)));
            while all.len() > WRITES {
                steps.push(all.drain(..WRITES).fold(Step::new(), Step::and));
            }
            step = all.into_iter().fold(step, Step::and);
        }
        steps.extend((!step.writes.is_empty()).then_some(step));
        Ok(steps)
    }

    /// What is stored of a job: the record of its caller's key that is to be kept for a while, and
    /// the names of all that is not.
    async fn remains_of(&self, id: Uuid) -> Result<(Option<Entry>, Vec<String>)> {
        let key = format!("job.{id}");
        let job = self.store.get(&key).await?;
        let keyed = job.and_then(|entry| decode::<Keyed>(&entry.value).ok());
        let (mut kept, mut gone) = (None, Vec::new());
        if let Some(Keyed { once: Some(name), created }) = keyed {
            let is_young = created + millis(KEYS_KEPT) > self.clock.wall();
            kept = self.store.get(&name).await?.filter(|_| is_young);
            // Whoever asks again with it is to hear that it was used.
            gone.extend(kept.is_none().then_some(name));
        }
        let outcomes = self.store.list(&key, "", usize::MAX, Order::Ascending).await?;
        gone.extend(outcomes.into_iter().map(|outcome| outcome.key));
        gone.push(key);
        Ok((kept, gone))
    }

    /// Makes room by deleting the oldest finished jobs, where it is their number that leaves none
    /// for `needed` bytes. False where that would not help: a disk that others have filled gets no
    /// emptier by forgetting what was done.
    pub(super) async fn drop_oldest(&self, needed: usize) -> bool {
        if self.store.room().left() > needed as u64 + SLACK {
            return false;
        }
        let ids = self.index().oldest(MANY, |_| true);
        if ids.is_empty() {
            return false;
        }
        let drop_all = async || {
            for step in self.forgetting(&ids).await? {
                self.commit(step.owed()).await?;
            }
            Ok::<_, Error>(())
        };
        let dropped = drop_all().await;
        match dropped {
            Ok(()) => {
                tracing::warn!(jobs = ids.len(), "deleted the oldest finished jobs to make room");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot make room");
                false
            }
        }
    }

    /// Forgets what only looked, after a while.
    pub(super) fn forget_reads(&self) {
        let age = millis(self.limits.read_age);
        let uptime = self.clock.uptime();
        let is_old = |record: &crate::job::Record| record.job.deadline.uptime + age < uptime;
        while self.lanes().forget_one(is_old) {}
    }
}
