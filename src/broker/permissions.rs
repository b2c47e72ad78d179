//! What each role may do at a broker that gives its users rights of their own.
//!
//! The table below is all of it: what `osapi nats permissions` prints is read off it, and so is the
//! list in docs/fleet.md.

use std::fmt::Write as _;

use nkeys::{KeyPair, KeyPairType};

use super::{NAME, NAMESPACE, is_controller, is_machine_id, is_namespace};
use crate::error::{Error, Kind, Result};

/// What a user of the broker is there for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Keeps the store, answers hosts and wakes them.
    Controller,
    /// Asks for one host, and hears what is for that.
    Host,
    /// Makes the streams, once.
    Installer,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Publish,
    Subscribe,
}

use Role::{Controller, Host, Installer};
use Way::{Publish, Subscribe};

/// A subject that a role may use, and what for. Its namespace and who it is about stand in `<>`;
/// behind a blank is the queue group that alone may be subscribed to.
struct Right {
    role: Role,
    way: Way,
    subject: &'static str,
    what: &'static str,
}

const fn right(role: Role, way: Way, subject: &'static str, what: &'static str) -> Right {
    Right { role, way, subject, what }
}

/// Nothing may be done that is not in here, but for controllers: they may answer, once, whatever
/// reaches them with a place to answer to. Inboxes of others cannot be named by a pattern.
#[rustfmt::skip]
static RIGHTS: &[Right] = &[
    right(Controller, Publish, "<namespace>.kv.>", "records"),
    right(Controller, Publish, "<namespace>.audit.<name>.>", "its own part of the audit log"),
    right(Controller, Publish, "<namespace>.content.>", "contents of files"),
    right(Controller, Publish, "$JS.API.STREAM.INFO.<namespace>", "names of records, room"),
    right(Controller, Publish, "$JS.API.STREAM.INFO.<namespace>_files", "the same of files"),
    right(Controller, Publish, "$JS.API.DIRECT.GET.<namespace>", "reads"),
    right(Controller, Publish, "$JS.API.DIRECT.GET.<namespace>_files", "reads of files"),
    right(Controller, Publish, "$JS.API.CONSUMER.CREATE.<namespace>", "following the records"),
    right(Controller, Publish, "$JS.FC.<namespace>.>", "saying that it keeps up"),
    right(Controller, Publish, "$JS.FC.*.*.<namespace>.>", "the same, as servers may call it"),
    right(Controller, Publish, "$JS.API.STREAM.PURGE.<namespace>_files", "dropping contents"),
    right(Controller, Publish, "<namespace>.wake.*", "waking hosts"),
    right(Controller, Publish, "<namespace>.desk.*", "questions about jobs in another's memory"),
    right(Controller, Publish, "<namespace>.told", "what running jobs say"),
    right(Controller, Subscribe, "<namespace>.ask.* controllers", "what hosts ask, for one to answer"),
    right(Controller, Subscribe, "<namespace>.beat.*", "signs of life"),
    right(Controller, Subscribe, "<namespace>.desk.*", "questions about jobs in its memory"),
    right(Controller, Subscribe, "<namespace>.told", "what running jobs say"),
    right(Controller, Subscribe, "_INBOX_<namespace>.<name>.>", "answers"),
    right(Host, Publish, "<namespace>.ask.<name>", "what it asks"),
    right(Host, Publish, "<namespace>.beat.<name>", "its sign of life"),
    right(Host, Subscribe, "<namespace>.wake.<name>", "that there is work"),
    right(Host, Subscribe, "_INBOX_<namespace>.<name>.>", "answers"),
    right(Installer, Publish, "$JS.API.STREAM.CREATE.<namespace>", "making the stream of records"),
    right(Installer, Publish, "$JS.API.STREAM.CREATE.<namespace>_files", "and that of files"),
    right(Installer, Publish, "$JS.API.STREAM.INFO.<namespace>", "looking whether it is there"),
    right(Installer, Publish, "$JS.API.STREAM.INFO.<namespace>_files", "the same of files"),
    right(Installer, Subscribe, "_INBOX_<namespace>.<name>.>", "answers"),
];

