//! ECDSA signatures over secp256k1 and their encodings, and what the signatures of all schemes have in common.

use std::fmt;

use k256::ecdsa::{self, RecoveryId, VerifyingKey, signature::hazmat::PrehashVerifier};
use serde::{Deserialize, Serialize};

use crate::{AnyKey, Ed25519Signature, Payload, PublicKey, Scheme, SchnorrSignature};

/// An ECDSA signature with a low s (BIP-62, EIP-2) and its recovery id.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// r, big-endian.
    #[serde(with = "hex::serde")]
    pub r: [u8; 32],
    /// s, big-endian, at most half the group order.
    #[serde(with = "hex::serde")]
    pub s: [u8; 32],
    /// Which of the possible public keys made it: 0 or 1 (2 or 3 when r overflowed, a chance of
    /// 2⁻¹²⁷).
    pub recid: u8,
}

/// Why a signature does not stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSignature {
    /// The encoding is malformed, or r or s is zero or not below the group order.
    #[error("malformed, or r or s is out of range")]
    Range,
    /// s is above half the group order; the same signature with n − s would be accepted.
    #[error("s is high: expected the low form (BIP-62)")]
    HighS,
    /// It was not made by this key over this digest or message.
    #[error("the signature does not fit the key and the digest")]
    Mismatch,
    /// It is for another scheme than the key, or than what was to be signed.
    #[error("the signature is for {found}, and the key or what was to be signed is not")]
    Scheme {
        /// What it is for.
        found: Scheme,
    },
    /// It fits, but its recovery id leads to another key.
    #[error("the recovery id leads to another public key")]
    RecoveryId,
}

impl Signature {
    /// The compact encoding: r, s.
    pub fn to_compact(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.r);
        bytes[32..].copy_from_slice(&self.s);
        bytes
    }

    /// The DER encoding.
    ///
    /// # Errors
    /// [`InvalidSignature::Range`] when r or s is out of range.
    pub fn to_der(&self) -> Result<Vec<u8>, InvalidSignature> {
        Ok(self.as_k256()?.to_der().as_bytes().to_vec())
    }

    fn as_k256(&self) -> Result<ecdsa::Signature, InvalidSignature> {
        ecdsa::Signature::from_slice(&self.to_compact()).map_err(|_| InvalidSignature::Range)
    }

    /// Reads a signature that comes without its recovery id, compact (64 bytes) or in DER, and checks
    /// it as [`Signature::verify`] does.
    ///
    /// # Errors
    /// [`InvalidSignature`] naming the check that failed.
    pub fn from_encoding(bytes: &[u8], key: &PublicKey, digest: &[u8; 32]) -> Result<Self, InvalidSignature> {
        // DER of small numbers can have 64 bytes, too; numbers that look like DER do not come about.
        let parsed = ecdsa::Signature::from_der(bytes).or_else(|_| ecdsa::Signature::from_slice(bytes));
        let (r, s) = parsed.map_err(|_| InvalidSignature::Range)?.split_bytes();
        let mut signature = Self { r: r.into(), s: s.into(), recid: 0 };
        let mut result = signature.verify(key, digest);
        while result == Err(InvalidSignature::RecoveryId) && signature.recid < 3 {
            signature.recid += 1;
            result = signature.verify(key, digest);
        }
        result.map(|()| signature)
    }

    /// Checks a signature in any of its encodings as [`Signature::verify`] does: compact (64 bytes), compact with its
    /// recovery id or v (27 + recovery id) behind it (65 bytes), or DER.
    ///
    /// # Errors
    /// [`InvalidSignature`] naming the check that failed.
    pub fn check_encoding(bytes: &[u8], key: &PublicKey, digest: &[u8; 32]) -> Result<(), InvalidSignature> {
        let (encoded, recid) = match bytes {
            [compact @ .., last] if compact.len() == 64 && ecdsa::Signature::from_der(bytes).is_err() => {
                (compact, Some(last.checked_sub(27).unwrap_or(*last)))
            }
            _ => (bytes, None),
        };
        let found = Self::from_encoding(encoded, key, digest)?;
        if recid.is_none_or(|recid| recid == found.recid) {
            Ok(())
        } else {
            Err(InvalidSignature::RecoveryId)
        }
    }

    /// Checks that `key` made this signature over `digest`, that s is low, and that the recovery id
    /// leads back to `key`.
    ///
    /// # Errors
    /// [`InvalidSignature`] naming the check that failed.
    pub fn verify(&self, key: &PublicKey, digest: &[u8; 32]) -> Result<(), InvalidSignature> {
        let signature = self.as_k256()?;
        if signature.normalize_s() != signature {
            return Err(InvalidSignature::HighS);
        }
        let verifying = VerifyingKey::from(key.as_k256());
        verifying.verify_prehash(digest, &signature).map_err(|_| InvalidSignature::Mismatch)?;
        let recovered = RecoveryId::from_byte(self.recid)
            .and_then(|id| VerifyingKey::recover_from_prehash(digest, &signature, id).ok());
        if recovered == Some(verifying) { Ok(()) } else { Err(InvalidSignature::RecoveryId) }
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}, {})", hex::encode(self.to_compact()), self.recid)
    }
}

/// A signature of any scheme, as an engine yields it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnySignature {
    /// ECDSA over secp256k1.
    Ecdsa(Signature),
    /// Schnorr over secp256k1 (BIP-340).
    Schnorr(SchnorrSignature),
    /// Ed25519.
    Ed25519(Ed25519Signature),
}

impl AnySignature {
    /// What it is for.
    pub fn scheme(&self) -> Scheme {
        match self {
            Self::Ecdsa(_) => Scheme::EcdsaSecp256k1,
            Self::Schnorr(_) => Scheme::SchnorrSecp256k1,
            Self::Ed25519(_) => Scheme::Ed25519,
        }
    }

    /// The ECDSA signature, for those who take no other.
    ///
    /// # Errors
    /// [`InvalidSignature::Scheme`] when it is of another scheme.
    pub fn ecdsa(self) -> Result<Signature, InvalidSignature> {
        match self {
            Self::Ecdsa(signature) => Ok(signature),
            _ => Err(InvalidSignature::Scheme { found: self.scheme() }),
        }
    }

    /// Checks that `key` made this signature of `payload`, as the scheme has it.
    ///
    /// # Errors
    /// [`InvalidSignature`] naming the check that failed.
    pub fn verify(&self, key: &AnyKey, payload: &Payload) -> Result<(), InvalidSignature> {
        match (self, key, payload) {
            (Self::Ecdsa(signature), AnyKey::Secp256k1(key), Payload::Digest(digest)) => {
                signature.verify(key, digest)
            }
            (Self::Schnorr(signature), AnyKey::Secp256k1(key), Payload::Digest(digest)) => {
                signature.verify(key, digest)
            }
            (Self::Ed25519(signature), AnyKey::Ed25519(key), Payload::Message(message)) => {
                signature.verify(key, message)
            }
            _ => Err(InvalidSignature::Scheme { found: self.scheme() }),
        }
    }
}
