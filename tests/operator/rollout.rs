//! Signers are changed one at a time, and never so that the quorum is lost.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, Patch, PatchParams};
use serde_json::{Value, json};

use crate::history::{History, Objects};
use crate::kubelet::{Kubelet, Which, image};
use crate::operator::{Operator, is_settled};
use crate::server::{Namespace, OFTEN, cluster, in_namespace, until};

async fn watched(namespace: &Namespace) -> History {
    let kinds = [ApiResource::erase::<StatefulSet>(&()), ApiResource::erase::<Pod>(&())];
    History::of(namespace, &kinds).await
}

/// Which signers were ready.
fn ready(state: &Objects, n: u8) -> Vec<u8> {
    let is_ready = |index: &u8| {
        let pod = state.get(&("Pod".to_owned(), format!("wallet-signer-{index}-0")));
        pod.is_some_and(|pod| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
            pod["metadata"]["deletionTimestamp"].is_null()
                && ready.any(|condition| condition["status"] == "True")
        })
    };
    (1..=n).filter(is_ready).collect()
}

fn image_of(set: &Value) -> &str {
    set["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap()
}

/// The signers whose StatefulSets were given an image, in this order, each with those that were ready then.
fn changes_to(history: &History, image: &str, n: u8) -> Vec<(u8, Vec<u8>)> {
    let mut changed: Vec<(u8, Vec<u8>)> = Vec::new();
    for (change, state) in history.states() {
        let Some(set) = change.object.as_ref().filter(|_| change.kind == "StatefulSet") else { continue };
        let index: u8 = change.name.rsplit('-').next().unwrap().parse().unwrap();
        if image_of(set) == image && changed.iter().all(|(known, _)| *known != index) {
            changed.push((index, ready(&state, n)));
        }
    }
    changed
}

/// The fewest signers that were ready at any time.
fn fewest(history: &History, n: u8) -> usize {
    history
        .states()
        .iter()
        .skip_while(|(_, state)| ready(state, n).len() < usize::from(n))
        .map(|(_, state)| ready(state, n).len())
        .min()
        .unwrap()
}

#[tokio::test]
async fn signers_are_changed_one_at_a_time() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        namespace.apply(cluster("wallet", 2, 4)).await;
        operator.settle("wallet").await;
        kubelet.delay(Duration::from_millis(700));
        let history = watched(namespace).await;
        let running = operator.run();
        for image in ["s:2", "s:3"] {
            let generation =
                namespace.change("wallet", json!({"signer": {"image": image}})).await.metadata.generation;
            until("all are changed", async || {
                let status = namespace.status("wallet").await;
                let sets = namespace.list::<StatefulSet>().await;
                let all = sets.iter().all(|set| image_of(&serde_json::to_value(set).unwrap()) == image);
                (all && is_settled(&status) && status.observed_generation == generation).then_some(())
            })
            .await;
            let changed = changes_to(&history, image, 4);
            assert_eq!(changed.len(), 4, "{changed:?}");
            for (index, ready) in &changed {
                let others = (1..=4).filter(|other| other != index);
                let missing: Vec<u8> = others.filter(|other| !ready.contains(other)).collect();
                assert!(
                    missing.is_empty(),
                    "signer {index} was changed to {image} while {missing:?} were not ready: {changed:?}"
                );
            }
        }
        assert_eq!(fewest(&history, 4), 3);
        running.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_change_that_breaks_a_signer_goes_no_further_and_the_broken_one_is_mended_first() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        namespace.apply(cluster("wallet", 2, 3)).await;
        operator.settle("wallet").await;
        let history = watched(namespace).await;
        kubelet.hold(image("s:broken"));
        namespace.change("wallet", json!({"signer": {"image": "s:broken"}})).await;
        for _ in 0..30 {
            let _ = operator.pass("wallet").await;
            tokio::time::sleep(OFTEN).await;
        }
        let broken = changes_to(&history, "s:broken", 3);
        assert_eq!(broken.len(), 1, "{broken:?}");
        let status = namespace.status("wallet").await;
        let condition = |kind: &str| {
            let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
            (found.status.clone(), found.reason.clone(), found.message.clone())
        };
        let (progressing, reason, message) = condition("Progressing");
        assert_eq!((progressing.as_str(), reason.as_str()), ("True", "RollingOut"), "{message}");
        assert!(message.contains("2 signers are changed once the others are ready again"), "{message}");
        assert_eq!(condition("QuorumAvailable").0, "True");
        assert_eq!(status.ready_signers.as_deref(), Some("2/3"));

        namespace.change("wallet", json!({"signer": {"image": "s:mended"}})).await;
        operator.settle("wallet").await;
        let mended = changes_to(&history, "s:mended", 3);
        assert_eq!(mended.len(), 3, "{mended:?}");
        assert_eq!(mended[0].0, broken[0].0, "{mended:?}");
        assert_eq!(fewest(&history, 3), 2);
        assert_eq!(changes_to(&history, "s:broken", 3).len(), 1);
    })
    .await;
}

