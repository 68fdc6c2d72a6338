//! The key gets new shares, for the same signers or for others: its public key stays, and it signs all the while.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::ApiResource;
use serde_json::{Value, json};
use tss_mpc::{PrivateKey, ShareDocument, Threshold};
use tss_operator::cluster::names;
use tss_operator::condition::is_true;
use tss_operator::crd::{TssCluster, TssClusterStatus};

use crate::history::{History, Objects};
use crate::kubelet::{Kubelet, existing_key, task, task_of};
use crate::operator::{Operator, is_settled};
use crate::server::{Namespace, OFTEN, cluster, in_namespace, until};
use crate::wire::{Fault, How};

/// Whether the shares are those that are wanted, of this epoch, and nothing is left to do.
pub(crate) fn is_current(status: &TssClusterStatus, epoch: i64) -> bool {
    is_settled(status) && status.epoch == Some(epoch) && is_true(&status.conditions, "SharesCurrent")
}

/// Passes until the shares of an epoch are in use, or the line is cut: yields whether they are.
async fn reach(operator: &Operator, epoch: i64) -> bool {
    let what = format!("the shares of epoch {epoch} are in use");
    operator.pass_until("wallet", &what, |status| is_current(status, epoch)).await
}

/// Has the shares made anew that there are now.
pub(crate) async fn ask(namespace: &Namespace) {
    let made = async || {
        let epoch = namespace.status("wallet").await.epoch.unwrap();
        let map = namespace.get::<ConfigMap>(&names::key("wallet", epoch)).await.unwrap();
        map.metadata.creation_timestamp.unwrap().0
    };
    // Times of Kubernetes are whole seconds.
    let now = until("a second has passed since they were made", async || {
        let now = Timestamp::now();
        (now.duration_since(made().await).as_secs() >= 1).then_some(now)
    })
    .await;
    namespace.change("wallet", json!({"refresh": {"olderThan": format!("{now:.0}")}})).await;
}

/// Another threshold, or other signers.
async fn want(namespace: &Namespace, threshold: i32, signers: i32) {
    namespace.change("wallet", json!({"threshold": threshold, "signers": signers})).await;
}

async fn share_in(namespace: &Namespace, secret: &str) -> Option<ShareDocument> {
    let data = namespace.get::<Secret>(secret).await?.data?;
    Some(ShareDocument::from_json(&data["share"].0).unwrap())
}

/// The Secrets of a record's shares.
fn shares_of(record: &Value) -> Vec<String> {
    let shares = record["shares"].as_array().unwrap().iter();
    shares.map(|secrets| secrets["share"].as_str().unwrap().to_owned()).collect()
}

/// The Secrets with shares that are there, and their versions.
async fn versions(namespace: &Namespace) -> BTreeMap<String, String> {
    let all = namespace.everything().await.into_iter();
    all.filter(|(object, _)| object.starts_with("Secret ") && object.contains("-e")).collect()
}

/// That the signers have shares of this epoch of the key and no others, all of one making, which give the key.
async fn assert_epoch(namespace: &Namespace, key: &TssClusterStatus, epoch: i64, t: u8, n: u8) {
    let threshold = Threshold::new(t, n).unwrap();
    let status = namespace.status("wallet").await;
    assert_eq!((&status.public_key, &status.addresses), (&key.public_key, &key.addresses));
    assert_eq!((status.epoch, status.threshold), (Some(epoch), Some(threshold.to_string())));
    assert_eq!(status.ready_signers, Some(format!("{n}/{n}")));
    assert_eq!(status.renewal, None);
    let record = namespace.record_of("wallet", epoch).await.expect("a record of the epoch in force");
    assert_eq!(
        (&record["commitment"], &record["roster"]),
        (&json!(status.commitment), &json!(status.roster))
    );
    let names = shares_of(&record);
    assert_eq!(names.len(), usize::from(n));
    let mut shares = Vec::new();
    for (index, name) in (1..).zip(&names) {
        let secret = namespace.get::<Secret>(name).await.unwrap_or_else(|| panic!("no Secret {name}"));
        assert!(secret.owner_references().is_empty() && secret.immutable == Some(true), "{name}");
        let share = share_in(namespace, name).await.unwrap();
        assert_eq!((share.core.index.get(), share.core.threshold), (index, threshold));
        assert_eq!(i64::try_from(share.epoch).unwrap(), epoch);
        shares.push(share);
    }
    let last = shares.split_off(usize::from(n - t));
    let whole = PrivateKey::reconstruct(&last).expect("the shares are of one making");
    assert_eq!(Some(hex::encode(whole.public_key().to_compressed())), key.public_key);
    // Each signer has its own, and knows the others.
    let sets = namespace.list::<StatefulSet>().await;
    assert_eq!(sets.len(), usize::from(n));
    for set in sets {
        let index: usize = set.name_any().rsplit('-').next().unwrap().parse().unwrap();
        let text = serde_json::to_string(&set.spec).unwrap();
        for (place, name) in (1..).zip(&names) {
            assert_eq!(text.contains(&format!("\"secretName\":\"{name}\"")), place == index, "{text}");
        }
        assert!(text.contains(&format!("\"name\":{}", record["roster"])), "{text}");
    }
    let roster = namespace.get::<ConfigMap>(record["roster"].as_str().unwrap()).await.expect("a roster");
    tss_common::identity::Roster::from_toml(&roster.data.unwrap()["roster.toml"], n).unwrap();
    until("what was prepared is gone", async || {
        let jobs = namespace.list::<k8s_openapi::api::batch::v1::Job>().await;
        let secrets = namespace.list::<Secret>().await;
        let owned = secrets.iter().any(|secret| !secret.owner_references().is_empty());
        (jobs.is_empty() && !owned).then_some(())
    })
    .await;
}

