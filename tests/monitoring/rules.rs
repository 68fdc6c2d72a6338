//! The alert rules, their runbooks, and their cases for `promtool`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use serde::Deserialize;

use crate::promql::selectors;

/// Where the project's runbooks are on the web.
const RUNBOOKS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/runbooks");

#[derive(Debug, Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Alert>,
}

/// An alert rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Alert {
    alert: String,
    pub(crate) expr: String,
    #[serde(default, rename = "for")]
    _patience: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// The chart's rule files, by name.
pub(crate) fn rule_files() -> BTreeMap<String, String> {
    crate::files("charts/tss-network/alerts", "yaml")
}

/// The chart's alerts, by name.
pub(crate) fn alerts() -> BTreeMap<String, Alert> {
    let mut alerts = BTreeMap::new();
    let mut groups = BTreeSet::new();
    for (name, yaml) in rule_files() {
        let file: RuleFile =
            serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{name}.yaml: {error}"));
        for group in file.groups {
            assert!(groups.insert(group.name.clone()), "two groups {}", group.name);
            for alert in group.rules {
                let before = alerts.insert(alert.alert.clone(), alert);
                assert!(before.is_none(), "two alerts {before:?}");
            }
        }
    }
    assert!(!alerts.is_empty(), "there is no alert");
    alerts
}

#[test]
fn every_expression_is_promql() {
    for (name, alert) in alerts() {
        let found = selectors(&alert.expr).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!found.is_empty(), "{name} asks for no metric");
    }
}

#[test]
fn every_alert_tells_how_bad_it_is_and_where_its_runbook_is() {
    for (name, alert) in alerts() {
        let severity = alert.labels.get("severity").map(String::as_str);
        assert!(matches!(severity, Some("critical" | "warning")), "{name}: severity {severity:?}");
        for annotation in ["summary", "description"] {
            assert!(alert.annotations.contains_key(annotation), "{name}: no {annotation}");
        }
        assert_eq!(alert.annotations.get("runbook_url"), Some(&format!("{RUNBOOKS}/{name}.md")), "{name}");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let runbooks = crate::files("docs/runbooks", "md");
    let named = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        words
            .filter(|word| word.starts_with("Tss") && !word.starts_with("TssCluster"))
            .map(Into::into)
            .collect()
    };
    let alerts = alerts();
    let (index, pages): (Vec<_>, Vec<_>) = runbooks.iter().partition(|(name, _)| *name == "README");
    let names: Vec<_> = pages.iter().map(|(name, _)| (*name).clone()).collect();
    assert_eq!(names, alerts.keys().cloned().collect::<Vec<_>>(), "runbooks and alerts differ");
    for (name, text) in pages {
        let alert = &alerts[name];
        assert!(text.starts_with(&format!("# {name}\n")), "{name}.md has another title");
        let severity = &alert.labels["severity"];
        assert!(text.contains(&format!("**{severity}**")), "{name}.md does not say that it is {severity}");
        for heading in ["## What it means", "## What to look at", "## What to do"] {
            assert!(text.contains(heading), "{name}.md has no `{heading}`");
        }
        for other in named(text) {
            assert!(alerts.contains_key(&other), "{name}.md names {other}, which is no alert");
        }
    }
    let [(_, index)] = index[..] else { panic!("docs/runbooks has no README.md") };
    assert_eq!(named(index), alerts.keys().cloned().collect(), "docs/runbooks/README.md names other alerts");
}

// ---- promtool: Prometheus' own opinion. ----

#[derive(Debug, Deserialize)]
struct Cases {
    tests: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    alert_rule_test: Vec<Look>,
}

#[derive(Debug, Deserialize)]
struct Look {
    alertname: String,
    #[serde(default)]
    exp_alerts: Vec<serde_json::Value>,
}

#[test]
fn each_alert_has_a_case_that_fires_and_one_that_does_not() {
    let mut looks: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
    for (name, yaml) in crate::files("tests/monitoring/rules", "yaml") {
        let cases: Cases =
            serde_saphyr::from_str(&yaml).unwrap_or_else(|error| panic!("{name}.yaml: {error}"));
        for look in cases.tests.into_iter().flat_map(|case| case.alert_rule_test) {
            looks.entry(look.alertname).or_default().insert(!look.exp_alerts.is_empty());
        }
    }
    let both = alerts().into_keys().map(|name| (name, BTreeSet::from([false, true]))).collect();
    assert_eq!(looks, both);
}

#[test]
fn prometheus_accepts_the_rules() {
    promtool(&["check", "rules"], paths("charts/tss-network/alerts"));
}

#[test]
fn each_alert_fires_when_it_should() {
    promtool(&["test", "rules"], paths("tests/monitoring/rules"));
}

fn paths(folder: &str) -> Vec<PathBuf> {
    crate::files(folder, "yaml")
        .keys()
        .map(|name| crate::folder(folder).join(format!("{name}.yaml")))
        .collect()
}

fn promtool(arguments: &[&str], files: Vec<PathBuf>) {
    assert!(!files.is_empty(), "promtool {arguments:?} has nothing to look at");
    let output = Command::new("promtool").args(arguments).args(files).output();
    let output =
        output.unwrap_or_else(|error| panic!("promtool of the package `prometheus` is missing: {error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {arguments:?}:\n{}", String::from_utf8_lossy(&said));
}
