//! Giving a key new shares, for the same signers or for others: verifiable secret redistribution (Y. Desmedt, S. Jajodia,
//! "Redistributing secret shares to new access structures and its applications", 1997; T. M. Wong, C. Wang, J. M. Wing,
//! "Verifiable secret redistribution for archive systems", 2002).
//!
//! t of those who hold a share, the dealers, each deal theirs to the signers to be, with a new polynomial whose value at 0
//! is the share, weighted so that the dealers' shares add up to the key. A signer's new share is the sum of what it was
//! dealt. With the commitments to the polynomial (Feldman's), each checks that a dealer has dealt its old share, and to
//! itself what it said. The old public shares are those that all dealers name alike: one of them at least is honest, so
//! that also a signer that never held a share knows what the key is. Last, all compare what came out.
//!
//! A new share fits no old one: the polynomials are new, and at least one of them is an honest signer's.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use frost_core::keys::{self, IdentifierList};
use frost_core::{Element, Field, Group, Scalar, SigningKey};
use rand_core::OsRng;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Suite;
use super::group::{
    coefficients, element, encoded, fixed, identifier, point, scalar, value_in_exponent, weight_at_zero,
};
use crate::confirmation::{confirm, confirmation};
use crate::point::{KeyPoints, Point};
use crate::redistribution::Claim;
use crate::rounds::{Protocol, Received, Round, RoundMachine, Turn, encode};
use crate::share::{CoreShare, EngineParts, SecretShare, VERSION};
use crate::{Abort, KeygenSetup, Quorum, Recipient, RenewSetup, SetupError, ShareDocument, SignerIndex};

/// Begins what the last round hashes, so that it is the hash of nothing else.
const CONFIRMATION: &[u8] = b"tss frost renewal confirmation v1";

/// The machine of one party.
pub(super) fn machine<S: Suite>(
    setup: RenewSetup,
    held: Option<&ShareDocument>,
) -> Result<RoundMachine<Renewal<S>>, SetupError> {
    setup.check(held, S::SCHEME)?;
    let RenewSetup { session, cluster, key, index, epoch, dealers, threshold } = setup;
    if !threshold.contains(index) {
        return Err(Abort::local(format!("a {threshold} key has no signer {index}")).into());
    }
    let others: BTreeSet<SignerIndex> = threshold.signers().filter(|&other| other != index).collect();
    // The dealers are named to all alike, themselves included: so all agree that there are broadcasts.
    let rounds = vec![Round::both(dealers.iter()), Round::broadcast(others.iter().copied())];
    let claim = held.map(|held| Ok::<_, SetupError>(Claim::of(held, S::points_of(held)?))).transpose()?;
    let dealing = held.filter(|_| dealers.contains(index));
    let renewal = Renewal {
        weighted: dealing.map(|held| weighted::<S>(&held.core, &dealers)).transpose()?,
        setup: KeygenSetup { session, cluster, key, index, threshold },
        epoch,
        claim,
        dealers,
        state: State::Begin,
    };
    Ok(RoundMachine::new(renewal, index, others, rounds))
}

pub(super) struct Renewal<S: Suite> {
    setup: KeygenSetup,
    /// The epoch that ends.
    epoch: u64,
    dealers: Quorum,
    /// What this signer knows of the key, if it held a share.
    claim: Option<Claim<S::Point>>,
    /// What it deals, if it does, until it has.
    weighted: Option<SigningKey<S>>,
    state: State<S>,
}

/// What is kept from one round for the next.
enum State<S: Suite> {
    Begin,
    /// What this signer has dealt, if it has.
    Dealt(Option<Dealt<S::Point>>),
    /// What comes out if all agree, and the hash by which they do.
    Shown(Box<ShareDocument>, [u8; 32]),
    Ended,
}

/// What a dealer has dealt: to everybody, and to itself.
struct Dealt<P: Point> {
    deal: Deal<P>,
    value: Zeroizing<[u8; 32]>,
}

