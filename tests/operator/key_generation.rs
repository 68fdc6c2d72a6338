//! One key or none: whatever fails or is deleted on the way.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt as _;
use kube::api::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use tss_mpc::{ShareDocument, Threshold};
use tss_operator::crd::{TssCluster, TssClusterStatus};

use crate::fixpoint::assert_whole;
use crate::history::History;
use crate::kubelet::{Kubelet, Which, existing_key, task, task_of};
use crate::operator::Operator;
use crate::server::{Namespace, OFTEN, cluster, in_namespace, until};

/// That a cluster has one key: one record that has never changed, and that all shares are of it.
pub(crate) async fn assert_one_key(namespace: &Namespace, name: &str, records: &History, n: u8) {
    let record = namespace.record(name).await.expect("a record");
    let changes = records.changes().into_iter();
    let versions: BTreeSet<String> = changes
        .filter(|change| change.name == format!("{name}-key"))
        .filter_map(|change| Some(change.object?["data"]["key.json"].as_str()?.to_owned()))
        .collect();
    assert_eq!(versions.len(), 1, "{versions:?}");
    let status = namespace.status(name).await;
    assert_eq!(record["publicKey"], *status.public_key.as_ref().unwrap());
    for share in record["shares"].as_array().unwrap() {
        let secret = namespace.get::<Secret>(share["share"].as_str().unwrap()).await.unwrap();
        let document = ShareDocument::from_json(&secret.data.as_ref().unwrap()["share"].0).unwrap();
        assert_eq!(record["publicKey"], hex::encode(document.core.public_key().to_bytes()));
        assert!(
            secret.owner_references().is_empty() && secret.immutable == Some(true),
            "{}",
            secret.name_any()
        );
        assert!(namespace.get::<Secret>(share["identity"].as_str().unwrap()).await.is_some());
    }
    assert_eq!(record["shares"].as_array().unwrap().len(), usize::from(n));
    // What a key was made of and what is not needed any more goes with its Job.
    until("what was prepared is gone", async || {
        let secrets = namespace.list::<Secret>().await;
        secrets.iter().all(|secret| secret.owner_references().is_empty()).then_some(())
    })
    .await;
}

pub(crate) async fn records(namespace: &Namespace) -> History {
    History::of(namespace, &[ApiResource::erase::<ConfigMap>(&())]).await
}

fn failures(status: &TssClusterStatus) -> i32 {
    status.key_generation.as_ref().map_or(0, |progress| progress.failures)
}

fn last_failure(status: &TssClusterStatus) -> String {
    status.key_generation.as_ref().and_then(|progress| progress.last_failure.clone()).unwrap_or_default()
}

async fn jobs(namespace: &Namespace) -> Vec<String> {
    namespace
        .list::<Job>()
        .await
        .iter()
        .filter(|job| job.metadata.deletion_timestamp.is_none())
        .map(|job| job.name_any())
        .collect()
}

