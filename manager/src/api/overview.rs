//! `GET /overview`: how the cluster is and what it does, for a reader.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use jiff::Timestamp;
use serde::Serialize;
use tss_common::version;
use tss_mpc::SignerIndex;
use utoipa::ToSchema;

use super::health;
use super::listing::Summary;
use super::problem::Problem;
use super::schema;
use crate::auth::Caller;
use crate::pulse;
use crate::service::Shared;
use crate::store::{Filter, Request, StoreError};

/// How many of the newest requests are shown.
const RECENT: usize = 50;

/// How the cluster is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Overview {
    cluster: String,
    version: &'static str,
    #[schema(value_type = schema::Time)]
    now: Timestamp,
    #[schema(value_type = schema::Wellness)]
    status: &'static str,
    #[schema(value_type = schema::PartState)]
    store: &'static str,
    #[schema(value_type = schema::PartState)]
    bus: &'static str,
    /// How many signers are needed.
    threshold: u8,
    signers: Vec<Signer>,
    /// The keys that the caller may use.
    keys: Vec<String>,
    /// How many requests this manager drives.
    unfinished: i64,
    /// How many of them are being signed.
    active: i64,
    series: Series,
    /// The newest requests, at most 50; none while the store is down.
    recent: Vec<Summary>,
}

/// A signer, as this manager has heard of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Signer {
    #[schema(value_type = schema::SignerIndex)]
    signer: SignerIndex,
    live: bool,
    /// Whether it lives and holds the key on record.
    usable: bool,
    /// When it spoke last, by its own clock.
    #[schema(value_type = Option<schema::Time>, required)]
    heard_at: Option<Timestamp>,
}

/// How requests ended at this manager in the last ten minutes, in steps, the oldest first. The last one is not over.
#[derive(Debug, Serialize, ToSchema)]
pub struct Series {
    step_seconds: u64,
    points: Vec<Point>,
}

/// A step.
#[derive(Debug, Serialize, ToSchema)]
pub struct Point {
    /// When it began.
    #[schema(value_type = schema::Time)]
    at: Timestamp,
    completed: u64,
    failed: u64,
    /// The median of the seconds from acceptance to signature; null where nothing was signed.
    #[schema(required)]
    p50: Option<f64>,
    /// The 99th percentile of the same.
    #[schema(required)]
    p99: Option<f64>,
}

/// The cluster at a glance
///
/// Whether it can sign, which signers live, what this manager has done lately, and the newest requests that the caller may
/// see.
#[utoipa::path(
    get,
    path = "/overview",
    tag = "watching",
    security(("bearer" = ["read"])),
    responses((status = 200, description = "How it is.", body = Overview)),
)]
pub async fn overview(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Overview>, Problem> {
    let now = Timestamp::now();
    let recent = newest(&shared).await?;
    let keys = shared.keys.all().into_iter().map(|key| key.id).filter(|key| caller.may_use_key(key));
    let points = shared.coordinator.pulse().beats().into_iter().map(|beat| Point {
        at: now.checked_sub(beat.age).unwrap_or(now),
        completed: beat.completed,
        failed: beat.failed,
        p50: beat.p50,
        p99: beat.p99,
    });
    Ok(Json(Overview {
        cluster: shared.config.cluster.clone(),
        version: version::FULL,
        now,
        status: if health::is_well(&shared) { "ok" } else { "unavailable" },
        store: health::word(shared.coordinator.store_is_up()),
        bus: health::word(health::bus_is_up(&shared)),
        threshold: shared.threshold().t(),
        signers: signers(&shared),
        keys: keys.collect(),
        unfinished: shared.metrics.unfinished.get(),
        active: shared.metrics.active.get(),
        series: Series { step_seconds: pulse::STEP.as_secs(), points: points.collect() },
        recent: recent.iter().filter(|request| caller.may_see(request)).map(Summary::of).collect(),
    }))
}

/// The newest requests; none while the store is down, which the answer says, too.
async fn newest(shared: &Shared) -> Result<Vec<Request>, Problem> {
    if !shared.coordinator.store_is_up() {
        return Ok(Vec::new());
    }
    match shared.coordinator.list(&Filter::newest(RECENT)).await {
        Ok(listed) => Ok(listed.requests),
        Err(StoreError::Down(_)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn signers(shared: &Shared) -> Vec<Signer> {
    let (live, usable) = (shared.presence.live(), health::usable_signers(shared));
    let heard = shared.presence.heard_at();
    shared
        .threshold()
        .signers()
        .map(|signer| Signer {
            signer,
            live: live.iter().any(|heartbeat| heartbeat.signer == signer),
            usable: usable.contains(&signer),
            heard_at: heard.get(&signer).copied(),
        })
        .collect()
}
