//! What a key goes through in years, with the programs as people run them: backups, drills, the last resort, and keys that
//! were there before the network was.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod backups;
mod imports;
mod last_resort;
mod refreshes;
mod renewals;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../support/installation.rs"]
mod installation;

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use age::secrecy::ExposeSecret as _;
use installation::Installation;
use serde_json::Value;

fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// That a command fails with this exit code, and says these things.
fn fails(output: &Output, code: i32, parts: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// A file that only its owner can read.
fn private(file: &Path, content: impl AsRef<[u8]>) {
    std::fs::write(file, content).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A new age identity in a file of this name; yields its recipient.
fn identity(installation: &Installation, name: &str) -> String {
    let identity = age::x25519::Identity::generate();
    private(&installation.folder().join(name), identity.to_string().expose_secret());
    identity.to_public().to_string()
}

/// Runs `tssctl` with arguments in one line.
fn tssctl(installation: &Installation, line: &str) -> Output {
    installation.run("tssctl", &line.split_whitespace().collect::<Vec<_>>())
}

/// A 2-of-3 key in share files, and of each signer a backup, `backup1` to `backup3`, that two holders of its own open:
/// their identities are in `holder1a`, `holder1b` and so on. Yields the public key.
fn with_backups(installation: &Installation) -> String {
    installation.keygen();
    for signer in 1..=3 {
        let holders = ["a", "b"].map(|which| identity(installation, &format!("holder{signer}{which}")));
        let signer = signer.to_string();
        let file = format!("backup{signer}");
        let told = ok(&back_up(installation, &signer, &holders, &file));
        assert!(told.lines().count() == 1 && told.starts_with(&format!("{file}: ")), "{told}");
    }
    read(&installation.folder().join("signer1.store"))["core"]["public_key"].as_str().unwrap().to_owned()
}

/// Runs `signer backup` for these holders.
fn back_up(installation: &Installation, signer: &str, holders: &[String], file: &str) -> Output {
    let mut arguments = vec!["backup", "--index", signer, "--out", file];
    arguments.extend(holders.iter().flat_map(|holder| ["--holder", holder.as_str()]));
    installation.run("signer", &arguments)
}

/// The flags that open the backups of these signers.
fn holders_of(signers: &[u8]) -> String {
    let flags = signers.iter().map(|i| format!(" --identity holder{i}a --identity holder{i}b"));
    flags.collect()
}

/// The text within one layer, or an error.
fn unlock(bytes: &[u8], identity: &Path) -> Result<Vec<u8>, age::DecryptError> {
    let identity: age::x25519::Identity = std::fs::read_to_string(identity).unwrap().parse().unwrap();
    let decryptor = age::Decryptor::new_buffered(bytes)?;
    let mut plain = Vec::new();
    decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity))?.read_to_end(&mut plain)?;
    Ok(plain)
}
