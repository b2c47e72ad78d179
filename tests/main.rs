//! What needs no server of its own: the table against the contract, the laws, the store.
mod cli;
mod fuzz;
mod contract;
mod store;
