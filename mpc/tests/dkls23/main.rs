//! The engine `dkls23`: keys and signatures checked by independent implementations, and every fault
//! laid at the right door.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use ::dkls23::protocols::dkg::{
    BroadcastDerivationPhase2to4, BroadcastDerivationPhase3to4, TransmitInitMulPhase3to4,
    TransmitInitZeroSharePhase2to4, TransmitInitZeroSharePhase3to4,
};
use ::dkls23::protocols::signing::{Broadcast3to4, TransmitPhase1to2, TransmitPhase2to3};
use ::dkls23::utilities::commits;
use ::dkls23::utilities::proofs::DLogProof;
use bip32::{ChildNumber, ExtendedKeyAttrs, XPub};
use k256::ecdsa::signature::hazmat::PrehashVerifier;
use k256::elliptic_curve::ff::PrimeField;
use k256::{Scalar, Secp256k1};
use serde::Serialize;
use serde_json::{Value, json};
use tss_mpc::local::Machines;
use tss_mpc::rounds::MAX_BODY;
use tss_mpc::{
    Abort, AnySignature, Blame, DerivationPath, Dkls23, Engine, EngineId, Incoming, KeygenSetup, Machine,
    Payload, PublicKey, Quorum, SessionId, SetupError, ShareDocument, ShareError, SignSetup, SignerIndex,
    SigningShare, Threshold, run_local, run_local_with,
};

mod import;
#[path = "../network/mod.rs"]
mod network;
mod renew;

use network::*;

// ---- Keys

fn keygen_setup(index: SignerIndex, threshold: Threshold) -> KeygenSetup {
    let session = SessionId([threshold.n(); 32]);
    KeygenSetup { session, cluster: "cluster".into(), key: "key".into(), index, threshold }
}

fn keygen_machines(t: u8, n: u8) -> Machines<ShareDocument> {
    let threshold = Threshold::new(t, n).unwrap();
    threshold.signers().map(|i| (i, Dkls23.keygen(keygen_setup(i, threshold)).unwrap())).collect()
}

/// A key, made once for all tests.
struct Key {
    documents: BTreeMap<SignerIndex, ShareDocument>,
    shares: BTreeMap<SignerIndex, Arc<dyn SigningShare>>,
}

fn key(t: u8, n: u8) -> &'static Key {
    static KEYS: [OnceLock<Key>; 4] = [const { OnceLock::new() }; 4];
    let slot = match (t, n) {
        (2, 2) => 0,
        (2, 3) => 1,
        (3, 5) => 2,
        (5, 9) => 3,
        _ => panic!("no {t}-of-{n} key"),
    };
    KEYS[slot].get_or_init(|| Key::new(run_local(keygen_machines(t, n)).unwrap()))
}

impl Key {
    fn new(documents: BTreeMap<SignerIndex, ShareDocument>) -> Self {
        let shares = documents.iter().map(|(&i, document)| (i, Dkls23.open(document).unwrap())).collect();
        Self { documents, shares }
    }

    fn root(&self) -> PublicKey {
        self.documents[&signer(1)].core.secp256k1().unwrap().public_key
    }

    fn chain_code(&self) -> [u8; 32] {
        self.documents[&signer(1)].core.chain_code
    }

    fn machines(&self, setup: &SignSetup) -> Machines<AnySignature> {
        setup.quorum.iter().map(|i| (i, self.shares[&i].sign(setup.clone()).unwrap())).collect()
    }
}

/// What is signed where nothing else is said.
const DIGEST: [u8; 32] = [3; 32];

fn sign_setup(quorum: Quorum) -> SignSetup {
    let payload = Payload::Digest(DIGEST);
    SignSetup { session: SessionId([2; 32]), quorum, payload, path: DerivationPath::root() }
}

fn banned(abort: &Abort, culprit: u8) -> bool {
    abort.blame == Blame::Cheating { culprits: signers([culprit]), ban: true }
}

// ---- Signatures, by independent implementations

/// The public key at a path, by the crate `bip32`.
fn bip32_key(root: &PublicKey, chain_code: [u8; 32], path: &DerivationPath) -> PublicKey {
    let root = k256::ecdsa::VerifyingKey::from_sec1_bytes(&root.to_compressed()).unwrap();
    let attrs =
        ExtendedKeyAttrs { depth: 0, parent_fingerprint: [0; 4], child_number: ChildNumber(0), chain_code };
    let mut node = XPub::new(root, attrs);
    for &step in path.steps() {
        node = node.derive_child(ChildNumber::new(step, false).unwrap()).unwrap();
    }
    PublicKey::from_sec1(&node.to_bytes()).unwrap()
}

fn check_signature(signature: &AnySignature, key: &PublicKey, digest: [u8; 32]) {
    let signature = signature.ecdsa().unwrap();
    let by_k256 = k256::ecdsa::Signature::from_slice(&signature.to_compact()).unwrap();
    let verifying = k256::ecdsa::VerifyingKey::from_sec1_bytes(&key.to_compressed()).unwrap();
    verifying.verify_prehash(&digest, &by_k256).unwrap();

    let message = secp256k1::Message::from_digest(digest);
    let public = secp256k1::PublicKey::from_slice(&key.to_uncompressed()).unwrap();
    let by_libsecp = secp256k1::ecdsa::Signature::from_compact(&signature.to_compact()).unwrap();
    let mut low = by_libsecp;
    low.normalize_s();
    assert_eq!(low, by_libsecp, "s is high");
    let secp = secp256k1::Secp256k1::verification_only();
    secp.verify_ecdsa(message, &by_libsecp, &public).unwrap();
    assert_eq!(secp256k1::ecdsa::Signature::from_der(&signature.to_der().unwrap()).unwrap(), by_libsecp);

    let id = secp256k1::ecdsa::RecoveryId::try_from(i32::from(signature.recid)).unwrap();
    let recoverable =
        secp256k1::ecdsa::RecoverableSignature::from_compact(&signature.to_compact(), id).unwrap();
    assert_eq!(secp.recover_ecdsa(message, &recoverable).unwrap(), public, "wrong recovery id");
    signature.verify(key, &digest).unwrap();
}

