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

/// Whose programs are not changed, or not deleted, now: signers, and while others leave, managers. Their objects' names.
pub fn held(cluster: &Cluster, observed: &Observed, desired: &[Object], now: Timestamp) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    let mut chosen = false;
    let mut renewed = 0;
    for index in cluster.indices() {
        let name = names::signer(&cluster.name, index);
        let object = desired.iter().find(|object| object.kind() == "StatefulSet" && object.name == name);
        let (Some(object), Some(live)) = (object, observed.find("StatefulSet", &name)) else { continue };
        match (is_as_desired(live, object), is_ready(observed, index)) {
            (true, true) => renewed += 1,
            (false, true) if !chosen && others_sign(cluster, observed, index, now) => chosen = true,
            (false, true) => drop(held.insert(name)),
            // One that does not sign has nothing to lose: the change may be what it waits for.
            (_, false) => {}
        }
    }
    // With fewer signers, those before sign until enough of those that stay have their new shares.
    // Managers take to the new shares when as many have them as signed before, and as sign with them.
    let before = observed.previous.as_ref().map_or(0, |previous| previous.threshold);
    let needed = before.max(cluster.threshold.t()).min(cluster.threshold.n());
    if renewed < needed {
        let stays: BTreeSet<String> =
            cluster.indices().map(|index| names::signer(&cluster.name, index)).collect();
        let sets = observed.live.iter().filter(|live| live.kind == "StatefulSet" && live.owned);
        let leaving: Vec<String> =
            sets.map(|live| live.name.clone()).filter(|name| !stays.contains(name)).collect();
        // Managers with the next roster do not know them any more.
        let manager = names::manager(&cluster.name);
        if !leaving.is_empty() && observed.find("Deployment", &manager).is_some() {
            held.insert(manager);
        }
        held.extend(leaving);
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
    use crate::cluster::fixtures::{CLUSTER, cluster, later, object, options, record, settled, signer_pod};
    use crate::cluster::record::KeyRecord;
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

    /// Which StatefulSets are neither changed nor deleted while a key of three of five goes to two of three: `new` have the
    /// new shares, `ready` are ready.
    fn held_back(new: &[u8], ready: &[u8], knows_before: bool) -> Vec<String> {
        let (before, after) = (later(2, &"22".repeat(32), 3, 5), later(3, &"33".repeat(32), 2, 3));
        let sets = |key: &KeyRecord| -> Vec<Object> {
            let objects = build(&cluster().with_key(key), &options(), &[], Some(key)).unwrap();
            objects.into_iter().filter(|object| object.kind() == "StatefulSet").collect()
        };
        let (old, desired) = (sets(&before), sets(&after));
        let live = (1..=5_u8).map(|index| {
            settled(&if new.contains(&index) { &desired } else { &old }[usize::from(index) - 1])
        });
        let pods: Vec<_> = (1..=5).map(|index| signer_pod(index, ready.contains(&index), "node")).collect();
        let mut observed = observe(object(CLUSTER), live.collect(), &pods);
        observed.previous = Some(before).filter(|_| knows_before);
        let now = SOON.parse().unwrap();
        held(&cluster().with_key(&after), &observed, &desired, now).into_iter().collect()
    }

    #[test]
    fn signers_that_leave_go_when_enough_of_those_that_stay_have_new_shares() {
        let names = |indices: &[u8]| indices.iter().map(|&i| names::signer("demo", i)).collect::<Vec<_>>();
        let all = [1, 2, 3, 4, 5];
        assert_eq!(held_back(&[], &all, true), names(&[2, 3, 4, 5]));
        assert_eq!(held_back(&[1], &all, true), names(&[3, 4, 5]));
        // Two sign with the new shares, and managers wait for as many as signed before.
        assert_eq!(held_back(&[1, 2], &all, true), names(&[4, 5]));
        assert_eq!(held_back(&[1, 2, 3], &[1, 2, 4, 5], true), names(&[4, 5]));
        assert_eq!(held_back(&[1, 2, 3], &all, true), names(&[]));
        // Where it is not known how many that were, as many as sign.
        assert_eq!(held_back(&[1], &all, false), names(&[3, 4, 5]));
        assert_eq!(held_back(&[1, 2], &all, false), names(&[]));
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
