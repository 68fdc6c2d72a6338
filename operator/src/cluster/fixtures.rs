//! What tests of the pure steps start from: YAML.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::ApiResource;
use serde::Serialize;
use serde_json::{Value, json};

use tss_common::identity::Identity;

use super::apply::Applied;
use super::build::Object;
use super::dereference::{Live, observe};
use super::jobs::{JobPlan, ShareReport};
use super::keygen::{self, Step, Write};
use super::record::{KeyRecord, kept};
use super::status;
use super::validate::{Cluster, validate};
use crate::context::Options;
use crate::crd::{KeyGeneration, Renewal, TssCluster, TssClusterStatus};

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

pub(super) const KEY: &str = "0227a67181ec034fe8a9a7831e7c2d7d412b81fb87e3d7971ad68f9c754f8c13e6";
pub(super) const OTHER: &str = "03c9e1b3d0a64a1d2f7a6d58d4b5cf9d31ac5fe4dbb6b0d5c5cbb2b6a3a3e5a1f0";

/// What a Job reports of a share of the first epoch, for two of three.
pub(super) fn share(index: u8) -> Value {
    json!({"index": index, "threshold": 2, "signers": 3, "cluster": "wallets-demo", "key": "default", "epoch": 1,
        "public_key": KEY, "commitment": "00".repeat(32), "path": "0/1/2", "derived_public_key": KEY,
        "ethereum_address": "0xe5EebeB057a589fc161DDB718ed51ab8B4F20050", "bitcoin_address": "bc1q"})
}

pub(super) fn report() -> ShareReport {
    serde_json::from_value(share(1)).unwrap()
}

pub(super) fn record() -> KeyRecord {
    KeyRecord::new(&cluster(), &report())
}

/// The record of a later epoch of the same key.
pub(super) fn later(epoch: i64, commitment: &str, threshold: u8, signers: u8) -> KeyRecord {
    let renewal = Renewal {
        epoch,
        threshold: threshold.into(),
        signers: signers.into(),
        roster: Some("demo-roster-0123456789".into()),
        kept: true,
        tries: KeyGeneration { decided: Some(commitment.into()), ..KeyGeneration::default() },
        ..Renewal::default()
    };
    record().renewed("demo", &renewal).unwrap()
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

/// A network of which the test says what is there.
pub(super) struct There {
    pub(super) object: TssCluster,
    pub(super) live: Vec<Live>,
    pub(super) pods: Vec<Pod>,
}

impl There {
    pub(super) fn new() -> Self {
        Self { object: object(CLUSTER), live: Vec::new(), pods: Vec::new() }
    }

    pub(super) fn next(&self) -> Step {
        self.at(Timestamp::UNIX_EPOCH)
    }

    pub(super) fn at(&self, now: Timestamp) -> Step {
        let observed = observe(self.object.clone(), self.live.clone(), &self.pods);
        let cluster = validate(&self.object).unwrap();
        keygen::next(&cluster, &observed, now)
    }

    pub(super) fn with_progress(mut self, progress: KeyGeneration) -> Self {
        self.object.status =
            Some(TssClusterStatus { key_generation: Some(progress), ..TssClusterStatus::default() });
        self
    }

    /// One pass of the controller: what the step says is written, or the status is, and Jobs that are not wanted are gone.
    pub(super) fn pass(&mut self, now: Timestamp) -> Step {
        let observed = observe(self.object.clone(), self.live.clone(), &self.pods);
        let cluster = validate(&self.object).unwrap();
        let step = keygen::next(&cluster, &observed, now);
        let mut map = match &step.write {
            Some(Write::Roster(name, text)) => kept(&cluster, name.clone(), "roster.toml", text.clone()),
            Some(Write::Record(record)) => record.to_config_map(&cluster).unwrap(),
            Some(Write::Progress(progress)) => {
                self.object.status.get_or_insert_default().key_generation = Some(progress.clone());
                return step;
            }
            Some(Write::Renewal(renewal)) => {
                self.object.status.get_or_insert_default().renewal = Some((**renewal).clone());
                return step;
            }
            Some(Write::Backups(backups)) => {
                self.object.status.get_or_insert_default().backups = Some((**backups).clone());
                return step;
            }
            None => {
                let cluster = step.key.as_ref().map_or_else(|| cluster.clone(), |key| cluster.with_key(key));
                let status = status::status(&cluster, &observed, &step, &Applied::default(), 0, now);
                self.object.status = Some(status);
                let wanted: Vec<String> = step.jobs.iter().map(|plan| plan.name("demo")).collect();
                self.live.retain(|live| live.kind != "Job" || wanted.contains(&live.name));
                let is_there = |pod: &Pod| {
                    let owners = pod.owner_references();
                    owners.is_empty() || owners.iter().any(|owner| wanted.contains(&owner.name))
                };
                self.pods.retain(is_there);
                return step;
            }
        };
        map.metadata.creation_timestamp = Some(Time(now));
        // One that is there stays as it is.
        if !self.live.iter().any(|live| live.kind == "ConfigMap" && live.name == map.name_any()) {
            self.live.push(Live { owned: false, ..live(&map) });
        }
        step
    }

    pub(super) fn with_map(mut self, map: &ConfigMap) -> Self {
        self.live.push(Live { owned: false, ..live(map) });
        self
    }

    pub(super) fn with_roster(self) -> Self {
        let map = kept(&cluster(), "demo-roster".into(), "roster.toml", "x".into());
        self.with_map(&map)
    }

    /// A Job that ended well and its Pod's report, or badly and its last words, or runs.
    pub(super) fn with_job(mut self, plan: &JobPlan, ended: Option<Result<Value, &str>>) -> Self {
        let name = plan.name("demo");
        let uid = format!("uid-of-{name}");
        let condition = match &ended {
            None => json!([]),
            Some(Ok(_)) => json!([{"type": "Complete", "status": "True"}]),
            Some(Err(_)) => {
                json!([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}])
            }
        };
        let job: Job = serde_json::from_value(
            json!({"metadata": {"name": name, "uid": uid}, "status": {"conditions": condition}}),
        )
        .unwrap();
        let terminated = match &ended {
            None => json!({}),
            Some(Ok(report)) => json!({"terminated": {"exitCode": 0, "message": report.to_string()}}),
            Some(Err(said)) => json!({"terminated": {"exitCode": 1, "message": said}}),
        };
        let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}]);
        self.pods.push(
            serde_json::from_value(json!({
                "metadata": {"name": format!("{name}-x"), "ownerReferences": owner},
                "spec": {"containers": [{"name": "store"}]},
                "status": {"containerStatuses": [{"name": "store", "state": terminated, "ready": false,
                    "restartCount": 0, "image": "", "imageID": ""}]},
            }))
            .unwrap(),
        );
        self.live.push(live(&job));
        self
    }

    /// Jobs that ended well.
    pub(super) fn with_jobs(self, plans: &[JobPlan], report: impl Fn(u8) -> Value) -> Self {
        plans.iter().fold(self, |there, plan| there.with_job(plan, Some(Ok(report(plan.index)))))
    }
}

/// What a Job reports of an identity, always another one.
pub(super) fn identity(index: u8) -> Value {
    let public = Identity::generate().public();
    json!({"index": index, "verifying_key": public.verifying_key.to_string(), "sealing_key": public.sealing_key.to_string()})
}
