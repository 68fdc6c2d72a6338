//! Taking over a key that was made elsewhere: the crate's complete refresh, begun from shares that have no correlations
//! yet. [`super::renew`] ends with it, too.
//!
//! The signers first show that what they bring belongs together: each names the key and all public shares, and proves
//! that it knows the secret of its own. Then each adds a share of zero that they make together, so that what they end
//! with does not fit what they brought, and makes its correlations with each other signer. The public key stays.
//! Last, all compare what came out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::mem;

use dkls23::protocols::dkg::{
    KeepInitMulPhase3to4, KeepInitZeroSharePhase2to3, KeepInitZeroSharePhase3to4, ProofCommitment,
    TransmitInitZeroSharePhase2to4,
};
use dkls23::protocols::{Party, PartyIndex};
use dkls23::utilities::proofs::DLogProof;
use dkls23::utilities::zero_shares::{Seed, ZeroShare};
use k256::{ProjectivePoint, Scalar, Secp256k1};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::keygen::{CONFIRMATION, PairSetup, deal, dealt};
use super::{Correlations, blame, check_parties, parameters, party_index, signer_index};
use crate::abort::list;
use crate::confirmation::{confirm, confirmation};
use crate::key::derivation_root;
use crate::point::{KeyPoints, Points};
use crate::rounds::{Protocol, Received, Round, RoundMachine, Turn, encode};
use crate::share::{CoreShare, EngineParts, SecretShare, VERSION};
use crate::{
    Abort, Blame, ForeignShare, KeygenSetup, Origin, PublicKey, Recipient, Scheme, SessionId, SetupError,
    ShareDocument, SignerIndex, Threshold,
};

/// Begins what the chain code is a hash of.
const CHAIN_CODE: &[u8] = b"tss import chain code v1";

/// The machine of one party.
pub(super) fn machine(setup: KeygenSetup, share: &ForeignShare) -> Result<RoundMachine<Import>, SetupError> {
    let KeygenSetup { index, threshold, .. } = setup;
    if (share.index, share.threshold) != (index, threshold) {
        let reason = format!(
            "a share of signer {} of a {} key: expected one of signer {index} of a {threshold} key",
            share.index, share.threshold
        );
        return Err(Abort::local(reason).into());
    }
    let future = Future { epoch: 1, origin: Origin::Imported, chain_code: None };
    let import = Import::new(setup, &share.secret_share, &share.points, future)?;
    let others = import.others.clone();
    Ok(RoundMachine::new(import, index, others, rounds(index, threshold)))
}

/// The rounds in which shares without correlations become shares that sign.
pub(super) fn rounds(index: SignerIndex, threshold: Threshold) -> Vec<Round> {
    let others = || threshold.signers().filter(move |&other| other != index);
    vec![Round::both(others()), Round::both(others()), Round::both(others()), Round::broadcast(others())]
}

/// What the share documents say of the key, beside what the signers bring.
pub(super) struct Future {
    pub(super) epoch: u64,
    pub(super) origin: Origin,
    /// `None` for a key that has none yet: the signers make it together.
    pub(super) chain_code: Option<[u8; 32]>,
}

pub(super) struct Import {
    setup: KeygenSetup,
    future: Future,
    others: BTreeSet<SignerIndex>,
    /// What this signer says of the key.
    claim: Claim,
    /// The share that was brought, as the crate knows it; it zeroizes itself.
    party: Party<Secp256k1>,
    own_fragment: Zeroizing<Scalar>,
    /// This signer's share of zero.
    correction: Zeroizing<Scalar>,
    /// From round 2 to its opening.
    own_proof: Option<DLogProof<Secp256k1>>,
    own_entropy: Option<Entropy>,
    /// Everybody's commitments, our own too.
    commitments: BTreeMap<SignerIndex, Commitments>,
    zero_commitments: Vec<TransmitInitZeroSharePhase2to4>,
    zero_seeds: BTreeMap<PartyIndex, KeepInitZeroSharePhase2to3>,
    zero_kept: BTreeMap<PartyIndex, KeepInitZeroSharePhase3to4>,
    mul_kept: BTreeMap<PartyIndex, KeepInitMulPhase3to4<Secp256k1>>,
    /// What comes out if all agree, and the hash by which they do.
    result: Option<(ShareDocument, [u8; 32])>,
}

