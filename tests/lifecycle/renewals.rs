//! New shares of a key: for the same signers, for more and for fewer, for those who have lost theirs. Each signer is a
//! process of its own, over a real RabbitMQ.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tss_client::Client;
use tss_client::types::SignRequest;

use crate::imports::sign;
use crate::installation::{Installation, Process, get};
use crate::{fails, holders_of, identity, ok, private, read, tssctl, with_backups};

/// Runs `signer renew` for these signers at the same time; `more` says what else one is told.
fn renew(
    installation: &Installation,
    signers: &[u8],
    line: &str,
    more: impl Fn(u8) -> String + Sync,
) -> Vec<Output> {
    std::thread::scope(|scope| {
        let running: Vec<_> = signers
            .iter()
            .map(|&index| {
                let line = format!(
                    "renew --index {index} --out signer{index}.next --timeout 120 {line} {}",
                    more(index)
                );
                scope.spawn(move || installation.run("signer", &line.split_whitespace().collect::<Vec<_>>()))
            })
            .collect();
        running.into_iter().map(|running| running.join().unwrap()).collect()
    })
}

fn store(installation: &Installation, index: u8) -> PathBuf {
    installation.folder().join(format!("signer{index}.store"))
}

/// Puts the new shares in the place of the old ones.
fn put_in_place(installation: &Installation, signers: &[u8]) {
    for &index in signers {
        let new = installation.folder().join(format!("signer{index}.next"));
        std::fs::rename(new, store(installation, index)).unwrap();
    }
}

async fn start(installation: &Installation, signers: &[u8]) -> Vec<Process> {
    let mut all = vec![installation.start("manager", &[])];
    all.extend(signers.iter().map(|index| installation.start("signer", &["--index", &index.to_string()])));
    installation.until_healthy(&all.iter().collect::<Vec<_>>()).await;
    all
}

/// That the network signs for this key at this epoch, as its manager has it on record.
async fn signs(installation: &Installation, public_key: &str, epoch: u64) {
    assert_eq!(sign(installation, "m").await, public_key);
    let (_, key) = get(&format!("{}/keys/default?path=m", installation.url())).await.unwrap();
    assert_eq!((&key["public_key"], &key["epoch"]), (&public_key.into(), &epoch.into()), "{key}");
}

fn stop(processes: Vec<Process>) {
    processes.into_iter().for_each(Process::stop);
}

/// Tells the installation how many signers there are, with identities for all of them.
fn resize(installation: &mut Installation, threshold: u8, signers: u8) {
    installation.set("TSS_THRESHOLD", &threshold.to_string());
    installation.set("TSS_TOTAL_PARTIES", &signers.to_string());
    let part = |index: u8| {
        let existing = format!("signer{index}.identity");
        let line = format!("identity --index {index} --existing {existing}");
        ok(&installation.run("signer", &line.split_whitespace().collect::<Vec<_>>()))
    };
    let roster: String = (1..=signers).map(part).collect();
    std::fs::write(installation.folder().join("roster.toml"), roster).unwrap();
}

