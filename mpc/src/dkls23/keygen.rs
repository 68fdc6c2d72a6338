//! Key generation: protocol 9.1 of <https://eprint.iacr.org/2023/602>, with the setup that signing
//! needs, and one more round that compares the results.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use dkls23::DkgSession;
use dkls23::protocols::dkg::{
    BroadcastDerivationPhase2to4, BroadcastDerivationPhase3to4, ProofCommitment, TransmitInitMulPhase3to4,
    TransmitInitZeroSharePhase2to4, TransmitInitZeroSharePhase3to4,
};
use dkls23::utilities::proofs::DLogProof;
use dkls23::utilities::zero_shares::ZeroShare;
use k256::elliptic_curve::ff::PrimeField;
use k256::{Scalar, Secp256k1};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{Correlations, blame, check_parties, parameters, party_index, signer_index};
use crate::confirmation::{confirm, confirmation};
use crate::point::{KeyPoints, Points};
use crate::rounds::{Protocol, Received, Round, RoundMachine, Turn, encode};
use crate::share::{CoreShare, EngineParts, SecretShare, VERSION};
use crate::{
    Abort, KeygenSetup, Origin, PublicKey, Recipient, Scheme, SetupError, ShareDocument, SignerIndex,
};

/// Begins what the last round hashes, so that it is the hash of nothing else.
pub(super) const CONFIRMATION: &[u8] = b"tss dkls23 keygen confirmation v1";

/// The machine of one party.
pub(super) fn machine(setup: KeygenSetup) -> Result<RoundMachine<Keygen>, SetupError> {
    let KeygenSetup { index, threshold, .. } = setup;
    if !threshold.contains(index) {
        return Err(Abort::local(format!("a {threshold} key has no signer {index}")).into());
    }
    let others: BTreeSet<SignerIndex> = threshold.signers().filter(|&other| other != index).collect();
    let rounds = vec![
        Round::direct(others.iter().copied()),
        Round::both(others.iter().copied()),
        Round::both(others.iter().copied()),
        Round::broadcast(others.iter().copied()),
    ];
    let session = DkgSession::new(parameters(threshold), party_index(index), setup.session.0.to_vec());
    let keygen = Keygen {
        setup,
        others: others.clone(),
        session: Some(session),
        own_fragment: Zeroizing::default(),
        own_proof: None,
        own_openings: None,
        commitments: BTreeMap::new(),
        zero_commitments: Vec::new(),
        result: None,
    };
    Ok(RoundMachine::new(keygen, index, others, rounds))
}

pub(super) struct Keygen {
    setup: KeygenSetup,
    others: BTreeSet<SignerIndex>,
    /// The crate's state; it zeroizes itself.
    session: Option<DkgSession<Secp256k1>>,
    own_fragment: Zeroizing<Scalar>,
    /// From round 2 to its opening.
    own_proof: Option<DLogProof<Secp256k1>>,
    own_openings: Option<Openings>,
    /// Everybody's commitments, our own too.
    commitments: BTreeMap<SignerIndex, Commitments>,
    zero_commitments: Vec<TransmitInitZeroSharePhase2to4>,
    /// What comes out if all agree, and the hash by which they do.
    result: Option<(ShareDocument, [u8; 32])>,
}

/// What a party broadcasts in round 2.
#[derive(Clone, Serialize, Deserialize)]
struct Commitments {
    /// To the public share and the proof that its secret is known.
    proof: [u8; 32],
    /// To the contribution to the chain code.
    derivation: BroadcastDerivationPhase2to4,
}

/// What a party broadcasts in round 3.
#[derive(Serialize, Deserialize)]
struct Openings {
    proof: DLogProof<Secp256k1>,
    derivation: BroadcastDerivationPhase3to4,
}

/// What a party sends to each other in round 3.
#[derive(Serialize, Deserialize)]
pub(super) struct PairSetup {
    zero: TransmitInitZeroSharePhase3to4,
    mul: TransmitInitMulPhase3to4<Secp256k1>,
}

impl PairSetup {
    /// The messages that take these to their receivers.
    pub(super) fn send(
        zero: Vec<TransmitInitZeroSharePhase3to4>,
        mul: Vec<TransmitInitMulPhase3to4<Secp256k1>>,
    ) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        let mut mul: BTreeMap<_, _> = mul.into_iter().map(|mul| (mul.parties.receiver, mul)).collect();
        let message = |zero: TransmitInitZeroSharePhase3to4| {
            let receiver = zero.parties.receiver;
            let mul = mul.remove(&receiver);
            let mul =
                mul.ok_or_else(|| Abort::local(format!("no oblivious transfers for signer {receiver}")))?;
            Ok((Recipient::One(signer_index(receiver)?), encode(&Self { zero, mul })?))
        };
        zero.into_iter().map(message).collect()
    }

    /// What the others have sent to this signer.
    pub(super) fn received(received: &Received, index: SignerIndex) -> Result<PairSetups, Abort> {
        let mut all = PairSetups { zero: Vec::new(), mul: Vec::new() };
        for (from, setup) in received.decode_direct::<Self>()? {
            check_parties(&setup.zero.parties, from, index)?;
            check_parties(&setup.mul.parties, from, index)?;
            all.zero.push(setup.zero.clone());
            all.mul.push(setup.mul.clone());
        }
        Ok(all)
    }
}

