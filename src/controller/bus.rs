//! Hosts that are heard over a broker: their questions are answered as those on the socket are, and
//! they are told of work, since none of their questions waits.
//!
//! Whoever takes a job on tells its hosts. All controllers hear what a host holds, and remind it of
//! what it should and does not, so that a message that was lost costs time and nothing else. What is
//! told goes out of one place, in order of submission; what waits there is which hosts are to be
//! told, and what they are told is taken from the lanes when its turn comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use tokio::sync::{Notify, Semaphore, watch};

use super::{Controller, Shared, lock};
use crate::broker::{self, Bus, LIMIT, Line, Settings};
use crate::error::{Error, Kind, Result};
use crate::job::{Record, decode, encode};
use crate::link::MAX_FRAME;
use crate::link::bus::{CONTROLLERS, Meanwhile, Subjects};

mod asks;
mod wakes;

pub(super) use wakes::Why;

/// How many questions are answered at a time. What comes beyond that waits with the client.
const AT_ONCE: usize = 512;
/// The pause before a controller that could not listen on a connection tries again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long whoever ends may take to answer what was asked.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// What a message has beside its tasks, at most, in bytes.
const AROUND: usize = 16 << 10;
/// What a task takes in a message beside its body, in bytes.
const BESIDE: usize = 256;

/// How hosts are reached that have no connection to this controller's socket.
pub(super) struct Carrier {
    bus: Arc<Bus>,
    subjects: Subjects,
    /// Hosts that are to be told something, by machine id.
    errands: Mutex<BTreeMap<String, BTreeSet<Why>>>,
    is_due: Notify,
    /// When the connection was lost on which hosts are heard, on the clock of the boot in
    /// milliseconds; 0 while it is there.
    lost_at: AtomicU64,
    /// Hosts are to ask others from now on.
    is_ending: watch::Sender<bool>,
    /// All that was asked of this one is answered.
    has_answered: Notify,
}

/// What is listened to on one connection.
struct Ears {
    asks: Subscriber,
    beats: Subscriber,
    passed: Subscriber,
    told: Subscriber,
}

/// How many bytes a task takes within a message, at most, with all that is around it: quotes within a
/// text take two characters.
fn carried(task: &str) -> usize {
    task.len() + task.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count() + BESIDE
}

impl Carrier {
    /// How many bytes of tasks a message may have, which neither the broker nor a relay refuses.
    fn room(line: &Line) -> usize {
        line.room.min(MAX_FRAME).saturating_sub(AROUND)
    }

    async fn listen(&self, line: &Line, mark: u16) -> Result<Ears> {
        let (client, subjects) = (&line.client, &self.subjects);
        let away = |error: async_nats::SubscribeError| broker::broken().because(error);
        let group = CONTROLLERS.to_owned();
        let asks = client.queue_subscribe(subjects.ask("*"), group).await.map_err(away)?;
        let beats = client.subscribe(subjects.beat("*")).await.map_err(away)?;
        let passed = client.subscribe(subjects.desk(mark)).await.map_err(away)?;
        let mut told = client.subscribe(subjects.told()).await.map_err(away)?;
        // Once this has come round, the server has taken note of all of them, or has refused one.
        let nothing = encode(&Meanwhile { host: String::new(), told: Vec::new() })?;
        let lost = |error: async_nats::PublishError| broker::broken().because(error);
        client.publish(subjects.told(), nothing).await.map_err(lost)?;
        let has_come = tokio::time::timeout(LIMIT, told.next()).await;
        tokio::task::yield_now().await;
        if let Some(text) = line.refused() {
            let message = format!(
                "the broker refuses a right that a controller needs to answer hosts ({text})"
            );
            return Err(Error::new(Kind::Denied, message));
        }
        match has_come {
            Ok(Some(_)) => Ok(Ears { asks, beats, passed, told }),
            _ => Err(Error::new(Kind::Unavailable, "the broker passes nothing on")),
        }
    }
}

