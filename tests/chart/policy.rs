//! What is made, given to checkov, a program that looks for what is not good practice.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::helm::{Chart, TSS_CLUSTER, read, run};

/// Findings that stay, and why. The file is the list that a person wants to read.
const EXCEPTIONS: &str = "tests/chart/exceptions.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exceptions {
    exception: Vec<Exception>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    check: String,
    why: String,
    /// Kind.namespace.name
    objects: Vec<String>,
}

/// The charts as they come, and the operator as it can be had.
fn profiles() -> Vec<Chart> {
    vec![
        Chart::new("tss-network-crds"),
        Chart::new("tss-network").values("cluster: {enabled: true}").apis(&[TSS_CLUSTER]),
        Chart::new("backing"),
        Chart::new("tss-network").release("strict", "strict").values(
            "{replicas: 3, watchNamespace: strict, networkPolicy: {enabled: true}, image: {pullPolicy: Always, operator: \
             {digest: 'sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'}}, \
             resources: {limits: {cpu: 1}}}",
        ),
    ]
}

#[test]
fn what_is_made_passes_the_policy_check() {
    // It passes over folders whose names begin with a dot, as those of TempDir::new do.
    let folder = TempDir::with_prefix("charts").unwrap();
    for (number, chart) in profiles().iter().enumerate() {
        std::fs::write(folder.path().join(format!("{number}.yaml")), chart.render().unwrap()).unwrap();
    }
    let directory = folder.path().display().to_string();
    let arguments = [
        "--directory",
        &directory,
        "--framework",
        "kubernetes",
        "--skip-download",
        "--output",
        "json",
        "--quiet",
        "--compact",
    ];
    let output = run("checkov", &arguments, "");
    let report: Value = serde_json::from_str(&output.stdout)
        .unwrap_or_else(|error| panic!("checkov: {error}\n{}{}", output.stdout, output.stderr));
    assert_eq!(report["summary"]["parsing_errors"], 0, "{report}");
    assert!(
        report["summary"]["passed"].as_u64().unwrap() > 300,
        "it looked at less than there is: {}",
        report["summary"]
    );

    // Of the Pods of a Deployment it adds all labels to the name.
    let text = |finding: &Value, field: &str| {
        let words: Vec<&str> = finding[field].as_str().unwrap().split('.').take(3).collect();
        words.join(".")
    };
    let findings = report["results"]["failed_checks"].as_array().unwrap();
    let found: BTreeSet<(String, String)> =
        findings.iter().map(|finding| (text(finding, "check_id"), text(finding, "resource"))).collect();
    let exceptions: Exceptions = toml::from_str(&read(EXCEPTIONS)).unwrap();
    let mut explained = BTreeSet::new();
    for exception in exceptions.exception {
        assert!(exception.why.len() > 20, "{}: {EXCEPTIONS} does not say why", exception.check);
        explained.extend(exception.objects.into_iter().map(|object| (exception.check.clone(), object)));
    }
    let new: Vec<_> = found.difference(&explained).collect();
    let gone: Vec<_> = explained.difference(&found).collect();
    assert!(new.is_empty(), "findings that nobody has explained in {EXCEPTIONS}: {new:?}");
    assert!(gone.is_empty(), "{EXCEPTIONS} explains what is not found any more: {gone:?}");
}
