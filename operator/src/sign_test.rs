//! `operator sign-test`: has a network sign a message that nobody has signed before, and checks the signature
//! itself. `helm test` runs it in a Pod.
//!
//! It believes no status: the digest is that of its own message, the key that of the TssCluster, and the arithmetic
//! is done here.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k256::ecdsa::signature::hazmat::PrehashVerifier as _;
use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout};
use tss_common::backoff::Backoff;
use uuid::Uuid;

use crate::condition;
use crate::context::FIELD_MANAGER;
use crate::crd::{
    Addresses, ClusterRef, SignatureStatus, SigningRequest, SigningRequestSpec, SigningRequestStatus,
    TssCluster,
};

/// The API server has so long for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the request is looked at.
const POLL: Duration = Duration::from_millis(500);
/// How many seconds a request that was not signed stays for people to look at.
const KEPT: i32 = 3600;

/// What is tested.
#[derive(Clone, Debug, clap::Args)]
pub struct SignTestOptions {
    /// The TssCluster that signs.
    #[arg(long)]
    pub cluster: String,
    /// Its namespace; when absent, this Pod's own or that of the kubeconfig.
    #[arg(long)]
    pub namespace: Option<String>,
    /// How long all of it may take: 60s, 2m.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    parsed
        .filter(|time| (1..=3600).contains(&time.as_secs()))
        .ok_or_else(|| "expected a time from 1s to 1h, as 60s or 2m".into())
}

/// Has a new message signed and checks the signature.
///
/// # Errors
/// When it is not signed in time, or what stands in the status is not the signature.
pub async fn sign_test(client: &Client, options: &SignTestOptions) -> anyhow::Result<()> {
    let namespace = options.namespace.as_deref().unwrap_or(client.default_namespace());
    let clusters: Api<TssCluster> = Api::namespaced(client.clone(), namespace);
    let requests: Api<SigningRequest> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + options.timeout;
    let id = Uuid::new_v4().simple();
    let (name, message) = (format!("sign-test-{id}"), format!("test of a TSS network {id}"));
    let digest = Sha256::digest(&message).into();

    let cluster = format!("TssCluster {namespace}/{}", options.cluster);
    // Before anything is made: the name may be wrong.
    ask(deadline, &cluster, || clusters.get(&options.cluster)).await?;

    let request = request(&name, message, options);
    let asked = format!("SigningRequest {namespace}/{name}");
    ask(deadline, &asked, || create(&requests, &request)).await?;
    tracing::info!(name, "the request is made");
    let signature = signed(&requests, &name, deadline)
        .await
        .with_context(|| format!("{asked}, which stays for up to {KEPT} seconds"))?;

    let status = ask(deadline, &cluster, || clusters.get(&options.cluster)).await?.status;
    let key = status
        .and_then(|status| status.addresses)
        .with_context(|| format!("{cluster} has a signature but no key in its status"))?;
    verify(&signature, &key, &digest).with_context(|| format!("{asked} has no valid signature"))?;
    println!("{cluster} has signed: {} verifies with its key {}", signature.compact, key.public_key);

    match timeout(PATIENCE, requests.delete(&name, &DeleteParams::default())).await {
        Ok(Ok(_)) => {}
        // It goes on its own, an hour later.
        Ok(Err(error)) => tracing::warn!(name, %error, "the request is not deleted"),
        Err(_) => tracing::warn!(name, "the request is not deleted: no answer"),
    }
    Ok(())
}

fn request(name: &str, message: String, options: &SignTestOptions) -> SigningRequest {
    let seconds = i32::try_from(options.timeout.as_secs()).unwrap_or(i32::MAX);
    let spec = SigningRequestSpec {
        cluster_ref: ClusterRef { name: options.cluster.clone() },
        message: Some(message),
        digest: None,
        encoding: None,
        hash: None,
        derivation_path: None,
        deadline_seconds: seconds,
        ttl_seconds_after_finished: Some(KEPT),
        not_after: None,
        approvals: Vec::new(),
    };
    SigningRequest::new(name, spec)
}

