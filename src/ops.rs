//! Every operation there is.

use std::sync::LazyLock;

use crate::controller::{self, ControllerOp};
use crate::op::{Access, Agent, AgentOp, Domain, Op, Shape};
use crate::permission::Permission;
use crate::provider;

/// A row, whoever carries it out.
pub type Row = Op<Run>;

/// Which process carries a row out.
#[derive(Clone, Copy)]
pub enum Run {
    Agent(&'static dyn AgentOp),
    Controller(&'static dyn ControllerOp),
}

/// A noun with its rows, in the order of the manual.
pub struct Chapter {
    pub name: &'static str,
    pub about: &'static str,
    pub rows: Vec<Row>,
}

static CHAPTERS: LazyLock<Vec<Chapter>> = LazyLock::new(|| {
    let on_hosts = provider::DOMAINS.iter().map(|domain| chapter(domain, Run::Agent));
    let here = controller::DOMAINS.iter().map(|domain| chapter(domain, Run::Controller));
    on_hosts.chain(here).collect()
});

fn chapter<R: Copy>(domain: &Domain<R>, run: impl Fn(R) -> Run) -> Chapter {
    let Domain { name, about, ops } = *domain;
    Chapter { name, about, rows: ops.iter().map(|op| op.with(run(op.run))).collect() }
}

pub fn chapters() -> &'static [Chapter] {
    &CHAPTERS
}

pub fn all() -> impl Iterator<Item = &'static Row> {
    CHAPTERS.iter().flat_map(|chapter| &chapter.rows)
}

pub fn find(id: &str) -> Option<&'static Row> {
    all().find(|row| row.id == id)
}

/// What an agent can be asked to do.
pub fn agent(id: &str) -> Option<&'static Op<Agent>> {
    provider::DOMAINS.iter().flat_map(|domain| domain.ops).find(|op| op.id == id)
}

impl Row {
    pub fn shape(&self) -> &'static dyn Shape {
        match self.run {
            Run::Agent(op) => op,
            Run::Controller(op) => op,
        }
    }

    /// How an agent carries it out; None where the controller answers.
    pub fn access(&self) -> Option<Access> {
        match self.run {
            Run::Agent(op) => Some(op.access()),
            Run::Controller(_) => None,
        }
    }

    /// Whether its path names the hosts it is for.
    pub fn has_target(&self) -> bool {
        matches!(self.run, Run::Agent(_)) && self.path.contains("{hostname}")
    }

    /// Whether it tells what is known of hosts, which is from memory where none can be heard.
    pub fn tells_of_hosts(&self) -> bool {
        self.permission == Some(Permission::AgentRead) && !self.changes()
    }

    /// Whether it changes something, on a host or in the controller.
    pub fn changes(&self) -> bool {
        match self.run {
            Run::Agent(op) => op.access() != Access::Read,
            Run::Controller(_) => self.method != crate::op::Method::Get,
        }
    }

    /// Whether its answer has no end.
    pub fn is_endless(&self) -> bool {
        matches!(self.run, Run::Agent(op) if op.endless().is_some())
    }

    /// The full route, as in `/api/node/{hostname}/os`.
    pub fn route(&self) -> String {
        format!("/api{}", self.path)
    }
}

/// Whether hosts have jobs of the operation `id` wait for their time, and then go down.
pub fn ends_boot(id: &str) -> bool {
    find(id).is_some_and(|row| row.ends_boot)
}
