//! The messages between managers and signers.
//!
//! Control messages are JSON, so that a person can read a queue; protocol envelopes, which are most
//! of the bytes, are postcard. Each carries [`VERSION`], and one of another version is not read.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tss_mpc::{Abort, EngineId, PublicKey, Quorum, Scheme, SessionId, Signature, SignerIndex, Threshold};
use uuid::Uuid;

use crate::approval::Approval;
use crate::intent::Intent;
use crate::session::Nonce;

/// The version of all messages here.
pub const VERSION: u8 = 1;

/// A message that cannot be read, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It was written by another version of this software.
    #[error("the message has version {0}: expected {VERSION}")]
    Version(u8),
    /// It is not such a message.
    #[error("the message is malformed: {0}")]
    Malformed(String),
}

/// Manager to signer: take part in an attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// The request it serves.
    pub request: Uuid,
    /// Its number, from 1.
    pub attempt: u32,
    /// What is to be signed. Each signer computes the digest anew from `message`.
    pub intent: Intent,
    /// The message itself.
    #[serde(with = "crate::encoding::base64")]
    pub message: Vec<u8>,
    /// Who approved the intent. Each signer checks them anew.
    #[serde(default)]
    pub approvals: Vec<Approval>,
    /// The protocol.
    pub engine: EngineId,
    /// The key's epoch.
    pub epoch: u64,
    /// Who takes part.
    pub quorum: Quorum,
    /// When the manager stops waiting; later it is not worth beginning.
    pub expires: Timestamp,
}

/// Signer to managers: how an attempt ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The request.
    pub request: Uuid,
    /// The attempt.
    pub attempt: u32,
    /// Who says so.
    pub signer: SignerIndex,
    /// How it ended.
    pub ending: Ending,
}

/// How an attempt ended at a signer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// With a signature.
    Signed(Signature),
    /// The protocol ended early.
    Aborted(Abort),
    /// The signer will not take part: not now, nor in another attempt of the request.
    Refused(String),
    /// The signer cannot take part now; others may.
    Unable(String),
}

/// To every manager.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// A signer is alive.
    Heartbeat(Heartbeat),
    /// An outcome that another manager received, for whichever drives the request.
    Outcome(Outcome),
    /// A request has ended; its record is in the store.
    Finished(Uuid),
}

/// A signer is alive, and what it can do. Sent every [`HEARTBEAT`] and at each change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub signer: SignerIndex,
    /// Fresh at each start, so that two processes with one index are told apart.
    pub instance: Uuid,
    /// The key it holds a share of.
    pub key: KeyAnnouncement,
    /// The protocols it speaks.
    pub engines: Vec<EngineId>,
    /// How many sessions it takes part in now.
    pub sessions: u32,
    /// Whom it never signs with again.
    pub banned: BTreeSet<SignerIndex>,
    /// It is about to stop: give it nothing new.
    pub stopping: bool,
}

/// How often a signer says that it is alive.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(2);

/// A key as a signer knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyAnnouncement {
    /// Its id.
    pub id: String,
    /// Its epoch.
    pub epoch: u64,
    /// What kind of key it is.
    pub scheme: Scheme,
    /// How many signers there are, and how many of them sign.
    pub threshold: Threshold,
    /// The root public key.
    pub public_key: PublicKey,
    /// The BIP-32 chain code of the root key.
    #[serde(with = "hex::serde")]
    pub chain_code: [u8; 32],
}

/// Signer to signer: one message of a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// The request that the session serves.
    pub request: Uuid,
    /// The attempt that the session is.
    pub attempt: u32,
    /// Who sent it.
    pub from: SignerIndex,
    /// Whom it is for.
    pub to: SignerIndex,
    /// What it says.
    pub body: Body,
}

/// What an [`Envelope`] says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Body {
    /// Before the first round: the sender takes part, with this nonce.
    Join(Nonce),
    /// A message of the protocol.
    Round {
        /// The session's id, which the joins determine.
        session: SessionId,
        /// The round.
        round: u8,
        /// Whether every other party got the same.
        broadcast: bool,
        /// The engine's own bytes.
        payload: Vec<u8>,
    },
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u8,
    #[serde(flatten)]
    message: T,
}