/// What a party says of the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    public_key: PublicKey,
    public_shares: BTreeMap<SignerIndex, PublicKey>,
}

/// What a party broadcasts in round 1.
#[derive(Serialize, Deserialize)]
struct Introduction {
    claim: Claim,
    /// That it knows the secret of its public share.
    proof: DLogProof<Secp256k1>,
}

/// What a party broadcasts in round 2.
#[derive(Serialize, Deserialize)]
struct Commitments {
    /// To the public share of zero and the proof that its secret is known.
    proof: [u8; 32],
    /// To the contribution to the chain code.
    entropy: [u8; 32],
}

/// What a party broadcasts in round 3.
#[derive(Serialize, Deserialize)]
struct Openings {
    proof: DLogProof<Secp256k1>,
    entropy: Entropy,
}

/// A contribution to the chain code, and what opens the commitment to it.
#[derive(Clone, Serialize, Deserialize)]
struct Entropy {
    seed: Seed,
    salt: Vec<u8>,
}

/// A share as the crate knows it, so that it can be refreshed.
pub(super) fn party_without_correlations(
    session: SessionId,
    index: SignerIndex,
    threshold: Threshold,
    secret: &Scalar,
    public_key: &PublicKey,
) -> Party<Secp256k1> {
    // No path is derived meanwhile.
    let node = derivation_root(*secret, *public_key.as_affine(), [0; 32]);
    Party {
        parameters: parameters(threshold),
        party_index: party_index(index),
        session_id: session.0.to_vec(),
        poly_point: node.poly_point,
        pk: node.pk,
        zero_share: ZeroShare { seeds: Vec::new() },
        mul_senders: BTreeMap::new(),
        mul_receivers: BTreeMap::new(),
        derivation_data: node,
        address: String::new(),
    }
}

impl Protocol for Import {
    type Output = ShareDocument;

    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        let proof = DLogProof::prove(&self.party.poly_point, &self.statement(self.setup.index))
            .map_err(|_| Abort::local("no proof was found for the share"))?;
        let mut send = vec![(Recipient::All, encode(&Introduction { claim: self.claim.clone(), proof })?)];
        let fragments = Zeroizing::new(self.party.refresh_complete_phase1());
        send.extend(deal(&self.setup, &fragments, &mut self.own_fragment)?);
        Ok(send)
    }

    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<ShareDocument>, Abort> {
        match round {
            1 => self.commit(&received),
            2 => self.open(&received),
            3 => self.finish(&received),
            4 => {
                let (document, own) =
                    self.result.take().ok_or_else(|| Abort::local("no result to confirm"))?;
                confirm(own, &received)?;
                Ok(Turn::done(document))
            }
            _ => Err(Abort::local(format!("an import has no round {round}"))),
        }
    }
}

impl Import {
    /// One party's side, which brings this share. Whose it is has been checked.
    pub(super) fn new(
        setup: KeygenSetup,
        brought: &SecretShare,
        points: &KeyPoints<PublicKey>,
        future: Future,
    ) -> Result<Self, Abort> {
        let KeygenSetup { index, threshold, session, .. } = setup;
        let secret = brought.to_scalar().map_err(|error| Abort::local(error.to_string()))?;
        let KeyPoints { public_key, public_shares } = points;
        Ok(Self {
            claim: Claim { public_key: *public_key, public_shares: public_shares.clone() },
            setup,
            future,
            others: threshold.signers().filter(|&other| other != index).collect(),
            party: party_without_correlations(session, index, threshold, &secret, public_key),
            own_fragment: Zeroizing::default(),
            correction: Zeroizing::default(),
            own_proof: None,
            own_entropy: None,
            commitments: BTreeMap::new(),
            zero_commitments: Vec::new(),
            zero_seeds: BTreeMap::new(),
            zero_kept: BTreeMap::new(),
            mul_kept: BTreeMap::new(),
            result: None,
        })
    }

    fn session(&self) -> &[u8; 32] {
        &self.setup.session.0
    }

    /// What the proof of a share is bound to: nobody else's, and of no other session.
    fn statement(&self, of: SignerIndex) -> Vec<u8> {
        [b"tss import share v1", &self.session()[..], &[of.get()]].concat()
    }

