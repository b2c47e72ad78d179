//! A parameter of the running kernel.

use std::fmt;
use std::fs::File;
use std::io::Write;

use rustix::fs::OFlags;

use super::{Cell, CellKind, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::hands::{Hands, failed};
use crate::host::view::View;

pub fn sysctl(key: impl Into<String>, value: &str) -> State {
    State::plain(Cell::Sysctl(key.into()), Value::Text(words(value)))
}

/// The name of the parameter.
pub(super) struct Sysctl<'a>(pub(super) &'a str);

impl CellKind for Sysctl<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        host.sysctl(self.0).map(Value::Text)
    }

    fn assign(&self, hands: &Hands, _: &Value, to: &Value) -> Result<()> {
        let Value::Text(value) = to else { return Err(self.cannot_hold(to)) };
        let opened = hands.root.open(&path(self.0), OFlags::WRONLY);
        opened
            .map_err(Into::into)
            .and_then(|fd| File::from(fd).write_all(format!("{value}\n").as_bytes()))
            .map_err(|error| failed(format!("cannot set {}: {error}", self.0), error))
    }

    fn is_persistent(&self) -> bool {
        false
    }
}

impl fmt::Display for Sysctl<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel parameter {}", self.0)
    }
}

impl View {
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = path(key);
        // A directory of parameters is none itself.
        if !self.exists(&path) || self.exists(&format!("{path}/")) {
            return Err(Error::new(Kind::NotFound, format!("this kernel has no {key}")));
        }
        Ok(words(&self.read(&path)?))
    }
}

fn path(key: &str) -> String {
    format!("/proc/sys/{}", key.replace('.', "/"))
}

/// How lists of numbers in the kernel compare: by their words.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
