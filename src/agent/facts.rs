//! What the agent tells of its host without being asked: facts, and whether it is under pressure.
//!
//! What a host does not show is left out; nothing here fails.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::{Map, Value, json};
use sysinfo::Networks;

use super::Setup;
use crate::host::View;
use crate::link::{About, Condition};

/// File systems on a disk of this host. Asking others for their room may take for ever.
const LOCAL: [&str; 9] =
    ["bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "vfat", "xfs"];

/// What the configuration says about facts and conditions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name to go by; empty: the host's own.
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    /// How often facts are collected.
    pub interval: Duration,
    /// In percent of memory in use.
    pub memory_pressure: f64,
    /// In runnable processes for each processor.
    pub high_load: f64,
    /// In percent of a file system in use.
    pub disk_pressure: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hostname: String::new(),
            labels: BTreeMap::new(),
            interval: Duration::from_mins(1),
            memory_pressure: 90.0,
            high_load: 2.0,
            disk_pressure: 90.0,
        }
    }
}

/// What an agent says when it starts.
pub(super) fn about(setup: &Setup) -> About {
    let mut about = About {
        machine_id: setup.machine_id.clone(),
        hostname: hostname(setup),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: setup.clock.wall(),
        labels: setup.facts.labels.clone(),
        facts: collect(&setup.executor.view()),
        conditions: Vec::new(),
        uid: rustix::process::getuid().as_raw(),
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        waiting: setup.executor.waiting(),
        hanging: Vec::new(),
        landlock: setup.executor.landlock(),
        ..About::default()
    };
    judge(setup, &mut about.conditions);
    about
}

pub(super) fn hostname(setup: &Setup) -> String {
    match setup.facts.hostname.as_str() {
        "" => setup.executor.view().machine().hostname,
        name => name.to_owned(),
    }
}

/// The facts under their published names.
pub(super) fn collect(host: &View) -> Value {
    let machine = host.machine();
    let mut facts = Map::new();
    let mut tell = |name: &str, value: Option<Value>| {
        facts.extend(value.map(|value| (name.to_owned(), value)));
    };
    tell("architecture", Some(json!(machine.architecture)));
    tell("kernel_version", Some(json!(machine.kernel)));
    tell("cpu_count", Some(json!(machine.cpus)));
    tell("fqdn", Some(json!(fqdn(host, &machine.hostname))));
    tell("os_info", os(host));
    tell("service_mgr", Some(json!(first(host, &[("systemd", "/run/systemd/system")]))));
    tell("package_mgr", Some(json!(package_manager(host))));
    tell("containerized", Some(json!(is_container(host))));
    tell("uptime", uptime(host).map(|uptime| json!(uptime)));
    tell(
        "load_average",
        load(host)
            .map(|[one, five, fifteen]| json!({ "1min": one, "5min": five, "15min": fifteen })),
    );
    tell(
        "memory",
        memory(host).map(
            |memory| json!({ "total": memory.total, "free": memory.free, "used": memory.used() }),
        ),
    );
    let routes = [routes_v4(host), routes_v6(host)].concat();
    let default = routes.iter().filter(|route| route.prefix == 0 && route.is_via_gateway());
    let primary = default.min_by_key(|route| (route.destination.is_ipv6(), route.metric));
    tell("primary_interface", primary.map(|route| json!(route.interface)));
    tell("routes", Some(routes.iter().map(Route::json).collect()));
    tell("interfaces", Some(interfaces()));
    facts.into()
}

/// Sets what is true of the host by now; a condition remembers since when.
pub(super) fn judge(setup: &Setup, conditions: &mut Vec<Condition>) {
    let (host, limits) = (setup.executor.view(), &setup.facts);
    let memory = memory(&host).and_then(|memory| {
        let used = percent(memory.used(), memory.total);
        (used > limits.memory_pressure).then(|| format!("{used:.1}% of memory is in use"))
    });
    let load = load(&host).and_then(|[one, ..]| {
        let cpus = host.machine().cpus;
        let limit = f64::from(u32::try_from(cpus).unwrap_or(u32::MAX)) * limits.high_load;
        (one > limit).then(|| format!("the load is {one:.2} on {cpus} processors"))
    });
    let disk = mounts(&host).into_iter().find_map(|path| {
        let space = host.space(&path).ok()?;
        let used = percent(space.total.saturating_sub(space.free), space.total);
        (used > limits.disk_pressure).then(|| format!("{used:.1}% of {path} is in use"))
    });
    let found = [("MemoryPressure", memory), ("HighLoad", load), ("DiskPressure", disk)];
    let now = crate::clock::rfc3339(setup.clock.wall());
    *conditions = found
        .into_iter()
        .map(|(kind, reason)| {
            let status = reason.is_some();
            let earlier = conditions.iter().find(|old| old.kind == kind && old.status == status);
            // The reason has a figure that changes each time. It is that of the transition, so
            // that what is told changes only when something does.
            earlier.cloned().unwrap_or_else(|| Condition {
                kind: kind.to_owned(),
                status,
                reason,
                last_transition_time: now.clone(),
            })
        })
        .collect();
}

