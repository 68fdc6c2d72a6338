//! The canary: a TssCluster with `canary` has a fixed message signed on a schedule, through the whole path that
//! everybody's requests take: a SigningRequest, this operator, a manager, RabbitMQ, the signers, and back. It finds
//! what health checks miss: parts that are all up and do not sign.
//!
//! Time is cut into slots of the interval's length. Each slot has one SigningRequest, whose name carries the slot's
//! number, so that there is one however often an operator looks or is restarted. What came of them is told by
//! metrics, for an alert on the age of the last success.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::controller::{Action, Config};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{Controller, watcher};
use kube::{Api, Resource as _, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tss_common::labels;
use tss_common::telemetry::Label as _;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::cluster::names;
use crate::context::{Context, FIELD_MANAGER};
use crate::crd::{
    CanarySpec, ClusterRef, Encoding, Hash, Phase, SigningRequest, SigningRequestSpec, TssCluster,
};
use crate::shutdown;

/// The controller's name in metrics.
pub const CONTROLLER: &str = "canary";
/// The label of the canary's requests: the TssCluster that signs them.
pub const CANARY: &str = "tss.network/canary";
/// What is signed: it says what it is, whoever may come across the signature.
pub const MESSAGE: &str =
    "TSS Network canary: this signature shows that the network signs, and agrees to nothing.";
/// How long a request may wait for its cluster and its signature at most. A slower one is a failure.
const DEADLINE: i32 = 60;
/// How long ended requests are kept at least: an operator that has just started finds the last success among them.
const KEPT: i32 = 300;
/// How often clusters that are gone are forgotten.
const ROUND: Duration = Duration::from_secs(10);
/// How many clusters are looked at at once.
const CONCURRENCY: u16 = 4;

/// A TssCluster: namespace and name.
type Id = (String, String);

/// Why a pass did not come to its end. It is tried again.
type Error = kube::Error;

labels! {
    /// How a pass ended.
    enum Outcome {
        /// It came to its end.
        Ok = "ok",
        /// The API server was of no help.
        Error = "error",
    }
}

struct State {
    context: Arc<Context>,
    backoff: Backoff<Id>,
    /// Which requests of a cluster have been counted.
    counted: Mutex<BTreeMap<Id, BTreeSet<String>>>,
}

/// Runs the controller until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let clusters: Api<DeserializeGuard<TssCluster>> = context.api();
    let requests: Api<PartialObjectMeta<SigningRequest>> = context.api();
    let controller = Controller::new(clusters, watcher::Config::default())
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .watches(requests, watcher::Config::default().labels(CANARY), |request| {
            let cluster = request.labels().get(CANARY)?.clone();
            Some(ObjectRef::new(&cluster).within(&request.namespace()?))
        });
    let cache = controller.store();
    context.metrics.begin::<Outcome>(CONTROLLER);
    let state = Arc::new(State { context, backoff: Backoff::default(), counted: Mutex::default() });
    let passes = controller.run(reconcile, on_error, state.clone()).for_each(|_| std::future::ready(()));
    tokio::select! {
        () = shutdown::ended(passes, cache.clone(), stop) => {}
        never = state.forget_gone(&cache) => match never {},
    }
}

