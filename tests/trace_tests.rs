//! Traces of a network of real processes, sent to a stand-in for an OpenTelemetry collector: an HTTP server that
//! decodes what it gets with the protocol's own definitions.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/installation.rs"]
mod installation;

use installation::{Installation, Process, START};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A span, as the collector got it.
#[derive(Clone, Debug)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: SpanKind,
    attributes: BTreeMap<String, String>,
    is_error: bool,
    events: usize,
}

/// Stands in for a collector.
#[derive(Clone, Default)]
struct Collector {
    received: Arc<Mutex<Vec<Bytes>>>,
}

impl Collector {
    /// Listens; yields where.
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let take = |State(collector): State<Self>, body: Bytes| async move {
            collector.received.lock().unwrap().push(body);
            // An empty answer is a whole one: everything was taken.
            [("content-type", "application/x-protobuf")]
        };
        let router = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, url)
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.received.lock().unwrap().clone();
        let batches = received.into_iter().map(|body| ExportTraceServiceRequest::decode(body).unwrap());
        let resources = batches.flat_map(|batch| batch.resource_spans);
        resources
            .flat_map(|resource| {
                let of_process = texts(&resource.resource.unwrap().attributes);
                let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.map(move |span| Span {
                    service: of_process["service.name"].clone(),
                    trace: hex::encode(&span.trace_id),
                    id: hex::encode(&span.span_id),
                    parent: hex::encode(&span.parent_span_id),
                    kind: span.kind(),
                    name: span.name,
                    attributes: texts(&span.attributes),
                    is_error: span.status.is_some_and(|status| status.code == 2),
                    events: span.events.len(),
                })
            })
            .collect()
    }

    /// The spans of a trace, once there are so many of it.
    async fn trace(&self, trace: &str, spans: usize) -> Vec<Span> {
        let began = Instant::now();
        loop {
            let mut found = self.spans();
            found.retain(|span| span.trace == trace);
            if found.len() >= spans {
                return found;
            }
            assert!(began.elapsed() < START, "{} of {spans} spans: {found:#?}", found.len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn holds(&self, needle: &[u8]) -> bool {
        let received = self.received.lock().unwrap();
        received.iter().any(|body| body.windows(needle.len()).any(|window| window == needle))
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &any_value::Value| match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        other => panic!("an attribute of another kind: {other:?}"),
    };
    let of = |attribute: &KeyValue| {
        let value = attribute.value.as_ref().and_then(|value| value.value.as_ref()).unwrap();
        (attribute.key.clone(), text(value))
    };
    attributes.iter().filter(|attribute| attribute.key != "telemetry.sdk.version").map(of).collect()
}

/// A manager and three signers, each a process of its own.
struct Network {
    installation: Installation,
    processes: Vec<Process>,
}

impl Network {
    /// Its traces go to this collector.
    async fn start(collector: &str) -> Self {
        let mut installation = Installation::new();
        installation.keygen();
        installation.set("TSS_TRACE__OTLP_ENDPOINT", collector);
        let mut processes = vec![installation.start("manager", &[])];
        processes.extend((1..=3).map(|index| installation.start("signer", &["--index", &index.to_string()])));
        installation.until_healthy(&processes.iter().collect::<Vec<_>>()).await;
        Self { installation, processes }
    }

    /// Has a message signed; yields the request's id and the answer of `/signature`.
    async fn sign(&self, message: &str, traceparents: &[&[u8]]) -> (String, Value) {
        let url = self.installation.url();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(75)).build().unwrap();
        let mut request = client.post(format!("{url}/sign")).json(&json!({"message": message}));
        for traceparent in traceparents {
            request = request.header("traceparent", http::HeaderValue::from_bytes(traceparent).unwrap());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 201);
        let accepted: Value = response.json().await.unwrap();
        let id = accepted["request_id"].as_str().unwrap().to_owned();
        let answer = client.get(format!("{url}/signature/{id}?wait=60s")).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{id}");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["digest"], json!(hex::encode(Sha256::digest(message))));
        (id, answer)
    }

    /// Stops all, which sends what they have not sent yet.
    async fn stop(self) -> Vec<String> {
        let Self { installation, processes } = self;
        let stopped = tokio::task::spawn_blocking(move || {
            for process in &processes {
                process.signal("TERM");
            }
            processes.into_iter().map(Process::stop_and_log).collect()
        });
        let logs = stopped.await.unwrap();
        installation.clean_up().await;
        logs
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_is_one_trace_from_the_call_through_the_manager_to_the_signers() {
    let (collector, url) = Collector::start().await;
    let network = Network::start(&url).await;
    let message = "what nobody else should read";
    let (id, answer) = network.sign(message, &[format!("00-{TRACE}-{CALLER}-01").as_bytes()]).await;
    // Seven of the manager, four of each signer of the quorum, and the report of one.
    let spans = collector.trace(TRACE, 7 + 2 * 4 + 1).await;
    network.stop().await;
    let all = collector.spans();
    assert_eq!(all.len(), spans.len(), "other spans: {all:#?}");

    let parents = [
        ("manager", "POST /sign", "the caller", 1, SpanKind::Server),
        ("manager", "insert", "POST /sign", 1, SpanKind::Internal),
        ("manager", "request", "POST /sign", 1, SpanKind::Internal),
        ("manager", "queue", "request", 1, SpanKind::Internal),
        ("manager", "begin", "request", 1, SpanKind::Internal),
        ("manager", "attempt", "request", 1, SpanKind::Producer),
        ("manager", "finish", "request", 1, SpanKind::Internal),
        ("signer", "session", "attempt", 2, SpanKind::Consumer),
        ("signer", "join", "session", 2, SpanKind::Internal),
        ("signer", "rounds", "session", 2, SpanKind::Internal),
        ("signer", "claim", "session", 2, SpanKind::Internal),
        ("signer", "report", "session", 1, SpanKind::Internal),
    ];
    let name_of = |id: &str| match spans.iter().find(|span| span.id == id) {
        Some(span) => span.name.as_str(),
        None if id == CALLER => "the caller",
        None => "nobody",
    };
    for (service, name, parent, count, kind) in parents {
        let such: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(such.len(), count, "{name}: {spans:#?}");
        for span in such {
            let found = (span.service.as_str(), name_of(&span.parent), span.kind, span.is_error, span.events);
            assert_eq!(found, (service, parent, kind, false, 0), "{span:#?}");
        }
    }

    let attribute = |name: &str, attribute: &str| -> BTreeSet<String> {
        let such = spans.iter().filter(|span| span.name == name);
        such.filter_map(|span| span.attributes.get(attribute).cloned()).collect()
    };
    for name in ["POST /sign", "request", "session"] {
        assert_eq!(attribute(name, "tss.request"), [id.clone()].into(), "{name}");
    }
    assert_eq!(attribute("POST /sign", "tss.key"), ["default".to_owned()].into());
    for (name, outcome) in
        [("POST /sign", "accepted"), ("request", "completed"), ("attempt", "signed"), ("session", "signed")]
    {
        assert_eq!(attribute(name, "tss.outcome"), [outcome.to_owned()].into(), "{name}");
    }
    assert_eq!(attribute("session", "tss.attempt"), ["1".to_owned()].into());
    assert_eq!(attribute("session", "tss.signer").len(), 2);

    let allowed = ["tss.request", "tss.key", "tss.signer", "tss.attempt", "tss.outcome"];
    for span in &spans {
        assert!(span.attributes.keys().all(|name| allowed.contains(&name.as_str())), "{span:#?}");
    }
    let digest = Sha256::digest(message);
    assert!(collector.holds(id.as_bytes()));
    for secret in [message.as_bytes(), &digest, hex::encode(digest).as_bytes()] {
        assert!(!collector.holds(secret));
    }
    for field in ["r", "s", "intent_hash", "public_key"] {
        assert!(!collector.holds(answer[field].as_str().unwrap().as_bytes()), "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_decides_whether_it_is_traced_and_a_garbled_traceparent_changes_nothing() {
    let (collector, url) = Collector::start().await;
    let network = Network::start(&url).await;
    let good = format!("00-{TRACE}-{CALLER}-01");
    let garbled = [
        vec![good[..54].to_owned().into_bytes()],
        vec![good.to_uppercase().into_bytes()],
        vec![format!("00-{}-{CALLER}-01", "0".repeat(32)).into_bytes()],
        vec![format!("{good}-{}", "x".repeat(4000)).into_bytes()],
        vec![Vec::new()],
        vec![b"\xff\xfe00-".to_vec()],
        vec![good.clone().into_bytes(), good.into_bytes()],
    ];
    for (number, traceparents) in garbled.iter().enumerate() {
        let traceparents: Vec<&[u8]> = traceparents.iter().map(Vec::as_slice).collect();
        network.sign(&format!("message {number}"), &traceparents).await;
    }
    network.sign("not to be traced", &[format!("00-{TRACE}-{CALLER}-00").as_bytes()]).await;
    network.stop().await;

    let spans = collector.spans();
    assert!(spans.iter().all(|span| span.trace != TRACE), "{spans:#?}");
    let roots: Vec<&Span> = spans.iter().filter(|span| span.parent.is_empty()).collect();
    assert_eq!(roots.len(), garbled.len(), "{roots:#?}");
    assert!(roots.iter().all(|span| span.name == "POST /sign"), "{roots:#?}");
    let traces: BTreeSet<&str> = spans.iter().map(|span| span.trace.as_str()).collect();
    assert_eq!(traces.len(), garbled.len());
    for trace in traces {
        let signers = spans.iter().filter(|span| span.trace == trace && span.name == "session");
        assert_eq!(signers.count(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_is_away_holds_nothing_up() {
    // It takes connections, and never says a word.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hangs = hanging.local_addr().unwrap();
    let held = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = hanging.accept().await {
            connections.push(connection);
        }
    });
    // Nobody listens there any more.
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for collector in [hangs, away] {
        let network = Network::start(&format!("http://{collector}")).await;
        let began = Instant::now();
        for number in 0..50 {
            let (id, _) = network.sign(&number.to_string(), &[]).await;
            let status = installation::get(&format!("{}/status/{id}", network.installation.url())).await;
            assert_eq!(status.unwrap().1["attempts"], 1);
        }
        // The collector had 5 seconds for each try; a signature takes some 50 ms.
        assert!(began.elapsed() < START, "{:?}", began.elapsed());
        // The first try may still be waiting for its answer.
        let complaint = "did not take spans";
        while !network.processes[0].log().contains(complaint) {
            assert!(began.elapsed() < 2 * START, "{}", network.processes[0].log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        network.sign("once more", &[]).await;
        let stopping = Instant::now();
        let logs = network.stop().await;
        assert!(stopping.elapsed() < START / 2, "{:?}", stopping.elapsed());
        for log in logs {
            assert!(log.matches(complaint).count() <= 1, "{log}");
        }
    }
    held.abort();
}
