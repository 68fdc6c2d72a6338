//! `GET /requests/{id}/events`: each change of a request, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Extension, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures::{Stream, stream};
use tokio::sync::OwnedSemaphorePermit;

use super::problem::{Kind, Problem};
use super::requests::{Id, Status, find};
use crate::auth::Caller;
use crate::service::Shared;
use crate::store::{Progress, Request};

/// How many may be followed at the same time.
pub const MAX_STREAMS: usize = 1024;

/// How long one is followed. A request ends within an hour; whoever still follows then can ask again.
const LONGEST: Duration = Duration::from_secs(3700);

/// How often something is said while nothing happens, so that nobody between the two thinks that they have gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

struct Followed {
    shared: Arc<Shared>,
    request: Arc<Request>,
    /// Whether the reader knows it as it is here.
    told: bool,
    until: Instant,
    _permit: OwnedSemaphorePermit,
}

/// How far a request is, as it changes
///
/// Server-sent events (HTML, 9.2): `event: status` with the JSON of `GET /status/{id}` in `data`, one at once and one at
/// each change. The last one says that the request has ended, and ends the stream.
#[utoipa::path(
    get,
    path = "/requests/{id}/events",
    operation_id = "events",
    tag = "watching",
    security(("bearer" = ["read"]), ("bearer" = ["sign"])),
    params(("id" = Uuid, Path, description = "The request's id.")),
    responses((status = 200, description = "The events.", content_type = "text/event-stream", body = String)),
    extensions(("x-problems" = json!([
        Kind::MalformedId, Kind::UnknownRequest, Kind::Unavailable, Kind::Overloaded,
    ]))),
)]
pub async fn events(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Response, Problem> {
    let request = find(&shared, &caller, id).await?;
    let permit = shared.streams.clone().try_acquire_owned().map_err(|_| {
        Problem::new(Kind::Overloaded, format!("{MAX_STREAMS} requests are followed already")).retry_after(5)
    })?;
    let followed =
        Followed { shared, request, told: false, until: Instant::now() + LONGEST, _permit: permit };
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(follow(followed)).keep_alive(keep_alive).into_response())
}

fn follow(followed: Followed) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(followed, |mut followed| async move {
        if followed.told {
            if followed.request.progress.state.is_finished() {
                return None;
            }
            followed.request = followed.change().await?;
        }
        let event = Event::default().event("status").json_data(Status::of(&followed.request)).ok()?;
        followed.told = true;
        Some((Ok(event), followed))
    })
}

impl Followed {
    /// The request once it is not as it was; `None` when there is nobody to ask, no more time, or the manager stops.
    async fn change(&self) -> Option<Arc<Request>> {
        let said = &self.request;
        loop {
            let left = self.until.checked_duration_since(Instant::now())?;
            let changed = |progress: &Progress| *progress != said.progress;
            let waited = tokio::select! {
                waited = self.shared.coordinator.wait_until(said.id, left, changed) => waited,
                () = self.shared.closing.cancelled() => return None,
            };
            match waited {
                Ok(Some(request)) if request.progress != said.progress => return Some(request),
                Ok(Some(_)) => {}
                Ok(None) => return None,
                // A store that is away for a while is waited for.
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }
}
