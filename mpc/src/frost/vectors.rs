//! The test vectors of RFC 9591 for FROST(Ed25519, SHA-512), appendix E.1, through the machines that sign.
//!
//! What the vectors take as random is handed to the machines as such. So all of signing is covered: the nonces that are
//! made of it and the share, the commitments and the signature shares as they are on the wire, and the signature. The
//! vectors are in the form that the crate `frost-ed25519` 3.0.0 has them in. They have nothing on key generation.

use std::collections::BTreeMap;

use frost_ed25519::Ed25519Sha512;
use rand_core::{CryptoRng, RngCore};
use serde_json::Value;
use zeroize::Zeroizing;

use super::sign::Share;
use crate::local::{Machines, run_local};
use crate::point::{KeyPoints, Point as _, Points};
use crate::share::{CoreShare, EngineParts, SecretShare, VERSION};
use crate::{
    AnySignature, DerivationPath, Ed25519Key, Machine, Origin, Payload, Quorum, Recipient, Scheme, SessionId,
    ShareDocument, SignSetup, SignerIndex, Step, Threshold,
};

const VECTORS: &str = include_str!("../../tests/frost/rfc9591_ed25519.json");

/// Yields what it was given, once.
struct Given(Vec<u8>);

impl RngCore for Given {
    fn next_u32(&mut self) -> u32 {
        unreachable!("nonces take whole bytes")
    }

    fn next_u64(&mut self) -> u64 {
        unreachable!("nonces take whole bytes")
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        let rest = self.0.split_off(bytes.len());
        bytes.copy_from_slice(&std::mem::replace(&mut self.0, rest));
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl CryptoRng for Given {}

/// A machine whose messages can be read.
struct Watched {
    machine: Box<dyn Machine<Output = AnySignature>>,
    /// The messages that must be sent: the nonces' commitments, then the share of the signature.
    expected: Vec<Vec<u8>>,
}

impl Watched {
    fn watch(&mut self, step: Step<AnySignature>) -> Step<AnySignature> {
        for message in &step.send {
            let expected = self.expected.remove(0);
            let (body, start) = (&message.body, if message.to == Recipient::All { 32 } else { 0 });
            // Before the commitments stands the hash of what is signed.
            assert_eq!(hex::encode(&body[start..]), hex::encode(expected), "round {}", message.round);
        }
        step
    }
}

impl Machine for Watched {
    type Output = AnySignature;

    fn start(&mut self) -> Result<Step<AnySignature>, crate::Abort> {
        let step = self.machine.start()?;
        Ok(self.watch(step))
    }

    fn receive(&mut self, message: crate::Incoming) -> Result<Step<AnySignature>, crate::Abort> {
        let step = self.machine.receive(message)?;
        Ok(self.watch(step))
    }

    fn rounds(&self) -> u8 {
        self.machine.rounds()
    }

    fn waiting_for(&self) -> std::collections::BTreeSet<SignerIndex> {
        self.machine.waiting_for()
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn index(value: &Value) -> SignerIndex {
    SignerIndex::new(u8::try_from(value["identifier"].as_u64().unwrap()).unwrap()).unwrap()
}

#[test]
fn the_vectors_of_rfc_9591_come_out_of_the_machines() {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let inputs = &vectors["inputs"];
    let threshold = Threshold::new(2, 3).unwrap();
    let secrets: BTreeMap<SignerIndex, SecretShare> = inputs["participant_shares"]
        .as_array()
        .unwrap()
        .iter()
        .map(|share| {
            let secret = Zeroizing::new(bytes(&share["participant_share"]).try_into().unwrap());
            (index(share), SecretShare::from_bytes(&secret))
        })
        .collect();
    let public_key = Ed25519Key::from_encoding(&bytes(&inputs["verifying_key_key"])).unwrap();
    let public = |secret| Ed25519Key::of_secret(secret).unwrap().unwrap();
    let public_shares: BTreeMap<_, _> =
        secrets.iter().map(|(&index, secret)| (index, public(secret))).collect();
    let document = |index: SignerIndex| ShareDocument {
        version: VERSION,
        cluster: "c".into(),
        key: "k".into(),
        epoch: 1,
        scheme: Scheme::Ed25519,
        origin: Origin::Generated,
        core: CoreShare {
            index,
            threshold,
            secret_share: secrets[&index].clone(),
            points: Points::Ed25519(KeyPoints { public_key, public_shares: public_shares.clone() }),
            chain_code: [0; 32],
        },
        engines: EngineParts::default(),
    };

    let outputs = |round: &str| vectors[round]["outputs"].as_array().unwrap().clone();
    let (first, second) = (outputs("round_one_outputs"), outputs("round_two_outputs"));
    let quorum = Quorum::new(first.iter().map(index)).unwrap();
    let machine = |(first, second): (&Value, &Value)| {
        let random = ["hiding_nonce_randomness", "binding_nonce_randomness"].map(|name| bytes(&first[name]));
        let setup = SignSetup {
            session: SessionId([7; 32]),
            quorum: quorum.clone(),
            payload: Payload::Message(bytes(&inputs["message"])),
            path: DerivationPath::root(),
        };
        let share = Share::<Ed25519Sha512>::open(&document(index(first))).unwrap();
        let commitments = ["hiding_nonce_commitment", "binding_nonce_commitment"]
            .map(|name| Ed25519Key::from_encoding(&bytes(&first[name])).unwrap());
        let machine = Watched {
            machine: Box::new(share.machine(setup, Given(random.concat())).unwrap()),
            expected: vec![
                postcard::to_allocvec(&commitments).unwrap(),
                postcard::to_allocvec(&bytes(&second["sig_share"])).unwrap(),
            ],
        };
        (index(first), Box::new(machine) as Box<dyn Machine<Output = AnySignature>>)
    };
    let machines: Machines<AnySignature> = first.iter().zip(&second).map(machine).collect();
    let signatures = run_local(machines).unwrap();
    assert_eq!(signatures.len(), 2);
    for signature in signatures.into_values() {
        let AnySignature::Ed25519(signature) = signature else { panic!("{signature:?}") };
        assert_eq!(signature.to_bytes().to_vec(), bytes(&vectors["final_output"]["sig"]));
    }
}
