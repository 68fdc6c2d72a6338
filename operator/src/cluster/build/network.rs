//! NetworkPolicies: each Pod reaches what it needs, and is reached by whom it serves.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{MANAGER_PORT, METRICS_PORT, Objects, Options, Unserializable, meta, selector};
use crate::cluster::names;
use crate::cluster::validate::Cluster;

pub(super) fn build(
    cluster: &Cluster,
    options: &Options,
    objects: &mut Objects,
) -> Result<(), Unserializable> {
    let (rabbitmq, mongodb) = (cluster.spec.rabbitmq.port, cluster.spec.mongodb.port);
    let traces = cluster.traces_port.map(i32::from);
    let reaches = |ports: &[i32]| ports.iter().copied().chain(traces).collect::<Vec<_>>();
    // Health and metrics tell nothing secret.
    let metrics = NetworkPolicyIngressRule { from: None, ports: Some(vec![tcp(METRICS_PORT)]) };
    // Whoever reaches a manager can ask it for signatures.
    let callers = vec![
        NetworkPolicyPeer {
            pod_selector: Some(labelled(names::CLIENT, &cluster.name)),
            ..NetworkPolicyPeer::default()
        },
        NetworkPolicyPeer {
            namespace_selector: Some(labelled("kubernetes.io/metadata.name", &options.namespace)),
            pod_selector: Some(labelled("app.kubernetes.io/name", "tss-network-operator")),
            ..NetworkPolicyPeer::default()
        },
    ];
    let manager = NetworkPolicyIngressRule { from: Some(callers), ports: Some(vec![tcp(MANAGER_PORT)]) };
    objects.push(policy(
        cluster,
        names::manager(&cluster.name),
        "manager",
        vec![manager, metrics.clone()],
        &reaches(&[rabbitmq, mongodb]),
    ))?;
    let name = names::signers(&cluster.name);
    objects.push(policy(cluster, name, "signer", vec![metrics], &reaches(&[rabbitmq])))
}

/// Nobody reaches key generation. It reaches RabbitMQ and the API server.
pub(super) fn key_generation(cluster: &Cluster, name: String) -> NetworkPolicy {
    // The API server's Service has port 443; behind it are, by the distribution, these.
    let ports = [cluster.spec.rabbitmq.port, 443, 6443, 8443, 16443];
    policy(cluster, name, super::keygen::COMPONENT, Vec::new(), &ports)
}

fn policy(
    cluster: &Cluster,
    name: String,
    component: &str,
    ingress: Vec<NetworkPolicyIngressRule>,
    reaches: &[i32],
) -> NetworkPolicy {
    let dns = ["UDP", "TCP"].map(|protocol| NetworkPolicyPort {
        protocol: Some(protocol.into()),
        port: Some(IntOrString::Int(53)),
        end_port: None,
    });
    // Where RabbitMQ and MongoDB are stands in Secrets, which the operator does not read: only ports can be named.
    let ports = dns.into_iter().chain(reaches.iter().copied().map(tcp)).collect();
    NetworkPolicy {
        metadata: meta(cluster, name, component),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(cluster, component)),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(ingress).filter(|rules| !rules.is_empty()),
            egress: Some(vec![NetworkPolicyEgressRule { to: None, ports: Some(ports) }]),
        }),
    }
}

fn labelled(label: &str, value: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(BTreeMap::from([(label.into(), value.into())])),
        ..LabelSelector::default()
    }
}

fn tcp(port: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { protocol: Some("TCP".into()), port: Some(IntOrString::Int(port)), end_port: None }
}
