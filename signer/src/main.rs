//! `signer`: runs one signer, or all of them for development; makes its identity, and takes part in
//! making a key; says what share it holds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tss_common::config::{Config, check_name};
use tss_common::envelope::Endpoint;
use tss_common::identity::Identity;
use tss_common::{process, telemetry, version};
use tss_mpc::{PublicKey, Quorum, ShareDocument, SignerIndex, Threshold};
use tss_signer::backup::{self, Header, Holder, Identities};
use tss_signer::ceremony::{self, Ceremony};
use tss_signer::compute::Compute;
use tss_signer::keygen::{Renewal, Source};
use tss_signer::metrics::Metrics;
use tss_signer::report::{self, IdentityReport, ShareReport};
use tss_signer::secret_file::Protection;
use tss_signer::share_file::ShareFile;
use tss_signer::{Signer, SignerOptions, http, identity_file, share_file};

/// As it names itself, in metrics and in traces too.
const PROGRAM: &str = "signer";

/// A signer of the TSS network. Holds one share of a key and signs with t-1 others.
#[derive(Parser)]
#[command(name = PROGRAM, version = version::FULL)]
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
        /// Where this file is there, take the identity in it and make none.
        #[arg(long, value_name = "FILE")]
        existing: Option<PathBuf>,
        #[command(flatten)]
        report: ReportArguments,
        #[command(flatten)]
        protection: ProtectionArguments,
    },
    /// Make a key together with all other signers of the roster, each on its own machine, and write
    /// this signer's share.
    Keygen {
        /// How many seconds to wait for the others.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// A name for this try, the same at all signers: those of another try, which may still be running,
        /// are not met.
        #[arg(long, value_name = "NAME", value_parser = attempt_name)]
        attempt: Option<String>,
        #[command(flatten)]
        report: ReportArguments,
        #[command(flatten)]
        protection: ProtectionArguments,
    },
    /// Give the key new shares, together with all other signers of the roster, and write
    /// this signer's to a new file. The public key stays; threshold and signers are those of the configuration, and can be
    /// others than before.
    Renew(RenewArguments),
    /// Check this signer's share, identity and roster as at its start, and print what share it is.
    Inspect {
        /// Where this file is there, inspect the share in it instead of that of the configuration.
        #[arg(long, value_name = "FILE")]
        existing: Option<PathBuf>,
        /// Fail if the root public key is not this one (hex).
        #[arg(long, value_name = "HEX")]
        expect_public_key: Option<PublicKey>,
        #[command(flatten)]
        report: ReportArguments,
    },
    /// Write a backup of this signer's share, which all its holders can open only together.
    Backup {
        /// A holder's age recipient (age1…), or several with commas, of which any one opens its layer. Stands once for
        /// each holder, at least twice: all of them are needed.
        #[arg(long = "holder", value_name = "RECIPIENTS", required = true)]
        holders: Vec<Holder>,
        /// Where it is written; a file that is there is never replaced.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        report: ReportArguments,
    },
}

#[derive(clap::Args)]
struct RenewArguments {
    /// Who deals: as many signers as were needed to sign, all with a share of the epoch that ends, and all among the signers
    /// to be.
    #[arg(long, value_name = "SIGNERS", value_delimiter = ',', required = true, value_parser = signer_index)]
    dealers: Vec<SignerIndex>,
    /// The epoch that ends.
    #[arg(long)]
    epoch: u64,
    /// Where the new share is written; a file that is there is never replaced.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The share that this signer has: a share file or a backup. Without it, the share file of the configuration, if it is
    /// there; a signer that is no dealer needs none.
    #[arg(long, value_name = "FILE")]
    share: Option<PathBuf>,
    /// A file with age identities that open the share, beside `age_identity_file`; once for each holder of a backup.
    #[arg(long = "identity", value_name = "FILE")]
    identities: Vec<PathBuf>,
    /// How many seconds to wait for the others.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// A name for this try, the same at all signers.
    #[arg(long, value_name = "NAME", value_parser = attempt_name)]
    attempt: Option<String>,
    #[command(flatten)]
    report: ReportArguments,
    #[command(flatten)]
    protection: ProtectionArguments,
}

