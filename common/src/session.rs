//! Session ids, and the nonces that make them unrepeatable.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use tss_mpc::{EngineId, Quorum, SessionId, SignerIndex};
use uuid::Uuid;

use crate::intent::hash_fields;

/// 32 fresh random bytes that one party adds to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nonce(pub [u8; 32]);

impl Nonce {
    /// A fresh one, from the operating system's generator by way of the thread's.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Making a key.
    Keygen,
    /// Taking over a key that was made elsewhere.
    Import,
    /// Giving a key new shares.
    Renew,
    /// Signing.
    Sign,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Keygen => "keygen",
            Self::Import => "import",
            Self::Renew => "renewal",
            Self::Sign => "sign",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything the parties of a session must agree on.
#[derive(Clone, Debug)]
pub struct SessionContext<'a> {
    /// What it is for.
    pub operation: Operation,
    /// The cluster.
    pub cluster: &'a str,
    /// The key's id.
    pub key: &'a str,
    /// The key's epoch.
    pub epoch: u64,
    /// The protocol.
    pub engine: EngineId,
    /// The request it serves.
    pub request: Uuid,
    /// Which attempt of the request it is.
    pub attempt: u32,
    /// Who takes part.
    pub quorum: &'a Quorum,
    /// The hash of what is signed.
    pub intent: [u8; 32],
}

impl SessionContext<'_> {
    /// A hash of the context alone: what stands in a join, while there is no session's id yet.
    pub fn hash(&self) -> SessionId {
        let quorum: Vec<u8> = self.quorum.iter().map(SignerIndex::get).collect();
        SessionId(hash_fields(
            "tss.network/context/v1",
            &[
                self.operation.as_str().as_bytes(),
                self.cluster.as_bytes(),
                self.key.as_bytes(),
                &self.epoch.to_be_bytes(),
                self.engine.as_str().as_bytes(),
                self.request.as_bytes(),
                &self.attempt.to_be_bytes(),
                &quorum,
                &self.intent,
            ],
        ))
    }

    /// The session's id: a hash over the context and every party's nonce, in order of index. As each
    /// party draws its own nonce anew, no session comes back, whatever the others do: not for a
    /// signer that was restored from an old snapshot, nor for one that runs twice.
    pub fn id(&self, nonces: &BTreeMap<SignerIndex, Nonce>) -> SessionId {
        let nonces: Vec<u8> =
            nonces.iter().flat_map(|(index, nonce)| [&[index.get()][..], &nonce.0].concat()).collect();
        SessionId(hash_fields("tss.network/session/v1", &[&self.hash().0, &nonces]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_context_and_every_nonce_changes_the_id() {
        let index = |i| SignerIndex::new(i).unwrap();
        let quorum = Quorum::new([index(1), index(2)]).unwrap();
        let other_quorum = Quorum::new([index(1), index(3)]).unwrap();
        let nonces = BTreeMap::from([(index(1), Nonce([1; 32])), (index(2), Nonce([2; 32]))]);
        let swapped = BTreeMap::from([(index(1), Nonce([2; 32])), (index(2), Nonce([1; 32]))]);
        let context = SessionContext {
            operation: Operation::Sign,
            cluster: "c",
            key: "k",
            epoch: 1,
            engine: EngineId::Dkls23,
            request: Uuid::nil(),
            attempt: 1,
            quorum: &quorum,
            intent: [0; 32],
        };
        let contexts = [
            context.clone(),
            SessionContext { operation: Operation::Keygen, ..context.clone() },
            SessionContext { operation: Operation::Import, ..context.clone() },
            SessionContext { operation: Operation::Renew, ..context.clone() },
            SessionContext { cluster: "ck", key: "", ..context.clone() },
            SessionContext { key: "l", ..context.clone() },
            SessionContext { epoch: 2, ..context.clone() },
            SessionContext { request: Uuid::max(), ..context.clone() },
            SessionContext { attempt: 2, ..context.clone() },
            SessionContext { quorum: &other_quorum, ..context.clone() },
            SessionContext { intent: [1; 32], ..context.clone() },
        ];
        let mut ids: Vec<[u8; 32]> = contexts.iter().map(|context| context.id(&nonces).0).collect();
        ids.push(context.id(&swapped).0);
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
        assert_eq!(context.id(&nonces), context.id(&nonces));
        let hashes: std::collections::BTreeSet<_> = contexts.iter().map(|context| context.hash().0).collect();
        assert_eq!(hashes.len(), contexts.len());
    }
}
