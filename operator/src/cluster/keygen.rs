//! How a cluster comes by its key: what is to be done next, from what is there. Pure.
//!
//! ```text
//! Identities ──▶ Generate ──▶ Keep ──▶ Done        keySource Generate
//!                Inspect ────────────▶ Done        keySource ExistingSecrets
//! ```
//!
//! One Job per signer at each stage. It is a two-phase commit. **Generate**: the signers make a key together, and each
//! stores its share in a Secret that belongs to its Job, and goes with it. Only when all have reported shares of one
//! key is the try **decided**, in the TssCluster's status, by a write that fails if anything has changed. **Keep**: each
//! share is copied to a Secret that belongs to nobody. When all are, the **record** is made, and the signers start. A
//! try that fails before it is decided leaves nothing behind; no key is made public before all its shares are kept.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tss_common::identity::{PublicIdentity, Roster};
use tss_mpc::SignerIndex;

use super::dereference::Observed;
use super::record::KeyRecord;
use super::validate::Cluster;
use crate::condition::Verdict;
use crate::crd::{Addresses, KeyGeneration, KeySourceKind};

/// How long after a first failure it is tried again; twice as long after each further one.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(5);
/// The longest pause.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(300);
/// The longest text of a failure that is kept, in characters.
const MAX_FAILURE: usize = 1024;

/// What a Job of key generation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Makes a signer's identity.
    Identity,
    /// Makes the key, together with the others' Jobs.
    Generate,
    /// Keeps a share for good.
    Keep,
    /// Reads a share that is there already.
    Inspect,
}

impl Task {
    /// Its name in those of Jobs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Generate => "generate",
            Self::Keep => "keep",
            Self::Inspect => "inspect",
        }
    }
}

/// A Job of one signer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobPlan {
    /// What it does.
    pub task: Task,
    /// For which signer.
    pub index: u8,
    /// In which try.
    pub attempt: String,
    /// The public key that is kept; for [`Task::Keep`].
    pub public_key: Option<String>,
}

impl JobPlan {
    /// The Job's name, and that of the Secret it makes in [`Task::Generate`].
    pub fn name(&self, cluster: &str) -> String {
        format!("{cluster}-{}-{}-{}", self.task.as_str(), self.index, self.attempt)
    }
}

/// How a Job is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It has not ended.
    Running,
    /// It has not ended, and its Pod cannot start, or says what it waits for.
    Waiting(String),
    /// It has ended well, with this report.
    Succeeded(String),
    /// It has ended badly.
    Failed(String),
}

/// What a Job reports of a signer's identity.
#[derive(Clone, Debug, Deserialize)]
struct IdentityReport {
    index: SignerIndex,
    #[serde(flatten)]
    identity: PublicIdentity,
}

/// What a Job reports of a signer's share.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ShareReport {
    /// The signer.
    pub index: u8,
    /// How many signers sign.
    pub threshold: u8,
    /// How many there are.
    pub signers: u8,
    /// The network that the key is for.
    pub cluster: String,
    /// The key's epoch.
    pub epoch: i64,
    /// The root public key, in hex.
    pub public_key: String,
    /// What all shares of the key have in common, hashed, in hex.
    pub commitment: String,
    path: String,
    derived_public_key: String,
    ethereum_address: String,
    bitcoin_address: String,
}

impl ShareReport {
    /// The key at the cluster's derivation path.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            path: self.path.clone(),
            public_key: self.derived_public_key.clone(),
            ethereum: self.ethereum_address.clone(),
            bitcoin: self.bitcoin_address.clone(),
        }
    }
}

/// What has to be written before anything else is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// The roster, for good.
    Roster(String),
    /// The key's record, for good.
    Record(Box<KeyRecord>),
    /// How far key generation is.
    Progress(KeyGeneration),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What is written first; then it is asked again what is to be done.
    pub write: Option<Write>,
    /// The Jobs that there should be. All others go.
    pub jobs: Vec<JobPlan>,
    /// The key, once there is one.
    pub key: Option<KeyRecord>,
    /// The condition `KeyGenerated`.
    pub verdict: Verdict,
    /// When to look again, if nothing happens before.
    pub wait: Option<Duration>,
    /// Whether everything stays as it is: what the cluster runs may be all there is of its key.
    pub frozen: bool,
}

