//! Why a request is where it is: one word for programs, a sentence for people.

/// Why a request is where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// In one word of CamelCase, which never changes.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
}

impl Cause {
    /// A cause whose message is not longer than a person reads.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: shortened(message.into(), MAX_MESSAGE) }
    }
}

/// The longest message, in bytes. Parts of it may come from a manager.
const MAX_MESSAGE: usize = 2048;

/// A text of at most so many bytes.
pub fn shortened(mut text: String, most: usize) -> String {
    const END: &str = "…";
    if text.len() > most {
        let room = most.saturating_sub(END.len());
        let end = text.char_indices().map(|(at, _)| at).take_while(|&at| at <= room).last();
        text.truncate(end.unwrap_or_default());
        text.push_str(END);
    }
    text
}

// What a request waits for that no manager has.
/// There is no such TssCluster.
pub const CLUSTER_NOT_FOUND: &str = "ClusterNotFound";
/// The TssCluster does not sign yet.
pub const CLUSTER_NOT_READY: &str = "ClusterNotReady";
/// No connection to the manager.
pub const MANAGER_UNREACHABLE: &str = "ManagerUnreachable";
/// The manager has too much to do.
pub const MANAGER_OVERLOADED: &str = "ManagerOverloaded";
/// The manager answers, but lets nobody ask.
pub const MANAGER_REFUSES: &str = "ManagerRefuses";

// What a request waits for that a manager may have.
/// It is being sent.
pub const SUBMITTING: &str = "Submitting";
/// No answer, or none that can be understood.
pub const NO_ANSWER: &str = "NoAnswer";
/// The manager's store or bus is away.
pub const MANAGER_UNAVAILABLE: &str = "ManagerUnavailable";
/// The manager does not know the request that it has taken.
pub const REQUEST_UNKNOWN: &str = "RequestUnknown";
/// The manager's answer is about something else.
pub const WRONG_ANSWER: &str = "WrongAnswer";

// How a request is on its way, and ends well.
/// A manager has it.
pub const TAKEN: &str = "Accepted";
/// The signers are at it.
pub const SIGNING: &str = "Signing";
/// It is signed.
pub const SIGNED: &str = "Signed";

// How a request ends without a signature.
/// What it asks for can never be signed.
pub const INVALID_REQUEST: &str = "InvalidRequest";
/// No manager took it in time.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
/// The signers' policies forbid it.
pub const POLICY_REFUSED: &str = "PolicyRefused";
/// The signers did not sign it in time.
pub const TIMED_OUT: &str = "TimedOut";
/// The signers did not sign it.
pub const SIGNING_FAILED: &str = "SigningFailed";
/// It cannot be found out whether it was signed.
pub const RESULT_UNKNOWN: &str = "ResultUnknown";
