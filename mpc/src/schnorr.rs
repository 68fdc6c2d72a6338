//! Schnorr signatures over secp256k1 (BIP-340).

use std::fmt;

use k256::schnorr;

use crate::PublicKey;
use crate::signature::InvalidSignature;

/// A Schnorr signature of BIP-340: the x-coordinate of R, then s, big-endian.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SchnorrSignature([u8; 64]);

impl SchnorrSignature {
    /// The signature with these bytes; whether it stands is for [`SchnorrSignature::verify`].
    pub fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The x-coordinate of R, then s.
    pub fn to_bytes(&self) -> [u8; 64] {
        self.0
    }

    /// Checks that `key` made this signature of the message. BIP-340 knows the x-coordinate of a key alone: a key and its
    /// negative verify the same signatures.
    ///
    /// # Errors
    /// [`InvalidSignature::Range`] when R or s is out of range, [`InvalidSignature::Mismatch`] when it did not.
    pub fn verify(&self, key: &PublicKey, message: &[u8]) -> Result<(), InvalidSignature> {
        self.verify_x_only(&key.coordinates().0, message)
    }

    /// As [`SchnorrSignature::verify`], of a key of which only the x-coordinate is known.
    ///
    /// # Errors
    /// As there; [`InvalidSignature::Range`] also when no point has this x-coordinate.
    pub fn verify_x_only(&self, key: &[u8; 32], message: &[u8]) -> Result<(), InvalidSignature> {
        let key = schnorr::VerifyingKey::from_slice(key).map_err(|_| InvalidSignature::Range)?;
        let signature = schnorr::Signature::from_slice(&self.0).map_err(|_| InvalidSignature::Range)?;
        key.verify_raw(message, &signature).map_err(|_| InvalidSignature::Mismatch)
    }
}

impl fmt::Debug for SchnorrSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SchnorrSignature({})", hex::encode(self.0))
    }
}
