//! What both stores promise: one suite, run against the embedded store and against MongoDB.
//!
//! MongoDB is the one at `MONGODB_URI`, or on this machine; a test has a database of its own there.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::mongodb::bson::doc;
use ::mongodb::options::ClientOptions;
use ::mongodb::{Client, Database};
use futures::FutureExt;
use futures::future::join_all;
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tss_common::approval::Approval;
use tss_common::ed25519::SigningKey;
use tss_common::intent::{HashAlgorithm, Intent};
use tss_manager::store::embedded::EmbeddedStore;
use tss_manager::store::mongo::MongoStore;
use tss_manager::store::{
    Filter, Idempotency, Inserted, KeyRecord, Lease, Listed, OPERATION_TIMEOUT, Progress, Request, State,
    Store, StoreError,
};
use tss_mpc::{PublicKey, Quorum, Signature, SignerIndex, Threshold};
use uuid::Uuid;

type SharedStore = Arc<dyn Store>;

/// The time `seconds` after a fixed one, to the nanosecond.
fn at(seconds: i64) -> Timestamp {
    Timestamp::new(1_800_000_000 + seconds, 123_456_789).unwrap()
}

fn lease(holder: Uuid, until: i64) -> Lease {
    Lease { holder, until: at(until) }
}

/// A request that was accepted at 0 and that `holder` drives until 10.
fn request(holder: Uuid) -> Request {
    let intent = Intent {
        cluster: "devnet".into(),
        key: "default".into(),
        path: "0/1".parse().unwrap(),
        hash: HashAlgorithm::Sha256,
        digest: [7; 32],
        not_after: None,
    };
    let approvals = [1, 2].map(|seed| Approval::make(&SigningKey::from_seed([seed; 32].into()), &intent));
    Request {
        id: Uuid::new_v4(),
        intent,
        message: b"hello".to_vec(),
        approvals: approvals.into(),
        requester: Some("somebody".into()),
        webhook: None,
        idempotency: None,
        created_at: at(0),
        deadline: at(60),
        progress: Progress { attempts: 0, quorum: None, begun_at: None, state: State::Pending },
        lease: lease(holder, 10),
    }
}

fn named(key: &str, holder: Uuid) -> Request {
    Request { idempotency: Some(Idempotency { key: key.into(), body_hash: [3; 32] }), ..request(holder) }
}

fn quorum(signers: &[u8]) -> Quorum {
    Quorum::new(signers.iter().map(|&index| SignerIndex::new(index).unwrap())).unwrap()
}

/// The progress of a request whose attempt has begun, at 1.
fn under_way(attempt: u32, signers: &[u8]) -> Progress {
    let quorum = Some(quorum(signers));
    Progress { attempts: attempt, quorum, begun_at: Some(at(1)), state: State::InProgress }
}

/// The public key whose secret is 1: the generator.
fn public_key() -> PublicKey {
    let bytes = hex::decode("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798").unwrap();
    PublicKey::from_sec1(&bytes).unwrap()
}

fn completed(r: u8, finished_at: i64) -> State {
    State::Completed {
        signature: Signature { r: [r; 32], s: [2; 32], recid: 1 },
        public_key: public_key(),
        finished_at: at(finished_at),
    }
}

fn failed(reason: &str, finished_at: i64) -> State {
    State::Failed { reason: reason.into(), finished_at: at(finished_at) }
}

fn key_record(id: &str, epoch: u64) -> KeyRecord {
    KeyRecord {
        id: id.into(),
        epoch,
        threshold: Threshold::new(2, 3).unwrap(),
        public_key: public_key(),
        chain_code: [9; 32],
        since: None,
    }
}

/// Stores a request that was not there before.
async fn insert(store: &SharedStore, request: &Request) {
    assert_eq!(store.insert(request).await.unwrap(), Inserted::New);
}

/// The request as the store has it.
async fn stored(store: &SharedStore, id: Uuid) -> Request {
    store.get(id).await.unwrap().expect("the request is there")
}

