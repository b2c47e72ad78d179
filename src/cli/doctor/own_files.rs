//! What OSAPI has on disk: its program, configuration, sockets, state.

use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::evidence::Evidence;
use super::evidence::Need::Changes;
use super::own::share;
use super::units::RELAYED;
use super::{Check, Finding, fail, ok, skipped, warn};
use crate::error::Kind;

const PROGRAM: &str = "/usr/bin/osapi";
/// How long it may take until the controller has been told what was taken back, in seconds.
const TOLD_WITHIN: u64 = 300;

pub(super) static CHECKS: &[Check] = &[
    Check {
        id: "socket.open",
        title: "Everybody may ask at the socket",
        needs: &[],
        judge: |e| {
            let path = e.socket.display();
            // Whether a controller should run here all the same is looked at elsewhere.
            let has_relay = || e.config().is_ok_and(|loaded| loaded.config.agent.nats.is_used());
            if !e.exists(&e.socket) && has_relay() {
                return ok(RELAYED);
            }
            if !e.exists(&e.socket) {
                return fail(
                    format!("there is nothing at {path}"),
                    "systemctl restart osapi.socket",
                );
            }
            let meta = e.meta(&e.socket)?;
            if !meta.file_type().is_socket() {
                let fix = format!("rm {path}\nsystemctl restart osapi.socket");
                return fail(format!("{path} is no socket"), fix);
            }
            let mode = meta.mode() & 0o777;
            if mode & 0o666 == 0o666 {
                return ok(format!("{path} has {mode:04o}"));
            }
            warn(format!("{path} has {mode:04o}"), format!("chmod 0666 {path}"))
        },
    },
    Check {
        id: "socket.place",
        title: "Nobody else can lay a socket there",
        needs: &[],
        judge: |e| {
            let place = e.socket.parent().unwrap_or_else(|| Path::new("/"));
            guarded(e, place, 0o022, "chmod 0755")
        },
    },
    Check {
        id: "config.valid",
        title: "The configuration can be used",
        needs: &[],
        judge: |e| match &e.config {
            Ok(loaded) if loaded.files.is_empty() => ok("there is none, and none is needed"),
            Ok(loaded) => ok(format!("{} files", loaded.files.len())),
            Err(error) if error.kind() == Kind::Denied => Err(skipped(error.to_string())),
            Err(error) => fail(error.to_string(), "osapi config validate"),
        },
    },
    Check {
        id: "config.inert",
        title: "All that is configured has an effect",
        needs: &[],
        judge: |e| {
            let inert: Vec<_> = e.config()?.inert.iter().map(|inert| inert.key.as_str()).collect();
            if inert.is_empty() {
                return ok("it has");
            }
            warn(format!("without: {}", inert.join(", ")), "osapi config validate    # says why")
        },
    },
    Check {
        id: "config.guarded",
        title: "Only root can change the configuration",
        needs: &[],
        judge: |e| {
            let files = &e.config()?.files;
            for file in files {
                for path in [Some(file.as_path()), file.parent()].into_iter().flatten() {
                    let found = guarded(e, path, 0o022, "chmod go-w")?;
                    if found.status != super::Status::Ok {
                        return Ok(found);
                    }
                }
            }
            ok(format!("{} files", files.len()))
        },
    },
    Check {
        id: "config.secrets",
        title: "Not everybody can read the secrets in the configuration",
        needs: &[],
        judge: |e| {
            let files = &e.config()?.secret;
            for file in files {
                let found = guarded(e, file, 0o007, "chmod o=")?;
                if found.status != super::Status::Ok {
                    return Ok(found);
                }
            }
            ok(format!("{} files with some", files.len()))
        },
    },
    Check {
        id: "program.guarded",
        title: "Only root can change the program",
        needs: &[],
        judge: |e| guarded(e, Path::new(PROGRAM), 0o022, "chmod 0755"),
    },
    Check {
        id: "state.controller",
        title: "Only the controller sees its state",
        needs: &[],
        judge: |e| guarded(e, &e.controller_state, 0o077, "chmod 0700"),
    },
    Check {
        id: "state.agent",
        title: "Only the agent sees its state",
        needs: &[],
        judge: |e| guarded(e, &e.agent_state, 0o077, "chmod 0700"),
    },
    Check { id: "state.keys", title: "Nobody else can read the keys", needs: &[], judge: keys },
    Check {
        id: "state.room",
        title: "There is room in the database",
        needs: &[],
        judge: |e| {
            let held = e.meta(e.controller_state.join("controller-1.redb"))?.len();
            let most = e.config()?.config.controller.limits.database.size.0;
            share(
                held,
                most,
                "osapi job list    # raise controller.limits.database.size, or lower limits.jobs and limits.audit",
            )
        },
    },
    Check {
        id: "reports.delivered",
        title: "The controller knows what was taken back",
        needs: &[Changes],
        judge: undelivered,
    },
    Check {
        id: "account.osapi",
        title: "The controller's account can do nothing else",
        needs: &[],
        judge: account,
    },
];

