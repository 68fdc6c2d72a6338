//! What a SigningRequest refers to.

use std::sync::Arc;

use kube::Api;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{ObjectRef, Store};

use super::Error;
use super::validate::finished_at;
use crate::crd::{SigningRequest, TssCluster};

/// A SigningRequest, and the cluster that it names.
#[derive(Clone, Debug)]
pub struct Dereferenced {
    /// The object as it is now.
    pub object: SigningRequest,
    /// The cluster.
    pub cluster: Cluster,
}

/// The cluster that a SigningRequest names.
#[derive(Clone, Debug)]
pub enum Cluster {
    /// There is none.
    Missing,
    /// It cannot be read.
    Malformed(String),
    /// It is there.
    Found(Arc<TssCluster>),
}

/// The object as it is now, and its cluster. `None` when the object is gone.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn dereference(
    api: &Api<SigningRequest>,
    clusters: &Store<DeserializeGuard<TssCluster>>,
    cached: &SigningRequest,
) -> Result<Option<Dereferenced>, Error> {
    // A finished object never changes. Any other is asked for anew: what was written a moment ago may not have
    // come back over the watch, and the manager would be asked again what it has answered.
    if cached.status.as_ref().is_some_and(|status| finished_at(status).is_some()) {
        return Ok(Some(Dereferenced { object: cached.clone(), cluster: Cluster::Missing }));
    }
    let name = cached.metadata.name.as_deref().unwrap_or_default();
    let Some(object) = api.get_opt(name).await? else { return Ok(None) };
    clusters.wait_until_ready().await?;
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let cluster = clusters.get(&ObjectRef::new(&object.spec.cluster_ref.name).within(namespace));
    let cluster = match cluster.as_deref() {
        None => Cluster::Missing,
        Some(DeserializeGuard(Err(invalid))) => Cluster::Malformed(invalid.error.clone()),
        Some(DeserializeGuard(Ok(cluster))) => Cluster::Found(Arc::new(cluster.clone())),
    };
    Ok(Some(Dereferenced { object, cluster }))
}
