//! The controller as a process, and under `osapi start` the agent as its child.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sd_notify::NotifyState;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::sync::watch::{Receiver, channel};

use super::agent_process::PARENT;
use super::answer::answer_agents;
use super::listen::{Bound, Inherited, inherited, listen};
use super::network::{encryption, network};
use super::signals::{Health, Reloading, Signals, Wish, is_listened_to, notify, runtime, tell};
use super::{Paths, key_of, own_uid, paths, uid};
use crate::api::{Access, Api, Caps};
use crate::broker::Settings;
use crate::cli::Server;
use crate::clock::Clock;
use crate::config::{Config, Secret};
use crate::controller::{Controller, Limits, Setup, Shared, Trust};
use crate::error::{Error, Kind, Result};
use crate::seal::{derived_key, random_key};
use crate::signing::Holder;
use crate::store::nats::{NatsObjects, NatsStore};
use crate::store::objects::Files;
use crate::store::place::hold;
use crate::store::redb::RedbStore;
use crate::store::{Bounds, Objects, Store};
use crate::token::Key;
use crate::{telemetry, tls};

/// How long the agent may take to end, and how soon it is started again.
const AGENT_END: Duration = Duration::from_millis(9500);
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_LAST: Duration = Duration::from_secs(10);
/// How long an agent has to run to count as well.
const WELL: Duration = Duration::from_secs(30);
/// How long whoever waits for the agent may go on waiting once this process is to end.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long answers may take to be written once their work is done.
const LAST_ANSWERS: Duration = Duration::from_millis(200);
/// What a request that is repeated is known again by, without its being in the store.
const REQUEST_KEY: &str = "request-key";

pub(super) fn run(server: &Server, with_agent: bool) -> Result<()> {
    let loaded = super::load(server)?;
    let volume = telemetry::start(
        if with_agent { "osapi" } else { "osapi-controller" },
        loaded.config.debug,
    );
    super::list_without_effect(server, &loaded);
    let config = loaded.config;
    let paths = Paths::of(&config)?;
    let agent_uid = match config.controller.agent_user.as_deref().filter(|_| !with_agent) {
        Some(user) => uid(user)?,
        None => own_uid(),
    };
    runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let mut passed = inherited()?;
        let is_activated = !passed.sockets.is_empty();
        let api_socket = listen(&paths.socket, &mut passed.sockets)?;
        let agent_socket = agent_socket(&config, &paths, &mut passed)?;
        let tls = encryption(&config, &passed.network, is_activated)?;
        let network = network(&config, passed.network, is_activated)?;
        for (path, _) in passed.sockets {
            tracing::warn!("the inherited socket {} is none of ours, and not used", path.display());
        }
        let (controller, _held) = open(&config, &paths).await?;
        let access = access(&config, &paths, with_agent)?;
        let api = Api::new(controller.clone(), access, config.controller.api.job_timeout.0)?;
        let desk = {
            let controller = controller.clone();
            move |pid| controller.agent(agent_uid, pid)
        };
        let answering = tokio::spawn(answer_agents(agent_socket, agent_uid, desk));
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(serve(api.clone(), api_socket));
        let mut addresses = Vec::new();
        for (address, listener) in network {
            let place = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
            if tls.as_ref().is_none_or(|tls| tls.fault().is_none()) {
                tracing::info!("listening at {place}, to whoever brings a token");
            }
            addresses.push(place);
            serving.spawn(serve_network(api.clone(), listener, tls.clone()));
        }
        let fault = tls.as_ref().and_then(|tls| tls.fault());
        controller.note_network(&addresses, fault);
        let (end_child, ended) = channel(false);
        let (give_up, mut defeat) = mpsc::channel(1);
        let child = with_agent.then(|| {
            tokio::spawn(supervise(child_arguments(server), paths.clone(), ended, give_up))
        });
        greet(&paths);
        let status = {
            let (controller, socket) = (controller.clone(), paths.socket.clone());
            move || format!("{}; listens at {}", controller.line(), socket.display())
        };
        tokio::spawn(tell({
            let status = status.clone();
            move || Health { status: status(), stuck: None }
        }));
        let outcome = loop {
            let wish = tokio::select! {
                wish = signals.next() => wish,
                Some(error) = defeat.recv() => break Err(error),
                () = controller.is_void() => break Err(set_back()),
            };
            match wish {
                Wish::Stop => break Ok(()),
                Wish::Reload => {
                    let _reloading = Reloading::begin();
                    match super::load(server) {
                        Ok(new) => {
                            let running =
                                Running { with_agent, paths: &paths, tls: tls.as_deref() };
                            reload(&config, &new.config, &running, &volume, &api).await;
                            let fault = tls.as_ref().and_then(|tls| tls.fault());
                            controller.note_network(&addresses, fault);
                            notify(&[NotifyState::Status(&status())]);
                        }
                        Err(error) => tracing::error!("the old configuration stays: {error}"),
                    }
                }
            }
        };

        notify(&[NotifyState::Stopping]);
        tracing::info!("stopping: nothing new is accepted");
        serving.abort_all();
        api.stop();
        if let Some(child) = child {
            // Where nobody hears it, the agent has ended.
            let _ = end_child.send(true);
            drop(child.await);
        }
        // Whoever was accepted is answered, by what the agent reports meanwhile. Others wait where
        // the service manager holds the socket.
        let patience = if with_agent { LAST_ANSWERS } else { PATIENCE };
        if tokio::time::timeout(patience, api.rest()).await.is_err() {
            controller.hurry();
            drop(tokio::time::timeout(LAST_ANSWERS, api.rest()).await);
        }
        answering.abort();
        controller.stop().await;
        tracing::info!("stopped");
        outcome
    })
}

