//! What the service manager does with a unit, once.

use super::Executor;
use super::act::interrupted;
use crate::error::{Error, Kind, Result};
use crate::host::cell;
use crate::host::command::Done;
use crate::host::want::{Operate, Run, Verb};

impl Executor {
    /// Asks for it, waits until it is done, and sees that it has come about: a program that ends
    /// by itself has ended well, and any other is there.
    pub(super) fn operate(&self, job: &str, what: &Operate) -> Result<Done> {
        let verb = match what.verb {
            Verb::Start => "start",
            Verb::Restart => "restart",
        };
        let args = [verb, "--", &what.unit].map(str::to_owned).to_vec();
        let program = "systemctl".to_owned();
        let done = self.run_here(job, &Run { program, args, cwd: None, limit: what.limit })?;
        let view = self.view();
        done.success("systemctl").map_err(|error| cell::told(&view, &what.unit, &error))?;
        cell::stays(&view, &what.unit)?;
        Ok(Done::default())
    }

    /// What became of it, where an earlier attempt was stopped on the way: a later run of the
    /// unit is what was asked for. Its manager does not stop with whoever asks.
    pub(super) fn operated(&self, what: &Operate) -> Result<Done> {
        let unit = self.view().unit(&what.unit)?;
        let is_another = !unit.invocation.is_empty() && unit.invocation != what.before;
        if !is_another || unit.activity() == "activating" {
            return Err(interrupted());
        }
        if unit.activity() == "inactive" && unit.result != "success" {
            let message = format!("{} ended with: {}", what.unit, unit.result);
            return Err(Error::new(Kind::HostFailed, message));
        }
        Ok(Done::default())
    }
}
