//! What a log tells whoever reads it: everything about a request but its message, and nothing secret, at
//! any level. Real processes against the real servers.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tss_mpc::{ShareDocument, Threshold};

use crate::installation::{Installation, START, get, post, rabbitmq_uri};

/// Everything, also what is quiet otherwise, by its whole name and by the names of its parts.
const EVERYTHING: &str = "trace,lapin=trace,lapin::channels=trace,lapin::channel=trace,lapin::connection=trace,\
                          lapin::frames=trace,lapin::io_loop=trace,lapin::internal_rpc=trace,amq_protocol=trace,\
                          amq_protocol::auth=trace,mongodb=trace,mongodb::command=trace,hyper=trace,\
                          hyper::proto=trace,hyper_util=trace,rustls=trace,rustls::client=trace,tower_http=trace,\
                          reqwest=trace";

/// How long a piece of a long secret is that nobody comes by without it.
const PIECE: usize = 24;

/// A password that stands nowhere else.
const PASSWORD: &str = "correct-horse-battery-staple-4711";

/// Messages that stand nowhere else: text, and bytes that are none.
fn messages() -> [Vec<u8>; 3] {
    [
        b"the quick brown fox pays 31337 doubloons to the lazy dog".to_vec(),
        (0..48).map(|byte| 0x80 | (byte * 5)).collect(),
        "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich".repeat(40).into_bytes(),
    ]
}

fn base64(bytes: &[u8]) -> String {
    let text = tss_common::encoding::base64::serialize(bytes, serde_json::value::Serializer).unwrap();
    text.as_str().unwrap().to_owned()
}

/// How bytes may look in a log: as they are, in hex, in base64, as a list of numbers; and as such a list of
/// the digits that stand for them in a message.
fn forms(bytes: &[u8]) -> Vec<String> {
    let start = &bytes[..bytes.len().min(24)];
    let numbers =
        |bytes: &[u8], between: &str| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(between);
    let mut forms = vec![hex::encode(start), hex::encode_upper(start)];
    // Without its end, which depends on what comes after.
    forms.push(base64(start)[..start.len() / 3 * 4].to_owned());
    for between in [", ", ","] {
        let in_digits: Vec<String> =
            forms[..3].iter().map(|digits| numbers(digits.as_bytes(), between)).collect();
        forms.extend(in_digits);
        forms.push(numbers(start, between));
    }
    forms.push(start.escape_ascii().to_string());
    forms.extend(std::str::from_utf8(start).ok().map(str::to_owned));
    forms
}

/// The logs of an installation, by the file's name.
fn logs(folder: &Path) -> BTreeMap<String, String> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let logs = files.filter(|file| file.extension().is_some_and(|extension| extension == "log"));
    logs.map(|file| {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        (name, String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned())
    })
    .collect()
}

/// That a text is in none of the logs.
fn assert_absent(logs: &BTreeMap<String, String>, what: &str, text: &str) {
    for (name, log) in logs {
        if let Some(line) = log.lines().find(|line| line.contains(text)) {
            // Not the secret itself: this test's output is a log, too.
            panic!("{what} is in {name}, in a line that begins {:?}", line.get(..120).unwrap_or_default());
        }
    }
}

/// That no piece of a long text in base64 is in any of the logs.
fn assert_no_piece(logs: &BTreeMap<String, String>, what: &str, text: &str) {
    let pieces: HashSet<&[u8]> = text.as_bytes().windows(PIECE).collect();
    for (name, log) in logs {
        let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || [b'+', b'/', b'='].contains(byte);
        for run in log.as_bytes().split(|byte| !is_digit(byte)).filter(|run| run.len() >= PIECE) {
            assert!(
                !run.windows(PIECE).any(|window| pieces.contains(window)),
                "a piece of {what} is in {name}"
            );
        }
    }
}