/// A cluster that signs, and what is known of its key.
async fn ready(namespace: &Namespace, t: i32, n: i32) -> (Kubelet, Operator, TssClusterStatus) {
    let kubelet = Kubelet::start(namespace);
    let operator = Operator::new(namespace).await;
    namespace.apply(cluster("wallet", t, n)).await;
    operator.settle("wallet").await;
    let status = namespace.status("wallet").await;
    (kubelet, operator, status)
}

#[tokio::test]
async fn shares_that_are_older_than_a_time_are_made_anew_and_those_before_are_left_to_be_deleted() {
    in_namespace(async |namespace| {
        let (_kubelet, operator, key) = ready(namespace, 2, 3).await;
        let first = namespace.record("wallet").await.unwrap();
        let before = versions(namespace).await;
        assert_eq!(before.len(), 3);
        ask(namespace).await;
        reach(&operator, 2).await;
        assert_epoch(namespace, &key, 2, 2, 3).await;
        assert_eq!(namespace.record("wallet").await, Some(first.clone()));
        let second = namespace.record_of("wallet", 2).await.unwrap();
        assert_ne!(second["commitment"], first["commitment"]);
        // The same signers have the same roster, and shares under other names.
        assert_eq!(second["roster"], first["roster"]);
        let after = versions(namespace).await;
        assert_eq!(after.len(), 6);
        assert!(
            before.iter().all(|(name, version)| after.get(name) == Some(version)),
            "{before:?} {after:?}"
        );
        assert_eq!(namespace.status("wallet").await.retired_shares, shares_of(&first));
        until("a person is told", async || {
            let events = namespace.list::<Event>().await;
            let told = |event: &Event| event.reason.as_deref() == Some("SharesRenewed");
            events.iter().any(told).then_some(())
        })
        .await;

        // Then nothing is written, however often it is looked.
        let other = Operator::new(namespace).await;
        for _ in 0..5 {
            other.pass("wallet").await.unwrap();
        }
        assert_eq!(other.wire.writes(), Vec::<String>::new());

        // Once more: what is two epochs behind is forgotten, and no share.
        ask(namespace).await;
        reach(&operator, 3).await;
        assert_epoch(namespace, &key, 3, 2, 3).await;
        until("the first record is gone", async || {
            let _ = operator.pass("wallet").await;
            namespace.record("wallet").await.is_none().then_some(())
        })
        .await;
        assert_eq!(namespace.record_of("wallet", 2).await, Some(second.clone()));
        assert_eq!(namespace.status("wallet").await.retired_shares, shares_of(&second));
        assert_eq!(versions(namespace).await.len(), 9);
    })
    .await;
}

/// Which signers there were, with which of them ready.
fn signers(state: &Objects) -> (BTreeSet<u8>, BTreeSet<u8>) {
    let index = |name: &str| name.strip_prefix("wallet-signer-")?.split('-').next()?.parse::<u8>().ok();
    let is_ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
        pod["metadata"]["deletionTimestamp"].is_null() && ready.any(|condition| condition["status"] == "True")
    };
    let (mut sets, mut ready) = (BTreeSet::new(), BTreeSet::new());
    for ((kind, name), object) in state {
        match (kind.as_str(), index(name)) {
            ("StatefulSet", Some(index)) => drop(sets.insert(index)),
            ("Pod", Some(index)) if is_ready(object) => drop(ready.insert(index)),
            _ => {}
        }
    }
    (sets, ready)
}

