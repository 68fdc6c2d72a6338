//! What a SigningRequest asks for, and how far it is. Looks at nothing but its input.

use jiff::{SignedDuration, Timestamp};
use tss_common::intent::{Encoding, HashAlgorithm};
use tss_mpc::DerivationPath;
use uuid::Uuid;

use super::cause::{self, Cause};
use super::dereference::{Cluster, Dereferenced};
use crate::condition;
use crate::crd::{self, Approval, Scheme, SigningRequest, SigningRequestStatus, TssCluster};

/// How long past its deadline a manager is asked what became of a request, at least.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// What is to be looked after.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// It is being deleted.
    Deleted,
    /// It has ended, and is to be deleted at this time if any.
    Finished(Option<Timestamp>),
    /// What it asks for can never be signed.
    Impossible(Cause),
    /// It waits for its signature.
    Open(Box<Request>),
}

/// What a SigningRequest asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The object's uid: what the manager knows the request by, so that asking twice signs once.
    pub key: String,
    /// The object's namespace, which is the cluster's too.
    pub namespace: String,
    /// The cluster's name.
    pub cluster: String,
    /// What its managers speak; of no use while there is no cluster.
    pub scheme: Scheme,
    /// What is signed, in `encoding`.
    pub message: String,
    /// How the message is written.
    pub encoding: Encoding,
    /// How it becomes the digest.
    pub hash: HashAlgorithm,
    /// What is signed, in hex.
    pub digest: String,
    /// The path of the key that signs; not known while there is no cluster and the object names none.
    pub path: Option<DerivationPath>,
    /// When the signers stop signing it.
    pub not_after: Option<Timestamp>,
    /// Who approved it.
    pub approvals: Vec<Approval>,
    /// When the object was created.
    pub created: Timestamp,
    /// Until when it may be sent to a manager.
    pub deadline: Timestamp,
    /// How long a manager is asked, once it cannot be, before the result counts as unknown.
    pub grace: SignedDuration,
    /// Whether the cluster signs, or what has to happen first.
    pub ready: Result<(), Cause>,
    /// The public key that the cluster says is at this path, if it says.
    pub public_key: Option<String>,
    /// How far it is.
    pub progress: Progress,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No manager has it.
    Fresh,
    /// It was sent to a manager, and no answer is known.
    Perhaps,
    /// A manager has it under this id.
    Taken(Uuid),
}

/// A part of an object that the API server always sets.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object has no {0}: expected one, as the API server sets it")]
pub struct Incomplete(&'static str);

/// What is to be looked after.
///
/// # Errors
/// [`Incomplete`] for an object that does not come from an API server.
pub fn validate(Dereferenced { object, cluster }: &Dereferenced) -> Result<Stage, Incomplete> {
    let metadata = &object.metadata;
    if metadata.deletion_timestamp.is_some() {
        return Ok(Stage::Deleted);
    }
    let status = object.status.clone().unwrap_or_default();
    if let Some(at) = finished_at(&status) {
        let ttl = object.spec.ttl_seconds_after_finished;
        return Ok(Stage::Finished(ttl.map(|seconds| after(at, seconds))));
    }
    let created = metadata.creation_timestamp.as_ref().ok_or(Incomplete("creationTimestamp"))?.0;
    let deadline = after(created, object.spec.deadline_seconds);
    let wish = match read(object) {
        Ok(wish) => wish,
        Err(message) => return Ok(Stage::Impossible(Cause::new(cause::INVALID_REQUEST, message))),
    };
    let spec = &object.spec;
    let expiry = spec.not_after.as_ref().map(|time| time.0);
    let found = match cluster {
        Cluster::Found(cluster) => Some(cluster.as_ref()),
        Cluster::Missing | Cluster::Malformed(_) => None,
    };
    let path = wish.path.or_else(|| found?.spec.derivation_path.parse().ok());
    Ok(Stage::Open(Box::new(Request {
        key: metadata.uid.clone().ok_or(Incomplete("uid"))?,
        namespace: metadata.namespace.clone().ok_or(Incomplete("namespace"))?,
        cluster: spec.cluster_ref.name.clone(),
        scheme: found.map_or(Scheme::Http, |cluster| cluster.spec.manager.scheme()),
        message: wish.message,
        encoding: wish.encoding,
        hash: wish.hash,
        digest: wish.digest,
        // Approvals are over exactly the time that they were given for, or over none. Without them the
        // signers are told of the deadline. It is the same time at every try: it is part of what the manager
        // compares when it is asked again.
        not_after: if spec.approvals.is_empty() {
            Some(expiry.map_or(deadline, |time| time.min(deadline)))
        } else {
            expiry
        },
        approvals: spec.approvals.clone(),
        created,
        deadline: expiry.map_or(deadline, |time| time.min(deadline)),
        grace: found.map_or(GRACE, |cluster| {
            GRACE.max(SignedDuration::from_secs(cluster.spec.signing_timeout_seconds.into()))
        }),
        ready: ready(cluster, &spec.cluster_ref.name),
        public_key: path.as_ref().and_then(|path| public_key(found?, path)),
        path,
        progress: progress(&status),
    })))
}

/// When a request ended, if it has.
pub fn finished_at(status: &SigningRequestStatus) -> Option<Timestamp> {
    let conditions = &status.conditions;
    let ended = conditions.iter().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    });
    status.finished_at.as_ref().or(ended.map(|condition| &condition.last_transition_time)).map(|time| time.0)
}

