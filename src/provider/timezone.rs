//! The system timezone: which zoneinfo file `/etc/localtime` points to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::host::cell::{Cell, Value, file, link};
use crate::host::{Refresh, View, Want};
use crate::op::{Domain, Method, Nothing, Op, Read, Write};
use crate::permission::Permission;

pub static DOMAIN: Domain = Domain {
    name: "timezone",
    about: "System timezone",
    ops: &[
        Op {
            id: "node.timezone.get",
            about: "Show the system timezone",
            path: "/node/{hostname}/timezone",
            permission: Some(Permission::TimezoneRead),
            command: "node timezone get",
            columns: &[("TIMEZONE", "/timezone"), ("UTC_OFFSET", "/utc_offset")],
            run: &Read(|host, _: &Nothing| current(host)),
            ..Op::COMMON
        },
        Op {
            id: "node.timezone.update",
            about: "Set the system timezone",
            method: Method::Put,
            path: "/node/{hostname}/timezone",
            permission: Some(Permission::TimezoneWrite),
            command: "node timezone update",
            args: &["timezone"],
            columns: &[("TIMEZONE", "/timezone")],
            run: &Write(update, |host, _| named(host)),
            ..Op::COMMON
        },
    ],
};

const LOCALTIME: &str = "/etc/localtime";
const ZONEINFO: &str = "/usr/share/zoneinfo";
/// Where Debian keeps the name for programs that do not look at the link.
const NAME: &str = "/etc/timezone";
/// Links to the zone of the host itself, which would lead in a circle.
const OWN: [&str; 2] = ["localtime", "posixrules"];
/// The largest zone there is has some 4 KiB.
const MAX_ZONE: u64 = 256 * 1024;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// IANA name of at most 255 characters, such as `Europe/Berlin`.
    timezone: ZoneName,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Timezone {
    /// IANA name, or `UTC` when the host has none set.
    timezone: String,
    /// How far local time is ahead of UTC by now, such as `+02:00`.
    utc_offset: String,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Named {
    /// IANA name.
    timezone: String,
}

fn current(host: &View) -> Result<Timezone> {
    let zone = match host.read_bytes(LOCALTIME, MAX_ZONE) {
        // systemd treats a missing link as UTC, and so do we.
        Err(error) if error.kind() == Kind::NotFound => None,
        zone => Some(zone?),
    };
    let seconds = zone.map_or(Ok(0), |zone| offset(&zone, host.now()))?;
    let (sign, minutes) = (if seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs() / 60);
    let utc_offset = format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60);
    Ok(Timezone { timezone: named(host)?.timezone, utc_offset })
}

fn named(host: &View) -> Result<Named> {
    let name = match host.value(&Cell::Node(LOCALTIME.to_owned()))? {
        Value::Link(target) => zone_of(&target).map(str::to_owned),
        // A copy does not say of what.
        Value::File { .. } => host.read(NAME).ok().map(|name| name.trim().to_owned()),
        _ => None,
    };
    Ok(Named { timezone: name.unwrap_or_else(|| "UTC".to_owned()) })
}

fn zone_of(target: &str) -> Option<&str> {
    target.rsplit_once("/zoneinfo/").map(|(_, name)| name)
}

fn update(host: &View, Update { timezone: ZoneName(name) }: &Update) -> Result<Want> {
    let unknown = |why: &str| {
        Error::new(Kind::InvalidInput, format!("no timezone {name:?} on this host{why}"))
    };
    if OWN.contains(&name.as_str()) {
        return Err(unknown(", which would be its own"));
    }
    if !host.exists(ZONEINFO) {
        return Err(unknown(": install tzdata"));
    }
    let zone = host.read_below(ZONEINFO, name, MAX_ZONE).unwrap_or_default();
    if !zone.starts_with(b"TZif") {
        return Err(unknown(""));
    }
    let target = match host.value(&Cell::Node(LOCALTIME.to_owned()))? {
        // However it is spelt.
        Value::Link(target) if zone_of(&target) == Some(name) => target,
        _ => format!("..{ZONEINFO}/{name}"),
    };
    let mut want = Want::new().set(link(LOCALTIME, target));
    if let Value::File { mode, owner, .. } = host.value(&Cell::Node(NAME.to_owned()))? {
        let (user, group) = owner.split_once(':').unwrap_or((&owner, ""));
        let name = file(NAME, format!("{name}\n")).mode(mode.bits()).owner(user, group);
        want = want.set(name);
    }
    if host.has_systemd() {
        want = want.then(Refresh::try_restart("systemd-timedated.service"));
    }
    Ok(want)
}

/// How many seconds a zone is ahead of UTC at `now`, in seconds since 1970.
fn offset(zone: &[u8], now: i64) -> Result<i32> {
    let spoilt = |error: &dyn std::fmt::Display| {
        Error::new(Kind::HostFailed, format!("cannot read {LOCALTIME} as a timezone: {error}"))
    };
    let zone = tz::TimeZone::from_tz_data(zone).map_err(|error| spoilt(&error))?;
    Ok(zone.find_local_time_type(now).map_err(|error| spoilt(&error))?.ut_offset())
}

/// A name that stays inside the zoneinfo directory.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 255,
    "pattern" = r"^[A-Za-z0-9_+][A-Za-z0-9_+-]*(/[A-Za-z0-9_+][A-Za-z0-9_+-]*)*$",
    "examples" = ["Europe/Berlin"],
))]
struct ZoneName(String);

