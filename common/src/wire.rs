//! The messages between managers and signers.
//!
//! Control messages are JSON, so that a person can read a queue. Each carries [`VERSION`], and one of
//! another version is not read. What a signer says is signed ([`Signed`]); what signers say to each
//! other travels in envelopes ([`crate::envelope`]).

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tss_mpc::{Abort, EngineId, PublicKey, Quorum, Scheme, SessionId, Signature, SignerIndex, Threshold};
use uuid::Uuid;

use crate::approval::Approval;
use crate::envelope::Signed;
use crate::intent::Intent;
use crate::trace::TraceParent;

/// The version of all messages here.
pub const VERSION: u8 = 2;

/// A message that cannot be read, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It was written by another version of this software.
    #[error("the message has version {0}: expected {VERSION}")]
    Version(u8),
    /// The signer it names did not sign it.
    #[error("the message is not signed by signer {0}")]
    Forged(SignerIndex),
    /// It was written long ago, and somebody sends it again; or the clocks differ.
    #[error("the message was written at {0}: expected a time within seconds of now, and after the last one")]
    Stale(Timestamp),
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
    /// Which span of the manager's it belongs to. Says nothing of what is to be signed, and whatever cannot be
    /// read is as if it were not there.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "TraceParent::lenient")]
    pub traceparent: Option<TraceParent>,
}

/// Manager to signer: say what you would do, and do nothing. A message of its own, and not an [`Attempt`] with a mark: a
/// signer that knows no rehearsals must not take one for the real thing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rehearsal {
    /// What would be asked.
    pub rehearsal: Attempt,
}

/// What a refresh is asked for with: new shares of a key, for the same signers, while the old ones sign on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refresh {
    /// Names it: fresh, so that no two are taken for one.
    pub id: Uuid,
    /// The cluster.
    pub cluster: String,
    /// The key's id.
    pub key: String,
    /// The epoch that ends.
    pub epoch: u64,
    /// When it is given up.
    pub expires: Timestamp,
}

/// Manager to every signer: refresh the key, all together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefreshOrder {
    /// What is asked.
    pub refresh: Refresh,
}

/// What a manager asks of a signer.
#[derive(Clone, Debug)]
pub enum Order {
    /// To take part.
    Sign(Attempt),
    /// To say what it would do.
    Rehearse(Attempt),
    /// To make new shares.
    Refresh(Refresh),
}

impl Order {
    /// An order from JSON bytes.
    ///
    /// # Errors
    /// [`WireError`] when it is of another version or no order: what is wrong with it as an attempt.
    pub fn read(bytes: &[u8]) -> Result<Self, WireError> {
        // Attempts are many, long and waited for: they are not read twice.
        from_json(bytes).map(Self::Sign).or_else(|error| {
            let rehearsal = from_json(bytes).map(|Rehearsal { rehearsal }| Self::Rehearse(rehearsal));
            let refresh = || from_json(bytes).map(|RefreshOrder { refresh }| Self::Refresh(refresh));
            rehearsal.or_else(|_| refresh()).map_err(|_| error)
        })
    }
}

/// Signer to managers, signed: what it would do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rehearsed {
    /// The request that the rehearsal was for.
    pub request: Uuid,
    /// Who says so.
    pub signer: SignerIndex,
    /// What it would do.
    pub verdict: Verdict,
}

/// What a signer would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It would take part; these are the names of those whose approvals its policy counted.
    Willing(Vec<String>),
    /// It would not, now or later.
    Refused(String),
    /// It could not now.
    Unable(String),
}

/// Signer to managers, signed: how an attempt ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The request.
    pub request: Uuid,
    /// The attempt.
    pub attempt: u32,
    /// The session, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
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
    /// A signer is alive: a [`Heartbeat`].
    Heartbeat(Signed),
    /// An [`Outcome`] that another manager received, for whichever drives the request.
    Outcome(Signed),
    /// A signer has said what it would do: a [`Rehearsed`].
    Rehearsed(Signed),
    /// A request has ended; its record is in the store.
    Finished(Uuid),
    /// To signers that have not heard it: the [`Heartbeat`]s by which all of them have stored the shares that somebody signs
    /// with now.
    Stored(Vec<Signed>),
}

/// A signer is alive, and what it can do; signed. Sent every [`HEARTBEAT`] and at each change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub signer: SignerIndex,
    /// Fresh at each start, so that two processes with one index are told apart.
    pub instance: Uuid,
    /// When it was sent: an old one that somebody sends again says nothing.
    pub at: Timestamp,
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
    /// The shares that it signs with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Commitment>,
    /// The shares of the next epoch, which it has stored, and does not sign with until all signers have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Commitment>,
    /// The last refresh that it was asked for since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refreshing>,
}

/// What all shares that were made together have in common, and no others: a hash of the key, the epoch and every signer's
/// public share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Commitment(#[serde(with = "hex::serde")] pub [u8; 32]);

/// How far a signer is with a refresh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refreshing {
    /// Which.
    pub id: Uuid,
    /// How far.
    pub step: RefreshStep,
}

