use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair,
};
use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use prometheus::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tss_common::config::{Config, JwtConfig, Limits};
use tss_common::telemetry::render_metrics;

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER_SECRET: &str = "fedcba9876543210fedcba9876543210";

fn counters() -> Counters<Refusal> {
    Counters::new(&Registry::new(), "refusals", "refusals", "reason")
}

async fn gate(jwt: JwtConfig) -> Gate {
    let config = Config { auth: Some(Auth::Jwt), jwt, ..Config::default() };
    Gate::open(&config, counters()).await.unwrap()
}

/// As if the provider had not been asked for a while.
async fn let_time_pass(gate: &Gate) {
    gate.judge.as_ref().unwrap().keys.let_time_pass().await;
}

async fn gate_with_secrets(folder: &TempDir, secrets: &str) -> Gate {
    let file = folder.path().join("secrets");
    std::fs::write(&file, secrets).unwrap();
    gate(JwtConfig { secret_file: Some(file), issuer: Some("https://idp/".into()), ..JwtConfig::default() })
        .await
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// What a good token says.
fn claims() -> Value {
    json!({
        "iss": "https://idp/", "sub": "alice", "aud": "tss", "exp": now() + 60, "scope": "openid sign read",
    })
}

fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn hs256(claims: &Value) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn shown(token: &str) -> HeaderMap {
    HeaderMap::from_iter([(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())])
}

async fn refused(gate: &Gate, token: &str) -> Refusal {
    gate.admit(&shown(token), Need::Any).await.expect_err("it is refused").refusal
}

#[tokio::test]
async fn a_token_says_who_calls_and_what_that_one_may_do() {
    let folder = TempDir::new().unwrap();
    let gate = gate_with_secrets(&folder, SECRET).await;
    let limited = with(json!({"tss_keys": ["default", "cold"], "tss_paths": ["0/1", "44/60"]}));
    for (claims, scopes) in [
        (claims(), [true, true, false]),
        (with(json!({"scope": "admin"})), [false, false, true]),
        (with(json!({"scope": null, "scp": ["read"]})), [false, true, false]),
        (with(json!({"scope": null, "scp": "sign admin"})), [true, false, true]),
        (with(json!({"aud": ["other", "tss"]})), [true, true, false]),
        (limited.clone(), [true, true, false]),
    ] {
        for (need, allowed) in [Need::Sign, Need::Read, Need::Admin].into_iter().zip(scopes) {
            let admitted = gate.admit(&shown(&hs256(&claims)), need).await;
            match admitted {
                Ok(caller) => assert!(allowed && caller.subject() == Some("alice"), "{claims} {need:?}"),
                Err(away) => assert!(!allowed && away.refusal == Refusal::Scope, "{claims} {need:?}"),
            }
        }
    }
    let caller = gate.admit(&shown(&hs256(&limited)), Need::Sign).await.unwrap();
    for (key, path, allowed) in [
        ("default", "0/1", true),
        ("default", "0/1/2", true),
        ("cold", "44/60/0", true),
        ("default", "0", false),
        ("default", "m", false),
        ("default", "0/12", false),
        ("hot", "0/1", false),
    ] {
        assert_eq!(caller.may_use(key, &path.parse().unwrap()), allowed, "{key} {path}");
    }
    // Limited to nothing is not unlimited.
    let nothing = with(json!({"tss_keys": []}));
    let caller = gate.admit(&shown(&hs256(&nothing)), Need::Sign).await.unwrap();
    assert!(!caller.may_use_key("default"));
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_counted_and_nobody_is_let_in() {
    let folder = TempDir::new().unwrap();
    let mut gate = gate_with_secrets(&folder, SECRET).await;
    let registry = Registry::new();
    gate.refusals = Counters::new(&registry, "refusals", "refusals", "reason");
    let count = |reason: Refusal| {
        let line = format!("refusals{{reason=\"{}\"}} ", reason.as_str());
        let (_, text) = render_metrics(&registry);
        let value = text.lines().find_map(|found| found.strip_prefix(&line)).unwrap();
        value.parse::<u64>().unwrap()
    };
    let good = hs256(&claims());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (head, body) = signed.split_once('.').unwrap();
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let critical = Header { crit: Some(vec!["b64".into()]), ..Header::new(Algorithm::HS256) };
    for (token, reason) in [
        (String::new(), Refusal::Malformed),
        ("x".into(), Refusal::Malformed),
        ("a.b.c".into(), Refusal::Malformed),
        (format!("{good}.x"), Refusal::Malformed),
        (signed.to_owned(), Refusal::Malformed),
        // No signature at all: "none" is no algorithm.
        (format!("{}.{body}.", part(&json!({"alg": "none", "typ": "JWT"}))), Refusal::Malformed),
        (format!("{head}.{body}."), Refusal::Signature),
        (format!("{head}.{}.{signature}", part(&with(json!({"sub": "bob"})))), Refusal::Signature),
        (encode(&Header::new(Algorithm::HS384), &claims(), &key).unwrap(), Refusal::Algorithm),
        (encode(&critical, &claims(), &key).unwrap(), Refusal::Malformed),
        (
            encode(&Header::default(), &claims(), &EncodingKey::from_secret(OTHER_SECRET.as_bytes()))
                .unwrap(),
            Refusal::Signature,
        ),
        (hs256(&with(json!({"exp": now() - 31}))), Refusal::Expired),
        (hs256(&with(json!({"exp": null}))), Refusal::Claims),
        (hs256(&with(json!({"exp": "soon"}))), Refusal::Claims),
        (hs256(&with(json!({"nbf": now() + 60}))), Refusal::Early),
        (hs256(&with(json!({"iss": "https://other/"}))), Refusal::Issuer),
        (hs256(&with(json!({"iss": null}))), Refusal::Claims),
        (hs256(&with(json!({"aud": "another cluster"}))), Refusal::Audience),
        (hs256(&with(json!({"aud": null}))), Refusal::Claims),
        (hs256(&with(json!({"sub": null}))), Refusal::Claims),
        (hs256(&with(json!({"sub": ""}))), Refusal::Claims),
        (hs256(&with(json!({"sub": "a\nb"}))), Refusal::Claims),
        (hs256(&with(json!({"sub": "a".repeat(256)}))), Refusal::Claims),
        (hs256(&with(json!({"sub": 7}))), Refusal::Claims),
        (hs256(&with(json!({"tss_keys": "default"}))), Refusal::Claims),
        (hs256(&with(json!({"tss_keys": ["A b"]}))), Refusal::Claims),
        (hs256(&with(json!({"tss_paths": ["0'/1"]}))), Refusal::Claims),
        (hs256(&with(json!({"tss_paths": vec!["0"; 257]}))), Refusal::Claims),
        (hs256(&with(json!({"scope": "signs openid"}))), Refusal::Scope),
        ("a".repeat(9000), Refusal::Malformed),
    ] {
        let before = count(reason);
        assert_eq!(refused(&gate, &token).await, reason, "{token}");
        assert_eq!(count(reason), before + 1, "{token}");
    }
    gate.admit(&shown(&good), Need::Sign).await.expect("the good one");
}

#[tokio::test]
async fn a_token_is_looked_for_in_one_place() {
    let folder = TempDir::new().unwrap();
    let gate = gate_with_secrets(&folder, SECRET).await;
    let good = hs256(&claims());
    let headers = |values: &[String]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, value.parse().unwrap());
        }
        headers
    };
    for (values, reason) in [
        (vec![], Refusal::Missing),
        (vec![good.clone()], Refusal::Malformed),
        (vec![format!("Basic {good}")], Refusal::Malformed),
        (vec![format!("Bearer {good}"), format!("Bearer {good}")], Refusal::Malformed),
    ] {
        let away = gate.admit(&headers(&values), Need::Any).await.unwrap_err();
        assert_eq!(away.refusal, reason, "{values:?}");
    }
    gate.admit(&headers(&[format!("bearer {good}")]), Need::Any).await.expect("schemes have no case");
}

