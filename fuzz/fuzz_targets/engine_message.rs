//! The engine's messages: real ones, edited, given to real machines.
//!
//! A machine that has aborted is used up, and one that waits for a late round takes long to make: of
//! signing tens of milliseconds, of key generation seconds. So most inputs are only decoded, as the engine
//! would do first, and a few are drawn by their hash to be received.
//!
//! Machines draw their own randomness. A message is edited at fixed places of its encoding, so that an
//! input means the same in the next process, but not to the bit; a panic prints the message itself.

#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use dkls23::protocols::dkg::{
    BroadcastDerivationPhase2to4, BroadcastDerivationPhase3to4, TransmitInitMulPhase3to4,
    TransmitInitZeroSharePhase2to4, TransmitInitZeroSharePhase3to4,
};
use dkls23::protocols::signing::{Broadcast3to4, TransmitPhase1to2, TransmitPhase2to3};
use dkls23::utilities::proofs::DLogProof;
use k256::Secp256k1;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tss_fuzz::{Input, documents, drawn, signer};
use tss_mpc::rounds::{decode, encode};
use tss_mpc::{
    Abort, AnySignature, Blame, DerivationPath, Dkls23, Engine as _, Incoming, KeygenSetup, Machine,
    Outgoing, Payload, PublicKey, Quorum, Recipient, SessionId, ShareDocument, SignSetup, SignerIndex,
    SigningShare, Step, Threshold,
};

const DIGEST: [u8; 32] = [3; 32];

/// What signer 1, who is attacked, and signer 2, who attacks, hold of a 2-of-3 key.
struct Key {
    shares: [Arc<dyn SigningShare>; 2],
    public_key: PublicKey,
}

static KEY: LazyLock<Key> = LazyLock::new(|| {
    let documents = documents();
    let share = |index| Dkls23.open(&documents[&signer(index)]).expect("the fixture is of this engine");
    let points = documents[&signer(1)].core.secp256k1().expect("the fixture is an ECDSA key");
    Key { shares: [share(1), share(2)], public_key: points.public_key }
});

/// What signer 2 said in a signing and in a key generation, by round. In key generation by two none of
/// it depends on signer 1, so that it can be said again to another machine; of signing that is so in
/// round 1 alone.
struct Recorded {
    sign: BTreeMap<u8, Vec<Incoming>>,
    keygen: BTreeMap<u8, Vec<Incoming>>,
}

static RECORDED: LazyLock<Recorded> = LazyLock::new(|| Recorded {
    sign: record(sign_machine(1), sign_machine(2)),
    keygen: record(keygen_machine(1), keygen_machine(2)),
});

