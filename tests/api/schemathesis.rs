//! Schemathesis asks a running network thousands of things, allowed and forbidden by the document, one by one and in
//! the order of its links; whatever is answered must be in the document. How is in `schemathesis.toml`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::network::Api;
use crate::tokens::{ask_for_tokens, claims, token};

/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// How many cases there are at least: fewer mean that it did not come to ask.
const CASES: u32 = 2000;

/// Runs a program of `tests/api/install` in a folder of its own, and returns what it printed.
async fn run(program: &str, arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let running = Command::new(program)
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, running).await.unwrap_or_else(|_| panic!("{program} has not ended"));
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}: tests/api/install makes it"));
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program}: {}\n{said}", output.status);
    said
}

/// That a manager answers nothing that is not in its document, to whoever has this token.
async fn assert_conforms(url: &str, token: Option<&str>) {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/schemathesis.toml");
    let config = config.display().to_string();
    let document = format!("{url}/openapi.json");
    let authorization = token.map(|token| format!("Authorization: Bearer {token}"));
    let mut arguments = vec!["--config-file", &config, "run", &document, "--checks", "all", "--no-color"];
    if let Some(header) = &authorization {
        arguments.extend(["--header", header]);
    }
    let said = run("schemathesis", &arguments).await;
    println!("{said}");
    let cases = said.lines().find_map(|line| line.trim().split_once(" generated")?.0.parse::<u32>().ok());
    assert!(cases.is_some_and(|cases| cases >= CASES), "{cases:?} cases: expected at least {CASES}");
    for phase in ["Examples", "Coverage", "Fuzzing", "Stateful"] {
        assert!(said.contains(&format!("✅ {phase}")), "{phase}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_one_of_openapi_3_1() {
    let api = Api::without_signers().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("openapi.json");
    std::fs::write(&file, api.document().await.to_string()).unwrap();
    run("openapi-spec-validator", &["--schema", "3.1", file.to_str().unwrap()]).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_asked_with_a_token_the_answer_is_in_the_document() {
    let api = Api::start_with(|config, folder| {
        ask_for_tokens(config, folder);
        // It asks as often as it can.
        config.limits.rate = 0;
    })
    .await;
    assert_conforms(api.url(), Some(&token(&claims("schemathesis", "sign read admin")))).await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_asked_the_answer_is_in_the_document() {
    let api = Api::start().await;
    assert_conforms(api.url(), None).await;
    api.stop().await;
}
