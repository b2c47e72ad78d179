//! The relay as a process.

use sd_notify::NotifyState;

use super::answer::answer_agents;
use super::listen::{inherited, listen};
use super::signals::{Health, Reloading, Signals, Wish, notify, runtime, tell};
use super::{Paths, own_uid, uid};
use crate::cli::Server;
use crate::error::{Error, Kind, Result};
use crate::relay::Relay;
use crate::telemetry;

pub(super) fn run(server: &Server) -> Result<()> {
    let loaded = super::load(server)?;
    let volume = telemetry::start("osapi-relay", loaded.config.debug);
    super::list_without_effect(server, &loaded);
    let config = loaded.config;
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let settings = config.agent.nats.settings(&name).ok_or_else(|| {
        let message = "there is no broker to relay to; set agent.nats.url, or have a controller on \
                       this host";
        Error::new(Kind::InvalidInput, message)
    })?;
    let paths = Paths::of(&config)?;
    let agent_uid = match config.controller.agent_user.as_deref() {
        Some(user) => uid(user)?,
        None => own_uid(),
    };
    runtime()?.block_on(async {
        let mut signals = Signals::new()?;
        let mut passed = inherited()?;
        let socket = listen(&paths.agent_socket, &mut passed.sockets)?;
        for (path, _) in passed.sockets {
            tracing::warn!("the inherited socket {} is none of ours, and not used", path.display());
        }
        let place = settings.servers.join(", ");
        let relay = std::sync::Arc::new(Relay::start(settings)?);
        let desk = {
            let relay = relay.clone();
            move |_| relay.desk()
        };
        let answering = tokio::spawn(answer_agents(Some(socket), agent_uid, desk));
        tracing::info!(
            "the agent that asks at {} is answered from {place}",
            paths.agent_socket.display()
        );
        notify(&[NotifyState::Ready]);
        tokio::spawn({
            let relay = relay.clone();
            tell(move || Health { status: relay.line(), stuck: None })
        });
        while signals.next().await != Wish::Stop {
            let _reloading = Reloading::begin();
            match super::load(server) {
                Ok(new) => {
                    volume.set(new.config.debug);
                    tracing::info!(
                        "took the log level from the configuration; the rest of the relay's needs \
                         a restart"
                    );
                }
                Err(error) => tracing::error!("the old configuration stays: {error}"),
            }
        }
        notify(&[NotifyState::Stopping]);
        answering.abort();
        relay.stop().await;
        tracing::info!("stopped");
        Ok(())
    })
}