/// The steps of a refresh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshStep {
    /// The signers tell each other which shares they have.
    Meeting,
    /// They make new ones.
    Dealing,
    /// The signer has stored its own, and waits until all have.
    Stored,
    /// It signs with them.
    Done,
    /// The refresh ended before, and the signer signs on with what it had. Says why.
    Failed(String),
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

crate::labels! {
    /// Why a message was not believed.
    pub enum Disbelief {
        /// It is of another version.
        Version = "version",
        /// The signer it names did not sign it.
        Forged = "forged",
        /// It is old.
        Stale = "stale",
        /// It is not such a message.
        Malformed = "malformed",
    }
}

impl From<&WireError> for Disbelief {
    fn from(error: &WireError) -> Self {
        match error {
            WireError::Version(_) => Self::Version,
            WireError::Forged(_) => Self::Forged,
            WireError::Stale(_) => Self::Stale,
            WireError::Malformed(_) => Self::Malformed,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_message_survives_json_and_another_version_is_named() {
        let outcome = Outcome {
            request: Uuid::from_u128(7),
            attempt: 1,
            session: Some(SessionId([3; 32])),
            signer: SignerIndex::new(2).unwrap(),
            ending: Ending::Aborted(Abort::timeout([SignerIndex::new(1).unwrap()].into())),
        };
        let bytes = to_json(&outcome).unwrap();
        assert_eq!(format!("{:?}", from_json::<Outcome>(&bytes).unwrap()), format!("{outcome:?}"));
        let finished = to_json(&Notice::Finished(Uuid::from_u128(7))).unwrap();
        assert!(matches!(from_json(&finished).unwrap(), Notice::Finished(id) if id == Uuid::from_u128(7)));
        let later = String::from_utf8(bytes.to_vec()).unwrap().replace("\"version\":2", "\"version\":9");
        assert_eq!(from_json::<Outcome>(later.as_bytes()).unwrap_err(), WireError::Version(9));
    }

    /// A signer from before rehearsals reads attempts only.
    #[test]
    fn a_rehearsal_is_never_taken_for_an_attempt() {
        let attempt = serde_json::json!({
            "version": 2, "request": Uuid::from_u128(7), "attempt": 1, "message": "bQ==", "engine": "dkls23",
            "epoch": 1, "quorum": [1, 2], "expires": "2030-01-01T00:00:00Z",
            "intent": {
                "cluster": "c", "key": "k", "path": "0/1", "hash": "sha256", "digest": "07".repeat(32),
                "not_after": null,
            },
        });
        let attempt: Attempt = from_json(attempt.to_string().as_bytes()).unwrap();
        let bytes = to_json(&Rehearsal { rehearsal: attempt.clone() }).unwrap();
        assert!(from_json::<Attempt>(&bytes).is_err());
        assert!(matches!(Order::read(&bytes).unwrap(), Order::Rehearse(_)));
        assert!(matches!(Order::read(&to_json(&attempt).unwrap()).unwrap(), Order::Sign(_)));
        let (cluster, key, expires) = ("c".into(), "k".into(), Timestamp::UNIX_EPOCH);
        let refresh = Refresh { id: Uuid::from_u128(7), cluster, key, epoch: 1, expires };
        let bytes = to_json(&RefreshOrder { refresh: refresh.clone() }).unwrap();
        assert!(matches!(Order::read(&bytes).unwrap(), Order::Refresh(read) if read == refresh));
        let misspelt =
            String::from_utf8(to_json(&attempt).unwrap().to_vec()).unwrap().replace("dkls23", "dkls32");
        let error = Order::read(misspelt.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("dkls32"), "{error}");
    }

    /// What a manager says that knows of traces; of two that do not, one older and one with something else there.
    #[test]
    fn a_garbled_traceparent_and_none_are_one_and_the_same() {
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let attempt = Attempt {
            request: Uuid::from_u128(7),
            attempt: 1,
            intent: Intent {
                cluster: "c".into(),
                key: "k".into(),
                path: "0/1".parse().unwrap(),
                hash: crate::intent::HashAlgorithm::Sha256,
                digest: [7; 32],
                not_after: None,
            },
            message: b"m".to_vec(),
            approvals: Vec::new(),
            engine: EngineId::Dkls23,
            epoch: 1,
            quorum: Quorum::new([1, 2].map(|index| SignerIndex::new(index).unwrap())).unwrap(),
            expires: Timestamp::UNIX_EPOCH,
            traceparent: None,
        };
        let untraced = to_json(&attempt).unwrap();
        assert!(!String::from_utf8_lossy(&untraced).contains("traceparent"));
        let traced = Attempt { traceparent: Some(traceparent.parse().unwrap()), ..attempt };
        let traced = to_json(&traced).unwrap();
        assert_eq!(from_json::<Attempt>(&traced).unwrap().traceparent.unwrap().to_string(), traceparent);
        let quoted = format!("\"{traceparent}\"");
        for garbled in ["\"\"", "null", "7", "[[1]]", "{\"a\":{}}", "\"00-\"", &quoted.to_uppercase()] {
            let text = String::from_utf8(traced.to_vec()).unwrap().replace(&quoted, garbled);
            let read: Attempt = from_json(text.as_bytes()).unwrap();
            assert_eq!(to_json(&read).unwrap(), untraced, "{garbled}");
        }
    }
}
