//! What needs no server of its own: the table against the contract, the laws, the store.
#[path = "support/answers.rs"]
mod answers;
mod api;
#[path = "support/broker.rs"]
mod broker;
mod bus;
mod cli;
mod contract;
mod documents;
mod fleet;
mod fuzz;
mod laws;
mod maintainer;
mod relay;
#[path = "support/say.rs"]
mod say;
mod security;
#[path = "support/server.rs"]
mod server;
mod store;
mod support;