impl Drop for PairSetup {
    fn drop(&mut self) {
        // Both seeds together are what keeps the signers' key shares hidden from each other.
        self.zero.seed.zeroize();
    }
}

/// What all others have sent in round 3, as the crate takes it.
pub(super) struct PairSetups {
    pub(super) zero: Vec<TransmitInitZeroSharePhase3to4>,
    pub(super) mul: Vec<TransmitInitMulPhase3to4<Secp256k1>>,
}

impl Drop for PairSetups {
    fn drop(&mut self) {
        for message in &mut self.zero {
            message.seed.zeroize();
        }
    }
}

impl Protocol for Keygen {
    type Output = ShareDocument;

    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        let fragments = Zeroizing::new(self.session()?.phase1());
        deal(&self.setup, &fragments, &mut self.own_fragment)
    }

    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<ShareDocument>, Abort> {
        match round {
            1 => self.commit(&received),
            2 => self.open(&received),
            3 => self.finish(&received),
            4 => self.confirm(&received),
            _ => Err(Abort::local(format!("key generation has no round {round}"))),
        }
    }
}

impl Keygen {
    fn session(&mut self) -> Result<&mut DkgSession<Secp256k1>, Abort> {
        self.session.as_mut().ok_or_else(|| Abort::local("key generation is over"))
    }

    /// Sums up the shares of round 1, and commits.
    fn commit(&mut self, received: &Received) -> Result<Turn<ShareDocument>, Abort> {
        let fragments = dealt(received, mem::take(&mut self.own_fragment))?;

        let others = self.others.clone();
        let (proof, zero, derivation) =
            self.session()?.phase2(&fragments).map_err(|abort| blame(abort, &others))?;
        let commitments = Commitments { proof: proof.commitment, derivation };
        // Only the commitment leaves now: the proof shows the public share.
        self.own_proof = Some(proof.proof);
        let broadcast = encode(&commitments)?;
        self.commitments.insert(self.setup.index, commitments);

        let mut send = vec![(Recipient::All, broadcast)];
        for message in &zero {
            send.push((Recipient::One(signer_index(message.parties.receiver)?), encode(message)?));
        }
        Ok(Turn::send(send))
    }

    /// Keeps the commitments of round 2, and opens its own.
    fn open(&mut self, received: &Received) -> Result<Turn<ShareDocument>, Abort> {
        let index = self.setup.index;
        for (from, commitments) in received.decode_broadcast::<Commitments>()? {
            if commitments.derivation.sender_index != party_index(from) {
                return Err(Abort::cheating(from, "a commitment in the name of another"));
            }
            self.refuse_copy(from, &commitments)?;
            self.commitments.insert(from, commitments);
        }
        for (from, message) in received.decode_direct::<TransmitInitZeroSharePhase2to4>()? {
            check_parties(&message.parties, from, index)?;
            self.zero_commitments.push(message);
        }

        let others = self.others.clone();
        let (zero, mul, derivation) = self.session()?.phase3().map_err(|abort| blame(abort, &others))?;
        let proof = self.own_proof.take().ok_or_else(|| Abort::local("no proof to open"))?;
        let openings = Openings { proof, derivation };
        let mut send = vec![(Recipient::All, encode(&openings)?)];
        self.own_openings = Some(openings);
        send.extend(PairSetup::send(zero, mul)?);
        Ok(Turn::send(send))
    }

    /// The commitments do not say whose they are, so that one could repeat another's, and then its
    /// opening: to have the same share, or to cancel the other's part of the chain code.
    fn refuse_copy(&self, from: SignerIndex, commitments: &Commitments) -> Result<(), Abort> {
        let same = |other: &Commitments| {
            other.proof == commitments.proof
                || other.derivation.cc_commitment == commitments.derivation.cc_commitment
        };
        let Some((&other, _)) = self.commitments.iter().find(|(_, other)| same(other)) else { return Ok(()) };
        // Of two others, either could have copied; this party knows that it has not.
        let suspects = [from, other].into_iter().filter(|&suspect| suspect != self.setup.index).collect();
        Err(Abort::unattributed(suspects, format!("signers {other} and {from} sent the same commitment")))
    }

