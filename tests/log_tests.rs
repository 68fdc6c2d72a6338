//! The logs of a network of real processes: whatever is logged of a request names it.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use serde_json::{Value, json};

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/installation.rs"]
mod installation;

use installation::{Installation, Process, get, post};

/// Has a message signed by a network with these settings; yields the request's id and all lines of its logs.
async fn lines_of_a_request(settings: &[(&str, &str)]) -> (String, Vec<Value>) {
    let mut installation = Installation::new();
    installation.keygen();
    for (name, value) in settings {
        installation.set(name, value);
    }
    installation.set("TSS_LOG__FORMAT", "json");
    let mut processes = vec![installation.start("manager", &[])];
    processes.extend((1..=3).map(|index| installation.start("signer", &["--index", &index.to_string()])));
    installation.until_healthy(&processes.iter().collect::<Vec<_>>()).await;
    let url = installation.url();
    let (status, _, accepted) = post(&format!("{url}/sign"), &json!({"message": "hello"})).await.unwrap();
    assert_eq!(status, 201);
    let id = accepted["request_id"].as_str().unwrap().to_owned();
    get(&format!("{url}/signature/{id}?wait=60s")).await.unwrap();
    let logs: Vec<String> = processes.into_iter().map(Process::stop_and_log).collect();
    installation.clean_up().await;
    let lines = logs.iter().flat_map(|log| log.lines().skip(1));
    (
        id,
        lines
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?} in {}", logs.concat()))
            })
            .collect(),
    )
}

/// That there are lines with each of these messages, and that all of them name the request and have this level.
fn assert_name(lines: &[Value], id: &str, messages: &[(&str, &str)]) {
    for (message, level) in messages {
        let such: Vec<&Value> = lines.iter().filter(|line| line["message"] == json!(message)).collect();
        assert!(!such.is_empty(), "{message} is missing in {lines:#?}");
        for line in such {
            let spans = line["spans"].as_array().unwrap_or_else(|| panic!("no spans: {line}"));
            assert!(spans.iter().any(|span| span["request"] == json!(id)), "{line}");
            assert_eq!(line["level"], json!(level), "{line}");
        }
    }
}

#[tokio::test]
async fn every_line_of_a_request_names_it() {
    let (id, lines) =
        lines_of_a_request(&[("TSS_LOG__LEVEL", "info,tss_manager=debug,tss_signer=debug")]).await;
    let messages = [
        ("attempt begins", "DEBUG"),
        ("all parties are there", "DEBUG"),
        ("signed", "INFO"),
        ("request completed", "INFO"),
    ];
    assert_name(&lines, &id, &messages);
    // Nothing else is said where requests are driven and sessions run.
    for line in &lines {
        if line["target"] == "tss_manager::coordinator" && line["message"] != "the store answers"
            || line["target"] == "tss_signer::session"
        {
            assert!(line.to_string().contains(&id), "{line}");
        }
    }
}

#[tokio::test]
async fn a_line_names_its_request_also_where_only_warnings_are_logged() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, "paths = [\"9\"]").unwrap();
    let settings = [("TSS_LOG__LEVEL", "warn"), ("TSS_POLICY_FILE", policy.to_str().unwrap())];
    let (id, lines) = lines_of_a_request(&settings).await;
    let messages =
        [("refused", "WARN"), ("a signer refuses the request", "WARN"), ("request failed", "WARN")];
    assert_name(&lines, &id, &messages);
    assert!(lines.iter().all(|line| line["level"] != "INFO"), "{lines:#?}");
}