impl Step {
    fn working(jobs: Vec<JobPlan>, reason: &'static str, message: String) -> Self {
        Self {
            write: None,
            jobs,
            key: None,
            verdict: Verdict::no(reason, message),
            wait: None,
            frozen: false,
        }
    }

    fn frozen(reason: &'static str, message: String) -> Self {
        Self { frozen: true, ..Self::working(Vec::new(), reason, message) }
    }

    fn writing(self, write: Write) -> Self {
        Self { write: Some(write), ..self }
    }
}

/// What is to be done next for the cluster's key.
pub fn next(cluster: &Cluster, observed: &Observed, now: Timestamp) -> Step {
    match &observed.record {
        Some(Ok(record)) => return with_key(cluster, observed, record),
        Some(Err(problem)) => return Step::frozen("RecordUnreadable", problem.clone()),
        None => {}
    }
    if let Some(record) =
        observed.object.status.as_ref().and_then(|status| KeyRecord::of_status(cluster, status))
    {
        // Somebody deleted it. Without it another key would be made.
        let step = Step::frozen("RestoringRecord", "the key's record is written again".into());
        return step.writing(Write::Record(Box::new(record)));
    }
    let progress = observed.progress();
    if let Some(time) = &progress.not_before
        && now < time.0
    {
        let wait = Duration::try_from(time.0.duration_since(now)).unwrap_or_default();
        let reason = progress.last_failure.as_deref().unwrap_or_default();
        let message = format!(
            "try {} failed: {reason}. It is tried again at {:.0}",
            progress.attempt.saturating_sub(1),
            time.0
        );
        let step = Step::working(Vec::new(), "KeyGenerationFailed", message);
        return Step { wait: Some(wait), ..step };
    }
    let attempt = attempt_name(cluster, progress.attempt);
    let stage = Stage { cluster, observed, progress: &progress, attempt: &attempt, now };
    match cluster.spec.key_source.kind {
        KeySourceKind::ExistingSecrets => stage.inspect(),
        KeySourceKind::Generate if !observed.has_roster => stage.identities(),
        KeySourceKind::Generate => match &progress.decided {
            None => stage.generate(),
            Some(public_key) => stage.keep(public_key),
        },
    }
}

/// What a try is called: no two tries of any TssCluster of this name are called the same.
pub fn attempt_name(cluster: &Cluster, attempt: i32) -> String {
    let uid: String = cluster.uid.chars().filter(char::is_ascii_alphanumeric).take(5).collect();
    format!("{uid}-{attempt}")
}

fn with_key(cluster: &Cluster, observed: &Observed, record: &KeyRecord) -> Step {
    if let Err(problem) = record.check(cluster) {
        return Step::frozen("KeyMismatch", problem);
    }
    let message = format!("all {} signers keep their shares", cluster.threshold.n());
    let done = Step {
        write: None,
        jobs: Vec::new(),
        key: Some(record.clone()),
        verdict: Verdict::yes("KeyGenerated", message),
        wait: None,
        frozen: false,
    };
    if cluster.spec.key_source.kind != KeySourceKind::Generate || observed.has_roster {
        return done;
    }
    // Somebody deleted the roster. The identities are where they were, and tell it again.
    let attempt = attempt_name(cluster, 0);
    let stage = Stage {
        cluster,
        observed,
        progress: &KeyGeneration::default(),
        attempt: &attempt,
        now: Timestamp::MIN,
    };
    let Step { write, jobs, .. } = stage.identities();
    let write = write.filter(|write| matches!(write, Write::Roster(_)));
    Step { write, jobs, ..done }
}

