//! Health and metrics of the operator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use kube::{Client, ResourceExt as _};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tss_common::telemetry::render_metrics;

use crate::crd;

/// The API server has so long to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// An answer of the API server is good for so long: anyone may ask `/readyz`, and must not make the operator
/// a way to load the API server.
const FRESH: Duration = Duration::from_secs(1);

/// Whether the operator can do its work.
#[derive(Clone)]
pub struct Health {
    client: Client,
    controllers: Arc<Mutex<BTreeMap<&'static str, Controller>>>,
    api: Arc<tokio::sync::Mutex<Option<Found>>>,
}

/// What the API server did not serve, and when it was asked.
#[derive(Clone)]
struct Found {
    missing: Vec<String>,
    at: Instant,
}

#[derive(Clone, Copy)]
enum Controller {
    /// Another operator works; this one is ready to.
    StandsBy,
    Runs,
    Ended,
}

/// While it exists, its controller runs.
pub struct Running {
    health: Health,
    controller: &'static str,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.health.set(self.controller, Controller::Ended);
    }
}

impl Health {
    /// Of an operator with these controllers, none of which has to run yet.
    pub fn new(client: Client, controllers: &[&'static str]) -> Self {
        let controllers = controllers.iter().map(|name| (*name, Controller::StandsBy)).collect();
        Self { client, controllers: Arc::new(Mutex::new(controllers)), api: Arc::default() }
    }

    /// This controller runs until what is returned is dropped.
    pub fn running(&self, controller: &'static str) -> Running {
        self.set(controller, Controller::Runs);
        Running { health: self.clone(), controller }
    }

    fn set(&self, controller: &'static str, state: Controller) {
        self.controllers.lock().unwrap_or_else(PoisonError::into_inner).insert(controller, state);
    }

    /// What is missing.
    pub async fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = self
            .controllers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|(_, state)| matches!(state, Controller::Ended))
            .map(|(name, _)| format!("the controller {name} has ended"))
            .collect();
        let mut api = self.api.lock().await;
        let found = match api.take() {
            Some(found) if found.at.elapsed() < FRESH => found,
            _ => Found { missing: missing_of_api(&self.client).await, at: Instant::now() },
        };
        missing.extend_from_slice(&found.missing);
        *api = Some(found);
        missing
    }
}

/// What the API server does not serve.
async fn missing_of_api(client: &Client) -> Vec<String> {
    let definitions = crd::definitions();
    let Some(first) = definitions.first() else { return Vec::new() };
    let group = &first.spec.group;
    let version = first.spec.versions.first().map_or("", |version| version.name.as_str());
    let asked = format!("{group}/{version}");
    let served: Vec<String> = match timeout(PATIENCE, client.list_api_group_resources(&asked)).await {
        Ok(Ok(list)) => list.resources.into_iter().map(|resource| resource.name).collect(),
        // Nothing of the group: the API server is there.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Vec::new(),
        Ok(Err(error)) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "the API server does not answer");
            return vec!["the API server does not answer".into()];
        }
        Err(_) => return vec![format!("the API server has not answered for {PATIENCE:?}")],
    };
    definitions
        .iter()
        .filter(|definition| !served.contains(&definition.spec.names.plural))
        .map(|definition| {
            format!("the API server does not serve {}: apply crds/{0}.yaml", definition.name_any())
        })
        .collect()
}

#[derive(Clone)]
struct Shared {
    registry: Registry,
    health: Health,
}

/// Listens for [`serve`].
///
/// # Errors
/// When the address cannot be listened on.
pub async fn listen(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("--http-address: cannot listen on {address}"))
}

/// Serves `/livez`, `/readyz` and `/metrics` until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    axum::serve(listener, router(registry, health)).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

fn router(registry: Registry, health: Health) -> Router {
    Router::new()
        // Without the API server nothing can be done, but a restart would not help: only /readyz looks at it.
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Shared { registry, health })
}

async fn ready(State(shared): State<Shared>) -> Response {
    let missing = shared.health.missing().await;
    if missing.is_empty() {
        (StatusCode::OK, "ready\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n").into_response()
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let (content_type, text) = render_metrics(&shared.registry);
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, Response};
    use serde_json::json;
    use tower::service_fn;

    use super::*;

    /// An API server that serves these resources of our group, or refuses with a code.
    fn api(resources: Result<&'static [&'static str], u16>) -> Client {
        let answer = move |request: Request<kube::client::Body>| async move {
            assert_eq!(request.uri().path(), "/apis/tss.network/v1alpha1");
            let (code, body) = match resources {
                Ok(names) => {
                    let resources: Vec<_> = names
                        .iter()
                        .map(|name| json!({"name": name, "singularName": "", "namespaced": true, "kind": "", "verbs": []}))
                        .collect();
                    (200, json!({"groupVersion": "tss.network/v1alpha1", "resources": resources}))
                }
                Err(code) => (code, json!({"kind": "Status", "status": "Failure", "code": code})),
            };
            Response::builder().status(code).body(Body::from(body.to_string()))
        };
        Client::new(service_fn(answer), "default")
    }

    #[tokio::test]
    async fn readiness_says_what_is_missing() {
        let both: &[&str] = &["tssclusters", "tssclusters/status", "signingrequests"];
        let missing = |client| async { Health::new(client, &["a"]).missing().await };
        assert_eq!(missing(api(Ok(both))).await, Vec::<String>::new());
        let one = "the API server does not serve signingrequests.tss.network: apply crds/signingrequests.tss.network.yaml";
        assert_eq!(missing(api(Ok(&["tssclusters"]))).await, [one]);
        assert_eq!(missing(api(Err(404))).await.len(), 2);
        assert_eq!(missing(api(Err(403))).await, ["the API server does not answer"]);
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_waits_for_the_api_server_only_so_long() {
        let client = Client::new(
            service_fn(|_: Request<kube::client::Body>| {
                std::future::pending::<Result<Response<Body>, tower::BoxError>>()
            }),
            "default",
        );
        let missing = Health::new(client, &[]).missing().await;
        assert_eq!(missing, ["the API server has not answered for 2s"]);
    }

    #[tokio::test]
    async fn a_standby_is_ready_and_an_operator_without_its_controllers_is_not() {
        let health = Health::new(api(Ok(&["tssclusters", "signingrequests"])), &["a", "b"]);
        assert_eq!(health.missing().await, Vec::<String>::new());
        let runs = health.running("a");
        assert_eq!(health.missing().await, Vec::<String>::new());
        drop(runs);
        assert_eq!(health.missing().await, ["the controller a has ended"]);
    }
}
