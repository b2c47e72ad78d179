//! What an account gets that is made without further wishes.

use super::{Create, NewName, Place};
use crate::error::{Error, Kind, Result};
use crate::host::View;
use crate::host::cell::{Account, Cell, Value};

/// Numbers that mean nobody in one interface or another.
const NOBODY: [u32; 2] = [65_535, u32::MAX];

/// An account as it would be made without further wishes.
pub(super) fn account(host: &View, params: &Create) -> Result<Account> {
    let Create { name: NewName(name), uid, gid, home, system, .. } = params;
    let accounts = host.accounts()?;
    let groups = host.groups()?;
    let uid = match *uid {
        None => {
            let uids = accounts.iter().map(|(_, account)| account.uid);
            let taken: Vec<_> = uids.chain(groups.iter().map(|group| group.gid)).collect();
            free(host, &taken, *system)?
        }
        Some(uid) if NOBODY.contains(&uid) => {
            let message = format!("the number {uid} means nobody; give another uid");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Some(uid) => uid,
    };
    if let Some((owner, _)) = accounts.iter().find(|(_, account)| account.uid == uid) {
        let message = format!("the uid {uid} is that of {owner} already; give another one");
        return Err(Error::new(Kind::Conflict, message));
    }
    if gid.is_none() && groups.iter().any(|group| group.name == *name) {
        let message = format!(
            "there is a group {name} already, which may be meant for others; give its number as \
             gid if {name} is to have it"
        );
        return Err(Error::new(Kind::Conflict, message));
    }
    let defaults = host.read("/etc/default/useradd").unwrap_or_default();
    let default = |key: &str| {
        let value = defaults.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(str::trim).filter(|value| value.starts_with('/')).map(str::to_owned)
    };
    let base = default("HOME").unwrap_or_else(|| "/home".to_owned());
    let home = home.as_ref().map_or_else(|| format!("{base}/{name}"), |Place(home)| home.clone());
    // An undo removes what belongs to the account, and this would be somebody's.
    if let Ok(Value::Directory { owner, .. }) = host.value(&Cell::Node(home.clone()))
        && owner.split(':').next() == Some(&uid.to_string())
    {
        let message = format!(
            "{home} is there and would belong to {name}; move it away, or give another uid"
        );
        return Err(Error::new(Kind::Conflict, message));
    }
    Ok(Account {
        uid,
        group: name.clone(),
        groups: Vec::new(),
        comment: String::new(),
        home,
        has_home: true,
        shell: default("SHELL").unwrap_or_else(|| "/bin/sh".to_owned()),
    })
}

/// The number of the group of a new account: that of the account, where nobody has it.
pub(super) fn gid(host: &View, uid: u32, system: bool) -> Result<u32> {
    let taken: Vec<_> = host.groups()?.iter().map(|group| group.gid).collect();
    if taken.contains(&uid) { free(host, &taken, system) } else { Ok(uid) }
}

/// A number that is not `taken`: for people the next one, for the system the last one.
fn free(host: &View, taken: &[u32], system: bool) -> Result<u32> {
    let setting = |key: &str, default: u32| host.login_setting(key, default);
    let is_free = |id: &u32| !taken.contains(id) && !NOBODY.contains(id);
    let found = if system {
        (setting("SYS_UID_MIN", 100)..=setting("SYS_UID_MAX", 999)).rev().find(is_free)
    } else {
        let (first, last) = (setting("UID_MIN", 1000), setting("UID_MAX", 60_000));
        let highest = taken.iter().copied().filter(|id| (first..=last).contains(id)).max();
        let next = highest.map_or(first, |id| id + 1);
        (next..=last).find(is_free).or_else(|| (first..=last).find(is_free))
    };
    found.ok_or_else(|| {
        let message = "every number that /etc/login.defs has for accounts is taken; give a uid";
        Error::new(Kind::Conflict, message)
    })
}
