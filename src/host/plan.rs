//! What it takes to get from what is to what should be. Pure data; applying it is
//! [`Executor`](super::Executor)'s business.

use std::io::Read;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use similar::TextDiff;

use super::cell::{self, Blobs, Cell, Digest, Value};
use super::journal::{Record, inline};
use super::reach::Reach;
use super::standing::Standing;
use super::view::View;
use super::want::{Claim, Refresh, Want, Wish};
use crate::error::{Error, Kind, Result};

/// How much of a file is compared line by line.
const MAX_DIFF: u64 = 1024 * 1024;
const DIFF_TIME: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Plan {
    pub(super) steps: Vec<Step>,
    /// Contents that the plan names: in a plan that is written down, small ones only; others lie
    /// beside the journal.
    #[serde(default, skip_serializing_if = "Blobs::is_empty", with = "inline")]
    pub(super) blobs: Blobs,
    /// The job that applied it, if one did.
    #[serde(skip)]
    pub(super) job: String,
    /// The job whose change it takes back, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) undoes: Option<String>,
    /// What would remain of it beyond what its cells know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) leaves: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    Set(Set),
    Refresh(Refresh),
}

/// An assignment. Exchanging `from` and `to` gives its inverse.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Set {
    pub(super) cell: Cell,
    pub(super) from: Value,
    pub(super) to: Value,
    /// What the cell held before OSAPI first assigned it. Written down with the plan, because
    /// whoever finishes an interrupted job can no longer tell.
    pub(super) origin: Value,
    /// Whether nobody else is supposed to change the cell.
    pub(super) owned: bool,
    /// Whether it takes something back, and so leaves alone what others have put there since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_back: bool,
    /// The job whose value this covers, in either direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) was: Option<String>,
}