#[tokio::test]
async fn a_try_that_fails_leaves_nothing_and_is_tried_again_later_under_another_name() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        let records = records(namespace).await;
        // The others have made the key and stored their shares.
        kubelet.hold(task_of("generate", 2));
        namespace.apply(cluster("wallet", 2, 3)).await;
        until("two shares are stored", async || {
            let _ = operator.pass("wallet").await;
            let secrets = namespace.list::<Secret>().await;
            (secrets.iter().filter(|secret| !secret.owner_references().is_empty()).count() == 2).then_some(())
        })
        .await;
        let first = jobs(namespace).await;
        kubelet.release();
        kubelet.fail(task("generate"), "RabbitMQ cannot be reached");
        let before = Timestamp::now();
        operator.pass_until("wallet", "the try fails", |status| failures(status) == 1).await;
        let status = namespace.status("wallet").await;
        let progress = status.key_generation.clone().unwrap();
        assert_eq!(last_failure(&status), "generate of signer 2: error: RabbitMQ cannot be reached");
        assert_eq!((progress.attempt, progress.decided), (2, None));
        // It failed between `before` and now, and waits for so many seconds from then on.
        let waits = |status: &TssClusterStatus, before: Timestamp, seconds: i64| {
            let until = status.key_generation.as_ref().unwrap().not_before.as_ref().unwrap().0;
            // Times of Kubernetes are whole seconds.
            let (least, most) =
                (until.duration_since(before).as_secs(), until.duration_since(Timestamp::now()).as_secs());
            assert!(least >= seconds - 1 && most <= seconds, "{seconds}: {least}, {most}");
        };
        waits(&status, before, 5);
        // The next pass gives the try up. No more are made, since one after the pause would begin anew.
        let key_generated = |status: &TssClusterStatus| {
            status.conditions.iter().find(|one| one.type_ == "KeyGenerated").cloned().unwrap()
        };
        let explained = "generate of signer 2: error: RabbitMQ cannot be reached. It is tried again at";
        operator
            .pass_until("wallet", "the try is given up", |status| {
                key_generated(status).message.contains(explained)
            })
            .await;
        let condition = key_generated(&namespace.status("wallet").await);
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "KeyGenerationFailed"));
        until("its Jobs and Secrets are gone", async || {
            let secrets = namespace.list::<Secret>().await;
            (jobs(namespace).await.is_empty()
                && secrets.iter().all(|secret| secret.owner_references().is_empty()))
            .then_some(())
        })
        .await;
        assert_eq!(namespace.kept_shares().await, Vec::<String>::new());
        assert_eq!(namespace.record("wallet").await, None);
        let events = namespace.list::<Event>().await;
        assert!(
            events.iter().any(|event| event.reason.as_deref() == Some("KeyGenerationFailed")
                && event.type_.as_deref() == Some("Warning")
                && event.note.as_deref().unwrap_or_default().contains("RabbitMQ cannot be reached")),
            "{events:#?}"
        );
        // It fails again, and waits longer.
        let before = Timestamp::now();
        operator.pass_until("wallet", "the second try fails", |status| failures(status) == 2).await;
        let status = namespace.status("wallet").await;
        waits(&status, before, 10);
        kubelet.release();
        kubelet.hold(task_of("generate", 1));
        until("the third try begins", async || {
            let _ = operator.pass("wallet").await;
            (jobs(namespace).await.len() == 3).then_some(())
        })
        .await;
        let third = jobs(namespace).await;
        assert!(third.iter().all(|job| job.ends_with("-3") && !first.contains(job)), "{first:?} {third:?}");
        kubelet.release();
        operator.settle("wallet").await;
        assert_one_key(namespace, "wallet", &records, 3).await;
        assert_eq!(namespace.status("wallet").await.key_generation, None);
    })
    .await;
}

#[tokio::test]
async fn reports_that_do_not_agree_are_no_key() {
    let other = "02".to_owned() + &"ab".repeat(32);
    let scenarios = [
        (
            task_of("generate", 2),
            json!({"public_key": other}),
            "signers 1 and 2 hold shares of different keys",
        ),
        (
            task_of("generate", 3),
            json!({"commitment": "00".repeat(32)}),
            "signers 1 and 3 hold shares of different keys",
        ),
        (
            task_of("generate", 1),
            json!({"cluster": "another"}),
            "the Job of signer 1 reported a share of signer 1, of a 2-of-3 key of the network another",
        ),
        (task_of("generate", 2), json!({"index": 1}), "the Job of signer 2 reported a share of signer 1"),
        (
            task_of("generate", 2),
            json!({"threshold": 3}),
            "the Job of signer 2 reported a share of signer 2, of a 3-of-3 key",
        ),
        (
            task_of("identity", 2),
            json!({"index": 1}),
            "the Job of signer 2 reported the identity of signer 1",
        ),
        (task_of("identity", 2), json!({"sealing_key": null}), "signer 2 reported no identity"),
    ];
    let run = async |number: usize, which: Which, fields: Value, expected: &str| {
        // A namespace each: the kubelet's orders are for all that is in it.
        in_namespace(async |namespace| {
            let kubelet = Kubelet::start(namespace);
            let operator = Operator::new(namespace).await;
            let records = records(namespace).await;
            kubelet.report(which.clone(), fields.clone());
            namespace.apply(cluster("wallet", 2, 3)).await;
            operator.pass_until("wallet", expected, |status| failures(status) == 1).await;
            let failure = last_failure(&namespace.status("wallet").await);
            assert!(failure.contains(expected), "{number}: expected {expected}, got {failure}");
            assert_eq!(namespace.record("wallet").await, None);
            kubelet.release();
            operator.settle("wallet").await;
            assert_one_key(namespace, "wallet", &records, 3).await;
        })
        .await;
    };
    let all = scenarios.into_iter().enumerate();
    futures::stream::iter(all)
        .for_each_concurrent(4, |(number, (which, fields, expected))| run(number, which, fields, expected))
        .await;
}

/// Deletes something at some point of key generation.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// While one signer still makes its identity.
    Identity,
    /// When all identities are made, and before the operator has seen it.
    Identities,
    /// While the key is being made.
    Generating,
    /// When the others have finished, and one has not.
    HalfGenerated,
    /// When all have finished, and before the operator has seen it.
    Generated,
    /// When it is decided, and one share is not kept yet.
    Keeping,
    /// When all shares are kept, and before the operator has seen it.
    Kept,
}

