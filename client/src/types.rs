//! What is asked and answered: bodies of the API, field for field.
//!
//! Answers may have more fields than these, and names that a later manager knows are read as `Other`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bytes::{Hex, HexBytes};
use crate::error::ProblemKind;
use crate::names::names;

names! {
    /// How a message becomes the 32-byte digest that is signed.
    pub enum HashAlgorithm, "hash" {
        /// SHA-256 (FIPS 180-4).
        Sha256 = "sha256",
        /// SHA-256 twice, as Bitcoin hashes.
        Sha256d = "sha256d",
        /// Keccak-256 with the original padding, as Ethereum hashes.
        Keccak256 = "keccak256",
        /// `personal_sign` of Ethereum (EIP-191, version 0x45).
        Eip191 = "eip191",
        /// The message is the digest: exactly 32 bytes.
        None = "none",
    }
}

names! {
    /// How bytes are written as text.
    pub enum Encoding, "encoding" {
        /// The text's own UTF-8 bytes.
        Utf8 = "utf8",
        /// Hex digits, with or without `0x`.
        Hex = "hex",
        /// Standard base64 with padding.
        Base64 = "base64",
    }
}

names! {
    /// How far a request is.
    pub enum RequestStatus, "status" {
        /// Nobody has begun to sign it.
        Pending = "Pending",
        /// A quorum is signing it.
        InProgress = "InProgress",
        /// There is a signature.
        Completed = "Completed",
        /// There will be none.
        Failed = "Failed",
    }
}

impl RequestStatus {
    /// Whether it stays as it is.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

names! {
    /// How a part is.
    pub enum PartState, "state of a part" {
        /// It can be reached.
        Up = "up",
        /// It cannot.
        Down = "down",
    }
}

names! {
    /// Whether a signature can be made now.
    pub enum Readiness, "readiness" {
        /// One can.
        Ok = "ok",
        /// None can.
        Unavailable = "unavailable",
    }
}

/// What is to be signed. Absent parts are the manager's to choose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignRequest {
    /// The message, in `encoding`.
    pub message: String,
    /// How the message is written; UTF-8 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// How it becomes the digest that is signed; SHA-256 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashAlgorithm>,
    /// Which key signs, by its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Which derived key signs, as in `0/1/2`; `m` for the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// When the wish lapses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// Where the manager tells that the request has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<String>,
    /// Who approved it, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
}

impl SignRequest {
    /// Of a text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { message: text.into(), ..Self::default() }
    }

    /// Of bytes.
    pub fn bytes(bytes: impl AsRef<[u8]>) -> Self {
        Self { message: hex::encode(bytes), encoding: Some(Encoding::Hex), ..Self::default() }
    }

    /// Of a digest, as it is.
    pub fn digest(digest: [u8; 32]) -> Self {
        Self { hash: Some(HashAlgorithm::None), ..Self::bytes(digest) }
    }
}

/// An approver's word for what a request asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The approver's Ed25519 key.
    pub approver: Hex<32>,
    /// The approver's signature.
    pub signature: Hex<64>,
}

/// One of many requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRequest {
    /// What is to be signed.
    #[serde(flatten)]
    pub request: SignRequest,
    /// Asking twice with one key is asking once. The client makes one where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

impl From<SignRequest> for BatchRequest {
    fn from(request: SignRequest) -> Self {
        Self { request, idempotency_key: None }
    }
}

/// A request that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its id.
    pub request_id: Uuid,
    /// How far it is.
    pub status: RequestStatus,
}

/// What became of one of many requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BatchOutcome {
    /// It was accepted.
    Accepted {
        /// 201, or 200 for one that had been accepted before.
        code: u16,
        /// The request.
        #[serde(flatten)]
        accepted: Accepted,
    },
    /// It was not.
    Refused {
        /// The HTTP status that it would have had alone.
        code: u16,
        /// Why not.
        problem: Problem,
    },
}

