//! What is found out about a host before anything is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::{FutureExt as _, join_all};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::super::run::Session;
use super::super::survey::{Answer, LIMIT};
use super::super::{Reach, audit, files};
use super::units::{RELAYED, UNITS, are_relayed};
use super::{Check, Finding, skipped};
use crate::clock::Clock;
use crate::config::{self, Loaded};
use crate::error::Error;

/// For what looks at much: the whole audit log, every file that OSAPI has put in place.
const LONG_LIMIT: Duration = Duration::from_secs(10);
/// How much of what a program says is read, in bytes.
const MAX_SAID: u64 = 1 << 20;
/// Where programs are.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// File systems whose room is asked for. Those of other hosts may never answer.
const LOCAL: [&str; 10] =
    ["bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "vfat", "xfs"];

/// Something that has to be asked for and may be long in coming.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Need {
    /// What this path of the API answers.
    Asks(&'static str),
    /// What this path answers, below that of the host which is looked at.
    Hosts(&'static str),
    /// What this program says, with its arguments, none of which has a blank.
    Says(&'static str),
    /// Who listens where the command line asks.
    Listener,
    /// The jobs that change something.
    Changes,
    /// Whether the audit log is what was written.
    Audit,
    /// How full the file systems are, by where they are mounted.
    Room,
}

/// All that a check may know.
pub(super) struct Evidence {
    /// What the paths below are below.
    pub(super) root: PathBuf,
    /// Whose account this is.
    pub(super) uid: u32,
    /// Whose files root's are.
    pub(super) root_uid: u32,
    /// Milliseconds since 1970.
    pub(super) now: u64,
    pub(super) config: Result<Loaded, Error>,
    /// Where the command line asks.
    pub(super) socket: PathBuf,
    pub(super) agent_state: PathBuf,
    pub(super) controller_state: PathBuf,
    pub(super) found: BTreeMap<Need, Answer>,
}

impl Evidence {
    /// Whether the controller answers at all.
    pub(super) const ALIVE: Need = Need::Asks("/api/health");

    /// Asks for everything that `checks` need, once and at the same time.
    pub(super) async fn gather(
        session: &Session<'_>,
        reach: &Reach,
        checks: impl Iterator<Item = &'static Check>,
    ) -> Self {
        let root = Path::new("/");
        let needs: BTreeSet<Need> = checks.flat_map(|check| check.needs).copied().collect();
        let agents = session.hear("/api/agent", LIMIT).shared();
        let meet = |need: Need| {
            let met = need.meet(session, reach, root, agents.clone());
            async move { (need, met.await) }
        };
        let mut found: BTreeMap<_, _> =
            join_all(needs.into_iter().map(meet)).await.into_iter().collect();
        if let Some(Answer::Missing(_)) = found.get(&Self::ALIVE) {
            let units = found.get(&Need::Says(UNITS)).and_then(Answer::told);
            let is_relayed = units.and_then(Value::as_str).is_some_and(are_relayed);
            // Why, one check tells.
            let why = if is_relayed { RELAYED } else { "the controller does not answer" };
            for (_, answer) in found.iter_mut().filter(|(need, _)| need.is_of_api()) {
                *answer = Answer::Missing(why.to_owned());
            }
        }
        let file = session.globals.file.as_deref();
        let config = config::load(file, std::env::vars());
        let states = &reach.states;
        let agent_state = states.iter().find(|state| state.exists()).or_else(|| states.last());
        let agent_state = agent_state.cloned().unwrap_or_default();
        let set =
            config.as_ref().ok().and_then(|config| config.config.controller.state_dir.clone());
        let sockets: Vec<_> = session.client.places().sockets().collect();
        let socket = sockets.iter().find(|socket| socket.exists()).or_else(|| sockets.last());
        Self {
            root: root.to_owned(),
            uid: rustix::process::geteuid().as_raw(),
            root_uid: 0,
            now: Clock::default().wall(),
            config,
            socket: socket.map(|socket| (*socket).to_owned()).unwrap_or_default(),
            controller_state: set.unwrap_or_else(|| agent_state.with_file_name("controller")),
            agent_state,
            found,
        }
    }

    /// What was told; else the check is skipped, with the reason.
    pub(super) fn told(&self, need: Need) -> Result<&Value, Finding> {
        match self.found.get(&need) {
            Some(Answer::Told(value)) => Ok(value),
            Some(Answer::Denied(why) | Answer::Missing(why)) => Err(skipped(why)),
            None => Err(skipped(format!("nobody asked for {need:?}"))),
        }
    }

    /// What a program said.
    pub(super) fn says(&self, line: &'static str) -> Result<&str, Finding> {
        Ok(self.told(Need::Says(line))?.as_str().unwrap_or_default())
    }

    pub(super) fn config(&self) -> Result<&Loaded, Finding> {
        self.config.as_ref().map_err(|_| skipped("the configuration cannot be used"))
    }

    pub(super) fn below(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(super) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.below(path).symlink_metadata().is_ok()
    }

    /// What is in a file; a host that has none, or does not show it, has the check skipped.
    pub(super) fn read(&self, path: impl AsRef<Path>) -> Result<String, Finding> {
        let path = path.as_ref();
        files::text(&self.below(path)).map_err(|error| unseen(path, &error))
    }

    /// What a file is, links not followed.
    pub(super) fn meta(&self, path: impl AsRef<Path>) -> Result<Metadata, Finding> {
        let path = path.as_ref();
        self.below(path).symlink_metadata().map_err(|error| unseen(path, &error))
    }

    /// Permissions and owner of what is at a path, links followed.
    pub(super) fn mode(&self, path: impl AsRef<Path>) -> Result<(u32, u32), Finding> {
        let path = path.as_ref();
        let meta = self.below(path).metadata().map_err(|error| unseen(path, &error))?;
        Ok((meta.mode() & 0o7777, meta.uid()))
    }

    pub(super) fn link(&self, path: impl AsRef<Path>) -> Result<PathBuf, Finding> {
        let path = path.as_ref();
        std::fs::read_link(self.below(path)).map_err(|error| unseen(path, &error))
    }

    /// The names in a directory, sorted.
    pub(super) fn list(&self, path: impl AsRef<Path>) -> Result<Vec<String>, Finding> {
        let path = path.as_ref();
        let entries = std::fs::read_dir(self.below(path)).map_err(|error| unseen(path, &error))?;
        let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        Ok(names)
    }

    /// The number of a local account.
    pub(super) fn account(&self, name: &str) -> Option<u32> {
        let passwd = self.read("/etc/passwd").ok()?;
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        line.split(':').nth(2)?.parse().ok()
    }

    /// Whether the kernel is shared with other systems, whose doings it shows as well.
    pub(super) fn is_container(&self) -> bool {
        ["/run/systemd/container", "/.dockerenv", "/run/.containerenv"]
            .iter()
            .any(|path| self.exists(path))
    }

    pub(super) fn mounts(&self) -> Result<Vec<Mount>, Finding> {
        Ok(mounts(&self.read("/proc/self/mounts")?))
    }
}

fn unseen(path: &Path, error: &io::Error) -> Finding {
    let path = path.display();
    skipped(match error.kind() {
        io::ErrorKind::NotFound => format!("there is no {path}"),
        io::ErrorKind::PermissionDenied => format!("only root may see {path}"),
        _ => format!("cannot read {path}: {error}"),
    })
}

/// A line of the kernel's table.
#[derive(Debug, PartialEq)]
pub(super) struct Mount {
    pub(super) at: String,
    pub(super) kind: String,
    pub(super) is_read_only: bool,
}

/// What is mounted where; of several at one place, the one that is seen.
fn mounts(text: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in text.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let [_, at, kind, options, ..] = fields[..] else { continue };
        // Blanks and the like stand there as three octal digits.
        let at = at.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        let is_read_only = options.split(',').any(|option| option == "ro");
        mounts.retain(|mount| mount.at != at);
        mounts.push(Mount { at, kind: kind.to_owned(), is_read_only });
    }
    mounts
}

impl Need {
    fn is_of_api(self) -> bool {
        match self {
            Self::Asks(_) => self != Evidence::ALIVE,
            Self::Hosts(_) | Self::Changes | Self::Audit => true,
            Self::Says(_) | Self::Listener | Self::Room => false,
        }
    }

    async fn meet(
        self,
        session: &Session<'_>,
        reach: &Reach,
        root: &Path,
        agents: impl Future<Output = Answer>,
    ) -> Answer {
        match self {
            Self::Asks("/api/agent") => agents.await,
            Self::Hosts(path) => session.hear_of_host(&agents.await, path, LONG_LIMIT).await,
            Self::Asks(uri) => session.hear(uri, LIMIT).await,
            Self::Says(line) => said(root, line).await,
            Self::Changes => session.changes(LIMIT).await,
            Self::Room => room(root).await,
            Self::Listener => {
                match tokio::time::timeout(LIMIT, session.client.places().listener()).await {
                    Ok(Some((path, uid))) => Answer::Told(json!({ "path": path, "uid": uid })),
                    _ => Answer::Missing("nobody listens".to_owned()),
                }
            }
            Self::Audit => walk(session, reach).await,
        }
    }
}

async fn walk(session: &Session<'_>, reach: &Reach) -> Answer {
    // Read before the log, so that none of them is newer than the log.
    let heads = audit::heads(reach);
    let walk = audit::walk(session, heads.as_deref().unwrap_or_default());
    match tokio::time::timeout(LONG_LIMIT, walk).await {
        Ok(Ok(verdict)) => Answer::Told(json!({
            "entries": verdict.entries,
            "anchored": verdict.anchored,
            "compared": heads.is_some(),
            "faults": verdict.faults.iter().map(|fault| &fault.message).collect::<Vec<_>>(),
        })),
        Ok(Err(problem)) => Answer::Missing(problem.error.to_string()),
        Err(_) => Answer::Missing(format!(
            "it is too long to be looked through in {} s; use `osapi audit verify`",
            LONG_LIMIT.as_secs()
        )),
    }
}

/// Runs a program that only looks. What it says counts, whatever its exit status; one that says
/// nothing and fails has not answered.
pub(super) async fn said(root: &Path, line: &str) -> Answer {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let places = DIRECTORIES.map(|directory| root.join(&directory[1..]).join(program));
    let Some(path) = places.iter().find(|path| path.is_file()) else {
        return Answer::Missing(format!("this host has no {program}"));
    };
    let mut command = Command::new(path);
    command.args(words).env_clear().env("PATH", DIRECTORIES.join(":")).env("LC_ALL", "C");
    command.current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let run = async {
        let mut child = command.spawn()?;
        let mut said = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_SAID).read_to_end(&mut said).await?;
        }
        Ok::<_, io::Error>((said, child.wait().await?))
    };
    match tokio::time::timeout(LIMIT, run).await {
        Ok(Ok((said, status))) if status.success() || !said.is_empty() => {
            Answer::Told(String::from_utf8_lossy(&said).into_owned().into())
        }
        Ok(Ok((_, status))) => Answer::Missing(format!("{program} ended with {status}")),
        Ok(Err(error)) => Answer::Missing(format!("cannot run {program}: {error}")),
        Err(_) => Answer::Missing(format!("{program} took longer than {} s", LIMIT.as_secs())),
    }
}

