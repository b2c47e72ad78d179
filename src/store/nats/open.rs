//! The streams: made where there are none, and otherwise used only as they have to be.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::broker::{Line, NO_JETSTREAM, Settings};
use crate::error::{Error, Kind, Result};
use crate::store::Bounds;

/// The first version of the server with atomic batches.
const LEAST: (u32, u32) = (2, 12);
/// How long a deletion can be heard of, in nanoseconds.
const MARKER: u64 = 3_600_000_000_000;

const NO_STREAM: u64 = 10_059;
const NAME_TAKEN: u64 = 10_058;

/// A stream as the store needs it.
pub(super) struct Needed {
    pub(super) name: String,
    config: Value,
    /// What an existing stream may have as it likes.
    free: &'static [&'static str],
}

/// Records and audit log.
pub(super) fn records(settings: &Settings, bounds: &Bounds) -> Needed {
    let name = settings.namespace.clone();
    let config = json!({
        "name": name,
        "subjects": [format!("{name}.kv.>"), format!("{name}.audit.>")],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_age": 0,
        "max_bytes": bounds.database,
        "num_replicas": settings.replicas,
        "allow_atomic": true,
        "allow_direct": true,
        "allow_msg_ttl": true,
        "subject_delete_marker_ttl": MARKER,
        "deny_delete": true,
        // The server insists, for the sake of its markers.
        "deny_purge": false,
    });
    Needed { name, config, free: &["name", "max_bytes"] }
}

/// Contents of files.
pub(super) fn contents(settings: &Settings, bounds: &Bounds) -> Needed {
    let name = format!("{}_files", settings.namespace);
    let config = json!({
        "name": name,
        "subjects": [format!("{}.content.>", settings.namespace)],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_msgs": -1,
        "max_age": 0,
        // The last chunk of each file and what names it take some more.
        "max_bytes": bounds.objects + bounds.objects / 8,
        "num_replicas": settings.replicas,
        "allow_direct": true,
        "allow_msg_ttl": true,
        "deny_delete": true,
        "deny_purge": false,
    });
    Needed { name, config, free: &["name", "max_bytes"] }
}

/// Fails unless the server at the other end is one that can keep the store.
pub(super) fn check_server(line: &Line) -> Result<()> {
    let info = line.client.server_info();
    let mut parts = info.version.split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    let version = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if version < LEAST {
        let message = format!(
            "the broker {} runs nats-server {}, and OSAPI needs {}.{} or later; update it",
            info.server_name, info.version, LEAST.0, LEAST.1
        );
        return Err(Error::new(Kind::Unavailable, message));
    }
    if !info.jetstream {
        let message = format!("the broker {} runs without JetStream; enable it", info.server_name);
        return Err(Error::new(Kind::Unavailable, message));
    }
    Ok(())
}

/// Makes the streams of a fleet, where they are not there yet, and names them. Takes no more rights
/// than that.
pub(super) async fn install(settings: &Settings, bounds: &Bounds) -> Result<Vec<String>> {
    settings.check()?;
    let line = Line::open(settings).await?;
    check_server(&line)?;
    let mut names = Vec::new();
    for needed in [records(settings, bounds), contents(settings, bounds)] {
        needed.ensure(&line).await?;
        names.push(needed.name);
    }
    Ok(names)
}

impl Needed {
    /// Makes the stream if there is none. One that is there has to be as needed; it is never
    /// changed. Returns what the server says of it.
    pub(super) async fn ensure(&self, line: &Line) -> Result<Value> {
        let found = line.api(&format!("STREAM.INFO.{}", self.name), &Value::Null).await?;
        let info = match found {
            Ok(info) => info,
            Err(refusal) if refusal.err_code == NO_STREAM => {
                let call = format!("STREAM.CREATE.{}", self.name);
                match line.api(&call, &self.config).await.map_err(|error| self.unmade(error))? {
                    Ok(info) => info,
                    // Another controller was faster.
                    Err(refusal) if refusal.err_code == NAME_TAKEN => {
                        let info = format!("STREAM.INFO.{}", self.name);
                        let again = line.api(&info, &Value::Null).await?;
                        again.map_err(|refusal| refusal.into_error(&self.name))?
                    }
                    Err(refusal) => {
                        let what = format!("cannot make the stream {}", self.name);
                        let message = format!(
                            "{what}: {}; look at replicas, at the limits of the account and at \
                             streams whose subjects begin alike",
                            refusal.description
                        );
                        return Err(Error::new(Kind::Unavailable, message));
                    }
                }
            }
            Err(refusal) if [10_039, 10_076].contains(&refusal.err_code) => {
                return Err(Error::new(Kind::Unavailable, NO_JETSTREAM));
            }
            Err(refusal) => return Err(refusal.into_error(&self.name)),
        };
        self.compare(&info["config"])?;
        Ok(info)
    }

    fn compare(&self, found: &Value) -> Result<()> {
        let differs = |(key, needed): (&String, &Value)| {
            let found = match (&found[key], needed) {
                // What is off is left out.
                (Value::Null, Value::Bool(false)) => return None,
                (found, _) => found,
            };
            let is_same = match (found.as_array(), needed.as_array()) {
                (Some(found), Some(needed)) => {
                    let texts = |list: &[Value]| {
                        list.iter().map(Value::to_string).collect::<BTreeSet<String>>()
                    };
                    texts(found) == texts(needed)
                }
                _ => found == needed,
            };
            let is_free = self.free.contains(&key.as_str());
            (!is_same && !is_free).then(|| format!("{key} is {found} and has to be {needed}"))
        };
        let needed = self.config.as_object();
        let differences: Vec<_> = needed.into_iter().flatten().filter_map(differs).collect();
        if differences.is_empty() {
            return Ok(());
        }
        let message = format!(
            "the stream {} is there with other settings, which are left alone: {}; name another \
             controller.nats.namespace, or have whoever owns it change it",
            self.name,
            differences.join(", ")
        );
        Err(Error::new(Kind::Conflict, message))
    }

    fn unmade(&self, error: Error) -> Error {
        if error.kind() != Kind::Denied {
            return error;
        }
        let message = format!(
            "there is no stream {}, and {error}; let `osapi nats install` make it, as a user with the rights of an \
             installer",
            self.name
        );
        Error::new(Kind::Denied, message).because(error)
    }
}
