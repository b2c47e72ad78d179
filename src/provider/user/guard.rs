//! Whom the host, or OSAPI, cannot do without.

use crate::error::Result;
use crate::host::View;
use crate::host::cell::Account;

/// Whose members may become root, on one distribution or another.
const ADMINISTRATORS: [&str; 3] = ["sudo", "admin", "wheel"];
/// Shells of those who are not to log in.
const NO_LOGIN: [&str; 2] = ["nologin", "false"];
/// The account that the controller has under the package.
const CONTROLLER: &str = "osapi";

/// Refuses to lock anybody out whom the host or OSAPI cannot do without, and to change the account
/// of OSAPI itself, unless it is forced. `wanted` is what becomes of an account that stays.
pub(super) fn admit(
    host: &View,
    name: &str,
    now: &Account,
    wanted: Option<&Account>,
    lock: bool,
) -> Result<()> {
    let refused = |why: &str| host.guard(format!("{name} {why} and is neither removed nor locked"));
    let has_password = |name: &str| host.is_locked(name) != Some(true);
    let is_to_be_locked = lock && has_password(name);
    let logs_in = wanted.is_some_and(may_log_in) && !is_to_be_locked;
    if !logs_in && may_log_in(now) && now.uid == 0 {
        return refused("is root");
    }
    let stays = wanted.is_some() && !is_to_be_locked;
    if !stays && (name == CONTROLLER || now.uid == rustix::process::geteuid().as_raw()) {
        return refused("is an account of OSAPI itself");
    }
    if name == CONTROLLER && wanted.is_some_and(|wanted| wanted != now) {
        return host.guard(format!("{name} is the account of OSAPI itself and is not changed"));
    }
    if !is_administrator(now) {
        return Ok(());
    }
    let remains = wanted.is_some_and(is_administrator);
    if remains && !is_to_be_locked {
        return Ok(());
    }
    let accounts = host.accounts()?;
    let mut others = accounts.iter().filter(|(other, it)| other != name && is_administrator(it));
    // Most log in with a key, and their passwords are locked. Only where a password is taken away
    // does it matter who else has one.
    let is_another_left = others.any(|(other, _)| !remains || has_password(other));
    if is_another_left { Ok(()) } else { refused("is the last administrator of this host") }
}

/// Whether somebody can log in to it and become root; root itself does not count.
fn is_administrator(account: &Account) -> bool {
    let groups = account.groups.iter().chain([&account.group]);
    let is_member = groups.into_iter().any(|group| ADMINISTRATORS.contains(&group.as_str()));
    account.uid != 0 && is_member && may_log_in(account)
}

fn may_log_in(account: &Account) -> bool {
    let shell = account.shell.rsplit('/').next().unwrap_or_default();
    !NO_LOGIN.contains(&shell)
}
