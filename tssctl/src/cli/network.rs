//! `devnet`, `keygen`, `import-legacy` and `bench`: whole networks, and keys for them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use age::secrecy::SecretString;
use anyhow::Context as _;
use clap::Args;
use tss_common::config::{Config, LogConfig};
use tss_common::{process, telemetry};
use tss_mpc::{DerivationPath, ForeignShare, ShareDocument, SignerIndex, Threshold};
use tss_signer::ceremony::Ceremony;
use tss_signer::foreign_file;
use tss_signer::keygen::Source;
use tss_signer::report::ShareReport;
use tss_signer::secret_file::Protection;
use tssctl::bench::{self, BenchOptions};
use tssctl::devnet::{self, DevnetOptions};
use tssctl::keygen::{self, Files};
use tssctl::legacy;

#[derive(Args)]
pub(crate) struct DevnetArguments {
    #[command(flatten)]
    shape: ShapeArguments,
    /// The manager's port.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where the key and the requests are kept.
    #[arg(long, default_value = "tss-devnet")]
    data_dir: PathBuf,
    #[command(flatten)]
    parts: PartArguments,
    /// What is logged: a level, or a filter like `info,tss_signer=debug`.
    #[arg(long, default_value = "warn")]
    log: String,
}

#[derive(Args)]
struct ShapeArguments {
    /// How many signers are needed to sign.
    #[arg(long, default_value_t = 2)]
    threshold: u8,
    /// How many signers there are.
    #[arg(long, default_value_t = 3)]
    signers: u8,
}

impl ShapeArguments {
    fn threshold(&self) -> anyhow::Result<Threshold> {
        Threshold::new(self.threshold, self.signers).context("--threshold, --signers")
    }
}

#[derive(Args)]
struct PartArguments {
    /// Use this RabbitMQ instead of a bus within the process.
    #[arg(long)]
    rabbitmq_uri: Option<String>,
    /// Use this MongoDB instead of a store within the process.
    #[arg(long)]
    mongodb_uri: Option<String>,
}

#[derive(Args)]
pub(crate) struct KeygenArguments {
    /// The folder with default.toml and {RUN_MODE}.toml, which name cluster, key, threshold and files.
    #[arg(long, env = "CONFIG_DIR", default_value = "config")]
    config: PathBuf,
    /// How many signers are needed to sign; instead of the configuration's `threshold`.
    #[arg(long)]
    threshold: Option<u8>,
    /// How many signers there are; instead of the configuration's `total_parties`.
    #[arg(long)]
    signers: Option<u8>,
    /// Write signer1.store, signer1.identity …, roster.toml to this folder, instead of the files that the
    /// configuration names.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Encrypt to this age recipient (age1…): once for all files, or once for each signer in order.
    #[arg(long)]
    recipient: Vec<String>,
    /// Encrypt with the passphrase on the first line of this file.
    #[arg(long, conflicts_with = "recipient")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ImportLegacyArguments {
    /// This signer's file, as `gg18_keygen_client` or `gg20_keygen` wrote it.
    file: PathBuf,
    #[command(flatten)]
    take_over: TakeOverArguments,
}

#[derive(Args)]
pub(crate) struct TakeOverArguments {
    /// Which signer this is, from 1: the number of its party in the file.
    #[arg(long)]
    index: u8,
    /// The folder with default.toml and {RUN_MODE}.toml, which name cluster, key, threshold, files and RabbitMQ.
    #[arg(long, env = "CONFIG_DIR", default_value = "config")]
    config: PathBuf,
    /// How many seconds to wait for the others.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Encrypt the share file to this age recipient (age1…).
    #[arg(long)]
    recipient: Vec<String>,
}

#[derive(Args)]
pub(crate) struct BenchArguments {
    #[command(flatten)]
    shape: ShapeArguments,
    /// How many requests are made.
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// How many of them at the same time.
    #[arg(long, default_value_t = 32)]
    concurrency: usize,
    #[command(flatten)]
    parts: PartArguments,
    /// What is logged: a level, or a filter like `info,tss_signer=debug`.
    #[arg(long, default_value = "warn")]
    log: String,
}

/// Runs `devnet`.
pub(crate) async fn devnet(arguments: DevnetArguments) -> anyhow::Result<()> {
    telemetry::init_logs(&LogConfig { level: arguments.log, ..LogConfig::default() });
    let stop = process::stop_on_signal()?;
    let options = DevnetOptions {
        threshold: arguments.shape.threshold()?,
        port: arguments.port,
        data_dir: arguments.data_dir,
        rabbitmq_uri: arguments.parts.rabbitmq_uri,
        mongodb_uri: arguments.parts.mongodb_uri,
    };
    let network = tokio::select! {
        network = devnet::start(&options) => network?,
        () = stop.cancelled() => return Ok(()),
    };
    println!("{}", devnet::describe(&network, options.threshold)?);
    stop.cancelled().await;
    network.stop().await
}

