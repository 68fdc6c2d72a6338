//! A transaction that spends one P2WPKH output for two, as BIPs 141, 143 and 144 have it.

use ripemd::Ripemd160;
use secp256k1::ecdsa::Signature;
use secp256k1::{Message, PublicKey, Secp256k1};
use sha2::{Digest as _, Sha256};

use crate::network::Key;

/// What is in the output that the example spends, in satoshi.
const SPENT: u64 = 100_000;

/// SIGHASH_ALL.
const ALL: u8 = 1;

/// That this is one, signed with the key, whose own output is the second.
pub(crate) fn assert_signed(transaction: &[u8], key: &Key) {
    let mut rest = transaction;
    let mut take = |length: usize| {
        let (taken, after) = rest.split_at(length);
        rest = after;
        taken
    };
    let version = take(4);
    assert_eq!(take(3), [0, 1, 1], "with witnesses, and one input");
    let outpoint = take(36);
    assert_eq!(take(1), [0], "no script");
    let sequence = take(4);
    assert_eq!(take(1), [2], "two outputs");
    let outputs = take(2 * 31);
    assert_eq!(take(1), [2], "two items in the witness");
    let length = usize::from(take(1)[0]);
    let (signature, sighash_type) = take(length).split_at(length - 1);
    assert_eq!(sighash_type, [ALL]);
    assert_eq!(take(1), [33]);
    let public_key = take(33);
    let lock_time = take(4);
    assert!(rest.is_empty());
    assert_eq!(public_key, key.public_key);

    let hash = Ripemd160::digest(Sha256::digest(public_key)).to_vec();
    let own: [&[u8]; 2] = [&[22, 0, 20], &hash];
    assert!(outputs.ends_with(&own.concat()), "the rest goes back");
    let script_code = [&[25, 0x76, 0xa9, 20], &hash[..], &[0x88, 0xac]].concat();
    let signed: [&[u8]; 10] = [
        version,
        &sha256d(outpoint),
        &sha256d(sequence),
        outpoint,
        &script_code,
        &SPENT.to_le_bytes(),
        sequence,
        &sha256d(outputs),
        lock_time,
        &[ALL, 0, 0, 0],
    ];
    let digest = Message::from_digest(sha256d(&signed.concat()));
    let signature = Signature::from_der(signature).unwrap();
    let public_key = PublicKey::from_slice(public_key).unwrap();
    Secp256k1::verification_only().verify_ecdsa(digest, &signature, &public_key).unwrap();
}

fn sha256d(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(Sha256::digest(bytes)).into()
}
