//! The chart beside config/kubernetes/operator.yaml, which is the reference of what the operator needs.

use serde_json::{Value, json};
use tss_operator::context::FIELD_MANAGER;

use crate::helm::{Chart, objects, of_kind, read, the};

const MANIFEST: &str = "config/kubernetes/operator.yaml";

fn manifest() -> Vec<Value> {
    objects(&read(MANIFEST))
}

fn pod(objects: &[Value]) -> &Value {
    &the(objects, "Deployment")["spec"]["template"]
}

#[test]
fn the_operator_runs_as_in_the_manifest() {
    let (chart, manifest) = (Chart::new("tss-network").objects(), manifest());
    // Containers, security contexts, grace period, ServiceAccount: everything.
    assert_eq!(pod(&chart)["spec"], pod(&manifest)["spec"]);
    let spec = |objects| the(objects, "Deployment")["spec"].clone();
    assert_eq!(spec(&chart)["strategy"], spec(&manifest)["strategy"]);
    assert_eq!(spec(&chart)["replicas"], spec(&manifest)["replicas"]);
    assert_eq!(the(&chart, "Service")["spec"]["ports"], the(&manifest, "Service")["spec"]["ports"]);
    for kind in ["Deployment", "Service", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"] {
        assert_eq!(the(&chart, kind)["metadata"]["name"], the(&manifest, kind)["metadata"]["name"], "{kind}");
    }
}

/// The API server fills in `rollingUpdate`, and refuses it beside Recreate. Only what Helm has written does Helm take away.
#[test]
fn several_operators_can_become_one_again() {
    let strategy = |values: &str| {
        the(&Chart::new("tss-network").values(values).objects(), "Deployment")["spec"]["strategy"].clone()
    };
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    assert_eq!(strategy("replicas: 2"), rolling);
    assert_eq!(strategy("replicas: 1"), json!({"type": "Recreate"}));
}

#[test]
fn the_operator_may_do_what_the_manifest_says_and_no_more() {
    let manifest = manifest();
    let chart = Chart::new("tss-network").objects();
    assert_eq!(the(&chart, "ClusterRole")["rules"], the(&manifest, "ClusterRole")["rules"]);
    assert!(of_kind(&chart, "Role").is_empty(), "one operator elects no leader");

    let several = Chart::new("tss-network").values("replicas: 2").objects();
    assert_eq!(the(&several, "ClusterRole")["rules"], the(&manifest, "ClusterRole")["rules"]);
    assert_eq!(the(&several, "Role")["rules"], the(&manifest, "Role")["rules"]);
    assert_eq!(the(&several, "Role")["metadata"]["namespace"], "tss-network");
}

#[test]
fn with_one_namespace_it_may_do_the_same_there_and_nothing_elsewhere() {
    let made = Chart::new("tss-network").values("watchNamespace: wallets").objects();
    for kind in ["ClusterRole", "ClusterRoleBinding"] {
        assert!(of_kind(&made, kind).is_empty(), "{kind}");
    }
    assert_eq!(the(&made, "Role")["rules"], the(&manifest(), "ClusterRole")["rules"]);
    assert_eq!(the(&made, "Role")["metadata"]["namespace"], "wallets");
    let binding = the(&made, "RoleBinding");
    assert_eq!(binding["metadata"]["namespace"], "wallets");
    let subject =
        json!({"kind": "ServiceAccount", "name": "tss-network-operator", "namespace": "tss-network"});
    assert_eq!(binding["subjects"], json!([subject]));
    assert_eq!(binding["roleRef"]["kind"], "Role");
    let environment = pod(&made)["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(environment.contains(&json!({"name": "WATCH_NAMESPACE", "value": "wallets"})));
}

/// Whether a list of a rule has this entry, or all there are.
fn has(rule: &Value, list: &str, entry: &str) -> bool {
    rule[list].as_array().unwrap().iter().any(|it| it == entry || it == "*")
}

#[test]
fn the_operator_may_not_read_secrets_in_any_mode() {
    let modes = ["{}", "replicas: 3", "watchNamespace: wallets", "{watchNamespace: wallets, replicas: 3}"];
    for values in modes {
        let made = Chart::new("tss-network").values(values).objects();
        let roles = [of_kind(&made, "ClusterRole"), of_kind(&made, "Role")].concat();
        assert!(!roles.is_empty());
        let mut creates = false;
        for rule in roles.iter().flat_map(|role| role["rules"].as_array().unwrap()) {
            if has(rule, "apiGroups", "") && has(rule, "resources", "secrets") {
                assert_eq!(rule["verbs"], json!(["create"]), "{values}: {rule}");
                creates = true;
            }
            for verb in ["escalate", "bind", "impersonate"] {
                assert!(!has(rule, "verbs", verb), "{values}: {rule}");
            }
            for list in ["apiGroups", "resources", "verbs"] {
                assert!(!rule[list].as_array().unwrap().contains(&json!("*")), "{values}: {rule}");
            }
        }
        assert!(creates, "{values}: shares cannot be stored");
    }
}

#[test]
fn without_rbac_there_are_no_roles_and_the_account_is_the_one_named() {
    let values = "{rbac: {create: false}, serviceAccount: {create: false, name: mine}, replicas: 2}";
    let made = Chart::new("tss-network").values(values).objects();
    for kind in ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"] {
        assert!(of_kind(&made, kind).is_empty(), "{kind}");
    }
    assert_eq!(pod(&made)["spec"]["serviceAccountName"], "mine");
}