impl Controller {
    /// Also answers hosts over a broker from now on, until this controller is stopped. Its name is
    /// that of the settings.
    pub async fn answer_over(self: &Arc<Self>, settings: Settings) -> Result<()> {
        settings.check()?;
        let subjects = Subjects::of(&settings.namespace);
        let line = Line::open(&settings).await?;
        let bus = Bus::new(settings, line.clone());
        let carrier = Carrier {
            bus: bus.clone(),
            subjects,
            errands: Mutex::default(),
            is_due: Notify::new(),
            lost_at: AtomicU64::new(0),
            is_ending: watch::Sender::new(false),
            has_answered: Notify::new(),
        };
        let ears = carrier.listen(&line, self.mark).await?;
        if self.carrier.set(carrier).is_err() {
            return Err(Error::new(Kind::Internal, "hosts are answered over a broker already"));
        }
        let name = bus.settings.name.clone();
        self.spawn(bus.keep(name, |_| async { Ok(()) }));
        self.spawn(self.clone().hear(line, ears));
        self.spawn(self.clone().run_errands());
        Ok(())
    }

    /// Hears what comes, on one connection after the other.
    async fn hear(self: Shared, mut line: Arc<Line>, mut ears: Ears) {
        let Some(carrier) = self.carrier.get() else { return };
        let room = [(); 2].map(|()| Arc::new(Semaphore::new(AT_ONCE)));
        let (is_ending, never) = (&carrier.is_ending, watch::Sender::new(false));
        loop {
            self.greet();
            let mut lost = line.lost();
            let Ears { asks, beats, passed, told } = ears;
            tokio::select! {
                () = self.answer_all(&line, asks, &room[0], is_ending) => {}
                // What others pass on must not wait for what is passed on to them.
                () = self.answer_all(&line, passed, &room[1], &never) => {}
                () = self.hear_beats(beats) => {}
                () = self.hear_told(told) => {}
                _ = lost.wait_for(|is_lost| *is_lost) => {}
            }
            if *is_ending.borrow() {
                return carrier.has_answered.notify_one();
            }
            carrier.lost_at.store(self.clock.uptime().max(1), Ordering::Relaxed);
            (line, ears) = loop {
                let Some(line) = carrier.bus.next_line().await else { return };
                match carrier.listen(&line, self.mark).await {
                    Ok(ears) => break (line, ears),
                    Err(error) if *line.lost().borrow() => {
                        tracing::debug!(%error, "the connection to the broker was lost again");
                    }
                    Err(error) => tracing::error!(%error, "cannot hear hosts over the broker"),
                }
                tokio::time::sleep(AGAIN).await;
            };
            // In this order: with the clock on and nobody excused yet, all would seem to have gone.
            let lost_at = carrier.lost_at.load(Ordering::Relaxed);
            self.hosts().excuse(self.clock.uptime().saturating_sub(lost_at));
            carrier.lost_at.store(0, Ordering::Release);
        }
    }

    /// Until when hosts could be heard, on the clock of the boot in milliseconds: now, or until the
    /// connection to the broker was lost.
    pub(super) fn heard_until(&self) -> u64 {
        self.lost_at().unwrap_or_else(|| self.clock.uptime())
    }

