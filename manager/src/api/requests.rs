//! `GET /status/{id}`, `/signature/{id}`, `/signing_result/{id}`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tss_common::intent::Intent;
use tss_mpc::{PublicKey, Quorum, Signature};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::problem::{Kind, Problem};
use super::schema;
use super::sign::Accepted;
use crate::auth::Caller;
use crate::service::Shared;
use crate::store::{Request, State as RequestState};

/// The longest wait that can be asked for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How far a request is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Status {
    request_id: Uuid,
    #[schema(value_type = schema::RequestStatus)]
    status: &'static str,
    /// How often signers were asked to sign it.
    attempts: u32,
    /// The signers of the last attempt.
    #[schema(value_type = Option<schema::Quorum>, required)]
    quorum: Option<Quorum>,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// A signature, and what it is a signature of.
#[derive(Debug, Serialize, ToSchema)]
pub struct Signed {
    request_id: Uuid,
    #[schema(value_type = schema::RequestStatus)]
    status: &'static str,
    /// 64 hex digits.
    #[schema(value_type = schema::Hex32)]
    r: String,
    /// 64 hex digits, at most half the group order.
    #[schema(value_type = schema::Hex32)]
    s: String,
    /// The recovery id: which of the public keys that fit made it.
    #[schema(minimum = 0, maximum = 3)]
    recid: u8,
    /// The recovery id as Ethereum writes it: 27 + recid.
    #[schema(minimum = 27, maximum = 30)]
    v: u8,
    /// The signature in DER, in hex.
    #[schema(pattern = "^30([0-9a-f]{2}){7,71}$")]
    der: String,
    /// r and s, in hex.
    #[schema(pattern = "^[0-9a-f]{128}$")]
    compact: String,
    /// The key at the path: whose signature it is.
    #[schema(value_type = schema::PublicKey)]
    public_key: PublicKey,
    /// What was signed.
    #[schema(value_type = schema::Hex32)]
    digest: String,
    #[schema(value_type = schema::Intent)]
    intent: Intent,
    /// What approvers sign, and what the signers keep in their audit logs.
    #[schema(value_type = schema::Hex32)]
    intent_hash: String,
}

/// The shape that the first TSS network answered in, field for field.
#[derive(Debug, Serialize, ToSchema)]
pub struct SigningResult {
    request_id: Uuid,
    /// The message's bytes, as numbers.
    message: Vec<u8>,
    #[schema(value_type = schema::RequestStatus)]
    status: &'static str,
    /// Null until there is one.
    #[schema(required)]
    signature: Option<OriginalSignature>,
}

/// A signature in the first network's shape.
#[derive(Debug, Serialize, ToSchema)]
pub struct OriginalSignature {
    #[schema(value_type = schema::Hex32)]
    r: String,
    #[schema(value_type = schema::Hex32)]
    s: String,
    /// Always `signature_ready`.
    status: &'static str,
    #[schema(minimum = 0, maximum = 3)]
    recid: u8,
    /// The first coordinate of the derived public key.
    #[schema(value_type = schema::Hex32)]
    x: String,
    /// The second one.
    #[schema(value_type = schema::Hex32)]
    y: String,
    /// The bytes of the digest that was signed, as numbers.
    #[schema(min_items = 32, max_items = 32)]
    msg_int: Vec<u8>,
}

/// `?wait=10s`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wait {
    /// How long to wait for the signature before answering 202: seconds or milliseconds, like `10s` or `500ms`, up to
    /// `60s`.
    #[param(pattern = "^0*(([1-5]?[0-9]|60)s|([1-5]?[0-9]{1,4}|60000)ms)$", example = "10s")]
    wait: Option<String>,
}

/// What stands in the place of an id, if it is text.
pub type Id = Result<Path<String>, PathRejection>;

