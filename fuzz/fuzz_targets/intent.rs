//! Intents, paths and hash algorithms: what is read is written again alike, and no two intents are
//! hashed alike.

#![no_main]

use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use tss_common::intent::{HashAlgorithm, Intent, NotADigest, hash_fields};
use tss_fuzz::{Input, documents, signer};
use tss_mpc::key::MAX_PATH_DEPTH;
use tss_mpc::{DerivationPath, PublicKey};

const DOMAIN: &str = "tss.network/intent/v1";

static KEY: LazyLock<(PublicKey, [u8; 32])> = LazyLock::new(|| {
    let core = &documents()[&signer(1)].core;
    (core.secp256k1().expect("the fixture is an ECDSA key").public_key, core.chain_code)
});

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.byte() % 6 {
        0 => json(input.rest()),
        1 => path(&String::from_utf8_lossy(input.rest())),
        2 => algorithm(input),
        3 => fields(input),
        _ => pair(input),
    }
});

fn json(bytes: &[u8]) {
    let Ok(intent) = serde_json::from_slice::<Intent>(bytes) else { return };
    let again = serde_json::to_vec(&intent).expect("an intent has a JSON form");
    assert_eq!(serde_json::from_slice::<Intent>(&again).expect("what was written can be read"), intent);
    hash_can_be_read_back(&intent);
}

fn path(text: &str) {
    let Ok(path) = text.parse::<DerivationPath>() else { return };
    assert!(path.steps().len() <= MAX_PATH_DEPTH);
    assert!(path.steps().iter().all(|step| *step < 1 << 31));
    let again: DerivationPath = path.to_string().parse().expect("what was written can be read");
    assert_eq!(again, path);
    assert_eq!(again.to_string(), path.to_string());
    // A hundred microseconds a step, so not for every path.
    if text.len() <= 3 {
        let (key, chain_code) = &*KEY;
        let derived = key.derive(chain_code, &path);
        assert_eq!(derived == Some(*key), path.steps().is_empty());
    }
}

fn algorithm(mut input: Input<'_>) {
    let name = input.text();
    let by_name = name.parse::<HashAlgorithm>();
    let by_json = serde_json::from_value::<HashAlgorithm>(name.clone().into());
    assert_eq!(by_name.clone().ok(), by_json.ok());
    if let Ok(algorithm) = by_name {
        assert_eq!(algorithm.to_string(), name);
    }
    let message = input.rest();
    for algorithm in HashAlgorithm::ALL {
        match algorithm.digest(message) {
            Ok(digest) => assert!(algorithm != HashAlgorithm::None || digest == message),
            Err(NotADigest(length)) => {
                assert_eq!((algorithm, length), (HashAlgorithm::None, message.len()));
                assert_ne!(length, 32);
            }
        }
    }
}

/// What the hash covers leaves no doubt where a field ends: fields of other bytes, or cut elsewhere, are
/// hashed otherwise.
fn fields(mut input: Input<'_>) {
    let mut read = || -> Vec<&[u8]> { (0..input.byte() % 4).map(|_| input.short()).collect() };
    let (one, other) = (read(), read());
    assert_eq!(hash_fields("a", &one) == hash_fields("a", &other), one == other);
    assert_ne!(hash_fields("a", &one), hash_fields("b", &one));
}

fn pair(mut input: Input<'_>) {
    let one = intent(&mut input);
    let other = Intent {
        cluster: if input.byte() % 2 == 0 { one.cluster.clone() } else { input.text() },
        key: if input.byte() % 2 == 0 { one.key.clone() } else { input.text() },
        ..if input.byte() % 2 == 0 { one.clone() } else { intent(&mut input) }
    };
    assert_eq!(one.hash() == other.hash(), one == other);
    for intent in [one, other] {
        hash_can_be_read_back(&intent);
        json(&serde_json::to_vec(&intent).expect("an intent has a JSON form"));
    }
}

fn intent(input: &mut Input<'_>) -> Intent {
    let steps: Vec<String> =
        (0..input.byte() % 17).map(|_| (u32::from_be_bytes(input.array()) >> 1).to_string()).collect();
    let path = if steps.is_empty() { "m".into() } else { steps.join("/") };
    let time = Timestamp::new(i64::from_be_bytes(input.array()), i32::from_be_bytes(input.array()));
    Intent {
        cluster: input.text(),
        key: input.text(),
        path: path.parse().expect("at most 16 steps below 2^31 are a path"),
        hash: input.pick(&HashAlgorithm::ALL),
        digest: input.array(),
        not_after: time.ok(),
    }
}

/// The hash is one over bytes from which the intent can be read again. So no two have the same.
fn hash_can_be_read_back(intent: &Intent) {
    let not_after = intent.not_after.map_or(String::new(), |time| time.to_string());
    let parts = [
        intent.cluster.as_bytes(),
        intent.key.as_bytes(),
        intent.path.to_string().as_bytes(),
        intent.hash.as_str().as_bytes(),
        &intent.digest,
        not_after.as_bytes(),
    ]
    .map(<[u8]>::to_vec);
    assert_eq!(intent.hash(), hash_fields(DOMAIN, &parts.each_ref().map(Vec::as_slice)));
    let [cluster, key, path, hash, digest, not_after] = parts;
    let text = |bytes| String::from_utf8(bytes).expect("it was a text");
    let not_after = text(not_after);
    let read = Intent {
        cluster: text(cluster),
        key: text(key),
        path: text(path).parse().expect("it was a path"),
        hash: text(hash).parse().expect("it was a hash"),
        digest: digest.try_into().expect("it was a digest"),
        not_after: (!not_after.is_empty()).then(|| not_after.parse().expect("it was a time")),
    };
    assert_eq!(read, *intent);
}
