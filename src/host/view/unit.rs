//! What the service manager says of its units.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{Object, Query, View};
use crate::error::{Error, Kind, Result};
use crate::host::command::Done;
use crate::host::transient::{Start, Transient};

/// How many bytes a unit's file may have.
const MAX_FILE: u64 = 256 * 1024;
const LIMIT: Duration = Duration::from_secs(20);

const SHOW: Query = Query {
    program: "systemctl",
    args: &[
        "show",
        "--no-pager",
        "--property=Id,Names,LoadState,LoadError,ActiveState,SubState,UnitFileState,Description,\
         MainPID,Type,RemainAfterExit,InvocationID,Result,FragmentPath,DropInPaths,CanStart,\
         CanStop",
        "--",
    ],
    limit: LIMIT,
};

const RUNNING: Query = Query {
    program: "systemctl",
    args: &["list-units", "--type=service", "--all", "--no-pager", "--output=json"],
    limit: LIMIT,
};

const INSTALLED: Query = Query {
    program: "systemctl",
    args: &["list-unit-files", "--type=service", "--no-pager", "--output=json"],
    limit: LIMIT,
};

/// What verifies a unit file insists on a directory of its own in /tmp, where whoever looks may not
/// write. So it gets a /tmp of its own as well, and nothing else that it could change.
const VERIFYING: &[&str] = &[
    "PrivateTmp=yes",
    "PrivateNetwork=yes",
    "ProtectSystem=strict",
    "CapabilityBoundingSet=",
    "NoNewPrivileges=yes",
    "RuntimeMaxSec=50",
];
const VERIFY: &[&str] = &["systemd-analyze", "verify", "--man=no", "--"];
const VERIFY_LIMIT: Duration = Duration::from_mins(1);

/// A unit, in systemd's words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unit {
    /// The name that its aliases stand for.
    pub id: String,
    pub names: Vec<String>,
    /// `loaded`, `not-found`, `masked`, `error`, ...
    pub load: String,
    /// Why it could not be loaded, where it could not.
    pub trouble: String,
    /// `active`, `inactive`, `failed`, `activating`, ...
    pub active: String,
    /// `enabled`, `disabled`, `static`, `masked`, ...; empty where there is no file.
    pub file_state: String,
    pub description: String,
    /// 0 where there is none.
    pub pid: u32,
    /// `simple`, `oneshot`, ...; empty for what is no service.
    pub kind: String,
    pub remains_after_exit: bool,
    /// Tells this run of it from others.
    pub invocation: String,
    /// How its last run went: `success`, `exit-code`, `timeout`, ...
    pub result: String,
    /// Where its file is.
    pub fragment: String,
    /// The files that add to that.
    pub drop_ins: Vec<String>,
    /// Whether anybody may ask for it to be started.
    pub can_start: bool,
    /// Whether anybody may ask for it to be stopped.
    pub can_stop: bool,
}

impl Unit {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let properties: BTreeMap<_, _> = lines.collect();
        let word = |key: &str| (*properties.get(key).unwrap_or(&"")).to_owned();
        Self {
            id: word("Id"),
            names: word("Names").split_whitespace().map(str::to_owned).collect(),
            load: word("LoadState"),
            // A name on the bus, and the sentence.
            trouble: word("LoadError").split_once(' ').map_or("", |(_, why)| why).replace('"', ""),
            active: word("ActiveState"),
            file_state: word("UnitFileState"),
            description: word("Description"),
            pid: word("MainPID").parse().unwrap_or_default(),
            kind: word("Type"),
            remains_after_exit: word("RemainAfterExit") == "yes",
            invocation: word("InvocationID"),
            result: word("Result"),
            fragment: word("FragmentPath"),
            drop_ins: word("DropInPaths").split_whitespace().map(str::to_owned).collect(),
            can_start: word("CanStart") != "no",
            can_stop: word("CanStop") != "no",
        }
    }

    /// Whether there is such a unit, or was when it was started.
    pub fn is_known(&self) -> bool {
        self.load != "not-found" || self.activity() != "inactive"
    }

    /// `active`, `activating` or `inactive`.
    pub fn activity(&self) -> &str {
        match self.active.as_str() {
            "active" | "reloading" | "refreshing" => "active",
            "activating" => "activating",
            _ => "inactive",
        }
    }

    /// systemd's word for whether it starts by itself.
    pub fn enablement(&self) -> &str {
        if self.load == "not-found" { "disabled" } else { &self.file_state }
    }

    /// Whether it is done, and inactive, as soon as it has done its work.
    pub fn ends_by_itself(&self) -> bool {
        self.kind == "oneshot" && !self.remains_after_exit
    }

    /// Whether it counts as started although nobody knows how its program fares.
    pub fn is_started_blindly(&self) -> bool {
        matches!(self.kind.as_str(), "simple" | "exec" | "idle")
    }
}

/// A service as it stands in a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub active: String,
    /// systemd's word for whether it starts by itself; empty where there is no file.
    pub file_state: String,
    /// Empty for what is installed and has not been loaded.
    pub description: String,
}

#[derive(Deserialize)]
struct Running {
    unit: String,
    load: String,
    active: String,
    description: String,
}

#[derive(Deserialize)]
struct Installed {
    unit_file: String,
    state: String,
}

