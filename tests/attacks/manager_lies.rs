//! What a manager can make signers sign: the message that it shows them, under the path that it shows to
//! all of them, and what their policies allow.

use jiff::Timestamp;
use tss_common::approval::Approval;
use tss_common::ed25519::SigningKey;
use tss_common::intent::{HashAlgorithm, Intent};
use tss_common::wire::{Attempt, Ending};
use tss_mpc::Blame;
use uuid::Uuid;

use crate::cluster::{Cluster, TWO_OF_THREE, from_now, indices};

const SHOWN: &[u8] = b"pay 1 to alice";
const MEANT: &[u8] = b"pay 1000000 to mallory";

/// What signer 2 is told otherwise.
type Edit = Box<dyn Fn(&mut Attempt)>;

/// That both signers of an attempt refuse it for this reason, write that down, and sign nothing.
async fn assert_refused(cluster: &Cluster, attempt: &Attempt, part: &str) {
    let before = [1, 2].map(|signer| cluster.sessions(signer, "refused"));
    cluster.ask(attempt).await;
    for signer in [1, 2] {
        match cluster.ending(attempt, signer).await {
            Ending::Refused(reason) => assert!(reason.contains(part), "`{part}` is missing in: {reason}"),
            ending => panic!("not refused: {ending:?}"),
        }
        assert!(cluster.sessions(signer, "refused") > before[usize::from(signer) - 1]);
        assert!(cluster.audit(signer).iter().any(|event| {
            event.kind() == "refused" && event.attempt() == Some((attempt.request, attempt.attempt))
        }));
    }
    assert!(cluster.outcomes().iter().all(|outcome| {
        outcome.request != attempt.request || matches!(outcome.ending, Ending::Refused(_))
    }));
}

