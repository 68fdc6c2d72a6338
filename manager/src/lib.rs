//! The manager of the TSS network.

pub mod store;
