//! What somebody changes by hand is changed back; a key and its shares are never touched.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tss_operator::crd::TssCluster;

use crate::fixpoint::assert_whole;
use crate::kubelet::{Kubelet, task};
use crate::operator::Operator;
use crate::server::{Namespace, cluster, in_namespace};

/// A cluster that is ready.
async fn ready(namespace: &Namespace) -> (Operator, Kubelet) {
    let kubelet = Kubelet::start(namespace);
    let operator = Operator::new(namespace).await;
    namespace.apply(cluster("wallet", 2, 2)).await;
    operator.settle("wallet").await;
    (operator, kubelet)
}

async fn patch(api: &Api<DynamicObject>, name: &str, change: Value) {
    // A person's tool merges lists by the names of their items.
    let patch = if change.to_string().contains("containers") {
        Patch::Strategic(change)
    } else {
        Patch::Merge(change)
    };
    api.patch(name, &PatchParams::default(), &patch).await.unwrap();
}

/// What of an object is anybody's to decide.
async fn essence(api: &Api<DynamicObject>, name: &str) -> Option<Value> {
    let object = api.get_opt(name).await.unwrap()?;
    let mut data = object.data.clone();
    let fields = data.as_object_mut().unwrap();
    fields.remove("status");
    // The API server gives them anew to a Service that is made anew.
    if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
    let annotations = object.annotations().get("tss.network/desired").cloned();
    Some(json!([object.labels(), annotations, object.owner_references(), data]))
}

#[tokio::test]
async fn what_is_changed_by_hand_is_changed_back() {
    in_namespace(async |namespace| {
        let (operator, _kubelet) = ready(namespace).await;
        let stateful_set = ApiResource::erase::<StatefulSet>(&());
        let deployment = ApiResource::erase::<Deployment>(&());
        let map = ApiResource::erase::<ConfigMap>(&());
        let service = ApiResource::erase::<Service>(&());
        let policy = ApiResource::erase::<NetworkPolicy>(&());
        let budget = ApiResource::erase::<PodDisruptionBudget>(&());
        let account = ApiResource::erase::<ServiceAccount>(&());
        let label = json!({"metadata": {"labels": {"app.kubernetes.io/component": "other"}}});
        let image = |name: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": name, "image": "evil:1"}]}}}});
        let mut missed = Vec::new();
        for (kind, name, change) in [
            (&stateful_set, "wallet-signer-1", json!({"spec": {"replicas": 0}})),
            (&stateful_set, "wallet-signer-1", image("signer")),
            (&deployment, "wallet-manager", image("manager")),
            (&stateful_set, "wallet-signer-2", json!({"spec": {"replicas": 2}})),
            (&stateful_set, "wallet-signer-1", json!({"spec": {"template": {"spec": {"automountServiceAccountToken": true}}}})),
            (&stateful_set, "wallet-signer-1", json!({"spec": {"template": {"spec": {"serviceAccountName": "default"}}}})),
            (&stateful_set, "wallet-signer-1", json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 0}}}})),
            (&stateful_set, "wallet-signer-2", label.clone()),
            (&stateful_set, "wallet-signer-1", image("spy")),
            (&deployment, "wallet-manager", json!({"spec": {"replicas": 0}})),
            (&deployment, "wallet-manager", json!({"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": 1}}}})),
            (&deployment, "wallet-manager", label.clone()),
            (&map, "wallet-signers-config", json!({"data": {"default.toml": ""}})),
            (&map, "wallet-manager-config", json!({"data": {"default.toml": null}})),
            (&map, "wallet-manager-config", label.clone()),
            (&service, "wallet-manager", json!({"spec": {"selector": {"app.kubernetes.io/component": "other"}}})),
            (&service, "wallet-manager", json!({"spec": {"ports": [{"name": "http", "port": 81}]}})),
            (&policy, "wallet-manager", json!({"spec": {"ingress": [{}]}})),
            (&policy, "wallet-signers", json!({"spec": {"egress": [{}]}})),
            (&policy, "wallet-signers", json!({"spec": {"podSelector": {"matchLabels": {"tss.network/cluster": "other"}}}})),
            (&budget, "wallet-signers", json!({"spec": {"minAvailable": 0}})),
            (&budget, "wallet-manager", json!({"spec": {"maxUnavailable": 2}})),
            (&account, "wallet-signer-1", json!({"automountServiceAccountToken": true})),
            (&account, "wallet-manager", label),
            // What is added to a list.
            (&policy, "wallet-signers", json!({"spec": {"ingress": [{"ports": [{"port": 8090, "protocol": "TCP"}]}, {}]}})),
            (&policy, "wallet-manager", json!({"metadata": {"annotations": {"tss.network/desired": "x"}}})),
        ] {
            let api = namespace.dynamic(kind);
            let before = essence(&api, name).await.unwrap();
            patch(&api, name, change.clone()).await;
            assert_ne!(essence(&api, name).await.unwrap(), before, "{name} {change} changes nothing");
            operator.settle("wallet").await;
            let after = essence(&api, name).await.unwrap();
            if after != before {
                missed.push(format!("{} {name} {change}\n  {before}\n  {after}", kind.kind));
                // So that the next ones can be seen by themselves.
                namespace.remove_any(kind, name).await;
                operator.settle("wallet").await;
            }
        }
        assert!(missed.is_empty(), "{}", missed.join("\n"));
    })
    .await;
}

