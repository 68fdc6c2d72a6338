//! `POST /verify`: whether a signature is one.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use tss_common::intent::{Encoding, HashAlgorithm, Wish};
use tss_mpc::{DerivationPath, PublicKey, Signature};
use utoipa::ToSchema;

use super::problem::{Kind, Problem};
use super::{body, keys, schema};
use crate::auth::Caller;
use crate::service::Shared;

/// A body, for those who send something else.
const EXAMPLE: &str = r#"{"message":"hello","signature":"3045…"}"#;

/// What a caller wants to know.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyBody {
    /// The message, in `encoding`.
    message: String,
    /// How the message is written.
    #[serde(default)]
    #[schema(value_type = schema::MessageEncoding)]
    encoding: Encoding,
    /// How it became the digest that was signed.
    #[serde(default)]
    #[schema(value_type = schema::HashAlgorithm)]
    hash: HashAlgorithm,
    /// In hex: r and s (64 bytes), r, s and v or recid (65 bytes), or DER.
    #[schema(pattern = "^(0x)?([0-9A-Fa-f]{2})*$")]
    signature: String,
    /// Whose signature it should be; where absent, that of `key` at `path`.
    #[schema(value_type = Option<schema::PublicKey>)]
    public_key: Option<PublicKey>,
    /// Which of the cluster's keys; the configured one where absent.
    key: Option<String>,
    /// Which derived key; the configured one where absent.
    #[schema(value_type = Option<schema::DerivationPath>)]
    path: Option<DerivationPath>,
}

/// What is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Verified {
    /// Whether the key made this signature over this digest, with a low s (BIP-62, EIP-2).
    valid: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
    /// Whose signature it is, or should be.
    #[schema(value_type = schema::PublicKey)]
    public_key: PublicKey,
    /// What it should be a signature of.
    #[schema(value_type = schema::Hex32)]
    digest: String,
}

/// Check a signature
///
/// Against a key of the cluster, named by `key` and `path`, or against any other, given as `public_key`.
#[utoipa::path(
    post,
    path = "/verify",
    tag = "keys",
    security(("bearer" = [])),
    request_body = VerifyBody,
    responses((status = 200, description = "Whether it is valid, and why not.", body = Verified)),
    extensions(("x-problems" = json!([Kind::UnknownKey]))),
)]
pub async fn verify(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Verified>, Problem> {
    let invalid = |detail: String| Problem::new(Kind::InvalidRequest, detail);
    let asked: VerifyBody = body::parse(&headers, &body.map_err(body::unreadable)?, EXAMPLE)?;
    let VerifyBody { message, encoding, hash, signature, public_key, key, path } = asked;
    if public_key.is_some() && (key.is_some() || path.is_some()) {
        return Err(invalid("`public_key`: expected either it, or `key` and `path`".into()));
    }
    let signature =
        Encoding::Hex.decode(&signature).map_err(|error| invalid(format!("`signature`: {error}")))?;
    let wish = Wish { message, encoding, hash, key, path, not_after: None };
    let (intent, _) = wish.intent(&shared.config).map_err(invalid)?;
    let public_key = match public_key {
        Some(public_key) => public_key,
        None => keys::derive(&keys::find(&shared, &caller, &intent.key)?, &intent.path)?,
    };
    let outcome = Signature::check_encoding(&signature, &public_key, &intent.digest);
    Ok(Json(Verified {
        valid: outcome.is_ok(),
        reason: outcome.err().map(|error| error.to_string()),
        public_key,
        digest: hex::encode(intent.digest),
    }))
}
