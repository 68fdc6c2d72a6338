//! Step 1: what is there. Everything is asked of the API server, not of a cache: what is decided here is
//! which key a cluster has.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Container, ContainerStatus, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::jobs::JobState;
use super::names;
use super::record::KeyRecord;
use crate::crd::{KeyGeneration, Renewal, TssCluster};

/// The label with which Kubernetes marks the Pods of a Job.
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// How many objects a list has at most: far more than a cluster has.
const PAGE: u32 = 1000;

/// What kinds of objects belong to a TssCluster, in the order in which they are applied.
pub fn kinds() -> [ApiResource; 10] {
    [
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<Role>(&()),
        ApiResource::erase::<RoleBinding>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<PodDisruptionBudget>(&()),
        ApiResource::erase::<Job>(&()),
        ApiResource::erase::<Deployment>(&()),
        ApiResource::erase::<StatefulSet>(&()),
    ]
}

/// An object that is there.
#[derive(Clone, Debug)]
pub struct Live {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Whether it belongs to this TssCluster, and goes with it.
    pub owned: bool,
    /// Whether it is on its way out.
    pub deleting: bool,
    /// The object.
    pub body: Value,
}

/// A signer's Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignerPod {
    /// Whether it is ready.
    pub ready: bool,
    /// Since when it is not.
    pub unready_since: Option<Timestamp>,
    /// The node it runs on.
    pub node: Option<String>,
    /// What it waits for.
    pub waiting: Option<String>,
}

/// What is there.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The TssCluster as it is now.
    pub object: TssCluster,
    /// The record of the cluster's key that is in force.
    pub record: Option<Result<KeyRecord, String>>,
    /// When it was made, and with it the shares.
    pub made_at: Option<Timestamp>,
    /// The one before it.
    pub previous: Option<KeyRecord>,
    /// The ConfigMaps with still earlier ones, which are of no use any more.
    pub outdated: Vec<String>,
    /// The objects with the cluster's label.
    pub live: Vec<Live>,
    /// The Jobs of this TssCluster by name.
    pub jobs: BTreeMap<String, JobState>,
    /// The Jobs of key generation, of any try, whose Pods have not ended.
    pub running: BTreeSet<String>,
    /// The signers' Pods.
    pub pods: BTreeMap<u8, SignerPod>,
}

