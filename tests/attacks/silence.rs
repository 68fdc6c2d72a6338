//! A signer that stops answering: it never joins, joins and says no more, or leaves in any round. Another
//! quorum signs, within the request's time.

use std::time::Instant;

use tss_common::bus::Address;
use tss_common::config::Config;
use tss_common::envelope::Header;
use tss_common::wire::{self, Attempt};
use tss_mpc::Blame;

use crate::cluster::{Cluster, SOON, THREE_OF_FOUR, TWO_OF_THREE, from_now, index, indices};
use crate::rogue_engine::RogueEngine;

/// Who is silent here.
const SILENT: u8 = 3;

/// Requests at once: enough that every signer is in a quorum.
const REQUESTS: usize = 4;

/// That a manager's requests complete though one signer falls silent, and that it was in some quorum.
async fn assert_others_sign(mut cluster: Cluster, what: &str) {
    println!("{what}");
    cluster.start_manager(Config { attempt_timeout: 3, ..cluster.config() }).await;
    let began = Instant::now();
    let messages: Vec<String> = (0..REQUESTS).map(|number| format!("message {number}")).collect();
    let requests = messages.iter().map(|message| cluster.completes(message));
    let statuses = futures::future::join_all(requests).await;
    assert!(began.elapsed() < SOON);
    let met = cluster.bus.record().into_iter().any(|(to, body)| {
        matches!(to, Address::Requests(_))
            && wire::from_json::<Attempt>(&body).unwrap().quorum.contains(index(SILENT))
    });
    assert!(met, "the silent one was asked");
    assert!(statuses.iter().any(|status| status["attempts"].as_u64() > Some(1)), "{statuses:?}");
    assert!(cluster.metric("tss_attempts_total{ending=\"timeout\"}") > 0);
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}

/// A signer that is there but whose joins never arrive.
fn never_joins(cluster: &Cluster) {
    cluster.bus.tamper(|message| {
        let silent = matches!(message.to, Address::Rounds(_))
            && Header::peek(&message.body).is_ok_and(|header| header.from == index(SILENT));
        if silent { Vec::new() } else { vec![message] }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_quorum_signs_when_a_signer_never_joins() {
    for key in [&TWO_OF_THREE, &THREE_OF_FOUR] {
        let cluster = Cluster::start(key).await;
        never_joins(&cluster);
        assert_others_sign(cluster, "never joins").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_quorum_signs_when_one_of_two_falls_silent_in_any_round() {
    for round in 1..=3 {
        let cluster = Cluster::with_rogue(&TWO_OF_THREE, SILENT, RogueEngine::silent_from(round)).await;
        assert_others_sign(cluster, &format!("silent from round {round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_quorum_signs_when_one_of_three_falls_silent_in_any_round() {
    for round in 1..=4 {
        let cluster = Cluster::with_rogue(&THREE_OF_FOUR, SILENT, RogueEngine::silent_from(round)).await;
        assert_others_sign(cluster, &format!("silent from round {round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_silent_one_is_named_and_nobody_else() {
    for round in 1..=4 {
        let cluster = Cluster::with_rogue(&THREE_OF_FOUR, SILENT, RogueEngine::silent_from(round)).await;
        let attempt = Attempt { expires: from_now(6), ..cluster.attempt(&[1, 2, SILENT], b"silence") };
        cluster.ask(&attempt).await;
        for signer in [1, 2] {
            let abort = cluster.abort(&attempt, signer).await;
            assert_eq!(abort.blame, Blame::Timeout { missing: indices(&[SILENT]) }, "round {round}: {abort}");
        }
        cluster.assert_nobody_is_blamed();
        cluster.signs(&[1, 2, 4]).await;
        cluster.stop().await;
    }
}