#[tokio::test]
async fn secrets_are_exchanged_without_a_pause_and_a_bad_file_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let gate = gate_with_secrets(&folder, OTHER_SECRET).await;
    let token = hs256(&claims());
    assert_eq!(refused(&gate, &token).await, Refusal::Signature);
    let keys = &gate.judge.as_ref().unwrap().keys;
    let write = |text: &str| std::fs::write(folder.path().join("secrets"), text).unwrap();
    write(&format!("{SECRET}\n{OTHER_SECRET}\n"));
    assert!(keys.look_now().await.unwrap());
    gate.admit(&shown(&token), Need::Sign).await.expect("one of two");
    write("short");
    let error = keys.look_now().await.unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("at least 32") && !error.contains("short"), "{error}");
    assert!(!keys.look_now().await.unwrap(), "it is told once");
    gate.admit(&shown(&token), Need::Sign).await.expect("those before stay");
    write(&format!("{OTHER_SECRET}\r\n"));
    assert!(keys.look_now().await.unwrap());
    assert_eq!(refused(&gate, &token).await, Refusal::Signature);
}

#[tokio::test]
async fn a_file_without_good_secrets_is_refused_at_the_start() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("secrets");
    for (text, expected) in [
        (String::new(), "expected a secret of at least 32 bytes"),
        ("\n\n".into(), "expected a secret of at least 32 bytes"),
        (format!("{SECRET}\n{}", &SECRET[1..]), "line 2: a secret of 31 bytes"),
        (format!("{SECRET}\n").repeat(65), "line 65: expected at most 64"),
    ] {
        std::fs::write(&file, text).unwrap();
        let jwt = JwtConfig { secret_file: Some(file.clone()), ..JwtConfig::default() };
        let config = Config { auth: Some(Auth::Jwt), jwt, ..Config::default() };
        let error = format!("{:#}", Gate::open(&config, counters()).await.map(drop).unwrap_err());
        assert!(error.contains("`jwt.secret_file`") && error.contains(expected), "{error}");
        assert!(!error.contains(&SECRET[1..]), "{error}");
    }
}