fn set_back() -> Error {
    let message = "the broker has lost what it had acknowledged; starting again goes on from what \
                   it has";
    Error::new(Kind::Unavailable, message)
}

/// Where the agent connects; None where it connects to a relay.
fn agent_socket(config: &Config, paths: &Paths, passed: &mut Inherited) -> Result<Option<Bound>> {
    if config.agent.nats.is_used() {
        tracing::info!("agent.nats.url is set: the relay answers the agent of this host");
        return Ok(None);
    }
    listen(&paths.agent_socket, &mut passed.sockets).map(Some)
}

/// The controller, and where its state is, which is held as long as that is kept.
async fn open(config: &Config, paths: &Paths) -> Result<(Shared, Option<OwnedFd>)> {
    let limits = &config.controller.limits;
    paths::state_dir(&paths.controller_state)?;
    let clock = Clock::default();
    let (bounds, name) = (super::bounds(config), super::hostname());
    let settings = config.controller.nats.settings(&name);
    let name = settings.as_ref().map_or(name, |settings| settings.name.clone());
    let (stores, held) = match settings.clone() {
        Some(settings) => {
            let held = hold(&paths.controller_state)?;
            (at_broker(settings, &clock, bounds).await?, Some(held))
        }
        // Who works with files holds their place with them.
        None => (in_files(&paths.controller_state, &clock, bounds).await?, None),
    };
    let (store, objects) = stores;
    let key = match Secret::set(config.controller.api.security.signing_key.as_ref()) {
        // Controllers that share a store know each other's requests again.
        Some(secret) if held.is_some() => derived_key(secret.reveal().as_bytes(), REQUEST_KEY),
        _ => random_key(&paths.controller_state, REQUEST_KEY)?,
    };
    let pki = &config.controller.pki;
    let own = Holder::Controller.kept_or_made(pki.dir(&paths.controller_state))?;
    let trust = pki.enabled.then(|| {
        tracing::info!("tasks are signed with the key {}", own.public().fingerprint());
        Trust { key: own, auto_accept: pki.auto_accept }
    });
    let controller = Controller::start(Setup {
        store,
        objects,
        clock,
        name,
        limits: Limits {
            jobs: limits.jobs.count,
            job_age: limits.jobs.age.0,
            reads: limits.reads.count,
            read_age: limits.reads.age.0,
            ..Limits::default()
        },
        job_timeout: config.controller.api.job_timeout.0,
        key,
        trust,
    })
    .await?;
    if let Some(settings) = settings {
        controller.answer_over(settings).await?;
    }
    Ok((controller, held))
}

