//! `manager`: the REST API and coordination of a TSS network.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use prometheus::Registry;
use tokio::net::TcpListener;
use tss_common::identity::Roster;
use tss_common::process;
use tss_manager::{Manager, ManagerOptions, store};

/// The manager of a TSS network: takes signing requests over REST and has them signed.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The folder with default.toml and {RUN_MODE}.toml.
    #[arg(long, env = "CONFIG_DIR", default_value = "config")]
    config: PathBuf,
}

fn main() -> ExitCode {
    process::main(run)
}

async fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (config, stop) = process::start(&arguments.config)?;

    let address = SocketAddr::new(config.manager_address, config.manager_port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("`manager_port`: cannot listen on {address}"))?;
    let store = store::open(&config)?;
    let roster = Roster::load(&config.roster_file, config.total_parties).context("`roster_file`")?;
    let bus = process::rabbitmq(&config, "manager")?;
    let options = ManagerOptions { config, roster, bus: bus.clone(), store, registry: Registry::new() };
    let manager = Manager::start(options).await?;
    tracing::info!(%address, "the manager listens");
    manager.serve(listener, stop).await?;
    tracing::info!("stopping");
    manager.stop().await;
    bus.close().await;
    Ok(())
}
