//! The controller of `SigningRequest`.
//!
//! One look at an object is five steps, and asks the manager at most one thing:
//!
//! | step | does | with |
//! |---|---|---|
//! | [`dereference`] | reads the object and its cluster | the API server |
//! | [`validate`] | what is asked for, and how far it is | |
//! | [`build`] | what is to be done next | |
//! | [`apply`] | does it; [`answer`] says what the manager's answer means | the [`manager`] |
//! | [`update_status`] | what the status says then, and when to look again | the API server |
//!
//! The object's uid is the manager's idempotency key: however often a request is sent, the manager takes one. That
//! it is being sent is written into the status before it is sent, so that an operator which starts anew does not say
//! of a request that nobody took it, while signers sign it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _, future, stream};
use jiff::Timestamp;
use kube::api::{Api, Resource as _, ResourceExt as _};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::controller::{Action, Config, Error as ControllerError, applier, trigger_self};
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::store::{Writer, WriterDropped};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, watcher};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tss_common::labels;
use tss_common::telemetry::Label as _;

use crate::backoff::Backoff;
use crate::context::Context;
use crate::crd::{SigningRequest, TssCluster};
use crate::shutdown;
use apply::Applier;
use dereference::dereference;
use manager::Managers;

pub mod answer;
pub mod apply;
pub mod build;
pub mod cause;
pub mod count;
pub mod dereference;
pub mod manager;
pub mod update_status;
pub mod validate;

/// The controller's name in logs and metrics.
const NAME: &str = "signingrequest";
/// How many objects are looked at at the same time. Most of them wait for their signatures.
const CONCURRENCY: u16 = 256;

/// Why a look at an object failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do what was asked of it.
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    /// The object does not come from an API server.
    #[error(transparent)]
    Incomplete(#[from] validate::Incomplete),
    /// The watch of TssClusters has ended: the operator stops.
    #[error("the watch of TssClusters has ended")]
    Stopped(#[from] WriterDropped),
}

/// What an error means for the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Category {
    /// It has changed meanwhile: look again at once.
    Conflict,
    /// Another try may do better.
    Transient,
    /// No other try will, until the object changes.
    Permanent,
}

impl Error {
    fn category(&self) -> Category {
        match self {
            Self::Api(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                Category::Conflict
            }
            Self::Incomplete(_) => Category::Permanent,
            Self::Api(_) | Self::Stopped(_) => Category::Transient,
        }
    }
}

labels! {
    /// How a look at an object ended.
    enum Outcome {
        /// It is as it should be.
        Ok = "ok",
        /// It has changed meanwhile.
        Conflict = "conflict",
        /// It could not be looked after.
        Error = "error",
    }
}

/// What a look at an object needs.
struct Looker {
    context: Arc<Context>,
    applier: Applier,
    clusters: Store<DeserializeGuard<TssCluster>>,
    retries: Backoff<(String, String)>,
}

/// Runs the controller until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let managers =
        match Managers::new(context.options.manager_url.as_deref(), context.options.manager_ca.as_deref()) {
            Ok(managers) => managers,
            Err(error) => {
                // The operator ends with a controller that does.
                return tracing::error!(%error, "no HTTP client can be made");
            }
        };
    let (requests_writer, clusters_writer) = (Writer::default(), Writer::default());
    let requests = requests_writer.as_reader();
    let looker = Arc::new(Looker {
        applier: Applier::new(managers, stop.clone()),
        clusters: clusters_writer.as_reader(),
        retries: Backoff::default(),
        context: context.clone(),
    });
    let changes = trigger_self(requests_changed(context.api(), requests_writer), ());
    let clusters = clusters_changed(context.api(), clusters_writer);
    let ready = waiting_for_clusters(clusters, requests.clone());
    let queue = stream::select(changes, ready.map(|request| Ok(request.into())));
    let passes = applier(
        |object, looker| Box::pin(reconcile(object, looker)),
        retry,
        looker.clone(),
        requests.clone(),
        queue.take_until(stop.clone().cancelled_owned()),
        Config::default().concurrency(CONCURRENCY),
    )
    .for_each(|result| {
        looker.note(result);
        future::ready(())
    });
    context.metrics.begin::<Outcome>(NAME);
    let counted = count::keep(&context.metrics, &looker.clusters, &requests);
    tokio::select! {
        () = shutdown::ended(passes, requests.clone(), stop) => {}
        never = counted => match never {},
    }
}

/// The requests that have changed, and keeps them in the writer's store, without what is long: messages are read
/// anew when they are sent.
fn requests_changed(
    requests: Api<DeserializeGuard<SigningRequest>>,
    writer: Writer<DeserializeGuard<SigningRequest>>,
) -> impl Stream<Item = watcher::Result<DeserializeGuard<SigningRequest>>> {
    watcher(requests, watcher::Config::default())
        .default_backoff()
        .modify(|object| {
            let metadata = object.meta_mut();
            metadata.managed_fields = None;
            metadata.annotations = None;
            if let DeserializeGuard(Ok(request)) = object {
                request.spec.message = None;
            }
        })
        .reflect(writer)
        .applied_objects()
}

/// The clusters that have changed, and keeps them in the writer's store.
fn clusters_changed(
    clusters: Api<DeserializeGuard<TssCluster>>,
    writer: Writer<DeserializeGuard<TssCluster>>,
) -> impl Stream<Item = watcher::Result<DeserializeGuard<TssCluster>>> {
    watcher(clusters, watcher::Config::default()).default_backoff().reflect(writer).applied_objects()
}

