//! What the engines differ in: the group, the scheme, and what is derived of a key.

use frost_core::Ciphersuite;
use frost_ed25519::Ed25519Sha512;
use frost_secp256k1_tr::Secp256K1Sha256TR;
use k256::{ProjectivePoint, Scalar};
use zeroize::Zeroizing;

use crate::key::derivation_root;
use crate::point::{KeyPoints, Point, Points};
use crate::share::SecretShare;
use crate::{
    AnyKey, AnySignature, DerivationPath, Ed25519Key, Ed25519Signature, EngineId, Payload, PublicKey, Scheme,
    SchnorrSignature, SetupError, ShareDocument, ShareError,
};

/// What a share is at a path.
pub struct Derived<P> {
    /// The share of the derived key.
    pub secret: SecretShare,
    /// The derived key and its public shares.
    pub points: KeyPoints<P>,
}

/// A ciphersuite of `frost-core` as an engine uses it.
pub trait Suite: Ciphersuite {
    /// The engine's name.
    const ENGINE: EngineId;
    /// What its keys are for.
    const SCHEME: Scheme;

    /// The points of its group.
    type Point: Point;

    /// These points as those of a key.
    fn points(points: KeyPoints<Self::Point>) -> Points;

    /// A point as a public key.
    fn key(point: Self::Point) -> AnyKey;

    /// The points of a share's key.
    ///
    /// # Errors
    /// [`ShareError::Scheme`] when the key is for another scheme.
    fn points_of(document: &ShareDocument) -> Result<&KeyPoints<Self::Point>, ShareError>;

    /// The bytes that are signed.
    ///
    /// # Errors
    /// [`SetupError::Payload`] when the scheme signs something else.
    fn message(payload: &Payload) -> Result<&[u8], SetupError>;

    /// The share and the points that the derived key at `path` has. `None` when there is no such key.
    ///
    /// # Errors
    /// [`ShareError`] when the share is no scalar of the group.
    fn derive(
        secret: &SecretShare,
        root: &KeyPoints<Self::Point>,
        chain_code: &[u8; 32],
        path: &DerivationPath,
    ) -> Result<Option<Derived<Self::Point>>, ShareError>;

    /// The signature with these bytes.
    fn signature(bytes: [u8; 64]) -> AnySignature;
}

impl Suite for Ed25519Sha512 {
    const ENGINE: EngineId = EngineId::FrostEd25519;
    const SCHEME: Scheme = Scheme::Ed25519;

    type Point = Ed25519Key;

    fn points(points: KeyPoints<Ed25519Key>) -> Points {
        Points::Ed25519(points)
    }

    fn key(point: Ed25519Key) -> AnyKey {
        AnyKey::Ed25519(point)
    }

    fn points_of(document: &ShareDocument) -> Result<&KeyPoints<Ed25519Key>, ShareError> {
        document.check_scheme(Self::SCHEME)?;
        match &document.core.points {
            Points::Ed25519(points) => Ok(points),
            Points::Secp256k1(_) => Err(ShareError::Inconsistent("an Ed25519 key of secp256k1".into())),
        }
    }

    fn message(payload: &Payload) -> Result<&[u8], SetupError> {
        payload.message(Self::SCHEME)
    }

    /// There is the root alone: for Ed25519 no derivation from public data is agreed on. (SLIP-10 has hardened steps only;
    /// BIP32-Ed25519 and its kin are used by a few, and differ.)
    fn derive(
        secret: &SecretShare,
        root: &KeyPoints<Ed25519Key>,
        _: &[u8; 32],
        path: &DerivationPath,
    ) -> Result<Option<Derived<Ed25519Key>>, ShareError> {
        let root = || Derived { secret: secret.clone(), points: root.clone() };
        Ok(path.steps().is_empty().then(root))
    }

    fn signature(bytes: [u8; 64]) -> AnySignature {
        AnySignature::Ed25519(Ed25519Signature::from_bytes(bytes))
    }
}

impl Suite for Secp256K1Sha256TR {
    const ENGINE: EngineId = EngineId::FrostSecp256k1Tr;
    const SCHEME: Scheme = Scheme::SchnorrSecp256k1;

    type Point = PublicKey;

    fn points(points: KeyPoints<PublicKey>) -> Points {
        Points::Secp256k1(points)
    }

    fn key(point: PublicKey) -> AnyKey {
        AnyKey::Secp256k1(point)
    }

    fn points_of(document: &ShareDocument) -> Result<&KeyPoints<PublicKey>, ShareError> {
        document.check_scheme(Self::SCHEME)?;
        document.core.secp256k1()
    }

    fn message(payload: &Payload) -> Result<&[u8], SetupError> {
        payload.digest(Self::SCHEME).map(|digest| &digest[..])
    }

    /// BIP-32, of the root key with the y that it has. A step adds a number to the key; added to each share, it is added
    /// to what any t of them give. Of a derived key BIP-340 takes x alone, and the crate negates the shares where y is odd.
    fn derive(
        secret: &SecretShare,
        root: &KeyPoints<PublicKey>,
        chain_code: &[u8; 32],
        path: &DerivationPath,
    ) -> Result<Option<Derived<PublicKey>>, ShareError> {
        let secret = secret.to_scalar()?;
        // With a zero in the secret's place, what comes out is the number that is added.
        let mut node = derivation_root(Scalar::ZERO, *root.public_key.as_affine(), *chain_code);
        for &step in path.steps() {
            match node.derive_child(step) {
                Ok(child) => node = child,
                Err(_) => return Ok(None),
            }
        }
        let tweak = node.poly_point;
        let move_up = |point: &PublicKey| {
            let moved = ProjectivePoint::from(*point.as_affine()) + ProjectivePoint::GENERATOR * tweak;
            PublicKey::from_affine(moved.to_affine()).ok()
        };
        let shares = root.public_shares.iter().map(|(&index, share)| Some((index, move_up(share)?)));
        let Some((public_key, public_shares)) = move_up(&root.public_key).zip(shares.collect()) else {
            return Ok(None);
        };
        let secret = SecretShare::from_scalar(&Zeroizing::new(*secret + tweak));
        Ok(Some(Derived { secret, points: KeyPoints { public_key, public_shares } }))
    }

    fn signature(bytes: [u8; 64]) -> AnySignature {
        AnySignature::Schnorr(SchnorrSignature::from_bytes(bytes))
    }
}
