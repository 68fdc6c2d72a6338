//! What a caller, or two, may make a network do.

use std::collections::BTreeSet;

use serde_json::json;

use crate::cluster::{Cluster, TWO_OF_THREE, sessions_in};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_requests_with_one_message_at_once_are_two_sessions_and_two_signatures() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    cluster.start_manager(cluster.config()).await;
    let ids = futures::join!(cluster.submit("the same"), cluster.submit("the same"));
    assert_ne!(ids.0, ids.1);
    for id in [ids.0, ids.1] {
        let status = cluster.ended(id).await;
        assert_eq!(status["status"], "Completed", "{status}");
    }
    let logs = [1, 2, 3].map(|signer| cluster.audit(signer));
    let sessions: BTreeSet<_> = logs.iter().flat_map(|log| sessions_in(log)).collect();
    assert_eq!(sessions.len(), 2);
    let signatures: BTreeSet<[u8; 64]> = logs
        .iter()
        .flatten()
        .filter_map(|event| match event {
            tss_common::audit::Event::Finished { signature, .. } => {
                signature.map(|signature| signature.to_compact())
            }
            _ => None,
        })
        .collect();
    assert_eq!(signatures.len(), 2, "each with a nonce of its own");
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_that_is_used_for_something_else_is_refused_and_nothing_is_signed() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    cluster.start_manager(cluster.config()).await;
    let first = json!({"message": "pay 1 to alice"});
    let (status, accepted) = cluster.post(&first, Some("order 7")).await;
    assert_eq!(status, 201, "{accepted}");
    let id = accepted["request_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(cluster.ended(id).await["status"], "Completed");
    let signed = || (1..=3).map(|signer| cluster.sessions(signer, "signed")).sum::<u64>();
    cluster.until_at_least("both have signed", 2, |_| signed()).await;

    let swaps = [
        json!({"message": "pay 2 to alice"}),
        json!({"message": "pay 1 to alice", "path": "0/1/3"}),
        json!({"message": "pay 1 to alice", "hash": "keccak256"}),
        json!({"message": "pay 1 to alice", "not_after": "2099-01-01T00:00:00Z"}),
    ];
    for swapped in &swaps {
        let (status, problem) = cluster.post(swapped, Some("order 7")).await;
        assert_eq!(status, 422, "{swapped}: {problem}");
    }
    let (status, again) = cluster.post(&first, Some("order 7")).await;
    assert_eq!((status, &again["request_id"]), (200, &accepted["request_id"]));
    // Signers have heard of one request, and of one attempt at it.
    cluster.completes("another").await;
    cluster.until_at_least("both have signed", 4, |_| signed()).await;
    assert_eq!(signed(), 4);
    cluster.stop().await;
}
