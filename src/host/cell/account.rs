//! An account: everything about a user but the password.

use std::collections::BTreeSet;
use std::fmt;

use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Blobs, Cell, CellKind, Group, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::hands::{Due, Hands};
use crate::host::plan::Set;
use crate::host::reach::Reach;
use crate::host::view::View;

mod home;

pub(super) const USERS: &str = "/etc/passwd";
/// Where the mail of each is, in a file of its name.
const MAIL: &str = "/var/mail";

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

    fn check(&self, host: &View, from: &Value, to: &Value) -> Result<()> {
        match (from, to) {
            (Value::Account(from), Value::Account(to)) if home::moves(from, to) => {
                home::admit(host, self.0, from, to)
            }
            _ => Ok(()),
        }
    }

    /// For whoever does not know what a plan found: nothing of others is removed or made.
    fn assign(&self, hands: &Hands, now: &Value, to: &Value, _: &Blobs) -> Result<()> {
        self.bring(hands, now, now, to, true)
    }

    fn take(&self, hands: &Hands, Due { set, now }: &Due, _: &Blobs) -> Result<()> {
        self.bring(hands, &set.from, now, &set.to, set.is_back)
    }

    fn reach(&self, _: &Value) -> Reach {
        Reach::Accounts
    }

    /// The tools change one table after the other, and the home last.
    fn is_atomic(&self, _: &Value, _: &Value) -> bool {
        false
    }

    /// The account goes before its home, from which a crash may have cut that off.
    fn sweep(&self, hands: &Hands, set: &Set) -> Result<()> {
        match (&set.from, &set.to) {
            (Value::Account(from), Value::Absent) => self.clear(hands, from, set.is_back),
            _ => Ok(()),
        }
    }

    fn stays(&self, host: &View, from: &Value, to: &Value) -> Option<String> {
        let Value::Account(from) = from else { return None };
        let stays = match to {
            Value::Account(to) => home::moves(from, to) && host.is_directory(&to.home),
            _ => from.has_home && !home::is_disposable(host, self.0, from),
        };
        (stays && home::is_owned(host, from)).then(|| {
            let (name, home) = (self.0, &from.home);
            format!("the home of {name} in {home}, where others may have put something")
        })
    }

    fn residue(&self, from: &Value, to: &Value) -> Option<String> {
        let name = self.0;
        match (from, to) {
            (Value::Account(Account { home, has_home: true, .. }), Value::Absent) => Some(format!(
                "the files in {home} as far as they are removed with {name}, its mail, and the age \
                 of its password"
            )),
            (Value::Account(_), Value::Absent) => {
                Some(format!("the mail of {name} and the age of its password"))
            }
            (Value::Absent, Value::Account(Account { home, has_home: true, .. })) => {
                Some(format!("{home}, if by then there is more in it than in a new home"))
            }
            _ => None,
        }
    }
}

