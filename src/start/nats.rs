//! What the broker needs before controllers and hosts come to it.

use serde_json::json;

use super::join::join;
use super::{bounds, hostname, print, say, signals};
use crate::broker::Settings;
use crate::broker::permissions::{self, INSTALLER, Role, User};
use crate::cli::{Globals, Nats};
use crate::config::{self, Config};
use crate::error::{Error, Kind, Result};
use crate::store::nats::install;

/// Does what `asked` asks for.
pub fn nats(globals: &Globals, asked: &Nats) -> Result<()> {
    let load = || config::load(globals.file.as_deref(), std::env::vars());
    match asked {
        Nats::Join(asked) => join(globals, asked),
        Nats::Install => make_streams(globals, &load()?.config),
        Nats::Permissions { role, namespace, name, hosts, nkey } => {
            let config = load()?.config;
            let namespace = namespace.as_ref().unwrap_or(&config.controller.nats.namespace);
            let own = config.controller.nats.name_on(&hostname());
            let names = match role {
                Role::Controller => vec![name.clone().unwrap_or(own)],
                Role::Host => hosts.clone(),
                Role::Installer => vec![INSTALLER.to_owned()],
            };
            if nkey.is_some() && names.len() > 1 {
                let message = "one nkey is one user's; ask for each host by itself";
                return Err(Error::new(Kind::InvalidInput, message));
            }
            let user = |name: &String| User::new(*role, namespace, name, nkey.as_deref());
            let users = names.iter().map(user).collect::<Result<Vec<_>>>()?;
            if globals.json { say(&document(&users)) } else { print(&text(&users)) }
        }
    }
}

fn text(users: &[User]) -> String {
    let role = users.first().map_or("", |user| user.role().as_str());
    format!(
        "# What the role {role} may do, and nothing else. Put it into `authorization` of nats-server's\n\
         # configuration; with accounts, into `users` of the one that has JetStream.\n{}",
        permissions::configuration(users)
    )
}

fn document(users: &[User]) -> serde_json::Value {
    let users = users.iter().map(|user| {
        json!({
            "name": user.account(),
            "role": user.role().as_str(),
            "permissions": {
                "publish": { "allow": user.publish() },
                "subscribe": { "allow": user.subscribe() },
                "allow_responses": user.answers(),
            },
        })
    });
    json!({ "users": users.collect::<Vec<_>>() })
}

fn make_streams(globals: &Globals, config: &Config) -> Result<()> {
    let settings = config.controller.nats.settings(&hostname()).ok_or_else(|| {
        let message = "controller.nats.url is not set, so that there is no broker to prepare";
        Error::new(Kind::InvalidInput, message)
    })?;
    let settings = Settings { name: INSTALLER.to_owned(), ..settings };
    let streams = signals::runtime()?.block_on(install(settings, &bounds(config)))?;
    if globals.json {
        return say(&json!({ "streams": streams }));
    }
    print(&format!("The streams are there: {}\n", streams.join(", ")))
}
