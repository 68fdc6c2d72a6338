//! The Jobs in which signers make a key or its new shares: what each does, how far it is, what they report. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tss_common::identity::{PublicIdentity, Roster};
use tss_mpc::{SignerIndex, Threshold};

use super::dereference::Observed;
use super::validate::Cluster;
use crate::crd::{Addresses, KeyGeneration};

/// How long after a first failure it is tried again; twice as long after each further one.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(5);
/// The longest pause.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(300);
/// The longest text of a failure that is kept, in characters.
const MAX_FAILURE: usize = 1024;

/// What a Job does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Makes a signer's identity.
    Identity,
    /// Makes the key, together with the others' Jobs.
    Generate,
    /// Makes new shares, together with the others' Jobs.
    Renew {
        /// The epoch that ends.
        ends: i64,
        /// Who deals.
        dealers: Vec<u8>,
        /// The Secret with the share that this signer has, if it has one.
        held: Option<String>,
    },
    /// Keeps a share for good.
    Keep {
        /// The Secret that it was made in.
        made: String,
        /// The one that it is kept in.
        kept: String,
        /// The key that it has to be a share of.
        public_key: String,
    },
    /// Encrypts a share to those who keep backups.
    Backup {
        /// The Secret that it is in.
        share: String,
        /// Who opens the backup together: of each holder, its recipients with commas.
        holders: Vec<String>,
        /// The Secret that the backup goes to.
        kept: String,
    },
    /// Reads a share that is there already.
    Inspect {
        /// The Secret that it is in.
        share: String,
        /// Whether it is waited for. Else the Job fails where it is not there.
        awaited: bool,
    },
}

impl Task {
    /// Its name in those of Jobs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Generate => "generate",
            Self::Renew { .. } => "renew",
            Self::Keep { .. } => "keep",
            Self::Backup { .. } => "backup",
            Self::Inspect { .. } => "inspect",
        }
    }
}

/// A Job of one signer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobPlan {
    /// What it does.
    pub task: Task,
    /// For which signer.
    pub index: u8,
    /// In which try.
    pub attempt: String,
    /// How many of how many signers sign with the share that it makes or reads.
    pub threshold: Threshold,
    /// The ConfigMap with the roster of those signers.
    pub roster: String,
}

impl JobPlan {
    /// The Job's name, and that of the Secret that it makes with a share.
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

/// How far Jobs are that have to come to the same.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Together {
    /// They are not begun while this is so.
    Blocked(String),
    /// They are at it.
    Working,
    /// They have come to this, each for its signer.
    Done(ShareReport),
    /// The try is over.
    Failed(String),
}

/// What the Jobs of a try are looked at with.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) observed: &'a Observed,
    pub(super) tries: &'a KeyGeneration,
    /// What the try is called.
    pub(super) attempt: String,
    /// How many of how many signers will sign.
    pub(super) threshold: Threshold,
    /// The ConfigMap with their roster.
    pub(super) roster: String,
}

