//! `SigningRequest`: one message that a cluster signs once.

// Each printer column has a type.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DERIVATION_PATH;

/// One message that a TssCluster signs, once.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tss.network",
    version = "v1alpha1",
    kind = "SigningRequest",
    namespaced,
    shortname = "sr",
    category = "tss-network",
    status = "SigningRequestStatus",
    derive = "PartialEq",
    doc = "One message that a TssCluster signs, once. `kubectl wait --for=condition=Complete` waits for the signature, which then stands in the status and never changes.",
    selectable = ".spec.clusterRef.name",
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name",
        description = "the TssCluster that signs"
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "how far it is"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Failed")].reason"#,
        description = "why it failed"
    ),
    printcolumn(
        name = "Signature",
        type_ = "string",
        json_path = ".status.signature.compact",
        priority = 1,
        description = "r and s"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.finishedAt) || (has(self.status) && self.status == oldSelf.status)")
        .message("the status of a finished request never changes")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf")
        .message("the spec is immutable: what is signed is asked for once. Make another SigningRequest"),
    validation = Rule::new("has(self.message) != has(self.digest)")
        .message("expected either message or digest"),
    validation = Rule::new("!has(self.digest) || (!has(self.encoding) && !has(self.hash))")
        .message("encoding and hash: expected with message only, a digest is 32 bytes in hex and signed as it is"),
)]
pub struct SigningRequestSpec {
    /// The TssCluster that signs, in the same namespace.
    pub cluster_ref: ClusterRef,
    /// What is signed, written in `encoding`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub message: Option<String>,
    /// What is signed, when it has been hashed already: 32 bytes in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 66), regex(pattern = "^(0x)?[0-9a-fA-F]{64}$"))]
    pub digest: Option<String>,
    /// How the message is written: `utf8` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// How the message becomes the digest that is signed: `sha256` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<Hash>,
    /// Which derived key signs; the one at the cluster's derivationPath when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 180), regex(pattern = DERIVATION_PATH))]
    pub derivation_path: Option<String>,
    /// Seconds from its creation in which it is sent to the manager and signed. The signers sign nothing later, unless
    /// it has approvals: those are over `notAfter`, and it alone binds the signers then.
    #[serde(default = "deadline")]
    #[schemars(range(min = 1, max = 86_400))]
    pub deadline_seconds: i32,
    /// Seconds after which a finished request is deleted; never when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i32>,
    /// A time after which the signers sign it no more, as approvers have approved it. The earlier of it and
    /// deadlineSeconds ends the wait for the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Time>,
    /// Who approved it, as `tssctl approve` prints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub approvals: Vec<Approval>,
}

fn deadline() -> i32 {
    60
}

/// A TssCluster in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRef {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// How a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As the text itself.
    Utf8,
    /// In hex, with or without `0x`.
    Hex,
    /// In base64.
    Base64,
}

/// How a message becomes the digest that is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-256 twice, as Bitcoin hashes.
    Sha256d,
    /// Keccak-256, as Ethereum hashes.
    Keccak256,
    /// Ethereum's `personal_sign` (EIP-191).
    Eip191,
}

/// An approver's word for exactly this request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// The approver's Ed25519 key, in hex.
    #[schemars(length(min = 64, max = 64), regex(pattern = "^[0-9a-f]{64}$"))]
    pub approver: String,
    /// The approver's Ed25519 signature, in hex.
    #[schemars(length(min = 128, max = 128), regex(pattern = "^[0-9a-f]{128}$"))]
    pub signature: String,
}

/// How far a request is. Once `Complete` or `Failed` is True, nothing here changes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SigningRequestStatus {
    /// `Accepted`: whether a manager has it, Unknown while one may. `Complete`: whether it is signed, Unknown while the
    /// manager does not say. `Failed`: it never will be.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 8))]
    pub conditions: Vec<Condition>,
    /// The conditions in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The manager's request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    pub request_id: Option<String>,
    /// How often a quorum has tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<i64>,
    /// The signers that signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub quorum: Vec<i32>,
    /// The signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<SignatureStatus>,
    /// When a manager took it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_at: Option<Time>,
    /// When it was signed or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// No manager has taken it yet.
    Pending,
    /// A manager has it.
    Accepted,
    /// It is signed.
    Complete,
    /// It was not signed, and never will be.
    Failed,
}

/// A signature, all numbers in hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignatureStatus {
    /// The number r.
    #[schemars(length(max = 64))]
    pub r: String,
    /// The number s, at most half of the group's order.
    #[schemars(length(max = 64))]
    pub s: String,
    /// Which of the possible public keys it is, 0 to 3.
    pub recid: i32,
    /// 27 + recid, as Ethereum writes it.
    pub v: i32,
    /// The signature in DER.
    #[schemars(length(max = 160))]
    pub der: String,
    /// r and s, 64 bytes.
    #[schemars(length(max = 128))]
    pub compact: String,
    /// The public key that it verifies with: derived, SEC1 compressed.
    #[schemars(length(max = 66))]
    pub public_key: String,
    /// The 32 bytes that were signed.
    #[schemars(length(max = 64))]
    pub digest: String,
    /// The path of the key that signed.
    #[schemars(length(max = 180))]
    pub path: String,
}