/// Every quorum once with the root key and once with a derived one.
fn every_quorum_signs(t: u8, n: u8) {
    every_quorum_of_signs(key(t, n), t, n);
}

fn every_quorum_of_signs(key: &Key, t: u8, n: u8) {
    let paths: [DerivationPath; 2] = [DerivationPath::root(), "44/60/0/7".parse().unwrap()];
    let quorums = quorums(t, n);
    let jobs: Vec<_> = (quorums.iter().flat_map(|quorum| paths.iter().map(move |path| (quorum, path))))
        .enumerate()
        .collect();
    assert_eq!(jobs.len(), 2 * quorums.len());
    let job = |&(number, (members, path)): &(usize, (&Vec<u8>, &DerivationPath))| {
        let digest = [u8::try_from(number).unwrap(); 32];
        let payload = Payload::Digest(digest);
        let setup = SignSetup { payload, path: path.clone(), ..sign_setup(quorum(members.iter().copied())) };
        let signatures = run(key.machines(&setup), |envelope| vec![envelope]).outputs;
        assert_eq!(signatures.len(), usize::from(t));
        let public = bip32_key(&key.root(), key.chain_code(), path);
        let signature = signatures.values().next().unwrap();
        assert!(signatures.values().all(|other| other == signature), "signers ended with other signatures");
        check_signature(signature, &public, digest);
    };
    // Two at a time, as the key generation before leaves this test to be the last.
    std::thread::scope(|scope| {
        for lane in 0..2 {
            let (jobs, job) = (&jobs, &job);
            scope.spawn(move || {
                jobs.iter().skip(lane).step_by(2).for_each(job);
            });
        }
    });
}

#[test]
fn every_quorum_of_2_of_2_signs() {
    every_quorum_signs(2, 2);
}

#[test]
fn every_quorum_of_2_of_3_signs() {
    every_quorum_signs(2, 3);
}

#[test]
fn every_quorum_of_3_of_5_signs() {
    every_quorum_signs(3, 5);
}

#[test]
fn every_quorum_of_5_of_9_signs() {
    every_quorum_signs(5, 9);
}

#[test]
fn derived_keys_are_those_of_bip32() {
    let key = key(2, 3);
    for path in [
        "m",
        "0",
        "0/1/2",
        "44/60/0/0/7",
        "2147483647/0/2147483647",
        "1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16",
    ] {
        let path: DerivationPath = path.parse().unwrap();
        let derived = key.root().derive(&key.chain_code(), &path).unwrap();
        assert_eq!(derived, bip32_key(&key.root(), key.chain_code(), &path), "{path}");
    }
}

#[test]
fn a_session_signs_whatever_the_order_of_messages() {
    let key = key(3, 5);
    for seed in 0..8 {
        let mut random = Random(seed);
        let setup = sign_setup(quorum([1, 3, 4]));
        let mut machines = key.machines(&setup);
        let mut flying = Vec::new();
        let mut outputs = BTreeMap::new();
        // Some start late, so that messages reach them before.
        let mut to_start: Vec<SignerIndex> = setup.quorum.iter().collect();
        while outputs.len() < 3 {
            let pick = random.below(flying.len() + to_start.len());
            let (at, step) = if pick < flying.len() {
                let Envelope { to, message } = flying.swap_remove(pick);
                (to, machines.get_mut(&to).unwrap().receive(message).unwrap())
            } else {
                let at = to_start.swap_remove(pick - flying.len());
                (at, machines.get_mut(&at).unwrap().start().unwrap())
            };
            for sent in step.send {
                flying.extend(addressed(at, sent, setup.quorum.others(at)));
            }
            outputs.extend(step.output.map(|output| (at, output)));
        }
        check_signature(&outputs[&signer(1)], &key.root(), DIGEST);
    }
}

// ---- Key generation and share documents

#[test]
fn all_parties_end_key_generation_with_the_same_key() {
    for (t, n) in [(2, 2), (2, 3), (3, 5)] {
        let key = key(t, n);
        let first = &key.documents[&signer(1)].core;
        for (&index, document) in &key.documents {
            let core = &document.core;
            assert_eq!((core.index, core.threshold), (index, Threshold::new(t, n).unwrap()));
            assert_eq!(core.public_key(), first.public_key());
            assert_eq!(core.chain_code, first.chain_code);
            assert_eq!(core.points, first.points);
            assert_eq!(
                (document.epoch, document.cluster.as_str(), document.key.as_str()),
                (1, "cluster", "key")
            );
        }
        assert_ne!(first.chain_code, [0; 32]);
    }
}

/// A key generation of two without a fault: all messages, and what came out.
fn recorded_keygen() -> &'static (Vec<Incoming>, BTreeMap<SignerIndex, ShareDocument>) {
    static RECORD: OnceLock<(Vec<Incoming>, BTreeMap<SignerIndex, ShareDocument>)> = OnceLock::new();
    RECORD.get_or_init(|| {
        let mut messages = Vec::new();
        let ended = run(keygen_machines(2, 2), |envelope| {
            messages.push(envelope.message.clone());
            vec![envelope]
        });
        (messages, ended.outputs)
    })
}

