//! Between this crate's types and those of `frost-core`, and the little arithmetic that neither has. All goes by
//! encodings: of its inner types the crate promises nothing.
//!
//! A scalar of the crate cannot be zeroized from outside of it. So secrets are kept as encodings or in the crate's own
//! types, which zeroize themselves; a scalar lives as long as a sum.

use std::collections::{BTreeMap, BTreeSet};

use frost_core::keys::{SigningShare, VerifiableSecretSharingCommitment};
use frost_core::{Ciphersuite, Element, Error, Field, Group, Identifier, Scalar};
use zeroize::Zeroizing;

use super::Suite;
use crate::point::Point;
use crate::share::SecretShare;
use crate::{Abort, Blame, SignerIndex};

type FieldOf<C> = <<C as Ciphersuite>::Group as Group>::Field;

pub(super) fn identifier<C: Ciphersuite>(index: SignerIndex) -> Identifier<C> {
    Identifier::try_from(u16::from(index.get())).expect("a signer index is at least 1")
}

/// A map by signer as the crate has it.
pub(super) fn by_identifier<C: Ciphersuite, T>(
    map: impl IntoIterator<Item = (SignerIndex, T)>,
) -> BTreeMap<Identifier<C>, T> {
    map.into_iter().map(|(index, value)| (identifier(index), value)).collect()
}

/// The element that a point is.
pub(super) fn element<S: Suite>(point: &S::Point) -> Option<Element<S>> {
    let encoding = point.to_encoding();
    S::Group::deserialize(&encoding.as_slice().try_into().ok()?).ok()
}

/// The point that an element is; `None` for the identity.
pub(super) fn point<S: Suite>(element: &Element<S>) -> Option<S::Point> {
    S::Point::from_encoding(S::Group::serialize(element).ok()?.as_ref())
}

/// The points of a commitment to a polynomial, the lowest coefficient's first.
pub(super) fn coefficients<S: Suite>(
    commitment: &VerifiableSecretSharingCommitment<S>,
) -> Result<Vec<S::Point>, Abort> {
    let encodings = commitment.serialize().ok();
    let points = encodings.and_then(|all| all.iter().map(|one| S::Point::from_encoding(one)).collect());
    points.ok_or_else(|| Abort::local("a polynomial with a coefficient that is zero"))
}

/// A scalar from its one encoding.
pub(super) fn scalar<S: Suite>(bytes: &[u8]) -> Option<Scalar<S>> {
    FieldOf::<S>::deserialize(&bytes.try_into().ok()?).ok()
}

/// The encoding of a scalar, which has 32 bytes in both groups.
pub(super) fn encoded<S: Suite>(scalar: &Scalar<S>) -> Result<Zeroizing<[u8; 32]>, Abort> {
    fixed(FieldOf::<S>::serialize(scalar).as_ref().to_vec())
}

/// A scalar's encoding, as the crate hands it out.
pub(super) fn fixed(encoding: Vec<u8>) -> Result<Zeroizing<[u8; 32]>, Abort> {
    let encoding = Zeroizing::new(encoding);
    let bytes = <[u8; 32]>::try_from(encoding.as_slice());
    bytes.map(Zeroizing::new).map_err(|_| Abort::local("a scalar of another length than 32 bytes"))
}

/// A share as the crate takes it.
pub(super) fn signing_share<S: Suite>(secret: &SecretShare) -> Result<Zeroizing<SigningShare<S>>, Abort> {
    SigningShare::deserialize(secret.as_bytes())
        .map(Zeroizing::new)
        .map_err(|_| Abort::local("the secret share is not below the group order"))
}

/// Where a signer's share lies on the polynomial.
fn x<S: Suite>(index: SignerIndex) -> Scalar<S> {
    let identifier = identifier::<S>(index);
    scalar::<S>(&identifier.serialize()).expect("an identifier is a scalar of the group")
}

/// The value at a signer of a polynomial that is given by its coefficients in the exponent, the lowest first.
pub(super) fn value_in_exponent<S: Suite>(index: SignerIndex, coefficients: &[Element<S>]) -> Element<S> {
    let x = x::<S>(index);
    coefficients.iter().rev().fold(S::Group::identity(), |value, &next| value * x + next)
}

/// What the share of a signer counts for when these signers' shares, it among them, give the value at 0 (Lagrange).
pub(super) fn weight_at_zero<S: Suite>(of: SignerIndex, signers: &BTreeSet<SignerIndex>) -> Scalar<S> {
    let (mut numerator, mut denominator) = (FieldOf::<S>::one(), FieldOf::<S>::one());
    for &other in signers.iter().filter(|&&other| other != of) {
        numerator = numerator * x::<S>(other);
        denominator = denominator * (x::<S>(other) - x::<S>(of));
    }
    numerator * FieldOf::<S>::invert(&denominator).expect("signers with other indices differ")
}

/// The value at 0 of the polynomial (in the exponent) through all of these points. `None` when it is the identity.
pub(crate) fn at_zero<S: Suite>(shares: &BTreeMap<SignerIndex, S::Point>) -> Option<S::Point> {
    let signers: BTreeSet<SignerIndex> = shares.keys().copied().collect();
    let mut sum = S::Group::identity();
    for (&index, share) in shares {
        sum = sum + element::<S>(share)? * weight_at_zero::<S>(index, &signers);
    }
    point::<S>(&sum)
}

/// Whom an error of the crate blames, in a session with these `others`. It names only who sent what does not verify, and
/// senders are authenticated.
pub(super) fn blame<C: Ciphersuite>(error: &Error<C>, others: &BTreeSet<SignerIndex>) -> Abort {
    let named = error.culprits();
    let culprits: BTreeSet<SignerIndex> =
        others.iter().copied().filter(|&other| named.contains(&identifier(other))).collect();
    if culprits.is_empty() {
        return Abort::local(error.to_string());
    }
    Abort { blame: Blame::Cheating { culprits, ban: false }, reason: error.to_string() }
}
