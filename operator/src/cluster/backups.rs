//! How backups of a key's shares are made, once for each epoch and holders: what is to be done next, from what is there.
//! Pure.
//!
//! A Job of each signer encrypts its share to the holders, who open it only together, and puts that into a Secret of no
//! owner. Nobody is asked for anything secret, and what is stored is worth nothing without all holders' identities.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

use super::dereference::Observed;
use super::jobs::{self, Stage, Task};
use super::keygen::{Step, Write};
use super::names;
use super::record::KeyRecord;
use super::validate::Cluster;
use crate::condition::Verdict;
use crate::crd::{Backups, KeyGeneration};

/// What a Job reports of the backup that it made: its first line.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Header {
    cluster: String,
    epoch: i64,
    signer: u8,
    public_key: String,
    holders: usize,
}

/// What is to be done for the backups of the key on record; `done` is what else is so.
pub(super) fn next(
    cluster: &Cluster,
    observed: &Observed,
    record: &KeyRecord,
    now: Timestamp,
    done: Step,
) -> Step {
    let Some(wanted) = &cluster.spec.backup else { return done };
    let digits = names::backups(&wanted.holders, &record.commitment);
    let before = observed.object.status.as_ref().and_then(|status| status.backups.clone());
    // Jobs that made them for other holders are no Jobs of these.
    let attempt = before.as_ref().map_or(1, |before| before.tries.attempt.saturating_add(1));
    let Some(told) = before.filter(|told| told.name == digits) else {
        let tries = KeyGeneration { attempt, ..KeyGeneration::default() };
        let begun = Backups { name: digits, epoch: record.epoch, secrets: Vec::new(), made_at: None, tries };
        return Step { write: Some(Write::Backups(Box::new(begun))), ..done };
    };
    let step = |verdict, jobs| Step { backups: Some(verdict), jobs, ..done.clone() };
    if let Some(made_at) = &told.made_at {
        let message = format!(
            "Secrets {} have the shares of epoch {}, made at {:.0}",
            told.secrets.join(", "),
            told.epoch,
            made_at.0
        );
        return step(Verdict::yes("BackupsMade", message), Vec::new());
    }
    if let Some((wait, message)) = jobs::pause(&told.tries, now) {
        let wait = done.wait.map_or(wait, |other| other.min(wait));
        return Step { wait: Some(wait), ..step(Verdict::no("BackupFailed", message), Vec::new()) };
    }
    let stage = Stage {
        cluster,
        observed,
        tries: &told.tries,
        attempt: jobs::attempt(cluster, record.epoch, &told.tries),
        threshold: record.threshold(),
        roster: record.roster.clone(),
    };
    let name = |index| names::backup(&cluster.name, index, record.epoch, &digits, told.tries.attempt);
    let holders: Vec<String> = wanted.holders.iter().map(|recipients| recipients.join(",")).collect();
    let plans = stage.plans(stage.signers(), |index| Task::Backup {
        share: record.share_of(index),
        holders: holders.clone(),
        kept: name(index),
    });
    let reports = stage.reports(&plans);
    let failed = stage.failure(&plans).or_else(|| {
        let mut reports = reports.iter().flatten();
        let of = wanted.holders.len();
        reports.find_map(|(&index, report)| check(cluster, record, of, index, report).err())
    });
    if let Some(why) = failed {
        let tries = jobs::after_failure(&told.tries, &why, now);
        let verdict = Verdict::no("BackupFailed", tries.last_failure.clone().unwrap_or_default());
        let write = Some(Write::Backups(Box::new(Backups { tries, ..told.clone() })));
        return Step { write, ..step(verdict, Vec::new()) };
    }
    if reports.is_some() {
        let secrets = stage.signers().map(name).collect();
        let made = Backups { secrets, made_at: Some(Time(now)), ..told.clone() };
        return Step { write: Some(Write::Backups(Box::new(made))), ..done };
    }
    let message = stage.message(&plans, "each signer's share is encrypted to the holders");
    step(Verdict::no("MakingBackups", message), plans)
}

