//! The READMEs of the charts, which helm-docs makes of README.md.gotmpl and values.yaml.

use tempfile::TempDir;

use crate::helm::{CHARTS, read, root, run};

#[test]
fn readmes_are_those_of_the_values() {
    let copy = TempDir::new().unwrap();
    let charts = copy.path().display().to_string();
    let done = run("cp", &["-r", "charts/.", &charts], "");
    assert!(done.success, "{}", done.stderr);
    let arguments = ["--chart-search-root", &charts, "--sort-values-order", "file", "--log-level", "warning"];
    let made = run("helm-docs", &arguments, "");
    assert!(made.success && made.stderr.is_empty(), "helm-docs: {}{}", made.stdout, made.stderr);
    for name in CHARTS {
        let readme = std::fs::read_to_string(copy.path().join(name).join("README.md")).unwrap();
        let file = format!("charts/{name}/README.md");
        for line in readme.lines() {
            assert!(!line.ends_with("|  |"), "{file}: a value without a description: {line}");
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(root().join(&file), &readme).unwrap();
        }
        assert!(readme == read(&file), "{file} is not of its values.yaml: run this test with UPDATE=1");
    }
}
