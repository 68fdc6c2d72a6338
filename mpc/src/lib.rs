//! Threshold-signature engines as state machines.
//!
//! Nothing here does input or output: no network, no clock, no files. A party of a protocol is a
//! [`Machine`] that takes messages and yields messages, an output, or an [`Abort`] that says who is
//! to blame. Whoever drives the machine owns delivery, time and storage.
//!
//! | module | holds |
//! |---|---|
//! | [`party`] | who takes part: indices, thresholds, quorums |
//! | [`machine`] | the shape of every protocol: messages in, messages or an output out |
//! | [`abort`] | why a protocol ended early, and by whose fault |
//! | [`engine`] | what a threshold protocol must offer: key generation and signing |
//! | [`rounds`] | what every machine has in common: rounds, and the messages kept for them |
//! | [`dkls23`] | the default engine, on the crate of the same name |
//! | [`frost`] | engines for Ed25519 and BIP-340 signatures |
//! | [`share`] | the share document: one signer's part of a key |
//! | [`point`] | what is public of a key, in whichever group it is |
//! | [`foreign`] | a share of a key that was made elsewhere |
//! | [`proof`] | what can be told of a share, and the proof that it is there |
//! | [`dealer`] | a whole private key: split, or put together again as the last resort |
//! | [`key`] | public keys, addresses, non-hardened BIP-32 derivation |
//! | [`signature`] | ECDSA signatures and their encodings |
//! | [`schnorr`] | Schnorr signatures of BIP-340 |
//! | [`ed25519`] | Ed25519 keys and signatures |
//! | [`local`] | all parties of a session within one process |

pub mod abort;
mod confirmation;
pub mod dealer;
pub mod dkls23;
pub mod ed25519;
pub mod engine;
pub mod foreign;
pub mod frost;
pub mod key;
pub mod local;
pub mod machine;
pub mod party;
pub mod point;
pub mod proof;
mod redistribution;
pub mod rounds;
pub mod schnorr;
pub mod share;
pub mod signature;

pub use abort::{Abort, Blame};
pub use dealer::PrivateKey;
pub use dkls23::Dkls23;
pub use ed25519::{Ed25519Key, Ed25519Signature};
pub use engine::{
    Engine, EngineId, KeygenSetup, Payload, RenewSetup, SessionId, SetupError, SignSetup, SigningShare,
};
pub use foreign::ForeignShare;
pub use frost::{FrostEd25519, FrostSecp256k1Tr};
pub use key::{AnyKey, DerivationPath, PublicKey};
pub use local::{run_local, run_local_with};
pub use machine::{Incoming, Machine, Outgoing, Recipient, Step};
pub use party::{MAX_SIGNERS, Quorum, SignerIndex, Threshold};
pub use proof::{Attestation, KeyFacts};
pub use schnorr::SchnorrSignature;
pub use share::{Origin, Scheme, ShareDocument, ShareError};
pub use signature::{AnySignature, Signature};
