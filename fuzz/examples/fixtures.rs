//! Makes the inputs that a corpus begins with, and, if told `key`, the test key and audit log anew:
//! `cargo run --release --manifest-path fuzz/Cargo.toml --example fixtures [key]`.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;

use tss_common::audit::{AuditLog, Event, Evidence, Finish, NewShare};
use tss_common::intent::{HashAlgorithm, Intent};
use tss_fuzz::{drawn, signer};
use tss_mpc::{
    Dkls23, Engine as _, KeygenSetup, PublicKey, Quorum, SessionId, Signature, Threshold, run_local,
};
use uuid::Uuid;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    if std::env::args().nth(1).as_deref() == Some("key") {
        let public_key = shares(&folder.join("fixtures"))?;
        audit_log(&folder.join("fixtures/audit.jsonl"), public_key)?;
    }
    for (target, name, seed) in seeds() {
        let corpus = folder.join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        fs::write(corpus.join(name), seed)?;
    }
    Ok(())
}

fn shares(folder: &Path) -> Result<PublicKey> {
    let threshold = Threshold::new(2, 3)?;
    let setup = |index| KeygenSetup {
        session: SessionId([1; 32]),
        cluster: "fuzz".into(),
        key: "test".into(),
        index,
        threshold,
    };
    let mut machines = std::collections::BTreeMap::new();
    for index in threshold.signers() {
        machines.insert(index, Dkls23.keygen(setup(index))?);
    }
    let documents = run_local(machines).map_err(|(index, abort)| format!("signer {index}: {abort}"))?;
    for index in [1, 2] {
        fs::write(folder.join(format!("signer{index}.json")), &*documents[&signer(index)].to_json()?)?;
    }
    Ok(documents[&signer(1)].core.secp256k1()?.public_key)
}

fn audit_log(file: &Path, public_key: PublicKey) -> Result<()> {
    let (request, attempt, session) = (Uuid::from_u128(7), 1, SessionId([2; 32]));
    let quorum = Quorum::new([signer(1), signer(2)])?;
    let intent = Intent {
        cluster: "fuzz".into(),
        key: "test".into(),
        path: "0/1".parse()?,
        hash: HashAlgorithm::Sha256,
        digest: [3; 32],
        not_after: Some("2030-01-02T03:04:05Z".parse()?),
    };
    let intent_hash = intent.hash();
    let signature = Signature { r: [4; 32], s: [5; 32], recid: 1 };
    let finished = |outcome, signature, reason| Event::Finished {
        request,
        attempt,
        session: Some(session),
        intent_hash,
        outcome,
        signature,
        reason,
    };
    let events = [
        Event::Keygen(NewShare {
            session,
            cluster: "fuzz".into(),
            key: "test".into(),
            epoch: 1,
            threshold: Threshold::new(2, 3)?,
            public_key,
        }),
        Event::Opened {
            version: "0.1.0".into(),
            cluster: "fuzz".into(),
            key: "test".into(),
            epoch: 1,
            public_key,
        },
        Event::Policy { hash: [6; 32], approvers: 1, summary: "one rule".into() },
        Event::Accepted {
            request,
            attempt,
            session,
            intent: intent.clone(),
            intent_hash,
            quorum: quorum.clone(),
            approvers: vec!["alice".into()],
        },
        finished(Finish::Signed, Some(signature), None),
        finished(Finish::Aborted, None, Some("a reason".into())),
        Event::Refused { request, attempt, intent, intent_hash, quorum, reason: "another".into() },
        Event::Cheating {
            culprits: BTreeSet::from([signer(2)]),
            banned: true,
            request,
            attempt,
            session,
            reason: "a third".into(),
            evidence: vec![Evidence { round: 2, from: signer(2), digest: [7; 32], signature: [8; 64] }],
        },
    ];
    if file.exists() {
        fs::remove_file(file)?;
    }
    AuditLog::open(file, signer(1), None)?.append(&events)?;
    Ok(())
}