async fn until(what: &str, folder: &Path, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < START, "not within {START:?}: {what}; the logs are in {folder:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A broker's or a database's address, with a user that is not let in.
fn with_password(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").unwrap();
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://mallory:{PASSWORD}@{host}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_secret_is_in_any_log_at_any_level_and_each_line_says_of_which_session_it_is() {
    let mut installation = Installation::new();
    let folder: PathBuf = installation.folder().to_owned();
    std::fs::write(folder.join("config/development.toml"), "[log]\nlevel = \"trace\"\nformat = \"json\"\n")
        .unwrap();
    installation.set("RUST_LOG", EVERYTHING);
    let threshold = Threshold::new(2, 3).unwrap();
    let files = tssctl::keygen::Files::in_folder(&folder, threshold);
    files.ensure_identities(threshold, &BTreeMap::new()).unwrap();

    // A key, each signer's share in a process of its own; then the signers, and a manager.
    let ceremony = ["1", "2", "3"].map(|index| installation.start("signer", &["keygen", "--index", index]));
    let shares = || (1..=3).map(|index| folder.join(format!("signer{index}.store")));
    until("the key is made", &folder, || {
        shares().all(|file| std::fs::read(file).is_ok_and(|json| ShareDocument::from_json(&json).is_ok()))
    })
    .await;
    drop(ceremony);
    let signers = ["1", "2", "3"].map(|index| installation.start("signer", &["--index", index]));
    let manager = installation.start("manager", &[]);
    let [one, two, three] = &signers;
    installation.until_healthy(&[&manager, one, two, three]).await;

    let mut requests = Vec::new();
    for message in messages() {
        let (encoding, text) = match String::from_utf8(message.clone()) {
            Ok(text) => ("utf8", text),
            Err(_) => ("hex", hex::encode(&message)),
        };
        let body = json!({"message": text, "encoding": encoding});
        let (status, _, accepted) = post(&format!("{}/sign", installation.url()), &body).await.unwrap();
        assert_eq!(status, 201, "{accepted}");
        let id = accepted["request_id"].as_str().unwrap().to_owned();
        let url = format!("{}/signature/{id}?wait=60s", installation.url());
        let (status, signature) = get(&url).await.unwrap();
        assert_eq!(status, 200, "{signature}");
        requests.push(id);
    }
    // Passwords that are not accepted: what the programs say of it, and what their libraries do.
    let mut locked_out = Installation::new();
    std::fs::copy(
        folder.join("config/development.toml"),
        locked_out.folder().join("config/development.toml"),
    )
    .unwrap();
    locked_out.set("RUST_LOG", EVERYTHING);
    locked_out.set("TSS_RABBITMQ_URI", &with_password(&rabbitmq_uri()));
    locked_out.set("TSS_MONGODB_URI", &with_password(&crate::installation::mongodb_uri()));
    locked_out.keygen();
    let refused = [locked_out.start("signer", &[]), locked_out.start("manager", &[])];
    for process in &refused {
        until("the broker refuses", locked_out.folder(), || {
            process.log().contains("the message bus is unreachable")
                || process.log().contains("ACCESS_REFUSED")
        })
        .await;
    }
    drop((refused, signers, manager));

    let mut all = logs(&folder);
    all.extend(logs(locked_out.folder()).into_iter().map(|(name, log)| (format!("locked out: {name}"), log)));
    assert_eq!(all.len(), 9, "{:?}", all.keys());
    assert!(all.values().all(|log| !log.is_empty()));
    assert_absent(&all, "a password", PASSWORD);
    assert_absent(&all, "a password", &base64(PASSWORD.as_bytes())[..40]);
    for (number, message) in messages().iter().enumerate() {
        for form in forms(message) {
            assert_absent(&all, &format!("message {number}"), &form);
        }
    }
    for index in 1..=3 {
        let json = std::fs::read(folder.join(format!("signer{index}.store"))).unwrap();
        let share: Value = serde_json::from_slice(&json).unwrap();
        let secret = hex::decode(share["core"]["secret_share"].as_str().unwrap()).unwrap();
        for form in forms(&secret) {
            assert_absent(&all, &format!("the share of signer {index}"), &form);
        }
        let part = share["engines"]["dkls23"].as_str().unwrap();
        assert!(part.len() > 10_000);
        assert_no_piece(&all, &format!("the engine's part of signer {index}"), part);
        let json = std::fs::read(folder.join(format!("signer{index}.identity"))).unwrap();
        let identity: Value = serde_json::from_slice(&json).unwrap();
        for key in ["signing_key", "sealing_key"] {
            let secret = hex::decode(identity[key].as_str().unwrap()).unwrap();
            for form in forms(&secret) {
                assert_absent(&all, &format!("the {key} of signer {index}"), &form);
            }
        }
    }
    let of_requests: Vec<(&String, Vec<Line>)> = all
        .iter()
        .filter(|(name, _)| !name.contains("keygen") && !name.starts_with("locked out"))
        .map(|(name, log)| (name, log.lines().filter_map(Line::of_request).collect()))
        .collect();
    for id in &requests {
        let told = of_requests.iter().filter(|(_, lines)| lines.iter().any(|line| line.request == *id));
        assert!(told.count() >= 3, "the manager and two signers tell of request {id}");
    }
    for (name, lines) in &of_requests {
        assert_lines_are_whole(name, lines);
    }
    locked_out.clean_up().await;
    installation.clean_up().await;
}

/// A line of this project's own about a request.
struct Line {
    request: String,
    attempt: Option<String>,
    session: Option<String>,
    text: String,
}

impl Line {
    fn of_request(line: &str) -> Option<Self> {
        let json: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        if !json["target"].as_str().is_some_and(|target| target.starts_with("tss_")) {
            return None;
        }
        // In the event itself, or in a span around it.
        let spans = json["spans"].as_array().into_iter().flatten();
        let places: Vec<&Value> = std::iter::once(&json).chain(spans).collect();
        let find = |name: &str| {
            let value = places.iter().find_map(|place| place.get(name))?;
            Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        let request = find("request")?;
        Some(Self { request, attempt: find("attempt"), session: find("session"), text: line.to_owned() })
    }
}

/// That each line about a request names the attempt, but for a manager's between attempts; and from the
/// first one that names the session, so do all others of the attempt.
fn assert_lines_are_whole(name: &str, lines: &[Line]) {
    let mut sessions: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for line in lines {
        let Some(attempt) = &line.attempt else {
            // The end of a request is that of all its attempts, and says how many there were.
            assert!(name.starts_with("manager"), "no attempt in {name}: {}", line.text);
            continue;
        };
        let key = (line.request.as_str(), attempt.as_str());
        match (&line.session, sessions.get(&key)) {
            (Some(session), Some(known)) => assert_eq!(session, known, "{}", line.text),
            (Some(session), None) => {
                sessions.insert(key, session);
            }
            (None, known) => assert!(known.is_none(), "no session in {name}: {}", line.text),
        }
    }
    if name.starts_with("signer") && !lines.is_empty() {
        assert!(!sessions.is_empty(), "{name}");
    }
}
