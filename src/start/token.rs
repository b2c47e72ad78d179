//! Makes and judges tokens, for whoever may read the signing key.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::{Paths, key_of, paths};
use crate::cli::{Given, Globals, Token, flat};
use crate::clock::{Clock, rfc3339};
use crate::config::{self, Config, Security};
use crate::error::{Error, Kind, Result};
use crate::permission::{self, Permission};
use crate::token::{Claims, Key, is_name};

/// No token is longer, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Does what `asked` asks for.
pub fn token(globals: &Globals, asked: &Token) -> Result<()> {
    let config = config::load(globals.file.as_deref(), std::env::vars())?.config;
    let security = &config.controller.api.security;
    let told = match asked {
        Token::Generate { subject, roles, permissions } => {
            check(security, subject, roles, permissions)?;
            let now = Clock::default().wall() / 1000;
            let claims = Claims::new(subject, roles.clone(), permissions.clone(), now);
            let signed = key(&config)?.sign(&claims)?;
            [vec![("token", json!(signed))], shown(&claims)].concat()
        }
        Token::Validate { token } => {
            let claims = key(&config)?.read(given(token)?.trim())?;
            let named = claims.permissions.as_deref().unwrap_or_default();
            let held = permission::held(&security.all_roles(), &claims.roles, named);
            let held: Vec<_> = held.into_iter().map(Permission::as_str).collect();
            let more = [
                ("effective_permissions", json!(held)),
                ("audience", json!(claims.aud)),
                ("issued", moment(claims.iat)),
            ];
            let mut told = shown(&claims);
            told.splice(3..3, more);
            told
        }
    };
    print(globals, told)
}

/// What was asked for has to be there: a typing error would make a token that is good for
/// nothing.
fn check(
    security: &Security,
    subject: &str,
    roles: &[String],
    permissions: &[String],
) -> Result<()> {
    let wrong = |message: String| Err(Error::new(Kind::InvalidInput, message));
    if !is_name(subject) {
        return wrong("--subject must be 1 to 255 characters without control ones".to_owned());
    }
    if roles.is_empty() {
        return wrong("--roles names no role".to_owned());
    }
    let known = security.all_roles();
    if let Some(role) = roles.iter().find(|role| !known.contains_key(*role)) {
        let known: Vec<_> = known.keys().map(String::as_str).collect();
        return wrong(format!("there is no role {role:?}; there are {}", known.join(", ")));
    }
    let known: BTreeSet<_> = Permission::ALL.iter().map(|known| known.as_str()).collect();
    if let Some(name) = permissions.iter().find(|name| !known.contains(name.as_str())) {
        let known: Vec<_> = known.into_iter().collect();
        return wrong(format!("there is no permission {name:?}; there are {}", known.join(", ")));
    }
    Ok(())
}

/// The signing key: the configured one, that of the own user's controller, or the system's.
fn key(config: &Config) -> Result<Key> {
    key_of(config, || {
        let own = Paths::of(config)?.controller_state;
        let system = Path::new(paths::SYSTEM_STATE).join("controller");
        let found = match Key::kept(&own)? {
            None if config.controller.state_dir.is_none() => Key::kept(&system)?,
            found => found,
        };
        found.ok_or_else(|| {
            let message = format!(
                "there is no signing key in {} yet; the controller makes it when it starts for the \
                 first time",
                own.display()
            );
            Error::new(Kind::NotFound, message)
        })
    })
}

fn given(token: &Given) -> Result<String> {
    if token.0 != "-" {
        return Ok(token.0.clone());
    }
    let mut text = String::new();
    let read = std::io::stdin().lock().take(LONGEST).read_to_string(&mut text);
    read.map_err(|error| {
        Error::new(Kind::InvalidInput, format!("cannot read the token from stdin: {error}"))
    })?;
    Ok(text)
}

fn shown(claims: &Claims) -> Vec<(&'static str, Value)> {
    vec![
        ("subject", json!(claims.sub)),
        ("roles", json!(claims.roles)),
        ("permissions", json!(claims.permissions.as_deref().unwrap_or_default())),
        ("expires", moment(Some(claims.exp))),
    ]
}

fn moment(seconds: Option<u64>) -> Value {
    // Nobody outlives the year 9999, which is as far as it can be written.
    seconds.map_or(Value::Null, |at| json!(rfc3339(at.min(253_402_300_799) * 1000)))
}

fn print(globals: &Globals, told: Vec<(&'static str, Value)>) -> Result<()> {
    let text = if globals.json {
        let document: Value =
            told.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        format!("{document:#}\n")
    } else {
        let lines = told.into_iter().map(|(name, value)| {
            let words = name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]);
            let words: Vec<_> = words.collect();
            format!("  {}: {}\n", words.join(" "), plain(&value))
        });
        format!("\n{}", lines.collect::<String>())
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Error::new(Kind::Unavailable, format!("cannot write to stdout: {error}")))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "—".to_owned(),
        Value::Array(names) if names.is_empty() => "—".to_owned(),
        Value::Array(names) => names.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::String(text) => flat(text),
        other => other.to_string(),
    }
}
