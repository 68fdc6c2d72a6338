//! Public keys, their addresses, and non-hardened BIP-32 derivation.

use std::fmt;
use std::str::FromStr;

use dkls23::protocols::derivation::DerivData;
use k256::elliptic_curve::sec1::ToSec1Point;
use k256::{AffinePoint, Scalar};
use ripemd::Ripemd160;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Ed25519Key;

/// The longest path accepted, in steps.
pub const MAX_PATH_DEPTH: usize = 16;

/// The first hardened child number; below it children derive from public data alone.
const HARDENED: u32 = 1 << 31;

/// A non-hardened BIP-32 path from a key's root: `0/1/2`, `m/0/1/2`, or `m` for the root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DerivationPath(Vec<u32>);

/// Why a string is no [`DerivationPath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A step carries a hardened mark, or a number of 2³¹ and above.
    #[error("path step `{0}` is hardened: expected 0 to 2147483647, since no signer holds the private key")]
    Hardened(String),
    /// A step is not a number.
    #[error(
        "path step `{0}` is malformed: expected numbers separated by `/`, as in `0/1/2`, or `m` for the root key"
    )]
    Malformed(String),
    /// It has more than [`MAX_PATH_DEPTH`] steps.
    #[error("the path has {0} steps: expected at most {MAX_PATH_DEPTH}")]
    TooDeep(usize),
}

impl DerivationPath {
    /// The root key's own path.
    pub fn root() -> Self {
        Self::default()
    }

    /// The child numbers, from the root down.
    pub fn steps(&self) -> &[u32] {
        &self.0
    }
}

impl FromStr for DerivationPath {
    type Err = PathError;

    fn from_str(path: &str) -> Result<Self, PathError> {
        let steps = match path {
            "m" => return Ok(Self::root()),
            _ => path.strip_prefix("m/").unwrap_or(path),
        };
        let count = steps.split('/').count();
        if count > MAX_PATH_DEPTH {
            return Err(PathError::TooDeep(count));
        }
        steps.split('/').map(parse_step).collect::<Result<_, _>>().map(Self)
    }
}

fn parse_step(step: &str) -> Result<u32, PathError> {
    if step.strip_suffix(['\'', 'h', 'H']).is_some_and(is_decimal) {
        return Err(PathError::Hardened(step.to_owned()));
    }
    if !is_decimal(step) {
        return Err(PathError::Malformed(step.to_owned()));
    }
    match step.parse::<u32>() {
        Ok(number) if number < HARDENED => Ok(number),
        Ok(_) => Err(PathError::Hardened(step.to_owned())),
        Err(_) => Err(PathError::Malformed(step.to_owned())),
    }
}

fn is_decimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for DerivationPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("m");
        }
        for (position, step) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("/")?;
            }
            write!(f, "{step}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for DerivationPath {
    type Error = PathError;
    fn try_from(path: String) -> Result<Self, PathError> {
        path.parse()
    }
}

impl From<DerivationPath> for String {
    fn from(path: DerivationPath) -> String {
        path.to_string()
    }
}

/// A point of secp256k1 other than infinity: a public key, or one signer's public share.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(k256::PublicKey);

/// Bytes that are no public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a secp256k1 public key: expected 33 bytes (compressed) or 65 bytes (uncompressed) in SEC1 form")]
pub struct InvalidPublicKey;

impl PublicKey {
    /// Reads a SEC1 encoding, compressed (33 bytes) or not (65 bytes).
    ///
    /// # Errors
    /// [`InvalidPublicKey`] when the bytes name no point of the curve, or the one at infinity.
    pub fn from_sec1(bytes: &[u8]) -> Result<Self, InvalidPublicKey> {
        k256::PublicKey::from_sec1_bytes(bytes).map(Self).map_err(|_| InvalidPublicKey)
    }

    /// The key with this affine point.
    ///
    /// # Errors
    /// [`InvalidPublicKey`] for the point at infinity.
    pub fn from_affine(point: AffinePoint) -> Result<Self, InvalidPublicKey> {
        k256::PublicKey::from_affine(point).map(Self).map_err(|_| InvalidPublicKey)
    }

    /// The affine point.
    pub fn as_affine(&self) -> &AffinePoint {
        self.0.as_affine()
    }

    pub(crate) fn as_k256(&self) -> &k256::PublicKey {
        &self.0
    }

    /// The compressed SEC1 encoding, 33 bytes.
    pub fn to_compressed(&self) -> [u8; 33] {
        let mut bytes = [0; 33];
        bytes.copy_from_slice(self.0.to_sec1_point(true).as_bytes());
        bytes
    }

    /// The uncompressed SEC1 encoding, 65 bytes: `04`, x, y.
    pub fn to_uncompressed(&self) -> [u8; 65] {
        let mut bytes = [0; 65];
        bytes.copy_from_slice(self.0.to_sec1_point(false).as_bytes());
        bytes
    }

    /// The coordinates x and y, 32 bytes each, big-endian.
    pub fn coordinates(&self) -> ([u8; 32], [u8; 32]) {
        let bytes = self.to_uncompressed();
        let (mut x, mut y) = ([0; 32], [0; 32]);
        x.copy_from_slice(&bytes[1..33]);
        y.copy_from_slice(&bytes[33..]);
        (x, y)
    }

