//! `POST /sign/dry-run`: what would become of a request, with nothing signed.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use jiff::Timestamp;
use serde::Serialize;
use tss_common::intent::Intent;
use tss_common::wire::Verdict;
use tss_mpc::{PublicKey, SignerIndex};
use utoipa::ToSchema;

use super::problem::{Kind, Problem};
use super::sign::SignBody;
use super::{body, keys, schema, sign};
use crate::auth::Caller;
use crate::service::Shared;

/// What would become of a request.
#[derive(Debug, Serialize, ToSchema)]
pub struct DryRun {
    /// Whether as many signers are willing as are needed.
    would_sign: bool,
    /// How many are needed.
    threshold: u8,
    /// What would be signed.
    #[schema(value_type = schema::Intent)]
    intent: Intent,
    /// The key that would sign: the key's, derived along the path.
    #[schema(value_type = schema::PublicKey)]
    public_key: PublicKey,
    /// Each signer's word.
    signers: Vec<Word>,
}

/// What a signer says that it would do.
#[derive(Debug, Serialize, ToSchema)]
pub struct Word {
    #[schema(value_type = schema::SignerIndex)]
    signer: SignerIndex,
    #[schema(value_type = schema::Verdict)]
    verdict: &'static str,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The names of those whose approvals its policy counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    approvals: Vec<String>,
}

/// Ask what would become of a request
///
/// The same body as `POST /sign`, through the same checks: here, and at every live signer, whose policy has the last
/// word. Nothing is signed, stored or counted for a signer's rate, and an `Idempotency-Key` means nothing.
#[utoipa::path(
    post,
    path = "/sign/dry-run",
    operation_id = "dry_run",
    tag = "signing",
    security(("bearer" = ["sign"])),
    request_body = SignBody,
    responses((status = 200, description = "What would become of it.", body = DryRun)),
    extensions(("x-problems" = json!([Kind::Unavailable, Kind::Overloaded]))),
)]
pub async fn dry_run(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<DryRun>, Problem> {
    let body = body.map_err(body::unreadable)?;
    let request = sign::read(&headers, &body, &shared.config, Timestamp::now())?;
    let intent = &request.intent;
    shared.gate.check_limits(&caller, &intent.key, &intent.path)?;
    let key = match shared.keys.get(&intent.key) {
        Some(key) => key,
        None if intent.key == shared.config.key => {
            return Err(Problem::new(Kind::Unavailable, "no key is on record yet").retry_after(2));
        }
        None => return Err(sign::no_such_key(&intent.key)),
    };
    let public_key = keys::derive(&key, &intent.path)?;
    let (bus, presence, engine) = (&shared.bus, &shared.presence, shared.config.engine);
    let verdicts = shared
        .rehearsals
        .ask(bus, presence, engine, &key, &request)
        .await
        .map_err(|error| Problem::new(Kind::Overloaded, error.to_string()).retry_after(1))?;
    let willing = verdicts.values().filter(|verdict| matches!(verdict, Verdict::Willing(_))).count();
    Ok(Json(DryRun {
        would_sign: willing >= usize::from(key.threshold.t()),
        threshold: key.threshold.t(),
        intent: request.intent,
        public_key,
        signers: words(key.threshold.n(), verdicts),
    }))
}

/// Every signer's word, also of those who said nothing.
fn words(signers: u8, mut verdicts: BTreeMap<SignerIndex, Verdict>) -> Vec<Word> {
    let all = (1..=signers).filter_map(|index| SignerIndex::new(index).ok());
    all.map(|signer| {
        let (verdict, reason, approvals) = match verdicts.remove(&signer) {
            Some(Verdict::Willing(approvals)) => ("willing", None, approvals),
            Some(Verdict::Refused(reason)) => ("refused", Some(reason), Vec::new()),
            Some(Verdict::Unable(reason)) => ("unable", Some(reason), Vec::new()),
            None => ("silent", None, Vec::new()),
        };
        Word { signer, verdict, reason, approvals }
    })
    .collect()
}
