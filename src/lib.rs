//! OSAPI: a REST API and a command line to read and change a Linux host.
//!
//! Start reading at [`op`], the vocabulary of operations, then at any file under [`provider`] for
//! operations themselves. A request travels `api` -> `controller` -> `store` -> `link` -> `agent`
//! -> `host`, which asks a `provider` what should be, plans and applies it.

#![warn(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::exit,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]

pub mod agent;
pub mod api;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller;
pub mod error;
pub mod host;
pub mod job;
pub mod link;
pub mod op;
pub mod ops;
mod own_file;
pub mod permission;
pub mod provider;
pub mod relay;
pub mod schema;
pub mod seal;
pub mod signing;
pub mod start;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod token;
pub mod types;
