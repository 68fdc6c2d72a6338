//! What `tssctl` is made of.
//!
//! | module | holds |
//! |---|---|
//! | [`keygen`] | key generation in one process, and the share files it writes |
//! | [`legacy`] | share files of other software |
//! | [`network`] | a manager and all signers in one process |
//! | [`devnet`] | such a network for a developer, kept in a folder |
//! | [`bench`] | such a network under load, against its engine's own ceiling |
//! | [`approver`] | approvers' keys, and the approvals they make |
//! | [`private`] | files with secrets in them |
//! | [`audit`] | the signers' audit logs, checked and shown |

pub mod approver;
pub mod audit;
pub mod bench;
pub mod devnet;
pub mod keygen;
pub mod legacy;
pub mod network;
pub mod private;
