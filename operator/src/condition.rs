//! Conditions of a status, of the standard shape.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The longest message of a condition, in characters, as Kubernetes allows it.
const MAX_MESSAGE: usize = 32_768;

/// What a condition says now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds; `None` when that is not known.
    pub holds: Option<bool>,
    /// Why, in one word of CamelCase that never changes.
    pub reason: &'static str,
    /// What a person reads: what is so, and what to do about it.
    pub message: String,
}

impl Verdict {
    /// It holds.
    pub fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: Some(true), reason, message: message.into() }
    }

    /// It does not hold.
    pub fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: Some(false), reason, message: message.into() }
    }

    /// It is not known whether it holds.
    pub fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self { holds: None, reason, message: message.into() }
    }
}

/// Whether the condition of this type is True.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Sets a condition. The time of its last transition changes only with its status.
pub fn set(
    conditions: &mut Vec<Condition>,
    kind: &str,
    verdict: Verdict,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = match verdict.holds {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let mut message = verdict.message;
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
        message.truncate(end);
    }
    let before = conditions.iter().position(|condition| condition.type_ == kind);
    let since = before
        .and_then(|at| conditions.get(at))
        .filter(|condition| condition.status == status)
        .map_or(Time(now), |condition| condition.last_transition_time.clone());
    let condition = Condition {
        type_: kind.into(),
        status: status.into(),
        reason: verdict.reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    };
    match before.and_then(|at| conditions.get_mut(at)) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}
