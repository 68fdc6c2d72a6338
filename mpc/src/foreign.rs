//! A share of a key that was made elsewhere, by other software, as its signers bring it along.

use std::collections::BTreeMap;
use std::fmt;

use k256::{ProjectivePoint, Scalar};
use zeroize::Zeroizing;

use crate::share::{CoreShare, SecretShare};
use crate::{PublicKey, ShareError, SignerIndex, Threshold};

/// One signer's share of a key that was made elsewhere: a Shamir share at x = index, and what is public about it. It has
/// been checked by itself; that the others' belong to the same key is shown by [`crate::Engine::import`].
pub struct ForeignShare {
    /// Without a chain code: what made the key had none.
    pub(crate) core: CoreShare,
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
        let secret_share = SecretShare::from_bytes(secret);
        let core =
            CoreShare { index, threshold, secret_share, public_shares, chain_code: [0; 32], public_key };
        core.check()?;
        Ok(Self { core })
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

    /// Whose share it is.
    pub fn index(&self) -> SignerIndex {
        self.core.index
    }

    /// How many signers there are, and how many of them sign.
    pub fn threshold(&self) -> Threshold {
        self.core.threshold
    }

    /// The key's public key.
    pub fn public_key(&self) -> PublicKey {
        self.core.public_key
    }
}

impl fmt::Debug for ForeignShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignShare")
            .field("index", &self.core.index)
            .field("threshold", &self.core.threshold)
            .field("public_key", &self.core.public_key)
            .finish_non_exhaustive()
    }
}
