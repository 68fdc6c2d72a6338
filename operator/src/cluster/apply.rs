//! Step 4: makes what is there what there should be, by server-side apply. What is as it should be is not
//! written; what there should not be is deleted. Never a share, an identity, a volume, or a
//! key's record that is less than two epochs old.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
    ValidationDirective,
};
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use super::build::Object;
use super::dereference::{Live, Observed, kinds};
use super::names;
use super::validate::Cluster;
use crate::context::FIELD_MANAGER;

/// Why something could not be made as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server refused.
    #[error("{kind} {name}: {error}")]
    Refused {
        /// What.
        kind: String,
        /// Which.
        name: String,
        /// Why.
        error: kube::Error,
    },
    /// Somebody else's object has the name.
    #[error(
        "{kind} {name} is there already and does not belong to this TssCluster: delete it, or give the TssCluster another \
         name"
    )]
    NotOurs {
        /// What.
        kind: String,
        /// Which.
        name: String,
    },
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What was written or deleted.
    pub changed: Vec<String>,
    /// What is still on its way out, and comes again after.
    pub leaving: Vec<String>,
}

/// Makes what is there what there should be. `held` names those whose programs are neither changed nor deleted now.
///
/// # Errors
/// [`ApplyError`] for the first object that could not be.
pub async fn apply(
    client: &Client,
    cluster: &Cluster,
    observed: &Observed,
    desired: &[Object],
    held: &BTreeSet<String>,
) -> Result<Applied, ApplyError> {
    let mut applied = Applied::default();
    for object in desired {
        let label = format!("{} {}", object.kind(), object.name);
        match observed.find(object.kind(), &object.name) {
            Some(live) if live.deleting => applied.leaving.push(label),
            Some(live) if !live.owned => return Err(not_ours(object)),
            Some(live) if is_as_desired(live, object) => {}
            Some(_) if is_program(object) && held.contains(&object.name) => {}
            Some(live) => {
                patch(client, cluster, object, &live.body).await?;
                applied.changed.push(label);
            }
            None => {
                ensure_free(client, cluster, object).await?;
                patch(client, cluster, object, &Value::Null).await?;
                applied.changed.push(label);
            }
        }
    }
    for live in orphans(observed, desired).filter(|live| !held.contains(&live.name)) {
        delete(client, cluster, live).await?;
        applied.changed.push(format!("{} {}", live.kind, live.name));
    }
    Ok(applied)
}

fn is_program(object: &Object) -> bool {
    matches!(object.kind(), "StatefulSet" | "Deployment")
}

/// Whether there is nothing to write. A Job is made once; its Pods cannot be changed.
pub fn is_as_desired(live: &Live, object: &Object) -> bool {
    object.kind() == "Job" || contains(&live.body, &object.body)
}

/// What belongs to the TssCluster and is not wanted any more.
pub fn orphans<'a>(observed: &'a Observed, desired: &'a [Object]) -> impl Iterator<Item = &'a Live> {
    let wanted =
        |live: &Live| desired.iter().any(|object| object.kind() == live.kind && object.name == live.name);
    observed.live.iter().filter(move |live| live.owned && !live.deleting && !wanted(live))
}

/// Whether every field of `desired` stands in `live`, which has what the API server added as well.
fn contains(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired.iter().all(|(key, value)| {
            // Lists leave these out of their items.
            matches!(key.as_str(), "apiVersion" | "kind") && !live.contains_key(key)
                || live.get(key).is_some_and(|live| contains(live, value))
                || is_nothing(value) && !live.contains_key(key)
        }),
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len()
                && live.iter().zip(desired).all(|(live, desired)| contains(live, desired))
        }
        (live, desired) => live == desired,
    }
}

/// The API server drops what is empty.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().all(is_nothing),
        Value::Array(items) => items.is_empty(),
        Value::Null => true,
        _ => false,
    }
}

fn not_ours(object: &Object) -> ApplyError {
    ApplyError::NotOurs { kind: object.kind().into(), name: object.name.clone() }
}

/// Server-side apply would take over whatever has the name.
async fn ensure_free(client: &Client, cluster: &Cluster, object: &Object) -> Result<(), ApplyError> {
    let api = api(client, cluster, object);
    match api.get_metadata_opt(&object.name).await.map_err(|error| refused(object, error))? {
        Some(there) if !there.owner_references().iter().any(|owner| owner.uid == cluster.uid) => {
            Err(not_ours(object))
        }
        _ => Ok(()),
    }
}

