//! Debian packages: what is installed, and what apt makes of wishes.
//!
//! What a change does is what apt's own simulation says, with the version of every package that
//! it names, and it is simulated once more right before the run, which is left undone where that
//! is not what was shown. Nothing is asked: files of configuration that somebody changed are left
//! as they are, recommended packages come along where apt's configuration says so, which is
//! Debian's default, and nothing is removed merely because nobody needs it any more.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::host::cell::{Cell, State, Value};
use crate::host::dpkg::{self, Stanza, Update};
use crate::host::{Act, Done, Run, View, Want};
use crate::op::{Domain, Execute, Method, Nothing, Op, Read, Write};
use crate::permission::Permission;

pub static DOMAIN: Domain = Domain {
    name: "package",
    about: "Debian packages",
    ops: &[
        Op {
            id: "node.package.list",
            about: "List the packages that are installed",
            path: "/node/{hostname}/package",
            permission: Some(Permission::PackageRead),
            command: "node package list",
            columns: COLUMNS,
            run: &Read(|host, _: &Nothing| list(host)),
            ..Op::COMMON
        },
        Op {
            id: "node.package.get",
            about: "Show a package that is installed",
            path: "/node/{hostname}/package/{name}",
            permission: Some(Permission::PackageRead),
            command: "node package get",
            args: &["name"],
            columns: COLUMNS,
            run: &Read(get),
            ..Op::COMMON
        },
        Op {
            id: "node.package.install",
            about: "Install a package and what it needs, or bring it up to date",
            method: Method::Post,
            path: "/node/{hostname}/package",
            permission: Some(Permission::PackageWrite),
            command: "node package install",
            args: &["name"],
            columns: &[("NAME", "/name"), ("VERSION", "/version")],
            guarded: true,
            timeout: LIMIT,
            run: &Write(install, |host, params| named(host, &params.name)),
            ..Op::COMMON
        },
        Op {
            id: "node.package.remove",
            about: "Remove a package and what needs it; its configuration stays",
            method: Method::Delete,
            path: "/node/{hostname}/package/{name}",
            permission: Some(Permission::PackageWrite),
            command: "node package remove",
            args: &["name"],
            columns: &[("NAME", "/name")],
            guarded: true,
            timeout: LIMIT,
            run: &Write(remove, |host, params| named(host, &params.name)),
            ..Op::COMMON
        },
        Op {
            id: "node.package.listUpdates",
            about: "List the packages for which apt knows a newer version",
            path: "/node/{hostname}/package/update",
            permission: Some(Permission::PackageRead),
            command: "node package updates",
            columns: &[
                ("NAME", "/updates/*/name"),
                ("CURRENT", "/updates/*/current_version"),
                ("NEW", "/updates/*/new_version"),
            ],
            run: &Read(|host, _: &Nothing| updates(host)),
            ..Op::COMMON
        },
        Op {
            id: "node.package.update",
            about: "Have apt read anew what its archives have; installs nothing",
            method: Method::Post,
            path: "/node/{hostname}/package/update",
            permission: Some(Permission::PackageWrite),
            command: "node package update",
            columns: &[("NAME", "/name"), ("CHANGED", "/changed")],
            timeout: REFRESH,
            run: &Execute(|_, _: &Nothing| Ok(refresh()), |_, done| refreshed(done)),
            ..Op::COMMON
        },
    ],
};

const COLUMNS: &[(&str, &str)] = &[
    ("NAME", "/packages/*/name"),
    ("VERSION", "/packages/*/version"),
    ("STATUS", "/packages/*/status"),
];

/// Packages may be large, networks slow, and scripts thorough.
const LIMIT: std::time::Duration = std::time::Duration::from_mins(30);

/// How long archives may take to answer.
const REFRESH: std::time::Duration = std::time::Duration::from_mins(5);

