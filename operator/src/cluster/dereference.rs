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
    let status = object.status.as_ref();
    let known = status.and_then(|status| status.epoch);
    let mut unreadable = None;
    let mut records: BTreeMap<i64, (KeyRecord, Option<Timestamp>, &str)> = BTreeMap::new();
    for (live, map) in maps.filter_map(|live| Some((live, read::<ConfigMap>(&live.body)?))) {
        match KeyRecord::read(&map) {
            // Else whoever can make a ConfigMap could say what another one is there to say.
            Ok(record) if !is_called(&name, &live.name, &record) => {
                let problem = format!(
                    "ConfigMap {}: it is the record of epoch {}: expected it to be called {}; delete it",
                    live.name,
                    record.epoch,
                    names::key(&name, record.epoch)
                );
                unreadable.get_or_insert(problem);
            }
            Ok(record) if status.is_some_and(|status| record.contradicts(status)) => {
                let problem = format!(
                    "ConfigMap {}: it is of another key, or of other shares of epoch {}, than the status: delete it; the right one is written again",
                    live.name, record.epoch
                );
                unreadable.get_or_insert(problem);
            }
            Ok(record) => {
                let made_at = map.metadata.creation_timestamp.map(|time| time.0);
                let (epoch, found) = (record.epoch, (record, made_at, live.name.as_str()));
                if live.name == names::key(&name, epoch) {
                    records.insert(epoch, found);
                } else {
                    records.entry(epoch).or_insert(found);
                }
            }
            Err(problem) => drop(unreadable.get_or_insert(problem)),
        }
    }
    let decided = status.and_then(|status| status.renewal.as_ref()).and_then(|renewal| {
        let (record, before) = (&records.get(&renewal.epoch)?.0, &records.get(&known?)?.0);
        let is_next = known.and_then(|epoch| epoch.checked_add(1)) == Some(renewal.epoch);
        let expected = before.renewed(&name, renewal);
        (is_next && expected.as_ref() == Some(record)).then_some(renewal.epoch)
    });
    let mut all = records.values();
    // Else whoever can make a ConfigMap could give a cluster that is applied again another key.
    if known.is_none()
        && let Some((first, _, name)) = all.next()
        && let Some((_, _, other)) = all.find(|(record, ..)| record.public_key != first.public_key)
    {
        let problem = format!(
            "ConfigMaps {name} and {other} are records of two keys: delete the one that is not the cluster's"
        );
        unreadable.get_or_insert(problem);
    }
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

