//! What the objects of a cluster are called, and how they are labelled.

use std::collections::BTreeMap;

use tss_common::intent::hash_fields;

use super::build::MANAGER_PORT;
use crate::crd::Scheme;

/// The label that names the TssCluster of an object.
pub const CLUSTER: &str = "tss.network/cluster";
/// The label that names a signer's index.
pub const SIGNER: &str = "tss.network/signer";
/// The label by which a Pod may use the API of the cluster that it names.
pub const CLIENT: &str = "tss.network/client";
/// The label of what a program is for: `manager`, `signer`, `key-generation`.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// The label of the operator's objects.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The annotation with a hash of what the operator wants an object to be.
pub const DESIRED: &str = "tss.network/desired";
/// The annotation with a hash of the configuration that a Pod began with.
pub const CONFIGURATION: &str = "tss.network/configuration";

/// The Deployment, Service, ServiceAccount and so on of the managers.
pub fn manager(cluster: &str) -> String {
    format!("{cluster}-manager")
}

/// Where programs in the Kubernetes cluster find the managers.
pub fn manager_url(scheme: Scheme, namespace: &str, cluster: &str) -> String {
    format!("{}://{}.{namespace}.svc:{MANAGER_PORT}", scheme.as_str(), manager(cluster))
}

/// The StatefulSet and ServiceAccount of a signer.
pub fn signer(cluster: &str, index: u8) -> String {
    format!("{cluster}-signer-{index}")
}

/// What all signers of a cluster have together.
pub fn signers(cluster: &str) -> String {
    format!("{cluster}-signers")
}

/// The ServiceAccount of key generation, and what belongs to it.
pub fn keygen(cluster: &str) -> String {
    format!("{cluster}-keygen")
}

/// The Secret with a signer's identity. Never deleted by the operator.
pub fn identity(cluster: &str, index: u8) -> String {
    format!("{cluster}-signer-{index}-identity")
}

/// The Secret with a signer's share of a key at an epoch. Never deleted by the operator. It carries the beginning
/// of the public key, so that shares of two keys never meet under one name.
pub fn share(cluster: &str, index: u8, epoch: i64, public_key: &str) -> String {
    format!("{cluster}-signer-{index}-e{epoch}-{}", key_digits(public_key))
}

/// The Secret with a signer's share of a later epoch. It carries the beginning of what all shares of that epoch have in
/// common, so that shares of two tries never meet under one name.
pub fn later_share(cluster: &str, index: u8, epoch: i64, commitment: &str) -> String {
    let digits: String = commitment.chars().take(KEY_DIGITS).collect();
    format!("{cluster}-signer-{index}-e{epoch}-{digits}")
}

/// How many digits of a public key stand in names.
pub const KEY_DIGITS: usize = 10;

/// The digits of a public key that stand in names: those after the first byte, which tells little.
pub fn key_digits(public_key: &str) -> String {
    public_key.chars().skip(2).take(KEY_DIGITS).collect()
}

/// The ConfigMap with the first roster. Never deleted by the operator.
pub fn roster(cluster: &str) -> String {
    format!("{cluster}-roster")
}

/// The ConfigMap with a later roster: another one for each.
pub fn later_roster(cluster: &str, roster: &str) -> String {
    format!("{cluster}-roster-{}", digits("tss.network/roster-name/v1", &[roster.as_bytes()]))
}

/// What the backups of an epoch's shares for these holders are called apart from others: of each holder, its recipients.
pub fn backups(holders: &[Vec<String>], commitment: &str) -> String {
    let holders = holders.iter().map(|recipients| recipients.join(","));
    let fields: Vec<String> = [commitment.to_owned()].into_iter().chain(holders).collect();
    let fields: Vec<&[u8]> = fields.iter().map(|field| field.as_bytes()).collect();
    digits("tss.network/backups-name/v1", &fields)
}

/// The Secret with a backup of a signer's share, made in this try. Never deleted by the operator.
pub fn backup(cluster: &str, index: u8, epoch: i64, backups: &str, attempt: i32) -> String {
    format!("{cluster}-backup-{index}-e{epoch}-{backups}-{attempt}")
}

fn digits(domain: &str, fields: &[&[u8]]) -> String {
    hex::encode(hash_fields(domain, fields)).chars().take(KEY_DIGITS).collect()
}

/// The ConfigMap that says which key the cluster has at an epoch. The operator deletes it only once the key is two epochs
/// ahead.
pub fn key(cluster: &str, epoch: i64) -> String {
    if epoch == 1 { format!("{cluster}-key") } else { format!("{cluster}-key-e{epoch}") }
}

/// Whether a ConfigMap of a cluster, by its name, says which key it has.
pub fn is_key(cluster: &str, name: &str) -> bool {
    let rest = name.strip_prefix(&key(cluster, 1));
    rest.is_some_and(|rest| {
        let digits = rest.strip_prefix("-e").unwrap_or_default();
        rest.is_empty() || !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
    })
}

/// The labels of an object of a cluster.
pub fn labels(cluster: &str, component: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".into(), "tss-network".into()),
        ("app.kubernetes.io/instance".into(), cluster.into()),
        (COMPONENT.into(), component.into()),
        (MANAGED_BY.into(), crate::context::FIELD_MANAGER.into()),
        (CLUSTER.into(), cluster.into()),
    ])
}

/// The labels by which a Service or policy finds the Pods of a component.
pub fn selector(cluster: &str, component: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(CLUSTER.into(), cluster.into()), (COMPONENT.into(), component.into())])
}
