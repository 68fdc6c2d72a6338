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

use k8s_openapi::jiff::Timestamp;
use tss_mpc::Threshold;

use super::dereference::Observed;
use super::jobs::{self, JobPlan, JobState, ShareReport, Stage, Task, Together};
use super::keygen::{LEAVING, Step, Write};
use super::names;
use super::record::{KeyRecord, ShareSecrets};
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
        Some(begun) if target(&begun) == Some(cluster.threshold) => begun,
        // Something else is wanted by now.
        begun => {
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
    let attempt = format!("{}-{epoch}-{}", jobs::object_name(cluster), renewal.tries.attempt);
    let roster = renewal.roster.clone().unwrap_or_else(|| record.roster.clone());
    let stage = Stage { cluster, observed, tries: &renewal.tries, attempt, threshold, roster };
    Try { stage, record, renewal: &renewal, now, done }.next()
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
        let (before, after) = (self.record.threshold(), self.stage.threshold);
        if after.n() < before.t() {
            let message = format!(
                "of the {before} signers {} would stay, and {} are needed to make new shares: expected at least so many \
                 signers; go there in two steps",
                after.n(),
                before.t()
            );
            return Step { shares: Some(Verdict::no("TooFewStay", message)), ..self.done };
        }
        if let Some((wait, message)) = jobs::pause(&self.renewal.tries, self.now) {
            let step = self.step(Vec::new(), "RenewalFailed", message);
            return Step { wait: Some(wait), ..step };
        }
        match (&self.renewal.roster, self.renewal.tries.decided.clone()) {
            (None, _) => self.prepare(),
            (Some(_), None) => self.renew(),
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

    /// The try is given up: its Jobs go, and what they stored with them. The signers sign on.
    fn fail(self, why: &str) -> Step {
        let tries = jobs::after_failure(&self.renewal.tries, why, self.now);
        let why = tries.last_failure.clone().unwrap_or_default();
        let Renewal { epoch, threshold, signers, .. } = *self.renewal;
        let renewal = Renewal { epoch, threshold, signers, tries, holders: Vec::new(), roster: None };
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
        let inspections =
            before.plans(staying, |index| Task::Inspect { share: self.share_of(index), awaited: false });

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
                match observed.roster(&name) {
                    Some(there) if there == text => name,
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

    /// The Secret with a signer's share of the epoch that ends.
    fn share_of(&self, index: u8) -> String {
        let place = usize::from(index).saturating_sub(1);
        self.record.shares.get(place).map(|secrets| secrets.share.clone()).unwrap_or_default()
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
            held: holders.contains(&index).then(|| self.share_of(index)),
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

    fn keep(self, commitment: &str) -> Step {
        let Stage { cluster, .. } = self.stage;
        let made = self.renewals();
        let kept: Vec<ShareSecrets> = self
            .stage
            .signers()
            .map(|index| ShareSecrets::renewed(cluster, index, self.renewal.epoch, commitment))
            .collect();
        let plans = self.stage.plans(self.stage.signers(), |index| {
            let place = usize::from(index) - 1;
            Task::Keep {
                made: made[place].name(&cluster.name),
                kept: kept[place].share.clone(),
                public_key: self.record.public_key.clone(),
            }
        });
        match self.stage.kept(&made, &plans) {
            Together::Failed(why) => self.fail(&why),
            Together::Done(report) if report.commitment != commitment => {
                self.fail("the shares that were kept are not those that were made")
            }
            Together::Done(report) => {
                let record = self.record.renewed(&report, self.stage.roster.clone(), kept);
                Step { write: Some(Write::Record(Box::new(record))), ..self.done }
            }
            Together::Working | Together::Blocked(_) => {
                let jobs = [made, plans.clone()].concat();
                self.working(&plans, jobs, "each signer's new share is stored for good")
            }
        }
    }
}
