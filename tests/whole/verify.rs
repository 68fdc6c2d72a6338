//! Checks signatures with libraries that have nothing to do with the network.

use secp256k1::ecdsa::Signature;
use secp256k1::{Message, PublicKey, Secp256k1};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sha3::Keccak256;

/// That a finished SigningRequest holds a signature of this message (UTF-8, SHA-256) by the cluster's key at its
/// default path, made by as many signers as the cluster says.
pub(crate) fn assert_signs(request: &Value, cluster: &Value, message: &str) {
    let signed = assert_signature(request, cluster, message);
    let threshold = cluster["status"]["threshold"].as_str().unwrap();
    assert_eq!(threshold.split('-').next(), Some(signed.to_string().as_str()), "{}", request["status"]);
}

/// That a finished SigningRequest holds a signature; yields by how many signers.
pub(crate) fn assert_signature(request: &Value, cluster: &Value, message: &str) -> usize {
    let status = &request["status"];
    let text =
        |pointer: &str| status.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{status}"));
    assert_eq!(status["signature"]["publicKey"], cluster["status"]["addresses"]["publicKey"]);
    assert_eq!(status["signature"]["path"], cluster["status"]["addresses"]["path"]);
    let digest: [u8; 32] = Sha256::digest(message).into();
    assert_eq!(text("/signature/digest"), hex::encode(digest));
    let key = PublicKey::from_slice(&hex::decode(text("/signature/publicKey")).unwrap()).unwrap();
    let compact = Signature::from_compact(&hex::decode(text("/signature/compact")).unwrap()).unwrap();
    let der = Signature::from_der(&hex::decode(text("/signature/der")).unwrap()).unwrap();
    assert_eq!(compact, der);
    Secp256k1::verification_only().verify_ecdsa(Message::from_digest(digest), &compact, &key).unwrap();
    assert_eq!(status["phase"], "Complete");
    status["quorum"].as_array().unwrap().len()
}

/// The Ethereum address (EIP-55) of a compressed public key.
pub(crate) fn ethereum_address(public_key: &str) -> String {
    let key = PublicKey::from_slice(&hex::decode(public_key).unwrap()).unwrap().serialize_uncompressed();
    let address = hex::encode(&Keccak256::digest(&key[1..])[12..]);
    let checksum = hex::encode(Keccak256::digest(&address));
    let cased = address
        .chars()
        .zip(checksum.chars())
        .map(|(letter, check)| if check >= '8' { letter.to_ascii_uppercase() } else { letter });
    format!("0x{}", cased.collect::<String>())
}
