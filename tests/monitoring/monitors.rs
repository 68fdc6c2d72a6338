//! How the chart's monitors have Prometheus scrape: what Prometheus' operator makes of them, as far as the chart says it.

use std::process::Command;

use serde_json::{Map, Value, json};

/// A scrape configuration, but for who is scraped.
pub(crate) struct Scrape {
    pub(crate) honor_labels: bool,
    pub(crate) relabelings: Vec<Value>,
}

/// How the chart's monitor of a kind, ServiceMonitor or PodMonitor, has its endpoints scraped.
pub(crate) fn of_kind(kind: &str) -> Scrape {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/tss-network");
    let enabled =
        "monitoring.podMonitor.enabled=true,monitoring.serviceMonitor.enabled=true,test.enabled=false";
    let output = Command::new("helm")
        .args(["template", "tss-network", folder, "--show-only", "templates/monitors.yaml", "--set", enabled])
        .output()
        .unwrap_or_else(|error| panic!("helm: {error}; `tests/run chart` puts it on the PATH"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let monitors: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let spec = &monitors.iter().find(|monitor| monitor["kind"] == kind).expect("the chart has it")["spec"];
    let endpoint = spec.get("endpoints").or_else(|| spec.get("podMetricsEndpoints")).expect("endpoints");
    let [endpoint] = endpoint.as_array().unwrap().as_slice() else { panic!("one endpoint: {spec}") };
    Scrape {
        honor_labels: endpoint["honorLabels"] == true,
        relabelings: endpoint["relabelings"].as_array().unwrap().iter().map(relabeling).collect(),
    }
}

/// The operator's spelling is Kubernetes', Prometheus has its own.
fn relabeling(of_operator: &Value) -> Value {
    let mut own = Map::new();
    for (key, value) in of_operator.as_object().unwrap() {
        let key = match key.as_str() {
            "sourceLabels" => "source_labels",
            "targetLabel" => "target_label",
            "replacement" => "replacement",
            other => panic!("{other}: a relabeling that this test does not know"),
        };
        own.insert(key.into(), value.clone());
    }
    json!(own)
}
