//! How a key gets new shares, for the same signers or for others: what is to be done next, from what is there. Pure.
//!
//! ```text
//! Prepare ──▶ Renew ──▶ Keep ──▶ the signers are started with them, one at a time
//! ```
//!
//! The signers sign on meanwhile with the shares that they have: the Jobs meet at addresses of their own. **Prepare**: each
//! signer to be tells its identity, and each that stays whether it has its share; those that have are the **holders**, and
//! as many of them as sign deal. Whoever lost its share gets one as newcomers do. **Renew** and **Keep** are the two phases
//! of key generation (see [`keygen`](super::keygen)): what all have come to is decided in the status, kept under names
//! of its own, and then put on record. The record is what counts: until it is there, the epoch before is the key's, and
//! from then on the new one. Secrets of the epoch before are not touched.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tss_mpc::Threshold;

use super::dereference::Observed;
use super::jobs::{self, JobPlan, JobState, ShareReport, Stage, Task, Together};
use super::keygen::{LEAVING, Step, Write};
use super::names;
use super::record::KeyRecord;
use super::validate::Cluster;
use crate::condition::Verdict;
use crate::crd::{KeyGeneration, KeySourceKind, Renewal};

/// What is to be done for the key on record; `done` is what else is so.
pub(super) fn next(
    cluster: &Cluster,
    observed: &Observed,
    record: &KeyRecord,
    now: Timestamp,
    done: Step,
) -> Step {
    let due = due(cluster, observed.made_at);
    let wanted = record.threshold() != cluster.threshold || due.is_some_and(|due| due <= now);
    let epoch = record.epoch.saturating_add(1);
    let begun = observed.renewal().filter(|begun| begun.epoch == epoch);
    // One that was called off may have Pods still, and its tries were called as those of one that begins.
    let left_over = begun.is_none().then(|| left_over(cluster, observed, epoch)).flatten();
    let renewal = match begun {
        // Its shares are being kept.
        Some(begun) if begun.tries.decided.is_some() => begun,
        _ if !wanted => {
            let made = observed.made_at.map(|at| format!(", made at {at:.0}")).unwrap_or_default();
            let again = due.map(|at| format!("; they are made anew at {at:.0}")).unwrap_or_default();
            let verdict =
                Verdict::yes("UpToDate", format!("the shares are of epoch {}{made}{again}", record.epoch));
            let wait = due.and_then(|due| due.duration_since(now).try_into().ok());
            return Step { shares: Some(verdict), wait, ..done };
        }
        // What is begun here and given up at once would be begun again and again.
        _ if cluster.threshold.n() < record.threshold().t() => {
            let (before, after) = (record.threshold(), cluster.threshold);
            let message = format!(
                "of the {before} signers {} would stay, and {} are needed to make new shares: expected at least so many \
                 signers; go there in two steps",
                after.n(),
                before.t()
            );
            return Step { shares: Some(Verdict::no("TooFewStay", message)), ..done };
        }
        Some(begun) if target(&begun) == Some(cluster.threshold) => begun,
        // The status says first which epoch is in force: by it alone the record of the next one counts once it is decided.
        _ if known(observed) != Some(record.epoch) => {
            let message = format!("the shares are of epoch {}, and others are wanted", record.epoch);
            let shares = Some(Verdict::no("Beginning", message));
            return Step { shares, wait: Some(Duration::ZERO), ..done };
        }
        // Something else is wanted by now.
        begun => {
            if let Some(job) = left_over {
                let message = format!("the Pod of Job {job} is still there");
                let shares = Some(Verdict::no("WaitingForPods", message));
                return Step { shares, wait: Some(LEAVING), ..done };
            }
            let attempt = begun.map_or(1, |begun| begun.tries.attempt.saturating_add(1));
            let begun = Renewal {
                epoch,
                threshold: cluster.threshold.t().into(),
                signers: cluster.threshold.n().into(),
                tries: KeyGeneration { attempt, ..KeyGeneration::default() },
                ..Renewal::default()
            };
            return Step { write: Some(Write::Renewal(Box::new(begun))), ..done };
        }
    };
    let Some(threshold) = target(&renewal) else {
        let message = format!("status.renewal: expected a threshold, not {renewal:?}");
        return Step { shares: Some(Verdict::no("StatusUnreadable", message)), ..done };
    };
    let attempt = jobs::attempt(cluster, epoch, &renewal.tries);
    let roster = renewal.roster.clone().unwrap_or_else(|| record.roster.clone());
    let stage = Stage { cluster, observed, tries: &renewal.tries, attempt, threshold, roster };
    Try { stage, record, renewal: &renewal, now, done }.next()
}

/// A Job of an earlier try for this epoch whose Pod has not ended.
fn left_over<'a>(cluster: &Cluster, observed: &'a Observed, epoch: i64) -> Option<&'a str> {
    let of_epoch = format!("-{}-{epoch}-", jobs::object_name(cluster));
    observed.running.iter().map(String::as_str).find(|job| job.contains(&of_epoch))
}

/// The epoch in force, as far as the status knows it.
fn known(observed: &Observed) -> Option<i64> {
    observed.object.status.as_ref()?.epoch
}

/// When the shares are to be made anew.
fn due(cluster: &Cluster, made_at: Option<Timestamp>) -> Option<Timestamp> {
    let made_at = made_at?;
    let refresh = cluster.spec.refresh.as_ref()?;
    let asked = refresh.older_than.as_ref().map(|time| time.0).filter(|&time| made_at < time);
    let scheduled = cluster.schedule.as_ref().and_then(|schedule| schedule.after(made_at));
    asked.into_iter().chain(scheduled).min()
}

/// For how many of how many signers new shares are.
fn target(renewal: &Renewal) -> Option<Threshold> {
    Threshold::new(renewal.threshold.try_into().ok()?, renewal.signers.try_into().ok()?).ok()
}

