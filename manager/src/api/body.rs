//! Bodies: one JSON object each.

use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use tower_http::timeout::TimeoutError;

use super::MAX_BODY;
use super::problem::{Kind, Problem};

/// Why a body did not arrive.
pub fn unreadable(rejection: BytesRejection) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(Kind::BodyTooLarge, format!("expected at most {MAX_BODY} bytes"))
        }
        _ if is_late(&rejection) => Kind::TimedOut.into(),
        _ => Problem::new(Kind::MalformedJson, "the body could not be read"),
    }
}

/// Whether the rest of the body was waited for in vain.
fn is_late(rejection: &BytesRejection) -> bool {
    let first = std::error::Error::source(rejection);
    std::iter::successors(first, |error| error.source()).any(|error| error.is::<TimeoutError>())
}

/// The object in a body that is declared as JSON. `example` is one for who sends something else.
///
/// # Errors
/// [`Problem`] naming the field, what is wrong with it, and what was expected.
pub fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8], example: &str) -> Result<T, Problem> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(Kind::NotJson, "expected the header `content-type: application/json`"));
    }
    object(body, example)
}

/// The object in a text.
///
/// # Errors
/// [`Problem`] naming the field, what is wrong with it, and what was expected.
pub fn object<T: DeserializeOwned>(body: &[u8], example: &str) -> Result<T, Problem> {
    // Serde would read an array as the fields in order.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(Problem::new(Kind::InvalidRequest, format!("expected a JSON object, as in {example}")));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (field, error) = (error.path().to_string(), error.into_inner());
        match (error.is_data(), field.as_str()) {
            (false, _) => Problem::new(Kind::MalformedJson, error.to_string()),
            (true, ".") => Problem::new(Kind::InvalidRequest, error.to_string()),
            (true, "not_after") => {
                let expected = "expected a time like 2030-01-02T03:04:05Z (RFC 3339)";
                Problem::new(Kind::InvalidRequest, format!("`not_after`: {error}: {expected}"))
            }
            (true, field) => Problem::new(Kind::InvalidRequest, format!("`{field}`: {error}")),
        }
    })?;
    json.end().map_err(|error| Problem::new(Kind::MalformedJson, error.to_string()))?;
    Ok(parsed)
}
