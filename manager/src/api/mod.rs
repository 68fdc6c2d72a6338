//! The REST API.
//!
//! | module | serves |
//! |---|---|
//! | [`sign`] | `POST /sign`, `/sign/batch` |
//! | [`keys`] | `GET /keys`, `/keys/{id}` |
//! | [`verify`] | `POST /verify` |
//! | [`requests`] | `GET /status/{id}`, `/signature/{id}`, `/signing_result/{id}` |
//! | [`health`] | `GET /health`, `/livez`, `/readyz`, `/metrics`; the last three also on a port of their own |
//! | [`body`] | what the bodies of all have in common |
//! | [`problem`] | every answer that is not what was asked for |

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

use crate::service::Shared;
use problem::{Kind, Problem};

pub mod body;
pub mod console;
pub mod health;
pub mod keys;
pub mod problem;
pub mod requests;
pub mod sign;
pub mod verify;

/// The longest request body, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// How long a client may take to send its request and the manager to answer it. Longer than the
/// longest wait that can be asked for.
const TIMEOUT: Duration = Duration::from_secs(90);

/// The API's routes. Metrics are among them unless they have a port of their own: see [`watchers`].
pub fn router(shared: Arc<Shared>) -> Router {
    let mut routes = Router::new()
        .route("/sign", post(sign::sign))
        .route("/sign/batch", post(sign::batch))
        .route("/status/{id}", get(requests::status))
        .route("/signature/{id}", get(requests::signature))
        .route("/signing_result/{id}", get(requests::signing_result))
        .route("/keys", get(keys::list))
        .route("/keys/{id}", get(keys::one))
        .route("/verify", post(verify::verify))
        .route("/health", get(health::health))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .merge(console::routes());
    if shared.config.manager_metrics_port.is_none() {
        routes = routes.route("/metrics", get(health::metrics));
    }
    served(routes, shared)
}

/// The routes of `manager_metrics_port`: for those who watch a manager, and must not have anything signed.
pub fn watchers(shared: Arc<Shared>) -> Router {
    let routes = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics));
    served(routes, shared)
}

/// What holds for every route.
fn served(routes: Router<Arc<Shared>>, shared: Arc<Shared>) -> Router {
    routes
        .method_not_allowed_fallback(|| async { Problem::from(Kind::MethodNotAllowed) })
        .fallback(|| async { Problem::from(Kind::NoSuchRoute) })
        .layer(from_fn(limit_time))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(shared.clone(), count))
        .with_state(shared)
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::from(Kind::TimedOut).into_response(),
    }
}

async fn count(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().into());
    // A client can make up methods, and each would be a time series.
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "PUT" | "DELETE" | "HEAD" | "OPTIONS" | "PATCH") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let response = next.run(request).await;
    let status: StatusCode = response.status();
    shared.metrics.http.with_label_values(&[route.as_str(), &method, status.as_str()]).inc();
    response
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a handler panicked; this is an error in the software");
    Problem::from(Kind::Internal).into_response()
}
