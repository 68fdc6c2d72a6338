//! A TssCluster becomes ready, and then nothing is written any more.

use std::time::Duration;

use tss_operator::condition::is_true;
use tss_operator::crd::TssCluster;

use crate::kubelet::Kubelet;
use crate::operator::{Operator, is_settled};
use crate::server::{Namespace, cluster, in_namespace, until};

/// That everything is there that a network of `t` of `n` is made of, and belongs to it.
pub(crate) async fn assert_whole(namespace: &Namespace, name: &str, n: u8) {
    let all = namespace.everything().await;
    let mut expected: Vec<String> = ["ConfigMap X-roster", "ConfigMap X-key"].map(str::to_owned).into();
    for component in ["manager", "signers"] {
        for kind in ["Service", "NetworkPolicy", "PodDisruptionBudget"] {
            expected.push(format!("{kind} X-{component}"));
        }
        expected.push(format!("ConfigMap X-{component}-config"));
    }
    expected.extend(["ServiceAccount X-manager", "Deployment X-manager"].map(str::to_owned));
    for index in 1..=n {
        expected.push(format!("StatefulSet X-signer-{index}"));
        expected.push(format!("ServiceAccount X-signer-{index}"));
        expected.push(format!("Secret X-signer-{index}-identity"));
        expected.push(format!("PersistentVolumeClaim data-X-signer-{index}-0"));
    }
    for object in expected {
        let object = object.replace('X', name);
        assert!(all.contains_key(&object), "{object} is missing among {:#?}", all.keys());
    }
    let left: Vec<_> =
        all.keys().filter(|object| object.starts_with("Job ") || object.contains("keygen")).collect();
    assert!(left.is_empty(), "left over: {left:?}");
    let kept = namespace.kept_shares().await;
    assert_eq!(kept.len(), usize::from(n), "{kept:?}");
}

#[tokio::test]
async fn a_cluster_becomes_ready_and_then_nothing_is_written() {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        let running = operator.run();
        namespace.apply(cluster("wallet", 2, 3)).await;
        let status =
            until("the cluster is ready", async || Some(namespace.status("wallet").await).filter(is_settled))
                .await;
        assert_whole(namespace, "wallet", 3).await;

        for condition in ["Ready", "KeyGenerated", "QuorumAvailable"] {
            assert!(is_true(&status.conditions, condition), "{condition}: {:#?}", status.conditions);
        }
        assert_eq!(status.threshold.as_deref(), Some("2-of-3"));
        assert_eq!(status.ready_signers.as_deref(), Some("3/3"));
        assert_eq!(status.network_name, Some(format!("{}-wallet", namespace.name)));
        assert!(status.signers.iter().all(|signer| signer.ready), "{:?}", status.signers);
        let record = namespace.record("wallet").await.unwrap();
        assert_eq!(record["publicKey"], *status.public_key.as_ref().unwrap());
        assert_eq!(record["addresses"]["ethereum"], status.addresses.as_ref().unwrap().ethereum);
        assert_eq!(status.key_generation, None);
        assert_eq!(
            status.observed_generation,
            namespace.get::<TssCluster>("wallet").await.unwrap().metadata.generation
        );

        // Neither the controller, which still runs, nor passes of others.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (before, written) = (namespace.everything().await, operator.wire.writes().len());
        let other = Operator::new(namespace).await;
        for _ in 0..5 {
            other.pass("wallet").await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(namespace.everything().await, before);
        assert_eq!(other.wire.writes(), Vec::<String>::new());
        assert_eq!(operator.wire.writes()[written..], Vec::<String>::new());
        running.stop().await;
    })
    .await;
}
