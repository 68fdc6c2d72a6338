//! `GET /health`, `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tss_common::bus::BusState;
use tss_common::telemetry::render_metrics;
use tss_mpc::{PublicKey, SignerIndex, Threshold};

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
    #[serde(flatten)]
    needed: Threshold,
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
    let store = shared.coordinator.store_is_up();
    let bus = bus_is_up(&shared);
    // Signers of another key, or that are stopping, are of no use.
    let live: Vec<SignerIndex> = shared
        .presence
        .live()
        .into_iter()
        .filter(|heartbeat| key.as_ref().is_some_and(|key| key.public_key == heartbeat.key.public_key))
        .map(|heartbeat| heartbeat.signer)
        .collect();
    let Ok(needed) = Threshold::new(shared.config.threshold, shared.config.total_parties) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let well = store && bus && live.len() >= usize::from(needed.t());
    let word = |up: bool| if up { "up" } else { "down" };
    let health = Health {
        status: if well { "ok" } else { "unavailable" },
        store: word(store),
        bus: word(bus),
        signers: Signers { live, needed },
        key: key.map(|key| Key { id: key.id, epoch: key.epoch, public_key: key.public_key }),
    };
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// 200 while the process answers.
pub async fn livez() -> &'static str {
    "alive\n"
}

/// 200 when requests are accepted: the store and the bus can be reached, and the key is on record.
pub async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let missing: Vec<&str> = [
        (!shared.coordinator.store_is_up()).then_some("the store is unreachable"),
        (!bus_is_up(&shared)).then_some("the message bus is unreachable"),
        shared.keys.get(&shared.config.key).is_none().then_some("no key is on record yet"),
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

/// Metrics in the Prometheus text format.
pub async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let (content_type, text) = render_metrics(&shared.registry);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

fn bus_is_up(shared: &Shared) -> bool {
    *shared.bus.state().borrow() == BusState::Up
}
