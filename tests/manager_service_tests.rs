//! Manager and signers as processes of their own, against a real RabbitMQ and a real MongoDB.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/installation.rs"]
mod installation;

use installation::{Installation, START, get, post};

/// What the first network's README shows: start both, `POST /sign`, poll `/signing_result/{id}`. The
/// answer has its shape, field for field, and the signature verifies with two independent libraries.
#[tokio::test]
async fn test_signing_flow() {
    let installation = Installation::new();
    installation.keygen();
    let manager = installation.start("manager", &[]);
    let signers = installation.start("signer", &[]);
    installation.until_healthy(&[&manager, &signers]).await;

    let url = installation.url();
    let (status, headers, accepted) =
        post(&format!("{url}/sign"), &json!({"message": "Sunil"})).await.unwrap();
    assert_eq!((status, &accepted["status"]), (201, &json!("Pending")));
    let id = accepted["request_id"].as_str().unwrap();
    assert_eq!(headers["location"].to_str().unwrap(), format!("/status/{id}"));

    let result = poll(&format!("{url}/signing_result/{id}")).await;
    println!("{}", serde_json::to_string_pretty(&result).unwrap());
    assert_eq!(keys(&result), ["message", "request_id", "signature", "status"]);
    assert_eq!(result["request_id"], json!(id));
    assert_eq!(result["message"], json!(b"Sunil"));
    assert_eq!(result["status"], "Completed");
    let signature = &result["signature"];
    assert_eq!(keys(signature), ["msg_int", "r", "recid", "s", "status", "x", "y"]);
    assert_eq!(signature["status"], "signature_ready");

    let digest: [u8; 32] = Sha256::digest(b"Sunil").into();
    assert_eq!(signature["msg_int"], json!(digest));
    let [r, s, x, y] = ["r", "s", "x", "y"].map(|name| hex_32(&signature[name]));
    verify_with_k256(digest, r, s, x, y);
    verify_with_libsecp256k1(digest, r, s, signature["recid"].as_i64().unwrap(), x, y);
    installation.clean_up().await;
}

async fn poll(url: &str) -> Value {
    let began = std::time::Instant::now();
    loop {
        let (status, result) = get(url).await.expect("the manager answers");
        assert_eq!(status, 200);
        match result["status"].as_str().unwrap() {
            "Pending" | "InProgress" => assert_eq!(result["signature"], Value::Null),
            _ => return result,
        }
        assert!(began.elapsed() < START, "{result}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn hex_32(value: &Value) -> [u8; 32] {
    let text = value.as_str().unwrap();
    assert_eq!(text.len(), 64, "zero-padded");
    hex::decode(text).unwrap().try_into().unwrap()
}

fn verify_with_k256(digest: [u8; 32], r: [u8; 32], s: [u8; 32], x: [u8; 32], y: [u8; 32]) {
    use k256::ecdsa::{Signature, VerifyingKey, signature::hazmat::PrehashVerifier as _};
    let key = VerifyingKey::from_sec1_bytes(&[&[4][..], &x, &y].concat()).unwrap();
    let signature = Signature::from_scalars(r, s).unwrap();
    assert_eq!(signature.normalize_s(), signature, "low s");
    key.verify_prehash(&digest, &signature).unwrap();
}

fn verify_with_libsecp256k1(
    digest: [u8; 32],
    r: [u8; 32],
    s: [u8; 32],
    recid: i64,
    x: [u8; 32],
    y: [u8; 32],
) {
    use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
    use secp256k1::{Message, PublicKey, Secp256k1};
    let key = PublicKey::from_slice(&[&[4][..], &x, &y].concat()).unwrap();
    let recid = RecoveryId::try_from(i32::try_from(recid).unwrap()).unwrap();
    let signature = RecoverableSignature::from_compact(&[r, s].concat(), recid).unwrap();
    let (context, message) = (Secp256k1::new(), Message::from_digest(digest));
    context.verify_ecdsa(message, &signature.to_standard(), &key).unwrap();
    assert_eq!(context.recover_ecdsa(message, &signature).unwrap(), key);
}
