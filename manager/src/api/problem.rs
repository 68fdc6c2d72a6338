//! Every answer that is not what was asked for: `application/problem+json` (RFC 9457).

use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use tss_common::labels;
use tss_common::telemetry::Label as _;
use utoipa::ToSchema;

use super::schema;
use crate::auth::{Refusal, TurnedAway};
use crate::coordinator::SubmitError;
use crate::store::StoreError;

labels! {
    /// What kinds of problems there are, with the last part of their `type`, which never changes, so that programs
    /// can tell them apart.
    pub enum Kind {
        /// The path is not part of the API.
        NoSuchRoute = "no-such-route",
        /// The path is, with another method.
        MethodNotAllowed = "method-not-allowed",
        /// Nobody is let in without a token that is accepted.
        Unauthenticated = "unauthenticated",
        /// The token does not allow it.
        Forbidden = "forbidden",
        /// The caller calls too often.
        RateLimited = "rate-limited",
        /// The id is not a UUID.
        MalformedId = "malformed-id",
        /// No request has this id.
        UnknownRequest = "unknown-request",
        /// No key of this id is on record.
        UnknownKey = "unknown-key",
        /// The body is not JSON.
        MalformedJson = "malformed-json",
        /// The body is not declared to be JSON.
        NotJson = "not-json",
        /// The body is too long.
        BodyTooLarge = "body-too-large",
        /// A field or parameter is unknown, missing or impossible.
        InvalidRequest = "invalid-request",
        /// The idempotency key stands for another request.
        IdempotencyConflict = "idempotency-conflict",
        /// The request ended without a signature.
        RequestFailed = "request-failed",
        /// A part that is needed cannot be reached.
        Unavailable = "unavailable",
        /// Too many requests are waiting.
        Overloaded = "overloaded",
        /// It took too long.
        TimedOut = "timed-out",
        /// An error in this software.
        Internal = "internal",
    }
}

impl Kind {
    /// Its `type`.
    pub fn urn(self) -> String {
        format!("urn:tss-network:problem:{}", self.as_str())
    }

    /// Status and title.
    pub fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::NoSuchRoute => (StatusCode::NOT_FOUND, "No such route"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"),
            Self::Unauthenticated => {
                (StatusCode::UNAUTHORIZED, "A bearer token is needed, and none was accepted")
            }
            Self::Forbidden => (StatusCode::FORBIDDEN, "The token does not allow this"),
            Self::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "Too many calls"),
            Self::MalformedId => (StatusCode::BAD_REQUEST, "The request id is not a UUID"),
            Self::UnknownRequest => (StatusCode::NOT_FOUND, "No request has this id"),
            Self::UnknownKey => (StatusCode::NOT_FOUND, "No key of this id is on record"),
            Self::MalformedJson => (StatusCode::BAD_REQUEST, "The body is not JSON"),
            Self::NotJson => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is not declared as application/json")
            }
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::InvalidRequest => (StatusCode::UNPROCESSABLE_ENTITY, "The request is invalid"),
            Self::IdempotencyConflict => {
                (StatusCode::UNPROCESSABLE_ENTITY, "The idempotency key was used for another request")
            }
            Self::RequestFailed => (StatusCode::CONFLICT, "The request ended without a signature"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "A needed part is unreachable"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "Too many requests are waiting"),
            Self::TimedOut => (StatusCode::REQUEST_TIMEOUT, "The request took too long"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal error"),
        }
    }
}

/// As its name.
impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A problem, as it is answered.
#[derive(Clone, Debug)]
pub struct Problem {
    kind: Kind,
    detail: Option<String>,
    retry_after: Option<u32>,
}

impl Problem {
    /// A problem with what was wrong and what was expected.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: Some(detail.into()), retry_after: None }
    }

    /// When to try again, in seconds.
    pub fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl From<Kind> for Problem {
    fn from(kind: Kind) -> Self {
        Self { kind, detail: None, retry_after: None }
    }
}

/// The store's own words stay in the log.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Down(_) => Self::new(Kind::Unavailable, "the store is unreachable").retry_after(2),
            StoreError::Corrupt(_) => {
                tracing::error!(%error, "the store");
                Kind::Internal.into()
            }
        }
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Unavailable(part) => Self::new(Kind::Unavailable, part).retry_after(2),
            SubmitError::Overloaded(_) => Self::new(Kind::Overloaded, error.to_string()).retry_after(1),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Kind::InvalidRequest, rejection.body_text())
    }
}

/// Why is not for the caller: the same words whatever it was.
impl From<TurnedAway> for Problem {
    fn from(away: TurnedAway) -> Self {
        let kind = match away.refusal {
            Refusal::Scope | Refusal::Limits => Kind::Forbidden,
            Refusal::Rate => Kind::RateLimited,
            Refusal::NoKeys => Kind::Unavailable,
            _ => Kind::Unauthenticated,
        };
        Self { retry_after: away.retry_after, ..kind.into() }
    }
}

/// A problem as JSON.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Body {
    /// Which kind it is. Never changes, so that programs can tell them apart.
    #[schema(value_type = schema::ProblemType)]
    r#type: String,
    /// The kind in words.
    title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong and what was expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    detail: Option<String>,
}

impl Problem {
    /// What is told of it.
    pub fn into_body(self) -> Body {
        let (status, title) = self.kind.parts();
        Body { r#type: self.kind.urn(), title, status: status.as_u16(), detail: self.detail }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, _) = self.kind.parts();
        let (kind, retry_after) = (self.kind, self.retry_after);
        let mut response = (status, axum::Json(self.into_body())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        // RFC 6750, 3. Whether there was a token is left open, too.
        if kind == Kind::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tss\""));
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
