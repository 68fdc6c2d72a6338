//! The engines on FROST: keys and signatures checked by independent implementations, and every fault laid at the right
//! door. Each test runs with both engines unless its name says otherwise.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bip32::{ChildNumber, ExtendedKeyAttrs, XPub};
use serde_json::{Value, json};
use tss_mpc::local::Machines;
use tss_mpc::rounds::MAX_BODY;
use tss_mpc::{
    Abort, AnyKey, AnySignature, Blame, DerivationPath, Dkls23, Engine, EngineId, FrostEd25519,
    FrostSecp256k1Tr, Incoming, KeygenSetup, Payload, PrivateKey, PublicKey, Scheme, SessionId, SetupError,
    ShareDocument, ShareError, SignSetup, SignerIndex, SigningShare, Threshold, run_local,
};

#[path = "../network/mod.rs"]
mod network;
mod renew;
mod vectors;

use network::*;

// ---- Keys

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ed25519,
    Schnorr,
}

const BOTH: [Kind; 2] = [Kind::Ed25519, Kind::Schnorr];

impl Kind {
    fn engine(self) -> &'static dyn Engine {
        const ED25519: &FrostEd25519 = &FrostEd25519::new();
        const SCHNORR: &FrostSecp256k1Tr = &FrostSecp256k1Tr::new();
        match self {
            Self::Ed25519 => ED25519,
            Self::Schnorr => SCHNORR,
        }
    }

    fn scheme(self) -> Scheme {
        match self {
            Self::Ed25519 => Scheme::Ed25519,
            Self::Schnorr => Scheme::SchnorrSecp256k1,
        }
    }

    /// One of many payloads, of every length that there is.
    fn payload(self, number: usize) -> Payload {
        match self {
            Self::Ed25519 => {
                Payload::Message(vec![7; [0, 1, 32, 63, 64, 1232, 100_000][number % 7] + number / 7])
            }
            Self::Schnorr => Payload::Digest([u8::try_from(number).unwrap(); 32]),
        }
    }
}

fn keygen_setup(index: SignerIndex, threshold: Threshold) -> KeygenSetup {
    let session = SessionId([threshold.n(); 32]);
    KeygenSetup { session, cluster: "cluster".into(), key: "key".into(), index, threshold }
}

fn keygen_machines(kind: Kind, t: u8, n: u8) -> Machines<ShareDocument> {
    let threshold = Threshold::new(t, n).unwrap();
    let machine = |i| (i, kind.engine().keygen(keygen_setup(i, threshold)).unwrap());
    threshold.signers().map(machine).collect()
}

struct Key {
    kind: Kind,
    documents: BTreeMap<SignerIndex, ShareDocument>,
    shares: BTreeMap<SignerIndex, Arc<dyn SigningShare>>,
}

/// A key, made once for all tests.
fn key(kind: Kind, t: u8, n: u8) -> &'static Key {
    static KEYS: [OnceLock<Key>; 6] = [const { OnceLock::new() }; 6];
    let slot = match (t, n) {
        (2, 2) => 0,
        (2, 3) => 1,
        (3, 5) => 2,
        _ => panic!("no {t}-of-{n} key"),
    };
    let slot = 2 * slot + usize::from(kind == Kind::Schnorr);
    KEYS[slot].get_or_init(|| Key::new(kind, run_local(keygen_machines(kind, t, n)).unwrap()))
}

impl Key {
    fn new(kind: Kind, documents: BTreeMap<SignerIndex, ShareDocument>) -> Self {
        let open = |(&i, document)| (i, kind.engine().open(document).unwrap());
        let shares = documents.iter().map(open).collect();
        Self { kind, documents, shares }
    }

    fn root(&self) -> AnyKey {
        self.documents[&signer(1)].core.public_key()
    }

    fn chain_code(&self) -> [u8; 32] {
        self.documents[&signer(1)].core.chain_code
    }

    fn setup(&self, members: &[u8]) -> SignSetup {
        SignSetup {
            session: SessionId([2; 32]),
            quorum: quorum(members.iter().copied()),
            payload: self.kind.payload(5),
            path: DerivationPath::root(),
        }
    }

    fn machines(&self, setup: &SignSetup) -> Machines<AnySignature> {
        setup.quorum.iter().map(|i| (i, self.shares[&i].sign(setup.clone()).unwrap())).collect()
    }

