//! Engines for Schnorr signatures: FROST (RFC 9591), on the crates of the Zcash Foundation.
//!
//! [`FrostEd25519`] makes Ed25519 signatures, by FROST(Ed25519, SHA-512). [`FrostSecp256k1Tr`] makes those of BIP-340 over
//! secp256k1, by the ciphersuite of the crate `frost-secp256k1-tr`, which is no part of the RFC: it is FROST with the
//! challenge of BIP-340, and negates what has an odd y.
//!
//! The crates have the cryptography; this module has what they leave to their callers: the encoding and the order of
//! messages, broadcasts that are the same for all, the comparison that ends key generation, who is to blame, and new
//! shares for a key. There is no coordinator: every signer of a quorum puts the signature together, and checks it.
//!
//! | protocol | round | on the wire | direct | broadcast |
//! |---|---|---|---|---|
//! | key generation | 1 | 1, echo 2 | | commitments to the sender's polynomial; a proof that it knows its value at 0 |
//! | | 2 | 3 | a share of the sender's polynomial | |
//! | | 3 | 4, echo 5 | | a hash of the result |
//! | renewal | 1 | 1, echo 2 | a dealer's share, dealt anew | a dealer's: the key and the public shares; commitments to its polynomial |
//! | | 2 | 3, echo 4 | | a hash of the result |
//! | signing | 1 | 1, echo 2 | | commitments to the nonces; a hash of what is signed, and by whom |
//! | | 2 | 3 | the sender's share of the signature | |
//!
//! Between two parties there are no echoes, and a round has the same number on the wire as here.
//!
//! # Taproot
//!
//! A key over secp256k1 is a key of BIP-340 as it is: its signatures verify with its own x-coordinate, those at a path
//! with the x-coordinate of the key that BIP-32 derives. No taproot tweak is added in signing. But the crate ends key
//! generation with one, that of BIP-341 for a key without scripts, so that none of the signers can have hidden a script
//! in their common key. The key that comes out is the tweaked one; nothing else is ever known by its name.
//!
//! # What is not there
//!
//! Keys made elsewhere are not taken over ([`Engine::import`]): what a [`ForeignShare`] is of is an ECDSA key.

pub(crate) mod group;
mod keygen;
mod renew;
mod sign;
mod suite;
#[cfg(test)]
mod vectors;

use std::marker::PhantomData;
use std::sync::Arc;

use frost_ed25519::Ed25519Sha512;
use frost_secp256k1_tr::Secp256K1Sha256TR;

pub use self::suite::{Derived, Suite};
use crate::{
    Engine, EngineId, ForeignShare, KeygenSetup, Machine, RenewSetup, SetupError, ShareDocument, ShareError,
    SigningShare,
};

/// An engine on a ciphersuite of `frost-core`.
#[derive(Clone, Copy, Debug)]
pub struct Frost<S>(PhantomData<S>);

/// The engine for Ed25519 signatures.
pub type FrostEd25519 = Frost<Ed25519Sha512>;

/// The engine for the Schnorr signatures of BIP-340.
pub type FrostSecp256k1Tr = Frost<Secp256K1Sha256TR>;

impl<S> Frost<S> {
    /// The engine.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<S> Default for Frost<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Suite> Engine for Frost<S> {
    fn id(&self) -> EngineId {
        S::ENGINE
    }

    fn keygen(&self, setup: KeygenSetup) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError> {
        Ok(Box::new(keygen::machine::<S>(setup)?))
    }

    /// Takes over none: a [`ForeignShare`] is of an ECDSA key, and to sign with one key by two schemes is no good idea.
    fn import(
        &self,
        _: KeygenSetup,
        _: &ForeignShare,
    ) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError> {
        Err(SetupError::Unsupported { engine: S::ENGINE, what: "import: it makes its own keys" })
    }

    fn renew(
        &self,
        setup: RenewSetup,
        held: Option<&ShareDocument>,
    ) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError> {
        Ok(Box::new(renew::machine::<S>(setup, held)?))
    }

    /// All that is needed is in the core of the document.
    fn open(&self, share: &ShareDocument) -> Result<Arc<dyn SigningShare>, ShareError> {
        Ok(Arc::new(sign::Share::<S>::open(share)?))
    }
}