fn percent(part: u64, whole: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a percentage")]
    let percent = part as f64 * 100.0 / whole.max(1) as f64;
    percent
}

/// The name with its domain, as the host's own table has it. The resolver is not asked: it may
/// take long, and what it says of this host may be anybody's word.
fn fqdn(host: &View, hostname: &str) -> String {
    if hostname.contains('.') {
        return hostname.to_owned();
    }
    let hosts = host.read("/etc/hosts").unwrap_or_default();
    let names = hosts.lines().filter_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let names: Vec<_> = line.split_whitespace().skip(1).collect();
        let full = names.iter().find(|name| name.split('.').next() == Some(hostname))?;
        (names.contains(&hostname) || full.contains('.')).then(|| (*full).to_owned())
    });
    let full = names.filter(|name| name.contains('.')).find(|name| !name.starts_with("localhost"));
    full.unwrap_or_else(|| hostname.to_owned())
}

fn os(host: &View) -> Option<Value> {
    let text = ["/etc/os-release", "/usr/lib/os-release"].map(|path| host.read(path).ok());
    let text = text.into_iter().flatten().next()?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.map_or("", |value| value.trim_matches(['"', '\''])).to_owned()
    };
    Some(json!({ "distribution": field("ID"), "version": field("VERSION_ID") }))
}

fn first(host: &View, candidates: &[(&'static str, &str)]) -> &'static str {
    let found = candidates.iter().find(|(_, path)| host.exists(path));
    found.map_or("unknown", |(name, _)| name)
}

fn package_manager(host: &View) -> &'static str {
    first(host, &[("apt", "/usr/bin/apt"), ("dnf", "/usr/bin/dnf"), ("yum", "/usr/bin/yum")])
}

fn is_container(host: &View) -> bool {
    ["/.dockerenv", "/run/.containerenv", "/run/systemd/container"]
        .iter()
        .any(|path| host.exists(path))
}

fn uptime(host: &View) -> Option<String> {
    let text = host.read("/proc/uptime").ok()?;
    let seconds: u64 = text.split('.').next()?.parse().ok()?;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let counted =
        |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let parts = [counted(days, "day"), counted(hours, "hour"), counted(minutes, "minute")];
    Some(parts.join(", "))
}

fn load(host: &View) -> Option<[f64; 3]> {
    let text = host.read("/proc/loadavg").ok()?;
    let mut fields = text.split_whitespace().map_while(|field| field.parse().ok());
    Some([fields.next()?, fields.next()?, fields.next()?])
}

/// In bytes.
struct Memory {
    total: u64,
    free: u64,
    available: u64,
}

impl Memory {
    fn used(&self) -> u64 {
        self.total.saturating_sub(self.available)
    }
}

fn memory(host: &View) -> Option<Memory> {
    let text = host.read("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(kib * 1024)
    };
    let (total, free) = (field("MemTotal:")?, field("MemFree:")?);
    Some(Memory { total, free, available: field("MemAvailable:").unwrap_or(free) })
}

/// Where this host's own disks are mounted, each once.
fn mounts(host: &View) -> Vec<String> {
    let text = host.read("/proc/self/mounts").unwrap_or_default();
    let mut devices = Vec::new();
    let mut paths = Vec::new();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(path), Some(kind)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if LOCAL.contains(&kind) && !devices.contains(&device) {
            devices.push(device);
            // As the kernel writes a blank in a path.
            paths.push(path.replace("\\040", " "));
        }
    }
    paths
}

fn interfaces() -> Value {
    let Ok(networks) = Networks::new_with_refreshed_list() else { return json!([]) };
    let mut found: Vec<_> = networks.iter().collect();
    found.sort_by_key(|(name, _)| *name);
    let rows = found.into_iter().filter_map(|(name, network)| {
        let addresses = || network.ip_networks().iter().map(|network| network.addr);
        if addresses().any(|address| address.is_loopback()) {
            return None;
        }
        let v4 = addresses().find(IpAddr::is_ipv4);
        // One that others can reach, where there is one.
        let v6 = addresses().filter(IpAddr::is_ipv6).min_by_key(|address| match address {
            IpAddr::V6(address) => address.is_unicast_link_local(),
            IpAddr::V4(_) => true,
        });
        let family = match (v4, v6) {
            (Some(_), Some(_)) => "dual",
            (Some(_), None) => "inet",
            (None, Some(_)) => "inet6",
            (None, None) => return None,
        };
        let mut row = json!({ "name": name, "family": family });
        for (field, value) in [
            ("ipv4", v4.map(|address| address.to_string())),
            ("ipv6", v6.map(|address| address.to_string())),
            ("mac", Some(network.mac_address().to_string())),
        ] {
            if let Some(value) = value {
                row[field] = value.into();
            }
        }
        Some(row)
    });
    rows.collect()
}

#[derive(Clone, Debug)]
struct Route {
    destination: IpAddr,
    prefix: u32,
    gateway: IpAddr,
    interface: String,
    metric: u32,
    /// As the kernel writes them, in hexadecimal.
    flags: String,
}

impl Route {
    fn is_via_gateway(&self) -> bool {
        !self.gateway.is_unspecified()
    }

    fn json(&self) -> Value {
        json!({
            "destination": self.destination.to_string(),
            "gateway": self.gateway.to_string(),
            "interface": self.interface,
            "mask": format!("/{}", self.prefix),
            "metric": self.metric,
            "flags": self.flags,
        })
    }
}

fn routes_v4(host: &View) -> Vec<Route> {
    let text = host.read("/proc/net/route").unwrap_or_default();
    let route = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // The kernel prints the bytes of an address as a number of its own order.
        let address = |field: &str| {
            u32::from_str_radix(field, 16).ok().map(|bits| Ipv4Addr::from(bits.to_ne_bytes()))
        };
        Some(Route {
            destination: address(fields.get(1)?)?.into(),
            prefix: u32::from(address(fields.get(7)?)?).count_ones(),
            gateway: address(fields.get(2)?)?.into(),
            interface: (*fields.first()?).to_owned(),
            metric: fields.get(6)?.parse().ok()?,
            flags: (*fields.get(3)?).to_owned(),
        })
    };
    text.lines().filter_map(route).collect()
}