impl TryFrom<String> for ZoneName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_part = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-".contains(&b))
        };
        let is_name = name.len() <= 255 && name.split('/').all(is_part);
        is_name.then_some(Self(name)).ok_or("timezone: not an IANA name")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;
    use crate::provider::tests::Fake;

    fn host() -> Fake {
        let fake = Fake::with(&[
            ("/usr/share/zoneinfo/Etc/UTC", "TZif2"),
            ("/usr/share/zoneinfo/Europe/Berlin", "TZif2"),
            ("/usr/share/zoneinfo/zone.tab", "AD"),
            ("/usr/share/zoneinfo/tzdata", "AD"),
            ("/etc/secret", "TZif2"),
            ("/etc/passwd", "root:x:0:0::/:/bin/sh\n"),
            ("/etc/group", "root:x:0:\n"),
        ]);
        let link = |target: &str, path: &str| symlink(target, fake.at(path)).unwrap();
        link("/usr/share/zoneinfo/Etc/UTC", "/etc/localtime");
        link("Europe/Berlin", "/usr/share/zoneinfo/Arctic");
        link("/etc/localtime", "/usr/share/zoneinfo/localtime");
        link("../../../etc/secret", "/usr/share/zoneinfo/sneaky");
        fake
    }

    fn set(fake: &Fake, zone: &str) -> Result<bool, Kind> {
        let result = fake.run("node.timezone.update", json!({ "timezone": zone }), "")?;
        assert_eq!(result["timezone"], zone);
        Ok(result["changed"] == true)
    }

    #[test]
    fn the_link_is_set_once_and_however_it_was_spelt() {
        let fake = host();
        let target = || std::fs::read_link(fake.at("/etc/localtime")).unwrap();
        assert_eq!(set(&fake, "Etc/UTC"), Ok(false));
        assert_eq!(target().to_str(), Some("/usr/share/zoneinfo/Etc/UTC"));
        assert_eq!(set(&fake, "Europe/Berlin"), Ok(true));
        assert_eq!(target().to_str(), Some("../usr/share/zoneinfo/Europe/Berlin"));
        assert_eq!(set(&fake, "Europe/Berlin"), Ok(false));
        assert_eq!(fake.text("/etc/timezone"), None);
        fake.put("/etc/timezone", "Etc/UTC\n");
        assert_eq!(set(&fake, "Arctic"), Ok(true));
        assert_eq!(fake.text("/etc/timezone").unwrap(), "Arctic\n");
    }

    #[test]
    fn what_is_no_zone_of_this_host_is_refused() {
        let fake = host();
        for name in ["Europe", "Europe/Paris", "tzdata", "localtime", "sneaky", "posixrules"] {
            assert_eq!(set(&fake, name), Err(Kind::InvalidInput), "{name}");
        }
    }

    #[test]
    fn names_cannot_leave_zoneinfo() {
        let schema = schemars::schema_for!(ZoneName).to_value();
        let takes = |name: &str| {
            let is_taken = ZoneName::try_from(name.to_owned()).is_ok();
            assert_eq!(jsonschema::is_valid(&schema, &json!(name)), is_taken, "{name:?}");
            is_taken
        };
        for name in ["UTC", "Europe/Berlin", "Etc/GMT+1", "Etc/GMT-1", "America/Port-au-Prince"] {
            assert!(takes(name), "{name:?}");
        }
        for name in ["", "..", "../x", "/UTC", "UTC/", "a//b", "a.b", "-a", "a/-b", "a b", "a\n"] {
            assert!(!takes(name), "{name:?}");
        }
    }

    #[test]
    fn a_host_without_a_zone_is_at_utc() {
        let fake = host();
        fake.remove("/etc/localtime");
        let told = fake.run("node.timezone.get", json!({}), "").unwrap();
        assert_eq!(told, json!({ "timezone": "UTC", "utc_offset": "+00:00" }));
    }

    #[test]
    fn the_offset_is_that_of_the_moment() {
        // Version 2 of RFC 8536: one change, at 1000 s, from one hour ahead to 3.5 h behind.
        let header = |counts: [u32; 6]| {
            let counts = counts.into_iter().flat_map(u32::to_be_bytes);
            [b"TZif2".as_slice(), &[0; 15]].concat().into_iter().chain(counts).collect()
        };
        let kind = |seconds: i32, name: u8| [&seconds.to_be_bytes()[..], &[0, name]].concat();
        let zone: Vec<Vec<u8>> = vec![
            header([0, 0, 0, 0, 1, 4]),
            kind(0, 0),
            b"UTC\0".to_vec(),
            header([0, 0, 0, 1, 2, 8]),
            1000_i64.to_be_bytes().to_vec(),
            vec![1],
            kind(3600, 0),
            kind(-12_600, 4),
            b"ABC\0DEF\0\nDEF3:30\n".to_vec(),
        ];
        let zone = zone.concat();
        assert_eq!(offset(&zone, 999).unwrap(), 3600);
        assert_eq!(offset(&zone, 1000).unwrap(), -12_600);
        assert_eq!(offset(b"TZif", 0).unwrap_err().kind(), Kind::HostFailed);
    }
}
