//! The private key, put together again.

use std::os::unix::fs::PermissionsExt as _;

use bip32::{ExtendedKey, ExtendedKeyAttrs, Prefix, XPrv};
use k256::ecdsa::SigningKey;
use secp256k1::{Message, PublicKey, Secp256k1, ecdsa};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::installation::Installation;
use crate::{fails, holders_of, ok, read, tssctl, with_backups};

/// That what a private key signs is a signature of this public key, for a library of others.
fn assert_signs(key: &SigningKey, public_key: &str) {
    let digest: [u8; 32] = Sha256::digest("move it all").into();
    let (signature, _) = key.sign_prehash_recoverable(&digest);
    let mut signature = ecdsa::Signature::from_compact(&signature.to_bytes()).unwrap();
    signature.normalize_s();
    let public: PublicKey = public_key.parse().unwrap();
    let verifier = Secp256k1::verification_only();
    verifier.verify_ecdsa(Message::from_digest(digest), &signature, &public).unwrap();
}

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

#[test]
fn t_backups_give_the_private_key_that_signs_for_the_root_and_what_is_derived() {
    let installation = Installation::new();
    let public_key = with_backups(&installation);
    let asked = format!("key reconstruct backup3 backup1 {} --out whole", holders_of(&[1, 3]));
    // Not by accident.
    let told = tssctl(&installation, &asked);
    fails(
        &told,
        2,
        &[
            "nothing was done",
            "ends the threshold",
            "connected to nothing",
            "for ever",
            "sign what moves all funds",
        ],
    );
    fails(&tssctl(&installation, "key reconstruct"), 2, &["--this-ends-the-threshold"]);
    fails(&tssctl(&installation, "key reconstruct --this-ends-the-threshold"), 2, &["--out"]);
    assert!(!installation.folder().join("whole").exists());

    let done = format!("{asked} --this-ends-the-threshold --output json");
    let done: Value = serde_json::from_str(&ok(&tssctl(&installation, &done))).unwrap();
    assert_eq!(done["root"]["public_key"], public_key);
    let file = installation.folder().join("whole");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let whole = read(&file);
    assert!(!done.to_string().contains(whole["private_key"].as_str().unwrap()));
    let key = SigningKey::from_slice(&bytes::<32>(&whole["private_key"])).unwrap();
    assert_eq!(hex::encode(key.verifying_key().to_sec1_bytes()), public_key);
    assert_signs(&key, &public_key);

    // With the chain code, another library derives what the network derives.
    let mut key_bytes = [0; 33];
    key_bytes[1..].copy_from_slice(&bytes::<32>(&whole["private_key"]));
    let attrs = ExtendedKeyAttrs {
        depth: 0,
        parent_fingerprint: [0; 4],
        child_number: 0.into(),
        chain_code: bytes(&whole["chain_code"]),
    };
    let root = XPrv::try_from(ExtendedKey { prefix: Prefix::XPRV, attrs, key_bytes }).unwrap();
    let derived = [0, 1, 2].into_iter().fold(root, |key, step: u32| key.derive_child(step.into()).unwrap());
    let expected = done["derived"]["public_key"].as_str().unwrap();
    assert_eq!(hex::encode(derived.public_key().to_bytes()), expected);
    assert_signs(derived.private_key(), expected);

    let again = tssctl(&installation, &format!("{asked} --this-ends-the-threshold"));
    fails(&again, 1, &["whole is there already"]);
}

#[test]
fn too_few_backups_or_some_of_another_key_give_nothing() {
    let installation = Installation::new();
    with_backups(&installation);
    let mut other = Installation::new();
    other.set("TSS_CLUSTER", installation.cluster());
    with_backups(&other);
    for name in ["backup2", "holder2a", "holder2b"] {
        let to = name.replace('2', "9");
        std::fs::copy(other.folder().join(name), installation.folder().join(to)).unwrap();
    }
    for (files, signers, expected) in [
        ("backup1", &[1][..], "needs shares of 2 signers: 1 missing, of signers 2, 3"),
        ("backup1 backup1", &[1], "backup1: it is of signer 1, as backup1 is"),
        ("backup1 backup9", &[1, 9], "backup9: it is of public key"),
        ("backup1 backup2", &[1], "backup2: layer 2 of 2 cannot be opened"),
    ] {
        let flags = holders_of(signers);
        let line = format!("key reconstruct {files} {flags} --out whole --this-ends-the-threshold");
        fails(&tssctl(&installation, &line), 1, &[expected]);
        assert!(!installation.folder().join("whole").exists());
    }
    // Shares themselves do as well as their backups.
    let line = "key reconstruct signer2.store signer3.store --out whole --this-ends-the-threshold";
    let told = ok(&tssctl(&installation, line));
    assert!(told.contains("at path m") && told.contains("at path 0/1/2"), "{told}");
}
