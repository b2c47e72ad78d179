//! The broker that controllers may share, and that hosts may reach them over.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Secret;
use crate::broker::{self, NAME, NAMESPACE, is_controller, is_namespace, is_token};

/// What several controllers share in place of files on one host: a NATS server with JetStream.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Nats {
    /// Where the broker is, as `nats://HOST:PORT`, or `tls://HOST:PORT` to insist on encryption;
    /// several are separated by commas. Default: none, and jobs, files and the audit log are kept
    /// in `controller.state_dir`.
    pub url: Option<String>,
    /// Names the streams and begins their subjects, so that several fleets may share a broker.
    pub namespace: String,
    /// Names this controller at the broker. No two may share one. Default: the host's name.
    pub name: Option<String>,
    pub auth: Auth,
    pub tls: NatsTls,
    /// How many servers keep each record: 1, or 3 or 5 in a cluster. Streams that are there must
    /// have as many; they are never changed.
    #[schemars(range(min = 1, max = 5))]
    pub replicas: usize,
    /// You state that the server makes everything durable before it acknowledges, by `sync_interval:
    /// always` of its configuration, which it tells nobody. All that this does is to silence the
    /// warning of `osapi status`, `osapi doctor` and the health status that a power cut at a server
    /// without replicas may lose what was acknowledged.
    pub synced: bool,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            url: None,
            namespace: "osapi".to_owned(),
            name: None,
            auth: Auth::default(),
            tls: NatsTls::default(),
            replicas: 1,
            synced: false,
        }
    }
}

/// How the broker is told who connects.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct Auth {
    /// `none`, `user_pass`, `nkey` or `credentials`. Default: `none`.
    pub r#type: Option<String>,
    /// For `user_pass`.
    pub username: Option<String>,
    /// For `user_pass`.
    pub password: Option<Secret>,
    /// The file with the seed, for `nkey`.
    pub nkey_file: Option<PathBuf>,
    /// The file with a JWT and its seed, for `credentials`.
    pub credentials_file: Option<PathBuf>,
}

/// How the connection to the broker is encrypted.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct NatsTls {
    /// The file with the authorities, in PEM, that the broker's certificate may come from. Where it
    /// is set, no connection is made without encryption. Default: those that this host trusts.
    pub cacert: Option<PathBuf>,
    /// The file with a certificate of one's own, in PEM, for a broker that asks for one.
    pub cert: Option<PathBuf>,
    /// The file with that certificate's private key, in PEM.
    pub key: Option<PathBuf>,
}

/// Where this host is managed over a broker, by controllers on other hosts: what the relay connects
/// to, which then serves the agent's socket instead of a controller on this host.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default)]
#[schemars(inline)]
pub struct AgentNats {
    /// Where the broker is, as `nats://HOST:PORT`, or `tls://HOST:PORT` to insist on encryption;
    /// several are separated by commas. Default: none, and a controller on this host serves the
    /// agent.
    pub url: Option<String>,
    /// Begins the subjects, as `controller.nats.namespace` of the controllers.
    pub namespace: String,
    pub auth: Auth,
    pub tls: NatsTls,
}

impl Default for AgentNats {
    fn default() -> Self {
        let Nats { url, namespace, auth, tls, .. } = Nats::default();
        Self { url, namespace, auth, tls }
    }
}

/// What both sections say of a connection.
pub(super) struct Section<'a> {
    key: &'static str,
    url: &'a Option<String>,
    namespace: &'a str,
    name: &'a Option<String>,
    auth: &'a Auth,
    tls: &'a NatsTls,
}

impl Nats {
    /// What the store needs, for a controller on the host `hostname`; `None` where no broker is set.
    pub(crate) fn settings(&self, hostname: &str) -> Option<broker::Settings> {
        let settings = self.section().settings(hostname)?;
        Some(broker::Settings { replicas: self.replicas, is_synced: self.synced, ..settings })
    }

    /// What a controller on the host `hostname` is called at the broker.
    pub(crate) fn name_on(&self, hostname: &str) -> String {
        self.section().name_on(hostname)
    }

    pub(super) fn section(&self) -> Section<'_> {
        let Self { url, namespace, name, auth, tls, .. } = self;
        Section { key: "controller.nats", url, namespace, name, auth, tls }
    }
}

