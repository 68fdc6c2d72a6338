//! An EIP-1559 transaction, as the EIP has it: 0x02 and a list in RLP of nine fields, y's parity, r and s.

use k256::ecdsa::{RecoveryId, Signature, VerifyingKey};
use sha3::{Digest as _, Keccak256};

use crate::network::Key;

/// The field of the recipient, and who it is in the examples.
const RECIPIENT: (usize, &str) = (5, "d8da6bf26964af9d7eed9e03e53415d37aa96045");

/// That this is one, signed with the key.
pub(crate) fn assert_signed(transaction: &[u8], key: &Key) {
    let (kind, list) = transaction.split_first().unwrap();
    assert_eq!(*kind, 2);
    let (fields, rest) = item(list);
    assert!(rest.is_empty());
    let fields = items(fields);
    assert_eq!(fields.len(), 12);
    assert_eq!(hex::encode(item(fields[RECIPIENT.0]).0), RECIPIENT.1);

    let unsigned = fields[..9].concat();
    let length = u8::try_from(unsigned.len()).unwrap();
    let head = if length < 56 { vec![2, 0xc0 + length] } else { vec![2, 0xf8, length] };
    let digest = Keccak256::digest([head, unsigned].concat());

    let [odd, r, s] = [9, 10, 11].map(|index| item(fields[index]).0);
    assert!(matches!(odd, [] | [1]), "{odd:?}");
    let signature = Signature::from_scalars(scalar(r), scalar(s)).unwrap();
    assert_eq!(signature.normalize_s(), signature, "low s");
    let signer =
        VerifyingKey::recover_from_prehash(&digest, &signature, RecoveryId::new(odd == [1], false)).unwrap();
    assert_eq!(signer.to_sec1_point(true).as_bytes(), key.public_key);
    let hash = Keccak256::digest(&signer.to_sec1_point(false).as_bytes()[1..]);
    assert_eq!(format!("0x{}", hex::encode(&hash[12..])), key.ethereum.to_lowercase());
}

/// What is in the first item, and what comes after it.
fn item(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (start, length) = match bytes[0] {
        0..0x80 => (0, 1),
        head @ 0x80..0xb8 => (1, usize::from(head - 0x80)),
        head @ 0xc0..0xf8 => (1, usize::from(head - 0xc0)),
        0xb8 | 0xf8 => (2, usize::from(bytes[1])),
        head => panic!("{head:#x}: expected an item of at most 255 bytes"),
    };
    bytes[start..].split_at(length)
}

/// The items of a list, each with its head.
fn items(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let (_, rest) = item(bytes);
        items.push(&bytes[..bytes.len() - rest.len()]);
        bytes = rest;
    }
    items
}

/// A number as RLP has it: without zeros in front.
fn scalar(bytes: &[u8]) -> [u8; 32] {
    let mut scalar = [0; 32];
    scalar[32 - bytes.len()..].copy_from_slice(bytes);
    scalar
}