    /// Checks the openings of round 3, makes the share, and says what came out.
    fn finish(&mut self, received: &Received) -> Result<Turn<ShareDocument>, Abort> {
        let index = self.setup.index;
        let mut proofs = Vec::new();
        let mut derivation_commitments = BTreeMap::new();
        let mut derivations = BTreeMap::new();
        for (from, Openings { proof, derivation }) in received.decode_broadcast::<Openings>()? {
            if derivation.sender_index != party_index(from) {
                return Err(Abort::cheating(from, "an opening in the name of another"));
            }
            proofs.push((from, proof));
            derivations.insert(party_index(from), derivation);
        }
        let own = self.own_openings.take().ok_or_else(|| Abort::local("no opening of our own"))?;
        proofs.push((index, own.proof));
        derivations.insert(party_index(index), own.derivation);

        let mut proof_commitments = Vec::with_capacity(proofs.len());
        for (from, proof) in proofs {
            let commitments = self.commitments.get(&from);
            let commitments =
                commitments.ok_or_else(|| Abort::local(format!("no commitment of signer {from}")))?;
            derivation_commitments.insert(party_index(from), commitments.derivation.clone());
            proof_commitments.push(ProofCommitment {
                index: party_index(from),
                proof,
                commitment: commitments.proof,
            });
        }

        let pairs = PairSetup::received(received, index)?;
        let session = self.session.take().ok_or_else(|| Abort::local("key generation is over"))?;
        let outcome = session.phase4(
            &proof_commitments,
            &self.zero_commitments,
            &pairs.zero,
            &pairs.mul,
            &derivation_commitments,
            &derivations,
            |_| String::new(),
        );
        let (party, package) = outcome.map_err(|abort| blame(abort, &self.others))?;
        let document = self.document(party, &package)?;
        let hash = confirmation(CONFIRMATION, &self.setup, &document.core);
        self.result = Some((document, hash));
        Ok(Turn::send(vec![(Recipient::All, encode(&hash)?)]))
    }

    fn document(
        &self,
        mut party: dkls23::protocols::Party<Secp256k1>,
        package: &dkls23::protocols::PublicKeyPackage<Secp256k1>,
    ) -> Result<ShareDocument, Abort> {
        let KeygenSetup { session, cluster, key, index, threshold } = &self.setup;
        let public_key = PublicKey::from_affine(party.pk).map_err(|error| Abort::local(error.to_string()))?;
        let mut public_shares = BTreeMap::new();
        for signer in threshold.signers() {
            let share = package.verifying_share(party_index(signer)).copied();
            let share = share.ok_or_else(|| Abort::local(format!("no public share of signer {signer}")))?;
            // Only its owner can have arranged this, by choosing its polynomial after the others.
            let share = PublicKey::from_affine(share)
                .map_err(|_| Abort::cheating(signer, "a public share that is the point at infinity"))?;
            public_shares.insert(signer, share);
        }
        let correlations = Correlations {
            session_id: session.0,
            zero_share: mem::replace(&mut party.zero_share, ZeroShare { seeds: Vec::new() }),
            mul_senders: mem::take(&mut party.mul_senders),
            mul_receivers: mem::take(&mut party.mul_receivers),
        };
        let text = correlations.to_text().map_err(|error| Abort::local(error.to_string()))?;
        Ok(ShareDocument {
            version: VERSION,
            cluster: cluster.clone(),
            key: key.clone(),
            epoch: 1,
            scheme: Scheme::EcdsaSecp256k1,
            origin: Origin::Generated,
            core: CoreShare {
                index: *index,
                threshold: *threshold,
                secret_share: SecretShare::from_scalar(&party.poly_point),
                points: Points::Secp256k1(KeyPoints { public_key, public_shares }),
                chain_code: *party.chain_code(),
            },
            engines: EngineParts { dkls23: Some(text) },
        })
    }

    /// Compares the hashes of round 4.
    fn confirm(&mut self, received: &Received) -> Result<Turn<ShareDocument>, Abort> {
        let (document, own) = self.result.take().ok_or_else(|| Abort::local("no result to confirm"))?;
        confirm(own, received)?;
        Ok(Turn::done(document))
    }
}

/// The messages that take the values of a polynomial to the other signers; its own goes to `own`.
pub(super) fn deal(
    setup: &KeygenSetup,
    fragments: &[Scalar],
    own: &mut Scalar,
) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
    let mut send = Vec::with_capacity(fragments.len());
    for (to, fragment) in setup.threshold.signers().zip(fragments) {
        if to == setup.index {
            *own = *fragment;
        } else {
            let bytes = Zeroizing::new(<[u8; 32]>::from(fragment.to_bytes()));
            send.push((Recipient::One(to), encode(&*bytes)?));
        }
    }
    Ok(send)
}

/// What the others have dealt to this signer, and what it has itself.
pub(super) fn dealt(received: &Received, own: Zeroizing<Scalar>) -> Result<Zeroizing<Vec<Scalar>>, Abort> {
    let mut fragments = Zeroizing::new(Vec::with_capacity(received.direct().len() + 1));
    for (from, bytes) in received.decode_direct::<Zeroizing<[u8; 32]>>()? {
        let fragment = Option::<Scalar>::from(Scalar::from_repr((*bytes).into()));
        fragments.push(
            fragment.ok_or_else(|| Abort::cheating(from, "a share that is not below the group order"))?,
        );
    }
    fragments.push(*own);
    Ok(fragments)
}
