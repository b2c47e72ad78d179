//! `osapi controller join` and `osapi agent join`: have this host share a broker with others.
//!
//! What they lay down is what somebody would by hand: files below /etc, and which units run. Run
//! again, they change nothing that is so already. Nothing secret leaves the host, nor comes to it:
//! the key that it is known by at the broker is made here, and its public half is told.

#![expect(clippy::disallowed_methods, reason = "sets up the program that says what is to be set")]

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nkeys::KeyPair;
use serde_json::json;
use zeroize::Zeroizing;

use super::{hostname, paths, print, say};
use crate::agent::machine_id_of;
use crate::broker::permissions::{Role, User};
use crate::cli::{Globals, Join};
use crate::config::{self, AgentPki, Config, ControllerPki};
use crate::error::{Error, Kind, Result};
use crate::host::{Root, query};
use crate::own_file;
use crate::signing::{Holder, PublicKey, public_keys};

/// What is laid down, below the root.
const SETTINGS: &str = "/etc/osapi/osapi.yaml.d/fleet.yaml";
const DROP_IN: &str = "/etc/systemd/system/osapi-controller.service.d/fleet.conf";
const AUTHORITY: &str = "/etc/osapi/broker-ca.pem";
const CONTROLLER_KEY: &str = "/etc/osapi/controller.pub";
/// What the package has as an example: the network, which a controller is without by default.
const NETWORK: &str = include_str!("../../packaging/osapi-controller-fleet.conf");
/// By this the settings are known to be ours to write anew.
const HEAD: &str =
    "# Laid down by `osapi controller join` or `osapi agent join`, which write it anew.\n";
/// Who reads the key, beside root.
const ACCOUNT: &str = "osapi";
/// How long the service manager may take.
const LIMIT: Duration = Duration::from_mins(2);

/// Does what `asked` asks for, and says what is to be done elsewhere.
pub(super) fn join(globals: &Globals, asked: &Join) -> Result<()> {
    let site = Site { root: Root::at(&asked.root), is_real: asked.root == Path::new("/") };
    let url = address(&asked.url);
    let config = site.allowing(asked.role)?;
    let id = site.read("/etc/machine-id")?.as_deref().and_then(machine_id_of).ok_or_else(|| {
        Error::new(Kind::HostFailed, "there is no machine id in /etc/machine-id, see machine-id(5)")
    })?;
    let controller = match &asked.controller_key {
        Some(given) => PublicKey::parse(given).ok_or_else(|| {
            let message = "--controller-key is not what `osapi controller join` says on the host \
                           of the controller";
            Error::new(Kind::InvalidInput, message)
        })?,
        None => site.kept(Holder::Controller, &config)?,
    };
    let own = site.kept(Holder::Agent, &config)?;
    let host = agent_name(&config);
    let controllers = site.with_key(&controller)?;
    let authority = match &asked.cacert {
        Some(path) => Some(authority(path)?),
        None => None,
    };

    let name = if asked.role == Role::Host { id.clone() } else { name(asked, config) };
    let nkey = site.broker_key(asked.role)?;
    let user = User::new(asked.role, &asked.namespace, &name, Some(&nkey.public_key()))?;
    // The first controller makes the streams.
    let user = if asked.role == Role::Host { user } else { user.installing() };
    if let Some(text) = &authority {
        site.lay(AUTHORITY, text, Readers::All)?;
    }
    site.lay(CONTROLLER_KEY, &controllers, Readers::All)?;
    site.configure(&settings(asked, &url, &name, authority.is_some()))?;
    site.change_over(asked.role)?;

    let accept = format!("osapi agent accept {host} --fingerprint {}", own.fingerprint());
    if globals.json {
        return say(&json!({
            "user": user.entry(),
            "nkey": nkey.public_key(),
            "machine_id": id,
            "fingerprint": own.fingerprint(),
            "controller_key": controller.encode(),
        }));
    }
    tell(&next(asked, &url, &accept, &controller))?;
    let what = if asked.role == Role::Host { "a host" } else { "a controller" };
    print(&format!("  # {host}, {what} of the fleet {}\n{}", asked.namespace, user.entry()))
}

