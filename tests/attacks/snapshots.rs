//! A signer that has been where it is before: restored from an old copy of its files, or run twice.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::sync::watch;
use tss_common::audit::Event;
use tss_common::bus::memory::MemoryBus;
use tss_common::bus::{Address, Bus, BusError, BusState, Subscription};
use tss_common::wire::{Attempt, Ending};
use tss_mpc::Blame;
use tss_signer::{Signer, SignerOptions};

use crate::cluster::{
    Cluster, SOON, TWO_OF_THREE, assert_signs, audit_of, from_now, index, sessions_in, until,
};
use crate::replays::{assert_no_session_is_used_twice, replay_to_forgetful};
use crate::tampering_bus::TamperingBus;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_restored_from_an_old_snapshot_repeats_no_session_and_works_on() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    for _ in 0..2 {
        cluster.signs(&[1, 2]).await;
    }
    cluster.stop_signer(1).await;
    let (folder, snapshot) = (cluster.data_dir(1), cluster.data_dir(1).with_extension("snapshot"));
    copy(&folder, &snapshot);
    cluster.start_signer(1).await;
    let forgotten = [cluster.signs(&[1, 2]).await, cluster.signs(&[1, 3]).await];
    let record = cluster.bus.record();
    cluster.stop_signer(1).await;
    let lost = cluster.audit(1);
    std::fs::remove_dir_all(&folder).unwrap();
    copy(&snapshot, &folder);
    cluster.start_signer(1).await;

    // The signer knows nothing of two of these sessions, and each of their messages is properly signed.
    replay_to_forgetful(&cluster, 1, &record).await;
    cluster.until_at_least("wrong session", 2, |cluster| cluster.dropped(1, "wrong_session")).await;
    cluster.signs(&[1, 2]).await;
    cluster.signs(&[1, 3]).await;

    let restored = cluster.audit(1);
    let known = audit_of(&snapshot, 1);
    assert_eq!(restored[..known.len()], known[..], "it goes on where the snapshot was made");
    let sessions = |log: &[Event]| sessions_in(log).into_iter().collect::<BTreeSet<_>>();
    let since = sessions(&restored[known.len()..]);
    assert!(since.is_disjoint(&sessions(&lost)), "a session came back");
    for attempt in &forgotten {
        // It began the repeated attempts, for it did not know them. Alone: the others had ended them.
        let signed = cluster.outcomes().into_iter().filter(|outcome| {
            outcome.request == attempt.request && matches!(outcome.ending, Ending::Signed(_))
        });
        assert_eq!(signed.count(), 1);
    }
    assert_no_session_is_used_twice(&[lost, restored, cluster.audit(2), cluster.audit(3)]);
    assert_eq!((1..=3).map(|signer| cluster.banned(signer)).sum::<u64>(), 0);
    cluster.stop().await;
}

/// The bus as a second process of one signer sees it: it has its own copy of all that comes.
struct SecondView {
    bus: Arc<TamperingBus>,
    own: Arc<MemoryBus>,
}

#[async_trait]
impl Bus for SecondView {
    async fn publish(&self, to: Address, body: Bytes) -> Result<(), BusError> {
        self.bus.publish(to, body).await
    }

    async fn subscribe(&self, at: Address, capacity: u16) -> Result<Subscription, BusError> {
        self.own.subscribe(at, capacity).await
    }

    fn state(&self) -> watch::Receiver<BusState> {
        self.own.state()
    }

    async fn close(&self) {
        self.own.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_runs_twice_repeats_no_session_and_requests_still_end() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    cluster.signs(&[1, 2]).await;
    cluster.stop_signer(1).await;
    let second_dir = cluster.data_dir(1).with_extension("second");
    copy(&cluster.data_dir(1), &second_dir);
    let before = cluster.audit(1).len();
    cluster.start_signer(1).await;

    let own = MemoryBus::new();
    let view = SecondView { bus: cluster.bus.clone(), own: own.clone() };
    let (me, copies) = (index(1), own.clone());
    cluster.bus.tamper(move |message| {
        if message.to == Address::Requests(me) || message.to == Address::Rounds(me) {
            let published = copies.publish(message.to, message.body.clone()).now_or_never();
            published.expect("it does not wait").unwrap();
        }
        vec![message]
    });
    let options = SignerOptions { bus: Arc::new(view), data_dir: second_dir.clone(), ..cluster.options(1) };
    let second = Signer::start(options).await.unwrap();

    let mut attempts = Vec::new();
    for other in [2, 3, 2, 3] {
        let attempt = Attempt { expires: from_now(5), ..cluster.attempt(&[1, other], b"twice") };
        cluster.ask(&attempt).await;
        attempts.push(attempt);
    }
    // Two processes answer in the name of one signer. One of the two is in the session that the other
    // signer is in; the other one waits in vain.
    for attempt in &attempts {
        let endings = until("both processes have ended the attempt", || {
            let outcomes = cluster.outcomes().into_iter();
            let endings: Vec<Ending> = outcomes
                .filter(|outcome| (outcome.request, outcome.signer) == (attempt.request, index(1)))
                .map(|outcome| outcome.ending)
                .collect();
            (endings.len() == 2).then_some(endings)
        })
        .await;
        for ending in endings {
            match ending {
                Ending::Signed(signature) => {
                    let intent = &attempt.intent;
                    assert_signs(&signature, &cluster.key.public_key(intent), intent.digest);
                }
                Ending::Aborted(abort) => assert!(matches!(abort.blame, Blame::Timeout { .. }), "{abort}"),
                ending => panic!("{ending:?}"),
            }
        }
    }
    let (first_log, second_log) = (cluster.audit(1), audit_of(&second_dir, 1));
    let since = |log: &[Event]| sessions_in(&log[before..]).into_iter().collect::<BTreeSet<_>>();
    assert!(since(&first_log).is_disjoint(&since(&second_log)), "two processes in one session");
    assert_no_session_is_used_twice(&[first_log, second_log, cluster.audit(2), cluster.audit(3)]);

    // With one of them gone all is well.
    second.stop(SOON).await;
    own.close().await;
    cluster.bus.behave();
    cluster.signs(&[1, 2]).await;
    assert_eq!((1..=3).map(|signer| cluster.banned(signer)).sum::<u64>(), 0);
    cluster.stop().await;
}
