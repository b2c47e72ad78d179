//! What an operator may decide: one file, whatever lies beside it in `osapi.yaml.d`, and the
//! environment, as one documented value.
//!
//! The manual, the commented sample and the list of known keys are read off [`Config`]. A key that
//! nobody knows is an error and not ignored; those of the published configuration that have no
//! meaning here are accepted, and named once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::permission::{self, Permission, Role};
use crate::tls;

mod document;
mod inert;
mod nats;
mod pki;
mod read;
mod secret;
mod units;

pub use document::{manual, sample};
pub use inert::Inert;
pub use nats::{AgentNats, Nats};
pub use pki::{AgentPki, ControllerPki};
pub use read::{Loaded, load, of_environment};
pub use secret::Secret;
pub use units::{Size, Span};

/// Where the configuration is unless told otherwise.
pub const FILE: &str = "/etc/osapi/osapi.yaml";

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Config {
    /// Logs what helps to find a fault. The flag `-d` does the same.
    pub debug: bool,
    pub controller: Controller,
    pub agent: Agent,
}

/// The unprivileged half: accepts requests, remembers jobs, hands out work.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Controller {
    /// Where clients connect. Default: `/run/osapi/osapi.sock` for root, else `osapi/osapi.sock`
    /// below `$XDG_RUNTIME_DIR`, else `/tmp/osapi-UID/osapi.sock`.
    pub socket: Option<PathBuf>,
    /// Where jobs, files and the audit log are kept. Default: `/var/lib/osapi/controller` for
    /// root, else `~/.local/state/osapi/controller`.
    pub state_dir: Option<PathBuf>,
    /// The user that the agent runs as, by name or number; the controller and the relay refuse any
    /// other. Default: their own.
    pub agent_user: Option<String>,
    pub client: Client,
    pub api: Api,
    /// The role of each group's members, as in `wheel: admin`. A role is `read`, `write`, `admin`
    /// or one of `controller.api.security.roles`.
    pub groups: BTreeMap<String, String>,
    pub limits: Limits,
    pub metrics: Metrics,
    pub nats: Nats,
    pub pki: ControllerPki,
    pub tls: Tls,
}

/// What the API shows to whoever connects over a network. Read again on SIGHUP, for new
/// connections. Without, it is served on Unix sockets and loopback addresses only.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Tls {
    /// The file with the certificate and, behind it, those that lead to its authority, in PEM.
    pub cert: Option<PathBuf>,
    /// The file with the certificate's private key, in PEM.
    pub key: Option<PathBuf>,
}

/// The command line as a client.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Client {
    /// Where the command line finds the API, as `unix:///PATH` or `https://HOST:PORT`. An address
    /// of this host, as in `http://localhost:8080`, is asked where no socket answers; other `http`
    /// ones are passed over, since they would tell the token to the network. Default: the user's
    /// own socket, else the system's.
    pub url: Option<String>,
    /// The file with the authorities, in PEM, that a server's certificate may come from. Default:
    /// those that this host trusts.
    pub cacert: Option<PathBuf>,
    pub security: ClientSecurity,
}

/// How the command line says over a network who asks.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct ClientSecurity {
    /// The token to send, as `osapi token generate` makes it. Not needed on the socket.
    pub bearer_token: Option<Secret>,
}

/// How requests are answered.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Api {
    /// The port at which the API is served on the loopback addresses, too, to whoever brings a
    /// token. Where the service manager holds the sockets, its socket units decide that instead.
    /// Default: none.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u16>,
    /// How long a request waits for what it asked for. The job goes on when the wait runs out.
    pub job_timeout: Span,
    pub security: Security,
}

impl Default for Api {
    fn default() -> Self {
        let job_timeout = Span(Duration::from_secs(30));
        Self { port: None, job_timeout, security: Security::default() }
    }
}

/// Who may do what.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Security {
    /// What tokens are signed with, as it stands. Whoever has it can make an administrator's; use
    /// at least 32 characters that nobody can guess, in a file that nobody else can read.
    /// Controllers that share a broker need the same. Default: `token.key` in
    /// `controller.state_dir`, which the controller makes.
    pub signing_key: Option<Secret>,
    pub cors: Cors,
    /// Roles of one's own, by any name, or in place of the built-in one of the same name.
    pub roles: BTreeMap<String, RolePermissions>,
}

/// Pages in browsers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Cors {
    /// Where pages come from that may ask over a network, such as `https://ops.example.org`; `*`
    /// is any. Empty: no page may.
    pub allow_origins: Vec<String>,
}

