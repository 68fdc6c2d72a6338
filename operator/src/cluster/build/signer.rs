//! The signers: one StatefulSet of one replica for each. A single StatefulSet would have one Pod template, so that every
//! node that runs any signer could read every share. A StatefulSet has at most one Pod of a name at a time, and so two
//! never sign with one share.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec,
    Service, ServicePort, ServiceSpec, VolumeResourceRequirements,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::config::{CONFIG, DATA, IDENTITY, POLICY, RABBITMQ, ROSTER, SHARE};
use super::pod::{
    apart, config_env, config_volume, container, env, mount, pod, probe, resources, secret_volume,
    uri_volume, writable_mount,
};
use super::{
    METRICS, METRICS_PORT, Objects, Options, Unserializable, config, meta, selector, service_account,
};
use crate::cluster::names;
use crate::cluster::record::{KeyRecord, ShareSecrets};
use crate::cluster::validate::Cluster;

const COMPONENT: &str = "signer";

pub(super) fn build(
    cluster: &Cluster,
    options: &Options,
    key: &KeyRecord,
    objects: &mut Objects,
) -> Result<(), Unserializable> {
    let name = names::signers(&cluster.name);
    let (settings, hash) =
        config::config_map(cluster, format!("{name}-config"), COMPONENT, config::signers(cluster));
    objects.push(settings)?;
    objects.push(service(cluster, name.clone()))?;
    objects.push(PodDisruptionBudget {
        metadata: meta(cluster, name, COMPONENT),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(cluster.threshold.t().into())),
            selector: Some(selector(cluster, COMPONENT)),
            // One that does not run anyway may be moved.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })?;
    for (index, secrets) in cluster.indices().zip(&key.shares) {
        objects.push(service_account(cluster, names::signer(&cluster.name, index), COMPONENT))?;
        objects.push(stateful_set(cluster, options, key, index, secrets, &hash))?;
    }
    Ok(())
}

/// For those who scrape metrics; nothing else is asked of a signer.
fn service(cluster: &Cluster, name: String) -> Service {
    Service {
        metadata: meta(cluster, name, COMPONENT),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            selector: Some(names::selector(&cluster.name, COMPONENT)),
            ports: Some(vec![ServicePort {
                name: Some(METRICS.into()),
                port: METRICS_PORT,
                target_port: Some(IntOrString::String(METRICS.into())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn stateful_set(
    cluster: &Cluster,
    options: &Options,
    key: &KeyRecord,
    index: u8,
    secrets: &ShareSecrets,
    configuration: &str,
) -> StatefulSet {
    let name = names::signer(&cluster.name, index);
    let mut labels = names::labels(&cluster.name, COMPONENT);
    labels.insert(names::SIGNER.into(), index.to_string());
    let mut selector = selector(cluster, COMPONENT);
    selector.match_labels.get_or_insert_default().insert(names::SIGNER.into(), index.to_string());
    let mut metadata = meta(cluster, name.clone(), COMPONENT);
    metadata.labels = Some(labels.clone());
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(1),
            // Else Kubernetes waits for a Pod that a bad change has broken, and the change that mends it comes to nothing.
            pod_management_policy: Some("Parallel".into()),
            revision_history_limit: Some(3),
            service_name: Some(names::signers(&cluster.name)),
            selector,
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    annotations: Some(BTreeMap::from([(names::CONFIGURATION.into(), configuration.into())])),
                    ..ObjectMeta::default()
                }),
                spec: Some(template(cluster, options, key, index, secrets, name)),
            },
            volume_claim_templates: Some(vec![claim(cluster)]),
            // The sessions that a signer has begun, and whom it signs with no more, must outlive everything.
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".into()),
                when_scaled: Some("Retain".into()),
            }),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn claim(cluster: &Cluster) -> PersistentVolumeClaim {
    let storage = &cluster.spec.signer.storage;
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some("data".into()),
            labels: Some(names::selector(&cluster.name, COMPONENT)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".into(), Quantity(storage.size.clone()))])),
                limits: None,
            }),
            storage_class_name: storage.storage_class_name.clone(),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn template(
    cluster: &Cluster,
    options: &Options,
    key: &KeyRecord,
    index: u8,
    secrets: &ShareSecrets,
    account: String,
) -> PodSpec {
    let wanted = &cluster.spec.signer;
    let image = wanted.pod.image.as_ref().unwrap_or(&options.signer_image);
    let mut mounts = vec![
        mount("config", CONFIG),
        mount("roster", ROSTER),
        mount("rabbitmq", RABBITMQ),
        mount("identity", IDENTITY),
        mount("share", SHARE),
        writable_mount("data", DATA),
    ];
    let mut volumes = vec![
        config_volume("config", &format!("{}-config", names::signers(&cluster.name))),
        config_volume("roster", &key.roster),
        uri_volume("rabbitmq", &cluster.spec.rabbitmq.uri_secret),
        secret_volume("identity", &secrets.identity, &["identity"], false),
        secret_volume("share", &secrets.share, &["share"], false),
    ];
    if let Some(policy) = &cluster.spec.policy {
        mounts.push(mount("policy", POLICY));
        volumes.push(config_volume("policy", &policy.config_map));
    }
    let mut variables = config_env(cluster.threshold);
    variables.push(env(&format!("TSS_SIGNER{index}_KEY_FILE"), format!("{SHARE}/share")));
    variables.push(env(&format!("TSS_SIGNER{index}_IDENTITY_FILE"), format!("{IDENTITY}/identity")));
    let arguments = ["--index", &index.to_string()];
    let signer = Container {
        env: Some(variables),
        ports: Some(vec![ContainerPort {
            name: Some(METRICS.into()),
            container_port: METRICS_PORT,
            ..ContainerPort::default()
        }]),
        startup_probe: Some(probe("/livez", 1, 60)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        volume_mounts: Some(mounts),
        ..container(COMPONENT, image, &arguments, &resources(&wanted.pod.resources, "100m", "64Mi", "512Mi"))
    };
    PodSpec {
        containers: vec![signer],
        affinity: Some(apart(cluster, COMPONENT, wanted.anti_affinity)),
        // Sessions that have begun come to their end.
        termination_grace_period_seconds: Some(30),
        volumes: Some(volumes),
        ..pod(cluster, account, &wanted.pod)
    }
}