/// What a dealer broadcasts.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
struct Deal<P: Point> {
    claim: Claim<P>,
    /// The coefficients of its polynomial times the generator, the lowest first.
    coefficients: Vec<P>,
}

/// What a dealer deals: its share, weighted for a sum over these dealers.
fn weighted<S: Suite>(core: &CoreShare, dealers: &Quorum) -> Result<SigningKey<S>, Abort> {
    let secret = scalar::<S>(core.secret_share.as_bytes());
    let secret = secret.ok_or_else(|| Abort::local("the secret share is not below the group order"))?;
    let weighted = encoded::<S>(&(secret * weight_at_zero::<S>(core.index, &dealers.iter().collect())))?;
    SigningKey::deserialize(&*weighted).map_err(|error| Abort::local(error.to_string()))
}

impl<S: Suite> Protocol for Renewal<S> {
    type Output = ShareDocument;

    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        let (Some(weighted), Some(claim)) = (self.weighted.take(), self.claim.clone()) else {
            self.state = State::Dealt(None);
            return Ok(Vec::new());
        };
        let KeygenSetup { index, threshold, .. } = self.setup;
        let local = |error: frost_core::Error<S>| Abort::local(error.to_string());
        let (n, t) = (threshold.n().into(), threshold.t().into());
        let (mut shares, _) =
            keys::split(&weighted, n, t, IdentifierList::Default, &mut OsRng).map_err(local)?;
        let mut take = |to: SignerIndex| {
            let share = shares.remove(&identifier(to));
            share.ok_or_else(|| Abort::local(format!("nothing dealt to signer {to}")))
        };
        let own = take(index)?;
        let deal = Deal { claim, coefficients: coefficients::<S>(own.commitment())? };
        let mut send = vec![(Recipient::All, encode(&deal)?)];
        for to in threshold.signers().filter(|&to| to != index) {
            send.push((Recipient::One(to), encode(&fixed(take(to)?.signing_share().serialize())?)?));
        }
        let value = fixed(own.signing_share().serialize())?;
        self.state = State::Dealt(Some(Dealt { deal, value }));
        Ok(send)
    }

    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<ShareDocument>, Abort> {
        match (round, mem::replace(&mut self.state, State::Ended)) {
            (1, State::Dealt(own)) => self.take(own, &received),
            (2, State::Shown(document, own)) => {
                confirm(own, &received)?;
                Ok(Turn::done(*document))
            }
            _ => Err(Abort::local(format!("a renewal is not at round {round}"))),
        }
    }
}

impl<S: Suite> Renewal<S> {
    /// Checks what was dealt, adds it up, and says what came out.
    fn take(
        &mut self,
        own: Option<Dealt<S::Point>>,
        received: &Received,
    ) -> Result<Turn<ShareDocument>, Abort> {
        let index = self.setup.index;
        let mut deals: BTreeMap<SignerIndex, Deal<S::Point>> = received.decode_broadcast()?;
        let mut values: BTreeMap<SignerIndex, Zeroizing<[u8; 32]>> = received.decode_direct()?;
        if let Some(Dealt { deal, value }) = own {
            deals.insert(index, deal);
            values.insert(index, value);
        }
        let claims = deals.iter().map(|(&from, deal)| (from, &deal.claim)).collect();
        let claim = Claim::agreed(self.claim.as_ref(), &claims, &self.dealers, index)?;
        let document = self.document(&claim, &deals, &values)?;
        let hash = confirmation(CONFIRMATION, &self.setup, &document.core);
        self.state = State::Shown(Box::new(document), hash);
        Ok(Turn::send(vec![(Recipient::All, encode(&hash)?)]))
    }

