//! Taking the host down: asked for once, and over when another boot answers for it.
//!
//! A timer of the service manager asks, so that it is asked for however this process ends. The
//! shutdown ends the agent like any other; that is no answer to the job. The next boot's is: it
//! has another id.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::act::Acted;
use super::{Executor, uptime};
use crate::error::{Error, Kind, Result};
use crate::host::command::{self, Done};
use crate::host::journal::{Event, Turn, Work};
use crate::host::transient::{Start, Transient};
use crate::host::view::{Query, View};
use crate::host::want::{Act, Power};
use crate::job::Outcome;

/// What they wait for who would take the host down, so that one does.
const POWER: &str = ".power";
/// How long a command may take that asks the service manager.
const LIMIT: Duration = Duration::from_secs(20);
/// Gives the journal time to have it on record that it was asked for.
const BREATH: Duration = Duration::from_millis(200);
/// How often to look whether it is still going to happen, before its time and after.
const EARLY: Duration = Duration::from_secs(30);
const LATE: Duration = Duration::from_secs(2);
/// How long after its time, in seconds, a host that does not go down is given up on.
const PATIENCE: u64 = 300;

const STATE: Query = Query {
    program: "systemctl",
    args: &["show", "--property=ActiveState", "--value", "--"],
    limit: LIMIT,
};
const SYSTEM: Query = Query { program: "systemctl", args: &["is-system-running"], limit: LIMIT };

impl Executor {
    /// Refuses to take the host down while that would lose something. Whoever holds the answer is
    /// the only one to get it until the decision is on record.
    pub(super) fn may_go_down(&self, host: &View) -> Result<Turn> {
        if !host.has_systemd() {
            let message = "systemd does not run this host, and nobody else can be asked";
            return Err(Error::new(Kind::Unsupported, message));
        }
        if !self.core.root.has_service_manager() {
            let message = "cannot take the host down; run the agent as root";
            return Err(Error::new(Kind::AgentUnprivileged, message));
        }
        let turn = self.core.journal.lock(POWER)?;
        if let Some(job) = self.waiting().first() {
            let why = "waits to be confirmed, and is taken back by a boot";
            host.guard(format_args!("the change of job {job} {why}"))?;
        }
        for job in self.core.journal.open_jobs()? {
            if self.power_of(&job)?.is_some_and(|(_, is_past)| !is_past) {
                let message = format!("job {job} is going to take the host down already");
                return Err(Error::new(Kind::Conflict, message));
            }
        }
        Ok(turn)
    }

    /// Has the host go down, or goes on waiting for it. The inner error is the answer to the job:
    /// it does not go down. Otherwise there is none in this boot. Where it was never asked for
    /// and `late` has a reason, it is not asked for any more.
    pub(super) fn go_down(
        &self,
        job: &str,
        power: &Power,
        late: Option<Error>,
    ) -> Result<Result<Acted>> {
        let unit = format!("osapi-power-{job}");
        if !self.core.journal.load(job)?.applied {
            // Another process may have got as far as this.
            if !self.is_up(&format!("{unit}.timer")) {
                if let Some(late) = late {
                    return Ok(Err(late));
                }
                if let Err(error) = self.ask(job, &unit, power) {
                    return Ok(Err(error));
                }
            }
            self.core.journal.write(job, &Event::Applied)?;
        }
        loop {
            let is_off = self.core.gate.is_called_off(job);
            if is_off && self.is_stopped(&unit, power) {
                let message = "it was called off before its time; the host stays up";
                return Ok(Err(Error::new(Kind::Cancelled, message)));
            }
            if let Some(error) = self.stays_up(&unit, power) {
                return Ok(Err(error));
            }
            let left = Duration::from_secs(power.at.saturating_sub(uptime()));
            let patience = if left.is_zero() || is_off { LATE } else { left.min(EARLY) };
            if self.core.gate.closes_within(patience, job, is_off) {
                let message = "the agent ends; another boot, or another agent, has the answer";
                return Err(Error::new(Kind::Unavailable, message));
            }
        }
    }

    fn ask(&self, job: &str, unit: &str, power: &Power) -> Result<()> {
        let left = Duration::from_secs(power.at.saturating_sub(uptime()));
        let transient = Transient {
            name: unit.to_owned(),
            about: format!("{} for OSAPI job {job}", power.action.about()),
            job,
            start: Start::In(left.saturating_add(BREATH)),
            // It tells why the host does not go down.
            stays_failed: true,
            ..Transient::default()
        };
        let systemctl = self.core.root.command("systemctl")?;
        let systemctl = systemctl.to_string_lossy();
        let check = if power.is_forced { "no" } else { "yes" };
        let check = format!("--check-inhibitors={check}");
        let mut words = vec![&*systemctl, &check, "--no-ask-password"];
        // The service manager replaces what it takes for a variable.
        let message = power.message.as_ref();
        let message = message.map(|text| format!("--message={}", text.replace('$', "$$")));
        words.extend(message.as_deref());
        words.push(power.action.verb());
        let args = transient.args(&words);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.service_manager("systemd-run", &args)?.success("systemd-run")?;
        if let Some(message) = &power.message {
            let said = format!("{} in {} s: {message}", power.action.notice(), power.delay);
            // Whoever is logged in would like to know; that nobody can be told changes nothing.
            let told = self.service_manager("wall", &[&said]).and_then(|done| done.success("wall"));
            if let Err(error) = told {
                tracing::warn!(%error, "cannot tell who is logged in");
            }
        }
        Ok(())
    }

