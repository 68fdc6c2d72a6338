//! The managers: any number of equal ones.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, PodSpec, PodTemplateSpec, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::config::{CONFIG, MONGODB, RABBITMQ, ROSTER, TLS};
use super::pod::{
    apart, config_env, config_volume, container, mount, pod, probe, resources, secret_volume, uri_volume,
};
use super::{
    MANAGER_PORT, METRICS, METRICS_PORT, Objects, Options, Unserializable, config, meta, selector,
    service_account,
};
use crate::cluster::names;
use crate::cluster::record::KeyRecord;
use crate::cluster::validate::Cluster;
use crate::crd::AntiAffinity;

const COMPONENT: &str = "manager";

pub(super) fn build(
    cluster: &Cluster,
    options: &Options,
    key: &KeyRecord,
    objects: &mut Objects,
) -> Result<(), Unserializable> {
    let name = names::manager(&cluster.name);
    let (settings, hash) =
        config::config_map(cluster, format!("{name}-config"), COMPONENT, config::manager(cluster, key));
    objects.push(service_account(cluster, name.clone(), COMPONENT))?;
    objects.push(settings)?;
    objects.push(service(cluster, name.clone()))?;
    if cluster.spec.manager.replicas > 1 {
        objects.push(PodDisruptionBudget {
            metadata: meta(cluster, name.clone(), COMPONENT),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(selector(cluster, COMPONENT)),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        })?;
    }
    objects.push(deployment(cluster, options, key, name, hash))
}

fn service(cluster: &Cluster, name: String) -> Service {
    let scheme = cluster.spec.manager.scheme().as_str();
    Service {
        metadata: meta(cluster, name, COMPONENT),
        spec: Some(ServiceSpec {
            selector: Some(names::selector(&cluster.name, COMPONENT)),
            ports: Some(vec![ServicePort {
                name: Some(scheme.into()),
                port: MANAGER_PORT,
                target_port: Some(IntOrString::String(scheme.into())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

fn deployment(
    cluster: &Cluster,
    options: &Options,
    key: &KeyRecord,
    name: String,
    configuration: String,
) -> Deployment {
    let wanted = &cluster.spec.manager;
    let image = wanted.pod.image.as_ref().unwrap_or(&options.manager_image);
    let mut mounts = vec![
        mount("config", CONFIG),
        mount("roster", ROSTER),
        mount("rabbitmq", RABBITMQ),
        mount("mongodb", MONGODB),
    ];
    let mut volumes = vec![
        config_volume("config", &format!("{name}-config")),
        config_volume("roster", &key.roster),
        uri_volume("rabbitmq", &cluster.spec.rabbitmq.uri_secret),
        uri_volume("mongodb", &cluster.spec.mongodb.uri_secret),
    ];
    if let Some(tls) = &wanted.tls {
        mounts.push(mount("tls", TLS));
        volumes.push(secret_volume("tls", &tls.secret_name, &["tls.crt", "tls.key"], false));
    }
    let manager = Container {
        env: Some(config_env(cluster.threshold)),
        ports: Some(
            [(wanted.scheme().as_str(), MANAGER_PORT), (METRICS, METRICS_PORT)]
                .map(|(name, port)| ContainerPort {
                    name: Some(name.into()),
                    container_port: port,
                    ..ContainerPort::default()
                })
                .into(),
        ),
        // Ready when a request would be accepted; a store or broker that is down is no reason to restart.
        startup_probe: Some(probe("/livez", 1, 60)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        volume_mounts: Some(mounts),
        ..container(COMPONENT, image, &[], &resources(&wanted.pod.resources, "50m", "64Mi", "512Mi"))
    };
    let spec = PodSpec {
        containers: vec![manager],
        affinity: Some(apart(cluster, COMPONENT, AntiAffinity::Preferred)),
        termination_grace_period_seconds: Some(30),
        volumes: Some(volumes),
        ..pod(cluster, name.clone(), &wanted.pod)
    };
    Deployment {
        metadata: meta(cluster, name, COMPONENT),
        spec: Some(DeploymentSpec {
            replicas: Some(wanted.replicas),
            revision_history_limit: Some(3),
            selector: selector(cluster, COMPONENT),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(names::labels(&cluster.name, COMPONENT)),
                    annotations: Some(BTreeMap::from([(names::CONFIGURATION.into(), configuration)])),
                    ..ObjectMeta::default()
                }),
                spec: Some(spec),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}
