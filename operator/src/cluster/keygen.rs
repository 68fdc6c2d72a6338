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
//!
//! From then on the key gets new shares as [`renewal`] says.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::backups;
use super::dereference::Observed;
use super::jobs::{self, JobPlan, Stage, Task, Together};
use super::record::{KeyRecord, ShareSecrets, roster_name};
use super::renewal;
use super::validate::Cluster;
use crate::condition::Verdict;
use crate::crd::{Backups, KeyGeneration, KeySourceKind, Renewal};

/// How long it is waited for Pods that are on their way out.
pub(super) const LEAVING: Duration = Duration::from_secs(2);

/// What has to be written before anything else is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A roster, under this name, for good.
    Roster(String, String),
    /// The key's record, for good.
    Record(Box<KeyRecord>),
    /// How far key generation is.
    Progress(KeyGeneration),
    /// How far new shares are.
    Renewal(Box<Renewal>),
    /// How far backups are.
    Backups(Box<Backups>),
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
    /// The condition `SharesCurrent`, once there is a key.
    pub shares: Option<Verdict>,
    /// How far new shares are, while they are made.
    pub renewal: Option<Renewal>,
    /// The condition `BackedUp`, if backups are asked for and it is known.
    pub backups: Option<Verdict>,
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
            shares: None,
            renewal: None,
            backups: None,
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
        Some(Ok(record)) => return with_key(cluster, observed, record, now),
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
    if let Some((wait, message)) = jobs::pause(&progress, now) {
        let step = Step::working(Vec::new(), "KeyGenerationFailed", message);
        return Step { wait: Some(wait), ..step };
    }
    let source = cluster.spec.key_source.kind;
    let has_roster = observed.find("ConfigMap", &roster_name(cluster)).is_some();
    let try_of = Try { stage: stage(cluster, observed, &progress), now };
    match source {
        KeySourceKind::ExistingSecrets => try_of.inspect(),
        KeySourceKind::Generate if !has_roster => try_of.identities(),
        KeySourceKind::Generate => match &progress.decided {
            None => try_of.generate(),
            Some(public_key) => try_of.keep(public_key),
        },
    }
}

fn stage<'a>(cluster: &'a Cluster, observed: &'a Observed, tries: &'a KeyGeneration) -> Stage<'a> {
    Stage {
        cluster,
        observed,
        tries,
        attempt: format!("{}-{}", jobs::object_name(cluster), tries.attempt),
        threshold: cluster.threshold,
        roster: roster_name(cluster),
    }
}

fn with_key(cluster: &Cluster, observed: &Observed, record: &KeyRecord, now: Timestamp) -> Step {
    if let Err(problem) = record.check(cluster) {
        return Step::frozen("KeyMismatch", problem);
    }
    let message = format!("all {} signers keep their shares", record.signers);
    let done = Step {
        write: None,
        jobs: Vec::new(),
        key: Some(record.clone()),
        verdict: Verdict::yes("KeyGenerated", message),
        shares: None,
        renewal: None,
        backups: None,
        wait: None,
        frozen: false,
    };
    if cluster.spec.key_source.kind == KeySourceKind::Generate
        && observed.find("ConfigMap", &record.roster).is_none()
    {
        // Somebody deleted the roster. The identities are where they were, and tell it again.
        let tries = KeyGeneration::default();
        let stage = Stage {
            threshold: record.threshold(),
            roster: record.roster.clone(),
            ..stage(cluster, observed, &tries)
        };
        let Step { write, jobs, .. } = Try { stage, now: Timestamp::MIN }.identities();
        let write = write.filter(|write| matches!(write, Write::Roster(..)));
        return Step { write, jobs, ..done };
    }
    let step = renewal::next(cluster, observed, record, now, done);
    // Not while Jobs make new shares, or keep them.
    let decided = step.renewal.as_ref().is_some_and(|renewal| renewal.tries.decided.is_some());
    let at_rest = step.write.is_none() && step.jobs.is_empty() && !decided;
    if at_rest { backups::next(cluster, observed, record, now, step) } else { step }
}

/// A try to make the key.
struct Try<'a> {
    stage: Stage<'a>,
    now: Timestamp,
}