fn progress(status: &SigningRequestStatus) -> Progress {
    if let Some(id) = status.request_id.as_deref().and_then(|id| id.parse().ok()) {
        return Progress::Taken(id);
    }
    // `Unknown` is written before a request is sent, and stays until an answer says otherwise.
    match status.conditions.iter().find(|condition| condition.type_ == "Accepted") {
        Some(accepted) if accepted.status != "False" => Progress::Perhaps,
        _ => Progress::Fresh,
    }
}

fn after(time: Timestamp, seconds: i32) -> Timestamp {
    time.saturating_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX)
}

/// The parts of a wish that can be wrong.
struct Wish {
    message: String,
    encoding: Encoding,
    hash: HashAlgorithm,
    digest: String,
    path: Option<DerivationPath>,
}

/// Reads a wish as the manager does, so that what is wrong is said at once, and so that the digest is known which
/// the manager's answer must be about.
fn read(object: &SigningRequest) -> Result<Wish, String> {
    let spec = &object.spec;
    let (message, encoding, hash, field) = match (&spec.message, &spec.digest) {
        (Some(message), None) => {
            let encoding = match spec.encoding.unwrap_or(crd::Encoding::Utf8) {
                crd::Encoding::Utf8 => Encoding::Utf8,
                crd::Encoding::Hex => Encoding::Hex,
                crd::Encoding::Base64 => Encoding::Base64,
            };
            let hash = match spec.hash.unwrap_or(crd::Hash::Sha256) {
                crd::Hash::Sha256 => HashAlgorithm::Sha256,
                crd::Hash::Sha256d => HashAlgorithm::Sha256d,
                crd::Hash::Keccak256 => HashAlgorithm::Keccak256,
                crd::Hash::Eip191 => HashAlgorithm::Eip191,
            };
            (message.clone(), encoding, hash, "message")
        }
        (None, Some(digest)) => (digest.clone(), Encoding::Hex, HashAlgorithm::None, "digest"),
        _ => return Err("expected either message or digest".into()),
    };
    let bytes = encoding.decode(&message).map_err(|error| format!("{field}: {error}"))?;
    let digest = hash.digest(&bytes).map_err(|error| format!("{field}: {error}"))?;
    let path = spec.derivation_path.as_deref().map(str::parse).transpose();
    let path = path.map_err(|error| format!("derivationPath: {error}"))?;
    Ok(Wish { message, encoding, hash, digest: in_hex(&digest), path })
}

fn in_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the cluster signs, or what has to happen first.
fn ready(cluster: &Cluster, name: &str) -> Result<(), Cause> {
    let cluster = match cluster {
        Cluster::Found(cluster) => cluster,
        Cluster::Missing => {
            let message = format!("there is no TssCluster {name} in this namespace");
            return Err(Cause::new(cause::CLUSTER_NOT_FOUND, message));
        }
        Cluster::Malformed(error) => {
            let message = format!("the TssCluster {name} cannot be read: {error}");
            return Err(Cause::new(cause::CLUSTER_NOT_READY, message));
        }
    };
    if signs(cluster) {
        return Ok(());
    }
    let conditions = cluster.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let message = match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status != "True" => {
            format!("the TssCluster {name} is not Ready: {}: {}", ready.reason, ready.message)
        }
        Some(_) => format!("the TssCluster {name} has no key yet"),
        None => format!("the TssCluster {name} is not Ready yet"),
    };
    Err(Cause::new(cause::CLUSTER_NOT_READY, message))
}

/// Whether a cluster has a key and signs.
pub fn signs(cluster: &TssCluster) -> bool {
    cluster
        .status
        .as_ref()
        .is_some_and(|status| status.public_key.is_some() && condition::is_true(&status.conditions, "Ready"))
}

/// The public key that a cluster says is at this path.
fn public_key(cluster: &TssCluster, path: &DerivationPath) -> Option<String> {
    let addresses = cluster.status.as_ref()?.addresses.as_ref()?;
    let same = addresses.path.parse::<DerivationPath>().is_ok_and(|own| own == *path);
    same.then(|| addresses.public_key.clone())
}