#[derive(clap::Args)]
struct ReportArguments {
    /// Write what was made or found, but nothing secret, to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl ReportArguments {
    fn write(&self, report: &impl serde::Serialize) -> anyhow::Result<()> {
        self.report.as_deref().map_or(Ok(()), |file| report::write(file, report))
    }
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
            Some(Command::Identity { existing, report, protection }) => {
                let config = Config::load(&config)?;
                make_identity(&config, index, existing.as_deref(), &report, &protection.protection())
            }
            Some(Command::Keygen { timeout, attempt, report, protection }) => {
                let patience = Duration::from_secs(timeout);
                make_key(&config, index, attempt, patience, &report, &protection.protection()).await
            }
            Some(Command::Renew(arguments)) => renew(&config, index, arguments).await,
            Some(Command::Inspect { existing, expect_public_key, report }) => {
                inspect(&Config::load(&config)?, index, existing.as_deref(), expect_public_key, &report)
            }
            Some(Command::Backup { holders, out, report }) => {
                back_up(&Config::load(&config)?, index, &holders, &out, &report)
            }
        }
    })
}

async fn run(config: &Path, index: Option<u8>) -> anyhow::Result<()> {
    let (config, stop, traces) = process::start(config, PROGRAM)?;
    let shares = load_shares(&config, index)?;
    let mut identities = load_identities(&config, index)?;
    let roster = ceremony::roster(&config)?;
    let registry = telemetry::registry(PROGRAM);
    let metrics = Metrics::new(&registry);
    let compute = Compute::new()?;
    let engine = process::engine(config.engine);
    let name = index.map_or("signers".into(), |index| format!("signer {index}"));
    let bus = process::rabbitmq(&config, &name)?;

    let mut files = config.key_files();
    let mut signers = Vec::with_capacity(shares.len());
    for share in shares {
        let identity = identities.remove(&share.core.index).context("an identity for each share")?;
        let file = files.remove(&share.core.index);
        let share_file = file.map(|file| ShareFile::new(file, config.age_identity_file.clone()));
        let options = SignerOptions {
            share,
            share_file,
            refresh_pause: config.refresh_pause(),
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
    traces.close().await;
    Ok(())
}

fn make_identity(
    config: &Config,
    index: Option<u8>,
    existing: Option<&Path>,
    report: &ReportArguments,
    protection: &Protection,
) -> anyhow::Result<()> {
    let index = the_one(config, index)?;
    let (file, identity) = match existing.map(if_there).transpose()?.flatten() {
        Some(file) => (file.to_owned(), identity_file::load(file, config.age_identity_file.as_deref())?),
        None => {
            let file = config.identity_files().remove(&index).context("a file for each signer")?;
            let identity = Identity::generate();
            identity_file::save(&file, &identity, protection)?;
            (file, identity)
        }
    };
    let public = identity.public();
    report.write(&IdentityReport::of(index, public))?;
    eprintln!("signer {index}'s identity is in {}; the roster needs:\n", file.display());
    println!("[signers.{index}]");
    println!("verifying_key = \"{}\"\nsealing_key = \"{}\"", public.verifying_key, public.sealing_key);
    Ok(())
}

/// The file, if it is there. That it cannot be looked at, or is a link that leads nowhere, is no reason to
/// do without it.
fn if_there(file: &Path) -> anyhow::Result<Option<&Path>> {
    match file.symlink_metadata() {
        Ok(_) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| file.display().to_string()),
    }
}

async fn make_key(
    config: &Path,
    index: Option<u8>,
    attempt: Option<String>,
    patience: Duration,
    report: &ReportArguments,
    protection: &Protection,
) -> anyhow::Result<()> {
    let config = Config::load(config)?;
    telemetry::init_logs(&config.log);
    let stop = process::stop_on_signal()?;
    let index = the_one(&config, index)?;
    let ceremony =
        Ceremony { config: &config, index, source: Source::New, attempt, patience, protection, out: None };
    let (share, file) = ceremony.hold(&stop).await?;
    let told = ShareReport::of(&share, &config.path).map_err(anyhow::Error::msg);
    told.and_then(|told| report.write(&told))
        .with_context(|| format!("the share is in {} (`signer inspect` reports it)", file.display()))?;
    println!("{}", share.core.public_key());
    Ok(())
}

async fn renew(config: &Path, index: Option<u8>, arguments: RenewArguments) -> anyhow::Result<()> {
    let RenewArguments { dealers, epoch, out, share, mut identities, timeout, attempt, report, protection } =
        arguments;
    let config = Config::load(config)?;
    telemetry::init_logs(&config.log);
    let stop = process::stop_on_signal()?;
    let index = the_one(&config, index)?;
    let dealers = Quorum::new(dealers).context("--dealers")?;
    let file = match share {
        Some(file) => Some(file),
        None => {
            let file = config.key_files().remove(&index).context("a file for each signer")?;
            if_there(&file)?.map(Path::to_owned)
        }
    };
    identities.extend(config.age_identity_file.clone());
    let held = file.map(|file| {
        let identities = Identities::load(&identities)?;
        anyhow::Ok(backup::open(&file, &identities)?.share)
    });
    let source = Source::Held(Renewal { held: held.transpose()?, epoch, dealers });
    let (patience, protection) = (Duration::from_secs(timeout), &protection.protection());
    let ceremony = Ceremony { config: &config, index, source, attempt, patience, protection, out: Some(out) };
    let (share, file) = ceremony.hold(&stop).await?;
    let told = ShareReport::of(&share, &config.path).map_err(anyhow::Error::msg);
    told.and_then(|told| report.write(&told))
        .with_context(|| format!("the share is in {} (`signer inspect` reports it)", file.display()))?;
    eprintln!(
        "{} has signer {index}'s share of the {} key at epoch {}. Once every signer says so, put it in the place of the \
         old one: shares of two epochs do not sign together.",
        file.display(),
        share.core.threshold,
        share.epoch
    );
    println!("{}", share.core.public_key());
    Ok(())
}

fn inspect(
    config: &Config,
    index: Option<u8>,
    existing: Option<&Path>,
    expected: Option<PublicKey>,
    report: &ReportArguments,
) -> anyhow::Result<()> {
    let index = the_one(config, index)?;
    let files = config.key_files();
    let file = match existing.map(if_there).transpose()?.flatten() {
        Some(file) => file,
        None => files.get(&index).context("a file for each signer")?,
    };
    let share = load_share(config, index, file)?;
    let identity = load_identities(config, Some(index.get()))?.remove(&index);
    let identity = identity.context("an identity for each share")?;
    // What a signer does with them when it starts.
    Endpoint::new(&share.cluster, index, identity, ceremony::roster(config)?).map_err(anyhow::Error::msg)?;
    process::engine(config.engine).open(&share)?;
    let told = ShareReport::of(&share, &config.path).map_err(anyhow::Error::msg)?;
    if let Some(expected) = expected {
        anyhow::ensure!(
            told.public_key == expected,
            "signer {index} holds a share of public key {}: expected {expected}",
            told.public_key
        );
    }
    report.write(&told)?;
    println!("{}", serde_json::to_string(&told)?);
    Ok(())
}

fn back_up(
    config: &Config,
    index: Option<u8>,
    holders: &[Holder],
    out: &Path,
    report: &ReportArguments,
) -> anyhow::Result<()> {
    let index = the_one(config, index)?;
    let share = load_shares(config, Some(index.get()))?.pop().context("a share for each signer")?;
    let threshold = share.core.threshold;
    let header = backup::save(out, share, holders)?;
    report.write(&header)?;
    let Header { cluster, key, epoch, signer, public_key, holders, .. } = header;
    println!(
        "{}: signer {signer}'s share of the {threshold} key `{key}` of cluster `{cluster}` at epoch {epoch}, public key \
         {public_key}; its {holders} holders open it together",
        out.display()
    );
    Ok(())
}

fn signer_index(text: &str) -> Result<SignerIndex, String> {
    let index: u8 = text.parse().map_err(|_| format!("`{text}`: expected a signer's index, as in 1,3"))?;
    SignerIndex::new(index).map_err(|error| error.to_string())
}

fn attempt_name(name: &str) -> Result<String, String> {
    check_name(name).map(|()| name.to_owned())
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

/// The share in a signer's file.
fn load_share(config: &Config, index: SignerIndex, file: &Path) -> anyhow::Result<ShareDocument> {
    let threshold = Threshold::new(config.threshold, config.total_parties)?;
    let expected = share_file::Expected { cluster: &config.cluster, key: &config.key, index, threshold };
    share_file::load(file, &expected, config.age_identity_file.as_deref())
        .context("no share to sign with (`tssctl keygen` makes a new key)")
}

/// The share of one signer, or of all; all of one key.
fn load_shares(config: &Config, index: Option<u8>) -> anyhow::Result<Vec<ShareDocument>> {
    let wanted = wanted(config, index)?;
    let files = config.key_files();
    let mut shares: Vec<ShareDocument> = Vec::with_capacity(wanted.len());
    for index in wanted {
        let file = files.get(&index).context("a file for each signer")?;
        let share = load_share(config, index, file)?;
        if let Some(first) = shares.first() {
            // Epochs may differ: where a refresh was settled by some of them, the others will follow.
            anyhow::ensure!(
                first.core.public_key() == share.core.public_key(),
                "share file {}: it holds a share of public key {}: expected {}, as the others",
                file.display(),
                share.core.public_key(),
                first.core.public_key(),
            );
        }
        shares.push(share);
    }
    Ok(shares)
}
