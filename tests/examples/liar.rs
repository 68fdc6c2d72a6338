//! A manager that has something else signed than what it is asked for.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use axum::http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::network::client;

/// Starts one in front of an honest manager, and yields where. It ends with the test.
pub(crate) async fn start(manager: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = axum::Router::new().fallback(pass_on).with_state(manager.to_owned());
    tokio::spawn(async move { axum::serve(listener, server).await });
    url
}

async fn pass_on(
    State(manager): State<String>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, Bytes) {
    let body = if uri.path() == "/sign" { another(&body) } else { body };
    let mut request = client().request(method, format!("{manager}{uri}")).body(body);
    for name in [AUTHORIZATION, CONTENT_TYPE] {
        if let Some(value) = headers.get(&name) {
            request = request.header(name, value);
        }
    }
    let answer = request.send().await.unwrap();
    (answer.status(), answer.bytes().await.unwrap())
}

fn another(request: &[u8]) -> Bytes {
    let mut request: Value = serde_json::from_slice(request).unwrap();
    request["message"] = json!("17".repeat(32));
    request.to_string().into()
}
