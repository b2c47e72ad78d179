//! What a provider asks for: what should be, whatever is.
//!
//! A provider never compares, writes or restarts anything itself. It says which cells should
//! hold which values and what has to take notice; [`Plan::of`](super::plan::Plan::of) leaves out
//! what is so already.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cell::{self, Blobs, Cell, State, Value};
use super::plan::{Plan, Step};
use super::view::View;

#[derive(Clone, Default)]
pub struct Want {
    pub(super) wishes: Vec<Wish>,
    pub(super) blobs: Blobs,
    /// The job whose change is to be taken back.
    pub(super) undoes: Option<String>,
    /// What would remain of it beyond what its cells know.
    pub(super) leaves: Vec<String>,
}

#[derive(Clone)]
pub(super) enum Wish {
    Be { cell: Cell, value: Value, claim: Claim },
    Then(Refresh),
}

/// By what right a cell is assigned.
#[derive(Clone, Eq, PartialEq)]
pub(super) enum Claim {
    Shared,
    Ours,
    New,
    /// Back to what it held before OSAPI came.
    Back,
    /// If it still holds what a job gave it.
    Was(Former),
}

/// What a job gave a cell.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Former {
    pub(super) value: Value,
    pub(super) job: String,
    /// The job whose value it covered.
    pub(super) was: Option<String>,
}

impl Want {
    pub fn new() -> Self {
        Self::default()
    }

    /// A setting of the system, which others may change as well.
    pub fn set(self, state: State) -> Self {
        self.be(state, Claim::Shared)
    }

    /// Something only OSAPI keeps. What somebody else put there is not overwritten.
    pub fn own(self, state: State) -> Self {
        self.be(state, Claim::Ours)
    }

    /// Something that is not there yet, unless it is exactly as wanted.
    pub fn create(self, state: State) -> Self {
        self.be(state, Claim::New)
    }

    /// Gives a cell back: it shall hold what it held before OSAPI first assigned it.
    pub fn release(self, host: &View, cell: Cell) -> Self {
        match host.record(&cell) {
            Some(mut record) => {
                let bytes = record.origin.content().and_then(|name| record.blobs.remove(name));
                self.be(State { cell, value: record.origin, bytes }, Claim::Back)
            }
            None => self,
        }
    }

    /// That the directories which hold `path` are there. One that is not is made, with mode 0755,
    /// for the agent's own user, and goes again when the change is undone.
    pub fn parents(mut self, host: &View, path: &str) -> Self {
        let ends = path.match_indices('/').map(|(at, _)| &path[..at]);
        for parent in ends.filter(|parent| !parent.is_empty()) {
            if !host.exists(parent) {
                self = self.create(cell::directory(parent));
            }
        }
        self
    }

    /// Gives those of the directories that hold `path` back which OSAPI made for it and which
    /// hold nothing else, innermost first. Comes after what is said of `path` itself.
    pub fn release_parents(mut self, host: &View, path: &str) -> Self {
        let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
        let mut child = path;
        for parent in ends.collect::<Vec<_>>().into_iter().rev().map(|at| &path[..at]) {
            let cell = Cell::Node(parent.to_owned());
            let is_ours = host.record(&cell).is_some_and(|record| record.origin == Value::Absent);
            let name = child.rsplit('/').next().unwrap_or_default();
            let holds_others =
                host.list_dir(parent).map_or(true, |names| names.iter().any(|other| other != name));
            if !is_ours || holds_others {
                break;
            }
            self = self.release(host, cell);
            child = parent;
        }
        self
    }

    /// If anything since the previous refresh had to change, somebody has to take notice.
    pub fn then(mut self, refresh: Refresh) -> Self {
        self.wishes.push(Wish::Then(refresh));
        self
    }

    /// Names what would remain of the change after it was taken back, where its cells do not.
    pub fn leaves(mut self, what: impl Into<String>) -> Self {
        self.leaves.push(what.into());
        self
    }

    /// That nothing of `plan` had happened, provided nobody has built on it since.
    pub fn without(plan: &Plan) -> Self {
        let wishes = plan.inverse().steps.into_iter().map(|step| match step {
            Step::Set(set) => {
                let former = Former { value: set.from, job: plan.job.clone(), was: set.was };
                let claim = Claim::Was(former);
                Wish::Be { cell: set.cell, value: set.to, claim }
            }
            Step::Refresh(refresh) => Wish::Then(refresh),
        });
        let (blobs, undoes) = (plan.blobs.clone(), Some(plan.job.clone()));
        Self { wishes: wishes.collect(), blobs, undoes, leaves: Vec::new() }
    }

