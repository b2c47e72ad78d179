//! The name of the host, which its own table of names follows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::host::cell::{Cell, Value, file, hostname};
use crate::host::{View, Want};
use crate::op::{Domain, Method, Nothing, Op, Read, Write};
use crate::permission::Permission;

pub static DOMAIN: Domain = Domain {
    name: "hostname",
    about: "Name of the host",
    ops: &[
        Op {
            id: "node.hostname.get",
            about: "Show what the host is called, and the labels that its agent was given",
            path: "/node/{hostname}/hostname",
            permission: Some(Permission::NodeRead),
            command: "node hostname get",
            run: &Read(|host, _: &Nothing| current(host)),
            ..Op::COMMON
        },
        Op {
            id: "node.hostname.update",
            about: "Name the host, now and for every boot",
            method: Method::Put,
            path: "/node/{hostname}/hostname",
            permission: Some(Permission::NodeWrite),
            status: 202,
            command: "node hostname update",
            flags: &[("hostname", "name")],
            args: &["hostname"],
            run: &Write(update, |_, _| Ok(Named {})),
            ..Op::COMMON
        },
    ],
};

/// The host's own table of names.
const HOSTS: &str = "/etc/hosts";

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// The new name: labels of letters, digits and inner hyphens, of at most 63 characters each
    /// and 64 altogether, the last one not a number.
    hostname: HostName,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Hostname {
    /// The name in the running kernel.
    hostname: String,
    /// The labels that the agent was given in its configuration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Named {}

fn current(host: &View) -> Result<Hostname> {
    let (_, hostname) = host.hostname()?;
    Ok(Hostname { hostname, labels: host.labels().clone() })
}

fn update(host: &View, Update { hostname: HostName(name) }: &Update) -> Result<Want> {
    if is_localhost(name) {
        let message = format!("every host is called {name}; choose a name of its own");
        return Err(Error::new(Kind::InvalidInput, message));
    }
    let (fixed, kernel) = host.hostname()?;
    let mut want = Want::new().set(hostname(name));
    let former: Vec<_> = fixed.into_iter().chain([kernel]).filter(|old| old != name).collect();
    // Without it the host could no longer look itself up, where only this table knows it.
    if let Value::File { mode, owner, .. } = host.value(&Cell::Node(HOSTS.to_owned()))? {
        let table = host.read(HOSTS)?;
        let renamed = former.iter().fold(table.clone(), |table, old| rename(&table, old, name));
        if renamed != table {
            let (user, group) = owner.split_once(':').unwrap_or((&owner, ""));
            want = want.set(file(HOSTS, renamed).mode(mode.bits()).owner(user, group));
        }
    }
    Ok(want)
}

fn is_localhost(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.starts_with("localhost.") || name.ends_with(".localhost")
}

/// The table with the host's own addresses naming it `new` where they named it `old`. Other
/// addresses, other names and comments stay as they are.
fn rename(table: &str, old: &str, new: &str) -> String {
    if is_localhost(old) || old.is_empty() {
        return table.to_owned();
    }
    let lines = table.split_inclusive('\n').map(|line| rename_line(line, old, new));
    lines.collect()
}

fn rename_line(line: &str, old: &str, new: &str) -> String {
    let end = line.find(['#', '\n']).unwrap_or(line.len());
    let (entry, rest) = line.split_at(end);
    let mut words = entry.split_whitespace();
    let is_own =
        words.next().and_then(|word| word.parse().ok()).is_some_and(|a: IpAddr| a.is_loopback());
    let names: Vec<&str> = words.collect();
    let label = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let (short, old_short) = (label(new), label(old));
    // With a domain, and by itself: both are the host's.
    let is_full =
        |name: &str| name == old || name.split_once('.').is_some_and(|(l, _)| l == old_short);
    let is_former = |name: &str| is_full(name) || name == old_short;
    if !is_own || !names.iter().any(|name| is_former(name)) {
        return line.to_owned();
    }
    let mut renamed: Vec<String> = Vec::new();
    for name in names {
        let domain = name.split_once('.').map(|(_, domain)| domain).filter(|_| is_former(name));
        let name = match domain {
            _ if !is_former(name) => name.to_owned(),
            None if new == short => short.clone(),
            None => {
                // The long name comes first, by custom and by what gethostname(3) callers expect.
                if !renamed.iter().any(|name| name == new) {
                    renamed.push(new.to_owned());
                }
                short.clone()
            }
            Some(_) if new != short => new.to_owned(),
            Some(domain) => format!("{new}.{domain}"),
        };
        if !renamed.contains(&name) {
            renamed.push(name);
        }
    }
    let lead: String = entry.chars().take_while(|c| !c.is_whitespace()).collect();
    let gap: String = entry[lead.len()..].chars().take_while(|c| c.is_whitespace()).collect();
    let tail = &entry[entry.trim_end().len()..];
    format!("{lead}{gap}{}{tail}{rest}", renamed.join(" "))
}

/// A name by RFC 1123 that the kernel has room for and nobody takes for an address.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 64,
    "pattern" = r"^(?!([^.]*\.)*[0-9]+$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$",
    "examples" = ["web-1"],
))]
struct HostName(String);