/// A provider that publishes what it is told to.
struct Provider {
    address: SocketAddr,
    published: Arc<Mutex<(StatusCode, String, u32)>>,
}

impl Provider {
    async fn start() -> Self {
        let published = Arc::new(Mutex::new((StatusCode::OK, String::new(), 0)));
        let answer = {
            let published = published.clone();
            move || async move {
                let mut published = published.lock().unwrap();
                published.2 += 1;
                (published.0, published.1.clone())
            }
        };
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/jwks", get(answer));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { address, published }
    }

    fn publish(&self, status: StatusCode, text: impl Into<String>) {
        let mut published = self.published.lock().unwrap();
        (published.0, published.1) = (status, text.into());
    }

    fn asked(&self) -> u32 {
        self.published.lock().unwrap().2
    }

    async fn gate(&self) -> Gate {
        gate(JwtConfig {
            jwks_url: Some(format!("http://{}/jwks", self.address)),
            issuer: Some("https://idp/".into()),
            ..JwtConfig::default()
        })
        .await
    }
}

/// A provider's key.
struct Pair {
    algorithm: Algorithm,
    private: EncodingKey,
    public: Value,
}

impl Pair {
    fn new(algorithm: Algorithm, id: &str) -> Self {
        let private = match algorithm {
            Algorithm::RS256 => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
                let pkcs8 = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
                // PKCS #1 after the 26 bytes that say what it is.
                EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..])
            }
            Algorithm::ES256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
                EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref())
            }
            _ => {
                let pair = Ed25519KeyPair::generate().unwrap();
                assert_eq!(pair.public_key().as_ref().len(), 32);
                EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref())
            }
        };
        let mut public = serde_json::to_value(Jwk::from_encoding_key(&private, algorithm).unwrap()).unwrap();
        public["kid"] = json!(id);
        public["use"] = json!("sig");
        Self { algorithm, private, public }
    }

    fn token(&self, claims: &Value) -> String {
        let header =
            Header { kid: self.public["kid"].as_str().map(str::to_owned), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.private).unwrap()
    }
}

fn set(keys: &[&Value]) -> String {
    json!({ "keys": keys }).to_string()
}

#[tokio::test]
async fn a_providers_keys_are_taken_each_for_its_own_algorithm() {
    let provider = Provider::start().await;
    let pairs = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]
        .map(|algorithm| Pair::new(algorithm, &format!("{algorithm:?}")));
    let encryption = {
        let mut key = Pair::new(Algorithm::ES256, "encryption").public;
        key["use"] = json!("enc");
        key
    };
    let unknown = json!({"kty": "FUTURE", "crv": "X", "kid": "future"});
    let secret = json!({"kty": "oct", "kid": "secret", "k": URL_SAFE_NO_PAD.encode(SECRET), "alg": "HS256"});
    let mut published: Vec<&Value> = pairs.iter().map(|pair| &pair.public).collect();
    published.extend([&encryption, &unknown, &secret]);
    provider.publish(StatusCode::OK, set(&published));
    let gate = provider.gate().await;
    for pair in &pairs {
        let caller = gate.admit(&shown(&pair.token(&claims())), Need::Sign).await.unwrap();
        assert_eq!(caller.subject(), Some("alice"));
        let expired = pair.token(&with(json!({"exp": now() - 60})));
        assert_eq!(refused(&gate, &expired).await, Refusal::Expired);
        // Another key of its kind under its name.
        let forged = Pair::new(pair.algorithm, pair.public["kid"].as_str().unwrap());
        assert_eq!(refused(&gate, &forged.token(&claims())).await, Refusal::Signature);
        // A public key is no secret: HS256 with what everybody knows of it.
        let header = Header { kid: pair.public["kid"].as_str().map(str::to_owned), ..Header::default() };
        for known in [pair.public.to_string(), pair.public["x"].to_string(), pair.public["n"].to_string()] {
            let confused = encode(&header, &claims(), &EncodingKey::from_secret(known.as_bytes())).unwrap();
            assert_eq!(refused(&gate, &confused).await, Refusal::Algorithm);
        }
    }
    let header = Header { kid: Some("secret".into()), ..Header::default() };
    let published = encode(&header, &claims(), &EncodingKey::from_secret(SECRET.as_bytes())).unwrap();
    assert_eq!(refused(&gate, &published).await, Refusal::UnknownKey);
    // It may bring its own key, which nobody asked for.
    let own = Pair::new(Algorithm::ES256, "own");
    let header = Header {
        jwk: serde_json::from_value(own.public.clone()).ok(),
        jku: Some("https://attacker/jwks".into()),
        ..Header::new(Algorithm::ES256)
    };
    assert_eq!(refused(&gate, &encode(&header, &claims(), &own.private).unwrap()).await, Refusal::UnknownKey);
}

