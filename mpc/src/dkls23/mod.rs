//! The default engine: DKLs23 (<https://eprint.iacr.org/2023/765>), on the crate of the same name.
//!
//! The crate has the cryptography; this module has what it leaves to its callers: the encoding and
//! the order of messages, the check that a message comes from who it says, the comparison that ends
//! key generation, the storage of the shares, and who is to blame.
//!
//! | protocol | round | on the wire | direct | broadcast |
//! |---|---|---|---|---|
//! | key generation | 1 | 1 | a share of the sender's polynomial | |
//! | | 2 | 2, echo 3 | commitment to a zero-share seed | commitments to the public share and the chain code |
//! | | 3 | 4, echo 5 | the seed; the base oblivious transfers | the public share, proven; the chain code |
//! | | 4 | 6, echo 7 | | a hash of the result |
//! | import | 1 | 1, echo 2 | a share of the sender's polynomial, which is 0 at 0 | the key and the public shares; a proof of the share |
//! | | 2 | 3, echo 4 | commitment to a zero-share seed | commitments as in key generation |
//! | | 3 | 5, echo 6 | as in key generation | the public share of zero, proven; the chain code |
//! | | 4 | 7, echo 8 | | a hash of the result |
//! | renewal | 1 | 1, echo 2 | a dealer's share, dealt anew | a dealer's: the key and the public shares, and what it dealt, times the generator |
//! | | 2 to 5 | 3 to 10 | as import 1 to 4 | |
//! | signing | 1 | 1 | commitment to the nonce; the oblivious transfer extension | |
//! | | 2 | 2 | the nonce; the multiplication's other half | |
//! | | 3 | 3, echo 4 | | the sender's part of the signature |
//!
//! That all parties received the same broadcasts is checked by [`rounds`], in the echoes. Between
//! two parties there are none, and a round has the same number on the wire.

mod import;
mod keygen;
mod renew;
mod sign;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dkls23::protocols::derivation::DerivData;
use dkls23::protocols::{self, AbortKind, AbortReason, Parameters, PartiesMessage, PartyIndex};
use dkls23::utilities::multiplication::{MulReceiver, MulSender};
use dkls23::utilities::zero_shares::ZeroShare;
use k256::{Scalar, Secp256k1};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::key::derivation_root;
use crate::rounds;
use crate::{
    Abort, AnySignature, Blame, DerivationPath, Engine, EngineId, ForeignShare, KeygenSetup, Machine,
    PublicKey, Quorum, RenewSetup, Scheme, SetupError, ShareDocument, ShareError, SignSetup, SignerIndex,
    SigningShare, Threshold,
};

/// The engine on the crate `dkls23`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dkls23;

impl Engine for Dkls23 {
    fn id(&self) -> EngineId {
        EngineId::Dkls23
    }

    fn keygen(&self, setup: KeygenSetup) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError> {
        Ok(Box::new(keygen::machine(setup)?))
    }

    fn import(
        &self,
        setup: KeygenSetup,
        share: &ForeignShare,
    ) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError> {
        Ok(Box::new(import::machine(setup, share)?))
    }

    fn renew(
        &self,
        setup: RenewSetup,
        held: Option<&ShareDocument>,
    ) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError> {
        Ok(Box::new(renew::machine(setup, held)?))
    }

    fn open(&self, share: &ShareDocument) -> Result<Arc<dyn SigningShare>, ShareError> {
        Ok(Arc::new(Share::open(share)?))
    }
}

/// What the core of a share document lacks for signing: one party's half of the correlated
/// randomness it shares with each other party. Every field is zeroized when dropped.
#[derive(Serialize, Deserialize)]
struct Correlations {
    /// The session that made them; part of every hash.
    session_id: [u8; 32],
    zero_share: ZeroShare,
    mul_senders: BTreeMap<PartyIndex, MulSender<Secp256k1>>,
    mul_receivers: BTreeMap<PartyIndex, MulReceiver<Secp256k1>>,
}

impl Correlations {
    fn to_text(&self) -> Result<Zeroizing<String>, postcard::Error> {
        // Sized first, so that no half-written copy is left behind by a buffer that grows.
        let size = postcard::serialize_with_flavor(self, postcard::ser_flavors::Size::default())?;
        let mut bytes = Zeroizing::new(vec![0; size]);
        postcard::to_slice(self, &mut bytes)?;
        let mut text = Zeroizing::new(String::with_capacity(size.div_ceil(3) * 4));
        BASE64.encode_string(&*bytes, &mut text);
        Ok(text)
    }

