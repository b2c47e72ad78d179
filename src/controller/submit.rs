//! Taking a job on: what it is for, what it needs, and the one commit that accepts it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Deref;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use uuid::Uuid;

use super::bus::Why;
use super::lanes::Open;
use super::notes::{Trail, entry};
use super::{Controller, ids, millis, rows};
use crate::error::{Error, Kind, Result};
use crate::job::{Content, Job, Options, Record, decode, encode};
use crate::link::Class;
use crate::op::Access;
use crate::ops::{self, Row, Run};
use crate::permission::Caller;
use crate::store::{self, Expect, Revision, Step, audit};

/// How long the watch may take to come round with what was committed.
const COME_ROUND: Duration = Duration::from_secs(1);

/// Which hosts a job is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// `_any`, `_all`, a host name, a machine id, or a label as `key:value`.
    Named(String),
    /// The hosts of the job with this id.
    HostsOf(String),
}

/// A checked request for hosts to do something. That the caller may was made sure of before.
pub struct Submit {
    pub row: &'static Row,
    pub target: Target,
    pub params: Value,
    pub options: Options,
    pub caller: Arc<Caller>,
    pub trail: Trail,
    /// Makes sure that asking again does not do it again. Without effect on what only looks.
    pub key: Option<Key>,
}

/// A caller's `Idempotency-Key`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    pub value: String,
    /// Of everything else in the request: only the same request is the same. Never stored as it
    /// is.
    pub digest: String,
}

#[derive(Clone)]
pub struct Submitted {
    pub job: Taken,
    /// It was submitted before, with the same key.
    pub replayed: bool,
}

/// A job that was taken on.
#[derive(Clone)]
pub struct Taken(Arc<Record>);

impl Deref for Taken {
    type Target = Job;

    fn deref(&self) -> &Job {
        &self.0.job
    }
}

/// What is stored under `once.<SHA-256 of caller, method, path and key>`.
#[derive(Deserialize, Serialize)]
pub(super) struct Once {
    /// Empty where none was made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) job: String,
    pub(super) digest: String,
    /// What was answered, where no job was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<Value>,
}

/// What a job does beside being submitted, in the same step.
#[derive(Default)]
pub(super) struct Beside {
    /// The job that this one is about.
    pub(super) about: Option<String>,
    /// The job that this one repeats: its record as it was read, to be marked as retried.
    pub(super) repeats: Option<(Record, Revision)>,
    /// The boxes that are left of that job's secrets, where it had any.
    pub(super) sealed: Option<BTreeMap<String, String>>,
    /// The HTTP status of the answer, where that does not wait for hosts.
    pub(super) code: Option<u16>,
}

impl Controller {
    /// Takes a job on for every host that the target names right now. What changes something is
    /// durable, with the intent on record, when this returns.
    pub async fn submit(&self, submit: Submit) -> Result<Submitted> {
        let about = match &submit.target {
            Target::HostsOf(job) => Some(job.clone()),
            Target::Named(_) => None,
        };
        self.submit_beside(submit, Beside { about, ..Beside::default() }).await.map(|done| done.0)
    }

    pub(super) async fn submit_beside(
        &self,
        submit: Submit,
        beside: Beside,
    ) -> Result<(Submitted, Revision)> {
        let Submit { row, target, params, options, caller, trail, key } = submit;
        let Run::Agent(op) = row.run else {
            return Err(Error::new(Kind::Internal, format!("{} is not for hosts", row.id)));
        };
        if options.dry_run && op.access() == Access::Execute {
            let message = format!("{} cannot tell what it would do; ask without dry_run", row.id);
            return Err(Error::new(Kind::NoPreview, message));
        }
        let class = ops::agent(row.id).map_or(Class::Change, |row| Class::of(row, &options));
        let is_stored = op.access() != Access::Read && !options.dry_run;
        let key = key.filter(|_| is_stored).map(|key| {
            (once_key(&caller, &trail, &key), Key { digest: self.keyed(&key.digest), ..key })
        });
        if let Some((name, key)) = &key
            && let Some(done) = Box::pin(self.replay(name, key)).await?
        {
            return Ok((done, 0));
        }
        let hosts = self.resolve(&target, op.access()).await?;
        let (params, sealed) = self.seal(row, params, &hosts, beside.sealed.as_ref())?;
        let objects = if rows::traits(row).objects.is_empty() {
            BTreeMap::new()
        } else {
            Box::pin(self.pin(row, &params)).await?
        };
        self.make_room(&hosts, is_stored)?;
        let patience = if is_stored { self.limits.patience } else { 2 * row.timeout };
        let target = match target {
            Target::Named(name) => name,
            Target::HostsOf(_) => "_all".to_owned(),
        };
        let job = Job {
            id: String::new(),
            op: row.id.to_owned(),
            caller: caller.name.clone(),
            target,
            hosts,
            created: self.clock.wall(),
            deadline: self.clock.deadline(millis(patience)),
            cancelled: None,
            retried: Vec::new(),
            confirmed: None,
            moved: Vec::new(),
            is_settled: false,
            unheard: Vec::new(),
        };
        let once = key.as_ref().map(|(name, _)| name.clone());
        let record = Arc::new(Record { job, params, options, objects, sealed, once });
        let mut made = Made { record, size: 0, class, caller, trail, key, beside };
        let done = if is_stored {
            match self.accept(&mut made).await {
                Err(error)
                    if error.kind() == Kind::Full
                        && Box::pin(self.drop_oldest(made.size)).await =>
                {
                    Box::pin(self.accept(&mut made)).await
                }
                result => result,
            }
        } else {
            self.take_in(made).map(|submitted| (submitted, 0))
        }?;
        if !done.0.replayed {
            self.count_submitted(row.id);
        }
        Ok(done)
    }

