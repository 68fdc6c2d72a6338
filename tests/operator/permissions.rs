//! What operator, managers, signers and key generation may do, asked of the API server, as `kubectl auth can-i --as`.

use std::path::Path;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::key_generation::{assert_one_key, records};
use crate::kubelet::{Kubelet, task};
use crate::operator::{Operator, is_settled};
use crate::renewal::{ask, is_current};
use crate::server::{Namespace, cluster, config, in_namespace, until};
use crate::wire::Wire;

const FILE: &str = "config/kubernetes/operator.yaml";

/// The object of a kind in the manifest that people apply.
fn manifest<K: DeserializeOwned>(kind: &str) -> K {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE))
        .unwrap_or_else(|error| panic!("{FILE}: {error}"));
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let found = objects.into_iter().find(|object| object["kind"] == kind);
    serde_json::from_value(found.unwrap_or_else(|| panic!("{FILE} has no {kind}"))).unwrap()
}

fn user(namespace: &Namespace, account: &str) -> (String, Vec<String>) {
    let groups = [
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{}", namespace.name),
        "system:authenticated".into(),
    ];
    (format!("system:serviceaccount:{}:{account}", namespace.name), groups.into())
}

/// Runs a test with a ServiceAccount `operator`, which may do what the manifest lets the operator do.
async fn with_operator(test: impl AsyncFnOnce(&Namespace)) {
    in_namespace(async |namespace| {
        let mut role: ClusterRole = manifest("ClusterRole");
        // Under another name: in a cluster of a person's there may be an operator.
        role.metadata.name = Some(namespace.name.clone());
        let binding: ClusterRoleBinding = serde_json::from_value(json!({
            "metadata": {"name": namespace.name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace.name},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace.name}],
        }))
        .unwrap();
        let roles: Api<ClusterRole> = Api::all(namespace.client.clone());
        let bindings: Api<ClusterRoleBinding> = Api::all(namespace.client.clone());
        roles.create(&PostParams::default(), &role).await.unwrap();
        bindings.create(&PostParams::default(), &binding).await.unwrap();
        namespace.create::<ServiceAccount>(json!({"metadata": {"name": "operator"}})).await;
        let test = std::panic::AssertUnwindSafe(test(namespace));
        let result = futures::FutureExt::catch_unwind(test).await;
        let _ = roles.delete(&namespace.name, &DeleteParams::default()).await;
        let _ = bindings.delete(&namespace.name, &DeleteParams::default()).await;
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    })
    .await;
}

/// Something that one may be allowed to do: a verb, an API group, and what it is done to.
type Deed = (&'static str, &'static str, &'static str);

/// Whether an account of a namespace may do something in it, or everywhere.
async fn can(
    namespace: &Namespace,
    account: &str,
    (verb, group, resource): Deed,
    place: Option<&str>,
) -> bool {
    let (user, groups) = user(namespace, account);
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (resource, None),
    };
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user),
            groups: Some(groups),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.into()),
                group: Some(group.into()),
                resource: Some(resource.into()),
                subresource,
                namespace: place.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(namespace.client.clone());
    api.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
}

const VERBS: [&str; 9] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "impersonate"];

const RBAC: &str = "rbac.authorization.k8s.io";

