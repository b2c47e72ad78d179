//! The agent as a process: by itself, or as the child of `osapi start`.

#![expect(clippy::disallowed_methods, reason = "its parent says who it is in the environment")]

use std::time::Duration;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use sd_notify::NotifyState;

use super::signals::{Health, Reloading, Signals, Wish, notify, runtime, tell};
use super::{Paths, agent_setup, own_uid, uid};
use crate::agent::Agent;
use crate::cli::Server;
use crate::error::{Error, Kind, Result};
use crate::link::{Link, SocketLink};
use crate::telemetry;

/// The process that runs this one as its child, by number.
pub(super) const PARENT: &str = "OSAPI_PARENT";
/// How long what was begun may take to come to its end.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long what was cut off then may take to be reported.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) fn run(server: &Server) -> Result<()> {
    let is_child = follow_parent()?;
    if is_child {
        // It was started by a link called `exe`, which is what lists of processes would show.
        drop(std::fs::write("/proc/self/comm", "osapi"));
    }
    let loaded = super::load(server)?;
    let volume = telemetry::start("osapi-agent", loaded.config.debug);
    // Its parent has listed them.
    if !is_child {
        super::list_without_effect(server, &loaded);
    }
    let config = &loaded.config;
    let paths = Paths::of(config)?;
    let controller = match config.agent.controller_user.as_deref().filter(|_| !is_child) {
        Some(user) => uid(user)?,
        None => own_uid(),
    };

    // Made first, so that no signal finds a process that does not listen yet.
    let runtime = runtime()?;
    let _inside = runtime.enter();
    let mut signals = Signals::new()?;

    let setup = agent_setup(server, config, &paths)?;
    setup.executor.claim()?;
    let machine = setup.machine_id.clone();
    let socket = paths.agent_socket.clone();
    let agent = Agent::start(setup, move || SocketLink::new(&socket, controller))?;
    tracing::info!(
        "the agent works for host {machine}, asking at {}",
        paths.agent_socket.display()
    );
    notify(&[NotifyState::Ready]);

    runtime.block_on(async {
        let telling = tell(|| health(&agent, &paths));
        tokio::pin!(telling);
        loop {
            let wish = tokio::select! {
                wish = signals.next() => wish,
                () = &mut telling => continue,
            };
            if wish == Wish::Stop {
                return;
            }
            let _reloading = Reloading::begin();
            match super::load(server) {
                Ok(new) => {
                    volume.set(new.config.debug);
                    tracing::info!("took the log level from the configuration; the rest of the agent's needs a restart");
                }
                Err(error) => tracing::error!("the old configuration stays: {error}"),
            }
        }
    });
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping: what was begun comes to its end");
    agent.stop(PATIENCE, LAST_WORDS);
    Ok(())
}

/// How the agent is; its own threads work, so that this one turns whatever becomes of them.
fn health<L: Link + 'static>(agent: &Agent<L>, paths: &Paths) -> Health {
    let work = match agent.held() {
        0 => "Waits for work".to_owned(),
        1 => "1 job in hand".to_owned(),
        jobs => format!("{jobs} jobs in hand"),
    };
    let stuck = agent.stuck().map(|who| format!("nobody asks for {who} any more"));
    Health { status: format!("{work}; asks at {}", paths.agent_socket.display()), stuck }
}

/// Ends with the process that runs this one as its child; false where there is none.
fn follow_parent() -> Result<bool> {
    let Ok(parent) = std::env::var(PARENT) else { return Ok(false) };
    let cannot =
        |what: &str| Error::new(Kind::Unavailable, format!("cannot follow the parent: {what}"));
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| cannot(&error.to_string()))?;
    // It may have died before.
    let now = getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    if now.as_deref() == Some(&parent) { Ok(true) } else { Err(cannot("it is gone")) }
}