fn id_of(object: &DeserializeGuard<TssCluster>) -> Id {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn on_error(object: Arc<DeserializeGuard<TssCluster>>, error: &Error, state: Arc<State>) -> Action {
    let id = id_of(&object);
    tracing::warn!(namespace = %id.0, cluster = %id.1, %error, "the canary is tried again");
    Action::requeue(state.backoff.failed(id))
}

async fn reconcile(object: Arc<DeserializeGuard<TssCluster>>, state: Arc<State>) -> Result<Action, Error> {
    let started = std::time::Instant::now();
    let result = look(&object, &state).await;
    let outcome = if result.is_ok() { Outcome::Ok } else { Outcome::Error };
    state.context.metrics.reconciled(CONTROLLER, outcome.as_str(), started.elapsed());
    if result.is_ok() {
        state.backoff.succeeded(&id_of(&object));
    }
    result
}

async fn look(object: &DeserializeGuard<TssCluster>, state: &State) -> Result<Action, Error> {
    let id = id_of(object);
    // What cannot be read has been complained of by the cluster's controller.
    let cluster = object.0.as_ref().ok();
    let signs = cluster.filter(|cluster| cluster.metadata.deletion_timestamp.is_none());
    let Some((cluster, canary)) = signs.and_then(|cluster| Some((cluster, cluster.spec.canary.as_ref()?)))
    else {
        state.forget(&id);
        return Ok(Action::await_change());
    };
    let api: Api<SigningRequest> = Api::namespaced(state.context.client.clone(), &id.0);
    let ours = ListParams::default().labels(&format!("{CANARY}={}", id.1));
    let requests = api.list(&ours).await?.items;
    state.tell(&id, canary, &requests);
    let now = Timestamp::now();
    let slot = Slot::at(now, canary, cluster);
    if let Some(request) = due(cluster, canary, &slot, &requests) {
        match api.create(&PostParams::default(), &request).await {
            // Another pass has been faster.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            result => drop(result?),
        }
    }
    Ok(Action::requeue(slot.ends_in))
}

impl State {
    /// Tells what has come of a cluster's requests.
    fn tell(&self, id: &Id, canary: &CanarySpec, requests: &[SigningRequest]) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that had ended before this operator began were counted by another.
        let first = !counted.contains_key(id);
        let counted = counted.entry(id.clone()).or_default();
        let metrics = self.context.metrics.canary(&id.0, &id.1);
        metrics.interval(canary.interval_seconds);
        let ended: Vec<_> = requests.iter().filter_map(Ended::of).collect();
        for request in &ended {
            if counted.insert(request.name.clone()) && !first {
                metrics.ended(request.signed);
            }
        }
        counted.retain(|name| ended.iter().any(|request| request.name == *name));
        let signed = ended.iter().filter(|request| request.signed);
        if let Some(last) = signed.max_by_key(|request| request.at) {
            metrics.succeeded(last.at, last.took);
        }
    }

    /// Forgets clusters that are gone: there are no passes over them any more.
    async fn forget_gone(&self, clusters: &Store<DeserializeGuard<TssCluster>>) -> Infallible {
        loop {
            let known: Vec<_> =
                self.counted.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
            for id in known {
                if clusters.get(&ObjectRef::new(&id.1).within(&id.0)).is_none() {
                    self.forget(&id);
                }
            }
            tokio::time::sleep(ROUND).await;
        }
    }

    /// A cluster has no canary.
    fn forget(&self, id: &Id) {
        let known = self.counted.lock().unwrap_or_else(PoisonError::into_inner).remove(id).is_some();
        if known {
            self.context.metrics.no_canary(&id.0, &id.1);
        }
    }
}

/// A request that has ended.
struct Ended {
    name: String,
    signed: bool,
    at: Timestamp,
    took: Duration,
}

impl Ended {
    fn of(request: &SigningRequest) -> Option<Self> {
        let status = request.status.as_ref()?;
        let at = status.finished_at.as_ref()?.0;
        let began = request.metadata.creation_timestamp.as_ref().map_or(at, |time| time.0);
        let took = Duration::try_from(at.duration_since(began)).unwrap_or_default();
        Some(Self { name: request.name_any(), signed: status.phase == Some(Phase::Complete), at, took })
    }
}

/// A piece of time that has one request.
struct Slot {
    number: i64,
    ends_in: Duration,
}

impl Slot {
    /// The slot of now. Clusters begin theirs at different times, so that many do not sign in the same moment.
    fn at(now: Timestamp, canary: &CanarySpec, cluster: &TssCluster) -> Self {
        let length = i64::from(canary.interval_seconds).max(1);
        let uid = cluster.uid().and_then(|uid| Uuid::parse_str(&uid).ok()).unwrap_or_default();
        let shift = i64::from(uid.as_fields().0).rem_euclid(length);
        let seconds = now.as_second().saturating_add(shift);
        let left = length - seconds.rem_euclid(length);
        Self { number: seconds.div_euclid(length), ends_in: Duration::from_secs(left.unsigned_abs()) }
    }
}