/// The name is this run's alone, so one that is there already is of a try whose answer was lost.
async fn create(requests: &Api<SigningRequest>, request: &SigningRequest) -> kube::Result<()> {
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match requests.create(&params, request).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}

/// Asks the API server until it answers. An answer that will not change is an error at once.
async fn ask<T, F>(deadline: Instant, about: &str, mut question: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
    loop {
        let problem = match timeout(PATIENCE, question()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(kube::Error::Api(status))) => {
                // A RoleBinding that is a moment old may not be in force yet.
                let passing = matches!(status.code, 403 | 408 | 429 | 500..);
                ensure!(passing, "{about}: {}", status.message);
                status.message.clone()
            }
            Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
            Err(_) => format!("the API server has not answered for {PATIENCE:?}"),
        };
        let delay = backoff.delay();
        ensure!(Instant::now() + delay < deadline, "{about}: {problem}");
        tracing::warn!(about, problem, "asking again");
        sleep(delay).await;
    }
}

/// Waits for the signature.
async fn signed(
    requests: &Api<SigningRequest>,
    name: &str,
    deadline: Instant,
) -> anyhow::Result<SignatureStatus> {
    loop {
        let status = ask(deadline, "the request", || requests.get(name)).await?.status.unwrap_or_default();
        if let Some(signature) = outcome(&status)? {
            return Ok(signature);
        }
        ensure!(Instant::now() + POLL < deadline, "not signed in time: {}", waits_for(&status.conditions));
        sleep(POLL).await;
    }
}

/// The signature, once there is one.
fn outcome(status: &SigningRequestStatus) -> anyhow::Result<Option<SignatureStatus>> {
    if let Some(failed) = status.conditions.iter().find(|it| it.type_ == "Failed" && it.status == "True") {
        bail!("it failed, {}: {}", failed.reason, failed.message);
    }
    if !condition::is_true(&status.conditions, "Complete") {
        return Ok(None);
    }
    let signature = status.signature.clone().context("it is Complete, and has no signature")?;
    Ok(Some(signature))
}

/// What a request waits for, in the operator's words.
fn waits_for(conditions: &[Condition]) -> String {
    let waiting = conditions.iter().find(|it| it.type_ == "Accepted" && it.status != "True");
    match waiting.or_else(|| conditions.iter().find(|it| it.type_ == "Complete")) {
        Some(condition) => format!("{}: {}", condition.reason, condition.message),
        None => "no operator has looked at it; does one run, and watch this namespace?".into(),
    }
}

