//! Who may do what: every operation, with every scope, and with every kind of token that is none.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::network::Api;
use crate::tokens::{ask_for_tokens, claims, token};

/// What each operation takes: any of these scopes, or nothing.
const TAKES: [(&str, &str, &[&str]); 23] = [
    ("post", "/sign", &["sign"]),
    ("post", "/sign/batch", &["sign"]),
    ("post", "/sign/dry-run", &["sign"]),
    ("get", "/status/{id}", &["sign", "read"]),
    ("get", "/signature/{id}", &["sign", "read"]),
    ("get", "/signing_result/{id}", &["sign", "read"]),
    ("get", "/requests/{id}", &["sign", "read"]),
    ("get", "/requests/{id}/events", &["sign", "read"]),
    ("get", "/requests", &["admin"]),
    ("get", "/overview", &["read"]),
    ("get", "/metrics", &["read"]),
    ("get", "/keys", &["sign", "read", "admin"]),
    ("get", "/keys/{id}", &["sign", "read", "admin"]),
    ("post", "/keys/{id}/refresh", &["admin"]),
    ("get", "/keys/{id}/refresh", &["sign", "read", "admin"]),
    ("post", "/verify", &["sign", "read", "admin"]),
    ("get", "/health", &[]),
    ("get", "/livez", &[]),
    ("get", "/readyz", &[]),
    ("get", "/openapi.json", &[]),
    ("get", "/docs", &[]),
    ("get", "/docs/{file}", &[]),
    ("get", "/console", &[]),
];

/// Sets of scopes that a token can have.
const SCOPES: [&str; 6] = ["", "sign", "read", "admin", "sign read admin", "SIGN Read openid signs"];

/// A path of an operation.
fn path(template: &str) -> String {
    let id = if template.starts_with("/keys") { "default" } else { "550e8400-e29b-41d4-a716-446655440000" };
    template.replace("{id}", id).replace("{file}", "page.css")
}

