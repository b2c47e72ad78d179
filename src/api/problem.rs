//! An error as clients see it: a problem document (RFC 9457).
//!
//! There is no member `code`: existing clients read an integer there.

use bytes::Bytes;
use hyper::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorBody, Kind, Problem};

pub const CONTENT_TYPE: &str = "application/problem+json";

/// What went wrong.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Document {
    /// Names the kind of problem; always `about:blank`, `kind` tells them apart.
    #[serde(rename = "type")]
    pub about: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong this time, for a person. Not stable.
    pub detail: String,
    /// Stable identifier to branch on.
    pub kind: Kind,
    /// The same as `detail`, for clients that look here.
    pub error: String,
    /// The job that this is about, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub job_id: Option<String>,
    /// What is wrong with which part of the input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
    /// What a change that was taken back has left as it was not before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_restored: Vec<String>,
}

impl Document {
    pub fn new(error: ErrorBody, job_id: Option<String>) -> Self {
        let ErrorBody { kind, message, problems, not_restored } = error;
        Self {
            about: "about:blank".to_owned(),
            title: kind.title().to_owned(),
            status: kind.status(),
            detail: message.clone(),
            kind,
            error: message,
            job_id,
            problems,
            not_restored,
        }
    }

    pub fn bytes(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// A whole answer on the wire, for connections that are closed before anything was read.
pub fn refusal(kind: Kind, message: &str) -> Vec<u8> {
    let body = Document::new(Error::new(kind, message).body(), None).bytes();
    let status = kind.status();
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let reason = reason.unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nconnection: close\r\n\r\n",
        body.len(),
    );
    [head.as_bytes(), &body].concat()
}
