//! Secrets on their way to a host: only the agent that they are for can read them.
//!
//! A parameter whose schema says `writeOnly` is a secret. Whoever takes a request takes its
//! secrets out before anything is recorded, and puts one box for each host beside the parameters,
//! sealed to the key of that host's agent. The agent puts them back, and only where its own table
//! says that there is a secret: otherwise whoever hands out tasks could have a box opened into a
//! parameter that is shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crypto_box::aead::OsRng;
use crypto_box::{PublicKey, SecretKey};
use ring::hmac;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Kind, Result};
use crate::op::Shape;

/// What stands in the place of a secret.
pub const HIDDEN: &str = "[hidden]";

/// Where the agent keeps its key, in its state directory.
const FILE: &str = "sealing-key";

/// The way to a secret within parameters; `*` stands for every element of a list.
pub type Way = Vec<String>;

/// The secrets of a request.
pub struct Secrets {
    purpose: Purpose,
    /// By JSON pointer.
    texts: Texts,
}

type Texts = BTreeMap<String, Text>;

/// What secrets were given for: a box is of no use for anything else.
#[derive(Clone, Deserialize, PartialEq, Serialize)]
struct Purpose {
    /// The operation that they are parameters of.
    op: String,
    /// SHA-256, in hexadecimal, of its other parameters: whose password it is, for instance.
    beside: String,
}

impl Purpose {
    /// `params` have [`HIDDEN`] in the place of each secret.
    fn of(op: &str, params: &Value) -> Self {
        let digest = Sha256::digest(params.to_string());
        let beside = digest.iter().fold(String::new(), |mut text, byte| {
            _ = write!(text, "{byte:02x}");
            text
        });
        Self { op: op.to_owned(), beside }
    }
}

/// What is in a box; `T` is what it borrows or has.
#[derive(Deserialize, Serialize)]
struct Boxed<P, T> {
    /// The machine id of the host that it is for: agents of cloned hosts have one key.
    host: String,
    purpose: P,
    texts: T,
}

/// Overwritten when nobody needs it any more.
#[derive(Deserialize, Serialize)]
#[serde(transparent)]
struct Text(String);

