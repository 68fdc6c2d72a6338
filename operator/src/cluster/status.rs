//! Step 5: what a person reads. Pure; the writing is the controller's.

use std::collections::BTreeMap;

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
        let retired = observed.previous.iter().filter(|_| settled).flat_map(|previous| &previous.shares);
        status.retired_shares = retired.map(|secrets| secrets.share.clone()).collect();
    }
    let first_missing = [&key, &quorum, &manager].into_iter().find(|verdict| verdict.holds != Some(true));
    let ready = first_missing.cloned().unwrap_or_else(|| {
        Verdict::yes("Signing", format!("{} signers of a {} key sign", ready, cluster.threshold))
    });
    let shares = step.shares.clone().map(|verdict| (SHARES_CURRENT, verdict));
    for (kind, verdict) in shares.into_iter().chain([
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
