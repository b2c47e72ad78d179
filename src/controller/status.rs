//! How far a job is, computed from what there is to know of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Kind;

/// How far a job is.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Nobody has taken it yet.
    Submitted,
    /// A host has taken it.
    Processing,
    Completed,
    Failed,
    /// No host of those asked can do it at all.
    Skipped,
    /// Some hosts have completed it and some have failed.
    PartialFailure,
}

impl Status {
    pub const ALL: [Self; 6] = [
        Self::Submitted,
        Self::Processing,
        Self::Completed,
        Self::Failed,
        Self::Skipped,
        Self::PartialFailure,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::PartialFailure => "partial_failure",
        }
    }

    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Submitted | Self::Processing)
    }

    /// How an outcome counts.
    pub(super) const fn of(kind: Option<Kind>) -> Self {
        match kind {
            None => Self::Completed,
            Some(Kind::Unsupported) => Self::Skipped,
            Some(_) => Self::Failed,
        }
    }

    /// What the states of single hosts come to.
    pub(super) fn overall(hosts: impl IntoIterator<Item = Self>) -> Self {
        let mut seen = [false; Self::ALL.len()];
        for host in hosts {
            seen[host as usize] = true;
        }
        let has = |status: Self| seen[status as usize];
        let is_any_final = has(Self::Completed) || has(Self::Failed) || has(Self::Skipped);
        if has(Self::Processing) || (has(Self::Submitted) && is_any_final) {
            Self::Processing
        } else if has(Self::Submitted) {
            Self::Submitted
        } else if has(Self::Failed) {
            if has(Self::Completed) { Self::PartialFailure } else { Self::Failed }
        } else if has(Self::Skipped) && !has(Self::Completed) {
            Self::Skipped
        } else {
            Self::Completed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Status::{Completed, Failed, PartialFailure, Processing, Skipped, Submitted};
    use super::*;

    #[test]
    fn hosts_come_to_one_status() {
        for (hosts, expected) in [
            (vec![Submitted, Submitted], Submitted),
            (vec![Submitted, Completed], Processing),
            (vec![Processing, Failed], Processing),
            (vec![Completed, Skipped], Completed),
            (vec![Completed, Failed, Skipped], PartialFailure),
            (vec![Failed, Skipped], Failed),
            (vec![Skipped], Skipped),
        ] {
            assert_eq!(Status::overall(hosts.clone()), expected, "{hosts:?}");
        }
    }
}
