//! Answering one agent connection: what to do next, what is done, what it needs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::time::Instant;
use uuid::Uuid;

use super::lanes::{Open, Question, Which};
use super::listen::SLOW;
use super::{Controller, Shared};
use crate::error::{Error, Kind, Result};
use crate::job::Progress;
use crate::link::bus::Handed;
use crate::link::{About, Answer, Ask, Class, Desk, Head, Next, Sealed, Tell};

/// How many tasks of a class one answer carries.
pub(super) const ROOM: usize = 64;
/// How many bytes of tasks one answer carries. Escaped within the frame they may double.
const BYTES: usize = 3 << 19;
/// How long a question for work may wait; it is also the sign of life.
const LONGEST: Duration = Duration::from_secs(30);
/// How often new heads of the audit log are handed out at most.
const HEADS_EVERY: Duration = Duration::from_secs(5);
/// How many bytes of a file one answer carries.
pub(super) const PART: usize = 512 << 10;

/// The controller's end of one agent connection. Who is there, the kernel has told.
pub struct AgentDesk {
    controller: Shared,
    pid: i32,
    host: Option<String>,
    heads: Option<(Instant, Vec<Head>)>,
    /// What it has told of that has no end.
    told: HashSet<Uuid>,
    /// What it was told that was called off.
    called_off: HashSet<Uuid>,
}

impl Controller {
    /// Answers one connection of the agent that runs as `uid` in process `pid`.
    pub fn agent(self: &Arc<Self>, uid: u32, pid: i32) -> AgentDesk {
        tracing::debug!(uid, pid, "an agent has connected");
        let (told, called_off) = (HashSet::new(), HashSet::new());
        AgentDesk { controller: self.clone(), pid, host: None, heads: None, told, called_off }
    }
}

impl Drop for AgentDesk {
    fn drop(&mut self) {
        for job in &self.told {
            self.controller.lose(*job);
        }
        if let Some(host) = &self.host {
            let uptime = self.controller.clock.uptime();
            self.controller.hosts().disconnected(host, self.pid, uptime);
        }
    }
}

#[async_trait]
impl Desk for AgentDesk {
    async fn answer(&mut self, ask: Ask) -> Result<Answer> {
        match ask {
            Ask::Next(Next { holds, classes, most, done, about, wait_ms, .. }) => {
                let host = self.hear(about).await?;
                if !done.is_empty() {
                    self.controller.finish(&host, done).await?;
                    // Whoever waits for that is answered before the next task is looked for.
                    tokio::task::yield_now().await;
                }
                let wait = Duration::from_millis(wait_ms).min(LONGEST);
                let holds = holds.iter().filter_map(|id| Uuid::parse_str(id).ok()).collect();
                let asked = self.controller.lanes().asked(&host);
                let which = Which::Asked(asked);
                let most = most.min(ROOM);
                let question = Question { holds, waits: None, classes, most, which };
                let (tasks, has_more) = self.next(&host, &question, wait).await?;
                let called_off = self.tell_called_off(&host, wait.is_zero());
                Ok(Answer::Tasks { tasks, has_more, heads: self.heads().await?, called_off })
            }
            Ask::Finish(reports) => {
                let host = self.who()?;
                self.controller.finish(&host, reports).await?;
                tokio::task::yield_now().await;
                Ok(Answer::Done)
            }
            Ask::Tell(told) => {
                let host = self.who()?;
                let mut is_heard = true;
                for Tell { job, data } in told {
                    let Ok(id) = Uuid::parse_str(&job) else { continue };
                    if self.controller.listened(&host, id) {
                        self.told.insert(id);
                    }
                    is_heard &= self.controller.take_word(&host, id, data, SLOW).await;
                }
                Ok(if is_heard { Answer::Done } else { Answer::Unheard })
            }
            Ask::Fetch { job, object, offset } => {
                let host = self.who()?;
                self.controller.fetch(&host, &job, &object, offset, PART).await
            }
        }
    }
}

