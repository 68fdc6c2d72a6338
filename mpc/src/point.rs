//! What is public of a shared key: the key itself, and every signer's share times the generator. All are points of one
//! group, whose arithmetic is known here and by the engines alone.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::share::SecretShare;
use crate::{AnyKey, Ed25519Key, PublicKey, ShareError, SignerIndex, Threshold};

/// A point, other than the identity, of a group of prime order.
pub trait Point:
    Copy + Eq + fmt::Debug + fmt::Display + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// The point of this encoding, or `None` when there is none.
    fn from_encoding(bytes: &[u8]) -> Option<Self>;

    /// Its one encoding: SEC1 compressed, or that of RFC 8032.
    fn to_encoding(&self) -> Vec<u8>;

    /// A share times the generator, or `None` when the share is zero.
    ///
    /// # Errors
    /// [`ShareError`] when the share is no scalar of this group.
    fn of_secret(secret: &SecretShare) -> Result<Option<Self>, ShareError>;

    /// The value at 0 of the polynomial (in the exponent) through all of these. `None` when it is the identity.
    fn at_zero(shares: &BTreeMap<SignerIndex, Self>) -> Option<Self>;
}

/// A key, and the public shares that give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPoints<P> {
    /// The root public key.
    pub public_key: P,
    /// Every signer's share times the generator.
    pub public_shares: BTreeMap<SignerIndex, P>,
}

/// The points of a key, in the group of its scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Points {
    /// Of secp256k1.
    Secp256k1(KeyPoints<PublicKey>),
    /// Of the subgroup of prime order of edwards25519.
    Ed25519(KeyPoints<Ed25519Key>),
}

impl Points {
    /// The root public key.
    pub fn public_key(&self) -> AnyKey {
        match self {
            Self::Secp256k1(points) => AnyKey::Secp256k1(points.public_key),
            Self::Ed25519(points) => AnyKey::Ed25519(points.public_key),
        }
    }

    /// Every signer's share times the generator.
    pub fn public_shares(&self) -> BTreeMap<SignerIndex, AnyKey> {
        match self {
            Self::Secp256k1(KeyPoints { public_shares, .. }) => {
                public_shares.iter().map(|(&index, &share)| (index, AnyKey::Secp256k1(share))).collect()
            }
            Self::Ed25519(KeyPoints { public_shares, .. }) => {
                public_shares.iter().map(|(&index, &share)| (index, AnyKey::Ed25519(share))).collect()
            }
        }
    }

    /// The points, when all are of one group; `None` otherwise.
    pub(crate) fn of(public_key: AnyKey, public_shares: BTreeMap<SignerIndex, AnyKey>) -> Option<Self> {
        let shares = public_shares.into_iter();
        match public_key {
            AnyKey::Secp256k1(public_key) => {
                let share = |(index, share)| match share {
                    AnyKey::Secp256k1(share) => Some((index, share)),
                    AnyKey::Ed25519(_) => None,
                };
                let public_shares = shares.map(share).collect::<Option<_>>()?;
                Some(Self::Secp256k1(KeyPoints { public_key, public_shares }))
            }
            AnyKey::Ed25519(public_key) => {
                let share = |(index, share)| match share {
                    AnyKey::Ed25519(share) => Some((index, share)),
                    AnyKey::Secp256k1(_) => None,
                };
                let public_shares = shares.map(share).collect::<Option<_>>()?;
                Some(Self::Ed25519(KeyPoints { public_key, public_shares }))
            }
        }
    }
}

impl<P: Point> KeyPoints<P> {
    /// Checks that there is a public share of each signer, that every t in a row give the public key, and that fewer do
    /// not.
    pub(crate) fn check(&self, threshold: Threshold) -> Result<(), ShareError> {
        check_public_shares(threshold, &self.public_shares, &self.public_key)
    }

    /// Checks besides that this is the secret of signer `index`.
    pub(crate) fn check_share(
        &self,
        index: SignerIndex,
        threshold: Threshold,
        secret: &SecretShare,
    ) -> Result<(), ShareError> {
        if !threshold.contains(index) {
            return Err(ShareError::Inconsistent(format!("signer {index} of a {threshold} key")));
        }
        let own = P::of_secret(secret)?;
        if self.public_shares.get(&index).is_some_and(|&share| own != Some(share)) {
            let reason = format!("the secret share does not give the public share of signer {index}");
            return Err(ShareError::Inconsistent(reason));
        }
        self.check(threshold)
    }
}

/// Checks that there is a public share of each signer, that every t in a row give the public key, and that fewer do not.
pub(crate) fn check_public_shares<P: Point>(
    threshold: Threshold,
    public_shares: &BTreeMap<SignerIndex, P>,
    public_key: &P,
) -> Result<(), ShareError> {
    let inconsistent = |reason: String| Err(ShareError::Inconsistent(reason));
    if !public_shares.keys().copied().eq(threshold.signers()) {
        return inconsistent(format!("expected one public share for each of signers 1 to {}", threshold.n()));
    }
    let gives_key = |signers: &[SignerIndex]| {
        let shares = signers.iter().map(|index| (*index, public_shares[index]));
        P::at_zero(&shares.collect()) == Some(*public_key)
    };
    let signers: Vec<SignerIndex> = threshold.signers().collect();
    for window in signers.windows(threshold.t().into()) {
        if !gives_key(window) {
            return inconsistent(format!(
                "the public shares of signers {window:?} do not give the public key"
            ));
        }
    }
    // A threshold above the real one would pass so far: more shares than needed give the key too.
    let fewer = &signers[..usize::from(threshold.t()) - 1];
    if gives_key(fewer) {
        return inconsistent(format!("{} public shares give the public key already", fewer.len()));
    }
    Ok(())
}
