//! The official test vectors of BIP-340: `bip340.csv` is `bip-0340/test-vectors.csv` of
//! <https://github.com/bitcoin/bips> as of commit 200f9b26fe0a, under the licence of the BIP (BSD-2-Clause, MIT or CC0).
//! (Those of RFC 9591 are run within the library, where a session can be told its randomness.)

use tss_mpc::{PublicKey, SchnorrSignature};

const VECTORS: &str = include_str!("bip340.csv");

/// Every row, with messages of every length, those that must fail among them.
#[test]
fn signatures_of_the_vectors_of_bip_340_stand_or_fall_as_they_say() {
    let (mut stand, mut fall) = (0, 0);
    for row in VECTORS.lines().skip(1) {
        let fields: Vec<&str> = row.split(',').collect();
        let [number, _, key, _, message, signature, result, ..] = fields[..] else { panic!("{row}") };
        let bytes = |field: &str| hex::decode(field).unwrap();
        let key: [u8; 32] = bytes(key).try_into().unwrap();
        let signature = SchnorrSignature::from_bytes(bytes(signature).try_into().unwrap());
        let message = bytes(message);
        let verified = signature.verify_x_only(&key, &message);
        match result {
            "TRUE" => {
                assert_eq!(verified, Ok(()), "row {number}");
                // As a whole key, whichever y it has.
                for prefix in [2, 3] {
                    let key = PublicKey::from_sec1(&[&[prefix], &key[..]].concat()).unwrap();
                    assert_eq!(signature.verify(&key, &message), Ok(()), "row {number}");
                }
                stand += 1;
            }
            "FALSE" => {
                assert!(verified.is_err(), "row {number}");
                fall += 1;
            }
            other => panic!("row {number}: {other}"),
        }
    }
    assert_eq!((stand, fall), (9, 10));
}
