//! A signer of the TSS network: holds one share and takes part in sessions.
//!
//! | module | holds |
//! |---|---|
//! | [`service`] | what a signer listens to, and what it answers |
//! | [`keygen`] | its part in making a key, or in taking one over |
//! | [`ceremony`] | the same as a program does it, from the configuration to the share file |
//! | [`refresh`] | its part in making new shares while the old ones sign on |
//! | [`holding`] | which shares it has meanwhile |
//! | [`session`] | one session, from the first nonce to the output |
//! | [`router`] | which message belongs to which session |
//! | [`policy`] | what this signer signs, and what not |
//! | [`journal`] | what it must not forget: used sessions, bans, the audit log |
//! | [`share_file`], [`identity_file`] | shares and identities as files |
//! | [`foreign_file`] | shares of a key that was made elsewhere, as files |
//! | [`backup`] | a share's backup, which several holders can open only together |
//! | [`secret_file`] | what such files have in common: permissions, encryption |
//! | [`report`] | what is told of shares and identities, for other programs |
//! | [`compute`] | where the arithmetic runs |
//! | [`http`] | health and metrics |
//! | [`metrics`] | what is counted |

pub mod backup;
pub mod ceremony;
pub mod compute;
pub mod foreign_file;
mod holding;
pub mod http;
pub mod identity_file;
pub mod journal;
pub mod keygen;
pub mod metrics;
pub mod policy;
mod refresh;
pub mod report;
pub mod router;
pub mod secret_file;
pub mod service;
pub mod session;
pub mod share_file;

pub use service::{Signer, SignerOptions};
