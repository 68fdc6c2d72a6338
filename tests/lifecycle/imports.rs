//! A private key that was there before the network: split by whoever has it, and taken over by the signers, each a process
//! of its own with its own file, over a real RabbitMQ.

use std::process::Output;

use k256::elliptic_curve::ff::PrimeField as _;
use k256::{ProjectivePoint, Scalar};
use secp256k1::{Message, PublicKey, Secp256k1, ecdsa};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::installation::{Installation, get, post};
use crate::{fails, identity, ok, private, read, said, tssctl, unlock};

/// The private key, and its well-known address.
const SECRET: &str = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
const ADDRESS: &str = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23";

fn scalar(value: &Value) -> Scalar {
    let bytes: [u8; 32] = hex::decode(value.as_str().unwrap()).unwrap().try_into().unwrap();
    Scalar::from_repr(bytes.into()).unwrap()
}

/// The public key that two signers' shares give, compressed, in hex.
fn together(shares: [(u64, Scalar); 2]) -> String {
    let [(i, one), (j, other)] = shares.map(|(index, share)| (Scalar::from(index), share));
    let key = one * j * (j - i).invert().unwrap() + other * i * (i - j).invert().unwrap();
    let point = (ProjectivePoint::GENERATOR * key).to_affine();
    hex::encode(k256::PublicKey::from_affine(point).unwrap().to_sec1_bytes())
}

/// Runs `tssctl key import` for signers 1 to 3 at the same time, each with its file.
fn import(installation: &Installation, folder: &str, timeout: &str) -> Vec<Output> {
    std::thread::scope(|scope| {
        let running = [1, 2, 3].map(|index| {
            let line =
                format!("key import {folder}/signer{index}.foreign.json --index {index} --timeout {timeout}");
            scope.spawn(move || tssctl(installation, &line))
        });
        running.into_iter().map(|running| running.join().unwrap()).collect()
    })
}

/// Has a message signed at a path, and checks the signature with libsecp256k1; yields the public key it is of.
pub(crate) async fn sign(installation: &Installation, path: &str) -> String {
    let url = installation.url();
    let asked = json!({"message": "as ever", "path": path});
    let (status, _, accepted) = post(&format!("{url}/sign"), &asked).await.unwrap();
    assert_eq!(status, 201, "{accepted}");
    let id = accepted["request_id"].as_str().unwrap();
    let (status, made) = get(&format!("{url}/signature/{id}?wait=30s")).await.unwrap();
    assert_eq!(status, 200, "{made}");
    let key = made["public_key"].as_str().unwrap().to_owned();
    let bytes = |name: &str| hex::decode(made[name].as_str().unwrap()).unwrap();
    let signature = ecdsa::Signature::from_compact(&[bytes("r"), bytes("s")].concat()).unwrap();
    let digest = Message::from_digest(Sha256::digest("as ever").into());
    let public: PublicKey = key.parse().unwrap();
    Secp256k1::verification_only().verify_ecdsa(digest, &signature, &public).unwrap();
    key
}