    fn be(mut self, state: State, claim: Claim) -> Self {
        if let (Some(content), Some(bytes)) = (state.value.content(), state.bytes) {
            self.blobs.insert(content.clone(), bytes);
        }
        self.wishes.push(Wish::Be { cell: state.cell, value: state.value, claim });
        self
    }
}

impl FromIterator<State> for Want {
    fn from_iter<T: IntoIterator<Item = State>>(states: T) -> Self {
        states.into_iter().fold(Self::new(), Self::set)
    }
}

/// Makes something that runs take notice of what was set before it.
///
/// It derives state from cells and has none of its own, so it may be repeated at any time, and
/// it is its own inverse once the cells hold their former values again.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Refresh {
    pub(super) program: String,
    pub(super) args: Vec<String>,
    /// Whether it belongs into early boot as well, where nothing runs that could take notice.
    pub(super) early: bool,
    /// What it is known to leave behind, although it should not.
    pub(super) leaves: Option<String>,
}

impl Refresh {
    /// A program that anyone may run again at any time.
    pub fn run(program: &str, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { program: program.to_owned(), args, early: false, leaves: None }
    }

    /// Has the service manager read the files of its units again.
    pub fn reload_units() -> Self {
        Self::run("systemctl", &["daemon-reload"]).early()
    }

    pub fn try_restart(unit: &str) -> Self {
        Self::run("systemctl", &["try-restart", "--", unit])
    }

    /// For what can be done, and matters, before the system is up.
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// Names what it leaves behind, for whoever considers to undo it.
    pub fn leaves(mut self, what: &str) -> Self {
        self.leaves = Some(what.to_owned());
        self
    }
}

/// Something that is done rather than brought about: at most once, and not undone.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Runs a program to its end.
    Run(Run),
    /// Has the service manager do something with a unit that cannot be seen to last.
    Operate(Operate),
    /// `start` tells the process from a later one with the same number.
    Signal { pid: i32, start: u64, signal: i32 },
    /// Makes the change of `job` permanent, which waits for it.
    Confirm { job: String },
    /// Takes the change of `job` back, which waits to be confirmed.
    Revert { job: String },
    /// Takes the host down. Another boot answers for it.
    Power(Power),
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Power {
    pub action: PowerAction,
    /// How long to wait before, in seconds.
    pub delay: u64,
    /// What whoever is logged in is told, on one line.
    pub message: Option<String>,
    /// Whatever programs have to say against it.
    pub is_forced: bool,
    /// When that is over, in seconds of this boot.
    pub(super) at: u64,
}

impl Power {
    pub fn new(action: PowerAction, delay: u64, message: Option<String>, is_forced: bool) -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self {
            action,
            delay,
            message,
            is_forced,
            at: now.tv_sec.unsigned_abs().saturating_add(delay),
        }
    }
}

/// What becomes of a host that goes down.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PowerAction {
    /// It comes up again.
    Reboot,
    /// It stays off until somebody switches it on.
    Shutdown,
}

impl PowerAction {
    /// As systemctl calls it.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::Shutdown => "poweroff",
        }
    }

    pub(super) fn about(self) -> &'static str {
        match self {
            Self::Reboot => "Reboot the host",
            Self::Shutdown => "Switch the host off",
        }
    }

    /// The beginning of a sentence that says when.
    pub(super) fn notice(self) -> &'static str {
        match self {
            Self::Reboot => "This host reboots",
            Self::Shutdown => "This host is switched off",
        }
    }
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Run {
    /// An absolute path, or a bare name that is looked up in the system directories.
    pub program: String,
    pub args: Vec<String>,
    /// Where it starts; `/` if not said.
    pub cwd: Option<String>,
    /// After which everything it started is killed.
    pub limit: Duration,
}

/// What a service manager is asked to do with a unit, and how to tell afterwards that it did.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Operate {
    pub verb: Verb,
    /// The unit's full name.
    pub unit: String,
    /// The run of it that there was before, as its manager calls it; empty if there was none.
    pub before: String,
    /// After which it is no longer waited for.
    pub limit: Duration,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    Start,
    Restart,
}
