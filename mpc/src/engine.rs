//! What a threshold protocol must offer.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::share::CoreShare;
use crate::{
    Abort, AnySignature, DerivationPath, ForeignShare, Machine, Quorum, Scheme, ShareDocument, ShareError,
    SignerIndex, Threshold,
};

/// An engine's name, as it stands in configuration, messages and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineId {
    /// DKLs23 (<https://eprint.iacr.org/2023/765>), built on oblivious transfer.
    Dkls23,
    /// FROST (RFC 9591) for Ed25519 signatures.
    #[serde(rename = "frost-ed25519")]
    FrostEd25519,
    /// FROST for the Schnorr signatures of BIP-340, over secp256k1.
    #[serde(rename = "frost-secp256k1-tr")]
    FrostSecp256k1Tr,
}

impl EngineId {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dkls23 => "dkls23",
            Self::FrostEd25519 => "frost-ed25519",
            Self::FrostSecp256k1Tr => "frost-secp256k1-tr",
        }
    }
}

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EngineId {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "dkls23" => Ok(Self::Dkls23),
            "frost-ed25519" => Ok(Self::FrostEd25519),
            "frost-secp256k1-tr" => Ok(Self::FrostSecp256k1Tr),
            other => Err(format!(
                "unknown engine `{other}`: expected `dkls23`, `frost-ed25519` or `frost-secp256k1-tr`"
            )),
        }
    }
}

/// The 32-byte identity of a session, a hash over everything the parties must agree on. Never used
/// twice. Hex where a person may read it, plain bytes elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 32]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            hex::serde::deserialize(deserializer).map(Self)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..8]))
    }
}

/// What key generation, or an import, starts from. Equal at all parties but for `index`.
#[derive(Clone, Debug)]
pub struct KeygenSetup {
    /// The session's identity.
    pub session: SessionId,
    /// The cluster the key is for; stands in the share document.
    pub cluster: String,
    /// The key's id; stands in the share document.
    pub key: String,
    /// This party.
    pub index: SignerIndex,
    /// How many signers there are, and how many of them sign.
    pub threshold: Threshold,
}

/// What giving a key new shares starts from. Equal at all parties but for `index`.
#[derive(Clone, Debug)]
pub struct RenewSetup {
    /// The session's identity.
    pub session: SessionId,
    /// The cluster the key is for.
    pub cluster: String,
    /// The key's id.
    pub key: String,
    /// This party.
    pub index: SignerIndex,
    /// The epoch that ends; the new shares are of the next.
    pub epoch: u64,
    /// Who deals: t of those who hold a share, all of them among the signers to be.
    pub dealers: Quorum,
    /// How many signers there will be, and how many of them sign. All of them take part.
    pub threshold: Threshold,
}

impl RenewSetup {
    /// Checks that the dealers are signers to be, and that the share, if this signer has one, is of this key, epoch and
    /// scheme, and its dealers t of those who hold one.
    pub(crate) fn check(&self, held: Option<&ShareDocument>, scheme: Scheme) -> Result<(), SetupError> {
        let Self { cluster, key, index, epoch, dealers, threshold, .. } = self;
        if dealers.len() < 2 || !dealers.iter().all(|dealer| threshold.contains(dealer)) {
            return Err(SetupError::Quorum { quorum: dealers.clone(), threshold: *threshold });
        }
        let Some(held) = held else {
            let lost = dealers.contains(*index);
            return if lost { Err(Abort::local("it has no share to deal").into()) } else { Ok(()) };
        };
        let CoreShare { index: holder, threshold: t_of_n, .. } = held.core;
        if (&held.cluster, &held.key, held.epoch, holder) != (cluster, key, *epoch, *index) {
            let reason = format!(
                "a share of signer {holder} of key {} of cluster {} at epoch {}: expected one of signer {index} of key \
                 {key} of cluster {cluster} at epoch {epoch}",
                held.key, held.cluster, held.epoch
            );
            return Err(Abort::local(reason).into());
        }
        held.check_scheme(scheme)?;
        if dealers.len() != usize::from(t_of_n.t()) || !dealers.iter().all(|dealer| t_of_n.contains(dealer)) {
            return Err(SetupError::Quorum { quorum: dealers.clone(), threshold: t_of_n });
        }
        Ok(())
    }
}

/// What signing starts from. Equal at all parties of the quorum.
#[derive(Clone, Debug)]
pub struct SignSetup {
    /// The session's identity.
    pub session: SessionId,
    /// Exactly t signers, this one among them.
    pub quorum: Quorum,
    /// What to sign.
    pub payload: Payload,
    /// Which derived key signs.
    pub path: DerivationPath,
}

impl SignSetup {
    /// Checks that the quorum is t signers of the key, and that `index` is one of them.
    pub(crate) fn check(&self, index: SignerIndex, threshold: Threshold) -> Result<(), SetupError> {
        let quorum = &self.quorum;
        if quorum.len() != usize::from(threshold.t()) || !quorum.iter().all(|index| threshold.contains(index))
        {
            return Err(SetupError::Quorum { quorum: quorum.clone(), threshold });
        }
        if quorum.contains(index) { Ok(()) } else { Err(SetupError::NotInQuorum(index)) }
    }
}

