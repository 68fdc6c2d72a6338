//! The share document: one signer's part of a key, as it is stored.
//!
//! One versioned JSON document. Its `core` is what every engine can use; each engine keeps what else
//! it needs in a part of its own, so that another engine can later use the same key.

use std::collections::BTreeMap;
use std::fmt;

use k256::elliptic_curve::ff::PrimeField;
use k256::{ProjectivePoint, Scalar};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::point::{KeyPoints, Point, Points};
use crate::{AnyKey, PublicKey, SignerIndex, Threshold};

/// The version of the document that this code writes and reads.
pub const VERSION: u32 = 1;

/// What kind of key it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scheme {
    /// ECDSA over secp256k1.
    #[serde(rename = "ecdsa-secp256k1")]
    EcdsaSecp256k1,
    /// Schnorr signatures over secp256k1, as BIP-340 has them.
    #[serde(rename = "schnorr-secp256k1")]
    SchnorrSecp256k1,
    /// Ed25519 (RFC 8032), of messages that are not hashed before.
    #[serde(rename = "ed25519")]
    Ed25519,
}

impl Scheme {
    /// The name, as it stands in documents.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EcdsaSecp256k1 => "ecdsa-secp256k1",
            Self::SchnorrSecp256k1 => "schnorr-secp256k1",
            Self::Ed25519 => "ed25519",
        }
    }

    /// Whether its keys are points of this kind.
    fn has(self, points: &Points) -> bool {
        match points {
            Points::Secp256k1(_) => matches!(self, Self::EcdsaSecp256k1 | Self::SchnorrSecp256k1),
            Points::Ed25519(_) => self == Self::Ed25519,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a key came from. It stays with the key for ever: of one that was brought along, nobody can say who else had it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Its signers made it together; it never was in one place.
    #[default]
    Generated,
    /// It was made elsewhere, and its signers took it over.
    Imported,
}

impl Origin {
    /// Whether the signers made the key themselves.
    pub fn is_generated(&self) -> bool {
        *self == Self::Generated
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Generated => "generated",
            Self::Imported => "imported",
        })
    }
}

/// One signer's part of a key at an epoch. Secret: zeroized when dropped, and its `Debug` shows
/// public parts only.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareDocument {
    /// [`VERSION`].
    pub version: u32,
    /// The cluster the key belongs to.
    pub cluster: String,
    /// The key's id within the cluster.
    pub key: String,
    /// Grows with each refresh or reshare; 1 after key generation.
    pub epoch: u64,
    /// What kind of key it is.
    pub scheme: Scheme,
    /// Where it came from; not written for a key that its signers made, as documents had it from the first.
    #[serde(default, skip_serializing_if = "Origin::is_generated")]
    pub origin: Origin,
    /// What every engine can use.
    pub core: CoreShare,
    /// What each engine needs besides.
    pub engines: EngineParts,
}

/// The part of a share that every engine can use: a Shamir share over the group order, at x = index.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub struct CoreShare {
    /// Which signer's share it is.
    pub index: SignerIndex,
    /// How many signers there are, and how many of them sign.
    pub threshold: Threshold,
    /// The Shamir share.
    pub secret_share: SecretShare,
    /// The root public key, and every signer's share times the generator.
    pub points: Points,
    /// The BIP-32 chain code of the root key. Ed25519 keys have one alike, which nothing uses.
    pub chain_code: [u8; 32],
}

/// A [`CoreShare`] as it is written: a key of either group in the same fields.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    index: SignerIndex,
    threshold: Threshold,
    secret_share: SecretShare,
    public_shares: BTreeMap<SignerIndex, AnyKey>,
    #[serde(with = "hex::serde")]
    chain_code: [u8; 32],
    public_key: AnyKey,
}

impl TryFrom<Written> for CoreShare {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let Written { index, threshold, secret_share, public_shares, chain_code, public_key } = written;
        let points = Points::of(public_key, public_shares)
            .ok_or("the public shares are of another curve than the public key")?;
        Ok(Self { index, threshold, secret_share, points, chain_code })
    }
}

