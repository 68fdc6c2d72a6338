//! The configuration files of manager, signers and key generation.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Map, Value, json};

use super::{MANAGER_PORT, METRICS_PORT, hash, meta};
use crate::cluster::names;
use crate::cluster::record::KeyRecord;
use crate::cluster::validate::Cluster;
use crate::crd::AuthKind;

/// Where a Pod finds its configuration, roster, policy, Secrets, and its own files.
pub(super) const CONFIG: &str = "/etc/tss";
pub(super) const ROSTER: &str = "/etc/tss-roster";
pub(super) const POLICY: &str = "/etc/tss-policy";
pub(super) const RABBITMQ: &str = "/run/secrets/tss/rabbitmq";
pub(super) const MONGODB: &str = "/run/secrets/tss/mongodb";
pub(super) const TLS: &str = "/run/secrets/tss/tls";
pub(super) const IDENTITY: &str = "/run/secrets/tss/identity";
pub(super) const SHARE: &str = "/run/secrets/tss/share";
pub(super) const DATA: &str = "/var/lib/tss";
/// Where the containers of a Job of key generation hand files on, in memory.
pub(super) const WORK: &str = "/run/tss";

type Settings = Map<String, Value>;

/// A configuration folder as a ConfigMap, and its hash.
pub(super) fn config_map(
    cluster: &Cluster,
    name: String,
    component: &str,
    settings: Settings,
) -> (ConfigMap, String) {
    let text = to_toml(settings);
    let hash = hash(&text);
    let log = to_toml(Settings::from_iter([(
        "log".into(),
        json!({ "level": cluster.spec.log_level, "format": "json" }),
    )]));
    let data = BTreeMap::from([("default.toml".into(), text), ("production.toml".into(), log.clone())]);
    let map =
        ConfigMap { metadata: meta(cluster, name, component), data: Some(data), ..ConfigMap::default() };
    (map, hash + &super::hash(&log))
}

/// TOML of what is made here: texts, numbers, and tables of them.
fn to_toml(settings: Settings) -> String {
    let (tables, values): (Vec<_>, Vec<_>) = settings.into_iter().partition(|(_, value)| value.is_object());
    // JSON's texts and numbers are TOML's, too.
    let mut text: String = values.into_iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    for (name, table) in tables {
        text.push_str(&format!("\n[{name}]\n"));
        for (key, value) in table.as_object().into_iter().flatten() {
            text.push_str(&format!("{key} = {value}\n"));
        }
    }
    text
}

/// What manager and signers know of the network.
fn network(cluster: &Cluster) -> Settings {
    let mut settings = Settings::new();
    let mut set = |key: &str, value: Value| settings.insert(key.into(), value);
    set("cluster", json!(cluster.network));
    set("engine", json!(cluster.spec.protocol.as_str()));
    set("threshold", json!(cluster.threshold.t()));
    set("total_parties", json!(cluster.threshold.n()));
    set("path", json!(cluster.spec.derivation_path));
    set("rabbitmq_uri_file", json!(format!("{RABBITMQ}/uri")));
    set("roster_file", json!(format!("{ROSTER}/roster.toml")));
    set("signing_timeout", json!(cluster.spec.signing_timeout_seconds));
    set("data_dir", json!(DATA));
    settings
}

/// Where manager and signers send their traces.
fn traces(cluster: &Cluster) -> Settings {
    let traces = cluster.spec.traces.iter().map(|traces| {
        let ratio = f64::from(traces.sample_percent) / 100.0;
        ("trace".into(), json!({"otlp_endpoint": traces.otlp_endpoint, "sample_ratio": ratio}))
    });
    traces.collect()
}

/// The database of a network whose TssCluster names none: another one for each key, since a manager never replaces a
/// key that is on record.
fn database(cluster: &Cluster, key: &KeyRecord) -> String {
    // MongoDB's limit is 63 bytes.
    let network: String = cluster.network.chars().take(MAX_DATABASE - names::KEY_DIGITS - 1).collect();
    format!("{network}-{}", names::key_digits(&key.public_key))
}

/// The longest name of a database, in bytes.
const MAX_DATABASE: usize = 63;

pub(super) fn manager(cluster: &Cluster, key: &KeyRecord) -> Settings {
    let database = cluster.spec.mongodb.database.clone().unwrap_or_else(|| database(cluster, key));
    let auth = match cluster.spec.auth.kind {
        AuthKind::None => "none",
    };
    let mut settings = network(cluster);
    settings.extend([
        // Not to be learnt from whoever writes to the database first.
        ("public_key".into(), json!(key.public_key)),
        ("store".into(), json!("mongodb")),
        ("mongodb_uri_file".into(), json!(format!("{MONGODB}/uri"))),
        ("mongodb_database".into(), json!(database)),
        ("manager_address".into(), json!("0.0.0.0")),
        ("manager_port".into(), json!(MANAGER_PORT)),
        ("manager_metrics_port".into(), json!(METRICS_PORT)),
        ("auth".into(), json!(auth)),
    ]);
    if cluster.spec.manager.tls.is_some() {
        settings.insert("manager_tls_cert_file".into(), json!(format!("{TLS}/tls.crt")));
        settings.insert("manager_tls_key_file".into(), json!(format!("{TLS}/tls.key")));
    }
    settings.extend(traces(cluster));
    settings
}

/// The configuration that all signers share: each finds its own share and identity at the same place.
pub(super) fn signers(cluster: &Cluster) -> Settings {
    let mut settings = network(cluster);
    settings
        .extend([("signer_address".into(), json!("0.0.0.0")), ("signer_port".into(), json!(METRICS_PORT))]);
    settings.extend(traces(cluster));
    if let Some(policy) = &cluster.spec.policy {
        settings.insert("policy_file".into(), json!(format!("{POLICY}/{}", policy.key)));
    }
    for index in cluster.indices() {
        settings.insert(format!("signer{index}_key_file"), json!(format!("{SHARE}/share")));
        settings.insert(format!("signer{index}_identity_file"), json!(format!("{IDENTITY}/identity")));
    }
    settings
}

/// The configuration of key generation: where each signer's Job finds or leaves its share is said by variables.
pub(super) fn keygen(cluster: &Cluster) -> Settings {
    let mut settings = network(cluster);
    // Each Job has those of the shares that it makes or reads.
    settings.remove("threshold");
    settings.remove("total_parties");
    settings.insert("data_dir".into(), json!(format!("{WORK}/data")));
    settings
}
