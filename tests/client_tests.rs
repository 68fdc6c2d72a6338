//! The client on a manager and its signers in one process.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::time::Duration;

use futures::TryStreamExt as _;
use futures::future::join_all;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tss_client::error::ProblemKind;
use tss_client::types::{
    BatchOutcome, HashAlgorithm, ListedRequest, PartState, Readiness, RefreshStep, RequestFilter,
    RequestStatus, SignRequest, Status, TimelineEvent, Verdict, VerifyRequest,
};
use tss_client::{Client, Error, Hex, HexBytes};
use tss_common::telemetry::Label as _;
use tss_manager::api::problem::Kind;
use tssctl::network::Network;
use uuid::Uuid;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/devnet.rs"]
mod devnet;

/// How long what must happen may take. Test programs share two cores.
const SOON: Duration = Duration::from_secs(60);

/// A network of a 2-of-3 key with its client.
struct Signing {
    network: Network,
    client: Client,
    _folder: TempDir,
}

impl Signing {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let network = devnet::start(devnet::config(folder.path())).await;
        let client = Client::builder(network.url()).build().unwrap();
        Self { network, client, _folder: folder }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_manager_answers_is_what_the_types_say() {
    let signing = Signing::start().await;
    let client = &signing.client;

    let health = client.health().await.unwrap();
    assert_eq!(health.status, Readiness::Ok);
    assert_eq!((&health.store, &health.bus), (&PartState::Up, &PartState::Up));
    assert_eq!((health.signers.threshold, health.signers.total), (2, 3));
    assert!(health.signers.live.len() >= 2, "{health:?}");
    assert!(client.ready().await.unwrap().ready);
    client.alive().await.unwrap();
    assert!(client.metrics().await.unwrap().contains("tss_build_info"));

    let keys = client.keys(Some("0/7")).await.unwrap();
    let key = client.key("default", Some("0/7")).await.unwrap();
    assert_eq!((&keys[..], key.derived.path.as_str()), (&[key.clone()][..], "0/7"));
    assert_eq!(Some(key.public_key), health.key.map(|key| key.public_key));

    let request = SignRequest { path: Some("0/7".into()), ..SignRequest::text("hello") };
    let signed = client.sign_and_wait(&request, SOON).await.unwrap();
    let digest = Hex(Sha256::digest(b"hello").into());
    assert_eq!((signed.status.clone(), signed.digest), (RequestStatus::Completed, digest));
    assert_eq!(signed.public_key, key.derived.public_key);
    assert_eq!((signed.intent.path.as_str(), signed.intent.digest), ("0/7", digest));
    assert_eq!(signed.intent.hash, HashAlgorithm::Sha256);
    assert_eq!(signed.compact.0[..], [signed.r.0, signed.s.0].concat());
    assert_eq!(client.signature(signed.request_id, Duration::ZERO).await.unwrap(), Some(signed.clone()));

    let status = client.status(signed.request_id).await.unwrap();
    assert_eq!((&status.status, &status.reason), (&RequestStatus::Completed, &None));
    assert_eq!(status.quorum.map(|quorum| quorum.len()), Some(2));
    let result = client.signing_result(signed.request_id).await.unwrap();
    assert_eq!((&result.message[..], result.signature.unwrap().r), (&b"hello"[..], signed.r));

    let verify = VerifyRequest {
        message: "hello".into(),
        encoding: None,
        hash: None,
        signature: signed.der.clone(),
        public_key: None,
        key: None,
        path: Some("0/7".into()),
    };
    let verified = client.verify(&verify).await.unwrap();
    assert_eq!((verified.valid, verified.public_key, verified.digest), (true, signed.public_key, digest));
    let of_another =
        VerifyRequest { path: None, public_key: Some(HexBytes(key.public_key.0.to_vec())), ..verify };
    let verified = client.verify(&of_another).await.unwrap();
    assert!(!verified.valid && verified.reason.is_some(), "{verified:?}");

    for request in [SignRequest::bytes(b"hello"), SignRequest::digest(digest.0)] {
        let again = client.sign_and_wait(&request, SOON).await.unwrap();
        assert_eq!(again.digest, digest);
    }
    signing.network.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_manager_tells_who_watches_is_what_the_types_say() {
    let signing = Signing::start().await;
    let client = &signing.client;
    let mut ids = Vec::new();
    for text in ["first", "second", "third"] {
        let accepted = client.sign(&SignRequest::text(text)).await.unwrap();
        let told: Vec<Status> = client.events(accepted.request_id).try_collect().await.unwrap();
        let last = told.last().unwrap();
        assert_eq!((&last.status, last.request_id), (&RequestStatus::Completed, accepted.request_id));
        assert!(told.iter().rev().skip(1).all(|status| !status.status.is_final()), "{told:?}");
        ids.insert(0, accepted.request_id);
    }

    let page = RequestFilter { limit: Some(2), ..RequestFilter::default() };
    let listed: Vec<ListedRequest> = client.requests(page).try_collect().await.unwrap();
    assert_eq!(listed.iter().map(|one| one.summary.request_id).collect::<Vec<_>>(), ids);
    assert!(listed.iter().all(|one| one.requested_by.is_none()));
    let failed = RequestFilter { status: Some(RequestStatus::Failed), ..RequestFilter::default() };
    assert_eq!(client.requests(failed).try_collect::<Vec<_>>().await.unwrap(), []);

    let detail = client.request(ids[0]).await.unwrap();
    assert_eq!((detail.summary.request_id, detail.digest), (ids[0], Hex(Sha256::digest(b"third").into())));
    let happened: Vec<_> = detail.timeline.iter().map(|entry| entry.event.clone()).collect();
    assert_eq!(happened, [TimelineEvent::Accepted, TimelineEvent::Attempt, TimelineEvent::Completed]);
    assert_eq!(detail.timeline[1].quorum.as_ref().map(Vec::len), Some(2));
    assert!(detail.timeline.is_sorted_by_key(|entry| entry.at), "{detail:?}");

    let overview = client.overview().await.unwrap();
    assert_eq!((&overview.status, overview.threshold, overview.signers.len()), (&Readiness::Ok, 2, 3));
    assert_eq!(overview.keys, ["default"]);
    assert_eq!(overview.recent.iter().map(|one| one.request_id).collect::<Vec<_>>(), ids);
    assert_eq!(overview.series.points.iter().map(|point| point.completed).sum::<u64>(), 3);

    let told = client.dry_run(&SignRequest::text("third")).await.unwrap();
    assert!(told.would_sign && told.signers.iter().all(|word| word.verdict == Verdict::Willing), "{told:?}");
    assert_eq!(told.intent.digest, detail.digest);
    // Nothing came of it.
    assert_eq!(client.request_page(&RequestFilter::default(), None).await.unwrap().requests.len(), 3);
    signing.network.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_manager_tells_of_new_shares_is_what_the_types_say() {
    let signing = Signing::start().await;
    let client = &signing.client;
    let before = client.key_refresh("default").await.unwrap();
    assert_eq!((before.key.as_str(), before.epoch), ("default", 1));
    assert_eq!(before.signers.iter().map(|signer| signer.signer).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(before.signers.iter().all(|signer| signer.step.is_none()), "{before:?}");

    let ordered = client.refresh_key("default").await.unwrap();
    assert_eq!((ordered.key.as_str(), ordered.epoch), ("default", 1));
    let told = client.key_refresh("default").await.unwrap();
    let known = |step: &Option<RefreshStep>| !matches!(step, Some(RefreshStep::Other(_)));
    assert!(told.signers.iter().all(|signer| signer.live && known(&signer.step)), "{told:?}");
    signing.network.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_twice_with_one_key_is_asking_once() {
    let signing = Signing::start().await;
    let client = &signing.client;
    let request = SignRequest::text("once");
    let asked = join_all((0..4).map(|_| client.sign_once(&request, "the key"))).await;
    let ids: Vec<Uuid> = asked.into_iter().map(|accepted| accepted.unwrap().request_id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_ne!(client.sign(&request).await.unwrap().request_id, ids[0]);
    let error = client.sign_once(&SignRequest::text("other"), "the key").await.unwrap_err();
    assert!(matches!(&error, Error::Problem { kind: ProblemKind::IdempotencyConflict, .. }), "{error:?}");

    let bad = SignRequest { path: Some("0'".into()), ..request.clone() };
    let outcomes = client.sign_batch(vec![request.into(), bad.into()]).await.unwrap();
    let [BatchOutcome::Accepted { code: 201, accepted }, BatchOutcome::Refused { code: 422, problem }] =
        &outcomes[..]
    else {
        panic!("{outcomes:?}")
    };
    assert!(client.signature(accepted.request_id, SOON).await.unwrap().is_some());
    assert_eq!(problem.kind(), ProblemKind::InvalidRequest);
    signing.network.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_manager_refuses_is_an_error_of_its_kind() {
    let signing = Signing::start().await;
    let client = &signing.client;
    let hardened = SignRequest { path: Some("0'".into()), ..SignRequest::text("a") };
    let unknown = Uuid::nil();
    for (error, kind, status, part) in [
        (client.sign(&hardened).await.unwrap_err(), ProblemKind::InvalidRequest, 422, "hardened"),
        (client.status(unknown).await.unwrap_err(), ProblemKind::UnknownRequest, 404, "No request"),
        (client.signature(unknown, SOON).await.unwrap_err(), ProblemKind::UnknownRequest, 404, "No request"),
        (client.key("a/b", None).await.unwrap_err(), ProblemKind::UnknownKey, 404, "No key"),
        (client.refresh_key("a/b").await.unwrap_err(), ProblemKind::UnknownKey, 404, "No key"),
        (client.key_refresh("b").await.unwrap_err(), ProblemKind::UnknownKey, 404, "No key"),
        (client.sign_batch(Vec::new()).await.unwrap_err(), ProblemKind::InvalidRequest, 422, "1 to 1000"),
    ] {
        assert!(error.to_string().contains(part), "{error}");
        let Error::Problem { kind: told, status: with, .. } = error else { panic!("{error:?}") };
        assert_eq!((told, with.as_u16()), (kind, status));
    }
    signing.network.stop().await.unwrap();
}

#[test]
fn every_kind_of_problem_that_a_manager_has_is_one_that_the_client_knows() {
    for kind in Kind::ALL {
        let known: ProblemKind = serde_json::from_value(kind.as_str().into()).unwrap();
        assert!(!matches!(known, ProblemKind::Other(_)), "{known:?}");
    }
}
