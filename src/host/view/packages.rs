//! What dpkg keeps of its packages, and what apt would make of a wish. Neither is run to be asked
//! what is installed: dpkg's tables are read as they lie there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Flock, FlockType, fcntl_getlk};

use super::query::Query;
use super::{View, failed};
use crate::error::{Error, Kind, Result};
use crate::host::command::Done;
use crate::host::dpkg::{self, Stanza, Update};

const STATUS: &str = "/var/lib/dpkg/status";
/// What dpkg has done since it last wrote the table of all packages: numbered files. There are
/// none while it rests, unless it was interrupted.
const UPDATES: &str = "/var/lib/dpkg/updates";
/// The architectures whose packages may be installed, the host's own first; no file where there
/// is only that one.
const ARCHITECTURES: &str = "/var/lib/dpkg/arch";
const MARKS: &str = "/var/lib/apt/extended_states";
/// Who holds one of them is changing packages.
const LOCKS: [&str; 2] = ["/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock"];

/// How large a table may be, in bytes. One of 5,000 packages has 6 MiB.
const MAX_TABLE: u64 = 64 * 1024 * 1024;
/// How long whoever changes packages is waited for.
pub(in crate::host) const LOCK_PATIENCE: Duration = Duration::from_mins(2);
const LOCK_PACE: Duration = Duration::from_millis(200);

/// What simulations and the real thing have in common: nothing is removed beyond what is needed,
/// whatever apt's configuration says, and nobody is asked.
macro_rules! simulate {
    ($($more:literal),*) => {
        Query {
            program: "apt-get",
            args: &[
                "--simulate",
                "--quiet",
                "--yes",
                "--allow-downgrades",
                "--allow-remove-essential",
                "--option=APT::Get::AutomaticRemove=false",
                // As root, apt would otherwise write its caches even when it only simulates.
                "--option=Dir::Cache::pkgcache=",
                "--option=Dir::Cache::srcpkgcache=",
                $($more,)*
                "install",
                "--",
            ],
            limit: Duration::from_mins(1),
        }
    };
}

/// What would come of a wish: with what is recommended, where apt's configuration says so.
const SIMULATE: Query = simulate!();
/// What would come of exactly this.
const SIMULATE_EXACTLY: Query = simulate!("--no-install-recommends");
/// The same, and what is there already would be installed once more.
const SIMULATE_AGAIN: Query = simulate!("--no-install-recommends", "--reinstall");

/// The packages whose names begin so: the only question about names to apt in which it takes none
/// for a pattern.
const NAMES: Query = Query {
    program: "apt-cache",
    args: &[
        "--quiet",
        "--option=Dir::Cache::pkgcache=",
        "--option=Dir::Cache::srcpkgcache=",
        "pkgnames",
        "--",
    ],
    limit: Duration::from_secs(25),
};

const UPGRADABLE: Query = Query {
    program: "apt",
    args: &[
        "list",
        "--quiet",
        "--upgradable",
        "--option=Dir::Cache::pkgcache=",
        "--option=Dir::Cache::srcpkgcache=",
    ],
    limit: Duration::from_secs(25),
};

/// What apt would do to a package: which version it would have; None: it would be removed.
pub(in crate::host) type Doings = Vec<(String, Option<String>)>;

impl View {
    /// Every package of which there is something on the host, in dpkg's order.
    pub fn packages(&self) -> Result<Vec<Stanza>> {
        let mut newer = self.updates()?;
        let mut all = Vec::new();
        for stanza in self.table(STATUS)? {
            let stanza = stanza?;
            let key = (stanza.package.clone(), stanza.architecture.clone());
            all.push(newer.remove(&key).unwrap_or(stanza));
        }
        all.extend(newer.into_values());
        all.retain(|stanza| !stanza.is_absent());
        Ok(all)
    }

    /// What dpkg knows of the package `name`, and whether apt calls it automatic.
    pub fn package(&self, name: &str) -> Result<Option<Stanza>> {
        let (bare, arch) = name.split_once(':').map_or((name, None), |(n, a)| (n, Some(a)));
        let native = self.listed_architecture();
        let is_it = |stanza: &Stanza| {
            let own = stanza.architecture.as_str();
            stanza.package == bare
                && match arch {
                    Some(arch) => own == arch,
                    None => matches!(own, "" | "all") || native.as_deref().is_none_or(|n| n == own),
                }
        };
        let newer = self.updates()?.into_values().find(&is_it);
        let Some(mut found) = newer.map_or_else(|| self.find(STATUS, is_it), |s| Ok(Some(s)))?
        else {
            return Ok(None);
        };
        // Of packages for all architectures apt keeps the host's own one.
        let is_marked = |mark: &Stanza| {
            mark.package == bare
                && (arch.is_none_or(|arch| mark.architecture == arch))
                && (arch.is_some()
                    || native.as_deref().is_none_or(|n| {
                        matches!(mark.architecture.as_str(), "" | "all") || mark.architecture == n
                    }))
        };
        let mark = if self.exists(MARKS) { self.find(MARKS, is_marked)? } else { None };
        found.is_auto = mark.is_some_and(|mark| mark.is_auto);
        Ok(Some(found))
    }