    fn from_text(text: &str) -> Result<Self, ShareError> {
        let malformed =
            |what: &str| ShareError::Malformed(format!("the part of the engine `dkls23` is {what}"));
        let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3 + 3));
        BASE64.decode_vec(text, &mut bytes).map_err(|_| malformed("not base64"))?;
        rounds::decode(&bytes).ok_or_else(|| malformed("truncated or of another format"))
    }

    /// Checks that there are correlations with each other party, and with nobody else.
    fn check(&self, index: SignerIndex, threshold: Threshold) -> Result<(), ShareError> {
        let inconsistent = |reason: &str| Err(ShareError::Inconsistent(format!("engine `dkls23`: {reason}")));
        let me = party_index(index);
        let others = || threshold.signers().filter(|&other| other != index).map(party_index);
        let mut seeds: Vec<_> =
            self.zero_share.seeds.iter().map(|pair| (pair.index_counterparty, pair.lowest_index)).collect();
        seeds.sort_unstable();
        if !seeds.into_iter().eq(others().map(|other| (other, me < other))) {
            return inconsistent("expected one zero-share seed with each other signer");
        }
        if !self.mul_senders.keys().copied().eq(others()) || !self.mul_receivers.keys().copied().eq(others())
        {
            return inconsistent("expected oblivious transfers in both directions with each other signer");
        }
        let damaged = self.mul_senders.values().any(|sender| sender.check_state().is_err())
            || self.mul_receivers.values().any(|receiver| receiver.check_state(None).is_err());
        if damaged { inconsistent("oblivious transfers of the wrong number") } else { Ok(()) }
    }
}

/// A share that is ready to sign.
struct Share {
    index: SignerIndex,
    threshold: Threshold,
    secret: Zeroizing<Scalar>,
    public_key: PublicKey,
    chain_code: [u8; 32],
    correlations: Correlations,
}

impl Share {
    fn open(document: &ShareDocument) -> Result<Self, ShareError> {
        document.check_scheme(Scheme::EcdsaSecp256k1)?;
        let text = document.engines.dkls23.as_ref().ok_or(ShareError::MissingEngine(EngineId::Dkls23))?;
        let core = &document.core;
        let correlations = Correlations::from_text(text)?;
        correlations.check(core.index, core.threshold)?;
        Ok(Self {
            index: core.index,
            threshold: core.threshold,
            secret: core.secret_share.to_scalar()?,
            public_key: core.secp256k1()?.public_key,
            chain_code: core.chain_code,
            correlations,
        })
    }

    fn derive(&self, path: &DerivationPath) -> Option<DerivData<Secp256k1>> {
        let mut node = derivation_root(*self.secret, *self.public_key.as_affine(), self.chain_code);
        for &step in path.steps() {
            node = node.derive_child(step).ok()?;
        }
        Some(node)
    }

    /// This party as the crate knows it, for one session: with the derived key, and with the
    /// correlations of the quorum alone, which takes some ten microseconds for each member.
    fn party(&self, quorum: &Quorum, path: &DerivationPath) -> Option<protocols::Party<Secp256k1>> {
        let node = self.derive(path)?;
        let others: BTreeSet<PartyIndex> = quorum.others(self.index).map(party_index).collect();
        let all = &self.correlations;
        let seeds = all.zero_share.seeds.iter().filter(|pair| others.contains(&pair.index_counterparty));
        Some(protocols::Party {
            parameters: parameters(self.threshold),
            party_index: party_index(self.index),
            session_id: all.session_id.to_vec(),
            poly_point: node.poly_point,
            pk: node.pk,
            zero_share: ZeroShare { seeds: seeds.cloned().collect() },
            mul_senders: only(&all.mul_senders, &others),
            mul_receivers: only(&all.mul_receivers, &others),
            derivation_data: node,
            address: String::new(),
        })
    }
}

fn only<T: Clone>(all: &BTreeMap<PartyIndex, T>, with: &BTreeSet<PartyIndex>) -> BTreeMap<PartyIndex, T> {
    all.iter()
        .filter(|(index, _)| with.contains(index))
        .map(|(&index, value)| (index, value.clone()))
        .collect()
}

impl SigningShare for Share {
    fn sign(&self, setup: SignSetup) -> Result<Box<dyn Machine<Output = AnySignature>>, SetupError> {
        setup.check(self.index, self.threshold)?;
        match self.party(&setup.quorum, &setup.path) {
            Some(party) => Ok(Box::new(sign::machine(party, self.index, setup)?)),
            None => Err(SetupError::Path(setup.path)),
        }
    }
}

fn party_index(index: SignerIndex) -> PartyIndex {
    PartyIndex::new(index.get()).expect("a signer index is at least 1")
}

/// The other way, for what the crate yields itself.
fn signer_index(index: PartyIndex) -> Result<SignerIndex, Abort> {
    SignerIndex::new(index.as_u8()).map_err(|error| Abort::local(error.to_string()))
}

fn parameters(threshold: Threshold) -> Parameters {
    Parameters::new(threshold.t(), threshold.n()).expect("a threshold has 2 <= t <= n")
}

/// Checks that a message says it goes from `from` to `me`, who are known from elsewhere.
fn check_parties(parties: &PartiesMessage, from: SignerIndex, me: SignerIndex) -> Result<(), Abort> {
    if parties.sender == party_index(from) && parties.receiver == party_index(me) {
        Ok(())
    } else {
        let PartiesMessage { sender, receiver } = parties;
        Err(Abort::cheating(from, format!("a message that says it goes from signer {sender} to {receiver}")))
    }
}

