//! `approver` and `approve`.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use tss_common::config::Config;
use tss_common::intent::{Encoding, HashAlgorithm, Wish};
use tss_mpc::DerivationPath;
use tssctl::approver;

use super::output::Printer;
use super::sign::parse_time;

#[derive(Args)]
pub(crate) struct ApproverArguments {
    /// The new file for the key. One that is there is never replaced.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
pub(crate) struct ApproveArguments {
    /// What may be signed.
    text: String,
    /// The approver's key, as `approver` makes it.
    #[arg(long)]
    key_file: PathBuf,
    /// How the text is written: utf8, hex or base64.
    #[arg(long)]
    encoding: Option<Encoding>,
    /// How it is hashed: sha256, sha256d, keccak256, eip191 or none (the text is the digest, in hex).
    #[arg(long, default_value_t)]
    hash: HashAlgorithm,
    /// Which cluster may sign; instead of the configuration's `cluster`.
    #[arg(long)]
    cluster: Option<String>,
    /// Which key may sign; instead of the configuration's `key`.
    #[arg(long)]
    key: Option<String>,
    /// Which derived key may sign, as in 0/1/2; instead of the configuration's `path`.
    #[arg(long)]
    path: Option<DerivationPath>,
    /// When the approved request lapses, as in 2030-01-02T03:04:05Z; the request must say the same.
    #[arg(long, value_parser = parse_time)]
    not_after: Option<Timestamp>,
    /// The folder with default.toml and {RUN_MODE}.toml, as the manager has them. Not read where --cluster,
    /// --key and --path are all given.
    #[arg(long, env = "CONFIG_DIR", default_value = "config")]
    config: PathBuf,
}

/// Runs `approver`.
pub(crate) fn make_key(arguments: &ApproverArguments, printer: Printer) -> anyhow::Result<()> {
    let public = approver::generate(&arguments.out)?;
    printer.answer(&json!({ "approver": public }), |_| public.to_string())
}

/// Runs `approve`.
pub(crate) fn run(arguments: ApproveArguments) -> anyhow::Result<()> {
    let ApproveArguments { text, key_file, encoding, hash, cluster, key, path, not_after, config } =
        arguments;
    let mut config = match (&cluster, &key, &path) {
        (Some(_), Some(_), Some(_)) => Config::default(),
        _ => Config::load(&config)?,
    };
    config.cluster = cluster.unwrap_or(config.cluster);
    // As `sign` has it: a digest is bytes, and bytes on a command line are hex.
    let digest = if hash == HashAlgorithm::None { Encoding::Hex } else { Encoding::Utf8 };
    let encoding = encoding.unwrap_or(digest);
    let wish = Wish { message: text.clone(), encoding, hash, key, path, not_after };
    let (intent, approval) = approver::approve(&key_file, wish, &config)?;
    eprintln!("{} approves\n{}", approval.approver, approver::describe(&text, &intent));
    println!("{}", serde_json::to_string(&approval)?);
    Ok(())
}