impl Plan {
    /// Compares `want` with what `host` holds and keeps the difference.
    pub fn of(host: &View, want: Want) -> Result<Self> {
        let Want { wishes, blobs, undoes, leaves } = want;
        let mut plan = Self { steps: Vec::new(), blobs, job: String::new(), undoes, leaves };
        // Whether anything changes that the coming refreshes are there to announce.
        let (mut stirred, mut announcing) = (false, false);
        for wish in wishes {
            match wish {
                Wish::Be { cell, value: to, claim } => {
                    stirred &= !announcing;
                    announcing = false;
                    let now = host.after(&plan);
                    let (from, to) = (now.value(&cell)?, now.owned(to)?);
                    let known = host.record(&cell);
                    let is_back = matches!(claim, Claim::Was(..) | Claim::Back);
                    let was = match &claim {
                        Claim::Was(former) => match Standing::of(host, &cell, &former.job) {
                            Standing::Gone => continue,
                            Standing::Covered(by) => return Err(built_upon(&cell, &by)),
                            Standing::Stands | Standing::Unknown => former.was.clone(),
                        },
                        _ => host.top(&cell),
                    };
                    if from == to {
                        // Somebody else has put it back. What is left is to forget it.
                        if claim == Claim::Back
                            && let Some(Record { origin, owned, .. }) = known
                        {
                            let set = Set { cell, from, to, origin, owned, is_back, was };
                            plan.steps.push(Step::Set(set));
                        }
                        continue;
                    }
                    if goes_with_others(&now, &cell, &from, &to)? {
                        match claim {
                            // What others have put there is theirs, and needs it.
                            Claim::Was(..) | Claim::Back => continue,
                            _ => {
                                let message = format!("{cell} is not empty");
                                return Err(Error::new(Kind::Conflict, message));
                            }
                        }
                    }
                    admit(&cell, &from, &claim, known.as_ref())?;
                    cell.kind().check(&now, &from, &to)?;
                    let is_ours = known.as_ref().is_some_and(|record| record.owned);
                    let owned = is_ours || matches!(claim, Claim::Ours | Claim::New);
                    let former = plan.sets().find(|set| set.cell == cell).map(|set| &set.origin);
                    let origin = former.or_else(|| Some(&known.as_ref()?.origin));
                    let origin = origin.unwrap_or(&from).clone();
                    plan.blobs.extend(known.into_iter().flat_map(|record| record.blobs));
                    if is_back {
                        plan.leaves.extend(cell.kind().stays(&now, &from, &to));
                    }
                    let set = Set { cell, from, to, origin, owned, is_back, was };
                    plan.steps.push(Step::Set(set));
                    stirred = true;
                }
                Wish::Then(refresh) => {
                    announcing = true;
                    if stirred {
                        plan.steps.push(Step::Refresh(refresh));
                    }
                }
            }
        }
        if plan.steps.is_empty() {
            plan.leaves.clear();
        }
        if plan.undoes.is_some() {
            cell::check_all(host, plan.sets())?;
        }
        Ok(plan)
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether it makes a difference to the host, and not only to what is remembered of it.
    pub fn changes_the_host(&self) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Set(set) => set.from != set.to,
            Step::Refresh(_) => true,
        })
    }

    /// The plan that takes this one back.
    ///
    /// A refresh comes after what it announces, in either direction. So groups are reversed, and
    /// the sets within them, but a group's refreshes stay at its end.
    pub fn inverse(&self) -> Self {
        let continues =
            |a: &Step, b: &Step| matches!((a, b), (Step::Set(_), _) | (_, Step::Refresh(_)));
        let mut steps = Vec::new();
        for group in self.steps.chunk_by(continues).rev() {
            let is_set = |step: &&Step| matches!(step, Step::Set(_));
            steps.extend(group.iter().rev().filter(is_set).map(Step::inverse));
            steps.extend(group.iter().filter(|step| !is_set(step)).cloned());
        }
        Self { steps, ..self.clone() }
    }

    /// What the plan was made for, in full.
    pub(super) fn found(&self) -> Vec<&Value> {
        self.sets().map(|set| &set.from).collect()
    }

    /// What the plan brings about, in full.
    pub(super) fn sought(&self) -> Vec<&Value> {
        self.sets().map(|set| &set.to).collect()
    }

    /// Identifies what a caller can see of this plan; equal on hosts where the same happens.
    pub fn digest(&self) -> Digest {
        let public: Vec<Step> = self.steps.iter().map(Step::public).collect();
        Digest::of(serde_json::to_vec(&public).unwrap_or_default())
    }

    /// What would remain of this plan after it was taken back.
    pub fn residue(&self) -> Vec<String> {
        let residue = self.steps.iter().filter_map(|step| match step {
            Step::Set(set) => set.cell.kind().residue(&set.from, &set.to),
            Step::Refresh(refresh) => refresh.leaves.clone(),
        });
        residue.chain(self.leaves.iter().cloned()).collect()
    }

    pub fn changes(&self, host: &View) -> Vec<Change> {
        let after = host.after(self);
        let changed = self.sets().filter(|set| set.from != set.to);
        changed.map(|set| set.change(host, &after)).collect()
    }

    pub(super) fn sets(&self) -> impl DoubleEndedIterator<Item = &Set> {
        self.steps.iter().filter_map(|step| match step {
            Step::Set(set) => Some(set),
            Step::Refresh(_) => None,
        })
    }

    /// The part of this plan that can be carried out before the system is up. A boot has undone
    /// the rest by itself.
    pub(super) fn early(&self) -> Self {
        let is_early = |step: &&Step| match step {
            Step::Set(set) => set.cell.kind().is_persistent(),
            Step::Refresh(refresh) => refresh.early,
        };
        let steps = self.steps.iter().filter(is_early).cloned().collect();
        Self { steps, ..self.clone() }
    }

    /// Whether only a system that is up can take this back.
    pub(super) fn needs_the_system(&self) -> bool {
        self.sets().any(|set| set.cell.kind().needs_the_system())
    }

    pub(super) fn first(&self, steps: usize) -> Self {
        let steps = self.steps.iter().take(steps).cloned().collect();
        Self { steps, ..self.clone() }
    }
}

/// Whether assigning `to` would take a directory away in which there is something, or a group in
/// which there is somebody.
fn goes_with_others(host: &View, cell: &Cell, from: &Value, to: &Value) -> Result<bool> {
    match (cell, from, to) {
        (Cell::Node(path), Value::Directory { .. }, Value::Absent) => {
            Ok(!host.list_dir(path)?.is_empty())
        }
        (Cell::Group(name), Value::Group { .. }, Value::Absent) => {
            Ok(!host.members(name)?.is_empty())
        }
        _ => Ok(false),
    }
}

