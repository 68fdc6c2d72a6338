//! `GET /status/{id}`, `/signature/{id}`, `/signing_result/{id}`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tss_common::intent::Intent;
use tss_mpc::{PublicKey, Quorum, Signature};
use uuid::Uuid;

use super::problem::{Kind, Problem};
use crate::auth::Caller;
use crate::service::Shared;
use crate::store::{Request, State as RequestState};

/// The longest wait that can be asked for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How far a request is.
#[derive(Debug, Serialize)]
pub struct Status {
    request_id: Uuid,
    status: &'static str,
    attempts: u32,
    quorum: Option<Quorum>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// A signature, and what it is a signature of.
#[derive(Debug, Serialize)]
pub struct Signed {
    request_id: Uuid,
    status: &'static str,
    /// 64 hex digits.
    r: String,
    /// 64 hex digits, at most half the group order.
    s: String,
    recid: u8,
    /// The recovery id as Ethereum writes it: 27 + recid.
    v: u8,
    der: String,
    compact: String,
    public_key: PublicKey,
    digest: String,
    intent: Intent,
    intent_hash: String,
}

/// The shape that the first TSS network answered in, field for field.
#[derive(Debug, Serialize)]
pub struct SigningResult {
    request_id: Uuid,
    message: Vec<u8>,
    status: &'static str,
    signature: Option<OriginalSignature>,
}

/// A signature in the first network's shape.
#[derive(Debug, Serialize)]
pub struct OriginalSignature {
    r: String,
    s: String,
    status: &'static str,
    recid: u8,
    /// The coordinates of the derived public key.
    x: String,
    y: String,
    /// The digest that was signed.
    msg_int: Vec<u8>,
}

/// `?wait=10s`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    wait: Option<String>,
}

/// How far a request is: attempts, quorum, and the reason if it failed.
pub async fn status(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Status>, Problem> {
    Ok(Json(Status::of(&*find(&shared, &caller, &id).await?)))
}

impl Status {
    /// How far this one is.
    pub fn of(request: &Request) -> Self {
        let reason = match &request.progress.state {
            RequestState::Failed { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        Self {
            request_id: request.id,
            status: request.progress.state.name(),
            attempts: request.progress.attempts,
            quorum: request.progress.quorum.clone(),
            reason,
        }
    }
}

/// The signature: 200 once there is one, 202 before, 409 if there will be none. Waits up to `wait`.
pub async fn signature(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    query: Result<Query<Wait>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Wait { wait }) =
        query.map_err(|rejection| Problem::new(Kind::InvalidRequest, rejection.body_text()))?;
    let patience = wait.as_deref().map_or(Ok(Duration::ZERO), parse_wait)?;
    let mut request = find(&shared, &caller, &id).await?;
    if patience > Duration::ZERO && !request.progress.state.is_finished() {
        let waited = shared.coordinator.wait(request.id, patience).await?;
        request = waited.ok_or(Kind::UnknownRequest)?;
    }
    match &request.progress.state {
        RequestState::Completed { signature, public_key, .. } => {
            Ok(Json(signed(&request, signature, public_key)?).into_response())
        }
        RequestState::Failed { reason, .. } => Err(Problem::new(Kind::RequestFailed, reason.clone())),
        state @ (RequestState::Pending | RequestState::InProgress) => {
            let body = serde_json::json!({ "request_id": request.id, "status": state.name() });
            Ok((StatusCode::ACCEPTED, [(header::RETRY_AFTER, "1")], Json(body)).into_response())
        }
    }
}

/// The result in the first network's shape.
pub async fn signing_result(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<SigningResult>, Problem> {
    let request = find(&shared, &caller, &id).await?;
    let signature = match &request.progress.state {
        RequestState::Completed { signature, public_key, .. } => {
            let (x, y) = public_key.coordinates();
            Some(OriginalSignature {
                r: hex::encode(signature.r),
                s: hex::encode(signature.s),
                status: "signature_ready",
                recid: signature.recid,
                x: hex::encode(x),
                y: hex::encode(y),
                msg_int: request.intent.digest.to_vec(),
            })
        }
        _ => None,
    };
    Ok(Json(SigningResult {
        request_id: request.id,
        message: request.message.clone(),
        status: request.progress.state.name(),
        signature,
    }))
}

/// The request of this id. One that the caller may not see is as if it were not there.
///
/// # Errors
/// [`Problem`] when it is malformed or unknown, or the store does not answer.
pub async fn find(shared: &Shared, caller: &Caller, id: &str) -> Result<Arc<Request>, Problem> {
    let id = Uuid::try_parse(id).map_err(|_| {
        Problem::new(Kind::MalformedId, "expected a UUID like 550e8400-e29b-41d4-a716-446655440000")
    })?;
    let found = shared.coordinator.get(id).await?.filter(|request| caller.may_see(request));
    found.ok_or_else(|| Kind::UnknownRequest.into())
}

/// `10s` or `500ms`, up to [`MAX_WAIT`].
fn parse_wait(text: &str) -> Result<Duration, Problem> {
    let number = |digits: &str| {
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten()
    };
    let duration = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => number(digits).map(Duration::from_millis),
        (None, Some(digits)) => number(digits).map(Duration::from_secs),
        (None, None) => None,
    };
    duration.filter(|&wait| wait <= MAX_WAIT).ok_or_else(|| {
        let most = MAX_WAIT.as_secs();
        Problem::new(
            Kind::InvalidRequest,
            format!("`wait`: expected seconds or milliseconds like `10s` or `500ms`, up to {most}s"),
        )
    })
}

fn signed(request: &Request, signature: &Signature, public_key: &PublicKey) -> Result<Signed, Problem> {
    let der = signature.to_der().map_err(|error| {
        tracing::error!(request = %request.id, %error, "a stored signature is damaged");
        Problem::from(Kind::Internal)
    })?;
    Ok(Signed {
        request_id: request.id,
        status: request.progress.state.name(),
        r: hex::encode(signature.r),
        s: hex::encode(signature.s),
        recid: signature.recid,
        v: signature.recid.saturating_add(27),
        der: hex::encode(der),
        compact: hex::encode(signature.to_compact()),
        public_key: *public_key,
        digest: hex::encode(request.intent.digest),
        intent: request.intent.clone(),
        intent_hash: hex::encode(request.intent.hash()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_seconds_or_milliseconds_and_bounded() {
        assert_eq!(parse_wait("10s").unwrap(), Duration::from_secs(10));
        assert_eq!(parse_wait("250ms").unwrap(), Duration::from_millis(250));
        for text in ["", "10", "s", "ms", "-1s", "+1s", "1.5s", "61s", "99999999999999999999s", "1m"] {
            assert!(parse_wait(text).is_err(), "{text}");
        }
    }
}
