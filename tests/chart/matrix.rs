//! Every combination of what makes the charts' objects differ.

use std::collections::BTreeSet;

use serde_json::Value;
use tempfile::TempDir;
use tss_operator::crd::TssCluster;

use crate::helm::{CHARTS, Chart, TSS_CLUSTER, objects, read, run, with_files};

/// The oldest Kubernetes that the charts are for, and the newest that there are schemas of.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

/// Choices that can be combined in every way: values of different names.
const CHOICES: [&[&str]; 6] = [
    &["", "replicas: 3\npodDisruptionBudget: {maxUnavailable: 50%}\n"],
    &["", "watchNamespace: wallets\n"],
    &["", "rbac: {create: false}\nserviceAccount: {create: false, name: mine}\n"],
    &[
        "monitoring: {dashboards: {annotations: {grafana_folder: TSS}}}\n",
        "monitoring:\n  interval: 30s\n  labels: {release: prometheus}\n  serviceMonitor: {enabled: true}\n  \
         podMonitor: {enabled: true}\n  prometheusRule: {enabled: true}\n  dashboards: {enabled: true}\n",
    ],
    &[
        "test: {cluster: wallet, namespace: wallets, timeout: 90s}\n",
        "cluster: {enabled: true}\n",
        "cluster:\n  enabled: true\n  name: wallet\n  threshold: 3\n  signers: 5\n  \
         rabbitmq: {uri: 'amqps://u:p@rabbit:5671/%2f', port: 5671}\n  mongodb: {uri: 'mongodb+srv://u:p@mongo'}\n  \
         certManager: {enabled: true, dnsNames: [sign.example]}\n  spec:\n    policy: {configMap: policy}\n    manager: {replicas: 3}\n    rabbitmq: {port: 5999}\n",
    ],
    &["", EVERYTHING_ELSE],
];

const EVERYTHING_ELSE: &str = r#"
nameOverride: signatures
commonLabels: {team: treasury}
image:
  registry: registry.example:5000
  pullPolicy: Always
  operator: {digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}
  manager: {repository: m, tag: "2"}
imagePullSecrets: [{name: registry}]
logs: {level: "info,tss_operator=debug", format: text}
resources: {requests: {cpu: 0.5, memory: 1Gi}, limits: {cpu: 1, memory: 1Gi}}
podLabels: {tier: control}
podAnnotations: {a: b}
priorityClassName: system-cluster-critical
nodeSelector: {kubernetes.io/os: linux}
tolerations: [{key: control, operator: Exists}]
affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}
topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app.kubernetes.io/name: tss-network-operator}}}
networkPolicy:
  enabled: true
  metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
  extraEgress: [{ports: [{port: 4317, protocol: TCP}]}]
managerCa: {configMap: authorities, key: bundle.pem}
extraEnv: [{name: HTTPS_PROXY, value: "http://proxy:3128"}]
extraEnvFrom: [{secretRef: {name: more, optional: true}}]
extraArgs: [--lease-seconds=30]
extraVolumes: [{name: certificates, configMap: {name: certificates}}]
extraVolumeMounts: [{name: certificates, mountPath: /etc/ssl/certs, readOnly: true}]
extraContainers: [{name: sidecar, image: "sidecar:1"}]
extraObjects:
  - {apiVersion: v1, kind: ConfigMap, metadata: {name: "{{ .Release.Name }}-extra"}, data: {a: "{{ .Release.Namespace }}"}}
  - |
    apiVersion: v1
    kind: ConfigMap
    metadata:
      name: {{ .Release.Name }}-more
"#;

const MONITORING: [&str; 3] = [
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
];

/// All values that choices make together.
fn combinations() -> Vec<String> {
    let mut all = vec![String::new()];
    for choices in CHOICES {
        all = all
            .iter()
            .flat_map(|begun| choices.iter().map(move |choice| format!("{begun}{choice}")))
            .collect();
    }
    all
}

fn charts(with_files: &TempDir) -> Vec<Chart> {
    let mut all: Vec<Chart> = combinations()
        .into_iter()
        .enumerate()
        .map(|(number, values)| {
            // Half of them where Prometheus's operator is.
            let apis = [&[TSS_CLUSTER][..], if number % 2 == 0 { &MONITORING } else { &[] }].concat();
            let values = if values.is_empty() { "{}".into() } else { values };
            Chart::new("tss-network").at(with_files).values(values).apis(&apis)
        })
        .collect();
    all.extend(CHARTS.map(|name| Chart::new(name).apis(&[TSS_CLUSTER])));
    all.push(Chart::new("tss-network-crds").values("{keep: false, labels: {a: b}, annotations: {c: d}}"));
    all.push(Chart::new("backing").values(
        "{rabbitmq: {enabled: false}, mongodb: {existingSecret: mine, storage: {storageClassName: fast}}, \
         networkPolicy: {enabled: false}, imagePullSecrets: [{name: r}], nodeSelector: {a: b}, tolerations: [{operator: Exists}]}",
    ));
    all
}

