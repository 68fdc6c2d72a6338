//! The REST API, on a manager and its signers in one process.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k256::elliptic_curve::ff::PrimeField as _;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tss_common::bus::memory::MemoryBus;
use tss_common::config::{Config, Limits, StoreKind};
use tss_common::identity::Roster;
use tss_common::intent::Intent;
use tss_manager::store::{self, Lease};
use tss_manager::{Manager, ManagerOptions};
use tss_mpc::{Dkls23, PublicKey, ShareDocument, SignerIndex, Threshold};
use tssctl::network::{Network, NetworkOptions};
use uuid::Uuid;

/// How long what must happen may take. Test programs share two cores.
const SOON: Duration = Duration::from_secs(60);

/// The longest request body.
const MAX_BODY: usize = 1 << 20;

/// How many connections a client has when it asks for many things at once.
const CONNECTIONS: usize = 100;

/// The shares of a 2-of-3 key, as JSON.
static SHARES: LazyLock<BTreeMap<SignerIndex, Vec<u8>>> = LazyLock::new(|| {
    let config = Config::default();
    let threshold = Threshold::new(config.threshold, config.total_parties).unwrap();
    let shares = tssctl::keygen::generate(&Dkls23, &config.cluster, &config.key, threshold).unwrap();
    shares.iter().map(|(&index, share)| (index, share.to_json().unwrap().to_vec())).collect()
});

fn shares() -> BTreeMap<SignerIndex, ShareDocument> {
    SHARES.iter().map(|(&index, share)| (index, ShareDocument::from_json(share).unwrap())).collect()
}

/// The root public key and its chain code.
fn root() -> (PublicKey, [u8; 32]) {
    let core = shares().into_values().next().unwrap().core;
    (core.secp256k1().unwrap().public_key, core.chain_code)
}

fn config(folder: &TempDir) -> Config {
    let limits = Limits { pending: 5000, ..Limits::default() };
    Config {
        manager_port: 0,
        data_dir: folder.path().to_owned(),
        store: StoreKind::Embedded,
        limits,
        ..Config::default()
    }
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
    /// The text as JSON, or null.
    body: Value,
}

impl Answer {
    async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a whole answer");
        let body = serde_json::from_str(&text).unwrap_or_default();
        Self { status, headers, text, body }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn id(&self) -> Uuid {
        self.body["request_id"].as_str().unwrap().parse().unwrap()
    }

    /// That it is a problem of this kind whose detail contains these parts.
    fn assert_problem(&self, status: u16, kind: &str, parts: &[&str]) {
        assert_eq!(
            (self.status, self.header("content-type")),
            (status, "application/problem+json"),
            "{self:?}"
        );
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("urn:tss-network:problem:{kind}"), "{self:?}");
        assert!(self.body["title"].as_str().is_some_and(|title| !title.is_empty()), "{self:?}");
        let detail = self.body["detail"].as_str().unwrap_or_default();
        for part in parts {
            assert!(detail.contains(part), "`{part}` is missing in: {detail}");
        }
    }
}

/// A client of a manager.
#[derive(Clone)]
struct Api {
    http: reqwest::Client,
    url: String,
}

impl Api {
    fn new(url: String) -> Self {
        Self { http: reqwest::Client::builder().timeout(SOON * 2).build().unwrap(), url }
    }

    async fn get(&self, path: &str) -> Answer {
        Answer::of(self.http.get(format!("{}{path}", self.url))).await
    }

    async fn verify(&self, body: &Value) -> Answer {
        Answer::of(self.http.post(format!("{}/verify", self.url)).json(body)).await
    }

    async fn batch(&self, requests: &[Value]) -> Answer {
        let body = json!({ "requests": requests });
        Answer::of(self.http.post(format!("{}/sign/batch", self.url)).json(&body)).await
    }

    async fn sign(&self, body: &Value) -> Answer {
        self.sign_with(&[], body.to_string()).await
    }

    async fn sign_once(&self, key: &str, body: &Value) -> Answer {
        self.sign_with(&[("idempotency-key", key)], body.to_string()).await
    }