    /// A job as it is kept, unless that is more than may be kept or than a host could be told.
    fn encoded(&self, record: &Record, is_stored: bool) -> Result<Bytes> {
        let encoded = encode(record)?;
        let size = encoded.len();
        if size > self.limits.record {
            let message = format!(
                "the job would be {size} bytes, more than the {} that are kept; upload what is \
                 large as a file and name it",
                self.limits.record
            );
            return Err(Error::new(Kind::TooLarge, message));
        }
        self.reach(record, size, is_stored)?;
        Ok(encoded)
    }

    /// Keeps what only looks in memory, where its host finds it at once.
    fn take_in(&self, made: Made) -> Result<Submitted> {
        let Made { mut record, class, caller, .. } = made;
        let id = super::lock(&self.ids).next(self.clock.wall(), self.mark);
        Arc::make_mut(&mut record).job.id = id.to_string();
        self.encoded(&record, false)?;
        if class == Class::Follow {
            // Before its host can say the first word.
            self.expect_listener(id, &record.job, &caller)?;
        }
        let open = Open::new(id, record.clone(), class, false);
        {
            let mut lanes = self.lanes();
            lanes.expect(open.clone());
            lanes.admit(id, 1);
        }
        let job = &record.job;
        for (host, error) in self.absent(job, class) {
            self.answer_for(&open, &host, job.created, error);
        }
        self.call(&job.hosts, Why::New);
        Ok(Submitted { job: Taken(record), replayed: false })
    }

    /// The one commit that makes a job durable.
    async fn accept(&self, made: &mut Made) -> Result<(Submitted, Revision)> {
        let mut begun = None;
        // Whoever gets the smaller id is first in the writer's queue as well: the id is made in
        // the same breath in which the commit is sent off.
        let sent = poll_fn(|context| {
            let mut ids = super::lock(&self.ids);
            let id = ids.next(self.clock.wall(), ids::STORED);
            Arc::make_mut(&mut made.record).job.id = id.to_string();
            let step = match self.step(made) {
                Ok(step) => step,
                Err(error) => return Poll::Ready(Poll::Ready(Err(error))),
            };
            self.lanes().expect(Open::new(id, made.record.clone(), made.class, true));
            let mut commit = self.commit(step);
            let sent = commit.as_mut().poll(context);
            begun = Some((id, commit));
            Poll::Ready(sent)
        })
        .await;
        let result = match (sent, &mut begun) {
            (Poll::Ready(result), _) => result,
            (Poll::Pending, Some((_, commit))) => commit.as_mut().await,
            (Poll::Pending, None) => Err(Error::new(Kind::Internal, "the commit was not sent")),
        };
        let begun = begun.map(|(id, _)| id);
        match (result, begun) {
            (Ok(revision), Some(id)) => {
                let job = Taken(made.record.clone());
                let (op, caller) = (&job.op, &made.caller.name);
                tracing::info!(
                    OSAPI_JOB_ID = job.id,
                    OSAPI_OP = op,
                    OSAPI_CALLER = caller,
                    "{caller} asked for {op}"
                );
                if self.lanes().is_shared && made.class == Class::Change {
                    // What others have stored before it comes first, and may still come round.
                    self.come_round(id).await;
                } else {
                    self.admit(id, revision, false);
                }
                Ok((Submitted { job, replayed: false }, revision))
            }
            (Err(error), Some(id)) => {
                self.lanes().disappoint(id);
                match &made.key {
                    Some((name, key)) if error.kind() == Kind::Conflict => {
                        let done = Box::pin(self.replay(name, key)).await?;
                        done.map(|done| (done, 0)).ok_or(error)
                    }
                    _ => Err(error),
                }
            }
            (Err(error), None) => Err(error),
            (Ok(_), None) => Err(Error::new(Kind::Internal, "the commit was not sent")),
        }
    }

    /// Waits for the watch to say what the commit has said, so that whoever is answered finds the
    /// job in every list. It mostly has said so before.
    async fn come_round(&self, id: Uuid) {
        let open = self.lanes().get(id);
        if let Some(open) = open {
            let mut so_far = open.so_far.subscribe();
            let admitted = so_far.wait_for(|so_far| so_far.is_admitted || so_far.is_over);
            let _ = tokio::time::timeout(COME_ROUND, admitted).await;
        }
    }

