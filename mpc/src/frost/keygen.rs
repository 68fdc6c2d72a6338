//! Key generation: that of the FROST paper (<https://eprint.iacr.org/2020/852>, figure 1), which is Pedersen's with a proof
//! that each knows what it contributes, and one more round that compares the results.
//!
//! Whoever speaks last can choose among several keys that come out, as with all of this kind; that does not help it to
//! sign. That no fewer shares than t give the key is checked at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use frost_core::keys::dkg::{self, round1, round2};
use frost_core::keys::{KeyPackage, PublicKeyPackage, SigningShare, VerifiableSecretSharingCommitment};
use frost_core::{Identifier, Signature};
use rand_core::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::Suite;
use super::group::{blame, by_identifier, coefficients, fixed, identifier};
use crate::confirmation::{confirm, confirmation};
use crate::point::{KeyPoints, Point};
use crate::rounds::{Protocol, Received, Round, RoundMachine, Turn, encode};
use crate::share::{CoreShare, EngineParts, SecretShare, VERSION};
use crate::{Abort, KeygenSetup, Origin, Recipient, SetupError, ShareDocument, SignerIndex};

/// Begins what the last round hashes, so that it is the hash of nothing else.
const CONFIRMATION: &[u8] = b"tss frost keygen confirmation v1";

/// Begins what the chain code is a hash of.
const CHAIN_CODE: &[u8] = b"tss frost chain code v1";

/// The machine of one party.
pub(super) fn machine<S: Suite>(setup: KeygenSetup) -> Result<RoundMachine<Keygen<S>>, SetupError> {
    let KeygenSetup { index, threshold, .. } = setup;
    if !threshold.contains(index) {
        return Err(Abort::local(format!("a {threshold} key has no signer {index}")).into());
    }
    let others: BTreeSet<SignerIndex> = threshold.signers().filter(|&other| other != index).collect();
    let rounds = vec![
        Round::broadcast(others.iter().copied()),
        Round::direct(others.iter().copied()),
        Round::broadcast(others.iter().copied()),
    ];
    let keygen = Keygen { setup, others: others.clone(), state: State::Begin };
    Ok(RoundMachine::new(keygen, index, others, rounds))
}

pub(super) struct Keygen<S: Suite> {
    setup: KeygenSetup,
    others: BTreeSet<SignerIndex>,
    state: State<S>,
}

/// What is kept from one round for the next. The crate's secrets zeroize themselves.
enum State<S: Suite> {
    Begin,
    /// This party's polynomial, and what it has broadcast.
    Committed(round1::SecretPackage<S>, Vec<u8>),
    Dealt {
        secret: round2::SecretPackage<S>,
        packages: BTreeMap<Identifier<S>, round1::Package<S>>,
        chain_code: [u8; 32],
    },
    /// What comes out if all agree, and the hash by which they do.
    Shown(Box<ShareDocument>, [u8; 32]),
    Ended,
}

/// What a party broadcasts in round 1.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
struct Commitment<P: Point> {
    /// The coefficients of its polynomial times the generator, the lowest first.
    coefficients: Vec<P>,
    /// A Schnorr signature with the lowest as the key.
    proof: Vec<u8>,
}

impl<S: Suite> Protocol for Keygen<S> {
    type Output = ShareDocument;

    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        let KeygenSetup { index, threshold, .. } = self.setup;
        let (secret, package) =
            dkg::part1::<S, _>(identifier(index), threshold.n().into(), threshold.t().into(), OsRng)
                .map_err(|error| self.blame(&error))?;
        let commitment = Commitment {
            coefficients: coefficients::<S>(package.commitment())?,
            proof: package.proof_of_knowledge().serialize().map_err(|error| self.blame(&error))?,
        };
        let body = encode(&commitment)?;
        self.state = State::Committed(secret, body.clone());
        Ok(vec![(Recipient::All, body)])
    }

    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<ShareDocument>, Abort> {
        match (round, mem::replace(&mut self.state, State::Ended)) {
            (1, State::Committed(secret, own)) => self.deal(secret, &own, &received),
            (2, State::Dealt { secret, packages, chain_code }) => {
                self.finish(&secret, &packages, chain_code, &received)
            }
            (3, State::Shown(document, own)) => {
                confirm(own, &received)?;
                Ok(Turn::done(*document))
            }
            _ => Err(Abort::local(format!("key generation is not at round {round}"))),
        }
    }
}

impl<S: Suite> Keygen<S> {
    /// Checks the proofs of round 1, and deals.
    fn deal(
        &mut self,
        secret: round1::SecretPackage<S>,
        own: &[u8],
        received: &Received,
    ) -> Result<Turn<ShareDocument>, Abort> {
        let chain_code = self.chain_code(own, received);
        let mut packages = BTreeMap::new();
        for (from, commitment) in received.decode_broadcast::<Commitment<S::Point>>()? {
            packages.insert(identifier(from), self.package(from, &commitment)?);
        }
        let (secret, shares) = dkg::part2(secret, &packages).map_err(|error| self.blame(&error))?;
        let mut send = Vec::with_capacity(shares.len());
        for &to in &self.others {
            let share = shares.get(&identifier(to));
            let share = share.ok_or_else(|| Abort::local(format!("no share for signer {to}")))?;
            send.push((Recipient::One(to), encode(&fixed(share.signing_share().serialize())?)?));
        }
        self.state = State::Dealt { secret, packages, chain_code };
        Ok(Turn::send(send))
    }

