//! What `tssctl` is made of.
//!
//! | module | holds |
//! |---|---|
//! | [`keygen`] | key generation in one process, and the share files it writes |
//! | [`legacy`] | share files of other software |
//! | [`backup`] | whether signers' backups are good |
//! | [`reconstruct`] | the private key out of shares, as the last resort |
//! | [`split`] | an existing private key, split for its signers |
//! | [`network`] | a manager and all signers in one process |
//! | [`devnet`] | such a network for a developer, kept in a folder |
//! | [`bench`] | such a network under load, against its engine's own ceiling |
//! | [`approver`] | approvers' keys, and the approvals they make |
//! | [`private`] | files with secrets in them |
//! | [`audit`] | the signers' audit logs, checked and shown |

pub mod approver;
pub mod audit;
pub mod backup;
pub mod bench;
pub mod devnet;
pub mod keygen;
pub mod legacy;
pub mod network;
pub mod private;
pub mod reconstruct;
pub mod split;
