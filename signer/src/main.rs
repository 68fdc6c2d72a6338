//! `signer`: runs one signer, or all of them for development.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use prometheus::Registry;
use tss_common::bus::Bus;
use tss_common::bus::rabbitmq::{RabbitBus, RabbitOptions};
use tss_common::config::Config;
use tss_common::{process, telemetry};
use tss_mpc::{ShareDocument, SignerIndex, Threshold};
use tss_signer::compute::Compute;
use tss_signer::metrics::Metrics;
use tss_signer::{Signer, SignerOptions, http, share_file};

/// A signer of the TSS network. Holds one share of a key and signs with t-1 others.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Which signer this is, from 1. Without it, all signers run in this process: for development
    /// only, since then one machine holds the whole key.
    #[arg(long)]
    index: Option<u8>,
    /// The folder with default.toml and {RUN_MODE}.toml.
    #[arg(long, env = "CONFIG_DIR", default_value = "config")]
    config: PathBuf,
}

fn main() -> ExitCode {
    process::main(run)
}

async fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config)?;
    telemetry::init_logs(&config.log);
    let stop = process::stop_on_signal()?;

    let shares = load_shares(&config, arguments.index)?;
    let registry = Registry::new();
    let metrics = Metrics::new(&registry);
    let compute = Compute::new()?;
    let engine = process::engine(config.engine);
    let bus: Arc<dyn Bus> = RabbitBus::connect(RabbitOptions {
        uri: config.rabbitmq_uri.expose().to_owned(),
        cluster: config.cluster.clone(),
        connection_name: arguments.index.map_or("signers".into(), |index| format!("signer {index}")),
    })?;

    let mut signers = Vec::with_capacity(shares.len());
    for share in shares {
        let options = SignerOptions {
            share,
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

/// The share of one signer, or of all; all of one key.
fn load_shares(config: &Config, index: Option<u8>) -> anyhow::Result<Vec<ShareDocument>> {
    let threshold = Threshold::new(config.threshold, config.total_parties)?;
    let wanted: Vec<SignerIndex> = match index {
        None => threshold.signers().collect(),
        Some(index) => {
            let index = SignerIndex::new(index)?;
            anyhow::ensure!(threshold.contains(index), "--index {index}: the key is {threshold}");
            vec![index]
        }
    };
    let files = config.key_files();
    let mut shares: Vec<ShareDocument> = Vec::with_capacity(wanted.len());
    for index in wanted {
        let file = files.get(&index).with_context(|| format!("`signer{index}_key_file` is not set"))?;
        let expected = share_file::Expected { cluster: &config.cluster, key: &config.key, index, threshold };
        let share = share_file::load(file, &expected, config.signer_identity_file.as_deref())
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
