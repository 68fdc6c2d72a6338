//! How many objects there are, by how they are: what the caches know, now and then.

use std::convert::Infallible;
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use tokio::time::sleep;
use tss_common::labels;

use super::{NAME, validate};
use crate::condition;
use crate::crd::{SigningRequest, TssCluster};
use crate::metrics::Metrics;

/// How often they are counted.
const ROUND: Duration = Duration::from_secs(5);

/// The other controller's name in metrics: its objects are in the cache here.
const CLUSTERS: &str = "tsscluster";

labels! {
    /// How a TssCluster is.
    pub enum ClusterState {
        /// It signs.
        Ready = "ready",
        /// It does not, or not yet.
        NotReady = "not_ready",
        /// It cannot be read: a newer version may have written it.
        Unreadable = "unreadable",
    }
}

labels! {
    /// How a SigningRequest is.
    pub enum RequestState {
        /// It has not ended.
        Waiting = "waiting",
        /// It has its signature.
        Complete = "complete",
        /// It never will.
        Failed = "failed",
        /// It cannot be read.
        Unreadable = "unreadable",
    }
}

/// Counts both kinds for as long as it is polled.
pub async fn keep(
    metrics: &Metrics,
    clusters: &Store<DeserializeGuard<TssCluster>>,
    requests: &Store<DeserializeGuard<SigningRequest>>,
) -> Infallible {
    loop {
        let states: Vec<_> = clusters.state().iter().map(|object| of_cluster(object)).collect();
        metrics.objects(CLUSTERS, &states);
        let states: Vec<_> = requests.state().iter().map(|object| of_request(object)).collect();
        metrics.objects(NAME, &states);
        sleep(ROUND).await;
    }
}

fn of_cluster(DeserializeGuard(object): &DeserializeGuard<TssCluster>) -> ClusterState {
    match object {
        Err(_) => ClusterState::Unreadable,
        Ok(cluster) if validate::signs(cluster) => ClusterState::Ready,
        Ok(_) => ClusterState::NotReady,
    }
}

fn of_request(DeserializeGuard(object): &DeserializeGuard<SigningRequest>) -> RequestState {
    let Ok(request) = object else { return RequestState::Unreadable };
    let status = request.status.as_ref();
    let ended = |kind| status.is_some_and(|status| condition::is_true(&status.conditions, kind));
    match (ended("Complete"), ended("Failed")) {
        (true, _) => RequestState::Complete,
        (_, true) => RequestState::Failed,
        _ => RequestState::Waiting,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(conditions: Value) -> RequestState {
        let object = json!({
            "apiVersion": "tss.network/v1alpha1", "kind": "SigningRequest",
            "metadata": {"name": "r", "namespace": "n", "uid": "u"},
            "spec": {"clusterRef": {"name": "c"}, "message": "hello"},
            "status": {"conditions": conditions},
        });
        of_request(&serde_json::from_value::<DeserializeGuard<SigningRequest>>(object).unwrap())
    }

    #[test]
    fn a_request_counts_as_what_its_conditions_say() {
        let condition = |kind: &str, status: &str| {
            json!([{
                "type": kind, "status": status, "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            }])
        };
        assert_eq!(request(json!([])), RequestState::Waiting);
        assert_eq!(request(condition("Accepted", "True")), RequestState::Waiting);
        assert_eq!(request(condition("Complete", "True")), RequestState::Complete);
        assert_eq!(request(condition("Failed", "True")), RequestState::Failed);
        assert_eq!(request(json!("garbled")), RequestState::Unreadable);
    }
}