/// Which signers' Pods were ready and had shares of this epoch.
fn have(state: &Objects, epoch: i64) -> usize {
    let (_, ready) = signers(state);
    let has = |index: &&u8| {
        let pod = &state[&("Pod".to_owned(), format!("wallet-signer-{index}-0"))];
        pod["spec"]["volumes"].to_string().contains(&format!("-e{epoch}-"))
    };
    ready.iter().filter(has).count()
}

#[tokio::test]
async fn a_key_goes_to_more_signers_and_back_with_its_addresses_and_one_signer_at_a_time() {
    in_namespace(async |namespace| {
        let (kubelet, operator, key) = ready(namespace, 2, 3).await;
        kubelet.delay(Duration::from_millis(300));
        let kinds = [ApiResource::erase::<StatefulSet>(&()), ApiResource::erase::<Pod>(&())];
        let history = History::of(namespace, &kinds).await;
        want(namespace, 3, 5).await;
        reach(&operator, 2).await;
        assert_epoch(namespace, &key, 2, 3, 5).await;
        assert_eq!(namespace.status("wallet").await.retired_shares.len(), 3);
        for (change, state) in history.states() {
            // A signer is away at a time, and the new ones until they have come.
            let (_, ready) = signers(&state);
            let old = ready.iter().filter(|&&index| index <= 3).count();
            assert!(old >= 2, "{ready:?} after {} {}", change.kind, change.name);
        }
        drop(history);

        let history = History::of(namespace, &kinds).await;
        want(namespace, 2, 3).await;
        reach(&operator, 3).await;
        assert_epoch(namespace, &key, 3, 2, 3).await;
        let mut left = 0;
        for (change, state) in history.states() {
            let (sets, ready) = signers(&state);
            if change.kind == "StatefulSet" && change.object.is_none() {
                left += 1;
                // As many as signed before, without which managers do not take to the new shares.
                assert!(have(&state, 3) >= 3, "{} left when {ready:?} were ready", change.name);
            }
            if sets.len() == 5 {
                assert!(ready.len() >= 4, "{ready:?} after {} {}", change.kind, change.name);
            }
        }
        assert_eq!(left, 2);
        // A signer that comes again is who it was.
        let identity = namespace.get::<Secret>("wallet-signer-4-identity").await.unwrap();
        want(namespace, 2, 4).await;
        reach(&operator, 4).await;
        assert_epoch(namespace, &key, 4, 2, 4).await;
        let again = namespace.get::<Secret>("wallet-signer-4-identity").await.unwrap();
        assert_eq!(identity.resource_version(), again.resource_version());
    })
    .await;
}

#[tokio::test]
async fn a_share_that_is_lost_comes_back_with_the_next_ones() {
    in_namespace(async |namespace| {
        let (_kubelet, operator, key) = ready(namespace, 2, 3).await;
        let record = namespace.record("wallet").await.unwrap();
        namespace.remove::<Secret>(&shares_of(&record)[0]).await;
        ask(namespace).await;
        let prepared = |status: &TssClusterStatus| {
            status.renewal.as_ref().is_some_and(|renewal| renewal.roster.is_some())
        };
        operator.pass_until("wallet", "it is known who has a share", prepared).await;
        assert_eq!(namespace.status("wallet").await.renewal.unwrap().holders, [2, 3]);
        reach(&operator, 2).await;
        assert_epoch(namespace, &key, 2, 2, 3).await;

        // With an identity it is the same, and the roster is another.
        namespace.remove::<Secret>("wallet-signer-2-identity").await;
        ask(namespace).await;
        reach(&operator, 3).await;
        assert_epoch(namespace, &key, 3, 2, 3).await;
        assert_ne!(namespace.status("wallet").await.roster.as_deref(), Some("wallet-roster"));

        // Two of three are too many: nothing comes of it, and nothing is touched.
        let record = namespace.record_of("wallet", 3).await.unwrap();
        for name in &shares_of(&record)[..2] {
            namespace.remove::<Secret>(name).await;
        }
        ask(namespace).await;
        let failed = |status: &TssClusterStatus| {
            status.renewal.as_ref().is_some_and(|renewal| renewal.tries.failures == 1)
        };
        operator.pass_until("wallet", "it fails", failed).await;
        let why = namespace.status("wallet").await.renewal.unwrap().tries.last_failure.unwrap();
        assert!(why.contains("1 of the 2 shares that are needed are there; signer 1: error: "), "{why}");
        assert_eq!(namespace.record_of("wallet", 4).await, None);
    })
    .await;
}

