//! The chart of definitions.

use serde_json::{Value, json};
use tss_operator::crd;

use crate::helm::{Chart, objects, read, root};

/// A definition without what the chart adds to its metadata.
fn bare(mut definition: Value) -> Value {
    let metadata = definition["metadata"].as_object_mut().unwrap();
    metadata.remove("labels");
    metadata.remove("annotations");
    definition
}

#[test]
fn the_definitions_are_those_of_the_operator() {
    let names = |folder: &str| {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let files = "charts/tss-network-crds/files";
    let repair = format!("cargo run --bin operator -- crds --out crds && cp crds/*.yaml {files}/");
    assert_eq!(names(files), names("crds"), "to repair it: {repair}");
    for name in names("crds") {
        assert!(
            read(format!("{files}/{name}")) == read(format!("crds/{name}")),
            "{files}/{name} is not crds/{name}; to repair it: {repair}"
        );
    }
    let ours: Vec<String> = crd::definitions().iter().map(|it| crd::yaml(it).unwrap()).collect();
    for object in Chart::new("tss-network-crds").objects() {
        let object = bare(object);
        assert!(
            ours.iter().any(|yaml| objects(yaml)[0] == object),
            "not the operator's: {object}; to repair it: {repair}"
        );
    }
}

#[test]
fn definitions_stay_when_the_release_goes_unless_somebody_wants_it_otherwise() {
    let made = Chart::new("tss-network-crds").values("{labels: {a: b}, annotations: {c: d}}").objects();
    assert_eq!(made.len(), 2);
    for definition in &made {
        let keep = json!({"helm.sh/resource-policy": "keep", "c": "d"});
        assert_eq!(definition["metadata"]["annotations"], keep);
        assert_eq!(definition["metadata"]["labels"]["a"], "b");
        assert_eq!(definition["metadata"]["labels"]["app.kubernetes.io/managed-by"], "Helm");
    }
    for definition in Chart::new("tss-network-crds").values("keep: false").objects() {
        assert_eq!(definition["metadata"].get("annotations"), None);
    }
}

/// Helm reads that folder at the first installation only.
#[test]
fn definitions_are_upgraded_with_the_chart() {
    assert!(!root().join("charts/tss-network-crds/crds").exists());
    assert!(!root().join("charts/tss-network/crds").exists());
    assert!(
        Chart::new("tss-network").objects().iter().all(|object| object["kind"] != "CustomResourceDefinition")
    );
}