/// Why what stands in a status is not the signature that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Something cannot be read.
    #[error("{field} is '{found}': expected {expected}")]
    Garbled {
        /// Which field of the status.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// Another message was signed.
    #[error("the digest {found} was signed: expected {expected}, the message's")]
    Digest {
        /// What was signed.
        found: String,
        /// What should have been.
        expected: String,
    },
    /// Another path's key is said to have signed.
    #[error("the key at {found} has signed: expected the one at {expected}")]
    Path {
        /// The request's.
        found: String,
        /// The cluster's.
        expected: String,
    },
    /// Another key is said to have signed.
    #[error("the key {found} has signed: expected the cluster's, {expected}")]
    Key {
        /// The request's.
        found: String,
        /// The cluster's.
        expected: String,
    },
    /// The forms in which the signature stands there are of different signatures.
    #[error("{0} is not the signature that `compact` is")]
    Forms(&'static str),
    /// s is in the upper half.
    #[error("s is high: expected the low form (BIP-62)")]
    HighS,
    /// The arithmetic says no.
    #[error("the signature does not fit the key and the message")]
    Signature,
}

/// That this is a signature of the digest by the cluster's key, in all forms in which it stands there.
///
/// # Errors
/// [`Wrong`], with the first thing that is.
pub fn verify(signature: &SignatureStatus, cluster: &Addresses, digest: &[u8; 32]) -> Result<(), Wrong> {
    // Requests of this test name no path, so it is the cluster's, and so is the key.
    if signature.path != cluster.path {
        return Err(Wrong::Path { found: signature.path.clone(), expected: cluster.path.clone() });
    }
    if signature.public_key != cluster.public_key {
        return Err(Wrong::Key { found: signature.public_key.clone(), expected: cluster.public_key.clone() });
    }
    let expected = hex::encode(digest);
    if signature.digest != expected {
        return Err(Wrong::Digest { found: signature.digest.clone(), expected });
    }
    let key = read("publicKey", &cluster.public_key, "a public key, SEC1 compressed, in hex", |bytes| {
        VerifyingKey::from_sec1_bytes(bytes).ok()
    })?;
    let compact = read("compact", &signature.compact, "r and s, 64 bytes in hex", |bytes| {
        Signature::from_slice(bytes).ok()
    })?;
    let der =
        read("der", &signature.der, "a signature in DER, in hex", |bytes| Signature::from_der(bytes).ok())?;
    if der != compact {
        return Err(Wrong::Forms("der"));
    }
    if format!("{}{}", signature.r, signature.s) != signature.compact {
        return Err(Wrong::Forms("r, s"));
    }
    if compact.normalize_s() != compact {
        return Err(Wrong::HighS);
    }
    key.verify_prehash(digest, &compact).map_err(|_| Wrong::Signature)?;
    let recovered = u8::try_from(signature.recid)
        .ok()
        .and_then(RecoveryId::from_byte)
        .and_then(|id| VerifyingKey::recover_from_prehash(digest, &compact, id).ok());
    if recovered != Some(key) {
        return Err(Wrong::Forms("recid"));
    }
    if signature.v != 27 + signature.recid {
        return Err(Wrong::Forms("v"));
    }
    Ok(())
}

fn read<T>(
    field: &'static str,
    text: &str,
    expected: &'static str,
    parse: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<T, Wrong> {
    let wrong = || Wrong::Garbled { field, found: text.into(), expected };
    hex::decode(text).ok().and_then(|bytes| parse(&bytes)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use k256::ecdsa::SigningKey;
    use serde_json::json;

    use super::*;

    const DIGEST: [u8; 32] = [7; 32];

    /// A signature of the digest by the key of this number, as it stands in a status.
    fn signature(key: u8, digest: &[u8; 32]) -> SignatureStatus {
        let key = SigningKey::from_slice(&[key; 32]).unwrap();
        let (signature, recid) = key.sign_prehash_recoverable(digest);
        let compact = hex::encode(signature.to_bytes());
        SignatureStatus {
            r: compact[..64].into(),
            s: compact[64..].into(),
            recid: recid.to_byte().into(),
            v: 27 + i32::from(recid.to_byte()),
            der: hex::encode(signature.to_der().as_bytes()),
            public_key: hex::encode(key.verifying_key().to_sec1_point(true).as_bytes()),
            compact,
            digest: hex::encode(digest),
            path: "0/1/2".into(),
        }
    }

    fn cluster(key: u8) -> Addresses {
        Addresses {
            path: "0/1/2".into(),
            public_key: signature(key, &DIGEST).public_key,
            ethereum: String::new(),
            bitcoin: String::new(),
        }
    }

    /// What is wrong with the right signature after a change.
    fn after(change: impl FnOnce(&mut SignatureStatus)) -> Wrong {
        let mut signature = signature(1, &DIGEST);
        change(&mut signature);
        verify(&signature, &cluster(1), &DIGEST).expect_err("something is wrong")
    }

    #[test]
    fn the_clusters_signature_of_the_message_is_right() {
        assert_eq!(verify(&signature(1, &DIGEST), &cluster(1), &DIGEST), Ok(()));
    }

    #[test]
    fn a_signature_by_another_key_is_wrong() {
        let other = signature(2, &DIGEST);
        assert!(matches!(verify(&other, &cluster(1), &DIGEST), Err(Wrong::Key { .. })));
        let claims_to_be_ours = SignatureStatus { public_key: cluster(1).public_key, ..other };
        assert_eq!(verify(&claims_to_be_ours, &cluster(1), &DIGEST), Err(Wrong::Signature));
    }

    #[test]
    fn a_signature_of_another_message_is_wrong() {
        let other = signature(1, &[8; 32]);
        assert!(matches!(verify(&other, &cluster(1), &DIGEST), Err(Wrong::Digest { .. })));
        let claims_to_be_of_it = SignatureStatus { digest: hex::encode(DIGEST), ..other };
        assert_eq!(verify(&claims_to_be_of_it, &cluster(1), &DIGEST), Err(Wrong::Signature));
    }

    #[test]
    fn a_signature_at_another_path_is_wrong() {
        let wrong = after(|it| it.path = "0/1/3".into());
        assert_eq!(wrong.to_string(), "the key at 0/1/3 has signed: expected the one at 0/1/2");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for text in ["", "zz", "00", &"ff".repeat(64)] {
            let wrong = after(|it| it.compact = text.into());
            assert!(matches!(wrong, Wrong::Garbled { field: "compact", .. }), "{text}: {wrong}");
            let wrong = after(|it| it.der = text.into());
            assert!(matches!(wrong, Wrong::Garbled { field: "der", .. }), "{text}: {wrong}");
        }
        let key = Addresses { public_key: "02".repeat(33), ..cluster(1) };
        let signature = SignatureStatus { public_key: key.public_key.clone(), ..signature(1, &DIGEST) };
        let wrong = verify(&signature, &key, &DIGEST);
        assert!(matches!(wrong, Err(Wrong::Garbled { field: "publicKey", .. }) | Err(Wrong::Signature)));
    }

    #[test]
    fn forms_of_different_signatures_are_wrong() {
        let other = signature(1, &[8; 32]);
        assert_eq!(after(|it| it.der.clone_from(&other.der)), Wrong::Forms("der"));
        assert_eq!(after(|it| it.r.clone_from(&other.r)), Wrong::Forms("r, s"));
        assert_eq!(after(|it| it.recid = 1 - it.recid), Wrong::Forms("recid"));
        assert_eq!(after(|it| it.recid = -1), Wrong::Forms("recid"));
        assert_eq!(after(|it| it.v = 0), Wrong::Forms("v"));
    }

    #[test]
    fn a_high_s_is_wrong() {
        let low = signature(1, &DIGEST);
        let parsed = Signature::from_slice(&hex::decode(&low.compact).unwrap()).unwrap();
        let high = Signature::from_scalars(parsed.r().to_bytes(), (-*parsed.s()).to_bytes()).unwrap();
        let compact = hex::encode(high.to_bytes());
        let wrong = after(|it| {
            it.der = hex::encode(high.to_der().as_bytes());
            it.s = compact[64..].into();
            it.compact = compact;
        });
        assert_eq!(wrong, Wrong::HighS);
    }

    fn status(conditions: serde_json::Value) -> SigningRequestStatus {
        serde_json::from_value(json!({"conditions": conditions})).unwrap()
    }

    fn condition(kind: &str, status: &str, reason: &str, message: &str) -> serde_json::Value {
        let time = "2026-01-01T00:00:00Z";
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": time})
    }

    #[test]
    fn a_request_that_failed_says_why() {
        let status =
            status(json!([condition("Failed", "True", "PolicyRefused", "path 0/1/2 is not allowed")]));
        let error = outcome(&status).expect_err("it failed");
        assert_eq!(error.to_string(), "it failed, PolicyRefused: path 0/1/2 is not allowed");
    }

    #[test]
    fn a_request_without_an_end_says_what_it_waits_for() {
        let waiting = status(json!([condition("Accepted", "False", "ClusterNotReady", "no quorum")]));
        assert_eq!(outcome(&waiting).unwrap(), None);
        assert_eq!(waits_for(&waiting.conditions), "ClusterNotReady: no quorum");
        assert!(waits_for(&[]).contains("no operator has looked at it"));
    }

    #[test]
    fn complete_without_a_signature_is_an_error() {
        let status = status(json!([condition("Complete", "True", "Signed", "")]));
        assert!(outcome(&status).is_err());
    }

    #[test]
    fn times_have_a_unit_and_bounds() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "60", "0s", "-5s", "2h", "soon"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
