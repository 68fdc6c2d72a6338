//! What the programs say when they cannot start, and what `tssctl` does on the command line.
//!
//! Needs no servers: a signer has started before it has found RabbitMQ.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use age::secrecy::ExposeSecret as _;
use k256::ecdsa::SigningKey;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tss_mpc::{Dkls23, ShareDocument, Threshold};
use uuid::Uuid;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/installation.rs"]
mod processes;

use processes::{Installation, Process, START};

/// The cluster and the key that the shares here are of.
const CLUSTER: &str = "acme";
const KEY: &str = "default";

/// The shares of a 2-of-3 key by signer, as JSON.
static SHARES: LazyLock<Shares> = LazyLock::new(generate);

type Shares = BTreeMap<u8, Vec<u8>>;

fn generate() -> Shares {
    let threshold = Threshold::new(2, 3).unwrap();
    let shares = tssctl::keygen::generate(&Dkls23, CLUSTER, KEY, threshold).unwrap();
    shares.iter().map(|(index, share)| (index.get(), share.to_json().unwrap().to_vec())).collect()
}

/// An installation with an identity and a share for each signer.
fn installed() -> Installation {
    let mut installation = Installation::new();
    installation.set("TSS_CLUSTER", CLUSTER);
    // Nobody listens there: nothing is left on a broker.
    installation.set("TSS_RABBITMQ_URI", "amqp://127.0.0.1:9");
    let threshold = Threshold::new(2, 3).unwrap();
    let files = tssctl::keygen::Files::in_folder(installation.folder(), threshold);
    files.ensure_identities(threshold, &BTreeMap::new()).unwrap();
    for (index, share) in &*SHARES {
        write_private(&share_of(&installation, *index), share);
    }
    installation
}

fn share_of(installation: &Installation, index: u8) -> PathBuf {
    installation.folder().join(format!("signer{index}.store"))
}

fn write_private(file: &Path, content: &[u8]) {
    std::fs::write(file, content).unwrap();
    std::fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}

/// Signer 1's share with a change to its text.
fn edited(change: impl FnOnce(String) -> String) -> Vec<u8> {
    let text = String::from_utf8(SHARES[&1].clone()).unwrap();
    let changed = change(text.clone());
    assert_ne!(changed, text);
    changed.into_bytes()
}

/// Where the programs are, once one of them has run.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join(name)
}

