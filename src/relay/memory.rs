//! What a relay knows of its host: who it is, what it holds, what waits for it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::inbox::{Inbox, ROOM};
use crate::broker::is_name;
use crate::clock::Clock;
use crate::error::{Error, Kind, Result};

use crate::link::bus::{Beat, Handed, Wake};
use crate::link::{About, Class, Sealed, Told};

/// The longest and the shortest time between two beats.
const BEAT: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_secs(1);
/// How often the same is said of the host again.
const REPEAT: Duration = Duration::from_mins(1);
/// How long, and of how many jobs, it is known that they are reported: they may come once more with
/// a wake that was under way.
const REPORTED: Duration = Duration::from_secs(10);
const MOST_REPORTED: usize = 1024;
/// Of how many jobs it is known that they were called off.
const MOST_CALLED_OFF: usize = 64;

/// Numbers a connection of the agent.
pub(super) type Connection = u64;

#[derive(Default)]
pub(super) struct Memory {
    inboxes: [Inbox; Class::ALL.len()],
    /// The agent's last word.
    held: BTreeSet<Uuid>,
    /// What was handed out in the last answer on each connection, of which the agent says with its
    /// next question there whether it holds that. Every connection that has asked is here.
    handed: HashMap<Connection, Vec<Uuid>>,
    reported: VecDeque<(Instant, Uuid)>,
    called_off: VecDeque<Uuid>,
    about: Option<Box<About>>,
    /// When it was last said over this connection to the broker.
    about_said: Option<Instant>,
    beat: Option<Instant>,
    /// What it was said to hold, and what of that to wait here.
    said: (Vec<String>, Vec<String>),
    has_news: bool,
    /// An agent has ended, which is to be said even where another is here by now: what has no end
    /// was told by the first, and would be told once more.
    has_left: bool,
}

impl Memory {
    /// As it is before anything is known: whatever there is to do has to be asked for.
    pub(super) fn new() -> Self {
        let mut memory = Self::default();
        memory.doubt(&Class::ALL);
        memory
    }

    /// Takes note of what the agent says of itself; the host that it is.
    pub(super) fn hear(
        &mut self,
        connection: Connection,
        holds: &[String],
        about: Option<&About>,
    ) -> Result<String> {
        if let Some(about) = about {
            let id = &about.machine_id;
            if !is_name(id) {
                let message = format!("{id:?} is no machine id");
                return Err(Error::new(Kind::InvalidInput, message));
            }
            if self.about.as_ref().is_some_and(|known| known.machine_id != *id) {
                let message = "this relay speaks for one host only; where the machine id has \
                               changed, start it again";
                return Err(Error::new(Kind::Denied, message));
            }
            if self.about.as_deref() != Some(about) {
                self.about = Some(Box::new(about.clone()));
                (self.about_said, self.has_news) = (None, true);
            }
        }
        let known = self.about.as_ref().ok_or_else(|| {
            Error::new(Kind::Unavailable, "ask for work first, and say who you are")
        })?;
        let host = known.machine_id.clone();
        let held = holds.iter().filter_map(|id| Uuid::parse_str(id).ok()).collect();
        self.has_news |= self.held != held || self.handed.is_empty();
        self.held = held;
        self.handed.insert(connection, Vec::new());
        Ok(host)
    }

    /// The host, for a question that says nothing of it.
    pub(super) fn host(&self) -> Option<String> {
        self.about.as_ref().map(|about| about.machine_id.clone())
    }

