//! Monitors, alerts and dashboards: what is made is compared with what it should be, field for field.

use serde_json::{Value, json};
use tss_operator::cluster::names;

use crate::helm::{ALERTS, Chart, DASHBOARD, objects, of_kind, the, with_files};

pub(crate) const ALL: [&str; 3] = [
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
];

fn kinds(made: &[Value]) -> Vec<&str> {
    let of_prometheus = made.iter().filter(|object| object["apiVersion"] == "monitoring.coreos.com/v1");
    let mut kinds: Vec<&str> = of_prometheus.map(|object| object["kind"].as_str().unwrap()).collect();
    kinds.extend(of_kind(made, "ConfigMap").iter().map(|_| "dashboard"));
    kinds.sort_unstable();
    kinds
}

#[test]
fn monitors_appear_where_kubernetes_knows_them_or_when_they_are_asked_for() {
    let files = with_files();
    let chart = Chart::new("tss-network").at(&files);
    let every = ["PodMonitor", "PrometheusRule", "ServiceMonitor", "dashboard"];
    assert_eq!(kinds(&chart.clone().objects()), Vec::<&str>::new());
    assert_eq!(kinds(&chart.clone().apis(&ALL).objects()), every);
    assert_eq!(kinds(&chart.clone().apis(&ALL[1..2]).objects()), ["PodMonitor"]);
    let switched = |to: &str| {
        let parts = ["serviceMonitor", "podMonitor", "prometheusRule", "dashboards"];
        let values: Vec<String> = parts.iter().map(|part| format!("{part}: {{enabled: {to}}}")).collect();
        chart.clone().values(format!("monitoring: {{{}}}", values.join(", ")))
    };
    assert_eq!(kinds(&switched("true").objects()), every);
    assert_eq!(kinds(&switched("false").apis(&ALL).objects()), Vec::<&str>::new());
}

#[test]
fn the_operator_is_found_by_its_service() {
    let made = Chart::new("tss-network")
        .apis(&ALL)
        .values("monitoring: {labels: {release: p}, interval: 15s}")
        .objects();
    let (monitor, service) = (the(&made, "ServiceMonitor"), the(&made, "Service"));
    assert_eq!(monitor["metadata"]["labels"]["release"], "p");
    assert_eq!(monitor["metadata"]["namespace"], service["metadata"]["namespace"]);
    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(endpoint["port"], service["spec"]["ports"][0]["name"]);
    assert_eq!(endpoint["interval"], "15s");
    assert_eq!(endpoint["honorLabels"], true, "a canary's namespace is not the operator's");
    assert_eq!(endpoint["relabelings"], json!([{"targetLabel": "component", "replacement": "operator"}]));
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&service["metadata"]["labels"][label], value, "{label}");
    }
}

/// By the labels that the operator gives them, and nothing else that it makes.
#[test]
fn managers_and_signers_of_all_networks_are_found() {
    let made = Chart::new("tss-network").apis(&ALL).objects();
    let spec = &the(&made, "PodMonitor")["spec"];
    let selects = |component: &str| {
        let labels = serde_json::to_value(names::labels("wallet", component)).unwrap();
        let matches = spec["selector"]["matchLabels"].as_object().unwrap();
        let expressions = spec["selector"]["matchExpressions"].as_array().unwrap();
        matches.iter().all(|(label, value)| &labels[label] == value)
            && expressions.iter().all(|it| {
                assert_eq!(it["operator"], "In");
                it["values"].as_array().unwrap().contains(&labels[it["key"].as_str().unwrap()])
            })
    };
    assert!(selects("manager") && selects("signer"));
    assert!(!selects("key-generation"));
    assert_eq!(spec["namespaceSelector"], json!({"any": true}));
    let from = |label: &str| format!("__meta_kubernetes_pod_label_{}", label.replace(['.', '/', '-'], "_"));
    assert_eq!(
        spec["podMetricsEndpoints"],
        json!([{"port": "metrics", "relabelings": [
            {"sourceLabels": [from(names::CLUSTER)], "targetLabel": "cluster"},
            {"sourceLabels": [from(names::COMPONENT)], "targetLabel": "component"},
        ]}])
    );

    let made = Chart::new("tss-network").apis(&ALL).values("watchNamespace: wallets").objects();
    assert_eq!(the(&made, "PodMonitor")["spec"]["namespaceSelector"], json!({"matchNames": ["wallets"]}));
}

/// Prometheus and Grafana write templates in braces as Helm does: theirs stay as they are.
#[test]
fn alerts_and_dashboards_are_the_files_unchanged() {
    let files = with_files();
    std::fs::write(files.path().join("alerts/more.yaml"), ALERTS.replace("name: tss", "name: more")).unwrap();
    let made = Chart::new("tss-network")
        .at(&files)
        .apis(&ALL)
        .values("monitoring: {dashboards: {annotations: {grafana_folder: TSS}}}")
        .objects();
    let group = objects(ALERTS)[0]["groups"][0].clone();
    let mut more = group.clone();
    more["name"] = json!("more");
    assert_eq!(the(&made, "PrometheusRule")["spec"]["groups"], json!([more, group]));

    let dashboard = the(&made, "ConfigMap");
    assert_eq!(dashboard["data"]["overview.json"].as_str().unwrap().trim_end(), DASHBOARD.trim_end());
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(dashboard["metadata"]["annotations"], json!({"grafana_folder": "TSS"}));
    assert_eq!(dashboard["metadata"]["name"], "tss-network-operator-dashboard-overview");
}
