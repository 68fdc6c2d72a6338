//! `signer`: runs one signer, or all of them for development; makes its identity, and takes part in
//! making a key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use prometheus::Registry;
use tss_common::config::Config;
use tss_common::identity::{Identity, Roster};
use tss_common::process;
use tss_mpc::{ShareDocument, SignerIndex, Threshold};
use tss_signer::compute::Compute;
use tss_signer::keygen::{self, KeygenOptions};
use tss_signer::metrics::Metrics;
use tss_signer::secret_file::Protection;
use tss_signer::{Signer, SignerOptions, http, identity_file, share_file};

/// A signer of the TSS network. Holds one share of a key and signs with t-1 others.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Which signer this is, from 1. Without it, all signers run in this process: for development
    /// only, since then one machine holds the whole key.
    #[arg(long, global = true)]
    index: Option<u8>,
    /// The folder with default.toml and {RUN_MODE}.toml.
    #[arg(long, env = "CONFIG_DIR", default_value = "config", global = true)]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Make this signer's identity, and print what belongs in the roster.
    Identity {
        #[command(flatten)]
        protection: ProtectionArguments,
    },
    /// Make a key together with all other signers of the roster, each on its own machine, and write
    /// this signer's share.
    Keygen {
        /// How many seconds to wait for the others.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        #[command(flatten)]
        protection: ProtectionArguments,
    },
}

#[derive(clap::Args)]
struct ProtectionArguments {
    /// Encrypt the file to this age recipient (age1…).
    #[arg(long)]
    recipient: Vec<String>,
}

impl ProtectionArguments {
    fn protection(self) -> Protection {
        if self.recipient.is_empty() { Protection::None } else { Protection::Recipients(self.recipient) }
    }
}

fn main() -> ExitCode {
    process::main(|| async {
        let Arguments { command, index, config } = Arguments::parse();
        match command {
            None => run(&config, index).await,
            Some(Command::Identity { protection }) => {
                make_identity(&Config::load(&config)?, index, &protection.protection())
            }
            Some(Command::Keygen { timeout, protection }) => {
                make_key(&config, index, Duration::from_secs(timeout), &protection.protection()).await
            }
        }
    })
}

async fn run(config: &std::path::Path, index: Option<u8>) -> anyhow::Result<()> {
    let (config, stop) = process::start(config)?;
    let shares = load_shares(&config, index)?;
    let mut identities = load_identities(&config, index)?;
    let roster = load_roster(&config)?;
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let compute = Compute::new()?;
    let engine = process::engine(config.engine);
    let name = index.map_or("signers".into(), |index| format!("signer {index}"));
    let bus = process::rabbitmq(&config, &name)?;

    let mut signers = Vec::with_capacity(shares.len());
    for share in shares {
        let identity = identities.remove(&share.core.index).context("an identity for each share")?;
        let options = SignerOptions {
            share,
            identity,
            roster: roster.clone(),
            engine: engine.clone(),
            bus: bus.clone(),
            compute: compute.clone(),
            data_dir: config.data_dir.clone(),
            max_sessions: config.limits.sessions,
            policy_file: config.policy_file.clone(),
            metrics: metrics.clone(),
        };
        signers.push(Signer::start(options).await?);
    }
    if config.signer_port == 0 {
        stop.cancelled().await;
    } else {
        let address = SocketAddr::new(config.signer_address, config.signer_port);
        http::serve(address, registry, bus.clone(), stop).await?;
    }
    tracing::info!("stopping");
    let patience = config.attempt_timeout() + Duration::from_secs(1);
    futures::future::join_all(signers.into_iter().map(|signer| signer.stop(patience))).await;
    bus.close().await;
    Ok(())
}

fn make_identity(config: &Config, index: Option<u8>, protection: &Protection) -> anyhow::Result<()> {
    let index = the_one(config, index)?;
    let file = config.identity_files().remove(&index).context("a file for each signer")?;
    let identity = Identity::generate();
    identity_file::save(&file, &identity, protection)?;
    let public = identity.public();
    eprintln!("signer {index}'s identity is in {}; the roster needs:\n", file.display());
    println!("[signers.{index}]");
    println!("verifying_key = \"{}\"\nsealing_key = \"{}\"", public.verifying_key, public.sealing_key);
    Ok(())
}