#[test]
fn two_key_generations_give_two_keys() {
    let again = &recorded_keygen().1[&signer(1)].core;
    assert_ne!(again.secp256k1().unwrap().public_key, key(2, 2).root());
    assert_ne!(again.chain_code, key(2, 2).chain_code());
}

#[test]
fn progress_is_told_once_for_each_round() {
    // Two signers have nobody to compare a broadcast with, and three rounds are all they need.
    for (key, members, rounds) in
        [(key(2, 3), quorum([2, 3]), vec![1, 2, 3]), (key(3, 5), quorum([1, 2, 3]), vec![1, 2, 3, 4])]
    {
        let mut told = Vec::new();
        let machines = key.machines(&sign_setup(members.clone()));
        assert!(machines.values().all(|machine| usize::from(machine.rounds()) == rounds.len()));
        let signatures = run_local_with(machines, |round| told.push(round)).unwrap();
        assert_eq!((told, signatures.len()), (rounds, members.len()));
    }
}

#[test]
fn key_generation_tells_how_many_rounds_it_has() {
    for (t, n, rounds) in [(2, 2, 4), (2, 3, 7), (5, 9, 7)] {
        assert!(keygen_machines(t, n).values().all(|machine| machine.rounds() == rounds));
    }
    let highest = recorded_keygen().0.iter().map(|message| message.round).max();
    assert_eq!(highest, Some(4));
}

#[test]
fn a_local_run_tells_who_is_silent() {
    let setup = sign_setup(quorum([1, 2]));
    let mut machines = key(2, 3).machines(&setup);
    machines.remove(&signer(2));
    let (at, abort) = run_local(machines).unwrap_err();
    assert_eq!((at, abort), (signer(1), Abort::timeout(signers([2]))));
}

#[test]
fn a_share_document_survives_storage() {
    let key = key(2, 3);
    let mut shares = BTreeMap::new();
    for (&index, document) in &key.documents {
        let json = document.to_json().unwrap();
        let read = ShareDocument::from_json(&json).unwrap();
        assert_eq!(read.to_json().unwrap(), json);
        shares.insert(index, Dkls23.open(&read).unwrap());
    }
    let setup = sign_setup(quorum([1, 3]));
    let machines = setup.quorum.iter().map(|i| (i, shares[&i].sign(setup.clone()).unwrap())).collect();
    let signatures = run_local(machines).unwrap();
    check_signature(&signatures[&signer(1)], &key.root(), DIGEST);
}

#[test]
fn the_engine_part_repeats_nothing_of_the_core() {
    let json: Value = serde_json::from_slice(&key(2, 3).documents[&signer(1)].to_json().unwrap()).unwrap();
    let part = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        json["engines"]["dkls23"].as_str().unwrap(),
    )
    .unwrap();
    for value in ["secret_share", "chain_code", "public_key"] {
        let bytes = hex::decode(json["core"][value].as_str().unwrap()).unwrap();
        // Of a point, x alone: its encodings differ in the first byte.
        let bytes = &bytes[bytes.len() - 32..];
        assert!(!part.windows(32).any(|window| window == bytes), "{value}");
    }
}

/// Signer 1's document of the 2-of-3 key with a change, read and opened.
fn open_changed(change: impl FnOnce(&mut Value)) -> Result<(), ShareError> {
    let mut json: Value =
        serde_json::from_slice(&key(2, 3).documents[&signer(1)].to_json().unwrap()).unwrap();
    change(&mut json);
    let document = ShareDocument::from_json(json.to_string().as_bytes())?;
    Dkls23.open(&document).map(|_| ())
}

/// The same point, negated.
fn negate(point: &mut Value) {
    let text = point.as_str().unwrap();
    let prefix = if text.starts_with("02") { "03" } else { "02" };
    *point = json!(format!("{prefix}{}", &text[2..]));
}

#[test]
fn a_damaged_share_document_is_refused() {
    assert_eq!(open_changed(|_| ()), Ok(()));

    let inconsistent =
        |change: fn(&mut Value)| matches!(open_changed(change), Err(ShareError::Inconsistent(_)));
    assert!(inconsistent(|json| {
        let secret = json["core"]["secret_share"].as_str().unwrap();
        let digit = if secret.ends_with('0') { '1' } else { '0' };
        json["core"]["secret_share"] = json!(format!("{}{digit}", &secret[..63]));
    }));
    for index in ["1", "2", "3"] {
        let result = open_changed(|json| negate(&mut json["core"]["public_shares"][index]));
        assert!(matches!(result, Err(ShareError::Inconsistent(_))), "{index}: {result:?}");
    }
    assert!(inconsistent(|json| negate(&mut json["core"]["public_key"])));
    assert!(inconsistent(|json| json["core"]["index"] = json!(2)));
    assert!(inconsistent(|json| json["core"]["index"] = json!(4)));
    assert!(inconsistent(|json| {
        json["core"]["public_shares"].as_object_mut().unwrap().remove("2");
    }));
    assert!(inconsistent(|json| json["core"]["threshold"]["threshold"] = json!(3)));

    let malformed = |change: fn(&mut Value)| matches!(open_changed(change), Err(ShareError::Malformed(_)));
    assert!(malformed(|json| json["core"]["secret_share"] = json!("ff".repeat(32))));
    assert!(
        malformed(|json| json["core"]["public_key"] = json!("02".repeat(33)))
            || inconsistent(|json| json["core"]["public_key"] = json!("02".repeat(33)))
    );
    assert!(malformed(|json| json["core"]["threshold"]["threshold"] = json!(1)));
    assert!(malformed(|json| json["core"]["extra"] = json!(1)));
    assert!(malformed(|json| json["scheme"] = json!("ecdsa-p256")));

    assert_eq!(open_changed(|json| json["version"] = json!(2)), Err(ShareError::Version(2)));
    let json = key(2, 3).documents[&signer(1)].to_json().unwrap();
    for length in [0, 1, json.len() / 2, json.len() - 1] {
        assert!(
            matches!(ShareDocument::from_json(&json[..length]), Err(ShareError::Malformed(_))),
            "{length}"
        );
    }
}