fn admit(cell: &Cell, found: &Value, claim: &Claim, known: Option<&Record>) -> Result<()> {
    let is_ours = known.is_some_and(|record| record.owned);
    let reason = match claim {
        Claim::Shared | Claim::Back => return Ok(()),
        Claim::Ours | Claim::New if *found == Value::Absent => return Ok(()),
        Claim::Ours if is_ours => return Ok(()),
        Claim::Was(former) if former.value == *found => return Ok(()),
        Claim::New => "exists already".to_owned(),
        Claim::Ours => "is not managed by OSAPI".to_owned(),
        Claim::Was(former) => match known {
            Some(record) if record.job != former.job && record.value == *found => {
                return Err(built_upon(cell, &record.job));
            }
            _ => "was changed since by somebody else".to_owned(),
        },
    };
    Err(Error::new(Kind::Conflict, format!("{cell} {reason}")))
}

fn built_upon(cell: &Cell, job: &str) -> Error {
    let message = format!("job {job} has built upon {cell} since; undo that first");
    Error::new(Kind::Superseded, message)
}

impl Step {
    pub(super) fn reach(&self) -> Reach {
        match self {
            Self::Set(set) => set.cell.kind().reach(&set.to),
            Self::Refresh(refresh) => Reach::of_program(&refresh.program),
        }
    }

    fn inverse(&self) -> Self {
        match self {
            Self::Set(set) => {
                let (from, to) = (set.to.clone(), set.from.clone());
                Self::Set(Set { from, to, is_back: true, ..set.clone() })
            }
            Self::Refresh(_) => self.clone(),
        }
    }

    /// Whether one command carries out both.
    pub(super) fn goes_with(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Set(set), Self::Set(next)) => set.cell.goes_with(&next.cell),
            _ => false,
        }
    }

    fn public(&self) -> Self {
        match self {
            Self::Set(set) => {
                let (from, to, origin) = (set.from.public(), set.to.public(), Value::Absent);
                Self::Set(Set { from, to, origin, was: None, ..set.clone() })
            }
            Self::Refresh(_) => self.clone(),
        }
    }
}

impl Set {
    /// What is remembered of the cell once `job` has assigned it; a cell that is back where it
    /// started is nobody's concern.
    pub(super) fn record(&self, job: &str, blobs: &Blobs) -> Option<Record> {
        (self.to != self.origin).then(|| self.remembered(job, blobs))
    }

    pub(super) fn remembered(&self, job: &str, blobs: &Blobs) -> Record {
        // A password is never given back, so the hash that it had goes with the job's plan.
        let kept = Some(&self.origin).filter(|origin| !matches!(origin, Value::Password { .. }));
        let origin = kept.and_then(Value::content).and_then(|digest| blobs.get_key_value(digest));
        Record {
            cell: self.cell.clone(),
            value: self.to.clone(),
            origin: self.origin.clone(),
            owned: self.owned,
            job: job.to_owned(),
            blobs: origin
                .map(|(digest, bytes)| (digest.clone(), bytes.clone()))
                .into_iter()
                .collect(),
        }
    }

    fn change(&self, before: &View, after: &View) -> Change {
        let is_private = self.from.is_private() || self.to.is_private();
        let text = |view: &View, value: &Value| -> Option<String> {
            let mut text = String::new();
            if let Value::File { .. } = value {
                view.open(&self.cell).ok()?.take(MAX_DIFF).read_to_string(&mut text).ok()?;
            }
            Some(text)
        };
        let files =
            [(before, &self.from), (after, &self.to)].map(|(view, value)| text(view, value));
        let diff = match files {
            [Some(old), Some(new)] if old != new && !is_private => {
                // A difference that takes long to tell is told coarsely.
                let mut telling = TextDiff::configure();
                let diff = telling.timeout(DIFF_TIME).diff_lines(&old, &new);
                Some(diff.unified_diff().header("before", "after").to_string())
            }
            _ => None,
        };
        let (from, to) = (self.from.public(), self.to.public());
        Change { cell: self.cell.clone(), from, to, diff }
    }
}

/// One difference, for people and programs to read.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Change {
    pub cell: Cell,
    pub from: Value,
    pub to: Value,
    /// Unified diff of the content, where it is text and not private.
    pub diff: Option<String>,
}
