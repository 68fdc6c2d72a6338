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
