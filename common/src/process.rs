//! What every long-running program of the network does the same way.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tss_mpc::dkls23::Dkls23;
use tss_mpc::{Engine, EngineId, FrostEd25519, FrostSecp256k1Tr};

use crate::bus::Bus;
use crate::bus::rabbitmq::{RabbitBus, RabbitOptions};
use crate::config::Config;
use crate::telemetry;
use crate::trace::Traces;

/// Runs a program: chooses the TLS implementation, starts the runtime, and prints an error as one
/// line with its causes.
pub fn main<F: Future<Output = anyhow::Result<()>>>(program: impl FnOnce() -> F) -> ExitCode {
    main_with(program, |error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// As [`main`], for a program that has its own way to say what went wrong.
pub fn main_with<F: Future<Output = anyhow::Result<()>>>(
    program: impl FnOnce() -> F,
    report: impl FnOnce(&anyhow::Error) -> ExitCode,
) -> ExitCode {
    // An error means that one has been chosen already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    allow_open_files();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the system gives no threads")
        .and_then(|runtime| runtime.block_on(program()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Each connection is an open file, and many systems allow 1,024 until somebody asks for more. Whoever does not get them can
/// still do with what there is.
fn allow_open_files() {
    let limits = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits });
}

/// A token that is cancelled when the process is asked to stop (SIGINT or SIGTERM).
///
/// # Errors
/// When the signals cannot be listened for.
pub fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}

/// What every service begins with: its configuration, its logs, the token that stops it, and its traces, which it
/// closes last.
///
/// # Errors
/// When the configuration is wrong, or signals cannot be listened for.
pub fn start(config: &Path, program: &'static str) -> anyhow::Result<(Config, CancellationToken, Traces)> {
    let config = Config::load(config)?;
    let traces = telemetry::init_logs_and_traces(&config, program).context("`trace`")?;
    Ok((config, stop_on_signal()?, traces))
}

/// The RabbitMQ that the configuration names; it shows the connection under `name`.
///
/// # Errors
/// When the URI is malformed.
pub fn rabbitmq(config: &Config, name: &str) -> anyhow::Result<Arc<dyn Bus>> {
    Ok(RabbitBus::connect(RabbitOptions {
        uri: config.rabbitmq_uri.expose().to_owned(),
        cluster: config.cluster.clone(),
        connection_name: name.to_owned(),
    })?)
}

/// The engine of this name. A configuration names those that the network offers alone.
pub fn engine(id: EngineId) -> Arc<dyn Engine> {
    match id {
        EngineId::Dkls23 => Arc::new(Dkls23),
        EngineId::FrostEd25519 => Arc::new(FrostEd25519::new()),
        EngineId::FrostSecp256k1Tr => Arc::new(FrostSecp256k1Tr::new()),
    }
}
