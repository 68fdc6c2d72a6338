//! The files that people apply: definitions, manifests, examples.

use std::path::{Path, PathBuf};

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tss_operator::crd::{self, SigningRequest, TssCluster};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The objects of a file.
fn objects(path: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The object of this kind in a file.
fn object<K: DeserializeOwned>(path: &str, kind: &str) -> K {
    let found = objects(path).into_iter().find(|object| object["kind"] == kind);
    let found = found.unwrap_or_else(|| panic!("{path} has no {kind}"));
    serde_json::from_value(found).unwrap_or_else(|error| panic!("{path}: {kind}: {error}"))
}

const OPERATOR: &str = "config/kubernetes/operator.yaml";

#[test]
fn crds_are_up_to_date() {
    let mut expected = Vec::new();
    for definition in crd::definitions() {
        let name = format!("{}.yaml", definition.name_any());
        let yaml = crd::yaml(&definition).expect("YAML");
        let found = std::fs::read_to_string(file("crds").join(&name)).unwrap_or_default();
        assert!(
            found == yaml,
            "crds/{name} is not what operator/src/crd says: run `cargo run --bin operator -- crds --out crds`"
        );
        // What is written is what is meant.
        let parsed: Value = serde_saphyr::from_str(&found).expect("YAML");
        assert_eq!(parsed, serde_json::to_value(&definition).expect("JSON"), "crds/{name}");
        expected.push(name);
    }
    let mut found: Vec<String> = std::fs::read_dir(file("crds"))
        .expect("crds")
        .map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

fn texts(list: &Option<Vec<String>>) -> Vec<&str> {
    list.iter().flatten().map(String::as_str).collect()
}

fn rules() -> Vec<PolicyRule> {
    let role: ClusterRole = object(OPERATOR, "ClusterRole");
    role.rules.expect("rules")
}

#[test]
fn the_operator_may_create_secrets_and_never_see_one() {
    let mut found = 0;
    for rule in rules() {
        if texts(&rule.resources).iter().any(|resource| resource.split('/').next() == Some("secrets")) {
            found += 1;
            assert_eq!(rule.verbs, ["create"]);
            assert_eq!(texts(&rule.resources), ["secrets"]);
            assert_eq!(texts(&rule.api_groups), [""]);
        }
    }
    assert_eq!(found, 1, "key generation cannot be given what the operator has not");
}

#[test]
fn the_operator_has_nothing_that_gives_it_more() {
    let lists: Vec<Vec<PolicyRule>> = objects(OPERATOR)
        .into_iter()
        .filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role")
        .map(|object| serde_json::from_value(object["rules"].clone()).expect("rules"))
        .collect();
    assert_eq!(lists.len(), 2);
    for rule in lists.concat() {
        for text in [&texts(&rule.api_groups), &texts(&rule.resources)].into_iter().flatten() {
            assert!(!text.contains('*'), "{rule:?}");
        }
        for verb in &rule.verbs {
            let known = ["get", "list", "watch", "create", "patch", "update", "delete"];
            assert!(known.contains(&verb.as_str()), "{verb} of {rule:?}");
        }
        assert_eq!(rule.non_resource_urls, None);
        for resource in texts(&rule.resources) {
            // Ways into other people's Pods, tokens and roles.
            for never in [
                "pods/exec",
                "pods/attach",
                "pods/portforward",
                "serviceaccounts/token",
                "clusterroles",
                "nodes",
                "users",
            ] {
                assert_ne!(resource, never);
            }
        }
    }
    // What people ask for is not the operator's to change; it makes requests of its own, the canary's.
    for rule in rules() {
        for (resource, nevers) in [
            ("tssclusters", ["create", "delete", "patch", "update"].as_slice()),
            ("signingrequests", &["patch", "update"]),
        ] {
            if texts(&rule.resources).contains(&resource) {
                for never in nevers {
                    assert!(!rule.verbs.contains(&(*never).to_owned()), "{rule:?}");
                }
            }
        }
    }
}

#[test]
fn only_the_operators_own_account_is_bound() {
    for object in objects(OPERATOR) {
        if object["kind"] == "ClusterRoleBinding" || object["kind"] == "RoleBinding" {
            let subjects = serde_json::json!([
                {"kind": "ServiceAccount", "name": "tss-network-operator", "namespace": "tss-network"}
            ]);
            assert_eq!(object["subjects"], subjects);
            assert_eq!(object["roleRef"]["name"], "tss-network-operator");
        }
    }
}

#[test]
fn the_operators_pod_is_restricted() {
    let deployment: k8s_openapi::api::apps::v1::Deployment = object(OPERATOR, "Deployment");
    let pod = deployment.spec.and_then(|spec| spec.template.spec).expect("a Pod");
    let security = pod.security_context.expect("a security context");
    assert_eq!(security.run_as_non_root, Some(true));
    assert_eq!(security.seccomp_profile.map(|profile| profile.type_).as_deref(), Some("RuntimeDefault"));
    for container in pod.containers {
        let security = container.security_context.expect("a security context");
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.read_only_root_filesystem, Some(true));
        let dropped = security.capabilities.and_then(|capabilities| capabilities.drop).expect("capabilities");
        assert_eq!(dropped, ["ALL"]);
        assert!(container.resources.is_some() && container.readiness_probe.is_some());
    }
}

#[test]
fn the_examples_are_what_they_say() {
    let cluster: TssCluster = object("config/kubernetes/examples/tsscluster.yaml", "TssCluster");
    assert_eq!((cluster.name_any().as_str(), cluster.spec.threshold, cluster.spec.signers), ("demo", 2, 3));
    assert_eq!(cluster.spec.auth.kind, crd::AuthKind::None);
    let request: SigningRequest = object("config/kubernetes/examples/signingrequest.yaml", "SigningRequest");
    assert_eq!((request.name_any().as_str(), request.spec.cluster_ref.name.as_str()), ("hello", "demo"));
    assert!(request.spec.message.is_some());
}