impl Point {
    fn held(self) -> Option<Which> {
        match self {
            Self::Identity => Some(task_of("identity", 2)),
            Self::Generating => Some(task("generate")),
            Self::HalfGenerated => Some(task_of("generate", 2)),
            Self::Keeping => Some(task_of("keep", 2)),
            Self::Identities | Self::Generated | Self::Kept => None,
        }
    }

    fn task(self) -> &'static str {
        match self {
            Self::Identity | Self::Identities => "identity",
            Self::Generating | Self::HalfGenerated | Self::Generated => "generate",
            Self::Keeping | Self::Kept => "keep",
        }
    }

    /// How many Jobs of the task have finished then.
    fn finished(self) -> usize {
        match self {
            Self::Generating => 0,
            Self::Identity | Self::HalfGenerated | Self::Keeping => 1,
            Self::Identities | Self::Generated | Self::Kept => 2,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Victim {
    Job,
    Pod,
    /// The Job that made the share, while it is kept.
    Source,
}

async fn delete_at(point: Point, victim: Victim, index: u8) {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        let records = records(namespace).await;
        if let Some(held) = point.held() {
            kubelet.hold(held);
        }
        namespace.apply(cluster("wallet", 2, 2)).await;
        let reached = async || {
            let jobs = namespace.list::<Job>().await;
            let of_task = |job: &&Job| job.name_any().contains(&format!("-{}-", point.task()));
            let finished = |job: &&Job| {
                let conditions =
                    job.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
                conditions.iter().any(|condition| condition.type_ == "Complete" && condition.status == "True")
            };
            let of_task: Vec<&Job> = jobs.iter().filter(of_task).collect();
            let done = of_task.iter().copied().filter(|job| finished(job)).count();
            let pods = namespace
                .list::<Pod>()
                .await
                .iter()
                .filter(|pod| pod.name_any().contains(&format!("-{}-", point.task())))
                .count();
            of_task.len() == 2 && pods == 2 && done >= point.finished()
        };
        until(&format!("{point:?} is reached"), async || {
            if reached().await {
                return Some(());
            }
            // Once the Jobs are there, nobody looks whether they are done.
            if !jobs(namespace).await.iter().any(|job| job.contains(&format!("-{}-", point.task()))) {
                let _ = operator.pass("wallet").await;
            }
            None
        })
        .await;
        if matches!(point, Point::Generating) {
            // They have met.
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        let task = if matches!(victim, Victim::Source) { "generate" } else { point.task() };
        let named = |name: &str| name.starts_with(&format!("wallet-{task}-{index}-"));
        match victim {
            Victim::Job | Victim::Source => {
                let name = jobs(namespace).await.into_iter().find(|name| named(name)).unwrap();
                namespace.remove_any(&ApiResource::erase::<Job>(&()), &name).await;
            }
            Victim::Pod => {
                let pod =
                    namespace.list::<Pod>().await.into_iter().find(|pod| named(&pod.name_any())).unwrap();
                namespace.remove::<Pod>(&pod.name_any()).await;
            }
        }
        for _ in 0..3 {
            let _ = operator.pass("wallet").await;
            tokio::time::sleep(OFTEN).await;
        }
        kubelet.release();
        operator.settle("wallet").await;
        assert_one_key(namespace, "wallet", &records, 2).await;
    })
    .await;
}

#[tokio::test]
async fn whatever_is_deleted_on_the_way_there_is_one_key_in_the_end() {
    use Point::*;
    let points = [Identity, Identities, Generating, HalfGenerated, Generated, Keeping, Kept];
    let mut scenarios: Vec<(Point, Victim, u8)> = Vec::new();
    for point in points {
        // The one that has finished, or the one that has not.
        for (victim, index) in [(Victim::Job, 2), (Victim::Pod, 2), (Victim::Job, 1), (Victim::Pod, 1)] {
            if index == 2 || matches!(point, Identity | HalfGenerated | Keeping) {
                scenarios.push((point, victim, index));
            }
        }
    }
    scenarios.extend([(Keeping, Victim::Source, 1), (Keeping, Victim::Source, 2), (Kept, Victim::Source, 1)]);
    futures::stream::iter(scenarios)
        .for_each_concurrent(8, |(point, victim, index)| delete_at(point, victim, index))
        .await;
}

#[tokio::test]
async fn a_key_that_was_made_elsewhere_is_taken_over() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        let records = records(namespace).await;
        let source = existing_key(namespace, "made", "mainnet", Threshold::new(2, 3).unwrap()).await;
        let mut wanted = cluster("wallet", 2, 3);
        wanted["spec"]["networkName"] = json!("mainnet");
        // In another order: what one signer holds is another's.
        let mut mixed = wanted.clone();
        mixed["metadata"]["name"] = json!("mixed");
        mixed["spec"]["keySource"] = source.clone();
        mixed["spec"]["keySource"]["existingSecrets"]["secrets"] = json!(["made-2", "made-1", "made-3"]);
        namespace.apply(mixed).await;
        operator.pass_until("mixed", "it is noticed", |status| failures(status) == 1).await;
        let failure = last_failure(&namespace.status("mixed").await);
        assert!(failure.contains("the Job of signer 1 reported a share of signer 2"), "{failure}");
        namespace.remove::<TssCluster>("mixed").await;

        wanted["spec"]["keySource"] = source;
        namespace.apply(wanted).await;
        let secrets = namespace.list::<Secret>().await.len();
        operator.settle("wallet").await;
        assert_eq!(namespace.list::<Secret>().await.len(), secrets);
        let changes = records.changes();
        assert_eq!(changes.iter().filter(|change| change.name == "wallet-key").count(), 1);
        let share = namespace.get::<Secret>("made-1").await.unwrap();
        let document = ShareDocument::from_json(&share.data.unwrap()["share"].0).unwrap();
        let status = namespace.status("wallet").await;
        assert_eq!(status.public_key, Some(hex::encode(document.core.public_key().to_bytes())));
        for set in namespace.list::<StatefulSet>().await {
            let text = serde_json::to_string(&set.spec).unwrap();
            let index = set.name_any().rsplit('-').next().unwrap().to_owned();
            assert!(
                text.contains(&format!("\"secretName\":\"made-{index}\""))
                    && text.contains("\"name\":\"made-roster\""),
                "{text}"
            );
        }
        drop(kubelet);
    })
    .await;
}

