//! What the programs tell of themselves: their versions, and metrics on a port of their own.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::time::{Duration, Instant};

use serde_json::json;
use tss_common::version;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/installation.rs"]
mod installation;

use installation::{Installation, START, post};

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn answer(url: &str) -> Option<(u16, String)> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
    let response = client.get(url).send().await.ok()?;
    Some((response.status().as_u16(), response.text().await.ok()?))
}

#[test]
fn every_program_says_its_version_and_revision() {
    let installation = Installation::new();
    for program in ["manager", "signer", "operator", "tssctl"] {
        let output = installation.run(program, &["--version"]);
        assert!(output.status.success(), "{output:?}");
        let expected = format!("{program} {} ({})\n", version::VERSION, version::REVISION);
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}

#[tokio::test]
async fn metrics_can_have_a_port_that_nothing_can_be_signed_on() {
    let mut installation = Installation::new();
    installation.keygen();
    let port = free_port();
    installation.set("TSS_MANAGER_METRICS_PORT", &port.to_string());
    let manager = installation.start("manager", &[]);
    let signer_port = free_port();
    let settings = [("TSS_SIGNER_PORT", signer_port.to_string())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let signers = installation.start_as("signers", "signer", &[], &settings);
    installation.until_healthy(&[&manager, &signers]).await;

    let (api, watched) = (installation.url(), format!("http://127.0.0.1:{port}"));
    assert_eq!(answer(&format!("{api}/metrics")).await.unwrap().0, 404);
    for url in [&api, &watched] {
        assert_eq!(answer(&format!("{url}/livez")).await, Some((200, "alive\n".into())));
        assert_eq!(answer(&format!("{url}/readyz")).await, Some((200, "ready\n".into())));
    }
    assert_eq!(answer(&format!("{watched}/health")).await.unwrap().0, 404);
    let (status, _, _) = post(&format!("{watched}/sign"), &json!({"message": "hello"})).await.unwrap();
    assert_eq!(status, 404);
    let (status, _, _) = post(&format!("{api}/sign"), &json!({"message": "hello"})).await.unwrap();
    assert_eq!(status, 201);

    let began = Instant::now();
    loop {
        let (status, text) = answer(&format!("{watched}/metrics")).await.unwrap();
        assert_eq!(status, 200);
        assert!(text.contains("tss_build_info{program=\"manager\","), "{text}");
        let has = |line: &str| text.lines().any(|found| found == line);
        if has("tss_requests_total{outcome=\"completed\"} 1") && has("tss_key_epoch 1") {
            break;
        }
        assert!(began.elapsed() < START, "{text}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (_, text) = answer(&format!("http://127.0.0.1:{signer_port}/metrics")).await.unwrap();
    assert!(text.contains("tss_build_info{program=\"signer\","), "{text}");
    manager.stop();
    assert_eq!(answer(&format!("{watched}/livez")).await, None);
    signers.stop();
    installation.clean_up().await;
}