    /// The agent has closed a connection.
    pub(super) fn hung_up(&mut self, connection: Connection) {
        if self.handed.remove(&connection).is_none() {
            return;
        }
        self.has_news = true;
        if self.handed.is_empty() {
            self.has_left = true;
            self.held.clear();
            // It may have had something that comes before what waits here.
            self.doubt(&Class::ALL);
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.handed.len()
    }

    /// There may be something to do that was not told.
    pub(super) fn doubt(&mut self, classes: &[Class]) {
        for class in classes {
            self.inboxes[*class as usize].doubt();
        }
    }

    /// Whether what to do next has to be asked for.
    pub(super) fn is_to_be_asked(&self, classes: &[Class]) -> bool {
        classes.iter().any(|class| self.inboxes[*class as usize].is_to_be_asked())
    }

    /// Whether nothing of `classes` waits here.
    pub(super) fn is_empty(&self, classes: &[Class]) -> bool {
        classes.iter().all(|class| self.inboxes[*class as usize].is_empty())
    }

    /// Whether more of `classes` is known to wait.
    pub(super) fn has_more(&self, classes: &[Class]) -> bool {
        classes.iter().any(|class| self.inboxes[*class as usize].is_known_of())
    }

    /// Somebody asks for `classes` now.
    pub(super) fn asks(&mut self, classes: &[Class]) {
        for class in classes {
            self.inboxes[*class as usize].asks();
        }
    }

    /// What the agent has, and what waits for it here.
    pub(super) fn holds(&self) -> Vec<String> {
        let waiting = self.inboxes.iter().flat_map(Inbox::jobs);
        let handed = self.handed.values().flatten().copied();
        let all: BTreeSet<_> = self.held.iter().copied().chain(waiting).chain(handed).collect();
        all.iter().map(Uuid::to_string).collect()
    }

    /// What waits here for the agent.
    pub(super) fn waits(&self) -> Vec<String> {
        let has = |job: &Uuid| {
            self.held.contains(job) || self.handed.values().any(|handed| handed.contains(job))
        };
        let waiting = self.inboxes.iter().flat_map(Inbox::jobs).filter(|job| !has(job));
        waiting.map(|job| job.to_string()).collect()
    }

    /// Puts an answer where it belongs. What is returned goes to whoever asked, whatever else waits.
    pub(super) fn answered(
        &mut self,
        classes: &[Class],
        tasks: Vec<Sealed>,
        has_more: bool,
    ) -> Vec<Sealed> {
        let [class] = classes else {
            // Of which class each is, only the agent knows.
            if has_more {
                self.doubt(classes);
            }
            for job in tasks.iter().filter_map(job_of) {
                self.inboxes.iter_mut().for_each(|inbox| inbox.forget(job));
            }
            return tasks;
        };
        let (mut last, mut rest) = (None, Vec::new());
        for task in tasks {
            match job_of(&task) {
                Some(job) => {
                    last = last.max(Some(job));
                    // It came with a wake while this was under way.
                    if self.has(job) {
                        continue;
                    }
                    self.inboxes[*class as usize].keep(job, task, now());
                }
                // The agent says what is wrong with it.
                None => rest.push(task),
            }
        }
        if has_more {
            self.inboxes[*class as usize].has_more_behind(last);
        }
        rest
    }

    /// Hands out what comes first of each of `classes`.
    pub(super) fn take(&mut self, classes: &[Class], most: usize) -> Vec<(Uuid, Sealed)> {
        classes.iter().flat_map(|class| self.inboxes[*class as usize].take(most, now())).collect()
    }

    /// These go to the agent.
    pub(super) fn hand(&mut self, connection: Connection, jobs: impl IntoIterator<Item = Uuid>) {
        self.has_news = true;
        if let Some(handed) = self.handed.get_mut(&connection) {
            handed.extend(jobs);
        }
    }

    /// A controller has taken these reports.
    pub(super) fn reported(&mut self, jobs: &[Uuid]) {
        let now = Instant::now();
        for job in jobs {
            self.held.remove(job);
            self.called_off.retain(|off| off != job);
            self.reported.push_back((now, *job));
        }
        self.has_news |= !jobs.is_empty();
        while self.reported.len() > MOST_REPORTED
            || self.reported.front().is_some_and(|(at, _)| at.elapsed() > REPORTED)
        {
            self.reported.pop_front();
        }
    }

    pub(super) fn call_off(&mut self, jobs: &[String]) {
        for job in jobs.iter().filter_map(|job| Uuid::parse_str(job).ok()) {
            if !self.called_off.contains(&job) {
                self.called_off.push_back(job);
            }
        }
        while self.called_off.len() > MOST_CALLED_OFF {
            self.called_off.pop_front();
        }
    }

    pub(super) fn called_off(&self) -> BTreeSet<Uuid> {
        self.called_off.iter().copied().collect()
    }

    /// Takes what a controller says unasked; those of whom somebody may wait for that.
    pub(super) fn wake(&mut self, wake: Wake) -> Vec<Class> {
        let mut awaited = Vec::new();
        for Handed { job, class, task } in wake.tasks {
            let Ok(job) = Uuid::parse_str(&job) else { continue };
            if !self.has(job) {
                self.inboxes[class as usize].offer(job, task, now());
                awaited.push(class);
            }
        }
        self.doubt(&wake.ask);
        awaited.extend(&wake.ask);
        if !wake.called_off.is_empty() {
            self.call_off(&wake.called_off);
            awaited.push(Class::Verdict);
        }
        if wake.who {
            self.about_said = None;
        }
        self.has_news |= wake.who || !awaited.is_empty();
        awaited.truncate(ROOM * Class::ALL.len());
        awaited
    }

    /// Whether the agent has it, or was done with it a moment ago.
    fn has(&self, job: Uuid) -> bool {
        let recent =
            || self.reported.iter().any(|(at, known)| *known == job && at.elapsed() < REPORTED);
        self.held.contains(&job)
            || self.handed.values().any(|handed| handed.contains(&job))
            || recent()
    }

    /// There is a new connection to the broker, over which nothing was said.
    pub(super) fn reconnected(&mut self) {
        self.doubt(&Class::ALL);
        (self.about_said, self.has_news) = (None, true);
        self.beat = None;
    }

    /// When there is something to say; None while there is nobody to say it of.
    pub(super) fn beat_is_due(&self) -> Option<Instant> {
        let now = Instant::now();
        if self.has_left {
            return Some(now);
        }
        if self.handed.is_empty() {
            return None;
        }
        let pause = if self.has_news { PACE } else { BEAT };
        Some(self.beat.map_or(now, |beat| beat + pause))
    }

    /// What there is to say by now, if anything.
    pub(super) fn beat(&mut self) -> Option<Beat> {
        let now = Instant::now();
        self.has_news = false;
        if self.has_left {
            (self.has_left, self.about_said, self.beat) = (false, None, None);
            return Some(Beat { has_left: true, ..Beat::default() });
        }
        let (holds, waits) = (self.holds(), self.waits());
        let says_the_same = self.said.0 == holds && self.said.1 == waits;
        let is_due = |at: Option<Instant>, pause| at.is_none_or(|at| now >= at + pause);
        let says_about = is_due(self.about_said, REPEAT);
        if says_the_same && !says_about && !is_due(self.beat, BEAT) {
            return None;
        }
        if says_about {
            self.about_said = Some(now);
        }
        (self.beat, self.said) = (Some(now), (holds.clone(), waits.clone()));
        let about = self.about.clone().filter(|_| says_about);
        Some(Beat { holds, waits, about, has_left: false })
    }
}

/// Milliseconds on the clock of the boot.
fn now() -> u64 {
    Clock::default().uptime()
}

/// The jobs that are over with these reports.
pub(super) fn over(told: &[Told]) -> Vec<Uuid> {
    let is_last = |told: &&Told| told.open().is_ok_and(|report| !report.amends);
    told.iter().filter(is_last).filter_map(|told| Uuid::parse_str(&told.job).ok()).collect()
}

/// The job that a task is of.
pub(super) fn job_of(task: &Sealed) -> Option<Uuid> {
    #[derive(serde::Deserialize)]
    struct Named {
        job: String,
    }
    let named: Named = serde_json::from_str(&task.body).ok()?;
    Uuid::parse_str(&named.job).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_agent_is_not_given_what_waits_here_before_what_the_last_one_had() {
        let mut memory = Memory::new();
        let about = About { machine_id: "m1".to_owned(), ..About::default() };
        memory.hear(1, &[], Some(&about)).unwrap();
        memory.asks(&Class::ALL);
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for job in [first, second] {
            let task = Sealed::new("{}".to_owned(), "m1", None);
            let handed = Handed { job: job.to_string(), class: Class::Change, task };
            memory.wake(Wake { tasks: vec![handed], ..Wake::default() });
        }
        assert_eq!(memory.take(&[Class::Change], 1)[0].0, first);
        assert!(!memory.is_to_be_asked(&[Class::Change]), "what comes next is here");
        memory.hung_up(1);
        assert!(memory.is_to_be_asked(&[Class::Change]));
    }
}
