//! What can be told of a share without showing it, and the proof that whoever tells it has the share.
//!
//! An [`Attestation`] is made where a share is, for instance from a backup, and checked where none is. It is bound to all
//! that is said in it and to a challenge, so that it cannot be taken for one of another share, key, epoch or time.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dkls23::utilities::proofs::DLogProof;
use k256::Secp256k1;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::point::check_public_shares;
use crate::{Origin, PublicKey, Scheme, ShareDocument, ShareError, SignerIndex, Threshold, rounds};

/// The version of the attestation that this code writes and reads.
pub const VERSION: u32 = 1;

/// The longest challenge, in bytes.
pub const MAX_CHALLENGE: usize = 1024;

/// The longest proof that is read, in base64. One has about seven thousand characters.
const MAX_PROOF: usize = 16 << 10;

/// Begins what an attestation's proof is bound to.
const DOMAIN: &[u8] = b"tss share attestation v1";

/// What all shares of a key at an epoch have in common: nothing of it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFacts {
    /// The cluster the key belongs to.
    pub cluster: String,
    /// The key's id within the cluster.
    pub key: String,
    /// Its epoch.
    pub epoch: u64,
    /// What kind of key it is.
    pub scheme: Scheme,
    /// Where it came from.
    #[serde(default, skip_serializing_if = "Origin::is_generated")]
    pub origin: Origin,
    /// How many signers there are, and how many of them sign.
    pub threshold: Threshold,
    /// The root public key.
    pub public_key: PublicKey,
    /// The BIP-32 chain code of the root key.
    #[serde(with = "hex::serde")]
    pub chain_code: [u8; 32],
    /// Every signer's share times the generator.
    pub public_shares: BTreeMap<SignerIndex, PublicKey>,
}

/// In what two differ, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// In what.
    pub what: &'static str,
    /// What the one has.
    pub expected: String,
    /// What the other has instead.
    pub found: String,
}

impl KeyFacts {
    /// What a share says of its key, which is one over secp256k1.
    ///
    /// # Errors
    /// [`ShareError::Scheme`] when it is an Ed25519 key: there is no proof for its shares yet.
    pub fn of(share: &ShareDocument) -> Result<Self, ShareError> {
        let core = &share.core;
        let points = core.secp256k1()?;
        Ok(Self {
            cluster: share.cluster.clone(),
            key: share.key.clone(),
            epoch: share.epoch,
            scheme: share.scheme,
            origin: share.origin,
            threshold: core.threshold,
            public_key: points.public_key,
            chain_code: core.chain_code,
            public_shares: points.public_shares.clone(),
        })
    }

    /// Checks that the public shares and the public key belong together.
    ///
    /// # Errors
    /// [`ShareError::Inconsistent`] saying which do not.
    pub fn check(&self) -> Result<(), ShareError> {
        check_public_shares(self.threshold, &self.public_shares, &self.public_key)
    }

    /// The first thing in which another's facts differ from these.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let fields = self.fields().into_iter().zip(other.fields());
        let differ = fields.into_iter().find(|((_, one), (_, other))| one != other);
        differ.map(|((what, expected), (_, found))| Difference { what, expected, found })
    }

    /// Each by its name, as a text that no other value has.
    fn fields(&self) -> [(&'static str, String); 9] {
        // All of them, so that a new one is not forgotten.
        let Self { cluster, key, epoch, scheme, origin, threshold, public_key, chain_code, public_shares } =
            self;
        let shares: Vec<String> =
            public_shares.iter().map(|(index, share)| format!("{index}:{share}")).collect();
        [
            ("cluster", cluster.clone()),
            ("key", key.clone()),
            ("epoch", epoch.to_string()),
            ("scheme", scheme.to_string()),
            ("origin", origin.to_string()),
            ("threshold", threshold.to_string()),
            ("public key", public_key.to_string()),
            ("chain code", hex::encode(chain_code)),
            ("public shares", shares.join(", ")),
        ]
    }
}

/// What one signer's share is of, and the proof that whoever made this had it. Nothing in it is secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attestation {
    /// [`VERSION`]; by its name an attestation is told from other documents.
    attestation: u32,
    /// Whose share it is.
    pub signer: SignerIndex,
    /// What it is a share of.
    pub share_of: KeyFacts,
    /// What whoever asked for the attestation chose, so that it cannot be an old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
    /// The proof of knowledge of the share, base64.
    proof: String,
}

/// Why an attestation shows nothing, or there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestationError {
    /// It is not an attestation: truncated, another format, a value out of range.
    #[error("not an attestation: {0}")]
    Malformed(String),
    /// It has a version that this code does not read.
    #[error("the attestation has version {0}: expected {VERSION}")]
    Version(u32),
    /// The challenge is empty or too long.
    #[error("a challenge of {0} bytes: expected 1 to {MAX_CHALLENGE}")]
    ChallengeLength(usize),
    /// It was made for another challenge, or for none.
    #[error("it was made for {}: expected {}", told(.found.as_deref()), told(Some(.expected)))]
    Challenge {
        /// What it was made for.
        found: Option<String>,
        /// What was asked.
        expected: String,
    },
    /// What it says contradicts itself.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The proof does not show that the share was there.
    #[error("no proof that whoever made it has the share of signer {0}, of this key at this epoch")]
    Proof(SignerIndex),
    /// No proof was found, a chance of nearly 0.
    #[error("no proof was found for the share: try again")]
    NoProof,
}

