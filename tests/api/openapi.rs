//! What the document says holds: routes, examples, problems.

use std::collections::BTreeSet;
use std::time::Duration;

use secp256k1::ecdsa::Signature;
use secp256k1::{Message, Secp256k1};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tss_common::approval::Approval;
use tss_common::intent::Intent;
use tss_common::telemetry::Label as _;
use tss_manager::api::problem::Kind;
use tss_mpc::{DerivationPath, PublicKey};

use crate::network::{Api, SOON};

/// An operation of the document.
pub(crate) struct Operation<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) declared: &'a Value,
}

/// All of them.
pub(crate) fn operations(document: &Value) -> Vec<Operation<'_>> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, declared) in item.as_object().unwrap() {
            all.push(Operation { method, path, declared });
        }
    }
    all
}

impl<'a> Operation<'a> {
    fn named(document: &'a Value, id: &str) -> Self {
        operations(document).into_iter().find(|operation| operation.declared["operationId"] == id).unwrap()
    }

    /// The bodies to send that the document gives as examples, with their names.
    fn requests(&self) -> Vec<(&'a String, &'a Value)> {
        let examples = self.declared["requestBody"]["content"]["application/json"]["examples"].as_object();
        examples.into_iter().flatten().map(|(name, example)| (name, &example["value"])).collect()
    }

    /// The answer that the document gives as an example for a status.
    fn answer(&self, status: u16) -> &'a Value {
        &self.declared["responses"][status.to_string()]["content"]["application/json"]["example"]
    }

    /// What is not as the schema of the answers with this status has it.
    fn faults(&self, document: &Value, status: u16, body: &Value) -> Vec<String> {
        let response = follow(document, &self.declared["responses"][status.to_string()]);
        let content = response["content"].as_object().unwrap().values().next().unwrap();
        faults(document, &content["schema"], body)
    }
}

/// What a reference leads to, or the value itself.
fn follow<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(place) => document.pointer(place.trim_start_matches('#')).unwrap(),
        None => value,
    }
}

/// What is not as a schema of the document has it.
fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    assert!(!schema.is_null(), "there is no schema");
    // References lead from the root.
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "allOf": [schema],
        "components": document["components"],
    });
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_example_of_a_request_is_answered_as_the_document_says() {
    let api = Api::start().await;
    let document = api.document().await;
    let mut tried = 0;
    for operation in operations(&document) {
        for (name, body) in operation.requests() {
            let schema = &operation.declared["requestBody"]["content"]["application/json"]["schema"];
            assert_eq!(faults(&document, schema, body), Vec::<String>::new(), "{} {name}", operation.path);
            let answer = api.post(operation.path, body).await;
            let status = answer.status();
            let answer: Value = answer.json().await.unwrap();
            assert!(status.is_success(), "{} {name}: {status} {answer}", operation.path);
            let faults = operation.faults(&document, status.as_u16(), &answer);
            assert_eq!(faults, Vec::<String>::new(), "{} {name}: {answer}", operation.path);
            tried += 1;
            if operation.path == "/sign" {
                followed(&api, &document, &answer["request_id"]).await;
            }
            if operation.path == "/sign/batch" {
                for (number, result) in answer["results"].as_array().unwrap().iter().enumerate() {
                    assert_eq!(result["code"], 201, "{name} {number}: {result}");
                }
            }
            if operation.path == "/verify" && name.contains("valid") {
                assert_eq!(answer["valid"], !name.contains("not-valid"), "{name}: {answer}");
            }
        }
    }
    assert!(tried >= 8, "only {tried} examples");
    api.stop().await;
}

