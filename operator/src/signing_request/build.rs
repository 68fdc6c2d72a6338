//! What is to be done next. Looks at nothing but its input.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tss_common::intent::{Encoding, HashAlgorithm};
use uuid::Uuid;

use super::cause::{self, Cause};
use super::validate::{Progress, Request, Stage};
use crate::crd::{Approval, SigningRequestStatus};

/// How long a manager is asked to wait for a signature.
const WAIT: Duration = Duration::from_secs(10);

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan<'a> {
    /// Nothing, ever.
    Leave,
    /// Nothing before this time.
    LeaveUntil(Timestamp),
    /// Delete the object: it has ended long enough ago.
    Delete,
    /// Say that it will not be signed.
    Fail(Cause),
    /// Say what it waits for.
    Wait(Cause),
    /// Send it to the manager.
    Submit {
        /// The request.
        request: &'a Request,
        /// What is sent.
        body: SignBody,
        /// Whether it is the first time, as far as is known.
        first: bool,
    },
    /// Ask the manager what became of it.
    Ask {
        /// The request.
        request: &'a Request,
        /// The manager's id of it.
        id: Uuid,
        /// How long the manager may wait for the signature.
        wait: Duration,
    },
}

/// The body of `POST /sign`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SignBody {
    /// What is signed.
    pub message: String,
    /// How it is written.
    pub encoding: Encoding,
    /// How it becomes the digest.
    pub hash: HashAlgorithm,
    /// The path of the key that signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// When the signers stop signing it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// Who approved it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
}

/// What is to be done next.
pub fn build<'a>(stage: &'a Stage, status: &SigningRequestStatus, now: Timestamp) -> Plan<'a> {
    let request = match stage {
        Stage::Deleted | Stage::Finished(None) => return Plan::Leave,
        Stage::Finished(Some(at)) if *at > now => return Plan::LeaveUntil(*at),
        Stage::Finished(Some(_)) => return Plan::Delete,
        Stage::Impossible(cause) => return Plan::Fail(cause.clone()),
        Stage::Open(request) => request,
    };
    match request.progress {
        Progress::Taken(id) => Plan::Ask { request, id, wait: WAIT },
        Progress::Fresh if now >= request.deadline => Plan::Fail(too_late(request, status)),
        Progress::Fresh => match &request.ready {
            Err(cause) => Plan::Wait(cause.clone()),
            Ok(()) => Plan::Submit { request, body: body(request), first: true },
        },
        Progress::Perhaps if may_ask_again(request, now) => {
            Plan::Submit { request, body: body(request), first: false }
        }
        Progress::Perhaps => Plan::Fail(Cause::new(
            cause::RESULT_UNKNOWN,
            format!(
                "it was sent to the manager before its deadline {}, and no answer came. It is not sent again, since \
                 the manager could take it only now; it may have been signed. The manager knows it, if at all, by the \
                 idempotency key {}",
                request.deadline, request.key
            ),
        )),
    }
}

/// Whether a request that a manager may have can be sent to it again. Before the deadline it can, as the manager
/// takes one request for each key. After it, only when that can bring no more than an answer: when signers would not
/// sign it, and the manager would not take it, for the time is over until which it may be signed.
fn may_ask_again(request: &Request, now: Timestamp) -> bool {
    now < request.deadline || request.not_after.is_some_and(|time| now >= time)
}

fn too_late(request: &Request, status: &SigningRequestStatus) -> Cause {
    let waited = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Accepted")
        .map(|condition| (condition.reason.as_str(), condition.message.as_str()));
    let ready = request.ready.as_ref().err().map(|cause| (cause.reason, cause.message.as_str()));
    let text = match waited.or(ready) {
        Some((reason, message)) => {
            format!("it waited until its deadline {}: {reason}: {message}", request.deadline)
        }
        None => format!("its deadline {} had passed when the operator saw it", request.deadline),
    };
    Cause::new(cause::DEADLINE_EXCEEDED, text)
}

fn body(request: &Request) -> SignBody {
    SignBody {
        message: request.message.clone(),
        encoding: request.encoding,
        hash: request.hash,
        path: request.path.as_ref().map(ToString::to_string),
        not_after: request.not_after,
        approvals: request.approvals.clone(),
    }
}