thread_local! {
    /// The message that a machine is given now.
    static CURRENT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A message of signer 2.
struct Kind {
    protocol: Protocol,
    round: u8,
    broadcast: bool,
    /// One in so many inputs is received by a machine.
    one_in: u64,
    /// Whether a body can be decoded.
    decodes: fn(&[u8], thoroughly: bool) -> bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Sign,
    Keygen,
}

/// What signer 2 broadcasts in round 2 of key generation; the engine has the same as a struct.
type Commitments = ([u8; 32], BroadcastDerivationPhase2to4);
/// In round 3.
type Openings = (DLogProof<Secp256k1>, BroadcastDerivationPhase3to4);
/// To each other alone, in round 3.
type PairSetup = (TransmitInitZeroSharePhase3to4, TransmitInitMulPhase3to4<Secp256k1>);

use Protocol::{Keygen, Sign};

const KINDS: [Kind; 9] = [
    kind(Sign, 1, false, 8, decodes::<TransmitPhase1to2>),
    kind(Sign, 2, false, 16, decodes::<TransmitPhase2to3<Secp256k1>>),
    kind(Sign, 3, true, 32, decodes::<Broadcast3to4<Secp256k1>>),
    kind(Keygen, 1, false, 64, decodes::<[u8; 32]>),
    kind(Keygen, 2, true, 1024, decodes::<Commitments>),
    kind(Keygen, 2, false, 1024, decodes::<TransmitInitZeroSharePhase2to4>),
    kind(Keygen, 3, true, 1024, decodes::<Openings>),
    kind(Keygen, 3, false, 1024, decodes::<PairSetup>),
    kind(Keygen, 4, true, 2048, decodes::<[u8; 32]>),
];

const fn kind(
    protocol: Protocol,
    round: u8,
    broadcast: bool,
    one_in: u64,
    decodes: fn(&[u8], bool) -> bool,
) -> Kind {
    Kind { protocol, round, broadcast, one_in, decodes }
}

/// Whether it can be decoded. It has then one value, with one encoding.
fn decodes<T: Serialize + DeserializeOwned>(body: &[u8], thoroughly: bool) -> bool {
    let Some(value) = decode::<T>(body) else { return false };
    let once = encode(&value).expect("it came from an encoding");
    if thoroughly && once != body {
        let value: T = decode(&once).expect("what was encoded is decoded");
        assert_eq!(encode(&value).expect("it came from an encoding"), once);
    }
    true
}

fuzz_target!(
    init: {
        LazyLock::force(&RECORDED);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            CURRENT.with_borrow(|message| eprintln!("the message: {message}"));
            hook(info);
        }));
    },
    |data: &[u8]| {
        let mut input = Input::new(data);
        let Kind { protocol, round, broadcast, decodes, one_in } =
            &KINDS[usize::from(input.byte()) % KINDS.len()];
        // Changes what is drawn, and nothing else.
        let [_, _] = input.array();
        if drawn(data, *one_in) {
            return match protocol {
                Sign => attacked_signing(*round, input),
                Keygen => attacked_keygen(*round, *broadcast, input),
            };
        }
        let messages = if *protocol == Sign { &RECORDED.sign } else { &RECORDED.keygen };
        let message = messages[round].iter().find(|message| message.broadcast == *broadcast);
        let body = &message.expect("this round has one").body;
        input.byte();
        let edited = input.edit(body);
        let fits = decodes(&edited, drawn(data, 16));
        assert!(fits || edited != *body, "a real message is not decoded");
    }
);

fn attacked_signing(round: u8, input: Input<'_>) {
    let (mut victim, messages) = signing(round);
    if let Some(signature) = attacked(&mut *victim, messages, 0, input) {
        let verified = signature.verify(&KEY.public_key.into(), &Payload::Digest(DIGEST));
        verified.expect("a signature comes out verified");
    }
}

fn attacked_keygen(round: u8, broadcast: bool, input: Input<'_>) {
    let (mut victim, messages) = keygen(round);
    let chosen = messages.iter().position(|message| message.broadcast == broadcast);
    let chosen = chosen.expect("this round has one");
    if let Some(document) = attacked(&mut *victim, messages, chosen, input) {
        let json = document.to_json().expect("it has a JSON form");
        ShareDocument::from_json(&json).expect("a share comes out whole");
    }
}

// ---- Machines

fn sign_machine(index: u8) -> Box<dyn Machine<Output = AnySignature>> {
    let quorum = Quorum::new([signer(1), signer(2)]).expect("they differ");
    let setup = SignSetup {
        session: SessionId([2; 32]),
        quorum,
        payload: Payload::Digest(DIGEST),
        path: DerivationPath::root(),
    };
    KEY.shares[usize::from(index) - 1].sign(setup).expect("the setup fits the key")
}

fn keygen_machine(index: u8) -> Box<dyn Machine<Output = ShareDocument>> {
    let setup = KeygenSetup {
        session: SessionId([4; 32]),
        cluster: "fuzz".into(),
        key: "test".into(),
        index: signer(index),
        threshold: Threshold::new(2, 2).expect("it is a threshold"),
    };
    Dkls23.keygen(setup).expect("the setup fits")
}

fn arriving(from: u8, sent: Vec<Outgoing>) -> Vec<Incoming> {
    let message = |Outgoing { round, to, body }| {
        let broadcast = to == Recipient::All;
        Incoming { round, from: signer(from), broadcast, body }
    };
    sent.into_iter().map(message).collect()
}

/// Gives a machine all of these, none of which ends it.
fn give<T>(machine: &mut dyn Machine<Output = T>, messages: Vec<Incoming>) -> Vec<Outgoing> {
    let receive = |message| machine.receive(message).expect("nothing was edited").send;
    messages.into_iter().flat_map(receive).collect()
}