fn digest(hash: HashAlgorithm, message: &[u8]) -> [u8; 32] {
    hash.digest(message).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_swaps_the_message_the_digest_or_the_hash_gets_nothing_signed() {
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    let honest = cluster.attempt(&[1, 2], SHOWN);
    let sha256 = |message| digest(HashAlgorithm::Sha256, message);
    let with = |hash, digest, message: &[u8]| Attempt {
        request: Uuid::new_v4(),
        intent: Intent { hash, digest, ..honest.intent.clone() },
        message: message.to_vec(),
        ..honest.clone()
    };
    let not_the_messages = "the digest is not that of the message";
    let cases = [
        ("another message", with(HashAlgorithm::Sha256, sha256(SHOWN), MEANT), not_the_messages),
        ("another digest", with(HashAlgorithm::Sha256, sha256(MEANT), SHOWN), not_the_messages),
        // The digest is one of the message, but by another algorithm than the intent says.
        ("another hash", with(HashAlgorithm::Sha256d, sha256(SHOWN), SHOWN), not_the_messages),
        (
            "ethereum's prefix left out",
            {
                let digest = digest(HashAlgorithm::Keccak256, SHOWN);
                with(HashAlgorithm::Eip191, digest, SHOWN)
            },
            not_the_messages,
        ),
        // Without a hash the message has to be the digest itself, all of it and nothing else.
        ("no hash, and a message", with(HashAlgorithm::None, sha256(SHOWN), SHOWN), "expected 32 bytes"),
        (
            "no hash, and another digest",
            { with(HashAlgorithm::None, sha256(SHOWN), &sha256(MEANT)) },
            not_the_messages,
        ),
        (
            "no hash, and a byte too many",
            {
                let digest = sha256(SHOWN);
                with(HashAlgorithm::None, digest, &[&digest[..], b"\0"].concat())
            },
            "expected 32 bytes",
        ),
        (
            "a hash, and its own digest as the message",
            {
                let digest = sha256(SHOWN);
                with(HashAlgorithm::Sha256, digest, &digest)
            },
            not_the_messages,
        ),
        ("nothing at all", with(HashAlgorithm::Sha256, [0; 32], b""), not_the_messages),
    ];
    for (what, attempt, reason) in &cases {
        println!("{what}");
        assert_refused(&cluster, attempt, reason).await;
    }
    for signer in [1, 2] {
        assert_eq!(cluster.sessions(signer, "refused"), cases.len() as u64);
        assert_eq!(cluster.sessions(signer, "signed"), 0);
    }
    cluster.assert_nobody_is_blamed();
    cluster.signs(&[1, 2]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_names_another_cluster_key_epoch_quorum_or_time_gets_nothing_signed() {
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    let honest = cluster.attempt(&[1, 2], SHOWN);
    let with = |edit: fn(&mut Attempt)| {
        let mut attempt = Attempt { request: Uuid::new_v4(), ..honest.clone() };
        edit(&mut attempt);
        attempt
    };
    let holds = "this signer holds key default of cluster attacked";
    assert_refused(&cluster, &with(|attempt| attempt.intent.cluster = "elsewhere".into()), holds).await;
    assert_refused(&cluster, &with(|attempt| attempt.intent.key = "treasury".into()), holds).await;
    let past = with(|attempt| attempt.intent.not_after = Some(from_now(-1)));
    assert_refused(&cluster, &past, "not_after").await;

    // What one signer cannot do now, others perhaps can: no refusal, but no signature either.
    let unable = [
        with(|attempt| attempt.epoch = 2),
        with(|attempt| attempt.quorum = crate::cluster::quorum(&[1])),
        with(|attempt| attempt.quorum = crate::cluster::quorum(&[1, 2, 3])),
        with(|attempt| attempt.quorum = crate::cluster::quorum(&[2, 3])),
        with(|attempt| attempt.quorum = crate::cluster::quorum(&[1, 9])),
    ];
    for attempt in &unable {
        cluster.tell(1, attempt).await;
        let ending = cluster.ending(attempt, 1).await;
        assert!(matches!(ending, Ending::Unable(_)), "{ending:?}");
    }
    assert_eq!(cluster.sessions(1, "unable"), unable.len() as u64);

    // An attempt whose time has passed is not even answered.
    let late = with(|attempt| attempt.expires = Timestamp::now());
    cluster.ask(&late).await;
    cluster.until_at_least("expired", 1, |cluster| cluster.sessions(1, "expired")).await;
    assert_eq!((cluster.sessions(1, "signed"), cluster.sessions(2, "signed")), (0, 0));
    assert!(cluster.outcomes().iter().all(|outcome| outcome.request != late.request));
    cluster.assert_nobody_is_blamed();
    cluster.signs(&[1, 2]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signers_who_are_told_different_things_of_one_attempt_never_come_to_a_session() {
    let cluster = Cluster::start(&TWO_OF_THREE).await;
    let shown = cluster.attempt(&[1, 2], SHOWN);
    let later = from_now(600);
    let edits: [(&str, Edit); 5] = [
        ("path", Box::new(|attempt| attempt.intent.path = "0/1/3".parse().unwrap())),
        (
            "message",
            Box::new(|attempt| {
                attempt.message = MEANT.to_vec();
                attempt.intent.digest = digest(HashAlgorithm::Sha256, MEANT);
            }),
        ),
        ("expiry", Box::new(move |attempt| attempt.intent.not_after = Some(later))),
        (
            "hash",
            Box::new(|attempt| {
                attempt.intent.hash = HashAlgorithm::None;
                attempt.message = attempt.intent.digest.to_vec();
            }),
        ),
        ("quorum", Box::new(|attempt| attempt.quorum = crate::cluster::quorum(&[2, 3]))),
    ];
    for (what, edit) in edits {
        println!("another {what}");
        let told_one = Attempt { request: Uuid::new_v4(), ..shown.clone() };
        let mut told_two = told_one.clone();
        edit(&mut told_two);
        let before = [1, 2].map(|signer| cluster.dropped(signer, "wrong_session"));
        cluster.tell(1, &told_one).await;
        cluster.tell(2, &told_two).await;
        // Each stands by what it was told, and waits in vain for somebody who was told the same.
        let missing = |signer| told(&told_one, &told_two, signer);
        for signer in [1, 2] {
            let abort = cluster.abort(&told_one, signer).await;
            assert_eq!(abort.blame, Blame::Timeout { missing: missing(signer) }, "signer {signer}");
        }
        assert!(cluster.dropped(1, "wrong_session") > before[0] || what == "quorum");
        assert!(cluster.dropped(2, "wrong_session") > before[1] || what == "quorum");
        for signer in [1, 2] {
            let finished = cluster.finished(signer);
            let own = finished.iter().find(|(of, ..)| of.0 == told_one.request);
            // There was no session, so nothing of the key was used.
            assert!(matches!(own, Some((_, None, false))), "{own:?}");
        }
    }
    cluster.assert_nobody_is_blamed();
    cluster.signs(&[1, 2]).await;
    cluster.stop().await;
}

/// Whom a signer waits for in vain, when signer 1 was told the first attempt and signer 2 the second.
fn told(one: &Attempt, two: &Attempt, signer: u8) -> std::collections::BTreeSet<tss_mpc::SignerIndex> {
    let told = if signer == 1 { one } else { two };
    let me = crate::cluster::index(signer);
    told.quorum.others(me).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_cannot_use_an_approval_for_another_path_message_or_expiry() {
    let approver = SigningKey::generate();
    let mut cluster = Cluster::new(&TWO_OF_THREE);
    cluster.set_policy(&format!(
        "[approvals]\nrequired = 1\n[approvals.approvers]\nalice = \"{}\"\n",
        approver.verifying_key()
    ));
    cluster.start_all().await;
    let mut approved = cluster.attempt(&[1, 2], SHOWN);
    approved.approvals = vec![Approval::make(&approver, &approved.intent)];

    let with = |edit: fn(&mut Attempt)| {
        let mut attempt = Attempt { request: Uuid::new_v4(), ..approved.clone() };
        edit(&mut attempt);
        attempt
    };
    let swaps = [
        with(|attempt| attempt.intent.path = "0/1/3".parse().unwrap()),
        with(|attempt| {
            attempt.message = MEANT.to_vec();
            attempt.intent.digest = digest(HashAlgorithm::Sha256, MEANT);
        }),
        with(|attempt| attempt.intent.not_after = Some(from_now(600))),
        with(|attempt| attempt.approvals.clear()),
        with(|attempt| {
            // The manager approves itself.
            attempt.approvals = vec![Approval::make(&SigningKey::generate(), &attempt.intent)];
        }),
    ];
    for attempt in &swaps {
        assert_refused(&cluster, attempt, "policy: ").await;
    }
    // A manager that tells each signer another path has an approval for one of them at most.
    let mut told_two = with(|_| ());
    let told_one = told_two.clone();
    told_two.intent.path = "0/1/3".parse().unwrap();
    cluster.tell(1, &told_one).await;
    cluster.tell(2, &told_two).await;
    let ending = cluster.ending(&told_two, 2).await;
    assert!(matches!(ending, Ending::Refused(_)), "{ending:?}");
    assert_eq!(cluster.abort(&told_one, 1).await.blame, Blame::Timeout { missing: indices(&[2]) });

    for signer in [1, 2] {
        assert_eq!(cluster.sessions(signer, "signed"), 0);
        let refusals = format!("tss_signer_policy_refusals_total{{rule=\"approvals\",signer=\"{signer}\"}}");
        assert!(cluster.metric(&refusals) >= swaps.len() as u64);
    }
    // What was approved is signed.
    cluster.ask(&approved).await;
    cluster.is_signed(&approved).await;
    cluster.stop().await;
}