#[tokio::test]
async fn new_shares_that_cannot_be_made_are_told_of_and_the_network_signs_on() {
    in_namespace(async |namespace| {
        let (kubelet, operator, key) = ready(namespace, 2, 3).await;
        kubelet.fail(task("renew"), "RabbitMQ cannot be reached");
        ask(namespace).await;
        let condition = |status: &TssClusterStatus, kind: &str| {
            status.conditions.iter().find(|one| one.type_ == kind).cloned().unwrap()
        };
        operator
            .pass_until("wallet", "a second try has failed", |status| {
                let failures = status.renewal.as_ref().map_or(0, |renewal| renewal.tries.failures);
                failures == 2 && condition(status, "SharesCurrent").reason == "RenewalFailed"
            })
            .await;
        let status = namespace.status("wallet").await;
        let shares = condition(&status, "SharesCurrent");
        assert_eq!(shares.status, "False");
        assert!(shares.message.contains("error: RabbitMQ cannot be reached"), "{}", shares.message);
        assert!(is_true(&status.conditions, "Ready"), "{:#?}", status.conditions);
        assert_eq!((status.epoch, status.ready_signers.as_deref()), (Some(1), Some("3/3")));
        assert_eq!(namespace.record_of("wallet", 2).await, None);
        assert_eq!(namespace.kept_shares_of(2).await, Vec::<String>::new());
        until("a person is told", async || {
            let events = namespace.list::<Event>().await;
            let told = |event: &Event| {
                event.reason.as_deref() == Some("RenewalFailed")
                    && event.type_.as_deref() == Some("Warning")
                    && event.note.as_deref().unwrap_or_default().contains("RabbitMQ cannot be reached")
            };
            events.iter().any(told).then_some(())
        })
        .await;
        kubelet.release();
        reach(&operator, 2).await;
        assert_epoch(namespace, &key, 2, 2, 3).await;
    })
    .await;
}