/// That a backup is of a signer's share of the key on record.
fn check(
    cluster: &Cluster,
    record: &KeyRecord,
    holders: usize,
    index: u8,
    report: &str,
) -> Result<(), String> {
    let made: Header = serde_json::from_str(report)
        .map_err(|error| format!("signer {index} reported no backup: {error}"))?;
    let expected = Header {
        cluster: cluster.network.clone(),
        epoch: record.epoch,
        signer: index,
        public_key: record.public_key.clone(),
        holders,
    };
    if made == expected {
        Ok(())
    } else {
        Err(format!("signer {index} reported {made:?}: expected {expected:?}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::fixtures::{KEY, There, cluster, record};
    use crate::cluster::jobs::JobPlan;
    use crate::condition;
    use crate::crd::Backup;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// A network with its key, and these holders of backups.
    fn there(holders: &[&[&str]]) -> There {
        let mut there = There::new().with_roster().with_map(&record().to_config_map(&cluster()).unwrap());
        there.object.spec.backup = backup(holders);
        there
    }

    fn backup(holders: &[&[&str]]) -> Option<Backup> {
        let holders = holders.iter().map(|holder| holder.iter().map(|&name| name.to_owned()).collect());
        Some(Backup { holders: holders.collect() })
    }

    fn report(index: u8) -> Value {
        json!({"backup": 1, "cluster": "wallets-demo", "key": "default", "epoch": 1, "signer": index, "public_key": KEY,
            "holders": 2})
    }

    fn told(there: &There) -> Backups {
        there.object.status.as_ref().unwrap().backups.clone().unwrap()
    }

    fn verdict(there: &There) -> (String, String) {
        let conditions = &there.object.status.as_ref().unwrap().conditions;
        let found = conditions.iter().find(|one| one.type_ == "BackedUp").unwrap();
        (found.reason.clone(), found.message.clone())
    }

    /// The Jobs that there should be once it is written down that backups are made.
    fn begun(there: &mut There) -> Vec<JobPlan> {
        assert!(matches!(there.pass(NOW).write, Some(Write::Backups(_))));
        there.pass(NOW).jobs
    }

    #[test]
    fn each_share_is_backed_up_once_for_each_epoch_and_each_set_of_holders() {
        let mut there = there(&[&["age1a", "age1b"], &["age1c"]]);
        let plans = begun(&mut there);
        let tasks: Vec<_> = plans.iter().map(|plan| (plan.index, plan.task.clone())).collect();
        let name = told(&there).name;
        let task = |index: u8| Task::Backup {
            share: record().shares[usize::from(index) - 1].share.clone(),
            holders: vec!["age1a,age1b".into(), "age1c".into()],
            kept: format!("demo-backup-{index}-e1-{name}-1"),
        };
        assert_eq!(tasks, [1, 2, 3].map(|index| (index, task(index))));
        assert_eq!(verdict(&there).0, "MakingBackups");
        // Two of three are not all.
        let mut there = there.with_jobs(&plans[..2], report);
        assert_eq!((there.pass(NOW).write, told(&there).secrets.len()), (None, 0));
        let mut there = there.with_jobs(&plans[2..], report);
        there.pass(NOW);
        let secrets = [1, 2, 3].map(|index| format!("demo-backup-{index}-e1-{name}-1"));
        assert_eq!((told(&there).secrets.as_slice(), told(&there).made_at), (&secrets[..], Some(Time(NOW))));
        let step = there.pass(NOW);
        assert_eq!((step.jobs, step.write, verdict(&there).0.as_str()), (Vec::new(), None, "BackupsMade"));
        // Other holders have others made, and with none all is as if there never had been any.
        there.object.spec.backup = backup(&[&["age1a"], &["age1c"]]);
        assert!(matches!(there.pass(NOW).write, Some(Write::Backups(_))));
        assert!(told(&there).name != name && told(&there).secrets.is_empty());
        // What the Jobs for the holders before have made, or are about to, is not taken for theirs.
        let jobs = there.pass(NOW).jobs;
        assert!(jobs.iter().all(|plan| plan.attempt == "6f1b5-1-2"), "{jobs:?}");
        assert_eq!(told(&there).secrets.len(), 0);
        there.object.spec.backup = None;
        there.pass(NOW);
        let status = there.object.status.unwrap();
        assert!(status.backups.is_none() && !condition::is_true(&status.conditions, "BackedUp"));
        assert!(status.conditions.iter().all(|one| one.type_ != "BackedUp"));
    }

    #[test]
    fn a_backup_that_fails_or_is_of_something_else_is_told_and_tried_again_while_the_key_signs() {
        type Ends = fn(u8) -> Option<Result<Value, &'static str>>;
        let failed: [(&str, Ends); 4] = [
            ("error: age1a is no recipient", |_| Some(Err("error: age1a is no recipient"))),
            ("signer 2 reported", |index| {
                let mut report = report(index);
                report["epoch"] = json!(if index == 2 { 7 } else { 1 });
                Some(Ok(report))
            }),
            ("signer 3 reported", |index| {
                let mut report = report(index);
                report["holders"] = json!(if index == 3 { 1 } else { 2 });
                Some(Ok(report))
            }),
            ("signer 1 reported no backup", |_| Some(Ok(json!({})))),
        ];
        for (why, ended) in failed {
            let mut there = there(&[&["age1a"], &["age1c"]]);
            let plans = begun(&mut there);
            for plan in &plans {
                there = there.with_job(plan, ended(plan.index));
            }
            let step = there.pass(NOW);
            assert_eq!(step.key, Some(record()));
            let tries = told(&there).tries;
            assert_eq!((tries.attempt, tries.failures), (2, 1));
            assert!(tries.last_failure.as_ref().unwrap().contains(why), "{tries:?}");
            assert!(there.pass(NOW).jobs.is_empty(), "after a pause");
            assert!(verdict(&there).1.contains(why), "{:?}", verdict(&there));
            let later = Timestamp::from_second(5).unwrap();
            let attempts: Vec<String> = there.pass(later).jobs.into_iter().map(|plan| plan.attempt).collect();
            assert_eq!(attempts, ["6f1b5-1-2"; 3]);
        }
    }
}
