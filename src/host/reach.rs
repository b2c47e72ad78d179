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
    /// Parameters of the running kernel.
    Kernel,
    /// Accounts and groups, which programs keep in several files, and homes anywhere.
    Accounts,
    /// Packages, whose own scripts may do whatever root may.
    Packages,
    /// Whatever root may: programs of which nobody knows what they do.
    Everything,
}

impl Reach {
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
}