/// A challenge as errors name it.
fn told(challenge: Option<&str>) -> String {
    challenge.map_or("no challenge".into(), |challenge| format!("the challenge {challenge:?}"))
}

impl Attestation {
    /// Attests a share.
    ///
    /// # Errors
    /// [`AttestationError`] when the challenge is too long, or the secret none.
    pub fn make(share: &ShareDocument, challenge: Option<String>) -> Result<Self, AttestationError> {
        check_length(challenge.as_deref())?;
        let mut attestation = Self {
            attestation: VERSION,
            signer: share.core.index,
            share_of: KeyFacts::of(share)?,
            challenge,
            proof: String::new(),
        };
        let secret = share.core.secret_share.to_scalar()?;
        let proof = DLogProof::<Secp256k1>::prove(&secret, &attestation.statement())
            .map_err(|_| AttestationError::NoProof)?;
        let proof = rounds::encode(&proof).map_err(|_| AttestationError::NoProof)?;
        attestation.proof = BASE64.encode(proof);
        Ok(attestation)
    }

    /// Checks that it is whole, and shows that whoever made it had the share. `challenge` is what was asked; without one,
    /// that it was made for another is no error, and it may be an old one.
    ///
    /// # Errors
    /// [`AttestationError`] saying what is wrong.
    pub fn check(&self, challenge: Option<&str>) -> Result<(), AttestationError> {
        check_length(self.challenge.as_deref())?;
        if let Some(expected) = challenge.filter(|&expected| self.challenge.as_deref() != Some(expected)) {
            let (found, expected) = (self.challenge.clone(), expected.to_owned());
            return Err(AttestationError::Challenge { found, expected });
        }
        self.share_of.check()?;
        let inconsistent = || {
            let reason = format!("signer {} of a {} key", self.signer, self.share_of.threshold);
            ShareError::Inconsistent(reason)
        };
        let share = self.share_of.public_shares.get(&self.signer).ok_or_else(inconsistent)?;
        let wrong = || AttestationError::Proof(self.signer);
        if self.proof.len() > MAX_PROOF {
            return Err(wrong());
        }
        let proof = BASE64.decode(&self.proof).map_err(|_| wrong())?;
        let proof: DLogProof<Secp256k1> = rounds::decode(&proof).ok_or_else(wrong)?;
        let proven = proof.point == *share.as_affine() && DLogProof::verify(&proof, &self.statement());
        if proven { Ok(()) } else { Err(wrong()) }
    }

    /// What the proof is bound to: a hash of all that is said, each preceded by its length.
    fn statement(&self) -> Vec<u8> {
        let fields = self.share_of.fields();
        let mut hash = Sha256::new_with_prefix(DOMAIN);
        let mut put = |field: &[u8]| {
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        };
        for (_, field) in &fields {
            put(field.as_bytes());
        }
        put(&[self.signer.get()]);
        // One that is not there is not one of no length.
        if let Some(challenge) = &self.challenge {
            put(challenge.as_bytes());
        }
        [DOMAIN, &hash.finalize()].concat()
    }

    /// Reads one. It is not checked yet.
    ///
    /// # Errors
    /// [`AttestationError`] when it is none.
    pub fn from_json(json: &[u8]) -> Result<Self, AttestationError> {
        /// Read first, so that a later version is told from a damaged file.
        #[derive(Deserialize)]
        struct Versioned {
            attestation: u32,
        }
        let malformed = |error: serde_json::Error| AttestationError::Malformed(error.to_string());
        let Versioned { attestation } = serde_json::from_slice(json).map_err(malformed)?;
        if attestation != VERSION {
            return Err(AttestationError::Version(attestation));
        }
        serde_json::from_slice(json).map_err(malformed)
    }
}

