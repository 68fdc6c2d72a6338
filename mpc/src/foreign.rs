//! A share of a key that was made elsewhere, by other software, as its signers bring it along.

use std::collections::BTreeMap;
use std::fmt;

use k256::{ProjectivePoint, Scalar};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::point::KeyPoints;
use crate::share::SecretShare;
use crate::{PublicKey, ShareError, SignerIndex, Threshold};

/// The version of the document that this code writes and reads.
pub const VERSION: u32 = 1;

/// One signer's share of a key that was made elsewhere: a Shamir share at x = index, and what is public about it. It has
/// been checked by itself; that the others' belong to the same key is shown by [`crate::Engine::import`].
pub struct ForeignShare {
    pub(crate) index: SignerIndex,
    pub(crate) threshold: Threshold,
    pub(crate) secret_share: SecretShare,
    pub(crate) points: KeyPoints<PublicKey>,
}

impl ForeignShare {
    /// The share of signer `index`, whose secret is a scalar as 32 bytes, the first the highest.
    ///
    /// # Errors
    /// [`ShareError`] when the secret does not give the public share, or the public shares do not give the key.
    pub fn new(
        index: SignerIndex,
        threshold: Threshold,
        secret: &Zeroizing<[u8; 32]>,
        public_shares: BTreeMap<SignerIndex, PublicKey>,
        public_key: PublicKey,
    ) -> Result<Self, ShareError> {
        let points = KeyPoints { public_key, public_shares };
        Self::checked(index, threshold, SecretShare::from_bytes(secret), points)
    }

    fn checked(
        index: SignerIndex,
        threshold: Threshold,
        secret_share: SecretShare,
        points: KeyPoints<PublicKey>,
    ) -> Result<Self, ShareError> {
        points.check_share(index, threshold, &secret_share)?;
        Ok(Self { index, threshold, secret_share, points })
    }

    /// The public shares of a key that n dealers have made together by Feldman's verifiable secret sharing: of each
    /// dealer its commitments, the coefficients of its polynomial times the generator, the lowest first.
    ///
    /// # Errors
    /// [`ShareError::Inconsistent`] when a dealer has not t of them, or there are not n dealers.
    pub fn public_shares(
        threshold: Threshold,
        dealers: &[Vec<PublicKey>],
    ) -> Result<BTreeMap<SignerIndex, PublicKey>, ShareError> {
        let inconsistent = |reason: String| ShareError::Inconsistent(reason);
        if dealers.len() != usize::from(threshold.n()) {
            return Err(inconsistent(format!("{} dealers of a {threshold} key", dealers.len())));
        }
        let mut sum = vec![ProjectivePoint::IDENTITY; usize::from(threshold.t())];
        for (dealer, commitments) in threshold.signers().zip(dealers) {
            if commitments.len() != sum.len() {
                return Err(inconsistent(format!(
                    "{} commitments of dealer {dealer} of a {threshold} key",
                    commitments.len()
                )));
            }
            for (sum, commitment) in sum.iter_mut().zip(commitments) {
                *sum += ProjectivePoint::from(*commitment.as_affine());
            }
        }
        let share = |index: SignerIndex| {
            let x = Scalar::from(u64::from(index.get()));
            let at_x = sum.iter().rev().fold(ProjectivePoint::IDENTITY, |value, &next| value * x + next);
            let share = PublicKey::from_affine(at_x.to_affine());
            let share =
                share.map_err(|_| inconsistent(format!("the public share of signer {index} is zero")))?;
            Ok((index, share))
        };
        threshold.signers().map(share).collect()
    }

    /// Reads a document that [`ForeignShare::to_json`] wrote, and checks that its parts agree.
    ///
    /// # Errors
    /// [`ForeignShareError`] saying what is wrong, but nothing secret of it.
    pub fn from_json(json: &[u8]) -> Result<Self, ForeignShareError> {
        /// Read first, so that a later version is told from a damaged file.
        #[derive(Deserialize)]
        struct Versioned {
            foreign_share: u32,
        }
        let malformed = |error: serde_json::Error| ForeignShareError::Malformed(error.to_string());
        let Versioned { foreign_share } = serde_json::from_slice(json).map_err(malformed)?;
        if foreign_share != VERSION {
            return Err(ForeignShareError::Version(foreign_share));
        }
        let Document { index, threshold, public_key, public_shares, secret, .. } =
            serde_json::from_slice(json).map_err(malformed)?;
        Ok(Self::checked(index, threshold, secret, KeyPoints { public_key, public_shares })?)
    }