/// What a role's members may do.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct RolePermissions {
    /// Such as `file:write`.
    pub permissions: BTreeSet<Permission>,
}

/// How much is kept. Whatever is full drops its oldest; only what may not be dropped is refused.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Limits {
    pub jobs: JobLimits,
    pub reads: ReadLimits,
    pub audit: AuditLimits,
    pub objects: ObjectLimits,
    pub database: DatabaseLimits,
}

/// Finished jobs that changed something, or might have.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct JobLimits {
    /// How old they get.
    pub age: Span,
    /// How many there are.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub count: usize,
}

impl Default for JobLimits {
    fn default() -> Self {
        Self { age: Span(Duration::from_hours(30 * 24)), count: 10_000 }
    }
}

/// Jobs that only looked, which are kept in memory.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct ReadLimits {
    /// How old they get.
    pub age: Span,
    /// How many there are.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub count: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { age: Span(Duration::from_mins(10)), count: 1000 }
    }
}

/// The audit log.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct AuditLimits {
    /// How long it goes back.
    pub age: Span,
    /// How much it may hold.
    pub size: Size,
}

impl Default for AuditLimits {
    fn default() -> Self {
        Self { age: Span(Duration::from_hours(30 * 24)), size: Size(50 << 20) }
    }
}

/// Uploaded files.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct ObjectLimits {
    /// How much they may hold together.
    pub size: Size,
}

impl Default for ObjectLimits {
    fn default() -> Self {
        Self { size: Size(1 << 30) }
    }
}

/// The file that jobs and the audit log are in.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct DatabaseLimits {
    /// How large it may get.
    pub size: Size,
}

impl Default for DatabaseLimits {
    fn default() -> Self {
        Self { size: Size(64 << 20) }
    }
}

/// Figures for Prometheus, at `/metrics` on the socket.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Metrics {
    /// The group whose members may read them without the permission `health:read`.
    pub group: Option<String>,
}

/// The privileged half: carries work out on this host.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Agent {
    /// Where the agent finds the controller, and the controller, or the relay, waits for it.
    /// Default: `agent.sock` beside the clients' socket.
    pub socket: Option<PathBuf>,
    /// Where the agent keeps its journal. Default: `/var/lib/osapi/agent` for root, else
    /// `~/.local/state/osapi/agent`.
    pub state_dir: Option<PathBuf>,
    /// The user that the controller, or the relay, runs as, by name or number; any other is
    /// refused. Default: the agent's own.
    pub controller_user: Option<String>,
    /// The name this host goes by. Default: its own.
    #[schemars(length(max = 255))]
    pub hostname: String,
    /// Groups this host belongs to, at most five, as in `group: web.prod`. Dots make a hierarchy.
    pub labels: BTreeMap<String, String>,
    /// What may be done to this host, whoever asks: any of `read`, `write`, `execute` and ids of
    /// operations, such as `node.file.deploy`. Empty: everything.
    pub policy: Vec<String>,
    /// The file with the public key of the controller, in PEM; those of several one after the
    /// other. Where it is set, no task is begun that none of them has signed for this host, and what
    /// this agent tells is signed as well. Default: `controller.pub` in `agent.pki.key_dir`, where
    /// `agent.pki.enabled` is set and there is such a file.
    pub controller_key: Option<PathBuf>,
    pub pki: AgentPki,
    pub facts: Facts,
    pub conditions: Conditions,
    pub undo: Undo,
    pub nats: AgentNats,
}

/// What the agent tells of the host.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Facts {
    /// How often facts are collected.
    pub interval: Span,
}

impl Default for Facts {
    fn default() -> Self {
        Self { interval: Span(Duration::from_mins(1)) }
    }
}

/// From when on the host counts as under pressure.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Conditions {
    /// In percent of memory in use.
    #[schemars(range(min = 1, max = 100))]
    pub memory_pressure_threshold: u8,
    /// In runnable processes for each processor.
    #[schemars(range(min = 0.01, max = 10_000))]
    pub high_load_multiplier: f64,
    /// In percent of any file system in use.
    #[schemars(range(min = 1, max = 100))]
    pub disk_pressure_threshold: u8,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            memory_pressure_threshold: 90,
            high_load_multiplier: 2.0,
            disk_pressure_threshold: 90,
        }
    }
}

/// What is kept to take changes back.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Undo {
    /// How long a change can be undone.
    pub age: Span,
    /// How much is kept for that.
    pub size: Size,
}