/// To stderr, since stdout has what goes into a file.
fn tell(text: &str) -> Result<()> {
    std::io::stderr()
        .write_all(text.as_bytes())
        .map_err(|error| Error::new(Kind::Unavailable, format!("cannot write to stderr: {error}")))
}

fn next(asked: &Join, url: &str, accept: &str, controller: &PublicKey) -> String {
    let mut text = format!(
        "This host is at {url} as soon as that knows it: put what stdout says among `users` of its\n\
         configuration, and have it read that again. Then, on the host of a controller:\n\n  \
         sudo {accept}\n\n"
    );
    if asked.role == Role::Controller {
        let mut line = format!("osapi agent join {url} --controller-key {}", controller.encode());
        if let Some(file) = &asked.cacert {
            // Writing to a String cannot fail.
            _ = write!(line, " --cacert {}", file.display());
        }
        if asked.namespace != config::Nats::default().namespace {
            _ = write!(line, " --namespace {}", asked.namespace);
        }
        _ = write!(text, "Other hosts join with:\n\n  sudo {line}\n\n");
    }
    text
}

/// Encrypted, unless something else was said; of several addresses, each.
fn address(urls: &str) -> String {
    let each = urls
        .split(',')
        .map(str::trim)
        .map(|url| if url.contains("://") { url.to_owned() } else { format!("tls://{url}") });
    each.collect::<Vec<_>>().join(",")
}

/// What the agent says that this host is called.
fn agent_name(config: &Config) -> String {
    match config.agent.hostname.as_str() {
        "" => hostname(),
        named => named.to_owned(),
    }
}

/// What the controller is called at the broker.
fn name(asked: &Join, config: Config) -> String {
    let named = config::Nats { namespace: asked.namespace.clone(), ..config::Nats::default() };
    config.controller.nats.name.unwrap_or_else(|| named.name_on(&hostname()))
}

fn authority(path: &Path) -> Result<String> {
    let cannot = |why: &dyn std::fmt::Display| {
        let message = format!("cannot take authorities from {}: {why}", path.display());
        Error::new(Kind::InvalidInput, message)
    };
    let text = std::fs::read_to_string(path).map_err(|error| cannot(&error).because(error))?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(cannot(&"there is no certificate in it, in PEM"));
    }
    Ok(text)
}

fn settings(asked: &Join, url: &str, name: &str, has_authority: bool) -> String {
    // A text in JSON is one in YAML.
    let (url, namespace, name) = (json!(url), json!(asked.namespace), json!(name));
    let nkey_file = nkey_file(asked.role);
    let broker = |name: &str| {
        let tls = if has_authority { &format!("    tls: {{ cacert: {AUTHORITY} }}\n") } else { "" };
        format!(
            "  nats:\n    url: {url}\n    namespace: {namespace}\n{name}    \
             auth: {{ type: nkey, nkey_file: {nkey_file} }}\n{tls}"
        )
    };
    let agent = format!("  pki: {{ enabled: true }}\n  controller_key: {CONTROLLER_KEY}\n");
    if asked.role == Role::Host {
        return format!("{HEAD}agent:\n{}{agent}", broker(""));
    }
    // Its rights are those of this name, whatever the host is called later.
    let synced = if asked.synced { "    synced: true\n" } else { "" };
    let broker = broker(&format!("    name: {name}\n{synced}"));
    format!("{HEAD}controller:\n{broker}  pki: {{ enabled: true }}\nagent:\n{agent}")
}

const fn nkey_file(role: Role) -> &'static str {
    match role {
        Role::Host => "/etc/osapi/relay.nk",
        _ => "/etc/osapi/controller.nk",
    }
}

/// Who, beside root, reads what is laid down.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Readers {
    All,
    /// The group [`ACCOUNT`].
    Account,
}

/// The host that is to join.
struct Site {
    root: Root,
    /// Whether it is the one that this runs on.
    is_real: bool,
}

impl Site {
    fn at(&self, path: &str) -> PathBuf {
        self.root.real(path)
    }