    /// The Ethereum address in its mixed-case form (EIP-55).
    pub fn ethereum_address(&self) -> String {
        dkls23::secp256k1::compute_eth_address(self.as_affine())
    }

    /// The Bitcoin mainnet address for pay-to-witness-public-key-hash (BIP-141, BIP-173): `bc1q…`.
    pub fn bitcoin_address(&self) -> String {
        dkls23::secp256k1::compute_btc_address(self.as_affine())
    }

    /// The Bitcoin mainnet address for pay-to-public-key-hash, of the compressed key: `1…`.
    pub fn bitcoin_p2pkh_address(&self) -> String {
        let hash = Ripemd160::digest(Sha256::digest(self.to_compressed()));
        bs58::encode(hash).with_check_version(0).into_string()
    }

    /// The public key that this one, as a root with this chain code, has at `path` (BIP-32, public
    /// parent key → public child key). `None` when a step leads to no key, a chance of 2⁻¹²⁷.
    pub fn derive(&self, chain_code: &[u8; 32], path: &DerivationPath) -> Option<PublicKey> {
        // The secret part is not known here; a zero in its place yields the tweaks alone, and the
        // public part does not depend on it.
        let mut node = derivation_root(Scalar::ZERO, *self.as_affine(), *chain_code);
        for &step in path.steps() {
            node = node.derive_child(step).ok()?;
        }
        Self::from_affine(node.pk).ok()
    }
}

/// The root of a BIP-32 tree over a (shared) secret.
pub(crate) fn derivation_root(
    secret: Scalar,
    public: AffinePoint,
    chain_code: [u8; 32],
) -> DerivData<k256::Secp256k1> {
    DerivData {
        depth: 0,
        child_number: 0,
        parent_fingerprint: [0; 4],
        poly_point: secret,
        pk: public,
        chain_code,
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_compressed()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = InvalidPublicKey;
    fn from_str(text: &str) -> Result<Self, InvalidPublicKey> {
        Self::from_sec1(&hex::decode(text).map_err(|_| InvalidPublicKey)?)
    }
}

/// As hex of the compressed encoding, in every format.
impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A public key of any scheme.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum AnyKey {
    /// Over secp256k1, for ECDSA or Schnorr signatures.
    Secp256k1(PublicKey),
    /// For Ed25519 signatures.
    Ed25519(Ed25519Key),
}

impl AnyKey {
    /// Its one encoding: 33 bytes of SEC1 (compressed), or the 32 of RFC 8032.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Secp256k1(key) => key.to_compressed().to_vec(),
            Self::Ed25519(key) => key.to_bytes().to_vec(),
        }
    }
}

impl From<PublicKey> for AnyKey {
    fn from(key: PublicKey) -> Self {
        Self::Secp256k1(key)
    }
}

impl From<Ed25519Key> for AnyKey {
    fn from(key: Ed25519Key) -> Self {
        Self::Ed25519(key)
    }
}

impl fmt::Display for AnyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secp256k1(key) => key.fmt(f),
            Self::Ed25519(key) => key.fmt(f),
        }
    }
}

impl fmt::Debug for AnyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As hex of its encoding, in every format.
impl Serialize for AnyKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AnyKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The lengths tell them apart.
        if text.len() == 64 {
            text.parse().map(Self::Ed25519).map_err(serde::de::Error::custom)
        } else {
            text.parse().map(Self::Secp256k1).map_err(serde::de::Error::custom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_the_generator_are_the_well_known_ones() {
        let generator = PublicKey::from_affine(AffinePoint::GENERATOR).unwrap();
        assert_eq!(generator.ethereum_address(), "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf");
        assert_eq!(generator.bitcoin_p2pkh_address(), "1BgGZ9tcN4rm9KBzDn7KprQz87SZ26SAMH");
        assert_eq!(generator.bitcoin_address(), "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4");
    }

    #[test]
    fn a_path_parses_with_or_without_its_root_and_prints_without() {
        for (text, steps) in
            [("0/1/2", vec![0, 1, 2]), ("m/44/60/0", vec![44, 60, 0]), ("m", vec![]), ("7", vec![7])]
        {
            let path: DerivationPath = text.parse().unwrap();
            assert_eq!(path.steps(), steps);
            assert_eq!(path.to_string().parse::<DerivationPath>().unwrap(), path);
        }
        assert_eq!("m/0/1/2".parse::<DerivationPath>().unwrap().to_string(), "0/1/2");
    }

    #[test]
    fn a_hardened_step_is_told_from_a_malformed_one() {
        for text in ["0'/1", "0/1h", "m/2H", "2147483648"] {
            assert!(matches!(text.parse::<DerivationPath>(), Err(PathError::Hardened(_))), "{text}");
        }
        for text in ["", "/", "m/", "0//1", "+1", "-1", "a", "0/ 1", "4294967296", "1e3", "m/m", "'", "h"] {
            assert!(matches!(text.parse::<DerivationPath>(), Err(PathError::Malformed(_))), "{text}");
        }
        assert_eq!(vec!["0"; 17].join("/").parse::<DerivationPath>(), Err(PathError::TooDeep(17)));
    }
}
