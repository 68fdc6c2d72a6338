//! A network for a developer, in one process and kept in a folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tss_common::config::Config;
use tss_common::identity::Identity;
use tss_common::process;
use tss_mpc::{DerivationPath, ShareDocument, SignerIndex, Threshold};
use tss_signer::identity_file;
use tss_signer::share_file::{self, Expected};

use crate::keygen::{self, Files};
use crate::network::{Network, NetworkOptions};

/// The cluster's name, in share files and on RabbitMQ.
pub const CLUSTER: &str = "devnet";

/// What a devnet starts from.
#[derive(Clone, Debug)]
pub struct DevnetOptions {
    /// How many signers there are, and how many of them sign.
    pub threshold: Threshold,
    /// The manager's port.
    pub port: u16,
    /// Where shares and requests are kept.
    pub data_dir: PathBuf,
    /// RabbitMQ instead of the bus within the process.
    pub rabbitmq_uri: Option<String>,
    /// MongoDB instead of the embedded store.
    pub mongodb_uri: Option<String>,
}

impl DevnetOptions {
    /// The configuration of the devnet's parts.
    pub fn config(&self) -> Config {
        Config {
            cluster: CLUSTER.into(),
            threshold: self.threshold.t(),
            total_parties: self.threshold.n(),
            manager_port: self.port,
            data_dir: self.data_dir.clone(),
            mongodb_database: "tss-devnet".into(),
            ..Config::default()
        }
    }
}

/// Starts a devnet; makes its key the first time.
///
/// # Errors
/// When a part cannot be started, or the folder holds another key.
pub async fn start(options: &DevnetOptions) -> anyhow::Result<Network> {
    let config = options.config();
    let shares = tokio::task::spawn_blocking({
        let (config, options) = (config.clone(), options.clone());
        move || shares(&config, &options)
    });
    let shares = shares.await.context("key generation panicked")??;
    let network = NetworkOptions {
        config,
        shares,
        share_files: Files::in_folder(&options.data_dir, options.threshold).shares,
        identities: identities(options)?,
        rabbitmq_uri: options.rabbitmq_uri.clone(),
        mongodb_uri: options.mongodb_uri.clone(),
    };
    Network::start(network).await
}

/// What to tell the developer: the key, its addresses, and a line to try.
///
/// # Errors
/// When the network has no key.
pub fn describe(network: &Network, threshold: Threshold) -> anyhow::Result<String> {
    let shared = network.manager().shared();
    let key = shared.keys.get(&shared.config.key).context("no key is on record")?;
    let path: &DerivationPath = &shared.config.path;
    let derived = key.public_key.derive(&key.chain_code, path).context("the path derives no key")?;
    let url = network.url();
    Ok(format!(
        "
TSS devnet: {threshold}, manager and signers in one process (for development: one machine holds the key)

  public key         {root}
  {at:<19}{derived}
  Ethereum address   {ethereum}
  Bitcoin address    {bitcoin}
  API                {url}
  documentation      {url}/docs
  console            {url}/console

Sign something:

  curl -s \"{url}/signature/$(curl -s {url}/sign -H 'content-type: application/json' -d '{{\"message\":\"hello\"}}' | sed 's/.*\"request_id\":\"\\([^\"]*\\)\".*/\\1/')?wait=10s\"

Ctrl-C stops it; the key stays in {data_dir}.
",
        root = key.public_key,
        at = format!("at path {path}"),
        ethereum = derived.ethereum_address(),
        bitcoin = derived.bitcoin_address(),
        data_dir = shared.config.data_dir.display(),
    ))
}

/// The shares in the folder, or new ones if there are none.
fn shares(config: &Config, options: &DevnetOptions) -> anyhow::Result<BTreeMap<SignerIndex, ShareDocument>> {
    let files = Files::in_folder(&options.data_dir, options.threshold).shares;
    if holds_shares(&options.data_dir)? {
        return files
            .iter()
            .map(|(&index, file)| {
                let expected =
                    Expected { cluster: CLUSTER, key: &config.key, index, threshold: options.threshold };
                let share = share_file::load(file, &expected, None).context(
                    "this devnet cannot go on with its key; --data-dir names another folder for another key",
                )?;
                Ok((index, share))
            })
            .collect();
    }
    let engine = process::engine(config.engine);
    let shares = keygen::generate(&*engine, CLUSTER, &config.key, options.threshold)?;
    keygen::write(&shares, &files, &BTreeMap::new())?;
    Ok(shares)
}

/// The identities in the folder, or new ones if there are none.
fn identities(options: &DevnetOptions) -> anyhow::Result<BTreeMap<SignerIndex, Identity>> {
    let files = Files::in_folder(&options.data_dir, options.threshold);
    files.ensure_identities(options.threshold, &BTreeMap::new())?;
    files.identities.into_iter().map(|(index, file)| Ok((index, identity_file::load(&file, None)?))).collect()
}

fn holds_shares(data_dir: &Path) -> anyhow::Result<bool> {
    match std::fs::read_dir(data_dir) {
        Ok(mut entries) => Ok(entries.any(|entry| {
            entry.is_ok_and(|entry| entry.path().extension().is_some_and(|extension| extension == "store"))
        })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| data_dir.display().to_string()),
    }
}