impl TryFrom<String> for HostName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let is_number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
        let is_name = name.len() <= 64
            && name.split('.').all(is_label)
            && !name.rsplit('.').next().is_some_and(is_number);
        is_name.then_some(Self(name)).ok_or("hostname: not the name of a host")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::provider::tests::Fake;

    fn host() -> Fake {
        Fake::with(&[
            ("/etc/hostname", "old\n"),
            ("/etc/passwd", "root:x:0:0::/:/bin/sh\n"),
            ("/etc/group", "root:x:0:\n"),
            ("/proc/sys/kernel/hostname", "old\n"),
            ("/etc/hosts", "127.0.0.1 localhost\n127.0.1.1\told.lan old # own\n10.0.0.1 old\n"),
        ])
    }

    fn preview(fake: &Fake, name: &str) -> Json {
        fake.preview("node.hostname.update", json!({ "hostname": name })).unwrap()
    }

    #[test]
    fn the_name_is_told_as_the_kernel_has_it() {
        let fake = host();
        fake.put("/proc/sys/kernel/hostname", "from-dhcp\n");
        let told = fake.run("node.hostname.get", json!({}), "").unwrap();
        assert_eq!(told, json!({ "hostname": "from-dhcp" }));
    }

    #[test]
    fn a_host_that_is_called_so_already_is_left_alone() {
        let fake = host();
        assert_eq!(preview(&fake, "old")["changed"], false);
        fake.put("/proc/sys/kernel/hostname", "from-dhcp\n");
        let changes = preview(&fake, "old")["changes"].clone();
        assert_eq!(
            changes[0]["from"],
            json!({ "hostname": { "static": "old", "kernel": "from-dhcp" } })
        );
        assert_eq!(changes[0]["to"], json!({ "hostname": { "static": "old", "kernel": "old" } }));
    }

    #[test]
    fn the_hosts_own_table_follows_its_name() {
        let changes = preview(&host(), "new")["changes"].clone();
        assert_eq!(changes[0]["cell"], json!("hostname"));
        assert_eq!(changes[1]["cell"], json!({ "node": "/etc/hosts" }));
        let diff = changes[1]["diff"].as_str().unwrap();
        assert!(
            diff.contains("-127.0.1.1\told.lan old # own\n+127.0.1.1\tnew.lan new # own\n"),
            "{diff}"
        );
        assert!(!diff.contains("-10.0.0.1"), "{diff}");
    }

    #[test]
    fn only_what_named_the_host_is_renamed() {
        for (line, old, new, expected) in [
            ("127.0.1.1 x\n", "x", "y", "127.0.1.1 y\n"),
            ("127.0.1.1 x", "x", "y.lan", "127.0.1.1 y.lan y"),
            ("127.0.1.1 x.lan x\n", "x", "y.org", "127.0.1.1 y.org y\n"),
            ("127.0.1.1 x.lan x\n", "x.lan", "y", "127.0.1.1 y.lan y\n"),
            ("::1 x ip6-localhost\n", "x", "y", "::1 y ip6-localhost\n"),
            ("127.0.0.1  localhost x \t# x\n", "x", "y", "127.0.0.1  localhost y \t# x\n"),
            ("127.0.0.1 localhost\n", "localhost", "y", "127.0.0.1 localhost\n"),
            ("127.0.1.1 xx x-1 a.x\n", "x", "y", "127.0.1.1 xx x-1 a.x\n"),
            ("192.0.2.1 x\n", "x", "y", "192.0.2.1 x\n"),
            ("# 127.0.1.1 x\n", "x", "y", "# 127.0.1.1 x\n"),
            ("\n", "x", "y", "\n"),
        ] {
            assert_eq!(rename(line, old, new), expected, "{line:?}");
            let again = rename(expected, old, new);
            assert!(old == "localhost" || again == expected, "{again:?}");
        }
    }

    #[test]
    fn a_host_is_named_as_rfc_1123_allows() {
        let schema = schemars::schema_for!(HostName).to_value();
        let takes = |name: &str| {
            let is_taken = HostName::try_from(name.to_owned()).is_ok();
            assert_eq!(jsonschema::is_valid(&schema, &json!(name)), is_taken, "{name:?}");
            is_taken
        };
        let (most, too_long) = ("a".repeat(63), "a".repeat(64));
        for name in ["a", "web-1", "Web.example.org", "0a", "1.a", "a--b", &most] {
            assert!(takes(name), "{name:?}");
        }
        for name in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "-a",
            "a-",
            "a.-b",
            "a_b",
            "a b",
            "a\n",
            "ü",
            "--static",
            "10.0.0.1",
            "123",
            "a.1",
            "a/b",
            &too_long,
            &format!("{most}.a"),
        ] {
            assert!(!takes(name), "{name:?}");
        }
        for name in ["localhost", "LOCALHOST.localdomain", "a.localhost"] {
            let params = json!({ "hostname": name });
            let error = host().run("node.hostname.update", params, "").unwrap_err();
            assert_eq!(error, Kind::InvalidInput, "{name}");
        }
    }
}
