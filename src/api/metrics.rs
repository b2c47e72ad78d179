//! Figures for Prometheus. Labels come from the table, so that their number is bounded.

use std::collections::HashMap;
use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::controller::Figures;
use crate::error::{Error, Kind, Result};
use crate::link::Class;
use crate::ops;
use crate::token::Refusal;

/// In seconds: from a read answered out of memory to a command that runs for minutes.
const BUCKETS: [f64; 12] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0];
/// What no row was found for.
pub const NO_OP: &str = "none";
const METHODS: [&str; 5] = ["DELETE", "GET", "HEAD", "POST", "PUT"];

pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    /// By the id of the row.
    durations: HashMap<&'static str, Histogram>,
    connections: IntGauge,
    refused_connections: IntCounter,
    failed_handshakes: IntCounter,
    refused_tokens: IntCounterVec,
}

impl Metrics {
    pub fn new() -> Result<Self> {
        Self::registered().map_err(unusable)
    }

    fn registered() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("osapi_http_requests_total", "Requests that were answered."),
            &["op", "method", "code"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        let durations = HistogramVec::new(
            HistogramOpts::new("osapi_http_request_duration_seconds", "How long answers took.")
                .buckets(BUCKETS.to_vec()),
            &["op"],
        )?;
        registry.register(Box::new(durations.clone()))?;
        let connections =
            IntGauge::new("osapi_http_connections", "Connections that are open now.")?;
        registry.register(Box::new(connections.clone()))?;
        let refused_connections = IntCounter::new(
            "osapi_http_connections_refused_total",
            "Connections that were turned away because there were too many.",
        )?;
        registry.register(Box::new(refused_connections.clone()))?;
        let failed_handshakes = IntCounter::new(
            "osapi_tls_handshakes_failed_total",
            "Connections that ended before they were encrypted.",
        )?;
        registry.register(Box::new(failed_handshakes.clone()))?;
        let refused_tokens = IntCounterVec::new(
            Opts::new("osapi_tokens_refused_total", "Requests that needed a token, by why not."),
            &["reason"],
        )?;
        registry.register(Box::new(refused_tokens.clone()))?;
        for refusal in Refusal::ALL {
            // So that it is there before it happens.
            refused_tokens.with_label_values(&[refusal.as_str()]);
        }
        let ids = ops::all().map(|row| row.id).chain([NO_OP]);
        let durations = ids.map(|id| (id, durations.with_label_values(&[id]))).collect();
        Ok(Self {
            registry,
            requests,
            durations,
            connections,
            refused_connections,
            failed_handshakes,
            refused_tokens,
        })
    }

    /// `op` is the id of a row or [`NO_OP`].
    pub fn answered(&self, op: &'static str, method: &str, code: u16, took: Duration) {
        let known = METHODS.into_iter().find(|known| *known == method);
        let mut buffer = [0; 3];
        let code = digits(code, &mut buffer);
        self.requests.with_label_values(&[op, known.unwrap_or("other"), code]).inc();
        if let Some(histogram) = self.durations.get(op) {
            histogram.observe(took.as_secs_f64());
        }
    }

    pub fn refused_connection(&self) {
        self.refused_connections.inc();
    }

    pub fn failed_handshake(&self) {
        self.failed_handshakes.inc();
    }

    pub fn refused_token(&self, refusal: Refusal) {
        self.refused_tokens.with_label_values(&[refusal.as_str()]).inc();
    }

    /// Everything in Prometheus' text format, with `figures` as they are now.
    pub fn text(&self, connections: usize, figures: &Figures) -> Result<Vec<u8>> {
        self.connections.set(clamp(connections as u64));
        let mut families = self.registry.gather();
        families.extend(snapshot(figures).map_err(unusable)?.gather());
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text).map_err(unusable)?;
        Ok(text)
    }
}

