//! What is answered: what an operation tells, and what it has changed or would change.

use serde_json::{Value as Json, json};

use super::act::Acted;
use super::{Executor, uptime};
use crate::clock::{Clock, rfc3339};
use crate::error::{Error, Kind, Result};
use crate::host::command::bounded;
use crate::host::journal::{Planned, Work};
use crate::host::look::{For, Passing};
use crate::host::plan::{Change, Plan};
use crate::host::view::View;
use crate::job::Task;
use crate::op::Agent;

/// How many bytes of differences an answer repeats, as they are in JSON.
const MAX_DIFFS: usize = 256 * 1024;

impl Executor {
    /// What there is to tell, of the host as it will be after `plan` where one is given.
    pub(super) fn show(
        &self,
        provider: Agent,
        task: &Task,
        plan: Option<&Plan>,
        who: For,
    ) -> Result<Json> {
        let view = self.view_for(task);
        let view = plan.map_or_else(|| view.clone(), |plan| view.after(plan));
        let params = Passing::of(&task.params);
        self.core.eyes.look(who, move || provider.show(&view, &params))
    }

    pub(super) fn preview(&self, provider: Agent, task: &Task) -> Result<Json> {
        let work = self.plan(provider, task, For::Read)?;
        let name = self.name(task, &work)?;
        let Work::Plan(plan) = work else {
            return Err(Error::new(Kind::NoPreview, "it cannot tell beforehand what it would do"));
        };
        let shown = self.show(provider, task, Some(&plan), For::Read)?;
        let changes = changes(&plan, &self.view_for(task));
        let mut answer = told(shown, &changes, &plan);
        answer["plan"] = json!(name);
        answer["dry_run"] = json!(true);
        Ok(answer)
    }
}

/// The answer to an act.
pub(super) fn tell(provider: Agent, task: &Task, acted: Acted) -> Result<Json> {
    let mut answer = object(provider.tell(&task.params, acted.done)?);
    answer["changed"] = json!(acted.changed);
    Ok(answer)
}

/// What `plan` changes, with as much of the differences as an answer has room for.
pub(super) fn changes(plan: &Plan, view: &View) -> Vec<Change> {
    let (mut changes, mut room) = (plan.changes(view), MAX_DIFFS);
    for diff in changes.iter_mut().filter_map(|change| change.diff.as_mut()) {
        let (kept, cost) = bounded(diff, room);
        room -= cost;
        if kept.len() < diff.len() {
            *diff = format!("{kept}\n… and more\n");
        }
    }
    changes
}

/// The answer to a change: what its operation tells, and what it did.
pub(super) fn told(shown: Json, changes: &[Change], plan: &Plan) -> Json {
    let mut answer = object(shown);
    answer["changed"] = json!(plan.changes_the_host());
    if !changes.is_empty() {
        answer["changes"] = json!(changes);
    }
    let residue = plan.residue();
    if !residue.is_empty() {
        answer["residue"] = json!(residue);
    }
    answer
}

/// An answer that also says until when the change has to be confirmed, if it has.
pub(super) fn until(mut answer: Json, planned: &Planned) -> Json {
    if let Some(deadline) = planned.deadline {
        let left = deadline.saturating_sub(uptime()).saturating_mul(1000);
        answer["confirm_until"] = json!(rfc3339(Clock::default().wall().saturating_add(left)));
    }
    answer
}

/// An answer has members, whatever the operation tells.
fn object(shown: Json) -> Json {
    match shown {
        Json::Object(_) => shown,
        Json::Null => json!({}),
        other => json!({ "value": other }),
    }
}