/// Says that a signer's Pod has not been ready since a time ago.
async fn unready(namespace: &Namespace, index: u8, ago: SignedDuration) {
    let since = Timestamp::now().checked_sub(ago).unwrap();
    let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": format!("{since:.0}")});
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    let pods = namespace.api::<Pod>();
    pods.patch_status(&format!("wallet-signer-{index}-0"), &PatchParams::default(), &patch).await.unwrap();
}

async fn lose(namespace: &Namespace, kubelet: &Kubelet, index: u8, ago: SignedDuration) {
    kubelet.hold(Which { task: Some("signer"), index: Some(index), ..Which::default() });
    unready(namespace, index, ago).await;
}

async fn ready_now(namespace: &Namespace) -> usize {
    let ready = namespace.status("wallet").await.ready_signers.unwrap_or_default();
    ready.split_once('/').unwrap().0.parse().unwrap()
}

#[tokio::test]
async fn no_signer_is_changed_while_the_quorum_hangs_on_it() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        namespace.apply(cluster("wallet", 2, 3)).await;
        operator.settle("wallet").await;
        // However long it has been away.
        lose(namespace, &kubelet, 3, SignedDuration::from_mins(60)).await;
        until("the operator sees it", async || {
            let _ = operator.pass("wallet").await;
            (ready_now(namespace).await == 2).then_some(())
        })
        .await;
        let history = watched(namespace).await;
        namespace.change("wallet", json!({"signer": {"image": "s:2"}})).await;
        for _ in 0..30 {
            let _ = operator.pass("wallet").await;
            tokio::time::sleep(OFTEN).await;
        }
        let changed: Vec<u8> = changes_to(&history, "s:2", 3).into_iter().map(|(index, _)| index).collect();
        assert_eq!(changed, [3]);
        kubelet.release();
        operator.settle("wallet").await;
        let changed: Vec<u8> = changes_to(&history, "s:2", 3).into_iter().map(|(index, _)| index).collect();
        assert_eq!(changed.len(), 3);
        for (_, state) in history.states() {
            assert!(
                ready(&state, 2).len() == 2 || ready(&state, 3).contains(&3),
                "2 and 1 were changed while 3 was away"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_signer_that_is_lost_for_long_does_not_hold_up_the_others_while_a_quorum_signs() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        namespace.apply(cluster("wallet", 2, 4)).await;
        operator.settle("wallet").await;
        lose(namespace, &kubelet, 4, SignedDuration::from_secs(60)).await;
        let history = watched(namespace).await;
        until("the operator sees it", async || {
            let _ = operator.pass("wallet").await;
            (ready_now(namespace).await == 3).then_some(())
        })
        .await;
        namespace.change("wallet", json!({"signer": {"image": "s:2"}})).await;
        for _ in 0..20 {
            let _ = operator.pass("wallet").await;
            tokio::time::sleep(OFTEN).await;
        }
        // Away for a minute: it may come back.
        assert_eq!(changes_to(&history, "s:2", 4).len(), 1);
        until("its Pod is made anew", async || namespace.get::<Pod>("wallet-signer-4-0").await.map(drop))
            .await;
        unready(namespace, 4, SignedDuration::from_mins(6)).await;
        until("the others are changed", async || {
            let _ = operator.pass("wallet").await;
            (changes_to(&history, "s:2", 4).len() == 4 && ready_now(namespace).await == 3).then_some(())
        })
        .await;
        let least = history.states().iter().map(|(_, state)| ready(state, 4).len()).min().unwrap();
        assert_eq!(least, 2, "one at a time");
    })
    .await;
}