    fn package(
        &self,
        from: SignerIndex,
        commitment: &Commitment<S::Point>,
    ) -> Result<round1::Package<S>, Abort> {
        let Commitment { coefficients, proof } = commitment;
        let (found, expected) = (coefficients.len(), self.setup.threshold.t());
        if found != usize::from(expected) {
            let reason = format!("{found} commitments to a polynomial: expected {expected}");
            return Err(Abort::cheating(from, reason));
        }
        let commitment =
            VerifiableSecretSharingCommitment::deserialize(coefficients.iter().map(Point::to_encoding));
        let malformed = |error: frost_core::Error<S>| Abort::cheating(from, error.to_string());
        let proof = Signature::deserialize(proof).map_err(malformed)?;
        Ok(round1::Package::new(commitment.map_err(malformed)?, proof))
    }

    /// A hash of all broadcasts of round 1. A chain code is no secret, and has to be random in no strict sense (BIP-328
    /// takes the same one for all keys); this one nobody can choose, and the echo has made sure that all have it.
    fn chain_code(&self, own: &[u8], received: &Received) -> [u8; 32] {
        let mut bodies: BTreeMap<SignerIndex, &[u8]> =
            received.broadcast().iter().map(|(&from, body)| (from, body.as_slice())).collect();
        bodies.insert(self.setup.index, own);
        let mut hash = Sha256::new_with_prefix(CHAIN_CODE);
        hash.update(self.setup.session.0);
        for (from, body) in bodies {
            hash.update([from.get()]);
            hash.update((body.len() as u64).to_be_bytes());
            hash.update(body);
        }
        hash.finalize().into()
    }

    /// Checks the shares of round 2, adds them up, and says what came out.
    fn finish(
        &mut self,
        secret: &round2::SecretPackage<S>,
        packages: &BTreeMap<Identifier<S>, round1::Package<S>>,
        chain_code: [u8; 32],
        received: &Received,
    ) -> Result<Turn<ShareDocument>, Abort> {
        let mut shares = BTreeMap::new();
        for (from, bytes) in received.decode_direct::<Zeroizing<[u8; 32]>>()? {
            let share = SigningShare::deserialize(&*bytes)
                .map_err(|_| Abort::cheating(from, "a share that is not below the group order"))?;
            shares.insert(from, round2::Package::new(share));
        }
        let outcome = dkg::part3(secret, packages, &by_identifier(shares));
        let (key, public) = outcome.map_err(|error| self.blame(&error))?;
        let document = self.document(&key, &public, chain_code)?;
        let hash = confirmation(CONFIRMATION, &self.setup, &document.core);
        self.state = State::Shown(Box::new(document), hash);
        Ok(Turn::send(vec![(Recipient::All, encode(&hash)?)]))
    }

    fn document(
        &self,
        key: &KeyPackage<S>,
        public: &PublicKeyPackage<S>,
        chain_code: [u8; 32],
    ) -> Result<ShareDocument, Abort> {
        let KeygenSetup { cluster, key: id, index, threshold, .. } = &self.setup;
        let suspect_all = |reason: String| Abort::unattributed(self.others.clone(), reason);
        // The identity alone has no encoding. Any of those who spoke last can have arranged for it.
        let point = |encoding: Result<Vec<u8>, frost_core::Error<S>>, what: &str| {
            let point = encoding.ok().and_then(|bytes| S::Point::from_encoding(&bytes));
            point.ok_or_else(|| suspect_all(format!("{what} that is the identity")))
        };
        let mut public_shares = BTreeMap::new();
        for signer in threshold.signers() {
            let share = public.verifying_shares().get(&identifier(signer));
            let share = share.ok_or_else(|| Abort::local(format!("no public share of signer {signer}")))?;
            public_shares.insert(signer, point(share.serialize(), "a public share")?);
        }
        let public_key = point(public.verifying_key().serialize(), "a public key")?;
        let points = KeyPoints { public_key, public_shares };
        let secret = fixed(key.signing_share().serialize())?;
        let secret_share = SecretShare::from_bytes(&secret);
        points
            .check_share(*index, *threshold, &secret_share)
            .map_err(|error| suspect_all(error.to_string()))?;
        Ok(ShareDocument {
            version: VERSION,
            cluster: cluster.clone(),
            key: id.clone(),
            epoch: 1,
            scheme: S::SCHEME,
            origin: Origin::Generated,
            core: CoreShare {
                index: *index,
                threshold: *threshold,
                secret_share,
                points: S::points(points),
                chain_code,
            },
            engines: EngineParts::default(),
        })
    }

    fn blame(&self, error: &frost_core::Error<S>) -> Abort {
        blame(error, &self.others)
    }
}
