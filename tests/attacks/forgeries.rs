//! Messages that are not what they say: in another's name, of another cluster, changed, or plain
//! nonsense. Signers and managers count them, set them aside, and go on.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tss_common::bus::{Address, Bus as _, BusError, MAX_MESSAGE};
use tss_common::envelope::{Endpoint, Header, MAX_ENVELOPE};
use tss_common::identity::{Identity, Roster};
use tss_common::wire::{self, Attempt, Ending, Heartbeat, KeyAnnouncement, Notice, Outcome};
use tss_mpc::{Abort, EngineId, SessionId, Signature};
use uuid::Uuid;

use crate::cluster::{
    ANOTHER_TWO_OF_THREE, CLUSTER, Cluster, TWO_OF_THREE, from_now, index, indices, quorum, until,
};
use crate::tampering_bus::Passed;

/// All reasons to drop an envelope before its session is looked for.
const UNREADABLE: [&str; 6] = ["malformed", "too_long", "version", "misrouted", "unknown", "forged"];

fn unreadable(cluster: &Cluster, signer: u8) -> u64 {
    UNREADABLE.iter().map(|reason| cluster.dropped(signer, reason)).sum()
}

/// An end in the name of `signer` that nobody has heard of.
fn stranger(cluster: &str, signer: u8) -> Endpoint {
    let identity = Identity::generate();
    let roster = Roster::new([(index(signer), identity.public())].into()).unwrap();
    Endpoint::new(cluster, index(signer), identity, roster).unwrap()
}

fn broadcast(request: u128, round: u8) -> Header {
    Header {
        request: Uuid::from_u128(request),
        attempt: 1,
        session: SessionId([7; 32]),
        round,
        from: index(1),
        to: None,
    }
}

