//! In what order signers are changed: one at a time, while a quorum of the others signs. Pure.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::apply::is_as_desired;
use super::build::Object;
use super::dereference::Observed;
use super::names;
use super::validate::Cluster;

/// How long the others wait for a signer that does not come back. After that it does not hold up a change as long as a
/// quorum of others signs: its node may be lost.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// The StatefulSets of signers that are not changed now.
pub fn held(cluster: &Cluster, observed: &Observed, desired: &[Object], now: Timestamp) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    let mut chosen = false;
    for index in cluster.indices() {
        let name = names::signer(&cluster.name, index);
        let object = desired.iter().find(|object| object.kind() == "StatefulSet" && object.name == name);
        let (Some(object), Some(live)) = (object, observed.find("StatefulSet", &name)) else { continue };
        // One that does not sign has nothing to lose: the change may be what it waits for.
        if is_as_desired(live, object) || !is_ready(observed, index) {
            continue;
        }
        if !chosen && others_sign(cluster, observed, index, now) {
            chosen = true;
        } else {
            held.insert(name);
        }
    }
    held
}

/// Whether a signer signs. One whose StatefulSet has changed and whose Pod has not yet does not count.
pub fn is_ready(observed: &Observed, index: u8) -> bool {
    let name = names::signer(&observed.object.metadata.name.clone().unwrap_or_default(), index);
    let settled = observed.find("StatefulSet", &name).is_some_and(|live| is_settled(&live.body));
    settled && observed.pods.get(&index).is_some_and(|pod| pod.ready)
}

/// Whether Kubernetes has done everything that a StatefulSet or Deployment asks for.
pub fn is_settled(body: &serde_json::Value) -> bool {
    let number = |path: &str| body.pointer(path).and_then(serde_json::Value::as_i64);
    let text = |path: &str| body.pointer(path).and_then(serde_json::Value::as_str);
    number("/status/observedGeneration") >= number("/metadata/generation")
        && text("/status/updateRevision").is_none_or(|update| text("/status/currentRevision") == Some(update))
        && number("/status/updatedReplicas").unwrap_or(0) >= number("/spec/replicas").unwrap_or(1)
}

fn others_sign(cluster: &Cluster, observed: &Observed, index: u8, now: Timestamp) -> bool {
    let others = || cluster.indices().filter(move |&other| other != index);
    let ready = others().filter(|&other| is_ready(observed, other)).count();
    if ready == others().count() {
        // With n-of-n every change costs the quorum; one at a time it costs the least.
        return true;
    }
    let lost = |other: u8| {
        let since = observed.pods.get(&other).and_then(|pod| pod.unready_since);
        since.is_some_and(|since| now.duration_since(since) > PATIENCE)
    };
    ready >= usize::from(cluster.threshold.t())
        && others().all(|other| is_ready(observed, other) || lost(other))
}
