//! The REST API.
//!
//! | module | serves |
//! |---|---|
//! | [`sign`] | `POST /sign`, `/sign/batch` |
//! | [`keys`] | `GET /keys`, `/keys/{id}` |
//! | [`verify`] | `POST /verify` |
//! | [`requests`] | `GET /status/{id}`, `/signature/{id}`, `/signing_result/{id}` |
//! | [`listing`] | `GET /requests`, `/requests/{id}` |
//! | [`events`] | `GET /requests/{id}/events` |
//! | [`overview`] | `GET /overview` |
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
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::auth::Need;
use crate::service::Shared;
use problem::{Kind, Problem};

pub mod body;
pub mod events;
pub mod health;
pub mod keys;
pub mod listing;
pub mod overview;
pub mod problem;
pub mod requests;
pub mod sign;
pub mod verify;

/// The longest request body, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// How long a client may take to send its request and the manager to answer it. Longer than the
/// longest wait that can be asked for.
const TIMEOUT: Duration = Duration::from_secs(90);

/// How long a client may pause within a body.
const PAUSE: Duration = Duration::from_secs(10);

/// The API's routes. Metrics are among them unless they have a port of their own: see [`watchers`].
pub fn router(shared: Arc<Shared>) -> Router {
    let sign = Router::new().route("/sign", post(sign::sign)).route("/sign/batch", post(sign::batch));
    let see = Router::new()
        .route("/status/{id}", get(requests::status))
        .route("/signature/{id}", get(requests::signature))
        .route("/signing_result/{id}", get(requests::signing_result))
        .route("/requests/{id}", get(listing::one))
        .route("/requests/{id}/events", get(events::events));
    let admin = Router::new().route("/requests", get(listing::list));
    let any = Router::new()
        .route("/keys", get(keys::list))
        .route("/keys/{id}", get(keys::one))
        .route("/verify", post(verify::verify));
    let mut read = Router::new().route("/overview", get(overview::overview));
    if shared.config.manager_metrics_port.is_none() {
        read = read.route("/metrics", get(health::metrics));
    }
    let guarded =
        [(Need::Sign, sign), (Need::See, see), (Need::Any, any), (Need::Read, read), (Need::Admin, admin)];
    let open = Router::new()
        .route("/health", get(health::health))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz));
    let routes = guarded.into_iter().fold(open, |routes, (need, group)| {
        routes.merge(group.layer(from_fn_with_state((shared.clone(), need), guard)))
    });
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
        .layer(RequestBodyTimeoutLayer::new(PAUSE))
        .layer(from_fn(limit_time))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(shared.clone(), count))
        .with_state(shared)
}

/// Lets in who may do what the routes behind it take.
async fn guard(
    State((shared, need)): State<(Arc<Shared>, Need)>,
    mut request: Request,
    next: Next,
) -> Response {
    match shared.gate.admit(request.headers(), need).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(away) => Problem::from(away).into_response(),
    }
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