/// Whom an abort of the crate blames, in a session with these `others`.
fn blame(abort: protocols::Abort, others: &BTreeSet<SignerIndex>) -> Abort {
    let reason = abort.description();
    let name = |index: PartyIndex| {
        let index = SignerIndex::new(index.as_u8()).ok();
        index.filter(|index| others.contains(index))
    };
    if let AbortKind::BanCounterparty(index) = abort.kind {
        return match name(index) {
            Some(culprit) => Abort::ban(culprit, reason),
            None => Abort::local(reason),
        };
    }
    match abort.reason {
        // A proof or an opening that does not verify. Senders are authenticated, so it is theirs.
        AbortReason::ProofVerificationFailed { counterparty: index }
        | AbortReason::CommitmentMismatch { counterparty: index }
        | AbortReason::TrivialInstancePoint { counterparty: index }
        | AbortReason::ZeroShareDecommitFailed { counterparty: index }
        | AbortReason::ChainCodeCommitmentFailed { party: index }
        | AbortReason::OtConsistencyCheckFailed { counterparty: index }
        | AbortReason::MultiplicationVerificationFailed { counterparty: index, .. }
        | AbortReason::GammaUInconsistency { counterparty: index } => match name(index) {
            Some(culprit) => Abort::cheating(culprit, reason),
            None => Abort::unattributed(others.clone(), reason),
        },
        // The pair disagrees about the session or about the correlations it shares. Those of this
        // party may be the stale ones, so it is no proof against the other, even if it is alone.
        AbortReason::SessionBindingMismatch { counterparty } => match name(counterparty) {
            Some(suspect) => Abort { blame: Blame::Unattributed { suspects: [suspect].into() }, reason },
            None => Abort::local(reason),
        },
        // Sums that do not come out: one of the summands is wrong, and nothing tells which.
        AbortReason::PolynomialInconsistency
        | AbortReason::TrivialPublicKey
        | AbortReason::TrivialKeyShare
        | AbortReason::MissingCommittedPoint { .. }
        | AbortReason::SignatureVerificationFailed
        | AbortReason::ZeroDenominator => Abort::unattributed(others.clone(), reason),
        // This party called the crate wrongly, or its own state is damaged: sender, receiver and
        // number of the messages were checked before the crate saw them.
        AbortReason::InvalidPartyIndex { .. }
        | AbortReason::WrongCounterpartyCount { .. }
        | AbortReason::DuplicateCounterparty { .. }
        | AbortReason::SelfInCounterparties
        | AbortReason::MissingMulState { .. }
        | AbortReason::MisroutedMessage { .. }
        | AbortReason::UnexpectedSender { .. }
        | AbortReason::DuplicateSender { .. }
        | AbortReason::WrongMessageCount { .. }
        | AbortReason::MissingMessageFromParty { .. }
        | AbortReason::LagrangeCoefficientFailed
        | AbortReason::InvalidXCoordinateHex
        | AbortReason::PhaseCalledOutOfOrder { .. }
        | AbortReason::InvalidHex { .. }
        | AbortReason::InvalidLocalState { .. } => Abort::local(reason),
        // The enum may grow. Whom a new reason blames is not known here.
        _ => Abort::local(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abort_of_the_crate_blames_whom_it_proves_guilty_and_nobody_else() {
        let signer = |index| SignerIndex::new(index).unwrap();
        let party = |index| PartyIndex::new(index).unwrap();
        let others: BTreeSet<SignerIndex> = [signer(2), signer(3)].into();
        let recoverable = |reason| blame(protocols::Abort::recoverable(party(1), reason), &others).blame;
        let ban = |index| {
            let reason = AbortReason::OtConsistencyCheckFailed { counterparty: party(index) };
            blame(protocols::Abort::ban(party(1), party(index), reason), &others).blame
        };
        let all = Blame::Unattributed { suspects: others.clone() };

        assert_eq!(ban(3), Blame::Cheating { culprits: [signer(3)].into(), ban: true });
        // Neither this party, nor one that takes no part, nor one that cannot be.
        for stranger in [1, 4, 200] {
            assert_eq!(ban(stranger), Blame::Local);
        }
        let proof = |index| recoverable(AbortReason::ProofVerificationFailed { counterparty: party(index) });
        assert_eq!(proof(2), Blame::Cheating { culprits: [signer(2)].into(), ban: false });
        assert_eq!(proof(1), all);
        let mismatch =
            |index| recoverable(AbortReason::SessionBindingMismatch { counterparty: party(index) });
        assert_eq!(mismatch(2), Blame::Unattributed { suspects: [signer(2)].into() });
        assert_eq!(mismatch(1), Blame::Local);
        assert_eq!(recoverable(AbortReason::PolynomialInconsistency), all);
        let damaged = AbortReason::InvalidLocalState { counterparty: party(2), detail: String::new() };
        assert_eq!(recoverable(damaged), Blame::Local);
        assert_eq!(recoverable(AbortReason::MissingMulState { counterparty: party(2) }), Blame::Local);
    }
}
