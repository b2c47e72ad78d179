//! Which agents are believed: how hosts become known, are accepted and are rejected.
//!
//! Without keys of its own (`controller.pki.enabled`) a controller takes every agent that gets as
//! far as to it, as the kernel vouches for that. With them a host is given nothing until somebody
//! has accepted the key that its agent signs with; what another key says is then not believed.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::agent::{Done, Named};
use super::hosts::{Host, Moment, Offer, State, key};
use super::notes::{TASKS_REFUSED, entry};
use super::{Call, Controller, Here, Local};
use crate::broker;
use crate::clock::rfc3339;
use crate::error::{Error, Kind, Result};
use crate::job::{Report, encode};
use crate::link::{About, Told};
use crate::op::{Domain, Method, Nothing, Op, Rows};
use crate::permission::Permission;
use crate::signing::{FINGERPRINT, PublicKey, SigningKey, fingerprint};
use crate::store::{Expect, Revision, Step, audit};

const NAME: usize = 255;
/// The longest key of an agent, in base64.
const KEY: usize = 64;
/// How many hosts may wait to be accepted.
const MOST_PENDING: usize = 1000;

/// What a controller needs that demands and makes signatures.
pub struct Trust {
    pub key: SigningKey,
    /// Whether hosts that nobody knew before are accepted by themselves.
    pub auto_accept: bool,
}

