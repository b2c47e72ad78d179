//! The ways to start: the controller with the agent as its child, either alone, the relay, and
//! what ends at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use crate::agent::{self, Policy};
use crate::cli::{self, Reach, Server, ServerCommand};
use crate::clock::Clock;
use crate::config::{self, Client, Config, Inert, Loaded, Secret};
use crate::error::{Error, Kind, Result};
use crate::host::{Executor, Root, UndoBounds, has_journal};
use crate::signing::{Holder, public_keys};
use crate::store::Bounds;
use crate::tls;
use crate::token::Key;

mod agent_process;
mod answer;
mod controller_process;
mod join;
mod listen;
mod nats;
mod network;
mod paths;
mod relay_process;
mod signals;
mod token;

pub use nats::nats;
pub use paths::Paths;
pub use token::token;

/// Does what `server` asks for; for the commands that stay, until a signal ends them.
pub fn run(server: &Server) -> Result<()> {
    match server.command {
        ServerCommand::Start => controller_process::run(server, true),
        ServerCommand::Controller => controller_process::run(server, false),
        ServerCommand::Agent => agent_process::run(server),
        ServerCommand::Relay => relay_process::run(server),
        ServerCommand::Settle => settle(server, false),
        ServerCommand::SettleAtBoot => settle(server, true),
        ServerCommand::SettleUnconfirmed => settle_unconfirmed(server),
        ServerCommand::Hand => hand(server),
        ServerCommand::Deployed => deployed(server),
        ServerCommand::Pages => pages(server),
        ServerCommand::ConfigValidate => validate(server),
        ServerCommand::Version => say(&version()),
        ServerCommand::AgentFingerprint => fingerprint(server, Holder::Agent),
        ServerCommand::ControllerFingerprint => fingerprint(server, Holder::Controller),
    }
}