    fn document(
        &self,
        claim: &Claim<S::Point>,
        deals: &BTreeMap<SignerIndex, Deal<S::Point>>,
        values: &BTreeMap<SignerIndex, Zeroizing<[u8; 32]>>,
    ) -> Result<ShareDocument, Abort> {
        let KeygenSetup { cluster, key, index, threshold, .. } = &self.setup;
        let mut sum = <<S::Group as Group>::Field as Field>::zero();
        let mut public_sums: BTreeMap<SignerIndex, Element<S>> =
            threshold.signers().map(|signer| (signer, S::Group::identity())).collect();
        for (&from, Deal { coefficients, .. }) in deals {
            let value = values.get(&from);
            let value = value.ok_or_else(|| Abort::local(format!("nothing dealt by signer {from}")))?;
            let commitments = self.checked(from, coefficients, claim)?;
            sum = sum + self.dealt(from, value, &commitments)?;
            for (&signer, public) in &mut public_sums {
                *public = *public + value_in_exponent::<S>(signer, &commitments);
            }
        }
        // A dealer that spoke last can have made its own the identity. Which one that was cannot be told.
        let public_shares = public_sums.iter().map(|(&signer, sum)| {
            let share = point::<S>(sum);
            let zero = || self.suspect_dealers("the dealt shares of a signer add up to zero");
            Ok((signer, share.ok_or_else(zero)?))
        });
        let public_shares = public_shares.collect::<Result<_, Abort>>()?;
        let points = KeyPoints { public_key: claim.public_key, public_shares };
        let secret_share = SecretShare::from_bytes(&encoded::<S>(&sum)?);
        points
            .check_share(*index, *threshold, &secret_share)
            .map_err(|error| self.suspect_dealers(error.to_string()))?;
        Ok(ShareDocument {
            version: VERSION,
            cluster: cluster.clone(),
            key: key.clone(),
            epoch: self.epoch.checked_add(1).ok_or_else(|| Abort::local("there is no later epoch"))?,
            scheme: S::SCHEME,
            origin: claim.origin,
            core: CoreShare {
                index: *index,
                threshold: *threshold,
                secret_share,
                points: S::points(points),
                chain_code: claim.chain_code,
            },
            engines: EngineParts::default(),
        })
    }

    /// That a dealer has committed to a polynomial of the right degree, whose value at 0 is its weighted share.
    fn checked(
        &self,
        from: SignerIndex,
        coefficients: &[S::Point],
        claim: &Claim<S::Point>,
    ) -> Result<Vec<Element<S>>, Abort> {
        let share = claim.public_shares.get(&from).and_then(element::<S>);
        let share = share.ok_or_else(|| Abort::local(format!("no public share of signer {from}")))?;
        let weighted = point::<S>(&(share * weight_at_zero::<S>(from, &self.dealers.iter().collect())));
        if coefficients.len() != usize::from(self.setup.threshold.t())
            || coefficients.first() != weighted.as_ref()
        {
            return Err(Abort::cheating(from, "what it dealt is no sharing of its share"));
        }
        let elements = coefficients.iter().map(element::<S>).collect::<Option<_>>();
        elements.ok_or_else(|| Abort::local("a point that is no element of its group"))
    }

    /// What a dealer has dealt to this signer, if it is what it has committed to.
    fn dealt(
        &self,
        from: SignerIndex,
        value: &Zeroizing<[u8; 32]>,
        commitments: &[Element<S>],
    ) -> Result<Scalar<S>, Abort> {
        let value = scalar::<S>(&**value)
            .ok_or_else(|| Abort::cheating(from, "a share that is not below the group order"))?;
        if S::Group::generator() * value == value_in_exponent::<S>(self.setup.index, commitments) {
            Ok(value)
        } else {
            Err(Abort::cheating(from, "a share that is not the one it has committed to before the others"))
        }
    }

    fn suspect_dealers(&self, reason: impl Into<String>) -> Abort {
        Abort::unattributed(self.dealers.others(self.setup.index).collect(), reason)
    }
}