#[tokio::test]
async fn what_is_deleted_by_hand_comes_back() {
    in_namespace(async |namespace| {
        let (operator, _kubelet) = ready(namespace).await;
        for (kind, name) in [
            (ApiResource::erase::<StatefulSet>(&()), "wallet-signer-1"),
            (ApiResource::erase::<Deployment>(&()), "wallet-manager"),
            (ApiResource::erase::<ConfigMap>(&()), "wallet-signers-config"),
            (ApiResource::erase::<ConfigMap>(&()), "wallet-manager-config"),
            (ApiResource::erase::<Service>(&()), "wallet-manager"),
            (ApiResource::erase::<Service>(&()), "wallet-signers"),
            (ApiResource::erase::<NetworkPolicy>(&()), "wallet-manager"),
            (ApiResource::erase::<NetworkPolicy>(&()), "wallet-signers"),
            (ApiResource::erase::<PodDisruptionBudget>(&()), "wallet-signers"),
            (ApiResource::erase::<PodDisruptionBudget>(&()), "wallet-manager"),
            (ApiResource::erase::<ServiceAccount>(&()), "wallet-signer-2"),
            (ApiResource::erase::<ServiceAccount>(&()), "wallet-manager"),
        ] {
            let api = namespace.dynamic(&kind);
            let (before, uid) = (essence(&api, name).await, api.get(name).await.unwrap().uid());
            namespace.remove_any(&kind, name).await;
            operator.settle("wallet").await;
            assert_eq!(essence(&api, name).await, before, "{} {name}", kind.kind);
            assert_ne!(api.get(name).await.unwrap().uid(), uid, "{} {name}", kind.kind);
        }
        assert_whole(namespace, "wallet", 2).await;
    })
    .await;
}

#[tokio::test]
async fn what_key_generation_may_do_is_restored_while_it_runs() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        kubelet.hold(task("generate"));
        let operator = Operator::new(namespace).await;
        namespace.apply(cluster("wallet", 2, 2)).await;
        let generating = |status: &tss_operator::crd::TssClusterStatus| {
            status.conditions.iter().any(|condition| condition.reason == "GeneratingKey")
        };
        operator.pass_until("wallet", "the signers make the key", generating).await;
        operator.pass("wallet").await.unwrap();
        let roles = namespace.dynamic(&ApiResource::erase::<Role>(&()));
        let bindings = namespace.dynamic(&ApiResource::erase::<RoleBinding>(&()));
        let before = (essence(&roles, "wallet-keygen").await, essence(&bindings, "wallet-keygen").await);
        let everything = json!({"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
        patch(&roles, "wallet-keygen", everything).await;
        let everybody = json!({"subjects": [{"kind": "Group", "name": "system:authenticated", "apiGroup": "rbac.authorization.k8s.io"}]});
        patch(&bindings, "wallet-keygen", everybody).await;
        operator.pass("wallet").await.unwrap();
        assert_eq!((essence(&roles, "wallet-keygen").await, essence(&bindings, "wallet-keygen").await), before);
    })
    .await;
}

/// The versions of the Secrets and volumes.
async fn kept(namespace: &Namespace) -> Vec<String> {
    let all = namespace.everything().await.into_iter();
    let kept = all
        .filter(|(object, _)| object.starts_with("Secret ") || object.starts_with("PersistentVolumeClaim "));
    kept.filter(|(object, _)| !object.contains("PersistentVolumeClaim") || object.contains("data-"))
        .map(|(object, version)| format!("{object} {version}"))
        .collect()
}

