//! A network within this process: a manager and its signers, on a bus and a store of their own.

use std::collections::BTreeMap;
use std::path::Path;

use tss_common::config::{Config, StoreKind};
use tss_mpc::{Dkls23, ShareDocument, SignerIndex, Threshold};
use tssctl::network::{Network, NetworkOptions};

/// The default configuration, on any free port, with its files in this folder.
pub(crate) fn config(folder: &Path) -> Config {
    Config { manager_port: 0, data_dir: folder.to_owned(), store: StoreKind::Embedded, ..Config::default() }
}

pub(crate) fn threshold(config: &Config) -> Threshold {
    Threshold::new(config.threshold, config.total_parties).unwrap()
}

/// Starts a network with a new key.
pub(crate) async fn start(config: Config) -> Network {
    let (engine, threshold) = (&Dkls23, threshold(&config));
    let shares = tssctl::keygen::generate(engine, &config.cluster, &config.key, threshold).unwrap();
    start_with(config, shares).await
}

/// Starts a network of a key that is there.
pub(crate) async fn start_with(config: Config, shares: BTreeMap<SignerIndex, ShareDocument>) -> Network {
    let identities = tssctl::keygen::identities(threshold(&config));
    let share_files = BTreeMap::new();
    let options =
        NetworkOptions { config, shares, share_files, identities, rabbitmq_uri: None, mongodb_uri: None };
    Network::start(options).await.unwrap()
}