impl Role {
    pub const ALL: [Self; 3] = [Controller, Host, Installer];

    pub const fn as_str(self) -> &'static str {
        match self {
            Controller => "controller",
            Host => "host",
            Installer => "installer",
        }
    }
}

/// What an installer is called at the broker.
pub const INSTALLER: &str = "installer";

/// Somebody who uses the broker.
#[derive(Clone, Debug)]
pub struct User {
    role: Role,
    namespace: String,
    /// A host goes by its machine id.
    name: String,
    nkey: Option<String>,
    /// Whether it may make the streams as well, as an installer may.
    installs: bool,
}

impl User {
    /// Fails where what is given would make other subjects of those in the table.
    pub fn new(role: Role, namespace: &str, name: &str, nkey: Option<&str>) -> Result<Self> {
        let wrong = |what: &str, value: &str, rule: &str| {
            let message = format!("{value:?} cannot be {what}: {rule}");
            Err(Error::new(Kind::InvalidInput, message))
        };
        if !is_namespace(namespace) {
            return wrong("a namespace", namespace, NAMESPACE);
        }
        if role == Host && !is_machine_id(name) {
            return wrong(
                "a machine id",
                name,
                "give the 32 hexadecimal digits of /etc/machine-id",
            );
        }
        if role != Host && !is_controller(name) {
            return wrong("a name", name, NAME);
        }
        let is_public = |key: &&str| {
            let pair = KeyPair::from_public_key(key).ok();
            pair.is_some_and(|pair| pair.key_pair_type() == KeyPairType::User)
        };
        if let Some(key) = nkey.filter(|key| !is_public(key)) {
            return wrong("an nkey", key, "name a user's public key, which begins with U");
        }
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Ok(Self { role, namespace, name, nkey: nkey.map(str::to_owned), installs: false })
    }

    /// The same, which may make the streams as well.
    pub fn installing(self) -> Self {
        Self { installs: true, ..self }
    }

    /// What the server may call it.
    pub fn account(&self) -> String {
        match self.role {
            Installer => format!("{}-installer", self.namespace),
            role => format!("{}-{}-{}", self.namespace, role.as_str(), self.name),
        }
    }

    pub const fn role(&self) -> Role {
        self.role
    }

    pub fn publish(&self) -> Vec<String> {
        self.subjects(Publish).map(|(subject, _)| subject).collect()
    }

    pub fn subscribe(&self) -> Vec<String> {
        self.subjects(Subscribe).map(|(subject, _)| subject).collect()
    }

    /// Whether it may answer whatever reaches it.
    pub fn answers(&self) -> bool {
        self.role == Controller
    }

    fn subjects(&self, way: Way) -> impl Iterator<Item = (String, &'static str)> {
        let own = rights(self.role, way);
        let is_new =
            move |right: &&Right| rights(self.role, way).all(|own| own.subject != right.subject);
        let more = rights(Installer, way).filter(move |_| self.installs).filter(is_new);
        own.chain(more).map(|right| {
            let subject = right.subject.replace("<namespace>", &self.namespace);
            (subject.replace("<name>", &self.name), right.what)
        })
    }

    /// The password is a variable, which the server does not start without.
    fn variable(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name: String = self.account().chars().map(plain).collect();
        format!("NATS_{name}_PASSWORD")
    }

