//! `GET /requests`, `/requests/{id}`: requests as they look to who watches over them.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tss_common::intent::HashAlgorithm;
use tss_mpc::{DerivationPath, Quorum};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::problem::{Kind, Problem};
use super::requests::{Id, find};
use super::schema;
use crate::auth::Caller;
use crate::service::Shared;
use crate::store::{Filter, Place, Request, State as RequestState};

/// How many requests there are in an answer, unless another number is asked for, and how many there can be.
const PAGE: usize = 50;
const MAX_PAGE: usize = 200;

/// A request in one line.
#[derive(Debug, Serialize, ToSchema)]
pub struct Summary {
    request_id: Uuid,
    #[schema(value_type = schema::RequestStatus)]
    status: &'static str,
    key: String,
    #[schema(value_type = schema::DerivationPath)]
    path: DerivationPath,
    #[schema(value_type = schema::HashAlgorithm)]
    hash: HashAlgorithm,
    /// When it was accepted.
    #[schema(value_type = schema::Time)]
    created_at: Timestamp,
    /// When it ended, if it has.
    #[schema(value_type = Option<schema::Time>, required)]
    finished_at: Option<Timestamp>,
    /// How many attempts were begun.
    attempts: u32,
    /// The signers of the last one.
    #[schema(value_type = Option<schema::Quorum>, required)]
    quorum: Option<Quorum>,
    /// Why it failed, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// One of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Row {
    #[serde(flatten)]
    summary: Summary,
    /// What is signed.
    #[schema(value_type = schema::Hex32)]
    digest: String,
    /// Who asked for it, where callers have to say who they are.
    #[schema(required)]
    requested_by: Option<String>,
}

/// Some of the requests, the newest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RequestList)]
pub struct List {
    requests: Vec<Row>,
    /// The `cursor` to go on with, if there may be more.
    #[schema(required)]
    next: Option<String>,
}

/// A request, and what happened to it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Request)]
pub struct Story {
    #[serde(flatten)]
    summary: Summary,
    /// What is signed.
    #[schema(value_type = schema::Hex32)]
    digest: String,
    /// By when it ends.
    #[schema(value_type = schema::Time)]
    deadline: Timestamp,
    timeline: Vec<Happening>,
}

/// Something that happened to a request.
#[derive(Debug, Serialize, ToSchema)]
pub struct Happening {
    /// When.
    #[schema(value_type = schema::Time)]
    at: Timestamp,
    #[serde(flatten)]
    event: Event,
}

/// What it was.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// It was stored and acknowledged.
    Accepted,
    /// The last of its attempts began.
    Attempt {
        /// Which one, from 1.
        attempt: u32,
        /// Who was to sign.
        #[schema(value_type = Option<schema::Quorum>)]
        quorum: Option<Quorum>,
    },
    /// It was signed.
    Completed,
    /// It ended otherwise.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Which requests are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// Those in this state.
    #[param(value_type = Option<schema::RequestStatus>)]
    status: Option<String>,
    /// Those of this key.
    key: Option<String>,
    /// Those accepted then or later.
    #[param(value_type = Option<schema::Time>)]
    created_after: Option<Timestamp>,
    /// Those accepted earlier.
    #[param(value_type = Option<schema::Time>)]
    created_before: Option<Timestamp>,
    /// How many.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<usize>,
    /// `next` of the answer before.
    cursor: Option<String>,
}

impl Summary {
    /// The line of a request.
    pub fn of(request: &Request) -> Self {
        Self {
            request_id: request.id,
            status: request.progress.state.name(),
            key: request.intent.key.clone(),
            path: request.intent.path.clone(),
            hash: request.intent.hash,
            created_at: request.created_at,
            finished_at: request.progress.state.finished_at(),
            attempts: request.progress.attempts,
            quorum: request.progress.quorum.clone(),
            reason: request.progress.state.reason().map(str::to_owned),
        }
    }
}