/// What `osapi version` prints, under the published names.
pub fn version() -> serde_json::Value {
    json!({
        "gitVersion": env!("CARGO_PKG_VERSION"),
        "gitCommit": option_env!("OSAPI_COMMIT").unwrap_or_default(),
        "gitTreeState": "",
        "buildDate": "",
        "builtBy": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

fn say(value: &serde_json::Value) -> Result<()> {
    print(&format!("{value:#}\n"))
}

fn print(text: &str) -> Result<()> {
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
        .map_err(|error| Error::new(Kind::Unavailable, format!("cannot write to stdout: {error}")))
}

/// Where the command line finds a controller, and what an agent has kept.
///
/// A configuration that a client cannot use is no reason not to ask, unless it was named.
pub fn reach(file: Option<&Path>) -> Result<Reach> {
    let config = match config::load(file, std::env::vars()) {
        Err(error) if file.is_some() => return Err(error),
        Err(_) => config::of_environment(std::env::vars()),
        Ok(loaded) => loaded.config,
    };
    let controller = &config.controller;
    let Client { url, cacert, security } = controller.client.clone();
    let set = controller.socket.clone();
    let system = paths::SYSTEM_RUN.as_ref();
    let sockets = match set {
        Some(socket) => vec![socket],
        None => distinct([paths::run_dir().join(paths::SOCKET), Path::join(system, paths::SOCKET)]),
    };
    let own = Paths::of(&config).map(|paths| paths.agent_state);
    let system = Path::new(paths::SYSTEM_STATE).join("agent");
    let states = match own {
        Ok(own) => distinct([own, system]),
        Err(_) => vec![system],
    };
    Ok(Reach { url, sockets, cacert, token: security.bearer_token, states })
}

/// What this host calls itself.
fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What the store may take.
fn bounds(config: &Config) -> Bounds {
    let limits = &config.controller.limits;
    Bounds {
        database: limits.database.size.0,
        audit: limits.audit.size.0,
        audit_age: limits.audit.age.0,
        objects: limits.objects.size.0,
        ..Bounds::default()
    }
}

/// What tokens are signed with here: what was configured, else what `kept` finds or makes.
fn key_of(config: &Config, kept: impl FnOnce() -> Result<Key>) -> Result<Key> {
    let set = config.controller.api.security.signing_key.as_ref();
    Secret::set(set).map_or_else(kept, |secret| Ok(Key::new(secret.reveal().as_bytes())))
}

fn distinct(paths: [PathBuf; 2]) -> Vec<PathBuf> {
    let mut paths = Vec::from(paths);
    paths.dedup();
    paths
}

fn load(server: &Server) -> Result<Loaded> {
    let mut loaded = config::load(server.globals.file.as_deref(), std::env::vars())?;
    loaded.config.debug |= server.globals.debug;
    if server.port.is_some() {
        loaded.config.controller.api.port = server.port;
    }
    if let Some(hostname) = &server.hostname {
        hostname.clone_into(&mut loaded.config.agent.hostname);
    }
    Ok(loaded)
}

/// Says once what was set and does nothing.
fn list_without_effect(server: &Server, loaded: &Loaded) {
    for Inert { key, why } in &loaded.inert {
        tracing::info!("{key} is set and has no effect here: {why}");
    }
    for flag in &server.without_effect {
        tracing::info!("--{flag} has no effect here");
    }
}

fn validate(server: &Server) -> Result<()> {
    let loaded = load(server)?;
    let users = [&loaded.config.controller.agent_user, &loaded.config.agent.controller_user];
    for user in users.into_iter().flatten() {
        uid(user)?;
    }
    if let Some(files) = loaded.config.controller.tls.files() {
        tls::check(&files)?;
    }
    let inert = loaded.inert.iter().map(|inert| json!({ "key": inert.key, "why": inert.why }));
    let files = loaded.files.iter().map(|file| file.display().to_string());
    if server.globals.json {
        let files: Vec<_> = files.collect();
        return say(
            &json!({ "valid": true, "files": files, "without_effect": inert.collect::<Vec<_>>() }),
        );
    }
    let mut text = match &loaded.files[..] {
        [] => "there is no configuration, and none is needed\n".to_owned(),
        _ => format!("{}: valid\n", files.collect::<Vec<_>>().join(", ")),
    };
    for inert in &loaded.inert {
        text.extend([&inert.key, " has no effect: ", inert.why, "\n"]);
    }
    print(&text)
}

/// Brings to an end what an agent left half done: what the alarm and the boot unit run.
///
/// What has to be taken back may be the configuration itself, so one that cannot be used is no
/// reason not to: where the state is, the alarm says in the environment.
fn settle(server: &Server, at_boot: bool) -> Result<()> {
    let loaded = load(server);
    let config = loaded.as_ref().map(|loaded| loaded.config.clone());
    let config = config.unwrap_or_else(|_| config::of_environment(std::env::vars()));
    crate::telemetry::start("osapi-settle", config.debug);
    if let Err(error) = &loaded {
        tracing::warn!("settling without the configuration: {error}");
    }
    let executor = executor(server, &config, &Paths::of(&config)?, at_boot)?;
    for job in executor.settle()? {
        tracing::info!(OSAPI_JOB_ID = job, "settled");
    }
    Ok(())
}

/// Takes back what waits to be confirmed, and names it: what the package runs before it goes.
fn settle_unconfirmed(server: &Server) -> Result<()> {
    let config = load(server).map(|loaded| loaded.config);
    let config = config.unwrap_or_else(|_| config::of_environment(std::env::vars()));
    let paths = Paths::of(&config)?;
    // Where no agent has ever been, none is made up.
    if !paths.agent_state.exists() {
        return Ok(());
    }
    for job in executor(server, &config, &paths, false)?.settle_unconfirmed()? {
        print(&format!("Taken back, because nobody has confirmed it: the change of job {job}.\n"))?;
    }
    Ok(())
}

/// Does a part of a job in a unit of the service manager: what it is, an agent wrote into its
/// journal, which is where the answer goes. Says nothing of either here.
///
/// Where the journal is stands in the environment; the configuration may be what is being changed.
fn hand(server: &Server) -> Result<()> {
    let unknown =
        || Error::new(Kind::InvalidInput, "a hand is started by an agent, with an errand");
    let errand = server.errand.as_deref().and_then(|errand| errand.rsplit_once('.'));
    let (job, number) = errand.ok_or_else(unknown)?;
    let number = number.parse().map_err(|_| unknown())?;
    let config = config::of_environment(std::env::vars());
    crate::telemetry::start("osapi-hand", config.debug);
    let Some(state) = config.agent.state_dir else { return Err(unknown()) };
    has_journal(&state)?;
    let root = server.root.as_deref().unwrap_or_else(|| Path::new("/"));
    let executor = Executor::new(Root::at(root), &state, UndoBounds::default())?;
    if !executor.hand(job, number)? {
        tracing::info!(OSAPI_JOB_ID = job, "nobody waits for this part of the job any more");
    }
    Ok(())
}

/// One line for each cell: what it is, and the job that set it last.
fn deployed(server: &Server) -> Result<()> {
    let config = load(server)?.config;
    let paths = Paths::of(&config)?;
    // Where no agent has ever been, none is made up.
    if !paths.agent_state.exists() {
        return Ok(());
    }
    let records = executor(server, &config, &paths, false)?.view().records();
    let lines = records.iter().map(|record| format!("{} (job {})\n", record.cell, record.job));
    print(&lines.collect::<String>())
}

fn pages(server: &Server) -> Result<()> {
    let into = server.into.as_deref().unwrap_or_else(|| Path::new("."));
    let cannot = |error: std::io::Error| {
        let message = format!("cannot lay pages into {}: {error}", into.display());
        Error::new(Kind::Unavailable, message).because(error)
    };
    for (name, text) in cli::pages().map_err(cannot)? {
        let path = into.join(name);
        path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(cannot)?;
        #[expect(clippy::disallowed_methods, reason = "for whoever builds the package")]
        std::fs::write(path, text).map_err(cannot)?;
    }
    Ok(())
}

fn executor(
    server: &Server,
    config: &Config,
    paths: &Paths,
    at_boot: bool,
) -> Result<Arc<Executor>> {
    let undo = &config.agent.undo;
    let bounds = UndoBounds { age: undo.age.0, bytes: undo.size.0, ..UndoBounds::default() };
    paths::state_dir(&paths.agent_state)?;
    let root = server.root.as_deref().unwrap_or_else(|| Path::new("/"));
    let labels = config.agent.labels.clone();
    let root = Root::at(root);
    let executor = Executor::labelled(root, &paths.agent_state, bounds, labels)?;
    Ok(Arc::new(if at_boot { executor.booting() } else { executor }))
}

fn agent_setup(server: &Server, config: &Config, paths: &Paths) -> Result<agent::Setup> {
    let executor = executor(server, config, paths, false)?;
    executor.use_units();
    let (own, limits) = (&config.agent, &config.agent.conditions);
    Ok(agent::Setup {
        machine_id: agent::machine_id(&executor.view(), &paths.agent_state)?,
        executor,
        state: paths.agent_state.clone(),
        clock: Clock::default(),
        policy: Policy::new(&own.policy)?,
        pki: pki(config, paths)?,
        facts: agent::facts::Settings {
            hostname: own.hostname.clone(),
            labels: own.labels.clone(),
            interval: own.facts.interval.0,
            memory_pressure: limits.memory_pressure_threshold.into(),
            high_load: limits.high_load_multiplier,
            disk_pressure: limits.disk_pressure_threshold.into(),
        },
    })
}

/// What root has decided about keys.
fn pki(config: &Config, paths: &Paths) -> Result<agent::Pki> {
    let own = &config.agent;
    let dir = own.pki.dir(&paths.agent_state);
    let controllers = if let Some(path) = &own.controller_key {
        let missing = || {
            let message = format!("agent.controller_key: there is no {}", path.display());
            Error::new(Kind::InvalidInput, message)
        };
        public_keys(path)?.ok_or_else(missing)?
    } else if own.pki.enabled {
        let path = dir.join(Holder::Controller.public_file());
        public_keys(&path)?.unwrap_or_else(|| {
            tracing::warn!(
                "tasks are not asked for a signature: there is no {}; put the controller's there, \
                 or set agent.controller_key",
                path.display()
            );
            Vec::new()
        })
    } else {
        Vec::new()
    };
    let signs = own.pki.enabled || own.controller_key.is_some();
    Ok(agent::Pki { dir: Some(dir.to_owned()), signs, controllers })
}

/// Shows the fingerprint of a key that is there: the own user's, else the system's.
fn fingerprint(server: &Server, holder: Holder) -> Result<()> {
    let config = load(server)?.config;
    let paths = Paths::of(&config)?;
    let (own, is_set) = match holder {
        Holder::Agent => {
            (config.agent.pki.dir(&paths.agent_state), config.agent.state_dir.is_some())
        }
        Holder::Controller => (
            config.controller.pki.dir(&paths.controller_state),
            config.controller.state_dir.is_some(),
        ),
    };
    let system = Path::new(paths::SYSTEM_STATE).join(holder.as_str());
    let key = match holder.kept(own)? {
        None if !is_set => holder.kept(&system)?,
        found => found,
    };
    let Some(key) = key else {
        let (whose, dir) = (holder.as_str(), own.display());
        let message = format!(
            "there is no key of the {whose} in {dir} yet; the {whose} makes it when it starts for \
             the first time"
        );
        return Err(Error::new(Kind::NotFound, message));
    };
    let fingerprint = key.public().fingerprint();
    if server.globals.json {
        return say(&json!({ "fingerprint": fingerprint }));
    }
    print(&format!("{fingerprint}\n"))
}

/// The number of a user that is named by name or number.
fn uid(user: &str) -> Result<u32> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let found = crate::sys::user_id(user).map_err(|error| {
        Error::new(Kind::Unavailable, format!("cannot look up the user {user:?}: {error}"))
    })?;
    found.ok_or_else(|| {
        Error::new(
            Kind::InvalidInput,
            format!("the configuration names the user {user:?}, whom nobody knows"),
        )
    })
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
