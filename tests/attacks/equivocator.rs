//! A signer that tells one other signer something else than the rest, and signs both.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tss_common::bus::Address;
use tss_common::envelope::{Endpoint, Header};
use tss_mpc::SignerIndex;

use crate::tampering_bus::{Passed, TamperingBus};

/// How the signer goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// In its echo it says the same to all.
    Plain,
    /// In its echo, too, it tells the victim what the victim has received.
    Cunning,
}

/// From now on the signer at this end broadcasts something else to `victim` in `round`: the body with its
/// last bit changed. As it holds the signer's identity, the victim cannot tell by the signature.
pub(crate) fn equivocate(
    bus: &TamperingBus,
    end: Arc<Endpoint>,
    victim: SignerIndex,
    round: u8,
    manner: Manner,
) {
    // What the others received, and what the victim did, as an echo has it.
    let mut hashes = None;
    bus.tamper(move |message| {
        let Passed { to, body, after } = message;
        let told = match Header::peek(&body) {
            Ok(header)
                if [Address::Rounds(victim), Address::Ceremonies(victim)].contains(&to)
                    && header.from == end.index()
                    && header.to.is_none() =>
            {
                let letter = end.reader().read(&body).unwrap();
                let mut said = end.open(&letter).unwrap();
                if header.round == round {
                    let original = hash(&header, &said);
                    *said.last_mut().unwrap() ^= 1;
                    hashes = Some((original, hash(&header, &said)));
                } else if let (true, Some((original, told))) = (header.round == round + 1, hashes)
                    && manner == Manner::Cunning
                {
                    let at = said.windows(32).position(|window| window == original).unwrap();
                    said[at..at + 32].copy_from_slice(&told);
                }
                end.write(header, &said).unwrap()
            }
            _ => body,
        };
        vec![Passed { to, body: told, after }]
    });
}

/// The hash of a broadcast, as it stands in an echo.
fn hash(header: &Header, body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update("tss broadcast echo v1");
    hash.update([header.round, header.from.get()]);
    hash.update((body.len() as u64).to_be_bytes());
    hash.update(body);
    hash.finalize().into()
}
