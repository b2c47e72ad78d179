//! What stands between controller and agent.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use osapi::link::{Answer, Ask, Class, Next, Sealed, Told};
use osapi::ops;
use serde_json::{Value, json};

use crate::support::Appliance;
use crate::{PATIENCE, until};

/// How long who asks for work waits where there is none.
pub(super) const PACE: Duration = Duration::from_millis(100);
fn read(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

fn write(stream: &mut UnixStream, body: &[u8]) -> Option<()> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], body].concat()).ok()
}

fn tasks(tasks: Vec<Sealed>) -> Vec<u8> {
    let (heads, called_off) = (Vec::new(), Vec::new());
    let answer = Answer::Tasks { tasks, has_more: false, heads, called_off };
    serde_json::to_vec(&Ok::<_, ()>(answer)).unwrap()
}

/// What stands between the two. It passes on what it gets until it is told to be hostile; then
/// it keeps all work back, and hands out what it was given to hand out.
pub(super) struct Hostile {
    real: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) is_hostile: bool,
    pub(super) keeps_reports: bool,
    /// What it has seen of the controller's, by job.
    pub(super) seen: BTreeMap<String, Sealed>,
    pub(super) reports: BTreeMap<String, Told>,
    /// For any worker, each alone.
    pub(super) forged: VecDeque<Sealed>,
    /// For any worker but those whose it is, each alone.
    pub(super) misplaced: VecDeque<Sealed>,
    /// For those whose it is, each once the one before of that job is answered.
    pub(super) replayed: VecDeque<(String, Sealed)>,
    /// Jobs of `replayed` that the agent has; true once it was answered of.
    pub(super) out: BTreeMap<String, bool>,
    /// How many connections wait for something to hand out.
    pub(super) waiting: usize,
    open: Vec<UnixStream>,
}

