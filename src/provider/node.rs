//! What a node is and how it is doing: system, uptime, load, memory, disks.
//!
//! Everything is read under the host's root and nothing is remembered between two looks.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::host::View;
use crate::op::{Domain, Nothing, Op, Read};
use crate::permission::Permission;

pub static DOMAIN: Domain = Domain {
    name: "node",
    about: "What a node is and how it is doing",
    ops: &[
        Op {
            id: "node.status.get",
            about: "Show uptime, load, memory, disks and system at once",
            path: "/node/{hostname}",
            command: "node status",
            columns: &[
                ("UPTIME", "/uptime"),
                ("LOAD", "/load_average/1min"),
                ("MEM", "/memory/used:/memory/total"),
            ],
            run: &Read(|host, _: &Nothing| Ok(status(host))),
            ..READ
        },
        Op {
            id: "node.disk.get",
            about: "Show the mounted file systems and the room on them",
            path: "/node/{hostname}/disk",
            command: "node disk get",
            columns: &[
                ("MOUNT", "/disks/*/name"),
                ("TOTAL", "/disks/*/total"),
                ("USED", "/disks/*/used"),
                ("USAGE", "/disks/*/used:/disks/*/total"),
            ],
            run: &Read(|host, _: &Nothing| disks(host)),
            ..READ
        },
        Op {
            id: "node.memory.get",
            about: "Show how much memory there is, and is used",
            path: "/node/{hostname}/memory",
            command: "node memory get",
            columns: &[
                ("TOTAL", "/memory/total"),
                ("USED", "/memory/used"),
                ("FREE", "/memory/free"),
                ("USAGE", "/memory/used:/memory/total"),
            ],
            run: &Read(|host, _: &Nothing| Ok(MemoryAnswer { memory: memory(host)? })),
            ..READ
        },
        Op {
            id: "node.load.get",
            about: "Show the load averages",
            path: "/node/{hostname}/load",
            command: "node load get",
            columns: &[
                ("LOAD (1m)", "/load_average/1min"),
                ("LOAD (5m)", "/load_average/5min"),
                ("LOAD (15m)", "/load_average/15min"),
            ],
            run: &Read(|host, _: &Nothing| Ok(LoadAnswer { load_average: load(host)? })),
            ..READ
        },
        Op {
            id: "node.os.get",
            about: "Show which distribution the node runs, and its version",
            path: "/node/{hostname}/os",
            command: "node os get",
            columns: &[("DISTRIBUTION", "/os_info/distribution"), ("VERSION", "/os_info/version")],
            run: &Read(|host, _: &Nothing| Ok(OsAnswer { os_info: os(host)? })),
            ..READ
        },
        Op {
            id: "node.uptime.get",
            about: "Show how long the node has been up",
            path: "/node/{hostname}/uptime",
            command: "node uptime get",
            columns: &[("UPTIME", "/uptime")],
            run: &Read(|host, _: &Nothing| Ok(UptimeAnswer { uptime: uptime(host)? })),
            ..READ
        },
    ],
};

const READ: Op = Op { permission: Some(Permission::NodeRead), ..Op::COMMON };

/// Where a distribution says what it is, the file that an administrator may change first.
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// File systems that live on disks although the kernel does not ask them for a device.
const ON_DISKS: [&str; 1] = ["zfs"];

/// Images that are full by nature: nobody can make room there.
const IMAGES: [&str; 3] = ["squashfs", "erofs", "iso9660"];