    /// What goes among `users` of a server's configuration.
    pub fn entry(&self) -> String {
        let mut text = String::from("  {\n");
        // Writing to a String cannot fail.
        _ = match &self.nkey {
            Some(key) => writeln!(text, "    nkey: {key}"),
            None => writeln!(
                text,
                "    user: {:?}, password: ${}    # or nkey: U…",
                self.account(),
                self.variable()
            ),
        };
        text.push_str("    permissions: {\n");
        for (way, word) in [(Publish, "publish"), (Subscribe, "subscribe")] {
            _ = writeln!(text, "      {word}: {{ allow: [");
            for (subject, what) in self.subjects(way) {
                _ = writeln!(text, "        \"{subject}\"    # {what}");
            }
            text.push_str("      ] }\n");
        }
        if self.answers() {
            text.push_str("      allow_responses: true\n");
        }
        text + "    }\n  }\n"
    }
}

fn rights(role: Role, way: Way) -> impl Iterator<Item = &'static Right> {
    RIGHTS.iter().filter(move |right| right.role == role && right.way == way)
}

/// What goes into `authorization`, or an account, of a server's configuration.
pub fn configuration(users: &[User]) -> String {
    format!("users: [\n{}]\n", users.iter().map(User::entry).collect::<String>())
}

/// The list for the documents: Markdown.
pub fn table() -> String {
    let mut text = "| Role | May publish | May subscribe to |\n|---|---|---|\n".to_owned();
    for role in Role::ALL {
        let list = |way| {
            let subjects = rights(role, way).map(|right| match right.subject.split_once(' ') {
                Some((subject, queue)) => format!("`{subject}` (in the group `{queue}`)"),
                None => format!("`{}`", right.subject),
            });
            subjects.collect::<Vec<_>>().join(", ")
        };
        let answers = if role == Controller { ", and answers" } else { "" };
        let (publish, subscribe) = (list(Publish), list(Subscribe));
        _ = writeln!(text, "| {} | {publish}{answers} | {subscribe} |", role.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn whoever_is_named_so_that_it_would_be_more_is_refused() {
        for bad in ["", "*", ">", "a.b", "a b", "a\"b", "ä", &"x".repeat(65)] {
            for role in Role::ALL {
                let good = if role == Host { MACHINE } else { "one" };
                for (namespace, name) in [("osapi", bad), (bad, good)] {
                    let refused = User::new(role, namespace, name, None).unwrap_err();
                    assert_eq!(refused.kind(), Kind::InvalidInput, "{bad}");
                }
            }
        }
        let server = KeyPair::new_server().public_key();
        let seed = KeyPair::new_user().seed().unwrap();
        for bad in ["", "UAB", &server, &seed] {
            let refused = User::new(Host, "osapi", MACHINE, Some(bad)).unwrap_err();
            assert!(refused.to_string().contains("begins with U"), "{refused}");
        }
    }

    #[test]
    fn no_two_of_a_broker_share_an_inbox_or_a_stream() {
        for (role, namespace, name) in
            [(Controller, "a_files", "x"), (Host, "a_files", MACHINE), (Installer, "a_files", "x")]
        {
            assert!(User::new(role, namespace, name, None).is_err(), "{namespace}");
        }
        assert!(User::new(Controller, "a", MACHINE, None).is_err());
        assert!(User::new(Host, "a", "installer", None).is_err());
        let inbox = |namespace, name| User::new(Controller, namespace, name, None).unwrap();
        let inbox = |namespace, name| inbox(namespace, name).subscribe().pop().unwrap();
        assert_eq!(inbox("a", "b_c"), "_INBOX_a.b_c.>");
        assert_ne!(inbox("a", "b_c"), inbox("a_b", "c"));
    }

    #[test]
    fn nobody_but_a_controller_uses_what_concerns_more_than_one() {
        for right in RIGHTS.iter().filter(|right| right.role != Controller) {
            let is_own = right.subject.ends_with(".<name>") || right.subject.ends_with(".<name>.>");
            let makes_streams =
                right.role == Installer && right.subject.starts_with("$JS.API.STREAM");
            assert!(is_own || makes_streams, "{}", right.subject);
            assert!(!right.subject.contains('*'));
        }
        assert!(RIGHTS.iter().all(|right| right.subject.contains("<namespace>")));
    }
}
