//! `POST /keys/{id}/refresh`, `GET /keys/{id}/refresh`: new shares of a key while the old ones sign, and how far they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use serde::Serialize;
use tss_common::wire::{Heartbeat, RefreshStep, Refreshing};
use tss_mpc::SignerIndex;
use utoipa::ToSchema;
use uuid::Uuid;

use super::keys;
use super::problem::{Kind, Problem};
use super::schema;
use crate::auth::Caller;
use crate::refresh::Unordered;
use crate::service::Shared;
use crate::store::KeyRecord;

/// A refresh that the signers have been told of.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Refresh)]
pub struct Ordered {
    /// The key's id.
    key: String,
    /// Which refresh it is.
    refresh: Uuid,
    /// The epoch that ends with it.
    epoch: u64,
}

/// How far the signers of a key are with new shares.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = KeyRefresh)]
pub struct Progress {
    /// The key's id.
    key: String,
    /// The epoch on record.
    epoch: u64,
    signers: Vec<Signer>,
}

/// How far a signer is, by its own word.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = RefreshingSigner)]
pub struct Signer {
    #[schema(value_type = schema::SignerIndex)]
    signer: SignerIndex,
    /// Whether it is heard; else this is what it said last, if it has ever been heard.
    live: bool,
    /// The epoch of the shares that it signs with.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    /// The last refresh that it was asked for since it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh: Option<Uuid>,
    /// How far it is with that one. A signer that started again since it stored a new share is at `stored` without a `refresh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::RefreshStep>)]
    step: Option<&'static str>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Have a key's shares made anew
///
/// The signers make shares of the next epoch together, all of them, and sign on with those that they have. The new ones take
/// their place once all signers have said that they have theirs; the key and its addresses stay. `GET` at the same path says how far that is. While
/// a refresh is under way, asking again is answered with that one. A body means nothing.
#[utoipa::path(
    post,
    path = "/keys/{id}/refresh",
    operation_id = "refresh_key",
    tag = "keys",
    security(("bearer" = ["admin"])),
    params(("id" = String, Path, description = "The key's id.", example = json!("default"))),
    responses((status = 202, description = "The signers have been told.", body = Ordered)),
    extensions(("x-problems" = json!([Kind::UnknownKey, Kind::Unavailable]))),
)]
pub async fn order(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<(StatusCode, Json<Ordered>), Problem> {
    let Path(id) = id.map_err(|_| Kind::UnknownKey)?;
    let key = keys::find(&shared, &caller, &id)?;
    let (bus, presence, config) = (&shared.bus, &shared.presence, &shared.config);
    let ordered = shared.refreshes.order(bus, presence, config.engine, &config.cluster, &key).await;
    let (refresh, epoch) = ordered?;
    tracing::info!(key = %key.id, %refresh, epoch, by = caller.subject(), "a refresh was asked for");
    Ok((StatusCode::ACCEPTED, Json(Ordered { key: key.id, refresh, epoch })))
}

impl From<Unordered> for Problem {
    fn from(why: Unordered) -> Self {
        Self::new(Kind::Unavailable, why.to_string()).retry_after(2)
    }
}

/// How far a key's new shares are
///
/// What each signer said last of it.
#[utoipa::path(
    get,
    path = "/keys/{id}/refresh",
    operation_id = "key_refresh",
    tag = "keys",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The key's id.", example = json!("default"))),
    responses((status = 200, description = "How far they are.", body = Progress)),
    extensions(("x-problems" = json!([Kind::UnknownKey]))),
)]
pub async fn progress(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Progress>, Problem> {
    let Path(id) = id.map_err(|_| Kind::UnknownKey)?;
    let key = keys::find(&shared, &caller, &id)?;
    let signers = signers(&key, shared.presence.all());
    Ok(Json(Progress { key: key.id, epoch: key.epoch, signers }))
}

/// Every signer of a key, of these that have been heard, live or not, and of the others.
fn signers(key: &KeyRecord, heard: Vec<(Heartbeat, bool)>) -> Vec<Signer> {
    let mut heard: BTreeMap<_, _> = heard.into_iter().map(|said| (said.0.signer, said)).collect();
    let said = |signer| match heard.remove(&signer) {
        Some((heartbeat, live)) => describe(key, heartbeat, live),
        None => Signer { signer, live: false, epoch: None, refresh: None, step: None, reason: None },
    };
    key.threshold.signers().map(said).collect()
}

fn describe(key: &KeyRecord, heartbeat: Heartbeat, live: bool) -> Signer {
    let Heartbeat { signer, key: held, next, refresh, .. } = heartbeat;
    let mut described = Signer { signer, live, epoch: None, refresh: None, step: None, reason: None };
    // What it does with another key is nothing of this one's.
    if (&held.id, held.public_key) != (&key.id, key.public_key) {
        return described;
    }
    described.epoch = Some(held.epoch);
    described.refresh = refresh.as_ref().map(|refresh| refresh.id);
    (described.step, described.reason) = match refresh.map(|Refreshing { step, .. }| step) {
        Some(RefreshStep::Meeting) => (Some("meeting"), None),
        Some(RefreshStep::Dealing) => (Some("dealing"), None),
        Some(RefreshStep::Stored) => (Some("stored"), None),
        Some(RefreshStep::Done) => (Some("done"), None),
        Some(RefreshStep::Failed(reason)) => (Some("failed"), Some(reason)),
        None => (next.map(|_| "stored"), None),
    };
    described
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tss_common::wire::Commitment;

    use super::*;
    use crate::presence::tests::{heartbeat, key};

    #[test]
    fn every_signer_says_for_itself_how_far_it_is() {
        let id = Uuid::from_u128(7);
        let told = |heard: Vec<(Heartbeat, bool)>| serde_json::to_value(signers(&key(), heard)).unwrap();
        let at = |signer, step| {
            let refresh = Some(Refreshing { id, step });
            Heartbeat { refresh, ..heartbeat(signer, 1, &[], false) }
        };
        let away = |signer| json!({"signer": signer, "live": false});
        assert_eq!(told(Vec::new()), json!([away(1), away(2), away(3)]));
        for (step, name) in [
            (RefreshStep::Meeting, "meeting"),
            (RefreshStep::Dealing, "dealing"),
            (RefreshStep::Stored, "stored"),
            (RefreshStep::Done, "done"),
        ] {
            let expected = json!({"signer": 2, "live": true, "epoch": 1, "refresh": id, "step": name});
            assert_eq!(told(vec![(at(2, step), true)])[1], expected);
        }

        let failed = at(1, RefreshStep::Failed("no disk".into()));
        // It has stored its share, and started again.
        let restarted = Heartbeat { next: Some(Commitment([7; 32])), ..heartbeat(2, 1, &[], false) };
        let mut other = at(3, RefreshStep::Meeting);
        other.key.id = "other".into();
        let expected: Value = json!([
            {"signer": 1, "live": false, "epoch": 1, "refresh": id, "step": "failed", "reason": "no disk"},
            {"signer": 2, "live": true, "epoch": 1, "step": "stored"},
            {"signer": 3, "live": true},
        ]);
        assert_eq!(told(vec![(failed, false), (restarted, true), (other, true)]), expected);
    }
}
