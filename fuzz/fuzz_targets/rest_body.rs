//! `POST /sign`: what the manager makes of headers and body.

#![no_main]

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::IntoResponse as _;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use tss_common::config::Config;
use tss_fuzz::{Input, shown};
use tss_manager::api::problem::Kind;
use tss_manager::api::sign;
use tss_manager::store::{Request, State};

static CONFIG: LazyLock<Config> = LazyLock::new(Config::default);

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut headers = HeaderMap::new();
    let json = HeaderValue::from_static("application/json");
    let content_type = match input.byte() % 8 {
        0 => HeaderValue::from_bytes(input.short()).ok(),
        1 => None,
        _ => Some(json),
    };
    headers.extend(content_type.map(|value| (header::CONTENT_TYPE, value)));
    if input.byte() % 2 == 0
        && let Ok(value) = HeaderValue::from_bytes(input.short())
    {
        headers.insert("idempotency-key", value);
    }
    // In what jiff calls a time; the manager's own clock is always in it.
    let now = Timestamp::new(i64::from_be_bytes(input.array()) % 200_000_000_000, 0);
    let now = now.unwrap_or(Timestamp::UNIX_EPOCH);
    check(&headers, input.rest(), now);
});

fn check(headers: &HeaderMap, body: &[u8], now: Timestamp) {
    let result = sign::read(headers, body, &CONFIG, now);
    let request = match result {
        Ok(request) => request,
        Err(problem) => {
            let expected = [Kind::MalformedJson, Kind::NotJson, Kind::InvalidRequest];
            assert!(expected.contains(&problem.kind()), "{problem:?}");
            let text = shown(&problem);
            assert!(problem.into_response().status().is_client_error(), "{text}");
            return;
        }
    };
    let intent = &request.intent;
    assert_eq!(intent.hash.digest(&request.message), Ok(intent.digest));
    assert_eq!(intent.cluster, CONFIG.cluster);
    assert_eq!((request.created_at, &request.progress.state), (now, &State::Pending));
    assert!(request.deadline >= now && intent.not_after.is_none_or(|time| request.deadline <= time));
    assert!(intent.not_after.is_none_or(|time| time > now));
    if let Some(idempotency) = &request.idempotency {
        assert_eq!(idempotency.body_hash, intent.hash());
        assert!((1..=255).contains(&idempotency.key.len()));
    }
    // As a store keeps it.
    let stored = serde_json::to_vec(&request).expect("a request has a JSON form");
    assert_eq!(serde_json::from_slice::<Request>(&stored).expect("what was written is read"), request);
    // A second time it is the same request under another id.
    let again = sign::read(headers, body, &CONFIG, now).expect("it was accepted before");
    assert_eq!(Request { id: request.id, ..again }, request);
}