pub static DOMAIN: Domain<Local> = Domain {
    name: "enrollment",
    about: "Agents that wait to be accepted",
    ops: &[
        Op {
            id: "agent.pending",
            about: "List the agents that wait to be accepted",
            path: "/agent/pending",
            permission: Some(Permission::AgentRead),
            columns: &[
                ("MACHINE ID", "/machine_id"),
                ("HOSTNAME", "/hostname"),
                ("FINGERPRINT", "/fingerprint"),
                ("REQUESTED", "/requested_at"),
            ],
            rows: Rows::Each("agents"),
            run: &Here(|call, _: Nothing| Box::pin(async move { pending(&call) })),
            ..Op::HERE
        },
        Op {
            id: "agent.accept",
            about: "Accept the key of an agent, so that its host is given work",
            method: Method::Post,
            path: "/agent/{hostname}/accept",
            permission: Some(Permission::AgentWrite),
            command: "agent accept",
            in_query: &["fingerprint"],
            args: &["hostname"],
            run: &Here(|call, params| Box::pin(accept(call, params))),
            ..Op::HERE
        },
        Op {
            id: "agent.reject",
            about: "Reject an agent that waits, or revoke one that was accepted",
            method: Method::Post,
            path: "/agent/{hostname}/reject",
            permission: Some(Permission::AgentWrite),
            command: "agent reject",
            args: &["hostname"],
            run: &Here(|call, params| Box::pin(reject(call, params))),
            ..Op::HERE
        },
    ],
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Accept {
    /// A host name or a machine id, 1 to 255 characters.
    #[schemars(length(min = 1, max = 255))]
    pub hostname: String,
    /// The whole fingerprint of the agent's key, as `osapi agent key fingerprint` shows it on that
    /// host. Needed where several agents of that name wait, where the host's key has changed, and
    /// where it was rejected.
    #[serde(default)]
    #[schemars(length(min = 1, max = 255))]
    pub fingerprint: Option<String>,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Waiting {
    pub agents: Vec<Candidate>,
    pub total: usize,
}

#[derive(Debug, JsonSchema, Serialize)]
pub struct Candidate {
    pub machine_id: String,
    pub hostname: String,
    /// Of the key that waits to be accepted.
    pub fingerprint: String,
    #[schemars(extend("format" = "date-time"))]
    pub requested_at: String,
    /// Of the key that was accepted for this host before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_fingerprint: Option<String>,
}

fn pending(call: &Call) -> Result<Waiting> {
    let hosts = call.controller.hosts();
    let candidate = |(machine_id, host): (&str, &Host)| {
        let offer = host.offered.as_ref().filter(|_| host.state != State::Rejected)?;
        Some(Candidate {
            machine_id: machine_id.to_owned(),
            hostname: host.name.clone(),
            fingerprint: fingerprint(&offer.key).unwrap_or_default(),
            requested_at: rfc3339(offer.at),
            accepted_fingerprint: fingerprint(&host.signing),
        })
    };
    let agents: Vec<_> = hosts.known().filter_map(candidate).collect();
    let total = agents.len();
    Ok(Waiting { agents, total })
}

async fn accept(call: Call, Accept { hostname, fingerprint }: Accept) -> Result<Done> {
    let found = call.controller.candidate(&hostname, fingerprint.as_deref())?;
    let message = format!("agent {} is accepted", found.1.name);
    let verdict = Verdict {
        event: "accepted",
        decide: |host, _| {
            if let Some(offer) = host.offered.take() {
                host.signing = offer.key;
            }
            if matches!(host.state, State::Pending | State::Rejected) {
                host.state = State::Accepted;
            }
        },
        // Another key than the one that was looked at is not accepted with it.
        holds: |before, now| before.state == now.state && before.offered == now.offered,
    };
    call.judge(found, verdict, Done { message }).await
}

async fn reject(call: Call, Named { hostname }: Named) -> Result<Done> {
    let found = call.controller.only(&hostname)?;
    let (_, host, _) = &found;
    if host.state == State::Rejected {
        let message = format!("{} is rejected already", host.name);
        return Err(Error::new(Kind::Conflict, message));
    }
    let event = if host.state == State::Pending { "rejected" } else { "revoked" };
    let message = format!("agent {} is {event}", host.name);
    let verdict = Verdict {
        event,
        decide: |host, at| {
            host.state = State::Rejected;
            let key = std::mem::take(&mut host.signing);
            host.offered.get_or_insert(Offer { key, at });
        },
        holds: |before, now| before.state == now.state,
    };
    call.judge(found, verdict, Done { message }).await
}

/// What is decided about a host.
struct Verdict {
    event: &'static str,
    /// At that time, in milliseconds since 1970.
    decide: fn(&mut Host, u64),
    /// Whether it still holds for what the record has become since it was looked at.
    holds: fn(before: &Host, now: &Host) -> bool,
}

impl Call {
    /// Stores what was decided about a host, with the intent on record.
    async fn judge(self, found: Found, verdict: Verdict, done: Done) -> Result<Done> {
        let (machine_id, mut before, mut revision) = found;
        let controller = self.controller.clone();
        let now = controller.clock.wall();
        let ms = now.saturating_sub(self.trail.at);
        let entry = entry(&self.trail, &self.caller, Some(200), Some(ms));
        let step = self.once(Step::new().note(audit::Note::Entry(entry)), &done)?;
        loop {
            let mut host = before.clone();
            (verdict.decide)(&mut host, now);
            host.remember(now, verdict.event, &self.caller.name);
            let expect = Expect::Revision(revision);
            let step = step.clone().put(key(&machine_id), encode(&host)?, expect);
            let error = match controller.commit(step).await {
                Ok(revision) => {
                    controller.hosts().put(&machine_id, host, revision);
                    break;
                }
                Err(error) if error.kind() == Kind::Conflict => error,
                Err(error) => return Err(error),
            };
            // Others write it as well: the host itself, with a new name, and other controllers.
            let found = controller.reread(&machine_id).await?;
            if found.1 == revision || !(verdict.holds)(&before, &found.0) {
                return Err(error);
            }
            (before, revision) = found;
        }
        if controller.vouched(&machine_id).is_err() {
            controller.lose_all(&machine_id);
        }
        let about = controller.hosts().presence(&machine_id).map(|known| known.about.clone());
        // What it said of itself while nobody believed it.
        if let Some(about) = about
            && let Err(error) = controller.enrol(&about).await
        {
            tracing::debug!(%error, machine_id, "it has to say again who it is");
        }
        controller.lanes().wake(&machine_id);
        Ok(done)
    }
}

type Found = (String, Host, Revision);

impl Controller {
    /// Whether signatures are made and demanded.
    pub(super) fn signing_key(&self) -> Option<&SigningKey> {
        self.trust.as_ref().map(|trust| &trust.key)
    }

    /// The hosts that `name` may stand for: that with the machine id, else all that are called so.
    fn named(&self, name: &str) -> Vec<Found> {
        let hosts = self.hosts();
        let found = |id: &str| hosts.get(id).map(|(host, at)| (id.to_owned(), host.clone(), *at));
        if let Some(one) = found(name) {
            return vec![one];
        }
        hosts
            .known()
            .filter(|(_, host)| host.name == name)
            .filter_map(|(id, _)| found(id))
            .collect()
    }

    /// The one host that `name` stands for.
    fn only(&self, name: &str) -> Result<Found> {
        let mut found = self.named(name);
        match found.pop() {
            None => Err(Error::new(
                Kind::NotFound,
                format!("no agent {name:?}; see: osapi client agent list"),
            )),
            Some(one) if found.is_empty() => Ok(one),
            Some(one) => {
                found.push(one);
                let ids: Vec<_> = found.iter().map(|(id, ..)| id.as_str()).collect();
                let message = format!(
                    "several hosts are called {name:?}; give the machine id of one: {}",
                    ids.join(", ")
                );
                Err(Error::new(Kind::Conflict, message))
            }
        }
    }

    /// The host called `name` whose agent waits to be accepted, with the key of that fingerprint
    /// where one is given.
    fn candidate(&self, name: &str, given: Option<&str>) -> Result<Found> {
        let named = self.named(name);
        let is_known = !named.is_empty();
        let key_of = |host: &Host| host.offered.as_ref().and_then(|it| fingerprint(&it.key));
        let mut waiting: Vec<_> =
            named.into_iter().filter(|(_, host, _)| host.offered.is_some()).collect();
        let Some(given) = given else {
            return match waiting.as_slice() {
                [(_, host, _)] if host.state == State::Pending => Ok(waiting.remove(0)),
                [] if is_known => {
                    Err(Error::new(Kind::Conflict, format!("{name} is accepted already")))
                }
                [] => Err(Error::new(
                    Kind::NotFound,
                    format!("no agent {name:?}; see: osapi client agent list --pending"),
                )),
                several => {
                    let why = match several {
                        [(_, host, _)] if host.state == State::Rejected => "was rejected",
                        [_] => "comes with another key than was accepted",
                        _ => "is the name of several agents that wait",
                    };
                    let keys: Vec<_> =
                        several.iter().filter_map(|(_, host, _)| key_of(host)).collect();
                    let message = format!(
                        "{name} {why}; give the fingerprint of its key, once you have compared it \
                         on the host itself: {}",
                        keys.join(", ")
                    );
                    Err(Error::new(Kind::Conflict, message))
                }
            };
        };
        let digits = given.strip_prefix(FINGERPRINT).unwrap_or_default();
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = "a fingerprint is SHA256: and 64 hexadecimal digits; give all of it";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        waiting
            .retain(|(_, host, _)| key_of(host).is_some_and(|key| key.eq_ignore_ascii_case(given)));
        match waiting.as_slice() {
            [_] => Ok(waiting.remove(0)),
            [] => Err(Error::new(
                Kind::NotFound,
                format!(
                    "no agent {name:?} waits with the key {given}; see: osapi client agent list \
                     --pending"
                ),
            )),
            several => {
                let ids: Vec<_> = several.iter().map(|(id, ..)| id.as_str()).collect();
                let message = format!(
                    "several hosts called {name:?} have that key; give the machine id of one: {}",
                    ids.join(", ")
                );
                Err(Error::new(Kind::Conflict, message))
            }
        }
    }

    /// Refuses what a host asks or tells that is not believed. It keeps what it has to tell until it
    /// is.
    pub(super) fn vouched(&self, machine_id: &str) -> Result<()> {
        if self.hosts().get(machine_id).is_some_and(|(host, _)| host.is_trusted()) {
            return Ok(());
        }
        let message = format!("the agent of {machine_id} is not accepted here");
        Err(Error::new(Kind::Unavailable, message))
    }

    /// The reports of `host`, each signed with its key where that is demanded; else none of them.
    pub(super) fn verified(&self, host: &str, told: &[Told]) -> Result<Vec<Report>> {
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
    pub(super) async fn enrol(self: &Arc<Self>, about: &About) -> Result<()> {
        check(about)?;
        if self.trust.is_some() && !about.is_proven() {
            let message = "this controller believes signed words only; set agent.pki.enabled on \
                           the host";
            return Err(Error::new(Kind::Denied, message));
        }
        if self.is_believed(about) {
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
        if before.is_some() && !self.hosts().may_change(&about.machine_id, self.clock.uptime()) {
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
    pub(super) fn is_believed(&self, about: &About) -> bool {
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
pub(super) fn waiting(host: &Host) -> Error {
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
