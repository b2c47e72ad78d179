//! What hosts ask and say over a broker.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, RequestErrorKind};
use futures_util::future::try_join_all;
use uuid::Uuid;

use super::super::desk::{PART, ROOM};
use super::super::lanes::{Question, Which};
use super::super::{Controller, ids};
use super::{BESIDE, Carrier, Why, carried};
use crate::broker::{self, Line};
use crate::error::{Error, ErrorBody, Kind, Result};
use crate::job::{decode, encode};
use crate::link::bus::{Beat, Meanwhile, Passed, host_of};
use crate::link::{About, Answer, Ask, Head, MOST_TOLD, Next, Tell, Told};

/// How long whoever listens may take to make room, and how long another controller may take with
/// what is passed on: the host waits five seconds for its answer.
const LISTENING: Duration = Duration::from_secs(3);
const PASSING: Duration = Duration::from_secs(4);

/// The host that speaks on a subject, where that can be the machine id of one.
fn speaker(subject: &str) -> Option<&str> {
    let host = host_of(subject);
    broker::is_name(host).then_some(host)
}

fn ids_of(texts: &[String]) -> HashSet<Uuid> {
    texts.iter().filter_map(|id| Uuid::parse_str(id).ok()).collect()
}

/// How much of an object one message has room for: in base64 it takes a third more.
fn part(line: &Line) -> usize {
    PART.min(Carrier::room(line) / 4 * 3)
}

/// What comes together may go to as many other controllers, one message each.
fn are_few(told: usize) -> Result<()> {
    if told <= MOST_TOLD {
        return Ok(());
    }
    let message = format!("{told} reports are more than the {MOST_TOLD} that go together");
    Err(Error::new(Kind::TooLarge, message))
}

fn is_own_word(about: &About, host: &str) -> Result<()> {
    if about.machine_id == host {
        return Ok(());
    }
    let message = format!("{host} speaks for itself only, and not for {}", about.machine_id);
    Err(Error::new(Kind::Denied, message))
}

impl Controller {
    /// Answers a question of a host, or one that another controller passes on.
    pub(super) async fn reply(self: &Arc<Self>, line: &Line, message: Message) {
        let Message { subject, reply, payload, .. } = message;
        let (Some(reply), Some(carrier)) = (reply, self.carrier.get()) else { return };
        let is_passed = carrier.subjects.desk(self.mark) == subject.as_str();
        // The broker lets whoever asks name any place to answer at, and us write nearly anywhere.
        let inbox = carrier.subjects.inbox(host_of(&subject));
        if !is_passed && !reply.starts_with(&inbox) {
            return tracing::warn!(%subject, %reply, "a host wants to be answered elsewhere than at its inbox");
        }
        let answer = if is_passed {
            Box::pin(self.answer_passed(line, &payload)).await
        } else {
            self.answer_host(line, &subject, &payload).await
        };
        let answer: Result<Answer, ErrorBody> = answer.map_err(|error| error.body());
        let sent = match encode(&answer) {
            Ok(bytes) => line.client.publish(reply, bytes).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            // It asks again.
            tracing::warn!(error, %subject, "cannot answer a host");
        }
    }

    async fn answer_host(
        self: &Arc<Self>,
        line: &Line,
        subject: &str,
        payload: &[u8],
    ) -> Result<Answer> {
        let refused = |why: String| Error::new(Kind::InvalidInput, format!("cannot answer: {why}"));
        let host = speaker(subject).ok_or_else(|| refused("no host has such a name".to_owned()))?;
        let ask = serde_json::from_slice(payload).map_err(|error| refused(error.to_string()))?;
        // What comes with each outcome is not to be as large as what is asked now and then.
        match ask {
            Ask::Next(next) => Box::pin(self.answer_next(line, host, next)).await,
            Ask::Finish(reports) => {
                self.heard_of(host, None);
                self.report(host, reports).await.map(|()| Answer::Done)
            }
            Ask::Tell(told) => Box::pin(self.answer_tell(line, host, told)).await,
            Ask::Fetch { job, object, offset } => match self.elsewhere(&job) {
                None => Box::pin(self.fetch(host, &job, &object, offset, part(line))).await,
                Some(mark) => {
                    self.vouched(host)?;
                    let ask = Ask::Fetch { job, object, offset };
                    let passed = Box::pin(self.pass(mark, host, ask)).await?;
                    passed.ok_or_else(|| {
                        Error::new(Kind::NotFound, "the controller that made the job is gone")
                    })
                }
            },
        }
    }

