//! What a browser is told of an answer to a page that may ask: that the page may see it.

use hyper::Response;
use hyper::header::{self, HeaderName, HeaderValue};

use super::answer::Answer;
use super::body::Body;

/// What a page may send, and what it may see of an answer.
const SENT: &str = "authorization, content-type, idempotency-key, last-event-id, prefer, traceparent, \
                    tracestate, x-request-id";
const SEEN: &str = "idempotency-replayed, location, preference-applied, retry-after, \
                    www-authenticate, x-request-id";
/// How long a browser need not ask again, in seconds.
const AGE: &str = "600";

/// The answer to a browser that asks before its page does.
pub(super) fn preflight() -> Answer {
    Answer::empty(204)
        .with(header::ACCESS_CONTROL_ALLOW_METHODS, "DELETE, GET, POST, PUT")
        .with(header::ACCESS_CONTROL_ALLOW_HEADERS, SENT)
        .with(header::ACCESS_CONTROL_MAX_AGE, AGE)
}

/// Lets a page that comes from `origin` see the answer.
pub(super) fn open(response: &mut Response<Body>, origin: &HeaderValue) {
    let headers = response.headers_mut();
    let seen: [(HeaderName, HeaderValue); 3] = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(SEEN)),
        (header::VARY, HeaderValue::from_static("origin")),
    ];
    for (name, value) in seen {
        headers.insert(name, value);
    }
}
