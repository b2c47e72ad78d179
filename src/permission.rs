//! Who may do what: permissions, the roles that bundle them, and the caller that holds them.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! permissions {
    ($($variant:ident = $name:literal $level:ident,)*) => {
        /// The right to call some operations, written `resource:verb`.
        #[derive(
            Clone, Copy, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
        )]
        pub enum Permission {
            $(#[serde(rename = $name)] $variant,)*
        }

        impl Permission {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The least of the built-in roles that has it.
            const fn level(self) -> Role {
                match self { $(Self::$variant => Role::$level,)* }
            }
        }
    };
}

permissions! {
    AgentRead = "agent:read" Read,
    AgentWrite = "agent:write" Admin,
    NodeRead = "node:read" Read,
    NodeWrite = "node:write" Write,
    NetworkRead = "network:read" Read,
    NetworkWrite = "network:write" Write,
    JobRead = "job:read" Read,
    JobWrite = "job:write" Write,
    HealthRead = "health:read" Read,
    AuditRead = "audit:read" Admin,
    CommandExecute = "command:execute" Admin,
    FileRead = "file:read" Read,
    FileWrite = "file:write" Write,
    DockerRead = "docker:read" Read,
    DockerWrite = "docker:write" Write,
    DockerExecute = "docker:execute" Admin,
    CronRead = "cron:read" Read,
    CronWrite = "cron:write" Write,
    SysctlRead = "sysctl:read" Read,
    SysctlWrite = "sysctl:write" Write,
    NtpRead = "ntp:read" Read,
    NtpWrite = "ntp:write" Write,
    TimezoneRead = "timezone:read" Read,
    TimezoneWrite = "timezone:write" Write,
    PowerExecute = "power:execute" Admin,
    ProcessRead = "process:read" Read,
    ProcessExecute = "process:execute" Admin,
    UserRead = "user:read" Read,
    UserWrite = "user:write" Write,
    PackageRead = "package:read" Read,
    PackageWrite = "package:write" Write,
    LogRead = "log:read" Read,
    CertificateRead = "certificate:read" Read,
    CertificateWrite = "certificate:write" Write,
    ServiceRead = "service:read" Read,
    ServiceWrite = "service:write" Write,
}

impl std::fmt::Display for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The built-in roles; each has what the one before it has.
#[derive(
    Clone, Copy, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Read,
    Write,
    Admin,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    pub fn permissions(self) -> BTreeSet<Permission> {
        Permission::ALL.iter().copied().filter(|permission| permission.level() <= self).collect()
    }
}

/// The roles there are: the built-in ones, and `own` beside or instead of them.
pub fn roles(
    own: BTreeMap<String, BTreeSet<Permission>>,
) -> BTreeMap<String, BTreeSet<Permission>> {
    let built_in = Role::ALL.map(|role| (role.as_str().to_owned(), role.permissions()));
    built_in.into_iter().chain(own).collect()
}

/// What the holder of a token has: just the permissions it names, where it names any, else those
/// of its roles. What nobody knows gives nothing.
pub fn held(
    known: &BTreeMap<String, BTreeSet<Permission>>,
    roles: &[String],
    permissions: &[String],
) -> BTreeSet<Permission> {
    if permissions.is_empty() {
        return roles.iter().filter_map(|role| known.get(role)).flatten().copied().collect();
    }
    let is_named = |held: &Permission| permissions.iter().any(|name| name == held.as_str());
    Permission::ALL.iter().copied().filter(is_named).collect()
}

/// Who is asking, as far as the carrier of the request has made sure of.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Caller {
    /// The account's name, or `uid 1000` where it has none; the subject of a token.
    pub name: String,
    /// The account, where the caller is a process of the controller's host.
    pub uid: Option<u32>,
    /// Names of roles, for the record.
    pub roles: Vec<String>,
    pub permissions: BTreeSet<Permission>,
    /// Where the request came from, for the record: `unix` or an address.
    pub source: String,
}

impl Caller {
    pub fn may(&self, permission: Option<Permission>) -> bool {
        permission.is_none_or(|needed| self.permissions.contains(&needed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_have_the_published_numbers_of_permissions() {
        assert_eq!(Role::ALL.map(|role| role.permissions().len()), [17, 30, 36]);
    }
}