/// What the second of two machines says to the first, from their first to their last round.
fn record<T>(
    mut one: Box<dyn Machine<Output = T>>,
    mut other: Box<dyn Machine<Output = T>>,
) -> BTreeMap<u8, Vec<Incoming>> {
    let mut by_round = BTreeMap::<u8, Vec<Incoming>>::new();
    let mut to_other = arriving(1, one.start().expect("it starts").send);
    let mut to_one = arriving(2, other.start().expect("it starts").send);
    while !to_one.is_empty() {
        by_round.entry(to_one[0].round).or_default().extend(to_one.iter().cloned());
        let answer = arriving(2, give(&mut *other, to_other));
        to_other = arriving(1, give(&mut *one, to_one));
        to_one = answer;
    }
    by_round
}

/// A machine of signer 1 that waits for this round of signing, and what signer 2 says in it.
fn signing(round: u8) -> (Box<dyn Machine<Output = AnySignature>>, Vec<Incoming>) {
    let mut victim = sign_machine(1);
    let sent = victim.start().expect("it starts").send;
    if round == 1 {
        return (victim, RECORDED.sign[&1].clone());
    }
    let mut peer = sign_machine(2);
    let mut to_victim = arriving(2, peer.start().expect("it starts").send);
    let mut to_peer = arriving(1, sent);
    for _ in 1..round {
        let answer = arriving(2, give(&mut *peer, to_peer));
        to_peer = arriving(1, give(&mut *victim, to_victim));
        to_victim = answer;
    }
    (victim, to_victim)
}

/// The same of key generation.
fn keygen(round: u8) -> (Box<dyn Machine<Output = ShareDocument>>, Vec<Incoming>) {
    let mut victim = keygen_machine(1);
    victim.start().expect("it starts");
    for earlier in 1..round {
        give(&mut *victim, RECORDED.keygen[&earlier].clone());
    }
    (victim, RECORDED.keygen[&round].clone())
}

// ---- The attack

/// Gives the machine these messages of signer 2, the chosen one edited, in either order. Whatever comes
/// of it, nobody else is blamed, and nobody is let off.
fn attacked<T>(
    victim: &mut dyn Machine<Output = T>,
    mut messages: Vec<Incoming>,
    chosen: usize,
    mut input: Input<'_>,
) -> Option<T> {
    let envelope = input.byte();
    let message = &mut messages[chosen];
    // Mostly only the body is edited.
    if envelope >= 192 {
        message.round = input.byte();
        message.broadcast = input.byte() % 2 == 0;
        message.from = signer(input.byte() % 4 + 1);
    }
    message.body = input.edit(&message.body);
    if envelope % 2 == 1 {
        messages.reverse();
    }
    for message in messages {
        CURRENT.with_borrow_mut(|current| {
            let Incoming { round, from, broadcast, body } = &message;
            *current = format!("round {round}, from {from}, broadcast {broadcast}, {}", hex::encode(body));
        });
        let from = message.from;
        match victim.receive(message) {
            Ok(Step { output: Some(output), .. }) => {
                ended(victim);
                return Some(output);
            }
            Ok(_) => {}
            Err(abort) => {
                blames(&abort, from);
                ended(victim);
                return None;
            }
        }
    }
    None
}

/// An abort at the message of signer 2, or in its name, is no other's fault, nor this signer's own.
fn blames(abort: &Abort, from: SignerIndex) {
    let fault = [from].into();
    match &abort.blame {
        Blame::Cheating { culprits, .. } => assert_eq!((culprits, from), (&fault, signer(2)), "{abort}"),
        Blame::Unattributed { suspects } => assert_eq!((suspects, from), (&fault, signer(2)), "{abort}"),
        Blame::Local => assert_ne!(from, signer(2), "{abort}"),
        Blame::Timeout { .. } => panic!("{abort}"),
    }
}

/// After the end there is nothing more.
fn ended<T>(machine: &mut dyn Machine<Output = T>) {
    assert!(machine.waiting_for().is_empty());
    let message = Incoming { round: 1, from: signer(2), broadcast: false, body: Vec::new() };
    assert!(matches!(machine.receive(message), Err(Abort { blame: Blame::Local, .. })));
    assert!(matches!(machine.start(), Err(Abort { blame: Blame::Local, .. })));
}