    /// Waits for the watch to say what is stored up to `revision`.
    pub(super) async fn caught_up(&self, revision: Revision) {
        let mut seen = self.seen.subscribe();
        let _ = tokio::time::timeout(COME_ROUND, seen.wait_for(|seen| *seen >= revision)).await;
    }

    fn step(&self, made: &mut Made) -> Result<Step> {
        let encoded = self.encoded(&made.record, true)?;
        made.size = encoded.len();
        let Made { record, caller, trail, key, beside, .. } = &*made;
        let id = &record.job.id;
        let mut step = Step::new();
        if let Some((name, key)) = key {
            let once = Once { job: id.clone(), digest: key.digest.clone(), answer: None };
            // As long as its job may be kept; it goes with the job where that goes sooner.
            step = step
                .put(name.as_str(), encode(&once)?, Expect::Absent)
                .expires(self.limits.job_age);
        }
        if let Some((original, revision)) = &beside.repeats {
            let mut original = original.clone();
            let (at, by) = (self.clock.wall(), caller.name.clone());
            let (job, asked) = (Some(id.clone()), Vec::new());
            original.job.retried.push(crate::job::Mark { at, by, job, asked });
            let key = format!("job.{}", original.job.id);
            step = step.put(key, encode(&original)?, Expect::Revision(*revision));
        }
        // Last, so that the revision of the step is its own.
        step = step.put(format!("job.{id}"), encoded, Expect::Absent);
        let ms = beside.code.map(|_| self.clock.wall().saturating_sub(trail.at));
        let note = audit::Entry {
            id: id.clone(),
            job: Some(id.clone()),
            about: beside.about.clone(),
            ..entry(trail, caller, beside.code, ms)
        };
        Ok(step.note(audit::Note::Entry(note)))
    }

    /// What the same key has led to before.
    async fn replay(&self, name: &str, key: &Key) -> Result<Option<Submitted>> {
        let Some(found) = self.store.get(name).await? else { return Ok(None) };
        let once: Once = decode(&found.value)?;
        if once.digest != key.digest {
            return Err(reused());
        }
        let gone = |error: Error| match error.kind() {
            Kind::NotFound => Error::new(
                Kind::Conflict,
                format!("the key was used for job {}, which is no longer kept", once.job),
            ),
            _ => error,
        };
        let (record, revision) = self.stored(&once.job).await.map_err(gone)?;
        // Another controller may have taken it on.
        self.caught_up(revision).await;
        Ok(Some(Submitted { job: Taken(Arc::new(record)), replayed: true }))
    }

    /// Refuses what would make a queue longer than is bearable.
    fn make_room(&self, hosts: &[String], is_stored: bool) -> Result<()> {
        let mut lanes = self.lanes();
        if is_stored {
            let full = hosts.iter().find(|host| lanes.stored_of(host) >= self.limits.unfinished);
            if let Some(host) = full {
                let name = self.hosts().name(host);
                let message = format!(
                    "{name} has {} unfinished jobs already; retry when it has caught up",
                    self.limits.unfinished
                );
                return Err(Error::new(Kind::Busy, message));
            }
        } else if lanes.volatile() >= self.limits.reads && !lanes.forget_one(|_| true) {
            let message = format!("{} reads are waiting already; retry later", self.limits.reads);
            return Err(Error::new(Kind::Busy, message));
        }
        Ok(())
    }

    /// Looks up the objects that the parameters name, so that every host gets the same content.
    async fn pin(&self, row: &'static Row, params: &Value) -> Result<BTreeMap<String, Content>> {
        let mut objects = BTreeMap::new();
        for field in &rows::traits(row).objects {
            let Some(name) = params.get(field).and_then(Value::as_str) else { continue };
            let Some((object, reader)) = self.objects.get(name).await? else {
                let message = format!("no file {name:?}; upload it first");
                return Err(Error::new(Kind::NotFound, message));
            };
            let mut bytes = None;
            if object.size <= self.limits.inline {
                let mut content = Vec::new();
                let read = reader.take(self.limits.inline + 1).read_to_end(&mut content).await;
                read.map_err(|error| {
                    Error::new(Kind::Unavailable, format!("cannot read the file {name:?}"))
                        .because(error)
                })?;
                bytes = Some(STANDARD.encode(content));
            }
            let content = Content { digest: object.digest, size: object.size, bytes };
            objects.insert(name.to_owned(), content);
        }
        Ok(objects)
    }
}

/// A job that is ready to be stored, but for its id.
struct Made {
    record: Arc<Record>,
    /// How many bytes it takes, once it has an id.
    size: usize,
    class: Class,
    caller: Arc<Caller>,
    trail: Trail,
    key: Option<(String, Key)>,
    beside: Beside,
}

pub(super) fn reused() -> Error {
    let message = "the idempotency key was used with another request; use another key";
    Error::new(Kind::KeyReused, message)
}

pub(super) fn once_key(caller: &Caller, trail: &Trail, key: &Key) -> String {
    let mut hash = Sha256::new();
    let who =
        caller.uid.map_or_else(|| format!("subject {}", caller.name), |uid| format!("uid {uid}"));
    for part in [&who, &trail.method, &trail.path, &key.value] {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    format!("once.{}", store::hex(&hash.finalize()))
}