#[tokio::test]
async fn a_key_is_refreshed_goes_to_more_signers_and_back_to_fewer_and_keeps_its_address() {
    let mut installation = Installation::new();
    installation.keygen();
    let public_key = read(&store(&installation, 1))["core"]["public_key"].as_str().unwrap().to_owned();
    let all = start(&installation, &[1, 2, 3]).await;
    signs(&installation, &public_key, 1).await;
    stop(all);

    let old = std::fs::read(store(&installation, 1)).unwrap();
    for output in renew(&installation, &[1, 2, 3], "--dealers 1,3 --epoch 1", |_| String::new()) {
        assert_eq!(ok(&output).trim(), public_key);
    }
    assert_eq!(std::fs::read(store(&installation, 1)).unwrap(), old, "the old share is where it was");
    put_in_place(&installation, &[1, 2, 3]);
    let all = start(&installation, &[1, 2, 3]).await;
    signs(&installation, &public_key, 2).await;
    stop(all);
    // Whoever brings back a share of the epoch before is not let start with it.
    let new = std::fs::read(store(&installation, 1)).unwrap();
    private(&store(&installation, 1), &old);
    fails(&installation.run("signer", &["--index", "1"]), 1, &["epoch"]);
    private(&store(&installation, 1), &new);

    resize(&mut installation, 3, 5);
    for output in renew(&installation, &[1, 2, 3, 4, 5], "--dealers 1,2 --epoch 2", |_| String::new()) {
        assert_eq!(ok(&output).trim(), public_key);
    }
    put_in_place(&installation, &[1, 2, 3, 4, 5]);
    let all = start(&installation, &[1, 2, 3, 4, 5]).await;
    signs(&installation, &public_key, 3).await;
    stop(all);

    resize(&mut installation, 2, 3);
    for output in renew(&installation, &[1, 2, 3], "--dealers 1,2,3 --epoch 3", |_| String::new()) {
        assert_eq!(ok(&output).trim(), public_key);
    }
    put_in_place(&installation, &[1, 2, 3]);
    let all = start(&installation, &[1, 2, 3]).await;
    signs(&installation, &public_key, 4).await;
    stop(all);

    let audited = ok(&tssctl(&installation, "audit show tss-data/signer1.audit.jsonl"));
    for epoch in 2..=4 {
        assert!(audited.contains(&format!("key default at epoch {epoch}")), "{audited}");
    }
    installation.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_goes_to_more_signers_and_back_to_fewer_while_its_network_signs_all_that_is_asked_for() {
    let mut installation = Installation::new();
    installation.keygen();
    let public_key = read(&store(&installation, 1))["core"]["public_key"].as_str().unwrap().to_owned();
    installation.set("TSS_SIGNING_TIMEOUT", "60");
    let start_signer = |installation: &Installation, index: u8| {
        installation.start("signer", &["--index", &index.to_string()])
    };
    let mut manager = installation.start("manager", &[]);
    let mut signers: BTreeMap<u8, Process> =
        (1..=3).map(|index| (index, start_signer(&installation, index))).collect();
    installation.until_healthy(&signers.values().chain([&manager]).collect::<Vec<_>>()).await;

    static SIGNED: AtomicU32 = AtomicU32::new(0);
    let client = Client::builder(installation.url()).retry_for(Duration::from_secs(60)).build().unwrap();
    let load = tokio::spawn(async move {
        loop {
            let request = SignRequest::text(format!("message {}", SIGNED.load(Ordering::Relaxed)));
            client.sign_and_wait(&request, Duration::from_secs(90)).await.unwrap();
            SIGNED.fetch_add(1, Ordering::Relaxed);
        }
    });
    for (epoch, threshold, count, dealers) in [(1, 3, 5, "1,2"), (2, 2, 3, "1,2,3")] {
        resize(&mut installation, threshold, count);
        let all: Vec<u8> = (1..=count).collect();
        // The signers have theirs open.
        installation.set("TSS_DATA_DIR", &format!("ceremony-{epoch}"));
        let signed = SIGNED.load(Ordering::Relaxed);
        let line = format!("--dealers {dealers} --epoch {epoch}");
        let outputs = tokio::task::block_in_place(|| renew(&installation, &all, &line, |_| String::new()));
        for output in outputs {
            assert_eq!(ok(&output).trim(), public_key);
        }
        assert!(SIGNED.load(Ordering::Relaxed) > signed, "nothing was signed meanwhile");
        installation.set("TSS_DATA_DIR", "tss-data");
        put_in_place(&installation, &all);
        // A manager uses whichever epoch enough signers have, if its roster has them: with the longer roster, the first
        // to come or the last to go.
        let comes_first = usize::from(count) > signers.len();
        if comes_first {
            manager.stop();
            manager = installation.start("manager", &[]);
        }
        // Those that come first, those that go last.
        for index in (1..=count).rev() {
            if let Some(before) = signers.remove(&index) {
                before.stop();
            }
            signers.insert(index, start_signer(&installation, index));
            let until = SIGNED.load(Ordering::Relaxed) + 2;
            while SIGNED.load(Ordering::Relaxed) < until {
                assert!(!load.is_finished(), "a request was lost");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        for gone in signers.split_off(&(count + 1)).into_values() {
            gone.stop();
        }
        if !comes_first {
            manager.stop();
            manager = installation.start("manager", &[]);
            installation.until_healthy(&[&manager]).await;
        }
        signs(&installation, &public_key, epoch + 1).await;
    }
    assert!(!load.is_finished(), "a request was lost");
    load.abort();
    manager.stop();
    signers.into_values().for_each(Process::stop);
    installation.clean_up().await;
}

#[tokio::test]
async fn a_network_of_which_only_backups_are_left_comes_back_with_its_address() {
    let mut installation = Installation::new();
    let public_key = with_backups(&installation);
    // One of the shares is encrypted from then on.
    let recipient = identity(&installation, "signers.age");
    for index in 1..=3 {
        std::fs::remove_file(store(&installation, index)).unwrap();
    }
    let more = |index: u8| match index {
        3 => format!("--recipient {recipient}"),
        _ => format!("--share backup{index} {}", holders_of(&[index])),
    };
    for output in renew(&installation, &[1, 2, 3], "--dealers 1,2 --epoch 1", more) {
        assert_eq!(ok(&output).trim(), public_key);
    }
    put_in_place(&installation, &[1, 2, 3]);
    installation.set("TSS_AGE_IDENTITY_FILE", "signers.age");
    let all = start(&installation, &[1, 2, 3]).await;
    signs(&installation, &public_key, 2).await;
    stop(all);
    // What was backed up is of no use with what there is now.
    let mixed = format!("backup verify backup3 signer1.store {}", holders_of(&[3]));
    fails(&tssctl(&installation, &mixed), 1, &["signer1.store: it is of epoch 2: expected 1"]);
    installation.clean_up().await;
}

#[test]
fn what_cannot_be_renewed_is_refused_and_leaves_the_shares_as_they_are() {
    let installation = Installation::new();
    installation.keygen();
    let one = |line: &str| {
        let line = format!("renew --index 1 --timeout 3 --out signer1.next {line}");
        installation.run("signer", &line.split_whitespace().collect::<Vec<_>>())
    };
    let before = std::fs::read(store(&installation, 1)).unwrap();
    fails(&one("--dealers 1,2 --epoch 1"), 1, &["the renewal did not finish", "waiting for signers 2, 3"]);
    fails(&one("--dealers 1,1 --epoch 1"), 1, &["--dealers", "twice"]);
    fails(&one("--dealers 1,x --epoch 1"), 2, &["`x`: expected a signer's index"]);
    fails(&one("--dealers 1,2 --epoch 1 --share none"), 1, &["none: No such file"]);
    // What all would find out once they have met.
    let refused = |line: &str, signers: &[u8], parts: &[&str]| {
        for output in renew(&installation, signers, line, |_| String::new()) {
            fails(&output, 1, parts);
        }
    };
    refused("--dealers 1,2 --epoch 7", &[1, 2, 3], &["at epoch 1: expected one of"]);
    refused("--dealers 1,2,3 --epoch 1", &[1, 2, 3], &["does not fit a 2-of-3 key"]);
    private(&installation.folder().join("signer1.next"), "there");
    fails(
        &one("--dealers 1,2 --epoch 1"),
        1,
        &["signer1.next is there already, and a share is never replaced"],
    );
    assert_eq!(std::fs::read(store(&installation, 1)).unwrap(), before);
    let left = |index| installation.folder().join(format!("signer{index}.next")).exists();
    assert!(!left(2) && !left(3));
    let share: Value = read(&store(&installation, 1));
    assert_eq!(share["epoch"], 1);
}