/// Does something `count` times at once.
async fn at_once<T, F>(count: usize, mut task: impl FnMut(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = (0..count).map(|index| tokio::spawn(task(index))).collect();
    join_all(tasks).await.into_iter().map(|outcome| outcome.unwrap()).collect()
}

async fn keeps_every_field(store: SharedStore) {
    store.ping().await.unwrap();
    let holder = Uuid::new_v4();
    let mut full = named("a key", holder);
    full.intent.path = "m".parse().unwrap();
    full.intent.not_after = Some(at(30));
    full.progress = under_way(u32::MAX, &[1, 16]);
    let mut whole_second = request(holder);
    whole_second.created_at = Timestamp::from_second(1_800_000_000).unwrap();
    let mut done = request(holder);
    done.progress = Progress { state: completed(1, 5), ..under_way(1, &[2, 3]) };
    let mut ended = request(holder);
    ended.progress.state = failed("zero signers answered: \"\\ \u{1F511} $set", 5);
    for request in [request(holder), full, whole_second, done, ended] {
        insert(&store, &request).await;
        assert_eq!(stored(&store, request.id).await, request);
    }
    for hash in HashAlgorithm::ALL {
        let mut request = request(holder);
        request.intent.hash = hash;
        insert(&store, &request).await;
        assert_eq!(stored(&store, request.id).await, request);
    }
}

async fn keeps_messages_of_any_length(store: SharedStore) {
    for length in [0, 1, 64 << 10, 512 << 10] {
        let mut request = request(Uuid::new_v4());
        request.message = (0..length).map(|index| (index % 251) as u8).collect();
        insert(&store, &request).await;
        assert_eq!(stored(&store, request.id).await, request);
    }
}

async fn knows_no_other_requests(store: SharedStore) {
    let holder = Uuid::new_v4();
    insert(&store, &request(holder)).await;
    let unknown = Uuid::new_v4();
    assert_eq!(store.get(unknown).await.unwrap(), None);
    assert!(!store.begin_attempt(unknown, holder, &under_way(1, &[1, 2])).await.unwrap());
    assert!(!store.finish(unknown, &completed(1, 1)).await.unwrap());
    assert_eq!(store.get(unknown).await.unwrap(), None);
}

async fn takes_an_insertion_twice_for_one(store: SharedStore) {
    let holder = Uuid::new_v4();
    for first in [request(holder), named("once", holder)] {
        insert(&store, &first).await;
        assert!(store.begin_attempt(first.id, holder, &under_way(1, &[1, 2])).await.unwrap());
        insert(&store, &first).await;
        let now = stored(&store, first.id).await;
        assert_eq!(now.progress.attempts, 1, "the second insertion changed the request");
    }
    let all = store.take_over(at(100), &lease(Uuid::new_v4(), 200), 10).await.unwrap();
    assert_eq!(all.len(), 2);
}

async fn one_idempotency_key_names_one_request(store: SharedStore) {
    let holder = Uuid::new_v4();
    let first = named("order-1", holder);
    insert(&store, &first).await;
    let second = named("order-1", holder);
    let Inserted::Existing(existing) = store.insert(&second).await.unwrap() else {
        panic!("the key was free")
    };
    assert_eq!(*existing, first);
    assert_eq!(store.get(second.id).await.unwrap(), None);
    assert_eq!(store.find("order-1").await.unwrap(), Some(first.clone()));
    for unknown in ["order-2", "order-", "order-1 ", ""] {
        assert_eq!(store.find(unknown).await.unwrap(), None, "{unknown}");
    }

    // As it is now, also after it has ended.
    assert!(store.finish(first.id, &completed(1, 5)).await.unwrap());
    let Inserted::Existing(existing) = store.insert(&second).await.unwrap() else {
        panic!("the key was free")
    };
    assert_eq!(existing.progress.state, completed(1, 5));
    assert_eq!(store.find("order-1").await.unwrap(), Some(*existing));
    // Other keys, and no key, are free.
    insert(&store, &named("order-2", holder)).await;
    insert(&store, &request(holder)).await;
    insert(&store, &request(holder)).await;
}

async fn one_of_64_insertions_under_one_key_wins(store: SharedStore) {
    let outcomes = at_once(64, |_| {
        let (store, request) = (store.clone(), named("raced", Uuid::new_v4()));
        async move { (request.id, store.insert(&request).await.unwrap()) }
    })
    .await;
    let new: Vec<_> = outcomes.iter().filter(|(_, inserted)| *inserted == Inserted::New).collect();
    assert_eq!(new.len(), 1);
    let winner = new[0].0;
    for (id, inserted) in outcomes {
        match inserted {
            Inserted::New => {}
            Inserted::Existing(existing) => {
                assert_eq!(existing.id, winner);
                assert_eq!(store.get(id).await.unwrap(), None);
            }
        }
    }
}

async fn one_request_inserted_64_times_is_stored_once(store: SharedStore) {
    let request = named("retried", Uuid::new_v4());
    let outcomes = at_once(64, |_| {
        let (store, request) = (store.clone(), request.clone());
        async move { store.insert(&request).await.unwrap() }
    })
    .await;
    assert!(outcomes.iter().all(|inserted| *inserted == Inserted::New));
    assert_eq!(stored(&store, request.id).await, request);
}

async fn idempotency_keys_may_hold_any_text(store: SharedStore) {
    let longest = "k".repeat(255);
    let widest = "\u{10FFFF}".repeat(255);
    let keys = [
        "$set",
        "a.b",
        ".",
        "$",
        "$$ROOT",
        "{}",
        "a",
        "A",
        "a ",
        " a",
        "é",
        "e\u{301}",
        "\u{1F511}",
        "\u{FEFF}",
        "'\"\\",
        "\u{1}\n\t",
        "null",
        "0",
        &longest,
        &widest,
        "",
    ];
    let mut ids = Vec::new();
    for key in keys {
        let request = named(key, Uuid::new_v4());
        assert_eq!(store.insert(&request).await.unwrap(), Inserted::New, "{key:?}");
        ids.push(request);
    }
    for first in ids {
        let key = &first.idempotency.as_ref().unwrap().key;
        let again = store.insert(&named(key, Uuid::new_v4())).await.unwrap();
        assert_eq!(again, Inserted::Existing(Box::new(first.clone())), "{key:?}");
        assert_eq!(store.find(key).await.unwrap(), Some(first.clone()), "{key:?}");
    }
}

async fn attempts_are_begun_by_the_holder_until_the_end(store: SharedStore) {
    let holder = Uuid::new_v4();
    let request = request(holder);
    insert(&store, &request).await;
    let id = request.id;
    assert!(!store.begin_attempt(id, Uuid::new_v4(), &under_way(1, &[1, 2])).await.unwrap());
    assert_eq!(stored(&store, id).await, request);

    for (attempt, signers) in [(1, [1, 2]), (1, [1, 2]), (2, [1, 3])] {
        assert!(store.begin_attempt(id, holder, &under_way(attempt, &signers)).await.unwrap());
        let mut expected = request.clone();
        expected.progress = under_way(attempt, &signers);
        assert_eq!(stored(&store, id).await, expected);
    }

    assert!(store.finish(id, &completed(1, 5)).await.unwrap());
    let ended = stored(&store, id).await;
    let progress = Progress { state: completed(1, 5), ..under_way(2, &[1, 3]) };
    assert_eq!(ended, Request { progress, ..request });
    assert!(!store.begin_attempt(id, holder, &under_way(3, &[2, 3])).await.unwrap());
    assert_eq!(stored(&store, id).await, ended);
}

async fn a_lapsed_lease_holds_until_it_is_taken_over(store: SharedStore) {
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    let request = request(old);
    insert(&store, &request).await;
    assert_eq!(store.take_over(at(11), &lease(new, 20), 10).await.unwrap().len(), 1);
    assert!(!store.begin_attempt(request.id, old, &under_way(1, &[1, 2])).await.unwrap());
    assert!(store.begin_attempt(request.id, new, &under_way(1, &[1, 2])).await.unwrap());
    // Whoever has the signature may end the request.
    assert!(store.finish(request.id, &completed(1, 12)).await.unwrap());
}

async fn the_first_end_stays(store: SharedStore) {
    let holder = Uuid::new_v4();
    for (first, then) in [
        (completed(1, 5), failed("too late", 6)),
        (failed("no quorum", 5), completed(1, 6)),
        (completed(1, 5), completed(1, 5)),
    ] {
        let request = request(holder);
        insert(&store, &request).await;
        assert!(store.finish(request.id, &first).await.unwrap());
        assert!(!store.finish(request.id, &then).await.unwrap());
        assert_eq!(stored(&store, request.id).await.progress.state, first);
    }
}

async fn one_of_32_ends_wins(store: SharedStore) {
    for round in 0..4 {
        let request = request(Uuid::new_v4());
        insert(&store, &request).await;
        let id = request.id;
        let outcome = |index: usize| match index % 2 {
            0 => completed(index as u8 + 1, 5),
            _ => failed(&format!("reason {index}"), 5),
        };
        let won = at_once(32, |index| {
            let (store, state) = (store.clone(), outcome(index));
            async move { store.finish(id, &state).await.unwrap() }
        })
        .await;
        let winners: Vec<_> = (0..32).filter(|&index| won[index]).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(stored(&store, id).await.progress.state, outcome(winners[0]));
    }
}

async fn a_request_does_not_end_in_a_state_that_is_no_end(store: SharedStore) {
    let request = request(Uuid::new_v4());
    insert(&store, &request).await;
    for state in [State::Pending, State::InProgress] {
        store.finish(request.id, &state).await.unwrap_err();
    }
    assert_eq!(stored(&store, request.id).await, request);
}

async fn attempts_and_ends_do_not_mix(store: SharedStore) {
    // An attempt that begins as the request ends must not take the end back.
    let holder = Uuid::new_v4();
    for round in 0..8 {
        let request = request(holder);
        insert(&store, &request).await;
        let id = request.id;
        at_once(8, |index| {
            let store = store.clone();
            async move {
                if index == 4 {
                    assert!(store.finish(id, &completed(1, 5)).await.unwrap());
                } else {
                    store.begin_attempt(id, holder, &under_way(index as u32, &[1, 2])).await.unwrap();
                }
            }
        })
        .await;
        assert_eq!(stored(&store, id).await.progress.state, completed(1, 5), "round {round}");
    }
}

async fn take_over_yields_the_oldest_lapsed_ones(store: SharedStore) {
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    let mut lapsed = Vec::new();
    for age in [3, 1, 4, 0, 2] {
        let mut request = request(old);
        // The oldest are not those whose lease lapsed first.
        request.created_at = at(-age);
        request.lease.until = at(5 - age);
        insert(&store, &request).await;
        lapsed.push(request);
    }
    lapsed.sort_by_key(|request| request.created_at);
    let mut held = request(old);
    held.created_at = at(-50);
    let mut edge = held.clone();
    (edge.id, edge.lease.until) = (Uuid::new_v4(), at(6));
    let ended = Request { id: Uuid::new_v4(), created_at: at(-60), ..edge.clone() };
    for request in [&held, &edge, &ended] {
        insert(&store, request).await;
    }
    assert!(store.finish(ended.id, &completed(1, 3)).await.unwrap());

    assert_eq!(store.take_over(at(6), &lease(new, 20), 0).await.unwrap(), []);
    for expected in lapsed.chunks(2) {
        let taken = store.take_over(at(6), &lease(new, 20), 2).await.unwrap();
        let expected: Vec<_> =
            expected.iter().map(|request| Request { lease: lease(new, 20), ..request.clone() }).collect();
        assert_eq!(taken, expected);
        for request in taken {
            assert_eq!(stored(&store, request.id).await, request);
        }
    }
    assert_eq!(store.take_over(at(6), &lease(new, 20), usize::MAX).await.unwrap(), []);
    for untouched in [&held, &edge] {
        assert_eq!(&stored(&store, untouched.id).await, untouched);
    }
    assert_eq!(stored(&store, ended.id).await.lease, ended.lease);

    // By one nanosecond, the lease that ended at 6 has lapsed.
    let next = at(6).checked_add(jiff::SignedDuration::from_nanos(1)).unwrap();
    let taken = store.take_over(next, &lease(new, 20), 10).await.unwrap();
    assert_eq!(taken.iter().map(|request| request.id).collect::<Vec<_>>(), [edge.id]);
}

async fn take_over_knows_how_far_a_request_was(store: SharedStore) {
    let (old, new) = (Uuid::new_v4(), Uuid::new_v4());
    let request = named("resumed", old);
    insert(&store, &request).await;
    assert!(store.begin_attempt(request.id, old, &under_way(3, &[2, 3])).await.unwrap());
    let taken = store.take_over(at(11), &lease(new, 20), 1).await.unwrap();
    let progress = under_way(3, &[2, 3]);
    assert_eq!(taken, [Request { progress, lease: lease(new, 20), ..request }]);
}

async fn eight_managers_take_over_each_request_once(store: SharedStore) {
    const REQUESTS: usize = 100;
    let old = Uuid::new_v4();
    let mut ids = BTreeSet::new();
    for _ in 0..REQUESTS {
        let request = request(old);
        insert(&store, &request).await;
        ids.insert(request.id);
    }
    let taken = at_once(8, |_| {
        let (store, lease) = (store.clone(), lease(Uuid::new_v4(), 1000));
        async move {
            let mut mine = Vec::new();
            // One that comes away empty may only have lost the race for these.
            let mut empty = 0;
            while empty < 20 {
                let taken = store.take_over(at(11), &lease, 7).await.unwrap();
                assert!(taken.len() <= 7);
                empty = if taken.is_empty() { empty + 1 } else { 0 };
                mine.extend(taken.iter().map(|request| (request.id, request.lease.clone())));
            }
            mine
        }
    })
    .await;
    let mut holders = BTreeMap::new();
    for (id, lease) in taken.into_iter().flatten() {
        assert_eq!(stored(&store, id).await.lease, lease);
        assert!(holders.insert(id, lease.holder).is_none(), "two managers took {id} over");
    }
    assert_eq!(holders.into_keys().collect::<BTreeSet<_>>(), ids);
}

async fn renewal_keeps_others_out(store: SharedStore) {
    let (mine, theirs) = (Uuid::new_v4(), Uuid::new_v4());
    let (kept, ended, lost) = (request(mine), request(mine), request(theirs));
    for request in [&kept, &ended, &lost] {
        insert(&store, request).await;
    }
    assert!(store.finish(ended.id, &completed(1, 5)).await.unwrap());
    store.renew(&lease(mine, 30)).await.unwrap();
    assert_eq!(stored(&store, kept.id).await, Request { lease: lease(mine, 30), ..kept.clone() });
    assert_eq!(stored(&store, ended.id).await.lease, ended.lease);
    assert_eq!(stored(&store, lost.id).await, lost);

    let third = Uuid::new_v4();
    let taken = store.take_over(at(29), &lease(third, 40), 10).await.unwrap();
    assert_eq!(taken.iter().map(|request| request.id).collect::<Vec<_>>(), [lost.id]);
    // What was lost is not won back by renewing.
    store.renew(&lease(theirs, 90)).await.unwrap();
    assert_eq!(stored(&store, lost.id).await.lease, lease(third, 40));
    // A renewal that comes late does not shorten a lease.
    store.renew(&lease(mine, 20)).await.unwrap();
    assert_eq!(stored(&store, kept.id).await.lease, lease(mine, 30));
    let taken = store.take_over(at(31), &lease(third, 40), 10).await.unwrap();
    assert_eq!(taken.iter().map(|request| request.id).collect::<Vec<_>>(), [kept.id]);
}

async fn expiry_removes_old_ends_alone(store: SharedStore) {
    let holder = Uuid::new_v4();
    let old = [named("old", holder), request(holder)];
    let (edge, unfinished) = (named("edge", holder), named("unfinished", holder));
    for request in old.iter().chain([&edge, &unfinished]) {
        insert(&store, request).await;
    }
    assert!(store.finish(old[0].id, &completed(1, 5)).await.unwrap());
    assert!(store.finish(old[1].id, &failed("no quorum", 5)).await.unwrap());
    assert!(store.finish(edge.id, &completed(1, 6)).await.unwrap());

    assert_eq!(store.expire(at(5)).await.unwrap(), 0);
    assert_eq!(store.expire(at(6)).await.unwrap(), 2);
    assert_eq!(store.expire(at(6)).await.unwrap(), 0);
    for gone in &old {
        assert_eq!(store.get(gone.id).await.unwrap(), None);
    }
    for kept in [&edge, &unfinished] {
        stored(&store, kept.id).await;
        let again = store.insert(&named(&kept.idempotency.as_ref().unwrap().key, holder)).await.unwrap();
        assert!(matches!(again, Inserted::Existing(existing) if existing.id == kept.id));
    }
    // The key of what is gone is free again.
    assert_eq!(store.find("old").await.unwrap(), None);
    insert(&store, &named("old", holder)).await;
}

async fn expiry_removes_many(store: SharedStore) {
    let requests: Vec<_> = (0..1203)
        .map(|index| {
            let mut request = request(Uuid::new_v4());
            request.progress.state = completed(1, index % 7);
            request
        })
        .collect();
    for some in requests.chunks(64) {
        join_all(some.iter().map(|request| insert(&store, request))).await;
    }
    assert_eq!(store.expire(at(100)).await.unwrap(), 1203);
    assert_eq!(store.get(requests[0].id).await.unwrap(), None);
}

async fn the_first_key_of_an_id_stands_until_a_later_epoch_of_it_comes(store: SharedStore) {
    assert_eq!(store.keys().await.unwrap(), []);
    let first = key_record("default", 2);
    assert_eq!(store.pin_key(&first).await.unwrap(), first);
    assert_eq!(store.pin_key(&first).await.unwrap(), first);
    assert_eq!(store.pin_key(&key_record("default", 1)).await.unwrap(), first);
    let another = KeyRecord { chain_code: [8; 32], ..key_record("default", 3) };
    assert_eq!(store.pin_key(&another).await.unwrap(), first);
    let other = key_record("$a.b", u64::from(u32::MAX) + 1);
    assert_eq!(store.pin_key(&other).await.unwrap(), other);
    assert_eq!(store.keys().await.unwrap(), [other.clone(), first]);
    let later = KeyRecord {
        threshold: Threshold::new(3, 5).unwrap(),
        since: Some(at(7)),
        ..key_record("default", 3)
    };
    assert_eq!(store.pin_key(&later).await.unwrap(), later);
    assert_eq!(store.pin_key(&key_record("default", 2)).await.unwrap(), later);
    assert_eq!(store.keys().await.unwrap(), [other, later]);

    let stand = at_once(16, |index| {
        let (store, key) = (store.clone(), key_record("raced", index as u64));
        async move { store.pin_key(&key).await.unwrap().epoch >= key.epoch }
    })
    .await;
    assert_eq!(stand, [true; 16]);
    assert!(store.keys().await.unwrap().contains(&key_record("raced", 15)));
    let stand = at_once(16, |index| {
        let key = KeyRecord { chain_code: [index as u8; 32], ..key_record("different", 1) };
        let store = store.clone();
        async move { store.pin_key(&key).await.unwrap() }
    })
    .await;
    assert!(stand.iter().all(|key| *key == stand[0]));
}

/// Tells how many requests a second go through the three operations of a signature.
async fn throughput(store: SharedStore) {
    const REQUESTS: usize = 3200;
    const AT_ONCE: usize = 32;
    let holder = Uuid::new_v4();
    let requests: Arc<Vec<_>> =
        Arc::new((0..REQUESTS).map(|index| named(&format!("request {index}"), holder)).collect());
    for operation in ["insert", "begin_attempt", "finish"] {
        let start = Instant::now();
        at_once(AT_ONCE, |index| {
            let (store, requests) = (store.clone(), requests.clone());
            async move {
                for request in requests.iter().skip(index).step_by(AT_ONCE) {
                    match operation {
                        "insert" => insert(&store, request).await,
                        "begin_attempt" => {
                            assert!(
                                store
                                    .begin_attempt(request.id, holder, &under_way(1, &[1, 2]))
                                    .await
                                    .unwrap()
                            );
                        }
                        _ => assert!(store.finish(request.id, &completed(1, 5)).await.unwrap()),
                    }
                }
            }
        })
        .await;
        println!("{operation}: {:.0}/s, {AT_ONCE} at once", REQUESTS as f64 / start.elapsed().as_secs_f64());
    }
}

/// Runs each of these against both stores, each time an empty one.
fn with_webhook() -> Request {
    Request { webhook: Some("https://example.com/?a=$b".into()), ..request(Uuid::new_v4()) }
}

const NONE: [Uuid; 0] = [];

/// The ids of what is due at a time, which is then due again at another.
async fn due(store: &SharedStore, now: i64, until: i64) -> Vec<Uuid> {
    let due = store.take_due(at(now), at(until), 10).await.unwrap();
    due.into_iter().map(|request| request.id).collect()
}

async fn a_webhook_is_due_from_the_end_of_its_request_until_nobody_wants_it(store: SharedStore) {
    let (first, silent) = (with_webhook(), request(Uuid::new_v4()));
    insert(&store, &first).await;
    insert(&store, &silent).await;
    assert_eq!(stored(&store, first.id).await, first);
    assert_eq!(due(&store, 100, 200).await, NONE, "it has not ended");
    for request in [&first, &silent] {
        assert!(store.finish(request.id, &completed(1, 5)).await.unwrap());
    }
    assert_eq!(store.take_due(at(10), at(20), 0).await.unwrap(), []);
    assert_eq!(due(&store, 10, 20).await, [first.id]);
    assert_eq!(stored(&store, first.id).await.webhook, first.webhook);
    assert_eq!(due(&store, 19, 30).await, NONE, "somebody has taken it");
    assert_eq!(due(&store, 20, 30).await, [first.id], "that one has died");
    store.put_off(first.id, Some(at(25))).await.unwrap();
    assert_eq!(due(&store, 24, 40).await, NONE);
    assert_eq!(due(&store, 25, 40).await, [first.id]);
    store.put_off(first.id, None).await.unwrap();
    assert_eq!(due(&store, 1000, 2000).await, NONE);
    // What is over stays over, and what never was does not begin.
    store.put_off(first.id, Some(at(50))).await.unwrap();
    store.put_off(silent.id, Some(at(50))).await.unwrap();
    store.put_off(Uuid::new_v4(), Some(at(50))).await.unwrap();
    assert_eq!(due(&store, 1000, 2000).await, NONE);
    // It goes with its request.
    let second = with_webhook();
    insert(&store, &second).await;
    assert!(store.finish(second.id, &failed("no", 5)).await.unwrap());
    assert_eq!(store.expire(at(6)).await.unwrap(), 3);
    assert_eq!(due(&store, 1000, 2000).await, NONE);
}

async fn eight_managers_take_each_due_webhook_once(store: SharedStore) {
    let mut ids = BTreeSet::new();
    for _ in 0..40 {
        let request = with_webhook();
        insert(&store, &request).await;
        assert!(store.finish(request.id, &completed(1, 5)).await.unwrap());
        ids.insert(request.id);
    }
    let taken = at_once(8, |_| {
        let store = store.clone();
        async move {
            let mut taken = Vec::new();
            loop {
                let some = due(&store, 10, 20).await;
                if some.is_empty() {
                    return taken;
                }
                taken.extend(some);
            }
        }
    })
    .await
    .concat();
    assert_eq!(taken.len(), 40);
    assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), ids);
}

