//! What a caller wants signed: hash algorithms, digests, and the intent that binds them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sha3::Keccak256;
use tss_mpc::DerivationPath;

use crate::config::Config;

/// How a message becomes the 32-byte digest that is signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HashAlgorithm {
    /// SHA-256 (FIPS 180-4).
    #[default]
    Sha256,
    /// SHA-256 twice, as Bitcoin hashes.
    Sha256d,
    /// Keccak-256 with the original padding, as Ethereum hashes.
    Keccak256,
    /// `personal_sign` of Ethereum (EIP-191, version 0x45): Keccak-256 of a prefix, the length in
    /// decimal, and the message.
    Eip191,
    /// The message is the digest: exactly 32 bytes.
    None,
}

/// A message of the wrong length for [`HashAlgorithm::None`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("with hash `none` the message is the digest itself: expected 32 bytes, got {0}")]
pub struct NotADigest(pub usize);

impl HashAlgorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Sha256, Self::Sha256d, Self::Keccak256, Self::Eip191, Self::None];

    /// The digest of `message`.
    ///
    /// # Errors
    /// [`NotADigest`] when the algorithm is `None` and the message has not 32 bytes.
    pub fn digest(self, message: &[u8]) -> Result<[u8; 32], NotADigest> {
        Ok(match self {
            Self::Sha256 => Sha256::digest(message).into(),
            Self::Sha256d => Sha256::digest(Sha256::digest(message)).into(),
            Self::Keccak256 => Keccak256::digest(message).into(),
            Self::Eip191 => Keccak256::new()
                .chain_update(b"\x19Ethereum Signed Message:\n")
                .chain_update(message.len().to_string())
                .chain_update(message)
                .finalize()
                .into(),
            Self::None => message.try_into().map_err(|_| NotADigest(message.len()))?,
        })
    }

    /// The name, as it stands in requests and policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha256d => "sha256d",
            Self::Keccak256 => "keccak256",
            Self::Eip191 => "eip191",
            Self::None => "none",
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HashAlgorithm {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name).ok_or_else(|| {
            format!("unknown hash `{name}`: expected sha256, sha256d, keccak256, eip191 or none")
        })
    }
}

/// How bytes are written as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The text's own UTF-8 bytes.
    #[default]
    Utf8,
    /// Hex digits, with or without `0x`.
    Hex,
    /// Standard base64 with padding.
    Base64,
}

impl Encoding {
    /// The bytes of a text.
    ///
    /// # Errors
    /// Saying what is wrong and what was expected.
    pub fn decode(self, text: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::Utf8 => Ok(text.as_bytes().to_vec()),
            Self::Hex => hex::decode(text.strip_prefix("0x").unwrap_or(text))
                .map_err(|error| format!("{error}: expected an even number of hex digits")),
            Self::Base64 => STANDARD
                .decode(text)
                .map_err(|error| format!("{error}: expected standard base64 with padding (RFC 4648)")),
        }
    }
}

impl FromStr for Encoding {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "utf8" => Ok(Self::Utf8),
            "hex" => Ok(Self::Hex),
            "base64" => Ok(Self::Base64),
            _ => Err(format!("unknown encoding `{name}`: expected utf8, hex or base64")),
        }
    }
}

/// What a caller wants signed, in the caller's words. Manager and approvers make the same intent of it.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The message, in `encoding`.
    pub message: String,
    /// How the message is written.
    pub encoding: Encoding,
    /// How it becomes the digest that is signed.
    pub hash: HashAlgorithm,
    /// Which key signs; the configured one where absent.
    pub key: Option<String>,
    /// Which derived key signs; the configured one where absent.
    pub path: Option<DerivationPath>,
    /// When the wish lapses.
    pub not_after: Option<Timestamp>,
}

impl Wish {
    /// The intent, and the message as bytes.
    ///
    /// # Errors
    /// Naming the field, what is wrong with it, and what was expected.
    pub fn read(self, config: &Config, now: Timestamp) -> Result<(Intent, Vec<u8>), String> {
        let (intent, message) = self.intent(config)?;
        intent.check_time(now)?;
        Ok((intent, message))
    }

