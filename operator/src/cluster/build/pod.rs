//! What all Pods have in common: the restricted Pod Security Standard, and no token.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, HTTPGetAction,
    KeyToPath, PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, Probe, ResourceRequirements,
    SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tss_mpc::Threshold;

use super::{Cluster, selector};
use crate::crd::{AntiAffinity, PodSpec as Wanted, Resources, SecretEntry};

/// The user of all containers, which is nobody's on the node.
const USER: i64 = 65_532;
/// Files from Secrets: readable by the group of the Pod's volumes, and nobody else.
const SECRET_MODE: i32 = 0o440;

/// A Pod as far as all Pods are alike.
pub(super) fn pod(cluster: &Cluster, account: String, wanted: &Wanted) -> PodSpec {
    PodSpec {
        service_account_name: Some(account),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            // A volume with many files is not walked at each start.
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        image_pull_secrets: some(cluster.spec.image_pull_secrets.clone()),
        node_selector: Some(wanted.node_selector.clone()).filter(|selector| !selector.is_empty()),
        tolerations: some(wanted.tolerations.clone()),
        priority_class_name: wanted.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

/// `None` for an empty list.
pub(super) fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

/// A container as far as all containers are alike.
pub(super) fn container(name: &str, image: &str, arguments: &[&str], resources: &Resources) -> Container {
    Container {
        name: name.into(),
        image: Some(image.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        args: some(arguments.iter().map(|&argument| argument.to_owned()).collect()),
        resources: Some(ResourceRequirements {
            requests: Some(resources.requests.clone()).filter(|map| !map.is_empty()),
            limits: Some(resources.limits.clone()).filter(|map| !map.is_empty()),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
            ..SecurityContext::default()
        }),
        // What a program says last is what a person wants to read in the Pod's status.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

/// What a container asks for where a TssCluster says nothing.
pub(super) fn resources(wanted: &Resources, cpu: &str, memory: &str, limit: &str) -> Resources {
    if !wanted.is_empty() {
        return wanted.clone();
    }
    let quantity = |text: &str| Quantity(text.into());
    Resources {
        requests: BTreeMap::from([("cpu".into(), quantity(cpu)), ("memory".into(), quantity(memory))]),
        // No limit of CPU time: a signer that is throttled makes all others of its quorum wait.
        limits: BTreeMap::from([("memory".into(), quantity(limit))]),
    }
}

pub(super) fn env(name: &str, value: impl Into<String>) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
}

/// Production settings, from the configuration folder of the Pod.
/// Where the configuration is, and what of it is the Pod's own: the ConfigMap may be of the next threshold already.
pub(super) fn config_env(threshold: Threshold) -> Vec<EnvVar> {
    vec![
        env("RUN_MODE", "production"),
        env("CONFIG_DIR", super::config::CONFIG),
        env("TSS_THRESHOLD", threshold.t().to_string()),
        env("TSS_TOTAL_PARTIES", threshold.n().to_string()),
    ]
}

pub(super) fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: volume.into(),
        mount_path: path.into(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

pub(super) fn writable_mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.into(), mount_path: path.into(), ..VolumeMount::default() }
}

pub(super) fn config_volume(name: &str, map: &str) -> Volume {
    Volume {
        name: name.into(),
        config_map: Some(ConfigMapVolumeSource { name: map.into(), ..ConfigMapVolumeSource::default() }),
        ..Volume::default()
    }
}

/// Entries of a Secret as files of the same names.
pub(super) fn secret_volume(name: &str, secret: &str, entries: &[&str], optional: bool) -> Volume {
    let files = entries.iter().map(|&entry| (entry, entry));
    secret_files(name, secret, files, optional)
}

pub(super) fn uri_volume(name: &str, secret: &SecretEntry) -> Volume {
    secret_files(name, &secret.name, [(secret.key.as_str(), "uri")], false)
}

fn secret_files<'a>(
    name: &str,
    secret: &str,
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
    optional: bool,
) -> Volume {
    let item = |(entry, file): (&str, &str)| KeyToPath { key: entry.into(), path: file.into(), mode: None };
    Volume {
        name: name.into(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.into()),
            default_mode: Some(SECRET_MODE),
            items: Some(files.into_iter().map(item).collect()),
            optional: Some(true).filter(|_| optional),
        }),
        ..Volume::default()
    }
}

/// A folder in memory.
pub(super) fn memory_volume(name: &str, size: &str) -> Volume {
    Volume {
        name: name.into(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: Some(Quantity(size.into())),
        }),
        ..Volume::default()
    }
}

/// A probe of a path of the port of health and metrics.
pub(super) fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::String(super::METRICS.into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// Keeps the Pods of a component on nodes of their own.
pub(super) fn apart(cluster: &Cluster, component: &str, strictness: AntiAffinity) -> Affinity {
    let term = PodAffinityTerm {
        label_selector: Some(selector(cluster, component)),
        topology_key: "kubernetes.io/hostname".into(),
        ..PodAffinityTerm::default()
    };
    let apart = match strictness {
        AntiAffinity::Required => PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![term]),
            ..PodAntiAffinity::default()
        },
        AntiAffinity::Preferred => PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                pod_affinity_term: term,
                weight: 100,
            }]),
            ..PodAntiAffinity::default()
        },
    };
    Affinity { pod_anti_affinity: Some(apart), ..Affinity::default() }
}
