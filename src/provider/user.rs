//! Accounts of this host: those in `/etc/passwd`, with their groups, homes and passwords.
//!
//! Nobody is locked out by accident: the last administrator, root and OSAPI's own accounts are
//! neither removed nor locked unless that is forced.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::host::cell::{Account, Cell, Group, account, group, no_account, no_group, no_password};
use crate::host::{View, Want};
use crate::op::{Domain, Method, Nothing, Op, Read, Write};
use crate::permission::Permission;
use crate::types::{AccountName, Secret, present};

pub static DOMAIN: Domain = Domain {
    name: "user",
    about: "Accounts",
    ops: &[
        Op {
            id: "node.user.list",
            about: "List the accounts, those of the system included",
            path: "/node/{hostname}/user",
            permission: Some(Permission::UserRead),
            command: "node user list",
            columns: COLUMNS,
            run: &Read(|host, _: &Nothing| list(host)),
            ..Op::COMMON
        },
        Op {
            id: "node.user.get",
            about: "Show an account",
            path: "/node/{hostname}/user/{name}",
            permission: Some(Permission::UserRead),
            command: "node user get",
            args: &["name"],
            columns: COLUMNS,
            run: &Read(get),
            ..Op::COMMON
        },
        Op {
            id: "node.user.create",
            about: "Create an account, with a home",
            method: Method::Post,
            path: "/node/{hostname}/user",
            permission: Some(Permission::UserWrite),
            command: "node user create",
            args: &["name"],
            columns: &[("NAME", "/name")],
            run: &Write(create, |_, params: &Create| Ok(named(&params.name.0))),
            ..Op::COMMON
        },
        Op {
            id: "node.user.update",
            about: "Change the shell, home, groups or lock of an account",
            method: Method::Put,
            path: "/node/{hostname}/user/{name}",
            permission: Some(Permission::UserWrite),
            command: "node user update",
            args: &["name"],
            opposites: &[("lock", "unlock")],
            columns: &[("NAME", "/name")],
            guarded: true,
            timeout: HOMES,
            run: &Write(update, |_, params: &Update| Ok(named(params.name.as_str()))),
            ..Op::COMMON
        },
        Op {
            id: "node.user.delete",
            about: "Remove an account, with its home",
            method: Method::Delete,
            path: "/node/{hostname}/user/{name}",
            permission: Some(Permission::UserWrite),
            command: "node user delete",
            args: &["name"],
            columns: &[("NAME", "/name")],
            guarded: true,
            timeout: HOMES,
            run: &Write(delete, |_, params: &ByName| Ok(named(params.name.as_str()))),
            ..Op::COMMON
        },
        Op {
            id: "node.user.password",
            about: "Set the password of an account; one that is locked stays locked",
            method: Method::Post,
            path: "/node/{hostname}/user/{name}/password",
            permission: Some(Permission::UserWrite),
            command: "node user password",
            args: &["name"],
            columns: &[("NAME", "/name")],
            run: &Write(password, |_, params: &Password| Ok(named(params.name.as_str()))),
            ..Op::COMMON
        },
    ],
};

const COLUMNS: &[(&str, &str)] = &[
    ("NAME", "/users/*/name"),
    ("UID", "/users/*/uid"),
    ("HOME", "/users/*/home"),
    ("SHELL", "/users/*/shell"),
    ("GROUPS", "/users/*/groups"),
];

