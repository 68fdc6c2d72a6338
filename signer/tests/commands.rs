//! What the commands of `signer` do on the command line. Needs no servers.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use tss_common::identity::{Identity, Roster};
use tss_mpc::local::{Machines, run_local};
use tss_mpc::{Dkls23, Engine as _, KeygenSetup, SessionId, ShareDocument, SignerIndex, Threshold};
use tss_signer::report::{IdentityReport, ShareReport};
use tss_signer::secret_file::Protection;
use tss_signer::{identity_file, share_file};

/// Runs `signer` in a folder, with the project's configuration.
fn signer(folder: &Path, arguments: &[&str]) -> Output {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let mut command = Command::new(env!("CARGO_BIN_EXE_signer"));
    command.args(arguments).current_dir(folder).env_clear().env("CONFIG_DIR", config);
    // Nobody listens there.
    command.env("TSS_RABBITMQ_URI", "amqp://127.0.0.1:9").output().unwrap()
}

fn answer(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refusal(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it was not refused: {said}");
    said
}

/// A file in a folder as Kubernetes mounts a Secret: behind two links, for the group to read.
fn mounted(folder: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
    let data = folder.join("..2026_01_02_03_04_05.678");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join(name), content).unwrap();
    fs::set_permissions(data.join(name), Permissions::from_mode(mode)).unwrap();
    let _ = symlink(data.file_name().unwrap(), folder.join("..data"));
    let file = folder.join(name);
    let _ = symlink(Path::new("..data").join(name), &file);
    file
}

#[test]
fn an_identity_is_made_unless_there_is_one() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let identity = |extra: &[&str]| signer(folder, &[&["identity", "--index", "2"], extra].concat());
    let told = || -> IdentityReport {
        serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap()
    };
    let existing = ["--existing", "secret/identity", "--report", "report.json"];
    let made = answer(&identity(&existing));
    let file = folder.join("signer2.identity");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let public = identity_file::load(&file, None).unwrap().public();
    let report = IdentityReport::of(SignerIndex::new(2).unwrap(), public);
    assert_eq!(told(), report);
    assert!(made.contains("[signers.2]") && made.contains(&public.verifying_key.to_string()), "{made}");

    // From now on it is there, and no other is made.
    let content = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    fs::remove_file(folder.join("report.json")).unwrap();
    let secret = mounted(&folder.join("secret"), "identity", &content, 0o440);
    assert_eq!(answer(&identity(&existing)), made);
    assert_eq!(told(), report);
    assert!(!file.exists());

    for (mode, expected) in [(0o444, "permissions are 0444"), (0o640, "")] {
        fs::set_permissions(&secret, Permissions::from_mode(mode)).unwrap();
        let output = identity(&existing);
        match expected {
            "" => assert_eq!(answer(&output), made),
            expected => assert!(refusal(&output).contains(expected), "{mode:o}"),
        }
    }
    // One that cannot be read is no reason to make another.
    fs::remove_file(folder.join("secret/..data")).unwrap();
    assert!(refusal(&identity(&existing)).contains("identity file secret/identity: No such file"));
    assert!(!file.exists());
}

/// A 2-of-3 key of the configured name.
fn shares() -> BTreeMap<SignerIndex, ShareDocument> {
    let threshold = Threshold::new(2, 3).unwrap();
    let session = SessionId([7; 32]);
    let machines: Machines<ShareDocument> = threshold
        .signers()
        .map(|index| {
            let (cluster, key) = ("tss".to_owned(), "default".to_owned());
            (index, Dkls23.keygen(KeygenSetup { session, cluster, key, index, threshold }).unwrap())
        })
        .collect();
    run_local(machines).unwrap()
}

#[test]
fn a_signer_tells_which_share_it_holds_if_it_could_start_with_it() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let shares = shares();
    let identities: BTreeMap<SignerIndex, Identity> =
        shares.keys().map(|&index| (index, Identity::generate())).collect();
    fs::write(folder.join("roster.toml"), Roster::of(&identities).unwrap().to_toml().unwrap()).unwrap();
    for (index, share) in &shares {
        let file = folder.join(format!("signer{index}.store"));
        if index.get() == 3 {
            symlink(mounted(&folder.join("secret"), "share", &share.to_json().unwrap(), 0o440), file)
                .unwrap();
        } else {
            share_file::save(&file, share, &Protection::None).unwrap();
        }
        let file = folder.join(format!("signer{index}.identity"));
        identity_file::save(&file, &identities[index], &Protection::None).unwrap();
    }
    let inspect = |index: &str, extra: &[&str]| {
        signer(folder, &[&["inspect", "--index", index, "--report", "report.json"], extra].concat())
    };
    let public_key = shares.values().next().unwrap().core.public_key().to_string();
    let mut commitments = Vec::new();
    for (index, share) in &shares {
        let told = answer(&inspect(&index.to_string(), &["--expect-public-key", &public_key]));
        assert_eq!(fs::read_to_string(folder.join("report.json")).unwrap(), told);
        let told: ShareReport = serde_json::from_str(&told).unwrap();
        assert_eq!(told, ShareReport::of(share, &"0/1/2".parse().unwrap()).unwrap());
        commitments.push(told.commitment);
    }
    assert!(commitments.iter().all(|commitment| *commitment == commitments[0]));
    // What is there already counts, instead of what was just made; it may be anybody's.
    let existing = |file: &str| inspect("1", &["--existing", file]);
    assert_eq!(answer(&existing("none")), answer(&inspect("1", &[])));
    assert_eq!(answer(&existing("signer1.store")), answer(&inspect("1", &[])));
    let refused = refusal(&existing("signer2.store"));
    assert!(refused.contains("signer2.store: it holds a share of signer 2: expected 1"), "{refused}");
    let refused = refusal(&existing("roster.toml"));
    assert!(refused.contains("roster.toml"), "{refused}");
    // It looks, and does nothing else.
    assert!(!folder.join("tss-data").exists());

    fs::remove_file(folder.join("report.json")).unwrap();
    let generator = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let refused = refusal(&inspect("1", &["--expect-public-key", generator]));
    assert!(refused.contains(&public_key) && refused.contains(&format!("expected {generator}")), "{refused}");
    let refused = refusal(&inspect("1", &["--expect-public-key", "02"]));
    assert!(refused.contains("expected 33 bytes"), "{refused}");
    fs::copy(folder.join("signer2.identity"), folder.join("signer1.identity")).unwrap();
    let refused = refusal(&inspect("1", &[]));
    assert!(refused.contains("signer 1 has another identity"), "{refused}");
    fs::copy(folder.join("signer2.store"), folder.join("signer1.store")).unwrap();
    let refused = refusal(&inspect("1", &[]));
    assert!(refused.contains("signer1.store: it holds a share of signer 2: expected 1"), "{refused}");
    assert!(refusal(&inspect("4", &[])).contains("--index 4"));
    assert!(!folder.join("report.json").exists());
}

#[test]
fn the_name_of_a_try_is_checked_before_anything_is_done() {
    let folder = TempDir::new().unwrap();
    let refused = refusal(&signer(folder.path(), &["keygen", "--index", "1", "--attempt", "No 1"]));
    assert!(refused.contains("expected 1 to 63 lower-case letters, digits or hyphens"), "{refused}");
}
