//! The REST API.
//!
//! | module | serves |
//! |---|---|
//! | [`sign`] | `POST /sign`, `/sign/batch` |
//! | [`dry_run`] | `POST /sign/dry-run` |
//! | [`keys`] | `GET /keys`, `/keys/{id}` |
//! | [`refresh`] | `POST /keys/{id}/refresh`, `GET /keys/{id}/refresh` |
//! | [`verify`] | `POST /verify` |
//! | [`requests`] | `GET /status/{id}`, `/signature/{id}`, `/signing_result/{id}` |
//! | [`listing`] | `GET /requests`, `/requests/{id}` |
//! | [`events`] | `GET /requests/{id}/events` |
//! | [`overview`] | `GET /overview` |
//! | [`console`] | `GET /console`: a page for people |
//! | [`health`] | `GET /health`, `/livez`, `/readyz`, `/metrics`; the last three also on a port of their own |
//! | [`body`] | what the bodies of all have in common |
//! | [`problem`] | every answer that is not what was asked for |
//! | [`docs`] | `GET /openapi.json`, `/docs`: what all this is, for programs and for people |
//! | [`page`] | how both pages are served |
//! | [`document`] | what the document of the API says beside what each route declares of itself |
//! | [`schema`] | how values of other crates stand in it |
//!
//! A route is declared once, by `#[utoipa::path]` at its handler; the router and the document are made of that.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Router};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use tss_common::config::Auth;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Need;
use crate::service::Shared;
use docs::Document;
use problem::{Kind, Problem};

pub mod body;
pub mod console;
pub mod docs;
pub mod document;
pub mod dry_run;
pub mod events;
pub mod health;
pub mod keys;
pub mod listing;
pub mod overview;
pub mod page;
pub mod problem;
pub mod refresh;
pub mod requests;
pub mod schema;
pub mod sign;
pub mod verify;

/// The longest request body, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// How long a client may take to send its request and the manager to answer it. Longer than the
/// longest wait that can be asked for.
const TIMEOUT: Duration = Duration::from_secs(90);

/// How long a client may pause within a body.
const PAUSE: Duration = Duration::from_secs(10);

/// The API's routes.
pub fn router(shared: Arc<Shared>) -> Router {
    let metrics = shared.config.manager_metrics_port.is_none();
    let guarded = |need: Need, group: Routes| group.layer(from_fn_with_state((shared.clone(), need), guard));
    let (routes, declared) = routes(metrics, guarded).split_for_parts();
    let document = Document::new(&document::complete(declared, shared.config.auth == Some(Auth::Jwt)));
    served(routes.layer(Extension(document)).merge(console::routes()), shared)
}

/// Routes with their declarations.
type Routes = OpenApiRouter<Arc<Shared>>;

/// The API's routes, where `guarded` guards those that take a scope. Metrics are among them unless they have a port of
/// their own: see [`watchers`].
fn routes(metrics: bool, guarded: impl Fn(Need, Routes) -> Routes) -> Routes {
    let open = OpenApiRouter::with_openapi(document::begin())
        .routes(routes!(health::health))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(docs::openapi))
        .routes(routes!(docs::page))
        .routes(routes!(docs::file));
    let sign = OpenApiRouter::new()
        .routes(routes!(sign::sign))
        .routes(routes!(sign::batch))
        .routes(routes!(dry_run::dry_run));
    let see = OpenApiRouter::new()
        .routes(routes!(requests::status))
        .routes(routes!(requests::signature))
        .routes(routes!(requests::signing_result))
        .routes(routes!(listing::one))
        .routes(routes!(events::events));
    let any = OpenApiRouter::new()
        .routes(routes!(keys::list))
        .routes(routes!(keys::one))
        .routes(routes!(refresh::progress))
        .routes(routes!(verify::verify));
    let mut read = OpenApiRouter::new().routes(routes!(overview::overview));
    if metrics {
        read = read.routes(routes!(health::metrics));
    }
    let admin = OpenApiRouter::new().routes(routes!(listing::list)).routes(routes!(refresh::order));
    [(Need::Sign, sign), (Need::See, see), (Need::Any, any), (Need::Read, read), (Need::Admin, admin)]
        .into_iter()
        .fold(open, |routes, (need, group)| routes.merge(guarded(need, group)))
}

/// The routes of `manager_metrics_port`: for those who watch a manager, and must not have anything signed.
pub fn watchers(shared: Arc<Shared>) -> Router {
    let routes = OpenApiRouter::default()
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::metrics));
    served(routes.into(), shared)
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