/// All requests
///
/// Those that are kept, the newest first, as far as the caller may use their keys and paths: an answer can be shorter than
/// `limit`, and `next` says whether there may be more.
#[utoipa::path(
    get,
    path = "/requests",
    operation_id = "list_requests",
    tag = "watching",
    security(("bearer" = ["admin"])),
    params(Wanted),
    responses((status = 200, description = "Some of them.", body = List)),
    extensions(("x-problems" = json!([Kind::InvalidRequest, Kind::Unavailable]))),
)]
pub async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<List>, Problem> {
    let Query(wanted) = query?;
    let listed = shared.coordinator.list(&wanted.filter()?).await?;
    let seen = listed
        .requests
        .iter()
        .filter(|request| caller.may_use(&request.intent.key, &request.intent.path))
        .map(|request| Row {
            summary: Summary::of(request),
            digest: hex::encode(request.intent.digest),
            requested_by: request.requester.clone(),
        });
    Ok(Json(List { requests: seen.collect(), next: listed.next.map(write_cursor) }))
}

/// One request
///
/// With what happened to it.
#[utoipa::path(
    get,
    path = "/requests/{id}",
    operation_id = "request",
    tag = "watching",
    security(("bearer" = ["read"]), ("bearer" = ["sign"])),
    params(("id" = Uuid, Path, description = "The request's id.")),
    responses((status = 200, description = "The request.", body = Story)),
    extensions(("x-problems" = json!([Kind::MalformedId, Kind::UnknownRequest, Kind::Unavailable]))),
)]
pub async fn one(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Json<Story>, Problem> {
    let request = find(&shared, &caller, id).await?;
    let progress = &request.progress;
    let mut timeline = vec![Happening { at: request.created_at, event: Event::Accepted }];
    if let Some(at) = progress.begun_at {
        let (attempt, quorum) = (progress.attempts, progress.quorum.clone());
        timeline.push(Happening { at, event: Event::Attempt { attempt, quorum } });
    }
    match &progress.state {
        RequestState::Pending | RequestState::InProgress => {}
        RequestState::Completed { finished_at, .. } => {
            timeline.push(Happening { at: *finished_at, event: Event::Completed });
        }
        RequestState::Failed { reason, finished_at } => {
            timeline.push(Happening { at: *finished_at, event: Event::Failed { reason: reason.clone() } });
        }
    }
    Ok(Json(Story {
        summary: Summary::of(&request),
        digest: hex::encode(request.intent.digest),
        deadline: request.deadline,
        timeline,
    }))
}

impl Wanted {
    fn filter(self) -> Result<Filter, Problem> {
        let invalid = |detail: String| Problem::new(Kind::InvalidRequest, detail);
        let Self { status, key, created_after, created_before, limit, cursor } = self;
        let status = match status {
            None => None,
            Some(status) => {
                let known = RequestState::NAMES.into_iter().find(|name| *name == status);
                let expected = || invalid(format!("`status`: expected one of {:?}", RequestState::NAMES));
                Some(known.ok_or_else(expected)?)
            }
        };
        let limit = limit.unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(invalid(format!("`limit`: {limit}: expected 1 to {MAX_PAGE}")));
        }
        let after = match cursor.as_deref().map(read_cursor) {
            Some(None) => return Err(invalid("`cursor`: expected `next` of the answer before".into())),
            after => after.flatten(),
        };
        Ok(Filter { status, key, from: created_after, until: created_before, after, limit })
    }
}

/// A place in the list, as text that nobody need read.
fn write_cursor(place: Place) -> String {
    let mut bytes = place.created_at.as_nanosecond().to_be_bytes().to_vec();
    bytes.extend(place.id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(text: &str) -> Option<Place> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (time, id) = bytes.split_first_chunk::<16>()?;
    let created_at = Timestamp::from_nanosecond(i128::from_be_bytes(*time)).ok()?;
    Some(Place { created_at, id: Uuid::from_bytes(id.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        let place = Place { created_at: Timestamp::now(), id: Uuid::new_v4() };
        let cursor = write_cursor(place);
        assert_eq!(read_cursor(&cursor), Some(place));
        let long = URL_SAFE_NO_PAD.encode([0x7f; 32]);
        for text in ["", "a", &cursor[1..], &format!("{cursor}AA"), "ä", &long] {
            assert_eq!(read_cursor(text), None, "{text}");
        }
    }
}