    /// The host's own architecture, which packages that do not name theirs are of.
    pub fn native_architecture(&self) -> Option<String> {
        let is_dpkg = |stanza: &Stanza| stanza.package == "dpkg";
        let of_dpkg = || Some(self.find(STATUS, is_dpkg).ok()??.architecture);
        self.listed_architecture().or_else(of_dpkg)
    }

    /// The same where packages of more than one may be installed.
    fn listed_architecture(&self) -> Option<String> {
        let text = self.read(ARCHITECTURES).ok()?;
        text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
    }

    /// What was begun with packages and not ended: the names of those, with their architecture
    /// where that is not the host's own.
    pub fn pending_packages(&self) -> Result<Vec<String>> {
        let packages = self.packages()?.into_iter().filter(Stanza::is_pending);
        let native = self.native_architecture();
        let mut names: Vec<_> = packages.map(|stanza| stanza.name(native.as_deref())).collect();
        if names.is_empty() && !self.updates()?.is_empty() {
            names.push("what it was at".to_owned());
        }
        Ok(names)
    }

    /// What apt would do if it were asked to install these: each a name, which may be followed by
    /// `=VERSION`, or by `-` for the wish to remove it. Waits for whoever changes packages.
    pub(in crate::host) fn simulate(&self, wishes: &[&str], exactly: bool) -> Result<Doings> {
        self.wait_for_packages()?;
        let asked = |name: &str| {
            let mut named = wishes.iter().filter_map(|wish| wish.split(['=', ':']).next());
            named.any(|wish| wish.trim_end_matches('-') == name)
        };
        let packages = self.packages()?;
        if let Some(broken) = packages.iter().find(|p| p.is_broken() && !asked(&p.package)) {
            let name = &broken.package;
            let message = format!(
                "dpkg was interrupted while it unpacked or removed {name}; repair that first with \
                 `apt-get install --reinstall {name}`, or `dpkg --remove --force-remove-reinstreq \
                 {name}`"
            );
            return Err(Error::new(Kind::HostFailed, message));
        }
        let done = self.query(if exactly { SIMULATE_EXACTLY } else { SIMULATE }, wishes)?;
        if done.exit_code != 0 {
            return Err(refused(&done));
        }
        let doings = done.stdout.lines().filter_map(dpkg::simulated);
        Ok(doings.map(|(name, to)| (name.to_owned(), to.map(str::to_owned))).collect())
    }

    /// Whether apt knows a package that is called exactly as `name` says, whatever
    /// architecture stands behind it.
    pub(in crate::host) fn is_in_archives(&self, name: &str) -> Result<bool> {
        let bare = name.split_once(':').map_or(name, |(bare, _)| bare);
        // However many more there are whose names only begin so.
        let done = self.query_start(NAMES, &[bare])?;
        if done.exit_code != 0 {
            return Err(refused(&done));
        }
        if done.stdout.lines().any(|line| line == bare) {
            return Ok(true);
        }
        if done.truncated {
            let message = format!("apt knows too many packages whose names begin with {bare}");
            return Err(Error::new(Kind::TooLarge, message));
        }
        Ok(false)
    }

    /// Which of `packages`, each with the version that is installed, could not be installed again:
    /// no archive that apt knows has that version.
    pub fn irreplaceable(&self, packages: &[(String, String)]) -> Vec<String> {
        if packages.is_empty() {
            return Vec::new();
        }
        let wishes = packages.iter().map(|(name, version)| format!("{name}={version}"));
        let wishes: Vec<_> = wishes.collect();
        let wishes: Vec<&str> = wishes.iter().map(String::as_str).collect();
        // What cannot be found out is not worth failing for.
        let done = self.query(SIMULATE_AGAIN, &wishes).ok().filter(|done| done.exit_code == 0);
        let Some(done) = done else { return Vec::new() };
        let back: Vec<_> = done.stdout.lines().filter_map(dpkg::simulated).collect();
        let is_gone = |(name, version): &&(String, String)| {
            back.iter().all(|(there, to)| there != name || *to != Some(version))
        };
        packages.iter().filter(is_gone).map(|(name, version)| format!("{name} {version}")).collect()
    }

