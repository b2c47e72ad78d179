//! The unprivileged half: accepts requests, remembers jobs, answers agents, waits for hosts.
//!
//! A durable job is two commits: the job with its intent noted, and each host's outcome with its
//! end noted. What lies between is in memory, and memory is fed by the store's watch alone, so
//! that a restart arrives at the same. What only looks is never stored: it lives in a bounded map
//! and dies with the process, as the connection of its caller does.
//!
//! Everything here runs on one thread. Locks are held for the length of a few lines and never
//! across a wait.

use std::collections::HashSet;
use std::marker::PhantomData;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use uuid::Uuid;

use self::bus::Carrier;
use self::figures::Counted;
use self::health::Network;
use self::hosts::Hosts;
use self::ids::Ids;
use self::index::Index;
use self::lanes::Lanes;
use self::listen::Listeners;
use self::notes::Notes;
use self::retention::Time;
use self::takeover::Claims;
use crate::clock::Clock;
use crate::error::Result;
use crate::op::{self, Domain, Op, Output, Params, Shape};
use crate::permission::Caller;
use crate::store::{Coming, Objects, Reader, Revision, Store};

pub mod agent;
pub mod audit;
mod bus;
mod desk;
pub mod enrolment;
mod figures;
pub mod file;
mod follow;
pub mod health;
mod hosts;
mod ids;
mod index;
pub mod job;
mod lanes;
mod listen;
mod notes;
mod once;
mod outcome;
mod retention;
mod rows;
mod secrets;
mod silence;
mod status;
mod submit;
mod takeover;
#[cfg(test)]
mod tests;
pub mod version;
mod wait;

pub use desk::AgentDesk;
pub use enrolment::Trust;
pub use figures::Figures;
pub use hosts::{ALL, ANY, ONLY, WHICH};
pub use listen::Heard;
pub use notes::Trail;
pub use status::Status;
pub use submit::{Key, Submit, Submitted, Taken, Target};
pub use wait::{HostResult, Results};

pub static DOMAINS: &[&Domain<Local>] = &[
    &agent::DOMAIN,
    &enrolment::DOMAIN,
    &job::DOMAIN,
    &file::DOMAIN,
    &audit::DOMAIN,
    &health::DOMAIN,
    &version::DOMAIN,
];

pub type Shared = Arc<Controller>;

pub struct Setup {
    pub store: Arc<dyn Store>,
    pub objects: Arc<dyn Objects>,
    pub clock: Clock,
    /// Names this controller among others; marks the jobs that are in its memory only.
    pub name: String,
    pub limits: Limits,
    /// How long a call waits for hosts where the caller did not say.
    pub job_timeout: Duration,
    /// Known to nobody else, and kept apart from the store: what is stored of requests is keyed
    /// with it, so that a short secret in one cannot be guessed from that.
    pub key: [u8; 32],
    /// None where agents are believed without a signature.
    pub trust: Option<Trust>,
}

/// How much is kept, and how much is taken on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Stored jobs, and how old they get.
    pub jobs: usize,
    pub job_age: Duration,
    /// Jobs in memory that only looked, and how old they get.
    pub reads: usize,
    pub read_age: Duration,
    /// Unfinished stored jobs of one host.
    pub unfinished: usize,
    /// How long a change may wait for its host to begin it.
    pub patience: Duration,
    /// A job as it is stored, in bytes.
    pub record: usize,
    /// An outcome as it is stored, in bytes.
    pub outcome: usize,
    /// The largest object that travels within a job, in bytes.
    pub inline: u64,
    /// How long a job may be open before a restart no longer starts reading at it.
    pub parked_after: Duration,
    /// How many revisions behind the newest a restart may have to start reading.
    pub lag: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            jobs: 10_000,
            job_age: Duration::from_hours(30 * 24),
            reads: 1_000,
            read_age: Duration::from_mins(10),
            unfinished: 2_000,
            patience: Duration::from_hours(1),
            record: 1 << 20,
            outcome: 768 << 10,
            inline: 16 << 10,
            parked_after: Duration::from_mins(10),
            lag: 4_000,
        }
    }
}

pub struct Controller {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) objects: Arc<dyn Objects>,
    clock: Clock,
    mark: u16,
    limits: Limits,
    job_timeout: Duration,
    key: [u8; 32],
    trust: Option<Trust>,
    /// By the clock of the boot, in milliseconds.
    started: u64,
    ids: Mutex<Ids>,
    lanes: Mutex<Lanes>,
    hosts: Mutex<Hosts>,
    index: Mutex<Index>,
    notes: Mutex<Notes>,
    counted: Mutex<Counted>,
    listeners: Mutex<Listeners>,
    /// The index has become complete.
    indexed: Notify,
    /// Jobs that are on their way to be parked.
    parking: Mutex<HashSet<Uuid>>,
    time: Mutex<Time>,
    /// Something is being deleted that is too old or too much.
    is_retaining: AtomicBool,
    tasks: Mutex<Vec<AbortHandle>>,
    network: Mutex<Network>,
    claims: Mutex<Claims>,
    /// Something is wanted that has to be claimed.
    claimed: Notify,
    /// How hosts are reached that are not on this one, where there is a broker.
    carrier: OnceLock<Carrier>,
    /// Up to which revision memory knows what is stored.
    seen: watch::Sender<Revision>,
    /// Nobody waits for hosts any more, because this process is about to end.
    is_impatient: watch::Sender<bool>,
}