#[tokio::test]
async fn a_cluster_that_asks_for_another_key_than_it_has_touches_nothing() {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        namespace.apply(cluster("wallet", 2, 3)).await;
        operator.settle("wallet").await;
        let (record, shares) = (namespace.record("wallet").await, namespace.kept_shares().await);
        namespace.remove::<TssCluster>("wallet").await;
        until("it is gone", async || namespace.list::<StatefulSet>().await.is_empty().then_some(())).await;

        let before = namespace.everything().await;
        let mut other = cluster("wallet", 2, 3);
        other["spec"]["derivationPath"] = json!("0/1/3");
        namespace.apply(other).await;
        let stopped = Operator::new(namespace).await;
        for _ in 0..10 {
            let _ = stopped.pass("wallet").await;
        }
        let status = namespace.status("wallet").await;
        for kind in ["Ready", "Progressing"] {
            let condition = status.conditions.iter().find(|one| one.type_ == kind).unwrap();
            assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "KeyMismatch"));
            assert!(
                condition.message.contains("with derivationPath 0/1/2; the TssCluster has 0/1/3"),
                "{}",
                condition.message
            );
            assert!(
                condition.message.contains("delete the TssCluster and apply it with derivationPath 0/1/2"),
                "{}",
                condition.message
            );
        }
        let writes = stopped.wire.writes();
        assert!(writes.iter().all(|write| write.ends_with("/tssclusters/wallet/status")), "{writes:#?}");
        // What is on its way out may still go.
        let after = namespace.everything().await;
        let new: Vec<_> = after.keys().filter(|object| !before.contains_key(*object)).collect();
        assert_eq!(new, ["TssCluster wallet"]);
        assert_eq!(
            (namespace.record("wallet").await, namespace.kept_shares().await),
            (record.clone(), shares)
        );

        namespace.remove::<TssCluster>("wallet").await;
        until("it is gone", async || namespace.get::<TssCluster>("wallet").await.is_none().then_some(()))
            .await;
        namespace.apply(cluster("wallet", 2, 3)).await;
        operator.settle("wallet").await;
        assert_eq!(namespace.record("wallet").await, record);
        assert_whole(namespace, "wallet", 3).await;
    })
    .await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_stops_everything() {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let broken = json!({
            "metadata": {"name": "wallet-key", "labels": {"tss.network/cluster": "wallet"}}, "data": {"key.json": "{}"},
        });
        namespace.create::<ConfigMap>(broken).await;
        let operator = Operator::new(namespace).await;
        namespace.apply(cluster("wallet", 2, 2)).await;
        for _ in 0..5 {
            operator.pass("wallet").await.unwrap();
        }
        let status = namespace.status("wallet").await;
        let ready = status.conditions.iter().find(|one| one.type_ == "Ready").unwrap();
        assert_eq!(ready.reason, "RecordUnreadable");
        assert!(ready.message.contains("ConfigMap wallet-key"), "{}", ready.message);
        assert_eq!(jobs(namespace).await, Vec::<String>::new());
        let left: Vec<DynamicObject> = namespace.dynamic(&ApiResource::erase::<StatefulSet>(&())).list(&Default::default()).await.unwrap().items;
        assert!(left.is_empty());
    })
    .await;
}
