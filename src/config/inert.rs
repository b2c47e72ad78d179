//! Keys of the published configuration that have no meaning on a host without a broker.

/// A key that is accepted and does nothing.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Inert {
    pub key: String,
    pub why: &'static str,
}

const BROKER: &str = "a host by itself has no broker";
const URL: &str = "controller.nats.url says where a broker is";
const AGENT_URL: &str = "agent.nats.url says where a broker is";
const BY_MACHINE_ID: &str = "a host goes by its machine id at the broker";
const METRICS: &str = "figures are served at /metrics wherever the API is";
const LATER: &str = "this version does not have it";
const NEVER: &str = "it has no effect";

/// Sections, of which everything below counts, and single keys.
const KEYS: &[(&str, &str)] = &[
    ("agent.consumer", BROKER),
    ("agent.max_jobs", NEVER),
    ("agent.metrics", METRICS),
    ("agent.nats.client_name", BY_MACHINE_ID),
    ("agent.nats.host", AGENT_URL),
    ("agent.nats.name", BY_MACHINE_ID),
    ("agent.nats.port", AGENT_URL),
    ("agent.privilege_escalation", "the agent runs as whoever starts it"),
    ("agent.process_conditions", LATER),
    ("agent.queue_group", BROKER),
    ("controller.api.nats", BROKER),
    ("controller.metrics.enabled", METRICS),
    ("controller.metrics.host", METRICS),
    ("controller.metrics.port", METRICS),
    ("controller.nats.client_name", "controller.nats.name names it"),
    ("controller.nats.host", URL),
    ("controller.nats.port", URL),
    ("controller.notifications", LATER),
    (
        "controller.pki.rotation_grace_period",
        "`agent.controller_key` may name two keys while one takes the other's place",
    ),
    ("controller.ui", LATER),
    ("nats.api", BROKER),
    ("nats.audit", BROKER),
    ("nats.dlq", BROKER),
    ("nats.enrollment", BROKER),
    ("nats.facts", BROKER),
    ("nats.file_state", BROKER),
    ("nats.kv", BROKER),
    ("nats.objects", BROKER),
    ("nats.registry", BROKER),
    ("nats.server", BROKER),
    ("nats.state", BROKER),
    ("nats.stream", BROKER),
    ("telemetry", LATER),
];

/// Why `key` does nothing; None where it is not one of these.
pub(super) fn why(key: &str) -> Option<&'static str> {
    let covers = |known: &str| {
        key.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    KEYS.iter().find(|(known, _)| covers(known)).map(|(_, why)| *why)
}

pub(super) fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    KEYS.iter().copied()
}
