//! Signing: protocol 3.6 of DKLs23, in three rounds. Among more than two signers, an echo of the last
//! follows.

use std::collections::{BTreeMap, BTreeSet};

use dkls23::protocols::signing::{
    Broadcast3to4, KeepPhase1to2, KeepPhase2to3, SignData, TransmitPhase1to2, TransmitPhase2to3,
    UniqueKeep1to2, UniqueKeep2to3,
};
use dkls23::protocols::{Party, PartyIndex};
use k256::Secp256k1;

use super::{blame, check_parties, party_index, signer_index};
use crate::rounds::{Protocol, Received, Round, RoundMachine, Turn, encode};
use crate::{
    Abort, AnySignature, PublicKey, Recipient, Scheme, SetupError, SignSetup, Signature, SignerIndex,
};

/// The machine of one signer.
pub(super) fn machine(
    party: Party<Secp256k1>,
    index: SignerIndex,
    setup: SignSetup,
) -> Result<RoundMachine<Sign>, SetupError> {
    let others: BTreeSet<SignerIndex> = setup.quorum.others(index).collect();
    let public_key = PublicKey::from_affine(party.pk).map_err(|_| SetupError::Path(setup.path))?;
    let data = SignData {
        sign_id: setup.session.0.to_vec(),
        counterparties: others.iter().copied().map(party_index).collect(),
        message_hash: *setup.payload.digest(Scheme::EcdsaSecp256k1)?,
    };
    let rounds = vec![
        Round::direct(others.iter().copied()),
        Round::direct(others.iter().copied()),
        Round::broadcast(others.iter().copied()),
    ];
    let sign = Sign { party, data, public_key, index, others: others.clone(), state: State::Begin };
    Ok(RoundMachine::new(sign, index, others, rounds))
}

pub(super) struct Sign {
    party: Party<Secp256k1>,
    data: SignData,
    public_key: PublicKey,
    index: SignerIndex,
    others: BTreeSet<SignerIndex>,
    state: State,
}

/// What is kept from one round for the next. The crate takes it by value, so that nothing is used
/// twice, and zeroizes it.
enum State {
    Begin,
    Committed(UniqueKeep1to2<Secp256k1>, BTreeMap<PartyIndex, KeepPhase1to2<Secp256k1>>),
    Multiplied(UniqueKeep2to3<Secp256k1>, BTreeMap<PartyIndex, KeepPhase2to3<Secp256k1>>),
    /// The x-coordinate of the nonce, in hex, and this party's part of the signature.
    Contributed(String, Broadcast3to4<Secp256k1>),
    Ended,
}

impl Protocol for Sign {
    type Output = AnySignature;

    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        let (unique, kept, send) = self.party.sign_phase1(&self.data).map_err(|abort| self.blame(abort))?;
        self.state = State::Committed(unique, kept);
        send.iter().map(|message| direct(message.parties.receiver, message)).collect()
    }

    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<AnySignature>, Abort> {
        match (round, std::mem::replace(&mut self.state, State::Ended)) {
            (1, State::Committed(unique, kept)) => self.multiply(unique, kept, &received),
            (2, State::Multiplied(unique, kept)) => self.contribute(unique, kept, &received),
            (3, State::Contributed(x, own)) => self.assemble(&x, own, &received),
            _ => Err(Abort::local(format!("signing is not in round {round}"))),
        }
    }
}

impl Sign {
    fn multiply(
        &mut self,
        unique: UniqueKeep1to2<Secp256k1>,
        kept: BTreeMap<PartyIndex, KeepPhase1to2<Secp256k1>>,
        received: &Received,
    ) -> Result<Turn<AnySignature>, Abort> {
        let messages = received.decode_direct::<TransmitPhase1to2>()?;
        for (&from, message) in &messages {
            check_parties(&message.parties, from, self.index)?;
        }
        let messages: Vec<_> = messages.into_values().collect();
        let (unique, kept, send) =
            self.party.sign_phase2(&self.data, unique, kept, &messages).map_err(|abort| self.blame(abort))?;
        self.state = State::Multiplied(unique, kept);
        let send: Result<_, Abort> =
            send.iter().map(|message| direct(message.parties.receiver, message)).collect();
        send.map(Turn::send)
    }

    fn contribute(
        &mut self,
        unique: UniqueKeep2to3<Secp256k1>,
        kept: BTreeMap<PartyIndex, KeepPhase2to3<Secp256k1>>,
        received: &Received,
    ) -> Result<Turn<AnySignature>, Abort> {
        let messages = received.decode_direct::<TransmitPhase2to3<Secp256k1>>()?;
        for (&from, message) in &messages {
            check_parties(&message.parties, from, self.index)?;
        }
        let messages: Vec<_> = messages.into_values().collect();
        let (x, own) =
            self.party.sign_phase3(&self.data, unique, kept, &messages).map_err(|abort| self.blame(abort))?;
        let send = vec![(Recipient::All, encode(&own)?)];
        self.state = State::Contributed(x, own);
        Ok(Turn::send(send))
    }

    fn assemble(
        &mut self,
        x: &str,
        own: Broadcast3to4<Secp256k1>,
        received: &Received,
    ) -> Result<Turn<AnySignature>, Abort> {
        let mut parts: Vec<_> = received.decode_broadcast()?.into_values().collect();
        parts.push(own);
        let (s, recid) =
            self.party.sign_phase4(&self.data, x, &parts, true).map_err(|abort| self.blame(abort))?;
        let mut signature = Signature { r: [0; 32], s: [0; 32], recid };
        hex::decode_to_slice(x, &mut signature.r)
            .and_then(|()| hex::decode_to_slice(&s, &mut signature.s))
            .map_err(|error| Abort::local(format!("a signature in another form: {error}")))?;
        // The crate has verified it too, by code of its own; this check is independent, and it
        // covers the recovery id.
        signature
            .verify(&self.public_key, &self.data.message_hash)
            .map_err(|error| Abort::local(error.to_string()))?;
        Ok(Turn::done(AnySignature::Ecdsa(signature)))
    }

    fn blame(&self, abort: dkls23::protocols::Abort) -> Abort {
        blame(abort, &self.others)
    }
}

fn direct<T: serde::Serialize>(to: PartyIndex, message: &T) -> Result<(Recipient, Vec<u8>), Abort> {
    Ok((Recipient::One(signer_index(to)?), encode(message)?))
}