#[derive(Debug, JsonSchema, Serialize)]
struct Status {
    /// How long the node has been up, such as `3 days, 4 hours, 12 minutes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    uptime: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Load")]
    load_average: Option<Load>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Memory")]
    memory: Option<Memory>,
    /// Mounted file systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<Disk>")]
    disks: Option<Vec<Disk>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Os")]
    os_info: Option<Os>,
    /// Which parts are missing, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Disks {
    /// Mounted file systems on disks and whatever is mounted at `/`, each device once. Those of
    /// other hosts are left out: a dead server would hold up the answer.
    disks: Vec<Disk>,
    /// Which of them could not be looked at, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, JsonSchema, PartialEq, Serialize)]
struct Disk {
    /// Where it is mounted.
    name: String,
    /// Bytes it can hold.
    total: u64,
    /// Bytes that are taken.
    used: u64,
    /// Bytes left for those who are not root.
    free: u64,
}

#[derive(Debug, JsonSchema, Serialize)]
struct MemoryAnswer {
    memory: Memory,
}

#[derive(Debug, JsonSchema, PartialEq, Serialize)]
struct Memory {
    /// Bytes there are.
    total: u64,
    /// Bytes nobody uses, not even as a cache.
    free: u64,
    /// Bytes that could not be given to a program without taking them from another: all but
    /// what is free or a cache that can be dropped.
    used: u64,
}

#[derive(Debug, JsonSchema, Serialize)]
struct LoadAnswer {
    load_average: Load,
}

/// How many tasks ran or waited for a processor or a disk, on average.
#[derive(Debug, JsonSchema, PartialEq, Serialize)]
struct Load {
    /// Over the last minute.
    #[serde(rename = "1min")]
    one: f64,
    /// Over the last 5 minutes.
    #[serde(rename = "5min")]
    five: f64,
    /// Over the last 15 minutes.
    #[serde(rename = "15min")]
    fifteen: f64,
}

#[derive(Debug, JsonSchema, Serialize)]
struct OsAnswer {
    os_info: Os,
}

#[derive(Debug, JsonSchema, PartialEq, Serialize)]
struct Os {
    /// The distribution's own short name, such as `debian`.
    distribution: String,
    /// Its version, such as `12`; empty where it has none.
    version: String,
}

#[derive(Debug, JsonSchema, Serialize)]
struct UptimeAnswer {
    /// How long the node has been up, such as `3 days, 4 hours, 12 minutes`.
    uptime: String,
}

fn status(host: &View) -> Status {
    let mut warnings = Vec::new();
    let disks = part(&mut warnings, disks(host)).map(|found| {
        let Disks { disks, warnings: unseen } = found;
        warnings.extend(unseen);
        disks
    });
    Status {
        uptime: part(&mut warnings, uptime(host)),
        load_average: part(&mut warnings, load(host)),
        memory: part(&mut warnings, memory(host)),
        disks,
        os_info: part(&mut warnings, os(host)),
        warnings,
    }
}

/// What was found; if nothing was, `warnings` says why.
fn part<T>(warnings: &mut Vec<String>, found: Result<T>) -> Option<T> {
    found.inspect_err(|error| warnings.push(error.to_string())).ok()
}

fn disks(host: &View) -> Result<Disks> {
    let mounts = read(host, "/proc/mounts")?;
    let kinds = read(host, "/proc/filesystems")?;
    let needs_no_disk: BTreeSet<&str> =
        kinds.lines().filter_map(|line| line.strip_prefix("nodev")).map(str::trim).collect();
    let (mut disks, mut warnings) = (Vec::new(), Vec::new());
    for name in visible(&mounts, &needs_no_disk) {
        match host.space(&name) {
            // A file system without blocks is not one that can fill up.
            Ok(space) if space.total == 0 => {}
            Ok(space) => {
                let used = space.total.saturating_sub(space.free);
                disks.push(Disk { name, total: space.total, used, free: space.available });
            }
            Err(error) => warnings.push(error.to_string()),
        }
    }
    Ok(Disks { disks, warnings })
}

/// Where the file systems are mounted that count, the root first and each device once.
fn visible(mounts: &str, needs_no_disk: &BTreeSet<&str>) -> Vec<String> {
    let entries: Vec<(&str, String, &str)> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            Some((fields.next()?, unescape(fields.next()?), fields.next()?))
        })
        .collect();
    let mut names = vec!["/".to_owned()];
    let root = entries.iter().rfind(|(_, name, _)| name == "/");
    let mut devices: BTreeSet<&str> = root.iter().map(|(device, ..)| *device).collect();
    for (at, (device, name, kind)) in entries.iter().enumerate() {
        // What is mounted later on the same directory hides what was there.
        let is_hidden = entries[at + 1..].iter().any(|(_, later, _)| later == name);
        let is_disk =
            (ON_DISKS.contains(kind) || !needs_no_disk.contains(kind)) && !IMAGES.contains(kind);
        if name != "/" && is_disk && !is_hidden && devices.insert(device) {
            names.push(name.clone());
        }
    }
    names
}

/// Blanks and backslashes stand in the kernel's tables as three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => plain.extend([char::from(byte)].into_iter().chain(part[3..].chars())),
            None => plain.extend(["\\", part]),
        }
    }
    plain
}

fn memory(host: &View) -> Result<Memory> {
    let path = "/proc/meminfo";
    let text = read(host, path)?;
    let amount = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kibibytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
        kibibytes.map(|amount: u64| amount * 1024).ok_or_else(|| unclear(path))
    };
    let (total, free) = (amount("MemTotal")?, amount("MemFree")?);
    Ok(Memory { total, free, used: total.saturating_sub(amount("MemAvailable")?) })
}

fn load(host: &View) -> Result<Load> {
    let path = "/proc/loadavg";
    let text = read(host, path)?;
    let mut words = text.split_whitespace();
    let mut next = || words.next().and_then(|word| word.parse().ok()).ok_or_else(|| unclear(path));
    Ok(Load { one: next()?, five: next()?, fifteen: next()? })
}

fn os(host: &View) -> Result<Os> {
    let path = OS_RELEASE.into_iter().find(|path| host.exists(path)).unwrap_or(OS_RELEASE[0]);
    let text = read(host, path)?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
        line.map(unquote).filter(|value| !value.is_empty())
    };
    Ok(Os {
        // What os-release(5) says to assume.
        distribution: value("ID").unwrap_or_else(|| "linux".to_owned()),
        version: value("VERSION_ID").or_else(|| value("BUILD_ID")).unwrap_or_default(),
    })
}

