//! Step 3: the objects that a cluster needs, from what it asks for and the key it has. Pure.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::ApiResource;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde_json::Value;

use super::jobs::JobPlan;
use super::names;
use super::record::KeyRecord;
use super::validate::Cluster;
use crate::context::Options;

mod config;
mod keygen;
mod manager;
mod network;
mod pod;
mod signer;

/// The port of the manager's API.
pub const MANAGER_PORT: i32 = 8080;
/// The port of health and metrics, of managers and signers. Both tell nothing secret, so anybody may ask.
pub const METRICS_PORT: i32 = 9090;
/// The name of that port.
const METRICS: &str = "metrics";

/// An object that there should be.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its kind.
    pub resource: ApiResource,
    /// Its name.
    pub name: String,
    /// What the operator says about it, and nothing else.
    pub body: Value,
}

impl Object {
    /// Its kind as a word.
    pub fn kind(&self) -> &str {
        &self.resource.kind
    }
}

/// Why an object could not be built: an error in this software.
#[derive(Debug, thiserror::Error)]
#[error("{kind} {name} has no form in JSON: {error}")]
pub struct Unserializable {
    kind: String,
    name: String,
    error: serde_json::Error,
}

/// Everything that there should be, in the order in which it is applied.
///
/// # Errors
/// [`Unserializable`].
pub fn build(
    cluster: &Cluster,
    options: &Options,
    jobs: &[JobPlan],
    key: Option<&KeyRecord>,
) -> Result<Vec<Object>, Unserializable> {
    let mut objects = Objects(Vec::new());
    if !jobs.is_empty() {
        keygen::build(cluster, options, jobs, &mut objects)?;
    }
    if let Some(key) = key {
        network::build(cluster, options, &mut objects)?;
        manager::build(cluster, options, key, &mut objects)?;
        signer::build(cluster, options, key, &mut objects)?;
    }
    Ok(objects.0)
}

struct Objects(Vec<Object>);

impl Objects {
    fn push<K>(&mut self, mut object: K) -> Result<(), Unserializable>
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let name = object.name_any();
        let wrong = |error| Unserializable { kind: K::kind(&()).into_owned(), name: name.clone(), error };
        // What is taken out of a specification leaves no trace in it; the hash tells that it changed.
        let hash = hash(&serde_json::to_string(&object).map_err(wrong)?);
        object.annotations_mut().insert(names::DESIRED.into(), hash);
        let mut body = serde_json::to_value(&object).map_err(wrong)?;
        if let Some(fields) = body.as_object_mut() {
            // Status is not the operator's to write.
            fields.remove("status");
        }
        self.0.push(Object { resource: ApiResource::erase::<K>(&()), name, body });
        Ok(())
    }
}

/// A short hash that tells two texts apart; no secret depends on it.
fn hash(text: &str) -> String {
    // FNV-1a: the same in every version and on every machine, which the standard library's is not.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// The metadata of an object that goes with its TssCluster.
fn meta(cluster: &Cluster, name: String, component: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(names::labels(&cluster.name, component)),
        owner_references: Some(vec![cluster.owner.clone()]),
        ..ObjectMeta::default()
    }
}

fn selector(cluster: &Cluster, component: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(names::selector(&cluster.name, component)),
        ..LabelSelector::default()
    }
}

