//! `manager`: the REST API and coordination of a TSS network.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use tokio::net::TcpListener;
use tss_common::identity::Roster;
use tss_common::{process, telemetry, version};
use tss_manager::{Manager, ManagerOptions, store};

/// As it names itself, in metrics and in traces too.
const PROGRAM: &str = "manager";

/// The manager of a TSS network: takes signing requests over REST and has them signed.
#[derive(Parser)]
#[command(name = PROGRAM, version = version::FULL)]
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
    let (config, stop, traces) = process::start(&arguments.config, PROGRAM)?;

    let api = listen("manager_port", config.manager_address, config.manager_port)?;
    let watchers = match config.manager_metrics_port {
        Some(port) => Some(listen("manager_metrics_port", config.manager_address, port)?),
        None => None,
    };
    let address = api.local_addr().context("`manager_port`")?;
    let store = store::open(&config)?;
    let roster = Roster::load(&config.roster_file, config.total_parties).context("`roster_file`")?;
    let bus = process::rabbitmq(&config, PROGRAM)?;
    let registry = telemetry::registry(PROGRAM);
    let options = ManagerOptions { config, roster, bus: bus.clone(), store, registry };
    let manager = Manager::start(options).await?;
    tracing::info!(%address, version = version::FULL, "the manager listens");
    manager.serve(api, watchers, stop).await?;
    tracing::info!("stopping");
    manager.stop().await;
    bus.close().await;
    traces.close().await;
    Ok(())
}

fn listen(key: &str, address: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    tss_manager::listen(address).with_context(|| format!("`{key}`: cannot listen on {address}"))
}
