//! A package: which version is installed, and whether on its own account.
//!
//! Packages depend on each other, so one command assigns all that belong to a plan. It names each
//! of them with its version, and so does what the plan says or nothing.

use std::fmt;

use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;

use super::{Blobs, Cell, CellKind, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::dpkg::{self, Stanza};
use crate::host::hands::{Due, Hands, failed};
use crate::host::plan::Set;
use crate::host::reach::Reach;
use crate::host::view::{LOCK_PATIENCE, View};

/// What apt is told beside which packages: the version is the plan's business, recommendations
/// are named by it too, and files of configuration that somebody changed stay as they are.
const OPTIONS: &[&str] = &[
    "--quiet",
    "--yes",
    "--allow-downgrades",
    "--no-install-recommends",
    "--option=APT::Get::AutomaticRemove=false",
    "--option=APT::Status-Fd=1",
    "--option=Dpkg::Use-Pty=0",
    "--option=Dpkg::Options::=--force-confdef",
    "--option=Dpkg::Options::=--force-confold",
];

pub fn package(name: impl Into<String>, value: Value) -> State {
    State::plain(Cell::Package(name.into()), value)
}

/// The package's name, with its architecture where that is not the host's own.
pub(super) struct Package<'a>(pub(super) &'a str);

impl CellKind for Package<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        Ok(host.package(self.0)?.map_or(Value::Absent, |stanza| value(&stanza)))
    }

    fn check(&self, host: &View, _: &Value, to: &Value) -> Result<()> {
        if let Value::Package { state: Some(state), .. } = to {
            let message = format!("{self} was {state}, and cannot be brought back to that");
            return Err(Error::new(Kind::Conflict, message));
        }
        let refused = |error| failed("change", self, "root's rights", error);
        let (dir, name) = host.root.parent("/var/lib/dpkg/status").map_err(refused)?;
        match rustix::fs::accessat(dir, name, Access::WRITE_OK, AtFlags::EACCESS) {
            Err(Errno::ACCESS) => Err(refused(Errno::ACCESS)),
            _ => Ok(()),
        }
    }

    fn reach(&self, _: &Value) -> Reach {
        Reach::Packages
    }

    fn assign(&self, hands: &Hands, now: &Value, to: &Value, _: &Blobs) -> Result<()> {
        assign(hands, &[(self.0, now, to)])
    }

    fn is_atomic(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn needs_the_system(&self) -> bool {
        true
    }

    fn residue(&self, from: &Value, to: &Value) -> Option<String> {
        let name = self.0;
        let version = |value: &Value| match value {
            Value::Package { version, .. } => Some(version.clone()),
            _ => None,
        };
        match (version(from), version(to)) {
            (None, Some(_)) => {
                Some(format!("the configuration and data of {name}, and what its scripts did"))
            }
            (Some(_), None) => Some(format!("what the scripts of {name} did when it was removed")),
            (Some(from), Some(to)) if from != to => {
                Some(format!("what the scripts of {name} {to} did to configuration and data"))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Package<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "package {}", self.0)
    }
}

fn value(stanza: &Stanza) -> Value {
    if stanza.is_absent() {
        return Value::Absent;
    }
    let state = (!stanza.is_installed()).then(|| stanza.state().to_owned());
    Value::Package { version: stanza.version.clone(), auto: stanza.is_auto, state }
}

/// Assigns packages that belong together.
pub(super) fn assign_all(hands: &Hands, dues: &[Due]) -> Result<()> {
    let packages = dues.iter().filter_map(|due| match &due.set.cell {
        Cell::Package(name) => Some((name.as_str(), &due.now, &due.set.to)),
        _ => None,
    });
    assign(hands, &packages.collect::<Vec<_>>())
}

/// Refuses to take packages back where that would not come about as planned.
pub(super) fn check_all<'a>(host: &View, sets: impl Iterator<Item = &'a Set>) -> Result<()> {
    let packages = sets.filter_map(|set| match &set.cell {
        Cell::Package(name) => Some((name.as_str(), &set.from, &set.to)),
        _ => None,
    });
    let packages: Vec<_> = packages.collect();
    let wishes = wishes(&packages);
    if wishes.is_empty() {
        return Ok(());
    }
    let asked: Vec<&str> = wishes.iter().map(String::as_str).collect();
    let doings = host.simulate(&asked, true).map_err(|error| match error.kind() {
        Kind::NotFound => {
            let message = format!("no archive has a former version any more: {error}");
            Error::new(Kind::Conflict, message)
        }
        _ => error,
    })?;
    for (name, version) in doings {
        if packages.iter().all(|(planned, ..)| *planned != name) {
            let what = version.map_or_else(|| "removed".to_owned(), |v| format!("given {v}"));
            let message = format!(
                "package {name} would have to be {what} as well, which is no part of this; others \
                 depend on it now"
            );
            return Err(Error::new(Kind::Conflict, message));
        }
    }
    Ok(())
}