impl Status {
    /// How far this one is.
    pub fn of(request: &Request) -> Self {
        Self {
            request_id: request.id,
            status: request.progress.state.name(),
            attempts: request.progress.attempts,
            quorum: request.progress.quorum.clone(),
            reason: request.progress.state.reason().map(str::to_owned),
        }
    }
}

/// How far a request is
///
/// Its attempts, the signers of the last one, and the reason if it failed.
#[utoipa::path(
    get,
    path = "/status/{id}",
    tag = "signing",
    security(("bearer" = ["read"]), ("bearer" = ["sign"])),
    params(("id" = Uuid, Path, description = "The request's id.")),
    responses((status = 200, description = "How far it is.", body = Status)),
    extensions(("x-problems" = json!([Kind::MalformedId, Kind::UnknownRequest, Kind::Unavailable]))),
)]
pub async fn status(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Json<Status>, Problem> {
    let request = find(&shared, &caller, id).await?;
    Ok(Json(Status::of(&request)))
}

/// The signature
///
/// Asked with `?wait=`, the answer comes as soon as the request has ended, or when the wait is over.
#[utoipa::path(
    get,
    path = "/signature/{id}",
    tag = "signing",
    security(("bearer" = ["read"]), ("bearer" = ["sign"])),
    params(("id" = Uuid, Path, description = "The request's id."), Wait),
    responses(
        (status = 200, description = "The signature, in every form.", body = Signed),
        (status = 202, description = "There is none yet.", body = Accepted,
            headers(("Retry-After" = u32, description = "When to ask again, in seconds."))),
    ),
    extensions(("x-problems" = json!([
        Kind::MalformedId, Kind::UnknownRequest, Kind::RequestFailed, Kind::InvalidRequest, Kind::Unavailable,
    ]))),
)]
pub async fn signature(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    id: Id,
    query: Result<Query<Wait>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Wait { wait }) = query?;
    let patience = wait.as_deref().map_or(Ok(Duration::ZERO), parse_wait)?;
    let mut request = find(&shared, &caller, id).await?;
    if patience > Duration::ZERO && !request.progress.state.is_finished() {
        let waited = tokio::select! {
            waited = shared.coordinator.wait(request.id, patience) => waited?,
            () = shared.closing.cancelled() => Some(request),
        };
        request = waited.ok_or(Kind::UnknownRequest)?;
    }
    match &request.progress.state {
        RequestState::Completed { signature, public_key, .. } => {
            Ok(Json(signed(&request, signature, public_key)?).into_response())
        }
        RequestState::Failed { reason, .. } => Err(Problem::new(Kind::RequestFailed, reason.clone())),
        state @ (RequestState::Pending | RequestState::InProgress) => {
            let accepted = Accepted { request_id: request.id, status: state.name() };
            Ok((StatusCode::ACCEPTED, [(header::RETRY_AFTER, "1")], Json(accepted)).into_response())
        }
    }
}

/// The signature, in the first network's shape
///
/// For programs that were written for the first TSS network. 200 at any time; `signature` is null until there is one.
#[utoipa::path(
    get,
    path = "/signing_result/{id}",
    tag = "signing",
    security(("bearer" = ["read"]), ("bearer" = ["sign"])),
    params(("id" = Uuid, Path, description = "The request's id.")),
    responses((status = 200, description = "The request, with its signature if there is one.", body = SigningResult)),
    extensions(("x-problems" = json!([Kind::MalformedId, Kind::UnknownRequest, Kind::Unavailable]))),
)]
pub async fn signing_result(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Json<SigningResult>, Problem> {
    let request = find(&shared, &caller, id).await?;
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
pub async fn find(shared: &Shared, caller: &Caller, id: Id) -> Result<Arc<Request>, Problem> {
    let id = id.ok().and_then(|Path(id)| Uuid::try_parse(&id).ok()).ok_or_else(|| {
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

/// A signature as it is answered.
///
/// # Errors
/// [`Problem`] when it is damaged.
pub fn signed(request: &Request, signature: &Signature, public_key: &PublicKey) -> Result<Signed, Problem> {
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
