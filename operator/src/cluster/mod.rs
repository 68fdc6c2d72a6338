//! The controller of `TssCluster`, in five steps; those in the middle are pure.
//!
//! | step | module |
//! |---|---|
//! | what is there | [`dereference`] |
//! | is it possible | [`validate`] |
//! | what there should be | [`keygen`], [`renewal`], [`backups`], [`build`], [`rollout`] |
//! | make it so | [`apply`] |
//! | say so | [`status`] |

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, PostParams};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::controller::{Action, Config};
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, watcher};
use kube::{Api, Resource as _, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tss_common::labels;
use tss_common::telemetry::Label as _;

use crate::backoff::Backoff;
use crate::condition;
use crate::context::Context;
use crate::crd::{TssCluster, TssClusterStatus};
use crate::shutdown;
use apply::{Applied, ApplyError};
use dereference::{Observed, kinds};
use keygen::{Step, Write};
use record::KeyRecord;
use validate::Cluster;

pub mod apply;
pub mod backups;
pub mod build;
pub mod dereference;
#[cfg(test)]
mod fixtures;
pub mod jobs;
pub mod keygen;
pub mod names;
pub mod record;
pub mod renewal;
pub mod rollout;
pub mod status;
pub mod validate;

/// The controller's name in metrics.
const CONTROLLER: &str = "tsscluster";
/// When a cluster is looked at again although nothing happened.
const RESYNC: Duration = Duration::from_secs(300);
/// How many clusters are looked at at once.
const CONCURRENCY: u16 = 8;
/// For how long changes are collected: one rollout makes dozens.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// Why a pass did not come to its end. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is there could not be asked for.
    #[error("reading the cluster's objects: {0}")]
    Read(#[source] kube::Error),
    /// An object has no form.
    #[error(transparent)]
    Build(#[from] build::Unserializable),
    /// An object could not be made.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The status could not be written.
    #[error("writing the status: {0}")]
    Status(#[source] kube::Error),
    /// The record has no form.
    #[error("the key's record has no form in JSON: {0}")]
    Record(#[source] serde_json::Error),
}

labels! {
    /// How a pass ended.
    enum Outcome {
        /// It came to its end.
        Ok = "ok",
        /// Somebody wrote the object in between.
        Conflict = "conflict",
        /// See [`Error::Read`].
        Read = "read",
        /// See [`Error::Build`].
        Build = "build",
        /// See [`Error::Apply`].
        Apply = "apply",
        /// See [`Error::Status`].
        Status = "status",
        /// See [`Error::Record`].
        Record = "record",
    }
}

impl From<&Error> for Outcome {
    fn from(error: &Error) -> Self {
        match error {
            Error::Read(_) => Self::Read,
            Error::Build(_) => Self::Build,
            Error::Apply(_) => Self::Apply,
            Error::Status(error) if is_conflict(error) => Self::Conflict,
            Error::Status(_) => Self::Status,
            Error::Record(_) => Self::Record,
        }
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

struct State {
    context: Arc<Context>,
    backoff: Backoff<ObjectRef<TssCluster>>,
}

/// Runs the controller until `stop`.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let clusters: Api<DeserializeGuard<TssCluster>> = context.api();
    let config = Config::default().concurrency(CONCURRENCY).debounce(DEBOUNCE);
    let mut controller = Controller::new(clusters, watcher::Config::default())
        .with_config(config)
        .graceful_shutdown_on(stop.clone().cancelled_owned());
    for kind in kinds().into_iter().chain([ApiResource::erase::<Pod>(&())]) {
        // Only the metadata; the rest is asked for when it is needed.
        let api: Api<PartialObjectMeta> = context.api_with(&kind);
        controller =
            controller.watches_with(api, kind, watcher::Config::default().labels(names::CLUSTER), cluster_of);
    }
    context.metrics.begin::<Outcome>(CONTROLLER);
    let state = Arc::new(State { context, backoff: Backoff::default() });
    let cache = controller.store();
    let passes = controller.run(reconcile_guarded, on_error, state).for_each(|_| std::future::ready(()));
    shutdown::ended(passes, cache, stop).await;
}

fn cluster_of(object: PartialObjectMeta) -> Option<ObjectRef<DeserializeGuard<TssCluster>>> {
    let name = object.labels().get(names::CLUSTER)?.clone();
    Some(ObjectRef::new(&name).within(&object.namespace()?))
}

fn on_error(object: Arc<DeserializeGuard<TssCluster>>, error: &Error, state: Arc<State>) -> Action {
    let reference = ObjectRef::new(&object.name_any()).within(&object.namespace().unwrap_or_default());
    Action::requeue(match error {
        // Somebody wrote in between; nothing is wrong.
        Error::Status(error) if is_conflict(error) => Duration::from_millis(200),
        _ => state.backoff.failed(reference),
    })
}

async fn reconcile_guarded(
    object: Arc<DeserializeGuard<TssCluster>>,
    state: Arc<State>,
) -> Result<Action, Error> {
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    if let Err(error) = &object.0 {
        // A newer version may have written it. The watch goes on with the others.
        tracing::error!(%namespace, %name, error = %error.error, "a TssCluster cannot be read");
        return Ok(Action::await_change());
    }
    let started = Instant::now();
    let result = reconcile(&state.context, &namespace, &name).await;
    let outcome = result.as_ref().map_or_else(Outcome::from, |_| Outcome::Ok);
    state.context.metrics.reconciled(CONTROLLER, outcome.as_str(), started.elapsed());
    match &result {
        Ok(_) => state.backoff.succeeded(&ObjectRef::new(&name).within(&namespace)),
        Err(Error::Status(error)) if is_conflict(error) => {}
        Err(error) => tracing::warn!(%namespace, cluster = %name, %error, "a TssCluster is tried again"),
    }
    result
}

/// One pass. What is decided about a key is written by itself, and the next pass goes on from there, so that
/// an operator that is stopped anywhere leaves nothing half decided.
///
/// # Errors
/// [`Error`]; the pass can be repeated.
pub async fn reconcile(context: &Context, namespace: &str, name: &str) -> Result<Action, Error> {
    let observed = dereference::dereference(&context.client, namespace, name).await.map_err(Error::Read)?;
    let Some(observed) = observed else { return Ok(Action::await_change()) };
    let now = Timestamp::now();
    let cluster = match validate::validate(&observed.object) {
        Ok(cluster) => cluster,
        Err(invalid) => {
            let status = status::stopped(&observed, "Invalid", &invalid.to_string(), now);
            write_status(context, &observed, status).await?;
            return Ok(Action::await_change());
        }
    };
    let step = keygen::next(&cluster, &observed, now);
    if let Some(write) = step.write {
        return write_step(context, &cluster, &observed, write, &step.verdict.message).await;
    }
    if step.frozen {
        let status = status::stopped(&observed, step.verdict.reason, &step.verdict.message, now);
        write_status(context, &observed, status).await?;
        return Ok(Action::requeue(RESYNC));
    }
    // What runs is what the key's shares are for; what is asked for now may be the next ones.
    let cluster = step.key.as_ref().map_or_else(|| cluster.clone(), |key| cluster.with_key(key));
    let desired = build::build(&cluster, &context.options, &step.jobs, step.key.as_ref())?;
    let held = rollout::held(&cluster, &observed, &desired, now);
    let applied = apply::apply(&context.client, &cluster, &observed, &desired, &held).await;
    let (applied, failure) = match applied {
        Ok(applied) => (applied, None),
        Err(error) => (Applied::default(), Some(error)),
    };
    if !applied.changed.is_empty() {
        tracing::info!(%namespace, cluster = %name, changed = %applied.changed.join(", "), "applied");
    }
    let mut status = status::status(&cluster, &observed, &step, &applied, held.len(), now);
    if let Some(error) = &failure {
        let verdict = condition::Verdict::no("ApplyFailed", error.to_string());
        let generation = observed.object.metadata.generation;
        condition::set(&mut status.conditions, status::PROGRESSING, verdict, generation, now);
    }
    let again = again(&step, &applied);
    write_status(context, &observed, status).await?;
    apply::forget(&context.client, &cluster, &observed.outdated).await?;
    failure.map_or(Ok(again), |error| Err(error.into()))
}

/// When to look again. Changes of what belongs to the cluster are seen by themselves.
fn again(step: &Step, applied: &Applied) -> Action {
    let leaving = (!applied.leaving.is_empty()).then_some(Duration::from_secs(1));
    let soonest = [step.wait, leaving].into_iter().flatten().min().unwrap_or(RESYNC);
    Action::requeue(soonest.clamp(Duration::from_millis(100), RESYNC))
}

async fn write_step(
    context: &Context,
    cluster: &Cluster,
    observed: &Observed,
    write: Write,
    message: &str,
) -> Result<Action, Error> {
    let (namespace, name) = (&cluster.namespace, &cluster.name);
    match write {
        Write::Roster(map_name, roster) => {
            let map = record::kept(cluster, map_name, "roster.toml", roster);
            apply::keep(&context.client, &map).await?;
            tracing::info!(%namespace, cluster = %name, "the roster is kept");
        }
        Write::Record(record) => {
            keep_record(context, cluster, &record).await?;
            let KeyRecord { public_key, epoch, .. } = &*record;
            tracing::info!(%namespace, cluster = %name, %public_key, epoch, "the key is kept");
            let (reason, note) = match observed.record {
                None => ("KeyGenerated", format!("public key {public_key}, {}", record.addresses.ethereum)),
                Some(_) => {
                    let threshold = record.threshold();
                    ("SharesRenewed", format!("all {threshold} shares of epoch {epoch} are kept"))
                }
            };
            event(context, &observed.object, EventType::Normal, reason, note).await;
        }
        Write::Progress(progress) => {
            let failed = progress.decided.is_none();
            let mut status = observed.object.status.clone().unwrap_or_default();
            status.key_generation = Some(progress);
            write_status(context, observed, status).await?;
            if failed {
                tracing::warn!(%namespace, cluster = %name, why = %message, "key generation failed");
                event(context, &observed.object, EventType::Warning, "KeyGenerationFailed", message.into())
                    .await;
            }
        }
        Write::Backups(backups) => {
            let mut status = observed.object.status.clone().unwrap_or_default();
            let before = status.backups.as_ref().map_or(0, |before| before.tries.failures);
            let failure = backups.tries.last_failure.clone().filter(|_| backups.tries.failures > before);
            let made = (!backups.secrets.is_empty()).then(|| backups.secrets.join(", "));
            status.backups = Some(*backups);
            write_status(context, observed, status).await?;
            let told = match (made, failure) {
                (Some(made), _) => Some((EventType::Normal, "BackupsMade", format!("Secrets {made}"))),
                (None, Some(why)) => Some((EventType::Warning, "BackupFailed", why)),
                (None, None) => None,
            };
            if let Some((kind, reason, note)) = told {
                tracing::info!(%namespace, cluster = %name, reason, note, "backups");
                event(context, &observed.object, kind, reason, note).await;
            }
        }
        Write::Renewal(renewal) => {
            let before = observed.renewal().map_or(0, |before| before.tries.failures);
            let failure = renewal.tries.last_failure.clone().filter(|_| renewal.tries.failures > before);
            let mut status = observed.object.status.clone().unwrap_or_default();
            status.renewal = Some(*renewal);
            write_status(context, observed, status).await?;
            if let Some(why) = failure {
                tracing::warn!(%namespace, cluster = %name, %why, "new shares were not made");
                event(context, &observed.object, EventType::Warning, "RenewalFailed", why).await;
            }
        }
    }
    // What was written is seen by the next pass.
    Ok(Action::requeue(Duration::ZERO))
}

async fn keep_record(context: &Context, cluster: &Cluster, record: &KeyRecord) -> Result<(), Error> {
    let map = record.to_config_map(cluster).map_err(Error::Record)?;
    Ok(apply::keep(&context.client, &map).await?)
}

/// Writes a status that differs from the one that is there, if nobody has changed the object since it was read.
async fn write_status(context: &Context, observed: &Observed, status: TssClusterStatus) -> Result<(), Error> {
    let before = observed.object.status.clone().unwrap_or_default();
    if status == before {
        return Ok(());
    }
    let api: Api<TssCluster> =
        Api::namespaced(context.client.clone(), &observed.object.namespace().unwrap_or_default());
    let object = TssCluster { status: Some(status.clone()), ..observed.object.clone() };
    api.replace_status(&observed.object.name_any(), &PostParams::default(), &object)
        .await
        .map_err(Error::Status)?;
    for kind in [status::READY, status::QUORUM_AVAILABLE] {
        let find = |status: &TssClusterStatus| {
            status.conditions.iter().find(|condition| condition.type_ == kind).cloned()
        };
        let (Some(after), before) = (find(&status), find(&before)) else { continue };
        let was = before.is_some_and(|before| before.status == "True");
        let (kind_of_event, reason) = match (was, after.status.as_str()) {
            (false, "True") => (EventType::Normal, kind.to_owned()),
            (true, "False") => (EventType::Warning, format!("Not{kind}")),
            _ => continue,
        };
        event(context, &observed.object, kind_of_event, &reason, after.message).await;
    }
    Ok(())
}

/// Tells a person what happened. Nothing depends on it.
async fn event(context: &Context, object: &TssCluster, type_: EventType, reason: &str, note: String) {
    let event = Event {
        type_,
        reason: reason.into(),
        // The API server's limit.
        note: Some(note.chars().take(1000).collect()),
        action: "Reconcile".into(),
        secondary: None,
    };
    if let Err(error) = context.events.publish(&event, &object.object_ref(&())).await {
        tracing::debug!(%error, "an Event was not published");
    }
}
