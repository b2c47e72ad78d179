//! How far agents are believed, and what is kept of what they say.

use std::sync::Arc;

use serde_json::json;

use crate::broker;
use crate::controller::Controller;
use crate::controller::hosts::{Host, Moment, Offer, State, key};
use crate::controller::notes::TASKS_REFUSED;
use crate::error::{Error, Kind, Result};
use crate::job::{Report, encode};
use crate::link::{About, Told};
use crate::signing::{PublicKey, fingerprint};
use crate::store::{Expect, Revision, Step, audit};

/// The longest host name, and label, in bytes.
const NAME: usize = 255;
/// The longest key of an agent, in base64.
const KEY: usize = 64;
/// How many hosts may wait to be accepted.
const MOST_PENDING: usize = 1000;

impl Controller {
    /// Refuses what a host asks or tells that is not believed. It keeps what it has to tell until it
    /// is.
    pub(in crate::controller) fn vouched(&self, machine_id: &str) -> Result<()> {
        if self.hosts().get(machine_id).is_some_and(|(host, _)| host.is_trusted()) {
            return Ok(());
        }
        let message = format!("the agent of {machine_id} is not accepted here");
        Err(Error::new(Kind::Unavailable, message))
    }

    /// The reports of `host`, each signed with its key where that is demanded; else none of them.
    pub(in crate::controller) fn verified(&self, host: &str, told: &[Told]) -> Result<Vec<Report>> {
        self.vouched(host)?;
        if self.trust.is_some() {
            let key = self.hosts().get(host).and_then(|(host, _)| PublicKey::parse(&host.signing));
            let is_good = |told: &Told| key.is_some_and(|key| told.is_signed(host, &key));
            let bad = told.iter().find(|told| !is_good(told));
            if let Some(Told { job, .. }) = bad {
                let message =
                    format!("what was told of job {job:?} is not signed with the key of {host}");
                return Err(Error::new(Kind::Denied, message));
            }
        }
        told.iter().map(Told::open).collect()
    }