impl Drop for Text {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The ways to the secrets of the operation `op` of the table, read off its schema once.
pub fn ways(op: &'static str, shape: &dyn Shape) -> &'static [Way] {
    static KNOWN: Mutex<BTreeMap<&str, &[Way]>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    // The table lives as long as the process, and so does what is known of it.
    known.entry(op).or_insert_with(|| Box::leak(read(shape).into_boxed_slice()))
}

fn read(shape: &dyn Shape) -> Vec<Way> {
    let settings = SchemaSettings::draft2020_12();
    let settings = settings.with(|settings| settings.inline_subschemas = true);
    ways_in(&shape.params(&mut settings.into_generator()).into())
}

/// The ways to the secrets in a schema that has nothing left to look up elsewhere.
pub fn ways_in(schema: &Value) -> Vec<Way> {
    let mut found = Vec::new();
    find(schema, &mut Way::new(), &mut found);
    found
}

fn find(schema: &Value, way: &mut Way, found: &mut Vec<Way>) {
    if schema["writeOnly"] == true {
        found.push(way.clone());
        return;
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        way.push(name.clone());
        find(property, way, found);
        way.pop();
    }
    if schema["items"].is_object() {
        way.push("*".to_owned());
        find(&schema["items"], way, found);
        way.pop();
    }
    for choice in ["anyOf", "oneOf", "allOf"] {
        for schema in schema[choice].as_array().into_iter().flatten() {
            find(schema, way, found);
        }
    }
}

/// Calls `each` for whatever `ways` lead to, with its JSON pointer.
fn visit(value: &mut Value, ways: &[Way], each: &mut dyn FnMut(&str, &mut Value)) {
    for way in ways {
        follow(value, way, &mut String::new(), each);
    }
}

fn follow(
    value: &mut Value,
    way: &[String],
    pointer: &mut String,
    each: &mut dyn FnMut(&str, &mut Value),
) {
    let Some((first, rest)) = way.split_first() else { return each(pointer, value) };
    let length = pointer.len();
    let mut enter = |name: &str, value: &mut Value| {
        pointer.push('/');
        pointer.push_str(&escaped(name));
        follow(value, rest, pointer, each);
        pointer.truncate(length);
    };
    match value {
        Value::Array(items) if first == "*" => {
            items.iter_mut().enumerate().for_each(|(at, item)| enter(&at.to_string(), item));
        }
        Value::Object(fields) => {
            if let Some(field) = fields.get_mut(first) {
                enter(first, field);
            }
        }
        _ => {}
    }
}

/// Whether one of `ways` leads to what is at `pointer`, a JSON pointer.
pub fn leads_to(ways: &[Way], pointer: &str) -> bool {
    let names: Vec<_> = pointer.split('/').skip(1).map(unescaped).collect();
    let is_it = |way: &Way| {
        let mut steps = way.iter().zip(&names);
        way.len() == names.len() && steps.all(|(step, name)| step == "*" || step == name)
    };
    ways.iter().any(is_it)
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn unescaped(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}

/// Puts [`HIDDEN`] in the place of every secret.
pub fn hide(params: &mut Value, ways: &[Way]) {
    visit(params, ways, &mut |_, value| *value = HIDDEN.into());
}

/// Takes the secrets of `op` out of `params`; None where there are none.
pub fn take(op: &str, params: &mut Value, ways: &[Way]) -> Option<Secrets> {
    let mut texts = Texts::new();
    visit(params, ways, &mut |pointer, value| {
        if let Value::String(text) = std::mem::replace(value, HIDDEN.into()) {
            texts.insert(pointer.to_owned(), Text(text));
        }
    });
    (!texts.is_empty()).then(|| Secrets { purpose: Purpose::of(op, params), texts })
}

impl Secrets {
    /// Closes them in a box, in base64, that only who has the secret half of `key` can open, and
    /// opens only as `host`, by its machine id.
    pub fn seal(&self, key: &str, host: &str) -> Result<String> {
        let unusable = || Error::new(Kind::Internal, "cannot seal a secret to this host's key");
        let key = STANDARD.decode(key).map_err(|error| unusable().because(error))?;
        let key = PublicKey::from_slice(&key).map_err(|error| unusable().because(error))?;
        let Self { purpose, texts } = self;
        let content = Boxed { host: host.to_owned(), purpose, texts };
        let plain = Zeroizing::new(serde_json::to_vec(&content).map_err(|_| unusable())?);
        let sealed = key.seal(&mut OsRng, &plain).map_err(|_| unusable())?;
        Ok(STANDARD.encode(sealed))
    }
}

/// The secret half of an agent's key.
pub struct OwnKey(SecretKey);

impl OwnKey {
    /// The key that is kept in `state`; one is made at the first start.
    pub fn of(state: &Path) -> Result<Self> {
        random_key(state, FILE).map(|key| Self(SecretKey::from(key)))
    }

    /// The public half, in base64.
    pub fn public(&self) -> String {
        STANDARD.encode(self.0.public_key().as_bytes())
    }

    /// Puts the secrets in `sealed` back into `params` of `op`, which has them at `ways`, where
    /// that is what they were given for and the host with the machine id `host` whom.
    ///
    /// Every place of a secret must get its own from the box: what comes in the open was seen by
    /// others, and what is left over is not for this operation.
    pub fn open(
        &self,
        sealed: &str,
        host: &str,
        op: &str,
        ways: &[Way],
        params: &mut Value,
    ) -> Result<()> {
        let unreadable = || {
            let message = "cannot open a secret of this job; was it sealed to an earlier key of \
                           this host? Ask again with the secret";
            Error::new(Kind::Conflict, message)
        };
        let sealed = STANDARD.decode(sealed).map_err(|_| unreadable())?;
        let plain = self.0.unseal(&sealed).map(Zeroizing::new).map_err(|_| unreadable())?;
        let found: Boxed<Purpose, Texts> =
            serde_json::from_slice(&plain).map_err(|_| unreadable())?;
        let mut texts = found.texts;
        let mut is_other = found.host != host || found.purpose != Purpose::of(op, params);
        visit(params, ways, &mut |pointer, value| match texts.remove(pointer) {
            Some(mut text) if !is_other => *value = std::mem::take(&mut text.0).into(),
            _ => is_other = true,
        });
        if is_other || !texts.is_empty() {
            wipe(params, ways);
            let message = "a secret of this job belongs elsewhere; ask again with the secret";
            return Err(Error::new(Kind::Denied, message));
        }
        Ok(())
    }
}

/// Whether `params` have anything where there is a secret.
pub fn has_any(params: &Value, ways: &[Way]) -> bool {
    fn leads(value: &Value, way: &[String]) -> bool {
        let Some((first, rest)) = way.split_first() else { return true };
        match value {
            Value::Array(items) if first == "*" => items.iter().any(|item| leads(item, rest)),
            Value::Object(fields) => fields.get(first).is_some_and(|field| leads(field, rest)),
            _ => false,
        }
    }
    ways.iter().any(|way| leads(params, way))
}

/// Overwrites the secrets in `params`.
pub fn wipe(params: &mut Value, ways: &[Way]) {
    visit(params, ways, &mut |_, value| {
        if let Value::String(text) = value {
            text.zeroize();
        }
    });
}

/// The 32 bytes that are kept under `name` in `state`, for its owner alone; random ones are made
/// the first time.
pub fn random_key(state: &Path, name: &str) -> Result<[u8; 32]> {
    let path = state.join(name);
    let failed = |error: std::io::Error| {
        let message = format!("cannot keep a key in {}: {error}", path.display());
        Error::new(Kind::Unavailable, message).because(error)
    };
    match std::fs::read(&path) {
        Ok(bytes) => bytes.try_into().map_err(|_| {
            let path = path.display();
            let message = format!("{path} is no key; remove it, and a new one is made");
            Error::new(Kind::Unavailable, message)
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = SecretKey::generate(&mut OsRng).to_bytes();
            crate::own_file::replace(&path, &key, 0o600).map_err(failed)?;
            Ok(key)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The key called `name` of whoever has `secret`, the same wherever that is.
pub fn derived_key(secret: &[u8], name: &str) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut derived = [0; 32];
    derived.copy_from_slice(hmac::sign(&key, name.as_bytes()).as_ref());
    derived
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "spoils a key")]

    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn ways() -> Vec<Way> {
        ways_in(&json!({ "properties": {
            "name": { "type": "string" },
            "password": { "anyOf": [{ "type": "string", "writeOnly": true }, { "type": "null" }] },
            "users": { "items": { "properties": { "key/x": { "writeOnly": true } } } },
        }}))
    }

    fn given() -> Value {
        json!({ "name": "ada", "password": "p", "users": [{ "key/x": "a" }, { "n": 1 }] })
    }

    #[test]
    fn what_was_sealed_comes_back_to_its_place_and_nowhere_else() {
        let state = tempfile::tempdir().unwrap();
        let key = OwnKey::of(state.path()).unwrap();
        let mut params = given();
        let secrets = take("op", &mut params, &ways()).unwrap();
        assert_eq!(params["password"], HIDDEN);
        assert_eq!(params["users"][0]["key/x"], HIDDEN);
        let sealed = secrets.seal(&key.public(), "h").unwrap();
        assert_ne!(sealed, secrets.seal(&key.public(), "h").unwrap(), "no two boxes are alike");

        // A new process has the same key, and nobody else reads it.
        let mode = std::fs::metadata(state.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = OwnKey::of(state.path()).unwrap();
        let mut opened = params.clone();
        key.open(&sealed, "h", "op", &ways(), &mut opened).unwrap();
        assert_eq!(opened, given());

        let refused_on = |host: &str, op: &str, ways: &[Way], params: &Value| {
            let mut params = params.clone();
            let kind = key.open(&sealed, host, op, ways, &mut params).unwrap_err().kind();
            let has_leaked = params.to_string().contains("\"p\"");
            assert!(!has_leaked, "{params}");
            kind
        };
        let refused = |op: &str, ways: &[Way], params: &Value| refused_on("h", op, ways, params);
        assert_eq!(refused_on("other", "op", &ways(), &params), Kind::Denied, "a clone's");
        assert_eq!(refused("other", &ways(), &params), Kind::Denied);
        let mut of_another = params.clone();
        of_another["name"] = "root".into();
        assert_eq!(refused("op", &ways(), &of_another), Kind::Denied, "another account's");
        assert_eq!(refused("op", &[], &params), Kind::Denied, "no secret goes there");
        assert_eq!(refused("op", &ways(), &json!({ "password": "x" })), Kind::Denied);
        let other = OwnKey::of(tempfile::tempdir().unwrap().path()).unwrap();
        let error = other.open(&sealed, "h", "op", &ways(), &mut params).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
    }

    #[test]
    fn secrets_are_hidden_wherever_they_are() {
        let mut params = given();
        hide(&mut params, &ways());
        let hidden = json!({ "name": "ada", "password": HIDDEN, "users": [{ "key/x": HIDDEN }, { "n": 1 }] });
        assert_eq!(params, hidden);
        assert!(has_any(&params, &ways()) && !has_any(&json!({ "name": "ada" }), &ways()));
        assert!(take("op", &mut json!({ "name": "ada" }), &ways()).is_none());
        for pointer in ["/password", "/users/0/key~1x", "/users/17/key~1x"] {
            assert!(leads_to(&ways(), pointer), "{pointer}");
        }
        for pointer in ["", "/", "/name", "/users/0", "/users/0/key", "/password/x"] {
            assert!(!leads_to(&ways(), pointer), "{pointer}");
        }
    }

    #[test]
    fn a_key_is_made_once() {
        let state = tempfile::tempdir().unwrap();
        let key = random_key(state.path(), "k").unwrap();
        assert_eq!(random_key(state.path(), "k").unwrap(), key);
        assert_ne!(random_key(state.path(), "l").unwrap(), key);
        std::fs::write(state.path().join("k"), "short").unwrap();
        assert!(random_key(state.path(), "k").is_err());
    }

    #[test]
    fn a_key_that_is_derived_is_the_same_for_whoever_has_the_secret() {
        let key = derived_key(b"secret", "k");
        assert_eq!(derived_key(b"secret", "k"), key);
        assert_ne!(derived_key(b"secret", "l"), key);
        assert_ne!(derived_key(b"other", "k"), key);
    }
}
