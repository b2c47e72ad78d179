//! What the tests of the host share.
#![allow(dead_code, unreachable_pub, reason = "no test binary uses all of it")]
#![expect(clippy::disallowed_methods, reason = "makes hosts and looks at them from outside")]
#![allow(clippy::allow_attributes, reason = "which of them are expected differs by test binary")]

pub mod cases;
pub mod host;
