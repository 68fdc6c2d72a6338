//! Ed25519 keys and signatures (RFC 8032).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use frost_core::{Field as _, Group as _};
use frost_ed25519::Ed25519Sha512;
use serde::{Deserialize, Serialize};

use crate::frost::group;
use crate::point::Point;
use crate::share::SecretShare;
use crate::signature::InvalidSignature;
use crate::{ShareError, SignerIndex};

type Group = frost_ed25519::Ed25519Group;

/// An Ed25519 public key, or one signer's public share: a point of the subgroup of prime order, other than the identity.
/// Equal keys have equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ed25519Key([u8; 32]);

/// Bytes that are no [`Ed25519Key`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 public key: expected 32 bytes that are a point of prime order")]
pub struct InvalidEd25519Key;

impl Ed25519Key {
    /// Reads the encoding of RFC 8032, section 5.1.2.
    ///
    /// # Errors
    /// [`InvalidEd25519Key`] when the bytes name no point of the curve, the identity, or a point outside the subgroup of
    /// prime order, as no honest key is.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, InvalidEd25519Key> {
        Group::deserialize(&bytes).map(|_| Self(bytes)).map_err(|_| InvalidEd25519Key)
    }

    /// The encoding of RFC 8032.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl Point for Ed25519Key {
    fn from_encoding(bytes: &[u8]) -> Option<Self> {
        Self::from_bytes(bytes.try_into().ok()?).ok()
    }

    fn to_encoding(&self) -> Vec<u8> {
        self.0.to_vec()
    }

    fn of_secret(secret: &SecretShare) -> Result<Option<Self>, ShareError> {
        let scalar = frost_ed25519::Ed25519ScalarField::deserialize(secret.as_bytes())
            .map_err(|_| ShareError::out_of_range())?;
        // The identity has no encoding here.
        Ok(Group::serialize(&(Group::generator() * scalar)).map(Self).ok())
    }

    fn at_zero(shares: &BTreeMap<SignerIndex, Self>) -> Option<Self> {
        group::at_zero::<Ed25519Sha512>(shares)
    }
}

impl fmt::Display for Ed25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Ed25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Ed25519Key {
    type Err = InvalidEd25519Key;
    fn from_str(text: &str) -> Result<Self, InvalidEd25519Key> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidEd25519Key)?;
        Self::from_bytes(bytes)
    }
}

/// As hex, in every format.
impl Serialize for Ed25519Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ed25519Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An Ed25519 signature: R and s as RFC 8032 encodes them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ed25519Signature([u8; 64]);

impl Ed25519Signature {
    /// The signature with these bytes; whether it stands is for [`Ed25519Signature::verify`].
    pub fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// R, then s.
    pub fn to_bytes(&self) -> [u8; 64] {
        self.0
    }

    /// Checks that `key` made this signature of the message, by the crate `ed25519-dalek` in its strict way: whatever
    /// passes here passes with every verifier.
    ///
    /// # Errors
    /// [`InvalidSignature::Mismatch`] when it did not.
    pub fn verify(&self, key: &Ed25519Key, message: &[u8]) -> Result<(), InvalidSignature> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&key.0).map_err(|_| InvalidSignature::Mismatch)?;
        let signature = ed25519_dalek::Signature::from_bytes(&self.0);
        key.verify_strict(message, &signature).map_err(|_| InvalidSignature::Mismatch)
    }
}

impl fmt::Debug for Ed25519Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519Signature({})", hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_point_of_prime_order_is_no_key() {
        // RFC 8032, section 7.1, test 1.
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(key.parse::<Ed25519Key>().unwrap().to_string(), key);
        let mut identity = [0; 32];
        identity[0] = 1;
        // Of orders 1, 2 and 4, and y = 2, which is on no point.
        let mut of_order_2 = [0xff; 32];
        (of_order_2[0], of_order_2[31]) = (0xec, 0x7f);
        let mut off_the_curve = [0; 32];
        off_the_curve[0] = 2;
        for bytes in [identity, of_order_2, [0; 32], off_the_curve] {
            assert_eq!(Ed25519Key::from_bytes(bytes), Err(InvalidEd25519Key), "{bytes:?}");
        }
        for text in ["", "d75a", &key[1..], &format!("{key}00"), &key.replace('d', "x")] {
            assert_eq!(text.parse::<Ed25519Key>(), Err(InvalidEd25519Key), "{text}");
        }
    }
}