/// A ServiceAccount whose Pods get no token.
fn service_account(cluster: &Cluster, name: String, component: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(cluster, name, component),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixtures::{CLUSTER, cluster, object, options, record};
    use crate::cluster::jobs::Task;
    use crate::cluster::validate::validate;

    const EVERYTHING: &str = "
apiVersion: tss.network/v1alpha1
kind: TssCluster
metadata: {name: full, namespace: treasury, uid: 0c1d2e3f-0000-4000-8000-000000000002}
spec:
  threshold: 3
  signers: 3
  networkName: elsewhere
  derivationPath: m/44/60
  keySource:
    type: ExistingSecrets
    existingSecrets: {secrets: [a, b, c], rosterConfigMap: roster}
  auth: {type: None}
  rabbitmq: {uriSecret: {name: broker, key: address}, port: 5671}
  mongodb: {uriSecret: {name: store, key: address}, port: 27018, database: wallets}
  policy: {configMap: rules, key: strict.toml}
  signingTimeoutSeconds: 60
  logLevel: info,tss_signer=debug
  canary: {}
  traces: {otlpEndpoint: 'http://collector.observability:4318', samplePercent: 5}
  imagePullSecrets: [{name: registry}]
  manager:
    replicas: 1
    tls: {secretName: full-manager-tls}
    image: example.com/manager@sha256:00
    resources: {requests: {cpu: 250m}, limits: {memory: 1Gi}}
    nodeSelector: {disk: ssd}
    tolerations: [{key: dedicated, operator: Exists}]
    priorityClassName: high
  signer:
    image: example.com/signer@sha256:11
    antiAffinity: Required
    storage: {size: 5Gi, storageClassName: fast}
    resources: {limits: {memory: 2Gi}}
    nodeSelector: {enclave: 'true'}
    tolerations: [{key: signers, operator: Exists}]
    priorityClassName: highest
";

    /// The objects as YAML, without the hashes that change with each of them.
    fn yaml(objects: Vec<Object>) -> String {
        let one = |mut object: Object| {
            object.body["metadata"]["annotations"].as_object_mut().unwrap().remove(names::DESIRED).unwrap();
            serde_saphyr::to_string(&object.body).unwrap()
        };
        objects.into_iter().map(one).collect::<Vec<_>>().join("---\n")
    }

    fn plan(task: Task) -> JobPlan {
        JobPlan {
            task,
            index: 2,
            attempt: "6f1b5-1".into(),
            threshold: cluster().threshold,
            roster: record().roster,
        }
    }

    fn keep() -> Task {
        Task::Keep {
            made: plan(Task::Generate).name("demo"),
            kept: record().shares[1].share.clone(),
            public_key: record().public_key,
        }
    }

    fn inspect(awaited: bool) -> Task {
        Task::Inspect { share: record().shares[1].share.clone(), awaited }
    }

    fn renew(held: bool) -> Task {
        let held = held.then(|| record().shares[1].share.clone());
        Task::Renew { ends: 1, dealers: vec![1, 2], held }
    }

    fn backup() -> Task {
        let holders = vec!["age1alice,age1spare".into(), "age1bob".into()];
        let kept = "demo-backup-2-e1-0011223344".into();
        Task::Backup { share: record().shares[1].share.clone(), holders, kept }
    }

    fn jobs(tasks: impl IntoIterator<Item = Task>) -> Vec<JobPlan> {
        tasks.into_iter().map(plan).collect()
    }

    #[test]
    fn what_a_cluster_with_a_key_is_made_of() {
        insta::assert_snapshot!(yaml(build(&cluster(), &options(), &[], Some(&record())).unwrap()));
    }

    #[test]
    fn what_a_cluster_that_says_everything_is_made_of() {
        let cluster = validate(&object(EVERYTHING)).unwrap();
        let key = KeyRecord::new(&cluster, &crate::cluster::fixtures::report());
        insta::assert_snapshot!(yaml(build(&cluster, &options(), &[], Some(&key)).unwrap()));
    }

    #[test]
    fn what_makes_a_key() {
        let jobs = jobs([Task::Identity, Task::Generate, keep()]);
        insta::assert_snapshot!(yaml(build(&cluster(), &options(), &jobs, None).unwrap()));
    }

    #[test]
    fn what_takes_over_a_key() {
        let cluster = validate(&object(EVERYTHING)).unwrap();
        let plans = jobs([Task::Inspect { share: "b".into(), awaited: true }]);
        let plans = plans.into_iter().map(|plan| JobPlan {
            roster: "roster".into(),
            threshold: cluster.threshold,
            ..plan
        });
        let jobs = build(&cluster, &options(), &plans.collect::<Vec<_>>(), None).unwrap();
        insta::assert_snapshot!(yaml(jobs.into_iter().filter(|object| object.kind() == "Job").collect()));
    }

    #[test]
    fn what_makes_new_shares_and_backups() {
        let objects =
            build(&cluster(), &options(), &jobs([inspect(false), renew(true), backup()]), None).unwrap();
        insta::assert_snapshot!(yaml(objects.into_iter().filter(|object| object.kind() == "Job").collect()));
        // Whoever has no share mounts none.
        let newcomer = build(&cluster(), &options(), &jobs([renew(false)]), None).unwrap();
        assert!(newcomer.iter().all(|object| !object.body.to_string().contains(&record().shares[1].share)));
    }

    /// Every Pod template.
    fn pods(objects: &[Object]) -> Vec<(&str, &Value)> {
        let template = |object: &'_ Object| object.body.pointer("/spec/template/spec").is_some();
        objects
            .iter()
            .filter(|object| template(object))
            .map(|object| (object.name.as_str(), &object.body["spec"]["template"]["spec"]))
            .collect()
    }

    fn everything() -> Vec<Object> {
        let jobs = jobs([Task::Identity, Task::Generate, keep(), inspect(false), renew(true), backup()]);
        build(&cluster(), &options(), &jobs, Some(&record())).unwrap()
    }

    #[test]
    fn a_signers_share_is_mounted_by_this_signer_and_nobody_else() {
        let objects = everything();
        for index in 1..=3 {
            let secrets = &record().shares[index - 1];
            for secret in [&secrets.share, &secrets.identity] {
                let mounting = pods(&objects)
                    .into_iter()
                    .filter(|(_, pod)| pod.to_string().contains(&format!("\"{secret}\"")));
                for (name, _) in mounting {
                    let own = format!("demo-signer-{index}");
                    // Key generation's Jobs in this test are all of signer 2.
                    assert!(
                        name == own || index == 2 && name.ends_with("-2-6f1b5-1"),
                        "{name} mounts {secret}"
                    );
                }
            }
        }
    }

    #[test]
    fn only_the_container_that_stores_has_a_token_and_it_never_talks_to_rabbitmq() {
        let objects = everything();
        for (name, pod) in pods(&objects) {
            assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
            let containers =
                ["initContainers", "containers"].iter().filter_map(|key| pod[*key].as_array()).flatten();
            for container in containers {
                let mounts = container["volumeMounts"].to_string();
                let stores = container["name"] == "store";
                assert_eq!(mounts.contains("serviceaccount"), stores, "{name}");
                assert_eq!(mounts.contains("tss/rabbitmq"), !stores, "{name}");
            }
        }
        let role = objects.iter().find(|object| object.kind() == "Role").unwrap();
        assert_eq!(
            role.body["rules"],
            serde_json::json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}])
        );
    }

    #[test]
    fn no_secret_stands_in_an_object_and_none_is_made() {
        for object in everything() {
            assert_ne!(object.kind(), "Secret");
        }
    }

    #[test]
    fn a_field_that_is_taken_out_changes_the_hash() {
        let hashes = |yaml: &str| -> Vec<Value> {
            let cluster = validate(&object(yaml)).unwrap();
            let objects = build(&cluster, &options(), &[], Some(&record())).unwrap();
            objects
                .iter()
                .map(|object| object.body["metadata"]["annotations"][names::DESIRED].clone())
                .collect()
        };
        let with = format!("{CLUSTER}  imagePullSecrets: [{{name: registry}}]\n");
        assert_eq!(hashes(CLUSTER), hashes(CLUSTER));
        assert_ne!(hashes(CLUSTER), hashes(&with));
    }
}