/// All objects of charts, each one once, made by two at a time.
fn render(charts: &[Chart]) -> Vec<Value> {
    let (one, other) = charts.split_at(charts.len() / 2);
    let texts = |charts: &[Chart]| -> Vec<Value> { charts.iter().flat_map(Chart::objects).collect() };
    let mut all = std::thread::scope(|scope| {
        let other = scope.spawn(|| texts(other));
        let mut all = texts(one);
        all.extend(other.join().unwrap());
        all
    });
    let mut seen = BTreeSet::new();
    all.retain(|object| seen.insert(object.to_string()));
    all
}

fn group(object: &Value) -> &str {
    object["apiVersion"].as_str().unwrap().split_once('/').map_or("", |(group, _)| group)
}

/// What the operator reads of an object has every field that the object has.
fn assert_read_whole(given: &Value, read: &Value, path: &str) {
    match given {
        Value::Object(fields) => {
            for (name, value) in fields {
                assert_read_whole(value, &read[name], &format!("{path}.{name}"));
            }
        }
        given => assert_eq!(given, read, "{path} is not a field of a TssCluster, or not of this type"),
    }
}

#[test]
fn every_combination_of_values_makes_valid_objects() {
    let files = with_files();
    let charts = charts(&files);
    assert!(charts.len() > 90, "the combinations are missing: {}", charts.len());
    let objects = render(&charts);

    let (networks, rest): (Vec<&Value>, Vec<&Value>) =
        objects.iter().partition(|object| group(object) == "tss.network");
    assert!(!networks.is_empty());
    for network in networks {
        let read: TssCluster = serde_json::from_value(network.clone()).unwrap();
        assert_read_whole(&network["spec"], &serde_json::to_value(&read).unwrap()["spec"], "spec");
    }
    // Of these kinds there are no schemas here: see the module `server`.
    let others = ["monitoring.coreos.com", "cert-manager.io"];
    let rest: Vec<&Value> = rest.into_iter().filter(|object| !others.contains(&group(object))).collect();
    let kinds: BTreeSet<&str> = rest.iter().filter_map(|object| object["kind"].as_str()).collect();
    assert!(kinds.len() > 12, "{kinds:?}");

    let folder = TempDir::new().unwrap();
    let file = folder.path().join("objects.yaml").display().to_string();
    // A line of JSON is YAML.
    let text: Vec<String> = rest.iter().map(|object| format!("---\n{object}\n")).collect();
    std::fs::write(&file, text.concat()).unwrap();
    for version in VERSIONS {
        let said = run("kubernetes-validate", &["-k", version, "--strict", &file], "");
        let said = Said { all: format!("{}{}", said.stdout, said.stderr), success: said.success };
        assert!(
            said.success && said.others().is_empty(),
            "Kubernetes {version}:\n{}",
            said.others().join("\n")
        );
        assert_eq!(said.all.lines().count(), rest.len(), "not every object was looked at:\n{}", said.all);
    }
}

struct Said {
    all: String,
    success: bool,
}

impl Said {
    /// All but what passed.
    fn others(&self) -> Vec<&str> {
        self.all.lines().filter(|line| !line.contains(" passed for resource ")).collect()
    }
}

#[test]
fn helm_finds_nothing_to_say_against_a_chart() {
    for name in CHARTS {
        let output = run("helm", &["lint", "--strict", &format!("charts/{name}")], "");
        assert!(output.success, "{name}: {}{}", output.stdout, output.stderr);
        for line in output.stdout.lines().filter(|line| line.starts_with('[')) {
            // There is none.
            assert_eq!(line, "[INFO] Chart.yaml: icon is recommended", "{name}");
        }
    }
}

#[test]
fn charts_have_the_version_of_the_programs() {
    for name in CHARTS {
        let chart = read(format!("charts/{name}/Chart.yaml"));
        let chart = &objects(&chart)[0];
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"), "{name}");
        // The servers have versions of their own.
        if name != "backing" {
            assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"), "{name}");
        }
    }
    assert!(read("Containerfile").contains(concat!("\nARG VERSION=", env!("CARGO_PKG_VERSION"), "\n")));
}
