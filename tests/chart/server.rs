//! What the charts make for cert-manager and for Prometheus's operator, before a real API server that has the definitions
//! of these projects. Nobody acts on the objects: neither project runs here.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::helm::{Chart, TSS_CLUSTER};
use crate::monitoring::ALL;

/// `kubectl`, with the cluster that KUBECONFIG names.
fn kubectl(arguments: &[&str]) -> Result<String, String> {
    assert!(
        std::env::var_os("KUBECONFIG").is_some(),
        "KUBECONFIG names no cluster: `tests/run chart` starts one"
    );
    let output = Command::new("kubectl").args(arguments).output().expect("there is a kubectl");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Asks the server what it thinks of objects; unknown fields are errors.
fn dry_run(objects: &[Value]) -> Result<String, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    std::fs::write(file.path(), list.to_string()).unwrap();
    let file = file.path().to_str().unwrap();
    kubectl(&["apply", "--server-side", "--dry-run=server", "--validate=strict", "--output=name", "-f", file])
}

#[test]
fn objects_for_other_projects_are_valid_by_their_definitions() {
    let folder = std::env::var("CHART_DEFINITIONS");
    let folder =
        PathBuf::from(folder.expect("CHART_DEFINITIONS is the folder that tests/chart/install makes"));
    let folder = folder.to_str().unwrap();
    kubectl(&["apply", "--server-side", "--force-conflicts", "-f", folder]).unwrap();
    kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "-f", folder]).unwrap();
    // As many as `helm template` makes: of both kinds of issuers, with and without what can be left out.
    let variants = [
        "cluster: {enabled: true, certManager: {enabled: true, dnsNames: [sign.example]}}",
        "{monitoring: {interval: 30s, labels: {release: p}}, commonLabels: {a: b}, cluster: {enabled: true, \
         certManager: {enabled: true, duration: 720h, issuerRef: {name: corporate, kind: ClusterIssuer}}}}",
    ];
    let mut kinds = Vec::new();
    for values in variants {
        let apis = [&[TSS_CLUSTER][..], &ALL].concat();
        let mut objects = Chart::new("tss-network").values(values).apis(&apis).objects();
        objects.retain(|object| {
            let group = object["apiVersion"].as_str().unwrap();
            group.starts_with("monitoring.coreos.com/") || group.starts_with("cert-manager.io/")
        });
        for object in &mut objects {
            // The release's namespace is not there.
            object["metadata"]["namespace"] = json!("default");
        }
        kinds.extend(objects.iter().map(|object| object["kind"].as_str().unwrap().to_owned()));
        let taken = dry_run(&objects).unwrap_or_else(|error| panic!("{values}: {error}"));
        assert_eq!(taken.lines().count(), objects.len(), "{taken}");

        let mut wrong = objects[0].clone();
        wrong["spec"]["fieldOfTomorrow"] = json!(1);
        let error = dry_run(&[wrong]).expect_err("the server looks at fields");
        assert!(error.contains("fieldOfTomorrow"), "{error}");
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, ["Certificate", "Issuer", "PodMonitor", "PrometheusRule", "ServiceMonitor"]);
}
