//! The client against a server that answers what a test wants, among it what a well manager seldom does.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::{StreamExt as _, TryStreamExt as _};
use tss_client::error::ProblemKind;
use tss_client::types::{BatchRequest, RequestFilter, RequestStatus, SignRequest};
use tss_client::{Client, ClientBuilder, Error};
use uuid::Uuid;

/// The id of every request.
const ID: &str = "550e8400-e29b-41d4-a716-446655440000";

fn id() -> Uuid {
    ID.parse().unwrap()
}

/// What was asked: method and path with query, headers, body.
#[derive(Clone, Debug)]
struct Asked {
    what: String,
    headers: HeaderMap,
    body: String,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A server that gives these answers in order, and the last one again and again.
#[derive(Clone)]
struct Server {
    url: String,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// Status, headers and body.
#[derive(Clone)]
struct Answer(u16, Vec<(&'static str, &'static str)>, String);

impl Server {
    async fn start(answers: impl Into<VecDeque<Answer>>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, answers: Arc::new(Mutex::new(answers.into())), asked: Arc::default() };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn builder(&self) -> ClientBuilder {
        Client::builder(&self.url).retry_for(Duration::from_secs(20))
    }

    fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(State(server): State<Server>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    server.asked.lock().unwrap().push(Asked {
        what: format!("{} {}", parts.method, parts.uri),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    });
    let Answer(status, headers, body) = {
        let mut answers = server.answers.lock().unwrap();
        let last = answers.len() == 1;
        if last { answers[0].clone() } else { answers.pop_front().unwrap() }
    };
    let mut response = (StatusCode::from_u16(status).unwrap(), Body::from(body)).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

fn json(status: u16, body: impl ToString) -> Answer {
    Answer(status, vec![("content-type", "application/json")], body.to_string())
}

fn problem(status: u16, kind: &str, more: &[(&'static str, &'static str)]) -> Answer {
    let body = format!(
        r#"{{"type":"urn:tss-network:problem:{kind}","title":"A title","status":{status},"detail":"a detail","x":1}}"#
    );
    Answer(status, [&[("content-type", "application/problem+json")], more].concat(), body)
}

fn accepted() -> Answer {
    json(201, format!(r#"{{"request_id":"{ID}","status":"Pending"}}"#))
}

fn status(name: &str, attempts: u32) -> String {
    format!(r#"{{"request_id":"{ID}","status":"{name}","attempts":{attempts},"quorum":null}}"#)
}

#[tokio::test]
async fn a_busy_manager_is_asked_again_with_the_same_idempotency_key_no_earlier_than_it_says() {
    let server = Server::start([
        problem(429, "rate-limited", &[("retry-after", "1")]),
        problem(503, "overloaded", &[]),
        Answer(502, vec![("content-type", "text/html")], "<html>".into()),
        accepted(),
    ])
    .await;
    let began = Instant::now();
    let accepted = server.client().sign(&SignRequest::text("hello")).await.unwrap();
    assert_eq!(accepted.request_id, id());
    assert!(began.elapsed() >= Duration::from_secs(1));
    let asked = server.asked();
    assert_eq!(asked.len(), 4);
    let key = asked[0].header("idempotency-key");
    assert!(Uuid::try_parse(key).is_ok(), "{key}");
    for again in &asked {
        assert_eq!(
            (again.what.as_str(), again.header("idempotency-key"), again.body.as_str()),
            ("POST /sign", key, r#"{"message":"hello"}"#)
        );
    }
    server.client().sign(&SignRequest::text("hello")).await.unwrap();
    assert_ne!(server.asked()[4].header("idempotency-key"), key);
    server.client().sign_once(&SignRequest::text("hello"), "mine").await.unwrap();
    assert_eq!(server.asked()[5].header("idempotency-key"), "mine");
}

#[tokio::test]
async fn each_of_many_requests_has_an_idempotency_key() {
    let body = format!(r#"{{"results":[{{"code":201,"request_id":"{ID}","status":"Pending"}}]}}"#);
    let server = Server::start([json(200, body)]).await;
    let client = server.client();
    let outcomes = client.sign_batch(vec![SignRequest::text("a").into()]).await.unwrap();
    assert_eq!(outcomes.len(), 1);
    let own = BatchRequest { idempotency_key: Some("own".into()), ..SignRequest::text("b").into() };
    let error = client.sign_batch(vec![own, SignRequest::text("c").into()]).await.unwrap_err();
    assert!(error.to_string().contains("1 results: expected 2"), "{error}");
    let asked = server.asked();
    assert!(asked[0].body.contains(r#""idempotency_key":""#), "{asked:?}");
    assert!(asked[1].body.contains(r#""message":"b","idempotency_key":"own""#), "{asked:?}");
}

#[tokio::test]
async fn what_asking_again_does_not_help_is_said_at_once() {
    for (status, kind, known) in [
        (401, "unauthenticated", ProblemKind::Unauthenticated),
        (403, "forbidden", ProblemKind::Forbidden),
        (404, "unknown-request", ProblemKind::UnknownRequest),
        (409, "request-failed", ProblemKind::RequestFailed),
        (500, "new-kind", ProblemKind::Other("new-kind".into())),
    ] {
        let server = Server::start([problem(status, kind, &[])]).await;
        let error = server.client().status(id()).await.unwrap_err();
        let Error::Problem { status: told, kind, title, detail, .. } = &error else { panic!("{error:?}") };
        assert_eq!((told.as_u16(), kind, title.as_str()), (status, &known, "A title"));
        assert_eq!(detail.as_deref(), Some("a detail"));
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert_eq!(server.asked().len(), 1);
    }
}

#[tokio::test]
async fn tries_end_with_the_time_for_them() {
    let server = Server::start([problem(429, "rate-limited", &[("retry-after", "60")])]).await;
    let began = Instant::now();
    let error = server.client().overview().await.unwrap_err();
    let Error::Problem { retry_after, .. } = error else { panic!("{error:?}") };
    assert_eq!(retry_after, Some(Duration::from_secs(60)));
    assert_eq!(server.asked().len(), 1, "it asks for longer than there is");
    assert!(began.elapsed() < Duration::from_secs(15));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let began = Instant::now();
    let client = Client::builder(&nobody).retry_for(Duration::from_secs(1)).build().unwrap();
    let error = client.health().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&nobody), "{error}");
    assert!((Duration::from_millis(200)..Duration::from_secs(10)).contains(&began.elapsed()));
}

#[tokio::test]
async fn a_request_that_is_not_signed_in_time_is_named() {
    let server = Server::start([accepted(), accepted(), json(202, accepted().2)]).await;
    assert_eq!(server.client().sign(&SignRequest::text("a")).await.unwrap().request_id, id());
    let error =
        server.client().sign_and_wait(&SignRequest::text("a"), Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, Error::NotSigned { request_id, .. } if request_id == id()), "{error:?}");
    let asked = server.asked().pop().unwrap().what;
    assert!(asked.starts_with(&format!("GET /signature/{ID}?wait=4")), "{asked}");
}

#[tokio::test]
async fn a_manager_that_says_nothing_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client =
        Client::builder(url).timeout(Duration::from_millis(300)).retry_for(Duration::ZERO).build().unwrap();
    let error = client.keys(None).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn answers_are_bounded_and_redirects_are_not_followed() {
    let moved = Answer(302, vec![("location", "http://127.0.0.1:1/")], String::new());
    let server = Server::start([json(200, "{}"), json(200, " ".repeat(9 << 20)), moved]).await;
    let client = server.client();
    let error = client.status(id()).await.unwrap_err();
    assert!(error.to_string().contains("missing field `request_id`"), "{error}");
    let error = client.metrics().await.unwrap_err();
    assert!(error.to_string().contains("more than 8388608 bytes"), "{error}");
    let error = client.status(id()).await.unwrap_err();
    let Error::Problem { status, kind, .. } = error else { panic!("{error:?}") };
    assert_eq!((status.as_u16(), kind), (302, ProblemKind::Unspecified));
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
}

#[tokio::test]
async fn a_token_is_sent_as_its_file_has_it_now_and_is_in_no_error() {
    let server = Server::start([json(200, status("Pending", 0))]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let client = server.builder().token_file(&file).build().unwrap();
    let error = client.status(id()).await.unwrap_err().to_string();
    assert!(error.contains("token file") && error.contains("No such file"), "{error}");
    for token in ["first", "second"] {
        write(&file, &format!("{token}\n"));
        client.status(id()).await.unwrap();
        assert_eq!(server.asked().last().unwrap().header("authorization"), format!("Bearer {token}"));
    }
    for (text, part) in [("", "empty"), ("two words", "spaces"), (&"x".repeat(20_000), "more than 16384")] {
        write(&file, text);
        let error = client.status(id()).await.unwrap_err();
        assert!(matches!(error, Error::Token { .. }) && error.to_string().contains(part), "{error}");
        assert!(text.is_empty() || !format!("{error} {error:?}").contains(text));
    }
    assert_eq!(server.asked().len(), 2);

    let client = server.builder().token("given").build().unwrap();
    client.status(id()).await.unwrap();
    assert_eq!(server.asked().last().unwrap().header("authorization"), "Bearer given");
    server.client().status(id()).await.unwrap();
    assert!(!server.asked().last().unwrap().headers.contains_key(header::AUTHORIZATION));
}

#[tokio::test]
async fn an_unwell_manager_says_how_it_is() {
    let health = r#"{"status":"unavailable","store":"down","bus":"up","key":null,
        "signers":{"live":[2],"threshold":2,"total":3}}"#;
    let missing = Answer(503, vec![], "the store is unreachable\nno key is on record yet\n".into());
    let server = Server::start([json(503, health), missing]).await;
    let health = server.client().health().await.unwrap();
    assert_eq!((health.store.as_str(), health.signers.live), ("down", vec![2]));
    let ready = server.client().ready().await.unwrap();
    assert_eq!((ready.ready, ready.missing.len()), (false, 2));
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn what_stands_in_a_path_or_a_query_is_escaped() {
    let server = Server::start([problem(404, "unknown-key", &[])]).await;
    let client = Client::builder(format!("{}/tss/", server.url)).build().unwrap();
    client.key("a/b?c#d é", Some("0/1&x")).await.unwrap_err();
    assert_eq!(server.asked()[0].what, "GET /tss/keys/a%2Fb%3Fc%23d%20%C3%A9?path=0%2F1%26x");
}

fn listed(name: &str) -> String {
    format!(
        r#"{{"request_id":"{ID}","status":"{name}","key":"default","path":"0/1","hash":"sha256","attempts":1,
        "created_at":"2030-01-02T03:04:05Z","finished_at":null,"quorum":[1,3],"digest":"{}","requested_by":null}}"#,
        "00".repeat(32)
    )
}

#[tokio::test]
async fn a_listing_goes_on_from_page_to_page_and_not_further_than_is_taken() {
    let page =
        |requests: &str, next: &str| json(200, format!(r#"{{"requests":[{requests}],"next":{next}}}"#));
    let two = [listed("Completed"), listed("Failed")].join(",");
    let server =
        Server::start([page(&two, r#""a+b""#), page("", r#""c""#), page(&listed("Other"), "null")]).await;
    let filter = RequestFilter {
        status: Some(RequestStatus::Completed),
        key: Some("default".into()),
        created_after: Some("2030-01-02T03:04:05Z".parse().unwrap()),
        created_before: None,
        limit: Some(2),
    };
    let mut requests = Box::pin(server.client().requests(filter));
    assert_eq!(requests.next().await.unwrap().unwrap().summary.status, RequestStatus::Completed);
    assert_eq!(server.asked().len(), 1);
    let rest: Vec<_> = requests.try_collect().await.unwrap();
    let names = rest.iter().map(|request| request.summary.status.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["Failed", "Other"]);
    let asked: Vec<_> = server.asked().into_iter().map(|asked| asked.what).collect();
    let query = "status=Completed&key=default&created_after=2030-01-02T03%3A04%3A05Z&limit=2";
    assert_eq!(
        asked,
        [
            format!("GET /requests?{query}"),
            format!("GET /requests?{query}&cursor=a%2Bb"),
            format!("GET /requests?{query}&cursor=c")
        ]
    );

    let server = Server::start([page("", r#""same""#)]).await;
    let requests: Vec<_> = server.client().requests(RequestFilter::default()).try_collect().await.unwrap();
    assert!(requests.is_empty());
    assert_eq!(server.asked().len(), 2, "a cursor that stands for itself ends it");
}

#[tokio::test]
async fn events_are_followed_over_lost_connections_until_the_request_ends() {
    let event = |text: String| format!(":\nevent: status\ndata: {text}\n\n");
    let events = |body: String| Answer(200, vec![("content-type", "text/event-stream")], body);
    let server = Server::start([
        events(event(status("Pending", 0)) + &event(status("InProgress", 1)) + "event: status\ndata: {"),
        problem(503, "unavailable", &[]),
        events(event(status("InProgress", 1)) + &event(status("Completed", 2))),
    ])
    .await;
    let seen: Vec<_> = server.client().events(id()).try_collect().await.unwrap();
    let seen: Vec<_> = seen.iter().map(|status| (status.status.as_str(), status.attempts)).collect();
    assert_eq!(seen, [("Pending", 0), ("InProgress", 1), ("Completed", 2)]);
    assert_eq!(server.asked().len(), 3);
    assert!(server.asked().iter().all(|asked| asked.what == format!("GET /requests/{ID}/events")));

    let server = Server::start([problem(403, "forbidden", &[])]).await;
    let seen: Vec<_> = server.client().events(id()).collect().await;
    assert!(matches!(&seen[..], [Err(Error::Problem { kind: ProblemKind::Forbidden, .. })]), "{seen:?}");
}

/// An authority, and a key and a certificate that it gave to a name, as files.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self(rcgen::CertifiedIssuer::self_signed(parameters, key).unwrap())
    }

    fn write(&self, file: &Path) {
        write(file, &self.0.pem());
    }

    /// Certificate and key of a name.
    fn vouch(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        (parameters.signed_by(&key, &self.0).unwrap(), key)
    }
}

#[tokio::test]
async fn tls_takes_the_right_authority_and_a_certificate_of_ones_own_where_the_server_wants_one() {
    use rustls::pki_types::PrivateKeyDer;

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (authority, stranger) = (Authority::new(), Authority::new());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let (certificate, key) = authority.vouch("localhost");
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let tls = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(tls));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let router = Router::new().fallback(|| async { "alive" });
    let server = axum_server::from_tcp_rustls(listener, tls).unwrap();
    tokio::spawn(async move { server.serve(router.into_make_service()).await });

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    authority.write(&file("ca.crt"));
    stranger.write(&file("other.crt"));
    for (name, by) in [("own", &authority), ("alien", &stranger)] {
        let (certificate, key) = by.vouch("client");
        write(&file(&format!("{name}.crt")), &certificate.pem());
        write(&file(&format!("{name}.key")), &key.serialize_pem());
    }
    let builder = || Client::builder(&url).retry_for(Duration::from_secs(60));
    let trusting = || builder().authorities(file("ca.crt"));
    trusting().identity(file("own.crt"), file("own.key")).build().unwrap().alive().await.unwrap();

    let began = Instant::now();
    for client in [builder().authorities(file("other.crt")), builder()] {
        let client = client.identity(file("own.crt"), file("own.key"));
        let error = client.build().unwrap().alive().await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "distrust does not pass by itself");
    for client in [trusting(), trusting().identity(file("alien.crt"), file("alien.key"))] {
        // How the server says so is seen too late to be told from a server that went down.
        let client = client.retry_for(Duration::ZERO);
        let error = client.build().unwrap().alive().await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
    let mixed = trusting().identity(file("own.crt"), file("alien.key")).build();
    assert!(matches!(mixed, Err(Error::Settings { .. })), "{mixed:?}");
}
