//! An account: everything about a user but the password.

use std::collections::BTreeSet;
use std::fmt;

use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Blobs, Cell, CellKind, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::hands::Hands;
use crate::host::reach::Reach;
use crate::host::view::View;

pub(super) const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// What an account is. Groups go by name.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Account {
    pub uid: u32,
    /// The group that its files get.
    pub group: String,
    /// The groups that list it as a member, sorted.
    pub groups: Vec<String>,
    pub comment: String,
    pub home: String,
    /// Whether there is a directory at `home`.
    pub has_home: bool,
    pub shell: String,
}

/// A line of the table of groups.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Group {
    pub name: String,
    pub gid: u32,
    pub members: Vec<String>,
}

pub fn account(name: impl Into<String>, account: Account) -> State {
    State::plain(Cell::Account(name.into()), Value::Account(account))
}

pub fn no_account(name: impl Into<String>) -> State {
    State::plain(Cell::Account(name.into()), Value::Absent)
}

/// The account's name.
pub(super) struct AccountOf<'a>(pub(super) &'a str);

impl CellKind for AccountOf<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        let Some(fields) = host.entry(USERS, 0, self.0)? else { return Ok(Value::Absent) };
        read(host, self.0, &fields, &host.groups()?).map(Value::Account)
    }

    fn assign(&self, hands: &Hands, now: &Value, to: &Value, _: &Blobs) -> Result<()> {
        match (now, to) {
            (Value::Absent, Value::Account(to)) => self.add(hands, to),
            (Value::Account(now), Value::Account(to)) => self.modify(hands, now, to),
            (Value::Account(now), Value::Absent) => self.remove(hands, now),
            _ => Err(self.cannot_hold(to)),
        }
    }

    fn reach(&self, _: &Value) -> Reach {
        Reach::Accounts
    }

    /// The tools change one table after the other, and the home last.
    fn is_atomic(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn residue(&self, from: &Value, to: &Value) -> Option<String> {
        let name = self.0;
        match (from, to) {
            (Value::Account(Account { home, has_home, .. }), Value::Absent) => Some(if *has_home {
                format!("the files of {name} in {home}, its mail and its password's age are gone")
            } else {
                format!("the mail of {name} and its password's age are gone")
            }),
            _ => None,
        }
    }
}

impl AccountOf<'_> {
    fn add(&self, hands: &Hands, to: &Account) -> Result<()> {
        let (uid, groups) = (to.uid.to_string(), to.groups.join(","));
        let has_group = hands.view.groups()?.iter().any(|group| group.name == to.group);
        // Without a group that could be its own, it gets one of its name.
        let group: &[&str] = if has_group { &["--gid", &to.group] } else { &["--user-group"] };
        let home = if to.has_home { "--create-home" } else { "--no-create-home" };
        let args = ["--uid", &uid, "--comment", &to.comment, "--shell", &to.shell];
        let args = [&args[..], &["--groups", &groups, "--home-dir", &to.home, home], group];
        hands.run("useradd", &[&args.concat()[..], &["--", self.0]].concat(), &[])
    }

    /// Only what differs is said: the tool refuses some of it for whoever is logged in.
    fn modify(&self, hands: &Hands, now: &Account, to: &Account) -> Result<()> {
        let (uid, groups) = (to.uid.to_string(), to.groups.join(","));
        let mut args = Vec::new();
        for (is_other, option, value) in [
            (now.uid != to.uid, "--uid", &uid),
            (now.group != to.group, "--gid", &to.group),
            (now.groups != to.groups, "--groups", &groups),
            (now.comment != to.comment, "--comment", &to.comment),
            (now.shell != to.shell, "--shell", &to.shell),
            (now.home != to.home, "--home", &to.home),
        ] {
            if is_other {
                args.extend([option, value.as_str()]);
            }
        }
        if now.home != to.home && now.has_home && !hands.view.is_directory(&to.home) {
            args.push("--move-home");
        }
        if !args.is_empty() {
            hands.run("usermod", &[&args[..], &["--", self.0]].concat(), &[])?;
        }
        if to.has_home && !hands.view.is_directory(&to.home) {
            // The account was there before its home, which a crash has cut off.
            hands.run("mkhomedir_helper", &[self.0, "0077"], &[])?;
        }
        Ok(())
    }

    fn remove(&self, hands: &Hands, now: &Account) -> Result<()> {
        let home: &[&str] = if now.has_home { &["--remove"] } else { &[] };
        let removed = hands.run("userdel", &[home, &["--", self.0]].concat(), &[]);
        // It leaves a home alone that belongs to somebody else, and calls that a failure.
        if removed.is_err() && hands.view.entry(USERS, 0, self.0)?.is_none() {
            return Ok(());
        }
        removed
    }
}