/// Why something was not done (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:tss-network:problem:…`
    #[serde(default)]
    pub r#type: String,
    /// What it is called.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What was wrong with this request, and what was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Problem {
    /// The last part of its type.
    pub fn kind(&self) -> ProblemKind {
        match self.r#type.strip_prefix("urn:tss-network:problem:") {
            Some(kind) => kind.to_owned().into(),
            None => ProblemKind::Unspecified,
        }
    }
}

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its id.
    pub request_id: Uuid,
    /// How far it is.
    pub status: RequestStatus,
    /// How many quorums have begun to sign it.
    pub attempts: u32,
    /// The last of them.
    pub quorum: Option<Vec<u8>>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A signature, and what it is a signature of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The request.
    pub request_id: Uuid,
    /// That it is completed.
    pub status: RequestStatus,
    /// The signature's first half.
    pub r: Hex<32>,
    /// The second, at most half the group order.
    pub s: Hex<32>,
    /// Which of the keys that fit is meant, 0 to 3.
    pub recid: u8,
    /// The same as Ethereum writes it: 27 + recid.
    pub v: u8,
    /// The signature in DER.
    pub der: HexBytes,
    /// r and s.
    pub compact: Hex<64>,
    /// The derived key that signed, in compressed SEC1 form.
    pub public_key: Hex<33>,
    /// What was signed.
    pub digest: Hex<32>,
    /// What was asked for.
    pub intent: Intent,
    /// Its hash.
    pub intent_hash: Hex<32>,
}

/// Everything that makes one signature differ from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The cluster that signs.
    pub cluster: String,
    /// The key's id.
    pub key: String,
    /// Which derived key signs.
    pub path: String,
    /// How the message became the digest.
    pub hash: HashAlgorithm,
    /// What is signed.
    pub digest: Hex<32>,
    /// When the wish lapses.
    pub not_after: Option<Timestamp>,
}

names! {
    /// What a signer would do.
    pub enum Verdict, "verdict" {
        /// It would take part.
        Willing = "willing",
        /// It would not, now or later.
        Refused = "refused",
        /// It could not now.
        Unable = "unable",
        /// It did not answer.
        Silent = "silent",
    }
}

/// What would become of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRun {
    /// Whether as many signers are willing as are needed.
    pub would_sign: bool,
    /// How many are needed.
    pub threshold: u8,
    /// What would be signed.
    pub intent: Intent,
    /// The key that would sign: the key's, derived along the path.
    pub public_key: Hex<33>,
    /// Each signer's word.
    pub signers: Vec<Word>,
}

/// What a signer says that it would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Which signer.
    pub signer: u8,
    /// What it would do.
    pub verdict: Verdict,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The names of those whose approvals its policy counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<String>,
}

/// A request in the shape that the first TSS network answered in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningResult {
    /// The request.
    pub request_id: Uuid,
    /// The message, as bytes.
    pub message: Vec<u8>,
    /// How far the request is.
    pub status: RequestStatus,
    /// The signature, once there is one.
    pub signature: Option<OriginalSignature>,
}

/// A signature in the first network's shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalSignature {
    /// The signature's first half.
    pub r: Hex<32>,
    /// The second.
    pub s: Hex<32>,
    /// `signature_ready`.
    pub status: String,
    /// Which of the keys that fit is meant.
    pub recid: u8,
    /// The first coordinate of the derived public key.
    pub x: Hex<32>,
    /// The second.
    pub y: Hex<32>,
    /// The digest that was signed, as bytes.
    pub msg_int: Vec<u8>,
}

/// All keys of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// In the order of their ids.
    pub keys: Vec<Key>,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its id.
    pub key: String,
    /// Which sharing of it this is.
    pub epoch: u64,
    /// What is signed with it: `ecdsa-secp256k1`.
    pub scheme: String,
    /// How many signers sign.
    pub threshold: u8,
    /// How many there are.
    pub signers: u8,
    /// The root's.
    pub public_key: Hex<33>,
    /// The BIP-32 chain code of the root: with it, everybody can derive the public keys below.
    pub chain_code: Hex<32>,
    /// The key at the path that was asked for.
    pub derived: Derived,
}

/// The key at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derived {
    /// The path.
    pub path: String,
    /// The key, in compressed SEC1 form.
    pub public_key: Hex<33>,
    /// What it goes by elsewhere.
    pub addresses: Addresses,
}

/// What a public key goes by elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// In mixed case (EIP-55).
    pub ethereum: String,
    /// Pay to public key hash, on the main network.
    pub bitcoin_p2pkh: String,
    /// Pay to witness public key hash, on the main network.
    pub bitcoin_p2wpkh: String,
}

