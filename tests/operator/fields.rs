//! What each field of a TssCluster does to the objects, and that it is undone when the field is taken out again.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{ApiResource, PostParams};
use serde_json::{Value, json};
use tss_operator::crd::TssClusterStatus;

use crate::kubelet::Kubelet;
use crate::operator::{Operator, is_settled};
use crate::server::{Namespace, cluster, in_namespace};

/// A field, and what comes of it.
struct Field {
    spec: Value,
    /// Where it is seen: kind, name, JSON pointer, and what stands there then.
    seen: Vec<(&'static str, &'static str, &'static str, Value)>,
}

fn fields() -> Vec<Field> {
    let field = |spec: Value, seen: &[(&'static str, &'static str, &'static str, Value)]| Field {
        spec,
        seen: seen.to_vec(),
    };
    let (signer1, signer2, manager) = ("wallet-signer-1", "wallet-signer-2", "wallet-manager");
    let (set, deployment) = ("StatefulSet", "Deployment");
    let tolerations = json!([{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}]);
    let resources = json!({"requests": {"cpu": "250m", "memory": "96Mi"}, "limits": {"memory": "1Gi"}});
    vec![
        field(json!({"manager": {"replicas": 3}}), &[(deployment, manager, "/spec/replicas", json!(3))]),
        field(json!({"manager": {"replicas": 1}}), &[(deployment, manager, "/spec/replicas", json!(1))]),
        field(
            json!({"manager": {"image": "m:2"}}),
            &[(deployment, manager, "/spec/template/spec/containers/0/image", json!("m:2"))],
        ),
        field(
            json!({"signer": {"image": "s:2"}}),
            &[
                (set, signer1, "/spec/template/spec/containers/0/image", json!("s:2")),
                (set, signer2, "/spec/template/spec/containers/0/image", json!("s:2")),
            ],
        ),
        field(
            json!({"manager": {"resources": resources}}),
            &[(deployment, manager, "/spec/template/spec/containers/0/resources", resources.clone())],
        ),
        field(
            json!({"signer": {"resources": resources}}),
            &[(set, signer1, "/spec/template/spec/containers/0/resources", resources.clone())],
        ),
        field(
            json!({"signer": {"resources": {"limits": {"cpu": "1"}}}}),
            &[(set, signer1, "/spec/template/spec/containers/0/resources/limits", json!({"cpu": "1"}))],
        ),
        field(
            json!({"manager": {"nodeSelector": {"disk": "fast"}}}),
            &[(deployment, manager, "/spec/template/spec/nodeSelector", json!({"disk": "fast"}))],
        ),
        field(
            json!({"signer": {"nodeSelector": {"disk": "fast"}}}),
            &[(set, signer2, "/spec/template/spec/nodeSelector", json!({"disk": "fast"}))],
        ),
        field(
            json!({"manager": {"tolerations": tolerations}}),
            &[(deployment, manager, "/spec/template/spec/tolerations", tolerations.clone())],
        ),
        field(
            json!({"signer": {"tolerations": tolerations}}),
            &[(set, signer1, "/spec/template/spec/tolerations", tolerations.clone())],
        ),
        field(
            json!({"manager": {"priorityClassName": "system-node-critical"}}),
            &[(deployment, manager, "/spec/template/spec/priorityClassName", json!("system-node-critical"))],
        ),
        field(
            json!({"signer": {"priorityClassName": "system-cluster-critical"}}),
            &[(set, signer1, "/spec/template/spec/priorityClassName", json!("system-cluster-critical"))],
        ),
        field(
            json!({"signer": {"antiAffinity": "Required"}}),
            &[(
                set,
                signer1,
                "/spec/template/spec/affinity/podAntiAffinity",
                json!({"requiredDuringSchedulingIgnoredDuringExecution": [{
                    "labelSelector": {"matchLabels": {"tss.network/cluster": "wallet", "app.kubernetes.io/component": "signer"}},
                    "topologyKey": "kubernetes.io/hostname",
                }]}),
            )],
        ),
        field(
            json!({"imagePullSecrets": [{"name": "pull"}]}),
            &[
                (set, signer1, "/spec/template/spec/imagePullSecrets", json!([{"name": "pull"}])),
                (deployment, manager, "/spec/template/spec/imagePullSecrets", json!([{"name": "pull"}])),
            ],
        ),
        field(
            json!({"logLevel": "debug"}),
            &[
                (
                    "ConfigMap",
                    "wallet-signers-config",
                    "/data/production.toml",
                    json!("contains level = \"debug\""),
                ),
                (
                    "ConfigMap",
                    "wallet-manager-config",
                    "/data/production.toml",
                    json!("contains level = \"debug\""),
                ),
                (
                    set,
                    signer1,
                    "/spec/template/metadata/annotations/tss.network~1configuration",
                    json!("changed"),
                ),
                (
                    deployment,
                    manager,
                    "/spec/template/metadata/annotations/tss.network~1configuration",
                    json!("changed"),
                ),
            ],
        ),
        field(
            json!({"signingTimeoutSeconds": 7}),
            &[
                (
                    "ConfigMap",
                    "wallet-signers-config",
                    "/data/default.toml",
                    json!("contains signing_timeout = 7"),
                ),
                (
                    "ConfigMap",
                    "wallet-manager-config",
                    "/data/default.toml",
                    json!("contains signing_timeout = 7"),
                ),
                (
                    set,
                    signer2,
                    "/spec/template/metadata/annotations/tss.network~1configuration",
                    json!("changed"),
                ),
            ],
        ),
        field(
            json!({"policy": {"configMap": "rules", "key": "rules.toml"}}),
            &[
                (
                    "ConfigMap",
                    "wallet-signers-config",
                    "/data/default.toml",
                    json!("contains policy_file = \"/etc/tss-policy/rules.toml\""),
                ),
                (
                    set,
                    signer1,
                    "/spec/template/spec/volumes",
                    json!("contains \"configMap\":{\"defaultMode\":420,\"name\":\"rules\"}"),
                ),
                (
                    set,
                    signer1,
                    "/spec/template/spec/containers/0/volumeMounts",
                    json!("contains /etc/tss-policy"),
                ),
            ],
        ),
        field(
            json!({"rabbitmq": {"uriSecret": {"name": "broker", "key": "amqp"}, "port": 5671}}),
            &[
                (
                    set,
                    signer1,
                    "/spec/template/spec/volumes",
                    json!(
                        "contains \"items\":[{\"key\":\"amqp\",\"path\":\"uri\"}],\"secretName\":\"broker\""
                    ),
                ),
                (
                    deployment,
                    manager,
                    "/spec/template/spec/volumes",
                    json!("contains \"secretName\":\"broker\""),
                ),
                ("NetworkPolicy", "wallet-signers", "/spec/egress", json!("contains 5671")),
                ("NetworkPolicy", manager, "/spec/egress", json!("contains 5671")),
            ],
        ),
        field(
            json!({"mongodb": {"uriSecret": {"name": "store"}, "port": 27018, "database": "requests"}}),
            &[
                (
                    deployment,
                    manager,
                    "/spec/template/spec/volumes",
                    json!("contains \"secretName\":\"store\""),
                ),
                ("NetworkPolicy", manager, "/spec/egress", json!("contains 27018")),
                (
                    "ConfigMap",
                    "wallet-manager-config",
                    "/data/default.toml",
                    json!("contains mongodb_database = \"requests\""),
                ),
            ],
        ),
    ]
}

fn kind_of(kind: &str) -> ApiResource {
    match kind {
        "StatefulSet" => ApiResource::erase::<StatefulSet>(&()),
        "Deployment" => ApiResource::erase::<Deployment>(&()),
        "ConfigMap" => ApiResource::erase::<ConfigMap>(&()),
        "NetworkPolicy" => ApiResource::erase::<NetworkPolicy>(&()),
        other => panic!("{other}"),
    }
}

async fn look(namespace: &Namespace, kind: &str, name: &str, pointer: &str) -> Option<Value> {
    let object = namespace.dynamic(&kind_of(kind)).get(name).await.unwrap();
    serde_json::to_value(object).unwrap().pointer(pointer).cloned()
}

/// What an operator alone decides, without what says how it was decided.
async fn objects(namespace: &Namespace) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for kind in ["StatefulSet", "Deployment", "ConfigMap", "NetworkPolicy"] {
        for object in namespace.dynamic(&kind_of(kind)).list(&Default::default()).await.unwrap() {
            let mut data = object.data.clone();
            data.as_object_mut().unwrap().remove("status");
            all.push((format!("{kind} {}", object.metadata.name.unwrap()), data));
        }
    }
    all
}

#[tokio::test]
async fn each_field_does_what_it_says_and_is_undone_when_it_is_taken_out() {
    let mut fields = fields();
    let mut parts = Vec::new();
    while !fields.is_empty() {
        parts.push(try_out(fields.split_off(fields.len().saturating_sub(5))));
    }
    futures::future::join_all(parts).await;
}

/// Puts these in and takes them out again, one after the other.
async fn try_out(fields: Vec<Field>) {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        let plain = cluster("wallet", 2, 2);
        namespace.apply(plain.clone()).await;
        operator.settle("wallet").await;
        let before = objects(namespace).await;
        for Field { spec, seen } in fields {
            let mut was = Vec::new();
            for (kind, name, pointer, _) in &seen {
                was.push(look(namespace, kind, name, pointer).await);
            }
            let mut changed = plain.clone();
            for (key, value) in spec.as_object().unwrap() {
                changed["spec"][key] = value.clone();
            }
            namespace.apply(changed).await;
            operator.settle("wallet").await;
            for ((kind, name, pointer, expected), was) in seen.iter().zip(&was) {
                let now = look(namespace, kind, name, pointer).await;
                assert_ne!(now, *was, "{spec} changes nothing at {kind} {name} {pointer}");
                let text = |value: &Option<Value>| match value {
                    Some(Value::String(text)) => text.clone(),
                    other => json!(other).to_string(),
                };
                match expected.as_str() {
                    Some("changed") => {}
                    Some(part) if part.starts_with("contains ") => {
                        let part = part.trim_start_matches("contains ");
                        assert!(
                            text(&now).contains(part),
                            "{spec}: no {part} at {kind} {name} {pointer}: {}",
                            text(&now)
                        );
                    }
                    _ => assert_eq!(now.as_ref(), Some(expected), "{spec} at {kind} {name} {pointer}"),
                }
            }
            namespace.apply(plain.clone()).await;
            operator.settle("wallet").await;
            for ((name, was), (_, now)) in before.iter().zip(&objects(namespace).await) {
                assert_eq!(was, now, "{spec} has left a trace in {name}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_schedule_of_new_shares_says_when_they_are_made_and_changes_nothing_before() {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        let plain = cluster("wallet", 2, 2);
        namespace.apply(plain.clone()).await;
        operator.settle("wallet").await;
        let before = objects(namespace).await;
        let says = |status: &TssClusterStatus, kind: &str, part: &str| {
            status.conditions.iter().any(|one| one.type_ == kind && one.message.contains(part))
        };
        let mut wanted = plain.clone();
        // Never soon.
        wanted["spec"]["refresh"] = json!({"schedule": "0 3 29 2 *"});
        namespace.apply(wanted.clone()).await;
        let again = "; they are made anew at 20";
        operator.pass_until("wallet", again, |status| says(status, "SharesCurrent", again)).await;
        // The API server takes it for a schedule.
        wanted["spec"]["refresh"] = json!({"schedule": "0 3 30 2 *"});
        namespace.apply(wanted).await;
        let wrong = "refresh.schedule: expected five fields of cron";
        operator.pass_until("wallet", wrong, |status| says(status, "Ready", wrong)).await;
        assert!(!is_settled(&namespace.status("wallet").await));
        namespace.apply(plain).await;
        operator
            .pass_until("wallet", "it is as before", |status| {
                is_settled(status) && !says(status, "SharesCurrent", again)
            })
            .await;
        assert_eq!(objects(namespace).await, before);
        assert_eq!(namespace.status("wallet").await.epoch, Some(1));
    })
    .await;
}

#[tokio::test]
async fn a_single_manager_may_be_moved() {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        namespace.apply(cluster("wallet", 2, 2)).await;
        operator.settle("wallet").await;
        assert!(namespace.get::<PodDisruptionBudget>("wallet-manager").await.is_some());
        namespace.change("wallet", json!({"manager": {"replicas": 1}})).await;
        operator.settle("wallet").await;
        assert!(
            namespace.get::<PodDisruptionBudget>("wallet-manager").await.is_none(),
            "a drain would never end"
        );
        assert!(namespace.get::<PodDisruptionBudget>("wallet-signers").await.is_some());
        namespace.change("wallet", json!({"manager": {"replicas": 2}})).await;
        operator.settle("wallet").await;
        assert!(namespace.get::<PodDisruptionBudget>("wallet-manager").await.is_some());
    })
    .await;
}

#[tokio::test]
async fn storage_is_what_was_asked_for() {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let operator = Operator::new(namespace).await;
        let mut wanted = cluster("wallet", 2, 2);
        wanted["spec"]["signer"] = json!({"storage": {"size": "3Gi", "storageClassName": "fast"}});
        let api: Api<tss_operator::crd::TssCluster> = namespace.api();
        api.create(&PostParams::default(), &serde_json::from_value(wanted).unwrap()).await.unwrap();
        operator.settle("wallet").await;
        let claims = namespace.list::<k8s_openapi::api::core::v1::PersistentVolumeClaim>().await;
        assert_eq!(claims.len(), 2);
        for claim in claims {
            let spec = serde_json::to_value(claim.spec.unwrap()).unwrap();
            assert_eq!(spec["resources"]["requests"]["storage"], "3Gi");
            assert_eq!(spec["storageClassName"], "fast");
        }
    })
    .await;
}
