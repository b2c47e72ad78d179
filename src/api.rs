//! HTTP in, HTTP out. The only place that knows what a request looks like.

pub mod auth;
pub mod json;
pub mod problem;