    fn read(&self, path: &str) -> Result<Option<String>> {
        match std::fs::read_to_string(self.at(path)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => {
                let kind = match error.kind() {
                    ErrorKind::PermissionDenied => Kind::Denied,
                    _ => Kind::Unavailable,
                };
                Err(Error::new(kind, format!("cannot read {path}: {error}")).because(error))
            }
        }
    }

    /// What the units go by, whatever file was named.
    fn config(&self) -> Result<Config> {
        let file = self.at(config::FILE);
        let named = (!self.is_real || file.exists()).then_some(file.as_path());
        Ok(config::load(named, std::iter::empty())?.config)
    }

    /// The key that `holder` has once this host has joined, when `pki.enabled` is set.
    fn kept(&self, holder: Holder, config: &Config) -> Result<PublicKey> {
        let whose = holder.as_str();
        // By its environment, which has the last word over `state_dir`, each unit says this.
        let state = Path::new(paths::SYSTEM_STATE).join(whose);
        let (agent, controller) = (&config.agent.pki, &config.controller.pki);
        let dir = match holder {
            Holder::Agent => AgentPki { enabled: true, ..agent.clone() }.dir(&state).to_owned(),
            Holder::Controller => {
                ControllerPki { enabled: true, ..controller.clone() }.dir(&state).to_owned()
            }
        };
        let found = holder.kept(&self.at(&dir.to_string_lossy()))?;
        found.map(|key| key.public()).ok_or_else(|| {
            let shown = dir.display();
            let what = if dir == state {
                format!("start osapi-{whose} once, as the package does")
            } else {
                format!(
                    "{whose}.pki.key_dir says that it is there: put one there, or set \
                     {whose}.pki.enabled and restart osapi-{whose}, which makes it"
                )
            };
            let message = format!("there is no key of the {whose} in {shown} yet; {what}");
            Error::new(Kind::NotFound, message)
        })
    }

    /// What the file with the keys of controllers is to say: what it says, where `key` is among
    /// them, since there are two while one takes the other's place.
    fn with_key(&self, key: &PublicKey) -> Result<String> {
        match public_keys(&self.at(CONTROLLER_KEY))? {
            None => Ok(key.pem()),
            Some(keys) if keys.contains(key) => {
                Ok(self.read(CONTROLLER_KEY)?.unwrap_or_else(|| key.pem()))
            }
            Some(_) => {
                let message = format!(
                    "{CONTROLLER_KEY} has keys of other controllers, and not {}; if this one takes \
                     their place or joins them, add its controller.pub at the end of that file, \
                     and if they are to be believed no more, remove the file; then join again",
                    key.fingerprint()
                );
                Err(Error::new(Kind::Conflict, message))
            }
        }
    }

    /// What the units go by so far. Refuses what would leave the host with two who serve its agent,
    /// or what only root can do.
    fn allowing(&self, role: Role) -> Result<Config> {
        if self.is_real && super::own_uid() != 0 {
            let message = "only root can have a host join; use sudo";
            return Err(Error::new(Kind::Denied, message));
        }
        let config = self.config()?;
        let why = match role {
            Role::Host if config.controller.nats.url.is_some() => {
                "this host has a controller that keeps its state at a broker (controller.nats.url), \
                 which answers the agent here as well"
            }
            Role::Controller if config.agent.nats.is_used() => {
                "this host is managed over a broker (agent.nats.url), by controllers elsewhere"
            }
            _ => return Ok(config),
        };
        Err(Error::new(Kind::Conflict, why))
    }

    /// What this host is known by at the broker; made where there is none.
    fn broker_key(&self, role: Role) -> Result<KeyPair> {
        let path = nkey_file(role);
        let key = match self.read(path)?.map(Zeroizing::new) {
            Some(text) => KeyPair::from_seed(text.trim()).map_err(|error| {
                let message = format!("{path} is no seed of an nkey: {error}; remove it");
                Error::new(Kind::InvalidInput, message)
            })?,
            None => KeyPair::new_user(),
        };
        let seed = key.seed().map(Zeroizing::new).map_err(|error| {
            Error::new(Kind::Internal, format!("cannot make a key for the broker: {error}"))
        })?;
        let text = Zeroizing::new(format!("{}\n", *seed));
        self.lay(path, &text, Readers::Account)?;
        Ok(key)
    }