impl Serialize for CoreShare {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { index, threshold, secret_share, points, chain_code } = self;
        let written = Written {
            index: *index,
            threshold: *threshold,
            // Zeroized when dropped, as the original is.
            secret_share: secret_share.clone(),
            public_shares: points.public_shares(),
            chain_code: *chain_code,
            public_key: points.public_key(),
        };
        written.serialize(serializer)
    }
}

/// A scalar that must not be seen, as its scheme encodes it: over secp256k1 the first byte is the highest, of Ed25519 the
/// last. Hex in JSON, zeroized when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretShare([u8; 32]);

/// What each engine needs beside the core. The engines of [`crate::frost`] need nothing.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineParts {
    /// The correlated oblivious transfers of [`crate::dkls23`], base64 of their postcard encoding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dkls23: Option<Zeroizing<String>>,
}

impl EngineParts {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        // Named one by one, so that a new one is not forgotten.
        let Self { dkls23 } = self;
        dkls23.is_none()
    }
}

/// Why a share document cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// It is not a share document: truncated, another format, a value out of range.
    #[error("not a share document: {0}")]
    Malformed(String),
    /// It has a version that this code does not read.
    #[error("the share document has version {0}: expected {VERSION}")]
    Version(u32),
    /// Its parts contradict each other.
    #[error("the share document contradicts itself: {0}")]
    Inconsistent(String),
    /// It is of another kind of key than is expected here.
    #[error("the share is of a key for {found}: expected one for {expected}")]
    Scheme {
        /// What its key is for.
        found: Scheme,
        /// What is expected.
        expected: Scheme,
    },
    /// It lacks the part of the engine that should sign.
    #[error("the share document has no part for the engine `{0}`")]
    MissingEngine(crate::EngineId),
}

impl ShareError {
    pub(crate) fn out_of_range() -> Self {
        Self::Malformed("the secret share is not below the group order".into())
    }
}

impl SecretShare {
    /// A scalar as 32 bytes, as its scheme encodes it.
    pub(crate) fn from_bytes(bytes: &Zeroizing<[u8; 32]>) -> Self {
        Self(**bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn from_scalar(scalar: &Scalar) -> Self {
        Self(scalar.to_bytes().into())
    }

    pub(crate) fn to_scalar(&self) -> Result<Zeroizing<Scalar>, ShareError> {
        let scalar =
            Option::<Scalar>::from(Scalar::from_repr(self.0.into())).ok_or_else(ShareError::out_of_range)?;
        Ok(Zeroizing::new(scalar))
    }
}

impl fmt::Debug for SecretShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretShare(…)")
    }
}

impl Serialize for SecretShare {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(hex::encode(self.0)))
    }
}

impl<'de> Deserialize<'de> for SecretShare {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let mut share = Self([0; 32]);
        // The error of `hex` would quote a character of the secret.
        hex::decode_to_slice(text.as_bytes(), &mut share.0)
            .map_err(|_| serde::de::Error::custom("a secret share is 64 hex digits"))?;
        Ok(share)
    }
}

impl ShareDocument {
    /// Reads a document and checks that its parts agree: the secret share gives its public share,
    /// and every t public shares in a row give the public key.
    ///
    /// # Errors
    /// [`ShareError`] saying what is wrong.
    pub fn from_json(json: &[u8]) -> Result<Self, ShareError> {
        /// Read first, so that a later version is told from a damaged file.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        if json.trim_ascii_start().starts_with(b"[") {
            let found =
                "a list, as `multi-party-ecdsa` writes it: `tssctl import-legacy` takes such a key over";
            return Err(ShareError::Malformed(found.into()));
        }
        let malformed = |error: serde_json::Error| ShareError::Malformed(error.to_string());
        let Versioned { version } = serde_json::from_slice(json).map_err(malformed)?;
        if version != VERSION {
            return Err(ShareError::Version(version));
        }
        let document: Self = serde_json::from_slice(json).map_err(malformed)?;
        if !document.scheme.has(&document.core.points) {
            let reason = format!("a public key that is none for {}", document.scheme);
            return Err(ShareError::Inconsistent(reason));
        }
        document.core.check()?;
        Ok(document)
    }

    /// Checks that the key is for `expected`.
    ///
    /// # Errors
    /// [`ShareError::Scheme`] when it is not.
    pub fn check_scheme(&self, expected: Scheme) -> Result<(), ShareError> {
        let found = self.scheme;
        if found == expected { Ok(()) } else { Err(ShareError::Scheme { found, expected }) }
    }

    /// Writes the document.
    ///
    /// # Errors
    /// [`ShareError::Malformed`] should a value have no JSON form.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, ShareError> {
        let mut json = Zeroizing::new(Vec::with_capacity(1 << 16));
        serde_json::to_writer_pretty(&mut *json, self)
            .map_err(|error| ShareError::Malformed(error.to_string()))?;
        Ok(json)
    }
}

