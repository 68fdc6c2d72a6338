//! Signing: the two rounds of RFC 9591, without a coordinator. Each signer sends its commitments, then its share of the
//! signature, to all others; each puts the signature together and checks it.
//!
//! The nonces are drawn when a machine starts, used once, and gone with it. Nothing of them is ever stored.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use frost_core::keys::{KeyPackage, PublicKeyPackage, VerifyingShare};
use frost_core::round1::{self, NonceCommitment, SigningCommitments, SigningNonces};
use frost_core::round2::{self, SignatureShare};
use frost_core::{CheaterDetection, SigningPackage, VerifyingKey};
use rand_core::{CryptoRng, OsRng, RngCore};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::group::{blame, by_identifier, identifier, signing_share};
use super::{Derived, Suite};
use crate::abort::list;
use crate::point::{KeyPoints, Point};
use crate::rounds::{Protocol, Received, Round, RoundMachine, Turn, encode};
use crate::share::SecretShare;
use crate::{
    Abort, AnySignature, Blame, Machine, Payload, Quorum, Recipient, SetupError, ShareDocument, ShareError,
    SignSetup, SignerIndex, SigningShare, Threshold,
};

/// Begins what the signers' hash of a session is of.
const CONTEXT: &[u8] = b"tss frost signing context v1";

/// A share that is ready to sign.
pub(super) struct Share<S: Suite> {
    index: SignerIndex,
    threshold: Threshold,
    epoch: u64,
    secret: SecretShare,
    points: KeyPoints<S::Point>,
    chain_code: [u8; 32],
}

impl<S: Suite> Share<S> {
    pub(super) fn open(document: &ShareDocument) -> Result<Self, ShareError> {
        let core = &document.core;
        let points = S::points_of(document)?;
        // A document that was not read, but made, may never have been checked.
        points.check_share(core.index, core.threshold, &core.secret_share)?;
        Ok(Self {
            index: core.index,
            threshold: core.threshold,
            epoch: document.epoch,
            secret: core.secret_share.clone(),
            points: points.clone(),
            chain_code: core.chain_code,
        })
    }

    /// One party of a signing session, whose nonces are drawn from `random`.
    pub(super) fn machine<R: RngCore + CryptoRng + Send>(
        &self,
        setup: SignSetup,
        random: R,
    ) -> Result<RoundMachine<Sign<S, R>>, SetupError> {
        setup.check(self.index, self.threshold)?;
        let message = S::message(&setup.payload)?.to_vec();
        let derived = S::derive(&self.secret, &self.points, &self.chain_code, &setup.path)?;
        let Derived { secret, points } = derived.ok_or_else(|| SetupError::Path(setup.path.clone()))?;
        let others: BTreeSet<SignerIndex> = setup.quorum.others(self.index).collect();
        let rounds = vec![Round::broadcast(others.iter().copied()), Round::direct(others.iter().copied())];
        let sign = Sign {
            key: self.key_package(&secret, &points)?,
            public: public_key_package(&points, &setup.quorum, self.threshold)?,
            context: self.context(&setup, &points, &message),
            public_key: points.public_key,
            payload: setup.payload,
            message,
            index: self.index,
            others: others.clone(),
            random,
            state: State::Begin,
        };
        Ok(RoundMachine::new(sign, self.index, others, rounds))
    }

    fn key_package(
        &self,
        secret: &SecretShare,
        points: &KeyPoints<S::Point>,
    ) -> Result<KeyPackage<S>, Abort> {
        let own = points.public_shares.get(&self.index);
        let own = own.ok_or_else(|| Abort::local("no public share of its own"))?;
        let share = signing_share::<S>(secret)?;
        let threshold = self.threshold.t().into();
        Ok(KeyPackage::new(
            identifier(self.index),
            *share,
            verifying_share::<S>(own)?,
            verifying_key::<S>(&points.public_key)?,
            threshold,
        ))
    }

    /// A hash of all that the signers must have in common. Without it, two who mean different things would each find the
    /// other's share of the signature wrong, and take an honest signer for a cheat.
    fn context(&self, setup: &SignSetup, points: &KeyPoints<S::Point>, message: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        add(CONTEXT);
        add(S::ID.as_bytes());
        add(&setup.session.0);
        let quorum: Vec<u8> = setup.quorum.iter().map(SignerIndex::get).collect();
        add(&quorum);
        add(&[self.threshold.t(), self.threshold.n()]);
        add(&self.epoch.to_be_bytes());
        // Of the derived key, so that the path needs no place here.
        add(&points.public_key.to_encoding());
        for share in points.public_shares.values() {
            add(&share.to_encoding());
        }
        add(message);
        hash.finalize().into()
    }
}

impl<S: Suite> SigningShare for Share<S> {
    fn sign(&self, setup: SignSetup) -> Result<Box<dyn Machine<Output = AnySignature>>, SetupError> {
        Ok(Box::new(self.machine(setup, OsRng)?))
    }
}

fn verifying_share<S: Suite>(point: &S::Point) -> Result<VerifyingShare<S>, Abort> {
    VerifyingShare::deserialize(&point.to_encoding()).map_err(|error| Abort::local(error.to_string()))
}

fn verifying_key<S: Suite>(point: &S::Point) -> Result<VerifyingKey<S>, Abort> {
    VerifyingKey::deserialize(&point.to_encoding()).map_err(|error| Abort::local(error.to_string()))
}

