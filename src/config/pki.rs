//! Keys that agents and controllers are known by.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether hosts have to be accepted, and tasks and outcomes signed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct ControllerPki {
    /// Gives a host nothing until somebody has accepted the key of its agent, believes no outcome
    /// that is not signed with that key, and signs every task. The agents need `agent.pki.enabled`.
    /// Otherwise every agent is accepted that gets as far as to this controller.
    pub enabled: bool,
    /// Where this controller's key is kept, and made at its first start, where `enabled` is set.
    /// Controllers that share a broker need the same key. Default: `controller.state_dir`.
    pub key_dir: Option<PathBuf>,
    /// Accepts agents of hosts that nobody knew before by themselves. A host whose key has changed,
    /// or that was rejected, waits all the same.
    pub auto_accept: bool,
}

/// How this agent is known to controllers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct AgentPki {
    /// Signs what this agent tells, as controllers demand it that have `controller.pki.enabled`.
    pub enabled: bool,
    /// Where this agent's key is kept, and made at its first start, where `enabled` is set.
    /// Default: `agent.state_dir`.
    pub key_dir: Option<PathBuf>,
}

impl ControllerPki {
    /// Where the key is, of the controller whose state is in `state`.
    pub(crate) fn dir<'a>(&'a self, state: &'a Path) -> &'a Path {
        self.key_dir.as_deref().filter(|_| self.enabled).unwrap_or(state)
    }
}

impl AgentPki {
    /// Where the key is, of the agent whose state is in `state`.
    pub(crate) fn dir<'a>(&'a self, state: &'a Path) -> &'a Path {
        self.key_dir.as_deref().filter(|_| self.enabled).unwrap_or(state)
    }
}
