//! What a person reads whose values are wrong.

use crate::helm::{CHARTS, Chart, TSS_CLUSTER};

/// A chart, values for it, and what the message has to say.
const WRONG: &[(&str, &str, &[&str])] = &[
    ("tss-network", "replica: 2", &["'replica' not allowed"]),
    ("tss-network", "replicas: many", &["/replicas", "want integer"]),
    ("tss-network", "replicas: -1", &["/replicas", "-1"]),
    ("tss-network", "image: {tag: '1'}", &["/image", "'tag' not allowed"]),
    (
        "tss-network",
        "image: {operator: {digest: abc}}",
        &["/image/operator/digest", "'abc'", "sha256:[0-9a-f]{64}"],
    ),
    ("tss-network", "image: {signer: {digest: 'sha256:ABC'}}", &["/image/signer/digest", "'sha256:ABC'"]),
    ("tss-network", "image: {manager: {tag: 'a b'}}", &["/image/manager/tag", "'a b'"]),
    ("tss-network", "image: {manager: {repository: ''}}", &["/image/manager/repository"]),
    (
        "tss-network",
        "image: {pullPolicy: Sometimes}",
        &["/image/pullPolicy", "'IfNotPresent', 'Always', 'Never'"],
    ),
    ("tss-network", "imagePullSecrets: [registry]", &["/imagePullSecrets/0", "want object"]),
    ("tss-network", "watchNamespace: [a, b]", &["/watchNamespace", "want string"]),
    ("tss-network", "watchNamespace: Wallets", &["/watchNamespace", "'Wallets'"]),
    ("tss-network", "fullnameOverride: a_b", &["/fullnameOverride", "'a_b'"]),
    ("tss-network", "logs: {format: xml}", &["/logs/format", "'json', 'text'"]),
    ("tss-network", "logs: {level: ''}", &["/logs/level"]),
    ("tss-network", "resources: {requests: {cpu: lots}}", &["/resources/requests/cpu", "'lots'"]),
    ("tss-network", "commonLabels: {a: 1}", &["/commonLabels/a", "want string"]),
    (
        "tss-network",
        "podDisruptionBudget: {maxUnavailable: half}",
        &["/podDisruptionBudget/maxUnavailable", "'half'"],
    ),
    (
        "tss-network",
        "networkPolicy: {apiServerPorts: [https]}",
        &["/networkPolicy/apiServerPorts/0", "want integer"],
    ),
    ("tss-network", "networkPolicy: {apiServerPorts: []}", &["/networkPolicy/apiServerPorts"]),
    (
        "tss-network",
        "monitoring: {podMonitor: {enabled: maybe}}",
        &["/monitoring/podMonitor/enabled", "'auto', true, false"],
    ),
    ("tss-network", "monitoring: {interval: often}", &["/monitoring/interval", "'often'"]),
    ("tss-network", "cluster: {signers: 16}", &["/cluster/signers", "got 16, want 15"]),
    ("tss-network", "cluster: {threshold: 1}", &["/cluster/threshold", "got 1, want 2"]),
    ("tss-network", "cluster: {name: Demo}", &["/cluster/name", "'Demo'"]),
    ("tss-network", "cluster: {rabbitmq: {uri: 'http://rabbit'}}", &["/cluster/rabbitmq/uri", "amqps?"]),
    ("tss-network", "cluster: {mongodb: {uri: 'rabbit'}}", &["/cluster/mongodb/uri", "mongodb"]),
    ("tss-network", "cluster: {mongodb: {port: 0}}", &["/cluster/mongodb/port"]),
    ("tss-network", "managerCa: {existingSecret: a b}", &["/managerCa/existingSecret", "'a b'"]),
    (
        "tss-network",
        "cluster: {certManager: {issuerRef: {kind: ClusterIssuer}}}",
        &["/cluster/certManager/issuerRef", "'name'"],
    ),
    (
        "tss-network",
        "cluster: {certManager: {duration: a year}}",
        &["/cluster/certManager/duration", "'a year'"],
    ),
    (
        "tss-network",
        "cluster: {certManager: {dnsNames: ['https://a']}}",
        &["/cluster/certManager/dnsNames/0", "'https://a'"],
    ),
    ("tss-network", "test: {timeout: 60}", &["/test/timeout", "want string"]),
    ("tss-network", "test: {timeout: soon}", &["/test/timeout", "'soon'"]),
    ("tss-network", "extraArgs: --verbose", &["/extraArgs", "want array"]),
    ("tss-network", "extraEnv: [{value: a}]", &["/extraEnv/0", "missing property 'name'"]),
    // What a schema cannot say, the templates do.
    (
        "tss-network",
        "serviceAccount: {create: false}",
        &["serviceAccount.name: expected the name of a ServiceAccount"],
    ),
    (
        "tss-network",
        "cluster: {enabled: true, threshold: 4}",
        &["cluster.threshold: expected at most cluster.signers, 3"],
    ),
    (
        "tss-network",
        "cluster: {enabled: true, mongodb: {existingSecret: ''}}",
        &["cluster.mongodb: expected existingSecret"],
    ),
    (
        "tss-network",
        "managerCa: {existingSecret: a, configMap: b}",
        &["managerCa: expected existingSecret or configMap, not both"],
    ),
    ("tss-network-crds", "keep: maybe", &["/keep", "want boolean"]),
    ("tss-network-crds", "kept: true", &["'kept' not allowed"]),
    ("backing", "mongodb: {image: {digest: latest}}", &["/mongodb/image/digest", "'latest'"]),
    ("backing", "rabbitmq: {storage: {size: big}}", &["/rabbitmq/storage/size", "'big'"]),
    ("backing", "rabbitmq: {replicas: 3}", &["/rabbitmq", "'replicas' not allowed"]),
];

#[test]
fn a_wrong_value_is_refused_by_name() {
    let mut wrong = Vec::new();
    for (chart, values, expected) in WRONG {
        match Chart::new(chart).values(*values).apis(&[TSS_CLUSTER]).render() {
            Ok(_) => wrong.push(format!("{chart}: {values}: taken")),
            Err(message) if expected.iter().all(|part| message.contains(part)) => {}
            Err(message) => wrong.push(format!("{chart}: {values}: expected {expected:?}, got {message}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each default is a value that a person may write as well.
#[test]
fn the_default_values_are_right() {
    for chart in CHARTS {
        let values = crate::helm::read(format!("charts/{chart}/values.yaml"));
        Chart::new(chart).values(values).render().unwrap_or_else(|error| panic!("{chart}: {error}"));
    }
}

#[test]
fn without_the_definitions_a_network_is_refused_with_what_to_do() {
    let message = Chart::new("tss-network").values("cluster: {enabled: true}").render().unwrap_err();
    assert!(message.contains("helm upgrade --install tss-network-crds charts/tss-network-crds"), "{message}");
    assert!(message.contains(&format!("--api-versions {TSS_CLUSTER}")), "{message}");
}