impl Default for Undo {
    fn default() -> Self {
        Self { age: Span(Duration::from_hours(30 * 24)), size: Size(256 << 20) }
    }
}

impl Tls {
    /// None where none are set.
    pub(crate) fn files(&self) -> Option<tls::Files> {
        let (cert, key) = (self.cert.clone()?, self.key.clone()?);
        Some(tls::Files { cert, key })
    }
}

impl Security {
    /// The roles there are.
    pub(crate) fn all_roles(&self) -> BTreeMap<String, BTreeSet<Permission>> {
        let own = self.roles.iter().map(|(name, role)| (name.clone(), role.permissions.clone()));
        permission::roles(own.collect())
    }
}

impl Config {
    /// What is wrong beyond the form of single values, each with the key it is about.
    pub(crate) fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut wrong = |key: String, what: String| problems.push((key, what));
        let security = &self.controller.api.security;
        for (group, role) in &self.controller.groups {
            let built_in = Role::ALL.iter().any(|known| known.as_str() == role);
            if !built_in && !security.roles.contains_key(role) {
                let key = format!("controller.groups.{group}");
                wrong(
                    key,
                    format!(
                        "there is no role {role:?}; use read, write, admin or one of controller.api.security.roles"
                    ),
                );
            }
        }
        let hostname = self.agent.hostname.as_str();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if hostname.len() > 253 || !hostname.bytes().all(is_plain) || hostname.starts_with('_') {
            let message = "must be letters, digits, `.`, `_` and `-`, at most 253 of them, and not \
                           begin with `_`";
            wrong("agent.hostname".to_owned(), message.to_owned());
        }
        if self.agent.labels.len() > 5 {
            let message = format!("{} labels are more than 5", self.agent.labels.len());
            wrong("agent.labels".to_owned(), message);
        }
        for (label, value) in &self.agent.labels {
            let is_segment = |text: &str| {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
                !text.is_empty() && text.bytes().all(plain)
            };
            if !is_segment(label) || !value.split('.').all(is_segment) {
                let message = format!(
                    "label {label:?} with {value:?} has other characters than letters, digits, \
                     `_` and `-`, and dots between the parts of the value"
                );
                wrong(format!("agent.labels.{label}"), message);
            }
        }
        if let Err(error) = crate::agent::Policy::new(&self.agent.policy) {
            let what = error.to_string();
            let what = what.strip_prefix("agent.policy ").unwrap_or(&what);
            wrong("agent.policy".to_owned(), what.to_owned());
        }
        for origin in &security.cors.allow_origins {
            let rest = origin.split_once("://").map(|(_, host)| host);
            let is_origin = rest.is_some_and(|host| !host.is_empty() && !host.contains('/'));
            if origin != "*" && (!is_origin || origin.contains(|c: char| !c.is_ascii_graphic())) {
                let message = format!(
                    "{origin:?} is not where a page can come from; write as in \
                     https://ops.example.org, without a path"
                );
                wrong("controller.api.security.cors.allow_origins".to_owned(), message);
            }
        }
        let tls = &self.controller.tls;
        for (key, set, other) in [("cert", &tls.cert, &tls.key), ("key", &tls.key, &tls.cert)] {
            if set.is_some() && other.is_none() {
                let message = "a certificate and its key belong together; set both or none";
                wrong(format!("controller.tls.{key}"), message.to_owned());
            }
        }
        let brokers = [self.controller.nats.section(), self.agent.nats.section()];
        problems.extend(brokers.iter().flat_map(nats::Section::problems));
        let mut wrong = |key: String, what: String| problems.push((key, what));
        let others = brokers.iter().flat_map(nats::Section::files);
        for (key, path) in [
            ("controller.client.cacert", &self.controller.client.cacert),
            ("controller.tls.cert", &tls.cert),
            ("controller.tls.key", &tls.key),
            ("controller.socket", &self.controller.socket),
            ("controller.state_dir", &self.controller.state_dir),
            ("controller.pki.key_dir", &self.controller.pki.key_dir),
            ("agent.controller_key", &self.agent.controller_key),
            ("agent.pki.key_dir", &self.agent.pki.key_dir),
            ("agent.socket", &self.agent.socket),
            ("agent.state_dir", &self.agent.state_dir),
        ]
        .map(|(key, path)| (key.to_owned(), path))
        .into_iter()
        .chain(others)
        {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                let path = path.display();
                wrong(key, format!("{path} is relative; write the whole path"));
            }
        }
        problems
    }
}
