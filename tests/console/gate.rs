//! A manager behind a proxy that asks for a token: it answers as a manager does that asks for one itself.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// A token with the scope `read`.
pub(crate) const READER: &str = "eyJhbGciOiJFZERTQSJ9.cmVhZA.c2lnbmF0dXJl";

/// A token without it.
pub(crate) const SIGNER: &str = "eyJhbGciOiJFZERTQSJ9.c2lnbg.c2lnbmF0dXJl";

/// The proxy. It ends when this is dropped.
pub(crate) struct Gate {
    pub(crate) url: String,
    task: AbortHandle,
}

impl Gate {
    pub(crate) async fn start(manager: &str) -> Self {
        let behind = Behind { manager: manager.to_owned(), http: reqwest::Client::new() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().fallback(pass).with_state(behind);
        let task = tokio::spawn(async move { axum::serve(listener, routes).await }).abort_handle();
        Self { url, task }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is behind it.
#[derive(Clone)]
struct Behind {
    manager: String,
    http: reqwest::Client,
}

async fn pass(State(behind): State<Behind>, request: Request) -> Response {
    let path = request.uri().path();
    // Nobody is asked for a token for the page itself.
    if path != "/console" && !path.starts_with("/console/") {
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        match given.and_then(|value| value.strip_prefix("Bearer ")) {
            Some(READER) => {}
            Some(SIGNER) => return problem(StatusCode::FORBIDDEN, "forbidden"),
            _ => return problem(StatusCode::UNAUTHORIZED, "unauthenticated"),
        }
    }
    let answer = behind.http.get(format!("{}{}", behind.manager, request.uri())).send().await.unwrap();
    let status = answer.status();
    let mut headers = HeaderMap::new();
    for name in [CONTENT_TYPE, CONTENT_SECURITY_POLICY] {
        if let Some(value) = answer.headers().get(&name) {
            headers.insert(name, value.clone());
        }
    }
    (status, headers, answer.bytes().await.unwrap()).into_response()
}

fn problem(status: StatusCode, kind: &str) -> Response {
    let body = serde_json::json!({
        "type": format!("urn:tss-network:problem:{kind}"),
        "title": status.canonical_reason(),
        "status": status.as_u16(),
    });
    let headers = [(CONTENT_TYPE, "application/problem+json"), (WWW_AUTHENTICATE, "Bearer realm=\"tss\"")];
    (status, headers, body.to_string()).into_response()
}