impl AgentDesk {
    /// The host that this connection speaks for.
    fn who(&mut self) -> Result<String> {
        if let Some(host) = &self.host {
            return Ok(host.clone());
        }
        let known = self.controller.hosts().agent_of(self.pid);
        let host = known.ok_or_else(|| {
            Error::new(Kind::Unavailable, "ask for work first, and say who you are")
        })?;
        self.speak_for(&host);
        Ok(host)
    }

    fn speak_for(&mut self, host: &str) {
        if self.host.is_none() {
            self.host = Some(host.to_owned());
            self.controller.hosts().connected(host);
        }
    }

    /// Notes that the agent is there. A host is known from the first time it says who it is.
    async fn hear(&mut self, about: Option<Box<About>>) -> Result<String> {
        let controller = self.controller.clone();
        let now = (controller.clock.uptime(), controller.clock.wall());
        let Some(about) = about else {
            let host = self.who()?;
            controller.hosts().still_there(&host, now);
            return Ok(host);
        };
        if self.host.as_ref().is_some_and(|host| *host != about.machine_id) {
            let message = "a connection speaks for one host only";
            return Err(Error::new(Kind::Denied, message));
        }
        controller.enrol(&about).await?;
        let host = about.machine_id.clone();
        controller.hosts().hear(&host, Arc::from(about), self.pid, now);
        // Whoever spoke for this host before is gone, whether or not its connection is.
        controller.lanes().wake(&host);
        self.speak_for(&host);
        Ok(host)
    }

    /// Waits for work of `classes` that is not held, and says whether there is more of it.
    async fn next(
        &self,
        host: &str,
        question: &Question,
        wait: Duration,
    ) -> Result<(Vec<Sealed>, bool)> {
        let controller = &self.controller;
        let until = Instant::now() + wait;
        let generation = controller.hosts().generation(host);
        let arrivals = controller.lanes().arrivals(host, &question.classes);
        loop {
            let arrived: Vec<_> =
                arrivals.iter().map(|arrived| Box::pin(arrived.notified())).collect();
            if controller.hosts().generation(host) != generation {
                // What arrived is for somebody who is still there.
                for arrived in &arrivals {
                    arrived.notify_one();
                }
                return Ok((Vec::new(), false));
            }
            let (tasks, has_more) = controller.hand_out(host, question)?;
            let is_news = question.classes.contains(&Class::Verdict)
                && !self.called_off.is_superset(&self.called_off_now(host));
            if !tasks.is_empty() || is_news || arrived.is_empty() || wait.is_zero() {
                return Ok((tasks, has_more));
            }
            let arrived = futures_util::future::select_all(arrived);
            if tokio::time::timeout_at(until, arrived).await.is_err() {
                let now = (controller.clock.uptime(), controller.clock.wall());
                controller.hosts().still_there(host, now);
                return Ok((Vec::new(), false));
            }
            if question.classes != [Class::Look] {
                // Whoever asked for it and does not wait is answered before it is handed out.
                tokio::task::yield_now().await;
            }
        }
    }

    /// What was called off since the host took it, and was not told before; all of it to whoever
    /// asks `again` and again, for what is told to an agent that has yet to take note of the task
    /// is lost on it.
    fn tell_called_off(&mut self, host: &str, again: bool) -> Vec<String> {
        let now = self.called_off_now(host);
        let is_new = |id: &&Uuid| again || !self.called_off.contains(*id);
        let told = now.iter().filter(is_new).map(Uuid::to_string).collect();
        self.called_off = now;
        told
    }

    fn called_off_now(&self, host: &str) -> HashSet<Uuid> {
        self.controller.lanes().called_off(host).into_iter().take(ROOM).collect()
    }

    /// The ends of the audit log, where they have moved since they were handed out last.
    async fn heads(&mut self) -> Result<Vec<Head>> {
        if self.heads.as_ref().is_some_and(|(at, _)| at.elapsed() < HEADS_EVERY) {
            return Ok(Vec::new());
        }
        let heads = self.controller.store.ends().await?.heads().to_vec();
        if self.heads.as_ref().is_some_and(|(_, last)| *last == heads) {
            return Ok(Vec::new());
        }
        self.heads = Some((Instant::now(), heads.clone()));
        Ok(heads)
    }
}

