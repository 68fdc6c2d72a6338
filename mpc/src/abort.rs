//! Why a protocol ended early, and by whose fault.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::SignerIndex;

/// The end of a session without an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{blame}: {reason}")]
pub struct Abort {
    /// Who caused it, as far as this party can prove.
    pub blame: Blame,
    /// What happened, for a person. Holds nothing secret.
    pub reason: String,
}

/// Whose fault an abort is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// These parties did not answer in time. No proof of anything: try another quorum.
    Timeout {
        /// Whose messages are missing.
        missing: BTreeSet<SignerIndex>,
    },
    /// These parties sent something that no honest party sends.
    Cheating {
        /// Who sent it.
        culprits: BTreeSet<SignerIndex>,
        /// The check that failed guards reusable secret state: never again sign or refresh with
        /// them. (The failed check leaks a bit of the correlated oblivious transfers, see DKLs23,
        /// <https://eprint.iacr.org/2023/765>, section 5.)
        ban: bool,
    },
    /// Somebody among these cheated, but the protocol does not tell who.
    Unattributed {
        /// Everybody it could have been.
        suspects: BTreeSet<SignerIndex>,
    },
    /// This party itself is at fault: its state is damaged or it was driven wrongly.
    Local,
}

impl Abort {
    /// These parties have not answered.
    pub fn timeout(missing: BTreeSet<SignerIndex>) -> Self {
        let reason = format!("no message from {}", list(&missing));
        Self { blame: Blame::Timeout { missing }, reason }
    }

    /// This party sent what no honest party sends, and nothing reusable leaked by it.
    pub fn cheating(culprit: SignerIndex, reason: impl Into<String>) -> Self {
        Self { blame: Blame::Cheating { culprits: [culprit].into(), ban: false }, reason: reason.into() }
    }

    /// This party cheated and must never be signed with again.
    pub fn ban(culprit: SignerIndex, reason: impl Into<String>) -> Self {
        Self { blame: Blame::Cheating { culprits: [culprit].into(), ban: true }, reason: reason.into() }
    }

    /// One of `suspects` cheated. With a single suspect that is proof against it.
    pub fn unattributed(suspects: BTreeSet<SignerIndex>, reason: impl Into<String>) -> Self {
        let blame = if suspects.len() == 1 {
            Blame::Cheating { culprits: suspects, ban: false }
        } else {
            Blame::Unattributed { suspects }
        };
        Self { blame, reason: reason.into() }
    }

    /// This party's own fault.
    pub fn local(reason: impl Into<String>) -> Self {
        Self { blame: Blame::Local, reason: reason.into() }
    }

    /// Whom the abort proves to have cheated.
    pub fn culprits(&self) -> BTreeSet<SignerIndex> {
        match &self.blame {
            Blame::Cheating { culprits, .. } => culprits.clone(),
            _ => BTreeSet::new(),
        }
    }

    /// Whom this party must never sign or refresh with again.
    pub fn banned(&self) -> BTreeSet<SignerIndex> {
        match &self.blame {
            Blame::Cheating { culprits, ban: true } => culprits.clone(),
            _ => BTreeSet::new(),
        }
    }
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { missing } => write!(f, "timeout waiting for {}", list(missing)),
            Self::Cheating { culprits, .. } => write!(f, "{} cheated", list(culprits)),
            Self::Unattributed { suspects } => write!(f, "one of {} cheated", list(suspects)),
            Self::Local => f.write_str("fault of this signer"),
        }
    }
}

/// Several signers, for a person.
pub(crate) fn list(signers: &BTreeSet<SignerIndex>) -> String {
    let names: Vec<String> = signers.iter().map(|index| index.to_string()).collect();
    match names.as_slice() {
        [one] => format!("signer {one}"),
        _ => format!("signers {}", names.join(", ")),
    }
}
