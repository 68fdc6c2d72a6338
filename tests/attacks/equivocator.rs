//! A signer that tells one other signer something else than the rest, and signs both.

use std::sync::Arc;

use tss_common::bus::Address;
use tss_common::envelope::{Endpoint, Header};
use tss_mpc::SignerIndex;

use crate::tampering_bus::{Passed, TamperingBus};

/// From now on the signer at this end broadcasts something else to `victim` in `round`: the body with its
/// last bit changed. As it holds the signer's identity, the victim cannot tell by the signature.
pub(crate) fn equivocate(bus: &TamperingBus, end: Arc<Endpoint>, victim: SignerIndex, round: u8) {
    bus.tamper(move |message| {
        let Passed { to, body, after } = message;
        let told = match Header::peek(&body) {
            Ok(header) if to == Address::Rounds(victim) && is_broadcast_of(&header, end.index(), round) => {
                let letter = end.reader().read(&body).unwrap();
                let mut said = end.open(&letter).unwrap();
                *said.last_mut().unwrap() ^= 1;
                end.write(header, &said).unwrap()
            }
            _ => body,
        };
        vec![Passed { to, body: told, after }]
    });
}

fn is_broadcast_of(header: &Header, from: SignerIndex, round: u8) -> bool {
    header.from == from && header.to.is_none() && header.round == round
}
