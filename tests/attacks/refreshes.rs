//! New shares while the old ones sign on: cut off at any step, and with a broker and a manager that would have the signers
//! end with shares of different epochs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tss_common::bus::Address;
use tss_common::config::Config;
use tss_common::envelope::Header;
use tss_common::wire::{self, Heartbeat, Notice, Refresh, RefreshStep, Refreshing};
use tss_manager::store::{self, KeyRecord};
use tss_mpc::{AnySignature, Dkls23, Engine as _, Payload, Quorum, SessionId, SignSetup};
use tss_signer::Signer;
use uuid::Uuid;

use crate::cluster::{Cluster, TWO_OF_THREE, from_now, index, until};

const ALL: [u8; 3] = [1, 2, 3];

fn failed(step: &RefreshStep) -> bool {
    matches!(step, RefreshStep::Failed(_))
}

/// Refreshes the key as it should be.
async fn refreshes(cluster: &Cluster, ends: u64) {
    cluster.refresh(cluster.new_refresh(ends)).await;
    cluster.until_epoch(ends + 1).await;
    for signers in [[1, 2], [1, 3], [2, 3]] {
        cluster.signs_at(ends + 1, &signers).await;
    }
}

/// Why a refresh came to nothing at a signer.
async fn why(cluster: &Cluster, signer: u8, id: Uuid) -> String {
    until(&format!("signer {signer} gives up"), || match cluster.heartbeat(signer)?.refresh? {
        Refreshing { id: of, step: RefreshStep::Failed(reason) } if of == id => Some(reason),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_refreshed_while_requests_come_and_all_of_them_are_signed() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    cluster.start_manager(cluster.config()).await;
    let old: Vec<_> = ALL.map(|signer| std::fs::read(cluster.share_file(signer)).unwrap()).into();
    let done = AtomicBool::new(false);
    let load = async {
        let mut signed = 0;
        while !done.load(Ordering::Relaxed) {
            cluster.completes(&format!("message {signed}")).await;
            signed += 1;
        }
        signed
    };
    let refresh = async {
        for epoch in 1..=2 {
            cluster.refresh(cluster.new_refresh(epoch)).await;
            cluster.until_epoch(epoch + 1).await;
        }
        // The manager, too, goes on with the new shares.
        until("the manager has the epoch on record", || {
            cluster.managing().shared().keys.get("default").filter(|key| key.epoch == 3)
        })
        .await;
        cluster.completes("after it").await;
        done.store(true, Ordering::Relaxed);
    };
    let (signed, ()) = tokio::join!(load, refresh);
    assert!(signed > 0);
    cluster.assert_nobody_is_blamed();
    let kinds: Vec<_> = cluster.audit(1).iter().map(|event| event.kind()).collect();
    assert_eq!(kinds.iter().filter(|kind| ["renew", "settled"].contains(kind)).count(), 4, "{kinds:?}");

    // Nothing of the old shares is left, and whoever kept one cannot put it back.
    cluster.stop_signer(1).await;
    let folder = cluster.share_file(1).parent().unwrap().to_owned();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            assert!(!old.contains(&std::fs::read(&path).unwrap()), "{}", path.display());
        }
    }
    std::fs::write(cluster.share_file(1), &old[0]).unwrap();
    let error = format!("{:#}", Signer::start(cluster.options(1)).await.err().expect("it is refused"));
    assert!(error.contains("epoch 1, but this signer has held epoch 3"), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_that_are_as_old_as_they_may_be_are_made_anew_without_being_asked() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    let config = Config { refresh_hours: 2, ..cluster.config() };
    let (core, hours) = (cluster.key.share(1).core, |ago: i64| from_now(-3600 * ago));
    let record = KeyRecord {
        id: "default".into(),
        epoch: 1,
        threshold: core.threshold,
        public_key: core.secp256k1().unwrap().public_key,
        chain_code: core.chain_code,
        since: Some(hours(3)),
    };
    store::open(&config).unwrap().pin_key(&record).await.unwrap();
    cluster.start_manager(config).await;
    cluster.until_epoch(2).await;
    let record = until("the manager has the epoch on record", || {
        cluster.managing().shared().keys.get("default").filter(|key| key.epoch == 2)
    })
    .await;
    // It is not as old for some time.
    assert!(record.since.is_some_and(|since| since > hours(1)), "{record:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_of_two_epochs_do_not_sign_together() {
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    refreshes(&cluster, 1).await;
    // A share stolen before and one stolen after: the machines of both, with nobody in between who looks at epochs.
    let quorum = Quorum::new([index(1), index(2)]).unwrap();
    let machines = [(1, cluster.key.share(1)), (2, cluster.stored_share(2))].map(|(signer, share)| {
        let setup = SignSetup {
            session: SessionId([9; 32]),
            quorum: quorum.clone(),
            payload: Payload::Digest([7; 32]),
            path: "0/1/2".parse().unwrap(),
        };
        (index(signer), Dkls23.open(&share).unwrap().sign(setup).unwrap())
    });
    let signed: Result<BTreeMap<_, AnySignature>, _> = tss_mpc::run_local(machines.into());
    assert!(signed.is_err());
    cluster.stop().await;
}

/// Has the broker swallow whatever signer 3 sends in this refresh, after so many messages.
fn silence_after(cluster: &Cluster, id: Uuid, messages: usize) -> Arc<AtomicUsize> {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    cluster.bus.tamper(move |message| {
        let of_the_refresh = matches!(message.to, Address::Rounds(_))
            && Header::peek(&message.body)
                .is_ok_and(|header| header.request == id && header.from == index(3));
        if of_the_refresh && counted.fetch_add(1, Ordering::Relaxed) >= messages {
            return Vec::new();
        }
        vec![message]
    });
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_is_gone_after_any_message_leaves_one_epoch_that_signs() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    // How many messages there are.
    let whole = cluster.new_refresh(1);
    let sent = silence_after(&cluster, whole.id, usize::MAX);
    cluster.refresh(whole).await;
    cluster.until_epoch(2).await;
    let messages = sent.load(Ordering::Relaxed);
    assert!(messages > 10, "{messages}");

    let mut stored = 0;
    for (epoch, after) in (2..).zip((0..messages).step_by(5).chain([messages - 1])) {
        // Once all have met, nobody is missed before that.
        let refresh =
            Refresh { expires: from_now(if after < 5 { 8 } else { 15 }), ..cluster.new_refresh(epoch) };
        silence_after(&cluster, refresh.id, after);
        let id = cluster.refresh(refresh).await;
        // The old epoch signs on meanwhile.
        cluster.signs_at(epoch, &[1, 2]).await;
        // It is gone, and comes back with what is on its disk.
        cluster.until_step(1, id, |step| failed(step) || *step == RefreshStep::Stored).await;
        cluster.until_step(2, id, |step| failed(step) || *step == RefreshStep::Stored).await;
        cluster.restart_signer(3).await;
        cluster.bus.behave();
        // What not all have stored takes nobody's place.
        for signer in ALL {
            let heartbeat = cluster.heartbeat(signer).unwrap();
            assert_eq!(heartbeat.key.epoch, epoch, "after {after} messages");
            stored += u32::from(heartbeat.next.is_some());
        }
        cluster.signs_at(epoch, &[1, 3]).await;
        cluster.signs_at(epoch, &[2, 3]).await;
        // The next one finds out what there is, whatever it is.
        refreshes(&cluster, epoch).await;
    }
    // Without its last message, one or two have theirs all the same.
    assert!(stored > 0);
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}

/// Has the broker keep from everybody what these signers say of themselves.
fn keep_heartbeats_of(cluster: &Cluster, signers: &'static [u8]) {
    cluster.bus.tamper(move |message| {
        let kept = message.to == Address::Presence
            && matches!(wire::from_json(&message.body),
                Ok(Notice::Heartbeat(signed)) if signers.contains(&signed.signer.get()));
        if kept { Vec::new() } else { vec![message] }
    });
}

/// All store a next share, and nobody hears that of the others.
async fn all_store_and_nobody_hears(cluster: &Cluster) {
    keep_heartbeats_of(cluster, &ALL);
    let id = cluster.refresh(cluster.new_refresh(1)).await;
    until_stored(cluster, &ALL, id).await;
}

/// All store a next share, and signer 3 alone hears so, and puts its own in place.
async fn only_3_hears_of_all(cluster: &Cluster) {
    keep_heartbeats_of(cluster, &[3]);
    let id = cluster.refresh(cluster.new_refresh(1)).await;
    until_stored(cluster, &[1, 2], id).await;
    cluster.until_step(3, id, |step| *step == RefreshStep::Done).await;
}

async fn until_stored(cluster: &Cluster, signers: &[u8], id: Uuid) {
    for &signer in signers {
        cluster.until_step(signer, id, |step| *step == RefreshStep::Stored).await;
    }
}

/// Everything that was said in the presence of all, to say it again.
async fn repeat_all_notices(cluster: &Cluster) {
    for (to, body) in cluster.bus.record() {
        if to == Address::Presence {
            cluster.bus.inject(to, body).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signers_that_have_not_heard_of_all_others_sign_on_with_what_they_had() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    only_3_hears_of_all(&cluster).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.signs_at(1, &[1, 2]).await;
    // Also when they have been started again.
    for signer in [1, 2] {
        cluster.restart_signer(signer).await;
        let heartbeat =
            until("it is back", || cluster.heartbeat(signer).filter(|it| it.refresh.is_none())).await;
        assert_eq!(heartbeat.key.epoch, 1);
        assert!(heartbeat.next.is_some());
    }
    cluster.signs_at(1, &[1, 2]).await;
    cluster.bus.behave();
    cluster.until_epoch(2).await;
    cluster.signs_at(2, &[1, 3]).await;
    cluster.stop().await;
}

/// Has the broker swallow this one of the messages of a refresh to signer 3; yields how many there have been.
fn keep_the_last_from_3(cluster: &Cluster, id: Uuid, last: usize) -> Arc<AtomicUsize> {
    let heard = Arc::new(AtomicUsize::new(0));
    let counted = heard.clone();
    cluster.bus.tamper(move |message| {
        let of_the_refresh = message.to == Address::Rounds(index(3))
            && Header::peek(&message.body).is_ok_and(|header| header.request == id);
        if of_the_refresh && counted.fetch_add(1, Ordering::Relaxed) + 1 == last {
            return Vec::new();
        }
        vec![message]
    });
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_for_a_signer_that_has_not_stored_its_share() {
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    // How many messages signer 3 gets.
    let whole = cluster.new_refresh(1);
    let heard = keep_the_last_from_3(&cluster, whole.id, usize::MAX);
    cluster.refresh(whole).await;
    cluster.until_epoch(2).await;

    // Now all but the last, so that it has no share when the others have theirs.
    let refresh = cluster.new_refresh(2);
    keep_the_last_from_3(&cluster, refresh.id, heard.load(Ordering::Relaxed));
    let id = cluster.refresh(refresh).await;
    until_stored(&cluster, &[1, 2], id).await;
    why(&cluster, 3, id).await;
    cluster.bus.behave();
    let stored = cluster.heartbeat(1).unwrap().next;
    assert!(stored.is_some());
    assert_eq!((cluster.heartbeat(2).unwrap().next, cluster.heartbeat(3).unwrap().next), (stored, None));
    // Signed by signer 1, in its own name and in that of signer 3; and what signer 3 says itself.
    let lie = Heartbeat { next: stored, ..cluster.heartbeat(3).unwrap() };
    let mut forged = cluster.endpoint(1).sign(&lie).unwrap();
    let as_1 = wire::to_json(&Notice::Heartbeat(forged.clone())).unwrap();
    forged.signer = index(3);
    let as_3 = wire::to_json(&Notice::Heartbeat(forged)).unwrap();
    let truth =
        wire::to_json(&Notice::Heartbeat(cluster.endpoint(3).sign(&cluster.heartbeat(3)).unwrap())).unwrap();
    for _ in 0..3 {
        for notice in [&as_1, &as_3, &truth] {
            cluster.bus.inject(Address::Presence, notice.clone()).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    for signer in ALL {
        assert_eq!(cluster.heartbeat(signer).unwrap().key.epoch, 2);
    }
    cluster.signs_at(2, &[1, 3]).await;
    // What only two have stored is removed when all know that.
    refreshes(&cluster, 2).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_does_not_fit_is_refused_and_says_why() {
    let mut cluster = Cluster::new(&TWO_OF_THREE);
    cluster.refresh_pause = Duration::from_secs(3600);
    cluster.start_all().await;
    let fits = || cluster.new_refresh(1);
    for (refresh, reason) in [
        (cluster.new_refresh(2), "it has epoch 1: expected the refresh to end it, not 2"),
        (Refresh { key: "other".into(), ..fits() }, "it holds key default of cluster attacked, and no other"),
        (Refresh { cluster: "other".into(), ..fits() }, "it holds key default of cluster attacked"),
        (Refresh { expires: from_now(-1), ..fits() }, "it came after its time"),
    ] {
        let id = cluster.refresh(refresh).await;
        for signer in ALL {
            let why = why(&cluster, signer, id).await;
            assert!(why.contains(reason), "{why}");
        }
    }
    refreshes(&cluster, 1).await;
    // A manager that wants more and more of them is put off.
    let id = cluster.refresh(cluster.new_refresh(2)).await;
    for signer in ALL {
        let why = why(&cluster, signer, id).await;
        assert!(why.contains("expected 3600 s between two"), "{why}");
    }
    cluster.signs_at(2, &[1, 2]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_has_removed_after_a_meeting_nobody_signs_with_whoever_lies_to_the_other() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    all_store_and_nobody_hears(&cluster).await;
    let stored = cluster.heartbeat(3).unwrap();
    assert!(stored.next.is_some());
    // Signer 3 is the attacker's: at the next meeting it says that it has none, and lets only signer 1 see the meeting end.
    cluster.stop_signer(3).await;
    std::fs::remove_file(cluster.share_file(3).with_extension("store.next")).unwrap();
    cluster.start_signer(3).await;
    let refresh = Refresh { expires: from_now(20), ..cluster.new_refresh(1) };
    let id = refresh.id;
    cluster.bus.tamper(move |message| {
        let kept = message.to == Address::Presence
            || message.to == Address::Rounds(index(2))
                && Header::peek(&message.body).is_ok_and(|header| {
                    (header.request, header.attempt, header.round, header.from) == (id, 1, 2, index(3))
                });
        if kept { Vec::new() } else { vec![message] }
    });
    cluster.refresh(refresh).await;
    for signer in [1, 2] {
        why(&cluster, signer, id).await;
    }
    let (one, two) = (cluster.heartbeat(1).unwrap(), cluster.heartbeat(2).unwrap());
    assert_eq!((one.next, two.next), (None, stored.next), "signer 1 has removed what signer 2 still has");
    // Now it says to signer 2 that it has it after all; and that signer 1 has, there are words of before.
    cluster.bus.behave();
    cluster.stop_signer(3).await;
    let lie = Heartbeat { at: from_now(0), ..stored.clone() };
    let lie = wire::to_json(&Notice::Heartbeat(cluster.endpoint(3).sign(&lie).unwrap())).unwrap();
    for restarted in [false, true] {
        if restarted {
            cluster.restart_signer(2).await;
        }
        for _ in 0..3 {
            repeat_all_notices(&cluster).await;
            cluster.bus.inject(Address::Presence, lie.clone()).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let two = cluster.heartbeat(2).unwrap();
        assert_eq!((two.key.epoch, two.next), (1, stored.next));
        // The two honest ones go on without it.
        cluster.signs_at(1, &[1, 2]).await;
    }
    cluster.start_signer(3).await;
    refreshes(&cluster, 1).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_not_heard_a_signer_that_is_gone_for_ever_hears_of_it_from_the_others() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    only_3_hears_of_all(&cluster).await;
    // Signer 1 hears signer 3, and signer 2 does not; then signer 3 is gone.
    cluster.stop_signer(2).await;
    cluster.bus.behave();
    until("signer 1 signs with the new share", || {
        cluster.heartbeat(1).filter(|heartbeat| heartbeat.key.epoch == 2)
    })
    .await;
    cluster.stop_signer(3).await;
    // What signer 1 has heard is on its disk.
    cluster.restart_signer(1).await;
    cluster.start_signer(2).await;
    until("signer 2 signs with the new share", || {
        cluster.heartbeat(2).filter(|heartbeat| heartbeat.key.epoch == 2)
    })
    .await;
    cluster.signs_at(2, &[1, 2]).await;
    cluster.stop().await;
}

/// A cluster in which all have stored the next share, and only these have seen the end of the meeting that found that out.
async fn after_a_meeting_whose_end_only_these_saw(saw: &'static [u8]) -> Cluster {
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    all_store_and_nobody_hears(&cluster).await;
    // At the meeting in which they find that out, only these see the end.
    let refresh = Refresh { expires: from_now(20), ..cluster.new_refresh(1) };
    let id = refresh.id;
    cluster.bus.tamper(move |message| {
        let kept = message.to == Address::Presence
            || !matches!(message.to, Address::Rounds(to) if saw.contains(&to.get()))
                && Header::peek(&message.body).is_ok_and(|header| (header.request, header.round) == (id, 2));
        if kept { Vec::new() } else { vec![message] }
    });
    cluster.refresh(refresh).await;
    for signer in ALL {
        if saw.contains(&signer) {
            cluster.until_step(signer, id, |step| *step == RefreshStep::Done).await;
        } else {
            why(&cluster, signer, id).await;
        }
    }
    cluster.bus.behave();
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_saw_a_meeting_end_and_those_who_did_not_come_together_at_the_next() {
    let cluster = after_a_meeting_whose_end_only_these_saw(&[1]).await;
    // The others sign on: one that says that it signs with the new shares may be lying.
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.signs_at(1, &[2, 3]).await;
    cluster.refresh(cluster.new_refresh(1)).await;
    cluster.until_epoch(2).await;
    refreshes(&cluster, 2).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_not_see_a_meeting_end_follows_as_many_as_sign() {
    let cluster = after_a_meeting_whose_end_only_these_saw(&[1, 3]).await;
    cluster.until_epoch(2).await;
    cluster.signs_at(2, &[1, 2]).await;
    cluster.stop().await;
}