#[tokio::test]
async fn reports_of_anything_but_new_shares_of_the_key_change_nothing() {
    let other = "02".to_owned() + &"ab".repeat(32);
    for (fields, expected) in [
        (json!({"public_key": other}), "expected new ones of"),
        (json!({"epoch": 1}), "at epoch 1: expected new ones"),
    ] {
        in_namespace(async |namespace| {
            let (kubelet, operator, key) = ready(namespace, 2, 2).await;
            kubelet.report(task("renew"), fields.clone());
            ask(namespace).await;
            let failed = |status: &TssClusterStatus| {
                status.renewal.as_ref().is_some_and(|renewal| renewal.tries.failures == 1)
            };
            operator.pass_until("wallet", expected, failed).await;
            let why = namespace.status("wallet").await.renewal.unwrap().tries.last_failure.unwrap();
            assert!(why.contains(expected), "{why}");
            assert_eq!(namespace.kept_shares_of(2).await, Vec::<String>::new());
            kubelet.release();
            reach(&operator, 2).await;
            assert_epoch(namespace, &key, 2, 2, 2).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_cluster_that_is_deleted_while_shares_are_made_comes_back_with_its_key_and_makes_them() {
    for (held, stored) in [("renew", 1), ("keep", 1)] {
        in_namespace(async |namespace| {
            let (kubelet, operator, key) = ready(namespace, 2, 3).await;
            kubelet.hold(task_of(held, 2));
            want(namespace, 2, 4).await;
            until("the others have stored theirs", async || {
                let _ = operator.pass("wallet").await;
                let secrets = namespace.list::<Secret>().await;
                let names = secrets.iter().map(|secret| secret.name_any());
                let of = |name: &String| match held {
                    "renew" => name.starts_with("wallet-renew-"),
                    _ => name.contains("-e2-"),
                };
                (names.filter(of).count() >= stored).then_some(())
            })
            .await;
            namespace.remove::<TssCluster>("wallet").await;
            until("it is gone", async || {
                let _ = operator.pass("wallet").await;
                let left = namespace.everything().await;
                let gone = |object: &String| !object.starts_with("Pod ") && !object.starts_with("Job ");
                (left.keys().all(gone) && !left.contains_key("TssCluster wallet")).then_some(())
            })
            .await;
            kubelet.release();
            namespace.apply(cluster("wallet", 2, 4)).await;
            reach(&operator, 2).await;
            assert_epoch(namespace, &key, 2, 2, 4).await;
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_wanted_meanwhile_comes_after_what_is_decided() {
    in_namespace(async |namespace| {
        let (kubelet, operator, key) = ready(namespace, 2, 3).await;
        // Before: another try.
        kubelet.hold(task_of("renew", 2));
        want(namespace, 3, 4).await;
        let attempts = |status: &TssClusterStatus| status.renewal.as_ref().map(|one| one.tries.attempt);
        until("the others have stored theirs", async || {
            let _ = operator.pass("wallet").await;
            let secrets = namespace.list::<Secret>().await;
            secrets.iter().any(|secret| secret.name_any().starts_with("wallet-renew-")).then_some(())
        })
        .await;
        want(namespace, 3, 5).await;
        operator.pass_until("wallet", "the next try begins", |status| attempts(status) == Some(2)).await;
        kubelet.release();
        // After: the one after.
        kubelet.hold(task_of("keep", 1));
        let decided = |status: &TssClusterStatus| {
            status.renewal.as_ref().is_some_and(|renewal| renewal.tries.decided.is_some())
        };
        operator.pass_until("wallet", "they are decided", decided).await;
        want(namespace, 2, 3).await;
        for _ in 0..5 {
            let _ = operator.pass("wallet").await;
            tokio::time::sleep(OFTEN).await;
        }
        assert!(decided(&namespace.status("wallet").await));
        kubelet.release();
        reach(&operator, 3).await;
        let second = namespace.record_of("wallet", 2).await.unwrap();
        assert_eq!((&second["threshold"], &second["signers"]), (&json!(3), &json!(5)));
        assert_epoch(namespace, &key, 3, 2, 3).await;
    })
    .await;
}

#[tokio::test]
async fn nobody_who_can_make_a_config_map_gives_the_signers_other_shares() {
    in_namespace(async |namespace| {
        let (_kubelet, operator, key) = ready(namespace, 2, 2).await;
        let record = namespace.record("wallet").await.unwrap();
        let plant = async |name: &str, changes: Value| {
            let mut planted = record.clone();
            planted.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let labels = json!({"tss.network/cluster": "wallet"});
            let map = json!({"metadata": {"name": name, "labels": labels}, "data": {"key.json": planted.to_string()}});
            namespace.create::<ConfigMap>(map).await;
        };
        let other = json!({"identity": "wallet-signer-1-identity", "share": "wallet-signer-1-e9-2222222222"});
        let theirs = json!({"commitment": "22".repeat(32), "shares": [other, other]});
        // A later epoch, this one under another name, and one before that calls what is in use of no use.
        let mut later = theirs.clone();
        later["epoch"] = json!(9);
        plant("wallet-key-e9", later).await;
        plant("wallet-key-e7", theirs).await;
        plant("wallet-key-e0", json!({"epoch": 0})).await;
        for _ in 0..5 {
            let _ = operator.pass("wallet").await;
        }
        operator.settle("wallet").await;
        assert_epoch(namespace, &key, 1, 2, 2).await;
        assert_eq!(namespace.status("wallet").await.retired_shares, Vec::<String>::new());
        // The next ones are made all the same; where their record would be is something else, until it is taken away.
        plant("wallet-key-e2", json!({"epoch": 2, "commitment": "33".repeat(32)})).await;
        ask(namespace).await;
        let in_the_way = |status: &TssClusterStatus| {
            status.conditions.iter().any(|condition| condition.reason == "RecordInTheWay")
        };
        operator.pass_until("wallet", "it is told of", in_the_way).await;
        assert_eq!(namespace.status("wallet").await.epoch, Some(1));
        namespace.remove::<ConfigMap>("wallet-key-e2").await;
        reach(&operator, 2).await;
        assert_epoch(namespace, &key, 2, 2, 2).await;
        assert_eq!(namespace.status("wallet").await.retired_shares, shares_of(&record));
    })
    .await;
}

#[tokio::test]
async fn a_record_of_later_shares_that_somebody_deletes_comes_back_as_it_was() {
    in_namespace(async |namespace| {
        let (_kubelet, operator, key) = ready(namespace, 2, 3).await;
        want(namespace, 2, 4).await;
        reach(&operator, 2).await;
        let record = namespace.record_of("wallet", 2).await.unwrap();
        let roster = record["roster"].as_str().unwrap().to_owned();
        let sets = async || -> Vec<_> {
            let sets = namespace.list::<StatefulSet>().await;
            sets.iter().map(|set| (set.uid(), set.metadata.generation)).collect()
        };
        let running = sets().await;
        for names in [vec!["wallet-key-e2"], vec!["wallet-key-e2", "wallet-key"], vec![roster.as_str()]] {
            for name in names {
                assert!(namespace.remove::<ConfigMap>(name).await, "{name}");
            }
            until("it is back", async || {
                let _ = operator.pass("wallet").await;
                let roster = namespace.get::<ConfigMap>(&roster).await;
                namespace.record_of("wallet", 2).await.filter(|_| roster.is_some())
            })
            .await;
            reach(&operator, 2).await;
            assert_eq!(namespace.record_of("wallet", 2).await, Some(record.clone()));
            assert_epoch(namespace, &key, 2, 2, 4).await;
        }
        assert_eq!(sets().await, running);
    })
    .await;
}

#[tokio::test]
async fn a_key_that_came_from_elsewhere_gets_new_shares_beside_those_it_came_with() {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        let mut wanted = cluster("wallet", 2, 3);
        wanted["spec"]["networkName"] = json!("mainnet");
        wanted["spec"]["keySource"] =
            existing_key(namespace, "made", "mainnet", Threshold::new(2, 3).unwrap()).await;
        namespace.apply(wanted).await;
        operator.settle("wallet").await;
        let key = namespace.status("wallet").await;
        want(namespace, 3, 3).await;
        reach(&operator, 2).await;
        assert_epoch(namespace, &key, 2, 3, 3).await;
        let record = namespace.record_of("wallet", 2).await.unwrap();
        assert_eq!(record["roster"], "made-roster");
        assert_eq!(record["shares"][1]["identity"], "made-2");
        // Who deleted these would delete the identities beside the shares.
        assert_eq!(namespace.status("wallet").await.retired_shares, Vec::<String>::new());
    })
    .await;
}

/// How many go on at once.
const LANES: usize = 6;

/// One operator after the other makes new shares, and is stopped at this request of it, at one `LANES` after it, and so on,
/// until one comes to the end unharmed; another goes on each time. Yields how many were stopped.
async fn stopped_at(first: usize, how: How) -> usize {
    let mut stopped = 0;
    in_namespace(async |namespace| {
        let (_kubelet, next, key) = ready(namespace, 2, 2).await;
        for (epoch, at) in (2..).zip((first..).step_by(LANES)) {
            ask(namespace).await;
            let fault = Fault { at, how };
            let mortal = Operator::with_fault(namespace, fault).await;
            reach(&mortal, epoch).await;
            // Whatever has been done, the shares in force are all there, of one epoch.
            let status = namespace.status("wallet").await;
            assert!([Some(epoch - 1), Some(epoch)].contains(&status.epoch), "{fault:?}: {:?}", status.epoch);
            for signer in &status.signers {
                let share = share_in(namespace, signer.share.as_ref().unwrap()).await.expect("it is there");
                assert_eq!(i64::try_from(share.epoch).ok(), status.epoch, "{fault:?}");
            }
            reach(&next, epoch).await;
            assert_epoch(namespace, &key, epoch, 2, 2).await;
            if !mortal.wire.has_failed() {
                break;
            }
            stopped += 1;
        }
    })
    .await;
    stopped
}

async fn stopped_everywhere(how: How) -> usize {
    let lanes = futures::stream::iter(0..LANES).map(|first| stopped_at(first, how));
    lanes.buffer_unordered(LANES).fold(0, async |all, one| all + one).await
}

#[tokio::test]
async fn an_operator_that_is_killed_at_any_request_of_new_shares_leaves_one_epoch_in_force() {
    let count = stopped_everywhere(How::Killed).await;
    println!("killed at each of {count} requests");
    assert!(count > 30, "{count}");
}

#[tokio::test]
async fn an_answer_that_is_lost_at_any_request_of_new_shares_leaves_one_epoch_in_force() {
    let count = stopped_everywhere(How::AnswerLost).await;
    println!("the answers to {count} requests were lost, one in each run");
    assert!(count > 30, "{count}");
}
