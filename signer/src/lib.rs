//! A signer of the TSS network: holds one share and takes part in sessions.
//!
//! | module | holds |
//! |---|---|
//! | [`service`] | what a signer listens to, and what it answers |
//! | [`session`] | one session, from the first nonce to the signature |
//! | [`router`] | which message belongs to which session |
//! | [`policy`] | what this signer signs, and what not |
//! | [`share_file`] | share documents as files, encrypted or not |
//! | [`bans`] | whom this signer never signs with again |
//! | [`compute`] | where the arithmetic runs |
//! | [`http`] | health and metrics |
//! | [`metrics`] | what is counted |

pub mod bans;
pub mod compute;
pub mod http;
pub mod metrics;
pub mod policy;
pub mod router;
pub mod service;
pub mod session;
pub mod share_file;

pub use service::{Signer, SignerOptions};
