//! What the agent can bring about on a host, one module per domain.

use crate::op::Domain;

pub mod sysctl;

/// The order is that of the manual and of the command line's help.
pub static DOMAINS: &[&Domain] = &[&sysctl::DOMAIN];
