//! Approvals: a person or a program says, with a signature of its own, that an intent may be signed.

use serde::{Deserialize, Serialize};

use crate::ed25519::{Forged, Signature, SigningKey, VerifyingKey};
use crate::intent::{Intent, hash_fields};

/// How many approvals a request may have.
pub const MAX_APPROVALS: usize = 32;

/// An approver's word for one intent, and for no other. It does not wear out: whoever approves what shall
/// not be signed for ever gives the intent a `not_after`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Who approves.
    pub approver: VerifyingKey,
    /// The approver's signature over the intent's hash.
    pub signature: Signature,
}

impl Approval {
    /// Approves an intent.
    pub fn make(key: &SigningKey, intent: &Intent) -> Self {
        Self { approver: key.verifying_key(), signature: key.sign(&signed_hash(intent)) }
    }

    /// That the approver approved this intent.
    ///
    /// # Errors
    /// [`Forged`].
    pub fn verify(&self, intent: &Intent) -> Result<(), Forged> {
        self.approver.verify(&signed_hash(intent), &self.signature)
    }
}

/// What an approver signs: with a domain of its own, so that no other signature is an approval.
fn signed_hash(intent: &Intent) -> [u8; 32] {
    hash_fields("tss.network/approval/v1", &[&intent.hash()])
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::intent::HashAlgorithm;

    fn intent() -> Intent {
        Intent {
            cluster: "c".into(),
            key: "k".into(),
            path: "0/1".parse().unwrap(),
            hash: HashAlgorithm::Sha256,
            digest: [1; 32],
            not_after: None,
        }
    }

    #[test]
    fn an_approval_holds_for_its_intent_alone() {
        let (key, intent) = (SigningKey::generate(), intent());
        let approval = Approval::make(&key, &intent);
        assert_eq!(approval.verify(&intent), Ok(()));
        for other in [
            Intent { cluster: "d".into(), ..intent.clone() },
            Intent { key: "l".into(), ..intent.clone() },
            Intent { path: "0/2".parse().unwrap(), ..intent.clone() },
            Intent { hash: HashAlgorithm::None, ..intent.clone() },
            Intent { digest: [2; 32], ..intent.clone() },
            Intent { not_after: Some(Timestamp::UNIX_EPOCH), ..intent.clone() },
        ] {
            assert_eq!(approval.verify(&other), Err(Forged), "{other:?}");
        }
        let other = Approval { approver: SigningKey::generate().verifying_key(), ..approval };
        assert_eq!(other.verify(&intent), Err(Forged));
    }

    #[test]
    fn a_signature_of_another_domain_is_no_approval() {
        let (key, intent) = (SigningKey::generate(), intent());
        let signature = key.sign(&intent.hash());
        assert_eq!(Approval { approver: key.verifying_key(), signature }.verify(&intent), Err(Forged));
    }

    #[test]
    fn an_approval_is_one_line_of_json_that_is_read_back() {
        let approval = Approval::make(&SigningKey::generate(), &intent());
        let line = serde_json::to_string(&approval).unwrap();
        assert_eq!(
            line,
            format!(r#"{{"approver":"{}","signature":"{}"}}"#, approval.approver, approval.signature)
        );
        assert_eq!(serde_json::from_str::<Approval>(&line).unwrap(), approval);
        for (text, part) in [
            (line.replace("signature", "sig"), "sig"),
            (line.replace(&approval.signature.to_string(), "00"), "expected 128 hex digits"),
            (line.replace(&approval.approver.to_string(), "xyz"), "expected 64 hex digits"),
        ] {
            let error = serde_json::from_str::<Approval>(&text).unwrap_err().to_string();
            assert!(error.contains(part), "`{part}` is missing in: {error}");
        }
    }
}
