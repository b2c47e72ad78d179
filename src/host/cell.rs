//! What can be observed of a host and assigned on it.
//!
//! Everything OSAPI changes is a [`Cell`] that holds one [`Value`] at a time. A change is then an
//! assignment, and its inverse is the assignment of the former value, whatever the cell.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use self::account::AccountOf;
use self::group::GroupOf;
use self::hostname::Hostname;
use self::node::Node;
use self::package::Package;
use self::password::PasswordOf;
use self::sysctl::Sysctl;
use self::unit::{Active, Enabled};
use super::hands::{Due, Hands};
use super::plan::Set;
use super::reach::Reach;
use super::view::View;
use crate::error::{Error, Kind, Result};

mod account;
mod group;
mod hostname;
mod node;
mod package;
mod password;
mod sysctl;
mod unit;

pub use account::{Account, account, no_account};
pub use group::{Group, group, no_group};
pub use hostname::hostname;
pub use node::{directory, file, link, nothing, object};
pub use package::package;
pub use password::no_password;
pub use sysctl::sysctl;
pub use unit::{active, enabled};
pub(super) use unit::{stays, told};

/// A place on the host that holds one value at a time.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// What is at a path: a file, a link, a directory or nothing.
    Node(String),
    /// A parameter of the running kernel.
    Sysctl(String),
    /// Whether the unit of this name runs.
    Active(String),
    /// Whether the unit of this name starts by itself.
    Enabled(String),
    /// A Debian package, with its architecture where that is not the host's own.
    Package(String),
    /// What the host is called.
    Hostname,
    /// A user, by name, with everything but the password.
    Account(String),
    /// A group, by name.
    Group(String),
    /// The password of a user, as its hash.
    Password(String),
}

/// One kind of cell: how it is read, assigned and shown. Each has a file of its own.
pub(super) trait CellKind: fmt::Display {
    fn observe(&self, host: &View) -> Result<Value>;

    /// The bytes behind a value that only names them. They may be too many for memory.
    fn open<'a>(&self, _: &'a View) -> Result<Box<dyn Read + 'a>> {
        Err(Error::new(Kind::Internal, format!("{self} has no content")))
    }

    /// Refuses an assignment that this agent could not make, or that would lose what a value
    /// does not hold. Asked while planning, so that a dry run is refused as well.
    fn check(&self, _: &View, _from: &Value, _to: &Value) -> Result<()> {
        Ok(())
    }

    /// Who may assign `to`: this agent itself, or a unit with the rights of a class. It says how
    /// far [`assign`](Self::assign) reaches with all that it starts.
    fn reach(&self, _to: &Value) -> Reach {
        Reach::Here
    }

    /// Makes the cell hold `to`; `now` is what it holds, and `blobs` has small contents.
    fn assign(&self, hands: &Hands, now: &Value, to: &Value, blobs: &Blobs) -> Result<()>;

    /// The same for a kind that has to know more: what the plan found, and which way it goes.
    fn take(&self, hands: &Hands, due: &Due, blobs: &Blobs) -> Result<()> {
        self.assign(hands, &due.now, &due.set.to, blobs)
    }

    /// What stays, as the host is now, where `from` is taken back to `to`: because it is others',
    /// or cannot be told from what is.
    fn stays(&self, _: &View, _from: &Value, _to: &Value) -> Option<String> {
        None
    }

    /// Removes what an interrupted assignment may have left beside the cell, which holds what it
    /// is to hold.
    fn sweep(&self, _: &Hands, _: &Set) -> Result<()> {
        Ok(())
    }

    /// Whether an interrupted assignment leaves either the former value or the new one.
    fn is_atomic(&self, _from: &Value, _to: &Value) -> bool {
        true
    }

    /// Whether the value outlives a reboot.
    fn is_persistent(&self) -> bool {
        true
    }

    /// Whether only a system that is up can assign it.
    fn needs_the_system(&self) -> bool {
        false
    }

    /// What would remain of an assignment after it was taken back.
    fn residue(&self, _from: &Value, _to: &Value) -> Option<String> {
        None
    }

    fn cannot_hold(&self, value: &Value) -> Error
    where
        Self: Sized,
    {
        Error::new(Kind::Internal, format!("{self} cannot hold {value:?}"))
    }
}

impl Cell {
    pub(super) fn kind(&self) -> Box<dyn CellKind + '_> {
        match self {
            Self::Node(path) => Box::new(Node(path)),
            Self::Sysctl(key) => Box::new(Sysctl(key)),
            Self::Active(unit) => Box::new(Active(unit)),
            Self::Enabled(unit) => Box::new(Enabled(unit)),
            Self::Package(name) => Box::new(Package(name)),
            Self::Hostname => Box::new(Hostname),
            Self::Account(name) => Box::new(AccountOf(name)),
            Self::Group(name) => Box::new(GroupOf(name)),
            Self::Password(user) => Box::new(PasswordOf(user)),
        }
    }

    /// Whether one command assigns this and `other`, if both are to be: or may, as the group of an
    /// account goes with it.
    pub(super) fn goes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Package(_), Self::Package(_)) => true,
            (Self::Account(user), Self::Group(group))
            | (Self::Group(group), Self::Account(user)) => user == group,
            _ => false,
        }
    }
}

