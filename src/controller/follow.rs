//! Keeping memory up to date with the store, and restarts short.
//!
//! A start reads from the *floor* on: a revision below which every job is finished, or *parked*,
//! which is listed by name under `parked.<id>`. Both are written as steps that ride along with
//! others; lost or late, they only make a restart read more.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::bus::Why;
use super::index::{Finished, job_of};
use super::lanes::{Ended, Open};
use super::status::Status;
use super::{Controller, Shared, lock, rows};
use crate::error::{Error, Kind, Result};
use crate::job::{Deadline, Record, Report, decode};
use crate::link::Class;
use crate::ops;
use crate::store::{Entry, Event, Expect, Order, Revision, Step, Store};

/// How far the floor rises at least when it is written.
const FLOOR_EVERY: Revision = 1_000;
/// How many jobs one step parks.
const PARK: usize = 128;
/// How often time is looked at.
const TICK: Duration = Duration::from_secs(10);
/// A step of the wall clock that is worth a note, in milliseconds.
const CLOCK_STEP_MS: u64 = 60_000;
/// How long a host may still tell of work it was handed, after its deadline, in milliseconds.
const GRACE_MS: u64 = 3_600_000;
/// What another controller has made since was just taken on, in milliseconds.
const JUST_MS: u64 = 5_000;
/// How many of the newest jobs are looked at for the newest id.
const NEWEST: usize = 1;

/// The greatest id that is stored.
pub(super) async fn newest(store: &dyn Store) -> Result<Option<Uuid>> {
    let entries = store.list("job", "", NEWEST, Order::Descending).await?;
    Ok(entries.first().and_then(|entry| job_of(&entry.key)))
}

/// Starts the work in the background; returns once memory has caught up.
pub(super) async fn begin(controller: &Shared) -> Result<()> {
    rows::prepare();
    controller.lanes().is_shared = controller.store.is_shared();
    for entry in controller.store.list("host", "", usize::MAX, Order::Ascending).await? {
        controller.apply_host(entry.key.strip_prefix("host.").unwrap_or_default(), &entry);
    }
    controller.read_clock().await?;
    for entry in controller.store.list("parked", "", usize::MAX, Order::Ascending).await? {
        let id = entry.key.strip_prefix("parked.").and_then(|id| Uuid::parse_str(id).ok());
        if let Some(id) = id {
            controller.load(id, true).await?;
        }
    }
    let floor = match controller.store.get("floor").await? {
        Some(entry) => decode(&entry.value)?,
        None => 0,
    };
    let (current, is_current) = oneshot::channel();
    controller.spawn(controller.clone().follow(floor, current));
    let stopped = |_| Error::new(Kind::Unavailable, "cannot follow the store");
    is_current.await.map_err(stopped)?;
    controller.spawn(controller.clone().index_all());
    controller.spawn(controller.clone().tick());
    controller.spawn(controller.clone().claim_all());
    Ok(())
}

/// Until when a host that has taken a job may tell of it: some work waits there for its time.
pub(super) fn last_word_of(record: &Record) -> Deadline {
    let is_for_later = ops::ends_boot(&record.job.op);
    let delay = record.params.get("delay").and_then(serde_json::Value::as_u64);
    let delay = delay.filter(|_| is_for_later).unwrap_or_default();
    let grace = delay.saturating_mul(1000).saturating_add(GRACE_MS);
    let mut deadline = record.job.deadline.clone();
    deadline.at = deadline.at.saturating_add(grace);
    deadline.uptime = deadline.uptime.saturating_add(grace);
    deadline
}

