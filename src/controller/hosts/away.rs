//! Saying that a host is gone, and that it is back.
//!
//! Whether a host is there is in memory only, and so is what was said of it last: nothing is stored
//! for a host but the event in the audit log, at most one a minute.

use serde_json::{Value, json};

use super::{AWAY_MS, Hosts, Over, Presence};
use crate::clock::rfc3339;
use crate::controller::Controller;
use crate::store::{Step, audit};

/// How long what was said of a host stands at least, in milliseconds.
const STANDS_MS: u64 = 60_000;
/// How many events one step notes.
const GROUP: usize = 250;

/// What there is to say of a host of which nothing is known.
pub(in crate::controller) const NEVER_SEEN: &str = "not seen since the controller started";

/// Whether a host that is there may not have said so yet since the controller `started`.
fn is_early(uptime: u64, started: u64) -> bool {
    uptime.saturating_sub(started) <= AWAY_MS
}

/// What was said of a host last.
#[derive(Clone, Copy)]
pub(in crate::controller) struct Said {
    pub(in crate::controller) is_there: bool,
    /// By the clock of the boot, in milliseconds.
    uptime: u64,
    /// In milliseconds since 1970.
    pub(in crate::controller) at: u64,
}

impl Hosts {
    /// What is to be said `now`, by both clocks, of hosts that have gone or come back: for each an
    /// event. A host that was not heard of since the controller `started` may be on its way.
    pub(in crate::controller) fn news(
        &mut self,
        (uptime, wall): (u64, u64),
        started: u64,
    ) -> Vec<Value> {
        let mut news = Vec::new();
        for (machine_id, (host, _)) in &self.known {
            let presence = self.present.get(machine_id);
            let is_there = presence.is_some_and(|presence| presence.is_there(uptime));
            if presence.is_none() && is_early(uptime, started) {
                continue;
            }
            let said = self.said.get(machine_id).copied();
            let is_news = match said {
                None => !is_there,
                Some(said) => {
                    said.is_there != is_there && uptime.saturating_sub(said.uptime) >= STANDS_MS
                }
            };
            if is_news {
                let event = if is_there { "host_back" } else { "host_unreachable" };
                let heard = presence.map(|presence| presence.heard_at);
                news.push(json!({
                    "at": wall, "event": event, "host": machine_id, "name": host.name,
                    "last_seen": heard,
                }));
            }
            if is_news || said.is_none() {
                // That it is there was said when it registered, or before a restart.
                let uptime = if is_news { uptime } else { 0 };
                self.said.insert(machine_id.clone(), Said { is_there, uptime, at: wall });
            }
        }
        news
    }

    /// Why nothing is to be expected of a host right now, which is known to be away. One that was not
    /// heard of yet may be on its way.
    pub(in crate::controller) fn absence(
        &self,
        machine_id: &str,
        uptime: u64,
        started: u64,
    ) -> Option<String> {
        let name = || self.name(machine_id);
        match self.present.get(machine_id) {
            Some(presence) if presence.is_there(uptime) => None,
            None if is_early(uptime, started) => None,
            Some(Presence { heard_at, .. }) => {
                Some(format!("{} is unreachable, last seen {}", name(), rfc3339(*heard_at)))
            }
            None => Some(format!("{} is unreachable, {NEVER_SEEN}", name())),
        }
    }

    /// Nobody could be heard over the broker for `gap` milliseconds, which nobody is blamed for.
    pub(in crate::controller) fn excuse(&mut self, gap: u64) {
        let over_bus = self.present.values_mut().filter(|presence| presence.over == Over::Bus);
        over_bus.for_each(|presence| presence.heard = presence.heard.saturating_add(gap));
    }

    /// What was said of a host last, where that was that it has gone or come back.
    pub(in crate::controller) fn said(&self, machine_id: &str) -> Option<Said> {
        self.said.get(machine_id).copied().filter(|said| said.uptime > 0)
    }
}

impl Controller {
    /// Says which hosts have gone and which are back, in the log and in the audit log.
    pub(in crate::controller) fn announce(&self, uptime: u64) {
        let news = self.hosts().news((uptime, self.clock.wall()), self.started);
        for event in &news {
            let (name, host) = (event["name"].as_str(), event["host"].as_str());
            if event["event"] == "host_back" {
                tracing::info!(OSAPI_HOST = host, name, "a host is back");
            } else {
                tracing::warn!(OSAPI_HOST = host, name, "a host is unreachable");
            }
        }
        for group in news.chunks(GROUP) {
            let notes = group.iter().cloned().map(audit::Note::Event);
            self.ride(notes.fold(Step::new(), Step::note));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Host, State};
    use super::*;
    use crate::link::About;

    fn events(news: &[Value]) -> Vec<&str> {
        news.iter().map(|event| event["event"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_host_that_goes_and_comes_is_told_of_once_a_minute() {
        let mut hosts = Hosts::default();
        hosts.put("1", Host::new("web", State::Accepted), 1);
        let hear = |hosts: &mut Hosts, at| hosts.hear("1", Arc::new(About::default()), 1, (at, at));
        hear(&mut hosts, 1_000);
        let news = |hosts: &mut Hosts, at: u64| hosts.news((at, at), 0);
        assert!(news(&mut hosts, 1_000).is_empty(), "it is there from the first");
        assert!(hosts.said("1").is_none());
        let gone = news(&mut hosts, 200_000);
        assert_eq!(
            (events(&gone), &gone[0]["last_seen"]),
            (vec!["host_unreachable"], &json!(1_000))
        );
        assert!(news(&mut hosts, 300_000).is_empty(), "it is said once");
        hear(&mut hosts, 301_000);
        assert_eq!(events(&news(&mut hosts, 301_000)), ["host_back"]);
        // It flaps.
        assert!(news(&mut hosts, 330_000).is_empty());
        assert_eq!(events(&news(&mut hosts, 361_000)), ["host_unreachable"]);
        assert!(!hosts.said("1").unwrap().is_there);
    }

    #[test]
    fn a_host_that_was_not_heard_of_since_the_start_has_some_time() {
        let mut hosts = Hosts::default();
        hosts.put("1", Host::new("web", State::Accepted), 1);
        assert!(hosts.news((90_000, 90_000), 50_000).is_empty());
        let news = hosts.news((150_000, 150_000), 50_000);
        assert_eq!(events(&news), ["host_unreachable"]);
        assert!(news[0]["last_seen"].is_null(), "nobody knows when it was there");
    }

    #[test]
    fn of_a_time_in_which_nobody_could_be_heard_nothing_is_said() {
        let mut hosts = Hosts::default();
        hosts.put("1", Host::new("web", State::Accepted), 1);
        hosts.hear_over_bus("1", Some(Arc::new(About::default())), (1_000, 1_000));
        assert!(hosts.news((1_000, 1_000), 0).is_empty());
        // From 2 s on nobody was heard for five minutes.
        hosts.excuse(300_000);
        assert!(hosts.news((331_000, 331_000), 0).is_empty());
        assert!(hosts.absence("1", 331_000, 0).is_none());
        assert_eq!(events(&hosts.news((331_001, 331_001), 0)), ["host_unreachable"]);
        assert!(hosts.absence("1", 331_001, 0).is_some());
    }
}