async fn make_key(
    config: &std::path::Path,
    index: Option<u8>,
    patience: Duration,
    protection: &Protection,
) -> anyhow::Result<()> {
    let (config, stop) = process::start(config)?;
    let index = the_one(&config, index)?;
    let file = config.key_files().remove(&index).context("a file for each signer")?;
    anyhow::ensure!(
        !file.try_exists().with_context(|| file.display().to_string())?,
        "{} is there already, and a share is never replaced: move it away first",
        file.display()
    );
    let bus = process::rabbitmq(&config, &format!("keygen of signer {index}"))?;
    let identity = load_identities(&config, Some(index.get()))?.remove(&index);
    let made = keygen::generate(KeygenOptions {
        index,
        identity: identity.context("an identity for each signer")?,
        roster: load_roster(&config)?,
        cluster: config.cluster.clone(),
        key: config.key.clone(),
        threshold: Threshold::new(config.threshold, config.total_parties)?,
        engine: process::engine(config.engine),
        bus: bus.clone(),
        compute: Compute::new()?,
        data_dir: config.data_dir.clone(),
        patience,
        metrics: Metrics::new(&Registry::new()).of(index),
    });
    let share = tokio::select! {
        share = made => share?,
        () = stop.cancelled() => anyhow::bail!("stopped before the key was made"),
    };
    // The others may still need this signer's last words.
    bus.close().await;
    share_file::save(&file, &share, protection)?;
    println!("{}", share.core.public_key);
    Ok(())
}

fn load_roster(config: &Config) -> anyhow::Result<Roster> {
    Roster::load(&config.roster_file, config.total_parties).context("`roster_file`")
}

/// The signer that `--index` names.
fn the_one(config: &Config, index: Option<u8>) -> anyhow::Result<SignerIndex> {
    let index = index.context("--index is missing: expected which signer this is")?;
    match wanted(config, Some(index))?.as_slice() {
        [index] => Ok(*index),
        _ => anyhow::bail!("--index {index} names no signer"),
    }
}

/// The signer that `--index` names, or all.
fn wanted(config: &Config, index: Option<u8>) -> anyhow::Result<Vec<SignerIndex>> {
    let threshold = Threshold::new(config.threshold, config.total_parties)?;
    Ok(match index {
        None => threshold.signers().collect(),
        Some(index) => {
            let index = SignerIndex::new(index)?;
            anyhow::ensure!(threshold.contains(index), "--index {index}: the key is {threshold}");
            vec![index]
        }
    })
}

fn load_identities(config: &Config, index: Option<u8>) -> anyhow::Result<BTreeMap<SignerIndex, Identity>> {
    let files = config.identity_files();
    wanted(config, index)?
        .into_iter()
        .map(|index| {
            let file = files.get(&index).context("a file for each signer")?;
            let identity = identity_file::load(file, config.age_identity_file.as_deref())
                .context("no identity to sign with (`tssctl keygen` or `signer identity` makes one)")?;
            Ok((index, identity))
        })
        .collect()
}

/// The share of one signer, or of all; all of one key.
fn load_shares(config: &Config, index: Option<u8>) -> anyhow::Result<Vec<ShareDocument>> {
    let threshold = Threshold::new(config.threshold, config.total_parties)?;
    let wanted = wanted(config, index)?;
    let files = config.key_files();
    let mut shares: Vec<ShareDocument> = Vec::with_capacity(wanted.len());
    for index in wanted {
        let file = files.get(&index).context("a file for each signer")?;
        let expected = share_file::Expected { cluster: &config.cluster, key: &config.key, index, threshold };
        let share = share_file::load(file, &expected, config.age_identity_file.as_deref())
            .context("no share to sign with (`tssctl keygen` makes a new key)")?;
        if let Some(first) = shares.first() {
            anyhow::ensure!(
                (first.core.public_key, first.epoch) == (share.core.public_key, share.epoch),
                "share file {}: it holds a share of public key {} at epoch {}: expected {} at epoch {}, as the others",
                file.display(),
                share.core.public_key,
                share.epoch,
                first.core.public_key,
                first.epoch,
            );
        }
        shares.push(share);
    }
    Ok(shares)
}
