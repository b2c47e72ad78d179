//! How far an effect reaches on the host, and so who may bring it about: the agent itself, which
//! its sandbox confines, or a unit of the service manager with the rights of one class.

/// The directories below which the agent writes by itself. Its unit lets it write nowhere else.
const OWN: &[&str] = &["/etc", "/home", "/root", "/usr/local", "/var"];

/// What an effect needs beyond what the agent may do by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reach {
    /// Nothing: files below the agent's own directories, with modes that set no id, and what
    /// others do who are asked over D-Bus.
    Here,
    /// Files anywhere, with any mode.
    Files,
    /// Parameters of the running kernel, and its name for the host.
    Kernel,
    /// Accounts and groups, which programs keep in several files, and homes anywhere.
    Accounts,
    /// Packages, whose own scripts may do whatever root may.
    Packages,
    /// Whatever root may: programs of which nobody knows what they do.
    Everything,
}

/// What every unit has. One command of it that runs out of memory does not end the rest, so that
/// what happened is told.
const COMMON: &[&str] = &["OOMPolicy=continue", "KeyringMode=private"];

/// Those of which is known what they do have what it takes, and nothing else.
const CONFINED: &[&str] = &[
    "NoNewPrivileges=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "SystemCallArchitectures=native",
    "SystemCallErrorNumber=EPERM",
];

/// For files: they may be anywhere, so nothing of the file system is out of reach, but there is
/// no network, no kernel to set and no right but those over files.
const FILES: &[&str] = &[
    "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID",
    "IPAddressDeny=any",
    "PrivateNetwork=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_UNIX",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@keyring @resources @setuid",
];

/// For kernel parameters: each asks for a right of its own, but there are no calls that would use
/// these for anything else. The network, the host's name and the IPC of the host are shared,
/// because parameters belong to them.
const KERNEL: &[&str] = &[
    "CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_NET_ADMIN CAP_PERFMON CAP_SYSLOG CAP_SYS_ADMIN \
     CAP_SYS_BOOT CAP_SYS_MODULE CAP_SYS_PTRACE CAP_SYS_RAWIO CAP_SYS_RESOURCE",
    "DevicePolicy=closed",
    "IPAddressDeny=any",
    "ProtectSystem=strict",
    "RestrictAddressFamilies=AF_UNIX",
    "SystemCallFilter=@system-service sethostname",
    "SystemCallFilter=~@keyring @resources @setuid",
];

/// For accounts: homes may be anywhere, but not among programs. Name services may ask the network.
const ACCOUNTS: &[&str] = &[
    "CapabilityBoundingSet=CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH \
     CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_SYS_PTRACE",
    "DevicePolicy=closed",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ReadOnlyPaths=-/boot -/efi -/usr",
    "ReadWritePaths=-/usr/local",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX",
    "SystemCallFilter=@system-service",
];

/// For what may do all that root may. What it leaves running on purpose goes on when it has ended.
const FREE: &[&str] = &["KillMode=process"];

impl Reach {
    /// The properties of a unit of this class.
    pub(super) fn profile(self) -> Vec<&'static str> {
        let own = match self {
            Self::Here | Self::Files => [CONFINED, FILES],
            Self::Kernel => [CONFINED, KERNEL],
            Self::Accounts => [CONFINED, ACCOUNTS],
            // Nobody knows what the scripts of a package do.
            Self::Packages | Self::Everything => [FREE, &[]],
        };
        [COMMON].into_iter().chain(own).flatten().copied().collect()
    }

    /// Whether a unit of this class may write nowhere unless it is told where.
    pub(super) fn is_strict(self) -> bool {
        self.profile().contains(&"ProtectSystem=strict")
    }

    /// That of a file, link or directory at `path`.
    pub(super) fn of_path(path: &str) -> Self {
        // The directories themselves are entries of one that is not the agent's own.
        let is_below = |dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        if OWN.iter().any(|dir| is_below(dir)) { Self::Here } else { Self::Files }
    }

    /// That of a program which takes notice of something.
    pub(super) fn of_program(program: &str) -> Self {
        /// They do nothing themselves but ask somebody else over D-Bus.
        const ASK: &[&str] = &["busctl", "hostnamectl", "loginctl", "systemctl", "timedatectl"];
        if ASK.contains(&program) { Self::Here } else { Self::Everything }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_writes_below_its_own_directories_and_nowhere_else() {
        for path in ["/etc/motd", "/usr/local/bin/x", "/var/lib/a/b", "/home/ada", "/root/.x"] {
            assert_eq!(Reach::of_path(path), Reach::Here, "{path}");
        }
        for path in ["/opt/x", "/usr/bin/x", "/etcetera/x", "/tmp/x", "/etc", "/usr/local", "/"] {
            assert_eq!(Reach::of_path(path), Reach::Files, "{path}");
        }
    }

    #[test]
    fn whoever_only_asks_others_needs_nothing() {
        assert_eq!(Reach::of_program("systemctl"), Reach::Here);
        assert_eq!(Reach::of_program("netplan"), Reach::Everything);
    }
    #[test]
    fn whoever_has_one_class_has_no_other() {
        let has = |reach: Reach, property: &str| {
            reach.profile().iter().any(|line| line.split(['=', ' ']).any(|word| word == property))
        };
        for reach in [Reach::Files, Reach::Kernel, Reach::Accounts] {
            assert!(has(reach, "NoNewPrivileges") && !has(reach, "CAP_SYS_CHROOT"), "{reach:?}");
        }
        assert!(has(Reach::Files, "ProtectKernelTunables") && has(Reach::Files, "PrivateNetwork"));
        assert!(!has(Reach::Kernel, "PrivateNetwork") && !has(Reach::Kernel, "CAP_CHOWN"));
        assert!(has(Reach::Accounts, "ReadOnlyPaths") && !has(Reach::Accounts, "CAP_SYS_ADMIN"));
        assert!(Reach::Kernel.is_strict() && !Reach::Files.is_strict());
        for reach in [Reach::Packages, Reach::Everything] {
            assert!(!has(reach, "NoNewPrivileges") && !has(reach, "OOMPolicy=stop"), "{reach:?}");
        }
    }
}