/// Whether the record has the name that one of its epoch has. That of a key that came from elsewhere at a later epoch was
/// once called as the first.
fn is_called(cluster: &str, name: &str, record: &KeyRecord) -> bool {
    name == names::key(cluster, record.epoch) || name == names::key(cluster, 1)
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
    let since = match condition {
        Some(condition) => condition.last_transition_time.as_ref().filter(|_| !ready),
        // No node has it: nobody says whether it is ready.
        None => pod.metadata.creation_timestamp.as_ref(),
    };
    SignerPod {
        ready: ready && !leaving,
        unready_since: since.map(|time| time.0),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        waiting: waiting(pod),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::cluster::fixtures::{CLUSTER, OTHER, cluster, later, live as there, object, record};
    use crate::cluster::keygen::{self, Write};
    use crate::cluster::record::ShareSecrets;
    use crate::cluster::validate::validate;
    use crate::crd::{SignerStatus, TssClusterStatus};

    fn second() -> KeyRecord {
        later(2, &"22".repeat(32), 2, 3)
    }

    fn third() -> KeyRecord {
        later(3, &"33".repeat(32), 3, 5)
    }

    /// The ConfigMap of a record, made at this second, under its name or another one.
    fn map_of(record: &KeyRecord, second: i64, name: Option<&str>) -> Live {
        let mut map = record.to_config_map(&cluster()).unwrap();
        map.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
        if let Some(name) = name {
            map.metadata.name = Some(name.into());
        }
        Live { owned: false, ..there(&map) }
    }

    fn map(record: &KeyRecord) -> Live {
        map_of(record, 0, None)
    }

    fn unreadable(name: &str) -> Live {
        let map: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": name}, "data": {"key.json": "{}"}})).unwrap();
        there(&map)
    }

    /// The status of a cluster that has had this key in force, and is about to put this on record.
    fn knowing(record: Option<&KeyRecord>, decided: Option<&KeyRecord>) -> TssCluster {
        let mut object = object(CLUSTER);
        let status = object.status.get_or_insert_default();
        if let Some(record) = record {
            status.epoch = Some(record.epoch);
            status.public_key = Some(record.public_key.clone());
            status.commitment = Some(record.commitment.clone());
            status.addresses = Some(record.addresses.clone());
            status.threshold = Some(record.threshold().to_string());
            status.roster = Some(record.roster.clone());
            let signers = (1..).zip(&record.shares).map(|(index, secrets)| SignerStatus {
                index,
                ready: true,
                state: "Ready".into(),
                node: None,
                share: Some(secrets.share.clone()),
            });
            status.signers = signers.collect();
        }
        status.renewal = decided.map(|record| Renewal {
            epoch: record.epoch,
            threshold: record.threshold.into(),
            signers: record.signers.into(),
            roster: Some(record.roster.clone()),
            kept: true,
            tries: KeyGeneration { decided: Some(record.commitment.clone()), ..KeyGeneration::default() },
            ..Renewal::default()
        });
        object
    }

    fn in_force(object: &TssCluster, live: &[Live]) -> Result<i64, String> {
        records(object, live).in_force.expect("a record").map(|record| record.epoch)
    }

    #[test]
    fn the_record_of_the_epoch_that_the_status_knows_counts_and_none_that_is_planted() {
        let live = [map(&record()), map(&second()), map(&third())];
        for (epoch, known) in (1..).zip([record(), second(), third()]) {
            assert_eq!(in_force(&knowing(Some(&known), None), &live), Ok(epoch));
        }
        let planted = later(9, &"99".repeat(32), 2, 3);
        assert_eq!(in_force(&knowing(Some(&record()), None), &[map(&record()), map(&planted)]), Ok(1));
        // Nor one of the same epoch under another name, which could come first.
        let planted = later(2, &"99".repeat(32), 2, 3);
        for name in ["demo-key", "demo-key-e1", "demo-key-e9"] {
            for live in [
                [map_of(&planted, 0, Some(name)), map(&second())],
                [map(&second()), map_of(&planted, 0, Some(name))],
            ] {
                let records = records(&knowing(Some(&second()), None), &live);
                assert_eq!(records.in_force, Some(Ok(second())), "{name}");
            }
        }
    }

    #[test]
    fn a_record_that_somebody_has_replaced_is_refused() {
        let other = later(2, &"99".repeat(32), 2, 3);
        let known = knowing(Some(&second()), None);
        let problem = in_force(&known, &[map(&record()), map(&other)]).unwrap_err();
        assert!(problem.contains("or of other shares of epoch 2, than"), "{problem}");
        // Whatever its name, where it is not known.
        for live in [
            [map_of(&other, 0, Some("demo-key")), map(&second())],
            [map(&second()), map_of(&other, 0, Some("demo-key"))],
        ] {
            assert_eq!(records(&object(CLUSTER), &live).in_force, Some(Ok(second())));
        }
    }

    #[test]
    fn the_record_of_a_key_that_came_at_a_later_epoch_may_be_called_as_the_first() {
        let map = map_of(&second(), 0, Some("demo-key"));
        assert_eq!(in_force(&knowing(Some(&second()), None), std::slice::from_ref(&map)), Ok(2));
        assert_eq!(in_force(&object(CLUSTER), &[map]), Ok(2));
    }

    #[test]
    fn the_record_that_was_decided_counts_once_it_is_there_and_no_other_of_its_epoch() {
        let deciding = knowing(Some(&record()), Some(&second()));
        assert_eq!(in_force(&deciding, &[map(&record())]), Ok(1));
        assert_eq!(in_force(&deciding, &[map(&record()), map(&second())]), Ok(2));
        // The one before is written again first.
        assert!(records(&deciding, &[map(&second())]).in_force.is_none());
        // Not before all have kept their shares.
        let mut keeping = deciding.clone();
        keeping.status.as_mut().unwrap().renewal.as_mut().unwrap().kept = false;
        assert_eq!(in_force(&keeping, &[map(&record()), map(&second())]), Ok(1));
        // Nor one that says anything else, though it is of the shares that were decided.
        let commitment = &second().commitment;
        let mut changed =
            vec![later(2, &"99".repeat(32), 2, 3), later(2, commitment, 3, 3), later(2, commitment, 2, 4)];
        for (field, value) in [
            ("publicKey", json!(OTHER)),
            ("roster", json!("demo-roster-planted")),
            ("addresses", json!({"path": "0/1/2", "publicKey": OTHER, "ethereum": "0x0", "bitcoin": "bc1"})),
        ] {
            let mut other = serde_json::to_value(second()).unwrap();
            other[field] = value;
            changed.push(serde_json::from_value(other).unwrap());
        }
        for other in changed {
            assert_eq!(in_force(&deciding, &[map(&record()), map(&other)]), Ok(1), "{other:?}");
        }
        // Not one that does not follow.
        let deciding = knowing(Some(&record()), Some(&third()));
        assert_eq!(in_force(&deciding, &[map(&record()), map(&third())]), Ok(1));
        let deciding = knowing(None, Some(&second()));
        assert_eq!(in_force(&deciding, &[map(&record()), map(&second()), map(&third())]), Ok(3));
    }

    #[test]
    fn where_nothing_is_known_the_latest_record_counts_if_all_are_of_one_key() {
        let nothing = object(CLUSTER);
        assert!(records(&nothing, &[]).in_force.is_none());
        assert_eq!(in_force(&nothing, &[map(&second()), map(&record())]), Ok(2));
        // Begun, and not yet known: as after it was applied again.
        let mut begun = object(CLUSTER);
        begun.status = Some(TssClusterStatus::default());
        assert_eq!(in_force(&begun, &[map(&record()), map(&second())]), Ok(2));
        let mut planted = map(&third());
        let text = planted.body["data"]["key.json"].as_str().unwrap().replace(&record().public_key, OTHER);
        planted.body["data"]["key.json"] = text.into();
        let live = [map(&record()), map(&second()), planted];
        let problem = in_force(&nothing, &live).unwrap_err();
        assert!(problem.contains("ConfigMaps demo-key and demo-key-e3 are records of two keys"), "{problem}");
        // Who knows which epoch it is need not ask.
        assert_eq!(in_force(&knowing(Some(&second()), None), &live), Ok(2));
    }

    #[test]
    fn a_record_that_cannot_be_read_matters_when_it_may_be_the_one() {
        let live = [map(&record()), unreadable("demo-key-e2")];
        assert_eq!(in_force(&knowing(Some(&record()), None), &live), Ok(1));
        for object in [object(CLUSTER), knowing(Some(&second()), None)] {
            let problem = in_force(&object, &live).unwrap_err();
            assert!(problem.contains("ConfigMap demo-key-e2"), "{problem}");
        }
        // Names that only look alike are not asked.
        let live =
            [map(&record()), unreadable("demo-key-ex"), unreadable("demo-key-e"), unreadable("demo-keys")];
        assert_eq!(in_force(&object(CLUSTER), &live), Ok(1));
        // One of another epoch than it is called.
        let live = [map(&record()), map_of(&record(), 0, Some("demo-key-e2"))];
        let problem = in_force(&object(CLUSTER), &live).unwrap_err();
        assert!(problem.contains("demo-key-e2: it is the record of epoch 1"), "{problem}");
    }

    #[test]
    fn a_record_that_was_deleted_is_written_again_as_it_was_after_a_reshare_too() {
        for record in [record(), second(), third()] {
            let earlier = map(&later(1, &"00".repeat(32), 2, 3));
            let live = if record.epoch == 1 { Vec::new() } else { vec![earlier] };
            let observed = observe(knowing(Some(&record), None), live, &[]);
            let cluster = validate(&observed.object).unwrap();
            let step = keygen::next(&cluster, &observed, Timestamp::UNIX_EPOCH);
            assert_eq!(step.write, Some(Write::Record(Box::new(record))));
            assert!(step.frozen && step.jobs.is_empty());
        }
        assert_eq!(third().shares[4].share, "demo-signer-5-e3-3333333333");
    }

    #[test]
    fn the_record_before_stays_and_those_before_it_are_outdated() {
        let fourth = later(4, &"44".repeat(32), 3, 5);
        let live = [
            map_of(&record(), 1, None),
            map_of(&second(), 2, None),
            map_of(&third(), 3, None),
            map_of(&fourth, 4, None),
        ];
        let of = |known: &KeyRecord| records(&knowing(Some(known), None), &live);
        let first = of(&record());
        assert_eq!((first.previous, first.outdated.len()), (None, 0));
        let then = of(&second());
        assert_eq!((then.previous, then.outdated.len()), (Some(record()), 0));
        let now = of(&fourth);
        assert_eq!(now.made_at, Some(Timestamp::from_second(4).unwrap()));
        assert_eq!(
            (now.previous, now.outdated),
            (Some(third()), vec!["demo-key-e2".into(), "demo-key".into()])
        );
        // None is, while it is not known which one is in force.
        let unknown = records(&knowing(Some(&fourth), None), &live[..3]);
        assert_eq!((unknown.previous, unknown.outdated.len()), (None, 0));
    }

    #[test]
    fn a_pod_that_no_node_has_is_not_ready_since_it_was_made() {
        let pod = |status: serde_json::Value| -> Pod {
            let metadata = json!({"name": "demo-signer-4-0", "creationTimestamp": "2026-01-01T00:00:00Z"});
            serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
        };
        let unscheduled = json!({"conditions": [{"type": "PodScheduled", "status": "False"}]});
        let found = signer_pod(&pod(unscheduled));
        assert_eq!(
            (found.ready, found.unready_since),
            (false, Some("2026-01-01T00:00:00Z".parse().unwrap()))
        );
        let of = |status: &str| {
            let time = "2026-01-01T01:00:00Z";
            json!({"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": time}]})
        };
        let found = signer_pod(&pod(of("False")));
        assert_eq!(
            (found.ready, found.unready_since),
            (false, Some("2026-01-01T01:00:00Z".parse().unwrap()))
        );
        let found = signer_pod(&pod(of("True")));
        assert_eq!((found.ready, found.unready_since), (true, None));
    }

    #[test]
    fn shares_of_later_epochs_stand_beside_those_that_came_from_elsewhere() {
        let kept = ShareSecrets::renewed(&cluster(), 2, 3, "abcdef0123456789");
        let share = "demo-signer-2-e3-abcdef0123".to_owned();
        assert_eq!(kept, ShareSecrets { identity: "demo-signer-2-identity".into(), share });
    }
}