/// What apt is asked for, and with which ends.
fn wishes(packages: &[(&str, &Value, &Value)]) -> Vec<String> {
    let wish = |(name, now, to): &(&str, &Value, &Value)| match (now, to) {
        (Value::Absent, Value::Absent) => None,
        (_, Value::Package { version, .. }) => {
            let is_there = matches!(
                now,
                Value::Package { version: there, state: None, .. } if there == version
            );
            (!is_there).then(|| format!("{name}={version}"))
        }
        _ => Some(format!("{name}-")),
    };
    packages.iter().filter_map(wish).collect()
}

fn assign(hands: &Hands, packages: &[(&str, &Value, &Value)]) -> Result<()> {
    let wishes = wishes(packages);
    if !wishes.is_empty() {
        hands.view.wait_for_packages()?;
        // An interrupted dpkg refuses everything else until it has been allowed to finish. What
        // it cannot finish may be what is removed here, so apt has the last word.
        let pending = hands.view.pending_packages()?;
        let finished = if pending.is_empty() { Ok(()) } else { configure(hands) };
        let is_essential = |(name, _, to): &(&str, &Value, &Value)| {
            let known = || hands.view.package(name).ok().flatten();
            **to == Value::Absent && known().is_some_and(|stanza| stanza.is_essential)
        };
        let patience = format!("--option=DPkg::Lock::Timeout={}", LOCK_PATIENCE.as_secs());
        let mut args = vec![&*patience];
        args.extend(OPTIONS);
        // Whoever planned it has asked whether that is meant.
        if packages.iter().any(is_essential) {
            args.push("--allow-remove-essential");
        }
        args.extend(["install", "--"]);
        args.extend(wishes.iter().map(String::as_str));
        hands.run_heard("apt-get", &args, dpkg::told).map_err(|error| match finished {
            Ok(()) => explained(error),
            Err(first) => Error::new(
                Kind::HostFailed,
                format!(
                    "dpkg cannot finish what was begun with {}: {first}; repair that with `dpkg \
                     --configure -a`; {error}",
                    pending.join(", ")
                ),
            ),
        })?;
    }
    mark(hands, packages)
}

/// Lets dpkg finish what was interrupted.
fn configure(hands: &Hands) -> Result<()> {
    let args = ["--force-confdef", "--force-confold", "--configure", "--pending"];
    hands.run("dpkg", &args, &[])
}

/// Says which packages are there on their own account, and which only for others.
fn mark(hands: &Hands, packages: &[(&str, &Value, &Value)]) -> Result<()> {
    for (word, wanted) in [("manual", false), ("auto", true)] {
        let mut names = Vec::new();
        for (name, _, to) in packages {
            let Value::Package { auto, .. } = to else { continue };
            let is_so = hands.view.package(name)?.is_some_and(|now| now.is_auto == *auto);
            if *auto == wanted && !is_so {
                names.push(*name);
            }
        }
        if !names.is_empty() {
            hands.run("apt-mark", &[&[word, "--"][..], &names].concat(), &[])?;
        }
    }
    Ok(())
}