type Stores = (Arc<dyn Store>, Arc<dyn Objects>);

async fn in_files(state: &Path, clock: &Clock, bounds: Bounds) -> Result<Stores> {
    let size = bounds.objects;
    let store = Arc::new(RedbStore::open(state, clock.clone(), bounds)?);
    let objects = Files::open(state.join("objects"), store.clone(), clock.clone(), size).await?;
    Ok((store, Arc::new(objects)))
}

async fn at_broker(settings: Settings, clock: &Clock, bounds: Bounds) -> Result<Stores> {
    let servers = settings.servers.join(", ");
    let store = NatsStore::open(settings, clock.clone(), bounds).await?;
    let objects = NatsObjects::open(&store).await?;
    tracing::info!("jobs, files and the audit log are kept at the broker {servers}");
    Ok((Arc::new(store), Arc::new(objects)))
}

/// `own_is_admin` is so under `osapi start`, whose user the host belongs to.
fn access(config: &Config, paths: &Paths, own_is_admin: bool) -> Result<Access> {
    let controller = &config.controller;
    let security = &controller.api.security;
    let origins = security.cors.allow_origins.iter();
    Ok(Access {
        groups: controller.groups.clone(),
        roles: security.all_roles(),
        own_is_admin,
        metrics_group: controller.metrics.group.clone(),
        key: Some(key_of(config, || Key::kept_or_made(&paths.controller_state))?),
        origins: origins.cloned().collect(),
    })
}

async fn serve_network(
    api: Arc<Api>,
    listener: tokio::net::TcpListener,
    tls: Option<Arc<tls::Server>>,
) {
    if let Err(error) = api.serve_network(listener, Caps::default(), tls).await {
        tracing::error!(%error, "the API is no longer served over the network");
    }
}

async fn serve(api: Arc<Api>, bound: Bound) {
    // The name of the socket goes when this is dropped.
    let Bound { listener, own: _own } = bound;
    if let Err(error) = api.serve(listener, Caps::default()).await {
        tracing::error!(%error, "the API is no longer served");
    }
}

/// Runs the agent, again whenever it ends, until told to end it. Gives up where another agent has
/// its place from the start, for longer than one that was orphaned takes to end.
async fn supervise(
    server: Vec<OsString>,
    paths: Paths,
    mut end: Receiver<bool>,
    give_up: mpsc::Sender<Error>,
) {
    let mut pause = AGAIN_FIRST;
    let first = Instant::now();
    let mut has_place = false;
    loop {
        let began = Instant::now();
        match start_agent(&server, &paths) {
            Ok(mut child) => {
                let status = tokio::select! {
                    status = child.wait() => status,
                    () = told(&mut end) => return end_agent(child).await,
                };
                if began.elapsed() > WELL {
                    pause = AGAIN_FIRST;
                }
                let is_taken =
                    |status: &ExitStatus| status.code() == Some(Kind::Conflict.exit().into());
                has_place |= !status.as_ref().is_ok_and(is_taken);
                if !has_place && first.elapsed() > AGENT_END {
                    let state = paths.agent_state.display();
                    let message = format!(
                        "another agent works with {state}; end it first, or set agent.state_dir"
                    );
                    // Where nobody hears it, all ends anyway.
                    drop(give_up.send(Error::new(Kind::Conflict, message)).await);
                    return;
                }
                let status = status.map_or_else(|error| error.to_string(), describe);
                tracing::error!("the agent ended ({status}); starting it again in {pause:?}");
            }
            Err(error) => {
                tracing::error!("cannot start the agent: {error}; trying again in {pause:?}");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = told(&mut end) => return,
        }
        pause = (pause * 2).min(AGAIN_LAST);
    }
}

async fn told(end: &mut Receiver<bool>) {
    // Where nobody can tell any more, it is over as well.
    drop(end.wait_for(|end| *end).await);
}

/// What the agent is told of what this process was told.
fn child_arguments(server: &Server) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["agent".into(), "start".into()];
    if let Some(root) = &server.root {
        arguments.extend(["--root".into(), root.clone().into_os_string()]);
    }
    if let Some(file) = &server.globals.file {
        arguments.extend(["--osapi-file".into(), file.clone().into_os_string()]);
    }
    if server.globals.debug {
        arguments.push("--debug".into());
    }
    arguments
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}

