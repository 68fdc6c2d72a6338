//! `GET /health`, `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tss_common::bus::BusState;
use tss_common::telemetry::render_metrics;
use tss_common::wire::Heartbeat;
use tss_mpc::{PublicKey, SignerIndex};
use utoipa::ToSchema;

use super::schema;
use crate::service::Shared;

/// Each part's state.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    #[schema(value_type = schema::Wellness)]
    status: &'static str,
    #[schema(value_type = schema::PartState)]
    store: &'static str,
    #[schema(value_type = schema::PartState)]
    bus: &'static str,
    signers: Signers,
    /// The key that signs when a request names none, once it is on record.
    #[schema(required)]
    key: Option<Key>,
}

/// The live signers against what is needed.
#[derive(Debug, Serialize, ToSchema)]
pub struct Signers {
    /// Those that live and hold the key.
    #[schema(value_type = Vec<schema::SignerIndex>)]
    live: Vec<SignerIndex>,
    /// How many sign.
    threshold: u8,
    /// How many there are.
    total: u8,
}

/// A key on record.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HealthKey)]
pub struct Key {
    id: String,
    epoch: u64,
    #[schema(value_type = schema::PublicKey)]
    public_key: PublicKey,
}

/// Whether a signature can be made now
///
/// Each part's state either way.
#[utoipa::path(
    get,
    path = "/health",
    tag = "watching",
    responses(
        (status = 200, description = "A signature can be made now.", body = Health),
        (status = 503, description = "None can be made now.", body = Health),
    ),
)]
pub async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let key = shared.keys.get(&shared.config.key);
    let well = is_well(&shared);
    let threshold = shared.threshold();
    let health = Health {
        status: if well { "ok" } else { "unavailable" },
        store: word(shared.coordinator.store_is_up()),
        bus: word(bus_is_up(&shared)),
        signers: Signers { live: usable_signers(&shared), threshold: threshold.t(), total: threshold.n() },
        key: key.map(|key| Key { id: key.id, epoch: key.epoch, public_key: key.public_key }),
    };
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// A part's state.
pub fn word(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

/// Whether a signature can be made now.
pub fn is_well(shared: &Shared) -> bool {
    shared.coordinator.store_is_up()
        && bus_is_up(shared)
        && usable_signers(shared).len() >= usize::from(shared.threshold().t())
}

/// The live signers of the key on record. Those of another key, or of another epoch of it, are of no use.
pub fn usable_signers(shared: &Shared) -> Vec<SignerIndex> {
    let Some(key) = shared.keys.get(&shared.config.key) else { return Vec::new() };
    let live = shared.presence.live().into_iter();
    live.filter(|Heartbeat { key: held, .. }| (held.public_key, held.epoch) == (key.public_key, key.epoch))
        .map(|heartbeat| heartbeat.signer)
        .collect()
}

/// Whether the process answers
#[utoipa::path(
    get,
    path = "/livez",
    tag = "watching",
    responses((status = 200, description = "It does.", body = String)),
)]
pub async fn livez() -> &'static str {
    "alive\n"
}

/// Whether requests are accepted
///
/// They are when the store and the bus can be reached, and the key is on record and no other is what the signers hold.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "watching",
    responses(
        (status = 200, description = "They are.", body = String),
        (status = 503, description = "They are not: what is missing, one part in a line.", body = String),
    ),
)]
pub async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let missing: Vec<&str> = [
        (!shared.coordinator.store_is_up()).then_some("the store is unreachable"),
        (!bus_is_up(&shared)).then_some("the message bus is unreachable"),
        shared.keys.get(&shared.config.key).is_none().then_some("no key is on record yet"),
        holds_another_key(&shared)
            .then_some("the signers hold another key than the one on record in the store"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if missing.is_empty() {
        (StatusCode::OK, "ready\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", missing.join("\n"))).into_response()
    }
}

/// Whether enough signers live, and none of them holds the key on record: the store is that of an earlier key.
fn holds_another_key(shared: &Shared) -> bool {
    let Some(key) = shared.keys.get(&shared.config.key) else { return false };
    let live = shared.presence.live();
    live.len() >= usize::from(shared.threshold().t())
        && live.iter().all(|heartbeat| heartbeat.key.public_key != key.public_key)
}

/// Metrics
///
/// In the Prometheus text format. Where `manager_metrics_port` is configured, they are served there, and not here.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "watching",
    security(("bearer" = ["read"])),
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain")),
)]
pub async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let (content_type, text) = render_metrics(&shared.registry);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// Whether the bus can be reached.
pub fn bus_is_up(shared: &Shared) -> bool {
    *shared.bus.state().borrow() == BusState::Up
}
