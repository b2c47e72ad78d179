//! The host: what OSAPI needs of it, and what makes hosts fail.

use serde_json::Value;

use super::super::text::age;
use super::evidence::Evidence;
use super::evidence::Need::{Room, Says};
use super::{Check, Finding, fail, ok, skipped, warn};

const STATE: &str = "systemctl is-system-running";
const FAILED: &str = "systemctl list-units --state=failed --plain --no-legend --no-pager";
const VERSION: &str = "systemctl --version";
const CLOCK: &str = "timedatectl show --property=NTPSynchronized --property=NTP";
const AUDIT: &str = "dpkg --audit";

/// The systemd from which on units have all that OSAPI's use: that of Debian 12.
const SYSTEMD: u32 = 252;
/// A clock that shows less was never set: 2025, in milliseconds.
const EARLIEST: u64 = 1_735_689_600_000;
/// How long a boot may take, in seconds.
const BOOT: u64 = 600;
/// What the random numbers of kernels before 5.18 need to be good at once, in bits.
const ENTROPY: u64 = 128;
/// What a group may not do with a secret that it may read, and others not at all.
const OTHERS: u32 = 0o037;

pub(super) static CHECKS: &[Check] = &[
    Check {
        id: "system.booted",
        title: "The host has come up",
        needs: &[Says(STATE)],
        judge: |e| {
            let state = e.says(STATE)?.trim();
            let up = e.read("/proc/uptime")?;
            let up = up.split('.').next().and_then(|up| up.parse().ok()).unwrap_or(0_u64);
            match state {
                // Which units failed is told by itself.
                "running" | "degraded" => ok(format!("it is {state}, up {}", age(up))),
                "starting" | "initializing" if up < BOOT => ok("it is coming up"),
                _ => warn(format!("it is {state}, up {}", age(up)), "systemctl list-jobs"),
            }
        },
    },
    Check {
        id: "system.failed",
        title: "No unit has failed",
        needs: &[Says(FAILED)],
        judge: |e| {
            let said = e.says(FAILED)?;
            let names = said
                .lines()
                .filter_map(|line| line.split_whitespace().find(|word| word.contains('.')));
            let names: Vec<_> = names.collect();
            let Some(first) = names.first() else { return ok("none has") };
            let fix = format!("systemctl status {first}\nsystemctl reset-failed {first}");
            warn(names.join(", "), fix)
        },
    },
    Check {
        id: "system.reboot",
        title: "No reboot is due",
        needs: &[],
        judge: |e| {
            if !e.exists("/run/reboot-required") {
                return ok("none is");
            }
            let packages = e.read("/run/reboot-required.pkgs").unwrap_or_default();
            let packages: Vec<_> = packages.lines().collect();
            warn(format!("for the sake of {}", packages.join(", ")), "osapi power reboot")
        },
    },
    Check {
        id: "system.systemd",
        title: "systemd is recent enough",
        needs: &[Says(VERSION)],
        judge: |e| {
            let said = e.says(VERSION)?;
            let version = said.split_whitespace().nth(1).unwrap_or_default();
            let number = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            match number.parse::<u32>() {
                Ok(number) if number >= SYSTEMD => ok(version),
                _ => warn(
                    format!("{version:?} is older than {SYSTEMD}; units are less confined"),
                    "cat /etc/os-release    # OSAPI is made for Debian 12 and newer",
                ),
            }
        },
    },
    Check {
        id: "kernel.landlock",
        title: "The kernel holds back whoever plans from writing",
        needs: &[],
        judge: |e| {
            let modules = e.read("/sys/kernel/security/lsm")?;
            if modules.trim().split(',').any(|module| module == "landlock") {
                return ok("landlock is on");
            }
            let fix = "cat /sys/kernel/security/lsm    # add landlock: lsm=…,landlock on the kernel's command line";
            warn("landlock is off", fix)
        },
    },
    Check {
        id: "kernel.cgroup",
        title: "Processes are held together by cgroup v2",
        needs: &[],
        judge: |e| {
            let mounts = e.mounts()?;
            let found = mounts.iter().find(|mount| mount.at == "/sys/fs/cgroup");
            match found.map(|mount| mount.kind.as_str()) {
                Some("cgroup2") => ok("it is at /sys/fs/cgroup"),
                other => warn(
                    format!("/sys/fs/cgroup is {}", other.unwrap_or("not mounted")),
                    "cat /proc/cmdline    # remove systemd.unified_cgroup_hierarchy=0 there",
                ),
            }
        },
    },
    Check {
        id: "kernel.modules",
        title: "The running kernel is the installed one",
        needs: &[],
        judge: |e| {
            if e.is_container() {
                return Err(skipped("the kernel is another system's"));
            }
            let release = e.read("/proc/sys/kernel/osrelease")?;
            let release = release.trim();
            let has = ["/lib/modules", "/usr/lib/modules"];
            if has.iter().any(|place| e.exists(format!("{place}/{release}"))) {
                return ok(release);
            }
            warn(
                format!("{release} was removed; its modules cannot be loaded"),
                "osapi power reboot",
            )
        },
    },
    Check {
        id: "kernel.entropy",
        title: "There is randomness",
        needs: &[],
        judge: |e| {
            let bits = e.read("/proc/sys/kernel/random/entropy_avail")?;
            let bits: u64 = bits.trim().parse().unwrap_or(0);
            if bits >= ENTROPY {
                return ok(format!("{bits} bits"));
            }
            warn(format!("{bits} bits"), "apt-get install rng-tools5")
        },
    },
    Check {
        id: "host.name",
        title: "The host goes by the name that is set",
        needs: &[],
        judge: |e| {
            let (set, is) = (e.read("/etc/hostname")?, e.read("/proc/sys/kernel/hostname")?);
            let lines = set.lines().map(str::trim);
            let set = lines.clone().find(|line| !line.is_empty() && !line.starts_with('#'));
            let (set, is) = (set.unwrap_or_default(), is.trim());
            if set == is {
                return ok(is);
            }
            let what = format!("it is {is:?}, and /etc/hostname says {set:?}");
            warn(what, format!("hostnamectl set-hostname {is}"))
        },
    },
    Check {
        id: "host.resolves",
        title: "The host knows its own name",
        needs: &[],
        judge: |e| {
            let name = e.read("/proc/sys/kernel/hostname")?;
            let name = name.trim();
            let hosts = e.read("/etc/hosts").unwrap_or_default();
            let mut lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
            if lines.any(|line| line.split_whitespace().skip(1).any(|word| word == name)) {
                return ok(format!("{name} is in /etc/hosts"));
            }
            let order = e.read("/etc/nsswitch.conf").unwrap_or_default();
            let mut order = order.lines().filter(|line| line.starts_with("hosts:"));
            let asks = ["myhostname", "resolve"];
            if order.any(|line| line.split_whitespace().any(|word| asks.contains(&word))) {
                return ok(format!("{name} is resolved by systemd"));
            }
            warn(
                format!("{name} is not in /etc/hosts"),
                format!("echo '127.0.1.1 {name}' >>/etc/hosts"),
            )
        },
    },
    Check {
        id: "host.machine_id",
        title: "The host has an identity of its own",
        needs: &[],
        judge: |e| {
            let id = e.read("/etc/machine-id")?;
            let id = id.trim();
            let is_hex = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_hex && id.bytes().any(|byte| byte != b'0') {
                return ok(id);
            }
            fail(format!("/etc/machine-id holds {id:?}"), "systemd-machine-id-setup")
        },
    },
    Check {
        id: "clock.set",
        title: "The clock was set",
        needs: &[],
        judge: |e| {
            if e.now >= EARLIEST {
                return ok("it shows this decade");
            }
            fail("it shows a time before this program was made", "timedatectl set-ntp true")
        },
    },
    Check {
        id: "clock.synchronised",
        title: "The clock is kept in step",
        needs: &[Says(CLOCK)],
        judge: |e| {
            if e.is_container() {
                return Err(skipped("the clock is another system's"));
            }
            let said = e.says(CLOCK)?;
            if said.contains("NTPSynchronized=yes") {
                return ok("it is");
            }
            let is_on = said.lines().any(|line| line == "NTP=yes");
            let what = if is_on { "it is not yet" } else { "nobody keeps it so" };
            warn(what, "timedatectl set-ntp true    # needs systemd-timesyncd or chrony")
        },
    },
    Check {
        id: "log.persistent",
        title: "The journal outlives a reboot",
        needs: &[],
        judge: journal,
    },
    Check {
        id: "packages.whole",
        title: "No package is half installed",
        needs: &[Says(AUDIT)],
        judge: |e| {
            let said = e.says(AUDIT)?;
            // What is wrong is explained first, the packages stand below, indented.
            let names = said.lines().filter_map(|line| {
                let line = line.strip_prefix(' ')?;
                line.split_whitespace().next()
            });
            let names: Vec<_> = names.collect();
            if said.trim().is_empty() {
                return ok("none is");
            }
            let what = format!("dpkg names {}", names.join(", "));
            fail(what, "dpkg --configure --pending\napt-get --fix-broken install")
        },
    },
    Check {
        id: "packages.free",
        title: "Nobody else is changing packages",
        needs: &[],
        judge: locked,
    },
    Check {
        id: "files.root",
        title: "Nothing that is written to is mounted read-only",
        needs: &[],
        judge: |e| {
            let mounts = e.mounts()?;
            let written = ["/", "/etc", "/var", "/home", "/root", "/tmp"];
            let stuck = mounts.iter().find(|m| m.is_read_only && written.contains(&m.at.as_str()));
            let Some(mount) = stuck else { return ok("nothing is") };
            let at = &mount.at;
            let fix =
                format!("journalctl --dmesg --grep 'remount|I/O error'\nmount -o remount,rw {at}");
            fail(format!("{at} is read-only"), fix)
        },
    },
    Check {
        id: "files.temporary",
        title: "Nobody can take others' temporary files away",
        needs: &[],
        judge: |e| {
            for path in ["/tmp", "/var/tmp"] {
                let (mode, _) = e.mode(path)?;
                if mode != 0o1777 {
                    return warn(format!("{path} has {mode:04o}"), format!("chmod 1777 {path}"));
                }
            }
            ok("/tmp and /var/tmp have 1777")
        },
    },
    Check {
        id: "files.shadow",
        title: "Only root can read the passwords",
        needs: &[],
        judge: |e| {
            let (mode, _) = e.mode("/etc/shadow")?;
            if mode & OTHERS == 0 {
                return ok(format!("/etc/shadow has {mode:04o}"));
            }
            fail(format!("/etc/shadow has {mode:04o}"), "chmod 0640 /etc/shadow")
        },
    },
    Check {
        id: "disk.state",
        title: "There is room for OSAPI's state",
        needs: &[Room],
        judge: state_room,
    },
    Check {
        id: "disk.room",
        title: "No file system is nearly full",
        needs: &[Room],
        judge: |e| {
            full(
                e,
                "total",
                "available",
                "room",
                "du --one-file-system --max-depth 2 --human-readable",
            )
        },
    },
    Check {
        id: "disk.inodes",
        title: "There can be more files everywhere",
        needs: &[Room],
        judge: |e| {
            full(
                e,
                "inodes",
                "inodes_available",
                "inodes",
                "du --one-file-system --max-depth 2 --inodes",
            )
        },
    },
    Check {
        id: "memory.available",
        title: "There is memory left",
        needs: &[],
        judge: |e| {
            let memory = memory(e)?;
            let (all, left) = (memory("MemTotal"), memory("MemAvailable"));
            let percent = left.saturating_mul(100) / all.max(1);
            let said = format!("{percent}% of {} MiB is available", all >> 10);
            if percent >= 5 { ok(said) } else { warn(said, "osapi process list") }
        },
    },
    Check {
        id: "memory.swap",
        title: "The swap space is not used up",
        needs: &[],
        judge: |e| {
            let memory = memory(e)?;
            let (all, left) = (memory("SwapTotal"), memory("SwapFree"));
            if all == 0 {
                return ok("there is none");
            }
            let percent = left.saturating_mul(100) / all;
            let said = format!("{percent}% of {} MiB is free", all >> 10);
            if percent >= 10 { ok(said) } else { warn(said, "osapi process list") }
        },
    },
    Check {
        id: "memory.kills",
        title: "No process was killed for want of memory",
        needs: &[],
        judge: |e| {
            if e.is_container() {
                return Err(skipped("the kernel counts other systems' as well"));
            }
            let said = e.read("/proc/vmstat")?;
            let kills = said.lines().find_map(|line| line.strip_prefix("oom_kill "));
            match kills.and_then(|kills| kills.parse::<u64>().ok()) {
                None => Err(skipped("this kernel does not count")),
                Some(0) => ok("none since the boot"),
                Some(kills) => {
                    let fix = "journalctl --dmesg --grep 'Out of memory'";
                    warn(format!("{kills} since the boot"), fix)
                }
            }
        },
    },
];

