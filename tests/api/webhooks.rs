//! Callers are told that their requests have ended: by whom, once at least, and not at every address.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;
use tss_common::config::Config;

use crate::network::{Api, SOON};

/// What webhooks are signed with.
const SECRET: [u8; 32] = [7; 32];

/// Somebody who is told things, and answers as they were bidden.
#[derive(Clone)]
struct Listener {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<(HeaderMap, String)>>>,
    answers: Arc<Mutex<Vec<StatusCode>>>,
}

impl Listener {
    /// Answers so, one after the other, and then with 204.
    async fn start(answers: &[StatusCode]) -> Self {
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut answers = answers.to_vec();
        answers.reverse();
        let listener = Self {
            address: socket.local_addr().unwrap(),
            heard: Arc::default(),
            answers: Arc::new(Mutex::new(answers)),
        };
        let listen = {
            let listener = listener.clone();
            move |headers: HeaderMap, body: String| async move {
                listener.heard.lock().unwrap().push((headers, body));
                let status = listener.answers.lock().unwrap().pop().unwrap_or(StatusCode::NO_CONTENT);
                // A redirection that nobody should follow.
                (status, [(header::LOCATION, "/elsewhere")])
            }
        };
        let routes = Router::new().route("/hook", post(listen.clone())).route("/elsewhere", post(listen));
        tokio::spawn(async move { axum::serve(socket, routes).await });
        listener
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// What was heard, once it is so much.
    async fn heard(&self, count: usize) -> Vec<(HeaderMap, String)> {
        let began = Instant::now();
        loop {
            let heard = self.heard.lock().unwrap().clone();
            if heard.len() >= count {
                return heard;
            }
            assert!(began.elapsed() < SOON, "{} of {count} were heard", heard.len());
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// HMAC-SHA-256 (RFC 2104), written out: another's than the manager's.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

/// What was said, if the manager said it.
fn believed((headers, body): &(HeaderMap, String)) -> Value {
    let header = |name: &str| headers[name].to_str().unwrap();
    assert_eq!(header("content-type"), "application/json");
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let said: i64 = timestamp.parse().unwrap();
    assert!((jiff::Timestamp::now().as_second() - said).abs() < 120, "{said}");
    let expected = STANDARD.encode(hmac(&SECRET, format!("{id}.{timestamp}.{body}").as_bytes()));
    assert_eq!(header("webhook-signature"), format!("v1,{expected}"));
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["data"]["request_id"], id);
    body
}

fn with_webhooks(config: &mut Config, folder: &Path) {
    let file = folder.join("webhooks");
    std::fs::write(&file, format!("whsec_{}\n", STANDARD.encode(SECRET))).unwrap();
    config.webhooks.secret_file = Some(file);
    config.webhooks.allow_local = true;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_told_with_a_signature_and_again_until_it_listens() {
    let api = Api::start_with(with_webhooks).await;
    let refusals = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::FOUND];
    let listener = Listener::start(&refusals).await;
    let body = json!({"message": "tell me", "webhook": listener.url()});
    let taken: Value = api.post("/sign", &body).await.json().await.unwrap();
    let heard = listener.heard(3).await;
    let told: Vec<_> = heard.iter().map(believed).collect();
    assert!(told.iter().all(|body| body["data"] == told[0]["data"]), "{told:?}");
    assert_eq!(told[0]["type"], "request.completed");
    assert_eq!(told[0]["data"]["request_id"], taken["request_id"]);
    let id = taken["request_id"].as_str().unwrap();
    let signed: Value = api.get(&format!("/signature/{id}")).await.json().await.unwrap();
    assert_eq!(told[0]["data"], signed);
    // It has listened: it is told no more.
    sleep(Duration::from_secs(8)).await;
    assert_eq!(listener.heard.lock().unwrap().len(), 3);
    let metrics = api.get("/metrics").await.text().await.unwrap();
    for line in ["delivered\"} 1", "put-off\"} 2", "given-up\"} 0"] {
        assert!(metrics.contains(&format!("tss_webhooks_total{{outcome=\"{line}")), "{line}");
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_gone_is_left_alone_and_a_failure_is_told_too() {
    let api = Api::start_with(|config, folder| {
        with_webhooks(config, folder);
        config.signing_timeout = 1;
        // Nobody may sign.
        let policy = folder.join("policy.toml");
        std::fs::write(&policy, "paths = [\"7/7\"]").unwrap();
        config.policy_file = Some(policy);
    })
    .await;
    let listener = Listener::start(&[StatusCode::GONE]).await;
    let body = json!({"message": "tell me", "webhook": listener.url()});
    assert_eq!(api.post("/sign", &body).await.status(), 201);
    let heard = listener.heard(1).await;
    let told = believed(&heard[0]);
    assert_eq!((&told["type"], &told["data"]["status"]), (&json!("request.failed"), &json!("Failed")));
    assert!(told["data"]["reason"].as_str().unwrap().contains("policy"), "{told}");
    sleep(Duration::from_secs(8)).await;
    assert_eq!(listener.heard.lock().unwrap().len(), 1);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_at_this_machine_unless_it_is_allowed() {
    let api = Api::start_with(|config, folder| {
        with_webhooks(config, folder);
        config.webhooks.allow_local = false;
    })
    .await;
    let listener = Listener::start(&[]).await;
    let port = listener.address.port();
    for url in [
        listener.url(),
        format!("https://127.0.0.1:{port}/hook"),
        format!("https://[::ffff:127.0.0.1]:{port}/hook"),
        "https://169.254.169.254/latest/meta-data".into(),
    ] {
        let answer = api.post("/sign", &json!({"message": "m", "webhook": url})).await;
        assert_eq!(answer.status(), 422, "{url}");
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().starts_with("`webhook`: "), "{problem}");
    }
    // A name is looked up when it is time, and then it leads to nobody.
    let body = json!({"message": "m", "webhook": format!("https://localhost:{port}/hook")});
    assert_eq!(api.post("/sign", &body).await.status(), 201);
    let began = Instant::now();
    loop {
        let metrics = api.get("/metrics").await.text().await.unwrap();
        if !metrics.contains("tss_webhooks_total{outcome=\"put-off\"} 0") {
            break;
        }
        assert!(began.elapsed() < SOON, "{metrics}");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(listener.heard.lock().unwrap().is_empty());
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_secret_nobody_can_be_told() {
    let api = Api::start().await;
    let answer = api.post("/sign", &json!({"message": "m", "webhook": "https://example.com/"})).await;
    assert_eq!(answer.status(), 422);
    let problem: Value = answer.json().await.unwrap();
    assert!(problem["detail"].as_str().unwrap().contains("`webhooks.secret_file`"), "{problem}");
    api.stop().await;
}