    /// The machines of a session of these.
    fn signing(&self, members: &[u8]) -> Machines<AnySignature> {
        self.machines(&self.setup(members))
    }
}

fn copy(document: &ShareDocument) -> ShareDocument {
    ShareDocument::from_json(&document.to_json().unwrap()).unwrap()
}

fn json_of(document: &ShareDocument) -> Value {
    serde_json::from_slice(&document.to_json().unwrap()).unwrap()
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

/// By `ed25519-dalek` in its strict way, and by libsecp256k1.
fn check_signature(signature: &AnySignature, key: &AnyKey, payload: &Payload) {
    match (signature, key, payload) {
        (AnySignature::Ed25519(signature), AnyKey::Ed25519(key), Payload::Message(message)) => {
            let key = ed25519_dalek::VerifyingKey::from_bytes(&key.to_bytes()).unwrap();
            let signature = ed25519_dalek::Signature::from_bytes(&signature.to_bytes());
            key.verify_strict(message, &signature).unwrap();
        }
        (AnySignature::Schnorr(signature), AnyKey::Secp256k1(key), Payload::Digest(digest)) => {
            let key = secp256k1::PublicKey::from_slice(&key.to_compressed()).unwrap();
            let signature = secp256k1::schnorr::Signature::from_byte_array(signature.to_bytes());
            let secp = secp256k1::Secp256k1::verification_only();
            secp.verify_schnorr(&signature, digest, &key.x_only_public_key().0).unwrap();
        }
        other => panic!("{other:?}"),
    }
    signature.verify(key, payload).unwrap();
}

fn every_quorum_signs(t: u8, n: u8) {
    for kind in BOTH {
        every_quorum_of_signs(key(kind, t, n), t, n);
    }
}

/// Every quorum with the root key, and over secp256k1 with derived ones.
fn every_quorum_of_signs(key: &Key, t: u8, n: u8) {
    let paths: &[&str] = match key.kind {
        Kind::Ed25519 => &["m"],
        Kind::Schnorr => &["m", "0", "44/60/0/7"],
    };
    let quorums = quorums(t, n);
    let jobs = quorums.iter().flat_map(|quorum| paths.iter().map(move |path| (quorum, path)));
    for (number, (members, path)) in jobs.enumerate() {
        let path: DerivationPath = path.parse().unwrap();
        let payload = key.kind.payload(number);
        let setup = SignSetup { payload: payload.clone(), path: path.clone(), ..key.setup(members) };
        let ended = run(key.machines(&setup), |envelope| vec![envelope]);
        assert_eq!(ended.outputs.len(), usize::from(t), "{:?}", ended.aborts);
        let public = match key.root() {
            AnyKey::Secp256k1(root) => bip32_key(&root, key.chain_code(), &path).into(),
            root => root,
        };
        let signature = ended.outputs.values().next().unwrap();
        assert!(
            ended.outputs.values().all(|other| other == signature),
            "signers ended with other signatures"
        );
        assert_eq!(signature.scheme(), key.kind.scheme());
        check_signature(signature, &public, &payload);
    }
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

/// BIP-340 does not see the y of a key. Of 24 keys some have an even one and some an odd (but for a chance of 2^-23).
#[test]
fn schnorr_keys_and_derived_keys_of_either_y_sign() {
    let mut met = [[false; 2]; 2];
    let odd = |key: &PublicKey| usize::from(key.to_compressed()[0] == 3);
    for number in 0..24_u32 {
        let documents = run_local(keygen_machines(Kind::Schnorr, 2, 2)).unwrap();
        let key = Key::new(Kind::Schnorr, documents);
        let AnyKey::Secp256k1(root) = key.root() else { panic!("{:?}", key.root()) };
        let path: DerivationPath = number.to_string().parse().unwrap();
        let derived = bip32_key(&root, key.chain_code(), &path);
        met[0][odd(&root)] = true;
        met[1][odd(&derived)] = true;
        for (path, public) in [(DerivationPath::root(), root), (path, derived)] {
            let setup = SignSetup { path, ..key.setup(&[1, 2]) };
            let signatures = run_local(key.machines(&setup)).unwrap();
            check_signature(&signatures[&signer(1)], &public.into(), &setup.payload);
        }
    }
    assert_eq!(met, [[true; 2]; 2], "roots and derived keys of even and of odd y");
}

#[test]
fn two_signatures_of_one_payload_have_other_nonces() {
    for kind in BOTH {
        let signature = || run_local(key(kind, 2, 3).signing(&[1, 3])).unwrap()[&signer(1)];
        let bytes = |signature| match signature {
            AnySignature::Ed25519(signature) => signature.to_bytes(),
            AnySignature::Schnorr(signature) => signature.to_bytes(),
            AnySignature::Ecdsa(signature) => panic!("{signature:?}"),
        };
        assert_ne!(bytes(signature())[..32], bytes(signature())[..32]);
    }
}

#[test]
fn a_session_signs_whatever_the_order_of_messages() {
    for kind in BOTH {
        for seed in 0..8 {
            let (key, mut random) = (key(kind, 3, 5), Random(seed));
            let setup = key.setup(&[1, 3, 4]);
            let mut machines = key.machines(&setup);
            let mut flying: Vec<Envelope> = Vec::new();
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
            check_signature(&outputs[&signer(1)], &key.root(), &setup.payload);
        }
    }
}

// ---- Key generation and share documents

#[test]
fn all_parties_end_key_generation_with_the_same_key() {
    for (kind, (t, n)) in BOTH.into_iter().flat_map(|kind| [(2, 2), (2, 3), (3, 5)].map(|of| (kind, of))) {
        let key = key(kind, t, n);
        let first = &key.documents[&signer(1)].core;
        for (&index, document) in &key.documents {
            let core = &document.core;
            assert_eq!((core.index, core.threshold), (index, Threshold::new(t, n).unwrap()));
            assert_eq!((&core.points, core.chain_code), (&first.points, first.chain_code));
            assert_eq!((document.epoch, document.scheme), (1, kind.scheme()));
            assert!(document.engines.is_empty());
        }
        let again = run_local(keygen_machines(kind, t, n)).unwrap();
        let again = &again[&signer(1)].core;
        assert_ne!((again.public_key(), again.chain_code), (first.public_key(), first.chain_code));
    }
}

#[test]
fn machines_tell_how_many_rounds_they_have() {
    for kind in BOTH {
        for (t, n, rounds) in [(2, 2, 3), (2, 3, 5), (3, 5, 5)] {
            assert!(keygen_machines(kind, t, n).values().all(|machine| machine.rounds() == rounds));
        }
        assert!(key(kind, 2, 3).signing(&[1, 2]).values().all(|machine| machine.rounds() == 2));
        assert!(key(kind, 3, 5).signing(&[1, 2, 5]).values().all(|machine| machine.rounds() == 3));
    }
}

#[test]
fn a_share_document_survives_storage_and_shows_no_secret() {
    for kind in BOTH {
        let key = key(kind, 2, 3);
        for document in key.documents.values() {
            let read = copy(document);
            assert_eq!(read.to_json().unwrap(), document.to_json().unwrap());
            let json = json_of(document);
            assert_eq!(json["scheme"], kind.scheme().as_str());
            assert_eq!((&json["version"], &json["engines"]), (&json!(1), &json!({})));
            let debug = format!("{document:?} {:?}", document.core.secret_share);
            assert!(!debug.contains(json["core"]["secret_share"].as_str().unwrap()));
            assert!(debug.contains(&key.root().to_string()));
        }
        let copies = key.documents.iter().map(|(&index, document)| (index, copy(document))).collect();
        every_quorum_of_signs(&Key::new(kind, copies), 2, 3);
    }
}

#[test]
fn the_documents_that_were_there_before_read_and_write_as_they_did() {
    for written in [
        &include_bytes!("../../../fuzz/fixtures/signer1.json")[..],
        include_bytes!("../../../fuzz/fixtures/signer2.json"),
    ] {
        let read = ShareDocument::from_json(written).unwrap();
        assert_eq!(read.scheme, Scheme::EcdsaSecp256k1);
        assert!(*read.to_json().unwrap() == written, "another document than was read");
    }
}

/// Signer 1's document of a 2-of-3 key with a change, read and opened.
fn open_changed(kind: Kind, change: impl FnOnce(&mut Value)) -> Result<(), ShareError> {
    let mut json = json_of(&key(kind, 2, 3).documents[&signer(1)]);
    change(&mut json);
    let document = ShareDocument::from_json(json.to_string().as_bytes())?;
    kind.engine().open(&document).map(|_| ())
}

#[test]
fn a_damaged_share_document_is_refused() {
    for kind in BOTH {
        assert_eq!(open_changed(kind, |_| ()), Ok(()));
        let other = json_of(&key(kind, 2, 2).documents[&signer(1)]);
        let foreign = match kind {
            Kind::Ed25519 => key(Kind::Schnorr, 2, 3).root(),
            Kind::Schnorr => key(Kind::Ed25519, 2, 3).root(),
        };
        let inconsistent = |name: &str, change: &dyn Fn(&mut Value)| {
            let result = open_changed(kind, change);
            assert!(matches!(result, Err(ShareError::Inconsistent(_))), "{kind:?}, {name}: {result:?}");
        };
        inconsistent("secret", &|json| {
            json["core"]["secret_share"] = other["core"]["secret_share"].clone();
        });
        inconsistent("no secret", &|json| json["core"]["secret_share"] = json!("00".repeat(32)));
        inconsistent("key", &|json| json["core"]["public_key"] = other["core"]["public_key"].clone());
        for index in ["1", "2", "3"] {
            let another = &other["core"]["public_shares"]["1"];
            inconsistent(index, &|json| json["core"]["public_shares"][index] = another.clone());
        }
        inconsistent("index", &|json| json["core"]["index"] = json!(2));
        inconsistent("no index", &|json| json["core"]["index"] = json!(4));
        inconsistent("threshold", &|json| json["core"]["threshold"]["threshold"] = json!(3));

        let malformed = |name: &str, change: &dyn Fn(&mut Value)| {
            let result = open_changed(kind, change);
            assert!(matches!(result, Err(ShareError::Malformed(_))), "{kind:?}, {name}: {result:?}");
        };
        malformed("secret", &|json| json["core"]["secret_share"] = json!("ff".repeat(32)));
        malformed("key of the other curve", &|json| json["core"]["public_key"] = json!(foreign));
        malformed("share of the other curve", &|json| {
            json["core"]["public_shares"]["2"] = json!(foreign);
        });
        malformed("no key", &|json| json["core"]["public_key"] = json!(""));
        malformed("scheme", &|json| json["scheme"] = json!("ed448"));
        malformed("more", &|json| json["core"]["more"] = json!(1));
    }
    // A point of small order.
    let result = open_changed(Kind::Ed25519, |json| json["core"]["public_key"] = json!("00".repeat(32)));
    assert!(matches!(result, Err(ShareError::Malformed(_))), "{result:?}");
}

#[test]
fn a_key_is_of_use_to_the_engines_of_its_scheme_alone() {
    let ecdsa = ShareDocument::from_json(include_bytes!("../../../fuzz/fixtures/signer1.json")).unwrap();
    let documents = BOTH.map(|kind| &key(kind, 2, 3).documents[&signer(1)]);
    let engines: [(&dyn Engine, Scheme); 3] = [
        (&Dkls23, Scheme::EcdsaSecp256k1),
        (Kind::Ed25519.engine(), Scheme::Ed25519),
        (Kind::Schnorr.engine(), Scheme::SchnorrSecp256k1),
    ];
    for (engine, expected) in engines {
        for document in [&ecdsa, documents[0], documents[1]].into_iter().filter(|it| it.scheme != expected) {
            let refused = ShareError::Scheme { found: document.scheme, expected };
            assert_eq!(engine.open(document).err().unwrap(), refused, "{}", engine.id());
            let setup = tss_mpc::RenewSetup {
                session: SessionId([1; 32]),
                cluster: document.cluster.clone(),
                key: document.key.clone(),
                index: signer(1),
                epoch: document.epoch,
                dealers: quorum([1, 2]),
                threshold: Threshold::new(2, 3).unwrap(),
            };
            assert_eq!(engine.renew(setup, Some(document)).err().unwrap(), SetupError::Share(refused));
        }
    }
    // The scheme of a document is not just a name.
    for (kind, scheme) in [(Kind::Ed25519, "schnorr-secp256k1"), (Kind::Schnorr, "ed25519")] {
        let result = open_changed(kind, |json| json["scheme"] = json!(scheme));
        assert!(matches!(result, Err(ShareError::Inconsistent(_))), "{result:?}");
    }
}

#[test]
fn the_names_of_engines_read_back() {
    for id in [EngineId::Dkls23, EngineId::FrostEd25519, EngineId::FrostSecp256k1Tr] {
        assert_eq!(id.as_str().parse(), Ok(id));
        assert_eq!(json!(id), id.as_str());
        assert_eq!(serde_json::from_value::<EngineId>(json!(id.as_str())).unwrap(), id);
    }
    assert_eq!(BOTH.map(|kind| kind.engine().id().as_str()), ["frost-ed25519", "frost-secp256k1-tr"]);
}

// ---- Setups

#[test]
fn a_setup_that_does_not_fit_the_key_is_refused() {
    for kind in BOTH {
        let key = key(kind, 2, 3);
        let sign = |index: u8, setup: SignSetup| key.shares[&signer(index)].sign(setup).err();
        for members in [&[][..], &[1], &[1, 2, 3], &[1, 4], &[1, 16]] {
            let threshold = Threshold::new(2, 3).unwrap();
            let expected = SetupError::Quorum { quorum: quorum(members.iter().copied()), threshold };
            assert_eq!(sign(1, key.setup(members)), Some(expected));
        }
        assert_eq!(sign(1, key.setup(&[2, 3])), Some(SetupError::NotInQuorum(signer(1))));
        assert_eq!(sign(1, key.setup(&[1, 3])), None);

        let stranger = kind.engine().keygen(keygen_setup(signer(4), Threshold::new(2, 3).unwrap()));
        assert!(matches!(stranger.err(), Some(SetupError::Abort(Abort { blame: Blame::Local, .. }))));
    }
}

#[test]
fn what_a_scheme_does_not_sign_is_refused() {
    for (kind, payload, told) in [
        (Kind::Ed25519, Payload::Digest([1; 32]), "ed25519 was given a digest to sign: expected the message"),
        (
            Kind::Schnorr,
            Payload::Message(vec![1; 32]),
            "schnorr-secp256k1 was given a message to sign: expected a digest of 32 bytes",
        ),
    ] {
        let key = key(kind, 2, 3);
        let refused = key.shares[&signer(1)].sign(SignSetup { payload, ..key.setup(&[1, 2]) });
        let refused = refused.err().unwrap().to_string();
        assert!(refused.contains(told), "{refused}");
    }
    let signatures = run_local(key(Kind::Schnorr, 2, 3).signing(&[1, 2])).unwrap();
    assert!(signatures[&signer(1)].ecdsa().is_err());
}

#[test]
fn an_ed25519_key_has_no_path_but_the_roots() {
    let key = key(Kind::Ed25519, 2, 3);
    for path in ["0", "m/44/501"] {
        let path: DerivationPath = path.parse().unwrap();
        let refused = key.shares[&signer(1)].sign(SignSetup { path: path.clone(), ..key.setup(&[1, 2]) });
        let refused = refused.err().unwrap();
        assert_eq!(refused, SetupError::Path(path));
        assert!(refused.to_string().contains("the root `m` alone"), "{refused}");
    }
}

#[test]
fn a_key_made_elsewhere_is_not_taken_over() {
    let threshold = Threshold::new(2, 3).unwrap();
    let key = PrivateKey::from_bytes(&zeroize::Zeroizing::new([3; 32])).unwrap();
    let share = key.split(threshold).unwrap().remove(&signer(1)).unwrap();
    for kind in BOTH {
        let refused = kind.engine().import(keygen_setup(signer(1), threshold), &share).err().unwrap();
        assert!(matches!(refused, SetupError::Unsupported { .. }), "{refused}");
        assert!(refused.to_string().contains("has no import"), "{refused}");
    }
}

// ---- Faults in signing

/// The round on the wire in which signature shares are sent.
fn last_round(members: &[u8]) -> u8 {
    if members.len() == 2 { 2 } else { 3 }
}

#[test]
fn a_wrong_share_of_a_signature_names_its_sender() {
    for kind in BOTH {
        for (key, members) in [(key(kind, 2, 3), &[1, 3][..]), (key(kind, 3, 5), &[1, 3, 4])] {
            let ended = run_tampered(
                key.signing(members),
                (last_round(members), false, 3),
                |to, share: &mut Vec<u8>| {
                    share[16] ^= u8::from(to == signer(1));
                },
            );
            assert!(cheated(&ended.aborts[&signer(1)], 3), "{:?}", ended.aborts);
            // Who got the right one has a signature.
            assert_eq!(ended.outputs.len(), members.len() - 1);
        }
    }
}

#[test]
fn all_who_send_wrong_shares_of_a_signature_are_named() {
    for kind in BOTH {
        let ended = run(key(kind, 3, 5).signing(&[1, 3, 4]), |mut envelope| {
            // In other places, as two errors that cancel each other would leave a right signature.
            for (from, place) in [(3, 16), (4, 17)] {
                if envelope.is(3, false, from) {
                    envelope.edit(|share: &mut Vec<u8>| share[place] ^= 1);
                }
            }
            vec![envelope]
        });
        let expected = Blame::Cheating { culprits: signers([3, 4]), ban: false };
        assert_eq!(ended.aborts[&signer(1)].blame, expected);
    }
}

#[test]
fn a_share_of_another_signer_or_of_zero_names_its_sender() {
    /// Of one's own share, given another's.
    type Edit = fn(&mut Vec<u8>, &[u8]);
    for kind in BOTH {
        let edits: [Edit; 2] = [|share, other| *share = other.to_vec(), |share, _| *share = vec![0; 32]];
        for edit in edits {
            let mut other = Vec::new();
            let ended = run(key(kind, 3, 5).signing(&[1, 3, 4]), |mut envelope| {
                if envelope.is(3, false, 1) {
                    other = postcard::from_bytes(&envelope.message.body).unwrap();
                } else if envelope.is(3, false, 4) {
                    envelope.edit(|share: &mut Vec<u8>| edit(share, &other));
                }
                vec![envelope]
            });
            assert!(cheated(&ended.aborts[&signer(3)], 4), "{:?}", ended.aborts);
        }
    }
}

/// What a signer broadcasts first: the hash of what is signed, and its commitments.
type Commitments = ([u8; 32], String, String);

#[test]
fn commitments_of_another_name_their_sender() {
    for kind in BOTH {
        // To use another's as one's own: the discrete logarithms are not known.
        let mut first: Option<Commitments> = None;
        let ended = run_edited(key(kind, 3, 5).signing(&[1, 3, 4]), |envelope| {
            if envelope.is(1, true, 1) {
                first = Some(postcard::from_bytes(&envelope.message.body).unwrap());
            } else if envelope.is(1, true, 4) {
                let (_, hiding, binding) = first.clone().unwrap();
                envelope.edit(|own: &mut Commitments| (own.1, own.2) = (hiding, binding));
            }
        });
        assert!(ended.outputs.is_empty());
        // Its own machine has sent what fits other commitments, to those who go on.
        for index in [1, 3] {
            assert!(cheated(&ended.aborts[&signer(index)], 4), "{:?}", ended.aborts);
        }
    }
}

#[test]
fn commitments_that_are_not_the_same_for_all_end_signing() {
    for kind in BOTH {
        equivocates(key(kind, 3, 5).signing(&[1, 2, 4]), 1, true);
        equivocates(key(kind, 3, 5).signing(&[1, 2, 4]), 1, false);
    }
}

#[test]
fn signers_with_different_setups_suspect_each_other_without_proof() {
    for kind in BOTH {
        let key = key(kind, 2, 3);
        let setup = key.setup(&[1, 2]);
        let mut others = vec![
            SignSetup { payload: kind.payload(6), ..setup.clone() },
            SignSetup { session: SessionId([9; 32]), ..setup.clone() },
        ];
        if kind == Kind::Schnorr {
            others.push(SignSetup { path: "1".parse().unwrap(), ..setup.clone() });
        }
        for other in others {
            let mut machines = key.machines(&setup);
            machines.insert(signer(2), key.shares[&signer(2)].sign(other).unwrap());
            let ended = run(machines, |envelope| vec![envelope]);
            assert!(suspected(&ended.aborts[&signer(1)], [2]), "{:?}", ended.aborts);
            assert!(suspected(&ended.aborts[&signer(2)], [1]), "{:?}", ended.aborts);
        }
    }
}

#[test]
fn a_silent_signer_is_named() {
    for kind in BOTH {
        // The second is the echo.
        for silent in 1..=3 {
            let ended = run(key(kind, 3, 5).signing(&[1, 2, 4]), |envelope| {
                let drop = envelope.message.from == signer(4) && envelope.message.round >= silent;
                if drop { Vec::new() } else { vec![envelope] }
            });
            for index in [1, 2] {
                let expected = Blame::Timeout { missing: signers([4]) };
                assert_eq!(ended.machines[&signer(index)].timed_out().blame, expected);
            }
        }
    }
}

#[test]
fn a_message_that_no_honest_signer_sends_is_cheating() {
    for kind in BOTH {
        let first_round = |message: Incoming| {
            let key = key(kind, 3, 5);
            let mut machine = key.shares[&signer(1)].sign(key.setup(&[1, 2, 3])).unwrap();
            machine.start().unwrap();
            let abort = machine.receive(message.clone()).unwrap_err();
            // It has ended.
            assert_eq!(machine.receive(message).unwrap_err().blame, Blame::Local);
            abort
        };
        let message = Incoming { round: 1, from: signer(2), broadcast: true, body: vec![1, 2, 3] };
        for (round, broadcast) in [(0, true), (4, true), (255, false), (1, false), (2, false), (3, true)] {
            let abort = first_round(Incoming { round, broadcast, ..message.clone() });
            assert!(cheated(&abort, 2), "round {round}: {abort}");
        }
        assert!(cheated(&first_round(Incoming { body: vec![0; MAX_BODY + 1], ..message.clone() }), 2));
        for from in [1, 4, 16] {
            assert_eq!(first_round(Incoming { from: signer(from), ..message.clone() }).blame, Blame::Local);
        }
    }
}

#[test]
fn a_malformed_body_is_cheating() {
    let edits: [fn(&mut Vec<u8>); 4] = [
        |body| body.clear(),
        |body| body.push(0),
        |body| {
            body.pop();
        },
        |body| *body = vec![0xff; MAX_BODY],
    ];
    for (kind, edit) in BOTH.into_iter().flat_map(|kind| edits.map(|edit| (kind, edit))) {
        for (round, broadcast) in [(1, true), (2, false)] {
            let ended = run(key(kind, 2, 3).signing(&[1, 2]), |mut envelope| {
                if envelope.is(round, broadcast, 2) {
                    edit(&mut envelope.message.body);
                }
                vec![envelope]
            });
            let abort = &ended.aborts[&signer(1)];
            assert!(cheated(abort, 2) && abort.reason.contains("malformed"), "round {round}: {abort:?}");
        }
        for (round, broadcast) in [(1, true), (2, false), (3, true)] {
            let ended = run(keygen_machines(kind, 2, 2), |mut envelope| {
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
fn scalars_that_are_none_are_cheating() {
    for kind in BOTH {
        for share in [vec![], vec![0xff; 32], vec![1; 31], vec![1; 33]] {
            let ended =
                run_tampered(key(kind, 2, 3).signing(&[1, 2]), (2, false, 2), |_, sent: &mut Vec<u8>| {
                    *sent = share.clone();
                });
            assert!(cheated(&ended.aborts[&signer(1)], 2), "{:?}", ended.aborts);
        }
        let ended = run_tampered(keygen_machines(kind, 2, 2), (2, false, 2), |_, share: &mut [u8; 32]| {
            *share = [0xff; 32];
        });
        let abort = &ended.aborts[&signer(1)];
        assert!(cheated(abort, 2) && abort.reason.contains("below the group order"), "{abort}");
    }
}

#[test]
fn random_and_mutated_bodies_never_panic_or_sign_in_signing() {
    for kind in BOTH {
        let key = key(kind, 2, 3);
        let setup = key.setup(&[1, 2]);
        for seed in 0..300 {
            let mut random = Random(seed);
            let round = u8::try_from(seed % 2 + 1).unwrap();
            let ended = run(key.machines(&setup), |mut envelope| {
                if envelope.message.round == round && envelope.message.from == signer(2) {
                    garble(&mut random, &mut envelope.message.body);
                }
                vec![envelope]
            });
            match (ended.aborts.get(&signer(1)), ended.outputs.get(&signer(1))) {
                // Another hash of what is signed is no proof.
                (Some(abort), None) => {
                    assert!(cheated(abort, 2) || suspected(abort, [2]), "seed {seed}: {abort}");
                }
                (None, Some(signature)) => check_signature(signature, &key.root(), &setup.payload),
                other => panic!("seed {seed}: {other:?}"),
            }
        }
    }
}

// ---- Faults in key generation

/// What a party broadcasts first: commitments to its polynomial, and the proof.
type Package = (Vec<String>, Vec<u8>);

#[test]
fn a_wrong_share_of_a_polynomial_names_its_sender() {
    for kind in BOTH {
        let ended = run_tampered(keygen_machines(kind, 2, 3), (3, false, 2), |to, share: &mut [u8; 32]| {
            share[16] ^= u8::from(to == signer(1));
        });
        assert!(cheated(&ended.aborts[&signer(1)], 2), "{:?}", ended.aborts);
        // The others wait for what signer 1 does not send, and have no share.
        assert!(ended.outputs.is_empty());
        assert_eq!(ended.machines[&signer(3)].timed_out(), Abort::timeout(signers([1])));
    }
}

#[test]
fn a_wrong_proof_of_knowledge_names_its_sender() {
    for kind in BOTH {
        let wrong = run_tampered(keygen_machines(kind, 2, 3), (1, true, 3), |_, _: &mut Package| ());
        assert_eq!(wrong.outputs.len(), 3);
        let edits: [fn(&mut Package, &Package); 5] = [
            |own, _| own.1[48] ^= 1,
            // A polynomial that another knows, with its proof.
            |own, other| *own = other.clone(),
            |own, other| own.1 = other.1.clone(),
            |own, _| own.1.truncate(32),
            |own, _| own.1 = vec![0xff; 64],
        ];
        for edit in edits {
            let mut other = None;
            let ended = run_edited(keygen_machines(kind, 2, 3), |envelope| {
                if envelope.is(1, true, 1) {
                    other = Some(postcard::from_bytes::<Package>(&envelope.message.body).unwrap());
                } else if envelope.is(1, true, 3) {
                    envelope.edit(|own: &mut Package| edit(own, other.as_ref().unwrap()));
                }
            });
            for index in [1, 2] {
                assert!(cheated(&ended.aborts[&signer(index)], 3), "{:?}", ended.aborts);
            }
            assert!(ended.outputs.is_empty());
        }
    }
}

#[test]
fn a_polynomial_of_another_degree_names_its_sender() {
    for kind in BOTH {
        let edits: [fn(&mut Package); 3] =
            [|own| own.0.truncate(1), |own| own.0.push(own.0[0].clone()), |own| own.0.clear()];
        for edit in edits {
            let ended = run_edited(keygen_machines(kind, 2, 3), |envelope| {
                if envelope.is(1, true, 3) {
                    envelope.edit(edit);
                }
            });
            for index in [1, 2] {
                let abort = &ended.aborts[&signer(index)];
                assert!(cheated(abort, 3) && abort.reason.contains("expected 2"), "{abort}");
            }
        }
    }
}

#[test]
fn commitments_that_are_not_the_same_for_all_end_key_generation_at_once() {
    for kind in BOTH {
        for (round, hides) in [(1, true), (1, false), (4, true), (4, false)] {
            equivocates(keygen_machines(kind, 2, 3), round, hides);
        }
        equivocates(keygen_machines(kind, 3, 5), 1, true);
    }
}

#[test]
fn a_key_generation_waits_for_every_confirmation_and_refuses_a_wrong_one() {
    for kind in BOTH {
        let mut held = None;
        let mut ended = run(keygen_machines(kind, 2, 2), |envelope| {
            if envelope.is(3, true, 2) {
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
}

#[test]
fn parties_of_two_key_generations_end_with_no_key() {
    for kind in BOTH {
        let threshold = Threshold::new(2, 2).unwrap();
        let mut machines = keygen_machines(kind, 2, 2);
        let setup = KeygenSetup { session: SessionId([9; 32]), ..keygen_setup(signer(2), threshold) };
        machines.insert(signer(2), kind.engine().keygen(setup).unwrap());
        let ended = run(machines, |envelope| vec![envelope]);
        assert!(ended.outputs.is_empty());
        assert_eq!(ended.aborts.len(), 2, "{:?}", ended.aborts);
    }
}

#[test]
fn random_and_mutated_bodies_never_panic_in_key_generation() {
    for kind in BOTH {
        for seed in 0..200 {
            let mut random = Random(seed);
            let round = u8::try_from(seed % 3 + 1).unwrap();
            let ended = run(keygen_machines(kind, 2, 2), |mut envelope| {
                if envelope.message.round == round && envelope.message.from == signer(2) {
                    garble(&mut random, &mut envelope.message.body);
                }
                vec![envelope]
            });
            if let Some(abort) = ended.aborts.get(&signer(1)) {
                assert!(cheated(abort, 2), "round {round}, seed {seed}: {abort:?}");
            }
        }
    }
}