/// All pages of a list.
async fn listed(store: &SharedStore, filter: Filter) -> Vec<Vec<Uuid>> {
    let mut pages = Vec::new();
    let mut after = filter.after;
    loop {
        let Listed { requests, next } = store.list(&Filter { after, ..filter.clone() }).await.unwrap();
        assert!(requests.len() <= filter.limit);
        pages.push(requests.iter().map(|request| request.id).collect());
        match next {
            None => return pages,
            next => after = next,
        }
        assert!(pages.len() < 100, "the list has no end");
    }
}

async fn the_list_has_the_newest_first_and_goes_on_where_it_ended(store: SharedStore) {
    assert_eq!(store.list(&Filter::newest(3)).await.unwrap(), Listed { requests: vec![], next: None });
    // Three at each of three times: those of one time are in some order, and in no page twice.
    let mut expected = BTreeMap::new();
    for seconds in [3, 1, 2] {
        for _ in 0..3 {
            let request = Request { created_at: at(seconds), ..request(Uuid::new_v4()) };
            insert(&store, &request).await;
            expected.entry(seconds).or_insert_with(BTreeSet::new).insert(request.id);
        }
    }
    for limit in [1, 2, 4, 9, 10] {
        let all = listed(&store, Filter::newest(limit)).await.concat();
        assert_eq!(all.len(), 9, "{limit}");
        for (ids, (_, expected)) in all.chunks(3).zip(expected.iter().rev()) {
            assert_eq!(ids.iter().copied().collect::<BTreeSet<_>>(), *expected, "{limit}");
        }
    }
    // What comes in meanwhile moves nothing.
    let first = store.list(&Filter::newest(4)).await.unwrap();
    insert(&store, &Request { created_at: at(9), ..request(Uuid::new_v4()) }).await;
    let rest = listed(&store, Filter { after: first.next, ..Filter::newest(4) }).await.concat();
    let mut all: Vec<_> = first.requests.iter().map(|request| request.id).collect();
    all.extend(rest);
    assert_eq!(all.iter().copied().collect::<BTreeSet<_>>().len(), 9);
    assert_eq!(all.len(), 9);
    // What is removed is in no list.
    let gone = stored(&store, all[0]).await;
    assert!(store.finish(gone.id, &completed(1, 5)).await.unwrap());
    assert_eq!(store.expire(at(6)).await.unwrap(), 1);
    assert!(!listed(&store, Filter::newest(4)).await.concat().contains(&gone.id));
}

