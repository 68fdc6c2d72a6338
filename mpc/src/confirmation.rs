//! How a session that makes shares ends: all compare what came out, before anybody has it.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use crate::abort::list;
use crate::rounds::Received;
use crate::share::CoreShare;
use crate::{Abort, KeygenSetup, SignerIndex};

/// A hash of everything that all parties must have in common. `domain` begins it, so that it is the hash of nothing else.
pub(crate) fn confirmation(domain: &[u8], setup: &KeygenSetup, core: &CoreShare) -> [u8; 32] {
    let KeygenSetup { session, cluster, key, threshold, .. } = setup;
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    add(domain);
    add(&session.0);
    add(cluster.as_bytes());
    add(key.as_bytes());
    add(&[threshold.t(), threshold.n()]);
    add(&core.public_key().to_bytes());
    for share in core.points.public_shares().values() {
        add(&share.to_bytes());
    }
    add(&core.chain_code);
    hash.finalize().into()
}

/// Compares the own hash with those that the others have broadcast.
pub(crate) fn confirm(own: [u8; 32], received: &Received) -> Result<(), Abort> {
    let hashes = received.decode_broadcast::<[u8; 32]>()?;
    let differ: BTreeSet<SignerIndex> =
        hashes.into_iter().filter(|(_, hash)| *hash != own).map(|(from, _)| from).collect();
    if differ.is_empty() {
        return Ok(());
    }
    // All is computed from broadcasts, which came to everybody alike. So it is not the doing of
    // one who agrees with us.
    let reason = format!("{} ended with another result", list(&differ));
    Err(Abort::unattributed(differ, reason))
}
