//! What goes with a TssCluster, and what stays; and what comes back with it.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::Job;
use kube::api::ApiResource;
use tss_operator::crd::TssCluster;

use crate::fixpoint::assert_whole;
use crate::history::History;
use crate::key_generation::{assert_one_key, records};
use crate::kubelet::{Kubelet, task};
use crate::operator::{Operator, is_settled};
use crate::server::{cluster, in_namespace, until};

#[tokio::test]
async fn deleting_a_cluster_keeps_its_key_and_applying_it_again_brings_it_back() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let before: BTreeSet<String> = namespace.everything().await.into_keys().collect();
        let operator = Operator::new(namespace).await;
        let running = operator.run();
        let records = records(namespace).await;
        namespace.apply(cluster("wallet", 2, 3)).await;
        let ready = async || Some(namespace.status("wallet").await).filter(is_settled);
        let first = until("the cluster is ready", ready).await;
        let record = namespace.record("wallet").await;
        let secrets = async || -> Vec<(String, String)> {
            let all = namespace.everything().await.into_iter();
            all.filter(|(name, _)| name.starts_with("Secret ")).collect()
        };
        let kept_secrets = secrets().await;
        assert_eq!(kept_secrets.len(), 6);

        namespace.remove::<TssCluster>("wallet").await;
        let mut kept: BTreeSet<String> =
            ["ConfigMap wallet-key", "ConfigMap wallet-roster"].map(str::to_owned).into();
        for index in 1..=3 {
            kept.insert(format!("PersistentVolumeClaim data-wallet-signer-{index}-0"));
        }
        kept.extend(kept_secrets.iter().map(|(name, _)| name.clone()));
        until("everything else is gone", async || {
            let all = namespace.everything().await.into_keys();
            let left: BTreeSet<String> = all
                .filter(|object| {
                    !before.contains(object)
                        && !object.starts_with("Event ")
                        && object != "ConfigMap kube-root-ca.crt"
                        && object != "ServiceAccount default"
                })
                .collect();
            assert!(left.is_superset(&kept), "{left:?}");
            (left == kept).then_some(())
        })
        .await;

        // No key is made.
        for name in ["identity", "generate", "renew", "keep", "inspect"] {
            kubelet.fail(task(name), "a second key");
        }
        let jobs = History::of(namespace, &[ApiResource::erase::<Job>(&())]).await;
        namespace.apply(cluster("wallet", 2, 3)).await;
        let second = until("the cluster is ready again", ready).await;
        assert_eq!(jobs.changes().len(), 0, "{:?}", jobs.changes());
        assert_eq!(
            (second.public_key, second.addresses, second.commitment, second.epoch),
            (first.public_key, first.addresses, first.commitment, first.epoch)
        );
        assert_eq!(namespace.record("wallet").await, record);
        assert_eq!(secrets().await, kept_secrets);
        assert_one_key(namespace, "wallet", &records, 3).await;
        assert_whole(namespace, "wallet", 3).await;
        running.stop().await;
    })
    .await;
}

#[tokio::test]
async fn deleting_a_cluster_in_the_middle_of_key_generation_leaves_no_key() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        kubelet.hold(crate::kubelet::task_of("generate", 2));
        namespace.apply(cluster("wallet", 2, 2)).await;
        until("a share is stored", async || {
            let _ = operator.pass("wallet").await;
            let all = namespace.everything().await;
            all.keys().any(|object| object.starts_with("Secret wallet-generate-1-")).then_some(())
        })
        .await;
        namespace.remove::<TssCluster>("wallet").await;
        until("it is gone", async || {
            let _ = operator.pass("wallet").await;
            let all = namespace.everything().await.into_keys();
            let left: Vec<String> =
                all.filter(|object| object.contains("wallet") && !object.starts_with("Event ")).collect();
            (left
                == [
                    "ConfigMap wallet-roster",
                    "Secret wallet-signer-1-identity",
                    "Secret wallet-signer-2-identity",
                ])
            .then_some(())
        })
        .await;
        // Another one of the name makes a key of its own.
        kubelet.release();
        let records = records(namespace).await;
        namespace.apply(cluster("wallet", 2, 2)).await;
        operator.settle("wallet").await;
        assert_one_key(namespace, "wallet", &records, 2).await;
    })
    .await;
}