    /// Puts `content` there, whole or not at all, unless it is there already. Whose it is and who
    /// may read it is as it should be either way.
    fn lay(&self, path: &str, content: &str, readers: Readers) -> Result<()> {
        let at = self.at(path);
        let Some(directory) = at.parent() else { return Ok(()) };
        let mode = if readers == Readers::All { 0o644 } else { 0o640 };
        let there = std::fs::read(&at).map(Zeroizing::new);
        if !there.is_ok_and(|there| *there == content.as_bytes()) {
            std::fs::create_dir_all(directory)
                .and_then(|()| own_file::replace(&at, content.as_bytes(), mode))
                .map_err(|error| cannot(path, &error))?;
        }
        if self.is_real {
            let group = group(readers)?;
            std::os::unix::fs::chown(&at, Some(0), Some(group)).map_err(|e| cannot(path, &e))?;
        }
        // Whatever the umask left of it, too.
        std::fs::set_permissions(&at, Permissions::from_mode(mode)).map_err(|e| cannot(path, &e))
    }

    /// Lays down the settings, unless nothing could start with them, or they are somebody else's.
    fn configure(&self, text: &str) -> Result<()> {
        let before = self.read(SETTINGS)?;
        if before.as_deref().is_some_and(|before| !before.starts_with(HEAD)) {
            let message = format!(
                "there is a {SETTINGS} already that neither `osapi controller join` nor `osapi \
                 agent join` has laid down; give it another name"
            );
            return Err(Error::new(Kind::Conflict, message));
        }
        self.lay(SETTINGS, text, Readers::All)?;
        let Err(error) = self.config() else { return Ok(()) };
        match before {
            Some(before) => self.lay(SETTINGS, &before, Readers::All)?,
            None => std::fs::remove_file(self.at(SETTINGS)).map_err(|e| cannot(SETTINGS, &e))?,
        }
        Err(error)
    }

    /// Has the units go by the new settings. Whoever the broker does not know yet tries until it does.
    fn change_over(&self, role: Role) -> Result<()> {
        if role == Role::Host {
            // Each of the sockets would have a controller again.
            self.systemctl(&[
                "disable",
                "--now",
                "--",
                "osapi.socket",
                "osapi-tls.socket",
                "osapi-controller.service",
            ])?;
            self.systemctl(&[
                "enable",
                "--now",
                "--",
                "osapi-relay.socket",
                "osapi-relay.service",
            ])?;
            // It may have been there before, with other settings.
            self.systemctl(&["restart", "--", "osapi-relay.service"])?;
            return self.systemctl(&["restart", "--", "osapi-agent.service"]);
        }
        self.lay(DROP_IN, NETWORK, Readers::All)?;
        self.systemctl(&["daemon-reload"])?;
        self.systemctl(&["restart", "--", "osapi-agent.service"])?;
        // It is ready when the broker has let it in.
        self.systemctl(&["--no-block", "restart", "--", "osapi-controller.service"])
    }

    fn systemctl(&self, words: &[&str]) -> Result<()> {
        let program = self.root.command("systemctl")?;
        query(&program, words, Path::new("/tmp"), LIMIT)?
            .success(&format!("systemctl {}", words.join(" ")))
            .map(drop)
    }
}

fn cannot(path: &str, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        ErrorKind::StorageFull => Kind::Full,
        ErrorKind::PermissionDenied => Kind::Denied,
        _ => Kind::Unavailable,
    };
    Error::new(kind, format!("cannot write {path}: {error}"))
}

fn group(readers: Readers) -> Result<u32> {
    if readers == Readers::All {
        return Ok(0);
    }
    crate::sys::group_id(ACCOUNT).ok().flatten().ok_or_else(|| {
        let message = "there is no group osapi on this host; install the package";
        Error::new(Kind::HostFailed, message)
    })
}