/// A value as a shell would read it, which is how os-release(5) defines it.
fn unquote(text: &str) -> String {
    let text = text.trim();
    let quoted =
        ['"', '\''].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
    let mut characters = quoted.unwrap_or(text).chars();
    let mut plain = String::new();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            _ => plain.push(character),
        }
    }
    plain
}

fn uptime(host: &View) -> Result<String> {
    let path = "/proc/uptime";
    let text = read(host, path)?;
    let whole = text.split(['.', ' ']).next().and_then(|seconds| seconds.parse::<u64>().ok());
    let minutes = whole.ok_or_else(|| unclear(path))? / 60;
    let of = |count: u64, unit: &str| match count {
        1 => format!("1 {unit}"),
        _ => format!("{count} {unit}s"),
    };
    let (days, hours, minutes) = (minutes / 1440, minutes / 60 % 24, minutes % 60);
    Ok(format!("{}, {}, {}", of(days, "day"), of(hours, "hour"), of(minutes, "minute")))
}

/// A file of the system; a host that has none of that name cannot tell.
fn read(host: &View, path: &str) -> Result<String> {
    host.read(path).map_err(|error| match error.kind() {
        Kind::NotFound => Error::new(Kind::Unsupported, format!("this host has no {path}")),
        _ => error,
    })
}

fn unclear(path: &str) -> Error {
    Error::new(Kind::HostFailed, format!("cannot read {path}: it is not as the kernel writes it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::tests::Fake;

    #[test]
    fn used_memory_is_not_the_page_cache() {
        let fake = Fake::with(&[(
            "/proc/meminfo",
            "MemTotal:     1000 kB\nMemFree:   100 kB\nMemAvailable:  600 kB\nCached:  500 kB\n",
        )]);
        let expected = Memory { total: 1_024_000, free: 102_400, used: 409_600 };
        assert_eq!(memory(&fake.view()).unwrap(), expected);
    }

    #[test]
    fn uptime_is_said_in_words() {
        let said = |text| uptime(&Fake::with(&[("/proc/uptime", text)]).view()).unwrap();
        assert_eq!(said("59.99 10.00\n"), "0 days, 0 hours, 0 minutes");
        assert_eq!(said("90061.5 1\n"), "1 day, 1 hour, 1 minute");
        assert_eq!(said("266520 1\n"), "3 days, 2 hours, 2 minutes");
    }

    #[test]
    fn a_distribution_is_read_as_a_shell_would() {
        let read = |text| os(&Fake::with(&[("/usr/lib/os-release", text)]).view()).unwrap();
        let os = |distribution: &str, version: &str| Os {
            distribution: distribution.to_owned(),
            version: version.to_owned(),
        };
        assert_eq!(read("NAME=\"x\"\nID=debian\nVERSION_ID=\"12\"\n"), os("debian", "12"));
        assert_eq!(read("ID='a\\\"b'\nBUILD_ID=rolling\n"), os("a\"b", "rolling"));
        assert_eq!(read("PRETTY_NAME=x\n"), os("linux", ""));
    }

    #[test]
    fn every_disk_counts_once_and_nothing_else_does() {
        let mounts = "rootfs / rootfs rw 0 0\noverlay / overlay rw 0 0\nproc /proc proc rw 0 0\n\
            /dev/sda1 /boot vfat rw 0 0\n/dev/sda1 /bind vfat rw 0 0\ntank/a /a\\040b zfs rw 0 0\n\
            /dev/sdb /hidden xfs rw 0 0\ntmpfs /hidden tmpfs rw 0 0\n\
            srv:/x /nfs nfs4 rw 0 0\n/dev/loop0 /snap/a squashfs ro 0 0\n/dev/sdc /c ext4 rw 0 0\n";
        let kinds = ["rootfs", "overlay", "proc", "tmpfs", "nfs4", "zfs"].into();
        assert_eq!(visible(mounts, &kinds), ["/", "/boot", "/a b", "/c"]);
    }

    #[test]
    fn a_disk_that_cannot_be_looked_at_is_said() {
        let fake = Fake::with(&[
            ("/proc/mounts", "/dev/sda / ext4 rw 0 0\n/dev/sdb /gone xfs rw 0 0\n"),
            ("/proc/filesystems", "nodev\tproc\n\text4\n"),
        ]);
        let Disks { disks, warnings } = disks(&fake.view()).unwrap();
        assert_eq!(disks.iter().map(|disk| &*disk.name).collect::<Vec<_>>(), ["/"]);
        assert!(matches!(&*warnings, [warning] if warning.contains("/gone")), "{warnings:?}");
    }

    #[test]
    fn a_status_says_what_is_missing() {
        let fake = Fake::with(&[("/proc/loadavg", "0.50 1.00 1.5 2/3 4\n"), ("/proc/uptime", "?")]);
        let Status { uptime, load_average, memory, os_info, warnings, .. } = status(&fake.view());
        let expected = Load { one: 0.5, five: 1.0, fifteen: 1.5 };
        assert_eq!((load_average, uptime, memory, os_info), (Some(expected), None, None, None));
        for part in ["/proc/mounts", "/proc/uptime", "/proc/meminfo", "/etc/os-release"] {
            assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:?}");
        }
    }
}
