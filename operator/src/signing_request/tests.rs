//! From YAML to plans and statuses, and the client against a server that answers as a manager does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k256::ecdsa::SigningKey;
use kube::core::DeserializeGuard;
use kube::runtime::{reflector, watcher};
use serde_json::{Value, json};
use uuid::Uuid;

use super::apply::Outcome;
use super::build::{Plan, SignBody, build};
use super::cause::{self, Cause};
use super::dereference::{Cluster, Dereferenced};
use super::manager::{Attempts, Ending, Manager, Managers, NotTaken, Signed};
use super::update_status::{self, event, next, submitting};
use super::validate::{Progress, Request, Stage, validate};
use super::{answer, validate as validation, waiting_for_clusters};
use crate::crd::{Scheme, SigningRequest, SigningRequestStatus, TssCluster};

const ID: Uuid = Uuid::from_u128(0x550e_8400_e29b_41d4_a716_4466_5544_0000);
/// SHA-256 of `hello`.
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
/// The public key of the private key 1.
const KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

fn at(seconds: i64) -> Timestamp {
    let created: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
    created + jiff::SignedDuration::from_secs(seconds)
}

/// A SigningRequest with this spec beside `clusterRef`.
fn object(spec: &str) -> SigningRequest {
    let yaml = format!(
        "apiVersion: tss.network/v1alpha1
kind: SigningRequest
metadata:
  name: r
  namespace: ns
  uid: 8d7c2e6a-0000-4000-8000-000000000001
  generation: 1
  resourceVersion: '7'
  creationTimestamp: 2030-01-01T00:00:00Z
spec:
  clusterRef: {{name: c}}
  {}
",
        spec.replace('\n', "\n  ")
    );
    serde_saphyr::from_str(&yaml).unwrap()
}

fn cluster(status: &str) -> Cluster {
    let yaml = format!(
        "apiVersion: tss.network/v1alpha1
kind: TssCluster
metadata: {{name: c, namespace: ns}}
spec:
  threshold: 2
  signers: 3
  auth: {{type: None}}
  rabbitmq: {{uriSecret: {{name: s}}}}
  mongodb: {{uriSecret: {{name: s}}}}
status:
  {}
",
        status.replace('\n', "\n  ")
    );
    let cluster: TssCluster = serde_saphyr::from_str(&yaml).unwrap();
    Cluster::Found(Arc::new(cluster))
}

fn ready() -> Cluster {
    cluster(&format!(
        "publicKey: 03{}
addresses: {{path: 0/1/2, publicKey: {KEY}, ethereum: '0x', bitcoin: bc1}}
conditions: [{{type: Ready, status: 'True', reason: Ready, message: '', lastTransitionTime: 2030-01-01T00:00:00Z}}]",
        "b".repeat(64)
    ))
}

fn stage(object: &SigningRequest, cluster: Cluster) -> Stage {
    validate(&Dereferenced { object: object.clone(), cluster }).unwrap()
}

fn open(object: &SigningRequest, cluster: Cluster) -> Request {
    match stage(object, cluster) {
        Stage::Open(request) => *request,
        other => panic!("{other:?}"),
    }
}

fn status_of(object: &SigningRequest) -> SigningRequestStatus {
    object.status.clone().unwrap_or_default()
}

/// The object after an outcome.
fn after(object: &SigningRequest, cluster: Cluster, outcome: &Outcome, now: Timestamp) -> SigningRequest {
    let status = update_status::status(object, &stage(object, cluster), outcome, now);
    SigningRequest { status: Some(status), ..object.clone() }
}

/// The conditions, each as `type=status reason`.
fn conditions(object: &SigningRequest) -> Vec<String> {
    let status = status_of(object);
    status.conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason)).collect()
}

/// Why it failed.
fn failure(object: &SigningRequest) -> (String, String) {
    let status = status_of(object);
    let failed = status.conditions.into_iter().find(|c| c.type_ == "Failed" && c.status == "True").unwrap();
    (failed.reason, failed.message)
}

fn attempts() -> Attempts {
    Attempts { request_id: ID, attempts: 2, quorum: Some(vec![1, 3]) }
}