/// What is to be signed. Which of the two a key takes is for its scheme to say: an engine refuses the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A 32-byte digest, which ECDSA and BIP-340 sign.
    Digest([u8; 32]),
    /// A message of any length, which Ed25519 signs as it is: it hashes for itself.
    Message(Vec<u8>),
}

impl Payload {
    /// The digest, which keys for `scheme` sign.
    ///
    /// # Errors
    /// [`SetupError::Payload`] when it is a message.
    pub(crate) fn digest(&self, scheme: Scheme) -> Result<&[u8; 32], SetupError> {
        match self {
            Self::Digest(digest) => Ok(digest),
            Self::Message(_) => {
                Err(SetupError::Payload { scheme, found: "a message", expected: "a digest of 32 bytes" })
            }
        }
    }

    /// The message, which keys for `scheme` sign.
    ///
    /// # Errors
    /// [`SetupError::Payload`] when it is a digest.
    pub(crate) fn message(&self, scheme: Scheme) -> Result<&[u8], SetupError> {
        match self {
            Self::Message(message) => Ok(message),
            Self::Digest(_) => {
                Err(SetupError::Payload { scheme, found: "a digest", expected: "the message itself" })
            }
        }
    }
}

/// A setup that no session can start from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The quorum has not exactly t members, or names a signer that does not exist.
    #[error("quorum {quorum:?} does not fit a {threshold} key")]
    Quorum {
        /// The quorum that was given.
        quorum: Quorum,
        /// What the key needs.
        threshold: Threshold,
    },
    /// This signer is not part of the quorum.
    #[error("signer {0} is not part of the quorum")]
    NotInQuorum(SignerIndex),
    /// The path leads to no key: a chance of 2⁻¹²⁷ for a path that parsed, or any but the root's for Ed25519, whose
    /// keys have no derivation from public data that is agreed on.
    #[error("the path {0} derives no key (of an Ed25519 key there is the root `m` alone)")]
    Path(DerivationPath),
    /// The scheme signs a digest, and was given a message, or the other way round.
    #[error("a key for {scheme} was given {found} to sign: expected {expected}")]
    Payload {
        /// What the key is for.
        scheme: Scheme,
        /// What it was given.
        found: &'static str,
        /// What it signs.
        expected: &'static str,
    },
    /// The engine has no such protocol.
    #[error("the engine `{engine}` has no {what}")]
    Unsupported {
        /// Which engine.
        engine: EngineId,
        /// What it lacks.
        what: &'static str,
    },
    /// The share is of no use to this engine.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The protocol refused to start.
    #[error(transparent)]
    Abort(#[from] Abort),
}

/// A threshold protocol.
pub trait Engine: Send + Sync {
    /// Its name.
    fn id(&self) -> EngineId;

    /// One party of a key generation. Every party ends with its own share document, or none does
    /// before all have shown that they hold the same public key.
    ///
    /// # Errors
    /// [`SetupError`] when the setup fits no key.
    fn keygen(&self, setup: KeygenSetup) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError>;

    /// One party of taking over a key that was made elsewhere: all its signers show that their shares belong together,
    /// and end with new ones of the same public key, that what they brought does not fit. Every party ends with its own
    /// share document, or none does before all have shown that they hold the same.
    ///
    /// # Errors
    /// [`SetupError`] when the share is not the one that the setup is for, or the engine takes over none.
    fn import(
        &self,
        setup: KeygenSetup,
        share: &ForeignShare,
    ) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError>;

    /// One party of giving a key new shares: for the same signers, which makes the old ones useless; for more, fewer or
    /// others; or for one that has lost its share. The public key and the chain code stay. `held`: the share that this
    /// signer has, if it has one; its engine part is not needed. Every party ends with its own share document, of the
    /// next epoch, or none does before all have shown that they hold the same.
    ///
    /// # Errors
    /// [`SetupError`] when the share is not of this key and epoch, or the dealers are not those of the setup's kind.
    fn renew(
        &self,
        setup: RenewSetup,
        held: Option<&ShareDocument>,
    ) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError>;

    /// Reads this engine's part of a share document, once; signing then starts from memory.
    ///
    /// # Errors
    /// [`ShareError`] when the document has no such part, or one that contradicts its core.
    fn open(&self, share: &ShareDocument) -> Result<Arc<dyn SigningShare>, ShareError>;
}

/// A share that is ready to sign.
pub trait SigningShare: Send + Sync {
    /// One party of a signing session. The output is of the key's scheme and has been verified against the public key;
    /// of ECDSA, it has a low s and the right recovery id.
    ///
    /// # Errors
    /// [`SetupError`] when the quorum, the path or what is to be signed does not fit the key.
    fn sign(&self, setup: SignSetup) -> Result<Box<dyn Machine<Output = AnySignature>>, SetupError>;
}