fn start_agent(arguments: &[OsString], paths: &Paths) -> std::io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("osapi")
        .args(arguments)
        .env(PARENT, std::process::id().to_string())
        .env("OSAPI_AGENT_SOCKET", &paths.agent_socket)
        .env("OSAPI_AGENT_STATE_DIR", &paths.agent_state)
        .stdin(Stdio::null());
    for variable in [
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
    ] {
        command.env_remove(variable);
    }
    command.spawn()
}

async fn end_agent(mut child: Child) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().unwrap_or_default()));
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, Signal::TERM)
    {
        tracing::warn!(%error, "cannot end the agent");
    }
    if tokio::time::timeout(AGENT_END, child.wait()).await.is_err() {
        tracing::warn!(
            "the agent did not end in time and is killed; its journal has what it was at"
        );
        drop(child.kill().await);
    }
}

/// Says that clients may come, and to a person how.
fn greet(paths: &Paths) {
    let socket = paths.socket.display();
    tracing::info!("listening at {socket}");
    if !is_listened_to() {
        let program = std::env::args().next().unwrap_or_else(|| "osapi".to_owned());
        let is_found = paths.is_usual();
        let place = if is_found { String::new() } else { format!(" --url unix://{socket}") };
        tracing::info!("try `{program} os get{place}` in a second terminal");
        tracing::info!("or `curl --unix-socket {socket} http://localhost/api/node/_any/os`");
    }
    notify(&[NotifyState::Ready]);
}

/// What a running controller is, as far as a new configuration may change it.
struct Running<'a> {
    with_agent: bool,
    paths: &'a Paths,
    tls: Option<&'a tls::Server>,
}

/// Takes over what may change while the process runs, and names what may not.
async fn reload(
    old: &Config,
    new: &Config,
    running: &Running<'_>,
    volume: &telemetry::Volume,
    api: &Api,
) {
    volume.set(new.debug);
    if let Some((tls, files)) = running.tls.zip(new.controller.tls.files()) {
        match tls.reload(&files) {
            Ok(()) => tracing::info!("new connections see the certificate that there is now"),
            Err(error) if tls.fault().is_some() => {
                tracing::error!("nobody is served over the network: {error}");
            }
            Err(error) => tracing::error!("the old certificate stays: {error}"),
        }
    }
    let access = access(new, running.paths, running.with_agent);
    let allowed = match access {
        Ok(access) => api.allow(access).await,
        Err(error) => Err(error),
    };
    if let Err(error) = allowed {
        tracing::error!("the old groups, roles and key stay: {error}");
        return;
    }
    let mut rest = new.clone();
    rest.debug = old.debug;
    let controller = &mut rest.controller;
    controller.groups.clone_from(&old.controller.groups);
    controller.metrics.group.clone_from(&old.controller.metrics.group);
    controller.api.security.clone_from(&old.controller.api.security);
    if running.tls.is_some() && new.controller.tls.files().is_some() {
        controller.tls.clone_from(&old.controller.tls);
    }
    if rest == *old {
        tracing::info!("took the log level, groups and roles from the configuration");
    } else {
        tracing::warn!(
            "took the log level, groups and roles from the configuration; the rest of what \
             changed needs a restart"
        );
    }
}
