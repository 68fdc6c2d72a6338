//! Step 5: what a person reads. Pure; the writing is the controller's.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::jiff::Timestamp;

use super::apply::Applied;
use super::dereference::{Observed, read};
use super::keygen::Step;
use super::names;
use super::rollout::{is_ready, is_settled};
use super::validate::Cluster;
use crate::condition::{self, Verdict};
use crate::crd::{SignerStatus, TssClusterStatus};

/// The conditions of a TssCluster.
pub const READY: &str = "Ready";
/// All signers keep shares of one key.
pub const KEY_GENERATED: &str = "KeyGenerated";
/// The shares are those that are asked for: for so many signers, and not too old.
pub const SHARES_CURRENT: &str = "SharesCurrent";
/// There are backups of the shares that are in use, for those who are to hold them.
pub const BACKED_UP: &str = "BackedUp";
/// Enough signers are ready to sign.
pub const QUORUM_AVAILABLE: &str = "QuorumAvailable";
/// The loss of any one node leaves enough signers.
pub const THRESHOLD_RESILIENT: &str = "ThresholdResilient";
/// Something is being made or changed.
pub const PROGRESSING: &str = "Progressing";

/// The status of a cluster of which all is known.
pub fn status(
    cluster: &Cluster,
    observed: &Observed,
    step: &Step,
    applied: &Applied,
    held: usize,
    now: Timestamp,
) -> TssClusterStatus {
    let mut status = observed.object.status.clone().unwrap_or_default();
    let generation = observed.object.metadata.generation;
    status.observed_generation = generation;
    status.threshold = Some(cluster.threshold.to_string());
    status.network_name = Some(cluster.network.clone());
    status.manager_url = Some(cluster.manager_url());
    if let Some(key) = &step.key {
        status.public_key = Some(key.public_key.clone());
        status.commitment = Some(key.commitment.clone());
        status.addresses = Some(key.addresses.clone());
        status.epoch = Some(key.epoch);
        status.roster = Some(key.roster.clone());
        status.key_generation = None;
        status.renewal = step.renewal.clone();
    }
    if cluster.spec.backup.is_none() {
        status.backups = None;
        status.conditions.retain(|condition| condition.type_ != BACKED_UP);
    }
    status.signers = cluster.indices().map(|index| signer(cluster, observed, step, index)).collect();
    let ready = status.signers.iter().filter(|signer| signer.ready).count();
    status.ready_signers = Some(format!("{ready}/{}", cluster.threshold.n()));

    let key = step.verdict.clone();
    let quorum = quorum(cluster, ready);
    let manager = manager(cluster, observed);
    let resilient = resilient(cluster, &status.signers);
    let progress = progress(observed, step, applied, held, &status);
    if step.key.is_some() {
        let settled = held == 0 && progress.holds == Some(false);
        status.retired_shares = if settled { retired(cluster, observed, step) } else { Vec::new() };
    }
    let first_missing = [&key, &quorum, &manager].into_iter().find(|verdict| verdict.holds != Some(true));
    let ready = first_missing.cloned().unwrap_or_else(|| {
        Verdict::yes("Signing", format!("{} signers of a {} key sign", ready, cluster.threshold))
    });
    let shares = step.shares.clone().map(|verdict| (SHARES_CURRENT, verdict));
    let backups = step.backups.clone().map(|verdict| (BACKED_UP, verdict));
    for (kind, verdict) in shares.into_iter().chain(backups).chain([
        (READY, ready),
        (KEY_GENERATED, key),
        (QUORUM_AVAILABLE, quorum),
        (THRESHOLD_RESILIENT, resilient),
        (PROGRESSING, progress),
    ]) {
        condition::set(&mut status.conditions, kind, verdict, generation, now);
    }
    status
}

/// The status of a cluster in which nothing is touched, for this reason.
pub fn stopped(observed: &Observed, reason: &'static str, message: &str, now: Timestamp) -> TssClusterStatus {
    let mut status = observed.object.status.clone().unwrap_or_default();
    let generation = observed.object.metadata.generation;
    status.observed_generation = generation;
    for kind in [READY, PROGRESSING] {
        condition::set(&mut status.conditions, kind, Verdict::no(reason, message), generation, now);
    }
    status
}

/// The Secrets with shares of the epoch before, if it is the same key's, that a person should delete. Not those that a
/// signer's Pods need, as where an identity stands beside a share, and never one that is not this cluster's.
fn retired(cluster: &Cluster, observed: &Observed, step: &Step) -> Vec<String> {
    let key = step.key.as_ref().map(|key| key.public_key.as_str());
    let mounted: BTreeSet<&str> = observed
        .live
        .iter()
        .filter(|live| live.kind == "StatefulSet")
        .filter_map(|live| live.body.pointer("/spec/template/spec/volumes")?.as_array())
        .flatten()
        .filter_map(|volume| volume.pointer("/secret/secretName")?.as_str())
        .collect();
    let previous = observed.previous.iter();
    previous
        .filter(|previous| Some(previous.public_key.as_str()) == key && previous.check(cluster).is_ok())
        .flat_map(|previous| &previous.shares)
        .map(|secrets| secrets.share.clone())
        .filter(|share| !mounted.contains(share.as_str()))
        .collect()
}

