//! A broker that repeats, delays and reorders, also what is long over.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use tss_common::bus::Address;
use tss_common::envelope::Header;
use tss_common::wire::Ending;
use tss_mpc::SessionId;
use uuid::Uuid;

use crate::cluster::{Cluster, THREE_OF_FOUR, TWO_OF_THREE, finished_in, index, sessions_in};
use crate::tampering_bus::Passed;

/// Within how long the broker brings what it repeats.
const DELAY_MS: u128 = 60;

/// The same in another order.
pub(crate) fn shuffled<T>(messages: Vec<T>) -> Vec<T> {
    let mut numbered: Vec<(u128, T)> =
        messages.into_iter().map(|message| (Uuid::new_v4().as_u128(), message)).collect();
    numbered.sort_by_key(|(number, _)| *number);
    numbered.into_iter().map(|(_, message)| message).collect()
}

/// Brings messages to signers again. What is for managers is left out: there is none to deceive.
pub(crate) async fn replay(cluster: &Cluster, messages: &[(Address, Bytes)]) {
    for (to, body) in messages {
        if matches!(to, Address::Requests(_) | Address::Rounds(_)) {
            cluster.bus.inject(*to, body.clone()).await;
        }
    }
}

/// Brings everything again to a signer that has forgotten which attempts it has seen. First what makes it
/// begin them: so that they are under way when their old messages come, which would be late otherwise.
pub(crate) async fn replay_to_forgetful(cluster: &Cluster, signer: u8, record: &[(Address, Bytes)]) {
    let begun = |cluster: &Cluster| sessions_in(&cluster.audit(signer)).len() as u64;
    let begins = |(to, body): &&(Address, Bytes)| match to {
        Address::Requests(_) => true,
        _ => Header::peek(body).is_ok_and(|header| header.round == 0),
    };
    let first: Vec<_> = record.iter().filter(begins).cloned().collect();
    let attempts = first.iter().filter(|(to, _)| *to == Address::Requests(index(signer))).count() as u64;
    let before = begun(cluster);
    replay(cluster, &first).await;
    cluster.until_at_least("the attempts have begun again", before + attempts, begun).await;
    replay(cluster, record).await;
    replay(cluster, &shuffled(record.to_vec())).await;
}