#[tokio::test]
async fn a_private_key_that_was_split_and_taken_over_signs_from_its_address_and_its_splitting_is_void() {
    let mut installation = Installation::with_identities();
    private(&installation.folder().join("secret"), format!("0x{SECRET}\n"));
    let recipient = identity(&installation, "signers.age");
    let line = "key split --private-key-file secret --threshold 2 --signers 3";
    let recipients: String = [1, 2, 3].map(|index| format!(" --recipient {index}={recipient}")).concat();
    let told = ok(&tssctl(&installation, &format!("{line} --out-dir sealed {recipients}")));
    assert!(
        told.contains(ADDRESS) && told.contains("destroy every copy") && !told.contains(SECRET),
        "{told}"
    );
    let public_key = told.lines().find_map(|line| line.strip_prefix("public key")).unwrap().trim().to_owned();

    let import_one = "key import sealed/signer1.foreign.json --index 1 --timeout 5";
    fails(&tssctl(&installation, import_one), 1, &["signer1.foreign.json", "age_identity_file"]);
    installation.set("TSS_AGE_IDENTITY_FILE", "signers.age");
    for output in import(&installation, "sealed", "120") {
        let told = ok(&output);
        assert!(told.contains(&format!("public key       {public_key}\n")), "{told}");
        assert!(told.contains(ADDRESS) && told.contains("destroy every copy"), "{told}");
    }

    let folder = installation.folder();
    for index in ["1", "2", "3"] {
        let asked = ["inspect", "--index", index, "--expect-public-key", &public_key];
        let inspected: Value = serde_json::from_str(&ok(&installation.run("signer", &asked))).unwrap();
        assert_eq!(inspected["origin"], "imported");
        assert_eq!(read(&folder.join(format!("signer{index}.store")))["origin"], "imported");
    }

    // What the dealer made and what the signers made do not fit each other; each by itself gives the key.
    let store = |index: u64| read(&folder.join(format!("signer{index}.store")));
    let new = |index| (index, scalar(&store(index)["core"]["secret_share"]));
    assert_eq!(together([new(1), new(2)]), public_key);
    let dealt = |index| (index, scalar(&dealers_file(&installation, index)["secret"]));
    assert_eq!(together([dealt(1), dealt(2)]), public_key);
    assert_ne!(together([dealt(1), new(2)]), public_key);
    assert_ne!(together([new(1), dealt(3)]), public_key);
    let mut mixed = store(1);
    mixed["core"]["secret_share"] = dealers_file(&installation, 1)["secret"].clone();
    private(&folder.join("mixed"), mixed.to_string());
    let refused = tssctl(&installation, "backup attest mixed");
    fails(&refused, 1, &["mixed: ", "does not give the public share of signer 1"]);

    // For ever imported, also in what is told of it.
    let attested = ok(&tssctl(&installation, "backup attest signer1.store"));
    assert_eq!(serde_json::from_str::<Value>(&attested).unwrap()["share_of"]["origin"], "imported");
    let line = "key reconstruct signer1.store signer3.store --out whole --this-ends-the-threshold";
    ok(&tssctl(&installation, line));
    assert_eq!(read(&folder.join("whole"))["private_key"], SECRET);

    let manager = installation.start("manager", &[]);
    let signers = ["1", "2", "3"].map(|index| installation.start("signer", &["--index", index]));
    installation.until_healthy(&[&manager, &signers[0], &signers[1], &signers[2]]).await;
    assert_eq!(sign(&installation, "m").await, public_key);
    assert_ne!(sign(&installation, "0/1/2").await, public_key);
    installation.clean_up().await;
}

/// What the dealer gave a signer.
fn dealers_file(installation: &Installation, index: u64) -> Value {
    let file = installation.folder().join(format!("sealed/signer{index}.foreign.json"));
    let identity = installation.folder().join("signers.age");
    let plain = unlock(&std::fs::read(file).unwrap(), &identity).unwrap();
    serde_json::from_slice(&plain).unwrap()
}

#[test]
fn what_is_no_private_key_or_no_share_for_this_signer_is_refused_before_anything_is_written() {
    let installation = Installation::with_identities();
    let folder = installation.folder();
    let split = |secret: &str, more: &str| {
        private(&folder.join("secret"), secret);
        let line = "key split --private-key-file secret --out-dir dealt --threshold 2 --signers 3";
        tssctl(&installation, &format!("{line} {more}"))
    };
    let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    for secret in [&*"00".repeat(32), order, &"ff".repeat(32)] {
        fails(&split(secret, ""), 2, &["private key secret: ", "above 0 and below the group order"]);
    }
    let short = split(&SECRET[1..], "");
    fails(&short, 2, &["private key secret: expected one line of 64 hex digits"]);
    assert!(!said(&short).contains(&SECRET[2..]));
    fails(&split(SECRET, "--recipient 1=age1x"), 2, &["none for signer 2"]);
    fails(&split(SECRET, "--recipient age1x"), 2, &["as in 2=age1"]);
    let line = "key split --private-key-file secret --out-dir dealt --threshold 4 --signers 3";
    fails(&tssctl(&installation, line), 2, &["--threshold, --signers"]);
    assert!(!folder.join("dealt").exists());

    ok(&split(SECRET, ""));
    fails(&split(SECRET, ""), 1, &["dealt/signer1.foreign.json: File exists"]);
    let take = |line: &str| tssctl(&installation, &format!("key import {line} --timeout 5"));
    fails(
        &take("dealt/signer3.foreign.json --index 2"),
        1,
        &["signer3.foreign.json has a share of signer 3 of a 2-of-3 key: expected one of signer 2"],
    );
    let mut altered = read(&folder.join("dealt/signer2.foreign.json"));
    altered["secret"] = json!(SECRET);
    private(&folder.join("altered"), altered.to_string());
    let refused = take("altered --index 2");
    fails(&refused, 1, &["foreign share file altered: ", "does not give the public share of signer 2"]);
    assert!(!said(&refused).contains(SECRET));
    private(&folder.join("altered"), "[]");
    fails(&take("altered --index 2"), 1, &["not a share as `tssctl key split` writes it"]);
    for index in 1..=3 {
        assert!(!folder.join(format!("signer{index}.store")).exists());
    }
}