/// What OSAPI itself is installed as.
const OWN: &str = "osapi";

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByName {
    /// The package, such as `htop`, or `libc6:i386` for one of another architecture.
    name: PackageName,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// The package, such as `htop`, or `libc6:i386` for one of another architecture.
    name: PackageName,
    /// Which version it shall have, also if that is an older one. The one that apt prefers, if
    /// not said; an older one that is installed is brought up to that.
    #[serde(default)]
    version: Option<Version>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Packages {
    /// In dpkg's order.
    packages: Vec<Package>,
    /// True if there are more than an answer has room for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Package {
    /// With its architecture where that is not the host's own.
    name: String,
    version: String,
    /// One line.
    description: String,
    /// `installed`, or what dpkg calls it where that was not finished.
    status: String,
    /// What it takes on the disk, in bytes.
    size: u64,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Named {
    name: String,
    /// The version that is installed, where one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Updates {
    updates: Vec<Update>,
    /// True if there are more than an answer has room for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Refreshed {
    /// What was read anew; always `index`.
    name: &'static str,
    /// Always true: the archives were asked.
    changed: bool,
}

fn list(host: &View) -> Result<Packages> {
    let native = host.native_architecture();
    let all = host.packages()?.into_iter().map(|stanza| package(stanza, native.as_deref()));
    let (packages, truncated) = super::fitting(all.collect());
    Ok(Packages { packages, truncated })
}

fn get(host: &View, ByName { name }: &ByName) -> Result<Packages> {
    let name = name.on(host);
    let found = host.package(&name)?.filter(|stanza| !stanza.is_absent());
    let Some(stanza) = found else {
        return Err(Error::new(Kind::NotFound, format!("package {name} is not installed")));
    };
    let native = host.native_architecture();
    Ok(Packages { packages: vec![package(stanza, native.as_deref())], truncated: false })
}

fn install(host: &View, Wish { name, version }: &Wish) -> Result<Want> {
    let version = version.as_ref().map(|Version(version)| version.as_str());
    want(host, host.install(&name.on(host), version)?)
}

fn remove(host: &View, ByName { name }: &ByName) -> Result<Want> {
    let name = name.on(host);
    // Before apt is asked, which may find no way to go on without it.
    if let Some(now) = host.package(&name)?.filter(|now| !now.is_absent()) {
        guard(host, &name, &now)?;
    }
    want(host, host.remove(&name)?)
}

fn updates(host: &View) -> Result<Updates> {
    let (updates, truncated) = super::fitting(host.upgradable()?);
    Ok(Updates { updates, truncated })
}

fn refresh() -> Act {
    // An archive that does not answer is a failure, and not merely a warning.
    let args = ["--quiet", "--yes", "--option=APT::Update::Error-Mode=any", "update"];
    let args = args.map(str::to_owned).to_vec();
    Act::Run(Run { program: "apt-get".to_owned(), args, cwd: None, limit: REFRESH })
}

fn refreshed(done: Done) -> Result<Refreshed> {
    done.success("apt-get")?;
    Ok(Refreshed { name: "index", changed: true })
}

fn named(host: &View, name: &PackageName) -> Result<Named> {
    let name = name.on(host);
    let version = match host.value(&Cell::Package(name.clone()))? {
        Value::Package { version, .. } => Some(version),
        _ => None,
    };
    Ok(Named { name, version })
}

/// What apt makes of a wish as something wanted, unless the host needs what would go.
fn want(host: &View, states: Vec<State>) -> Result<Want> {
    let (mut former, mut going) = (Vec::new(), Vec::new());
    for state in &states {
        let Cell::Package(name) = state.cell() else { continue };
        let Some(now) = host.package(name)?.filter(|now| !now.is_absent()) else { continue };
        match state.value() {
            Value::Package { version, .. } if *version == now.version => {}
            Value::Package { .. } => former.push((name.clone(), now.version)),
            _ => {
                guard(host, name, &now)?;
                former.push((name.clone(), now.version));
                going.push(name.clone());
            }
        }
    }
    let mut want: Want = states.into_iter().collect();
    for gone in host.irreplaceable(&former) {
        want = want.leaves(format!("that {gone} is gone: no archive apt knows has it any more"));
    }
    let mut pending = host.pending_packages()?;
    pending.retain(|name| !going.contains(name));
    if !pending.is_empty() {
        let names = pending.join(", ");
        want = want.leaves(format!("what dpkg does to finish {names}, left half done"));
    }
    Ok(want)
}

/// Refuses to remove what the host, or whoever asks this of it, cannot do without.
fn guard(host: &View, name: &str, now: &Stanza) -> Result<()> {
    if now.is_essential {
        host.guard(format!("the system needs {name}, which would be removed"))?;
    }
    if now.package == OWN {
        // With force neither: the job would stop who ends it, and a later installation would find
        // it half done and go on with it.
        let message = format!(
            "{name} is OSAPI itself, which would be removed and could not tell, or take it back; \
             `apt-get remove {OWN}` does that, on the host"
        );
        return Err(Error::new(Kind::Protected, message));
    }
    Ok(())
}

fn package(stanza: Stanza, native: Option<&str>) -> Package {
    let status = if stanza.is_installed() { "installed" } else { stanza.state() };
    let status = status.to_owned();
    let name = stanza.name(native);
    let size = stanza.size.saturating_mul(1024);
    Package { name, version: stanza.version, description: stanza.summary, status, size }
}

/// A name that neither dpkg nor apt takes for anything else.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 2,
    "maxLength" = 160,
    "pattern" = r"^[a-z0-9][a-z0-9+.-]*[a-z0-9+](:[a-z0-9][a-z0-9-]*)?$",
    "examples" = ["htop"],
))]
struct PackageName(String);

impl PackageName {
    /// How `host` calls it: without an architecture that is its own.
    fn on(&self, host: &View) -> String {
        let own = || host.native_architecture();
        match self.0.split_once(':') {
            Some((name, arch)) if arch == "all" || own().is_none_or(|own| own == arch) => {
                name.to_owned()
            }
            _ => self.0.clone(),
        }
    }
}