/// Adds the remedy that apt and dpkg name, where a person has to see to it.
fn explained(error: Error) -> Error {
    let said = error.to_string();
    let remedy = if said.contains("Could not get lock") {
        "; somebody else changes packages: try again later"
    } else if said.contains("dpkg was interrupted") {
        "; repair that with `dpkg --configure -a`"
    } else if said.contains("fix-broken") || said.contains("Unmet dependencies") {
        "; repair that with `apt-get --fix-broken install`"
    } else {
        return error;
    };
    Error::new(error.kind(), format!("{said}{remedy}")).because(error)
}

fn is_of(state: &State, name: &str) -> bool {
    matches!(&state.cell, Cell::Package(of) if of == name)
}

fn unknown(name: &str) -> Error {
    let message = format!(
        "there is no package {name}; apt knows what its index names: refresh that with `apt-get \
         update`"
    );
    Error::new(Kind::NotFound, message)
}

impl View {
    /// What apt would make of installing `name`, in that version or in the one it prefers: the
    /// packages that change, and `name` on its own account.
    pub fn install(&self, name: &str, version: Option<&str>) -> Result<Vec<State>> {
        let wish = version.map_or_else(|| name.to_owned(), |v| format!("{name}={v}"));
        let states = self.states(&[&wish], name);
        // A name that is not one, apt takes for a pattern, and may fail for what that matches.
        if states.is_err() && !self.is_package(name)? {
            return Err(unknown(name));
        }
        let mut states = states?;
        if states.iter().any(|state| is_of(state, name)) {
            return Ok(states);
        }
        match self.value(&Cell::Package(name.to_owned()))? {
            Value::Package { version, state, .. } => {
                states.push(package(name, Value::Package { version, auto: false, state }));
                Ok(states)
            }
            _ => {
                let instead: Vec<String> = states.iter().map(|s| s.cell.to_string()).collect();
                let instead = match &instead[..] {
                    [] => "others provide it".to_owned(),
                    some => format!("apt would take {}", some.join(", ")),
                };
                let message = format!("{name} is no package of its own: {instead}; name that");
                Err(Error::new(Kind::NotFound, message))
            }
        }
    }

    /// What apt would make of removing `name`: that, and what needs it. apt is not asked about
    /// what is not installed: it would take that for a pattern, or for whatever provides it.
    pub fn remove(&self, name: &str) -> Result<Vec<State>> {
        if self.value(&Cell::Package(name.to_owned()))? == Value::Absent {
            let is_known = self.is_package(name)?;
            return if is_known { Ok(Vec::new()) } else { Err(unknown(name)) };
        }
        let states = self.states(&[&format!("{name}-")], name)?;
        if states.iter().any(|state| is_of(state, name)) {
            return Ok(states);
        }
        let message = format!("apt would not remove {name}, and does not say why");
        Err(Error::new(Kind::HostFailed, message))
    }

    /// Whether dpkg or apt know a package that is called exactly so.
    fn is_package(&self, name: &str) -> Result<bool> {
        Ok(self.package(name)?.is_some() || self.is_in_archives(name)?)
    }

    fn states(&self, wishes: &[&str], asked: &str) -> Result<Vec<State>> {
        let mut states = Vec::new();
        for (name, version) in self.simulate(wishes, false)? {
            let value = match version {
                None => Value::Absent,
                Some(version) => {
                    let now = self.package(&name)?.filter(|now| !now.is_absent());
                    let auto = name != asked && now.is_none_or(|now| now.is_auto);
                    Value::Package { version, auto, state: None }
                }
            };
            states.push(package(name, value));
        }
        Ok(states)
    }
}