    /// `POST /sign` of text that is declared as JSON unless the headers say otherwise.
    async fn sign_with(&self, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
        let mut request = self.http.post(format!("{}/sign", self.url)).body(body);
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request).await
    }

    async fn accepted(&self, body: &Value) -> Uuid {
        let answer = self.sign(body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.id()
    }

    /// The signature of a request, once it is there.
    async fn signature(&self, id: Uuid) -> Value {
        let answer = self.get(&format!("/signature/{id}?wait=60s")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    /// The value of a metric; 0 where there is none.
    async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text;
        let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.map(|value| value.parse::<f64>().unwrap()).sum()
    }

    /// Waits until a metric has a value: some are set a little later than what they count.
    async fn until_metric(&self, name: &str, value: f64) {
        let began = Instant::now();
        loop {
            let now = self.metric(name).await;
            if (now - value).abs() < 0.5 {
                return;
            }
            assert!(began.elapsed() < SOON, "{name} is {now}, not {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A network with its client.
struct Signing {
    network: Network,
    api: Api,
    _folder: TempDir,
}

impl Signing {
    async fn start(edit: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&folder);
        edit(&mut config);
        let options = NetworkOptions {
            config,
            shares: shares(),
            share_files: BTreeMap::new(),
            identities: tssctl::keygen::identities(Threshold::new(2, 3).unwrap()),
            rabbitmq_uri: None,
            mongodb_uri: None,
        };
        let network = Network::start(options).await.unwrap();
        Self { api: Api::new(network.url()), network, _folder: folder }
    }

    async fn stop(self) {
        self.network.stop().await.unwrap();
    }
}

/// A manager without signers: nothing that it accepts is ever signed.
struct Unsigned {
    manager: Arc<Manager>,
    api: Api,
    config: Config,
    stop: CancellationToken,
    _folder: TempDir,
}

impl Unsigned {
    async fn start(edit: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&folder);
        edit(&mut config);
        let options = ManagerOptions {
            config: config.clone(),
            roster: Roster::of(&tssctl::keygen::identities(Threshold::new(2, 3).unwrap())).unwrap(),
            bus: MemoryBus::new(),
            store: store::open(&config).unwrap(),
            registry: prometheus::Registry::new(),
        };
        let manager = Arc::new(Manager::start(options).await.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Api::new(format!("http://{}", listener.local_addr().unwrap()));
        let stop = CancellationToken::new();
        let (served, token) = (manager.clone(), stop.clone());
        tokio::spawn(async move { served.serve(listener, None, token).await });
        api.until_metric("tss_part_up{part=\"store\"}", 1.0).await;
        Self { manager, api, config, stop, _folder: folder }
    }
}

fn hex_of<const N: usize>(value: &Value) -> [u8; N] {
    hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

/// That a signature, as it was answered, is one of `digest` by `key` in every form, for two libraries.
fn assert_signs(signed: &Value, digest: [u8; 32], key: &PublicKey) {
    use k256::ecdsa::signature::hazmat::PrehashVerifier as _;
    use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};

    assert_eq!(signed["status"], "Completed");
    assert_eq!(signed["digest"], hex::encode(digest));
    assert_eq!(signed["public_key"], key.to_string());
    let (r, s): ([u8; 32], [u8; 32]) = (hex_of(&signed["r"]), hex_of(&signed["s"]));
    assert_eq!(hex_of::<64>(&signed["compact"])[..], [r, s].concat());
    let recid = signed["recid"].as_i64().unwrap();
    assert_eq!(signed["v"], 27 + recid);
    let der = hex::decode(signed["der"].as_str().unwrap()).unwrap();

    let signature = k256::ecdsa::Signature::from_scalars(r, s).unwrap();
    assert_eq!(signature.normalize_s(), signature, "low s");
    assert_eq!(signature.to_der().as_bytes(), der);
    let own = k256::ecdsa::VerifyingKey::from_sec1_bytes(&key.to_compressed()).unwrap();
    own.verify_prehash(&digest, &signature).unwrap();

    let (context, message) = (secp256k1::Secp256k1::new(), secp256k1::Message::from_digest(digest));
    let own = secp256k1::PublicKey::from_slice(&key.to_uncompressed()).unwrap();
    let recid = RecoveryId::try_from(i32::try_from(recid).unwrap()).unwrap();
    let recoverable = RecoverableSignature::from_compact(&[r, s].concat(), recid).unwrap();
    context.verify_ecdsa(message, &recoverable.to_standard(), &own).unwrap();
    assert_eq!(context.recover_ecdsa(message, &recoverable).unwrap(), own);
    assert_eq!(recoverable.to_standard().serialize_der()[..], der[..]);
}

fn sha256(message: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(message).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_request_is_said_with_what_was_expected() {
    let signing = Signing::start(|_| {}).await;
    let api = &signing.api;
    let long_key = "k".repeat(256);
    let past = (Timestamp::now() - SignedDuration::from_secs(1)).to_string();
    let deep = vec!["0"; 17].join("/");
    let cases: &[(Value, &[&str])] = &[
        (json!({}), &["missing field `message`"]),
        (json!({"message": "a", "mesage": "b"}), &["unknown field `mesage`", "expected", "`message`"]),
        (json!({"message": "a", "hash": "md5"}), &["`hash`", "`md5`", "expected", "`sha256`", "`eip191`"]),
        (json!({"message": "a", "encoding": "latin1"}), &["`latin1`", "expected", "`hex`"]),
        (json!({"message": 7}), &["integer `7`", "expected a string"]),
        (json!("a"), &["string \"a\"", "expected"]),
        (json!({"message": "a", "path": "0'/1"}), &["`0'`", "hardened", "0 to 2147483647"]),
        (json!({"message": "a", "path": "2147483648"}), &["`2147483648`", "hardened", "0 to 2147483647"]),
        (json!({"message": "a", "path": "0//1"}), &["malformed", "`0/1/2`", "`m`"]),
        (json!({"message": "a", "path": ""}), &["malformed", "`0/1/2`", "`m`"]),
        (json!({"message": "a", "path": deep}), &["17 steps", "at most 16"]),
        (json!({"message": "ab", "hash": "none"}), &["`message`", "expected 32 bytes", "got 2"]),
        (
            json!({"message": "00".repeat(33), "encoding": "hex", "hash": "none"}),
            &["`message`", "expected 32 bytes", "got 33"],
        ),
        (json!({"message": "0xabc", "encoding": "hex"}), &["`message`", "even number of hex digits"]),
        (json!({"message": "a?", "encoding": "base64"}), &["`message`", "base64 with padding"]),
        (json!({"message": "a", "key": "other"}), &["`key`", "no key `other`"]),
        (json!({"message": "a", "not_after": past}), &["`not_after`", "has passed", "expected a time after"]),
        (json!({"message": "a", "not_after": "tomorrow"}), &["`not_after`", "2030-01-02T03:04:05Z"]),
        (json!(["a", "utf8", "sha256", null, null, null]), &["expected a JSON object"]),
    ];
    for (body, parts) in cases {
        println!("{body}");
        api.sign(body).await.assert_problem(422, "invalid-request", parts);
    }
    for key in ["", &long_key] {
        let answer = api.sign_once(key, &json!({"message": "a"})).await;
        answer.assert_problem(422, "invalid-request", &["`idempotency-key`", "expected 1 to 255"]);
    }
    for (text, place) in
        [("", "line 1"), ("{", "line 1"), ("{\"message\": \"a\"} b", "line 1"), ("message=a", "line 1")]
    {
        api.sign_with(&[], text).await.assert_problem(400, "malformed-json", &[place]);
    }
    api.sign_with(&[], vec![0xff, 0xfe]).await.assert_problem(400, "malformed-json", &[]);
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        let answer = api.sign_with(&[("content-type", content_type)], "{\"message\":\"a\"}").await;
        answer.assert_problem(415, "not-json", &["expected", "`content-type: application/json`"]);
    }
    let too_long = json!({"message": "a".repeat(MAX_BODY)});
    api.sign(&too_long).await.assert_problem(413, "body-too-large", &["at most 1048576 bytes"]);

    let refused = cases.len() + 2;
    for (kind, count) in
        [("invalid-request", refused), ("malformed-json", 5), ("not-json", 4), ("body-too-large", 1)]
    {
        let count = u32::try_from(count).unwrap();
        assert_eq!(
            api.metric(&format!("tss_requests_rejected_total{{problem=\"{kind}\"}}")).await,
            f64::from(count)
        );
    }
    assert_eq!(api.metric("tss_requests_accepted_total").await, 0.0);
    // The manager is none the worse for it.
    let charset = [("content-type", "Application/JSON; charset=utf-8")];
    let accepted = api.sign_with(&charset, "{\"message\":\"a\"}").await;
    assert_signs(&api.signature(accepted.id()).await, sha256("a"), &derived("0/1/2"));
    signing.stop().await;
}

fn derived(path: &str) -> PublicKey {
    let (root, chain_code) = root();
    root.derive(&chain_code, &path.parse().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_ids_routes_and_methods_are_problems() {
    let unsigned = Unsigned::start(|_| {}).await;
    let api = &unsigned.api;
    for route in ["status", "signature", "signing_result"] {
        api.get(&format!("/{route}/{}", Uuid::new_v4())).await.assert_problem(404, "unknown-request", &[]);
        for malformed in ["1", "550e8400-e29b-41d4-a716-44665544000", "550e8400-e29b-41d4-a716-44665544000g"]
        {
            let answer = api.get(&format!("/{route}/{malformed}")).await;
            answer.assert_problem(400, "malformed-id", &["expected a UUID like", "550e8400"]);
        }
    }
    let missing = api.get(&format!("/signature/{}?wait=1s", Uuid::new_v4())).await;
    missing.assert_problem(404, "unknown-request", &[]);
    for route in ["/", "/sign/", "/status", "/status/", "/signatures", "/SIGN", "/status/1/2"] {
        api.get(route).await.assert_problem(404, "no-such-route", &[]);
    }
    api.get("/sign").await.assert_problem(405, "method-not-allowed", &[]);
    for (method, route) in [("POST", "/health"), ("DELETE", "/status/1"), ("BREW", "/sign")] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let answer = Answer::of(api.http.request(method, format!("{}{route}", api.url))).await;
        answer.assert_problem(405, "method-not-allowed", &[]);
    }
    let labels = "{method=\"other\",route=\"/sign\",status=\"405\"}";
    assert_eq!(api.metric(&format!("tss_http_responses_total{labels}")).await, 1.0);
    let labels = "{method=\"GET\",route=\"none\",status=\"404\"}";
    assert_eq!(api.metric(&format!("tss_http_responses_total{labels}")).await, 7.0);
    unsigned.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_is_waited_for_and_a_failure_says_why() {
    let unsigned = Unsigned::start(|config| config.signing_timeout = 12).await;
    let api = &unsigned.api;
    let answer = api.sign(&json!({"message": "never"})).await;
    let (id, accepted) = (answer.id(), Instant::now());
    assert_eq!((answer.status, answer.header("location")), (201, format!("/status/{id}").as_str()));
    assert_eq!(answer.body, json!({"request_id": id, "status": "Pending"}));
    let pending = json!({"request_id": id, "status": "Pending"});
    let answer = api.get(&format!("/signature/{id}")).await;
    assert_eq!((answer.status, answer.header("retry-after")), (202, "1"));
    assert_eq!(answer.body, pending);
    let answer = api.get(&result_path(id)).await;
    assert_eq!(answer.body["signature"], Value::Null);
    assert_eq!(answer.body["status"], "Pending");
    let status = api.get(&format!("/status/{id}")).await;
    assert_eq!(status.status, 200);
    assert_eq!(status.body, json!({"request_id": id, "status": "Pending", "attempts": 0, "quorum": null}));

    for wait in ["10", "s", "61s", "1m", "-1s", "1.5s", ""] {
        let answer = api.get(&format!("/signature/{id}?wait={wait}")).await;
        answer.assert_problem(422, "invalid-request", &["`wait`", "`10s` or `500ms`", "up to 60s"]);
    }
    let answer = api.get(&format!("/signature/{id}?wiat=1s")).await;
    answer.assert_problem(422, "invalid-request", &["wiat", "`wait`"]);

    // A wait ends with nothing when its time is up, and early when the request ends.
    let began = Instant::now();
    let answer = api.get(&format!("/signature/{id}?wait=500ms")).await;
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert_eq!((answer.status, answer.header("retry-after")), (202, "1"));
    let answer = api.get(&format!("/signature/{id}?wait=60s")).await;
    answer.assert_problem(409, "request-failed", &["not signed in time", "no signer holds the key"]);
    assert!((Duration::from_secs(11)..Duration::from_secs(50)).contains(&accepted.elapsed()));
    let status = api.get(&format!("/status/{id}")).await.body;
    assert_eq!((&status["status"], &status["attempts"]), (&"Failed".into(), &0.into()));
    assert_eq!(status["reason"].as_str(), api.get(&format!("/signature/{id}")).await.body["detail"].as_str());
    let result = api.get(&result_path(id)).await.body;
    let expected = json!({"request_id": id, "message": b"never", "status": "Failed", "signature": null});
    assert_eq!(result, expected);

    // The caller's own expiry comes before the configured one.
    let soon = Timestamp::now() + SignedDuration::from_secs(5);
    let id = api.accepted(&json!({"message": "never", "not_after": soon.to_string()})).await;
    let answer = api.get(&format!("/signature/{id}?wait=60s")).await;
    answer.assert_problem(409, "request-failed", &["not signed in time"]);
    assert_eq!(api.metric("tss_requests_total{outcome=\"failed\"}").await, 2.0);
    // Counted a moment after whoever waited has been told.
    let began = Instant::now();
    while api.metric("tss_requests_unfinished").await != 0.0 {
        assert!(began.elapsed() < Duration::from_secs(10), "a request that has ended is driven on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let health = api.get("/health").await;
    assert_eq!(health.status, 503);
    let signers = json!({"live": [], "threshold": 2, "total": 3});
    let parts = json!({"status": "unavailable", "store": "up", "bus": "up", "signers": signers, "key": null});
    assert_eq!(health.body, parts);
    let ready = api.get("/readyz").await;
    assert_eq!((ready.status, ready.text.as_str()), (503, "no key is on record yet\n"));
    unsigned.manager.stop().await;
}

fn result_path(id: Uuid) -> String {
    format!("/signing_result/{id}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_with_too_much_to_do_refuses_and_stores_nothing_of_it() {
    let unsigned =
        Unsigned::start(|config| config.limits = Limits { pending: 5, active: 2, ..config.limits.clone() });
    let unsigned = unsigned.await;
    let api = &unsigned.api;
    let mut accepted = BTreeSet::new();
    for number in 0..5 {
        let answer = api.sign_once(&format!("{number}"), &json!({"message": format!("{number}")})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        accepted.insert(answer.id());
    }
    for number in 0..10 {
        let answer = api.sign_once(&format!("refused {number}"), &json!({"message": "refused"})).await;
        answer.assert_problem(503, "overloaded", &["5 requests are waiting"]);
        assert_eq!(answer.header("retry-after"), "1");
    }
    // Who asks again for what was accepted takes no more room.
    let again = api.sign_once("3", &json!({"message": "3"})).await;
    assert_eq!(again.status, 200, "{again:?}");
    assert!(accepted.contains(&again.id()));
    let other = api.sign_once("3", &json!({"message": "4"})).await;
    other.assert_problem(422, "idempotency-conflict", &[&again.id().to_string()]);
    assert_eq!(api.metric("tss_requests_rejected_total{problem=\"overloaded\"}").await, 10.0);
    assert_eq!(api.metric("tss_requests_accepted_total").await, 5.0);

    // All that was accepted is in the file, and nothing else.
    let Unsigned { manager, config, stop, _folder, .. } = unsigned;
    stop.cancel();
    manager.stop().await;
    drop(manager);
    let store = {
        let began = Instant::now();
        loop {
            // The server that is ending holds the file for a moment longer.
            match store::open(&config) {
                Ok(store) => break store,
                Err(error) => assert!(began.elapsed() < SOON, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    store.prepare().await.unwrap();
    let later = Timestamp::now() + SignedDuration::from_hours(1);
    let lease = Lease { holder: Uuid::new_v4(), until: later };
    let stored = store.take_over(later, &lease, 100).await.unwrap();
    assert_eq!(stored.iter().map(|request| request.id).collect::<BTreeSet<_>>(), accepted);
    assert_eq!(stored.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_stands_for_one_request() {
    let signing = Signing::start(|_| {}).await;
    let api = &signing.api;
    let body = json!({"message": "pay 10", "path": "0/7"});
    let first = api.sign_once("order 1", &body).await;
    assert_eq!(first.status, 201, "{first:?}");
    let signature = api.signature(first.id()).await;
    // The same wish in other words is the same wish.
    for same in [
        &body,
        &json!({"message": hex::encode("pay 10"), "encoding": "hex", "hash": "sha256", "path": "m/0/7"}),
    ] {
        let again = api.sign_once("order 1", same).await;
        assert_eq!((again.status, again.id()), (200, first.id()), "{again:?}");
        assert_eq!(again.header("location"), format!("/status/{}", first.id()));
        assert_eq!(again.body["status"], "Completed");
    }
    assert_eq!(api.signature(first.id()).await, signature);
    for other in [
        json!({"message": "pay 11", "path": "0/7"}),
        json!({"message": "pay 10", "path": "0/8"}),
        json!({"message": "pay 10", "path": "0/7", "hash": "keccak256"}),
        json!({"message": "pay 10", "path": "0/7", "not_after": "2100-01-01T00:00:00Z"}),
    ] {
        let answer = api.sign_once("order 1", &other).await;
        answer.assert_problem(422, "idempotency-conflict", &[&first.id().to_string(), "something else"]);
    }
    let unrelated = api.sign_once("order 2", &body).await;
    assert_eq!(unrelated.status, 201);
    assert_ne!(unrelated.id(), first.id());
    api.signature(unrelated.id()).await;
    assert_eq!(api.metric("tss_requests_accepted_total").await, 2.0);

    let body = json!({"message": "once"});
    let answers = join_all((0..20).map(|_| api.sign_once("many at once", &body))).await;
    let ids: BTreeSet<Uuid> = answers.iter().map(Answer::id).collect();
    assert_eq!(ids.len(), 1);
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(201), count(200)), (1, 19));
    let signatures = join_all(answers.iter().map(|answer| api.signature(answer.id()))).await;
    assert!(signatures.iter().all(|signature| *signature == signatures[0]));
    api.until_metric("tss_requests_total{outcome=\"completed\"}", 3.0).await;
    assert_eq!(api.metric("tss_requests_accepted_total").await, 3.0);
    assert_eq!(api.metric("tss_attempts_total{ending=\"signed\"}").await, 3.0);
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_again_after_the_time_has_passed_is_told_of_the_request() {
    let unsigned = Unsigned::start(|_| {}).await;
    let api = &unsigned.api;
    let time = Timestamp::now() + SignedDuration::from_secs(2);
    let body = json!({"message": "in time", "not_after": time.to_string()});
    let first = api.sign_once("order 1", &body).await;
    assert_eq!(first.status, 201, "{first:?}");
    while Timestamp::now() <= time {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Approvals are no part of what is asked for.
    let approver = tss_common::ed25519::SigningKey::generate().verifying_key().to_string();
    let mut approved = body.clone();
    approved["approvals"] = json!([{"approver": approver, "signature": "00".repeat(64)}]);
    for same in [&body, &approved] {
        let again = api.sign_once("order 1", same).await;
        assert_eq!((again.status, again.id()), (200, first.id()), "{again:?}");
    }
    for other in [
        json!({"message": "too late", "not_after": time.to_string()}),
        json!({"message": "in time"}),
        json!({"message": "in time", "key": "unknown"}),
    ] {
        let answer = api.sign_once("order 1", &other).await;
        answer.assert_problem(422, "idempotency-conflict", &[&first.id().to_string()]);
    }
    let answer = api.sign_once("order 2", &body).await;
    answer.assert_problem(422, "invalid-request", &["`not_after`", "has passed"]);
    unsigned.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hash_at_every_path_signs_the_digest_it_stands_for() {
    let signing = Signing::start(|_| {}).await;
    let api = &signing.api;
    let twice = sha256(sha256("hello"));
    let digest = sha256("Sunil");
    // Keccak's own test vectors, and what wallets hash for `personal_sign`.
    let known = |text: &str| -> [u8; 32] { hex::decode(text).unwrap().try_into().unwrap() };
    let keccak_abc = known("4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45");
    let keccak_empty = known("c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470");
    let hello_world = known("a1de988600a42c4b4ab089b619297c17d53cffae5d5120d82d8a92d0bb3b78f2");
    let cases = [
        ("sha256", json!({"message": "Sunil"}), &b"Sunil"[..], digest),
        ("sha256", json!({"message": "Grüße €", "hash": "sha256"}), "Grüße €".as_bytes(), sha256("Grüße €")),
        ("sha256d", json!({"message": "hello", "hash": "sha256d", "encoding": "utf8"}), b"hello", twice),
        (
            "keccak256",
            json!({"message": "YWJj", "hash": "keccak256", "encoding": "base64"}),
            b"abc",
            keccak_abc,
        ),
        ("keccak256", json!({"message": "", "hash": "keccak256"}), b"", keccak_empty),
        ("eip191", json!({"message": "Hello World", "hash": "eip191"}), b"Hello World", hello_world),
        (
            "none",
            json!({"message": format!("0x{}", hex::encode(digest)), "hash": "none", "encoding": "hex"}),
            &digest,
            digest,
        ),
    ];
    for (path, shown) in
        [(None, "0/1/2"), (Some("m"), "m"), (Some("m/44/60/0/0/2147483647"), "44/60/0/0/2147483647")]
    {
        let key = derived(shown);
        for (hash, body, message, digest) in &cases {
            let mut body = body.clone();
            if let Some(path) = path {
                body["path"] = path.into();
            }
            println!("{body}");
            let id = api.accepted(&body).await;
            let signed = api.signature(id).await;
            assert_eq!(signed["request_id"], json!(id));
            assert_signs(&signed, *digest, &key);
            let intent = json!({
                "cluster": "tss", "key": "default", "path": shown, "hash": hash, "digest": hex::encode(digest),
                "not_after": null,
            });
            assert_eq!(signed["intent"], intent);
            let intent: Intent = serde_json::from_value(intent).unwrap();
            assert_eq!(signed["intent_hash"], hex::encode(intent.hash()));

            let result = api.get(&result_path(id)).await.body;
            assert_eq!((&result["message"], &result["status"]), (&json!(message), &"Completed".into()));
            let (x, y) = key.coordinates();
            let original = json!({
                "r": signed["r"], "s": signed["s"], "recid": signed["recid"], "status": "signature_ready",
                "x": hex::encode(x), "y": hex::encode(y), "msg_int": digest,
            });
            assert_eq!(result["signature"], original);
            let status = api.get(&format!("/status/{id}")).await.body;
            assert_eq!((&status["status"], &status["attempts"]), (&"Completed".into(), &1.into()));
            let quorum: BTreeSet<u64> =
                status["quorum"].as_array().unwrap().iter().map(|index| index.as_u64().unwrap()).collect();
            assert!(quorum.len() == 2 && quorum.iter().all(|index| (1..=3).contains(index)), "{status}");
        }
    }
    assert_eq!(derived("m"), root().0);
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_in_one_body_are_each_what_they_would_be_alone() {
    let signing = Signing::start(|_| {}).await;
    let api = &signing.api;
    let alone = api.sign_once("first", &json!({"message": "one"})).await.id();
    let requests = [
        json!({"message": "one", "idempotency_key": "first"}),
        json!({"message": "two", "idempotency_key": "first"}),
        json!({"message": "three", "idempotency_key": "second", "path": "7"}),
        json!({"message": "four"}),
        json!({"message": "four"}),
        json!({"message": "five", "hash": "md5"}),
        json!({"message": "six", "idempotency_key": ""}),
        json!({"message": "seven", "idempotency_key": 7}),
        json!({"message": "eight", "key": "other"}),
        json!(["nine"]),
        json!(10),
        json!({}),
    ];
    let answer = api.batch(&requests).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let results = answer.body["results"].as_array().unwrap().clone();
    let codes: Vec<u64> = results.iter().map(|result| result["code"].as_u64().unwrap()).collect();
    assert_eq!(codes, [200, 422, 201, 201, 201, 422, 422, 422, 422, 422, 422, 422], "{answer:?}");
    assert_eq!(results[0]["request_id"], json!(alone));
    let mut ids = BTreeSet::new();
    for (index, text) in [(2, "three"), (3, "four"), (4, "four")] {
        assert_eq!(results[index]["status"], "Pending");
        let id: Uuid = results[index]["request_id"].as_str().unwrap().parse().unwrap();
        assert!(ids.insert(id), "each is a request of its own");
        let path = if index == 2 { "7" } else { "0/1/2" };
        assert_signs(&api.signature(id).await, sha256(text), &derived(path));
    }
    for (index, kind, part) in [
        (1, "idempotency-conflict", "asks for something else"),
        (5, "invalid-request", "keccak256"),
        (6, "invalid-request", "`idempotency_key`: expected 1 to 255"),
        (7, "invalid-request", "`idempotency_key`: expected 1 to 255"),
        (8, "invalid-request", "no key `other`"),
        (9, "invalid-request", "expected a JSON object"),
        (10, "invalid-request", "expected struct"),
        (11, "invalid-request", "message"),
    ] {
        let problem = &results[index]["problem"];
        assert_eq!(problem["type"], format!("urn:tss-network:problem:{kind}"), "{problem}");
        assert_eq!(problem["status"], 422);
        assert!(problem["detail"].as_str().unwrap().contains(part), "{problem}");
    }
    assert_eq!(api.metric("tss_requests_rejected_total{problem=\"idempotency-conflict\"}").await, 1.0);
    assert_eq!(api.metric("tss_requests_rejected_total{problem=\"invalid-request\"}").await, 7.0);
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_1_to_1000_requests() {
    let unsigned = Unsigned::start(|_| {}).await;
    let api = &unsigned.api;
    let one = json!({"message": "m"});
    for count in [0, 1001] {
        let answer = api.batch(&vec![one.clone(); count]).await;
        answer.assert_problem(422, "invalid-request", &["`requests`", "expected 1 to 1000"]);
    }
    let answer = api.batch(&vec![one; 1000]).await;
    let results = answer.body["results"].as_array().unwrap();
    let ids: BTreeSet<&str> = results.iter().map(|result| result["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1000);
    for body in [json!({}), json!({"requests": 1}), json!({"requests": [], "more": 1}), json!([])] {
        let answer = Answer::of(api.http.post(format!("{}/sign/batch", api.url)).json(&body)).await;
        assert_eq!(answer.status, 422, "{answer:?}");
    }
    unsigned.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_told_with_what_they_go_by() {
    let signing = Signing::start(|_| {}).await;
    let api = &signing.api;
    let (public_key, chain_code) = root();
    let expected = |path: &str| {
        let key = derived(path);
        json!({
            "key": "default", "epoch": 1, "scheme": "ecdsa-secp256k1", "threshold": 2, "signers": 3,
            "public_key": public_key, "chain_code": hex::encode(chain_code),
            "derived": {"path": path, "public_key": key, "addresses": {
                "ethereum": key.ethereum_address(),
                "bitcoin_p2pkh": key.bitcoin_p2pkh_address(),
                "bitcoin_p2wpkh": key.bitcoin_address(),
            }},
        })
    };
    for (query, path) in [("", "0/1/2"), ("?path=m", "m"), ("?path=m/44/60/0", "44/60/0")] {
        let one = api.get(&format!("/keys/default{query}")).await;
        assert_eq!((one.status, one.body), (200, expected(path)));
        let all = api.get(&format!("/keys{query}")).await;
        assert_eq!((all.status, all.body), (200, json!({"keys": [expected(path)]})));
    }
    api.get("/keys/other").await.assert_problem(404, "unknown-key", &[]);
    for (query, parts) in [("?path=0'/1", "hardened"), ("?path=x", "as in `0/1/2`"), ("?pth=m", "pth")] {
        for route in ["/keys", "/keys/default"] {
            api.get(&format!("{route}{query}")).await.assert_problem(422, "invalid-request", &[parts]);
        }
    }
    signing.stop().await;

    // Nobody has announced one.
    let unsigned = Unsigned::start(|_| {}).await;
    assert_eq!(unsigned.api.get("/keys").await.body, json!({"keys": []}));
    unsigned.api.get("/keys/default").await.assert_problem(404, "unknown-key", &[]);
    let asked = json!({"message": "m", "signature": "00"});
    unsigned.api.verify(&asked).await.assert_problem(404, "unknown-key", &[]);
    unsigned.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_signed_verifies_and_nothing_else_does() {
    let signing = Signing::start(|_| {}).await;
    let api = &signing.api;
    let id = api.accepted(&json!({"message": "Sunil", "hash": "keccak256", "path": "7"})).await;
    let signed = api.signature(id).await;
    let part = |name: &str| signed[name].as_str().unwrap().to_owned();
    let compact = part("compact");
    let with = |last: u64| format!("{compact}{last:02x}");
    let recid = signed["recid"].as_u64().unwrap();
    // The same with the other s.
    let s = k256::Scalar::from_repr(<[u8; 32]>::try_from(hex::decode(part("s")).unwrap()).unwrap().into());
    let high = format!("{}{}", part("r"), hex::encode((-s.unwrap()).to_bytes()));

    let asked = |signature: &str| json!({"message": "Sunil", "hash": "keccak256", "path": "7", "signature": signature});
    for signature in [compact.clone(), format!("0x{compact}"), part("der"), with(recid), with(27 + recid)] {
        let answer = api.verify(&asked(&signature)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            answer.body,
            json!({"valid": true, "public_key": signed["public_key"], "digest": signed["digest"]}),
            "{signature}"
        );
        // As anybody else would ask, who knows the key.
        let foreign = json!({
            "message": part("digest"), "encoding": "hex", "hash": "none", "signature": signature,
            "public_key": signed["public_key"],
        });
        assert_eq!(api.verify(&foreign).await.body["valid"], true);
    }
    let mut altered = asked(&compact);
    altered["message"] = json!("Sunny");
    let mut elsewhere = asked(&compact);
    elsewhere["path"] = json!("8");
    for (body, reason) in [
        (altered, "does not fit"),
        (elsewhere, "does not fit"),
        (asked(&with(1 - recid)), "recovery id"),
        (asked(&high), "s is high"),
        (asked(""), "malformed"),
        (asked(&"00".repeat(64)), "out of range"),
        (asked(&compact[2..]), "malformed"),
        (asked(&format!("{}00", part("der"))), "malformed"),
    ] {
        let answer = api.verify(&body).await;
        assert_eq!((answer.status, &answer.body["valid"]), (200, &json!(false)), "{answer:?}");
        assert!(answer.body["reason"].as_str().unwrap().contains(reason), "{answer:?}");
    }
    for (field, value, parts) in [
        ("signature", json!("xyz"), ["`signature`", "hex digits"]),
        ("public_key", signed["public_key"].clone(), ["either it, or `key` and `path`", "public_key"]),
        ("public_key", json!("02"), ["public_key", "not a secp256k1 public key"]),
        ("hash", json!("none"), ["`message`", "32"]),
        ("more", json!(1), ["more", "unknown field"]),
    ] {
        let mut body = asked(&compact);
        body[field] = value;
        api.verify(&body).await.assert_problem(422, "invalid-request", &parts);
    }
    let mut other = asked(&compact);
    other["key"] = json!("other");
    api.verify(&other).await.assert_problem(404, "unknown-key", &[]);
    signing.stop().await;
}

/// Project Wycheproof's vectors. Those of Bitcoin know low s alone, as `/verify` does; of the others, what is valid with a
/// high s is not valid here, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_of_wycheproof_are_told_apart() {
    use wycheproof::TestResult;
    use wycheproof::ecdsa::{TestName, TestSet};
    let unsigned = Unsigned::start(|_| {}).await;
    for (name, is_strict) in [
        (TestName::EcdsaSecp256k1Sha256Bitcoin, true),
        (TestName::EcdsaSecp256k1Sha256, false),
        (TestName::EcdsaSecp256k1Sha256P1363, false),
    ] {
        let set = TestSet::load(name).unwrap();
        let (mut valid, mut high, mut invalid) = (0, 0, 0);
        for group in &set.test_groups {
            let key = PublicKey::from_sec1(&group.key.key).unwrap();
            for test in &group.tests {
                let asked = json!({
                    "message": hex::encode(&test.msg), "encoding": "hex", "public_key": key,
                    "signature": hex::encode(&test.sig),
                });
                let answer = unsigned.api.verify(&asked).await;
                assert_eq!(answer.status, 200, "{name:?} {}: {answer:?}", test.tc_id);
                let reason = answer.body["reason"].as_str().unwrap_or_default();
                match (&test.result, answer.body["valid"].as_bool().unwrap()) {
                    (TestResult::Valid, true) => valid += 1,
                    (TestResult::Invalid, false) => invalid += 1,
                    (TestResult::Valid, false) if !is_strict && reason.contains("s is high") => high += 1,
                    other => panic!("{name:?} {}: {other:?}, {}, {answer:?}", test.tc_id, test.comment),
                }
            }
        }
        println!("{name:?}: {valid} valid, {high} valid but for their high s, {invalid} invalid");
        assert_eq!(valid + high + invalid, set.number_of_tests);
        assert!(valid > 50 && invalid > 50 && (high == 0) == is_strict);
    }
    unsigned.manager.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_told_apart_by_id_and_messages_by_every_byte() {
    let signing = Signing::start(|_| {}).await;
    let api = &signing.api;
    let body = json!({"message": "twice"});
    let (one, other) = tokio::join!(api.accepted(&body), api.accepted(&body));
    assert_ne!(one, other);
    for id in [one, other] {
        let signed = api.signature(id).await;
        assert_eq!(signed["request_id"], json!(id));
        assert_signs(&signed, sha256("twice"), &derived("0/1/2"));
    }

    let tail = "the last 32 bytes are the same!!";
    assert_eq!(tail.len(), 32);
    let messages = [format!("pay 1 {tail}"), format!("pay 9 {tail}"), tail.to_owned(), format!("\0{tail}")];
    let mut digests = BTreeSet::new();
    let mut signatures = BTreeSet::new();
    for message in &messages {
        let signed = api.signature(api.accepted(&json!({"message": message})).await).await;
        assert_signs(&signed, sha256(message), &derived("0/1/2"));
        digests.insert(signed["digest"].to_string());
        signatures.insert(signed["compact"].to_string());
    }
    assert_eq!((digests.len(), signatures.len()), (4, 4));
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_at_once_are_all_signed() {
    const REQUESTS: usize = 1000;
    let signing = Signing::start(|config| config.signing_timeout = 600).await;
    let api = &signing.api;
    let numbers = Arc::new(std::sync::Mutex::new((0..REQUESTS).collect::<Vec<_>>()));
    let clients = (0..CONNECTIONS).map(|_| {
        let (api, numbers) = (api.clone(), numbers.clone());
        tokio::spawn(async move {
            let mut accepted = Vec::new();
            loop {
                let Some(number) = numbers.lock().unwrap().pop() else { return accepted };
                accepted.push((number, api.accepted(&json!({"message": format!("message {number}")})).await));
            }
        })
    });
    let accepted: Vec<_> = join_all(clients)
        .await
        .into_iter()
        .flat_map(|accepted| accepted.expect("all are accepted"))
        .collect();
    let waiting = api.metric("tss_requests_unfinished").await;
    println!("{waiting} are waiting");
    let ids: BTreeSet<Uuid> = accepted.iter().map(|(_, id)| *id).collect();
    assert_eq!(ids.len(), REQUESTS);
    let key = derived("0/1/2");
    for share in accepted.chunks(CONNECTIONS) {
        let signatures = join_all(share.iter().map(|(_, id)| async move {
            let mut answer = api.get(&format!("/signature/{id}?wait=60s")).await;
            while answer.status == 202 {
                answer = api.get(&format!("/signature/{id}?wait=60s")).await;
            }
            answer
        }));
        for ((number, id), answer) in share.iter().zip(signatures.await) {
            assert_eq!((answer.status, answer.id()), (200, *id), "{answer:?}");
            assert_signs(&answer.body, sha256(format!("message {number}")), &key);
        }
    }
    for (metric, count) in [
        ("tss_requests_accepted_total", 1000.0),
        ("tss_requests_total{outcome=\"completed\"}", 1000.0),
        ("tss_requests_total{outcome=\"failed\"}", 0.0),
        ("tss_requests_unfinished", 0.0),
        ("tss_requests_active", 0.0),
    ] {
        api.until_metric(metric, count).await;
    }
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_what_happened_and_health_says_what_is_there() {
    let signing = Signing::start(|_| {}).await;
    let api = &signing.api;
    let live = api.get("/livez").await;
    assert_eq!((live.status, live.text.as_str()), (200, "alive\n"));
    let ready = api.get("/readyz").await;
    assert_eq!((ready.status, ready.text.as_str()), (200, "ready\n"));

    for number in 0..3 {
        api.signature(api.accepted(&json!({"message": number.to_string()})).await).await;
    }
    api.sign(&json!({"message": 1})).await.assert_problem(422, "invalid-request", &[]);
    let metrics = api.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").starts_with("text/plain"), "{metrics:?}");
    for (metric, value) in [
        ("tss_requests_accepted_total", 3.0),
        ("tss_requests_rejected_total{problem=\"invalid-request\"}", 1.0),
        ("tss_requests_total{outcome=\"completed\"}", 3.0),
        ("tss_attempts_total{ending=\"signed\"}", 3.0),
        ("tss_signing_seconds_count", 3.0),
        ("tss_stage_seconds_count{stage=\"insert\"}", 3.0),
        ("tss_stage_seconds_count{stage=\"queue\"}", 3.0),
        ("tss_stage_seconds_count{stage=\"begin\"}", 3.0),
        ("tss_stage_seconds_count{stage=\"sign\"}", 3.0),
        ("tss_stage_seconds_count{stage=\"finish\"}", 3.0),
        ("tss_http_responses_total{method=\"POST\",route=\"/sign\",status=\"201\"}", 3.0),
        ("tss_http_responses_total{method=\"POST\",route=\"/sign\",status=\"422\"}", 1.0),
        ("tss_http_responses_total{method=\"GET\",route=\"/livez\",status=\"200\"}", 1.0),
        ("tss_requests_unfinished", 0.0),
        ("tss_requests_active", 0.0),
        ("tss_requests_taken_over_total", 0.0),
        ("tss_live_signers", 3.0),
        ("tss_threshold", 2.0),
        ("tss_part_up{part=\"bus\"}", 1.0),
        ("tss_part_up{part=\"store\"}", 1.0),
        ("tss_signer_bus_up{signer=\"1\"}", 1.0),
        ("tss_signer_key_epoch{key=\"default\",signer=\"3\"}", 1.0),
        ("tss_signer_banned{signer=\"2\"}", 0.0),
    ] {
        api.until_metric(metric, value).await;
    }
    // Two signers take part in each signature.
    let began = Instant::now();
    loop {
        let mut sessions = 0.0;
        for signer in 1..=3 {
            sessions += api
                .metric(&format!("tss_signer_sessions_total{{outcome=\"signed\",signer=\"{signer}\"}}"))
                .await;
        }
        if sessions == 6.0 {
            break;
        }
        assert!(began.elapsed() < SOON, "{sessions} sessions");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let health = api.get("/health").await;
    assert_eq!(health.status, 200);
    let expected = json!({
        "status": "ok", "store": "up", "bus": "up",
        "signers": {"live": [1, 2, 3], "threshold": 2, "total": 3},
        "key": {"id": "default", "epoch": 1, "public_key": root().0},
    });
    assert_eq!(health.body, expected);
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_message_that_a_body_can_hold_is_signed_whole() {
    let signing = Signing::start(|_| {}).await;
    let api = &signing.api;
    let message = "a".repeat((1 << 20) - r#"{"message":""}"#.len());
    let id = api.accepted(&json!({"message": message})).await;
    assert_signs(&api.signature(id).await, sha256(&message), &derived("0/1/2"));
    let result = api.get(&result_path(id)).await.body;
    assert_eq!(result["message"], json!(message.as_bytes()));
    signing.stop().await;
}
