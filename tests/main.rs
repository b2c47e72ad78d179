//! What needs no server of its own: the table against the contract, the laws, the store.
mod cli;
mod contract;
mod documents;
mod fuzz;
mod laws;
mod store;
mod support;
