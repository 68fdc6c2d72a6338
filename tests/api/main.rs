//! The API against its own document, on a manager and its signers in one process.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod auth;
#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../support/devnet.rs"]
mod devnet;
mod load;
mod network;
mod openapi;
mod page;
mod schemathesis;
#[path = "../support/tokens.rs"]
mod tokens;
mod webhooks;