/// A refresh that the signers have been told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refresh {
    /// The key's id.
    pub key: String,
    /// Which refresh it is.
    pub refresh: Uuid,
    /// The epoch that ends with it.
    pub epoch: u64,
}

/// How far the signers of a key are with new shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRefresh {
    /// The key's id.
    pub key: String,
    /// The epoch on record.
    pub epoch: u64,
    /// All signers, in the order of their indices.
    pub signers: Vec<RefreshingSigner>,
}

/// How far a signer is, by its own word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshingSigner {
    /// Its index, from 1.
    pub signer: u8,
    /// Whether it is heard; else this is what it said last, if it has ever been heard.
    pub live: bool,
    /// The epoch of the shares that it signs with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The last refresh that it was asked for since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Uuid>,
    /// How far it is with that one. A signer that started again since it stored a new share is at `Stored`, of no refresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<RefreshStep>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

names! {
    /// How far a signer is with a refresh.
    pub enum RefreshStep, "step" {
        /// The signers tell each other which shares they have.
        Meeting = "meeting",
        /// They make new ones.
        Dealing = "dealing",
        /// The signer has stored its own, and waits until all have.
        Stored = "stored",
        /// It signs with it.
        Done = "done",
        /// The refresh ended before, and the signer signs on with what it had.
        Failed = "failed",
    }
}

/// A signature that may be one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// The message, in `encoding`.
    pub message: String,
    /// How the message is written; UTF-8 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// How it became the digest; SHA-256 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashAlgorithm>,
    /// r and s (64 bytes), r, s and v or recid (65 bytes), or DER.
    pub signature: HexBytes,
    /// Whose it should be, in SEC1 form; where absent, that of `key` at `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<HexBytes>,
    /// Which of the cluster's keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Which derived key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// What is known of a signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Whether the key made it over this digest, with a low s.
    pub valid: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whose it should be.
    pub public_key: Hex<33>,
    /// What it should be over.
    pub digest: Hex<32>,
}

/// How each part is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether a signature can be made now.
    pub status: Readiness,
    /// The store.
    pub store: PartState,
    /// The message bus.
    pub bus: PartState,
    /// The live signers against what is needed.
    pub signers: LiveSigners,
    /// The key that signs when a request names none, once it is on record.
    pub key: Option<HealthKey>,
}

/// The live signers against what is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveSigners {
    /// Those that can sign.
    pub live: Vec<u8>,
    /// How many must.
    pub threshold: u8,
    /// How many there are.
    pub total: u8,
}

/// A key on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthKey {
    /// Its id.
    pub id: String,
    /// Which sharing of it this is.
    pub epoch: u64,
    /// The root's.
    pub public_key: Hex<33>,
}

/// Whether requests are accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Whether they are.
    pub ready: bool,
    /// What is missing, if they are not.
    pub missing: Vec<String>,
}

/// What a manager sees of the network, and has done lately.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// The cluster's name.
    pub cluster: String,
    /// The manager's version and revision.
    pub version: String,
    /// The manager's time.
    pub now: Timestamp,
    /// Whether a signature can be made now.
    pub status: Readiness,
    /// The store.
    pub store: PartState,
    /// The message bus.
    pub bus: PartState,
    /// How many signers sign.
    pub threshold: u8,
    /// All signers, in the order of their indices.
    pub signers: Vec<OverviewSigner>,
    /// The ids of the keys on record.
    pub keys: Vec<String>,
    /// How many requests have not ended.
    pub unfinished: u64,
    /// How many of them this manager drives now.
    pub active: u64,
    /// What this manager has done lately.
    pub series: Series,
    /// The last requests, newest first.
    pub recent: Vec<Summary>,
}

/// A signer, as the manager sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverviewSigner {
    /// Its index, from 1.
    pub signer: u8,
    /// Whether it is heard.
    pub live: bool,
    /// Whether it is, and holds the key on record.
    pub usable: bool,
    /// When it was heard last.
    pub heard_at: Option<Timestamp>,
}

/// Counts and latencies over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// How many seconds each point stands for.
    pub step_seconds: u64,
    /// Oldest first.
    pub points: Vec<Point>,
}