/// The kernel's account of the memory, in KiB.
fn memory(e: &Evidence) -> Result<impl Fn(&str) -> u64, Finding> {
    let said = e.read("/proc/meminfo")?;
    Ok(move |name: &str| {
        let lines = said.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let amounts = lines.filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        amounts.sum()
    })
}

fn journal(e: &Evidence) -> Result<Finding, Finding> {
    const MAKE: &str = "mkdir --parents /var/log/journal\n\
                        systemd-tmpfiles --create --prefix /var/log/journal\n\
                        journalctl --flush";
    let mut texts = vec![e.read("/etc/systemd/journald.conf").unwrap_or_default()];
    for directory in ["/usr/lib/systemd/journald.conf.d", "/etc/systemd/journald.conf.d"] {
        for name in e.list(directory).unwrap_or_default() {
            texts.push(e.read(format!("{directory}/{name}")).unwrap_or_default());
        }
    }
    let lines = texts.iter().flat_map(|text| text.lines());
    let storage = lines.filter_map(|line| line.trim().strip_prefix("Storage=")).next_back();
    match storage.map(str::trim) {
        Some(kept @ ("volatile" | "none")) => {
            warn(format!("Storage={kept}"), "grep --recursive Storage= /etc/systemd/journald.conf*")
        }
        Some("persistent") => ok("Storage=persistent"),
        _ if e.exists("/var/log/journal") => ok("it is in /var/log/journal"),
        _ => warn("there is no /var/log/journal", MAKE),
    }
}