fn signer(cluster: &Cluster, observed: &Observed, step: &Step, index: u8) -> SignerStatus {
    let pod = observed.pods.get(&index);
    let ready = is_ready(observed, index);
    let there = observed.find("StatefulSet", &names::signer(&cluster.name, index));
    let state = match (pod, there) {
        _ if ready => "Ready".into(),
        (Some(pod), Some(_)) if pod.waiting.is_some() => pod.waiting.clone().unwrap_or_default(),
        (_, Some(live)) if !is_settled(&live.body) && pod.is_some_and(|pod| pod.ready) => "Updating".into(),
        (_, Some(_)) => "Starting".into(),
        (_, None) if step.key.is_some() => "Starting".into(),
        (_, None) => "WaitingForKey".into(),
    };
    let state = state.chars().take(256).collect();
    let secrets = step.key.as_ref().and_then(|key| key.shares.get(usize::from(index).saturating_sub(1)));
    let share = secrets.map(|secrets| secrets.share.clone());
    SignerStatus { index: index.into(), ready, state, node: pod.and_then(|pod| pod.node.clone()), share }
}

fn quorum(cluster: &Cluster, ready: usize) -> Verdict {
    let t = usize::from(cluster.threshold.t());
    let n = cluster.threshold.n();
    let message = format!("{ready} of {n} signers are ready, {t} are needed");
    if ready >= t {
        Verdict::yes("EnoughSigners", message)
    } else {
        let hint = "status.signers says what each one waits for";
        Verdict::no("TooFewSigners", format!("{message}: {hint}"))
    }
}

fn manager(cluster: &Cluster, observed: &Observed) -> Verdict {
    let name = names::manager(&cluster.name);
    let deployment = observed.find("Deployment", &name).and_then(|live| read::<Deployment>(&live.body));
    let ready = deployment.and_then(|deployment| deployment.status?.ready_replicas).unwrap_or(0);
    if ready > 0 {
        Verdict::yes("ManagerReady", format!("{ready} managers are ready"))
    } else {
        Verdict::no(
            "ManagerNotReady",
            format!(
                "no Pod of Deployment {name} is ready: its log says whether RabbitMQ and MongoDB can be reached"
            ),
        )
    }
}

fn resilient(cluster: &Cluster, signers: &[SignerStatus]) -> Verdict {
    let t = usize::from(cluster.threshold.t());
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for signer in signers.iter().filter(|signer| signer.ready) {
        *nodes.entry(signer.node.as_deref().unwrap_or_default()).or_default() += 1;
    }
    let ready: usize = nodes.values().sum();
    let Some((node, most)) = nodes.into_iter().max_by_key(|&(_, count)| count) else {
        return Verdict::no("NoSigners", "no signer is ready");
    };
    if ready.saturating_sub(most) >= t {
        return Verdict::yes("SurvivesNodeLoss", "enough signers are left whichever node is lost");
    }
    let left = ready.saturating_sub(most);
    Verdict::no(
        "NodeLossStopsSigning",
        format!(
            "without node {node}, {left} of {t} signers would be left: add nodes, or see that signers are spread over them \
             (spec.signer.antiAffinity, nodeSelector, tolerations)"
        ),
    )
}

