//! An account's password, as the hash that the host keeps, and whether it is locked.
//!
//! The field of `/etc/shadow` is the hash, after a `!` where the password is locked. What every
//! new account has, a `!` alone, counts as no password.

use std::fmt;
use std::io::{Cursor, Read};

use zeroize::Zeroizing;

use super::{Blobs, Cell, CellKind, Digest, State, Value};
use crate::error::{Error, Kind, Result};
use crate::host::hands::{self, Hands};
use crate::host::reach::Reach;
use crate::host::view::{View, failed};
use crate::types::Secret;

const SHADOW: &str = "/etc/shadow";
const LOCK: &str = "!";
/// What no password opens.
const NONE: &str = "*";
/// Of a field that is read, in bytes. The longest hash has a quarter of it.
const LONGEST: u64 = 2048;

/// No password, as a new account has none.
pub fn no_password(user: impl Into<String>) -> State {
    State::plain(Cell::Password(user.into()), Value::Absent)
}

/// The account's name.
pub(super) struct PasswordOf<'a>(pub(super) &'a str);

impl PasswordOf<'_> {
    /// The hash, and whether it is locked; None where there is no password.
    fn field(&self, host: &View) -> Result<Option<(String, bool)>> {
        let fields = host.entry(SHADOW, 0, self.0)?;
        let field = fields.and_then(|fields| fields.into_iter().nth(1));
        Ok(field.filter(|field| field != LOCK).map(|field| match field.strip_prefix(LOCK) {
            Some(hash) => (hash.to_owned(), true),
            None => (field, false),
        }))
    }
}

impl CellKind for PasswordOf<'_> {
    fn observe(&self, host: &View) -> Result<Value> {
        let field = self.field(host)?;
        Ok(field.map_or(Value::Absent, |(hash, locked)| Value::Password {
            hash: Digest::of(hash),
            locked,
        }))
    }

    fn open<'a>(&self, host: &'a View) -> Result<Box<dyn Read + 'a>> {
        let hash = self.field(host)?.map(|(hash, _)| hash).unwrap_or_default();
        Ok(Box::new(Cursor::new(hash)))
    }

    fn assign(&self, hands: &Hands, _: &Value, to: &Value, blobs: &Blobs) -> Result<()> {
        let mut line = Zeroizing::new(format!("{}:", self.0));
        match to {
            Value::Absent if hands.view.entry(SHADOW, 0, self.0)?.is_none() => return Ok(()),
            Value::Absent => line.push_str(LOCK),
            Value::Password { hash, locked } => {
                if *locked {
                    line.push_str(LOCK);
                }
                let read = match blobs.get(hash) {
                    Some(bytes) => (&bytes[..]).read_to_string(&mut line),
                    None => hands.journal.content(hash)?.read_to_string(&mut line),
                };
                read.map_err(|error| hands::failed("read", "a password's hash", "", error))?;
            }
            _ => return Err(self.cannot_hold(to)),
        }
        if line.contains(['\n', '\0']) || line.matches(':').count() > 1 {
            return Err(Error::new(Kind::Internal, format!("{self} cannot be such a text")));
        }
        line.push('\n');
        // In no argument list: those are for everybody to read.
        hands.run("chpasswd", &["--encrypted"], line.as_bytes())
    }

    fn reach(&self, _: &Value) -> Reach {
        Reach::Accounts
    }

    fn residue(&self, from: &Value, to: &Value) -> Option<String> {
        let is_set = matches!((from, to), (Value::Password { .. }, Value::Password { .. }));
        is_set
            .then(|| format!("the password of {} counts as changed on the day of the undo", self.0))
    }
}

impl fmt::Display for PasswordOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "password of {}", self.0)
    }
}

impl View {
    /// The password of `user` as it is when `secret` opens it: the hash that is there if it fits,
    /// else a new one. A password that is locked stays so.
    ///
    /// The same secret gives the same hash for as long as the host has the one it has now, so that
    /// a plan keeps its name.
    pub fn password(&self, user: &str, secret: &Secret) -> Result<State> {
        let cell = Cell::Password(user.to_owned());
        let (mut hash, mut locked) = (Zeroizing::new(String::new()), false);
        if let Value::Password { locked: is_locked, .. } = self.value(&cell)? {
            let read = self.open(&cell)?.take(LONGEST).read_to_string(&mut hash);
            read.map_err(|error| failed(SHADOW, error))?;
            // With nothing to open, there was nothing to lock.
            locked = is_locked && *hash != NONE;
        }
        let broken = |error| {
            let message = format!("cannot hash a password: {error}");
            Error::new(Kind::HostFailed, message).because(error)
        };
        if !crate::sys::opens(secret.expose(), &hash).map_err(broken)? {
            let salt = self.keyed(&["password", user, &hash])?;
            hash = Zeroizing::new(crate::sys::hash(secret.expose(), &salt).map_err(broken)?);
        }
        let value = Value::Password { hash: Digest::of(hash.as_str()), locked };
        Ok(State { cell, value, bytes: Some(hash.as_bytes().into()) })
    }

    /// The password of `user`, locked or not; None where there is none to log in with anyway.
    pub fn password_locked(&self, user: &str, locked: bool) -> Result<Option<State>> {
        let cell = Cell::Password(user.to_owned());
        let Value::Password { hash, .. } = self.value(&cell)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = self.open(&cell)?.take(LONGEST).read_to_end(&mut bytes);
        read.map_err(|error| failed(SHADOW, error))?;
        Ok(match (bytes.as_slice(), locked) {
            (b"*", _) => None,
            // Nothing, and locked, is no password.
            (b"", true) => Some(no_password(user)),
            _ => {
                let value = Value::Password { hash, locked };
                Some(State { cell, value, bytes: Some(bytes.into()) })
            }
        })
    }

    /// Whether nobody can log in to `user` with a password: it is locked, or there is none. None
    /// where the agent may not know.
    pub fn is_locked(&self, user: &str) -> Option<bool> {
        let cell = Cell::Password(user.to_owned());
        match self.value(&cell).ok()? {
            Value::Password { locked: true, .. } | Value::Absent => Some(true),
            Value::Password { hash, .. } => Some(hash == Digest::of(NONE)),
            _ => None,
        }
    }
}
