//! What manager and signer share.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | layered configuration |
//! | [`intent`] | what a caller wants signed |
//! | [`approval`] | somebody's word that an intent may be signed |
//! | [`session`] | session ids and the nonces in them |
//! | [`ed25519`] | signatures of signers and approvers |
//! | [`identity`] | who the signers are: identities and the roster |
//! | [`envelope`] | messages that are signed and sealed |
//! | [`wire`] | the messages between managers and signers |
//! | [`audit`] | the signers' audit log: a hash chain of what they did |
//! | [`bus`] | how messages travel: in process, or over RabbitMQ |
//! | [`backoff`] | how long to wait before trying again |
//! | [`process`] | what every long-running program does the same way |
//! | [`telemetry`] | logs and metrics |
//! | [`trace`] | traces of requests, for an OpenTelemetry collector |
//! | [`version`] | which version of the software this is |
//! | [`encoding`] | how bytes stand in JSON |

pub mod approval;
pub mod audit;
pub mod backoff;
pub mod bus;
pub mod config;
pub mod ed25519;
pub mod encoding;
pub mod envelope;
pub mod identity;
pub mod intent;
pub mod process;
pub mod session;
pub mod telemetry;
pub mod trace;
pub mod version;
pub mod wire;