    /// What there is to do, at once.
    async fn answer_next(self: &Arc<Self>, line: &Line, host: &str, next: Next) -> Result<Answer> {
        let Next { holds, waits, classes, most, done, about, .. } = next;
        let mut heads: Vec<Head> = Vec::new();
        if let Some(about) = &about {
            is_own_word(about, host)?;
            self.enrol(about).await?;
            heads = self.store.ends().await?.heads().to_vec();
        }
        self.heard_of(host, about);
        if !done.is_empty() {
            self.report(host, done).await?;
        }
        if self.hosts().get(host).is_none() {
            let (tasks, called_off) = (Vec::new(), Vec::new());
            return Ok(Answer::Tasks { tasks, has_more: false, heads, called_off });
        }
        let (holds, waits) = (ids_of(&holds), Some(ids_of(&waits)));
        let which = {
            let mut lanes = self.lanes();
            lanes.heard(host);
            Which::Asked(lanes.asked(host))
        };
        let question = Question { holds, waits, classes, most: most.min(ROOM), which };
        let mut room = Carrier::room(line);
        let (tasks, more) = self.offer(host, &question, |task| {
            let left = room.checked_sub(carried(&task.task.body));
            room = left.unwrap_or(room);
            left.is_some()
        })?;
        let called_off = self.lanes().called_off(host);
        Ok(Answer::Tasks {
            // Whoever got nothing is not to ask for more of it.
            has_more: !more.is_empty() && (!tasks.is_empty() || question.most == 0),
            tasks: tasks.into_iter().map(|handed| handed.task).collect(),
            heads,
            called_off: called_off.iter().take(ROOM).map(Uuid::to_string).collect(),
        })
    }

    /// Takes note that a host was heard.
    fn heard_of(&self, host: &str, about: Option<Box<About>>) {
        let now = (self.clock.uptime(), self.clock.wall());
        let about = about.filter(|about| self.is_believed(about));
        let was_there = self.hosts().hear_over_bus(host, about.map(Arc::from), now);
        match was_there {
            None => self.errands(vec![host.to_owned()], Why::Who),
            Some(false) => self.call(&[host.to_owned()], Why::New),
            Some(true) => {}
        }
    }

    pub(super) fn take_beat(self: &Arc<Self>, message: &Message) {
        let Some(host) = speaker(&message.subject) else { return };
        let Beat { holds, waits, about, has_left } = match decode(&message.payload) {
            Ok(beat) => beat,
            Err(error) => return tracing::debug!(%error, host, "cannot read a beat"),
        };
        if let Some(Err(error)) = about.as_ref().map(|about| is_own_word(about, host)) {
            return tracing::warn!(%error, "a host says that it is another");
        }
        if has_left {
            self.hosts().left(host);
            return self.lose_all(host);
        }
        if let Some(about) = about.clone() {
            let controller = self.clone();
            tokio::spawn(async move {
                if let Err(error) = controller.enrol(&about).await {
                    tracing::warn!(%error, host = about.machine_id, "cannot enrol a host");
                }
            });
        }
        self.heard_of(host, about);
        let (holds, waits) = (ids_of(&holds), ids_of(&waits));
        if self.lanes().beat(host, &holds, &waits, self.clock.uptime()) {
            self.call(&[host.to_owned()], Why::Lost);
        }
    }

    /// What a host is done with, each in the memory or the store that has it.
    async fn report(self: &Arc<Self>, host: &str, reports: Vec<Told>) -> Result<()> {
        // Nobody else is bothered with what is not believed here.
        self.vouched(host)?;
        are_few(reports.len())?;
        let (mut here, mut elsewhere) = (Vec::new(), BTreeMap::<u16, Vec<Told>>::new());
        for report in reports {
            match self.elsewhere(&report.job) {
                None => here.push(report),
                Some(mark) => elsewhere.entry(mark).or_default().push(report),
            }
        }
        if elsewhere.is_empty() {
            return self.finish(host, here).await;
        }
        let passed =
            elsewhere.into_iter().map(|(mark, reports)| self.pass_reports(mark, host, reports));
        let both = async { tokio::join!(self.finish(host, here), try_join_all(passed)) };
        let (here, passed) = Box::pin(both).await;
        here?;
        passed.map(drop)
    }

    /// The mark of another controller, where that has the job in its memory.
    fn elsewhere(&self, job: &str) -> Option<u16> {
        let mark = ids::mark_of(Uuid::parse_str(job).ok()?);
        (mark != ids::STORED && mark != self.mark).then_some(mark)
    }