#[test]
fn a_damaged_engine_part_is_refused() {
    assert_eq!(
        open_changed(|json| json["engines"] = json!({})),
        Err(ShareError::MissingEngine(EngineId::Dkls23))
    );
    let part = |edit: fn(&str) -> String| {
        open_changed(move |json| {
            let part = json["engines"]["dkls23"].as_str().unwrap();
            json["engines"]["dkls23"] = json!(edit(part));
        })
    };
    assert!(matches!(part(|_| String::new()), Err(ShareError::Malformed(_))));
    assert!(matches!(part(|part| part[..part.len() / 8 * 4].to_owned()), Err(ShareError::Malformed(_))));
    assert!(matches!(part(|part| format!("{part}AAAA")), Err(ShareError::Malformed(_))));
    assert!(matches!(
        part(|part| part.replacen(char::is_alphanumeric, "%", 1)),
        Err(ShareError::Malformed(_))
    ));
    let other = |t: u8, n: u8, index: u8| {
        open_changed(|json| {
            json["engines"]["dkls23"] =
                json!(**key(t, n).documents[&signer(index)].engines.dkls23.as_ref().unwrap());
        })
    };
    // Another signer's, and one with other counterparties.
    assert!(matches!(other(2, 3, 2), Err(ShareError::Inconsistent(_))));
    assert!(matches!(other(2, 2, 1), Err(ShareError::Inconsistent(_))));
}

#[test]
fn a_document_shows_no_secret_in_debug_output() {
    let document = &key(2, 3).documents[&signer(1)];
    let json: Value = serde_json::from_slice(&document.to_json().unwrap()).unwrap();
    let debug = format!("{document:?} {:?}", document.core.secret_share);
    assert!(!debug.contains(json["core"]["secret_share"].as_str().unwrap()));
    assert!(debug.contains(&document.core.public_key().to_string()));
}

// ---- Setups

#[test]
fn a_setup_that_does_not_fit_the_key_is_refused() {
    let key = key(2, 3);
    let sign = |index: u8, members: &[u8]| {
        let setup = sign_setup(quorum(members.iter().copied()));
        key.shares[&signer(index)].sign(setup).map(|_| ())
    };
    for members in [&[][..], &[1], &[1, 2, 3], &[1, 4], &[1, 16]] {
        let threshold = Threshold::new(2, 3).unwrap();
        let expected = SetupError::Quorum { quorum: quorum(members.iter().copied()), threshold };
        assert_eq!(sign(1, members), Err(expected));
    }
    assert_eq!(sign(1, &[2, 3]), Err(SetupError::NotInQuorum(signer(1))));
    assert_eq!(sign(1, &[1, 3]), Ok(()));

    let stranger = Dkls23.keygen(keygen_setup(signer(4), Threshold::new(2, 3).unwrap())).map(|_| ());
    assert!(matches!(stranger, Err(SetupError::Abort(Abort { blame: Blame::Local, .. }))));
}

// ---- Faults in signing

#[test]
fn a_failed_oblivious_transfer_bans_its_sender() {
    let ended = run_tampered(
        key(3, 5).machines(&sign_setup(quorum([1, 2, 5]))),
        (1, false, 2),
        |to, message: &mut TransmitPhase1to2| {
            if to == signer(5) {
                message.mul_transmit.u[3][5] ^= 1;
            }
        },
    );
    assert!(banned(&ended.aborts[&signer(5)], 2), "{:?}", ended.aborts);
    assert!(ended.outputs.is_empty());
    // The others see that 5 says nothing more.
    assert_eq!(ended.machines[&signer(1)].timed_out(), Abort::timeout(signers([5])));
}

#[test]
fn a_failed_multiplication_bans_its_sender() {
    type Message = TransmitPhase2to3<Secp256k1>;
    let tampered = |edit: fn(&mut Message)| {
        let machines = key(2, 3).machines(&sign_setup(quorum([1, 2])));
        let mut ended = run_tampered(machines, (2, false, 2), |_, message| edit(message));
        ended.aborts.remove(&signer(1)).unwrap()
    };
    let bans: [fn(&mut Message); 5] = [
        |message| message.mul_transmit.verify_r[0] ^= 1,
        |message| message.mul_transmit.gamma_sender[0] += Scalar::ONE,
        |message| message.mul_transmit.vector_of_tau[0][0] += Scalar::ONE,
        |message| message.gamma_u = message.gamma_v,
        |message| message.public_share = message.instance_point,
    ];
    for edit in bans {
        let abort = tampered(edit);
        assert!(banned(&abort, 2), "{abort:?}");
    }
    let openings: [fn(&mut Message); 4] = [
        |message| message.psi += Scalar::ONE,
        |message| message.salt[0] ^= 1,
        |message| message.instance_point = message.public_share,
        |message| message.instance_point = k256::AffinePoint::IDENTITY,
    ];
    for edit in openings {
        let abort = tampered(edit);
        assert!(cheated(&abort, 2), "{abort:?}");
    }
}