impl View {
    /// What the service manager says of the unit with this full name.
    pub fn unit(&self, name: &str) -> Result<Unit> {
        let done = self.query(SHOW, &[name])?;
        Ok(Unit::parse(&self.managed(done)?.stdout))
    }

    /// Every service by its name, whether it runs or is only installed, and whether there are
    /// more. Templates are left out, and other names of the same.
    pub fn services(&self) -> Result<(BTreeMap<String, Listed>, bool)> {
        let (running, cut) = self.list::<Running>(RUNNING)?;
        let (installed, also_cut) = self.list::<Installed>(INSTALLED)?;
        let mut services = BTreeMap::new();
        for Running { unit, load, active, description } in running {
            if load != "not-found" {
                services.insert(unit, Listed { active, file_state: String::new(), description });
            }
        }
        for Installed { unit_file, state } in installed {
            if let Some(service) = services.get_mut(&unit_file) {
                service.file_state = state;
            } else if state != "alias" && !unit_file.contains("@.") {
                let (active, description) = ("inactive".to_owned(), String::new());
                services.insert(unit_file, Listed { active, file_state: state, description });
            }
        }
        self.ask_of_instances(&mut services)?;
        Ok((services, cut || also_cut))
    }

    /// Instances have no files of their own that could be listed.
    fn ask_of_instances(&self, services: &mut BTreeMap<String, Listed>) -> Result<()> {
        /// No more than a command line takes.
        const MOST: usize = 200;
        let is_open = |(name, listed): &(&String, &Listed)| {
            name.contains('@') && listed.file_state.is_empty()
        };
        let names: Vec<_> = services.iter().filter(is_open).map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = names.iter().take(MOST).map(String::as_str).collect();
        let done = self.query(SHOW, &names)?;
        for unit in self.managed(done)?.stdout.split("\n\n").map(Unit::parse) {
            if let Some(service) = services.get_mut(&unit.id) {
                service.file_state = unit.file_state;
            }
        }
        Ok(())
    }

    /// What `query` lists as JSON, and whether that is not all.
    fn list<T: for<'de> Deserialize<'de>>(&self, query: Query) -> Result<(Vec<T>, bool)> {
        let done = self.query_start(query, &[])?;
        let Done { stdout, truncated, .. } = self.managed(done)?;
        let text = match stdout.rfind("},").filter(|_| truncated) {
            Some(end) => format!("{}}}]", &stdout[..end]),
            None => stdout,
        };
        let items = serde_json::from_str(&text).map_err(|error| {
            let message = format!("cannot read what {} lists", query.program);
            Error::new(Kind::HostFailed, message).because(error)
        })?;
        Ok((items, truncated))
    }

    /// What the service manager said, provided that it did what it was asked for.
    fn managed(&self, done: Done) -> Result<Done> {
        if done.exit_code != 0 && !self.exists("/run/systemd/system") {
            let message = "no systemd runs on this host, so that it has no services";
            return Err(Error::new(Kind::Unsupported, message));
        }
        let truncated = done.truncated;
        done.success("systemctl").map(|stdout| Done { stdout, truncated, ..Done::default() })
    }

    /// Refuses content that systemd would not take as the file of the unit `name`, in its words.
    pub fn verify_unit(&self, name: &str, object: &Object) -> Result<()> {
        if object.size > MAX_FILE {
            let message =
                format!("a unit's file has at most {MAX_FILE} bytes, not {}", object.size);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let mut bytes = Vec::new();
        match &object.bytes {
            Some(given) => bytes.extend_from_slice(given),
            None => {
                let read = self.content(&object.digest)?.take(MAX_FILE).read_to_end(&mut bytes);
                read.map_err(|error| super::failed("the object", error))?;
            }
        }
        self.root.command("systemd-analyze")?;
        let room = Room::new(&self.journal.scratch())?;
        let path = room.0.join(name);
        let written = std::fs::write(&path, bytes);
        written.map_err(|error| super::failed("the copy of a unit's file", error))?;
        let path = path.to_string_lossy();
        let transient = Transient {
            about: "Verify a unit file for OSAPI".to_owned(),
            job: &self.job,
            start: Start::Heard,
            properties: VERIFYING.iter().map(|property| (*property).to_owned()).collect(),
            ..Transient::default()
        };
        let done = self.query_apart(&transient, &[VERIFY, &[&*path]].concat(), VERIFY_LIMIT)?;
        if done.exit_code == 0 {
            return Ok(());
        }
        if done.stderr.starts_with("Failed to start transient") {
            let message = format!("cannot verify {name}: {}", done.stderr.trim());
            return Err(Error::new(Kind::HostFailed, message));
        }
        let said = done.stderr.trim().replace(&format!("{}/", room.0.display()), "");
        let said: String = said.chars().take(2000).collect();
        let message = format!("systemd does not take this as {name}: {said}");
        Err(Error::new(Kind::InvalidInput, message))
    }
}

/// A directory for one file that has to have its own name.
struct Room(PathBuf);

impl Room {
    fn new(scratch: &Path) -> Result<Self> {
        let room = scratch.join(format!("unit-{}", uuid::Uuid::now_v7()));
        let made = std::fs::create_dir(&room);
        made.map_err(|error| super::failed("the scratch directory", error))?;
        Ok(Self(room))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What is left is in nobody's way.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
