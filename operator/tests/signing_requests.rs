//! SigningRequests against a real API server, and a server that answers as a manager does.
//!
//! `TEST_KUBECONFIG` names the cluster; `tests/kubernetes/cluster start DIR control-plane` starts one.
//! Without it these tests are not run: `cargo test -p tss-operator -- --ignored` runs them.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k256::ecdsa::SigningKey;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::events::Recorder;
use kube::runtime::wait::await_condition;
use kube::{Client, Config, ResourceExt as _};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tss_common::intent::{Encoding, HashAlgorithm};
use tss_operator::context::{Context, Options};
use tss_operator::crd::{Phase, SigningRequest, SigningRequestStatus, TssCluster, definitions};
use tss_operator::metrics::Metrics;
use tss_operator::signing_request;
use uuid::Uuid;

/// The public key of the private key 1.
const PUBLIC_KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

/// A server that answers as a manager does. What a message says is what it does with it.
#[derive(Default)]
struct Manager {
    /// Requests by idempotency key.
    requests: Mutex<HashMap<String, (Uuid, Value)>>,
    /// How often each key was sent.
    sent: Mutex<HashMap<String, u32>>,
    new: AtomicU32,
    /// Whether it takes what is "overloaded".
    relieved: AtomicBool,
}

impl Manager {
    async fn start(self: Arc<Self>) -> String {
        let router = Router::new()
            .route("/sign", post(sign))
            .route("/signature/{id}", get(signature))
            .route("/status/{id}", get(status))
            .with_state(self);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}")
    }

    fn message(&self, id: Uuid) -> Option<Value> {
        let requests = self.requests.lock().unwrap();
        requests.values().find(|(known, _)| *known == id).map(|(_, body)| body.clone())
    }
}