/// An envelope with another sender's name on it.
fn renamed(envelope: &Bytes, from: u8) -> Bytes {
    let original = Header::peek(envelope).unwrap();
    let expected = Header { from: index(from), ..original };
    (0..envelope.len())
        .find_map(|at| {
            let mut renamed = envelope.to_vec();
            renamed[at] = from;
            (Header::peek(&renamed) == Ok(expected.clone())).then(|| renamed.into())
        })
        .expect("the sender stands somewhere")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_in_anothers_name() {
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    let attempt = cluster.attempt(&[1, 2], b"as agreed");
    let rogue = cluster.endpoint(3);
    let elsewhere =
        Endpoint::new("elsewhere", index(2), cluster.identity(2), cluster.roster.clone()).unwrap();
    let of_session = Header { request: attempt.request, ..broadcast(0, 0) };
    let in_the_name_of_2 = [
        renamed(&rogue.write(of_session.clone(), &[1; 32]).unwrap(), 2),
        stranger(CLUSTER, 2).write(of_session.clone(), &[2; 32]).unwrap(),
        elsewhere.write(of_session.clone(), &[3; 32]).unwrap(),
    ];
    for forged in &in_the_name_of_2 {
        assert_eq!(Header::peek(forged).unwrap().from, index(2));
        cluster.bus.inject(Address::Rounds(index(1)), forged.clone()).await;
    }
    cluster.until_at_least("forged", 3, |cluster| cluster.dropped(1, "forged")).await;
    let unheard_of = stranger(CLUSTER, 9).write(of_session.clone(), &[4; 32]).unwrap();
    cluster.bus.inject(Address::Rounds(index(1)), unheard_of).await;
    cluster.until_at_least("unknown", 1, |cluster| cluster.dropped(1, "unknown")).await;
    // A signer's own words come back to it, and another's words come to the wrong one.
    let own = cluster.endpoint(1).write(of_session.clone(), &[5; 32]).unwrap();
    let for_3 = cluster.endpoint(2).write(Header { to: Some(index(3)), ..of_session.clone() }, b"x").unwrap();
    for misrouted in [own, for_3] {
        cluster.bus.inject(Address::Rounds(index(1)), misrouted).await;
    }
    cluster.until_at_least("misrouted", 2, |cluster| cluster.dropped(1, "misrouted")).await;
    assert_eq!((cluster.dropped(1, "forged"), unreadable(&cluster, 1)), (3, 6));

    // Signer 3, in its own name, in a session that it is not part of: before it begins, and during it.
    let joins = rogue.write(of_session.clone(), &[6; 32]).unwrap();
    cluster.bus.inject(Address::Rounds(index(1)), joins.clone()).await;
    cluster.bus.tamper(move |message| match message.to {
        Address::Rounds(to) if to == index(1) || to == index(2) => {
            vec![Passed::now(message.to, joins.clone()), message]
        }
        _ => vec![message],
    });
    cluster.ask(&attempt).await;
    cluster.is_signed(&attempt).await;
    cluster.until_at_least("stranger", 1, |cluster| cluster.dropped(1, "stranger")).await;
    cluster.bus.behave();
    cluster.signs(&[1, 2]).await;
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envelope_with_any_bit_changed_is_dropped_and_blames_nobody() {
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    let changed = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = changed.clone();
    // Copies with one bit changed come before the original: in each byte of the header and the signature,
    // and here and there in what follows.
    cluster.bus.tamper(move |message| {
        let Address::Rounds(_) = message.to else { return vec![message] };
        let length = message.body.len();
        let places = (0..length.min(160)).chain((160..length).step_by(997));
        let mut passed: Vec<Passed> = places
            .map(|at| {
                let mut body = message.body.to_vec();
                body[at] ^= 1 << (at % 8);
                Passed::now(message.to, body.into())
            })
            .collect();
        count.fetch_add(passed.len() as u64, std::sync::atomic::Ordering::SeqCst);
        passed.push(message);
        passed
    });
    cluster.signs(&[1, 2]).await;
    let changed = changed.load(std::sync::atomic::Ordering::SeqCst);
    assert!(changed > 500, "{changed}");
    let dropped = |cluster: &Cluster| unreadable(cluster, 1) + unreadable(cluster, 2);
    cluster.until_at_least("dropped", changed, dropped).await;
    assert_eq!(dropped(&cluster), changed, "none of them was taken for anything else");
    assert!(cluster.dropped(1, "forged") > 0 && cluster.dropped(1, "version") > 0);
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}

fn announcement(key: &crate::cluster::Key) -> KeyAnnouncement {
    let share = key.share(1);
    KeyAnnouncement {
        id: share.key.clone(),
        epoch: share.epoch,
        scheme: share.scheme,
        threshold: share.core.threshold,
        public_key: share.core.secp256k1().unwrap().public_key,
        chain_code: share.core.chain_code,
    }
}

/// What signer `signer` would have to say for nobody to sign with 2 or 3.
fn heartbeat(signer: u8, at: Timestamp) -> Heartbeat {
    Heartbeat {
        signer: index(signer),
        instance: Uuid::new_v4(),
        at,
        key: announcement(&TWO_OF_THREE),
        engines: vec![EngineId::Dkls23],
        sessions: 0,
        banned: indices(&[2, 3]),
        stopping: false,
        shares: None,
        next: None,
        refresh: None,
    }
}

async fn say(cluster: &Cluster, end: &Endpoint, heartbeat: &Heartbeat) {
    let notice = Notice::Heartbeat(end.sign(heartbeat).unwrap());
    cluster.bus.inject(Address::Presence, wire::to_json(&notice).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_believes_no_heartbeat_that_is_forged_old_or_repeated() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    cluster.start_manager(cluster.config()).await;
    let shared = cluster.managing().shared();
    let nobody_is_banned = || shared.presence.live().iter().all(|heartbeat| heartbeat.banned.is_empty());

    // With other keys; by another signer; of another cluster; in one's own envelope, but another's name.
    let now = Timestamp::now();
    say(&cluster, &stranger(CLUSTER, 1), &heartbeat(1, now)).await;
    say(&cluster, &cluster.endpoint(3), &heartbeat(1, now)).await;
    let elsewhere =
        Endpoint::new("elsewhere", index(1), cluster.identity(1), cluster.roster.clone()).unwrap();
    say(&cluster, &elsewhere, &heartbeat(1, now)).await;
    let mut renamed = cluster.endpoint(3).sign(&heartbeat(1, now)).unwrap();
    renamed.signer = index(1);
    let notice = wire::to_json(&Notice::Heartbeat(renamed)).unwrap();
    cluster.bus.inject(Address::Presence, notice).await;
    cluster.until_at_least("forged", 4, |cluster| cluster.disbelieved("forged")).await;
    assert!(nobody_is_banned());

    // Its own, but of an hour ago, or of some other day to come.
    for seconds in [-3600, 3600] {
        say(&cluster, &cluster.endpoint(1), &heartbeat(1, from_now(seconds))).await;
    }
    cluster.until_at_least("stale", 2, |cluster| cluster.disbelieved("stale")).await;
    assert!(nobody_is_banned());

    // Its own, of a moment ago, when it said something else: it has said another thing since.
    let before = cluster.disbelieved("stale");
    say(&cluster, &cluster.endpoint(1), &heartbeat(1, from_now(-10))).await;
    let last = cluster.bus.record().into_iter().rev().find(|(to, _)| *to == Address::Presence).unwrap();
    cluster.bus.inject(last.0, last.1).await;
    cluster.until_at_least("stale", before + 2, |cluster| cluster.disbelieved("stale")).await;
    assert!(nobody_is_banned());
    assert_eq!(cluster.disbelieved("forged"), 4);
    cluster.completes("after lies about who is there").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_announces_another_key_is_not_used_and_changes_nothing() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    cluster.start_manager(cluster.config()).await;
    cluster.completes("so that the key is on record").await;
    let on_record = cluster.managing().shared().keys.get(crate::cluster::KEY).unwrap();
    // A signer in the wrong hands keeps saying so; whatever it says itself is overheard.
    cluster.stop_signer(3).await;
    let lie = Heartbeat {
        key: announcement(&ANOTHER_TWO_OF_THREE),
        banned: indices(&[]),
        ..heartbeat(3, Timestamp::now())
    };
    say(&cluster, &cluster.endpoint(3), &lie).await;
    let shared = cluster.managing().shared();
    until("the lie is heard", || {
        shared.presence.live().iter().any(|heard| heard.key == lie.key).then_some(())
    })
    .await;
    let before = cluster.bus.record().len();
    for number in 0..4 {
        cluster.completes(&format!("with the right key {number}")).await;
    }
    assert_eq!(shared.keys.get(crate::cluster::KEY).unwrap().public_key, on_record.public_key);
    assert_eq!(attempts_since(&cluster, before).len(), 2 * 4);
    for attempt in attempts_since(&cluster, before) {
        assert_eq!(attempt.quorum, quorum(&[1, 2]));
    }
    cluster.stop().await;
}

/// The attempts that signers were told of; one for each that was told.
fn attempts_since(cluster: &Cluster, start: usize) -> Vec<Attempt> {
    let record = cluster.bus.record();
    let requests = record[start..].iter().filter(|(to, _)| matches!(to, Address::Requests(_)));
    requests.map(|(_, body)| wire::from_json(body).unwrap()).collect()
}

/// What somebody says of an attempt, as it goes to the managers.
fn report(end: &Endpoint, attempt: &Attempt, signer: u8, ending: Ending) -> Bytes {
    let Attempt { request, attempt, .. } = *attempt;
    let outcome = Outcome { request, attempt, session: None, signer: index(signer), ending };
    wire::to_json(&end.sign(&outcome).unwrap()).unwrap()
}

fn lies(attempt: &Attempt) -> Vec<Ending> {
    let victims = attempt.quorum.iter().collect();
    let first = attempt.quorum.iter().next().unwrap();
    vec![
        Ending::Refused("no".into()),
        Ending::Unable("no".into()),
        Ending::Aborted(Abort::cheating(first, "it cheated")),
        Ending::Aborted(Abort::timeout(victims)),
        Ending::Signed(Signature { r: [1; 32], s: [1; 32], recid: 0 }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_outcome_ends_no_request() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    cluster.start_manager(cluster.config()).await;
    let (rogue, strangers) = (cluster.endpoint(3), [1, 2, 3].map(|signer| stranger(CLUSTER, signer)));
    // They come before any true outcome can.
    cluster.bus.tamper(move |message| {
        let Address::Requests(_) = message.to else { return vec![message] };
        let attempt: Attempt = wire::from_json(&message.body).unwrap();
        let by_strangers = strangers.iter().flat_map(|end| {
            lies(&attempt).into_iter().map(|ending| report(end, &attempt, end.index().get(), ending))
        });
        // Signed by signer 3, in the name of 1.
        let in_anothers_name = lies(&attempt).into_iter().map(|ending| report(&rogue, &attempt, 1, ending));
        let forged = by_strangers.chain(in_anothers_name).map(|body| Passed::now(Address::Results, body));
        forged.chain([message]).collect()
    });
    for number in 0..3 {
        let status = cluster.completes(&format!("whatever strangers say {number}")).await;
        assert_eq!(status["attempts"], 1, "{status}");
    }
    // Each of three attempts was told to two signers, and each time twenty lies came along.
    let forged = 3 * 2 * 20;
    cluster.until_at_least("forged", forged, |cluster| cluster.disbelieved("forged")).await;
    let set_aside = cluster.bus.dead_letters();
    assert_eq!(set_aside.iter().filter(|letter| letter.to == Address::Results).count() as u64, forged);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_outside_the_quorum_cannot_end_its_attempt() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    cluster.start_manager(cluster.config()).await;
    let ends = [1, 2, 3].map(|signer| cluster.endpoint(signer));
    // Properly signed, but by the one who takes no part.
    cluster.bus.tamper(move |message| {
        let Address::Requests(_) = message.to else { return vec![message] };
        let attempt: Attempt = wire::from_json(&message.body).unwrap();
        let outside = ends.iter().find(|end| !attempt.quorum.contains(end.index())).unwrap();
        let lies = lies(&attempt).into_iter().map(|ending| {
            Passed::now(Address::Results, report(outside, &attempt, outside.index().get(), ending))
        });
        lies.chain([message]).collect()
    });
    for number in 0..6 {
        let status = cluster.completes(&format!("whatever the third says {number}")).await;
        assert_eq!(status["attempts"], 1, "{status}");
    }
    for ending in ["cheating", "invalid", "refused", "timeout", "unable"] {
        assert_eq!(cluster.metric(&format!("tss_attempts_total{{ending=\"{ending}\"}}")), 0, "{ending}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_at_every_address_is_counted_and_set_aside() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    cluster.start_manager(cluster.config()).await;
    cluster.completes("so that there is something to cut").await;
    let record = cluster.bus.record();
    let sample = |is: fn(&Address) -> bool| {
        let (_, body) = record.iter().find(|(to, _)| is(to)).unwrap();
        body.clone()
    };
    let samples = [
        sample(|to| matches!(to, Address::Requests(_))),
        sample(|to| matches!(to, Address::Rounds(_))),
        sample(|to| *to == Address::Results),
        sample(|to| *to == Address::Presence),
    ];
    let mut nonsense: Vec<Bytes> = [
        &b""[..],
        b"\0",
        b"{",
        b"{}",
        b"null",
        b"[]",
        b"\"x\"",
        b"\x02",
        b"{\"version\":2}",
        b"{\"version\":99,\"request\":\"x\"}",
        b"{\"version\":2,\"request\":\"x\"}",
    ]
    .map(Bytes::from_static)
    .to_vec();
    nonsense.push("[".repeat(100_000).into());
    nonsense.push(vec![2; MAX_ENVELOPE + 1].into());
    nonsense.push(vec![b' '; MAX_MESSAGE].into());
    for length in [1, 16, 33, 200, 4096, 70_000] {
        let random = std::iter::repeat_with(|| *Uuid::new_v4().as_bytes()).flatten();
        nonsense.push(random.take(length).collect::<Vec<u8>>().into());
    }
    for whole in &samples {
        for parts in 1..8 {
            nonsense.push(whole.slice(..whole.len() * parts / 8));
        }
        let mut two = whole.to_vec();
        two.extend_from_slice(whole);
        // An envelope with more after it is another body: it is not what was signed.
        nonsense.push(two.into());
    }
    let requests = [1, 2, 3].map(|signer| Address::Requests(index(signer)));
    let rounds = [1, 2, 3].map(|signer| Address::Rounds(index(signer)));
    for body in &nonsense {
        for to in requests.iter().chain(&rounds).chain(&[Address::Results]) {
            cluster.bus.inject(*to, body.clone()).await;
        }
    }
    let too_long = cluster.bus.publish(Address::Results, vec![0; MAX_MESSAGE + 1].into()).await;
    assert!(matches!(too_long, Err(BusError::TooLong(_))), "{too_long:?}");

    let each = nonsense.len() as u64;
    for signer in [1, 2, 3] {
        cluster.until_at_least("dropped", each, |cluster| unreadable(cluster, signer)).await;
        assert_eq!(unreadable(&cluster, signer), each);
        assert!(cluster.dropped(signer, "malformed") > 0 && cluster.dropped(signer, "too_long") > 0);
        assert!(cluster.dropped(signer, "version") > 0);
    }
    // Whose own words were cut comes to know it as somebody else's error.
    assert!([1, 2, 3].iter().filter(|signer| cluster.dropped(**signer, "forged") > 0).count() >= 2);
    // What is durable is set aside for a person to look at; and it is not delivered for ever.
    for to in requests.iter().chain(&[Address::Results]) {
        until("all of it is set aside", || {
            let set_aside = cluster.bus.dead_letters();
            (set_aside.iter().filter(|letter| letter.to == *to).count() as u64 == each).then_some(())
        })
        .await;
    }
    let disbelieved = |cluster: &Cluster| {
        ["version", "forged", "stale", "malformed"].iter().map(|reason| cluster.disbelieved(reason)).sum()
    };
    assert_eq!(disbelieved(&cluster), each);
    for (before, body) in (each..).zip(&nonsense) {
        // One by one: who listens here is not waited for.
        cluster.bus.inject(Address::Presence, body.clone()).await;
        cluster.until_at_least("disbelieved", before + 1, disbelieved).await;
    }
    cluster.completes("after all that nonsense").await;
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_announces_sessions_without_end_fills_its_own_place_alone() {
    /// How many sessions that a signer has not heard of may have a join of one other waiting.
    const WAITING: u64 = 1024;
    const TOO_MANY: u64 = 200;
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    let rogue = cluster.endpoint(3);
    for request in 0..u128::from(WAITING + TOO_MANY) {
        let join = rogue.write(broadcast(request, 0), &[0; 32]).unwrap();
        cluster.bus.inject(Address::Rounds(index(1)), join).await;
    }
    cluster.until_at_least("overflow", TOO_MANY, |cluster| cluster.dropped(1, "overflow")).await;
    assert_eq!(cluster.dropped(1, "overflow"), TOO_MANY);
    // Nothing but a join waits for a session that is not known.
    let early = rogue.write(broadcast(u128::MAX, 1), b"early").unwrap();
    cluster.bus.inject(Address::Rounds(index(1)), early).await;
    cluster.until_at_least("late", 1, |cluster| cluster.dropped(1, "late")).await;
    // The others' joins have places of their own.
    for _ in 0..3 {
        cluster.signs(&[1, 2]).await;
    }
    cluster.assert_nobody_is_blamed();
    cluster.stop().await;
}
