//! What the status says then, and when to look again.
//!
//! | | `Accepted` | `Complete` | `Failed` |
//! |---|---|---|---|
//! | no manager has it | False | | |
//! | a manager may have it | Unknown | Unknown once the manager does not say | |
//! | a manager has it | True | False; Unknown while the manager does not say | |
//! | it is signed | True | True | |
//! | it never will be | as before | False | True |

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use serde_json::json;
use tss_common::backoff::Backoff;

use super::Error;
use super::apply::Outcome;
use super::cause::{self, Cause, shortened};
use super::manager::Attempts;
use super::validate::{Request, Stage, finished_at};
use crate::condition::{self, Verdict};
use crate::context::FIELD_MANAGER;
use crate::crd::{Phase, SigningRequest, SigningRequestStatus};

/// The longest note of an Event, in bytes.
const MAX_NOTE: usize = 1024;
/// The shortest and the longest time after which what waits is looked at again.
const SOON: SignedDuration = SignedDuration::from_millis(250);
const LATE: SignedDuration = SignedDuration::from_secs(15);

/// What the status says before a request is sent for the first time.
pub fn submitting(object: &SigningRequest, now: Timestamp) -> SigningRequestStatus {
    let mut status = object.status.clone().unwrap_or_default();
    let message = "it is being sent to the manager";
    set(&mut status, object, "Accepted", Verdict::unknown(cause::SUBMITTING, message), now);
    status.phase = Some(Phase::Pending);
    status
}

/// What the status says after an outcome.
pub fn status(
    object: &SigningRequest,
    stage: &Stage,
    outcome: &Outcome,
    now: Timestamp,
) -> SigningRequestStatus {
    let mut status = object.status.clone().unwrap_or_default();
    match outcome {
        Outcome::Left | Outcome::LeftUntil(_) => {}
        Outcome::Waits(Cause { reason, message }) => {
            set(&mut status, object, "Accepted", Verdict::no(reason, message), now);
            status.phase = Some(Phase::Pending);
        }
        Outcome::Unsure(cause) => unsure(&mut status, object, stage, cause, now),
        Outcome::Taken(id) => {
            let message = format!("the manager has taken it as request {id}");
            set(&mut status, object, "Accepted", Verdict::yes(cause::TAKEN, message), now);
            set(&mut status, object, "Complete", signing(), now);
            status.phase = Some(Phase::Accepted);
            status.request_id = Some(id.to_string());
            status.accepted_at = Some(Time(now));
        }
        Outcome::Signing { attempts, .. } => {
            set(&mut status, object, "Complete", signing(), now);
            tried(&mut status, attempts);
        }
        Outcome::Signed { signature, attempts } => {
            let message = format!("signed by the key at path {}", signature.path);
            set(&mut status, object, "Complete", Verdict::yes(cause::SIGNED, message), now);
            tried(&mut status, attempts);
            status.phase = Some(Phase::Complete);
            status.signature = Some((**signature).clone());
            status.finished_at = Some(Time(now));
        }
        Outcome::Failed { cause, attempts } => {
            if let Some(attempts) = attempts {
                tried(&mut status, attempts);
            }
            fail(&mut status, object, cause, now);
        }
    }
    status
}

/// The manager does not say what became of a request that it has, or may have. The operator never says of its own
/// that such a request failed, as long as the manager may still complete it: only when the manager has not said
/// anything for longer than any request can take, the result counts as unknown.
fn unsure(
    status: &mut SigningRequestStatus,
    object: &SigningRequest,
    stage: &Stage,
    Cause { reason, message }: &Cause,
    now: Timestamp,
) {
    if status.request_id.is_none() {
        set(status, object, "Accepted", Verdict::unknown(reason, message), now);
        status.phase = Some(Phase::Pending);
    }
    set(status, object, "Complete", Verdict::unknown(reason, message), now);
    let Stage::Open(request) = stage else { return };
    if now < gives_up_at(status, request, now) {
        return;
    }
    let text = match &status.request_id {
        Some(id) => format!(
            "the manager has taken it and does not say what became of it: it may have been signed. The manager can \
             still be asked: GET /signature/{id}. The last try: {reason}: {message}"
        ),
        None => format!(
            "it was sent to the manager, and no answer came: it may have been signed. The manager knows it, if at \
             all, by the idempotency key {}. The last try: {reason}: {message}",
            request.key
        ),
    };
    fail(status, object, &Cause::new(cause::RESULT_UNKNOWN, text), now);
}

/// When the result counts as unknown: long enough after the deadline, and after the manager last said something. The
/// latter counts for an operator that was away itself.
fn gives_up_at(status: &SigningRequestStatus, request: &Request, now: Timestamp) -> Timestamp {
    let since = since_unknown(status).unwrap_or(now);
    request.deadline.max(since).saturating_add(request.grace).unwrap_or(Timestamp::MAX)
}

/// Since when the manager does not say what became of a request.
fn since_unknown(status: &SigningRequestStatus) -> Option<Timestamp> {
    let complete = find(status, "Complete").filter(|condition| condition.status == "Unknown");
    complete.map(|condition| condition.last_transition_time.0)
}