fn routes_v6(host: &View) -> Vec<Route> {
    let text = host.read("/proc/net/ipv6_route").unwrap_or_default();
    let route = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let number = |field: Option<&&str>| u32::from_str_radix(field?, 16).ok();
        let address =
            |field: Option<&&str>| u128::from_str_radix(field?, 16).ok().map(Ipv6Addr::from_bits);
        let (destination, interface) = (address(fields.first())?, *fields.get(9)?);
        // What the kernel keeps there for its own addresses is no route to anywhere.
        if interface == "lo" || destination.is_multicast() {
            return None;
        }
        Some(Route {
            destination: destination.into(),
            prefix: number(fields.get(1))?,
            gateway: address(fields.get(4))?.into(),
            interface: interface.to_owned(),
            metric: number(fields.get(5))?,
            flags: (*fields.get(8)?).to_owned(),
        })
    };
    text.lines().filter_map(route).collect()
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "prepares a temporary root")]
mod tests {
    use super::*;
    use crate::host::{Executor, Root};

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, View) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join("root").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        std::fs::create_dir_all(dir.path().join("root")).unwrap();
        let root = Root::at(dir.path().join("root"));
        let executor =
            Executor::new(root, &dir.path().join("state"), crate::host::UndoBounds::default());
        (dir, executor.unwrap().view())
    }

    #[test]
    fn facts_are_those_of_the_host_and_not_of_the_process() {
        let (_dir, host) = host(&[
            ("etc/os-release", "NAME=\"Debian\"\nID=debian\nVERSION_ID=\"13\"\n"),
            ("proc/uptime", "93784.12 1.0\n"),
            ("proc/loadavg", "0.50 1.25 2.00 1/100 1\n"),
            ("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 600 kB\n"),
            (
                "proc/net/route",
                "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                 eth1\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                 eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
            ),
            (
                "proc/net/ipv6_route",
                "20010db8000000000000000000000000 40 00000000000000000000000000000000 00 \
                 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n",
            ),
            ("usr/bin/apt", ""),
        ]);
        let facts = collect(&host);
        assert_eq!(facts["os_info"], json!({ "distribution": "debian", "version": "13" }));
        assert_eq!(facts["uptime"], "1 day, 2 hours, 3 minutes");
        assert_eq!(facts["load_average"]["15min"], 2.0);
        assert_eq!(facts["memory"]["used"], 400 * 1024);
        assert_eq!(
            (&facts["package_mgr"], &facts["service_mgr"]),
            (&json!("apt"), &json!("unknown"))
        );
        assert_eq!(facts["primary_interface"], "eth1");
        let routes = facts["routes"].as_array().unwrap();
        assert_eq!(routes[0]["gateway"], "192.168.2.1");
        assert_eq!(
            (&routes[1]["destination"], &routes[1]["mask"]),
            (&json!("192.168.2.0"), &json!("/24"))
        );
        assert_eq!(
            (&routes[2]["destination"], &routes[2]["mask"]),
            (&json!("2001:db8::"), &json!("/64"))
        );
    }

    #[test]
    fn a_name_with_its_domain_comes_from_the_table_of_hosts() {
        let table =
            "127.0.0.1 localhost.localdomain localhost\n127.0.1.1 web-1.example.org web-1\n";
        let (_dir, host) = host(&[("etc/hosts", table)]);
        assert_eq!(fqdn(&host, "web-1"), "web-1.example.org");
        assert_eq!(fqdn(&host, "web-2"), "web-2");
        assert_eq!(fqdn(&host, "web-3.example.org"), "web-3.example.org");
    }
}