    /// The packages for which the archives that apt knows have something newer.
    pub fn upgradable(&self) -> Result<Vec<Update>> {
        let done = self.query(UPGRADABLE, &[])?;
        if done.exit_code != 0 {
            return Err(refused(&done));
        }
        Ok(done.stdout.lines().filter_map(dpkg::upgradable).collect())
    }

    /// Returns once nobody changes packages, or tells who still does after a while.
    pub(in crate::host) fn wait_for_packages(&self) -> Result<()> {
        let begun = Instant::now();
        while let Some(pid) = self.who_changes_packages() {
            if begun.elapsed() >= LOCK_PATIENCE {
                let name = self.read(&format!("/proc/{pid}/comm")).unwrap_or_default();
                let message = format!(
                    "process {pid} ({}) has been changing packages for {} s; try again later",
                    name.trim(),
                    LOCK_PATIENCE.as_secs()
                );
                return Err(Error::new(Kind::Busy, message));
            }
            std::thread::sleep(LOCK_PACE);
        }
        Ok(())
    }

    fn who_changes_packages(&self) -> Option<i32> {
        LOCKS.iter().find_map(|path| {
            let file = self.root.open(path, OFlags::RDONLY | OFlags::NONBLOCK).ok()?;
            let held = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??;
            // 0: somebody of whom this process cannot see the number.
            Some(held.pid.map_or(0, |pid| pid.as_raw_nonzero().get()))
        })
    }

    fn find(&self, path: &str, is_it: impl Fn(&Stanza) -> bool) -> Result<Option<Stanza>> {
        for stanza in self.table(path)? {
            let stanza = stanza?;
            if is_it(&stanza) {
                return Ok(Some(stanza));
            }
        }
        Ok(None)
    }

    fn table(&self, path: &str) -> Result<impl Iterator<Item = Result<Stanza>> + use<>> {
        let opened = self.root.open(path, OFlags::RDONLY | OFlags::NONBLOCK);
        let file = opened.map(File::from).map_err(|error| match error {
            rustix::io::Errno::NOENT => {
                let message = format!("this host keeps no packages with dpkg: there is no {path}");
                Error::new(Kind::Unsupported, message)
            }
            error => failed(path, error),
        })?;
        let size = file.metadata().map_err(|error| failed(path, error))?.len();
        if size > MAX_TABLE {
            let message = format!("cannot read {path}: it has more than {MAX_TABLE} bytes");
            return Err(Error::new(Kind::TooLarge, message));
        }
        let path = path.to_owned();
        let stanzas = dpkg::stanzas(BufReader::with_capacity(64 * 1024, file.take(MAX_TABLE)));
        Ok(stanzas.map(move |stanza| stanza.map_err(|error| failed(&path, error))))
    }

    /// What is newer than the table, by name and architecture.
    fn updates(&self) -> Result<BTreeMap<(String, String), Stanza>> {
        let is_number = |name: &String| name.bytes().all(|b| b.is_ascii_digit());
        let mut newer = BTreeMap::new();
        for name in self.list_dir(UPDATES)?.into_iter().filter(is_number) {
            match self.table(&format!("{UPDATES}/{name}")) {
                Ok(stanzas) => {
                    for stanza in stanzas {
                        let stanza = stanza?;
                        let key = (stanza.package.clone(), stanza.architecture.clone());
                        newer.insert(key, stanza);
                    }
                }
                // It has become part of the table meanwhile.
                Err(error) if error.kind() == Kind::Unsupported => {}
                Err(error) => return Err(error),
            }
        }
        Ok(newer)
    }
}

/// Why apt does not even simulate.
fn refused(done: &Done) -> Error {
    let said = |prefix| done.stderr.lines().filter_map(move |line| line.strip_prefix(prefix));
    let why: Vec<&str> = said("E: ").collect();
    let has = |part: &str| why.iter().any(|line| line.contains(part));
    let is_unknown = has("Unable to locate package")
        || has("no installation candidate")
        || has("Couldn't find any package")
        || has(" was not found");
    let remedy = if is_unknown {
        "; apt knows what its index names: refresh that with `apt-get update`"
    } else if has("met dependencies") || has("fix-broken") || has("Unmet dependencies") {
        "; repair what is broken with `apt-get --fix-broken install`"
    } else if has("dpkg --configure -a") || has("dpkg was interrupted") {
        "; repair it with `dpkg --configure -a`"
    } else {
        ""
    };
    let kind = if is_unknown { Kind::NotFound } else { Kind::HostFailed };
    let mut why = why.join("; ");
    why.truncate(why.floor_char_boundary(1024));
    if why.is_empty() {
        why = format!("apt exited with {}", done.exit_code);
    }
    Error::new(kind, format!("apt refuses: {why}{remedy}"))
}