impl AgentNats {
    /// Whether the agent of this host is the relay's.
    pub(crate) fn is_used(&self) -> bool {
        self.url.as_deref().is_some_and(|url| !url.is_empty())
    }

    /// What the relay of the host `hostname` needs; `None` where no broker is set.
    pub(crate) fn settings(&self, hostname: &str) -> Option<broker::Settings> {
        self.section().settings(hostname)
    }

    pub(super) fn section(&self) -> Section<'_> {
        let Self { url, namespace, auth, tls } = self;
        Section { key: "agent.nats", url, namespace, name: &None, auth, tls }
    }
}

impl Section<'_> {
    fn settings(&self, hostname: &str) -> Option<broker::Settings> {
        let url = self.url.as_deref().filter(|url| !url.is_empty())?;
        let servers: Vec<_> = url.split(',').map(|url| url.trim().to_owned()).collect();
        let Auth { username, password, nkey_file, credentials_file, .. } = self.auth;
        let identity = match self.auth.r#type.as_deref() {
            Some("user_pass") => broker::Identity::Password {
                user: username.clone().unwrap_or_default(),
                password: password.as_ref().map_or("", Secret::reveal).to_owned().into(),
            },
            Some("nkey") => broker::Identity::Nkey(nkey_file.clone().unwrap_or_default()),
            Some("credentials") => {
                broker::Identity::Credentials(credentials_file.clone().unwrap_or_default())
            }
            _ => broker::Identity::Nobody,
        };
        let NatsTls { cacert, cert, key } = self.tls;
        let is_required = cacert.is_some() || servers.iter().all(|url| url.starts_with("tls://"));
        Some(broker::Settings {
            servers,
            namespace: self.namespace.to_owned(),
            name: self.name_on(hostname),
            identity,
            tls: broker::Tls {
                is_required,
                ca: cacert.clone(),
                own: cert.clone().zip(key.clone()),
            },
            replicas: 1,
            is_synced: false,
        })
    }

    /// What whoever runs on the host `hostname` is called at the broker.
    fn name_on(&self, hostname: &str) -> String {
        let plain = |c: char| if is_token(c.encode_utf8(&mut [0; 4])) { c } else { '-' };
        let own = || {
            let own: String = hostname.chars().map(plain).take(64).collect();
            if is_controller(&own) { own } else { format!("host-{own}").chars().take(64).collect() }
        };
        self.name.clone().unwrap_or_else(own)
    }

    /// What is wrong beyond the form of single values, each with the key it is about.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut wrong = |key: &str, what: String| {
            problems.push((format!("{}.{key}", self.key), what));
        };
        if !is_namespace(self.namespace) {
            wrong("namespace", NAMESPACE.to_owned());
        }
        if self.name.as_deref().is_some_and(|name| !is_controller(name)) {
            wrong("name", NAME.to_owned());
        }
        let auth = self.auth;
        let needed = match auth.r#type.as_deref() {
            None | Some("none" | "") => &[][..],
            Some("user_pass") => &[
                ("username", auth.username.is_some()),
                ("password", Secret::set(auth.password.as_ref()).is_some()),
            ],
            Some("nkey") => &[("nkey_file", auth.nkey_file.is_some())],
            Some("credentials") => &[("credentials_file", auth.credentials_file.is_some())],
            Some(other) => {
                let message = format!("{other:?} is none of none, user_pass, nkey and credentials");
                wrong("auth.type", message);
                &[]
            }
        };
        for (key, _) in needed.iter().filter(|(_, is_set)| !is_set) {
            wrong(&format!("auth.{key}"), "this kind of auth.type needs it".to_owned());
        }
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            let message = "a certificate and its key belong together; set both or none";
            wrong("tls.cert", message.to_owned());
        }
        problems
    }

    /// The files that it names.
    pub(super) fn files(&self) -> [(String, &Option<PathBuf>); 5] {
        [
            ("auth.credentials_file", &self.auth.credentials_file),
            ("auth.nkey_file", &self.auth.nkey_file),
            ("tls.cacert", &self.tls.cacert),
            ("tls.cert", &self.tls.cert),
            ("tls.key", &self.tls.key),
        ]
        .map(|(key, path)| (format!("{}.{key}", self.key), path))
    }
}
