//! What tests of the pure steps start from: YAML.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ApiResource;
use serde::Serialize;
use serde_json::{Value, json};

use super::build::Object;
use super::dereference::Live;
use super::keygen::ShareReport;
use super::record::KeyRecord;
use super::validate::{Cluster, validate};
use crate::context::Options;
use crate::crd::TssCluster;

pub(super) const CLUSTER: &str = "
apiVersion: tss.network/v1alpha1
kind: TssCluster
metadata: {name: demo, namespace: wallets, uid: 6f1b5f3e-0000-4000-8000-000000000001, generation: 1}
spec:
  threshold: 2
  signers: 3
  auth: {type: None}
  rabbitmq: {uriSecret: {name: rabbitmq}}
  mongodb: {uriSecret: {name: mongodb}}
";

pub(super) fn object(yaml: &str) -> TssCluster {
    serde_saphyr::from_str(yaml).unwrap()
}

pub(super) fn cluster() -> Cluster {
    validate(&object(CLUSTER)).unwrap()
}

pub(super) fn options() -> Options {
    Options {
        manager_image: "tss/manager:1".into(),
        signer_image: "tss/signer:1".into(),
        operator_image: "tss/operator:1".into(),
        watch_namespace: None,
        namespace: "tss-network".into(),
        manager_ca: None,
        manager_url: None,
    }
}

pub(super) fn live<K: kube::Resource<DynamicType = ()> + Serialize>(object: &K) -> Live {
    Live {
        kind: K::kind(&()).into_owned(),
        name: object.name_any(),
        uid: format!("uid-of-{}", object.name_any()),
        owned: true,
        deleting: false,
        body: serde_json::to_value(object).unwrap(),
    }
}

/// An object as Kubernetes shows it when it has done all it should.
pub(super) fn settled(object: &Object) -> Live {
    let mut body = object.body.clone();
    body["metadata"]["generation"] = json!(1);
    body["status"] = json!({"observedGeneration": 1, "updatedReplicas": 9, "readyReplicas": 1});
    from_body(&object.resource, body)
}

pub(super) fn from_body(resource: &ApiResource, body: Value) -> Live {
    Live {
        kind: resource.kind.clone(),
        name: body["metadata"]["name"].as_str().unwrap().into(),
        uid: "uid".into(),
        owned: true,
        deleting: false,
        body,
    }
}

pub(super) fn report() -> ShareReport {
    let key = "0227a67181ec034fe8a9a7831e7c2d7d412b81fb87e3d7971ad68f9c754f8c13e6";
    serde_json::from_value(
        json!({"index": 1, "threshold": 2, "signers": 3, "cluster": "wallets-demo", "epoch": 1,
        "public_key": key, "commitment": "00".repeat(32), "path": "0/1/2", "derived_public_key": key,
        "ethereum_address": "0xe5EebeB057a589fc161DDB718ed51ab8B4F20050", "bitcoin_address": "bc1q"}),
    )
    .unwrap()
}

pub(super) fn record() -> KeyRecord {
    KeyRecord::new(&cluster(), &report())
}

pub(super) fn signer_pod(index: u8, ready: bool, node: &str) -> Pod {
    let status = if ready { "True" } else { "False" };
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("demo-signer-{index}-0"),
            "labels": {"tss.network/cluster": "demo", "tss.network/signer": index.to_string(),
                "app.kubernetes.io/component": "signer"},
        },
        "spec": {"containers": [], "nodeName": node},
        "status": {"conditions": [
            {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]},
    }))
    .unwrap()
}
