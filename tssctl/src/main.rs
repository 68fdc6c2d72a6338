//! `tssctl`: the command line of the TSS network.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use age::secrecy::SecretString;
use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use tss_common::audit::Head;
use tss_common::config::{Config, LogConfig};
use tss_common::intent::{Encoding, HashAlgorithm, Wish};
use tss_common::{process, telemetry, version};
use tss_mpc::{DerivationPath, PublicKey, ShareDocument, Signature, SignerIndex, Threshold};
use tss_signer::ceremony::Ceremony;
use tss_signer::keygen::Source;
use tss_signer::report::ShareReport;
use tss_signer::secret_file::Protection;
use tssctl::approver;
use tssctl::audit::{self, ShowOptions};
use tssctl::bench::{self, BenchOptions};
use tssctl::client::{Client, SignRequest};
use tssctl::devnet::{self, DevnetOptions};
use tssctl::keygen::{self, Files};
use tssctl::legacy;
use uuid::Uuid;

/// The command line of the TSS network: threshold signatures without a private key in one place.
#[derive(Parser)]
#[command(name = "tssctl", version = version::FULL)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a manager and all signers in one process, for development. The first start makes a key.
    Devnet(DevnetArguments),
    /// Make a new key: a share file and an identity for each signer, and the roster.
    Keygen(KeygenArguments),
    /// Take over a key of `multi-party-ecdsa` (GG18, GG20), together with all its other signers, each on its own
    /// machine with its own file; writes this signer's share and prints the public key, which stays.
    ImportLegacy(ImportArguments),
    /// Have a text signed; prints the signature as JSON.
    Sign(SignArguments),
    /// Make an approver's key; prints the public key, for the signers' policies.
    Approver {
        /// The new file for the key. One that is there is never replaced.
        #[arg(long)]
        out: PathBuf,
    },
    /// Approve that a text is signed; shows what is approved and prints the approval as a line of JSON.
    Approve(ApproveArguments),
    /// Show how far a request is.
    Status {
        /// The request's id.
        request: Uuid,
        #[command(flatten)]
        manager: ManagerArguments,
    },
    /// Check a signature against a public key, without a network.
    Verify(VerifyArguments),
    /// Put a network under load and compare it with its engine's own ceiling.
    Bench(BenchArguments),
    /// Read the signers' audit logs, without a network.
    #[command(subcommand)]
    Audit(AuditCommand),
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Check that nothing in a log was changed, removed, inserted or moved.
    Verify {
        /// The logs, signer1.audit.jsonl ….
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// A head that was kept elsewhere, as this command prints it: the log must still contain it.
        #[arg(long, value_name = "ENTRIES:HASH")]
        head: Option<Head>,
    },
    /// Show what is in logs, several merged by time, and check them meanwhile.
    Show {
        /// The logs, signer1.audit.jsonl ….
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Only what is about this request.
        #[arg(long)]
        request: Option<Uuid>,
        /// Print the lines as they stand in the logs.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct DevnetArguments {
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
struct KeygenArguments {
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
struct ImportArguments {
    /// This signer's file, as `gg18_keygen_client` or `gg20_keygen` wrote it.
    file: PathBuf,
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
struct ManagerArguments {
    /// Where the manager is.
    #[arg(long, env = "TSS_MANAGER", default_value = "http://127.0.0.1:8080")]
    manager: String,
    /// A file with the certificates, in PEM, of the authorities that may vouch for a manager at https://…; the system's
    /// own may without it.
    #[arg(long, env = "TSS_MANAGER_CA", value_name = "FILE")]
    manager_ca: Option<PathBuf>,
}

impl ManagerArguments {
    fn client(&self) -> anyhow::Result<Client> {
        Client::new(&self.manager, self.manager_ca.as_deref())
    }
}

#[derive(Args)]
struct SignArguments {
    /// What is signed.
    text: String,
    /// How the text is written: utf8, hex or base64.
    #[arg(long)]
    encoding: Option<String>,
    /// How it is hashed: sha256, sha256d, keccak256, eip191 or none (the text is the digest, in hex).
    #[arg(long)]
    hash: Option<HashAlgorithm>,
    /// Which key signs.
    #[arg(long)]
    key: Option<String>,
    /// Which derived key signs, as in 0/1/2; m for the root.
    #[arg(long)]
    path: Option<String>,
    /// When the wish lapses, as in 2030-01-02T03:04:05Z.
    #[arg(long, value_parser = parse_time)]
    not_after: Option<Timestamp>,
    /// A file with an approval, as `approve` prints it; once for each approval.
    #[arg(long)]
    approval: Vec<PathBuf>,
    /// How many seconds to wait for the signature; 0 prints the request's id at once.
    #[arg(long, default_value_t = 30)]
    wait: u64,
    #[command(flatten)]
    manager: ManagerArguments,
}

#[derive(Args)]
struct ApproveArguments {
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

#[derive(Args)]
struct VerifyArguments {
    /// What was signed.
    text: String,
    /// The signature in hex: r and s (64 bytes), or DER.
    #[arg(long)]
    signature: String,
    /// The public key in hex, in SEC1 form.
    #[arg(long)]
    public_key: PublicKey,
    /// How the text is hashed: sha256, sha256d, keccak256, eip191 or none (the text is the digest, in
    /// hex).
    #[arg(long, default_value_t)]
    hash: HashAlgorithm,
    /// The text is hex.
    #[arg(long)]
    hex: bool,
}

#[derive(Args)]
struct BenchArguments {
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

fn main() -> ExitCode {
    process::main(|| async {
        match Arguments::parse().command {
            Command::Devnet(arguments) => run_devnet(arguments).await,
            Command::Keygen(arguments) => run_keygen(&arguments),
            Command::ImportLegacy(arguments) => run_import(arguments).await,
            Command::Sign(arguments) => run_sign(arguments).await,
            Command::Approver { out } => {
                println!("{}", approver::generate(&out)?);
                Ok(())
            }
            Command::Approve(arguments) => run_approve(arguments),
            Command::Status { request, manager } => print_json(&manager.client()?.status(request).await?),
            Command::Verify(arguments) => run_verify(&arguments),
            Command::Bench(arguments) => run_bench(arguments).await,
            Command::Audit(command) => run_audit(command),
        }
    })
}

async fn run_devnet(arguments: DevnetArguments) -> anyhow::Result<()> {
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

fn run_keygen(arguments: &KeygenArguments) -> anyhow::Result<()> {
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

async fn run_import(arguments: ImportArguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    telemetry::init_logs(&config.log);
    let stop = process::stop_on_signal()?;
    let index = SignerIndex::new(arguments.index).context("--index")?;
    let share = legacy::read(&arguments.file)?;
    let threshold = Threshold::new(config.threshold, config.total_parties)?;
    anyhow::ensure!(
        (share.index(), share.threshold()) == (index, threshold),
        "{} has a share of signer {} of a {} key: expected one of signer {index} of a {threshold} key (`--index`, \
         `threshold`, `total_parties`)",
        arguments.file.display(),
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
    };
    let (share, file) = ceremony.hold(&stop).await?;
    // The key that was taken over; what is derived from it was not the same before.
    print_addresses(&share, &DerivationPath::root())?;
    println!("signer {index:<10}{}", file.display());
    println!(
        "As long as the old files are anywhere, {} of them give the key away: destroy every copy of {}.",
        threshold.t(),
        arguments.file.display()
    );
    Ok(())
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|error| format!("{error}: expected a time like 2030-01-02T03:04:05Z (RFC 3339)"))
}

fn read_passphrase(file: &Path) -> anyhow::Result<SecretString> {
    let text =
        zeroize::Zeroizing::new(std::fs::read_to_string(file).with_context(|| file.display().to_string())?);
    let line = text.lines().next().unwrap_or_default().trim();
    anyhow::ensure!(!line.is_empty(), "{}: expected a passphrase on the first line", file.display());
    Ok(SecretString::from(line.to_owned()))
}

async fn run_sign(arguments: SignArguments) -> anyhow::Result<()> {
    let hash = arguments.hash;
    // A digest is bytes, and bytes on a command line are hex.
    let encoding = match (arguments.encoding, hash) {
        (None, Some(HashAlgorithm::None)) => Some("hex".to_owned()),
        (encoding, _) => encoding,
    };
    let request = SignRequest {
        message: arguments.text,
        encoding,
        hash: hash.map(|hash| hash.to_string()),
        key: arguments.key,
        path: arguments.path,
        not_after: arguments.not_after,
        approvals: arguments
            .approval
            .iter()
            .map(|file| approver::read_approval(file))
            .collect::<anyhow::Result<_>>()?,
    };
    let client = arguments.manager.client()?;
    let id = client.sign(&request).await?;
    if arguments.wait == 0 {
        println!("{id}");
        return Ok(());
    }
    match client.signature(id, Duration::from_secs(arguments.wait)).await? {
        Some(signature) => print_json(&signature),
        None => anyhow::bail!(
            "request {id} is not signed after {} s (`tssctl status {id}` asks again)",
            arguments.wait
        ),
    }
}

fn run_approve(arguments: ApproveArguments) -> anyhow::Result<()> {
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

fn run_verify(arguments: &VerifyArguments) -> anyhow::Result<()> {
    let message = if arguments.hex || arguments.hash == HashAlgorithm::None {
        hex::decode(arguments.text.trim_start_matches("0x")).context("the text: expected hex")?
    } else {
        arguments.text.as_bytes().to_vec()
    };
    let digest = arguments.hash.digest(&message)?;
    let signature =
        hex::decode(arguments.signature.trim_start_matches("0x")).context("--signature: expected hex")?;
    match Signature::from_encoding(&signature, &arguments.public_key, &digest) {
        Ok(signature) => {
            println!(
                "valid: made by {} over {}, recid {}",
                arguments.public_key,
                hex::encode(digest),
                signature.recid
            );
            Ok(())
        }
        Err(error) => anyhow::bail!("invalid: {error}"),
    }
}

async fn run_bench(arguments: BenchArguments) -> anyhow::Result<()> {
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

fn run_audit(command: AuditCommand) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match command {
        AuditCommand::Verify { files, head } => audit::verify(&files, head, &mut out),
        AuditCommand::Show { files, request, json } => {
            for warning in audit::show(&files, ShowOptions { request, json }, &mut out)? {
                eprintln!("{warning}");
            }
            Ok(())
        }
    }
}

fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