    /// As many together as there is room for in a message.
    async fn pass_reports(&self, mark: u16, host: &str, reports: Vec<Told>) -> Result<()> {
        let Some(carrier) = self.carrier.get() else { return Ok(()) };
        let line = carrier.bus.line()?;
        let most = Carrier::room(&line);
        let (mut group, mut size) = (Vec::new(), 0);
        for report in reports {
            let more = encode(&report)?.len() + BESIDE;
            if size + more > most && !group.is_empty() {
                let group = std::mem::take(&mut group);
                self.pass(mark, host, Ask::Finish(group)).await?;
                size = 0;
            }
            size += more;
            group.push(report);
        }
        self.pass(mark, host, Ask::Finish(group)).await.map(drop)
    }

    /// Asks the controller that keeps a job; None where it is gone, and whoever waited with it.
    async fn pass(&self, mark: u16, host: &str, ask: Ask) -> Result<Option<Answer>> {
        let Some(carrier) = self.carrier.get() else { return Ok(None) };
        let line = carrier.bus.line()?;
        let payload = encode(&Passed { host: host.to_owned(), ask })?;
        let request = async_nats::Request::new().payload(payload).timeout(Some(PASSING));
        let mut lost = line.lost();
        let answer = tokio::select! {
            answer = line.client.send_request(carrier.subjects.desk(mark), request) => answer,
            _ = lost.wait_for(|is_lost| *is_lost) => return Err(broker::broken()),
        };
        match answer {
            Ok(message) => {
                let answer: Result<Answer, ErrorBody> = decode(&message.payload)?;
                Ok(Some(answer?))
            }
            Err(error) => match error.kind() {
                RequestErrorKind::NoResponders => Ok(None),
                RequestErrorKind::TimedOut => {
                    tracing::warn!(host, mark, "another controller does not take what a host says");
                    Ok(None)
                }
                _ => Err(broker::broken().because(error)),
            },
        }
    }

    /// What another controller was told about jobs in this memory.
    async fn answer_passed(self: &Arc<Self>, line: &Line, payload: &[u8]) -> Result<Answer> {
        let Passed { host, ask } = decode(payload)?;
        match ask {
            Ask::Finish(reports) => self.finish(&host, reports).await.map(|()| Answer::Done),
            Ask::Tell(told) => Ok(answer_of(self.tell_here(&host, told).await)),
            Ask::Fetch { job, object, offset } => {
                self.fetch(&host, &job, &object, offset, part(line)).await
            }
            Ask::Next(_) => Err(Error::new(Kind::InvalidInput, "any controller can answer that")),
        }
    }

    async fn answer_tell(&self, line: &Line, host: &str, told: Vec<Tell>) -> Result<Answer> {
        self.vouched(host)?;
        are_few(told.len())?;
        let (mut own, mut stored) = (Vec::new(), Vec::new());
        let mut elsewhere = BTreeMap::<u16, Vec<Tell>>::new();
        for tell in told {
            let Ok(id) = Uuid::parse_str(&tell.job) else { continue };
            match ids::mark_of(id) {
                ids::STORED => stored.push(tell),
                mark if mark == self.mark => own.push(tell),
                mark => elsewhere.entry(mark).or_default().push(tell),
            }
        }
        if let Some(carrier) = self.carrier.get().filter(|_| !stored.is_empty()) {
            // Those who have somebody who asks are not known; this one hears it as well.
            let told = encode(&Meanwhile { host: host.to_owned(), told: stored })?;
            let sent = line.client.publish(carrier.subjects.told(), told).await;
            sent.map_err(|error| broker::broken().because(error))?;
        }
        let mut is_heard = self.tell_here(host, own).await;
        for (mark, told) in elsewhere {
            let answer = self.pass(mark, host, Ask::Tell(told)).await?;
            is_heard &= matches!(answer, Some(Answer::Done));
        }
        Ok(answer_of(is_heard))
    }

    /// Passes on what was told of jobs in this memory. False where nobody listens to one of them.
    async fn tell_here(&self, host: &str, told: Vec<Tell>) -> bool {
        let mut is_heard = true;
        for Tell { job, data } in told {
            let Ok(id) = Uuid::parse_str(&job) else { continue };
            is_heard &= self.take_word(host, id, data, LISTENING).await;
        }
        is_heard
    }

    /// Keeps what stored jobs say meanwhile.
    pub(super) fn take_told(&self, host: &str, told: Vec<Tell>) {
        if self.vouched(host).is_err() {
            return;
        }
        for Tell { job, data } in told {
            if let Ok(id) = Uuid::parse_str(&job)
                && ids::mark_of(id) == ids::STORED
            {
                self.tell(host, id, data);
            }
        }
    }
}

fn answer_of(is_heard: bool) -> Answer {
    if is_heard { Answer::Done } else { Answer::Unheard }
}