fn problem(status: u16, kind: &str, detail: &str) -> Response {
    let body = json!({"type": format!("urn:tss-network:problem:{kind}"), "title": "T", "detail": detail});
    let status = StatusCode::from_u16(status).unwrap();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

async fn sign(
    State(manager): State<Arc<Manager>>,
    headers: HeaderMap,
    axum::Json(body): axum::Json<Value>,
) -> Response {
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    let tries = {
        let mut sent = manager.sent.lock().unwrap();
        let tries = sent.entry(key.clone()).or_default();
        *tries += 1;
        *tries
    };
    let message = body["message"].as_str().unwrap().to_owned();
    match message.as_str() {
        "overloaded" if !manager.relieved.load(Ordering::Relaxed) => {
            return problem(503, "overloaded", "10000 requests wait");
        }
        "invalid" => return problem(422, "invalid-request", "`path`: the cluster has no such path"),
        _ => {}
    }
    let (id, known) = {
        let mut requests = manager.requests.lock().unwrap();
        let new = !requests.contains_key(&key);
        let (id, known) = requests.entry(key).or_insert_with(|| (Uuid::new_v4(), body.clone())).clone();
        if new {
            manager.new.fetch_add(1, Ordering::Relaxed);
        }
        (id, known)
    };
    if known != body {
        return problem(422, "idempotency-conflict", "another body");
    }
    if message.starts_with("slow to answer") && tries == 1 {
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    (StatusCode::CREATED, axum::Json(json!({"request_id": id, "status": "Pending"}))).into_response()
}

async fn signature(State(manager): State<Arc<Manager>>, Path(id): Path<Uuid>) -> Response {
    let Some(body) = manager.message(id) else { return problem(404, "unknown-request", "") };
    match body["message"].as_str().unwrap() {
        "forbidden" => {
            return problem(409, "request-failed", "signers 1, 2 refused: policy: path 0/1/2 is not allowed");
        }
        "slow" => tokio::time::sleep(Duration::from_millis(500)).await,
        _ => tokio::time::sleep(Duration::from_millis(20)).await,
    }
    let encoding: Encoding = body["encoding"].as_str().unwrap().parse().unwrap();
    let hash: HashAlgorithm = body["hash"].as_str().unwrap().parse().unwrap();
    let digest = hash.digest(&encoding.decode(body["message"].as_str().unwrap()).unwrap()).unwrap();
    let mut private = [0; 32];
    private[31] = 1;
    let (signature, _) = SigningKey::from_slice(&private).unwrap().sign_prehash_recoverable(&digest);
    let digest = hex::encode(digest);
    axum::Json(json!({
        "request_id": id, "status": "Completed", "compact": hex::encode(signature.to_bytes()),
        "public_key": PUBLIC_KEY, "digest": digest, "intent_hash": "",
        "intent": {"cluster": "c", "key": "default", "path": body["path"], "hash": body["hash"], "digest": digest,
            "not_after": body["not_after"]},
    }))
    .into_response()
}

async fn status(Path(id): Path<Uuid>) -> Response {
    axum::Json(json!({"request_id": id, "status": "InProgress", "attempts": 1, "quorum": [1, 2]}))
        .into_response()
}

/// A namespace of a test, the controller, and a manager.
struct Setting {
    client: Client,
    namespace: String,
    manager: Arc<Manager>,
    url: String,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Setting {
    async fn new(name: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let file = std::env::var("TEST_KUBECONFIG")
            .expect("TEST_KUBECONFIG is not set: expected a kubeconfig file of a cluster for tests");
        let kubeconfig = Kubeconfig::read_from(file).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for crd in definitions() {
            let options = PatchParams::apply("tests").force();
            crds.patch(&crd.name_any(), &options, &Patch::Apply(&crd)).await.unwrap();
            let name = crd.name_any();
            let established = await_condition(crds.clone(), &name, is_crd_established());
            tokio::time::timeout(Duration::from_secs(20), established).await.unwrap().unwrap();
        }
        let namespace = format!("sr-{name}-{}", &Uuid::new_v4().to_string()[..8]);
        let object = Namespace {
            metadata: ObjectMeta { name: Some(namespace.clone()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        Api::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
        let manager = Arc::<Manager>::default();
        let url = manager.clone().start().await;
        let mut setting = Self { client, namespace, manager, url, running: None };
        setting.start();
        setting
    }

    fn start(&mut self) {
        let context = Arc::new(Context {
            client: self.client.clone(),
            events: Recorder::new(self.client.clone(), "tests".into()),
            metrics: Metrics::new(&prometheus::Registry::new()),
            options: Arc::new(Options {
                manager_image: String::new(),
                signer_image: String::new(),
                operator_image: String::new(),
                watch_namespace: Some(self.namespace.clone()),
                namespace: "tss-network".into(),
                manager_ca: None,
                manager_url: Some(self.url.clone()),
            }),
        });
        let stop = CancellationToken::new();
        self.running = Some((stop.clone(), tokio::spawn(signing_request::run(context, stop))));
    }

    /// Ends the controller at once, as a crash does.
    async fn kill(&mut self) {
        let (_, task) = self.running.take().unwrap();
        task.abort();
        let _ = task.await;
    }

    fn requests(&self) -> Api<SigningRequest> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn apply(&self, name: &str, spec: Value) -> SigningRequest {
        let mut spec = spec;
        spec["clusterRef"] = json!({"name": "c"});
        let object = json!({"apiVersion": "tss.network/v1alpha1", "kind": "SigningRequest",
            "metadata": {"name": name}, "spec": spec});
        let object = serde_json::from_value(object).unwrap();
        self.requests().create(&PostParams::default(), &object).await.unwrap()
    }

    /// A cluster that signs.
    async fn cluster(&self) {
        let object = json!({"apiVersion": "tss.network/v1alpha1", "kind": "TssCluster", "metadata": {"name": "c"},
            "spec": {"threshold": 2, "signers": 3, "auth": {"type": "None"},
                "rabbitmq": {"uriSecret": {"name": "s"}}, "mongodb": {"uriSecret": {"name": "s"}}}});
        let clusters: Api<TssCluster> = Api::namespaced(self.client.clone(), &self.namespace);
        let object = serde_json::from_value(object).unwrap();
        clusters.create(&PostParams::default(), &object).await.unwrap();
        let status = json!({"status": {
            "publicKey": PUBLIC_KEY,
            "addresses": {"path": "0/1/2", "publicKey": PUBLIC_KEY, "ethereum": "0x", "bitcoin": "bc1"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "",
                "lastTransitionTime": "2030-01-01T00:00:00Z"}]}});
        clusters.patch_status("c", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    async fn status(&self, name: &str) -> SigningRequestStatus {
        self.requests().get(name).await.unwrap().status.unwrap_or_default()
    }

    /// The status of a request, once this holds for it.
    async fn until(&self, name: &str, holds: impl Fn(&SigningRequestStatus) -> bool) -> SigningRequestStatus {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.status(name).await;
            if holds(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{name} is still {status:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn finished(&self, name: &str) -> SigningRequestStatus {
        self.until(name, |status| status.finished_at.is_some()).await
    }

    async fn end(mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), task).await.expect("it stops in time").unwrap();
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::background()).await.unwrap();
    }
}

fn reason<'a>(status: &'a SigningRequestStatus, kind: &str) -> &'a str {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .map_or("", |condition| &condition.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: TEST_KUBECONFIG"]
async fn a_request_is_signed_and_never_changes_again() {
    let setting = Setting::new("one").await;
    setting.cluster().await;
    setting.apply("warm-up", json!({"message": "warm-up"})).await;
    setting.finished("warm-up").await;
    let began = Instant::now();
    setting.apply("r", json!({"message": "hello"})).await;
    let status = setting.finished("r").await;
    println!("one SigningRequest: {} ms", began.elapsed().as_millis());
    assert_eq!(status.phase, Some(Phase::Complete));
    assert_eq!((status.attempts, status.quorum.as_slice()), (Some(1), &[1, 2][..]));
    assert_eq!(status.signature.as_ref().unwrap().path, "0/1/2");

    let requests = setting.requests();
    for status in [json!({"attempts": 9}), json!({"finishedAt": null}), Value::Null] {
        let patch = Patch::Merge(json!({ "status": status }));
        let error = requests.patch_status("r", &PatchParams::default(), &patch).await.unwrap_err();
        assert!(error.to_string().contains("never changes"), "{error}");
    }
    let patch = Patch::Merge(json!({"spec": {"message": "other"}}));
    let error = requests.patch("r", &PatchParams::default(), &patch).await.unwrap_err();
    assert!(error.to_string().contains("immutable"), "{error}");
    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    requests.patch("r", &PatchParams::default(), &patch).await.unwrap();

    let list = requests.list(&ListParams::default().fields("spec.clusterRef.name=c")).await.unwrap();
    assert_eq!(list.items.len(), 2);
    let list = requests.list(&ListParams::default().fields("spec.clusterRef.name=d")).await.unwrap();
    assert_eq!(list.items.len(), 0);

    tokio::time::sleep(Duration::from_millis(500)).await;
    let events: Api<Event> = Api::namespaced(setting.client.clone(), &setting.namespace);
    let events = events.list(&ListParams::default()).await.unwrap();
    let of_r = |event: &&Event| event.regarding.as_ref().unwrap().name.as_deref() == Some("r");
    let told: Vec<_> = events.items.iter().filter(of_r).map(|event| event.reason.clone().unwrap()).collect();
    assert_eq!(told, ["Signed"]);
    setting.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: TEST_KUBECONFIG"]
async fn many_at_once_are_all_signed_each_once() {
    const MANY: usize = 200;
    let setting = Setting::new("many").await;
    setting.cluster().await;
    let began = Instant::now();
    let names: Vec<String> = (0..MANY).map(|number| format!("r{number}")).collect();
    join_all(names.iter().map(|name| setting.apply(name, json!({"message": "slow"})))).await;
    println!("{MANY} created after {} ms", began.elapsed().as_millis());
    for name in &names {
        assert_eq!(setting.finished(name).await.phase, Some(Phase::Complete));
    }
    println!("{MANY} at once: {} ms", began.elapsed().as_millis());
    assert_eq!(usize::try_from(setting.manager.new.load(Ordering::Relaxed)).unwrap(), MANY);
    let mut tries: BTreeMap<u32, u32> = BTreeMap::new();
    for count in setting.manager.sent.lock().unwrap().values() {
        *tries.entry(*count).or_default() += 1;
    }
    println!("how often each was sent: {tries:?}");
    setting.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: TEST_KUBECONFIG"]
async fn it_waits_for_its_cluster_and_then_goes_on() {
    let setting = Setting::new("waits").await;
    setting.apply("r", json!({"message": "hello"})).await;
    setting.apply("late", json!({"message": "hello", "deadlineSeconds": 2})).await;
    let status = setting.until("r", |status| reason(status, "Accepted") == "ClusterNotFound").await;
    assert_eq!(status.phase, Some(Phase::Pending));
    let late = setting.finished("late").await;
    assert_eq!(reason(&late, "Failed"), "DeadlineExceeded");
    let failed = late.conditions.iter().find(|condition| condition.type_ == "Failed").unwrap();
    assert!(failed.message.contains("there is no TssCluster c"), "{}", failed.message);
    setting.cluster().await;
    let began = Instant::now();
    setting.finished("r").await;
    println!("signed {} ms after its cluster became ready", began.elapsed().as_millis());
    assert_eq!(setting.manager.new.load(Ordering::Relaxed), 1);
    setting.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: TEST_KUBECONFIG"]
async fn refusals_fail_with_a_reason_and_what_passes_is_tried_again() {
    let setting = Setting::new("refused").await;
    setting.cluster().await;
    for (name, spec, expected) in [
        ("forbidden", json!({"message": "forbidden"}), "PolicyRefused"),
        ("invalid", json!({"message": "invalid"}), "InvalidRequest"),
        ("encoding", json!({"message": "xyz", "encoding": "hex"}), "InvalidRequest"),
    ] {
        setting.apply(name, spec).await;
        let status = setting.finished(name).await;
        assert_eq!((status.phase, reason(&status, "Failed")), (Some(Phase::Failed), expected));
    }
    assert_eq!(setting.status("forbidden").await.quorum, [1, 2]);
    setting.apply("overloaded", json!({"message": "overloaded"})).await;
    setting.until("overloaded", |status| reason(status, "Accepted") == "ManagerOverloaded").await;
    setting.manager.relieved.store(true, Ordering::Relaxed);
    assert_eq!(setting.finished("overloaded").await.phase, Some(Phase::Complete));
    setting.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: TEST_KUBECONFIG"]
async fn an_operator_that_dies_while_it_sends_has_it_signed_once() {
    let mut setting = Setting::new("killed").await;
    setting.cluster().await;
    let names: Vec<String> = (0..10).map(|number| format!("r{number}")).collect();
    for name in &names {
        setting.apply(name, json!({"message": format!("slow to answer {name}"), "deadlineSeconds": 3})).await;
    }
    for name in &names {
        setting.until(name, |status| reason(status, "Accepted") == "Submitting").await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(setting.manager.new.load(Ordering::Relaxed), 10);
    setting.kill().await;
    // The manager has taken them, and signs them; the deadline passes, and nobody has noted any of it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    setting.start();
    for name in &names {
        assert_eq!(setting.finished(name).await.phase, Some(Phase::Complete));
    }
    assert_eq!(setting.manager.new.load(Ordering::Relaxed), 10);
    setting.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a cluster: TEST_KUBECONFIG"]
async fn what_has_ended_is_deleted_in_time_and_what_waits_causes_no_writes() {
    let setting = Setting::new("ttl").await;
    setting.apply("waiting", json!({"message": "hello"})).await;
    setting.until("waiting", |status| reason(status, "Accepted") == "ClusterNotFound").await;
    let before = setting.requests().get("waiting").await.unwrap().resource_version();
    setting.apply("invalid", json!({"message": "x", "encoding": "hex", "ttlSecondsAfterFinished": 2})).await;
    setting.finished("invalid").await;
    let began = Instant::now();
    while setting.requests().get_opt("invalid").await.unwrap().is_some() {
        assert!(began.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!(setting.requests().get("waiting").await.unwrap().resource_version(), before);
    setting.end().await;
}
