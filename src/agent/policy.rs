//! What this host lets be done to it, whoever asks: the word of its own configuration.

use crate::error::{Error, Kind, Result};
use crate::op::{Access, Agent, Op};

/// The classes of work and the operations that are allowed; empty: all.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    allowed: Vec<Allowed>,
}

#[derive(Clone, Debug)]
enum Allowed {
    Class(Access),
    Op(String),
}

impl Policy {
    /// `words` are `read`, `write`, `execute`, and ids of operations.
    pub fn new(words: &[String]) -> Result<Self> {
        let allowed = words.iter().map(|word| match word.as_str() {
            "read" => Ok(Allowed::Class(Access::Read)),
            "write" => Ok(Allowed::Class(Access::Write)),
            "execute" => Ok(Allowed::Class(Access::Execute)),
            op if crate::ops::agent(op).is_some() => Ok(Allowed::Op(op.to_owned())),
            other => Err(Error::new(
                Kind::InvalidInput,
                format!(
                    "agent.policy names {other:?}, which is neither read, write, execute nor an \
                     operation of the agent"
                ),
            )),
        });
        Ok(Self { allowed: allowed.collect::<Result<_>>()? })
    }

    pub(super) fn check(&self, op: &Op<Agent>) -> Result<()> {
        let allows = |allowed: &Allowed| match allowed {
            Allowed::Class(class) => *class == op.run.access(),
            Allowed::Op(id) => id == op.id,
        };
        if self.allowed.is_empty() || self.allowed.iter().any(allows) {
            return Ok(());
        }
        let message = format!("agent.policy in this host's configuration does not allow {}", op.id);
        Err(Error::new(Kind::Denied, message))
    }
}
