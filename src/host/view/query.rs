//! Programs that only look. Whoever plans may run these and no others.

use std::time::Duration;

use super::View;
use crate::error::{Error, Kind, Result};
use crate::host::command::{self, Done};
use crate::host::transient::Transient;

/// A command that only looks. The constants of this type are all that a view can run.
#[derive(Clone, Copy, Debug)]
pub(in crate::host) struct Query {
    /// A bare name, looked up in the system directories.
    pub(in crate::host) program: &'static str,
    pub(in crate::host) args: &'static [&'static str],
    /// After which it is killed, with whatever it started.
    pub(in crate::host) limit: Duration,
}

impl View {
    /// Runs `query` about `operands` to its end. Like whoever asks it may write nowhere but in
    /// the scratch directory, and it holds up no change.
    pub(in crate::host) fn query(&self, query: Query, operands: &[&str]) -> Result<Done> {
        let done = self.query_start(query, operands)?;
        if done.truncated {
            let message = format!("{} says more than can be read of it", query.program);
            return Err(Error::new(Kind::TooLarge, message));
        }
        Ok(done)
    }

    /// The same where the beginning of what it says is of use.
    pub(in crate::host) fn query_start(&self, query: Query, operands: &[&str]) -> Result<Done> {
        // What stands after two hyphens is no option, whatever it looks like.
        let is_fenced = query.args.last() == Some(&"--");
        let is_option = |operand: &&&str| operand.starts_with('-') && !is_fenced;
        if let Some(operand) = operands.iter().find(is_option) {
            let message = format!("{operand:?} looks like an option of {}", query.program);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let path = self.root.command(query.program)?;
        let args: Vec<&str> = query.args.iter().chain(operands).copied().collect();
        command::query(&path, &args, &self.journal.scratch(), query.limit)
    }

    /// Runs what only looks, and yet needs more than whoever plans has, in a unit that gives it
    /// nothing to change. What it is about stands after two hyphens in `words`.
    pub(super) fn query_apart(
        &self,
        transient: &Transient,
        words: &[&str],
        limit: Duration,
    ) -> Result<Done> {
        let path = self.root.command("systemd-run")?;
        let args = transient.args(words);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        command::query(&path, &args, &self.journal.scratch(), limit)
    }
}

/// Who keeps the host from going down or to sleep.
const INHIBITORS: Query = Query {
    program: "busctl",
    args: &[
        "--json=short",
        "--timeout=10",
        "call",
        "--",
        "org.freedesktop.login1",
        "/org/freedesktop/login1",
        "org.freedesktop.login1.Manager",
        "ListInhibitors",
    ],
    limit: Duration::from_secs(15),
};

impl View {
    /// Who keeps the host from going down or to sleep, as busctl writes logind's answer in JSON.
    /// Where there is no logind, nobody can.
    pub fn inhibitors(&self) -> Result<String> {
        const NOBODY: &str = r#"{"data":[[]]}"#;
        let done = self.query(INHIBITORS, &[])?;
        let is_absent =
            done.stderr.contains("was not provided") || done.stderr.contains("not found");
        let has_bus = self.exists("/run/dbus/system_bus_socket");
        if done.exit_code != 0 && (is_absent || !has_bus) {
            return Ok(NOBODY.to_owned());
        }
        done.success(INHIBITORS.program)
    }
}
