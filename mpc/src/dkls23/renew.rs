//! Giving a key new shares, for the same signers or for others: verifiable secret redistribution (Y. Desmedt, S. Jajodia,
//! "Redistributing secret shares to new access structures and its applications", 1997; T. M. Wong, C. Wang, J. M. Wing,
//! "Verifiable secret redistribution for archive systems", 2002).
//!
//! t of those who hold a share, the dealers, each deal theirs to the signers to be, with a new polynomial whose value at 0
//! is the share, weighted so that the dealers' shares add up to the key. A signer's new share is the sum of what it was
//! dealt. What each dealt is checked against its old public share, which all dealers must name alike: one of them at
//! least is honest, so that also a signer that never held a share knows what the key is.
//!
//! The new shares have no correlations yet. So all go on as in an [`import`]: they show that they know their shares, add
//! a share of zero that they make together, make their correlations, and compare what came out.
//!
//! A new share fits no old one: the polynomials are new, and at least one of them is an honest signer's.

use std::collections::{BTreeMap, BTreeSet};

use k256::elliptic_curve::ff::PrimeField as _;
use k256::{ProjectivePoint, Scalar};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::import::{self, Future, Import};
use super::keygen::deal;
use crate::point::{KeyPoints, check_public_shares};
use crate::redistribution::Claim;
use crate::rounds::{Protocol, Received, Round, RoundMachine, Turn, encode};
use crate::share::{CoreShare, SecretShare, weight_at_zero};
use crate::{
    Abort, KeygenSetup, PublicKey, Quorum, Recipient, RenewSetup, Scheme, SetupError, ShareDocument,
    SignerIndex,
};

/// The machine of one party.
pub(super) fn machine(
    setup: RenewSetup,
    held: Option<&ShareDocument>,
) -> Result<RoundMachine<Renewal>, SetupError> {
    setup.check(held, Scheme::EcdsaSecp256k1)?;
    let RenewSetup { session, cluster, key, index, epoch, dealers, threshold } = setup;
    let others: BTreeSet<SignerIndex> = threshold.signers().filter(|&other| other != index).collect();
    // The dealers are named to all alike, themselves included: so all agree that there are broadcasts.
    let mut rounds = vec![Round::both(dealers.iter())];
    rounds.extend(import::rounds(index, threshold));
    let renewal = Renewal {
        setup: KeygenSetup { session, cluster, key, index, threshold },
        epoch,
        weighted: held
            .filter(|_| dealers.contains(index))
            .map(|held| weighted(&held.core, &dealers))
            .transpose()?,
        claim: held.map(|held| Ok::<_, SetupError>(Claim::of(held, held.core.secp256k1()?))).transpose()?,
        dealers,
        own: None,
        import: None,
    };
    Ok(RoundMachine::new(renewal, index, others, rounds))
}

pub(super) struct Renewal {
    setup: KeygenSetup,
    /// The epoch that ends.
    epoch: u64,
    dealers: Quorum,
    /// What this signer knows of the key, if it held a share.
    claim: Option<Claim<PublicKey>>,
    /// What it deals, if it does.
    weighted: Option<Zeroizing<Scalar>>,
    /// What it has dealt, if it has: to everybody, and to itself.
    own: Option<(Deal, Zeroizing<Scalar>)>,
    /// The rest, once there is a new share.
    import: Option<Import>,
}

/// What a dealer broadcasts.
#[derive(Serialize, Deserialize)]
struct Deal {
    claim: Claim<PublicKey>,
    /// What it has dealt to each, times the generator.
    public: BTreeMap<SignerIndex, PublicKey>,
}

/// What a dealer deals: its share, weighted for a sum over these dealers.
fn weighted(core: &CoreShare, dealers: &Quorum) -> Result<Zeroizing<Scalar>, Abort> {
    let secret = core.secret_share.to_scalar().map_err(|error| Abort::local(error.to_string()))?;
    let dealers: Vec<SignerIndex> = dealers.iter().collect();
    Ok(Zeroizing::new(*secret * weight_at_zero(core.index, &dealers)))
}