impl CoreShare {
    /// Checks that the secret share, the public shares and the public key belong together.
    pub(crate) fn check(&self) -> Result<(), ShareError> {
        let (index, threshold) = (self.index, self.threshold);
        match &self.points {
            Points::Secp256k1(points) => points.check_share(index, threshold, &self.secret_share),
            Points::Ed25519(points) => points.check_share(index, threshold, &self.secret_share),
        }
    }

    /// The root public key.
    pub fn public_key(&self) -> AnyKey {
        self.points.public_key()
    }

    /// The points of a key over secp256k1.
    ///
    /// # Errors
    /// [`ShareError::Scheme`] when it is an Ed25519 key.
    pub fn secp256k1(&self) -> Result<&KeyPoints<PublicKey>, ShareError> {
        match &self.points {
            Points::Secp256k1(points) => Ok(points),
            Points::Ed25519(_) => {
                Err(ShareError::Scheme { found: Scheme::Ed25519, expected: Scheme::EcdsaSecp256k1 })
            }
        }
    }
}

/// The public key that public shares give together: the value at 0 of the polynomial (in the exponent) through all of
/// them. `None` when that is no key.
pub fn key_of_public_shares(shares: &BTreeMap<SignerIndex, PublicKey>) -> Option<PublicKey> {
    let signers: Vec<SignerIndex> = shares.keys().copied().collect();
    let sum = shares.iter().fold(ProjectivePoint::IDENTITY, |sum, (&index, share)| {
        sum + ProjectivePoint::from(*share.as_affine()) * weight_at_zero(index, &signers)
    });
    PublicKey::from_affine(sum.to_affine()).ok()
}

impl Point for PublicKey {
    fn from_encoding(bytes: &[u8]) -> Option<Self> {
        // The compressed form alone, so that a point has one encoding.
        if bytes.len() == 33 { Self::from_sec1(bytes).ok() } else { None }
    }

    fn to_encoding(&self) -> Vec<u8> {
        self.to_compressed().to_vec()
    }

    fn of_secret(secret: &SecretShare) -> Result<Option<Self>, ShareError> {
        let point = ProjectivePoint::GENERATOR * *secret.to_scalar()?;
        Ok(Self::from_affine(point.to_affine()).ok())
    }

    fn at_zero(shares: &BTreeMap<SignerIndex, Self>) -> Option<Self> {
        key_of_public_shares(shares)
    }
}

/// What the share of a signer counts for when these signers' shares, it among them, give the value at 0 (Lagrange).
pub(crate) fn weight_at_zero(of: SignerIndex, signers: &[SignerIndex]) -> Scalar {
    let x = |index: SignerIndex| Scalar::from(u64::from(index.get()));
    let (mut numerator, mut denominator) = (Scalar::ONE, Scalar::ONE);
    for &other in signers.iter().filter(|&&other| other != of) {
        numerator *= x(other);
        denominator *= x(other) - x(of);
    }
    let inverse = Option::<Scalar>::from(denominator.invert());
    numerator * inverse.expect("signers with other indices differ")
}

impl fmt::Debug for ShareDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShareDocument")
            .field("cluster", &self.cluster)
            .field("key", &self.key)
            .field("epoch", &self.epoch)
            .field("index", &self.core.index)
            .field("threshold", &self.core.threshold)
            .field("public_key", &self.core.public_key())
            .finish_non_exhaustive()
    }
}