#[test]
fn a_wrong_part_of_a_signature_is_attributed_only_when_one_can_have_sent_it() {
    let edit = |_, part: &mut Broadcast3to4<Secp256k1>| part.w += Scalar::ONE;
    let two = run_tampered(key(2, 3).machines(&sign_setup(quorum([1, 3]))), (3, true, 3), edit);
    assert!(cheated(&two.aborts[&signer(1)], 3), "{:?}", two.aborts);
    let three = run_tampered(key(3, 5).machines(&sign_setup(quorum([1, 3, 4]))), (3, true, 3), edit);
    assert!(suspected(&three.aborts[&signer(1)], [3, 4]), "{:?}", three.aborts);
    assert!(suspected(&three.aborts[&signer(4)], [1, 3]), "{:?}", three.aborts);
    assert!(three.outputs.contains_key(&signer(3)));
}

#[test]
fn parts_that_sum_up_to_zero_are_no_panic() {
    // The last to speak can choose its part so that the sum has no inverse.
    let mut sum = Scalar::ZERO;
    let ended = run(key(2, 3).machines(&sign_setup(quorum([1, 2]))), |mut envelope| {
        if envelope.is(3, true, 1) {
            envelope.edit(|part: &mut Broadcast3to4<Secp256k1>| sum = part.u);
        }
        if envelope.is(3, true, 2) {
            envelope.edit(|part: &mut Broadcast3to4<Secp256k1>| part.u = -sum);
        }
        vec![envelope]
    });
    assert!(cheated(&ended.aborts[&signer(1)], 2), "{:?}", ended.aborts);
}

#[test]
fn signers_with_different_setups_suspect_each_other_without_proof() {
    let key = key(2, 3);
    let setup = sign_setup(quorum([1, 2]));
    let others = [
        SignSetup { payload: Payload::Digest([9; 32]), ..setup.clone() },
        SignSetup { session: SessionId([9; 32]), ..setup.clone() },
        SignSetup { path: "1".parse().unwrap(), ..setup.clone() },
    ];
    for other in others {
        let mut machines = key.machines(&setup);
        machines.insert(signer(2), key.shares[&signer(2)].sign(other).unwrap());
        let ended = run(machines, |envelope| vec![envelope]);
        assert!(suspected(&ended.aborts[&signer(1)], [2]), "{:?}", ended.aborts);
        assert!(ended.aborts[&signer(1)].culprits().is_empty());
        assert!(suspected(&ended.aborts[&signer(2)], [1]), "{:?}", ended.aborts);
    }
}

#[test]
fn a_message_replayed_from_another_session_is_no_ground_for_a_ban() {
    let key = key(2, 3);
    let setup = sign_setup(quorum([1, 2]));
    for round in [1, 2] {
        let mut old = BTreeMap::new();
        run(key.machines(&setup), |envelope| {
            old.insert((envelope.to, envelope.message.round), envelope.clone());
            vec![envelope]
        });
        // The session id is the same, which never happens; the worst case.
        let ended =
            run(key.machines(&setup), |envelope| match old.get(&(envelope.to, envelope.message.round)) {
                Some(old) if envelope.is(round, false, 2) => vec![old.clone()],
                _ => vec![envelope],
            });
        let aborts: Vec<&Abort> = ended.aborts.values().collect();
        assert!(!aborts.is_empty() && aborts.iter().all(|abort| abort.banned().is_empty()), "{aborts:?}");
    }
}

#[test]
fn a_message_in_the_name_of_another_is_cheating() {
    let key = key(3, 5);
    let machines = || key.machines(&sign_setup(quorum([1, 2, 3])));
    let party = |index| ::dkls23::protocols::PartyIndex::new(index).unwrap();
    let first = run_tampered(machines(), (1, false, 2), |to, message: &mut TransmitPhase1to2| {
        if to == signer(1) {
            message.parties.sender = party(3);
        }
    });
    assert!(cheated(&first.aborts[&signer(1)], 2), "{:?}", first.aborts);
    let second = run_tampered(machines(), (2, false, 2), |to, message: &mut TransmitPhase2to3<Secp256k1>| {
        if to == signer(1) {
            message.parties.receiver = party(3);
        }
    });
    assert!(cheated(&second.aborts[&signer(1)], 2), "{:?}", second.aborts);
}

#[test]
fn a_silent_signer_is_named() {
    let key = key(3, 5);
    // The last is the echo.
    for silent in 1..=4 {
        let ended = run(key.machines(&sign_setup(quorum([1, 2, 4]))), |envelope| {
            let drop = envelope.message.from == signer(4) && envelope.message.round >= silent;
            if drop { Vec::new() } else { vec![envelope] }
        });
        for index in [1, 2] {
            let machine = &ended.machines[&signer(index)];
            assert_eq!(machine.waiting_for(), signers([4]));
            assert_eq!(machine.timed_out().blame, Blame::Timeout { missing: signers([4]) });
        }
    }
}

/// What signer 1 makes of one more message, in the first round of a session with 2 and 3.
fn first_round(message: Incoming) -> Abort {
    let mut machine = key(3, 5).shares[&signer(1)].sign(sign_setup(quorum([1, 2, 3]))).unwrap();
    machine.start().unwrap();
    let abort = machine.receive(message.clone()).unwrap_err();
    // It has ended.
    assert_eq!(machine.receive(message).unwrap_err().blame, Blame::Local);
    assert_eq!(machine.start().unwrap_err().blame, Blame::Local);
    assert!(machine.waiting_for().is_empty());
    abort
}

#[test]
fn a_message_that_no_honest_signer_sends_is_cheating() {
    let message = Incoming { round: 1, from: signer(2), broadcast: false, body: vec![1, 2, 3] };
    for round in [0, 5, 255] {
        assert!(cheated(&first_round(Incoming { round, ..message.clone() }), 2), "round {round}");
    }
    for (round, broadcast) in [(1, true), (2, true), (3, false), (4, false)] {
        assert!(cheated(&first_round(Incoming { round, broadcast, ..message.clone() }), 2), "round {round}");
    }
    assert!(cheated(&first_round(Incoming { body: vec![0; MAX_BODY + 1], ..message.clone() }), 2));
    for from in [1, 4, 16] {
        assert_eq!(first_round(Incoming { from: signer(from), ..message.clone() }).blame, Blame::Local);
    }
}

