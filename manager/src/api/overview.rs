//! `GET /overview`: how the cluster is and what it does, for a reader.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use jiff::Timestamp;
use serde::Serialize;
use tss_common::version;
use tss_mpc::SignerIndex;

use super::health;
use super::listing::Summary;
use super::problem::Problem;
use crate::auth::Caller;
use crate::pulse;
use crate::service::Shared;
use crate::store::Filter;

/// How many of the newest requests are shown.
const RECENT: usize = 50;

/// How the cluster is.
#[derive(Debug, Serialize)]
pub struct Overview {
    cluster: String,
    version: &'static str,
    now: Timestamp,
    /// `ok` when a signature can be made now, else `unavailable`.
    status: &'static str,
    /// `up` or `down`.
    store: &'static str,
    bus: &'static str,
    /// How many signers are needed.
    threshold: u8,
    signers: Vec<Signer>,
    /// The keys that the caller may use.
    keys: Vec<String>,
    /// Requests that this manager drives, and how many of them are being signed.
    unfinished: i64,
    active: i64,
    series: Series,
    recent: Vec<Summary>,
}

/// A signer, as this manager has heard of it.
#[derive(Debug, Serialize)]
pub struct Signer {
    signer: SignerIndex,
    live: bool,
    /// Whether it lives and holds the key on record.
    usable: bool,
    /// When it spoke last, by its own clock.
    heard_at: Option<Timestamp>,
}

/// How requests ended at this manager, in steps.
#[derive(Debug, Serialize)]
pub struct Series {
    step_seconds: u64,
    points: Vec<Point>,
}

/// A step.
#[derive(Debug, Serialize)]
pub struct Point {
    /// When it began.
    at: Timestamp,
    completed: u64,
    failed: u64,
    /// Seconds from acceptance to signature: the median and the 99th percentile.
    p50: Option<f64>,
    p99: Option<f64>,
}

/// How the cluster is, and what it does.
pub async fn overview(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Overview>, Problem> {
    let now = Timestamp::now();
    let recent = shared.coordinator.list(&Filter::newest(RECENT)).await?.requests;
    let keys = shared.keys.all().into_iter().map(|key| key.id).filter(|key| caller.may_use_key(key));
    let points = shared.coordinator.pulse().beats().into_iter().map(|beat| Point {
        at: now.checked_sub(beat.age).unwrap_or(now),
        completed: beat.completed,
        failed: beat.failed,
        p50: beat.p50,
        p99: beat.p99,
    });
    let word = |up: bool| if up { "up" } else { "down" };
    Ok(Json(Overview {
        cluster: shared.config.cluster.clone(),
        version: version::FULL,
        now,
        status: if health::is_well(&shared) { "ok" } else { "unavailable" },
        store: word(shared.coordinator.store_is_up()),
        bus: word(health::bus_is_up(&shared)),
        threshold: shared.config.threshold,
        signers: signers(&shared),
        keys: keys.collect(),
        unfinished: shared.metrics.unfinished.get(),
        active: shared.metrics.active.get(),
        series: Series { step_seconds: pulse::STEP.as_secs(), points: points.collect() },
        recent: recent.iter().filter(|request| caller.may_see(request)).map(Summary::of).collect(),
    }))
}

fn signers(shared: &Shared) -> Vec<Signer> {
    let (live, usable) = (shared.presence.live(), health::usable_signers(shared));
    let heard = shared.presence.heard_at();
    let all = (1..=shared.config.total_parties).filter_map(|index| SignerIndex::new(index).ok());
    all.map(|signer| Signer {
        signer,
        live: live.iter().any(|heartbeat| heartbeat.signer == signer),
        usable: usable.contains(&signer),
        heard_at: heard.get(&signer).copied(),
    })
    .collect()
}