const RESOURCES: [(&str, &str); 28] = [
    ("", "secrets"),
    ("", "configmaps"),
    ("", "pods"),
    ("", "pods/exec"),
    ("", "pods/attach"),
    ("", "pods/log"),
    ("", "pods/ephemeralcontainers"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("", "serviceaccounts/token"),
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "nodes"),
    ("", "nodes/proxy"),
    ("", "namespaces"),
    ("", "users"),
    ("apps", "statefulsets"),
    ("apps", "deployments"),
    ("batch", "jobs"),
    ("policy", "poddisruptionbudgets"),
    ("networking.k8s.io", "networkpolicies"),
    (RBAC, "roles"),
    (RBAC, "rolebindings"),
    (RBAC, "clusterroles"),
    ("tss.network", "tssclusters"),
    ("tss.network", "signingrequests"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
];

#[tokio::test]
async fn the_operator_can_make_secrets_and_never_see_or_change_one() {
    with_operator(async |namespace| {
        let here = Some(namespace.name.as_str());
        for place in [here, Some("kube-system"), None] {
            for verb in VERBS {
                let allowed = can(namespace, "operator", (verb, "", "secrets"), place).await;
                assert_eq!(allowed, verb == "create", "{verb} secrets in {place:?}");
            }
            for deed in [
                ("escalate", RBAC, "roles"),
                ("bind", RBAC, "roles"),
                ("escalate", RBAC, "clusterroles"),
                ("bind", RBAC, "clusterroles"),
                ("create", RBAC, "clusterroles"),
                ("create", RBAC, "clusterrolebindings"),
                ("patch", RBAC, "clusterrolebindings"),
                ("impersonate", "", "users"),
                ("impersonate", "", "groups"),
                ("impersonate", "", "serviceaccounts"),
                ("create", "", "serviceaccounts/token"),
                ("create", "", "pods"),
                ("patch", "", "pods"),
                ("delete", "", "pods"),
                ("create", "", "pods/exec"),
                ("create", "", "pods/attach"),
                ("get", "", "pods/log"),
                ("update", "", "pods/ephemeralcontainers"),
                ("get", "", "nodes"),
                ("list", "", "nodes"),
                ("get", "", "nodes/proxy"),
                ("get", "", "namespaces"),
                ("create", "", "namespaces"),
                ("get", "", "persistentvolumeclaims"),
                ("delete", "", "persistentvolumeclaims"),
                ("create", "tss.network", "tssclusters"),
                ("patch", "tss.network", "tssclusters"),
                ("delete", "tss.network", "tssclusters"),
                ("update", "tss.network", "signingrequests"),
                ("patch", "tss.network", "signingrequests"),
                ("create", "admissionregistration.k8s.io", "validatingwebhookconfigurations"),
                ("patch", "apiextensions.k8s.io", "customresourcedefinitions"),
                ("approve", "certificates.k8s.io", "signers"),
            ] {
                assert!(!can(namespace, "operator", deed, place).await, "{deed:?} in {place:?}");
            }
        }
        // The answers to these would show what is in them.
        let operator = operator(namespace).await;
        let secrets: Api<Secret> = Api::namespaced(operator.context.client.clone(), &namespace.name);
        let forbidden = |error: kube::Error| matches!(error, kube::Error::Api(status) if status.code == 403);
        assert!(secrets.list(&ListParams::default()).await.is_err_and(forbidden));
        assert!(secrets.get("any").await.is_err_and(forbidden));
        assert!(secrets.delete("any", &DeleteParams::default()).await.is_err_and(forbidden));
    })
    .await;
}

/// An operator that is the ServiceAccount to the API server.
async fn operator(namespace: &Namespace) -> Operator {
    let mut config = config().await;
    let (user, groups) = user(namespace, "operator");
    config.auth_info.impersonate = Some(user);
    config.auth_info.impersonate_groups = Some(groups);
    Operator::with(namespace, config, Wire::default())
}

#[tokio::test]
async fn the_operator_can_do_all_that_it_has_to_do() {
    with_operator(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        kubelet.fail(task("generate"), "for once");
        let operator = operator(namespace).await;
        let running = operator.run();
        let records = records(namespace).await;
        namespace.apply(cluster("wallet", 2, 3)).await;
        let status = async || namespace.status("wallet").await;
        // A try that fails, and its Jobs that are deleted.
        until("a try fails", async || {
            status().await.key_generation.filter(|progress| progress.failures == 1)
        })
        .await;
        kubelet.release();
        until("the cluster is ready", async || Some(status().await).filter(is_settled)).await;
        assert_one_key(namespace, "wallet", &records, 3).await;
        // A change, something that is wanted no more, and a roster that comes back.
        namespace.remove::<k8s_openapi::api::core::v1::ConfigMap>("wallet-roster").await;
        let spec = json!({"signer": {"image": "s:2"}, "manager": {"replicas": 1}});
        let generation = namespace.change("wallet", spec).await.metadata.generation;
        until("all is done", async || {
            let status = status().await;
            let roster = namespace.get::<k8s_openapi::api::core::v1::ConfigMap>("wallet-roster").await;
            let pods = namespace.list::<Pod>().await;
            let changed = pods
                .iter()
                .filter(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("s:2"))
                .count();
            let jobs = namespace.list::<k8s_openapi::api::batch::v1::Job>().await;
            let done = roster.is_some() && changed == 3 && jobs.is_empty() && is_settled(&status);
            (done && status.observed_generation == generation).then_some(())
        })
        .await;
        until("a person is told", async || {
            let events = namespace.list::<k8s_openapi::api::events::v1::Event>().await;
            let told = |reason: &str| events.iter().any(|event| event.reason.as_deref() == Some(reason));
            (told("KeyGenerated") && told("KeyGenerationFailed") && told("Ready")).then_some(())
        })
        .await;
        assert_one_key(namespace, "wallet", &records, 3).await;
        // New shares, for others, and again: then there is a record that is of no use any more.
        namespace.change("wallet", json!({"signers": 4})).await;
        until("there are new shares", async || Some(status().await).filter(|it| is_current(it, 2))).await;
        ask(namespace).await;
        until("there are newer ones", async || Some(status().await).filter(|it| is_current(it, 3))).await;
        until("the first record is gone", async || namespace.record("wallet").await.is_none().then_some(()))
            .await;
        running.stop().await;
    })
    .await;
}

