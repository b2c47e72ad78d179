//! Which hosts a target names, and which of them is chosen where any will do.
//!
//! Names and labels may change and need not be unique, so a target is resolved once, when its job
//! is made, to the machine ids that are named then.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::{Host, Hosts, State};
use crate::error::{Error, Kind, Problem, Result};

/// Every host.
pub const ALL: &str = "_all";
/// Any one host.
pub const ANY: &str = "_any";
/// The one host there is, for whoever does not say which is meant.
pub const ONLY: &str = "_only";
/// Where the refusal points that asks which host is meant: into the path, since a body may have a
/// field of that name.
pub const WHICH: &str = "/{hostname}";
/// How many hosts of one name a refusal lists.
const LISTED: usize = 8;

/// Which host was chosen when, so that many choices spread.
#[derive(Default)]
pub(super) struct Turns {
    last: u64,
    of: HashMap<String, u64>,
}

impl Turns {
    fn take(&mut self, machine_id: &str) {
        self.last += 1;
        self.of.insert(machine_id.to_owned(), self.last);
    }

    pub(super) fn forget(&mut self, machine_id: &str) {
        self.of.remove(machine_id);
    }
}

impl Hosts {
    /// The host that a machine id or a name stands for. A name that several hosts have stands for
    /// none of them; those whose agents are not believed count only where no other has it.
    pub(in crate::controller) fn find(&self, name: &str) -> Result<Option<&str>> {
        if let Some((machine_id, _)) = self.known.get_key_value(name) {
            return Ok(Some(machine_id));
        }
        let called = self.known().filter(|(_, host)| host.name == name);
        let is_trusted = called.clone().any(|(_, host)| host.is_trusted());
        let counts = |(_, host): &(&str, &Host)| host.is_trusted() || !is_trusted;
        let named: Vec<&str> = called.filter(counts).map(|found| found.0).collect();
        match named[..] {
            [] => Ok(None),
            [machine_id] => Ok(Some(machine_id)),
            [..] => {
                let more = named.len().saturating_sub(LISTED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let listed = named[..named.len().min(LISTED)].join(", ");
                let message = format!(
                    "{} hosts are called {name:?}; give the machine id of the one that is meant: \
                     {listed}{more}",
                    named.len()
                );
                Err(Error::new(Kind::Conflict, message))
            }
        }
    }

    /// The machine ids that `target` names and that may be given something new, by name. `left`
    /// says how much a host has still to do.
    pub(super) fn resolve(
        &mut self,
        target: &str,
        uptime: u64,
        left: impl Fn(&str) -> usize,
    ) -> Result<Vec<String>> {
        if self.known.is_empty() {
            return Err(Error::new(
                Kind::Unavailable,
                "no agent has registered yet; start one, or wait a moment and try again",
            ));
        }
        let mut named = self.named(target)?;
        named.sort_by(|(a, one), (b, other)| (&one.name, a).cmp(&(&other.name, b)));
        let open = named.into_iter().filter(|(_, host)| host.objection().is_none());
        let open: Vec<String> = open.map(|(machine_id, _)| machine_id.to_owned()).collect();
        if open.is_empty() {
            let message = format!(
                "every host that {target:?} names is drained or waits to be accepted; undrain or \
                 accept one first (see: osapi client agent list)"
            );
            return Err(Error::new(Kind::Conflict, message));
        }
        if target == ANY {
            return Ok(self.choose(open, uptime, left).into_iter().collect());
        }
        Ok(open)
    }

    /// Another host than `but`, for what any may do: one that is there, where one is.
    pub(in crate::controller) fn another(
        &mut self,
        but: &str,
        uptime: u64,
        left: impl Fn(&str) -> usize,
    ) -> Option<String> {
        let others = self.known().filter(|(id, host)| {
            *id != but && host.objection().is_none() && self.is_there(id, uptime)
        });
        let others = others.map(|(machine_id, _)| machine_id.to_owned()).collect();
        self.choose(others, uptime, left)
    }

    /// The one host there is. Those that nobody has accepted do not count beside one that
    /// somebody has: anybody who reaches a controller can have himself waited for.
    fn only(&self) -> Result<Option<(&str, &Host)>> {
        let is_decided = |host: &Host| matches!(host.state, State::Accepted | State::Drained);
        let own: Vec<_> = self.known().filter(|(_, host)| is_decided(host)).collect();
        let (machine_id, host) = match own[..] {
            [] => match self.known().next() {
                Some(waiting) => waiting,
                None => return Ok(None),
            },
            [only] => only,
            [..] => {
                let message = format!(
                    "there are {} hosts; say with --target, or where the path has the host, which \
                     is meant: a host name, a machine id, a label as key:value, _any or _all",
                    own.len()
                );
                let pointer = WHICH.to_owned();
                let problem = Problem { pointer, message: message.clone() };
                return Err(Error::new(Kind::InvalidInput, message).with_problems(vec![problem]));
            }
        };
        host.objection().map_or(Ok(Some((machine_id, host))), Err)
    }

    /// Every host that `target` names, whatever its state; never none.
    fn named(&self, target: &str) -> Result<Vec<(&str, &Host)>> {
        let named: Vec<(&str, &Host)> = match target {
            ALL | ANY => self.known().collect(),
            ONLY => self.only()?.into_iter().collect(),
            label if label.contains(':') => {
                let (key, value) = parse_label(label)?;
                self.known().filter(|(_, host)| has_label(host, key, value)).collect()
            }
            name => {
                let found = self.find(name)?.and_then(|id| Some((id, &self.known.get(id)?.0)));
                if let Some(objection) = found.and_then(|(_, host)| host.objection()) {
                    return Err(objection);
                }
                found.into_iter().collect()
            }
        };
        if named.is_empty() {
            let message = format!(
                "no agent answers to {target:?}; give _any, _all, a host name, a machine id or a \
                 label as key:value (see: osapi client agent list)"
            );
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(named)
    }

    /// One of `among`: there rather than away, without a condition rather than under pressure,
    /// with little left to do rather than much, and otherwise each in its turn. Of those that are
    /// away it is the one that was heard of last, which is the likeliest to be back.
    fn choose(
        &mut self,
        among: Vec<String>,
        uptime: u64,
        left: impl Fn(&str) -> usize,
    ) -> Option<String> {
        let rank = |machine_id: &String| {
            let presence = self.present.get(machine_id);
            let is_there = presence.is_some_and(|presence| presence.is_there(uptime));
            let heard = presence.map_or(0, |presence| presence.heard);
            let conditions = presence.map(|presence| presence.about.conditions.iter());
            let has_pressure = conditions.into_iter().flatten().any(|condition| condition.status);
            let turn = self.turns.of.get(machine_id).copied().unwrap_or_default();
            let silent = Reverse(if is_there { u64::MAX } else { heard });
            (silent, has_pressure, left(machine_id), turn)
        };
        let chosen = among.into_iter().min_by_key(rank)?;
        self.turns.take(&chosen);
        Some(chosen)
    }
}

/// Key and value of a label as a target has it.
fn parse_label(label: &str) -> Result<(&str, &str)> {
    let is_word = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    let parsed = label.split_once(':');
    parsed.filter(|(key, value)| is_word(key) && value.split('.').all(is_word)).ok_or_else(|| {
        let message = format!(
            "cannot read {label:?} as a label; write key:value, such as group:web or \
             group:web.dev, of letters, digits, _ and -"
        );
        Error::new(Kind::InvalidInput, message)
    })
}

/// Whether the host has that label with `value`, or with one that goes on after it at a dot.
fn has_label(host: &Host, key: &str, value: &str) -> bool {
    host.labels.get(key).is_some_and(|label| {
        label == value || label.strip_prefix(value).is_some_and(|rest| rest.starts_with('.'))
    })
}

pub(super) fn drained(name: &str) -> Error {
    Error::new(
        Kind::Conflict,
        format!("{name} is drained and is given nothing new; undrain it first"),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::State;
    use super::*;
    use crate::link::{About, Condition};

    fn known(hosts: &mut Hosts, id: &str, name: &str, state: State) {
        let labels = BTreeMap::from([("group".to_owned(), "web.dev.us-east".to_owned())]);
        let host = Host { labels, ..Host::new(name, state) };
        hosts.put(id, host, 1);
    }

    fn hosts() -> Hosts {
        let mut hosts = Hosts::default();
        known(&mut hosts, "1", "web", State::Accepted);
        known(&mut hosts, "2", "db", State::Drained);
        hosts
    }

    fn resolve(hosts: &mut Hosts, target: &str) -> Result<Vec<String>> {
        hosts.resolve(target, 0, |_| 0)
    }

    fn hear(hosts: &mut Hosts, id: &str, has_pressure: bool, heard: u64) {
        let condition = Condition {
            kind: "DiskPressure".to_owned(),
            status: has_pressure,
            reason: None,
            last_transition_time: String::new(),
        };
        let about = About { conditions: vec![condition], ..About::default() };
        hosts.hear(id, Arc::new(about), 1, (heard, heard));
        hosts.connected(id);
    }

    #[test]
    fn names_ids_and_labels_name_the_host() {
        let mut hosts = hosts();
        for target in ["_all", "_any", "web", "1", "group:web", "group:web.dev"] {
            assert_eq!(resolve(&mut hosts, target).unwrap(), ["1"], "{target}");
        }
    }

    #[test]
    fn what_names_nobody_says_why() {
        let mut hosts = hosts();
        let mut refused = |target: &str| resolve(&mut hosts, target).unwrap_err();
        for target in ["nobody", "group:we", "group:web.dev.us", "other:web", "", "_local"] {
            let error = refused(target);
            assert_eq!(error.kind(), Kind::InvalidInput, "{target}");
            assert!(error.to_string().contains("no agent answers"), "{target}: {error}");
        }
        for target in [":", "a:", ":b", "group:web.", "group:.web", "a:b:c", "a b:c", "g:w*"] {
            let error = refused(target);
            assert_eq!(error.kind(), Kind::InvalidInput, "{target}");
            assert!(error.to_string().contains("as a label"), "{target}: {error}");
        }
        assert_eq!(refused("db").kind(), Kind::Conflict);
        let nobody = resolve(&mut Hosts::default(), "_any").unwrap_err();
        assert_eq!(nobody.kind(), Kind::Unavailable);
    }

    #[test]
    fn where_there_are_several_hosts_none_is_the_only_one() {
        let mut hosts = Hosts::default();
        known(&mut hosts, "1", "web", State::Accepted);
        // Whoever waits is no host yet.
        known(&mut hosts, "2", "db", State::Pending);
        known(&mut hosts, "3", "old", State::Rejected);
        assert_eq!(resolve(&mut hosts, ONLY).unwrap(), ["1"]);
        known(&mut hosts, "4", "mail", State::Drained);
        let error = resolve(&mut hosts, ONLY).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.to_string().starts_with("there are 2 hosts; say with --target"), "{error}");
        assert_eq!(error.body().problems[0].pointer, WHICH);
        let mut hosts = Hosts::default();
        known(&mut hosts, "4", "mail", State::Drained);
        let error = resolve(&mut hosts, ONLY).unwrap_err();
        assert!(error.to_string().starts_with("mail is drained"), "{error}");
    }

    #[test]
    fn a_name_that_two_hosts_have_names_neither() {
        let mut hosts = hosts();
        known(&mut hosts, "3", "web", State::Accepted);
        let error = resolve(&mut hosts, "web").unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().ends_with("that is meant: 1, 3"), "{error}");
        assert_eq!(resolve(&mut hosts, "3").unwrap(), ["3"]);
        assert_eq!(resolve(&mut hosts, "_all").unwrap(), ["1", "3"]);
        // Whoever is called like another one's machine id does not take its place.
        known(&mut hosts, "4", "1", State::Accepted);
        assert_eq!(resolve(&mut hosts, "1").unwrap(), ["1"]);
    }

    #[test]
    fn hosts_are_frozen_in_the_order_of_their_names() {
        let mut hosts = Hosts::default();
        for (id, name) in [("1", "c"), ("2", "a"), ("4", "b"), ("3", "b")] {
            known(&mut hosts, id, name, State::Accepted);
        }
        assert_eq!(resolve(&mut hosts, "_all").unwrap(), ["2", "3", "4", "1"]);
    }

    #[test]
    fn any_host_is_one_that_is_there_and_has_room() {
        let mut hosts = Hosts::default();
        for id in ["1", "2", "3", "4"] {
            known(&mut hosts, id, id, State::Accepted);
        }
        let any = |hosts: &mut Hosts, busy: &str| {
            let chosen = hosts.resolve("_any", 0, |id| usize::from(busy.contains(id))).unwrap();
            chosen.concat()
        };
        hear(&mut hosts, "3", true, 0);
        assert_eq!(any(&mut hosts, "3"), "3", "those that are away come last");
        hear(&mut hosts, "2", false, 0);
        assert_eq!(any(&mut hosts, "2"), "2", "those under pressure come after");
        hear(&mut hosts, "4", false, 0);
        assert_eq!(any(&mut hosts, "2"), "4", "who has less to do comes first");
        let spread: Vec<_> = (0..4).map(|_| any(&mut hosts, "")).collect();
        assert_eq!(spread, ["2", "4", "2", "4"], "and otherwise each has its turn");
    }
}
