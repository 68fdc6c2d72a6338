//! An operator that is killed anywhere leaves nothing that the next one cannot go on from.
//!
//! Killed before its request is sent is the same to others as killed before the answer to the request before comes: it
//! never does anything again. A request whose answer alone is lost is something else, as the operator lives on.

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::json;

use crate::fixpoint::assert_whole;
use crate::key_generation::{assert_one_key, records};
use crate::kubelet::Kubelet;
use crate::operator::Operator;
use crate::server::{cluster, in_namespace};
use crate::wire::{Fault, How};

/// How many are killed at once.
const AT_ONCE: usize = 12;

/// From nothing to a cluster that signs, with an operator that dies on the way, and another. Yields whether it died.
async fn survives(fault: Fault) -> bool {
    let mut died = false;
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let records = records(namespace).await;
        namespace.apply(cluster("wallet", 2, 2)).await;
        let mortal = Operator::with_fault(namespace, fault).await;
        let settled = mortal.settle("wallet").await;
        died = mortal.wire.has_failed();
        assert!(settled || died, "{fault:?}");
        let next = Operator::new(namespace).await;
        next.settle("wallet").await;
        assert_one_key(namespace, "wallet", &records, 2).await;
        assert_whole(namespace, "wallet", 2).await;
    })
    .await;
    died
}

/// At the first request, the one `step` after it, and so on, until one comes to the end unharmed. Yields how often
/// it did not.
async fn at_every_request(how: How, step: usize) -> usize {
    let faults = (0..).step_by(step).map(|at| Fault { at, how });
    let died = futures::stream::iter(faults).map(survives).buffered(AT_ONCE);
    died.take_while(|died| std::future::ready(*died)).count().await
}

#[tokio::test]
async fn an_operator_that_is_killed_at_any_request_of_key_generation_leaves_one_key() {
    let count = at_every_request(How::Killed, 1).await;
    println!("killed at each of {count} requests");
    assert!(count > 40, "{count}");
}

#[tokio::test]
async fn an_answer_that_is_lost_at_any_other_request_of_key_generation_leaves_one_key() {
    // Each takes seconds, and neighbours are alike.
    let count = at_every_request(How::AnswerLost, 2).await;
    println!("the answers to {count} requests were lost, one in each run");
    assert!(count > 20, "{count}");
}

#[tokio::test]
async fn an_operator_that_is_killed_at_any_request_of_a_rollout_is_taken_over_from() {
    in_namespace(async |namespace| {
        let _kubelet = Kubelet::start(namespace);
        let records = records(namespace).await;
        namespace.apply(cluster("wallet", 2, 3)).await;
        let next = Operator::new(namespace).await;
        next.settle("wallet").await;
        let mut killed = Vec::new();
        for how in [How::Killed, How::KilledAfter, How::AnswerLost] {
            for at in 0.. {
                let image = format!("s:{how:?}-{at}").to_lowercase();
                namespace
                    .change("wallet", json!({"signer": {"image": image}, "manager": {"image": image}}))
                    .await;
                let mortal = Operator::with_fault(namespace, Fault { at, how }).await;
                mortal.settle("wallet").await;
                next.settle("wallet").await;
                for set in namespace.list::<StatefulSet>().await {
                    let text = serde_json::to_string(&set.spec).unwrap();
                    assert!(text.contains(&format!("\"image\":\"{image}\"")), "{at} {how:?}: {text}");
                }
                assert_one_key(namespace, "wallet", &records, 3).await;
                if !mortal.wire.has_failed() {
                    killed.push(at);
                    break;
                }
            }
        }
        println!("killed at each of {killed:?} requests");
        assert!(killed.iter().all(|&count| count >= 5), "{killed:?}");
        assert_whole(namespace, "wallet", 3).await;
    })
    .await;
}