#[test]
fn a_second_message_is_cheating_at_any_time() {
    // At once, and when the round is long over.
    for late in [false, true] {
        let mut first = None;
        let ended = run(key(2, 3).machines(&sign_setup(quorum([1, 2]))), |envelope| {
            if envelope.is(1, false, 2) {
                first = Some(envelope.clone());
                if late { vec![envelope] } else { vec![envelope.clone(), envelope] }
            } else if envelope.is(2, false, 2) && late {
                vec![first.clone().unwrap(), envelope]
            } else {
                vec![envelope]
            }
        });
        assert!(cheated(&ended.aborts[&signer(1)], 2), "{:?}", ended.aborts);
    }
}

#[test]
fn a_malformed_body_is_cheating() {
    let key = key(2, 3);
    for (round, broadcast) in [(1, false), (2, false), (3, true)] {
        let edits: [fn(&mut Vec<u8>); 4] = [
            |body| body.clear(),
            |body| body.push(0),
            |body| {
                body.pop();
            },
            |body| *body = vec![0xff; MAX_BODY],
        ];
        for edit in edits {
            let ended = run(key.machines(&sign_setup(quorum([1, 2]))), |mut envelope| {
                if envelope.is(round, broadcast, 2) {
                    edit(&mut envelope.message.body);
                }
                vec![envelope]
            });
            let abort = &ended.aborts[&signer(1)];
            assert!(cheated(abort, 2) && abort.reason.contains("malformed"), "round {round}: {abort:?}");
        }
    }
}