/// On a thread of its own, which a disk that does not answer may keep for ever.
async fn room(root: &Path) -> Answer {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let root = root.to_owned();
    let look = move || {
        let text = files::small(&root.join("proc/self/mounts")).unwrap_or_default();
        let local = mounts(&text)
            .into_iter()
            .filter(|mount| LOCAL.contains(&mount.kind.as_str()) && !mount.is_read_only);
        let rooms = local.filter_map(|mount| {
            let held = rustix::fs::statvfs(root.join(mount.at.trim_start_matches('/'))).ok()?;
            let told = json!({
                "total": held.f_blocks.saturating_mul(held.f_frsize),
                "available": held.f_bavail.saturating_mul(held.f_frsize),
                "inodes": held.f_files,
                "inodes_available": held.f_favail,
            });
            Some((mount.at, told))
        });
        drop(sender.send(Value::Object(rooms.collect())));
    };
    drop(std::thread::Builder::new().spawn(look));
    match tokio::time::timeout(LIMIT, receiver).await {
        Ok(Ok(rooms)) => Answer::Told(rooms),
        _ => Answer::Missing("a file system does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_seen_of_a_mount_point_counts() {
        let found =
            mounts("a / ext4 ro 0 0\nb /a\\040b tmpfs rw 0 0\nc / overlay rw,ro_x 0 0\n?\n");
        let mount = |at: &str, kind: &str| Mount {
            at: at.to_owned(),
            kind: kind.to_owned(),
            is_read_only: false,
        };
        assert_eq!(found, [mount("/a b", "tmpfs"), mount("/", "overlay")]);
    }

    #[tokio::test]
    async fn programs_are_asked_below_the_root_and_what_fails_is_said() {
        let root = tempfile::tempdir().unwrap();
        let bin = root.path().join("usr/bin");
        std::fs::create_dir_all(&bin).unwrap();
        for (name, program) in [("tell", "/bin/echo"), ("refuse", "/bin/false")] {
            std::os::unix::fs::symlink(program, bin.join(name)).unwrap();
        }
        assert_eq!(said(root.path(), "tell a b").await, Answer::Told("a b\n".into()));
        for (line, why) in [("refuse", "ended with"), ("none", "has no none")] {
            let answer = said(root.path(), line).await;
            assert!(matches!(&answer, Answer::Missing(said) if said.contains(why)), "{answer:?}");
        }
    }
}
