//! What a verifiable secret redistribution begins with, whatever the engine: the dealers say of which key they deal
//! shares, and all must say the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::abort::list;
use crate::point::{KeyPoints, Point, check_public_shares};
use crate::{Abort, Blame, Origin, Quorum, ShareDocument, SignerIndex, Threshold};

/// What a dealer says of the key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Claim<P: Point> {
    pub(crate) public_key: P,
    pub(crate) chain_code: [u8; 32],
    pub(crate) origin: Origin,
    pub(crate) threshold: Threshold,
    pub(crate) public_shares: BTreeMap<SignerIndex, P>,
}

impl<P: Point> Claim<P> {
    /// What the holder of this share says, whose points these are.
    pub(crate) fn of(document: &ShareDocument, points: &KeyPoints<P>) -> Self {
        Self {
            public_key: points.public_key,
            chain_code: document.core.chain_code,
            origin: document.origin,
            threshold: document.core.threshold,
            public_shares: points.public_shares.clone(),
        }
    }

    /// What all dealers say of the key, and this signer `index`, too, if it held a share and says `own`.
    pub(crate) fn agreed(
        own: Option<&Self>,
        claims: &BTreeMap<SignerIndex, &Self>,
        dealers: &Quorum,
        index: SignerIndex,
    ) -> Result<Self, Abort> {
        let suspect_dealers = |reason: String| Abort::unattributed(dealers.others(index).collect(), reason);
        let first = claims.values().next().copied();
        let claim = own.or(first).ok_or_else(|| Abort::local("nothing was dealt"))?;
        let differ: BTreeSet<SignerIndex> =
            claims.iter().filter(|(_, other)| **other != claim).map(|(&from, _)| from).collect();
        if !differ.is_empty() {
            // Who never held a share cannot tell which of them is right.
            let suspects = match own {
                Some(_) => differ.clone(),
                None => dealers.others(index).collect(),
            };
            let reason = format!("what {} say of the key is something else", list(&differ));
            // Nobody cheated who was given a wrong file: no proof against anybody.
            return Err(Abort { blame: Blame::Unattributed { suspects }, reason });
        }
        let Self { public_key, threshold, public_shares, .. } = claim;
        if dealers.len() != usize::from(threshold.t()) {
            return Err(suspect_dealers(format!("{} dealers of a {threshold} key", dealers.len())));
        }
        check_public_shares(*threshold, public_shares, public_key)
            .map_err(|error| suspect_dealers(error.to_string()))?;
        Ok(claim.clone())
    }
}