struct Stage<'a> {
    cluster: &'a Cluster,
    observed: &'a Observed,
    progress: &'a KeyGeneration,
    attempt: &'a str,
    now: Timestamp,
}

impl Stage<'_> {
    fn plans(&self, task: Task) -> Vec<JobPlan> {
        let plan = |index| JobPlan {
            task,
            index,
            attempt: self.attempt.to_owned(),
            public_key: self.progress.decided.clone().filter(|_| task == Task::Keep),
        };
        self.cluster.indices().map(plan).collect()
    }

    fn state(&self, plan: &JobPlan) -> Option<&JobState> {
        self.observed.jobs.get(&plan.name(&self.cluster.name))
    }

    /// The reports of all Jobs once all have succeeded.
    fn reports<'b>(&'b self, plans: &'b [JobPlan]) -> Option<BTreeMap<u8, &'b str>> {
        plans
            .iter()
            .map(|plan| match self.state(plan) {
                Some(JobState::Succeeded(report)) => Some((plan.index, report.as_str())),
                _ => None,
            })
            .collect()
    }

    /// The first Job that has failed, and why.
    fn failure(&self, plans: &[JobPlan]) -> Option<String> {
        plans.iter().find_map(|plan| match self.state(plan) {
            Some(JobState::Failed(why)) => {
                Some(format!("{} of signer {}: {why}", plan.task.as_str(), plan.index))
            }
            _ => None,
        })
    }

    /// What a person reads while Jobs run.
    fn working(&self, plans: Vec<JobPlan>, reason: &'static str, what: &str) -> Step {
        let done =
            plans.iter().filter(|plan| matches!(self.state(plan), Some(JobState::Succeeded(_)))).count();
        let waiting = plans.iter().find_map(|plan| match self.state(plan) {
            Some(JobState::Waiting(what)) => Some(format!("; signer {}: {what}", plan.index)),
            _ => None,
        });
        let message = format!(
            "{what}: {done} of {} signers are done (try {}){}",
            plans.len(),
            self.progress.attempt,
            waiting.unwrap_or_default()
        );
        Step::working(plans, reason, message)
    }

    /// The try is given up: its Jobs go, and what they stored with them.
    fn fail(&self, why: String) -> Step {
        let failures = self.progress.failures.saturating_add(1);
        let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(0).min(16);
        let pause = FIRST_PAUSE.checked_mul(1 << doublings).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
        let why: String = why.chars().take(MAX_FAILURE).collect();
        let next = KeyGeneration {
            attempt: self.progress.attempt.saturating_add(1),
            failures,
            last_failure: Some(why.clone()),
            not_before: Some(Time(self.now.saturating_add(pause).unwrap_or(Timestamp::MAX))),
            decided: None,
        };
        Step::working(Vec::new(), "KeyGenerationFailed", why).writing(Write::Progress(next))
    }

    fn identities(&self) -> Step {
        let plans = self.plans(Task::Identity);
        if let Some(why) = self.failure(&plans) {
            return self.fail(why);
        }
        match self.reports(&plans).map(|reports| roster(&reports)) {
            Some(Ok(roster)) => {
                self.working(plans, "MakingIdentities", "identities are made").writing(Write::Roster(roster))
            }
            Some(Err(why)) => self.fail(why),
            None => self.working(plans, "MakingIdentities", "each signer makes its identity"),
        }
    }

    fn generate(&self) -> Step {
        let plans = self.plans(Task::Generate);
        if let Some(why) = self.failure(&plans) {
            return self.fail(why);
        }
        // A Pod of an earlier try would take the messages of this one's.
        let own = |job: &String| plans.iter().any(|plan| plan.name(&self.cluster.name) == *job);
        if let Some(job) = self.observed.running.iter().find(|job| !own(job))
            && plans.iter().all(|plan| self.state(plan).is_none())
        {
            let message = format!("the Pod of Job {job} is still there");
            return Step {
                wait: Some(Duration::from_secs(2)),
                ..Step::working(Vec::new(), "WaitingForPods", message)
            };
        }
        // One that has finished cannot make the key again with one that was started anew.
        let missing = plans.iter().find(|plan| self.state(plan).is_none());
        let finished = plans.iter().any(|plan| matches!(self.state(plan), Some(JobState::Succeeded(_))));
        if let (Some(missing), true) = (missing, finished) {
            return self
                .fail(format!("the Job of signer {} is gone, and others have finished", missing.index));
        }
        match self.reports(&plans).map(|reports| agreed(self.cluster, &reports)) {
            Some(Ok(report)) => {
                let decided = KeyGeneration { decided: Some(report.public_key), ..self.progress.clone() };
                self.working(plans, "GeneratingKey", "all signers agree").writing(Write::Progress(decided))
            }
            Some(Err(why)) => self.fail(why),
            None => self.working(plans, "GeneratingKey", "the signers make the key together"),
        }
    }

    fn keep(&self, public_key: &str) -> Step {
        // What is kept belongs to the Jobs that made it.
        let sources = self.plans(Task::Generate);
        let plans = self.plans(Task::Keep);
        let lost = sources.iter().zip(&plans).find(|(source, plan)| {
            self.state(source).is_none() && !matches!(self.state(plan), Some(JobState::Succeeded(_)))
        });
        if let Some((source, _)) = lost {
            // Nobody knows this key yet: its record is made only when all its shares are kept.
            return self.fail(format!("the share of signer {} is gone before it was kept", source.index));
        }
        if let Some(why) = self.failure(&plans) {
            return self.fail(why);
        }
        let everything = || [sources.clone(), plans.clone()].concat();
        let agreed = self.reports(&plans).map(|reports| {
            let report = agreed(self.cluster, &reports)?;
            if report.public_key == public_key {
                return Ok(report);
            }
            Err(format!("the shares that were kept are of key {}, not of {public_key}", report.public_key))
        });
        let step = self.working(plans.clone(), "KeepingShares", "each signer's share is stored for good");
        match agreed {
            Some(Ok(report)) => {
                let record = Box::new(KeyRecord::new(self.cluster, &report));
                Step { jobs: everything(), ..step }.writing(Write::Record(record))
            }
            Some(Err(why)) => self.fail(why),
            None => Step { jobs: everything(), ..step },
        }
    }

    fn inspect(&self) -> Step {
        let plans = self.plans(Task::Inspect);
        if let Some(why) = self.failure(&plans) {
            return self.fail(why);
        }
        match self.reports(&plans).map(|reports| agreed(self.cluster, &reports)) {
            Some(Ok(report)) => {
                let record = Box::new(KeyRecord::new(self.cluster, &report));
                self.working(plans, "InspectingShares", "the shares are of one key")
                    .writing(Write::Record(record))
            }
            Some(Err(why)) => self.fail(why),
            None => self.working(plans, "InspectingShares", "each signer's share and identity are read"),
        }
    }
}

