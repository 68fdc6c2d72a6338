//! Keys of other software, taken over by their signers: each a process of its own with its own file, over a real
//! RabbitMQ.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::path::{Path, PathBuf};
use std::process::Output;

use secp256k1::{Message, PublicKey, Secp256k1, ecdsa};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../support/installation.rs"]
mod installation;

use installation::{Installation, get, post};

/// What is done to a file.
type Alter = fn(&mut Value);

/// A file that `multi-party-ecdsa` wrote.
fn file(key: &str, party: u8) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/engines/files/{key}/party{party}.json"))
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// The public key that a file names, compressed, in hex.
fn public_key(file: &Path) -> String {
    let content = read(file);
    let point = content.get("y_sum_s").unwrap_or_else(|| &content[5]);
    let bytes: Vec<u8> = serde_json::from_value(point["point"].clone()).unwrap();
    hex::encode(PublicKey::from_slice(&bytes).unwrap().serialize())
}

/// Runs `tssctl import-legacy` for signers 1 to 3 at the same time, each with its file.
fn import(installation: &Installation, files: [PathBuf; 3], timeout: &str) -> Vec<Output> {
    std::thread::scope(|scope| {
        let running = [1, 2, 3].map(|index: u8| {
            let file = files[usize::from(index) - 1].display().to_string();
            scope.spawn(move || {
                let index = index.to_string();
                let arguments = ["import-legacy", &file, "--index", &index, "--timeout", timeout];
                installation.run("tssctl", &arguments)
            })
        });
        running.into_iter().map(|running| running.join().unwrap()).collect()
    })
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_no_share(installation: &Installation) {
    for index in 1..=3 {
        assert!(!installation.folder().join(format!("signer{index}.store")).exists(), "signer {index}");
    }
}

/// Has a message signed at a path, and checks the signature with libsecp256k1; yields the public key it is of.
async fn sign(installation: &Installation, path: &str) -> String {
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

async fn taken_over(key: &str, threshold: &str) {
    let mut installation = Installation::with_identities();
    installation.set("TSS_THRESHOLD", threshold);
    let files = [1, 2, 3].map(|party| file(key, party));
    let expected = public_key(&files[0]);
    for output in import(&installation, files, "120") {
        assert!(output.status.success(), "{}", said(&output));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.contains(&format!("public key       {expected}\n")), "{told}");
        assert!(told.contains("destroy every copy"), "{told}");
    }
    for index in ["1", "2", "3"] {
        let asked = ["inspect", "--index", index, "--expect-public-key", &expected];
        let inspected = installation.run("signer", &asked);
        assert!(inspected.status.success(), "{}", said(&inspected));
        let log =
            installation.run("tssctl", &["audit", "show", &format!("tss-data/signer{index}.audit.jsonl")]);
        let log = String::from_utf8_lossy(&log.stdout).into_owned();
        assert!(log.contains("import") && log.contains(&expected), "{log}");
    }
    let manager = installation.start("manager", &[]);
    let signers = ["1", "2", "3"].map(|index| installation.start("signer", &["--index", index]));
    installation.until_healthy(&[&manager, &signers[0], &signers[1], &signers[2]]).await;
    assert_eq!(sign(&installation, "m").await, expected);
    assert_ne!(sign(&installation, "0/1/2").await, expected);
    installation.clean_up().await;
}

#[tokio::test]
async fn a_gg18_key_of_threshold_1_signs_2_of_3_with_the_public_key_it_had() {
    taken_over("gg18-2-of-3", "2").await;
}

#[tokio::test]
async fn a_gg18_key_of_threshold_2_signs_3_of_3_with_the_public_key_it_had() {
    taken_over("gg18-3-of-3", "3").await;
}

#[tokio::test]
async fn a_gg20_key_signs_with_the_public_key_it_had() {
    taken_over("gg20-2-of-3", "2").await;
}

#[tokio::test]
async fn a_file_of_another_key_is_refused_by_all_who_say_whose_it_is() {
    let installation = Installation::with_identities();
    let files = [file("gg18-2-of-3", 1), file("gg18-2-of-3", 2), file("gg18-2-of-3-other", 3)];
    let expected = format!(
        "what the signers bring does not belong together: signers 1, 2 of key {}, signer 3 of key {}",
        public_key(&files[0]),
        public_key(&files[2])
    );
    for output in import(&installation, files, "60") {
        assert!(!output.status.success());
        assert!(said(&output).contains(&expected), "{}", said(&output));
    }
    assert_no_share(&installation);
    // With the right one, it succeeds.
    for output in import(&installation, [1, 2, 3].map(|party| file("gg18-2-of-3", party)), "120") {
        assert!(output.status.success(), "{}", said(&output));
    }
    // A share is never replaced.
    let again = import(&installation, [1, 2, 3].map(|party| file("gg18-2-of-3", party)), "5");
    assert!(again.iter().all(|output| said(output).contains("is there already")));
    installation.clean_up().await;
}

#[tokio::test]
async fn a_file_of_another_party_or_an_altered_one_is_refused_by_name_and_its_signer_is_waited_for() {
    let installation = Installation::with_identities();
    let files = [file("gg18-2-of-3", 1), file("gg18-2-of-3", 3), file("gg18-2-of-3", 3)];
    let outputs = import(&installation, files, "8");
    let swapped = said(&outputs[1]);
    assert!(
        swapped.contains("party3.json has a share of signer 3 of a 2-of-3 key: expected one of signer 2"),
        "{swapped}"
    );
    for others in [&outputs[0], &outputs[2]] {
        assert!(said(others).contains("timeout waiting for signer 2"), "{}", said(others));
    }

    let altered = installation.folder().join("altered.json");
    let alterations: [(&str, Alter); 8] = [
        ("does not give the public share of signer 2", |content| {
            let byte = content.pointer("/1/x_i/scalar/31").and_then(Value::as_u64).unwrap();
            content[1]["x_i"]["scalar"][31] = json!(byte ^ 1);
        }),
        ("names two public keys", |content| content[1]["y"] = content[0]["y_i"].clone()),
        ("do not give the public key", |content| {
            content[5] = content[0]["y_i"].clone();
            content[1]["y"] = content[0]["y_i"].clone();
        }),
        ("does not give the public share of signer 2", |content| {
            content[3][0]["commitments"][1] = content[0]["y_i"].clone();
        }),
        ("have not shared the key with the same threshold", |content| {
            content[3][1]["parameters"]["threshold"] = json!(2);
        }),
        ("2 dealers of a 2-of-3 key", |content| _ = content[3].as_array_mut().unwrap().pop()),
        ("of the curve ristretto: expected secp256k1", |content| content[5]["curve"] = json!("ristretto")),
        ("expected a share file of `multi-party-ecdsa`", |content| _ = content.as_array_mut().unwrap().pop()),
    ];
    for (expected, alter) in alterations {
        let mut content = read(&file("gg18-2-of-3", 2));
        alter(&mut content);
        std::fs::write(&altered, content.to_string()).unwrap();
        let refused = installation.run("tssctl", &["import-legacy", "altered.json", "--index", "2"]);
        assert!(!refused.status.success());
        let told = said(&refused);
        assert!(told.contains("altered.json") && told.contains(expected), "{told}");
    }
    assert_no_share(&installation);
    installation.clean_up().await;
}