#[tokio::test]
async fn a_roster_or_record_that_somebody_deletes_comes_back_as_it_was() {
    in_namespace(async |namespace| {
        let (operator, kubelet) = ready(namespace).await;
        let data = async |name: &str| namespace.get::<ConfigMap>(name).await.and_then(|map| map.data);
        let (record, roster) = (data("wallet-key").await, data("wallet-roster").await);
        assert!(record.is_some() && roster.is_some());
        let (status, secrets) = (namespace.status("wallet").await, kept(namespace).await);
        // No key may be made again.
        kubelet.fail(task("generate"), "a second key");
        kubelet.fail(task("keep"), "a second key");
        let signers = async || -> Vec<_> {
            namespace
                .list::<StatefulSet>()
                .await
                .iter()
                .map(|set| (set.uid(), set.metadata.generation))
                .collect()
        };
        let running = signers().await;
        for names in [vec!["wallet-key"], vec!["wallet-roster"], vec!["wallet-key", "wallet-roster"]] {
            for name in &names {
                assert!(namespace.remove::<ConfigMap>(name).await);
            }
            crate::server::until("they are back", async || {
                let _ = operator.pass("wallet").await;
                (data("wallet-key").await.is_some() && data("wallet-roster").await.is_some()).then_some(())
            })
            .await;
            operator.settle("wallet").await;
            assert_eq!(
                (data("wallet-key").await, data("wallet-roster").await),
                (record.clone(), roster.clone()),
                "{names:?}"
            );
            let now = namespace.status("wallet").await;
            assert_eq!((now.public_key, now.epoch), (status.public_key.clone(), status.epoch));
        }
        assert_eq!(kept(namespace).await, secrets);
        assert_eq!(signers().await, running);
        crate::server::until("its Jobs are gone", async || {
            let _ = operator.pass("wallet").await;
            namespace.list::<k8s_openapi::api::batch::v1::Job>().await.is_empty().then_some(())
        })
        .await;
        assert_whole(namespace, "wallet", 2).await;
    })
    .await;
}

#[tokio::test]
async fn shares_and_volumes_are_never_written_to() {
    in_namespace(async |namespace| {
        let (operator, _kubelet) = ready(namespace).await;
        let share = namespace.kept_shares().await.remove(0);
        let secrets = namespace.dynamic(&ApiResource::erase::<Secret>(&()));
        let volumes = namespace.dynamic(&ApiResource::erase::<PersistentVolumeClaim>(&()));
        let mark =
            json!({"metadata": {"labels": {"a-person": "was-here"}, "annotations": {"backup": "yes"}}});
        patch(&secrets, &share, mark.clone()).await;
        patch(&secrets, "wallet-signer-1-identity", mark.clone()).await;
        patch(&volumes, "data-wallet-signer-1-0", mark).await;
        let before = kept(namespace).await;
        namespace.change("wallet", json!({"signer": {"image": "other:1"}, "logLevel": "debug"})).await;
        operator.settle("wallet").await;
        // A kept Secret that is gone is a person's loss: it is not made again, and nobody else's is touched.
        assert_eq!(kept(namespace).await, before);
        let writes = operator.wire.writes();
        assert!(
            writes
                .iter()
                .all(|write| !write.contains("/secrets") && !write.contains("/persistentvolumeclaims")),
            "{writes:#?}"
        );
    })
    .await;
}

#[tokio::test]
async fn an_object_of_somebody_else_is_not_taken_over() {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        namespace.create::<ServiceAccount>(json!({"metadata": {"name": "wallet-manager"}})).await;
        let operator = Operator::new(namespace).await;
        namespace.apply(cluster("wallet", 2, 2)).await;
        let failed = |status: &tss_operator::crd::TssClusterStatus| {
            status.conditions.iter().any(|condition| condition.reason == "ApplyFailed")
        };
        let mut message = String::new();
        for _ in 0..600 {
            let _ = operator.pass("wallet").await;
            let status = namespace.status("wallet").await;
            if failed(&status) {
                message =
                    status.conditions.iter().find(|one| one.reason == "ApplyFailed").unwrap().message.clone();
                break;
            }
            tokio::time::sleep(crate::server::OFTEN).await;
        }
        assert!(
            message.contains(
                "ServiceAccount wallet-manager is there already and does not belong to this TssCluster"
            ),
            "{message}"
        );
        let account = namespace.get::<ServiceAccount>("wallet-manager").await.unwrap();
        assert!(account.owner_references().is_empty() && account.labels().is_empty(), "{account:?}");
        // Once it is out of the way all goes on.
        namespace.remove::<ServiceAccount>("wallet-manager").await;
        operator.settle("wallet").await;
        assert!(namespace.get::<TssCluster>("wallet").await.is_some());
        assert_whole(namespace, "wallet", 2).await;
    })
    .await;
}