    /// As [`Wish::read`], whether or not its time has passed: what was asked for stays the same.
    ///
    /// # Errors
    /// Naming the field, what is wrong with it, and what was expected.
    pub fn intent(self, config: &Config) -> Result<(Intent, Vec<u8>), String> {
        let message = self.encoding.decode(&self.message).map_err(|error| format!("`message`: {error}"))?;
        let digest = self.hash.digest(&message).map_err(|error| format!("`message`: {error}"))?;
        let intent = Intent {
            cluster: config.cluster.clone(),
            key: self.key.unwrap_or_else(|| config.key.clone()),
            path: self.path.unwrap_or_else(|| config.path.clone()),
            hash: self.hash,
            digest,
            not_after: self.not_after,
        };
        Ok((intent, message))
    }
}

/// The statement of a request: everything that makes one signature differ from another. Two requests
/// with one intent ask for the same thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The cluster that signs.
    pub cluster: String,
    /// The key's id.
    pub key: String,
    /// Which derived key signs.
    pub path: DerivationPath,
    /// How the message became the digest.
    pub hash: HashAlgorithm,
    /// What is signed.
    #[serde(with = "hex::serde")]
    pub digest: [u8; 32],
    /// When the caller's wish lapses; no signer begins to sign after it.
    pub not_after: Option<Timestamp>,
}

impl Intent {
    /// That `not_after` has not come yet.
    ///
    /// # Errors
    /// Saying that it has passed, and what was expected.
    pub fn check_time(&self, now: Timestamp) -> Result<(), String> {
        match self.not_after.filter(|&time| time <= now) {
            Some(time) => Err(format!("`not_after`: {time} has passed: expected a time after {now}")),
            None => Ok(()),
        }
    }

    /// SHA-256 over a domain and the fields in order, each preceded by its length as a 64-bit
    /// big-endian number, so that no two intents have one encoding.
    pub fn hash(&self) -> [u8; 32] {
        let not_after = self.not_after.map_or(String::new(), |time| time.to_string());
        hash_fields(
            "tss.network/intent/v1",
            &[
                self.cluster.as_bytes(),
                self.key.as_bytes(),
                self.path.to_string().as_bytes(),
                self.hash.as_str().as_bytes(),
                &self.digest,
                not_after.as_bytes(),
            ],
        )
    }
}

/// SHA-256 over a domain and fields, each preceded by its length as a 64-bit big-endian number.
pub fn hash_fields(domain: &str, fields: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for field in std::iter::once(&domain.as_bytes()).chain(fields) {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(algorithm: HashAlgorithm, message: &[u8]) -> String {
        hex::encode(algorithm.digest(message).unwrap())
    }

    #[test]
    fn digests_match_published_values() {
        // FIPS 180-4's example; the genesis-style double hash of "hello"; Keccak of the empty string;
        // and what MetaMask's personal_sign hashes "hello world" to.
        assert_eq!(
            digest(HashAlgorithm::Sha256, b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            digest(HashAlgorithm::Sha256d, b"hello"),
            "9595c9df90075148eb06860365df33584b75bff782a510c6cd4883a419833d50"
        );
        assert_eq!(
            digest(HashAlgorithm::Keccak256, b""),
            "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
        );
        assert_eq!(
            digest(HashAlgorithm::Eip191, b"hello world"),
            "d9eba16ed0ecae432b71fe008c98cc872bb4cc214d3220a36f365326cf807d68"
        );
    }

    #[test]
    fn without_a_hash_only_32_bytes_are_a_digest() {
        assert_eq!(HashAlgorithm::None.digest(&[7; 32]), Ok([7; 32]));
        for length in [0, 31, 33, 64] {
            assert_eq!(HashAlgorithm::None.digest(&vec![7; length]), Err(NotADigest(length)));
        }
    }

    #[test]
    fn every_field_of_an_intent_changes_its_hash() {
        let intent = Intent {
            cluster: "c".into(),
            key: "k".into(),
            path: "0/1".parse().unwrap(),
            hash: HashAlgorithm::Sha256,
            digest: [1; 32],
            not_after: None,
        };
        let mut variants = vec![intent.clone()];
        variants.push(Intent { cluster: "ck".into(), key: String::new(), ..intent.clone() });
        variants.push(Intent { key: "K".into(), ..intent.clone() });
        variants.push(Intent { path: "0/2".parse().unwrap(), ..intent.clone() });
        variants.push(Intent { hash: HashAlgorithm::None, ..intent.clone() });
        variants.push(Intent { digest: [2; 32], ..intent.clone() });
        variants.push(Intent { not_after: Some(Timestamp::UNIX_EPOCH), ..intent });
        let hashes: std::collections::BTreeSet<_> = variants.iter().map(Intent::hash).collect();
        assert_eq!(hashes.len(), variants.len());
    }
}
