//! Step 3: the objects that a cluster needs, from what it asks for and the key it has. Pure.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::ApiResource;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde_json::Value;

use super::keygen::JobPlan;
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

/// The port of the manager's API and metrics.
pub const MANAGER_PORT: i32 = 8080;
/// The port of a signer's health and metrics.
pub const SIGNER_PORT: i32 = 8090;

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