/// What the controller counts itself, registered anew each time somebody asks.
fn snapshot(figures: &Figures) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    let gauges = |name: &str, help: &str, labels: &[&str]| {
        let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauges.clone()))?;
        Ok::<_, prometheus::Error>(gauges)
    };
    let counters = |name: &str, help: &str, labels: &[&str]| {
        let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(counters.clone()))?;
        Ok::<_, prometheus::Error>(counters)
    };
    let up = gauges("osapi_component_up", "Whether a component runs.", &["component"])?;
    up.with_label_values(&["controller"]).set(1);
    let jobs = gauges("osapi_jobs", "Jobs that are kept, by status.", &["status"])?;
    for (status, count) in &figures.jobs {
        jobs.with_label_values(&[status]).set(clamp(*count as u64));
    }
    let created = counters("osapi_jobs_created_total", "Jobs that were submitted.", &["op"])?;
    for (op, count) in &figures.submitted {
        created.with_label_values(&[op]).inc_by(*count);
    }
    let processed = counters(
        "osapi_jobs_processed_total",
        "Outcomes of jobs, by how they went.",
        &["op", "status"],
    )?;
    for ((op, status), count) in &figures.finished {
        processed.with_label_values(&[op.as_str(), status]).inc_by(*count);
    }
    let lanes =
        gauges("osapi_lane_jobs", "What a host has still to do, by class.", &["host", "class"])?;
    for (host, lengths) in &figures.lanes {
        for (class, length) in Class::ALL.into_iter().zip(lengths) {
            lanes.with_label_values(&[host.as_str(), class.as_str()]).set(clamp(*length as u64));
        }
    }
    let agents = gauges("osapi_agents", "Hosts, by what is known of them.", &["state"])?;
    let unreachable = figures.agents.saturating_sub(figures.agents_ready);
    agents.with_label_values(&["unreachable"]).set(clamp(unreachable as u64));
    agents.with_label_values(&["drained"]).set(clamp(figures.agents_drained as u64));
    agents.with_label_values(&["known"]).set(clamp(figures.agents as u64));
    agents.with_label_values(&["ready"]).set(clamp(figures.agents_ready as u64));
    let steps = counters("osapi_store_steps_total", "Steps handed to the store.", &[])?;
    steps.with_label_values::<&str>(&[]).inc_by(figures.steps);
    let commits = counters("osapi_store_commits_total", "Transactions made durable.", &[])?;
    commits.with_label_values::<&str>(&[]).inc_by(figures.store.figures.commits);
    let bytes = gauges("osapi_store_bytes", "Bytes that the store takes, and may.", &["part"])?;
    for (part, count) in [
        ("records", figures.store.records),
        ("audit", figures.store.audit),
        ("bound", figures.store.bound),
    ] {
        bytes.with_label_values(&[part]).set(clamp(count));
    }
    let troubles = gauges("osapi_store_trouble", "1 where the store refuses.", &["kind"])?;
    troubles.with_label_values(&["full"]).set(figures.store.is_full.into());
    troubles.with_label_values(&["audit"]).set(figures.store.is_audit_broken.into());
    let uptime = gauges("osapi_uptime_seconds", "Seconds since the start.", &[])?;
    uptime.with_label_values::<&str>(&[]).set(clamp(figures.uptime / 1000));
    Ok(registry)
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unusable(error: prometheus::Error) -> Error {
    Error::new(Kind::Internal, "cannot tell the figures").because(error)
}

fn digits(code: u16, buffer: &mut [u8; 3]) -> &str {
    for (place, digit) in [(100, 0), (10, 1), (1, 2)] {
        buffer[digit] = b'0' + u8::try_from(code / place % 10).unwrap_or_default();
    }
    std::str::from_utf8(buffer).unwrap_or("000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_operation_method_and_code() {
        let metrics = Metrics::new().unwrap();
        metrics.answered("node.sysctl.update", "PUT", 200, Duration::from_millis(3));
        metrics.answered(NO_OP, "BREW", 405, Duration::ZERO);
        metrics.refused_connection();
        let jobs = [("completed", 5)].into();
        let figures = Figures { jobs, agents: 5, agents_ready: 3, ..Figures::default() };
        let text = String::from_utf8(metrics.text(7, &figures).unwrap()).unwrap();
        for line in [
            r#"osapi_http_requests_total{code="200",method="PUT",op="node.sysctl.update"} 1"#,
            r#"osapi_http_requests_total{code="405",method="other",op="none"} 1"#,
            "osapi_http_connections 7",
            r#"osapi_agents{state="unreachable"} 2"#,
            "osapi_http_connections_refused_total 1",
            r#"osapi_jobs{status="completed"} 5"#,
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
        }
    }
}
