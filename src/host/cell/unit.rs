//! Whether a unit of the service manager runs, and whether it starts by itself.
//!
//! Both are words of systemd. One that does not run any more is `inactive`, whether or not it
//! failed; one that is not there any more neither runs nor starts.

use std::fmt;
use std::time::Duration;

use super::{Blobs, Cell, CellKind, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::hands::Hands;
use crate::host::view::{Unit, View};

/// For how long, and how often, it is watched whether a service stays that its manager calls
/// started as soon as it has a process.
const WATCH: (u32, Duration) = (5, Duration::from_millis(100));

/// That the unit of this full name runs, or does not.
pub fn active(unit: impl Into<String>, runs: bool) -> State {
    let word = if runs { "active" } else { "inactive" };
    State::plain(Cell::Active(unit.into()), Value::Text(word.to_owned()))
}

/// That the unit of this full name starts by itself, or does not.
pub fn enabled(unit: impl Into<String>, starts: bool) -> State {
    let word = if starts { "enabled" } else { "disabled" };
    State::plain(Cell::Enabled(unit.into()), Value::Text(word.to_owned()))
}

/// The unit's full name.
pub(super) struct Active<'a>(pub(super) &'a str);

impl CellKind for Active<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        // Whoever is on the way, or is started over and over, is meant to run.
        let runs = matches!(host.unit(self.0)?.activity(), "active" | "activating");
        Ok(active(self.0, runs).value)
    }

    fn assign(&self, hands: &Hands, _: &Value, to: &Value, _: &Blobs) -> Result<()> {
        let Value::Text(word) = to else { return Err(self.cannot_hold(to)) };
        if word == "inactive" {
            return hands.run("systemctl", &["stop", "--", self.0], &[]);
        }
        if hands.view.unit(self.0)?.ends_by_itself() {
            // Its end is not what is wanted, so that is not waited for.
            return hands.run("systemctl", &["start", "--no-block", "--", self.0], &[]);
        }
        let started = hands.run("systemctl", &["start", "--", self.0], &[]);
        started.map_err(|error| told(&hands.view, self.0, &error))?;
        stays(&hands.view, self.0)
    }

    /// The manager goes on with what it was asked for, whatever becomes of whoever asked.
    fn is_atomic(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn is_persistent(&self) -> bool {
        false
    }

    fn residue(&self, from: &Value, _: &Value) -> Option<String> {
        let starts = *from == active(self.0, false).value;
        starts.then(|| format!("units that were started along with {}", self.0))
    }
}

impl fmt::Display for Active<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "whether {} runs", self.0)
    }
}

/// The unit's full name.
pub(super) struct Enabled<'a>(pub(super) &'a str);

impl CellKind for Enabled<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        Ok(Value::Text(host.unit(self.0)?.enablement().to_owned()))
    }

    fn assign(&self, hands: &Hands, now: &Value, to: &Value, _: &Blobs) -> Result<()> {
        let (Value::Text(now), Value::Text(to)) = (now, to) else {
            return Err(self.cannot_hold(to));
        };
        let run = |args: &[&str]| hands.run("systemctl", &[args, &["--", self.0]].concat(), &[]);
        match (now.as_str(), to.as_str()) {
            ("enabled-runtime", "disabled") => run(&["disable", "--runtime"]),
            ("disabled", "enabled-runtime") => run(&["enable", "--runtime"]),
            (_, "enabled-runtime") => run(&["disable"]),
            (_, "disabled") => {
                run(&["disable"])?;
                // What is there for this boot only showed behind what was there for every boot.
                let left = self.observe(&hands.view)?;
                let is_left = left == Value::Text("enabled-runtime".to_owned());
                if is_left { run(&["disable", "--runtime"]) } else { Ok(()) }
            }
            (_, "enabled") => run(&["enable"]),
            _ => Err(self.cannot_hold(&Value::Text(to.clone()))),
        }
    }

    /// There may be links in two places.
    fn is_atomic(&self, _: &Value, _: &Value) -> bool {
        false
    }
}

impl fmt::Display for Enabled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "whether {} starts by itself", self.0)
    }
}

/// Refuses to call a service started that ended again at once. Of one with a program for which
/// its manager waits there is nothing to watch.
pub(in crate::host) fn stays(host: &View, name: &str) -> Result<()> {
    let (times, pause) = WATCH;
    for _ in 0..times {
        let unit = host.unit(name)?;
        if !unit.is_started_blindly() {
            return Ok(());
        }
        if unit.activity() != "active" && unit.result != "success" {
            return Err(ended(&unit));
        }
        std::thread::sleep(pause);
    }
    Ok(())
}

fn ended(unit: &Unit) -> Error {
    let Unit { id, result, .. } = unit;
    let message = format!("{id} ended right after it was started: {result}; its log says why");
    Error::new(Kind::HostFailed, message)
}

/// The manager's words, and with what the unit ended if it did.
pub(in crate::host) fn told(host: &View, name: &str, error: &Error) -> Error {
    let unit = host.unit(name).ok().filter(|unit| !matches!(&*unit.result, "" | "success"));
    let ended = unit.map(|unit| format!("; it ended with: {}", unit.result));
    Error::new(error.kind(), format!("{error}{}", ended.unwrap_or_default()))
}