fn fail(
    status: &mut SigningRequestStatus,
    object: &SigningRequest,
    Cause { reason, message }: &Cause,
    now: Timestamp,
) {
    if find(status, "Accepted").is_none() {
        set(status, object, "Accepted", Verdict::no(reason, "no manager was asked"), now);
    }
    set(status, object, "Complete", Verdict::no(reason, "it was not signed: see the condition Failed"), now);
    set(status, object, "Failed", Verdict::yes(reason, message), now);
    status.phase = Some(Phase::Failed);
    status.finished_at = Some(Time(now));
}

fn signing() -> Verdict {
    Verdict::no(cause::SIGNING, "the signers are at it")
}

fn tried(status: &mut SigningRequestStatus, Attempts { attempts, quorum, .. }: &Attempts) {
    status.attempts = Some((*attempts).into());
    if let Some(quorum) = quorum {
        status.quorum = quorum.iter().take(MAX_QUORUM).map(|&signer| signer.into()).collect();
    }
}

/// The most signers that there can be.
const MAX_QUORUM: usize = 16;

fn find<'a>(status: &'a SigningRequestStatus, kind: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == kind)
}

fn set(
    status: &mut SigningRequestStatus,
    object: &SigningRequest,
    kind: &str,
    verdict: Verdict,
    now: Timestamp,
) {
    condition::set(&mut status.conditions, kind, verdict, object.metadata.generation, now);
}

/// Writes a status, if it is another than the object's; yields the object with it. Says which object it is meant for,
/// so that what has changed meanwhile is never overwritten.
///
/// # Errors
/// When the API server does not take it; a conflict when the object is another by now.
pub async fn write(
    api: &Api<SigningRequest>,
    object: SigningRequest,
    status: SigningRequestStatus,
) -> Result<SigningRequest, Error> {
    if object.status.as_ref() == Some(&status) || (object.status.is_none() && status == Default::default()) {
        return Ok(object);
    }
    let metadata = &object.metadata;
    let patch = json!({
        "metadata": { "uid": metadata.uid, "resourceVersion": metadata.resource_version },
        "status": status,
    });
    let options = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let name = metadata.name.as_deref().unwrap_or_default();
    Ok(api.patch_status(name, &options, &Patch::Merge(patch)).await?)
}

/// What is told of a request that has just ended.
pub fn event(status: &SigningRequestStatus) -> Option<Event> {
    finished_at(status)?;
    let told = |type_, condition: &Condition| Event {
        type_,
        reason: condition.reason.clone(),
        note: Some(shortened(condition.message.clone(), MAX_NOTE)),
        action: "Sign".into(),
        secondary: None,
    };
    let is_true = |kind| find(status, kind).filter(|condition| condition.status == "True");
    is_true("Failed")
        .map(|failed| told(EventType::Warning, failed))
        .or_else(|| is_true("Complete").map(|complete| told(EventType::Normal, complete)))
}

/// When to look again. A change of the object, or of its cluster, is looked at in any case.
pub fn next(
    object: &SigningRequest,
    stage: &Stage,
    outcome: &Outcome,
    status: &SigningRequestStatus,
    now: Timestamp,
) -> Action {
    if let Some(finished) = finished_at(status) {
        return match (outcome, object.spec.ttl_seconds_after_finished) {
            (Outcome::LeftUntil(time), _) => Action::requeue(until(*time, now)),
            (Outcome::Left, _) | (_, None) => Action::await_change(),
            (_, Some(seconds)) => {
                let deletion = finished.saturating_add(SignedDuration::from_secs(seconds.into()));
                Action::requeue(until(deletion.unwrap_or(Timestamp::MAX), now))
            }
        };
    }
    let Stage::Open(request) = stage else { return Action::await_change() };
    match outcome {
        Outcome::Taken(_) | Outcome::Signing { waited: true, .. } => Action::requeue(Duration::ZERO),
        Outcome::Unsure(_) => {
            let since = since_unknown(status).unwrap_or(now);
            Action::requeue(pause(since, gives_up_at(status, request, now), now))
        }
        Outcome::Waits(_) | Outcome::Signing { .. } => {
            Action::requeue(pause(request.created, request.deadline, now))
        }
        Outcome::Left | Outcome::LeftUntil(_) | Outcome::Signed { .. } | Outcome::Failed { .. } => {
            Action::await_change()
        }
    }
}

/// How long to wait before looking again at what has waited since then: the longer, the longer it has. Grows as fast
/// as by doubling, and needs no memory but the object. Never beyond the time at which it changes by itself.
fn pause(since: Timestamp, end: Timestamp, now: Timestamp) -> Duration {
    let waited = now.duration_since(since);
    let bound = Duration::try_from((waited / 4).clamp(SOON, LATE)).unwrap_or_default();
    let pause = Backoff::new(bound, bound).delay();
    if end > now { pause.min(until(end, now)) } else { pause }
}

fn until(time: Timestamp, now: Timestamp) -> Duration {
    // A moment later: times in a status are in whole seconds.
    Duration::try_from(time.duration_since(now)).unwrap_or_default().saturating_add(Duration::from_millis(10))
}