#[tokio::test]
async fn no_account_of_a_network_can_read_a_secret_and_only_key_generation_can_make_one() {
    in_namespace(async |namespace| {
        let kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        // While key generation runs, when its account is there.
        kubelet.hold(task("generate"));
        namespace.apply(cluster("wallet", 2, 2)).await;
        until("the signers make the key", async || {
            let _ = operator.pass("wallet").await;
            let pods = namespace.list::<Pod>().await;
            pods.iter().any(|pod| pod.name_any().contains("-generate-")).then_some(())
        })
        .await;
        let account = namespace.get::<ServiceAccount>("wallet-keygen").await.unwrap();
        assert_eq!(account.automount_service_account_token, Some(false));
        let here = Some(namespace.name.as_str());
        for (group, resource) in RESOURCES {
            for verb in VERBS {
                let allowed = can(namespace, "wallet-keygen", (verb, group, resource), here).await;
                assert_eq!(
                    allowed,
                    (verb, group, resource) == ("create", "", "secrets"),
                    "{verb} {group}/{resource}"
                );
                if (verb, resource) == ("create", "secrets") {
                    assert!(!can(namespace, "wallet-keygen", (verb, group, resource), Some("default")).await);
                }
            }
        }
        kubelet.release();
        operator.settle("wallet").await;

        let accounts = namespace.list::<ServiceAccount>().await;
        let names: Vec<String> =
            accounts.iter().map(|account| account.name_any()).filter(|name| name != "default").collect();
        assert_eq!(names, ["wallet-manager", "wallet-signer-1", "wallet-signer-2"]);
        // The account of key generation is gone, and what it could do with it.
        assert!(namespace.list::<Role>().await.is_empty());
        for name in names.iter().map(String::as_str).chain(["wallet-keygen"]) {
            for (group, resource) in RESOURCES {
                for verb in VERBS {
                    assert!(
                        !can(namespace, name, (verb, group, resource), here).await,
                        "{name}: {verb} {group}/{resource}"
                    );
                }
            }
        }
        // Nor do their Pods have a token, each has an account of its own, and each sees its own share alone.
        let pods = namespace.list::<Pod>().await;
        let pods: Vec<&Pod> = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        assert_eq!(pods.len(), 4);
        for pod in pods {
            let spec = pod.spec.as_ref().unwrap();
            let text = serde_json::to_string(spec).unwrap();
            assert_eq!(spec.automount_service_account_token, Some(false));
            assert!(!text.contains("serviceAccountToken\":{"), "{text}");
            let name = pod.name_any();
            let account = spec.service_account_name.clone().unwrap();
            assert!(name.starts_with(&account) && names.contains(&account), "{name} {account}");
            for other in
                ["1", "2"].iter().filter(|index| !name.starts_with(&format!("wallet-signer-{index}")))
            {
                assert!(!text.contains(&format!("wallet-signer-{other}-identity")), "{text}");
                assert!(!text.contains(&format!("wallet-signer-{other}-e1")), "{text}");
            }
        }
    })
    .await;
}