async fn the_list_has_what_its_filter_lets_through(store: SharedStore) {
    let holder = Uuid::new_v4();
    let mut ids = Vec::new();
    for (seconds, key) in [(1, "hot"), (2, "cold"), (3, "hot"), (4, "hot")] {
        let mut request = Request { created_at: at(seconds), ..request(holder) };
        request.intent.key = key.into();
        insert(&store, &request).await;
        ids.push(request.id);
    }
    assert!(store.begin_attempt(ids[1], holder, &under_way(1, &[1, 2])).await.unwrap());
    assert!(store.finish(ids[2], &completed(1, 5)).await.unwrap());
    assert!(store.finish(ids[3], &failed("no", 5)).await.unwrap());
    let all = Filter::newest(2);
    for (filter, expected) in [
        (Filter { status: Some("Pending"), ..all.clone() }, vec![ids[0]]),
        (Filter { status: Some("InProgress"), ..all.clone() }, vec![ids[1]]),
        (Filter { status: Some("Completed"), ..all.clone() }, vec![ids[2]]),
        (Filter { status: Some("Failed"), ..all.clone() }, vec![ids[3]]),
        (Filter { key: Some("hot".into()), ..all.clone() }, vec![ids[3], ids[2], ids[0]]),
        (Filter { key: Some("ho".into()), ..all.clone() }, vec![]),
        (Filter { from: Some(at(2)), ..all.clone() }, vec![ids[3], ids[2], ids[1]]),
        (Filter { until: Some(at(2)), ..all.clone() }, vec![ids[0]]),
        (Filter { from: Some(at(2)), until: Some(at(4)), ..all.clone() }, vec![ids[2], ids[1]]),
        (Filter { from: Some(at(4)), until: Some(at(2)), ..all.clone() }, vec![]),
        (Filter { key: Some("hot".into()), status: Some("Failed"), from: Some(at(1)), ..all }, vec![ids[3]]),
    ] {
        assert_eq!(listed(&store, filter.clone()).await.concat(), expected, "{filter:?}");
    }
}