impl Controller {
    /// Returns once memory has caught up with the store.
    pub async fn start(setup: Setup) -> Result<Shared> {
        let Setup { store, objects, clock, name, limits, job_timeout, key, trust } = setup;
        let newest = follow::newest(&*store).await?;
        let controller = Arc::new(Self {
            store,
            objects,
            mark: ids::mark(&name),
            limits,
            job_timeout,
            key,
            trust,
            started: clock.uptime(),
            ids: Mutex::new(Ids::after(newest)),
            lanes: Mutex::default(),
            hosts: Mutex::default(),
            index: Mutex::default(),
            notes: Mutex::default(),
            counted: Mutex::default(),
            listeners: Mutex::default(),
            indexed: Notify::new(),
            parking: Mutex::default(),
            time: Mutex::default(),
            is_retaining: AtomicBool::new(false),
            tasks: Mutex::default(),
            network: Mutex::default(),
            claims: Mutex::default(),
            claimed: Notify::new(),
            carrier: OnceLock::new(),
            seen: watch::Sender::new(0),
            is_impatient: watch::Sender::new(false),
            clock,
        });
        follow::begin(&controller).await?;
        Ok(controller)
    }

    /// Has everybody answered who waits for a host, with what there is.
    pub fn hurry(&self) {
        self.is_impatient.send_replace(true);
    }

    /// Ends the work in the background and makes durable what was still to be noted. Jobs are not
    /// affected; the next start goes on with them.
    pub async fn stop(&self) {
        self.leave_to_others().await;
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
        self.flush_notes().await;
        self.store.close().await;
    }

    /// Returns once all that is known here is void, because the store has lost what it had
    /// acknowledged. Whoever starts anew goes on from what there is.
    pub async fn is_void(&self) {
        self.store.taken_back().await;
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// How long a call waits for hosts where the caller did not say.
    pub fn job_timeout(&self) -> Duration {
        self.job_timeout
    }

    /// Says that a commit is about to come; see [`Store::expect`].
    pub fn expect(&self) -> Coming {
        self.store.expect()
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        lock(&self.lanes)
    }

    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        lock(&self.hosts)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }
}

/// What a panic has left behind is as good as what any other line might have.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How the controller carries a row out.
pub type Local = &'static dyn ControllerOp;

/// One call of a row that the controller answers itself.
pub struct Call {
    pub controller: Shared,
    pub caller: Arc<Caller>,
    pub trail: Trail,
    /// The file of an upload.
    pub content: Option<Reader>,
    /// Asking again with it does nothing again.
    pub key: Option<Key>,
}

/// What such a call is answered with, in JSON.
pub enum Reply {
    Whole(Value),
    /// Written as it is read; an error breaks it off.
    Parts(BoxStream<'static, Result<Bytes>>),
}

/// An operation of the controller itself: jobs, agents, audit, health.
///
/// One that changes something has noted that in the step that changed it, when it succeeds, and
/// kept what it answers there for whoever asks again with the same key.
pub trait ControllerOp: Shape {
    fn run(&self, call: Call, params: Value) -> BoxFuture<'static, Result<Reply>>;

    /// Whether it takes a file beside its parameters.
    fn takes_file(&self) -> bool {
        false
    }

    /// The HTTP status that goes with `output`, where it is not that of the row.
    fn status(&self, _output: &Value) -> Option<u16> {
        None
    }
}

/// A function of the controller itself.
pub struct Here<P, O>(pub fn(Call, P) -> BoxFuture<'static, Result<O>>);

/// The same with a file beside its parameters.
pub struct Upload<P, O>(pub fn(Call, P) -> BoxFuture<'static, Result<O>>);

/// The same where the output decides the status.
pub struct Judged<P, O>(
    pub fn(Call, P) -> BoxFuture<'static, Result<O>>,
    pub fn(&Value) -> Option<u16>,
);

/// The same where the output is written as it is read, since it may be long.
pub struct Streamed<P, O>(
    pub fn(Call, P) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes>>>>,
    /// What the parts are when they are put together.
    pub PhantomData<fn() -> O>,
);

impl Op<Local> {
    /// What nearly every row of the controller has.
    pub const HERE: Self =
        Self::common(&Here(|_: Call, _: op::Nothing| Box::pin(async { Ok(()) })));
}

fn call<P: Params + Send, O: Output>(
    run: fn(Call, P) -> BoxFuture<'static, Result<O>>,
    call: Call,
    params: Value,
) -> BoxFuture<'static, Result<Reply>> {
    Box::pin(async move {
        let output = run(call, op::parse(&params)?).await?;
        op::encode(output).map(Reply::Whole)
    })
}

impl<P: Params + Send, O: Output> ControllerOp for Here<P, O> {
    fn run(&self, with: Call, params: Value) -> BoxFuture<'static, Result<Reply>> {
        call(self.0, with, params)
    }
}

impl<P: Params + Send, O: Output> ControllerOp for Upload<P, O> {
    fn run(&self, with: Call, params: Value) -> BoxFuture<'static, Result<Reply>> {
        call(self.0, with, params)
    }

    fn takes_file(&self) -> bool {
        true
    }
}

impl<P: Params + Send, O: Output> ControllerOp for Judged<P, O> {
    fn run(&self, with: Call, params: Value) -> BoxFuture<'static, Result<Reply>> {
        call(self.0, with, params)
    }

    fn status(&self, output: &Value) -> Option<u16> {
        (self.1)(output)
    }
}

impl<P: Params + Send, O: Output> ControllerOp for Streamed<P, O> {
    fn run(&self, with: Call, params: Value) -> BoxFuture<'static, Result<Reply>> {
        let run = self.0;
        Box::pin(async move { run(with, op::parse(&params)?).await.map(Reply::Parts) })
    }
}

op::shaped! { Here => O, Upload => O, Judged => O, Streamed => O }