/// One input for each way through a target; what the first bytes mean, see there.
fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, parts: &[&[u8]]| seeds.push((target, name.to_owned(), parts.concat()));

    let header = |from: u8, to: u8| [&[7; 16][..], &[0, 0, 0, 1], &[9; 32], &[1, from, to]].concat();
    // The attempt, 1, written in two bytes.
    add("envelope", "longer", &[&[3], &header(0, 2), &[5], b"hello", &[3, 0, 0, 18, 7, 1, 0, 0, 19, 1, 0]]);
    for mode in [1, 2] {
        add("envelope", &format!("broadcast{mode}"), &[&[mode], &header(0, 0), b"hello"]);
        add("envelope", &format!("direct{mode}"), &[&[mode], &header(1, 3), b"hello"]);
    }
    add("envelope", "edited", &[&[3], &header(0, 2), &[5], b"hello", &[3, 0, 0, 20, 1]]);
    let finished = br#"{"version":2,"finished":"00000000-0000-0000-0000-000000000007"}"#;
    add("envelope", "finished", &[&[4], finished]);
    let attempt = br#"{"version":2,"request":"00000000-0000-0000-0000-000000000007","attempt":1,"intent":{"cluster":"c","key":"k","path":"0/1","hash":"sha256","digest":"0000000000000000000000000000000000000000000000000000000000000000","not_after":null},"message":"aGVsbG8=","engine":"dkls23","epoch":1,"quorum":[1,2],"expires":"2030-01-02T03:04:05Z"}"#;
    add("envelope", "attempt", &[&[4], attempt]);
    for (name, ending) in [
        ("refused", r#"{"refused":"no"}"#),
        ("aborted", r#"{"aborted":{"blame":{"cheating":{"culprits":[1],"ban":true}},"reason":"r"}}"#),
        ("unattributed", r#"{"aborted":{"blame":{"unattributed":{"suspects":[1,2]}},"reason":"r"}}"#),
    ] {
        let outcome = format!(
            r#"{{"request":"00000000-0000-0000-0000-000000000007","attempt":1,"signer":1,"ending":{ending}}}"#
        );
        add("envelope", name, &[&[5, 0, 0], outcome.as_bytes()]);
    }
    let heartbeat = br#"{"signer":1,"instance":"00000000-0000-0000-0000-000000000007","at":"2030-01-02T03:04:05Z","key":{"id":"k","epoch":1,"scheme":"ecdsa-secp256k1","threshold":{"threshold":2,"signers":3},"public_key":"0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798","chain_code":"0000000000000000000000000000000000000000000000000000000000000000"},"engines":["dkls23"],"sessions":0,"banned":[],"stopping":false}"#;
    add("envelope", "heartbeat", &[&[5, 0, 1], heartbeat]);
    let key = |digit: &str| digit.repeat(64);
    let entry = |index: u8, digits: [&str; 2]| {
        let [verifying, sealing] = digits.map(key);
        format!("[signers.{index}]\nverifying_key = \"{verifying}\"\nsealing_key = \"{sealing}\"\n")
    };
    let roster = [entry(1, ["1", "2"]), entry(2, ["3", "4"])].concat();
    add("envelope", "roster", &[&[6, 2], roster.as_bytes()]);
    let identity = format!(r#"{{"version":1,"signing_key":"{}","sealing_key":"{}"}}"#, key("1"), key("2"));
    add("envelope", "identity", &[&[7], identity.as_bytes()]);

    // Of each message, one that is only decoded and, but for the slowest, two that are received.
    let tries = || (0..=u16::MAX).map(u16::to_be_bytes);
    for (kind, one_in) in [8, 16, 32, 64, 1024, 1024, 1024, 1024, 2048].into_iter().enumerate() {
        let kind = kind as u8;
        for (name, edits) in [("whole", &[][..]), ("flipped", &[0, 3, 0, 0, 70, 1])] {
            let seed = |nonce: [u8; 2]| [&[kind][..], &nonce, edits].concat();
            let find = |received| tries().map(seed).find(|seed| drawn(seed, one_in) == received);
            for received in [false, true] {
                if let Some(seed) = find(received).filter(|_| !received || kind < 6) {
                    add("engine_message", &format!("{name}{kind}-{received}"), &[&seed]);
                }
            }
        }
    }

    // Everybody's messages of each round, with true echoes.
    let honest = |rounds: &[u8], stages: u8| {
        let mut seed = vec![1, rounds.len() as u8 - 1];
        seed.extend(rounds);
        seed.push(0);
        for stage in 0..stages {
            for from in [1, 2] {
                for broadcast in [0, 16] {
                    seed.extend([stage + broadcast, from, 0]);
                }
            }
        }
        seed
    };
    add("rounds", "direct", &[&honest(&[0, 0], 2)]);
    add("rounds", "broadcast", &[&[1, 0, 1, 0, 0, 1, 0, 0, 2, 0, 1, 1, 0, 1, 2, 0]]);
    add("rounds", "both", &[&honest(&[2], 2)]);
    add("rounds", "mixed", &[&honest(&[0, 2, 1, 7], 6)]);

    for kind in [16, 48, 128, 255] {
        add("share_file", &format!("whole{kind}"), &[&[kind]]);
        add("share_file", &format!("flipped{kind}"), &[&[kind, 3, 0, 0, 90, 1]]);
    }
    add("share_file", "version", &[&[0], br#"{"version":2}"#]);

    let intent = br#"{"cluster":"c","key":"k","path":"m/0/1","hash":"keccak256","digest":"0000000000000000000000000000000000000000000000000000000000000000","not_after":"2030-01-02T03:04:05.678Z"}"#;
    add("intent", "json", &[&[0], intent]);
    for path in ["m", "m/44/60/0", "0'/1", "2147483648", "0/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15"] {
        add("intent", &format!("path{}", path.len()), &[&[1], path.as_bytes()]);
    }
    add("intent", "algorithm", &[&[2, 6], b"eip191", &[5; 32]]);
    add("intent", "fields", &[&[3, 2, 1, b'a', 1, b'b', 1, 2, b'a', b'b']]);
    add("intent", "pair", &[&[4, 2], &[0; 16], &[1, b'c', 1, b'k', 3], &[7; 32], &[1, 1, b'd', 0, 0]]);

    let plain = [&[2, 0, 3][..], b"key", &[0; 8]].concat();
    for (name, body) in [
        ("hello", r#"{"message":"hello"}"#),
        ("hex", r#"{"message":"0xff00","encoding":"hex","hash":"keccak256","path":"m/0"}"#),
        ("base64", r#"{"message":"aGVsbG8=","encoding":"base64","hash":"eip191","key":"k"}"#),
        ("expiry", r#"{"message":"a","hash":"sha256d","not_after":"2030-01-02T03:04:05Z"}"#),
        (
            "digest",
            r#"{"message":"0000000000000000000000000000000000000000000000000000000000000000","encoding":"hex","hash":"none"}"#,
        ),
        ("array", r#" ["hello"]"#),
        ("unknown", r#"{"message":"a","hsh":"none"}"#),
    ] {
        add("rest_body", name, &[&plain, body.as_bytes()]);
    }
    add(
        "rest_body",
        "charset",
        &[&[0, 32], b"Application/JSON; charset=utf-8 ", &[1], &[0; 8], br#"{"message":"a"}"#],
    );

    add("audit_log", "whole", &[&[32]]);
    add("audit_log", "cut", &[&[32, 0, 0, 1, 200]]);
    add("audit_log", "torn", &[&[32, 9, 0, 0, 0, 9], br#"{"seq":9,"#]);
    for event in 0..8 {
        add("audit_log", &format!("sealed{event}"), &[&[96, 3, 1, event]]);
    }
    add("audit_log", "two", &[&[96, 3, 1, 0, 3, 1, 1]]);
    add("audit_log", "kind", &[&[96, 2, 16], br#"{"kind":"later"}"#]);
    add("audit_log", "head", &[&[224], b"0:", key("0").as_bytes()]);
    add("audit_log", "opened", &[&[249]]);
    add("audit_log", "opened-torn", &[&[248, 9, 0, 0, 0, 9], br#"{"seq":9,"#]);
    seeds
}
