//! Finds which revision is being built: `TSS_REVISION`, or else what git says; `unknown` without either.
//!
//! A debug build is rarely that of a commit, and asking git would have it made anew after each one: it is
//! `development` unless `TSS_REVISION` says otherwise.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=TSS_REVISION");
    println!("cargo::rerun-if-changed=build.rs");
    let told = std::env::var("TSS_REVISION").ok().filter(|told| !told.is_empty());
    if told.as_deref().is_some_and(|told| !is_revision(told)) {
        println!("cargo::error=TSS_REVISION: expected 1 to 64 letters, digits, `.`, `-`, `_` or `+`");
        return;
    }
    let revision = told.unwrap_or_else(|| match std::env::var("PROFILE").as_deref() {
        Ok("release") => of_git().unwrap_or_else(|| "unknown".into()),
        _ => "development".into(),
    });
    println!("cargo::rustc-env=TSS_REVISION={revision}");
}

/// What can stand in one line, and in a metric's label.
fn is_revision(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_+".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// The commit that is checked out; Cargo looks again when another one is.
fn of_git() -> Option<String> {
    let revision = git(&["rev-parse", "--short=12", "HEAD"])?;
    // HEAD changes with the branch, its log with every commit. A path that is not there would have Cargo
    // look at each build.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    is_revision(&revision).then_some(revision)
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
