//! What the tests of the host share.
#![expect(clippy::disallowed_methods, reason = "makes hosts and looks at them from outside")]

pub(crate) mod cases;
pub(crate) mod host;