/// That each session of each log was begun once, and no session ended twice with a signature.
pub(crate) fn assert_no_session_is_used_twice<'a>(
    logs: impl IntoIterator<Item = &'a Vec<tss_common::audit::Event>>,
) {
    for log in logs {
        let begun = sessions_in(log);
        assert_eq!(begun.iter().collect::<BTreeSet<_>>().len(), begun.len(), "a session was begun twice");
        let signed: Vec<SessionId> =
            finished_in(log).into_iter().filter(|(.., signed)| *signed).filter_map(|(_, id, _)| id).collect();
        assert_eq!(signed.iter().collect::<BTreeSet<_>>().len(), signed.len(), "a session signed twice");
        assert!(signed.iter().all(|session| begun.contains(session)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_session_that_is_replayed_in_any_order_signs_nothing_again() {
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    let attempt = cluster.signs(&[1, 2]).await;
    let record = cluster.bus.record();
    let envelopes =
        |signer| record.iter().filter(|(to, _)| *to == Address::Rounds(index(signer))).count() as u64;
    for (round, messages) in [record.clone(), shuffled(record.clone())].into_iter().enumerate() {
        replay(&cluster, &messages).await;
        for signer in [1, 2] {
            let late = envelopes(signer) * (round as u64 + 1);
            cluster.until_at_least("late", late, |cluster| cluster.dropped(signer, "late")).await;
        }
    }
    // A join of a session that signer 3 never hears of waits a while; all else is late there, too.
    for (to, body) in &record {
        if *to == Address::Rounds(index(1)) {
            cluster.bus.inject(Address::Rounds(index(3)), body.clone()).await;
        }
    }
    cluster.until_at_least("misrouted", 2, |cluster| cluster.dropped(3, "misrouted")).await;

    cluster.signs(&[1, 2]).await;
    for signer in [1, 2] {
        let of_attempt = cluster.finished(signer).into_iter().filter(|(of, ..)| of.0 == attempt.request);
        assert_eq!(of_attempt.count(), 1, "the attempt was taken part in once");
        assert_eq!(cluster.sessions(signer, "signed"), 2);
    }
    assert_no_session_is_used_twice(&[1, 2, 3].map(|signer| cluster.audit(signer)));
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signers_that_were_restarted_take_nothing_of_an_earlier_session() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    let attempt = cluster.signs(&[1, 2]).await;
    let record = cluster.bus.record();
    let first = cluster.finished(1)[0].1.unwrap();
    // Signer 1 has forgotten which attempts it has seen; what it has signed is in its journal.
    cluster.restart_signer(1).await;
    replay_to_forgetful(&cluster, 1, &record).await;
    cluster.until_at_least("wrong session", 1, |cluster| cluster.dropped(1, "wrong_session")).await;
    cluster.until_at_least("late", 1, |cluster| cluster.dropped(2, "late")).await;

    cluster.signs(&[1, 2]).await;
    let log = cluster.audit(1);
    let second = sessions_in(&log).into_iter().find(|session| {
        *session != first && !finished_in(&log).iter().any(|(_, id, signed)| *id == Some(*session) && *signed)
    });
    assert!(second.is_some(), "the repeated attempt is another session, as this signer's nonce is another");
    let signed = cluster
        .outcomes()
        .into_iter()
        .filter(|outcome| outcome.request == attempt.request && matches!(outcome.ending, Ending::Signed(_)));
    assert_eq!(signed.count(), 1);
    assert_no_session_is_used_twice(&[1, 2].map(|signer| cluster.audit(signer)));
    assert_eq!((cluster.banned(1), cluster.banned(2)), (0, 0));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signers_sign_though_each_envelope_comes_three_times_late_and_in_any_order() {
    for (key, quorums) in [
        (&TWO_OF_THREE, [&[1, 2][..], &[1, 3], &[2, 3]]),
        (&THREE_OF_FOUR, [&[1, 2, 3], &[1, 2, 4], &[2, 3, 4]]),
    ] {
        let cluster = Cluster::start(key).await;
        cluster.bus.tamper(|message| match message.to {
            Address::Rounds(_) => (0..3)
                .map(|_| {
                    let milliseconds = 1 + Uuid::new_v4().as_u128() % DELAY_MS;
                    Passed { after: Duration::from_millis(milliseconds as u64), ..message.clone() }
                })
                .collect(),
            _ => vec![message.clone(), message],
        });
        for quorum in quorums {
            cluster.signs(quorum).await;
        }
        let dropped: u64 = (1..=key.threshold.n())
            .map(|signer| cluster.dropped(signer, "duplicate") + cluster.dropped(signer, "late"))
            .sum();
        assert!(dropped > 0);
        for signer in 1..=key.threshold.n() {
            let signed = quorums.iter().filter(|quorum| quorum.contains(&signer)).count() as u64;
            // The second delivery of an attempt is the first one's.
            assert_eq!(
                (cluster.sessions(signer, "signed"), cluster.sessions(signer, "aborted")),
                (signed, 0)
            );
        }
        cluster.assert_nobody_is_blamed();
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_repeats_one_message_without_end_keeps_no_other_from_its_session() {
    let cluster = Cluster::start(&THREE_OF_FOUR).await;
    // Far more often than the messages that one signer may have in a session.
    cluster.bus.tamper(|message| match message.to {
        Address::Rounds(_) => vec![message; 40],
        _ => vec![message],
    });
    cluster.signs(&[1, 2, 3]).await;
    for signer in [1, 2, 3] {
        assert_eq!(cluster.dropped(signer, "overflow"), 0);
        cluster.until_at_least("duplicate", 39, |cluster| cluster.dropped(signer, "duplicate")).await;
    }
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}