/// A control message as JSON bytes.
///
/// # Errors
/// [`WireError::Malformed`] should a value have no JSON form.
pub fn to_json<T: Serialize>(message: &T) -> Result<Bytes, WireError> {
    serde_json::to_vec(&Versioned { version: VERSION, message })
        .map(Bytes::from)
        .map_err(|error| WireError::Malformed(error.to_string()))
}

/// A control message from JSON bytes.
///
/// # Errors
/// [`WireError`] when it is of another version or no such message.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    #[derive(Deserialize)]
    struct Version {
        version: u8,
    }
    let malformed = |error: serde_json::Error| WireError::Malformed(error.to_string());
    let Version { version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    let Versioned { message, .. } = serde_json::from_slice(bytes).map_err(malformed)?;
    Ok(message)
}

impl Envelope {
    /// The envelope as bytes: the version, then postcard.
    ///
    /// # Errors
    /// [`WireError::Malformed`] should a value have no encoding.
    pub fn to_bytes(&self) -> Result<Bytes, WireError> {
        postcard::to_extend(self, vec![VERSION])
            .map(Bytes::from)
            .map_err(|error| WireError::Malformed(error.to_string()))
    }

    /// The envelope from bytes.
    ///
    /// # Errors
    /// [`WireError`] when it is of another version, no envelope, or has bytes to spare.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => match postcard::take_from_bytes(rest) {
                Ok((envelope, [])) => Ok(envelope),
                Ok((_, rest)) => Err(WireError::Malformed(format!("{} bytes too many", rest.len()))),
                Err(error) => Err(WireError::Malformed(error.to_string())),
            },
            Some((&version, _)) => Err(WireError::Version(version)),
            None => Err(WireError::Malformed("no bytes".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            request: Uuid::from_u128(7),
            attempt: 3,
            from: SignerIndex::new(1).unwrap(),
            to: SignerIndex::new(2).unwrap(),
            body: Body::Round {
                session: SessionId([9; 32]),
                round: 1,
                broadcast: false,
                payload: vec![1, 2, 3],
            },
        }
    }

    #[test]
    fn an_envelope_survives_its_encoding() {
        let bytes = envelope().to_bytes().unwrap();
        assert_eq!(format!("{:?}", Envelope::from_bytes(&bytes).unwrap()), format!("{:?}", envelope()));
    }

    #[test]
    fn another_version_extra_bytes_and_every_truncation_are_refused() {
        let bytes = envelope().to_bytes().unwrap().to_vec();
        let mut other = bytes.clone();
        other[0] = 2;
        assert_eq!(Envelope::from_bytes(&other).unwrap_err(), WireError::Version(2));
        assert!(Envelope::from_bytes(&[bytes.clone(), vec![0]].concat()).is_err());
        for length in 0..bytes.len() {
            assert!(Envelope::from_bytes(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_control_message_survives_json_and_another_version_is_named() {
        let notice = Notice::Outcome(Outcome {
            request: Uuid::from_u128(7),
            attempt: 1,
            signer: SignerIndex::new(2).unwrap(),
            ending: Ending::Aborted(Abort::timeout([SignerIndex::new(1).unwrap()].into())),
        });
        let bytes = to_json(&notice).unwrap();
        assert_eq!(format!("{:?}", from_json::<Notice>(&bytes).unwrap()), format!("{notice:?}"));
        let finished = to_json(&Notice::Finished(Uuid::from_u128(7))).unwrap();
        assert!(matches!(from_json(&finished).unwrap(), Notice::Finished(id) if id == Uuid::from_u128(7)));
        let later = String::from_utf8(bytes.to_vec()).unwrap().replace("\"version\":1", "\"version\":9");
        assert_eq!(from_json::<Notice>(later.as_bytes()).unwrap_err(), WireError::Version(9));
    }
}