/// The slot's request, if there is none yet and there is a key to sign with.
fn due(
    cluster: &TssCluster,
    canary: &CanarySpec,
    slot: &Slot,
    requests: &[SigningRequest],
) -> Option<SigningRequest> {
    let status = cluster.status.as_ref()?;
    status.public_key.as_ref()?;
    let name = format!("{}-canary-{}", cluster.name_any(), slot.number);
    if requests.iter().any(|request| request.name_any() == name) {
        return None;
    }
    let interval = canary.interval_seconds;
    // It goes with its cluster, but does not keep it from being deleted.
    let owner = OwnerReference { block_owner_deletion: None, ..cluster.controller_owner_ref(&())? };
    let labels = [(CANARY, cluster.name_any()), (names::MANAGED_BY, FIELD_MANAGER.into())];
    Some(SigningRequest {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: cluster.namespace(),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: SigningRequestSpec {
            cluster_ref: ClusterRef { name: cluster.name_any() },
            message: Some(MESSAGE.into()),
            digest: None,
            encoding: Some(Encoding::Utf8),
            hash: Some(Hash::Sha256),
            derivation_path: canary.derivation_path.clone(),
            deadline_seconds: interval.min(DEADLINE),
            ttl_seconds_after_finished: Some(interval.saturating_mul(3).max(KEPT)),
            not_after: None,
            approvals: Vec::new(),
        },
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster(public_key: Option<&str>) -> TssCluster {
        serde_json::from_value(json!({
            "apiVersion": "tss.network/v1alpha1",
            "kind": "TssCluster",
            "metadata": {"name": "demo", "namespace": "wallets", "uid": "0000001e-0000-4000-8000-000000000001"},
            "spec": {
                "threshold": 2,
                "signers": 3,
                "auth": {"type": "None"},
                "rabbitmq": {"uriSecret": {"name": "rabbitmq"}},
                "mongodb": {"uriSecret": {"name": "mongodb"}},
                "canary": {"intervalSeconds": 60, "derivationPath": "m/7"},
            },
            "status": {"publicKey": public_key},
        }))
        .unwrap()
    }

    fn at(second: i64) -> (Slot, TssCluster, CanarySpec) {
        let cluster = cluster(Some("02ab"));
        let canary = cluster.spec.canary.clone().unwrap();
        (Slot::at(Timestamp::from_second(second).unwrap(), &canary, &cluster), cluster, canary)
    }

    #[test]
    fn each_slot_has_one_request() {
        // The uid shifts it by 30 seconds.
        let (slot, cluster, canary) = at(6_000);
        assert_eq!((slot.number, slot.ends_in), (100, Duration::from_secs(30)));
        let request = due(&cluster, &canary, &slot, &[]).unwrap();
        assert_eq!(request.name_any(), "demo-canary-100");
        assert_eq!(request.labels()[CANARY], "demo");
        assert_eq!(request.spec.message.as_deref(), Some(MESSAGE));
        assert_eq!(request.spec.derivation_path.as_deref(), Some("m/7"));
        assert_eq!(request.owner_references()[0].name, "demo");
        let (later, ..) = at(6_029);
        assert_eq!((later.number, later.ends_in), (100, Duration::from_secs(1)));
        assert!(due(&cluster, &canary, &later, std::slice::from_ref(&request)).is_none());
        let (next, ..) = at(6_030);
        assert_eq!((next.number, next.ends_in), (101, Duration::from_secs(60)));
        assert!(due(&cluster, &canary, &next, &[request]).is_some());
    }

    #[test]
    fn a_cluster_without_a_key_has_nothing_to_sign_with() {
        let (slot, _, canary) = at(6_000);
        assert!(due(&cluster(None), &canary, &slot, &[]).is_none());
    }

    #[test]
    fn what_has_ended_is_known_with_its_time() {
        let (slot, cluster, canary) = at(6_000);
        let mut request = due(&cluster, &canary, &slot, &[]).unwrap();
        assert!(Ended::of(&request).is_none());
        request.metadata.creation_timestamp = serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap();
        for (phase, signed) in [("Complete", true), ("Failed", false)] {
            let status = json!({"phase": phase, "finishedAt": "2026-01-02T03:04:07Z"});
            request.status = serde_json::from_value(status).unwrap();
            let ended = Ended::of(&request).unwrap();
            assert_eq!((ended.signed, ended.took), (signed, Duration::from_secs(2)));
        }
    }
}
