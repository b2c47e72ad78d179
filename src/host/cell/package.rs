//! A package: which version is installed, and whether on its own account.
//!
//! Packages depend on each other, so one command assigns all that belong to a plan. It names each
//! of them with its version, and right before it apt is asked once more what would come of that:
//! it would do more than it is told where others have changed packages since, and not ask.

use std::fmt;
use std::time::Instant;

use rustix::fs::{Access, AtFlags};
use rustix::io::Errno;

use super::{Blobs, Cell, CellKind, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::dpkg::{self, Stanza};
use crate::host::hands::{Due, Hands, failed};
use crate::host::plan::Set;
use crate::host::reach::Reach;
use crate::host::view::{LOCK_PATIENCE, View};

/// What a package is right now, what the plan found and what it is to be.
struct Assignment<'a> {
    name: &'a str,
    now: &'a Value,
    from: &'a Value,
    to: &'a Value,
}

/// What apt is told beside which packages: the version is the plan's business, recommendations
/// are named by it too, and files of configuration that somebody changed stay as they are.
const OPTIONS: &[&str] = &[
    "--quiet",
    "--yes",
    "--allow-downgrades",
    "--no-install-recommends",
    "--option=APT::Get::AutomaticRemove=false",
    "--option=APT::Status-Fd=1",
    // Whoever is faster may change what apt was just asked about.
    "--option=DPkg::Lock::Timeout=0",
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
        assign(hands, &[Assignment { name: self.0, now, from: now, to }])
    }

    fn take(&self, hands: &Hands, due: &Due, _: &Blobs) -> Result<()> {
        let Due { set, now } = due;
        assign(hands, &[Assignment { name: self.0, now, from: &set.from, to: &set.to }])
    }

    fn is_atomic(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn needs_the_system(&self) -> bool {
        true
    }

    fn residue(&self, from: &Value, to: &Value) -> Option<String> {
        let name = self.0;
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
    let packages = dues.iter().filter_map(|Due { set, now }| match &set.cell {
        Cell::Package(name) => Some(Assignment { name, now, from: &set.from, to: &set.to }),
        _ => None,
    });
    assign(hands, &packages.collect::<Vec<_>>())
}

/// Refuses to take packages back where that would not come about as planned.
pub(super) fn check_all<'a>(host: &View, sets: impl Iterator<Item = &'a Set>) -> Result<()> {
    let packages = sets.filter_map(|set| match &set.cell {
        Cell::Package(name) => {
            Some(Assignment { name, now: &set.from, from: &set.from, to: &set.to })
        }
        _ => None,
    });
    let packages: Vec<_> = packages.collect();
    let wishes = wishes(&packages);
    if wishes.is_empty() {
        return Ok(());
    }
    rehearse(host, &packages, &wishes).map_err(|error| match error.kind() {
        Kind::NotFound => {
            let message = format!("no archive has a former version any more: {error}");
            Error::new(Kind::Conflict, message)
        }
        Kind::Stale => {
            let message = format!("{error}, which is no part of this; others depend on it now");
            Error::new(Kind::Conflict, message)
        }
        _ => error,
    })
}

/// Has apt say what would come of `wishes`; `Stale` where that is more than `packages`, which is
/// told without a remedy.
fn rehearse(host: &View, packages: &[Assignment], wishes: &[String]) -> Result<()> {
    let asked: Vec<&str> = wishes.iter().map(String::as_str).collect();
    for (name, version) in host.simulate(&asked, true)? {
        let is_meant = |planned: &Assignment| {
            planned.name == name && self::version(planned.to) == version.as_deref()
        };
        if !packages.iter().any(is_meant) {
            let what = version.map_or_else(|| "removed".to_owned(), |v| format!("given {v}"));
            let message = format!("package {name} would have to be {what} as well");
            return Err(Error::new(Kind::Stale, message));
        }
    }
    Ok(())
}

fn version(value: &Value) -> Option<&str> {
    match value {
        Value::Package { version, .. } => Some(version),
        _ => None,
    }
}