#[tokio::test]
async fn a_new_key_is_asked_for_once_in_a_while_and_an_outage_changes_nothing() {
    let provider = Provider::start().await;
    let [old, new] = ["old", "new"].map(|id| Pair::new(Algorithm::EdDSA, id));
    provider.publish(StatusCode::OK, set(&[&old.public]));
    let gate = provider.gate().await;
    let token = |pair: &Pair| pair.token(&with(json!({"exp": now() + 3600})));
    gate.admit(&shown(&token(&old)), Need::Sign).await.unwrap();
    provider.publish(StatusCode::OK, set(&[&old.public, &new.public]));
    // It has just been asked.
    assert_eq!(refused(&gate, &token(&new)).await, Refusal::UnknownKey);
    assert_eq!(provider.asked(), 1);
    let_time_pass(&gate).await;
    gate.admit(&shown(&token(&new)), Need::Sign).await.unwrap();
    assert_eq!(provider.asked(), 2);
    for (status, text) in [
        (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        (StatusCode::OK, "no JSON".into()),
        (StatusCode::OK, set(&[])),
        (StatusCode::OK, " ".repeat(300 << 10)),
        (StatusCode::FOUND, String::new()),
    ] {
        provider.publish(status, text);
        let_time_pass(&gate).await;
        let stranger = Pair::new(Algorithm::EdDSA, "stranger");
        assert_eq!(refused(&gate, &token(&stranger)).await, Refusal::UnknownKey);
        gate.admit(&shown(&token(&old)), Need::Sign).await.expect("the keys before stay");
    }
    assert_eq!(provider.asked(), 7);
    // Whoever guesses names makes it no busier.
    for id in 0..100 {
        let _ = refused(&gate, &token(&Pair::new(Algorithm::EdDSA, &id.to_string()))).await;
    }
    assert_eq!(provider.asked(), 7);
}

#[tokio::test]
async fn nobody_is_let_in_before_the_providers_keys_are_there() {
    let provider = Provider::start().await;
    provider.publish(StatusCode::SERVICE_UNAVAILABLE, "");
    let gate = provider.gate().await;
    let pair = Pair::new(Algorithm::EdDSA, "first");
    let away = gate.admit(&shown(&pair.token(&claims())), Need::Any).await.unwrap_err();
    assert_eq!(away, TurnedAway { refusal: Refusal::NoKeys, retry_after: Some(2) });
}

#[tokio::test]
async fn each_subject_has_a_rate_of_its_own() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("secrets");
    std::fs::write(&file, SECRET).unwrap();
    let config = Config {
        auth: Some(Auth::Jwt),
        jwt: JwtConfig { secret_file: Some(file), ..JwtConfig::default() },
        limits: Limits { rate: 1, burst: 3, ..Limits::default() },
        ..Config::default()
    };
    let gate = Gate::open(&config, counters()).await.unwrap();
    let (alice, bob) = (hs256(&claims()), hs256(&with(json!({"sub": "bob"}))));
    for _ in 0..3 {
        gate.admit(&shown(&alice), Need::Sign).await.unwrap();
    }
    let away = gate.admit(&shown(&alice), Need::Sign).await.unwrap_err();
    assert_eq!(away, TurnedAway { refusal: Refusal::Rate, retry_after: Some(1) });
    let bob = gate.admit(&shown(&bob), Need::Sign).await.expect("it is another");
    assert_eq!(gate.spend(&bob, 1000).unwrap_err().refusal, Refusal::Rate, "more than there can ever be");
    gate.spend(&bob, 2).expect("what is left");
    // Whoever is not let in anyway uses up nothing.
    let stranger = hs256(&with(json!({"sub": "alice", "aud": "another"})));
    assert_eq!(refused(&gate, &stranger).await, Refusal::Audience);
}