fn check_length(challenge: Option<&str>) -> Result<(), AttestationError> {
    match challenge.map(str::len) {
        Some(length) if length == 0 || length > MAX_CHALLENGE => {
            Err(AttestationError::ChallengeLength(length))
        }
        _ => Ok(()),
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, expected, found } = self;
        write!(f, "it is of {what} {found}: expected {expected}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use serde_json::{Value, json};
    use zeroize::Zeroizing;

    use super::*;
    use crate::dealer::PrivateKey;
    use crate::share::{self, EngineParts};

    /// The shares of a 2-of-3 key and of another.
    static KEYS: LazyLock<[Vec<ShareDocument>; 2]> = LazyLock::new(|| [1, 2].map(shares));

    fn shares(secret: u8) -> Vec<ShareDocument> {
        let key = PrivateKey::from_bytes(&Zeroizing::new([secret; 32])).unwrap();
        let shares = key.split(Threshold::new(2, 3).unwrap()).unwrap();
        let document = |share: crate::ForeignShare| ShareDocument {
            version: share::VERSION,
            cluster: "c".into(),
            key: "k".into(),
            epoch: 1,
            scheme: Scheme::EcdsaSecp256k1,
            origin: Origin::Generated,
            core: share.into_core([7; 32]),
            engines: EngineParts::default(),
        };
        shares.into_values().map(document).collect()
    }

    fn attest(challenge: Option<&str>) -> Attestation {
        Attestation::make(&KEYS[0][1], challenge.map(str::to_owned)).unwrap()
    }

    #[test]
    fn an_attestation_shows_that_the_share_was_there_and_nothing_of_it() {
        let share = &KEYS[0][1];
        let secret = serde_json::to_value(&share.core.secret_share).unwrap();
        for challenge in [None, Some("2030-01-02 drill")] {
            let made = attest(challenge);
            let text = serde_json::to_string(&made).unwrap();
            assert!(!text.contains(secret.as_str().unwrap()), "{text}");
            let read = Attestation::from_json(text.as_bytes()).unwrap();
            assert_eq!((read.signer.get(), &read.share_of), (2, &KeyFacts::of(share).unwrap()));
            read.check(None).unwrap();
            read.check(challenge).unwrap();
            let refused = read.check(Some("another")).unwrap_err().to_string();
            assert!(refused.ends_with("expected the challenge \"another\""), "{refused}");
            assert!(text.len() < 16 << 10, "{}", text.len());
        }
        for length in [0, MAX_CHALLENGE + 1] {
            let refused = Attestation::make(share, Some("x".repeat(length))).unwrap_err();
            assert_eq!(refused, AttestationError::ChallengeLength(length));
        }
    }

    #[test]
    fn whatever_is_altered_in_an_attestation_is_found_out() {
        let [one, other] = &*KEYS;
        let text = serde_json::to_value(attest(Some("x"))).unwrap();
        let point = |share: &ShareDocument| json!(share.core.points.public_shares()[&SignerIndex::MIN]);
        let alterations: [(&str, Value, &str); 12] = [
            ("/attestation", json!(2), "version 2: expected 1"),
            ("/signer", json!(1), "no proof that whoever made it has the share of signer 1"),
            ("/signer", json!(4), "signer 4 of a 2-of-3 key"),
            ("/share_of/cluster", json!("d"), "no proof"),
            ("/share_of/key", json!("d"), "no proof"),
            ("/share_of/epoch", json!(2), "no proof"),
            ("/share_of/chain_code", json!("00".repeat(32)), "no proof"),
            ("/share_of/threshold/threshold", json!(3), "give the public key"),
            ("/share_of/public_key", json!(other[0].core.public_key()), "do not give the public key"),
            ("/share_of/public_shares/1", point(&other[0]), "do not give the public key"),
            ("/challenge", json!("y"), "no proof"),
            ("/challenge", Value::Null, "no proof"),
        ];
        for (at, value, expected) in alterations {
            let mut altered = text.clone();
            *altered.pointer_mut(at).unwrap() = value;
            let altered = Attestation::from_json(altered.to_string().as_bytes());
            let refused = altered.and_then(|altered| altered.check(None)).unwrap_err().to_string();
            assert!(refused.contains(expected), "{at}: {refused}");
        }
        let mut imported = text.clone();
        imported["share_of"]["origin"] = json!("imported");
        let imported = Attestation::from_json(imported.to_string().as_bytes()).unwrap();
        assert!(matches!(imported.check(None), Err(AttestationError::Proof(_))));

        // A proof of another share, of the same share for another challenge, and none.
        let of_another = Attestation::make(&one[0], Some("x".into())).unwrap().proof;
        let mut bytes = BASE64.decode(attest(Some("x")).proof).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        for proof in [of_another, attest(Some("y")).proof, BASE64.encode(bytes), String::new(), "!".into()] {
            let mut altered = attest(Some("x"));
            altered.proof = proof;
            assert!(matches!(altered.check(None), Err(AttestationError::Proof(_))));
        }
        let mut long = attest(None);
        long.proof = "A".repeat(MAX_PROOF + 4);
        assert!(matches!(long.check(None), Err(AttestationError::Proof(_))));
        let refused = Attestation::from_json(b"{}").unwrap_err().to_string();
        assert!(refused.starts_with("not an attestation: missing field"), "{refused}");
    }

    #[test]
    fn what_two_shares_differ_in_is_named() {
        let [one, other] = &*KEYS;
        let facts = KeyFacts::of(&one[0]).unwrap();
        assert_eq!(facts.difference(&KeyFacts::of(&one[2]).unwrap()), None);
        let mut later = facts.clone();
        later.epoch = 2;
        let told = facts.difference(&later).unwrap().to_string();
        assert_eq!(told, "it is of epoch 2: expected 1");
        let told = facts.difference(&KeyFacts::of(&other[0]).unwrap()).unwrap();
        assert_eq!((told.what, told.expected), ("public key", facts.public_key.to_string()));
    }
}
