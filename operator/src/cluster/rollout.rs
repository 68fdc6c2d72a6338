//! In what order signers are changed: one at a time, while a quorum of the others signs; those that leave go last. Pure.

use std::collections::BTreeSet;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::apply::is_as_desired;
use super::build::Object;
use super::dereference::Observed;
use super::names;
use super::validate::Cluster;

/// How long the others wait for a signer that does not come back. After that it does not hold up a change as long as a
/// quorum of others signs: its node may be lost.
const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

/// The signers that are not changed, or not deleted, now: the names of their StatefulSets and of what else is called so.
pub fn held(cluster: &Cluster, observed: &Observed, desired: &[Object], now: Timestamp) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    let mut chosen = false;
    for index in cluster.indices() {
        let name = names::signer(&cluster.name, index);
        let object = desired.iter().find(|object| object.kind() == "StatefulSet" && object.name == name);
        let (Some(object), Some(live)) = (object, observed.find("StatefulSet", &name)) else { continue };
        // One that does not sign has nothing to lose: the change may be what it waits for.
        if is_as_desired(live, object) || !is_ready(observed, index) {
            continue;
        }
        if !chosen && others_sign(cluster, observed, index, now) {
            chosen = true;
        } else {
            held.insert(name);
        }
    }
    // With fewer signers, those before sign until enough of those that stay have their new shares.
    let renewed = cluster.indices().filter(|&index| {
        let name = names::signer(&cluster.name, index);
        let object = desired.iter().find(|object| object.kind() == "StatefulSet" && object.name == name);
        let live = observed.find("StatefulSet", &name);
        let is_new = object.zip(live).is_some_and(|(object, live)| is_as_desired(live, object));
        is_new && is_ready(observed, index)
    });
    if renewed.count() < usize::from(cluster.threshold.t()) {
        let stays: BTreeSet<String> =
            cluster.indices().map(|index| names::signer(&cluster.name, index)).collect();
        let sets = observed.live.iter().filter(|live| live.kind == "StatefulSet" && live.owned);
        held.extend(sets.map(|live| live.name.clone()).filter(|name| !stays.contains(name)));
    }
    held
}

/// Whether a signer signs. One whose StatefulSet has changed and whose Pod has not yet does not count.
pub fn is_ready(observed: &Observed, index: u8) -> bool {
    let name = names::signer(&observed.object.metadata.name.clone().unwrap_or_default(), index);
    let settled = observed.find("StatefulSet", &name).is_some_and(|live| is_settled(&live.body));
    settled && observed.pods.get(&index).is_some_and(|pod| pod.ready)
}

/// Whether Kubernetes has done everything that a StatefulSet or Deployment asks for.
pub fn is_settled(body: &serde_json::Value) -> bool {
    let number = |path: &str| body.pointer(path).and_then(serde_json::Value::as_i64);
    let text = |path: &str| body.pointer(path).and_then(serde_json::Value::as_str);
    number("/status/observedGeneration") >= number("/metadata/generation")
        && text("/status/updateRevision").is_none_or(|update| text("/status/currentRevision") == Some(update))
        && number("/status/updatedReplicas").unwrap_or(0) >= number("/spec/replicas").unwrap_or(1)
}

fn others_sign(cluster: &Cluster, observed: &Observed, index: u8, now: Timestamp) -> bool {
    let others = || cluster.indices().filter(move |&other| other != index);
    let ready = others().filter(|&other| is_ready(observed, other)).count();
    if ready == others().count() {
        // With n-of-n every change costs the quorum; one at a time it costs the least.
        return true;
    }
    let lost = |other: u8| {
        let since = observed.pods.get(&other).and_then(|pod| pod.unready_since);
        since.is_some_and(|since| now.duration_since(since) > PATIENCE)
    };
    ready >= usize::from(cluster.threshold.t())
        && others().all(|other| is_ready(observed, other) || lost(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::build::build;
    use crate::cluster::dereference::{Live, observe};
    use crate::cluster::fixtures::{CLUSTER, cluster, object, options, record, settled, signer_pod};
    use crate::cluster::validate::validate;
    use crate::context::Options;

    fn stateful_sets(options: &Options) -> Vec<Object> {
        let objects = build(&cluster(), options, &[], Some(&record())).unwrap();
        objects.into_iter().filter(|object| object.kind() == "StatefulSet").collect()
    }

    /// Which signers are changed when there is a new image: `new` have it, `ready` are ready.
    fn changed(yaml: &str, new: &[u8], ready: &[u8], now: &str) -> Vec<u8> {
        let other = Options { signer_image: "tss/signer:2".into(), ..options() };
        let (old, desired) = (stateful_sets(&options()), stateful_sets(&other));
        let live: Vec<Live> = (1..=3_u8)
            .map(|index| settled(&if new.contains(&index) { &desired } else { &old }[usize::from(index) - 1]))
            .collect();
        let pods: Vec<_> = (1..=3).map(|index| signer_pod(index, ready.contains(&index), "node")).collect();
        let observed = observe(object(yaml), live, &pods);
        let cluster = validate(&observed.object).unwrap();
        let held = held(&cluster, &observed, &desired, now.parse().unwrap());
        let outdated = (1..=3).filter(|index| !new.contains(index));
        outdated.filter(|&index| !held.contains(&names::signer("demo", index))).collect()
    }

    const SOON: &str = "2026-01-01T00:00:30Z";
    const LATE: &str = "2026-01-01T01:00:00Z";

    #[test]
    fn signers_are_changed_one_at_a_time_and_the_next_when_the_one_before_is_back() {
        assert_eq!(changed(CLUSTER, &[], &[1, 2, 3], SOON), [1]);
        assert_eq!(changed(CLUSTER, &[1], &[2, 3], SOON), [0; 0]);
        assert_eq!(changed(CLUSTER, &[1], &[1, 2, 3], SOON), [2]);
        assert_eq!(changed(CLUSTER, &[1, 2], &[1, 2, 3], SOON), [3]);
    }

    #[test]
    fn a_signer_that_does_not_sign_gets_the_change_that_may_mend_it() {
        assert_eq!(changed(CLUSTER, &[], &[1, 2], SOON), [3]);
        assert_eq!(changed(CLUSTER, &[], &[], SOON), [1, 2, 3]);
    }

    #[test]
    fn a_lost_signer_holds_up_the_others_only_for_a_while_and_never_at_the_cost_of_the_quorum() {
        // 2-of-3 with one lost: without another one there would be no quorum.
        assert_eq!(changed(CLUSTER, &[3], &[1, 2], LATE), [0; 0]);
        // Three of four others sign, and two are needed.
        let four = CLUSTER.replace("signers: 3", "signers: 4");
        assert_eq!(changed(&four, &[3], &[1, 2], LATE), [0; 0]);
    }

    #[test]
    fn with_n_of_n_signers_are_changed_one_at_a_time() {
        let all = CLUSTER.replace("threshold: 2", "threshold: 3");
        assert_eq!(changed(&all, &[], &[1, 2, 3], SOON), [1]);
        assert_eq!(changed(&all, &[1], &[2, 3], LATE), [0; 0]);
    }

    #[test]
    fn a_statefulset_whose_pod_has_not_changed_yet_is_not_ready() {
        let mut live = settled(&stateful_sets(&options())[0]);
        assert!(is_settled(&live.body));
        live.body["status"]["updateRevision"] = "new".into();
        live.body["status"]["currentRevision"] = "old".into();
        assert!(!is_settled(&live.body));
        live.body["status"]["currentRevision"] = "new".into();
        live.body["metadata"]["generation"] = 2.into();
        assert!(!is_settled(&live.body));
    }
}