/// What apt is asked for, and with which ends.
fn wishes(packages: &[Assignment]) -> Vec<String> {
    let wish = |Assignment { name, now, to, .. }: &Assignment| match (now, to) {
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

fn assign(hands: &Hands, packages: &[Assignment]) -> Result<()> {
    let wishes = wishes(packages);
    let begun = Instant::now();
    while !wishes.is_empty() {
        hands.view.wait_for_packages()?;
        match run(hands, packages, &wishes) {
            // Whoever was faster may change what was looked at, so that is looked at again.
            Err(error) if is_locked(&error) && begun.elapsed() < LOCK_PATIENCE => {}
            done => {
                done.map_err(explained)?;
                break;
            }
        }
    }
    mark(hands, packages)
}

/// Has apt do it, provided that it does nothing else.
fn run(hands: &Hands, packages: &[Assignment], wishes: &[String]) -> Result<()> {
    let view = &hands.view;
    for Assignment { name, from, to, .. } in packages {
        let now = view.value(&Cell::Package((*name).to_owned()))?;
        // While dpkg unpacks what is new, it has no version.
        let ours = [version(from), version(to), Some("")];
        if !ours.contains(&version(&now)) {
            return Err(outdated(&format!(
                "package {name} was changed by somebody else meanwhile"
            )));
        }
    }
    let going = packages.iter().filter(|package| *package.to == Value::Absent);
    let going: Vec<&str> = going.map(|package| package.name).collect();
    // An interrupted dpkg refuses everything else until it has been allowed to finish. What it
    // cannot finish may be what is removed here, so apt has the last word.
    let pending = view.pending_packages()?;
    let finished = if pending.is_empty() {
        Ok(())
    } else if pending.iter().any(|name| going.contains(&name.as_str())) {
        // What goes is not begun once more; apt sees to the others when it is gone. Told to select
        // nothing, dpkg only takes in what it was at, and apt goes on.
        hands.run("dpkg", &["--set-selections"], &[])
    } else {
        configure(hands)
    };
    rehearse(view, packages, wishes).map_err(|error| match error.kind() {
        Kind::NotFound | Kind::Stale => outdated(&error.to_string()),
        _ => error,
    })?;
    let mut args = OPTIONS.to_vec();
    let is_essential = |name: &&str| {
        let known = view.package(name).ok().flatten();
        known.is_some_and(|stanza| stanza.is_essential)
    };
    // Whoever planned it has asked whether that is meant.
    if going.iter().any(is_essential) {
        args.push("--allow-remove-essential");
    }
    if going.is_empty() {
        args.push("--no-remove");
    }
    args.extend(["install", "--"]);
    args.extend(wishes.iter().map(String::as_str));
    hands.run_heard("apt-get", &args, dpkg::told).map_err(|error| match finished {
        Ok(()) => error,
        Err(first) => Error::new(
            Kind::HostFailed,
            format!(
                "dpkg cannot finish what was begun with {}: {first}; repair that with `dpkg \
                 --configure -a`; {error}",
                pending.join(", ")
            ),
        ),
    })
}

fn outdated(why: &str) -> Error {
    Error::new(Kind::Stale, format!("{why}; that is not what was planned, so plan again"))
}

/// Lets dpkg finish what was interrupted.
fn configure(hands: &Hands) -> Result<()> {
    let args = ["--force-confdef", "--force-confold", "--configure", "--pending"];
    hands.run("dpkg", &args, &[])
}

/// Says which packages are there on their own account, and which only for others.
fn mark(hands: &Hands, packages: &[Assignment]) -> Result<()> {
    for (word, wanted) in [("manual", false), ("auto", true)] {
        let mut names = Vec::new();
        for Assignment { name, to, .. } in packages {
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

/// Whether apt did not begin, because somebody else changes packages.
fn is_locked(error: &Error) -> bool {
    error.to_string().contains("Could not get lock")
}

/// Adds the remedy that apt and dpkg name, where a person has to see to it.
fn explained(error: Error) -> Error {
    let said = error.to_string();
    let remedy = if is_locked(&error) {
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