impl Stage<'_> {
    /// A Job for each of these signers.
    pub(super) fn plans(
        &self,
        signers: impl IntoIterator<Item = u8>,
        task: impl Fn(u8) -> Task,
    ) -> Vec<JobPlan> {
        let plan = |index| JobPlan {
            task: task(index),
            index,
            attempt: self.attempt.clone(),
            threshold: self.threshold,
            roster: self.roster.clone(),
        };
        signers.into_iter().map(plan).collect()
    }

    /// The indices of those who will sign.
    pub(super) fn signers(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.threshold.n()
    }

    pub(super) fn state(&self, plan: &JobPlan) -> Option<&JobState> {
        self.observed.jobs.get(&plan.name(&self.cluster.name))
    }

    /// The reports of all Jobs once all have succeeded.
    pub(super) fn reports<'b>(&'b self, plans: &'b [JobPlan]) -> Option<BTreeMap<u8, &'b str>> {
        plans
            .iter()
            .map(|plan| match self.state(plan) {
                Some(JobState::Succeeded(report)) => Some((plan.index, report.as_str())),
                _ => None,
            })
            .collect()
    }

    /// The first Job that has failed, and why.
    pub(super) fn failure(&self, plans: &[JobPlan]) -> Option<String> {
        plans.iter().find_map(|plan| match self.state(plan) {
            Some(JobState::Failed(why)) => {
                Some(format!("{} of signer {}: {why}", plan.task.as_str(), plan.index))
            }
            _ => None,
        })
    }

    /// What a person reads while Jobs run.
    pub(super) fn message(&self, plans: &[JobPlan], what: &str) -> String {
        let done =
            plans.iter().filter(|plan| matches!(self.state(plan), Some(JobState::Succeeded(_)))).count();
        let waiting = plans.iter().find_map(|plan| match self.state(plan) {
            Some(JobState::Waiting(what)) => Some(format!("; signer {}: {what}", plan.index)),
            _ => None,
        });
        format!(
            "{what}: {done} of {} signers are done (try {}){}",
            plans.len(),
            self.tries.attempt,
            waiting.unwrap_or_default()
        )
    }

    /// Jobs that make something with each other: none of them can be made again alone.
    pub(super) fn made(&self, plans: &[JobPlan]) -> Together {
        if let Some(why) = self.failure(plans) {
            return Together::Failed(why);
        }
        // A Pod of an earlier try would take the messages of this one's.
        let own = |job: &String| plans.iter().any(|plan| plan.name(&self.cluster.name) == *job);
        if let Some(job) = self.observed.running.iter().find(|job| !own(job))
            && plans.iter().all(|plan| self.state(plan).is_none())
        {
            return Together::Blocked(format!("the Pod of Job {job} is still there"));
        }
        // One that has finished cannot do it again with one that was started anew.
        let missing = plans.iter().find(|plan| self.state(plan).is_none());
        let finished = plans.iter().any(|plan| matches!(self.state(plan), Some(JobState::Succeeded(_))));
        if let (Some(missing), true) = (missing, finished) {
            let index = missing.index;
            return Together::Failed(format!("the Job of signer {index} is gone, and others have finished"));
        }
        self.agreed(plans)
    }

    /// Jobs that keep what others have made, which belongs to those.
    pub(super) fn kept(&self, made: &[JobPlan], plans: &[JobPlan]) -> Together {
        let lost = made.iter().zip(plans).find(|(made, plan)| {
            self.state(made).is_none() && !matches!(self.state(plan), Some(JobState::Succeeded(_)))
        });
        if let Some((made, _)) = lost {
            // Nobody uses these shares yet: their record is made only when all are kept.
            return Together::Failed(format!(
                "the share of signer {} is gone before it was kept",
                made.index
            ));
        }
        match self.failure(plans) {
            Some(why) => Together::Failed(why),
            None => self.agreed(plans),
        }
    }

    /// Jobs that report shares.
    pub(super) fn agreed(&self, plans: &[JobPlan]) -> Together {
        match self.reports(plans).map(|reports| agreed(self.threshold, &self.cluster.network, &reports)) {
            None => Together::Working,
            Some(Ok(report)) => Together::Done(report),
            Some(Err(why)) => Together::Failed(why),
        }
    }
}

/// What is known of the next try after one that was given up.
pub(super) fn after_failure(tries: &KeyGeneration, why: &str, now: Timestamp) -> KeyGeneration {
    let failures = tries.failures.saturating_add(1);
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(0).min(16);
    let pause = FIRST_PAUSE.checked_mul(1 << doublings).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
    KeyGeneration {
        attempt: tries.attempt.saturating_add(1),
        failures,
        last_failure: Some(why.chars().take(MAX_FAILURE).collect()),
        not_before: Some(Time(now.saturating_add(pause).unwrap_or(Timestamp::MAX))),
        decided: None,
    }
}

/// For how long the next try waits, and what a person reads meanwhile.
pub(super) fn pause(tries: &KeyGeneration, now: Timestamp) -> Option<(std::time::Duration, String)> {
    let time = tries.not_before.as_ref().filter(|time| now < time.0)?;
    let wait = std::time::Duration::try_from(time.0.duration_since(now)).unwrap_or_default();
    let reason = tries.last_failure.as_deref().unwrap_or_default();
    let failed = tries.attempt.saturating_sub(1);
    Some((wait, format!("try {failed} failed: {reason}. It is tried again at {:.0}", time.0)))
}

/// What a try for an epoch is called.
pub(super) fn attempt(cluster: &Cluster, epoch: i64, tries: &KeyGeneration) -> String {
    format!("{}-{epoch}-{}", object_name(cluster), tries.attempt)
}

/// The beginning of what the tries of a TssCluster are called, so that they are hardly ever called as those of one before
/// it of the same name.
pub(super) fn object_name(cluster: &Cluster) -> String {
    cluster.uid.chars().filter(char::is_ascii_alphanumeric).take(5).collect()
}

/// The roster of those who have reported their identities, as a file.
pub(super) fn roster(reports: &BTreeMap<u8, &str>) -> Result<String, String> {
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

/// What a Job reported of a signer's share.
pub(super) fn share(
    index: u8,
    threshold: Threshold,
    network: &str,
    report: &str,
) -> Result<ShareReport, String> {
    let report: ShareReport =
        serde_json::from_str(report).map_err(|error| format!("signer {index} reported no share: {error}"))?;
    let what = (report.index, report.threshold, report.signers, report.cluster.as_str());
    let expected = (index, threshold.t(), threshold.n(), network);
    if what != expected {
        return Err(format!(
            "the Job of signer {index} reported a share of signer {}, of a {}-of-{} key of the network {}: expected \
             {}-of-{} and {}",
            what.0, what.1, what.2, what.3, expected.1, expected.2, expected.3
        ));
    }
    Ok(report)
}

/// The report that all signers agree on.
fn agreed(threshold: Threshold, network: &str, reports: &BTreeMap<u8, &str>) -> Result<ShareReport, String> {
    let mut agreed: Option<ShareReport> = None;
    for (&index, text) in reports {
        let report = share(index, threshold, network, text)?;
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