    /// Runs what the service manager, or somebody else who outlives this process, is told by. It
    /// holds no turn, for nobody has to wait for it.
    pub(super) fn service_manager(&self, program: &str, args: &[&str]) -> Result<Done> {
        let path = self.core.root.command(program)?;
        command::query(&path, args, &self.core.journal.scratch(), LIMIT)
    }

    /// Why the host does not go down, if it does not.
    fn stays_up(&self, unit: &str, power: &Power) -> Option<Error> {
        let (now, timer, service) = (uptime(), format!("{unit}.timer"), format!("{unit}.service"));
        if now < power.at {
            let message = format!("somebody stopped {timer} before its time");
            // It may have rung meanwhile.
            let is_off = !self.is_up(&timer) && uptime() < power.at;
            return is_off.then(|| Error::new(Kind::Cancelled, message));
        }
        let state = self.view().query(SYSTEM, &[]).map(|done| done.stdout).unwrap_or_default();
        if state.trim() == "stopping" {
            return None;
        }
        if self.state(&service) == "failed" {
            let message = format!("the host refuses to go down; journalctl -u {service} says why");
            return Some(Error::new(Kind::HostFailed, message));
        }
        let seconds = now.saturating_sub(power.at);
        let message = format!("the host was told to go down {seconds} s ago and is still up");
        (seconds > PATIENCE).then(|| Error::new(Kind::HostFailed, message))
    }

    /// Stops the timer that takes the host down, and says whether that was in time. Where it was
    /// not, or cannot be told, the next boot or the host that stays up has the answer.
    fn is_stopped(&self, unit: &str, power: &Power) -> bool {
        // It rings at this time or a moment later.
        if uptime() >= power.at {
            return false;
        }
        let timer = format!("{unit}.timer");
        let stopped = self.service_manager("systemctl", &["stop", "--", &timer]);
        if let Err(error) = stopped.and_then(|done| done.success("systemctl")) {
            // An agent that was killed then may have stopped it already.
            if self.is_up(&timer) {
                tracing::warn!(%error, "cannot stop {timer}");
                return false;
            }
        }
        uptime() < power.at
    }

    fn is_up(&self, unit: &str) -> bool {
        self.state(unit) == "active"
    }

    fn state(&self, unit: &str) -> String {
        let done = self.view().query(STATE, &[unit]);
        done.map(|done| done.stdout.trim().to_owned()).unwrap_or_default()
    }

    /// How `job` is to take the host down, where that is what is left to do about it, and whether
    /// that was in another boot.
    fn power_of(&self, job: &str) -> Result<Option<(Power, bool)>> {
        let entry = self.core.journal.load(job)?;
        Ok(match (entry.outcome, entry.planned.map(|planned| *planned)) {
            (None, Some(planned)) => match planned.work {
                Work::Act(Act::Power(power)) => Some((power, planned.boot != self.boot())),
                _ => None,
            },
            _ => None,
        })
    }

    /// The job that is going to take the host down, as far as its journal says.
    pub fn departure(&self) -> Option<String> {
        let jobs = self.core.journal.open_jobs().unwrap_or_default();
        let is_next = |job: &String| matches!(self.power_of(job), Ok(Some((_, false))));
        jobs.into_iter().find(is_next)
    }

    /// Answers the jobs that took the host down before it came up as it is now. They need not be
    /// delivered again for that, which may be too late.
    pub fn arrive(&self) -> Result<Vec<(String, Outcome)>> {
        let mut arrived = Vec::new();
        for job in self.core.journal.open_jobs()? {
            // What this boot is at work on has its own turn, perhaps for long.
            if !matches!(self.power_of(&job)?, Some((_, true))) {
                continue;
            }
            let _turn = self.core.journal.lock(&job)?;
            if let Some((power, true)) = self.power_of(&job)? {
                let outcome = Outcome::Done { result: power.answer() };
                self.finish(&job, &outcome)?;
                arrived.push((job, outcome));
            }
        }
        Ok(arrived)
    }
}

impl Power {
    /// What its job is answered with.
    fn answer(&self) -> Json {
        json!({ "action": self.action, "delay": self.delay, "changed": true })
    }
}