/// Runs a program that must not start; yields its last line. Should it start nevertheless, it is ended.
fn refusal(installation: &Installation, name: &str, arguments: &[&str]) -> String {
    let program = program(name);
    let command = [&["--signal=KILL", "60", program.to_str().unwrap()], arguments].concat();
    let output = installation.run("/usr/bin/timeout", &command);
    let said = error(&output);
    assert_eq!(output.status.code(), Some(1), "{name} {arguments:?}: {said}");
    // What went wrong and why stand in one line, or in several where the file's own text is shown.
    let (_, refusal) = said.split_once("error: ").unwrap_or_else(|| panic!("no error in: {said}"));
    refusal.to_owned()
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a program that did what it was asked has printed.
fn answer(output: Output) -> String {
    assert!(output.status.success(), "{}", error(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool, context: impl FnOnce() -> String) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < START, "{what} takes more than {START:?}\n{}", context());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn until_started(signer: &Process) {
    until("the start", || signer.log().contains("signer started"), || signer.log());
}

#[test]
fn a_signer_refuses_a_share_that_is_missing_or_damaged_or_not_its_own() {
    type Change = fn(&mut Installation);
    let cases: &[(&str, Change, &[&str])] = &[
        ("missing", |i| std::fs::remove_file(share_of(i, 1)).unwrap(), &["No such file", "tssctl keygen"]),
        (
            "truncated",
            |i| write_private(&share_of(i, 1), &SHARES[&1][..SHARES[&1].len() / 2]),
            &["not a share document"],
        ),
        ("empty", |i| write_private(&share_of(i, 1), b""), &["not a share document"]),
        (
            "of a later version",
            |i| {
                write_private(
                    &share_of(i, 1),
                    &edited(|text| text.replace("\"version\": 1", "\"version\": 2")),
                )
            },
            &["version 2", "expected 1"],
        ),
        (
            "with a public key that is not its own",
            |i| {
                let share = ShareDocument::from_json(&SHARES[&1]).unwrap();
                let own = share.core.public_key().to_string();
                let generator = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
                write_private(&share_of(i, 1), &edited(|text| text.replace(&own, generator)));
            },
            &["contradicts itself", "public key"],
        ),
        (
            "that everybody can read",
            |i| std::fs::set_permissions(share_of(i, 1), Permissions::from_mode(0o644)).unwrap(),
            &["permissions are 0644", "0600"],
        ),
        ("of another cluster", |i| i.set("TSS_CLUSTER", "other"), &["cluster acme", "expected other"]),
        ("of another key", |i| i.set("TSS_KEY", "other"), &["key default", "expected other"]),
        ("of another signer", |i| write_private(&share_of(i, 1), &SHARES[&2]), &["signer 2", "expected 1"]),
        ("of another threshold", |i| i.set("TSS_THRESHOLD", "3"), &["threshold 2-of-3", "expected 3-of-3"]),
        (
            "of another number of signers",
            |i| i.set("TSS_TOTAL_PARTIES", "5"),
            &["threshold 2-of-3", "expected 2-of-5"],
        ),
    ];
    // Builds the programs.
    answer(installed().run("signer", &["--version"]));
    for (what, change, parts) in cases {
        let mut installation = installed();
        change(&mut installation);
        let refusal = refusal(&installation, "signer", &["--index", "1"]);
        assert_says(&format!("{what}: {refusal}"), &[parts, &["share file signer1.store"][..]].concat());
    }
    let installation = installed();
    assert_says(&refusal(&installation, "signer", &["--index", "4"]), &["--index 4", "2-of-3"]);
    // Nothing but the change was in the way.
    until_started(&installation.start("signer", &["--index", "1"]));
}

#[test]
fn an_encrypted_share_is_of_use_only_with_its_own_identity() {
    let mut installation = installed();
    let folder = installation.folder().to_owned();
    for (name, content) in [("right", "correct horse battery staple\n"), ("wrong", "incorrect\n")] {
        write_private(&folder.join(format!("{name}.passphrase")), content.as_bytes());
    }
    answer(
        installation.run("tssctl", &["keygen", "--out", "sealed", "--passphrase-file", "right.passphrase"]),
    );
    let identities = ["right", "wrong"].map(|name| {
        let identity = age::x25519::Identity::generate();
        write_private(
            &folder.join(format!("{name}.identity")),
            format!("# a comment\n{}\n", identity.to_string().expose_secret()).as_bytes(),
        );
        identity
    });
    let recipient = identities[0].to_public().to_string();
    answer(installation.run("tssctl", &["keygen", "--out", "addressed", "--recipient", &recipient]));

    for (shares, identity) in [("sealed", "passphrase"), ("addressed", "identity")] {
        let file = format!("{shares}/signer1.store");
        assert!(std::fs::read(folder.join(&file)).unwrap().starts_with(b"age-encryption.org/v1\n"));
        let mut installation = installed();
        installation.set("TSS_SIGNER1_KEY_FILE", folder.join(&file).to_str().unwrap());
        let refused = refusal(&installation, "signer", &["--index", "1"]);
        assert_says(&refused, &[&file, "it is encrypted", "`age_identity_file`"]);

        let named = |name: &str| folder.join(format!("{name}.{identity}"));
        installation.set("TSS_AGE_IDENTITY_FILE", named("wrong").to_str().unwrap());
        assert_says(&refusal(&installation, "signer", &["--index", "1"]), &[&file, "cannot be decrypted"]);

        installation.set("TSS_AGE_IDENTITY_FILE", named("right").to_str().unwrap());
        until_started(&installation.start("signer", &["--index", "1"]));

        std::fs::set_permissions(named("right"), Permissions::from_mode(0o644)).unwrap();
        let refused = refusal(&installation, "signer", &["--index", "1"]);
        assert_says(&refused, &["identity file", &format!("right.{identity}"), "permissions are 0644"]);
    }
    installation.set("TSS_AGE_IDENTITY_FILE", "absent");
    write_private(&share_of(&installation, 1), &std::fs::read(folder.join("sealed/signer1.store")).unwrap());
    let refused = refusal(&installation, "signer", &["--index", "1"]);
    assert_says(&refused, &["identity file absent", "No such file"]);
}

#[test]
fn signers_in_one_process_refuse_shares_of_two_keys() {
    let installation = installed();
    let other = generate();
    write_private(&share_of(&installation, 3), &other[&3]);
    answer(installation.run("signer", &["--version"]));
    let refused = refusal(&installation, "signer", &[]);
    let [first, third] = [&SHARES[&1], &other[&3]]
        .map(|share| ShareDocument::from_json(share).unwrap().core.public_key().to_string());
    assert_says(
        &refused,
        &["share file signer3.store", &format!("public key {third}"), &format!("expected {first}")],
    );
}

#[test]
fn a_wrong_configuration_is_refused_with_the_key_and_where_it_stands() {
    let installation = installed();
    answer(installation.run("manager", &["--version"]));
    let programs: [(&str, &[&str]); 3] =
        [("manager", &[]), ("signer", &["--index", "1"]), ("tssctl", &["keygen"])];
    let files = [
        ("manger_port = 1", ["development.toml", "manger_port", "expected", "manager_port"]),
        ("manager_port = \"x\"", ["development.toml", "manager_port", "u16", "line 1"]),
        ("threshold = 4", ["development.toml", "`threshold`", "4", "total_parties = 3"]),
        ("threshold = ", ["development.toml", "threshold", "line 1", "column"]),
    ];
    let variables = [
        ("TSS_MANGER_PORT", "1", ["TSS_MANGER_PORT", "manger_port", "expected", "manager_port"]),
        ("TSS_MANAGER_PORT", "eighty", ["TSS_MANAGER_PORT", "manager_port", "eighty", "u16"]),
        (
            "TSS_SIGNING_TIMEOUT",
            "0",
            ["TSS_SIGNING_TIMEOUT", "`signing_timeout`", "0 seconds", "expected 1 to"],
        ),
        ("TSS_RABBITMQ_URI", "http://x", ["TSS_RABBITMQ_URI", "`rabbitmq_uri`", "expected", "amqp://"]),
    ];
    for (name, arguments) in programs {
        for (line, parts) in files {
            let installation = installed();
            std::fs::write(installation.folder().join("config/development.toml"), line).unwrap();
            assert_says(&refusal(&installation, name, arguments), &parts);
        }
        for (variable, value, parts) in variables {
            let mut installation = installed();
            installation.set(variable, value);
            assert_says(&refusal(&installation, name, arguments), &parts);
        }
        let refused = refusal_in_mode(&installation, "staging", name, arguments);
        assert_says(&refused, &["config/staging.toml", "No such file", "RUN_MODE"]);
        let refused = refusal(&installation, name, &[arguments, &["--config", "elsewhere"]].concat());
        assert_says(&refused, &["elsewhere/default.toml", "No such file", "--config"]);
    }
}

/// As [`refusal`], with a `RUN_MODE`: that of whoever runs the tests is taken away from the programs.
fn refusal_in_mode(installation: &Installation, mode: &str, name: &str, arguments: &[&str]) -> String {
    let (program, mode) = (program(name), format!("RUN_MODE={mode}"));
    let command = [&[&mode, "timeout", "--signal=KILL", "60", program.to_str().unwrap()], arguments].concat();
    let output = installation.run("/usr/bin/env", &command);
    assert_eq!(output.status.code(), Some(1), "{}", error(&output));
    error(&output)
}

#[test]
fn a_manager_whose_port_is_taken_names_the_port_and_its_key() {
    let mut installation = installed();
    answer(installation.run("manager", &["--version"]));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = std::net::TcpListener::bind(taken).unwrap();
    installation.set("TSS_MANAGER_PORT", &taken.port().to_string());
    let refused = refusal(&installation, "manager", &[]);
    assert_says(&refused, &["`manager_port`", &taken.to_string(), "in use"]);
    drop(listener);
}

#[test]
fn keygen_never_replaces_a_share() {
    let installation = Installation::new();
    installation.keygen();
    let read = |index: u8| std::fs::read(share_of(&installation, index)).unwrap();
    let before = [1, 2, 3].map(read);
    for index in 1..=3 {
        let mode = share_of(&installation, index).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "nobody else can read it");
    }
    let again = refusal(&installation, "tssctl", &["keygen"]);
    assert_says(&again, &["signer1.store is there already", "never replaced", "--out"]);
    assert_eq!([1, 2, 3].map(read), before);

    // One share that is left may be the last that is missing to use the key.
    for index in [1, 2] {
        std::fs::remove_file(share_of(&installation, index)).unwrap();
    }
    assert_says(&refusal(&installation, "tssctl", &["keygen"]), &["signer3.store is there already"]);
    assert_eq!(read(3), before[2]);
    assert!(!share_of(&installation, 1).exists() && !share_of(&installation, 2).exists());

    answer(installation.run("tssctl", &["keygen", "--out", "new"]));
    assert_eq!(read(3), before[2]);
    let refused = refusal(&installation, "tssctl", &["keygen", "--out", "new", "--threshold", "3"]);
    assert_says(&refused, &["new/signer1.store is there already"]);
}

#[test]
fn verify_tells_a_right_signature_from_a_wrong_one() {
    let installation = installed();
    let digest: [u8; 32] = Sha256::digest(b"hello").into();
    let key = SigningKey::from_slice(&[7; 32]).unwrap();
    let (signature, _) = key.sign_prehash_recoverable(&digest);
    let public_key = |key: &SigningKey| hex::encode(key.verifying_key().to_sec1_point(true).as_bytes());
    let (own, other) = (public_key(&key), public_key(&SigningKey::from_slice(&[8; 32]).unwrap()));
    let compact = hex::encode(signature.to_bytes());
    let der = format!("0x{}", hex::encode(signature.to_der().as_bytes()));
    let hex_digest = hex::encode(digest);
    let verify = |text: &str, signature: &str, key: &str, more: &[&str]| {
        let arguments = [&["verify", text, "--signature", signature, "--public-key", key], more].concat();
        installation.run("tssctl", &arguments)
    };

    for (text, signature, more) in [
        ("hello", &compact, &[][..]),
        ("hello", &der, &["--hash", "sha256"]),
        ("68656c6c6f", &compact, &["--hex"]),
        (&hex_digest, &der, &["--hash", "none"]),
    ] {
        assert_says(&answer(verify(text, signature, &own, more)), &["valid", &own, &hex_digest]);
    }
    let high = {
        let (r, s) = signature.split_scalars();
        k256::ecdsa::Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap()
    };
    for (what, text, signature, key, more) in [
        ("another text", "hellp", &compact, &own, &[][..]),
        ("another hash", "hello", &compact, &own, &["--hash", "sha256d"]),
        ("another key", "hello", &compact, &other, &[]),
        ("a signature of another text", &hex_digest, &compact, &own, &[]),
        ("a high s", "hello", &hex::encode(high.to_bytes()), &own, &[]),
        ("r and s of zero", "hello", &"00".repeat(64), &own, &[]),
        ("half a signature", "hello", &compact[..64].to_owned(), &own, &[]),
    ] {
        let output = verify(text, signature, key, more);
        assert_eq!(output.status.code(), Some(3), "{what}");
        assert_says(&error(&output), &["error: invalid: "]);
        assert!(output.stdout.is_empty(), "{what}");
    }
    for (signature, key, part) in [("xyz", &own[..], "--signature: expected hex"), (&compact, "02ff", "SEC1")]
    {
        let output = verify("hello", signature, key, &[]);
        assert_eq!(output.status.code(), Some(2));
        assert_says(&error(&output), &[part]);
    }
}

/// A `tssctl devnet` and what it has printed.
struct Devnet {
    child: Child,
    printed: PathBuf,
}

impl Devnet {
    fn start(folder: &TempDir, port: u16) -> Self {
        let printed = folder.path().join(format!("{}.out", Uuid::new_v4()));
        let child = Command::new(program("tssctl"))
            .args(["devnet", "--port", &port.to_string(), "--data-dir", "net"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(File::create(&printed).unwrap())
            .stderr(File::create(printed.with_extension("log")).unwrap())
            .spawn()
            .unwrap();
        let devnet = Self { child, printed };
        until("the start", || devnet.says().contains("Ctrl-C stops it"), || devnet.says());
        devnet
    }

    fn says(&self) -> String {
        let read = |file: &Path| std::fs::read_to_string(file).unwrap_or_default();
        read(&self.printed) + &read(&self.printed.with_extension("log"))
    }

    /// The word after a label.
    fn line(&self, label: &str) -> String {
        let says = self.says();
        let line = says.lines().find_map(|line| line.trim().strip_prefix(label));
        line.unwrap_or_else(|| panic!("no {label} in: {says}")).trim().to_owned()
    }

    /// Ends it as Ctrl-C does.
    fn stop(mut self) {
        let kill = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let began = Instant::now();
        let ended = loop {
            match self.child.try_wait().unwrap() {
                None if began.elapsed() < START => std::thread::sleep(Duration::from_millis(50)),
                ended => break ended,
            }
        };
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {}", self.says());
    }
}

impl Drop for Devnet {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_devnet_signs_from_the_command_line_and_keeps_its_key() {
    let (installation, folder) = (installed(), tempfile::tempdir().unwrap());
    let tssctl = |arguments: &[&str]| installation.run("tssctl", arguments);
    answer(tssctl(&["--version"]));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let manager = format!("http://127.0.0.1:{port}");

    let devnet = Devnet::start(&folder, port);
    let (root, derived) = (devnet.line("public key"), devnet.line("at path 0/1/2"));
    assert_eq!(devnet.line("API"), manager);
    let signed: Value =
        serde_json::from_str(&answer(tssctl(&["sign", "hello", "--manager", &manager]))).unwrap();
    assert_eq!(signed["public_key"], derived.as_str());
    let compact = signed["compact"].as_str().unwrap();
    answer(tssctl(&["verify", "hello", "--signature", compact, "--public-key", &derived]));
    let wrong = tssctl(&["verify", "hello", "--signature", compact, "--public-key", &root]);
    assert_eq!(wrong.status.code(), Some(3));

    let digest = hex::encode(Sha256::digest(b"hello"));
    let arguments = ["sign", &digest, "--hash", "none", "--path", "m", "--manager", &manager];
    let with_root: Value = serde_json::from_str(&answer(tssctl(&arguments))).unwrap();
    assert_eq!(
        (&with_root["public_key"], &with_root["digest"]),
        (&root.as_str().into(), &digest.as_str().into())
    );

    let id = answer(tssctl(&["sign", "later", "--wait", "0", "--manager", &manager]));
    let id = id.trim();
    let status = || -> Value {
        serde_json::from_str(&answer(tssctl(&["status", id, "--manager", &manager]))).unwrap()
    };
    until("a signature", || status()["status"] == "Completed", || status().to_string());
    assert_eq!((&status()["request_id"], &status()["attempts"]), (&id.into(), &1.into()));

    for (arguments, parts) in [
        (&["status", &Uuid::nil().to_string()][..], ["404", "No request has this id"]),
        (&["sign", "x", "--path", "0'"], ["422", "hardened"]),
        (&["sign", "x", "--key", "other"], ["422", "the cluster has no key `other`"]),
    ] {
        let output = tssctl(&[arguments, &["--manager", &manager]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert_says(&error(&output), &parts);
    }
    devnet.stop();
    let output = tssctl(&["sign", "x", "--manager", &manager]);
    assert_eq!(output.status.code(), Some(5));
    assert_says(&error(&output), &["no answer from the manager at", &manager]);

    let devnet = Devnet::start(&folder, port);
    assert_eq!((devnet.line("public key"), devnet.line("at path 0/1/2")), (root, derived));
    assert_eq!(status()["status"], "Completed");
    answer(tssctl(&["sign", "again", "--manager", &manager]));
    devnet.stop();

    let data_dir = folder.path().join("net");
    let arguments = [
        "devnet",
        "--threshold",
        "3",
        "--signers",
        "5",
        "--port",
        "0",
        "--data-dir",
        data_dir.to_str().unwrap(),
    ];
    let refused = refusal(&installation, "tssctl", &arguments);
    assert_says(&refused, &["threshold 2-of-3", "expected 3-of-5", "--data-dir names another folder"]);
    assert!(!data_dir.join("signer4.store").exists());
}