    fn lost_at(&self) -> Option<u64> {
        let carrier = self.carrier.get()?;
        Some(carrier.lost_at.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// How old what is known of hosts is, where there is no connection on which they are heard.
    pub fn age_of_hosts(&self) -> Option<Duration> {
        let lost_at = self.lost_at()?;
        Some(Duration::from_millis(self.clock.uptime().saturating_sub(lost_at)))
    }

    /// Learns who is there, and makes up for what was missed on both sides.
    fn greet(&self) {
        let away: Vec<String> = {
            let hosts = self.hosts();
            let known = hosts.known().map(|(host, _)| host);
            known.filter(|host| !hosts.is_at_socket(host)).map(str::to_owned).collect()
        };
        {
            let mut lanes = self.lanes();
            let hosts = self.hosts();
            lanes.all_heard(|host| !hosts.is_at_socket(host));
        }
        self.errands(away, Why::All);
    }

    /// Answers each question in a task of its own; those that have come when it is to end as well.
    async fn answer_all(
        self: &Arc<Self>,
        line: &Arc<Line>,
        mut asks: Subscriber,
        room: &Arc<Semaphore>,
        is_ending: &watch::Sender<bool>,
    ) {
        let (mut end, mut is_last) = (is_ending.subscribe(), false);
        loop {
            let message = tokio::select! {
                biased;
                message = asks.next() => message,
                () = async { drop(end.wait_for(|is_ending| *is_ending).await) }, if !is_last => {
                    is_last = true;
                    match asks.drain().await {
                        Ok(()) => continue,
                        Err(_) => return,
                    }
                }
            };
            let Some(message) = message else { break };
            let Ok(place) = room.clone().acquire_owned().await else { return };
            let (controller, line) = (self.clone(), line.clone());
            tokio::spawn(Box::pin(async move {
                controller.reply(&line, message).await;
                drop(place);
            }));
        }
        if is_last {
            let all = u32::try_from(AT_ONCE).unwrap_or(u32::MAX);
            drop(room.acquire_many(all).await);
        }
    }

    /// Leaves what hosts ask to other controllers, once what has come is answered.
    pub(super) async fn leave_to_others(&self) {
        let Some(carrier) = self.carrier.get() else { return };
        carrier.is_ending.send_replace(true);
        if tokio::time::timeout(LAST_ANSWERS, carrier.has_answered.notified()).await.is_err() {
            tracing::warn!("hosts were not answered in time, and ask again");
        }
    }

    async fn hear_beats(self: &Arc<Self>, mut beats: Subscriber) {
        while let Some(message) = beats.next().await {
            self.take_beat(&message);
        }
    }

    async fn hear_told(&self, mut told: Subscriber) {
        while let Some(Message { payload, .. }) = told.next().await {
            match decode::<Meanwhile>(&payload) {
                Ok(Meanwhile { host, told }) => self.take_told(&host, told),
                Err(error) => tracing::debug!(%error, "cannot read what a controller tells"),
            }
        }
    }

    /// Has those of `hosts` told that are there and heard over the broker.
    pub(super) fn call(&self, hosts: &[String], why: Why) {
        if self.carrier.get().is_none() {
            return;
        }
        let uptime = self.clock.uptime();
        let there: Vec<_> = {
            let known = self.hosts();
            hosts.iter().filter(|host| known.is_over_bus(host, uptime)).cloned().collect()
        };
        self.errands(there, why);
    }

    fn errands(&self, hosts: Vec<String>, why: Why) {
        let Some(carrier) = self.carrier.get().filter(|_| !hosts.is_empty()) else { return };
        {
            let mut errands = lock(&carrier.errands);
            for host in hosts {
                errands.entry(host).or_default().insert(why);
            }
        }
        carrier.is_due.notify_one();
    }

    /// Refuses at once what no host could be told: what is in this memory only while there is no
    /// connection to the broker, and what no message has room for. Encoded, `record` has `size`
    /// bytes.
    pub(super) fn reach(&self, record: &Record, size: usize, is_stored: bool) -> Result<()> {
        let Some(carrier) = self.carrier.get() else { return Ok(()) };
        let hosts = &record.job.hosts;
        let line = carrier.bus.line();
        let needs_bus = || {
            let known = self.hosts();
            hosts.iter().any(|host| !known.is_at_socket(host))
        };
        match line {
            Err(error) if !is_stored && needs_bus() => Err(error),
            // The store has a connection of its own.
            Err(_) => Ok(()),
            // All that a task has is in there as well, but for its host and its limits.
            Ok(line) if 2 * (size + BESIDE) < Carrier::room(&line) => Ok(()),
            Ok(line) => {
                let host = hosts.first().map_or("", String::as_str);
                let task = record.seal(host, u64::MAX, Some(u64::MAX), true)?;
                let size = carried(&task);
                let room = Carrier::room(&line);
                if size <= room {
                    return Ok(());
                }
                let message = format!(
                    "the job would be {size} bytes, more than the {room} that a message of the \
                     broker has room for; upload what is large as a file and name it"
                );
                Err(Error::new(Kind::TooLarge, message))
            }
        }
    }
}