async fn patch(client: &Client, cluster: &Cluster, object: &Object, live: &Value) -> Result<(), ApplyError> {
    let mut parameters = PatchParams::apply(FIELD_MANAGER).force();
    parameters.field_validation = Some(ValidationDirective::Strict);
    let api = api(client, cluster, object);
    let added = match api.patch(&object.name, &parameters, &Patch::Apply(&object.body)).await {
        Ok(after) => lists(&serde_json::to_value(after).unwrap_or_default(), &object.body),
        // What somebody added can be at odds with what there should be: two ports of one name.
        Err(kube::Error::Api(status)) if status.code == 422 => match lists(live, &object.body) {
            Some(lists) => Some(lists),
            None => return Err(refused(object, kube::Error::Api(status))),
        },
        Err(error) => return Err(refused(object, error)),
    };
    // Server-side apply leaves in a list what others added to it: a container, say, that mounts a share.
    let Some(lists) = added else { return Ok(()) };
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let patched = api.patch(&object.name, &parameters, &Patch::Merge(&lists)).await;
    patched.map(drop).map_err(|error| refused(object, error))
}

/// The lists that are not as desired, whole, as a merge patch.
fn lists(live: &Value, desired: &Value) -> Option<Value> {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            let differ: serde_json::Map<String, Value> = desired
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), lists(live.get(key)?, value)?)))
                .collect();
            (!differ.is_empty()).then_some(Value::Object(differ))
        }
        (Value::Array(_), Value::Array(_)) if !contains(live, desired) => Some(desired.clone()),
        _ => None,
    }
}

fn api(client: &Client, cluster: &Cluster, object: &Object) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), &cluster.namespace, &object.resource)
}

fn refused(object: &Object, error: kube::Error) -> ApplyError {
    ApplyError::Refused { kind: object.kind().into(), name: object.name.clone(), error }
}

async fn delete(client: &Client, cluster: &Cluster, live: &Live) -> Result<(), ApplyError> {
    let Some(kind) = kinds().into_iter().find(|kind| kind.kind == live.kind) else { return Ok(()) };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &cluster.namespace, &kind);
    let parameters = DeleteParams {
        // A Job's Pods, and the Secret that it stored, go with it.
        propagation_policy: Some(PropagationPolicy::Background),
        preconditions: Some(Preconditions { uid: Some(live.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(&live.name, &parameters).await {
        // Gone, or another one by now.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(ApplyError::Refused { kind: live.kind.clone(), name: live.name.clone(), error }),
        Ok(_) => Ok(()),
    }
}

/// Deletes ConfigMaps that were to outlive the TssCluster, and are of no use any more.
///
/// # Errors
/// What the API server said.
pub async fn forget(client: &Client, cluster: &Cluster, maps: &[String]) -> Result<(), ApplyError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &cluster.namespace);
    for name in maps {
        match api.delete(name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                return Err(ApplyError::Refused { kind: "ConfigMap".into(), name: name.clone(), error });
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Makes a ConfigMap that outlives the TssCluster; one that is there stays as it is.
///
/// # Errors
/// What the API server said.
pub async fn keep(client: &Client, map: &ConfigMap) -> Result<(), ApplyError> {
    let (name, namespace) = (map.name_any(), map.namespace().unwrap_or_default());
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    match api.create(&parameters, map).await {
        // Another operator was quicker, or this one before it was stopped: what stands there counts, if it is seen.
        Err(kube::Error::Api(status)) if status.code == 409 => match api.get_metadata_opt(&name).await {
            Ok(Some(there)) if there.labels().get(names::CLUSTER) != map.labels().get(names::CLUSTER) => {
                Err(ApplyError::NotOurs { kind: "ConfigMap".into(), name })
            }
            Ok(_) => Ok(()),
            Err(error) => Err(ApplyError::Refused { kind: "ConfigMap".into(), name, error }),
        },
        Err(error) => Err(ApplyError::Refused { kind: "ConfigMap".into(), name, error }),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{contains, lists};

    #[test]
    fn a_list_to_which_somebody_added_is_replaced_and_nothing_else() {
        let desired =
            json!({"spec": {"replicas": 1, "containers": [{"name": "a"}], "volumes": [{"name": "v"}]}});
        let live = json!({"spec": {"replicas": 2, "containers": [{"name": "a", "x": 1}, {"name": "spy"}],
            "volumes": [{"name": "v", "mode": 1}]}});
        assert_eq!(lists(&live, &desired), Some(json!({"spec": {"containers": [{"name": "a"}]}})));
        assert_eq!(lists(&desired, &desired), None);
    }

    #[test]
    fn what_the_api_server_adds_is_no_difference_and_what_somebody_changed_is() {
        let desired = json!({"spec": {"replicas": 1, "ports": [{"port": 80}], "resources": {}}});
        let live = json!({"kind": "X", "spec": {"replicas": 1, "ports": [{"port": 80, "protocol": "TCP"}]}, "status": {}});
        assert!(contains(&live, &desired));
        for changed in [
            json!({"spec": {"replicas": 0, "ports": [{"port": 80}]}}),
            json!({"spec": {"replicas": 1, "ports": []}}),
            json!({"spec": {"replicas": 1, "ports": [{"port": 80}, {"port": 81}]}}),
            json!({"spec": {"ports": [{"port": 80}]}}),
        ] {
            assert!(!contains(&changed, &desired), "{changed}");
        }
    }
}
