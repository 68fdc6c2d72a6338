//! Why there is no answer, or another than was hoped for.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;
use uuid::Uuid;

use crate::names::names;

/// Why there is no answer, or another than was hoped for. Says nothing of the token that was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No client can be made of these settings.
    #[error("{what}: {problem}")]
    Settings {
        /// The setting, or the file that it names.
        what: String,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// The file with the token cannot be read, or has none.
    #[error("token file {}: {problem}", file.display())]
    Token {
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// Nobody answers there, or nobody who is believed.
    #[error("no answer from the manager at {url}")]
    Unreachable {
        /// Where the manager should be.
        url: String,
        /// What happened instead.
        #[source]
        source: reqwest::Error,
    },
    /// The manager was reached and took too long.
    #[error("no answer from the manager at {url} within {:.1} s", patience.as_secs_f64())]
    TimedOut {
        /// Where the manager is.
        url: String,
        /// How long it had.
        patience: Duration,
    },
    /// The manager says why not (RFC 9457).
    #[error("{title} ({status}){}", detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default())]
    Problem {
        /// The HTTP status.
        status: StatusCode,
        /// What kind of problem it is: the last part of its `type`.
        kind: ProblemKind,
        /// What it is called.
        title: String,
        /// What was wrong with this request, and what was expected.
        detail: Option<String>,
        /// When asking again may help.
        retry_after: Option<Duration>,
    },
    /// An answer in a shape that none has.
    #[error("the answer to {call} ({status}) is malformed: {problem}")]
    Malformed {
        /// What was asked, as in `GET /keys`.
        call: String,
        /// The HTTP status.
        status: StatusCode,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// The request was accepted and is not signed yet. It may be later.
    #[error("request {request_id} is not signed after {} s", patience.as_secs())]
    NotSigned {
        /// The request.
        request_id: Uuid,
        /// How long its signature was waited for.
        patience: Duration,
    },
}

names! {
    /// What kinds of problems there are.
    pub enum ProblemKind, "kind of problem" {
        /// The path is not part of the API.
        NoSuchRoute = "no-such-route",
        /// The path is, with another method.
        MethodNotAllowed = "method-not-allowed",
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
        /// No token came, or none that holds.
        Unauthenticated = "unauthenticated",
        /// The token does not allow this.
        Forbidden = "forbidden",
        /// Too many requests came of one subject.
        RateLimited = "rate-limited",
        /// An error in the manager.
        Internal = "internal",
        /// The answer is no problem document: a proxy's, say.
        Unspecified = "about:blank",
    }
}

impl Error {
    /// When asking again may help: at once where it is not said, `None` where it does not.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unreachable { source, .. } => (!is_distrust(source)).then_some(Duration::ZERO),
            Self::TimedOut { .. } => Some(Duration::ZERO),
            Self::Problem { status, retry_after, .. } => {
                let passes = matches!(
                    *status,
                    StatusCode::TOO_MANY_REQUESTS
                        | StatusCode::SERVICE_UNAVAILABLE
                        | StatusCode::BAD_GATEWAY
                        | StatusCode::GATEWAY_TIMEOUT
                );
                passes.then(|| retry_after.unwrap_or_default())
            }
            _ => None,
        }
    }
}

/// Whether TLS was tried and whoever answered is not believed: that does not pass by itself.
fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<std::io::Error>() {
        // As which the TLS library's own errors arrive, perhaps within another of the same type, which does not call
        // it its source.
        Some(error) => {
            error.kind() == std::io::ErrorKind::InvalidData
                || error.get_ref().is_some_and(|within| is_distrust(within))
        }
        None => error.source().is_some_and(is_distrust),
    }
}