impl Hostile {
    /// Puts itself into the place of the socket in the appliance's directory.
    pub(super) fn between(host: &Appliance) -> Arc<Self> {
        let socket = host.dir().join("agent.sock");
        let real = host.dir().join("controller.sock");
        until("there is a socket", || std::fs::rename(&socket, &real).ok());
        let listener = UnixListener::bind(&socket).unwrap();
        let (state, changed) = (Mutex::default(), Condvar::new());
        let hostile = Arc::new(Self { real, state, changed });
        let own = hostile.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (own, stream) = (own.clone(), stream.unwrap());
                std::thread::spawn(move || own.stand_between(stream));
            }
        });
        hostile
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Whoever waited for an answer on behalf of an agent that is gone waits no longer.
    pub(super) fn hang_up(&self) {
        for stream in std::mem::take(&mut self.state().open) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.real).unwrap();
        self.state().open.push(stream.try_clone().unwrap());
        stream
    }

    fn stand_between(&self, mut agent: UnixStream) -> Option<()> {
        let mut controller = self.connect();
        loop {
            let body = read(&mut agent)?;
            let question: Ask = serde_json::from_slice(&body).unwrap();
            let classes = match &question {
                Ask::Next(next) => {
                    self.state().let_go(&next.holds);
                    next.classes.clone()
                }
                Ask::Finish(told) if self.withholds(told) => {
                    let away = json!({ "Err": { "kind": "unavailable", "message": "away" } });
                    write(&mut agent, away.to_string().as_bytes())?;
                    std::thread::sleep(PACE);
                    continue;
                }
                _ => Vec::new(),
            };
            if self.state().is_hostile && !classes.is_empty() {
                write(&mut agent, &tasks(self.next(&classes)))?;
                continue;
            }
            write(&mut controller, &body)?;
            let answer = read(&mut controller)?;
            if let Ask::Finish(told) = &question {
                let is_done = answer == br#"{"Ok":"done"}"#;
                self.state().answered(told, is_done);
            }
            let answer = if classes.is_empty() { answer } else { self.seen(answer) };
            write(&mut agent, &answer)?;
        }
    }

    fn withholds(&self, told: &[Told]) -> bool {
        let mut state = self.state();
        state.reports.extend(told.iter().map(|told| (told.job.clone(), told.clone())));
        state.keeps_reports
    }

    /// Notes what the controller hands out, and keeps it back where it is hostile.
    fn seen(&self, answer: Vec<u8>) -> Vec<u8> {
        let Some(Answer::Tasks { tasks: handed, .. }) = answered(&answer) else { return answer };
        let mut state = self.state();
        let is_kept_back = state.is_hostile && !handed.is_empty();
        state.seen.extend(handed.into_iter().map(|sealed| (job_of(&sealed), sealed)));
        drop(state);
        self.changed.notify_all();
        if is_kept_back { tasks(Vec::new()) } else { answer }
    }

    /// What whoever asks for work of `classes` is handed.
    fn next(&self, classes: &[Class]) -> Vec<Sealed> {
        let mut state = self.state();
        state.waiting += 1;
        let waits = |state: &mut State| state.is_hostile && !state.has_for(classes);
        let waited = self.changed.wait_timeout_while(state, PACE, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting -= 1;
        if let Some((job, sealed)) =
            state.replayed(classes).and_then(|at| state.replayed.remove(at))
        {
            state.out.insert(job, false);
            return vec![sealed];
        }
        let misplaced = state.misplaced(classes).and_then(|at| state.misplaced.remove(at));
        misplaced.or_else(|| state.forged.pop_front()).into_iter().collect()
    }

    /// Asks in its own name, as the agent would.
    pub(super) fn ask(&self, question: &Ask) -> Value {
        let mut stream = UnixStream::connect(&self.real).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write(&mut stream, &serde_json::to_vec(question).unwrap()).unwrap();
        serde_json::from_slice(&read(&mut stream).unwrap()).unwrap()
    }

    /// The tasks of `jobs` as the controller has signed them, none of which the agent has got.
    pub(super) fn keep_back(&self, jobs: &[String]) -> Vec<Sealed> {
        until("all of them are handed out", || {
            for class in [Class::Change, Class::Act] {
                let next = Next { classes: vec![class], ..Next::default() };
                let answer = self.ask(&Ask::Next(next));
                self.seen(answer.to_string().into_bytes());
            }
            let state = self.state();
            jobs.iter().map(|job| state.seen.get(job).cloned()).collect()
        })
    }
}

impl State {
    fn replayed(&self, classes: &[Class]) -> Option<usize> {
        let is_free = |(job, sealed): &(String, Sealed)| {
            classes.contains(&class_of(sealed)) && !self.out.contains_key(job)
        };
        self.replayed.iter().position(is_free)
    }

    fn misplaced(&self, classes: &[Class]) -> Option<usize> {
        self.misplaced.iter().position(|sealed| !classes.contains(&class_of(sealed)))
    }

    fn has_for(&self, classes: &[Class]) -> bool {
        let is_for_one = self.replayed(classes).or_else(|| self.misplaced(classes)).is_some();
        is_for_one || !self.forged.is_empty()
    }

    /// The agent says what it holds: what it was answered of, and does not hold, is over.
    fn let_go(&mut self, holds: &[String]) {
        self.out.retain(|job, is_answered| !*is_answered || holds.contains(job));
    }

    fn answered(&mut self, told: &[Told], is_done: bool) {
        for told in told {
            if let Some(is_answered) = self.out.get_mut(&told.job) {
                *is_answered |= is_done;
            }
        }
    }
}

fn answered(answer: &[u8]) -> Option<Answer> {
    let answer: Value = serde_json::from_slice(answer).unwrap();
    serde_json::from_value(answer["Ok"].clone()).ok()
}

/// In whose turn a task comes.
fn class_of(sealed: &Sealed) -> Class {
    let task = sealed.open().unwrap();
    Class::of(ops::agent(&task.op).unwrap(), &task.options)
}

pub(super) fn job_of(sealed: &Sealed) -> String {
    let task: Value = serde_json::from_str(&sealed.body).unwrap();
    task["job"].as_str().unwrap().to_owned()
}
