//! A host, and the one way to change it: observe, plan, apply, verify.
//!
//! A provider sees the host through a [`View`], which cannot change anything, and answers with a
//! [`Want`]: which [cells](cell) shall hold which values. The difference between that and what
//! the cells hold is a [`Plan`]. Only [`Executor`] applies plans, and nothing else does anything.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "everybody else reads through `View` and writes through `Want`"
)]

pub mod cell;
mod command;
pub mod dpkg;
mod exec;
mod hands;
mod journal;
mod look;
mod plan;
mod reach;
mod root;
mod standing;
mod transient;
mod view;
mod want;

pub(crate) use command::query;
pub use command::{Done, Line, Lines};
pub use exec::{Executor, Listening, has_journal};
pub use journal::{Amendment, Bounds as UndoBounds, Record};
pub use plan::{Change, Plan};
pub use root::Root;
pub use view::{Capability, Drift, Listed, Machine, Object, Select, Space, Unit, View};
pub use want::{Act, Operate, Power, PowerAction, Refresh, Run, Verb, Want};