impl TryFrom<String> for PackageName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_name = dpkg::split_name(&name).is_some();
        is_name.then_some(Self(name)).ok_or("name: not the name of a package")
    }
}

/// A version as Debian writes it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 128,
    "pattern" = r"^[A-Za-z0-9][A-Za-z0-9.+:~-]*$",
    "examples" = ["2.10-3"],
))]
struct Version(String);

impl TryFrom<String> for Version {
    type Error = &'static str;

    fn try_from(version: String) -> Result<Self, Self::Error> {
        let is_version = dpkg::is_version(&version);
        is_version.then_some(Self(version)).ok_or("version: not the version of a package")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::provider::tests::Fake;

    const STATUS: &str = "/var/lib/dpkg/status";
    const TABLE: &str = "Package: hello\nStatus: install ok installed\nInstalled-Size: 280\n\
                         Architecture: amd64\nVersion: 2.10-3\nDescription: greets\n\n\
                         Package: hello\nStatus: hold ok installed\nArchitecture: i386\n\
                         Version: 2.10-2\n\n\
                         Package: gone\nStatus: deinstall ok config-files\n\
                         Architecture: all\nVersion: 1\n\n\
                         Package: torn\nStatus: install ok half-configured\n\
                         Architecture: all\nVersion: 3\n\n";

    fn host() -> Fake {
        Fake::with(&[(STATUS, TABLE), ("/var/lib/dpkg/arch", "amd64\ni386\n")])
    }

    fn run(fake: &Fake, verb: &str, params: Json) -> Result<Json, Kind> {
        fake.run(&format!("node.package.{verb}"), params, "")
    }

    #[test]
    fn packages_are_listed_with_what_is_wrong_with_them() {
        let answer = run(&host(), "list", json!({})).unwrap();
        let packages = answer["packages"].as_array().unwrap();
        let of = |n: usize, key: &str| packages[n][key].clone();
        assert_eq!(packages.len(), 3, "{answer}");
        assert_eq!((of(0, "name"), of(0, "status")), (json!("hello"), json!("installed")));
        assert_eq!((of(0, "size"), of(0, "description")), (json!(286_720), json!("greets")));
        assert_eq!((of(1, "name"), of(1, "status")), (json!("hello:i386"), json!("installed")));
        assert_eq!((of(2, "name"), of(2, "status")), (json!("torn"), json!("half-configured")));
    }

    #[test]
    fn a_package_goes_by_its_name_and_architecture() {
        let fake = host();
        let version = |name: &str| {
            let answer = run(&fake, "get", json!({ "name": name }))?;
            Ok(answer["packages"][0]["version"].as_str().unwrap_or_default().to_owned())
        };
        for (name, expected) in [
            ("hello", Ok("2.10-3".to_owned())),
            ("hello:amd64", Ok("2.10-3".to_owned())),
            ("hello:i386", Ok("2.10-2".to_owned())),
            ("torn", Ok("3".to_owned())),
            ("gone", Err(Kind::NotFound)),
            ("never", Err(Kind::NotFound)),
            ("hello:arm64", Err(Kind::NotFound)),
        ] {
            assert_eq!(version(name), expected, "{name}");
        }
    }

    #[test]
    fn what_dpkg_did_last_counts() {
        let fake = host();
        let newer =
            "Package: hello\nStatus: install ok unpacked\nArchitecture: amd64\nVersion: 3\n";
        fake.put("/var/lib/dpkg/updates/0003", newer);
        let answer = run(&fake, "get", json!({ "name": "hello" })).unwrap();
        assert_eq!(answer["packages"][0]["version"], "3");
        assert_eq!(answer["packages"][0]["status"], "unpacked");
    }

    #[test]
    fn a_host_without_dpkg_keeps_no_packages() {
        let fake = Fake::with(&[("/etc/hostname", "x\n")]);
        assert_eq!(run(&fake, "list", json!({})), Err(Kind::Unsupported));
        assert_eq!(run(&fake, "get", json!({ "name": "hello" })), Err(Kind::Unsupported));
        assert_eq!(run(&fake, "install", json!({ "name": "hello" })), Err(Kind::Unsupported));
    }

    #[test]
    fn names_and_versions_are_no_options_and_no_paths() {
        for name in ["-y", "hello-", "a", "./hello.deb", "hello=1", "hello/stable", "he llo", "x*"]
        {
            let params = json!({ "name": name });
            assert_eq!(run(&host(), "install", params), Err(Kind::InvalidInput), "{name}");
        }
        for version in ["", "-y", "1/stable", "1 2"] {
            let params = json!({ "name": "hello", "version": version });
            assert_eq!(run(&host(), "install", params), Err(Kind::InvalidInput), "{version}");
        }
    }
}
