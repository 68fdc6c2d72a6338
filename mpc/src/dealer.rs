//! A whole private key, where there has to be one: split into shares by whoever has it, or put together again as the
//! last resort. Both are for a machine that is not connected; everywhere else no key is ever whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use dkls23::protocols::Parameters;
use dkls23::protocols::re_key::re_key;
use k256::elliptic_curve::ff::PrimeField;
use k256::{ProjectivePoint, Scalar, Secp256k1};
use zeroize::Zeroizing;

use crate::proof::KeyFacts;
use crate::share::weight_at_zero;
use crate::{ForeignShare, PublicKey, ShareDocument, ShareError, SignerIndex, Threshold};

/// A private key of secp256k1. Zeroized when dropped, and its `Debug` shows nothing.
pub struct PrivateKey(Zeroizing<Scalar>);

/// Why there is no private key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrivateKeyError {
    /// The bytes are no private key.
    #[error("not a private key of secp256k1: expected a number above 0 and below the group order")]
    OutOfRange,
    /// Two of the shares are one signer's.
    #[error("two shares of signer {0}: expected those of different signers")]
    Twice(SignerIndex),
    /// The shares are of different keys, or of one at different times.
    #[error("the shares of signers {0} and {1} differ in the {2}: expected shares that were made together")]
    Differ(SignerIndex, SignerIndex, &'static str),
    /// There are not enough shares.
    #[error("{found} shares of a {threshold} key: expected at least {}", threshold.t())]
    TooFew {
        /// How many there are.
        found: usize,
        /// What the key needs.
        threshold: Threshold,
    },
    /// A share is none.
    #[error(transparent)]
    Share(#[from] ShareError),
}

impl PrivateKey {
    /// The key that is this number, the first byte the highest.
    ///
    /// # Errors
    /// [`PrivateKeyError::OutOfRange`] for 0, and from the group order on.
    pub fn from_bytes(bytes: &Zeroizing<[u8; 32]>) -> Result<Self, PrivateKeyError> {
        let scalar = Option::<Scalar>::from(Scalar::from_repr((**bytes).into())).map(Zeroizing::new);
        match scalar {
            Some(scalar) if *scalar != Scalar::ZERO => Ok(Self(scalar)),
            _ => Err(PrivateKeyError::OutOfRange),
        }
    }

    /// The number, the first byte the highest.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes().into())
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        let point = (ProjectivePoint::GENERATOR * *self.0).to_affine();
        PublicKey::from_affine(point).expect("a private key is not 0")
    }

    /// Shares of this key for n signers, any t of which give it, by the crate's trusted dealer. What else the dealer would
    /// make is dropped: the signers make it themselves when they take the key over ([`crate::Engine::import`]), and new
    /// shares with it.
    ///
    /// # Errors
    /// [`ShareError`] should a share be 0, a chance of 2⁻²⁵²: try again.
    pub fn split(&self, threshold: Threshold) -> Result<BTreeMap<SignerIndex, ForeignShare>, ShareError> {
        let parameters = Parameters::new(threshold.t(), threshold.n()).expect("a threshold has 2 <= t <= n");
        // Each party zeroizes itself.
        let (parties, _) = re_key::<Secp256k1>(&parameters, &[], &self.0, None, |_| String::new());
        let public = |secret: &Scalar| {
            PublicKey::from_affine((ProjectivePoint::GENERATOR * *secret).to_affine())
                .map_err(|_| ShareError::Inconsistent("a share of the key is 0: try again".into()))
        };
        let public_shares: BTreeMap<SignerIndex, PublicKey> = threshold
            .signers()
            .zip(&parties)
            .map(|(index, party)| Ok((index, public(&party.poly_point)?)))
            .collect::<Result<_, ShareError>>()?;
        let public_key = self.public_key();
        let share = |(index, party): (SignerIndex, &dkls23::protocols::Party<Secp256k1>)| {
            let secret = Zeroizing::new(party.poly_point.to_bytes().into());
            Ok((index, ForeignShare::new(index, threshold, &secret, public_shares.clone(), public_key)?))
        };
        threshold.signers().zip(&parties).map(share).collect()
    }

    /// The key that t or more signers' shares give, all of one key at one epoch. This ends the threshold: whoever has
    /// it has the key, alone and for ever.
    ///
    /// # Errors
    /// [`PrivateKeyError`] when the shares do not belong together, or are too few.
    pub fn reconstruct(shares: &[ShareDocument]) -> Result<Self, PrivateKeyError> {
        let nothing = || ShareError::Inconsistent("there is no share".into());
        let first = shares.first().ok_or_else(nothing)?;
        let (facts, threshold) = (KeyFacts::of(first)?, first.core.threshold);
        let mut signers = BTreeSet::new();
        for share in shares {
            let index = share.core.index;
            if let Some(difference) = facts.difference(&KeyFacts::of(share)?) {
                return Err(PrivateKeyError::Differ(first.core.index, index, difference.what));
            }
            if !signers.insert(index) {
                return Err(PrivateKeyError::Twice(index));
            }
        }
        if shares.len() < threshold.t().into() {
            return Err(PrivateKeyError::TooFew { found: shares.len(), threshold });
        }
        let signers: Vec<SignerIndex> = signers.into_iter().collect();
        let mut sum = Zeroizing::new(Scalar::ZERO);
        for share in shares {
            let secret = share.core.secret_share.to_scalar()?;
            *sum += *secret * weight_at_zero(share.core.index, &signers);
        }
        if *sum == Scalar::ZERO {
            return Err(PrivateKeyError::OutOfRange);
        }
        let key = Self(sum);
        if key.public_key() != facts.public_key {
            return Err(ShareError::Inconsistent("the shares do not give the public key".into()).into());
        }
        Ok(key)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::{EngineParts, VERSION};
    use crate::{Origin, Scheme};

    /// The order of the group.
    const ORDER: &str = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";

    fn key(hex: &str) -> Result<PrivateKey, PrivateKeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(hex, &mut *bytes).unwrap();
        PrivateKey::from_bytes(&bytes)
    }

    fn document(share: ForeignShare) -> ShareDocument {
        ShareDocument {
            version: VERSION,
            cluster: "c".into(),
            key: "k".into(),
            epoch: 1,
            scheme: Scheme::EcdsaSecp256k1,
            origin: Origin::Imported,
            core: share.into_core([7; 32]),
            engines: EngineParts::default(),
        }
    }

    /// The documents of these signers, of a key that was split.
    fn documents(of: &PrivateKey, threshold: Threshold, signers: &[u8]) -> Vec<ShareDocument> {
        let mut shares = of.split(threshold).unwrap();
        let take = |&index: &u8| document(shares.remove(&SignerIndex::new(index).unwrap()).unwrap());
        signers.iter().map(take).collect()
    }

    #[test]
    fn zero_and_what_is_not_below_the_group_order_is_no_key() {
        let last = ORDER.replace("4141", "4140");
        assert_eq!(hex::encode(*key(&last).unwrap().to_bytes()), last);
        let one = key(&format!("{:064x}", 1)).unwrap();
        assert_eq!(one.public_key().ethereum_address(), "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf");
        assert_eq!(format!("{one:?}"), "PrivateKey(…)");
        for hex in ["00".repeat(32).as_str(), ORDER, &"ff".repeat(32)] {
            assert_eq!(key(hex).unwrap_err(), PrivateKeyError::OutOfRange, "{hex}");
        }
    }

    #[test]
    fn any_t_shares_of_a_split_key_give_it_and_each_split_is_another() {
        let secret = key(&"42".repeat(32)).unwrap();
        let threshold = Threshold::new(3, 5).unwrap();
        for signers in [&[1, 2, 3][..], &[5, 1, 3], &[2, 4, 5], &[5, 4, 3, 2, 1]] {
            let shares = documents(&secret, threshold, signers);
            assert!(shares.iter().all(|share| share.core.public_key() == secret.public_key().into()));
            assert_eq!(*PrivateKey::reconstruct(&shares).unwrap().to_bytes(), *secret.to_bytes());
        }
        let (one, other) = (secret.split(threshold).unwrap(), secret.split(threshold).unwrap());
        let index = SignerIndex::MIN;
        assert_ne!(one[&index].points.public_shares, other[&index].points.public_shares);
    }

    #[test]
    fn shares_that_do_not_belong_together_or_are_too_few_give_no_key() {
        let (secret, threshold) = (key(&"42".repeat(32)).unwrap(), Threshold::new(2, 3).unwrap());
        let take = |signers: &[u8]| documents(&secret, threshold, signers);
        let refused = |shares: &[ShareDocument]| PrivateKey::reconstruct(shares).unwrap_err();
        let (one, two) = (SignerIndex::MIN, SignerIndex::new(2).unwrap());
        assert_eq!(refused(&take(&[2])), PrivateKeyError::TooFew { found: 1, threshold });
        assert!(refused(&[]).to_string().contains("there is no share"));

        // Of the same private key, but split anew.
        let mixed: Vec<_> = take(&[1]).into_iter().chain(take(&[2])).collect();
        assert_eq!(refused(&mixed), PrivateKeyError::Differ(one, two, "public shares"));
        let mut epochs = take(&[1, 2]);
        epochs[1].epoch = 2;
        assert_eq!(refused(&epochs), PrivateKeyError::Differ(one, two, "epoch"));

        let mut shares = take(&[1, 2]);
        let again = ShareDocument::from_json(&shares[1].to_json().unwrap()).unwrap();
        shares.push(again);
        assert_eq!(refused(&shares), PrivateKeyError::Twice(two));

        // One that no file has, since reading it would show this.
        let mut shares = take(&[1, 2]);
        shares[1].core.secret_share = shares[0].core.secret_share.clone();
        assert!(refused(&shares).to_string().contains("do not give the public key"));
    }
}