/// Of clusters that have changed, the requests of each that has become ready by it.
fn waiting_for_clusters(
    clusters: impl Stream<Item = watcher::Result<DeserializeGuard<TssCluster>>>,
    requests: Store<DeserializeGuard<SigningRequest>>,
) -> impl Stream<Item = ObjectRef<DeserializeGuard<SigningRequest>>> {
    let mut ready = HashSet::new();
    clusters
        .filter_map(move |cluster| {
            let cluster = cluster.map_err(|error| tracing::warn!(%error, "the watch of TssClusters")).ok();
            let id = cluster.and_then(|DeserializeGuard(cluster)| {
                let cluster =
                    cluster.map_err(|error| tracing::warn!(%error, "a TssCluster cannot be read")).ok()?;
                let id = (cluster.namespace().unwrap_or_default(), cluster.name_any());
                if validate::signs(&cluster) {
                    return ready.insert(id.clone()).then_some(id);
                }
                ready.remove(&id);
                None
            });
            future::ready(id)
        })
        .flat_map(move |(namespace, name)| {
            let waiting = requests.state_filter(|DeserializeGuard(request)| {
                request.as_ref().is_ok_and(|request| {
                    request.metadata.namespace.as_deref() == Some(&namespace)
                        && request.spec.cluster_ref.name == name
                        && request.status.as_ref().is_none_or(|status| status.finished_at.is_none())
                })
            });
            stream::iter(waiting).map(|request| ObjectRef::from_obj(&*request))
        })
}

async fn reconcile(
    object: Arc<DeserializeGuard<SigningRequest>>,
    looker: Arc<Looker>,
) -> Result<Action, Error> {
    let began = Instant::now();
    let mut waited = Duration::ZERO;
    let result = looker.look(&object, &mut waited).await;
    let outcome = match result.as_ref().map_err(Error::category) {
        Ok(_) => Outcome::Ok,
        Err(Category::Conflict) => Outcome::Conflict,
        Err(Category::Transient | Category::Permanent) => Outcome::Error,
    };
    looker.context.metrics.reconciled(NAME, outcome.as_str(), began.elapsed().saturating_sub(waited));
    if result.is_ok() {
        looker.retries.succeeded(&id_of(&object));
    }
    result
}

fn retry(object: Arc<DeserializeGuard<SigningRequest>>, error: &Error, looker: Arc<Looker>) -> Action {
    match error.category() {
        Category::Conflict => {
            tracing::debug!(%error, "the object has changed meanwhile");
            Action::requeue(Duration::from_millis(50))
        }
        Category::Transient => {
            tracing::warn!(%error, "a SigningRequest could not be looked after");
            Action::requeue(looker.retries.failed(id_of(&object)))
        }
        Category::Permanent => {
            tracing::error!(%error, "a SigningRequest cannot be looked after");
            Action::await_change()
        }
    }
}

fn id_of(object: &DeserializeGuard<SigningRequest>) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl Looker {
    /// Looks at an object. Adds to `waited` how long the manager waited for a signature.
    async fn look(
        &self,
        DeserializeGuard(object): &DeserializeGuard<SigningRequest>,
        waited: &mut Duration,
    ) -> Result<Action, Error> {
        let object = match object {
            Ok(object) => object,
            Err(invalid) => {
                self.complain(invalid).await;
                return Ok(Action::await_change());
            }
        };
        let namespace = object.namespace().unwrap_or_default();
        let api = Api::namespaced(self.context.client.clone(), &namespace);
        let Some(dereferenced) = dereference(&api, &self.clusters, object).await? else {
            return Ok(Action::await_change());
        };
        let stage = validate::validate(&dereferenced)?;
        let before = dereferenced.object.status.clone().unwrap_or_default();
        let plan = build::build(&stage, &before, Timestamp::now());
        let applied = self.applier.apply(&api, dereferenced.object, plan).await?;
        *waited = applied.waited;
        let (object, outcome, now) = (applied.object, applied.outcome, Timestamp::now());
        let status = update_status::status(&object, &stage, &outcome, now);
        let action = update_status::next(&object, &stage, &outcome, &status, now);
        let object = update_status::write(&api, object, status.clone()).await?;
        if validate::finished_at(&before).is_none()
            && let Some(event) = update_status::event(&status)
        {
            tracing::info!(request = status.request_id, reason = event.reason, "a SigningRequest has ended");
            self.publish(&event, &object.object_ref(&())).await;
        }
        Ok(action)
    }

    /// Says of an object that it cannot be read. Its status is left alone: it may be one that a newer operator
    /// understands.
    async fn complain(&self, invalid: &kube::core::error_boundary::InvalidObject) {
        tracing::warn!(%invalid, "a SigningRequest cannot be read");
        let event = Event {
            type_: EventType::Warning,
            reason: "Unreadable".into(),
            note: Some(cause::shortened(format!("it cannot be read: {invalid}"), 1024)),
            action: "Read".into(),
            secondary: None,
        };
        let object = DeserializeGuard::<SigningRequest>(Err(invalid.clone()));
        self.publish(&event, &object.object_ref(&())).await;
    }

    async fn publish(&self, event: &Event, object: &k8s_openapi::api::core::v1::ObjectReference) {
        if let Err(error) = self.context.events.publish(event, object).await {
            tracing::warn!(%error, "an Event was not published");
        }
    }

    /// Notes what became of a look at an object.
    fn note<K>(&self, result: Result<K, ControllerError<Error, watcher::Error>>) {
        match result {
            // `retry` has said why.
            Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
            Err(ControllerError::ObjectNotFound(object)) => {
                let namespace = object.namespace.clone().unwrap_or_default();
                self.retries.succeeded(&(namespace, object.name.clone()));
            }
            Err(error) => tracing::warn!(%error, "the watch of SigningRequests"),
        }
    }
}

#[cfg(test)]
mod tests;