/// A try to make new shares.
struct Try<'a> {
    stage: Stage<'a>,
    record: &'a KeyRecord,
    renewal: &'a Renewal,
    now: Timestamp,
    done: Step,
}

impl Try<'_> {
    fn next(self) -> Step {
        if let Some((wait, message)) = jobs::pause(&self.renewal.tries, self.now) {
            let step = self.step(Vec::new(), "RenewalFailed", message);
            return Step { wait: Some(wait), ..step };
        }
        let decided = self.renewal.tries.decided.clone();
        // Before anything is made, and before it would be lost.
        if (decided.is_none() || self.renewal.kept)
            && let Some(message) = self.in_the_way()
        {
            return self.step(Vec::new(), "RecordInTheWay", message);
        }
        match (&self.renewal.roster, decided) {
            (None, _) => self.prepare(),
            (Some(_), None) => self.renew(),
            (Some(_), Some(_)) if self.renewal.kept => self.conclude(),
            (Some(_), Some(commitment)) => self.keep(&commitment),
        }
    }

    fn step(self, jobs: Vec<JobPlan>, reason: &'static str, message: String) -> Step {
        let (before, after, epoch) = (self.record.threshold(), self.stage.threshold, self.renewal.epoch);
        let of = if before == after { after.to_string() } else { format!("{after} instead of {before}") };
        let message = format!("shares of epoch {epoch}, {of}: {message}");
        let shares = Some(Verdict::no(reason, message));
        Step { jobs, shares, renewal: Some(self.renewal.clone()), ..self.done }
    }

    fn working(self, plans: &[JobPlan], jobs: Vec<JobPlan>, what: &str) -> Step {
        let message = self.stage.message(plans, what);
        let same = self.record.threshold() == self.stage.threshold;
        self.step(jobs, if same { "Refreshing" } else { "Resharing" }, message)
    }

    fn writing(self, renewal: Renewal) -> Step {
        Step { write: Some(Write::Renewal(Box::new(renewal))), ..self.done }
    }

    /// Whether something has the name of the record that would be made: it would stay, and never be in force.
    fn in_the_way(&self) -> Option<String> {
        let name = names::key(&self.stage.cluster.name, self.renewal.epoch);
        self.stage.observed.find("ConfigMap", &name)?;
        Some(format!("ConfigMap {name} is there already and is not the record of these shares: delete it"))
    }

    /// The try is given up: its Jobs go, and what they stored with them. The signers sign on.
    fn fail(self, why: &str) -> Step {
        let tries = jobs::after_failure(&self.renewal.tries, why, self.now);
        let why = tries.last_failure.clone().unwrap_or_default();
        let Renewal { epoch, threshold, signers, .. } = *self.renewal;
        let renewal = Renewal { epoch, threshold, signers, tries, ..Renewal::default() };
        let step = self.step(Vec::new(), "RenewalFailed", why);
        Step { write: Some(Write::Renewal(Box::new(renewal))), ..step }
    }

    /// Who takes part, and who of them has a share.
    fn prepare(self) -> Step {
        let Stage { cluster, observed, tries, ref attempt, threshold, ref roster } = self.stage;
        // Theirs stand in Secrets that are not the operator's, and all of them stay.
        let makes_identities = cluster.spec.key_source.kind == KeySourceKind::Generate;
        let identities =
            self.stage.plans(self.stage.signers().filter(|_| makes_identities), |_| Task::Identity);
        let (attempt, roster) = (attempt.clone(), roster.clone());
        let before = Stage { cluster, observed, tries, attempt, threshold: self.record.threshold(), roster };
        let staying = before.signers().filter(|&index| index <= threshold.n());
        let inspections = before
            .plans(staying, |index| Task::Inspect { share: self.record.share_of(index), awaited: false });

        if let Some(why) = self.stage.failure(&identities) {
            return self.fail(&why);
        }
        let all = [identities.clone(), inspections.clone()].concat();
        let ended = |plan: &JobPlan| {
            matches!(self.stage.state(plan), Some(JobState::Succeeded(_) | JobState::Failed(_)))
        };
        if !all.iter().all(ended) {
            return self.working(&all, all.clone(), "it is found out who has a share");
        }
        let mut holders = Vec::new();
        let mut others = BTreeMap::new();
        for plan in &inspections {
            match self.holds(&before, plan) {
                Ok(()) => holders.push(plan.index.into()),
                Err(why) => drop(others.insert(plan.index, why)),
            }
        }
        let needed = self.record.threshold().t();
        if holders.len() < needed.into() {
            let why: Vec<String> =
                others.iter().map(|(index, why)| format!("signer {index}: {why}")).collect();
            return self.fail(&format!(
                "{} of the {needed} shares that are needed are there; {}",
                holders.len(),
                why.join("; ")
            ));
        }
        let reports = self.stage.reports(&identities).filter(|_| makes_identities);
        let roster = match reports.map(|reports| jobs::roster(&reports)) {
            None => self.record.roster.clone(),
            Some(Err(why)) => return self.fail(&why),
            Some(Ok(text)) if observed.roster(&self.record.roster) == Some(&text) => {
                self.record.roster.clone()
            }
            Some(Ok(text)) => {
                let name = names::later_roster(&cluster.name, &text);
                match observed.find("ConfigMap", &name) {
                    Some(_) if observed.roster(&name) == Some(&text) => name,
                    Some(_) => {
                        return self.fail(&format!(
                            "ConfigMap {name} holds another roster than the signers' identities: delete it"
                        ));
                    }
                    None => {
                        let step = self.working(&all, all.clone(), "the roster is made");
                        return Step { write: Some(Write::Roster(name, text)), ..step };
                    }
                }
            }
        };
        let renewal = Renewal { holders, roster: Some(roster), ..self.renewal.clone() };
        self.writing(renewal)
    }

    /// Whether a signer has its share of the epoch that ends.
    fn holds(&self, before: &Stage<'_>, plan: &JobPlan) -> Result<(), String> {
        let report = match before.state(plan) {
            Some(JobState::Succeeded(report)) => report,
            Some(JobState::Failed(why)) => return Err(why.clone()),
            _ => return Err("its Job is gone".into()),
        };
        let report = jobs::share(plan.index, before.threshold, &before.cluster.network, report)?;
        let ShareReport { epoch, public_key, commitment, .. } = report;
        let KeyRecord { epoch: ends, public_key: key, commitment: common, .. } = self.record;
        if (epoch, &public_key, &commitment) == (*ends, key, common) {
            return Ok(());
        }
        Err(format!("it has a share of key {public_key} at epoch {epoch}, of other shares than the record's"))
    }

    fn renewals(&self) -> Vec<JobPlan> {
        let holders: Vec<u8> =
            self.renewal.holders.iter().filter_map(|&index| u8::try_from(index).ok()).collect();
        let dealers = holders.iter().copied().take(self.record.threshold().t().into()).collect::<Vec<_>>();
        self.stage.plans(self.stage.signers(), |index| Task::Renew {
            ends: self.record.epoch,
            dealers: dealers.clone(),
            held: holders.contains(&index).then(|| self.record.share_of(index)),
        })
    }

    fn renew(self) -> Step {
        let plans = self.renewals();
        match self.stage.made(&plans) {
            Together::Blocked(message) => {
                Step { wait: Some(LEAVING), ..self.step(Vec::new(), "WaitingForPods", message) }
            }
            Together::Failed(why) => self.fail(&why),
            Together::Working => self.working(&plans, plans.clone(), "the signers make new shares together"),
            Together::Done(report) => match self.check(&report) {
                Err(why) => self.fail(&why),
                Ok(()) => {
                    let tries =
                        KeyGeneration { decided: Some(report.commitment), ..self.renewal.tries.clone() };
                    let renewal = Renewal { tries, ..self.renewal.clone() };
                    self.writing(renewal)
                }
            },
        }
    }

    /// That these are new shares of the key on record.
    fn check(&self, report: &ShareReport) -> Result<(), String> {
        let KeyRecord { public_key, commitment, .. } = self.record;
        let made = (&report.public_key, report.epoch);
        if made != (public_key, self.renewal.epoch) || report.commitment == *commitment {
            return Err(format!(
                "the signers have shares of key {} at epoch {}: expected new ones of {public_key} at epoch {}",
                made.0, made.1, self.renewal.epoch
            ));
        }
        Ok(())
    }

    /// All have their shares for good.
    fn conclude(self) -> Step {
        match self.record.renewed(&self.stage.cluster.name, self.renewal) {
            Some(record) => Step { write: Some(Write::Record(Box::new(record))), ..self.done },
            None => {
                let message = format!("status.renewal: expected what was decided, not {:?}", self.renewal);
                self.step(Vec::new(), "StatusUnreadable", message)
            }
        }
    }

    fn keep(self, commitment: &str) -> Step {
        let Stage { cluster, .. } = self.stage;
        let made = self.renewals();
        let kept = |index| names::later_share(&cluster.name, index, self.renewal.epoch, commitment);
        let plans = self.stage.plans(self.stage.signers(), |index| {
            let place = usize::from(index) - 1;
            Task::Keep {
                made: made[place].name(&cluster.name),
                kept: kept(index),
                public_key: self.record.public_key.clone(),
            }
        });
        match self.stage.kept(&made, &plans) {
            Together::Failed(why) => self.fail(&why),
            Together::Done(report) if report.commitment != commitment => {
                self.fail("the shares that were kept are not those that were made")
            }
            Together::Done(_) => {
                let renewal = Renewal { kept: true, ..self.renewal.clone() };
                self.writing(renewal)
            }
            Together::Working | Together::Blocked(_) => {
                let jobs = [made, plans.clone()].concat();
                self.working(&plans, jobs, "each signer's new share is stored for good")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::ResourceExt as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::fixtures::{
        CLUSTER, KEY, OTHER, There, cluster, identity, later, live, object, record, share,
    };
    use crate::cluster::record::{ShareSecrets, kept};
    use crate::crd::Refresh;

    /// What all shares of the second and the third epoch have in common.
    const SECOND: &str = "2222222222222222222222222222222222222222222222222222222222222222";
    const THIRD: &str = "3333333333333333333333333333333333333333333333333333333333333333";

    type Ended = Option<Result<Value, &'static str>>;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// When the first shares were made, a Thursday; and a day later.
    fn made() -> Timestamp {
        time("2026-01-01T00:00:00Z")
    }

    fn now() -> Timestamp {
        time("2026-01-02T00:00:00Z")
    }

    /// The same at each call.
    fn identity_of(index: u8) -> Value {
        static ALL: LazyLock<Vec<Value>> = LazyLock::new(|| (1..=9).map(identity).collect());
        ALL[usize::from(index) - 1].clone()
    }

    fn roster(n: u8) -> String {
        let all: Vec<String> = (1..=n).map(|index| identity_of(index).to_string()).collect();
        jobs::roster(&(1..=n).zip(all.iter().map(String::as_str)).collect()).unwrap()
    }

    fn with_record(mut there: There, record: &KeyRecord, made: Timestamp) -> There {
        let mut map = record.to_config_map(&cluster()).unwrap();
        map.metadata.creation_timestamp = Some(Time(made));
        there = there.with_map(&map);
        there
    }

    /// A network of two of three with its first shares, and a status that says so.
    fn there() -> There {
        let first = kept(&cluster(), "demo-roster".into(), "roster.toml", roster(3));
        let mut there = with_record(There::new().with_map(&first), &record(), made());
        let step = there.pass(made());
        assert_eq!((step.write, step.jobs.len()), (None, 0));
        there
    }

    fn wanting(threshold: i32, signers: i32) -> There {
        let mut there = there();
        want(&mut there, threshold, signers);
        there
    }

    fn want(there: &mut There, threshold: i32, signers: i32) {
        (there.object.spec.threshold, there.object.spec.signers) = (threshold, signers);
    }

    fn refreshed(schedule: Option<&str>, older_than: Option<&str>) -> There {
        let mut there = there();
        let older_than = older_than.map(|text| Time(time(text)));
        there.object.spec.refresh = Some(Refresh { schedule: schedule.map(str::to_owned), older_than });
        there
    }

    /// One whose shares are to be made anew now.
    fn refreshing() -> There {
        refreshed(None, Some("2026-01-01T12:00:00Z"))
    }

    fn begun(there: &There) -> Renewal {
        there.object.status.as_ref().unwrap().renewal.clone().expect("a renewal")
    }

    /// What a Job tells of a share of the epoch and key that it works for.
    fn told(plan: &JobPlan, epoch: i64, commitment: &str) -> Value {
        let mut told = share(plan.index);
        told["threshold"] = json!(plan.threshold.t());
        told["signers"] = json!(plan.threshold.n());
        told["epoch"] = json!(epoch);
        told["commitment"] = json!(commitment);
        told
    }

    /// How Jobs end when all goes well, from the first epoch to the second.
    fn well(plan: &JobPlan) -> Ended {
        Some(Ok(match &plan.task {
            Task::Identity => identity_of(plan.index),
            Task::Inspect { .. } => told(plan, 1, &"00".repeat(32)),
            Task::Renew { ends, .. } => told(plan, ends + 1, SECOND),
            Task::Keep { .. } => told(plan, 2, SECOND),
            other => panic!("{other:?} is no part of it"),
        }))
    }

    /// The Jobs that are wanted now and are not there run, and end so.
    fn run(mut there: There, now: Timestamp, end: impl Fn(&JobPlan) -> Ended) -> There {
        let wanted = there.pass(now).jobs;
        for plan in wanted {
            if !there.live.iter().any(|live| live.kind == "Job" && live.name == plan.name("demo")) {
                let ended = end(&plan);
                there = there.with_job(&plan, ended);
            }
        }
        there
    }

    /// Passes until nothing is written any more, and yields the last step.
    fn settle(there: &mut There, now: Timestamp) -> Step {
        for _ in 0..20 {
            let before = there.object.clone();
            let step = there.pass(now);
            if step.write.is_none() && there.object == before {
                return step;
            }
        }
        panic!("something is written again and again: {:?}", there.pass(now));
    }

    /// One in which the Jobs have been run so often, and all has gone well.
    fn after(there: There, rounds: usize) -> There {
        (0..rounds).fold(there, |mut there, _| {
            settle(&mut there, now());
            let mut there = run(there, now(), well);
            settle(&mut there, now());
            there
        })
    }

    fn tasks(plans: &[JobPlan]) -> Vec<(&'static str, u8)> {
        plans.iter().map(|plan| (plan.task.as_str(), plan.index)).collect()
    }

    fn reason(step: &Step) -> &'static str {
        step.shares.as_ref().unwrap().reason
    }

    fn message(step: &Step) -> String {
        step.shares.as_ref().unwrap().message.clone()
    }

    /// That the try has been given up: which one is next, and why. The network signs on with what it has.
    fn failure(step: &Step) -> (KeyGeneration, String) {
        let Some(Write::Renewal(renewal)) = &step.write else { panic!("expected a failure: {step:?}") };
        assert!(step.jobs.is_empty(), "the Jobs of a try that failed go");
        assert_eq!(
            (renewal.roster.as_ref(), renewal.holders.len(), &renewal.tries.decided),
            (None, 0, &None)
        );
        assert_eq!(step.key, Some(record()), "the network signs on");
        (renewal.tries.clone(), renewal.tries.last_failure.clone().expect("a failure"))
    }

    #[test]
    fn shares_that_are_new_enough_are_left_alone_until_the_next_time_of_the_schedule() {
        let step = there().at(now());
        assert_eq!((step.write, step.jobs.len(), step.wait), (None, 0, None));
        assert_eq!(step.shares.unwrap().holds, Some(true));
        // Sunday at three is in two days and three hours.
        let mut there = refreshed(Some("0 3 * * 0"), None);
        let step = there.pass(now());
        assert_eq!((step.write.clone(), step.jobs.len(), reason(&step)), (None, 0, "UpToDate"));
        assert_eq!(step.wait, Some(Duration::from_secs((2 * 24 + 3) * 3600)));
        assert!(message(&step).contains("2026-01-04T03:00:00Z"), "{}", message(&step));
        assert_eq!(settle(&mut there, now()).renewal, None);
    }

    #[test]
    fn a_time_of_the_schedule_that_has_come_begins_new_shares_and_once_only() {
        let mut there = refreshed(Some("0 3 * * 0"), None);
        let sunday = time("2026-01-04T03:00:00Z");
        assert_eq!(there.at(time("2026-01-04T02:59:59Z")).write, None);
        there.pass(sunday);
        let Renewal { epoch, threshold, signers, holders, roster, tries, .. } = begun(&there);
        assert_eq!((epoch, threshold, signers, tries.attempt), (2, 2, 3, 1));
        assert_eq!((holders.len(), roster), (0, None));
        // However many times have passed, and none after they were made.
        let late = time("2026-03-04T00:00:00Z");
        let mut there = after_all(refreshed(Some("0 3 * * 0"), None), late);
        let step = settle(&mut there, late);
        assert_eq!((reason(&step), step.key.unwrap().epoch), ("UpToDate", 2));
        assert!(step.wait.is_some());
    }

    /// All of it, at one time.
    fn after_all(there: There, at: Timestamp) -> There {
        (0..3).fold(there, |mut there, _| {
            settle(&mut there, at);
            let mut there = run(there, at, well);
            settle(&mut there, at);
            there
        })
    }

    #[test]
    fn shares_that_are_older_than_a_time_are_made_anew_once_it_has_come() {
        let mut past = refreshed(None, Some("2026-01-01T12:00:00Z"));
        past.pass(now());
        assert_eq!(begun(&past).epoch, 2);
        let step = refreshed(None, Some("2026-01-02T00:01:00Z")).at(now());
        assert_eq!((step.write, step.wait), (None, Some(Duration::from_secs(60))));
        // They were made at that time, or after it.
        for time in ["2026-01-01T00:00:00Z", "2025-12-31T00:00:00Z"] {
            let step = refreshed(None, Some(time)).at(now());
            assert_eq!((step.write, step.wait, step.shares.unwrap().reason), (None, None, "UpToDate"));
        }
        // Whichever is sooner.
        let step = refreshed(Some("0 3 * * 0"), Some("2026-01-02T00:01:00Z")).at(now());
        assert_eq!(step.wait, Some(Duration::from_secs(60)));
    }

    #[test]
    fn another_threshold_or_other_signers_get_new_shares() {
        for (threshold, signers) in [(3, 5), (2, 4), (3, 3), (2, 2)] {
            let mut there = wanting(threshold, signers);
            there.pass(now());
            let begun = begun(&there);
            assert_eq!((begun.epoch, begun.threshold, begun.signers), (2, threshold, signers));
        }
    }

    #[test]
    fn fewer_signers_than_are_needed_make_no_new_shares_and_what_runs_stays() {
        let mut there = after_all(wanting(3, 5), now());
        want(&mut there, 2, 2);
        let step = settle(&mut there, now());
        assert_eq!((reason(&step), step.jobs.len(), step.renewal), ("TooFewStay", 0, None));
        assert_eq!(step.key.unwrap().threshold().to_string(), "3-of-5");
        // In two steps it goes.
        want(&mut there, 2, 3);
        assert_eq!(tasks(&settle(&mut there, now()).jobs).len(), 3 + 3);
    }

    #[test]
    fn something_else_that_is_wanted_meanwhile_is_another_try() {
        let mut there = after(wanting(3, 5), 1);
        assert!(begun(&there).roster.is_some());
        want(&mut there, 3, 4);
        there.pass(now());
        let Renewal { epoch, threshold, signers, holders, roster, tries, .. } = begun(&there);
        assert_eq!((epoch, threshold, signers, tries.attempt), (2, 3, 4, 2));
        assert_eq!((holders.len(), roster), (0, None));
        let step = there.at(now());
        assert!(step.jobs.iter().all(|plan| plan.attempt == "6f1b5-2-2"), "{:?}", step.jobs);
        // Nothing at all is wanted: what was begun is called off.
        want(&mut there, 2, 3);
        let step = settle(&mut there, now());
        assert_eq!((reason(&step), step.renewal, step.jobs.len()), ("UpToDate", None, 0));
    }

    #[test]
    fn what_is_decided_comes_to_its_end_before_something_else_begins() {
        let mut there = after(wanting(3, 5), 2);
        assert_eq!(begun(&there).tries.decided.as_deref(), Some(SECOND));
        want(&mut there, 2, 4);
        let step = settle(&mut there, now());
        assert_eq!(tasks(&step.jobs).iter().filter(|(task, _)| *task == "keep").count(), 5);
        let mut there = run(there, now(), well);
        // That all are kept is written down before the record, which would not count else.
        let step = there.pass(now());
        assert!(matches!(&step.write, Some(Write::Renewal(renewal)) if renewal.kept), "{step:?}");
        let step = there.pass(now());
        assert!(matches!(step.write, Some(Write::Record(_))), "{step:?}");
        // The next one begins when the status says that this one is in force: else the record would not count any more.
        let step = there.pass(now());
        assert_eq!((step.write.clone(), step.key.as_ref().unwrap().epoch), (None, 2));
        assert_eq!(there.object.status.as_ref().unwrap().epoch, Some(2));
        assert_eq!(step.wait, Some(Duration::ZERO));
        there.pass(now());
        let Renewal { epoch, threshold, signers, .. } = begun(&there);
        assert_eq!((epoch, threshold, signers), (3, 2, 4));
        assert_eq!(settle(&mut there, now()).key.unwrap().epoch, 2);
    }

    #[test]
    fn what_was_called_off_and_is_wanted_again_waits_for_the_pods_that_are_left() {
        let mut there = refreshing();
        // Another one of this name is about to begin: its Pods would meet those of the one before.
        let labels = json!({"batch.kubernetes.io/job-name": "demo-renew-2-6f1b5-2-1"});
        let pod = |phase: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"labels": labels}, "status": {"phase": phase}}))
                .unwrap()
        };
        there.pods.push(pod("Running"));
        let step = settle(&mut there, now());
        assert_eq!((reason(&step), step.renewal, step.wait), ("WaitingForPods", None, Some(LEAVING)));
        there.pods = vec![pod("Failed")];
        there.pass(now());
        assert_eq!(begun(&there).tries.attempt, 1);
        // Those of others are not waited for.
        let mut there = refreshing();
        there.pods.push(pod("Running"));
        there.pods[0].labels_mut().insert("batch.kubernetes.io/job-name".into(), "demo-x-2-6f1b5-1".into());
        there.pass(now());
        assert_eq!(begun(&there).tries.attempt, 1);
    }

    #[test]
    fn every_signer_to_be_tells_its_identity_and_everyone_that_stays_whether_it_has_its_share() {
        let mut more = wanting(3, 5);
        let jobs = settle(&mut more, now()).jobs;
        let identities = (1..=5).map(|index| ("identity", index));
        let expected: Vec<_> = identities.chain((1..=3).map(|index| ("inspect", index))).collect();
        assert_eq!(tasks(&jobs), expected);
        // A share is read as what it is, with the roster that it was made with.
        assert!(jobs[5..].iter().all(|plan| plan.threshold == record().threshold()));
        assert!(jobs[5..].iter().all(|plan| plan.roster == "demo-roster"));
        let expected = Task::Inspect { share: record().shares[1].share.clone(), awaited: false };
        assert_eq!(jobs[6].task, expected);
        let mut fewer = wanting(2, 2);
        let jobs = settle(&mut fewer, now()).jobs;
        assert_eq!(tasks(&jobs), [("identity", 1), ("identity", 2), ("inspect", 1), ("inspect", 2)]);
    }

    #[test]
    fn a_signer_without_its_share_is_no_holder_and_gets_one() {
        let lost: [fn(&JobPlan) -> Ended; 4] = [
            |_| Some(Err("error: /run/secrets/tss/share/share: No such file")),
            |plan| Some(Ok(told(plan, 1, OTHER))),
            |plan| Some(Ok(told(plan, 7, &"00".repeat(32)))),
            |plan| {
                let mut other = told(plan, 1, &"00".repeat(32));
                other["public_key"] = json!(OTHER);
                Some(Ok(other))
            },
        ];
        for lost in lost {
            let mut there = refreshing();
            settle(&mut there, now());
            let mut there = run(there, now(), |plan| match plan.task {
                Task::Inspect { .. } if plan.index == 2 => lost(plan),
                _ => well(plan),
            });
            let step = settle(&mut there, now());
            assert_eq!(begun(&there).holders, [1, 3]);
            let renewals: Vec<&Task> = step.jobs.iter().map(|plan| &plan.task).collect();
            let held = |index: usize| Some(record().shares[index - 1].share.clone());
            let expected =
                [held(1), None, held(3)].map(|held| Task::Renew { ends: 1, dealers: vec![1, 3], held });
            assert_eq!(renewals, expected.iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn with_too_few_shares_the_try_fails_and_every_reason_is_told() {
        let mut there = refreshing();
        settle(&mut there, now());
        let there = run(there, now(), |plan| match (&plan.task, plan.index) {
            (Task::Inspect { .. }, 1) => Some(Err("error: no such file")),
            (Task::Inspect { .. }, 3) => Some(Ok(told(plan, 1, OTHER))),
            _ => well(plan),
        });
        let (_, why) = failure(&there.at(now()));
        for part in ["1 of the 2 shares", "signer 1: error: no such file", "signer 3: it has a share of key"]
        {
            assert!(why.contains(part), "`{part}` is missing in: {why}");
        }
        // Nobody waits for one whose share is found to be lost: all have to have ended.
        let mut there = refreshing();
        settle(&mut there, now());
        let mut there = run(there, now(), |plan| match (&plan.task, plan.index) {
            (Task::Inspect { .. }, 1) => None,
            (Task::Inspect { .. }, _) => Some(Err("error: no such file")),
            _ => well(plan),
        });
        assert_eq!(reason(&settle(&mut there, now())), "Refreshing");
    }

    #[test]
    fn an_identity_that_cannot_be_told_ends_the_try() {
        let mut there = wanting(3, 5);
        settle(&mut there, now());
        let there = run(there, now(), |plan| match (&plan.task, plan.index) {
            (Task::Identity, 4) => Some(Err("error: no room")),
            _ => well(plan),
        });
        assert_eq!(failure(&there.at(now())).1, "identity of signer 4: error: no room");
    }

    #[test]
    fn a_roster_is_used_again_as_long_as_it_is_the_same_and_never_overwritten() {
        assert_eq!(begun(&after(refreshing(), 1)).roster.as_deref(), Some("demo-roster"));
        let mut there = after(wanting(3, 5), 1);
        let name = begun(&there).roster.unwrap();
        assert_eq!(name, names::later_roster("demo", &roster(5)));
        let observed = crate::cluster::dereference::observe(there.object.clone(), there.live.clone(), &[]);
        assert_eq!(observed.roster(&name), Some(roster(5).as_str()));
        let jobs = settle(&mut there, now()).jobs;
        assert!(jobs.iter().all(|plan| plan.roster == name && plan.threshold.to_string() == "3-of-5"));
        // Somebody was there first.
        let other = kept(&cluster(), name.clone(), "roster.toml", roster(4));
        let mut there = wanting(3, 5).with_map(&other);
        settle(&mut there, now());
        let there = run(there, now(), well);
        let (_, why) = failure(&there.at(now()));
        assert!(why.contains(&format!("ConfigMap {name} holds another roster")), "{why}");
    }

    #[test]
    fn signers_whose_shares_came_from_elsewhere_keep_their_identities() {
        let yaml = CLUSTER.to_owned()
            + "  keySource: {type: ExistingSecrets, existingSecrets: {secrets: [a, b, c], rosterConfigMap: r}}\n";
        let source = object(&yaml).spec.key_source;
        let mut there = There::new();
        there.object.spec.key_source = source;
        let from = crate::cluster::validate::validate(&there.object).unwrap();
        let first = KeyRecord::new(&from, &crate::cluster::fixtures::report());
        let mut there = with_record(there, &first, made());
        there.pass(made());
        there.object.spec.refresh =
            Some(Refresh { schedule: None, older_than: Some(Time(time("2026-01-01T12:00:00Z"))) });
        let jobs = settle(&mut there, now()).jobs;
        assert_eq!(tasks(&jobs), [("inspect", 1), ("inspect", 2), ("inspect", 3)]);
        assert_eq!(jobs[0].task, Task::Inspect { share: "a".into(), awaited: false });
        let mut there = after_all(there, now());
        let key = settle(&mut there, now()).key.unwrap();
        let expected = ["a", "b", "c"].map(str::to_owned).into_iter().zip(1..).map(|(identity, index)| {
            ShareSecrets { identity, share: format!("demo-signer-{index}-e2-2222222222") }
        });
        assert_eq!((key.roster.as_str(), key.shares), ("r", expected.collect()));
    }

    #[test]
    fn as_many_deal_as_sign_the_first_of_those_who_have_shares() {
        let mut there = after(wanting(3, 5), 1);
        assert_eq!(begun(&there).holders, [1, 2, 3]);
        let jobs = settle(&mut there, now()).jobs;
        assert_eq!(tasks(&jobs), (1..=5).map(|index| ("renew", index)).collect::<Vec<_>>());
        for plan in &jobs {
            let held = record().shares.get(usize::from(plan.index) - 1).map(|secrets| secrets.share.clone());
            assert_eq!(plan.task, Task::Renew { ends: 1, dealers: vec![1, 2], held });
        }
    }

    #[test]
    fn a_try_begins_when_the_pods_of_the_one_before_are_gone() {
        let pod = |phase: &str| -> Pod {
            let labels = json!({"batch.kubernetes.io/job-name": "demo-renew-2-6f1b5-2-9"});
            serde_json::from_value(json!({"metadata": {"labels": labels}, "status": {"phase": phase}}))
                .unwrap()
        };
        let mut there = after(refreshing(), 1);
        there.pods.push(pod("Running"));
        let step = there.at(now());
        assert_eq!((reason(&step), step.jobs.len(), step.wait), ("WaitingForPods", 0, Some(LEAVING)));
        assert_eq!(step.key, Some(record()));
        there.pods = vec![pod("Succeeded")];
        assert_eq!(there.at(now()).jobs.len(), 3);
    }

    #[test]
    fn what_is_no_new_share_of_the_key_is_refused() {
        for (field, value, part) in [
            ("public_key", json!(OTHER), "expected new ones of"),
            ("epoch", json!(1), "at epoch 1: expected new ones"),
            ("epoch", json!(3), "at epoch 3: expected new ones"),
            ("commitment", json!("00".repeat(32)), "expected new ones of"),
            ("threshold", json!(3), "of a 3-of-3 key"),
            ("cluster", json!("other"), "of the network other"),
        ] {
            let there = run(after(refreshing(), 1), now(), |plan| {
                let mut told = told(plan, 2, SECOND);
                told[field] = value.clone();
                Some(Ok(told))
            });
            let (_, why) = failure(&there.at(now()));
            assert!(why.contains(part), "`{part}` is missing in: {why}");
        }
        let there = run(after(refreshing(), 1), now(), |plan| {
            Some(Ok(told(plan, 2, if plan.index == 3 { THIRD } else { SECOND })))
        });
        assert!(failure(&there.at(now())).1.contains("signers 1 and 3 hold shares of different keys"));
    }

    #[test]
    fn one_that_fails_ends_the_try_and_the_network_signs_on_with_what_it_has() {
        let mut there = run(after(refreshing(), 1), now(), |plan| match plan.index {
            2 => Some(Err("error: no answer from signer 3")),
            _ => well(plan),
        });
        let (tries, why) = failure(&there.pass(now()));
        assert_eq!(why, "renew of signer 2: error: no answer from signer 3");
        assert_eq!((tries.attempt, tries.failures), (2, 1));
        let step = settle(&mut there, now());
        assert_eq!(
            (reason(&step), step.jobs.len(), step.wait),
            ("RenewalFailed", 0, Some(Duration::from_secs(5)))
        );
        assert_eq!((step.key.clone(), step.verdict.holds), (Some(record()), Some(true)));
        assert!(message(&step).contains(&why), "{}", message(&step));
        // Then who has a share is found out anew, by Jobs of other names.
        let next = now() + Duration::from_secs(5);
        let jobs = settle(&mut there, next).jobs;
        assert_eq!(jobs.len(), 6);
        assert!(jobs.iter().all(|plan| plan.attempt == "6f1b5-2-2"), "{jobs:?}");
        // And if that fails, too, the pause is longer.
        let there = run(there, next, |_| Some(Err("error: x")));
        let (tries, _) = failure(&there.at(next));
        assert_eq!((tries.attempt, tries.not_before), (3, Some(Time(next + Duration::from_secs(10)))));
    }

    #[test]
    fn the_signers_have_the_key_all_the_while_and_its_new_shares_when_all_are_kept() {
        let mut there = wanting(3, 5);
        let mut epochs = Vec::new();
        for _ in 0..60 {
            let step = there.pass(now());
            let key = step.key.clone().expect("the network signs on");
            assert_eq!((key.public_key.as_str(), &key.addresses), (KEY, &record().addresses));
            assert!(!step.frozen);
            epochs.push((key.epoch, key.threshold().to_string()));
            if step.write.is_some() {
                continue;
            }
            // The Jobs begin together, and end one after the other.
            let plans = step.jobs;
            let running = |there: &There, plan: &JobPlan| {
                let name = plan.name("demo");
                there.live.iter().any(|live| live.name == name && live.uid == "running")
            };
            let new =
                plans.iter().filter(|plan| !there.live.iter().any(|live| live.name == plan.name("demo")));
            let new: Vec<JobPlan> = new.cloned().collect();
            for plan in &new {
                there = there.with_job(plan, None);
                there.live.last_mut().unwrap().uid = "running".into();
            }
            if let Some(plan) = plans.iter().find(|plan| new.is_empty() && running(&there, plan)) {
                there.live.retain(|live| live.name != plan.name("demo"));
                there.pods.retain(|pod| pod.metadata.name != Some(format!("{}-x", plan.name("demo"))));
                there = there.with_job(plan, well(plan));
            }
        }
        epochs.dedup();
        assert_eq!(epochs, [(1, "2-of-3".to_owned()), (2, "3-of-5".to_owned())]);
        let step = settle(&mut there, now());
        let key = step.key.unwrap();
        assert_eq!((step.shares.unwrap().holds, step.jobs.len(), step.renewal), (Some(true), 0, None));
        assert_eq!((key.commitment.as_str(), key.roster), (SECOND, names::later_roster("demo", &roster(5))));
        let expected = (1..=5).map(|index| ShareSecrets {
            identity: format!("demo-signer-{index}-identity"),
            share: format!("demo-signer-{index}-e2-2222222222"),
        });
        assert_eq!(key.shares, expected.collect::<Vec<_>>());
    }

    #[test]
    fn new_shares_are_kept_under_names_of_their_own_and_as_what_was_decided() {
        let mut there = after(refreshing(), 2);
        assert_eq!(begun(&there).tries.decided.as_deref(), Some(SECOND));
        let jobs = settle(&mut there, now()).jobs;
        assert_eq!(jobs.len(), 6);
        let keep = |index: u8| Task::Keep {
            made: format!("demo-renew-{index}-6f1b5-2-1"),
            kept: format!("demo-signer-{index}-e2-2222222222"),
            public_key: KEY.into(),
        };
        let tasks: Vec<Task> = jobs[3..].iter().map(|plan| plan.task.clone()).collect();
        assert_eq!(tasks, [1, 2, 3].map(keep));
        let there = run(there, now(), |plan| Some(Ok(told(plan, 2, THIRD))));
        assert!(failure(&there.at(now())).1.contains("are not those that were made"));
    }

    #[test]
    fn a_share_that_is_lost_before_it_is_kept_ends_the_try_and_the_record_before_stays_in_force() {
        let mut there = after(refreshing(), 2);
        there.live.retain(|live| live.name != "demo-renew-3-6f1b5-2-1");
        let (tries, why) = failure(&there.at(now()));
        assert_eq!((tries.attempt, tries.decided), (2, None));
        assert!(why.contains("the share of signer 3 is gone"), "{why}");
        // Not when it has been kept: then nothing is lost.
        let there = after(refreshing(), 2);
        let mut there = run(there, now(), |plan| if plan.index == 3 { well(plan) } else { None });
        there.live.retain(|live| live.name != "demo-renew-3-6f1b5-2-1");
        let step = there.at(now());
        assert_eq!((step.write, step.key), (None, Some(record())));
        // The last one is kept, and the record is made.
        let mut there = after(refreshing(), 3);
        assert_eq!(settle(&mut there, now()).key.unwrap().epoch, 2);
    }

    #[test]
    fn a_record_that_is_in_the_way_is_told_of_before_anything_is_made_and_before_it_would_be_lost() {
        let planted = later(2, THIRD, 2, 3);
        let mut early = with_record(refreshing(), &planted, now());
        let step = settle(&mut early, now());
        assert_eq!((reason(&step), step.jobs.len(), step.key.clone()), ("RecordInTheWay", 0, Some(record())));
        assert!(message(&step).contains("ConfigMap demo-key-e2 is there already"), "{}", message(&step));
        // When it appears later, what is kept stays, for when it is out of the way.
        let late = with_record(after(refreshing(), 2), &planted, now());
        let mut there = run(late, now(), well);
        let step = settle(&mut there, now());
        assert_eq!((reason(&step), step.jobs.len(), step.key), ("RecordInTheWay", 0, Some(record())));
        there.live.retain(|live| live.name != "demo-key-e2");
        assert_eq!(settle(&mut there, now()).key.unwrap().commitment, SECOND);
    }

    #[test]
    fn a_cluster_that_was_deleted_meanwhile_begins_anew_with_the_key() {
        for rounds in 1..=2 {
            let mut there = after(wanting(3, 5), rounds);
            there.object.status = None;
            there.live.retain(|live| live.kind != "Job");
            there.pods.clear();
            let step = there.pass(now());
            assert_eq!((step.key, step.write), (Some(record()), None));
            there.pass(now());
            let Renewal { epoch, threshold, .. } = begun(&there);
            assert_eq!((epoch, threshold, there.object.status.as_ref().unwrap().epoch), (2, 3, Some(1)));
        }
        // Once it is on record it counts, whatever is known.
        let mut there = after(wanting(3, 5), 3);
        there.object.status = None;
        let step = settle(&mut there, now());
        assert_eq!(
            (reason(&step), step.key.unwrap().threshold().to_string().as_str()),
            ("UpToDate", "3-of-5")
        );
    }

    #[test]
    fn a_roster_that_is_deleted_meanwhile_comes_back_and_new_shares_are_made_all_the_same() {
        let mut there = after(refreshing(), 2);
        there.live.retain(|live| live.name != "demo-roster");
        let step = there.pass(now());
        assert_eq!(tasks(&step.jobs), [("identity", 1), ("identity", 2), ("identity", 3)]);
        assert_eq!(step.key, Some(record()));
        let mut there = run(there, now(), well);
        let step = there.pass(now());
        assert!(matches!(step.write, Some(Write::Roster(..))), "{step:?}");
        let mut there = after(there, 3);
        assert_eq!(settle(&mut there, now()).key.unwrap().epoch, 2);
    }

    #[test]
    fn an_object_of_another_kind_or_cluster_is_no_record_in_the_way() {
        let mut there = after(refreshing(), 1);
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "demo-key-e2"}})).unwrap();
        there.live.push(live(&pod));
        let mut there = after(there, 2);
        assert_eq!(settle(&mut there, now()).key.unwrap().epoch, 2);
    }
}
