//! A key made by its signers themselves, each a process of its own, over a real RabbitMQ.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::process::Output;

use serde_json::json;
use tss_signer::report::ShareReport;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/installation.rs"]
mod installation;

use installation::{Installation, get, post};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs `signer keygen` for these signers at the same time, each with these arguments besides.
fn keygen(installation: &Installation, signers: &[(&str, &[&str])], timeout: &str) -> Vec<Output> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (index, besides) in signers {
            let arguments = [&["keygen", "--index", index, "--timeout", timeout], *besides].concat();
            running.push(scope.spawn(move || installation.run("signer", &arguments)));
        }
        running.into_iter().map(|running| running.join().unwrap()).collect()
    })
}

#[tokio::test]
async fn a_key_that_three_processes_made_signs_and_no_process_saw_two_shares() {
    let installation = Installation::with_identities();
    let reports = ["1.json", "2.json", "3.json"];
    let told = reports.map(|report| ["--report", report, "--attempt", "first"]);
    let made = keygen(&installation, &[("1", &told[0]), ("2", &told[1]), ("3", &told[2])], "120");
    let keys: Vec<String> = made
        .iter()
        .map(|output| {
            assert!(output.status.success(), "{}", said(output));
            String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
        })
        .collect();
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let report = |report| -> ShareReport {
        serde_json::from_slice(&std::fs::read(installation.folder().join(report)).unwrap()).unwrap()
    };
    let reports = reports.map(report);
    for (told, index) in reports.iter().zip(["1", "2", "3"]) {
        assert_eq!((told.index.to_string().as_str(), told.public_key.to_string()), (index, keys[0].clone()));
        assert_eq!(told.commitment, reports[0].commitment);
        let inspected = installation.run("signer", &["inspect", "--index", index]);
        assert!(inspected.status.success(), "{}", said(&inspected));
        assert_eq!(serde_json::from_slice::<ShareReport>(&inspected.stdout).unwrap(), *told);
    }

    let manager = installation.start("manager", &[]);
    let signers = ["1", "2", "3"].map(|index| installation.start("signer", &["--index", index]));
    installation.until_healthy(&[&manager, &signers[0], &signers[1], &signers[2]]).await;
    let url = installation.url();
    let (status, _, accepted) =
        post(&format!("{url}/sign"), &json!({"message": "m", "path": "m"})).await.unwrap();
    assert_eq!(status, 201, "{accepted}");
    let id = accepted["request_id"].as_str().unwrap();
    let (status, signature) = get(&format!("{url}/signature/{id}?wait=30s")).await.unwrap();
    assert_eq!((status, &signature["public_key"]), (200, &json!(keys[0])), "{signature}");

    // A share is never replaced.
    let again = installation.run("signer", &["keygen", "--index", "1"]);
    assert!(said(&again).contains("signer1.store is there already"), "{}", said(&again));
    installation.clean_up().await;
}

#[tokio::test]
async fn key_generation_that_cannot_finish_says_whom_it_waits_for_and_leaves_no_share() {
    let installation = Installation::with_identities();
    // Signer 3 is there, but at another try.
    let tries: [&[&str]; 2] = [&["--attempt", "2"], &["--attempt", "1"]];
    let outputs = keygen(&installation, &[("1", tries[0]), ("2", tries[0]), ("3", tries[1])], "8");
    for (output, missing) in outputs.iter().zip(["signer 3", "signer 3", "signers 1, 2"]) {
        assert!(!output.status.success());
        let said = said(output);
        assert!(said.contains(&format!("timeout waiting for {missing}")), "{said}");
        // Long before the end, it says so.
        assert!(said.contains("waiting for signers missing={"), "{said}");
    }
    for index in 1..=3 {
        assert!(!installation.folder().join(format!("signer{index}.store")).exists());
    }
    // With all there, it succeeds.
    for output in keygen(&installation, &[("1", &[]), ("2", &[]), ("3", &[])], "120") {
        assert!(output.status.success(), "{}", said(&output));
    }
    installation.clean_up().await;
}
