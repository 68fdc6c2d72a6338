//! Pages for people, and what they are made of: files that are part of this program.

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};

/// All that a browser lets such a page do: use its own files, and ask where it came from.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file as it is served.
pub fn served(content_type: &'static str, content: impl Into<Bytes>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A manager's files go with its API, and another version of it may answer next.
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, content.into()).into_response()
}