macro_rules! contract {
    ($($(#[$attribute:meta])* $case:ident)*) => {
        mod embedded {
            $(
                $(#[$attribute])*
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    let (_directory, store) = super::embedded_store();
                    super::$case(store).await;
                }
            )*
        }

        mod mongodb {
            $(
                $(#[$attribute])*
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::with_mongodb(super::$case).await;
                }
            )*
        }
    };
}

contract! {
    keeps_every_field
    keeps_messages_of_any_length
    knows_no_other_requests
    takes_an_insertion_twice_for_one
    one_idempotency_key_names_one_request
    one_of_64_insertions_under_one_key_wins
    one_request_inserted_64_times_is_stored_once
    idempotency_keys_may_hold_any_text
    attempts_are_begun_by_the_holder_until_the_end
    a_lapsed_lease_holds_until_it_is_taken_over
    the_first_end_stays
    one_of_32_ends_wins
    a_request_does_not_end_in_a_state_that_is_no_end
    attempts_and_ends_do_not_mix
    take_over_yields_the_oldest_lapsed_ones
    take_over_knows_how_far_a_request_was
    eight_managers_take_over_each_request_once
    renewal_keeps_others_out
    expiry_removes_old_ends_alone
    expiry_removes_many
    the_list_has_the_newest_first_and_goes_on_where_it_ended
    the_list_has_what_its_filter_lets_through
    a_webhook_is_due_from_the_end_of_its_request_until_nobody_wants_it
    eight_managers_take_each_due_webhook_once
    the_first_key_of_an_id_stands_until_a_later_epoch_of_it_comes
    #[ignore = "a measurement"]
    throughput
}

fn embedded_store() -> (TempDir, SharedStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&directory.path().join("store.redb")).unwrap();
    (directory, Arc::new(store))
}

fn mongodb_uri() -> String {
    std::env::var("MONGODB_URI").unwrap_or_else(|_| "mongodb://localhost:27017".to_owned())
}

/// Runs a test with a store in a database of its own.
async fn with_mongodb<F>(case: impl FnOnce(SharedStore) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    with_database(|uri, database| case(Arc::new(MongoStore::connect(&uri, database.name()).unwrap()))).await;
}

/// Runs a test with a database of its own, and removes the database whatever came of it.
async fn with_database<F>(case: impl FnOnce(String, Database) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let uri = mongodb_uri();
    let mut options = ClientOptions::parse(&uri).await.expect("MONGODB_URI is a URI of MongoDB");
    options.server_selection_timeout = Some(Duration::from_secs(3));
    let name = format!("tss_test_{}", Uuid::new_v4().simple());
    let database = Client::with_options(options).unwrap().database(&name);
    if let Err(error) = database.run_command(doc! { "ping": 1 }).await {
        panic!("MongoDB at {uri} is not reachable: set MONGODB_URI or run tests/run services\n{error}");
    }
    let outcome = tokio::spawn(case(uri, database.clone())).await;
    database.drop().await.unwrap();
    outcome.unwrap();
}

/// Only of the embedded store: its file.
mod embedded_file {
    use super::*;

    fn open(path: &Path) -> SharedStore {
        Arc::new(EmbeddedStore::open(path).unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn everything_is_there_after_opening_it_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let (holder, key) = (Uuid::new_v4(), key_record("default", 1));
        let [pending, begun, done, expired] = ["1", "2", "3", "4"].map(|key| named(key, holder));

        let store = open(&path);
        for request in [&pending, &begun, &done, &expired] {
            insert(&store, request).await;
        }
        store.pin_key(&key).await.unwrap();
        assert!(store.begin_attempt(begun.id, holder, &under_way(1, &[1, 2])).await.unwrap());
        assert!(store.finish(done.id, &completed(1, 9)).await.unwrap());
        assert!(store.finish(expired.id, &completed(1, 5)).await.unwrap());
        assert_eq!(store.expire(at(9)).await.unwrap(), 1);
        store.renew(&lease(holder, 20)).await.unwrap();
        let mut before = Vec::new();
        for request in [&pending, &begun, &done] {
            before.push(stored(&store, request.id).await);
        }
        drop(store);

        let store = open(&path);
        for request in before {
            assert_eq!(stored(&store, request.id).await, request);
            let key = &request.idempotency.as_ref().unwrap().key;
            let again = store.insert(&named(key, holder)).await.unwrap();
            assert_eq!(again, Inserted::Existing(Box::new(request)));
        }
        assert_eq!(store.keys().await.unwrap(), [key]);
        assert_eq!(store.get(expired.id).await.unwrap(), None);
        assert_eq!(store.take_over(at(20), &lease(holder, 40), 10).await.unwrap(), []);
        assert_eq!(store.take_over(at(21), &lease(holder, 40), 10).await.unwrap().len(), 2);
        assert_eq!(store.expire(at(10)).await.unwrap(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_answered_survives_a_kill() {
        // A copy of the file while it is open is what a killed process leaves.
        let directory = tempfile::tempdir().unwrap();
        let (path, copy) = (directory.path().join("store.redb"), directory.path().join("copy.redb"));
        let store = open(&path);
        let mut requests = Vec::new();
        for _ in 0..50 {
            let request = request(Uuid::new_v4());
            insert(&store, &request).await;
            requests.push(request);
        }
        std::fs::copy(&path, &copy).unwrap();
        let left = open(&copy);
        for request in requests {
            assert_eq!(stored(&left, request.id).await, request);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_second_opening_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let store = open(&path);
        let refused = EmbeddedStore::open(&path).unwrap_err();
        assert!(
            matches!(&refused, StoreError::Down(reason) if reason.contains("has the file open")),
            "{refused}"
        );
        insert(&store, &request(Uuid::new_v4())).await;
        drop(store);
        open(&path);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_no_store_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        for garbage in [vec![7; 3], vec![0; 4096], vec![7; 100_000], b"redb\x1a\n\xa9\r\n".repeat(1000)] {
            std::fs::write(&path, &garbage).unwrap();
            let error = EmbeddedStore::open(&path).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt(_)), "{} bytes: {error}", garbage.len());
            assert_eq!(std::fs::read(&path).unwrap(), garbage, "the file of someone else was changed");
        }
        let missing = directory.path().join("missing").join("store.redb");
        assert!(matches!(EmbeddedStore::open(&missing), Err(StoreError::Down(_))));
        assert!(matches!(EmbeddedStore::open(directory.path()), Err(StoreError::Down(_))));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn damage_is_an_error_and_not_a_panic() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let store = open(&path);
        let mut requests = Vec::new();
        for index in 0..200 {
            let request = named(&index.to_string(), Uuid::new_v4());
            insert(&store, &request).await;
            requests.push(request);
        }
        drop(store);
        let whole = std::fs::read(&path).unwrap();

        let mut damaged = Vec::new();
        for eighths in 0..8 {
            damaged.push(whole[..whole.len() / 8 * eighths + usize::from(eighths == 0)].to_vec());
        }
        for start in (0..whole.len()).step_by(whole.len() / 100) {
            let mut bytes = whole.clone();
            let end = (start + 64).min(bytes.len());
            bytes[start..end].iter_mut().for_each(|byte| *byte = !*byte);
            damaged.push(bytes);
        }
        let mut refused = 0;
        for bytes in damaged {
            std::fs::write(&path, bytes).unwrap();
            match EmbeddedStore::open(&path) {
                Err(error) => {
                    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
                    refused += 1;
                }
                // The damage was where nothing is stored, or only the last commit is gone; what
                // is there is whole.
                Ok(store) => {
                    for request in &requests {
                        match store.get(request.id).await.unwrap() {
                            Some(found) => assert_eq!(&found, request),
                            None => panic!("request {} is gone without an error", request.id),
                        }
                    }
                }
            }
        }
        assert!(refused >= 8, "only {refused} damaged files were refused");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_writes_at_once_are_committed_together() {
        let (_directory, store) = embedded_store();
        let ids = at_once(500, |_| {
            let (store, request) = (store.clone(), request(Uuid::new_v4()));
            async move {
                insert(&store, &request).await;
                // What was answered can be read.
                assert_eq!(stored(&store, request.id).await, request);
                request.id
            }
        })
        .await;
        assert_eq!(ids.into_iter().collect::<BTreeSet<_>>().len(), 500);
    }

    /// The leases are looked through every second, among however many requests that have ended.
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "a measurement"]
    async fn cost_of_leases() {
        let finished: usize =
            std::env::var("FINISHED").map_or(100_000, |count| count.parse().expect("FINISHED is a number"));
        const UNFINISHED: usize = 10_000;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let store = open(&path);
        let holder = Uuid::new_v4();
        let start = Instant::now();
        at_once(400, |index| {
            let store = store.clone();
            async move {
                for number in (0..UNFINISHED + finished).skip(index).step_by(400) {
                    let mut request = named(&number.to_string(), holder);
                    if number >= UNFINISHED {
                        request.progress.state = completed(1, 5);
                    }
                    insert(&store, &request).await;
                }
            }
        })
        .await;
        println!("{} insertions: {:?}", UNFINISHED + finished, start.elapsed());
        let mut times = BTreeMap::<_, Duration>::new();
        for round in 0..10 {
            let start = Instant::now();
            store.renew(&lease(holder, 20 + round)).await.unwrap();
            *times.entry("renew").or_default() += start.elapsed() / 10;
            let start = Instant::now();
            assert_eq!(store.take_over(at(11), &lease(holder, 20), 100).await.unwrap(), []);
            *times.entry("take_over of none").or_default() += start.elapsed() / 10;
            let start = Instant::now();
            insert(&store, &request(holder)).await;
            *times.entry("insert").or_default() += start.elapsed() / 10;
        }
        println!("{times:?}, {} bytes", std::fs::metadata(&path).unwrap().len());
        drop(store);
        let start = Instant::now();
        drop(open(&path));
        println!("opened again in {:?}", start.elapsed());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn closing_it_waits_for_what_was_begun() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.redb");
        let store = open(&path);
        let request = request(Uuid::new_v4());
        // Asked, and given up before there is an answer.
        drop(store.insert(&request).now_or_never());
        drop(store);
        assert_eq!(stored(&open(&path), request.id).await, request);
    }
}

/// Only of MongoDB: its indexes, without which an idempotency key could name two requests.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_to_mongodb_before_its_indexes_are_there() {
    with_database(|uri, database| async move {
        // Two managers, and nobody has said that the store is to be made ready.
        let stores = [(); 2].map(|()| MongoStore::connect(&uri, database.name()).unwrap());
        let lease = lease(Uuid::new_v4(), 20);
        let [one, two] = [(); 2].map(|()| named("order-1", Uuid::new_v4()));
        let (renewed, first, second) =
            tokio::join!(stores[0].renew(&lease), stores[0].insert(&one), stores[1].insert(&two));
        renewed.unwrap();
        let new =
            [first, second].into_iter().filter(|inserted| matches!(inserted, Ok(Inserted::New))).count();
        assert_eq!(new, 1);
        let requests = database.collection::<::mongodb::bson::Document>("signing_requests");
        let indexes = requests.list_index_names().await.unwrap();
        for index in ["idempotency_keys", "unfinished_by_lease", "webhooks_due", "list", "finished_by_time"] {
            assert!(indexes.iter().any(|name| name == index), "{indexes:?}");
        }
    })
    .await;
}

/// Only of MongoDB: its absence.
mod mongodb_absent {
    use super::*;

    async fn every_operation_is_down(uri: &str) {
        let store = MongoStore::connect(uri, "absent").unwrap();
        let request = request(Uuid::new_v4());
        let start = Instant::now();
        let lease = lease(Uuid::new_v4(), 20);
        let (progress, state) = (under_way(1, &[1, 2]), completed(1, 5));
        let newest = Filter::newest(1);
        let (
            inserted,
            got,
            found,
            begun,
            finished,
            taken,
            renewed,
            expired,
            pinned,
            keys,
            listed,
            due,
            put_off,
            pinged,
            prepared,
        ) = tokio::join!(
            store.insert(&request),
            store.get(request.id),
            store.find("order-1"),
            store.begin_attempt(request.id, lease.holder, &progress),
            store.finish(request.id, &state),
            store.take_over(at(20), &lease, 10),
            store.renew(&lease),
            store.expire(at(20)),
            async { store.pin_key(&key_record("default", 1)).await },
            store.keys(),
            store.list(&newest),
            store.take_due(at(20), at(30), 1),
            store.put_off(request.id, None),
            store.ping(),
            store.prepare(),
        );
        let elapsed = start.elapsed();
        assert!(elapsed < OPERATION_TIMEOUT + Duration::from_secs(1), "{elapsed:?}");
        for error in [
            inserted.unwrap_err(),
            got.unwrap_err(),
            found.unwrap_err(),
            begun.unwrap_err(),
            finished.unwrap_err(),
            taken.unwrap_err(),
            renewed.unwrap_err(),
            expired.unwrap_err(),
            pinned.unwrap_err(),
            keys.unwrap_err(),
            listed.unwrap_err(),
            due.unwrap_err(),
            put_off.unwrap_err(),
            pinged.unwrap_err(),
            prepared.unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::Down(_)), "{error}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_is_not_there_is_down() {
        // A port that was just free.
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        every_operation_is_down(&format!("mongodb://127.0.0.1:{port}")).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_says_nothing_is_down() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                open.push(connection);
            }
        });
        every_operation_is_down(&format!("mongodb://127.0.0.1:{port}")).await;
        silent.abort();
    }

    #[test]
    fn a_malformed_uri_is_refused() {
        for uri in
            ["", "localhost", "http://localhost", "mongodb://", "mongodb://localhost:port", "mongodb://u:p@"]
        {
            let error = MongoStore::connect(uri, "tss").unwrap_err();
            assert!(matches!(&error, StoreError::Down(reason) if reason.contains("malformed")), "{error}");
        }
    }

    #[test]
    fn its_password_is_not_shown() {
        let store = MongoStore::connect("mongodb://user:hunter2@localhost/", "tss").unwrap();
        assert!(!format!("{store:?}").contains("hunter2"));
    }
}
