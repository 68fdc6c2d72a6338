//! `GET /health`, `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tss_common::bus::BusState;
use tss_common::telemetry::render_metrics;
use tss_mpc::{PublicKey, SignerIndex};

use crate::service::Shared;

/// Each part's state.
#[derive(Debug, Serialize)]
pub struct Health {
    status: &'static str,
    store: &'static str,
    bus: &'static str,
    signers: Signers,
    /// The key that signs when a request names none, once it is on record.
    key: Option<Key>,
}

/// The live signers against what is needed.
#[derive(Debug, Serialize)]
pub struct Signers {
    live: Vec<SignerIndex>,
    threshold: u8,
    total: u8,
}

/// A key on record.
#[derive(Debug, Serialize)]
pub struct Key {
    id: String,
    epoch: u64,
    public_key: PublicKey,
}

/// 200 when a signature can be made now, 503 otherwise; each part's state either way.
pub async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let key = shared.keys.get(&shared.config.key);
    let well = is_well(&shared);
    let word = |up: bool| if up { "up" } else { "down" };
    let health = Health {
        status: if well { "ok" } else { "unavailable" },
        store: word(shared.coordinator.store_is_up()),
        bus: word(bus_is_up(&shared)),
        signers: Signers {
            live: usable_signers(&shared),
            threshold: shared.config.threshold,
            total: shared.config.total_parties,
        },
        key: key.map(|key| Key { id: key.id, epoch: key.epoch, public_key: key.public_key }),
    };
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// Whether a signature can be made now.
pub fn is_well(shared: &Shared) -> bool {
    shared.coordinator.store_is_up()
        && bus_is_up(shared)
        && usable_signers(shared).len() >= usize::from(shared.config.threshold)
}

/// The live signers of the key on record. Those of another key are of no use.
pub fn usable_signers(shared: &Shared) -> Vec<SignerIndex> {
    let Some(key) = shared.keys.get(&shared.config.key) else { return Vec::new() };
    let live = shared.presence.live().into_iter();
    live.filter(|heartbeat| heartbeat.key.public_key == key.public_key)
        .map(|heartbeat| heartbeat.signer)
        .collect()
}

/// 200 while the process answers.
pub async fn livez() -> &'static str {
    "alive\n"
}

/// 200 when requests are accepted: the store and the bus can be reached, and the key is on record and no other is
/// what the signers hold.
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
    let live = shared.presence.live().len();
    live >= usize::from(shared.config.threshold) && usable_signers(shared).is_empty()
}

/// Metrics in the Prometheus text format.
pub async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let (content_type, text) = render_metrics(&shared.registry);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// Whether the bus can be reached.
pub fn bus_is_up(shared: &Shared) -> bool {
    *shared.bus.state().borrow() == BusState::Up
}
