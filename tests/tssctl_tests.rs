//! `tssctl` as people and scripts run it: the built program, against a network in this process, and against a server that
//! answers what a test wants.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tssctl::network::Network;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/devnet.rs"]
mod devnet;
#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/installation.rs"]
mod processes;

use processes::Installation;

/// The id of a request of a server that is none.
const ID: &str = "550e8400-e29b-41d4-a716-446655440000";

/// A URL that nobody answers at.
const NOBODY: &str = "http://127.0.0.1:9";

/// Runs the program while what it talks to goes on in this process.
async fn run(installation: &Arc<Installation>, arguments: &[&str]) -> Output {
    let installation = installation.clone();
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let run = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        installation.run("tssctl", &arguments)
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What was printed by a command that did what it was asked, and said nothing else.
fn ok(output: &Output) -> String {
    assert_eq!((output.status.code(), err(output).as_str()), (Some(0), ""), "{}", out(output));
    out(output)
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// That a command ends with a code, prints nothing, and says these parts.
fn fails(output: &Output, code: i32, parts: &[&str]) {
    let said = err(output);
    assert_eq!((output.status.code(), out(output).as_str()), (Some(code), ""), "{said}");
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
}

fn private(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}

/// A network of a 2-of-3 key.
async fn network(folder: &Path) -> Network {
    devnet::start(devnet::config(&folder.join("network"))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_signed_wherever_it_comes_from_and_shown_as_text_or_json() {
    let installation = Arc::new(Installation::new());
    let network = network(installation.folder()).await;
    let url = network.url();
    let tssctl =
        async |arguments: &[&str]| run(&installation, &[arguments, &["--manager", &url]].concat()).await;
    let file = installation.folder().join("message.bin");
    let bytes = [0xff, 0x00, b'\n'];
    std::fs::write(&file, bytes).unwrap();

    let digest_of = |output: &Output| json_of(&ok(output))["digest"].as_str().unwrap().to_owned();
    let digest = hex::encode(Sha256::digest(bytes));
    let of_file = tssctl(&["sign", "--file", file.to_str().unwrap()]).await;
    assert_eq!(digest_of(&of_file), digest);
    assert_eq!(digest_of(&tssctl(&["sign", "--hex", "ff000a", "--output", "json"]).await), digest);
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("tssctl");
    let piped = format!("'{}' sign --stdin --manager {url} < message.bin", program.display());
    let (shell, at) = (installation.clone(), piped.clone());
    let output = tokio::task::spawn_blocking(move || shell.run("/bin/sh", &["-c", &at])).await.unwrap();
    assert_eq!(digest_of(&output), digest);

    let text = ok(&tssctl(&["sign", "hello", "--path", "0/7", "--output", "text"]).await);
    let value = |text: &str, label: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix("  "));
        line.unwrap_or_else(|| panic!("no {label} in: {text}")).trim().to_owned()
    };
    assert_eq!(value(&text, "path"), "0/7");
    let (signature, public_key) = (value(&text, "signature"), value(&text, "public key"));
    let verify = ["verify", "hello", "--signature", &signature, "--public-key", &public_key];
    let verified = json_of(&ok(&run(&installation, &[&verify[..], &["--output", "json"]].concat()).await));
    assert_eq!((&verified["valid"], &verified["public_key"]), (&json!(true), &json!(public_key)));
    let wrong =
        ["verify", "hellp", "--signature", &signature, "--public-key", &public_key, "--output", "json"];
    let wrong = run(&installation, &wrong).await;
    assert_eq!(wrong.status.code(), Some(3));
    assert_eq!(json_of(&out(&wrong))["valid"], false);

    // One key is one request; what it was used for stays.
    let once = async |message| tssctl(&["sign", message, "--idempotency-key", "once", "--wait", "0"]).await;
    let (first, again) = (ok(&once("a").await), ok(&once("a").await));
    assert_eq!(first, again);
    fails(&once("b").await, 1, &["422", "idempotency"]);

    let keys = json_of(&ok(&tssctl(&["keys", "--path", "0/7", "--output", "json"]).await));
    assert_eq!(keys[0]["derived"]["public_key"], public_key);
    assert!(ok(&tssctl(&["keys", "default"]).await).contains("threshold         2 of 3"));
    fails(&tssctl(&["keys", "other"]).await, 1, &["404"]);
    assert!(ok(&tssctl(&["health"]).await).contains(" of 3 ("));
    assert_eq!(json_of(&ok(&tssctl(&["health", "--output", "json"]).await))["status"], "ok");
    let status = ok(&tssctl(&["status", first.trim(), "--output", "text"]).await);
    assert_eq!(value(&status, "request"), first.trim());
    network.stop().await.unwrap();
}

#[test]
fn what_is_wrong_with_a_command_line_is_said_before_anybody_is_asked() {
    let installation = Installation::new();
    let folder = installation.folder();
    std::fs::write(folder.join("long"), vec![7; 800_000]).unwrap();
    private(&folder.join("token"), "two words");
    let tssctl = |arguments: &[&str]| {
        installation.run("tssctl", &[arguments, &["--manager", NOBODY, "--retry-for", "0"]].concat())
    };
    for (arguments, parts) in [
        (&["sign"][..], &["--stdin"][..]),
        (&["sign", "a", "--hex", "00"], &["cannot be used with"]),
        (&["sign", "--hex", "00", "--encoding", "utf8"], &["cannot be used with"]),
        (&["sign", "a", "--hash", "md5"], &["unknown hash `md5`", "keccak256"]),
        (&["sign", "a", "--encoding", "latin1"], &["unknown encoding `latin1`", "base64"]),
        (&["sign", "--file", "long"], &["long", "more than 786432 bytes", "--hash none"]),
        (&["sign", "--file", "none"], &["none", "No such file"]),
        (&["sign", "a", "--idempotency-key", "ä\u{1}"], &["idempotency key", "visible ASCII"]),
        (&["sign", "a", "--approval", "none"], &["approval none"]),
        (&["status", "7"], &["7"]),
        (&["health", "--manager-ca", "none"], &["none: No such file"]),
        (&["health", "--client-cert", "none"], &["both or neither"]),
        (&["status", ID, "--token-file", "token"], &["token file token", "spaces"]),
        (&["requests", ID, "--limit", "3"], &["cannot be used with"]),
        (&["requests", "--limit", "0"], &["1..=100000"]),
        (&["requests", "--status", "Done"], &["unknown status `Done`", "Completed"]),
        (&["key", "refresh", "--timeout", "soon"], &["--timeout", "soon"]),
    ] {
        fails(&tssctl(arguments), 2, parts);
    }
    fails(&tssctl(&["health"]), 5, &["no answer from the manager at", NOBODY]);

    let output = tssctl(&["health", "--output", "json"]);
    fails(&output, 5, &[]);
    assert_eq!(json_of(&err(&output))["error"]["exit_code"], 5);
    let output = tssctl(&["--output=json", "sign"]);
    fails(&output, 2, &[]);
    assert_eq!(json_of(&err(&output))["error"]["exit_code"], 2);
}

#[test]
fn flags_go_before_variables_and_those_before_the_profile() {
    let mut installation = Installation::new();
    let folder = installation.folder().to_owned();
    private(&folder.join("token"), "abc");
    let tssctl = |installation: &Installation, line: &str| {
        installation.run("tssctl", &line.split(' ').collect::<Vec<_>>())
    };
    let at = |installation: &Installation, more: &str, port: u16| {
        let output = tssctl(installation, &format!("health --retry-for 0{more}"));
        fails(&output, 5, &[&format!("the manager at http://127.0.0.1:{port}:")]);
    };
    ok(&tssctl(&installation, "profile set one --manager http://127.0.0.1:1 --token-file token --path 0/9"));
    ok(&tssctl(&installation, "profile set two --manager http://127.0.0.1:2"));
    at(&installation, "", 1);
    at(&installation, " --profile two", 2);
    at(&installation, " --manager http://127.0.0.1:3", 3);
    ok(&tssctl(&installation, "profile use two"));
    at(&installation, "", 2);
    let list = ok(&tssctl(&installation, "profile list"));
    assert!(list.contains("*  two") && list.contains("   one"), "{list}");
    installation.set("TSS_PROFILE", "one");
    at(&installation, "", 1);
    at(&installation, " --profile two", 2);
    installation.set("TSS_MANAGER", "http://127.0.0.1:4");
    at(&installation, "", 4);
    at(&installation, " --manager http://127.0.0.1:3", 3);

    // A profile holds the names of files, wherever it is read from, and never a token.
    let shown = json_of(&ok(&tssctl(&installation, "profile show one --output json")));
    assert_eq!(shown["token_file"], folder.join("token").to_str().unwrap());
    let file = folder.join("tss-network/tssctl.toml");
    std::fs::set_permissions(folder.join("token"), Permissions::from_mode(0o644)).unwrap();
    fails(
        &tssctl(&installation, "health"),
        2,
        &["token", "its permissions are 0644", "expected 0600 or 0440"],
    );
    ok(&tssctl(&installation, "profile set one --token-file="));
    at(&installation, " --manager http://127.0.0.1:1", 1);
    ok(&tssctl(&installation, "profile remove one"));
    fails(&tssctl(&installation, "health"), 2, &["no profile `one`: expected one of two"]);
    fails(&tssctl(&installation, "profile use one"), 2, &["no profile `one`"]);
    std::fs::write(&file, "[profiles.a]\ntoken = \"c2VjcmV0\"\n").unwrap();
    let output = tssctl(&installation, "health");
    fails(&output, 2, &["tssctl.toml", "unknown field `token`"]);
    assert!(!err(&output).contains("c2VjcmV0"));
    fails(&tssctl(&installation, "health --config-file none.toml"), 2, &["none.toml", "No such file"]);
}

#[test]
fn tokens_are_made_of_a_secret_that_is_one() {
    let installation = Installation::new();
    let folder = installation.folder().to_owned();
    let tssctl = |line: &str| installation.run("tssctl", &line.split(' ').collect::<Vec<_>>());
    let make = "token make --subject alice --scope sign,read --secret-file";
    private(&folder.join("short"), &format!("{}\n", "x".repeat(31)));
    private(&folder.join("secret"), &format!("{}\n", "x".repeat(32)));
    fails(&tssctl(&format!("{make} short")), 2, &["short", "31 bytes", "at least 32"]);
    fails(&tssctl(&format!("{make} secret --expires 400d")), 2, &["--expires", "366 days"]);
    fails(&tssctl(&format!("{make} none")), 2, &["none", "No such file"]);

    let token = ok(&tssctl(&format!("{make} secret --key default --path 0/1")));
    assert_eq!(token.trim().split('.').count(), 3, "{token}");
    ok(&tssctl(&format!("{make} secret --out made")));
    let made = folder.join("made");
    assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = ok(&tssctl("token show made"));
    assert!(shown.starts_with("NOT VERIFIED") && shown.contains("alice"), "{shown}");
    let shown = json_of(&ok(&tssctl("token show made --output json")));
    assert_eq!((&shown["verified"], &shown["claims"]["scope"]), (&json!(false), &json!("sign read")));
    fails(&tssctl("token show secret"), 2, &["the token is none"]);

    std::fs::set_permissions(folder.join("secret"), Permissions::from_mode(0o644)).unwrap();
    fails(&tssctl(&format!("{make} secret")), 2, &["its permissions are 0644"]);
}

#[test]
fn shells_and_readers_of_manuals_are_served() {
    let installation = Installation::new();
    let tssctl = |arguments: &[&str]| installation.run("tssctl", arguments);
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = ok(&tssctl(&["completion", shell]));
        assert!(script.contains("import-legacy") && script.contains("idempotency-key"), "{shell}");
    }
    let bash = ok(&tssctl(&["completion", "bash"]));
    std::fs::write(installation.folder().join("completion"), bash).unwrap();
    let loads = installation.run("/bin/bash", &["-c", "set -eu; . ./completion; complete -p tssctl"]);
    assert!(ok(&loads).contains("_tssctl"));

    assert!(ok(&tssctl(&["man"])).contains(".TH tssctl 1"));
    assert!(ok(&tssctl(&["man", "token", "make"])).contains(".TH tssctl-token-make 1"));
    fails(&tssctl(&["man", "tokens"]), 2, &["no command `tokens`"]);
    ok(&tssctl(&["man", "--out", "pages"]));
    let page = std::fs::read_to_string(installation.folder().join("pages/tssctl-sign.1")).unwrap();
    assert!(page.contains("idempotency"), "{page}");
}

/// A path, and the status, headers and body that it is answered with.
type Route = (&'static str, u16, Vec<(&'static str, &'static str)>, String);

/// A server that answers a path, or what begins with one that ends with `=`, with status, headers and body, and remembers who asked.
async fn server(routes: Vec<Route>) -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let answer = move |request: Request| async move {
        let path = request.uri().path_and_query().map_or("", |path| path.as_str()).to_owned();
        let by = request.headers().get("authorization").map_or("", |value| value.to_str().unwrap());
        seen.lock().unwrap().push(format!("{path} {by}"));
        let route = routes.iter().find(|(at, ..)| *at == path || (at.ends_with('=') && path.starts_with(at)));
        let Some((_, status, headers, body)) = route.cloned() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let mut response = (StatusCode::from_u16(status).unwrap(), Body::from(body)).into_response();
        for (name, value) in headers {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (url, asked)
}

fn summary(id: &str) -> Value {
    json!({
        "request_id": id, "status": "Failed", "key": "default", "path": "0/1", "hash": "sha256", "attempts": 2,
        "created_at": "2030-01-02T03:04:05.6Z", "finished_at": null, "quorum": [1, 3], "reason": "bad\u{1b}[2J",
        "digest": "00".repeat(32), "requested_by": "alice", "deadline": "2030-01-02T03:04:35Z",
        "timeline": [
            {"at": "2030-01-02T03:04:05Z", "event": "accepted"},
            {"at": "2030-01-02T03:04:06Z", "event": "attempt", "attempt": 1, "quorum": [1, 3]},
        ],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_listed_watched_and_shown() {
    let installation = Arc::new(Installation::new());
    let json_type = vec![("content-type", "application/json")];
    let status = |name: &str| {
        let reason = if name == "Failed" { "too late" } else { "" };
        json!({"request_id": ID, "status": name, "attempts": 1, "quorum": [1, 3], "reason": reason})
    };
    let events = |names: &[&str]| {
        let events = names.iter().map(|name| format!("event: status\ndata: {}\n\n", status(name)));
        events.collect::<String>()
    };
    let overview = json!({
        "cluster": "tss", "version": "0.1.0 (abc)", "now": "2030-01-02T03:04:05Z", "status": "ok", "store": "up",
        "bus": "up", "threshold": 2, "keys": ["default"], "unfinished": 3, "active": 2,
        "signers": [{"signer": 1, "live": true, "usable": true, "heard_at": "2030-01-02T03:04:05Z"},
                    {"signer": 2, "live": false, "usable": false, "heard_at": null}],
        "series": {"step_seconds": 5, "points": [
            {"at": "2030-01-02T03:04:00Z", "completed": 12, "failed": 1, "p50": 0.03, "p99": null}]},
        "recent": [summary(ID)],
    });
    let other = ID.replace('5', "6");
    let page =
        |requests: Vec<Value>, next: Option<&str>| json!({"requests": requests, "next": next}).to_string();
    let (url, asked) = server(vec![
        ("/requests?key=default&limit=50", 200, json_type.clone(), page(vec![summary(ID)], Some("c"))),
        (
            "/requests?key=default&limit=50&cursor=c",
            200,
            json_type.clone(),
            page(vec![summary(&other)], None),
        ),
        ("/requests/550e8400-e29b-41d4-a716-446655440000", 200, json_type.clone(), summary(ID).to_string()),
        (
            "/requests/550e8400-e29b-41d4-a716-446655440000/events",
            200,
            vec![("content-type", "text/event-stream")],
            events(&["Pending", "InProgress", "Failed"]),
        ),
        ("/overview", 200, json_type, overview.to_string()),
    ])
    .await;
    let token = installation.folder().join("token");
    private(&token, "abc\n");
    let more = ["--manager", &url, "--token-file", "token", "--retry-for", "0"];
    let tssctl = async |arguments: &[&str]| run(&installation, &[arguments, &more].concat()).await;

    let text = ok(&tssctl(&["requests", "--key", "default"]).await);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 3 && lines[1].contains(ID) && lines[2].contains(&other), "{text}");
    assert!(lines[1].contains("2030-01-02T03:04:05Z") && lines[1].ends_with("alice"), "{text}");
    let text = ok(&tssctl(&["requests", "--key", "default", "--output", "json"]).await);
    let ids: Vec<_> = text.lines().map(|line| json_of(line)["request_id"].clone()).collect();
    assert_eq!(ids, [json!(ID), json!(other)]);
    let text = ok(&tssctl(&["requests", ID]).await);
    assert!(text.contains("bad\\u{1b}[2J") && text.contains("quorum 1, 3"), "{text}");

    let watched = tssctl(&["watch", ID]).await;
    assert_eq!(watched.status.code(), Some(3));
    assert_eq!(out(&watched).lines().count(), 3, "{watched:?}");
    assert!(err(&watched).contains("ended without a signature: too late"), "{watched:?}");
    let watched = tssctl(&["watch", ID, "--output", "json"]).await;
    let names: Vec<_> = out(&watched).lines().map(|line| json_of(line)["status"].clone()).collect();
    assert_eq!(names, ["Pending", "InProgress", "Failed"]);
    assert_eq!(json_of(&err(&watched))["error"]["exit_code"], 3);

    let text = ok(&tssctl(&["overview"]).await);
    for part in ["12 completed, 1 failed in 5 s", "2       away    never", ID] {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
    assert_eq!(json_of(&ok(&tssctl(&["overview", "--output", "json"]).await))["active"], 2);
    assert!(asked.lock().unwrap().iter().all(|asked| asked.ends_with(" Bearer abc")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_shares_are_waited_for_until_all_signers_have_them_or_one_has_failed() {
    let installation = Arc::new(Installation::new());
    // One path, and so one body for what is ordered and how far it is.
    let told = |signers: Value| json!({"key": "default", "refresh": ID, "epoch": 1, "signers": signers});
    let refresh = async |signers: Value, more: &[&str]| {
        let health = json!({
            "status": "ok", "store": "up", "bus": "up", "signers": {"live": [1, 2], "threshold": 2, "total": 2},
            "key": {"id": "default", "epoch": 1, "public_key": format!("02{}", "11".repeat(32))},
        });
        let (url, _) = server(vec![
            ("/health", 200, vec![], health.to_string()),
            ("/keys/default/refresh", 202, vec![], told(signers).to_string()),
        ])
        .await;
        run(&installation, &[&["key", "refresh", "--manager", &url], more].concat()).await
    };
    let signer = |signer: u8, epoch: u64, step: &str| json!({"signer": signer, "live": true, "epoch": epoch, "refresh": ID, "step": step});
    let done = || json!([signer(1, 2, "done"), signer(2, 2, "done")]);
    assert_eq!(ok(&refresh(done(), &[]).await), "key    default\nepoch  2\n");
    let shown = json_of(&ok(&refresh(done(), &["default", "--output", "json"]).await));
    assert_eq!(shown, json!({"key": "default", "epoch": 2}));

    let mut failed = signer(2, 1, "failed");
    failed["reason"] = json!("its disk is full\u{1b}[2J");
    let output = refresh(json!([signer(1, 1, "stored"), failed]), &[]).await;
    fails(&output, 1, &["key default has no new shares: signer 2: its disk is full\\u{1b}[2J"]);
    let waiting = json!([signer(1, 1, "stored"), {"signer": 2, "live": false}]);
    let output = refresh(waiting, &["--timeout", "1"]).await;
    fails(
        &output,
        4,
        &["after 1 s: signer 1 has stored its new share, signer 2 is away. It may not have failed"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_refusal_has_its_exit_code() {
    let installation = Arc::new(Installation::new());
    let problem = |status: u16, kind: &str| {
        json!({"type": format!("urn:tss-network:problem:{kind}"), "title": "No", "status": status})
            .to_string()
    };
    let kind = vec![("content-type", "application/problem+json")];
    let later = [kind.clone(), vec![("retry-after", "60")]].concat();
    let id = "/status/550e8400-e29b-41d4-a716-446655440000";
    for (status, name, headers, code) in [
        (401, "unauthenticated", kind.clone(), 6),
        (403, "forbidden", kind.clone(), 6),
        (409, "request-failed", kind.clone(), 3),
        (429, "rate-limited", later, 7),
        (503, "overloaded", kind.clone(), 7),
        (500, "internal", kind, 1),
    ] {
        let (url, _) = server(vec![(id, status, headers, problem(status, name))]).await;
        let arguments = ["status", ID, "--manager", &url, "--retry-for", "1", "--output", "json"];
        let output = run(&installation, &arguments).await;
        fails(&output, code, &[]);
        let error = &json_of(&err(&output))["error"];
        assert_eq!((&error["status"], &error["kind"]), (&json!(status), &json!(name)));
        assert_eq!(error["retry_after"].as_u64(), (status == 429).then_some(60));
    }
    let accepted = json!({"request_id": ID, "status": "Pending"}).to_string();
    let (url, _) = server(vec![
        ("/sign", 201, vec![], accepted.clone()),
        ("/signature/550e8400-e29b-41d4-a716-446655440000?wait=", 202, vec![], accepted),
    ])
    .await;
    let began = std::time::Instant::now();
    let output = run(&installation, &["sign", "a", "--wait", "1", "--manager", &url]).await;
    fails(&output, 4, &[ID, "is not signed after 1 s", "tssctl status"]);
    assert!(began.elapsed() < Duration::from_secs(30));
}