/// How long it may take to move or remove the files of a home.
const HOMES: std::time::Duration = std::time::Duration::from_mins(5);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ByName {
    /// Login name, 1 to 32 characters.
    name: AccountName,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Login name: 1 to 32 small letters, digits, `_` and `-`, the first a letter or `_`.
    name: NewName,
    /// Number of the account, which nobody may have yet; the next free one if not given. 0 is
    /// root's.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "u32")]
    uid: Option<u32>,
    /// Number of the group that its files get, which must be there; a group of the account's own
    /// is made if not given. 0 is root's.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "u32")]
    gid: Option<u32>,
    /// Where its files are, an absolute path; below `/home` if not given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Place")]
    home: Option<Place>,
    /// Login shell, the absolute path of a program; that of new accounts if not given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Place")]
    shell: Option<Place>,
    /// Groups to join beside its own, by name or number.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Vec<AccountName>")]
    groups: Option<Vec<AccountName>>,
    /// Password, 1 to 511 bytes; nobody can log in with one if not given.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Secret")]
    password: Option<Secret>,
    /// Whether it is one of the system, with a number below those of people.
    #[serde(default)]
    system: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// Login name, 1 to 32 characters.
    name: AccountName,
    /// Login shell, the absolute path of a program.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Place")]
    shell: Option<Place>,
    /// Where its files are, an absolute path where nothing is yet; they are moved there.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Place")]
    home: Option<Place>,
    /// All groups to be in beside its own, by name or number; an empty list leaves all others.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Vec<AccountName>")]
    groups: Option<Vec<AccountName>>,
    /// Whether its password opens nothing for now.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "bool")]
    lock: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Password {
    /// Login name, 1 to 32 characters.
    name: AccountName,
    /// The new password, 1 to 511 bytes.
    password: Secret,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Users {
    users: Vec<User>,
    /// Whether there are more than could be told.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Debug, JsonSchema, PartialEq, Serialize)]
struct User {
    name: String,
    uid: u32,
    /// Number of the group that its files get.
    gid: u32,
    home: String,
    shell: String,
    /// Its own group first, then the others by name.
    groups: Vec<String>,
    /// Whether nobody can log in with a password. Left out where the agent may not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    locked: Option<bool>,
}

#[derive(Debug, JsonSchema, Serialize)]
struct Named {
    name: String,
}

fn named(name: &str) -> Named {
    Named { name: name.to_owned() }
}

fn list(host: &View) -> Result<Users> {
    let groups = host.groups()?;
    let accounts = host.accounts()?.into_iter();
    let users = accounts.map(|(name, account)| user(host, &groups, name, account)).collect();
    let (users, truncated) = super::fitting(users);
    Ok(Users { users, truncated })
}

fn get(host: &View, params: &ByName) -> Result<Users> {
    let name = params.name.as_str();
    let account = existing(host, name)?;
    let user = user(host, &host.groups()?, name.to_owned(), account);
    Ok(Users { users: vec![user], truncated: false })
}

fn user(host: &View, groups: &[Group], name: String, account: Account) -> User {
    let Account { uid, group, groups: others, home, shell, .. } = account;
    let own = groups.iter().find(|known| known.name == group);
    let gid = own.map_or_else(|| group.parse().unwrap_or_default(), |known| known.gid);
    let others = others.into_iter().filter(|other| *other != group);
    let groups = std::iter::once(group.clone()).chain(others).collect();
    let locked = host.is_locked(&name);
    User { name, uid, gid, home, shell, groups, locked }
}

fn create(host: &View, params: &Create) -> Result<Want> {
    let NewName(name) = &params.name;
    let mut want = Want::new();
    let mut wanted = match host.account(name)? {
        Some(account) => account,
        None => {
            let made = fresh::account(host, params)?;
            want = match params.gid {
                None => want.create(group(name, fresh::gid(host, made.uid, params.system)?)),
                // The tools remove it with the account then.
                Some(gid) if group_of(host, gid)? == *name => want.leaves(format!(
                    "the group {name} goes with its account, unless somebody else is in it by then"
                )),
                Some(_) => want,
            };
            made
        }
    };
    // What is there already, and is as wanted, is no conflict.
    wanted.uid = params.uid.unwrap_or(wanted.uid);
    if let Some(gid) = params.gid {
        wanted.group = group_of(host, gid)?;
    }
    if let Some(Place(home)) = &params.home {
        wanted.home.clone_from(home);
    }
    if let Some(shell) = &params.shell {
        wanted.shell = program(host, shell)?;
    }
    if let Some(groups) = &params.groups {
        wanted.groups = joined(host, groups, &wanted.group)?;
    }
    want = want.create(account(name, wanted));
    if let Some(secret) = &params.password {
        want = want.create(host.password(name, secret)?);
    }
    Ok(want)
}

fn update(host: &View, params: &Update) -> Result<Want> {
    let Update { name, shell, home, groups, lock } = params;
    let name = name.as_str();
    if (shell, home, groups, lock) == (&None, &None, &None, &None) {
        let message = "nothing to change; give shell, home, groups or lock";
        return Err(Error::new(Kind::InvalidInput, message));
    }
    let now = existing(host, name)?;
    let mut wanted = now.clone();
    if let Some(shell) = shell {
        wanted.shell = program(host, shell)?;
    }
    if let Some(Place(home)) = home.as_ref().filter(|home| home.0 != now.home) {
        if now.has_home && host.exists(home) {
            let message = format!("cannot move the home of {name}: {home} is there already");
            return Err(Error::new(Kind::Conflict, message));
        }
        wanted.has_home = now.has_home || host.exists(&format!("{home}/"));
        wanted.home.clone_from(home);
    }
    if let Some(groups) = groups {
        wanted.groups = joined(host, groups, &now.group)?;
    }
    guard::admit(host, name, &now, Some(&wanted), *lock == Some(true))?;
    let mut want = Want::new().set(account(name, wanted));
    if let Some(locked) = *lock {
        match host.password_locked(name, locked)? {
            Some(password) => want = want.set(password),
            // Nobody can log in with what is not there.
            None if locked => {}
            None => {
                let message = format!("{name} has no password to unlock; set one");
                return Err(Error::new(Kind::Conflict, message));
            }
        }
    }
    Ok(want)
}

fn delete(host: &View, params: &ByName) -> Result<Want> {
    let name = params.name.as_str();
    let cell = Cell::Account(name.to_owned());
    let Some(now) = host.account(name)? else {
        return if host.has_touched(&cell) { Ok(Want::new()) } else { Err(unknown(name)) };
    };
    guard::admit(host, name, &now, None, false)?;
    // First, so that an undo has it.
    let want = Want::new().set(no_password(name)).set(no_account(name));
    // Last, so that an undo has it before the account.
    Ok(if has_own_group(host, name, &now)? { want.set(no_group(name)) } else { want })
}

/// Whether the account has a group of its name, in which nobody else is.
fn has_own_group(host: &View, name: &str, account: &Account) -> Result<bool> {
    let is_shared = host.members(name)?.iter().any(|member| member != name);
    let accounts = host.accounts()?;
    let mut others = accounts.iter().filter(|(other, _)| other != name);
    Ok(account.group == name && !is_shared && others.all(|(_, other)| other.group != name))
}

fn password(host: &View, params: &Password) -> Result<Want> {
    let name = params.name.as_str();
    existing(host, name)?;
    Ok(Want::new().set(host.password(name, &params.password)?))
}

fn existing(host: &View, name: &str) -> Result<Account> {
    host.account(name)?.ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("there is no account {name} on this host"))
}

fn group_of(host: &View, gid: u32) -> Result<String> {
    let found = host.groups()?.into_iter().find(|group| group.gid == gid);
    found.map(|group| group.name).ok_or_else(|| {
        let message = format!("there is no group with the gid {gid} on this host");
        Error::new(Kind::InvalidInput, message)
    })
}

/// The groups that go by `names`, sorted, but for the account's own.
fn joined(host: &View, names: &[AccountName], own: &str) -> Result<Vec<String>> {
    let groups = host.groups()?;
    let find = |name: &AccountName| {
        let by_name = groups.iter().find(|group| group.name == name.as_str());
        let by_number = || {
            name.as_str()
                .parse()
                .ok()
                .and_then(|gid: u32| groups.iter().find(|group| group.gid == gid))
        };
        by_name.or_else(by_number).map(|group| group.name.clone()).ok_or_else(|| {
            let message = format!("there is no group {} on this host", name.as_str());
            Error::new(Kind::InvalidInput, message)
        })
    };
    let found: Result<std::collections::BTreeSet<_>> = names.iter().map(find).collect();
    Ok(found?.into_iter().filter(|name| name != own).collect())
}

/// A shell that is there: an account with another one could not log in.
fn program(host: &View, Place(path): &Place) -> Result<String> {
    if host.exists(path) && !host.exists(&format!("{path}/")) {
        return Ok(path.clone());
    }
    Err(Error::new(Kind::InvalidInput, format!("there is no program {path} on this host")))
}

/// The name of an account that is to be made: one that every tool takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 32,
    "pattern" = r"^[a-z_][a-z0-9_-]*\$?$",
    "examples" = ["ada"],
))]
struct NewName(String);

impl TryFrom<String> for NewName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let base = name.strip_suffix('$').unwrap_or(&name);
        let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
        let is_name = (1..=32).contains(&name.len())
            && base.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && base.bytes().all(is_letter);
        is_name.then_some(Self(name)).ok_or("name: not a name for an account")
    }
}

/// An absolute path without detours that has a place in `/etc/passwd`.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend(
    "minLength" = 1,
    "maxLength" = 255,
    "pattern" = r"^(/(?!\.{1,2}(/|$))[^/:\x00-\x1f\x7f-\x9f]+)+$",
    "examples" = ["/bin/sh"],
))]
struct Place(String);

impl TryFrom<String> for Place {
    type Error = &'static str;

    fn try_from(path: String) -> Result<Self, Self::Error> {
        let is_path = path.chars().count() <= 255
            && !path.contains(':')
            && crate::types::FilePath::try_from(path.clone()).is_ok();
        is_path.then_some(Self(path)).ok_or("not an absolute path without colons, . and ..")
    }
}

mod fresh;
mod guard;
#[cfg(test)]
mod tests;