/// Assigns cells that [go with](Cell::goes_with) each other.
pub(super) fn assign_all(hands: &Hands, dues: &[Due], blobs: &Blobs) -> Result<()> {
    if dues.iter().all(|due| matches!(due.set.cell, Cell::Package(_))) {
        return package::assign_all(hands, dues);
    }
    for Due { set, .. } in dues {
        // The one before may have taken it along.
        let now = hands.view.value(&set.cell)?;
        hands.assign(&Due { set, now }, blobs)?;
    }
    Ok(())
}

/// Refuses what no [`check`](CellKind::check) of a single cell would, because taking cells back
/// together would change others as well.
pub(super) fn check_all<'a>(host: &View, sets: impl Iterator<Item = &'a Set>) -> Result<()> {
    package::check_all(host, sets)
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)
    }
}

/// What a cell can hold. Small and public values are spelt out, others are named by digest.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    Absent,
    File {
        content: Digest,
        mode: Mode,
        owner: String,
    },
    Link(String),
    Directory {
        mode: Mode,
        owner: String,
    },
    Text(String),
    Package {
        version: String,
        /// Whether it is there only because others need it.
        auto: bool,
        /// What dpkg calls it where it is not properly installed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<String>,
    },
    Hostname {
        /// The name for every boot, if there is one.
        #[serde(rename = "static")]
        fixed: Option<String>,
        /// The name in the running kernel.
        kernel: String,
    },
    Account(Account),
    Group {
        gid: u32,
    },
    /// The hash of a password, by digest, and whether it is locked.
    Password {
        hash: Digest,
        locked: bool,
    },
}

impl Value {
    /// The name of the bytes that belong to this value.
    pub(super) fn content(&self) -> Option<&Digest> {
        match self {
            Self::File { content, .. } | Self::Password { hash: content, .. } => Some(content),
            _ => None,
        }
    }

    pub(super) fn is_private(&self) -> bool {
        match self {
            Self::File { mode: Mode(bits), .. } => bits & 0o004 == 0,
            Self::Password { .. } => true,
            _ => false,
        }
    }

    /// The value without what could be used to guess private content.
    pub fn public(&self) -> Self {
        let mut value = self.clone();
        if self.is_private()
            && let Self::File { content, .. } | Self::Password { hash: content, .. } = &mut value
        {
            *content = Digest::default();
        }
        value
    }
}

/// Permissions, in octal.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(into = "String", try_from = "String")]
#[schemars(extend("pattern" = "^[0-7]{3,4}$"))]
pub struct Mode(pub(super) u32);

impl Mode {
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self(0o644)
    }
}

impl From<Mode> for String {
    fn from(Mode(bits): Mode) -> Self {
        format!("{bits:04o}")
    }
}

impl TryFrom<String> for Mode {
    type Error = &'static str;

    fn try_from(text: String) -> std::result::Result<Self, Self::Error> {
        let is_octal = matches!(text.len(), 3 | 4) && text.bytes().all(|b| b.is_ascii_digit());
        let bits = u32::from_str_radix(&text, 8).ok().filter(|_| is_octal);
        bits.map(Self).ok_or("mode: not three or four octal digits")
    }
}

/// SHA-256 in hexadecimal.
#[derive(
    Clone, Debug, Default, Deserialize, Eq, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub struct Digest(String);

impl Digest {
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(hex(sha2::Sha256::digest(bytes)))
    }

    /// Of what `value` is in JSON, which is nowhere in memory as a whole: it may be secret.
    pub(super) fn of_json(value: &impl Serialize) -> Result<Self> {
        struct Into(sha2::Sha256);
        impl std::io::Write for Into {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.update(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut hash = Into(sha2::Sha256::new());
        serde_json::to_writer(&mut hash, value).map_err(|error| {
            Error::new(Kind::Internal, "cannot encode what is to be named").because(error)
        })?;
        Ok(Self(hex(hash.0.finalize())))
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 64 && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn of_all(mut reader: impl Read) -> std::io::Result<Self> {
        let mut hash = sha2::Sha256::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok(Self(hex(hash.finalize()))),
                n => hash.update(&buffer[..n]),
            }
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Bytes that values name.
pub type Blobs = BTreeMap<Digest, Arc<[u8]>>;

/// A value for a cell, together with the bytes that it names.
#[derive(Clone)]
pub struct State {
    pub(super) cell: Cell,
    pub(super) value: Value,
    pub(super) bytes: Option<Arc<[u8]>>,
}

impl State {
    fn plain(cell: Cell, value: Value) -> Self {
        Self { cell, value, bytes: None }
    }

    pub fn cell(&self) -> &Cell {
        &self.cell
    }

    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Permissions in octal. Files have 0644 and directories 0755 unless this says otherwise.
    pub fn mode(mut self, bits: u32) -> Self {
        if let Value::File { mode, .. } | Value::Directory { mode, .. } = &mut self.value {
            *mode = Mode(bits);
        }
        self
    }

    /// Owners go by name, because a plan may give files to an account that it creates. An empty
    /// user is the agent's own account; an empty group that of the user.
    pub fn owner(mut self, user: &str, group: &str) -> Self {
        if let Value::File { owner, .. } | Value::Directory { owner, .. } = &mut self.value {
            *owner = format!("{user}:{group}");
        }
        self
    }
}