    /// Makes a host known, or takes over what its agent says of it, as far as that is believed.
    pub(in crate::controller) async fn enrol(self: &Arc<Self>, about: &About) -> Result<()> {
        check(about)?;
        if self.trust.is_some() && !about.is_proven() {
            let message = "this controller believes signed words only; set agent.pki.enabled on \
                           the host and restart its agent";
            return Err(Error::new(Kind::Denied, message));
        }
        let is_believed = self.is_believed(about);
        if is_believed {
            self.note_set_back(about);
        }
        let known = self.hosts().get(&about.machine_id).cloned();
        if known.is_some() {
            self.note_refused(about);
        }
        let (before, mut host, expect) = match known {
            Some((host, revision)) => (Some(host.clone()), host, Expect::Revision(revision)),
            None => (None, self.newcomer(about)?, Expect::Absent),
        };
        self.listen_to(&mut host, about);
        if before.as_ref() == Some(&host) {
            return Ok(());
        }
        // The agent of this host itself is root's, who could fill the store without it.
        let may_change = {
            let (mut hosts, id) = (self.hosts(), &about.machine_id);
            let is_own = is_believed && host.is_trusted() && hosts.is_at_socket(id);
            before.is_none() || is_own || hosts.may_change(id, self.clock.uptime())
        };
        if !may_change {
            // It says so again in a minute.
            return Ok(());
        }
        let event = json!({
            "at": self.clock.wall(), "event": "host", "host": about.machine_id,
            "name": host.name, "labels": host.labels, "key": host.key, "state": host.state,
            "fingerprint": fingerprint(&host.signing),
            "offered_fingerprint": host.offered.as_ref().and_then(|it| fingerprint(&it.key)),
        });
        let step = Step::new()
            .put(key(&about.machine_id), encode(&host)?, expect)
            .note(audit::Note::Event(event))
            .owed();
        match self.commit(step).await {
            Ok(revision) => self.hosts().put(&about.machine_id, host, revision),
            // Somebody else was quicker; the next question tries again.
            Err(error) if error.kind() == Kind::Conflict => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether nobody but the agent that was accepted for this host can have said so, where one was.
    pub(in crate::controller) fn is_believed(&self, about: &About) -> bool {
        let is_its_key = |(host, _): &(Host, Revision)| match host.state {
            State::Accepted | State::Drained => host.signing == about.signing_key,
            State::Pending | State::Rejected => true,
        };
        self.trust.is_none()
            || about.is_proven() && self.hosts().get(&about.machine_id).is_none_or(is_its_key)
    }

    /// A host that nobody knows yet.
    fn newcomer(&self, about: &About) -> Result<Host> {
        let state = match &self.trust {
            Some(trust) if !trust.auto_accept => State::Pending,
            _ => State::Accepted,
        };
        let is_waiting = |(_, host): &(&str, &Host)| host.state == State::Pending;
        if state == State::Pending
            && self.hosts().known().filter(is_waiting).count() >= MOST_PENDING
        {
            let message = format!("{MOST_PENDING} hosts wait to be accepted already; try again");
            return Err(Error::new(Kind::Busy, message));
        }
        let at = self.clock.wall();
        let moment = Moment { at, event: "registered".to_owned(), by: "agent".to_owned() };
        Ok(Host {
            name: about.hostname.clone(),
            state,
            labels: about.labels.clone(),
            key: about.key.clone(),
            signing: match state {
                State::Pending => String::new(),
                _ => about.signing_key.clone(),
            },
            offered: None,
            first_seen: at,
            timeline: vec![moment],
        })
    }

    /// Takes over what is said of `host` by whoever has the key in `about`, or only that key.
    fn listen_to(&self, host: &mut Host, about: &About) {
        let (key, at) = (&about.signing_key, self.clock.wall());
        let is_own = *key == host.signing && !key.is_empty();
        match (&self.trust, host.state) {
            (_, State::Rejected) => return offer(host, key, at),
            (None, State::Pending) => {
                host.state = State::Accepted;
                host.remember(at, "accepted", "controller");
            }
            (None, _) => {}
            (Some(_), State::Pending) => offer(host, key, at),
            (Some(_), _) if is_own => {}
            (Some(_), _) => {
                let is_new = host.offered.as_ref().is_none_or(|known| known.key != *key);
                if is_new {
                    host.remember(at, "key changed", "agent");
                }
                return offer(host, key, at);
            }
        }
        if host.state != State::Pending {
            host.signing.clone_from(key);
            host.offered = None;
        }
        host.name.clone_from(&about.hostname);
        host.labels.clone_from(&about.labels);
        host.key.clone_from(&about.key);
    }

    /// Puts on record that an agent has refused tasks since it said so last.
    fn note_refused(self: &Arc<Self>, about: &About) {
        let count = self.hosts().newly_refused(about);
        if count > 0 {
            self.count(TASKS_REFUSED, &about.machine_id, count);
        }
    }

    /// Puts on record that the audit log is not what it was, where no other host has said so.
    fn note_set_back(&self, about: &About) {
        let Some(why) = &about.audit else { return };
        let is_news = {
            let hosts = self.hosts();
            let host = hosts.get(&about.machine_id);
            host.is_some_and(|(host, _)| host.is_trusted()) && hosts.set_back().next().is_none()
        };
        if is_news {
            let (at, host) = (self.clock.wall(), &about.machine_id);
            tracing::error!(OSAPI_HOST = host, "{why}");
            let event = json!({
                "at": at, "event": "audit_set_back", "host": host, "reason": why,
            });
            self.event(event);
        }
    }
}

fn offer(host: &mut Host, key: &str, at: u64) {
    if host.offered.as_ref().is_none_or(|known| known.key != key) {
        host.offered = Some(Offer { key: key.to_owned(), at });
    }
}

/// Why a host is given nothing that is not believed.
pub(in crate::controller) fn waiting(host: &Host) -> Error {
    let name = &host.name;
    let key = host.offered.as_ref().and_then(|it| fingerprint(&it.key)).unwrap_or_default();
    let why = match host.state {
        State::Rejected => "was rejected".to_owned(),
        State::Pending => "waits to be accepted".to_owned(),
        _ => {
            let before = fingerprint(&host.signing).unwrap_or_else(|| "none".to_owned());
            format!("comes with another key than was accepted, which was {before}")
        }
    };
    let message = format!(
        "{name} {why}; to accept it: osapi client agent accept --hostname {name} --fingerprint \
         {key}"
    );
    Error::new(Kind::Conflict, message)
}

fn check(about: &About) -> Result<()> {
    let refused = |what: &str| Err(Error::new(Kind::InvalidInput, format!("cannot enrol: {what}")));
    let is_text =
        |text: &str| !text.is_empty() && text.len() <= NAME && !text.chars().any(char::is_control);
    if !broker::is_name(&about.machine_id) {
        return refused("the machine id must be of up to 64 letters, digits, - and _");
    }
    if !is_text(&about.hostname) || about.hostname.contains(':') || about.hostname.starts_with('_')
    {
        return refused("the host name is empty, too long or not a name");
    }
    let fits = |(key, value): (&String, &String)| {
        key.len() <= NAME && broker::is_token(key) && is_text(value)
    };
    if about.key.len() > KEY || about.signing_key.len() > KEY {
        return refused("a key is too long");
    }
    if about.audit.as_ref().is_some_and(|why| why.len() > 1024) {
        return refused("what it says of the audit log is too long");
    }
    if about.labels.len() > 64 || !about.labels.iter().all(fits) {
        return refused("at most 64 labels, each a name and a short text");
    }
    Ok(())
}
