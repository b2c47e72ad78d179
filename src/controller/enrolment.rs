//! Which agents are believed: how hosts become known, are accepted and are rejected.
//!
//! Without keys of its own (`controller.pki.enabled`) a controller takes every agent that gets as
//! far as to it, as the kernel vouches for that. With them a host is given nothing until somebody
//! has accepted the key that its agent signs with; what another key says is then not believed.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::agent::{Done, Named};
use super::bus::Why;
use super::hosts::{Host, Offer, State, key};
use super::notes::entry;
use super::{Call, Controller, Here, Local};
use crate::clock::rfc3339;
use crate::error::{Error, Kind, Result};
use crate::job::encode;
use crate::op::{Domain, Method, Nothing, Op, Rows};
use crate::permission::Permission;
use crate::signing::{FINGERPRINT, SigningKey, fingerprint};
use crate::store::{Expect, Revision, Step, audit};

mod belief;

pub(super) use belief::waiting;

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
        } else {
            controller.believe_now(&machine_id).await;
        }
        controller.lanes().wake(&machine_id);
        Ok(done)
    }
}

type Found = (String, Host, Revision);

impl Controller {
    /// Takes over what the agent of a host said of itself while nobody believed it.
    async fn believe_now(self: &Arc<Self>, machine_id: &str) {
        let about = self.hosts().presence(machine_id).map(|known| known.about.clone());
        // Over a broker nothing is kept of what was not believed: this may be what another key said
        // before, which would come as a change of the key that was accepted just now.
        let Some(about) = about.filter(|about| self.is_believed(about)) else {
            return self.call(&[machine_id.to_owned()], Why::Who);
        };
        if let Err(error) = self.enrol(&about).await {
            tracing::debug!(%error, machine_id, "it has to say again who it is");
        }
    }

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
}
