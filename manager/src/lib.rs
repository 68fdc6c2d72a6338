//! The manager of the TSS network: takes requests, keeps them, and has them signed.
//!
//! | module | holds |
//! |---|---|
//! | [`api`] | the REST API |
//! | [`auth`] | who may use it |
//! | [`coordinator`] | drives each request to its end |
//! | [`window`] | how many attempts may be under way at the same time |
//! | [`presence`] | which signers are alive, and which of them sign next |
//! | [`rehearsal`] | what the signers would do |
//! | [`refresh`] | has the signers make new shares |
//! | [`webhooks`] | tells callers that their requests have ended |
//! | [`pulse`] | how requests have ended lately |
//! | [`keys`] | the cluster's keys, as they are on record |
//! | [`store`] | where requests are kept |
//! | [`service`] | a manager as a whole: its parts, started and stopped |
//! | `server`, `tls` | how it is listened to, and the certificate that the API is served with |
//! | [`metrics`] | what is counted |

pub mod api;
pub mod auth;
pub mod coordinator;
mod file;
pub mod keys;
pub mod metrics;
pub mod presence;
pub mod pulse;
pub mod refresh;
pub mod rehearsal;
mod server;
pub mod service;
pub mod store;
mod tls;
pub mod webhooks;
pub mod window;

pub use server::listen;
pub use service::{Manager, ManagerOptions};
