//! Ed25519 (RFC 8032) as signers and approvers use it: over a 32-byte hash with a domain in it
//! ([`crate::intent::hash_fields`]), never over bytes that somebody else chose.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A private key. Zeroized when dropped, and its `Debug` shows nothing of it.
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

/// A public key: 32 bytes, 64 hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VerifyingKey([u8; 32]);

/// A signature: 64 bytes, 128 hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signature([u8; 64]);

/// A signature that the key did not make over this hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not one of this key over this content")]
pub struct Forged;

impl SigningKey {
    /// A fresh key, from the system's generator.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rand::fill(&mut *seed);
        Self::from_seed(seed)
    }

    /// The key of a seed (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: Zeroizing<[u8; 32]>) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).expect("every 32 bytes are a seed");
        Self { seed, pair }
    }

    /// The seed, to be stored. Secret.
    pub fn seed(&self) -> &Zeroizing<[u8; 32]> {
        &self.seed
    }

    /// The public key.
    pub fn verifying_key(&self) -> VerifyingKey {
        let bytes = self.pair.public_key().as_ref().try_into();
        VerifyingKey(bytes.expect("a public key has 32 bytes"))
    }

    /// Signs a hash.
    pub fn sign(&self, hash: &[u8; 32]) -> Signature {
        let bytes = self.pair.sign(hash).as_ref().try_into();
        Signature(bytes.expect("a signature has 64 bytes"))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.verifying_key())
    }
}

impl VerifyingKey {
    /// Checks a signature over a hash.
    ///
    /// # Errors
    /// [`Forged`].
    pub fn verify(&self, hash: &[u8; 32], signature: &Signature) -> Result<(), Forged> {
        UnparsedPublicKey::new(&ED25519, self.0).verify(hash, &signature.0).map_err(|_| Forged)
    }

    /// The key as bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Signature {
    /// The signature as bytes.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }

    /// R and S, as RFC 8032 calls them.
    pub fn halves(&self) -> [[u8; 32]; 2] {
        std::array::from_fn(|half| std::array::from_fn(|byte| self.0[32 * half + byte]))
    }
}

impl From<[[u8; 32]; 2]> for Signature {
    fn from(halves: [[u8; 32]; 2]) -> Self {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(halves.as_flattened());
        Self(bytes)
    }
}

/// Text of fixed-length bytes, in hex.
macro_rules! hex_text {
    ($type:ident, $length:literal, $what:literal) => {
        impl FromStr for $type {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                let mut bytes = [0; $length];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|error| format!("{}: expected {} hex digits: {error}", $what, 2 * $length))?;
                Ok(Self(bytes))
            }
        }

        impl TryFrom<String> for $type {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hex_text!(VerifyingKey, 32, "an Ed25519 public key");
hex_text!(Signature, 64, "an Ed25519 signature");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_rfc_8032() {
        // Section 7.1, test 1.
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(seed, &mut *bytes).unwrap();
        let key = SigningKey::from_seed(bytes);
        assert_eq!(
            key.verifying_key().to_string(),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert!(!format!("{key:?}").contains(seed));
    }

    #[test]
    fn a_signature_holds_for_its_key_and_hash_alone() {
        let (key, other) = (SigningKey::generate(), SigningKey::generate());
        let signature = key.sign(&[1; 32]);
        assert_eq!(key.verifying_key().verify(&[1; 32], &signature), Ok(()));
        assert_eq!(key.verifying_key().verify(&[2; 32], &signature), Err(Forged));
        assert_eq!(other.verifying_key().verify(&[1; 32], &signature), Err(Forged));
        for bit in 0..512 {
            let mut bytes = *signature.as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.verifying_key().verify(&[1; 32], &Signature(bytes)), Err(Forged), "bit {bit}");
        }
    }

    #[test]
    fn text_of_another_length_is_refused_with_what_was_expected() {
        let key = SigningKey::generate().verifying_key();
        assert_eq!(key.to_string().parse(), Ok(key));
        let error = "00ff".parse::<VerifyingKey>().unwrap_err();
        assert!(error.contains("64 hex digits"), "{error}");
    }
}