/// Whether nobody but who should can get at `path`: none of the permissions in `mask`, and an
/// owner who is root, OSAPI, or whoever asks.
fn guarded(e: &Evidence, path: &Path, mask: u32, chmod: &str) -> Result<Finding, Finding> {
    let (mode, uid) = e.mode(path)?;
    let path = path.display();
    if mode & mask != 0 {
        return fail(format!("{path} has {mode:04o}"), format!("{chmod} {path}"));
    }
    let known = [Some(e.root_uid), Some(e.uid), e.account("osapi")];
    if !known.contains(&Some(uid)) {
        let fix = format!("ls -ld {path}\nchown root: {path}");
        return fail(format!("{path} belongs to the account {uid}"), fix);
    }
    ok(format!("{path} has {mode:04o}"))
}

fn keys(e: &Evidence) -> Result<Finding, Finding> {
    let mut seen = 0;
    for state in [&e.agent_state, &e.controller_state].into_iter().filter(|state| e.exists(state)) {
        for name in e.list(state)? {
            if name == "key" || [".key", "-key"].iter().any(|end| name.ends_with(end)) {
                seen += 1;
                let found = guarded(e, &state.join(name), 0o077, "chmod 0600")?;
                if found.status != super::Status::Ok {
                    return Ok(found);
                }
            }
        }
    }
    if seen == 0 { Err(skipped("there are none")) } else { ok(format!("{seen} keys")) }
}

/// Each change that may be taken back behind the controller's back has a mark, until the
/// controller has been told or it was confirmed.
fn undelivered(e: &Evidence) -> Result<Finding, Finding> {
    let marks = e.list(e.agent_state.join("tell"))?;
    let latest = e.told(Changes)?["latest"].as_array().map(Vec::as_slice).unwrap_or_default();
    let waits =
        |name: &str| latest.iter().any(|job| job["id"] == name && job["waiting_until"].is_string());
    for mark in marks.iter().filter(|mark| !waits(mark)) {
        let meta = e.meta(e.agent_state.join("tell").join(mark))?;
        let since = (e.now / 1000).saturating_sub(u64::try_from(meta.mtime()).unwrap_or(0));
        if since > TOLD_WITHIN {
            let fix = format!("systemctl restart osapi-agent.service\nosapi job get {mark}");
            return warn(format!("nobody was told what became of {mark}"), fix);
        }
    }
    ok("there is nothing that it was not told")
}

fn account(e: &Evidence) -> Result<Finding, Finding> {
    let passwd = e.read("/etc/passwd")?;
    let line = passwd.lines().find(|line| line.starts_with("osapi:"));
    let line = line.ok_or_else(|| skipped("there is no account osapi"))?;
    let shell = line.rsplit(':').next().unwrap_or_default();
    if !shell.ends_with("/nologin") && !shell.ends_with("/false") {
        let fix = "usermod --shell /usr/sbin/nologin osapi";
        return fail(format!("osapi may log in, with {shell}"), fix);
    }
    let groups = e.read("/etc/group")?;
    let groups = groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, members) = (fields.next()?, fields.nth(2)?);
        members.split(',').any(|member| member == "osapi").then_some(name)
    });
    let groups: Vec<_> = groups.collect();
    match groups.first() {
        None => ok(shell),
        Some(first) => warn(
            format!("osapi is a member of {}", groups.join(", ")),
            format!("gpasswd --delete osapi {first}"),
        ),
    }
}