impl Protocol for Renewal {
    type Output = ShareDocument;

    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        let KeygenSetup { session, index, threshold, .. } = self.setup;
        let (Some(weighted), Some(claim)) = (self.weighted.take(), self.claim.clone()) else {
            return Ok(Vec::new());
        };
        // The crate's polynomial of zero, moved up: its value at 0 is then what is dealt.
        let party =
            import::party_without_correlations(session, index, threshold, &weighted, &claim.public_key);
        let mut values = Zeroizing::new(party.refresh_complete_phase1());
        values.iter_mut().for_each(|value| *value += *weighted);
        let public = threshold.signers().zip(values.iter()).map(|(signer, value)| {
            let point = PublicKey::from_affine((ProjectivePoint::GENERATOR * value).to_affine());
            Ok((signer, point.map_err(|_| Abort::local("a dealt share that is zero"))?))
        });
        let shown = Deal { claim, public: public.collect::<Result<_, Abort>>()? };
        let mut send = vec![(Recipient::All, encode(&shown)?)];
        let mut own = Zeroizing::default();
        send.extend(deal(&self.setup, &values, &mut own)?);
        self.own = Some((shown, own));
        Ok(send)
    }

    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<ShareDocument>, Abort> {
        if round > 1 {
            let import = self.import.as_mut().ok_or_else(|| Abort::local("no share to go on with"))?;
            return import.advance(round - 1, received);
        }
        let mut import = self.take(&received)?;
        let send = import.start()?;
        self.import = Some(import);
        Ok(Turn::send(send))
    }
}

impl Renewal {
    /// Checks what was dealt, and adds it up.
    fn take(&mut self, received: &Received) -> Result<Import, Abort> {
        let KeygenSetup { index, threshold, .. } = self.setup;
        let mut deals: BTreeMap<SignerIndex, Deal> = received.decode_broadcast()?;
        let mut values: BTreeMap<SignerIndex, Zeroizing<Scalar>> = BTreeMap::new();
        for (from, bytes) in received.decode_direct::<Zeroizing<[u8; 32]>>()? {
            let value = Option::<Scalar>::from(Scalar::from_repr((*bytes).into()));
            let value =
                value.ok_or_else(|| Abort::cheating(from, "a share that is not below the group order"))?;
            values.insert(from, Zeroizing::new(value));
        }
        if let Some((deal, value)) = self.own.take() {
            deals.insert(index, deal);
            values.insert(index, value);
        }
        let claims = deals.iter().map(|(&from, deal)| (from, &deal.claim)).collect();
        let claim = Claim::agreed(self.claim.as_ref(), &claims, &self.dealers, index)?;
        let mut secret = Zeroizing::new(Scalar::ZERO);
        let mut public_shares: BTreeMap<SignerIndex, ProjectivePoint> = BTreeMap::new();
        for (&from, Deal { public, .. }) in &deals {
            self.check(from, public, &claim)?;
            let value =
                values.get(&from).ok_or_else(|| Abort::local(format!("nothing dealt by signer {from}")))?;
            let point = (ProjectivePoint::GENERATOR * **value).to_affine();
            if public.get(&index).is_none_or(|public| *public.as_affine() != point) {
                return Err(Abort::cheating(from, "a share that is not the one it has shown to the others"));
            }
            *secret += **value;
            for (&to, point) in public {
                *public_shares.entry(to).or_insert(ProjectivePoint::IDENTITY) += *point.as_affine();
            }
        }
        let public_shares = public_shares.into_iter().map(|(signer, point)| {
            let share = PublicKey::from_affine(point.to_affine());
            // Only the dealers together can have arranged this.
            let share =
                share.map_err(|_| self.suspect_dealers("the dealt shares of a signer add up to zero"))?;
            Ok((signer, share))
        });
        let points = KeyPoints {
            public_key: claim.public_key,
            public_shares: public_shares.collect::<Result<_, Abort>>()?,
        };
        let secret = SecretShare::from_scalar(&secret);
        points
            .check_share(index, threshold, &secret)
            .map_err(|error| self.suspect_dealers(error.to_string()))?;
        let epoch = self.epoch.checked_add(1).ok_or_else(|| Abort::local("there is no later epoch"))?;
        let future = Future { epoch, origin: claim.origin, chain_code: Some(claim.chain_code) };
        Import::new(self.setup.clone(), &secret, &points, future)
    }

    /// That a dealer has dealt its share, and nothing else.
    fn check(
        &self,
        from: SignerIndex,
        public: &BTreeMap<SignerIndex, PublicKey>,
        claim: &Claim<PublicKey>,
    ) -> Result<(), Abort> {
        let dealers: Vec<SignerIndex> = self.dealers.iter().collect();
        let share = claim.public_shares.get(&from).map(|share| ProjectivePoint::from(*share.as_affine()));
        let share = share.ok_or_else(|| Abort::local(format!("no public share of signer {from}")))?;
        let weighted = PublicKey::from_affine((share * weight_at_zero(from, &dealers)).to_affine())
            .map_err(|error| Abort::local(error.to_string()))?;
        check_public_shares(self.setup.threshold, public, &weighted).map_err(|error| {
            Abort::cheating(from, format!("what it dealt is no sharing of its share: {error}"))
        })
    }

    fn suspect_dealers(&self, reason: impl Into<String>) -> Abort {
        Abort::unattributed(self.dealers.others(self.setup.index).collect(), reason)
    }
}