/// Whoever changes packages holds a lock on a file, which the kernel lists by the file's number.
fn locked(e: &Evidence) -> Result<Finding, Finding> {
    use std::os::unix::fs::MetadataExt as _;
    const LOCK: &str = "/var/lib/dpkg/lock-frontend";
    let inode = e.meta(LOCK)?.ino().to_string();
    let locks = e.read("/proc/locks")?;
    let holder = locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let file = fields.iter().find(|field| field.matches(':').count() == 2)?;
        let pid = fields.get(4).filter(|_| fields.get(1) != Some(&"->"))?;
        (file.rsplit(':').next() == Some(inode.as_str())).then_some(*pid)
    });
    match holder {
        None => ok("nobody is"),
        Some(pid) => {
            let what = format!("process {pid} holds {LOCK}; OSAPI waits for it, two minutes");
            warn(what, format!("ps --pid {pid} --forest"))
        }
    }
}

fn rooms(e: &Evidence) -> Result<impl Iterator<Item = (&String, &Value)>, Finding> {
    Ok(e.told(Room)?.as_object().into_iter().flatten())
}

/// The file system that is fullest, by one measure.
fn full(e: &Evidence, all: &str, left: &str, what: &str, look: &str) -> Result<Finding, Finding> {
    let used = rooms(e)?.filter_map(|(at, room)| {
        // Some count no inodes.
        let all = room[all].as_u64().filter(|all| *all > 0)?;
        let left = room[left].as_u64()?;
        Some((100 - left.min(all).saturating_mul(100) / all, at))
    });
    // One file system may be seen at several places, of which the first is its own.
    let used = used.max_by_key(|(percent, at)| (*percent, std::cmp::Reverse(at.len())));
    let (percent, at) = used.ok_or_else(|| skipped("no file system tells"))?;
    let said = format!("{percent}% of the {what} of {at} is used");
    let fix = format!("{look} {at}");
    match percent {
        97.. => fail(said, fix),
        90.. => warn(said, fix),
        _ => ok(said),
    }
}

fn state_room(e: &Evidence) -> Result<Finding, Finding> {
    const LEAST: u64 = 64 << 20;
    const FEW: u64 = 512 << 20;
    let holds = |at: &str| e.agent_state.starts_with(at);
    let room = rooms(e)?.filter(|(at, _)| holds(at)).max_by_key(|(at, _)| at.len());
    let (at, room) = room.ok_or_else(|| skipped("its file system does not tell"))?;
    let left = room["available"].as_u64().unwrap_or(0);
    let said = format!("{} MiB on {at}", left >> 20);
    let fix = format!("du --one-file-system --max-depth 2 --human-readable {at}");
    match left {
        ..LEAST => fail(said, fix),
        LEAST..FEW => warn(said, fix),
        _ => ok(said),
    }
}
