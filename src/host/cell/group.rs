//! A group, by the number that files know it by. Who is in it, the accounts say.
//!
//! The tools for accounts take the group of an account along where it has the account's name. With
//! a cell of its own it comes back with its number.

use std::fmt;

use super::{Blobs, Cell, CellKind, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::hands::Hands;
use crate::host::reach::Reach;
use crate::host::view::View;

const GROUPS: &str = "/etc/group";

/// A line of the table of groups.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Group {
    pub name: String,
    pub gid: u32,
    pub members: Vec<String>,
}

pub fn group(name: impl Into<String>, gid: u32) -> State {
    State::plain(Cell::Group(name.into()), Value::Group { gid })
}

pub fn no_group(name: impl Into<String>) -> State {
    State::plain(Cell::Group(name.into()), Value::Absent)
}

/// The group's name.
pub(super) struct GroupOf<'a>(pub(super) &'a str);

impl CellKind for GroupOf<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        let found = host.groups()?.into_iter().find(|group| group.name == self.0);
        Ok(found.map_or(Value::Absent, |group| Value::Group { gid: group.gid }))
    }

    fn assign(&self, hands: &Hands, now: &Value, to: &Value, _: &Blobs) -> Result<()> {
        match (now, to) {
            (Value::Absent, Value::Group { gid }) => {
                hands.run("groupadd", &["--gid", &gid.to_string(), "--", self.0], &[])
            }
            (Value::Group { .. }, Value::Absent) => {
                let others = hands.view.members(self.0)?;
                if !others.is_empty() {
                    let message = format!("{} are in {self}, which stays", others.join(", "));
                    return Err(Error::new(Kind::Conflict, message));
                }
                // It refuses one that is some account's own.
                hands.run("groupdel", &["--", self.0], &[])
            }
            _ => Err(self.cannot_hold(to)),
        }
    }

    fn reach(&self, _: &Value) -> Reach {
        Reach::Accounts
    }

    fn residue(&self, from: &Value, to: &Value) -> Option<String> {
        let goes = matches!((from, to), (Value::Group { .. }, Value::Absent));
        goes.then(|| format!("the password and the administrators of {self}, if it had any"))
    }
}

impl fmt::Display for GroupOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.0)
    }
}

impl View {
    /// The accounts that `group` lists.
    pub fn members(&self, group: &str) -> Result<Vec<String>> {
        let listed = self.groups()?.into_iter().find(|known| known.name == group);
        let mut members = listed.map(|group| group.members).unwrap_or_default();
        let accounts = self.accounts()?;
        members.retain(|member| accounts.iter().any(|(name, _)| name == member));
        Ok(members)
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
}