impl Controller {
    fn hand_out(&self, host: &str, question: &Question) -> Result<(Vec<Sealed>, bool)> {
        let mut bytes = 0;
        let (tasks, more) = self.offer(host, question, |task| {
            let is_first = bytes == 0;
            bytes += task.task.body.len();
            is_first || bytes <= BYTES
        })?;
        Ok((tasks.into_iter().map(|handed| handed.task).collect(), !more.is_empty()))
    }

    /// Hands out what `question` asks for, for as long as there is room, and says of which classes
    /// there is more; nothing to a host that is to be given nothing.
    pub(super) fn offer(
        &self,
        host: &str,
        question: &Question,
        mut has_room: impl FnMut(&Handed) -> bool,
    ) -> Result<(Vec<Handed>, Vec<Class>)> {
        let (mut tasks, mut failed, mut wanted) = (Vec::new(), None, None);
        if self.vouched(host).is_err() {
            return Ok((tasks, Vec::new()));
        }
        let at = self.clock.uptime();
        let more = self.lanes().next(host, question, at, |open| {
            if !open.may_go() {
                wanted = Some(open.id);
                return false;
            }
            match self.handed(open, host) {
                Ok(handed) => {
                    let is_taken = has_room(&handed);
                    if is_taken {
                        tasks.push(handed);
                    }
                    is_taken
                }
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        });
        if let Some(id) = wanted {
            self.want(id);
        }
        failed.map_or(Ok((tasks, more)), Err)
    }

    /// A job's work for `host`, as it is now.
    pub(super) fn handed(&self, open: &Open, host: &str) -> Result<Handed> {
        let left = self.clock.left(&open.record.job.deadline);
        let is_off = open.so_far.borrow().cancelled.is_some();
        let key = self.signing_key();
        let until = key.map(|_| self.clock.wall().saturating_add(left));
        let body = open.record.seal(host, left, until, is_off)?;
        let task = Sealed::new(body, host, key);
        Ok(Handed { job: open.record.job.id.clone(), class: open.class, task })
    }

    /// Takes what a running job of `host` says: to whoever follows it, for whom that may take as long
    /// as `limit`, or for whoever asks. False where nobody can, or the host is not believed.
    pub(super) async fn take_word(
        &self,
        host: &str,
        id: Uuid,
        data: serde_json::Value,
        limit: Duration,
    ) -> bool {
        if self.vouched(host).is_err() {
            false
        } else if self.listened(host, id) {
            self.pass_on(id, data, limit).await
        } else {
            self.tell(host, id, data)
        }
    }

    /// Keeps what a running job said last for whoever asks meanwhile. False where nobody can.
    pub(super) fn tell(&self, host: &str, id: Uuid, data: serde_json::Value) -> bool {
        let lanes = self.lanes();
        let open = lanes.get(id).filter(|_| lanes.is_missing(id, host));
        let Some(open) = open.filter(|open| open.class != Class::Follow) else { return false };
        if let Ok(Progress { message, percent }) = serde_json::from_value(data) {
            // Whoever tells is not trusted to be brief.
            let progress = Progress::new(&message, percent);
            open.so_far.send_modify(|so_far| {
                so_far.told.insert(host.to_owned(), progress);
            });
        }
        true
    }

    /// A part of an object as it was when `job` was made. A host is given what its own jobs name, and
    /// nothing else.
    pub(super) async fn fetch(
        &self,
        host: &str,
        job: &str,
        object: &str,
        offset: u64,
        most: usize,
    ) -> Result<Answer> {
        self.vouched(host)?;
        // Another controller may have made it so lately that nobody here has heard of it.
        let record = self.record(job).await?;
        let is_own = record.job.hosts.iter().any(|own| own == host);
        let content = record.objects.get(object).filter(|_| is_own).ok_or_else(|| {
            Error::new(Kind::Denied, format!("{host} has no job {job} that needs {object:?}"))
        })?;
        let digest = content.digest.clone();
        let part = self.objects.part(&digest, offset, most).await.map_err(|error| {
            if error.kind() == Kind::NotFound {
                let message =
                    format!("the file {object:?} is no longer what the job was made with");
                return Error::new(Kind::Conflict, message);
            }
            error
        })?;
        Ok(Answer::Part(STANDARD.encode(part)))
    }
}