impl AccountOf<'_> {
    fn add(&self, hands: &Hands, to: &Account) -> Result<()> {
        let (uid, groups) = (to.uid.to_string(), to.groups.join(","));
        let home = if to.has_home { "--create-home" } else { "--no-create-home" };
        // One of the system gets none of what is for people.
        let is_persons = to.uid >= hands.view.login_setting("UID_MIN", 1000);
        let class: &[&str] = if is_persons { &[] } else { &["--system"] };
        let args = ["--uid", &uid, "--comment", &to.comment, "--shell", &to.shell];
        let places = ["--gid", &to.group, "--groups", &groups, "--home-dir", &to.home, home];
        hands.run("useradd", &[class, &args, &places, &["--", self.0]].concat(), &[])
    }

    /// `found` is what the plan found, and `now` what there is.
    fn bring(
        &self,
        hands: &Hands,
        found: &Value,
        now: &Value,
        to: &Value,
        is_back: bool,
    ) -> Result<()> {
        match (now, to) {
            (Value::Absent, Value::Account(to)) => self.add(hands, to),
            (Value::Account(now), Value::Account(to)) => match found {
                Value::Account(found) if home::moves(found, to) => {
                    self.relocate(hands, found, now, to, is_back)
                }
                Value::Account(_) => self.modify(hands, now, to, &[]),
                _ => self.complete(hands, now, to),
            },
            (Value::Account(now), Value::Absent) => self.remove(hands, now, is_back),
            _ => Err(self.cannot_hold(to)),
        }
    }

    /// Only what differs is said: the tool refuses some of it for whoever is logged in.
    fn modify(&self, hands: &Hands, now: &Account, to: &Account, more: &[&str]) -> Result<()> {
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
        args.extend(more);
        if args.is_empty() {
            return Ok(());
        }
        hands.run("usermod", &[&args[..], &["--", self.0]].concat(), &[])
    }

    /// Modifies an account whose home moves, wherever an earlier process was stopped. Where the
    /// files cannot be moved back, the account is brought back without: its cell shows that.
    fn relocate(
        &self,
        hands: &Hands,
        found: &Account,
        now: &Account,
        to: &Account,
        is_back: bool,
    ) -> Result<()> {
        let is_moved = !hands.view.is_directory(&found.home) && hands.view.is_directory(&to.home);
        let admitted = if is_moved { Ok(()) } else { home::admit(&hands.view, self.0, found, to) };
        match admitted {
            Ok(()) if is_moved => self.modify(hands, now, to, &[]),
            Ok(()) => {
                let mut now = now.clone();
                if now.home == to.home {
                    // The table has it already, and then the tool does not move the files.
                    hands.run("usermod", &["--home", &found.home, "--", self.0], &[])?;
                    now.home.clone_from(&found.home);
                }
                self.modify(hands, &now, to, &["--move-home"])
            }
            Err(error) if is_back => {
                tracing::warn!(%error, "the home of {} is not moved back", self.0);
                self.modify(hands, now, to, &[])
            }
            Err(error) => Err(error),
        }
    }

    /// Goes on with an account that is being made. It is there before its home, from which a
    /// crash may have cut it off.
    fn complete(&self, hands: &Hands, now: &Account, to: &Account) -> Result<()> {
        self.modify(hands, now, to, &[])?;
        if to.has_home && !hands.view.is_directory(&to.home) {
            hands.run("mkhomedir_helper", &[self.0, "0077"], &[])?;
        }
        Ok(())
    }

    /// Removes the account; and its home if that is its own and, on a way back, like a new one.
    fn remove(&self, hands: &Hands, now: &Account, is_back: bool) -> Result<()> {
        let home: &[&str] = if self.goes(&hands.view, now, is_back) { &["--remove"] } else { &[] };
        let removed = hands.run("userdel", &[home, &["--", self.0]].concat(), &[]);
        // Where it leaves a home behind, it calls that a failure, whoever that belongs to.
        if removed.is_err() && hands.view.entry(USERS, 0, self.0)?.is_none() {
            return self.clear(hands, now, is_back);
        }
        removed
    }

    /// Whether the home of an account is removed with it.
    fn goes(&self, host: &View, account: &Account, is_back: bool) -> bool {
        account.has_home
            && if is_back {
                home::is_disposable(host, self.0, account)
            } else {
                home::own(host, self.0, account).is_ok()
            }
    }

    /// Removes what is left of `account`, which is no longer there.
    fn clear(&self, hands: &Hands, account: &Account, is_back: bool) -> Result<()> {
        let mail = format!("{MAIL}/{}", self.0);
        if home::is_file_of(&hands.view, &mail, account) {
            hands.run("rm", &["--force", "--", &mail], &[])?;
        }
        if self.goes(&hands.view, account, is_back) {
            let args = ["--recursive", "--force", "--one-file-system", "--", &account.home];
            hands.run("rm", &args, &[])?;
        }
        Ok(())
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

    /// The number that the host's tools for accounts go by, `default` where it names none.
    pub fn login_setting(&self, key: &str, default: u32) -> u32 {
        let text = self.read("/etc/login.defs").unwrap_or_default();
        let mut lines = text.lines().map(str::split_whitespace);
        let value = lines.find_map(|mut words| {
            words.next().filter(|word| *word == key).and_then(|_| words.next())
        });
        value.and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// Whether there is a directory at `path`; links are followed, below the root.
    fn is_directory(&self, path: &str) -> bool {
        path.starts_with('/') && self.root.open(path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }
}