impl fmt::Display for AccountOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "account {}", self.0)
    }
}

/// Reads a line of the table of users.
fn read(host: &View, name: &str, fields: &[String], groups: &[Group]) -> Result<Account> {
    let malformed = || {
        let message = format!("the line of {name} in {USERS} is malformed; mend it with vipw");
        Error::new(Kind::HostFailed, message)
    };
    let [_, _, uid, gid, comment, home, shell] = fields else { return Err(malformed()) };
    let gid: u32 = gid.parse().map_err(|_| malformed())?;
    let own = groups.iter().find(|group| group.gid == gid);
    let joined = groups.iter().filter(|group| group.members.iter().any(|member| member == name));
    let joined: BTreeSet<_> = joined.map(|group| group.name.clone()).collect();
    Ok(Account {
        uid: uid.parse().map_err(|_| malformed())?,
        group: own.map_or_else(|| gid.to_string(), |group| group.name.clone()),
        groups: joined.into_iter().collect(),
        comment: comment.clone(),
        home: home.clone(),
        has_home: host.is_directory(home),
        shell: shell.clone(),
    })
}

impl View {
    /// Every account, in the order of the table. What cannot be read of it is left out.
    pub fn accounts(&self) -> Result<Vec<(String, Account)>> {
        let (text, groups) = (self.read(USERS)?, self.groups()?);
        let mut accounts = Vec::new();
        for line in text.lines() {
            let fields: Vec<String> = line.split(':').map(str::to_owned).collect();
            let Some(name) = fields.first().filter(|name| !name.is_empty()).cloned() else {
                continue;
            };
            // A later line of the same name is never found by it.
            let is_known = accounts.iter().any(|(known, _)| *known == name);
            let ahead = self.ahead.get(&Cell::Account(name.clone())).map(|set| set.to.clone());
            match ahead {
                _ if is_known => {}
                Some(Value::Account(account)) => accounts.push((name, account)),
                Some(_) => {}
                None => match read(self, &name, &fields, &groups) {
                    Ok(account) => accounts.push((name, account)),
                    Err(error) => tracing::warn!(%error, "left out of the accounts"),
                },
            }
        }
        for (cell, set) in &self.ahead {
            if let (Cell::Account(name), Value::Account(account)) = (cell, &set.to)
                && accounts.iter().all(|(known, _)| known != name)
            {
                accounts.push((name.clone(), account.clone()));
            }
        }
        Ok(accounts)
    }

    /// The account called `name`, where there is one.
    pub fn account(&self, name: &str) -> Result<Option<Account>> {
        match self.value(&Cell::Account(name.to_owned()))? {
            Value::Account(account) => Ok(Some(account)),
            _ => Ok(None),
        }
    }

    /// The groups there are, in the order of their table.
    pub fn groups(&self) -> Result<Vec<Group>> {
        let text = self.read(GROUPS)?;
        let group = |line: &str| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            let members = fields.next().unwrap_or_default().split(',');
            let members = members.map(str::trim).filter(|member| !member.is_empty());
            Some(Group {
                name: name.to_owned(),
                gid: gid.parse().ok()?,
                members: members.map(str::to_owned).collect(),
            })
        };
        Ok(text.lines().filter_map(group).collect())
    }

    /// Whether there is a directory at `path`; links are followed, below the root.
    fn is_directory(&self, path: &str) -> bool {
        path.starts_with('/') && self.root.open(path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }
}