/// That everything which tells of a request answers as it should, and that it is signed.
async fn followed(api: &Api, document: &Value, id: &Value) {
    let id = id.as_str().unwrap();
    for (name, target) in [
        ("signature", format!("/signature/{id}?wait=60s")),
        ("status", format!("/status/{id}")),
        ("signing_result", format!("/signing_result/{id}")),
    ] {
        let answer = api.get(&target).await;
        assert_eq!(answer.status(), 200, "{target}");
        let answer: Value = answer.json().await.unwrap();
        let faults = Operation::named(document, name).faults(document, 200, &answer);
        assert_eq!(faults, Vec::<String>::new(), "{target}: {answer}");
        assert_eq!(answer["status"], "Completed", "{target}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_is_told_with_examples_that_are_of_its_schema() {
    let api = Api::without_signers().await;
    let document = api.document().await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for operation in operations(&document) {
        let Operation { method, path, declared } = operation;
        assert!(
            ids.insert(declared["operationId"].as_str().unwrap()),
            "{method} {path}: its id is not its own"
        );
        assert!(declared["summary"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path}");
        assert_eq!(declared["tags"].as_array().unwrap().len(), 1, "{method} {path}");
        if !declared["requestBody"].is_null() {
            assert!(!operation.requests().is_empty(), "{method} {path}: no example of a body");
        }
        for (status, response) in declared["responses"].as_object().unwrap() {
            let response = follow(&document, response);
            for (kind, content) in response["content"].as_object().unwrap() {
                let own: Vec<&Value> = match &content["example"] {
                    Value::Null => content["examples"]
                        .as_object()
                        .into_iter()
                        .flatten()
                        .map(|(_, one)| &one["value"])
                        .collect(),
                    example => vec![example],
                };
                let at = format!("{method} {path} {status} {kind}");
                assert!(
                    !own.is_empty() || !kind.ends_with("json") || path == "/openapi.json",
                    "{at}: no example"
                );
                for example in own {
                    let faults = faults(&document, &content["schema"], example);
                    assert_eq!(faults, Vec::<String>::new(), "{at}: {example}");
                }
            }
        }
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signature_in_the_examples_is_one_and_all_examples_tell_of_it() {
    let api = Api::without_signers().await;
    let document = api.document().await;
    let signed = Operation::named(&document, "signature").answer(200);
    let key = Operation::named(&document, "key").answer(200);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let bytes = |value: &Value| hex::decode(value.as_str().unwrap()).unwrap();

    // It is a signature of the message by the key at the path, for another library than that which made it.
    let digest: [u8; 32] = Sha256::digest("hello").into();
    assert_eq!(text(&signed["digest"]), hex::encode(digest));
    let context = Secp256k1::verification_only();
    let public_key = secp256k1::PublicKey::from_slice(&bytes(&signed["public_key"])).unwrap();
    let signature = Signature::from_compact(&bytes(&signed["compact"])).unwrap();
    context.verify_ecdsa(Message::from_digest(digest), &signature, &public_key).unwrap();
    assert_eq!(signature.serialize_der().to_vec(), bytes(&signed["der"]));
    assert_eq!(text(&signed["compact"]), text(&signed["r"]) + &text(&signed["s"]));

    // The key at the path is that of the key in the examples, and its intent has the hash that is told.
    let root: PublicKey = text(&key["public_key"]).parse().unwrap();
    let chain_code: [u8; 32] = bytes(&key["chain_code"]).try_into().unwrap();
    let path: DerivationPath = text(&key["derived"]["path"]).parse().unwrap();
    let derived = root.derive(&chain_code, &path).unwrap();
    assert_eq!(derived.to_string(), text(&signed["public_key"]));
    let addresses = &key["derived"]["addresses"];
    assert_eq!(derived.ethereum_address(), text(&addresses["ethereum"]));
    assert_eq!(derived.bitcoin_p2pkh_address(), text(&addresses["bitcoin_p2pkh"]));
    assert_eq!(derived.bitcoin_address(), text(&addresses["bitcoin_p2wpkh"]));
    let intent: Intent = serde_json::from_value(signed["intent"].clone()).unwrap();
    assert_eq!(intent.path, path);
    assert_eq!(intent.digest, digest);
    assert_eq!(hex::encode(intent.hash()), text(&signed["intent_hash"]));

    // What others answer of the same request is the same.
    let result = Operation::named(&document, "signing_result").answer(200);
    assert_eq!(result["message"], json!(b"hello"));
    for field in ["r", "s", "recid"] {
        assert_eq!(result["signature"][field], signed[field], "{field}");
    }
    let (x, y) = derived.coordinates();
    assert_eq!(result["signature"]["x"], hex::encode(x));
    assert_eq!(result["signature"]["y"], hex::encode(y));
    assert_eq!(Operation::named(&document, "keys").answer(200)["keys"][0], *key);
    for answer in [
        result,
        Operation::named(&document, "status").answer(200),
        Operation::named(&document, "sign").answer(201),
    ] {
        assert_eq!(answer["request_id"], signed["request_id"]);
    }
    let approval: Approval =
        serde_json::from_value(document["components"]["schemas"]["Approval"]["examples"][0].clone()).unwrap();
    approval.verify(&intent).unwrap();
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whether_a_signature_can_be_made_is_told_as_in_the_examples() {
    let alone = Api::without_signers().await;
    let document = alone.document().await;
    let health = Operation::named(&document, "health");
    let told = async || {
        let answer = alone.get("/health").await;
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    // The store is found up a moment after the start.
    let deadline = tokio::time::Instant::now() + SOON;
    while told().await.1["store"] == "down" && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told().await, (503, health.answer(503).clone()));
    alone.stop().await;

    let api = Api::start().await;
    let answer = api.get("/health").await;
    assert_eq!(answer.status(), 200);
    let (answer, mut example) = (answer.json::<Value>().await.unwrap(), health.answer(200).clone());
    // What another network has otherwise.
    example["key"]["public_key"] = answer["key"]["public_key"].clone();
    example["signers"]["live"] = answer["signers"]["live"].clone();
    assert_eq!(answer, example);
    api.stop().await;
}

#[test]
fn the_table_of_problems_in_the_documentation_is_that_of_the_program() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md")).unwrap();
    let told: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter(|line| line.contains("` | 4") || line.contains("` | 5"))
        .collect();
    let known: Vec<String> = Kind::ALL
        .iter()
        .map(|kind| format!("| `{}` | {} | {} |", kind.as_str(), kind.parts().0.as_u16(), kind.parts().1))
        .collect();
    assert_eq!(told, known);
}
