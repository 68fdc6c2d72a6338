//! A signer that cheats in signing: with a wrong share, wrong or senseless messages, two messages in one
//! place, another broadcast for each. It is named where one can tell, suspected where not, and whoever
//! has seen it cheat never signs with it again.

use std::sync::Arc;
use std::time::Duration;

use tss_common::audit::Event;
use tss_common::bus::Address;
use tss_common::envelope::Header;
use tss_common::wire::{self, Attempt, Ending, Outcome};
use tss_mpc::{Abort, Blame};
use uuid::Uuid;

use crate::cluster::{
    ANOTHER_TWO_OF_THREE, Cluster, Key, THREE_OF_FOUR, TWO_OF_THREE, from_now, index, indices, until,
};
use crate::equivocator::{Manner, equivocate};
use crate::rogue_engine::RogueEngine;
use crate::tampering_bus::Passed;

/// Who cheats here.
const ROGUE: u8 = 3;

/// That signer 1 has caught the rogue in a session of their own, will never meet it again, also after a
/// restart, and can prove what it sent; and that signers 1 and 2 sign.
async fn assert_banned_for_good(mut cluster: Cluster, what: &str) {
    println!("{what}");
    let attempt = brief(&cluster, &[1, ROGUE]);
    cluster.ask(&attempt).await;
    let abort = cluster.abort(&attempt, 1).await;
    assert_eq!(abort.culprits(), indices(&[ROGUE]), "{what}: {abort}");
    assert_eq!(cluster.banned(1), 1);
    let aborts = "tss_signer_aborts_total{kind=\"cheating\",signer=\"1\"}";
    cluster.until_at_least("counted", 1, |cluster| cluster.metric(aborts)).await;
    cluster.assert_evidence(1, ROGUE);

    for restarted in [false, true] {
        if restarted {
            cluster.restart_signer(1).await;
            assert_eq!(cluster.banned(1), 1, "the ban is durable");
        }
        let again = brief(&cluster, &[1, ROGUE]);
        cluster.ask(&again).await;
        match cluster.ending(&again, 1).await {
            Ending::Unable(reason) => assert!(reason.contains("never again signs with {3}"), "{reason}"),
            ending => panic!("{what}: {ending:?}"),
        }
        cluster.signs(&[1, 2]).await;
    }
    // The bystander has seen nothing, and takes nobody's word for it.
    assert_eq!(cluster.banned(2), 0);
    assert!(cluster.audit(2).iter().all(|event| event.kind() != "cheating"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_sends_wrong_messages_in_any_round_is_banned_with_proof() {
    for round in 1..=3 {
        let rogue = |engine| Cluster::with_rogue(&TWO_OF_THREE, ROGUE, engine);
        let flipping = rogue(RogueEngine::flipping(round)).await;
        assert_banned_for_good(flipping, &format!("a changed bit in round {round}")).await;
        let babbling = rogue(RogueEngine::babbling(round)).await;
        assert_banned_for_good(babbling, &format!("nonsense in round {round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_says_two_things_in_one_place_is_banned_with_proof_of_both() {
    // In the last round there may be no one left to hear the second.
    for round in 1..=2 {
        let engine = RogueEngine::contradicting_itself(round);
        let cluster = Cluster::with_rogue(&TWO_OF_THREE, ROGUE, engine).await;
        let attempt = brief(&cluster, &[1, ROGUE]);
        cluster.ask(&attempt).await;
        assert_eq!(cluster.abort(&attempt, 1).await.culprits(), indices(&[ROGUE]));
        cluster.assert_evidence(1, ROGUE);
        let both = cluster.audit(1).into_iter().any(|event| match event {
            Event::Cheating { evidence, .. } => {
                evidence.iter().filter(|signed| signed.round == round).count() == 2
            }
            _ => false,
        });
        assert!(both, "the rogue signed two messages for round {round}");
        cluster.signs(&[1, 2]).await;
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_with_a_share_of_another_key_gets_nothing_signed() {
    let engine = RogueEngine::with_share(ANOTHER_TWO_OF_THREE.json(ROGUE).to_vec());
    let cluster = Cluster::with_rogue(&TWO_OF_THREE, ROGUE, engine).await;
    let attempt = brief(&cluster, &[1, ROGUE]);
    cluster.ask(&attempt).await;
    let abort = cluster.abort(&attempt, 1).await;
    match &abort.blame {
        Blame::Cheating { culprits: named, .. } | Blame::Unattributed { suspects: named } => {
            assert_eq!(*named, indices(&[ROGUE]), "{abort}");
        }
        Blame::Timeout { .. } | Blame::Local => panic!("{abort}"),
    }
    assert_eq!((cluster.sessions(1, "signed"), cluster.sessions(ROGUE, "signed")), (0, 0));
    cluster.signs(&[1, 2]).await;
    assert_eq!(cluster.banned(2), 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_three_a_cheat_makes_no_honest_signers_ban_each_other() {
    for (what, engine) in [
        ("round 1", RogueEngine::flipping(1)),
        ("round 2", RogueEngine::flipping(2)),
        ("its part of the signature", RogueEngine::flipping(3)),
        ("its echo", RogueEngine::babbling(4)),
        ("two messages in round 1", RogueEngine::contradicting_itself(1)),
    ] {
        println!("{what}");
        let cluster = Cluster::with_rogue(&THREE_OF_FOUR, ROGUE, engine).await;
        let attempt = brief(&cluster, &[1, 2, ROGUE]);
        cluster.ask(&attempt).await;
        let aborts: [Abort; 2] = [cluster.abort(&attempt, 1).await, cluster.abort(&attempt, 2).await];
        // One at least has seen it; who only waits for one who has left blames nobody.
        let named = |abort: &Abort| match &abort.blame {
            Blame::Cheating { culprits: named, .. } | Blame::Unattributed { suspects: named } => {
                named.contains(&index(ROGUE))
            }
            Blame::Timeout { .. } | Blame::Local => false,
        };
        assert!(aborts.iter().any(named), "{aborts:?}");
        for abort in &aborts {
            assert!(abort.culprits().is_subset(&indices(&[ROGUE])), "{what}: {abort}");
        }
        assert_eq!((cluster.sessions(1, "signed"), cluster.sessions(2, "signed")), (0, 0));
        assert_honest_bans_are_of(&cluster, ROGUE);
        cluster.signs(&[1, 2, 4]).await;
        assert_eq!(cluster.banned(4), 0);
        cluster.stop().await;
    }
}

/// That no honest signer has banned another honest one.
fn assert_honest_bans_are_of(cluster: &Cluster, rogue: u8) {
    for signer in (1..=cluster.key.threshold.n()).filter(|signer| *signer != rogue) {
        for event in cluster.audit(signer) {
            if let Event::Cheating { culprits, .. } = event {
                assert_eq!(culprits, indices(&[rogue]), "signer {signer}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_the_signature_that_is_another_for_each_is_noticed_before_there_is_one() {
    for manner in [Manner::Plain, Manner::Cunning] {
        let cluster = Cluster::start(&THREE_OF_FOUR).await;
        equivocate(&cluster.bus, Arc::new(cluster.endpoint(ROGUE)), index(2), 3, manner);
        let attempt = brief(&cluster, &[1, 2, ROGUE]);
        cluster.ask(&attempt).await;
        let suspects = |signers: &[u8]| Blame::Unattributed { suspects: indices(signers) };
        // Signer 1 sees that 2 has received something else: of the rogue, or so signer 2 says.
        assert_eq!(cluster.abort(&attempt, 1).await.blame, suspects(&[2, ROGUE]));
        let victim = cluster.abort(&attempt, 2).await;
        match manner {
            Manner::Plain => {
                assert_eq!(victim.culprits(), indices(&[ROGUE]), "{victim}");
                cluster.assert_evidence(2, ROGUE);
            }
            Manner::Cunning => assert_eq!(victim.blame, suspects(&[1, ROGUE])),
        }
        assert_eq!((cluster.sessions(1, "signed"), cluster.sessions(2, "signed")), (0, 0));
        assert_honest_bans_are_of(&cluster, ROGUE);
        cluster.bus.behave();
        cluster.signs(&[1, 2, 4]).await;
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_of_the_signatures_parts_that_is_another_for_each_is_its_senders() {
    let cluster = Cluster::start(&THREE_OF_FOUR).await;
    equivocate(&cluster.bus, Arc::new(cluster.endpoint(ROGUE)), index(2), 4, Manner::Plain);
    let attempt = brief(&cluster, &[1, 2, ROGUE]);
    cluster.ask(&attempt).await;
    // All parts were right, so another than the victim may have the signature.
    let victim = cluster.abort(&attempt, 2).await;
    assert_eq!(victim.culprits(), indices(&[ROGUE]), "{victim}");
    assert_eq!(cluster.sessions(2, "signed"), 0);
    assert_honest_bans_are_of(&cluster, ROGUE);
    cluster.bus.behave();
    cluster.signs(&[1, 2, 4]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_babbles_before_it_joins_crowds_out_nobody_else() {
    let cluster = Cluster::start(&THREE_OF_FOUR).await;
    let rogue = cluster.endpoint(ROGUE);
    // Signer 2 has all joins, and speaks, while signer 1 still waits for the rogue's and hears it babble.
    cluster.bus.tamper(move |message| {
        let header = Header::peek(&message.body).ok();
        match header {
            Some(header)
                if message.to == Address::Rounds(index(1))
                    && (header.from, header.round) == (index(ROGUE), 0) =>
            {
                let babble = |round| {
                    let header = Header { round, to: Some(index(1)), ..header.clone() };
                    Passed::now(message.to, rogue.write(header, b"babble").unwrap())
                };
                let late = Passed { after: Duration::from_millis(500), ..message.clone() };
                (1..=10).map(babble).chain([late]).collect()
            }
            _ => vec![message],
        }
    });
    let attempt = brief(&cluster, &[1, 2, ROGUE]);
    // Signer 1 is the first to hear of the attempt: earlier, all of it would be dropped as late.
    cluster.tell(1, &attempt).await;
    until("signer 1 has joined", || {
        let record = cluster.bus.record();
        record.iter().find(|(to, _)| *to == Address::Rounds(index(2))).map(|_| ())
    })
    .await;
    cluster.tell(2, &attempt).await;
    cluster.tell(ROGUE, &attempt).await;
    // What signer 2 said was kept: nothing of it is missing.
    let abort = cluster.abort(&attempt, 1).await;
    assert_eq!(abort.blame, Blame::Timeout { missing: indices(&[ROGUE]) }, "{abort}");
    assert!(cluster.dropped(1, "overflow") >= 8);
    cluster.bus.behave();
    cluster.signs(&[1, 2, 4]).await;
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}

/// An attempt that ends soon: whoever is not told why a session ended waits for its end.
fn brief(cluster: &Cluster, signers: &[u8]) -> Attempt {
    Attempt { expires: from_now(8), ..cluster.attempt(signers, Uuid::new_v4().as_bytes()) }
}

/// The attempts that a manager has made so far.
fn attempts(cluster: &Cluster) -> Vec<Attempt> {
    let record = cluster.bus.record().into_iter();
    let requests = record.filter(|(to, _)| matches!(to, Address::Requests(_)));
    let mut attempts: Vec<Attempt> = Vec::new();
    for (_, body) in requests {
        let attempt: Attempt = wire::from_json(&body).unwrap();
        // Each is told to several.
        if !attempts.iter().any(|one| (one.request, one.attempt) == (attempt.request, attempt.attempt)) {
            attempts.push(attempt);
        }
    }
    attempts
}

/// That no signer took part in an attempt with one that it had seen cheat.
fn assert_no_session_of_the_banned(cluster: &Cluster) {
    for signer in 1..=cluster.key.threshold.n() {
        let mut banned = std::collections::BTreeSet::new();
        for event in cluster.audit(signer) {
            match event {
                Event::Cheating { culprits, .. } => banned.extend(culprits),
                Event::Accepted { quorum, .. } => {
                    assert!(quorum.iter().all(|member| !banned.contains(&member)), "signer {signer}");
                }
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_completes_with_the_honest_ones_and_a_banned_pair_never_meets_again() {
    for (key, rogue_pairs) in [(&TWO_OF_THREE, 2), (&THREE_OF_FOUR, 3)] {
        completes_despite_a_cheat(key, rogue_pairs).await;
    }
}

async fn completes_despite_a_cheat(key: &'static Key, rogue_pairs: u64) {
    let mut cluster = Cluster::with_rogue(key, ROGUE, RogueEngine::flipping(2)).await;
    cluster.start_manager(cluster.config()).await;
    // Until each honest signer has met the cheat; then it is never asked again.
    for number in 0..64 {
        cluster.completes(&format!("despite a cheat {number}")).await;
        if honest_bans(&cluster) == rogue_pairs {
            break;
        }
    }
    // With three in a quorum, one may ban the rogue while the other waits; both need not have met it.
    assert!(honest_bans(&cluster) >= rogue_pairs.min(2), "{}", honest_bans(&cluster));
    assert_no_session_of_the_banned(&cluster);
    assert_honest_bans_are_of(&cluster, ROGUE);
    let presence = cluster.managing().shared().presence.clone();
    until("the manager has heard of the bans", || {
        let bans = presence.live().into_iter().filter(|heard| heard.banned == indices(&[ROGUE])).count();
        (bans as u64 >= honest_bans(&cluster)).then_some(())
    })
    .await;
    if honest_bans(&cluster) == rogue_pairs {
        let before = attempts(&cluster).len();
        for number in 0..5 {
            let status = cluster.completes(&format!("without the cheat {number}")).await;
            assert_eq!(status["attempts"], 1, "{status}");
        }
        assert!(attempts(&cluster)[before..].iter().all(|attempt| !attempt.quorum.contains(index(ROGUE))));
    }
    cluster.stop().await;
}

fn honest_bans(cluster: &Cluster) -> u64 {
    let honest = (1..=cluster.key.threshold.n()).filter(|signer| *signer != ROGUE);
    honest.map(|signer| cluster.banned(signer)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_slanders_the_others_keeps_no_request_from_its_end() {
    let cluster_of = |slander: fn(&Attempt) -> Ending| async move {
        let mut cluster = Cluster::start(&TWO_OF_THREE).await;
        cluster.start_manager(cluster.config()).await;
        let rogue = cluster.endpoint(ROGUE);
        cluster.bus.tamper(move |message| {
            let Address::Requests(to) = message.to else { return vec![message] };
            let attempt: Attempt = wire::from_json(&message.body).unwrap();
            if !attempt.quorum.contains(index(ROGUE)) {
                return vec![message];
            }
            // Neither takes part when the rogue is there, and the rogue says at once whose fault it is.
            if to != index(ROGUE) {
                return Vec::new();
            }
            let Attempt { request, attempt: number, .. } = attempt;
            let ending = slander(&attempt);
            let outcome = Outcome { request, attempt: number, session: None, signer: to, ending };
            let body = wire::to_json(&rogue.sign(&outcome).unwrap()).unwrap();
            vec![Passed::now(Address::Results, body)]
        });
        cluster
    };
    let slanders: [fn(&Attempt) -> Ending; 4] = [
        |attempt| Ending::Aborted(Abort::timeout(attempt.quorum.others(index(ROGUE)).collect())),
        |_| Ending::Aborted(Abort::timeout(indices(&[1, 2]))),
        |attempt| {
            let innocent = attempt.quorum.others(index(ROGUE)).next().unwrap();
            Ending::Aborted(Abort::cheating(innocent, "slander"))
        },
        |_| {
            Ending::Aborted(Abort {
                blame: Blame::Unattributed { suspects: indices(&[1, 2]) },
                reason: String::new(),
            })
        },
    ];
    for slander in slanders {
        let cluster = cluster_of(slander).await;
        for number in 0..6 {
            let status = cluster.completes(&format!("despite slander {number}")).await;
            assert!(status["attempts"].as_u64().unwrap() <= 4, "{status}");
        }
        cluster.assert_nobody_is_blamed();
        cluster.stop().await;
    }
}