    /// What the commitment to a contribution is bound to.
    fn entropy_context(&self, of: SignerIndex) -> [u8; 32] {
        ZeroShare::seed_context(CHAIN_CODE, &[self.session()], party_index(of), party_index(of))
    }

    /// Checks what the others bring, sums up the shares of zero, and commits.
    fn commit(&mut self, received: &Received) -> Result<Turn<ShareDocument>, Abort> {
        let introductions = received.decode_broadcast::<Introduction>()?;
        self.compare(&introductions)?;
        for (&from, Introduction { proof, .. }) in &introductions {
            let claimed = self.claim.public_shares.get(&from).map(PublicKey::as_affine);
            if claimed != Some(&proof.point) || !DLogProof::verify(proof, &self.statement(from)) {
                return Err(Abort::cheating(from, "no proof that it knows its share"));
            }
        }
        let fragments = dealt(received, mem::take(&mut self.own_fragment))?;

        let (correction, proof, zero_seeds, zero) =
            self.party.refresh_complete_phase2(self.session(), &fragments);
        *self.correction = correction;
        self.zero_seeds = zero_seeds;
        // The crate's way to draw something at random and commit to it.
        let (seed, entropy, salt) =
            ZeroShare::generate_seed_with_bound_commitment(&self.entropy_context(self.setup.index));
        self.own_entropy = Some(Entropy { seed, salt });
        let commitments = Commitments { proof: proof.commitment, entropy };
        // Only the commitment leaves now.
        self.own_proof = Some(proof.proof);
        let mut send = vec![(Recipient::All, encode(&commitments)?)];
        self.commitments.insert(self.setup.index, commitments);
        for message in &zero {
            send.push((Recipient::One(signer_index(message.parties.receiver)?), encode(message)?));
        }
        Ok(Turn::send(send))
    }

    /// That all bring shares of one key. Who brings another is told by comparison alone: which of them is the right
    /// one, only people know.
    fn compare(&self, introductions: &BTreeMap<SignerIndex, Introduction>) -> Result<(), Abort> {
        let claims = introductions.iter().map(|(&from, introduction)| (from, &introduction.claim));
        let mut groups: Vec<(&Claim, BTreeSet<SignerIndex>)> = vec![(&self.claim, [self.setup.index].into())];
        for (from, claim) in claims {
            match groups.iter_mut().find(|(other, _)| *other == claim) {
                Some((_, signers)) => _ = signers.insert(from),
                None => groups.push((claim, [from].into())),
            }
        }
        if groups.len() == 1 {
            return Ok(());
        }
        groups.sort_by_key(|(_, signers)| signers.first().copied());
        let mut reason = String::from("what the signers bring does not belong together:");
        for (position, (claim, signers)) in groups.iter().enumerate() {
            let (comma, key) = (if position == 0 { "" } else { "," }, claim.public_key);
            let _ = write!(reason, "{comma} {} of key {key}", list(signers));
        }
        if groups.iter().all(|(claim, _)| claim.public_key == self.claim.public_key) {
            reason.push_str(", but with other public shares");
        }
        // Nobody cheated who was given a wrong file: no proof against anybody.
        let suspects = groups.into_iter().filter(|(claim, _)| **claim != self.claim);
        let suspects = suspects.flat_map(|(_, signers)| signers).collect();
        Err(Abort { blame: Blame::Unattributed { suspects }, reason })
    }

    /// Keeps the commitments of round 2, and opens its own.
    fn open(&mut self, received: &Received) -> Result<Turn<ShareDocument>, Abort> {
        for (from, commitments) in received.decode_broadcast::<Commitments>()? {
            let copied = self.commitments.iter().find(|(_, other)| other.proof == commitments.proof);
            if let Some((&other, _)) = copied {
                let suspects =
                    [from, other].into_iter().filter(|&suspect| suspect != self.setup.index).collect();
                let reason = format!("signers {other} and {from} sent the same commitment");
                return Err(Abort::unattributed(suspects, reason));
            }
            self.commitments.insert(from, commitments);
        }
        for (from, message) in received.decode_direct::<TransmitInitZeroSharePhase2to4>()? {
            check_parties(&message.parties, from, self.setup.index)?;
            self.zero_commitments.push(message);
        }

        let zero_seeds = mem::take(&mut self.zero_seeds);
        let (zero_kept, zero, mul_kept, mul) =
            self.party.refresh_complete_phase3(self.session(), &zero_seeds);
        self.zero_kept = zero_kept;
        self.mul_kept = mul_kept;
        let proof = self.own_proof.clone().ok_or_else(|| Abort::local("no proof to open"))?;
        let entropy = self.own_entropy.clone().ok_or_else(|| Abort::local("no contribution to open"))?;
        let mut send = vec![(Recipient::All, encode(&Openings { proof, entropy })?)];
        send.extend(PairSetup::send(zero, mul)?);
        Ok(Turn::send(send))
    }