/// Runs `keygen`.
pub(crate) fn keygen(arguments: &KeygenArguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    let threshold = Threshold::new(
        arguments.threshold.unwrap_or(config.threshold),
        arguments.signers.unwrap_or(config.total_parties),
    )?;
    let config = Config { threshold: threshold.t(), total_parties: threshold.n(), ..config };
    let files = match &arguments.out {
        None => Files::of(&config),
        Some(folder) => Files::in_folder(folder, threshold),
    };
    let passphrase = arguments.passphrase_file.as_deref().map(read_passphrase).transpose()?;
    let protections = keygen::protections(&arguments.recipient, passphrase, threshold)?;
    files.ensure_no_shares()?;
    let engine = process::engine(config.engine);
    let began = Instant::now();
    let shares = keygen::generate(&*engine, &config.cluster, &config.key, threshold)?;
    files.ensure_identities(threshold, &protections)?;
    keygen::write(&shares, &files.shares, &protections)?;

    let share = shares.values().next().context("a key without shares")?;
    println!(
        "{threshold} key `{}` of cluster `{}` in {:.1} s",
        config.key,
        config.cluster,
        began.elapsed().as_secs_f64()
    );
    print_addresses(share, &config.path)?;
    for (index, file) in &files.shares {
        let identity = files.identities.get(index).map(|file| file.display().to_string());
        println!("{:<17}{}  {}", format!("signer {index}"), file.display(), identity.unwrap_or_default());
    }
    println!("roster           {}", files.roster.display());
    println!("Give each signer its own two files and the roster, and keep no copy of the shares together.");
    Ok(())
}

/// The public key, and what the key at the configured path goes by.
fn print_addresses(share: &ShareDocument, path: &DerivationPath) -> anyhow::Result<()> {
    let told = ShareReport::of(share, path).map_err(anyhow::Error::msg)?;
    println!("public key       {}", told.public_key);
    println!("{:<17}{}", format!("at path {path}"), told.derived_public_key);
    println!("Ethereum address {}", told.ethereum_address);
    println!("Bitcoin address  {}", told.bitcoin_address);
    Ok(())
}

/// Runs `import-legacy`.
pub(crate) async fn import_legacy(arguments: ImportLegacyArguments) -> anyhow::Result<()> {
    let ImportLegacyArguments { file, take_over: arguments } = arguments;
    let threshold = take_over(&file, |_| legacy::read(&file), arguments).await?;
    println!(
        "As long as the old files are anywhere, {} of them give the key away: destroy every copy of {}.",
        threshold.t(),
        file.display()
    );
    Ok(())
}

/// Runs `key import`.
pub(crate) async fn import(file: PathBuf, arguments: TakeOverArguments) -> anyhow::Result<()> {
    let read = |config: &Config| Ok(foreign_file::load(&file, config.age_identity_file.as_deref())?);
    let threshold = take_over(&file, read, arguments).await?;
    println!(
        "As long as the dealer's files are anywhere, {} of them give the key away, and the private key itself always does: \
         destroy every copy of {} and of the private key.",
        threshold.t(),
        file.display()
    );
    Ok(())
}

/// Takes over a key that was made elsewhere, of which this signer's share is in a file.
async fn take_over(
    file: &Path,
    read: impl FnOnce(&Config) -> anyhow::Result<ForeignShare>,
    arguments: TakeOverArguments,
) -> anyhow::Result<Threshold> {
    let config = Config::load(&arguments.config)?;
    telemetry::init_logs(&config.log);
    let stop = process::stop_on_signal()?;
    let index = SignerIndex::new(arguments.index).context("--index")?;
    let share = read(&config)?;
    let threshold = Threshold::new(config.threshold, config.total_parties)?;
    anyhow::ensure!(
        (share.index(), share.threshold()) == (index, threshold),
        "{} has a share of signer {} of a {} key: expected one of signer {index} of a {threshold} key (`--index`, \
         `threshold`, `total_parties`)",
        file.display(),
        share.index(),
        share.threshold(),
    );
    let protection = match arguments.recipient {
        recipients if recipients.is_empty() => Protection::None,
        recipients => Protection::Recipients(recipients),
    };
    let ceremony = Ceremony {
        config: &config,
        index,
        source: Source::Foreign(share),
        attempt: None,
        patience: Duration::from_secs(arguments.timeout),
        protection: &protection,
        out: None,
    };
    let (share, written) = ceremony.hold(&stop).await?;
    // The key that was taken over; what is derived from it was not the same before.
    print_addresses(&share, &DerivationPath::root())?;
    println!("signer {index:<10}{}", written.display());
    Ok(threshold)
}

fn read_passphrase(file: &Path) -> anyhow::Result<SecretString> {
    let text =
        zeroize::Zeroizing::new(std::fs::read_to_string(file).with_context(|| file.display().to_string())?);
    let line = text.lines().next().unwrap_or_default().trim();
    anyhow::ensure!(!line.is_empty(), "{}: expected a passphrase on the first line", file.display());
    Ok(SecretString::from(line.to_owned()))
}

/// Runs `bench`.
pub(crate) async fn bench(arguments: BenchArguments) -> anyhow::Result<()> {
    telemetry::init_logs(&LogConfig { level: arguments.log, ..LogConfig::default() });
    anyhow::ensure!(arguments.requests > 0, "--requests: expected at least 1");
    anyhow::ensure!(arguments.concurrency > 0, "--concurrency: expected at least 1");
    let options = BenchOptions {
        threshold: arguments.shape.threshold()?,
        requests: arguments.requests,
        concurrency: arguments.concurrency,
        rabbitmq_uri: arguments.parts.rabbitmq_uri,
        mongodb_uri: arguments.parts.mongodb_uri,
    };
    println!(
        "{} requests at concurrency {}, {}, bus {}, store {}",
        options.requests,
        options.concurrency,
        options.threshold,
        if options.rabbitmq_uri.is_some() { "RabbitMQ" } else { "in process" },
        if options.mongodb_uri.is_some() { "MongoDB" } else { "embedded" },
    );
    println!("{}", bench::run(&options).await?);
    Ok(())
}