/// The NetworkPolicy of managers lets in Pods of this label's value.
#[test]
fn managers_know_the_operator_whatever_the_release_is_called() {
    for (release, values) in [("tss-network", "{}"), ("a", "nameOverride: b"), ("c", "fullnameOverride: d")] {
        let made = Chart::new("tss-network").release(release, "elsewhere").values(values).objects();
        assert_eq!(pod(&made)["metadata"]["labels"]["app.kubernetes.io/name"], FIELD_MANAGER);
        let environment = pod(&made)["spec"]["containers"][0]["env"].as_array().unwrap();
        assert!(environment.iter().any(|variable| variable["name"] == "POD_NAMESPACE"));
    }
}

/// Two releases share nothing, and what selects Pods selects the operator's, of its own release.
#[test]
fn what_selects_selects_the_operators_own_pods() {
    let values = "{replicas: 3, networkPolicy: {enabled: true}, podLabels: {app.kubernetes.io/name: other}, \
                  cluster: {enabled: true}}";
    let chart = Chart::new("tss-network").values(values).apis(&[crate::helm::TSS_CLUSTER]);
    let made = chart.objects();
    let labels = pod(&made)["metadata"]["labels"].as_object().unwrap();
    let test = the(&made, "Pod")["metadata"]["labels"].as_object().unwrap();
    let selectors = [
        &the(&made, "Deployment")["spec"]["selector"]["matchLabels"],
        &the(&made, "Service")["spec"]["selector"],
        &the(&made, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        &the(&made, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        &pod(&made)["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
            [0]["podAffinityTerm"]["labelSelector"]["matchLabels"],
    ];
    for selector in selectors {
        let selector = selector.as_object().unwrap();
        let selects = |labels: &serde_json::Map<String, Value>| {
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        assert!(selects(labels), "{selector:?} does not select the operator");
        assert!(!selects(test), "{selector:?} selects the test");
    }
    let other = chart.release("other", "tss-network").objects();
    let names = |objects: &[Value]| -> Vec<String> {
        let name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
        objects.iter().filter(|object| object["kind"] != "TssCluster").map(name).collect()
    };
    for name in names(&other) {
        assert!(!names(&made).contains(&name), "{name} is of both releases");
    }
}

#[test]
fn a_digest_decides_which_image_runs() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let values = format!(
        "image: {{registry: r.example, operator: {{digest: '{digest}', tag: x}}, manager: {{tag: '2'}}, signer: {{repository: s}}}}"
    );
    let made = Chart::new("tss-network").values(values).objects();
    let container = &pod(&made)["spec"]["containers"][0];
    let operator = format!("r.example/your-username/tss-network/operator@{digest}");
    assert_eq!(container["image"], operator);
    let variable = |name: &str| {
        let all = container["env"].as_array().unwrap();
        all.iter().find(|it| it["name"] == name).unwrap()["value"].clone()
    };
    assert_eq!(variable("OPERATOR_IMAGE"), operator);
    assert_eq!(variable("MANAGER_IMAGE"), "r.example/your-username/tss-network/manager:2");
    assert_eq!(variable("SIGNER_IMAGE"), format!("r.example/s:{}", env!("CARGO_PKG_VERSION")));

    let made =
        Chart::new("tss-network").values("image: {registry: '', operator: {repository: local/op}}").objects();
    let image = format!("local/op:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(pod(&made)["spec"]["containers"][0]["image"], image);
}

/// The command line of the operator takes what the chart gives it.
#[test]
fn the_operator_understands_its_arguments_and_environment() {
    use clap::{Args as _, FromArgMatches as _};
    use tss_operator::program::RunOptions;

    let made = Chart::new("tss-network")
        .values("{replicas: 2, watchNamespace: w, extraArgs: [--lease-seconds=30]}")
        .objects();
    let container = &pod(&made)["spec"]["containers"][0];
    let command = RunOptions::augment_args(clap::Command::new("run"));
    // A variable as the option that reads it; the flag is on or not there.
    let mut arguments = Vec::new();
    for argument in container["args"].as_array().unwrap() {
        arguments.push(argument.as_str().unwrap().to_owned());
    }
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        let option = command.get_arguments().find(|it| it.get_env().is_some_and(|env| env == name));
        let option =
            option.unwrap_or_else(|| panic!("the operator does not read {name}")).get_long().unwrap();
        let value = variable["value"].as_str().unwrap_or("from-the-pod");
        match (name, value) {
            ("LEADER_ELECTION", "true") => arguments.push(format!("--{option}")),
            ("LEADER_ELECTION", value) => panic!("LEADER_ELECTION={value} with several replicas"),
            _ => arguments.push(format!("--{option}={value}")),
        }
    }
    let options = RunOptions::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap();
    assert!(options.leader_election);
    assert_eq!(options.lease_seconds, 30);
    assert_eq!(options.options.watch_namespace.as_deref(), Some("w"));
}

#[test]
fn what_a_person_adds_is_there() {
    let values = "
commonLabels: {team: treasury}
podAnnotations: {a: b}
imagePullSecrets: [{name: registry}]
priorityClassName: system-cluster-critical
nodeSelector: {disk: ssd}
tolerations: [{operator: Exists}]
topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]
extraEnv: [{name: A, value: b}]
extraEnvFrom: [{secretRef: {name: c}}]
extraVolumes: [{name: v, emptyDir: {}}]
extraVolumeMounts: [{name: v, mountPath: /v}]
extraContainers: [{name: sidecar, image: s}]
extraObjects: ['{apiVersion: v1, kind: ConfigMap, metadata: {name: \"{{ .Release.Name }}-x\"}}']
";
    let made = Chart::new("tss-network").values(values).objects();
    let (template, spec) = (pod(&made), &pod(&made)["spec"]);
    assert_eq!(template["metadata"]["annotations"], json!({"a": "b"}));
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(spec["priorityClassName"], "system-cluster-critical");
    assert_eq!(spec["nodeSelector"], json!({"disk": "ssd"}));
    assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(spec["topologySpreadConstraints"][0]["topologyKey"], "zone");
    assert!(spec["containers"][0]["env"].as_array().unwrap().contains(&json!({"name": "A", "value": "b"})));
    assert_eq!(spec["containers"][0]["envFrom"], json!([{"secretRef": {"name": "c"}}]));
    assert_eq!(spec["containers"][0]["volumeMounts"], json!([{"name": "v", "mountPath": "/v"}]));
    assert_eq!(spec["containers"][1], json!({"name": "sidecar", "image": "s"}));
    assert_eq!(spec["volumes"], json!([{"name": "v", "emptyDir": {}}]));
    assert_eq!(the(&made, "ConfigMap")["metadata"]["name"], "tss-network-x");
    for object in made.iter().filter(|object| object["kind"] != "ConfigMap") {
        assert_eq!(object["metadata"]["labels"]["team"], "treasury", "{object}");
    }
    assert_eq!(template["metadata"]["labels"]["team"], "treasury");
}