fn roster(reports: &BTreeMap<u8, &str>) -> Result<String, String> {
    let mut identities = BTreeMap::new();
    for (&index, text) in reports {
        let report: IdentityReport = serde_json::from_str(text)
            .map_err(|error| format!("signer {index} reported no identity: {error}"))?;
        if report.index.get() != index {
            return Err(format!(
                "the Job of signer {index} reported the identity of signer {}",
                report.index
            ));
        }
        identities.insert(report.index, report.identity);
    }
    Roster::new(identities)?.to_toml()
}

/// The report that all signers agree on.
fn agreed(cluster: &Cluster, reports: &BTreeMap<u8, &str>) -> Result<ShareReport, String> {
    let mut agreed: Option<ShareReport> = None;
    for (&index, text) in reports {
        let report: ShareReport = serde_json::from_str(text)
            .map_err(|error| format!("signer {index} reported no share: {error}"))?;
        let what = (report.index, report.threshold, report.signers, report.cluster.as_str());
        let expected = (index, cluster.threshold.t(), cluster.threshold.n(), cluster.network.as_str());
        if what != expected {
            return Err(format!(
                "the Job of signer {index} reported a share of signer {}, of a {}-of-{} key of the network {}: expected \
                 {}-of-{} and {}",
                what.0, what.1, what.2, what.3, expected.1, expected.2, expected.3
            ));
        }
        match &agreed {
            None => agreed = Some(report),
            Some(first) if *first == (ShareReport { index: first.index, ..report.clone() }) => {}
            Some(first) => {
                return Err(format!(
                    "signers {} and {index} hold shares of different keys: {} at epoch {} and {} at epoch {}",
                    first.index, first.public_key, first.epoch, report.public_key, report.epoch
                ));
            }
        }
    }
    agreed.ok_or_else(|| "there are no reports".into())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};
    use serde_json::{Value, json};
    use tss_common::identity::Identity;

    use super::*;
    use crate::cluster::dereference::{Live, observe};
    use crate::cluster::fixtures::{CLUSTER, cluster, live, object};
    use crate::crd::{TssCluster, TssClusterStatus};

    const KEY: &str = "0227a67181ec034fe8a9a7831e7c2d7d412b81fb87e3d7971ad68f9c754f8c13e6";
    const OTHER: &str = "03c9e1b3d0a64a1d2f7a6d58d4b5cf9d31ac5fe4dbb6b0d5c5cbb2b6a3a3e5a1f0";

    /// A network of which the test says what is there.
    struct There {
        object: TssCluster,
        live: Vec<Live>,
        pods: Vec<Pod>,
    }

    impl There {
        fn new() -> Self {
            Self { object: object(CLUSTER), live: Vec::new(), pods: Vec::new() }
        }

        fn next(&self) -> Step {
            self.at(Timestamp::UNIX_EPOCH)
        }

        fn at(&self, now: Timestamp) -> Step {
            let observed = observe(self.object.clone(), self.live.clone(), &self.pods);
            next(&cluster(), &observed, now)
        }

        fn with_progress(mut self, progress: KeyGeneration) -> Self {
            self.object.status =
                Some(TssClusterStatus { key_generation: Some(progress), ..TssClusterStatus::default() });
            self
        }

        fn with_map(mut self, map: &ConfigMap) -> Self {
            self.live.push(Live { owned: false, ..live(map) });
            self
        }

        fn with_roster(self) -> Self {
            let map =
                crate::cluster::record::kept(&cluster(), "demo-roster".into(), "roster.toml", "x".into());
            self.with_map(&map)
        }

        /// A Job that ended well and its Pod's report, or badly and its last words, or runs.
        fn with_job(mut self, plan: &JobPlan, ended: Option<Result<Value, &str>>) -> Self {
            let name = plan.name("demo");
            let uid = format!("uid-of-{name}");
            let condition = match &ended {
                None => json!([]),
                Some(Ok(_)) => json!([{"type": "Complete", "status": "True"}]),
                Some(Err(_)) => {
                    json!([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}])
                }
            };
            let job: Job = serde_json::from_value(
                json!({"metadata": {"name": name, "uid": uid}, "status": {"conditions": condition}}),
            )
            .unwrap();
            let terminated = match &ended {
                None => json!({}),
                Some(Ok(report)) => json!({"terminated": {"exitCode": 0, "message": report.to_string()}}),
                Some(Err(said)) => json!({"terminated": {"exitCode": 1, "message": said}}),
            };
            let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}]);
            self.pods.push(
                serde_json::from_value(json!({
                    "metadata": {"name": format!("{name}-x"), "ownerReferences": owner},
                    "spec": {"containers": [{"name": "store"}]},
                    "status": {"containerStatuses": [{"name": "store", "state": terminated, "ready": false,
                        "restartCount": 0, "image": "", "imageID": ""}]},
                }))
                .unwrap(),
            );
            self.live.push(live(&job));
            self
        }

        fn with_jobs(self, task: Task, report: impl Fn(u8) -> Value) -> Self {
            plans(task).iter().fold(self, |there, plan| there.with_job(plan, Some(Ok(report(plan.index)))))
        }
    }

    fn plans(task: Task) -> Vec<JobPlan> {
        plans_of(task, 1)
    }

    fn plans_of(task: Task, attempt: i32) -> Vec<JobPlan> {
        let public_key = (task == Task::Keep).then(|| KEY.to_owned());
        let attempt = format!("6f1b5-{attempt}");
        (1..=3)
            .map(|index| JobPlan { task, index, attempt: attempt.clone(), public_key: public_key.clone() })
            .collect()
    }

    fn share(index: u8, key: &str) -> Value {
        json!({"index": index, "threshold": 2, "signers": 3, "cluster": "wallets-demo", "key": "default", "epoch": 1,
            "public_key": key, "commitment": "00".repeat(32), "path": "0/1/2", "derived_public_key": KEY,
            "ethereum_address": "0xe5EebeB057a589fc161DDB718ed51ab8B4F20050", "bitcoin_address": "bc1q"})
    }

    fn identity(index: u8) -> Value {
        let public = Identity::generate().public();
        json!({"index": index, "verifying_key": public.verifying_key.to_string(), "sealing_key": public.sealing_key.to_string()})
    }

    fn decided() -> KeyGeneration {
        KeyGeneration { attempt: 1, decided: Some(KEY.into()), ..KeyGeneration::default() }
    }

    fn failure(step: &Step) -> (i32, String) {
        match &step.write {
            Some(Write::Progress(KeyGeneration {
                attempt, last_failure: Some(why), decided: None, ..
            })) => {
                assert!(step.jobs.is_empty(), "the Jobs of a try that failed go");
                (*attempt, why.clone())
            }
            other => panic!("expected a failure, got {other:?}"),
        }
    }

    #[test]
    fn first_every_signer_makes_its_identity_and_all_make_the_roster() {
        let step = There::new().next();
        assert_eq!((step.jobs, step.write), (plans(Task::Identity), None));
        let two = plans(Task::Identity)[..2]
            .iter()
            .fold(There::new(), |there, plan| there.with_job(plan, Some(Ok(identity(plan.index)))));
        let step = two.next();
        assert_eq!(step.write, None);
        assert!(step.verdict.message.contains("2 of 3"), "{}", step.verdict.message);
        let Some(Write::Roster(roster)) = There::new().with_jobs(Task::Identity, identity).next().write
        else {
            panic!("expected a roster")
        };
        Roster::from_toml(&roster, 3).unwrap();
    }

    #[test]
    fn an_identity_that_another_signer_has_is_refused() {
        let same = identity(1);
        let there = There::new().with_jobs(Task::Identity, |index| {
            let mut report = same.clone();
            report["index"] = json!(index);
            report
        });
        assert!(failure(&there.next()).1.contains("have a key in common"));
        let there = There::new().with_jobs(Task::Identity, |_| identity(1));
        assert!(failure(&there.next()).1.contains("the Job of signer 2 reported the identity of signer 1"));
    }

    #[test]
    fn a_key_that_all_agree_on_is_decided_before_any_share_is_kept() {
        let step = There::new().with_roster().next();
        assert_eq!((step.jobs, step.write), (plans(Task::Generate), None));
        let step = There::new().with_roster().with_jobs(Task::Generate, |index| share(index, KEY)).next();
        assert_eq!(step.write, Some(Write::Progress(decided())));
    }

    #[test]
    fn a_share_of_another_key_network_or_signer_ends_the_try() {
        for (field, value, part) in [
            ("public_key", json!(OTHER), "signers 1 and 2 hold shares of different keys"),
            ("commitment", json!("ff"), "different keys"),
            ("epoch", json!(2), "at epoch 2"),
            ("cluster", json!("other"), "of the network other"),
            ("threshold", json!(3), "3-of-3 key"),
            ("index", json!(1), "the Job of signer 2 reported a share of signer 1"),
        ] {
            let there = There::new().with_roster().with_jobs(Task::Generate, |index| {
                let mut report = share(index, KEY);
                if index == 2 {
                    report[field] = value.clone();
                }
                report
            });
            let (attempt, why) = failure(&there.next());
            assert_eq!(attempt, 2);
            assert!(why.contains(part), "`{part}` is missing in: {why}");
        }
    }

    #[test]
    fn one_signer_that_fails_ends_the_try_for_all_and_the_next_waits() {
        let mut there = There::new().with_roster();
        for plan in plans(Task::Generate) {
            let ended = if plan.index == 2 {
                Err("log line\nerror: no answer from signer 3\n")
            } else {
                Ok(share(plan.index, KEY))
            };
            there = there.with_job(&plan, Some(ended));
        }
        let step = there.next();
        assert_eq!(failure(&step).1, "generate of signer 2: error: no answer from signer 3");
        let Some(Write::Progress(progress)) = step.write else { unreachable!() };
        let there = There::new().with_roster().with_progress(progress);
        let step = there.next();
        assert_eq!((step.jobs.len(), step.wait), (0, Some(Duration::from_secs(5))));
        assert!(step.verdict.message.contains("no answer from signer 3"), "{}", step.verdict.message);
        let later = there.at(Timestamp::from_second(5).unwrap());
        assert_eq!(later.jobs, plans_of(Task::Generate, 2));
    }

    #[test]
    fn a_try_begins_when_the_pods_of_the_one_before_are_gone() {
        let pod = |phase| -> Pod {
            let labels = json!({"batch.kubernetes.io/job-name": "demo-generate-2-6f1b5-1"});
            serde_json::from_value(json!({"metadata": {"labels": labels}, "status": {"phase": phase}}))
                .unwrap()
        };
        let progress = KeyGeneration { attempt: 2, failures: 1, ..KeyGeneration::default() };
        let mut there = There::new().with_roster().with_progress(progress);
        there.pods = vec![pod("Running")];
        let step = there.next();
        assert_eq!((step.jobs.len(), step.verdict.reason), (0, "WaitingForPods"));
        assert!(step.wait.is_some());
        there.pods = vec![pod("Failed")];
        assert_eq!(there.next().jobs, plans_of(Task::Generate, 2));
    }

    #[test]
    fn pauses_between_tries_grow_to_a_bound() {
        let pause = |failures| {
            let progress = KeyGeneration { attempt: failures + 1, failures, ..KeyGeneration::default() };
            let there = There::new().with_roster().with_progress(progress);
            let there = there.with_job(&plans_of(Task::Generate, failures + 1)[0], Some(Err("x")));
            let Some(Write::Progress(KeyGeneration { not_before: Some(time), .. })) = there.next().write
            else {
                panic!("expected a failure")
            };
            time.0.as_second()
        };
        assert_eq!([0, 1, 2, 10, 1000].map(pause), [5, 10, 20, 300, 300]);
    }

    #[test]
    fn a_job_that_vanished_is_made_again_only_when_no_other_has_finished() {
        let there = |ended: fn(u8) -> Option<Result<Value, &'static str>>| {
            plans(Task::Generate)[..2]
                .iter()
                .fold(There::new().with_roster(), |there, plan| there.with_job(plan, ended(plan.index)))
        };
        let step = there(|_| None).next();
        assert_eq!((step.jobs, step.write), (plans(Task::Generate), None));
        let step = there(|index| Some(Ok(share(index, KEY)))).next();
        assert!(failure(&step).1.contains("the Job of signer 3 is gone"));
    }

    #[test]
    fn shares_are_kept_while_what_made_them_is_there_and_then_the_key_is_on_record() {
        let made = || {
            There::new()
                .with_roster()
                .with_jobs(Task::Generate, |index| share(index, KEY))
                .with_progress(decided())
        };
        let step = made().next();
        assert_eq!(step.jobs, [plans(Task::Generate), plans(Task::Keep)].concat());
        assert_eq!(step.write, None);
        let kept = made().with_jobs(Task::Keep, |index| share(index, KEY));
        let Some(Write::Record(record)) = kept.next().write else { panic!("expected a record") };
        assert_eq!((record.public_key.as_str(), record.epoch), (KEY, 1));
        assert_eq!(record.shares[2].share, "demo-signer-3-e1-27a67181ec");
        assert_eq!(record.shares[2].identity, "demo-signer-3-identity");
        // What was kept must be what was decided.
        let other = made().with_jobs(Task::Keep, |index| share(index, OTHER));
        assert!(failure(&other.next()).1.contains(OTHER));
    }

    #[test]
    fn a_decided_key_whose_share_is_lost_before_it_is_kept_is_given_up() {
        let mut there = There::new().with_roster().with_progress(decided());
        for plan in &plans(Task::Generate)[1..] {
            there = there.with_job(plan, Some(Ok(share(plan.index, KEY))));
        }
        let (attempt, why) = failure(&there.next());
        assert_eq!(attempt, 2);
        assert!(why.contains("the share of signer 1 is gone"), "{why}");
        // Not when it has been kept: then nothing is lost.
        let there = there.with_job(&plans(Task::Keep)[0], Some(Ok(share(1, KEY))));
        assert_eq!(there.next().write, None);
    }

    fn record() -> KeyRecord {
        let report: ShareReport = serde_json::from_value(share(1, KEY)).unwrap();
        KeyRecord::new(&cluster(), &report)
    }

    #[test]
    fn a_key_on_record_is_used_and_no_job_is_made() {
        let map = record().to_config_map(&cluster()).unwrap();
        let step = There::new().with_roster().with_map(&map).next();
        assert_eq!((step.key, step.jobs, step.write), (Some(record()), Vec::new(), None));
        assert_eq!(step.verdict.holds, Some(true));
    }

    #[test]
    fn a_record_that_was_deleted_is_written_again_and_never_another_key_made() {
        let mut there = There::new().with_roster();
        let record = record();
        there.object.status = Some(TssClusterStatus {
            public_key: Some(record.public_key.clone()),
            commitment: Some(record.commitment.clone()),
            addresses: Some(record.addresses.clone()),
            epoch: Some(1),
            ..TssClusterStatus::default()
        });
        let step = there.next();
        assert_eq!(step.write, Some(Write::Record(Box::new(record))));
        assert!(step.frozen && step.jobs.is_empty());
    }

    #[test]
    fn a_roster_that_was_deleted_is_told_again_by_the_identities_while_the_signers_run() {
        let map = record().to_config_map(&cluster()).unwrap();
        let there = There::new().with_map(&map);
        let step = there.next();
        assert_eq!(step.key, Some(record()));
        assert_eq!(step.jobs.iter().map(|plan| plan.task).collect::<Vec<_>>(), [Task::Identity; 3]);
        assert_eq!(step.write, None);
    }

    #[test]
    fn nothing_is_touched_when_the_record_is_of_another_key_or_cannot_be_read() {
        for (field, value, part) in [
            ("threshold", json!(3), "threshold 3; the TssCluster has 2"),
            ("networkName", json!("x"), "networkName x"),
            ("version", json!(2), "version 2, expected 1"),
            ("shares", json!([]), "0 shares of 3 signers"),
            ("surplus", json!(1), "surplus"),
        ] {
            let mut map = record().to_config_map(&cluster()).unwrap();
            let text = map.data.as_mut().unwrap().get_mut("key.json").unwrap();
            let mut json: Value = serde_json::from_str(text).unwrap();
            json[field] = value;
            *text = json.to_string();
            let step = There::new().with_roster().with_map(&map).next();
            assert!(step.frozen && step.write.is_none() && step.key.is_none(), "{field}");
            assert!(step.verdict.message.contains(part), "`{part}` is missing in: {}", step.verdict.message);
        }
    }
}