impl Try<'_> {
    /// The try is given up: its Jobs go, and what they stored with them.
    fn fail(&self, why: &str) -> Step {
        let next = jobs::after_failure(self.stage.tries, why, self.now);
        let why = next.last_failure.clone().unwrap_or_default();
        Step::working(Vec::new(), "KeyGenerationFailed", why).writing(Write::Progress(next))
    }

    fn working(&self, plans: Vec<JobPlan>, reason: &'static str, what: &str) -> Step {
        let message = self.stage.message(&plans, what);
        Step::working(plans, reason, message)
    }

    fn identities(&self) -> Step {
        let plans = self.stage.plans(self.stage.signers(), |_| Task::Identity);
        if let Some(why) = self.stage.failure(&plans) {
            return self.fail(&why);
        }
        match self.stage.reports(&plans).map(|reports| jobs::roster(&reports)) {
            Some(Ok(roster)) => self
                .working(plans, "MakingIdentities", "identities are made")
                .writing(Write::Roster(self.stage.roster.clone(), roster)),
            Some(Err(why)) => self.fail(&why),
            None => self.working(plans, "MakingIdentities", "each signer makes its identity"),
        }
    }

    fn generated(&self) -> Vec<JobPlan> {
        self.stage.plans(self.stage.signers(), |_| Task::Generate)
    }

    fn generate(&self) -> Step {
        let plans = self.generated();
        match self.stage.made(&plans) {
            Together::Blocked(message) => {
                Step { wait: Some(LEAVING), ..Step::working(Vec::new(), "WaitingForPods", message) }
            }
            Together::Failed(why) => self.fail(&why),
            Together::Working => self.working(plans, "GeneratingKey", "the signers make the key together"),
            Together::Done(report) => {
                let decided = KeyGeneration { decided: Some(report.public_key), ..self.stage.tries.clone() };
                self.working(plans, "GeneratingKey", "all signers agree").writing(Write::Progress(decided))
            }
        }
    }

    fn keep(&self, public_key: &str) -> Step {
        let Stage { cluster, .. } = self.stage;
        let made = self.generated();
        let plans = self.stage.plans(self.stage.signers(), |index| Task::Keep {
            made: made[usize::from(index) - 1].name(&cluster.name),
            // Epoch 1: the key is new.
            kept: ShareSecrets::of(cluster, index, 1, public_key).share,
            public_key: public_key.to_owned(),
        });
        let jobs = [made.clone(), plans.clone()].concat();
        let step = self.working(plans.clone(), "KeepingShares", "each signer's share is stored for good");
        match self.stage.kept(&made, &plans) {
            Together::Failed(why) => self.fail(&why),
            Together::Done(report) if report.public_key != public_key => self.fail(&format!(
                "the shares that were kept are of key {}, not of {public_key}",
                report.public_key
            )),
            Together::Done(report) => {
                let record = Box::new(KeyRecord::new(cluster, &report));
                Step { jobs, ..step }.writing(Write::Record(record))
            }
            Together::Working | Together::Blocked(_) => Step { jobs, ..step },
        }
    }

    fn inspect(&self) -> Step {
        let cluster = self.stage.cluster;
        let plans = self.stage.plans(self.stage.signers(), |index| Task::Inspect {
            share: ShareSecrets::of(cluster, index, 1, "").share,
            awaited: true,
        });
        if let Some(why) = self.stage.failure(&plans) {
            return self.fail(&why);
        }
        match self.stage.agreed(&plans) {
            Together::Failed(why) => self.fail(&why),
            Together::Done(report) => {
                let record = Box::new(KeyRecord::new(cluster, &report));
                self.working(plans, "InspectingShares", "the shares are of one key")
                    .writing(Write::Record(record))
            }
            Together::Working | Together::Blocked(_) => {
                self.working(plans, "InspectingShares", "each signer's share and identity are read")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};
    use tss_common::identity::Roster;

    use super::*;
    use crate::cluster::fixtures::{self, KEY, OTHER, There, cluster, identity, record};
    use crate::crd::TssClusterStatus;

    fn plans(task: &Task) -> Vec<JobPlan> {
        plans_of(task, 1)
    }

    fn plans_of(task: &Task, attempt: i32) -> Vec<JobPlan> {
        let plan = |index| JobPlan {
            task: task.clone(),
            index,
            attempt: format!("6f1b5-{attempt}"),
            threshold: cluster().threshold,
            roster: "demo-roster".into(),
        };
        (1..=3).map(plan).collect()
    }

    /// Those that keep what was made in the first try.
    fn keeping() -> Vec<JobPlan> {
        let keep = |plan: JobPlan| {
            let made = plan.name("demo");
            let kept = format!("demo-signer-{}-e1-{}", plan.index, &KEY[2..12]);
            JobPlan { task: Task::Keep { made, kept, public_key: KEY.into() }, ..plan }
        };
        plans(&Task::Generate).into_iter().map(keep).collect()
    }

    fn share(index: u8, key: &str) -> Value {
        let mut share = fixtures::share(index);
        share["public_key"] = json!(key);
        share
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
        assert_eq!((step.jobs, step.write), (plans(&Task::Identity), None));
        let two = plans(&Task::Identity)[..2]
            .iter()
            .fold(There::new(), |there, plan| there.with_job(plan, Some(Ok(identity(plan.index)))));
        let step = two.next();
        assert_eq!(step.write, None);
        assert!(step.verdict.message.contains("2 of 3"), "{}", step.verdict.message);
        let Some(Write::Roster(name, roster)) =
            There::new().with_jobs(&plans(&Task::Identity), identity).next().write
        else {
            panic!("expected a roster")
        };
        Roster::from_toml(&roster, 3).unwrap();
        assert_eq!(name, "demo-roster");
    }

    #[test]
    fn an_identity_that_another_signer_has_is_refused() {
        let same = identity(1);
        let there = There::new().with_jobs(&plans(&Task::Identity), |index| {
            let mut report = same.clone();
            report["index"] = json!(index);
            report
        });
        assert!(failure(&there.next()).1.contains("have a key in common"));
        let there = There::new().with_jobs(&plans(&Task::Identity), |_| identity(1));
        assert!(failure(&there.next()).1.contains("the Job of signer 2 reported the identity of signer 1"));
    }

    #[test]
    fn a_key_that_all_agree_on_is_decided_before_any_share_is_kept() {
        let step = There::new().with_roster().next();
        assert_eq!((step.jobs, step.write), (plans(&Task::Generate), None));
        let step =
            There::new().with_roster().with_jobs(&plans(&Task::Generate), |index| share(index, KEY)).next();
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
            let there = There::new().with_roster().with_jobs(&plans(&Task::Generate), |index| {
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
        for plan in plans(&Task::Generate) {
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
        assert_eq!(later.jobs, plans_of(&Task::Generate, 2));
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
        assert_eq!(there.next().jobs, plans_of(&Task::Generate, 2));
    }

    #[test]
    fn pauses_between_tries_grow_to_a_bound() {
        let pause = |failures| {
            let progress = KeyGeneration { attempt: failures + 1, failures, ..KeyGeneration::default() };
            let there = There::new().with_roster().with_progress(progress);
            let there = there.with_job(&plans_of(&Task::Generate, failures + 1)[0], Some(Err("x")));
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
            plans(&Task::Generate)[..2]
                .iter()
                .fold(There::new().with_roster(), |there, plan| there.with_job(plan, ended(plan.index)))
        };
        let step = there(|_| None).next();
        assert_eq!((step.jobs, step.write), (plans(&Task::Generate), None));
        let step = there(|index| Some(Ok(share(index, KEY)))).next();
        assert!(failure(&step).1.contains("the Job of signer 3 is gone"));
    }

    #[test]
    fn shares_are_kept_while_what_made_them_is_there_and_then_the_key_is_on_record() {
        let made = || {
            There::new()
                .with_roster()
                .with_jobs(&plans(&Task::Generate), |index| share(index, KEY))
                .with_progress(decided())
        };
        let step = made().next();
        assert_eq!(step.jobs, [plans(&Task::Generate), keeping()].concat());
        assert_eq!(step.write, None);
        let kept = made().with_jobs(&keeping(), |index| share(index, KEY));
        let Some(Write::Record(record)) = kept.next().write else { panic!("expected a record") };
        assert_eq!((record.public_key.as_str(), record.epoch), (KEY, 1));
        assert_eq!(record.shares[2].share, "demo-signer-3-e1-27a67181ec");
        assert_eq!(record.shares[2].identity, "demo-signer-3-identity");
        // What was kept must be what was decided.
        let other = made().with_jobs(&keeping(), |index| share(index, OTHER));
        assert!(failure(&other.next()).1.contains(OTHER));
    }

    #[test]
    fn a_decided_key_whose_share_is_lost_before_it_is_kept_is_given_up() {
        let mut there = There::new().with_roster().with_progress(decided());
        for plan in &plans(&Task::Generate)[1..] {
            there = there.with_job(plan, Some(Ok(share(plan.index, KEY))));
        }
        let (attempt, why) = failure(&there.next());
        assert_eq!(attempt, 2);
        assert!(why.contains("the share of signer 1 is gone"), "{why}");
        // Not when it has been kept: then nothing is lost.
        let there = there.with_job(&keeping()[0], Some(Ok(share(1, KEY))));
        assert_eq!(there.next().write, None);
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
            threshold: Some("2-of-3".into()),
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
        assert_eq!(step.jobs, plans_of(&Task::Identity, 0));
        assert_eq!(step.write, None);
    }

    #[test]
    fn nothing_is_touched_when_the_record_is_of_another_key_or_cannot_be_read() {
        for (field, value, part) in [
            ("protocol", json!("other"), "protocol other; the TssCluster has dkls23"),
            ("threshold", json!(4), "threshold 4 of 3 is not possible"),
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