impl Controller {
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        lock(&self.tasks).push(tokio::spawn(work).abort_handle());
    }

    pub(super) fn commit(&self, step: Step) -> BoxFuture<'_, Result<Revision>> {
        lock(&self.counted).steps += 1;
        self.store.commit(step)
    }

    async fn index_all(self: Arc<Self>) {
        while let Err(error) = self.build_index().await {
            tracing::error!(%error, "cannot read the stored jobs");
            tokio::time::sleep(TICK).await;
        }
        self.indexed.notify_waiters();
    }

    /// Keeps memory up to date for as long as the store lives.
    async fn follow(self: Arc<Self>, mut floor: Revision, current: oneshot::Sender<()>) {
        let (mut seen, mut current) = (floor, Some(current));
        loop {
            match self.store.watch("", seen).await {
                Ok(events) => {
                    let mut events = events.ready_chunks(256);
                    'watch: while let Some(chunk) = events.next().await {
                        for event in chunk {
                            if matches!(event, Event::Current) {
                                current.take().map(|current| current.send(()));
                            }
                            match self.apply(event).await {
                                Ok(revision) => {
                                    seen = revision.max(seen);
                                    self.seen.send_replace(seen);
                                }
                                // The store could not be asked; this is gone through again.
                                Err(error) => {
                                    tracing::error!(%error, "cannot take over a record");
                                    break 'watch;
                                }
                            }
                        }
                        if current.is_none() {
                            floor = self.raise(floor, seen);
                            self.retain_some();
                        }
                    }
                }
                Err(error) => tracing::error!(%error, "cannot follow the store"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn apply(&self, event: Event) -> Result<Revision> {
        match event {
            Event::Current => Ok(0),
            Event::Put(entry) => match self.apply_put(&entry).await {
                Err(error) if error.kind() == Kind::Internal => {
                    tracing::error!(%error, key = entry.key, "cannot read a record");
                    Ok(entry.revision)
                }
                result => result.map(|()| entry.revision),
            },
            Event::Delete { key, revision } => {
                if let Some(machine_id) = key.strip_prefix("host.") {
                    self.hosts().remove(machine_id);
                } else if let Some(id) = key.strip_prefix("parked.") {
                    self.lanes().unparked(Uuid::parse_str(id).unwrap_or_default());
                } else if key.len() == "job.".len() + 36
                    && let Some(id) = job_of(&key)
                {
                    self.lanes().remove(id);
                    self.index().remove(id);
                }
                Ok(revision)
            }
        }
    }

    async fn apply_put(&self, entry: &Entry) -> Result<()> {
        if let Some(machine_id) = entry.key.strip_prefix("host.") {
            self.apply_host(machine_id, entry);
        } else if let Some(id) = entry.key.strip_prefix("parked.") {
            if let Ok(id) = Uuid::parse_str(id) {
                let is_open = self.lanes().parked(id);
                if !is_open {
                    // It may be over by now.
                    self.load(id, true).await?;
                }
            }
        } else if let Some(id) = job_of(&entry.key) {
            match entry.key.get("job.".len() + 37..) {
                None => self.apply_job(id, entry).await?,
                Some(host) => self.apply_report(id, host, entry).await?,
            }
        }
        Ok(())
    }

    async fn apply_job(&self, id: Uuid, entry: &Entry) -> Result<()> {
        if self.lanes().was_foreseen(entry.revision) || self.admit(id, entry.revision, true) {
            return Ok(());
        }
        let record: Record = decode(&entry.value)?;
        let is_open = self.lanes().get(id).is_some();
        let was_rewritten = record.job.cancelled.is_some()
            || record.job.confirmed.is_some()
            || !record.job.retried.is_empty()
            || !record.job.moved.is_empty()
            || record.has_lost_secrets()
            || record.job.is_settled
            || !record.job.unheard.is_empty();
        if is_open {
            self.lanes().read(id, entry.revision, &record.job);
            self.note_ended();
        } else if was_rewritten {
            // Its outcomes may be older than this, and so not come round any more.
            self.load(id, false).await?;
        } else {
            self.open(id, record, entry.revision);
        }
        Ok(())
    }

    /// Has a job handed out that was taken on here, as soon as it is known to be stored: here, or when
    /// it `has_come_round`. False where it was, or is somebody else's.
    pub(super) fn admit(&self, id: Uuid, revision: Revision, has_come_round: bool) -> bool {
        let open = {
            let mut lanes = self.lanes();
            if !lanes.is_expected(id) || !(has_come_round || lanes.foresee(revision)) {
                return false;
            }
            lanes.admit(id, revision);
            lanes.get(id)
        };
        if let Some(open) = open {
            self.call(&open.record.job.hosts, Why::New);
        }
        true
    }

    fn open(&self, id: Uuid, record: Record, revision: Revision) {
        // An operation of another version is the host's to refuse.
        let class =
            ops::agent(&record.job.op).map_or(Class::Change, |row| Class::of(row, &record.options));
        let (uptime, wall) = (self.clock.uptime(), self.clock.wall());
        let is_new = record.job.created.abs_diff(wall) < JUST_MS;
        let open = Open::new(id, record, class, true);
        // Whoever made it may still move it, until it is on record that it stays.
        let mut lanes = self.lanes();
        let may_move = lanes.is_shared && open.is_for_any();
        open.let_go(!may_move || open.record.job.is_settled);
        lanes.expect(open);
        lanes.admit(id, revision);
        // Its hosts may have begun, and are to say so; but for those that have not been there since
        // another controller has just taken it on.
        let hosts = self.carrier.get().filter(|_| is_new).map(|_| self.hosts());
        lanes.inherit(id, |host| hosts.as_ref().is_none_or(|hosts| hosts.is_there(host, uptime)));
    }

    /// Takes up a stored job with what has become of it so far, whether or not it goes on.
    async fn load(&self, id: Uuid, is_parked: bool) -> Result<()> {
        let (record, revision) = match self.stored(&id.to_string()).await {
            Ok(found) => found,
            Err(error) if error.kind() == Kind::NotFound => {
                if is_parked {
                    self.ride(Step::new().delete(format!("parked.{id}"), Expect::Anything));
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let reports = self.reports(&id.to_string()).await?;
        let has_answered = |host: &String| reports.iter().any(|(name, _)| name == host);
        let cancelled = record.job.cancelled.clone();
        let asked = cancelled.as_ref().map_or(&record.job.hosts, |mark| &mark.asked).clone();
        // Where one was given up, all were that had not answered by then.
        let is_over = !record.job.unheard.is_empty() || asked.iter().all(has_answered);
        if is_over {
            if is_parked {
                self.ride(Step::new().delete(format!("parked.{id}"), Expect::Anything));
            }
            return self.reindex(id).await;
        }
        self.open(id, record, revision);
        for (host, report) in reports {
            self.lanes().finish(id, &host, report);
        }
        if cancelled.is_some() {
            // Of what was called off it is on record who has it.
            let mut lanes = self.lanes();
            lanes.inherit(id, |host| asked.contains(host));
            lanes.rewritten(id, revision, cancelled);
        }
        if is_parked {
            self.lanes().parked(id);
        }
        Ok(())
    }

    async fn apply_report(&self, id: Uuid, host: &str, entry: &Entry) -> Result<()> {
        if self.lanes().was_foreseen(entry.revision) {
            return Ok(());
        }
        let open = self.lanes().get(id);
        let Some(open) = open else {
            // Late: what read as expired or cancelled has an outcome after all.
            let is_known = self.index().get(id).is_some();
            return if is_known { self.reindex(id).await } else { Ok(()) };
        };
        self.take_outcome(&open, host, decode(&entry.value)?, None);
        Ok(())
    }

    /// Takes note of what has come of a job on one host when it comes round, or as soon as it is
    /// `stored` here.
    pub(super) fn take_outcome(
        &self,
        open: &Open,
        host: &str,
        report: Report,
        stored: Option<Revision>,
    ) {
        let status = Status::of(report.outcome.kind());
        let (is_first, has_room) = {
            let mut lanes = self.lanes();
            let is_first = lanes.is_missing(open.id, host);
            if stored.is_some_and(|revision| !is_first || !lanes.foresee(revision)) {
                return;
            }
            lanes.finish(open.id, host, report);
            (is_first, lanes.has_new(host, open.class))
        };
        if is_first {
            self.count_finished(&open.record.job.op, status);
        }
        if has_room {
            self.call(&[host.to_owned()], Why::New);
        }
        self.note_ended();
    }

    /// Moves jobs that are over from the lanes' care to the index's.
    pub(super) fn note_ended(&self) {
        let ended = self.lanes().ended();
        for Ended { open, is_parked } in ended {
            let finished =
                Finished { status: self.status(&open), created: open.record.job.created };
            self.index().put(open.id, finished);
            if is_parked {
                self.ride(Step::new().delete(format!("parked.{}", open.id), Expect::Anything));
            }
        }
    }

    /// Lets the floor rise, and parks what keeps it down. Returns the floor.
    fn raise(&self, floor: Revision, seen: Revision) -> Revision {
        if seen <= floor + FLOOR_EVERY {
            return floor;
        }
        self.park(seen);
        let oldest = self.lanes().oldest().map_or(seen, |oldest| oldest.min(seen + 1) - 1);
        if oldest <= floor + FLOOR_EVERY {
            return floor;
        }
        self.ride(Step::new().put("floor", oldest.to_string(), Expect::Anything));
        oldest
    }

    /// Lists by name what has been open for long, or for very many revisions.
    fn park(&self, seen: Revision) {
        {
            let lanes = self.lanes();
            lock(&self.parking).retain(|id| lanes.get(*id).is_some());
        }
        let after = super::millis(self.limits.parked_after);
        let wall = self.clock.wall();
        let is_stuck = |revision: Revision, open: &Open| {
            revision + self.limits.lag < seen || open.record.job.created + after < wall
        };
        let stuck: Vec<Uuid> = {
            let lanes = self.lanes();
            let stuck = lanes.holding().take_while(|(revision, open)| is_stuck(*revision, open));
            stuck.map(|(_, open)| open.id).filter(|id| !lock(&self.parking).contains(id)).collect()
        };
        for group in stuck.chunks(PARK) {
            lock(&self.parking).extend(group);
            let put =
                |step: Step, id: &Uuid| step.put(format!("parked.{id}"), "1", Expect::Anything);
            self.ride(group.iter().fold(Step::new(), put).owed());
        }
    }

    async fn tick(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            self.expire();
            self.give_up_unheard(|record| self.is_hopeless(record)).await;
            self.decide_all().await;
            self.take_over(self.heard_until()).await;
            self.announce(self.heard_until());
            self.note_all_cordoned().await;
            // What was not parked by now is tried again.
            lock(&self.parking).clear();
            self.watch_clock();
            self.forget_reads();
            self.retain_some();
        }
    }

    /// Lets go of what is too late to begin.
    pub(super) fn expire(&self) {
        self.cut_short(self.clock.uptime());
        let is_due = |record: &Record| self.is_due(&record.job);
        self.lanes().expire(is_due, |record| self.is_hopeless(record));
        self.note_ended();
    }

    /// Whether nobody is to be waited for any more who has taken it.
    fn is_hopeless(&self, record: &Record) -> bool {
        // Counted by the boot's clock as well, which no one sets.
        self.clock.left(&last_word_of(record)) == 0
    }

    /// Notes when somebody has set the wall clock.
    pub(super) fn watch_clock(&self) {
        let offset = self.offset();
        let before = lock(&self.time).offset.replace(offset);
        let step = offset - before.unwrap_or(offset);
        if step.unsigned_abs() <= u128::from(CLOCK_STEP_MS) {
            return;
        }
        let by_ms = i64::try_from(step).unwrap_or(i64::MAX);
        self.event(json!({ "at": self.clock.wall(), "event": "clock_step", "by_ms": by_ms }));
        self.clock_was_set(step);
    }
}
