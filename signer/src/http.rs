//! Health and metrics of the signers of one process.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tss_common::bus::{Bus, BusState};
use tss_common::telemetry::render_metrics;

#[derive(Clone)]
struct Shared {
    registry: Registry,
    bus: Arc<dyn Bus>,
}

/// Serves `/livez`, `/readyz` and `/metrics` until `stop`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    registry: Registry,
    bus: Arc<dyn Bus>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Shared { registry, bus });
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("`signer_port`: cannot listen on {address}"))?;
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

/// 200 when the signer can take part: it hears what managers and other signers say, and they hear it.
async fn ready(State(shared): State<Shared>) -> Response {
    match &*shared.bus.state().borrow() {
        BusState::Up if shared.bus.is_listening() => (StatusCode::OK, "ready\n").into_response(),
        BusState::Up => (StatusCode::SERVICE_UNAVAILABLE, "a subscription has not started\n").into_response(),
        BusState::Down(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the message bus is unreachable\n").into_response()
        }
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let (content_type, text) = render_metrics(&shared.registry);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}