    /// Writes the share as a document.
    ///
    /// # Errors
    /// [`ForeignShareError::Malformed`] should a value have no JSON form.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, ForeignShareError> {
        let document = Document {
            foreign_share: VERSION,
            index: self.index,
            threshold: self.threshold,
            public_key: self.points.public_key,
            public_shares: self.points.public_shares.clone(),
            secret: self.secret_share.clone(),
        };
        // With room for all of it: growing would leave copies behind.
        let mut json = Zeroizing::new(Vec::with_capacity(1 << 13));
        serde_json::to_writer_pretty(&mut *json, &document)
            .map_err(|error| ForeignShareError::Malformed(error.to_string()))?;
        Ok(json)
    }

    /// The share with a chain code, as a share document has it.
    #[cfg(test)]
    pub(crate) fn into_core(self, chain_code: [u8; 32]) -> crate::share::CoreShare {
        let Self { index, threshold, secret_share, points } = self;
        let points = crate::point::Points::Secp256k1(points);
        crate::share::CoreShare { index, threshold, secret_share, points, chain_code }
    }

    /// Whose share it is.
    pub fn index(&self) -> SignerIndex {
        self.index
    }

    /// How many signers there are, and how many of them sign.
    pub fn threshold(&self) -> Threshold {
        self.threshold
    }

    /// The key's public key.
    pub fn public_key(&self) -> PublicKey {
        self.points.public_key
    }
}

/// A foreign share as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// [`VERSION`]; by its name it is told from other documents.
    foreign_share: u32,
    index: SignerIndex,
    threshold: Threshold,
    public_key: PublicKey,
    public_shares: BTreeMap<SignerIndex, PublicKey>,
    secret: SecretShare,
}

/// Why the document of a foreign share cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignShareError {
    /// It is none: truncated, another format, a value out of range.
    #[error("not a share as `tssctl key split` writes it: {0}")]
    Malformed(String),
    /// It has a version that this code does not read.
    #[error("the share has version {0}: expected {VERSION}")]
    Version(u32),
    /// Its parts contradict each other.
    #[error(transparent)]
    Share(#[from] ShareError),
}

impl fmt::Debug for ForeignShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignShare")
            .field("index", &self.index)
            .field("threshold", &self.threshold)
            .field("public_key", &self.points.public_key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::PrivateKey;

    fn share() -> ForeignShare {
        let key = PrivateKey::from_bytes(&Zeroizing::new([3; 32])).unwrap();
        key.split(Threshold::new(2, 3).unwrap()).unwrap().remove(&SignerIndex::MIN).unwrap()
    }

    #[test]
    fn a_document_reads_back_and_an_altered_one_is_refused_without_showing_the_secret() {
        let share = share();
        let json = share.to_json().unwrap();
        let read = ForeignShare::from_json(&json).unwrap();
        assert_eq!(*read.to_json().unwrap(), *json);
        assert_eq!((read.index(), read.public_key()), (share.index(), share.public_key()));

        let value: Value = serde_json::from_slice(&json).unwrap();
        let secret = value["secret"].as_str().unwrap().to_owned();
        let alterations: [(&str, Value, &str); 7] = [
            ("foreign_share", json!(2), "version 2: expected 1"),
            ("index", json!(2), "does not give the public share of signer 2"),
            ("threshold", json!({"threshold": 3, "signers": 3}), "give the public key"),
            ("public_key", value["public_shares"]["2"].clone(), "do not give the public key"),
            ("secret", json!("00".repeat(32)), "does not give the public share of signer 1"),
            ("secret", json!(&secret[1..]), "a secret share is 64 hex digits"),
            ("more", json!(1), "unknown field `more`"),
        ];
        for (name, altered, expected) in alterations {
            let mut document = value.clone();
            document[name] = altered;
            let refused = ForeignShare::from_json(document.to_string().as_bytes()).unwrap_err().to_string();
            assert!(refused.contains(expected), "{name}: {refused}");
            assert!(!refused.contains(&secret[1..]), "{refused}");
        }
        let refused = ForeignShare::from_json(b"[]").unwrap_err().to_string();
        assert!(refused.starts_with("not a share as `tssctl key split` writes it"), "{refused}");
    }
}