fn progress(
    observed: &Observed,
    step: &Step,
    applied: &Applied,
    held: usize,
    status: &TssClusterStatus,
) -> Verdict {
    if step.key.is_none() {
        return Verdict::yes(step.verdict.reason, step.verdict.message.clone());
    }
    if !applied.changed.is_empty() {
        // What comes of it is seen by the next pass.
        return Verdict::yes("Applying", format!("written: {}", applied.changed.join(", ")));
    }
    let unsettled = observed
        .live
        .iter()
        .filter(|live| live.owned && matches!(live.kind.as_str(), "StatefulSet" | "Deployment"));
    let unsettled: Vec<String> = unsettled
        .filter(|live| !is_settled(&live.body))
        .map(|live| format!("{} {}", live.kind, live.name))
        .collect();
    if held > 0 {
        return Verdict::yes(
            "RollingOut",
            format!("{held} signers are changed once the others are ready again"),
        );
    }
    if !unsettled.is_empty() {
        return Verdict::yes("RollingOut", format!("being changed: {}", unsettled.join(", ")));
    }
    if !applied.leaving.is_empty() {
        return Verdict::yes("WaitingForDeletion", format!("being deleted: {}", applied.leaving.join(", ")));
    }
    match status.signers.iter().find(|signer| !signer.ready) {
        Some(signer) => Verdict::yes("Starting", format!("signer {}: {}", signer.index, signer.state)),
        None => Verdict::no("Settled", "everything is as it should be"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::build::build;
    use crate::cluster::dereference::{Live, observe};
    use crate::cluster::fixtures::{CLUSTER, KEY, There, cluster, later, live, object, options, record};
    use crate::cluster::fixtures::{settled, signer_pod};
    use crate::cluster::record::{KeyRecord, kept};

    /// A network of which `used` is what the signers use, `before` and `now` are on record, and this is wanted.
    fn written(used: &KeyRecord, before: &KeyRecord, now: &KeyRecord, applied: &Applied) -> TssClusterStatus {
        let objects = build(&cluster().with_key(used), &options(), &[], Some(used)).unwrap();
        let mut live: Vec<Live> = objects.iter().map(settled).collect();
        let roster = kept(&cluster(), now.roster.clone(), "roster.toml", "x".into());
        let maps = [before, now].map(|record| record.to_config_map(&cluster()).unwrap());
        live.extend(maps.iter().chain([&roster]).map(|map| Live { owned: false, ..self::live(map) }));
        let pods: Vec<_> = (1..=used.signers).map(|index| signer_pod(index, true, "node")).collect();
        let mut object = object(CLUSTER);
        object.status.get_or_insert_default().epoch = Some(now.epoch);
        let observed = observe(object, live, &pods);
        let at = Timestamp::UNIX_EPOCH;
        let step = crate::cluster::keygen::next(&cluster(), &observed, at);
        assert_eq!(step.key.as_ref(), Some(now));
        status(&cluster().with_key(now), &observed, &step, applied, 0, at)
    }

    fn second() -> KeyRecord {
        later(2, &"22".repeat(32), 2, 3)
    }

    #[test]
    fn shares_of_the_epoch_before_are_retired_when_no_signer_uses_them() {
        let nothing = Applied::default();
        let changing = Applied { changed: vec!["StatefulSet demo-signer-3".into()], leaving: Vec::new() };
        let shares: Vec<String> = record().shares.iter().map(|secrets| secrets.share.clone()).collect();
        assert_eq!(written(&second(), &record(), &second(), &nothing).retired_shares, shares);
        assert_eq!(written(&second(), &record(), &second(), &changing).retired_shares, [""; 0]);
        // However settled all looks, as when nothing can be applied.
        assert_eq!(written(&record(), &record(), &second(), &nothing).retired_shares, [""; 0]);
        assert_eq!(written(&record(), &record(), &record(), &nothing).retired_shares, [""; 0]);
    }

    #[test]
    fn nobody_is_told_to_delete_what_is_in_use_or_another_clusters() {
        let nothing = Applied::default();
        let of = |record: KeyRecord, changes: serde_json::Value| -> KeyRecord {
            let mut planted = serde_json::to_value(record).unwrap();
            planted.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            serde_json::from_value(planted).unwrap()
        };
        let planted = |changes| of(record(), changes);
        let secrets = |share: &str| json!({"identity": "demo-signer-1-identity", "share": share});
        let elsewhere = ["a", "b", "c"].map(secrets);
        let in_use: Vec<_> = second().shares.iter().map(|used| secrets(&used.share)).collect();
        for before in [planted(json!({"shares": elsewhere})), planted(json!({"shares": in_use}))] {
            assert_eq!(
                written(&second(), &before, &second(), &nothing).retired_shares,
                [""; 0],
                "{before:?}"
            );
        }
        // The names of later shares do not tell which key they are of.
        let third = later(3, &"33".repeat(32), 2, 3);
        assert_eq!(written(&third, &second(), &third, &nothing).retired_shares.len(), 3);
        let other = of(second(), json!({"publicKey": crate::cluster::fixtures::OTHER}));
        assert_eq!(written(&third, &other, &third, &nothing).retired_shares, [""; 0]);
    }

    #[test]
    fn what_is_shown_is_the_key_that_signs_and_how_far_new_shares_are() {
        let roster = kept(&cluster(), "demo-roster".into(), "roster.toml", "x".into());
        let first = record().to_config_map(&cluster()).unwrap();
        let mut there = There::new().with_map(&roster).with_map(&first);
        let now = Timestamp::UNIX_EPOCH;
        there.pass(now);
        (there.object.spec.threshold, there.object.spec.signers) = (3, 5);
        for _ in 0..3 {
            there.pass(now);
        }
        let status = there.object.status.clone().unwrap();
        assert_eq!((status.threshold.as_deref(), status.epoch), (Some("2-of-3"), Some(1)));
        assert_eq!((status.public_key.as_deref(), status.signers.len()), (Some(KEY), 3));
        let renewal = status.renewal.unwrap();
        assert_eq!((renewal.epoch, renewal.threshold, renewal.signers), (2, 3, 5));
        let shares = status.conditions.iter().find(|one| one.type_ == SHARES_CURRENT).unwrap();
        assert_eq!((shares.status.as_str(), shares.reason.as_str()), ("False", "Resharing"));
        assert!(shares.message.contains("3-of-5 instead of 2-of-3"), "{}", shares.message);
        // What stops everything leaves what is known of the key.
        let observed = observe(there.object.clone(), there.live.clone(), &[]);
        let stopped = stopped(&observed, "Invalid", "x", now);
        assert_eq!((stopped.epoch, stopped.renewal.is_some()), (Some(1), true));
    }
}
