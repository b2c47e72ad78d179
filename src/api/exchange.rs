//! What is known of one request while it lasts, and what is put on record of it.

use std::sync::Arc;
use std::time::Instant;

use super::answer::Failure;
use super::{Api, metrics};
use crate::controller::Trail;
use crate::error::Kind;
use crate::ops::Row;
use crate::permission::Caller;

/// What is on record for a client that hung up before it was answered.
const HUNG_UP: u16 = 499;

/// One request from its first step to its last.
pub(super) struct Exchange {
    pub(super) api: Arc<Api>,
    pub(super) caller: Arc<Caller>,
    pub(super) trail: Trail,
    pub(super) row: Option<&'static Row>,
    pub(super) started: Instant,
    /// The record has been seen to, or there is none to be made.
    pub(super) is_noted: bool,
    pub(super) is_over: bool,
}

impl Exchange {
    /// Counts it and puts it on record.
    pub(super) fn end(&mut self, code: u16) {
        self.is_over = true;
        let took = self.started.elapsed();
        let op = self.row.map_or(metrics::NO_OP, |row| row.id);
        self.api.metrics.answered(op, &self.trail.method, code, took);
        if !self.is_noted {
            let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.api.controller.note(&self.trail, &self.caller, code, ms);
        }
    }

    /// Tells the journal why it cannot be answered as asked.
    pub(super) fn log(&self, failure: &Failure) {
        let error = &failure.error;
        let source = std::error::Error::source(error).map(ToString::to_string);
        let (op, caller) = (&self.trail.op, &self.caller.name);
        match error.kind() {
            Kind::Internal => tracing::error!(op, caller, source, "cannot answer: {error}"),
            Kind::Unavailable | Kind::Full => tracing::warn!(op, caller, source, "{error}"),
            _ => tracing::debug!(op, caller, source, "{error}"),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(HUNG_UP);
        }
    }
}