/// Everything that [`Observed`] tells. `None` when the TssCluster is gone or on its way out.
///
/// # Errors
/// What the API server said.
pub async fn dereference(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<Observed>, kube::Error> {
    let clusters: Api<TssCluster> = Api::namespaced(client.clone(), namespace);
    let object = clusters.get_opt(name).await?;
    let Some(object) = object.filter(|object| object.metadata.deletion_timestamp.is_none()) else {
        return Ok(None);
    };
    let selector = ListParams::default().labels(&format!("{}={name}", names::CLUSTER)).limit(PAGE);
    let lists = kinds().map(|kind| {
        let (client, selector) = (client.clone(), selector.clone());
        async move {
            let list =
                Api::<DynamicObject>::namespaced_with(client, namespace, &kind).list(&selector).await?;
            Ok::<_, kube::Error>(list.items.into_iter().map(move |item| (kind.kind.clone(), item)))
        }
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let (lists, pods) =
        futures::future::try_join(futures::future::try_join_all(lists), pods.list(&selector)).await?;
    let live = lists.into_iter().flatten().map(|(kind, item)| live(kind, item, &object)).collect();
    Ok(Some(observe(object, live, &pods.items)))
}

fn live(kind: String, item: DynamicObject, owner: &TssCluster) -> Live {
    let uid = item.uid().unwrap_or_default();
    let owned =
        item.owner_references().iter().any(|reference| Some(&reference.uid) == owner.meta().uid.as_ref());
    Live {
        name: item.name_any(),
        owned,
        deleting: item.metadata.deletion_timestamp.is_some(),
        uid,
        // An object that was read has a form in JSON.
        body: serde_json::to_value(item).unwrap_or_default(),
        kind,
    }
}

/// What is there, from what the API server answered.
pub fn observe(object: TssCluster, live: Vec<Live>, pods: &[Pod]) -> Observed {
    let records = records(&object, &live);
    let jobs =
        live.iter().filter(|live| live.kind == "Job" && live.owned && !live.deleting).filter_map(|live| {
            let job = read::<Job>(&live.body)?;
            Some((live.name.clone(), job_state(&job, pods)))
        });
    let jobs = jobs.collect();
    let running = pods
        .iter()
        .filter(|pod| !has_ended(pod))
        .filter_map(|pod| pod.labels().get(JOB_NAME))
        .cloned()
        .collect();
    let pods = pods.iter().filter_map(|pod| {
        let labels = pod.labels();
        let index = labels.get(names::SIGNER)?.parse().ok()?;
        (labels.get(names::COMPONENT)? == "signer").then(|| (index, signer_pod(pod)))
    });
    let pods = pods.collect();
    let Records { in_force, made_at, previous, outdated } = records;
    Observed { record: in_force, made_at, previous, outdated, jobs, running, pods, live, object }
}

/// The records of a cluster's key.
#[derive(Default)]
struct Records {
    in_force: Option<Result<KeyRecord, String>>,
    made_at: Option<Timestamp>,
    previous: Option<KeyRecord>,
    outdated: Vec<String>,
}

/// Which record counts: that of the epoch in the status, unless new shares have been put on record that were decided there.
/// So nobody who can make a ConfigMap, and no more, gives the cluster other shares. Where the status knows nothing, as
/// after the TssCluster was deleted, it is the latest.
fn records(object: &TssCluster, live: &[Live]) -> Records {
    let name = object.name_any();
    let maps = live.iter().filter(|live| live.kind == "ConfigMap" && names::is_key(&name, &live.name));
    let mut unreadable = None;
    let mut records: BTreeMap<i64, (KeyRecord, Option<Timestamp>, &str)> = BTreeMap::new();
    for (live, map) in maps.filter_map(|live| Some((live, read::<ConfigMap>(&live.body)?))) {
        match KeyRecord::read(&map) {
            Ok(record) => {
                let made_at = map.metadata.creation_timestamp.map(|time| time.0);
                records.insert(record.epoch, (record, made_at, &live.name));
            }
            Err(problem) => drop(unreadable.get_or_insert(problem)),
        }
    }
    let status = object.status.as_ref();
    let known = status.and_then(|status| status.epoch);
    let decided = status.and_then(|status| status.renewal.as_ref()).and_then(|renewal| {
        let record = &records.get(&renewal.epoch)?.0;
        let is_next = known.and_then(|epoch| epoch.checked_add(1)) == Some(renewal.epoch);
        (is_next && renewal.tries.decided.as_ref() == Some(&record.commitment)).then_some(renewal.epoch)
    });
    let in_force = match decided.or(known) {
        Some(epoch) => records.contains_key(&epoch).then_some(epoch),
        None if unreadable.is_some() => None,
        None => records.keys().next_back().copied(),
    };
    let Some(in_force) = in_force else {
        return Records { in_force: unreadable.map(Err), ..Records::default() };
    };
    let mut earlier = records.range(..in_force).rev().map(|(_, (record, _, name))| (record, *name));
    let previous = earlier.next().map(|(record, _)| record.clone());
    let outdated = earlier.map(|(_, name)| name.to_owned()).collect();
    let (record, made_at, _) = records.remove(&in_force).expect("it was found");
    Records { in_force: Some(Ok(record)), made_at, previous, outdated }
}

/// Reads an object that the API server wrote.
pub fn read<T: DeserializeOwned>(body: &Value) -> Option<T> {
    T::deserialize(body).ok()
}

impl Observed {
    /// How far key generation is.
    pub fn progress(&self) -> KeyGeneration {
        let status = self.object.status.as_ref();
        let known = status.and_then(|status| status.key_generation.clone());
        known.unwrap_or_else(|| KeyGeneration { attempt: 1, ..KeyGeneration::default() })
    }

    /// How far new shares are.
    pub fn renewal(&self) -> Option<Renewal> {
        self.object.status.as_ref()?.renewal.clone()
    }

    /// The roster in a ConfigMap of this name.
    pub fn roster(&self, name: &str) -> Option<&str> {
        self.find("ConfigMap", name)?.body.pointer("/data/roster.toml")?.as_str()
    }

    /// An object of a kind and name.
    pub fn find(&self, kind: &str, name: &str) -> Option<&Live> {
        self.live.iter().find(|live| live.kind == kind && live.name == name)
    }
}

fn job_state(job: &Job, pods: &[Pod]) -> JobState {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let condition = |kind: &str| {
        conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True")
    };
    let own: Vec<&Pod> = pods
        .iter()
        .filter(|pod| {
            pod.owner_references().iter().any(|owner| Some(&owner.uid) == job.metadata.uid.as_ref())
        })
        .collect();
    if condition("Complete").is_some() {
        let report = own.iter().find_map(|pod| report(pod));
        return report.map_or_else(
            || JobState::Failed("it has finished, and its Pod with its report is gone".into()),
            JobState::Succeeded,
        );
    }
    if let Some(failed) = condition("Failed").or_else(|| condition("FailureTarget")) {
        let said = own.iter().filter_map(|pod| last_words(pod)).next_back();
        let mut why = failed.message.clone().or_else(|| failed.reason.clone()).unwrap_or_default();
        if failed.reason.as_deref() == Some("DeadlineExceeded") {
            why.push_str(": expected RabbitMQ, the image, and the Secrets and ConfigMaps that its Pod mounts to be there");
        }
        return JobState::Failed(said.unwrap_or(why));
    }
    match own.iter().find_map(|pod| waiting(pod)) {
        Some(what) => JobState::Waiting(what),
        None => JobState::Running,
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let inits = status.and_then(|status| status.init_container_statuses.as_deref()).unwrap_or_default();
    inits.iter().chain(status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default())
}

/// What the last container of a Pod that succeeded reported.
fn report(pod: &Pod) -> Option<String> {
    let last: &Container = pod.spec.as_ref()?.containers.first()?;
    let ended =
        containers(pod).find(|status| status.name == last.name)?.state.as_ref()?.terminated.as_ref()?;
    (ended.exit_code == 0).then(|| ended.message.clone()).flatten()
}

/// What a container that failed said last.
fn last_words(pod: &Pod) -> Option<String> {
    containers(pod).find_map(|status| {
        let ended = status.state.as_ref()?.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
        let said = ended.message.as_deref().unwrap_or_default();
        // Logs come before the error with which a program ends.
        let said = said.lines().rev().find(|line| line.starts_with("error: ")).unwrap_or(said).trim();
        let code = ended.exit_code;
        Some(if said.is_empty() { format!("exit code {code}") } else { said.to_owned() })
    })
}

/// Why a Pod does not start.
fn waiting(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let stuck = containers(pod).find_map(|status| {
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().unwrap_or_default();
        // These pass by themselves.
        if matches!(reason, "ContainerCreating" | "PodInitializing") {
            return None;
        }
        Some([reason, waiting.message.as_deref().unwrap_or_default()].join(": "))
    });
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let lacks = |kind: &str| conditions.iter().find(|c| c.type_ == kind && c.status == "False");
    let unscheduled = || {
        let message = lacks("PodScheduled")?.message.as_deref().unwrap_or_default();
        Some(format!("no node for it: {message}"))
    };
    let unmounted = || {
        lacks("PodReadyToStartContainers")?;
        let name = pod.name_any();
        Some(format!(
            "Pod {name} waits for its volumes; if it stays so, `kubectl describe pod {name}` tells which is missing"
        ))
    };
    if has_ended(pod) { None } else { stuck.or_else(unscheduled).or_else(unmounted) }
}

fn signer_pod(pod: &Pod) -> SignerPod {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let condition = conditions.iter().find(|condition| condition.type_ == "Ready");
    let ready = condition.is_some_and(|condition| condition.status == "True");
    let leaving = pod.metadata.deletion_timestamp.is_some();
    SignerPod {
        ready: ready && !leaving,
        unready_since: condition
            .filter(|_| !ready)
            .and_then(|condition| condition.last_transition_time.as_ref())
            .map(|time| time.0),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        waiting: waiting(pod),
    }
}