/// Tokens that are none, each for another reason.
fn no_tokens() -> BTreeMap<&'static str, Option<String>> {
    let good = claims("alice", "sign read admin");
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = token(&good);
    let (head, signature) = (signed.split('.').next().unwrap(), signed.rsplit('.').next().unwrap());
    let none = part(&json!({"alg": "none"}));
    BTreeMap::from([
        ("no token", None),
        ("no JWT", Some("secret".to_owned())),
        ("of no algorithm", Some(format!("{none}.{}.", part(&good)))),
        ("without its signature", Some(format!("{head}.{}.", part(&good)))),
        (
            "with another's signature",
            Some(format!("{head}.{}.{signature}", part(&with("sub", json!("bob"))))),
        ),
        ("expired", Some(token(&with("exp", json!(1))))),
        ("without an end", Some(token(&with("exp", Value::Null)))),
        ("not yet", Some(token(&with("nbf", json!(9_999_999_999_i64))))),
        ("for another cluster", Some(token(&with("aud", json!("other"))))),
        ("of nobody", Some(token(&with("sub", json!(""))))),
        ("limited by what is no list", Some(token(&with("tss_keys", json!("default"))))),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_takes_its_scope_and_no_other_and_says_nothing_else() {
    let api = Api::with_tokens().await;
    // The table above is of what there is.
    let mut documented = BTreeSet::new();
    let mut scopes = BTreeMap::new();
    for (path, item) in api.document().await["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            documented.insert((method.clone(), path.clone()));
            let required = operation["security"].as_array().cloned().unwrap_or_default();
            let named: BTreeSet<String> = required
                .iter()
                .filter_map(|requirement| requirement["bearer"][0].as_str().map(str::to_owned))
                .collect();
            scopes.insert((method.clone(), path.clone()), (!required.is_empty(), named));
        }
    }
    let table = TAKES.iter().map(|&(method, path, _)| (method.to_owned(), path.to_owned()));
    let table: BTreeSet<_> = table.filter(|(_, path)| path != "/console").collect();
    assert_eq!(documented, table);

    let mut refusals = BTreeMap::from([(401, BTreeSet::new()), (403, BTreeSet::new())]);
    for (method, template, takes) in TAKES {
        let path = path(template);
        if let Some((secured, named)) = scopes.get(&(method.to_owned(), template.to_owned())) {
            assert_eq!(*secured, !takes.is_empty(), "{method} {template}");
            let any = named.is_empty() && takes.len() == 3;
            let expected: BTreeSet<_> = takes.iter().map(|&scope| scope.to_owned()).collect();
            assert!(any || *named == expected, "{method} {template}: {named:?}");
        }
        for (kind, token) in no_tokens() {
            let answer = api.ask(method, &path, token.as_deref(), None).await;
            let status = answer.status().as_u16();
            assert_eq!(status == 401, !takes.is_empty(), "{method} {path}, {kind}: {status}");
            if status == 401 {
                assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"tss\"");
                refusals.get_mut(&401).unwrap().insert(answer.text().await.unwrap());
            }
        }
        for scope in SCOPES {
            let token = token(&claims("alice", scope));
            let answer = api.ask(method, &path, Some(&token), None).await;
            let status = answer.status().as_u16();
            let has = takes.is_empty() || scope.split(' ').any(|word| takes.contains(&word));
            assert_eq!(status == 403, !has, "{method} {path}, scope `{scope}`: {status}");
            assert_ne!(status, 401, "{method} {path}, scope `{scope}`");
            if status == 403 {
                refusals.get_mut(&403).unwrap().insert(answer.text().await.unwrap());
            }
        }
    }
    // Whatever it was, the words are the same.
    for (status, bodies) in &refusals {
        assert_eq!(bodies.len(), 1, "{status}: {bodies:?}");
    }
    // What there is not is no secret: the document says what there is.
    assert_eq!(api.ask("delete", "/sign", None, None).await.status(), 405);
    assert_eq!(api.ask("get", "/nothing", None, None).await.status(), 404);

    let metrics = api.ask("get", "/metrics", Some(&token(&claims("prometheus", "read"))), None).await;
    let metrics = metrics.text().await.unwrap();
    let count = |reason: &str| {
        let line = format!("tss_callers_turned_away_total{{reason=\"{reason}\"}} ");
        metrics.lines().find_map(|found| found.strip_prefix(&line)).unwrap().parse::<u32>().unwrap()
    };
    for reason in ["missing", "malformed", "signature", "expired", "early", "audience", "claims", "scope"] {
        assert!(count(reason) >= 14, "{reason}: {}", count(reason));
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_sees_its_own_requests_and_nobody_elses() {
    let api = Api::with_tokens().await;
    let [alice, bob] = ["alice", "bob"].map(|subject| token(&claims(subject, "sign")));
    let reader = token(&claims("carol", "read"));
    let admin = token(&claims("dave", "admin"));
    let hello = json!({"message": "hello"});
    let taken: Value = api.ask("post", "/sign", Some(&alice), Some(&hello)).await.json().await.unwrap();
    let id = taken["request_id"].as_str().unwrap();
    let signed = api.ask("get", &format!("/signature/{id}?wait=30s"), Some(&alice), None).await;
    assert_eq!(signed.status(), 200);
    for template in
        ["/status/{}", "/signature/{}", "/signing_result/{}", "/requests/{}", "/requests/{}/events"]
    {
        let path = template.replace("{}", id);
        for (who, token, expected) in
            [("alice", &alice, 200), ("bob", &bob, 404), ("carol", &reader, 200), ("dave", &admin, 403)]
        {
            assert_eq!(api.ask("get", &path, Some(token), None).await.status(), expected, "{who} {path}");
        }
        // What is another's is as what is not there.
        let other = template.replace("{}", "550e8400-e29b-41d4-a716-446655440000");
        let others = api.ask("get", &path, Some(&bob), None).await.text().await.unwrap();
        let nobodys = api.ask("get", &other, Some(&bob), None).await.text().await.unwrap();
        assert_eq!(others, nobodys);
    }
    let listed: Value = api.ask("get", "/requests", Some(&admin), None).await.json().await.unwrap();
    assert_eq!(listed["requests"][0]["request_id"], id, "{listed}");
    assert_eq!(listed["requests"][0]["requested_by"], "alice", "{listed}");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_is_its_callers_own() {
    let api = Api::with_tokens().await;
    let batch = |message: &str| json!({"requests": [{"message": message, "idempotency_key": "order-1"}]});
    let mut ids = BTreeSet::new();
    for (subject, message) in [("alice", "a"), ("bob", "b"), ("alice", "a"), ("bob", "b")] {
        let token = token(&claims(subject, "sign"));
        let answer = api.ask("post", "/sign/batch", Some(&token), Some(&batch(message))).await;
        let answer: Value = answer.json().await.unwrap();
        ids.insert(answer["results"][0]["request_id"].as_str().expect("it is taken").to_owned());
    }
    assert_eq!(ids.len(), 2);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limited_token_is_for_its_keys_and_paths_alone() {
    let api = Api::with_tokens().await;
    let mut limited = claims("alice", "sign read admin");
    limited["tss_paths"] = json!(["0/1"]);
    let mut elsewhere = claims("bob", "sign read admin");
    elsewhere["tss_keys"] = json!(["cold"]);
    let (limited, elsewhere) = (token(&limited), token(&elsewhere));
    let all = token(&claims("carol", "sign read admin"));
    let body = |path: &str| json!({"message": "m", "path": path});
    let mut ids = Vec::new();
    for (token, path, expected) in [
        (&limited, "0/1", 201),
        (&limited, "0/1/7", 201),
        (&limited, "0/2", 403),
        (&limited, "m", 403),
        (&elsewhere, "0/1", 403),
        (&all, "0/2", 201),
    ] {
        for endpoint in ["/sign/dry-run", "/sign"] {
            let answer = api.ask("post", endpoint, Some(token), Some(&body(path))).await;
            let expected = if expected == 201 && endpoint != "/sign" { 200 } else { expected };
            assert_eq!(answer.status(), expected, "{endpoint} {path}");
            let answer: Value = answer.json().await.unwrap();
            if endpoint == "/sign" && expected == 201 {
                ids.push(answer["request_id"].as_str().unwrap().to_owned());
            }
        }
    }
    // One of many is refused in its place.
    let batch = json!({"requests": [body("0/1/8"), body("0/3")]});
    let answer: Value =
        api.ask("post", "/sign/batch", Some(&limited), Some(&batch)).await.json().await.unwrap();
    assert_eq!((&answer["results"][0]["code"], &answer["results"][1]["code"]), (&json!(201), &json!(403)));
    // What is beyond a token is not seen with it either.
    assert_eq!(api.ask("get", &format!("/status/{}", ids[0]), Some(&limited), None).await.status(), 200);
    assert_eq!(api.ask("get", &format!("/status/{}", ids[2]), Some(&limited), None).await.status(), 404);
    assert_eq!(api.ask("get", "/keys/default", Some(&elsewhere), None).await.status(), 404);
    for method in ["get", "post"] {
        let answer = api.ask(method, "/keys/default/refresh", Some(&elsewhere), None).await;
        assert_eq!(answer.status(), 404, "{method}");
    }
    let keys: Value = api.ask("get", "/keys", Some(&elsewhere), None).await.json().await.unwrap();
    assert_eq!(keys, json!({"keys": []}));
    let listed = |token: String| {
        let api = &api;
        async move {
            let listed: Value = api.ask("get", "/requests", Some(&token), None).await.json().await.unwrap();
            listed["requests"].as_array().unwrap().len()
        }
    };
    assert_eq!((listed(limited).await, listed(elsewhere).await, listed(all).await), (3, 0, 4));
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_calls_too_often_waits_and_nobody_else_does() {
    let api = Api::start_with(|config, folder| {
        ask_for_tokens(config, folder);
        (config.limits.rate, config.limits.burst) = (1, 10);
    })
    .await;
    let [alice, bob] = ["alice", "bob"].map(|subject| token(&claims(subject, "sign")));
    let mut refused = None;
    for _ in 0..12 {
        let answer = api.ask("get", "/keys", Some(&alice), None).await;
        if answer.status() == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("too many are refused");
    let seconds: u32 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=10).contains(&seconds), "{seconds}");
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["type"], "urn:tss-network:problem:rate-limited");
    assert_eq!(api.ask("get", "/keys", Some(&bob), None).await.status(), 200);
    // A batch counts as many as it has.
    let batch = json!({"requests": vec![json!({"message": "m"}); 11]});
    assert_eq!(api.ask("post", "/sign/batch", Some(&bob), Some(&batch)).await.status(), 429);
    api.stop().await;
}