/// The key, and the public shares of the quorum: those of the others are not needed, and take their time to decode.
fn public_key_package<S: Suite>(
    points: &KeyPoints<S::Point>,
    quorum: &Quorum,
    threshold: Threshold,
) -> Result<PublicKeyPackage<S>, Abort> {
    let shares = points.public_shares.iter().filter(|(index, _)| quorum.contains(**index));
    let shares: BTreeMap<_, _> = shares
        .map(|(&index, share)| Ok((index, verifying_share::<S>(share)?)))
        .collect::<Result<_, Abort>>()?;
    let key = verifying_key::<S>(&points.public_key)?;
    Ok(PublicKeyPackage::new(by_identifier(shares), key, Some(threshold.t().into())))
}

pub(super) struct Sign<S: Suite, R> {
    /// The derived key's share; it zeroizes itself.
    key: KeyPackage<S>,
    /// The derived key and the quorum's public shares.
    public: PublicKeyPackage<S>,
    public_key: S::Point,
    context: [u8; 32],
    payload: Payload,
    /// What of the payload is signed.
    message: Vec<u8>,
    index: SignerIndex,
    others: BTreeSet<SignerIndex>,
    random: R,
    state: State<S>,
}

/// What is kept from one round for the next: taken out before it is used, so that nothing is used twice.
enum State<S: Suite> {
    Begin,
    /// The nonces; they zeroize themselves.
    Committed(SigningNonces<S>),
    /// Everybody's commitments, and this signer's share of the signature.
    Shared(SigningPackage<S>, SignatureShare<S>),
    Ended,
}

/// What a signer broadcasts in round 1.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
struct Commitments<P: Point> {
    /// [`Share::context`].
    context: [u8; 32],
    hiding: P,
    binding: P,
}

impl<S: Suite, R: RngCore + CryptoRng + Send> Protocol for Sign<S, R> {
    type Output = AnySignature;

    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        let (nonces, commitments) = round1::commit(self.key.signing_share(), &mut self.random);
        self.state = State::Committed(nonces);
        let point = |commitment: &NonceCommitment<S>| {
            let encoding = commitment.serialize().ok();
            let point = encoding.and_then(|bytes| S::Point::from_encoding(&bytes));
            point.ok_or_else(|| Abort::local("a nonce that is zero"))
        };
        let body = encode(&Commitments {
            context: self.context,
            hiding: point(commitments.hiding())?,
            binding: point(commitments.binding())?,
        })?;
        Ok(vec![(Recipient::All, body)])
    }

    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<AnySignature>, Abort> {
        match (round, mem::replace(&mut self.state, State::Ended)) {
            (1, State::Committed(nonces)) => self.share(&nonces, &received),
            (2, State::Shared(package, own)) => self.assemble(&package, own, &received),
            _ => Err(Abort::local(format!("signing is not at round {round}"))),
        }
    }
}

impl<S: Suite, R> Sign<S, R> {
    /// Makes this signer's share of the signature.
    ///
    /// The commitments have been echoed. RFC 9591 does not ask for it: signers that were given different ones only fail
    /// to sign. But each would then find the others' shares wrong, and blame the honest with the cheat.
    fn share(&mut self, nonces: &SigningNonces<S>, received: &Received) -> Result<Turn<AnySignature>, Abort> {
        let all = received.decode_broadcast::<Commitments<S::Point>>()?;
        let differ: BTreeSet<SignerIndex> =
            all.iter().filter(|(_, other)| other.context != self.context).map(|(&from, _)| from).collect();
        if !differ.is_empty() {
            // Whoever asked may have told them something else, or this signer: no proof against anybody.
            let reason = format!("{} signs something else, or with another key", list(&differ));
            return Err(Abort { blame: Blame::Unattributed { suspects: differ }, reason });
        }
        let mut commitments = BTreeMap::from([(self.index, SigningCommitments::from(nonces))]);
        for (from, Commitments { hiding, binding, .. }) in all {
            let read = |point: S::Point| {
                NonceCommitment::deserialize(&point.to_encoding())
                    .map_err(|error| Abort::cheating(from, error.to_string()))
            };
            commitments.insert(from, SigningCommitments::new(read(hiding)?, read(binding)?));
        }
        let package = SigningPackage::new(by_identifier(commitments), &self.message);
        let own = round2::sign(&package, nonces, &self.key).map_err(|error| self.blame(&error))?;
        // To each by itself, as there is nothing to echo: whose share is wrong, each finds out for itself.
        let body = encode(&own.serialize())?;
        let send = self.others.iter().map(|&to| (Recipient::One(to), body.clone())).collect();
        self.state = State::Shared(package, own);
        Ok(Turn::send(send))
    }

    /// Puts the signature together, and checks it.
    fn assemble(
        &self,
        package: &SigningPackage<S>,
        own: SignatureShare<S>,
        received: &Received,
    ) -> Result<Turn<AnySignature>, Abort> {
        let mut shares = BTreeMap::from([(self.index, own)]);
        for (from, bytes) in received.decode_direct::<Vec<u8>>()? {
            let share = SignatureShare::deserialize(&bytes)
                .map_err(|_| Abort::cheating(from, "a share of the signature that is none"))?;
            shares.insert(from, share);
        }
        let shares = by_identifier(shares);
        // The crate verifies the signature, and if it does not stand, each share.
        let signature =
            frost_core::aggregate_custom(package, &shares, &self.public, CheaterDetection::AllCheaters)
                .and_then(|signature| signature.serialize())
                .map_err(|error| self.blame(&error))?;
        let bytes = <[u8; 64]>::try_from(signature)
            .map_err(|_| Abort::local("a signature of another length than 64 bytes"))?;
        let signature = S::signature(bytes);
        // Again, by an implementation of its own.
        signature
            .verify(&S::key(self.public_key), &self.payload)
            .map_err(|error| Abort::local(error.to_string()))?;
        Ok(Turn::done(signature))
    }

    fn blame(&self, error: &frost_core::Error<S>) -> Abort {
        blame(error, &self.others)
    }
}