#[test]
fn random_and_mutated_bodies_never_panic_or_sign_in_signing() {
    let key = key(2, 3);
    let setup = sign_setup(quorum([1, 2]));
    for seed in 0..300 {
        let mut random = Random(seed);
        let round = u8::try_from(seed % 3 + 1).unwrap();
        let mut original = Vec::new();
        let ended = run(key.machines(&setup), |mut envelope| {
            let message = &mut envelope.message;
            if message.round == round && message.from == signer(2) {
                original = message.body.clone();
                garble(&mut random, &mut message.body);
            }
            vec![envelope]
        });
        // Never at a party that is not at fault: what one sends is all that was changed.
        match (ended.aborts.get(&signer(1)), ended.outputs.get(&signer(1))) {
            (Some(abort), None) => {
                assert_ne!(abort.blame, Blame::Local, "seed {seed}: {abort}");
                assert!(!abort.culprits().contains(&signer(1)), "seed {seed}: {abort}");
            }
            (None, Some(signature)) => check_signature(signature, &key.root(), DIGEST),
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}

// ---- Broadcasts that are none

#[test]
fn a_broadcast_that_is_not_the_same_for_all_ends_key_generation_of_3_at_once() {
    for round in [2, 4, 6] {
        equivocates(keygen_machines(2, 3), round, true);
        equivocates(keygen_machines(2, 3), round, false);
    }
}

#[test]
fn a_broadcast_that_is_not_the_same_for_all_ends_key_generation_of_5_at_once() {
    for (round, hides) in [(2, true), (2, false), (4, true), (6, true)] {
        equivocates(keygen_machines(3, 5), round, hides);
    }
}

#[test]
fn a_part_of_a_signature_that_is_not_the_same_for_all_ends_signing() {
    for (key, members) in [(key(3, 5), quorum([1, 2, 4])), (key(5, 9), quorum([1, 2, 4, 7, 9]))] {
        let setup = sign_setup(members);
        equivocates(key.machines(&setup), 3, true);
        equivocates(key.machines(&setup), 3, false);
    }
}

#[test]
fn a_party_that_lies_in_its_echo_is_named() {
    type Lie = fn(SignerIndex, &mut Echo);
    let run = |edit: Lie| {
        run(key(3, 5).machines(&sign_setup(quorum([1, 2, 4]))), |mut envelope| {
            if envelope.is(4, true, 2) {
                let to = envelope.to;
                envelope.edit(|echo| edit(to, echo));
            }
            vec![envelope]
        })
    };
    let lies: [Lie; 4] = [
        |_, echo| echo.get_mut(&signer(2)).unwrap()[0] ^= 1,
        |to, echo| echo.get_mut(&to).unwrap()[0] ^= 1,
        |_, echo| {
            echo.remove(&signer(4));
        },
        |_, echo| {
            echo.insert(signer(3), [0; 32]);
        },
    ];
    for lie in lies {
        let ended = run(lie);
        for index in [1, 4] {
            assert!(cheated(&ended.aborts[&signer(index)], 2), "{:?}", ended.aborts);
        }
    }
    // About a third, it is one's word against the other's; but who is lied about knows.
    let ended = run(|_, echo| echo.get_mut(&signer(4)).unwrap()[0] ^= 1);
    assert!(suspected(&ended.aborts[&signer(1)], [2, 4]), "{:?}", ended.aborts);
    assert!(cheated(&ended.aborts[&signer(4)], 2), "{:?}", ended.aborts);
}

#[test]
fn a_missing_echo_is_waited_for_by_name() {
    let mut ended = run(keygen_machines(2, 3), |envelope| {
        if envelope.is(3, true, 2) && envelope.to == signer(1) { Vec::new() } else { vec![envelope] }
    });
    // The others have it and go on, until they lack what signer 1 sends after.
    assert_eq!(ended.machines[&signer(1)].timed_out(), Abort::timeout(signers([2])));
    assert_eq!(ended.machines[&signer(2)].waiting_for(), signers([1]));
    assert_eq!(ended.machines[&signer(3)].waiting_for(), signers([1]));
    let malformed = Incoming { round: 3, from: signer(2), broadcast: true, body: vec![1] };
    let abort = ended.machines.get_mut(&signer(1)).unwrap().receive(malformed).unwrap_err();
    assert!(cheated(&abort, 2), "{abort}");
}

// ---- Faults in key generation

type Commitments = ([u8; 32], BroadcastDerivationPhase2to4);
type Openings = (DLogProof<Secp256k1>, BroadcastDerivationPhase3to4);
type PairSetup = (TransmitInitZeroSharePhase3to4, TransmitInitMulPhase3to4<Secp256k1>);

#[test]
fn a_wrong_polynomial_share_is_nobodys_proof() {
    let ended = run_tampered(keygen_machines(2, 3), (1, false, 2), |to, fragment: &mut [u8; 32]| {
        if to == signer(1) {
            fragment[31] ^= 1;
        }
    });
    assert!(suspected(&ended.aborts[&signer(1)], [2, 3]), "{:?}", ended.aborts);
    assert!(suspected(&ended.aborts[&signer(3)], [1, 2]), "{:?}", ended.aborts);
    assert!(ended.outputs.is_empty());
}

#[test]
fn a_polynomial_share_above_the_group_order_is_cheating() {
    let ended = run_tampered(keygen_machines(2, 2), (1, false, 2), |_, fragment: &mut [u8; 32]| {
        *fragment = [0xff; 32]
    });
    assert!(cheated(&ended.aborts[&signer(1)], 2), "{:?}", ended.aborts);
}

#[test]
fn a_wrong_proof_of_a_public_share_names_its_sender() {
    let ended = run_tampered(keygen_machines(2, 3), (4, true, 3), |_, openings: &mut Openings| {
        openings.0.proofs[7].challenge_response += Scalar::ONE;
    });
    for index in [1, 2] {
        assert!(cheated(&ended.aborts[&signer(index)], 3), "{:?}", ended.aborts);
    }
}

#[test]
fn no_public_share_is_shown_before_all_are_committed_to() {
    let (messages, documents) = recorded_keygen();
    for share in documents[&signer(1)].core.secp256k1().unwrap().public_shares.values() {
        let (x, _) = share.coordinates();
        let shows = |message: &&Incoming| message.body.windows(32).any(|window| window == x);
        let rounds: BTreeSet<u8> = messages.iter().filter(shows).map(|message| message.round).collect();
        assert_eq!(rounds, BTreeSet::from([3]));
    }
}

#[test]
fn a_share_that_is_zero_names_its_owner() {
    fn step(
        machine: &mut dyn Machine<Output = ShareDocument>,
        messages: &[(u8, bool, Vec<u8>)],
    ) -> Result<(), Abort> {
        messages.iter().try_for_each(|(round, broadcast, body)| {
            let (round, broadcast, body) = (*round, *broadcast, body.clone());
            machine.receive(Incoming { round, from: signer(2), broadcast, body }).map(|_| ())
        })
    }
    fn body(value: impl Serialize) -> Vec<u8> {
        postcard::to_allocvec(&value).unwrap()
    }
    let threshold = Threshold::new(2, 2).unwrap();
    let setup = keygen_setup(signer(1), threshold);
    let party = |index| ::dkls23::protocols::PartyIndex::new(index).unwrap();
    let parameters = ::dkls23::protocols::Parameters::new(2, 2).unwrap();
    let mut cheat = ::dkls23::DkgSession::<Secp256k1>::new(parameters, party(2), setup.session.0.to_vec());
    let mut honest = Dkls23.keygen(setup).unwrap();

    // It waits for what it is sent, and keeps the negative for itself.
    let sent: [u8; 32] = postcard::from_bytes(&honest.start().unwrap().send[0].body).unwrap();
    let fragment = Scalar::from_repr(sent.into()).unwrap();
    let other = cheat.phase1()[0];
    step(&mut *honest, &[(1, false, body(<[u8; 32]>::from(other.to_bytes())))]).unwrap();
    let (proof, zero, derivation) = cheat.phase2(&[fragment, -fragment]).unwrap();
    let commitments = body((proof.commitment, derivation));
    step(&mut *honest, &[(2, true, commitments), (2, false, body(&zero[0]))]).unwrap();
    let (zero, mul, derivation) = cheat.phase3().unwrap();
    let openings = body((&proof.proof, derivation));
    let abort =
        step(&mut *honest, &[(3, true, openings), (3, false, body((&zero[0], &mul[0])))]).unwrap_err();
    assert!(cheated(&abort, 2) && abort.reason.contains("infinity"), "{abort:?}");
}

#[test]
fn an_opening_that_does_not_fit_its_commitment_names_its_sender() {
    let chain_code = run_tampered(keygen_machines(2, 2), (3, true, 2), |_, openings: &mut Openings| {
        openings.1.aux_chain_code[0] ^= 1;
    });
    assert!(cheated(&chain_code.aborts[&signer(1)], 2), "{:?}", chain_code.aborts);
    let seed =
        run_tampered(keygen_machines(2, 2), (3, false, 2), |_, setup: &mut PairSetup| setup.0.seed[0] ^= 1);
    assert!(cheated(&seed.aborts[&signer(1)], 2), "{:?}", seed.aborts);
    let commitment = run_tampered(keygen_machines(2, 2), (2, true, 2), |_, c: &mut Commitments| c.0[0] ^= 1);
    assert!(cheated(&commitment.aborts[&signer(1)], 2), "{:?}", commitment.aborts);
}

#[test]
fn wrong_base_oblivious_transfers_name_their_sender_without_a_ban() {
    let edits: [fn(&mut PairSetup); 3] = [
        |setup| setup.1.enc_proofs[9].challenge0 += Scalar::ONE,
        |setup| setup.1.enc_proofs.truncate(9),
        |setup| setup.1.dlog_proof.rand_commitments.clear(),
    ];
    for edit in edits {
        let ended = run_tampered(keygen_machines(2, 2), (3, false, 2), |_, setup| edit(setup));
        assert!(cheated(&ended.aborts[&signer(1)], 2), "{:?}", ended.aborts);
    }
}

#[test]
fn a_copied_commitment_is_refused() {
    // The second to commit repeats what the first did.
    let copy = |t, n| {
        let mut first: Option<(SignerIndex, Commitments)> = None;
        let mut second = None;
        let ended = run_edited(keygen_machines(t, n), |envelope| {
            let from = envelope.message.from;
            if (envelope.message.round, envelope.message.broadcast) == (2, true) {
                let (victim, copied) = first
                    .get_or_insert_with(|| (from, postcard::from_bytes(&envelope.message.body).unwrap()));
                if from != *victim && from == *second.get_or_insert(from) {
                    let commitment = copied.1.cc_commitment;
                    envelope.edit(|own: &mut Commitments| own.1.cc_commitment = commitment);
                }
            }
        });
        (ended.aborts, first.unwrap().0, second.unwrap())
    };
    for n in [2, 3] {
        let (aborts, victim, copier) = copy(2, n);
        assert!(cheated(&aborts[&victim], copier.get()), "{aborts:?}");
        for (_, abort) in aborts.iter().filter(|(at, _)| ![victim, copier].contains(at)) {
            assert!(suspected(abort, [victim.get(), copier.get()]), "{aborts:?}");
        }
    }
}

#[test]
fn a_commitment_in_the_name_of_another_is_cheating() {
    let party = |index| ::dkls23::protocols::PartyIndex::new(index).unwrap();
    let derivation = run_tampered(keygen_machines(2, 2), (2, true, 2), |_, c: &mut Commitments| {
        c.1.sender_index = party(1)
    });
    assert!(cheated(&derivation.aborts[&signer(1)], 2));
    let zero =
        run_tampered(keygen_machines(2, 2), (2, false, 2), |_, c: &mut TransmitInitZeroSharePhase2to4| {
            c.parties.sender = party(3);
        });
    assert!(cheated(&zero.aborts[&signer(1)], 2));
}

#[test]
fn a_party_that_tells_each_another_chain_code_is_found_out() {
    // To signer 1 another contribution than to 3, each with a commitment that fits.
    let (other, (commitment, salt)) = ([5; 32], commits::commit(&[5; 32]));
    let ended = run_edited(keygen_machines(2, 3), |envelope| {
        if envelope.to == signer(1) && envelope.is(2, true, 2) {
            envelope.edit(|commitments: &mut Commitments| commitments.1.cc_commitment = commitment);
        }
        if envelope.to == signer(1) && envelope.is(4, true, 2) {
            envelope.edit(|openings: &mut Openings| {
                openings.1.aux_chain_code = other;
                openings.1.cc_salt = salt.clone();
            });
        }
    });
    assert!(ended.outputs.is_empty());
    assert!(suspected(&ended.aborts[&signer(1)], [2, 3]), "{:?}", ended.aborts);
    assert!(suspected(&ended.aborts[&signer(3)], [1, 2]), "{:?}", ended.aborts);
}

#[test]
fn a_key_generation_waits_for_every_confirmation_and_refuses_a_wrong_one() {
    let mut held = None;
    let mut ended = run(keygen_machines(2, 2), |envelope| {
        if envelope.is(4, true, 2) {
            held = Some(envelope.message);
            Vec::new()
        } else {
            vec![envelope]
        }
    });
    let mut machine = ended.machines.remove(&signer(1)).unwrap();
    assert_eq!(machine.timed_out(), Abort::timeout(signers([2])));
    let mut message = held.unwrap();
    message.body[0] ^= 1;
    let abort = machine.receive(message).unwrap_err();
    assert!(cheated(&abort, 2), "{abort:?}");
}

#[test]
fn a_wrong_confirmation_that_all_receive_names_its_sender() {
    let ended = run_tampered(keygen_machines(2, 3), (6, true, 2), |_, confirmation: &mut [u8; 32]| {
        confirmation[0] ^= 1
    });
    for index in [1, 3] {
        assert!(cheated(&ended.aborts[&signer(index)], 2), "{:?}", ended.aborts);
    }
}

#[test]
fn random_and_mutated_bodies_never_panic_in_key_generation() {
    // Later rounds cost more to reach.
    for (round, seeds) in [(1, 10), (2, 8), (3, 4), (4, 1)] {
        for seed in 0..seeds {
            let mut random = Random(1000 * round + seed);
            let ended = run(keygen_machines(2, 2), |mut envelope| {
                let message = &mut envelope.message;
                if u64::from(message.round) == round && message.from == signer(2) {
                    garble(&mut random, &mut message.body);
                }
                vec![envelope]
            });
            if let Some(abort) = ended.aborts.get(&signer(1)) {
                assert!(cheated(abort, 2), "round {round}, seed {seed}: {abort:?}");
            }
        }
    }
}

#[test]
fn no_message_comes_near_the_limit() {
    let mut longest = recorded_keygen().0.iter().map(|message| message.body.len()).max().unwrap();
    run(key(2, 3).machines(&sign_setup(quorum([1, 2]))), |envelope| {
        longest = longest.max(envelope.message.body.len());
        vec![envelope]
    });
    assert!((MAX_BODY / 3..MAX_BODY * 3 / 4).contains(&longest), "{longest}");
}