    /// Checks the openings of round 3, makes the share, and says what came out.
    fn finish(&mut self, received: &Received) -> Result<Turn<ShareDocument>, Abort> {
        let index = self.setup.index;
        let mut openings = received.decode_broadcast::<Openings>()?;
        let own = self.own_proof.take().zip(self.own_entropy.take());
        let (proof, entropy) = own.ok_or_else(|| Abort::local("no opening of our own"))?;
        openings.insert(index, Openings { proof, entropy });

        let mut chain_code = Sha256::new_with_prefix(CHAIN_CODE);
        chain_code.update(self.session());
        let mut public_shares = BTreeMap::new();
        let mut proof_commitments = Vec::with_capacity(openings.len());
        for (from, Openings { proof, entropy }) in openings {
            let commitments = self.commitments.get(&from);
            let commitments =
                commitments.ok_or_else(|| Abort::local(format!("no commitment of signer {from}")))?;
            let context = self.entropy_context(from);
            if !ZeroShare::verify_bound_seed(&entropy.seed, &context, &commitments.entropy, &entropy.salt) {
                return Err(Abort::cheating(
                    from,
                    "a contribution to the chain code that it had not committed to",
                ));
            }
            chain_code.update(entropy.seed);
            let brought = self.claim.public_shares.get(&from);
            let brought = brought.ok_or_else(|| Abort::local(format!("no public share of signer {from}")))?;
            let share = ProjectivePoint::from(*brought.as_affine()) + ProjectivePoint::from(proof.point);
            // Only its owner can have arranged this.
            let share = PublicKey::from_affine(share.to_affine())
                .map_err(|_| Abort::cheating(from, "a public share that is the point at infinity"))?;
            public_shares.insert(from, share);
            proof_commitments.push(ProofCommitment {
                index: party_index(from),
                proof,
                commitment: commitments.proof,
            });
        }

        let pairs = PairSetup::received(received, index)?;
        let refreshed = self.party.refresh_complete_phase4(
            self.session(),
            &self.correction,
            &proof_commitments,
            &self.zero_kept,
            &self.zero_commitments,
            &pairs.zero,
            &self.mul_kept,
            &pairs.mul,
        );
        let mut party = refreshed.map_err(|abort| blame(abort, &self.others))?;
        let core = CoreShare {
            index,
            threshold: self.setup.threshold,
            secret_share: SecretShare::from_scalar(&party.poly_point),
            points: Points::Secp256k1(KeyPoints { public_key: self.claim.public_key, public_shares }),
            // What was drawn for a key that has one is of no use.
            chain_code: self.future.chain_code.unwrap_or_else(|| chain_code.finalize().into()),
        };
        // What was checked above makes sure of it; a share that is wrong would be found out too late.
        core.check().map_err(|error| Abort::local(error.to_string()))?;
        let correlations = Correlations {
            session_id: mem::take(&mut party.session_id)
                .try_into()
                .map_err(|_| Abort::local("the crate's session has another length"))?,
            zero_share: mem::replace(&mut party.zero_share, ZeroShare { seeds: Vec::new() }),
            mul_senders: mem::take(&mut party.mul_senders),
            mul_receivers: mem::take(&mut party.mul_receivers),
        };
        let text = correlations.to_text().map_err(|error| Abort::local(error.to_string()))?;
        let hash = confirmation(CONFIRMATION, &self.setup, &core);
        let document = ShareDocument {
            version: VERSION,
            cluster: self.setup.cluster.clone(),
            key: self.setup.key.clone(),
            epoch: self.future.epoch,
            scheme: Scheme::EcdsaSecp256k1,
            origin: self.future.origin,
            core,
            engines: EngineParts { dkls23: Some(text) },
        };
        self.result = Some((document, hash));
        Ok(Turn::send(vec![(Recipient::All, encode(&hash)?)]))
    }
}