fn signed() -> Signed {
    serde_json::from_value(signed_json()).unwrap()
}

fn signed_json() -> Value {
    json!({
        "request_id": ID, "status": "Completed", "compact": compact(1, HELLO), "public_key": KEY, "digest": HELLO,
        "intent_hash": "",
        "intent": {"cluster": "c", "key": "default", "path": "0/1/2", "hash": "sha256", "digest": HELLO,
            "not_after": null},
    })
}

/// The private key of a small number.
fn private(number: u8) -> SigningKey {
    let mut bytes = [0; 32];
    bytes[31] = number;
    SigningKey::from_slice(&bytes).unwrap()
}

/// A signature of a digest, r and s in hex.
fn compact(key: u8, digest: &str) -> String {
    let (signature, _) = private(key).sign_prehash_recoverable(&hex::decode(digest).unwrap());
    hex::encode(signature.to_bytes())
}

fn submission(plan: Plan<'_>) -> (Value, bool) {
    match plan {
        Plan::Submit { body, first, .. } => (json!(body), first),
        other => panic!("{other:?}"),
    }
}

fn sent(spec: &str) -> Value {
    let object = object(spec);
    let stage = stage(&object, ready());
    submission(build(&stage, &status_of(&object), at(1))).0
}

#[test]
fn what_is_sent_says_all_that_makes_the_signature_what_it_is() {
    insta::assert_yaml_snapshot!(sent("message: hello"), @r#"
    encoding: utf8
    hash: sha256
    message: hello
    not_after: "2030-01-01T00:01:00Z"
    path: 0/1/2
    "#);
    let all = "message: aGVsbG8=\nencoding: base64\nhash: eip191\nderivationPath: m/0/7";
    insta::assert_yaml_snapshot!(sent(all), @r#"
    encoding: base64
    hash: eip191
    message: aGVsbG8=
    not_after: "2030-01-01T00:01:00Z"
    path: 0/7
    "#);
    insta::assert_yaml_snapshot!(sent(&format!("digest: '0x{HELLO}'\ndeadlineSeconds: 5")), @r#"
    encoding: hex
    hash: none
    message: "0x2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    not_after: "2030-01-01T00:00:05Z"
    path: 0/1/2
    "#);
}

#[test]
fn the_signers_are_told_of_the_deadline_unless_approvers_were_told_something_else() {
    let approvals = format!("approvals: [{{approver: {}, signature: {}}}]", "ab".repeat(32), "cd".repeat(64));
    let not_after = |spec: &str| sent(&format!("message: hello\n{spec}"))["not_after"].clone();
    assert_eq!(not_after("deadlineSeconds: 90"), json!(at(90)));
    assert_eq!(not_after("notAfter: 2030-01-01T00:00:30Z"), json!(at(30)));
    assert_eq!(not_after("notAfter: 2031-01-01T00:00:00Z"), json!(at(60)));
    assert_eq!(not_after(&approvals), Value::Null);
    let approved = format!("notAfter: 2031-01-01T00:00:00Z\n{approvals}");
    assert_eq!(not_after(&approved), json!("2031-01-01T00:00:00Z"));
}

#[test]
fn what_can_never_be_signed_fails_at_once_and_says_why() {
    for (spec, parts) in [
        ("message: abc\nencoding: hex", &["message", "even number of hex digits"][..]),
        ("message: '***'\nencoding: base64", &["message", "base64"]),
        ("digest: abcd", &["digest", "expected 32 bytes, got 2"]),
        ("message: a\nderivationPath: 0/4294967295", &["derivationPath", "hardened"]),
        ("deadlineSeconds: 5", &["expected either message or digest"]),
    ] {
        let object = object(spec);
        let stage = stage(&object, Cluster::Missing);
        let Plan::Fail(cause) = build(&stage, &status_of(&object), at(1)) else { panic!("{spec}") };
        assert_eq!(cause.reason, cause::INVALID_REQUEST);
        for part in parts {
            assert!(cause.message.contains(part), "`{part}` is missing in: {}", cause.message);
        }
        let object = after(&object, Cluster::Missing, &Outcome::Failed { cause, attempts: None }, at(1));
        let all =
            ["Accepted=False InvalidRequest", "Complete=False InvalidRequest", "Failed=True InvalidRequest"];
        assert_eq!(conditions(&object), all);
        assert_eq!(status_of(&object).finished_at.unwrap().0, at(1));
    }
}

#[test]
fn it_waits_for_its_cluster_until_the_deadline_and_then_says_what_it_waited_for() {
    let not_ready = cluster(
        "conditions: [{type: Ready, status: 'False', reason: KeyMissing, message: the key is being made, \
         lastTransitionTime: 2030-01-01T00:00:00Z}]",
    );
    for (cluster, reason, message) in [
        (Cluster::Missing, "ClusterNotFound", "there is no TssCluster c in this namespace"),
        (cluster("{}"), "ClusterNotReady", "is not Ready yet"),
        (not_ready, "ClusterNotReady", "is not Ready: KeyMissing: the key is being made"),
        (Cluster::Malformed("missing field `spec`".into()), "ClusterNotReady", "missing field `spec`"),
    ] {
        let object = object("message: hello");
        let stage = stage(&object, cluster.clone());
        let Plan::Wait(cause) = build(&stage, &status_of(&object), at(59)) else { panic!("{reason}") };
        let object = after(&object, cluster, &Outcome::Waits(cause), at(59));
        assert_eq!(conditions(&object), [format!("Accepted=False {reason}")]);
        // The time has come, though the cluster is ready now.
        let stage = self::stage(&object, ready());
        let Plan::Fail(cause) = build(&stage, &status_of(&object), at(60)) else { panic!("{reason}") };
        let object = after(&object, ready(), &Outcome::Failed { cause, attempts: None }, at(60));
        let (failed, text) = failure(&object);
        assert_eq!(failed, "DeadlineExceeded");
        assert!(text.contains(reason) && text.contains(message), "{text}");
    }
}

#[test]
fn a_cluster_without_a_key_does_not_sign() {
    let keyless = cluster(
        "conditions: [{type: Ready, status: 'True', reason: Ready, message: '', \
         lastTransitionTime: 2030-01-01T00:00:00Z}]",
    );
    let request = open(&object("message: hello"), keyless);
    assert_eq!(request.ready.unwrap_err().message, "the TssCluster c has no key yet");
}

#[test]
fn from_its_creation_to_its_signature() {
    let object = object("message: hello\nttlSecondsAfterFinished: 30");
    let (_, first) = submission(build(&stage(&object, ready()), &status_of(&object), at(1)));
    assert!(first);
    let mut object = object;
    object.status = Some(submitting(&object, at(1)));
    assert_eq!(conditions(&object), ["Accepted=Unknown Submitting"]);
    assert_eq!(open(&object, ready()).progress, Progress::Perhaps);

    let object = after(&object, ready(), &Outcome::Taken(ID), at(2));
    assert_eq!(conditions(&object), ["Accepted=True Accepted", "Complete=False Signing"]);
    assert_eq!(open(&object, ready()).progress, Progress::Taken(ID));
    // The deadline is nothing to a request that a manager has, nor is a cluster that is gone.
    let stage = stage(&object, Cluster::Missing);
    assert!(matches!(build(&stage, &status_of(&object), at(9999)), Plan::Ask { id: ID, .. }));

    let signature = Box::new(answer::signature(signed(), ID, &open(&object, ready())).unwrap());
    let outcome = Outcome::Signed { signature, attempts: attempts() };
    let object = after(&object, ready(), &outcome, at(3));
    insta::assert_yaml_snapshot!(object.status, @r#"
    conditions:
      - lastTransitionTime: "2030-01-01T00:00:02Z"
        message: the manager has taken it as request 550e8400-e29b-41d4-a716-446655440000
        observedGeneration: 1
        reason: Accepted
        status: "True"
        type: Accepted
      - lastTransitionTime: "2030-01-01T00:00:03Z"
        message: signed by the key at path 0/1/2
        observedGeneration: 1
        reason: Signed
        status: "True"
        type: Complete
    phase: Complete
    requestId: 550e8400-e29b-41d4-a716-446655440000
    attempts: 2
    quorum:
      - 1
      - 3
    signature:
      r: 0f2fff8620d8ffe97040f8cf72ae476ef8ff4412373929c0324ce8428d3352e7
      s: 1845ae4903027667005846f8f0be3e5ed2db5c3826ba83a6e542e080792f9a9d
      recid: 0
      v: 27
      der: 304402200f2fff8620d8ffe97040f8cf72ae476ef8ff4412373929c0324ce8428d3352e702201845ae4903027667005846f8f0be3e5ed2db5c3826ba83a6e542e080792f9a9d
      compact: 0f2fff8620d8ffe97040f8cf72ae476ef8ff4412373929c0324ce8428d3352e71845ae4903027667005846f8f0be3e5ed2db5c3826ba83a6e542e080792f9a9d
      publicKey: 0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798
      digest: 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824
      path: 0/1/2
    acceptedAt: "2030-01-01T00:00:02Z"
    finishedAt: "2030-01-01T00:00:03Z"
    "#);
    assert_eq!(event(&status_of(&object)).unwrap().reason, "Signed");

    let stage = self::stage(&object, Cluster::Missing);
    assert_eq!(stage, Stage::Finished(Some(at(33))));
    assert_eq!(build(&stage, &status_of(&object), at(32)), Plan::LeaveUntil(at(33)));
    assert_eq!(build(&stage, &status_of(&object), at(33)), Plan::Delete);
}

#[test]
fn what_has_ended_is_left_alone() {
    let mut object = object("message: hello");
    object.status = Some(serde_json::from_value(json!({"finishedAt": "2030-01-01T00:00:01Z"})).unwrap());
    assert_eq!(build(&stage(&object, ready()), &status_of(&object), at(9)), Plan::Leave);
    // Even if somebody took the time away.
    let failed = json!({"conditions": [{"type": "Failed", "status": "True", "reason": "X", "message": "",
        "lastTransitionTime": "2030-01-01T00:00:00Z"}]});
    object.status = Some(serde_json::from_value(failed).unwrap());
    assert_eq!(build(&stage(&object, ready()), &status_of(&object), at(9)), Plan::Leave);
    object.status = None;
    object.metadata.deletion_timestamp = object.metadata.creation_timestamp.clone();
    assert_eq!(stage(&object, ready()), Stage::Deleted);
}

fn unsure() -> Outcome {
    Outcome::Unsure(Cause::new(cause::NO_ANSWER, "no answer from the manager at http://m"))
}

#[test]
fn a_request_that_may_have_arrived_is_never_said_to_have_failed_while_it_may_be_signed() {
    let mut object = object("message: hello");
    object.status = Some(submitting(&object, at(58)));
    let object = after(&object, ready(), &unsure(), at(59));
    assert_eq!(conditions(&object), ["Accepted=Unknown NoAnswer", "Complete=Unknown NoAnswer"]);
    // After the deadline the signers sign nothing, so that asking again brings no more than an answer.
    let (_, first) = submission(build(&stage(&object, Cluster::Missing), &status_of(&object), at(61)));
    assert!(!first);
    let object = after(&object, ready(), &unsure(), at(119));
    assert!(status_of(&object).finished_at.is_none());
    let lost = after(&object, ready(), &unsure(), at(120));
    let (reason, message) = failure(&lost);
    assert_eq!(reason, "ResultUnknown");
    assert!(message.contains("8d7c2e6a-0000-4000-8000-000000000001"), "{message}");
    assert!(message.contains("no answer from the manager at http://m"), "{message}");
    // Or the manager answers in time after all.
    let taken = after(&object, ready(), &Outcome::Taken(ID), at(119));
    assert_eq!(conditions(&taken), ["Accepted=True Accepted", "Complete=False Signing"]);
}

#[test]
fn what_was_approved_without_an_end_is_not_sent_again_after_the_deadline() {
    let approvals = format!("approvals: [{{approver: {}, signature: {}}}]", "ab".repeat(32), "cd".repeat(64));
    for (expiry, asked) in
        [("", false), ("notAfter: 2031-01-01T00:00:00Z", false), ("notAfter: 2030-01-01T00:00:50Z", true)]
    {
        let mut object = object(&format!("message: hello\n{approvals}\n{expiry}"));
        object.status = Some(submitting(&object, at(1)));
        assert!(!submission(build(&stage(&object, ready()), &status_of(&object), at(49))).1);
        let stage = stage(&object, ready());
        match build(&stage, &status_of(&object), at(60)) {
            Plan::Submit { .. } => assert!(asked, "{expiry}"),
            Plan::Fail(cause) => assert!(!asked && cause.reason == cause::RESULT_UNKNOWN, "{expiry}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_operator_that_was_away_asks_for_a_while_before_it_gives_up() {
    let mut object = object("message: hello");
    object.status = Some(submitting(&object, at(1)));
    let object = after(&object, ready(), &Outcome::Taken(ID), at(2));
    let object = after(&object, ready(), &unsure(), at(100_000));
    assert_eq!(conditions(&object), ["Accepted=True Accepted", "Complete=Unknown NoAnswer"]);
    let still = after(&object, ready(), &unsure(), at(100_059));
    assert!(status_of(&still).finished_at.is_none());
    let (reason, message) = failure(&after(&still, ready(), &unsure(), at(100_060)));
    assert_eq!(reason, "ResultUnknown");
    assert!(message.contains(&format!("GET /signature/{ID}")), "{message}");
    // An answer meanwhile begins it anew.
    let outcome = Outcome::Signing { attempts: attempts(), waited: true };
    let told = after(&still, ready(), &outcome, at(100_059));
    assert_eq!(conditions(&told), ["Accepted=True Accepted", "Complete=False Signing"]);
    assert_eq!(status_of(&told).quorum, [1, 3]);
}

#[test]
fn a_long_signing_timeout_lengthens_the_wait_for_the_manager() {
    let Cluster::Found(cluster) = ready() else { panic!() };
    let mut cluster = TssCluster::clone(&cluster);
    cluster.spec.signing_timeout_seconds = 600;
    let request = open(&object("message: hello"), Cluster::Found(Arc::new(cluster)));
    assert_eq!(request.grace.as_secs(), 600);
}

#[test]
fn an_equal_outcome_changes_nothing_and_the_pauses_grow() {
    let object = object("message: hello");
    let waits = Outcome::Waits(Cause::new(cause::CLUSTER_NOT_FOUND, "there is none"));
    let once = after(&object, Cluster::Missing, &waits, at(1));
    let twice = after(&once, Cluster::Missing, &waits, at(20));
    assert_eq!(once, twice);
    let pause = |now, outcome: &Outcome| {
        let stage = stage(&once, Cluster::Missing);
        let action = next(&once, &stage, outcome, &status_of(&once), now);
        let text = format!("{action:?}");
        let text = text.split_once("Some(").unwrap().1.trim_end_matches("s) }").to_owned();
        match text.strip_suffix('m') {
            Some(millis) => millis.parse::<f64>().unwrap() / 1000.0,
            None => text.parse::<f64>().unwrap(),
        }
    };
    assert!((0.125..=0.25).contains(&pause(at(0), &waits)));
    assert!((2.5..=5.0).contains(&pause(at(20), &waits)));
    // Not beyond the deadline.
    assert!(pause(at(59), &waits) < 1.1);
}

#[test]
fn an_answer_about_something_else_is_no_answer() {
    let request = open(&object("message: hello"), ready());
    let signature = answer::signature(signed(), ID, &request).unwrap();
    assert_eq!((signature.path.as_str(), signature.digest.as_str()), ("0/1/2", HELLO));
    assert_eq!(format!("{}{}", signature.r, signature.s), signature.compact);
    assert_eq!(signature.v, 27 + signature.recid);
    let der = k256::ecdsa::Signature::from_der(&hex::decode(&signature.der).unwrap()).unwrap();
    assert_eq!(hex::encode(der.to_bytes()), signature.compact);
    let mut high = hex::decode(compact(1, HELLO)).unwrap();
    let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    subtract(&hex::decode(order).unwrap(), &mut high[32..]);
    let edits: [(&str, Value, &str); 12] = [
        ("/request_id", json!(Uuid::nil()), "request_id"),
        ("/digest", json!("00".repeat(32)), HELLO),
        ("/intent/digest", json!("00".repeat(32)), HELLO),
        ("/intent/path", json!("0/1/3"), "expected 0/1/2"),
        ("/intent/path", json!("x"), "expected one like 0/1/2"),
        ("/public_key", json!(format!("03{}", "a".repeat(64))), "the TssCluster's at path 0/1/2"),
        ("/compact", json!("00"), "64 bytes in hex"),
        ("/compact", json!("x".repeat(128)), "64 bytes in hex"),
        ("/compact", json!("00".repeat(64)), "out of range"),
        ("/compact", json!(hex::encode(high)), "s is high"),
        // Another's, and of something else.
        ("/compact", json!(compact(2, HELLO)), "does not fit the key and the digest"),
        ("/compact", json!(compact(1, &"07".repeat(32))), "does not fit the key and the digest"),
    ];
    for (field, value, expected) in edits {
        let mut json = signed_json();
        *json.pointer_mut(field).unwrap() = value;
        let cause = answer::signature(serde_json::from_value(json).unwrap(), ID, &request).unwrap_err();
        assert_eq!(cause.reason, cause::WRONG_ANSWER);
        assert!(cause.message.contains(expected), "`{expected}` is missing in: {}", cause.message);
    }
    // At another path the cluster's status says nothing of the key. It has to be a key all the same, and to have signed.
    let request = open(&object("message: hello\nderivationPath: m/0/9"), ready());
    let mut json = signed_json();
    json["intent"]["path"] = json!("0/9");
    json["compact"] = json!(compact(2, HELLO));
    for (key, stands) in [
        (hex::encode(private(2).verifying_key().to_sec1_point(true)), true),
        (KEY.to_owned(), false),
        (format!("05{}", "c".repeat(64)), false),
    ] {
        json["public_key"] = json!(key);
        let answer = answer::signature(serde_json::from_value(json.clone()).unwrap(), ID, &request);
        assert_eq!(answer.is_ok(), stands, "{answer:?}");
    }
}

/// `from` less `number`, into the latter. Big-endian.
fn subtract(from: &[u8], number: &mut [u8]) {
    let mut borrowed = 0;
    for (from, digit) in from.iter().zip(number).rev() {
        let difference = i16::from(*from) - i16::from(*digit) - borrowed;
        borrowed = i16::from(difference < 0);
        *digit = difference.rem_euclid(256).try_into().unwrap();
    }
}

#[test]
fn why_a_manager_failed_is_one_word() {
    for (said, reason) in [
        ("signers 1, 2 refused: policy: path 0/9 is not allowed: expected 0/1/*", "PolicyRefused"),
        ("not signed in time: signer 2 refused: policy: path 0/9 is not allowed", "TimedOut"),
        ("not signed in time: fewer than 2 usable signers were alive", "TimedOut"),
        ("signers 1, 2 refused: the request has expired (not_after)", "TimedOut"),
        ("signers 1, 3 refused: the digest is not that of the message", "SigningFailed"),
        ("", "SigningFailed"),
    ] {
        assert_eq!(answer::failure(said.into()).reason, reason, "{said}");
    }
    assert_eq!(answer::rejection("`path`: bad".into(), false).reason, "InvalidRequest");
    assert_eq!(answer::rejection("`path`: bad".into(), true).reason, "DeadlineExceeded");
    let late = "`not_after`: 2030-01-01T00:01:00Z has passed: expected a time after 2030-01-01T00:01:01Z";
    assert_eq!(answer::rejection(late.into(), false).reason, "DeadlineExceeded");
}

#[test]
fn texts_of_a_manager_are_bounded() {
    let cause = Cause::new(cause::SIGNING_FAILED, "é".repeat(100_000));
    assert!(cause.message.len() <= 2048 && cause.message.ends_with('…'));
    assert_eq!(cause::shortened("short".into(), 5), "short");
}

#[test]
fn an_object_that_no_api_server_made_is_an_error() {
    let mut object = object("message: hello");
    object.metadata.uid = None;
    let error = validate(&Dereferenced { object, cluster: Cluster::Missing }).unwrap_err();
    assert_eq!(error.to_string(), "the object has no uid: expected one, as the API server sets it");
    assert!(validation::finished_at(&SigningRequestStatus::default()).is_none());
}

/// Serves until the test ends.
async fn serve(router: Router) -> Managers {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Managers::new(Some(&format!("http://{address}/{{namespace}}/{{cluster}}")), None).unwrap()
}

fn of(managers: &Managers, cluster: &str) -> Manager {
    managers.of(Scheme::Http, "ns", cluster).unwrap()
}

fn problem(status: u16, kind: &str, detail: &str) -> Response {
    let body = json!({"type": format!("urn:tss-network:problem:{kind}"), "title": "T", "status": status,
        "detail": detail});
    let status = StatusCode::from_u16(status).unwrap();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

fn sign_body() -> SignBody {
    let object = object("message: hello");
    let stage = stage(&object, ready());
    match build(&stage, &status_of(&object), at(1)) {
        Plan::Submit { body, .. } => body,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_is_sent_under_the_objects_uid() {
    let sign = |headers: HeaderMap, body: Bytes| async move {
        assert_eq!(headers["idempotency-key"], "u");
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), json!(sign_body()));
        (StatusCode::CREATED, axum::Json(json!({"request_id": ID, "status": "Pending"})))
    };
    let managers = serve(Router::new().route("/ns/c/sign", post(sign))).await;
    assert_eq!(of(&managers, "c").sign("u", &sign_body()).await, Ok(ID));
}

#[tokio::test]
async fn what_is_not_taken_is_told_apart() {
    async fn answer(Path(case): Path<String>) -> Response {
        match case.as_str() {
            "invalid" => problem(422, "invalid-request", "`path`: the step 0' is hardened"),
            "conflict" => {
                problem(422, "idempotency-conflict", "request 1 has this key and asks for something else")
            }
            "malformed" => problem(400, "malformed-json", "x"),
            "large" => problem(413, "body-too-large", "expected at most 1048576 bytes"),
            "type" => problem(415, "not-json", "x"),
            "overloaded" => problem(503, "overloaded", "10000 requests wait"),
            "unavailable" => problem(503, "unavailable", "the store is unreachable"),
            "slow" => problem(408, "timed-out", "x"),
            "internal" => problem(500, "internal", "x"),
            "forbidden" => problem(403, "forbidden", "x"),
            "redirect" => {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/ns/taken/sign")]).into_response()
            }
            "html" => (StatusCode::OK, "<html>").into_response(),
            "huge" => (StatusCode::OK, "x".repeat(100_000)).into_response(),
            other => panic!("{other}"),
        }
    }
    let managers = serve(Router::new().route("/ns/{case}/sign", post(answer))).await;
    let told = async |case: &str| of(&managers, case).sign("u", &sign_body()).await.unwrap_err();
    for case in ["invalid", "conflict", "malformed", "large", "type"] {
        assert!(matches!(told(case).await, NotTaken::Never(_)), "{case}");
    }
    assert_eq!(told("invalid").await, NotTaken::Never("`path`: the step 0' is hardened".into()));
    for (case, reason) in [("overloaded", "ManagerOverloaded"), ("forbidden", "ManagerRefuses")] {
        assert!(matches!(told(case).await, NotTaken::Surely(cause) if cause.reason == reason), "{case}");
    }
    for (case, reason) in [
        ("unavailable", "ManagerUnavailable"),
        ("slow", "NoAnswer"),
        ("internal", "NoAnswer"),
        ("redirect", "NoAnswer"),
        ("html", "NoAnswer"),
        ("huge", "NoAnswer"),
    ] {
        let told = told(case).await;
        assert!(matches!(&told, NotTaken::Perhaps(cause) if cause.reason == reason), "{case}: {told:?}");
    }
}

#[tokio::test]
async fn a_manager_that_is_not_there_has_surely_not_taken_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for address in [format!("http://{address}"), "http://{cluster}.invalid:8080".into()] {
        let managers = Managers::new(Some(&address), None).unwrap();
        let manager = of(&managers, "c");
        let told = manager.sign("u", &sign_body()).await;
        let Err(NotTaken::Surely(cause)) = told else { panic!("{told:?}") };
        assert_eq!(cause.reason, "ManagerUnreachable");
        assert!(cause.message.starts_with("no answer from the manager at http://"), "{}", cause.message);
        assert_eq!(manager.ending(ID, Duration::ZERO).await.unwrap_err().reason, "ManagerUnreachable");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_it_open_whether_it_was_taken() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let managers = Managers::new(Some(&format!("http://{}", listener.local_addr().unwrap())), None).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 64];
            tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await.unwrap();
        }
    });
    let told = of(&managers, "c").sign("u", &sign_body()).await;
    assert!(matches!(&told, Err(NotTaken::Perhaps(cause)) if cause.reason == "NoAnswer"), "{told:?}");
}

#[tokio::test]
async fn what_became_of_a_request_is_asked_for_with_a_wait() {
    #[derive(serde::Deserialize)]
    struct Wait {
        wait: String,
    }
    async fn signature(
        Path((case, id)): Path<(String, Uuid)>,
        Query(Wait { wait }): Query<Wait>,
    ) -> Response {
        assert_eq!((id, wait.as_str()), (ID, "7000ms"));
        match case.as_str() {
            "signed" => axum::Json(signed_json()).into_response(),
            "pending" => (StatusCode::ACCEPTED, axum::Json(json!({"request_id": id}))).into_response(),
            "failed" => problem(409, "request-failed", "not signed in time: x"),
            "unknown" => problem(404, "unknown-request", ""),
            "away" => problem(503, "unavailable", "the store is unreachable"),
            other => panic!("{other}"),
        }
    }
    let status = async || {
        axum::Json(json!({"request_id": ID, "status": "InProgress", "attempts": 2, "quorum": [1, 3]}))
    };
    let router = Router::new().route("/ns/{case}/signature/{id}", get(signature));
    let managers = serve(router.route("/ns/{case}/status/{id}", get(status))).await;
    let told = async |case: &str| of(&managers, case).ending(ID, Duration::from_secs(7)).await;
    assert_eq!(told("signed").await, Ok(Some(Ending::Signed(Box::new(signed())))));
    assert_eq!(told("pending").await, Ok(None));
    assert_eq!(told("failed").await, Ok(Some(Ending::Failed("not signed in time: x".into()))));
    assert_eq!(told("unknown").await.unwrap_err().reason, "RequestUnknown");
    assert_eq!(told("away").await.unwrap_err().reason, "ManagerUnavailable");
    assert_eq!(of(&managers, "signed").attempts(ID).await, Ok(attempts()));
}

/// Nobody has to wait for the next round once a cluster is ready.
#[tokio::test]
async fn a_cluster_that_becomes_ready_brings_its_open_requests_up_at_once() {
    let (requests, mut writer) = reflector::store();
    let named = |name: &str, cluster: &str, finished: bool| {
        let mut request = object("message: hello");
        request.metadata.name = Some(name.into());
        request.spec.cluster_ref.name = cluster.into();
        if finished {
            let finished_at = Some(Time(at(1)));
            request.status = Some(SigningRequestStatus { finished_at, ..SigningRequestStatus::default() });
        }
        DeserializeGuard(Ok(request))
    };
    for request in [named("open", "c", false), named("finished", "c", true), named("other", "d", false)] {
        writer.apply_watcher_event(&watcher::Event::Apply(request));
    }
    let cluster = |is_ready: bool| {
        let Cluster::Found(cluster) = ready() else { panic!("it is there") };
        let mut cluster = (*cluster).clone();
        if !is_ready {
            cluster.status = None;
        }
        Ok(DeserializeGuard(Ok(cluster)))
    };
    // What changes of a cluster that signs already brings nothing up.
    let changes = [false, true, true, false, true].map(cluster);
    let brought_up: Vec<String> =
        waiting_for_clusters(stream::iter(changes), requests).map(|request| request.name).collect().await;
    assert_eq!(brought_up, ["open", "open"]);
}