/// One step of a [`Series`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// When it began.
    pub at: Timestamp,
    /// How many requests were signed.
    pub completed: u64,
    /// How many failed.
    pub failed: u64,
    /// Seconds to the signature, of the middle one; of none if none was signed.
    pub p50: Option<f64>,
    /// The same, of the 99th of a hundred.
    pub p99: Option<f64>,
}

/// What a request asked for, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its id.
    pub request_id: Uuid,
    /// How far it is.
    pub status: RequestStatus,
    /// The key's id.
    pub key: String,
    /// Which derived key.
    pub path: String,
    /// How the message became the digest.
    pub hash: HashAlgorithm,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it ended, if it has.
    pub finished_at: Option<Timestamp>,
    /// How many quorums have begun to sign it.
    pub attempts: u32,
    /// The last of them.
    pub quorum: Option<Vec<u8>>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Which requests are listed: those that fit all that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestFilter {
    /// How far they are.
    pub status: Option<RequestStatus>,
    /// The key's id.
    pub key: Option<String>,
    /// When they were accepted, at the earliest.
    pub created_after: Option<Timestamp>,
    /// When they were accepted, at the latest.
    pub created_before: Option<Timestamp>,
    /// How many are on a page, 1 to 200; the manager's choice where absent.
    pub limit: Option<u16>,
}

/// A page of the requests, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestPage {
    /// The requests.
    pub requests: Vec<ListedRequest>,
    /// What asks for the next page, if there is one.
    pub next: Option<String>,
}

/// A request in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedRequest {
    /// What it asked for, and how far it is.
    #[serde(flatten)]
    pub summary: Summary,
    /// What is signed.
    pub digest: Hex<32>,
    /// Who asked for it, where managers ask who asks.
    pub requested_by: Option<String>,
}

/// All that is told of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestDetail {
    /// What it asked for, and how far it is.
    #[serde(flatten)]
    pub summary: Summary,
    /// What is signed.
    pub digest: Hex<32>,
    /// When it fails if it is not signed.
    pub deadline: Timestamp,
    /// What happened to it, in order.
    pub timeline: Vec<TimelineEntry>,
}

/// One thing that happened to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEntry {
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: TimelineEvent,
    /// Which attempt it was, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Whose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<Vec<u8>>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

names! {
    /// What can happen to a request.
    pub enum TimelineEvent, "event" {
        /// It was accepted.
        Accepted = "accepted",
        /// A quorum began to sign it.
        Attempt = "attempt",
        /// It was signed.
        Completed = "completed",
        /// It failed.
        Failed = "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_is_sent() {
        let request = SignRequest::text("hello");
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"message":"hello"}"#);
        let request =
            BatchRequest { idempotency_key: Some("1".into()), ..SignRequest::digest([1; 32]).into() };
        let sent = serde_json::to_value(&request).unwrap();
        let expected = serde_json::json!({
            "message": "01".repeat(32), "encoding": "hex", "hash": "none", "idempotency_key": "1",
        });
        assert_eq!(sent, expected);
    }

    #[test]
    fn fields_and_names_of_a_later_manager_break_nothing() {
        let text = r#"{"request_id": "550e8400-e29b-41d4-a716-446655440000", "status": "Paused", "attempts": 1,
            "quorum": [1, 3], "colour": "red"}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!(status.status, RequestStatus::Other("Paused".into()));
        assert!(!status.status.is_final());
        assert_eq!(status.quorum, Some(vec![1, 3]));
    }

    #[test]
    fn one_of_many_is_accepted_or_refused() {
        let text = r#"[{"code": 201, "request_id": "550e8400-e29b-41d4-a716-446655440000", "status": "Pending"},
            {"code": 422, "problem": {"type": "urn:tss-network:problem:invalid-request", "title": "t", "status": 422}}]"#;
        let outcomes: Vec<BatchOutcome> = serde_json::from_str(text).unwrap();
        assert!(matches!(&outcomes[0], BatchOutcome::Accepted { code: 201, .. }));
        let BatchOutcome::Refused { problem, .. } = &outcomes[1] else { panic!("{outcomes:?}") };
        assert_eq!(problem.kind(), ProblemKind::InvalidRequest);
    }
}
